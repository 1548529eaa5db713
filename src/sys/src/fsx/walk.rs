//! The two ways of [`open_beneath`](super::open_beneath): one call of the kernel, or one component at a time where that is refused.
//!
//! | promise | `openat2` | stepwise |
//! |---|---|---|
//! | never above `dir` | `RESOLVE_BENEATH` | the path has no `..`; each step opens one name in a directory that is held |
//! | no symbolic link | `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_MAGICLINKS` | `O_PATH` with `O_NOFOLLOW` opens a link itself, which is seen and refused |
//! | no mount | `RESOLVE_NO_XDEV` | the mount id of each is that of `dir` |
//!
//! A step opens with `O_PATH`, which has no effect on what it opens, and looks at the descriptor, so that nothing can be exchanged between the
//! look and the use. What is opened for reading is opened a second time by its name, and must be what was looked at.

use super::{Access, FileKind, Metadata, component, metadata};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU8, Ordering};

/// Whether a walk may pass through what is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mounts {
    Stay,
    Cross,
}

/// How often a file is opened again that was replaced between the look and the open. Each time needs a rename between two consecutive calls.
const REPLACED_MAX: usize = 16;

const UNKNOWN: u8 = 0;
const KERNEL: u8 = 1;
const STEPS: u8 = 2;

/// The way of this process. A filter can come later, and never goes: it changes from the kernel's to the stepwise one, once.
static WAY: AtomicU8 = AtomicU8::new(UNKNOWN);

pub(super) fn open(
    dir: BorrowedFd<'_>,
    path: &Path,
    access: Access,
    mounts: Mounts,
) -> io::Result<OwnedFd> {
    names_of(path)?;
    if has_openat2() {
        match by_kernel(dir, path, access, mounts) {
            // Of the file, or of a filter that came after the first look.
            Err(error) if super::is_refused(&error) && !probe() => {}
            result => return result,
        }
    }
    by_steps(dir, path, access, mounts)
}

/// Whether this process may use `openat2`.
pub(super) fn has_openat2() -> bool {
    match WAY.load(Ordering::Relaxed) {
        UNKNOWN => probe(),
        way => way == KERNEL,
    }
}

/// Asks the kernel for something that only a missing call can refuse so.
fn probe() -> bool {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC);
    let refused = matches!(
        nix::fcntl::openat2(AT_FDCWD, "/", how),
        Err(Errno::ENOSYS | Errno::EPERM)
    );
    WAY.store(if refused { STEPS } else { KERNEL }, Ordering::Relaxed);
    !refused
}

fn by_kernel(
    dir: BorrowedFd<'_>,
    path: &Path,
    access: Access,
    mounts: Mounts,
) -> io::Result<OwnedFd> {
    let mut beneath = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if mounts == Mounts::Stay {
        beneath |= ResolveFlag::RESOLVE_NO_XDEV;
    }
    let how = OpenHow::new().flags(access.flags()).resolve(beneath);
    loop {
        match nix::fcntl::openat2(dir, path, how) {
            // EAGAIN: a rename somewhere made the kernel unsure whether the walk has left `dir`. It asks to be asked again.
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            result => return Ok(result?),
        }
    }
}

/// The same without `openat2`.
pub(super) fn by_steps(
    dir: BorrowedFd<'_>,
    path: &Path,
    access: Access,
    mounts: Mounts,
) -> io::Result<OwnedFd> {
    let names = names_of(path)?;
    let start = metadata(dir)?;
    let Some((last, way)) = names.split_last() else {
        return Ok(openat(dir, OsStr::new("."), access.flags())?);
    };
    let mut held: Option<OwnedFd> = None;
    for name in way {
        let at = held.as_ref().map_or(dir, AsFd::as_fd);
        let (next, found) = step(at, name, &start, mounts)?;
        match found.kind {
            FileKind::Directory => held = Some(next),
            FileKind::Symlink => return Err(Errno::ELOOP.into()),
            _ => return Err(Errno::ENOTDIR.into()),
        }
    }
    finish(
        held.as_ref().map_or(dir, AsFd::as_fd),
        last,
        access,
        &start,
        mounts,
    )
}

/// The names on the way; none for the directory itself.
fn names_of(path: &Path) -> io::Result<Vec<&OsStr>> {
    let leads_out = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a path beneath a directory",
        )
    };
    if path.as_os_str().is_empty() {
        return Err(leads_out());
    }
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(Ok(name)),
        Component::CurDir => None,
        _ => Some(Err(leads_out())),
    });
    names.collect()
}

/// One name in one directory, only to look at it.
fn step(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    start: &Metadata,
    mounts: Mounts,
) -> io::Result<(OwnedFd, Metadata)> {
    let opened = openat(dir, component(name)?, Access::Look.flags())?;
    let found = metadata(opened.as_fd())?;
    let strange = match (start.mount, found.mount) {
        (Some(start), Some(found)) => start != found,
        _ => start.dev != found.dev,
    };
    if strange && mounts == Mounts::Stay {
        return Err(Errno::EXDEV.into());
    }
    Ok((opened, found))
}

fn finish(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    access: Access,
    start: &Metadata,
    mounts: Mounts,
) -> io::Result<OwnedFd> {
    for _ in 0..REPLACED_MAX {
        let (looked, found) = step(dir, name, start, mounts)?;
        match access {
            Access::Look => return Ok(looked),
            Access::Hold | Access::List if found.kind != FileKind::Directory => {
                return Err(Errno::ENOTDIR.into());
            }
            Access::Hold => return Ok(looked),
            // By the descriptor: a directory has a name for itself.
            Access::List => return Ok(openat(looked.as_fd(), OsStr::new("."), access.flags())?),
            Access::Read | Access::ReadWrite if found.kind == FileKind::Symlink => {
                return Err(Errno::ELOOP.into());
            }
            Access::Read | Access::ReadWrite => {}
        }
        let opened = openat(dir, name, access.flags())?;
        let now = metadata(opened.as_fd())?;
        if (now.dev, now.ino, now.mount) == (found.dev, found.ino, found.mount) {
            return Ok(opened);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "it was replaced again and again while it was opened",
    ))
}

fn openat(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    loop {
        match nix::fcntl::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::EINTR) => continue,
            result => return result,
        }
    }
}
