//! Waiting for several descriptors at once, for the few places that have no event loop.

use crate::clock;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// Waits until one of `fds` is readable, has hung up or is in error; says of each whether it is.
///
/// All are false when `timeout` has passed. Without one it waits without bound. A signal does not end the wait.
pub fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let deadline = timeout.map(clock::deadline);
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    loop {
        match poll_once(&mut polled, deadline.map(clock::until)) {
            // The time that passed is taken off, or a stream of signals would make the wait endless.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
            Ok(()) => return Ok(polled.iter().map(|fd| fd.revents != 0).collect()),
        }
    }
}

/// As [`wait`], for two, without an allocation; and a signal ends the wait, with neither.
pub fn wait_either(one: RawFd, other: RawFd, timeout: Option<Duration>) -> io::Result<[bool; 2]> {
    let mut polled = [one, other].map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    match poll_once(&mut polled, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; 2]),
        Err(error) => Err(error),
        Ok(()) => Ok(polled.map(|fd| fd.revents != 0)),
    }
}

/// Whether `fd` takes something without blocking, or has nobody at its other end any more; waits for that as long as said.
pub(crate) fn writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    let deadline = timeout.map(clock::deadline);
    let mut polled = [libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    }];
    loop {
        match poll_once(&mut polled, deadline.map(clock::until)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
            Ok(()) => return Ok(polled[0].revents & !libc::POLLNVAL != 0),
        }
    }
}

#[cfg(target_os = "linux")]
fn poll_once(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(clock::timespec);
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: pointer and length describe one live, writable slice; `timeout` is null or a live timespec; no signal mask is given.
    let result = unsafe {
        libc::ppoll(
            fds.as_mut_ptr(),
            fds.len() as libc::nfds_t,
            timeout,
            std::ptr::null(),
        )
    };
    crate::retry::checked(result).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn poll_once(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a wait never ends before its time and then spins for the rest of the millisecond.
    let millis = timeout.map_or(-1, |span| {
        i32::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
    });
    // SAFETY: pointer and length describe one live, writable slice.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) };
    crate::retry::checked(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    #[test]
    fn says_which_is_readable_and_which_hung_up() {
        let (quiet, _quiet_peer) = UnixStream::pair().unwrap();
        let (readable, mut writer) = UnixStream::pair().unwrap();
        let (hung_up, peer) = UnixStream::pair().unwrap();
        writer.write_all(b"x").unwrap();
        drop(peer);
        let ready = wait(
            &[quiet.as_fd(), readable.as_fd(), hung_up.as_fd()],
            Some(Duration::from_secs(10)),
        )
        .unwrap();
        assert_eq!(ready, [false, true, true]);
    }

    #[test]
    fn a_timeout_gives_all_false_and_not_early() {
        let (quiet, _peer) = UnixStream::pair().unwrap();
        let start = Instant::now();
        assert_eq!(
            wait(&[quiet.as_fd()], Some(Duration::from_micros(2_500))).unwrap(),
            [false]
        );
        assert!(start.elapsed() >= Duration::from_micros(2_500));
    }
}
