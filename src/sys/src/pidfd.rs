//! A process by descriptor: the only name of a process that cannot come to mean another one.

use crate::retry::{checked, retry};
use crate::standard::above;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A process that was alive when this was opened, child or not.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// It called `exit` with this code (0 to 255).
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel made, or handed to a collector, a core dump.
        core: bool,
    },
}

impl Pidfd {
    /// The process whose id is `pid` now.
    ///
    /// # Errors
    /// `ESRCH` when there is none. A pid may have been reused, unless it is a child that the caller has not yet reaped.
    pub fn open(pid: i32) -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: the call has just returned this descriptor (close-on-exec by itself), so that nobody else owns it.
        above(unsafe { OwnedFd::from_raw_fd(fd as i32) }).map(Self)
    }

    /// A pidfd that came over a socket. What is no pidfd makes the methods fail, nothing worse.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends a signal; `Ok(false)` when the process has been reaped already.
    ///
    /// # Errors
    /// `EPERM`, or `EBADF` when this is no pidfd.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        // SAFETY: a null siginfo is allowed and means what kill(2) would have sent.
        let result = checked(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        });
        match result {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends SIGKILL; see [`signal`](Self::signal).
    pub fn kill(&self) -> io::Result<bool> {
        self.signal(libc::SIGKILL)
    }

    /// Whether every thread of the process has ended and its memory is gone. It may not have been reaped yet.
    pub fn is_dead(&self) -> bool {
        // Only a lack of memory makes a poll of one valid descriptor fail, and then nothing is known.
        self.wait_dead(Duration::ZERO).unwrap_or(false)
    }

    /// Waits at most `timeout` for the process to be dead, in the sense of [`is_dead`](Self::is_dead).
    pub fn wait_dead(&self, timeout: Duration) -> io::Result<bool> {
        Ok(crate::poll::wait(&[self.0.as_fd()], Some(timeout))?[0])
    }

    /// How it ended, for anyone who holds the pidfd, parent or not.
    ///
    /// The kernel tells it only after the parent has reaped the process, and only from Linux 6.15 on; `None` until then.
    pub fn status(&self) -> Option<Status> {
        let mut info = PidfdInfo {
            mask: INFO_EXIT,
            ..PidfdInfo::default()
        };
        // SAFETY: the request's number holds the size of `PidfdInfo`, which is live and writable, so that the kernel writes no more.
        // A kernel without it answers ENOTTY or EINVAL.
        retry(|| unsafe { libc::ioctl(self.0.as_raw_fd(), GET_INFO as _, &mut info) }).ok()?;
        (info.mask & INFO_EXIT != 0).then(|| Status::from_wait(info.exit_code))
    }

    /// How it ended, before anybody has reaped it; `pid` is its id. `None` if it runs or is reaped, if it exited with 0, or if this process may not
    /// know, which looks the same.
    pub fn unreaped_status(&self, pid: i32) -> Option<Status> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let field = |number| crate::procfs::stat_field(&stat, number);
        let code: i32 = field(52)?.parse().ok()?;
        let is_dead = field(3) == Some("Z") && code != 0;
        // One that was reaped meanwhile takes no signal, and what was read may be another's.
        let is_it = is_dead && self.signal(0).ok()?;
        is_it.then(|| Status::from_wait(code))
    }

    /// Reaps it, if it is a child of this process and has ended; `None` while it runs. Never blocks.
    ///
    /// # Errors
    /// `ECHILD` when it is not our child, or somebody has reaped it before; [`status`](Self::status) may then know more.
    pub fn reap(&self) -> io::Result<Option<Status>> {
        // SAFETY: an all-zero siginfo is a valid value of that plain C structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.0.as_raw_fd() as libc::id_t;
        // SAFETY: `info` is live and writable.
        retry(|| unsafe {
            libc::waitid(libc::P_PIDFD, id, &mut info, libc::WEXITED | libc::WNOHANG)
        })?;
        // SAFETY: waitid has filled the SIGCHLD part of the union, or left it zero when nothing had ended.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        let status = match info.si_code {
            libc::CLD_EXITED => Status::Exited(status),
            code => Status::Signaled {
                signal: status,
                core: code == libc::CLD_DUMPED,
            },
        };
        Ok((pid != 0).then_some(status))
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.0
    }
}

impl Status {
    /// From the number that `wait` gives for a process that ended.
    pub(crate) fn from_wait(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signaled {
                signal: libc::WTERMSIG(status),
                core: libc::WCOREDUMP(status),
            }
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

/// `struct pidfd_info` in its first version, which every later kernel accepts. libc does not have it yet.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const INFO_EXIT: u64 = 1 << 3;

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const GET_INFO: u32 = (3 << 30) | ((size_of::<PidfdInfo>() as u32) << 16) | (0xFF << 8) | 11;

const _: () = assert!(
    size_of::<PidfdInfo>() == 64,
    "the first version of the structure has 64 bytes"
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn child(script: &str) -> (std::process::Child, Pidfd) {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let pidfd = Pidfd::open(child.id() as i32).unwrap();
        (child, pidfd)
    }

    #[test]
    fn reaps_with_the_code_once() {
        let (_child, pidfd) = child("exit 7");
        assert!(pidfd.wait_dead(Duration::from_secs(20)).unwrap());
        assert_eq!(pidfd.reap().unwrap(), Some(Status::Exited(7)));
        assert_eq!(pidfd.reap().unwrap_err().raw_os_error(), Some(libc::ECHILD));
        // Linux 6.15 and later tell it also to those who did not reap.
        assert!(matches!(pidfd.status(), None | Some(Status::Exited(7))));
        if kernel_tells_the_status() {
            assert_eq!(pidfd.status(), Some(Status::Exited(7)));
        }
    }

    #[test]
    fn kill_is_seen_and_the_dead_cannot_be_signalled() {
        let (child, pidfd) = child("exec sleep 1000");
        assert!(!pidfd.is_dead());
        assert_eq!(pidfd.unreaped_status(child.id() as i32), None);
        assert_eq!(pidfd.reap().unwrap(), None);
        assert_eq!(pidfd.status(), None);
        assert!(!pidfd.wait_dead(Duration::from_millis(5)).unwrap());
        assert!(pidfd.kill().unwrap());
        assert!(pidfd.wait_dead(Duration::from_secs(20)).unwrap());
        assert!(pidfd.is_dead());
        let killed = Status::Signaled {
            signal: libc::SIGKILL,
            core: false,
        };
        assert_eq!(pidfd.unreaped_status(child.id() as i32), Some(killed));
        assert_eq!(
            pidfd.reap().unwrap(),
            Some(Status::Signaled {
                signal: libc::SIGKILL,
                core: false
            })
        );
        assert!(!pidfd.signal(0).unwrap());
        assert_eq!(pidfd.unreaped_status(child.id() as i32), None);
        assert_eq!(
            Pidfd::open(i32::MAX).unwrap_err().raw_os_error(),
            Some(libc::ESRCH)
        );
    }

    #[test]
    fn a_stranger_cannot_be_reaped() {
        // The parent of this process is no child of it.
        let pidfd = Pidfd::open(std::os::unix::process::parent_id() as i32).unwrap();
        assert_eq!(pidfd.reap().unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert!(!pidfd.is_dead());
    }

    #[test]
    fn what_is_no_pidfd_fails() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let pidfd = Pidfd::from_fd(file.into());
        assert_eq!(
            pidfd.signal(0).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        assert_eq!(pidfd.status(), None);
    }

    fn kernel_tells_the_status() -> bool {
        let release = crate::procfs::text("/proc/sys/kernel/osrelease").unwrap();
        let mut parts = release
            .split(['.', '-'])
            .map_while(|part| part.trim().parse::<u32>().ok());
        (parts.next().unwrap(), parts.next().unwrap()) >= (6, 15)
    }
}
