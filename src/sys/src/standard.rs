//! Descriptors 0 to 2, which are the program's standard streams whether they are open or not: nothing of ours takes their numbers, or what the
//! program prints would go into it.

use crate::retry::checked;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The lowest number that a descriptor of ours has.
const LOWEST: RawFd = 3;

/// A new descriptor under a number above the standard ones, whatever it was born with.
///
/// # Errors
/// `EMFILE`.
pub fn above(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= LOWEST {
        return Ok(fd);
    }
    // SAFETY: takes no pointer.
    let above = checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, LOWEST) })?;
    // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(above) })
}

/// Has `make` make a descriptor whose number cannot be changed afterwards, above the standard ones: what is closed of these is open meanwhile.
pub fn make_above<T>(make: impl FnOnce() -> T) -> T {
    let _plugs = (0..LOWEST)
        .any(|fd| !crate::process::is_open(fd))
        .then(plugs);
    make()
}

fn plugs() -> Vec<OwnedFd> {
    let mut plugs = Vec::new();
    loop {
        // SAFETY: the path is NUL-terminated.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            return plugs;
        }
        // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
        let plug = unsafe { OwnedFd::from_raw_fd(fd) };
        if fd >= LOWEST {
            return plugs;
        }
        plugs.push(plug);
    }
}
