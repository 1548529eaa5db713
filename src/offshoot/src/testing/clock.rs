//! A clock that a test moves: what timers of thread isolates go by instead of the machine's.
//!
//! The timers of all isolates of a tree lie here, as wakers. One thread, the driver, moves the time on to the next of them, and only while
//! nothing in the tree has anything else to do; so whatever a timer sets off has come to its end before the next one is due, and a test's
//! outcome does not depend on how fast the machine is. What counts as having nothing to do is `is_quiet`.

use crate::isolate::local::Local;
use crate::isolate::shared::Shared;
use crate::runtime::Runtime;
use crate::time::{nanos, off_isolate, sleep_on};
use crate::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the driver looks whether the tree has come to rest: there is no event for that.
const LOOK: Duration = Duration::from_micros(50);

/// How long nothing may have happened where something can come from outside of all isolates, by a socket say, before the time goes on.
const OUTSIDE: Duration = Duration::from_millis(5);

/// When a timer is due, by the virtual clock (ns); of those of one time, whoever moves the clock is woken last; then a number of its own.
pub(crate) type Key = (u64, bool, u64);

/// A clock by which the timers of a tree's thread isolates go, see [`Builder::clock`](crate::Builder::clock).
///
/// [`sleep`](crate::sleep), [`timeout`](crate::timeout), [`move_on_after`](crate::move_on_after), [`fail_after`](crate::fail_after), the bound of a
/// [`shield`](crate::shield) and [`Inbox::serve_timeout`](crate::Inbox::serve_timeout) go by it. The time of a [`manual`](Clock::manual) clock stands still
/// until the test [advances](Clock::advance) it; that of an [`auto`](Clock::auto) one jumps to the next timer whenever the tree would only wait for one.
/// Either way it moves on only when every isolate has nothing else to do: none runs, none has a message, none is being started or coming to its end, and no
/// closure of [`unblock`](crate::unblock) runs. Where sockets are waited for, nothing must have happened for 5 ms of real time.
///
/// What keeps to the machine's clock: everything by which the runtime itself is bounded (grace, force, the start of an isolate, the time limit of
/// [`within`](super::within)), `std::thread::sleep`, and process isolates, whose timers take their real time. While a process isolate is being started or owes an
/// answer to a call of a thread isolate, the time stands still: a time-out around such a call does not pass before the answer.
///
/// # Examples
/// ```
/// use offshoot::prelude::*;
/// use offshoot::testing::{self, Clock};
/// use std::time::Duration;
///
/// let clock = Clock::auto();
/// let tree = offshoot::Builder::new().isolation(offshoot::Isolation::Thread).clock(&clock);
/// testing::within_of(tree, Duration::from_secs(20), async || {
///     // An hour, at once.
///     offshoot::sleep(Duration::from_secs(3600)).await
/// })?;
/// assert_eq!(clock.elapsed(), Duration::from_secs(3600));
/// # Ok::<(), offshoot::Error>(())
/// ```
#[derive(Clone)]
pub struct Clock {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    auto: bool,
    /// The time (ns). Written under the lock of `state` only.
    now: AtomicU64,
    state: Mutex<State>,
    /// There may be something to do for the driver.
    news: Condvar,
}

#[derive(Default)]
struct State {
    timers: BTreeMap<Key, Waker>,
    next: u64,
    trees: Vec<Weak<Runtime>>,
    driver: Option<JoinHandle<()>>,
}

impl Clock {
    /// A clock that stands still until it is advanced.
    pub fn manual() -> Clock {
        Clock::new(false)
    }

    /// A clock that jumps to the next timer whenever there is nothing else to do.
    pub fn auto() -> Clock {
        Clock::new(true)
    }

    fn new(auto: bool) -> Clock {
        Clock {
            inner: Arc::new(Inner {
                auto,
                now: AtomicU64::new(0),
                state: Mutex::default(),
                news: Condvar::new(),
            }),
        }
    }

    /// How much time has passed by this clock since it was made.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.inner.now())
    }

    /// Moves the time on by so much, timer by timer, and returns when all that they set off has come to rest. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; misuse on an isolate whose tree does not go by this clock.
    ///
    /// # Cancellation
    /// If the future is dropped, the time stays where it has come to.
    pub async fn advance(&self, by: Duration) -> Result<()> {
        let local = Local::try_current().ok_or_else(|| off_isolate("Clock::advance"))?;
        let own = local.shared.runtime.clock.get();
        if !own.is_some_and(|own| Arc::ptr_eq(own, &self.inner)) {
            let message =
                "the tree of this isolate does not go by this clock: give it to `Builder::clock`";
            return Err(Error::new(ErrorKind::Misuse, message));
        }
        let at = self.inner.now().saturating_add(nanos(by));
        sleep_on(&self.inner, at, true).await
    }

    /// As [`advance`](Clock::advance), from a thread that is no isolate's, such as the test's own.
    ///
    /// # Blocking
    /// Until the tree has come to rest.
    ///
    /// # Errors
    /// Misuse on an isolate, which would wait for itself; an error if no tree goes by this clock, or they all end meanwhile.
    pub fn advance_blocking(&self, by: Duration) -> Result<()> {
        struct Tell(Mutex<Option<std::sync::mpsc::Sender<()>>>);
        impl Wake for Tell {
            fn wake(self: Arc<Self>) {
                if let Some(told) = self.0.lock().take() {
                    let _ = told.send(());
                }
            }
        }
        if Local::try_current().is_some() {
            let message = "`advance_blocking` on an isolate waits for itself: use `advance`";
            return Err(Error::new(ErrorKind::Misuse, message));
        }
        let (told, tell) = channel();
        {
            let mut state = self.inner.state.lock();
            if state.trees.is_empty() {
                return Err(Error::other("no tree goes by this clock"));
            }
            let at = self.inner.now().saturating_add(nanos(by));
            let waker = Waker::from(Arc::new(Tell(Mutex::new(Some(told)))));
            state.add(at, true, waker);
        }
        self.inner.news.notify_all();
        tell.recv()
            .map_err(|_| Error::other("the tree ended while its clock was advanced"))
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock")
            .field("elapsed", &self.elapsed())
            .field("auto", &self.inner.auto)
            .finish()
    }
}

impl State {
    fn add(&mut self, at: u64, last: bool, waker: Waker) -> Key {
        self.next += 1;
        let key = (at, last, self.next);
        self.timers.insert(key, waker);
        key
    }
}

impl Inner {
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// Has `waker` woken when the time has come.
    pub(crate) fn add(&self, at: u64, last: bool, waker: Waker) -> Key {
        let key = self.state.lock().add(at, last, waker);
        self.news.notify_all();
        key
    }

    /// Has another waker woken. One that was woken already is left alone.
    pub(crate) fn set(&self, key: Key, waker: &Waker) {
        if let Some(old) = self.state.lock().timers.get_mut(&key) {
            old.clone_from(waker);
        }
    }

    /// Whether this timer has not been woken yet.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.state.lock().timers.contains_key(&key)
    }

    pub(crate) fn remove(&self, key: Key) {
        let waker = self.state.lock().timers.remove(&key);
        // Outside of the lock: it may be the last of a task.
        drop(waker);
    }

    /// Has `isolate`'s loop look again when the time has come.
    pub(crate) fn add_isolate(&self, at: u64, isolate: &Arc<Shared>) -> Key {
        struct Look(Arc<Shared>);
        impl Wake for Look {
            fn wake(self: Arc<Self>) {
                self.0.wake();
            }
        }
        self.add(at, false, Waker::from(Arc::new(Look(isolate.clone()))))
    }

    /// Drives a tree's timers from here on.
    fn attach(self: &Arc<Inner>, tree: &Arc<Runtime>) -> Result<()> {
        let mut state = self.state.lock();
        state.trees.push(Arc::downgrade(tree));
        if state.driver.is_none() {
            let this = self.clone();
            let driver = std::thread::Builder::new().name("offshoot-clock".to_owned());
            state.driver = Some(driver.spawn(move || this.drive())?);
        }
        Ok(())
    }

    /// The tree has ended.
    fn detach(&self, tree: &Arc<Runtime>) {
        let (driver, timers) = {
            let mut state = self.state.lock();
            state
                .trees
                .retain(|known| !std::ptr::eq(known.as_ptr(), Arc::as_ptr(tree)));
            if !state.trees.is_empty() {
                return;
            }
            (state.driver.take(), std::mem::take(&mut state.timers))
        };
        self.news.notify_all();
        // Whoever waits for the time is told by that, since nobody moves it any more.
        drop(timers);
        if let Some(driver) = driver {
            let _ = driver.join();
        }
    }

    /// Whether the time may go on: to a timer, and if the clock is a manual one, no further than to where somebody moves it, who is the last
    /// timer of that time and taken out with it.
    fn may_step(&self, state: &State) -> bool {
        match self.auto {
            true => !state.timers.is_empty(),
            false => state.timers.keys().any(|(_, last, _)| *last),
        }
    }

    fn drive(&self) {
        let mut rest = Rest::default();
        loop {
            let trees: Vec<Arc<Runtime>> = {
                let mut state = self.state.lock();
                loop {
                    if state.trees.is_empty() {
                        return;
                    }
                    if self.may_step(&state) {
                        break;
                    }
                    self.news.wait(&mut state);
                }
                state.trees.iter().filter_map(Weak::upgrade).collect()
            };
            if rest.has_come(&trees) {
                self.step();
                rest = Rest::default();
            } else {
                drop(trees);
                std::thread::sleep(LOOK);
            }
        }
    }

    /// Moves the time to the next timer and wakes all that are due then.
    fn step(&self) {
        let due: Vec<Waker> = {
            let mut state = self.state.lock();
            let Some((&(at, last, _), _)) = state.timers.first_key_value() else {
                return;
            };
            if !self.may_step(&state) {
                return;
            }
            self.now.store(at.max(self.now()), Ordering::Release);
            let later = state.timers.split_off(&(at, last, u64::MAX));
            std::mem::replace(&mut state.timers, later)
                .into_values()
                .collect()
        };
        due.into_iter().for_each(Waker::wake);
    }
}

/// What was seen of the trees at the last look.
#[derive(Default)]
struct Rest {
    turns: Option<Vec<u64>>,
    since: Option<Instant>,
}

impl Rest {
    /// Whether all isolates of these trees have come to rest.
    ///
    /// Each has to be asleep twice without a turn between, so that all of them were at once, between the two looks.
    fn has_come(&mut self, trees: &[Arc<Runtime>]) -> bool {
        let mut turns = Vec::new();
        let mut outside = false;
        for tree in trees {
            match tree.rest() {
                None => {
                    *self = Rest::default();
                    return false;
                }
                Some((its, waits)) => {
                    turns.extend(its);
                    outside |= waits;
                }
            }
        }
        if self.turns.as_ref() != Some(&turns) {
            self.turns = Some(turns);
            self.since = Some(Instant::now());
            return false;
        }
        !outside || self.since.is_some_and(|since| since.elapsed() >= OUTSIDE)
    }
}

/// A tree that goes by a clock, until this is dropped.
pub(crate) struct Attached {
    clock: Arc<Inner>,
    tree: Arc<Runtime>,
}

impl Attached {
    /// # Errors
    /// If the driver's thread cannot be started.
    pub(crate) fn new(clock: &Clock, tree: &Arc<Runtime>) -> Result<Attached> {
        let set = tree.clock.set(clock.inner.clone());
        debug_assert!(set.is_ok(), "a tree goes by one clock");
        clock.inner.attach(tree)?;
        Ok(Attached {
            clock: clock.inner.clone(),
            tree: tree.clone(),
        })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.clock.detach(&self.tree);
    }
}
