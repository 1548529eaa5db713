//! The forkserver: one process per tree, one thread, no code of users.
//!
//! It forks on request, and it is what remains when everything else is killed: the parent of every
//! process of the tree, who reaps each and kills what a dead one owned; and the janitor, who sweeps
//! what the dead had bound. It ends when the root does, after all others.
//!
//! It never blocks but in its poll, never holds a lock, and never makes a `HashMap`, whose random
//! keys would become every child's.

use super::child;
use super::protocol::{self, Asker, End, Event, Request, Verdict};
use crate::janitor::{GrantedDir, ProcessKey, TreeDir, cgroups};
use crate::mark::{CHANGE_MAX, LOOK_AGAIN, Looked, Mark};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use offshoot_sys::acting::Credentials;
use offshoot_sys::cgroup::Cgroup;
use offshoot_sys::fork::{self, FailedStep, Prelude};
use offshoot_sys::lifeline::Lifeline;
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_sys::rights::{Rights, Seen};
use offshoot_sys::surroundings::{OfThread, Surroundings};
use offshoot_sys::{clock, image, limits, mark, process, signal, socket};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

offshoot_sys::forkserver_entry!(serve);

/// How long the processes of a tree whose root is gone have to die before it gives up on them.
pub(crate) const LAST_BOUND: Duration = Duration::from_secs(10);

/// How long after a request a child is forked for the reserve (ns): not while the one that was asked for
/// and the one who asked need the processors.
const REFILL_AFTER: u64 = 500_000;
/// The same after one in the reserve has died (ns): where all die at once, they do not keep it busy.
const REFILL_DEAD: u64 = 5_000_000;
/// The same after a fork that failed (ns).
const REFILL_AGAIN: u64 = 100_000_000;
/// How many of those that died in the root's hand are remembered, until it says whose they were.
const GONE: usize = 256;
/// How long a tracer has to reap a child that is dead, before it counts as ended all the same (ns).
const TRACER: u64 = 100_000_000;

const ROOT_PIDFD: Token = Token(0);
const CHILD_ENDED: Token = Token(1);

/// How many requests of the root are served in one turn.
const ROOT_TURN: usize = 64;
/// How long the requests of all others are served in one turn (ns); one of them takes 0.1 to 1 ms.
const OTHERS_TURN: u64 = 2_000_000;
/// How much time a peer has to leave between two requests (ns), on average.
const PEER_PERIOD: u64 = 500_000;
/// How many requests of a peer may come at once nevertheless.
const PEER_BURST: u64 = 256;
/// How many children that are not its own are reaped in one turn.
const STRANGERS_TURN: usize = 64;

/// How long strays may take to die of SIGKILL before it goes on without them (ns).
const STRAYS_BOUND: u64 = 1_000_000_000;
/// How long it waits on the spot for those that it has killed; 0.1 ms is usual.
const STRAYS_WAIT: Duration = Duration::from_millis(1);

/// How often it looks again for what comes to it from strays that it has killed.
const STRAYS_ROUNDS: usize = 64;

/// What this forkserver may do, and so what each of its children may at first, which have a copy of this.
static RIGHTS: OnceLock<Rights> = OnceLock::new();

/// What the forkserver may do that has forked this process; `None` in any other.
pub(crate) fn rights() -> Option<&'static Rights> {
    RIGHTS.get()
}

/// A process of the tree that may ask: the root, or one that was forked here.
struct Peer {
    socket: OwnedFd,
    /// What could not be sent yet; a stopped process must not stop the forkserver.
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// The child that asks; none for the root.
    child: Option<usize>,
    key: Option<ProcessKey>,
    /// As whom it acted on files in the end.
    owner: Credentials,
    /// What the sweep of its table may touch.
    grants: Vec<GrantedDir>,
    /// What of that its owner allows; anything, if there is none.
    allowed: Option<Vec<GrantedDir>>,
    /// Its socket may hold more than has been read of it: a poll does not report that again.
    unread: bool,
    /// Nothing is read of it any more.
    deaf: bool,
    /// When its next request would be due if it kept to [`PEER_PERIOD`] (ns).
    due: u64,
}

struct Child {
    pid: i32,
    pidfd: Pidfd,
    /// By which its mark names it, and that of whatever it starts.
    number: u32,
    /// In which it is with all that it starts.
    cgroup: Option<Cgroup>,
    /// None of one that waits in reserve, and of one in the root's hand until that has said that it is somebody's.
    claim: Option<Claim>,
    /// It has ended so, but something that it owned has not.
    ended: Option<Status>,
    /// The thread that traces it, if that keeps it from being reaped; else 0.
    tracer: i32,
    /// Why it was killed here.
    killed: Option<String>,
    peer: usize,
}

/// An end to be told: to whom, how it was, why it was killed here, and
/// which thread traces it and keeps it from being reaped (else 0).
type Ended = (Claim, Status, Option<String>, i32);

/// Whose a child of ours is that we have not forked.
enum Kinship {
    /// It comes from a process that is no more. A `janitor` is a forkserver, of a tree whose root was an isolate of ours, which takes that tree down by
    /// itself.
    Stray { janitor: bool },
    /// It is in `execve`, or ending, and cannot be known before it is through.
    Unknown,
    /// It comes from one that lives, or may.
    Spared,
}

/// Whose a child is.
#[derive(Clone, Copy)]
struct Claim {
    /// Who asked for it, and is told of its end.
    owner: usize,
    request: u64,
}

/// A search for what isolates that have ended have left running.
struct Hunt {
    /// Whose owners are told once it is over.
    ended: Vec<Ended>,
    /// Those that were killed, or, if janitors, are to end by themselves, and have not ended yet.
    strays: Vec<(Pidfd, bool)>,
    /// How long they have for that (ns).
    deadline: u64,
    /// Until when is looked again at what cannot be known yet (ns).
    unknown_until: u64,
    rounds: usize,
    /// When it is gone on with (ns).
    at: u64,
}

struct Server {
    poll: Poll,
    peers: BTreeMap<usize, Peer>,
    children: BTreeMap<usize, Child>,
    next: usize,
    tree: Option<TreeDir>,
    /// In which those of the children are made.
    cgroup: Option<Cgroup>,
    root: usize,
    /// The root has said hello.
    greeted: bool,
    /// How many children are to wait in reserve, in the root's hand and, once another process has asked for one, as many here.
    reserve: usize,
    /// Those in the root's hand, which makes them somebody's by itself and says so afterwards.
    hand: Vec<usize>,
    /// How those ended that have died there, and why, the newest last.
    gone: VecDeque<(usize, Status, Option<String>)>,
    /// Those that wait for any other process, the newest last.
    blanks: Vec<usize>,
    /// Another process than the root has asked for one.
    others_ask: bool,
    /// Our own mark, which tells our tree, and how many children have got theirs.
    mark: Mark,
    forked: u32,
    /// Those that are reaped and swept, and whose owners are to be told so at the end of this turn.
    ended: Vec<Ended>,
    hunt: Option<Hunt>,
    /// Children that are not its own may have ended.
    strangers: bool,
    /// Whose request was the last that was served, of all but the root.
    last: usize,
    /// Children that a tracer keeps, or may, and when they are looked at again (ns).
    traced: BTreeMap<usize, u64>,
    /// Those that were told as ended and that a tracer keeps. They are reaped when it lets them go.
    kept: BTreeSet<i32>,
    /// When the reserve is to be filled (ns); later than what keeps those busy who asked last.
    refill_at: Option<u64>,
    /// What its children are tied to; without it, to its death alone.
    lifeline: Option<Lifeline>,
    /// The limits of open descriptors that it was started with.
    open_files: (u64, u64),
    /// What it was started with, until the root has said hello.
    surroundings: Option<Surroundings>,
}

/// What the executable runs instead of its `main` when it was started to be a forkserver.
fn serve(socket: OwnedFd) -> ! {
    let root = socket.try_clone();
    match run(socket) {
        Ok(()) => fork::exit_at_once(0),
        Err(error) => {
            // Whoever started it hears why, wherever the standard error goes.
            if let Ok(root) = root {
                let why = error.to_string();
                let _ = protocol::send(&root, &Event::Refused { why }, &[]);
                // An end beside which something lies unread is told in place of what was said.
                let _ = protocol::receive::<Request>(&root, &mut Vec::new());
            }
            offshoot_sys::note!("the forkserver ends: {error}");
            fork::exit_at_once(1)
        }
    }
}

fn run(socket: OwnedFd) -> io::Result<()> {
    if !process::is_single_threaded()? {
        return Err(io::Error::other(
            "it is not alone: something in this executable starts threads before `main`, and a fork beside them would \
             copy locks that nobody releases; remove that constructor, or keep to thread isolates",
        ));
    }
    // The root decides about these; the forkserver must outlive it to clean up.
    process::block_signals(&[
        signal::SIGINT,
        signal::SIGTERM,
        signal::SIGHUP,
        signal::SIGQUIT,
        // Of a terminal that lets nobody write but the group in front.
        signal::SIGTTOU,
        // Of limits that are the program's: what is too long is an error, and time is up for those who use it.
        signal::SIGXFSZ,
        signal::SIGXCPU,
    ])?;
    // For its children, see `Server::fork`.
    fork::reset_signal_actions()?;
    // Whoever kills the root's whole group leaves one to clean up. (An isolate's group is killed with it, and the isolate may be the
    // root of another tree.)
    process::lead_group()?;
    process::become_subreaper()?;
    let mark = Mark::own().ok_or_else(|| io::Error::other("it has no mark"))?;
    // Every process of the tree takes three; the children get the soft limit back.
    // Where the umask cannot be had, all children have what it has.
    let surroundings = Surroundings::now().ok();
    let open_files = limits::open_files();
    if let Err(error) = limits::set_open_files(open_files.1) {
        offshoot_sys::note!("the forkserver cannot raise RLIMIT_NOFILE: {error}");
    }
    let root = Pidfd::open(socket::peer(&socket)?.pid)?;
    let poll = Poll::new()?;
    poll.registry().register(
        &mut SourceFd(&root.as_fd().as_raw_fd()),
        ROOT_PIDFD,
        Interest::READABLE,
    )?;
    let mut server = Server {
        poll,
        peers: BTreeMap::new(),
        children: BTreeMap::new(),
        next: 1,
        tree: None,
        root: 0,
        greeted: false,
        cgroup: None,
        reserve: 0,
        hand: Vec::new(),
        gone: VecDeque::new(),
        blanks: Vec::new(),
        others_ask: false,
        mark,
        forked: 0,
        ended: Vec::new(),
        traced: BTreeMap::new(),
        kept: BTreeSet::new(),
        hunt: None,
        strangers: false,
        last: 0,
        refill_at: None,
        lifeline: Lifeline::new().ok(),
        open_files,
        surroundings,
    };
    // What our children's children have started may become ours, and wants to be reaped when it ends.
    let ended = signal::child_signals()?;
    server.poll.registry().register(
        &mut SourceFd(&ended.as_raw_fd()),
        CHILD_ENDED,
        Interest::READABLE,
    )?;
    let root_peer = server.add_peer(socket, None)?;
    server.root = root_peer;
    let mut events = Events::with_capacity(64);
    let mut buffer = Vec::new();
    // Until the root's socket ends or the root does: a copy of the socket may be held elsewhere. In each turn what everything depends on
    // comes before what anybody but the root asks for, which is served in small parts.
    while server.peers.contains_key(&root_peer) {
        match server.poll.poll(&mut events, server.timeout()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        if root.is_dead() {
            break;
        }
        let mut died = Vec::new();
        for event in events.iter() {
            let token = event.token().0;
            if token == CHILD_ENDED.0 {
                signal::drain_child_signals(ended.as_fd());
                server.strangers = true;
            } else if let Some(peer) = server.peers.get_mut(&token) {
                peer.unread = !peer.deaf;
            } else {
                died.push(token);
            }
        }
        server.reap_strangers();
        for token in died {
            server.child_died(token);
        }
        server.look_at_traced();
        server.read_root(&mut buffer);
        server.read_others(&mut buffer, || root.is_dead());
        server.hunt();
        server.flush();
        server.refill();
    }
    server.end();
    Ok(())
}

impl Server {
    fn token(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    fn add_peer(&mut self, socket: OwnedFd, child: Option<usize>) -> io::Result<usize> {
        let token = self.token();
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            Token(token),
            Interest::READABLE,
        )?;
        let peer = Peer {
            socket,
            queue: VecDeque::new(),
            child,
            key: None,
            owner: Credentials::nobody(),
            grants: Vec::new(),
            allowed: None,
            unread: false,
            deaf: false,
            due: 0,
        };
        self.peers.insert(token, peer);
        Ok(token)
    }

    fn remove_peer(&mut self, token: usize) -> Option<Peer> {
        let peer = self.peers.remove(&token)?;
        // Closing it would do, but for copies that a fork may have made.
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&peer.socket.as_raw_fd()));
        Some(peer)
    }

    /// How long nothing has to be done unless something happens.
    fn timeout(&self) -> Option<Duration> {
        // Rarely anything is queued; then a short bound, as the readiness to write is not watched.
        let queued = self.peers.values().any(|peer| !peer.queue.is_empty());
        let queued = queued.then(|| clock::now() + 5_000_000);
        let unread = self.peers.iter().filter_map(|(token, peer)| {
            let at = if *token == self.root {
                Some(0)
            } else {
                peer.next_at()
            };
            at.filter(|_| peer.unread)
        });
        let at = unread
            .chain(self.strangers.then_some(0))
            .chain(self.hunt.as_ref().map(|hunt| hunt.at))
            .chain(self.refill_at)
            .chain(self.traced.values().copied().min())
            .chain(queued)
            .min()?;
        Some(Duration::from_nanos(at.saturating_sub(clock::now())))
    }

    fn hand_is_short(&self) -> bool {
        self.hand.len() < self.reserve
    }

    fn is_short(&self) -> bool {
        self.hand_is_short() || (self.others_ask && self.blanks.len() < self.reserve)
    }

    /// Says that the reserve may not be full any more.
    fn plan_refill(&mut self, after: u64) {
        self.refill_at = self.is_short().then(|| clock::now() + after);
    }

    /// Forks one child for the reserve, if it is time; the next one when nothing else is to do.
    fn refill(&mut self) {
        if self.refill_at.is_none_or(|at| clock::now() < at) {
            return;
        }
        let made = match self.hand_is_short() {
            true => self.fork_for_hand(),
            false => self
                .fork(reserve_outfit(), &[], None, child::blank)
                .map(|(token, _)| self.blanks.push(token)),
        };
        match made {
            Ok(()) => self.plan_refill(0),
            Err(error) => {
                offshoot_sys::note!("the forkserver cannot fork for its reserve: {error}");
                self.plan_refill(REFILL_AGAIN);
            }
        }
    }

    /// Forks a child that waits for the root, and gives it into the root's hand.
    fn fork_for_hand(&mut self) -> io::Result<()> {
        let (ours, theirs) = socket::stream_pair()?;
        let keep = [theirs.as_raw_fd()];
        let (token, pidfd) =
            self.fork(reserve_outfit(), &keep, None, move |control, prelude| {
                child::blank_in_hand(theirs, control, prelude)
            })?;
        self.hand.push(token);
        crate::fault::point("hand", "");
        let child = self.children.get(&token);
        let event = Event::Blank {
            blank: token as u64,
            pid: child.map_or(0, |child| child.pid),
            cgroup: child.is_some_and(|child| child.cgroup.is_some()),
        };
        self.send(self.root, &event, vec![ours, pidfd]);
        Ok(())
    }

    /// The root has made a child that was in its hand its own.
    fn claim(&mut self, token: usize, claim: Claim) {
        crate::fault::point("claimed", "");
        if let Some(at) = self.hand.iter().position(|blank| *blank == token)
            && let Some(child) = self.children.get_mut(&token)
        {
            self.hand.remove(at);
            child.claim = Some(claim);
        } else if let Some(at) = self.gone.iter().position(|(gone, ..)| *gone == token) {
            // It has died since, before we knew whose it was.
            let gone = self.gone.remove(at);
            match self.children.get_mut(&token) {
                Some(child) => child.claim = Some(claim),
                None => {
                    if let Some((_, status, killed)) = gone {
                        self.ended.push((claim, status, killed, 0));
                    }
                }
            }
        }
        self.plan_refill(REFILL_AFTER);
    }

    /// Serves what the root has asked, or the first part of that.
    fn read_root(&mut self, buffer: &mut Vec<u8>) {
        for _ in 0..ROOT_TURN {
            if !self.peers.get(&self.root).is_some_and(|root| root.unread) {
                return;
            }
            self.read(self.root, buffer);
        }
    }

    /// Serves the others, one request of each in turn, from where the last turn ended, until its time is up. Who has asked for more than its
    /// share is passed over: its socket stays unread, and fills.
    fn read_others(&mut self, buffer: &mut Vec<u8>, root_is_dead: impl Fn() -> bool) {
        let until = clock::now() + OTHERS_TURN;
        loop {
            let now = clock::now();
            let is_next = |(token, peer): &(&usize, &Peer)| {
                **token != self.root && peer.unread && peer.next_at().is_some_and(|at| at <= now)
            };
            let mut behind = self.peers.range(self.last + 1..);
            let next = behind.find(is_next);
            let next = next.or_else(|| self.peers.range(..=self.last).find(is_next));
            let Some(token) = next.map(|(token, _)| *token) else {
                return;
            };
            // Whatever they ask for, it is not to be done for a tree that is no more.
            if now >= until || root_is_dead() {
                return;
            }
            self.last = token;
            if let Some(peer) = self.peers.get_mut(&token) {
                peer.due = peer.due.max(now) + PEER_PERIOD;
            }
            self.read(token, buffer);
        }
    }

    /// Serves the next request of a peer, if there is one.
    fn read(&mut self, token: usize, buffer: &mut Vec<u8>) {
        let Some(peer) = self.peers.get_mut(&token) else {
            return;
        };
        match protocol::receive::<Request>(&peer.socket, buffer) {
            Ok(Some((request, fds))) => self.handle(token, request, fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => peer.unread = false,
            // Costs its sender the connection, hence its processes; nobody else anything.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.refuse(token, &error.to_string());
            }
            // A child's connection also ends with the child, whose own end is waited for; the root's is its end.
            Ok(None) | Err(_) => match peer.child {
                Some(child) => {
                    (peer.unread, peer.deaf) = (false, true);
                    self.watch_traced(child);
                }
                None => drop(self.remove_peer(token)),
            },
        }
    }

    /// Ends the connection of a peer that has said what is not its to say.
    fn refuse(&mut self, token: usize, why: &str) {
        offshoot_sys::note!("the forkserver got a wrong packet: {why}");
        let Some(peer) = self.peers.get_mut(&token) else {
            return;
        };
        (peer.unread, peer.deaf) = (false, true);
        let Some(token) = peer.child else {
            drop(self.remove_peer(token));
            return;
        };
        if let Some(child) = self.children.get_mut(&token) {
            let why = format!("it broke the protocol with the forkserver: {why}");
            child.killed.get_or_insert(why);
        }
        self.kill(token);
    }

    /// Who a peer is to the table of who may ask for what.
    fn asker(&self, token: usize) -> Asker {
        let child = self.peers.get(&token).and_then(|peer| peer.child);
        match child {
            None if self.greeted => Asker::Root,
            None => Asker::NewRoot,
            Some(child) if self.blanks.contains(&child) => Asker::Reserve,
            Some(_) => Asker::Isolate,
        }
    }

    fn handle(&mut self, token: usize, request: Request, mut fds: Vec<OwnedFd>) {
        let asker = self.asker(token);
        if request.ask().verdict(asker) == Verdict::Ends {
            let ask = request.ask();
            return self.refuse(
                token,
                &format!("{ask:?} is not to be asked for by {asker:?}"),
            );
        }
        match request {
            Request::Hello {
                build_id,
                reserve,
                cgroups,
                rights,
                caller,
                faults,
            } => {
                self.greeted = true;
                if build_id != image::build_id() {
                    // Another executable; the requester sees the end of the connection.
                    self.remove_peer(token);
                    return;
                }
                crate::fault::take(faults);
                if let Err(why) = take_rights(&rights) {
                    self.send(token, &Event::Refused { why }, Vec::new());
                    self.remove_peer(token);
                    return;
                }
                let lock = (fds.len() > 1).then(|| fds.remove(1));
                if let Some(dir) = fds.into_iter().next() {
                    match TreeDir::from_fds(dir, lock) {
                        Ok(tree) => self.tree = Some(tree),
                        Err(error) => {
                            offshoot_sys::note!("the forkserver has no tree directory: {error}")
                        }
                    }
                }
                if cgroups {
                    self.find_cgroup();
                }
                if let Some(caller) = OfThread::from_words(&caller) {
                    // It takes signals by descriptors, which have to stay blocked.
                    caller.put_on_scheduling();
                }
                let surroundings = self.surroundings.take().map(Surroundings::of_children);
                let words = surroundings.as_ref().map(Surroundings::to_words);
                if let Some(surroundings) = surroundings {
                    surroundings.set_forked();
                }
                let welcome = Event::Welcome {
                    surroundings: words.unwrap_or_default(),
                };
                self.send(token, &welcome, Vec::new());
                self.reserve = usize::try_from(reserve).unwrap_or(0);
                self.plan_refill(REFILL_AFTER);
            }
            Request::Reserve { processes } => {
                self.keep_reserve(usize::try_from(processes).unwrap_or(0));
            }
            Request::Spawn { request, outfit } => {
                // Of one that has died since: what it owned was killed then, and nobody would kill
                // this one.
                let asking = self.peers.get(&token).and_then(|peer| peer.child);
                if asking
                    .and_then(|child| self.children.get(&child))
                    .is_some_and(|child| child.ended.is_some())
                {
                    return;
                }
                let claim = Claim {
                    owner: token,
                    request,
                };
                match self.spawn(claim, outfit, fds) {
                    Ok((pid, pidfd)) => {
                        let child = self.children.values().find(|child| child.pid == pid);
                        let event = Event::Spawned {
                            request,
                            pid,
                            cgroup: child.is_some_and(|child| child.cgroup.is_some()),
                        };
                        self.send(token, &event, vec![pidfd])
                    }
                    Err(error) => {
                        let errno = error.raw_os_error();
                        self.send(
                            token,
                            &Event::Failed {
                                request,
                                error: error.to_string(),
                                errno,
                            },
                            Vec::new(),
                        );
                    }
                }
                self.others_ask |= token != self.root;
                self.plan_refill(REFILL_AFTER);
            }
            Request::Claim { blank, request } => {
                let owner = token;
                let blank = usize::try_from(blank).unwrap_or(0);
                self.claim(blank, Claim { owner, request });
            }
            Request::Enroll { grant } => {
                let granted = match (grant, fds.into_iter().next()) {
                    (false, _) => Ok(None),
                    (true, Some(fd)) => GrantedDir::from_fd(fd).map(Some),
                    (true, None) => Err(process::out_of_descriptors()),
                };
                let (event, fds) = match self.enroll(token, granted) {
                    Ok((key, fds)) => (Event::Enrolled { key, error: None }, fds),
                    Err(error) => (
                        Event::Enrolled {
                            key: 0,
                            error: Some(error.into()),
                        },
                        Vec::new(),
                    ),
                };
                self.send(token, &event, fds);
            }
            Request::Grant { request } => {
                let error = self.grant(token, request, fds).err().map(Into::into);
                self.send(token, &Event::Enrolled { key: 0, error }, Vec::new());
            }
        }
    }

    /// The child that was asked for: one that waits, or a new one.
    fn spawn(
        &mut self,
        claim: Claim,
        outfit: protocol::Outfit,
        mut fds: Vec<OwnedFd>,
    ) -> io::Result<(i32, OwnedFd)> {
        crate::fault::check("fork", &outfit.name)?;
        self.check_rights(claim.owner)?;
        if fds.is_empty() {
            // They came, and there was no room for them.
            return Err(process::out_of_descriptors());
        }
        let allowed = self.allowed(claim.owner, outfit.grants, &mut fds)?;
        let (pid, pidfd) = self.make(claim, outfit, fds)?;
        let child = self.children.values().find(|child| child.pid == pid);
        if let Some(peer) = child.and_then(|child| self.peers.get_mut(&child.peer)) {
            peer.allowed = allowed;
        }
        Ok((pid, pidfd))
    }

    /// Refuses a child that may not do any more what it could at its birth, since what it asks for could. The root looks at its threads itself.
    fn check_rights(&self, owner: usize) -> io::Result<()> {
        let child = self.peers.get(&owner).and_then(|peer| peer.child);
        let Some(child) = child.and_then(|child| self.children.get(&child)) else {
            return Ok(());
        };
        let own = RIGHTS
            .get()
            .ok_or_else(|| io::Error::other("no rights are known"))?;
        let seen = Seen::of(child.pid)?;
        let refused = |why: &str| {
            let message =
                format!("the asking process may not do any more what the forkserver may: {why}");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
        };
        if let Some(why) = seen.difference(own) {
            return refused(&why);
        }
        // Of an executable that may not be read, no process can be looked into.
        if !seen.is_whole() && process::is_dumpable() {
            return refused("its namespaces cannot be looked at (PR_SET_DUMPABLE hides them)");
        }
        Ok(())
    }

    /// So many are to wait in reserve from now on.
    fn keep_reserve(&mut self, reserve: usize) {
        self.reserve = reserve;
        // Those in the root's hand it gives away itself; they see the end of their links.
        for blank in self.blanks.split_off(self.blanks.len().min(reserve)) {
            self.kill(blank);
        }
        self.plan_refill(REFILL_AFTER);
    }

    /// Where a process that is asked for may have addresses: of so many directories, the last of what came, or where its owner may.
    fn allowed(
        &self,
        owner: usize,
        grants: Option<u8>,
        fds: &mut Vec<OwnedFd>,
    ) -> io::Result<Option<Vec<GrantedDir>>> {
        let of_owner = self
            .peers
            .get(&owner)
            .and_then(|peer| peer.allowed.as_deref());
        let Some(number) = grants else {
            return Ok(of_owner.map(<[GrantedDir]>::to_vec));
        };
        let missing = || io::Error::other("a spawn request lacks descriptors");
        let from = fds
            .len()
            .checked_sub(usize::from(number))
            .ok_or_else(missing)?;
        let granted = fds.split_off(from).into_iter().map(GrantedDir::from_fd);
        let granted = granted.collect::<io::Result<Vec<_>>>()?;
        granted
            .iter()
            .try_for_each(|grant| check_grant(grant, of_owner))?;
        Ok(Some(granted))
    }

    /// An owner lets a process of its own have addresses in one more directory.
    fn grant(&mut self, owner: usize, request: u64, fds: Vec<OwnedFd>) -> io::Result<()> {
        let fd = fds
            .into_iter()
            .next()
            .ok_or_else(process::out_of_descriptors)?;
        let grant = GrantedDir::from_fd(fd)?;
        check_grant(
            &grant,
            self.peers
                .get(&owner)
                .and_then(|peer| peer.allowed.as_deref()),
        )?;
        let is_it = |child: &&Child| {
            child
                .claim
                .is_some_and(|claim| claim.owner == owner && claim.request == request)
        };
        let child = self.children.values().find(is_it).map(|child| child.peer);
        let peer = child.and_then(|peer| self.peers.get_mut(&peer));
        let gone = || io::Error::other("the process has ended");
        if let Some(allowed) = &mut peer.ok_or_else(gone)?.allowed
            && !allowed.iter().any(|known| known.is_same(&grant))
        {
            allowed.push(grant);
        }
        Ok(())
    }

    /// Makes the group in which those of the processes are, if that can be had.
    fn find_cgroup(&mut self) {
        let server = self.mark.server;
        let made = crate::fault::check("cgroup", "").and_then(|()| match &self.tree {
            Some(tree) => tree.make_cgroup(server),
            None => Err(io::Error::other("the tree has no directory")),
        });
        // It is no failure: the level shows on each portal.
        self.cgroup = made.ok();
    }

    fn make(
        &mut self,
        claim: Claim,
        outfit: protocol::Outfit,
        fds: Vec<OwnedFd>,
    ) -> io::Result<(i32, OwnedFd)> {
        if let Some(adopted) = self.adopt(claim, &outfit, &fds)? {
            return Ok(adopted);
        }
        let (link, outfit) = outfit.unpack(fds)?;
        let keep = [link.as_raw_fd()];
        let name = outfit.name.clone();
        let (token, pidfd) = self.fork(outfit, &keep, Some(claim), move |control, prelude| {
            let link = child::link_of(link);
            child::begin_life(&name, link, control, prelude, child::Warm::cold())
        })?;
        let pid = self.children.get(&token).map_or(0, |child| child.pid);
        Ok((pid, pidfd))
    }

    /// Gives the request to a child that waits in reserve, if there is one.
    fn adopt(
        &mut self,
        claim: Claim,
        outfit: &protocol::Outfit,
        fds: &[OwnedFd],
    ) -> io::Result<Option<(i32, OwnedFd)>> {
        if self.blanks.is_empty() {
            return Ok(None);
        }
        // Refused here, where the reason can still be told.
        outfit.plain()?.check()?;
        let bytes = protocol::encode(outfit).map_err(io::Error::other)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        while let Some(token) = self.blanks.pop() {
            let Some(child) = self.children.get_mut(&token) else {
                continue;
            };
            let Some(peer) = self.peers.get(&child.peer) else {
                continue;
            };
            // One that is dead has not been heard of yet; its pidfd will be readable.
            if child.pidfd.is_dead() {
                continue;
            }
            let sent =
                child.pidfd.as_fd().try_clone_to_owned().and_then(|pidfd| {
                    Ok((pidfd, socket::send_packet(&peer.socket, &bytes, &fds)?))
                });
            match sent {
                Ok((pidfd, ())) => {
                    if let Err(error) = crate::fault::check("forked", &outfit.name) {
                        self.kill(token);
                        return Err(error);
                    }
                    child.claim = Some(claim);
                    return Ok(Some((child.pid, pidfd)));
                }
                // Whatever it is, it will not become what was asked for.
                Err(_) => self.kill(token),
            }
        }
        Ok(None)
    }

    /// Forks a child that runs `main` with its connection to this process, and watches it.
    fn fork(
        &mut self,
        mut outfit: fork::Outfit,
        keep: &[RawFd],
        claim: Option<Claim>,
        main: impl FnOnce(OwnedFd, Result<(), FailedStep>) -> Infallible,
    ) -> io::Result<(usize, OwnedFd)> {
        let name = outfit.name.clone();
        if !outfit.limits_open_files() {
            let (soft, hard) = self.open_files;
            outfit.limits.push((fork::Limit::OpenFiles, soft, hard));
        }
        let (ours, theirs) = socket::packet_pair()?;
        self.forked += 1;
        let cgroup = self.cgroup.as_ref();
        let cgroup = cgroup.map(|all| all.make(&self.forked.to_string()));
        let cgroup = Abandoned(cgroup.transpose()?);
        let prelude = Prelude {
            lifeline: self.lifeline.as_ref().map(|all| all.end().as_raw_fd()),
            cgroup: cgroup.0.as_ref().map(Cgroup::door).transpose()?,
            expected_parent: process::id(),
            keep: keep.iter().copied().chain([theirs.as_raw_fd()]).collect(),
            outfit,
            // Done once for all of them, see `run`.
            reset_signals: false,
            new_session_group: true,
        };
        let (number, marked) = (self.forked, Mark::number(self.mark.server, self.forked));
        let (pid, pidfd) = fork::fork_child_told(prelude, move |prelude| {
            mark::set(marked);
            main(theirs, prelude)
        })?;
        let forked = crate::fault::check("forked", &name);
        let token = self.token();
        let peer = self.add_peer(ours, Some(token)).inspect_err(|_| {
            let _ = pidfd.kill();
        });
        let registered = self.poll.registry().register(
            &mut SourceFd(&pidfd.as_fd().as_raw_fd()),
            Token(token),
            Interest::READABLE,
        );
        let copy = forked.and_then(|()| pidfd.as_fd().try_clone_to_owned());
        match (peer, registered, copy) {
            (Ok(peer), Ok(()), Ok(copy)) => {
                self.children.insert(
                    token,
                    Child {
                        pid,
                        pidfd,
                        number,
                        cgroup: cgroup.keep(),
                        claim,
                        ended: None,
                        tracer: 0,
                        killed: None,
                        peer,
                    },
                );
                Ok((token, copy))
            }
            (peer, registered, copy) => {
                // Out of descriptors between the fork and here. It is killed and reaped on the spot.
                if let Ok(peer) = &peer {
                    self.remove_peer(*peer);
                }
                let _ = pidfd.kill();
                let _ = pidfd.wait_dead(LAST_BOUND);
                let _ = pidfd.reap();
                Err(peer
                    .err()
                    .or(registered.err())
                    .or(copy.err())
                    .unwrap_or_else(|| io::Error::other("a child that cannot be watched")))
            }
        }
    }

    /// Makes the bind table of a peer, or lets its sweep touch one more directory.
    fn enroll(
        &mut self,
        token: usize,
        grant: io::Result<Option<GrantedDir>>,
    ) -> io::Result<(u64, Vec<OwnedFd>)> {
        let tree = self
            .tree
            .as_ref()
            .ok_or_else(|| io::Error::other("the tree has no directory"))?;
        let peer = self
            .peers
            .get_mut(&token)
            .ok_or_else(|| io::Error::other("the asking process has gone"))?;
        let grant = grant?;
        if let Some(grant) = &grant {
            check_grant(grant, peer.allowed.as_deref())?;
        }
        if let Some(grant) = grant
            && !peer.grants.iter().any(|known| known.is_same(&grant))
        {
            peer.grants.push(grant);
        }
        // What the kernel says of it, not what it says.
        let child = peer.child.and_then(|child| self.children.get(&child));
        let owner = Credentials::of(child.map_or(process::id(), |child| child.pid))?;
        if let Some(key) = peer.key {
            tree.renew_owner(key, &owner).map_err(io::Error::other)?;
            tree.write_grants(key, &peer.grants)
                .map_err(io::Error::other)?;
            return Ok((key.number(), Vec::new()));
        }
        let key = ProcessKey::random()?;
        let enrolment = tree
            .enroll(key, &owner, &peer.grants)
            .map_err(io::Error::other)?;
        peer.key = Some(key);
        Ok((key.number(), vec![enrolment.table, enrolment.private]))
    }

    fn kill(&self, child: usize) {
        if let Some(child) = self.children.get(&child)
            && let Err(error) = child.pidfd.kill()
        {
            offshoot_sys::note!("the forkserver cannot kill process {}: {error}", child.pid);
        }
    }

    /// A child's pidfd says that it is dead.
    fn child_died(&mut self, token: usize) {
        let Some(child) = self.children.get_mut(&token) else {
            return;
        };
        if child.ended.is_some() || !child.pidfd.is_dead() {
            return;
        }
        crate::fault::point("reap", "");
        // What it started and left in its process group goes with it. The group's number cannot
        // have been reused: its leader is not reaped yet.
        process::kill_group(child.pid);
        self.note_owner(token);
        let Some(child) = self.children.get_mut(&token) else {
            return;
        };
        let status = match child.pidfd.reap() {
            Ok(Some(status)) => status,
            Ok(None) => return self.watch_traced(token),
            // Nobody else reaps here; if it happened all the same, the kernel may still know.
            Err(_) => child.pidfd.status().unwrap_or(Status::Signaled {
                signal: signal::SIGKILL,
                core: false,
            }),
        };
        self.has_ended(token, status);
    }

    /// A child that may be dead can only be reaped once its tracer has, which may be stopped itself, or not care. It has
    /// a while; a debugger and `strace` do so at once.
    fn watch_traced(&mut self, token: usize) {
        if let Some(child) = self.children.get(&token)
            && child.ended.is_none()
            && process::tracer_of(child.pid).is_some()
        {
            let at = || clock::now() + TRACER;
            self.traced.entry(token).or_insert_with(at);
        }
    }

    /// Counts those as ended that are dead and that their tracers keep.
    fn look_at_traced(&mut self) {
        let now = clock::now();
        let due = self.traced.iter().filter(|(_, at)| **at <= now);
        for token in due.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.traced.remove(&token);
            let Some(child) = self.children.get_mut(&token) else {
                continue;
            };
            if child.ended.is_some() {
                continue;
            }
            let pid = child.pid;
            let Some(kept) = process::kept_by_tracer(pid) else {
                // Not dead yet, or let go of meanwhile, which its pidfd tells.
                self.watch_traced(token);
                continue;
            };
            child.tracer = kept.tracer;
            self.kept.insert(pid);
            process::kill_group(pid);
            self.note_owner(token);
            self.has_ended(token, kept.status);
        }
    }

    /// Does what is to be done once a child is reaped, or would be but for its tracer.
    fn has_ended(&mut self, token: usize, status: Status) {
        let Some(child) = self.children.get_mut(&token) else {
            return;
        };
        child.ended = Some(status);
        let peer = child.peer;
        let died = child
            .claim
            .map(|claim| (claim, child.killed.clone(), child.tracer));
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&child.pidfd.as_fd().as_raw_fd()));
        if let Some(at) = self.hand.iter().position(|blank| *blank == token) {
            self.hand.remove(at);
            if self.gone.len() == GONE {
                self.gone.pop_front();
            }
            self.gone.push_back((token, status, None));
            let blank = token as u64;
            self.send(self.root, &Event::Gone { blank }, Vec::new());
            self.plan_refill(REFILL_DEAD);
        }
        // At once: what is left to do may take long.
        if let Some((Claim { owner, request }, why, tracer)) = died {
            let end = End::new(status, why, tracer);
            self.send(owner, &Event::Died { request, end }, Vec::new());
        }
        // What it owned ends with it.
        let owned: Vec<usize> = self
            .children
            .iter()
            .filter(|(_, other)| other.is_owned_by(peer) && other.ended.is_none())
            .map(|(token, _)| *token)
            .collect();
        owned.into_iter().for_each(|token| self.kill(token));
        self.settle(token);
        if let Some(at) = self.blanks.iter().position(|blank| *blank == token) {
            self.blanks.remove(at);
            self.plan_refill(REFILL_DEAD);
        }
    }

    /// Notes as whom a child acted on files in the end, as long as the kernel knows it: before it is reaped. It may have given up rights since it has had
    /// its table, and what it wrote there afterwards is judged by what it had left.
    fn note_owner(&mut self, token: usize) {
        let Some(child) = self.children.get(&token) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(&child.peer) else {
            return;
        };
        let Some(key) = peer.key else {
            return;
        };
        peer.owner = Credentials::of(child.pid).unwrap_or_else(|_| Credentials::nobody());
        // For whoever sweeps if we come to die before we do.
        let renewed = self
            .tree
            .as_ref()
            .map(|tree| tree.renew_owner(key, &peer.owner));
        if let Some(Err(error)) = renewed {
            offshoot_sys::note!("the forkserver {error}");
        }
    }

    /// Tells the owner of a dead child, once nothing is left of it; then perhaps of the owner.
    fn settle(&mut self, token: usize) {
        let mut next = Some(token);
        while let Some(token) = next.take() {
            let Some(child) = self.children.get(&token) else {
                return;
            };
            let Some(status) = child.ended else { return };
            if self
                .children
                .values()
                .any(|other| other.is_owned_by(child.peer))
            {
                return;
            }
            let (peer, claim, tracer) = (child.peer, child.claim, child.tracer);
            self.empty_cgroup(token);
            crate::fault::point("sweep", "");
            if let (Some(tree), Some(peer)) = (&self.tree, self.peers.get(&peer))
                && let Some(key) = peer.key
            {
                // With the directories as they were opened when they were granted.
                tree.sweep_with(key, &peer.owner, &peer.grants).print();
            }
            self.remove_peer(peer);
            let killed = self.children.remove(&token).and_then(|child| child.killed);
            let Some(claim) = claim else {
                // Whose it was may be said yet.
                if let Some(gone) = self.gone.iter_mut().find(|(gone, ..)| *gone == token) {
                    gone.2 = killed;
                }
                return;
            };
            self.ended.push((claim, status, killed, tracer));
            // The owner may have waited only for this one.
            next = self.peers.get(&claim.owner).and_then(|peer| peer.child);
        }
    }

    /// Ends what those have started that have ended, all of it in one go, and then tells their owners. What takes long of that is gone on
    /// with in later turns.
    fn hunt(&mut self) {
        loop {
            let hunt = self.hunt.take().or_else(|| {
                let ended = std::mem::take(&mut self.ended);
                (!ended.is_empty()).then(|| Hunt::new(ended))
            });
            let Some(mut hunt) = hunt else { return };
            if hunt.at <= clock::now() {
                hunt.at = match self.kill_strays(&mut hunt) {
                    Some(at) => at,
                    None => {
                        for ended in hunt.ended {
                            self.report(ended);
                        }
                        continue;
                    }
                };
            }
            self.hunt = Some(hunt);
            return;
        }
    }

    /// Tells an owner how one of its own has ended.
    fn report(&mut self, (Claim { owner, request }, status, why, tracer): Ended) {
        let end = End::new(status, why, tracer);
        self.send(owner, &Event::Exited { request, end }, Vec::new());
    }

    /// Ends all that a dead child has started and that is still in its control group.
    fn empty_cgroup(&mut self, token: usize) {
        let child = self.children.get_mut(&token);
        let (Some(group), Some(tree)) = (child.and_then(|child| child.cgroup.take()), &self.tree)
        else {
            return;
        };
        if let Err(error) = cgroups::end(&group, tree.path()) {
            // Tried once more when the tree ends.
            offshoot_sys::note!(
                "the forkserver cannot remove {}: {error}",
                group.path().display()
            );
        }
    }

    /// Kills what was started by an isolate that is no more, and has become a child of ours. When it is to be gone on with (ns); `None` once
    /// nothing is left.
    ///
    /// What is in `execve` meanwhile bears no mark, and is looked at again until it does, for [`CHANGE_MAX`] at most. What ends by itself meanwhile
    /// leaves its children to us, which are in no list that was taken before: it goes on until a list has nothing new.
    fn kill_strays(&self, hunt: &mut Hunt) -> Option<u64> {
        // The number of one that is reaped may be somebody else's by now.
        let living = self.children.values().filter(|child| child.ended.is_none());
        let mut known: BTreeSet<i32> = living.map(|child| child.pid).collect();
        known.extend(&self.kept);
        let again = || Some(clock::now() + u64::try_from(LOOK_AGAIN.as_nanos()).unwrap_or(0));
        let mut quiet = 0;
        // What comes to us with the end of one that is killed is looked at in turn.
        while hunt.rounds < STRAYS_ROUNDS {
            if !hunt.have_ended() {
                let now = clock::now();
                if now < hunt.deadline {
                    return again();
                }
                if !hunt.kill_janitors() {
                    // One that does not die in time is looked at again, and holds up no other.
                    if now >= hunt.unknown_until + STRAYS_BOUND {
                        offshoot_sys::note!("a process that an isolate has started does not die");
                        return None;
                    }
                    hunt.strays.clear();
                }
                continue;
            }
            let mut unknown = 0;
            let mut is_new = false;
            for pid in process::children_of(process::id()) {
                if known.contains(&pid) {
                    continue;
                }
                is_new = true;
                match self.stray(pid) {
                    Kinship::Stray { janitor } => {
                        let stray = Pidfd::open(pid).ok();
                        hunt.strays.extend(stray.map(|pidfd| (pidfd, janitor)));
                    }
                    Kinship::Unknown => unknown += 1,
                    Kinship::Spared => {
                        known.insert(pid);
                    }
                }
            }
            // The kernel's list of children may lack some while others of them end.
            quiet = if is_new { 0 } else { quiet + 1 };
            if quiet == 2 {
                return None;
            }
            if !hunt.strays.is_empty() {
                hunt.rounds += 1;
                hunt.kill();
            } else if unknown > 0 {
                if clock::now() < hunt.unknown_until {
                    return again();
                }
                offshoot_sys::note!(
                    "{unknown} processes that an isolate may have started are still in execve or ending, and live on until the tree ends"
                );
                return None;
            }
        }
        None
    }

    /// Whose this child of ours is, which we have not forked.
    fn stray(&self, pid: i32) -> Kinship {
        let ours = |mark: &Mark| mark.tree == self.mark.tree && mark.server == self.mark.server;
        match Mark::look(pid) {
            Ok(Looked::Marked(mark)) if ours(&mark) => {
                let owner = |child: &Child| child.number == mark.process && child.ended.is_none();
                match self.children.values().any(owner) {
                    true => Kinship::Spared,
                    false => Kinship::Stray { janitor: false },
                }
            }
            // It has hidden where it comes from, or is of another tree. Once nobody is left whose it could be, it is nobody's.
            looked if self.is_last() => Kinship::Stray {
                janitor: matches!(looked, Ok(Looked::Marked(mark)) if mark.process == 0),
            },
            Ok(Looked::Unknown | Looked::Ending) => Kinship::Unknown,
            _ => Kinship::Spared,
        }
    }

    /// Whether no process of the tree is left, but for those that wait in reserve.
    fn is_last(&self) -> bool {
        let is_somebodys = |(token, child): (&usize, &Child)| {
            child.claim.is_some() || (self.hand.contains(token) && is_dressed(child.pid))
        };
        !self.children.iter().any(is_somebodys)
    }

    /// Reaps what has ended of the strangers among our children, or some of it. Our own are told of by their pidfds.
    fn reap_strangers(&mut self) {
        if !self.strangers {
            return;
        }
        if let Some(hunt) = &mut self.hunt {
            hunt.at = 0;
        }
        for _ in 0..STRANGERS_TURN {
            let Some(pid) = process::ended_child() else {
                self.strangers = false;
                return;
            };
            let own = self.children.iter().find(|(_, child)| child.pid == pid);
            match own {
                // It would be told again and again, and hide the others.
                Some((&token, child)) if child.ended.is_none() => self.child_died(token),
                _ => {
                    let _ = process::reap(pid);
                    self.kept.remove(&pid);
                }
            }
            if self
                .children
                .values()
                .any(|child| child.pid == pid && child.ended.is_none())
            {
                self.strangers = false;
                return;
            }
        }
    }

    fn send(&mut self, token: usize, event: &Event, fds: Vec<OwnedFd>) {
        let Some(peer) = self.peers.get_mut(&token) else {
            return;
        };
        match protocol::encode(event) {
            Ok(bytes) => peer.queue.push_back((bytes, fds)),
            Err(error) => offshoot_sys::note!("the forkserver cannot say {event:?}: {error}"),
        }
        peer.flush();
    }

    fn flush(&mut self) {
        self.peers.values_mut().for_each(Peer::flush);
    }

    /// The root has gone: everything goes.
    fn end(&mut self) {
        let deadline = clock::now() + u64::try_from(LAST_BOUND.as_nanos()).unwrap_or(u64::MAX);
        crate::fault::point("end", "");
        for child in self.children.values() {
            let _ = child.pidfd.kill();
        }
        for token in self.children.keys().copied().collect::<Vec<_>>() {
            let left = Duration::from_nanos(deadline.saturating_sub(clock::now()));
            let has_died = |child: &Child| child.ended.is_none() && child.wait_dead(left);
            if !self.children.get(&token).is_some_and(has_died) {
                continue;
            }
            self.note_owner(token);
            if let Some(child) = self.children.get(&token) {
                process::kill_group(child.pid);
                let _ = child.pidfd.reap();
            }
        }
        self.children.clear();
        // What is left of foreign descendants, again and again while new ones come to us.
        for _ in 0..16 {
            if process::children_of(process::id()).is_empty() {
                break;
            }
            let mut hunt = Hunt::new(Vec::new());
            while let Some(at) = self.kill_strays(&mut hunt) {
                std::thread::sleep(Duration::from_nanos(at.saturating_sub(clock::now())));
            }
        }
        if let Some(tree) = &self.tree {
            tree.remove().print();
        }
    }
}

/// Makes what the root's thread may do the rights of this process, and says why that cannot be.
fn take_rights(words: &[u64]) -> Result<(), String> {
    let wanted = Rights::from_words(words).ok_or("what it is to be allowed is unknown here")?;
    let differs = wanted.take_on();
    let own = differs.and_then(|differs| Ok((differs, Rights::read()?)));
    match own.map_err(|error| format!("it cannot find out what it may do: {error}"))? {
        (None, own) => {
            let _ = RIGHTS.set(own);
            Ok(())
        }
        (Some(differs), _) => Err(format!(
            "execve has given it other rights than the thread has that started it, and they cannot be set right: {differs}"
        )),
    }
}

/// What a child is given that waits in reserve.
fn reserve_outfit() -> fork::Outfit {
    fork::Outfit {
        name: protocol::RESERVE.to_owned(),
        ..fork::Outfit::default()
    }
}

/// Whether a child in the root's hand has become somebody's, which may not have been said yet: it takes its name before it runs anything.
fn is_dressed(pid: i32) -> bool {
    let name = offshoot_sys::procfs::text(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim_end();
    // The kernel cuts names; before it is one of the reserve, it is the forkserver.
    !name.is_empty() && !protocol::RESERVE.starts_with(name) && !protocol::NAME.starts_with(name)
}

/// A control group whose process is not there yet: removed if it never will be.
struct Abandoned(Option<Cgroup>);

impl Abandoned {
    fn keep(mut self) -> Option<Cgroup> {
        self.0.take()
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            // What it cannot remove now goes with the tree.
            let _ = group.remove();
        }
    }
}

/// Whether a directory lies where its process may have addresses.
fn check_grant(grant: &GrantedDir, allowed: Option<&[GrantedDir]>) -> io::Result<()> {
    let Some(allowed) = allowed else {
        return Ok(());
    };
    if allowed.iter().any(|allowed| grant.is_within(allowed)) {
        return Ok(());
    }
    let granted: Vec<String> = allowed
        .iter()
        .map(|dir| dir.path().display().to_string())
        .collect();
    let message = format!(
        "the directory {} was not granted to this isolate, which may have addresses in {}; its owner can add it by \
         `Isolate::grant` or `Portal::grant`",
        grant.path().display(),
        if granted.is_empty() {
            "none".to_owned()
        } else {
            granted.join(", ")
        }
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

impl Child {
    /// Waits at most `bound` for it to be dead.
    fn wait_dead(&self, bound: Duration) -> bool {
        let deadline = clock::now() + u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let left = Duration::from_nanos(deadline.saturating_sub(clock::now()));
            let step = left.min(Duration::from_nanos(TRACER));
            // A pidfd says nothing while a tracer keeps another thread of it.
            if self.pidfd.wait_dead(step).unwrap_or(false)
                || process::kept_by_tracer(self.pid).is_some()
            {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    fn is_owned_by(&self, peer: usize) -> bool {
        self.claim.is_some_and(|claim| claim.owner == peer)
    }
}

impl Hunt {
    fn new(ended: Vec<Ended>) -> Hunt {
        Hunt {
            ended,
            strays: Vec::new(),
            deadline: 0,
            unknown_until: clock::now() + CHANGE_MAX,
            rounds: 0,
            at: 0,
        }
    }

    /// Kills those that were found, but for janitors, which get their time.
    fn kill(&mut self) {
        self.deadline = clock::now() + STRAYS_BOUND;
        for (stray, janitor) in &self.strays {
            if !janitor {
                let _ = stray.kill();
            }
        }
        let wait = clock::now() + u64::try_from(STRAYS_WAIT.as_nanos()).unwrap_or(0);
        for (stray, _) in &self.strays {
            let left = Duration::from_nanos(wait.saturating_sub(clock::now()));
            let _ = stray.wait_dead(left);
        }
    }

    /// Kills the janitors among those that have not ended. False if there is none.
    fn kill_janitors(&mut self) -> bool {
        let mut any = false;
        for (_, janitor) in &mut self.strays {
            any |= std::mem::replace(janitor, false);
        }
        if any {
            self.kill();
        }
        any
    }

    /// Reaps those that have ended. True if none is left.
    fn have_ended(&mut self) -> bool {
        self.strays.retain(|(stray, _)| {
            let is_dead = stray.is_dead();
            if is_dead {
                let _ = stray.reap();
            }
            !is_dead
        });
        self.strays.is_empty()
    }
}

impl Peer {
    /// When its next request may be served (ns); `None` while it does not read its answers.
    fn next_at(&self) -> Option<u64> {
        let at = self.due.saturating_sub(PEER_BURST * PEER_PERIOD);
        (self.queue.is_empty() && !self.deaf).then_some(at)
    }

    fn flush(&mut self) {
        while let Some((bytes, fds)) = self.queue.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send_packet(&self.socket, bytes, &borrowed) {
                // Asked again soon: its socket is full, or the system is out of something for a moment.
                Err(error) if socket::may_pass(&error) => return,
                // It has gone; its end is seen elsewhere.
                Err(error) if socket::is_peer_gone(&error) => self.queue.clear(),
                Err(error) => {
                    // Only this one cannot be sent.
                    offshoot_sys::note!("the forkserver cannot send a packet: {error}");
                    self.queue.pop_front();
                }
                Ok(()) => {
                    self.queue.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_cannot_be_sent_costs_no_other() {
        let (ours, theirs) = socket::packet_pair().unwrap();
        let mut peer = Peer {
            socket: ours,
            queue: VecDeque::new(),
            child: None,
            key: None,
            owner: Credentials::nobody(),
            grants: Vec::new(),
            allowed: None,
            unread: false,
            deaf: false,
            due: 0,
        };
        peer.queue.push_back((b"first".to_vec(), Vec::new()));
        // Longer than any packet may be.
        peer.queue.push_back((vec![0; 64 << 20], Vec::new()));
        peer.queue.push_back((b"last".to_vec(), Vec::new()));
        peer.flush();
        assert!(peer.queue.is_empty());
        let mut buffer = Vec::new();
        for expected in [&b"first"[..], b"last"] {
            socket::recv_packet(&theirs, &mut buffer).unwrap().unwrap();
            assert_eq!(buffer, expected);
        }
        // And to one that has gone, none is kept.
        drop(theirs);
        for _ in 0..3 {
            peer.queue.push_back((b"more".to_vec(), Vec::new()));
        }
        peer.flush();
        assert!(peer.queue.is_empty());
    }
}
