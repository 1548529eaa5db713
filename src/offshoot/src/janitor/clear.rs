//! Removing a directory with all that is in it, and nothing that is only mounted in it.
//!
//! The walk goes down by descriptors that stay on the mount that they began on ([`fsx::open_beneath`]), and keeps one of them at a time,
//! however deep it is: it goes up by `..`, and on only if that is the directory that it came from.

use super::absent_is_none;
use super::sweep::{Swept, Why};
use offshoot_sys::fsx::{self, Metadata};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How many directories within each other are removed. Paths end at 2,048; this ends a race with a process that makes them faster than they are
/// removed.
const DEPTH_MAX: usize = 1 << 16;

/// How much of one directory that cannot be removed is told one by one.
const TOLD_MAX: usize = 16;

/// Removes whatever bears `name` in `dir`, a directory with all that is in it, and tells `swept` what it had to leave. That nothing does is no
/// error. True if nothing is left.
///
/// `path` is that of `dir`, to talk about.
pub(super) fn clear_entry(
    dir: BorrowedFd<'_>,
    path: &Path,
    name: &OsStr,
    swept: &mut Swept,
) -> bool {
    Walk {
        top: dir,
        path,
        levels: Vec::new(),
        told: 0,
        swept,
    }
    .remove(name)
}

/// Removes everything in `dir` but `keep`; as [`clear_entry`].
pub(super) fn clear(dir: BorrowedFd<'_>, path: &Path, keep: &[&OsStr], swept: &mut Swept) -> bool {
    let names = match absent_is_none(fsx::list(dir)) {
        Ok(names) => names.unwrap_or_default(),
        Err(error) => {
            swept.leave(path, error.into());
            return false;
        }
    };
    let mut whole = true;
    for name in names {
        if !keep.contains(&name.as_os_str()) {
            whole &= clear_entry(dir, path, &name, swept);
        }
    }
    whole
}

struct Walk<'a> {
    top: BorrowedFd<'a>,
    path: &'a Path,
    /// From the outermost directory that is being removed to the one that the walk is in.
    levels: Vec<Level>,
    told: usize,
    swept: &'a mut Swept,
}

/// A directory that is being removed.
struct Level {
    name: OsString,
    /// Which directory it is.
    is: Metadata,
    /// What is still to be removed of it.
    names: Vec<OsString>,
    /// Nothing of it had to be left so far.
    whole: bool,
}

/// What became of a name.
enum Taken {
    Gone,
    /// It is a directory with something in it.
    Full,
}

impl Walk<'_> {
    fn remove(mut self, name: &OsStr) -> bool {
        let mut at: OwnedFd = match self.begin(name) {
            Ok(Some(inner)) => inner,
            Ok(None) => return true,
            Err(why) => {
                self.leave(name, why);
                return false;
            }
        };
        while let Some(level) = self.levels.last_mut() {
            if let Some(name) = level.names.pop() {
                match self.take(at.as_fd(), &name) {
                    Ok(None) => {}
                    Ok(Some(inner)) => at = inner,
                    Err(why) => self.leave(&name, why),
                }
                continue;
            }
            let Some(level) = self.levels.pop() else {
                break;
            };
            let up = match self.levels.last() {
                Some(parent) => match back(at.as_fd(), &parent.is) {
                    Ok(up) => Some(up),
                    Err(error) => {
                        // Nothing is known of where the walk is.
                        self.leave(&level.name, Why::Failed(error));
                        return false;
                    }
                },
                None => None,
            };
            let holder = up.as_ref().map_or(self.top, AsFd::as_fd);
            let removed = match level.whole {
                true => absent_is_none(fsx::remove_dir(holder, &level.name)).map(|_| true),
                false => Ok(false),
            };
            match (removed, self.levels.last_mut()) {
                (Ok(true), _) => {}
                (Ok(false), Some(parent)) => parent.whole = false,
                (Ok(false), None) => return false,
                (Err(error), _) => self.leave(&level.name, error.into()),
            }
            match up {
                Some(up) => at = up,
                None => return self.told == 0,
            }
        }
        true
    }

    fn begin(&mut self, name: &OsStr) -> Result<Option<OwnedFd>, Why> {
        self.take(self.top, name)
    }

    /// Removes a name, or enters it if it is a directory that is not empty.
    fn take(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>, Why> {
        match take(dir, name)? {
            Taken::Gone => Ok(None),
            Taken::Full => self.enter(dir, name),
        }
    }

    fn enter(&mut self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>, Why> {
        if self.levels.len() == DEPTH_MAX {
            let message = format!("more than {DEPTH_MAX} directories within each other");
            return Err(Why::Failed(io::Error::other(message)));
        }
        if !fsx::can_tell_mounts(dir) {
            return Err(Why::Unguarded);
        }
        let Some(inner) = absent_is_none(fsx::open_own_dir(dir, name))? else {
            return Ok(None);
        };
        let is = fsx::metadata(inner.as_fd())?;
        let names = absent_is_none(fsx::list(inner.as_fd()))?.unwrap_or_default();
        self.levels.push(Level {
            name: name.to_owned(),
            is,
            names,
            whole: true,
        });
        Ok(Some(inner))
    }

    fn leave(&mut self, name: &OsStr, why: Why) {
        if let Some(level) = self.levels.last_mut() {
            level.whole = false;
        }
        if self.told < TOLD_MAX {
            let mut path: PathBuf = self.path.to_owned();
            path.extend(self.levels.iter().map(|level| &level.name));
            self.swept.leave(path.join(name), why);
        }
        self.told += 1;
    }
}

fn take(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Taken> {
    let refused = match absent_is_none(fsx::unlink(dir, name)) {
        Ok(_) => return Ok(Taken::Gone),
        Err(error) => error,
    };
    if !matches!(
        refused.kind(),
        io::ErrorKind::IsADirectory | io::ErrorKind::PermissionDenied
    ) {
        return Err(refused);
    }
    match absent_is_none(fsx::remove_dir(dir, name)) {
        Ok(_) => Ok(Taken::Gone),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(Taken::Full),
        // It is no directory, and may not be unlinked.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(refused),
        Err(error) => Err(error),
    }
}

/// The directory that holds `dir`, if it is the one in which the walk found it.
pub(super) fn back(dir: BorrowedFd<'_>, expected: &Metadata) -> io::Result<OwnedFd> {
    let up = fsx::open_parent(dir)?;
    let found = fsx::metadata(up.as_fd())?;
    let same = (found.dev, found.ino, found.born, found.mount)
        == (expected.dev, expected.ino, expected.born, expected.mount);
    match same {
        true => Ok(up),
        false => Err(io::Error::other(
            "it was moved elsewhere while it was removed",
        )),
    }
}
