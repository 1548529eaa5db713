//! Finding and removing what dead trees have left: the library's side of `offshoot reap`.
//!
//! A tree cleans up after itself, whoever of it dies, and each new tree sweeps the files of those that were killed whole. So there is
//! nothing to do here, as a rule. What can be left is what nobody of a tree was there to end: a program or daemon that a process isolate
//! had started, after the root *and* the forkserver were killed; and files, as long as no other tree starts.
//!
//! # How it tells
//! A **dead tree** is one whose lock nobody holds: the kernel releases it when root and forkserver are gone. No process ids, names or ages
//! count. One whose root is gone, and whose forkserver is stopped and so holds the lock, is dead, too: the forkserver is let go on, and takes
//! the tree down. A **stray** is a process of this user with the mark of a dead tree in its environment. The mark (`OFFSHOOT_TREE`) is set before any
//! code of the program runs and is inherited by all that is started, whatever becomes of parents, sessions, names and directories.
//! What a tree has **bound** stands in its bind tables.
//!
//! # What it never touches
//! A tree that lives; the processes and files of another user, even if called by root (but for a process that has become another user's in a tree
//! of ours); this process and those above it; what a living process
//! has bound; shared memory that a process is seen to have mapped or open; whatever is no longer the object that was registered. A process of this
//! user that may not be looked into keeps nothing, unless it is one that the tree has recorded: it is told, and what it may have mapped stays mapped.
//!
//! # Where it ends
//! A program that was started with an emptied environment (`env -i`) has no mark. While the forkserver lives, it ends those, too, since they are
//! its descendants; after it nobody can know them. Processes in another container are left alone, unless their tree's directory is here.
//!
//! ```
//! let report = offshoot::reap::Reaper::new().dry_run(true).run()?;
//! for tree in report.trees.iter().filter(|tree| !tree.alive) {
//!     println!("{}: {} processes", tree.path.display(), tree.processes.len());
//! }
//! # Ok::<(), offshoot::Error>(())
//! ```

mod strays;

pub(crate) use strays::{InUse, command_of};

use crate::janitor::{self, Manner, TreeDir, Why};
use crate::{Error, ErrorKind, Result, TreeId};
use offshoot_sys::cgroup::Cgroup;
use offshoot_sys::fsx::Identity;
use offshoot_sys::pidfd::Pidfd;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use strays::{Found, Taken};

/// How long strays have between SIGINT and SIGKILL, if nothing else is said.
const GRACE: Duration = Duration::from_secs(3);

/// How often it looks again for what strays have started while they were being ended.
const ROUNDS_MAX: usize = 16;

/// What is to be found and removed. As default: everything of all dead trees of this user in this environment's base directories.
#[derive(Clone, Debug)]
#[must_use = "`run` does it"]
pub struct Reaper {
    trees: Trees,
    dry: bool,
    grace: Duration,
    only: Vec<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trees {
    Here,
    All,
    One(TreeId),
}

/// A kind of thing to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Processes.
    Processes,
    /// Sockets, registered files, and the directories of trees.
    Sockets,
    /// Shared memory.
    SharedMemory,
}

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Each tree that was looked at.
    pub trees: Vec<Tree>,
    /// What could not be looked at, and why.
    pub problems: Vec<String>,
    /// What was left out of account, and makes nothing less clean.
    pub notes: Vec<String>,
}

/// One tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tree {
    /// Its directory, which may be gone. The last component is its id.
    pub path: PathBuf,
    /// It lives, and was not touched.
    pub alive: bool,
    /// Its strays.
    pub processes: Vec<Stray>,
    /// What was removed, or would be: what it had bound, then its directory.
    pub removed: Vec<PathBuf>,
    /// What was not removed.
    pub left: Vec<Left>,
}

/// A process that has outlived its tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stray {
    /// Its id.
    pub pid: i32,
    /// Its command line.
    pub command: String,
    /// What became of it.
    pub end: End,
}

/// What became of a stray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Nothing: it was only looked for.
    Found,
    /// It ended after SIGINT.
    Interrupted,
    /// It ended after SIGKILL.
    Killed,
    /// It did not end within ten seconds of SIGKILL, or may not be signalled.
    Survived,
}

/// Something that was not removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// What.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
    /// Whether it is still for us to remove, another time; otherwise it is not ours any more.
    pub ours: bool,
}

impl Default for Reaper {
    fn default() -> Reaper {
        Reaper::new()
    }
}

impl Reaper {
    /// For all dead trees in the base directories that a tree of this environment would use.
    pub fn new() -> Reaper {
        Reaper {
            trees: Trees::Here,
            dry: false,
            grace: GRACE,
            only: Vec::new(),
        }
    }

    /// For every dead tree of this user, wherever its directory lies, as far as a process of it is left that says so.
    pub fn all(mut self) -> Reaper {
        self.trees = Trees::All;
        self
    }

    /// For this tree only. If it lives, it is left alone, and the report is not clean.
    pub fn tree(mut self, id: TreeId) -> Reaper {
        self.trees = Trees::One(id);
        self
    }

    /// Whether it only looks and says what it would do.
    pub fn dry_run(mut self, dry: bool) -> Reaper {
        self.dry = dry;
        self
    }

    /// How long strays have between SIGINT and SIGKILL. 3 s as default.
    pub fn grace(mut self, grace: Duration) -> Reaper {
        self.grace = grace;
        self
    }

    /// Only this, and what else is named so. As default it removes all kinds.
    pub fn only(mut self, phase: Phase) -> Reaper {
        self.only.push(phase);
        self
    }

    /// Does it.
    ///
    /// # Blocking
    /// For the grace if there are strays that do not heed SIGINT, and up to ten seconds more if one does not die of SIGKILL.
    ///
    /// # Errors
    /// When the processes of the machine cannot be listed. What concerns one tree is in the report.
    pub fn run(&self) -> Result<Report> {
        let mut report = Report::default();
        let mut dead = Vec::new();
        for (path, mut strays) in self.candidates(&mut report)? {
            let case = Case::of(&path, &strays);
            if matches!(case, Ok(Case::Dead(_))) {
                strays::settle(&mut strays);
            }
            match case {
                Ok(Case::Dead(Remains::Nothing)) if strays.is_empty() => {}
                Err(error) => report.problems.push(format!("{}: {error}", path.display())),
                Ok(Case::Absent) => {}
                Ok(Case::Alive) => {
                    let mut tree = Tree::new(path);
                    tree.alive = true;
                    report.trees.push(tree);
                }
                Ok(Case::Held) => match self.release(path, strays)? {
                    Released::Done(tree) => report.trees.push(tree),
                    Released::Dead(tree) => dead.push(tree),
                },
                Ok(Case::Dead(what)) => dead.push(Dead {
                    tree: Tree::new(path),
                    what,
                    strays,
                }),
            }
        }
        if let Trees::One(id) = self.trees
            && report.trees.iter().any(|tree| tree.alive)
        {
            report.problems.push(format!("the tree {id} is alive"));
        }
        if self.wants(Phase::Processes) {
            self.end_strays(&mut dead)?;
        }
        self.sweep(&mut dead, &mut report);
        report.trees.extend(dead.into_iter().map(|dead| dead.tree));
        report.trees.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(report)
    }

    fn wants(&self, phase: Phase) -> bool {
        self.only.is_empty() || self.only.contains(&phase)
    }

    /// The trees to look at, by their directories, each with the processes that bear its mark.
    fn candidates(&self, report: &mut Report) -> Result<BTreeMap<PathBuf, Vec<Found>>> {
        let mut candidates: BTreeMap<PathBuf, Vec<Found>> = BTreeMap::new();
        let mut bases = BTreeSet::new();
        for base in janitor::default_bases() {
            let base = std::path::absolute(base)?;
            match janitor::open_base(&base, false) {
                Ok(fd) => {
                    for name in janitor::trees_in(fd.as_fd())? {
                        candidates.insert(base.join(name), Vec::new());
                    }
                }
                Err(janitor::DirError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => report.problems.push(error.to_string()),
            }
            bases.insert(base);
        }
        let strays = strays::find().map_err(|error| {
            let message = format!("cannot list the processes of this machine: {error}");
            Error::new(ErrorKind::Io(error.raw_os_error()), message)
        })?;
        // What cannot be known is told: it may be of a tree that is said to be clean.
        if !strays.unknown.is_empty() {
            let message = format!(
                "the processes {:?} are in execve or ending all the time, and cannot be known: look again",
                strays.unknown
            );
            report.problems.push(message);
        }
        for stray in strays.marked {
            let here = stray
                .mark
                .tree
                .parent()
                .is_some_and(|base| bases.contains(base));
            if here || self.trees != Trees::Here {
                let of_tree = candidates.entry(stray.mark.tree.clone()).or_default();
                of_tree.push(stray);
            }
        }
        if let Trees::One(id) = self.trees {
            let name = id.to_string();
            candidates.retain(|path, _| path.file_name() == Some(OsStr::new(&name)));
        }
        Ok(candidates)
    }

    /// Ends the strays of all of them together, and what those start meanwhile.
    fn end_strays(&self, dead: &mut [Dead]) -> Result<()> {
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                for dead in &mut *dead {
                    dead.strays.clear();
                }
                for stray in strays::find()?.marked {
                    let of = dead
                        .iter_mut()
                        .find(|dead| dead.tree.path == stray.mark.tree);
                    // One that does not die is not asked again.
                    if let Some(dead) = of.filter(|dead| !dead.survived(stray.pid)) {
                        dead.strays.push(stray);
                    }
                }
            }
            let mut all = Vec::new();
            for (index, dead) in dead.iter_mut().enumerate() {
                all.extend(dead.strays.drain(..).map(|stray| (index, stray)));
            }
            if all.is_empty() {
                return Ok(());
            }
            let (owners, strays): (Vec<usize>, Vec<Found>) = all.into_iter().unzip();
            let ends: Vec<End> = match self.dry {
                true => vec![End::Found; strays.len()],
                false => strays::end(&strays, self.grace)
                    .into_iter()
                    .map(End::from)
                    .collect(),
            };
            for ((owner, stray), end) in owners.into_iter().zip(strays).zip(ends) {
                dead[owner].tree.processes.push(Stray {
                    pid: stray.pid,
                    command: stray.command,
                    end,
                });
            }
            if self.dry {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes what they have bound, and their directories.
    fn sweep(&self, dead: &mut [Dead], report: &mut Report) {
        let doomed: BTreeSet<i32> = dead
            .iter()
            .flat_map(|dead| &dead.tree.processes)
            .filter(|stray| stray.end == End::Found)
            .map(|stray| stray.pid)
            .collect();
        // Looked for once, and only if there is any shared memory.
        let users = OnceCell::new();
        let in_use =
            |identity: &Identity| users.get_or_init(|| InUse::now(&doomed)).is_seen(identity);
        let needs = |pid: u32, start: u64| {
            !i32::try_from(pid).is_ok_and(|pid| doomed.contains(&pid))
                && strays::lives_on(pid, start)
        };
        let manner = Manner {
            dry: self.dry,
            files: self.wants(Phase::Sockets),
            memory: self.wants(Phase::SharedMemory),
            processes: self.wants(Phase::Processes),
            in_use: Some(&in_use),
            needs: Some(&needs),
        };
        for dead in dead {
            dead.sweep(&manner, report);
        }
        if let Some(hidden) = users
            .get()
            .map(InUse::hidden)
            .filter(|hidden| !hidden.is_empty())
        {
            report.notes.push(format!(
                "the processes {hidden:?} of this user may not be looked into; what shared memory they have mapped stays mapped without its name"
            ));
        }
    }

    /// A tree whose root is gone and whose forkserver is stopped.
    fn release(&self, path: PathBuf, strays: Vec<Found>) -> Result<Released> {
        let mut tree = Tree::new(path);
        let (held, others): (Vec<Found>, Vec<Found>) =
            strays.into_iter().partition(Found::is_stopped_forkserver);
        let looks_only = self.dry || !self.wants(Phase::Processes);
        let ends: Vec<End> = match looks_only {
            true => vec![End::Found; held.len()],
            false => strays::resume(&held).into_iter().map(End::from).collect(),
        };
        for (stray, end) in held.into_iter().zip(ends) {
            tree.processes.push(Stray {
                pid: stray.pid,
                command: stray.command,
                end,
            });
        }
        if looks_only {
            tree.processes.extend(others.into_iter().map(|stray| Stray {
                pid: stray.pid,
                command: stray.command,
                end: End::Found,
            }));
            return Ok(Released::Done(tree));
        }
        let mut strays = strays::find()?.marked;
        strays.retain(|stray| stray.mark.tree == tree.path);
        Ok(match Case::of(&tree.path, &strays)? {
            Case::Dead(what) => {
                strays::settle(&mut strays);
                Released::Dead(Dead { tree, what, strays })
            }
            Case::Absent => {
                tree.removed.push(tree.path.clone());
                Released::Done(tree)
            }
            Case::Alive | Case::Held => {
                tree.alive = true;
                Released::Done(tree)
            }
        })
    }
}

/// What became of a tree whose forkserver was stopped.
enum Released {
    Done(Tree),
    /// The forkserver had to be killed, and this is left.
    Dead(Dead),
}

/// Kills at once whatever one forkserver of a tree, which is dead itself, has left running.
pub(crate) fn kill_strays(tree: &Path, server: u32) {
    for _ in 0..ROUNDS_MAX {
        let search = strays::find().unwrap_or_default();
        if !search.unknown.is_empty() {
            crate::log::warn!(pids = ?search.unknown, "in execve or ending all the time, so that it cannot be known whether the tree has started them");
        }
        let mut strays = search.marked;
        strays.retain(|stray| stray.mark.tree == tree && stray.mark.server == server);
        if strays.is_empty() {
            return;
        }
        crate::log::debug!(
            count = strays.len(),
            "killing what the tree has left running"
        );
        if strays::end(&strays, Duration::ZERO).contains(&Taken::Survived) {
            return;
        }
    }
}

/// What a tree turned out to be.
enum Case {
    /// Nothing of it is here.
    Absent,
    Alive,
    /// Its root is gone, and its forkserver is stopped.
    Held,
    Dead(Remains),
}

/// What there is of a dead tree's directory.
enum Remains {
    Nothing,
    Remnant,
    Tree(TreeDir),
}

impl Case {
    fn of(path: &Path, strays: &[Found]) -> Result<Case> {
        let (Some(base), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Case::Absent);
        };
        let found = match janitor::open_base(base, false) {
            Ok(fd) => match janitor::find_tree(fd.as_fd(), name)? {
                janitor::Found::Alive if strays.iter().any(Found::is_stopped_forkserver) => {
                    let root = janitor::root_of(fd.as_fd(), name);
                    let is_gone = root.is_some_and(|(pid, start)| !strays::lives_on(pid, start));
                    return Ok(if is_gone { Case::Held } else { Case::Alive });
                }
                found => found,
            },
            Err(janitor::DirError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                janitor::Found::None
            }
            Err(error) => return Err(Error::new(ErrorKind::Io(None), error.to_string())),
        };
        let remains = match found {
            janitor::Found::Alive => return Ok(Case::Alive),
            janitor::Found::Dead(tree) => return Ok(Case::Dead(Remains::Tree(tree))),
            janitor::Found::Remnant => Remains::Remnant,
            janitor::Found::None if strays.is_empty() => return Ok(Case::Absent),
            janitor::Found::None => Remains::Nothing,
        };
        // Without a lock to ask. Somebody may have removed the directory of a tree that lives: then its forkserver does. And to a
        // process in another container the path means another place.
        let uncertain = |stray: &Found| stray.mark.process == 0 || stray.elsewhere;
        Ok(match strays.iter().any(uncertain) {
            true => Case::Alive,
            false => Case::Dead(remains),
        })
    }
}

struct Dead {
    tree: Tree,
    what: Remains,
    strays: Vec<Found>,
}

impl Dead {
    fn survived(&self, pid: i32) -> bool {
        let stray = self.tree.processes.iter().find(|stray| stray.pid == pid);
        stray.is_some_and(|stray| stray.end == End::Survived)
    }

    fn sweep(&mut self, manner: &Manner<'_>, report: &mut Report) {
        let path = self.tree.path.clone();
        match &self.what {
            Remains::Nothing => {}
            Remains::Remnant if !manner.files => {}
            Remains::Remnant => match self.remove_remnant(manner) {
                Ok(()) => self.tree.removed.push(path),
                Err(error) => report.problems.push(format!("{}: {error}", path.display())),
            },
            // It would be without its directory, by which the next call finds it.
            Remains::Tree(_)
                if self
                    .tree
                    .processes
                    .iter()
                    .any(|stray| stray.end == End::Survived) =>
            {
                self.tree.left.push(Left {
                    path,
                    why: "a process of it lives".to_owned(),
                    ours: true,
                });
            }
            Remains::Tree(tree) => {
                let hidden = match manner.processes {
                    true => hidden(tree, &self.tree.processes),
                    false => Vec::new(),
                };
                let swept = tree.remove_so(manner);
                let ended = hidden.into_iter().map(|(pid, command, pidfd)| Stray {
                    pid,
                    command,
                    end: match (manner.dry, pidfd.is_dead()) {
                        (true, _) => End::Found,
                        (false, true) => End::Killed,
                        (false, false) => End::Survived,
                    },
                });
                self.tree.processes.extend(ended);
                if swept.is_settled() && manner.files {
                    self.tree.removed.push(path);
                }
                self.tree.removed.splice(0..0, swept.removed);
                // What one asked to leave is no news.
                let left = swept.left.into_iter();
                let left = left.filter(|left| !matches!(left.why, Why::NotAsked));
                self.tree.left.extend(left.map(Left::from));
            }
        }
    }

    fn remove_remnant(&self, manner: &Manner<'_>) -> Result<()> {
        let (Some(base), Some(name)) = (self.tree.path.parent(), self.tree.path.file_name()) else {
            return Ok(());
        };
        if manner.dry {
            return Ok(());
        }
        let base = janitor::open_base(base, false)
            .map_err(|error| Error::new(ErrorKind::Io(None), error.to_string()))?;
        Ok(janitor::remove_remnant(base.as_fd(), name)?)
    }
}

/// What lives in the control groups of a tree and bears no mark of it, besides those that are known.
fn hidden(tree: &TreeDir, known: &[Stray]) -> Vec<(i32, String, Pidfd)> {
    let groups = tree.cgroups(None);
    let mut pids: Vec<i32> = groups.iter().flat_map(Cgroup::processes).collect();
    pids.retain(|pid| known.iter().all(|stray| stray.pid != *pid));
    pids.into_iter()
        .filter_map(|pid| Some((pid, strays::command_of(pid), Pidfd::open(pid).ok()?)))
        .collect()
}

impl Tree {
    fn new(path: PathBuf) -> Tree {
        Tree {
            path,
            alive: false,
            processes: Vec::new(),
            removed: Vec::new(),
            left: Vec::new(),
        }
    }
}

impl From<Taken> for End {
    fn from(taken: Taken) -> End {
        match taken {
            Taken::Interrupted => End::Interrupted,
            Taken::Killed => End::Killed,
            Taken::Survived => End::Survived,
        }
    }
}

impl From<janitor::Left> for Left {
    fn from(left: janitor::Left) -> Left {
        Left {
            ours: left.why.may_pass(),
            why: left.why.to_string(),
            path: left.path,
        }
    }
}

impl Report {
    /// True if nothing went wrong: nobody survived, and nothing that is ours to remove was left.
    ///
    /// A dry run is clean if everything could be looked at, whatever it found.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
            && self.trees.iter().all(|tree| {
                let survived = |stray: &Stray| stray.end == End::Survived;
                !tree.processes.iter().any(survived) && !tree.left.iter().any(|left| left.ours)
            })
    }
}
