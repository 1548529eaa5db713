//! Files without a name that processes share, sealed so that nobody can make them shorter under the one who has mapped them.

use crate::standard::above;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The seals without which one is refused.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL
}

/// Makes one of `length` bytes, all zero, whose length is sealed. Its pages are taken when they are first written to. The name is for
/// `/proc` only.
///
/// # Errors
/// `ENFILE`, `EMFILE`, `ENOMEM`; `EFBIG` over the limit of a file's size (`RLIMIT_FSIZE`).
pub fn create(name: &CStr, length: usize) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = above(memfd_create(name, flags)?)?;
    crate::fsx::set_size(memory.as_fd(), length as u64)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals()))?;
    Ok(memory)
}

/// The length of one that came from another process, in bytes.
///
/// # Errors
/// `InvalidData` if its length is not sealed, or cannot be: mapping it could be a SIGBUS at any time.
pub fn sealed_length(memory: BorrowedFd<'_>) -> io::Result<u64> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let found = fcntl(memory, FcntlArg::F_GET_SEALS)
        .map_err(|_| wrong("shared memory cannot be sealed, and so could become shorter"))?;
    if !SealFlag::from_bits_truncate(found).contains(seals()) {
        return Err(wrong(
            "shared memory is not sealed, and so could become shorter",
        ));
    }
    Ok(crate::fsx::metadata(memory.as_fd())?.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_can_be_changed_by_nobody() {
        let memory = create(c"offshoot-test", 100).unwrap();
        assert_eq!(sealed_length(memory.as_fd()).unwrap(), 100);
        for length in [0, 200] {
            let error = nix::unistd::ftruncate(&memory, length).unwrap_err();
            assert_eq!(error, nix::errno::Errno::EPERM);
        }
    }

    #[test]
    fn memory_that_could_become_shorter_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let text = sealed_length(file.as_fd()).unwrap_err().to_string();
        assert!(text.contains("sealed"), "{text}");
        let sealing = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        for (some, refused) in [
            (seals() - SealFlag::F_SEAL_SHRINK, true),
            (seals() - SealFlag::F_SEAL_GROW, true),
            (seals() | SealFlag::F_SEAL_FUTURE_WRITE, false),
        ] {
            let memory = memfd_create(c"offshoot-test", sealing).unwrap();
            fcntl(&memory, FcntlArg::F_ADD_SEALS(some)).unwrap();
            assert_eq!(sealed_length(memory.as_fd()).is_err(), refused);
        }
    }
}
