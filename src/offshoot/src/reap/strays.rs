//! Processes that have outlived their tree: how they are found, and the ladder by which they end.

use crate::janitor::{self, living};
use crate::mark::{CHANGE_MAX, LOOK_AGAIN, Looked, Mark};
use crate::process::forkserver::LAST_BOUND;
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::{clock, fsx, poll, process, procfs, signal};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// How long those that end by themselves are waited for, in ns. A large one takes 69 ms per GiB.
const SETTLING_MAX: u64 = 1_000_000_000;

/// A process with a mark.
pub(super) struct Found {
    pub(super) pid: i32,
    pub(super) mark: Mark,
    /// What it runs, for people.
    pub(super) command: String,
    /// It sees other file systems than we do, so that its mark's path may mean something else to it.
    pub(super) elsewhere: bool,
    pidfd: Pidfd,
}

impl Found {
    /// Whether it is a forkserver that was stopped: it holds the lock of its tree, and can do nothing about it.
    pub(super) fn is_stopped_forkserver(&self) -> bool {
        self.mark.process == 0 && !self.elsewhere && process::is_stopped(self.pid)
    }

    /// Whether it ends anyhow, or its parent does, and with that perhaps it: the kernel frees a tree's lock a moment before it kills the tree.
    fn is_ending(&self) -> bool {
        let parent = process::parent_of(self.pid).filter(|&parent| parent > 0);
        process::is_ending(self.pid) || parent.is_some_and(process::is_ending)
    }
}

/// Waits for those that end by themselves, and drops them.
pub(super) fn settle(strays: &mut Vec<Found>) {
    let deadline = clock::now() + SETTLING_MAX;
    while clock::now() < deadline && strays.iter().any(Found::is_ending) {
        // For a parent there is nothing to wait on.
        std::thread::sleep(Duration::from_millis(1));
        strays.retain(|stray| !stray.pidfd.is_dead());
    }
    strays.retain(|stray| !stray.pidfd.is_dead());
}

/// Whether the process that had this id and started then lives on. Waits for one that is ending.
pub(super) fn lives_on(pid: u32, start: u64) -> bool {
    let deadline = clock::now() + SETTLING_MAX;
    let ending = || i32::try_from(pid).is_ok_and(process::is_ending);
    living(pid, start).is_some_and(|pidfd| {
        while ending() && !pidfd.is_dead() && clock::now() < deadline {
            let _ = pidfd.wait_dead(Duration::from_millis(10));
        }
        !pidfd.is_dead()
    })
}

/// Lets forkservers go on that were stopped, of trees whose roots are gone: each takes its tree down and ends. How each took it.
///
/// # Blocking
/// Until they have ended; a little longer than they may take for that themselves, then they are killed.
pub(super) fn resume(strays: &[Found]) -> Vec<Taken> {
    send(strays, &vec![true; strays.len()], signal::SIGCONT);
    let alive = wait(strays, LAST_BOUND + Duration::from_secs(2));
    send(strays, &alive, signal::SIGKILL);
    let survived = wait(strays, LAST_BOUND);
    alive
        .into_iter()
        .zip(survived)
        .map(|took| match took {
            (false, _) => Taken::Interrupted,
            (true, false) => Taken::Killed,
            (true, true) => Taken::Survived,
        })
        .collect()
}

/// How a process took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Interrupted,
    Killed,
    Survived,
}

/// What a search has found.
#[derive(Default)]
pub(super) struct Search {
    /// Every process of this user that has a mark, but this one and those above it.
    pub(super) marked: Vec<Found>,
    /// Those that may have one: they were in `execve`, or ending, for [`CHANGE_MAX`].
    pub(super) unknown: Vec<i32>,
}

/// Looks at every process.
///
/// # Blocking
/// For [`CHANGE_MAX`] at most, as long as one of them is in `execve` or ending.
pub(super) fn find() -> io::Result<Search> {
    let spared = above(process::id());
    let deadline = clock::now() + CHANGE_MAX;
    let mut search = Search::default();
    // Those that are certain, and need no other look.
    let mut known = spared;
    loop {
        let mut is_new = false;
        search.unknown.clear();
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if known.contains(&pid) {
                continue;
            }
            match look(pid) {
                Some(Err(InExecve)) => search.unknown.push(pid),
                found => {
                    is_new = true;
                    known.insert(pid);
                    search.marked.extend(found.and_then(Result::ok));
                }
            }
        }
        // What has ended by itself may have forked before, into what no list had that was taken before.
        let settled = !is_new && search.unknown.is_empty();
        if settled || clock::now() >= deadline {
            return Ok(search);
        }
        if !is_new {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// That a process cannot be known before it is through with `execve`, or with its end.
struct InExecve;

/// This process, its parent, and so on. A sweep that killed whoever called for it would not be finished.
fn above(pid: i32) -> BTreeSet<i32> {
    let mut known = BTreeSet::new();
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|&pid| pid > 0 && known.insert(pid)) {
        next = process::parent_of(pid);
    }
    known
}

fn look(pid: i32) -> Option<Result<Found, InExecve>> {
    let directory = format!("/proc/{pid}");
    // Also as root: what belongs to another user is that user's to end, unless it has become that user's in a tree of ours. First, because it is
    // cheap.
    let is_own = fs::metadata(&directory).ok()?.uid() == fsx::effective_user();
    if !is_own && fsx::effective_user() != 0 {
        return None;
    }
    let pidfd = Pidfd::open(pid).ok()?;
    let mark = match Mark::look(pid).ok()? {
        Looked::Marked(mark) if is_own || janitor::is_own_tree(&mark.tree) => mark,
        // What one that is ending has started is in the list itself, whoever its parent is.
        Looked::Marked(_) | Looked::Plain | Looked::Ending => return None,
        Looked::Unknown if is_own => return Some(Err(InExecve)),
        // Of another user: whose execve is nothing to wait for, unless it is through in time.
        Looked::Unknown => match Mark::of(pid).ok()?? {
            mark if janitor::is_own_tree(&mark.tree) => mark,
            _ => return None,
        },
    };
    let link = |what: &str, of: &str| fs::read_link(format!("/proc/{of}/{what}")).ok();
    let own = pid.to_string();
    let elsewhere = ["ns/mnt", "ns/pid", "root"]
        .iter()
        .any(|what| link(what, &own) != link(what, "self"));
    let command = command_of(pid);
    // What was read is of the process that the descriptor means, if that is still there.
    (!pidfd.is_dead()).then_some(Ok(Found {
        pid,
        mark,
        command,
        elsewhere,
        pidfd,
    }))
}

/// The command line of a process, else its name.
pub(crate) fn command_of(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<_> = arguments
        .split(|&byte| byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    if !arguments.is_empty() {
        return arguments.join(" ");
    }
    let name = procfs::text(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("[{}]", name.trim_end())
}

/// Ends them together: SIGINT, then after `grace` SIGKILL for whoever is left; at once if there is no grace. How each took it, in their order.
pub(super) fn end(strays: &[Found], grace: Duration) -> Vec<Taken> {
    if !grace.is_zero() {
        send(strays, &vec![true; strays.len()], signal::SIGINT);
    }
    let after_grace = wait(strays, grace);
    if after_grace.contains(&true) {
        send(strays, &after_grace, signal::SIGKILL);
    }
    let after_all = match after_grace.contains(&true) {
        true => wait(strays, LAST_BOUND),
        false => after_grace.clone(),
    };
    after_grace
        .into_iter()
        .zip(after_all)
        .map(|alive| match alive {
            (false, _) => Taken::Interrupted,
            (true, false) => Taken::Killed,
            (true, true) => Taken::Survived,
        })
        .collect()
}

fn send(strays: &[Found], which: &[bool], number: i32) {
    for (stray, _) in strays.iter().zip(which).filter(|(_, which)| **which) {
        if let Err(error) = stray.pidfd.signal(number) {
            crate::log::warn!(pid = stray.pid, %error, "cannot signal a stray process");
        }
    }
}

/// Waits until they are dead, at most so long; which are not.
fn wait(strays: &[Found], bound: Duration) -> Vec<bool> {
    let deadline = clock::now().saturating_add(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX));
    loop {
        let alive: Vec<bool> = strays.iter().map(|stray| !stray.pidfd.is_dead()).collect();
        let left = deadline.saturating_sub(clock::now());
        if left == 0 || !alive.contains(&true) {
            return alive;
        }
        let fds: Vec<_> = strays
            .iter()
            .zip(&alive)
            .filter(|(_, alive)| **alive)
            .map(|(stray, _)| stray.pidfd.as_fd())
            .collect();
        if let Err(error) = poll::wait(&fds, Some(Duration::from_nanos(left))) {
            crate::log::warn!(%error, "cannot wait for stray processes");
            return alive;
        }
    }
}

/// What is mapped or open in the processes of this machine.
pub(crate) struct InUse {
    objects: BTreeSet<(u64, u64)>,
    /// Processes of this user into which we may not look: an agent that guards keys, for instance. What a tree has recorded decides about its own
    /// processes, whether they can be looked into or not; these are others, and keep what they have mapped when its name is removed.
    hidden: Vec<i32>,
}

impl InUse {
    /// Looks into every process but those in `doomed`.
    pub(crate) fn now(doomed: &BTreeSet<i32>) -> InUse {
        let mut found = InUse {
            objects: BTreeSet::new(),
            hidden: Vec::new(),
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for entry in processes {
            let pid: Option<i32> = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|pid| !doomed.contains(pid)) {
                found.add(pid);
            }
        }
        found
    }

    /// Whether some process was seen to have it.
    pub(crate) fn is_seen(&self, identity: &fsx::Identity) -> bool {
        self.objects.contains(&(identity.dev, identity.ino))
    }

    /// The processes of this user that could not be looked into.
    pub(crate) fn hidden(&self) -> &[i32] {
        &self.hidden
    }

    fn add(&mut self, pid: i32) {
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match procfs::text(format!("/proc/{pid}/maps")) {
            Ok(maps) => self.objects.extend(maps.lines().filter_map(mapped)),
            Err(error) if refused(&error) => self.hide(pid),
            // It has ended.
            Err(_) => return,
        }
        match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(open) => {
                let open = open.flatten().filter_map(|fd| fs::metadata(fd.path()).ok());
                self.objects
                    .extend(open.map(|file| (fsx::device_of_stat(file.dev()), file.ino())));
            }
            Err(error) if refused(&error) => self.hide(pid),
            Err(_) => {}
        }
    }

    /// Another user's process cannot have opened what is private to us, unless it is the superuser's.
    fn hide(&mut self, pid: i32) {
        let status = procfs::text(format!("/proc/{pid}/status")).unwrap_or_default();
        let user = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1))
            .and_then(|user| user.parse().ok());
        if user == Some(fsx::effective_user()) && self.hidden.last() != Some(&pid) {
            self.hidden.push(pid);
        }
    }
}

/// Device and inode of a line of /proc/PID/maps.
fn mapped(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let inode: u64 = fields.next()?.parse().ok()?;
    (inode != 0).then_some((fsx::device(number(major)?, number(minor)?), inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f00-7f10 rw-s 00000000 00:1a 4242                    /dev/shm/a b";
        assert_eq!(mapped(line), Some((fsx::device(0, 0x1a), 4242)));
        for line in [
            "",
            "7f00-7f10 rw-p 00000000 00:00 0",
            "7f00-7f10 rw-p 0 0 7",
        ] {
            assert_eq!(mapped(line), None, "{line}");
        }
    }

    #[test]
    fn what_this_process_has_is_in_use() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let identity = fsx::identity(file.as_file().as_fd()).unwrap();
        let in_use = InUse::now(&BTreeSet::new());
        assert!(in_use.is_seen(&identity));
        let others = InUse::now(&BTreeSet::from([process::id()]));
        assert!(!others.is_seen(&identity));
    }

    #[test]
    fn whoever_asks_is_spared_with_all_above() {
        let spared = above(process::id());
        assert!(spared.contains(&process::id()) && spared.contains(&process::parent()));
    }
}
