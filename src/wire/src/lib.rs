//! What crosses a boundary in Offshoot, as plain data: ids, exits, errors, frames and the one codec.
//!
//! This crate starts no thread and knows no file descriptor and no clock, so that it can be fuzzed, run
//! under Miri and read on its own. What moves these bytes is `offshoot`; what names the encoding
//! is [`codec`] and nothing else.
//!
//! Read next: [`Exit`] (how an isolate ended), [`Error`] (what a caller is told), [`frame`] (the
//! bytes between two processes), [`order`] (which of them may come when), [`dialogue`] (the same for one stream).

// Allowed in `plain` alone, which says why.
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod bytes;
mod error;
mod exit;
mod guard;
mod ids;
mod plain;
#[doc(hidden)]
pub use plain::as_plain_result;
mod probe;
mod rope;
mod ser;

pub mod codec;
pub mod dialogue;
pub mod frame;
pub mod order;

pub use bytes::Bytes;
pub use error::{Error, ErrorKind, FailureId};
pub use exit::{Cancel, Canceller, Exit, Panic};
pub use ids::{IsolateId, Origin, TreeId};
pub use rope::Rope;
