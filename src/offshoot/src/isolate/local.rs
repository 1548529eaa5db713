//! The half of an isolate that only its own thread touches: the loop.
//!
//! One turn, in this order: control, children whose time has come, the link to the owner (in a
//! process), ready tasks within a budget, the mailbox, timers, I/O. With nothing to do it sleeps
//! on its futex, or in its poll if it has one, until the next of its deadlines.
//!
//! The phases of a life:
//!
//! ```text
//! Running ──close──► Closing ─────────────► Over      accepts nothing, does what was accepted
//!    │                  │
//!    └──cancel──────────┴► Cancelling ─grace─► Dropping ─► Over
//!    └──panic, error of its main─────────────► Dropping
//! ```
//!
//! In `Cancelling` the user's code sees its checkpoints fail and may end by itself; in `Dropping`
//! its futures have been dropped. In both the isolate still waits for its children: that wait is
//! the runtime's, it is bounded by their ladders, and nothing drops it.

use super::inbox::Inbox;
use super::job::{StateJob, StateMail};
use super::panics;
use super::shared::{Control, Message, PollWaker, Shared, Target, Wait};
use crate::chain::Waits;
use crate::credit::{Awaited, Lane, Owed, TOGETHER, Taken};
use crate::family::{ADOPTED, Above, Deadlines, Departed, NurseryKey};
use crate::life::Life;
use crate::process::Process;
use crate::process::child::Uplink;
use crate::process::link::Link;
use crate::process::porter::Flush;
use crate::reactor::Reactor;
use crate::scope::{Scope, passed_on};
use crate::time::nanos;
use crate::{Cancel, Canceller, Error, Exit};
use async_task::Runnable;
use offshoot_mailbox::{Parker, Room, Sleep};
use offshoot_sys::event::EventFd;
use offshoot_sys::{clock, fork, futex, poll, process};
use offshoot_wire::frame::CancelOrder;
use pin_project_lite::pin_project;
use slab::Slab;
use std::any::{Any, TypeId};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How many tasks and how many messages one turn takes before it looks at everything else again.
const BUDGET: usize = 64;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Phase {
    Running,
    Closing,
    Cancelling,
    Dropping,
}

/// What a nursery left with its isolate: how to wake it, and the news that it has not read.
#[derive(Default)]
struct NurseryRecord {
    waker: Option<Waker>,
    departed: Vec<Departed>,
}

/// The lanes of an isolate, by the address of the receiver's life, which they keep.
///
/// By that and not by its id: an isolate of another process may be introduced anew, over another socket, and what is
/// under way over one is no concern of the other.
type Lanes = HashMap<usize, (Arc<Life>, Arc<Lane>), BuildHasherDefault<AddressHasher>>;

/// Addresses are ours, so that nobody can choose them to collide: a multiplication spreads them (Knuth, TAOCP 6.4), where SipHash would be
/// a tenth of what a message costs, and its random keys a system call of each new thread.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, address: usize) {
        // The high bits of the product depend on all of the address; the table looks at the low ones and at the highest seven.
        let product = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product.rotate_left(26);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) root_scope: Rc<Scope>,
    /// One for the next method or call, as good as new.
    spare_scope: Cell<Option<Rc<Scope>>>,
    queue: RefCell<VecDeque<Runnable>>,
    /// Every task that has not ended, by which all of them can be found and dropped.
    tasks: RefCell<Slab<Task>>,
    /// How many of those have something to do.
    active: Cell<usize>,
    /// Workers without work.
    idle: RefCell<Vec<Rc<Worker>>>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    next_timer: Cell<u64>,
    reactor: OnceCell<Reactor>,
    phase: Cell<Phase>,
    /// The deadlines of its own cancellation.
    order: Cell<Above>,
    failed: RefCell<Option<Exit>>,
    drop_wanted: Cell<bool>,
    /// What is dropped meanwhile is dropped because its grace is over, and what of that was shielded.
    cutting: Cell<bool>,
    cut: RefCell<Vec<Error>>,
    /// How many tasks are being polled: more than one where code of a blocking isolate waits.
    running: Cell<u32>,
    lanes: RefCell<Lanes>,
    /// Senders that wait for credit of which a little has come back.
    owed: RefCell<Vec<Owed>>,
    /// Credit that goes back when there is enough of it to be worth it.
    spent: RefCell<Vec<Taken>>,
    /// Credit for which its own senders wait.
    awaited_credit: RefCell<Vec<Awaited>>,
    mail: RefCell<VecDeque<Message>>,
    /// The state, unless a method is running on it.
    state: RefCell<Option<Box<dyn Any>>>,
    state_type: Cell<Option<TypeId>>,
    state_jobs: RefCell<VecDeque<StateWork>>,
    /// A task has given the state back, and nobody has looked what waits for it.
    returned: Cell<bool>,
    nurseries: RefCell<BTreeMap<NurseryKey, NurseryRecord>>,
    left: RefCell<Vec<Error>>,
    pub(crate) uplink: OnceCell<Uplink>,
    /// Its main function is a blocking one and has not returned.
    blocking_main: Cell<bool>,
    /// The answer of a process that was waited for last.
    awaited: RefCell<Option<(Weak<Process>, u64)>>,
    /// The process whose link it has borrowed.
    borrowed: RefCell<Option<Arc<Process>>>,
    /// How many turns in a row had something to do.
    busy_turns: Cell<u32>,
    /// It has had nothing to do before.
    settled: Cell<bool>,
    /// How many more messages may begin; a blocking isolate takes one at a time.
    gate: Cell<usize>,
    /// The number of the last method that had the state.
    last_turn: Cell<u64>,
    /// It has said that it is at rest, and nothing has begun since.
    rested: Cell<bool>,
    /// How many dialogues it serves.
    dialogues: Cell<usize>,
    /// The owner of this process wants to know when it is at rest.
    rest_asked: RefCell<Option<RestAsked>>,
}

/// What the owner of a process has asked.
struct RestAsked {
    correlation: u64,
    /// Under way, once it is at rest here: whether what was sent to other processes has come there.
    flush: Option<Arc<Flush>>,
}

/// A dialogue that an isolate serves: no work of its own, since it ends with its opener's side.
pub(crate) struct ServedDialogue(Rc<Local>);

impl Drop for ServedDialogue {
    fn drop(&mut self) {
        self.0.dialogues.set(self.0.dialogues.get() - 1);
    }
}

/// A task of an isolate.
struct Task {
    /// Known once it has been made.
    waker: Option<Waker>,
    /// Whether it has something to do.
    active: bool,
}

/// A task that runs one call after the other, so that a call needs none of its own.
struct Worker {
    room: RefCell<Room>,
    /// Its task was woken while a poll of what is in the room was under way.
    again: Cell<bool>,
    /// There are enough without it.
    over: Cell<bool>,
    task: usize,
    waker: OnceCell<Waker>,
}

/// How many workers without work an isolate keeps.
const IDLE_MAX: usize = 16;

/// A method call that waits for the state.
enum StateWork {
    Mail(Unopened),
    Arrived(Box<dyn StateJob>),
}

/// A message that was taken out of its letter. Refused if it is dropped.
struct Unopened(Option<Arc<dyn StateMail>>);

impl Drop for Unopened {
    fn drop(&mut self) {
        if let Some(mail) = self.0.take() {
            mail.refuse();
        }
    }
}

impl StateWork {
    fn is_unwanted(&self) -> bool {
        match self {
            StateWork::Mail(Unopened(mail)) => mail.as_ref().is_none_or(|mail| mail.is_unwanted()),
            StateWork::Arrived(job) => job.is_unwanted(),
        }
    }

    /// Runs it at once, if it is no async method; otherwise it comes back.
    fn run_plain(self, state: &mut dyn Any, local: &Rc<Local>) -> Option<StateWork> {
        match self {
            StateWork::Mail(mut unopened) => {
                let mail = unopened.0.take()?;
                let later = mail.run_plain(state, local).err()?;
                Some(StateWork::Mail(Unopened(Some(later))))
            }
            StateWork::Arrived(job) => job.run_plain(state, local).err().map(StateWork::Arrived),
        }
    }

    /// Starts it as a task, which has the state until it gives it back.
    fn start(self, state: Box<dyn Any>, local: &Rc<Local>) {
        match self {
            StateWork::Mail(mut unopened) => match unopened.0.take() {
                Some(mail) => mail.start(state, local),
                None => local.return_state(state),
            },
            StateWork::Arrived(job) => job.start(state, local),
        }
    }
}

pin_project! {
    /// A task's future, dropped as soon as it is ready and with care: a destructor that panics ends the isolate and not, as it
    /// would inside of the task's cell, the process.
    struct Careful<F> {
        local: Rc<Local>,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Careful<F> {
        fn drop(this: Pin<&mut Self>) {
            this.end();
        }
    }
}

impl<F> Careful<F> {
    fn new(local: &Rc<Local>, future: F) -> Careful<F> {
        Careful {
            local: local.clone(),
            future: Some(future),
        }
    }

    fn end(self: Pin<&mut Self>) {
        let mut this = self.project();
        if let Err(payload) = std::panic::catch_unwind(AssertUnwindSafe(|| this.future.set(None))) {
            this.local.fail(Exit::Panicked(panics::take(payload)));
        }
    }
}

impl<F: Future<Output = ()>> Future for Careful<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(future) = self.as_mut().project().future.as_pin_mut() {
            std::task::ready!(future.poll(cx));
        }
        self.end();
        Poll::Ready(())
    }
}

/// The time in which a method has the state, or in which something else keeps the isolate from serving.
pub(crate) struct Turn<'a> {
    shared: &'a Shared,
    pub(crate) number: u64,
    /// What had it before.
    before: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.serving.store(self.before, Ordering::Release);
    }
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Local> {
        Rc::new(Local {
            shared,
            root_scope: Scope::root(),
            spare_scope: Cell::new(None),
            queue: RefCell::default(),
            tasks: RefCell::default(),
            active: Cell::new(0),
            idle: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            reactor: OnceCell::new(),
            phase: Cell::new(Phase::Running),
            order: Cell::new(None),
            failed: RefCell::new(None),
            drop_wanted: Cell::new(false),
            cutting: Cell::new(false),
            cut: RefCell::default(),
            running: Cell::new(0),
            lanes: RefCell::default(),
            owed: RefCell::default(),
            spent: RefCell::default(),
            awaited_credit: RefCell::default(),
            mail: RefCell::default(),
            state: RefCell::new(None),
            state_type: Cell::new(None),
            state_jobs: RefCell::default(),
            returned: Cell::new(false),
            nurseries: RefCell::default(),
            left: RefCell::default(),
            uplink: OnceCell::new(),
            blocking_main: Cell::new(false),
            awaited: RefCell::new(None),
            borrowed: RefCell::new(None),
            busy_turns: Cell::new(0),
            settled: Cell::new(false),
            gate: Cell::new(usize::MAX),
            last_turn: Cell::new(0),
            rested: Cell::new(false),
            dialogues: Cell::new(0),
            rest_asked: RefCell::new(None),
        })
    }

    /// The isolate of this thread, if it has one.
    pub(crate) fn try_current() -> Option<Rc<Local>> {
        // Also asked by the panic hook, perhaps while the thread's locals are being destroyed or
        // while it is being set.
        CURRENT
            .try_with(|current| {
                current
                    .try_borrow()
                    .ok()
                    .and_then(|current| current.clone())
            })
            .ok()
            .flatten()
    }

    pub(crate) fn enter(self: &Rc<Local>) {
        CURRENT.set(Some(self.clone()));
    }

    pub(crate) fn leave() {
        // Dropped outside of the borrow: destructors of the isolate may ask who they are.
        let local = CURRENT.take();
        drop(local);
    }

    // ---- tasks ----

    /// Starts a task on this isolate, in its turn behind the others.
    pub(crate) fn spawn(self: &Rc<Local>, future: impl Future<Output = ()> + 'static) {
        self.make_task(future).schedule();
    }

    /// Starts a task on this isolate here and now: what a message asks for begins in the order of
    /// the messages, and not after a method that came later but whose task was queued before.
    pub(crate) fn spawn_at_once<F>(self: &Rc<Local>, make: impl FnOnce(Rc<Local>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let worker = self.assign(make);
        if self.watched(|| self.poll_worker(&worker)).is_none() {
            // What panicked is not to be polled again.
            self.caught(|| worker.room.borrow_mut().clear());
            self.rest(&worker);
        }
    }

    /// Puts the future of a call into the room of a worker.
    ///
    /// It is made where it is put, and in a frame of its own: futures are large, and what is copied on the way to a call is on the
    /// stack of every isolate. With a page of frames above what a thread needs for itself, a thread isolate has two pages of
    /// stack instead of three.
    #[inline(never)]
    fn assign<F>(self: &Rc<Local>, make: impl FnOnce(Rc<Local>) -> F) -> Rc<Worker>
    where
        F: Future<Output = ()> + 'static,
    {
        let idle = self.idle.borrow_mut().pop();
        let worker = idle.unwrap_or_else(|| self.make_worker());
        self.set_active(worker.task, true);
        let future = Careful::new(self, make(self.clone()));
        worker.room.borrow_mut().enter(future);
        worker
    }

    fn make_worker(self: &Rc<Local>) -> Rc<Worker> {
        /// Empties the room when the task is dropped, as who waits for what is in it may hold the worker's waker, and so this.
        struct Empties(Rc<Local>, Rc<Worker>);
        impl Drop for Empties {
            fn drop(&mut self) {
                if let Ok(mut room) = self.1.room.try_borrow_mut() {
                    room.clear();
                }
                self.0.forget_task(self.1.task);
            }
        }
        let worker = Rc::new(Worker {
            room: RefCell::default(),
            again: Cell::new(false),
            over: Cell::new(false),
            task: self.new_task(),
            waker: OnceCell::new(),
        });
        let empties = Empties(self.clone(), worker.clone());
        let runnable = self.make_runnable(
            worker.task,
            poll_fn(move |_| {
                let Empties(local, worker) = &empties;
                local.poll_worker(worker);
                match worker.over.get() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            }),
        );
        let set = worker.waker.set(runnable.waker());
        debug_assert!(set.is_ok(), "a worker has one task");
        self.set_active(worker.task, false);
        // It has nothing to do yet: run, it waits to be woken.
        runnable.run();
        worker
    }

    /// Polls what is in the room of a worker, which is idle again once that is ready.
    fn poll_worker(&self, worker: &Rc<Worker>) {
        let Some(waker) = worker.waker.get() else {
            return;
        };
        // What is in it may run this isolate's loop while it is being polled.
        let Ok(mut room) = worker.room.try_borrow_mut() else {
            worker.again.set(true);
            return;
        };
        if !room.is_taken() {
            return;
        }
        let polled = room.poll(&mut Context::from_waker(waker));
        drop(room);
        if worker.again.take() {
            waker.wake_by_ref();
        }
        if polled.is_ready() {
            self.rest(worker);
        }
    }

    /// Keeps a worker without work for the next call, or lets it end.
    fn rest(&self, worker: &Rc<Worker>) {
        self.set_active(worker.task, false);
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(worker.clone());
            return;
        }
        drop(idle);
        worker.over.set(true);
        if let Some(waker) = worker.waker.get() {
            waker.wake_by_ref();
        }
    }

    fn new_task(&self) -> usize {
        self.active.set(self.active.get() + 1);
        self.tasks.borrow_mut().insert(Task {
            waker: None,
            active: true,
        })
    }

    fn set_active(&self, task: usize, active: bool) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(task) = tasks.get_mut(task) else {
            return;
        };
        match (std::mem::replace(&mut task.active, active), active) {
            (false, true) => self.active.set(self.active.get() + 1),
            (true, false) => self.active.set(self.active.get() - 1),
            _ => {}
        }
    }

    fn forget_task(&self, task: usize) {
        self.set_active(task, false);
        self.tasks.borrow_mut().try_remove(task);
    }

    fn make_task(self: &Rc<Local>, future: impl Future<Output = ()> + 'static) -> Runnable {
        struct Forgotten(Rc<Local>, usize);
        impl Drop for Forgotten {
            fn drop(&mut self) {
                self.0.forget_task(self.1);
            }
        }
        let task = self.new_task();
        let forgotten = Forgotten(self.clone(), task);
        self.make_runnable(task, async move {
            let forgotten = forgotten;
            Careful::new(&forgotten.0, future).await;
        })
    }

    fn make_runnable(
        self: &Rc<Local>,
        task: usize,
        future: impl Future<Output = ()> + 'static,
    ) -> Runnable {
        let shared = self.shared.clone();
        let schedule = move |runnable: Runnable| match Local::try_current() {
            Some(local) if Arc::ptr_eq(&local.shared, &shared) => {
                local.queue.borrow_mut().push_back(runnable)
            }
            _ => {
                shared.woken.push(runnable);
                shared.wake();
            }
        };
        let (runnable, handle) = async_task::spawn_local(future, schedule);
        self.tasks.borrow_mut()[task].waker = Some(runnable.waker());
        handle.detach();
        runnable
    }

    fn run_task(self: &Rc<Local>, runnable: Runnable) {
        // User code is caught where it is polled; this catches what is dropped by a poll.
        self.watched(|| runnable.run());
        self.serve_returned();
    }

    fn next_runnable(&self) -> Option<Runnable> {
        let next = self.queue.borrow_mut().pop_front();
        next.or_else(|| self.shared.woken.pop())
    }

    fn run_tasks(self: &Rc<Local>) -> bool {
        let mut ran = false;
        // Those woken elsewhere get their turn behind those that are here.
        while !self.shared.woken.is_empty()
            && let Some(runnable) = self.shared.woken.pop()
        {
            self.queue.borrow_mut().push_back(runnable);
        }
        for _ in 0..BUDGET {
            let Some(runnable) = self.queue.borrow_mut().pop_front() else {
                break;
            };
            ran = true;
            self.run_task(runnable);
            if self.drop_wanted.get() {
                break;
            }
        }
        ran
    }

    /// Whether there is a task with something to do.
    fn has_tasks(&self) -> bool {
        self.active.get() != 0
    }

    /// Drops every task, here and now. Their destructors run; a panic in one is an exit.
    fn drop_tasks(&self) {
        let cut = self.cut_off(|| self.drop_all_tasks());
        self.note_left(cut);
    }

    /// Notes what had to be cut off here or below, for the one above.
    pub(crate) fn note_left(&self, errors: Vec<Error>) {
        self.left.borrow_mut().extend(errors);
    }

    /// Runs `drop`, which drops what has not ended within its grace. Returns what of that was shielded.
    pub(crate) fn cut_off(&self, drop: impl FnOnce()) -> Vec<Error> {
        let outer = self.cutting.replace(true);
        drop();
        self.cutting.set(outer);
        std::mem::take(&mut *self.cut.borrow_mut())
    }

    /// Notes a shielded body that is dropped before it has ended, if that is because its grace is over.
    pub(crate) fn note_cut(&self, error: impl FnOnce() -> Error) {
        if self.cutting.get() {
            let error = error();
            crate::log::warn!(isolate = %self.shared.life.origin(), %error, "a shielded body was dropped");
            self.cut.borrow_mut().push(error);
        }
    }

    fn drop_all_tasks(&self) {
        self.drop_wanted.set(false);
        let jobs = std::mem::take(&mut *self.state_jobs.borrow_mut());
        let mail = std::mem::take(&mut *self.mail.borrow_mut());
        self.drop_each(jobs);
        self.drop_each(mail);
        self.idle.borrow_mut().clear();
        while !self.tasks.borrow().is_empty() {
            let wakers: Vec<Waker> = self
                .tasks
                .borrow()
                .iter()
                .filter_map(|(_, task)| task.waker.clone())
                .collect();
            wakers.into_iter().for_each(Waker::wake);
            // A woken task is in one of the queues, or about to be put there by another thread;
            // dropping what is in a queue drops the task's future.
            while let Some(runnable) = self.next_runnable() {
                self.caught(|| drop(runnable));
            }
            if !self.tasks.borrow().is_empty() {
                std::thread::yield_now();
            }
        }
    }

    /// Drops values of the program's, each by itself: two destructors that panic in one drop would abort the program.
    fn drop_each<T>(&self, values: impl IntoIterator<Item = T>) {
        for value in values {
            self.caught(|| drop(value));
        }
    }

    fn caught(&self, f: impl FnOnce()) {
        if let Err(payload) = std::panic::catch_unwind(AssertUnwindSafe(f)) {
            let panic = panics::take(payload);
            crate::log::error!(isolate = %self.shared.life.identity(), %panic, "a destructor panicked");
            self.failed
                .borrow_mut()
                .get_or_insert(Exit::Panicked(panic));
        }
    }

    // ---- timers ----

    pub(crate) fn add_timer(&self, at: u64, waker: Waker) -> (u64, u64) {
        let number = self.next_timer.get();
        self.next_timer.set(number + 1);
        self.timers.borrow_mut().insert((at, number), waker);
        (at, number)
    }

    pub(crate) fn set_timer(&self, key: (u64, u64), waker: &Waker) {
        self.timers.borrow_mut().insert(key, waker.clone());
    }

    pub(crate) fn remove_timer(&self, key: (u64, u64)) {
        self.timers.borrow_mut().remove(&key);
    }

    fn fire_timers(&self, now: u64) -> bool {
        let mut fired = false;
        loop {
            let first = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_key_value() {
                    Some((&(at, _), _)) if at <= now => timers.pop_first(),
                    _ => None,
                }
            };
            let Some((_, waker)) = first else {
                return fired;
            };
            waker.wake();
            fired = true;
        }
    }

    // ---- I/O ----

    /// The isolate's poll, made on first use.
    pub(crate) fn reactor(&self) -> std::io::Result<&Reactor> {
        if let Some(reactor) = self.reactor.get() {
            return Ok(reactor);
        }
        let reactor = match self.shared.poll_waker.get() {
            // It has slept on a link before.
            Some(PollWaker::Event(event)) => Reactor::woken_by(event)?,
            _ => {
                let (reactor, waker) = Reactor::new()?;
                let set = self.shared.poll_waker.set(PollWaker::Mio(waker));
                debug_assert!(set.is_ok(), "an isolate has one poll");
                reactor
            }
        };
        Ok(self.reactor.get_or_init(|| reactor))
    }

    /// Takes a poll that was made before.
    pub(crate) fn take_reactor(&self, reactor: Reactor, waker: mio::Waker) {
        let set = self.shared.poll_waker.set(PollWaker::Mio(waker)).is_ok()
            && self.reactor.set(reactor).is_ok();
        debug_assert!(set, "an isolate has one poll");
    }

    /// The poll, if there is one.
    pub(crate) fn existing_reactor(&self) -> Option<&Reactor> {
        self.reactor.get()
    }

    // ---- messages ----

    fn take_mail(self: &Rc<Local>) -> bool {
        if !self.shared.inbox.is_empty() {
            self.end_rest();
            let came = self.shared.inbox.take_all().map(Message::Mail);
            self.mail.borrow_mut().extend(came);
        }
        if self.phase.get() > Phase::Closing {
            // Too late for what had not begun: its callers are told by the drop.
            let mail = std::mem::take(&mut *self.mail.borrow_mut());
            let none = mail.is_empty();
            self.drop_each(mail);
            return !none;
        }
        let mut any = false;
        for _ in 0..BUDGET.min(self.gate.get()) {
            let next = self.mail.borrow_mut().pop_front();
            // What has come meanwhile is as good as what came before: a turn for each would cost more than it.
            let Some(message) = next.or_else(|| self.next_mail()) else {
                break;
            };
            any = true;
            if self.gate.get() != usize::MAX {
                self.gate.set(self.gate.get() - 1);
            }
            self.end_rest();
            self.begin(message);
            if self.phase.get() > Phase::Closing {
                // It has failed by this one; the rest is refused in the next turn.
                break;
            }
        }
        any
    }

    fn next_mail(&self) -> Option<Message> {
        if self.shared.inbox.is_empty() {
            return None;
        }
        self.end_rest();
        let mut batch = self.shared.inbox.take_all().map(Message::Mail);
        let first = batch.next()?;
        self.mail.borrow_mut().extend(batch);
        Some(first)
    }

    /// Starts what a message asks for.
    pub(crate) fn begin(self: &Rc<Local>, message: Message) {
        match message {
            Message::Mail(letter) => letter.open().begin(self),
            Message::Job(job) => job.begin(self),
            Message::State(job) => {
                let work = StateWork::Arrived(job);
                self.state_jobs.borrow_mut().push_back(work);
                self.serve_state();
            }
        }
    }

    /// Runs a method that has come out of the mailbox, in its turn.
    pub(crate) fn begin_on_state(self: &Rc<Local>, mail: Arc<dyn StateMail>) {
        let work = StateWork::Mail(Unopened(Some(mail)));
        let free = match self.state_jobs.borrow().is_empty() {
            true => self.state.borrow_mut().take(),
            false => None,
        };
        match free {
            Some(state) => self.serve_from(state, work),
            // Whoever has the state looks here when done.
            None => self.state_jobs.borrow_mut().push_back(work),
        }
    }

    /// Puts messages that came over a link behind those that are here.
    pub(crate) fn deliver(&self, message: Message) {
        self.mail.borrow_mut().push_back(message);
    }

    pub(crate) fn set_state(&self, state: Box<dyn Any>) {
        self.state_type.set(Some((*state).type_id()));
        *self.state.borrow_mut() = Some(state);
    }

    /// True if it was started with a state of this type.
    pub(crate) fn has_state<S: 'static>(&self) -> bool {
        self.state_type.get() == Some(TypeId::of::<S>())
    }

    /// Runs what waits for the state, one after the other, unless somebody does so already.
    fn serve_state(self: &Rc<Local>) {
        let Some(state) = self.state.borrow_mut().take() else {
            return;
        };
        let first = self.state_jobs.borrow_mut().pop_front();
        match first {
            Some(first) => self.serve_from(state, first),
            None => *self.state.borrow_mut() = Some(state),
        }
    }

    /// Runs this, and then what waits for the state.
    fn serve_from(self: &Rc<Local>, mut state: Box<dyn Any>, first: StateWork) {
        let mut next = Some(first);
        while let Some(job) = next {
            let later = self.watched(|| match job.is_unwanted() {
                // It was withdrawn while it was queued.
                true => None,
                false => job.run_plain(&mut *state, self),
            });
            if let Some(Some(job)) = later {
                // The first that is async takes the state along into a task, which often has ended when this returns.
                job.start(state, self);
                match self.state.borrow_mut().take() {
                    Some(returned) => {
                        self.returned.set(false);
                        state = returned;
                    }
                    None => return,
                }
            }
            if self.phase.get() > Phase::Closing {
                // Never served again: poisoned by a panic, or being taken down.
                self.watched(|| drop(state));
                return;
            }
            next = self.state_jobs.borrow_mut().pop_front();
        }
        *self.state.borrow_mut() = Some(state);
    }

    /// Gives the state back that a task had.
    pub(crate) fn return_state(&self, state: Box<dyn Any>) {
        // Otherwise it is never served again.
        if self.phase.get() <= Phase::Closing {
            *self.state.borrow_mut() = Some(state);
            self.returned.set(true);
        }
    }

    /// What waits for a state that was given back runs after the task that had it, not inside of it.
    fn serve_returned(self: &Rc<Local>) {
        if self.returned.take() {
            self.serve_state();
        }
    }

    /// Runs what may run code of the program's outside of a task; a panic of it ends the isolate.
    pub(crate) fn watched<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        self.running.set(self.running.get() + 1);
        let ran = std::panic::catch_unwind(AssertUnwindSafe(f));
        self.running.set(self.running.get() - 1);
        match ran {
            Ok(value) => Some(value),
            Err(payload) => {
                self.fail(Exit::Panicked(panics::take(payload)));
                None
            }
        }
    }

    /// A scope for a method or a call.
    pub(crate) fn take_scope(&self) -> Rc<Scope> {
        let spare = self.spare_scope.take();
        spare.unwrap_or_else(|| self.root_scope.child())
    }

    /// Keeps it for the next, if nothing has come of it that is still there.
    pub(crate) fn give_scope(&self, scope: Rc<Scope>) {
        if scope.reset() {
            self.spare_scope.set(Some(scope));
        }
    }

    /// Says that a method has the state from here on, until the result is dropped.
    pub(crate) fn begin_turn(&self) -> Turn<'_> {
        let number = self.last_turn.get() + 1;
        self.last_turn.set(number);
        // Only this thread writes it.
        let before = self.shared.serving.load(Ordering::Relaxed);
        self.shared.serving.store(number, Ordering::Release);
        Turn {
            shared: &self.shared,
            number,
            before,
        }
    }

    /// Nothing is served from here on, but what the main function of a blocking isolate itself receives.
    fn begin_main_turn(&self) {
        let number = self.last_turn.get() + 1;
        self.last_turn.set(number);
        self.shared.serving.store(number, Ordering::Release);
        self.root_scope.set_waits(Waits::new(number, None));
    }

    fn end_main_turn(&self) {
        self.shared.serving.store(0, Ordering::Release);
        self.root_scope.clear_waits();
    }

    /// The lane from this isolate to that one.
    pub(crate) fn lane(&self, target: &Target) -> Arc<Lane> {
        let address = Arc::as_ptr(&target.life).addr();
        let mut lanes = self.lanes.borrow_mut();
        if let Some((_, lane)) = lanes.get(&address) {
            return lane.clone();
        }
        // Those to the dead, and to those of whom this is all that is left, go whenever the map would
        // have to grow, so that it stays as large as the number of the living asks for.
        if lanes.len() == lanes.capacity() {
            lanes.retain(|_, (life, _)| life.exit().is_none() && Arc::strong_count(life) > 1);
        }
        let lane = target.new_lane(true);
        lanes.insert(address, (target.life.clone(), lane.clone()));
        lane
    }

    /// Notes a wake-up that a sender is to get when there is nothing else to do.
    pub(crate) fn owe(&self, owed: Owed) {
        self.owed.borrow_mut().push(owed);
    }

    /// Gives credit back, in time together with other: at the latest before the isolate sleeps.
    pub(crate) fn spend(&self, taken: Taken) {
        let mut spent = self.spent.borrow_mut();
        spent.push(taken);
        if spent.len() >= TOGETHER as usize {
            Taken::give_back(&mut spent);
        }
    }

    fn pay(&self) {
        Taken::give_back(&mut self.spent.borrow_mut());
        let owed = std::mem::take(&mut *self.owed.borrow_mut());
        owed.into_iter().for_each(Owed::pay);
    }

    /// Looks after this credit before it sleeps.
    pub(crate) fn await_credit(&self, awaited: Awaited) {
        self.awaited_credit.borrow_mut().push(awaited);
    }

    /// All who were woken have run: passes over those who were given their turn for credit and did not look.
    fn pass_credit_on(&self) {
        if self.awaited_credit.borrow().is_empty() {
            return;
        }
        // Taken out, since wakers run code that may come back here.
        let mut awaited = std::mem::take(&mut *self.awaited_credit.borrow_mut());
        awaited.retain(Awaited::pass_on);
        self.awaited_credit.borrow_mut().append(&mut awaited);
    }

    // ---- nurseries ----

    pub(crate) fn open_nursery(&self) -> NurseryKey {
        let key = self.shared.next_nursery();
        self.nurseries
            .borrow_mut()
            .insert(key, NurseryRecord::default());
        key
    }

    /// How many nurseries have been opened and not closed.
    #[cfg(test)]
    pub(crate) fn nurseries_open(&self) -> usize {
        self.nurseries.borrow().len()
    }

    /// The news of this nursery's children; its waker is kept for more.
    pub(crate) fn nursery_news(&self, key: NurseryKey, waker: &Waker) -> Vec<Departed> {
        let mut nurseries = self.nurseries.borrow_mut();
        let record = nurseries.entry(key).or_default();
        match &mut record.waker {
            Some(old) => old.clone_from(waker),
            None => record.waker = Some(waker.clone()),
        }
        std::mem::take(&mut record.departed)
    }

    /// Ends a nursery; its children, if it has any left, are cancelled and handed to the isolate.
    pub(crate) fn close_nursery(&self, key: NurseryKey) {
        self.nurseries.borrow_mut().remove(&key);
        let mut family = self.shared.family.lock();
        let children = family.keys_of(key);
        if children.is_empty() {
            return;
        }
        let by = Canceller::Dropped(self.shared.life.origin());
        for child in children {
            family.cancel(child, &Cancel { by: by.clone() }, self.order.get());
        }
        family.adopt_nursery(key);
    }

    /// The deadlines of the isolate's own cancellation, which bound those of its children.
    pub(crate) fn above(&self) -> Above {
        self.order.get()
    }

    fn child_changed(&self, key: crate::family::Key) {
        let (leaving, nursery) = {
            let mut family = self.shared.family.lock();
            let nursery = family.member(key).map(|member| member.nursery);
            (family.collect(key), nursery)
        };
        let Some(leaving) = leaving else {
            // It is at rest, which only a nursery that ends wants to know.
            let nurseries = self.nurseries.borrow();
            let waker = nursery
                .and_then(|key| nurseries.get(&key))
                .and_then(|record| record.waker.clone());
            drop(nurseries);
            if let Some(waker) = waker {
                waker.wake();
            }
            return;
        };
        let departed = leaving.join();
        crate::log::debug!(isolate = %departed.origin, exit = %departed.exit, "isolate ended");
        if self.order.get().is_some() || departed.nursery == ADOPTED {
            let mut left = self.left.borrow_mut();
            left.extend(departed.left.iter().cloned());
            if departed.was_forced() {
                left.extend(departed.failure());
            }
        }
        let mut nurseries = self.nurseries.borrow_mut();
        match nurseries.get_mut(&departed.nursery) {
            Some(record) => {
                record.departed.push(departed);
                let waker = record.waker.clone();
                drop(nurseries);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            None => {
                if let Some(failure) = departed.failure() {
                    crate::log::warn!(isolate = %departed.origin, %failure, "a child failed whose nursery had been dropped");
                }
            }
        }
    }

    // ---- coming down ----

    /// Accepts nothing more and ends when all that was accepted is done.
    pub(crate) fn close(&self) {
        if self.phase.get() == Phase::Running {
            crate::fault::point("S7", self.shared.life.identity().name());
            self.phase.set(Phase::Closing);
            // What is left is to be seen once more: dialogues, by which it waits for others.
            self.end_rest();
        }
    }

    // ---- rest ----

    /// A dialogue is served, until the result is dropped.
    pub(crate) fn serve_dialogue(self: &Rc<Local>) -> ServedDialogue {
        self.dialogues.set(self.dialogues.get() + 1);
        ServedDialogue(self.clone())
    }

    /// Something begins. Said before it is taken out of the mailbox.
    fn end_rest(&self) {
        if self.rested.replace(false) {
            self.shared.rest.end();
            if let Some(asked) = &mut *self.rest_asked.borrow_mut() {
                asked.flush = None;
            }
        }
    }

    /// Whether all that was accepted is done, but for what the mailbox has.
    fn is_at_rest(&self) -> bool {
        self.active.get() == self.dialogues.get()
            && self.mail.borrow().is_empty()
            && self.state_jobs.borrow().is_empty()
            // That has been told, and does what it wants to do at its end.
            && !(self.blocking_main.get() && self.phase.get() == Phase::Closing)
    }

    /// Says that it is at rest, if it is, before it sleeps.
    fn note_rest(&self) {
        if !self.rested.get() {
            if !self.is_at_rest() {
                return;
            }
            self.rested.set(true);
            if self.shared.rest.begin()
                && let Some(upward) = &self.shared.upward
            {
                upward.nudge();
            }
        }
        if self.rest_asked.borrow().is_some() {
            self.answer_rest();
        }
    }

    /// The owner of this process wants to know when it is at rest.
    pub(crate) fn ask_rest(&self, correlation: u64) {
        *self.rest_asked.borrow_mut() = Some(RestAsked {
            correlation,
            flush: None,
        });
    }

    /// Answers the owner, once what was sent has come where it is to go.
    #[cold]
    fn answer_rest(&self) {
        let mut asked = self.rest_asked.borrow_mut();
        let Some(RestAsked { correlation, flush }) = &mut *asked else {
            return;
        };
        if !self.shared.inbox.is_empty() {
            return;
        }
        let porter = self.shared.runtime.existing_porter();
        let flushed = match (&flush, porter) {
            (Some(flush), _) => flush.is_over(),
            (None, None) => true,
            (None, Some(porter)) => {
                *flush = Some(porter.flush(&self.shared));
                return;
            }
        };
        let correlation = *correlation;
        if flushed && let Some(uplink) = self.uplink.get() {
            *asked = None;
            uplink.say_resting(correlation, self.shared.rest.word());
        }
    }

    /// Ends this isolate by its own failure. The first failure counts.
    pub(crate) fn fail(&self, exit: Exit) {
        let first = {
            let mut failed = self.failed.borrow_mut();
            let first = failed.is_none();
            failed.get_or_insert(exit.clone());
            first
        };
        if first {
            self.shared.life.announce(exit);
        }
        let bounds = self.shared.bounds;
        let now = clock::now();
        if self.order.get().is_none() {
            let hard = now + nanos(bounds.hard_kill);
            self.order.set(Some(Deadlines {
                grace: now + nanos(bounds.grace),
                hard,
                last: hard,
            }));
        }
        let by = Canceller::Nursery(self.shared.life.origin());
        self.come_down(Cancel { by }, Phase::Dropping);
        self.drop_wanted.set(true);
    }

    /// Begins or hastens its own cancellation.
    pub(crate) fn cancel(&self, order: CancelOrder) {
        let deadlines = Deadlines::of(&order);
        let cancel = order.cancel;
        let deadlines = match self.order.get() {
            Some(old) => old.or_before(deadlines),
            None => deadlines,
        };
        self.order.set(Some(deadlines));
        self.root_scope.set_grace(deadlines.grace);
        self.shared.life.cancel(cancel.clone());
        self.shared.life.acknowledge();
        if let Some(uplink) = self.uplink.get() {
            uplink.acknowledge();
        }
        let phase = if self.phase.get() == Phase::Dropping {
            Phase::Dropping
        } else {
            Phase::Cancelling
        };
        self.come_down(cancel, phase);
    }

    fn come_down(&self, cancel: Cancel, phase: Phase) {
        if self.phase.get() == Phase::Running {
            crate::fault::point("S7", self.shared.life.identity().name());
        }
        self.phase.set(phase);
        self.shared.set_waiting(Wait::Cancellation);
        let below = passed_on(self.shared.life.origin(), &cancel);
        {
            let mut family = self.shared.family.lock();
            for key in family.keys() {
                family.cancel(key, &below, self.order.get());
            }
        }
        self.root_scope.cancel(cancel);
        // What had not begun is answered at once.
        let jobs = std::mem::take(&mut *self.state_jobs.borrow_mut());
        self.drop_each(jobs);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    fn take_control(&self) -> bool {
        !self.shared.control.is_empty() && self.obey()
    }

    #[inline(never)]
    fn obey(&self) -> bool {
        let mut any = false;
        for control in self.shared.control.take_all() {
            any = true;
            match control {
                Control::Cancel(order) => self.cancel(order),
                Control::Close => self.close(),
                Control::Child(key) => self.child_changed(key),
                Control::Look => {}
            }
        }
        any
    }

    #[inline(never)]
    fn look_after_family(&self, now: u64) {
        let advanced = {
            let mut family = self.shared.family.lock();
            if family.next_due().is_none_or(|at| at > now) {
                return;
            }
            family.advance(&self.shared, now)
        };
        for key in advanced.settle() {
            self.child_changed(key);
        }
    }

    /// True when nothing is left to do and nothing more can come.
    fn is_over(self: &Rc<Local>) -> bool {
        if self.phase.get() == Phase::Running || self.blocking_main.get() {
            return false;
        }
        let idle = !self.has_tasks()
            && self.mail.borrow().is_empty()
            && self.state_jobs.borrow().is_empty()
            && self.shared.inbox.is_empty();
        if !idle {
            return false;
        }
        let mut family = self.shared.family.lock();
        if !family.is_empty() {
            // Those of a nursery that was leaked are not cancelled yet, and nobody else will do it.
            let by = Canceller::Dropped(self.shared.life.origin());
            for key in family.keys_at_liberty() {
                family.cancel(key, &Cancel { by: by.clone() }, self.order.get());
            }
            self.shared.set_waiting(Wait::Children);
            return false;
        }
        // From here on senders get their message back. What came in between is still done.
        let last = self.shared.inbox.close().map(Message::Mail);
        self.mail.borrow_mut().extend(last);
        let over = self.mail.borrow().is_empty();
        if over {
            family.close_down();
        }
        over
    }

    // ---- the loop ----

    /// One turn. False if there was nothing to do.
    fn turn(self: &Rc<Local>, now: u64) -> bool {
        let mut any = self.take_control();
        self.look_after_family(now);
        if let Some(deadlines) = self.order.get()
            && self.phase.get() == Phase::Cancelling
            && now >= deadlines.grace
        {
            self.phase.set(Phase::Dropping);
            self.drop_wanted.set(true);
        }
        if let Some(uplink) = self.uplink.get() {
            any |= uplink.pump(self);
        }
        // A task that runs this loop because it waits on a blocking isolate cannot be dropped under
        // its own feet. What it waits for fails, and its turn comes when it has returned.
        if self.drop_wanted.get() && self.running.get() == 0 {
            self.drop_tasks();
            any = true;
        }
        any |= self.take_mail();
        any |= self.run_tasks();
        any |= self.fire_timers(now);
        any
    }

    /// Whether another turn would find nothing, as far as that is seen without one: of a link to the owner it is not.
    fn is_quiet(&self) -> bool {
        self.uplink.get().is_none()
            && !self.drop_wanted.get()
            && self.queue.borrow().is_empty()
            && self.mail.borrow().is_empty()
            && self.shared.woken.is_empty()
            && self.shared.inbox.is_empty()
            && self.shared.control.is_empty()
    }

    fn next_deadline(&self) -> Option<u64> {
        let timer = self
            .timers
            .borrow()
            .first_key_value()
            .map(|(&(at, _), _)| at);
        let family = self.shared.family.lock().next_due();
        let grace = match (self.phase.get(), self.order.get()) {
            (Phase::Cancelling, Some(deadlines)) => Some(deadlines.grace),
            _ => None,
        };
        [timer, family, grace].into_iter().flatten().min()
    }

    /// Sleeps until there may be something to do; not at all if `busy`.
    fn sleep(&self, busy: bool) {
        // The program's code has run, which may have forked.
        if !self.shared.runtime.original.is_here() {
            end_copy(&self.shared);
        }
        // A task may have been woken here since the turn, by what a blocking wait polls.
        if busy || !self.queue.borrow().is_empty() {
            self.look_on();
            return;
        }
        let deadline = self.next_deadline();
        let left = |deadline: u64| Duration::from_nanos(deadline.saturating_sub(clock::now()));
        if let Some(uplink) = self.uplink.get() {
            uplink.before_sleep();
        }
        if !self.settled.replace(true) {
            self.shared.runtime.reserve.refill();
        }
        self.pay();
        self.pass_credit_on();
        // One of its own may have been woken by that.
        if !self.queue.borrow().is_empty() {
            return;
        }
        self.note_rest();
        self.shared.set_idle();
        if let Some(process) = self.borrow_link() {
            self.sleep_on(&process, deadline);
            return;
        }
        // What comes meanwhile is consumed by the parker, which then does not let it sleep.
        if let Some(uplink) = self.uplink.get() {
            uplink.stay_awake();
        }
        self.shared.runtime.spin.wait(|| self.has_come(), deadline);
        match self.reactor.get() {
            Some(reactor) => {
                let asleep = self.uplink_sleeps() && self.shared.parker.prepare(Sleep::Poll);
                let timeout = match asleep {
                    true => deadline.map(left),
                    false => Some(Duration::ZERO),
                };
                reactor.wait(timeout);
                if asleep {
                    self.shared.parker.finish();
                }
            }
            None => {
                if self.shared.parker.prepare(Sleep::Futex) {
                    futex::wait(
                        self.shared.parker.word(),
                        Parker::ASLEEP,
                        deadline.map(left),
                    );
                    self.shared.parker.finish();
                }
            }
        }
    }

    /// Between two turns of which the next may have something to do.
    fn look_on(&self) {
        // A turn with something to do comes between any two answers of a link, but not two in a row.
        self.busy_turns.set(self.busy_turns.get() + 1);
        if self.busy_turns.get() > 1 {
            let id = self.shared.life.identity().id;
            if let Some(process) = self.borrowed.take() {
                process.return_link(id, true);
            }
            // After the first it has just looked, and what it does because of that needs no second look at once.
            if let Some(reactor) = self.reactor.get() {
                self.shared.set_idle();
                reactor.wait(Some(Duration::ZERO));
            }
        }
    }

    // ---- the links to processes ----

    /// This isolate waits for an answer of that process.
    pub(crate) fn await_answer(&self, process: &Weak<Process>, correlation: u64) {
        let mut awaited = self.awaited.borrow_mut();
        match &mut *awaited {
            Some((known, number)) if known.ptr_eq(process) => *number = correlation,
            awaited => *awaited = Some((process.clone(), correlation)),
        }
    }

    /// This isolate waits for that process to be ready.
    pub(crate) fn await_start(&self, process: &Arc<Process>) {
        self.await_answer(&Arc::downgrade(process), Link::START);
    }

    /// The process on whose link this isolate is to sleep, if it is to sleep on one; see `process::inlet`.
    fn borrow_link(&self) -> Option<Arc<Process>> {
        let id = self.shared.life.identity().id;
        let borrowed = self.borrowed.take();
        self.busy_turns.set(0);
        let awaited = self
            .awaited
            .borrow()
            .as_ref()
            .and_then(|(process, number)| {
                let process = process.upgrade()?;
                let starts = *number == Link::START;
                let awaited = match starts {
                    true => process.is_starting(),
                    false => process.link.is_awaited(*number),
                };
                awaited.then_some((process, starts))
            });
        if let Some(process) = &borrowed
            && awaited
                .as_ref()
                .is_none_or(|(one, _)| !Arc::ptr_eq(one, process))
        {
            process.return_link(id, false);
        }
        let (process, starts) = awaited?;
        if self.reactor.get().is_none() && self.shared.poll_waker.get().is_none() {
            if starts {
                // Whoever only spawns needs no descriptor of its own.
                return None;
            }
            // Without a descriptor to be woken by, it sleeps as if there were no link.
            let event = EventFd::new().ok()?;
            let set = self.shared.poll_waker.set(PollWaker::Event(event));
            debug_assert!(set.is_ok(), "an isolate has one poll");
        }
        if !process.lend_link(id) {
            return None;
        }
        *self.borrowed.borrow_mut() = Some(process.clone());
        Some(process)
    }

    /// Gives back what it has borrowed, if it has.
    fn return_borrowed(&self) {
        if let Some(process) = self.borrowed.take() {
            process.return_link(self.shared.life.identity().id, false);
        }
    }

    /// Whether there is something to do, as far as that is seen without a system call.
    fn has_come(&self) -> bool {
        self.shared.parker.is_notified() || self.uplink.get().is_some_and(Uplink::has_more)
    }

    /// Says to the owner of this process that its link's reader sleeps. False if there is something to be read.
    fn uplink_sleeps(&self) -> bool {
        self.uplink.get().is_none_or(Uplink::may_sleep)
    }

    /// Sleeps until bytes of this process have come, or there may be something else to do.
    fn sleep_on(&self, process: &Arc<Process>, deadline: Option<u64>) {
        if process.link.has_ring() {
            let there = || process.link.has_more() || self.has_come();
            self.shared.runtime.spin.wait(there, deadline);
            if process.link.has_more() {
                process.read_link(self.shared.life.identity().id);
                return;
            }
        }
        if !self.uplink_sleeps() {
            return;
        }
        if !process.link.may_sleep() {
            process.read_link(self.shared.life.identity().id);
            return;
        }
        if !self.shared.parker.prepare(Sleep::Poll) {
            return;
        }
        let link = process.link.fd();
        let timeout = deadline.map(|at| Duration::from_nanos(at.saturating_sub(clock::now())));
        let woken = match (self.reactor.get(), self.shared.poll_waker.get()) {
            (Some(reactor), _) => poll::wait_either(link.as_raw_fd(), reactor.fd(), timeout),
            (None, Some(PollWaker::Event(event))) => {
                poll::wait_either(link.as_raw_fd(), event.as_fd().as_raw_fd(), timeout)
            }
            // Never: one of them was made before.
            (None, _) => Ok([false, false]),
        };
        self.shared.parker.finish();
        let [link, other] = woken.unwrap_or_else(|error| {
            crate::log::error!(%error, "cannot wait for a link");
            [true, true]
        });
        if link {
            process.link.rung();
            process.read_link(self.shared.life.identity().id);
        }
        if other {
            match (self.reactor.get(), self.shared.poll_waker.get()) {
                (Some(reactor), _) => reactor.wait(Some(Duration::ZERO)),
                (None, Some(PollWaker::Event(event))) => drop(event.drain()),
                (None, _) => {}
            }
        }
    }

    /// Runs until the isolate is over. Returns how it ended, and what had to be forced below it.
    pub(crate) fn run(self: &Rc<Local>) -> (Exit, Vec<Error>) {
        // Abandoned, and come back: what is left is to end without touching anything.
        while !self.shared.is_cut_off() && !self.is_over() {
            let now = clock::now();
            self.shared.begin_turn(now);
            let busy = self.turn(now) && !self.is_quiet();
            if !busy && self.is_over() {
                break;
            }
            if !busy && self.phase.get() == Phase::Running {
                self.shared.set_waiting(Wait::Messages);
            }
            self.sleep(busy);
        }
        self.wind_up()
    }

    /// What is left to do when nothing is left to do.
    #[inline(never)]
    fn wind_up(self: &Rc<Local>) -> (Exit, Vec<Error>) {
        self.return_borrowed();
        self.drop_tasks();
        let state = self.state.borrow_mut().take();
        self.caught(|| drop(state));
        self.pay();
        let exit = match (
            self.failed.borrow_mut().take(),
            self.shared.life.cancelled(),
        ) {
            (Some(exit), _) => exit,
            (None, Some(cancel)) if self.order.get().is_some() => Exit::Cancelled(cancel.clone()),
            (None, _) => Exit::Completed,
        };
        (exit, std::mem::take(&mut *self.left.borrow_mut()))
    }

    /// Runs a blocking main function, then the rest of the isolate's life.
    pub(crate) fn run_blocking(
        self: &Rc<Local>,
        main: fn(&mut Inbox) -> crate::Result<()>,
    ) -> (Exit, Vec<Error>) {
        self.blocking_main.set(true);
        self.gate.set(0);
        let mut inbox = Inbox::new(self.clone());
        self.begin_main_turn();
        let result = self
            .root_scope
            .enter(|| std::panic::catch_unwind(AssertUnwindSafe(|| main(&mut inbox))));
        self.end_main_turn();
        self.blocking_main.set(false);
        match result {
            Err(payload) => self.fail(Exit::Panicked(panics::take(payload))),
            Ok(Err(error)) if error.is_cancelled() && self.order.get().is_some() => {}
            Ok(Err(error)) => self.fail(Exit::Failed(error)),
            // What it has not received is refused: it is the main function that says when it is over.
            Ok(Ok(())) => {
                self.phase.set(Phase::Dropping);
                self.drop_wanted.set(true);
            }
        }
        self.run()
    }

    /// Runs the loop on behalf of a blocking main function until `done` says so.
    pub(crate) fn run_until<T>(self: &Rc<Local>, mut done: impl FnMut() -> Option<T>) -> T {
        loop {
            if let Some(value) = done() {
                return value;
            }
            let busy = self.turn(clock::now());
            if let Some(value) = done() {
                return value;
            }
            self.sleep(busy);
        }
    }

    /// True while a blocking main function runs.
    pub(crate) fn is_blocking(&self) -> bool {
        self.blocking_main.get()
    }

    /// Lets one message begin that a blocking isolate receives; false once none can come any more.
    pub(crate) fn open_gate(&self) {
        self.gate.set(1);
        self.end_main_turn();
    }

    /// Shuts it again; true if a message went through.
    pub(crate) fn shut_gate(&self) -> bool {
        self.begin_main_turn();
        self.gate.replace(0) == 0
    }

    /// True while a message that a blocking isolate received has not ended.
    pub(crate) fn has_work(&self) -> bool {
        self.has_tasks() || !self.state_jobs.borrow().is_empty()
    }

    /// True if a message went through the gate.
    pub(crate) fn gate_used(&self) -> bool {
        self.gate.get() == 0
    }

    /// Runs `f` on the state, if it has that type and no method is running on it.
    pub(crate) fn with_state<S: 'static, R>(&self, f: impl FnOnce(&mut S) -> R) -> Option<R> {
        let mut state = self.state.borrow_mut();
        state
            .as_mut()
            .and_then(|state| state.downcast_mut::<S>())
            .map(f)
    }

    /// True if no message is left and none can come any more.
    pub(crate) fn is_drained(&self) -> bool {
        self.phase.get() >= Phase::Closing && self.mail.borrow().is_empty() && {
            let last = self.shared.inbox.close().map(Message::Mail);
            self.mail.borrow_mut().extend(last);
            self.mail.borrow().is_empty()
        }
    }
}

/// A loop that was copied by `fork` would take what is sent to the original.
#[cold]
fn end_copy(shared: &Shared) -> ! {
    let (pid, isolate) = (process::id(), shared.life.origin());
    offshoot_sys::note!(
        "process {pid} is a copy, by `fork`, of the one that runs isolate `{isolate}`, and came back into its event loop: \
         it ends here. A copy has to leave by `exec` or `_exit`."
    );
    fork::exit_at_once(fork::EXIT_COPY)
}
