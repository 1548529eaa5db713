//! This process and its relatives: identity, children, environment, and what ties a child to its parent.

use crate::pidfd::Status;
use crate::procfs::stat_field;
use crate::retry::{checked, retry};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// This process's id.
pub fn id() -> i32 {
    // SAFETY: no arguments, cannot fail. Not cached, unlike a variable of ours would be after a fork.
    unsafe { libc::getpid() }
}

/// The parent's id; 0 when it lives outside this pid namespace, and another one (init, a subreaper) once the first has ended.
pub fn parent() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getppid() }
}

/// Makes this process the new parent of descendants whose own parent ends, in place of init.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes no pointer.
    checked(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1_u64, 0_u64, 0_u64, 0_u64) })
        .map(drop)
}

/// Makes this process the leader of a process group of its own, out of reach of signals to its parent's.
pub fn lead_group() -> io::Result<()> {
    // SAFETY: takes no pointer.
    checked(unsafe { libc::setpgid(0, 0) }).map(drop)
}

/// Asks the kernel to kill this process when its parent's forking thread ends, and checks that this has not happened already.
///
/// A change of credentials clears it, so it is called again after the last one.
///
/// # Errors
/// `ESRCH` when the parent is not `expected_parent` (any more).
pub fn die_with_parent(expected_parent: i32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    checked(unsafe {
        libc::prctl(
            libc::PR_SET_PDEATHSIG,
            libc::SIGKILL as u64,
            0_u64,
            0_u64,
            0_u64,
        )
    })?;
    // In this order: a parent that ends after the check sends the signal, one that ended before it is seen here.
    if parent() == expected_parent {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// Whether the calling thread is the only one of this process.
///
/// # Errors
/// When /proc is not mounted.
pub fn is_single_threaded() -> io::Result<bool> {
    // A directory has a link from its parent, one from itself, and one from each directory in it. This is one system call and no
    // descriptor, where reading the directory would be five.
    Ok(fs::metadata("/proc/self/task")?.nlink() == 3)
}

/// Whether `/proc` is there and is that of this process's pid namespace, without which processes can be neither started nor told from each other.
///
/// # Errors
/// That it is not, in words, with what to do.
pub fn check_proc() -> io::Result<()> {
    const REMEDY: &str = "mount it: `mount -t proc proc /proc` (`unshare --mount-proc` and container runtimes do so), or keep to thread isolates \
                          that bind nothing";
    let found = fs::read_link("/proc/self");
    let what = match &found {
        Ok(link) if link.as_os_str() == id().to_string().as_str() => return Ok(()),
        Ok(link) => format!(
            "/proc is that of another pid namespace: it calls this process {}, which is {}",
            link.display(),
            id()
        ),
        Err(_) if fs::metadata("/proc/1").is_ok() => {
            "/proc is that of another pid namespace, in which this process is not".to_owned()
        }
        Err(error) => format!("/proc is not mounted here ({error})"),
    };
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("{what}; {REMEDY}"),
    ))
}

/// When the process began, in clock ticks since boot: together with the pid a name that is not reused before the next boot. `None` when there
/// is no such process.
pub fn start_time(pid: i32) -> Option<u64> {
    stat_field(&fs::read(format!("/proc/{pid}/stat")).ok()?, 22)?
        .parse()
        .ok()
}

/// Whether a process is on its way out, whatever it does: it has been sent SIGKILL, is being taken apart by the kernel, or waits to be reaped.
/// True when there is none.
pub fn is_ending(pid: i32) -> bool {
    /// `PF_EXITING` among the kernel's flags of a task.
    const EXITING: u64 = 0x4;
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let flags: u64 = stat_field(&stat, 9)
        .and_then(|flags| flags.parse().ok())
        .unwrap_or(0);
    let status = crate::procfs::text(format!("/proc/{pid}/status")).unwrap_or_default();
    // Of the thread and of the whole process.
    let killed = ["SigPnd:", "ShdPnd:"].iter().any(|field| {
        let mask = status.lines().find_map(|line| line.strip_prefix(field));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & (1 << (libc::SIGKILL - 1)) != 0)
    });
    flags & EXITING != 0 || killed || matches!(stat_field(&stat, 3), Some("Z" | "X"))
}

/// Whether a process was stopped by a signal, and does nothing until it is continued.
pub fn is_stopped(pid: i32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat_field(&stat, 3) == Some("T")
}

/// The parent of a process now; `None` when there is no such process, 0 when its parent lives outside this pid namespace.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat_field(&fs::read(format!("/proc/{pid}/stat")).ok()?, 4)?
        .parse()
        .ok()
}

/// The processes whose parent is `pid` now. A snapshot: none of it need be true on return.
pub fn children_of(pid: i32) -> Vec<i32> {
    children_by_task(pid).unwrap_or_else(|_| children_by_scan(pid))
}

/// Closes every descriptor of this process except those listed.
///
/// # Safety
/// Nothing that still runs, destructors included, may use or close a descriptor that is not listed: the number may by then be another file.
pub unsafe fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let gaps = gaps(keep);
    for &(first, last) in &gaps {
        // SAFETY: takes no pointer; that these may be closed is the contract.
        if let Err(error) = checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
        {
            return match error.raw_os_error() {
                // Older than Linux 5.9, or a sandbox that does not know it.
                // SAFETY: the contract is the same.
                Some(libc::ENOSYS | libc::EPERM) => unsafe { close_by_listing(&gaps) },
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// Blocks these signals in the calling thread, and so in the threads and processes that it will make.
pub fn block_signals(signals: &[i32]) -> io::Result<()> {
    // SAFETY: an all-zero sigset is a valid value of that plain C structure, and is made proper by sigemptyset. Pointers are to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            checked(libc::sigaddset(&mut set, signal))?;
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Sets an environment variable.
///
/// # Errors
/// When this process has other threads, which might read the environment through C at the same time; `InvalidInput` for a key or value
/// that cannot be one.
pub fn set_env(key: &str, value: &str) -> io::Result<()> {
    alone()?;
    if !valid_key(key) || value.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an environment variable",
        ));
    }
    // SAFETY: this is the only thread, so that nobody else can read or write the environment meanwhile.
    unsafe { std::env::set_var(key, value) };
    Ok(())
}

/// Removes an environment variable, if it is there.
///
/// # Errors
/// As [`set_env`].
pub fn remove_env(key: &str) -> io::Result<()> {
    alone()?;
    if !valid_key(key) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an environment variable",
        ));
    }
    // SAFETY: as in `set_env`.
    unsafe { std::env::remove_var(key) };
    Ok(())
}

/// What a process used in its life, children that it reaped included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rusage {
    /// Processor time in user mode, microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, microseconds.
    pub system_us: u64,
    /// The most memory that was resident at once, KiB.
    pub max_rss_kib: u64,
}

/// Reaps one child that has ended, whichever; `None` when none has. Never blocks.
///
/// For the forkserver only: in any other process it would take the children of code that waits for its own.
pub fn reap_any() -> Option<(i32, Status, Rusage)> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of that plain C structure.
    let mut used: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are live and writable.
    let pid = retry(|| unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut used) }).ok()?;
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    let used = Rusage {
        user_us: micros(used.ru_utime),
        system_us: micros(used.ru_stime),
        max_rss_kib: used.ru_maxrss as u64,
    };
    (pid > 0).then(|| (pid, Status::from_wait(status), used))
}

/// A child that has ended and was not reaped, whichever; it is left as it is. `None` when there is none. Never blocks.
pub fn ended_child() -> Option<i32> {
    // SAFETY: an all-zero siginfo is a valid value of that plain C structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is live and writable.
    retry(|| unsafe { libc::waitid(libc::P_ALL, 0, &mut info, flags) }).ok()?;
    // SAFETY: waitid has filled the SIGCHLD part of the union, or left it zero when nothing had ended.
    let pid = unsafe { info.si_pid() };
    (pid > 0).then_some(pid)
}

/// Reaps this child, if it has ended. Never blocks.
pub fn reap(pid: i32) -> Option<Status> {
    let mut status = 0;
    // SAFETY: the pointer is live and writable. Only a positive number means one child.
    let reaped = retry(|| unsafe { libc::waitpid(pid.max(1), &mut status, libc::WNOHANG) }).ok()?;
    (reaped == pid).then(|| Status::from_wait(status))
}

/// A process that is dead, and that its parent cannot reap before a tracer (a debugger, `strace`) has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The thread that traces it.
    pub tracer: i32,
    /// How it ended.
    pub status: Status,
}

/// The tracer of a process; `None` if it has none, or there is no such process.
pub fn tracer_of(pid: i32) -> Option<i32> {
    let status = crate::procfs::text(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Whether the process `pid` is dead and kept by its tracer.
///
/// Where the tracer has not waited for another thread of it either, not even its pidfd says that it is dead: the
/// threads are asked.
pub fn kept_by_tracer(pid: i32) -> Option<Kept> {
    let tracer = tracer_of(pid)?;
    let mut status = None;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let stat = std::fs::read(task.ok()?.path().join("stat")).ok()?;
        let field = |number| crate::procfs::stat_field(&stat, number);
        if !matches!(field(3), Some("Z" | "X" | "x")) {
            return None;
        }
        // What `wait` would give. A thread that was traced has ended as its process did.
        status = field(52).and_then(|code| code.parse().ok()).or(status);
    }
    let status = Status::from_wait(status?);
    Some(Kept { tracer, status })
}

/// Whether the kernel started this program with more rights than its caller had (set-uid, file capabilities: `AT_SECURE`). Its environment
/// is then not to be trusted.
pub fn is_privileged_exec() -> bool {
    // SAFETY: no pointers; reads a value that was fixed at exec.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether another process of our user may look into this one.
pub fn is_dumpable() -> bool {
    // SAFETY: takes no pointer.
    unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0_u64, 0_u64, 0_u64, 0_u64) == 1 }
}

/// The file mode creation mask.
pub fn umask_now() -> io::Result<u32> {
    // umask(2) can only be read by changing it, which another thread's open would see.
    let status = crate::procfs::text("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))
        .and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "/proc/self/status has no umask"))
}

/// Whether the descriptor is open, without touching it.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes no pointer; any number may be asked about.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Opens /dev/null in the place of what is closed of 0, 1 and 2, as std does before `main`. Otherwise the next socket would be the standard
/// output.
pub fn open_standard_fds() {
    for fd in 0..=2 {
        if !is_open(fd) {
            // SAFETY: the path is NUL-terminated. The lowest free number is this one, because those below are open, unless another thread opens something. It is given away to the process.
            let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            if opened > 2 {
                // Another thread was faster.
                // SAFETY: it has just been opened here.
                unsafe { libc::close(opened) };
            }
        }
    }
}

/// Sets or clears close-on-exec.
pub(crate) fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: takes no pointer.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) }).map(drop)
}

fn alone() -> io::Result<()> {
    if is_single_threaded()? {
        return Ok(());
    }
    Err(io::Error::other(
        "this process has other threads, which may be reading its environment",
    ))
}

fn valid_key(key: &str) -> bool {
    !key.is_empty() && !key.contains(['=', '\0'])
}

fn children_by_task(pid: i32) -> io::Result<Vec<i32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two reads. Its children belong to another one then.
        match crate::procfs::text(task?.path().join("children")) {
            Ok(list) => children.extend(
                list.split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            ),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// For kernels without the list of children (CONFIG_PROC_CHILDREN).
fn children_by_scan(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|candidate| {
            let stat = fs::read(format!("/proc/{candidate}/stat")).unwrap_or_default();
            stat_field(&stat, 4).and_then(|parent| parent.parse().ok()) == Some(pid)
        })
        .collect()
}

/// The ranges of descriptor numbers, both ends included, that leave out `keep`.
fn gaps(keep: &[RawFd]) -> Vec<(u32, u32)> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|&fd| u32::try_from(fd).ok())
        .collect();
    keep.sort_unstable();
    keep.dedup();
    let mut gaps = Vec::with_capacity(keep.len() + 1);
    let mut next = 0;
    for fd in keep {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = fd + 1;
    }
    gaps.push((next, u32::MAX));
    gaps
}

/// # Safety
/// As [`close_all_but`].
unsafe fn close_by_listing(gaps: &[(u32, u32)]) -> io::Result<()> {
    // Collected first: closing while the directory is read would skip some, and close the directory's own descriptor under it.
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open {
        if gaps
            .iter()
            .any(|&(first, last)| (first..=last).contains(&(fd as u32)))
        {
            // SAFETY: the caller's contract. The directory itself was closed above; its number gives EBADF, which is right.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// The number of the error that says that something is not allowed.
pub const NOT_PERMITTED: i32 = libc::EACCES;

/// The error of a process that may open no more descriptors.
pub fn out_of_descriptors() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// True for errors of fork(2) that may pass by themselves: too many processes, no memory, or too many files open in the whole system.
pub fn may_pass(errno: i32) -> bool {
    [libc::EAGAIN, libc::ENOMEM, libc::ENFILE].contains(&errno)
}

/// Sends SIGKILL to every process of the group that `leader` leads; none is no error.
///
/// The number must be that of a child of ours that has not been reaped: only then it cannot have become somebody else's group.
pub fn kill_group(leader: i32) {
    if leader > 1 {
        // SAFETY: takes no pointer. A negative number means the group; 0 and -1, which mean others, are excluded above.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_leave_out_what_is_kept() {
        const END: u32 = u32::MAX;
        for (keep, expected) in [
            (&[][..], &[(0, END)][..]),
            (&[0, 1, 2], &[(3, END)]),
            (&[5, 0, 2, 5, 1, -1], &[(3, 4), (6, END)]),
            (&[1], &[(0, 0), (2, END)]),
        ] {
            assert_eq!(gaps(keep), expected, "{keep:?}");
        }
    }

    #[test]
    fn a_proc_that_is_not_ours_is_named() {
        check_proc().unwrap();
        crate::apart::run("process::tests::a_proc_that_is_not_ours_is_named", || {
            let empty = tempfile::tempdir().unwrap();
            crate::apart::bind(empty.path(), std::path::Path::new("/proc"));
            let text = check_proc().unwrap_err().to_string();
            assert!(
                text.contains("not mounted") && text.contains("mount -t proc"),
                "{text}"
            );
            fs::create_dir(empty.path().join("1")).unwrap();
            let text = check_proc().unwrap_err().to_string();
            assert!(text.contains("another pid namespace"), "{text}");
            std::os::unix::fs::symlink("999999", empty.path().join("self")).unwrap();
            let text = check_proc().unwrap_err().to_string();
            assert!(text.contains("calls this process 999999"), "{text}");
        });
    }

    #[test]
    fn start_times_tell_processes_apart_and_stay() {
        let mine = start_time(id()).unwrap();
        assert!(mine > 0);
        assert_eq!(start_time(id()), Some(mine));
        assert!(start_time(parent()).unwrap() <= mine);
        assert_eq!(start_time(i32::MAX), None);
        assert_eq!(parent_of(id()), Some(parent()));
        assert_eq!(parent_of(i32::MAX), None);
    }

    #[test]
    fn what_is_ending_is_known() {
        assert!(!is_ending(id()) && is_ending(i32::MAX));
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        assert!(!is_ending(pid));
        child.kill().unwrap();
        // Without a wait for anything: the signal is on its way, or has arrived.
        assert!(is_ending(pid));
        child.wait().unwrap();
    }

    #[test]
    fn ended_children_are_seen_before_they_are_reaped() {
        // Other tests of this process have children, too: only what is said of this one counts.
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id() as i32;
        let pidfd = crate::pidfd::Pidfd::open(pid).unwrap();
        assert!(pidfd.wait_dead(std::time::Duration::from_secs(20)).unwrap());
        assert!(ended_child().is_some(), "this one, if no other");
        assert_eq!(reap(pid), Some(Status::Exited(0)));
        assert_eq!(reap(pid), None);
        assert_eq!(reap(-1), None);
        assert!(child.wait().is_err(), "it is reaped already");
    }

    #[test]
    fn children_are_found_both_ways() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        assert!(children_of(id()).contains(&pid));
        assert!(children_by_scan(id()).contains(&pid));
        assert!(!children_by_scan(pid).contains(&pid));
        assert_eq!(children_of(pid), []);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children_of(id()).contains(&pid));
        assert_eq!(children_of(i32::MAX), []);
    }

    #[test]
    fn the_environment_is_not_changed_beside_other_threads() {
        // The test's own thread is not the process's first.
        assert!(!is_single_threaded().unwrap());
        assert!(set_env("OFFSHOOT_SYS_TEST", "1").is_err());
        assert!(std::env::var_os("OFFSHOOT_SYS_TEST").is_none());
        assert!(remove_env("PATH").is_err());
    }

    #[test]
    fn this_program_is_not_privileged() {
        assert!(!is_privileged_exec());
        assert!(umask_now().unwrap() <= 0o777);
        let file = fs::File::open("/dev/null").unwrap();
        assert!(is_open(std::os::fd::AsRawFd::as_raw_fd(&file)));
        assert!(!is_open(-1));
    }

    #[test]
    fn blocked_signals_are_those_named() {
        let blocked = std::thread::spawn(|| {
            block_signals(&[libc::SIGUSR1, libc::SIGTERM]).unwrap();
            let status = crate::procfs::text("/proc/thread-self/status").unwrap();
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("SigBlk:"))
                .unwrap()
                .trim()
                .to_string();
            u64::from_str_radix(&mask, 16).unwrap()
        });
        assert_eq!(
            blocked.join().unwrap(),
            1 << (libc::SIGUSR1 - 1) | 1 << (libc::SIGTERM - 1)
        );
        assert!(block_signals(&[1000]).is_err());
    }
}
