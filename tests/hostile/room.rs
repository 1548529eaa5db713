//! What a hostile process can take of the memory and of the descriptors of others.

use crate::wire::{Wire, encoded, frame, label, pair};
use offshoot::prelude::*;
use offshoot::testing::hostile;
use offshoot::{Error, Result};
use offshoot_tests::processes;
use offshoot_wire::frame::{HEADER, Kind};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// How much memory this process has, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages = statm.split_whitespace().nth(1).expect("a number");
    4096 * pages.parse::<usize>().expect("a number")
}

/// Says that an isolate blocks, at length.
async fn notice(times: usize, bytes: usize) -> Result<()> {
    let wire = Wire::new(hostile::uplink()?);
    let long = "x".repeat(bytes);
    for _ in 0..times {
        let origin = label(1, 2, 3, 4);
        let body = encoded(&(origin, Some(&long), Duration::from_secs(1), "nothing"));
        wire.send(Kind::Noticed, 0, &body);
    }
    Ok(())
}

/// The same from below: how much memory this process has more.
async fn above_noticing() -> Result<usize> {
    let before = resident();
    offshoot::nursery(async |nursery| {
        let evil = nursery.spawn("evil").await?;
        evil.call(notice, (40, 15 << 20)).await??;
        assert_eq!(evil.call(add, (1, 2)).await?, 3);
        Ok(())
    })
    .await?;
    Ok(resident().saturating_sub(before))
}

/// Who sends the half of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Peer {
    Child,
    Holder,
}

/// Sends the head of a frame and as many single bytes of it, each with 16 descriptors. How long the connection then was there.
async fn half(desk: Portal, peer: Peer, groups: usize) -> Result<Duration> {
    let mut wire = match peer {
        Peer::Child => Wire::new(hostile::uplink()?),
        Peer::Holder => Wire::to(&desk)?.0,
    };
    let kind = match peer {
        Peer::Child => Kind::Reply,
        Peer::Holder => Kind::Tell,
    };
    let began = Instant::now();
    let whole = frame(kind, 1 << 40, &[0; 1000]);
    wire.write(&whole[..HEADER], &[]);
    let (_ours, theirs) = pair()?;
    let fds: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(); 16];
    for at in 0..groups {
        if !wire.write(&whole[HEADER + at..=HEADER + at], &fds) {
            break;
        }
    }
    while wire.receive().is_some() {}
    Ok(began.elapsed())
}

/// What comes of it for its owner, and whether that can spawn meanwhile.
async fn halved(desk: &Portal, peer: Peer, groups: usize) -> Result<String> {
    let ended: Result<Duration> = offshoot::nursery(async |nursery| {
        let evil = nursery.spawn("evil").await?;
        let narrow = desk.narrow().call(add).portal();
        let call = evil.call(half, (narrow, peer, groups));
        let other = async {
            let other = nursery.spawn("other").await?;
            assert_eq!(other.call(add, (3, 4)).await?, 7);
            Ok::<_, Error>(())
        };
        let (took, other) = futures_util::future::join(call, other).await;
        other?;
        took?
    })
    .await;
    Ok(match ended {
        Ok(took) => format!("ended after {} s", took.as_secs()),
        Err(error) => error.report(),
    })
}

processes! {
    async fn notices_fill_no_memory(t: T) {
        t.within(Duration::from_secs(120));
        let before = resident();
        offshoot::nursery(async |nursery| {
            let above = nursery.spawn("above").await?;
            let grown = above.call(above_noticing, ()).await??;
            assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
            Ok(())
        })
        .await?;
        let grown = resident().saturating_sub(before);
        assert!(grown < 256 << 20, "{} MiB more", grown >> 20);
    }

    async fn half_a_frame_fills_no_descriptor_table(t: T) {
        t.within(Duration::from_secs(120));
        offshoot::nursery(async |nursery| {
            let desk = nursery.spawn(Isolate::named("desk").thread()).await?;
            // Many at once are refused at once, with what was wrong.
            let came = halved(&desk, Peer::Child, 500).await?;
            assert!(came.contains("more than 160 descriptors came before the frame"), "{came}");
            let came = halved(&desk, Peer::Holder, 500).await?;
            assert_eq!(came, "ended after 0 s");
            // A few are waited for.
            let came = halved(&desk, Peer::Child, 3).await?;
            assert!(came.contains("descriptors have waited for 5s"), "{came}");
            let came = halved(&desk, Peer::Holder, 3).await?;
            assert_eq!(came, "ended after 5 s");
            Ok(())
        })
        .await?;
    }
}
