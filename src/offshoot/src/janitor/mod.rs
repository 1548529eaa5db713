//! What a tree leaves in the file system, and how it is taken away again, whoever dies when.
//!
//! A process that is killed runs no destructor, so nothing that it bound may be known to it alone. Three things make sure of that:
//!
//! - the **tree's directory** ([`TreeDir`]): private to the user, one per tree, with a lock that the root and the forkserver share. The lock is
//!   free exactly when both are dead, which tells a dead tree from a living one without looking at pids;
//! - the **bind table** ([`BindTable`]): a file per process in that directory, mapped by its writer. An address is written into it before it
//!   exists, by plain stores, so that it survives a kill at the next instruction;
//! - the **sweep** ([`TreeDir::sweep`], [`TreeDir::sweep_except`], [`TreeDir::remove`], [`sweep_dead_trees`]): whoever survives reads the table of the dead
//!   and removes what it names and what is still the same file.
//!
//! # How a name comes to be
//! 1. The slot gets the public path, a private name that nobody can guess, and the state *intent*.
//! 2. The object is made under the private name, in a directory of the process's own, or beside the public path where that lies on another
//!    file system. From here on a sweep finds it by the private name, which nobody else can have.
//! 3. The slot gets the object's identity (device, inode, file handle) and the state *named*.
//! 4. The object is renamed to its public path, which fails when anything is there. A sweep now finds it under either name.
//!
//! # How a name goes
//! It is looked at; if it is ours it is moved aside to the slot's private name, looked at again, and removed, or put back if it has been replaced
//! in between. An orderly close and a sweep do the same, so a kill in the middle is cleaned up by the next sweep.
//!
//! # What a table is to the sweeper
//! Input from a process that may have been hostile. It is read once into private memory, parsed with bounds, and honoured only beneath the
//! directories that the *owner* of the process has granted ([`GrantedDir`]), without symbolic links and mounts. The worst that a false table can do is to
//! remove what lies in those directories, is of the registered kind, has the identity that the table gives, and what its process could have
//! removed itself: the sweep acts with the rights that the process had in the end.
//!
//! # What stays open
//! Towards programs that do not take part in this: between moving aside and putting back a successor, its path does not exist for some
//! microseconds, and a third program that binds it then keeps it (the successor is left under the private name and reported). On a file system
//! without file handles, a file that was given a freed inode number within one tick of the clock cannot be told from the one before.
//!
//! Not here: killing and reaping processes. A sweep of a process expects that it is dead.

#[cfg(test)]
#[path = "../../../sys/src/apart.rs"]
mod apart;
pub(crate) mod cgroups;
mod clear;
mod dir;
mod sweep;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use dir::{DirError, Enrolment, GrantedDir, TreeDir, default_bases, open_base};
pub(crate) use sweep::{
    Found, Left, Manner, Why, find_tree, is_own_tree, living, remove_remnant, root_of,
    sweep_dead_trees, trees_in,
};
pub(crate) use table::{BindTable, Claim, ClaimError, Kind};
#[cfg(test)]
use {
    sweep::{Report, Swept, sweep},
    table::{PATH_BYTES_MAX, Released, SLOTS},
};

use offshoot_sys::fsx;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// The name of one process within a tree, and of its files in the tree's directory: 16 hexadecimal digits.
///
/// It must never be used twice in one tree: what bears it may be swept once the first bearer is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProcessKey(u64);

impl ProcessKey {
    /// The key with this number.
    pub(crate) const fn new(number: u64) -> Self {
        Self(number)
    }

    /// A key that no other process has.
    ///
    /// # Errors
    /// When the kernel's random numbers are forbidden to this process.
    pub(crate) fn random() -> io::Result<Self> {
        Ok(Self(fsx::random()? as u64))
    }

    /// The number.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// The key in a file's name, if the rest of the name is exactly one.
    fn in_name(name: &OsStr, prefix: &str) -> Option<Self> {
        name.to_str()?.strip_prefix(prefix)?.parse().ok()
    }

    fn file(self, prefix: &str) -> OsString {
        format!("{prefix}{self}").into()
    }
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for ProcessKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 16 || !text.bytes().all(digits) {
            return Err(InvalidKey);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| InvalidKey)
    }
}

/// That a text is not 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a process key, which has 16 lower-case hexadecimal digits")]
pub(crate) struct InvalidKey;

/// What every private name begins with. Public names may not.
const PRIVATE_PREFIX: &str = ".offshoot-";

/// A name for something that is not yet, or no longer, public. It holds the key, so that no table can name what another process has made.
fn private_name(key: ProcessKey) -> io::Result<OsString> {
    Ok(format!("{PRIVATE_PREFIX}{key}-{:032x}", fsx::random()?).into())
}

/// Whether [`private_name`] can have made `name` for `key`.
fn is_private_name(name: &OsStr, key: ProcessKey) -> bool {
    let rest = name
        .as_bytes()
        .strip_prefix(format!("{PRIVATE_PREFIX}{key}-").as_bytes());
    rest.is_some_and(|random| random.len() == 32 && random.iter().all(u8::is_ascii_hexdigit))
}

/// `Ok(None)` when there is no such file.
fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
