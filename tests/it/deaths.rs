//! The death of a process comes at any moment, also together with the last bytes that it has sent: all that hold a portal to it are
//! told, and what it had called is cancelled.

use offshoot::prelude::*;
use offshoot_tests::{SinceDeath, Stopwatch, processes};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// By then everyone who waits has been told.
const TOLD: Duration = Duration::from_millis(100);

fn rounds(short: u64) -> u64 {
    match std::env::var_os("OFFSHOOT_LONG") {
        Some(_) => 10_000,
        None => short,
    }
}

async fn never() {
    let _ = offshoot::sleep(Duration::from_secs(1_000)).await;
}

fn echo(number: u64) -> u64 {
    number
}

/// Answers, and has its process killed so much later.
fn dies(after: Duration) {
    std::thread::spawn(move || {
        let end = Instant::now() + after;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        // SAFETY: no memory is passed.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    });
}

/// Calls a process that dies meanwhile. How long the call that waits took to fail after the death; `None` if it did not for 2 s.
async fn wait_for_death(target: Portal, after: Duration) -> Result<Option<Duration>> {
    let told = offshoot::nursery(async |nursery| {
        let portal = target.clone();
        let pending = nursery.task(async move { portal.call(never, ()).await.is_err() });
        // Behind the call that never answers.
        let dead = SinceDeath::of(target.call(std::process::id, ()).await?)?;
        let _ = target.call(dies, after).await;
        let watch = Stopwatch::start();
        // Short answers, so that one of them comes with the end.
        while watch.elapsed() < after + Duration::from_micros(100) {
            let answer = offshoot::timeout(Duration::from_secs(1), target.call(echo, 1));
            if !matches!(answer.await, Ok(Ok(_))) {
                break;
            }
        }
        let told = offshoot::timeout(Duration::from_secs(2), pending).await;
        let took = told.is_ok().then(|| dead.elapsed());
        nursery.cancel();
        Ok(took)
    });
    told.await
}

/// Spawns a process in a nursery of its own, whose failure is of no interest, and runs `with` beside it.
async fn with_target<R>(with: impl AsyncFnOnce(Portal) -> Result<R>) -> Result<R> {
    offshoot::nursery(async |round| {
        let slot = Rc::new(RefCell::new(None));
        let given = slot.clone();
        let owner = round.task(async move {
            let _ = offshoot::nursery(async |owner| {
                let target = owner.spawn(Isolate::named("target")).await?;
                *given.borrow_mut() = Some(target);
                offshoot::sleep(Duration::from_secs(100)).await
            })
            .await;
        });
        let target = loop {
            if let Some(target) = slot.borrow_mut().take() {
                break target;
            }
            offshoot::sleep(Duration::from_micros(100)).await?;
        };
        let result = with(target).await;
        owner.await?;
        result
    })
    .await
}

/// Different moments, the same in each run.
fn moments() -> impl Iterator<Item = Duration> {
    let mut seed = 1_u64;
    std::iter::repeat_with(move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        Duration::from_micros((seed >> 33) % 400)
    })
}

processes! {
    async fn each_holder_is_told_of_a_death_that_comes_with_the_last_bytes(t: T) {
        t.within(Duration::from_secs(900));
        offshoot::nursery(async |nursery| {
            let holder = nursery.spawn("holder").await?;
            let mut slowest = Duration::ZERO;
            let rounds = rounds(300);
            for (round, after) in (0..rounds).zip(moments()) {
                let told = match round % 3 {
                    // Its owner, by the link.
                    0 => with_target(async |target| wait_for_death(target, after).await).await?,
                    // One to which it was introduced.
                    _ => with_target(async |target| holder.call(wait_for_death, (target, after)).await?).await?,
                };
                let took = told.unwrap_or_else(|| panic!("round {round} of {rounds}: not told for 2 s"));
                assert!(took < TOLD, "round {round} of {rounds}: told after {took:?}");
                slowest = slowest.max(took);
            }
            println!("{rounds} deaths, told within {slowest:?} at most");
            Ok(())
        })
        .await?;
    }

    /// The other way round: what a dead holder had called is cancelled, and its connection is closed.
    async fn what_a_dead_holder_has_called_is_cancelled(t: T) {
        /// Calls that run here, and descriptors.
        fn state() -> (usize, usize) {
            let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            (RUNNING.with(std::cell::Cell::get), open)
        }
        thread_local! {
            static RUNNING: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
        }
        async fn runs() {
            struct Over;
            impl Drop for Over {
                fn drop(&mut self) {
                    RUNNING.with(|running| running.set(running.get() - 1));
                }
            }
            RUNNING.with(|running| running.set(running.get() + 1));
            let _over = Over;
            never().await;
        }
        /// Calls `served`, and dies while calls and answers are on their way.
        async fn call_and_die(served: Portal, after: Duration) -> Result<()> {
            offshoot::nursery(async |nursery| {
                let portal = served.clone();
                nursery.task(async move { portal.call(runs, ()).await }).detach();
                served.call(echo, 0).await?;
                dies(after);
                loop {
                    served.call(echo, 1).await?;
                }
            })
            .await
        }
        t.within(Duration::from_secs(900));
        offshoot::nursery(async |nursery| {
            let served = nursery.spawn("served").await?;
            // Its porter stays once there is one.
            with_target(async |target| {
                let _ = target.call(call_and_die, (served.clone(), Duration::ZERO)).await;
                Ok(())
            })
            .await?;
            let at_rest = |state: (usize, usize), open: usize| state.0 == 0 && state.1 <= open;
            let watch = Stopwatch::start();
            let mut open = usize::MAX;
            while watch.elapsed() < TOLD {
                let (running, now) = served.call(state, ()).await?;
                if running == 0 {
                    open = open.min(now);
                }
            }
            let rounds = rounds(200);
            for (round, after) in (0..rounds).zip(moments()) {
                with_target(async |target| {
                    let _ = target.call(call_and_die, (served.clone(), after)).await;
                    Ok(())
                })
                .await?;
                let watch = Stopwatch::start();
                let mut now = served.call(state, ()).await?;
                while !at_rest(now, open) {
                    assert!(
                        watch.elapsed() < TOLD,
                        "round {round} of {rounds}: {} calls run and {} descriptors are open, {open} before",
                        now.0, now.1
                    );
                    offshoot::sleep(Duration::from_millis(1)).await?;
                    now = served.call(state, ()).await?;
                }
            }
            Ok(())
        })
        .await?;
    }
}
