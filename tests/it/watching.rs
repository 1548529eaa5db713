//! What a tree says of itself while it runs: all of its processes, on request or on a signal, and isolates that block, without being asked.

use offshoot::prelude::*;
use offshoot::testing::{Census, Fault, Guard, unique_name};
use offshoot::{Blocked, Handle, Sigint};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::signal;
use offshoot_tests::{append, both, dir, lines, mark, marked, processes, threads, until};
use std::fs;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_millis(600);
const SOON: Duration = Duration::from_secs(8);

/// Blocks its thread until the test says so.
fn blocks() -> bool {
    append("blocks", "one");
    until(|| marked("stop"))
}

async fn pends() {
    append("pends", "one");
    std::future::pending::<()>().await;
}

/// Has one below, of its own isolation, that pends.
async fn has_one_below() -> Result<()> {
    offshoot::nursery(async |nursery| nursery.spawn("below").await?.call(pends, ()).await).await
}

/// Has one below that blocks.
async fn has_one_that_blocks() -> Result<bool> {
    offshoot::nursery(async |nursery| nursery.spawn("deep").await?.call(blocks, ()).await).await
}

fn noticed(handle: &Handle) -> Vec<Blocked> {
    until(|| !handle.noticed().is_empty());
    handle.noticed()
}

both! {
    /// Each process is asked, and asks those below it; whoever cannot answer is named all the same, and holds up nobody for longer than was said.
    fn a_whole_tree_says_what_it_does(t: T) {
        t.within(Duration::from_secs(60));
        let running = t.builder().start(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                let two = nursery.spawn("two").await?;
                let wedged = nursery.spawn("wedged").await?;
                drop(nursery.task(async move { one.call(has_one_below, ()).await? }));
                drop(nursery.task(async move { two.call(pends, ()).await }));
                wedged.call(blocks, ()).await?;
                Err(Error::other("over"))
            })
            .await
            .or_else(|error: Error| if error.message().contains("over") { Ok(()) } else { Err(error) })
        });
        let running = running.unwrap();
        let handle = running.handle();
        assert!(until(|| lines("pends").len() == 2 && lines("blocks").len() == 1));
        // Loaded or not, who can answer does so in half a minute; who cannot costs as much as was said.
        let began = Instant::now();
        let dump = handle.dump_tree(Duration::from_secs(if t.is_process() { 3 } else { 30 }));
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        let text = dump.join("\n");
        for path in ["root (", "root/one (", "root/one/below (", "root/two ("] {
            assert!(dump.iter().any(|line| line.starts_with(path)), "{path}\n{text}");
        }
        let wedged = dump.iter().find(|line| line.contains("root/wedged")).expect("it is named");
        if t.is_process() {
            assert!(wedged.contains("does not answer; it is ") && wedged.contains("watching.rs:"), "{text}");
        } else {
            assert!(wedged.contains("running user code") && wedged.contains("watching.rs:"), "{text}");
        }
        mark("stop");
        running.wait().unwrap();
    }

    /// One that blocks is noticed by itself: which, where it came from, since when, where it is; each time it does, once; at whatever depth.
    fn one_that_blocks_is_noticed(t: T) {
        t.within(Duration::from_secs(60));
        let running = t.builder().notice_blocked(BOUND).start(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                // They may.
                let careful = nursery.spawn(Isolate::named("careful").blocking()).await?;
                let (deep, blocking) = (one.call(has_one_that_blocks, ()), careful.call(blocks, ()));
                let (deep, blocking) = futures_util::future::try_join(deep, blocking).await?;
                assert!(deep? && blocking);
                Ok(())
            })
            .await
        });
        let running = running.unwrap();
        let handle = running.handle();
        let found = noticed(&handle);
        let [one] = &found[..] else { panic!("{found:?}") };
        assert_eq!(one.isolate.path, "root/one/deep");
        assert!(one.since >= BOUND && one.doing.contains("thread"), "{one}");
        assert!(one.spawned_at.as_ref().is_some_and(|at| at.contains("watching.rs:")) || t.is_process(), "{one}");
        assert_eq!(one.isolate.pid == offshoot_sys::process::id(), !t.is_process());
        // Long enough to be looked at again.
        std::thread::sleep(3 * BOUND);
        mark("stop");
        running.wait().unwrap();
        assert_eq!(handle.noticed().len(), 1, "{:?}", handle.noticed());
    }

    /// Nobody is accused who comes back in time, however much it has to do.
    fn one_that_is_busy_is_not_noticed(t: T) {
        let running = t.builder().notice_blocked(Duration::from_secs(5)).start(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                for n in 0..200 {
                    assert_eq!(one.call(double, n).await?, 2 * n);
                }
                Ok(())
            })
            .await
        });
        let running = running.unwrap();
        let handle = running.handle();
        running.wait().unwrap();
        assert!(handle.noticed().is_empty(), "{:?}", handle.noticed());
    }

    /// SIGUSR1 prints the dump of the whole tree and ends nothing.
    fn a_signal_prints_what_the_tree_does(t: T) {
        let tree = t.builder().dump_on_sigusr1(true).start(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                drop(nursery.task(async move { one.call(has_one_below, ()).await? }));
                while !marked("stop") {
                    offshoot::sleep(Duration::from_millis(5)).await?;
                }
                Err(Error::other("over"))
            })
            .await
        });
        let tree: offshoot::Running<()> = tree.unwrap();
        let handle = tree.handle();
        let waiting = std::thread::spawn(move || tree.wait());
        assert!(until(|| lines("pends").len() == 1));
        let this = Pidfd::open(offshoot_sys::process::id()).expect("this process");
        this.signal(signal::SIGUSR1).expect("a signal");
        let printed = || fs::read_to_string(dir().join("output")).unwrap_or_default();
        let head = format!("offshoot: the tree {}:", handle.tree());
        assert!(until(|| printed().contains(&head) && printed().contains("root/one/below (")), "{}", printed());
        mark("stop");
        let error = waiting.join().expect("no panic").expect_err("it says so");
        assert!(error.report().contains("over"), "{}", error.report());
    }
}

fn double(n: u64) -> u64 {
    n * 2
}

processes! {
    /// A process that was stopped is noticed by its owner, and each time anew.
    async fn one_that_is_stopped_is_noticed(t: T) {
        let running = t.builder().notice_blocked(BOUND).start(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn(Isolate::named("one").sigint(Sigint::Parent)).await?;
                let pidfd = Pidfd::open(one.origin().pid)?;
                for round in 1..=2 {
                    pidfd.signal(signal::SIGSTOP)?;
                    offshoot::unblock(move || until(|| lines("seen").len() >= round)).await?;
                    pidfd.signal(signal::SIGCONT)?;
                    assert_eq!(one.call(double, 1).await?, 2);
                    // It is seen to run.
                    offshoot::sleep(10 * BOUND).await?;
                }
                Ok(())
            })
            .await
        });
        let running = running?;
        let handle = running.handle();
        for round in 1..=2 {
            let seen = handle.clone();
            offshoot::unblock(move || until(|| seen.noticed().len() >= round)).await?;
            append("seen", "one");
        }
        offshoot::unblock(move || running.wait()).await??;
        let found = handle.noticed();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|one| one.doing.contains("stopped by a signal") && one.isolate.path == "root/one"));
    }

    /// A fault of a builder's happens in whatever process it is for, and in no tree after.
    fn a_fault_of_a_builder_happens(t: T) {
        let spawns = |faults: Vec<Fault>| {
            t.builder().reserve_processes(0).faults(faults).run(async || {
                offshoot::nursery(async |nursery| nursery.spawn("x").await?.call(double, 2).await).await
            })
        };
        for stage in ["S1", "S3", "S4"] {
            let error = spawns(vec![Fault::at(stage).of("x").kill()]).unwrap_err();
            assert!(error.is_spawn() && error.report().contains("SIGKILL"), "{stage}: {}", error.report());
            assert_eq!(spawns(vec![Fault::at(stage).of("y").kill()]).unwrap(), 4);
        }
        let error = spawns(vec![Fault::at("fork").fail(11)]).unwrap_err();
        assert!(error.report().contains("os error 11"), "{}", error.report());
        assert_eq!(spawns(vec![Fault::at("fork").times(2).fail(11), Fault::at("wake").delay(Duration::from_millis(1))]).unwrap(), 4);
        assert_eq!(spawns(Vec::new()).unwrap(), 4);
    }
}

threads! {
    /// What the library's own types have open is named with the line that made it.
    async fn what_was_left_open_is_named_with_its_line(_t: T) {
        use offshoot::net::{TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixListener, UnixStream};
        fs::write(dir().join("file"), "x").expect("a file");
        let guard = Guard::new().settle(Duration::from_millis(1));
        let here = line!();
        let file = offshoot::fs::File::open(dir().join("file")).await?;
        let tcp = TcpListener::bind(("127.0.0.1", 0)).await?;
        let client = TcpStream::connect(tcp.local_addr()?).await?;
        let (server, _) = tcp.accept().await?;
        let udp = UdpSocket::bind(("127.0.0.1", 0)).await?;
        let pair = UnixStream::pair()?;
        let unix = UnixListener::bind(dir().join("socket")).await?;
        let datagram = UnixDatagram::unbound()?;
        let memory = offshoot::create_shared_memory(&unique_name("offshoot-test-")?, 1).await?;
        let there = line!();
        let leaks: Vec<String> = guard.finish().iter().map(ToString::to_string).collect();
        let mut missing = Vec::new();
        for line in here + 1..there {
            let made = format!("made at tests/it/watching.rs:{line}:");
            let many = leaks.iter().filter(|leak| leak.replace("it/watching", "tests/it/watching").replace("tests/tests", "tests").contains(&made)).count();
            // A pair is two; shared memory is a name, and a file of std's, of which nobody knows when its number is another's.
            if many != if line == here + 6 { 2 } else { 1 } {
                missing.push(line);
            }
        }
        assert!(missing.is_empty(), "{missing:?}: {leaks:#?}");
        drop((file, client, server, tcp, udp, pair, unix, datagram, memory));
        // A number that is used again is not taken for the one before.
        let guard = Guard::new().settle(Duration::from_millis(1));
        let foreign: Vec<fs::File> = (0..8).filter_map(|_| fs::File::open("/dev/zero").ok()).collect();
        let leaks: Vec<String> = guard.finish().iter().map(ToString::to_string).collect();
        assert!(leaks.len() >= 8 && leaks.iter().all(|leak| !leak.contains("made at")), "{leaks:#?}");
        drop(foreign);
        assert!(Census::now().threads() > 0);
    }
}
