//! A program that was not written for Offshoot and does things to its children: F30.

use crate::oracle;
use crate::program::{PATIENCE, double, hang};
use offshoot::Builder;
use offshoot::prelude::*;
use offshoot_sys::clock;
use offshoot_sys::pidfd::{Pidfd, Status};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// A tree that lives, loses its forkserver, and starts another one. All as if nobody interfered.
async fn whole_life() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let near = nursery.spawn(Isolate::named("near").thread()).await?;
        for round in 0..3 {
            let result: Result<()> = offshoot::nursery(async |inner| {
                let one = inner.spawn(Isolate::named("one").process()).await?;
                assert_eq!(one.call(double, 4).await?, 8);
                let forkserver = oracle::forkserver_of(oracle::own_pid()).expect("a forkserver");
                let killed = clock::now();
                assert!(
                    forkserver
                        .pidfd()
                        .expect("it lives")
                        .kill()
                        .expect("our own")
                );
                let error = one.call(hang, ()).await.expect_err("it died");
                assert!(
                    clock::now() - killed < 1_000_000_000,
                    "round {round}: told too late"
                );
                Err(error)
            })
            .await;
            let error = result.expect_err("the forkserver was killed");
            assert!(
                error.message().contains("root/one"),
                "round {round}: {error}"
            );
            assert_eq!(near.call(double, 1).await?, 2);
        }
        let last = nursery.spawn(Isolate::named("last").process()).await?;
        assert_eq!(last.call(double, 5).await?, 10);
        Ok(())
    })
    .await
}

fn run_whole_life() {
    run_whole_life_of(Builder::new());
}

fn run_whole_life_of(builder: Builder) {
    let run = builder.run(whole_life);
    run.unwrap_or_else(|error| panic!("{}", error.report()));
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}

pub(crate) fn ignores_sigchld() {
    // SAFETY: ignoring a signal installs no code.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    assert_ne!(before, libc::SIG_ERR);
    run_whole_life();
}

/// The host's own handler is called for its own children, and it is still its own afterwards; it reaps what it finds, as such handlers do.
pub(crate) fn handles_sigchld() {
    static CALLED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn reaps_all(_: libc::c_int) {
        CALLED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: both may be called in a handler, which leaves `errno` as it was.
        unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            *errno = before;
        }
    }
    let handler = reaps_all as *const () as usize;
    // SAFETY: an all-zero action is valid but for what is set here; the handler calls only what may be called there.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        let result = libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
        assert_eq!(result, 0);
    }
    // What is in reserve would come to this process, which adopts what a killed forkserver leaves.
    run_whole_life_of(Builder::new().reserve_processes(0));
    // The runtime has one child here, the forkserver, of which there were several, each with one of its own.
    let called = CALLED.load(Ordering::Relaxed);
    assert!((1..=8).contains(&called), "called {called} times");
    // SAFETY: the pointer is to a live structure.
    let now = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action);
        action.sa_sigaction
    };
    assert_eq!(now, handler, "it was replaced");
    // And is called for a child of its own. Who reaps that first does not matter here.
    let _ = Command::new("true").status();
    assert!(oracle::within(PATIENCE, || {
        CALLED.load(Ordering::Relaxed) > called
    }));
}

/// Whoever calls `waitpid(-1)` may take the forkserver's status, and nothing else.
pub(crate) fn waits_for_any_child() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let stranger = std::thread::spawn(|| {
        let mut reaped = 0;
        while !DONE.load(Ordering::Relaxed) {
            // SAFETY: a null status is allowed.
            let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
            if pid > 0 {
                reaped += 1;
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        reaped
    });
    run_whole_life();
    DONE.store(true, Ordering::Relaxed);
    println!("the stranger reaped {}", stranger.join().expect("no panic"));
}

/// The runtime takes no status of a child of the host's, and does not end it.
pub(crate) fn keeps_its_own_children() {
    let mut long = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let pid = i32::try_from(long.id()).expect("a pid");
    offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").process()).await?;
            for code in [0, 3, 7] {
                let status = Command::new("sh")
                    .arg("-c")
                    .arg(format!("exit {code}"))
                    .status()?;
                assert_eq!(status.code(), Some(code));
                one.call(double, 1).await?;
            }
            Ok(())
        })
        .await
    })
    .unwrap_or_else(|error| panic!("{}", error.report()));
    assert!(
        long.try_wait().expect("not stolen").is_none(),
        "the host's child was ended"
    );
    let pidfd = Pidfd::open(pid).expect("our own");
    assert!(pidfd.kill().expect("our own"));
    assert!(pidfd.wait_dead(PATIENCE).expect("a poll"));
    assert_eq!(
        pidfd.reap().expect("not stolen"),
        Some(Status::Signaled {
            signal: libc::SIGKILL,
            core: false
        })
    );
}

/// Trees one after the other, and two at once on threads of a program's own, each with its own forkserver.
pub(crate) fn twice_and_at_once() {
    // So that both are there at the same time.
    static RELEASED: AtomicBool = AtomicBool::new(true);
    async fn small(n: u64) -> Result<(u64, i32)> {
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").process()).await?;
            while !RELEASED.load(Ordering::Relaxed) {
                offshoot::sleep(Duration::from_millis(1)).await?;
            }
            Ok((one.call(double, n).await?, one.origin().pid))
        })
        .await
    }
    assert_eq!(offshoot::run(async || small(1).await).expect("a tree").0, 2);
    assert_eq!(
        offshoot::run(async || small(2).await)
            .expect("a second tree")
            .0,
        4
    );
    RELEASED.store(false, Ordering::Relaxed);
    let threads: Vec<_> = (3..5)
        .map(|n| std::thread::spawn(move || offshoot::run(async move || small(n).await)))
        .collect();
    let both = || {
        let names = oracle::below(oracle::own_pid());
        names
            .iter()
            .filter(|process| process.name.starts_with("offshoot-forks"))
            .count()
            == 2
    };
    assert!(
        oracle::within(PATIENCE, both),
        "two trees have two forkservers:\n{}",
        oracle::table()
    );
    RELEASED.store(true, Ordering::Relaxed);
    let results: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().expect("no panic").expect("a tree"))
        .collect();
    assert_eq!((results[0].0, results[1].0), (6, 8));
    assert_ne!(results[0].1, results[1].1);
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}

/// The example of README, as Cargo builds examples; for threads and for processes it prints the same.
pub(crate) fn is_an_example() {
    let own = std::env::current_exe().expect("a path");
    let deps = own.parent().expect("a directory");
    assert!(
        deps.ends_with("deps"),
        "{own:?} is not where Cargo puts tests, so the examples cannot be found"
    );
    let profile = deps.parent().expect("target/<profile>/deps");
    let tour = profile.join("examples/tour");
    // `cargo test` of the whole workspace has built it, one of this package alone has not.
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "build",
        "--quiet",
        "--package",
        "offshoot",
        "--example",
        "tour",
    ]);
    build
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    build
        .arg("--target-dir")
        .arg(profile.parent().expect("target"));
    if !tour.exists() {
        assert!(build.status().expect("cargo").success());
    }
    let outputs = ["thread", "process", "serde"].map(|isolation| {
        let output = Command::new(&tour)
            .env("OFFSHOOT_ISOLATION", isolation)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{isolation}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    });
    assert!(!outputs[0].is_empty());
    assert!(
        outputs.iter().all(|output| output == &outputs[0]),
        "{outputs:#?}"
    );
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}
