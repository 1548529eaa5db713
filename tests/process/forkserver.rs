//! The forkserver dies or hangs, and the root survives it: F13, F14, F15.

use crate::oracle::{self, Deaths, Random};
use crate::program::{Count, PATIENCE, double, hang};
use offshoot::prelude::*;
use offshoot_sys::clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Within which the owner of a process isolate is told of its end, in ns.
const TOLD: u64 = 100_000_000;

fn kill(process: &oracle::Process, signal: i32) -> u64 {
    let pidfd = process.pidfd().expect("it lives");
    let at = clock::now();
    assert!(
        pidfd.signal(signal).expect("our own"),
        "it had ended before"
    );
    at
}

fn forkserver() -> oracle::Process {
    oracle::forkserver_of(oracle::own_pid()).expect("a forkserver")
}

/// The error of a nursery that lost its only process with the forkserver, when it came, and which process it was.
async fn owner(name: &str, ready: &AtomicU64) -> (Error, u64, i32) {
    let mut pid = 0;
    let result: Result<()> = offshoot::nursery(async |nursery| {
        let own = nursery
            .start(Isolate::named(name).process(), Count::default())
            .await?;
        own.ask(Count::add, 1).await?;
        pid = own.origin().pid;
        ready.fetch_add(1, Ordering::Relaxed);
        own.call(hang, ()).await?
    })
    .await;
    (result.expect_err("it was killed"), clock::now(), pid)
}

/// Every owner is told once, in time, and why; threads notice nothing; the next spawn starts a new forkserver. (F13)
pub(crate) fn killed_while_idle() {
    oracle::watch_stalls();
    offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            // A thread isolate that is called all the while.
            let near = nursery.spawn(Isolate::named("near").thread()).await?;
            let stop = Arc::new(AtomicBool::new(false));
            let until = stop.clone();
            // From a thread of no isolate: this one is busy with starting forkservers.
            let calls = std::thread::spawn(move || {
                let mut times = Vec::new();
                while !until.load(Ordering::Relaxed) {
                    let before = clock::now();
                    near.call_blocking(double, 1)?;
                    times.push(clock::now() - before);
                    std::thread::sleep(Duration::from_micros(500));
                }
                times.sort_unstable();
                Ok::<Vec<u64>, Error>(times)
            });
            let mut former = None;
            for round in 0..10 {
                let ready = AtomicU64::new(0);
                let killed = async {
                    while ready.load(Ordering::Relaxed) < 3 {
                        offshoot::sleep(Duration::from_millis(1)).await?;
                    }
                    let old = forkserver();
                    // A new one each time.
                    assert_ne!(former.replace(old.pid), Some(old.pid));
                    let deaths = Deaths::watch(&oracle::below(old.pid));
                    kill(&old, libc::SIGKILL);
                    Ok::<Deaths, Error>(deaths)
                };
                let owners = ["a", "b", "c"].map(|name| owner(name, &ready));
                let (ends, killed) =
                    futures_util::future::join(futures_util::future::join_all(owners), killed)
                        .await;
                let deaths = killed?.all();
                for (error, told, pid) in ends {
                    let died = deaths[&pid];
                    let stalled = oracle::stalled(died, told);
                    let after = told.saturating_sub(died);
                    assert!(
                        after < TOLD + stalled,
                        "round {round}: told after {} us: {error}",
                        after / 1_000
                    );
                    assert_eq!(
                        error.failures().len(),
                        1,
                        "round {round}: {}",
                        error.report()
                    );
                    assert!(error.is_ended(), "round {round}: {}", error.report());
                    assert!(
                        error.message().contains("forkserver"),
                        "round {round}: {error}"
                    );
                }
            }
            stop.store(true, Ordering::Relaxed);
            let times = calls.join().expect("no panic")?;
            let (p99, slowest) = (times[times.len() * 99 / 100], times[times.len() - 1]);
            println!(
                "{} calls of a thread isolate meanwhile: p99 {} us, slowest {} us",
                times.len(),
                p99 / 1_000,
                slowest / 1_000
            );
            assert!(p99 < 10_000_000, "{} us", p99 / 1_000);
            // And the last one was not the last.
            let after = nursery.spawn(Isolate::named("after").process()).await?;
            assert_eq!(after.call(double, 21).await?, 42);
            assert_ne!(former, Some(forkserver().pid));
            Ok(())
        })
        .await
    })
    .unwrap_or_else(|error| panic!("{}", error.report()));
    assert!(oracle::own_tree_files().is_empty());
}

/// A spawn succeeds by another forkserver when the one that was asked does not answer, and what that one has forked lives on. (F15)
pub(crate) fn stopped() {
    oracle::watch_stalls();
    // One that waits in the root's hand needs nobody's answer.
    let builder = offshoot::Builder::new().reserve_processes(0);
    builder
        .run(async || {
            offshoot::nursery(async |nursery| {
                let near = nursery.spawn(Isolate::named("near").thread()).await?;
                let healthy = nursery
                    .start(Isolate::named("healthy").process(), Count::default())
                    .await?;
                let old = forkserver();
                kill(&old, libc::SIGSTOP);
                // What runs is undisturbed by that.
                near.call(double, 1).await?;
                let short = Duration::from_millis(300);
                let began = clock::now();
                let spawned = nursery
                    .spawn(Isolate::named("hasty").process().start_within(short))
                    .await;
                let took = Duration::from_nanos(clock::now() - began);
                let error = spawned.expect_err("nobody could fork it");
                assert!(error.is_spawn(), "{}", error.report());
                assert!(
                    took >= short && took < short + Duration::from_millis(700),
                    "after {took:?}"
                );
                // Several at once, within what is left of their bounds.
                let began = clock::now();
                let names = ["late", "later", "last"];
                let bound = Duration::from_secs(5);
                let spawns = names
                    .map(|name| nursery.spawn(Isolate::named(name).process().start_within(bound)));
                for spawned in futures_util::future::join_all(spawns).await {
                    assert_eq!(spawned?.call(double, 2).await?, 4);
                }
                let now = clock::now();
                let took = now - began;
                assert!(
                    took < 2_000_000_000 + oracle::stalled(began, now),
                    "after {} ms",
                    took / 1_000_000
                );
                assert!(old.is_there(), "its isolates would end with it");
                assert_eq!(healthy.ask(Count::add, 3).await?, 3);
                // It ends as any other, though nobody reaps it yet; then its forkserver goes, too.
                healthy.cancel().await;
                let gone = move || oracle::within(PATIENCE, || !old.is_there());
                let gone = offshoot::unblock(gone).await?;
                assert!(gone, "the stopped forkserver is left: {}", oracle::table());
                let next = nursery.spawn(Isolate::named("next").process()).await?;
                assert_eq!(next.call(double, 2).await?, 4);
                nursery.cancel();
                Ok(())
            })
            .await
        })
        .unwrap_or_else(|error| panic!("{}", error.report()));
    assert!(oracle::own_tree_files().is_empty());
}

/// Those who wait for an isolate that crashes meanwhile are told so at once, and how. (F15)
pub(crate) fn a_crash_while_it_is_stopped() {
    oracle::watch_stalls();
    let run = offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            let one = nursery
                .start(Isolate::named("one").process(), Count::default())
                .await?;
            assert_eq!(one.ask(Count::add, 3).await?, 3);
            let server = forkserver();
            kill(&server, libc::SIGSTOP);
            let stopped = || offshoot_sys::process::is_stopped(server.pid);
            assert!(oracle::within(PATIENCE, stopped));
            let began = clock::now();
            offshoot_sys::pidfd::Pidfd::open(one.origin().pid)?.signal(libc::SIGSEGV)?;
            let error = one.call(hang, ()).await.expect_err("it was killed");
            let now = clock::now();
            assert!(
                now - began < TOLD + oracle::stalled(began, now),
                "after {} ms",
                (now - began) / 1_000_000
            );
            assert!(error.report().contains("SIGSEGV"), "{}", error.report());
            kill(&server, libc::SIGCONT);
            Ok(())
        })
        .await
    });
    let error = run.expect_err("one has crashed");
    assert!(error.report().contains("SIGSEGV"), "{}", error.report());
    assert!(oracle::own_tree_files().is_empty());
}

/// It goes on when another one has taken its place: what it was asked for meanwhile is not there twice, and it reports on. (F15)
pub(crate) fn stopped_for_a_while() {
    let builder = offshoot::Builder::new().reserve_processes(0);
    builder
        .run(async || {
            offshoot::nursery(async |nursery| {
                let healthy = nursery
                    .start(Isolate::named("healthy").process(), Count::default())
                    .await?;
                let old = forkserver();
                kill(&old, libc::SIGSTOP);
                let late = nursery.spawn(Isolate::named("late").process()).await?;
                kill(&old, libc::SIGCONT);
                assert_eq!(late.call(double, 2).await?, 4);
                assert_eq!(healthy.ask(Count::add, 3).await?, 3);
                let of_old = old.clone();
                let alone = move || {
                    oracle::within(PATIENCE, || oracle::isolates_below(of_old.pid).len() == 1)
                };
                assert!(
                    offshoot::unblock(alone).await?,
                    "late was forked twice: {}",
                    oracle::table()
                );
                // A crash is reported with its signal, by the forkserver that has it.
                let pid = healthy.origin().pid;
                let lost = healthy.call(hang, ());
                offshoot_sys::pidfd::Pidfd::open(pid)?.signal(libc::SIGSEGV)?;
                let error = lost.await.expect_err("it was killed");
                assert!(error.report().contains("SIGSEGV"), "{}", error.report());
                let gone = move || oracle::within(PATIENCE, || !old.is_there());
                let gone = offshoot::unblock(gone).await?;
                assert!(gone, "it has nothing to do any more: {}", oracle::table());
                nursery.cancel();
                Ok(())
            })
            .await
        })
        .map_or_else(
            |error| assert!(error.report().contains("SIGSEGV"), "{}", error.report()),
            |()| panic!("one has crashed"),
        );
    assert!(oracle::own_tree_files().is_empty());
}

/// A spawn that is under way ends by an error or by a portal, never not at all, and the next one works. (F14)
pub(crate) fn killed_during_a_spawn() {
    let mut random = Random::new();
    let rounds = if std::env::var_os("OFFSHOOT_LONG").is_some() {
        200
    } else {
        30
    };
    let delays: Vec<Duration> = (0..rounds)
        .map(|_| random.duration(Duration::from_micros(2500)))
        .collect();
    offshoot::run(async move || {
        let (mut failed, mut succeeded) = (0, 0);
        for delay in delays {
            // One that works, so that there is a forkserver to kill.
            let one: Result<()> = offshoot::nursery(async |nursery| {
                let one = nursery.spawn(Isolate::named("one").process()).await?;
                one.call(double, 1).await?;
                let old = forkserver();
                let victim = old.clone();
                // Beside the spawn, since that may need this thread.
                let killer = std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    kill(&victim, libc::SIGKILL);
                });
                let began = clock::now();
                let spawned = nursery.spawn(Isolate::named("two").process()).await;
                let took = Duration::from_nanos(clock::now() - began);
                killer.join().expect("it killed");
                assert!(
                    took < Duration::from_secs(2),
                    "a spawn hung for {took:?}, killed after {delay:?}"
                );
                match spawned {
                    Err(error) => {
                        failed += 1;
                        assert!(
                            error.is_spawn() || error.is_cancelled(),
                            "{}",
                            error.report()
                        );
                    }
                    Ok(two) => {
                        succeeded += 1;
                        // Alive for now; its end comes like any other's.
                        two.call(hang, ()).await??;
                    }
                }
                one.call(hang, ()).await?
            })
            .await;
            let error = one.expect_err("the forkserver was killed");
            assert!(error.report().contains("root/one"), "{}", error.report());
            // And now it works again.
            offshoot::nursery(async |nursery| {
                let next = nursery.spawn(Isolate::named("next").process()).await?;
                assert_eq!(next.call(double, 2).await?, 4);
                Ok(())
            })
            .await?;
        }
        println!("{failed} spawns failed, {succeeded} succeeded before the kill");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{}", error.report()));
    assert!(oracle::own_tree_files().is_empty());
}
