//! The one function that forks, and what a child does before it runs anything else.

use crate::pidfd::Pidfd;
use crate::premain::title;
use crate::process;
use crate::retry::checked;
use crate::signal::Action;
use crate::surroundings::{self, Attribute, Variable};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};

/// The exit code of a child whose code panicked out of its main function (`EX_SOFTWARE`).
pub const EXIT_PANIC: i32 = 70;

/// The exit code of a child in which a step of the prelude failed (`EX_OSERR`). It has written nothing and run nothing of `child`.
pub const EXIT_PRELUDE: i32 = 71;

/// The exit code of a copy, by `fork`, of a process with a running tree that goes on as if it were the original.
pub const EXIT_COPY: i32 = 72;

/// What is to be different in the child. By default nothing, with this process as the parent.
#[derive(Debug)]
pub struct Prelude {
    /// The forking process's id, as the child shall see it: [`process::id`] before the fork.
    pub expected_parent: i32,
    /// Descriptors that stay open, besides 0, 1 and 2.
    pub keep: Vec<RawFd>,
    /// The [end](crate::lifeline::Lifeline::end) of the lifeline to which the child is tied.
    pub lifeline: Option<RawFd>,
    /// The [door](crate::cgroup::Cgroup::door) of the control group that the child enters.
    pub cgroup: Option<OwnedFd>,
    /// What the child is given of its own.
    pub outfit: Outfit,
    /// Whether the child sets every signal to its default action. Without it, it has the actions of this process, which must have no handler
    /// then, and saves some sixty system calls.
    pub reset_signals: bool,
    /// Whether the child leads a process group of its own, so that the terminal's signals do not reach it.
    pub new_session_group: bool,
}

/// What a child is given of its own, at the fork or, in one that was forked before anybody wanted it, later. By default nothing.
#[derive(Debug, Default)]
pub struct Outfit {
    /// Shown by `ps`: whole in its arguments (cut to 64 bytes, in children of a forkserver), the first 15 bytes as the command's name. Empty
    /// leaves it.
    pub name: String,
    /// The file mode creation mask.
    pub umask: Option<u32>,
    /// Resource limits, soft and hard. [`Limit::Core`] is (0, 0) unless it is listed.
    pub limits: Vec<(Limit, u64, u64)>,
    /// The working directory.
    pub cwd: Option<OwnedFd>,
    /// What takes the place of descriptors 0, 1 and 2.
    pub stdio: [Option<OwnedFd>; 3],
    /// What differs from [what we have](crate::surroundings); `umask` and `limits` go before it.
    pub attributes: Vec<Attribute>,
    /// The same of the environment.
    pub variables: Vec<Variable>,
}

impl Default for Prelude {
    fn default() -> Self {
        Self {
            expected_parent: process::id(),
            keep: Vec::new(),
            lifeline: None,
            cgroup: None,
            outfit: Outfit::default(),
            reset_signals: true,
            new_session_group: false,
        }
    }
}

impl Outfit {
    /// Whether it sets the limits of open descriptors.
    pub fn limits_open_files(&self) -> bool {
        let limited = |(limit, ..): &(Limit, u64, u64)| *limit == Limit::OpenFiles;
        self.limits.iter().any(limited) || surroundings::limits_open_files(&self.attributes)
    }

    /// Whether it can be put on, as far as that can be known before. The child inherits our limits.
    ///
    /// # Errors
    /// When a limit cannot be had (`InvalidInput`, `PermissionDenied`) or `name` holds a NUL (`InvalidInput`).
    pub fn check(&self) -> io::Result<()> {
        CString::new(self.name.as_str())?;
        checked_limits(&self.limits).map(drop)
    }

    /// Puts it on, in a child that was forked without: steps 4, 5 and 7 to 10 of [`fork_child`]. Such a child has one thread and has done nothing
    /// yet.
    ///
    /// # Errors
    /// Of the step that failed. The child is then neither one thing nor the other and has to end, by [`exit_at_once`] with
    /// [`EXIT_PRELUDE`].
    pub fn put_on(self, expected_parent: i32) -> Result<(), FailedStep> {
        let Prepared {
            prelude,
            name,
            limits,
        } = Prepared::new(Prelude {
            expected_parent,
            outfit: self,
            ..Prelude::default()
        })
        .map_err(at("name or resource limits"))?;
        let Outfit {
            umask,
            cwd,
            stdio,
            attributes,
            variables,
            ..
        } = prelude.outfit;
        // The sources are descriptors above the standard ones, which were open at the fork: nothing is lost by closing them.
        replace_stdio(&stdio).map_err(at("standard descriptors"))?;
        drop(stdio);
        change_directory(cwd).map_err(at("working directory"))?;
        take_name(&name).map_err(at("name"))?;
        surroundings::put_on_variables(variables).map_err(at("environment"))?;
        surroundings::put_on(&attributes).map_err(at("limits of the spawning process"))?;
        restrict(umask, limits).map_err(at("resource limits"))?;
        process::die_with_parent(expected_parent).map_err(at("parent"))
    }
}

/// A resource that can be limited. Units are those of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// Bytes of address space.
    AddressSpace,
    /// Bytes of a core dump.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of heap and writable private mappings.
    Data,
    /// Bytes of a file that is written.
    FileSize,
    /// Bytes of locked memory.
    LockedMemory,
    /// The highest descriptor number, plus one.
    OpenFiles,
    /// Processes and threads of the user.
    Processes,
    /// Bytes of the main thread's stack, and of other threads' by default.
    Stack,
}

/// Forks this process, which must have one thread. The parent gets the child's id and pidfd; the child never returns from this call.
///
/// `child` may allocate, print, start threads and do anything else, because nothing was going on in this process at the fork. It ends the process
/// itself, by [`exit_now`]; a panic in it ends the process with code 70. Neither unwinds into the caller's frames, whose objects exist in the
/// child, too, but are never dropped there.
///
/// The parent owns the child: it has to reap it.
///
/// # Descriptors
/// All but 0, 1, 2 and `keep` are closed in the child. So `child` may own or borrow only those in `keep`; the numbers of all others, in whatever
/// object of the caller's, will come to mean something else there.
///
/// # What the child does first
/// 1. It asks for SIGKILL at the end of its parent, and checks that the parent is still `expected_parent`. If there is a `lifeline`, it ties
///    itself to that, too, as far as that can be had: by then a change of credentials does not undo it.
/// 2. It enters `cgroup`, and becomes the leader of its own process group, if `new_session_group`.
/// 3. It [resets the actions of all signals](reset_signal_actions), if `reset_signals`. (All signals are blocked from
///    before the fork, so that no handler of the parent's runs in the child.) Then it unblocks all.
/// 4. It puts the outfit's `stdio` in place.
/// 5. It changes to `cwd`.
/// 6. It closes all descriptors but those to be kept.
/// 7. It takes its name.
/// 8. It takes the outfit's attributes and variables, then its umask.
/// 9. It sets its limits, no core dumps by default.
/// 10. It repeats step 1, which any change of credentials in between would have undone.
///
/// If a step fails, the child ends with code 71 and has written nothing; [`fork_child_told`] lets it say why.
///
/// # Errors
/// When this process has other threads, the outfit [cannot be had](Outfit::check), or the system is out of processes, memory or descriptors. No child exists then.
pub fn fork_child(
    prelude: Prelude,
    child: impl FnOnce() -> Infallible,
) -> io::Result<(i32, Pidfd)> {
    fork_child_told(prelude, |prelude| match prelude {
        Ok(()) => child(),
        Err(_) => exit_at_once(EXIT_PRELUDE),
    })
}

/// A step of the prelude that failed.
#[derive(Debug)]
pub struct FailedStep {
    /// What it was about, in a few words: `working directory`.
    pub step: &'static str,
    /// What the system said.
    pub error: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> FailedStep {
    move |error| FailedStep {
        step,
        error: error.into(),
    }
}

/// As [`fork_child`], but `child` is also called if a step of the prelude failed, to tell somebody why. It then is whatever the steps before that
/// one have made of it (other descriptors may be open, and it has the parent's limits), and has to end.
///
/// # Errors
/// As of [`fork_child`].
pub fn fork_child_told(
    prelude: Prelude,
    child: impl FnOnce(Result<(), FailedStep>) -> Infallible,
) -> io::Result<(i32, Pidfd)> {
    if !process::is_single_threaded()? {
        return Err(io::Error::other(
            "this process has other threads, whose locks a child would find held for ever",
        ));
    }
    let prelude = Prepared::new(prelude)?;
    // What is in std's buffer would be written twice.
    let _ = io::stdout().flush();
    let mask = block_all_signals();
    // SAFETY: there is one thread, checked above, and all that it holds is on its own stack. No handler runs in between.
    match unsafe { libc::fork() } {
        0 => {
            // Whatever happens, the frames above this one belong to the parent.
            let _ = catch_unwind(AssertUnwindSafe(|| child(prelude.run())));
            exit_at_once(EXIT_PANIC)
        }
        pid => {
            let pid = checked(pid);
            restore_signals(&mask);
            own(pid?)
        }
    }
}

/// Ends this process now: no destructor, no `atexit`. What std holds of the standard output and C of all its output streams is written first,
/// within [`LAST_OUTPUT`]: a reader that does not read, or a thread that was abandoned with the lock of a stream, does not hold the end up.
pub fn exit_now(code: i32) -> ! {
    LAST_CODE.store(code, Ordering::Relaxed);
    // Without a bound if that fails, which it cannot: the signal and the time are right.
    if Action::handler(give_up, 0).install(libc::SIGALRM).is_ok() {
        // SAFETY: an all-zero sigset is valid and made proper by sigemptyset; an all-zero time is valid; the pointers are to live values.
        unsafe {
            let mut alarm: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut alarm);
            libc::sigaddset(&mut alarm, libc::SIGALRM);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &alarm, std::ptr::null_mut());
            let mut bound: libc::itimerval = std::mem::zeroed();
            bound.it_value.tv_sec = LAST_OUTPUT;
            libc::setitimer(libc::ITIMER_REAL, &bound, std::ptr::null_mut());
        }
    }
    let _ = io::stdout().flush();
    // SAFETY: null stands for all output streams.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    exit_at_once(code)
}

/// How long the last output of a process may take, in seconds.
pub const LAST_OUTPUT: libc::time_t = 2;

static LAST_CODE: AtomicI32 = AtomicI32::new(0);

extern "C" fn give_up(_signal: i32) {
    exit_at_once(LAST_CODE.load(Ordering::Relaxed))
}

/// As [`exit_now`], writing nothing, so that it cannot block.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: takes no pointer; ends every thread of this process.
    unsafe { libc::_exit(code) }
}

/// The prelude with all that can be refused or has to be allocated before the fork.
struct Prepared {
    prelude: Prelude,
    name: CString,
    limits: Vec<(Resource, u64, u64)>,
}

impl Prepared {
    fn new(prelude: Prelude) -> io::Result<Self> {
        let name = CString::new(prelude.outfit.name.as_str())?;
        let limits = checked_limits(&prelude.outfit.limits)?;
        Ok(Self {
            prelude,
            name,
            limits,
        })
    }

    /// The steps of [`fork_child`], by number.
    fn run(self) -> Result<(), FailedStep> {
        let Self {
            prelude,
            name,
            limits,
        } = self;
        let Outfit {
            umask,
            cwd,
            stdio,
            attributes,
            variables,
            ..
        } = prelude.outfit;
        process::die_with_parent(prelude.expected_parent).map_err(at("parent"))?; // 1
        // Without it there is the parent's death signal.
        let tie = prelude.lifeline.map(crate::lifeline::tie); // 1
        let tie = tie.and_then(Result::ok).map(OwnedFd::into_raw_fd);
        if let Some(door) = &prelude.cgroup {
            crate::cgroup::enter(door).map_err(at("control group"))?; // 2
        }
        // Closed by step 6.
        std::mem::forget(prelude.cgroup);
        if prelude.new_session_group {
            // SAFETY: takes no pointer.
            checked(unsafe { libc::setpgid(0, 0) }).map_err(at("process group"))?; // 2
        }
        if prelude.reset_signals {
            reset_signal_actions().map_err(at("signals"))?; // 3
        }
        unblock_signals();
        replace_stdio(&stdio).map_err(at("standard descriptors"))?; // 4
        // Not closed here: one of them may be a standard descriptor that stays as it is. The others go with step 6.
        std::mem::forget(stdio);
        change_directory(cwd).map_err(at("working directory"))?; // 5
        let keep: Vec<RawFd> = prelude.keep.into_iter().chain(tie).chain(0..=2).collect();
        // SAFETY: the objects of the caller's that own other descriptors are never used or dropped in this process; that `child` has none of
        // them is the documented contract. Those of `stdio` were forgotten, that of `cwd` was closed.
        unsafe { process::close_all_but(&keep) }.map_err(at("descriptors"))?; // 6
        take_name(&name).map_err(at("name"))?; // 7
        surroundings::put_on_variables(variables).map_err(at("environment"))?; // 8
        surroundings::put_on(&attributes).map_err(at("limits of the spawning process"))?; // 8
        restrict(umask, limits).map_err(at("resource limits"))?; // 8, 9
        process::die_with_parent(prelude.expected_parent).map_err(at("parent")) // 10
    }
}

/// The limits as the kernel wants them, with what is always limited.
fn checked_limits(wanted: &[(Limit, u64, u64)]) -> io::Result<Vec<(Resource, u64, u64)>> {
    let mut limits = vec![(Resource::RLIMIT_CORE, 0, 0)];
    // SAFETY: no arguments, cannot fail.
    let privileged = unsafe { libc::geteuid() } == 0;
    for &(limit, soft, hard) in wanted {
        let resource = limit.resource();
        let refused = |kind, why: &str| {
            Err(io::Error::new(
                kind,
                format!("the limit {limit:?} of {soft} and {hard}: {why}"),
            ))
        };
        if soft > hard {
            return refused(
                io::ErrorKind::InvalidInput,
                "the soft limit is above the hard one",
            );
        }
        if hard > getrlimit(resource)?.1 && !privileged {
            return refused(
                io::ErrorKind::PermissionDenied,
                "the hard limit is above ours",
            );
        }
        limits.push((resource, soft, hard));
    }
    Ok(limits)
}

fn change_directory(directory: Option<OwnedFd>) -> io::Result<()> {
    match directory {
        Some(directory) => Ok(nix::unistd::fchdir(&directory)?),
        None => Ok(()),
    }
}

fn take_name(name: &CString) -> io::Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    title::set(name.as_bytes());
    // SAFETY: the name is NUL-terminated; the kernel reads at most 16 bytes.
    checked(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }).map(drop)
}

fn restrict(umask: Option<u32>, limits: Vec<(Resource, u64, u64)>) -> io::Result<()> {
    if let Some(mask) = umask {
        // SAFETY: takes no pointer, cannot fail.
        unsafe { libc::umask(mask as libc::mode_t) };
    }
    for (resource, soft, hard) in limits {
        setrlimit(resource, soft, hard)?;
    }
    Ok(())
}

impl Limit {
    fn resource(self) -> Resource {
        match self {
            Self::AddressSpace => Resource::RLIMIT_AS,
            Self::Core => Resource::RLIMIT_CORE,
            Self::Cpu => Resource::RLIMIT_CPU,
            Self::Data => Resource::RLIMIT_DATA,
            Self::FileSize => Resource::RLIMIT_FSIZE,
            Self::LockedMemory => Resource::RLIMIT_MEMLOCK,
            Self::OpenFiles => Resource::RLIMIT_NOFILE,
            Self::Processes => Resource::RLIMIT_NPROC,
            Self::Stack => Resource::RLIMIT_STACK,
        }
    }
}

fn own(pid: i32) -> io::Result<(i32, Pidfd)> {
    Pidfd::open(pid).map(|pidfd| (pid, pidfd)).inspect_err(|_| {
        // A child that could not be waited for or killed safely is none. It is ours and not reaped, so that the pid is still its own.
        // SAFETY: take no pointer but null.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    })
}

/// Blocks every signal; the mask before.
fn block_all_signals() -> libc::sigset_t {
    // SAFETY: an all-zero sigset is valid; the pointers are to live sets.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the pointer is to a live set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Sets every signal to its default action, but SIGPIPE, which is ignored as in every Rust program; those of [`STAY_IGNORED`] if they are; and
/// SIGTTIN and SIGTTOU.
///
/// These two would stop for ever what is in a process group that no shell knows of, as soon as it touches the terminal. Ignored, a read of the
/// terminal is an error (EIO), and a write goes through.
///
/// A process that forks often and has no handlers does so once, for its children.
pub fn reset_signal_actions() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        let is_ignored = || Action::current(signal).is_ok_and(Action::is_ignored);
        if STAY_IGNORED.contains(&signal) && is_ignored() {
            continue;
        }
        // SIGKILL, SIGSTOP and the two that glibc keeps for itself refuse, and are as they should be.
        let _ = Action::default_action().install(signal);
    }
    for signal in [libc::SIGPIPE, libc::SIGTTIN, libc::SIGTTOU] {
        Action::ignore().install(signal)?;
    }
    Ok(())
}

/// Signals that a program is started with as ignored (by `nohup`, for a job in the background) and that stay so for all of its processes.
pub const STAY_IGNORED: [i32; 5] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGTSTP,
];

fn unblock_signals() {
    // SAFETY: an all-zero sigset is valid and made empty.
    restore_signals(&unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        none
    });
}

fn replace_stdio(stdio: &[Option<OwnedFd>; 3]) -> io::Result<()> {
    // Moved up first: a source that is itself one of the three could be overwritten before its turn.
    let mut sources = [None, None, None];
    for (source, moved) in stdio.iter().zip(&mut sources) {
        if let Some(source) = source {
            // SAFETY: takes no pointer.
            let fd = checked(unsafe { libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) })?;
            // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
            *moved = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    for (source, target) in sources.iter().zip(0..) {
        if let Some(source) = source {
            // SAFETY: takes no pointer. The three standard descriptors belong to the process, and not to an object.
            checked(unsafe { libc::dup2(source.as_raw_fd(), target) })?;
        }
    }
    Ok(())
}
