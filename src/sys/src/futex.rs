//! The kernel's wait on a word of memory: what a parked thread sleeps on.
//!
//! The functions at the top are for threads of one process (the private form, cheaper in the kernel); those in [`shared`] are for a
//! word in memory that two processes map.

use crate::clock;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while `word` holds `expected`, until a wake, a signal or the end of `timeout`.
///
/// Returns without saying which: the caller looks at the word again, as it must anyway after a spurious wake. With no timeout it
/// waits without bound.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    wait_with(word, expected, timeout, libc::FUTEX_PRIVATE_FLAG);
}

/// Wakes one of the threads of this process that wait on `word`, if there is one.
pub fn wake_one(word: &AtomicU32) {
    wake_with(word, 1, libc::FUTEX_PRIVATE_FLAG);
}

/// Wakes every thread of this process that waits on `word`.
pub fn wake_all(word: &AtomicU32) {
    wake_with(word, i32::MAX, libc::FUTEX_PRIVATE_FLAG);
}

/// The same, for a word in a mapping that processes share.
pub mod shared {
    use super::{AtomicU32, Duration, wait_with, wake_with};

    /// As [`wait`](super::wait), across processes.
    pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        wait_with(word, expected, timeout, 0);
    }

    /// As [`wake_one`](super::wake_one), across processes.
    pub fn wake_one(word: &AtomicU32) {
        wake_with(word, 1, 0);
    }

    /// As [`wake_all`](super::wake_all), across processes.
    pub fn wake_all(word: &AtomicU32) {
        wake_with(word, i32::MAX, 0);
    }
}

fn wait_with(word: &AtomicU32, expected: u32, timeout: Option<Duration>, scope: i32) {
    // FUTEX_WAIT takes a relative time on CLOCK_MONOTONIC.
    let timeout = timeout.map(clock::timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `word` is a live, aligned 32-bit atomic for the whole call, and `timeout` is null or a live timespec. The kernel only
    // reads both.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | scope,
            expected,
            timeout,
        )
    };
}

fn wake_with(word: &AtomicU32, count: i32, scope: i32) {
    // SAFETY: the kernel uses the address of `word` as a key only; it is live and aligned.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | scope,
            count,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_mismatch_returns_at_once_and_a_timeout_ends_the_wait() {
        let word = AtomicU32::new(1);
        wait(&word, 0, None);
        shared::wait(&word, 0, None);
        let start = Instant::now();
        wait(&word, 1, Some(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    /// One call for two sleepers that are asleep for certain; each would sleep 20 s.
    #[test]
    fn a_wake_of_all_frees_every_sleeper() {
        for (wait, wake_all) in [
            (
                wait as fn(&AtomicU32, u32, Option<Duration>),
                wake_all as fn(&AtomicU32),
            ),
            (shared::wait, shared::wake_all),
        ] {
            let word = AtomicU32::new(0);
            let start = Instant::now();
            std::thread::scope(|scope| {
                let (send, receive) = std::sync::mpsc::channel();
                let (send, word) = (&send, &word);
                for _ in 0..2 {
                    let send = send.clone();
                    scope.spawn(move || {
                        send.send(crate::thread::id()).unwrap();
                        wait(word, 0, Some(Duration::from_secs(20)));
                    });
                }
                for _ in 0..2 {
                    let tid = receive.recv_timeout(Duration::from_secs(20)).unwrap();
                    while start.elapsed() < Duration::from_secs(5) && !in_futex(tid) {
                        std::thread::yield_now();
                    }
                }
                wake_all(word);
            });
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }

    fn in_futex(tid: i32) -> bool {
        let call =
            crate::procfs::text(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
        call.split(' ').next() == Some(&libc::SYS_futex.to_string())
    }

    /// Woken, not timed out: the wait below would last 20 s.
    #[test]
    fn one_wake_frees_one_sleeper() {
        let word = AtomicU32::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| wait(&word, 0, Some(Duration::from_secs(20))));
            while !sleeper.is_finished() {
                wake_one(&word);
                std::thread::yield_now();
            }
        });
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
