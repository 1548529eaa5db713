//! The control groups of a tree: one per forkserver, and in it one per process isolate, where the tree asks for them and they can be had.
//!
//! Each is written down in the tree's directory before it exists, as everything is that outlives a kill. What is written there may be a lie of a
//! hostile process of the tree; so only a group is touched that bears the tree's number.

use super::TreeDir;
use super::sweep::{Swept, Why};
use crate::mark::Mark;
use offshoot_sys::cgroup::{self, Cgroup};
use offshoot_sys::fsx::{self, Access};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::process;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What names the file that names the group of one forkserver.
const PREFIX: &str = "cgroup-";

/// The longest path that is read.
const PATH_MAX: u64 = 4_096;

/// How long the processes in a group may take to die.
const DEATH_MAX: Duration = Duration::from_secs(1);

impl TreeDir {
    /// Makes the group of a forkserver of this tree, below the caller's own.
    ///
    /// # Errors
    /// When there are none on this machine, or not for us.
    pub(crate) fn make_cgroup(&self, server: u32) -> io::Result<Cgroup> {
        let own = Cgroup::own()?;
        let name = self.cgroup_name(server)?;
        let note = fsx::create(self.dir_fd(), note(server).as_ref())?;
        fsx::write_at(
            note.as_fd(),
            own.path().join(&name).as_os_str().as_bytes(),
            0,
        )?;
        own.make(&name)
    }

    fn cgroup_name(&self, server: u32) -> io::Result<String> {
        let id = self.path().file_name().and_then(OsStr::to_str);
        let id = id.ok_or_else(|| io::Error::other("a tree without a number"))?;
        Ok(format!("offshoot-{id}-{server}"))
    }

    /// The groups that this tree has made, or those of one forkserver.
    pub(crate) fn cgroups(&self, only: Option<u32>) -> Vec<Cgroup> {
        let names = fsx::list(self.dir_fd()).unwrap_or_default();
        let servers = names.iter().filter_map(|name| {
            let number = name.to_str()?.strip_prefix(PREFIX)?;
            number.parse::<u32>().ok()
        });
        servers
            .filter(|server| only.is_none_or(|only| only == *server))
            .filter_map(|server| self.cgroup(server))
            .collect()
    }

    fn cgroup(&self, server: u32) -> Option<Cgroup> {
        let file = fsx::open_beneath(self.dir_fd(), note(server).as_ref(), Access::Read).ok()?;
        let mut bytes = Vec::new();
        File::from(file)
            .take(PATH_MAX)
            .read_to_end(&mut bytes)
            .ok()?;
        let path = PathBuf::from(OsStr::from_bytes(&bytes));
        let ours = path.file_name()?.to_str()? == self.cgroup_name(server).ok()?;
        (ours && cgroup::is_cgroup(&path)).then(|| Cgroup::at(path))
    }

    /// Ends what lives in these groups, and removes them.
    pub(crate) fn end_cgroups(&self, only: Option<u32>) -> Swept {
        let mut swept = Swept::default();
        for group in self.cgroups(only) {
            match end(&group, self.path()) {
                Ok(()) => swept.removed.push(group.path().to_owned()),
                Err(error) => swept.leave(group.path(), Why::Failed(error)),
            }
        }
        swept
    }
}

fn note(server: u32) -> String {
    format!("{PREFIX}{server}")
}

/// Ends what lives in a group of this tree, and removes it. Forkservers of other trees, whose roots were in it, take those down by themselves, for which
/// they are given time.
///
/// # Blocking
/// Two seconds, if somebody does not die.
pub(crate) fn end(group: &Cgroup, tree: &Path) -> io::Result<()> {
    let deadline = Instant::now() + DEATH_MAX;
    for pid in group.processes() {
        let mark = Mark::of(pid).ok().flatten();
        if mark.is_some_and(|mark| mark.process == 0 && mark.tree != tree)
            && let Ok(janitor) = Pidfd::open(pid)
        {
            let _ = janitor.wait_dead(deadline.saturating_duration_since(Instant::now()));
        }
    }
    if !group.kill(DEATH_MAX) {
        let left = group.processes();
        // Ourselves, in a group that we should not be in: there is nobody to kill us.
        let own = left.contains(&process::id());
        let message = format!(
            "its processes {left:?} do not die{}",
            if own { ", one of which asks" } else { "" }
        );
        return Err(io::Error::other(message));
    }
    group.remove()
}
