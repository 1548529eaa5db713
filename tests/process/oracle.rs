//! What there is: processes by `/proc`, files of trees, and how long the machine itself stood still.
//!
//! Looks for itself and uses none of the code under test for it, but the names of processes by descriptor.

use offshoot_sys::clock;
use offshoot_sys::pidfd::Pidfd;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One line of the process table.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: char,
    /// In clock ticks since boot; with the pid a name that is not reused.
    pub(crate) started: u64,
    pub(crate) name: String,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may contain anything, also blanks and parentheses.
        let (head, tail) = stat.rsplit_once(") ")?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split(' ').collect();
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            started: fields.get(19)?.parse().ok()?,
            name,
        })
    }

    /// The same process is still there, as a zombie at least.
    pub(crate) fn is_there(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// A handle to exactly this process; `None` once it is gone.
    pub(crate) fn pidfd(&self) -> Option<Pidfd> {
        let pidfd = Pidfd::open(self.pid).ok()?;
        // Looked at after the descriptor was opened: if it is still the same, the descriptor is of it.
        self.is_there().then_some(pidfd)
    }

    pub(crate) fn describe(&self) -> String {
        let read = |what: &str| {
            fs::read_to_string(format!("/proc/{}/{what}", self.pid)).unwrap_or_default()
        };
        format!(
            "  pid {} parent {} state {} name {} waits in {} command {}",
            self.pid,
            self.parent,
            self.state,
            self.name,
            read("wchan"),
            read("cmdline").replace('\0', " ").trim()
        )
    }
}

/// Every process of the machine.
fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::read)
        .collect()
}

/// The processes below `pid`, itself not included, nearest first.
pub(crate) fn below(pid: i32) -> Vec<Process> {
    let all = all();
    let mut known = BTreeSet::from([pid]);
    let mut found = Vec::new();
    loop {
        let next: Vec<Process> = all
            .iter()
            .filter(|process| known.contains(&process.parent) && !known.contains(&process.pid))
            .cloned()
            .collect();
        if next.is_empty() {
            return found;
        }
        known.extend(next.iter().map(|process| process.pid));
        found.extend(next);
    }
}

/// The child of `pid` that is a forkserver.
pub(crate) fn forkserver_of(pid: i32) -> Option<Process> {
    // Its name is cut to what the kernel keeps of one.
    let is_one =
        |process: &Process| process.parent == pid && process.name.starts_with("offshoot-forks");
    below(pid)
        .into_iter()
        .find(|process| is_one(process) && process.state != 'Z')
}

/// The processes below the forkserver `pid` that are somebody's; not those that wait in reserve.
pub(crate) fn isolates_below(pid: i32) -> Vec<Process> {
    let mut all = below(pid);
    all.retain(|process| !is_reserve(process));
    all
}

/// Whether it waits in the forkserver's reserve.
pub(crate) fn is_reserve(process: &Process) -> bool {
    // Its name is cut to what the kernel keeps of one.
    process.name.starts_with("offshoot-reser")
}

/// Everything below this process, for a report.
pub(crate) fn table() -> String {
    let lines: Vec<String> = below(own_pid()).iter().map(Process::describe).collect();
    lines.join("\n")
}

pub(crate) fn own_pid() -> i32 {
    offshoot_sys::process::id()
}

pub(crate) enum Left {
    Nothing,
    /// As a table for a report.
    Processes(String),
}

/// Reaps until this process has no child any more. Since it adopts orphans, then nothing is left below it.
pub(crate) fn wait_childless(bound: Duration) -> Left {
    let deadline = Instant::now() + bound;
    loop {
        while offshoot_sys::process::reap_any().is_some() {}
        let left = below(own_pid());
        if left.is_empty() {
            return Left::Nothing;
        }
        if Instant::now() > deadline {
            let lines: Vec<String> = left.iter().map(Process::describe).collect();
            return Left::Processes(lines.join("\n"));
        }
        // There is no event for the end of a process that is not yet a child.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills and reaps all that is below, so that the next case starts clean.
pub(crate) fn kill_children() {
    for _ in 0..100 {
        for process in below(own_pid()) {
            if let Some(pidfd) = process.pidfd() {
                let _ = pidfd.kill();
            }
        }
        if let Left::Nothing = wait_childless(Duration::from_millis(50)) {
            return;
        }
    }
    eprintln!("some processes do not end:\n{}", table());
}

/// What lies in the base directory of trees beneath this runtime directory.
pub(crate) fn tree_files(runtime: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime.join("offshoot"));
    entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// The same for the runtime directory of this process.
pub(crate) fn own_tree_files() -> Vec<PathBuf> {
    tree_files(Path::new(
        &std::env::var_os("XDG_RUNTIME_DIR").expect("the runner sets it"),
    ))
}

/// Waits until `done` holds, looking every millisecond. False if it does not within the bound.
pub(crate) fn within(bound: Duration, done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + bound;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// How long the machine did not run a thread that wanted to: (when, for how long), in ns.
static STALLS: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// Watches for stalls from now on, so that a bound can be extended by what the code under test cannot answer for: a test
/// beside this one, or a neighbour on the same host.
pub(crate) fn watch_stalls() {
    let thread = std::thread::spawn(|| {
        while !UNWATCHED.load(Ordering::Relaxed) {
            let before = clock::now();
            std::thread::sleep(Duration::from_millis(1));
            let late = clock::now() - before - 1_000_000;
            if late > 2_000_000 {
                STALLS
                    .lock()
                    .expect("no panic under it")
                    .push((before, late));
            }
        }
    });
    *WATCH.lock().expect("no panic under it") = Some(thread);
}

static WATCH: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);
static UNWATCHED: AtomicBool = AtomicBool::new(false);

/// Stops watching, so that its thread is not taken for one that the case has left.
pub(crate) fn unwatch_stalls() {
    UNWATCHED.store(true, Ordering::Relaxed);
    let thread = WATCH.lock().expect("no panic under it").take();
    if let Some(thread) = thread {
        thread.join().expect("it only sleeps");
    }
}

/// The time that was stalled between two points of the clock.
pub(crate) fn stalled(from: u64, to: u64) -> u64 {
    let stalls = STALLS.lock().expect("no panic under it");
    stalls
        .iter()
        .filter(|(at, late)| at + late >= from && *at <= to)
        .map(|(_, late)| late)
        .sum()
}

/// When processes died, to the precision with which this process is scheduled.
pub(crate) struct Deaths(std::thread::JoinHandle<BTreeMap<i32, u64>>);

impl Deaths {
    /// Watches these from now on. What is gone already counts as dead now.
    pub(crate) fn watch(processes: &[Process]) -> Deaths {
        let watched: Vec<(i32, Option<Pidfd>)> = processes
            .iter()
            .map(|process| (process.pid, process.pidfd()))
            .collect();
        Deaths(std::thread::spawn(move || {
            let mut died = BTreeMap::new();
            let mut alive = watched;
            while !alive.is_empty() {
                let fds: Vec<_> = alive
                    .iter()
                    .flat_map(|(_, pidfd)| pidfd.as_ref().map(AsFd::as_fd))
                    .collect();
                if fds.len() == alive.len() {
                    let _ = offshoot_sys::poll::wait(&fds, Some(Duration::from_secs(60)));
                }
                let now = clock::now();
                alive.retain(|(pid, pidfd)| {
                    let dead = pidfd.as_ref().is_none_or(Pidfd::is_dead);
                    if dead {
                        died.insert(*pid, now);
                    }
                    !dead
                });
            }
            died
        }))
    }

    /// Waits until all of them have died. By pid, the clock in ns.
    pub(crate) fn all(self) -> BTreeMap<i32, u64> {
        self.0.join().expect("it only waits")
    }
}

/// Small random numbers from a seed that can be repeated.
pub(crate) struct Random(u64);

impl Random {
    /// From `OFFSHOOT_SEED`, else from the clock. Says which.
    pub(crate) fn new() -> Random {
        let given = std::env::var("OFFSHOOT_SEED").ok();
        let seed = match given {
            Some(text) => text.parse().expect("OFFSHOOT_SEED is a number"),
            None => clock::now() ^ (u64::from(std::process::id()) << 40),
        };
        println!("OFFSHOOT_SEED={seed}");
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn duration(&mut self, end: Duration) -> Duration {
        let end = u64::try_from(end.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.below(end))
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }
}
