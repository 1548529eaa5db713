//! Descriptors: none is inherited, and threads need none. F42.

use crate::oracle;
use crate::program::double;
use offshoot::prelude::*;
use std::fs::File;
use std::os::fd::AsRawFd;

/// What a process has open, as `/proc` shows it: number and what it is.
fn open(pid: i32) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc");
    let mut found: Vec<(u32, String)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let what = std::fs::read_link(entry.path()).ok()?;
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                what.to_string_lossy().into_owned(),
            ))
        })
        .collect();
    found.sort();
    found
}

/// Opens a file without close-on-exec, as a careless C library does; closed when the result is dropped.
#[must_use]
fn leak(what: &str) -> File {
    let file = File::open(what).expect("a file");
    // SAFETY: takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(result, 0);
    file
}

/// Starts one below, and says which process it is.
async fn nest() -> Result<Vec<(u32, String)>> {
    std::mem::forget(leak("/proc/self/status"));
    offshoot::nursery(async |nursery| {
        let below = nursery.spawn(Isolate::named("below").process()).await?;
        below.call(double, 1).await?;
        Ok(open(below.origin().pid))
    })
    .await
}

fn assert_own(who: &str, fds: &[(u32, String)]) {
    println!("{who}: {fds:?}");
    let mut pipes = 0;
    for (number, what) in fds {
        pipes += usize::from(*number > 2 && what.starts_with("pipe:"));
        // The lifeline is a pipe.
        let ours = *number <= 2
            || what.starts_with("socket:")
            || what.starts_with("anon_inode:[event")
            || (what.starts_with("pipe:") && pipes == 1);
        assert!(ours, "{who} has descriptor {number}, {what}, of {fds:?}");
    }
    // The three standard ones, link, control connection, lifeline, poll and its waker.
    assert!(
        fds.len() <= 9,
        "{who} has {} descriptors: {fds:?}",
        fds.len()
    );
}

/// Not the lock of the tree above all, which would keep a dead tree alive; and nothing that the parent leaked. (F42)
pub(crate) fn only_its_own() {
    let _maps = leak("/proc/self/maps");
    offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            let first = nursery.spawn(Isolate::named("first").process()).await?;
            first.call(double, 1).await?;
            let _later = leak("/etc/passwd");
            let second = nursery.spawn(Isolate::named("second").process()).await?;
            second.call(double, 1).await?;
            assert_own("first", &open(first.origin().pid));
            assert_own("second", &open(second.origin().pid));
            assert_own("one below another", &first.call(nest, ()).await??);
            // The check can fail: the forkserver has the lock, and this process what it leaked.
            let forkserver = oracle::forkserver_of(oracle::own_pid()).expect("a forkserver");
            assert!(
                open(forkserver.pid)
                    .iter()
                    .any(|(_, what)| what.ends_with("/lock"))
            );
            assert!(
                open(oracle::own_pid())
                    .iter()
                    .any(|(_, what)| what.ends_with("/passwd"))
            );
            Ok(())
        })
        .await
    })
    .unwrap_or_else(|error| panic!("{}", error.report()));
}

/// A thousand isolates that are threads, alive and called, need 20 descriptors at most, all together.
pub(crate) fn a_thousand_threads() {
    let before = open(oracle::own_pid()).len();
    let most = offshoot::Builder::new()
        .stack_size(128 << 10)
        .run(async move || {
            offshoot::nursery(async |nursery| {
                let mut portals = Vec::new();
                for n in 0..1000 {
                    portals.push(
                        nursery
                            .spawn(Isolate::named(format!("i{n}")).thread())
                            .await?,
                    );
                }
                for (n, portal) in portals.iter().enumerate() {
                    assert_eq!(portal.call(double, n as u64).await?, 2 * n as u64);
                }
                Ok(open(oracle::own_pid()).len())
            })
            .await
        })
        .unwrap_or_else(|error| panic!("{}", error.report()));
    println!("{before} descriptors before, {most} with 1,000 isolates");
    assert!(most <= 20, "{most} descriptors");
    assert_eq!(
        open(oracle::own_pid()).len(),
        before,
        "{:?}",
        open(oracle::own_pid())
    );
}
