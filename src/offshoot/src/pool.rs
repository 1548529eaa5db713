//! Many at once: futures that are awaited together, and a stream that is mapped over several isolates.

use crate::descriptor::captures_nothing;
use crate::isolate::panics::DropEach;
use crate::{Endpoint, Payload, Portal, Reply, Result};
use futures_core::Stream;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Awaits all at once and gives their values in the order in which they were given. The first that fails drops the
/// others: calls that are dropped are cancelled, and links with them, so that what is opened together ends together.
///
/// Meant for tens of futures; each wake-up polls all of them.
///
/// # Errors
/// The first failure.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # offshoot::run(async || {
/// offshoot::nursery(async |nursery| {
///     let farm = offshoot::gather(["a", "b"].map(|name| nursery.spawn(name))).await?;
///     let names = offshoot::gather(farm.iter().map(|p| p.call(|| offshoot::current().name(), ()))).await?;
///     assert_eq!(names, ["a", "b"]);
///     Ok(())
/// })
/// .await
/// # }).unwrap();
/// ```
pub async fn gather<I, T>(futures: I) -> Result<Vec<T>>
where
    I: IntoIterator<Item: Future<Output = Result<T>>>,
{
    let running = futures.into_iter().map(|future| Some(Box::pin(future)));
    let mut running = DropEach(running.collect::<Vec<_>>());
    let mut values: DropEach<Vec<Option<T>>> = DropEach(running.iter().map(|_| None).collect());
    poll_fn(|cx| {
        let mut left = false;
        for (future, value) in running.iter_mut().zip(values.iter_mut()) {
            let Some(polled) = future else { continue };
            match polled.as_mut().poll(cx) {
                Poll::Pending => left = true,
                Poll::Ready(Ok(got)) => (*value, *future) = (Some(got), None),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        if left {
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    })
    .await?;
    Ok(std::mem::take(&mut *values).into_iter().flatten().collect())
}

/// Isolates that do the same work.
#[derive(Clone, Debug)]
pub struct Pool<S = ()> {
    portals: Vec<Portal<S>>,
    each: usize,
}

impl<S: 'static> Pool<S> {
    /// A pool of these, each of which has two calls under way: one that runs, and the next.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use offshoot::Pool;
    ///
    /// # async fn square(n: u64) -> u64 {
    /// #     n * n
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let workers = [nursery.spawn("a").await?, nursery.spawn("b").await?];
    ///     let pool = Pool::new(workers);
    ///     let items = futures_util::stream::iter(1..=3_u64);
    ///     let mut squares = pool.map(square, items);
    ///     let mut sum = 0;
    ///     while let Some(square) = squares.next().await? {
    ///         sum += square;
    ///     }
    ///     assert_eq!(sum, 14);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn new(portals: impl IntoIterator<Item = Portal<S>>) -> Pool<S> {
        Pool {
            portals: portals.into_iter().collect(),
            each: 2,
        }
    }

    /// How many calls each has under way, at least one.
    #[must_use]
    pub fn each(mut self, calls: usize) -> Pool<S> {
        self.each = calls.max(1);
        self
    }

    /// Calls `function` with each item, on whichever isolate has least to do, and gives the results in the order of
    /// the items. An isolate that has ended gets no more; what it had fails.
    ///
    /// Nothing is called before the result is polled. Items are taken from the stream only while there is somebody to
    /// do them, and while no more than twice as many as are under way wait for an earlier one.
    pub fn map<M: 'static, F: Endpoint<M>, I>(&self, function: F, items: I) -> Mapped<I, F::Out>
    where
        F::Args: Payload,
        F::Out: Payload,
        I: Stream<Item = F::Args> + Unpin,
    {
        captures_nothing!(F);
        let portals = self.portals.clone();
        let load = vec![0; portals.len()];
        let living = self.portals.clone();
        Mapped {
            items: Some(items),
            call: Box::new(move |worker, args| portals[worker].call(function, args)),
            ended: Box::new(move |worker| living[worker].exit().is_some()),
            load,
            each: self.each,
            running: DropEach::default(),
            done: DropEach::default(),
            next: 0,
            delivered: 0,
            in_order: true,
        }
    }
}

/// The results of a [`Pool`]: a [`Stream`]. Dropping it cancels what is under way.
#[must_use = "nothing is called unless it is polled"]
pub struct Mapped<I: Stream, R> {
    items: Option<I>,
    call: Box<dyn Fn(usize, I::Item) -> Reply<R>>,
    ended: Box<dyn Fn(usize) -> bool>,
    /// Calls under way, by isolate.
    load: Vec<usize>,
    each: usize,
    /// Number, isolate, reply.
    running: DropEach<Vec<(u64, usize, Reply<R>)>>,
    /// Number and result, in the order in which they came.
    done: DropEach<VecDeque<(u64, Result<R>)>>,
    next: u64,
    delivered: u64,
    in_order: bool,
}

impl<I: Stream + Unpin, R> Mapped<I, R> {
    /// Gives each result as soon as it is there.
    pub fn as_completed(mut self) -> Self {
        self.in_order = false;
        self
    }

    /// The next result; `None` after the last.
    ///
    /// # Errors
    /// Of one call; the others go on.
    pub async fn next(&mut self) -> Result<Option<R>> {
        poll_fn(|cx| self.poll_result(cx)).await.transpose()
    }

    /// The isolate that has least to do, if any has room.
    fn idlest(&self) -> Option<usize> {
        let living = |worker: &usize| !(self.ended)(*worker);
        let all = 0..self.load.len();
        // With nobody alive, the dead say what became of them.
        let idlest = all
            .clone()
            .filter(living)
            .min_by_key(|worker| self.load[*worker]);
        idlest
            .or_else(|| all.clone().min_by_key(|worker| self.load[*worker]))
            .filter(|worker| self.load[*worker] < self.each)
    }

    /// Starts what can be started. True if anything was.
    fn start(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        let most = 2 * self.each * self.load.len();
        while self.running.len() + self.done.len() < most
            && let Some(worker) = self.idlest()
            && let Some(items) = &mut self.items
        {
            match Pin::new(items).poll_next(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.items = None,
                Poll::Ready(Some(item)) => {
                    self.running
                        .push((self.next, worker, (self.call)(worker, item)));
                    self.next += 1;
                    self.load[worker] += 1;
                }
            }
            any = true;
        }
        any
    }

    /// Collects what has ended. True if anything has.
    fn collect(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.running.len();
        let (load, done) = (&mut self.load, &mut self.done);
        self.running
            .retain_mut(|(number, worker, reply)| match Pin::new(reply).poll(cx) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    load[*worker] -= 1;
                    done.push_back((*number, result));
                    false
                }
            });
        self.running.len() < before
    }

    fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<R>>> {
        loop {
            let started = self.start(cx);
            let ended = self.collect(cx);
            let at = if self.in_order {
                let turn = self.delivered;
                self.done.iter().position(|(number, _)| *number == turn)
            } else {
                (!self.done.is_empty()).then_some(0)
            };
            if let Some((_, result)) = at.and_then(|at| self.done.remove(at)) {
                self.delivered += 1;
                return Poll::Ready(Some(result));
            }
            if self.items.is_none() && self.running.is_empty() {
                return Poll::Ready(None);
            }
            if !started && !ended {
                return Poll::Pending;
            }
        }
    }
}

impl<I: Stream, R> Unpin for Mapped<I, R> {}

impl<I: Stream + Unpin, R> Stream for Mapped<I, R> {
    type Item = Result<R>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<R>>> {
        self.get_mut().poll_result(cx)
    }
}

impl<I: Stream, R> std::fmt::Debug for Mapped<I, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped")
            .field("load", &self.load)
            .field("delivered", &self.delivered)
            .finish_non_exhaustive()
    }
}
