//! What is known of an isolate by everybody who holds a handle to it: alive, cancelled, ended.
//!
//! One [`Life`] per incarnation, shared by its portals, its owner and whatever waits for it.
//! Whoever ends an isolate says so here first, and the waiting are woken at once: the end of a
//! socket or of a thread only confirms it. Nothing here blocks.

use crate::isolate::panics;
use crate::{Cancel, Error, ErrorKind, Exit, Origin};
use offshoot_sys::clock;
use offshoot_wire::FailureId;
use parking_lot::Mutex;
use slab::Slab;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::task::{Context, Poll, Waker};

/// What is to be told to others once every lock is given back: waking, logging and failing calls run
/// code of the program's, which may come back here.
#[derive(Default)]
#[must_use = "somebody waits for it"]
pub(crate) struct News(Vec<Box<dyn FnOnce() + Send>>);

impl News {
    pub(crate) fn add(&mut self, news: impl FnOnce() + Send + 'static) {
        self.0.push(Box::new(news));
    }

    pub(crate) fn append(&mut self, mut other: News) {
        self.0.append(&mut other.0);
    }

    /// Tells it, in order. A waker that panics is logged, and costs nobody else the news.
    pub(crate) fn tell(self) {
        for news in self.0 {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(news)) {
                let panic = panics::take(payload);
                crate::log::error!(%panic, "a waker panicked");
            }
        }
    }
}

pub(crate) struct Life {
    origin: Origin,
    /// The hosting process, once it is known: a process isolate has none before it is forked.
    pid: AtomicI32,
    /// How it ended, and when (ns).
    exit: OnceLock<(Exit, u64)>,
    cancelled: OnceLock<Cancel>,
    /// The isolate has seen its cancellation.
    acknowledged: AtomicBool,
    watchers: Mutex<Slab<Waker>>,
    /// Where in the program's source it was spawned, if here.
    spawned_at: Option<&'static Location<'static>>,
}

impl Life {
    pub(crate) fn new(origin: Origin) -> Life {
        Life {
            pid: AtomicI32::new(origin.pid),
            origin,
            exit: OnceLock::new(),
            cancelled: OnceLock::new(),
            acknowledged: AtomicBool::new(false),
            watchers: Mutex::new(Slab::new()),
            spawned_at: None,
        }
    }

    /// Notes where it was spawned.
    pub(crate) fn spawned_at(mut self, place: Option<&'static Location<'static>>) -> Life {
        self.spawned_at = place;
        self
    }

    /// Who it is and where it was spawned, for reports.
    pub(crate) fn describe(&self) -> String {
        let path = &self.origin.path;
        match self.spawned_at {
            Some(place) => format!("isolate `{path}`, spawned at {place}"),
            None => format!("isolate `{path}`"),
        }
    }

    /// Where it was spawned, if that was in this process.
    pub(crate) fn spawned_at_text(&self) -> Option<String> {
        self.spawned_at.map(ToString::to_string)
    }

    /// Who this is, with the process as far as it is known.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            pid: self.pid.load(Ordering::Relaxed),
            ..self.origin.clone()
        }
    }

    /// Who this is, without the process.
    pub(crate) fn identity(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Names the end of this isolate: it ends once, so its id names its failure.
    pub(crate) fn failure_id(&self) -> FailureId {
        let id = self.origin.id;
        let mixed = (u64::from(id.process) << 32 | u64::from(id.slot))
            ^ u64::from(id.generation).rotate_left(48);
        FailureId(mixed)
    }

    /// Says that no answer will come any more, and why. The first one counts.
    pub(crate) fn announce(&self, exit: Exit) {
        if self.exit.set((exit, clock::now())).is_ok() {
            self.wake_all();
        }
    }

    /// As [`announce`](Life::announce), for under a lock: it is known at once, and told by the result.
    pub(crate) fn announce_quietly(&self, exit: Exit) -> News {
        let mut news = News::default();
        if self.exit.set((exit, clock::now())).is_ok() {
            let wakers = self.wakers();
            news.add(move || wakers.into_iter().for_each(Waker::wake));
        }
        news
    }

    /// How it ended, once that is known.
    pub(crate) fn exit(&self) -> Option<&Exit> {
        self.exit.get().map(|(exit, _)| exit)
    }

    /// When its end was announced, in ns: deaths are told later, and not always in their order.
    pub(crate) fn died_at(&self) -> Option<u64> {
        self.exit.get().map(|(_, at)| *at)
    }

    /// Records the cancellation. True the first time.
    pub(crate) fn cancel(&self, cancel: Cancel) -> bool {
        self.cancelled.set(cancel).is_ok()
    }

    pub(crate) fn cancelled(&self) -> Option<&Cancel> {
        self.cancelled.get()
    }

    /// Says that the isolate has seen its cancellation.
    pub(crate) fn acknowledge(&self) {
        if !self.acknowledged.swap(true, Ordering::AcqRel) {
            self.wake_all();
        }
    }

    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acknowledged.load(Ordering::Acquire)
    }

    fn wake_all(&self) {
        // Woken outside of the lock: a waker may run code that watches again.
        self.wakers().into_iter().for_each(Waker::wake);
    }

    fn wakers(&self) -> Vec<Waker> {
        let watchers = self.watchers.lock();
        watchers.iter().map(|(_, waker)| waker.clone()).collect()
    }

    /// What a caller is told whose message was accepted and then dropped, or that came too late.
    pub(crate) fn gone(&self) -> Error {
        let origin = self.origin();
        let error = match (self.exit(), self.cancelled()) {
            (Some(exit), _) => ended(exit.clone(), &origin),
            (None, Some(cancel)) => Error::new(
                ErrorKind::Cancelled(cancel.clone()),
                format!("isolate `{origin}` was {cancel}"),
            ),
            (None, None) => Error::new(
                ErrorKind::Ended(Box::new(Exit::Completed)),
                format!("isolate `{origin}` is ending and accepts nothing more"),
            ),
        };
        error.leaving(&origin).with_id(self.failure_id())
    }
}

/// The error that reports this exit. What the isolate's own main function returned is itself.
pub(crate) fn ended(exit: Exit, origin: &Origin) -> Error {
    match exit {
        Exit::Failed(error) => error.leaving(origin),
        Exit::Cancelled(cancel) => {
            let message = format!("isolate `{origin}` was {cancel}");
            Error::new(ErrorKind::Cancelled(cancel), message).leaving(origin)
        }
        exit => {
            let message = format!("isolate `{origin}` {}{exit}", verb(&exit));
            Error::new(ErrorKind::Ended(Box::new(exit)), message).leaving(origin)
        }
    }
}

fn verb(exit: &Exit) -> &'static str {
    match exit {
        Exit::Killed { .. } | Exit::Abandoned { .. } | Exit::Lost { .. } => "was ",
        Exit::Exited { .. } | Exit::Unkillable { .. } => "ended: ",
        _ => "",
    }
}

/// A place in the list of those who are woken at the end or the acknowledgement. Gone when dropped.
pub(crate) struct Watch {
    life: std::sync::Arc<Life>,
    key: Option<usize>,
}

impl Watch {
    pub(crate) fn new(life: std::sync::Arc<Life>) -> Watch {
        Watch { life, key: None }
    }

    pub(crate) fn life(&self) -> &std::sync::Arc<Life> {
        &self.life
    }

    /// Ready once `done` holds of the life; otherwise woken when anything about it changes.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, done: impl Fn(&Life) -> bool) -> Poll<()> {
        if done(&self.life) {
            return Poll::Ready(());
        }
        {
            let mut watchers = self.life.watchers.lock();
            match self.key.and_then(|key| watchers.get_mut(key)) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => self.key = Some(watchers.insert(cx.waker().clone())),
            }
        }
        // Looked at again after registering: an end between the two would otherwise be missed.
        if done(&self.life) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.life.watchers.lock().try_remove(key);
        }
    }
}
