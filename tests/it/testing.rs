//! What `offshoot::testing` promises: it names what was left, cleans what it can, and lets nothing take too long.

use offshoot::ErrorKind;
use offshoot::prelude::*;
use offshoot::testing::{self, After, Census, Direction, Guard, Kind};
use offshoot_tests::{both, dir, mark, marked, processes, threads};
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(15);
const SHORT: Duration = Duration::from_millis(30);

async fn double(n: u64) -> u64 {
    n * 2
}

async fn hang() -> Result<()> {
    loop {
        offshoot::sleep(Duration::from_secs(3600)).await?;
    }
}

async fn spin() {
    while !marked("stop") {
        (0..100_000).for_each(|_| std::hint::spin_loop());
    }
}

both! {
    fn a_tree_that_is_in_order_gives_its_value(t: T) {
        let result = testing::within_of(t.builder(), LONG, async || {
            offshoot::nursery(async |nursery| {
                nursery.spawn("one").await?.call(double, 21).await
            }).await
        });
        assert_eq!(result.expect("nothing is left"), 42);
    }

    fn a_tree_that_takes_too_long_is_ended_and_says_what_it_did(t: T) {
        let begun = Instant::now();
        let result = testing::within_of(t.builder(), Duration::from_millis(300), async || {
            offshoot::nursery(async |nursery| {
                nursery.spawn("sloth").await?.call(hang, ()).await?
            }).await
        });
        let error = result.expect_err("it hangs");
        assert!(matches!(error.kind(), ErrorKind::TimedOut(300)), "{error}");
        assert!(error.message().contains("root"), "{error}");
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    }

    /// As two tests of one binary: what the other one has is not counted, and left alone.
    fn what_another_test_has_is_none_of_this_ones(t: T) {
        let mut child = None;
        let other = t.builder().start(async || {
            offshoot::nursery(async |nursery| {
                nursery.spawn("other").await?.call(hang, ()).await?
            }).await
        }).expect("a tree");
        let result = testing::within_of(t.builder(), LONG, async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("one").await?;
                one.call(double, 4).await
            }).await
        });
        // As if begun meanwhile.
        let during = testing::within_of(t.builder(), LONG, async || {
            let begun = Command::new("sleep").arg("1000").spawn()?;
            let file = File::open("/dev/zero")?;
            std::thread::Builder::new().name("beside".to_owned()).spawn(|| std::thread::sleep(SHORT * 10))?;
            Ok((begun, file))
        });
        let kept = during.map(|(begun, file)| {
            child = Some(begun);
            file
        });
        let lives = child.as_mut().map(|child| child.try_wait().expect("a child").is_none());
        if let Some(child) = &mut child {
            child.kill().expect("it is there");
            child.wait().expect("a child");
        }
        assert_eq!(result.expect("nothing is left"), 8);
        kept.expect("nothing of the tree is left");
        assert_eq!(lives, Some(true), "it was killed");
        other.handle().cancel();
        assert!(other.wait().expect_err("it hangs").is_cancelled());
    }

    async fn what_runs_away_is_named(_t: T) {
        offshoot::nursery(async |nursery| {
            let busy = nursery.spawn("busy").await?;
            nursery.spawn("idle").await?.call(double, 1).await?;
            let pid = busy.origin().pid;
            let spinning = nursery.task(async move { busy.call(spin, ()).await });
            let found = offshoot::unblock(|| {
                let deadline = Instant::now() + LONG;
                loop {
                    let found = testing::runaways(Duration::from_millis(200));
                    if !found.is_empty() || Instant::now() > deadline {
                        return found;
                    }
                }
            }).await?;
            mark("stop");
            spinning.await??;
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].pid, found[0].name.as_str()), (pid, "busy"), "{found:?}");
            assert!(found[0].share >= 0.95 && found[0].share <= 1.0, "{found:?}");
            Ok(())
        }).await?;
    }
}

threads! {
    fn all_that_is_left_is_named_and_cleaned(_t: T) {
        let guard = Guard::new().settle(SHORT);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("left-thread".into());
        let (begin, begun) = std::sync::mpsc::channel();
        let thread = thread.spawn(move || {
            begin.send(()).expect("somebody waits");
            stopped.recv().unwrap_or_default();
        });
        let thread = thread.expect("a thread");
        // It gives itself its name, when it first runs.
        begun.recv().expect("it runs");
        let file = File::open("/dev/zero").expect("a file");
        let path = dir().join("s");
        let socket = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let mut child = Command::new("sleep").arg("1000").spawn().expect("a process");
        let name = testing::unique_name("offshoot-test-").expect("random");
        let memory = Path::new("/dev/shm").join(&name);
        fs::write(&memory, "x").expect("shared memory");
        // As a tree leaves it that was killed whole.
        let tree = dir().join("run/offshoot/00000000000000aa");
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&tree).expect("a directory");
        fs::write(tree.join("lock"), "").expect("a lock");

        let mut leaks = guard.finish();
        // Shared memory is the whole machine's: what others make meanwhile, as this test for the other isolation does, is theirs.
        leaks.retain(|leak| leak.kind() != Kind::SharedMemory || leak.to_string().contains(&name));
        let kinds: Vec<Kind> = leaks.iter().map(|leak| leak.kind()).collect();
        let text: Vec<String> = leaks.iter().map(ToString::to_string).collect();
        let wanted = [
            (Kind::Process, "sleep 1000"),
            (Kind::Thread, "left-thread"),
            (Kind::Descriptor, "/dev/zero"),
            (Kind::Socket, path.to_str().expect("plain")),
            (Kind::SharedMemory, name.as_str()),
            (Kind::Tree, "00000000000000aa"),
        ];
        assert_eq!(kinds, wanted.map(|(kind, _)| kind), "{text:#?}");
        for (text, (_, part)) in text.iter().zip(wanted) {
            assert!(text.contains(part), "{text} names no {part}");
        }
        leaks.into_iter().for_each(testing::Leak::clean);
        assert!(child.wait().is_err(), "killed and reaped");
        assert!(!memory.exists() && !tree.exists());
        drop((file, socket, stop));
        fs::remove_file(path).expect("the socket");
        thread.join().expect("no panic");
    }

    /// Of a tree that was not waited for, each isolate with the place where it was spawned.
    fn isolates_are_named_with_their_place(t: T) {
        let guard = Guard::new().settle(SHORT);
        let line = line!() + 3;
        let running = t.builder().start(async || {
            offshoot::nursery(async |nursery| {
                let one = nursery.spawn("forgotten").await?;
                let two = nursery.start(Isolate::named("process").process(), 7_u32).await?;
                mark("there");
                drop(nursery.task(async move { one.call(hang, ()).await? }));
                two.call(hang, ()).await?
            }).await
        }).expect("a tree");
        assert!(offshoot_tests::until(|| marked("there")));
        let leaks = guard.finish();
        let said = |kind: Kind, part: &str| {
            leaks.iter().any(|leak| leak.kind() == kind && leak.to_string().contains(part))
        };
        assert!(said(Kind::Isolate, &format!("isolate `root/forgotten`, spawned at tests/it/testing.rs:{line}:")), "{leaks:#?}");
        assert!(said(Kind::Isolate, &format!("isolate `root/process`, spawned at tests/it/testing.rs:{}:", line + 1)), "{leaks:#?}");
        assert!(said(Kind::Thread, "isolate `root/forgotten`, spawned at"), "{leaks:#?}");
        assert!(said(Kind::Process, "isolate `root/process`, spawned at"), "{leaks:#?}");
        assert!(said(Kind::Socket, "socket:"), "{leaks:#?}");
        drop(running);
    }

    fn a_mapping_that_is_left_is_named(_t: T) {
        let guard = Guard::new().settle(SHORT);
        let path = dir().join("mapped");
        fs::write(&path, "mapped").expect("a file");
        let file = File::options().read(true).write(true).open(&path).expect("a file");
        // SAFETY: a new mapping at an address of the system's choice, of a file that is long enough.
        let address = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            libc::mmap(std::ptr::null_mut(), 6, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
        };
        assert_ne!(address, libc::MAP_FAILED);
        drop(file);
        let leaks = guard.finish();
        assert!(leaks.len() == 1 && leaks[0].kind() == Kind::Mapping, "{leaks:#?}");
        assert!(leaks[0].to_string().contains(path.to_str().expect("plain")), "{leaks:#?}");
        // SAFETY: the mapping above, which nobody uses.
        assert_eq!(unsafe { libc::munmap(address, 6) }, 0);
    }

    fn a_guard_panics_with_the_names(_t: T) {
        let guard = Guard::new().settle(SHORT);
        let file = File::open("/dev/zero").expect("a file");
        let panic = catch_unwind(AssertUnwindSafe(move || drop(guard))).expect_err("a leak");
        let text = panic.downcast_ref::<String>().expect("a text");
        assert!(text.contains("left behind") && text.contains("/dev/zero"), "{text}");
        drop(file);
        // During a panic it adds none.
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _guard = Guard::new().settle(SHORT);
            std::mem::forget(File::open("/dev/zero"));
            panic!("the first");
        }));
        let payload = unwound.expect_err("it panics");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"the first"));
        let left = fs::read_dir("/proc/self/fd").expect("fds").flatten().filter_map(|entry| {
            let zero = fs::read_link(entry.path()).ok()? == Path::new("/dev/zero");
            zero.then(|| entry.file_name().to_str()?.parse::<i32>().ok()).flatten()
        });
        for fd in left.collect::<Vec<_>>() {
            // SAFETY: takes no pointer; it was forgotten above.
            unsafe { libc::close(fd) };
        }
    }

    fn the_expected_number_of_abandoned_threads_is_no_leak(_t: T) {
        for (allowed, leaks) in [(0, 1), (1, 0)] {
            let guard = Guard::new().settle(SHORT).abandons(allowed);
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || stopped.recv().unwrap_or_default());
            assert_eq!(guard.finish().len(), leaks);
            drop(stop);
            thread.join().expect("no panic");
        }
    }

    fn names_are_unique_and_censuses_of_nothing_are_equal(_t: T) {
        let (one, two) = (testing::unique_socket().expect("random"), testing::unique_socket().expect("random"));
        assert_ne!(one, two);
        let (before, after) = (Census::now(), Census::now());
        assert_eq!(before.leaks(), []);
        assert_eq!((before.threads(), before.descriptors()), (after.threads(), after.descriptors()));
        assert!(before.maps() > 0 && before.processes() == 0);
    }

    async fn a_thread_has_no_link_to_break(_t: T) {
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn("one").await?;
            assert!(!testing::break_link(&one));
            assert!(!testing::break_link_after(&one, Direction::ToIsolate, After::Bytes(0)));
            assert_eq!(one.call(double, 1).await?, 2);
            Ok(())
        }).await?;
    }
}

processes! {
    async fn a_broken_link_fails_what_waits_for_it(_t: T) {
        let began = Instant::now();
        let result = offshoot::nursery(async |nursery| {
            let one = nursery.spawn("one").await?;
            let waiting = nursery.task({
                let one = one.clone();
                async move { one.call(hang, ()).await? }
            });
            one.call(double, 1).await?;
            assert!(testing::break_link(&one));
            waiting.await
        }).await;
        let error = result.expect_err("it is cut off");
        assert!(error.to_string().contains("one"), "{error}");
        assert!(began.elapsed() < LONG);
    }

    /// At each point of a conversation, in either direction: what waits fails, what had passed counts, and nobody else notices.
    async fn a_link_breaks_where_it_is_told_to(_t: T) {
        offshoot::nursery(async |outer| {
            let sibling = outer.spawn("sibling").await?;
            // A call is a frame each way.
            for whole in [0, 1, 3] {
                for direction in [Direction::ToIsolate, Direction::FromIsolate] {
                    let answered = answers_until(direction, After::Frames(whole)).await?;
                    match direction {
                        Direction::FromIsolate => assert_eq!(answered, whole),
                        // The last one's answer may be faster than the cut.
                        Direction::ToIsolate => assert!(answered <= whole && answered + 1 >= whole, "{answered}"),
                    }
                    assert_eq!(sibling.call(double, 1).await?, 2);
                }
            }
            // In the first header, between it and the body, in the body, and in the next one's.
            for bytes in [1, 15, 16, 17, 60] {
                for direction in [Direction::ToIsolate, Direction::FromIsolate] {
                    assert!(answers_until(direction, After::Bytes(bytes)).await? <= 3);
                    assert_eq!(sibling.call(double, 1).await?, 2);
                }
            }
            Ok(())
        }).await?;
    }
}

/// How many calls were answered before the link broke, which has to be told soon.
async fn answers_until(direction: Direction, after: After) -> Result<u64> {
    let began = Instant::now();
    let mut answered = 0;
    let result = offshoot::nursery(async |nursery| {
        // What agrees upon a ring is frames, too.
        let one = nursery.spawn(Isolate::named("one").ring(0)).await?;
        assert!(testing::break_link_after(&one, direction, after));
        assert!(
            !testing::break_link_after(&one, direction, after),
            "once only"
        );
        for n in 0..100 {
            assert_eq!(one.call(double, n).await?, 2 * n);
            answered += 1;
        }
        Ok(())
    })
    .await;
    let error = result.expect_err("it is cut off");
    assert!(error.report().contains("one"), "{}", error.report());
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    Ok(answered)
}
