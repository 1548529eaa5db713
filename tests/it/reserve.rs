//! Threads and processes that wait before anybody wants them: each serves once, a dead one is
//! replaced and never handed out, a burst is served without them, and they go with their tree.

use offshoot::prelude::*;
use offshoot::{Limit, Stdio};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::process;
use offshoot_tests::{processes, soon, threads};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// How `std` calls the thread: a thread of the reserve has had its name before it had its isolate.
fn std_name() -> String {
    std::thread::current().name().unwrap_or("").to_owned()
}

/// How the kernel does.
fn kernel_name() -> String {
    let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
    name.trim_end().to_owned()
}

thread_local! {
    static VISITS: Cell<u32> = const { Cell::new(0) };
}

fn visit() -> u32 {
    VISITS.set(VISITS.get() + 1);
    VISITS.get()
}

/// How many threads of this process wait: they alone have the name of the reserve for the kernel.
fn waiting_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim_end() == "isolate")
        .count()
}

/// The processes that wait, below the forkserver of this process.
fn waiting_processes() -> BTreeSet<i32> {
    let servers = process::children_of(process::id());
    servers.into_iter().flat_map(waiting_below).collect()
}

fn waiting_below(forkserver: i32) -> BTreeSet<i32> {
    process::children_of(forkserver)
        .into_iter()
        .filter(|pid| {
            let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            name.starts_with(b"offshoot-reserve")
        })
        .collect()
}

/// Whether so many processes wait, and this one has them in its hand.
fn in_hand(count: usize) -> bool {
    let wanted = format!("that wait for a spawn: {count}");
    let said = offshoot::dump_all();
    waiting_processes().len() == count && said.iter().any(|line| line.ends_with(&wanted))
}

fn pid() -> i32 {
    process::id()
}

threads! {
    fn a_spawn_takes_a_thread_that_waits(t: T) {
        t.builder().reserve_threads(2).run(async || {
            soon("the reserve is filled before the first spawn", || waiting_threads() == 2).await?;
            offshoot::nursery(async |nursery| {
                for _ in 0..6 {
                    soon("it is filled again", || waiting_threads() == 2).await?;
                    let portal = nursery.spawn("own-name").await?;
                    assert_eq!(portal.call(std_name, ()).await?, "isolate");
                    assert_eq!(portal.call(kernel_name, ()).await?, "own-name");
                    // Never a thread that was another isolate's.
                    assert_eq!(portal.call(visit, ()).await?, 1);
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    fn without_a_reserve_each_has_its_own_thread_made(t: T) {
        t.builder().reserve_threads(0).run(async || {
            offshoot::nursery(async |nursery| {
                for _ in 0..3 {
                    let portal = nursery.spawn("own-name").await?;
                    assert_eq!(portal.call(std_name, ()).await?, "own-name");
                    assert_eq!(waiting_threads(), 0);
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    fn a_burst_beyond_the_reserve_is_served(t: T) {
        t.builder().reserve_threads(3).run(async || {
            soon("the reserve is filled", || waiting_threads() == 3).await?;
            offshoot::nursery(async |nursery| {
                let mut portals = Vec::new();
                for n in 0..50 {
                    portals.push(nursery.spawn(format!("p{n}")).await?);
                }
                for portal in &portals {
                    assert_eq!(portal.call(visit, ()).await?, 1);
                }
                Ok(())
            })
            .await?;
            soon("the reserve is filled again", || waiting_threads() == 3).await
        })
        .unwrap();
    }

    fn a_stack_of_its_own_size_comes_from_no_reserve(t: T) {
        t.builder().reserve_threads(1).run(async || {
            soon("the reserve is filled", || waiting_threads() == 1).await?;
            offshoot::nursery(async |nursery| {
                let isolate = Isolate::named("deep").stack_size(8 << 20);
                let portal = nursery.spawn(isolate).await?;
                assert_eq!(portal.call(std_name, ()).await?, "deep");
                Ok(())
            })
            .await
        })
        .unwrap();
    }
}

processes! {
    fn a_spawn_takes_a_process_that_waits(t: T) {
        t.builder().reserve_processes(2).run(async || {
            soon("the reserve is filled before the first spawn", || in_hand(2))
                .await?;
            offshoot::nursery(async |nursery| {
                for _ in 0..4 {
                    soon("it is filled again", || in_hand(2)).await?;
                    let waiting = waiting_processes();
                    let portal = nursery.spawn("own-name").await?;
                    let own = portal.call(pid, ()).await?;
                    assert!(waiting.contains(&own), "{own} of {waiting:?}");
                    assert_eq!(portal.origin().pid, own);
                    assert_eq!(portal.call(kernel_name, ()).await?, "own-name");
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    /// What a spawn carries is the same in a process that was there before.
    fn a_process_that_waited_becomes_what_was_asked_for(t: T) {
        t.builder().reserve_processes(1).run(async || {
            soon("the reserve is filled", || in_hand(1)).await?;
            let waiting = waiting_processes();
            offshoot::nursery(async |nursery| {
                let isolate = Isolate::named("p")
                    .umask(0o027)
                    .limit(Limit::OpenFiles, 100, 100)
                    .current_dir("/")
                    .env("OFFSHOOT_GIVEN", "yes")
                    .stdin(Stdio::Null)
                    .stdout(Stdio::Piped);
                let portal = nursery.spawn(isolate).await?;
                assert!(waiting.contains(&portal.call(pid, ()).await?));
                let given = portal.call(|| std::env::var("OFFSHOOT_GIVEN").ok(), ()).await?;
                assert_eq!(given.as_deref(), Some("yes"));
                let (mask, files, cwd, input, output) = portal.call(outfit, ()).await?;
                assert_eq!((mask, files), (0o027, (100, 100)));
                assert_eq!((cwd.as_str(), input.as_str()), ("/", "/dev/null"));
                assert!(output.starts_with("pipe:"), "{output}");
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    fn a_dead_one_is_replaced_and_never_handed_out(t: T) {
        t.builder().reserve_processes(2).run(async || {
            soon("the reserve is filled", || waiting_processes().len() == 2).await?;
            offshoot::nursery(async |nursery| {
                for _ in 0..10 {
                    let waiting = waiting_processes();
                    for pid in &waiting {
                        let process = Pidfd::open(*pid)?;
                        process.kill()?;
                        assert!(process.wait_dead(Duration::from_secs(5))?);
                    }
                    let portal = nursery.spawn("p").await?;
                    let own = portal.call(pid, ()).await?;
                    assert!(!waiting.contains(&own), "{own} of {waiting:?}");
                    soon("others take their places", || {
                        let now = waiting_processes();
                        now.len() == 2 && now.is_disjoint(&waiting)
                    })
                    .await?;
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    /// It had begun nothing, so that another one can take its place: at whatever moment of the hand-over it dies, nobody is told.
    fn one_that_dies_at_the_hand_over_fails_no_spawn(t: T) {
        t.builder().reserve_processes(2).run(async || {
            offshoot::nursery(async |nursery| {
                for round in 0..12 {
                    soon("the reserve is full", || waiting_processes().len() == 2).await?;
                    let waiting = waiting_processes();
                    // They live, and take nothing of what they are told.
                    let stopped = waiting.iter().map(|pid| Pidfd::open(*pid));
                    let stopped: Vec<Pidfd> = stopped.collect::<std::io::Result<_>>()?;
                    for one in &stopped {
                        one.signal(libc::SIGSTOP)?;
                    }
                    let spawning = nursery.task(async move { nursery.spawn("p").await });
                    // From before it is handed over to when its owner waits for it.
                    offshoot::sleep(Duration::from_micros(round * round * 100)).await?;
                    for one in &stopped {
                        one.kill()?;
                    }
                    let own = spawning.await??.call(pid, ()).await?;
                    assert!(!waiting.contains(&own), "{own} of {waiting:?}");
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    /// As it would without one: what it ran is not run a second time.
    fn one_that_dies_having_taken_it_fails_its_spawn(t: T) {
        for stage in ["S1", "S2", "S4"] {
            t.faults(&format!("{stage}@p:kill"));
            t.builder().reserve_processes(2).run(async move || {
                soon("the reserve is full", || waiting_processes().len() == 2).await?;
                let waiting = waiting_processes();
                offshoot::nursery(async |nursery| {
                    let fault = format!("{stage}@p:kill");
                    let spawned = nursery.spawn(Isolate::named("p").env("OFFSHOOT_FAULT", fault));
                    let error = spawned.await.unwrap_err();
                    assert!(error.is_spawn() && error.message().contains("SIGKILL"), "{stage}: {error}");
                    // The other one that waited is still there.
                    assert!(!waiting_processes().is_disjoint(&waiting), "{stage}");
                    nursery.spawn("q").await?.call(|| (), ()).await
                })
                .await
            })
            .unwrap();
        }
    }

    /// At each step in which one passes from the forkserver's hand to the root's, and from there to an isolate.
    fn a_forkserver_that_dies_at_the_hand_over_takes_only_its_own(t: T) {
        for stage in ["hand*1", "claimed*1"] {
            t.faults(&format!("{stage}:kill"));
            t.builder().reserve_processes(2).run(async || {
                offshoot::nursery(async |nursery| {
                    let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
                    for _ in 0..4 {
                        // With those that wait, if the forkserver lives, and without.
                        let served = offshoot::nursery(async |nursery| {
                            nursery.spawn("p").await?.call(|| (), ()).await
                        })
                        .await;
                        if let Err(error) = served {
                            // Also one that sees in its prelude that its parent has gone.
                            let report = error.report();
                            assert!(report.contains("forkserver") || report.contains("parent"), "{report}");
                        }
                        thread.call(|| (), ()).await?;
                    }
                    Ok(())
                })
                .await
            })
            .unwrap();
        }
    }

    /// Its spawn is given up before the forkserver has heard whose it is, and it has ended by then.
    fn one_that_is_killed_before_it_is_claimed_leaves_nothing(t: T) {
        t.faults("claimed*1:delay=300");
        t.builder().reserve_processes(2).run(async || {
            soon("the reserve is full", || waiting_processes().len() == 2).await?;
            let error = offshoot::nursery(async |nursery| {
                let portal = nursery.spawn("p").await?;
                let own = Pidfd::open(portal.call(pid, ()).await?)?;
                own.kill()?;
                portal.ended().await;
                assert!(own.wait_dead(Duration::from_secs(5))?);
                Ok(())
            })
            .await
            .unwrap_err();
            assert!(error.report().contains("SIGKILL"), "{}", error.report());
            soon("the reserve is full again", || waiting_processes().len() == 2).await
        })
        .unwrap();
    }

    /// The root's hand is the root's; whoever else spawns has a reserve, too, once it has spawned.
    fn other_processes_take_from_a_reserve_of_their_own(t: T) {
        async fn spawns() -> Result<bool> {
            offshoot::nursery(async |nursery| {
                let first = nursery.spawn("first").await?;
                first.call(pid, ()).await?;
                let forkserver = process::parent();
                let others = move || waiting_below(forkserver);
                soon("there is one for us", move || others().len() == 4).await?;
                let waiting = waiting_below(forkserver);
                let own = nursery.spawn("second").await?.call(pid, ()).await?;
                Ok(waiting.contains(&own))
            })
            .await
        }
        t.builder().reserve_processes(2).run(async || {
            soon("the reserve is full", || waiting_processes().len() == 2).await?;
            offshoot::nursery(async |nursery| {
                let portal = nursery.spawn("owner").await?;
                assert!(portal.call(spawns, ()).await??, "it was forked for the spawn");
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    fn without_a_reserve_no_process_waits(t: T) {
        t.builder().reserve_processes(0).run(async || {
            assert!(process::children_of(process::id()).is_empty());
            offshoot::nursery(async |nursery| {
                for _ in 0..3 {
                    nursery.spawn("p").await?.call(pid, ()).await?;
                    assert!(waiting_processes().is_empty());
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    fn by_default_nothing_waits_before_the_first_spawn(t: T) {
        t.run(async || {
            assert!(process::children_of(process::id()).is_empty());
            offshoot::nursery(async |nursery| {
                nursery.spawn("p").await?.call(pid, ()).await?;
                soon("the default", || waiting_processes().len() == 2).await
            })
            .await
        })
        .unwrap();
    }

    fn a_burst_of_processes_beyond_the_reserve_is_served(t: T) {
        t.builder().reserve_processes(2).run(async || {
            soon("the reserve is filled", || waiting_processes().len() == 2).await?;
            offshoot::nursery(async |nursery| {
                let spawning: Vec<_> = (0..12)
                    .map(|n| nursery.task(async move { nursery.spawn(format!("p{n}")).await }))
                    .collect();
                let mut pids = BTreeSet::new();
                for one in spawning {
                    pids.insert(one.await??.call(pid, ()).await?);
                }
                assert_eq!(pids.len(), 12);
                soon("the reserve is filled again", || waiting_processes().len() == 2).await
            })
            .await
        })
        .unwrap();
    }

    /// It is refused with its reason, and nobody's place is lost.
    fn an_outfit_that_cannot_be_had_is_refused(t: T) {
        t.builder().reserve_processes(1).run(async || {
            soon("the reserve is filled", || waiting_processes().len() == 1).await?;
            let waiting = waiting_processes();
            offshoot::nursery(async |nursery| {
                let isolate = Isolate::named("p").limit(Limit::OpenFiles, 9, 8);
                let error = nursery.spawn(isolate).await.unwrap_err();
                assert!(error.is_spawn() && error.message().contains("OpenFiles"), "{error:?}");
                assert_eq!(waiting_processes(), waiting);
                Ok(())
            })
            .await
        })
        .unwrap();
    }
}

type Outfit = (u32, (u64, u64), String, String, String);

fn outfit() -> Outfit {
    let link = |path: &str| fs::read_link(path).unwrap().to_str().unwrap().to_owned();
    (
        process::umask_now().unwrap(),
        offshoot_sys::limits::open_files(),
        link("/proc/self/cwd"),
        link("/proc/self/fd/0"),
        link("/proc/self/fd/1"),
    )
}

threads! {
    fn the_environment_sets_the_sizes(t: T) {
        // SAFETY: this process has no other thread that reads the environment.
        unsafe { std::env::set_var("OFFSHOOT_RESERVE_THREADS", " 3 ") };
        t.run(async || soon("as the environment says", || waiting_threads() == 3).await).unwrap();
        // The program's own word goes before it.
        t.builder()
            .reserve_threads(1)
            .run(async || soon("as the builder says", || waiting_threads() == 1).await)
            .unwrap();
        for wrong in ["-1", "many", ""] {
            // SAFETY: as above.
            unsafe { std::env::set_var("OFFSHOOT_RESERVE_THREADS", wrong) };
            let error = t.run(async || Ok(())).unwrap_err();
            assert!(error.message().contains("OFFSHOOT_RESERVE_THREADS"), "{error:?}");
            assert!(error.message().contains("0 or more"), "{error:?}");
        }
    }
}
