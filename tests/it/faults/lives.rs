//! Messages that are late, asks that wait for each other, and many isolates that come and go at once.

use super::{SOON, double, serves};
use offshoot::net::UnixListener;
use offshoot::prelude::*;
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::process;
use offshoot_tests::{Stopwatch, both, held, mark, processes, threads};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

struct Node {
    peer: Option<LocalPortal<Node>>,
}

impl Node {
    fn meet(&mut self, peer: LocalPortal<Node>) {
        self.peer = Some(peer);
    }

    /// Asks its peer the same.
    async fn ask_around(&mut self) -> Result<u32> {
        let Some(peer) = self.peer.clone() else {
            return Ok(0);
        };
        peer.with(async |node: &mut Node| Box::pin(node.ask_around()).await)
            .await?
    }
}

both! {
    /// Every sender takes its time between the push and the wake-up, in every process.
    fn f59_a_wake_up_that_is_late(t: T) {
        t.faults("wake:delay=2");
        t.run(async || {
            offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                let q = nursery.spawn("q").await?;
                for n in 0..50 {
                    let began = Instant::now();
                    assert_eq!(p.call(double, n).await?, 2 * n);
                    assert_eq!(q.call(double, n).await?, 2 * n);
                    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
                }
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    /// Many come and go at once, and none takes the time of another.
    fn f63_a_storm_of_starts_and_ends(t: T) {
        t.within(Duration::from_secs(60));
        let many = if t.is_process() { 200 } else { 1_000 };
        t.builder()
            .stack_size(256 << 10)
            .run(async move || {
                offshoot::nursery(async |nursery| {
                    let all: Vec<_> = (0..many)
                        .map(|n| {
                            nursery.task(async move {
                                let p = nursery.spawn(format!("p{n}")).await?;
                                let answer = p.call(double, n).await?;
                                p.cancel().await;
                                p.ended().await;
                                Ok::<u64, offshoot::Error>(answer)
                            })
                        })
                        .collect();
                    for (n, one) in (0..many).zip(all) {
                        assert_eq!(one.await??, 2 * n);
                    }
                    Ok(())
                })
                .await
            })
            .unwrap();
    }
}

threads! {
    fn f60_asks_that_wait_for_each_other(t: T) {
        let took = t
            .run(async || {
                offshoot::nursery(async |nursery| {
                    let a = nursery.start_local("a", Node { peer: None }).await?;
                    let b = nursery.start_local("b", Node { peer: None }).await?;
                    for (one, other) in [(&a, &b), (&b, &a)] {
                        let other = other.clone();
                        one.with(async move |node: &mut Node| node.meet(other)).await?;
                    }
                    let began = Instant::now();
                    let error = a.with(async |node: &mut Node| node.ask_around().await).await?.unwrap_err();
                    let circle: Vec<&str> = error.cycle().unwrap().iter().map(|one| &*one.path).collect();
                    assert_eq!(circle, ["root/a", "root/b"], "{}", error.report());
                    // Both are free again.
                    assert_eq!(a.call(double, 1).await?, 2);
                    assert_eq!(b.call(double, 1).await?, 2);
                    // They know each other, which would keep both alive.
                    for one in [&a, &b] {
                        one.with(async |node: &mut Node| node.peer = None).await?;
                    }
                    Ok(began.elapsed())
                })
                .await
            })
            .unwrap();
        assert!(took < SOON, "{took:?}");
    }
}

/// Waits on this thread for a future that needs no more of the isolate than its pool.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

fn socket() -> PathBuf {
    offshoot_tests::dir().join("socket")
}

/// Binds before anybody has heard that it is there.
fn binds_at_once(inbox: &mut Inbox) -> Result<()> {
    let _listener = block_on(UnixListener::bind(socket()))?;
    mark("bound");
    while inbox.serve()? {}
    Ok(())
}

processes! {
    /// What the processes of a dead forkserver left is swept while those of the next one bind already.
    fn f13_a_sweep_that_is_late(t: T) {
        t.faults("replaced:delay=600");
        t.run(async || {
            let lost = offshoot::nursery(async |nursery| {
                let p = nursery.spawn("p").await?;
                serves(&p).await?;
                let forkserver = process::children_of(process::id())[0];
                Pidfd::open(forkserver)?.kill()?;
                p.ended().await;
                Ok(())
            })
            .await;
            assert!(lost.is_err());
            let began = Instant::now();
            offshoot::nursery(async |nursery| {
                let q = nursery.task(nursery.spawn(Isolate::named("q").blocking_main(binds_at_once)));
                held("bound").await?;
                assert!(began.elapsed() < Duration::from_millis(600), "it came after the sweep");
                serves(&q.await??).await?;
                assert!(socket().exists(), "the living were swept");
                Ok(())
            })
            .await
        })
        .unwrap();
        assert!(!socket().exists());
    }

    /// The next forkserver is there before all is said of the processes of a dead one: theirs is not the
    /// word that is waited for, and it is not blamed for theirs.
    fn f13_a_successor_that_is_early(t: T) {
        t.faults("lost:delay=600");
        t.run(async || {
            offshoot::nursery(async |nursery| {
                let next = nursery.task(async move {
                    held("killed").await?;
                    // Until the root has noticed, which is then busy with the former one.
                    offshoot::sleep(Duration::from_millis(200)).await?;
                    let next = nursery.spawn("next").await?;
                    serves(&next).await
                });
                let watch = Stopwatch::start();
                let lost = offshoot::nursery(async |inner| {
                    let p = inner.spawn("p").await?;
                    serves(&p).await?;
                    let forkserver = process::children_of(process::id())[0];
                    Pidfd::open(forkserver)?.kill()?;
                    mark("killed");
                    p.ended().await;
                    Ok(())
                })
                .await;
                assert!(lost.is_err());
                assert!(watch.elapsed() < Duration::from_millis(1_400), "{:?}", watch.elapsed());
                next.await?
            })
            .await
        })
        .unwrap();
    }
}
