//! The mark of a tree: an environment variable by which every process of it, and whatever those start, is known from outside.
//!
//! A forkserver is executed with it, so that it lies where the kernel shows it (`/proc/PID/environ`) and stays there in every child. Its last
//! [`DIGITS`] characters say which child: each writes its own over them, in place, and what it executes inherits that like any variable. No
//! name, directory or parent is needed to find a stray, and a stray cannot be taken for one by accident.
//!
//! Not here: what the mark says, which is its users' business.

use std::ffi::c_char;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The environment variable.
pub const ENV: &str = "OFFSHOOT_TREE";

/// How many hexadecimal digits at its end are the process's own.
pub const DIGITS: usize = 16;

/// The first of the digits, in the environment that the kernel passed.
static PLACE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// Remembers where the digits lie, if there is a mark.
///
/// # Safety
/// Before `main`, and before anything has changed the environment: what is found must be the kernel's own copy, which lives as long as the process.
pub(crate) unsafe fn remember() {
    let name = std::ffi::CString::new(ENV).unwrap_or_default();
    // SAFETY: the name is NUL-terminated, and nobody changes the environment meanwhile.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: what getenv returns is NUL-terminated.
    let length = unsafe { std::ffi::CStr::from_ptr(value) }.count_bytes();
    if length >= DIGITS {
        // SAFETY: within the string just measured.
        let digits: *mut c_char = unsafe { value.add(length - DIGITS) };
        PLACE.store(digits.cast(), Ordering::Release);
    }
}

/// Makes `number` this process's own part of the mark. False if this process has no mark, since it was not started by
/// [`exec_self`](crate::spawn::exec_self).
///
/// Only while this is the only thread, because others may read the environment.
pub fn set(number: u64) -> bool {
    let place = PLACE.load(Ordering::Acquire);
    if place.is_null() {
        return false;
    }
    let digits = format!("{number:0DIGITS$x}");
    // SAFETY: `remember` has measured that so many bytes from there on are part of a string of the environment, which is writable by the ABI
    // and never freed or moved: setenv and unsetenv only exchange pointers to such strings.
    unsafe { place.copy_from_nonoverlapping(digits.as_ptr(), DIGITS) };
    true
}
