//! The events of `tracing` that the library gives. The subscriber is code of the program's, and may panic: the usual one does, where the reader of
//! the standard error has gone. That ends none of the threads that look after healthy isolates; the event is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Gives an event, of which a panic is no more than its loss.
#[inline]
pub(crate) fn guarded(event: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(event)) {
        // Its destructor may be the program's, too.
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
    }
}

macro_rules! error_ { ($($event:tt)*) => { $crate::log::guarded(|| ::tracing::error!($($event)*)) } }
macro_rules! warn_ { ($($event:tt)*) => { $crate::log::guarded(|| ::tracing::warn!($($event)*)) } }
macro_rules! info_ { ($($event:tt)*) => { $crate::log::guarded(|| ::tracing::info!($($event)*)) } }
macro_rules! debug_ { ($($event:tt)*) => { $crate::log::guarded(|| ::tracing::debug!($($event)*)) } }

pub(crate) use {debug_ as debug, error_ as error, info_ as info, warn_ as warn};
