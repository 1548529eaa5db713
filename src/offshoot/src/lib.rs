//! Low-latency trees of actors: a thread each, or by one flag a process each, and nothing left behind.
//!
//! An **isolate** is an OS thread with its own event loop. A [`nursery()`] owns isolates and returns
//! when all of them have ended. A [`Portal`] calls functions and asks methods of an isolate. When
//! an isolate must be separated by the operating system, `.process()` makes it a forked process;
//! the calls stay the same.
//!
//! ```
//! use offshoot::prelude::*;
//!
//! async fn shout(text: String) -> String {
//!     text.to_uppercase()
//! }
//!
//! offshoot::run(async || {
//!     offshoot::nursery(async |nursery| {
//!         let thread = nursery.spawn("thread").await?;
//!         let process = nursery.spawn(Isolate::named("process").process()).await?;
//!         assert_eq!(thread.call(shout, "here".to_string()).await?, "HERE");
//!         assert_eq!(process.call(shout, "there".to_string()).await?, "THERE");
//!         Ok(())
//!     })
//!     .await
//! })?;
//! # Ok::<(), offshoot::Error>(())
//! ```
//!
//! Where to read on: [`Nursery`] for what can be started, [`Portal`] for what can be sent and what
//! dropping means, [`Isolate`] for what can be set, [`Exit`] and [`Error`] for how it ends,
//! [`Builder`] for a tree's settings, [`net`] and [`fs`] for input and output. The [`guide`] tells
//! what differs in a process.
//!
//! # Terms
//!
//! - **Isolate**: one OS thread with its own loop and mailbox; opt-in, in a process of its own.
//! - **Nursery**: the scope that owns isolates and tasks, and ends after the last of them.
//! - **Checkpoint**: a point at which a cancellation is seen, as an error that
//!   [`is_cancelled`](Error::is_cancelled) and as often as it is reached. Every future of this
//!   crate is one, and [`checkpoint`] is nothing else.
//! - **Scope**: a part of a program that is cancelled as one: an isolate, a nursery, the body of
//!   [`fail_after`], [`move_on_after`] or [`shield`]. Scopes nest.
//! - **Grace**: the time between a cancellation and the moment at which futures that have not ended
//!   are dropped.
//! - **Ladder**: cancel, grace, force, each with a bound, by which whatever is ended comes down.
//! - **Credit**: how many messages and calls one isolate may have under way to another; a sender
//!   without credit waits.
//! - **Dialogue**: a task on each of two isolates, joined by a stream in each direction.
//! - **Exit**: how an isolate ended, as a value.

#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod binder;
mod blocking;
mod broadcast;
mod budget;
mod carry;
mod chain;
mod credit;
mod deadline;
mod descriptor;
mod dialogue;
mod endpoint;
mod family;
mod fault;
pub mod fs;
mod inspect;
mod isolate;
mod janitor;
mod ledger;
mod life;
mod log;
mod mark;
mod narrow;
pub mod net;
mod nursery;
mod once;
mod pool;
mod portal;
mod process;
mod reactor;
pub mod reap;
mod rest;
mod runtime;
mod scope;
mod sniff;
mod spec;
mod spin;
pub mod testing;
mod time;

pub use binder::{
    RegisteredPath, create_file, create_shared_memory, pid_file, register_path,
    register_shared_memory,
};
pub use blocking::{Unblock, unblock};
pub use broadcast::{Broadcast, NextBroadcast, Subscription};
pub use deadline::{fail_after, move_on_after, shield};
pub use dialogue::{
    Dialogue, Incoming, Link, LinkCancelling, NextItem, Opening, Outcome, Outgoing, Overflow,
    Parting, Peer, ResultOf, SendItem, Window,
};
pub use endpoint::{Endpoint, Method, Payload};
pub use inspect::Blocked;
pub use isolate::inbox::Inbox;
#[cfg(feature = "fault-points")]
#[doc(hidden)]
pub use ledger::{captured, verdict};
pub use narrow::Narrow;
pub use nursery::{Nursery, Spawning, TaskHandle, nursery};
pub use offshoot_wire::{
    Bytes, Cancel, Canceller, Error, ErrorKind, Exit, FailureId, IsolateId, Origin, Panic, TreeId,
};
pub use once::{Lease, Once};
pub use pool::{Mapped, Pool, gather};
pub use portal::{Cancelling, Ended, LocalPortal, Portal, Rejected, Reply, Tell};
#[cfg(feature = "fault-points")]
#[doc(hidden)]
pub use runtime::dump_all;
pub use runtime::{Builder, Handle, Running, main, run};
pub use spec::{Bounds, Descendants, Isolate, Isolation, Limit, Sigint, Stdio};
pub use time::{Current, Sleep, cancelled, checkpoint, current, sleep, timeout, try_current};

/// A result whose error is ours unless it says otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a tree begins: [`Runtime::builder`] sets its limits and bounds, [`run`] and [`main`] use the
/// defaults.
#[derive(Debug)]
#[non_exhaustive]
pub struct Runtime;

impl Runtime {
    /// The settings of a tree, to be changed and run.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

/// What most programs need: `use offshoot::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Error, Exit, Inbox, Isolate, Isolation, Link, LocalPortal, Nursery, Payload, Peer, Portal,
        Result, checkpoint, nursery,
    };
    pub use serde::{Deserialize, Serialize};
}

#[cfg(any(doc, doctest))]
#[doc = include_str!("../../../docs/guide.md")]
pub mod guide {}

/// README's example is compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct ReadmeExamples;
