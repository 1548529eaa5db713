//! The bind table: every address of one process, written before it exists. The writer's side; [`sweep`](super::sweep) is the reader's.
//!
//! The file has a head and [`SLOTS`] slots of one KiB. A slot's state is the last thing that is written when it is filled and the first when it is emptied:
//!
//! 1. *free*: nothing in the slot counts.
//! 2. *intent*: kind, grant, path and private name are valid. The object exists under the private name, or not at all.
//! 3. *named*: the identity is valid too. The object exists under the private name, the public path, both, or no more.
//!
//! Only the process that mapped the table writes it. Which slots are in use is kept outside, in memory that no other process can write.

use super::dir::{DirError, Enrolment, GrantedDir, TreeDir};
use super::sweep::{Outcome, look, withdraw};
use super::{PRIVATE_PREFIX, ProcessKey, private_name};
use offshoot_sys::acting::Credentials;
use offshoot_sys::fsx::{self, Access, FileKind, HANDLE_BYTES_MAX, Identity};
use offshoot_sys::map::SharedMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many addresses one process can have at a time.
pub(crate) const SLOTS: usize = 255;

/// The longest path of an address beneath its granted directory, in bytes.
pub(crate) const PATH_BYTES_MAX: usize = 768;

/// The longest single component of a path.
const NAME_BYTES_MAX: usize = 255;

/// The places in the file, in bytes. Numbers are in the machine's own order: a table never leaves the machine.
pub(super) mod layout {
    use super::{HANDLE_BYTES_MAX, PATH_BYTES_MAX, SLOTS};

    pub(in super::super) const MAGIC: u64 = u64::from_be_bytes(*b"offshoot");
    pub(in super::super) const VERSION: u32 = 1;
    pub(in super::super) const TABLE_BYTES: usize = (1 + SLOTS) * SLOT_BYTES;
    pub(in super::super) const SLOT_BYTES: usize = 1024;

    pub(in super::super) const HEAD_MAGIC: usize = 0;
    pub(in super::super) const HEAD_VERSION: usize = 8;
    pub(in super::super) const HEAD_SLOTS: usize = 12;
    pub(in super::super) const HEAD_SLOT_BYTES: usize = 16;
    pub(in super::super) const HEAD_PID: usize = 20;
    pub(in super::super) const HEAD_STARTED: usize = 24;
    pub(in super::super) const HEAD_KEY: usize = 32;

    pub(in super::super) const STATE: usize = 0;
    pub(in super::super) const KIND: usize = 4;
    pub(in super::super) const GRANT: usize = 8;
    pub(in super::super) const PATH_LEN: usize = 12;
    pub(in super::super) const PRIVATE_LEN: usize = 16;
    pub(in super::super) const HANDLE_KIND: usize = 20;
    pub(in super::super) const HANDLE_LEN: usize = 24;
    pub(in super::super) const DEV: usize = 32;
    pub(in super::super) const INO: usize = 40;
    pub(in super::super) const BORN: usize = 48;
    pub(in super::super) const HANDLE: usize = 64;
    pub(in super::super) const PRIVATE: usize = HANDLE + HANDLE_BYTES_MAX;
    pub(in super::super) const PRIVATE_BYTES_MAX: usize = 64;
    pub(in super::super) const PATH: usize = PRIVATE + PRIVATE_BYTES_MAX;

    pub(in super::super) const FREE: u32 = 0;
    pub(in super::super) const INTENT: u32 = 1;
    pub(in super::super) const NAMED: u32 = 2;

    /// In the place of a handle's length: there is no handle.
    pub(in super::super) const NO_HANDLE: u32 = u32::MAX;

    const _: () = assert!(
        PATH + PATH_BYTES_MAX == SLOT_BYTES,
        "the path fills the slot"
    );

    /// Where a slot begins.
    pub(in super::super) const fn slot(index: usize) -> usize {
        (1 + index) * SLOT_BYTES
    }
}

use layout::*;

/// How many slots get their room on the disk at a time. Room for all at once would cost every process a quarter of a MiB.
const SLOTS_RESERVED: usize = 15;

/// What kind of thing an address is. A sweep removes nothing of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A Unix socket.
    Socket,
    /// A regular file: a pid file, a lock file, what users register.
    File,
    /// A shared-memory object, which is a regular file in `/dev/shm`.
    SharedMemory,
}

impl Kind {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Socket => 1,
            Self::File => 2,
            Self::SharedMemory => 3,
        }
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        [Self::Socket, Self::File, Self::SharedMemory]
            .into_iter()
            .find(|kind| kind.number() == number)
    }

    pub(super) fn file_kind(self) -> FileKind {
        match self {
            Self::Socket => FileKind::Socket,
            Self::File | Self::SharedMemory => FileKind::File,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket => "socket",
            Self::File => "file",
            Self::SharedMemory => "shared memory",
        })
    }
}

/// Why an address could not be claimed, or not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The table has no free slot.
    #[error("this process has {limit} addresses already, which is the limit of its bind table")]
    Full {
        /// How many there can be.
        limit: usize,
    },
    /// Something lies at the path.
    #[error("{} is in use", path.display())]
    AddrInUse {
        /// The path.
        path: PathBuf,
    },
    /// The path lies in no directory that was granted to this process.
    #[error("{} is not in a directory that was granted to this process", path.display())]
    NotGranted {
        /// The path.
        path: PathBuf,
    },
    /// The name is empty, absolute, has `.` or `..` in it, has a component of more than 255 bytes, or begins like a private name.
    #[error("{} is not a name for an address", path.display())]
    InvalidName {
        /// The name.
        path: PathBuf,
    },
    /// The path does not fit into the table.
    #[error("{} is longer than {limit} bytes beneath its granted directory", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// The limit, [`PATH_BYTES_MAX`].
        limit: usize,
    },
    /// What was made, or was found, is not of the kind that it was announced to be.
    #[error("{} is not a {kind}", path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What it should be.
        kind: Kind,
    },
    /// This process is a fork of the one that opened the table.
    #[error("the bind table belongs to the process that this one was forked from")]
    Forked,
    /// The object could not be made.
    #[error("cannot make the {kind} for {}", path.display())]
    Make {
        /// The path that it was to have.
        path: PathBuf,
        /// What it was to be.
        kind: Kind,
        /// What the maker said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ClaimError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

impl From<ClaimError> for io::Error {
    fn from(error: ClaimError) -> Self {
        let kind = match &error {
            ClaimError::Full { .. } => io::ErrorKind::QuotaExceeded,
            ClaimError::AddrInUse { .. } => io::ErrorKind::AddrInUse,
            ClaimError::NotGranted { .. } => io::ErrorKind::PermissionDenied,
            ClaimError::InvalidName { .. } | ClaimError::WrongKind { .. } => {
                io::ErrorKind::InvalidInput
            }
            ClaimError::PathTooLong { .. } => io::ErrorKind::InvalidFilename,
            ClaimError::Forked => io::ErrorKind::Unsupported,
            ClaimError::Make { source, .. } | ClaimError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// The bind table of this process. Clones are the same table.
#[derive(Clone, Debug)]
pub(crate) struct BindTable {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    map: SharedMap,
    file: OwnedFd,
    key: ProcessKey,
    slots: Mutex<Slots>,
    /// The first is the private directory; a slot names one by its index, so that the list only ever grows.
    grants: Mutex<Vec<GrantedDir>>,
}

#[derive(Debug)]
struct Slots {
    used: [bool; SLOTS],
    /// So many from the first on have their room on the disk.
    reserved: usize,
}

/// Gives a new table file its size and its head.
pub(super) fn lay_out(file: OwnedFd, key: ProcessKey) -> io::Result<OwnedFd> {
    fsx::set_size(file.as_fd(), TABLE_BYTES as u64)?;
    let mut head = [0; SLOT_BYTES];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(HEAD_MAGIC, &MAGIC.to_ne_bytes());
    put(HEAD_VERSION, &VERSION.to_ne_bytes());
    put(HEAD_SLOTS, &(SLOTS as u32).to_ne_bytes());
    put(HEAD_SLOT_BYTES, &(SLOT_BYTES as u32).to_ne_bytes());
    put(HEAD_KEY, &key.number().to_ne_bytes());
    fsx::write_at(file.as_fd(), &head, 0)?;
    Ok(file)
}

/// When a process was started, in clock ticks since the machine was: with the pid, a name that is not reused.
pub(super) fn started(pid: u32) -> io::Result<u64> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may hold anything; the start is field 22.
    let end = text.iter().rposition(|&byte| byte == b')').unwrap_or(0);
    let field = std::str::from_utf8(&text[end..])
        .ok()
        .and_then(|rest| rest.split(' ').nth(20));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl BindTable {
    /// Enrols this process in a tree whose directory it holds, and opens its table: for the root.
    ///
    /// # Errors
    /// As [`TreeDir::enroll`] and [`open`](Self::open).
    pub(crate) fn create(
        tree: &TreeDir,
        key: ProcessKey,
        grants: Vec<GrantedDir>,
    ) -> Result<Self, DirError> {
        let owner = Credentials::own().map_err(DirError::io("find the owner of", tree.path()))?;
        let enrolment = tree.enroll(key, &owner, &grants)?;
        Self::open(enrolment, grants).map_err(DirError::io("open the bind table in", tree.path()))
    }

    /// Opens the table that the owner of this process has made for it. `grants` are those that it was enrolled with, in the same order.
    ///
    /// # Errors
    /// When the file is no table for this key or another process has opened it before; when it cannot be mapped.
    pub(crate) fn open(enrolment: Enrolment, grants: Vec<GrantedDir>) -> io::Result<Self> {
        let Enrolment {
            key,
            table,
            private,
        } = enrolment;
        let map = SharedMap::new(table.as_fd(), TABLE_BYTES)?;
        let ours = map.load_u64(HEAD_MAGIC, Ordering::Acquire) == MAGIC
            && map.load_u32(HEAD_VERSION, Ordering::Relaxed) == VERSION
            && map.load_u64(HEAD_KEY, Ordering::Relaxed) == key.number();
        if !ours {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is not the bind table of this process",
            ));
        }
        let pid = std::process::id();
        if map.load_u32(HEAD_PID, Ordering::Acquire) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the bind table has been opened before",
            ));
        }
        map.store_u64(HEAD_STARTED, started(pid).unwrap_or(0), Ordering::Relaxed);
        map.store_u32(HEAD_PID, pid, Ordering::Release);
        let grants = [GrantedDir::from_fd(private)?]
            .into_iter()
            .chain(grants)
            .collect();
        let slots = Mutex::new(Slots {
            used: [false; SLOTS],
            reserved: 0,
        });
        let shared = Shared {
            map,
            file: table,
            key,
            slots,
            grants: Mutex::new(grants),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// This process's name in the tree.
    pub(crate) fn key(&self) -> ProcessKey {
        self.shared.key
    }

    /// The directory of this process alone, for addresses that need no place of their own.
    pub(crate) fn private_dir(&self) -> GrantedDir {
        self.shared.grants()[0].clone()
    }

    /// How many addresses are claimed now.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shared
            .slots()
            .used
            .iter()
            .filter(|&&used| used)
            .count()
    }

    /// Whether no address is claimed.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grants this process another directory, for whoever holds the tree's directory: it is put on record first. One that is granted already is
    /// no error.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub(crate) fn grant(&self, tree: &TreeDir, dir: GrantedDir) -> Result<(), DirError> {
        let mut grants = self.shared.grants();
        if grants.iter().any(|known| known.is_same(&dir)) {
            return Ok(());
        }
        grants.push(dir);
        tree.write_grants(self.shared.key, &grants[1..])
            .inspect_err(|_| drop(grants.pop()))
    }

    /// Takes note of a directory that the owner of this process has granted and put on record after the former ones.
    pub(crate) fn accept_grant(&self, dir: GrantedDir) {
        self.shared.grants().push(dir);
    }

    /// The granted directory that holds `path`, the innermost if there are several, and the rest of the path.
    ///
    /// # Errors
    /// [`ClaimError::NotGranted`].
    #[cfg(test)]
    pub(crate) fn granted(&self, path: &Path) -> Result<(GrantedDir, PathBuf), ClaimError> {
        let grants = self.shared.grants();
        let within = |path: &Path| {
            let found = grants
                .iter()
                .filter_map(|grant| Some((grant, path.strip_prefix(grant.path()).ok()?)));
            let innermost = found.min_by_key(|(_, rest)| rest.as_os_str().len())?;
            Some((innermost.0.clone(), innermost.1.to_owned()))
        };
        // The grants' paths have their links resolved; the caller's may go through some.
        let resolved = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
        let found = within(path).or_else(|| within(&resolved()?));
        found.ok_or_else(|| ClaimError::NotGranted {
            path: path.to_owned(),
        })
    }

    /// Binds a Unix socket to `name`, a relative path in `granted`; [`publish`](Self::publish) for [`Kind::Socket`].
    ///
    /// What `bind` gets is a short path that works whatever the length of the public one is. The socket's own `local_addr` will be that path, not the
    /// public one, which [`Claim::path`] has.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(crate) fn bind_socket<T>(
        &self,
        granted: &GrantedDir,
        name: &Path,
        bind: impl FnMut(&Path) -> io::Result<T>,
    ) -> Result<(T, Claim), ClaimError> {
        self.publish(Kind::Socket, granted, name, bind)
    }

    /// Makes something that others will find at `name`, a relative path in `granted`, such that no death at any moment leaves it behind.
    ///
    /// `make` makes it at the path that it is given, and may set its permissions there: it becomes public only afterwards. It is called a second time
    /// when the first place turns out to be on another mount.
    ///
    /// # Blocking
    /// As `make`, and the file system itself.
    ///
    /// # Errors
    /// [`ClaimError`]; then nothing is left of what was made.
    pub(crate) fn publish<T>(
        &self,
        kind: Kind,
        granted: &GrantedDir,
        name: &Path,
        mut make: impl FnMut(&Path) -> io::Result<T>,
    ) -> Result<(T, Claim), ClaimError> {
        let target = self.shared.target(kind, granted, name)?;
        let private = self.private_dir();
        if private.device() == target.device()? {
            match target.publish(private.as_fd(), &mut make) {
                Err(ClaimError::Io { source, .. })
                    if source.kind() == io::ErrorKind::CrossesDevices => {}
                result => return result,
            }
        }
        target.publish(target.dir.as_fd(), &mut make)
    }

    /// Registers something that exists already at `name` in `granted`, made by code that knows nothing of tables.
    ///
    /// If this process is killed between the making and this call, it is left behind: [`publish`](Self::publish) has no such gap.
    ///
    /// # Errors
    /// [`ClaimError`]; what exists is then left alone.
    pub(crate) fn adopt(
        &self,
        kind: Kind,
        granted: &GrantedDir,
        name: &Path,
    ) -> Result<Claim, ClaimError> {
        let target = self.shared.target(kind, granted, name)?;
        let found = look(target.dir.as_fd(), &target.name)
            .map_err(ClaimError::io("look at", &target.path))?;
        let (found_kind, identity) = found.ok_or_else(|| ClaimError::Io {
            doing: "find",
            path: target.path.clone(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        if found_kind != kind.file_kind() {
            return Err(ClaimError::WrongKind {
                path: target.path,
                kind,
            });
        }
        let aside = private_name(self.shared.key).map_err(ClaimError::io("name", &target.path))?;
        let index = self.shared.acquire(&target.path)?;
        // From here to the state *named* a sweep looks for the private name only, and finds nothing.
        self.shared.write_intent(index, &target, &aside);
        self.shared.write_identity(index, &identity);
        Ok(target.claim(index, aside, identity))
    }
}

/// An address that this process has. Dropping it, or [`release`](Self::release), takes it away.
///
/// In a process that was forked from the one that made it, dropping it does nothing.
#[derive(Debug)]
pub(crate) struct Claim {
    shared: Arc<Shared>,
    index: usize,
    kind: Kind,
    grant: GrantedDir,
    relative: PathBuf,
    path: PathBuf,
    aside: OsString,
    identity: Identity,
    released: bool,
}

/// What became of an address when its claim was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// It was removed.
    Removed,
    /// It was not there any more.
    Gone,
    /// Something else has taken its place, and was left alone.
    Successor,
}

impl Claim {
    /// The public path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Removes the address, if what lies there is still what was published, and frees the slot.
    ///
    /// # Errors
    /// When the file system refuses. The address then stays in the table, for the sweep after this process.
    #[cfg(test)]
    pub(crate) fn release(mut self) -> Result<Released, ClaimError> {
        self.withdraw()
    }

    /// Gives up the claim and leaves what lies there.
    pub(crate) fn forget(mut self) {
        self.released = true;
        if self.shared.is_ours() {
            self.shared.free(self.index);
        }
    }

    fn withdraw(&mut self) -> Result<Released, ClaimError> {
        self.released = true;
        if !self.shared.is_ours() {
            return Err(ClaimError::Forked);
        }
        let outcome = self
            .remove()
            .map_err(ClaimError::io("remove", &self.path))?;
        self.shared.free(self.index);
        Ok(outcome)
    }

    fn remove(&self) -> io::Result<Released> {
        let (parent, name) = split(&self.relative).ok_or(io::ErrorKind::InvalidInput)?;
        // Opened anew, because a descriptor per address would double what a listener costs.
        let Some(dir) =
            super::absent_is_none(fsx::open_beneath(self.grant.as_fd(), parent, Access::Hold))?
        else {
            return Ok(Released::Gone);
        };
        match withdraw(
            dir.as_fd(),
            name,
            &self.aside,
            self.kind.file_kind(),
            &self.identity,
        )? {
            Outcome::Removed => Ok(Released::Removed),
            Outcome::Gone => Ok(Released::Gone),
            Outcome::Successor => Ok(Released::Successor),
            Outcome::Displaced => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        match self.withdraw() {
            Ok(_) | Err(ClaimError::Forked) => {}
            Err(error) => crate::log::warn!(
                %error,
                source = std::error::Error::source(&error).map(tracing::field::display),
                "an address is left for the sweep after this process"
            ),
        }
    }
}

/// Where something is to be published.
#[derive(Debug)]
struct Target<'a> {
    shared: &'a Arc<Shared>,
    kind: Kind,
    grant: GrantedDir,
    grant_index: u32,
    relative: PathBuf,
    /// The whole path, to talk about.
    path: PathBuf,
    dir: OwnedFd,
    name: OsString,
}

impl Target<'_> {
    fn device(&self) -> Result<u64, ClaimError> {
        let found = fsx::metadata(self.dir.as_fd())
            .map_err(ClaimError::io("look at the directory of", &self.path))?;
        Ok(found.dev)
    }

    /// The steps of the module's documentation, with the private name in `place`.
    fn publish<T>(
        &self,
        place: BorrowedFd<'_>,
        make: &mut impl FnMut(&Path) -> io::Result<T>,
    ) -> Result<(T, Claim), ClaimError> {
        let name = private_name(self.shared.key).map_err(ClaimError::io("name", &self.path))?;
        let through =
            fsx::path_through(place, &name).map_err(ClaimError::io("name", &self.path))?;
        let index = self.shared.acquire(&self.path)?;
        self.shared.write_intent(index, self, &name);
        let pending = Pending {
            shared: self.shared,
            index,
            place,
            name: &name,
        };
        let made = make(&through).map_err(|source| ClaimError::Make {
            path: self.path.clone(),
            kind: self.kind,
            source,
        })?;
        let found =
            look(place, &name).map_err(ClaimError::io("look at what was made for", &self.path))?;
        let Some((_, identity)) = found.filter(|(kind, _)| *kind == self.kind.file_kind()) else {
            return Err(ClaimError::WrongKind {
                path: self.path.clone(),
                kind: self.kind,
            });
        };
        self.shared.write_identity(index, &identity);
        fsx::rename_noreplace(place, &name, self.dir.as_fd(), &self.name).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => ClaimError::AddrInUse {
                    path: self.path.clone(),
                },
                _ => ClaimError::io("publish", &self.path)(error),
            }
        })?;
        std::mem::forget(pending);
        Ok((made, self.claim(index, name, identity)))
    }

    fn claim(&self, index: usize, aside: OsString, identity: Identity) -> Claim {
        Claim {
            shared: self.shared.clone(),
            index,
            kind: self.kind,
            grant: self.grant.clone(),
            relative: self.relative.clone(),
            path: self.path.clone(),
            aside,
            identity,
            released: false,
        }
    }
}

/// Something that has been announced and is not yet public. Dropping it, after an error or a panic of the maker, takes it back.
struct Pending<'a> {
    shared: &'a Shared,
    index: usize,
    place: BorrowedFd<'a>,
    name: &'a OsStr,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        match super::absent_is_none(fsx::unlink(self.place, self.name)) {
            Ok(_) => self.shared.free(self.index),
            Err(error) => {
                crate::log::warn!(%error, "a private name is left for the sweep after this process")
            }
        }
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing panics between two changes that belong together.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grants(&self) -> MutexGuard<'_, Vec<GrantedDir>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process opened the table, and was not forked from the one that did.
    fn is_ours(&self) -> bool {
        self.map.load_u32(HEAD_PID, Ordering::Relaxed) == std::process::id()
    }

    fn target<'a>(
        self: &'a Arc<Self>,
        kind: Kind,
        granted: &GrantedDir,
        name: &Path,
    ) -> Result<Target<'a>, ClaimError> {
        let path = granted.path().join(name);
        if !self.is_ours() {
            return Err(ClaimError::Forked);
        }
        let Some((parent, last)) = split(name) else {
            return Err(ClaimError::InvalidName {
                path: name.to_owned(),
            });
        };
        if name.as_os_str().len() > PATH_BYTES_MAX {
            return Err(ClaimError::PathTooLong {
                path,
                limit: PATH_BYTES_MAX,
            });
        }
        let index = self
            .grants()
            .iter()
            .position(|known| known.is_same(granted));
        let Some(index) = index else {
            return Err(ClaimError::NotGranted { path });
        };
        let dir = fsx::open_beneath(granted.as_fd(), parent, Access::Hold)
            .map_err(ClaimError::io("open the directory of", &path))?;
        Ok(Target {
            shared: self,
            kind,
            grant: granted.clone(),
            grant_index: index as u32,
            relative: name.to_owned(),
            dir,
            name: last.to_owned(),
            path,
        })
    }

    /// The first free slot, with room on the disk.
    fn acquire(&self, path: &Path) -> Result<usize, ClaimError> {
        let mut slots = self.slots();
        let index = slots
            .used
            .iter()
            .position(|used| !used)
            .ok_or(ClaimError::Full { limit: SLOTS })?;
        if index >= slots.reserved {
            // A store into a page that the file system cannot find room for would be a SIGBUS instead of an error.
            let end = (index + 1).next_multiple_of(SLOTS_RESERVED).min(SLOTS);
            let (from, to) = (slot(slots.reserved), slot(end));
            match fsx::reserve(self.file.as_fd(), from as u64, (to - from) as u64) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    fsx::write_at(self.file.as_fd(), &vec![0; to - from], from as u64)
                }
                result => result,
            }
            .map_err(ClaimError::io("find room in the bind table for", path))?;
            slots.reserved = end;
        }
        slots.used[index] = true;
        Ok(index)
    }

    fn write_intent(&self, index: usize, target: &Target<'_>, private: &OsStr) {
        let at = slot(index);
        let (path, private) = (target.relative.as_os_str().as_bytes(), private.as_bytes());
        self.map
            .store_u32(at + KIND, target.kind.number(), Ordering::Relaxed);
        self.map
            .store_u32(at + GRANT, target.grant_index, Ordering::Relaxed);
        self.map
            .store_u32(at + PATH_LEN, path.len() as u32, Ordering::Relaxed);
        self.map.write(at + PATH, path);
        self.map
            .store_u32(at + PRIVATE_LEN, private.len() as u32, Ordering::Relaxed);
        self.map.write(at + PRIVATE, private);
        self.map.store_u32(at + STATE, INTENT, Ordering::Release);
    }

    fn write_identity(&self, index: usize, identity: &Identity) {
        let at = slot(index);
        self.map
            .store_u64(at + DEV, identity.dev, Ordering::Relaxed);
        self.map
            .store_u64(at + INO, identity.ino, Ordering::Relaxed);
        self.map
            .store_u64(at + BORN, identity.born, Ordering::Relaxed);
        match &identity.handle {
            Some(handle) => {
                self.map
                    .store_u32(at + HANDLE_KIND, handle.kind() as u32, Ordering::Relaxed);
                self.map.store_u32(
                    at + HANDLE_LEN,
                    handle.bytes().len() as u32,
                    Ordering::Relaxed,
                );
                self.map.write(at + HANDLE, handle.bytes());
            }
            None => self
                .map
                .store_u32(at + HANDLE_LEN, NO_HANDLE, Ordering::Relaxed),
        }
        self.map.store_u32(at + STATE, NAMED, Ordering::Release);
    }

    fn free(&self, index: usize) {
        self.map
            .store_u32(slot(index) + STATE, FREE, Ordering::Release);
        self.slots().used[index] = false;
    }
}

/// The directory part (`.` if there is none) and the last component of a relative path that names something beneath a directory: no `..`, no root, not
/// like a private name.
pub(super) fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let bytes = path.as_os_str().as_bytes();
    // No file system has longer components, and a walk that fails for that would look as if it could succeed another time.
    let plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(name) if name.len() <= NAME_BYTES_MAX));
    let name = path.file_name()?;
    // `components` passes over doubled and trailing slashes and inner dots, which would make two texts of one path.
    let whole = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
    if !plain
        || !whole
        || bytes.contains(&0)
        || name.as_bytes().starts_with(PRIVATE_PREFIX.as_bytes())
    {
        return None;
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    Some((parent.unwrap_or(Path::new(".")), name))
}
