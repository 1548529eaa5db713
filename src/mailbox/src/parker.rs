//! The sleep of one thread that other threads wake.
//!
//! It is only the agreement on who wakes whom and when that is needed. The sleeping and waking itself is the
//! caller's, who has two ways: on the futex word, or in epoll with an eventfd. So this makes no system call.
//!
//! # Rules of the state word
//!
//! 1. Only the owner puts it to `AWAKE`, `FUTEX` or `POLL`; anybody puts it to `NOTIFIED`.
//! 2. The owner goes to sleep only from `AWAKE`. A notification that came before makes it not sleep, so nobody needs
//!    to look at the work again between announcing the sleep and sleeping.
//! 3. Whoever replaces `FUTEX` or `POLL` by `NOTIFIED` has to wake the owner, and nobody else has.
//! 4. Notifying is a release, and consuming a notification an acquire; both are read-modify-writes always. So
//!    whatever was done before any [`unpark`](Parker::unpark) is visible after the `prepare` or `finish` that
//!    consumes it, even if several notifications became one.

use crate::primitive::{AtomicU32, Ordering};
use std::fmt;

/// The handshake between one thread that sleeps, the owner, and others that wake it.
///
/// The owner, when it has nothing left to do:
///
/// ```
/// # use offshoot_mailbox::{Parker, Queue, Sleep};
/// # fn futex_wait(_: &std::sync::atomic::AtomicU32, _: u32) {}
/// # let (parker, queue) = (Parker::new(), Queue::<()>::new());
/// assert!(queue.is_empty());
/// if parker.prepare(Sleep::Futex) {
///     futex_wait(parker.word(), Parker::ASLEEP);
///     parker.finish();
/// }
/// // Look at the queue again.
/// ```
///
/// Everybody else:
///
/// ```
/// # use offshoot_mailbox::{Parker, Queue, Wake};
/// # fn futex_wake(_: &std::sync::atomic::AtomicU32) {}
/// # fn write_to_eventfd() {}
/// # let (parker, queue) = (Parker::new(), Queue::new());
/// queue.push("work").unwrap();
/// match parker.unpark() {
///     Wake::Nothing => {}
///     Wake::Futex => futex_wake(parker.word()),
///     Wake::Poll => write_to_eventfd(),
/// }
/// ```
///
/// A notification is kept until it is consumed, but several become one: as with [`std::thread::park`], return from
/// sleep means "look again", and all work that was there before an `unpark` is visible then.
///
/// # Blocking
///
/// Never.
pub struct Parker {
    state: AtomicU32,
}

/// In what the owner is about to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// In `futex_wait` on [`Parker::word`], as long as that is [`Parker::ASLEEP`].
    Futex,
    /// In `epoll_wait` with an eventfd in its set, which stays readable if it is written to before the sleep begins.
    Poll,
}

/// What is left to do after [`Parker::unpark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the owner sleeps on unless it is woken as this says"]
pub enum Wake {
    /// Nothing: the owner is awake, or somebody else wakes it.
    Nothing,
    /// Call `futex_wake` on [`Parker::word`].
    Futex,
    /// Write to the eventfd of the owner.
    Poll,
}

const AWAKE: u32 = 0;
const NOTIFIED: u32 = 1;
const FUTEX: u32 = 2;
const POLL: u32 = 3;

impl Parker {
    /// The value of [`word`](Self::word) during which a thread may sleep on it: what `futex_wait` is to expect.
    pub const ASLEEP: u32 = FUTEX;

    /// Makes a parker whose owner is awake and not notified.
    #[cfg(not(offshoot_loom))]
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(AWAKE),
        }
    }

    /// Makes a parker whose owner is awake and not notified.
    #[cfg(offshoot_loom)]
    pub fn new() -> Self {
        Self {
            state: AtomicU32::new(AWAKE),
        }
    }

    /// Announces that the owner is about to sleep, and says whether it may.
    ///
    /// If true, sleep, then call [`finish`](Self::finish) whatever the sleep ended with. If false, a notification
    /// had come and is now consumed: do not sleep, look for work again.
    ///
    /// # Panics
    ///
    /// If the last sleep was not finished, or another thread also sleeps here: one of the two would not be woken.
    pub fn prepare(&self, how: Sleep) -> bool {
        let asleep = match how {
            Sleep::Futex => FUTEX,
            Sleep::Poll => POLL,
        };
        // Relaxed on success: `AWAKE` is our own word (rule 1), there is nothing to acquire.
        match self
            .state
            .compare_exchange(AWAKE, asleep, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => true,
            Err(NOTIFIED) => {
                self.finish();
                false
            }
            Err(_) => panic!("a parker whose owner sleeps already was prepared for sleep"),
        }
    }

    /// Ends the sleep that [`prepare`](Self::prepare) announced, and says whether it was by a notification.
    ///
    /// Otherwise it ended by a timeout, a signal or an event of the owner's own. Outside of a sleep this consumes
    /// the pending notification, if any.
    pub fn finish(&self) -> bool {
        if cfg!(offshoot_mutant = "finish_stores") {
            let state = self.state.load(Ordering::Acquire);
            self.state.store(AWAKE, Ordering::Relaxed);
            return state == NOTIFIED;
        }
        // A swap even if we know that we are notified: there may be another notification by now, and a mere store
        // would overwrite it without acquiring what it announces (rule 4).
        self.state.swap(AWAKE, Ordering::Acquire) == NOTIFIED
    }

    /// Notifies the owner and says how it is to be woken, which is then up to the caller.
    ///
    /// To be called after the work was made visible, say by [`Queue::push`](crate::Queue::push). Keep the parker
    /// alive until the waking is done: the owner may run as soon as this returns.
    pub fn unpark(&self) -> Wake {
        if cfg!(offshoot_mutant = "unpark_stores") {
            let state = self.state.load(Ordering::Relaxed);
            self.state.store(NOTIFIED, Ordering::Release);
            return Self::wake_for(state);
        }
        if cfg!(offshoot_mutant = "unpark_skips") && self.state.load(Ordering::Relaxed) == NOTIFIED
        {
            return Wake::Nothing;
        }
        // A swap even if it is `NOTIFIED` already: the owner may be about to consume that, and would not see the
        // work of this thread if this thread had not written (rule 4).
        Self::wake_for(self.state.swap(NOTIFIED, Ordering::Release))
    }

    /// Whether a notification waits to be consumed. For an owner that looks for one before it sleeps: only
    /// [`prepare`](Self::prepare) or [`finish`](Self::finish) consumes it, and makes visible what it announces.
    pub fn is_notified(&self) -> bool {
        self.state.load(Ordering::Relaxed) == NOTIFIED
    }

    /// The futex word. Not to be written to; to be read only to compare with [`ASLEEP`](Self::ASLEEP).
    #[cfg(not(offshoot_loom))]
    pub fn word(&self) -> &std::sync::atomic::AtomicU32 {
        &self.state
    }

    /// Whether the owner sleeps or is about to, in either way. For reports only, as it is out of date at once.
    pub fn is_asleep(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), FUTEX | POLL)
    }

    /// What rule 3 asks of the one who replaced `state`.
    fn wake_for(state: u32) -> Wake {
        match state {
            FUTEX => Wake::Futex,
            POLL => Wake::Poll,
            _ => Wake::Nothing,
        }
    }
}

impl Default for Parker {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Parker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state.load(Ordering::Relaxed) {
            AWAKE => "awake",
            NOTIFIED => "notified",
            FUTEX => "asleep on the futex",
            _ => "asleep in epoll",
        };
        f.debug_tuple("Parker")
            .field(&format_args!("{state}"))
            .finish()
    }
}
