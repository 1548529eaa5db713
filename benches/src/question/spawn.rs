//! What does it take to spawn an isolate and have its first answer?
//!
//! Cold and from the reserve, for threads and processes. Floors: a thread of `std` and its first
//! value; a parked thread, woken; `fork` of this very process; a bare forkserver; `posix_spawn` of a
//! small program; a waiting process, woken.

use super::PACES;
use crate::engine::{Question, Subject};
use crate::floor::processes::{BareForkserver, Echo, fork_self, spawn_small};
use crate::floor::threads::Parked;
use crate::record::{Kind, Row, Side};
use crate::setting::{Reserve, builder, pause, tree};
use offshoot::{Isolation, Result};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const STD: &str = "std thread + channel";
const LEAN: &str = "thread isolate, cold, lean";
const FORKSERVER: &str = "bare forkserver";
const PARKED: &str = "parked thread woken";
const WAITING: &str = "waiting process woken";
/// How many threads and processes a reserve has.
const RESERVE: u32 = 8;
/// How long it has to fill before the first spawn that counts.
const FILL: Duration = Duration::from_millis(10);

async fn one() -> u64 {
    1
}

/// The question.
pub fn question() -> Question {
    Question {
        name: "spawn",
        asks: "From asking for an isolate to its first answer",
        subjects: vec![
            std_thread(),
            isolates("thread isolate, cold", STD, Isolation::Thread, 50),
            isolates(LEAN, STD, Isolation::Thread, 50),
            parked(),
            reserved(Isolation::Thread),
            fork(),
            exec(),
            forkserver(),
            isolates("process isolate, cold", FORKSERVER, Isolation::Process, 12),
            waiting(),
            reserved(Isolation::Process),
        ],
    }
}

fn std_thread() -> Subject {
    let row = Row::new(Kind::Floor, Side::Thread, STD);
    Subject::new("std", [row], |into| {
        for _ in 0..50 {
            let start = Instant::now();
            let (sender, receiver) = mpsc::channel();
            let thread = std::thread::spawn(move || sender.send(1_u64));
            receiver.recv()?;
            into.time(0, start.elapsed());
            let _ = thread.join();
        }
        Ok(())
    })
}

fn isolates(
    name: &'static str,
    floor: &'static str,
    isolation: Isolation,
    per_round: usize,
) -> Subject {
    let (key, side) = match isolation {
        Isolation::Process => ("process", Side::Process),
        _ => ("thread", Side::Thread),
    };
    let row = Row::new(Kind::Offshoot, side, name).floor(floor);
    Subject::new(key, [row], move |into| {
        let builder = builder(isolation, Reserve::Cold).lean_threads(name == LEAN);
        let times = builder.run(async move || {
            // The first one starts what the tree shares.
            spawned().await?;
            let mut times = Vec::with_capacity(per_round);
            for _ in 0..per_round {
                times.push(spawned().await?);
            }
            Ok(times)
        })?;
        into.times(0, times);
        Ok(())
    })
}

/// From a reserve that has had the time to fill, and then at the pace at which it can be refilled.
fn reserved(isolation: Isolation) -> Subject {
    let (key, side, who, floor) = match isolation {
        Isolation::Process => (
            "process",
            Side::Process,
            "process isolate, reserve",
            WAITING,
        ),
        _ => ("thread", Side::Thread, "thread isolate, reserve", PARKED),
    };
    let rows: Vec<Row> = PACES
        .iter()
        .map(|pace| {
            let row = Row::new(Kind::Offshoot, side, format!("{who}, {}", pace.name));
            row.floor(format!("{floor}, {}", pace.name))
        })
        .collect();
    Subject::new(key, rows, move |into| {
        let times = tree(isolation, Reserve::Of(RESERVE), async move || {
            let mut times = [const { Vec::new() }; PACES.len()];
            for (times, pace) in times.iter_mut().zip(PACES) {
                spawned().await?;
                offshoot::sleep(FILL).await?;
                // A process takes ten times a thread's time, and there are three paces.
                let n = match isolation {
                    Isolation::Process => pace.per_round / 4,
                    _ => pace.per_round,
                };
                for _ in 0..n {
                    pause(pace.pause);
                    times.push(spawned().await?);
                }
            }
            Ok(times)
        })?;
        for (row, times) in times.into_iter().enumerate() {
            into.times(row, times);
        }
        Ok(())
    })
}

/// From the spawn to the first answer. The end of the isolate is waited for, too, and not counted.
async fn spawned() -> Result<Duration> {
    offshoot::nursery(async |nursery| {
        let start = Instant::now();
        let isolate = nursery.spawn("bench").await?;
        isolate.call(one, ()).await?;
        Ok(start.elapsed())
    })
    .await
}

fn parked() -> Subject {
    let rows: Vec<Row> = PACES
        .iter()
        .map(|pace| {
            Row::new(
                Kind::Floor,
                Side::Thread,
                format!("{PARKED}, {}", pace.name),
            )
        })
        .collect();
    let mut parked = None;
    Subject::new("parked", rows, move |into| {
        let parked = parked.get_or_insert_with(Parked::start);
        for (row, pace) in PACES.iter().enumerate() {
            for _ in 0..pace.per_round {
                pause(pace.pause);
                let start = Instant::now();
                parked.wake();
                into.time(row, start.elapsed());
            }
        }
        Ok(())
    })
}

fn fork() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, "fork of this process");
    Subject::new("fork", [row], |into| {
        for _ in 0..12 {
            let start = Instant::now();
            let child = fork_self()?;
            into.time(0, start.elapsed());
            child.end()?;
        }
        Ok(())
    })
}

fn forkserver() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, FORKSERVER);
    let mut server = None;
    Subject::new("forkserver", [row], move |into| {
        let server = match &mut server {
            Some(server) => server,
            server => server.insert(BareForkserver::start()?),
        };
        for _ in 0..12 {
            let start = Instant::now();
            let child = server.fork()?;
            into.time(0, start.elapsed());
            server.end(child)?;
        }
        Ok(())
    })
}

fn exec() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, "posix_spawn of /bin/echo");
    Subject::new("exec", [row], |into| {
        for _ in 0..5 {
            let start = Instant::now();
            spawn_small(|| into.time(0, start.elapsed()))?;
        }
        Ok(())
    })
}

fn waiting() -> Subject {
    let rows: Vec<Row> = PACES
        .iter()
        .map(|pace| {
            Row::new(
                Kind::Floor,
                Side::Process,
                format!("{WAITING}, {}", pace.name),
            )
        })
        .collect();
    let mut echo = None;
    Subject::new("waiting", rows, move |into| {
        let echo = match &mut echo {
            Some(echo) => echo,
            echo => echo.insert(Echo::start()?),
        };
        for (row, pace) in PACES.iter().enumerate() {
            for _ in 0..pace.per_round {
                pause(pace.pause);
                let start = Instant::now();
                echo.ping()?;
                into.time(row, start.elapsed());
            }
        }
        Ok(())
    })
}
