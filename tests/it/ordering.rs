//! P9, as far as mailboxes go: a slow receiver slows its senders and nobody else. P10: order holds
//! per sender and receiver over all that is accepted, and each arrives at most once.

use offshoot::prelude::*;
use offshoot_tests::{append, both, held, hold, lines, mark, soon};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

thread_local! {
    static SEEN: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

fn see(n: u32) {
    SEEN.with_borrow_mut(|seen| seen.push(n));
}

/// Notes when it starts; its end may be any time.
async fn see_and_linger(n: u32) -> u32 {
    see(n);
    for _ in 0..n % 3 {
        offshoot::checkpoint().await.expect("nobody cancels");
    }
    n
}

fn seen() -> Vec<u32> {
    SEEN.take()
}

#[derive(Serialize, Deserialize)]
struct Log;

impl Log {
    fn see(&mut self, n: u32) -> u32 {
        see(n);
        n
    }
    async fn see_and_linger(&mut self, n: u32) -> u32 {
        see_and_linger(n).await
    }
    async fn forever(&mut self) {
        mark("waiting");
        std::future::pending::<()>().await;
    }
    async fn wait(&mut self, sign: String) {
        mark("waiting");
        held(&sign).await.expect("nobody cancels");
    }
    async fn block_then_yield(&mut self, times: u32) {
        mark(&format!("waiting {times}"));
        hold(&format!("sent {times}"));
        for _ in 0..times {
            offshoot::checkpoint().await.expect("nobody cancels");
        }
        see(0);
    }
}

/// A message that was sent: its answer, or what will have it.
enum Sent<F: Future> {
    Answered(F::Output),
    Waiting(F),
}

/// Sends it: the first poll does, where there is room.
async fn send<F: Future + Unpin>(mut future: F) -> Sent<F> {
    let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await;
    match polled {
        Poll::Ready(answer) => Sent::Answered(answer),
        Poll::Pending => Sent::Waiting(future),
    }
}

impl<F: Future> Sent<F> {
    async fn answer(self) -> F::Output {
        match self {
            Sent::Answered(answer) => answer,
            Sent::Waiting(future) => future.await,
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Sent::Waiting(_))
    }
}

both! {
    async fn ten_thousand_messages_arrive_in_order(_t: T) {
        const ALL: u32 = 10_000;
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Log).await?;
            for from in (0..ALL).step_by(500) {
                // All are accepted before any is waited for: 500 are within the mailbox.
                let mut sent = Vec::new();
                for n in from..from + 500 {
                    match n % 4 {
                        0 => p.tell(Log::see, n).await?,
                        1 => sent.push(send(p.ask(Log::see, n)).await),
                        2 => sent.push(send(p.ask_cancellable(Log::see, n)).await),
                        _ => sent.push(send(p.call(see_there, n)).await),
                    }
                }
                for one in sent {
                    one.answer().await?;
                }
            }
            let seen = p.call(seen, ()).await?;
            assert!(seen.iter().copied().eq(0..ALL), "{seen:?}");
            Ok(())
        })
        .await?;
    }

    async fn methods_that_take_their_time_keep_the_order(_t: T) {
        const ALL: u32 = 3_000;
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Log).await?;
            for from in (0..ALL).step_by(500) {
                let mut sent = Vec::new();
                for n in from..from + 500 {
                    match n % 3 {
                        0 => p.tell(Log::see_and_linger, n).await?,
                        1 => sent.push(send(p.ask(Log::see_and_linger, n)).await),
                        _ => sent.push(send(p.ask_cancellable(Log::see, n)).await),
                    }
                }
                for one in sent {
                    one.answer().await?;
                }
            }
            let seen = p.call(seen, ()).await?;
            assert!(seen.iter().copied().eq(0..ALL), "{seen:?}");
            Ok(())
        })
        .await?;
    }

    async fn calls_that_take_their_time_start_in_order(_t: T) {
        const ALL: u32 = 3_000;
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            for from in (0..ALL).step_by(500) {
                let mut sent = Vec::new();
                for n in from..from + 500 {
                    sent.push(send(p.call(see_and_linger, n)).await);
                }
                for (n, one) in (from..).zip(sent) {
                    assert_eq!(one.answer().await?, n);
                }
            }
            let seen = p.call(seen, ()).await?;
            assert!(seen.iter().copied().eq(0..ALL), "{seen:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_method_does_not_overtake_a_call_that_was_accepted_before(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Log).await?;
            // As many turns as its task may have in one go, and some around that: in one of these
            // rounds it is the next to run when the messages are found.
            for times in 56..72 {
                p.tell(Log::block_then_yield, times).await?;
                held(&format!("waiting {times}")).await?;
                let call = send(p.call(see_there, 1)).await;
                p.tell(Log::see, 2).await?;
                let last = send(p.call(see_there, 3)).await;
                mark(&format!("sent {times}"));
                call.answer().await?;
                last.answer().await?;
                p.ask(Log::see, 4).await?;
                let seen = p.call(seen, ()).await?;
                let at = |n: u32| seen.iter().position(|seen| *seen == n);
                assert!(at(1) < at(2) && at(1) < at(3) && at(0) < at(2), "{seen:?}");
                assert_eq!(seen.len(), 5, "{seen:?}");
            }
            Ok(())
        })
        .await?;
    }

    async fn two_senders_are_each_in_order(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Log).await?;
            let mut all = Vec::new();
            for half in [0, 10_000] {
                let sender = nursery.spawn_local("sender").await?;
                let p = p.clone();
                all.push(nursery.task(async move {
                    sender
                        .run(async move || {
                            for n in half..half + 2_000 {
                                p.tell(Log::see, n).await?;
                            }
                            // Behind all of them.
                            p.ask(Log::see, half + 2_000).await
                        })
                        .await
                }));
            }
            for one in all {
                one.await???;
            }
            let seen = p.call(seen, ()).await?;
            let (high, low): (Vec<u32>, Vec<u32>) = seen.iter().partition(|n| **n >= 10_000);
            assert!(low.iter().copied().eq(0..=2_000));
            assert!(high.iter().copied().eq(10_000..=12_000));
            Ok(())
        })
        .await?;
    }

    async fn f61_a_full_mailbox_makes_its_sender_wait_and_nobody_else(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start(Isolate::named("p").mailbox(4), Log).await?;
            let q = nursery.start(Isolate::named("q").mailbox(4), Log).await?;
            p.tell(Log::wait, "go".to_owned()).await?;
            held("waiting").await?;
            // Begun, it takes no room. Its credit may still be on its way back.
            let mut accepted = 0;
            let full = loop {
                match p.try_tell(Log::see, accepted) {
                    Ok(()) => accepted += 1,
                    Err(rejected) if accepted < 4 => {
                        assert_eq!(rejected.args, accepted);
                        offshoot::checkpoint().await?;
                    }
                    Err(rejected) => break rejected,
                }
            };
            assert_eq!(accepted, 4);
            assert!(full.error.is_full(), "{:?}", full.error);
            assert_eq!(full.args, 4, "the arguments come back");
            let waiting = send(p.tell(Log::see, 4)).await;
            let behind = send(p.ask(Log::see, 5)).await;
            assert!(waiting.is_waiting() && behind.is_waiting());

            // Calls have room of their own, others too, and so has another receiver.
            p.call(see_there, 100).await?;
            let other = nursery.spawn_local("other").await?;
            other
                .run({
                    let p = p.clone();
                    async move || p.tell(Log::see, 200).await
                })
                .await??;
            for n in 0..100 {
                q.ask(Log::see, n).await?;
            }
            mark("go");
            waiting.answer().await?;
            behind.answer().await?;
            let mut seen = p.call(seen, ()).await?;
            assert_eq!(seen.remove(0), 100);
            seen.retain(|n| *n != 200);
            assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
            Ok(())
        })
        .await?;
    }

    async fn whoever_waits_gets_a_little_room_too(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start(Isolate::named("p").mailbox(8), Log).await?;
            p.tell(Log::wait, "first".to_owned()).await?;
            held("waiting").await?;
            p.tell(Log::wait, "second".to_owned()).await?;
            for n in 0..7 {
                p.tell(Log::see, n).await?;
            }
            let waiting = send(p.tell(Log::see, 7)).await;
            assert!(waiting.is_waiting());
            // There is room for one, and then nothing happens until this is told.
            mark("first");
            waiting.answer().await?;
            mark("second");
            p.ask(Log::see, 8).await?;
            assert_eq!(p.call(seen, ()).await?, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
            Ok(())
        })
        .await?;
    }

    async fn a_sender_that_waits_for_the_dead_is_told(_t: T) {
        offshoot::nursery(async |nursery| {
            let spec = Isolate::named("p").mailbox(1).grace(Duration::from_millis(50));
            let p = nursery.start(spec, Log).await?;
            p.tell(Log::forever, ()).await?;
            held("waiting").await?;
            p.tell(Log::see, 1).await?;
            let waiting = send(p.tell(Log::see, 2)).await;
            let asking = send(p.ask(Log::see, 3)).await;
            assert!(waiting.is_waiting() && asking.is_waiting());
            p.cancel().await;
            assert!(waiting.answer().await.unwrap_err().is_cancelled());
            assert!(asking.answer().await.unwrap_err().is_cancelled());
            let late = p.try_tell(Log::see, 4).unwrap_err();
            assert!(late.error.is_cancelled(), "{:?}", late.error);
            assert_eq!(late.args, 4);
            Ok(())
        })
        .await?;
    }

    async fn a_wait_for_room_obeys_a_timeout(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start(Isolate::named("p").mailbox(1).calls_max(1), Log).await?;
            p.tell(Log::wait, "go".to_owned()).await?;
            held("waiting").await?;
            p.tell(Log::see, 1).await?;
            let bound = Duration::from_millis(5);
            let late = offshoot::timeout(bound, p.tell(Log::see, 2)).await;
            assert!(late.is_err_and(|error| error.is_timeout()));
            let busy = send(p.call(until_go, ())).await;
            let late = offshoot::timeout(bound, p.call(see_there, 3)).await;
            assert!(late.is_err_and(|error| error.is_timeout()));
            mark("go");
            busy.answer().await?;
            p.ask(Log::see, 4).await?;
            assert_eq!(p.call(seen, ()).await?, [1, 4]);
            Ok(())
        })
        .await?;
    }

    async fn one_that_is_kept_unpolled_holds_up_nobody(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start(Isolate::named("p").mailbox(1).calls_max(1), Log).await?;
            let first = send(p.call(until_go, ())).await;
            p.tell(Log::wait, "go".to_owned()).await?;
            held("waiting").await?;
            p.tell(Log::see, 1).await?;
            // Each is polled once, has its place, and is then kept.
            let (mut called, mut told) = (p.call(see_there, 5), p.tell(Log::see, 6));
            let (mut again, mut asked) = (p.call(see_there, 7), p.ask(Log::see, 8));
            poll_fn(|cx| {
                assert!(Pin::new(&mut called).poll(cx).is_pending());
                assert!(Pin::new(&mut told).poll(cx).is_pending());
                assert!(Pin::new(&mut again).poll(cx).is_pending());
                assert!(Pin::new(&mut asked).poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            mark("go");
            first.answer().await?;
            let bound = Duration::from_secs(5);
            offshoot::timeout(bound, p.call(see_there, 2)).await??;
            offshoot::timeout(bound, p.tell(Log::see, 3)).await??;
            offshoot::timeout(bound, p.ask(Log::see, 4)).await??;
            // They are none the worse for it.
            called.await?;
            told.await?;
            again.await?;
            asked.await?;
            let mut seen = p.call(seen, ()).await?;
            seen.sort_unstable();
            assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8]);
            Ok(())
        })
        .await?;
    }

    async fn one_that_blocks_its_isolate_waits_for_none_that_it_blocks(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").calls_max(1)).await?;
            let first = send(p.call(until_go, ())).await;
            let behind = send(p.call(see_there, 1)).await;
            assert!(behind.is_waiting());
            mark("go");
            // On the isolate's own thread: nothing else of it can take its turn.
            assert_eq!(p.call_blocking(see_there, 2)?, 2);
            first.answer().await?;
            behind.answer().await?;
            assert_eq!(p.call(seen, ()).await?, [2, 1]);
            Ok(())
        })
        .await?;
    }

    async fn calls_are_bounded_too(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").calls_max(3)).await?;
            let mut running = Vec::new();
            for _ in 0..3 {
                running.push(send(p.call(until_go, ())).await);
            }
            let fourth = send(p.call(see_there, 4)).await;
            soon("three run", || lines("until go").len() == 3).await?;
            assert!(fourth.is_waiting());
            assert!(running.iter().all(Sent::is_waiting));
            mark("go");
            fourth.answer().await?;
            for one in running {
                one.answer().await?;
            }
            Ok(())
        })
        .await?;
    }
}

fn see_there(n: u32) -> u32 {
    see(n);
    n
}

async fn until_go() {
    append("until go", "");
    held("go").await.expect("nobody cancels");
}
