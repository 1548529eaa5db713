//! SIGKILL for any process of a running tree, at any moment: F01 to F06, F13, F14, F53 and what lies between them.

use crate::oracle::{self, Deaths, Left, Process, Random};
use crate::program::{Addresses, PATIENCE, Running, sweep_by_next_start};
use offshoot_sys::clock;
use offshoot_sys::pidfd::Status;
use std::path::PathBuf;
use std::time::Duration;

/// How long the rest of the tree may be there after the kill.
const GONE: Duration = Duration::from_secs(1);

/// How long a call may wait for the dead, in ns.
const ANSWER: u64 = 100_000_000;

const KILLS: usize = 40;
const KILLS_LONG: usize = 500;

/// What the tree is doing when it is hit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Starting,
    Running,
    Stopping,
}

pub(crate) fn any_process_at_any_moment() {
    oracle::watch_stalls();
    let addresses = Addresses::of_case();
    let mut random = Random::new();
    let wanted = if std::env::var_os("OFFSHOOT_LONG").is_some() {
        KILLS_LONG
    } else {
        KILLS
    };
    // How long a start takes here, as the span of the first phase.
    let began = std::time::Instant::now();
    let mut whole = Running::start("busy", &[]);
    whole.line("@ready", PATIENCE);
    let start = began.elapsed();
    whole.stop();
    assert_eq!(whole.wait(PATIENCE), Status::Exited(0), "{}", whole.log());
    assert_eq!(addresses.left(), Vec::<PathBuf>::new(), "of an orderly end");

    let (mut kills, mut swept_later, mut slowest) = (0, 0, 0);
    let mut by_victim = std::collections::BTreeMap::new();
    for round in 0.. {
        assert!(
            round < 3 * wanted,
            "only {kills} of {round} rounds hit anything"
        );
        if kills == wanted {
            break;
        }
        let phase = *random.pick(&[
            Phase::Starting,
            Phase::Running,
            Phase::Running,
            Phase::Running,
            Phase::Stopping,
        ]);
        let Some(hit) = one(&mut random, phase, start, round) else {
            continue;
        };
        kills += 1;
        slowest = slowest.max(hit.slowest);
        *by_victim
            .entry((format!("{phase:?}"), hit.victim))
            .or_insert(0) += 1;
        // Nobody is alive any more: what is left is left for the next start, and then belongs to a tree that is left, too.
        if oracle::own_tree_files().is_empty() {
            let left = addresses.left();
            assert!(left.is_empty(), "round {round}: {left:?}");
        } else {
            swept_later += 1;
            sweep_by_next_start();
            let files = oracle::own_tree_files();
            assert!(
                files.is_empty(),
                "round {round}: the next start left {files:?}"
            );
            let left = addresses.left();
            assert!(
                left.is_empty(),
                "round {round}: the next start left {left:?}"
            );
        }
    }
    println!(
        "{kills} kills {by_victim:?}; {swept_later} times the next start swept; slowest answer {} us after the death",
        slowest / 1_000
    );
}

struct Hit {
    victim: String,
    /// The latest answer of a call that waited on the dead, in ns.
    slowest: u64,
}

/// One tree, one kill. `None` if the tree had ended before.
fn one(random: &mut Random, phase: Phase, start: Duration, round: usize) -> Option<Hit> {
    let program = *random.pick(&["busy", "busy-run"]);
    let mut running = Running::start(program, &[]);
    match phase {
        Phase::Starting => std::thread::sleep(random.duration(start)),
        Phase::Running => {
            running.line("@grown", PATIENCE);
            running.line("@ready", PATIENCE);
            std::thread::sleep(random.duration(Duration::from_millis(30)));
        }
        Phase::Stopping => {
            running.line("@grown", PATIENCE);
            running.line("@ready", PATIENCE);
            running.stop();
            std::thread::sleep(random.duration(Duration::from_millis(6)));
        }
    }
    let root = running.process.clone();
    let mut tree = oracle::below(root.pid);
    tree.push(root.clone());
    tree.retain(|process| process.state != 'Z');
    let victim = random.pick(&tree).clone();
    let Some(pidfd) = victim.pidfd() else {
        // It ended just now, by itself.
        running.stop();
        running.wait(PATIENCE);
        return None;
    };
    let deaths = Deaths::watch(&tree);
    let at = clock::now();
    if pidfd.is_dead() || !pidfd.kill().unwrap_or(false) {
        running.stop();
        running.wait(PATIENCE);
        return None;
    }
    let context = format!(
        "round {round}: {phase:?} {program}, killed {} {}",
        victim.pid, victim.name
    );
    let mut hit = Hit {
        victim: role(&victim, &root),
        slowest: 0,
    };

    if PASSING.contains(&hit.victim.as_str()) {
        // The tree goes on, or not.
        running.stop();
    }
    let status = running.wait(PATIENCE);
    let gone = match oracle::wait_childless(
        GONE + Duration::from_nanos(oracle::stalled(at, clock::now())),
    ) {
        Left::Nothing => clock::now() - at,
        Left::Processes(table) => panic!("{context}: left:\n{table}\n{}", running.log()),
    };
    let stalled = oracle::stalled(at, clock::now());
    let bound = GONE.as_nanos() as u64 + stalled;
    assert!(
        gone < bound,
        "{context}: all gone only after {} ms\n{}",
        gone / 1_000_000,
        running.log()
    );
    for process in &tree {
        assert!(
            !process.is_there(),
            "{context}: {} is left",
            process.describe()
        );
    }
    let log = running.all_output(PATIENCE);
    let deaths = deaths.all();

    if PASSING.contains(&hit.victim.as_str()) {
        // Nobody's yet, or only just somebody's, or no longer wanted, in a tree that is stopped at once.
        assert!(
            matches!(status, Status::Exited(0 | 1)),
            "{context}: {status:?}\n{log}"
        );
        return Some(hit);
    }
    if victim.pid == root.pid {
        if phase == Phase::Stopping && status == Status::Exited(0) {
            // It was on its last steps in the kernel.
            return None;
        }
        assert_eq!(
            status,
            Status::Signaled {
                signal: libc::SIGKILL,
                core: false
            },
            "{context}\n{log}"
        );
        return Some(hit);
    }
    match phase {
        // A tree that comes down needs nobody any more who has said that it has ended.
        Phase::Stopping => assert!(
            matches!(status, Status::Exited(0 | 1)),
            "{context}: {status:?}\n{log}"
        ),
        // Whatever was being started when it hit, the root says so and does not hang.
        Phase::Starting => {
            assert_eq!(status, Status::Exited(1), "{context}\n{log}");
            assert!(log.contains("error: "), "{context}\n{log}");
        }
        Phase::Running => {
            assert_eq!(status, Status::Exited(1), "{context}\n{log}");
            for path in lost_with(&hit.victim) {
                let report = format!("@lost {path} ");
                let lost = log.lines().find_map(|line| line.strip_prefix(&report));
                let lost = lost.unwrap_or_else(|| panic!("{context}: nobody lost {path}\n{log}"));
                let (when, why) = lost.split_once(' ').expect("a time and a reason");
                // The same process as before the kill, by the last part of its path.
                let name = path.rsplit('/').next();
                let dead = tree
                    .iter()
                    .find(|process| Some(process.name.as_str()) == name);
                let died = deaths[&dead.expect("it was there").pid];
                let after = when.parse::<u64>().expect("a time").saturating_sub(died);
                assert!(
                    after < ANSWER + stalled,
                    "{context}: a call on {path} waited for {} ms after the death, {} ms after the kill, {} ms stalled\n{log}",
                    after / 1_000_000,
                    (died - at) / 1_000_000,
                    stalled / 1_000_000
                );
                hit.slowest = hit.slowest.max(after);
                let who = if hit.victim == "forkserver" {
                    "forkserver"
                } else {
                    "SIGKILL"
                };
                assert!(
                    why.contains(path) && why.contains(who),
                    "{context}: {why}\n{log}"
                );
            }
            let said = log.split_once("error: ").map_or("", |(_, report)| report);
            for path in named_after(&hit.victim) {
                assert!(
                    said.contains(path),
                    "{context}: the report does not name {path}\n{log}"
                );
            }
        }
    }
    Some(hit)
}

/// The role of a process that waits to become somebody.
const RESERVE: &str = "reserve";

/// The role of a process that is being forked and has no name yet.
const NEWBORN: &str = "newborn";

/// Those whose death may or may not be noticed.
const PASSING: [&str; 3] = [RESERVE, NEWBORN, "brief"];

fn role(victim: &Process, root: &Process) -> String {
    if victim.pid == root.pid {
        "root".to_owned()
    } else if victim.name.starts_with("offshoot-forks") {
        let role = if victim.parent == root.pid {
            "forkserver"
        } else {
            NEWBORN
        };
        role.to_owned()
    } else if oracle::is_reserve(victim) {
        RESERVE.to_owned()
    } else {
        // Its isolate's name, or before it has one, that of the program.
        victim.name.clone()
    }
}

/// The isolates on which somebody who survives was waiting.
fn lost_with(victim: &str) -> &'static [&'static str] {
    match victim {
        "forkserver" => &["root/left", "root/right"],
        "left" => &["root/left"],
        "right" => &["root/right"],
        "deep" => &["root/left/deep"],
        other => panic!("an unexpected process: {other}"),
    }
}

/// What the root's report has to name.
fn named_after(victim: &str) -> &'static [&'static str] {
    match victim {
        "forkserver" => &["root/left", "root/right", "forkserver"],
        "left" => &["root/left", "SIGKILL"],
        "right" => &["root/right", "SIGKILL"],
        "deep" => &["root/left/deep", "SIGKILL"],
        other => panic!("an unexpected process: {other}"),
    }
}
