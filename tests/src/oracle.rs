//! What must hold after every test: nothing of it is left.
//!
//! O1 no process, O2 no descriptor, O3 no thread, O4 no file; the names are those of the catalogue
//! of faults. Each is given a moment, since the operating system takes one to forget a thread.

use crate::DIR;
use crate::signs::until;
use offshoot_sys::process;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn expect_abandoned(threads: usize) {
    ABANDONED.store(threads, Ordering::Relaxed);
}

/// What there was before the test.
pub(crate) struct Before {
    descriptors: BTreeMap<String, PathBuf>,
    threads: usize,
}

impl Before {
    pub(crate) fn now() -> Before {
        Before {
            descriptors: descriptors(),
            threads: tasks("self").len(),
        }
    }

    /// Fails if there is more now.
    pub(crate) fn check(&self) {
        let abandoned = ABANDONED.load(Ordering::Relaxed);
        let own = process::id();
        assert!(
            until(|| process::children_of(own).is_empty()),
            "O1: processes are left: {:?}",
            process::children_of(own)
        );
        assert!(
            until(|| tasks("self").len() == self.threads + abandoned),
            "O3: there were {} threads, there are {} though {abandoned} were abandoned: {:#?}",
            self.threads,
            tasks("self").len(),
            tasks("self")
                .into_iter()
                .map(offshoot_sys::thread::wait_channel)
                .collect::<Vec<_>>()
        );
        assert!(
            until(|| descriptors().len() == self.descriptors.len()),
            "O2: there were {:#?}, there are {:#?}",
            self.descriptors,
            descriptors()
        );
        let run = crate::dir().join("run");
        assert!(
            files_in(&run).is_empty(),
            "O4: files are left: {:#?}",
            files_in(&run)
        );
    }
}

/// The open descriptors and what they are, but for the one by which they are listed.
fn descriptors() -> BTreeMap<String, PathBuf> {
    let listed = fs::read_dir("/proc/self/fd").expect("the list of descriptors");
    listed
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_string_lossy().into_owned();
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target))
        })
        .filter(|(_, target)| target != Path::new(&format!("/proc/{}/fd", process::id())))
        .collect()
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
