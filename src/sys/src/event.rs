//! An eventfd and a timerfd: flags that a descriptor-based wait can see.

use crate::standard::above;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::retry::{checked, retry};

/// A counter in the kernel, readable while it is not zero. Any number of notifications before a drain count as one.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, not notified, non-blocking.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = checked(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
        above(unsafe { OwnedFd::from_raw_fd(fd) }).map(Self)
    }

    /// Makes it readable. Never blocks: a counter that is full is readable already.
    pub fn notify(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer is live and of the length given. The only failure of a valid eventfd is EAGAIN, see above.
        let _ =
            retry(|| unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) });
    }

    /// Makes it unreadable again; says whether it had been notified.
    pub fn drain(&self) -> bool {
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is live, writable and of the length given.
        retry(|| unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) })
            .is_ok()
    }
}

/// A flag that becomes visible to a descriptor-based wait after a while, which costs whoever asks for it no wake-up.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A new one, not set, non-blocking.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: takes no pointer.
        let fd = checked(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
        above(unsafe { OwnedFd::from_raw_fd(fd) }).map(Self)
    }

    /// Makes it readable after `pause`, and unreadable until then, also if it was set before.
    pub fn set(&self, pause: Duration) {
        // All zeros would unset it.
        let pause = pause.max(Duration::from_nanos(1));
        let value = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(pause.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: pause.subsec_nanos().into(),
            },
        };
        // SAFETY: the value is live, and nobody asks for the old one. A valid timer with a value in range cannot fail.
        unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &value, std::ptr::null_mut()) };
    }

    /// Makes it unreadable; says whether its time had come.
    pub fn drain(&self) -> bool {
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is live, writable and of the length given.
        retry(|| unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) })
            .is_ok()
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_readable_once_its_time_has_come() {
        let timer = Timer::new().unwrap();
        let readable = |bound| crate::poll::wait(&[timer.as_fd()], Some(bound)).unwrap()[0];
        assert!(!readable(Duration::ZERO));
        timer.set(Duration::from_secs(3_600));
        assert!(!readable(Duration::ZERO));
        assert!(!timer.drain());
        timer.set(Duration::ZERO);
        assert!(readable(Duration::from_secs(10)));
        assert!(timer.drain());
        assert!(!readable(Duration::ZERO));
    }

    #[test]
    fn is_readable_from_notify_to_drain() {
        let event = EventFd::new().unwrap();
        let readable = || crate::poll::wait(&[event.as_fd()], Some(Duration::ZERO)).unwrap()[0];
        assert!(!readable());
        assert!(!event.drain());
        event.notify();
        event.notify();
        assert!(readable());
        assert!(event.drain());
        assert!(!readable());
    }
}
