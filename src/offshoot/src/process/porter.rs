//! The porter: the thread of a process that reads the sockets of portals which came from, or went to, another one.
//!
//! At a holder's end come answers, at the isolate's end what holders ask for. It runs no code of users: what came is
//! handed to the isolate as it is, see [`served`](super::served). It is started with the first such socket, and never blocks but
//! in its poll.
//!
//! A holder's end is closed when its last portal and its last dialogue are gone. Before, it says so and waits until
//! the other end has seen that, and so has taken all that was sent: a portal to the same isolate that comes meanwhile
//! goes on with this socket, so that nothing overtakes what was told over it. The isolate's end is closed when the
//! isolate has ended, after that was said.

use super::keys::{Pin, Place, Table};
use super::link::{Link, Read, read_frames};
use super::served::{Served, take_answer};
use crate::isolate::shared::{Control, Shared};
use crate::life::{Life, Watch};
use crate::narrow::Allowed;
use crate::runtime::Runtime;
use crate::time::nanos;
use crate::{Canceller, Error, ErrorKind, Exit, Origin, Result};
use mio::unix::SourceFd;
use mio::{Events, Interest, Registry, Token};
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_sys::thread::Joiner;
use offshoot_sys::{clock, signal};
use offshoot_wire::frame::{Ended, FrameReader, Introduce, Key, Kind};
use offshoot_wire::order;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

const WAKE: Token = Token(0);

/// How long the answers of an isolate that has ended may take before its end is said (ns). Only those of an abandoned
/// thread never come.
const LAST_ANSWERS: u64 = 50_000_000;
/// How long is looked for how a process has ended that left no word (ns).
const POST_MORTEM: u64 = 50_000_000;
/// How often that is looked at (ns).
const LOOK: u64 = 2_000_000;
/// How long a connection that is over may take to be written (ns): its other side reads, or ends.
const LAST_WRITE: u64 = 2_000_000_000;

/// What a target has of a socket to an isolate of another process.
pub(crate) struct Introduction {
    pub(crate) link: Arc<Link>,
    pub(crate) hold: Arc<Hold>,
}

impl Drop for Introduction {
    fn drop(&mut self) {
        self.hold.release();
    }
}

/// A socket to an isolate of another process, at its holder's end, and how many targets use it.
pub(crate) struct Hold {
    pub(crate) life: Arc<Life>,
    link: Arc<Link>,
    porter: Weak<Porter>,
    number: u64,
    pub(super) came: Came,
    /// None once it can be used no more.
    users: Mutex<Option<usize>>,
}

/// How a portal came: over which connection, by which key, and with what.
pub(crate) struct Came {
    link: Weak<Link>,
    key: Key,
    /// Its giver hosts the isolate.
    home: bool,
    allowed: Allowed,
}

/// A portal by its key.
pub(super) enum Named {
    Surely(Key),
    /// Its receiver may have forgotten it.
    Perhaps(Key),
}

impl Came {
    pub(super) fn new(link: &Arc<Link>, key: Key, home: bool, allowed: &Allowed) -> Came {
        Came {
            link: Arc::downgrade(link),
            key,
            home,
            allowed: allowed.clone(),
        }
    }

    /// By what the portal, with no more than these rights, is named to the other end of this link.
    ///
    /// The key grants all that came with it. So only its giver is told it for less: of any other, labels alone say that it is
    /// the isolate's process.
    pub(super) fn named_to(
        &self,
        link: &Link,
        holder: &Origin,
        life: &Life,
        allowed: &Allowed,
    ) -> Option<Named> {
        let known = if std::ptr::eq(self.link.as_ptr(), link) {
            self.home
        } else if life.pid() != 0 && life.pid() == holder.pid && allowed.is_same(&self.allowed) {
            let lasts = |link: Arc<Link>| !link.table().is_over();
            self.home && self.link.upgrade().is_some_and(lasts)
        } else {
            return None;
        };
        Some(match known {
            true => Named::Surely(self.key),
            false => Named::Perhaps(self.key),
        })
    }
}

impl Hold {
    /// One more use of it, if it can still be used.
    pub(crate) fn retain(self: &Arc<Hold>) -> Option<Arc<Introduction>> {
        let mut users = self.users.lock();
        let count = users.as_mut()?;
        *count += 1;
        drop(users);
        Some(Arc::new(Introduction {
            link: self.link.clone(),
            hold: self.clone(),
        }))
    }

    fn release(&self) {
        let unused = {
            let mut users = self.users.lock();
            let count = users.as_mut().map(|count| {
                *count -= 1;
                *count
            });
            count == Some(0)
        };
        if unused && let Some(porter) = self.porter.upgrade() {
            porter.tell(self.number, News::Released);
        }
    }

    /// The key by which it came.
    #[cfg(feature = "fault-points")]
    pub(crate) fn key(&self) -> Key {
        self.came.key
    }

    fn is_unused(&self) -> bool {
        self.users.lock().is_none_or(|count| count == 0)
    }

    /// True if nobody uses it, and nobody can any more.
    fn close(&self) -> bool {
        let mut users = self.users.lock();
        let unused = users.is_none_or(|count| count == 0);
        if unused {
            *users = None;
        }
        unused
    }

    /// It can be used by nobody else.
    fn end(&self) {
        *self.users.lock() = None;
    }

    /// True once it can be used no more.
    pub(crate) fn is_over(&self) -> bool {
        self.users.lock().is_none()
    }
}

/// What the thread is told of a connection.
enum News {
    Arrived(Box<Arriving>),
    /// Something was queued.
    Queued,
    /// The holder has dropped it.
    Released,
    /// Something about the life of the isolate has changed.
    Life,
    /// Whether all that was sent by holders has come is to be known.
    Flush(Arc<Unflushed>),
}

/// Whether all that the isolates of this process had sent over sockets has come there, since this was asked.
pub(crate) struct Flush(AtomicBool);

impl Flush {
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Something has not come yet, as long as this is there. Who has asked is told of the end.
struct Unflushed {
    flush: Arc<Flush>,
    shared: Weak<Shared>,
}

impl Drop for Unflushed {
    fn drop(&mut self) {
        self.flush.0.store(true, Ordering::Release);
        if let Some(shared) = self.shared.upgrade() {
            shared.tell(Control::Look);
        }
    }
}

enum Arriving {
    Holder(Arc<Hold>),
    Isolate(Arc<Link>, Served, (Pin, Place)),
}

pub(crate) struct Porter {
    runtime: Weak<Runtime>,
    registry: Registry,
    waker: mio::Waker,
    news: Mutex<Vec<(u64, News)>>,
    next: AtomicU64,
    stopping: AtomicBool,
    thread: Mutex<Option<Joiner>>,
}

impl Porter {
    pub(crate) fn start(runtime: &Arc<Runtime>) -> Result<Arc<Porter>> {
        let poll = offshoot_sys::standard::make_above(mio::Poll::new)?;
        let registry = poll.registry().try_clone()?;
        let waker = offshoot_sys::standard::make_above(|| mio::Waker::new(&registry, WAKE))?;
        let porter = Arc::new(Porter {
            runtime: Arc::downgrade(runtime),
            registry,
            waker,
            news: Mutex::default(),
            next: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let (this, caller) = (porter.clone(), runtime.caller);
        let thread = std::thread::Builder::new()
            .name("offshoot-porter".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                caller.put_on();
                Loop {
                    porter: this,
                    poll,
                    connections: BTreeMap::new(),
                    more: BTreeSet::new(),
                }
                .run()
            })
            .map_err(crate::budget::of_thread("offshoot-porter"))?;
        *porter.thread.lock() = Some(Joiner::from(thread));
        Ok(porter)
    }

    /// Takes the end of a socket at whose other end this isolate is served.
    pub(crate) fn hold(
        self: &Arc<Porter>,
        socket: OwnedFd,
        life: &Arc<Life>,
        came: Came,
    ) -> Result<Arc<Introduction>> {
        let runtime = self.runtime.upgrade().ok_or_else(over)?;
        let link = Link::new(socket, runtime.settings.frame_max);
        let of = life.clone();
        link.set_between(&runtime, move || of.origin());
        link.reads_from(order::From::Isolate);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let hold = Arc::new(Hold {
            life: life.clone(),
            link: link.clone(),
            porter: Arc::downgrade(self),
            number,
            came,
            users: Mutex::new(Some(1)),
        });
        self.add(number, Arriving::Holder(hold.clone()), &link);
        Ok(Arc::new(Introduction { link, hold }))
    }

    /// Serves this isolate of ours to the one with the other end of the socket, who was given it over the connection of this table.
    ///
    /// # Errors
    /// The key names something else, or that connection has too many already. The socket is closed.
    pub(crate) fn serve(
        self: &Arc<Porter>,
        socket: OwnedFd,
        shared: &Arc<Shared>,
        introduce: Introduce,
        allowed: &Allowed,
        by: &Table,
    ) -> Result<()> {
        let runtime = self.runtime.upgrade().ok_or_else(over)?;
        let Introduce {
            holder,
            limits: (messages, calls),
            key,
            ..
        } = introduce;
        let crowd = by.crowd();
        let place = crowd.enter()?;
        let pin = runtime.keys().pin(key, shared, allowed, by.number)?;
        let link = Link::new(socket, runtime.settings.frame_max);
        link.hold_to((messages.max(1), calls.max(1)));
        link.reads_from(order::From::Holder);
        link.table().serves(shared, allowed);
        link.table().join(crowd);
        let far = holder.clone();
        link.set_between(&runtime, move || far.clone());
        let served = Served {
            shared: shared.clone(),
            holder,
            allowed: allowed.clone(),
        };
        let arriving = Arriving::Isolate(link.clone(), served, (pin, place));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.add(number, arriving, &link);
        Ok(())
    }

    fn add(self: &Arc<Porter>, key: u64, arriving: Arriving, link: &Link) {
        let porter = Arc::downgrade(self);
        link.on_queued(move || {
            if let Some(porter) = porter.upgrade() {
                porter.tell(key, News::Queued);
            }
        });
        self.tell(key, News::Arrived(Box::new(arriving)));
    }

    fn tell(&self, key: u64, news: News) {
        let first = {
            let mut all = self.news.lock();
            all.push((key, news));
            all.len() == 1
        };
        if first && let Err(error) = self.waker.wake() {
            crate::log::error!(%error, "cannot wake the porter");
        }
    }

    /// Asks the other ends of all sockets on which something was sent whether it has come, for this isolate. It is looked at again
    /// when it has, when they have ended, or after [`LAST_WRITE`].
    pub(crate) fn flush(&self, shared: &Arc<Shared>) -> Arc<Flush> {
        let flush = Arc::new(Flush(AtomicBool::new(false)));
        let unflushed = Arc::new(Unflushed {
            flush: flush.clone(),
            shared: Arc::downgrade(shared),
        });
        self.tell(0, News::Flush(unflushed));
        flush
    }

    /// Ends the thread. All isolates of this process have ended before.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            crate::log::error!(%error, "cannot wake the porter");
        }
        if let Some(mut thread) = self.thread.lock().take()
            && !thread.join_until(clock::now() + 2 * LAST_WRITE)
        {
            crate::log::error!("the porter does not end");
        }
    }
}

fn over() -> Error {
    Error::new(ErrorKind::Misuse, "the tree of this isolate has ended")
}

/// Wakes the thread for the isolate of a connection.
struct LifeWaker {
    porter: Weak<Porter>,
    key: u64,
}

impl Wake for LifeWaker {
    fn wake(self: Arc<Self>) {
        if let Some(porter) = self.porter.upgrade() {
            porter.tell(self.key, News::Life);
        }
    }
}

enum Side {
    Holder {
        hold: Arc<Hold>,
        /// By which is seen how the process has ended that hosts the isolate.
        pidfd: Option<Pidfd>,
        /// How often it has said that nobody uses it, and the other end has not answered.
        closes: usize,
    },
    Isolate {
        served: Served,
        watch: Watch,
        waker: Waker,
        acknowledged: bool,
        /// The key by which its holder was given it, and its place among the sockets.
        _known: (Pin, Place),
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// The last answers should have been given.
    Answers,
    /// It should be known how it has ended, at the latest at this time (ns).
    PostMortem(u64),
    /// All should have been written.
    Written,
    /// The other end should have seen that nobody uses it.
    Closed,
}

struct Connection {
    link: Arc<Link>,
    reader: FrameReader,
    side: Side,
    /// Room to write is watched, because something is queued.
    waits_for_room: bool,
    /// The other end is closed.
    ended: bool,
    /// It goes once all is written.
    closing: bool,
    due: Option<(u64, Due)>,
    /// Who waits for the other end to have seen all that was sent.
    unflushed: Vec<Arc<Unflushed>>,
}

/// The thread's own half.
struct Loop {
    porter: Arc<Porter>,
    poll: mio::Poll,
    connections: BTreeMap<u64, Connection>,
    /// Those that have more to read.
    more: BTreeSet<u64>,
}

fn token(key: u64) -> Token {
    Token(usize::try_from(key).unwrap_or(usize::MAX))
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                crate::log::error!(%error, "the porter cannot wait");
            }
            let stopping = self.porter.stopping.load(Ordering::Acquire);
            let news = std::mem::take(&mut *self.porter.news.lock());
            for (key, news) in news {
                match news {
                    News::Arrived(arriving) => self.arrived(key, *arriving),
                    News::Queued => self.write(key),
                    News::Released => self.released(key),
                    News::Life => self.life_changed(key),
                    News::Flush(unflushed) => self.flush(&unflushed),
                }
            }
            for event in events.iter() {
                if event.token() == WAKE {
                    continue;
                }
                let key = event.token().0 as u64;
                if let Some(connection) = self.connections.get(&key) {
                    connection.link.note_event(event);
                }
                if event.is_writable() {
                    self.write(key);
                }
                self.read(key);
            }
            for key in std::mem::take(&mut self.more) {
                self.read(key);
            }
            self.look_at_clock();
            if stopping {
                self.stop();
                return;
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.more.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = self.connections.values().filter_map(|one| one.due);
        let open = self.connections.values().filter(|one| !one.ended);
        let late = open.filter_map(|one| one.link.late_at());
        let next = due.map(|(at, _)| at).chain(late).min()?;
        Some(Duration::from_nanos(next.saturating_sub(clock::now())))
    }

    fn arrived(&mut self, key: u64, arriving: Arriving) {
        let (link, side) = match arriving {
            Arriving::Holder(hold) => {
                let link = hold.link.clone();
                let pidfd = Pidfd::open(hold.life.pid()).ok();
                let side = Side::Holder {
                    hold,
                    pidfd,
                    closes: 0,
                };
                (link, side)
            }
            Arriving::Isolate(link, served, known) => {
                let waker = Waker::from(Arc::new(LifeWaker {
                    porter: Arc::downgrade(&self.porter),
                    key,
                }));
                let side = Side::Isolate {
                    watch: Watch::new(served.shared.life.clone()),
                    waker,
                    acknowledged: false,
                    served,
                    _known: known,
                };
                (link, side)
            }
        };
        let fd = link.fd().as_raw_fd();
        let registered =
            self.porter
                .registry
                .register(&mut SourceFd(&fd), token(key), Interest::READABLE);
        let connection = Connection {
            reader: FrameReader::new(link.limit()),
            link,
            side,
            waits_for_room: false,
            ended: false,
            closing: false,
            due: None,
            unflushed: Vec::new(),
        };
        self.connections.insert(key, connection);
        if let Err(error) = registered {
            crate::log::error!(%error, "cannot watch the socket of a portal");
            self.ended(key);
            return;
        }
        // What came before makes no edge of its own on every kernel.
        self.read(key);
        self.write(key);
        self.life_changed(key);
    }

    /// Writes what is queued as far as that goes, and watches for room while something is left.
    fn write(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let left = !connection.link.flush();
        if left != connection.waits_for_room {
            let interest = match left {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            let fd = connection.link.fd().as_raw_fd();
            let registry = &self.porter.registry;
            match registry.reregister(&mut SourceFd(&fd), token(key), interest) {
                Ok(()) => connection.waits_for_room = left,
                Err(error) => crate::log::error!(%error, "cannot watch the socket of a portal"),
            }
        }
        if connection.closing && !left {
            self.remove(key);
        }
    }

    /// Reads what has come.
    fn read(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if connection.ended {
            return;
        }
        let Connection {
            link,
            reader,
            side,
            unflushed,
            ..
        } = connection;
        let read = match side {
            Side::Holder { hold, closes, .. } => {
                let mut answered = 0;
                let read = read_frames(link, reader, |header, body| {
                    answered += usize::from(header.kind == Kind::Close);
                    take_answer(link, &hold.life, header, body)
                });
                *closes = closes.saturating_sub(answered);
                if answered > 0 && *closes == 0 {
                    unflushed.clear();
                }
                if answered > 0 && *closes == 0 && hold.close() {
                    self.close(key);
                    return;
                }
                read
            }
            Side::Isolate { served, .. } => {
                read_frames(link, reader, |header, body| served.take(link, header, body))
            }
        };
        match read {
            Read::Drained => link.flush_credit(),
            Read::More => {
                self.more.insert(key);
            }
            Read::Ended => self.ended(key),
            Read::Wrong(error) => self.is_wrong(key, &error),
        }
    }

    /// The other end has sent something wrong, and loses the connection.
    fn is_wrong(&mut self, key: u64, error: &Error) {
        match self.connections.get(&key).map(|one| &one.side) {
            None => return,
            Some(Side::Holder { hold, .. }) => {
                let life = &hold.life;
                crate::log::error!(isolate = %life.origin(), %error, "an isolate sent something wrong");
                life.announce(Exit::Lost {
                    why: format!("it broke the protocol: {error}"),
                });
            }
            Some(Side::Isolate { served, .. }) => {
                crate::log::error!(holder = %served.holder, isolate = %served.shared.life.origin(), %error,
                    "the holder of a portal sent something wrong");
            }
        }
        self.ended(key);
    }

    /// The other end is closed, or is of no use any more.
    fn ended(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        connection.ended = true;
        match &connection.side {
            Side::Holder { hold, .. } => {
                let unused = hold.is_unused();
                hold.end();
                let life = &hold.life;
                if life.exit().is_none() && !unused {
                    // It left no word: its process was killed, or lost the connection.
                    let now = clock::now();
                    connection.due = Some((now, Due::PostMortem(now + POST_MORTEM)));
                    return;
                }
                connection.link.fail_pending(life);
            }
            Side::Isolate { served, .. } => {
                let by = Canceller::HungUp(served.holder.clone());
                let grace = nanos(served.shared.runtime.settings.bounds.grace);
                connection.link.hung_up(&by, clock::now() + grace);
            }
        }
        self.remove(key);
    }

    /// Asks each other end to say when it has taken what was sent, by saying that nobody uses the connection for now.
    fn flush(&mut self, asked: &Arc<Unflushed>) {
        for connection in self.connections.values_mut() {
            let Side::Holder { closes, .. } = &mut connection.side else {
                continue;
            };
            if connection.ended {
                continue;
            }
            if connection.link.take_sent() {
                *closes += 1;
                connection.link.send_close();
                let due = (clock::now() + LAST_WRITE, Due::Closed);
                connection.due.get_or_insert(due);
            }
            if *closes > 0 {
                connection.unflushed.push(asked.clone());
            }
        }
    }

    /// The last portal of a holder is gone, and so is its last dialogue.
    fn released(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if let Side::Holder { hold, closes, .. } = &mut connection.side
            && hold.is_unused()
            && !connection.ended
        {
            *closes += 1;
            connection.link.send_close();
            connection.due = Some((clock::now() + LAST_WRITE, Due::Closed));
        }
    }

    /// Goes, once all is written.
    fn close(&mut self, key: u64) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.closing = true;
            connection.due = Some((clock::now() + LAST_WRITE, Due::Written));
        }
        self.write(key);
    }

    fn remove(&mut self, key: u64) {
        if let Some(connection) = self.connections.remove(&key) {
            let fd = connection.link.fd().as_raw_fd();
            let _ = self.porter.registry.deregister(&mut SourceFd(&fd));
            connection.link.shut();
            connection.link.table().end();
            if let Side::Holder { hold, .. } = &connection.side {
                hold.end();
                if let Some(giver) = hold.came.link.upgrade() {
                    let dropped = giver.table().portals().drop_got(hold.came.key, hold);
                    drop(dropped);
                }
            }
        }
    }

    /// Something about the life of an isolate has changed.
    fn life_changed(&mut self, key: u64) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let Side::Isolate {
            watch,
            waker,
            acknowledged,
            ..
        } = &mut connection.side
        else {
            return;
        };
        let ended = watch
            .poll(&mut Context::from_waker(waker), |life| {
                life.exit().is_some()
            })
            .is_ready();
        if watch.life().is_acknowledged() && !std::mem::replace(acknowledged, true) {
            connection.link.send_acknowledgement();
        }
        if !ended || connection.closing {
            return;
        }
        let now = clock::now();
        let (_, due) = *connection
            .due
            .get_or_insert((now + LAST_ANSWERS, Due::Answers));
        debug_assert!(due == Due::Answers, "nothing else is waited for");
        self.say_end(key, false);
    }

    /// Says how the isolate has ended, when it has given its last answers.
    fn say_end(&mut self, key: u64, late: bool) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if !connection.link.is_served() && !late {
            // Looked at again soon: the last answer is no news.
            if let Some((at, Due::Answers)) = connection.due {
                let soon = (clock::now() + LOOK).min(at);
                connection.due = Some((soon, Due::Answers));
            }
            return;
        }
        if let Side::Isolate { watch, .. } = &connection.side
            && let Some(exit) = watch.life().exit()
        {
            let ended = |exit: Exit| Ended {
                exit,
                left: Vec::new(),
            };
            let sent = connection
                .link
                .try_send_value(Kind::Ended, 0, &ended(exit.clone()));
            if let Err(error) = sent {
                // Too deep or too long to cross: the same as text.
                let why = connection.link.shortened(format!("{exit} ({error})"));
                connection
                    .link
                    .send_value(Kind::Ended, 0, &ended(Exit::Lost { why }));
            }
        }
        self.close(key);
    }

    fn look_at_clock(&mut self) {
        let now = clock::now();
        let open = self.connections.iter().filter(|(_, one)| !one.ended);
        let late = open.filter_map(|(key, one)| Some((*key, one.link.late(now)?)));
        for (key, error) in late.collect::<Vec<_>>() {
            self.is_wrong(key, &error);
        }
        let due: Vec<(u64, Due)> = self
            .connections
            .iter()
            .filter_map(|(key, one)| {
                one.due
                    .filter(|(at, _)| *at <= now)
                    .map(|(_, due)| (*key, due))
            })
            .collect();
        for (key, due) in due {
            match due {
                Due::Answers => {
                    let died = self.connections.get(&key).and_then(|one| match &one.side {
                        Side::Isolate { watch, .. } => watch.life().died_at(),
                        Side::Holder { .. } => None,
                    });
                    let late = died.is_none_or(|at| now >= at + LAST_ANSWERS);
                    self.say_end(key, late);
                }
                Due::PostMortem(last) => self.examine(key, now >= last),
                Due::Written => self.remove(key),
                Due::Closed => {
                    let Some(connection) = self.connections.get_mut(&key) else {
                        continue;
                    };
                    connection.due = None;
                    connection.unflushed.clear();
                    if let Side::Holder { hold, .. } = &connection.side
                        && hold.close()
                    {
                        self.remove(key);
                    }
                }
            }
        }
    }

    /// Looks for how a process has ended that left no word.
    fn examine(&mut self, key: u64, late: bool) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let Side::Holder { hold, pidfd, .. } = &connection.side else {
            return;
        };
        let life = &hold.life;
        let exit = match pidfd.as_ref().and_then(Pidfd::status) {
            Some(Status::Signaled { signal, core }) => Exit::Killed {
                signal,
                name: signal::name(signal),
                core,
                why: None,
            },
            Some(Status::Exited(code)) => Exit::Exited { code },
            None if late => Exit::Lost {
                why: match pidfd.as_ref().is_none_or(Pidfd::is_dead) {
                    true => "its process has ended without a word".to_owned(),
                    false => "its process has ended the connection".to_owned(),
                },
            },
            None => {
                if let Some((at, _)) = &mut connection.due {
                    *at = clock::now() + LOOK;
                }
                return;
            }
        };
        life.announce(exit);
        connection.link.fail_pending(life);
        self.remove(key);
    }

    /// All isolates of this process have ended: says so where that is not said, and waits until it is written.
    fn stop(&mut self) {
        let keys: Vec<u64> = self.connections.keys().copied().collect();
        for key in &keys {
            match self
                .connections
                .get(key)
                .map(|one| (&one.side, one.closing))
            {
                Some((Side::Isolate { .. }, false)) => self.say_end(*key, true),
                Some((Side::Holder { .. }, false)) => self.close(*key),
                _ => {}
            }
        }
        let deadline = clock::now() + LAST_WRITE;
        for connection in std::mem::take(&mut self.connections).into_values() {
            connection.link.flush_until(deadline);
            if let Side::Holder { hold, .. } = &connection.side {
                connection.link.fail_pending(&hold.life);
            }
            connection.link.shut();
        }
    }
}
