//! The paths that this process has: Unix sockets, and what the program registers.
//!
//! Each stands in the process's bind table before it exists, so that it goes away with the process
//! however that ends (see [`crate::janitor`]). The table is made with the first of them; in a forked
//! process the forkserver makes it, and allows each new directory.

use crate::isolate::local::Local;
use crate::janitor::{
    BindTable, Claim, ClaimError, Enrolment, GrantedDir, Kind, ProcessKey, TreeDir,
};
use crate::runtime::Runtime;
use crate::testing::places;
use crate::time::off_isolate;
use crate::{Error, ErrorKind, IsolateId, Result, unblock};
use offshoot_sys::fsx;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

#[derive(Default)]
pub(crate) struct Binder {
    table: OnceLock<BindTable>,
    /// In which the table of the root lies.
    dir: OnceLock<Arc<TreeDir>>,
    /// The directories that a sweep of this process may touch. Held while one is added, which waits
    /// for the file system and, in a forked process, for the forkserver.
    granted: Mutex<Vec<GrantedDir>>,
    claims: Arc<Mutex<Claims>>,
}

/// What there is, by whom it was made.
#[derive(Default)]
struct Claims {
    /// By numbers that are never used again: a guard may come back after its claim was released.
    made: BTreeMap<u64, (IsolateId, Claim)>,
    next: u64,
}

impl Binder {
    /// The name of this process in the tree, if it has a table.
    pub(crate) fn key(&self) -> Option<ProcessKey> {
        self.table.get().map(BindTable::key)
    }

    /// Removes everything.
    pub(crate) fn clear(&self) {
        let claims = std::mem::take(&mut self.claims.lock().made);
        // Outside of the lock: it is the file system's work.
        drop(claims);
    }

    /// Removes what an isolate has that cannot do so itself any more.
    pub(crate) fn release(&self, isolate: IsolateId) {
        let released: Vec<Claim> = self
            .claims
            .lock()
            .made
            .extract_if(.., |_, (owner, _)| *owner == isolate)
            .map(|(_, (_, claim))| claim)
            .collect();
        drop(released);
    }

    fn keep(&self, owner: IsolateId, claim: Claim) -> Claimed {
        let path = claim.path().to_owned();
        let mut claims = self.claims.lock();
        let key = claims.next;
        claims.next += 1;
        claims.made.insert(key, (owner, claim));
        drop(claims);
        Claimed {
            claims: self.claims.clone(),
            key,
            path,
        }
    }
}

impl Runtime {
    /// Whether this process has a bind table there.
    pub(crate) fn binds_in(&self, dir: &Arc<TreeDir>) -> bool {
        let own = self.binder.dir.get();
        own.is_some_and(|own| Arc::ptr_eq(own, dir))
    }

    /// The bind table and the directory of `path` in it.
    fn bind_table(self: &Arc<Runtime>, directory: &Path) -> Result<(BindTable, GrantedDir)> {
        let cannot = |what: &str, error: &dyn fmt::Display| format!("cannot {what}: {error}");
        let directory = match directory.as_os_str().is_empty() {
            true => Path::new("."),
            false => directory,
        };
        let wanted = GrantedDir::open(directory).map_err(|error| {
            let what = format!("open the directory {}", directory.display());
            Error::io(cannot(&what, &error), error)
        })?;
        let failed = |error: crate::janitor::DirError| {
            Error::new(ErrorKind::Io(None), cannot("make a bind table", &error))
        };
        let mut granted = self.binder.granted.lock();
        let table = match self.binder.table.get() {
            Some(table) => table,
            None => {
                let table = if self.is_root() {
                    let key = ProcessKey::random()?;
                    let dir = self.tree_dir()?;
                    let table = BindTable::create(&dir, key, Vec::new()).map_err(failed)?;
                    // Set once, as the table below is: under the lock.
                    let _ = self.binder.dir.set(dir);
                    table
                } else {
                    let (key, fds) = self.warden()?.enroll(None)?;
                    let Ok([table, private]) = <[_; 2]>::try_from(fds) else {
                        let message = "the forkserver sent no bind table";
                        return Err(Error::new(ErrorKind::Protocol, message));
                    };
                    let key = ProcessKey::new(key);
                    let enrolment = Enrolment {
                        key,
                        table,
                        private,
                    };
                    BindTable::open(enrolment, Vec::new())?
                };
                self.binder.table.get_or_init(|| table)
            }
        };
        if let Some(known) = granted.iter().find(|known| known.is_same(&wanted)) {
            return Ok((table.clone(), known.clone()));
        }
        if self.is_root() {
            let dir = self.binder.dir.get().cloned();
            let dir = dir.map_or_else(|| self.tree_dir(), Ok)?;
            table.grant(&dir, wanted.clone()).map_err(failed)?;
        } else {
            self.warden()?.enroll(Some(wanted.as_fd()))?;
            table.accept_grant(wanted.clone());
        }
        granted.push(wanted.clone());
        Ok((table.clone(), wanted))
    }
}

/// Splits a path into the directory that must be granted and the name in it.
fn place(path: &Path) -> io::Result<(&Path, &Path)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, Path::new(name))),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is no path of a file", path.display()),
        )),
    }
}

/// What the user is told; the kind of the error stays.
fn refused(what: &str, path: &Path, error: ClaimError) -> io::Error {
    let path = path.display();
    let message = match &error {
        ClaimError::AddrInUse { .. } => format!(
            "cannot {what} {path}: something lies there already. Nothing of a dead tree is left behind, so \
             it belongs to a program that runs, or was made by other means and has to be removed by hand"
        ),
        ClaimError::Make { source, .. } => format!("cannot {what} {path}: {source}"),
        ClaimError::Io { source, .. } => format!("cannot {what} {path}: {error}: {source}"),
        error => format!("cannot {what} {path}: {error}"),
    };
    io::Error::new(io::Error::from(error).kind(), message)
}

/// Makes a socket by `bind`, at a path that then belongs to this isolate. A checkpoint.
///
/// The blocking part is done on a thread for such work; what is made there after a cancellation is
/// removed there.
pub(crate) async fn bind_socket<T: Send + 'static>(
    path: &Path,
    mut bind: impl FnMut(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<(T, Claimed)> {
    claim("bind", path, move |table, directory, name| {
        table.bind_socket(directory, name, |path: &Path| {
            crate::fault::check("bind", "")?;
            bind(path)
        })
    })
    .await
}

async fn claim<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    make: impl FnOnce(&BindTable, &GrantedDir, &Path) -> std::result::Result<(T, Claim), ClaimError>
    + Send
    + 'static,
) -> io::Result<(T, Claimed)> {
    let local = Local::try_current().ok_or_else(|| off_isolate(what))?;
    let owner = local.shared.life.identity().id;
    let runtime = local.shared.runtime.clone();
    drop(local);
    let path = path.to_owned();
    let claimed = unblock(move || -> io::Result<(T, Claimed)> {
        let (directory, name) = place(&path)?;
        let (table, directory) = runtime.bind_table(directory).map_err(|error| {
            let kind = io::Error::from(error.clone()).kind();
            io::Error::new(kind, format!("cannot {what} {}: {error}", path.display()))
        })?;
        let (made, claim) =
            make(&table, &directory, name).map_err(|error| refused(what, &path, error))?;
        Ok((made, runtime.binder.keep(owner, claim)))
    });
    let claimed = claimed.await??;
    places::registered(claimed.1.path());
    Ok(claimed)
}

/// A path that belongs to an isolate. Dropping it removes what lies there, unless that has been
/// replaced.
pub(crate) struct Claimed {
    claims: Arc<Mutex<Claims>>,
    key: u64,
    path: PathBuf,
}

impl Claimed {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        places::released(&self.path);
        // Gone already if the isolate was given up, or the tree has ended.
        let claim = self.claims.lock().made.remove(&self.key);
        // Outside of the lock: it is the file system's work.
        drop(claim);
    }
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claimed").field(&self.path).finish()
    }
}

/// Registers a regular file or a Unix socket that the program has made by other means: it is removed when
/// the guard is dropped or this process ends, however it ends. A checkpoint.
///
/// If the process is killed between the making of the file and this call, the file stays. [`create_file`], [`pid_file`], [`create_shared_memory`]
/// and the listeners of [`net`](crate::net) have no such gap.
///
/// # Errors
/// If there is neither, or no room (a process has 255 such paths at most); a cancelled error.
///
/// # Cancellation
/// If the future is dropped, the file may be registered and then removed at once.
///
/// # Examples
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("state");
/// # let there = path.clone();
/// offshoot::run(async move || {
///     offshoot::fs::write(&path, "half done").await?;
///     let _guard = offshoot::register_path(&path).await?;
///     // … work …
///     Ok(())
/// })?;
/// # assert!(!there.exists());
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn register_path(path: impl AsRef<Path>) -> Result<RegisteredPath> {
    let ((), claimed) = claim("register", path.as_ref(), |table, directory, name| {
        let claim = match table.adopt(Kind::File, directory, name) {
            Err(ClaimError::WrongKind { .. }) => table.adopt(Kind::Socket, directory, name)?,
            result => result?,
        };
        Ok(((), claim))
    })
    .await?;
    Ok(RegisteredPath(claimed))
}

/// Makes a file that holds the id of this process, in decimal and with a line's end, and registers it as [`register_path`] does,
/// such that no kill at any moment leaves it behind. A checkpoint.
///
/// # Errors
/// If something lies there (the file of a living process, since that of a dead one is removed); if it cannot be
/// made, or there is no room (a process has 255 such paths at most); a cancelled error.
///
/// # Cancellation
/// If the future is dropped, the file may be made and then removed at once.
///
/// # Examples
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("server.pid");
/// offshoot::run(async move || {
///     let guard = offshoot::pid_file(&path).await?;
///     assert_eq!(offshoot::fs::read_to_string(guard.path()).await?, format!("{}\n", std::process::id()));
///     Ok(())
/// })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn pid_file(path: impl AsRef<Path>) -> Result<RegisteredPath> {
    let make = |path: &Path| {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        fsx::write_at(
            file.as_fd(),
            format!("{}\n", std::process::id()).as_bytes(),
            0,
        )
    };
    let ((), registered) = make_file("make the pid file", path.as_ref(), make).await?;
    Ok(registered)
}

/// Makes a regular file by `make` and registers it as [`register_path`] does, such that no kill at any moment leaves it behind. A checkpoint.
///
/// `make` runs on a thread for blocking work and is given a private path on the same file system, at which it makes the file, by code of
/// its own or of a library. What it has made then appears at `path`, whole. It may be run a second time, where the file system turns out to be
/// another one than it seemed.
///
/// # Errors
/// What `make` returns; if something lies at `path`, or there is no room (a process has 255 such paths at most); if `make` has made no regular
/// file; a cancelled error.
///
/// # Cancellation
/// If the future is dropped, the file may be made and then removed at once.
///
/// # Examples
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("state");
/// # let there = path.clone();
/// offshoot::run(async move || {
///     let ((), guard) = offshoot::create_file(&path, |private| std::fs::write(private, "whole")).await?;
///     assert_eq!(offshoot::fs::read_to_string(guard.path()).await?, "whole");
///     Ok(())
/// })?;
/// # assert!(!there.exists());
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn create_file<T: Send + 'static>(
    path: impl AsRef<Path>,
    make: impl FnMut(&Path) -> io::Result<T> + Send + 'static,
) -> Result<(T, RegisteredPath)> {
    make_file("make the file", path.as_ref(), make).await
}

async fn make_file<T: Send + 'static>(
    what: &'static str,
    path: &Path,
    make: impl FnMut(&Path) -> io::Result<T> + Send + 'static,
) -> Result<(T, RegisteredPath)> {
    let (made, claimed) = claim(what, path, |table, directory, name| {
        table.publish(Kind::File, directory, name, make)
    })
    .await?;
    Ok((made, RegisteredPath(claimed)))
}

/// Where named shared memory lies on Linux, as `shm_open` has it.
const SHARED_MEMORY: &str = "/dev/shm";

/// Makes a named object of shared memory of so many bytes, all zero and for this user alone, as `shm_open` with `O_CREAT` and `O_EXCL` does, and
/// registers it: its name is removed when the guard is dropped or this process ends, however it ends. Mappings stay. A checkpoint.
///
/// All of it is set aside at once: no later store into a mapping fails for lack of room, which would be a SIGBUS.
///
/// # Errors
/// If the name is taken or none (a slash in it, save the first), there is no `/dev/shm`, no room there (`ENOSPC`), or a file may not be so long
/// (`EFBIG`, of RLIMIT_FSIZE); a cancelled error.
///
/// # Cancellation
/// If the future is dropped, the object may be made and then removed at once.
#[track_caller]
pub fn create_shared_memory(
    name: &str,
    bytes: u64,
) -> impl Future<Output = Result<(File, RegisteredPath)>> {
    places::at(Location::caller(), make_shared_memory(name, bytes))
}

async fn make_shared_memory(name: &str, bytes: u64) -> Result<(File, RegisteredPath)> {
    let path = shared_memory_path(name)?;
    let make = move |path: &Path| {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        fsx::allocate(file.as_fd(), bytes)?;
        Ok(file)
    };
    let (file, claimed) = claim(
        "make shared memory",
        &path,
        move |table, directory, name| table.publish(Kind::SharedMemory, directory, name, make),
    )
    .await?;
    Ok((file, RegisteredPath(claimed)))
}

/// Registers named shared memory that was made by other means, by `shm_open` for instance; otherwise as [`register_path`].
///
/// # Errors
/// If there is none of this name, or no room (a process has 255 such names and paths at most); a cancelled error.
///
/// # Cancellation
/// If the future is dropped, the object may be registered and then its name removed at once.
#[track_caller]
pub fn register_shared_memory(name: &str) -> impl Future<Output = Result<RegisteredPath>> {
    places::at(Location::caller(), async move {
        let path = shared_memory_path(name)?;
        let ((), claimed) = claim("register", &path, |table, directory, name| {
            Ok(((), table.adopt(Kind::SharedMemory, directory, name)?))
        })
        .await?;
        Ok(RegisteredPath(claimed))
    })
}

fn shared_memory_path(name: &str) -> Result<PathBuf> {
    let plain = name.strip_prefix('/').unwrap_or(name);
    if plain.is_empty() || plain.contains(['/', '\0']) {
        let message =
            format!("{name:?} is no name of shared memory: it has a slash in it, or nothing");
        return Err(Error::new(ErrorKind::Misuse, message));
    }
    Ok(Path::new(SHARED_MEMORY).join(plain))
}

/// What an isolate has registered, see [`register_path`], [`pid_file`] and [`create_shared_memory`]. Dropping it removes what lies there,
/// unless something else has taken its place.
#[derive(Debug)]
#[must_use = "dropping it removes the file"]
pub struct RegisteredPath(Claimed);

impl RegisteredPath {
    /// Where it lies, symbolic links of its directory resolved.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes back the registration and leaves what lies there, for somebody else to remove. Never blocks.
    pub fn unregister(self) {
        // Gone already if the isolate was given up, or the tree has ended.
        let claim = self.0.claims.lock().made.remove(&self.0.key);
        if let Some((_, claim)) = claim {
            claim.forget();
        }
    }
}
