//! P5: teardown is bounded, at any depth and width, and only those who did not come down are
//! taken down by force.

use offshoot::prelude::*;
use offshoot::{Error, Isolation};
use offshoot_tests::{Guard, Stopwatch, append, both, held, lines, mark, marked, soon};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const GRACE: Duration = Duration::from_millis(500);
const HARD: Duration = Duration::from_millis(1_500);
/// What the promise allows beyond the last bound.
const SLACK: Duration = Duration::from_millis(500);

/// Blocks its thread for ever, and sees nothing.
fn wedge() {
    append("wedged", "");
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

/// Computes for ever, and sees nothing.
fn spin() {
    append("wedged", "");
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// A chain of isolates down to one that is wedged.
async fn chain(depth: u32) -> Result<()> {
    let _guard = Guard(format!("level {depth} dropped"));
    offshoot::nursery(async |nursery| {
        let below = nursery.spawn(format!("level{}", depth - 1)).await?;
        if depth > 1 {
            below.call(chain, depth - 1).await?
        } else {
            below.call(wedge, ()).await
        }
    })
    .await
}

/// One of a chain of isolates, of which each but the lowest only waits for the one below.
#[derive(Serialize, Deserialize)]
struct Level;

impl Level {
    /// Told, not called: a call's far task is dropped with its caller. The lowest uses some of its grace.
    async fn grow(&mut self, depth: u32) {
        if depth == 0 {
            mark("all are there");
            offshoot::cancelled().await;
            std::thread::sleep(Duration::from_millis(100));
            return append("exits", "cleaned up");
        }
        let mut child = None;
        let result = offshoot::nursery(async |nursery| {
            let below = child.insert(nursery.start("n", Level).await?);
            below.tell(Level::grow, depth - 1).await?;
            offshoot::cancelled().await;
            Ok(())
        })
        .await;
        let exit = child.and_then(|below| below.exit());
        let exit = exit.as_ref().map_or("none", Exit::word);
        append("exits", &format!("{exit} {}", result.is_ok()));
    }
}

/// Computes for ever, once it has said which thread it is.
fn computes() {
    let link = std::fs::read_link("/proc/thread-self").expect("this thread in /proc");
    let tid = link
        .file_name()
        .expect("its number")
        .to_string_lossy()
        .into_owned();
    append("computes", &tid);
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

/// The nice value of a thread, while it is there.
fn niceness(tid: &str) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(16)?.parse().ok()
}

/// Ignores its cancellation for as long as it is let.
async fn stubborn() {
    append("wedged", "");
    let _guard = Guard("stubborn dropped".to_owned());
    std::future::pending::<()>().await;
}

/// Goes round for ever, whatever its checkpoint says.
async fn deaf() {
    let _guard = Guard("deaf dropped".to_owned());
    append("wedged", "");
    loop {
        let _ = offshoot::sleep(Duration::from_millis(1)).await;
    }
}

fn forced(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Process => "killed",
        _ => "abandoned",
    }
}

/// The word of each exit, and the path of each isolate, of a failed nursery.
fn words(error: &Error) -> Vec<(&'static str, String)> {
    error
        .failures()
        .iter()
        .map(|failure| {
            let word = failure.exit().map_or("no exit", Exit::word);
            let path = failure
                .origin()
                .map_or_else(String::new, |origin| origin.path.clone());
            (word, path)
        })
        .collect()
}

both! {
    fn one_wedged_leaf_at_depth_five(t: T) {
        t.within(Duration::from_secs(30));
        if !t.is_process() {
            t.abandons(1);
        }
        let word = forced(t.isolation);
        // Under load, a tenth of a short ladder is less than what a process of each level needs to be
        // reaped and reported.
        let hard = Duration::from_secs(5);
        let (took, top, error) = t
            .builder()
            .hard_kill(hard)
            .run(async || {
                let mut began = Stopwatch::start();
                let mut top = None;
                let result = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("level5").await?;
                    nursery.task(p.call(chain, 5)).detach();
                    soon("the leaf is wedged", || marked("wedged")).await?;
                    began = Stopwatch::start();
                    p.cancel().await;
                    top = Some(p.ended().await);
                    Ok(())
                })
                .await;
                Ok((began.elapsed(), top, result.unwrap_err()))
            })
            .unwrap();
        assert!(took < hard + SLACK, "{took:?}");
        assert!(matches!(top, Some(Exit::Cancelled(_))), "{top:?}");
        let leaf = "root/level5/level4/level3/level2/level1/level0".to_owned();
        assert_eq!(words(&error), [(word, leaf.clone())], "{error:?}");
        assert!(error.report().contains(&leaf), "{error:?}");
        for level in 1..=5 {
            assert!(marked(&format!("level {level} dropped")), "level {level}");
        }
    }

    /// At a depth at which nine tenths of nine tenths … of the bounds would be nothing.
    fn a_deep_tree_of_healthy_isolates_comes_down(t: T) {
        t.within(Duration::from_secs(120));
        let depth = if t.is_process() { 200 } else { 1_000 };
        // Beside other tests, one that has 1,000 threads to wake is not served within a short ladder.
        let hard = Duration::from_secs(15);
        let (took, top, result) = t
            .builder()
            .grace(Duration::from_secs(10))
            .hard_kill(hard)
            .run(async move || {
                let mut began = Stopwatch::start();
                let mut top = None;
                let result = offshoot::nursery(async |nursery| {
                    let p = nursery.start("top", Level).await?;
                    p.tell(Level::grow, depth).await?;
                    soon("all are there", || marked("all are there")).await?;
                    began = Stopwatch::start();
                    p.cancel().await;
                    top = Some(p.ended().await);
                    Ok(())
                })
                .await;
                Ok((began.elapsed(), top, result))
            })
            .unwrap();
        assert!(result.is_ok(), "{result:?}");
        assert!(matches!(top, Some(Exit::Cancelled(_))), "{top:?}");
        let exits = lines("exits");
        assert_eq!(exits[0], "cleaned up");
        assert_eq!(exits.len(), depth as usize + 1);
        assert!(exits[1..].iter().all(|exit| exit == "cancelled true"), "{exits:?}");
        assert!(took < hard, "{took:?}");
        println!("down after {took:?}");
    }

    /// They would keep the ladder, and each other, from the processors. Not all of them are seen to: a child that
    /// computes alone keeps its share to the last.
    fn more_that_compute_than_there_are_processors_give_way(t: T) {
        t.within(Duration::from_secs(60));
        let cores = std::thread::available_parallelism().unwrap().get();
        let many = cores + 3;
        if !t.is_process() {
            t.abandons(many);
        }
        let (stopped, nice) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sampler = std::thread::spawn({
            let (stopped, nice) = (stopped.clone(), nice.clone());
            move || {
                while !stopped.load(Ordering::Relaxed) {
                    let all = lines("computes");
                    let now = all.iter().filter(|tid| niceness(tid) == Some(19)).count();
                    nice.fetch_max(now, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let error = t
            .builder()
            .grace(GRACE)
            .hard_kill(HARD)
            .run(async move || {
                offshoot::nursery(async |nursery| {
                    for n in 0..many {
                        let p = nursery.spawn(format!("p{n}")).await?;
                        drop(nursery.task(p.call(computes, ())));
                    }
                    soon("all compute", || lines("computes").len() == many).await?;
                    nursery.cancel();
                    Ok(())
                })
                .await
            })
            .unwrap_err();
        stopped.store(true, Ordering::Relaxed);
        sampler.join().unwrap();
        assert_eq!(words(&error).len(), many, "{error:?}");
        let nice = nice.load(Ordering::Relaxed);
        assert!((1..=many - cores).contains(&nice), "{nice} of {many} with {cores} cores");
    }

    fn f28_many_that_ignore_everything(t: T) {
        t.within(Duration::from_secs(60));
        let many = if t.is_process() { 50 } else { 16 };
        if !t.is_process() {
            t.abandons(many);
        }
        let word = forced(t.isolation);
        let (took, error) = t
            .builder()
            .grace(GRACE)
            .hard_kill(HARD)
            .run(async move || {
                let mut began = Stopwatch::start();
                let result = offshoot::nursery(async |nursery| {
                    for n in 0..many {
                        let p = nursery.spawn(format!("p{n}")).await?;
                        nursery.task(p.call(wedge, ())).detach();
                    }
                    soon("all are wedged", || lines("wedged").len() == many).await?;
                    began = Stopwatch::start();
                    nursery.cancel();
                    Ok(())
                })
                .await;
                Ok((began.elapsed(), result.unwrap_err()))
            })
            .unwrap();
        assert!(took < HARD + SLACK, "{took:?}");
        let words = words(&error);
        assert_eq!(words.len(), many, "{error:?}");
        assert!(words.iter().all(|(each, _)| *each == word), "{words:?}");
    }

    fn f26_one_that_computes_for_ever(t: T) {
        if !t.is_process() {
            t.abandons(1);
        }
        let word = forced(t.isolation);
        let (took, error) = t
            .builder()
            .grace(Duration::from_millis(100))
            .hard_kill(Duration::from_millis(300))
            .run(async || {
                // The one who waits stands in an outer nursery, which the failure does not cancel.
                offshoot::nursery(async |outer| {
                    let mut began = Stopwatch::start();
                    let mut waiting = None;
                    let result = offshoot::nursery(async |nursery| {
                        let p = nursery.spawn("spinner").await?;
                        waiting = Some(outer.task(p.call(spin, ())));
                        soon("it spins", || marked("wedged")).await?;
                        began = Stopwatch::start();
                        p.cancel().await;
                        Ok(())
                    })
                    .await;
                    let took = began.elapsed();
                    let told = waiting.expect("a call").await?.unwrap_err();
                    assert!(told.is_ended(), "{told:?}");
                    Ok((took, result.unwrap_err()))
                })
                .await
            })
            .unwrap();
        assert!(took < Duration::from_millis(300) + SLACK, "{took:?}");
        assert_eq!(words(&error), [(word, "root/spinner".to_owned())], "{error:?}");
    }

    fn those_that_only_wait_come_down_within_the_grace(t: T) {
        let took = t
            .builder()
            .grace(Duration::from_millis(100))
            .hard_kill(Duration::from_secs(8))
            .run(async || {
                let mut began = Stopwatch::start();
                offshoot::nursery(async |nursery| {
                    for n in 0..8 {
                        let p = nursery.spawn(format!("p{n}")).await?;
                        nursery.task(p.call(stubborn, ())).detach();
                    }
                    soon("all wait", || lines("wedged").len() == 8).await?;
                    began = Stopwatch::start();
                    nursery.cancel();
                    Ok(())
                })
                .await?;
                Ok(began.elapsed())
            })
            .unwrap();
        assert!(took < Duration::from_millis(100) + SLACK, "{took:?}");
        assert_eq!(lines("stubborn dropped").len(), 8);
    }

    fn a_system_call_that_can_be_broken_is(t: T) {
        // The signal that breaks it is the last rung before a thread is abandoned; a process has
        // none.
        let result = t
            .builder()
            .grace(Duration::from_millis(50))
            .hard_kill(Duration::from_millis(200))
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("sleeper").await?;
                    nursery.task(p.call(sleep_once, ())).detach();
                    held("asleep").await?;
                    p.cancel().await;
                    Ok(())
                })
                .await
            });
        if t.is_process() {
            assert_eq!(words(&result.unwrap_err()), [("killed", "root/sleeper".to_owned())]);
        } else {
            result.unwrap();
            assert_eq!(lines("broken"), [libc::EINTR.to_string()]);
        }
    }

    fn a_body_that_is_stuck_does_not_hold_its_children_up(t: T) {
        let (took, error) = t
            .builder()
            .grace(Duration::from_millis(200))
            .hard_kill(Duration::from_secs(8))
            .run(async || {
                let began = Stopwatch::start();
                let error = offshoot::nursery(async |nursery| {
                    let bad = nursery.spawn("bad").await?;
                    nursery.task(bad.call(|| -> () { panic!("bad") }, ())).detach();
                    let _guard = Guard("body dropped".to_owned());
                    // Sees no cancellation.
                    std::future::pending::<Result<()>>().await
                })
                .await
                .unwrap_err();
                Ok((began.elapsed(), error))
            })
            .unwrap();
        assert!(error.is_panic() && error.failures().len() == 1, "{error:?}");
        assert!(marked("body dropped"));
        assert!(took < Duration::from_millis(200) + SLACK, "{took:?}");
    }
}

fn sleep_once() {
    mark("asleep");
    let long = libc::timespec {
        tv_sec: 3_600,
        tv_nsec: 0,
    };
    // SAFETY: `long` is a live structure that the call reads; the null pointer says that nobody
    // wants to know what was left.
    let code =
        unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &long, std::ptr::null_mut()) };
    append("broken", &code.to_string());
}

both! {
    /// A loop that swallows its cancellation is dropped when its grace is over, not given up.
    async fn a_loop_that_ignores_its_checkpoints_is_dropped_after_its_grace(_t: T) {
        let result = offshoot::nursery(async |nursery| {
            let isolate = Isolate::named("deaf").grace(Duration::from_millis(200)).hard_kill(Duration::from_secs(8));
            let isolate = nursery.spawn(isolate).await?;
            let portal = isolate.clone();
            nursery.task(async move { portal.call(deaf, ()).await }).detach();
            soon("it goes round", || marked("wedged")).await?;
            isolate.cancel().await;
            let exit = isolate.ended().await;
            assert_eq!(exit.word(), "cancelled", "{exit:?}");
            Ok(())
        })
        .await;
        assert!(result.is_ok(), "{result:?}");
        assert!(marked("deaf dropped"), "its destructors have run");
    }
}
