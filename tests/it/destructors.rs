//! Destructors of the program's that panic, several of them in one drop: each is a fault of its own, and none aborts the program.

use offshoot::prelude::*;
use offshoot::{Broadcast, Pool, Window};
use offshoot_tests::{both, held, hold, mark};
use std::time::Duration;

/// Panics as it is dropped on the isolate `worker`, and nowhere else.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Touchy;

impl Drop for Touchy {
    fn drop(&mut self) {
        if !std::thread::panicking()
            && offshoot::try_current().is_some_and(|current| current.name() == "worker")
        {
            panic!("dropped on the worker");
        }
    }
}

/// Panics also while another one does: what aborts unless each is dropped by itself.
#[derive(Serialize, Deserialize)]
struct Ruthless;

impl Drop for Ruthless {
    fn drop(&mut self) {
        if offshoot::try_current().is_some_and(|current| current.name() == "worker") {
            panic!("dropped on the worker");
        }
    }
}

#[derive(Serialize, Deserialize)]
struct State;

impl State {
    async fn holds(&mut self) {
        mark("held");
        let _ = held("never").await;
    }
    fn blocks(&mut self) {
        mark("held");
        hold("release");
    }
    fn takes(&mut self, _ruthless: Ruthless) {}
    async fn awaits(&mut self, _ruthless: Ruthless) {}
}

async fn takes(_ruthless: Ruthless) {}

/// That the isolate panicked, as its nursery says.
fn is_its_panic(ended: Result<()>) {
    let error = ended.expect_err("the isolate has panicked");
    assert!(error.is_panic(), "{}", error.report());
    assert!(
        error.to_string().contains("dropped on the worker"),
        "{}",
        error.report()
    );
}

both! {
    async fn of_all_that_waits_for_a_state(_t: T) {
        let ended = offshoot::nursery(async |nursery| {
            let worker = nursery.start("worker", State).await?;
            let holding = nursery.task({
                let worker = worker.clone();
                async move { drop(worker.ask(State::holds, ()).await) }
            });
            held("held").await?;
            for _ in 0..3 {
                worker.tell(State::takes, Ruthless).await?;
                worker.tell(State::awaits, Ruthless).await?;
            }
            let asking = nursery.task({
                let worker = worker.clone();
                async move { drop(worker.ask(State::takes, Ruthless).await) }
            });
            // Behind these, so that they have arrived.
            assert!(worker.call(async || true, ()).await?);
            worker.cancel().await;
            let exit = worker.ended().await;
            assert!(matches!(exit, Exit::Panicked(_)), "{exit}");
            holding.await?;
            asking.await
        })
        .await;
        is_its_panic(ended);
    }

    /// The isolate is cancelled while its mailbox is full of what it has not looked at.
    async fn of_all_that_lies_in_a_mailbox(_t: T) {
        let ended = offshoot::nursery(async |nursery| {
            let worker = nursery.start("worker", State).await?;
            let blocking = nursery.task({
                let worker = worker.clone();
                async move { drop(worker.ask(State::blocks, ()).await) }
            });
            held("held").await?;
            let mut calls = Vec::new();
            for _ in 0..3 {
                worker.tell(State::takes, Ruthless).await?;
                let portal = worker.clone();
                calls.push(nursery.task(async move { drop(portal.call(takes, Ruthless).await) }));
            }
            offshoot::checkpoint().await?;
            let cancelled = worker.cancel();
            mark("release");
            cancelled.await;
            worker.ended().await;
            for call in calls {
                call.await?;
            }
            blocking.await
        })
        .await;
        is_its_panic(ended);
    }

    async fn of_all_items_of_a_dialogue_that_nobody_takes(t: T) {
        async fn takes_none(mut peer: Peer<Ruthless, ()>) -> Result<()> {
            peer.started(())?;
            mark("started");
            held("sent").await?;
            // With all that has come.
            drop(peer);
            // What is dropped in the poll in which it returns would wait for the result.
            offshoot::sleep(Duration::from_secs(10)).await
        }
        let ended = offshoot::nursery(async |nursery| {
            let worker = nursery.spawn("worker").await?;
            let window = Window { items: 8, ..Window::default() };
            let (mut link, ()) = worker.open(takes_none, ()).window(window).await?;
            for _ in 0..4 {
                link.send(Ruthless).await?;
            }
            // To a process an item is bytes until it is taken: nothing of it is dropped there.
            mark("sent");
            drop(link.result().await);
            if worker.isolation() == Isolation::Process {
                worker.cancel().await;
            } else {
                let exit = worker.ended().await;
                assert!(matches!(exit, Exit::Panicked(_)), "{exit}");
            }
            Ok(())
        })
        .await;
        match t.is_process() {
            true => ended?,
            false => is_its_panic(ended),
        }
    }

    async fn of_all_tasks_of_a_cancelled_nursery(_t: T) {
        async fn cancelled() -> (usize, usize) {
            let ended: Result<()> = offshoot::nursery(async |nursery| {
                for _ in 0..3 {
                    nursery.task(async {
                        let _ruthless = Ruthless;
                        std::future::pending::<()>().await;
                    }).detach();
                }
                offshoot::sleep(Duration::from_millis(1)).await?;
                nursery.cancel();
                Ok(())
            })
            .await;
            let error = ended.expect_err("the tasks have panicked");
            let panics = error.failures().iter().filter(|error| error.is_panic()).count();
            (panics, error.failures().len())
        }
        let mut bounds = Isolate::named("worker");
        bounds = bounds.grace(Duration::from_millis(100));
        offshoot::nursery(async |nursery| {
            let worker = nursery.spawn(bounds).await?;
            // The isolate that awaits the nursery goes on.
            assert_eq!(worker.call(cancelled, ()).await?, (3, 3));
            assert!(worker.call(async || true, ()).await?);
            Ok(())
        })
        .await?;
    }

    async fn of_a_body_that_is_dropped(_t: T) {
        async fn dropped() -> bool {
            let ended: Result<()> = offshoot::nursery(async |nursery| {
                let _touchy = Touchy;
                nursery.cancel();
                std::future::pending().await
            })
            .await;
            ended.is_err_and(|error| error.is_panic())
        }
        let bounds = Isolate::named("worker").grace(Duration::from_millis(100));
        offshoot::nursery(async |nursery| {
            let worker = nursery.spawn(bounds).await?;
            assert!(worker.call(dropped, ()).await?);
            assert!(worker.call(async || true, ()).await?);
            Ok(())
        })
        .await?;
    }

    async fn of_what_is_broadcast_and_of_results_of_a_pool(_t: T) {
        async fn in_collections() -> usize {
            let mut panicked = 0;
            let broadcast = Broadcast::new(8);
            for _ in 0..3 {
                broadcast.send(Ruthless);
            }
            panicked += usize::from(caught(|| drop(broadcast)));
            let all = offshoot::gather((0..3).map(|n| async move {
                match n {
                    2 => Err(Error::other("on purpose")),
                    _ => Ok(Ruthless),
                }
            }));
            let mut all = Box::pin(all);
            let polled = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(caught(|| drop(all.as_mut().poll(cx))))
            });
            panicked += usize::from(polled.await);
            panicked += usize::from(caught(|| drop(all)));
            panicked
        }
        fn caught(f: impl FnOnce()) -> bool {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
        }
        offshoot::nursery(async |nursery| {
            let worker = nursery.spawn("worker").await?;
            assert!(worker.call(in_collections, ()).await? >= 2);
            let pool = Pool::new([worker.clone()]);
            drop(pool);
            Ok(())
        })
        .await?;
    }
}
