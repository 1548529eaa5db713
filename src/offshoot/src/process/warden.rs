//! The warden: the thread of a process that has process isolates of its own.
//!
//! It reads the links to all of them, watches their pidfds, and talks with the forkserver. It runs
//! no code of users and never blocks but in its poll, so that a reply, a death and a kill are never
//! behind a blocked isolate. It is started with the first process isolate.

use super::child::hex;
use super::forkserver;
use super::inlet::{self, Reading};
use super::link::{Beside, Read, read_frames};
use super::protocol::{self, End, Event, Refusal, Request};
use super::{Process, decode_body};
use crate::inspect::Blocked;
use crate::janitor::{GrantedDir, TreeDir};
use crate::mark::Mark;
use crate::runtime::Runtime;
use crate::spec::Descendants;
use crate::{Error, ErrorKind, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Registry, Token};
use offshoot_mailbox::oneshot;
use offshoot_sys::event::Timer;
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_sys::rights::Rights;
use offshoot_sys::surroundings::Surroundings;
use offshoot_sys::thread::Joiner;
use offshoot_sys::{clock, image, premain, process, socket, spawn};
use offshoot_wire::frame::{Body, Ended, Header, Kind, Ready};
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

const WAKE: Token = Token(0);
const SOON: Token = Token(1);
/// Tokens of forkserver `n` are `SERVERS + 2n` for its connection, then its pidfd.
const SERVERS: usize = 1 << (usize::BITS - 1);
/// Tokens of process `n` are `FIRST + 4n` for its link, then its pidfd and its two pipes.
const FIRST: usize = 4;

/// How long the forkserver has to serve; 0.7 ms were measured.
const SERVER_START: Duration = Duration::from_secs(10);
/// How long it has to end when its work is done.
const SERVER_END: Duration = Duration::from_secs(12);
/// How long the forkserver has to report a death that its pidfd has told us already.
const REPORT: u64 = 1_000_000_000;
/// How long it has to say how one has ended (ns), before the kernel is asked on behalf of those who wait for it.
const DIED: u64 = 30_000_000;
/// How long is waited for the end of a killed forkserver while spawns wait; 0.1 ms is usual.
const SERVER_DEAD: Duration = Duration::from_millis(500);
/// How long one that another has taken the place of is kept without a process (ns): a program may go back and forth between two sets of rights.
const SERVER_IDLE: u64 = 500_000_000;
/// Why a process was killed whose forkserver is no more.
const SERVER_ENDED: &str = "the tree's forkserver had ended, and every process with it";
/// How long the forkserver has to answer a request (ns), before another one takes its place. Counted from the request, however short the
/// bound of the spawn is.
pub(crate) const ANSWER: u64 = 1_000_000_000;
/// How soon a forkserver whose socket is full is told again what was claimed.
const CLAIM_AGAIN: Duration = Duration::from_millis(5);
/// How long a forkserver that did not answer has to end with the tree.
const SILENT_END: Duration = Duration::from_secs(1);
/// How long a bind waits for its table or grant (ns).
const ENROL: u64 = 5_000_000_000;
/// How long a process has to die whose link has ended.
const LINK_ENDED: u64 = 200_000_000;
/// How long the thread leaves alone what is not urgent: a process that has just been started, and whoever waits for it, need the processors.
const NOT_URGENT: Duration = Duration::from_micros(300);
/// How long a process has to be gone that has said how it ended: its pool, its last frames and its
/// standard output, which may be a full pipe, must not keep its owner waiting for ever.
const SAID_ITS_END: u64 = 8_000_000_000;

/// The descriptors of one spawn, but for its link.
pub(crate) struct SpawnFds {
    pub(crate) directory: Option<OwnedFd>,
    pub(crate) stdio: [Option<OwnedFd>; 3],
    pub(crate) grants: Option<Vec<GrantedDir>>,
}

impl SpawnFds {
    pub(crate) fn all(self) -> Vec<OwnedFd> {
        let stdio = self.stdio.into_iter().flatten();
        self.directory.into_iter().chain(stdio).collect()
    }
}

/// A process that waits for us to say what it is to become.
pub(crate) struct Blank {
    /// Names it between us and the forkserver.
    number: u64,
    /// The forkserver that forked it.
    server: u32,
    pub(crate) child: (i32, Pidfd, Descendants),
    pub(crate) link: OwnedFd,
}

/// Which one it was, once it is a process of ours.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    number: u64,
    pub(crate) server: u32,
}

impl Blank {
    /// Without its descriptors, for want of room in this process, there is none: it sees the end of its link.
    fn new(
        (number, server): (u64, u32),
        (pid, cgroup): (i32, bool),
        fds: Vec<OwnedFd>,
    ) -> Option<Blank> {
        let mut fds = fds.into_iter();
        let (link, pidfd) = (fds.next()?, fds.next()?);
        Some(Blank {
            number,
            server,
            child: (pid, Pidfd::from_fd(pidfd), descendants(cgroup)),
            link,
        })
    }

    pub(crate) fn taken(&self) -> Taken {
        Taken {
            number: self.number,
            server: self.server,
        }
    }
}

/// A forkserver, as far as this process has to do with it.
struct Server {
    control: OwnedFd,
    /// Only the root watches and reaps it.
    pidfd: Option<Pidfd>,
    /// By which the mark of what it forks names it.
    number: u32,
    /// What its processes may do: what the thread could that has started it.
    rights: Option<Rights>,
    /// What its processes have before they put anything on, and its own id; `None` where the umask cannot be had.
    surroundings: Option<(i32, Arc<Surroundings>)>,
    /// Where it keeps what its processes have bound. No two have the same one at a time.
    tree: Option<Arc<TreeDir>>,
    /// When it last said anything (ns).
    heard: u64,
    /// Since when it has nothing to do (ns), if another one serves.
    idle_since: Option<u64>,
    /// When it was found not to answer (ns), and another one was to take its place.
    silent_since: Option<u64>,
    /// What it has said that somebody else than the thread has read, in its order.
    read: VecDeque<Said>,
    buffer: Vec<u8>,
}

/// An event and what came with it.
type Said = (Event, Vec<OwnedFd>);

impl Server {
    fn new(control: OwnedFd, pidfd: Option<Pidfd>, number: u32) -> Server {
        Server {
            control,
            pidfd,
            number,
            rights: None,
            surroundings: None,
            tree: None,
            heard: 0,
            idle_since: None,
            silent_since: None,
            read: VecDeque::new(),
            buffer: Vec::new(),
        }
    }

    /// Whether it did not answer, and has not said anything since either.
    fn is_silent(&self) -> bool {
        self.silent_since.is_some_and(|since| self.heard < since)
    }

    /// What it said next; as of [`protocol::receive`].
    fn receive(&mut self) -> io::Result<Option<Said>> {
        match self.read.pop_front() {
            Some(said) => Ok(Some(said)),
            None => protocol::receive::<Event>(&self.control, &mut self.buffer),
        }
    }
}

/// All forkservers of this process. Only a root can have more than one: one for each set of rights in which a process of it still lives.
#[derive(Default)]
struct Servers {
    /// The one that is asked.
    current: Option<Server>,
    /// Those that are there for their processes alone.
    old: Vec<Server>,
}

impl Servers {
    fn of(&self, number: u32) -> Option<&Server> {
        let mut all = self.current.iter().chain(&self.old);
        all.find(|server| server.number == number)
    }

    fn of_mut(&mut self, number: u32) -> Option<&mut Server> {
        let mut all = self.current.iter_mut().chain(&mut self.old);
        all.find(|server| server.number == number)
    }

    fn take(&mut self, number: u32) -> Option<Server> {
        if let Some(at) = self.old.iter().position(|old| old.number == number) {
            return Some(self.old.remove(at));
        }
        self.current.take_if(|server| server.number == number)
    }

    /// Makes one of the old ones the current one again whose rights are these, if there is one.
    fn exchange(&mut self, rights: &Rights) -> bool {
        let has = |server: &Server| {
            server.rights.as_ref() == Some(rights) && server.silent_since.is_none()
        };
        let Some(at) = self.old.iter().position(has) else {
            return false;
        };
        let mut server = self.old.remove(at);
        server.idle_since = None;
        self.old.extend(self.current.replace(server));
        true
    }
}

struct Watched {
    process: Arc<Process>,
    link_ended: bool,
    /// When something has to be done about it, and what.
    due: Option<(u64, Due)>,
}

impl Watched {
    /// It has sent something wrong, and is ended for it.
    fn is_wrong(&mut self, error: Error) {
        self.link_ended = true;
        let process = &self.process;
        crate::log::error!(isolate = %process.life.origin(), %error, "a process sent something wrong");
        process.fail_start(error.clone());
        process.kill(&format!("it broke the protocol: {error}"));
    }

    /// When descriptors that have come will have waited for too long (ns), if any wait.
    fn late_at(&self) -> Option<u64> {
        match self.link_ended {
            true => None,
            false => self.process.link.late_at(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Its link has ended and it should be dead.
    Dead,
    /// It is dead, and those who wait for it should have been told.
    Died,
    /// It is dead and should have been reported.
    Reported,
    /// Its spawn was given up, and it should at least be forked.
    Forked,
}

/// In how many turns the last words of a process are read.
const LAST_TURNS: usize = 256;

/// An answer that is awaited from the forkserver.
struct Enrolling {
    /// Of this forkserver.
    server: u32,
    sender: oneshot::Sender<Result<(u64, Vec<OwnedFd>)>>,
}

pub(crate) struct Warden {
    runtime: Weak<Runtime>,
    registry: Registry,
    waker: mio::Waker,
    servers: Mutex<Servers>,
    /// Those that wait for us, the oldest first.
    hand: Mutex<VecDeque<Blank>>,
    /// Those that we have made ours and the forkserver has not heard of yet, and which processes they are.
    claims: Mutex<Vec<(Taken, u64)>>,
    /// Wakes the thread a little later.
    soon: Timer,
    /// New ones, which the thread takes over.
    arrived: Mutex<Vec<Arc<Process>>>,
    enrolling: Mutex<Vec<Enrolling>>,
    /// Requests in whose links something was queued.
    queued: Mutex<Vec<u64>>,
    /// Requests whose links an isolate has read, and found something that concerns the thread.
    attention: Mutex<Vec<u64>>,
    /// Requests whose links were lent.
    lent: Mutex<Vec<u64>>,
    next_request: AtomicU64,
    /// Requests that were given up before an answer came.
    given_up: Mutex<Vec<u64>>,
    /// Requests that have not been answered for [`ANSWER`], with their forkservers and when they were made (ns).
    unanswered: Mutex<Vec<(u64, u32, u64)>>,
    /// Processes whose end was told by another thread, so that nothing more is done to them.
    over: Mutex<Vec<u64>>,
    stopping: AtomicBool,
    thread: Mutex<Option<Joiner>>,
}

impl Warden {
    /// Starts the thread. With `control`, this process was forked and has its own connection.
    pub(crate) fn start(runtime: &Arc<Runtime>, control: Option<OwnedFd>) -> Result<Arc<Warden>> {
        let poll = offshoot_sys::standard::make_above(mio::Poll::new)?;
        let registry = poll.registry().try_clone()?;
        let waker = offshoot_sys::standard::make_above(|| mio::Waker::new(&registry, WAKE))?;
        let soon = Timer::new()?;
        registry.register(
            &mut SourceFd(&soon.as_fd().as_raw_fd()),
            SOON,
            Interest::READABLE,
        )?;
        if let Some(control) = &control {
            registry.register(
                &mut SourceFd(&control.as_raw_fd()),
                Token(SERVERS),
                Interest::READABLE,
            )?;
        }
        let of_child = |control| Server {
            // It was forked, and has what the forkserver had unless it has given up any of it.
            rights: forkserver::rights().cloned(),
            surroundings: Surroundings::forked().map(|all| (process::parent(), Arc::new(all))),
            ..Server::new(control, None, 0)
        };
        let servers = Servers {
            current: control.map(of_child),
            old: Vec::new(),
        };
        let warden = Arc::new(Warden {
            runtime: Arc::downgrade(runtime),
            registry,
            waker,
            servers: Mutex::new(servers),
            hand: Mutex::default(),
            claims: Mutex::default(),
            soon,
            arrived: Mutex::default(),
            enrolling: Mutex::default(),
            queued: Mutex::default(),
            attention: Mutex::default(),
            lent: Mutex::default(),
            next_request: AtomicU64::new(1),
            given_up: Mutex::default(),
            unanswered: Mutex::default(),
            over: Mutex::default(),
            stopping: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let (this, caller) = (warden.clone(), runtime.caller);
        let thread = std::thread::Builder::new()
            .name("offshoot-warden".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                caller.put_on();
                Loop {
                    warden: this,
                    poll,
                    watched: BTreeMap::new(),
                    dues: BTreeSet::new(),
                    more: BTreeSet::new(),
                    leaving: Vec::new(),
                    next_tick: None,
                }
                .run()
            })
            .map_err(crate::budget::of_thread("offshoot-warden"))?;
        *warden.thread.lock() = Some(Joiner::from(thread));
        Ok(warden)
    }

    pub(crate) fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// What the processes of a forkserver have before they put anything on, and its id.
    pub(crate) fn surroundings(&self, server: u32) -> Option<(i32, Arc<Surroundings>)> {
        let servers = self.servers.lock();
        let mut all = servers.current.iter().chain(&servers.old);
        all.find(|one| one.number == server)?.surroundings.clone()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A link was lent: from now on the thread comes around.
    pub(crate) fn come_around(&self, request: u64) {
        let first = {
            let mut lent = self.lent.lock();
            lent.push(request);
            lent.len() == 1
        };
        if first {
            self.soon.set(NOT_URGENT);
        }
    }

    /// The thread is to look at this link.
    pub(crate) fn look_at(&self, request: u64) {
        self.attention.lock().push(request);
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            crate::log::error!(%error, "cannot wake the warden");
        }
    }

    /// Makes sure that there is a forkserver whose processes may do what the calling thread may. Its number.
    ///
    /// # Errors
    /// When there is none and none can be started; the error says what the thread has given up since the last one was.
    ///
    /// # Blocking
    /// For the start of one, in the order of a millisecond, when there is none.
    pub(crate) fn ensure_server(&self) -> Result<u32> {
        let failed =
            |message: String| Error::new(ErrorKind::Spawn("forkserver".to_owned()), message);
        let now = Rights::now();
        let mut servers = self.servers.lock();
        let now = now.map_err(|error| {
            let mut why = format!("cannot find out in /proc what this thread may do: {error}");
            let rights = servers.current.as_ref();
            if rights.and_then(|server| server.rights.as_ref()).is_some_and(|rights| !rights.has_root_directory()) {
                why.push_str("; the root directory is another one than when the tree's forkserver was started");
            }
            if let Err(problem) = process::check_proc() {
                why.push_str(&format!("; {problem}"));
            }
            failed(why).with_source(error)
        })?;
        let had = servers.current.as_ref();
        let had = had.map(|server| (server.number, server.rights.as_ref()));
        let differs = match had {
            Some((number, None)) => return Ok(number),
            Some((number, Some(rights))) => match rights.difference(&now) {
                None => return Ok(number),
                Some(differs) => Some(differs),
            },
            None => None,
        };
        let runtime = self.runtime.upgrade().filter(|runtime| runtime.is_root());
        let Some(runtime) = runtime else {
            return Err(failed(match differs {
                None => {
                    "the tree's forkserver has ended, and with it this process is about to".into()
                }
                Some(differs) => format!(
                    "this isolate may not do any more what the tree's forkserver may, whose processes would have that: {differs}; let a process be \
                     spawned before the change, or by the owner of this isolate"
                ),
            }));
        };
        if differs.is_some() && servers.exchange(&now) {
            self.say_reserves(&servers, &runtime);
            return Ok(servers.current.as_ref().map_or(0, |server| server.number));
        }
        let in_use = servers.old.iter().chain(&servers.current);
        let in_use: Vec<_> = in_use.filter_map(|server| server.tree.clone()).collect();
        let started = runtime
            .tree_dir_beside(&in_use)
            .and_then(|dir| start_server(dir, now, &runtime, &self.registry));
        let server = started.map_err(|error| match &differs {
            None => error,
            Some(differs) => {
                let message = format!(
                    "this thread may not do any more what the tree's forkserver may, and there can be no other one: {differs}; {}",
                    error.message()
                );
                failed(message).with_source(error)
            }
        })?;
        if let Some(differs) = differs {
            crate::log::info!(differs, "another forkserver serves from now on");
        }
        let number = server.number;
        let old = servers.current.replace(server);
        servers.old.extend(old);
        self.say_reserves(&servers, &runtime);
        Ok(number)
    }

    /// As [`ensure_server`](Self::ensure_server), for what is no spawn: whichever forkserver there is will do.
    pub(crate) fn ensure_any_server(&self) -> Result<()> {
        if self.servers.lock().current.is_some() {
            return Ok(());
        }
        self.ensure_server().map(drop)
    }

    /// Lets the current forkserver alone keep a reserve, and gives those away that another one has given into our hand.
    fn say_reserves(&self, servers: &Servers, runtime: &Runtime) {
        let current = servers.current.as_ref();
        let full = runtime.settings.reserve.processes;
        let all = servers.old.iter().map(|server| (server, 0));
        // The first one knows from its start.
        let any_old = !servers.old.is_empty();
        for (server, processes) in
            all.chain(current.filter(|_| any_old).map(|server| (server, full)))
        {
            // One that has gone, or is stopped, has no reserve that anything would be taken from.
            let _ = protocol::send(&server.control, &Request::Reserve { processes }, &[]);
        }
        let number = current.map(|server| server.number);
        // Each sees the end of its link, and ends.
        self.hand
            .lock()
            .retain(|blank| Some(blank.server) == number);
    }

    /// Begins to watch a process that is about to be asked for. The thread takes it over with the first event of it; to wake it for that would
    /// cost the spawn a wake-up.
    pub(crate) fn watch(self: &Arc<Self>, process: &Arc<Process>) -> io::Result<()> {
        let request = process.request;
        let warden = Arc::downgrade(self);
        process.link.on_queued(move || {
            if let Some(warden) = warden.upgrade() {
                warden.queued.lock().push(request);
                warden.wake();
            }
        });
        // First: an event of one that is not known yet would be lost.
        self.arrived.lock().push(process.clone());
        process.watch_link(&self.registry, link_token(request))?;
        for (stream, fd) in process.pipe_fds().into_iter().enumerate() {
            let Some(fd) = fd else { continue };
            let token = Token(link_token(request).0 + 2 + stream);
            let watched = self
                .registry
                .register(&mut SourceFd(&fd), token, Interest::READABLE);
            if let Err(error) = watched {
                crate::log::error!(%error, "cannot watch the output of a process");
            }
        }
        match process.pidfd() {
            None => Ok(()),
            Some(pidfd) => self.registry.register(
                &mut SourceFd(&pidfd.as_fd().as_raw_fd()),
                pidfd_token(request),
                Interest::READABLE,
            ),
        }
    }

    /// How many processes wait for us.
    pub(crate) fn waiting(&self) -> usize {
        self.hand.lock().len()
    }

    /// One of those of this forkserver that wait for us, if one lives.
    pub(crate) fn take_blank(&self, server: u32) -> Option<Blank> {
        loop {
            // The oldest: a new one may be busy yet with what it can do before it is wanted.
            let first = self.hand.lock().pop_front();
            let blank = first.or_else(|| self.next_blank())?;
            // One that is dead has not been heard of yet, or is about to be.
            if blank.server == server && !blank.child.1.is_dead() {
                return Some(blank);
            }
        }
    }

    /// One of which the forkserver has said so, and the thread has not read it yet.
    fn next_blank(&self) -> Option<Blank> {
        let mut servers = self.servers.lock();
        // It gives them into no other hand than the root's, which alone watches it.
        let server = servers
            .current
            .as_mut()
            .filter(|server| server.pidfd.is_some())?;
        // What the thread is woken for in any case, it finds there or here.
        while let Ok(Some((event, fds))) =
            protocol::receive::<Event>(&server.control, &mut server.buffer)
        {
            match event {
                Event::Blank { blank, pid, cgroup } => {
                    if let Some(blank) = Blank::new((blank, server.number), (pid, cgroup), fds) {
                        return Some(blank);
                    }
                }
                other => server.read.push_back((other, fds)),
            }
        }
        None
    }

    /// The connection to the forkserver.
    #[cfg(feature = "fault-points")]
    pub(crate) fn control(&self) -> io::Result<OwnedFd> {
        let servers = self.servers.lock();
        let ended = || io::Error::other("the tree's forkserver has ended");
        let server = servers.current.as_ref().ok_or_else(ended)?;
        server.control.try_clone()
    }

    /// One of those that waited for us is this process, which the forkserver hears soon, and before anything else that it is asked.
    pub(crate) fn claim(&self, process: &Process, taken: Taken) {
        let first = {
            let mut claims = self.claims.lock();
            claims.push((taken, process.request));
            claims.len() == 1
        };
        if first {
            self.soon.set(NOT_URGENT);
        }
    }

    /// Says what has been claimed, as far as that goes, to this forkserver or to all.
    ///
    /// # Errors
    /// One of them does not take it at the moment.
    fn send_claims(&self, servers: &Servers, to: Option<u32>) -> io::Result<()> {
        let mut full = Ok(());
        let mut left = BTreeSet::new();
        self.claims.lock().retain(|(taken, request)| {
            // Of one that has ended nothing is left that it could be told.
            let Some(server) = servers.of(taken.server) else {
                return false;
            };
            // In their order; one that is stopped holds up no other.
            if to.is_some_and(|to| to != taken.server) || left.contains(&taken.server) {
                return true;
            }
            let (blank, request) = (taken.number, *request);
            match protocol::send(&server.control, &Request::Claim { blank, request }, &[]) {
                Err(error) if socket::may_pass(&error) => {
                    left.insert(taken.server);
                    full = Err(error);
                    true
                }
                // If it has gone, that is seen elsewhere.
                Err(_) | Ok(()) => false,
            }
        });
        full
    }

    /// Asks this forkserver for a process that is watched.
    pub(crate) fn spawn(
        &self,
        server: u32,
        process: &Arc<Process>,
        outfit: protocol::Outfit,
        link: OwnedFd,
        fds: SpawnFds,
    ) -> io::Result<()> {
        let request = Request::Spawn {
            request: process.request,
            outfit,
        };
        let all: Vec<BorrowedFd<'_>> = std::iter::once(&link)
            .chain(&fds.directory)
            .chain(fds.stdio.iter().flatten())
            .map(AsFd::as_fd)
            .chain(fds.grants.iter().flatten().map(AsFd::as_fd))
            .collect();
        self.send(Some(server), &request, &all, |server| {
            process.set_server(server.number);
        })
    }

    /// A process that is watched never was: the thread is to forget it.
    pub(crate) fn never_was(&self, process: &Process, error: Error) {
        process.never_was(error);
        self.release(process.request);
    }

    /// The end of a process was told by another thread: this one is to forget it.
    pub(super) fn release(&self, request: u64) {
        self.over.lock().push(request);
        self.wake();
    }

    /// Sends once the forkserver takes it, this one or the current; `before` sees it each time that is tried.
    fn send(
        &self,
        number: Option<u32>,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        before: impl Fn(&Server),
    ) -> io::Result<()> {
        let deadline = clock::now() + 1_000_000_000;
        loop {
            let servers = self.servers.lock();
            let server = match number {
                Some(number) => servers.of(number),
                None => servers.current.as_ref(),
            };
            let sent = match server {
                None => Err(io::Error::other("the tree's forkserver has ended")),
                Some(server) => {
                    before(server);
                    self.send_claims(&servers, Some(server.number))
                        .and_then(|()| protocol::send(&server.control, request, fds))
                }
            };
            drop(servers);
            match sent {
                // Its queue is full; it reads fast, unless it is stopped.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && clock::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                Err(error) if socket::is_peer_gone(&error) => {
                    return Err(io::Error::other("the tree's forkserver has ended"));
                }
                result => return result,
            }
        }
    }

    /// Asks the forkserver for this process's bind table, or to let its sweep touch `directory`.
    pub(crate) fn enroll(&self, directory: Option<BorrowedFd<'_>>) -> Result<(u64, Vec<OwnedFd>)> {
        let grant = directory.is_some();
        self.ask(None, &Request::Enroll { grant }, directory)
    }

    /// Lets a process that was asked for here have addresses in `directory`.
    pub(crate) fn grant(&self, process: &Process, directory: Option<BorrowedFd<'_>>) -> Result<()> {
        let request = process.request;
        let grant = Request::Grant { request };
        self.ask(Some(process.server()), &grant, directory)
            .map(drop)
    }

    fn ask(
        &self,
        number: Option<u32>,
        request: &Request,
        directory: Option<BorrowedFd<'_>>,
    ) -> Result<(u64, Vec<OwnedFd>)> {
        let (sender, receiver) = oneshot::channel();
        {
            // Answers come in the order of the requests, which this lock makes that of the senders.
            let mut enrolling = self.enrolling.lock();
            let fds: Vec<BorrowedFd<'_>> = directory.into_iter().collect();
            let asked = Cell::new(0);
            self.send(number, request, &fds, |server| asked.set(server.number))?;
            let server = asked.get();
            enrolling.push(Enrolling { server, sender });
        }
        let failed = |message: &str| Err(Error::new(ErrorKind::Io(None), message));
        match wait_for(receiver, clock::now() + ENROL) {
            Some(Ok(answer)) => answer,
            Some(Err(oneshot::Dropped)) => {
                failed("the tree's forkserver ended before it had made a bind table")
            }
            None => failed("the tree's forkserver does not answer"),
        }
    }

    /// The spawn of a process was given up. If it is not even forked, that must not be waited for
    /// without a bound: perhaps the forkserver does not answer.
    pub(crate) fn given_up(&self, process: &Process) {
        if !process.is_spawned() && !process.is_over() {
            self.given_up.lock().push(process.request);
            self.wake();
        }
    }

    /// The spawn of a process waits, and the forkserver has not answered for [`ANSWER`], or does not even take the request.
    pub(crate) fn unanswered(&self, process: &Process) {
        let asked = (process.request, process.server(), process.since);
        self.unanswered.lock().push(asked);
        self.wake();
    }

    /// Ends the thread and, in the root, the forkserver. All processes have ended before.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
        if let Some(mut thread) = self.thread.lock().take() {
            let bound = u64::try_from((SERVER_END * 2).as_nanos()).unwrap_or(u64::MAX);
            if !thread.join_until(clock::now() + bound) {
                crate::log::error!("the warden does not end");
            }
        }
    }
}

/// Why a spawn failed that another forkserver may serve.
#[derive(Debug)]
pub(crate) struct Unanswered;

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer within {:?}", Duration::from_nanos(ANSWER))
    }
}

impl std::error::Error for Unanswered {}

/// Parks this thread until the answer is there or the deadline (ns) has passed.
pub(crate) fn wait_for<T>(
    mut receiver: oneshot::Receiver<T>,
    deadline: u64,
) -> Option<Result<T, oneshot::Dropped>> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(answer) = Pin::new(&mut receiver).poll(&mut cx) {
            return Some(answer);
        }
        let left = deadline.saturating_sub(clock::now());
        if left == 0 {
            return None;
        }
        std::thread::park_timeout(Duration::from_nanos(left));
    }
}

/// Starts a forkserver and waits until it serves. `rights` are the calling thread's.
fn start_server(
    tree: Arc<TreeDir>,
    rights: Rights,
    runtime: &Runtime,
    registry: &Registry,
) -> Result<Server> {
    let failed = |stage: &str, error: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::Spawn("forkserver".to_owned()),
            format!("cannot start the forkserver: {stage}: {error}"),
        )
    };
    crate::fault::check("server", "").map_err(|error| failed("its start", &error))?;
    can_be_executed(&rights).map_err(|why| failed("exec of this executable", &why))?;
    let (ours, theirs) = socket::packet_pair().map_err(|error| failed("socket pair", &error))?;
    // Over before it could come around: a forkserver takes a millisecond to start.
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mark = Mark::of_forkserver(tree.path(), number);
    let kept = rights.kept_over_exec();
    let before = Surroundings::now().ok();
    let (pid, pidfd) = spawn::exec_self(protocol::NAME, theirs.as_fd(), premain::ENV, Some(&mark))
        .map_err(|error| failed("exec of this executable", &error))?;
    drop((theirs, kept));
    let abort = |error: Error| {
        let _ = pidfd.kill();
        let _ = pidfd.wait_dead(SERVER_END);
        let _ = pidfd.reap();
        error
    };
    let lock = tree.lock_fd();
    let fds: Vec<BorrowedFd<'_>> = std::iter::once(tree.dir_fd()).chain(lock).collect();
    let hello = Request::Hello {
        build_id: image::build_id().to_vec(),
        reserve: runtime.settings.reserve.processes,
        cgroups: runtime.settings.descendants == Descendants::Cgroup,
        rights: rights.to_words(),
        caller: runtime.caller.to_words(),
        faults: crate::fault::built(),
    };
    // One that has ended may have said why.
    let asked = match protocol::send(&ours, &hello, &fds) {
        Err(error) if !socket::is_peer_gone(&error) => Err(error),
        _ => Ok(()),
    };
    asked.map_err(|error| abort(failed("first request", &error)))?;
    let served = socket::wait_readable(&ours, Some(SERVER_START))
        .map_err(|error| abort(failed("first answer", &error)))?;
    if !served {
        return Err(abort(failed(
            "first answer",
            &format_args!("none within {SERVER_START:?}"),
        )));
    }
    let mut buffer = Vec::new();
    let mut first = protocol::receive::<Event>(&ours, &mut buffer);
    // It ended without having read everything. That is told once, before what it had said.
    if first.as_ref().is_err_and(socket::is_peer_gone) {
        first = protocol::receive::<Event>(&ours, &mut buffer);
    }
    let surroundings = match first {
        Ok(Some((Event::Welcome { surroundings }, _))) => {
            let all = before.and_then(|before| before.with_words(&surroundings));
            all.map(|all| (pid, Arc::new(all)))
        }
        Ok(Some((Event::Refused { why }, _))) => {
            return Err(abort(failed("it refused", &why)));
        }
        Ok(Some((event, _))) => {
            return Err(abort(failed("first answer", &format_args!("{event:?}"))));
        }
        Err(error) if !socket::is_peer_gone(&error) => {
            return Err(abort(failed("first answer", &error)));
        }
        Ok(None) | Err(_) => {
            let ended = pidfd.wait_dead(SERVER_DEAD).unwrap_or(false);
            let how = match pidfd.reap() {
                Ok(Some(Status::Exited(code))) if ended => format!("with code {code}"),
                Ok(Some(Status::Signaled { signal, .. })) => {
                    format!("by {}", offshoot_sys::signal::name(signal))
                }
                _ => "at once".to_owned(),
            };
            let hint = format!(
                "it ended {how} and said nothing; what it may have printed is on the standard error. An executable that is not this Rust program \
                 (an interpreter that loaded it as a library) cannot be a forkserver; use thread isolates"
            );
            return Err(abort(failed("first answer", &hint)));
        }
    };
    let watched = registry
        .register(
            &mut SourceFd(&ours.as_raw_fd()),
            control_token(number),
            Interest::READABLE,
        )
        .and_then(|()| {
            registry.register(
                &mut SourceFd(&pidfd.as_fd().as_raw_fd()),
                server_token(number),
                Interest::READABLE,
            )
        });
    watched.map_err(|error| abort(failed("watching it", &error)))?;
    crate::log::debug!(pid, "forkserver started");
    Ok(Server {
        rights: Some(rights),
        surroundings,
        tree: Some(tree),
        ..Server::new(ours, Some(pidfd), number)
    })
}

/// Why this executable, executed again by this thread, would not become a forkserver, and perhaps run `main` instead.
fn can_be_executed(rights: &Rights) -> Result<(), &'static str> {
    if premain::is_copy() {
        return Err("this process was itself executed to be a forkserver, and runs `main` instead");
    }
    if process::is_privileged_exec() {
        return Err(
            "the kernel started it with more rights than its caller had (AT_SECURE: set-user-id, set-group-id or capabilities of the file), and would \
             do so again; such a program must not trust what it is told at its start, so that it can be no forkserver. Give it the rights by its \
             caller instead (a service's user, group and ambient capabilities), or keep to thread isolates",
        );
    }
    if rights.makes_secure() {
        return Err(
            "the effective ids of this thread are others than its real ones, which makes any program secure that it executes (AT_SECURE), and that can \
             be no forkserver; set the real ids, too, or spawn before the change",
        );
    }
    // A constant, as code has no offsets.
    static HERE: u8 = 0;
    if image::offset_of(&raw const HERE).is_none() {
        return Err(
            "this code is in a shared library, and the executable that has loaded it cannot be a forkserver; keep to thread isolates",
        );
    }
    Ok(())
}

/// The thread's own half.
struct Loop {
    warden: Arc<Warden>,
    poll: mio::Poll,
    watched: BTreeMap<u64, Watched>,
    /// When something is due to which of them, soonest first, as `Watched::due` has it: a wake-up is to cost no look
    /// at all of them.
    dues: BTreeSet<(u64, u64)>,
    /// Those whose links have more to read.
    more: BTreeSet<u64>,
    /// Forkservers that were told to end.
    leaving: Vec<(u32, Pidfd)>,
    /// When the lent links are looked after (ns), if any is.
    next_tick: Option<u64>,
}

/// How it is told what a process has started.
fn descendants(cgroup: bool) -> Descendants {
    match cgroup {
        true => Descendants::Cgroup,
        false => Descendants::Subreaper,
    }
}

fn control_token(server: u32) -> Token {
    Token(SERVERS + 2 * usize::try_from(server).unwrap_or(0))
}

fn server_token(server: u32) -> Token {
    Token(control_token(server).0 + 1)
}

fn link_token(request: u64) -> Token {
    Token(FIRST + 4 * usize::try_from(request).unwrap_or(usize::MAX / 8))
}

fn pidfd_token(request: u64) -> Token {
    Token(link_token(request).0 + 1)
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                crate::log::error!(%error, "the warden cannot wait");
            }
            // Taken first: a request arrives before it is given up.
            let given_up = std::mem::take(&mut *self.warden.given_up.lock());
            let unanswered = std::mem::take(&mut *self.warden.unanswered.lock());
            self.take_arrived();
            self.say_claims();
            let mut control = BTreeSet::new();
            for event in events.iter() {
                match event.token() {
                    WAKE => {}
                    SOON => drop(self.warden.soon.drain()),
                    Token(token) if token >= SERVERS => {
                        let number = u32::try_from((token - SERVERS) / 2).unwrap_or(u32::MAX);
                        match token % 2 {
                            0 => drop(control.insert(number)),
                            _ => self.server_died(number),
                        }
                    }
                    Token(token) => {
                        let request = ((token - FIRST) / 4) as u64;
                        match (token - FIRST) % 4 {
                            0 => {
                                if let Some(watched) = self.watched.get(&request) {
                                    watched.process.link.note_event(event);
                                }
                                if event.is_writable() {
                                    self.write_queued(request);
                                }
                                self.link_ready(request);
                            }
                            1 => self.died(request),
                            pipe => self.drain(request, pipe - 2),
                        }
                    }
                }
            }
            for number in control {
                self.read_control(number);
            }
            for request in std::mem::take(&mut self.more) {
                self.link_ready(request);
            }
            crate::fault::frequent_point("look", || "root");
            let queued = std::mem::take(&mut *self.warden.queued.lock());
            let attention = std::mem::take(&mut *self.warden.attention.lock());
            // After these: each is known before anything is said of it, and nobody says it again.
            self.take_arrived();
            for request in queued {
                self.write_queued(request);
            }
            for request in attention {
                self.link_ready(request);
            }
            for request in given_up {
                if let Some(watched) = self.watched.get(&request)
                    && !watched.process.is_spawned()
                {
                    let at = watched.process.since + ANSWER;
                    self.set_due(request, Some((at, Due::Forked)));
                }
            }
            for (request, server, since) in unanswered {
                self.not_answered(request, server, since);
            }
            self.look_at_clock();
            self.look_after_links();
            self.look_after_servers();
            if self.warden.stopping.load(Ordering::Acquire) {
                self.stop();
                return;
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.more.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = self.dues.first().map(|(at, _)| *at);
        let late = self.watched.values().filter_map(Watched::late_at);
        let servers = self.warden.servers.lock();
        let idle = servers.old.iter().filter_map(|server| server.idle_since);
        let idle = idle.map(|since| since + SERVER_IDLE);
        let next = idle.chain(due).chain(late).chain(self.next_tick).min()?;
        Some(Duration::from_nanos(next.saturating_sub(clock::now())))
    }

    /// Takes back the links of which no use is made, and knows when to come again.
    fn look_after_links(&mut self) {
        let now = clock::now();
        match self.next_tick {
            None if self.warden.lent.lock().is_empty() => return,
            None => {}
            Some(at) if now < at => return,
            Some(_) => {
                // Not under the lock: those that lend hold theirs while they ask for this one.
                let lent = std::mem::take(&mut *self.warden.lent.lock());
                self.take_arrived();
                let still = lent.into_iter().filter(|request| {
                    let watched = self.watched.get(request);
                    watched.is_some_and(|watched| watched.process.look_after_link())
                });
                let still: Vec<u64> = still.collect();
                let mut lent = self.warden.lent.lock();
                lent.extend(still);
            }
        }
        let any = !self.warden.lent.lock().is_empty();
        self.next_tick = any.then(|| now + inlet::TICK);
    }

    /// Takes over the processes that were asked for since.
    fn take_arrived(&mut self) {
        let arrived = std::mem::take(&mut *self.warden.arrived.lock());
        for process in arrived {
            self.watched.insert(
                process.request,
                Watched {
                    process,
                    link_ended: false,
                    due: None,
                },
            );
        }
    }

    /// Tells the forkserver what has been claimed since.
    fn say_claims(&self) {
        if self.warden.claims.lock().is_empty() {
            return;
        }
        // Those whose forkserver is no more have ended with it.
        let servers = self.warden.servers.lock();
        if self.warden.send_claims(&servers, None).is_err() {
            self.warden.soon.set(CLAIM_AGAIN);
        }
    }

    /// Writes what is queued as far as that goes, and watches for room while something is left.
    fn write_queued(&self, request: u64) {
        let Some(watched) = self.watched.get(&request) else {
            return;
        };
        let left = !watched.process.link.flush();
        watched.process.watch_for_room(left);
    }

    /// Says when something is due to a process, in place of what was.
    fn set_due(&mut self, request: u64, due: Option<(u64, Due)>) {
        let Some(watched) = self.watched.get_mut(&request) else {
            return;
        };
        if let Some((at, _)) = std::mem::replace(&mut watched.due, due) {
            self.dues.remove(&(at, request));
        }
        if let Some((at, _)) = due {
            self.dues.insert((at, request));
        }
    }

    /// As [`set_due`](Loop::set_due), unless something is.
    fn set_first_due(&mut self, request: u64, due: (u64, Due)) {
        if let Some(watched) = self.watched.get(&request)
            && watched.due.is_none()
        {
            self.set_due(request, Some(due));
        }
    }

    /// Reads what has come.
    fn link_ready(&mut self, request: u64) {
        let Some(watched) = self.watched.get_mut(&request) else {
            return;
        };
        if watched.link_ended {
            return;
        }
        let process = watched.process.clone();
        // An event may have been a bell. To look once too often costs a system call.
        process.link.rung();
        let read = {
            let mut reading = process.inlet.reading();
            let Reading { reader, wrong } = &mut *reading;
            match wrong.take() {
                Some(error) => Read::Wrong(error),
                None => read_frames(&process.link, reader, |header, body| {
                    take(&process, header, body)
                }),
            }
        };
        watched.link_ended = matches!(read, Read::Ended);
        if process.has_ended() {
            self.set_first_due(request, (clock::now() + SAID_ITS_END, Due::Dead));
        }
        match read {
            Read::Drained if process.link.may_sleep() => {}
            Read::Drained | Read::More => {
                self.more.insert(request);
            }
            Read::Ended => self.set_first_due(request, (clock::now() + LINK_ENDED, Due::Dead)),
            Read::Wrong(error) => {
                if let Some(watched) = self.watched.get_mut(&request) {
                    watched.is_wrong(error);
                }
            }
        }
        // What came may have been word of room in the ring.
        if process.link.has_ring() && process.link.has_queued() {
            self.write_queued(request);
        }
    }

    /// Reads all that a dead process has said, which ends; but for a copy of its socket in other hands.
    fn read_last_words(&mut self, request: u64) {
        for _ in 0..LAST_TURNS {
            self.more.remove(&request);
            self.link_ready(request);
            if !self.more.contains(&request) {
                return;
            }
        }
    }

    /// Its pidfd says that it is dead.
    fn died(&mut self, request: u64) {
        // What it had said before counts.
        self.read_last_words(request);
        let Some(watched) = self.watched.get(&request) else {
            return;
        };
        let Some(pidfd) = watched.process.pidfd() else {
            return;
        };
        // By the one that forked it. There may be another one by now.
        let number = watched.process.server();
        let served = self.warden.servers.lock().of(number).is_some();
        let reported = matches!(watched.due, Some((_, Due::Died | Due::Reported)));
        if !pidfd.is_dead() || (reported && served) {
            return;
        }
        let _ = self
            .warden
            .registry
            .deregister(&mut SourceFd(&pidfd.as_fd().as_raw_fd()));
        self.set_due(request, Some((clock::now() + DIED, Due::Died)));
        // Then nobody will report it, also not one who was about to.
        if !served {
            self.finish(request, |process| process.lost(SERVER_ENDED));
        }
    }

    fn drain(&self, request: u64, stream: usize) {
        if let Some(watched) = self.watched.get(&request) {
            watched.process.drain(stream);
        }
    }

    fn finish(&mut self, request: u64, how: impl FnOnce(&Process)) {
        self.set_due(request, None);
        let Some(watched) = self.watched.remove(&request) else {
            return;
        };
        let registry = &self.warden.registry;
        watched.process.unwatch_link(registry);
        if let Some(pidfd) = watched.process.pidfd() {
            let _ = registry.deregister(&mut SourceFd(&pidfd.as_fd().as_raw_fd()));
        }
        for (stream, fd) in watched.process.pipe_fds().into_iter().enumerate() {
            if let Some(fd) = fd {
                // Its last words first; what still holds the other end is no part of the isolate.
                watched.process.drain(stream);
                let _ = registry.deregister(&mut SourceFd(&fd));
            }
        }
        watched.process.close_pipes();
        how(&watched.process);
        watched.process.link.release_ring();
    }

    fn look_at_clock(&mut self) {
        let now = clock::now();
        for watched in self.watched.values_mut() {
            if !watched.link_ended
                && let Some(error) = watched.process.link.late(now)
            {
                watched.is_wrong(error);
            }
        }
        let past = self.dues.range(..=(now, u64::MAX));
        let past: Vec<u64> = past.map(|(_, request)| *request).collect();
        for request in past {
            // What is done to one may be the end of another.
            let watched = self.watched.get(&request);
            let Some((at, due)) = watched.and_then(|watched| watched.due) else {
                continue;
            };
            if at > now {
                continue;
            }
            match due {
                Due::Dead => {
                    self.set_due(request, None);
                    if let Some(watched) = self.watched.get(&request) {
                        let process = &watched.process;
                        process.kill("it was done with its owner, and did not go");
                    }
                }
                Due::Forked => self.not_forked(request),
                Due::Died => {
                    if let Some(watched) = self.watched.get(&request)
                        && let Some(pidfd) = watched.process.pidfd()
                    {
                        let pid = watched.process.life.pid();
                        let status = pidfd.unreaped_status(pid).or_else(|| pidfd.status());
                        let end = status.map(|status| End::new(status, None, 0));
                        end.into_iter().for_each(|end| watched.process.died(end));
                    }
                    self.set_due(request, Some((clock::now() + REPORT, Due::Reported)));
                }
                Due::Reported => self.finish(request, |process| {
                    // The kernel may know what the forkserver has not said.
                    match process.pidfd().and_then(Pidfd::status) {
                        Some(status) => process.reaped(status),
                        None => process.lost("the forkserver did not report its end"),
                    }
                }),
            }
        }
        // Those that were given up as unkillable, or never forked.
        let over = std::mem::take(&mut *self.warden.over.lock());
        if !over.is_empty() {
            // After these: each arrives before it is over.
            self.take_arrived();
        }
        over.into_iter()
            .for_each(|request| self.finish(request, |_| {}));
    }

    /// A process whose spawn was given up should at least be forked by now.
    fn not_forked(&mut self, request: u64) {
        let Some(watched) = self.watched.get(&request) else {
            return;
        };
        let (number, since) = (watched.process.server(), watched.process.since);
        self.not_answered(request, number, since);
        self.set_due(request, None);
        let watched = self.watched.get(&request);
        if watched.is_some_and(|watched| !watched.process.is_spawned()) {
            // It answers others: this answer was lost, for want of a descriptor. Or nobody can take its place. The process, should there
            // be one, sees the end of its link.
            let message = "the forkserver's answer was lost, or did not come";
            let error = Error::new(ErrorKind::Spawn("fork".to_owned()), message);
            self.finish(request, |process| process.never_was(error));
        }
    }

    /// A request was not answered in time: if its forkserver has said nothing else meanwhile, it serves no more.
    fn not_answered(&mut self, request: u64, number: u32, since: u64) {
        // What it has said, and was not read yet.
        self.read_control(number);
        let watched = self.watched.get(&request);
        if watched.is_some_and(|watched| watched.process.is_spawned()) {
            return;
        }
        let now = clock::now();
        let is_silent = |server: &mut Server| {
            // Only the root can start another one.
            let silent =
                server.pidfd.is_some() && now.saturating_sub(server.heard.max(since)) >= ANSWER;
            silent && server.silent_since.replace(now).is_none()
        };
        let mut servers = self.warden.servers.lock();
        if !servers.of_mut(number).is_some_and(is_silent) {
            return;
        }
        let silent = servers.current.take_if(|server| server.number == number);
        servers.old.extend(silent);
        drop(servers);
        crate::log::error!(
            number,
            "a forkserver does not answer; another one takes its place, and its isolates live on"
        );
        let failed = |message: &str| {
            let kind = ErrorKind::Spawn("fork".to_owned());
            Error::new(kind, message).with_source(Unanswered)
        };
        // What it would have to be told.
        let mut hand = self.warden.hand.lock();
        hand.retain(|blank| blank.server != number);
        drop(hand);
        let mut enrolling = self.warden.enrolling.lock();
        let asked: Vec<Enrolling> = enrolling
            .extract_if(.., |asked| asked.server == number)
            .collect();
        drop(enrolling);
        for Enrolling { sender, .. } in asked {
            let _ = sender.send(Err(failed("the tree's forkserver does not answer")));
        }
        // Asked for once more, of the next one.
        let waits = |process: &Process| process.is_of_server(number) && process.pidfd().is_none();
        let watched = self.watched.values();
        let waiting = watched.filter(|watched| waits(&watched.process));
        let waiting: Vec<u64> = waiting.map(|watched| watched.process.request).collect();
        for request in waiting {
            let error = failed("the tree's forkserver has not answered within 1 s");
            self.finish(request, |process| process.never_was(error));
        }
    }

    fn read_control(&mut self, number: u32) {
        loop {
            let received = match self.warden.servers.lock().of_mut(number) {
                None => return,
                Some(server) => {
                    let received = server.receive();
                    if matches!(&received, Ok(Some(_)))
                        || matches!(&received, Err(error) if error.kind() == io::ErrorKind::InvalidData)
                    {
                        server.heard = clock::now();
                    }
                    received
                }
            };
            match received {
                Ok(Some((event, fds))) => self.take_event(number, event, fds),
                Ok(None) => return self.server_ended(number, "its connection ended"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Descriptors that this process had no room for: that spawn fails by its bound.
                    crate::log::error!(%error, "a packet of the forkserver is lost");
                }
                Err(error) => return self.server_ended(number, &error.to_string()),
            }
        }
    }

    /// What this forkserver has said.
    fn take_event(&mut self, server: u32, event: Event, fds: Vec<OwnedFd>) {
        match event {
            Event::Welcome { .. } => {}
            Event::Refused { why } => crate::log::error!(why, "the forkserver ends"),
            Event::Blank { blank, pid, cgroup } => {
                // That of one that serves no more sees the end of its link.
                let servers = self.warden.servers.lock();
                if servers
                    .current
                    .as_ref()
                    .is_some_and(|current| current.number == server)
                    && let Some(blank) = Blank::new((blank, server), (pid, cgroup), fds)
                {
                    self.warden.hand.lock().push_back(blank);
                }
            }
            Event::Gone { blank } => {
                let mut hand = self.warden.hand.lock();
                hand.retain(|waiting| (waiting.server, waiting.number) != (server, blank));
            }
            Event::Spawned {
                request,
                pid,
                cgroup,
            } => {
                self.take_arrived();
                let Some(pidfd) = fds.into_iter().next().map(Pidfd::from_fd) else {
                    // It came, and this process had no room for it. The new process sees the end of
                    // its link.
                    let (soft, hard) = offshoot_sys::limits::open_files();
                    let message = format!(
                        "there was no descriptor left for its pidfd; raise RLIMIT_NOFILE, which is {soft}, up to \
                         its hard limit of {hard} (`ulimit -n`)"
                    );
                    let error = Error::new(ErrorKind::Spawn("descriptors".to_owned()), message);
                    self.finish(request, |process| process.never_was(error));
                    return;
                };
                let Some(watched) = self.watched.get(&request) else {
                    // Nobody waits for it any more; its end of the link is closed, so it ends, too.
                    let _ = pidfd.kill();
                    return;
                };
                let registered = self.warden.registry.register(
                    &mut SourceFd(&pidfd.as_fd().as_raw_fd()),
                    pidfd_token(request),
                    Interest::READABLE,
                );
                if let Err(error) = registered {
                    crate::log::error!(%error, "cannot watch a process");
                }
                let process = watched.process.clone();
                if matches!(watched.due, Some((_, Due::Forked))) {
                    self.set_due(request, None);
                }
                process.set_spawned(pid, pidfd, descendants(cgroup));
                // It may have died before it was watched.
                self.died(request);
            }
            Event::Failed {
                request,
                error,
                errno,
            } => {
                self.take_arrived();
                self.finish(request, |process| {
                    let name = process.life.identity().name().to_owned();
                    let source = errno.map_or_else(
                        || io::Error::other(error.clone()),
                        io::Error::from_raw_os_error,
                    );
                    let message = format!(
                        "cannot fork a process for isolate `{name}`: {error}; the limits are: {}; and the forkserver's \
                         descriptors, of which it may have as many as the hard limit of RLIMIT_NOFILE says",
                        crate::budget::of_tasks()
                    );
                    let error = Error::new(ErrorKind::Spawn("fork".to_owned()), message);
                    process.never_was(error.with_source(source));
                });
            }
            Event::Died { request, end } => {
                self.take_arrived();
                // All that it had said is in its link.
                self.read_last_words(request);
                if let Some(watched) = self.watched.get(&request) {
                    watched.process.died(end);
                }
            }
            Event::Exited { request, end } => {
                self.take_arrived();
                self.read_last_words(request);
                self.finish(request, |process| {
                    let status = end.status();
                    process.note_end(end);
                    process.reaped(status);
                });
            }
            Event::Enrolled { key, error } => {
                let Enrolling { sender, .. } = {
                    let mut enrolling = self.warden.enrolling.lock();
                    let first = enrolling.iter().position(|asked| asked.server == server);
                    let Some(first) = first else { return };
                    enrolling.remove(first)
                };
                let result = match error {
                    None => Ok((key, fds)),
                    Some(Refusal { why, errno }) => {
                        let source = errno.map(io::Error::from_raw_os_error);
                        let source = source.unwrap_or_else(|| io::Error::other(why.clone()));
                        Err(Error::io(why, source))
                    }
                };
                let _ = sender.send(result);
            }
        }
    }

    /// The pidfd of a forkserver says that it is dead.
    fn server_died(&mut self, number: u32) {
        if let Some(at) = self
            .leaving
            .iter()
            .position(|(leaving, _)| *leaving == number)
        {
            let (_, pidfd) = self.leaving.remove(at);
            let fd = pidfd.as_fd().as_raw_fd();
            let _ = self.warden.registry.deregister(&mut SourceFd(&fd));
            let _ = pidfd.reap();
            return;
        }
        self.server_ended(number, "it died");
    }

    /// Lets those forkservers go that another one has taken the place of, once they have been without a process for a while.
    fn look_after_servers(&mut self) {
        if self.warden.servers.lock().old.is_empty() {
            return;
        }
        self.take_arrived();
        let Some(runtime) = self.warden.runtime.upgrade() else {
            return;
        };
        let now = clock::now();
        let mut servers = self.warden.servers.lock();
        let (mut gone, mut is_silent) = (Vec::new(), Vec::new());
        for server in &mut servers.old {
            let mut watched = self.watched.values();
            // What this process itself has bound, it could not remove by itself any more, perhaps.
            let is_busy = watched.any(|watched| watched.process.is_of_server(server.number))
                || server
                    .tree
                    .as_ref()
                    .is_some_and(|tree| runtime.binds_in(tree));
            is_silent.extend(server.is_silent().then_some(server.number));
            match (is_busy, server.idle_since) {
                (true, _) => server.idle_since = None,
                (false, None) => server.idle_since = Some(now),
                (false, Some(since)) if now >= since + SERVER_IDLE => gone.push(server.number),
                (false, Some(_)) => {}
            }
        }
        // One that says nothing would not see that it is to end.
        let (silent, gone): (Vec<u32>, Vec<u32>) = gone
            .into_iter()
            .partition(|number| is_silent.contains(number));
        let gone: Vec<Server> = gone.into_iter().filter_map(|n| servers.take(n)).collect();
        drop(servers);
        for number in silent {
            self.server_ended(number, "it did not answer, and has no process any more");
        }
        for Server {
            control,
            pidfd,
            number,
            tree,
            ..
        } in gone
        {
            let fd = control.as_raw_fd();
            let _ = self.warden.registry.deregister(&mut SourceFd(&fd));
            // It sees the end of its connection, removes the directory, which nobody else uses, and ends.
            drop(control);
            if let Some(tree) = tree {
                runtime.forget_tree_dir(&tree);
            }
            crate::log::debug!(number, "a forkserver without a process is let go");
            self.leaving.extend(pidfd.map(|pidfd| (number, pidfd)));
        }
    }

    /// A forkserver is no more, or is of no use any more. Every process of it ends with it.
    fn server_ended(&mut self, number: u32, why: &str) {
        // Its last reports first.
        let runtime = self.warden.runtime.upgrade();
        let (mut server, bound) = {
            let mut servers = self.warden.servers.lock();
            let Some(server) = servers.take(number) else {
                return;
            };
            if let Some(pidfd) = &server.pidfd {
                let _ = pidfd.kill();
                let _ = pidfd.wait_dead(SERVER_DEAD);
            }
            // Dead before it is looked at what its processes have bound, since it makes their tables; and
            // all of it before another one can be started, whose processes' tables must not be taken for those of the dead.
            let tree = server.tree.clone();
            let bound = runtime.as_ref().zip(tree);
            let bound = bound.map(|(runtime, tree)| (runtime.bound_by_others(&tree), tree));
            (server, bound)
        };
        // Its last reports first.
        while let Ok(Some((event, fds))) = server.receive() {
            self.take_event(number, event, fds);
        }
        let registry = &self.warden.registry;
        let _ = registry.deregister(&mut SourceFd(&server.control.as_raw_fd()));
        let mut enrolling = self.warden.enrolling.lock();
        enrolling.retain(|asked| asked.server != number);
        drop(enrolling);
        let Some(pidfd) = server.pidfd else { return };
        // Nobody has begun to use them.
        self.warden.hand.lock().retain(|blank| {
            let other = blank.server != number;
            if !other {
                let _ = blank.child.1.kill();
            }
            other
        });
        // All that it was asked for is watched, or was put there before it was asked.
        self.take_arrived();
        crate::log::error!(
            why,
            "a forkserver has ended; every process isolate of it ends with it"
        );
        let _ = self
            .warden
            .registry
            .deregister(&mut SourceFd(&pidfd.as_fd().as_raw_fd()));
        let _ = pidfd.kill();
        // The kernel kills them with their parent; that they are killed here, too, is for one that
        // undid that. All of them before anything is said, since what is said of the first may make
        // its owner cancel the second, whose end would then seem to be another one.
        crate::fault::point("lost", "");
        let of_it = |process: &&Arc<Process>| process.is_of_server(number);
        let processes = || {
            let all = self.watched.values().map(|watched| &watched.process);
            all.filter(of_it)
        };
        for pidfd in processes().filter_map(|process| process.pidfd()) {
            let _ = pidfd.kill();
        }
        // Said at once, and only then waited for.
        for process in processes().filter(|process| process.pidfd().is_some()) {
            process.kill(SERVER_ENDED);
        }
        let _ = pidfd.wait_dead(SERVER_END);
        // A host program that waits for every child may have reaped it; that is no loss.
        let _ = pidfd.reap();
        // Not those for which the next one has been asked already.
        let requests: Vec<u64> = processes().map(|process| process.request).collect();
        for request in &requests {
            let Some(watched) = self.watched.get(request) else {
                continue;
            };
            if watched.process.pidfd().is_none() {
                let error = Error::new(
                    ErrorKind::Spawn("forkserver".to_owned()),
                    format!("the forkserver ended: {why}"),
                );
                self.finish(*request, |process| process.never_was(error));
            }
        }
        for request in requests {
            let Some(watched) = self.watched.get(&request) else {
                continue;
            };
            if let Some(pidfd) = watched.process.pidfd() {
                let _ = pidfd.wait_dead(Duration::from_secs(2));
            }
            self.died(request);
        }
        crate::fault::point("replaced", "");
        if let (Some(runtime), Some((bound, tree))) = (runtime, bound) {
            runtime.end_strays(&tree, number);
            runtime.sweep(&tree, &bound);
        }
    }

    fn stop(&mut self) {
        let Servers { current, old } = std::mem::take(&mut *self.warden.servers.lock());
        self.warden.enrolling.lock().clear();
        self.warden.hand.lock().clear();
        // All see the end of their connections before any is waited for.
        let ended = current.into_iter().chain(old);
        let ended = ended.filter_map(|server| {
            let bound = if server.is_silent() {
                SILENT_END
            } else {
                SERVER_END
            };
            Some((server.number, server.pidfd?, bound))
        });
        let leaving = self.leaving.drain(..);
        let leaving = leaving.map(|(number, pidfd)| (number, pidfd, SERVER_END));
        let ended: Vec<_> = ended.chain(leaving).collect();
        // One that was stopped could not see it.
        for (_, pidfd, _) in &ended {
            let _ = pidfd.signal(offshoot_sys::signal::SIGCONT);
        }
        for (number, pidfd, bound) in ended {
            if !pidfd.wait_dead(bound).unwrap_or(false) {
                crate::log::error!(number, "a forkserver does not end");
                let _ = pidfd.kill();
                let _ = pidfd.wait_dead(SERVER_END);
            }
            let _ = pidfd.reap();
        }
    }
}

/// One frame of a child.
pub(super) fn take(process: &Process, header: Header, body: Body<'_>) -> Result<()> {
    let Header {
        kind, correlation, ..
    } = header;
    if kind == Kind::Enclosed {
        return process.link.enclose(correlation, &body);
    }
    let Beside { carried, .. } = process.link.take_beside(header)?;
    match kind {
        Kind::Ready => {
            let ready: Ready = decode_body(kind, &body)?;
            if ready.build_id[..] != *image::build_id() {
                let message = format!(
                    "it is of build {}, its owner of {}",
                    hex(&ready.build_id),
                    hex(image::build_id())
                );
                return Err(Error::new(ErrorKind::Protocol, message));
            }
            process.set_ready();
        }
        Kind::Refused => {
            let error: Error = decode_body(kind, &body)?;
            let origin = process.life.origin();
            let message = format!("isolate `{origin}` refused to start: {error}");
            let error = Error::new(ErrorKind::Spawn("start of the isolate".to_owned()), message);
            process.fail_start(error.leaving(&origin));
        }
        Kind::Reply | Kind::Failure => process.link.take_reply(header, body, carried)?,
        kind if kind == Kind::Started || kind.is_stream() => {
            process.link.take_stream(header, body, carried)?;
        }
        Kind::Credit => process.link.credited(decode_body(kind, &body)?),
        Kind::CancelAck => {
            process.life.acknowledge();
            process.has_seen_cancellation();
        }
        Kind::Inspected => process.inspected(correlation, decode_body(kind, &body)?),
        Kind::Resting => process.rests(correlation, decode_body(kind, &body)?),
        Kind::Noticed => {
            if let Some(runtime) = process.link.runtime() {
                runtime.notice(decode_body::<Blocked>(kind, &body)?);
            }
        }
        Kind::Ended => process.set_ended(decode_body::<Ended>(kind, &body)?.arrived()),
        _ => {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("a frame {kind:?} is not for an owner"),
            ));
        }
    }
    Ok(())
}
