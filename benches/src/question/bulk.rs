//! How fast does a value of some size go to an isolate, by what it is of?
//!
//! A call with the value, whose answer is short. Floors: a socket pair over which the same number of
//! bytes is written and read whole (`write_all`, `read_exact`), the bare ring for those of whole
//! chunks, and bincode alone, in one thread, both directions.

use crate::engine::{Question, Subject};
use crate::floor::processes::Values;
use crate::floor::ring::{CHUNK, Ring};
use crate::record::{Kind, Row, Side, Unit};
use crate::setting::{Reserve, tree};
use offshoot::{Bytes, Isolate, Isolation};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The sizes in bytes: from what fits into any message to what no sender expects to be copied.
pub const SIZES: [usize; 7] = [64, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 1 << 30];
/// Sizes of what is dear by its elements: up to here.
const SHORT: usize = 5;
/// About so many bytes of each size are sent in a round, but one value at least and 50 at most.
const ROUND: usize = 16 << 20;
/// The ring of a link, in bytes each way.
const RING: usize = 4 << 20;

/// An isolate that is called with values of a type. A macro, since what is called has a type of its own.
macro_rules! isolates {
    ($type:literal, $sizes:expr, $make:expr, $take:expr, $isolation:expr, $ring:expr) => {{
        let (key, side, who) = match ($isolation, $ring) {
            (Isolation::Process, true) => ("process-ring", Side::Process, "a process with a ring"),
            (Isolation::Process, false) => ("process", Side::Process, "a process isolate"),
            _ => ("thread", Side::Thread, "a thread isolate"),
        };
        let rows: Vec<Row> = sizes($sizes)
            .map(|bytes| {
                let name = format!("{} of {} to {who}", $type, size(bytes));
                let row = Row::new(Kind::Offshoot, side, name)
                    .unit(unit(bytes))
                    .not_charted();
                match side {
                    Side::Process => row.floor(socket_name(bytes)),
                    Side::Thread => row,
                }
            })
            .collect();
        Subject::new(key, rows, move |into| {
            let ring = if $ring { RING } else { 0 };
            let times = tree($isolation, Reserve::Default, async move || {
                offshoot::nursery(async |nursery| {
                    let isolate = Isolate::named("bulk").ring(ring);
                    let portal = nursery.spawn(isolate).await?;
                    let mut times = Vec::new();
                    for (row, bytes) in sizes($sizes).enumerate() {
                        let value = $make(bytes);
                        for _ in 0..count(bytes) {
                            let sent = value.clone();
                            let start = Instant::now();
                            black_box(portal.call($take, sent).await?);
                            times.push((row, start.elapsed()));
                        }
                    }
                    Ok(times)
                })
                .await
            })?;
            times
                .into_iter()
                .for_each(|(row, time)| into.time(row, time));
            Ok(())
        })
    }};
}

/// What a type is asked: bincode alone, a thread, a process, a process with a ring.
macro_rules! values {
    ($type:literal, $sizes:expr, $make:expr, $take:expr) => {
        [
            codec($type, $sizes, $make),
            isolates!($type, $sizes, $make, $take, Isolation::Thread, false),
            isolates!($type, $sizes, $make, $take, Isolation::Process, false),
            isolates!($type, $sizes, $make, $take, Isolation::Process, true),
        ]
    };
}

/// The question.
pub fn question() -> Question {
    let mut subjects = vec![socket(), ring()];
    subjects.extend(values!(
        "Vec<u8>",
        SIZES.len(),
        |bytes: usize| vec![7_u8; bytes],
        |value: Vec<u8>| value.len()
    ));
    subjects.extend(values!(
        "Bytes",
        SIZES.len(),
        |bytes: usize| Bytes::from(vec![7_u8; bytes]),
        |value: Bytes| value.len()
    ));
    subjects.extend(values!(
        "Vec<f64>",
        SIZES.len(),
        |bytes: usize| vec![7.0_f64; bytes / size_of::<f64>()],
        |value: Vec<f64>| value.len()
    ));
    subjects.extend(values!(
        "Vec<String>",
        SHORT,
        |bytes: usize| vec!["sixteen letters.".to_owned(); bytes / 16],
        |value: Vec<String>| value.len()
    ));
    Question {
        name: "bulk",
        asks: "A call with a value of so many bytes, and a short answer",
        subjects,
    }
}

fn sizes(count: usize) -> impl Iterator<Item = usize> {
    SIZES.into_iter().take(count)
}

/// How many values of this size are sent in a round.
pub fn count(bytes: usize) -> usize {
    (ROUND / bytes).clamp(1, 50)
}

/// What a sample of this size counts.
pub fn unit(bytes: usize) -> Unit {
    Unit::Chunk(u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// As people say it.
pub fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// The floor of this size.
pub fn socket_name(bytes: usize) -> String {
    format!("socket pair, {}", size(bytes))
}

fn socket() -> Subject {
    let rows: Vec<Row> = SIZES
        .map(|bytes| {
            let name = socket_name(bytes);
            Row::new(Kind::Floor, Side::Process, name)
                .unit(unit(bytes))
                .not_charted()
        })
        .into();
    let mut far = None;
    Subject::new("socket", rows, move |into| {
        let far = match &mut far {
            Some(far) => far,
            far => far.insert(Values::start()?),
        };
        for (row, bytes) in SIZES.into_iter().enumerate() {
            let value = vec![7_u8; bytes];
            for _ in 0..count(bytes) {
                let start = Instant::now();
                far.send(&value)?;
                into.time(row, start.elapsed());
            }
        }
        Ok(())
    })
}

fn ring() -> Subject {
    let whole = || SIZES.into_iter().filter(|bytes| bytes % CHUNK == 0);
    let rows: Vec<Row> = whole()
        .map(|bytes| {
            let name = format!("bare ring, {}", size(bytes));
            Row::new(Kind::Floor, Side::Process, name)
                .unit(unit(bytes))
                .not_charted()
        })
        .collect();
    let mut far = None;
    let chunk = Box::new([7_u8; CHUNK]);
    Subject::new("ring", rows, move |into| {
        let far = match &mut far {
            Some(far) => far,
            far => far.insert(Ring::for_stream()?),
        };
        for (row, bytes) in whole().enumerate() {
            let chunks = u32::try_from(bytes / CHUNK).unwrap_or(u32::MAX);
            for _ in 0..count(bytes) {
                let start = Instant::now();
                far.stream(&chunk, chunks);
                into.time(row, start.elapsed());
            }
        }
        Ok(())
    })
}

/// bincode through serde, out and in again, in one thread.
fn codec<T>(kind: &'static str, most: usize, make: fn(usize) -> T) -> Subject
where
    T: serde::Serialize + serde::de::DeserializeOwned + 'static,
{
    let rows: Vec<Row> = sizes(most)
        .map(|bytes| {
            let name = format!("bincode alone, {kind} of {}", size(bytes));
            Row::new(Kind::Floor, Side::Process, name)
                .unit(unit(bytes))
                .not_charted()
        })
        .collect();
    let config = bincode::config::standard();
    Subject::new("bincode", rows, move |into| {
        let mut buffer = Vec::new();
        for (row, bytes) in sizes(most).enumerate() {
            let value = make(bytes);
            // One by one it takes seconds: less of it says the same.
            for _ in 0..count(bytes).min(5) {
                buffer.clear();
                let start = Instant::now();
                bincode::serde::encode_into_std_write(&value, &mut buffer, config)?;
                let back: (T, usize) = bincode::serde::decode_from_slice(&buffer, config)?;
                let time: Duration = start.elapsed();
                black_box(back);
                into.time(row, time);
            }
        }
        Ok(())
    })
}
