//! What does a round trip take?
//!
//! One after another, as fast as it goes, and with both sides asleep in between. Floors: crossbeam's
//! and std's channels, eventfds, a parked thread, a socket pair to another process, a bare ring.

use super::{PACES, Pace};
use crate::engine::{Failure, Question, Subject};
use crate::floor::processes::Echo;
use crate::floor::ring::Ring;
use crate::floor::threads::EventFds;
use crate::record::{Kind, Recorder, Row, Side};
use crate::setting::{Reserve, pause, tree};
use offshoot::{Isolate, Isolation};
use std::sync::mpsc;
use std::time::Instant;

const AWAKE: &str = "crossbeam channels, one after another";
const ASLEEP: &str = "eventfds, every 200 µs";
const SOCKET: &str = "socket pair, one after another";
const SOCKET_ASLEEP: &str = "socket pair, every 200 µs";
const RING: &str = "bare ring that spins 30 µs, one after another";
const RING_ASLEEP: &str = "bare ring that spins 30 µs, every 200 µs";
/// The ring of a link, in bytes each way.
const BYTES: usize = 64 << 10;

/// How messages get to an isolate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They do not leave the process.
    None,
    Socket,
    Ring,
}

/// The first is as fast as it goes; in the second both sides sleep before each.
pub fn paces() -> [Pace; 2] {
    [
        Pace {
            per_round: 2_000,
            ..PACES[0]
        },
        PACES[1],
    ]
}

/// What is called and asked: the smallest message there is, since it is the way that is measured.
async fn echo(n: u64) -> u64 {
    n
}

fn count(state: &mut u64, by: u64) -> u64 {
    *state += by;
    *state
}

/// The question.
pub fn question() -> Question {
    Question {
        name: "call",
        asks: "The round trip of a call and of an ask",
        subjects: vec![
            channels(),
            std_channels(),
            event_fds(),
            isolates(Isolation::Thread, Way::None),
            sockets(),
            ring(),
            isolates(Isolation::Process, Way::Socket),
            isolates(Isolation::Process, Way::Ring),
        ],
    }
}

fn rows(kind: Kind, side: Side, who: &str) -> Vec<Row> {
    paces()
        .iter()
        .map(|pace| Row::new(kind, side, format!("{who}, {}", pace.name)))
        .collect()
}

/// Measures one way to go round at both paces.
fn rounds(
    into: &mut Recorder<'_>,
    mut round: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    for (row, pace) in paces().iter().enumerate() {
        for _ in 0..pace.per_round {
            pause(pace.pause);
            let start = Instant::now();
            round()?;
            into.time(row, start.elapsed());
        }
    }
    Ok(())
}

fn channels() -> Subject {
    let rows = rows(Kind::Floor, Side::Thread, "crossbeam channels");
    Subject::new("crossbeam", rows, |into| {
        let (to, there) = crossbeam::channel::bounded::<u64>(1_024);
        let (back, from) = crossbeam::channel::bounded::<u64>(1_024);
        let thread = std::thread::spawn(move || there.iter().try_for_each(|n| back.send(n)));
        let done = rounds(into, || {
            to.send(1)?;
            from.recv()?;
            Ok(())
        });
        drop(to);
        let _ = thread.join();
        done
    })
}

fn std_channels() -> Subject {
    let rows = rows(Kind::Floor, Side::Thread, "std channels");
    Subject::new("std", rows, |into| {
        let (to, there) = mpsc::channel::<u64>();
        let (back, from) = mpsc::channel::<u64>();
        let thread = std::thread::spawn(move || there.iter().try_for_each(|n| back.send(n)));
        let done = rounds(into, || {
            to.send(1)?;
            from.recv()?;
            Ok(())
        });
        drop(to);
        let _ = thread.join();
        done
    })
}

fn event_fds() -> Subject {
    let rows = rows(Kind::Floor, Side::Thread, "eventfds");
    Subject::new("eventfd", rows, |into| {
        let mut event = EventFds::start()?;
        rounds(into, || Ok(event.ping()?))
    })
}

fn sockets() -> Subject {
    let rows = rows(Kind::Floor, Side::Process, "socket pair");
    let mut echo = None;
    Subject::new("socket", rows, move |into| {
        let echo = match &mut echo {
            Some(echo) => echo,
            echo => echo.insert(Echo::start()?),
        };
        rounds(into, || Ok(echo.ping()?))
    })
}

fn ring() -> Subject {
    let rows = rows(Kind::Floor, Side::Process, "bare ring that spins 30 µs");
    let mut ring = None;
    Subject::new("ring", rows, move |into| {
        let ring = match &mut ring {
            Some(ring) => ring,
            ring => ring.insert(Ring::for_pings()?),
        };
        rounds(into, || {
            ring.ping();
            Ok(())
        })
    })
}

fn isolates(isolation: Isolation, way: Way) -> Subject {
    let (key, side, who, floors) = match way {
        Way::None => ("thread", Side::Thread, "thread isolate", [AWAKE, ASLEEP]),
        Way::Socket => (
            "process",
            Side::Process,
            "process isolate",
            [SOCKET, SOCKET_ASLEEP],
        ),
        Way::Ring => (
            "process-ring",
            Side::Process,
            "process isolate with a ring",
            [RING, RING_ASLEEP],
        ),
    };
    let ring = if way == Way::Ring { BYTES } else { 0 };
    let mut all = Vec::new();
    for what in ["call", "ask"] {
        let rows = rows(Kind::Offshoot, side, &format!("{what}, {who}"));
        all.extend(
            rows.into_iter()
                .zip(floors)
                .map(|(row, floor)| row.floor(floor)),
        );
    }
    Subject::new(key, all, move |into| {
        let times = tree(isolation, Reserve::Default, async move || {
            offshoot::nursery(async |nursery| {
                let farm = nursery.spawn(Isolate::named("farm").ring(ring)).await?;
                let counter = Isolate::named("counter").ring(ring);
                let counter = nursery.start(counter, 0_u64).await?;
                let mut times = [const { Vec::new() }; 4];
                for (row, pace) in paces().iter().enumerate() {
                    times[row].reserve(pace.per_round);
                    times[row + 2].reserve(pace.per_round);
                    for n in 0..pace.per_round {
                        pause(pace.pause);
                        let start = Instant::now();
                        farm.call(echo, n as u64).await?;
                        times[row].push(start.elapsed());
                    }
                    for _ in 0..pace.per_round {
                        pause(pace.pause);
                        let start = Instant::now();
                        counter.ask(count, 1).await?;
                        times[row + 2].push(start.elapsed());
                    }
                }
                Ok(times)
            })
            .await
        })?;
        for (row, times) in times.into_iter().enumerate() {
            into.times(row, times);
        }
        Ok(())
    })
}
