//! An isolate: one thread, one loop, one mailbox.
//!
//! `shared` is the half that others reach: mailbox, wake-up, status. `local` is the half that only
//! its own thread touches: the loop, the tasks, the timers. `job` is what a message turns into.
//! `reserve` has threads ready for isolates to come.

pub(crate) mod inbox;
pub(crate) mod job;
pub(crate) mod local;
pub(crate) mod panics;
pub(crate) mod reserve;
pub(crate) mod shared;
pub(crate) mod thread;
