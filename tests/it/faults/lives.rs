//! Messages that are late, asks that wait for each other, and many isolates that come and go at once.

use super::{SOON, double};
use offshoot::prelude::*;
use offshoot_tests::{both, threads};
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
        // An ask that waited in a queue may begin when the one before it has given up.
        let Some(peer) = self.peer.clone() else {
            return Ok(0);
        };
        let asked = peer.with(async |node: &mut Node| Box::pin(node.ask_around()).await);
        offshoot::timeout(Duration::from_millis(200), asked).await??
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
                    assert!(error.is_timeout(), "{}", error.report());
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
