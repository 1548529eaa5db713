//! Starting the forkserver: this very program again, with one socket.

use crate::pidfd::Pidfd;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use crate::retry::checked;

/// The number that the socket has in the new process.
pub const SOCKET: RawFd = 3;

/// How many bytes the new process has for its name, which it and its children write over `argv[0]`.
pub(crate) const TITLE_MAX: usize = 64;

/// Runs `/proc/self/exe` in a new process, with `socket` as descriptor 3 and `env_key=3` added to our environment, and `mark`, if given, as its
/// [mark](crate::mark) in place of ours.
///
/// It is the image that runs now, also when the file was replaced or removed since. The child has our descriptors 0 to 2 and the socket, no
/// other; an empty signal mask and default dispositions; our working directory, process group and limits; no parent-death signal.
/// `argv0` is its only argument, padded with blanks up to 64 bytes that [`enter`](crate::premain::enter) turns into room for names.
///
/// Where the program was started by the loader (`ld.so ./program`), that is the image that runs. It is then told to load the program's file
/// again, with the options that it got, by its path: a file that has taken its place since is found out by its build id.
///
/// Returns when the new image runs (or could not), about 0.1 ms; it does not wait for what that does. The pid is ours to reap.
///
/// # Errors
/// Those of `posix_spawn`; that the loader cannot load the program again, since its file is gone; `ESRCH` if the host program ignores SIGCHLD or reaps every child, and the new one ended at once.
pub fn exec_self(
    argv0: &str,
    socket: BorrowedFd<'_>,
    env_key: &str,
    mark: Option<&OsStr>,
) -> io::Result<(i32, Pidfd)> {
    let argv0 = c_string(format!("{argv0:TITLE_MAX$}").into_bytes())?;
    let environment = environment(env_key, mark)?;
    let mut environment: Vec<*mut libc::c_char> = environment
        .iter()
        .map(|entry| entry.as_ptr().cast_mut())
        .chain([std::ptr::null_mut()])
        .collect();
    let by_loader = arguments_of_loader(&argv0)?;
    let mut arguments: Vec<*mut libc::c_char> = match &by_loader {
        Some(arguments) => arguments
            .iter()
            .map(|one| one.as_ptr().cast_mut())
            .collect(),
        None => vec![argv0.as_ptr().cast_mut()],
    };
    arguments.push(std::ptr::null_mut());
    // dup2 of a descriptor onto itself leaves close-on-exec as it is in older libraries, so the source is never 3.
    // SAFETY: takes no pointer.
    let source =
        checked(unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, SOCKET + 1) })?;
    // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
    let source = unsafe { OwnedFd::from_raw_fd(source) };

    let mut actions = FileActions::new()?;
    actions.dup2(source.as_raw_fd(), SOCKET)?;
    actions.close_from(SOCKET + 1)?;
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: path, arguments and environment are NUL-terminated strings and null-terminated arrays that outlive the call (`environment`
    // above shadows the owner of its strings, which lives to the end of this function), the two objects are initialised.
    let error = unsafe {
        libc::posix_spawn(
            &mut pid,
            c"/proc/self/exe".as_ptr(),
            &actions.0,
            &attributes.0,
            arguments.as_mut_ptr(),
            environment.as_mut_ptr(),
        )
    };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // The pid cannot be another's yet: the process is our child and nobody of us has reaped it.
    match Pidfd::open(pid) {
        Ok(pidfd) => Ok((pid, pidfd)),
        Err(error) => {
            // SAFETY: takes no pointer but null. Without the pidfd the process could not be ended later.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            Err(error)
        }
    }
}

/// What the loader is told to load this program as `argv0`, if it was the loader that was executed.
fn arguments_of_loader(argv0: &CString) -> io::Result<Option<Vec<CString>>> {
    // Where the kernel has mapped the loader beside the program. If there is one there, it was not executed itself.
    // SAFETY: no pointers; reads a value that was fixed at exec.
    if unsafe { libc::getauxval(libc::AT_BASE) } != 0 {
        return Ok(None);
    }
    let executed = std::fs::read_link("/proc/self/exe")?.into_os_string();
    // A constant of this program, if it is no shared library; and a program that is linked statically has been executed itself.
    static HERE: u8 = 0;
    let loaded = crate::procfs::mapped_file(&raw const HERE as usize)?;
    let Some(loaded) = loaded.filter(|loaded| *loaded != executed) else {
        return Ok(None);
    };
    if let Err(error) = std::fs::metadata(&loaded) {
        let message = format!(
            "this program was started by the loader {}, which would have to load its file {} again: {error}",
            executed.display(),
            loaded.display()
        );
        return Err(io::Error::new(error.kind(), message));
    }
    let mut arguments = vec![c_string(executed.into_vec())?];
    let own = std::fs::read("/proc/self/cmdline")?;
    let mut own = own.split(|&byte| byte == 0).skip(1);
    while let Some(option) = own.next().filter(|option| option.starts_with(b"--")) {
        let value = WITH_VALUE.contains(&option).then(|| own.next()).flatten();
        if option != b"--argv0" {
            let both = [Some(option), value].into_iter().flatten();
            for one in both {
                arguments.push(c_string(one.to_vec())?);
            }
        }
    }
    arguments.extend([
        c"--argv0".to_owned(),
        argv0.clone(),
        c_string(loaded.into_vec())?,
    ]);
    Ok(Some(arguments))
}

/// The options of loaders that have a value as their next argument.
const WITH_VALUE: [&[u8]; 7] = [
    b"--library-path",
    b"--inhibit-rpath",
    b"--glibc-hwcaps-prepend",
    b"--glibc-hwcaps-mask",
    b"--preload",
    b"--audit",
    b"--argv0",
];

/// Our environment, with `key=3` and the mark.
fn environment(key: &str, mark: Option<&OsStr>) -> io::Result<Vec<CString>> {
    let join = |name: OsString, value: OsString| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        c_string(entry)
    };
    std::env::vars_os()
        .filter(|(name, _)| name != key && (mark.is_none() || name != crate::mark::ENV))
        .chain([(key.into(), SOCKET.to_string().into())])
        .chain(mark.map(|mark| (crate::mark::ENV.into(), mark.to_owned())))
        .map(|(name, value)| join(name, value))
        .collect()
}

fn c_string(bytes: Vec<u8>) -> io::Result<CString> {
    CString::new(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the pointer is to writable memory of the right type, which is initialised when the call returns 0.
        unsafe {
            result(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
            Ok(Self(actions.assume_init()))
        }
    }

    fn dup2(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: the object was initialised by `new`.
        result(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from, to) })
    }

    /// Closes what is open from `first` on. Older C libraries cannot; the new process does it itself then, before it does anything else.
    fn close_from(&mut self, first: RawFd) -> io::Result<()> {
        type CloseFrom =
            unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, libc::c_int) -> libc::c_int;
        let Some(address) = symbol(c"posix_spawn_file_actions_addclosefrom_np") else {
            return Ok(());
        };
        // SAFETY: the function of that name has had this type since glibc 2.34 introduced it.
        let close_from: CloseFrom = unsafe { std::mem::transmute(address) };
        // SAFETY: the object was initialised by `new`.
        result(unsafe { close_from(&mut self.0, first) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: the object was initialised by `new` and is not used again.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// An empty signal mask and the default action for every signal, but for what [stays ignored](crate::fork::STAY_IGNORED).
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the pointer is to writable memory of the right type, which is initialised when the call returns 0.
        let mut attributes = unsafe {
            result(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
            Self(attributes.assume_init())
        };
        let mut set = MaybeUninit::uninit();
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: the attributes are initialised; the set is initialised by sigemptyset before it is read.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            result(libc::posix_spawnattr_setsigmask(
                &mut attributes.0,
                set.as_ptr(),
            ))?;
            libc::sigfillset(set.as_mut_ptr());
            // A handler becomes the default action by itself; what is ignored stays so.
            for signal in crate::fork::STAY_IGNORED {
                libc::sigdelset(set.as_mut_ptr(), signal);
            }
            result(libc::posix_spawnattr_setsigdefault(
                &mut attributes.0,
                set.as_ptr(),
            ))?;
            result(libc::posix_spawnattr_setflags(
                &mut attributes.0,
                flags as libc::c_short,
            ))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: the object was initialised by `new` and is not used again.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

/// A function of the C library that may not be there.
pub(crate) fn symbol(name: &CStr) -> Option<*mut libc::c_void> {
    // SAFETY: the name is NUL-terminated.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// These functions return the error's number and leave errno alone.
fn result(error: libc::c_int) -> io::Result<()> {
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}
