//! Control groups, version 2, below that of this process: made, entered, emptied by force, removed.
//!
//! A control group holds a process and all that it starts, however often that forks, whatever environment, group or session it takes: the one thing
//! that a program cannot leave by mistake. No controller is switched on in any; nothing is limited here.
//!
//! Whether one can be had is up to whoever runs the machine: the hierarchy has to be mounted, and this process's own group to be writable
//! (delegated, or we are root).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How deep groups are removed; what a process below has made for itself is seldom deeper than one.
const DEPTH_MAX: usize = 16;

/// How often it is looked whether a group has become empty.
const STEP: Duration = Duration::from_millis(1);

/// A control group, by its directory.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// That of this process, if groups can be made below it.
    ///
    /// # Errors
    /// When there is no hierarchy of version 2, it is not writable for us, or the kernel is older than 5.14, from which on a group can be killed.
    pub fn own() -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::Unsupported, "no cgroup v2 is mounted");
        let groups = crate::procfs::text("/proc/self/cgroup")?;
        let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
        let mounts = crate::procfs::text("/proc/self/mountinfo")?;
        let path = group.and_then(|group| mounted(&mounts, Path::new(group)));
        let own = Self {
            path: path.ok_or_else(missing)?,
        };
        // Whoever moves a process has to be able to write here, where it comes from, too.
        OpenOptions::new()
            .write(true)
            .open(own.file("cgroup.procs"))?;
        Ok(own)
    }

    /// The group of this directory. Nothing is looked at.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a group in this one.
    ///
    /// # Errors
    /// When the system refuses, or makes one that cannot be killed or takes no processes.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        let made = Self {
            path: self.path.join(name),
        };
        fs::create_dir(&made.path)?;
        let usable = || {
            let kind = crate::procfs::text(made.file("cgroup.type"))?;
            if kind.trim_end() != "domain" || !made.file("cgroup.kill").exists() {
                let message = format!(
                    "the control groups in {} are of no use",
                    self.path.display()
                );
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            Ok(())
        };
        usable().inspect_err(|_| drop(fs::remove_dir(&made.path)))?;
        Ok(made)
    }

    /// What a process writes `0` into to enter it: see [`enter`].
    ///
    /// # Errors
    /// When it is gone, or the system refuses.
    pub fn door(&self) -> io::Result<OwnedFd> {
        let file = OpenOptions::new()
            .write(true)
            .open(self.file("cgroup.procs"))?;
        Ok(file.into())
    }

    /// The processes in it and in those below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        self.each(0, &mut |group| {
            let listed = crate::procfs::text(group.file("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
        // One whose id means nothing in our namespace is shown as 0.
        found.retain(|pid| *pid > 0);
        found
    }

    /// Whether any process lives in it or below; a zombie does not.
    pub fn is_populated(&self) -> bool {
        let events = crate::procfs::text(self.file("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Kills every process in it and below, those that fork meanwhile included, and waits until they are dead. True if they are.
    ///
    /// # Blocking
    /// Up to `bound`.
    pub fn kill(&self, bound: Duration) -> bool {
        if !self.is_populated() {
            return true;
        }
        let deadline = Instant::now() + bound;
        let killed = OpenOptions::new()
            .write(true)
            .open(self.file("cgroup.kill"));
        if killed.and_then(|mut file| file.write_all(b"1")).is_err() {
            return !self.is_populated();
        }
        while self.is_populated() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(STEP);
        }
        true
    }

    /// Removes it and those below, which must be empty. That it is gone is no error.
    ///
    /// # Errors
    /// When a process lives in it, or the system refuses.
    pub fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        self.each(0, &mut |group| match fs::remove_dir(&group.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
            _ => {}
        });
        result
    }

    /// Calls `f` for those below, then for itself.
    fn each(&self, depth: usize, f: &mut impl FnMut(&Self)) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            if depth < DEPTH_MAX && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                Self::at(entry.path()).each(depth + 1, f);
            }
        }
        f(self);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Whether `path` lies in a hierarchy of version 2, whoever says so.
pub fn is_cgroup(path: &Path) -> bool {
    let Ok(mounts) = crate::procfs::text("/proc/self/mountinfo") else {
        return false;
    };
    // No link may lead out of it.
    let plain = path.canonicalize().is_ok_and(|real| real == path);
    plain
        && mounts
            .lines()
            .filter_map(mount)
            .any(|(_, point)| path.starts_with(point))
}

/// Moves the calling process, and so what it will start, into the group of this [door](Cgroup::door).
///
/// # Errors
/// When the system refuses: a group that has controllers for those below it takes no process itself.
pub fn enter(door: &OwnedFd) -> io::Result<()> {
    File::from(door.try_clone()?).write_all(b"0")
}

/// Where a group lies, of those that are mounted here.
fn mounted(mounts: &str, group: &Path) -> Option<PathBuf> {
    mounts.lines().filter_map(mount).find_map(|(root, point)| {
        let below = group.strip_prefix(root).ok()?;
        Some(match below.as_os_str().as_bytes() {
            b"" => point,
            _ => point.join(below),
        })
    })
}

/// What of the hierarchy a line of the mounts shows, and where.
fn mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (fields, rest) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(3);
    let plain = |text: &str| (!text.contains('\\')).then(|| PathBuf::from(text));
    let (root, point) = (plain(fields.next()?)?, plain(fields.next()?)?);
    (rest.split(' ').next() == Some("cgroup2")).then_some((root, point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    #[test]
    fn mounts_are_read() {
        let mounts = "31 25 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      42 25 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let of = |mounts: &str, group: &str| mounted(mounts, Path::new(group));
        let all = "/sys/fs/cgroup/unified";
        assert_eq!(of(mounts, "/"), Some(PathBuf::from(all)));
        assert_eq!(
            of(mounts, "/user/one"),
            Some(Path::new(all).join("user/one"))
        );
        // In a container only a part is mounted.
        let part = "1 2 0:28 /pod/a /sys/fs/cgroup ro - cgroup2 cgroup2 ro";
        assert_eq!(
            of(part, "/pod/a/x"),
            Some(PathBuf::from("/sys/fs/cgroup/x"))
        );
        assert_eq!(of(part, "/elsewhere"), None);
        assert_eq!(
            of(
                "31 25 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw",
                "/"
            ),
            None
        );
        for wrong in [
            "",
            "1 2 3",
            "1 2 3 / /x rw -",
            "1 2 3 /a\\040b /x rw - cgroup2 x rw",
        ] {
            assert_eq!(of(wrong, "/"), None, "{wrong}");
        }
    }

    /// Where there are none, that is an error and nothing more.
    #[test]
    fn a_group_is_emptied_by_force() {
        let own = match Cgroup::own() {
            Ok(own) => own,
            Err(error) => {
                eprintln!("no control groups here: {error}");
                return;
            }
        };
        let name = format!("offshoot-test-{}", std::process::id());
        let group = own.make(&name).unwrap();
        assert!(is_cgroup(group.path()) && !is_cgroup(Path::new("/tmp")));
        assert!(own.make(&name).is_err());
        assert!(!group.is_populated() && group.processes().is_empty());
        // It lets go of everything that could give it away.
        let script = format!(
            "echo 0 > {}/cgroup.procs; mkdir {}/inner; env -i setsid sh -c 'sleep 1000 & wait' & echo begun; wait",
            group.path().display(),
            group.path().display(),
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 5];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut word)
            .unwrap();
        assert!(group.is_populated() && group.processes().len() >= 2);
        assert!(group.remove().is_err());
        assert!(group.kill(Duration::from_secs(5)));
        assert!(!group.is_populated() && group.processes().is_empty());
        child.wait().unwrap();
        group.remove().unwrap();
        assert!(!group.path().exists());
        // What is gone is empty.
        assert!(group.kill(Duration::ZERO) && group.remove().is_ok());
    }
}
