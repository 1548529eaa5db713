//! An eventfd: a flag that a descriptor-based wait can see.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
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

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
