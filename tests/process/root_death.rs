//! The root dies, alone or with the forkserver: F53, F29, F22.

use crate::oracle::{self, Left};
use crate::program::{Addresses, PATIENCE, Running, sweep_by_next_start};
use offshoot_sys::clock;
use offshoot_sys::pidfd::Status;
use std::time::Duration;

/// How long a process of the tree may outlive the root.
const GONE: Duration = Duration::from_secs(1);

fn assert_gone(running: &Running, since: u64, what: &str) {
    let bound = GONE + Duration::from_nanos(oracle::stalled(since, clock::now()));
    if let Left::Processes(table) = oracle::wait_childless(bound) {
        panic!("{what}: left after {bound:?}:\n{table}\n{}", running.log());
    }
    println!(
        "{what}: all gone after {} ms",
        (clock::now() - since) / 1_000_000
    );
}

fn kill_root(program: &str, ready: &[&str]) {
    oracle::watch_stalls();
    let addresses = Addresses::of_case();
    let running = Running::start(program, &[]);
    ready
        .iter()
        .for_each(|line| drop(running.line(line, PATIENCE)));
    assert!(
        oracle::below(running.process.pid).len() >= 3,
        "a forkserver and processes"
    );
    let at = clock::now();
    assert!(running.signal(libc::SIGKILL));
    assert_eq!(
        running.wait(PATIENCE),
        Status::Signaled {
            signal: libc::SIGKILL,
            core: false
        }
    );
    assert_gone(&running, at, program);
    // The forkserver has swept, without the help of a next start.
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
    assert_eq!(addresses.left(), Vec::<std::path::PathBuf>::new());
}

/// The forkserver ends what is left, and sweeps. (F53)
pub(crate) fn killed() {
    kill_root("busy", &["@bound deep", "@ready"]);
}

/// Also what has cleared its parent-death signal and reads no socket. (F53)
pub(crate) fn killed_with_a_stayer() {
    kill_root("stayer", &["@ready"]);
}

/// The kernel ends the processes, and the next start sweeps. Both orders, at once. (F53)
pub(crate) fn killed_with_the_forkserver() {
    oracle::watch_stalls();
    let addresses = Addresses::of_case();
    let rounds = if std::env::var_os("OFFSHOOT_LONG").is_some() {
        100
    } else {
        6
    };
    let mut left_to_sweep = 0;
    for root_first in (0..rounds).map(|round| round % 2 == 0) {
        let running = Running::start("busy", &[]);
        running.line("@grown", PATIENCE);
        running.line("@ready", PATIENCE);
        let forkserver = oracle::forkserver_of(running.process.pid).expect("a forkserver");
        let forkserver = forkserver.pidfd().expect("it lives");
        let at = clock::now();
        if root_first {
            assert!(running.signal(libc::SIGKILL));
            assert!(forkserver.kill().expect("our own"));
        } else {
            assert!(forkserver.kill().expect("our own"));
            assert!(running.signal(libc::SIGKILL));
        }
        assert_eq!(
            running.wait(PATIENCE),
            Status::Signaled {
                signal: libc::SIGKILL,
                core: false
            }
        );
        assert_gone(&running, at, "root and forkserver");
        left_to_sweep += addresses.left().len();
        sweep_by_next_start();
        assert_eq!(
            oracle::own_tree_files(),
            Vec::<std::path::PathBuf>::new(),
            "root first: {root_first}"
        );
        let left = addresses.left();
        assert!(left.is_empty(), "root first: {root_first}: {left:?}");
    }
    println!("{rounds} rounds; the next starts swept {left_to_sweep} addresses");
    assert!(left_to_sweep > 0, "nothing was bound in any round");
}

/// With processes that have lost their parent-death signal, as their rights have changed, and that see nothing, as they compute. (F53)
pub(crate) fn killed_with_the_forkserver_and_turncoats() {
    let running = Running::start("turncoats", &[]);
    let mut tried = 0;
    for _ in 0..3 {
        let turned = running.line("@turned", PATIENCE);
        let said: Vec<&str> = turned.split(' ').collect();
        match said[1..] {
            ["0", "0"] => tried += 1,
            ["0", _] => println!("the kernel has kept the signal: {turned}"),
            _ => println!("may not be changed here, and was not tried: {turned}"),
        }
    }
    println!("{tried} of 3 tried");
    let forkserver = oracle::forkserver_of(running.process.pid).expect("a forkserver");
    let forkserver = forkserver.pidfd().expect("it lives");
    // So that neither has time to kill what the other one's death leaves.
    assert!(forkserver.signal(libc::SIGSTOP).expect("our own"));
    let at = clock::now();
    assert!(running.signal(libc::SIGKILL));
    assert!(forkserver.kill().expect("our own"));
    running.wait(PATIENCE);
    assert_gone(&running, at, "root and forkserver");
    sweep_by_next_start();
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
}

/// With a process that it has taken out of its hand, and that has not been told, or whose taking the forkserver has not been told. (F53)
pub(crate) fn killed_at_the_hand_over() {
    oracle::watch_stalls();
    for fault in ["give@taken:kill", "claim@taken:kill"] {
        let environment = [
            ("OFFSHOOT_FAULT", fault),
            ("OFFSHOOT_RESERVE_PROCESSES", "2"),
        ];
        let mut running = Running::start("handed", &environment);
        running.line("@ready", PATIENCE);
        let at = clock::now();
        running.stop();
        let killed = Status::Signaled {
            signal: libc::SIGKILL,
            core: false,
        };
        assert_eq!(running.wait(PATIENCE), killed, "{fault}\n{}", running.log());
        assert_gone(&running, at, fault);
        assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
    }
}

/// A crash of the root is like its kill. (F22, F53)
pub(crate) fn segfault() {
    crash("segfault", libc::SIGSEGV);
}

/// A thread that overflows its stack takes its process along, and what is below it. (F21)
pub(crate) fn overflow() {
    crash("overflow", libc::SIGABRT);
}

/// So does one that panics while it panics. (F19)
pub(crate) fn bombs() {
    crash("bombs", libc::SIGABRT);
}

/// The executable is replaced while a tree runs that has not started a process yet: it is of the old one. (F55)
pub(crate) fn replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("program");
    std::fs::copy(std::env::current_exe().expect("an executable"), &image).expect("a copy");
    let mut running = Running::start_image(&image, "late", &[]);
    running.line("@ready", PATIENCE);
    let other = directory.path().join("other");
    std::fs::write(&other, "no executable").expect("a file");
    std::fs::rename(&other, &image).expect("a replacement");
    running.stop();
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
}

fn crash(program: &str, signal: i32) {
    oracle::watch_stalls();
    let mut running = Running::start(program, &[]);
    running.line("@ready", PATIENCE);
    let at = clock::now();
    running.stop();
    let status = running.wait(PATIENCE);
    assert!(
        matches!(status, Status::Signaled { signal: by, .. } if by == signal),
        "{status:?}\n{}",
        running.log()
    );
    assert_gone(&running, at, program);
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
}

/// A child program and a daemon of a process isolate end with the tree, when it ends and when its root is killed. (F29)
pub(crate) fn daemons_go_with_the_tree() {
    oracle::watch_stalls();
    for orderly in [true, false] {
        let mut running = Running::start("daemons", &[]);
        // Three lines, in any order.
        let said = [(); 3].map(|()| running.line("@", PATIENCE));
        let strangers = said
            .iter()
            .filter_map(|line| line.strip_prefix("stranger "));
        let strangers: Vec<i32> = strangers.map(|pid| pid.parse().expect("a pid")).collect();
        assert_eq!(strangers.len(), 2, "{said:?}");
        let tree = oracle::below(running.process.pid);
        for pid in strangers {
            assert!(
                tree.iter().any(|process| process.pid == pid),
                "{pid} is not in the tree:\n{}",
                oracle::table()
            );
        }
        let at = clock::now();
        if orderly {
            running.stop();
            assert_eq!(
                running.wait(PATIENCE),
                Status::Exited(0),
                "{}",
                running.log()
            );
        } else {
            assert!(running.signal(libc::SIGKILL));
            running.wait(PATIENCE);
        }
        assert_gone(&running, at, "daemons");
        assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
    }
}

/// The forkserver is stopped, and then the root is killed: nobody cleans up, and the lock of the tree is held. `reap` lets the forkserver go on.
pub(crate) fn killed_with_the_forkserver_stopped() {
    let addresses = Addresses::of_case();
    let running = Running::start("busy", &[]);
    running.line("@ready", PATIENCE);
    let forkserver = oracle::forkserver_of(running.process.pid).expect("a forkserver");
    let stop = forkserver.pidfd().expect("it lives");
    // This one only: others may be in the fallback directory.
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").expect("the runner sets it");
    let trees = std::fs::read_dir(std::path::Path::new(&runtime).join("offshoot"));
    let name = trees.expect("a base").flatten().next().expect("a tree");
    let name = name.file_name().into_string().expect("16 digits");
    let id = offshoot::TreeId(u64::from_str_radix(&name, 16).expect("16 digits"));
    let reaper = offshoot::reap::Reaper::new().tree(id);
    let reap = || reaper.run().expect("a report");
    // With the root alive it is only slow.
    assert!(stop.signal(libc::SIGSTOP).expect("our own"));
    let state = || offshoot_sys::process::is_stopped(forkserver.pid);
    assert!(oracle::within(PATIENCE, state), "{}", oracle::table());
    running.signal(libc::SIGSTOP);
    let report = reap();
    assert!(report.trees.iter().all(|tree| tree.alive), "{report:?}");
    running.signal(libc::SIGKILL);
    running.wait(PATIENCE);
    // Its parent is in its session, so that the kernel does not continue it.
    assert!(state(), "{}", oracle::table());
    let looked = reaper.clone().dry_run(true).run();
    let looked = looked.expect("a report");
    assert!(looked.trees.iter().all(|tree| !tree.alive), "{looked:?}");
    assert!(state(), "it only looks");
    let report = reap();
    assert!(report.is_clean(), "{report:?}");
    let [reaped] = &report.trees[..] else {
        panic!("one tree: {report:?}")
    };
    assert!(
        !reaped.alive && reaped.removed == [reaped.path.clone()],
        "{report:?}"
    );
    assert!(matches!(
        oracle::wait_childless(PATIENCE),
        oracle::Left::Nothing
    ));
    assert_eq!(addresses.left(), Vec::<std::path::PathBuf>::new());
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
}
