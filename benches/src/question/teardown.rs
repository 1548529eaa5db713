//! What does it take to end an isolate?
//!
//! Confirmed: from the cancellation until its end is known and none of its code runs again. Gone:
//! from there on until it has been joined, or reaped and swept, which is when a nursery returns. And
//! many that do not want to end, which takes one ladder for all of them together.

use crate::engine::{Question, Subject};
use crate::floor::processes::{BareForkserver, fork_self};
use crate::record::{Kind, Row, Side};
use crate::setting::{Reserve, tree};
use futures_util::future::try_join_all;
use offshoot::{Isolate, Isolation};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const STD: &str = "std thread, exit + join";
const FORKSERVER: &str = "child of a bare forkserver, exit + reap";
const LADDER: &str = "one ladder of 100 ms";
/// How many do not want to end.
const WEDGED: usize = 64;
const GRACE: Duration = Duration::from_millis(50);
const HARD_KILL: Duration = Duration::from_millis(100);

async fn one() -> u64 {
    1
}

fn wedge() {
    loop {
        // In a loop, because parking may end for no reason.
        std::thread::park();
    }
}

/// The question.
pub fn question() -> Question {
    Question {
        name: "teardown",
        asks: "From the wish that it ends to its end",
        subjects: vec![
            std_thread(),
            isolates(Isolation::Thread, 40),
            kill(),
            forkserver(),
            isolates(Isolation::Process, 10),
            ladder(),
            wedged(),
        ],
    }
}

fn std_thread() -> Subject {
    let row = Row::new(Kind::Floor, Side::Thread, STD);
    Subject::new("std", [row], |into| {
        for _ in 0..40 {
            let (ready, started) = mpsc::channel();
            let (end, ended) = mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                let _ = ready.send(());
                let _ = ended.recv();
            });
            started.recv()?;
            let start = Instant::now();
            drop(end);
            let _ = thread.join();
            into.time(0, start.elapsed());
        }
        Ok(())
    })
}

fn isolates(isolation: Isolation, per_round: usize) -> Subject {
    let (key, side, who, floor, gone) = match isolation {
        Isolation::Process => (
            "process",
            Side::Process,
            "process isolate",
            FORKSERVER,
            "reaped and swept",
        ),
        _ => ("thread", Side::Thread, "thread isolate", STD, "joined"),
    };
    let rows = [
        Row::new(Kind::Offshoot, side, format!("{who}, confirmed")).floor(floor),
        Row::new(Kind::Offshoot, side, format!("{who}, {gone}")).floor(floor),
    ];
    Subject::new(key, rows, move |into| {
        let times = tree(isolation, Reserve::Default, async move || {
            let mut times = Vec::with_capacity(per_round);
            for _ in 0..per_round {
                let mut start = Instant::now();
                let mut confirmed = Duration::ZERO;
                let ended = offshoot::nursery(async |nursery| {
                    let isolate = nursery.spawn("bench").await?;
                    isolate.call(one, ()).await?;
                    start = Instant::now();
                    // Not waited for: its end says more than that it was seen.
                    drop(isolate.cancel());
                    isolate.ended().await;
                    confirmed = start.elapsed();
                    Ok(())
                })
                .await;
                match ended {
                    Err(error) if !error.is_cancelled() => return Err(error),
                    _ => times.push((confirmed, start.elapsed())),
                }
            }
            Ok(times)
        })?;
        for (confirmed, gone) in times {
            into.time(0, confirmed);
            into.time(1, gone);
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
        for _ in 0..10 {
            let child = server.fork()?;
            let start = Instant::now();
            server.end(child)?;
            into.time(0, start.elapsed());
        }
        Ok(())
    })
}

fn kill() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, "forked child, SIGKILL + reap");
    Subject::new("fork", [row], |into| {
        for _ in 0..10 {
            let child = fork_self()?;
            let start = Instant::now();
            child.kill()?;
            into.time(0, start.elapsed());
        }
        Ok(())
    })
}

/// No floor of the machine, but what the settings allow.
fn ladder() -> Subject {
    let row = Row::new(Kind::Floor, Side::Process, LADDER).not_charted();
    Subject::new("ladder", [row], |into| {
        into.time(0, HARD_KILL);
        Ok(())
    })
}

fn wedged() -> Subject {
    let name = format!("{WEDGED} wedged process isolates, all killed and swept");
    let row = Row::new(Kind::Offshoot, Side::Process, name)
        .floor(LADDER)
        .not_charted();
    Subject::new("process", [row], |into| {
        let time = tree(Isolation::Process, Reserve::Default, async || {
            let mut start = Instant::now();
            // It ends with an error, since all of them had to be killed.
            let _ = offshoot::nursery(async |nursery| {
                let spec = |n| {
                    Isolate::named(format!("wedged-{n}"))
                        .grace(GRACE)
                        .hard_kill(HARD_KILL)
                };
                let isolates = (0..WEDGED).map(|n| nursery.spawn(spec(n)));
                for isolate in try_join_all(isolates).await? {
                    nursery
                        .task(async move { isolate.call(wedge, ()).await })
                        .detach();
                }
                offshoot::sleep(Duration::from_millis(20)).await?;
                start = Instant::now();
                nursery.cancel();
                Ok(())
            })
            .await;
            Ok(start.elapsed())
        })?;
        into.time(0, time);
        Ok(())
    })
}
