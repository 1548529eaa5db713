//! Long `Bytes`: whole whatever goes along, and not copied by who sends them.

use futures_util::future::try_join_all;
use offshoot::prelude::*;
use offshoot::{Bytes, current};
use offshoot_tests::{both, hold, mark, processes, soon};

/// Around the length from which on they are shared, and beyond what a link reads at once.
const LENS: [usize; 9] = [
    0,
    1,
    16_383,
    16_384,
    16_385,
    65_536,
    70_000,
    300_000,
    3 << 20,
];

fn pattern(len: usize, seed: usize) -> Bytes {
    (0..len).map(|n| (n * 31 + n / 251 + seed) as u8).collect()
}

/// Turns the pair around, and says what stood between.
fn turned(a: Bytes, between: String, b: Bytes) -> (Bytes, Bytes, String) {
    (b, a, between)
}

fn is_held(count: usize, bytes: Vec<Bytes>, by: Portal) -> (usize, bool, Portal) {
    let same = bytes.windows(2).all(|pair| pair[0] == pair[1]);
    (count * bytes.len(), same, by)
}

async fn echoes(mut peer: Peer<Bytes, Bytes>) -> Result<()> {
    peer.started(())?;
    while let Some(bytes) = peer.next().await? {
        peer.send(bytes.slice(1..)).await?;
    }
    Ok(())
}

both! {
    async fn long_bytes_arrive_whole_beside_what_is_short(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            for len in LENS {
                for other in [0, 5, 20_000] {
                    let (a, b) = (pattern(len, 1), pattern(other, 2));
                    let back = p.call(turned, (a.clone(), "between".to_owned(), b.clone())).await?;
                    assert!(back == (b, a, "between".to_owned()), "{len} and {other} bytes came back as others");
                }
            }
            // As many as do not fit into the link at once, the same ones several times, with a portal beside.
            let calls = (0..40).map(|n| {
                let bytes = pattern(LENS[n % 8], n);
                let p = &p;
                async move {
                    let all = vec![bytes.clone(), bytes.clone(), bytes];
                    let (count, same, by) = p.call(is_held, (n, all, current().portal()?)).await?;
                    assert!(count == 3 * n && same && by.id() == current().id());
                    Ok::<(), offshoot::Error>(())
                }
            });
            try_join_all(calls).await?;
            Ok(())
        })
        .await?;
    }

    async fn a_part_of_what_arrived_is_given_on(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            let (mut link, ()) = p.open(echoes, ()).await?;
            for (seed, len) in LENS.into_iter().filter(|len| *len > 0).enumerate() {
                let bytes = pattern(len, seed);
                link.send(bytes.clone()).await?;
                let back = link.next().await?.expect("an item for each");
                assert!(back[..] == bytes[1..], "{len} bytes came back as others");
                assert!(back.into_vec() == bytes[1..]);
            }
            link.close();
            assert!(link.next().await?.is_none());
            link.result().await??;
            Ok(())
        })
        .await?;
    }
}

/// What this process has in memory, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("of this process");
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("a number")
}

fn holds(n: usize) {
    mark(&format!("holding {n}"));
    hold("release");
}

fn length(bytes: Bytes) -> usize {
    bytes.len()
}

processes! {
    /// Nobody takes them for now: what waits for room in the links is no copy.
    async fn what_is_sent_to_many_is_held_once(_t: T) {
        const LEN: usize = 15 << 20;
        offshoot::nursery(async |nursery| {
            let bytes = Bytes::from(vec![7; LEN]);
            let mut all = Vec::new();
            for n in 0..6 {
                let p = nursery.spawn(format!("p{n}")).await?;
                nursery.task({
                    let p = p.clone();
                    async move { p.call(holds, n).await }
                }).detach();
                soon("it blocks", || offshoot_tests::marked(&format!("holding {n}"))).await?;
                all.push(p);
            }
            let before = resident();
            let mut calls: Vec<_> = all.iter().map(|p| Box::pin(p.call(length, bytes.clone()))).collect();
            for call in &mut calls {
                let begun = futures_util::future::poll_immediate(call.as_mut()).await;
                assert!(begun.is_none());
            }
            let grown = resident().saturating_sub(before);
            assert!(grown < LEN as u64 / 1024, "{grown} KiB more for what is there already");
            mark("release");
            assert_eq!(try_join_all(calls).await?, vec![LEN; 6]);
            Ok(())
        })
        .await?;
    }
}
