//! A message in one allocation: what is sent, the link by which an inbox holds it, and the slot for its reply.
//!
//! Its sender makes an [`Envelope`], in an `Arc`. To send it, it makes a [`Letter`] of that, or of a clone if it awaits the reply by
//! the other; a [`List`] holds letters by the link in them. Whoever gets the letter opens it as what it is for receivers, say
//! `Arc<dyn Job>`, and takes out what was sent. A letter that is dropped unopened is refused: its sender is told.
//!
//! # Rules of the state word
//!
//! 1. It goes from `DRAFT` over `SEALING` to `SENT`, by whoever makes the letter, and from `DRAFT` or `SENT` to `EMPTY`, by whoever
//!    takes out the contents; each by an exchange but the one to `SENT`, which `SEALING` gives to one thread alone.
//! 2. The contents are accessed by whoever made the exchange to `SEALING`, until it has stored `SENT`, and by whoever made the one to
//!    `EMPTY`, who takes them out.
//! 3. The link is the letter's, of which there is one, since `DRAFT` is left once.
//! 4. A sender of the slot is made by whoever took out the contents, so that there is one.
//!
//! [`List`]: crate::List

use crate::{
    oneshot::{Holds, Sender, Slot},
    primitive::{Arc, AtomicU8, Ordering, UnsafeCell},
    queue::{Link, Node},
};
use std::{fmt, marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};

const DRAFT: u8 = 0;
const SEALING: u8 = 1;
const SENT: u8 = 2;
const EMPTY: u8 = 3;

/// What can be put into an [`Envelope`] with the reply slot `S`.
pub trait Contents<S>: Sized {
    /// What the envelope is for its receivers; often a trait object.
    type Face: ?Sized + Refuse;

    /// Shows that face.
    fn face(envelope: Arc<Envelope<Self, S>>) -> Arc<Self::Face>;
}

/// What can be told that nobody will open it.
pub trait Refuse {
    /// Drops what is in it, and tells whoever awaits its reply that none will come. Nothing, if it was opened before.
    fn refuse(&self);
}

/// The part of an envelope that its letter knows.
// The link first, so that its address is that of the whole.
#[repr(C)]
struct Head<D: ?Sized> {
    link: Link,
    /// The way from the link back to the whole.
    open: unsafe fn(NonNull<Link>) -> Arc<D>,
}

/// A message and all that it needs on its way.
#[repr(C)]
pub struct Envelope<C: Contents<S>, S> {
    head: Head<C::Face>,
    state: AtomicU8,
    contents: UnsafeCell<ManuallyDrop<C>>,
    reply: S,
}

// SAFETY: the contents go from thread to thread by move only, since they are taken out once (rule 1): that is `C: Send`. The slot
// is shared. The link is its letter's.
unsafe impl<C: Contents<S> + Send, S: Sync> Sync for Envelope<C, S> {}
// SAFETY: as above.
unsafe impl<C: Contents<S> + Send, S: Send> Send for Envelope<C, S> {}

impl<C: Contents<()>> Envelope<C, ()> {
    /// Of a message that nobody replies to.
    pub fn without_reply(contents: C) -> Arc<Self> {
        Self::new(contents, ())
    }

    /// Takes out what is in it, if nobody has.
    pub fn take(&self) -> Option<C> {
        self.take_out()
    }
}

impl<T, C: Contents<Slot<T>>> Envelope<C, Slot<T>> {
    /// Of a message with a reply.
    pub fn with_reply(contents: C) -> Arc<Self> {
        Self::new(contents, Slot::new())
    }

    /// Takes out what is in it, if nobody has, and the end that replies.
    pub fn open(envelope: Arc<Self>) -> Option<(C, Sender<T, Self>)> {
        let contents = envelope.take_out()?;
        Some((contents, Sender::new(envelope))) // Rule 4.
    }

    /// Takes out what is in it, if nobody has. There will be no reply.
    pub fn retract(&self) -> Option<C> {
        let contents = self.take_out()?;
        self.reply.abandon();
        Some(contents)
    }
}

impl<C: Contents<S>, S> Envelope<C, S> {
    fn new(contents: C, reply: S) -> Arc<Self> {
        Arc::new(Self {
            head: Head {
                link: Link::new(),
                open: open::<C, S>,
            },
            state: AtomicU8::new(DRAFT),
            contents: UnsafeCell::new(ManuallyDrop::new(contents)),
            reply,
        })
    }

    /// The slot for its reply.
    pub fn reply(&self) -> &S {
        &self.reply
    }

    fn take_out(&self) -> Option<C> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            if !matches!(state, DRAFT | SENT) {
                return None;
            }
            if cfg!(offshoot_mutant = "take_out_looks") {
                self.state.store(EMPTY, Ordering::Relaxed);
                break;
            }
            // Acquire, for what the one who made the letter wrote; what was there before came with the envelope.
            match self
                .state
                .compare_exchange(state, EMPTY, Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        // SAFETY: rule 2.
        Some(
            self.contents
                .with_mut(|contents| unsafe { ManuallyDrop::take(&mut *contents) }),
        )
    }
}

impl<C: Contents<S>, S> Drop for Envelope<C, S> {
    fn drop(&mut self) {
        drop(self.take_out());
    }
}

impl<C: Contents<()>> Refuse for Envelope<C, ()> {
    fn refuse(&self) {
        drop(self.take_out());
    }
}

impl<T, C: Contents<Slot<T>>> Refuse for Envelope<C, Slot<T>> {
    fn refuse(&self) {
        /// Tells the sender also if the contents' drop panics.
        struct Abandon<'a, T>(&'a Slot<T>);
        impl<T> Drop for Abandon<'_, T> {
            fn drop(&mut self) {
                self.0.abandon();
            }
        }
        if let Some(contents) = self.take_out() {
            if cfg!(offshoot_mutant = "refuse_tells_nobody") {
                return;
            }
            let _abandon = Abandon(&self.reply);
            drop(contents);
        }
    }
}

// SAFETY: the slot is a field. A sender of it is made by `open` alone (rule 3).
unsafe impl<T, C: Contents<Slot<T>>> Holds<T> for Envelope<C, Slot<T>> {
    fn slot(&self) -> &Slot<T> {
        &self.reply
    }
}

impl<C: Contents<S>, S> fmt::Debug for Envelope<C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("empty", &(self.state.load(Ordering::Relaxed) == EMPTY))
            .finish_non_exhaustive()
    }
}

/// # Safety
///
/// The link is that of an `Envelope<C, S>` of which a letter was made, which owns a count of its `Arc` and gives it up by this.
unsafe fn open<C: Contents<S>, S>(link: NonNull<Link>) -> Arc<C::Face> {
    // SAFETY: the link is the first field of the first one, and the pointer is that of the whole, by `Letter::seal`.
    C::face(unsafe { Arc::from_raw(link.as_ptr().cast::<Envelope<C, S>>()) })
}

/// An envelope on its way, as one word. Refused if it is dropped.
///
/// It can be sent to another thread if and only if what is in it can.
pub struct Letter<D: ?Sized + Refuse> {
    link: NonNull<Link>,
    face: PhantomData<Arc<D>>,
}

impl<D: ?Sized + Refuse> Letter<D> {
    /// Of an envelope of which there was none before, after a last touch to what is in it.
    ///
    /// # Panics
    ///
    /// If there was one, or what is in it was taken out; if `stamp` does.
    pub fn seal<C: Contents<S, Face = D>, S>(
        envelope: Arc<Envelope<C, S>>,
        stamp: impl FnOnce(&mut C),
    ) -> Self {
        /// So it is taken for unsent if the stamp panics.
        struct Sealing<'a>(&'a AtomicU8, u8);
        impl Drop for Sealing<'_> {
            fn drop(&mut self) {
                // For who takes out the contents.
                self.0.store(self.1, Ordering::Release);
            }
        }
        let sealed =
            envelope
                .state
                .compare_exchange(DRAFT, SEALING, Ordering::Relaxed, Ordering::Relaxed);
        assert!(sealed.is_ok(), "an envelope is sent once"); // Rule 3.
        let mut sealing = Sealing(&envelope.state, DRAFT);
        // SAFETY: rule 2. What is behind `ManuallyDrop` is there.
        envelope
            .contents
            .with_mut(|contents| stamp(unsafe { &mut *contents }));
        sealing.1 = SENT;
        drop(sealing);
        let whole = Arc::into_raw(envelope).cast_mut();
        // SAFETY: it is the pointer of an `Arc`.
        let whole = unsafe { NonNull::new_unchecked(whole) };
        Self {
            link: whole.cast(),
            face: PhantomData,
        }
    }

    /// What it is for its receiver, who has to see to it that it is opened or refused.
    pub fn open(self) -> Arc<D> {
        let link = ManuallyDrop::new(self).link;
        // SAFETY: see below.
        unsafe { Self::raise(link) }
    }

    /// # Safety
    ///
    /// The link is that of a letter with this face, which goes by this.
    unsafe fn raise(link: NonNull<Link>) -> Arc<D> {
        // SAFETY: the link is the first field of a `Head<D>`, and the letter's alone. The rest of the head does not change, and the
        // letter owns a count of the envelope, so that it is there.
        unsafe { (link.cast::<Head<D>>().as_ref().open)(link) }
    }
}

impl<D: ?Sized + Refuse> Drop for Letter<D> {
    fn drop(&mut self) {
        // SAFETY: it is dropped once, and nobody uses the link afterwards.
        unsafe { Self::raise(self.link) }.refuse();
    }
}

// SAFETY: it is an `Arc<D>` in another form.
unsafe impl<D: ?Sized + Refuse + Send + Sync> Send for Letter<D> {}
// SAFETY: the link is a field of the envelope, of which the letter owns a count, and only the letter uses it (rule 3). The pointer
// is that of the whole. An envelope is aligned at least as its link.
unsafe impl<D: ?Sized + Refuse> Node for Letter<D> {
    fn into_link(self) -> NonNull<Link> {
        ManuallyDrop::new(self).link
    }

    unsafe fn from_link(link: NonNull<Link>) -> Self {
        Self {
            link,
            face: PhantomData,
        }
    }
}

impl<D: ?Sized + Refuse> fmt::Debug for Letter<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Letter")
    }
}
