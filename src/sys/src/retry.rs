//! Turning the return value of a C call into an `io::Result`, and repeating it after a signal.

use std::io;

/// Calls `call` until it returns something other than -1 with `EINTR`.
#[cfg(target_os = "linux")]
pub(crate) fn retry<T: PartialEq + From<i8>>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        match checked(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
    }
}

/// `-1` as the error that `errno` names.
pub(crate) fn checked<T: PartialEq + From<i8>>(value: T) -> io::Result<T> {
    if value == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}
