//! What a process has, as the kernel tells it.

use super::places;
use crate::janitor;
use crate::mark::{Looked, Mark};
use crate::reap::{self, InUse, Reaper};
use crate::runtime::{self, Runs};
use crate::{IsolateId, Result, TreeId};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::{fsx, process};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic::Location;
use std::path::{Path, PathBuf};

/// Where shared memory has names.
const SHARED_MEMORY: &str = "/dev/shm";

/// Everything that this process has at one moment: its isolates, the processes below it, its threads, descriptors, sockets and mappings; and of this
/// user, named shared memory and dead trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// By id and start, which together are not used again.
    processes: BTreeMap<(i32, u64), String>,
    /// With their tree, where they are isolates.
    threads: BTreeMap<i32, (String, Option<TreeId>)>,
    descriptors: BTreeMap<i32, String>,
    isolates: BTreeMap<IsolateId, (String, TreeId)>,
    maps: usize,
    /// Mappings that are shared, by what is mapped, and how many there are of each.
    shared: BTreeMap<String, usize>,
    memory: BTreeSet<PathBuf>,
    trees: BTreeSet<PathBuf>,
}

/// What kind of thing was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A process below this one, a zombie included.
    Process,
    /// A thread of this process. An isolate that is a thread is one.
    Thread,
    /// An isolate whose tree is not over: named with the place in the source where it was spawned. One that was abandoned is a thread.
    Isolate,
    /// An open descriptor: a file, a pipe.
    Descriptor,
    /// An open socket, with its path if it has one.
    Socket,
    /// A mapping that is shared: of shared memory, of a file, of a `memfd`.
    Mapping,
    /// A name in `/dev/shm`; with the line that made it, if the library did.
    SharedMemory,
    /// The directory of a dead tree.
    Tree,
}

/// Something that was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    kind: Kind,
    what: String,
    cleaning: Cleaning,
    /// Whose it is, where that is known.
    tree: Option<TreeId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cleaning {
    Nothing,
    Process(i32, u64),
    Memory(PathBuf),
    Tree(PathBuf),
}

impl Census {
    /// Looks now.
    ///
    /// # Blocking
    /// For some hundred reads of `/proc`, in the order of milliseconds.
    pub fn now() -> Census {
        places::keep();
        let inhabitants = runtime::inhabitants();
        let all_maps = offshoot_sys::procfs::text("/proc/self/maps").unwrap_or_default();
        let who = |runs: Runs| {
            let one = inhabitants.iter().find(|one| one.runs == runs);
            one.map_or(String::new(), |one| format!(", {}", one.who))
        };
        Census {
            isolates: inhabitants
                .iter()
                .filter(|one| !one.abandoned)
                .map(|one| (one.id, (one.who.clone(), one.tree)))
                .collect(),
            shared: shared(&all_maps),
            processes: processes()
                .into_iter()
                .map(|(key, command)| (key, command + &who(Runs::Process(key.0))))
                .collect(),
            threads: threads(process::id())
                .into_iter()
                .map(|tid| {
                    let name = name_of(process::id(), tid);
                    let mut its = inhabitants
                        .iter()
                        .filter(|one| one.runs == Runs::Thread(tid));
                    let tree = its.next().map(|one| one.tree);
                    (tid, (name + &who(Runs::Thread(tid)), tree))
                })
                .collect(),
            descriptors: descriptors(),
            maps: all_maps.lines().count(),
            memory: memory(),
            trees: dead_trees(),
        }
    }

    /// How many processes are below this one.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// How many threads this process has.
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// How many isolates there are whose tree is not over.
    pub fn isolates(&self) -> usize {
        self.isolates.len()
    }

    /// How many descriptors are open.
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    /// How many mappings this process has. Only those that are shared are compared by [`leaks`](Census::leaks): the allocator keeps some.
    pub fn maps(&self) -> usize {
        self.maps
    }

    /// What is there now and was not then.
    pub fn leaks(&self) -> Vec<Leak> {
        let now = Census::now();
        let mut leaks = Vec::new();
        let mut add = |kind, what, cleaning, tree| {
            leaks.push(Leak {
                kind,
                what,
                cleaning,
                tree,
            })
        };
        for ((pid, start), command) in &now.processes {
            if !self.processes.contains_key(&(*pid, *start)) {
                let what = format!("pid {pid}: {command}");
                let tree = match Mark::look(*pid) {
                    Ok(Looked::Marked(mark)) => tree_at(&mark.tree),
                    _ => None,
                };
                add(Kind::Process, what, Cleaning::Process(*pid, *start), tree);
            }
        }
        for (id, (who, tree)) in &now.isolates {
            if !self.isolates.contains_key(id) {
                add(Kind::Isolate, who.clone(), Cleaning::Nothing, Some(*tree));
            }
        }
        for (tid, (name, tree)) in &now.threads {
            if !self.threads.contains_key(tid) {
                let waits = offshoot_sys::thread::wait_channel(*tid);
                let what = format!("{name} (tid {tid}), in {waits}");
                add(Kind::Thread, what, Cleaning::Nothing, *tree);
            }
        }
        for (fd, target) in &now.descriptors {
            if self.descriptors.get(fd) != Some(target) {
                let kind = match target.starts_with("socket:") {
                    true => Kind::Socket,
                    false => Kind::Descriptor,
                };
                let made = made(places::of(*fd));
                let what = format!("{fd}: {target}{made}");
                add(kind, what, Cleaning::Nothing, None);
            }
        }
        for (what, many) in &now.shared {
            let before = self.shared.get(what).copied().unwrap_or(0);
            if *many > before {
                let text = format!("{what}, {} more", many - before);
                add(Kind::Mapping, text, Cleaning::Nothing, None);
            }
        }
        let new_memory: Vec<_> = now.memory.difference(&self.memory).collect();
        if !new_memory.is_empty() {
            // What another living process has is that one's, and not from here.
            let others = InUse::now(&BTreeSet::from([process::id()]));
            for path in new_memory {
                let identity = fsx::open_no_follow(path, fsx::Access::Look)
                    .and_then(|file| fsx::identity(file.as_fd()));
                if identity.is_ok_and(|identity| !others.is_seen(&identity)) {
                    let made = made(places::of_path(path));
                    let what = format!("{}{made}", path.display());
                    let cleaning = Cleaning::Memory(path.clone());
                    add(Kind::SharedMemory, what, cleaning, None);
                }
            }
        }
        for path in now.trees.difference(&self.trees) {
            let what = path.display().to_string();
            let cleaning = Cleaning::Tree(path.clone());
            add(Kind::Tree, what, cleaning, tree_at(path));
        }
        leaks
    }
}

impl Leak {
    /// What kind of thing it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it is known to be of this tree.
    pub(super) fn is_of(&self, tree: TreeId) -> bool {
        self.tree == Some(tree)
    }

    /// Cleans it up where nothing can come of that but order: a process is killed and, if it is a child of this one, reaped; a name of shared
    /// memory is removed, and a dead tree is swept. A thread cannot be ended, and closing a descriptor would be somebody else's
    /// file some day.
    pub fn clean(self) {
        match self.cleaning {
            Cleaning::Nothing => {}
            Cleaning::Process(pid, start) => {
                let pidfd = Pidfd::open(pid).ok();
                // In this order: if it is the same process now, the descriptor is of it.
                if let Some(pidfd) = pidfd.filter(|_| process::start_time(pid) == Some(start)) {
                    let _ = pidfd.kill();
                    let _ = pidfd.wait_dead(std::time::Duration::from_secs(1));
                    let _ = pidfd.reap();
                }
            }
            Cleaning::Memory(path) => drop(fs::remove_file(path)),
            Cleaning::Tree(path) => drop(reap_tree(&path)),
        }
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Process => "process",
            Kind::Thread => "thread",
            Kind::Isolate => "isolate",
            Kind::Descriptor => "descriptor",
            Kind::Socket => "socket",
            Kind::Mapping => "mapping",
            Kind::SharedMemory => "shared memory",
            Kind::Tree => "dead tree",
        };
        match self.kind {
            // Says so itself.
            Kind::Isolate => f.write_str(&self.what),
            _ => write!(f, "{kind} {}", self.what),
        }
    }
}

fn reap_tree(path: &Path) -> Result<()> {
    if let Some(tree) = tree_at(path) {
        Reaper::new().tree(tree).run()?;
    }
    Ok(())
}

/// The tree whose directory this is.
fn tree_at(path: &Path) -> Option<TreeId> {
    let id = path.file_name()?.to_str()?;
    u64::from_str_radix(id, 16).ok().map(TreeId)
}

/// The processes below this one.
fn processes() -> BTreeMap<(i32, u64), String> {
    let mut found = BTreeMap::new();
    let mut next = process::children_of(process::id());
    while let Some(pid) = next.pop() {
        if let Some(start) = process::start_time(pid)
            && found.insert((pid, start), reap::command_of(pid)).is_none()
        {
            next.extend(process::children_of(pid));
        }
    }
    found
}

fn threads(pid: i32) -> Vec<i32> {
    numbers(&format!("/proc/{pid}/task"))
}

fn name_of(pid: i32, tid: i32) -> String {
    let name =
        offshoot_sys::procfs::text(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn numbers(directory: &str) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The open descriptors and what they are, but for the one by which they are listed.
fn descriptors() -> BTreeMap<i32, String> {
    let sockets = sockets();
    let own = PathBuf::from(format!("/proc/{}/fd", process::id()));
    let mut found = BTreeMap::new();
    for fd in numbers("/proc/self/fd") {
        let Ok(target) = fs::read_link(format!("/proc/self/fd/{fd}")) else {
            continue;
        };
        if target == own {
            continue;
        }
        let mut text = target.display().to_string();
        let inode = text
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(path) = inode.and_then(|inode| sockets.get(inode)) {
            text = format!("{text} {path}");
        }
        found.insert(fd, text);
    }
    found
}

fn made(place: Option<&Location<'_>>) -> String {
    place.map_or(String::new(), |at| format!(", made at {at}"))
}

/// What is mapped and shared, of the lines of a process's mappings.
fn shared(maps: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let is_shared = fields.nth(1).is_some_and(|access| access.ends_with('s'));
        if is_shared {
            // Device, inode and path: together they are one file.
            let what: Vec<&str> = fields.skip(1).collect();
            *found.entry(what.join(" ")).or_insert(0) += 1;
        }
    }
    found
}

/// The paths of Unix sockets, by inode.
fn sockets() -> BTreeMap<String, String> {
    let table = offshoot_sys::procfs::text("/proc/net/unix").unwrap_or_default();
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(6);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Named shared memory of this user.
fn memory() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(SHARED_MEMORY).into_iter().flatten().flatten();
    let ours = |path: &PathBuf| {
        path.symlink_metadata()
            .is_ok_and(|found| found.is_file() && found.uid() == fsx::effective_user())
    };
    entries.map(|entry| entry.path()).filter(ours).collect()
}

/// Directories of trees that are dead, where a tree of this process would be.
fn dead_trees() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for base in janitor::default_bases() {
        let Ok(fd) = janitor::open_base(&base, false) else {
            continue;
        };
        for name in janitor::trees_in(fd.as_fd()).unwrap_or_default() {
            if matches!(
                janitor::find_tree(fd.as_fd(), &name),
                Ok(janitor::Found::Dead(_))
            ) {
                found.insert(base.join(name));
            }
        }
    }
    found
}

/// What a thread has done with its time.
pub(super) struct Times {
    /// On a processor (ns).
    pub(super) computed: u64,
    /// For a processor (ns).
    pub(super) waited: u64,
    pub(super) name: String,
}

/// Of every thread of this process and of those below it, by process and thread.
pub(super) fn times() -> BTreeMap<(i32, i32), Times> {
    let below = processes().into_keys().map(|(pid, _)| pid);
    let mut found = BTreeMap::new();
    for pid in below.chain([process::id()]) {
        for tid in threads(pid) {
            let stat = offshoot_sys::procfs::text(format!("/proc/{pid}/task/{tid}/schedstat"));
            let stat = stat.unwrap_or_default();
            let mut numbers = stat.split_whitespace().filter_map(|text| text.parse().ok());
            if let (Some(computed), Some(waited)) = (numbers.next(), numbers.next()) {
                let name = name_of(pid, tid);
                let times = Times {
                    computed,
                    waited,
                    name,
                };
                found.insert((pid, tid), times);
            }
        }
    }
    found
}
