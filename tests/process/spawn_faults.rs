//! A new process fails at a given stage of its start, by a fault point: F01 to F04, F06, F17, F18.

use crate::oracle;
use crate::program::{double, hang};
use offshoot::prelude::*;
use offshoot_sys::clock;
use std::time::Duration;

/// Spawns one process with this fault, and returns what the spawn said and how long it took. The nursery and the tree go on.
fn spawn_with(fault: &str, bound: Duration) -> (Error, Duration) {
    // SAFETY: the first thread that this case starts comes after; nobody else reads the environment.
    unsafe { std::env::set_var("OFFSHOOT_FAULT", fault) };
    let outcome = offshoot::run(async move || {
        offshoot::nursery(async |nursery| {
            let near = nursery.spawn(Isolate::named("near").thread()).await?;
            // So that the forkserver's start is not counted.
            let _ = nursery
                .spawn(Isolate::named("first").process().start_within(bound))
                .await;
            let began = clock::now();
            let spawned = nursery
                .spawn(Isolate::named("faulty").process().start_within(bound))
                .await;
            let took = Duration::from_nanos(clock::now() - began);
            let error = spawned.expect_err("it cannot have started");
            // No orphan is left of it, and the others are undisturbed.
            assert_eq!(near.call(double, 3).await?, 6);
            let forkserver = oracle::forkserver_of(oracle::own_pid());
            let alone = || {
                forkserver
                    .as_ref()
                    .is_none_or(|process| oracle::isolates_below(process.pid).is_empty())
            };
            assert!(
                oracle::within(Duration::from_secs(1), alone),
                "{}",
                oracle::table()
            );
            Ok((error, took))
        })
        .await
    });
    let (error, took) =
        outcome.unwrap_or_else(|error| panic!("the tree failed, too: {}", error.report()));
    println!("{fault}: after {took:?}: {error}");
    assert!(error.is_spawn(), "{}", error.report());
    assert!(error.to_string().contains("faulty"), "{error}");
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
    (error, took)
}

const BOUND: Duration = Duration::from_secs(5);

/// Its death is what ends the spawn, not the bound. (F01 to F03)
pub(crate) fn killed_before() {
    let (error, took) = spawn_with("S3:kill", BOUND);
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// (F06)
pub(crate) fn stopped_before() {
    let bound = Duration::from_millis(300);
    let (_, took) = spawn_with("S3:stop", bound);
    assert!(
        took >= bound && took < bound + Duration::from_millis(500),
        "{took:?}"
    );
}

/// (F06)
pub(crate) fn hangs_before() {
    let bound = Duration::from_millis(300);
    let (_, took) = spawn_with("S3:hang", bound);
    assert!(
        took >= bound && took < bound + Duration::from_millis(500),
        "{took:?}"
    );
}

/// (F17)
pub(crate) fn exits_before() {
    let (error, took) = spawn_with("S3:exit", BOUND);
    assert!(error.to_string().contains("code 3"), "{error}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// (F18)
pub(crate) fn panics_before() {
    let (error, took) = spawn_with("S3:panic", BOUND);
    assert!(
        error.to_string().contains("70") || error.to_string().contains("fault point"),
        "{error}"
    );
    assert!(took < Duration::from_millis(500), "{took:?}");
}

/// The spawn may succeed, but then the end is told, once. (F04)
pub(crate) fn killed_after() {
    // SAFETY: as in `spawn_with`.
    unsafe { std::env::set_var("OFFSHOOT_FAULT", "S5:kill") };
    let began = clock::now();
    let result: Result<()> = offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            let faulty = nursery.spawn(Isolate::named("faulty").process()).await?;
            faulty.call(hang, ()).await?
        })
        .await
    });
    let took = Duration::from_nanos(clock::now() - began);
    let error = result.expect_err("it was killed");
    assert_eq!(error.failures().len(), 1, "{}", error.report());
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
}
