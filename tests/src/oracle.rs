//! What must hold after every test, above all after every fault: one oracle, whose parts bear the numbers of the catalogue of faults.
//!
//! | | what must hold | seen by |
//! |---|---|---|
//! | O1 | no process is left, zombies included | the guard of `offshoot::testing`; the processes that bear the test's mark |
//! | O2 | nor a descriptor | the guard |
//! | O3 | nor a thread, but those that were to be abandoned | the guard |
//! | O4 | nor a file of a tree, shared memory or a socket | the guard; the directory of the runtime |
//! | O5 | every call and spawn was answered, in time | the runtime's ledger: links that ended with calls unanswered, spawns that outlasted their bounds |
//! | O6 | with a cause and a stage | the ledger: ends and failed spawns without one |
//! | O7 | every end was reported to its owner, once | the ledger |
//! | O8 | siblings were served meanwhile: all but one in a hundred, and one, within 10 ms of processor time | [`bystander`], which tests of faults call |
//! | O9 | no nursery returned before its children were gone | the ledger |
//! | O10 | no handle to what has ended takes anything | the ledger |
//! | O11 | memory is bounded | the resident set |
//!
//! Each is given a moment, since the operating system takes one to forget a thread.

use crate::DIR;
use crate::signs::{until, within};
use offshoot::testing::{Guard, Kind};
use offshoot_sys::process;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// What siblings of the faulty took to answer, less the time for which threads of this process waited for a processor.
static SERVED: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

/// How long what is about to end may take.
const SETTLING: Duration = Duration::from_secs(15);
/// In which a sibling has to answer.
const SERVED_WITHIN: Duration = Duration::from_millis(10);
/// How much larger a process may have become, in KiB; how much more, where the stack of a thread was captured, which costs 200 MiB
/// in a build for debugging, since the names of its functions are kept; and how much larger it may have been meanwhile.
const GROWN_MAX: u64 = 64 << 10;
const CAPTURED: u64 = 256 << 10;
const PEAK_MAX: u64 = 1 << 20;

pub(crate) fn expect_abandoned(threads: usize) {
    ABANDONED.store(threads, Ordering::Relaxed);
}

/// Does something with a sibling of what is faulty, and notes how long that took.
pub async fn bystander<T>(served: impl Future<Output = T>) -> T {
    let (began, waited) = (Instant::now(), waited());
    let value = served.await;
    let own = began
        .elapsed()
        .saturating_sub(self::waited().saturating_sub(waited));
    if let Ok(mut all) = SERVED.lock() {
        all.push(own);
    }
    value
}

/// Forgets what was noted of siblings, by a test that has looked at it.
pub fn forget_bystanders() {
    if let Ok(mut all) = SERVED.lock() {
        all.clear();
    }
}

/// For how long the threads of this process and of those below it have waited for a processor: what a busy machine adds to everything.
fn waited() -> Duration {
    fn of(pid: i32) -> u64 {
        let own = tasks(&pid.to_string()).into_iter().filter_map(|tid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).ok()?;
            stat.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        own.sum::<u64>() + process::children_of(pid).into_iter().map(of).sum::<u64>()
    }
    Duration::from_nanos(of(process::id()))
}

/// What there was before a test.
#[derive(Debug)]
pub struct Oracle {
    guard: Guard,
    settling: Duration,
    threads: usize,
    resident: u64,
}

impl Oracle {
    /// Looks at what there is.
    pub fn begin() -> Oracle {
        Oracle::patient(SETTLING)
    }

    /// As [`begin`](Oracle::begin), but what is about to end may take so long.
    pub fn patient(settling: Duration) -> Oracle {
        Oracle {
            settling,
            guard: Guard::new().settle(settling),
            threads: tasks("self").len(),
            resident: memory("VmRSS:"),
        }
    }

    /// What does not hold, after the last tree of this process has ended. The one function for all of it.
    pub fn verdict(self) -> Vec<String> {
        let abandoned = ABANDONED.load(Ordering::Relaxed);
        // First what the runtime has noted: looking costs it nothing, and it goes with what is left.
        let mut wrong = offshoot::verdict();
        // O1 to O4.
        for leak in self.guard.abandons(abandoned).finish() {
            let number = match leak.kind() {
                Kind::Process => "O1",
                Kind::Descriptor | Kind::Socket => "O2",
                Kind::Thread | Kind::Isolate => "O3",
                _ => "O4",
            };
            wrong.push(format!("{number}: left behind: {leak}"));
        }
        // So many were to be abandoned, and not fewer.
        if !within(self.settling, || {
            tasks("self").len() == self.threads + abandoned
        }) {
            let now = tasks("self").len();
            let then = self.threads;
            wrong.push(format!(
                "O3: there were {then} threads, there are {now} though {abandoned} were to be abandoned"
            ));
        }
        let run = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_default();
        let trees = files_in(&Path::new(&run).join("offshoot"));
        if !trees.is_empty() {
            wrong.push(format!("O4: files of trees are left: {trees:#?}"));
        }
        // O8.
        let mut served = SERVED.lock().map(|all| all.clone()).unwrap_or_default();
        served.sort_unstable();
        let late = served.iter().filter(|took| **took > SERVED_WITHIN).count();
        if late > 1 + served.len() / 100 {
            let slowest = &served[served.len() - late..];
            let of = served.len();
            wrong.push(format!(
                "O8: of {of} times a sibling was served, these took too long: {slowest:?}"
            ));
        }
        // O11. What the allocator keeps for later, in the arenas of threads that have ended, is no leak.
        #[cfg(target_env = "gnu")]
        // SAFETY: gives memory back that nobody has; takes no pointer.
        unsafe {
            libc::malloc_trim(0);
        }
        let (resident, peak) = (memory("VmRSS:"), memory("VmHWM:"));
        let grown = GROWN_MAX + if offshoot::captured() { CAPTURED } else { 0 };
        if resident > self.resident + grown || peak > self.resident + PEAK_MAX {
            let then = self.resident;
            wrong.push(format!(
                "O11: {then} KiB were resident, {resident} KiB are, and {peak} KiB were meanwhile"
            ));
        }
        wrong
    }

    /// Fails if anything does not hold.
    ///
    /// # Panics
    /// With all that does not.
    pub fn check(self) {
        let wrong = self.verdict();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// A line of the status of this process, in KiB.
fn memory(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|found| found.strip_prefix(line));
    let number = found.and_then(|found| found.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

/// The threads of a process; none if there is no such process.
pub(crate) fn tasks(process: &str) -> Vec<i32> {
    let listed = fs::read_dir(format!("/proc/{process}/task"));
    listed
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .collect()
}

/// What lies below the directory of a runtime, but for the base directory that every tree shares.
pub(crate) fn files_in(run: &Path) -> Vec<PathBuf> {
    fn add(directory: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            into.push(entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                add(&entry.path(), into);
            }
        }
    }
    let mut found = Vec::new();
    add(run, &mut found);
    found.retain(|path| path != &run.join("offshoot"));
    found
}

/// The processes that belong to the test of this directory, whosever children they are by now.
pub(crate) fn of_test(directory: &Path) -> Vec<(i32, String)> {
    let mark = [DIR.as_bytes(), b"=", directory.as_os_str().as_bytes()].concat();
    let own = process::id();
    let listed = fs::read_dir("/proc").expect("the list of processes");
    listed
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|one| one == mark)
        })
        .map(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, command.trim_end().to_owned())
        })
        .collect()
}

/// The processes of a test that has ended, after a moment in which they may end, too.
pub(crate) fn strays(directory: &Path) -> Vec<(i32, String)> {
    until(|| of_test(directory).is_empty());
    let strays = of_test(directory);
    for (pid, _) in &strays {
        if let Ok(pidfd) = offshoot_sys::pidfd::Pidfd::open(*pid) {
            let _ = pidfd.kill();
        }
    }
    strays
}

/// What the processes of a test have said of themselves, see `ledger.rs` of the crate `offshoot`.
pub fn of_children(output: &str) -> Vec<&str> {
    let lines = output.lines();
    lines.filter(|line| line.contains("the oracle: ")).collect()
}
