//! The tree's own directory: where it lies, who may be trusted with it, how it is born and how it ends.
//!
//! ```text
//! <base>/                     $XDG_RUNTIME_DIR/offshoot, or <temporary directory>/offshoot-<uid>; 0700
//!   <16 hex digits>/          one tree; 0700
//!     lock                    flock, held by the root and, through the same open file, by the forkserver; id and start of the root
//!     table-<key>             the bind table of one process
//!     owner-<key>             as whom that process acts on files, as the kernel told its owner last
//!     grants-<key>            the directories outside that its owner lets a sweep of that table touch
//!     cgroup-<n>              the control group of the n-th forkserver, if it has one
//!     <key>/                  its private directory: names that are not yet public, and addresses that need no place of their own
//!   .new-<16 hex digits>/     a tree that is being born, or died in it
//! ```

use super::clear::{clear, clear_entry};
use super::sweep::{Left, Manner, Swept, Why, sweep};
use super::{ProcessKey, absent_is_none, table};
use offshoot_sys::acting::Credentials;
use offshoot_sys::fsx::{self, Access, FileHandle, FileKind, Identity};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const LOCK: &str = "lock";
pub(super) const NEWBORN_PREFIX: &str = ".new-";
const TABLE_PREFIX: &str = "table-";
const GRANTS_PREFIX: &str = "grants-";
const OWNER_PREFIX: &str = "owner-";

/// How often a birth is tried again when a sweeper took the newborn for a dead tree. Each time needs the sweeper to come between two
/// consecutive system calls.
const BIRTHS_MAX: usize = 16;

/// The longest list of granted directories that is read, in bytes.
const GRANTS_BYTES_MAX: u64 = 1 << 20;

const GRANTS_HEAD: &[u8] = b"offshoot-grants 1\0";

/// The longest record of credentials that is read, in bytes. There are 65,536 groups at most.
const OWNER_BYTES_MAX: u64 = 1 << 20;

const OWNER_HEAD: &str = "offshoot-owner 1 ";

/// The directory of one tree of isolates.
///
/// Dropping it removes nothing: an orderly end calls [`remove`](Self::remove), and after any other end the next start does it
/// ([`sweep_dead_trees`](super::sweep_dead_trees)).
#[derive(Debug)]
pub(crate) struct TreeDir {
    dir: OwnedFd,
    lock: Option<OwnedFd>,
    path: PathBuf,
}

/// Why there is no directory for a tree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirError {
    /// A symbolic link lies where the base directory should be.
    #[error(
        "{} is a symbolic link; remove it, or set XDG_RUNTIME_DIR (or TMPDIR) to a directory that only you can write to",
        path.display()
    )]
    Symlink {
        /// Where it lies.
        path: PathBuf,
    },
    /// Something else lies where the base directory should be.
    #[error("{} is not a directory; remove it, or set XDG_RUNTIME_DIR (or TMPDIR) to a directory of your own", path.display())]
    NotADirectory {
        /// Where it lies.
        path: PathBuf,
    },
    /// The base directory belongs to another user.
    #[error(
        "{} belongs to user {owner} and not to user {user}; have it removed, or set XDG_RUNTIME_DIR (or TMPDIR) to a directory of your own",
        path.display()
    )]
    Foreign {
        /// Where it lies.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// As whom this process runs.
        user: u32,
    },
    /// Others may enter or change the directory.
    #[error("{} has mode {mode:04o}, which lets others in; if nobody else has written to it, run: chmod {remedy} {}", path.display(), path.display())]
    TooWide {
        /// Where it lies.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The mode to set.
        remedy: &'static str,
    },
    /// A system call failed.
    #[error("cannot {doing} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a person can do about a failed call.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (make room there, or set XDG_RUNTIME_DIR or TMPDIR to a directory that has some)"
        }
        io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotFound => {
            " (set XDG_RUNTIME_DIR or TMPDIR to an existing directory that you can write to)"
        }
        _ => "",
    }
}

impl DirError {
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// What a process needs to open its [`BindTable`](super::BindTable): made by its owner, handed over by descriptor.
#[derive(Debug)]
pub(crate) struct Enrolment {
    /// The process's name in the tree.
    pub key: ProcessKey,
    /// Its bind table, of fixed size, still empty.
    pub table: OwnedFd,
    /// Its private directory.
    pub private: OwnedFd,
}

impl TreeDir {
    /// As [`create_named`](Self::create_named), with a number that nobody else has.
    #[cfg(test)]
    pub(crate) fn create(base: Option<&Path>) -> Result<Self, DirError> {
        let key = ProcessKey::random().map_err(DirError::io("name a tree in", "/"))?;
        Self::create_named(key, base)
    }

    /// Makes the directory of a new tree and takes its lock. `key` is the number of the tree, by which the directory is called.
    ///
    /// `base` is where the trees lie; `None` means `$XDG_RUNTIME_DIR/offshoot` when that variable names a private directory of this user, else
    /// `offshoot-<uid>` in the temporary directory. The base is made when it is missing.
    ///
    /// # Blocking
    /// Never, beyond the file system itself.
    ///
    /// # Errors
    /// When the base is a symbolic link, belongs to somebody else or lets others in; when the file system refuses. Each names the path and what to
    /// do about it.
    pub(crate) fn create_named(key: ProcessKey, base: Option<&Path>) -> Result<Self, DirError> {
        let (path, base) = match base {
            Some(path) => (path.to_owned(), open_base(path, true)?),
            None => open_default_base()?,
        };
        let path =
            std::path::absolute(&path).map_err(DirError::io("find the whole path of", &path))?;
        Self::born_in(&base, &path, key).map_err(DirError::io("make a directory in", &path))
    }

    fn born_in(base: &OwnedFd, path: &Path, key: ProcessKey) -> io::Result<Self> {
        for _ in 0..BIRTHS_MAX {
            // Another each time: the sweeper may not be done with the former.
            let newborn = ProcessKey::random()?.file(NEWBORN_PREFIX);
            if let Some(tree) = Self::born_as(base, path, key, &newborn)? {
                return Ok(tree);
            }
        }
        Err(io::Error::other(format!(
            "{BIRTHS_MAX} times in a row somebody removed it before it could be locked"
        )))
    }

    /// `None` when a sweeper took it for dead before the lock was ours: until then, it looks like a tree that died in its birth.
    fn born_as(
        base: &OwnedFd,
        path: &Path,
        key: ProcessKey,
        newborn: &OsStr,
    ) -> io::Result<Option<Self>> {
        let Some(dir) = absent_is_none(fsx::make_dir(base.as_fd(), newborn))? else {
            return Ok(None);
        };
        let lock = Self::lock_newborn(base, &dir, key, newborn).inspect_err(|_| {
            // A second error would only hide the first, and the next start removes it anyway.
            let _ = fsx::unlink(dir.as_fd(), LOCK.as_ref());
            let _ = fsx::remove_dir(base.as_fd(), newborn);
        })?;
        let Some(lock) = lock else {
            return Ok(None);
        };
        // systemd-tmpfiles leaves a directory alone, however old, while anybody holds a lock on it.
        fsx::try_lock_shared(dir.as_fd())?;
        Ok(Some(Self {
            dir,
            lock: Some(lock),
            path: path.join(key.file("")),
        }))
    }

    /// Takes the lock of a newborn and gives it its name; `None` as of [`born_as`](Self::born_as).
    fn lock_newborn(
        base: &OwnedFd,
        dir: &OwnedFd,
        key: ProcessKey,
        newborn: &OsStr,
    ) -> io::Result<Option<OwnedFd>> {
        let Some(lock) = absent_is_none(fsx::create(dir.as_fd(), LOCK.as_ref()))? else {
            return Ok(None);
        };
        // From the lock on nobody touches it. The sweeper may have held the lock first, or have removed the file before we locked it.
        if !fsx::try_lock_exclusive(lock.as_fd())? || fsx::metadata(lock.as_fd())?.links == 0 {
            return Ok(None);
        }
        // For `reap`, which is to tell a forkserver that was stopped after the root from one of a tree that lives. Without room, that stays unknown.
        let pid = std::process::id();
        let root = format!("{pid} {}\n", table::started(pid).unwrap_or(0));
        let _ = fsx::write_at(lock.as_fd(), root.as_bytes(), 0);
        fsx::rename(base.as_fd(), newborn, base.as_fd(), &key.file(""))?;
        Ok(Some(lock))
    }

    /// A tree's directory in a process that was given it by descriptor. Without `lock` it does not keep the tree alive.
    ///
    /// # Errors
    /// When `dir` is no directory, or `/proc` is missing.
    pub(crate) fn from_fds(dir: OwnedFd, lock: Option<OwnedFd>) -> Result<Self, DirError> {
        let path =
            fsx::path_of(dir.as_fd()).map_err(DirError::io("find the path of", "a descriptor"))?;
        let found = fsx::metadata(dir.as_fd()).map_err(DirError::io("look at", &path))?;
        if found.kind != FileKind::Directory {
            return Err(DirError::NotADirectory { path });
        }
        Ok(Self { dir, lock, path })
    }

    /// Where it lies. Correct as long as nobody renames it; everything here goes by descriptor.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the calling thread may write to it. One that has given up rights since it was made may not.
    pub(crate) fn is_usable(&self) -> bool {
        fsx::may_change(self.dir.as_fd())
    }

    /// The directory's descriptor.
    pub(crate) fn dir_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The lock's descriptor, if this process has it. A copy of it (dup, or sent over a socket) holds the same lock, which is free once the last
    /// copy is closed: only the root and the forkserver may keep one.
    pub(crate) fn lock_fd(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(AsFd::as_fd)
    }

    /// Makes what a new process of the tree needs: a table, a private directory, and the record of what its sweep may touch.
    ///
    /// `grants` are the directories outside its private one, in the order in which the process will have them; `owner` is as whom the process acts
    /// on files.
    ///
    /// # Errors
    /// When the key has been used, or the file system refuses.
    pub(crate) fn enroll(
        &self,
        key: ProcessKey,
        owner: &Credentials,
        grants: &[GrantedDir],
    ) -> Result<Enrolment, DirError> {
        self.write_owner(key, owner)?;
        if !grants.is_empty() {
            self.write_grants(key, grants)?;
        }
        let name = key.file("");
        let private = fsx::make_dir(self.dir.as_fd(), &name);
        let private = private.map_err(DirError::io("make the directory", self.path.join(name)))?;
        let name = key.file(TABLE_PREFIX);
        let table = fsx::create(self.dir.as_fd(), &name).and_then(|file| table::lay_out(file, key));
        let table = table.map_err(DirError::io("make the bind table", self.path.join(name)))?;
        Ok(Enrolment {
            key,
            table,
            private,
        })
    }

    /// Records *all* the directories outside its private one that a sweep of this process may touch. Replaces the former record in one step.
    ///
    /// The record is what a later start goes by, so it has to be written before the process knows of the grant.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn write_grants(
        &self,
        key: ProcessKey,
        grants: &[GrantedDir],
    ) -> Result<(), DirError> {
        let mut bytes = GRANTS_HEAD.to_vec();
        for grant in grants {
            grant.encode(&mut bytes);
        }
        let name = key.file(GRANTS_PREFIX);
        let written = match bytes.len() as u64 > GRANTS_BYTES_MAX {
            true => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "more than a MiB of granted directories",
            )),
            false => self.record(GRANTS_PREFIX, &name, &bytes),
        };
        written.map_err(DirError::io(
            "record the granted directories in",
            self.path.join(&name),
        ))
    }

    /// Records as whom a process acts on files. A sweep of its table can do no more than that. Replaces the former record in one step.
    ///
    /// # Errors
    /// When the file system refuses.
    pub(crate) fn write_owner(&self, key: ProcessKey, owner: &Credentials) -> Result<(), DirError> {
        let Credentials {
            uid,
            gid,
            groups,
            capabilities,
        } = owner;
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let text = format!(
            "{OWNER_HEAD}{uid} {gid} {capabilities:x} {}\n",
            groups.join(",")
        );
        let name = key.file(OWNER_PREFIX);
        self.record(OWNER_PREFIX, &name, text.as_bytes())
            .map_err(DirError::io("record the owner in", self.path.join(&name)))
    }

    /// As [`write_owner`](Self::write_owner), if the record says something else.
    pub(crate) fn renew_owner(&self, key: ProcessKey, owner: &Credentials) -> Result<(), DirError> {
        match self.read_owner(key) == *owner {
            true => Ok(()),
            false => self.write_owner(key, owner),
        }
    }

    /// As whom a process acted on files. Nobody, if there is no record that makes sense: then nothing is removed that not everybody may remove.
    fn read_owner(&self, key: ProcessKey) -> Credentials {
        let read = || -> Option<Credentials> {
            let name = key.file(OWNER_PREFIX);
            let file = fsx::open_beneath(self.dir.as_fd(), name.as_ref(), Access::Read).ok()?;
            let mut bytes = Vec::new();
            File::from(file)
                .take(OWNER_BYTES_MAX)
                .read_to_end(&mut bytes)
                .ok()?;
            let text = std::str::from_utf8(&bytes).ok()?;
            let text = text.strip_prefix(OWNER_HEAD)?.strip_suffix('\n')?;
            let mut fields = text.split(' ');
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let capabilities = u64::from_str_radix(fields.next()?, 16).ok()?;
            let groups = fields.next()?.split(',').filter(|group| !group.is_empty());
            let groups = groups.map(|group| group.parse().ok());
            Some(Credentials {
                uid,
                gid,
                groups: groups.collect::<Option<_>>()?,
                capabilities,
            })
        };
        read().unwrap_or_else(Credentials::nobody)
    }

    /// Writes a file in one step. What is temporary begins with `prefix`.
    fn record(&self, prefix: &str, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
        let temporary: OsString = format!("{prefix}{:032x}", fsx::random()?).into();
        let file = fsx::create(self.dir.as_fd(), &temporary)?;
        let written = fsx::write_at(file.as_fd(), bytes, 0);
        let renamed = written
            .and_then(|()| fsx::rename(self.dir.as_fd(), &temporary, self.dir.as_fd(), name));
        if renamed.is_err() {
            // A second error would only hide the first, and the tree's end removes it anyway.
            let _ = fsx::unlink(self.dir.as_fd(), &temporary);
        }
        renamed
    }

    /// Removes what a dead process has left, by its table and the recorded grants, and then its files here.
    ///
    /// What could not be removed now but may be later keeps the table, so that a later sweep tries again. Doing it twice, or in two
    /// processes at once, is no error.
    ///
    /// The process must be dead: what it publishes meanwhile may be missed.
    pub(crate) fn sweep(&self, key: ProcessKey) -> Swept {
        self.sweep_so(key, &Manner::default())
    }

    fn sweep_so(&self, key: ProcessKey, manner: &Manner<'_>) -> Swept {
        let mut swept = Swept::default();
        let grants = self.read_grants(key, &mut swept);
        self.sweep_by(key, &self.read_owner(key), &grants, manner, &mut swept);
        swept
    }

    /// As [`sweep`](Self::sweep), with the owner that the kernel named and the directories that the caller holds, in place of those on record.
    ///
    /// It is meant for the one who granted them: the records in the files could have been changed by an unconfined process of the same user.
    pub(crate) fn sweep_with(
        &self,
        key: ProcessKey,
        owner: &Credentials,
        grants: &[GrantedDir],
    ) -> Swept {
        let mut swept = Swept::default();
        let grants: Vec<_> = grants.iter().cloned().map(Some).collect();
        self.sweep_by(key, owner, &grants, &Manner::default(), &mut swept);
        swept
    }

    /// Every process of which anything is here.
    pub(crate) fn processes(&self) -> Vec<ProcessKey> {
        self.keys(&mut Swept::default())
    }

    /// Sweeps every process of the tree but those in `keep`.
    #[cfg(test)]
    pub(crate) fn sweep_except(&self, keep: &[ProcessKey]) -> Swept {
        let mut swept = Swept::default();
        for key in self.keys(&mut swept) {
            if !keep.contains(&key) {
                swept.add(self.sweep(key));
            }
        }
        swept
    }

    /// Ends a tree: sweeps every process and removes the directory.
    ///
    /// If something outside could not be removed now but may be later, the directory stays, for the next start. Doing it twice, or in two
    /// processes at once, is no error.
    pub(crate) fn remove(&self) -> Swept {
        self.remove_so(&Manner::default())
    }

    /// As [`remove`](Self::remove), in this manner. What that leaves keeps the directory.
    pub(crate) fn remove_so(&self, manner: &Manner<'_>) -> Swept {
        let mut swept = Swept::default();
        // First those who could bind something more.
        for group in self.cgroups(None) {
            if !manner.processes && group.is_populated() {
                swept.leave(group.path(), Why::NotAsked);
            }
        }
        if !manner.dry && manner.processes {
            swept.add(self.end_cgroups(None));
        }
        for key in self.keys(&mut swept) {
            swept.add(self.sweep_so(key, manner));
        }
        // The directory is one of the things that lie in the file system.
        if manner.dry || !manner.files || !swept.is_settled() {
            return swept;
        }
        if clear(self.dir.as_fd(), &self.path, &[LOCK.as_ref()], &mut swept)
            && let Err(error) = self.remove_itself()
        {
            swept.leave(&self.path, error.into());
        }
        swept
    }

    /// Removes the directory, which is empty but for the lock.
    fn remove_itself(&self) -> io::Result<()> {
        // Last, because a directory without a lock is taken for one whose removal was cut short.
        absent_is_none(fsx::unlink(self.dir.as_fd(), LOCK.as_ref()))?;
        let Some(base) = absent_is_none(fsx::open_parent(self.dir.as_fd()))? else {
            return Ok(());
        };
        let Some(name) = self.path.file_name() else {
            return Ok(());
        };
        let Some(found) =
            absent_is_none(fsx::open_beneath(base.as_fd(), name.as_ref(), Access::Hold))?
        else {
            return Ok(());
        };
        if !fsx::identity(found.as_fd())?.is_same(&fsx::identity(self.dir.as_fd())?) {
            return Ok(());
        }
        absent_is_none(fsx::remove_dir(base.as_fd(), name)).map(drop)
    }

    /// Every process of which anything is here.
    pub(super) fn keys(&self, swept: &mut Swept) -> Vec<ProcessKey> {
        let names = match absent_is_none(fsx::list(self.dir.as_fd())) {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => {
                swept.leave(&self.path, error.into());
                return Vec::new();
            }
        };
        let key = |name: &OsString| {
            ["", TABLE_PREFIX]
                .iter()
                .find_map(|prefix| ProcessKey::in_name(name, prefix))
        };
        let mut keys: Vec<_> = names.iter().filter_map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The table of a process, to read; `None` when there is none.
    pub(super) fn table(&self, key: ProcessKey) -> io::Result<Option<OwnedFd>> {
        let name = key.file(TABLE_PREFIX);
        absent_is_none(fsx::open_beneath(
            self.dir.as_fd(),
            name.as_ref(),
            Access::Read,
        ))
    }

    fn sweep_by(
        &self,
        key: ProcessKey,
        owner: &Credentials,
        grants: &[Option<GrantedDir>],
        manner: &Manner<'_>,
        swept: &mut Swept,
    ) {
        let (name, table_name) = (key.file(""), key.file(TABLE_PREFIX));
        let private = match absent_is_none(fsx::open_own_dir(self.dir.as_fd(), &name)) {
            Ok(Some(fd)) => GrantedDir::of(fd, self.path.join(&name)).map(Some),
            Ok(None) => Ok(None),
            // What lies in its place is taken away with all else.
            Err(error) if fsx::is_obstructed(&error) => Ok(None),
            Err(error) => Err(error),
        };
        match (self.table(key), private) {
            (Ok(Some(table)), Ok(private)) => sweep(
                table.as_fd(),
                key,
                owner,
                private.as_ref(),
                grants,
                manner,
                swept,
            ),
            (Ok(None), Ok(_)) => {}
            (Err(error), _) if fsx::is_obstructed(&error) => {
                swept.leave(
                    self.path.join(&table_name),
                    Why::Malformed("it is not a bind table"),
                );
            }
            (Err(error), _) => swept.leave(self.path.join(&table_name), error.into()),
            (_, Err(error)) => swept.leave(self.path.join(&name), error.into()),
        }
        if manner.dry || !manner.files || !swept.is_settled() {
            return;
        }
        // The table goes before the record of grants: a table without its grants could not be swept.
        let records = [OWNER_PREFIX, GRANTS_PREFIX].map(|prefix| key.file(prefix));
        let _ = [name, table_name]
            .iter()
            .chain(&records)
            .all(|name| clear_entry(self.dir.as_fd(), &self.path, name, swept));
    }

    /// The directories on record, `None` for each that is not there any more, or is not the one that was granted.
    fn read_grants(&self, key: ProcessKey, swept: &mut Swept) -> Vec<Option<GrantedDir>> {
        let name = key.file(GRANTS_PREFIX);
        let read = || -> io::Result<Option<Vec<u8>>> {
            let Some(file) = absent_is_none(fsx::open_beneath(
                self.dir.as_fd(),
                name.as_ref(),
                Access::Read,
            ))?
            else {
                return Ok(None);
            };
            let mut bytes = Vec::new();
            File::from(file)
                .take(GRANTS_BYTES_MAX)
                .read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        let bytes = match read() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Vec::new(),
            Err(error) => {
                swept.leave(self.path.join(&name), error.into());
                return Vec::new();
            }
        };
        let Some(records) = bytes.strip_prefix(GRANTS_HEAD) else {
            swept.leave(
                self.path.join(&name),
                Why::Malformed("it is not a list of granted directories"),
            );
            return Vec::new();
        };
        let records = records.split_inclusive(|&byte| byte == 0);
        records
            .map(|record| GrantedDir::decode(record).and_then(|found| found.reopen(swept)))
            .collect()
    }
}

/// A directory in which a process may have addresses, and beneath which a sweep of its table may remove them.
///
/// It is held by descriptor: whatever becomes of its path, it stays the directory that was granted.
#[derive(Clone, Debug)]
pub(crate) struct GrantedDir {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    identity: Identity,
}

impl GrantedDir {
    /// The directory at `path`, symbolic links resolved now.
    ///
    /// # Errors
    /// When it does not exist or is no directory.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        Self::of(fsx::open_no_follow(&path, Access::Hold)?, path)
    }

    /// A directory that came by descriptor.
    ///
    /// # Errors
    /// When it is no directory, or `/proc` is missing.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let path = fsx::path_of(fd.as_fd())?;
        Self::of(fd, path)
    }

    pub(super) fn of(fd: OwnedFd, path: PathBuf) -> io::Result<Self> {
        if fsx::metadata(fd.as_fd())?.kind != FileKind::Directory {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let identity = fsx::identity(fd.as_fd())?;
        Ok(Self {
            fd: Arc::new(fd),
            path,
            identity,
        })
    }

    /// Where it was when it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same directory, by whatever path they were opened.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.identity.is_same(&other.identity)
    }

    /// Whether it is `other`, or lies beneath it, without a symbolic link on the way.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        if self.is_same(other) {
            return true;
        }
        let Ok(below) = self.path.strip_prefix(&other.path) else {
            return false;
        };
        // What lies there now, whoever has moved things about since. What is mounted there belongs to it.
        fsx::open_beneath_across(other.as_fd(), below, Access::Hold)
            .and_then(|found| fsx::identity(found.as_fd()))
            .is_ok_and(|found| found.is_same(&self.identity))
    }

    pub(super) fn device(&self) -> u64 {
        self.identity.dev
    }

    /// One record: numbers and the path, closed by a zero byte, which no path holds.
    fn encode(&self, bytes: &mut Vec<u8>) {
        let Identity {
            dev,
            ino,
            born,
            handle,
        } = &self.identity;
        bytes.extend(format!("{dev} {ino} {born} ").into_bytes());
        if let Some(handle) = handle {
            bytes.extend(format!("{}:", handle.kind()).into_bytes());
            bytes.extend(
                handle
                    .bytes()
                    .iter()
                    .flat_map(|byte| format!("{byte:02x}").into_bytes()),
            );
        }
        bytes.push(b' ');
        bytes.extend(self.path.as_os_str().as_bytes());
        bytes.push(0);
    }

    fn decode(record: &[u8]) -> Option<Recorded> {
        let mut fields = record.strip_suffix(&[0])?.splitn(5, |&byte| byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (dev, ino, born) = (
            text()?.parse().ok()?,
            text()?.parse().ok()?,
            text()?.parse().ok()?,
        );
        let handle = match text()? {
            "" => None,
            handle => {
                let (kind, digits) = handle.split_once(':')?;
                let digit = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
                let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(digit).collect();
                Some(FileHandle::new(kind.parse().ok()?, &bytes?)?)
            }
        };
        let path = PathBuf::from(OsString::from_vec(fields.next()?.to_vec()));
        path.is_absolute().then_some(Recorded {
            path,
            identity: Identity {
                dev,
                ino,
                born,
                handle,
            },
        })
    }
}

impl AsFd for GrantedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A granted directory as the record has it.
struct Recorded {
    path: PathBuf,
    identity: Identity,
}

impl Recorded {
    fn reopen(self, swept: &mut Swept) -> Option<GrantedDir> {
        let opened = fsx::open_no_follow(&self.path, Access::Hold)
            .and_then(|fd| GrantedDir::of(fd, self.path.clone()));
        match opened {
            Ok(found) if found.identity.is_same(&self.identity) => Some(found),
            Ok(_) => {
                swept.left.push(Left {
                    path: self.path,
                    why: Why::Replaced,
                });
                None
            }
            // With the directory, all that was in it has gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if fsx::is_obstructed(&error) => {
                swept.left.push(Left {
                    path: self.path,
                    why: Why::Replaced,
                });
                None
            }
            Err(error) => {
                swept.left.push(Left {
                    path: self.path,
                    why: error.into(),
                });
                None
            }
        }
    }
}

/// Where trees may lie when nobody says where, the best first.
pub(crate) fn default_bases() -> Vec<PathBuf> {
    bases(
        std::env::var_os("XDG_RUNTIME_DIR"),
        std::env::temp_dir(),
        fsx::effective_user(),
    )
}

pub(super) fn bases(runtime: Option<OsString>, temporary: PathBuf, user: u32) -> Vec<PathBuf> {
    // Under sudo the variable still names the directory of the user who called it; files made there would be in that user's way.
    let usable = |path: &PathBuf| {
        let found =
            fsx::open_no_follow(path, Access::Hold).and_then(|dir| fsx::metadata(dir.as_fd()));
        path.is_absolute() && found.is_ok_and(|found| found.uid == user && found.mode & 0o077 == 0)
    };
    let runtime = runtime
        .map(PathBuf::from)
        .filter(usable)
        .map(|path| path.join("offshoot"));
    runtime
        .into_iter()
        .chain([temporary.join(format!("offshoot-{user}"))])
        .collect()
}

fn open_default_base() -> Result<(PathBuf, OwnedFd), DirError> {
    first_base(default_bases())
}

/// The first that can be had. One that cannot be made, on a full or read-only file system, gives way to the next; one that somebody has tampered
/// with does not.
pub(super) fn first_base(candidates: Vec<PathBuf>) -> Result<(PathBuf, OwnedFd), DirError> {
    let mut candidates = candidates.into_iter().peekable();
    loop {
        let path = candidates
            .next()
            .expect("the temporary directory is always a candidate");
        match open_base(&path, true) {
            Ok(base) => return Ok((path, base)),
            Err(error @ DirError::Io { .. }) if candidates.peek().is_some() => {
                crate::log::debug!(%error, "no room for trees here, trying the next place");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Opens a base directory after checking that it is nobody else's; makes it if `make` and it is missing.
pub(crate) fn open_base(path: &Path, make: bool) -> Result<OwnedFd, DirError> {
    let whole = std::path::absolute(path).map_err(DirError::io("find the whole path of", path))?;
    if make && let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) {
        make_base(parent, name)?;
    }
    let base =
        fsx::open_no_follow(&whole, Access::List).map_err(
            |source| match std::fs::symlink_metadata(&whole) {
                Ok(found) if found.is_symlink() => DirError::Symlink {
                    path: whole.clone(),
                },
                Ok(found) if !found.is_dir() => DirError::NotADirectory {
                    path: whole.clone(),
                },
                _ => DirError::io("open the directory", &whole)(source),
            },
        )?;
    let found = fsx::metadata(base.as_fd()).map_err(DirError::io("look at", &whole))?;
    let user = fsx::effective_user();
    if found.uid != user {
        return Err(DirError::Foreign {
            path: whole,
            owner: found.uid,
            user,
        });
    }
    if found.mode & 0o077 != 0 {
        return Err(DirError::TooWide {
            path: whole,
            mode: found.mode,
            remedy: "700",
        });
    }
    Ok(base)
}

fn make_base(parent: &Path, name: &OsStr) -> Result<(), DirError> {
    // Links on the way are the system's own (`/var/run`); only the last component is in reach of other users.
    let real = parent
        .canonicalize()
        .map_err(DirError::io("find", parent))?;
    let holder = fsx::open_no_follow(&real, Access::Hold)
        .map_err(DirError::io("open the directory", parent))?;
    let found = fsx::metadata(holder.as_fd()).map_err(DirError::io("look at", parent))?;
    // Whoever may write to the parent could put another directory in the place of the base, unless the sticky bit forbids it.
    if found.mode & 0o002 != 0 && found.mode & 0o1000 == 0 {
        return Err(DirError::TooWide {
            path: real,
            mode: found.mode,
            remedy: "+t",
        });
    }
    match fsx::make_dir(holder.as_fd(), name) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(DirError::io("make the directory", parent.join(name))(error)),
    }
}
