//! Cancel scopes, and who cancelled whom: each cancellation has one author, and everybody is told the same.

use offshoot::prelude::*;
use offshoot::{Canceller, ErrorKind, current};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{Guard, T, append, both, held, lines, mark, marked};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(3_600);
const SHORT: Duration = Duration::from_millis(30);

fn answers() -> u32 {
    7
}

async fn sleeps() -> Result<&'static str> {
    offshoot::sleep(LONG).await?;
    Ok("slept")
}

/// The scopes of the table of trio, in the isolate that is under test.
async fn deadlines() -> Result<()> {
    // Its own deadline is absorbed, a value and another error are not.
    assert_eq!(offshoot::move_on_after(SHORT, sleeps).await?, None);
    assert_eq!(
        offshoot::move_on_after(LONG, async || Ok(1)).await?,
        Some(1)
    );
    let late = offshoot::move_on_after(SHORT, async || {
        let cancel = offshoot::cancelled().await;
        assert_eq!(cancel.by, Canceller::Deadline);
        Ok(2)
    });
    assert_eq!(late.await?, Some(2));
    let other = offshoot::move_on_after(SHORT, async || {
        offshoot::cancelled().await;
        "x".parse::<u8>()?;
        Ok(())
    });
    assert!(
        other
            .await
            .unwrap_err()
            .to_string()
            .contains("invalid digit")
    );
    // Nothing of it is left afterwards.
    offshoot::checkpoint().await?;

    // Nested: each absorbs its own.
    let outer = offshoot::move_on_after(LONG, async || {
        let inner = offshoot::move_on_after(SHORT, sleeps).await?;
        assert_eq!(inner, None);
        offshoot::checkpoint().await?;
        Ok("outer")
    });
    assert_eq!(outer.await?, Some("outer"));
    let outer = offshoot::move_on_after(SHORT, async || {
        let inner = offshoot::move_on_after(LONG, sleeps).await;
        assert!(inner.as_ref().unwrap_err().is_cancelled());
        inner
    });
    assert_eq!(outer.await?, None);

    // An inner deadline has passed, and then an outer one: that is not the inner's to absorb.
    let outer = offshoot::move_on_after(SHORT * 2, async || {
        let inner = offshoot::move_on_after(SHORT, async || {
            offshoot::cancelled().await;
            offshoot::shield(LONG, async || offshoot::sleep(SHORT * 3).await).await?;
            offshoot::checkpoint().await
        })
        .await;
        assert!(inner.is_err(), "{inner:?}");
        inner
    });
    assert_eq!(outer.await?, None);

    // Through a nursery, whose tasks it reaches.
    let nursed = offshoot::move_on_after(SHORT, async || {
        offshoot::nursery(async |nursery| {
            nursery.task(sleeps()).detach();
            sleeps().await
        })
        .await
    });
    assert_eq!(nursed.await?, None);

    let error = offshoot::fail_after(SHORT, sleeps).await.unwrap_err();
    assert!(error.is_timeout() && !error.is_cancelled(), "{error:?}");
    assert_eq!(offshoot::fail_after(LONG, async || Ok(3)).await?, 3);
    Ok(())
}

async fn ignores_its_deadline() -> Result<Option<()>> {
    offshoot::move_on_after(SHORT, async || {
        let _guard = Guard("dropped".to_owned());
        std::future::pending().await
    })
    .await
}

async fn is_cancelled_from_outside() -> Result<()> {
    let cancelled = offshoot::move_on_after(LONG, async || {
        mark("begun");
        sleeps().await
    })
    .await
    .unwrap_err();
    append("inside", &cancelled.to_string());
    Err(cancelled)
}

async fn says_goodbye(bound_ms: u64, goodbye_ms: u64) -> Result<()> {
    mark("begun");
    let cancelled = sleeps().await.unwrap_err();
    assert!(offshoot::checkpoint().await.is_err());
    let began = Instant::now();
    let goodbye = offshoot::shield(Duration::from_millis(bound_ms), async || {
        offshoot::nursery(async |nursery| {
            let said = nursery.task(offshoot::sleep(Duration::from_millis(goodbye_ms)));
            said.await?
        })
        .await
    })
    .await;
    let took = began.elapsed();
    let word = if goodbye.is_ok() { "said" } else { "cut short" };
    assert!(
        took >= Duration::from_millis(bound_ms.min(goodbye_ms)),
        "{took:?}"
    );
    append("goodbye", word);
    assert!(offshoot::checkpoint().await.is_err());
    Err(cancelled)
}

/// Puts the warnings that are logged in this process into the sign "warned".
fn hear_warnings() {
    struct Hears;
    struct Message<'a>(&'a mut String);
    impl tracing::field::Visit for Message<'_> {
        fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
            self.0.push_str(&format!("{}={value:?} ", field.name()));
        }
    }
    impl tracing::Subscriber for Hears {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = String::new();
            event.record(&mut Message(&mut line));
            append("warned", &line.replace('\n', " "));
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    // Thread isolates of one process share it.
    let _ = tracing::subscriber::set_global_default(Hears);
}

/// Would wait for longer than it is let, under a shield of so many milliseconds.
async fn says_too_long_a_goodbye(bound_ms: u64) -> Result<()> {
    hear_warnings();
    mark("begun");
    let cancelled = sleeps().await.unwrap_err();
    let shield = Duration::from_millis(bound_ms);
    let _ = offshoot::shield(shield, async || std::future::pending::<()>().await).await;
    Err(cancelled)
}

/// Cancelled while it is there, below `grace`. What the tree gives, and how the isolate ended.
fn cut_off(t: &T, bound_ms: u64) -> (Result<()>, Option<Exit>) {
    t.builder()
        .grace(Duration::from_millis(200))
        .run(async move || {
            let mut exit = None;
            let result = offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let said = nursery.task(p.call(says_too_long_a_goodbye, bound_ms));
                held("begun").await?;
                p.cancel().await;
                exit = Some(p.ended().await);
                // Of the cancellation, which is no news here.
                let _ = said.await;
                Ok(())
            })
            .await;
            Ok((result, exit))
        })
        .expect("what fails is in its result")
}

/// The far side of a row of the table.
async fn far(
    mut peer: Peer<u64, u64>,
    row: String,
    stage: String,
    author: String,
) -> Result<String> {
    let _guard = Guard(format!("{row} over"));
    if stage != "before started" {
        peer.started(())?;
    }
    if stage == "streaming" {
        peer.send(1).await?;
    }
    if stage == "one side closed" {
        peer.close();
    }
    mark(&format!("{row} there"));
    if author == "peer" {
        peer.cancel().await;
        // What the peer does afterwards fails, too, but it goes on.
        if stage != "before started" {
            assert!(peer.next().await.unwrap_err().is_cancelled());
        }
        offshoot::checkpoint().await?;
        return Ok("its result".to_owned());
    }
    let cancel = offshoot::cancelled().await;
    append(&format!("{row} far"), &cancel.to_string());
    // As any code does that goes on.
    offshoot::checkpoint().await?;
    Ok("its result".to_owned())
}

/// What the opener does at that stage, until something ends it.
async fn near(p: &Portal, row: &str, stage: &str, author: &str) -> Result<String> {
    let args = (row.to_owned(), stage.to_owned(), author.to_owned());
    let opening = p.open(far, args);
    let there = format!("{row} there");
    if stage == "before started" {
        if author == "opener" {
            // There is nothing else by which to cancel it.
            let late = offshoot::timeout(LONG, async {
                let mut opening = std::pin::pin!(opening);
                let there = std::pin::pin!(held(&there));
                futures_util::future::select(opening.as_mut(), there).await;
            });
            late.await?;
            return Ok("given up".to_owned());
        }
        let (mut link, ()) = opening.await?;
        return link.result().await?;
    }
    let (mut link, ()) = opening.await?;
    if stage == "streaming" {
        assert_eq!(link.next().await?, Some(1));
    }
    held(&there).await?;
    if author == "opener" {
        link.cancel().await?;
        link.cancel().await?;
        assert!(link.send(1).await.is_err());
        // Cancelled by itself, it can still see how it ends.
        let told = link.result().await?;
        assert_eq!(link.next().await?, None);
        return told;
    }
    match stage {
        "streaming" => link.next().await.map(|item| format!("{item:?}")),
        "one side closed" => {
            if author != "peer" {
                assert_eq!(link.next().await?, None);
            }
            loop {
                link.send(1).await?;
            }
        }
        _ => link.result().await?,
    }
}

const STAGES: [&str; 4] = [
    "before started",
    "streaming",
    "one side closed",
    "during result",
];

/// One row: what the opener is told, and what the far side was.
async fn row(
    stage: &str,
    author: &str,
    deadline: Duration,
) -> Result<(Result<String>, Vec<String>, bool)> {
    let name = format!("{stage} by {author} {deadline:?}").replace(' ', "_");
    let there = format!("{name} there");
    let mut told = None;
    let nursed = offshoot::nursery(async |outer| {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            match author {
                "third party" => {
                    let other = outer.spawn_local("other").await?;
                    let (target, there) = (p.clone(), there.clone());
                    nursery
                        .task(other.run(async move || {
                            held(&there).await?;
                            target.cancel().await;
                            Ok::<_, offshoot::Error>(())
                        }))
                        .detach();
                }
                "parent" => nursery
                    .task(async {
                        held(&there).await.expect("it gets there");
                        nursery.cancel();
                    })
                    .detach(),
                _ => {}
            }
            told = Some(match author {
                "timeout" => {
                    let late = offshoot::fail_after(deadline, async || {
                        near(&p, &name, stage, author).await
                    });
                    late.await
                }
                _ => near(&p, &name, stage, author).await,
            });
            Ok(())
        })
        .await
    });
    nursed.await?;
    let begun = marked(&there);
    assert_eq!(
        begun,
        marked(&format!("{name} over")),
        "{stage} by {author}: it still runs"
    );
    let seen = lines(&format!("{name} far"));
    Ok((told.expect("the row was run"), seen, begun))
}

/// All stages of one author: what the opener's error, and the far side's cancellation, say of who it was.
async fn author(author: &str, near: &str, far: Option<&str>) -> Result<()> {
    for stage in STAGES {
        // On a loaded machine the deadline may pass before there is a far task.
        let mut deadline = Duration::from_millis(100);
        let (told, seen) = loop {
            let (told, seen, there) = row(stage, author, deadline).await?;
            if there || deadline > Duration::from_secs(3) {
                break (told, seen);
            }
            deadline *= 2;
        };
        match (near, &told) {
            (_, Ok(word)) if word == "given up" => {}
            (text, Err(error)) => {
                let right = error.is_cancelled() || (author == "timeout" && error.is_timeout());
                assert!(
                    right && error.to_string().contains(text),
                    "{stage} by {author}: {error:?}"
                );
            }
            (_, told) => panic!("{stage} by {author}: {told:?}"),
        }
        match far {
            Some(text) => {
                // Before it started, the opener that cancels is one that has let go.
                let text = text.replace(
                    "the other side",
                    if stage == "before started" {
                        "which dropped its"
                    } else {
                        "the other side"
                    },
                );
                assert_eq!(seen.len(), 1, "{stage} by {author}: {seen:?}");
                assert!(
                    seen[0].contains(text.split(" side").next().unwrap_or("")),
                    "{stage} by {author}: {seen:?}"
                );
            }
            None => assert!(seen.is_empty(), "{stage} by {author}: {seen:?}"),
        }
    }
    Ok(())
}

/// A row whose author is the keyboard: the root is interrupted, and nobody in it absorbs that.
async fn interrupted(stage: &str) -> Result<()> {
    let name = format!("{stage} by the keyboard").replace(' ', "_");
    let there = format!("{name} there");
    offshoot::nursery(async |nursery| {
        let p = nursery.spawn("p").await?;
        nursery
            .task(async {
                held(&there).await.expect("it gets there");
                let own = Pidfd::open(offshoot_sys::process::id()).expect("it lives");
                assert!(own.signal(libc::SIGINT).expect("it may"));
            })
            .detach();
        let told = near(&p, &name, stage, "the keyboard").await;
        let error = told.as_ref().unwrap_err().to_string();
        append(&format!("{name} near"), &error);
        told.map(drop)
    })
    .await
}

both! {
    fn a_dialogue_cancelled_by_the_keyboard(t: T) {
        for stage in STAGES {
            let error = t.builder().signals(true).run(async move || interrupted(stage).await).unwrap_err();
            assert!(error.is_cancelled() && error.to_string().contains("SIGINT"), "{stage}: {error:?}");
            let name = format!("{stage} by the keyboard").replace(' ', "_");
            let told = lines(&format!("{name} near"));
            assert!(told.len() == 1 && told[0].contains("cancelled by SIGINT"), "{stage}: {told:?}");
            let seen = lines(&format!("{name} far"));
            // By its isolate, which is taken down with the tree, or by its opener, which lets go: whichever is first.
            let who = |text: &String| text.contains("SIGINT") || text.contains("cancelled by root");
            assert!(seen.len() == 1 && seen.iter().all(who), "{stage}: {seen:?}");
            assert!(marked(&format!("{name} over")), "{stage}: it still runs");
        }
    }

    async fn a_scope_absorbs_its_own_deadline_and_nothing_else(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            p.call(deadlines, ()).await?
        })
        .await?;
    }

    fn what_ignores_its_deadline_is_dropped_after_the_grace(t: T) {
        let grace = Duration::from_millis(80);
        t.builder()
            .grace(grace)
            .run(async move || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let began = Instant::now();
                    assert_eq!(p.call(ignores_its_deadline, ()).await??, None);
                    assert!(marked("dropped") && began.elapsed() >= SHORT + grace);
                    Ok(())
                })
                .await
            })
            .expect("nothing failed");
    }

    async fn a_cancellation_from_outside_is_not_absorbed(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            nursery.task(p.call(is_cancelled_from_outside, ())).detach();
            held("begun").await?;
            p.cancel().await;
            p.ended().await;
            Ok(())
        })
        .await?;
        assert_eq!(lines("inside"), ["cancelled by root"]);
    }

    async fn a_shield_lets_a_goodbye_wait(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            nursery.task(p.call(says_goodbye, (1_000, 50))).detach();
            held("begun").await?;
            p.cancel().await;
            p.ended().await;
            Ok(())
        })
        .await?;
        assert_eq!(lines("goodbye"), ["said"]);
    }

    async fn a_shield_is_bounded(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            nursery.task(p.call(says_goodbye, (50, 3_600_000))).detach();
            held("begun").await?;
            p.cancel().await;
            p.ended().await;
            Ok(())
        })
        .await?;
        assert_eq!(lines("goodbye"), ["cut short"]);
    }

    /// The grace ends what a shield covers: the nursery fails by it, and names it.
    fn what_the_grace_cuts_of_a_shield_is_told(t: T) {
        let (result, exit) = cut_off(&t, 60_000);
        let error = result.expect_err("a shielded body was dropped");
        assert!(matches!(exit, Some(Exit::Cancelled(_))), "{exit:?}");
        let cut: Vec<_> = error.failures().into_iter().filter(|error| matches!(error.kind(), ErrorKind::Cut(_))).collect();
        assert_eq!(cut.len(), 1, "{}", error.report());
        assert_eq!(cut[0].origin().map(|origin| origin.path.as_str()), Some("root/p"));
        assert!(cut[0].message().contains("under a shield of 60s"), "{}", cut[0]);
        // Warned of when it was entered, and when it was cut.
        let warned = lines("warned");
        assert_eq!(warned.len(), 2, "{warned:?}");
        assert!(warned[0].contains("a shield of 60s is longer than the grace of"), "{warned:?}");
        assert!(warned[1].contains("was dropped"), "{warned:?}");
    }

    /// One that opens before is no news.
    fn a_shield_within_the_grace_is_not(t: T) {
        let (result, exit) = cut_off(&t, 50);
        // The body ignores it that the shield has opened, and is dropped as any other.
        assert!(result.is_ok(), "{result:?}");
        assert!(matches!(exit, Some(Exit::Cancelled(_))), "{exit:?}");
        assert_eq!(lines("warned"), Vec::<String>::new());
    }

    /// The same where a nursery cancels itself, and its isolate lives on.
    fn what_the_grace_of_a_nursery_cuts_is_told(t: T) {
        async fn has_a_nursery() -> Result<()> {
            offshoot::nursery(async |nursery| {
                drop(nursery.task(says_too_long_a_goodbye(60_000)));
                held("begun").await?;
                nursery.cancel();
                Ok(())
            })
            .await
        }
        let error = t
            .builder()
            .grace(Duration::from_millis(200))
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let error = p.call(has_a_nursery, ()).await?.expect_err("it was cut");
                    assert_eq!(p.call(answers, ()).await?, 7);
                    Ok(error)
                })
                .await
            })
            .expect("the isolate lives on");
        assert!(matches!(error.kind(), ErrorKind::Cut(_)), "{error:?}");
    }

    async fn without_a_cancellation_a_shield_is_nothing(_t: T) {
        async fn outlasts() -> Result<()> {
            offshoot::shield(Duration::from_millis(1), async || {
                offshoot::sleep(SHORT).await
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            p.call(outlasts, ()).await?
        })
        .await?;
    }

    async fn a_dialogue_cancelled_by_its_opener(_t: T) {
        author("opener", "cancelled by root, the other side", Some("cancelled by root, the other side")).await?;
    }

    async fn a_dialogue_cancelled_by_its_peer(_t: T) {
        author("peer", "cancelled by root/p, the other side", None).await?;
    }

    async fn a_dialogue_cancelled_by_a_third_party(_t: T) {
        author("third party", "cancelled by root/other", Some("cancelled by root/other")).await?;
    }

    async fn a_dialogue_cancelled_by_the_parent(_t: T) {
        author("parent", "cancelled by root", Some("cancelled by root")).await?;
    }

    async fn a_dialogue_cancelled_by_a_timeout(_t: T) {
        author("timeout", "did not end within", Some("cancelled by root, which dropped its")).await?;
        assert!(current().cancelled().is_none());
    }

    async fn a_real_error_wins_over_the_cancellation_that_it_causes(_t: T) {
        async fn relays(mut peer: Peer<u64, u64>) -> Result<u64> {
            peer.started(())?;
            // Fails for a reason of its own, and is cancelled by its own failure's consequences.
            offshoot::nursery(async |nursery| {
                let q = nursery.spawn("q").await?;
                nursery.task(async { offshoot::sleep(LONG).await }).detach();
                let (_link, ()) = q.open(waits, ()).await?;
                "x".parse::<u64>()?;
                Ok(1)
            })
            .await
        }
        async fn waits(mut peer: Peer<u64, u64>) -> Result<u64> {
            peer.started(())?;
            while let Some(_item) = peer.next().await? {}
            Ok(1)
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(relays, ()).await?;
            let error = link.result().await?.unwrap_err();
            assert!(!error.is_cancelled() && error.failures().len() == 1, "{error:?}");
            assert!(matches!(error.kind(), ErrorKind::Other) && error.to_string().contains("invalid digit"));
            Ok(())
        })
        .await?;
    }
}
