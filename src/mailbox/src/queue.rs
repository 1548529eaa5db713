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
    panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind},
    ptr::{self, NonNull},
};

/// A lock-free list of many producers and one consumer, which takes all nodes at once, in order.
///
/// [`push`](Self::push) allocates nothing and makes one compare-exchange; [`take_all`](Self::take_all) makes one
/// compare-exchange for the whole batch and then puts it in order. Nodes of one producer stay in order. For values
/// that have no link of their own there is [`Queue`].
///
/// Nothing is ever lost: each node is returned by exactly one `take_all` or `close`, or handed back by the push
/// that failed, or dropped with the list. All methods may be called by any thread.
///
/// # Blocking
///
/// Never. A thread that is stopped in the middle of a call hinders no other.
///
/// A list of long-lived references is no list of short-lived ones, or a producer could slip one of these in; nor can
/// it bring to another thread what may not go there: see [`Queue`] for both.
pub struct List<N: Node> {
    // Producers of all cores write here, so it shares its cache line with nothing.
    head: CachePadded<AtomicUsize>,
    // A cell, as `head` has the effect of one: invariant in `N`, and not `Sync` by itself.
    nodes: PhantomData<cell::UnsafeCell<N>>,
}

/// Where a [`List`] keeps its link in a node.
pub struct Link(UnsafeCell<usize>);

/// A pointer that owns something with a [`Link`] in it.
///
/// # Safety
///
/// - What [`into_link`](Self::into_link) returns stays where it is, and is used by nobody else, until it is given to
///   [`from_link`](Self::from_link); its provenance is that of all that `from_link` needs.
/// - [`Link`] is aligned for a `usize`, so that its address is even: no node may undercut that.
pub unsafe trait Node: Sized {
    /// Gives up the pointer for that of its link.
    fn into_link(self) -> NonNull<Link>;

    /// The way back.
    ///
    /// # Safety
    ///
    /// The link comes from `into_link` of this type, and is given back once.
    unsafe fn from_link(link: NonNull<Link>) -> Self;
}

impl Link {
    /// Of a node that is in no list.
    #[cfg(not(offshoot_loom))]
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(EMPTY))
    }

    /// Of a node that is in no list.
    #[cfg(offshoot_loom)]
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(EMPTY))
    }
}

/// What a successful push found.
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

/// The nodes that one [`List::take_all`] or [`List::close`] took, oldest first.
///
/// Those not iterated over are dropped with it. It may go to another thread if the nodes may.
#[must_use = "the nodes are out of the list and dropped with this"]
pub struct Batch<N: Node> {
    /// The link of the oldest node or `EMPTY`.
    first: usize,
    len: usize,
    nodes: PhantomData<N>,
}

const EMPTY: usize = 0;
// No link lies here: it holds a `usize`, so its address is even.
const CLOSED: usize = 1;

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

impl<N: Node> List<N> {
    /// Makes an empty, open list. Allocates nothing.
    #[cfg(not(offshoot_loom))]
    pub const fn new() -> Self {
        Self {
            head: CachePadded::new(AtomicUsize::new(EMPTY)),
            nodes: PhantomData,
        }
    }

    /// Makes an empty, open list.
    #[cfg(offshoot_loom)]
    pub fn new() -> Self {
        Self {
            head: CachePadded::new(AtomicUsize::new(EMPTY)),
            nodes: PhantomData,
        }
    }

    /// Appends a node and says whether it is the first since the last [`take_all`](Self::take_all).
    ///
    /// # Errors
    ///
    /// The node itself, if the list is closed. What the closing thread did before is then visible to this one.
    pub fn push(&self, node: N) -> Result<Pushed, N> {
        let mut head = peek(&self.head);
        if head == CLOSED {
            self.is_closed(); // The acquire of rule 6.
            return Err(node);
        }
        let link = node.into_link();
        let address = link.expose_provenance().get();
        loop {
            // SAFETY: the link is valid, and per rule 2 nobody else sees it yet.
            unsafe { link.as_ref().0.with_mut(|link| *link = head) };
            // Relaxed on failure: the head is compared and linked to, never followed.
            match self
                .head
                .compare_exchange_weak(head, address, PUSH, Ordering::Relaxed)
            {
                Ok(EMPTY) => return Ok(Pushed::First),
                Ok(_) => return Ok(Pushed::Behind),
                Err(CLOSED) => {
                    self.is_closed(); // The acquire of rule 6.
                    // SAFETY: it comes from `into_link` above, and per rule 2 it is still ours.
                    return Err(unsafe { N::from_link(link) });
                }
                Err(now) => head = now,
            }
        }
    }

    /// Takes all nodes out, oldest first. An empty or closed list gives an empty batch.
    ///
    /// The batch is walked once to put it in order, so the call costs time in proportion to its length.
    pub fn take_all(&self) -> Batch<N> {
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

    /// Closes the list for good and takes out what was left in it, oldest first.
    ///
    /// Every push either comes before and is in this batch or an earlier one, or fails. Closing again gives an
    /// empty batch.
    pub fn close(&self) -> Batch<N> {
        let list = self.head.swap(CLOSED, CLOSE);
        if list == CLOSED || cfg!(offshoot_mutant = "close_forgets") {
            return Batch::EMPTY;
        }
        // SAFETY: the swap makes the list, which may be empty, ours (rule 3) and its nodes visible (rule 5).
        unsafe { Batch::in_order(list) }
    }

    /// Whether there is nothing to take. Already out of date when there are producers; a closed list is empty.
    pub fn is_empty(&self) -> bool {
        matches!(self.head.load(Ordering::Relaxed), EMPTY | CLOSED)
    }

    /// Whether [`close`](Self::close) was called. Once true it stays so.
    pub fn is_closed(&self) -> bool {
        // Rule 6.
        self.head.load(Ordering::Acquire) == CLOSED
    }

    fn state(&self) -> fmt::Arguments<'static> {
        match self.head.load(Ordering::Relaxed) {
            EMPTY => format_args!("empty"),
            CLOSED => format_args!("closed"),
            _ => format_args!("filled"),
        }
    }
}

// SAFETY: the nodes are owned by the list, and moved to whichever thread takes or drops them; that is `N: Send`.
unsafe impl<N: Node + Send> Send for List<N> {}

// SAFETY: all shared access is by the head word, under the rules above. No method gives out a `&N`, and nodes go
// from thread to thread by move only, so `N: Send` suffices.
unsafe impl<N: Node + Send> Sync for List<N> {}

// A panic can only come from dropping a batch, when the list is already consistent.
impl<N: Node> UnwindSafe for List<N> {}
impl<N: Node> RefUnwindSafe for List<N> {}

impl<N: Node> Drop for List<N> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

impl<N: Node> Default for List<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<N: Node> fmt::Debug for List<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("List").field(&self.state()).finish()
    }
}

impl<N: Node> Batch<N> {
    const EMPTY: Self = Self {
        first: EMPTY,
        len: 0,
        nodes: PhantomData,
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
            let link = ptr::with_exposed_provenance::<Link>(rest);
            // SAFETY: `rest` is the exposed address of a live link (only `from_link` ends it, and only for an owner),
            // and the caller vouches that nobody else accesses it.
            rest = unsafe {
                (*link)
                    .0
                    .with_mut(|link| mem::replace(&mut *link, batch.first))
            };
            batch.first = link.addr();
            batch.len += 1;
        }
        batch
    }
}

// SAFETY: a batch owns its nodes and nobody else can reach them, as with a `Vec<N>`.
unsafe impl<N: Node + Send> Send for Batch<N> {}

impl<N: Node> Iterator for Batch<N> {
    type Item = N;

    fn next(&mut self) -> Option<N> {
        let link = NonNull::new(ptr::with_exposed_provenance_mut::<Link>(self.first))?;
        // SAFETY: the address was exposed in `push`, and the link is ours per rule 3. It leaves the list in this line, so that
        // it is given back once.
        self.first = unsafe { link.as_ref().0.with_mut(|link| *link) };
        self.len -= 1;
        // SAFETY: as above.
        Some(unsafe { N::from_link(link) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl<N: Node> ExactSizeIterator for Batch<N> {}
impl<N: Node> FusedIterator for Batch<N> {}

impl<N: Node> Drop for Batch<N> {
    /// Each node by itself: the standard collections go on after the panic of one destructor, and abort at the second. The first panic
    /// goes on from here, unless the thread is panicking already.
    fn drop(&mut self) {
        let mut first = None;
        for node in self {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(node))) {
                match first {
                    None => first = Some(payload),
                    // Its own destructor is not to be run either.
                    Some(_) => mem::forget(payload),
                }
            }
        }
        if let Some(payload) = first
            && !std::thread::panicking()
        {
            resume_unwind(payload);
        }
    }
}

impl<N: Node> fmt::Debug for Batch<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A lock-free queue of many producers and one consumer, which takes all values at once, in order.
///
/// It is a [`List`] whose nodes it allocates, one for each [`push`](Self::push).
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
pub struct Queue<T>(List<Boxed<T>>);

/// A value and its link, on the heap.
struct Boxed<T>(NonNull<Value<T>>, PhantomData<T>);

// The link first, so that its address is that of the whole.
#[repr(C)]
struct Value<T> {
    link: Link,
    value: T,
}

impl<T> Boxed<T> {
    fn new(value: T) -> Self {
        let link = Link::new();
        Self(
            NonNull::from(Box::leak(Box::new(Value { link, value }))),
            PhantomData,
        )
    }

    fn into_value(self) -> T {
        let this = mem::ManuallyDrop::new(self);
        // SAFETY: it comes from a box, and is ours alone.
        unsafe { Box::from_raw(this.0.as_ptr()) }.value
    }
}

impl<T> Drop for Boxed<T> {
    fn drop(&mut self) {
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: the link is in the box, as its first field, and the pointer is that of the whole box. `Value` is aligned at
// least as its link.
unsafe impl<T> Node for Boxed<T> {
    fn into_link(self) -> NonNull<Link> {
        mem::ManuallyDrop::new(self).0.cast()
    }

    unsafe fn from_link(link: NonNull<Link>) -> Self {
        Self(link.cast(), PhantomData)
    }
}

// SAFETY: it owns its value, as a box does.
unsafe impl<T: Send> Send for Boxed<T> {}

impl<T> Queue<T> {
    /// Makes an empty, open queue. Allocates nothing.
    #[cfg(not(offshoot_loom))]
    pub const fn new() -> Self {
        Self(List::new())
    }

    /// Makes an empty, open queue.
    #[cfg(offshoot_loom)]
    pub fn new() -> Self {
        Self(List::new())
    }

    /// Appends a value and says whether it is the first since the last [`take_all`](Self::take_all).
    ///
    /// # Errors
    ///
    /// The value itself, if the queue is closed. What the closing thread did before is then visible to this one.
    pub fn push(&self, value: T) -> Result<Pushed, T> {
        self.0.push(Boxed::new(value)).map_err(Boxed::into_value)
    }

    /// As [`List::take_all`].
    pub fn take_all(&self) -> Values<T> {
        Values(self.0.take_all())
    }

    /// As [`List::close`].
    pub fn close(&self) -> Values<T> {
        Values(self.0.close())
    }

    /// As [`List::is_empty`].
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As [`List::is_closed`].
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queue").field(&self.0.state()).finish()
    }
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
pub struct Values<T>(Batch<Boxed<T>>);

impl<T> Iterator for Values<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.next().map(Boxed::into_value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<T> ExactSizeIterator for Values<T> {}
impl<T> FusedIterator for Values<T> {}

impl<T> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
