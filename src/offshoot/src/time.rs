//! Waiting: sleeps, bounds, and the checkpoints at which a cancellation is seen.
//!
//! Everything here works on an isolate only and ends with an error, not a panic, elsewhere.
//! Deadlines are of the monotonic clock, or of a test's ([`crate::testing::Clock`]).

use crate::isolate::local::Local;
use crate::scope::{ScopeWatch, cancelled_error, poll_refusal};
use crate::testing::clock::{Inner as Clock, Key};
use crate::{Cancel, Canceller, Error, ErrorKind, Result};
use offshoot_sys::clock;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub(crate) fn nanos(duration: Duration) -> u64 {
    // A bound of five centuries, far from overflowing when it is added to now.
    u64::try_from(duration.as_nanos())
        .unwrap_or(u64::MAX)
        .min(u64::MAX / 4)
}

pub(crate) fn off_isolate(what: &str) -> Error {
    Error::new(
        ErrorKind::Misuse,
        format!(
            "`{what}` works on an isolate only: inside of `offshoot::run`, a call, a method or a nursery; \
             elsewhere use the blocking twins"
        ),
    )
}

/// Waits for `duration`. A checkpoint.
///
/// # Errors
/// A cancelled error as soon as the enclosing scope is cancelled; misuse outside of an isolate.
///
/// # Cancellation
/// Nothing is lost if the future is dropped.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// use std::time::Duration;
///
/// # offshoot::run(async || {
/// offshoot::sleep(Duration::from_millis(1)).await?;
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub fn sleep(duration: Duration) -> Sleep {
    match virtual_clock() {
        Some(clock) => {
            let at = clock.now().saturating_add(nanos(duration));
            sleep_on(&clock, at, false)
        }
        None => pause(duration),
    }
}

/// The clock of a test by which timers go here, if there is one.
pub(crate) fn virtual_clock() -> Option<Arc<Clock>> {
    Local::try_current()?.shared.runtime.clock.get().cloned()
}

/// As [`sleep`], but always of the machine's clock: for the runtime's own bounds.
pub(crate) fn pause(duration: Duration) -> Sleep {
    sleep_until(clock::now().saturating_add(nanos(duration)))
}

/// Waits until this time of a test's clock; `last` if behind all others of that time.
pub(crate) fn sleep_on(clock: &Arc<Clock>, at: u64, last: bool) -> Sleep {
    Sleep {
        at,
        timer: None,
        clock: Some((clock.clone(), last)),
        watch: ScopeWatch::default(),
    }
}

/// Waits until this time (ns of the monotonic clock).
pub(crate) fn sleep_until(at: u64) -> Sleep {
    Sleep {
        at,
        timer: None,
        clock: None,
        watch: ScopeWatch::default(),
    }
}

/// The future of [`sleep`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct Sleep {
    at: u64,
    timer: Option<Timer>,
    /// Instead of the machine's.
    clock: Option<(Arc<Clock>, bool)>,
    watch: ScopeWatch,
}

enum Timer {
    Isolate(Rc<Local>, (u64, u64)),
    Clock(Arc<Clock>, Key),
}

impl Future for Sleep {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Poll::Ready(cancel) = self.watch.poll(cx) {
            std::task::ready!(poll_refusal(cx));
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        self.poll_elapsed(cx)
    }
}

impl Sleep {
    /// Ready when the time has come, whether the scope is cancelled or not.
    pub(crate) fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let now = match &self.clock {
            None => clock::now(),
            Some((clock, _)) => clock.now(),
        };
        // The last of a time is woken after the others, and not before its turn by being polled.
        let last = matches!(self.clock, Some((_, true)));
        if now > self.at || (now == self.at && !last) || self.has_fired() {
            return Poll::Ready(Ok(()));
        }
        match &self.timer {
            Some(Timer::Isolate(local, key)) => local.set_timer(*key, cx.waker()),
            Some(Timer::Clock(clock, key)) => clock.set(*key, cx.waker()),
            None => {
                let Some(local) = Local::try_current() else {
                    return Poll::Ready(Err(off_isolate("sleep")));
                };
                let waker = cx.waker().clone();
                self.timer = Some(match &self.clock {
                    None => {
                        let key = local.add_timer(self.at, waker);
                        Timer::Isolate(local, key)
                    }
                    Some((clock, last)) => {
                        let key = clock.add(self.at, *last, waker);
                        Timer::Clock(clock.clone(), key)
                    }
                });
            }
        }
        Poll::Pending
    }
}

impl Sleep {
    /// Whether a test's clock has woken it.
    fn has_fired(&self) -> bool {
        matches!(&self.timer, Some(Timer::Clock(clock, key)) if !clock.has(*key))
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        match &self.timer {
            None => {}
            Some(Timer::Isolate(local, key)) => local.remove_timer(*key),
            Some(Timer::Clock(clock, key)) => clock.remove(*key),
        }
    }
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sleep")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// Awaits `future` for no longer than `duration`, then drops it.
///
/// # Errors
/// A timeout error when the bound passed first; see [`Error::is_timeout`].
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # use std::time::Duration;
/// # offshoot::run(async || {
/// let late = offshoot::timeout(Duration::from_millis(5), offshoot::sleep(Duration::from_secs(60))).await;
/// assert!(late.unwrap_err().is_timeout());
/// # Ok(())
/// # }).unwrap();
/// ```
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output> {
    let mut future = pin!(future);
    let mut bound = sleep(duration);
    std::future::poll_fn(|cx| {
        // The future first: a result that is there counts also at the last moment. It sees a
        // cancellation by its own checkpoints.
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        match bound.poll_elapsed(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => Poll::Ready(Err(timed_out("it", duration))),
        }
    })
    .await
}

pub(crate) fn timed_out(what: &str, after: Duration) -> Error {
    let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    Error::new(
        ErrorKind::TimedOut(millis),
        format!("{what} did not end within {after:?}"),
    )
}

/// Lets other tasks of this isolate run, and fails if the enclosing scope is cancelled.
///
/// Put it into long computations, so that the isolate stays responsive and can be cancelled.
///
/// # Errors
/// A cancelled error.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # offshoot::run(async || {
/// for n in 0..1_000_u64 {
///     std::hint::black_box(n * n);
///     if n % 100 == 0 {
///         offshoot::checkpoint().await?;
///     }
/// }
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn checkpoint() -> Result<()> {
    let mut watch = ScopeWatch::default();
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(cancel) = watch.poll(cx) {
            std::task::ready!(poll_refusal(cx));
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Waits until the enclosing scope is cancelled and says by whom.
///
/// Outside of an isolate it never ends.
///
/// # Examples
/// ```
/// use offshoot::prelude::*;
///
/// async fn until_cancelled() -> String {
///     format!("cancelled by {}", offshoot::cancelled().await.by)
/// }
///
/// # offshoot::run(async || {
/// offshoot::nursery(async |nursery| {
///     let waiter = nursery.spawn("waiter").await?;
///     let goodbye = waiter.call(until_cancelled, ());
///     waiter.cancel().await;
///     println!("{:?}", goodbye.await);
///     Ok(())
/// })
/// .await
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn cancelled() -> Cancel {
    let mut watch = ScopeWatch::default();
    std::future::poll_fn(|cx| watch.poll(cx)).await
}

/// The isolate on which this runs.
///
/// # Panics
/// If it runs on none; [`try_current`] does not.
///
/// # Examples
/// ```
/// use offshoot::prelude::*;
///
/// async fn name() -> String {
///     offshoot::current().name()
/// }
///
/// # offshoot::run(async || {
/// offshoot::nursery(async |nursery| {
///     let farm = nursery.spawn("farm").await?;
///     assert_eq!(farm.call(name, ()).await?, "farm");
///     Ok(())
/// })
/// .await
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub fn current() -> Current {
    try_current().unwrap_or_else(|| panic!("{}", off_isolate("current").message()))
}

/// The isolate on which this runs, if it runs on one.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # offshoot::run(async || {
/// assert!(offshoot::try_current().is_some());
/// let outside = std::thread::spawn(|| offshoot::try_current().is_none());
/// assert!(offshoot::unblock(|| outside.join().unwrap_or(false)).await?);
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub fn try_current() -> Option<Current> {
    Local::try_current().map(|local| Current { local })
}

/// The isolate on which code runs, see [`current`].
pub struct Current {
    local: Rc<Local>,
}

impl Current {
    /// Its name, its id, its process.
    pub fn origin(&self) -> crate::Origin {
        self.local.shared.life.origin()
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.local.shared.life.identity().name().to_owned()
    }

    /// Its id.
    pub fn id(&self) -> crate::IsolateId {
        self.local.shared.life.identity().id
    }

    /// The tree that it belongs to.
    pub fn tree(&self) -> crate::TreeId {
        self.local.shared.runtime.tree
    }

    /// Who cancelled the scope that this runs in, if anybody did.
    pub fn cancelled(&self) -> Option<Cancel> {
        crate::scope::Scope::current()
            .and_then(|scope| scope.cancelled())
            .or_else(|| self.local.shared.life.cancelled().cloned())
    }

    /// Cancels this isolate, by its owner's ladder.
    pub fn cancel(&self) {
        let cancel = Cancel {
            by: Canceller::Isolate(self.origin()),
        };
        self.local.shared.cancel(&cancel);
    }

    /// A portal to it, to be given to others: `()` where it was started without a state.
    ///
    /// # Errors
    /// Misuse if its state is of another type.
    ///
    /// # Examples
    /// ```
    /// use offshoot::prelude::*;
    ///
    /// async fn count(to: Portal<u64>) -> Result<()> {
    ///     to.tell(|n: &mut u64| *n += 1, ()).await
    /// }
    ///
    /// async fn begin(state: &mut u64, farm: Portal) -> Result<()> {
    ///     *state += 10;
    ///     farm.call(count, offshoot::current().portal()?).await?
    /// }
    ///
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let farm = nursery.spawn("farm").await?;
    ///     let counter = nursery.start("counter", 0_u64).await?;
    ///     counter.ask(begin, farm.clone()).await??;
    ///     assert_eq!(counter.ask(|n: &u64| *n, ()).await?, 11);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn portal<S: 'static>(&self) -> Result<crate::Portal<S>> {
        if !self.local.has_state::<S>() {
            let message = format!(
                "isolate `{}` has no state of type `{}`",
                self.origin(),
                std::any::type_name::<S>()
            );
            return Err(crate::Error::new(ErrorKind::Misuse, message));
        }
        Ok(crate::Portal::new(self.local.shared.target()))
    }

    /// One line per isolate of this process: what each is waiting for, or running since when.
    pub fn dump(&self) -> Vec<String> {
        self.local.shared.runtime.dump()
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Current").field(&self.origin()).finish()
    }
}
