//! Whether this process is the one in which something was made, or a copy of it by `fork`.
//!
//! A copy has every handle of the original, and shares its sockets and its memory files; whatever it did with them would be done to the original.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many forks there are between the first process and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process in which it was made.
///
/// Known is what the C library's `fork` makes; what is made by a system call of the program's own is taken for the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original(u32);

impl Original {
    /// This process.
    pub fn here() -> Original {
        static COUNTED: Once = Once::new();
        COUNTED.call_once(|| {
            // SAFETY: the handler is a function of this executable, which is never unloaded, and does what a handler of a signal may do.
            let failed = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
            // For want of memory: then copies are not told apart.
            debug_assert_eq!(failed, 0);
        });
        Original(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is still that process.
    #[inline]
    pub fn is_here(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }
}

unsafe extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fork::exit_at_once;

    #[test]
    fn a_copy_is_not_the_original_and_becomes_one_of_its_own() {
        let original = Original::here();
        assert!(original.is_here());
        // SAFETY: the child runs nothing but what a handler of a signal may.
        match unsafe { libc::fork() } {
            0 => {
                let told = !original.is_here() && Original::here().is_here();
                exit_at_once(if told { 7 } else { 1 })
            }
            pid => {
                let mut status = 0;
                // SAFETY: the pointer is to a live integer.
                assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
                assert_eq!(libc::WEXITSTATUS(status), 7);
            }
        }
        assert!(original.is_here() && original == Original::here());
    }
}
