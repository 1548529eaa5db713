//! Errors on their way through several isolates: none loses a leaf, its origin, or where it came through.

use offshoot::prelude::*;
use offshoot::{Error, Window, current};
use offshoot_tests::{both, held, hold, mark, threads};
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
                    drop(nursery.task(stuck.run(async move || {
                        let opened = target.open(waits, ()).await;
                        mark("opened");
                        loop {
                            std::thread::sleep(Duration::from_secs(3_600));
                            std::hint::black_box(&opened);
                        }
                    })));
                    held("opened").await?;
                    drop(stuck.cancel());
                    stuck.ended().await;
                    Ok(())
                })
                .await
                .unwrap_err();
                assert_eq!(inner.exit().map(Exit::word), Some("abandoned"), "{inner:?}");
                held("seen").await?;
                let seen = offshoot_tests::lines("seen");
                assert_eq!(seen, ["cancelled by root/stuck, which dropped its side of the dialogue"]);
                p.call(|| (), ()).await
            })
            .await
        });
        result.expect("nothing else failed");
    }
}
