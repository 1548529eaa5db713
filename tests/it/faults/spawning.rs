//! A process that fails at a stage of its start, a forkserver that cannot fork, and bounds that pass.

use super::links::{header, kill_self, write_raw};
use super::{SOON, pends, serves};
use offshoot::prelude::*;
use offshoot::{Error, Limit};
use offshoot_tests::processes;
use std::time::{Duration, Instant};

/// Spawns `faulty`, which cannot start, between two that work; its error and how long it took.
async fn fails(isolate: Isolate) -> Result<(Error, Duration)> {
    offshoot::nursery(async |nursery| {
        let before = nursery.spawn(Isolate::named("before").process()).await?;
        let began = Instant::now();
        let spawned = nursery.spawn(isolate).await;
        let took = began.elapsed();
        let error = spawned.expect_err("it cannot have started");
        assert!(error.is_spawn(), "{}", error.report());
        assert!(error.report().contains("faulty"), "{}", error.report());
        // It was told once, by the spawn, and costs nobody else anything.
        serves(&before).await?;
        let after = nursery.spawn(Isolate::named("after").process()).await?;
        serves(&after).await?;
        Ok((error, took))
    })
    .await
}

fn faulty() -> Isolate {
    Isolate::named("faulty").process()
}

/// What a start hook does to a process that the environment marks.
fn in_faulty(act: impl FnOnce()) {
    if std::env::var_os("OFFSHOOT_TEST_FAULTY").is_some() {
        act();
    }
}

fn marked_faulty() -> Isolate {
    faulty().env("OFFSHOOT_TEST_FAULTY", "1")
}

processes! {
    fn f01_killed_before_any_byte(t: T) {
        t.faults("S1@faulty:kill");
        let (error, took) = t.run(async || fails(faulty()).await).unwrap();
        assert!(error.message().contains("SIGKILL"), "{error}");
        assert!(took < Duration::from_millis(500), "not by the bound of the start: {took:?}");
    }

    fn f02_killed_in_its_prelude(t: T) {
        t.faults("S2@faulty:kill");
        let (error, took) = t.run(async || fails(faulty()).await).unwrap();
        assert!(error.message().contains("SIGKILL"), "{error}");
        assert!(took < Duration::from_millis(500), "{took:?}");
    }

    fn f02_a_step_of_its_prelude_fails(t: T) {
        t.faults("S2@faulty:fail=13");
        let (error, _) = t.run(async || fails(faulty()).await).unwrap();
        let text = error.report();
        assert!(text.contains("prelude") && text.contains("os error 13"), "{text}");
        t.faults("none:kill");
        // A real one: no process may have so many descriptors (/proc/sys/fs/nr_open), not even root's.
        let isolate = || faulty().limit(Limit::OpenFiles, 64, u64::MAX >> 1);
        let (error, _) = t.run(async move || fails(isolate()).await).unwrap();
        assert!(error.report().contains("limit"), "{}", error.report());
    }

    fn f03_killed_after_half_of_its_first_frame(t: T) {
        let hook = || in_faulty(|| {
            // The header of a Ready frame of 40 bytes, and four of them.
            write_raw(&header(40, 16, 0));
            write_raw(&[0; 4]);
            kill_self();
        });
        let run = async || fails(marked_faulty()).await;
        let (error, took) = t.builder().on_process_start(hook).run(run).unwrap();
        assert!(error.message().contains("SIGKILL"), "{error}");
        assert!(took < Duration::from_millis(500), "{took:?}");
    }

    fn f07_another_build(t: T) {
        t.faults("build@faulty:fail=1");
        let (error, _) = t.run(async || fails(faulty()).await).unwrap();
        let text = error.report();
        // Both ids, 40 digits each at the least, so that one can be looked for.
        let ids = text.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() >= 16);
        assert!(ids.count() >= 2 && text.contains("same executable"), "{text}");
    }

    fn f09_no_process_can_be_forked(t: T) {
        // For good: an error with its name, after some tries, within the bound; and the forkserver lives.
        t.faults("fork@faulty:fail=11");
        let run = t.builder().reserve_processes(0).run(async || fails(faulty()).await);
        let (error, took) = run.unwrap();
        assert!(error.report().contains("os error 11"), "{}", error.report());
        assert!(error.message().contains("RLIMIT_NPROC"), "{error}");
        assert!(took < SOON, "{took:?}");
    }

    fn f09_a_fork_that_fails_for_a_moment(t: T) {
        // Too many processes, no memory, no file of the whole system's: each twice, and then it goes.
        t.faults("fork@a*2:fail=11,fork@b*2:fail=12,pair@c*2:fail=23,fork@d:fail=1");
        t.builder().reserve_processes(0).run(async || {
            offshoot::nursery(async |nursery| {
                for name in ["a", "b", "c"] {
                    serves(&nursery.start(Isolate::named(name).process(), 7_u32).await?).await?;
                }
                // What does not pass by itself is told at once.
                let error = nursery.spawn(Isolate::named("d").process()).await.unwrap_err();
                assert!(error.report().contains("os error 1)"), "{}", error.report());
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    fn f10_no_memory_to_fork(t: T) {
        t.faults("fork@faulty:fail=12");
        let (error, took) = t
            .builder()
            .reserve_processes(0)
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
                    let failed = fails(faulty()).await?;
                    serves(&thread).await?;
                    Ok(failed)
                })
                .await
            })
            .unwrap();
        assert!(error.report().contains("os error 12"), "{}", error.report());
        assert!(took < SOON, "{took:?}");
    }

    fn f14_a_forkserver_that_dies_having_forked(t: T) {
        t.faults("forked@faulty:kill");
        t.builder().reserve_processes(0).run(async || {
            let began = Instant::now();
            let lost = offshoot::nursery(async |nursery| {
                let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
                let error = nursery.spawn(faulty()).await.expect_err("nobody says that it is there");
                assert!(error.is_spawn(), "{}", error.report());
                assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
                serves(&thread).await
            })
            .await;
            lost?;
            // The next one gets another forkserver.
            offshoot::nursery(async |nursery| serves(&nursery.spawn("next").await?).await).await
        })
        .unwrap();
    }


    /// A nursery is cancelled while a process hangs at each stage of its start: nothing of it is left.
    fn f56_cancelled_at_each_stage_of_a_spawn(t: T) {
        for stage in ["fork", "forked", "S1", "S2", "S3", "S4", "S5"] {
            t.faults(&format!("{stage}@faulty:delay=400"));
            let began = Instant::now();
            t.builder().reserve_processes(0).run(async move || {
                let result = offshoot::nursery(async |nursery| {
                    nursery.task(async move {
                        offshoot::sleep(Duration::from_millis(60)).await.ok();
                        nursery.cancel();
                    }).detach();
                    // One that says that it is ready may have been faster than the cancellation.
                    let p = nursery.spawn(faulty().env("OFFSHOOT_FAULT", format!("{stage}:delay=400"))).await?;
                    p.call(pends, ()).await
                })
                .await;
                let error = result.expect_err("it was cancelled");
                assert!(error.is_cancelled(), "{stage}: {}", error.report());
                Ok(())
            })
            .unwrap();
            assert!(began.elapsed() < Duration::from_secs(2), "{stage}: {:?}", began.elapsed());
        }
    }
}
