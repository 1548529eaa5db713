//! The monotonic clock, as a plain number that can cross a process boundary.

use std::time::Duration;

/// Nanoseconds of `CLOCK_MONOTONIC`: the same clock in every process of the machine, never set back, not counting suspension.
pub fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid, writable timespec for the duration of the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    // It can only fail for a bad pointer or an unknown clock, and both are constants here.
    debug_assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The time by which a wait of `timeout` from now must have ended, saturating.
pub(crate) fn deadline(timeout: Duration) -> u64 {
    now().saturating_add(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
}

/// What is left until `deadline`; zero once it has passed.
pub(crate) fn until(deadline: u64) -> Duration {
    Duration::from_nanos(deadline.saturating_sub(now()))
}

/// A duration as the kernel wants it. A span beyond what `time_t` can hold becomes the longest that it can.
#[cfg(target_os = "linux")]
pub(crate) fn timespec(span: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(span.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: span.subsec_nanos() as _,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back_and_counts_nanoseconds() {
        let start = now();
        let instant = std::time::Instant::now();
        while instant.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let passed = now() - start;
        assert!(passed >= 5_000_000, "{passed} ns for at least 5 ms");
        assert!(passed < 5_000_000_000, "{passed} ns for about 5 ms");
    }

    #[test]
    fn a_timeout_beyond_the_clock_saturates() {
        assert_eq!(deadline(Duration::MAX), u64::MAX);
        assert_eq!(until(0), Duration::ZERO);
    }
}
