//! What std's threads lack: a join with a bound, a look at what a thread is doing, and what can be done about one that does not end.

use crate::clock;
use crate::futex;
use crate::process;
use crate::retry::checked;
use crate::signal::Action;
use crate::spawn::symbol;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// The calling thread's id in the kernel, unique on the machine while the thread lives.
pub fn id() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::gettid() }
}

/// A thread of std that can be joined within a bound. Dropping it lets the thread run on by itself.
#[derive(Debug)]
pub struct Joiner {
    /// `None` once joined.
    thread: Option<libc::pthread_t>,
}

impl Joiner {
    /// Waits until the thread has ended, its thread-local destructors run and its stack is free, at most until `deadline_ns` (of [`clock::now`]).
    ///
    /// True when it has been joined, also by an earlier call. A deadline that has passed asks without waiting. A thread that waits for
    /// itself gets false.
    pub fn join_until(&mut self, deadline_ns: u64) -> bool {
        let Some(thread) = self.thread else {
            return true;
        };
        let joined = match clock_join() {
            // SAFETY: `thread` is neither joined nor detached, because `self` has it still, exclusively.
            Some(join) => unsafe { join_by_clock(join, thread, deadline_ns) },
            // SAFETY: as above.
            None => unsafe { join_in_slices(thread, deadline_ns) },
        };
        if joined {
            self.thread = None;
        }
        joined
    }

    /// Lets the thread run on by itself, as dropping does.
    pub fn detach(self) {}
}

/// The stack of a lean thread that does not say, in bytes: as std's.
const STACK: usize = 2 << 20;

/// Starts a thread that is none of std's: without the alternate signal stack that std gives each of its own, which is two of its
/// four memory mappings and eight of its system calls. It costs a fifth less, and twice as many fit under `vm.max_map_count`.
///
/// What std does for its threads is missing: an overflow of the stack (of `stack` bytes, 2 MiB by default) is a bare SIGSEGV without
/// a word, std does not know the name (the kernel does, its first 15 bytes), and what it prints is not captured by a test harness.
/// All else is alike, thread-locals and their destructors above all.
///
/// # Errors
/// `EAGAIN` at a limit of threads or memory; `EINVAL` for a stack below the system's minimum.
///
/// # Panics
/// A panic that leaves `body` aborts the process.
pub fn spawn_lean<F: FnOnce() + Send + 'static>(
    stack: Option<usize>,
    name: &str,
    body: F,
) -> io::Result<Joiner> {
    extern "C" fn main<F: FnOnce()>(start: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: made by `Box::into_raw` below, of this type, and given to this thread alone.
        let start = unsafe { Box::from_raw(start.cast::<(String, F)>()) };
        let (name, body) = *start;
        // A name is for debuggers only.
        let _ = take_name(&name);
        drop(name);
        body();
        ptr::null_mut()
    }

    /// Destroyed on every way out.
    struct Attributes(libc::pthread_attr_t);
    impl Drop for Attributes {
        fn drop(&mut self) {
            // SAFETY: initialized, see below, and destroyed once.
            unsafe { libc::pthread_attr_destroy(&mut self.0) };
        }
    }

    let told = |code: libc::c_int| match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    };
    let mut attributes = std::mem::MaybeUninit::uninit();
    // SAFETY: it initializes what it is given.
    told(unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) })?;
    // SAFETY: initialized above.
    let mut attributes = Attributes(unsafe { attributes.assume_init() });
    let stack = stack.unwrap_or(STACK).next_multiple_of(4096);
    // SAFETY: the attributes are initialized.
    told(unsafe { libc::pthread_attr_setstacksize(&mut attributes.0, stack) })?;
    let start = Box::into_raw(Box::new((name.to_owned(), body)));
    let mut thread = std::mem::MaybeUninit::uninit();
    // SAFETY: `main` takes over `start` and what is in it, which is `Send` and borrows nothing; attributes and thread are live.
    let made = told(unsafe {
        libc::pthread_create(thread.as_mut_ptr(), &attributes.0, main::<F>, start.cast())
    });
    if let Err(error) = made {
        // SAFETY: no thread was made, so that it is still ours.
        drop(unsafe { Box::from_raw(start) });
        return Err(error);
    }
    // SAFETY: written by a creation that succeeded.
    let thread = unsafe { thread.assume_init() };
    Ok(Joiner {
        thread: Some(thread),
    })
}

impl From<JoinHandle<()>> for Joiner {
    fn from(handle: JoinHandle<()>) -> Self {
        // This drops std's part of the handle without detaching, so that the thread is now ours to join or detach.
        Self {
            thread: Some(handle.into_pthread_t()),
        }
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // SAFETY: it was neither joined nor detached before. A thread that has ended already is freed by this.
            unsafe { libc::pthread_detach(thread) };
        }
    }
}

/// Breaks the thread `tid` of this process out of a blocking system call, if it is in one that can be interrupted: the call returns `EINTR`.
///
/// It is a signal with an empty handler, installed without `SA_RESTART` for the first real-time signal that nobody uses. Most of std repeats
/// an interrupted call; see the design notes for what helps.
///
/// # Errors
/// `ESRCH` when there is no such thread in this process; `ResourceBusy` when every real-time signal is taken.
pub fn interrupt(tid: i32) -> io::Result<()> {
    static SIGNAL: AtomicI32 = AtomicI32::new(0);
    let signal = private_signal(&SIGNAL, Action::handler(nothing, 0))?;
    send(tid, signal)
}

/// Names the calling thread for debuggers and `/proc`, by the first 15 bytes of `name` up to a NUL. `std` does not see it.
pub fn take_name(name: &str) -> io::Result<()> {
    let mut short = [0_u8; 16];
    for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the name is NUL-terminated; the kernel reads at most 16 bytes.
    checked(unsafe { libc::prctl(libc::PR_SET_NAME, short.as_ptr()) }).map(drop)
}

/// Gives the thread only the time that nobody else wants (`SCHED_IDLE`). It is not undone.
pub fn demote(tid: i32) -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: `priority` is a live structure, which the kernel reads.
    checked(unsafe { libc::sched_setscheduler(tid, libc::SCHED_IDLE, &priority) }).map(drop)
}

/// Gives the thread `tid`, of whatever process, the smallest share of a processor that others want as well (nice 19). Unlike [`demote`] it still
/// has one, so that it can end where the machine is busy with others. It is not undone.
pub fn make_nice(tid: i32) -> io::Result<()> {
    let id = libc::id_t::try_from(tid).map_err(io::Error::other)?;
    // SAFETY: takes no pointer.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, id, 19) }).map(drop)
}

/// For how long the thread `tid`, of whatever process, has had a processor, in nanoseconds, if it wants one now; `None` if it waits for something
/// else, has ended, or the kernel does not say.
pub fn wants_processor(tid: i32) -> Option<u64> {
    let read = |name: &str| crate::procfs::text(format!("/proc/{tid}/{name}")).ok();
    let stat = read("stat")?;
    // Behind the name, which may contain anything (proc_pid_stat(5)).
    let state = stat.rsplit_once(')')?.1.trim_start();
    let ran = read("schedstat")?.split(' ').next()?.parse().ok()?;
    state.starts_with('R').then_some(ran)
}

/// What the thread `tid` of this process is doing, in one line: its name, state, the kernel function and the system call that it waits in. What
/// the kernel does not show (a hardened one, a thread that has ended) is named as such.
pub fn wait_channel(tid: i32) -> String {
    let read = |name: &str| match crate::procfs::text(format!("/proc/self/task/{tid}/{name}")) {
        Ok(text) => Ok(text.trim_end().to_string()),
        Err(error) => Err(format!("{name} unreadable: {}", error.kind())),
    };
    let status = read("status");
    let field = |name: &str| match &status {
        Ok(text) => match text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        {
            Some(value) => value.trim().to_string(),
            None => format!("{name} missing"),
        },
        Err(error) => error.clone(),
    };
    let channel = match read("wchan") {
        Ok(channel) if channel.is_empty() || channel == "0" => {
            "not waiting, or not shown".to_string()
        }
        Ok(channel) => channel,
        Err(error) => error,
    };
    let call = read("syscall").map_or_else(|error| error, |text| describe_call(&text));
    if status.is_err() {
        return format!("thread {tid}: {}", field(""));
    }
    format!(
        "thread {tid} \"{}\": state {}, kernel function {channel}, system call {call}",
        field("Name"),
        field("State")
    )
}

/// The stack of the thread `tid` of this process, as text; `None` if it does not answer within `timeout`, or a capture is going on.
///
/// The thread itself collects at most 64 return addresses in a signal handler that neither allocates nor locks; the names are looked up here,
/// which takes milliseconds and is not part of `timeout`. A system call of the thread goes on afterwards (`SA_RESTART`), except for those
/// that never do: the `sleep`, `poll` and `select` families, which return `EINTR`.
pub fn capture_stack(tid: i32, timeout: Duration) -> Option<String> {
    capture_addresses(tid, timeout).map(with_names)
}

/// A stack that a thread of its own captures and looks the names up for: that takes milliseconds, and seconds in a large program with
/// debug information, which somebody with a deadline cannot wait for.
#[derive(Debug)]
pub struct PendingStack(Arc<Mutex<String>>);

impl PendingStack {
    /// Begins to capture the stack of the thread `tid` of this process, as [`capture_stack`] does, behind captures that are going on.
    /// `done` is given the whole text on that other thread, if there is one.
    pub fn capture(
        tid: i32,
        timeout: Duration,
        done: impl FnOnce(&str) + Send + 'static,
    ) -> PendingStack {
        /// Held while the addresses are collected, of which there is one set.
        static TURN: Mutex<()> = Mutex::new(());
        let text = Arc::new(Mutex::new(String::new()));
        let slot = text.clone();
        let store = move |text: String| *lock(&slot) = text;
        let capture = move || {
            let addresses = {
                let _turn = lock(&TURN);
                capture_addresses(tid, timeout)
            };
            let Some(addresses) = addresses else { return };
            let mut plain = String::new();
            for (index, address) in addresses.iter().enumerate() {
                let _ = writeln!(plain, "{index:4}: {address:#x}");
            }
            store(plain);
            let named = with_names(addresses);
            done(&named);
            store(named);
        };
        // Without a thread there is no stack, and nothing else is lost.
        let _ = std::thread::Builder::new()
            .name("offshoot-stack".to_owned())
            .spawn(capture);
        PendingStack(text)
    }

    /// What there is by now: the names, or the bare addresses, or nothing.
    pub fn so_far(&self) -> String {
        lock(&self.0).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn with_names(addresses: Vec<usize>) -> String {
    let mut text = String::new();
    for (index, address) in addresses.into_iter().enumerate() {
        let mut found = false;
        backtrace::resolve(address as *mut _, |symbol| {
            found = true;
            let name = symbol
                .name()
                .map_or_else(|| format!("{address:#x}"), |name| format!("{name:#}"));
            let _ = writeln!(text, "{index:4}: {name}");
            if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
                let _ = writeln!(text, "             at {}:{line}", file.display());
            }
        });
        if !found {
            let _ = writeln!(text, "{index:4}: {address:#x}");
        }
    }
    text
}

/// How many threads this process has now; 0 when /proc is not mounted.
pub fn count() -> usize {
    // See `process::is_single_threaded` for the two links that are no threads.
    fs::metadata("/proc/self/task").map_or(0, |task| (task.nlink() as usize).saturating_sub(2))
}

type ClockJoin = unsafe extern "C" fn(
    libc::pthread_t,
    *mut *mut libc::c_void,
    libc::clockid_t,
    *const libc::timespec,
) -> libc::c_int;

/// The join that takes the monotonic clock, of glibc 2.31 and later.
fn clock_join() -> Option<ClockJoin> {
    // Looked up rather than linked, because the program would otherwise not start with an older library.
    let address = symbol(c"pthread_clockjoin_np")?;
    // SAFETY: the function of that name has had this type since it was introduced.
    Some(unsafe { std::mem::transmute::<*mut libc::c_void, ClockJoin>(address) })
}

/// # Safety
/// `thread` is neither joined nor detached, and nobody else joins it meanwhile.
unsafe fn join_by_clock(join: ClockJoin, thread: libc::pthread_t, deadline_ns: u64) -> bool {
    let deadline = clock::timespec(Duration::from_nanos(deadline_ns));
    // SAFETY: the caller's contract; a null result pointer is allowed, `deadline` is live. It never returns EINTR.
    unsafe { join(thread, ptr::null_mut(), libc::CLOCK_MONOTONIC, &deadline) == 0 }
}

/// For libraries that can only join by the wall clock, which may be set back: in slices, so that such a step costs one at most.
///
/// # Safety
/// As [`join_by_clock`].
unsafe fn join_in_slices(thread: libc::pthread_t, deadline_ns: u64) -> bool {
    const SLICE: Duration = Duration::from_millis(100);
    loop {
        let left = clock::until(deadline_ns);
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let until = clock::timespec(wall + left.min(SLICE));
        // SAFETY: the caller's contract; a null result pointer is allowed, `until` is live.
        match unsafe { libc::pthread_timedjoin_np(thread, ptr::null_mut(), &until) } {
            0 => return true,
            libc::ETIMEDOUT if !left.is_zero() => continue,
            _ => return false,
        }
    }
}

fn send(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes no pointer. The process id makes it harmless if the thread has ended and another process has its number.
    checked(unsafe { libc::syscall(libc::SYS_tgkill, process::id(), tid, signal) }).map(drop)
}

/// The real-time signal that runs `action`, installed now if it is not.
///
/// The number is remembered in `signal`, and checked each time: after a fork the child has put every signal back.
fn private_signal(signal: &AtomicI32, action: Action) -> io::Result<i32> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let installing = INSTALLING
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let known = signal.load(Ordering::Acquire);
    if known != 0 && Action::current(known)?.same_handler(action) {
        return Ok(known);
    }
    // Some libraries take the first ones by number without asking; the last ones are the least used.
    for candidate in (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev() {
        if !Action::current(candidate)?.is_default() {
            continue;
        }
        let before = action.install(candidate)?;
        if before.is_default() {
            signal.store(candidate, Ordering::Release);
            return Ok(candidate);
        }
        // Somebody else took it between the two calls.
        before.install(candidate)?;
    }
    drop(installing);
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "every real-time signal has a handler already",
    ))
}

extern "C" fn nothing(_signal: i32) {}

/// The one capture that can be going on: who is asked, what the answer is, and where it stands.
///
/// The state goes IDLE → REQUESTED → RUNNING → DONE → IDLE. A capture that was given up while REQUESTED goes back to IDLE at once; one that was
/// given up while RUNNING goes to GIVEN_UP, and to IDLE when the handler ends. The frames belong to the handler while RUNNING and to the
/// one who asked while DONE.
static STATE: AtomicU32 = AtomicU32::new(IDLE);
static TARGET: AtomicI32 = AtomicI32::new(0);
static FRAMES: [AtomicUsize; FRAMES_MAX] = [const { AtomicUsize::new(0) }; FRAMES_MAX];
static FRAME_COUNT: AtomicUsize = AtomicUsize::new(0);

const FRAMES_MAX: usize = 64;

const IDLE: u32 = 0;
const REQUESTED: u32 = 1;
const RUNNING: u32 = 2;
const DONE: u32 = 3;
const GIVEN_UP: u32 = 4;

fn capture_addresses(tid: i32, timeout: Duration) -> Option<Vec<usize>> {
    static SIGNAL: AtomicI32 = AtomicI32::new(0);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let deadline = clock::deadline(timeout);
    let _one = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let signal = private_signal(
        &SIGNAL,
        Action::handler_with_context(collect, libc::SA_RESTART),
    )
    .ok()?;
    // The unwinder's first use in a process loads and initialises it, which must not happen in the handler.
    // SAFETY: nothing else in this process traces through this crate meanwhile but the handler, which has not been asked yet.
    unsafe { backtrace::trace_unsynchronized(|_| true) };

    TARGET.store(tid, Ordering::Relaxed);
    // An earlier handler that never came to its end keeps the buffer.
    STATE
        .compare_exchange(IDLE, REQUESTED, Ordering::AcqRel, Ordering::Relaxed)
        .ok()?;
    if send(tid, signal).is_err() {
        STATE.store(IDLE, Ordering::Release);
        return None;
    }
    loop {
        match STATE.load(Ordering::Acquire) {
            DONE => break,
            state => {
                let left = clock::until(deadline);
                if !left.is_zero() {
                    futex::wait(&STATE, state, Some(left));
                    continue;
                }
                let next = if state == REQUESTED { IDLE } else { GIVEN_UP };
                if STATE
                    .compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                {
                    return None;
                }
            }
        }
    }
    let count = FRAME_COUNT.load(Ordering::Relaxed);
    let frames = FRAMES[..count]
        .iter()
        .map(|frame| frame.load(Ordering::Relaxed))
        .collect();
    STATE.store(IDLE, Ordering::Release);
    Some(frames)
}

/// Runs in the thread that is asked. Atomics, the unwinder and a futex wake; nothing that allocates or takes a lock of ours.
extern "C" fn collect(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // A signal that comes after its capture was given up may find the next one, of another thread.
    if TARGET.load(Ordering::Relaxed) != id()
        || STATE
            .compare_exchange(REQUESTED, RUNNING, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
    {
        return;
    }
    let errno = errno();
    // SAFETY: errno is this thread's own.
    let errno_before = unsafe { *errno };
    // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO.
    let interrupted = unsafe { interrupted_at(context.cast()) };
    let collect_from = |start: Option<usize>| {
        let mut begun = start.is_none();
        let mut count = 0;
        // SAFETY: one capture runs at a time, see the state, and the unwinder itself may run in several threads at once.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                let address = frame.ip().addr();
                // The frames above the interrupted one are this handler's.
                begun |= start == Some(address);
                if begun {
                    FRAMES[count].store(address, Ordering::Relaxed);
                    count += 1;
                }
                count < FRAMES_MAX
            });
        }
        count
    };
    let mut count = collect_from(interrupted);
    if count == 0 && interrupted.is_some() {
        // The unwinder did not come through the signal's frame, or gives another address for it; what it saw is better than nothing.
        count = collect_from(None);
    }
    FRAME_COUNT.store(count, Ordering::Relaxed);
    if STATE
        .compare_exchange(RUNNING, DONE, Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        STATE.store(IDLE, Ordering::Release);
    }
    futex::wake_all(&STATE);
    // SAFETY: as above.
    unsafe { *errno = errno_before };
}

fn errno() -> *mut i32 {
    // SAFETY: no arguments; the pointer is valid as long as the thread lives.
    unsafe { libc::__errno_location() }
}

/// The instruction that the signal interrupted, where this crate knows the processor.
///
/// # Safety
/// `context` is what the kernel passed to a handler.
unsafe fn interrupted_at(context: *const libc::ucontext_t) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's contract.
    return Some(unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as usize });
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's contract.
    return Some(unsafe { (*context).uc_mcontext.pc as usize });
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = context;
        None
    }
}

/// Says which call a line of /proc/PID/syscall is about.
fn describe_call(line: &str) -> String {
    let first = line.split_ascii_whitespace().next().unwrap_or("");
    match first.parse::<i64>() {
        Ok(-1) => "none (blocked elsewhere in the kernel)".to_string(),
        Ok(number) => match BLOCKING_CALLS.iter().find(|&&(known, _)| known == number) {
            Some((_, name)) => format!("{name} ({number})"),
            None => number.to_string(),
        },
        Err(_) if first == "running" => "none (running)".to_string(),
        Err(_) => "unreadable".to_string(),
    }
}

/// The calls that a thread can be stuck in, so that a report has their names. Others are shown by number.
#[rustfmt::skip]
const BLOCKING_CALLS: &[(i64, &str)] = &[
    (libc::SYS_read, "read"), (libc::SYS_write, "write"), (libc::SYS_readv, "readv"), (libc::SYS_writev, "writev"),
    (libc::SYS_pread64, "pread64"), (libc::SYS_pwrite64, "pwrite64"), (libc::SYS_openat, "openat"), (libc::SYS_close, "close"),
    (libc::SYS_futex, "futex"), (libc::SYS_nanosleep, "nanosleep"), (libc::SYS_clock_nanosleep, "clock_nanosleep"),
    (libc::SYS_ppoll, "ppoll"), (libc::SYS_pselect6, "pselect6"), (libc::SYS_epoll_pwait, "epoll_pwait"),
    (libc::SYS_accept, "accept"), (libc::SYS_accept4, "accept4"), (libc::SYS_connect, "connect"),
    (libc::SYS_recvfrom, "recvfrom"), (libc::SYS_recvmsg, "recvmsg"), (libc::SYS_recvmmsg, "recvmmsg"),
    (libc::SYS_sendto, "sendto"), (libc::SYS_sendmsg, "sendmsg"), (libc::SYS_sendfile, "sendfile"), (libc::SYS_splice, "splice"),
    (libc::SYS_wait4, "wait4"), (libc::SYS_waitid, "waitid"), (libc::SYS_flock, "flock"), (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_fsync, "fsync"), (libc::SYS_fdatasync, "fdatasync"), (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"), (libc::SYS_rt_sigsuspend, "rt_sigsuspend"),
    (libc::SYS_io_uring_enter, "io_uring_enter"), (libc::SYS_getrandom, "getrandom"), (libc::SYS_sched_yield, "sched_yield"),
    #[cfg(target_arch = "x86_64")] (libc::SYS_poll, "poll"),
    #[cfg(target_arch = "x86_64")] (libc::SYS_select, "select"),
    #[cfg(target_arch = "x86_64")] (libc::SYS_epoll_wait, "epoll_wait"),
    #[cfg(target_arch = "x86_64")] (libc::SYS_open, "open"),
    #[cfg(target_arch = "x86_64")] (libc::SYS_pause, "pause"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    /// A thread that has told its id and runs `body`.
    fn start(name: &str, body: impl FnOnce() + Send + 'static) -> (i32, JoinHandle<()>) {
        let (send_id, receive_id) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name(name.to_string())
            .spawn(move || {
                send_id.send(id()).unwrap();
                body();
            })
            .unwrap();
        (receive_id.recv_timeout(LONG).unwrap(), handle)
    }

    #[test]
    fn who_computes_wants_a_processor_and_who_waits_does_not() {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (busy, computing) = start("busy", move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {}
        });
        let (end, ended) = mpsc::channel::<()>();
        let (idle, waiting) = start("idle) R", move || {
            let _ = ended.recv();
        });
        let first = wants_processor(busy).expect("it computes");
        assert!(within(LONG, || wants_processor(busy) > Some(first)));
        assert!(within(LONG, || wants_processor(idle).is_none()));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(end);
        computing.join().unwrap();
        waiting.join().unwrap();
        assert_eq!(wants_processor(busy), None);
        // Of another process as well.
        let mut other = std::process::Command::new("sh");
        let mut other = other.args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = other.id() as i32;
        let computes = within(LONG, || wants_processor(pid).is_some());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(computes);
        assert_eq!(wants_processor(pid), None);
    }

    fn within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < bound {
            if condition() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn a_lean_thread_has_two_mappings_a_name_and_thread_locals_that_are_destroyed() {
        struct Ends(mpsc::Sender<&'static str>);
        impl Drop for Ends {
            fn drop(&mut self) {
                let _ = self.0.send("thread-local dropped");
            }
        }
        thread_local!(static LAST: std::cell::RefCell<Option<Ends>> = const { std::cell::RefCell::new(None) });
        const MANY: usize = 100;

        let (told, names) = mpsc::channel();
        let (dropped, seen) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let before = crate::limits::mappings_now().unwrap();
        let threads: Vec<Joiner> = (0..MANY)
            .map(|n| {
                let (told, dropped, ended) = (told.clone(), dropped.clone(), ended.clone());
                spawn_lean(Some(64 << 10), &format!("lean-{n}"), move || {
                    LAST.set(Some(Ends(dropped)));
                    told.send(crate::procfs::text("/proc/thread-self/comm").unwrap())
                        .unwrap();
                    let _ = ended
                        .lock()
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .recv();
                })
                .unwrap()
            })
            .collect();
        let mut all: Vec<String> = (0..MANY)
            .map(|_| names.recv_timeout(LONG).unwrap())
            .collect();
        let each = (crate::limits::mappings_now().unwrap() - before) / MANY as u64;
        // Arenas of the allocator and the threads of other tests are in it.
        assert!(each <= 3, "{each} mappings each");
        all.sort();
        assert_eq!(all[0], "lean-0\n");
        drop(end);
        for mut thread in threads {
            assert!(thread.join_until(clock::deadline(LONG)));
        }
        assert_eq!(seen.try_iter().count(), MANY);
        assert!(
            spawn_lean(Some(1), "too-small", || {})
                .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
                || libc::PTHREAD_STACK_MIN <= 4096
        );
    }

    #[test]
    fn join_waits_for_thread_locals_and_not_beyond_its_deadline() {
        struct Ends(mpsc::Sender<&'static str>);
        impl Drop for Ends {
            fn drop(&mut self) {
                let _ = self.0.send("thread-local dropped");
            }
        }
        thread_local!(static LAST: std::cell::RefCell<Option<Ends>> = const { std::cell::RefCell::new(None) });

        let (end, ended) = mpsc::channel::<()>();
        let (dropped, seen) = mpsc::channel();
        let (_, handle) = start("joined", move || {
            LAST.set(Some(Ends(dropped)));
            let _ = ended.recv();
        });
        let mut joiner = Joiner::from(handle);
        let before = Instant::now();
        assert!(!joiner.join_until(0));
        assert!(!joiner.join_until(clock::deadline(Duration::from_millis(20))));
        assert!(before.elapsed() >= Duration::from_millis(20));
        assert!(before.elapsed() < LONG);
        end.send(()).unwrap();
        assert!(joiner.join_until(clock::deadline(LONG)));
        assert_eq!(seen.try_recv(), Ok("thread-local dropped"));
        assert!(joiner.join_until(0), "joined stays joined");
    }

    #[test]
    fn the_join_of_older_libraries_keeps_the_deadline_too() {
        let (end, ended) = mpsc::channel::<()>();
        let (_, handle) = start("joined-by-wall-clock", move || ended.recv().unwrap());
        let mut joiner = Joiner::from(handle);
        let thread = joiner.thread.unwrap();
        // Longer than one slice.
        let before = Instant::now();
        // SAFETY: `joiner` has the thread still and does not join it meanwhile.
        assert!(!unsafe { join_in_slices(thread, clock::deadline(Duration::from_millis(150))) });
        assert!(before.elapsed() >= Duration::from_millis(150));
        end.send(()).unwrap();
        // SAFETY: as above.
        assert!(unsafe { join_in_slices(thread, clock::deadline(LONG)) });
        joiner.thread = None;
        assert!(clock_join().is_some() || !cfg!(target_env = "gnu"));
    }

    #[test]
    fn a_dropped_joiner_leaves_the_thread_running() {
        let (end, ended) = mpsc::channel::<()>();
        let (answer, answered) = mpsc::channel();
        let (_, handle) = start("detached", move || {
            let _ = ended.recv();
            answer.send(()).unwrap();
        });
        Joiner::from(handle).detach();
        end.send(()).unwrap();
        answered.recv_timeout(LONG).unwrap();
    }

    #[test]
    fn interrupt_breaks_a_blocked_read() {
        let (mut reader, _writer) = UnixStream::pair().unwrap();
        let (tid, handle) = start("reads", move || {
            let error = reader.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        });
        // Repeated, because the first may come before the thread is in the call.
        assert!(within(LONG, || {
            // A thread that is about to end may be gone from the kernel before std knows.
            let _ = interrupt(tid);
            handle.is_finished()
        }));
        handle.join().unwrap();
        assert_eq!(
            interrupt(i32::MAX).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
    }

    #[test]
    fn demote_leaves_a_thread_only_idle_time() {
        let (end, ended) = mpsc::channel::<()>();
        let (tid, handle) = start("demoted", move || ended.recv().unwrap());
        demote(tid).unwrap();
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { libc::sched_getscheduler(tid) }, libc::SCHED_IDLE);
        // SAFETY: as above.
        assert_ne!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_IDLE);
        end.send(()).unwrap();
        handle.join().unwrap();
    }

    #[test]
    fn the_wait_channel_names_thread_and_call() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (tid, handle) = start("blocked-in-read", move || {
            let _ = reader.read(&mut [0]);
        });
        let mut line = String::new();
        // A read on a socket is recvfrom in std.
        let asleep = within(LONG, || {
            line = wait_channel(tid);
            line.contains("recvfrom (")
                || line.contains("read (")
                || line.contains("syscall unreadable")
        });
        assert!(asleep, "{line}");
        assert!(line.contains("\"blocked-in-read\""), "{line}");
        assert!(line.contains("state S"), "{line}");
        assert!(!line.contains('\n'), "{line}");
        drop(writer);
        handle.join().unwrap();
        let gone = wait_channel(i32::MAX);
        assert!(gone.contains("status unreadable"), "{gone}");
    }

    /// Whether `name` is in the stack. A stripped program has no names; then that there is a stack has to do.
    fn has(stack: &str, name: &str) -> bool {
        let mut stripped = true;
        backtrace::resolve(another_frame_with_a_name as *mut _, |symbol| {
            stripped &= symbol.name().is_none()
        });
        if stripped {
            stack.lines().count() > 1
        } else {
            stack.contains(name)
        }
    }

    #[inline(never)]
    fn a_frame_with_a_name_to_be_found(stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    }

    #[inline(never)]
    fn another_frame_with_a_name(reader: &mut UnixStream) {
        let _ = std::hint::black_box(reader.read_exact(&mut [0]));
    }

    /// One test, because there is one capture at a time in a process, and a silent thread makes others wait.
    #[test]
    fn stacks_of_spinning_blocked_and_silent_threads() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let (tid, spinning) = start("spins", || a_frame_with_a_name_to_be_found(&STOP));
        // The signal may come before the thread is in the function.
        let mut stack = String::new();
        assert!(
            within(LONG, || {
                stack = capture_stack(tid, LONG).expect("a running thread answers");
                has(&stack, "a_frame_with_a_name_to_be_found")
            }),
            "{stack}"
        );
        assert!(
            !stack.contains("thread::collect"),
            "the handler's own frames are left out: {stack}"
        );
        assert!(has(&stack, "thread.rs:"), "{stack}");

        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (tid, blocked) = start("blocks", move || another_frame_with_a_name(&mut reader));
        assert!(
            within(LONG, || {
                stack = capture_stack(tid, LONG).expect("a blocked thread answers");
                has(&stack, "another_frame_with_a_name")
            }),
            "{stack}"
        );
        drop(writer);
        blocked.join().unwrap();

        let (end, ended) = mpsc::channel::<()>();
        let (tid, silent) = start("silent", move || {
            let every: Vec<i32> = (libc::SIGRTMIN()..=libc::SIGRTMAX()).collect();
            process::block_signals(&every).unwrap();
            let _ = ended.recv();
        });
        // It may answer until its signals are blocked.
        assert!(within(LONG, || capture_stack(
            tid,
            Duration::from_millis(20)
        )
        .is_none()));
        end.send(()).unwrap();
        silent.join().unwrap();
        assert_eq!(capture_stack(tid, LONG), None, "a thread that has ended");
        // One that did not answer is no obstacle to the next, here the caller itself.
        stack = capture_stack(id(), LONG).unwrap();
        assert!(has(&stack, "stacks_of_spinning"), "{stack}");
        STOP.store(true, Ordering::Relaxed);
        spinning.join().unwrap();
    }
}
