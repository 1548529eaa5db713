//! Portals as values: who is given one can use it, wherever it is and wherever the isolate is.

use offshoot::prelude::*;
use offshoot::{Error, Exit, Isolation, current};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{both, held, mark, processes, soon};
use std::time::{Duration, Instant};

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    total: u64,
    seen: Vec<u64>,
    other: Option<Portal<Counter>>,
}

impl Counter {
    fn add(&mut self, by: u64) -> u64 {
        self.total += by;
        self.total
    }

    fn note(&mut self, n: u64) {
        self.seen.push(n);
    }

    fn seen(&self) -> Vec<u64> {
        self.seen.clone()
    }

    async fn fails(&mut self) -> Result<()> {
        Ok("x".parse::<u64>().map(drop)?)
    }

    fn other(&self) -> Option<Portal<Counter>> {
        self.other.clone()
    }

    fn other_runs_as(&self) -> Option<String> {
        let other = self.other.as_ref()?;
        Some(format!("{:?}", other.isolation()))
    }

    async fn other_adds(&mut self, by: u64) -> Result<u64> {
        let other = self.other.as_ref().ok_or_else(|| Error::other("none"))?;
        other.ask(Counter::add, by).await
    }

    async fn holds(&mut self) -> Result<()> {
        mark("holding");
        offshoot::sleep(Duration::from_secs(3_600)).await
    }

    fn keep(&mut self, other: Option<Portal<Counter>>) {
        self.other = other;
    }
}

async fn add_to(counter: Portal<Counter>, by: u64) -> Result<u64> {
    counter.ask(Counter::add, by).await
}

async fn pid_of(portal: Portal) -> Result<i32> {
    portal
        .call(async || std::process::id().cast_signed(), ())
        .await
}

async fn echo(portal: Portal<Counter>) -> Portal<Counter> {
    portal
}

async fn own() -> Result<Portal> {
    current().portal()
}

async fn forever() -> Result<()> {
    mark("begun");
    offshoot::sleep(Duration::from_secs(3_600)).await
}

/// Takes portals and gives each back after it has used it.
async fn used(
    mut peer: Peer<Portal<Counter>, (Portal<Counter>, u64), Portal<Counter>>,
    first: Portal<Counter>,
) -> Result<Portal<Counter>> {
    first.ask(Counter::add, 1).await?;
    peer.started(first.clone())?;
    while let Some(portal) = peer.next().await? {
        let total = portal.ask(Counter::add, 1).await?;
        peer.send((portal, total)).await?;
    }
    Ok(first)
}

async fn doubles(mut peer: Peer<u64, u64, u64>) -> Result<u64> {
    peer.started(7)?;
    let mut sum = 0;
    while let Some(n) = peer.next().await? {
        sum += n;
        peer.send(2 * n).await?;
    }
    Ok(sum)
}

/// Opens a dialogue on an isolate that it was given, and has let go of the portal by then.
async fn opens(portal: Portal, items: u64) -> Result<u64> {
    let (mut link, first) = portal.open(doubles, ()).await?;
    drop(portal);
    assert_eq!(first, 7);
    for n in 0..items {
        link.send(n).await?;
        assert_eq!(link.next().await?, Some(2 * n));
    }
    link.result().await?
}

async fn leaves_open(portal: Portal) -> Result<()> {
    async fn waits(mut peer: Peer<u64, u64>) -> Result<()> {
        let cancelled = offshoot_tests::Guard("far task dropped".to_owned());
        peer.started(())?;
        let ended = peer.next().await;
        mark(match ended {
            Err(error) if error.is_cancelled() => "far task cancelled",
            _ => "far task ended otherwise",
        });
        drop(cancelled);
        Ok(())
    }
    let (link, ()) = portal.open(waits, ()).await?;
    mark("open");
    let never = forever().await;
    drop(link);
    never
}

/// Gives a portal down through as many isolates as there are names, and uses it in the last.
async fn down(names: Vec<String>, counter: Portal<Counter>, by: u64) -> Result<u64> {
    let Some((name, below)) = names.split_first() else {
        return counter.ask(Counter::add, by).await;
    };
    offshoot::nursery(async |nursery| {
        let p = nursery.spawn(name.as_str()).await?;
        p.call(down, (below.to_vec(), counter, by)).await?
    })
    .await
}

/// Starts isolates one below the other, and gives up a portal to the last.
async fn up(mut peer: Peer<(), (), Portal<Counter>>, names: Vec<String>) -> Result<()> {
    let (name, below) = names.split_first().ok_or_else(|| Error::other("no name"))?;
    offshoot::nursery(async |nursery| {
        if below.is_empty() {
            let counter = nursery.start(name.as_str(), Counter::default()).await?;
            peer.started(counter)?;
            assert_eq!(peer.next().await?, None);
            return Ok(());
        }
        let p = nursery.spawn(name.as_str()).await?;
        let (mut link, counter) = p.open(up, below.to_vec()).await?;
        peer.started(counter)?;
        assert_eq!(peer.next().await?, None);
        link.result().await?
    })
    .await
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

fn kill(pid: i32) {
    Pidfd::open(pid)
        .and_then(|pidfd| pidfd.kill())
        .expect("it lives");
}

async fn tells(portal: Portal<Counter>, count: u64) -> Result<()> {
    for n in 0..count {
        portal.tell(Counter::note, n).await?;
    }
    Ok(())
}

both! {
    async fn siblings_call_each_other(_t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let farm = nursery.spawn("farm").await?;
            assert_eq!(farm.call(add_to, (counter.clone(), 5)).await??, 5);
            assert_eq!(counter.ask(Counter::add, 1).await?, 6);
            let other = nursery.spawn("other").await?;
            let pid = other.call(async || std::process::id().cast_signed(), ()).await?;
            assert_eq!(farm.call(pid_of, other.clone()).await??, pid);
            assert_eq!(farm.call(opens, (other, 100)).await??, 4950);
            Ok(())
        })
        .await?;
    }

    async fn all_that_crosses_may_hold_portals(_t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            // A state, and one that came by it.
            let state = Counter { other: Some(counter.clone()), ..Counter::default() };
            let second = nursery.start("second", state).await?;
            assert_eq!(second.ask(Counter::other_adds, 1).await??, 1);
            // A result, and within other values.
            let farm = nursery.spawn("farm").await?;
            async fn pairs(all: Vec<(String, Portal<Counter>)>) -> Vec<Option<Portal<Counter>>> {
                all.into_iter().map(|(name, portal)| (name == "a").then_some(portal)).collect()
            }
            let named = vec![("a".to_owned(), counter.clone()), ("b".to_owned(), second.clone())];
            let back = farm.call(pairs, named).await?;
            assert_eq!(back.len(), 2);
            assert!(back[1].is_none());
            assert_eq!(back[0].as_ref().expect("the first").ask(Counter::add, 1).await?, 2);
            // The first value, the items and the result of a dialogue.
            let (mut link, first) = farm.open(used, counter.clone()).await?;
            assert_eq!(first.ask(Counter::add, 1).await?, 4);
            link.send(second.clone()).await?;
            let (second, total) = link.next().await?.expect("an item");
            assert_eq!(total, 1);
            assert_eq!(second.ask(Counter::add, 1).await?, 2);
            assert_eq!(link.result().await??.ask(Counter::add, 1).await?, 5);
            // A tell.
            second.tell(Counter::keep, None).await?;
            assert!(second.ask(Counter::other_adds, 1).await?.is_err());
            Ok(())
        })
        .await?;
    }

    async fn a_portal_goes_down_and_up_through_many(_t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let a = nursery.spawn("a").await?;
            let names = ["b", "c", "d"].map(str::to_owned).to_vec();
            assert_eq!(a.call(down, (names.clone(), counter.clone(), 3)).await??, 3);
            // From the bottom up; and across to another branch.
            let (mut link, deep) = a.open(up, names).await?;
            assert_eq!(deep.origin().path, "root/a/b/c/d");
            assert_eq!(deep.ask(Counter::add, 2).await?, 2);
            let other = nursery.spawn("other").await?;
            assert_eq!(other.call(add_to, (deep.clone(), 2)).await??, 4);
            deep.ask(Counter::keep, Some(counter.clone())).await?;
            assert_eq!(deep.ask(Counter::other_adds, 4).await??, 7);
            link.result().await??;
            assert!(matches!(deep.ended().await, Exit::Completed));
            let error = deep.ask(Counter::add, 1).await.unwrap_err();
            assert!(error.is_ended(), "{error:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_portal_that_comes_back_is_the_one_that_went(t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let here = nursery.spawn_local("here").await?;
            let farm = nursery.spawn("farm").await?;
            let before = (fds(), threads());
            let back = farm.call(echo, counter.clone()).await?;
            let counters = counter.clone();
            // Also of a thread of this process, and by the isolate itself.
            let me = current().portal::<()>()?;
            async fn echo_plain(portal: Portal) -> Portal { portal }
            let here_again = farm.call(echo_plain, (*here).clone()).await?;
            assert_eq!(here_again.isolation(), if t.isolation == Isolation::Serde { Isolation::Thread } else { here.isolation() });
            let me_again = farm.call(echo_plain, me).await?;
            assert_eq!(me_again.isolation(), Isolation::Thread);
            let own_of_farm = farm.call(own, ()).await??;
            assert_eq!(own_of_farm.origin(), farm.origin());
            // Nothing goes by way of the one that gave them back.
            drop(nursery.spawn("x").await?);
            farm.cancel().await;
            farm.ended().await;
            assert_eq!(back.ask(Counter::add, 1).await?, 1);
            assert_eq!(counters.ask(Counter::add, 1).await?, 2);
            assert_eq!(here_again.call(async || 3, ()).await?, 3);
            let error = own_of_farm.call(async || (), ()).await.unwrap_err();
            assert!(error.is_cancelled(), "{error:?}");
            drop((back, here_again, me_again, own_of_farm));
            // But for two of each process that waits in reserve.
            soon("no descriptor is left of it", || fds() <= before.0 + 12).await?;
            Ok(())
        })
        .await
        .or_else(|error| if error.is_cancelled() { Ok(()) } else { Err(error) })?;
    }

    async fn a_portal_comes_home_by_whatever_way(t: T) {
        async fn give(counter: Portal<Counter>, keeper: Portal<Counter>) -> Result<()> {
            keeper.ask(Counter::keep, Some(counter)).await
        }
        async fn tell_and_drop(counter: Portal<Counter>, keeper: Portal<Counter>) -> Result<()> {
            keeper.tell(Counter::keep, Some(counter)).await
        }
        async fn fetch(keeper: Portal<Counter>) -> Result<Option<Portal<Counter>>> {
            keeper.ask(Counter::other, ()).await
        }
        async fn narrowed(counter: Portal<Counter>, keeper: Portal<Counter>) -> Result<()> {
            let narrow = counter.narrow().ask(Counter::add).portal();
            keeper.ask(Counter::keep, Some(narrow)).await
        }
        async fn by_another(counter: Portal<Counter>, keeper: Portal<Counter>, third: Portal) -> Result<()> {
            third.call(give, (counter, keeper)).await?
        }
        offshoot::nursery(async |nursery| {
            let counter = nursery.start_local("counter", Counter::default()).await?;
            let keeper = nursery.start_local("keeper", Counter::default()).await?;
            let farm = nursery.spawn("farm").await?;
            let third = nursery.spawn("third").await?;
            let both = || ((*counter).clone(), (*keeper).clone());
            let mut total = 0;
            // By a connection to another isolate of its process, where it is found as what it is.
            farm.call(give, both()).await??;
            let here = keeper.ask(Counter::other_runs_as, ()).await?;
            assert_eq!(here, Some(format!("{:?}", counter.isolation())));
            total += 1;
            assert_eq!(keeper.ask(Counter::other_adds, 1).await??, total);
            // With less than what was given, and from who was given it by a third.
            farm.call(narrowed, both()).await??;
            total += 1;
            assert_eq!(keeper.ask(Counter::other_adds, 1).await??, total);
            let (one, two) = both();
            farm.call(by_another, (one, two, third.clone())).await??;
            total += 1;
            assert_eq!(keeper.ask(Counter::other_adds, 1).await??, total);
            // All that the sender had is gone by the time that it is read.
            for _ in 0..if t.is_process() { 200 } else { 10 } {
                keeper.ask(Counter::keep, None).await?;
                farm.call(tell_and_drop, both()).await??;
                while keeper.ask(Counter::other_runs_as, ()).await?.is_none() {
                    offshoot::sleep(Duration::from_millis(1)).await?;
                }
                total += 1;
                assert_eq!(keeper.ask(Counter::other_adds, 1).await??, total);
                // By one thread it comes back, and by another its sockets end.
                let back = farm.call(fetch, (*keeper).clone()).await??.expect("it is kept");
                total += 1;
                assert_eq!(back.ask(Counter::add, 1).await?, total);
            }
            Ok(())
        })
        .await?;
    }

    async fn errors_come_with_origin_and_route(_t: T) {
        async fn asks(counter: Portal<Counter>) -> Result<()> {
            let inner = counter.ask(Counter::fails, ()).await?.unwrap_err();
            assert!(inner.type_name().is_some_and(|name| name.ends_with("ParseIntError")));
            counter.call(async || -> () { panic!("on purpose") }, ()).await
        }
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            let mut asked = None;
            // The panic ends the nursery of the isolate, which is none of the call's.
            let inner: Result<()> = offshoot::nursery(async |inner| {
                let counter = inner.start("counter", Counter::default()).await?;
                asked = Some(nursery.task(farm.call(asks, counter.clone())));
                counter.ended().await;
                Ok(())
            })
            .await;
            assert!(inner.unwrap_err().is_panic());
            let error = asked.expect("it was asked").await??.unwrap_err();
            assert!(error.is_panic(), "{error:?}");
            assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/counter"));
            Ok(())
        })
        .await?;
    }

    async fn order_holds_and_a_slow_receiver_slows_its_sender(_t: T) {
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let farm = nursery.spawn("farm").await?;
            farm.call(tells, (counter.clone(), 5_000)).await??;
            let all: Vec<u64> = (0..5_000).collect();
            soon("all has come", || true).await?;
            while counter.ask(Counter::seen, ()).await?.len() < all.len() {
                offshoot::sleep(Duration::from_millis(1)).await?;
            }
            assert_eq!(counter.ask(Counter::seen, ()).await?, all);
            Ok(())
        })
        .await?;
    }

    fn small_mailboxes_do_not_stall(t: T) {
        for mailbox in [1, 2, 3, 7] {
            let result = t.builder().mailbox(mailbox).calls_max(1).run(async || {
                offshoot::nursery(async |nursery| {
                    let counter = nursery.start("counter", Counter::default()).await?;
                    let farm = nursery.spawn("farm").await?;
                    farm.call(tells, (counter.clone(), 100)).await??;
                    let seen = farm.call(
                        async |counter: Portal<Counter>| counter.ask(Counter::seen, ()).await,
                        counter,
                    );
                    assert_eq!(seen.await??.len(), 100);
                    Ok(())
                })
                .await
            });
            result.expect("no failure");
        }
    }

    async fn what_was_told_before_a_portal_is_dropped_is_done(_t: T) {
        async fn tell_and_drop(portal: Portal<Counter>, n: u64) -> Result<()> {
            portal.tell(Counter::note, n).await
        }
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let farm = nursery.spawn("farm").await?;
            for n in 0..50 {
                farm.call(tell_and_drop, (counter.clone(), n)).await??;
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while counter.ask(Counter::seen, ()).await?.len() < 50 {
                assert!(Instant::now() < deadline, "one was lost");
            }
            Ok(())
        })
        .await?;
    }

    async fn a_dead_isolate_is_known_as_such_and_by_what_it_died_of(_t: T) {
        async fn look(portal: Portal<Counter>) -> Result<Option<Exit>> {
            let error = portal.ask(Counter::add, 1).await.unwrap_err();
            assert!(error.is_ended() || error.is_cancelled(), "{error:?}");
            Ok(portal.exit())
        }
        async fn awaits(portal: Portal<Counter>) -> Exit {
            mark("awaits");
            portal.ended().await
        }
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            let (one, two) = offshoot::nursery(async |inner| {
                let one = inner.start("one", Counter::default()).await?;
                let two = inner.start("two", Counter::default()).await?;
                farm.call(add_to, (one.clone(), 1)).await??;
                // Held while it ends.
                let waits = nursery.task(farm.call(awaits, two.clone()));
                held("awaits").await?;
                Ok((one, (two, waits)))
            })
            .await?;
            // Given when it has ended.
            assert!(matches!(farm.call(look, one).await??, Some(Exit::Completed)));
            assert!(matches!(two.1.await??, Exit::Completed));
            assert!(matches!(farm.call(look, two.0).await??, Some(Exit::Completed)));
            Ok(())
        })
        .await?;
    }

    async fn a_holder_can_cancel_what_it_was_given(_t: T) {
        async fn cancels(portal: Portal) -> Exit {
            portal.cancel().await;
            portal.ended().await
        }
        offshoot::nursery(async |nursery| {
            let victim = nursery.spawn("victim").await?;
            let farm = nursery.spawn("farm").await?;
            let exit = farm.call(cancels, victim.clone()).await?;
            let Exit::Cancelled(cancel) = exit else { panic!("{exit}") };
            assert!(cancel.to_string().contains("root/farm"), "{cancel}");
            assert!(matches!(victim.ended().await, Exit::Cancelled(_)));
            Ok(())
        })
        .await
        .or_else(|error| if error.is_cancelled() { Ok(()) } else { Err(error) })?;
    }

    async fn a_child_reaches_its_parent_by_what_it_was_given_and_no_further(_t: T) {
        async fn tries(portal: Portal<Counter>) -> Result<u64> {
            // A function, a dialogue, a method that was not allowed, and the end of it.
            for error in [
                portal.call(async || (), ()).await.map(drop).unwrap_err(),
                portal.open(doubles, ()).await.map(drop).unwrap_err(),
                portal.ask(Counter::seen, ()).await.map(drop).unwrap_err(),
                portal.tell(Counter::note, 1).await.unwrap_err(),
                portal.try_tell(Counter::note, 1).unwrap_err().error,
            ] {
                assert!(error.message().contains("narrow"), "{error:?}");
            }
            portal.cancel().await;
            // It cannot be widened, and stays narrow when it is given on.
            let wider = portal.narrow().methods().cancel().call(forever).portal();
            assert!(wider.ask(Counter::seen, ()).await.is_err());
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("below").await?;
                let tries = async |portal: Portal<Counter>| {
                    assert!(portal.ask(Counter::seen, ()).await.is_err());
                    portal.ask(Counter::add, 1).await
                };
                p.call(tries, wider).await?
            })
            .await?;
            portal.ask(Counter::add, 1).await
        }
        offshoot::nursery(async |nursery| {
            let counter = nursery.start_local("counter", Counter::default()).await?;
            let risky = nursery.spawn("risky").await?;
            let narrow = counter.narrow().ask(Counter::add).portal();
            assert_eq!(risky.call(tries, narrow).await??, 2);
            // What one narrow portal lets through, another need not.
            let all = counter.narrow().methods().open(doubles).portal();
            assert_eq!(risky.call(add_to, (all, 1)).await??, 3);
            assert_eq!(risky.call(add_to, ((*counter).clone(), 1)).await??, 4);
            assert!(counter.exit().is_none());
            Ok(())
        })
        .await?;
    }

    fn many_at_once_and_one_after_the_other_leave_nothing(t: T) {
        async fn counts() -> (usize, usize) { (fds(), threads()) }
        async fn adds(all: Vec<Portal<Counter>>) -> Result<u64> {
            let mut sum = 0;
            for portal in &all {
                sum = portal.ask(Counter::add, 1).await?;
            }
            Ok(sum)
        }
        // Nothing but what is counted starts a thread.
        let result = t.builder().reserve_threads(0).run(async || {
        offshoot::nursery(async |nursery| {
            let mut counters = Vec::new();
            for n in 0..40 {
                counters.push((*nursery.start_local(format!("c{n}"), Counter::default()).await?).clone());
            }
            let away = nursery.start("away", Counter::default()).await?;
            let farm = nursery.spawn("farm").await?;
            assert_eq!(farm.call(adds, counters.clone()).await??, 1);
            assert_eq!(farm.call(add_to, (away.clone(), 1)).await??, 1);
            let here = (fds(), threads());
            let there = farm.call(counts, ()).await?;
            let far = away.call(counts, ()).await?;
            for round in 2..=30 {
                assert_eq!(farm.call(adds, counters.clone()).await??, round);
                for _ in 0..10 {
                    farm.call(add_to, (away.clone(), 1)).await??;
                }
            }
            // Closed a moment after the answer, by another thread.
            soon("as many descriptors as before", || fds() <= here.0).await?;
            assert!(threads() <= here.1);
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let now = (farm.call(counts, ()).await?, away.call(counts, ()).await?);
                if now.0 <= there && now.1 <= far {
                    break;
                }
                assert!(Instant::now() < deadline, "{there:?} and {far:?} became {now:?}");
                offshoot::sleep(Duration::from_millis(5)).await?;
            }
            Ok(())
        })
        .await
        });
        result.expect("no failure");
    }

    async fn a_dialogue_with_the_own_isolate_waits_for_nothing(_t: T) {
        async fn itself(mut peer: Peer<(), u64>) -> Result<u64> {
            peer.started(())?;
            let me = current().portal::<()>()?;
            let (mut link, first) = me.open(doubles, ()).await?;
            link.send(21).await?;
            peer.send(link.next().await?.unwrap_or_default()).await?;
            assert_eq!(link.result().await??, 21);
            Ok(first)
        }
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            let (mut link, ()) = farm.open(itself, ()).await?;
            assert_eq!(link.next().await?, Some(42));
            assert_eq!(link.result().await??, 7);
            Ok(())
        })
        .await?;
    }

    async fn sends_that_are_given_up_in_the_middle_break_no_frame(_t: T) {
        async fn slow(mut peer: Peer<Vec<u64>, (), ()>) -> Result<Vec<u64>> {
            peer.started(())?;
            let mut seen = Vec::new();
            while let Some(item) = peer.next().await? {
                assert!(item.iter().all(|n| *n == item[0]) && item.len() == 20_000);
                seen.push(item[0]);
                offshoot::sleep(Duration::from_micros(300)).await?;
            }
            Ok(seen)
        }
        async fn sends(portal: Portal) -> Result<(Vec<u64>, Vec<u64>)> {
            let (mut link, ()) = portal.open(slow, ()).await?;
            let mut sent = Vec::new();
            for n in 0..400 {
                // Some come to their end, and most wait for room when they are dropped.
                match offshoot::timeout(Duration::from_micros(100), link.send(vec![n; 20_000])).await {
                    Ok(result) => {
                        result?;
                        sent.push(n);
                    }
                    Err(late) => assert!(late.is_timeout(), "{late:?}"),
                }
            }
            Ok((sent, link.result().await??))
        }
        offshoot::nursery(async |nursery| {
            let served = nursery.spawn("served").await?;
            let farm = nursery.spawn("farm").await?;
            let other = nursery.task(farm.call(opens, (served.clone(), 100)));
            let (sent, seen) = farm.call(sends, served.clone()).await??;
            assert_eq!(sent, seen, "what was accepted, in order");
            assert_eq!(other.await???, 4950);
            Ok(())
        })
        .await?;
    }

    async fn a_peer_that_is_told_too_late_is_no_harm(_t: T) {
        async fn ends_at_once(mut peer: Peer<u64, u64, ()>) -> u64 {
            peer.started(()).expect("the first time");
            9
        }
        async fn late(portal: Portal) -> Result<u64> {
            let mut sum = 0;
            for _ in 0..50 {
                let (mut link, ()) = portal.open(ends_at_once, ()).await?;
                // For a dialogue that is over by then, or is not.
                let _ = link.send(1).await;
                drop(link.cancel());
                sum += link.result().await.unwrap_or(9);
            }
            Ok(sum)
        }
        offshoot::nursery(async |nursery| {
            let served = nursery.spawn("served").await?;
            let farm = nursery.spawn("farm").await?;
            assert_eq!(farm.call(late, served.clone()).await??, 450);
            assert_eq!(farm.call(opens, (served, 10)).await??, 45);
            Ok(())
        })
        .await?;
    }

    async fn too_many_in_one_message_are_refused(_t: T) {
        async fn none(_all: Vec<Portal>) {}
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn(Isolate::named("farm").process()).await?;
            let all = vec![current().portal::<()>()?; 129];
            let error = farm.call(none, all).await.unwrap_err();
            assert!(error.message().contains("128 portals"), "{error:?}");
            Ok(())
        })
        .await?;
    }
}

processes! {
    async fn a_call_to_one_that_is_killed_fails_in_time_and_says_so(_t: T) {
        async fn asks(portal: Portal<Counter>) -> Result<()> {
            let error = portal.ask(Counter::holds, ()).await.unwrap_err();
            mark("told");
            assert!(matches!(error.exit(), Some(Exit::Killed { signal: 9, .. } | Exit::Lost { .. })), "{error:?}");
            assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/counter"));
            let error = portal.call(async || (), ()).await.unwrap_err();
            assert!(error.is_ended(), "{error:?}");
            Ok(())
        }
        let result: Result<()> = offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            let inner: Result<()> = offshoot::nursery(async |inner| {
                let counter = inner.start("counter", Counter::default()).await?;
                let pid = counter.origin().pid;
                let asked = nursery.task(farm.call(asks, counter));
                held("holding").await?;
                let killed = Instant::now();
                kill(pid);
                asked.await???;
                assert!(killed.elapsed() < Duration::from_millis(500), "{:?}", killed.elapsed());
                Ok(())
            })
            .await;
            assert!(inner.unwrap_err().is_ended());
            // It costs its caller nothing.
            assert_eq!(farm.call(async || 5, ()).await?, 5);
            Ok(())
        })
        .await;
        result?;
    }

    async fn a_holder_that_is_killed_costs_the_isolate_nothing(_t: T) {
        offshoot::nursery(async |nursery| {
            let served = nursery.spawn("served").await?;
            let counter = nursery.start("counter", Counter::default()).await?;
            let before = served.call(async || (fds(), threads()), ()).await?;
            for round in 0..3 {
                let inner: Result<()> = offshoot::nursery(async |inner| {
                    let holder = inner.spawn("holder").await?;
                    holder.call(add_to, (counter.clone(), 1)).await??;
                    let pid = holder.origin().pid;
                    nursery.task(holder.call(leaves_open, served.clone())).detach();
                    held("open").await?;
                    kill(pid);
                    holder.ended().await;
                    Ok(())
                })
                .await;
                assert!(inner.unwrap_err().is_ended());
                held("far task cancelled").await?;
                held("far task dropped").await?;
                assert_eq!(counter.ask(Counter::add, 0).await?, round + 1);
                for sign in ["open", "far task cancelled", "far task dropped"] {
                    std::fs::remove_file(offshoot_tests::dir().join("signs").join(sign)).expect("the sign");
                }
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            // But for its porter, with a poll, a waker and a thread.
            loop {
                let now = served.call(async || (fds(), threads()), ()).await?;
                if now.0 <= before.0 + 3 && now.1 <= before.1 + 1 {
                    break;
                }
                assert!(Instant::now() < deadline, "{before:?} became {now:?}");
            }
            Ok(())
        })
        .await?;
    }

    async fn whoever_introduced_them_may_end(_t: T) {
        async fn between(counter: Portal<Counter>, user: Portal<Counter>) -> Result<()> {
            user.ask(Counter::keep, Some(counter)).await
        }
        offshoot::nursery(async |nursery| {
            let counter = nursery.start("counter", Counter::default()).await?;
            let user = nursery.start("user", Counter::default()).await?;
            let inner: Result<()> = offshoot::nursery(async |inner| {
                let middle = inner.spawn("middle").await?;
                middle.call(between, (counter.clone(), user.clone())).await??;
                kill(middle.origin().pid);
                middle.ended().await;
                Ok(())
            })
            .await;
            assert!(inner.is_err());
            for n in 1..=100 {
                assert_eq!(user.ask(Counter::other_adds, 1).await??, n);
            }
            Ok(())
        })
        .await?;
    }

    async fn a_panic_of_the_isolate_reaches_who_was_introduced(_t: T) {
        async fn asks(portal: Portal) -> Result<()> {
            portal.call(async || -> () { panic!("on purpose") }, ()).await
        }
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            let mut asked = None;
            let inner: Result<()> = offshoot::nursery(async |inner| {
                let bad = inner.spawn_local("bad").await?;
                asked = Some(nursery.task(farm.call(asks, (*bad).clone())));
                assert!(matches!(bad.ended().await, Exit::Panicked(_)));
                Ok(())
            })
            .await;
            assert!(inner.unwrap_err().is_panic());
            let error = asked.expect("it was asked").await??.unwrap_err();
            assert!(error.is_panic(), "{error:?}");
            Ok(())
        })
        .await?;
    }
}
