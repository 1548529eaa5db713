//! What this process may use, and how much of it it does: descriptors, cores, mappings, address space, processes.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::io;
use std::io::Read;

/// The soft and the hard limit of open descriptors (`RLIMIT_NOFILE`).
pub fn open_files() -> (u64, u64) {
    // It fails only for a bad pointer or an unknown resource. The POSIX minimum would be the careful answer to that.
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((20, 20))
}

/// Sets the soft limit of open descriptors, up to the hard one.
///
/// # Errors
/// As of setrlimit(2).
pub fn set_open_files(soft: u64) -> io::Result<()> {
    let hard = open_files().1;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?)
}

/// How many descriptors this process has open; `None` before Linux 6.2, where that cannot be had without listing them.
pub fn open_now() -> Option<u64> {
    let size = fs::metadata("/proc/self/fd").ok()?.len();
    (size > 0).then_some(size)
}

/// How many mappings this process has.
pub fn mappings_now() -> Option<u64> {
    let mut maps = fs::File::open("/proc/self/maps").ok()?;
    let mut buffer = vec![0; 64 << 10];
    let mut lines = 0;
    loop {
        match maps.read(&mut buffer).ok()? {
            0 => return Some(lines),
            n => lines += buffer[..n].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}

/// How many mappings a process may have (`vm.max_map_count`).
pub fn mappings_max() -> Option<u64> {
    number("/proc/sys/vm/max_map_count")
}

/// The soft limits of address space and of data (`RLIMIT_AS`, `RLIMIT_DATA`) in bytes; `None` for one that is not limited.
pub fn memory_limits() -> [Option<u64>; 2] {
    [Resource::RLIMIT_AS, Resource::RLIMIT_DATA].map(|resource| {
        let soft = getrlimit(resource).map_or(u64::MAX, |(soft, _)| soft);
        (soft != nix::libc::RLIM_INFINITY).then_some(soft)
    })
}

/// The address space and the data (private and writable) of this process now, in bytes.
pub fn memory_now() -> Option<[u64; 2]> {
    let status = crate::procfs::text("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    };
    Some([field("VmSize:")?, field("VmData:")?])
}

/// What bounds the number of threads and processes, each as a line with the limit, and how much of it is used where that is known.
pub fn of_tasks() -> Vec<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap_or((0, 0));
    let mut lines = vec![format!(
        "RLIMIT_NPROC is {soft} (hard {hard}, see `ulimit -u`)"
    )];
    for (name, path) in [
        ("kernel.threads-max", "/proc/sys/kernel/threads-max"),
        ("kernel.pid_max", "/proc/sys/kernel/pid_max"),
        ("vm.max_map_count", "/proc/sys/vm/max_map_count"),
    ] {
        if let Some(value) = number(path) {
            lines.push(format!("{name} is {value} (see sysctl)"));
        }
    }
    if let Some((used, max, place)) = pids() {
        lines.push(format!("{place} is {max}, of which {used} are used"));
    }
    lines
}

/// The pids limit of this process's cgroup, v2 or v1: used, limit, and where it stands.
fn pids() -> Option<(u64, String, String)> {
    let own = crate::procfs::text("/proc/self/cgroup").ok()?;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let roots: &[&str] = match controllers {
            "" => &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
            _ if controllers.split(',').any(|one| one == "pids") => &["/sys/fs/cgroup/pids"],
            _ => continue,
        };
        for root in roots {
            let directory = format!("{root}{}", path.trim_end_matches('/'));
            if let Some(used) = number(&format!("{directory}/pids.current"))
                && let Ok(max) = crate::procfs::text(format!("{directory}/pids.max"))
            {
                let max = max.trim().to_owned();
                return Some((used, max, format!("{directory}/pids.max")));
            }
        }
    }
    None
}

fn number(path: &str) -> Option<u64> {
    crate::procfs::text(path).ok()?.trim().parse().ok()
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

    #[test]
    fn what_is_used_is_counted() {
        let before = open_now();
        let files: Vec<_> = (0..10)
            .map(|_| fs::File::open("/proc/self/stat").unwrap())
            .collect();
        if let (Some(before), Some(after)) = (before, open_now()) {
            // Other tests of this binary open and close some, too.
            assert!(after + 5 > before, "{before} {after}");
        }
        drop(files);
        let mappings = mappings_now().unwrap();
        assert!(mappings > 10 && mappings < mappings_max().unwrap());
        let [size, data] = memory_now().unwrap();
        assert!(size > data && data > 0);
        assert!(of_tasks().len() >= 3, "{:?}", of_tasks());
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
