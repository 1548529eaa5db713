//! The nursery: the scope that owns isolates and tasks, and ends after the last of them.
//!
//! Tasks live inside of the nursery's own future and are polled by nothing else. Leaking that
//! future therefore stops them, and dropping it drops the body first, then the tasks, while the
//! nursery is still there. That is what makes it sound that they borrow from outside; a task on
//! the isolate's run queue would be polled after a `mem::forget` had ended its borrows.
//!
//! This is the one file of the crate, beside the functions as offsets, that contains `unsafe`: one
//! lifetime is erased, because the list of tasks borrows its owner.
#![allow(unsafe_code)]

use crate::dialogue::Held;
use crate::family::{Body, Departed, Key, LastWords, Member, NurseryKey, Status};
use crate::isolate::inbox::serve_all;
use crate::isolate::job::{Outcome, poll_caught};
use crate::isolate::local::Local;
use crate::isolate::panics;
use crate::isolate::shared::{Route, Shared, Target, Wait};
use crate::isolate::thread::{self, Manner, Work};
use crate::life::Life;
use crate::portal::{LocalPortal, Portal, through_serde};
use crate::process::spawn::{Start, spawn_process, wait_before};
use crate::rest::Waves;
use crate::scope::{Scope, ScopeWatch, cancelled_error, passed_on};
use crate::sniff;
use crate::spec::{Isolate, Isolation};
use crate::time::{nanos, off_isolate};
use crate::{Cancel, Canceller, Error, ErrorKind, Exit, Origin, Payload, Result};
use crossbeam::queue::SegQueue;
use offshoot_mailbox::WakerCell;
use offshoot_sys::clock;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// How often one poll of a nursery goes through the tasks that are ready.
const ROUNDS: usize = 8;

/// Opens a nursery, runs `body` in it, and returns when all that was started in it has ended.
///
/// When the body returns `Ok`, the nursery waits for its tasks, then until its isolates are at rest:
/// each has done what it had accepted, and nothing is under way between them. Then it closes them,
/// the last that was spawned first. There is no bound to that, see [`timeout`](crate::timeout). When the body returns an error, a child fails, a task
/// panics or the enclosing scope is cancelled, the rest is cancelled and comes down within its
/// bounds. Either way no code of any child runs when this returns, but for those that the result
/// names as abandoned or unkillable.
///
/// # Errors
/// The failure, or all failures in order of death with the cause first. A cancellation from
/// outside, as a cancelled error.
///
/// # Cancellation
/// A checkpoint. Dropping the future drops the body, then the tasks, then cancels the isolates and
/// leaves them to the isolate on which this runs, which does not end before they have.
///
/// # Panics
/// A panic of the body goes on to the caller; of a task it becomes an error.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # async fn square(n: u64) -> u64 {
/// #     n * n
/// # }
/// # offshoot::run(async || {
/// let total = offshoot::nursery(async |nursery| {
///     let left = nursery.spawn("left").await?;
///     let right = nursery.spawn("right").await?;
///     Ok(left.call(square, 3).await? + right.call(square, 4).await?)
/// })
/// .await?;
/// // Both isolates have ended and were joined.
/// assert_eq!(total, 25);
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn nursery<'env, F, R>(body: F) -> Result<R>
where
    F: for<'scope> AsyncFnOnce(&'scope Nursery<'scope, 'env>) -> Result<R>,
{
    let local = Local::try_current().ok_or_else(|| off_isolate("nursery"))?;
    let above = Scope::current().unwrap_or_else(|| local.root_scope.clone());
    let core = Rc::new(Core {
        key: local.open_nursery(),
        scope: above.child(),
        local,
        tasks: RefCell::default(),
        ready: Arc::default(),
        closed: Cell::new(false),
        failures: RefCell::default(),
        cancelling: Cell::new(false),
        grace: Cell::new(None),
        above: RefCell::default(),
        outside: RefCell::new(None),
        ending: RefCell::default(),
        held: Rc::default(),
    });
    core.scope.hold(core.held.clone());
    // In this order, since locals are dropped last to first: the body, the tasks, the nursery.
    let nursery = Nursery {
        core: core.clone(),
        scope: PhantomData,
        env: PhantomData,
    };
    let _end = End(&core);
    let mut body = pin!(Some(body(&nursery)));
    let mut value = None;
    poll_fn(|cx| core.poll(cx, body.as_mut(), &mut value)).await
}

/// What owns isolates and tasks; see [`nursery`].
pub struct Nursery<'scope, 'env: 'scope> {
    core: Rc<Core>,
    // Both invariant, as in `std::thread::scope`.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl std::fmt::Debug for Nursery<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nursery")
            .field("isolate", &self.core.local.shared.life.origin())
            .finish_non_exhaustive()
    }
}

/// The future of a spawn: a working portal, or what stopped the start. Nothing happens before it
/// is first polled. Dropped in the middle, what was started is taken down.
#[must_use = "nothing is spawned unless it is awaited"]
pub struct Spawning<'a, P>(Pin<Box<dyn Future<Output = Result<P>> + 'a>>);

impl<P> Future for Spawning<'_, P> {
    type Output = Result<P>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<P>> {
        self.0.as_mut().poll(cx)
    }
}

impl<P> std::fmt::Debug for Spawning<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spawning")
    }
}

impl<'scope, 'env> Nursery<'scope, 'env> {
    /// Starts an isolate to be called. A name will do: `nursery.spawn("farm")`.
    ///
    /// # Isolation
    /// As the specification says, else as the tree's default.
    ///
    /// # Errors
    /// What stopped the start ([`Error::is_spawn`]), within the isolate's start bound.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn square(n: u64) -> u64 {
    /// #     n * n
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let process = nursery.spawn(Isolate::named("process").process()).await?;
    ///     assert_eq!(thread.call(square, 3).await?, process.call(square, 3).await?);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn spawn(&'scope self, isolate: impl Into<Isolate>) -> Spawning<'scope, Portal> {
        let isolate = isolate.into().spawned_at(Location::caller());
        Spawning(Box::pin(async move {
            let target = match self.core.isolation(&isolate) {
                Isolation::Process => spawn_process(&self.core, isolate, Start::Serve).await?,
                isolation => {
                    let work = Work::Serve;
                    self.core.spawn_thread(&isolate, work, isolation).await?
                }
            };
            Ok(Portal::new(target))
        }))
    }

    /// Starts an isolate with a state, to be asked. The state is moved to a thread, encoded to a
    /// process.
    ///
    /// # Errors
    /// As of [`spawn`](Nursery::spawn); also when the state cannot be encoded.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # #[derive(Serialize, Deserialize)]
    /// # struct Counter {
    /// #     total: u64,
    /// # }
    /// # impl Counter {
    /// #     fn add(&mut self, by: u64) -> u64 {
    /// #         self.total += by;
    /// #         self.total
    /// #     }
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let counter = nursery.start("counter", Counter { total: 40 }).await?;
    ///     assert_eq!(counter.ask(Counter::add, 2).await?, 42);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn start<S: Payload>(
        &'scope self,
        isolate: impl Into<Isolate>,
        state: S,
    ) -> Spawning<'scope, Portal<S>> {
        let isolate = isolate
            .into()
            .spawned_at(Location::caller())
            .started_with::<S>();
        Spawning(Box::pin(async move {
            let target = match self.core.isolation(&isolate) {
                Isolation::Process => {
                    spawn_process(&self.core, isolate, Start::state(&state)?).await?
                }
                isolation => {
                    let state = through_serde(state, isolation == Isolation::Serde)?;
                    let work = Work::State(Box::new(move || Box::new(state)));
                    self.core.spawn_thread(&isolate, work, isolation).await?
                }
            };
            Ok(Portal::new(target))
        }))
    }

    /// Starts an isolate that is a thread whatever the tree's default is, to which closures that
    /// capture can be given.
    ///
    /// # Errors
    /// As of [`spawn`](Nursery::spawn); misuse if the specification asks for a process.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let local = nursery.spawn_local("local").await?;
    ///     let (sender, receiver) = std::sync::mpsc::channel();
    ///     local.run(async move || sender.send(7)).await?.map_err(Error::other)?;
    ///     assert_eq!(receiver.recv().map_err(Error::other)?, 7);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn spawn_local(&'scope self, isolate: impl Into<Isolate>) -> Spawning<'scope, LocalPortal> {
        let isolate = isolate.into().spawned_at(Location::caller());
        Spawning(Box::pin(async move {
            let target = self.core.spawn_local(&isolate, Work::Serve).await?;
            Ok(LocalPortal::new(target))
        }))
    }

    /// Starts a thread with a state that need not be serde.
    ///
    /// # Errors
    /// As of [`spawn_local`](Nursery::spawn_local).
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     // A function pointer has no serde, and need not have it here.
    ///     let hooks: Vec<fn()> = vec![|| ()];
    ///     let hooks = nursery.start_local("hooks", hooks).await?;
    ///     hooks.with(async |hooks: &mut Vec<fn()>| hooks.iter().for_each(|hook| hook())).await?;
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn start_local<S: Send + 'static>(
        &'scope self,
        isolate: impl Into<Isolate>,
        state: S,
    ) -> Spawning<'scope, LocalPortal<S>> {
        let isolate = isolate
            .into()
            .spawned_at(Location::caller())
            .started_with::<S>();
        Spawning(Box::pin(async move {
            let target = self
                .core
                .spawn_local(&isolate, Work::State(Box::new(move || Box::new(state))))
                .await?;
            Ok(LocalPortal::new(target))
        }))
    }

    /// Starts a task on this isolate. It may borrow from outside of the nursery's body, and runs
    /// only while the nursery is awaited.
    ///
    /// The nursery waits for it. A panic in it is a failure of the nursery, and so is an `Err` that it
    /// returns when its handle was dropped, or is dropped without having been awaited.
    /// [`TaskHandle::detach`] says that it may fail.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// let numbers = vec![1, 2, 3];
    /// offshoot::nursery(async |nursery| {
    ///     let sum = nursery.task(async { numbers.iter().sum::<u64>() });
    ///     let longest = nursery.task(async { numbers.len() });
    ///     assert_eq!((sum.await?, longest.await?), (6, 3));
    ///     Ok(())
    /// })
    /// .await?;
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn task<Fut>(&'scope self, future: Fut) -> TaskHandle<'scope, Fut::Output>
    where
        Fut: Future + 'scope,
    {
        let slot = Rc::new(Slot {
            value: RefCell::new(None),
            waker: RefCell::new(None),
            over: Cell::new(false),
            heard: Cell::new(Heard::Handle),
            core: Rc::downgrade(&self.core),
            place: Location::caller(),
        });
        let filled = SlotGuard(slot.clone());
        let future: Pin<Box<dyn Future<Output = ()> + 'scope>> = Box::pin(async move {
            let value = future.await;
            filled.0.put(value);
        });
        // SAFETY: Only the lifetime bound of the trait object changes. The future is put into
        // `core.tasks`, polled only by `Core::poll`, which only the nursery's own future calls, and
        // dropped by `Core::poll` or by `End`, both of which the nursery's future outlives. `'scope`
        // is a lifetime that the borrow checker lets end only after that future's last use: the
        // body's higher-ranked bound makes it cover every borrow of the nursery, and what the task
        // borrows outlives it. `core` itself may live longer, but `End` has emptied and closed the
        // list by then, and if the nursery's future is leaked instead, nothing polls or drops the
        // list any more: wakers of tasks hold the ready list, not the tasks.
        let future = unsafe {
            std::mem::transmute::<
                Pin<Box<dyn Future<Output = ()> + 'scope>>,
                Pin<Box<dyn Future<Output = ()> + 'static>>,
            >(future)
        };
        self.core.add_task(future);
        TaskHandle {
            slot,
            scope: PhantomData,
        }
    }

    /// Cancels all that was started in this nursery, and the body at its next checkpoint.
    pub fn cancel(&self) {
        let by = Canceller::Isolate(self.core.local.shared.life.origin());
        self.core.cancel(&Cancel { by });
        self.core.ready.parent.wake();
    }
}

/// Where a task leaves its value.
struct Slot<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
    over: Cell<bool>,
    heard: Cell<Heard>,
    core: Weak<Core>,
    /// Where the task was started.
    place: &'static Location<'static>,
}

/// Who gets the value of a task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Its handle.
    Handle,
    /// Nobody. An error is a failure of the nursery.
    Nursery,
    /// Nobody; it may fail.
    Detached,
}

impl<T> Slot<T> {
    fn put(&self, value: T) {
        match self.heard.get() {
            Heard::Handle => *self.value.borrow_mut() = Some(value),
            _ => self.let_go(&value),
        }
    }

    /// Nobody receives this value.
    fn let_go(&self, value: &T) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        let what = format!("the task of {}", self.place);
        let Some(error) = sniff::failure_of(value, &what) else {
            return;
        };
        let isolate = core.local.shared.life.origin();
        let detached = self.heard.get() == Heard::Detached;
        // What the nursery itself did to it is no failure of it.
        if error.is_cancelled() && core.scope.cancelled().is_some() {
            return;
        }
        // Of a value that serde does not know, only its type is: the error may be the cancellation.
        let is_unknown = offshoot_wire::as_plain_result(value).is_none();
        if is_unknown && core.scope.cancelled().is_some() {
            crate::log::debug!(%isolate, task = %self.place, %error, "a task of a cancelled nursery failed");
            return;
        }
        if detached || core.closed.get() || error.is_cancelled() {
            crate::log::warn!(%isolate, task = %self.place, %error, "a task failed, and nobody waits for it");
            return;
        }
        crate::log::error!(%isolate, task = %self.place, %error, "a task failed, and nobody waits for it");
        core.fail(error.leaving(&isolate));
        core.ready.parent.wake();
    }
}

struct SlotGuard<T>(Rc<Slot<T>>);

impl<T> Drop for SlotGuard<T> {
    fn drop(&mut self) {
        self.0.over.set(true);
        let waker = self.0.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A task of a nursery. It runs whether this is kept or not; awaiting it gives its value.
///
/// Dropped before it was awaited, an `Err` of the task is a failure of the nursery, since nobody else
/// can receive it: as if the body had returned it.
///
/// # Errors
/// Awaiting it fails with a cancelled error if the task was dropped or panicked; the panic itself
/// is reported by the nursery.
#[must_use = "an error of the task that nobody takes fails the nursery; `.detach()` says that it may fail"]
pub struct TaskHandle<'scope, T> {
    slot: Rc<Slot<T>>,
    scope: PhantomData<&'scope ()>,
}

impl<T> TaskHandle<'_, T> {
    /// Leaves the task alone: the nursery still waits for it, its value is dropped, and an `Err` is a warning in the log.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     nursery.task(async { Err::<(), _>(Error::other("nobody minds")) }).detach();
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn detach(self) {
        self.slot.heard.set(Heard::Detached);
    }
}

impl<T> Drop for TaskHandle<'_, T> {
    fn drop(&mut self) {
        if self.slot.heard.get() == Heard::Handle {
            self.slot.heard.set(Heard::Nursery);
        }
        let value = self.slot.value.borrow_mut().take();
        if let Some(value) = value {
            self.slot.let_go(&value);
        }
    }
}

impl<T> Future for TaskHandle<'_, T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if let Some(value) = self.slot.value.borrow_mut().take() {
            return Poll::Ready(Ok(value));
        }
        if self.slot.over.get() {
            let by = Canceller::Runtime;
            let by = Local::try_current()
                .map_or(by, |local| Canceller::Nursery(local.shared.life.origin()));
            return Poll::Ready(Err(cancelled_error(Cancel { by })));
        }
        *self.slot.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> std::fmt::Debug for TaskHandle<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskHandle")
            .field("over", &self.slot.over.get())
            .finish()
    }
}

/// The tasks that are to be polled, and the waker of the nursery's future. Owns no task.
#[derive(Default)]
struct Ready {
    queue: SegQueue<usize>,
    parent: WakerCell,
}

struct TaskWaker {
    ready: Arc<Ready>,
    key: usize,
    queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.queue.push(self.key);
            self.ready.parent.wake();
        }
    }
}

struct Task {
    /// Out of its place while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

/// How far a nursery has come that ends because all is done.
#[derive(Default)]
enum Ending {
    #[default]
    Open,
    /// Its children work, and may send each other something.
    Resting(Waves<Key>),
    Closing(Closing),
}

/// The children that are closed, the last that was spawned first, once all of them are at rest.
struct Closing {
    /// Those that are not closed yet, in the order of their spawn.
    open: Vec<Key>,
    /// The one that is to end before the next is closed.
    last: Option<Last>,
    /// Numbers the questions to those that were closed.
    wave: u64,
}

struct Last {
    key: Key,
    /// Its number when it was closed, if it had one.
    word: Option<u64>,
    /// When it is waited for no longer (ns), if that is bounded.
    until: Option<u64>,
    timer: Option<(u64, u64)>,
}

/// When the grace of a cancelled nursery is over, and the timer that is set for it.
type Grace = (u64, Option<(u64, u64)>);

/// The nursery behind its handle.
pub(crate) struct Core {
    pub(crate) local: Rc<Local>,
    pub(crate) key: NurseryKey,
    pub(crate) scope: Rc<Scope>,
    tasks: RefCell<Slab<Task>>,
    ready: Arc<Ready>,
    /// No task and no isolate may be started any more.
    closed: Cell<bool>,
    /// With the time of each (ns), by which they are put in order.
    failures: RefCell<Vec<(u64, Error)>>,
    cancelling: Cell<bool>,
    /// When the body and the tasks are dropped, once it is cancelled, and the timer for it.
    grace: Cell<Option<Grace>>,
    /// Sees the enclosing scope, and what it saw.
    above: RefCell<ScopeWatch>,
    outside: RefCell<Option<Cancel>>,
    ending: RefCell<Ending>,
    /// The dialogues that were opened in it.
    held: Rc<Held>,
}

/// Ends the nursery when its future ends, in whatever way.
struct End<'a>(&'a Rc<Core>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        // Also when the destructor of a task panics: the isolates must not be forgotten.
        let _left = LeaveChildren(self.0);
        self.0.closed.set(true);
        self.0.drop_tasks();
        let by = Canceller::Dropped(self.0.local.shared.life.origin());
        self.0.held.halt(&by);
    }
}

/// Hands the isolates of a nursery that has ended to the isolate on which it was.
struct LeaveChildren<'a>(&'a Core);

impl Drop for LeaveChildren<'_> {
    fn drop(&mut self) {
        if let Some((_, Some(timer))) = self.0.grace.take() {
            self.0.local.remove_timer(timer);
        }
        if let Ending::Closing(mut closing) = self.0.ending.take() {
            closing.forget_last(&self.0.local);
        }
        self.0.local.close_nursery(self.0.key);
    }
}

impl Core {
    fn isolation(&self, isolate: &Isolate) -> Isolation {
        isolate
            .isolation
            .unwrap_or(self.local.shared.runtime.settings.isolation)
    }

    /// Fails if nothing may be started any more.
    pub(crate) fn check_open(&self) -> Result<()> {
        if let Some(cancel) = self.scope.cancelled() {
            return Err(cancelled_error(cancel));
        }
        if self.closed.get() || !matches!(*self.ending.borrow(), Ending::Open) {
            return Err(Error::new(
                ErrorKind::Misuse,
                "nothing can be spawned in a nursery that is ending",
            ));
        }
        Ok(())
    }

    pub(crate) fn origin_of_child(&self, name: &str, pid: i32) -> Origin {
        let shared = &self.local.shared;
        let path = format!("{}/{name}", shared.life.identity().path);
        Origin {
            path,
            id: shared.runtime.next_id(),
            pid,
        }
    }

    async fn spawn_local(&self, isolate: &Isolate, work: Work) -> Result<Arc<Target>> {
        if isolate.isolation == Some(Isolation::Process) {
            let message = format!(
                "isolate `{}` asks for a process, but `spawn_local` and `start_local` make threads: use `spawn` or `start`",
                isolate.name
            );
            return Err(Error::new(ErrorKind::Misuse, message));
        }
        self.spawn_thread(isolate, work, Isolation::Thread).await
    }

    /// Starts a thread; what may pass by itself is tried again.
    async fn spawn_thread(
        &self,
        isolate: &Isolate,
        work: Work,
        isolation: Isolation,
    ) -> Result<Arc<Target>> {
        let mut work = Some(work);
        let error = match self.try_thread(isolate, &mut work, isolation) {
            Ok(target) => return Ok(target),
            Err(error) => error,
        };
        let again = async || {
            let began = clock::now();
            let default = self.local.shared.runtime.settings.bounds;
            let bound = isolate.resolve_bounds(default).start;
            let mut error = error;
            for again in 0.. {
                if work.is_none() {
                    return Err(error);
                }
                wait_before(again, began, bound, error).await?;
                match self.try_thread(isolate, &mut work, isolation) {
                    Ok(target) => return Ok(target),
                    Err(next) => error = next,
                }
            }
            unreachable!("the last try returns")
        };
        // Boxed: its state would make every spawn's larger.
        Box::pin(again()).await
    }

    fn try_thread(
        &self,
        isolate: &Isolate,
        work: &mut Option<Work>,
        isolation: Isolation,
    ) -> Result<Arc<Target>> {
        self.check_open()?;
        isolate.check()?;
        isolate.check_thread()?;
        let owner = &self.local.shared;
        let runtime = &owner.runtime;
        let settings = &runtime.settings;
        let bounds = isolate.resolve_bounds(settings.bounds);
        let origin = self.origin_of_child(&isolate.name, owner.life.pid());
        let life = Arc::new(Life::new(origin).spawned_at(isolate.spawned_at));
        let status = Arc::new(Status::default());
        let limits = (
            isolate.messages.unwrap_or(settings.messages),
            isolate.calls.unwrap_or(settings.calls),
        );
        let mut made = None;
        let key = owner.family.lock().add(owner, |upward| {
            let shared = Shared::new(
                life.clone(),
                runtime.clone(),
                Some(upward.clone()),
                status.clone(),
                bounds,
            );
            let route = Route::Thread(shared.clone());
            let target = Target::new(
                life.clone(),
                runtime.clone(),
                route,
                limits,
                isolation == Isolation::Serde,
            );
            made = Some((shared, target.clone()));
            Member::new(
                self.key,
                target,
                status.clone(),
                upward.clone(),
                bounds,
                Body::Thread(None),
            )
            .with_last_words(isolate.last_words())
        });
        let (Some(key), Some((shared, target))) = (key, made) else {
            return Err(Error::new(
                ErrorKind::Misuse,
                "an isolate that was abandoned cannot spawn",
            ));
        };
        let manner = match (
            isolate.blocking,
            isolate.main.map(crate::descriptor::Descriptor::run),
        ) {
            (true, Some(crate::descriptor::Run::Main(main))) => Manner::Blocking(main),
            (true, _) => Manner::Blocking(serve_all),
            (false, _) => Manner::Loop,
        };
        runtime.reserve.want();
        let Some(to_do) = work.take() else {
            unreachable!("it is given back by a start that fails")
        };
        match thread::start(shared, to_do, manner, isolate.stack) {
            Ok(joiner) => {
                if let Some(member) = owner.family.lock().member(key) {
                    member.body = Body::Thread(Some(joiner));
                }
                Ok(target)
            }
            Err((error, back)) => {
                *work = back;
                owner.family.lock().forget(key);
                Err(error)
            }
        }
    }

    fn add_task(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        if self.closed.get() {
            // A destructor of another task started it, while all of them are dropped.
            drop(future);
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let waker = Arc::new(TaskWaker {
            ready: self.ready.clone(),
            key: entry.key(),
            queued: AtomicBool::new(false),
        });
        entry.insert(Task {
            future: Some(future),
            waker: waker.clone(),
        });
        waker.wake_by_ref();
    }

    fn drop_tasks(&self) {
        loop {
            // Taken out first: the destructors may start or look at tasks.
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            if tasks.is_empty() {
                return;
            }
            for (_, task) in tasks {
                self.drop_caught(task);
            }
        }
    }

    /// Drops what is the program's. A panic of its destructor is a failure of the nursery, or of the isolate where the nursery has ended
    /// and has nobody to tell.
    fn drop_caught<T>(&self, value: T) {
        let Some(panic) = self.scope.enter(|| panics::drop_caught(value)) else {
            return;
        };
        let origin = self.local.shared.life.origin();
        if self.closed.get() {
            crate::log::error!(isolate = %origin, %panic, "a destructor of a task panicked");
            self.local.fail(Exit::Panicked(panic));
            return;
        }
        let message = format!("a destructor in a nursery of isolate `{origin}` panicked: {panic}");
        self.fail(Error::new(ErrorKind::Panicked(panic), message).leaving(&origin));
    }

    /// Drops the body, as [`drop_caught`](Core::drop_caught). It stays where it is meanwhile, as it is pinned.
    fn drop_body<B>(&self, body: Pin<&mut Option<B>>) {
        struct Body<'a, B>(Pin<&'a mut Option<B>>);
        impl<B> Drop for Body<'_, B> {
            fn drop(&mut self) {
                self.0.set(None);
            }
        }
        self.drop_caught(Body(body));
    }

    fn poll_tasks(&self) -> bool {
        let mut any = false;
        // As many as are ready now; those that wake themselves come again after the others.
        for _ in 0..self.ready.queue.len() {
            let Some(key) = self.ready.queue.pop() else {
                break;
            };
            let taken = {
                let mut tasks = self.tasks.borrow_mut();
                tasks.get_mut(key).and_then(|task| {
                    task.waker.queued.store(false, Ordering::Release);
                    task.future
                        .take()
                        .map(|future| (future, task.waker.clone()))
                })
            };
            let Some((mut future, waker)) = taken else {
                continue;
            };
            any = true;
            let waker = Waker::from(waker);
            match poll_caught(
                future.as_mut(),
                &self.scope,
                &mut Context::from_waker(&waker),
            ) {
                Poll::Pending => {
                    if let Some(task) = self.tasks.borrow_mut().get_mut(key) {
                        task.future = Some(future);
                    }
                }
                Poll::Ready(outcome) => {
                    self.tasks.borrow_mut().try_remove(key);
                    self.drop_caught(future);
                    if let Outcome::Panicked(panic) = outcome {
                        let origin = self.local.shared.life.origin();
                        let message = format!("a task of isolate `{origin}` panicked: {panic}");
                        self.fail(Error::new(ErrorKind::Panicked(panic), message).leaving(&origin));
                    }
                }
            }
        }
        any
    }

    /// Records a failure and cancels the rest.
    fn fail(&self, error: Error) {
        self.fail_at(clock::now(), error);
    }

    fn fail_at(&self, at: u64, error: Error) {
        {
            let mut failures = self.failures.borrow_mut();
            // The same failure may be reported by a call and by the exit of its isolate.
            match failures
                .iter_mut()
                .find(|(_, other)| other.id().is_some() && other.id() == error.id())
            {
                Some((since, other)) => {
                    *since = at.min(*since);
                    if error.is_ended() {
                        *other = error;
                    }
                }
                None => failures.push((at, error)),
            }
        }
        let by = Canceller::Nursery(self.local.shared.life.origin());
        self.cancel(&Cancel { by });
    }

    /// Cancels body, tasks and children. The first author counts.
    fn cancel(&self, cancel: &Cancel) {
        if self.cancelling.replace(true) {
            return;
        }
        self.scope.cancel(cancel.clone());
        let now = clock::now();
        let own = now + nanos(self.local.shared.bounds.grace);
        let at = self.local.above().map_or(own, |above| own.min(above.grace));
        self.grace.set(Some((at, None)));
        self.scope.set_grace(at);
        self.cancel_children(cancel);
    }

    fn cancel_children(&self, cancel: &Cancel) {
        let mut family = self.local.shared.family.lock();
        for key in family.keys_of(self.key) {
            family.cancel(key, cancel, self.local.above());
        }
    }

    fn read_news(&self, cx: &mut Context<'_>) -> bool {
        let news: Vec<Departed> = self.local.nursery_news(self.key, cx.waker());
        let any = !news.is_empty();
        for departed in news {
            if let Some(failure) = departed.failure() {
                self.fail_at(departed.at, failure);
            }
            for left in departed.left {
                self.fail_at(departed.at, left);
            }
        }
        any
    }

    fn poll<R, B: Future<Output = Result<R>>>(
        &self,
        cx: &mut Context<'_>,
        mut body: Pin<&mut Option<B>>,
        value: &mut Option<R>,
    ) -> Poll<Result<R>> {
        self.ready.parent.register(cx.waker());
        let mut body_ran = false;
        let mut rounds = 0;
        loop {
            let mut any = self.read_news(cx);
            if let Poll::Ready(cancel) = self.above.borrow_mut().poll(cx)
                && !self.cancelling.get()
            {
                let below = passed_on(self.local.shared.life.origin(), &cancel);
                *self.outside.borrow_mut() = Some(cancel);
                self.cancel(&below);
                any = true;
            }
            self.check_grace(cx, body.as_mut());
            if !body_ran && let Some(running) = body.as_mut().as_pin_mut() {
                body_ran = true;
                if let Poll::Ready(result) = self.scope.enter(|| running.poll(cx)) {
                    self.drop_body(body.as_mut());
                    any = true;
                    match result {
                        Ok(result) => *value = Some(result),
                        // What the nursery itself did to the body is no failure of the body.
                        Err(error) if error.is_cancelled() && self.scope.cancelled().is_some() => {}
                        Err(error) => self.fail(error),
                    }
                }
            }
            any |= self.poll_tasks();
            let idle = is_over(body.as_mut()) && self.tasks.borrow().is_empty();
            if idle {
                let settings = &self.local.shared.runtime.settings;
                let bound = nanos(settings.bounds.hard_kill);
                match self.held.poll_over(cx, &self.local, bound) {
                    Poll::Ready(late) => late.into_iter().for_each(|error| self.fail(error)),
                    Poll::Pending => {
                        self.local.shared.set_waiting(Wait::FarTasks);
                        break;
                    }
                }
                if self.local.shared.family.lock().is_empty_of(self.key) {
                    // News that came with the last child.
                    if self.read_news(cx) {
                        continue;
                    }
                    #[cfg(feature = "fault-points")]
                    crate::ledger::returned(self.local.shared.life.identity(), self.key);
                    return Poll::Ready(self.result(value.take()));
                }
                self.end_children(cx);
                self.local.shared.set_waiting(Wait::Nursery);
            }
            if !any {
                break;
            }
            rounds += 1;
            if rounds == ROUNDS {
                // Tasks that wake themselves must not keep the isolate from its other work, nor
                // from its cancellation.
                cx.waker().wake_by_ref();
                break;
            }
        }
        if !self.ready.queue.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Closes the children, once nothing is left to do for any of them.
    fn end_children(&self, cx: &mut Context<'_>) {
        let mut ending = self.ending.borrow_mut();
        let family = || self.local.shared.family.lock();
        if let Ending::Open = &*ending {
            *ending = Ending::Resting(Waves::default());
        }
        if let Ending::Resting(waves) = &mut *ending {
            // One by itself accepts what it is sent until it has done all. Those of a nursery that was cancelled come down.
            let children = family().keys_of(self.key);
            let rest = children.len() == 1
                || self.cancelling.get()
                || waves.are_at_rest(&children, |key, wave| family().rest(key, wave));
            if !rest {
                return;
            }
            let wave = waves.next();
            *ending = Ending::Closing(Closing {
                open: children,
                last: None,
                wave,
            });
        }
        if let Ending::Closing(closing) = &mut *ending {
            closing.go_on(cx, self);
        }
    }

    /// Drops body and tasks when the grace is over.
    fn check_grace<B>(&self, cx: &mut Context<'_>, mut body: Pin<&mut Option<B>>) {
        let Some((at, timer)) = self.grace.get() else {
            return;
        };
        if is_over(body.as_mut()) && self.tasks.borrow().is_empty() {
            return;
        }
        if clock::now() >= at {
            let cut = self.local.cut_off(|| {
                self.drop_body(body.as_mut());
                self.drop_tasks();
            });
            match self.local.above() {
                // Whoever waits for this nursery may be gone, too.
                Some(_) => self.local.note_left(cut),
                None => cut.into_iter().for_each(|error| self.fail(error)),
            }
            return;
        }
        match timer {
            Some(timer) => self.local.set_timer(timer, cx.waker()),
            None => {
                let timer = self.local.add_timer(at, cx.waker().clone());
                self.grace.set(Some((at, Some(timer))));
            }
        }
    }

    fn result<R>(&self, value: Option<R>) -> Result<R> {
        let mut failures = std::mem::take(&mut *self.failures.borrow_mut());
        // The cause first. They came in the order in which they were told, not of the deaths.
        failures.sort_by_key(|(at, _)| *at);
        let failures = failures.into_iter().map(|(_, error)| error).collect();
        let mut failures = without_repeats(failures);
        // Cancelled from outside: that is the cause, and what had to be forced comes after it.
        let outside = self.outside.borrow_mut().take();
        if failures.is_empty() {
            return match (value, self.scope.cancelled()) {
                (Some(value), _) => Ok(value),
                (None, Some(cancel)) => Err(cancelled_error(outside.unwrap_or(cancel))),
                (None, None) => Err(Error::new(
                    ErrorKind::Misuse,
                    "a nursery's body was dropped",
                )),
            };
        }
        match outside {
            Some(cancel) if failures.iter().all(was_forced) => {
                Err(Error::several(cancelled_error(cancel), failures))
            }
            _ => {
                let cause = failures.remove(0);
                Err(Error::several(cause, failures))
            }
        }
    }
}

impl Closing {
    /// Closes one after the other. Who has something to say at its end is waited for, unless it waits itself: by a dialogue, for one that
    /// is still open.
    fn go_on(&mut self, cx: &mut Context<'_>, core: &Core) {
        let local = &core.local;
        loop {
            if let Some(last) = &mut self.last {
                let family = local.shared.family.lock();
                let waits = family.has(last.key)
                    && !core.cancelling.get()
                    && last.until.is_none_or(|until| clock::now() < until)
                    && !family.waits_for_others(last.key, self.wave, last.word);
                drop(family);
                if waits {
                    match (last.timer, last.until) {
                        (Some(timer), _) => local.set_timer(timer, cx.waker()),
                        (None, Some(until)) => {
                            last.timer = Some(local.add_timer(until, cx.waker().clone()));
                        }
                        (None, None) => {}
                    }
                    return;
                }
                self.forget_last(local);
            }
            let Some(key) = self.open.pop() else { return };
            self.wave += 1;
            let (last_words, word) = local.shared.family.lock().close(key);
            let until = match last_words {
                LastWords::None => continue,
                LastWords::State => None,
                // It may do anything, also wait for one of those.
                LastWords::Main => Some(clock::now() + nanos(local.shared.bounds.grace)),
            };
            if !self.open.is_empty() {
                self.last = Some(Last {
                    key,
                    word,
                    until,
                    timer: None,
                });
            }
        }
    }

    fn forget_last(&mut self, local: &Local) {
        if let Some(Last {
            timer: Some(timer), ..
        }) = self.last.take()
        {
            local.remove_timer(timer);
        }
    }
}

/// True if the body has returned or was dropped.
///
/// Not `Option::is_none`, which makes a shared reference: a future that is suspended may hold unique
/// references into itself, and those a shared one to the whole of it would end.
fn is_over<B>(body: Pin<&mut Option<B>>) -> bool {
    body.as_pin_mut().is_none()
}

/// Drops those that another one contains: what was forced far below is told by the error of a call,
/// and beside the exits.
fn without_repeats(mut failures: Vec<Error>) -> Vec<Error> {
    let contained: HashSet<_> = failures
        .iter()
        .map(Error::failures)
        .filter(|inner| inner.len() > 1)
        .flatten()
        .filter_map(Error::id)
        .collect();
    failures.retain(|error| {
        error.failures().len() > 1 || error.id().is_none_or(|id| !contained.contains(&id))
    });
    failures
}

/// True for what the ladder did to a child that did not come down.
fn was_forced(error: &Error) -> bool {
    use crate::Exit;
    match error.kind() {
        ErrorKind::Cut(_) => true,
        ErrorKind::Ended(exit) => matches!(
            **exit,
            Exit::Abandoned { .. } | Exit::Killed { .. } | Exit::Unkillable { .. }
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
