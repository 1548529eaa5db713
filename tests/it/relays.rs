//! Errors on their way through several isolates: none loses a leaf, its origin, or where it came through.

use offshoot::prelude::*;
use offshoot::{Error, Origin, Window, current};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{both, held, hold, mark, processes, threads};
use std::time::{Duration, Instant};

/// Opens itself on an isolate below, down to the last, which fails. Nobody says `started` on the way.
async fn relay(mut peer: Peer<u64, u64>, names: Vec<String>) -> Result<u64> {
    let Some((name, below)) = names.split_first() else {
        return Ok("x".parse::<u64>()?);
    };
    offshoot::nursery(async |nursery| {
        let p = nursery.spawn(name.as_str()).await?;
        let (mut link, ()) = p.open(relay, below.to_vec()).await?;
        peer.started(())?;
        link.result().await?
    })
    .await
}

/// Fails together with the others.
fn fails_with_the_others(inbox: &mut Inbox) -> Result<()> {
    inbox.serve()?;
    hold("go");
    Err(Error::other(format!("leaf of {}", current().name())))
}

async fn many(count: usize) -> Result<()> {
    offshoot::nursery(async |nursery| {
        let mut calls = Vec::new();
        for n in 0..count {
            let spec = Isolate::named(format!("leaf-{n}")).blocking_main(fails_with_the_others);
            let p = nursery.spawn(spec).await?;
            p.call(|| (), ()).await?;
            calls.push(p);
        }
        mark("go");
        offshoot::sleep(Duration::from_secs(3_600)).await
    })
    .await
}

/// One stage of a pipeline: gives on what the stage below gives, down to the source. Begins with the processes of
/// all of them, its own first.
async fn stage(mut peer: Peer<(), u64, Vec<i32>>, below: usize, items: u64) -> Result<u64> {
    let mut pids = vec![current().origin().pid];
    if below == 0 {
        peer.started(pids)?;
        for n in 0..items {
            peer.send(n).await?;
        }
        return Ok(items);
    }
    offshoot::nursery(async |nursery| {
        let p = nursery.spawn(format!("stage-{below}")).await?;
        let (mut link, more) = p.open(stage, (below - 1, items)).await?;
        pids.extend(more);
        peer.started(pids)?;
        let mut count = 0;
        while let Some(n) = link.next().await? {
            peer.send(n).await?;
            count += 1;
        }
        assert_eq!(link.result().await??, count);
        Ok(count)
    })
    .await
}

fn leaves(error: &Error) -> Vec<String> {
    let mut names: Vec<_> = error
        .failures()
        .iter()
        .map(|leaf| {
            leaf.origin()
                .map_or_else(|| leaf.to_string(), |origin| origin.path.clone())
        })
        .collect();
    names.sort();
    names
}

both! {
    async fn the_route_gains_a_hop_for_each_isolate(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("a").await?;
            let names = ["b", "c", "d"].map(str::to_owned).to_vec();
            let error = p.open(relay, names).await.unwrap_err();
            assert_eq!(error.failures().len(), 1, "{error:?}");
            assert!(error.type_name().is_some_and(|name| name.ends_with("ParseIntError")));
            assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/a/b/c/d"));
            let route: Vec<_> = error.route().iter().map(|hop| hop.path.as_str()).collect();
            assert_eq!(route, ["root/a/b/c", "root/a/b", "root/a"]);
            // And in the report, where a human looks for it.
            assert!(error.report().contains("root/a/b/c → root/a/b → root/a"), "{error:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_stream_that_was_cut_short_never_looks_like_one_that_has_ended(_t: T) {
        async fn fails(mut peer: Peer<u64, u64>, split: bool) -> Result<u64> {
            peer.started(())?;
            peer.send(1).await?;
            if split {
                // A half that was let go of before has ended before.
                drop(peer.split());
                offshoot::checkpoint().await?;
            }
            Ok("x".parse::<u64>()?)
        }
        async fn own(mut peer: Peer<u64, u64>) -> Result<u64, String> {
            peer.started(()).map_err(|error| error.to_string())?;
            Err("mine".to_owned())
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(fails, false).await?;
            assert_eq!(link.next().await?, Some(1));
            let error = link.next().await.unwrap_err();
            assert!(error.type_name().is_some_and(|name| name.ends_with("ParseIntError")), "{error:?}");
            assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/p"));
            // The result is the value itself.
            assert!(link.result().await?.is_err());

            let (mut link, ()) = p.open(fails, true).await?;
            assert_eq!(link.next().await?, Some(1));
            assert_eq!(link.next().await?, None);
            assert!(link.result().await?.is_err());

            let (mut link, ()) = p.open(own, ()).await?;
            let error = link.next().await.unwrap_err();
            assert!(error.is_closed() && error.message().contains("which is its result"), "{error:?}");
            assert_eq!(link.result().await?, Err("mine".to_owned()));
            Ok(())
        })
        .await?;
    }

    async fn one_that_returns_because_it_is_cancelled_has_not_ended_its_stream(_t: T) {
        async fn gives_up(mut peer: Peer<u64, u64>) -> u64 {
            peer.started(()).expect("the first time");
            peer.send(1).await.expect("room");
            mark("there");
            offshoot::cancelled().await;
            7
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(gives_up, ()).await?;
            held("there").await?;
            p.cancel().await;
            assert_eq!(link.next().await?, Some(1));
            let error = link.next().await.unwrap_err();
            assert!(error.is_cancelled() && error.message().contains("by root"), "{error:?}");
            // What it returned is its result all the same.
            assert_eq!(link.result().await?, 7);
            Ok(())
        })
        .await?;
    }

    fn a_pipeline_keeps_order_and_bounds(t: T) {
        t.within(Duration::from_secs(60));
        t.run(async || {
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("stage-5").await?;
                let (mut link, pids) = p.open(stage, (4, 5_000)).await?;
                assert_eq!(pids.len(), 5);
                for n in 0..5_000 {
                    assert_eq!(link.next().await?, Some(n));
                }
                assert_eq!(link.next().await?, None);
                assert_eq!(link.result().await??, 5_000);
                Ok(())
            })
            .await
        })
        .expect("nothing failed");
    }

    fn a_group_keeps_every_leaf_also_from_afar(t: T) {
        t.within(Duration::from_secs(60));
        t.run(async || {
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("middle").await?;
                let error = p.call(many, 25).await?.unwrap_err();
                let mut expected: Vec<_> = (0..25).map(|n| format!("root/middle/leaf-{n}")).collect();
                expected.sort();
                assert_eq!(leaves(&error), expected, "{error:?}");
                assert_eq!(error.report().matches("leaf of leaf-").count(), 26, "{error:?}");
                Ok(())
            })
            .await
        })
        .expect("nothing else failed");
    }

    fn all_that_waits_for_what_had_to_be_forced_is_told_at_once(t: T) {
        fn never_returns(mut peer: Peer<u64, u64>) -> u64 {
            peer.started(()).expect("the first time");
            mark("stuck");
            loop {
                std::thread::sleep(Duration::from_secs(3_600));
            }
        }
        if !t.is_process() {
            t.abandons(1);
        }
        let bounds = (Duration::from_millis(100), Duration::from_millis(300));
        let result = t.builder().grace(bounds.0).hard_kill(bounds.1).run(async || {
            offshoot::nursery(async |outer| {
                let inner = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let window = Window { items: 1, bytes: 1 };
                    let (link, ()) = p.open(never_returns, ()).window(window).await?;
                    let (mut outgoing, mut incoming, mut outcome) = link.split();
                    outgoing.send(0).await?;
                    let waiting = [
                        outer.task(Box::pin(async move { (outgoing.send(1).await, Instant::now()) })
                            as std::pin::Pin<Box<dyn Future<Output = _>>>),
                        outer.task(Box::pin(async move { (incoming.next().await.map(drop), Instant::now()) })),
                        outer.task(Box::pin(async move { (outcome.result().await.map(drop), Instant::now()) })),
                    ];
                    held("stuck").await?;
                    drop(p.cancel());
                    let exit = p.ended().await;
                    let ended = Instant::now();
                    assert!(matches!(exit, Exit::Abandoned { .. } | Exit::Killed { .. }), "{exit:?}");
                    for one in waiting {
                        let (result, told) = one.await?;
                        let error = result.unwrap_err();
                        assert_eq!(error.exit().map(Exit::word), Some(exit.word()), "{error:?}");
                        assert!(error.to_string().contains("root/p"), "{error:?}");
                        let late = told.saturating_duration_since(ended);
                        assert!(late < Duration::from_millis(100), "{late:?}");
                    }
                    Ok(())
                })
                .await
                .unwrap_err();
                assert!(inner.exit().is_some() && inner.failures().len() == 1, "{inner:?}");
                Ok(())
            })
            .await
        });
        result.expect("nothing else failed");
    }
}

// Not for processes: a thread that is abandoned keeps its portals, and a portal to a process keeps two descriptors.
threads! {
    fn the_far_task_of_an_opener_that_was_cut_off_is_cancelled(t: T) {
        async fn waits(mut peer: Peer<u64, u64>) -> Result<()> {
            peer.started(())?;
            let cancel = offshoot::cancelled().await;
            offshoot_tests::append("seen", &cancel.to_string());
            Ok(())
        }
        t.abandons(1);
        let bounds = (Duration::from_millis(100), Duration::from_millis(300));
        let result = t.builder().grace(bounds.0).hard_kill(bounds.1).run(async || {
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let inner = offshoot::nursery(async |nursery| {
                    // A thread in every mode, since it is given the portal.
                    let stuck = nursery.spawn_local("stuck").await?;
                    let target = p.clone();
                    nursery.task(stuck.run(async move || {
                        let opened = target.open(waits, ()).await;
                        mark("opened");
                        loop {
                            std::thread::sleep(Duration::from_secs(3_600));
                            std::hint::black_box(&opened);
                        }
                    })).detach();
                    held("opened").await?;
                    drop(stuck.cancel());
                    stuck.ended().await;
                    Ok(())
                })
                .await
                .unwrap_err();
                assert_eq!(inner.exit().map(Exit::word), Some("abandoned"), "{inner:?}");
                offshoot_tests::soon("it was seen", || !offshoot_tests::lines("seen").is_empty()).await?;
                let seen = offshoot_tests::lines("seen");
                assert_eq!(seen, ["cancelled by root/stuck, which dropped its side of the dialogue"]);
                p.call(|| (), ()).await
            })
            .await
        });
        result.expect("nothing else failed");
    }
}

processes! {
    fn a_pipeline_of_which_any_stage_is_killed_gives_one_error(t: T) {
        t.within(Duration::from_secs(90));
        for victim in 0..5 {
            let error = t
                .run(async move || {
                    offshoot::nursery(async |nursery| {
                        let p = nursery.spawn("stage-5").await?;
                        let (mut link, pids) = p.open(stage, (4, u64::MAX)).await?;
                        for n in 0..200 {
                            assert_eq!(link.next().await?, Some(n));
                        }
                        assert!(Pidfd::open(pids[victim])?.kill()?);
                        while link.next().await?.is_some() {}
                        Ok(())
                    })
                    .await
                })
                .unwrap_err();
            assert_eq!(error.failures().len(), 1, "{victim}: {error:?}");
            let killed = error.failures()[0];
            assert!(matches!(killed.exit(), Some(Exit::Killed { .. })), "{victim}: {error:?}");
            let name = format!("stage-{}", if victim == 0 { 5 } else { 5 - victim });
            assert_eq!(killed.origin().map(Origin::name), Some(name.as_str()), "{victim}: {error:?}");
        }
    }
}
