//! What dropping means: the table of the portal's documentation, a test per field of it.
//!
//! "Begun" is seen by a sign that the code itself makes; "never" is seen after something that was
//! accepted later has run to its end.

use offshoot::prelude::*;
use offshoot_tests::{Guard, append, both, held, hold, lines, mark, marked};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// Polls once: sends it, if it can be sent.
async fn begin<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
}

fn note(line: String) {
    append("log", &line);
}

/// Runs until `release`, unless it is dropped before.
async fn until_released(name: String) {
    let _guard = Guard(format!("{name} dropped"));
    mark(&format!("{name} begun"));
    let released = held("release").await;
    append(
        "log",
        &format!(
            "{name} {}",
            if released.is_ok() {
                "ended"
            } else {
                "cancelled"
            }
        ),
    );
}

/// Blocks the thread until `release`.
fn block(name: String) {
    mark(&format!("{name} begun"));
    hold("release");
    append("log", &format!("{name} ended"));
}

#[derive(Serialize, Deserialize)]
struct Store;

impl Store {
    fn note(&mut self, line: String) {
        append("log", &line);
    }
    async fn until_released(&mut self, name: String) {
        until_released(name).await;
    }
}

fn owned(text: &str) -> String {
    text.to_owned()
}

both! {
    async fn a_call_that_was_never_polled_is_never_sent(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            drop(p.call(note, owned("dropped")));
            p.call(note, owned("after")).await?;
            assert_eq!(lines("log"), ["after"]);
            Ok(())
        })
        .await?;
    }

    async fn a_call_dropped_before_it_was_accepted_is_never_sent(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").calls_max(1)).await?;
            let first = nursery.task(p.call(until_released, owned("first")));
            held("first begun").await?;
            let mut second = p.call(note, owned("second"));
            assert!(!begin(&mut second).await);
            drop(second);
            mark("release");
            first.await??;
            p.call(note, owned("after")).await?;
            assert_eq!(lines("log"), ["first ended", "after"]);
            Ok(())
        })
        .await?;
    }

    async fn a_call_dropped_before_it_has_begun_never_runs(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let first = nursery.task(p.call(block, owned("first")));
            held("first begun").await?;
            let mut second = p.call(note, owned("second"));
            assert!(!begin(&mut second).await);
            drop(second);
            mark("release");
            first.await??;
            p.call(note, owned("after")).await?;
            assert_eq!(lines("log"), ["first ended", "after"]);
            Ok(())
        })
        .await?;
    }

    async fn a_call_dropped_after_it_has_begun_is_dropped_over_there(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let bound = Duration::from_millis(1);
            let mut call = p.call(until_released, owned("call"));
            assert!(!begin(&mut call).await);
            held("call begun").await?;
            assert!(!marked("call dropped"));
            let late = offshoot::timeout(bound, call).await;
            assert!(late.is_err_and(|error| error.is_timeout()));
            held("call dropped").await?;
            // It was dropped where it waited, and the isolate goes on.
            p.call(note, owned("after")).await?;
            assert_eq!(lines("log"), ["after"]);
            Ok(())
        })
        .await?;
    }

    async fn dropped_calls_give_their_credit_back(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").calls_max(2)).await?;
            for n in 0..20 {
                let mut call = p.call(until_released, format!("call {n}"));
                // Polled until it is there: its credit may still be on its way back.
                let begun = format!("call {n} begun");
                let mut begun = std::pin::pin!(held(&begun));
                poll_fn(|cx| {
                    assert!(Pin::new(&mut call).poll(cx).is_pending());
                    begun.as_mut().poll(cx)
                })
                .await?;
            }
            p.call(note, owned("after")).await?;
            assert_eq!(lines("log"), ["after"]);
            Ok(())
        })
        .await?;
    }

    async fn an_ask_dropped_before_it_was_accepted_is_never_sent(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start(Isolate::named("p").mailbox(1), Store).await?;
            let first = nursery.task(p.ask(Store::until_released, owned("first")));
            held("first begun").await?;
            let mut second = p.ask(Store::note, owned("second"));
            let mut third = p.ask(Store::note, owned("third"));
            assert!(!begin(&mut second).await);
            assert!(!begin(&mut third).await);
            drop(third);
            mark("release");
            first.await??;
            second.await?;
            p.ask(Store::note, owned("after")).await?;
            assert_eq!(lines("log"), ["first ended", "second", "after"]);
            Ok(())
        })
        .await?;
    }

    async fn an_ask_dropped_before_it_has_begun_is_withdrawn(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Store).await?;
            let first = nursery.task(p.ask(Store::until_released, owned("first")));
            held("first begun").await?;
            let mut second = p.ask(Store::note, owned("second"));
            let mut third = p.ask_cancellable(Store::note, owned("third"));
            let mut fourth = p.ask(Store::note, owned("fourth"));
            assert!(!begin(&mut second).await);
            assert!(!begin(&mut third).await);
            assert!(!begin(&mut fourth).await);
            drop((second, third));
            mark("release");
            first.await??;
            fourth.await?;
            assert_eq!(lines("log"), ["first ended", "fourth"]);
            Ok(())
        })
        .await?;
    }

    async fn an_ask_dropped_after_it_has_begun_runs_to_its_end(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Store).await?;
            let mut ask = p.ask(Store::until_released, owned("ask"));
            assert!(!begin(&mut ask).await);
            held("ask begun").await?;
            drop(ask);
            // The drop is on its way before this, and changes nothing.
            p.call(note, owned("beside")).await?;
            assert!(!marked("ask dropped"));
            mark("release");
            p.ask(Store::note, owned("after")).await?;
            assert_eq!(lines("log"), ["beside", "ask ended", "after"]);
            Ok(())
        })
        .await?;
    }

    async fn a_cancellable_ask_dropped_after_it_has_begun_is_dropped_over_there(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Store).await?;
            let mut ask = p.ask_cancellable(Store::until_released, owned("ask"));
            assert!(!begin(&mut ask).await);
            held("ask begun").await?;
            drop(ask);
            held("ask dropped").await?;
            // The state is served on.
            p.ask(Store::note, owned("after")).await?;
            assert_eq!(lines("log"), ["after"]);
            Ok(())
        })
        .await?;
    }

    async fn a_tell_dropped_while_it_waits_is_not_sent(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start(Isolate::named("p").mailbox(1), Store).await?;
            p.tell(Store::until_released, owned("first")).await?;
            held("first begun").await?;
            p.tell(Store::note, owned("second")).await?;
            let mut third = p.tell(Store::note, owned("third"));
            assert!(!begin(&mut third).await);
            drop(third);
            mark("release");
            p.ask(Store::note, owned("after")).await?;
            assert_eq!(lines("log"), ["first ended", "second", "after"]);
            Ok(())
        })
        .await?;
    }

    async fn an_accepted_tell_runs(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Store).await?;
            p.tell(Store::until_released, owned("first")).await?;
            held("first begun").await?;
            let mut second = p.tell(Store::note, owned("second"));
            assert!(begin(&mut second).await, "there is room");
            drop(second);
            drop(p.tell(Store::note, owned("never polled")));
            mark("release");
            p.ask(Store::note, owned("after")).await?;
            assert_eq!(lines("log"), ["first ended", "second", "after"]);
            Ok(())
        })
        .await?;
    }

    async fn what_was_accepted_runs_also_when_the_nursery_ends(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.start("p", Store).await?;
            for n in 0..200 {
                p.tell(Store::note, n.to_string()).await?;
            }
            Ok(())
        })
        .await?;
        let expected: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        assert_eq!(lines("log"), expected);
    }

    async fn a_spawning_that_was_never_polled_starts_nothing(_t: T) {
        offshoot::nursery(async |nursery| {
            let q = nursery.spawn("q").await?;
            drop(nursery.start("p", Store));
            let r = nursery.spawn("r").await?;
            assert_eq!(r.id().slot, q.id().slot + 1, "slots are counted");
            Ok(())
        })
        .await?;
    }
}
