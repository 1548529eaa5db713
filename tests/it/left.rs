//! Nothing is left behind: by a tree whose leaf is deaf, by a thread that had to be abandoned, and by what the oracle is shown.

use offshoot::net::{TcpListener, UnixListener, UnixStream};
use offshoot::prelude::*;
use offshoot::{Error, RegisteredPath};
use offshoot_tests::{
    Oracle, append, both, bystander, dir, held, lines, mark, marked, processes, threads, until,
};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_millis(100);
/// The topmost isolate has a tenth of it to reap and report before its own end.
const HARD: Duration = Duration::from_secs(4);
/// What a busy machine adds.
const LATE: Duration = Duration::from_millis(1_500);

/// How often what is random or rare is tried.
fn often(short: usize, long: usize) -> usize {
    match std::env::var_os("OFFSHOOT_LONG") {
        Some(_) => long,
        None => short,
    }
}

/// Binds, and then blocks as a program does that knows nothing of cancellation.
async fn binds_and_sleeps(path: PathBuf) -> Result<()> {
    let _listener = UnixListener::bind(&path).await?;
    let _pid = offshoot::pid_file(path.with_extension("pid")).await?;
    append("deaf", "begun");
    // For longer than the ladder is, or it would end by itself.
    std::thread::sleep(HARD + LATE);
    Ok(())
}

async fn child_and_grandchild(path: PathBuf) -> Result<()> {
    offshoot::nursery(async |nursery| {
        let child = nursery.spawn("child").await?;
        child.call(grandchild, path).await?
    })
    .await
}

async fn grandchild(path: PathBuf) -> Result<()> {
    offshoot::nursery(async |nursery| {
        let deaf = nursery.spawn("grandchild").await?;
        let _other = UnixListener::bind(path.with_extension("of-its-parent")).await?;
        deaf.call(binds_and_sleeps, path.clone()).await?
    })
    .await
}

both! {
    /// A leaf that blocks in a synchronous sleep while its grandparent is cancelled, everybody's sockets bound: no socket, no process, within the ladder.
    fn a_deaf_grandchild_of_the_cancelled_leaves_nothing(t: T) {
        let rounds = often(2, 100);
        t.within(Duration::from_secs(if rounds > 2 { 900 } else { 60 }));
        let mut slowest = Duration::ZERO;
        for round in 0..rounds {
            let begun = lines("deaf").len();
            let took = t.builder().grace(GRACE).hard_kill(HARD).run(async move || {
                let path = dir().join("socket");
                let mut cancelled = Instant::now();
                let result = offshoot::nursery(async |nursery| {
                    let grandparent = nursery.spawn("grandparent").await?;
                    let asked = grandparent.clone();
                    let bound = path.clone();
                    drop(nursery.task(async move { asked.call(child_and_grandchild, bound).await }));
                    while lines("deaf").len() == begun {
                        offshoot::sleep(Duration::from_millis(1)).await?;
                    }
                    assert!(path.exists());
                    cancelled = Instant::now();
                    grandparent.cancel().await;
                    Ok(())
                })
                .await;
                let took = cancelled.elapsed();
                let error = result.expect_err("the leaf had to be forced");
                assert!(error.report().contains("grandchild"), "{}", error.report());
                // The nursery has returned, and so they are gone.
                for left in [path.clone(), path.with_extension("pid"), path.with_extension("of-its-parent")] {
                    assert!(!left.exists(), "round {round}: {}", left.display());
                }
                Ok(took)
            })
            .unwrap();
            assert!(took < HARD + LATE, "round {round}: {took:?}");
            slowest = slowest.max(took);
            // A thread comes back after its sleep, and must find nothing to remove of the next round's.
        }
        println!("{rounds} rounds, the slowest was down {slowest:?} after the cancellation");
    }
}

/// Has all that an isolate can have, and then blocks until it is released; says what it found when it came back.
async fn has_all_and_blocks(path: PathBuf) -> Result<()> {
    let listener = UnixListener::bind(&path).await?;
    let port = TcpListener::bind(("127.0.0.1", 0)).await?;
    append("port", &port.local_addr()?.port().to_string());
    let _file: RegisteredPath = offshoot::pid_file(path.with_extension("pid")).await?;
    // A task of its own, with a timer that is due while its thread is blocked, and once more when it is back.
    let ticking = async {
        loop {
            offshoot::sleep(Duration::from_millis(20)).await?;
            append("ticks", "one");
        }
        #[allow(unreachable_code)] // For the type.
        Ok::<(), Error>(())
    };
    let blocking = async {
        offshoot::sleep(Duration::from_millis(50)).await?;
        append("ticks", "blocked");
        mark("blocked");
        until(|| marked("released"));
        append("ticks", "back");
        // What it still has is dead: nothing can come in by it, and no other file has its number.
        let accepted = listener.accept().await.map(drop);
        append("accepted", &format!("{accepted:?}"));
        Ok::<(), Error>(())
    };
    futures_util::future::try_join(ticking, blocking)
        .await
        .map(drop)
}

fn answers() -> u32 {
    7
}

threads! {
    /// The thread of an isolate that had to be abandoned keeps nothing from others: its paths are free, who talks to it sees the end, who waits
    /// for it is told why, its timers set nothing off any more; and when it comes back it finds dead sockets, and removes nothing.
    fn an_abandoned_thread_keeps_nothing(t: T) {
        let path = dir().join("socket");
        let bound = path.clone();
        let result = t.builder().grace(GRACE).hard_kill(HARD).run(async move || {
            // Those who wait are of another nursery than the one that fails by it.
            offshoot::nursery(async |outer| {
                let mut waiting = None;
                let error = offshoot::nursery(async |nursery| {
                    let deaf = nursery.spawn("deaf").await?;
                    let (asked, path) = (deaf.clone(), bound.clone());
                    let begun = outer.task(async move { asked.call(has_all_and_blocks, path).await.map(drop) });
                    held("blocked").await?;
                    // Connected while it lived, and never accepted.
                    let queued = UnixStream::connect(&bound).await?;
                    let asked = deaf.clone();
                    let late = outer.task(async move { asked.call(answers, ()).await.map(drop) });
                    deaf.cancel().await;
                    waiting = Some((deaf, begun, late, queued));
                    Ok(())
                })
                .await
                .unwrap_err();
                assert!(error.report().contains("abandoned"), "{}", error.report());
                let (deaf, begun, late, queued) = waiting.expect("it was spawned");
                // Pending calls, begun or not, and those that come after.
                for told in [begun.await?, late.await?, deaf.call(answers, ()).await.map(drop)] {
                    let error = told.expect_err("nobody answers");
                    let is_told = matches!(error.exit(), Some(Exit::Abandoned { .. })) || error.is_cancelled();
                    assert!(is_told, "{}", error.report());
                }
                assert!(matches!(deaf.ended().await, Exit::Abandoned { .. }));
                let error = deaf.call(answers, ()).await.unwrap_err();
                assert!(matches!(error.exit(), Some(Exit::Abandoned { .. })), "{}", error.report());
                let mut byte = [0];
                let mut stream = &queued;
                let end = futures_util::AsyncReadExt::read(&mut stream, &mut byte);
                let end = offshoot::timeout(LATE, end).await?;
                assert!(!matches!(end, Ok(1)), "{end:?}");
                Ok(())
            })
            .await?;
            // Its paths are free, and its port is, while the thread still has both listeners.
            assert!(!bound.exists() && !bound.with_extension("pid").exists());
            let port: u16 = lines("port")[0].parse().expect("a port");
            let _port = TcpListener::bind(("127.0.0.1", port)).await?;
            let successor = UnixListener::bind(&bound).await?;
            // Takes the lowest free number, which must not be one of the abandoned thread's.
            let mut zero = File::open("/dev/zero")?;
            mark("released");
            let is_back = || until(|| lines("ticks").contains(&"back".to_owned()));
            assert!(offshoot::unblock(is_back).await?, "it did not come back");
            // It has nothing to say any more: what could come is given a moment.
            offshoot::sleep(Duration::from_millis(100)).await?;
            // It took nobody for its own.
            assert!(bound.exists(), "the successor's socket is gone");
            drop(UnixStream::connect(&bound).await?);
            drop(successor.accept().await?);
            let mut byte = [1];
            zero.read_exact(&mut byte)?;
            assert_eq!(byte, [0]);
            // No timer of it has fired since it was blocked.
            let ticks = lines("ticks");
            let since: Vec<&String> = ticks.iter().skip_while(|line| *line != "blocked").collect();
            assert_eq!(since, ["blocked", "back"], "{ticks:?}");
            for line in lines("accepted") {
                assert!(line.starts_with("Err"), "{line}");
            }
            Ok(())
        });
        result.unwrap();
        assert!(!path.exists());
    }

    /// The oracle is shown one of each kind of what it looks for itself.
    fn the_oracle_sees_what_is_left(_t: T) {
        let oracle = Oracle::patient(Duration::from_millis(30));
        let file = File::open("/dev/zero").expect("a file");
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv().unwrap_or_default());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        let tree = dir().join("run/offshoot/00000000000000ab");
        std::fs::create_dir_all(&tree).expect("a directory");
        let late = async || {
            for _ in 0..3 {
                bystander(async { std::thread::sleep(Duration::from_millis(40)) }).await;
            }
        };
        futures_util::FutureExt::now_or_never(late()).expect("it only blocks");
        let grown = vec![1_u8; 80 << 20];
        let wrong = oracle.verdict();
        for number in ["O1", "O2", "O3", "O4", "O8", "O11"] {
            assert!(wrong.iter().any(|text| text.starts_with(number)), "{number}: {wrong:#?}");
        }
        drop((file, stop, std::hint::black_box(grown)));
        thread.join().expect("no panic");
        child.kill().expect("our own");
        child.wait().expect("our own");
        std::fs::remove_dir_all(tree.parent().expect("a base")).expect("ours");
        offshoot_tests::forget_bystanders();
    }
}

processes! {
    /// What a process isolate could not be asked for any more is told of its end, and a portal that is kept names nobody else.
    async fn a_portal_to_the_dead_reaches_no_successor(_t: T) {
        let mut portal = None;
        let _ = offshoot::nursery(async |nursery| {
            let one = nursery.spawn("one").await?;
            offshoot_sys::pidfd::Pidfd::open(one.origin().pid)?.kill()?;
            one.ended().await;
            portal = Some(one);
            Ok(())
        })
        .await;
        let portal = portal.expect("it was spawned");
        offshoot::nursery(async |nursery| {
            let next = nursery.spawn("one").await?;
            assert_eq!(next.call(answers, ()).await?, 7);
            let error = portal.call(answers, ()).await.unwrap_err();
            assert!(error.is_ended() && error.message().contains("SIGKILL"), "{}", error.report());
            Ok(())
        })
        .await?;
    }
}
