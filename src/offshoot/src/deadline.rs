//! Cancel scopes: a part of a task with a deadline of its own, or out of reach of the cancellations around it.
//!
//! [`timeout`](crate::timeout) drops a future when its time is over. What is here cancels instead: the body sees
//! its checkpoints fail, can say goodbye, and is dropped only if it has not ended when the tree's grace is over. They
//! nest: each absorbs its own deadline and lets every other cancellation through.

use crate::isolate::local::Local;
use crate::scope::{Scope, ScopeWatch};
use crate::time::{nanos, off_isolate, sleep, sleep_until, timed_out};
use crate::{Cancel, Canceller, Error, ErrorKind, Result};
use offshoot_sys::clock;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Runs `body` and cancels it when `after` has passed. `None` if it ended by that.
///
/// What the body returns counts whenever it does: a value also after the deadline, and an error that is not of this
/// deadline, too.
///
/// # Cancellation
/// A checkpoint as its body is. A cancellation from outside is not absorbed.
///
/// # Errors
/// Those of the body, but for the one by which it ended at this deadline.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # use std::time::Duration;
/// # offshoot::run(async || {
/// let got = offshoot::move_on_after(Duration::from_millis(5), async || {
///     offshoot::sleep(Duration::from_secs(60)).await?;
///     Ok("slept")
/// })
/// .await?;
/// assert_eq!(got, None);
/// # Ok(())
/// # }).unwrap();
/// ```
pub async fn move_on_after<F, R>(after: Duration, body: F) -> Result<Option<R>>
where
    F: AsyncFnOnce() -> Result<R>,
{
    let local = Local::try_current().ok_or_else(|| off_isolate("move_on_after"))?;
    let above = Scope::current().unwrap_or_else(|| local.root_scope.clone());
    let scope = above.child();
    let mut body = pin!(Some(async { body().await }));
    let mut deadline = sleep(after);
    // Set once the deadline has passed.
    let mut grace = None;
    let result = poll_fn(|cx| {
        if grace.is_none() && deadline.poll_elapsed(cx).is_ready() {
            let by = Canceller::Deadline;
            scope.cancel(Cancel { by });
            let bound = local.shared.runtime.settings.bounds.grace;
            grace = Some(sleep_until(clock::now().saturating_add(nanos(bound))));
        }
        if let Some(running) = body.as_mut().as_pin_mut()
            && let Poll::Ready(result) = scope.enter(|| running.poll(cx))
        {
            return Poll::Ready(result.map(Some));
        }
        if let Some(bound) = &mut grace
            && bound.poll_elapsed(cx).is_ready()
        {
            scope.enter(|| body.set(None));
            return Poll::Ready(Ok(None));
        }
        Poll::Pending
    })
    .await;
    match result {
        Err(error) if is_deadline(&error) && grace.is_some() && above.cancelled().is_none() => {
            Ok(None)
        }
        result => result,
    }
}

/// As [`move_on_after`], but a body that ended by the deadline is an error.
///
/// # Errors
/// Those of the body; a timeout ([`Error::is_timeout`]) in place of the one by which it ended at this deadline.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// use std::time::Duration;
///
/// # offshoot::run(async || {
/// let late = offshoot::fail_after(Duration::from_millis(1), async || {
///     offshoot::sleep(Duration::from_secs(60)).await
/// });
/// assert!(late.await.is_err_and(|error| error.is_timeout()));
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn fail_after<F, R>(after: Duration, body: F) -> Result<R>
where
    F: AsyncFnOnce() -> Result<R>,
{
    match move_on_after(after, body).await? {
        Some(value) => Ok(value),
        None => Err(timed_out("it", after)),
    }
}

/// Runs `body` out of reach of cancellations from outside: for a goodbye that itself has to wait.
///
/// The shield is bounded: `bound` after such a cancellation it opens, and the body sees it as it otherwise would.
/// Without a cancellation it has no effect at all. The isolates that this one owns come down all the same.
///
/// # Cancellation
/// A shield does not keep its body from being dropped when the grace of its isolate or nursery is over. A `bound` beyond
/// that grace is logged as a warning when the shield is entered. A body that is dropped so is logged as well, and it is a
/// failure ([`ErrorKind::Cut`]) of the nursery, or of the one that owns the isolate.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # use std::time::Duration;
/// # offshoot::run(async || {
/// offshoot::move_on_after(Duration::from_millis(5), async || {
///     let cancelled = offshoot::sleep(Duration::from_secs(60)).await;
///     offshoot::shield(Duration::from_secs(1), async || {
///         // Would fail at once without the shield.
///         offshoot::sleep(Duration::from_millis(1)).await
///     })
///     .await?;
///     cancelled
/// })
/// .await
/// # .map(drop)
/// # }).unwrap();
/// ```
pub async fn shield<F, R>(bound: Duration, body: F) -> R
where
    F: AsyncFnOnce() -> R,
{
    let Some(local) = Local::try_current() else {
        return body().await;
    };
    let above = Scope::current().unwrap_or_else(|| local.root_scope.clone());
    let scope = above.child();
    scope.set_shielded(true);
    warn_of_grace(&local, &above, bound);
    let mut running = Running::new(&local, &above, bound);
    let mut body = pin!(async { body().await });
    let mut outside = ScopeWatch::default();
    let mut opening = None;
    poll_fn(|cx| {
        if opening.is_none() && above.enter(|| outside.poll(cx)).is_ready() {
            opening = Some(sleep(bound));
            running.cancelled_at = Some(clock::now());
        }
        if let Some(timer) = &mut opening
            && scope.is_shielded()
            && timer.poll_elapsed(cx).is_ready()
        {
            scope.set_shielded(false);
            running.is_covered = false;
        }
        let polled = scope.enter(|| body.as_mut().poll(cx));
        running.is_covered &= polled.is_pending();
        polled
    })
    .await
}

/// Says so if what a shield is to cover is dropped before the shield opens.
fn warn_of_grace(local: &Local, above: &Scope, bound: Duration) {
    let grace = match above.grace() {
        Some(at) => Duration::from_nanos(at.saturating_sub(clock::now())),
        None => local.shared.bounds.grace,
    };
    if bound > grace {
        crate::log::warn!(
            isolate = %local.shared.life.origin(),
            "a shield of {bound:?} is longer than the grace of {grace:?} that is left here, after which it is dropped"
        );
    }
}

/// A shielded body, and what is said if it is dropped.
struct Running<'a> {
    local: &'a Local,
    above: &'a Scope,
    bound: Duration,
    cancelled_at: Option<u64>,
    /// It has not ended, and the shield has not opened.
    is_covered: bool,
}

impl<'a> Running<'a> {
    fn new(local: &'a Local, above: &'a Scope, bound: Duration) -> Running<'a> {
        Running {
            local,
            above,
            bound,
            cancelled_at: None,
            is_covered: true,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.is_covered || self.above.cancelled().is_none() {
            return;
        }
        let (bound, now) = (self.bound, clock::now());
        let after = Duration::from_nanos(now.saturating_sub(self.cancelled_at.unwrap_or(now)));
        let origin = self.local.shared.life.origin();
        self.local.note_cut(|| {
            let message = format!(
                "a body under a shield of {bound:?} in isolate `{origin}` was dropped {after:?} after its cancellation: \
                 the grace was over"
            );
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            Error::new(ErrorKind::Cut(millis), message).leaving(&origin)
        });
    }
}

/// True for the error of a checkpoint behind a deadline, also by way of a nursery.
fn is_deadline(error: &Error) -> bool {
    fn first(by: &Canceller) -> &Canceller {
        match by {
            Canceller::Parent(_, by) => first(by),
            by => by,
        }
    }
    matches!(error.kind(), ErrorKind::Cancelled(cancel) if *first(&cancel.by) == Canceller::Deadline)
}
