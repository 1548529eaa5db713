//! The inbox: a multi-producer queue whose consumer takes everything at once.
//!
//! It is for one consumer that handles batches, as an event loop does. It is not bounded, since an isolate bounds
//! its senders by credit, and it neither blocks nor wakes: see [`Parker`](crate::Parker) for that.
//!
//! # Rules of the head word
//!
//! 1. `head` is `EMPTY`, `CLOSED`, or the address of the node pushed last, which links to the one before it.
//! 2. Until the push succeeds a node belongs to its pusher. Afterwards it belongs to the list, and nobody touches it.
//! 3. Whoever exchanges a list for `EMPTY` or `CLOSED` owns all its nodes; so each value leaves by exactly one way.
//! 4. `CLOSED` is final. Therefore taking is a compare-exchange: a plain swap would open the queue again.
//! 5. A push is a release and taking an acquire. Pushes are read-modify-writes, hence in each other's release
//!    sequence, so that an acquire of the last one is an acquire of them all.
//! 6. Closing is also a release, and seeing `CLOSED` an acquire: what was written before closing is visible to
//!    whoever is turned away.
//!
//! # Why the links are addresses
//!
//! A pusher reads the head, and may be overtaken by a consumer that frees that node and another pusher that gets
//! the same memory again. Its compare-exchange then succeeds, as it should: to the list only the address counts.
//! But a *pointer* read earlier would still be the pointer to the freed node, which nobody may follow (the
//! "pointer zap" of C++ paper P1726). So nodes expose their provenance, and links are plain addresses.

use crate::primitive::{AtomicUsize, Ordering, UnsafeCell, peek};
use crossbeam::utils::CachePadded;
use std::{
    cell, fmt,
    iter::FusedIterator,
    marker::PhantomData,
    mem,
    panic::{RefUnwindSafe, UnwindSafe},
    ptr,
};

/// A lock-free queue of many producers and one consumer, which takes all values at once, in order.
///
/// [`push`](Self::push) allocates one node and makes one compare-exchange; [`take_all`](Self::take_all) makes one
/// compare-exchange for the whole batch and then puts it in order. Values of one producer stay in order.
///
/// Nothing is ever lost: each value is returned by exactly one `take_all` or `close`, or handed back by the push
/// that failed, or dropped with the queue. All methods may be called by any thread.
///
/// # Blocking
///
/// Never. A thread that is stopped in the middle of a call hinders no other.
///
/// # Examples
///
/// ```
/// use offshoot_mailbox::{Pushed, Queue};
///
/// let queue = Queue::new();
/// assert_eq!(queue.push('a'), Ok(Pushed::First));
/// assert_eq!(queue.push('b'), Ok(Pushed::Behind));
/// assert!(queue.take_all().eq(['a', 'b']));
///
/// queue.push('c').unwrap();
/// assert!(queue.close().eq(['c']));
/// assert_eq!(queue.push('d'), Err('d'));
/// ```
///
/// A queue of long-lived references is no queue of short-lived ones, or a producer could slip one of these in:
///
/// ```compile_fail
/// use offshoot_mailbox::Queue;
///
/// fn shorten<'short>(queue: &'short Queue<&'static str>) -> &'short Queue<&'short str> {
///     queue
/// }
/// ```
///
/// Nor can it bring to another thread what may not go there:
///
/// ```compile_fail
/// fn is_sync<T: Sync>(_: T) {}
/// is_sync(offshoot_mailbox::Queue::<std::rc::Rc<()>>::new());
/// ```
pub struct Queue<T> {
    // Producers of all cores write here, so it shares its cache line with nothing.
    head: CachePadded<AtomicUsize>,
    // A cell, as `head` has the effect of one: invariant in `T`, and not `Sync` by itself.
    values: PhantomData<cell::UnsafeCell<T>>,
}

/// What a successful [`Queue::push`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The queue was empty. Whoever gets this wakes the consumer.
    First,
    /// There were other values, whose first pusher has woken the consumer or is about to.
    ///
    /// Leaving the wake-up to that pusher is sound, but trusts it to get there: if it is descheduled
    /// between its push and its wake-up, this value waits as well.
    Behind,
}

/// The values that one [`Queue::take_all`] or [`Queue::close`] took, oldest first.
///
/// Those not iterated over are dropped with it. It may go to another thread if the values may:
///
/// ```compile_fail
/// fn is_send<T: Send>(_: T) {}
/// is_send(offshoot_mailbox::Queue::<std::rc::Rc<()>>::new().take_all());
/// ```
#[must_use = "the values are out of the queue and dropped with this"]
pub struct Batch<T> {
    /// The oldest node or `EMPTY`.
    first: usize,
    len: usize,
    values: PhantomData<T>,
}

const EMPTY: usize = 0;
// No node lies here: it holds a `usize`, so its address is even.
const CLOSED: usize = 1;

struct Node<T> {
    link: UnsafeCell<usize>,
    value: T,
}

// Each of these is what the rule says, unless a mutant is asked for, which `ci/loom` wants to see caught.
const PUSH: Ordering = if cfg!(offshoot_mutant = "push_relaxed") {
    Ordering::Relaxed
} else {
    Ordering::Release // Rule 5.
};
const TAKE: Ordering = if cfg!(offshoot_mutant = "take_relaxed") {
    Ordering::Relaxed
} else {
    Ordering::Acquire // Rule 5.
};
const CLOSE: Ordering = if cfg!(offshoot_mutant = "close_acquires") {
    Ordering::Acquire
} else {
    Ordering::AcqRel // Rules 5 and 6.
};

impl<T> Queue<T> {
    /// Makes an empty, open queue. Allocates nothing.
    #[cfg(not(offshoot_loom))]
    pub const fn new() -> Self {
        Self {
            head: CachePadded::new(AtomicUsize::new(EMPTY)),
            values: PhantomData,
        }
    }

    /// Makes an empty, open queue.
    #[cfg(offshoot_loom)]
    pub fn new() -> Self {
        Self {
            head: CachePadded::new(AtomicUsize::new(EMPTY)),
            values: PhantomData,
        }
    }

    /// Appends a value and says whether it is the first since the last [`take_all`](Self::take_all).
    ///
    /// # Errors
    ///
    /// The value itself, if the queue is closed. What the closing thread did before is then visible to this one.
    pub fn push(&self, value: T) -> Result<Pushed, T> {
        let mut head = peek(&self.head);
        if head == CLOSED {
            self.is_closed(); // The acquire of rule 6.
            return Err(value);
        }
        let node = Box::into_raw(Box::new(Node {
            link: UnsafeCell::new(head),
            value,
        }));
        let address = node.expose_provenance();
        loop {
            // Relaxed on failure: the head is compared and linked to, never followed.
            match self
                .head
                .compare_exchange_weak(head, address, PUSH, Ordering::Relaxed)
            {
                Ok(EMPTY) => return Ok(Pushed::First),
                Ok(_) => return Ok(Pushed::Behind),
                Err(CLOSED) => {
                    self.is_closed(); // The acquire of rule 6.
                    // SAFETY: `node` comes from `Box::into_raw` above, and per rule 2 it is still ours.
                    let node = unsafe { Box::from_raw(node) };
                    return Err(node.value);
                }
                Err(now) => {
                    head = now;
                    // SAFETY: the node is allocated and initialised, and per rule 2 nobody else sees it yet.
                    unsafe { (*node).link.with_mut(|link| *link = now) };
                }
            }
        }
    }

    /// Takes all values out, oldest first. An empty or closed queue gives an empty batch.
    ///
    /// The batch is walked once to put it in order, so the call costs time in proportion to its length.
    pub fn take_all(&self) -> Batch<T> {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            if head == EMPTY || head == CLOSED {
                return Batch::EMPTY;
            }
            if cfg!(offshoot_mutant = "take_reopens") {
                let list = self.head.swap(EMPTY, TAKE);
                if list == CLOSED {
                    return Batch::EMPTY;
                }
                // SAFETY: as below; what this gets wrong is rule 4.
                return unsafe { Batch::in_order(list) };
            }
            match self
                .head
                .compare_exchange_weak(head, EMPTY, TAKE, Ordering::Relaxed)
            {
                // SAFETY: the exchange makes the list ours (rule 3) and its nodes visible (rule 5).
                Ok(list) => return unsafe { Batch::in_order(list) },
                Err(now) => head = now,
            }
        }
    }

    /// Closes the queue for good and takes out what was left in it, oldest first.
    ///
    /// Every push either comes before and is in this batch or an earlier one, or fails. Closing again gives an
    /// empty batch.
    pub fn close(&self) -> Batch<T> {
        let list = self.head.swap(CLOSED, CLOSE);
        if list == CLOSED || cfg!(offshoot_mutant = "close_forgets") {
            return Batch::EMPTY;
        }
        // SAFETY: the swap makes the list, which may be empty, ours (rule 3) and its nodes visible (rule 5).
        unsafe { Batch::in_order(list) }
    }

    /// Whether there is nothing to take. Already out of date when there are producers; a closed queue is empty.
    pub fn is_empty(&self) -> bool {
        matches!(self.head.load(Ordering::Relaxed), EMPTY | CLOSED)
    }

    /// Whether [`close`](Self::close) was called. Once true it stays so.
    pub fn is_closed(&self) -> bool {
        // Rule 6.
        self.head.load(Ordering::Acquire) == CLOSED
    }
}

// SAFETY: the values are owned by the queue, and moved to whichever thread takes or drops them; that is `T: Send`.
unsafe impl<T: Send> Send for Queue<T> {}

// SAFETY: all shared access is by the head word, under the rules above. No method gives out a `&T`, and values go
// from thread to thread by move only, so `T: Send` suffices.
unsafe impl<T: Send> Sync for Queue<T> {}

// A panic can only come from the allocator or from dropping a batch, when the queue is already consistent.
impl<T> UnwindSafe for Queue<T> {}
impl<T> RefUnwindSafe for Queue<T> {}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.head.load(Ordering::Relaxed) {
            EMPTY => "empty",
            CLOSED => "closed",
            _ => "filled",
        };
        f.debug_tuple("Queue")
            .field(&format_args!("{state}"))
            .finish()
    }
}

impl<T> Batch<T> {
    const EMPTY: Self = Self {
        first: EMPTY,
        len: 0,
        values: PhantomData,
    };

    /// Turns a list around, from newest first to oldest first.
    ///
    /// # Safety
    ///
    /// `newest` is `EMPTY` or the head of a list of which the caller is the only owner and all of whose nodes are
    /// visible to this thread.
    unsafe fn in_order(newest: usize) -> Self {
        let mut batch = Self::EMPTY;
        let mut rest = newest;
        while rest != EMPTY {
            let node = ptr::with_exposed_provenance::<Node<T>>(rest);
            // SAFETY: `rest` is the exposed address of a live node (only `Box::from_raw` ends it, and only for an
            // owner), and the caller vouches that nobody else accesses its link.
            rest = unsafe {
                (*node)
                    .link
                    .with_mut(|link| mem::replace(&mut *link, batch.first))
            };
            batch.first = node.addr();
            batch.len += 1;
        }
        batch
    }
}

// SAFETY: a batch owns its values and nobody else can reach them, as with a `Vec<T>`.
unsafe impl<T: Send> Send for Batch<T> {}

impl<T> Iterator for Batch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.first == EMPTY {
            return None;
        }
        let node = ptr::with_exposed_provenance_mut::<Node<T>>(self.first);
        // SAFETY: the address was exposed after `Box::into_raw` in `push`, and the node is ours per rule 3. It
        // leaves the list in the next line, so that it is freed once.
        let node = unsafe { Box::from_raw(node) };
        // SAFETY: the box is ours alone.
        self.first = unsafe { node.link.with_mut(|link| *link) };
        self.len -= 1;
        Some(node.value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl<T> ExactSizeIterator for Batch<T> {}
impl<T> FusedIterator for Batch<T> {}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        /// Goes on with the rest when the drop of a value panics, as the standard collections do.
        struct Rest<'a, T>(&'a mut Batch<T>);
        impl<T> Drop for Rest<'_, T> {
            fn drop(&mut self) {
                self.0.for_each(drop);
            }
        }

        let rest = Rest(self);
        rest.0.for_each(drop);
    }
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
