//! Dialogues: what is sent arrives, in order and within bounds; halves close and drain; ends are told.

use futures_util::{SinkExt, StreamExt};
use offshoot::prelude::*;
use offshoot::{ErrorKind, Overflow, Window, current};
use offshoot_sys::clock;
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{Guard, append, both, held, hold, lines, mark, marked, processes, soon};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(3_600);

/// Sends back what it gets, and how many in the end.
async fn echo(mut peer: Peer<String, String, u32>, first: u32) -> u64 {
    peer.started(first).expect("the first time");
    let mut count = 0;
    while let Ok(Some(text)) = peer.next().await {
        peer.send(text).await.expect("room");
        count += 1;
    }
    count
}

/// Sends the numbers below `n`, without being asked.
async fn numbers(mut peer: Peer<(), u64>, n: u64) -> Result<u64> {
    peer.started(())?;
    for i in 0..n {
        peer.send(i).await?;
        append("sent", "");
    }
    Ok(n)
}

/// Adds up.
async fn sum(mut peer: Peer<u64, ()>) -> Result<u64> {
    peer.started(())?;
    let mut sum = 0;
    while let Some(n) = peer.next().await? {
        sum += n;
    }
    Ok(sum)
}

/// Starts and waits to be cancelled, and says what it saw.
async fn waits(mut peer: Peer<u64, u64>) -> Result<u64> {
    let _guard = Guard("dropped".to_owned());
    peer.started(())?;
    mark("started");
    let cancel = offshoot::cancelled().await;
    append("cancelled", &cancel.to_string());
    Ok(7)
}

/// Never looks at its cancellation.
async fn ignores(mut peer: Peer<u64, u64>) -> Result<u64> {
    let _guard = Guard("dropped".to_owned());
    peer.started(())?;
    std::future::pending().await
}

async fn panics(mut peer: Peer<u64, u64>) -> u64 {
    peer.started(()).expect("the first time");
    peer.send(1).await.expect("room");
    panic!("in the middle of it");
}

both! {
    async fn both_sides_stream_and_the_result_comes_last(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, first) = p.open(echo, 3).await?;
            assert_eq!(first, 3);
            for text in ["a", "b", "c"] {
                link.send(text.to_owned()).await?;
                assert_eq!(link.next().await?.as_deref(), Some(text));
            }
            assert_eq!(link.result().await?, 3);
            // The result is there once; the streams have ended for good.
            let again = link.result().await.unwrap_err();
            assert!(matches!(again.kind(), ErrorKind::Misuse), "{again:?}");
            assert_eq!(link.next().await?, None);
            assert!(link.send("d".to_owned()).await.unwrap_err().is_closed());
            Ok(())
        })
        .await?;
    }

    async fn a_half_that_is_closed_is_drained_and_then_ends(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(sum, ()).await?;
            for n in 1..=50 {
                link.send(n).await?;
            }
            link.close();
            link.close();
            assert!(link.send(1).await.unwrap_err().is_closed());
            assert_eq!(link.result().await??, 1_275);
            Ok(())
        })
        .await?;
    }

    async fn what_was_sent_before_a_return_can_still_be_taken(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(numbers, 40).await?;
            // It has returned long since.
            soon("all were sent", || lines("sent").len() == 40).await?;
            for n in 0..40 {
                assert_eq!(link.next().await?, Some(n));
            }
            assert_eq!(link.next().await?, None);
            assert_eq!(link.next().await?, None);
            assert_eq!(link.result().await??, 40);
            Ok(())
        })
        .await?;
    }

    async fn a_result_does_not_wait_for_what_nobody_takes(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            // More than any window holds.
            let (mut link, ()) = p.open(numbers, 10_000).await?;
            assert_eq!(link.next().await?, Some(0));
            assert_eq!(link.result().await??, 10_000);
            Ok(())
        })
        .await?;
    }

    async fn a_receiver_that_does_not_read_stops_its_sender_and_nobody_else(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let window = Window { items: 8, bytes: 1 << 20 };
            let (mut slow, ()) = p.open(numbers, 100).window(window).await?;
            let (mut fast, _) = p.open(echo, 0).await?;
            soon("the window is full", || lines("sent").len() >= 8).await?;
            for n in 0..200 {
                fast.send(n.to_string()).await?;
                assert_eq!(fast.next().await?, Some(n.to_string()));
            }
            assert_eq!(lines("sent").len(), 8);
            for n in 0..100 {
                assert_eq!(slow.next().await?, Some(n));
            }
            assert_eq!(slow.result().await??, 100);
            assert_eq!(fast.result().await?, 200);
            Ok(())
        })
        .await?;
    }

    async fn an_opener_that_is_not_read_waits(_t: T) {
        async fn reads_when_told(mut peer: Peer<u64, ()>) -> Result<Vec<u64>> {
            peer.started(())?;
            held("read").await?;
            let mut all = Vec::new();
            while let Some(n) = peer.next().await? {
                all.push(n);
            }
            Ok(all)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let window = Window { items: 4, bytes: 1 << 20 };
            let (mut link, ()) = p.open(reads_when_told, ()).window(window).await?;
            for n in 0..4 {
                link.send(n).await?;
            }
            let late = offshoot::timeout(Duration::from_millis(50), link.send(4)).await;
            assert!(late.unwrap_err().is_timeout());
            mark("read");
            // What was given up was not sent, and nothing of it is left behind.
            for n in 5..20 {
                link.send(n).await?;
            }
            let all = link.result().await??;
            assert_eq!(all, [0, 1, 2, 3].into_iter().chain(5..20).collect::<Vec<_>>());
            Ok(())
        })
        .await?;
    }

    async fn items_of_any_size_go_through_any_window(_t: T) {
        async fn back(mut peer: Peer<offshoot::Bytes, offshoot::Bytes>) -> Result<()> {
            peer.started(())?;
            while let Some(bytes) = peer.next().await? {
                peer.send(bytes).await?;
            }
            Ok(())
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            for window in [
                Window { items: 1, bytes: 1 },
                Window { items: 3, bytes: 1_000 },
                Window::DEFAULT,
            ] {
                let (link, ()) = p.open(back, ()).window(window).await?;
                let (mut outgoing, mut incoming, mut outcome) = link.split();
                let sizes = [0, 1, 999, 1_000, 1_001, 70_000, 3 << 20, 5, 0];
                let sending = nursery.task(async move {
                    for size in sizes {
                        outgoing.send(vec![u8::try_from(size % 251).unwrap_or(0); size].into()).await?;
                    }
                    outgoing.close();
                    Ok::<_, offshoot::Error>(outgoing)
                });
                for size in sizes {
                    let bytes = incoming.next().await?.expect("an item");
                    assert_eq!(bytes.len(), size);
                    assert!(bytes.iter().all(|byte| usize::from(*byte) == size % 251));
                }
                assert_eq!(incoming.next().await?, None);
                outcome.result().await??;
                drop(sending.await??);
            }
            Ok(())
        })
        .await?;
    }

    async fn the_traits_of_the_ecosystem_fit(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, _) = p.open(echo, 0).await?;
            let mut texts = futures_util::stream::iter(["x", "y"].map(|text| Ok(text.to_owned())));
            SinkExt::send_all(&mut link, &mut texts).await?;
            SinkExt::close(&mut link).await?;
            let got: Vec<_> = StreamExt::by_ref(&mut link).collect().await;
            let got: Result<Vec<_>> = got.into_iter().collect();
            assert_eq!(got?, ["x", "y"]);
            assert_eq!(link.result().await?, 2);
            Ok(())
        })
        .await?;
    }

    async fn one_that_takes_nothing_more_is_told_to_the_sender(_t: T) {
        async fn takes_two(peer: Peer<u64, u64>) -> Result<bool> {
            let mut peer = peer;
            peer.started(())?;
            let (mut outgoing, mut incoming) = peer.split();
            incoming.next().await?;
            incoming.next().await?;
            drop(incoming);
            // Its own half is another matter.
            outgoing.send(1).await?;
            held("sent").await?;
            Ok(true)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(takes_two, ()).await?;
            let mut sent = 0;
            let error = loop {
                match link.send(0).await {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
                offshoot::checkpoint().await?;
            };
            assert!(error.is_closed() && error.to_string().contains("takes nothing"), "{error:?}");
            assert!(sent >= 2);
            assert_eq!(link.next().await?, Some(1));
            mark("sent");
            assert!(link.result().await??);
            Ok(())
        })
        .await?;
    }

    async fn misuse_is_told_and_harms_nothing(_t: T) {
        async fn early(mut peer: Peer<u64, u64>) -> Result<String> {
            let send = peer.send(1).await.unwrap_err();
            let next = peer.next().await.unwrap_err();
            peer.started(())?;
            let twice = peer.started(()).unwrap_err();
            for error in [&send, &next, &twice] {
                assert!(matches!(error.kind(), ErrorKind::Misuse), "{error:?}");
            }
            let blocking = peer.next_blocking().unwrap_err();
            Ok(format!("{send}; {twice}; {blocking}"))
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(early, ()).await?;
            let said = link.result().await??;
            assert!(said.contains("begins with `started`"), "{said}");
            assert!(said.contains("a second time") && said.contains("Isolate::blocking"), "{said}");
            Ok(())
        })
        .await?;
    }

    async fn a_function_that_returns_before_it_started_fails_the_opening(_t: T) {
        async fn fails(_: Peer<u64, u64>, text: String) -> Result<u64> {
            Ok(text.parse::<u64>()?)
        }
        async fn forgets(_: Peer<u64, u64>) -> u8 {
            1
        }
        async fn own(_: Peer<u64, u64>) -> Result<u8, String> {
            Err("mine".to_owned())
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let error = p.open(fails, "x".to_owned()).await.unwrap_err();
            assert!(error.type_name().is_some_and(|name| name.ends_with("ParseIntError")), "{error:?}");
            assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/p"));
            let error = p.open(forgets, ()).await.unwrap_err();
            assert!(error.is_closed() && error.message().contains("before it called `started`"), "{error:?}");
            let error = p.open(own, ()).await.unwrap_err();
            assert!(error.is_closed() && error.message().contains("returned an error"), "{error:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_function_of_a_blocking_isolate_may_be_a_plain_one(_t: T) {
        fn adds(mut peer: Peer<u64, u64>, by: u64) -> Result<u64> {
            peer.started(())?;
            let mut count = 0;
            while let Some(n) = peer.next_blocking()? {
                peer.send_blocking(n + by)?;
                count += 1;
            }
            Ok(count)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").blocking()).await?;
            let (mut link, ()) = p.open(adds, 10).await?;
            for n in 0..100 {
                link.send(n).await?;
                assert_eq!(link.next().await?, Some(n + 10));
            }
            assert_eq!(link.result().await??, 100);
            Ok(())
        })
        .await?;
    }

    async fn one_can_be_opened_off_the_runtime(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            offshoot::unblock(move || -> Result<()> {
                let (mut link, first) = p.open_blocking(echo, 9)?;
                assert_eq!(first, 9);
                link.send_blocking("x".to_owned())?;
                assert_eq!(link.next_blocking()?.as_deref(), Some("x"));
                assert_eq!(link.result_blocking()?, 1);
                Ok(())
            })
            .await?
        })
        .await?;
    }

    async fn all_overflow_policies_keep_their_word(_t: T) {
        async fn reads_when_told(mut peer: Peer<u64, ()>, sign: String) -> Result<Vec<u64>> {
            peer.started(())?;
            held(&sign).await?;
            let mut all = Vec::new();
            while let Some(n) = peer.next().await? {
                all.push(n);
            }
            Ok(all)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let window = Window { items: 5, bytes: 1 << 20 };

            let (mut link, ()) = p.open(reads_when_told, "newest".to_owned()).window(window).await?;
            link.set_overflow(Overflow::DropNewest);
            for n in 0..100 {
                link.send(n).await?;
            }
            assert_eq!(link.dropped(), 95);
            mark("newest");
            assert_eq!(link.result().await??, [0, 1, 2, 3, 4]);

            let (mut link, ()) = p.open(reads_when_told, "oldest".to_owned()).window(window).await?;
            link.set_overflow(Overflow::DropOldest);
            for n in 0..100 {
                link.send(n).await?;
            }
            let dropped = link.dropped();
            assert!((90..=95).contains(&dropped), "{dropped}");
            mark("oldest");
            let all = link.result().await??;
            assert_eq!(all.len() as u64 + dropped, 100);
            assert!(all.is_sorted() && all.ends_with(&[95, 96, 97, 98, 99]), "{all:?}");

            let (mut link, ()) = p.open(reads_when_told, "error".to_owned()).window(window).await?;
            link.set_overflow(Overflow::Error);
            for n in 0..5 {
                link.send(n).await?;
            }
            let error = link.send(5).await.unwrap_err();
            assert!(error.is_full(), "{error:?}");
            assert!(error.message().contains("root/p") && error.message().contains("read nothing yet"), "{error:?}");
            // The stream goes on.
            link.set_overflow(Overflow::Wait);
            mark("error");
            link.send(6).await?;
            assert_eq!(link.result().await??, [0, 1, 2, 3, 4, 6]);
            Ok(())
        })
        .await?;
    }

    async fn an_item_that_cannot_cross_costs_itself(t: T) {
        #[derive(Debug, PartialEq, Serialize)]
        struct OneWay(u8);
        impl<'de> Deserialize<'de> for OneWay {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<OneWay, D::Error> {
                match u8::deserialize(deserializer)? {
                    13 => Err(serde::de::Error::custom("not this one")),
                    n => Ok(OneWay(n)),
                }
            }
        }
        async fn gives(mut peer: Peer<(), OneWay>) -> Result<Vec<String>> {
            peer.started(())?;
            let mut errors = Vec::new();
            for n in 12..15 {
                if let Err(error) = peer.send(OneWay(n)).await {
                    errors.push(error.to_string());
                }
            }
            Ok(errors)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(gives, ()).await?;
            assert_eq!(link.next().await?, Some(OneWay(12)));
            if t.isolation == Isolation::Thread {
                assert_eq!(link.next().await?, Some(OneWay(13)));
            }
            if t.is_process() {
                let error = link.next().await.unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::Codec), "{error:?}");
            }
            assert_eq!(link.next().await?, Some(OneWay(14)));
            let errors = link.result().await??;
            assert_eq!(errors.len(), usize::from(t.isolation == Isolation::Serde), "{errors:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_link_that_is_dropped_cancels_the_far_task_and_the_nursery_waits_for_it(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            offshoot::nursery(async |_| {
                let (link, ()) = p.open(waits, ()).await?;
                held("started").await?;
                drop(link);
                Ok(())
            })
            .await?;
            // Not a moment later.
            assert!(marked("dropped"));
            assert_eq!(lines("cancelled"), ["cancelled by root, which dropped its side of the dialogue"]);
            p.call(|| (), ()).await
        })
        .await?;
    }

    async fn a_link_that_outlives_its_nursery_is_cancelled_by_it(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let mut link = offshoot::nursery(async |_| Ok(p.open(waits, ()).await?.0)).await?;
            assert!(marked("dropped"));
            assert_eq!(lines("cancelled"), ["cancelled by the nursery of root"]);
            // It has returned, so that is its result.
            assert_eq!(link.result().await??, 7);
            Ok(())
        })
        .await?;
    }

    async fn an_error_of_the_body_cancels_the_far_task_and_is_what_comes_out(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let error = offshoot::nursery(async |_| {
                let (_link, ()) = p.open(waits, ()).await?;
                held("started").await?;
                "x".parse::<u8>()?;
                Ok(())
            })
            .await
            .unwrap_err();
            assert!(marked("dropped") && lines("cancelled").len() == 1);
            assert_eq!(error.failures().len(), 1, "{error:?}");
            assert!(error.type_name().is_some_and(|name| name.ends_with("ParseIntError")), "{error:?}");
            Ok(())
        })
        .await?;
    }

    fn a_task_that_sees_no_checkpoint_is_dropped_after_the_grace(t: T) {
        let grace = Duration::from_millis(100);
        t.builder()
            .grace(grace)
            .run(async move || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let (mut link, ()) = p.open(ignores, ()).await?;
                    let began = Instant::now();
                    // Its acknowledgement has the same short bound; here it is the end that counts.
                    let _ = link.cancel().await;
                    assert!(!marked("dropped") || began.elapsed() >= grace);
                    let error = link.result().await.unwrap_err();
                    assert!(began.elapsed() >= grace, "{:?}", began.elapsed());
                    assert!(error.is_cancelled() && error.message().contains("by root"), "{error:?}");
                    assert!(marked("dropped"));
                    // Only that task was.
                    p.call(|| (), ()).await
                })
                .await
            })
            .expect("nothing failed");
    }

    fn a_task_whose_grace_is_over_at_once_still_sees_its_cancellation(t: T) {
        async fn sees(mut peer: Peer<u64, u64>) -> Result<()> {
            peer.started(())?;
            let cancel = offshoot::cancelled().await;
            offshoot_tests::append("seen", &cancel.to_string());
            Ok(())
        }
        t.builder()
            .grace(Duration::ZERO)
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let (mut link, ()) = p.open(sees, ()).await?;
                    let _ = link.cancel().await;
                    let _ = link.result().await;
                    assert_eq!(offshoot_tests::lines("seen").len(), 1);
                    p.call(|| (), ()).await
                })
                .await
            })
            .expect("nothing failed");
    }

    fn a_far_isolate_that_never_yields_bounds_cancel_and_nursery(t: T) {
        fn blocks(mut peer: Peer<u64, u64>) -> Result<u64> {
            peer.started(())?;
            mark("blocked");
            hold("release");
            Ok(1)
        }
        t.builder()
            .grace(Duration::from_millis(100))
            .hard_kill(Duration::from_millis(300))
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let began = Instant::now();
                    let inner = offshoot::nursery(async |_| {
                        let (link, ()) = p.open(blocks, ()).await?;
                        held("blocked").await?;
                        let late = link.cancel().await.unwrap_err();
                        assert!(late.is_timeout() && late.message().contains("root/p"), "{late:?}");
                        Ok(())
                    })
                    .await
                    .unwrap_err();
                    assert!(inner.is_timeout() && inner.message().contains("root/p"), "{inner:?}");
                    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
                    mark("release");
                    p.call(|| (), ()).await
                })
                .await
            })
            .expect("nothing failed");
    }

    async fn an_opening_that_is_given_up_leaves_nothing_running(_t: T) {
        async fn never_starts(_peer: Peer<u64, u64>) -> u8 {
            let _guard = Guard("dropped".to_owned());
            mark("begun");
            let cancel = offshoot::cancelled().await;
            append("cancelled", &cancel.to_string());
            1
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            offshoot::nursery(async |_| {
                let opening = p.open(never_starts, ());
                let late = offshoot::timeout(Duration::from_millis(50), opening).await;
                assert!(late.unwrap_err().is_timeout());
                Ok(())
            })
            .await?;
            assert_eq!(marked("begun"), marked("dropped"));
            assert_eq!(lines("cancelled").len(), lines("begun").len());
            Ok(())
        })
        .await?;
    }

    async fn one_that_has_not_begun_when_it_is_given_up_never_runs(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let blocked = nursery.task(p.call(
                || {
                    mark("blocked");
                    hold("release");
                },
                (),
            ));
            held("blocked").await?;
            offshoot::nursery(async |_| {
                let late = offshoot::timeout(Duration::from_millis(30), p.open(waits, ())).await;
                assert!(late.unwrap_err().is_timeout());
                mark("release");
                Ok(())
            })
            .await?;
            blocked.await??;
            p.call(|| (), ()).await?;
            assert!(!marked("started"));
            Ok(())
        })
        .await?;
    }

    async fn a_panic_in_the_middle_is_no_end_of_the_stream(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            // In an outer place, so that the failure of `p` does not cancel who looks.
            let (mut link, ()) = p.open(panics, ()).await?;
            let seen = loop {
                match link.next().await {
                    Ok(Some(n)) => assert_eq!(n, 1),
                    Ok(None) => panic!("an end instead of a failure"),
                    Err(error) => break error,
                }
            };
            Err::<(), _>(seen)
        })
        .await
        .unwrap_err();
        // Told by the dialogue and by the isolate's end, and counted once.
        assert!(error.is_panic() && error.failures().len() == 1, "{error:?}");
    }

    async fn all_that_waits_for_a_panicked_peer_is_told(_t: T) {
        async fn panics_when_told(mut peer: Peer<u64, u64>) -> u64 {
            peer.started(()).expect("the first time");
            held("go").await.expect("nobody cancels");
            panic!("on purpose");
        }
        offshoot::nursery(async |outer| {
            let inner = offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let window = Window { items: 1, bytes: 1 };
                let (link, ()) = p.open(panics_when_told, ()).window(window).await?;
                let (mut outgoing, mut incoming, mut outcome) = link.split();
                outgoing.send(0).await?;
                let sending = outer.task(async move { outgoing.send(1).await });
                let taking = outer.task(async move { incoming.next().await.map(drop) });
                let waiting = outer.task(async move { outcome.result().await.map(drop) });
                mark("go");
                for one in [sending.await?, taking.await?, waiting.await?] {
                    let error = one.unwrap_err();
                    assert!(error.is_panic() && error.to_string().contains("on purpose"), "{error:?}");
                }
                Ok(())
            })
            .await
            .unwrap_err();
            assert!(inner.is_panic() && inner.failures().len() == 1, "{inner:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_thousand_dialogues_leave_nothing_behind(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            for n in 0..1_000_u64 {
                let (mut link, _) = p.open(echo, 0).await?;
                match n % 4 {
                    0 => drop(link),
                    1 => assert_eq!(link.result().await?, 0),
                    2 => {
                        link.send(n.to_string()).await?;
                        assert_eq!(link.next().await?, Some(n.to_string()));
                    }
                    _ => link.cancel().await?,
                }
            }
            Ok(())
        })
        .await?;
        assert!(current().cancelled().is_none());
    }
}

/// Says nothing, and reads nothing.
async fn stays(mut peer: Peer<u64, u64>) -> u64 {
    peer.started(()).expect("the first time");
    let _ = offshoot::sleep(LONG).await;
    0
}

async fn never_starts(_peer: Peer<u64, u64>) -> u64 {
    mark("asked");
    let _ = offshoot::sleep(LONG).await;
    0
}

processes! {
    async fn one_whose_arguments_panic_while_they_are_decoded_fails_the_opening(_t: T) {
        /// Decoded by another process than this, as it is not where it is tried.
        #[derive(Debug, Serialize)]
        struct Explosive(u32);
        impl<'de> Deserialize<'de> for Explosive {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Explosive, D::Error> {
                let made_by = u32::deserialize(deserializer)?;
                assert_eq!(made_by, std::process::id(), "told to, in the decoder");
                Ok(Explosive(made_by))
            }
        }
        let explosive = || Explosive(std::process::id());
        async fn takes(mut peer: Peer<u64, u64>, _: Explosive) -> u64 {
            peer.started(()).expect("the first time");
            0
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let q = nursery.spawn("q").await?;
            // By its owner, and by one that was introduced to it.
            let error = p.open(takes, explosive()).await.unwrap_err();
            assert!(error.to_string().contains("told to, in the decoder"), "{error:?}");
            let text = q.call(async |p: Portal| p.open(takes, Explosive(std::process::id())).await.unwrap_err().to_string(), p.clone()).await?;
            assert!(text.contains("told to, in the decoder"), "{text}");
            // It goes on.
            assert_eq!(p.call(|n: u64| n, 7).await?, 7);
            Ok(())
        })
        .await?;
    }

    async fn all_that_waits_for_the_killed_is_told_within_100_ms(_t: T) {
        offshoot::nursery(async |outer| {
            let inner = offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let window = Window { items: 1, bytes: 1 };
                let (link, ()) = p.open(stays, ()).window(window).await?;
                let (mut outgoing, mut incoming, mut outcome) = link.split();
                outgoing.send(0).await?;
                let opening = p.open(never_starts, ());
                let calling = p.call(async || offshoot::sleep(LONG).await.is_ok(), ());
                let tasks = [
                    outer.task(Box::pin(async move { (opening.await.map(drop), Instant::now()) })
                        as std::pin::Pin<Box<dyn Future<Output = _>>>),
                    outer.task(Box::pin(async move { (calling.await.map(drop), Instant::now()) })),
                    outer.task(Box::pin(async move { (outgoing.send(1).await, Instant::now()) })),
                    outer.task(Box::pin(async move { (incoming.next().await.map(drop), Instant::now()) })),
                    outer.task(Box::pin(async move { (outcome.result().await.map(drop), Instant::now()) })),
                ];
                held("asked").await?;
                let killed = Instant::now();
                assert!(Pidfd::open(p.origin().pid)?.kill()?);
                for task in tasks {
                    let (result, told) = task.await?;
                    let error = result.unwrap_err();
                    assert!(matches!(error.exit(), Some(Exit::Killed { .. })), "{error:?}");
                    assert!(error.to_string().contains("root/p"), "{error:?}");
                    assert!(told - killed < Duration::from_millis(100), "{:?}", told - killed);
                }
                Ok(())
            })
            .await
            .unwrap_err();
            assert!(matches!(inner.exit(), Some(Exit::Killed { .. })), "{inner:?}");
            assert_eq!(inner.failures().len(), 1, "{inner:?}");
            Ok(())
        })
        .await?;
    }

    /// As above, of those to whom it was introduced: they have a connection of their own, and nobody who tells them how it ended.
    async fn all_that_waits_for_the_killed_elsewhere_is_told_within_100_ms(_t: T) {
        /// When each was told (ns), and what.
        async fn waits(p: Portal) -> Result<Vec<(u64, String)>> {
            async fn told(what: impl Future<Output = Result<()>>) -> (u64, String) {
                let error = what.await.expect_err("it is killed");
                (clock::now(), error.to_string())
            }
            let window = Window { items: 1, bytes: 1 };
            let (link, ()) = p.open(stays, ()).window(window).await?;
            let (mut outgoing, mut incoming, mut outcome) = link.split();
            outgoing.send(0).await?;
            let all = futures_util::future::join5(
                told(async { p.open(never_starts, ()).await.map(drop) }),
                told(async { p.call(async || offshoot::sleep(LONG).await.is_ok(), ()).await.map(drop) }),
                told(outgoing.send(1)),
                told(async { incoming.next().await.map(drop) }),
                told(async { outcome.result().await.map(drop) }),
            );
            let (a, b, c, d, e) = all.await;
            Ok(vec![a, b, c, d, e])
        }
        offshoot::nursery(async |outer| {
            let holder = outer.spawn("holder").await?;
            let inner = offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let waiting = outer.task(holder.call(waits, p.clone()));
                held("asked").await?;
                let killed = clock::now();
                assert!(Pidfd::open(p.origin().pid)?.kill()?);
                let told = waiting.await???;
                for (at, text) in told {
                    let late = Duration::from_nanos(at - killed);
                    assert!(late < Duration::from_millis(100), "{late:?}");
                    assert!(text.contains("root/p"), "{text}");
                }
                Ok(())
            })
            .await
            .unwrap_err();
            assert!(matches!(inner.exit(), Some(Exit::Killed { .. })), "{inner:?}");
            Ok(())
        })
        .await?;
    }
}
