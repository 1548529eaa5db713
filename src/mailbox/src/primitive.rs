//! The one source of atomics, shared cells and `Arc` for this crate: the standard library, or loom.
//!
//! The cfg carries our own name, so that setting it does not switch other crates of the build to loom.

#[cfg(not(offshoot_loom))]
pub(crate) use self::native::UnsafeCell;
#[cfg(offshoot_loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering},
    },
};
#[cfg(not(offshoot_loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering},
};

/// A relaxed load of a word that this thread is about to exchange.
///
/// Loom remembers only the last access to an atomic. After a load of its own, it does not see that a thread's exchange
/// conflicts with the earlier load of another thread, and leaves out the executions in which that load comes later.
/// Therefore under loom this is an exchange, too; the value decides nothing but what is tried first.
#[cfg(not(offshoot_loom))]
#[inline]
pub(crate) fn peek(word: &AtomicUsize) -> usize {
    word.load(Ordering::Relaxed)
}

/// As above.
#[cfg(offshoot_loom)]
pub(crate) fn peek(word: &AtomicUsize) -> usize {
    word.fetch_or(0, Ordering::Relaxed)
}

#[cfg(not(offshoot_loom))]
mod native {
    /// The standard cell in loom's clothes: access is a closure, so that loom sees where it begins and ends.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline]
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}
