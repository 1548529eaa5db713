//! A pipeline of five processes that know each other by portals: what it moves, what it takes, and how it ends.
//!
//! Short here; with `OFFSHOOT_LONG`, as `ci/pipeline` sets it, with the amounts that are promised.

use offshoot::prelude::*;
use offshoot::{Bytes, Error, Exit, Origin, Payload};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::processes;
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// What flows: the number of each is in it, so that a lost or a wrong one is seen.
trait Piece: Payload {
    fn new(n: u64) -> Self;
    fn number(&self) -> u64;
}

/// 64 bytes.
impl Piece for [u64; 8] {
    fn new(n: u64) -> Self {
        [n; 8]
    }

    fn number(&self) -> u64 {
        self[7]
    }
}

const CHUNK: usize = 64 << 10;

impl Piece for Bytes {
    fn new(n: u64) -> Self {
        let mut bytes = vec![0; CHUNK];
        bytes[CHUNK - 8..].copy_from_slice(&n.to_le_bytes());
        bytes.into()
    }

    fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self[CHUNK - 8..]);
        u64::from_le_bytes(bytes)
    }
}

/// The most memory that this process had at once, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(u64::MAX)
}

/// Gives on what the next gives, or makes it where there is no next. In the end, what each has taken of memory.
async fn stage<P: Piece>(
    mut peer: Peer<(), P>,
    mut next: Vec<Portal>,
    count: u64,
) -> Result<Vec<u64>> {
    if next.is_empty() {
        peer.started(())?;
        for n in 0..count {
            peer.send(P::new(n)).await?;
        }
        return Ok(vec![peak()]);
    }
    let first = next.remove(0);
    let (mut link, ()) = first.open(stage::<P>, (next, count)).await?;
    peer.started(())?;
    while let Some(piece) = link.next().await? {
        peer.send(piece).await?;
    }
    let mut peaks = link.result().await??;
    peaks.push(peak());
    Ok(peaks)
}

async fn flow<P: Piece>(count: u64) -> Result<Vec<u64>> {
    offshoot::nursery(async |nursery| {
        let mut all = Vec::new();
        for n in 1..=5 {
            all.push(nursery.spawn(format!("stage-{n}")).await?);
        }
        let first = all.remove(0);
        let (mut link, ()) = first.open(stage::<P>, (all, count)).await?;
        let mut expected = 0;
        while let Some(piece) = link.next().await? {
            assert_eq!(piece.number(), expected);
            expected += 1;
        }
        assert_eq!(expected, count);
        link.result().await?
    })
    .await
}

fn long() -> bool {
    std::env::var_os("OFFSHOOT_LONG").is_some()
}

/// How it went, into the file that `ci/pipeline` names.
fn report(what: &str, bytes: u64, began: Instant, peaks: &[u64]) {
    let Some(path) = std::env::var_os("OFFSHOOT_REPORT") else {
        return;
    };
    let took = began.elapsed().as_secs_f64();
    let rate = bytes as f64 / took / 1e6;
    let own = peak();
    let line = format!(
        "{what}: {took:.1} s, {rate:.0} MB/s; peaks in KiB: {peaks:?}, of the opener {own}\n"
    );
    let mut file = File::options().append(true).open(path).expect("the report");
    file.write_all(line.as_bytes()).expect("a line of it");
}

processes! {
    fn items_of_64_bytes_pass_five_processes_in_bounded_memory(t: T) {
        t.within(Duration::from_secs(170));
        let count = if long() { 10_000_000 } else { 20_000 };
        let began = Instant::now();
        let peaks = t.run(async move || flow::<[u64; 8]>(count).await).expect("no failure");
        report(&format!("{count} items"), 64 * count, began, &peaks);
        assert_eq!(peaks.len(), 5);
        assert!(peaks.iter().all(|peak| *peak < 64 << 10), "{peaks:?} KiB");
    }

    fn chunks_of_64_kib_pass_five_processes_in_bounded_memory(t: T) {
        t.within(Duration::from_secs(170));
        let count = if long() { (4 << 30) / CHUNK as u64 } else { 1_000 };
        let began = Instant::now();
        let peaks = t.run(async move || flow::<Bytes>(count).await).expect("no failure");
        report(&format!("{count} chunks"), CHUNK as u64 * count, began, &peaks);
        assert!(peaks.iter().all(|peak| *peak < 64 << 10), "{peaks:?} KiB");
    }

    fn any_of_five_that_is_killed_at_any_time_is_one_error_at_the_opener(t: T) {
        t.within(Duration::from_secs(170));
        let rounds = if long() { 200 } else { 15 };
        for round in 0..rounds {
            let victim = round % 5 + 1;
            // From its first items on, to when all windows are full.
            let taken = [0, 1, 7, 63, 200, 1_000][round / 5 % 6];
            let error = t
                .run(async move || {
                    offshoot::nursery(async |nursery| {
                        let mut all = Vec::new();
                        for n in 1..=5 {
                            all.push(nursery.spawn(format!("stage-{n}")).await?);
                        }
                        let pid = all[victim - 1].origin().pid;
                        let first = all.remove(0);
                        let (mut link, ()) = first.open(stage::<[u64; 8]>, (all, u64::MAX)).await?;
                        for n in 0..taken {
                            let piece = link.next().await?.ok_or_else(|| Error::other("it ended"))?;
                            assert_eq!(piece.number(), n);
                        }
                        assert!(Pidfd::open(pid)?.kill()?);
                        while link.next().await?.is_some() {}
                        Ok(())
                    })
                    .await
                })
                .unwrap_err();
            let what = format!("round {round}, stage {victim}: {error:?}");
            assert_eq!(error.failures().len(), 1, "{what}");
            let killed = error.failures()[0];
            assert!(matches!(killed.exit(), Some(Exit::Killed { signal: 9, .. })), "{what}");
            let name = format!("stage-{victim}");
            assert_eq!(killed.origin().map(Origin::name), Some(name.as_str()), "{what}");
        }
    }
}
