//! Spawn → first reply, and end → gone, of a thread isolate and of a process isolate.
//!
//! Floors: `std::thread::spawn` with a channel, and plain `fork` of a small process with one thread
//! that answers over a socket pair and exits.
//!
//! `cargo bench -p offshoot-benches --bench spawn [ROUNDS]`

use offshoot::{Isolate, Result};
use offshoot_benches::{Table, rounds};
use offshoot_sys::fork::{Prelude, exit_at_once, fork_child};
use offshoot_sys::socket;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PER_ROUND: usize = 50;
const FORK: &str = "OFFSHOOT_BENCH_FORK";

async fn one() -> u64 {
    1
}

fn std_thread(table: &mut Table) {
    for _ in 0..PER_ROUND {
        let start = Instant::now();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || sender.send(1_u64));
        assert_eq!(receiver.recv(), Ok(1));
        table.add("std::thread::spawn + channel, first value", start.elapsed());
        let joined = table.time("std::thread join", || thread.join());
        assert!(joined.is_ok());
    }
}

fn isolates(
    table: &mut Table,
    row: &'static str,
    end: &'static str,
    isolate: fn() -> Isolate,
) -> Result<()> {
    let samples = offshoot::run(async move || {
        // The first one starts what the tree shares (warden and forkserver).
        let warm =
            offshoot::nursery(async |nursery| nursery.spawn(isolate()).await?.call(one, ()).await);
        warm.await?;
        let mut samples = Vec::new();
        for _ in 0..PER_ROUND {
            let mut body_ended = Instant::now();
            let spawned = offshoot::nursery(async |nursery| {
                let start = Instant::now();
                let portal = nursery.spawn(isolate()).await?;
                portal.call(one, ()).await?;
                let spawned = start.elapsed();
                body_ended = Instant::now();
                Ok(spawned)
            });
            let spawned = spawned.await?;
            samples.push((spawned, body_ended.elapsed()));
        }
        Ok(samples)
    })?;
    for (spawned, ended) in samples {
        table.add(row, spawned);
        table.add(end, ended);
    }
    Ok(())
}

/// Runs in a process of its own, which has one thread.
fn fork_floor() {
    for _ in 0..PER_ROUND {
        let start = Instant::now();
        let (ours, theirs) = socket::stream_pair().expect("a socket pair");
        let keep = vec![std::os::fd::AsRawFd::as_raw_fd(&theirs)];
        let prelude = Prelude {
            keep,
            ..Prelude::default()
        };
        let (_, pidfd) = fork_child(prelude, move || {
            let _ = socket::send(&theirs, b"1");
            exit_at_once(0)
        })
        .expect("a fork");
        assert!(socket::wait_readable(&ours, Some(Duration::from_secs(5))).expect("a wait"));
        let ready = start.elapsed();
        let start = Instant::now();
        assert!(pidfd.wait_dead(Duration::from_secs(5)).expect("a wait"));
        pidfd.reap().expect("a reap");
        println!("{} {}", ready.as_nanos(), start.elapsed().as_nanos());
    }
}

fn forks(table: &mut Table) {
    let this = std::env::current_exe().expect("this executable");
    let output = Command::new(this)
        .env(FORK, "1")
        .output()
        .expect("the floor's process");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut numbers = line.split(' ').filter_map(|number| number.parse().ok());
        if let (Some(ready), Some(gone)) = (numbers.next(), numbers.next()) {
            table.add_nanos("plain fork, first byte", ready);
            table.add_nanos("plain fork, exit and reap", gone);
        }
    }
}

fn main() -> Result<()> {
    if std::env::var_os(FORK).is_some() {
        fork_floor();
        return Ok(());
    }
    let mut table = Table::default();
    for _ in 0..rounds(20) {
        std_thread(&mut table);
        isolates(
            &mut table,
            "thread isolate, first reply",
            "thread isolate, closed and joined",
            || Isolate::named("bench").thread(),
        )?;
        forks(&mut table);
        isolates(
            &mut table,
            "process isolate, first reply",
            "process isolate, closed, reaped, swept",
            || Isolate::named("bench").process(),
        )?;
    }
    table.print(
        "spawn → first reply, end → gone (cold: no reserve)",
        &[
            (
                "thread isolate, first reply",
                "std::thread::spawn + channel, first value",
            ),
            ("thread isolate, closed and joined", "std::thread join"),
            ("process isolate, first reply", "plain fork, first byte"),
            (
                "process isolate, closed, reaped, swept",
                "plain fork, exit and reap",
            ),
        ],
    );
    Ok(())
}
