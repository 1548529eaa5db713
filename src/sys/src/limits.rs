//! What this process may use: descriptors and cores.

use nix::sys::resource::{Resource, getrlimit};

/// The soft and the hard limit of open descriptors (`RLIMIT_NOFILE`).
pub fn open_files() -> (u64, u64) {
    // It fails only for a bad pointer or an unknown resource. The POSIX minimum would be the careful answer to that.
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((20, 20))
}

/// How many cores this process may keep busy: the affinity mask, cut by the quota of its cgroup (v1 and v2). At least 1.
pub fn usable_cores() -> usize {
    // The standard library counts both; it asks anew at every call, so that a changed mask is seen.
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_plausible() {
        let (soft, hard) = open_files();
        assert!(soft >= 20 && soft <= hard);
        assert!(usable_cores() >= 1);
    }

    /// The mask of one thread is narrowed, so that nothing else in this test binary is.
    #[test]
    fn a_narrow_affinity_is_counted() {
        let count = std::thread::spawn(|| {
            let mine = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            let first = (0..nix::sched::CpuSet::count())
                .find(|&cpu| mine.is_set(cpu).unwrap())
                .unwrap();
            let mut one = nix::sched::CpuSet::new();
            one.set(first).unwrap();
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
            usable_cores()
        });
        assert_eq!(count.join().unwrap(), 1);
    }
}
