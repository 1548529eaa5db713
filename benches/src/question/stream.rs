//! How fast do bulk data go to an isolate, in chunks of 64 KiB?
//!
//! Floors: a copy in memory, a bare ring in shared memory, and a socket pair, each to another
//! process that copies the chunk out.

use crate::engine::{Question, Subject};
use crate::floor::processes::Sink;
use crate::floor::ring::{CHUNK, Ring};
use crate::record::{Kind, Row, Side, Unit};
use crate::setting::{Reserve, tree};
use offshoot::{Bytes, Error, Isolate, Isolation, Peer};
use std::hint::black_box;
use std::time::Instant;

/// Chunks of a round.
const CHUNKS: usize = 128;
const UNIT: Unit = Unit::Chunk(CHUNK as u32);
const SOCKET: &str = "socket pair";
const RING: &str = "bare ring";
/// The ring of a link, in bytes each way: as much as the bare one has.
const BYTES: usize = 1 << 20;

/// Takes all chunks; how many bytes that were.
async fn take(mut peer: Peer<Bytes, ()>) -> Result<usize, Error> {
    peer.started(())?;
    let mut bytes = 0;
    while let Some(chunk) = peer.next().await? {
        bytes += black_box(&chunk).len();
    }
    Ok(bytes)
}

/// The question.
pub fn question() -> Question {
    Question {
        name: "stream",
        asks: "Chunks of 64 KiB to an isolate",
        subjects: vec![
            memory(),
            ring(),
            socket(),
            isolates(Isolation::Thread, false),
            isolates(Isolation::Process, false),
            isolates(Isolation::Process, true),
        ],
    }
}

fn memory() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, "memcpy").unit(UNIT);
    let (from, mut to) = (vec![1_u8; CHUNK], vec![0_u8; CHUNK]);
    Subject::new("memcpy", [row], move |into| {
        let start = Instant::now();
        for _ in 0..CHUNKS {
            black_box(&mut to).copy_from_slice(black_box(&from));
        }
        into.each(0, start.elapsed(), CHUNKS);
        Ok(())
    })
}

fn ring() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, RING).unit(UNIT);
    let mut ring = None;
    let chunk = Box::new([1_u8; CHUNK]);
    Subject::new("ring", [row], move |into| {
        let ring = match &mut ring {
            Some(ring) => ring,
            ring => ring.insert(Ring::for_stream()?),
        };
        let start = Instant::now();
        ring.stream(&chunk, CHUNKS as u32);
        into.each(0, start.elapsed(), CHUNKS);
        Ok(())
    })
}

fn socket() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, SOCKET).unit(UNIT);
    let mut sink = None;
    let chunk = vec![1_u8; CHUNK];
    Subject::new("socket", [row], move |into| {
        let sink = match &mut sink {
            Some(sink) => sink,
            sink => sink.insert(Sink::start()?),
        };
        let start = Instant::now();
        sink.stream(&chunk, CHUNKS)?;
        into.each(0, start.elapsed(), CHUNKS);
        Ok(())
    })
}

fn isolates(isolation: Isolation, ring: bool) -> Subject {
    let (key, side, who, floor) = match (isolation, ring) {
        (Isolation::Process, false) => (
            "process",
            Side::Process,
            "stream of bytes, process isolate",
            Some(SOCKET),
        ),
        (Isolation::Process, true) => (
            "process-ring",
            Side::Process,
            "stream of bytes, process isolate with a ring",
            Some(RING),
        ),
        _ => (
            "thread",
            Side::Thread,
            "stream of bytes, thread isolate",
            None,
        ),
    };
    let mut row = Row::new(Kind::Offshoot, side, who).unit(UNIT);
    if let Some(floor) = floor {
        row = row.floor(floor);
    }
    let ring = if ring { BYTES } else { 0 };
    let chunk = Bytes::from(vec![1; CHUNK]);
    Subject::new(key, [row], move |into| {
        let chunk = chunk.clone();
        let time = tree(isolation, Reserve::Default, async move || {
            offshoot::nursery(async |nursery| {
                let sink = nursery.spawn(Isolate::named("sink").ring(ring)).await?;
                let (mut link, ()) = sink.open(take, ()).await?;
                link.send(chunk.clone()).await?;
                let start = Instant::now();
                for _ in 0..CHUNKS {
                    link.send(chunk.clone()).await?;
                }
                link.close();
                let taken = link.result().await??;
                assert_eq!(taken, CHUNK * (CHUNKS + 1), "all have come");
                Ok(start.elapsed())
            })
            .await
        })?;
        into.each(0, time, CHUNKS);
        Ok(())
    })
}
