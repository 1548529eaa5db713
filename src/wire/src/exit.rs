//! How an isolate ended, as a value: one type for threads and for processes.

use crate::{Error, Origin};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How an isolate ended.
///
/// The same type for a thread and for a process. It travels to the nursery that owns the isolate
/// and, where the isolate's end is somebody's failure, inside [`Error`] to whoever waited for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Exit {
    /// It did all that it had accepted and was closed, or its main function returned `Ok`.
    Completed,
    /// Its main function returned this error.
    Failed(Error),
    /// Code of it panicked.
    Panicked(Panic),
    /// It was cancelled and came down by itself: destructors ran, its children ended first.
    Cancelled(Cancel),
    /// Its process was ended by a signal: a crash, an abort, or a kill.
    Killed {
        /// The signal's number on the system it came from.
        signal: i32,
        /// The signal's name, `SIGSEGV`.
        name: String,
        /// A core file was written.
        core: bool,
        /// Why, where the runtime knows: `did not end within 3 s of its cancellation`.
        why: Option<String>,
    },
    /// Its process ended by itself, by `process::exit` or by a return from a foreign `main`,
    /// before the isolate had ended. Also with code 0 this is not [`Exit::Completed`].
    Exited {
        /// The exit code.
        code: i32,
    },
    /// Its thread did not return within the bound. The thread cannot be ended; it was cut off:
    /// mailbox closed, callers answered, its processor share lowered.
    Abandoned {
        /// What it was last seen doing: the kernel's wait channel, and its stack where it answered.
        doing: String,
        /// The bound in milliseconds, from the request to cancel.
        after_ms: u64,
    },
    /// Its process did not end within the bound after SIGKILL. Its addresses stay in quarantine.
    Unkillable {
        /// The process.
        pid: i32,
    },
    /// It cannot be known how it ended, and why that is so.
    Lost {
        /// One sentence fragment.
        why: String,
    },
}

impl Exit {
    /// True for the two ends that are nobody's failure: [`Exit::Completed`] and [`Exit::Cancelled`].
    pub fn is_clean(&self) -> bool {
        matches!(self, Exit::Completed | Exit::Cancelled(_))
    }

    /// A short word for tables: `completed`, `killed`.
    pub fn word(&self) -> &'static str {
        match self {
            Exit::Completed => "completed",
            Exit::Failed(_) => "failed",
            Exit::Panicked(_) => "panicked",
            Exit::Cancelled(_) => "cancelled",
            Exit::Killed { .. } => "killed",
            Exit::Exited { .. } => "exited",
            Exit::Abandoned { .. } => "abandoned",
            Exit::Unkillable { .. } => "unkillable",
            Exit::Lost { .. } => "lost",
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Completed => f.write_str("completed"),
            Exit::Failed(error) => write!(f, "failed: {error}"),
            Exit::Panicked(panic) => write!(f, "panicked: {panic}"),
            Exit::Cancelled(cancel) => write!(f, "{cancel}"),
            Exit::Killed {
                name, core, why, ..
            } => {
                write!(f, "killed by {name}")?;
                if *core {
                    f.write_str(" (core dumped)")?;
                }
                match why {
                    Some(why) => write!(f, ": {why}"),
                    None => Ok(()),
                }
            }
            Exit::Exited { code } => write!(f, "its process exited by itself with code {code}"),
            Exit::Abandoned { doing, after_ms } => write!(
                f,
                "abandoned: its thread did not return within {after_ms} ms of its cancellation ({})",
                doing.lines().next().unwrap_or("")
            ),
            Exit::Unkillable { pid } => write!(f, "process {pid} did not end after SIGKILL"),
            Exit::Lost { why } => write!(f, "lost: {why}"),
        }
    }
}

/// A panic, as its caller and its parent are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// The panic's message, or a note that its payload was no string.
    pub message: String,
    /// `file:line:column`, where a panic hook of ours saw it.
    pub location: Option<String>,
    /// The backtrace, where `RUST_BACKTRACE` asked for one.
    pub backtrace: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.location {
            Some(location) => write!(f, " (at {location})"),
            None => Ok(()),
        }
    }
}

/// Who asked for a cancellation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Canceller {
    /// The nursery that owns the isolate, because a sibling or its own body failed.
    Nursery(Origin),
    /// An isolate that called `cancel` on the portal.
    Isolate(Origin),
    /// The isolate above was cancelled itself; the first author is inside.
    Parent(Origin, Box<Canceller>),
    /// A deadline passed.
    Deadline,
    /// The future that owned the isolate was dropped.
    Dropped(Origin),
    /// The process was asked to end by this signal.
    Signal(String),
    /// The program, through a handle to the runtime.
    Runtime,
    /// The other side of a dialogue, which called `cancel` on it.
    Peer(Origin),
    /// The other side of a dialogue, which dropped its end of it.
    HungUp(Origin),
}

impl fmt::Display for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Canceller::Nursery(origin) => write!(f, "the nursery of {origin}"),
            Canceller::Isolate(origin) => write!(f, "{origin}"),
            Canceller::Parent(origin, first) => write!(f, "{origin}, itself cancelled by {first}"),
            Canceller::Deadline => f.write_str("a deadline"),
            Canceller::Dropped(origin) => write!(f, "{origin}, which dropped its nursery"),
            Canceller::Signal(name) => f.write_str(name),
            Canceller::Runtime => f.write_str("the program"),
            Canceller::Peer(origin) => write!(f, "{origin}, the other side of the dialogue"),
            Canceller::HungUp(origin) => {
                write!(f, "{origin}, which dropped its side of the dialogue")
            }
        }
    }
}

/// One cancellation: its author. Idempotent: the first one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Who asked for it.
    pub by: Canceller,
}

impl fmt::Display for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cancelled by {}", self.by)
    }
}
