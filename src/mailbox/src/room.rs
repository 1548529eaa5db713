//! A place on the heap for one future after the other, so that a task needs no allocation of its own.

use std::{
    alloc::{self, Layout},
    fmt, mem,
    pin::Pin,
    ptr::NonNull,
    task::{Context, Poll},
};

/// Holds at most one future, in memory that the next one uses again.
///
/// It stays on its thread, as the futures in it may have to.
///
/// # Examples
///
/// ```
/// use offshoot_mailbox::Room;
/// use std::task::{Context, Poll, Waker};
///
/// let mut room = Room::new();
/// let mut cx = Context::from_waker(Waker::noop());
/// for _ in 0..3 {
///     room.enter(async {});
///     assert_eq!(room.poll(&mut cx), Poll::Ready(()));
///     assert!(!room.is_taken());
/// }
/// ```
pub struct Room {
    memory: NonNull<u8>,
    /// Of the memory; without size, there is none.
    layout: Layout,
    /// What is in it.
    tenant: Option<Tenant>,
}

/// How to treat a future whose type is not known any more.
#[derive(Clone, Copy)]
struct Tenant {
    /// The memory holds a future of the type of which this is.
    poll: unsafe fn(NonNull<u8>, &mut Context<'_>) -> Poll<()>,
    /// As above; there is none afterwards.
    drop: unsafe fn(NonNull<u8>),
}

impl Room {
    /// An empty one. Allocates nothing.
    pub const fn new() -> Self {
        Self {
            memory: NonNull::dangling(),
            layout: Layout::new::<()>(),
            tenant: None,
        }
    }

    /// Whether there is a future in it.
    pub const fn is_taken(&self) -> bool {
        self.tenant.is_some()
    }

    /// Puts a future into it, in place of one that is there. Allocates if there was none so large before.
    ///
    /// # Panics
    ///
    /// If the drop of the one that is there does.
    pub fn enter<F: Future<Output = ()> + 'static>(&mut self, future: F) {
        self.clear();
        let wanted = Layout::new::<F>();
        if wanted.size() > self.layout.size() || wanted.align() > self.layout.align() {
            self.rebuild(wanted);
        }
        // SAFETY: the memory is ours, as large as an `F` and aligned for it, and nothing is in it.
        unsafe { self.memory.cast::<F>().write(future) };
        self.tenant = Some(Tenant {
            // SAFETY: called with the memory of a room that holds an `F`, which it does not leave before it is dropped: it is pinned.
            poll: |memory, cx| unsafe { Pin::new_unchecked(memory.cast::<F>().as_mut()).poll(cx) },
            // SAFETY: called with the memory of a room that holds an `F`, once.
            drop: |memory| unsafe { memory.cast::<F>().drop_in_place() },
        });
    }

    /// Polls the future, and drops it once it is ready. An empty room is ready.
    ///
    /// # Panics
    ///
    /// If the future does, which then stays here, or its drop, after which it has gone.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(tenant) = self.tenant {
            // SAFETY: it was put here, and nothing has taken it away.
            if unsafe { (tenant.poll)(self.memory, cx) }.is_pending() {
                return Poll::Pending;
            }
        }
        self.clear();
        Poll::Ready(())
    }

    /// Drops the future, if there is one.
    ///
    /// # Panics
    ///
    /// If its drop does, after which it has gone.
    pub fn clear(&mut self) {
        // Taken first: it is dropped once, also if that panics.
        if let Some(tenant) = self.tenant.take() {
            // SAFETY: it was put here, and with the line above nobody else looks at it any more.
            unsafe { (tenant.drop)(self.memory) };
        }
    }

    /// Makes an empty room larger.
    fn rebuild(&mut self, wanted: Layout) {
        self.demolish();
        // Of round sizes, so that futures of about the same size share one.
        let size = wanted.size().next_multiple_of(128);
        let align = wanted.align().max(mem::align_of::<u128>());
        let layout = Layout::from_size_align(size, align).unwrap_or(wanted);
        if layout.size() == 0 {
            // For a future without size any well aligned address does.
            self.memory =
                NonNull::without_provenance(layout.align().try_into().expect("it is not 0"));
        } else {
            // SAFETY: the layout has a size.
            let memory = unsafe { alloc::alloc(layout) };
            self.memory = NonNull::new(memory).unwrap_or_else(|| alloc::handle_alloc_error(layout));
        }
        self.layout = layout;
    }

    /// Gives the memory of an empty room back.
    fn demolish(&mut self) {
        let layout = mem::replace(&mut self.layout, Layout::new::<()>());
        if layout.size() != 0 {
            // SAFETY: it was allocated with this layout, and nothing is in it.
            unsafe { alloc::dealloc(self.memory.as_ptr(), layout) };
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        /// Gives the memory back also if the future's drop panics.
        struct Demolish<'a>(&'a mut Room);
        impl Drop for Demolish<'_> {
            fn drop(&mut self) {
                self.0.demolish();
            }
        }
        Demolish(self).0.clear();
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("taken", &self.is_taken())
            .field("size", &self.layout.size())
            .finish()
    }
}
