//! The hook that turns a copy of this program into a forkserver before its `main` begins.
//!
//! [`forkserver_entry!`](crate::forkserver_entry) places a function in `.init_array`, which the C library runs before `main`. In an ordinary run it
//! finds no environment variable and returns, at the cost of one look at the environment. In a process that
//! [`exec_self`](crate::spawn::exec_self) started it never returns.
//!
//! What std does before `main` and is done here instead: SIGPIPE is ignored; descriptors 0 to 2 are open, if need be on /dev/null.
//!
//! What cannot be had before `main`, on stable Rust, and is so in the forkserver and in all its children:
//! - std's handler for stack overflow, and with it the alternate signal stack of every thread: an overflow ends in a bare SIGSEGV with no
//!   message;
//! - the main thread's name: panics in it say `<unnamed>`, but for those of an isolate;
//! - the arguments of the program that asked: `std::env::args` gives one, the forkserver's own name.

use crate::process;
use crate::signal::Action;
use crate::socket;
use std::ffi::{CStr, c_char};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use crate::spawn::TITLE_MAX;

/// The environment variable that carries the socket's number.
pub const ENV: &str = "OFFSHOOT_FORKSERVER";

/// What a forkserver runs in place of `main`. It gets its socket.
pub type Entry = fn(OwnedFd) -> !;

/// The exit code of a copy that cannot be a forkserver and has no socket by which it could say why (`EX_NOPERM`).
pub const EXIT_NO_FORKSERVER: i32 = 77;

/// Whether the hook has made this process a forkserver, or a process forked from one.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Ends this process if it was executed by [`exec_self`](crate::spawn::exec_self) and runs `main` all the same: the program would do again what it has
/// done, execute itself once more in doing so, and so on. The hook has seen to that already wherever it runs.
pub fn end_copy() {
    if is_copy() {
        refuse(b"its `main` was reached, so that the hook before it was not run\n");
    }
}

/// Whether this process was executed by [`exec_self`](crate::spawn::exec_self) and is no forkserver.
pub fn is_copy() -> bool {
    let is_one = |name: std::ffi::OsString| is_title(name.as_encoded_bytes());
    !TAKEN.load(Ordering::Relaxed) && std::env::args_os().next().is_some_and(is_one)
}

fn refuse(why: &[u8]) -> ! {
    let begin =
        b"offshoot: this copy of the program was executed to be a forkserver, and cannot be one: ";
    let line = [&begin[..], why].concat();
    // SAFETY: the pointer is to so many bytes. That it fails could be told to no other.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
    crate::fork::exit_at_once(EXIT_NO_FORKSERVER)
}

/// Whether this is a first argument as [`exec_self`](crate::spawn::exec_self) makes it: of a length that no path has by chance, padded with blanks.
fn is_title(name: &[u8]) -> bool {
    name.len() == TITLE_MAX && name.ends_with(b" ") && !name.starts_with(b" ")
}

/// Makes this program able to be a forkserver: `forkserver_entry!(path::to::entry)`, once in a program, with an [`Entry`](crate::premain::Entry).
#[macro_export]
macro_rules! forkserver_entry {
    ($entry:path) => {
        const _: () = {
            extern "C" fn hook(
                argc: ::core::ffi::c_int,
                argv: *const *const ::core::ffi::c_char,
                envp: *const *const ::core::ffi::c_char,
            ) {
                // SAFETY: the C library calls this once, before `main`.
                unsafe { $crate::premain::enter(argc, argv, envp, $entry) }
            }
            // SAFETY: an entry of .init_array is the address of a function that takes at least these arguments.
            // Miri calls it without any.
            #[used]
            #[cfg_attr(not(miri), unsafe(link_section = ".init_array"))]
            static HOOK: extern "C" fn(
                ::core::ffi::c_int,
                *const *const ::core::ffi::c_char,
                *const *const ::core::ffi::c_char,
            ) = hook;
        };
    };
}

/// Runs `entry` if this process was started to be a forkserver, else returns and has changed nothing.
///
/// A copy that [`exec_self`](crate::spawn::exec_self) started, and of which not all of this holds, ends with code [`EXIT_NO_FORKSERVER`]; its first argument tells it.
///
/// It was, if all of this holds: [`ENV`] names a descriptor, which is a socket of the packet kind, whose other end was made by a process of our
/// user, and the kernel has not given this program more rights than its caller had. Then, in this order: the variable is removed (left in
/// place if there are other threads, which `entry` refuses to work beside); descriptors other than 0, 1, 2 and the socket are closed; the
/// socket is made close-on-exec; what std does before `main` is made up for, see the module; and `entry` is called. If that panics, the process
/// ends with code 70.
///
/// # Safety
/// To be called once, before `main`, from `.init_array`, with what the C library passed. (Only glibc passes anything, and only there the
/// arguments are used.)
pub unsafe fn enter(
    argc: i32,
    argv: *const *const c_char,
    _envp: *const *const c_char,
    entry: Entry,
) {
    // SAFETY: the C library's arguments, by the contract.
    let is_copy = unsafe { has_title(argc, argv) };
    let fd = match invited() {
        Some(fd) => fd,
        None if !is_copy => return,
        // Whatever it is that is not as it was left: if this returned, `main` would run for a second time.
        None => refuse(match process::is_privileged_exec() {
            true => &b"the kernel has given it more rights than its caller has\n"[..],
            false => b"its environment or its socket is not what it was started with\n",
        }),
    };
    TAKEN.store(true, Ordering::Relaxed);
    if process::is_single_threaded().unwrap_or(false) {
        // Ignored: the two errors of it are excluded by the line above and by the constant.
        let _ = process::remove_env(ENV);
    }
    // SAFETY: nothing of ours runs yet. A descriptor that another constructor of this program opened is lost to it, and no code of the
    // program will run in this process or its children that does not come from `entry`.
    let _ = unsafe { process::close_all_but(&[0, 1, 2, fd]) };
    // SAFETY: it is open, see `invited`, and was passed to this process for the hook alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let _ = process::set_cloexec(socket.as_fd(), true);
    process::open_standard_fds();
    // What another constructor has printed, the program has printed itself; here it would come out at the end of each process.
    // SAFETY: the C library's own stream; nobody else uses it yet.
    #[cfg(any(target_env = "gnu", target_env = "musl"))]
    unsafe {
        unsafe extern "C" {
            static stdout: *mut libc::FILE;
            fn __fpurge(stream: *mut libc::FILE);
        }
        __fpurge(stdout);
    }
    let _ = Action::ignore().install(libc::SIGPIPE);
    // SAFETY: the C library's arguments, by the contract.
    #[cfg(target_env = "gnu")]
    unsafe {
        title::remember(argc, argv);
    }
    let _ = (argc, argv);
    // SAFETY: `main` has not begun. The variable removed above changed pointers to other strings than this one.
    unsafe { crate::mark::remember() };
    // The frame below is C's.
    if catch_unwind(AssertUnwindSafe(|| entry(socket))).is_err() {
        crate::fork::exit_at_once(crate::fork::EXIT_PANIC);
    }
}

/// Whether the first argument says that this process is a copy.
///
/// # Safety
/// The arguments are those that the C library gets from the kernel, where it passes any.
unsafe fn has_title(argc: i32, argv: *const *const c_char) -> bool {
    if cfg!(not(target_env = "gnu")) || argc < 1 || argv.is_null() {
        return false;
    }
    // SAFETY: with at least one argument the first pointer is a NUL-terminated string.
    is_title(unsafe { CStr::from_ptr(*argv) }.to_bytes())
}

/// The socket's number, if this process was started to be a forkserver.
fn invited() -> Option<RawFd> {
    // First the cheapest question, because every ordinary start of the program asks it.
    let fd: RawFd = std::env::var(ENV).ok()?.parse().ok()?;
    if process::is_privileged_exec() || fd <= 2 || !socket::is_packet_socket(fd) {
        return None;
    }
    // SAFETY: it has just been seen to be open, and there is nobody yet who could close it.
    let peer = socket::peer(&unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    // SAFETY: no arguments, cannot fail.
    (peer.uid == unsafe { libc::geteuid() }).then_some(fd)
}

/// The name that `ps` shows: the bytes of `argv[0]`, which the kernel reads where they lie.
pub(crate) mod title {
    use super::{AtomicPtr, AtomicUsize, CStr, Ordering, c_char};

    static START: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
    static LENGTH: AtomicUsize = AtomicUsize::new(0);

    /// Remembers where the name lies and turns the padding of `exec_self` into the end of the string.
    ///
    /// # Safety
    /// The arguments are those that the C library gets from the kernel.
    pub(super) unsafe fn remember(argc: i32, argv: *const *const c_char) {
        if argc < 1 || argv.is_null() {
            return;
        }
        // SAFETY: with at least one argument the first pointer is a NUL-terminated string, in memory that lives as long as the process.
        let (start, name) = unsafe { (*argv, CStr::from_ptr(*argv).to_bytes()) };
        let trimmed = name.trim_ascii_end().to_vec();
        LENGTH.store(name.len(), Ordering::Relaxed);
        START.store(start.cast_mut().cast(), Ordering::Release);
        set(&trimmed);
        // Shown beside it is the file's name, which for `/proc/self/exe` is that of the link.
        let name: Vec<u8> = trimmed.into_iter().chain([0]).collect();
        // SAFETY: the name is NUL-terminated; the kernel reads at most 16 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }

    /// Writes `name`, cut to what fits. Nothing happens where no place for it is known (another C library, another kind of start).
    ///
    /// Only while this is the only thread, because `std::env::args` reads the same bytes.
    pub(crate) fn set(name: &[u8]) {
        let start = START.load(Ordering::Acquire);
        if start.is_null() {
            return;
        }
        let length = LENGTH.load(Ordering::Relaxed);
        let name = &name[..name.len().min(length)];
        // SAFETY: `length` bytes from `start` on are the first argument, writable by the ABI, and followed by its NUL. Nobody reads it
        // meanwhile, see above. The rest is filled with NUL, so that `ps` shows nothing after the name.
        unsafe {
            start.copy_from_nonoverlapping(name.as_ptr(), name.len());
            start.add(name.len()).write_bytes(0, length - name.len());
        }
    }
}
