//! What a host program, a user or the system does around a tree: forks, signals, lost directories,
//! clocks that are set. And two promises about the sources that no run could show.

use super::{double, serves};
use offshoot::net::{UnixListener, UnixStream};
use offshoot::prelude::*;
use offshoot_sys::fork;
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_tests::{append, both, lines, processes};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// The sources of the machine, without their tests.
fn sources() -> Vec<(PathBuf, String)> {
    fn add(directory: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(directory).expect("the sources").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("tests") && !path.ends_with("fuzz") {
                add(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                into.push((path, code.to_owned()));
            }
        }
    }
    let mut found = Vec::new();
    add(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../src"),
        &mut found,
    );
    assert!(found.len() > 50, "{} files", found.len());
    found
}

/// The sources that contain one of these, by the ends of their paths.
fn containing(patterns: &[&str]) -> Vec<String> {
    let mut found: Vec<String> = sources()
        .into_iter()
        .filter(|(_, code)| patterns.iter().any(|pattern| code.contains(pattern)))
        .map(|(path, _)| {
            let parts: Vec<_> = path.iter().rev().take(3).collect();
            let parts = parts
                .into_iter()
                .rev()
                .map(|part| part.to_string_lossy().into_owned());
            parts.collect::<Vec<_>>().join("/")
        })
        .collect();
    found.sort();
    found
}

/// By pidfd only. By number: in `own`, a child that nobody has reaped; in `exec_self`, the same; in
/// `kill_group`, the group of a child that nobody has reaped.
#[test]
fn f31_nothing_is_killed_by_number() {
    let found = containing(&["libc::kill(", "killpg", "signal::kill("]);
    assert_eq!(
        found,
        ["sys/src/fork.rs", "sys/src/process.rs", "sys/src/spawn.rs"]
    );
}

/// The monotonic clock only. The wall clock: in slices of 100 ms where a C library joins by nothing
/// else; as an error of the program's that is converted.
#[test]
fn f52_no_deadline_is_of_a_clock_that_can_be_set() {
    let found = containing(&["SystemTime", "CLOCK_REALTIME", "CLOCK_BOOTTIME"]);
    assert_eq!(found, ["sys/src/thread.rs", "wire/src/error.rs"]);
}

/// The descriptors that a program is given that is started here: those without close-on-exec.
fn inherited() -> Result<Vec<String>> {
    let listed = Command::new("ls").arg("/proc/self/fd").output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(listed.split_whitespace().map(str::to_owned).collect())
}

fn limits() -> String {
    fs::read_to_string("/proc/self/limits").expect("/proc")
}

processes! {
    async fn f51_the_directory_is_removed(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let base = offshoot_tests::dir().join("run/offshoot");
            assert!(base.is_dir(), "{}", base.display());
            fs::remove_dir_all(&base)?;
            // Links need no name, and the forkserver holds the directory itself.
            serves(&p).await?;
            let next = nursery.spawn("next").await?;
            serves(&next).await?;
            // What needs a name of its own says so.
            let path = offshoot_tests::dir().join("socket");
            match UnixListener::bind(&path).await {
                Ok(listener) => drop(listener),
                Err(error) => assert!(error.to_string().contains("socket"), "{error}"),
            }
            Ok(())
        })
        .await?;
    }

    async fn f54_a_program_that_is_started_beside_it_inherits_nothing(_t: T) {
        // Whatever this test was started with.
        let before = inherited()?;
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
            serves(&p).await?;
            serves(&thread).await?;
            let path = offshoot_tests::dir().join("socket");
            let listener = UnixListener::bind(&path).await?;
            let _stream = UnixStream::connect(&path).await?;
            assert_eq!(inherited()?, before);
            drop(listener);
            Ok(())
        })
        .await?;
    }

    async fn f62_a_crash_writes_no_core(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let limits = p.call(limits, ()).await?;
            let core = limits.lines().find(|line| line.starts_with("Max core file size"));
            let values: Vec<&str> = core.unwrap_or_default().split_whitespace().collect();
            assert_eq!(values[4..6], ["0", "0"], "{limits}");
            Ok(())
        })
        .await?;
    }
}

both! {
    /// In the copy, whatever is asked of a handle is refused at once; what comes back into the event loop ends there.
    async fn f54_a_copy_of_the_process_by_fork_touches_nothing_of_the_tree(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", 20_u64).await?;
            serves(&p).await?;
            // SAFETY: a copy of one thread. What another one may hold of the allocator, the C library sees to; the rest of this tree is idle.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let refused = [
                    p.call(double, 4).await.map(drop),
                    p.ask(Clone::clone, ()).await.map(drop),
                    p.tell(Clone::clone, ()).await.map(drop),
                    p.open(opened, ()).await.map(drop),
                ];
                for refused in refused {
                    append("refused", &refused.expect_err("a copy").message().replace('\n', " "));
                }
                p.cancel().await;
                append("refused", "it went on");
            }
            let copy = Pidfd::open(pid)?;
            if !copy.wait_dead(Duration::from_secs(20))? {
                copy.kill()?;
                copy.wait_dead(Duration::from_secs(20))?;
            }
            let status = copy.reap()?.expect("it is a child of this process");
            assert_eq!(status, Status::Exited(fork::EXIT_COPY));
            let refused = lines("refused");
            assert!(refused.len() >= 4, "{refused:?}");
            assert!(refused[..4].iter().all(|line| line.contains("by `fork`")), "{refused:?}");
            serves(&p).await?;
            assert_eq!(p.ask(Clone::clone, ()).await?, 20);
            Ok(())
        })
        .await?;
    }
}

async fn opened(mut peer: offshoot::Peer<(), ()>) {
    let _ = peer.started(());
}

extern "C" fn does_nothing(_: libc::c_int) {}

/// Interrupts every thread of this process some thousand times a second, until it is dropped.
struct Storm {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Storm {
    fn begin() -> Storm {
        // SAFETY: an all-zero action is valid; the handler takes what a handler is given; without
        // SA_RESTART, system calls end with EINTR.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = does_nothing as *const () as usize;
            assert_eq!(
                libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()),
                0
            );
        }
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let (until, count) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let tasks = fs::read_dir("/proc/self/task").expect("/proc");
                for tid in tasks
                    .flatten()
                    .filter_map(|task| task.file_name().to_str()?.parse().ok())
                {
                    let tid: i32 = tid;
                    // SAFETY: takes no pointer; the process is named, so that no other's thread is hit.
                    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR2) };
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Storm {
            stop,
            sent,
            thread: Some(thread),
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
        assert!(self.sent.load(Ordering::Relaxed) > 100);
    }
}

both! {
    fn f64_a_storm_of_signals(t: T) {
        let storm = Storm::begin();
        for _ in 0..3 {
            t.run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let long = vec![7_u8; 3 << 20];
                    for n in 0..100 {
                        assert_eq!(p.call(double, n).await?, 2 * n);
                    }
                    assert_eq!(p.call(|bytes: Vec<u8>| bytes, long.clone()).await?, long);
                    offshoot::sleep(Duration::from_millis(5)).await?;
                    assert_eq!(offshoot::unblock(|| 5).await?, 5);
                    Ok(())
                })
                .await
            })
            .unwrap();
        }
        drop(storm);
    }
}
