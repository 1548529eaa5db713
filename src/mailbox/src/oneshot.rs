//! A slot for one reply: one value from one sender to one receiver, either of whom may leave first.
//!
//! It is what a call awaits its answer in. The caller may be cancelled, and the isolate that is to answer may be
//! abandoned and answer much later, or never; so the slot is owned by both ends together, not by the caller's frame,
//! and a late answer is handed back to the one who is late.
//!
//! # Rules of the state word
//!
//! 1. It leaves `OPEN` once, by a compare-exchange: to `SENT` or `DROPPED` by the sender, to `CLOSED` by a receiver.
//!    Whoever makes the exchange has claimed the slot. `SENT` becomes `TAKEN`, by another one; nothing else ever changes.
//! 2. While it is `OPEN` or `CLOSED` the value's place is the sender's, of which there is one; once it is `SENT`, that of
//!    whoever makes it `TAKEN`. Otherwise it is empty.
//! 3. The exchange is a release and reading its outcome an acquire, so the value is visible with `SENT`.
//! 4. The claimant then wakes the other end. The other end registers its waker before it looks at the state for the
//!    last time before it waits; see [`WakerCell`] for why that suffices.
//! 5. An end that goes takes its own waker along, lest its task lives as long as the other end.

use crate::{
    WakerCell,
    primitive::{Arc, AtomicU8, Ordering, UnsafeCell},
};
use std::{
    error, fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

/// Makes a slot and its two ends. One allocation.
///
/// # Examples
///
/// ```
/// use offshoot_mailbox::oneshot;
///
/// let (sender, mut receiver) = oneshot::channel();
/// assert_eq!(receiver.try_recv(), None);
/// sender.send(42).unwrap();
/// assert_eq!(receiver.try_recv(), Some(Ok(42)));
///
/// let (sender, receiver) = oneshot::channel();
/// drop(receiver);
/// assert_eq!(sender.send("too late"), Err("too late"));
/// ```
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot::new());
    (Sender::new(Arc::clone(&slot)), Receiver::new(slot))
}

/// The end that replies. Dropping it without replying tells the receiver [`Dropped`].
///
/// It can be sent to another thread if and only if the value can:
///
/// ```compile_fail
/// fn is_send<T: Send>(_: T) {}
/// is_send(offshoot_mailbox::oneshot::channel::<std::rc::Rc<()>>().0);
/// ```
pub struct Sender<T, H: ?Sized + Holds<T> = Slot<T>> {
    holder: Arc<H>,
    /// Whether a waker of ours may be in the slot, so that the common sender need not look.
    registered: bool,
    /// Whether the one exchange of the sender was made, successfully or not, which saves the drop a vain one.
    claimed: bool,
    value: PhantomData<fn(T)>,
}

/// The end that awaits the reply, a future. Dropping it tells the sender that nobody waits any more.
///
/// It can be sent to another thread if and only if the value can:
///
/// ```compile_fail
/// fn is_send<T: Send>(_: T) {}
/// is_send(offshoot_mailbox::oneshot::channel::<std::rc::Rc<()>>().1);
/// ```
///
/// # Cancellation
///
/// The future may be polled, forgotten about and polled again; a value that has arrived stays until it is taken.
#[must_use = "dropping the receiver tells the sender that nobody waits"]
pub struct Receiver<T, H: ?Sized + Holds<T> = Slot<T>> {
    holder: Arc<H>,
    /// Whether a waker of ours may be in the slot.
    registered: bool,
    value: PhantomData<fn() -> T>,
}

/// No value will come: the sender was dropped without sending, the receiver closed, or the value already taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped;

const OPEN: u8 = 0;
const SENT: u8 = 1;
const DROPPED: u8 = 2;
const CLOSED: u8 = 3;
const TAKEN: u8 = 4;

/// The place in which a reply is awaited. It may be a part of something larger, say of the message that asks for it.
pub struct Slot<T> {
    state: AtomicU8,
    value: UnsafeCell<Option<T>>,
    receiver: WakerCell,
    sender: WakerCell,
}

/// What holds a [`Slot`], so that the slot's ends can own it.
///
/// # Safety
///
/// It is the same slot whenever it is asked for, and lives as long as its holder. No [`Sender`] is made of it but by this crate.
pub unsafe trait Holds<T> {
    /// The slot.
    fn slot(&self) -> &Slot<T>;
}

// SAFETY: it is itself.
unsafe impl<T> Holds<T> for Slot<T> {
    fn slot(&self) -> &Slot<T> {
        self
    }
}

// SAFETY: the value is accessed only by the one end whose place it is per rule 2. Values pass from one thread
// to the other by move, which is `T: Send`. All else in here is `Sync`.
unsafe impl<T: Send> Sync for Slot<T> {}

const CLAIM: Ordering = if cfg!(offshoot_mutant = "claim_relaxed") {
    Ordering::Relaxed
} else {
    Ordering::Release
};

impl<T> Slot<T> {
    /// An open one.
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU8::new(OPEN),
            value: UnsafeCell::new(None),
            receiver: WakerCell::new(),
            sender: WakerCell::new(),
        }
    }

    /// Makes the one exchange of rule 1, and says whether it was ours.
    fn claim(&self, to: u8) -> bool {
        self.state
            .compare_exchange(OPEN, to, CLAIM, Ordering::Acquire)
            .is_ok()
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Whether the receiver is closed or dropped. Once true it stays so.
    pub fn is_closed(&self) -> bool {
        self.state() == CLOSED
    }

    /// Says that no value will come, and wakes the receiver.
    pub(crate) fn abandon(&self) {
        if self.claim(DROPPED) {
            self.receiver.wake(); // Rule 4.
        }
    }

    fn take(&self) -> Option<Result<T, Dropped>> {
        match self.state() {
            OPEN => None,
            // Others may want it, too.
            SENT if cfg!(offshoot_mutant = "receive_looks")
                || self
                    .state
                    .compare_exchange(SENT, TAKEN, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok() =>
            {
                // SAFETY: with the exchange it is ours (rule 2), and the acquire made it visible (rule 3).
                let value = self.value.with_mut(|value| unsafe { (*value).take() });
                Some(value.ok_or(Dropped))
            }
            _ => Some(Err(Dropped)),
        }
    }
}

impl<T, H: ?Sized + Holds<T>> Sender<T, H> {
    /// The one sender of this slot.
    pub(crate) fn new(holder: Arc<H>) -> Self {
        Self {
            holder,
            registered: false,
            claimed: false,
            value: PhantomData,
        }
    }

    /// Sends the value and wakes the receiver.
    ///
    /// Success means that the value was put where the receiver can take it, not that it will: the receiver may be
    /// dropped right after, and the value with it.
    ///
    /// # Errors
    ///
    /// The value itself, if the receiver is closed or dropped.
    pub fn send(mut self, value: T) -> Result<(), T> {
        self.claimed = true;
        let slot = self.holder.slot();
        // SAFETY: this one sender has not claimed `SENT`, so the place is ours (rule 2), and empty, so that nothing is
        // dropped here.
        slot.value.with_mut(|place| unsafe { *place = Some(value) });
        if slot.claim(SENT) {
            slot.receiver.wake(); // Rule 4.
            return Ok(());
        }
        // SAFETY: the receiver claimed `CLOSED`, so the place remains ours (rule 2).
        let value = slot.value.with_mut(|place| unsafe { (*place).take() });
        Err(value.expect("a slot belongs to its sender until the value is sent"))
    }

    /// Whether the receiver is closed or dropped, so that sending is in vain. Once true it stays so.
    pub fn is_closed(&self) -> bool {
        self.holder.slot().is_closed()
    }

    /// Waits until the receiver is closed or dropped: the time to give up work on the reply.
    ///
    /// Only the waker of the last call is woken.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() {
            return Poll::Ready(());
        }
        self.registered = true;
        self.holder.slot().sender.register(cx.waker());
        if cfg!(offshoot_mutant = "poll_closed_looks_once") {
            return Poll::Pending;
        }
        // Rule 4.
        if self.is_closed() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<T, H: ?Sized + Holds<T>> Drop for Sender<T, H> {
    fn drop(&mut self) {
        let slot = self.holder.slot();
        if self.registered {
            drop(slot.sender.take()); // Rule 5.
        }
        if !self.claimed {
            slot.abandon();
        }
    }
}

impl<T, H: ?Sized + Holds<T>> Receiver<T, H> {
    /// One of this slot. Of several the first to look gets the value, and the last to wait is woken; the first to go closes it.
    pub fn new(holder: Arc<H>) -> Self {
        Self {
            holder,
            registered: false,
            value: PhantomData,
        }
    }

    /// Takes the value if it has come. `None` means: not yet.
    ///
    /// # Errors
    ///
    /// [`Dropped`] if no value will come any more, or it was already taken.
    pub fn try_recv(&mut self) -> Option<Result<T, Dropped>> {
        self.holder.slot().take()
    }

    /// Refuses any value that has not come yet, and wakes the sender.
    ///
    /// A value that came before can still be taken.
    pub fn close(&mut self) {
        let slot = self.holder.slot();
        if slot.claim(CLOSED) {
            slot.sender.wake(); // Rule 4.
        }
    }
}

impl<T, H: ?Sized + Holds<T>> Future for Receiver<T, H> {
    type Output = Result<T, Dropped>;

    /// Only the waker of the last poll is woken. Polled again after it was ready, it yields [`Dropped`].
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.try_recv() {
            return Poll::Ready(outcome);
        }
        self.registered = true;
        self.holder.slot().receiver.register(cx.waker());
        if cfg!(offshoot_mutant = "poll_looks_once") {
            return Poll::Pending;
        }
        // Rule 4.
        match self.try_recv() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }
}

impl<T, H: ?Sized + Holds<T>> Drop for Receiver<T, H> {
    fn drop(&mut self) {
        if self.registered {
            drop(self.holder.slot().receiver.take()); // Rule 5.
        }
        self.close();
        // Drop a value that nobody took here and now, not whenever the sender lets go of the slot.
        drop(self.try_recv());
    }
}

impl<T, H: ?Sized + Holds<T>> fmt::Debug for Sender<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<T, H: ?Sized + Holds<T>> fmt::Debug for Receiver<T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.holder.slot().state.load(Ordering::Relaxed) {
            OPEN => "open",
            SENT => "sent",
            TAKEN => "taken",
            DROPPED => "dropped",
            _ => "closed",
        };
        f.debug_tuple("Receiver")
            .field(&format_args!("{state}"))
            .finish()
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reply was dropped before it was sent")
    }
}

impl error::Error for Dropped {}
