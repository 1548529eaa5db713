//! Where a process isolate may have addresses, and what ends with it of that which it has started: what its owner has granted, and no
//! more; all of it, where it has a control group.

use offshoot::net::UnixListener;
use offshoot::prelude::*;
use offshoot::{Builder, Descendants, Portal};
use offshoot_sys::cgroup::Cgroup;
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{dir, processes, threads, until};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Binds there and lets go again; what it was told.
async fn binds(path: PathBuf) -> std::result::Result<(), (String, String)> {
    match UnixListener::bind(&path).await {
        Ok(_) => Ok(()),
        Err(error) => Err((format!("{:?}", error.kind()), error.to_string())),
    }
}

/// Binds there and keeps it.
async fn keeps(path: PathBuf) -> Result<()> {
    let listener = UnixListener::bind(&path).await?;
    std::mem::forget(listener);
    Ok(())
}

async fn is_refused(portal: &Portal, path: &str) -> Result<()> {
    let told = portal.call(binds, dir().join(path)).await?;
    let (kind, message) = told.expect_err("it was not granted");
    assert_eq!(kind, "PermissionDenied", "{message}");
    assert!(
        message.contains("was not granted to this isolate") && message.contains("Isolate::grant"),
        "{message}"
    );
    Ok(())
}

fn make_directories() {
    for name in ["a/below", "b"] {
        fs::create_dir_all(dir().join(name)).expect("a directory of the test's");
    }
}

/// Spawns one that is granted what its owner has not, and one that is granted nothing in particular.
async fn gives_on() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let spec = Isolate::named("more").process().grant(dir().join("b"));
        let error = nursery.spawn(spec).await.expect_err("its owner has it not");
        assert!(
            error.message().contains("was not granted"),
            "{}",
            error.report()
        );
        let inherits = nursery.spawn(Isolate::named("same").process()).await?;
        inherits
            .call(binds, dir().join("a/x"))
            .await?
            .expect("its owner's");
        is_refused(&inherits, "b/x").await?;
        let error = inherits.grant(dir().join("b")).await.unwrap_err();
        assert!(
            error.message().contains("was not granted"),
            "{}",
            error.report()
        );
        let spec = Isolate::named("less")
            .process()
            .grant(dir().join("a/below"));
        let less = nursery.spawn(spec).await?;
        less.call(binds, dir().join("a/below/x"))
            .await?
            .expect("it was granted");
        is_refused(&less, "a/x").await?;
        inherits.grant(dir().join("a/below")).await
    })
    .await
}

processes! {
    /// One that was granted directories has addresses there and below, and nowhere else, by whatever path it says so; its owner can add one. All
    /// that it had goes with it.
    async fn a_process_binds_where_it_was_granted(_t: T) {
        make_directories();
        std::os::unix::fs::symlink(dir().join("b"), dir().join("a/link")).expect("a link");
        let result = offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").process().grant(dir().join("a"))).await?;
            for path in ["a/x", "a/below/x", "b/../a/x"] {
                one.call(binds, dir().join(path)).await?.expect("it was granted");
            }
            for path in ["b/x", "x", "a/link/x", "a/../b/x"] {
                is_refused(&one, path).await?;
            }
            let error = one.call(fails_to_share, ()).await?;
            assert!(error.contains("was not granted"), "{error}");
            one.grant(dir().join("b")).await?;
            one.call(binds, dir().join("a/link/x")).await?.expect("it was granted since");
            let error = one.grant(dir().join("none")).await.unwrap_err();
            assert!(error.message().contains("none"), "{}", error.report());
            one.call(keeps, dir().join("a/kept")).await??;
            one.call(keeps, dir().join("b/kept")).await??;
            Pidfd::open(one.origin().pid)?.kill()?;
            Ok(())
        })
        .await;
        assert!(result.is_err(), "it was killed");
        for path in ["a/kept", "b/kept"] {
            assert!(dir().join(path).symlink_metadata().is_err(), "{path} is left");
        }
        // And who is limited by nobody has what a thread has.
        offshoot::nursery(async |nursery| {
            let free = nursery.spawn(Isolate::named("free").process()).await?;
            free.call(binds, dir().join("b/x")).await?.expect("it is not limited");
            free.grant(dir().join("a")).await
        })
        .await?;
    }

    /// Nobody grants more than it has, also not by saying nothing.
    async fn nobody_grants_more_than_it_has(_t: T) {
        make_directories();
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").process().grant(dir().join("a"))).await?;
            one.call(gives_on, ()).await?
        })
        .await?;
    }

    /// A tree may limit all of its processes.
    fn a_confined_tree_grants_what_it_says(t: T) {
        make_directories();
        t.builder().confined(true).reserve_processes(1).run(async || {
            offshoot::nursery(async |nursery| {
                let none = nursery.spawn("none").await?;
                is_refused(&none, "a/x").await?;
                let some = nursery.spawn(Isolate::named("some").grant(dir().join("a"))).await?;
                some.call(binds, dir().join("a/x")).await?.expect("it was granted");
                is_refused(&some, "b/x").await?;
                none.grant(dir().join("a")).await?;
                none.call(binds, dir().join("a/x")).await?.expect("it was granted since");
                let mut many = Isolate::named("many");
                for _ in 0..9 {
                    many = many.grant(dir());
                }
                let error = nursery.spawn(many).await.unwrap_err();
                assert!(error.message().contains("Portal::grant"), "{}", error.report());
                // The root's process is limited by nobody.
                UnixListener::bind(dir().join("b/root")).await.map(drop)?;
                Ok(())
            })
            .await
        })
        .unwrap();
    }
}

async fn fails_to_share() -> String {
    let name = format!(
        "{}-shared",
        dir().file_name().expect("a name").to_string_lossy()
    );
    let made = offshoot::create_shared_memory(&name, 1).await;
    made.expect_err("it was not granted").to_string()
}

threads! {
    /// What a thread has is what its process has.
    async fn a_thread_is_granted_nothing(_t: T) {
        offshoot::nursery(async |nursery| {
            for spec in [Isolate::named("one").grant(dir()), Isolate::named("one").confined()] {
                let error = nursery.spawn(spec).await.unwrap_err();
                assert!(error.message().contains("add `.process()`"), "{}", error.report());
            }
            let one = nursery.spawn("one").await?;
            assert_eq!(one.descendants(), None);
            one.grant(dir()).await
        })
        .await?;
    }
}

/// Starts what lets go of everything by which it could be found: environment, group, session, parent. Its id.
fn starts_one_that_hides() -> i32 {
    let file = dir().join("hidden");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' &",
        file.display()
    );
    let started = Command::new("sh")
        .args(["-c", &script])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .status();
    assert!(started.is_ok_and(|status| status.success()));
    assert!(until(|| file.exists()));
    let text = fs::read_to_string(&file).expect("its id");
    text.trim().parse().expect("a number")
}

/// Runs a tree of which one process starts something that hides, and is killed while another one lives. The level, and whether it was dead then.
fn hides(builder: Builder) -> (Option<Descendants>, bool) {
    builder
        .run(async || {
            let mut seen = None;
            offshoot::nursery(async |nursery| {
                nursery.spawn("other").await?;
                let result = offshoot::nursery(async |inner| {
                    let one = inner.spawn("one").await?;
                    let hidden = Pidfd::open(one.call(starts_one_that_hides, ()).await?)?;
                    seen = Some((one.descendants(), hidden));
                    Pidfd::open(one.origin().pid)?.kill()?;
                    Ok(())
                })
                .await;
                assert!(result.is_err(), "it was killed");
                let (level, hidden) = seen.as_ref().expect("it ran");
                Ok((*level, hidden.is_dead()))
            })
            .await
        })
        .expect("a tree")
}

/// The control groups of trees in ours.
fn groups() -> Vec<String> {
    let Ok(own) = Cgroup::own() else {
        return Vec::new();
    };
    let entries = fs::read_dir(own.path()).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains("/offshoot-"))
        .collect()
}

processes! {
    /// Where there are control groups, what a process has started ends with it, however it hides; before its owner is told.
    fn what_hides_ends_with_its_process(t: T) {
        // Whether there are any here is known by other means.
        let can = Cgroup::own().and_then(|own| {
            let probe = own.make(&format!("offshoot-probe-{}", std::process::id()))?;
            probe.remove()
        });
        for reserve in [0, 2] {
            let builder = t.builder().descendants(Descendants::Cgroup).reserve_processes(reserve);
            let (level, dead) = hides(builder);
            match &can {
                Ok(()) => assert_eq!((level, dead), (Some(Descendants::Cgroup), true)),
                Err(error) => {
                    println!("no control groups here: {error}");
                    assert_eq!(level, Some(Descendants::Subreaper));
                }
            }
            fs::remove_file(dir().join("hidden")).expect("it was written");
        }
    }

    /// Where there are none, or none was asked for, it ends with the tree's last process; the portal says which.
    fn without_control_groups_it_ends_with_the_tree(t: T) {
        let (level, _) = hides(t.builder());
        assert_eq!(level, Some(Descendants::Subreaper));
        fs::remove_file(dir().join("hidden")).expect("it was written");
        t.faults("cgroup:fail=13");
        let (level, _) = hides(t.builder().descendants(Descendants::Cgroup));
        assert_eq!(level, Some(Descendants::Subreaper));
    }

    /// A root that is a process isolate of another tree, in its group: its forkserver has the time to clean up.
    fn a_tree_in_a_group_comes_down_by_itself(t: T) {
        let tree = t.builder().descendants(Descendants::Cgroup).run(async || {
            offshoot::nursery(async |nursery| {
                let outer = nursery.spawn("outer").await?;
                let inner = outer.call(runs_a_tree_for_ever, ());
                let begun = async {
                    assert!(offshoot::unblock(|| until(|| dir().join("a/inner").exists())).await?);
                    Pidfd::open(outer.origin().pid)?.kill()?;
                    Ok::<(), Error>(())
                };
                let (_, begun) = futures_util::future::join(inner, begun).await;
                begun
            })
            .await
        });
        assert!(tree.is_err(), "it was killed");
        assert!(until(|| !dir().join("a/inner").exists()), "the inner tree has left its socket");
    }
}

async fn binds_for_ever(path: PathBuf) -> Result<()> {
    let _listener = UnixListener::bind(&path).await?;
    std::future::pending().await
}

fn runs_a_tree_for_ever() {
    make_directories();
    let builder = Builder::new()
        .isolation(Isolation::Process)
        .descendants(Descendants::Cgroup);
    let _ = builder.run(async || {
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn("one").await?;
            one.call(binds_for_ever, dir().join("a/inner")).await?
        })
        .await
    });
}

processes! {
    /// The forkserver is killed: what was in its groups ends, they are removed, and its successor has its own.
    fn groups_of_a_killed_forkserver_are_removed(t: T) {
        if Cgroup::own().is_err() {
            return;
        }
        let running = t.builder().descendants(Descendants::Cgroup).start(async || {
            let mut hidden = None;
            let result = offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                hidden = Some(Pidfd::open(one.call(starts_one_that_hides, ()).await?)?);
                let server = offshoot_sys::process::parent_of(one.origin().pid).expect("its parent");
                Pidfd::open(server)?.kill()?;
                std::future::pending().await
            })
            .await;
            let _: Error = Result::<()>::expect_err(result, "its forkserver was killed");
            let hidden = hidden.expect("it was started");
            assert!(offshoot::unblock(move || until(|| hidden.is_dead())).await?);
            offshoot::nursery(async |nursery| {
                let next = nursery.spawn("next").await?;
                assert_eq!(next.descendants(), Some(Descendants::Cgroup));
                Ok(())
            })
            .await
        });
        let running = running.unwrap();
        let name = format!("/offshoot-{}-", running.handle().tree());
        running.wait().unwrap();
        let left: Vec<String> = groups().into_iter().filter(|path| path.contains(&name)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
