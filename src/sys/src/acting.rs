//! Acting on files as another process would: with its user, its groups and no more capabilities than it has.
//!
//! Who removes something on behalf of a process that it does not trust has the kernel decide what that process could have removed. Only the calling
//! thread is changed, and only for the time of one closure.

use crate::retry::checked;
use std::io;

/// What decides about access to files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user as whom it acts on files.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// Its effective capabilities, as a mask.
    pub capabilities: u64,
}

/// `CAP_CHOWN` to `CAP_FSETID`, `CAP_LINUX_IMMUTABLE`, `CAP_SYS_ADMIN`, `CAP_MKNOD` and `CAP_MAC_OVERRIDE`: those that override a decision about
/// files.
const OF_FILES: u64 = 0b1_1111 | 1 << 9 | 1 << 21 | 1 << 27 | 1 << 32;

impl Credentials {
    /// Those of nobody: what may be done by everybody alone.
    pub fn nobody() -> Self {
        Self {
            uid: 65_534,
            gid: 65_534,
            groups: Vec::new(),
            capabilities: 0,
        }
    }

    /// Those of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn own() -> io::Result<Self> {
        Self::in_status(&std::fs::read("/proc/thread-self/status")?)
    }

    /// Those of a process, also of a zombie. The caller knows that the number means that process.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let mut found = Self::in_status(&std::fs::read(format!("/proc/{pid}/status"))?)?;
        // In another user namespace its capabilities hold for what is there.
        let space = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/user"));
        let elsewhere =
            matches!((space(&pid.to_string()), space("self")), (Ok(its), Ok(own)) if its != own);
        if elsewhere {
            found.capabilities = 0;
        }
        Ok(found)
    }

    fn in_status(status: &[u8]) -> io::Result<Self> {
        let field = |name: &str| {
            let line = status
                .split(|&byte| byte == b'\n')
                .find_map(|line| line.strip_prefix(name.as_bytes()))?;
            std::str::from_utf8(line).ok()
        };
        // Real, effective, saved, and of files.
        let last = |name| field(name)?.split_ascii_whitespace().nth(3)?.parse().ok();
        let read = || {
            Some(Self {
                uid: last("Uid:")?,
                gid: last("Gid:")?,
                groups: field("Groups:")?
                    .split_ascii_whitespace()
                    .map_while(|group| group.parse().ok())
                    .collect(),
                capabilities: u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?,
            })
        };
        read().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "not the status of a process")
        })
    }

    /// Whether who has these may do nothing to files that `other` may not.
    fn is_within(&self, other: &Self) -> bool {
        (self.uid, self.gid, &self.groups) == (other.uid, other.gid, &other.groups)
            && self.capabilities & OF_FILES & !other.capabilities == 0
    }
}

/// Runs `act` with the rights of `whose` to files, where the calling thread has more. One that has no rights beyond its user's acts as it is:
/// it can take nobody else's, and needs nobody's permission for its own.
///
/// # Errors
/// When the thread may not act as `whose`; `act` is then not run.
///
/// # Panics
/// It passes on those of `act`. It aborts the program where the thread cannot have its own rights back, which the kernel does not refuse.
pub fn acting_as<T>(whose: &Credentials, act: impl FnOnce() -> T) -> io::Result<T> {
    let own = Credentials::own()?;
    if own.is_within(whose) || (own.uid != 0 && own.capabilities & OF_FILES == 0) {
        return Ok(act());
    }
    let acting = Acting::begin(own, whose)?;
    let result = act();
    drop(acting);
    Ok(result)
}

/// A thread that acts as another process would. Dropping it gives its own rights back.
struct Acting {
    own: Credentials,
    dumpable: i32,
    parent_death_signal: i32,
}

impl Acting {
    fn begin(own: Credentials, whose: &Credentials) -> io::Result<Self> {
        // A change of these makes the process undumpable, hence its /proc the superuser's, and takes the thread's parent-death signal.
        // SAFETY: takes no pointer.
        let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
        let mut parent_death_signal = 0;
        // SAFETY: the pointer is to a live, writable integer.
        unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut parent_death_signal) };
        let acting = Self {
            own,
            dumpable,
            parent_death_signal,
        };
        set_groups(&whose.groups)?;
        set_ids(whose.uid, whose.gid)?;
        keep_capabilities(acting.own.capabilities & whose.capabilities)?;
        Ok(acting)
    }

    fn end(&self) -> io::Result<()> {
        // First what the others need.
        keep_capabilities(self.own.capabilities)?;
        set_ids(self.own.uid, self.own.gid)?;
        set_groups(&self.own.groups)?;
        // A return to user 0 adds some.
        keep_capabilities(self.own.capabilities)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.end().is_err() {
            // It would act as somebody else from here on.
            std::process::abort();
        }
        // SAFETY: they take no pointers.
        unsafe {
            if self.parent_death_signal != 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, self.parent_death_signal, 0, 0, 0);
            }
            if self.dumpable == 1 {
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
        }
    }
}

/// Of this thread alone: the function of C changes all threads.
fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one live slice.
    checked(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    // They tell no error, but what was before; asked for an invalid one, what is.
    // SAFETY: they take no pointers, and change this thread alone.
    let set = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        (
            libc::syscall(libc::SYS_setfsgid, u32::MAX),
            libc::syscall(libc::SYS_setfsuid, u32::MAX),
        )
    };
    match set == (i64::from(gid) as _, i64::from(uid) as _) {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

/// Makes the thread's effective capabilities these; the others can be taken back from the permitted ones.
fn keep_capabilities(mask: u64) -> io::Result<()> {
    /// `struct __user_cap_header_struct` and twice `struct __user_cap_data_struct`, as of `_LINUX_CAPABILITY_VERSION_3`.
    #[repr(C)]
    struct Head {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut head = Head {
        version: 0x2008_0522,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: both pointers are to live, writable values of the layout that the version in the head says.
    checked(unsafe { libc::syscall(libc::SYS_capget, &raw mut head, data.as_mut_ptr()) })?;
    for (half, data) in data.iter_mut().enumerate() {
        data.effective = (mask >> (32 * half)) as u32 & data.permitted;
    }
    // SAFETY: as above; the kernel only reads.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw const head, data.as_ptr()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn a_thread_acts_as_another_and_is_itself_again() {
        let own = Credentials::own().unwrap();
        assert_eq!(Credentials::of(crate::process::id()).unwrap().uid, own.uid);
        // Another user can reach it, which it need not be able to in the tests' own directory.
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let ours = dir.path().join("ours");
        std::fs::write(&ours, "").unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        let theirs = open.join("theirs");
        std::fs::write(&theirs, "").unwrap();
        if own.uid != 0 {
            // Nobody can be acted as, and nothing is to be protected from it.
            acting_as(&Credentials::nobody(), || std::fs::remove_file(&ours))
                .unwrap()
                .unwrap();
            return;
        }
        // SAFETY: takes no pointer.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
        let before = dumpable();
        // SAFETY: takes no pointer; of this thread alone.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCHLD, 0, 0, 0) };
        let acted = acting_as(&Credentials::nobody(), || {
            let inside = Credentials::own().unwrap();
            (
                inside,
                std::fs::remove_file(&ours).unwrap_err().kind(),
                std::fs::remove_file(&theirs),
            )
        });
        let (inside, refused, removed) = acted.unwrap();
        assert_eq!((inside.uid, inside.gid), (65_534, 65_534));
        assert_eq!((inside.groups.len(), inside.capabilities), (0, 0));
        assert_eq!(refused, io::ErrorKind::PermissionDenied);
        removed.unwrap();
        assert_eq!(Credentials::own().unwrap(), own);
        assert_eq!(dumpable(), before);
        let mut signal = 0;
        // SAFETY: the pointer is to a live, writable integer.
        unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
        assert_eq!(signal, libc::SIGCHLD);
        // After a panic, too.
        let panicked = std::panic::catch_unwind(|| {
            acting_as(&Credentials::nobody(), || panic!("in there")).unwrap()
        });
        assert!(panicked.is_err());
        assert_eq!(Credentials::own().unwrap(), own);
        // The superuser without its capabilities is only the owner of what is its own.
        let bare = Credentials {
            capabilities: 0,
            ..own.clone()
        };
        chown(&open, Some(65_534), None).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(open.join("foreign"), "").unwrap();
        let refused = acting_as(&bare, || std::fs::remove_file(open.join("foreign"))).unwrap();
        assert!(refused.is_err());
        acting_as(&bare, || std::fs::remove_file(&ours))
            .unwrap()
            .unwrap();
        assert_eq!(Credentials::own().unwrap(), own);
    }

    #[test]
    fn a_zombie_tells_what_it_was() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id() as i32;
        let pidfd = crate::pidfd::Pidfd::open(pid).unwrap();
        assert!(pidfd.wait_dead(std::time::Duration::from_secs(20)).unwrap());
        let (its, own) = (Credentials::of(pid).unwrap(), Credentials::own().unwrap());
        child.wait().unwrap();
        assert_eq!(
            (its.uid, its.gid, its.groups),
            (own.uid, own.gid, own.groups)
        );
        assert_eq!(its.capabilities, own.capabilities);
        assert!(Credentials::of(i32::MAX).is_err());
    }

    #[test]
    fn a_status_is_bytes() {
        let status = b"Name:\tcut \xc3\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t00000000000000ff\n";
        let expected = Credentials {
            uid: 4,
            gid: 8,
            groups: vec![9, 10],
            capabilities: 0xff,
        };
        assert_eq!(Credentials::in_status(status).unwrap(), expected);
        assert!(Credentials::in_status(b"Uid:\t1\n").is_err());
    }
}
