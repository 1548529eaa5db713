//! Blocking work that must not hold up an isolate: a few threads of a tree in a process.
//!
//! They are for system calls that cannot be awaited (files, names, locks) and short computations. What
//! blocks for long or without end belongs on an isolate of its own, see
//! [`Isolate::blocking`](crate::Isolate::blocking): it can be named, bounded and killed.

use crate::isolate::local::Local;
use crate::isolate::panics;
use crate::runtime::Runtime;
use crate::scope::{ScopeWatch, cancelled_error};
use crate::time::off_isolate;
use crate::{Error, ErrorKind, Result};
use offshoot_mailbox::oneshot;
use offshoot_sys::clock;
use offshoot_sys::surroundings::OfThread;
use offshoot_sys::thread::Joiner;
use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How many threads there are at most.
const THREADS: usize = 4;
/// How many jobs may wait for one; more wait with their tasks.
const QUEUE: usize = 64;
/// How long a thread stays that has nothing to do.
const IDLE: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce() + Send>;

/// The threads, started on demand.
#[derive(Default)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job, or the end.
    news: Condvar,
    /// Of the thread that made it: as the threads of the pool are scheduled, whoever has the first job.
    maker: OfThread,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Jobs that are queued or running. Up to the limit there is a thread for each, so that no job
    /// waits for another one to end while a thread could be had.
    jobs: usize,
    /// Those who wait for room, by when they came.
    waiting: BTreeMap<u64, Waker>,
    next_ticket: u64,
    threads: BTreeMap<u64, Joiner>,
    next_thread: u64,
    stopped: bool,
}

thread_local! {
    /// The address of the pool whose thread this is, or 0. The thread holds the pool, so that no other one has the address.
    static WORKS_FOR: Cell<usize> = const { Cell::new(0) };
}

impl Pool {
    /// Whether this is one of its threads.
    pub(crate) fn is_here(&self) -> bool {
        WORKS_FOR.get() == Arc::as_ptr(&self.0).addr()
    }

    /// Whether any job is queued or runs.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.state.lock().jobs > 0
    }

    /// Queues a job, or says by `Pending` that there is no room; the task is then woken once there is.
    fn poll_submit(
        &self,
        cx: &mut Context<'_>,
        ticket: &mut Option<u64>,
        job: &mut Option<Job>,
    ) -> Poll<Result<()>> {
        let mut state = self.0.state.lock();
        if state.stopped {
            let message = "the tree has ended, and its threads for blocking work with it";
            return Poll::Ready(Err(Error::new(ErrorKind::Misuse, message)));
        }
        let at = *ticket.get_or_insert_with(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        if state.queue.len() >= QUEUE {
            let old = state.waiting.insert(at, cx.waker().clone());
            drop(state);
            drop(old);
            return Poll::Pending;
        }
        let own = state.waiting.remove(&at);
        *ticket = None;
        state.queue.extend(job.take());
        state.jobs += 1;
        let started = if state.jobs > state.threads.len() && state.threads.len() < THREADS {
            self.0.clone().start_thread(&mut state)
        } else {
            Ok(())
        };
        if let Err(error) = started
            && state.threads.is_empty()
        {
            // Nobody would ever do it.
            state.jobs -= 1;
            let job = state.queue.pop_back();
            drop(state);
            drop(job);
            let message = "cannot start a thread for blocking work";
            return Poll::Ready(Err(Error::io(format!("{message}: {error}"), error)));
        }
        self.0.news.notify_one();
        drop(state);
        drop(own);
        Poll::Ready(Ok(()))
    }

    /// Queues a job of the runtime's own, if there is room.
    pub(crate) fn try_submit(&self, job: impl FnOnce() + Send + 'static) {
        let (mut ticket, mut job): (_, Option<Job>) = (None, Some(Box::new(job)));
        let _ = self.poll_submit(
            &mut Context::from_waker(Waker::noop()),
            &mut ticket,
            &mut job,
        );
        if let Some(ticket) = ticket {
            self.leave(ticket);
        }
    }

    /// Gives up a place among those who wait for room.
    fn leave(&self, ticket: u64) {
        let mut state = self.0.state.lock();
        let own = state.waiting.remove(&ticket);
        // Woken, but it will not take the room that it was woken for.
        let next = own.is_none().then(|| state.next_waiting()).flatten();
        drop(state);
        drop(own);
        next.into_iter().for_each(Waker::wake);
    }

    /// Ends the threads: each after the job that it is in. Jobs that have not begun are dropped.
    ///
    /// Returns how many threads were still in a job after `bound`; they are left.
    pub(crate) fn stop(&self, bound: Duration) -> usize {
        let (queue, waiting, threads) = {
            let mut state = self.0.state.lock();
            state.stopped = true;
            (
                std::mem::take(&mut state.queue),
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.threads),
            )
        };
        self.0.news.notify_all();
        // What they have captured is the program's, and its destructors may panic.
        for job in queue {
            if let Some(panic) = panics::drop_caught(job) {
                crate::log::error!(%panic, "a destructor panicked on the way out of the tree");
            }
        }
        waiting.into_values().for_each(Waker::wake);
        let deadline = clock::now().saturating_add(crate::time::nanos(bound));
        let left = threads
            .into_values()
            .filter_map(|mut thread| (!thread.join_until(deadline)).then_some(()))
            .count();
        if left > 0 {
            crate::log::error!(
                left,
                ?bound,
                "threads for blocking work do not return from their closures; they are left"
            );
        }
        left
    }
}

impl State {
    /// The waker of whoever has waited longest for room.
    fn next_waiting(&mut self) -> Option<Waker> {
        self.waiting.pop_first().map(|(_, waker)| waker)
    }

    /// Whom to wake when a job has been taken out: one, but all once nothing is queued. One who was
    /// woken and belongs to an isolate that hangs must not keep the others from the room.
    fn whom_to_wake(&mut self) -> Vec<Waker> {
        if !self.queue.is_empty() {
            return self.next_waiting().into_iter().collect();
        }
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

impl Shared {
    fn start_thread(self: Arc<Shared>, state: &mut State) -> std::io::Result<()> {
        let number = state.next_thread;
        let thread = std::thread::Builder::new()
            .name("offshoot-pool".to_owned())
            .spawn(move || {
                self.maker.put_on();
                panics::record_here();
                WORKS_FOR.set(Arc::as_ptr(&self).addr());
                self.work(number);
            })
            .map_err(crate::budget::of_thread("offshoot-pool"))?;
        state.next_thread += 1;
        state.threads.insert(number, Joiner::from(thread));
        Ok(())
    }

    fn work(&self, number: u64) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                let woken = state.whom_to_wake();
                drop(state);
                woken.into_iter().for_each(Waker::wake);
                // It catches the panics of the closure; this is for those of a result's destructor.
                if std::panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
                    crate::log::error!("a destructor panicked on a thread for blocking work");
                }
                state = self.state.lock();
                state.jobs -= 1;
                continue;
            }
            if state.stopped {
                return;
            }
            let timed_out = self.news.wait_for(&mut state, IDLE).timed_out();
            if timed_out && state.queue.is_empty() && !state.stopped {
                // Nobody joins it; it does nothing more.
                state.threads.remove(&number);
                return;
            }
        }
    }
}

/// Runs `f`, which may block, on a thread for such work, and awaits its result. A checkpoint.
///
/// A process of a tree has at most four such threads, started when they are needed; while all of
/// them are at work, closures wait. What blocks for long belongs on an isolate of its own, see
/// [`Isolate::blocking`](crate::Isolate::blocking).
///
/// # Errors
/// A cancelled error as soon as the enclosing scope is cancelled; misuse outside of an isolate; an
/// input/output error if the operating system gives no thread.
///
/// # Panics
/// A panic of `f` goes on in the awaiting task, as if it had called `f` itself.
///
/// # Cancellation
/// If the future is dropped or the scope cancelled, a closure that has begun runs to its end, and
/// its result is dropped; one that has not begun is dropped. At the end of the tree, closures that
/// are still running are waited for, at most for the tree's bound for a hard kill.
///
/// # Examples
/// ```
/// # offshoot::run(async || {
/// let sum = offshoot::unblock(|| (1..=100).sum::<u32>()).await?;
/// assert_eq!(sum, 5_050);
/// # Ok(())
/// # }).unwrap();
/// ```
pub fn unblock<T, F>(f: F) -> Unblock<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let job: Job = Box::new(move || {
        if sender.is_closed() {
            return;
        }
        let done = match std::panic::catch_unwind(AssertUnwindSafe(f)) {
            Ok(value) => Done::Value(value),
            Err(payload) => Done::Panic(payload, panics::place()),
        };
        // The result of whoever has gone is dropped here.
        let _ = sender.send(done);
    });
    Unblock {
        job: Some(job),
        ticket: None,
        runtime: None,
        receiver,
        watch: ScopeWatch::default(),
    }
}

/// How a closure ended.
enum Done<T> {
    Value(T),
    Panic(Box<dyn std::any::Any + Send>, panics::Place),
}

/// The future of [`unblock`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct Unblock<T> {
    /// Until it is queued.
    job: Option<Job>,
    /// While it waits for room.
    ticket: Option<u64>,
    runtime: Option<Arc<Runtime>>,
    receiver: oneshot::Receiver<Done<T>>,
    watch: ScopeWatch,
}

impl<T> Future for Unblock<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        // What has been done counts, also at the last moment.
        if this.job.is_none()
            && let Poll::Ready(done) = Pin::new(&mut this.receiver).poll(cx)
        {
            return match done {
                Ok(Done::Value(value)) => Poll::Ready(Ok(value)),
                Ok(Done::Panic(payload, place)) => {
                    panics::put_place(place);
                    std::panic::resume_unwind(payload)
                }
                Err(oneshot::Dropped) => {
                    let message = "the tree ended before the closure began";
                    Poll::Ready(Err(Error::new(ErrorKind::Misuse, message)))
                }
            };
        }
        if let Poll::Ready(cancel) = this.watch.poll(cx) {
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        if this.job.is_none() {
            return Poll::Pending;
        }
        let runtime = match &this.runtime {
            Some(runtime) => runtime,
            None => {
                let Some(local) = Local::try_current() else {
                    return Poll::Ready(Err(off_isolate("unblock")));
                };
                this.runtime.insert(local.shared.runtime.clone())
            }
        };
        match runtime
            .pool
            .poll_submit(cx, &mut this.ticket, &mut this.job)
        {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                // Polled once, so that the receiver knows whom to wake.
                Pin::new(this).poll(cx)
            }
        }
    }
}

impl<T> Drop for Unblock<T> {
    fn drop(&mut self) {
        if let (Some(ticket), Some(runtime)) = (self.ticket, &self.runtime) {
            runtime.pool.leave(ticket);
        }
    }
}

impl<T> std::fmt::Debug for Unblock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unblock")
            .field("queued", &self.job.is_none())
            .finish_non_exhaustive()
    }
}
