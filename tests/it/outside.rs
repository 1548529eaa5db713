//! What reaches a tree from outside: handles, signals of its own, its output, its peers.

use offshoot::net::TcpStream;
use offshoot::prelude::*;
use offshoot::{Builder, Running, Sigint, Stdio};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::signal;
use offshoot_tests::{append, both, held, mark, marked, processes, soon, threads, until};
use std::io::Read;
use std::sync::mpsc;
use std::time::Duration;

async fn pends() {
    mark("pends");
    std::future::pending::<()>().await;
}

async fn waits_in_an_isolate() -> Result<()> {
    offshoot::nursery(async |nursery| nursery.spawn("below").await?.call(pends, ()).await).await
}

/// The threads of this process.
fn threads_here() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

both! {
    /// A tree that was started is cancelled by its handle, from any thread.
    fn a_handle_cancels_a_tree(t: T) {
        let running = t.builder().start(waits_in_an_isolate).unwrap();
        let handle = running.handle();
        assert!(until(|| marked("pends")));
        assert!(handle.dump().iter().any(|line| line.contains("root")), "{:?}", handle.dump());
        let other = handle.clone();
        assert!(std::thread::spawn(move || other.cancel()).join().is_ok());
        handle.cancel();
        let error = running.wait().unwrap_err();
        assert!(error.is_cancelled(), "{error:?}");
        assert!(error.message().contains("the program"), "{error:?}");
    }

    /// Dropping a tree ends it: when the drop returns, nothing of it runs. The oracle looks.
    fn a_dropped_tree_is_over(t: T) {
        let running = t.builder().start(waits_in_an_isolate).unwrap();
        assert!(until(|| marked("pends")));
        drop(running);
    }

    /// It would wait for itself: an error at once, on each kind of thread of the tree. The tree goes on.
    fn a_tree_does_not_wait_for_itself(t: T) {
        type Handed = Running<()>;
        async fn on_root(running: Handed) -> Result<()> {
            running.wait()
        }
        async fn on_another_isolate(running: Handed) -> Result<()> {
            offshoot::nursery(async |nursery| {
                let below = nursery.spawn_local("below").await?;
                below.run(async move || running.wait()).await?
            })
            .await
        }
        async fn on_a_thread_for_blocking_work(running: Handed) -> Result<()> {
            offshoot::unblock(move || running.wait()).await?
        }
        async fn try_each(way: usize, running: Handed) -> Result<()> {
            match way {
                0 => on_root(running).await,
                1 => on_another_isolate(running).await,
                _ => on_a_thread_for_blocking_work(running).await,
            }
        }
        let before = threads_here();
        for way in 0..3 {
            let (hand, handed) = mpsc::channel::<Handed>();
            let (say, said) = mpsc::channel();
            let running = t
                .builder()
                .start(async move || {
                    let running = offshoot::unblock(move || handed.recv()).await?;
                    let refused = try_each(way, running.map_err(Error::other)?).await;
                    // The tree goes on.
                    offshoot::sleep(Duration::from_millis(1)).await?;
                    let _ = say.send(refused);
                    Ok(())
                })
                .unwrap();
            hand.send(running).unwrap();
            let refused = said.recv_timeout(Duration::from_secs(10)).unwrap().unwrap_err();
            assert!(refused.to_string().contains("wait for ever"), "{}", refused.report());
            // With the one that looks after it.
            assert!(until(|| threads_here() == before));
        }
    }

    /// Dropped within its tree, a handle cancels it and waits for nothing.
    fn a_handle_that_is_dropped_within_its_tree_cancels_it(t: T) {
        let before = threads_here();
        let (hand, handed) = mpsc::channel::<Running<()>>();
        let (say, said) = mpsc::channel();
        let running = t
            .builder()
            .start(async move || {
                drop(offshoot::unblock(move || handed.recv()).await?);
                let cancelled = offshoot::timeout(Duration::from_secs(5), offshoot::cancelled());
                let _ = say.send(cancelled.await.is_ok());
                Ok(())
            })
            .unwrap();
        hand.send(running).unwrap();
        assert!(said.recv_timeout(Duration::from_secs(10)).unwrap());
        assert!(until(|| threads_here() == before));
    }

    /// A value comes back through the handle as it does from `run`.
    fn a_started_tree_gives_its_value(t: T) {
        let running = t.builder().start(async || Ok(7)).unwrap();
        assert_eq!(running.wait().unwrap(), 7);
    }
}

/// Prints more than a pipe holds, in lines.
fn talks(lines: u32) {
    for n in 0..lines {
        println!("line {n} of something that is a little longer than it has to be");
    }
    eprintln!("and a word on the other stream");
    mark("talked");
}

async fn waits_for_its_end() {
    mark("waits");
    offshoot::cancelled().await;
    append(
        "ended by",
        &offshoot::current()
            .cancelled()
            .map(|c| c.to_string())
            .unwrap_or_default(),
    );
}

async fn ignores_its_end() {
    mark("waits");
    std::future::pending::<()>().await;
}

processes! {
    /// A process never blocks on its output when that is piped, and the last of it is kept.
    async fn piped_output_is_drained(_t: T) {
        offshoot::nursery(async |nursery| {
            let isolate = Isolate::named("talks").process().stdout(Stdio::Piped).stderr(Stdio::Piped);
            let portal = nursery.spawn(isolate).await?;
            portal.call(talks, 20_000).await?;
            let whole = || portal.output_tail().is_some_and(|tail| {
                tail.contains("line 19999 of") && tail.contains("other stream")
            });
            soon("the output has arrived", whole).await?;
            let tail = portal.output_tail().unwrap_or_default();
            assert!(tail.len() <= 16 << 10 && !tail.contains("line 1 of"), "{} bytes", tail.len());
            Ok(())
        })
        .await?;
    }

    /// A process that handles its own signals is cancelled by them, in order.
    async fn a_signal_of_its_own_cancels_it(_t: T) {
        offshoot::nursery(async |nursery| {
            let isolate = Isolate::named("own").process().sigint(Sigint::Own);
            let portal = nursery.spawn(isolate).await?;
            let called = portal.clone();
            nursery.task(async move { called.call(waits_for_its_end, ()).await }).detach();
            held("waits").await?;
            Pidfd::open(portal.origin().pid)?.signal(signal::SIGINT)?;
            let exit = portal.ended().await;
            assert_eq!(exit.word(), "cancelled", "{exit:?}");
            assert!(exit.to_string().contains("SIGINT"), "{exit}");
            assert!(offshoot_tests::lines("ended by")[0].contains("SIGINT"));
            Ok(())
        })
        .await?;
    }

    /// A second signal ends its grace.
    async fn a_second_signal_ends_its_grace(_t: T) {
        offshoot::nursery(async |nursery| {
            let isolate = Isolate::named("own").process().sigint(Sigint::Own);
            let isolate = isolate.grace(Duration::from_secs(600)).hard_kill(Duration::from_secs(900));
            let portal = nursery.spawn(isolate).await?;
            let called = portal.clone();
            nursery.task(async move { called.call(ignores_its_end, ()).await }).detach();
            held("waits").await?;
            let process = Pidfd::open(portal.origin().pid)?;
            // Until it has ended, since two signals of one number may arrive as one.
            soon("it ends", || {
                let _ = process.signal(signal::SIGTERM);
                portal.exit().is_some()
            })
            .await?;
            assert_eq!(portal.ended().await.word(), "cancelled");
            Ok(())
        })
        .await?;
    }

    /// Without that, a signal ends it as it ends any process.
    async fn a_signal_ends_it_otherwise(_t: T) {
        let result = offshoot::nursery(async |nursery| {
            let portal = nursery.spawn(Isolate::named("plain").process()).await?;
            let called = portal.clone();
            nursery.task(async move { called.call(ignores_its_end, ()).await }).detach();
            held("waits").await?;
            Pidfd::open(portal.origin().pid)?.signal(signal::SIGTERM)?;
            portal.ended().await;
            Ok(())
        })
        .await;
        let error = result.unwrap_err();
        assert!(error.to_string().contains("SIGTERM"), "{error:?}");
    }
}

async fn connects_and_hangs(port: u16) -> Result<()> {
    let _stream = TcpStream::connect(("127.0.0.1", port)).await?;
    mark("connected");
    until(|| marked("released"));
    Ok(())
}

threads! {
    /// Who talks with a thread that was given up sees the end of the connection. When the thread
    /// comes back after all, it closes what it had, and nothing else; the oracle looks.
    fn peers_of_an_abandoned_thread_see_the_end(t: T) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let result = Builder::new()
            .isolation(t.isolation)
            .grace(Duration::from_millis(50))
            .hard_kill(Duration::from_millis(200))
            .run(async move || {
                offshoot::nursery(async |nursery| {
                    let portal = nursery.spawn("hangs").await?;
                    nursery.task(async move { portal.call(connects_and_hangs, port).await }).detach();
                    held("connected").await?;
                    Err::<(), _>(Error::other("enough"))
                })
                .await
            });
        assert!(result.unwrap_err().report().contains("abandoned"));
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the end of the stream");
        mark("released");
    }
}
