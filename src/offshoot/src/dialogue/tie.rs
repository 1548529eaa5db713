//! What the two sides of a dialogue know of each other beside what they stream: started, cancelled, over.
//!
//! Between threads both sides hold the same [`Tie`]; between processes each has its own, and a
//! [`Remote`](super::remote::Remote) keeps the two alike.

use super::remote::Remote;
use crate::life::Life;
use crate::scope::cancelled_error;
use crate::{Cancel, Canceller, Error, ErrorKind, Origin};
use offshoot_sys::clock;
use offshoot_wire::frame::Halt;
use parking_lot::Mutex;
use slab::Slab;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

/// Whose half this is.
pub(crate) use offshoot_wire::dialogue::Role;

/// What has become of a dialogue.
#[derive(Default)]
pub(crate) struct State {
    /// The peer has given its first value.
    pub(crate) started: bool,
    /// The opener has cancelled it.
    pub(crate) halt: Option<Halt>,
    /// The far task has seen that.
    pub(crate) halt_seen: bool,
    /// The peer has cancelled it.
    pub(crate) parted: Option<Cancel>,
    /// The opener's side has seen that.
    pub(crate) parted_seen: bool,
    /// The far task has ended: with a value, or with this error.
    pub(crate) over: Option<Result<(), Error>>,
    /// Halves that the far task dropped in the poll in which it may yet return.
    deferred: Deferred,
    watchers: Slab<Waker>,
}

/// See [`State`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Deferred {
    /// Its outgoing half.
    pub(crate) end: bool,
    /// Its incoming half.
    pub(crate) deaf: bool,
}

thread_local! {
    /// The address of the tie whose far task is being polled on this thread.
    static POLLED: Cell<usize> = const { Cell::new(0) };
}

pub(crate) struct Tie {
    /// Anything but a start has happened: all that an item has to look at on its way.
    changed: AtomicBool,
    state: Mutex<State>,
    /// The other end, if it is in another process.
    remote: OnceLock<Weak<Remote>>,
    /// Of the isolate on which the far task runs.
    pub(crate) far: Arc<Life>,
    /// The isolate that opened it, where that is known and was one.
    opener: Option<Origin>,
    /// How long a cancelled far task has before it is dropped (ns).
    grace: u64,
}

impl Tie {
    pub(crate) fn new(far: Arc<Life>, opener: Option<Origin>, grace: u64) -> Arc<Tie> {
        Arc::new(Tie {
            changed: AtomicBool::new(false),
            state: Mutex::default(),
            remote: OnceLock::new(),
            far,
            opener,
            grace,
        })
    }

    /// Says where the other end is, once.
    pub(crate) fn bind(&self, remote: &Arc<Remote>) {
        let set = self.remote.set(Arc::downgrade(remote));
        debug_assert!(set.is_ok(), "a dialogue has one other end");
    }

    fn remote(&self) -> Option<Arc<Remote>> {
        self.remote.get().and_then(Weak::upgrade)
    }

    /// Changes the state, if `change` says that it did, and wakes all who wait for that.
    fn update(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        let wakers: Vec<Waker> = {
            let mut state = self.state.lock();
            if !change(&mut state) {
                return false;
            }
            let quiet = state.halt.is_none() && state.parted.is_none() && state.over.is_none();
            self.changed.store(!quiet, Ordering::Release);
            state
                .watchers
                .iter()
                .map(|(_, waker)| waker.clone())
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock())
    }

    /// Puts off what a dropped half says, until it is known whether the task returns in this poll: then its result
    /// says how the stream ended. False if this is not a poll of the far task.
    pub(crate) fn defer(&self, half: impl FnOnce(&mut Deferred)) -> bool {
        let polled = POLLED.get() == std::ptr::from_ref(self).addr();
        if polled {
            half(&mut self.state.lock().deferred);
        }
        polled
    }

    /// What was put off, once.
    pub(crate) fn take_deferred(&self) -> Deferred {
        std::mem::take(&mut self.state.lock().deferred)
    }

    /// Runs a poll of the far task.
    pub(crate) fn polled<T>(&self, poll: impl FnOnce() -> T) -> T {
        struct Restore(usize);
        impl Drop for Restore {
            fn drop(&mut self) {
                POLLED.set(self.0);
            }
        }
        let _restore = Restore(POLLED.replace(std::ptr::from_ref(self).addr()));
        poll()
    }

    pub(crate) fn set_started(&self) {
        self.update(|state| !std::mem::replace(&mut state.started, true));
    }

    pub(crate) fn is_started(&self) -> bool {
        self.state.lock().started
    }

    /// The far task has ended. The first word counts.
    pub(crate) fn set_over(&self, how: Result<(), Error>) {
        self.update(|state| {
            let first = state.over.is_none();
            state.over.get_or_insert(how);
            first
        });
    }

    pub(crate) fn is_over(&self) -> bool {
        self.changed.load(Ordering::Acquire) && self.state.lock().over.is_some()
    }

    /// The opener's side, by name.
    pub(crate) fn opener(&self) -> Canceller {
        self.opener
            .clone()
            .map_or(Canceller::Runtime, Canceller::Peer)
    }

    /// The opener's side, when it has let go of it.
    pub(crate) fn hung_up(&self) -> Canceller {
        self.opener
            .clone()
            .map_or(Canceller::Runtime, Canceller::HungUp)
    }

    /// How long a cancelled far task has (ns).
    pub(crate) fn grace(&self) -> u64 {
        self.grace
    }

    /// Cancels the far task. The first author counts; nothing happens once it has ended.
    pub(crate) fn halt(&self, by: Canceller) {
        let halt = Halt {
            cancel: Cancel { by },
            grace_at: clock::now().saturating_add(self.grace),
        };
        self.take_halt(halt.clone());
        if let Some(remote) = self.remote() {
            remote.say_halt(&halt);
        }
    }

    /// A cancellation of the far task has come.
    pub(crate) fn take_halt(&self, halt: Halt) {
        self.update(|state| {
            let first = state.halt.is_none() && state.over.is_none();
            if first {
                state.halt = Some(halt);
            }
            first
        });
    }

    /// The far task has seen its cancellation.
    pub(crate) fn set_halt_seen(&self) {
        if self.update(|state| !std::mem::replace(&mut state.halt_seen, true))
            && let Some(remote) = self.remote()
        {
            remote.say_halt_seen();
        }
    }

    /// The other end has said that the far task has seen its cancellation.
    pub(crate) fn set_halt_seen_here(&self) {
        self.update(|state| !std::mem::replace(&mut state.halt_seen, true));
    }

    /// Cancels the opener's side.
    pub(crate) fn part(&self) {
        let by = Canceller::Peer(self.far.origin());
        let cancel = Cancel { by };
        let first = self.take_parting(cancel.clone());
        match self.remote() {
            Some(remote) if first => remote.say_halt(&Halt {
                cancel,
                grace_at: 0,
            }),
            Some(_) => {}
            // The opener's side is this very tie.
            None => self.set_parted_seen(),
        }
    }

    /// A cancellation of the opener's side has come. True the first time.
    pub(crate) fn take_parting(&self, cancel: Cancel) -> bool {
        self.update(|state| {
            let first = state.parted.is_none();
            state.parted.get_or_insert(cancel);
            first
        })
    }

    pub(crate) fn set_parted_seen(&self) {
        self.update(|state| !std::mem::replace(&mut state.parted_seen, true));
    }

    /// Why nothing can be streamed any more on this side, if that is so. What was sent before the far task ended
    /// can still be taken by the opener.
    pub(crate) fn stop(&self, role: Role, taking: bool) -> Option<Error> {
        if !self.changed.load(Ordering::Acquire) {
            return None;
        }
        let state = self.state.lock();
        if let Some(cancel) = &state.parted {
            return Some(self.cancelled(cancel));
        }
        match (role, &state.halt, &state.over) {
            (Role::Peer, Some(halt), _) => Some(self.cancelled(&halt.cancel)),
            (Role::Opener, _, _) if taking => None,
            (Role::Opener, _, Some(Err(error))) => Some(error.clone()),
            (_, _, Some(_)) => Some(match self.far.cancelled() {
                Some(cancel) => self.cancelled(cancel),
                None => self.closed("its function has returned"),
            }),
            (Role::Opener, Some(halt), None) => Some(self.cancelled(&halt.cancel)),
            (_, None, None) => None,
        }
    }

    /// The error of a dialogue that was cancelled.
    pub(crate) fn cancelled(&self, cancel: &Cancel) -> Error {
        cancelled_error(cancel.clone()).leaving(&self.far.origin())
    }

    pub(crate) fn closed(&self, what: &str) -> Error {
        let message = format!("the dialogue with isolate `{}`: {what}", self.far.origin());
        Error::new(ErrorKind::Closed, message)
    }
}

/// A place among those who are woken by a change of a tie. Gone when dropped.
pub(crate) struct TieWatch {
    tie: Arc<Tie>,
    key: Option<usize>,
}

impl TieWatch {
    pub(crate) fn new(tie: &Arc<Tie>) -> TieWatch {
        TieWatch {
            tie: tie.clone(),
            key: None,
        }
    }

    pub(crate) fn tie(&self) -> &Arc<Tie> {
        &self.tie
    }

    /// Ready with what `look` finds; otherwise woken at the next change.
    pub(crate) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        look: impl FnOnce(&State) -> Option<T>,
    ) -> Poll<T> {
        let mut state = self.tie.state.lock();
        if let Some(found) = look(&state) {
            return Poll::Ready(found);
        }
        match self.key.and_then(|key| state.watchers.get_mut(key)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.key = Some(state.watchers.insert(cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for TieWatch {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.tie.state.lock().watchers.try_remove(key);
        }
    }
}
