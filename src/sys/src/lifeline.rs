//! A tie to the life of another process that lasts through a change of credentials.
//!
//! The parent-death signal does not: the kernel clears it when a thread takes on another user, group or capabilities. A pipe can send a signal,
//! too, when its last writer has gone, and with the rights that whoever asked for it had then.

use crate::retry::checked;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// What a process holds whose end others are not to outlive. Nobody else may hold it.
#[derive(Debug)]
pub struct Lifeline {
    reader: OwnedFd,
    _writer: OwnedFd,
}

impl Lifeline {
    /// One to which nobody is tied.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = crate::standard::make_above(io::pipe)?;
        Ok(Self {
            reader: reader.into(),
            _writer: writer.into(),
        })
    }

    /// By what a child ties itself to it.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Has the kernel kill this process once the holder of the lifeline has gone, as long as what this returns is open.
///
/// # Errors
/// When /proc is not mounted, or there is no descriptor left.
pub(crate) fn tie(end: RawFd) -> io::Result<OwnedFd> {
    // The signal belongs to an open file, and those of all children are one but for this.
    let own = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{end}"))?;
    let own = crate::standard::above(own.into())?;
    let fd = own.as_raw_fd();
    // SAFETY: these take integers, and the descriptor is open.
    unsafe {
        checked(libc::fcntl(fd, libc::F_SETOWN, crate::process::id()))?;
        checked(libc::fcntl(fd, F_SETSIG, libc::SIGKILL))?;
        checked(libc::fcntl(
            fd,
            libc::F_SETFL,
            libc::O_ASYNC | libc::O_NONBLOCK,
        ))?;
    }
    Ok(own)
}

/// Of `fcntl`: which signal an open file sends. libc does not have it.
const F_SETSIG: i32 = 10;
