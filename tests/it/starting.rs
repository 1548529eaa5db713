//! P3: a spawn gives a working portal or the error that stopped the start, within its bound; it
//! never hangs, whatever dies when.

use offshoot::prelude::*;
use offshoot::{Error, Portal};
use offshoot_tests::{Stopwatch, both, processes, threads};
use std::time::Duration;

/// What a start may take in these tests, and a little for the machine.
const BOUND: Duration = Duration::from_millis(400);
const SLACK: Duration = Duration::from_millis(600);

fn answer() -> u32 {
    42
}

/// A spec whose process does `action` at `stage`.
fn faulty(stage: &str, action: &str) -> Isolate {
    Isolate::named("faulty")
        .process()
        .env("OFFSHOOT_FAULT", format!("{stage}:{action}"))
        .start_within(BOUND)
        .grace(Duration::from_millis(50))
        .hard_kill(Duration::from_millis(200))
}

/// Spawns it where it cannot start, and what comes after.
async fn fails_to_start(stage: &str, action: &str, at_once: bool) -> Result<Error> {
    offshoot::nursery(async |nursery| {
        let began = Stopwatch::start();
        let error = nursery.spawn(faulty(stage, action)).await.unwrap_err();
        let took = began.elapsed();
        assert!(error.is_spawn(), "{error:?}");
        let bound = if at_once { SLACK } else { BOUND + SLACK };
        assert!(took < bound, "{took:?}");
        // It was reported by the spawn, and is no failure of the nursery, which works on.
        let next = nursery.spawn("next").await?;
        assert_eq!(next.call(answer, ()).await?, 42);
        Ok(error)
    })
    .await
}

/// Spawns what ends when it is ready: the spawn may have won, then the end is seen like any other.
async fn ends_when_ready(action: &str) -> (Result<Portal>, Result<()>) {
    let mut spawned = Err(Error::other("not spawned"));
    let ended = offshoot::nursery(async |nursery| {
        let began = Stopwatch::start();
        spawned = nursery.spawn(faulty("S5", action)).await;
        if let Ok(p) = &spawned {
            // Nothing answers any more, and whoever waits is told.
            let call = offshoot::timeout(BOUND, p.call(answer, ())).await;
            assert!(!matches!(call, Ok(Ok(_))), "{call:?}");
        }
        assert!(began.elapsed() < BOUND + SLACK, "{:?}", began.elapsed());
        nursery.cancel();
        Ok(())
    })
    .await;
    (spawned, ended)
}

fn is_exit(result: &Result<()>, word: &str) -> bool {
    result.as_ref().is_err_and(|error| {
        error.failures().len() == 1
            && error.exit().is_some_and(|exit| exit.word() == word)
            && error
                .origin()
                .is_some_and(|origin| origin.path == "root/faulty")
    })
}

processes! {
    async fn killed_before_it_is_ready(_t: T) {
        let error = fails_to_start("S3", "kill", true).await?;
        assert!(error.message().contains("SIGKILL"), "{error:?}");
    }

    async fn f06_stopped_before_it_is_ready(_t: T) {
        let error = fails_to_start("S3", "stop", false).await?;
        assert!(error.message().contains("within"), "{error:?}");
    }

    async fn f17_exited_before_it_is_ready(_t: T) {
        let error = fails_to_start("S3", "exit", true).await?;
        assert!(error.message().contains("code 3"), "{error:?}");
    }

    async fn f18_panicked_before_it_is_ready(_t: T) {
        let error = fails_to_start("S3", "panic", true).await?;
        assert!(error.message().contains("fault point S3"), "{error:?}");
    }

    async fn f58_hung_before_it_is_ready(_t: T) {
        let error = fails_to_start("S3", "hang", false).await?;
        assert!(error.message().contains("within"), "{error:?}");
    }

    async fn f04_killed_when_it_is_ready(_t: T) {
        let (spawned, ended) = ends_when_ready("kill").await;
        match spawned {
            Ok(_) => assert!(is_exit(&ended, "killed"), "{ended:?}"),
            Err(error) => assert!(error.is_spawn() && ended.is_ok(), "{error:?} {ended:?}"),
        }
    }

    async fn exited_when_it_is_ready(_t: T) {
        let (spawned, ended) = ends_when_ready("exit").await;
        match spawned {
            Ok(_) => assert!(is_exit(&ended, "exited"), "{ended:?}"),
            Err(error) => assert!(error.is_spawn() && ended.is_ok(), "{error:?} {ended:?}"),
        }
    }

    async fn panicked_when_it_is_ready(_t: T) {
        let (spawned, ended) = ends_when_ready("panic").await;
        match spawned {
            Ok(_) => assert!(is_exit(&ended, "exited"), "{ended:?}"),
            Err(error) => assert!(error.is_spawn() && ended.is_ok(), "{error:?} {ended:?}"),
        }
    }

    async fn stopped_when_it_is_ready(_t: T) {
        let (spawned, ended) = ends_when_ready("stop").await;
        assert!(spawned.is_ok(), "{spawned:?}");
        assert!(is_exit(&ended, "killed"), "{ended:?}");
    }

    async fn hung_when_it_is_ready(_t: T) {
        let (spawned, ended) = ends_when_ready("hang").await;
        assert!(spawned.is_ok(), "{spawned:?}");
        assert!(is_exit(&ended, "killed"), "{ended:?}");
    }

    async fn f16_a_state_that_cannot_be_decoded_fails_the_spawn(_t: T) {
        #[derive(Serialize)]
        struct OneWay;
        impl<'de> Deserialize<'de> for OneWay {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<OneWay, D::Error> {
                Err(serde::de::Error::custom("not this way"))
            }
        }
        offshoot::nursery(async |nursery| {
            let error = nursery.start("p", OneWay).await.unwrap_err();
            assert!(error.message().contains("not this way"), "{error:?}");
            Ok(())
        })
        .await?;
    }
}

threads! {
    async fn a_thread_that_cannot_be_had_fails_the_spawn(_t: T) {
        offshoot::nursery(async |nursery| {
            let too_much = Isolate::named("x").stack_size(1 << 46);
            let error = nursery.spawn(too_much).await.unwrap_err();
            assert!(error.is_spawn() && error.message().contains("limit"), "{error:?}");
            assert_eq!(nursery.spawn("y").await?.call(answer, ()).await?, 42);
            Ok(())
        })
        .await?;
    }
}

both! {
    async fn spawns_dropped_at_any_point_leave_nothing(t: T) {
        let steps = if t.is_process() { 60 } else { 10 };
        for step in 0..steps {
            offshoot::nursery(async |nursery| {
                // Nothing, the fork, the first words, or all of it, as the machine goes.
                let bound = Duration::from_micros(50 * step);
                let spawned = offshoot::timeout(bound, nursery.spawn("p")).await;
                if let Ok(p) = spawned {
                    assert_eq!(p?.call(answer, ()).await?, 42);
                }
                Ok(())
            })
            .await?;
        }
    }

    async fn f56_cancelled_in_the_middle_of_a_spawn(t: T) {
        let steps = if t.is_process() { 60 } else { 10 };
        for step in 0..steps {
            let result = offshoot::nursery(async |nursery| {
                drop(nursery.task(async move {
                    offshoot::sleep(Duration::from_micros(50 * step)).await?;
                    nursery.cancel();
                    Ok::<(), Error>(())
                }));
                nursery.spawn("p").await?.call(answer, ()).await
            })
            .await;
            match result {
                Ok(n) => assert_eq!(n, 42),
                Err(error) => assert!(error.is_cancelled(), "{error:?}"),
            }
        }
    }

    async fn many_spawns_at_once(t: T) {
        let many = if t.is_process() { 24 } else { 100 };
        offshoot::nursery(async |nursery| {
            let all: Vec<_> = (0..many)
                .map(|n| {
                    nursery.task(async move {
                        let p = nursery.spawn(format!("p{n}")).await?;
                        p.call(|n: u32| n + 1, n).await
                    })
                })
                .collect();
            for (n, one) in (0..many).zip(all) {
                assert_eq!(one.await??, n + 1);
            }
            Ok(())
        })
        .await?;
    }
}

processes! {
    /// A process that has said how it ended and does not go is taken down, and its word counts.
    async fn one_that_has_ended_and_does_not_go_is_taken_down(_t: T) {
        let isolate = Isolate::named("lingers").process().env("OFFSHOOT_FAULT", "S8:hang");
        offshoot::nursery(async |nursery| {
            let portal = nursery.spawn(isolate).await?;
            assert_eq!(portal.call(answer, ()).await?, 42);
            Ok(())
        })
        .await?;
    }
}
