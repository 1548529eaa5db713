//! SIGKILL for any process of a tree of 14, three deep, that has all a tree can have: sockets, pid files, shared memory, daemons, and calls in flight
//! between all of its levels. Nothing is left, and each call that waits for the dead is answered, wherever its caller is.

use crate::oracle::{self, Deaths, Left, Process, Random};
use crate::program::sweep_by_next_start;
use crate::program::{Addresses, PATIENCE, Running, double, hang, holds, join, say, stopped};
use offshoot::prelude::*;
use offshoot_sys::clock;
use offshoot_sys::pidfd::Status;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long anything of the tree may be there after the kill.
const GONE: Duration = Duration::from_secs(2);

/// How long a call may wait for the dead, in ns.
const ANSWER: u64 = 100_000_000;

/// For how long the stalls of a caller's process are counted out, in ns.
const STALLS: u64 = 1_000_000_000;

const ROUNDS: usize = 100;
const ROUNDS_LONG: usize = 1_000;

/// Those below the root. Each has three below it, and with root and forkserver they are 14.
const BRANCHES: [&str; 3] = ["a", "b", "c"];

// ---- the program ----

/// Where the portals of the leaves are to be had. It is a thread of the root.
#[derive(Default, Serialize, Deserialize)]
struct Desk {
    leaves: BTreeMap<String, Portal>,
}

impl Desk {
    fn put(&mut self, leaf: Portal) {
        self.leaves.insert(leaf.name().to_owned(), leaf);
    }

    fn get(&self, name: String) -> Option<Portal> {
        self.leaves.get(&name).cloned()
    }
}

/// Says when a call on this isolate ends that only its death can end, and whose call it was.
fn wait_on(portal: &Portal) -> JoinHandle<()> {
    let (portal, caller) = (portal.clone(), offshoot::current().origin().path);
    std::thread::spawn(move || {
        let _ = portal.call_blocking(hang, ());
        let path = portal.origin().path;
        let now = clock::now();
        let stalled = oracle::stalled(now - STALLS, now);
        say(&format!("@lost {path} {caller} {now} {stalled}"));
    })
}

/// A daemon that nobody waits for, in a session of its own.
async fn start_daemon() -> Result<()> {
    let mut daemon = Command::new("setsid");
    daemon.args(["-f", "sleep", "1000"]).stdin(Stdio::null());
    daemon
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}

/// Gets the portal of a leaf, once it is there.
async fn leaf_of(desk: &Portal<Desk>, name: &str) -> Result<Portal> {
    loop {
        if let Some(leaf) = desk.ask(Desk::get, name.to_owned()).await? {
            return Ok(leaf);
        }
        offshoot::sleep(Duration::from_millis(1)).await?;
    }
}

/// The root.
pub(crate) async fn tree() -> Result<()> {
    oracle::watch_stalls();
    let mut waiting = Vec::new();
    let result = offshoot::nursery(async |nursery| {
        let desk = nursery
            .start(Isolate::named("desk").thread(), Desk::default())
            .await?;
        let desk = desk.narrow().ask(Desk::get).ask(Desk::put).portal();
        for (at, name) in BRANCHES.into_iter().enumerate() {
            let branch = nursery.spawn(Isolate::named(name).process()).await?;
            waiting.push(wait_on(&branch));
            holds(nursery, &branch);
            branch.call(start_daemon, ()).await??;
            let args = (
                name.to_owned(),
                BRANCHES[(at + 1) % 3].to_owned(),
                desk.clone(),
            );
            drop(nursery.task(async move { branch.call(grow, args).await? }));
        }
        let far = leaf_of(&desk, "c2").await?;
        waiting.push(wait_on(&far));
        say("@ready");
        stopped().await?;
        say("@stopping");
        nursery.cancel();
        Ok(())
    })
    .await;
    join(waiting);
    result
}

/// One of the second level, with three below it, that has also calls on a leaf of another one.
async fn grow(name: String, other: String, desk: Portal<Desk>) -> Result<()> {
    oracle::watch_stalls();
    let mut waiting = Vec::new();
    let result = offshoot::nursery(async |nursery| {
        let mut leaves = Vec::new();
        for number in 0..3 {
            let name = format!("{name}{number}");
            let leaf = nursery.spawn(Isolate::named(&name).process()).await?;
            waiting.push(wait_on(&leaf));
            holds(nursery, &leaf);
            leaf.call(start_daemon, ()).await??;
            desk.ask(Desk::put, leaf.clone()).await?;
            leaves.push(leaf);
        }
        let far = leaf_of(&desk, &format!("{other}0")).await?;
        waiting.push(wait_on(&far));
        say(&format!("@grown {name}"));
        loop {
            for leaf in &leaves {
                leaf.call(double, 1).await?;
            }
            far.call(double, 2).await?;
            offshoot::sleep(Duration::from_millis(1)).await?;
        }
    })
    .await;
    join(waiting);
    result
}

// ---- the case ----

/// What the tree is doing when it is hit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Starting,
    Running,
    Stopping,
}

/// Who has called the isolate of this name, and lives on when it dies.
fn callers(victim: &str) -> Vec<(String, String)> {
    let call = |path: String, caller: &str| (path, caller.to_owned());
    if victim == "forkserver" {
        let branches = BRANCHES.map(|name| call(format!("root/{name}"), "root"));
        return branches
            .into_iter()
            .chain([call("root/c/c2".to_owned(), "root")])
            .collect();
    }
    let branch = &victim[..1];
    if victim == branch {
        return vec![call(format!("root/{victim}"), "root")];
    }
    let path = format!("root/{branch}/{victim}");
    let mut all = vec![call(path.clone(), &format!("root/{branch}"))];
    if victim.ends_with('0') {
        let at = BRANCHES.iter().position(|name| *name == branch);
        let before = BRANCHES[(at.expect("one of them") + 2) % 3];
        all.push(call(path.clone(), &format!("root/{before}")));
    }
    if victim == "c2" {
        all.push(call(path, "root"));
    }
    all
}

/// What a process is to the tree: none of those that wait in reserve, and no daemon.
fn role(process: &Process, root: &Process) -> Option<String> {
    let is_isolate =
        |name: &str| BRANCHES.iter().any(|branch| name.starts_with(branch)) && name.len() <= 2;
    if process.pid == root.pid {
        Some("root".to_owned())
    } else if process.parent == root.pid && process.name.starts_with("offshoot-forks") {
        Some("forkserver".to_owned())
    } else {
        is_isolate(&process.name).then(|| process.name.clone())
    }
}

pub(crate) fn a_tree_of_fourteen() {
    oracle::watch_stalls();
    let addresses = Addresses::of_case();
    let mut random = Random::new();
    let wanted = match std::env::var_os("OFFSHOOT_LONG") {
        Some(_) => ROUNDS_LONG,
        None => ROUNDS,
    };
    let began = clock::now();
    let mut whole = Running::start("storm", &[]);
    ready(&whole);
    let start = Duration::from_nanos(clock::now() - began);
    assert_eq!(tree_of(&whole.process).len(), 14, "{}", oracle::table());
    whole.stop();
    let status = whole.wait(PATIENCE);
    assert_eq!(status, Status::Exited(0), "{}", whole.log());
    assert_eq!(addresses.left(), Vec::<PathBuf>::new(), "of an orderly end");

    let (mut kills, mut slowest) = (0, 0);
    let mut by_victim = BTreeMap::new();
    for round in 0.. {
        assert!(
            round < 2 * wanted,
            "only {kills} of {round} rounds hit anything"
        );
        if kills == wanted {
            break;
        }
        let phases = [
            Phase::Starting,
            Phase::Running,
            Phase::Running,
            Phase::Stopping,
        ];
        let phase = *random.pick(&phases);
        let Some((victim, latest)) = one(&mut random, phase, start, round) else {
            continue;
        };
        kills += 1;
        slowest = slowest.max(latest);
        *by_victim.entry((format!("{phase:?}"), victim)).or_insert(0) += 1;
        if !oracle::own_tree_files().is_empty() {
            // Nobody was left who could have swept.
            sweep_by_next_start();
        }
        let files = oracle::own_tree_files();
        assert!(files.is_empty(), "round {round}: {files:?}");
        let left = addresses.left();
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
    println!(
        "{kills} kills {by_victim:?}; slowest answer {} us after the death",
        slowest / 1_000
    );
}

/// The processes of the tree, without daemons and what waits in reserve.
fn tree_of(root: &Process) -> Vec<(String, Process)> {
    let mut all = oracle::below(root.pid);
    all.push(root.clone());
    all.retain(|process| process.state != 'Z');
    let tree = all
        .into_iter()
        .filter_map(|process| Some((role(&process, root)?, process)));
    tree.collect()
}

/// Waits until it has grown.
fn ready(running: &Running) {
    let mut said = [false; 4];
    while said.contains(&false) {
        let line = running.line("@", PATIENCE);
        match line.as_str() {
            "ready" => said[3] = true,
            line => {
                if let Some(name) = line.strip_prefix("grown ") {
                    let at = BRANCHES.iter().position(|branch| *branch == name);
                    said[at.expect("one of them")] = true;
                }
            }
        }
    }
}

/// One tree, one kill. `None` if there was nobody to kill. Else who it was, and the latest answer, in ns after the death.
fn one(random: &mut Random, phase: Phase, start: Duration, round: usize) -> Option<(String, u64)> {
    let mut running = Running::start("storm", &[]);
    match phase {
        Phase::Starting => std::thread::sleep(random.duration(start)),
        Phase::Running => ready(&running),
        Phase::Stopping => {
            ready(&running);
            running.stop();
            std::thread::sleep(random.duration(Duration::from_millis(10)));
        }
    }
    let root = running.process.clone();
    let tree = tree_of(&root);
    let everybody: Vec<Process> = tree.iter().map(|(_, process)| process.clone()).collect();
    let all = oracle::below(root.pid);
    let killed = (!tree.is_empty()).then(|| random.pick(&tree).clone());
    let killed = killed.and_then(|(name, process)| Some((name, process.pidfd()?, process)));
    let deaths = Deaths::watch(&everybody);
    let at = clock::now();
    let hit = killed.filter(|(_, pidfd, _)| !pidfd.is_dead() && pidfd.kill().unwrap_or(false));
    let Some((name, _, victim)) = hit else {
        running.stop();
        running.wait(PATIENCE);
        assert!(
            matches!(oracle::wait_childless(GONE), Left::Nothing),
            "{}",
            oracle::table()
        );
        return None;
    };
    let context = format!("round {round}: {phase:?}, killed {name} ({})", victim.pid);
    if phase == Phase::Starting {
        // A forkserver without an isolate, and a process that has not taken anything yet, have another one in their place: the tree goes on.
        running.stop();
    }
    let status = running.wait(PATIENCE);
    let stalled = |until| oracle::stalled(at, until);
    let bound = GONE + Duration::from_nanos(stalled(clock::now()));
    let left = bound.saturating_sub(Duration::from_nanos(clock::now() - at));
    if let Left::Processes(table) = oracle::wait_childless(left) {
        panic!("{context}: left:\n{table}\n{}", running.log());
    }
    let gone = clock::now();
    assert!(
        gone - at < u64::try_from(GONE.as_nanos()).unwrap_or(u64::MAX) + stalled(gone),
        "{context}: all gone only after {} ms\n{}",
        (gone - at) / 1_000_000,
        running.log()
    );
    if let Some(process) = all.iter().find(|process| process.is_there()) {
        panic!("{context}: left: {}", process.describe());
    }
    let log = running.all_output(PATIENCE);
    let deaths = deaths.all();
    if name == "root" {
        return Some((name, 0));
    }
    assert!(
        matches!(status, Status::Exited(0 | 1)),
        "{context}: {status:?}\n{log}"
    );
    let mut lost = BTreeMap::new();
    let mut slowest = 0;
    for line in log.lines().filter_map(|line| line.strip_prefix("@lost ")) {
        let said: Vec<&str> = line.split(' ').collect();
        let [path, caller, when, stalls] = said[..] else {
            panic!("{context}: half a line: {line}\n{log}");
        };
        let when: u64 = when.parse().expect("a time");
        let stalls: u64 = stalls.parse().expect("a time");
        lost.insert((path.to_owned(), caller.to_owned()), when);
        // Of those that have said themselves how they end, a call is answered before they are dead.
        let name = path.rsplit('/').next();
        let dead = tree.iter().find(|(role, _)| Some(role.as_str()) == name);
        let Some(died) = dead.and_then(|(_, process)| deaths.get(&process.pid)) else {
            continue;
        };
        let after = when.saturating_sub(*died);
        assert!(
            after < ANSWER + stalled(when) + stalls,
            "{context}: the call of {caller} on {path} waited for {} ms after the death, {} ms stalled there, {} ms here\n{log}",
            after / 1_000_000,
            stalls / 1_000_000,
            stalled(when) / 1_000_000
        );
        slowest = slowest.max(after);
    }
    if phase == Phase::Running {
        for call in callers(&name) {
            assert!(
                lost.contains_key(&call),
                "{context}: {call:?} was not answered\n{log}"
            );
        }
    }
    Some((name, slowest))
}
