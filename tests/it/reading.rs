//! Who reads the link to a process: an isolate that waits for an answer, or the warden. Neither may keep
//! anything from anybody else.

use futures_util::future::{Either, join, poll_immediate, select, try_join_all};
use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use offshoot::prelude::*;
use offshoot::{sleep, timeout};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{SinceDeath, Stopwatch, both, hold, mark, marked, processes};
use std::time::Duration;

/// By when what does not depend on a blocked isolate has come.
const SOON: Duration = Duration::from_millis(100);
/// How long an isolate blocks here, unless it is let go.
const LONG: Duration = Duration::from_secs(5);

async fn echo(n: u64) -> u64 {
    n
}

async fn nap(ms: u64) -> u64 {
    sleep(Duration::from_millis(ms)).await.map_or(0, |()| ms)
}

async fn never() {
    std::future::pending().await
}

/// Makes the current isolate the one that reads the link, as calls one after the other do; it is awake
/// when this returns.
async fn borrow(p: &Portal) -> Result<()> {
    for n in 0..50 {
        nap(1).await;
        assert_eq!(p.call(echo, n).await?, n);
    }
    Ok(())
}

processes! {
    /// Another one's answer comes although the isolate that had borrowed the link blocks.
    async fn a_blocked_reader_keeps_nothing_from_others(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let reader = nursery.spawn_local("reader").await?;
            let blocked = reader.run({
                let p = p.clone();
                async move || {
                    borrow(&p).await?;
                    mark("blocked");
                    hold("go");
                    // And then it has its link again.
                    borrow(&p).await
                }
            });
            let others = async {
                while !marked("blocked") {
                    sleep(Duration::from_millis(1)).await?;
                }
                let clock = Stopwatch::start();
                assert_eq!(p.call(nap, 20).await?, 20);
                let took = clock.elapsed();
                mark("go");
                assert!(took < Duration::from_millis(20) + SOON, "it took {took:?}");
                Ok(())
            };
            let (blocked, others) = join(timeout(LONG, blocked), others).await;
            blocked???;
            others
        })
        .await?
    }

    /// As above, but what comes was asked for before, by one that sleeps already.
    async fn one_that_sleeps_already_is_woken_too(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let q = nursery.spawn("q").await?;
            let reader = nursery.spawn_local("reader").await?;
            // It sleeps on the link of `q`, so that of `p` is the reader's.
            let answer = select(p.call(nap, 400), q.call(never, ()));
            let blocked = reader.run({
                let p = p.clone();
                async move || {
                    borrow(&p).await?;
                    mark("blocked");
                    hold("go");
                    Ok::<_, offshoot::Error>(())
                }
            });
            let clock = Stopwatch::start();
            let waiting = async {
                let Either::Left((answer, _)) = answer.await else {
                    panic!("what never answers has answered");
                };
                let took = clock.elapsed();
                mark("go");
                assert_eq!(answer?, 400);
                // Without the warden's round it comes when the reader gives up, after many seconds.
                assert!(took < Duration::from_secs(2), "it took {took:?}");
                Ok(())
            };
            let (waiting, blocked) = join(waiting, timeout(LONG, blocked)).await;
            blocked???;
            waiting
        })
        .await?
    }

    /// The death of a process is told while the isolate that had borrowed its link blocks.
    async fn a_death_is_told_while_its_reader_is_blocked(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let pid = p.call(std::process::id, ()).await?;
            let reader = nursery.spawn_local("reader").await?;
            let blocked = reader.run({
                let p = p.clone();
                async move || {
                    borrow(&p).await?;
                    mark("blocked");
                    hold("go");
                    Ok::<_, offshoot::Error>(())
                }
            });
            let others = async {
                while !marked("blocked") {
                    sleep(Duration::from_millis(1)).await?;
                }
                let dead = SinceDeath::of(pid)?;
                Pidfd::open(pid as i32)?.kill()?;
                let exit = p.ended().await;
                let took = dead.elapsed();
                mark("go");
                assert!(matches!(exit, offshoot::Exit::Killed { .. }), "{exit}");
                assert!(took < SOON, "it took {took:?}");
                Ok::<_, offshoot::Error>(())
            };
            let (blocked, others) = join(timeout(LONG, blocked), others).await;
            blocked???;
            others
        })
        .await
        .expect_err("a process was killed");
    }
}

both! {
    /// One that sleeps until a process answers is woken by all else, as if it slept otherwise.
    async fn a_reader_is_woken_by_all_else(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let beside = nursery.spawn_local("beside").await?;
            let mut waits = p.call(never, ());
            let clock = Stopwatch::start();
            for n in 0..20 {
                // A timer,
                assert!(timeout(Duration::from_millis(1), &mut waits).await.is_err());
                // an answer of a thread, while what was awaited last is the process,
                let (answer, none) = join(beside.call(nap, 1), poll_immediate(&mut waits)).await;
                assert_eq!((answer?, none.is_none()), (1, true));
                // and of the process itself.
                let (answer, none) = join(p.call(echo, n), poll_immediate(&mut waits)).await;
                assert_eq!((answer?, none.is_none()), (n, true));
            }
            let took = clock.elapsed();
            assert!(took < Duration::from_secs(2), "it took {took:?}");
            Ok(())
        })
        .await?
    }

    /// So is one that has a poll of its own, be it made before or after.
    async fn a_reader_with_sockets_is_woken_by_them(t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            for _ in 0..3 {
                let (mut ours, mut theirs) = offshoot::net::UnixStream::pair()?;
                for n in 0..20 {
                    let mut buffer = [0; 8];
                    let mut waits = p.call(never, ());
                    assert!(poll_immediate(&mut waits).await.is_none());
                    let send = async {
                        p.call(nap, 1).await?;
                        theirs.write_all(&[n; 8]).await?;
                        Ok::<_, offshoot::Error>(())
                    };
                    let receive = timeout(Duration::from_secs(2), ours.read_exact(&mut buffer));
                    let (sent, received) = join(send, receive).await;
                    sent?;
                    received??;
                    assert_eq!(buffer, [n; 8]);
                }
            }
            Ok(())
        })
        .await?
    }

    /// Many that ask the same few: each gets its own answers, and nobody waits for ever.
    async fn many_share_a_link(t: T) {
        t.within(Duration::from_secs(60));
        offshoot::nursery(async |nursery| {
            let mut targets = Vec::new();
            for n in 0..2 {
                targets.push(nursery.spawn(format!("target-{n}")).await?);
            }
            let mut askers = Vec::new();
            for n in 0..4_u64 {
                let asker = nursery.spawn_local(Isolate::named(format!("asker-{n}"))).await?;
                askers.push((n, asker));
            }
            let asked = askers.iter().map(|(n, asker)| {
                let (n, targets) = (*n, targets.clone());
                asker.run(async move || {
                    for i in 0..200_u64 {
                        let target = &targets[usize::try_from(i % 2).unwrap_or(0)];
                        let calls = (0..=i % 3).map(|k| target.call(echo, n * 10_000 + i * 10 + k));
                        let answers = timeout(Duration::from_secs(10), try_join_all(calls)).await??;
                        let wanted: Vec<u64> = (0..=i % 3).map(|k| n * 10_000 + i * 10 + k).collect();
                        assert_eq!(answers, wanted);
                        if i % 50 == n {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                    Ok::<_, offshoot::Error>(())
                })
            });
            for done in try_join_all(asked).await? {
                done?;
            }
            Ok(())
        })
        .await?
    }
}
