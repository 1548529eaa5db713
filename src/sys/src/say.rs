//! What the library itself has to say, on the standard error. It costs nobody anything if that cannot be written: no panic, no signal.
//!
//! std's `eprintln!` panics where the reader of the standard error has gone (`2>&1 | head`), and waits for one that does not read. So it is
//! used nowhere in the library.

use crate::poll;
use crate::signal::{Held, SIGPIPE, SIGXFSZ};
use std::fmt::{self, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// As `eprintln!` with `offshoot: ` before it, by [`note`](crate::say::note).
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::say::note(::core::format_args!($($text)*)) };
}

/// Says one line of diagnosis, with `offshoot: ` before it. What cannot be written at once is dropped: never blocks, never panics, and raises
/// no signal.
pub fn note(text: fmt::Arguments<'_>) {
    let mut line = String::from("offshoot: ");
    // `Display` of a type may fail; what it has given until then is said.
    let _ = line.write_fmt(text);
    line.push('\n');
    write(line.as_bytes(), Some(Duration::ZERO));
}

/// Says a text as it is, which is what a program ends with or what was asked for. Never panics and raises no signal.
///
/// # Blocking
/// As long as there is a reader that does not read.
pub fn report(text: &str) {
    write(text.as_bytes(), None);
}

/// A pipe that is writable takes so much without blocking.
const ROOM: usize = libc::PIPE_BUF;

fn write(mut bytes: &[u8], patience: Option<Duration>) {
    // Each would be a signal of this thread: the first without a reader, the second over the limit of a file's size.
    let _held = Held::new(&[SIGPIPE, SIGXFSZ]);
    // SAFETY: that number is the program's standard error, which no object owns; if it is closed, the calls below say so.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    while !bytes.is_empty() {
        if !matches!(poll::writable(stderr, patience), Ok(true)) {
            return;
        }
        let part = &bytes[..bytes.len().min(ROOM)];
        // SAFETY: the pointer is to so many live bytes.
        let written = unsafe { libc::write(stderr.as_raw_fd(), part.as_ptr().cast(), part.len()) };
        match usize::try_from(written) {
            Ok(0) => return,
            Ok(written) => bytes = &bytes[written..],
            Err(_) => match std::io::Error::last_os_error().kind() {
                std::io::ErrorKind::Interrupted => {}
                // Somebody else was faster. (It is non-blocking, and the room has gone.)
                std::io::ErrorKind::WouldBlock if patience.is_none() => {}
                _ => return,
            },
        }
    }
}
