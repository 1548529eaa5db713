//! The clock of a test, which its timers go by: nothing waits, and everything happens in its order.

use offshoot::prelude::*;
use offshoot::testing::Clock;
use offshoot::{Error, Isolation};
use offshoot_tests::{append, lines, processes, threads};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything here takes by the machine's clock.
const SOON: Duration = Duration::from_secs(10);

async fn sleeps_and_says(hours: u32) -> Result<u32> {
    offshoot::sleep(HOUR * hours).await?;
    append("woken", &hours.to_string());
    Ok(hours)
}

/// Says each ten seconds that it is there.
async fn ticks() -> Result<()> {
    loop {
        offshoot::sleep(Duration::from_secs(10)).await?;
        append("ticks", "one");
        // What a tick sets off takes several isolates and turns.
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").thread()).await?;
            one.call(|| append("ticked", "one"), ()).await
        })
        .await?;
    }
}

fn serves_or_counts(inbox: &mut Inbox) -> Result<()> {
    loop {
        match inbox.serve_timeout(Duration::from_secs(60))? {
            Some(true) => append("inbox", "served"),
            Some(false) => return Ok(()),
            None => append("inbox", "late"),
        }
    }
}

fn computes(millis: u64) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(millis) {
        std::hint::spin_loop();
    }
    append("order", "computed");
}

async fn never() -> Result<()> {
    loop {
        let _ = offshoot::sleep(HOUR).await;
    }
}

async fn sleeps_really(millis: u64) -> Result<Duration> {
    let began = Instant::now();
    offshoot::sleep(Duration::from_millis(millis)).await?;
    Ok(began.elapsed())
}

threads! {
    fn hours_pass_at_once_and_in_order(t: T) {
        let (clock, began) = (Clock::auto(), Instant::now());
        t.builder().clock(&clock).run(async || {
            offshoot::nursery(async |nursery| {
                for hours in [3, 1, 4, 2] {
                    let one = nursery.spawn(format!("h{hours}")).await?;
                    drop(nursery.task(async move { one.call(sleeps_and_says, hours).await? }));
                }
                Ok(())
            })
            .await
        })
        .unwrap();
        assert_eq!(lines("woken"), ["1", "2", "3", "4"]);
        assert_eq!(clock.elapsed(), HOUR * 4);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }

    fn every_bound_of_the_program_goes_by_it(t: T) {
        let clock = Clock::auto();
        let ours = clock.clone();
        t.builder().clock(&clock).run(async move || {
            let late = offshoot::timeout(HOUR, offshoot::sleep(HOUR * 2)).await;
            assert!(late.unwrap_err().is_timeout());
            assert_eq!(ours.elapsed(), HOUR);
            let moved = offshoot::move_on_after(HOUR, async || offshoot::sleep(HOUR * 2).await).await?;
            assert_eq!(moved, None);
            let failed = offshoot::fail_after(HOUR, async || offshoot::sleep(HOUR * 2).await).await;
            assert!(failed.unwrap_err().is_timeout());
            assert_eq!(ours.elapsed(), HOUR * 3);
            // In time is in time.
            offshoot::timeout(HOUR, offshoot::sleep(HOUR / 2)).await??;
            assert_eq!(ours.elapsed(), HOUR * 7 / 2);
            // A goodbye that takes its time.
            let said = offshoot::move_on_after(HOUR, async || {
                let cancelled = offshoot::sleep(HOUR * 9).await;
                offshoot::shield(HOUR * 2, async || offshoot::sleep(HOUR).await).await?;
                cancelled
            })
            .await?;
            assert_eq!(said, None);
            assert_eq!(ours.elapsed(), HOUR * 11 / 2);
            Ok(())
        })
        .unwrap();
    }

    /// To the tick, with all that each sets off, however the time is cut.
    fn it_stands_still_until_it_is_advanced(t: T) {
        let clock = Clock::manual();
        let ours = clock.clone();
        let result = t.builder().clock(&clock).run(async move || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                drop(nursery.task(async move { one.call(ticks, ()).await? }));
                let mut seconds = 0;
                for by in [0, 9, 1, 0, 25, 5, 1, 59, 100] {
                    ours.advance(Duration::from_secs(by)).await?;
                    seconds += by;
                    assert_eq!(lines("ticks").len() as u64, seconds / 10, "after {seconds} s");
                    assert_eq!(lines("ticked").len() as u64, seconds / 10, "after {seconds} s");
                }
                assert_eq!(ours.elapsed(), Duration::from_secs(200));
                Err::<(), _>(Error::other("enough"))
            })
            .await
        });
        assert!(result.unwrap_err().message().contains("enough"));
    }

    fn it_is_advanced_from_outside(t: T) {
        let clock = Clock::manual();
        let none = clock.advance_blocking(HOUR).unwrap_err();
        assert!(none.message().contains("no tree"), "{none}");
        let running = t.builder().clock(&clock).start(async || sleeps_and_says(5).await).unwrap();
        for _ in 0..4 {
            clock.advance_blocking(HOUR).unwrap();
            assert_eq!(lines("woken"), [""; 0]);
        }
        // The tree may end by that, before it has come to rest again.
        let _ = clock.advance_blocking(HOUR);
        assert_eq!(running.wait().unwrap(), 5);
        assert_eq!(lines("woken"), ["5"]);
    }

    fn a_blocking_isolate_waits_by_it(t: T) {
        let clock = Clock::manual();
        let ours = clock.clone();
        t.builder().clock(&clock).run(async move || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn(Isolate::named("one").blocking_main(serves_or_counts)).await?;
                ours.advance(Duration::from_secs(150)).await?;
                assert_eq!(lines("inbox"), ["late", "late"]);
                one.call(|| (), ()).await?;
                ours.advance(Duration::from_secs(59)).await?;
                assert_eq!(lines("inbox"), ["late", "late", "served"]);
                ours.advance(Duration::from_secs(1)).await?;
                assert_eq!(lines("inbox"), ["late", "late", "served", "late"]);
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    /// Whoever computes, blocks or is being started is waited for, as long as that takes.
    fn it_goes_on_only_when_nobody_has_anything_else_to_do(t: T) {
        let clock = Clock::auto();
        t.builder().clock(&clock).run(async || {
            offshoot::nursery(async |nursery| {
                let (busy, idle) = (nursery.spawn("busy").await?, nursery.spawn("idle").await?);
                for _ in 0..10 {
                    let computed = nursery.task({
                        let busy = busy.clone();
                        async move { busy.call(computes, 20).await }
                    });
                    idle.call(async || {
                        offshoot::sleep(Duration::from_nanos(1)).await?;
                        append("order", "slept");
                        offshoot::unblock(|| { std::thread::sleep(Duration::from_millis(10)); append("order", "unblocked") }).await
                    }, ()).await??;
                    computed.await??;
                }
                Ok(())
            })
            .await
        })
        .unwrap();
        for three in lines("order").chunks(3) {
            assert_eq!(three, ["computed", "slept", "unblocked"]);
        }
    }

    /// The runtime's own bounds are real: a clock that stands still holds up no teardown.
    fn a_teardown_takes_its_real_time(t: T) {
        let clock = Clock::manual();
        let began = Instant::now();
        let result = t.builder()
            .clock(&clock)
            .grace(Duration::from_millis(50))
            .hard_kill(Duration::from_millis(200))
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let one = nursery.spawn("one").await?;
                    drop(nursery.task(async move { one.call(never, ()).await? }));
                    offshoot::checkpoint().await?;
                    Err::<(), _>(Error::other("enough"))
                })
                .await
            });
        assert!(result.is_err());
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert_eq!(clock.elapsed(), Duration::ZERO);
    }

    /// Many isolates that wake each other with timers between: the same in each run.
    fn the_same_happens_in_each_run(t: T) {
        let mut runs = Vec::new();
        for _ in 0..5 {
            let clock = Clock::auto();
            let ours = clock.clone();
            let told = t.builder().clock(&clock).run(async move || {
                offshoot::nursery(async |nursery| {
                    let mut tasks = Vec::new();
                    for n in 0..8_u64 {
                        let one = nursery.spawn(format!("n{n}")).await?;
                        let ours = ours.clone();
                        tasks.push(nursery.task(async move {
                            let mut times = Vec::new();
                            for round in 1..20 {
                                one.call(async |ms: u64| offshoot::sleep(Duration::from_millis(ms)).await, 7 * round + n).await??;
                                times.push(ours.elapsed());
                            }
                            Ok::<_, Error>(times)
                        }));
                    }
                    let mut told = Vec::new();
                    for task in tasks {
                        told.push(task.await??);
                    }
                    Ok(told)
                })
                .await
            }).unwrap();
            runs.push(told);
        }
        for run in &runs {
            assert_eq!(run, &runs[0]);
        }
    }

    fn what_cannot_be_is_told(t: T) {
        let clock = Clock::manual();
        let ours = clock.clone();
        t.builder().clock(&clock).run(async move || {
            let other = Clock::manual();
            let error = other.advance(HOUR).await.unwrap_err();
            assert!(error.message().contains("Builder::clock"), "{error}");
            let error = ours.advance_blocking(HOUR).unwrap_err();
            assert!(error.message().contains("`advance`"), "{error}");
            Ok(())
        })
        .unwrap();
    }
}

processes! {
    /// What is in a process takes its real time, and is waited for.
    fn a_process_keeps_to_the_real_time(t: T) {
        let clock = Clock::auto();
        let real = t.builder().isolation(Isolation::Thread).clock(&clock).run(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn(Isolate::named("one").process()).await?;
                offshoot::timeout(HOUR, one.call(sleeps_really, 100)).await??
            })
            .await
        })
        .unwrap();
        assert!(real >= Duration::from_millis(100), "{real:?}");
        assert_eq!(clock.elapsed(), Duration::ZERO);
    }
}
