//! A process isolate asks the forkserver without a pause, for what it may ask for: F38a.

use crate::oracle::{self, Left};
use crate::program::{Count, PATIENCE, Running, double, say, stopped};
use offshoot::prelude::*;
use offshoot::testing::hostile;
use offshoot_sys::pidfd::Status;
use offshoot_sys::{clock, socket};
use std::path::PathBuf;
use std::time::Duration;

/// How long the tree may be there after its root.
const GONE: Duration = Duration::from_secs(1);

/// Within which a spawn of another process is served, in ns.
const SERVED: u64 = 1_000_000_000;

/// Sends requests from now on, faster than they can be served, and does or does not read what is answered.
async fn flood(reads: bool) -> Result<()> {
    let control = hostile::forkserver()?;
    let requests = hostile::requests()?;
    // One that lacks its descriptors, as they may have been lost, and is looked at all the same.
    let (_, request) = requests
        .into_iter()
        .find(|(name, _)| name == "Spawn")
        .ok_or_else(|| Error::other("no such request"))?;
    for _ in 0..2 {
        let (control, request) = (control.try_clone()?, request.clone());
        std::thread::spawn(move || {
            loop {
                let _ = socket::send_packet(&control, &request, &[]);
            }
        });
    }
    if reads {
        std::thread::spawn(move || {
            loop {
                if socket::wait_readable(&control, None).is_ok() {
                    while socket::recv_packet(&control, &mut Vec::new())
                        .is_ok_and(|got| got.is_some())
                    {}
                }
            }
        });
    }
    Ok(())
}

/// Floods and does nothing else, not even look whether its owner lives.
async fn only_flood() -> Result<()> {
    flood(true).await?;
    loop {
        std::thread::park();
    }
}

/// One that only floods, and a root that waits.
pub(crate) async fn deaf() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let evil = nursery.spawn(Isolate::named("evil").process()).await?;
        let call = evil.call(only_flood, ());
        nursery
            .task(async move {
                let _ = call.await;
            })
            .detach();
        offshoot::sleep(Duration::from_millis(50)).await?;
        say("@flooding");
        stopped().await
    })
    .await
}

/// Two that flood, and others that spawn meanwhile.
pub(crate) async fn flooded() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let calm = nursery
            .start(Isolate::named("calm").process(), Count::default())
            .await?;
        let mut floods = Vec::new();
        for reads in [true, false] {
            let evil = nursery.spawn(Isolate::named("evil").process()).await?;
            evil.call(flood, reads).await??;
            floods.push(evil);
        }
        say("@flooding");
        for _ in 0..5 {
            let began = clock::now();
            let other = nursery.spawn(Isolate::named("other").process()).await?;
            assert_eq!(other.call(double, 2).await?, 4);
            say(&format!("@root {}", clock::now() - began));
            let took = calm.call(spawn_below, ()).await??;
            say(&format!("@calm {took}"));
        }
        // Nobody was killed for it.
        assert_eq!(calm.ask(Count::add, 1).await?, 1);
        for evil in &floods {
            assert_eq!(evil.call(double, 4).await?, 8);
        }
        say("@served");
        stopped().await?;
        nursery.cancel();
        Ok(())
    })
    .await
}

/// How long a spawn takes, in ns.
async fn spawn_below() -> Result<u64> {
    let began = clock::now();
    offshoot::nursery(async |nursery| {
        let below = nursery.spawn(Isolate::named("below").process()).await?;
        let took = clock::now() - began;
        assert_eq!(below.call(double, 2).await?, 4);
        Ok(took)
    })
    .await
}

/// Everything ends, as if nobody asked for anything.
pub(crate) fn the_root_is_killed() {
    oracle::watch_stalls();
    let running = Running::start("flood-deaf", &[]);
    running.line("@flooding", PATIENCE);
    let tree = oracle::below(running.process.pid);
    let at = clock::now();
    assert!(running.signal(libc::SIGKILL));
    running.wait(PATIENCE);
    let stalled = Duration::from_nanos(oracle::stalled(at, clock::now()));
    if let Left::Processes(table) = oracle::wait_childless(GONE + stalled) {
        tree.iter()
            .filter_map(oracle::Process::pidfd)
            .for_each(|pidfd| drop(pidfd.kill()));
        panic!("left after {GONE:?}:\n{table}\n{}", running.log());
    }
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}

/// Each spawn of others is served in time, and nobody is killed.
pub(crate) fn others_are_served() {
    oracle::watch_stalls();
    let mut running = Running::start("flood", &[]);
    running.line("@flooding", PATIENCE);
    for _ in 0..5 {
        for who in ["@root", "@calm"] {
            let began = clock::now();
            let took: u64 = running.line(who, PATIENCE).parse().expect("a time");
            let stalled = oracle::stalled(began, clock::now());
            assert!(took < SERVED + stalled, "{who}: {} ms", took / 1_000_000);
        }
    }
    running.line("@served", PATIENCE);
    running.stop();
    let status = running.wait(PATIENCE);
    assert_eq!(status, Status::Exited(0), "{}", running.log());
    assert!(matches!(oracle::wait_childless(PATIENCE), Left::Nothing));
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}
