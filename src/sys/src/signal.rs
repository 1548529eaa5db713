//! Signals for a program: SIGINT and the like as something that an event loop can wait for, and their names.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use libc::{
    SIGABRT, SIGALRM, SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGPIPE,
    SIGQUIT, SIGSEGV, SIGSTOP, SIGSYS, SIGTERM, SIGTRAP, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1,
    SIGUSR2, SIGXCPU, SIGXFSZ,
};

use crate::retry::checked;

/// Signals that are counted instead of doing what they would, for as long as this lives. The old handlers come back when it is dropped.
///
/// There is one at a time in a process, because a signal has one handler in a process.
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    /// Kept open for the handler, which knows its number only.
    _write: UnixStream,
    old: Vec<(i32, Action)>,
}

/// What the handler counts, by signal number.
static COUNTS: [AtomicU32; SIGNAL_MAX + 1] = [const { AtomicU32::new(0) }; SIGNAL_MAX + 1];
/// Where the handler writes; -1 when nothing is installed.
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// How many handlers are running.
static RUNNING: AtomicU32 = AtomicU32::new(0);
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// The highest signal number of any Unix.
const SIGNAL_MAX: usize = 128;

impl Signals {
    /// Installs handlers for these signals. System calls that they interrupt go on (`SA_RESTART`). A signal that is ignored stays ignored and is not
    /// counted: `nohup`, or the shell that starts a job in the background, has set that for this program.
    ///
    /// # Errors
    /// `ResourceBusy` when another `Signals` lives, `InvalidInput` for a signal that cannot be handled. Nothing is changed then.
    pub fn install(signals: &[i32]) -> io::Result<Self> {
        if INSTALLED.swap(true, Ordering::AcqRel) {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "this process has installed its signal handlers already",
            ));
        }
        let (wake, write) =
            socket_pair().inspect_err(|_| INSTALLED.store(false, Ordering::Release))?;
        for count in &COUNTS {
            count.store(0, Ordering::Relaxed);
        }
        WAKE.store(write.as_raw_fd(), Ordering::SeqCst);
        // From here on an error drops this, which puts back what was installed before it.
        let mut installed = Self {
            wake,
            _write: write,
            old: Vec::with_capacity(signals.len()),
        };
        for &signal in signals {
            if !(1..=SIGNAL_MAX as i32).contains(&signal) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{signal} is no signal"),
                ));
            }
            if Action::current(signal)?.is_ignored() {
                continue;
            }
            let old = Action::handler(count, libc::SA_RESTART).install(signal)?;
            installed.old.push((signal, old));
        }
        Ok(installed)
    }

    /// Readable once a signal has arrived, until [`drain`](Self::drain).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// The signals that arrived since the last call, each as often as it was delivered, by ascending number. Never blocks.
    pub fn drain(&self) -> Vec<i32> {
        // The descriptor before the counts: a signal between the two makes it readable again.
        let mut bytes = [0; 64];
        while matches!((&self.wake).read(&mut bytes), Ok(1..)) {}
        let mut arrived = Vec::new();
        for (signal, count) in COUNTS.iter().enumerate() {
            arrived.extend(std::iter::repeat_n(
                signal as i32,
                count.swap(0, Ordering::Relaxed) as usize,
            ));
        }
        arrived
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, old) in self.old.drain(..).rev() {
            // It was accepted for this signal before.
            let _ = old.install(signal);
        }
        WAKE.store(-1, Ordering::SeqCst);
        // A handler on another thread may have read the number before. It never blocks; the bound is for a thread that is stopped, whose
        // byte then goes to whatever has that number.
        let start = Instant::now();
        while RUNNING.load(Ordering::SeqCst) != 0 && start.elapsed() < Duration::from_secs(1) {
            std::thread::yield_now();
        }
        INSTALLED.store(false, Ordering::Release);
    }
}

/// Blocks SIGCHLD in this thread, and gives a descriptor that is readable while one is pending; [`drain_child_signals`] takes it.
///
/// For a process whose only thread this is: another one would take the signal.
#[cfg(target_os = "linux")]
pub fn child_signals() -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    crate::process::block_signals(&[SIGCHLD])?;
    // SAFETY: an all-zero sigset is valid, and made proper by sigemptyset; the pointer is to it.
    let fd = checked(unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGCHLD);
        libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
    })?;
    // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
    crate::standard::above(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// Takes what is pending of [`child_signals`]. Several ends may have made one signal.
#[cfg(target_os = "linux")]
pub fn drain_child_signals(fd: BorrowedFd<'_>) {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    // SAFETY: the buffer is live, writable and as long as said.
    while unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) } > 0 {}
}

/// A name for humans: `SIGSEGV`, `SIGRTMIN+3`, `signal 99`.
pub fn name(signal: i32) -> String {
    // nix knows each name of the target; it does not know the real-time signals, which have numbers only.
    if let Ok(known) = nix::sys::signal::Signal::try_from(signal) {
        return known.as_str().to_string();
    }
    #[cfg(target_os = "linux")]
    if (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal) {
        return format!("SIGRTMIN+{}", signal - libc::SIGRTMIN());
    }
    format!("signal {signal}")
}

/// What a process does on a signal.
#[derive(Clone, Copy)]
pub(crate) struct Action(libc::sigaction);

impl std::fmt::Debug for Action {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Action({:#x})", self.0.sa_sigaction)
    }
}

impl Action {
    #[cfg(target_os = "linux")]
    pub(crate) fn default_action() -> Self {
        Self::new(libc::SIG_DFL, 0)
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn ignore() -> Self {
        Self::new(libc::SIG_IGN, 0)
    }

    /// `handler` may do only what is safe in a signal handler.
    pub(crate) fn handler(handler: extern "C" fn(i32), flags: i32) -> Self {
        Self::new(handler as *const () as libc::sighandler_t, flags)
    }

    /// As [`handler`](Self::handler), for one that looks at the interrupted context.
    #[cfg(target_os = "linux")]
    pub(crate) fn handler_with_context(
        handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void),
        flags: i32,
    ) -> Self {
        Self::new(
            handler as *const () as libc::sighandler_t,
            flags | libc::SA_SIGINFO,
        )
    }

    fn new(handler: libc::sighandler_t, flags: i32) -> Self {
        // SAFETY: an all-zero sigaction is a valid value of that plain C structure: the default action, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler;
        // On the alternate stack, if the thread has one: the signal may come while the stack is nearly used up.
        action.sa_flags = flags | libc::SA_ONSTACK;
        Self(action)
    }

    /// Makes it the action of `signal`; the one before.
    pub(crate) fn install(self, signal: i32) -> io::Result<Self> {
        let mut old = MaybeUninit::uninit();
        // SAFETY: both pointers are valid; the handlers that `self` can hold come from the functions above, which take none that is not
        // safe to run in a handler, or from the kernel itself as an earlier action.
        unsafe {
            checked(libc::sigaction(signal, &self.0, old.as_mut_ptr()))?;
            Ok(Self(old.assume_init()))
        }
    }

    /// The action of `signal` now.
    pub(crate) fn current(signal: i32) -> io::Result<Self> {
        let mut now = MaybeUninit::uninit();
        // SAFETY: a null action changes nothing; `now` is writable and initialised on success.
        unsafe {
            checked(libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()))?;
            Ok(Self(now.assume_init()))
        }
    }

    pub(crate) fn is_ignored(self) -> bool {
        self.0.sa_sigaction == libc::SIG_IGN
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn is_default(self) -> bool {
        self.0.sa_sigaction == libc::SIG_DFL
    }

    /// Whether both run the same function.
    #[cfg(target_os = "linux")]
    pub(crate) fn same_handler(self, other: Self) -> bool {
        self.0.sa_sigaction == other.0.sa_sigaction
    }
}

/// Signals that a call of this thread may raise against it (SIGPIPE, SIGXFSZ) and that stay without consequence: blocked while this lives,
/// and taken back if they have come. The call then gives its error; what the program does on these signals is not touched.
#[derive(Debug)]
pub struct Held {
    signals: libc::sigset_t,
    before: libc::sigset_t,
    /// Which were pending already, and are somebody else's.
    pending: libc::sigset_t,
    /// A mask is the thread's own.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Held {
    /// Blocks `signals` in this thread.
    pub fn new(signals: &[i32]) -> Self {
        // SAFETY: all-zero sets are valid and made proper by sigemptyset; the pointers are to live sets.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            let mut pending: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for &signal in signals {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigemptyset(&mut pending);
            libc::sigpending(&mut pending);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            Self {
                signals: set,
                before,
                pending,
                _not_send: std::marker::PhantomData,
            }
        }
    }
}

/// Takes what is pending of `set`, without waiting.
#[cfg(target_os = "linux")]
fn take_pending(set: &libc::sigset_t) {
    let at_once = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointers are to a live set and a live time; null asks for no details.
    unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &at_once) };
}

#[cfg(not(target_os = "linux"))]
fn take_pending(set: &libc::sigset_t) {
    let mut taken = 0;
    // SAFETY: the pointers are live. It is pending for this thread, so that this returns at once.
    unsafe { libc::sigwait(set, &mut taken) };
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: all-zero sets are valid and made proper by sigemptyset; the pointers are to live sets.
        unsafe {
            let mut now: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut now);
            libc::sigpending(&mut now);
            for signal in 1..=SIGUSR2.max(SIGXFSZ).max(SIGPIPE) {
                let is_new = libc::sigismember(&self.signals, signal) == 1
                    && libc::sigismember(&now, signal) == 1
                    && libc::sigismember(&self.pending, signal) != 1;
                if is_new {
                    let mut one: libc::sigset_t = std::mem::zeroed();
                    libc::sigemptyset(&mut one);
                    libc::sigaddset(&mut one, signal);
                    take_pending(&one);
                }
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}

fn socket_pair() -> io::Result<(UnixStream, UnixStream)> {
    #[cfg(target_os = "linux")]
    let (wake, write) = crate::standard::make_above(UnixStream::pair)?;
    #[cfg(not(target_os = "linux"))]
    let (wake, write) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    Ok((wake, write))
}

/// Only atomics and `write`, both safe in a handler. errno is what the interrupted code may be about to read, so that it is put back.
extern "C" fn count(signal: i32) {
    RUNNING.fetch_add(1, Ordering::SeqCst);
    COUNTS[signal as usize].fetch_add(1, Ordering::Relaxed);
    let wake = WAKE.load(Ordering::SeqCst);
    if wake != -1 {
        let errno = errno();
        // SAFETY: errno is this thread's own; the buffer is one live byte. A full socket is readable, so that a failure is no loss.
        unsafe {
            let before = *errno;
            libc::write(wake, b"s".as_ptr().cast(), 1);
            *errno = before;
        }
    }
    RUNNING.fetch_sub(1, Ordering::SeqCst);
}

fn errno() -> *mut i32 {
    // SAFETY: no arguments; the pointer is valid as long as the thread lives.
    #[cfg(target_os = "linux")]
    return unsafe { libc::__errno_location() };
    // SAFETY: as above.
    #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
    return unsafe { libc::__error() };
    // SAFETY: as above.
    #[cfg(any(target_os = "netbsd", target_os = "openbsd", target_os = "android"))]
    return unsafe { libc::__errno() };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(signal: i32) {
        // SAFETY: takes no pointer. Sent to the process, so that any of the test threads may run the handler.
        assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
    }

    fn handler_of(signal: i32) -> libc::sighandler_t {
        Action::current(signal).unwrap().0.sa_sigaction
    }

    /// One test, because there is one `Signals` in a process.
    #[test]
    fn counts_while_it_lives_and_puts_everything_back() {
        let before = handler_of(SIGUSR1);
        assert_eq!(before, libc::SIG_DFL);
        // `nohup cargo test` ignores it.
        let hangup = handler_of(SIGHUP);

        let signals = Signals::install(&[SIGUSR1, SIGUSR2]).unwrap();
        assert_eq!(
            Signals::install(&[SIGHUP]).unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        assert_eq!(handler_of(SIGHUP), hangup);
        assert_eq!(signals.drain(), []);

        let mut arrived = Vec::new();
        for signal in [SIGUSR2, SIGUSR1, SIGUSR2] {
            raise(signal);
            // A second one while the first is pending would be merged by the kernel.
            let so_far = arrived.len();
            while arrived.len() == so_far {
                assert!(
                    crate::poll::wait(&[signals.fd()], Some(Duration::from_secs(20))).unwrap()[0]
                );
                arrived.extend(signals.drain());
            }
        }
        assert_eq!(arrived, [SIGUSR2, SIGUSR1, SIGUSR2]);
        assert_eq!(signals.drain(), []);
        assert_eq!(
            crate::poll::wait(&[signals.fd()], Some(Duration::ZERO)).unwrap(),
            [false]
        );
        drop(signals);
        assert_eq!(handler_of(SIGUSR1), before);

        // A list with a bad one in it changes nothing, and does not block the next.
        for bad in [SIGKILL, 0, -1, 1000] {
            assert_eq!(
                Signals::install(&[SIGUSR1, bad]).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(handler_of(SIGUSR1), before);
        }
        drop(Signals::install(&[SIGUSR1]).unwrap());

        // What is ignored stays so, beside others that are counted.
        Action::ignore().install(SIGUSR1).unwrap();
        let signals = Signals::install(&[SIGUSR1, SIGUSR2]).unwrap();
        assert_eq!(handler_of(SIGUSR1), libc::SIG_IGN);
        raise(SIGUSR1);
        raise(SIGUSR2);
        assert!(crate::poll::wait(&[signals.fd()], Some(Duration::from_secs(20))).unwrap()[0]);
        assert_eq!(signals.drain(), [SIGUSR2]);
        drop(signals);
        assert_eq!(handler_of(SIGUSR1), libc::SIG_IGN);
        Action::default_action().install(SIGUSR1).unwrap();
    }

    #[test]
    fn held_signals_leave_nothing_behind() {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let before = Action::current(SIGPIPE).unwrap();
        Action::default_action().install(SIGPIPE).unwrap();
        {
            let _held = Held::new(&[SIGPIPE, SIGXFSZ]);
            let error = std::io::Write::write(&mut &write, b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        // It would have ended this process.
        before.install(SIGPIPE).unwrap();
    }

    #[test]
    fn names() {
        assert_eq!(name(SIGSEGV), "SIGSEGV");
        assert_eq!(name(SIGKILL), "SIGKILL");
        assert_eq!(name(0), "signal 0");
        assert_eq!(name(200), "signal 200");
        #[cfg(target_os = "linux")]
        assert_eq!(name(libc::SIGRTMIN() + 3), "SIGRTMIN+3");
    }
}
