//! P1: a nursery returns only when every child has ended. P2: the first failure cancels the
//! siblings; all failures are returned, in order of death, the cause first.

use offshoot::prelude::*;
use offshoot::{Error, ErrorKind, current};
use offshoot_tests::{
    Guard, Stopwatch, append, both, held, hold, lines, mark, marked, processes, soon, threads,
    waits,
};
use std::cell::RefCell;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// Takes its time to be dropped.
#[derive(Serialize, Deserialize)]
struct Slow {
    sign: String,
}

impl Slow {
    fn new(sign: &str) -> Slow {
        Slow {
            sign: sign.to_owned(),
        }
    }

    async fn until_cancelled(&mut self) {
        mark(&format!("{} begun", self.sign));
        let cancel = offshoot::cancelled().await;
        append(&format!("{} cancelled", self.sign), &cancel.to_string());
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(60));
        append("dropped", &self.sign);
    }
}

#[derive(Serialize, Deserialize)]
struct Silent;

impl Silent {
    fn nothing(&mut self) {}
}

thread_local! {
    static LAST: RefCell<Option<Guard>> = const { RefCell::new(None) };
}

fn keep_until_the_thread_ends(sign: String) {
    LAST.set(Some(Guard(sign)));
}

fn nothing() {}

/// Never ends by itself, and sees no cancellation.
async fn endless(name: String) {
    let _guard = Guard(format!("{name} dropped"));
    mark(&format!("{name} begun"));
    std::future::pending::<()>().await;
}

/// Panics, once it may.
fn panic_after(sign: String) {
    append("begun", &current().name());
    hold(&sign);
    panic!("the panic of {}", current().name());
}

fn process_of(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// The future of a nursery in which a child runs, polled until it does.
async fn open_nursery() -> Result<Pin<Box<dyn Future<Output = Result<()>>>>> {
    let mut nursery = Box::pin(offshoot::nursery(async |nursery| {
        let p = nursery.start("grandchild", Slow::new("grandchild")).await?;
        p.tell(Slow::until_cancelled, ()).await?;
        drop(p);
        std::future::pending().await
    }));
    let mut begun = std::pin::pin!(held("grandchild begun"));
    std::future::poll_fn(|cx| {
        assert!(nursery.as_mut().poll(cx).is_pending());
        begun.as_mut().poll(cx)
    })
    .await?;
    Ok(nursery)
}

/// Drops the future of a nursery while a child of it runs; how long that took, in ms.
async fn drop_a_nursery() -> Result<u128> {
    let nursery = open_nursery().await?;
    let began = Instant::now();
    drop(nursery);
    Ok(began.elapsed().as_millis())
}

async fn leak_a_nursery() -> Result<()> {
    std::mem::forget(open_nursery().await?);
    Ok(())
}

both! {
    async fn a_nursery_returns_after_the_last_destructor(_t: T) {
        let mut pids = Vec::new();
        offshoot::nursery(async |nursery| {
            for n in 0..4 {
                let p = nursery.start("p", Slow::new(&n.to_string())).await?;
                pids.push(p.origin().pid);
            }
            Ok(())
        })
        .await?;
        // The state that was encoded for a process is dropped here, too.
        let mut dropped = lines("dropped");
        dropped.sort();
        dropped.dedup();
        assert_eq!(dropped, ["0", "1", "2", "3"]);
        let own = current().origin().pid;
        assert!(pids.iter().all(|pid| *pid == own || !process_of(*pid)));
    }

    async fn a_nursery_that_fails_returns_after_the_last_destructor(_t: T) {
        let result = offshoot::nursery(async |nursery| {
            for n in 0..4 {
                let p = nursery.spawn(format!("p{n}")).await?;
                drop(nursery.task(p.call(endless, format!("p{n}"))));
                held(&format!("p{n} begun")).await?;
            }
            Err::<(), _>(Error::other("enough"))
        })
        .await;
        assert_eq!(result.unwrap_err().message(), "enough");
        assert!((0..4).all(|n| marked(&format!("p{n} dropped"))));
    }

    async fn dropping_a_nursery_neither_blocks_nor_loses_its_children(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let millis = p.call(drop_a_nursery, ()).await??;
            assert!(millis < 40, "dropping took {millis} ms");
            Ok(())
        })
        .await?;
        assert_eq!(
            lines("grandchild cancelled"),
            ["cancelled by root/p, which dropped its nursery"]
        );
        assert!(lines("dropped").contains(&"grandchild".to_owned()));
    }

    fn dropping_a_nursery_of_the_root_loses_no_child(t: T) {
        t.run(async || drop_a_nursery().await.map(drop)).unwrap();
        assert!(lines("dropped").contains(&"grandchild".to_owned()));
    }

    fn leaking_a_nursery_loses_no_child(t: T) {
        t.run(leak_a_nursery).unwrap();
        assert!(lines("dropped").contains(&"grandchild".to_owned()));
        assert!(marked("grandchild cancelled"));
    }

    async fn a_child_that_ends_by_itself_ends_nothing_else(_t: T) {
        fn serves_once(inbox: &mut Inbox) -> Result<()> {
            inbox.serve().map(drop)
        }
        offshoot::nursery(async |nursery| {
            let once = nursery.spawn(Isolate::named("once").blocking_main(serves_once)).await?;
            let other = nursery.spawn("other").await?;
            once.call(nothing, ()).await?;
            assert!(matches!(once.ended().await, Exit::Completed));
            other.call(nothing, ()).await
        })
        .await?;
    }

    async fn the_first_failure_cancels_the_siblings(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            for name in ["a", "b"] {
                waits(nursery, name).await?;
            }
            let bad = nursery.spawn("bad").await?;
            mark("now");
            drop(nursery.task(bad.call(panic_after, "now".to_owned())));
            // Its body is cancelled, too.
            offshoot::sleep(Duration::from_secs(3_600)).await
        })
        .await
        .unwrap_err();
        assert_eq!(error.failures().len(), 1, "{error:?}");
        assert!(error.is_panic(), "{error:?}");
        assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/bad"));
        for name in ["a", "b"] {
            assert_eq!(lines(&format!("{name} cancelled")), ["cancelled by the nursery of root"]);
            assert!(marked(&format!("{name} dropped")));
        }
    }

    fn every_failure_is_returned(t: T) {
        t.within(Duration::from_secs(40));
        let error = t
            .builder()
            .run(async || {
                offshoot::nursery(async |nursery| {
                    for n in 0..25 {
                        let p = nursery.spawn(format!("p{n}")).await?;
                        drop(nursery.task(p.call(panic_after, "now".to_owned())));
                    }
                    // All of them are in code that sees no cancellation.
                    soon("all have begun", || lines("begun").len() == 25).await?;
                    mark("now");
                    offshoot::sleep(Duration::from_secs(3_600)).await
                })
                .await
            })
            .unwrap_err();
        let mut leaves: Vec<String> = error
            .failures()
            .iter()
            .map(|failure| {
                assert!(failure.is_panic(), "{failure:?}");
                failure.origin().map(|origin| origin.name().to_owned()).unwrap_or_default()
            })
            .collect();
        assert!(matches!(error.kind(), ErrorKind::Several));
        let mut all: Vec<String> = (0..25).map(|n| format!("p{n}")).collect();
        leaves.sort();
        all.sort();
        assert_eq!(leaves, all);
    }

    async fn failures_come_in_order_of_death(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            let names = ["c", "a", "d", "b"];
            let mut ends = Vec::new();
            for name in names {
                let p = nursery.spawn(name).await?;
                drop(nursery.task(p.call(panic_after, format!("now {name}"))));
                ends.push((name, p));
            }
            soon("all have begun", || lines("begun").len() == 4).await?;
            // On a thread of nobody's, because the body is cancelled with the first.
            std::thread::spawn(move || {
                ends.sort_by_key(|(name, _)| *name);
                for (name, p) in ends {
                    mark(&format!("now {name}"));
                    assert!(offshoot_tests::until(|| p.exit().is_some()));
                }
            });
            offshoot::sleep(Duration::from_secs(3_600)).await
        })
        .await
        .unwrap_err();
        let order: Vec<&str> = error
            .failures()
            .iter()
            .map(|failure| failure.origin().map_or("?", |origin| origin.name()))
            .collect();
        assert_eq!(order, ["a", "b", "c", "d"], "{error:?}");
        assert!(error.message().contains("the panic of a"), "{error}");
    }

    async fn a_failure_that_is_seen_twice_is_reported_once(_t: T) {
        mark("now");
        let error = offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            // By the call, and by the exit.
            p.call(panic_after, "now".to_owned()).await
        })
        .await
        .unwrap_err();
        assert_eq!(error.failures().len(), 1, "{error:?}");
        assert!(error.is_panic());
        assert!(error.message().contains("the panic of p"));
    }

    async fn an_error_of_the_body_is_the_failure(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            waits(nursery, "p").await?;
            "x".parse::<u32>()?;
            Ok(())
        })
        .await
        .unwrap_err();
        assert_eq!(error.failures().len(), 1, "{error:?}");
        assert!(error.downcast_ref::<std::num::ParseIntError>().is_some());
        assert_eq!(lines("p cancelled"), ["cancelled by the nursery of root"]);
    }

    async fn a_task_that_panics_is_a_failure(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            waits(nursery, "p").await?;
            let handle = nursery.task(async {
                offshoot::checkpoint().await?;
                if marked("p begun") {
                    panic!("a task's");
                }
                Ok::<(), Error>(())
            });
            handle.await?
        })
        .await
        .unwrap_err();
        assert_eq!(error.failures().len(), 1, "{error:?}");
        assert!(error.is_panic() && error.message().contains("a task's"), "{error:?}");
        assert!(marked("p cancelled"));
    }

    fn a_panic_of_the_body_takes_all_down_and_goes_on(t: T) {
        let error = t
            .run(async || {
                offshoot::nursery(async |nursery| {
                    waits(nursery, "p").await?;
                    if marked("p begun") {
                        panic!("the body's");
                    }
                    Ok(())
                })
                .await
            })
            .unwrap_err();
        assert!(error.is_panic() && error.message().contains("the body's"), "{error:?}");
        assert!(marked("p cancelled") && marked("p dropped"));
    }

    async fn a_nursery_in_a_call_reports_up_through_values(_t: T) {
        async fn middle() -> Result<()> {
            mark("now");
            offshoot::nursery(async |nursery| {
                let leaf = nursery.spawn("leaf").await?;
                leaf.call(panic_after, "now".to_owned()).await
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("middle").await?;
            let error = p.call(middle, ()).await?.unwrap_err();
            assert!(error.is_panic(), "{error:?}");
            let path = error.origin().map(|origin| origin.path.as_str());
            assert_eq!(path, Some("root/middle/leaf"));
            // It was a value to the isolate between, which lives on.
            p.call(nothing, ()).await
        })
        .await?;
    }

    async fn nothing_starts_in_a_nursery_that_is_ending(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Silent).await?;
            p.ask(Silent::nothing, ()).await?;
            nursery.cancel();
            let late = nursery.spawn("late").await.unwrap_err();
            assert!(late.is_cancelled(), "{late:?}");
            Ok(())
        })
        .await;
        // The body's value counts: it has returned one.
        assert!(error.is_ok(), "{error:?}");
    }
}

threads! {
    async fn thread_locals_are_destroyed_before_the_nursery_returns(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            p.call(keep_until_the_thread_ends, "gone".to_owned()).await
        })
        .await?;
        assert!(marked("gone"));
    }
}

processes! {
    /// The end of a process is told when it says so, and its nursery waits until it is gone.
    async fn an_end_is_told_before_its_process_is_gone(t: T) {
        // Not the stopwatch, which leaves out for how long the machine stood still.
        let begun = Instant::now();
        let told = offshoot::nursery(async |nursery| {
            let slow = Isolate::named("slow").env("OFFSHOOT_FAULT", "S8:delay=600");
            let p = nursery.spawn(slow).await?;
            let clock = Stopwatch::start();
            drop(p.cancel());
            let exit = p.ended().await;
            assert!(matches!(exit, Exit::Cancelled(_)), "{exit}");
            Ok(clock.elapsed())
        })
        .await?;
        assert!(told < Duration::from_millis(300), "told after {told:?}");
        let gone = begun.elapsed();
        assert!(gone >= Duration::from_millis(500), "the nursery waited for {gone:?}");
    }
}
