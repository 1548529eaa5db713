//! One producer, many consumers, none of which can hold up the producer or another.

use crate::dialogue::register;
use crate::isolate::panics::DropEach;
use crate::scope::{Scope, SendWatch, cancelled_error, poll_refusal};
use crate::{Error, ErrorKind, Result};
use futures_core::Stream;
use parking_lot::Mutex;
use slab::Slab;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

/// The producer's end: keeps the newest items for whoever has subscribed.
///
/// A subscriber that falls further behind is told once how many items it has missed, and goes on with the oldest that
/// is kept. To reach other isolates, give a [`Subscription`] to a task that sends what it gets into a dialogue.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// use offshoot::Broadcast;
///
/// # offshoot::run(async || {
/// let prices = Broadcast::new(2);
/// let mut slow = prices.subscribe();
/// for price in [10, 11, 12] {
///     prices.send(price);
/// }
/// assert_eq!(slow.next().await.unwrap_err().lagged(), Some(1));
/// assert_eq!(slow.next().await?, Some(11));
/// drop(prices);
/// assert_eq!(slow.next().await?, Some(12));
/// assert_eq!(slow.next().await?, None);
/// # Ok(())
/// # }).unwrap();
/// ```
#[must_use = "without it nothing is sent"]
pub struct Broadcast<T> {
    ring: Arc<Mutex<Ring<T>>>,
}

struct Ring<T> {
    /// Shared, so that neither a clone nor a destructor of the program's runs under the lock.
    items: DropEach<VecDeque<Arc<T>>>,
    /// The number of the first of them.
    first: u64,
    kept: usize,
    closed: bool,
    waiting: Slab<Option<Waker>>,
}

impl<T> Ring<T> {
    #[must_use]
    fn wakers(&mut self) -> Vec<Waker> {
        self.waiting
            .iter_mut()
            .filter_map(|(_, waker)| waker.take())
            .collect()
    }

    fn next_number(&self) -> u64 {
        self.first + self.items.len() as u64
    }
}

impl<T> Broadcast<T> {
    /// Keeps the newest `kept` items, at least one.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use offshoot::Broadcast;
    ///
    /// # offshoot::run(async || {
    /// let prices = Broadcast::new(16);
    /// let mut subscription = prices.subscribe();
    /// prices.send(7);
    /// assert_eq!(subscription.next().await?, Some(7));
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn new(kept: usize) -> Broadcast<T> {
        Broadcast {
            ring: Arc::new(Mutex::new(Ring {
                items: DropEach::default(),
                first: 0,
                kept: kept.max(1),
                closed: false,
                waiting: Slab::new(),
            })),
        }
    }

    /// Sends to all that have subscribed; says how many that are. Never waits.
    pub fn send(&self, item: T) -> usize {
        let item = Arc::new(item);
        let (oldest, wakers, subscribers) = {
            let mut ring = self.ring.lock();
            let full = ring.items.len() == ring.kept;
            let oldest = if full { ring.items.pop_front() } else { None };
            ring.first += u64::from(full);
            ring.items.push_back(item);
            (oldest, ring.wakers(), ring.waiting.len())
        };
        drop(oldest);
        wakers.into_iter().for_each(Waker::wake);
        subscribers
    }

    /// A consumer of what is sent from now on.
    pub fn subscribe(&self) -> Subscription<T> {
        Subscription::new(&self.ring)
    }

    /// How many have subscribed and are still there.
    pub fn subscribers(&self) -> usize {
        self.ring.lock().waiting.len()
    }
}

impl<T> Drop for Broadcast<T> {
    fn drop(&mut self) {
        let wakers = {
            let mut ring = self.ring.lock();
            ring.closed = true;
            ring.wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<T> std::fmt::Debug for Broadcast<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ring = self.ring.lock();
        f.debug_struct("Broadcast")
            .field("sent", &ring.next_number())
            .field("kept", &ring.kept)
            .field("subscribers", &ring.waiting.len())
            .finish()
    }
}

/// A consumer's end of a [`Broadcast`]. Cloned, each of the two gets every item from here on.
#[must_use = "a subscription that is dropped gets nothing"]
pub struct Subscription<T> {
    ring: Arc<Mutex<Ring<T>>>,
    key: usize,
    next: u64,
    scope: SendWatch,
}

impl<T> Subscription<T> {
    fn new(ring: &Arc<Mutex<Ring<T>>>) -> Subscription<T> {
        let (key, next) = {
            let mut locked = ring.lock();
            (locked.waiting.insert(None), locked.next_number())
        };
        Subscription {
            ring: ring.clone(),
            key,
            next,
            scope: SendWatch::default(),
        }
    }
}

impl<T: Clone> Subscription<T> {
    /// The next item; `None` once the producer is gone and all that is kept was taken.
    ///
    /// # Cancellation
    /// A checkpoint. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// It was too slow and has missed items ([`Error::lagged`]): told once, then it goes on with the oldest that is
    /// kept. A cancelled error.
    // Not the iterator's: it is awaited.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> NextBroadcast<'_, T> {
        NextBroadcast { subscription: self }
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        if let Some(cancel) = Scope::current().and_then(|scope| scope.cancelled()) {
            ready!(poll_refusal(cx));
            return Poll::Ready(Some(Err(cancelled_error(cancel))));
        }
        let item = {
            let mut ring = self.ring.lock();
            let missed = ring.first.saturating_sub(self.next);
            if missed > 0 {
                self.next = ring.first;
                let message =
                    format!("{missed} items of a broadcast were missed: it is read too slowly");
                return Poll::Ready(Some(Err(Error::new(ErrorKind::Lagged(missed), message))));
            }
            let at = usize::try_from(self.next - ring.first).unwrap_or(usize::MAX);
            match ring.items.get(at).cloned() {
                Some(item) => item,
                None if ring.closed => return Poll::Ready(None),
                None => {
                    let key = self.key;
                    register(&mut ring.waiting[key], cx.waker());
                    drop(ring);
                    if self.scope.poll(cx).is_ready() {
                        // Cancelled since the look above.
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
            }
        };
        self.next += 1;
        Poll::Ready(Some(Ok(Arc::unwrap_or_clone(item))))
    }
}

impl<T> Clone for Subscription<T> {
    fn clone(&self) -> Subscription<T> {
        let mut other = Subscription::new(&self.ring);
        other.next = self.next;
        other
    }
}

impl<T> Drop for Subscription<T> {
    fn drop(&mut self) {
        self.ring.lock().waiting.try_remove(self.key);
    }
}

impl<T: Clone> Stream for Subscription<T> {
    type Item = Result<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        self.get_mut().poll_item(cx)
    }
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

/// The future of [`Subscription::next`].
#[must_use = "nothing is taken unless it is awaited"]
pub struct NextBroadcast<'a, T: Clone> {
    subscription: &'a mut Subscription<T>,
}

impl<T: Clone> Future for NextBroadcast<'_, T> {
    type Output = Result<Option<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Option<T>>> {
        self.get_mut()
            .subscription
            .poll_item(cx)
            .map(Option::transpose)
    }
}

impl<T: Clone> std::fmt::Debug for NextBroadcast<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NextBroadcast")
    }
}
