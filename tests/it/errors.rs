//! P8: an error arrives with what it was made of, a value as itself, an end as what it was. And a
//! state that a panic left half-changed is never served again.

use offshoot::prelude::*;
use offshoot::{Error, ErrorKind, current};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{append, both, held, hold, lines, mark, processes};
use std::fmt;
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Unreadable(std::num::ParseIntError);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot read the setting")
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

fn read_setting(text: String) -> Result<u32> {
    text.parse()
        .map_err(|error| Error::other(Unreadable(error)))
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Own {
    Small { by: u8 },
    Text(String),
}

async fn own(n: u8) -> Result<u8, Own> {
    match n {
        0 => Err(Own::Small { by: 1 }),
        1 => Err(Own::Text("one".to_owned())),
        n => Ok(n),
    }
}

fn fails(inbox: &mut Inbox) -> Result<()> {
    inbox.serve()?;
    read_setting("x".to_owned()).map(drop)
}

fn nothing() {}

fn panics() {
    panic!("on purpose: {}", current().name());
}

/// A chain of isolates, each of which fails by what is below it.
fn fails_by_a_child(inbox: &mut Inbox) -> Result<()> {
    inbox.serve()?;
    Err(Error::other("the upper one"))
}

#[derive(Serialize, Deserialize)]
struct Pair {
    left: u32,
    right: u32,
}

impl Pair {
    fn half(&mut self) {
        self.left += 1;
        if self.left > 0 {
            panic!("between the two");
        }
        self.right += 1;
    }
    fn get(&self) -> (u32, u32) {
        append("served", "");
        (self.left, self.right)
    }
    async fn wait(&mut self, sign: String) {
        mark("waiting");
        held(&sign).await.expect("nobody cancels");
    }
}

both! {
    async fn a_result_of_the_programs_own_arrives_as_itself(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            assert_eq!(p.call(own, 0).await?, Err(Own::Small { by: 1 }));
            assert_eq!(p.call(own, 1).await?, Err(Own::Text("one".to_owned())));
            assert_eq!(p.call(own, 2).await?, Ok(2));
            Ok(())
        })
        .await?;
    }

    async fn an_error_arrives_with_type_message_and_sources(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            assert_eq!(p.call(read_setting, "7".to_owned()).await??, 7);
            let error = p.call(read_setting, "x".to_owned()).await?.unwrap_err();
            assert!(error.type_name().is_some_and(|name| name.ends_with("Unreadable")));
            assert_eq!(error.message(), "cannot read the setting");
            assert_eq!(error.chain().collect::<Vec<_>>(), ["invalid digit found in string"]);
            let source = std::error::Error::source(&error).map(ToString::to_string);
            assert_eq!(source.as_deref(), Some("invalid digit found in string"));
            Ok(())
        })
        .await?;
    }

    async fn f17_the_error_of_a_main_function_arrives_with_its_origin(t: T) {
        let error = offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").blocking_main(fails)).await?;
            p.call(nothing, ()).await?;
            match p.ended().await {
                Exit::Failed(error) => assert_eq!(error.message(), "cannot read the setting"),
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .await
        .unwrap_err();
        assert_eq!(error.failures().len(), 1, "{error:?}");
        assert!(error.type_name().is_some_and(|name| name.ends_with("Unreadable")));
        assert_eq!(error.chain().collect::<Vec<_>>(), ["invalid digit found in string"]);
        let origin = error.origin().expect("an origin");
        assert_eq!(origin.path, "root/p");
        assert_eq!(origin.pid != current().origin().pid, t.is_process());
        assert!(error.report().contains("root/p"), "{error:?}");
    }

    async fn f18_a_panic_arrives_with_message_and_place(_t: T) {
        let error = offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let error = p.call(panics, ()).await.unwrap_err();
            // The answer itself, or the end of the isolate, whichever was seen first.
            let panic = match (error.kind(), error.exit()) {
                (ErrorKind::Panicked(panic), _) | (_, Some(Exit::Panicked(panic))) => panic,
                _ => panic!("{error:?}"),
            };
            assert_eq!(panic.message, "on purpose: p");
            assert!(panic.location.as_deref().is_some_and(|at| at.contains("errors.rs:")));
            assert_eq!(error.origin().map(|origin| origin.path.as_str()), Some("root/p"));
            match p.ended().await {
                Exit::Panicked(panic) => assert_eq!(panic.message, "on purpose: p"),
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .await
        .unwrap_err();
        assert!(error.is_panic() && error.failures().len() == 1, "{error:?}");
        assert!(error.to_string().contains("on purpose: p"));
    }

    async fn a_failure_two_levels_down_arrives_with_its_route(_t: T) {
        async fn middle() -> Result<()> {
            offshoot::nursery(async |nursery| {
                let leaf = nursery.spawn(Isolate::named("leaf").blocking_main(fails)).await?;
                leaf.call(nothing, ()).await
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("middle").await?;
            let error = p.call(middle, ()).await?.unwrap_err();
            assert_eq!(error.failures().len(), 1, "{error:?}");
            let origin = error.origin().map(|origin| origin.path.as_str());
            assert_eq!(origin, Some("root/middle/leaf"), "{error:?}");
            assert!(error.type_name().is_some_and(|name| name.ends_with("Unreadable")));
            assert_eq!(error.chain().count(), 1);
            Ok(())
        })
        .await?;
    }

    fn several_failures_arrive_with_all_of_their_parts(t: T) {
        let error = t
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let a = nursery.spawn(Isolate::named("a").blocking_main(fails)).await?;
                    let spec = Isolate::named("b").blocking_main(fails_by_a_child);
                    let b = nursery.spawn(spec).await?;
                    drop(nursery.task(b.call(
                        || {
                            mark("b");
                            hold("a ended");
                        },
                        (),
                    )));
                    held("b").await?;
                    a.call(nothing, ()).await?;
                    a.ended().await;
                    mark("a ended");
                    offshoot::sleep(Duration::from_secs(3_600)).await
                })
                .await
            })
            .unwrap_err();
        let failures = error.failures();
        assert_eq!(failures.len(), 2, "{error:?}");
        assert_eq!(failures[0].message(), "cannot read the setting");
        assert_eq!(failures[1].message(), "the upper one");
        let paths: Vec<_> = failures
            .iter()
            .map(|failure| failure.origin().map_or("", |origin| &origin.path))
            .collect();
        assert_eq!(paths, ["root/a", "root/b"]);
    }

    async fn a_method_that_panics_poisons_the_state(_t: T) {
        // Those who ask stand in an outer nursery, which the failure does not cancel.
        offshoot::nursery(async |outer| {
            let mut asked = Vec::new();
            let mut portal = None;
            let inner = offshoot::nursery(async |nursery| {
                let p = nursery.start("p", Pair { left: 0, right: 0 }).await?;
                p.tell(Pair::wait, "go".to_owned()).await?;
                held("waiting").await?;
                asked.push(outer.task(p.ask(Pair::half, ())));
                let behind = p.ask(Pair::get, ());
                asked.push(outer.task(async { behind.await.map(drop) }));
                // Polled in the order in which they were started.
                outer.task(async { mark("sent") }).await?;
                mark("go");
                p.ended().await;
                portal = Some(p);
                Ok(())
            })
            .await
            .unwrap_err();
            assert!(inner.is_panic() && inner.failures().len() == 1, "{inner:?}");
            for one in asked {
                assert!(one.await?.unwrap_err().is_panic());
            }
            let late = portal.expect("a portal").ask(Pair::get, ()).await.unwrap_err();
            assert!(late.is_panic(), "{late:?}");
            Ok(())
        })
        .await?;
        assert!(lines("served").is_empty());
    }

    async fn a_call_to_the_dead_fails_at_once(_t: T) {
        let mut portal = None;
        let result = offshoot::nursery(async |nursery| {
            let p = portal.insert(nursery.spawn("p").await?);
            p.call(panics, ()).await
        })
        .await;
        assert!(result.unwrap_err().is_panic());
        let p = portal.expect("a portal");
        let began = Instant::now();
        for _ in 0..100 {
            let late = p.call(nothing, ()).await.unwrap_err();
            assert!(late.is_ended() && late.is_panic(), "{late:?}");
        }
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    }

    async fn a_value_that_cannot_cross_is_an_error_of_the_call(t: T) {
        #[derive(Debug, Serialize)]
        struct OneWay(u8);
        impl<'de> Deserialize<'de> for OneWay {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<OneWay, D::Error> {
                Err(serde::de::Error::custom("not this way"))
            }
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let there = p.call(|it: OneWay| it.0, OneWay(1)).await;
            let back = p.call(|| OneWay(1), ()).await;
            if t.isolation == Isolation::Thread {
                assert_eq!(there?, 1);
                assert_eq!(back?.0, 1);
            } else {
                for error in [there.unwrap_err(), back.unwrap_err()] {
                    assert!(matches!(error.kind(), ErrorKind::Codec), "{error:?}");
                    assert!(error.message().contains("not this way"), "{error:?}");
                }
            }
            // And costs nobody anything else.
            p.call(nothing, ()).await
        })
        .await?;
    }
}

fn writes_to_nowhere() {
    let nowhere = std::ptr::without_provenance_mut::<u8>(8);
    // SAFETY: It is not sound, and is not meant to be: the kernel ends the process for it, which
    // is a forked one that is there for nothing else.
    unsafe { nowhere.write_volatile(1) };
}

#[allow(unconditional_recursion)] // That is what it is for.
fn overflows(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 512]);
    overflows(depth + 1) + room[511]
}

fn ends_its_process(how: String) {
    match how.as_str() {
        "exit" => std::process::exit(3),
        "exit well" => std::process::exit(0),
        "abort" => std::process::abort(),
        "fault" => writes_to_nowhere(),
        "overflow" => drop(overflows(0)),
        "sleep" => {
            mark("begun");
            std::thread::sleep(Duration::from_secs(3_600));
        }
        other => panic!("{other}"),
    }
}

/// Ends a process and gives what its caller and its nursery were told.
async fn ends_by(how: &str) -> [Error; 2] {
    let mut called = None;
    let nursed = offshoot::nursery(async |nursery| {
        let p = nursery.spawn("p").await?;
        called = p.call(ends_its_process, how.to_owned()).await.err();
        Ok(())
    })
    .await;
    [called.expect("no answer"), nursed.expect_err("no failure")]
}

fn killed_by(error: &Error, number: i32, text: &str) {
    assert_eq!(error.failures().len(), 1, "{error:?}");
    assert_eq!(
        error.origin().map(|origin| origin.path.as_str()),
        Some("root/p"),
        "{error:?}"
    );
    match error.exit() {
        Some(Exit::Killed { signal, name, .. }) => {
            assert_eq!((*signal, name.as_str()), (number, text), "{error:?}");
        }
        _ => panic!("{error:?}"),
    }
}

processes! {
    async fn f17_a_process_that_exits_is_told_with_its_code(_t: T) {
        for (how, expected) in [("exit", 3), ("exit well", 0)] {
            for error in ends_by(how).await {
                assert!(
                    matches!(error.exit(), Some(Exit::Exited { code }) if *code == expected),
                    "{error:?}"
                );
            }
        }
    }

    async fn f22_a_crash_is_told_with_its_signal(_t: T) {
        for error in ends_by("fault").await {
            killed_by(&error, libc::SIGSEGV, "SIGSEGV");
        }
        for error in ends_by("abort").await {
            killed_by(&error, libc::SIGABRT, "SIGABRT");
        }
    }

    async fn f21_a_stack_overflow_is_told_as_a_crash(_t: T) {
        for error in ends_by("overflow").await {
            // Not by std's handler: a child begins with every signal at its default.
            killed_by(&error, libc::SIGSEGV, "SIGSEGV");
        }
    }

    async fn whoever_waits_for_the_killed_is_told_within_100_ms(_t: T) {
        // The one who waits stands in an outer nursery, which the failure does not cancel.
        offshoot::nursery(async |outer| {
            let mut portal = None;
            let mut killed = None;
            let mut waiting = None;
            let inner = offshoot::nursery(async |nursery| {
                let p = portal.insert(nursery.spawn("p").await?);
                let call = p.call(ends_its_process, "sleep".to_owned());
                waiting = Some(outer.task(async { (call.await, Instant::now()) }));
                held("begun").await?;
                killed = Some(Instant::now());
                assert!(Pidfd::open(p.origin().pid)?.kill()?);
                Ok(())
            })
            .await;
            killed_by(&inner.unwrap_err(), libc::SIGKILL, "SIGKILL");
            let (result, told) = waiting.expect("a call").await?;
            killed_by(&result.unwrap_err(), libc::SIGKILL, "SIGKILL");
            let took = told - killed.expect("a time");
            assert!(took < Duration::from_millis(100), "{took:?}");
            // And whoever comes later, at once.
            let began = Instant::now();
            let late = portal.expect("a portal").call(nothing, ()).await.unwrap_err();
            killed_by(&late, libc::SIGKILL, "SIGKILL");
            assert!(began.elapsed() < Duration::from_millis(20), "{:?}", began.elapsed());
            Ok(())
        })
        .await?;
    }

    async fn a_death_two_levels_down_is_told_to_the_top(_t: T) {
        async fn middle() -> Result<()> {
            offshoot::nursery(async |nursery| {
                let leaf = nursery.spawn("leaf").await?;
                leaf.call(ends_its_process, "abort".to_owned()).await
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("middle").await?;
            let error = p.call(middle, ()).await?.unwrap_err();
            assert_eq!(error.failures().len(), 1, "{error:?}");
            assert!(
                matches!(error.exit(), Some(Exit::Killed { signal: libc::SIGABRT, .. })),
                "{error:?}"
            );
            let origin = error.origin().map(|origin| origin.path.as_str());
            assert_eq!(origin, Some("root/middle/leaf"), "{error:?}");
            p.call(nothing, ()).await
        })
        .await?;
    }
}
