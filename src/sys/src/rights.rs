//! What a thread may do, as far as the kernel tells: its credentials, its namespaces, its root directory.
//!
//! On Linux all of it belongs to a thread, and a process that is forked or executed has what the thread had that did so. [`Rights::now`] is made to be
//! asked before each spawn, so that it asks no more than can have changed: see there.

use crate::retry::checked;
use std::cell::RefCell;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
const CAP_SYS_ADMIN: u32 = 21;

/// Of the securebits, the one that makes root any other user.
const SECBIT_NOROOT: u32 = 1 << 0;
/// Of the securebits, the one that `execve` clears by itself.
const SECBIT_KEEP_CAPS: u32 = 1 << 4;

/// By the names of their links.
const NAMESPACES: [&CStr; 8] = [
    c"cgroup",
    c"ipc",
    c"mnt",
    c"net",
    c"pid_for_children",
    c"time_for_children",
    c"user",
    c"uts",
];

/// The capability sets, in the order of /proc/PID/status.
const SETS: [&str; 5] = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
const INHERITABLE: usize = 0;
const PERMITTED: usize = 1;
const EFFECTIVE: usize = 2;
const AMBIENT: usize = 4;

/// What a thread may do. Two that are equal give a process the same rights.
///
/// Not told by the kernel, and so not here: Landlock domains, and the program of a seccomp filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    quick: Quick,
    slow: Slow,
    namespaces: [u64; NAMESPACES.len()],
    /// Device, inode and mount. A mount namespace of its own has mounts of its own.
    root: [u64; 3],
    label: Option<u64>,
}

/// What a system call tells in a tenth of a microsecond.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Quick {
    /// Real, effective, saved.
    users: [u32; 3],
    groups: [u32; 3],
    supplementary: Groups,
    /// Inheritable, permitted, effective.
    sets: [u64; 3],
    securebits: u32,
    no_new_privs: bool,
    seccomp: u32,
}

/// Supplementary groups. Without many of them, nothing is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Groups {
    few: [u32; Groups::FEW],
    number: usize,
    /// All, if they are too many for `few`, which is empty then.
    many: Vec<u32>,
}

impl Groups {
    const FEW: usize = 16;

    fn as_slice(&self) -> &[u32] {
        match self.many.is_empty() {
            true => &self.few[..self.number],
            false => &self.many,
        }
    }
}

impl FromIterator<u32> for Groups {
    fn from_iter<I: IntoIterator<Item = u32>>(groups: I) -> Groups {
        let mut all = Groups::default();
        for group in groups {
            if all.number < Groups::FEW && all.many.is_empty() {
                all.few[all.number] = group;
                all.number += 1;
                continue;
            }
            if all.many.is_empty() {
                all.many.extend(all.few);
                (all.few, all.number) = ([0; Groups::FEW], 0);
            }
            all.many.push(group);
        }
        all
    }
}

/// What only the text in /proc tells, or tells sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slow {
    /// As whom and as which group files are opened.
    file_user: u32,
    file_group: u32,
    /// Bounding, ambient.
    sets: [u64; 2],
    filters: u64,
}

thread_local! {
    /// What this thread had when it was asked last.
    static LAST: RefCell<Option<Rights>> = const { RefCell::new(None) };
}

impl Rights {
    /// What the calling thread may do.
    ///
    /// Its first call asks for everything. A later one asks again for what can have changed since: a thread that could
    /// neither change its bounding set (`CAP_SETPCAP`) nor open files as somebody else (`CAP_SETUID`, different ids), and has no seccomp filter, is
    /// not looked up in /proc; nor are the namespaces of one without `CAP_SYS_ADMIN`. To gain one of those a thread has to
    /// enter a user namespace, which the kernel refuses beside other threads: this is for processes that have some.
    ///
    /// # Errors
    /// When /proc is not mounted, or a seccomp filter forbids to look.
    pub fn now() -> io::Result<Rights> {
        let quick = Quick::read()?;
        LAST.with(|last| {
            // Only borrowed already if a handler of a signal asks in the middle of this.
            let Ok(mut last) = last.try_borrow_mut() else {
                return Self::complete(quick, None);
            };
            let known = last.take().filter(|known| known.quick == quick);
            let rights = Self::complete(quick, known)?;
            *last = Some(rights.clone());
            Ok(rights)
        })
    }

    /// As [`now`](Self::now), remembering and assuming nothing: for a process with one thread, and what it forks.
    ///
    /// # Errors
    /// As of [`now`](Self::now).
    pub fn read() -> io::Result<Rights> {
        Self::complete(Quick::read()?, None)
    }

    /// The rest, as far as what is known of a thread with the same first half is not enough.
    fn complete(quick: Quick, known: Option<Rights>) -> io::Result<Rights> {
        let may_change = quick.may_change_slowly();
        let (slow, namespaces, label) = match known {
            Some(known) => {
                let slow = match may_change {
                    true => Status::read("/proc/thread-self/status")?.slow,
                    false => known.slow,
                };
                let namespaces = match quick.may(CAP_SYS_ADMIN) {
                    true => namespaces("/proc/thread-self/ns")?,
                    false => known.namespaces,
                };
                // Where there are no labels, there will be none.
                let label = known.label.and_then(|_| label("/proc/thread-self"));
                (slow, namespaces, label)
            }
            None => (
                Status::read("/proc/thread-self/status")?.slow,
                namespaces("/proc/thread-self/ns")?,
                label("/proc/thread-self"),
            ),
        };
        Ok(Rights {
            quick,
            slow,
            namespaces,
            root: root(c"/")?,
            label,
        })
    }

    /// What is different in `now`, in words; `None` if nothing is.
    pub fn difference(&self, now: &Rights) -> Option<String> {
        let mut text = String::new();
        let mut tell = |what: &str, had: &dyn std::fmt::Display, has: &dyn std::fmt::Display| {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{what} {had}, now {has}");
        };
        let ids = |ids: &[u32; 3], file: u32| {
            let [real, effective, saved] = ids;
            format!("{real} {effective} {saved} {file}")
        };
        let (old, new) = (&self.quick, &now.quick);
        if (old.users, self.slow.file_user) != (new.users, now.slow.file_user) {
            tell(
                "user ids",
                &ids(&old.users, self.slow.file_user),
                &ids(&new.users, now.slow.file_user),
            );
        }
        if (old.groups, self.slow.file_group) != (new.groups, now.slow.file_group) {
            tell(
                "group ids",
                &ids(&old.groups, self.slow.file_group),
                &ids(&new.groups, now.slow.file_group),
            );
        }
        if old.supplementary != new.supplementary {
            let (had, has) = (
                old.supplementary.as_slice().len(),
                new.supplementary.as_slice().len(),
            );
            tell(
                "supplementary groups",
                &format_args!("{had} of them"),
                &format_args!("{has}, or others"),
            );
        }
        let sets = [
            "inheritable capabilities",
            "permitted capabilities",
            "effective capabilities",
            "bounding set",
            "ambient capabilities",
        ];
        for (set, name) in sets.iter().enumerate() {
            let (had, has) = (self.set(set), now.set(set));
            if had != has {
                tell(name, &format_args!("{had:x}"), &format_args!("{has:x}"));
            }
        }
        if old.securebits != new.securebits {
            let (had, has) = (old.securebits, new.securebits);
            tell(
                "securebits",
                &format_args!("{had:x}"),
                &format_args!("{has:x}"),
            );
        }
        if old.no_new_privs != new.no_new_privs {
            tell("no_new_privs", &old.no_new_privs, &new.no_new_privs);
        }
        if old.seccomp != new.seccomp {
            tell("seccomp mode", &old.seccomp, &new.seccomp);
        }
        if self.slow.filters != now.slow.filters {
            tell("seccomp filters", &self.slow.filters, &now.slow.filters);
        }
        for (at, name) in NAMESPACES.iter().enumerate() {
            let (had, has) = (self.namespaces[at], now.namespaces[at]);
            if had != has {
                let name = format!("{} namespace", name.to_string_lossy());
                tell(&name, &had, &has);
            }
        }
        if self.root != now.root {
            tell("root directory", &"one", &"another one");
        }
        if self.label != now.label {
            tell(
                "label of the security module",
                &"one",
                &"another one or none",
            );
        }
        (!text.is_empty()).then_some(text)
    }

    fn set(&self, set: usize) -> u64 {
        match set {
            INHERITABLE..=EFFECTIVE => self.quick.sets[set],
            _ => self.slow.sets[set - EFFECTIVE - 1],
        }
    }

    /// Whether the root directory is still the one of these rights. It is known also where /proc cannot be seen any more.
    pub fn has_root_directory(&self) -> bool {
        root(c"/").is_ok_and(|root| root == self.root)
    }

    /// All of it as numbers, for [`from_words`](Self::from_words).
    pub fn to_words(&self) -> Vec<u64> {
        let Rights {
            quick,
            slow,
            namespaces,
            root,
            label,
        } = self;
        let ids = quick.users.iter().chain(&quick.groups).copied();
        ids.map(u64::from)
            .chain(quick.sets)
            .chain([
                quick.securebits.into(),
                quick.no_new_privs.into(),
                quick.seccomp.into(),
                slow.file_user.into(),
                slow.file_group.into(),
            ])
            .chain(slow.sets)
            .chain([slow.filters])
            .chain(*namespaces)
            .chain(*root)
            .chain([label.is_some().into(), label.unwrap_or(0)])
            .chain(
                quick
                    .supplementary
                    .as_slice()
                    .iter()
                    .copied()
                    .map(u64::from),
            )
            .collect()
    }

    /// What [`to_words`](Self::to_words) has made; `None` of anything else.
    pub fn from_words(words: &[u64]) -> Option<Rights> {
        let mut words = words.iter().copied();
        fn some<const N: usize>(words: &mut impl Iterator<Item = u64>) -> Option<[u64; N]> {
            let mut taken = [0; N];
            for slot in &mut taken {
                *slot = words.next()?;
            }
            Some(taken)
        }
        let small = |word: u64| u32::try_from(word).ok();
        let ids = |[a, b, c]: [u64; 3]| Some([small(a)?, small(b)?, small(c)?]);
        let users = ids(some(&mut words)?)?;
        let groups = ids(some(&mut words)?)?;
        let sets = some(&mut words)?;
        let [securebits, no_new_privs, seccomp, file_user, file_group] = some(&mut words)?;
        let slow = Slow {
            file_user: small(file_user)?,
            file_group: small(file_group)?,
            sets: some(&mut words)?,
            filters: words.next()?,
        };
        let (namespaces, root) = (some(&mut words)?, some(&mut words)?);
        let [has_label, label] = some(&mut words)?;
        Some(Rights {
            quick: Quick {
                users,
                groups,
                supplementary: words.map(small).collect::<Option<_>>()?,
                sets,
                securebits: small(securebits)?,
                no_new_privs: no_new_privs != 0,
                seccomp: small(seccomp)?,
            },
            slow,
            namespaces,
            root,
            label: (has_label != 0).then_some(label),
        })
    }

    /// Makes these the rights of this process, as far as `execve` has changed them: what it gave back is given up again, and a saved id is restored.
    /// Says what is different all the same, in words. For a process with one thread.
    ///
    /// Less is no difference here: a capability or a saved id that `execve` takes away for good, as of a program that has them but not in its bounding
    /// set. Nor is a label: what the security module makes of an `execve` is its policy.
    ///
    /// # Errors
    /// As of [`now`](Self::now).
    pub fn take_on(&self) -> io::Result<Option<String>> {
        let found = Self::read()?;
        // Whatever fails shows below.
        // SAFETY: take no pointers. This is the only thread, so that nobody is in the middle of anything.
        unsafe {
            let [real, effective, saved] = self.quick.groups;
            if found.quick.groups != self.quick.groups {
                libc::setresgid(real, effective, saved);
            }
            if found.slow.file_group != self.slow.file_group {
                libc::setfsgid(self.slow.file_group);
            }
            let [real, effective, saved] = self.quick.users;
            if found.quick.users != self.quick.users {
                libc::setresuid(real, effective, saved);
            }
            if found.slow.file_user != self.slow.file_user {
                libc::setfsuid(self.slow.file_user);
            }
        }
        let extra = found.set(AMBIENT) & !self.set(AMBIENT);
        for capability in (0..64).filter(|capability| extra & 1 << capability != 0) {
            // SAFETY: takes no pointer.
            unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_LOWER,
                    capability as u64,
                    0_u64,
                    0_u64,
                )
            };
        }
        let _ = set_capabilities(self.quick.sets);
        let mut now = Self::read()?;
        now.label = self.label;
        for (set, wanted) in now.quick.sets.iter_mut().zip(self.quick.sets) {
            if *set & !wanted == 0 {
                *set = wanted;
            }
        }
        let ambient = &mut now.slow.sets[AMBIENT - EFFECTIVE - 1];
        if *ambient & !self.set(AMBIENT) == 0 {
            *ambient = self.set(AMBIENT);
        }
        let ids = [
            (&mut now.quick.users, &self.quick.users),
            (&mut now.quick.groups, &self.quick.groups),
        ];
        for (ids, wanted) in ids {
            if ids[2] == ids[1] {
                ids[2] = wanted[2];
            }
        }
        Ok(self.difference(&now))
    }

    /// Lets the next `execve` of the calling thread, or of a child that it makes, keep the capabilities that it would take away: of who is not root, all that are
    /// not ambient. Undone when the guard is dropped.
    pub fn kept_over_exec(&self) -> Kept {
        let [inheritable, permitted, effective] = self.quick.sets;
        let lost = permitted & !self.set(AMBIENT);
        let is_root = self.quick.users[..2].contains(&0);
        let is_root = is_root && self.quick.securebits & SECBIT_NOROOT == 0;
        if is_root || lost == 0 {
            return Kept(None);
        }
        // What fails is missed, and told, by who takes its rights on afterwards.
        let _ = set_capabilities([inheritable | lost, permitted, effective]);
        for capability in (0..64).filter(|capability| lost & 1 << capability != 0) {
            // SAFETY: takes no pointer.
            unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    capability as u64,
                    0_u64,
                    0_u64,
                )
            };
        }
        Kept(Some((self.quick.sets, lost)))
    }

    /// Whether `execve` by a thread with these rights gives a program that the kernel calls secure (`AT_SECURE`), though its file gives it nothing: its
    /// effective ids are others than the real ones.
    pub fn makes_secure(&self) -> bool {
        let Quick { users, groups, .. } = &self.quick;
        users[0] != users[1] || groups[0] != groups[1]
    }
}

/// See [`Rights::kept_over_exec`].
#[derive(Debug)]
#[must_use = "it is undone when this is dropped"]
pub struct Kept(Option<([u64; 3], u64)>);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some((sets, raised)) = self.0 {
            for capability in (0..64).filter(|capability| raised & 1 << capability != 0) {
                // SAFETY: takes no pointer.
                unsafe {
                    libc::prctl(
                        libc::PR_CAP_AMBIENT,
                        libc::PR_CAP_AMBIENT_LOWER,
                        capability as u64,
                        0_u64,
                        0_u64,
                    )
                };
            }
            let _ = set_capabilities(sets);
        }
    }
}

/// What another process may do, as far as it can be seen from outside.
#[derive(Clone, Debug)]
pub struct Seen {
    status: Status,
    /// Its namespaces and its root directory, if we may look at them.
    inside: Option<([u64; NAMESPACES.len()], [u64; 3])>,
    label: Option<u64>,
}

impl Seen {
    /// Of the first thread of a process, which the caller keeps from being reaped.
    ///
    /// # Errors
    /// When /proc is not mounted, or there is no such process.
    pub fn of(pid: i32) -> io::Result<Seen> {
        let status = Status::read(&format!("/proc/{pid}/status"))?;
        let inside = || -> io::Result<_> {
            let path = format!("/proc/{pid}/root\0");
            let path = CStr::from_bytes_with_nul(path.as_bytes()).map_err(io::Error::other)?;
            Ok((namespaces(&format!("/proc/{pid}/ns"))?, root(path)?))
        };
        Ok(Seen {
            status,
            inside: inside().ok(),
            label: label(&format!("/proc/{pid}")),
        })
    }

    /// Whether its namespaces and its root directory could be looked at.
    pub fn is_whole(&self) -> bool {
        self.inside.is_some()
    }

    /// What is different from `rights`, in words. Securebits are not seen from outside.
    pub fn difference(&self, rights: &Rights) -> Option<String> {
        let mut seen = rights.clone();
        let Status {
            users,
            groups,
            supplementary,
            sets,
            no_new_privs,
            seccomp,
            slow,
        } = &self.status;
        seen.quick = Quick {
            users: *users,
            groups: *groups,
            supplementary: supplementary.clone(),
            sets: *sets,
            securebits: rights.quick.securebits,
            no_new_privs: *no_new_privs,
            seccomp: *seccomp,
        };
        seen.slow = *slow;
        if let Some((namespaces, root)) = self.inside {
            (seen.namespaces, seen.root) = (namespaces, root);
        }
        seen.label = self.label;
        rights.difference(&seen)
    }
}

impl Quick {
    fn read() -> io::Result<Quick> {
        let (mut users, mut groups) = ([0; 3], [0; 3]);
        let [real, effective, saved] = &mut users;
        // SAFETY: the pointers are to live integers.
        checked(unsafe { libc::getresuid(real, effective, saved) })?;
        let [real, effective, saved] = &mut groups;
        // SAFETY: as above.
        checked(unsafe { libc::getresgid(real, effective, saved) })?;
        let prctl = |option| {
            // SAFETY: those that are asked here take no pointer.
            checked(unsafe { libc::prctl(option, 0_u64, 0_u64, 0_u64, 0_u64) })
                .map(|value| value as u32)
        };
        Ok(Quick {
            users,
            groups,
            supplementary: supplementary()?,
            sets: capabilities()?,
            securebits: prctl(libc::PR_GET_SECUREBITS)? & !SECBIT_KEEP_CAPS,
            no_new_privs: prctl(libc::PR_GET_NO_NEW_PRIVS)? != 0,
            // A kernel without it has none.
            seccomp: prctl(libc::PR_GET_SECCOMP).unwrap_or(0),
        })
    }

    fn may(&self, capability: u32) -> bool {
        self.sets[PERMITTED] & 1 << capability != 0
    }

    /// Whether what stands in `Slow` can have changed though nothing here has.
    fn may_change_slowly(&self) -> bool {
        let alike = |ids: &[u32; 3]| ids.iter().all(|id| *id == ids[0]);
        let capable = [CAP_SETPCAP, CAP_SETUID, CAP_SETGID];
        // An ambient capability is permitted and inheritable.
        let ambient = self.sets[PERMITTED] & self.sets[INHERITABLE] != 0;
        let alike = alike(&self.users) && alike(&self.groups);
        !alike || ambient || self.seccomp != 0 || capable.iter().any(|which| self.may(*which))
    }
}

/// In the order in which the kernel sorts them.
fn supplementary() -> io::Result<Groups> {
    let mut few = [0; Groups::FEW];
    // SAFETY: so many fit there.
    let found = unsafe { libc::getgroups(few.len() as i32, few.as_mut_ptr()) };
    if let Ok(number) = usize::try_from(found) {
        return Ok(few[..number].iter().copied().collect());
    }
    loop {
        // SAFETY: with none to be written, the pointer is not used.
        let number = checked(unsafe { libc::getgroups(0, std::ptr::null_mut()) })?;
        let mut groups = vec![0; number as usize];
        // SAFETY: so many fit there.
        let found = unsafe { libc::getgroups(number, groups.as_mut_ptr()) };
        if let Ok(found) = usize::try_from(found) {
            groups.truncate(found);
            return Ok(groups.into_iter().collect());
        }
        let error = io::Error::last_os_error();
        // Another thread has set more of them in between.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`, of which there are two: for the low and the high 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`; the process 0 is the calling thread.
const CAP_HEADER: CapHeader = CapHeader {
    version: 0x2008_0522,
    pid: 0,
};

/// Inheritable, permitted and effective, of the calling thread.
fn capabilities() -> io::Result<[u64; 3]> {
    let (mut header, mut data) = (CAP_HEADER, [CapData::default(); 2]);
    // SAFETY: the version says that there are two of them; both are live and writable, as is the header.
    checked(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let whole = |of: fn(&CapData) -> u32| u64::from(of(&data[0])) | u64::from(of(&data[1])) << 32;
    Ok([
        whole(|data| data.inheritable),
        whole(|data| data.permitted),
        whole(|data| data.effective),
    ])
}

fn set_capabilities([inheritable, permitted, effective]: [u64; 3]) -> io::Result<()> {
    let mut header = CAP_HEADER;
    let half = |at: u32| CapData {
        effective: (effective >> at) as u32,
        permitted: (permitted >> at) as u32,
        inheritable: (inheritable >> at) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: as in `capabilities`; it is only read.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// What /proc/PID/status says of it.
#[derive(Clone, Debug)]
struct Status {
    users: [u32; 3],
    groups: [u32; 3],
    supplementary: Groups,
    sets: [u64; 3],
    no_new_privs: bool,
    seccomp: u32,
    slow: Slow,
}

impl Status {
    fn read(path: &str) -> io::Result<Status> {
        // Usually a third of it; who is in very many groups needs more.
        let mut buffer = [0; 4096];
        let mut file = File::open(path)?;
        let mut filled = 0;
        let mut whole = Vec::new();
        loop {
            let n = file.read(&mut buffer[filled..])?;
            filled += n;
            if n == 0 && filled < buffer.len() {
                break;
            }
            if filled == buffer.len() {
                whole.extend_from_slice(&buffer);
                file.read_to_end(&mut whole)?;
                break;
            }
        }
        let text = match whole.is_empty() {
            true => &buffer[..filled],
            false => &whole[..],
        };
        Self::parse(text).ok_or_else(|| {
            let message = format!("{path} says nothing of credentials");
            io::Error::new(io::ErrorKind::Unsupported, message)
        })
    }

    /// Of bytes: the name of a process can be any.
    fn parse(text: &[u8]) -> Option<Status> {
        let field = |name: &str| {
            let mut lines = text.split(|byte| *byte == b'\n');
            let line = lines.find_map(|line| line.strip_prefix(name.as_bytes()))?;
            std::str::from_utf8(line).ok()
        };
        let ids = |name: &str| -> Option<([u32; 3], u32)> {
            let mut ids = field(name)?.split_ascii_whitespace();
            let mut next = || ids.next()?.parse().ok();
            Some(([next()?, next()?, next()?], next()?))
        };
        let set = |at: usize| u64::from_str_radix(field(SETS[at])?.trim(), 16).ok();
        // Of older kernels, or of those that were built without.
        let number = |name: &str| -> u64 {
            let number = field(name).and_then(|text| text.trim().parse().ok());
            number.unwrap_or(0)
        };
        let (users, file_user) = ids("Uid:")?;
        let (groups, file_group) = ids("Gid:")?;
        let supplementary = field("Groups:")?.split_ascii_whitespace();
        Some(Status {
            users,
            groups,
            supplementary: supplementary
                .map(|group| group.parse().ok())
                .collect::<Option<_>>()?,
            sets: [set(0)?, set(1)?, set(2)?],
            no_new_privs: number("NoNewPrivs:") != 0,
            seccomp: number("Seccomp:") as u32,
            slow: Slow {
                file_user,
                file_group,
                sets: [set(3)?, set(4).unwrap_or(0)],
                filters: number("Seccomp_filters:"),
            },
        })
    }
}

/// By their inodes; 0 of one that this kernel does not have.
fn namespaces(directory: &str) -> io::Result<[u64; NAMESPACES.len()]> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    let directory = options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(directory)?;
    let mut found = [0; NAMESPACES.len()];
    for (slot, name) in found.iter_mut().zip(NAMESPACES) {
        let mut link = [0_u8; 64];
        // SAFETY: the name is NUL-terminated, the buffer of the length that is said.
        let length = checked(unsafe {
            libc::readlinkat(
                directory.as_raw_fd(),
                name.as_ptr(),
                link.as_mut_ptr().cast(),
                link.len(),
            )
        });
        let length = match length {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            length => usize::try_from(length?).unwrap_or(0),
        };
        // `net:[4026531840]`
        let number = link[..length]
            .iter()
            .filter(|byte| byte.is_ascii_digit())
            .fold(0, |number: u64, digit| {
                number.wrapping_mul(10) + u64::from(digit - b'0')
            });
        *slot = number;
    }
    Ok(found)
}

fn root(path: &CStr) -> io::Result<[u64; 3]> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: the path is NUL-terminated, and the structure is live and writable.
    let asked = checked(unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_NO_AUTOMOUNT,
            mask,
            found.as_mut_ptr(),
        )
    });
    match asked {
        Ok(_) => {}
        // A filter: without the mount, of which two can be of one directory.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
            let found = std::fs::metadata(path)?;
            return Ok([crate::fsx::device_of_stat(found.dev()), found.ino(), 0]);
        }
        Err(error) => return Err(error),
    }
    // SAFETY: all-zero it is valid, and the kernel has written to it.
    let found = unsafe { found.assume_init() };
    let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
    Ok([device, found.stx_ino, found.stx_mnt_id])
}

/// The label that SELinux, AppArmor or Smack has given, as a digest; `None` if none of them is there, or does not tell.
fn label(directory: &str) -> Option<u64> {
    let mut label = Vec::new();
    let file = File::open(format!("{directory}/attr/current"));
    file.ok()?.read_to_end(&mut label).ok()?;
    let mut digest = std::hash::DefaultHasher::new();
    label.hash(&mut digest);
    Some(digest.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_as_it_was_and_as_it_is_seen() {
        let first = Rights::now().unwrap();
        assert_eq!(first, Rights::read().unwrap());
        assert_eq!(first.difference(&Rights::now().unwrap()), None);
        let words = first.to_words();
        assert_eq!(Rights::from_words(&words), Some(first.clone()));
        assert_eq!(Rights::from_words(&words[..words.len().min(20)]), None);
        let seen = Seen::of(crate::process::id()).unwrap();
        assert!(seen.is_whole());
        assert_eq!(seen.difference(&first), None);
    }

    /// By the thread alone, which the C library's own functions do not do.
    #[test]
    fn what_a_thread_gives_up_is_told() {
        let before = Rights::now().unwrap();
        std::thread::spawn(move || {
            assert_eq!(before.difference(&Rights::now().unwrap()), None);
            // SAFETY: takes no pointer.
            checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) })
                .unwrap();
            let told = before.difference(&Rights::now().unwrap()).unwrap();
            assert_eq!(told, "no_new_privs false, now true");
            if before.quick.may(CAP_SETPCAP) {
                // SAFETY: takes no pointer.
                checked(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 30_u64, 0_u64, 0_u64, 0_u64) })
                    .unwrap();
                let told = before.difference(&Rights::now().unwrap()).unwrap();
                assert!(told.contains("bounding set"), "{told}");
            }
            let _ = set_capabilities([0, 0, 0]);
            let now = Rights::now().unwrap();
            assert_eq!(now.quick.sets, [0; 3]);
            assert!(!now.quick.may_change_slowly() || now.quick.seccomp != 0);
            // From memory, in part.
            assert_eq!(now, Rights::now().unwrap());
            assert_eq!(now, Rights::read().unwrap());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn many_groups_are_kept_as_few_are() {
        for number in [0, 1, 15, 16, 17, 1000] {
            let groups: Vec<u32> = (0..number).collect();
            let kept: Groups = groups.iter().copied().collect();
            assert_eq!(kept.as_slice(), groups);
        }
    }

    #[test]
    fn a_name_that_is_no_text_hides_nothing() {
        let text = b"Name:\t\xff\xe2\x82 Uid:\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapInh:\t0\nCapPrm:\t1ff\nCapEff:\t3\nCapBnd:\tff\n\
            CapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        let status = Status::parse(text).unwrap();
        assert_eq!(
            (
                status.users,
                status.slow.file_user,
                status.supplementary.as_slice()
            ),
            ([1, 2, 3], 4, &[9, 10][..])
        );
        assert_eq!((status.sets, status.slow.filters), ([0, 0x1ff, 3], 3));
        assert!(Status::parse(b"Name:\tx\n").is_none());
    }
}
