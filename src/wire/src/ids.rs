//! Who is who in a tree: ids that are never reused, and the origin that an error carries.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One tree of isolates, from `offshoot::run` to its return, across all of its processes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TreeId(pub u64);

impl fmt::Display for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TreeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeId({self})")
    }
}

/// One isolate of a tree: the process that created it, a number in that process, and a generation.
///
/// The generation is what a restart or a promotion counts up, so that a handle to an earlier
/// incarnation is known to be dead instead of reaching its successor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IsolateId {
    /// The key of the process that created the isolate; random, one per process and tree.
    pub process: u32,
    /// Counts up within that process.
    pub slot: u32,
    /// The incarnation, from 0.
    pub generation: u32,
}

impl fmt::Display for IsolateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.{}", self.process, self.slot)?;
        if self.generation > 0 {
            write!(f, "#{}", self.generation)?;
        }
        Ok(())
    }
}

impl fmt::Debug for IsolateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IsolateId({self})")
    }
}

/// An isolate as a human wants to see it in a message: its path from the root, its id, its process.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Names from the root downwards, joined by `/`: `root/farm/worker-3`.
    pub path: String,
    /// The isolate.
    pub id: IsolateId,
    /// The operating system's id of the process that hosts it.
    pub pid: i32,
}

impl Origin {
    /// The last component of the path: the name that the isolate was spawned with.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, pid {})", self.path, self.id, self.pid)
    }
}
