//! Files and directories by descriptor: what must not be led astray by a symbolic link, a replaced directory or a reused name.
//!
//! `std::fs` works with whole paths, and a path can come to mean something else between two calls. Here a directory is a descriptor and a
//! name is one component in it, or a relative path that leads out of the directory neither by its text, nor by a link, nor by a mount
//! ([`open_beneath`]). What the names are for is not known here.

use crate::retry::{checked, retry};
use crate::signal::{Held, SIGXFSZ};
use crate::standard::above;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

mod walk;

/// How [`open_beneath`] and [`open_no_follow`] open what they find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only to look at it (`O_PATH`): anything, sockets and symbolic links included, whatever its permissions.
    Look,
    /// A directory to hold and to start walks from (`O_PATH`); it cannot be listed or locked.
    Hold,
    /// A directory to list and to lock.
    List,
    /// For reading. Never blocks, also when a FIFO lies there.
    Read,
    /// For reading and writing. Never blocks.
    ReadWrite,
}

impl Access {
    fn flags(self) -> OFlag {
        // Without NONBLOCK, the open of a FIFO that somebody has put there would wait for its other end for ever.
        OFlag::O_CLOEXEC
            | match self {
                Self::Look => OFlag::O_PATH | OFlag::O_NOFOLLOW,
                Self::Hold => OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY,
                Self::List => OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY,
                Self::Read => {
                    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY
                }
                Self::ReadWrite => {
                    OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY
                }
            }
    }
}

/// What kind of thing an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A Unix socket's name.
    Socket,
    /// A FIFO or a device.
    Other,
}

/// What `statx` tells of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// The permission bits, `0o7777` at the most.
    pub mode: u32,
    /// The user that owns it.
    pub uid: u32,
    /// How many names it has; 0 once the last is gone.
    pub links: u32,
    /// The device that it lies on.
    pub dev: u64,
    /// The inode number, which a later file may get again.
    pub ino: u64,
    /// When it was made, in nanoseconds since 1970; 0 where the file system does not say.
    pub born: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The mount by which it was opened; `None` where the kernel does not say. Two mounts of one file system, as `mount --bind` makes, differ in
    /// this alone.
    pub mount: Option<u64>,
}

/// The longest file handle of any file system, in bytes (`MAX_HANDLE_SZ`).
pub const HANDLE_BYTES_MAX: usize = 128;

/// A file system's own name for one inode and its generation.
///
/// ext4 gives a freed inode number to the very next file; the handle differs. Nothing is ever opened by it here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FileHandle {
    kind: i32,
    bytes: Vec<u8>,
}

impl FileHandle {
    /// A handle from its parts, as [`kind`](Self::kind) and [`bytes`](Self::bytes) gave them. `None` when it would be too long.
    pub fn new(kind: i32, bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= HANDLE_BYTES_MAX).then(|| Self {
            kind,
            bytes: bytes.to_vec(),
        })
    }

    /// The file system's own number for the form of the bytes.
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// The bytes, opaque, at most [`HANDLE_BYTES_MAX`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which file a file is, as exactly as its file system can say.
///
/// Not `PartialEq`: two processes may have been able to learn different parts of it; see [`is_same`](Self::is_same).
#[derive(Clone, Debug)]
pub struct Identity {
    /// The device.
    pub dev: u64,
    /// The inode number.
    pub ino: u64,
    /// Nanoseconds since 1970 at its birth, 0 where unknown.
    pub born: u64,
    /// The handle, where the file system has one and a sandbox does not forbid to ask.
    pub handle: Option<FileHandle>,
}

impl Identity {
    /// Whether both are the same file, by every part that both know.
    ///
    /// Without a handle on both sides (some overlay and FUSE file systems) a file that got a freed inode number within the same tick of
    /// the clock cannot be told from its predecessor.
    pub fn is_same(&self, other: &Self) -> bool {
        let handles_agree = match (&self.handle, &other.handle) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        let births_agree = self.born == 0 || other.born == 0 || self.born == other.born;
        self.dev == other.dev && self.ino == other.ino && births_agree && handles_agree
    }
}

/// Opens `path`, relative to `dir`, without ever leaving `dir`: not by `..`, not by a symbolic link on the way or at the end, and not through
/// anything that is mounted beneath it.
///
/// Where `openat2` is refused (a seccomp filter, as `RestrictSUIDSGID=` of systemd has one; gVisor; valgrind), the path is walked one component
/// at a time, and the mount of each is compared. Without `openat2` and mount ids, devices are compared, which does not tell a bind mount
/// from its surroundings: see [`can_tell_mounts`].
///
/// # Errors
/// `EXDEV` where something is mounted, see [`is_mounted`]; `InvalidInput` for a path that is absolute or has `..` in it; `ELOOP` at a symbolic link,
/// or `ENOTDIR` when one lies where a directory is asked for (only [`Access::Look`] opens a link itself); `ENOENT`, `EACCES`.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &Path, access: Access) -> io::Result<OwnedFd> {
    walk::open(dir, path, access, walk::Mounts::Stay).and_then(above)
}

/// As [`open_beneath`], but what is mounted beneath `dir` counts as part of it. Nothing that is found so may be removed.
///
/// # Errors
/// As [`open_beneath`], without `EXDEV`.
pub fn open_beneath_across(
    dir: BorrowedFd<'_>,
    path: &Path,
    access: Access,
) -> io::Result<OwnedFd> {
    walk::open(dir, path, access, walk::Mounts::Cross).and_then(above)
}

/// Whether [`open_beneath`] can tell what is mounted beneath `dir` from what lies there. If not, nothing in a directory beneath it may be removed
/// by a listing.
pub fn can_tell_mounts(dir: BorrowedFd<'_>) -> bool {
    walk::has_openat2() || metadata(dir).is_ok_and(|found| found.mount.is_some())
}

/// Whether an open failed because a symbolic link, or something of another kind, lies in the place of what was wanted or on the way to it.
pub fn is_obstructed(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ELOOP | libc::ENOTDIR | libc::ENXIO)
    )
}

/// Whether an open or a removal failed because something is mounted in that place.
pub fn is_mounted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EXDEV | libc::EBUSY))
}

/// Opens `path`, a whole one, following symbolic links on the way but not at the end.
///
/// # Errors
/// As open(2). A symbolic link at the end is `ELOOP` or, where a directory is asked for, `ENOTDIR`.
pub fn open_no_follow(path: &Path, access: Access) -> io::Result<OwnedFd> {
    above(nix::fcntl::open(path, access.flags(), Mode::empty())?)
}

/// The directory that holds `dir`.
///
/// # Errors
/// `EACCES`, or `ENOENT` when `dir` has been removed.
pub fn open_parent(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    above(nix::fcntl::openat(
        dir,
        "..",
        Access::Hold.flags(),
        Mode::empty(),
    )?)
}

/// Makes the empty file `name` in `dir`, 0600, opened for reading and writing.
///
/// # Errors
/// `EEXIST` when the name is taken, also by a dangling link; `ENOSPC`, `EROFS`, `EACCES`.
pub fn create(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags =
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    above(nix::fcntl::openat(
        dir,
        component(name)?,
        flags,
        Mode::S_IRUSR | Mode::S_IWUSR,
    )?)
}

/// Whether the calling thread may add names to a directory, and remove them.
pub fn may_change(dir: BorrowedFd<'_>) -> bool {
    // SAFETY: the path is NUL-terminated.
    let allowed = unsafe {
        libc::faccessat(
            dir.as_raw_fd(),
            c".".as_ptr(),
            libc::W_OK | libc::X_OK,
            libc::AT_EACCESS,
        )
    };
    allowed == 0
}

/// Makes the directory `name` in `dir`, 0700 whatever the umask, and opens it for listing.
///
/// # Errors
/// `EEXIST`, `ENOSPC`, `EROFS`, `EACCES`.
pub fn make_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    nix::sys::stat::mkdirat(dir, component(name)?, Mode::S_IRWXU)?;
    // Out of descriptors, for instance: it would be left.
    open_own_dir(dir, name).inspect_err(|_| drop(remove_dir(dir, name)))
}

/// Opens the directory `name` in `dir` for listing, and gives its owner back the rights to it if they are missing: because of a umask, or
/// because somebody took them away.
///
/// # Errors
/// `ENOENT`; `ENOTDIR` for anything else, symbolic links included; `EXDEV` where something is mounted; `EACCES`, `EPERM` when it belongs to another
/// user.
pub fn open_own_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let held = open_beneath(dir, component(name)?.as_ref(), Access::Hold)?;
    let mode = metadata(held.as_fd())?.mode;
    if mode & 0o700 != 0o700 {
        // By descriptor, so that it is this directory.
        set_mode(held.as_fd(), mode | 0o700)?;
    }
    open_beneath(held.as_fd(), ".".as_ref(), Access::List)
}

/// Sets the permission bits of a file that is only held (`O_PATH`), of which fchmod(2) wants nothing to know.
fn set_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    // SAFETY: the path is an empty NUL-terminated string, which AT_EMPTY_PATH allows; the descriptor is borrowed for the call.
    let changed = checked(unsafe {
        libc::syscall(
            SYS_FCHMODAT2,
            file.as_raw_fd(),
            c"".as_ptr(),
            mode,
            libc::AT_EMPTY_PATH,
        )
    });
    match changed {
        Ok(_) => Ok(()),
        // Older than Linux 6.6, or a filter that does not know it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            let through = format!("/proc/self/fd/{}", file.as_raw_fd());
            std::fs::set_permissions(through, Permissions::from_mode(mode))
        }
        Err(error) => Err(error),
    }
}

/// The same number on every architecture; libc has it for some only.
const SYS_FCHMODAT2: libc::c_long = 452;

/// Removes the name of a file, a socket or a symbolic link in `dir`.
///
/// # Errors
/// `ENOENT`; `EISDIR` for a directory; `EACCES`, `EROFS`.
pub fn unlink(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::unlinkat(
        dir,
        component(name)?,
        UnlinkatFlags::NoRemoveDir,
    )?)
}

/// Removes the empty directory `name` in `dir`.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EACCES`, `EROFS`.
pub fn remove_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    Ok(nix::unistd::unlinkat(
        dir,
        component(name)?,
        UnlinkatFlags::RemoveDir,
    )?)
}

/// Gives a file another name, and whoever had that name before loses it.
///
/// # Errors
/// `ENOENT`; `EXDEV` when the directories lie on different mounts; `EACCES`, `EROFS`, `ENOSPC`.
pub fn rename(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
) -> io::Result<()> {
    Ok(nix::fcntl::renameat(
        from,
        component(name)?,
        to,
        component(new_name)?,
    )?)
}

/// Gives a file another name that nobody has, in one step.
///
/// Where the file system cannot do that (NFS, old FUSE), or a filter refuses the call, the file is linked under the new name and unlinked under the old. That never
/// replaces anything either, but for a moment, or after a kill in between, it has both.
///
/// # Errors
/// `EEXIST` when the new name is taken; `ENOENT`; `EXDEV` when the directories lie on different mounts; `EACCES`, `EROFS`, `ENOSPC`.
pub fn rename_noreplace(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
) -> io::Result<()> {
    let (old, new) = (c_string(component(name)?)?, c_string(component(new_name)?)?);
    // nix has this call for glibc only.
    let result = checked(
        // SAFETY: both are NUL-terminated strings that live until the call returns, and the descriptors are borrowed for it.
        unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                from.as_raw_fd(),
                old.as_ptr(),
                to.as_raw_fd(),
                new.as_ptr(),
                libc::RENAME_NOREPLACE,
            )
        },
    );
    match result {
        Ok(_) => Ok(()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)
            ) =>
        {
            link_then_unlink(from, name, to, new_name)
        }
        Err(error) => Err(error),
    }
}

/// What [`rename_noreplace`] falls back to.
fn link_then_unlink(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
) -> io::Result<()> {
    nix::unistd::linkat(
        from,
        component(name)?,
        to,
        component(new_name)?,
        AtFlags::empty(),
    )?;
    // With both names it would look to the caller as if nothing had happened.
    unlink(from, name).inspect_err(|_| drop(unlink(to, new_name)))
}

/// The names in `dir`, without `.` and `..`, in no order.
///
/// # Errors
/// `EBADF` when `dir` was opened only to be held.
pub fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    // Opened again, because the position of a listing belongs to the open file, which others may share.
    let mut listing = Dir::openat(
        dir,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// What `file` is. Works for a descriptor that was opened with [`Access::Look`] too.
///
/// Where `statx` is refused, `fstat` and `/proc/self/fdinfo` say all but the time of birth.
///
/// # Errors
/// `EIO`, `ESTALE` from a file system that is no longer there.
pub fn metadata(file: BorrowedFd<'_>) -> io::Result<Metadata> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    // SAFETY: an all-zero statx is a valid value of that plain C structure.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty NUL-terminated string, which AT_EMPTY_PATH allows; `found` is live and writable.
    let asked = retry(|| unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            &mut found,
        )
    });
    match asked {
        Ok(_) => {}
        Err(error) if is_refused(&error) => return metadata_by_fstat(file),
        Err(error) => return Err(error),
    }
    let mode = u32::from(found.stx_mode);
    // A time before 1970 counts as unknown.
    let known = found.stx_mask & libc::STATX_BTIME != 0;
    let seconds = u64::try_from(found.stx_btime.tv_sec).ok().filter(|_| known);
    let nanos = u64::from(found.stx_btime.tv_nsec);
    let born = seconds.map_or(0, |seconds| {
        seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)
    });
    // Zero is what emulators leave there that pass the mask on and not the field; no mount that a path leads to has it.
    let mount = (found.stx_mask & libc::STATX_MNT_ID != 0 && found.stx_mnt_id != 0)
        .then_some(found.stx_mnt_id);
    Ok(Metadata {
        kind: kind_of(mode),
        mode: mode & 0o7777,
        uid: found.stx_uid,
        links: found.stx_nlink,
        dev: device(
            u64::from(found.stx_dev_major),
            u64::from(found.stx_dev_minor),
        ),
        ino: found.stx_ino,
        born,
        size: found.stx_size,
        mount: mount.or_else(|| mount_by_fdinfo(file)),
    })
}

/// Whether a call failed because this kernel, or a filter in front of it, does not know it.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

fn kind_of(mode: u32) -> FileKind {
    match mode & libc::S_IFMT {
        libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFSOCK => FileKind::Socket,
        _ => FileKind::Other,
    }
}

fn metadata_by_fstat(file: BorrowedFd<'_>) -> io::Result<Metadata> {
    // SAFETY: an all-zero stat is a valid value of that plain C structure.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is live and writable; the descriptor is borrowed for the call.
    retry(|| unsafe { libc::fstat(file.as_raw_fd(), &mut found) })?;
    Ok(Metadata {
        kind: kind_of(found.st_mode),
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        links: u32::try_from(found.st_nlink).unwrap_or(u32::MAX),
        dev: device_of_stat(found.st_dev),
        ino: found.st_ino,
        born: 0,
        size: u64::try_from(found.st_size).unwrap_or(0),
        mount: mount_by_fdinfo(file),
    })
}

/// For kernels before 5.8, and where `statx` is refused or emulated.
fn mount_by_fdinfo(file: BorrowedFd<'_>) -> Option<u64> {
    let info = std::fs::read(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let line = info
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"mnt_id:"))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// Which file `file` is.
///
/// # Errors
/// As [`metadata`]. That there is no handle is no error.
pub fn identity(file: BorrowedFd<'_>) -> io::Result<Identity> {
    let Metadata { dev, ino, born, .. } = metadata(file)?;
    // The second form is for file systems that have an identity but cannot open by it (overlayfs; Linux 6.5 and later).
    let handle = handle(file, 0).or_else(|| handle(file, libc::AT_HANDLE_FID));
    Ok(Identity {
        dev,
        ino,
        born,
        handle,
    })
}

/// `None` whatever the reason: the file system has no handles, or a seccomp filter forbids the call.
fn handle(file: BorrowedFd<'_>, flags: i32) -> Option<FileHandle> {
    /// `struct file_handle` with room for any.
    #[repr(C)]
    struct Room {
        head: libc::file_handle,
        bytes: [u8; HANDLE_BYTES_MAX],
    }
    let mut room = Room {
        head: libc::file_handle {
            handle_bytes: HANDLE_BYTES_MAX as u32,
            handle_type: 0,
            f_handle: [],
        },
        bytes: [0; HANDLE_BYTES_MAX],
    };
    let mut mount = 0;
    let result = retry(
        // SAFETY: the path is an empty NUL-terminated string, which AT_EMPTY_PATH allows. The head says how many bytes follow it, and
        // they do: `Room` is repr(C) and neither part has padding. The pointer is to the whole of `room`. `mount` is live and writable.
        || unsafe {
            libc::name_to_handle_at(
                file.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut room).cast(),
                &mut mount,
                libc::AT_EMPTY_PATH | flags,
            )
        },
    );
    result.ok()?;
    FileHandle::new(
        room.head.handle_type,
        room.bytes.get(..room.head.handle_bytes as usize)?,
    )
}

/// Takes the exclusive lock (flock) of an open file, or says `false` when somebody else holds one. Never blocks.
///
/// The lock belongs to the open file: to every copy of the descriptor, in any process, until the last is closed.
///
/// # Errors
/// `EBADF` when it was opened only to look; `ENOLCK`.
pub fn try_lock_exclusive(file: BorrowedFd<'_>) -> io::Result<bool> {
    flock(file, libc::LOCK_EX | libc::LOCK_NB)
}

/// Takes a shared lock (flock), or says `false` when somebody else holds the exclusive one. Never blocks.
///
/// # Errors
/// As [`try_lock_exclusive`].
pub fn try_lock_shared(file: BorrowedFd<'_>) -> io::Result<bool> {
    flock(file, libc::LOCK_SH | libc::LOCK_NB)
}

fn flock(file: BorrowedFd<'_>, operation: i32) -> io::Result<bool> {
    // SAFETY: takes no pointer, and the descriptor is borrowed for the call.
    match retry(|| unsafe { libc::flock(file.as_raw_fd(), operation) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        // No other kind of lock will do: who asks for this kind does not see it, and takes a living tree for a dead one.
        Err(error) => Err(named("flock", "tell living trees from dead ones", error)),
    }
}

/// Names the call in an error that means that a filter refuses it. Only for calls that say neither ENOSYS nor EPERM for any other reason.
fn named(call: &str, purpose: &str, error: io::Error) -> io::Error {
    let errno = match error.raw_os_error() {
        Some(libc::ENOSYS) => "ENOSYS",
        Some(libc::EPERM) => "EPERM",
        _ => return error,
    };
    let message = format!(
        "`{call}` is refused here ({errno}), which is needed to {purpose}: by a seccomp filter, as a service manager, a container or a sandbox \
         sets it; let it allow the call"
    );
    io::Error::new(error.kind(), message)
}

/// Sets the size of a file.
///
/// # Errors
/// `EFBIG`, `EINVAL` when it is not open for writing.
pub fn set_size(file: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let bytes = bytes
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let _held = Held::new(&[SIGXFSZ]);
    Ok(nix::unistd::ftruncate(file, bytes)?)
}

/// Writes all of `bytes` at this place of a file. Over the limit of a file's size (`RLIMIT_FSIZE`) it is an error, and no signal.
///
/// # Errors
/// As of pwrite(2); `EFBIG`, `ENOSPC`.
pub fn write_at(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> io::Result<()> {
    let _held = Held::new(&[SIGXFSZ]);
    let mut written = 0;
    while written < bytes.len() {
        let at = offset + written as u64;
        let at = at
            .try_into()
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        match nix::sys::uio::pwrite(file, &bytes[written..], at) {
            Err(Errno::EINTR) => {}
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            result => written += result?,
        }
    }
    Ok(())
}

/// Gives a new file its size, zeros, and all the room that it needs, so that no store into a mapping of it can fail (which would be a SIGBUS).
///
/// # Errors
/// `ENOSPC`, `EDQUOT`, `EFBIG`.
pub fn allocate(file: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match reserve(file, 0, bytes) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let zeros = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX).min(1 << 20)];
            let mut at = 0;
            while at < bytes {
                let part = usize::try_from(bytes - at).unwrap_or(usize::MAX);
                let part = part.min(zeros.len());
                write_at(file, &zeros[..part], at)?;
                at += part as u64;
            }
            Ok(())
        }
        result => result,
    }
}

/// Makes the file system set aside what a part of a file needs, so that no later store into a mapping of it can fail for lack of space (which
/// would be a SIGBUS). What is there stays; where nothing is, there are zeros. Enlarges the file if need be.
///
/// # Errors
/// `ENOSPC`, `EDQUOT`; `EOPNOTSUPP` where the file system has no such call.
pub fn reserve(file: BorrowedFd<'_>, offset: u64, bytes: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    let (offset, bytes) = (
        offset.try_into().map_err(too_large)?,
        bytes.try_into().map_err(too_large)?,
    );
    let _held = Held::new(&[SIGXFSZ]);
    loop {
        match nix::fcntl::fallocate(file, FallocateFlags::empty(), offset, bytes) {
            Err(Errno::EINTR) => continue,
            // Refused by a filter; if it is the file that refuses, so it does whatever else is tried.
            Err(Errno::ENOSYS | Errno::EPERM) => return Err(Errno::EOPNOTSUPP.into()),
            result => return Ok(result?),
        }
    }
}

/// A short path to `name` in `dir`, for calls that take only paths: `/proc/self/fd/N/name`.
///
/// It is short whatever the directory's own path is, and leads to this very directory whatever has become of that path. It holds for this process
/// while `dir` is open, and needs `/proc`.
///
/// # Errors
/// `InvalidInput` when `name` is not one component.
pub fn path_through(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<PathBuf> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(component(name)?);
    Ok(path)
}

/// Binds a listening Unix stream socket to `name` in `dir`, however long the path of `dir` is (an address holds 107 bytes).
///
/// Its `local_addr` is the short path that [`path_through`] gives, and means nothing to others.
///
/// # Errors
/// `EADDRINUSE` when the name is taken; `ENOSPC`, `EROFS`, `EACCES`; `InvalidInput` when `name` alone is longer than about 90 bytes.
pub fn bind_listener(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<UnixListener> {
    let path = path_through(dir, name)?;
    crate::standard::make_above(|| UnixListener::bind(path))
}

/// The path by which the kernel knows an open file now, for messages. It may have been renamed the moment after.
///
/// # Errors
/// `ENOENT` when `/proc` is not mounted.
pub fn path_of(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The number of a device, as in [`Identity::dev`], from its two parts.
pub fn device(major: u64, minor: u64) -> u64 {
    (major << 32) | minor
}

/// The same from the number that stat(2) gives, which packs the parts otherwise.
pub fn device_of_stat(dev: u64) -> u64 {
    device(nix::sys::stat::major(dev), nix::sys::stat::minor(dev))
}

/// The user as whom this process acts on files.
pub fn effective_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// 128 bits that nobody can guess.
///
/// # Errors
/// When a seccomp filter forbids getrandom.
pub fn random() -> io::Result<u128> {
    let mut bytes = [0u8; 16];
    fill_random(&mut bytes, "name a tree as no other one is named")?;
    Ok(u128::from_ne_bytes(bytes))
}

/// As [`random`], 16 times by one system call.
///
/// # Errors
/// As of [`random`].
pub fn random_16() -> io::Result<[[u8; 16]; 16]> {
    let mut all = [[0; 16]; 16];
    fill_random(all.as_flattened_mut(), "give a portal to another process")?;
    Ok(all)
}

/// Fills at most 256 bytes, for the sake of this.
fn fill_random(bytes: &mut [u8], what: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one live, writable slice.
    let got = retry(|| unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) })
        .map_err(|error| named("getrandom", what, error))?;
    // Up to 256 bytes come whole or not at all.
    assert_eq!(
        got as usize,
        bytes.len(),
        "the kernel gives small random requests whole"
    );
    Ok(())
}

/// `name`, if it is one component: what the calls without [`open_beneath`] rely on to stay in their directory.
fn component(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    if bytes.is_empty()
        || bytes == b"."
        || bytes == b".."
        || bytes.contains(&b'/')
        || bytes.contains(&0)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of something in a directory",
        ));
    }
    Ok(name)
}

fn c_string(name: &OsStr) -> io::Result<CString> {
    Ok(CString::new(name.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    fn temporary() -> (tempfile::TempDir, OwnedFd) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = open_no_follow(temporary.path(), Access::List).unwrap();
        (temporary, dir)
    }

    fn code<T: fmt::Debug>(result: io::Result<T>) -> Option<i32> {
        result.unwrap_err().raw_os_error()
    }

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn a_walk_stays_beneath_and_follows_no_link() {
        stays_beneath(open_beneath);
        stays_beneath(|dir, path, access| walk::by_steps(dir, path, access, walk::Mounts::Stay));
        stays_beneath(open_beneath_across);
    }

    type Open = fn(BorrowedFd<'_>, &Path, Access) -> io::Result<OwnedFd>;

    fn stays_beneath(open_beneath: Open) {
        let (temporary, dir) = temporary();
        let at = |path: &str| temporary.path().join(path);
        std::fs::create_dir_all(at("in/side")).unwrap();
        std::fs::write(at("in/side/file"), "x").unwrap();
        std::fs::write(at("outside"), "x").unwrap();
        symlink("../outside", at("in/link")).unwrap();
        symlink("side", at("in/harmless")).unwrap();
        symlink("/proc/self/root", at("in/magic")).unwrap();
        let inner = open_beneath(dir.as_fd(), Path::new("in"), Access::Hold).unwrap();
        let open = |path: &str| open_beneath(inner.as_fd(), Path::new(path), Access::Read);
        open("side/file").unwrap();
        for leads_out in ["../outside", "side/../../outside", "/etc/passwd"] {
            let error = open(leads_out).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{leads_out}");
        }
        assert_eq!(code(open("link")), Some(libc::ELOOP));
        assert_eq!(code(open("harmless/file")), Some(libc::ELOOP));
        assert_eq!(code(open("magic/etc/passwd")), Some(libc::ELOOP));
        assert_eq!(code(open("absent")), Some(libc::ENOENT));
        let _listener = bind_listener(inner.as_fd(), name("socket")).unwrap();
        for obstacle in ["link", "outside/x", "side/file/x", "socket"] {
            let error = open(obstacle).unwrap_err();
            assert_eq!(
                is_obstructed(&error),
                obstacle != "outside/x",
                "{obstacle}: {error}"
            );
        }
        assert_eq!(
            code(open_beneath(
                inner.as_fd(),
                Path::new("harmless"),
                Access::Hold
            )),
            Some(libc::ENOTDIR)
        );
        // To look at a link is not to follow it.
        let link = open_beneath(inner.as_fd(), Path::new("link"), Access::Look).unwrap();
        assert_eq!(metadata(link.as_fd()).unwrap().kind, FileKind::Symlink);
    }

    #[test]
    fn a_walk_does_not_pass_through_a_mount() {
        crate::apart::run("fsx::tests::a_walk_does_not_pass_through_a_mount", || {
            let (temporary, dir) = temporary();
            let at = |path: &str| temporary.path().join(path);
            for path in ["in/on", "outside"] {
                std::fs::create_dir_all(at(path)).unwrap();
            }
            for path in ["in/file", "outside/file"] {
                std::fs::write(at(path), "x").unwrap();
            }
            crate::apart::bind(&at("outside"), &at("in/on"));
            crate::apart::bind(&at("outside/file"), &at("in/file"));
            let stays: [Open; 2] = [open_beneath, |dir, path, access| {
                walk::by_steps(dir, path, access, walk::Mounts::Stay)
            }];
            let crosses: [Open; 2] = [open_beneath_across, |dir, path, access| {
                walk::by_steps(dir, path, access, walk::Mounts::Cross)
            }];
            for (path, access) in [
                ("in/on", Access::Hold),
                ("in/on", Access::List),
                ("in/on/file", Access::Look),
                ("in/on/file", Access::Read),
                ("in/file", Access::Look),
                ("in/file", Access::ReadWrite),
            ] {
                for open in stays {
                    let error = open(dir.as_fd(), path.as_ref(), access).unwrap_err();
                    assert!(is_mounted(&error), "{path} {access:?}: {error}");
                    assert!(!is_obstructed(&error));
                }
                for open in crosses {
                    open(dir.as_fd(), path.as_ref(), access).unwrap();
                }
            }
            // What lies beside it is reached.
            for open in stays {
                open(dir.as_fd(), "outside/file".as_ref(), Access::Read).unwrap();
            }
            assert!(open_own_dir(dir.as_fd(), name("in")).is_ok());
            let inner = open_beneath(dir.as_fd(), "in".as_ref(), Access::Hold).unwrap();
            for remove in [
                remove_dir(inner.as_fd(), name("on")),
                unlink(inner.as_fd(), name("file")),
            ] {
                assert!(is_mounted(&remove.unwrap_err()));
            }
        });
    }

    #[test]
    fn every_source_tells_the_same_mount() {
        let (_temporary, dir) = temporary();
        let file = create(dir.as_fd(), name("file")).unwrap();
        let found = metadata(file.as_fd()).unwrap();
        let mount = found.mount.expect("Linux 5.8, or /proc");
        assert_eq!(mount_by_fdinfo(file.as_fd()), Some(mount));
        let plain = Metadata { born: 0, ..found };
        assert_eq!(metadata_by_fstat(file.as_fd()).unwrap(), plain);
        let proc = std::fs::File::open("/proc/self").unwrap();
        assert_ne!(metadata(proc.as_fd()).unwrap().mount, Some(mount));
        assert!(can_tell_mounts(dir.as_fd()));
    }

    #[test]
    fn a_mode_is_set_by_either_way() {
        let (temporary, dir) = temporary();
        std::fs::create_dir(temporary.path().join("closed")).unwrap();
        let held = open_beneath(dir.as_fd(), "closed".as_ref(), Access::Hold).unwrap();
        for mode in [0o700, 0o500] {
            set_mode(held.as_fd(), mode).unwrap();
            assert_eq!(metadata(held.as_fd()).unwrap().mode, mode);
        }
    }

    #[test]
    fn a_fifo_does_not_hold_up_an_open() {
        let (temporary, dir) = temporary();
        nix::unistd::mkfifo(&temporary.path().join("fifo"), Mode::S_IRWXU).unwrap();
        let (sender, opened) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            sender
                .send(open_beneath(dir.as_fd(), Path::new("fifo"), Access::Read))
                .unwrap();
        });
        let fifo = opened
            .recv_timeout(std::time::Duration::from_secs(20))
            .expect("the open does not wait")
            .unwrap();
        assert_eq!(metadata(fifo.as_fd()).unwrap().kind, FileKind::Other);
    }

    #[test]
    fn names_are_single_components() {
        let (_temporary, dir) = temporary();
        for bad in ["", ".", "..", "a/b", "../x", "/x", "a\0b"] {
            let bad = name(bad);
            assert_eq!(
                create(dir.as_fd(), bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                make_dir(dir.as_fd(), bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                unlink(dir.as_fd(), bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                remove_dir(dir.as_fd(), bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(
                path_through(dir.as_fd(), bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            let moved = rename_noreplace(dir.as_fd(), name("x"), dir.as_fd(), bad);
            assert_eq!(moved.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            let moved = rename(dir.as_fd(), bad, dir.as_fd(), name("x"));
            assert_eq!(moved.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_is_made_is_private() {
        let (temporary, dir) = temporary();
        let made = make_dir(dir.as_fd(), name("made")).unwrap();
        let found = metadata(made.as_fd()).unwrap();
        assert_eq!(
            (found.kind, found.mode, found.uid),
            (FileKind::Directory, 0o700, effective_user())
        );
        assert_eq!(
            code(make_dir(dir.as_fd(), name("made"))),
            Some(libc::EEXIST)
        );
        let file = create(dir.as_fd(), name("file")).unwrap();
        let found = metadata(file.as_fd()).unwrap();
        assert_eq!(
            (found.kind, found.mode, found.links, found.size),
            (FileKind::File, 0o600, 1, 0)
        );
        assert_eq!(code(create(dir.as_fd(), name("file"))), Some(libc::EEXIST));
        symlink("nowhere", temporary.path().join("dangling")).unwrap();
        assert_eq!(
            code(create(dir.as_fd(), name("dangling"))),
            Some(libc::EEXIST)
        );
        let mut names = list(dir.as_fd()).unwrap();
        names.sort();
        assert_eq!(names, ["dangling", "file", "made"]);
        // A second listing of the same open file starts from the beginning.
        assert_eq!(list(dir.as_fd()).unwrap().len(), 3);
        assert_eq!(
            metadata(open_parent(made.as_fd()).unwrap().as_fd())
                .unwrap()
                .ino,
            metadata(dir.as_fd()).unwrap().ino
        );
    }

    #[test]
    fn an_own_directory_opens_without_privilege() {
        let (temporary, dir) = temporary();
        let path = temporary.path().join("closed");
        std::fs::create_dir(&path).unwrap();
        let nobody = 65_534;
        let user = if effective_user() == 0 {
            nobody
        } else {
            effective_user()
        };
        if user == nobody {
            std::os::unix::fs::chown(&path, Some(nobody), None).unwrap();
            std::fs::set_permissions(temporary.path(), Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        let opened = std::thread::spawn(move || {
            // SAFETY: takes no pointer. The bare system call changes the user of this thread alone, which ends here.
            checked(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }).unwrap();
            let plain = open_beneath(dir.as_fd(), Path::new("closed"), Access::List);
            assert_eq!(code(plain), Some(libc::EACCES));
            assert_eq!(
                list(open_own_dir(dir.as_fd(), name("closed")).unwrap().as_fd())
                    .unwrap()
                    .len(),
                0
            );
            assert_eq!(
                code(open_own_dir(dir.as_fd(), name("absent"))),
                Some(libc::ENOENT)
            );
        });
        opened.join().unwrap();
        std::fs::write(temporary.path().join("file"), "").unwrap();
        let dir = open_no_follow(temporary.path(), Access::Hold).unwrap();
        assert_eq!(
            code(open_own_dir(dir.as_fd(), name("file"))),
            Some(libc::ENOTDIR)
        );
    }

    #[test]
    fn a_directory_is_usable_whatever_the_umask() {
        let (_temporary, dir) = temporary();
        let mode = std::thread::spawn(move || {
            // A umask of this thread alone.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            nix::sys::stat::umask(Mode::from_bits_truncate(0o300));
            metadata(make_dir(dir.as_fd(), name("made")).unwrap().as_fd())
                .unwrap()
                .mode
        });
        assert_eq!(mode.join().unwrap(), 0o700);
    }

    #[test]
    fn a_rename_replaces_nobody() {
        for rename in [rename_noreplace, link_then_unlink] {
            let (temporary, dir) = temporary();
            let dir = dir.as_fd();
            let listener = bind_listener(dir, name("private")).unwrap();
            std::fs::write(temporary.path().join("taken"), "theirs").unwrap();
            assert_eq!(
                code(rename(dir, name("private"), dir, name("taken"))),
                Some(libc::EEXIST)
            );
            assert_eq!(
                std::fs::read(temporary.path().join("taken")).unwrap(),
                b"theirs"
            );
            rename(dir, name("private"), dir, name("public")).unwrap();
            UnixStream::connect(temporary.path().join("public")).unwrap();
            assert!(!temporary.path().join("private").exists());
            assert_eq!(
                code(rename(dir, name("private"), dir, name("public"))),
                Some(libc::ENOENT)
            );
            drop(listener);
        }
    }

    #[test]
    fn a_rename_that_gets_stuck_halfway_is_undone() {
        let (temporary, dir) = temporary();
        let user = if effective_user() == 0 {
            65_534
        } else {
            effective_user()
        };
        for (name, mode) in [("from", 0o500), ("to", 0o700)] {
            let path = temporary.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("file"), "").unwrap();
            if effective_user() == 0 {
                std::os::unix::fs::chown(path.join("file"), Some(user), None).unwrap();
                std::os::unix::fs::chown(&path, Some(user), None).unwrap();
            }
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        std::fs::set_permissions(temporary.path(), Permissions::from_mode(0o755)).unwrap();
        let renamed = std::thread::spawn(move || {
            // SAFETY: takes no pointer. The bare system call changes the user of this thread alone, which ends here.
            checked(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }).unwrap();
            let open = |name| open_beneath(dir.as_fd(), Path::new(name), Access::Hold).unwrap();
            link_then_unlink(
                open("from").as_fd(),
                name("file"),
                open("to").as_fd(),
                name("new"),
            )
        });
        assert_eq!(code(renamed.join().unwrap()), Some(libc::EACCES));
        assert!(temporary.path().join("from/file").exists());
        assert!(!temporary.path().join("to/new").exists());
        std::fs::set_permissions(temporary.path().join("from"), Permissions::from_mode(0o700))
            .unwrap();
    }

    #[test]
    fn a_removed_and_remade_file_is_another_one() {
        let (_temporary, dir) = temporary();
        let look = || {
            let file = open_beneath(dir.as_fd(), Path::new("s"), Access::Look).unwrap();
            assert_eq!(metadata(file.as_fd()).unwrap().kind, FileKind::Socket);
            identity(file.as_fd()).unwrap()
        };
        let mut last: Option<Identity> = None;
        for _ in 0..50 {
            let listener = bind_listener(dir.as_fd(), name("s")).unwrap();
            let now = look();
            assert!(now.is_same(&look()));
            if let Some(last) = &last {
                assert!(!now.is_same(last), "{now:?} is not {last:?}");
            }
            last = Some(now);
            drop(listener);
            unlink(dir.as_fd(), name("s")).unwrap();
        }
    }

    #[test]
    fn unknown_parts_do_not_tell_files_apart_and_known_ones_do() {
        let full = Identity {
            dev: 1,
            ino: 2,
            born: 3,
            handle: FileHandle::new(1, b"abc"),
        };
        let with = |change: fn(&mut Identity)| {
            let mut other = full.clone();
            change(&mut other);
            full.is_same(&other)
        };
        assert!(with(|_| ()));
        assert!(with(|other| other.handle = None));
        assert!(with(|other| other.born = 0));
        assert!(!with(|other| other.dev = 9));
        assert!(!with(|other| other.ino = 9));
        assert!(!with(|other| other.born = 9));
        assert!(!with(|other| other.handle = FileHandle::new(1, b"abd")));
        assert!(!with(|other| other.handle = FileHandle::new(2, b"abc")));
        assert!(FileHandle::new(1, &[0; HANDLE_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn a_lock_belongs_to_the_open_file() {
        let (_temporary, dir) = temporary();
        let file = create(dir.as_fd(), name("lock")).unwrap();
        let again = || open_beneath(dir.as_fd(), Path::new("lock"), Access::ReadWrite).unwrap();
        assert!(try_lock_exclusive(file.as_fd()).unwrap());
        let copy = file.try_clone().unwrap();
        assert!(!try_lock_exclusive(again().as_fd()).unwrap());
        assert!(!try_lock_shared(again().as_fd()).unwrap());
        drop(file);
        assert!(
            !try_lock_exclusive(again().as_fd()).unwrap(),
            "the copy holds it still"
        );
        drop(copy);
        let shared = again();
        assert!(try_lock_shared(shared.as_fd()).unwrap());
        assert!(try_lock_shared(again().as_fd()).unwrap());
        assert!(!try_lock_exclusive(again().as_fd()).unwrap());
    }

    #[test]
    fn a_socket_can_be_bound_however_deep_it_lies() {
        let (temporary, dir) = temporary();
        let deep = temporary.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let relative = deep.strip_prefix(temporary.path()).unwrap();
        let deep_dir = open_beneath(dir.as_fd(), relative, Access::Hold).unwrap();
        assert!(
            UnixListener::bind(deep.join("socket")).is_err(),
            "the path is too long for an address"
        );
        let listener = bind_listener(deep_dir.as_fd(), name("socket")).unwrap();
        assert!(deep.join("socket").exists());
        let _client =
            UnixStream::connect(path_through(deep_dir.as_fd(), name("socket")).unwrap()).unwrap();
        listener.accept().unwrap();
        assert_eq!(
            path_of(deep_dir.as_fd()).unwrap(),
            deep.canonicalize().unwrap()
        );
    }

    #[test]
    fn reserved_space_keeps_what_is_there() {
        let (temporary, dir) = temporary();
        let file = create(dir.as_fd(), name("file")).unwrap();
        set_size(file.as_fd(), 8192).unwrap();
        std::os::unix::fs::FileExt::write_at(
            &std::fs::File::from(file.try_clone().unwrap()),
            b"here",
            4096,
        )
        .unwrap();
        reserve(file.as_fd(), 0, 8192).unwrap();
        let bytes = std::fs::read(temporary.path().join("file")).unwrap();
        assert_eq!((bytes.len(), &bytes[4096..4100]), (8192, &b"here"[..]));
        std::fs::set_permissions(
            temporary.path().join("file"),
            PermissionsExt::from_mode(0o400),
        )
        .unwrap();
        let read_only = open_beneath(dir.as_fd(), Path::new("file"), Access::Read).unwrap();
        assert_eq!(code(reserve(read_only.as_fd(), 0, 8192)), Some(libc::EBADF));
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
