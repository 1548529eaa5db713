//! The lock-free parts of an isolate: its inbox, its sleep, and the slot in which a caller awaits its reply.
//!
//! - [`List`] is the inbox: any thread pushes, the owner takes all that is there, in order; [`Queue`] is one of plain values.
//! - [`Envelope`] is a message in one allocation, with its link and its reply slot; as a [`Letter`] it lies in an inbox.
//! - [`Parker`] decides who has to wake a sleeping owner, so that no wake-up is lost and few are made twice.
//! - [`oneshot`] carries one reply to one caller, either of whom may go away first.
//! - [`Room`] holds one future after the other in the same memory.
//! - [`WakerCell`] holds the waker of a task while another thread may call it.
//!
//! Nothing here blocks, makes a system call, or knows what a message is: bounds and credit, futexes and epoll
//! belong to the crates above. In return the whole crate runs under loom (`ci/loom`) and Miri (`ci/miri`).
//! Every atomic and every shared cell comes from the private module `primitive`, which is where loom steps in.
//!
//! Each module states the rules of its state word in numbers, and the code cites them. Read [`Parker`] first.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod envelope;
pub mod oneshot;
mod parker;
mod primitive;
mod queue;
mod room;
mod waker;

pub use envelope::{Contents, Envelope, Letter, Refuse};
pub use parker::{Parker, Sleep, Wake};
pub use queue::{Batch, Link, List, Node, Pushed, Queue, Values};
pub use room::Room;
pub use waker::WakerCell;

// The models of `tests/loom.rs` take the place of these under loom, whose types work nowhere else.
#[cfg(all(test, not(offshoot_loom)))]
mod tests;
