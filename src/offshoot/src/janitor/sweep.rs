//! Removing what the dead have left: one address, one table, every dead tree. The reader's side of the bind table.
//!
//! Everything that is read here may have been written by a process that meant harm, or half written by one that was killed.

use super::dir::{GrantedDir, LOCK, NEWBORN_PREFIX, TreeDir, default_bases, open_base};
use super::table::layout::*;
use super::table::{Kind, PATH_BYTES_MAX, SLOTS, split, started};
use super::{DirError, ProcessKey, absent_is_none, is_private_name};
use offshoot_sys::acting::{Credentials, acting_as};
use offshoot_sys::fsx::{self, Access, FileHandle, FileKind, Identity};
use offshoot_sys::pidfd::Pidfd;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the processes of all dead trees together are waited for before their tables are swept. They have been sent SIGKILL by the kernel when their
/// forkserver died, and a large one takes 69 ms per GiB to go.
const DEATH_WAIT_MAX: Duration = Duration::from_secs(1);

/// How a sweep goes about it. As default, it removes all that it may.
#[derive(Clone, Copy)]
pub(crate) struct Manner<'a> {
    /// Only looks: what it would have removed counts as removed.
    pub dry: bool,
    /// Whether it takes what lies in the file system: sockets and files.
    pub files: bool,
    /// Whether it takes shared memory.
    pub memory: bool,
    /// Whether it ends what still runs in the tree's control groups.
    pub processes: bool,
    /// Whether some process has this object mapped or open; asked of shared memory only.
    pub in_use: Option<&'a dyn Fn(&Identity) -> bool>,
    /// Whether the process that wrote a table (by its id and start) still needs what is in it.
    pub needs: Option<&'a dyn Fn(u32, u64) -> bool>,
}

impl Default for Manner<'_> {
    fn default() -> Self {
        Self {
            dry: false,
            files: true,
            memory: true,
            processes: true,
            in_use: None,
            needs: None,
        }
    }
}

impl Manner<'_> {
    fn wants(&self, kind: Kind) -> bool {
        match kind {
            Kind::Socket | Kind::File => self.files,
            Kind::SharedMemory => self.memory,
        }
    }
}

/// What a sweep did.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// The addresses that it removed.
    pub removed: Vec<PathBuf>,
    /// What it did not remove, and why.
    pub left: Vec<Left>,
}

/// Something that a sweep did not remove.
#[derive(Debug)]
pub(crate) struct Left {
    /// What.
    pub path: PathBuf,
    /// Why not.
    pub why: Why,
}

/// Why a sweep left something.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum Why {
    /// Something else has taken the address since; it is not ours to remove.
    Successor,
    /// A successor was moved aside and could not be put back, because a third had taken the address. It lies at this path.
    Displaced,
    /// The table names a directory that its process was not granted, or that is gone.
    NotGranted,
    /// The granted directory has been replaced by another one at the same path.
    Replaced,
    /// What lies there is not of the kind that the table says.
    WrongKind,
    /// The table, or an entry of it, makes no sense.
    Malformed(&'static str),
    /// The process of this id lives, and what it has bound is its own.
    Needed(u32),
    /// Some process has it mapped or open.
    InUse,
    /// The process of the table, which acted as this user in the end, could not have removed it.
    NotAllowed(u32),
    /// Something is mounted there, or on it.
    Mounted,
    /// It cannot be known whether something is mounted in it.
    Unguarded,
    /// The sweep was asked to leave things of this kind alone.
    NotAsked,
    /// The system refused. A later sweep may succeed, and everything that it needs is kept for it.
    Failed(io::Error),
}

impl Why {
    /// Whether a later sweep may find it otherwise.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Failed(_)
            | Self::Needed(_)
            | Self::InUse
            | Self::Mounted
            | Self::Unguarded
            | Self::NotAsked => true,
            Self::Successor
            | Self::Displaced
            | Self::NotGranted
            | Self::NotAllowed(_)
            | Self::Replaced
            | Self::WrongKind
            | Self::Malformed(_) => false,
        }
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Self {
        match fsx::is_mounted(&error) {
            true => Self::Mounted,
            false => Self::Failed(error),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Successor => f.write_str("something else has taken its place"),
            Self::Displaced => f.write_str("moved aside, and a third has taken its place"),
            Self::NotGranted => f.write_str("not in a directory that was granted"),
            Self::Replaced => f.write_str("another directory has taken its place"),
            Self::WrongKind => f.write_str("of another kind than registered"),
            Self::Malformed(what) => f.write_str(what),
            Self::Needed(pid) => write!(f, "the process that has it lives (pid {pid})"),
            Self::InUse => f.write_str("mapped or open in a process that lives"),
            Self::NotAllowed(uid) => write!(
                f,
                "its process acted as user {uid} in the end, and could not have removed it itself"
            ),
            Self::Mounted => f.write_str(
                "something is mounted there, and what is mounted is never removed; unmount it, then run `offshoot reap`",
            ),
            Self::Unguarded => f.write_str(
                "neither `openat2` nor mount ids can be had here, so that what is mounted in it could not be told from it; remove it by hand",
            ),
            Self::NotAsked => f.write_str("not asked for"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl Swept {
    /// Whether nothing is left that a later sweep could still remove.
    pub(crate) fn is_settled(&self) -> bool {
        !self.left.iter().any(|left| left.why.may_pass())
    }

    pub(super) fn leave(&mut self, path: impl Into<PathBuf>, why: Why) {
        self.left.push(Left {
            path: path.into(),
            why,
        });
    }

    /// Tells the program's log what was left.
    pub(crate) fn tell(&self, when: &str) {
        for left in &self.left {
            crate::log::warn!(path = %left.path.display(), why = %left.why, "left behind {when}");
        }
        crate::log::debug!(removed = ?self.removed, "swept {when}");
    }

    /// Tells the standard error what was left, where there is no log: in the forkserver.
    pub(crate) fn print(&self) {
        for left in &self.left {
            offshoot_sys::note!("left behind: {left}");
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.removed.extend(other.removed);
        self.left.extend(other.left);
    }
}

/// What [`sweep_dead_trees`] found and did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The directories of dead trees that are gone now.
    pub removed: Vec<PathBuf>,
    /// The directories of trees that are alive, and were not touched.
    pub alive: Vec<PathBuf>,
    /// What was done in and for the dead ones.
    pub swept: Swept,
}

/// Sweeps and removes every tree of which neither the root nor the forkserver lives.
///
/// `base` as in [`TreeDir::create_named`]; with `None` every place where it may have put a tree is looked at. A base that does not exist is no error.
///
/// # Blocking
/// Up to one second in all, for processes of a dead tree that are still dying.
///
/// # Errors
/// When the base is not safe to work in, or cannot be read. What fails within one tree is in the report.
pub(crate) fn sweep_dead_trees(base: Option<&Path>) -> Result<Report, DirError> {
    let bases = base.map_or_else(default_bases, |base| vec![base.to_owned()]);
    let mut report = Report::default();
    let deadline = Instant::now() + DEATH_WAIT_MAX;
    for path in bases {
        let base = match open_base(&path, false) {
            Ok(base) => base,
            Err(DirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for name in trees_in(base.as_fd()).map_err(DirError::io("list", &path))? {
            if let Err(error) = sweep_if_dead(base.as_fd(), &path, &name, deadline, &mut report) {
                report.swept.leave(path.join(name), error.into());
            }
        }
    }
    Ok(report)
}

fn sweep_if_dead(
    base: BorrowedFd<'_>,
    base_path: &Path,
    name: &OsStr,
    deadline: Instant,
    report: &mut Report,
) -> io::Result<()> {
    match find_tree(base, name)? {
        Found::None => Ok(()),
        Found::Remnant => remove_remnant(base, name),
        Found::Alive => {
            report.alive.push(base_path.join(name));
            Ok(())
        }
        Found::Dead(tree) => {
            wait_for_writers(&tree, deadline);
            let swept = tree.remove();
            if swept.is_settled() {
                report.removed.push(base_path.join(name));
            }
            report.swept.add(swept);
            Ok(())
        }
    }
}

/// What lies in a base directory under the name of a tree.
#[derive(Debug)]
pub(crate) enum Found {
    /// No tree.
    None,
    /// What is left of one that died in its birth or in its removal.
    Remnant,
    /// The root or the forkserver lives.
    Alive,
    /// Neither does. Its lock is ours as long as this is held, so that nobody else takes it for dead.
    Dead(TreeDir),
}

/// Says what an error means that comes of a mount.
fn mounted(error: io::Error) -> io::Error {
    match Why::from(error) {
        Why::Failed(error) => error,
        why => io::Error::other(why.to_string()),
    }
}

/// Looks for a tree and takes its lock, if nobody has it.
pub(crate) fn find_tree(base: BorrowedFd<'_>, name: &OsStr) -> io::Result<Found> {
    let dir = match absent_is_none(fsx::open_beneath(base, name.as_ref(), Access::List)) {
        Ok(Some(dir)) => dir,
        Ok(None) => return Ok(Found::None),
        // No tree was ever there: whatever it is, it is not ours.
        Err(error) if fsx::is_obstructed(&error) => return Ok(Found::None),
        Err(error) => return Err(mounted(error)),
    };
    let lock = fsx::open_beneath(dir.as_fd(), LOCK.as_ref(), Access::Read);
    let lock = absent_is_none(lock).map_err(mounted)?;
    let Some(lock) = lock else {
        return Ok(Found::Remnant);
    };
    if !fsx::try_lock_exclusive(lock.as_fd())? {
        return Ok(Found::Alive);
    }
    let tree = TreeDir::from_fds(dir, Some(lock)).map_err(io::Error::other)?;
    Ok(Found::Dead(tree))
}

/// The process that made a tree, by its id and start. `None` if that is not known.
pub(crate) fn root_of(base: BorrowedFd<'_>, name: &OsStr) -> Option<(u32, u64)> {
    let lock = Path::new(name).join(LOCK);
    let lock = File::from(fsx::open_beneath(base, &lock, Access::Read).ok()?);
    let mut bytes = [0; 64];
    let length = lock.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    let (pid, start) = text.strip_suffix('\n')?.split_once(' ')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// Whether a tree's directory lies there that is ours, whoever its processes have become.
pub(crate) fn is_own_tree(path: &Path) -> bool {
    let (Some(base), Some(name)) = (path.parent(), path.file_name()) else {
        return false;
    };
    let Ok(base) = open_base(base, false) else {
        return false;
    };
    fsx::open_beneath(base.as_fd(), name.as_ref(), Access::Hold)
        .and_then(|dir| fsx::metadata(dir.as_fd()))
        .is_ok_and(|found| found.uid == fsx::effective_user())
}

/// It was being born, or being removed, when its process died. If it was a birth that goes on, that starts again under another name.
pub(crate) fn remove_remnant(base: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match absent_is_none(fsx::remove_dir(base, name)) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => result.map(drop),
    }
}

/// The names of the trees in a base directory, of those that are being born, too.
pub(crate) fn trees_in(base: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = fsx::list(base)?;
    names.retain(|name| {
        ["", NEWBORN_PREFIX]
            .iter()
            .any(|prefix| ProcessKey::in_name(name, prefix).is_some())
    });
    Ok(names)
}

/// The lock of a dead tree may be free a moment before the kernel has killed the tree's processes, and a process that is not dead could publish something
/// that its table did not yet have when it was read.
fn wait_for_writers(tree: &TreeDir, deadline: Instant) {
    for key in tree.keys(&mut Swept::default()) {
        let Ok(Some(table)) = tree.table(key) else {
            continue;
        };
        let Ok(table) = Table::read(table.as_fd()) else {
            continue;
        };
        let (pid, start) = (table.number(HEAD_PID), table.long(HEAD_STARTED));
        // No claim of a hostile table costs more than the deadline.
        if let Some(pidfd) = living(pid, start).filter(|_| pid != std::process::id()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !pidfd.wait_dead(left).unwrap_or(false) {
                crate::log::warn!(pid, tree = %tree.path().display(), "a process outlives its tree");
            }
        }
    }
}

/// The process that had this id and started then, if it is not reaped yet. An id that now means another process has another start.
pub(crate) fn living(pid: u32, start: u64) -> Option<Pidfd> {
    let number = i32::try_from(pid).ok().filter(|&pid| pid > 0)?;
    let pidfd = Pidfd::open(number).ok()?;
    // In this order: if it is the same process now, the descriptor is of it.
    (started(pid).ok()? == start).then_some(pidfd)
}

/// Removes what one table names and what is still there.
///
/// `private` is the private directory of the table's process, which is grant 0; `grants` are the others in the order in which the process has them, `None`
/// for one that is gone. Nothing outside them is touched. The table's file is read once and not changed. What has
/// a private name in the private directory is left for whoever clears that directory, as [`TreeDir::sweep`] does.
///
/// # Blocking
/// Never, beyond the file system itself.
pub(crate) fn sweep(
    table: BorrowedFd<'_>,
    key: ProcessKey,
    owner: &Credentials,
    private: Option<&GrantedDir>,
    grants: &[Option<GrantedDir>],
    manner: &Manner<'_>,
    swept: &mut Swept,
) {
    let table_path = || fsx::path_of(table).unwrap_or_else(|_| format!("table-{key}").into());
    let read = match Table::read(table) {
        Ok(read) => read,
        Err(why) => return swept.leave(table_path(), why),
    };
    let writer = (read.number(HEAD_PID), read.long(HEAD_STARTED));
    if manner.needs.is_some_and(|needs| needs(writer.0, writer.1)) {
        return swept.leave(table_path(), Why::Needed(writer.0));
    }
    // What is in the private directory goes with that anyhow.
    let (mut own, mut foreign) = (Vec::new(), Vec::new());
    for slot in 0..SLOTS {
        match read.entry(slot, key) {
            Ok(None) => {}
            Ok(Some(entry)) if entry.grant == 0 => own.push(entry),
            Ok(Some(entry)) => foreign.push(entry),
            Err(why) => swept.leave(table_path(), Why::Malformed(why)),
        }
    }
    for entry in own {
        match private {
            Some(private) => entry.sweep(private, manner, swept),
            None => swept.leave(entry.relative, Why::NotGranted),
        }
    }
    if foreign.is_empty() {
        return;
    }
    // The table is its writer's word, and the removal is done with our rights: the kernel decides what its writer could have removed.
    let before = swept.left.len();
    let acted = acting_as(owner, || {
        for entry in &foreign {
            match grants.get(entry.grant - 1).and_then(Option::as_ref) {
                Some(grant) => entry.sweep(grant, manner, swept),
                None => swept.leave(&entry.relative, Why::NotGranted),
            }
        }
    });
    if let Err(error) = acted {
        swept.leave(table_path(), Why::Failed(error));
    }
    for left in &mut swept.left[before..] {
        let refused = matches!(&left.why, Why::Failed(error) if error.kind() == io::ErrorKind::PermissionDenied);
        if refused && Credentials::own().is_ok_and(|own| own != *owner) {
            left.why = Why::NotAllowed(owner.uid);
        }
    }
}

/// A private copy of a table. Every number in it is whatever its writer wanted.
struct Table(Vec<u8>);

impl Table {
    fn read(file: BorrowedFd<'_>) -> Result<Self, Why> {
        let found = fsx::metadata(file).map_err(Why::from)?;
        if found.kind != FileKind::File {
            return Err(Why::Malformed("the bind table is not a file"));
        }
        let file = File::from(file.try_clone_to_owned().map_err(Why::from)?);
        let mut bytes = vec![0; TABLE_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64) {
                // Shorter than it was made: what is missing counts as free slots, since the rest is zero.
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let table = Self(bytes);
        let known = table.long(HEAD_MAGIC) == MAGIC
            && table.number(HEAD_VERSION) == VERSION
            && table.number(HEAD_SLOTS) as usize == SLOTS
            && table.number(HEAD_SLOT_BYTES) as usize == SLOT_BYTES;
        if known {
            Ok(table)
        } else {
            Err(Why::Malformed("it is not a bind table of this version"))
        }
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    /// The bytes at `at`, as many as the number at `length` says, if that is no more than `limit`.
    fn bytes(&self, at: usize, length: usize, limit: usize) -> Option<&[u8]> {
        let length = self.number(length) as usize;
        (length <= limit).then(|| &self.0[at..at + length])
    }

    /// What a slot names; `Ok(None)` for a free one.
    fn entry(&self, index: usize, key: ProcessKey) -> Result<Option<Entry>, &'static str> {
        let at = slot(index);
        let state = self.number(at + STATE);
        if state == FREE {
            return Ok(None);
        }
        let kind = Kind::from_number(self.number(at + KIND)).ok_or("an entry of no known kind")?;
        let path = self
            .bytes(at + PATH, at + PATH_LEN, PATH_BYTES_MAX)
            .ok_or("an entry with too long a path")?;
        let relative = PathBuf::from(OsString::from_vec(path.to_vec()));
        split(&relative).ok_or("an entry with a path that leads elsewhere")?;
        let private = self.bytes(at + PRIVATE, at + PRIVATE_LEN, PRIVATE_BYTES_MAX);
        let private = private
            .map(OsStr::from_bytes)
            .filter(|name| is_private_name(name, key));
        let private = private
            .ok_or("an entry with a private name that is not its own")?
            .to_owned();
        let identity = match state {
            INTENT => None,
            NAMED => {
                let handle = match self.number(at + HANDLE_LEN) {
                    NO_HANDLE => None,
                    _ => {
                        let bytes = self.bytes(at + HANDLE, at + HANDLE_LEN, fsx::HANDLE_BYTES_MAX);
                        let bytes = bytes.ok_or("an entry with too long a file handle")?;
                        FileHandle::new(self.number(at + HANDLE_KIND) as i32, bytes)
                    }
                };
                let (dev, ino, born) = (
                    self.long(at + DEV),
                    self.long(at + INO),
                    self.long(at + BORN),
                );
                Some(Identity {
                    dev,
                    ino,
                    born,
                    handle,
                })
            }
            _ => return Err("an entry in no known state"),
        };
        let grant = self.number(at + GRANT) as usize;
        Ok(Some(Entry {
            kind,
            grant,
            relative,
            private,
            identity,
        }))
    }
}

/// What one slot names, well formed.
struct Entry {
    kind: Kind,
    grant: usize,
    relative: PathBuf,
    private: OsString,
    /// `None` as long as there was only the intent.
    identity: Option<Identity>,
}

impl Entry {
    fn sweep(&self, grant: &GrantedDir, manner: &Manner<'_>, swept: &mut Swept) {
        let path = grant.path().join(&self.relative);
        match self.try_sweep(grant, manner) {
            Ok(Outcome::Removed) => swept.removed.push(path),
            Ok(Outcome::Gone) => {}
            Ok(Outcome::Successor) => swept.leave(path, Why::Successor),
            Ok(Outcome::Displaced) => {
                swept.leave(path.with_file_name(&self.private), Why::Displaced)
            }
            Err(why) => swept.leave(path, why),
        }
    }

    /// What of it is there, under either name; else what a removal would say.
    fn find(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> io::Result<std::result::Result<Identity, Outcome>> {
        let kind = self.kind.file_kind();
        let Some(identity) = &self.identity else {
            let found = look(dir, &self.private)?;
            return Ok(found
                .filter(|(found, _)| *found == kind)
                .map(|(_, identity)| identity)
                .ok_or(Outcome::Gone));
        };
        let mut outcome = Outcome::Gone;
        for name in [name, &self.private] {
            match look(dir, name)? {
                None => {}
                Some((found, other)) if found == kind && other.is_same(identity) => {
                    return Ok(Ok(other));
                }
                Some(_) => outcome = Outcome::Successor,
            }
        }
        Ok(Err(outcome))
    }

    fn try_sweep(&self, grant: &GrantedDir, manner: &Manner<'_>) -> Result<Outcome, Why> {
        let (parent, name) = split(&self.relative)
            .ok_or(Why::Malformed("an entry with a path that leads elsewhere"))?;
        let dir = match absent_is_none(fsx::open_beneath(grant.as_fd(), parent, Access::Hold)) {
            Ok(Some(dir)) => dir,
            Ok(None) => return Ok(Outcome::Gone),
            Err(error) if fsx::is_obstructed(&error) => return Err(Why::NotGranted),
            Err(error) => return Err(error.into()),
        };
        let kind = self.kind.file_kind();
        let in_use = manner
            .in_use
            .filter(|_| self.kind == Kind::SharedMemory && manner.memory);
        if manner.dry || !manner.wants(self.kind) || in_use.is_some() {
            let found = self.find(dir.as_fd(), name).map_err(Why::from)?;
            match found {
                Ok(_) if !manner.wants(self.kind) => return Err(Why::NotAsked),
                Ok(found) if in_use.is_some_and(|in_use| in_use(&found)) => {
                    return Err(Why::InUse);
                }
                Ok(_) if manner.dry => return Ok(Outcome::Removed),
                Err(outcome) if manner.dry || outcome == Outcome::Gone => return Ok(outcome),
                _ => {}
            }
        }
        let Some(identity) = &self.identity else {
            // Only its maker can have known this name, so that whatever bears it was made by the dead process.
            return match look(dir.as_fd(), &self.private).map_err(Why::from)? {
                None => Ok(Outcome::Gone),
                Some((found, _)) if found != kind => Err(Why::WrongKind),
                Some(_) => absent_is_none(fsx::unlink(dir.as_fd(), &self.private))
                    .map_or_else(|error| Err(error.into()), |_| Ok(Outcome::Gone)),
            };
        };
        withdraw(dir.as_fd(), name, &self.private, kind, identity).map_err(Why::from)
    }
}

/// What became of an address that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was ours and is gone now.
    Removed,
    /// Nothing was there.
    Gone,
    /// It was not ours and is as before.
    Successor,
    /// It was not ours, was moved aside, and its place was taken before it could be put back. It lies under the private name.
    Displaced,
}

/// Kind and identity of what bears `name`; `None` when nothing does.
pub(super) fn look(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<(FileKind, Identity)>> {
    let Some(file) = absent_is_none(fsx::open_beneath(dir, name.as_ref(), Access::Look))? else {
        return Ok(None);
    };
    Ok(Some((
        fsx::metadata(file.as_fd())?.kind,
        fsx::identity(file.as_fd())?,
    )))
}

/// Removes `name` from `dir` if it is still what it was, by way of the name `aside`.
///
/// Whoever is killed in here leaves a state in which the next call does the rest: the name aside is where it begins.
pub(super) fn withdraw(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    aside: &OsStr,
    kind: FileKind,
    identity: &Identity,
) -> io::Result<Outcome> {
    withdraw_with(dir, name, aside, kind, identity, || ())
}

/// As [`withdraw`], with something to happen between the look and the removal: where another program may come in between.
pub(super) fn withdraw_with(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    aside: &OsStr,
    kind: FileKind,
    identity: &Identity,
    meanwhile: impl FnOnce(),
) -> io::Result<Outcome> {
    let before = settle(dir, name, aside, kind, identity)?;
    if before == Outcome::Displaced {
        return Ok(before);
    }
    match look(dir, name)? {
        None => return Ok(before),
        // Only a look, so that a successor's path does not vanish for a moment each time.
        Some((found, other)) if found != kind || !other.is_same(identity) => {
            return Ok(Outcome::Successor);
        }
        Some(_) => {}
    }
    meanwhile();
    // Between the look and the removal it could be replaced. Moved aside, it cannot: nobody else knows the name.
    if absent_is_none(fsx::rename(dir, name, dir, aside))?.is_none() {
        return Ok(Outcome::Gone);
    }
    settle(dir, name, aside, kind, identity)
}

/// Removes what lies aside if it is ours, and puts it back if not.
fn settle(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    aside: &OsStr,
    kind: FileKind,
    identity: &Identity,
) -> io::Result<Outcome> {
    match look(dir, aside)? {
        None => Ok(Outcome::Gone),
        Some((found, other)) if found == kind && other.is_same(identity) => {
            absent_is_none(fsx::unlink(dir, aside)).map(|_| Outcome::Removed)
        }
        Some(_) => match absent_is_none(fsx::rename_noreplace(dir, aside, dir, name)) {
            Ok(_) => Ok(Outcome::Successor),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Outcome::Displaced),
            Err(error) => Err(error),
        },
    }
}
