//! What a process has of its surroundings beside its descriptors and its rights: directory, umask, environment, limits, and how its threads are
//! scheduled.
//!
//! What is forked has what the forking process has. A forkserver forks for others, which have changed since it was started: [`Surroundings::now`] is
//! asked at each spawn, and what differs from the forkserver's is put on by the child.

use crate::fork::STAY_IGNORED;
use crate::retry::checked;
use crate::signal::Action;
use crate::standard::above;
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// One attribute and its value.
pub type Attribute = (u8, u64);

/// A variable of the environment, set or removed.
pub type Variable = (OsString, Option<OsString>);

// The attributes by number.
const UMASK: usize = 0;
const IGNORED: usize = 1;
/// Soft and hard of each of [`RESOURCES`].
const LIMITS: usize = 2;
const THREAD: usize = LIMITS + 2 * RESOURCES.len();

/// All but that of core dumps, of which a process of a tree has none by default.
const RESOURCES: [libc::__rlimit_resource_t; 15] = [
    libc::RLIMIT_AS,
    libc::RLIMIT_CPU,
    libc::RLIMIT_DATA,
    libc::RLIMIT_FSIZE,
    libc::RLIMIT_LOCKS,
    libc::RLIMIT_MEMLOCK,
    libc::RLIMIT_MSGQUEUE,
    libc::RLIMIT_NICE,
    libc::RLIMIT_NOFILE,
    libc::RLIMIT_NPROC,
    libc::RLIMIT_RSS,
    libc::RLIMIT_RTPRIO,
    libc::RLIMIT_RTTIME,
    libc::RLIMIT_SIGPENDING,
    libc::RLIMIT_STACK,
];

// Of a thread.
const NICE: usize = 0;
const POLICY: usize = 1;
const PRIORITY: usize = 2;
const SLACK: usize = 3;
const BLOCKED: usize = 4;
const CORES: usize = 5;
const WORDS: usize = size_of::<libc::cpu_set_t>() / 8;

/// How a thread is scheduled, and which signals it blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfThread([u64; CORES + WORDS]);

impl OfThread {
    /// Of the calling thread. No error: what cannot be asked is as it is everywhere.
    pub fn now() -> Self {
        let mut words = [0; CORES + WORDS];
        // SAFETY: the pointers are to live values of the right types, all-zero ones are valid; the mask's words are as many as the set has.
        unsafe {
            words[NICE] = i64::from(libc::getpriority(libc::PRIO_PROCESS, 0)).cast_unsigned();
            let policy = libc::sched_getscheduler(0);
            words[POLICY] = i64::from(policy).cast_unsigned();
            if policy == libc::SCHED_FIFO || policy == libc::SCHED_RR {
                let mut parameters: libc::sched_param = std::mem::zeroed();
                libc::sched_getparam(0, &mut parameters);
                words[PRIORITY] = i64::from(parameters.sched_priority).cast_unsigned();
            }
            words[SLACK] = i64::from(libc::prctl(libc::PR_GET_TIMERSLACK)).cast_unsigned();
            let mut blocked: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut blocked);
            for signal in 1..=64 {
                if libc::sigismember(&blocked, signal) == 1 {
                    words[BLOCKED] |= 1 << (signal - 1);
                }
            }
            let cores = words[CORES..].as_mut_ptr().cast();
            libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), cores);
        }
        Self(words)
    }

    /// As words, of which the other side makes a value again.
    pub fn to_words(&self) -> Vec<u64> {
        self.0.to_vec()
    }

    /// From its words.
    pub fn from_words(words: &[u64]) -> Option<Self> {
        words.try_into().ok().map(Self)
    }

    /// Gives the calling thread what differs. What the kernel refuses (a thread that has made itself nicer cannot take that back) stays.
    pub fn put_on(&self) {
        let now = Self::now();
        let changed: Vec<Attribute> = differing(&now.0, &self.0).collect();
        put_on_thread(&changed);
    }

    /// As [`put_on`](Self::put_on), but for the signals that are blocked: for a process whose handling of signals is its own.
    pub fn put_on_scheduling(&self) {
        let now = Self::now();
        let mut wanted = *self;
        wanted.0[BLOCKED] = now.0[BLOCKED];
        wanted.put_on();
    }
}

/// Of the thread that makes it.
impl Default for OfThread {
    fn default() -> Self {
        Self::now()
    }
}

fn differing<'a>(of: &'a [u64], other: &'a [u64]) -> impl Iterator<Item = Attribute> + 'a {
    let pairs = of.iter().zip(other).zip(0..);
    pairs.filter_map(|((of, other), number)| (of != other).then_some((number, *other)))
}

fn put_on_thread(changed: &[Attribute]) {
    if changed.is_empty() {
        return;
    }
    let mut all = OfThread::now().0;
    let mut touched = [false; CORES + 1];
    for &(number, value) in changed {
        let number = usize::from(number);
        if number < all.len() {
            all[number] = value;
            touched[number.min(CORES)] = true;
        }
    }
    let number = |word: u64| i32::try_from(word.cast_signed()).unwrap_or(0);
    // SAFETY: the pointers are to live values of the right types, all-zero ones are valid. What is refused changes nothing.
    unsafe {
        if touched[CORES] {
            let cores = all[CORES..].as_ptr().cast();
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cores);
        }
        if touched[POLICY] || touched[PRIORITY] {
            let mut parameters: libc::sched_param = std::mem::zeroed();
            parameters.sched_priority = number(all[PRIORITY]);
            libc::sched_setscheduler(0, number(all[POLICY]), &parameters);
        }
        if touched[NICE] {
            libc::setpriority(libc::PRIO_PROCESS, 0, number(all[NICE]));
        }
        if touched[SLACK] {
            libc::prctl(libc::PR_SET_TIMERSLACK, all[SLACK]);
        }
        if touched[BLOCKED] {
            let mut blocked: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut blocked);
            for signal in 1..=64 {
                if all[BLOCKED] & 1 << (signal - 1) != 0 {
                    libc::sigaddset(&mut blocked, signal);
                }
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &blocked, std::ptr::null_mut());
        }
    }
}

/// What a process has, as the calling thread sees it.
#[derive(Clone, Debug)]
pub struct Surroundings {
    words: [u64; THREAD],
    thread: OfThread,
    /// Device and inode of the working directory; none if it cannot be looked at.
    directory: Option<(u64, u64)>,
    /// Shared, as each spawn is compared with the same.
    environment: Arc<BTreeMap<OsString, OsString>>,
}

/// What the processes have that are forked from here, before they put anything on.
static FORKED: Mutex<Option<Surroundings>> = Mutex::new(None);

impl Surroundings {
    /// Of this process and the calling thread, now.
    ///
    /// # Errors
    /// When neither /dev/shm nor /proc tells the umask.
    pub fn now() -> io::Result<Self> {
        let mut words = [0; THREAD];
        words[UMASK] = u64::from(umask()?);
        for signal in STAY_IGNORED {
            if Action::current(signal).is_ok_and(Action::is_ignored) {
                words[IGNORED] |= 1 << (signal - 1);
            }
        }
        for (at, resource) in RESOURCES.into_iter().enumerate() {
            let limit = limit(resource);
            words[LIMITS + 2 * at] = limit.rlim_cur;
            words[LIMITS + 2 * at + 1] = limit.rlim_max;
        }
        Ok(Self {
            words,
            thread: OfThread::now(),
            directory: directory(),
            environment: Arc::new(
                std::env::vars_os()
                    .filter(|(name, _)| is_shared(name))
                    .collect(),
            ),
        })
    }

    /// With what the calling thread has now, as a child has it that is forked here: it blocks no signal.
    pub fn of_children(mut self) -> Self {
        self.thread = OfThread::now();
        self.thread.0[BLOCKED] = 0;
        self
    }

    /// Says that this is what the children of this process have.
    pub fn set_forked(self) {
        *FORKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(self);
    }

    /// What the children of the process have that this one was forked from, or of this one; `None` where that is not known.
    pub fn forked() -> Option<Self> {
        FORKED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What a child that has what `other` has is to put on to have what `self` has.
    pub fn beside(&self, other: &Self) -> Vec<Attribute> {
        let thread = differing(&other.thread.0, &self.thread.0);
        let thread = thread.filter_map(|(number, value)| {
            Some((number.checked_add(u8::try_from(THREAD).ok()?)?, value))
        });
        differing(&other.words, &self.words).chain(thread).collect()
    }

    /// The variables that differ from those of `other`.
    pub fn variables_beside(&self, other: &Self) -> Vec<Variable> {
        let (now, before) = (&self.environment, &other.environment);
        let set = now
            .iter()
            .filter(|(name, value)| before.get(*name) != Some(*value));
        let set = set.map(|(name, value)| (name.clone(), Some(value.clone())));
        let removed = before.keys().filter(|name| !now.contains_key(*name));
        set.chain(removed.map(|name| (name.clone(), None)))
            .collect()
    }

    /// The working directory, if it is another one than that of `other`.
    ///
    /// # Errors
    /// Of opening it.
    pub fn directory_beside(&self, other: &Self) -> io::Result<Option<OwnedFd>> {
        if self.directory.is_some() && self.directory == other.directory {
            return Ok(None);
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is NUL-terminated.
        let open = |path: &CStr| checked(unsafe { libc::open(path.as_ptr(), flags) });
        // Who may not enter the directory any more in which it is may still name it.
        let fd = open(c".").or_else(|error| open(c"/proc/thread-self/cwd").map_err(|_| error))?;
        // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
        above(unsafe { OwnedFd::from_raw_fd(fd) }).map(Some)
    }

    /// The words of which the other side makes a value again.
    pub fn to_words(&self) -> Vec<u64> {
        let directory = self
            .directory
            .map_or([0; 3], |(device, inode)| [1, device, inode]);
        let words = self.words.iter().chain(&self.thread.0).chain(&directory);
        words.copied().collect()
    }

    /// From the words, with the environment of this one.
    pub fn with_words(&self, words: &[u64]) -> Option<Self> {
        let (of_process, rest) = words.split_first_chunk()?;
        let (of_thread, rest) = rest.split_first_chunk()?;
        let &[known, device, inode] = rest else {
            return None;
        };
        Some(Self {
            words: *of_process,
            thread: OfThread(*of_thread),
            directory: (known == 1).then_some((device, inode)),
            environment: self.environment.clone(),
        })
    }
}

/// Whether a variable is the program's, and not what tells a process of a tree its place.
fn is_shared(name: &OsStr) -> bool {
    name != crate::mark::ENV && name != crate::premain::ENV
}

/// Gives this process, whose only thread this is, what [`Surroundings::beside`] has found.
///
/// # Errors
/// When a limit cannot be had.
pub(crate) fn put_on(attributes: &[Attribute]) -> io::Result<()> {
    let mut thread = Vec::new();
    let mut limits = [false; RESOURCES.len()];
    for &(number, value) in attributes {
        match usize::from(number) {
            UMASK => {
                // SAFETY: takes no pointer, cannot fail.
                unsafe { libc::umask(value as libc::mode_t) };
            }
            IGNORED => {
                for signal in STAY_IGNORED {
                    let action = match value & 1 << (signal - 1) {
                        0 => Action::default_action(),
                        _ => Action::ignore(),
                    };
                    action.install(signal)?;
                }
            }
            at if at < THREAD => limits[(at - LIMITS) / 2] = true,
            at => thread.extend(u8::try_from(at - THREAD).ok().map(|at| (at, value))),
        }
    }
    put_on_thread(&thread);
    for (at, resource) in RESOURCES
        .into_iter()
        .enumerate()
        .filter(|(at, _)| limits[*at])
    {
        let mut wanted = limit(resource);
        for &(number, value) in attributes {
            match usize::from(number).checked_sub(LIMITS + 2 * at) {
                Some(0) => wanted.rlim_cur = value,
                Some(1) => wanted.rlim_max = value,
                _ => {}
            }
        }
        // SAFETY: the pointer is to a live value.
        checked(unsafe { libc::setrlimit(resource, &wanted) })?;
    }
    Ok(())
}

/// Whether these are limits of open descriptors.
pub(crate) fn limits_open_files(attributes: &[Attribute]) -> bool {
    let at = RESOURCES
        .iter()
        .position(|resource| *resource == libc::RLIMIT_NOFILE);
    let at = LIMITS + 2 * at.unwrap_or(0);
    attributes
        .iter()
        .any(|(number, _)| (at..at + 2).contains(&usize::from(*number)))
}

/// Sets and removes variables of this process, whose only thread this is.
pub(crate) fn put_on_variables(variables: Vec<Variable>) -> io::Result<()> {
    if variables.is_empty() {
        return Ok(());
    }
    if !crate::process::is_single_threaded()? {
        return Err(io::Error::other("other threads may read the environment"));
    }
    for (name, value) in variables {
        // SAFETY: this is the only thread; the names and values come from an environment.
        unsafe {
            match value {
                Some(value) => std::env::set_var(name, value),
                None => std::env::remove_var(name),
            }
        }
    }
    Ok(())
}

/// Whether a standard descriptor of this process is another one than that of process `pid`: another open file, not only another number. True where
/// the kernel does not tell.
pub fn stream_differs(pid: i32, number: i32) -> bool {
    const KCMP_FILE: i32 = 0;
    // SAFETY: takes no pointer.
    let compared = unsafe {
        let own = libc::getpid();
        libc::syscall(libc::SYS_kcmp, own, pid, KCMP_FILE, number, number)
    };
    compared != 0
}

/// A standard descriptor of this process, for another one; /dev/null in place of one that is closed.
///
/// # Errors
/// When there is no descriptor left.
pub fn stream(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer; any number may be asked about.
    match checked(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }) {
        // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
        Ok(fd) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            let null = std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            above(null.into())
        }
        Err(error) => Err(error),
    }
}

fn limit(resource: libc::__rlimit_resource_t) -> libc::rlimit {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a live value. A kernel that does not know it has no such limit.
    unsafe { libc::getrlimit(resource, &mut limit) };
    limit
}

/// Device and inode of the working directory. Without a look-up, for which one that has given up rights would have to be let in.
fn directory() -> Option<(u64, u64)> {
    // SAFETY: an all-zero value is valid; the path is NUL-terminated, the pointer is to a live value.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        let told = libc::fstatat(
            libc::AT_FDCWD,
            c"".as_ptr(),
            &mut found,
            libc::AT_EMPTY_PATH,
        );
        (told == 0).then_some((found.st_dev, found.st_ino))
    }
}

/// The umask, which no system call tells without changing it: from a file without a name, or from /proc, which takes five times as long.
fn umask() -> io::Result<u32> {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_EXCL | libc::O_CLOEXEC;
    // SAFETY: an all-zero value is valid; the path is NUL-terminated, the pointer is to a live value; the descriptor is closed once.
    unsafe {
        let file = libc::open(c"/dev/shm".as_ptr(), flags, 0o777);
        if file != -1 {
            let mut made: libc::stat = std::mem::zeroed();
            let told = libc::fstat(file, &mut made) == 0;
            libc::close(file);
            if told {
                return Ok(!made.st_mode & 0o777);
            }
        }
    }
    crate::process::umask_now()
}
