//! A cell for the waker of one task, to be called by other threads.
//!
//! It is the well-known `AtomicWaker` of futures-rs, here because that would be the only thing used of a larger
//! crate, and because this one runs under our loom models. Differences: user code (clone, drop and wake of a waker)
//! may panic without leaving the cell locked, and the old waker is dropped outside of the lock.
//!
//! # Rules of the state word
//!
//! 1. `REGISTERING` and `WAKING` are two bits. Whoever sets either from `IDLE` owns the slot until clearing it.
//! 2. Who finds `REGISTERING` when setting `WAKING` leaves: the one registering will see the bit when it is done, and
//!    wakes in its stead.
//! 3. Who finds either bit when about to register does not wait: it wakes its own task, which then comes again. It
//!    must, since a second waker may meanwhile have left it to the first, whose waker may be that of another task.
//! 4. Every change is a read-modify-write; taking the slot is an acquire and giving it back a release. So of a
//!    `register` and a `wake` one comes first: either the waker is seen and called, or what was written before
//!    `wake` is visible after `register`. The latter holds under rule 3 too, so that one who waits for a single
//!    event, as in [`oneshot`](crate::oneshot), need not come again.

use crate::primitive::{AtomicU8, Ordering, UnsafeCell};
use std::{fmt, task::Waker};

/// Holds the waker of at most one task, which any thread may [`wake`](Self::wake).
///
/// The one who waits first registers and *then* looks at the condition it waits for; the one who wakes first makes
/// the condition true and then calls `wake`. In this order no wake-up is lost.
///
/// # Blocking
///
/// Never. Clone, drop and wake of the wakers themselves run in the calling thread. A task that registers again and
/// again while another thread is stopped amid `wake` is woken each time, hence polled, until that thread goes on.
///
/// # Examples
///
/// ```
/// use offshoot_mailbox::WakerCell;
/// use std::{sync::atomic::{AtomicBool, Ordering}, task::{Context, Poll}};
///
/// struct Flag { raised: AtomicBool, waiter: WakerCell }
///
/// impl Flag {
///     fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
///         self.waiter.register(cx.waker());
///         if self.raised.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
///     }
///
///     fn raise(&self) {
///         self.raised.store(true, Ordering::Relaxed);
///         self.waiter.wake();
///     }
/// }
/// # let flag = Flag { raised: AtomicBool::new(false), waiter: WakerCell::new() };
/// # let mut cx = Context::from_waker(std::task::Waker::noop());
/// # assert!(flag.poll(&mut cx).is_pending());
/// # flag.raise();
/// # assert!(flag.poll(&mut cx).is_ready());
/// ```
pub struct WakerCell {
    state: AtomicU8,
    slot: UnsafeCell<Option<Waker>>,
}

const IDLE: u8 = 0;
const REGISTERING: u8 = 1;
const WAKING: u8 = 2;

impl WakerCell {
    /// Makes a cell without a waker.
    #[cfg(not(offshoot_loom))]
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(IDLE),
            slot: UnsafeCell::new(None),
        }
    }

    /// Makes a cell without a waker.
    #[cfg(offshoot_loom)]
    pub fn new() -> Self {
        Self {
            state: AtomicU8::new(IDLE),
            slot: UnsafeCell::new(None),
        }
    }

    /// Puts `waker` in place of the one that is here, if it is not the same already.
    ///
    /// Meant for one task at a time. If two threads register at once, one of the tasks is woken instead.
    pub fn register(&self, waker: &Waker) {
        if self
            .state
            .compare_exchange(IDLE, REGISTERING, Ordering::Acquire, Ordering::Acquire)
            .is_err()
        {
            // Rule 3, and the acquire on failure is that of rule 4.
            waker.wake_by_ref();
            return;
        }
        let registering = Registering(self);
        // SAFETY: `REGISTERING` makes the slot ours (rule 1). The closure runs no user code and keeps no reference.
        let old = self.slot.with_mut(|slot| unsafe {
            match &*slot {
                Some(old) if old.will_wake(waker) => None,
                _ => Some((*slot).take()),
            }
        });
        if let Some(old) = old {
            // The clone is user code: should it panic, the slot is empty and `registering` gives it back.
            let new = waker.clone();
            // SAFETY: as above. The slot is empty, so the assignment drops nothing.
            self.slot.with_mut(|slot| unsafe { *slot = Some(new) });
            drop(registering);
            drop(old);
        }
    }

    /// Wakes the registered task, if any, and forgets its waker.
    pub fn wake(&self) {
        if let Some(waker) = self.take() {
            waker.wake();
        }
    }

    /// Removes the waker without calling it. If a `wake` or `register` is under way, that one deals with it.
    pub fn take(&self) -> Option<Waker> {
        // Acquire for the waker in the slot; release for the one who is registering, or for the one who registers
        // next after another thread's waking (rule 4).
        if self.state.fetch_or(WAKING, Ordering::AcqRel) != IDLE {
            return None; // Rule 2, or somebody else is waking.
        }
        // SAFETY: `WAKING`, set from `IDLE`, makes the slot ours (rule 1). No user code runs in the closure.
        let waker = self.slot.with_mut(|slot| unsafe { (*slot).take() });
        // Nobody registers meanwhile (rule 3), so `WAKING` is the only bit there is. A swap, as a mere store would
        // hide what those who found `WAKING` wrote from the next one to register (rule 4).
        if cfg!(offshoot_mutant = "take_breaks_chain") {
            self.state.store(IDLE, Ordering::Release);
            return waker;
        }
        self.state.swap(IDLE, Ordering::Release);
        waker
    }
}

/// The lock of `register`, given back on the way out, also by a panic.
struct Registering<'a>(&'a WakerCell);

impl Drop for Registering<'_> {
    fn drop(&mut self) {
        let WakerCell { state, slot } = self.0;
        if cfg!(offshoot_mutant = "register_deaf") {
            state.store(IDLE, Ordering::Release);
            return;
        }
        if state
            .compare_exchange(REGISTERING, IDLE, Ordering::Release, Ordering::Relaxed)
            .is_ok()
        {
            return;
        }
        // Somebody wants to wake, and leaves it to us (rule 2). No one else enters while either bit is set.
        // SAFETY: `REGISTERING` is still set, so the slot is ours (rule 1). No user code runs in the closure.
        let waker = slot.with_mut(|slot| unsafe { (*slot).take() });
        // Acquire, so that the woken task, if it is this thread's, sees what the other wrote (rule 4).
        state.swap(IDLE, Ordering::AcqRel);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// SAFETY: the slot is accessed only by the thread that owns it per rule 1, and a `Waker` is `Send` and `Sync`.
unsafe impl Sync for WakerCell {}

// SAFETY: a cell owns its waker, and a `Waker` is `Send`.
unsafe impl Send for WakerCell {}

impl Default for WakerCell {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WakerCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakerCell").finish_non_exhaustive()
    }
}
