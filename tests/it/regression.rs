//! What went wrong once: each test here failed before the code was put right.

use offshoot::prelude::*;
use offshoot::{ErrorKind, Portal};
use offshoot_tests::{
    Stopwatch, append, both, held, lines, mark, marked, processes, soon, threads,
};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_millis(200);
const HARD: Duration = Duration::from_millis(1_000);
/// What a promise allows beyond the last bound.
const SLACK: Duration = Duration::from_millis(500);

fn wedge() {
    append("wedged", "");
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

fn double(n: u64) -> u64 {
    n * 2
}

async fn yields_for_ever() -> Result<()> {
    offshoot::nursery(async |nursery| {
        nursery
            .task(async {
                append("yielding", "");
                while checkpoint().await.is_ok() {}
            })
            .detach();
        Ok(())
    })
    .await
}

/// Blocks once it is cancelled, and so does its child from the beginning.
async fn wedges_when_cancelled() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let child = nursery.spawn("child").await?;
        nursery.task(child.call(wedge, ())).detach();
        soon("the child is wedged", || marked("wedged")).await?;
        mark("ready");
        // Its isolate has seen its own cancellation and passed it on by then.
        offshoot::cancelled().await;
        offshoot::sleep(Duration::ZERO).await.ok();
        wedge();
        Ok(())
    })
    .await
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the bomb went off");
        }
    }
}

async fn carries_a_bomb() {
    let _bomb = Bomb;
    mark("carried");
    std::future::pending::<()>().await;
}

/// Serves nothing unless it is there already.
fn polls_its_inbox(inbox: &mut Inbox) -> Result<()> {
    let mut empty = 0_u64;
    loop {
        match inbox.try_serve()? {
            Some(true) => {}
            Some(false) => return Ok(()),
            None => {
                empty += 1;
                if empty == 3 {
                    mark("found nothing three times");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Says that all is well whatever happened.
fn always_content(inbox: &mut Inbox) -> Result<()> {
    while let Ok(true) = inbox.serve() {}
    Ok(())
}

async fn pends() {
    mark("pends");
    std::future::pending::<()>().await;
}

/// Has a leaf that is given up long before its own time is over, and says so.
async fn loses_a_leaf() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let leaf = Isolate::named("leaf")
            .grace(Duration::ZERO)
            .hard_kill(Duration::from_millis(50));
        let leaf = nursery.spawn(leaf).await?;
        nursery.task(leaf.call(wedge, ())).detach();
        soon("the leaf is wedged", || marked("wedged")).await?;
        mark("ready");
        offshoot::cancelled().await;
        Ok(())
    })
    .await
}

/// Has many leaves that are given up long before its own time is over.
async fn loses_many_leaves() -> Result<()> {
    offshoot::nursery(async |nursery| {
        for n in 0..20 {
            let leaf = Isolate::named(format!("leaf{n}"))
                .thread()
                .grace(Duration::ZERO);
            let leaf = nursery
                .spawn(leaf.hard_kill(Duration::from_millis(50)))
                .await?;
            nursery.task(leaf.call(wedge, ())).detach();
        }
        soon("all leaves are wedged", || lines("wedged").len() == 20).await?;
        mark("ready");
        offshoot::cancelled().await;
        Ok(())
    })
    .await
}

fn panics_at_length() {
    panic!("{}", "at length ".repeat(10_000));
}

both! {
    fn a_failure_that_is_told_by_a_call_and_beside_the_exit(t: T) {
        if !t.is_process() {
            t.abandons(1);
        }
        let error = t
            .run(async || {
                Ok(offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let call = nursery.task(p.call(loses_a_leaf, ()));
                    held("ready").await?;
                    p.cancel().await;
                    call.await??
                })
                .await
                .unwrap_err())
            })
            .unwrap();
        let leaves = error
            .failures()
            .iter()
            .filter(|failure| failure.origin().is_some_and(|origin| origin.name() == "leaf"))
            .count();
        assert_eq!(leaves, 1, "{}", error.report());
    }

    fn a_task_that_yields_for_ever_keeps_nobody_from_running(t: T) {
        t.run(async || {
            offshoot::nursery(async |nursery| {
                let busy = nursery.spawn("busy").await?;
                let call = nursery.task(busy.call(yields_for_ever, ()));
                held("yielding").await?;
                assert_eq!(busy.call(double, 4).await?, 8);
                busy.cancel().await;
                drop(call);
                assert!(matches!(busy.ended().await, Exit::Cancelled(_)), "{:?}", busy.exit());
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    async fn receiving_what_is_there_does_not_wait(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery
                .spawn(Isolate::named("polls").blocking_main(polls_its_inbox))
                .await?;
            held("found nothing three times").await?;
            assert_eq!(p.call(double, 4).await?, 8);
            Ok(())
        })
        .await?;
    }

    async fn an_isolate_without_a_state_can_be_asked_for_nothing(t: T) {
        offshoot::nursery(async |nursery| {
            let p: Portal = nursery.spawn("plain").await?;
            let answer = offshoot::timeout(Duration::from_secs(5), p.ask(|_: &mut ()| 5_u32, ()));
            assert_eq!(answer.await??, 5);
            Ok(())
        })
        .await?;
    }

    fn a_parent_that_wedges_after_it_has_cancelled_its_wedged_child(t: T) {
        if !t.is_process() {
            t.abandons(2);
        }
        let took = t
            .builder()
            .grace(GRACE)
            .hard_kill(HARD)
            .run(async || {
                let mut began = Stopwatch::start();
                let result = offshoot::nursery(async |nursery| {
                    let parent = nursery.spawn("parent").await?;
                    nursery.task(parent.call(wedges_when_cancelled, ())).detach();
                    held("ready").await?;
                    began = Stopwatch::start();
                    parent.cancel().await;
                    Ok(())
                })
                .await;
                assert!(result.is_err());
                Ok(began.elapsed())
            })
            .unwrap();
        assert!(took < HARD + SLACK, "{took:?}");
    }

    fn a_destructor_that_panics_when_the_grace_is_over(t: T) {
        let error = t
            .builder()
            .grace(GRACE)
            .run(async || {
                Ok(offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("bomber").await?;
                    nursery.task(p.call(carries_a_bomb, ())).detach();
                    held("carried").await?;
                    p.cancel().await;
                    assert!(matches!(p.ended().await, Exit::Panicked(_)));
                    Ok(())
                })
                .await
                .unwrap_err())
            })
            .unwrap();
        assert!(error.is_panic(), "{}", error.report());
    }

    fn a_blocking_main_that_is_content_with_its_cancellation(t: T) {
        let took = t
            .builder()
            .grace(GRACE)
            .hard_kill(HARD)
            .run(async || {
                let mut began = Stopwatch::start();
                offshoot::nursery(async |nursery| {
                    let p = nursery
                        .spawn(Isolate::named("content").blocking_main(always_content))
                        .await?;
                    nursery.task(p.call(pends, ())).detach();
                    held("pends").await?;
                    began = Stopwatch::start();
                    p.cancel().await;
                    assert!(matches!(p.ended().await, Exit::Cancelled(_)), "{:?}", p.exit());
                    Ok(())
                })
                .await?;
                Ok(began.elapsed())
            })
            .unwrap();
        assert!(took < GRACE + SLACK, "{took:?}");
    }

    fn bounds_that_are_as_long_as_can_be(t: T) {
        for bound in [Duration::MAX, Duration::from_nanos(u64::MAX), Duration::from_nanos(u64::MAX / 2)] {
            t.builder()
                .grace(bound)
                .hard_kill(bound)
                .start_within(bound)
                .run(async move || {
                    offshoot::nursery(async |nursery| {
                        let p = nursery.spawn("p").await?;
                        assert_eq!(offshoot::timeout(bound, p.call(double, 1)).await??, 2);
                        p.cancel().await;
                        p.ended().await;
                        Ok(())
                    })
                    .await
                })
                .unwrap();
        }
    }
}

processes! {
    async fn a_spawn_that_has_no_time_takes_no_other_process_along(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("bystander").await?;
            for bound in [0, 50, 200, 500] {
                let late = Isolate::named("late").start_within(Duration::from_micros(bound));
                let _ = nursery.spawn(late).await;
                offshoot::sleep(Duration::from_millis(5)).await?;
            }
            assert_eq!(p.call(double, 4).await?, 8);
            Ok(())
        })
        .await?;
    }

    fn an_answer_that_is_longer_than_the_limit_harms_nobody(t: T) {
        t.builder()
            .frame_max(8 << 10)
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let long = p.call(|n: u64| "x".repeat(n as usize), 100_000).await.unwrap_err();
                    assert!(matches!(long.kind(), ErrorKind::Codec), "{}", long.report());
                    assert_eq!(p.call(double, 4).await?, 8);
                    Ok(())
                })
                .await
            })
            .unwrap();
    }
}

processes! {
    fn a_report_that_is_longer_than_the_limit_does_not_hide_the_exit(t: T) {
        t.builder()
            .frame_max(4 << 10)
            .run(async || {
                let error = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    nursery.task(p.call(loses_many_leaves, ())).detach();
                    held("ready").await?;
                    p.cancel().await;
                    assert!(matches!(p.ended().await, Exit::Cancelled(_)), "{:?}", p.exit());
                    Ok(())
                })
                .await
                .unwrap_err();
                assert!(error.report().contains("leaf"), "{}", error.report());
                Ok(())
            })
            .unwrap();
    }

    fn a_panic_that_is_longer_than_the_limit_is_a_panic(t: T) {
        t.builder()
            .frame_max(8 << 10)
            .run(async || {
                let error = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let error = p.call(panics_at_length, ()).await.unwrap_err();
                    assert!(error.report().contains("at length"), "{}", error.report());
                    Ok(())
                })
                .await
                .unwrap_err();
                assert!(error.report().contains("at length"), "{}", error.report());
                Ok(())
            })
            .unwrap();
    }
}

threads! {
    fn a_root_that_is_abandoned_names_its_wedged_child(t: T) {
        t.abandons(2);
        let running = t
            .builder()
            .grace(GRACE)
            .hard_kill(HARD)
            .start(wedges_when_cancelled)
            .unwrap();
        assert!(offshoot_tests::until(|| marked("ready")));
        let began = Stopwatch::start();
        running.handle().cancel();
        let error = running.wait().unwrap_err();
        assert!(began.elapsed() < HARD + SLACK, "{:?}", began.elapsed());
        assert!(error.report().contains("root/child"), "{}", error.report());
    }
}

/// Cancels a sibling of whoever it was sent to, when it is dropped.
struct Meddler(Portal, bool);

impl Drop for Meddler {
    fn drop(&mut self) {
        drop(self.0.cancel());
        mark("meddled");
        if self.1 && !std::thread::panicking() {
            panic!("meddled");
        }
    }
}

threads! {
    fn what_waited_for_an_abandoned_isolate_is_dropped_without_harm(t: T) {
        t.abandons(2);
        for panics in [false, true] {
            let error = t
                .builder()
                .grace(GRACE)
                .hard_kill(HARD)
                .run(async move || {
                    Ok(offshoot::nursery(async |nursery| {
                        let sibling = nursery.spawn("sibling").await?;
                        let p = nursery.spawn_local("p").await?;
                        let wedged = lines("wedged").len();
                        nursery.task(p.call(wedge, ())).detach();
                        soon("it is wedged", || lines("wedged").len() > wedged).await?;
                        let meddler = Meddler(sibling.clone(), panics);
                        nursery.task(p.run(async move || drop(meddler))).detach();
                        offshoot::sleep(Duration::from_millis(1)).await?;
                        p.cancel().await;
                        Ok(())
                    })
                    .await
                    .unwrap_err())
                })
                .unwrap();
            assert!(marked("meddled"));
            assert!(error.is_ended(), "{}", error.report());
        }
    }

    fn a_message_of_a_blocking_isolate_that_waits_for_another(t: T) {
        let took = t
            .builder()
            .grace(Duration::ZERO)
            .hard_kill(HARD)
            .run(async || {
                let mut began = Stopwatch::start();
                offshoot::nursery(async |nursery| {
                    let silent = nursery.spawn("silent").await?;
                    let p = nursery.spawn_local(Isolate::named("waits").blocking()).await?;
                    let call = nursery.task(p.run(async move || {
                        mark("waits");
                        assert!(silent.call_blocking(pends, ()).is_err());
                        mark("went on");
                    }));
                    held("pends").await?;
                    began = Stopwatch::start();
                    p.cancel().await;
                    let _ = call.await;
                    assert!(matches!(p.ended().await, Exit::Cancelled(_)), "{:?}", p.exit());
                    nursery.cancel();
                    Ok(())
                })
                .await
                .ok();
                Ok(began.elapsed())
            })
            .unwrap();
        assert!(marked("went on"));
        assert!(took < SLACK, "{took:?}");
    }
}

/// Cancels an isolate when it is woken, as a hand-written waker may.
struct Cancels(Portal);

impl Wake for Cancels {
    fn wake(self: Arc<Self>) {
        drop(self.0.cancel());
        mark("cancelled by a waker");
    }
}

/// A nursery that cancels itself and whose body does not end; how long that took, in ms.
async fn cancels_its_own_nursery() -> Result<u64> {
    let began = Instant::now();
    let _ = offshoot::nursery(async |nursery| {
        nursery.cancel();
        std::future::pending::<Result<()>>().await
    })
    .await;
    Ok(u64::try_from(began.elapsed().as_millis()).expect("short"))
}

both! {
    fn a_waker_that_cancels_a_sibling_of_the_dead(t: T) {
        if !t.is_process() {
            t.abandons(1);
        }
        let error = t
            .builder()
            .grace(Duration::from_millis(50))
            .hard_kill(GRACE)
            .run(async || {
                Ok(offshoot::nursery(async |nursery| {
                    let sibling = nursery.spawn("sibling").await?;
                    let p = nursery.spawn("p").await?;
                    nursery.task(p.call(wedge, ())).detach();
                    soon("it is wedged", || marked("wedged")).await?;
                    let waker = Waker::from(Arc::new(Cancels(sibling.clone())));
                    let mut ended = p.ended();
                    let polled = Pin::new(&mut ended).poll(&mut Context::from_waker(&waker));
                    assert!(polled.is_pending());
                    p.cancel().await;
                    assert!(matches!(sibling.ended().await, Exit::Cancelled(_)));
                    Ok(())
                })
                .await
                .unwrap_err())
            })
            .unwrap();
        assert!(marked("cancelled by a waker"));
        assert_eq!(error.failures().len(), 1, "{}", error.report());
    }

    fn a_nursery_that_cancels_itself_has_the_grace_of_its_isolate(t: T) {
        let took = t
            .builder()
            .grace(Duration::from_secs(8))
            .hard_kill(Duration::from_secs(12))
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn(Isolate::named("p").grace(GRACE)).await?;
                    p.call(cancels_its_own_nursery, ()).await?
                })
                .await
            })
            .unwrap();
        let took = Duration::from_millis(took);
        assert!(took >= GRACE - Duration::from_millis(2) && took < GRACE + SLACK, "{took:?}");
    }
}
