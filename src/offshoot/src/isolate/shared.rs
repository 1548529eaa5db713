//! The half of an isolate that others reach, and the target that a portal points to.

use super::job::{Arrival, Job, Mail, StateJob};
use super::thread::Work;
use crate::credit::Lane;
use crate::dialogue::tie::Tie;
use crate::family::{Family, Key, Status, Upward};
use crate::life::Life;
use crate::process::Process;
use crate::process::link::Link;
use crate::process::porter::Introduction;
use crate::rest::Rest;
use crate::runtime::Runtime;
use crate::spec::Bounds;
use crate::time::nanos;
use crate::{Cancel, Error, ErrorKind};
use async_task::Runnable;
use crossbeam::queue::SegQueue;
use offshoot_mailbox::{Envelope, Letter, List, Parker, Pushed, Queue, Wake};
use offshoot_sys::socket::Revocable;
use offshoot_sys::{clock, event::EventFd, futex, thread};
use offshoot_wire::frame::{CancelOrder, Kind};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// What an isolate has got.
pub(crate) enum Message {
    /// Of a sender in this process.
    Mail(Letter<dyn Mail>),
    /// Runs as a task of its own.
    Job(Box<dyn Job>),
    /// Runs on the state, one at a time.
    State(Box<dyn StateJob>),
}

/// What the runtime tells an isolate; never behind messages of users.
pub(crate) enum Control {
    /// Come down, with these deadlines.
    Cancel(CancelOrder),
    /// Accept nothing more, do what was accepted, end.
    Close,
    /// Look at the status of this child.
    Child(Key),
    /// Look at the clock: somebody else changed what this isolate has to do and when.
    Look,
}

/// What the runtime of an isolate waits for, the index of its name.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    FirstTurn,
    Messages,
    Cancellation,
    Children,
    FarTasks,
    Nursery,
    Start,
}

const WAITS: [&str; 7] = [
    "its first turn",
    "messages, timers and I/O",
    "its own cancellation",
    "its children to come down",
    "the far tasks of dialogues",
    "the children of a nursery to end",
    "a process to start",
];

/// How to wake an isolate that sleeps in its poll rather than on its futex.
pub(crate) enum PollWaker {
    Mio(mio::Waker),
    Event(EventFd),
}

pub(crate) struct Shared {
    pub(crate) life: Arc<Life>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) inbox: List<Letter<dyn Mail>>,
    pub(crate) control: Queue<Control>,
    /// Tasks of this isolate that were woken on another thread.
    pub(crate) woken: SegQueue<Runnable>,
    pub(crate) parker: Parker,
    pub(crate) poll_waker: OnceLock<PollWaker>,
    pub(crate) family: Mutex<Family>,
    /// Its owner; none for the pseudo-isolate on which the caller of `run` waits.
    pub(crate) upward: Option<Arc<Upward>>,
    pub(crate) status: Arc<Status>,
    /// Its own, where it is taken down by itself.
    pub(crate) bounds: Bounds,
    /// Its sockets, which are taken away if it is abandoned.
    pub(crate) sockets: Arc<Revocable>,
    /// Dialogues that it has opened: an abandoned isolate drops nothing any more.
    opened: Mutex<Vec<Weak<Tie>>>,
    tid: AtomicI32,
    /// The wait that the isolate's runtime is in, for dumps.
    waiting: AtomicU8,
    /// When the running task was last polled, or 0: what tells a blocked isolate from an idle one.
    busy_since: AtomicU64,
    /// How many turns its loop has had.
    turns: AtomicU64,
    cut_off: AtomicBool,
    /// What it is there for, until a thread of its own takes it.
    pub(crate) work: Mutex<Option<Work>>,
    next_nursery: AtomicU64,
    /// What portals to it point to, where there is one.
    target: Mutex<Weak<Target>>,
    /// The number of the method that has the state, or 0: whoever asks meanwhile waits for it.
    pub(crate) serving: AtomicU64,
    /// Whether it is at rest, for a nursery that ends.
    pub(crate) rest: Rest,
}

impl Shared {
    pub(crate) fn new(
        life: Arc<Life>,
        runtime: Arc<Runtime>,
        upward: Option<Arc<Upward>>,
        status: Arc<Status>,
        bounds: Bounds,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            life,
            runtime,
            inbox: List::new(),
            control: Queue::new(),
            woken: SegQueue::new(),
            parker: Parker::new(),
            poll_waker: OnceLock::new(),
            family: Mutex::new(Family::default()),
            upward,
            status,
            bounds,
            sockets: Arc::default(),
            opened: Mutex::default(),
            tid: AtomicI32::new(0),
            waiting: AtomicU8::new(Wait::FirstTurn as u8),
            busy_since: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            cut_off: AtomicBool::new(false),
            work: Mutex::new(None),
            next_nursery: AtomicU64::new(crate::family::ADOPTED + 1),
            target: Mutex::default(),
            serving: AtomicU64::new(0),
            rest: Rest::default(),
        })
    }

    /// Called by its thread, first.
    pub(crate) fn begin(self: &Arc<Shared>) {
        // Known first: whoever sees that it has begun is to find it among those that run.
        self.runtime.register(self);
        self.tid.store(thread::id(), Ordering::Release);
    }

    pub(crate) fn next_nursery(&self) -> u64 {
        self.next_nursery.fetch_add(1, Ordering::Relaxed)
    }

    /// Wakes its thread, if it sleeps. No system call if it does not.
    pub(crate) fn wake(&self) {
        match self.parker.unpark() {
            Wake::Nothing => {}
            Wake::Futex => futex::wake_one(self.parker.word()),
            Wake::Poll => match self.poll_waker.get() {
                // An isolate cannot sleep in a poll that it has not made.
                None => debug_assert!(false, "an isolate sleeps in a poll without a waker"),
                Some(PollWaker::Event(event)) => event.notify(),
                Some(PollWaker::Mio(waker)) => {
                    if let Err(error) = waker.wake() {
                        crate::log::error!(isolate = %self.life.identity(), %error, "cannot wake an isolate");
                    }
                }
            },
        }
    }

    pub(crate) fn tell(&self, control: Control) {
        // A closed control lane belongs to an isolate that has ended, which needs to be told nothing.
        if self.control.push(control).is_ok() {
            self.wake();
        }
    }

    pub(crate) fn nudge(&self, key: Key) {
        self.tell(Control::Child(key));
    }

    /// Puts a message into the mailbox; gives it back if the isolate accepts nothing more.
    pub(crate) fn post(&self, letter: Letter<dyn Mail>) -> Result<(), Letter<dyn Mail>> {
        let pushed = self.inbox.push(letter)?;
        crate::fault::frequent_point("wake", || self.life.identity().name());
        // Who pushed the first wakes it, unless that one is held up: then it still sleeps.
        if pushed == Pushed::First || self.parker.is_asleep() {
            self.wake();
        }
        Ok(())
    }

    /// As [`post`](Shared::post), of what has come from elsewhere. One that is refused is dropped, and its answer then says why. False
    /// if it was refused.
    pub(crate) fn deliver(&self, message: Message) -> bool {
        let letter = Letter::seal(Envelope::without_reply(Arrival(message)), |_| {});
        self.post(letter).is_ok()
    }

    /// Sends the thread a signal that breaks an interruptible system call.
    pub(crate) fn interrupt(&self) {
        let tid = self.tid.load(Ordering::Acquire);
        if tid != 0
            && !self.status.gone.load(Ordering::Acquire)
            && let Err(error) = thread::interrupt(tid)
        {
            crate::log::debug!(isolate = %self.life.identity(), %error, "cannot interrupt a thread");
        }
    }

    /// What its thread is doing, for a report about an isolate that does not come down.
    pub(crate) fn describe(&self) -> String {
        let tid = self.tid.load(Ordering::Acquire);
        if tid == 0 {
            return "its thread has not begun".to_owned();
        }
        thread::wait_channel(tid)
    }

    /// Begins to capture the stack of its thread, which is logged when it is there.
    pub(crate) fn capture_stack(&self) -> Option<thread::PendingStack> {
        let tid = self.tid.load(Ordering::Acquire);
        let origin = self.life.origin();
        #[cfg(feature = "fault-points")]
        crate::ledger::capture();
        (tid != 0).then(|| {
            thread::PendingStack::capture(tid, Duration::from_millis(50), move |stack| {
                crate::log::error!(isolate = %origin, "a thread does not come down:\n{stack}");
            })
        })
    }

    /// Takes away from a wedged thread what others wait for. Returns what it had not begun, to be
    /// dropped where no lock is held: arguments are `Send`, and their callers are told by the drop.
    #[must_use]
    pub(crate) fn cut_off(&self) -> Vec<Letter<dyn Mail>> {
        self.cut_off.store(true, Ordering::Release);
        drop(self.control.close());
        let unserved = self.inbox.close().collect();
        let opened = std::mem::take(&mut *self.opened.lock());
        for tie in opened.iter().filter_map(Weak::upgrade) {
            tie.halt(tie.hung_up());
        }
        // Its peers see the end; the numbers stay taken, so that it can harm no stranger's.
        self.sockets.revoke();
        let tid = self.tid.load(Ordering::Acquire);
        if tid != 0
            && let Err(error) = thread::demote(tid)
        {
            crate::log::debug!(isolate = %self.life.identity(), %error, "cannot demote an abandoned thread");
        }
        unserved
    }

    /// Notes a dialogue that this isolate has opened.
    pub(crate) fn hold(&self, tie: &Arc<Tie>) {
        let mut opened = self.opened.lock();
        // Those that are over go whenever the list would have to grow.
        if opened.len() == opened.capacity() {
            opened.retain(|tie| tie.upgrade().is_some_and(|tie| !tie.is_over()));
        }
        opened.push(Arc::downgrade(tie));
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Acquire)
    }

    /// Asks its owner to take it down by the ladder, whoever asks.
    pub(crate) fn cancel(&self, cancel: &Cancel) {
        match &self.upward {
            Some(upward) => upward.cancel(cancel),
            None => {
                // The first isolate of a process: its owner learns of it by the acknowledgement.
                let now = clock::now();
                self.tell(Control::Cancel(CancelOrder {
                    cancel: cancel.clone(),
                    grace_at: now + nanos(self.bounds.grace),
                    hard_at: now + nanos(self.bounds.hard_kill),
                    last_at: now + nanos(self.bounds.hard_kill),
                }));
            }
        }
    }

    /// What portals to this isolate point to; made here for one that nobody in this process has spawned.
    pub(crate) fn target(self: &Arc<Shared>) -> Arc<Target> {
        let known = self.target.lock().upgrade();
        known.unwrap_or_else(|| {
            let settings = &self.runtime.settings;
            let limits = (settings.messages, settings.calls);
            let route = Route::Thread(self.clone());
            Target::new(
                self.life.clone(),
                self.runtime.clone(),
                route,
                limits,
                false,
            )
        })
    }

    /// Names the wait that the runtime is in on this isolate's behalf.
    pub(crate) fn set_waiting(&self, what: Wait) {
        self.waiting.store(what as u8, Ordering::Relaxed);
    }

    /// A turn of its loop begins.
    pub(crate) fn begin_turn(&self, now: u64) {
        // Only its own thread writes it.
        let turns = self.turns.load(Ordering::Relaxed);
        self.turns.store(turns + 1, Ordering::Relaxed);
        self.busy_since.store(now, Ordering::Relaxed);
    }

    /// How many turns its loop has had.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Its thread is about to wait.
    pub(crate) fn set_idle(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    /// Since when it has been running code without a turn of its loop (ns), if it is.
    pub(crate) fn busy_since(&self) -> Option<u64> {
        Some(self.busy_since.load(Ordering::Relaxed)).filter(|since| *since != 0)
    }

    /// The number of its thread, once that has begun.
    pub(crate) fn tid(&self) -> Option<i32> {
        Some(self.tid.load(Ordering::Acquire)).filter(|tid| *tid != 0)
    }

    /// Whether its thread has run for the first time.
    pub(crate) fn has_begun(&self) -> bool {
        self.tid.load(Ordering::Acquire) != 0
    }

    /// Whether its thread sleeps in its loop, or is about to; out of date at once.
    pub(crate) fn is_asleep(&self) -> bool {
        self.parker.is_asleep()
    }

    /// How many turns it has had, if it sleeps and nothing waits for it; as seen from another thread.
    pub(crate) fn at_rest(&self) -> Option<u64> {
        let turns = self.turns.load(Ordering::Acquire);
        let empty = self.inbox.is_empty() && self.control.is_empty() && self.woken.is_empty();
        (empty && self.parker.is_asleep()).then_some(turns)
    }

    /// One line for a dump.
    pub(crate) fn dump(&self) -> String {
        let origin = self.life.origin();
        let busy = self.busy_since.load(Ordering::Relaxed);
        let mut line = format!(
            "{origin} ({}, pid {}, tid {})",
            origin.id,
            origin.pid,
            self.tid.load(Ordering::Relaxed)
        );
        if let Some(place) = self.life.spawned_at_text() {
            line.push_str(&format!(" spawned at {place};"));
        }
        if let Some(cancel) = self.life.cancelled() {
            line.push_str(&format!(" {cancel};"));
        }
        if busy > 0 {
            let since = clock::now().saturating_sub(busy) / 1_000_000;
            line.push_str(&format!(
                " running user code for {since} ms: {}",
                self.describe()
            ));
        } else {
            let waiting = usize::from(self.waiting.load(Ordering::Relaxed));
            line.push_str(&format!(" waiting for {}", WAITS[waiting]));
        }
        line
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.runtime.unregister(self);
    }
}

/// Where a portal's messages go.
#[derive(Clone)]
pub(crate) enum Route {
    Thread(Arc<Shared>),
    /// A process of ours.
    Process(Arc<Process>),
    /// An isolate of another process, over a socket of its own.
    Introduced(Arc<Introduction>),
    /// Nowhere: it had ended before a portal to it came.
    Gone,
}

impl Route {
    /// The link, to what is in another process.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Route::Process(process) => Some(&process.link),
            Route::Introduced(introduction) => Some(&introduction.link),
            Route::Thread(_) | Route::Gone => None,
        }
    }
}

/// What a portal points to: an indirection, so that portals do not depend on where the isolate is.
pub(crate) struct Target {
    pub(crate) life: Arc<Life>,
    pub(crate) runtime: Arc<Runtime>,
    route: Route,
    /// Bounds of a lane: messages, calls.
    limits: (u32, u32),
    /// Payloads are encoded and decoded though the isolate is a thread.
    pub(crate) through_serde: bool,
    /// The lane of all senders that are no isolates.
    foreign: OnceLock<Arc<Lane>>,
}

impl Target {
    pub(crate) fn new(
        life: Arc<Life>,
        runtime: Arc<Runtime>,
        route: Route,
        limits: (u32, u32),
        through_serde: bool,
    ) -> Arc<Target> {
        let target = Arc::new(Target {
            life,
            runtime,
            route,
            limits,
            through_serde,
            foreign: OnceLock::new(),
        });
        match &target.route {
            Route::Thread(shared) => *shared.target.lock() = Arc::downgrade(&target),
            Route::Process(process) => process.link.owns(&target),
            Route::Introduced(_) | Route::Gone => {}
        }
        target
    }

    /// One that somebody else has introduced.
    pub(crate) fn introduced(
        life: Arc<Life>,
        runtime: Arc<Runtime>,
        route: Route,
        limits: (u32, u32),
    ) -> Arc<Target> {
        Target::new(life, runtime, route, limits, false)
    }

    /// How many messages and calls one sender may have under way.
    pub(crate) fn limits(&self) -> (u32, u32) {
        self.limits
    }

    /// Where what is sent goes: nowhere from a copy of this process.
    pub(crate) fn route(&self) -> &Route {
        match self.runtime.original.is_here() {
            true => &self.route,
            false => &Route::Gone,
        }
    }

    pub(crate) fn thread(&self) -> Option<&Arc<Shared>> {
        match &self.route {
            Route::Thread(shared) => Some(shared),
            Route::Process(_) | Route::Introduced(_) | Route::Gone => None,
        }
    }

    /// A lane for a sender that has none yet, an isolate or all who are none.
    pub(crate) fn new_lane(&self, isolate: bool) -> Arc<Lane> {
        let link = self.route.link();
        // Its number is of the link, which may outlive this.
        let number = link.map_or(0, |link| link.next_lane());
        let lane = Lane::new(number, self.limits, isolate);
        if let Some(link) = link {
            link.add_lane(&lane);
        }
        lane
    }

    /// The lane of senders that are no isolates.
    pub(crate) fn foreign_lane(&self) -> Arc<Lane> {
        self.foreign.get_or_init(|| self.new_lane(false)).clone()
    }

    pub(crate) fn send_order(&self, order: CancelOrder) {
        match self.route() {
            Route::Thread(shared) => shared.tell(Control::Cancel(order)),
            Route::Process(process) => process.send_order(&order),
            // Only its owner takes it down.
            Route::Introduced(_) | Route::Gone => {}
        }
    }

    pub(crate) fn send_close(&self) {
        match self.route() {
            Route::Thread(shared) => shared.tell(Control::Close),
            Route::Process(process) => process.link.send_close(),
            Route::Introduced(_) | Route::Gone => {}
        }
    }

    /// Its number in this wave if it is at rest, see [`Waves`](crate::rest::Waves); else its owner is told once it is.
    pub(crate) fn rest(&self, wave: u64) -> Option<u64> {
        match self.route() {
            Route::Thread(shared) => shared.rest.look(&shared.inbox),
            Route::Process(process) => process.rest(wave),
            Route::Introduced(_) | Route::Gone => None,
        }
    }

    /// Asks its owner to take it down by the ladder, whoever asks.
    pub(crate) fn cancel(&self, cancel: &Cancel) {
        match self.route() {
            Route::Thread(shared) => shared.cancel(cancel),
            Route::Process(process) => process.upward.cancel(cancel),
            Route::Introduced(by) => {
                // Its deadlines are those of its own process.
                let order = CancelOrder {
                    cancel: cancel.clone(),
                    grace_at: u64::MAX,
                    hard_at: u64::MAX,
                    last_at: u64::MAX,
                };
                by.link.send_value(Kind::Cancel, 0, &order);
            }
            Route::Gone => {}
        }
    }

    /// True once it takes no message any more: it has ended, or is cancelled and would drop them.
    pub(crate) fn is_closed(&self) -> bool {
        self.life.exit().is_some() || self.life.cancelled().is_some()
    }

    /// Whether it refuses whatever is sent, for the tests' oracle.
    #[cfg(feature = "fault-points")]
    pub(crate) fn refuses(&self) -> bool {
        self.life.exit().is_some()
            && match &self.route {
                Route::Thread(shared) => shared.inbox.is_closed(),
                _ => true,
            }
    }

    /// What a caller is told that comes too late.
    pub(crate) fn gone(&self) -> Error {
        if !self.runtime.original.is_here() {
            let what = format!(
                "this process is a copy, by `fork`, of the one that runs isolate `{}`: only that one can use the handles of its tree; \
                 have the copy do its work without them, or run a tree of its own",
                self.life.origin()
            );
            return Error::new(ErrorKind::Misuse, what);
        }
        self.life.gone()
    }
}
