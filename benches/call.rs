//! The round trip of a call and of an ask, to a thread isolate and to a process isolate.
//!
//! Floors: two std threads with two channels, and a blocking ping-pong over a socket pair between
//! two threads. Both sides sleep between messages here, so that this measures wake-ups.
//!
//! `cargo bench -p offshoot-benches --bench call [ROUNDS]`

use offshoot::{Isolation, Result};
use offshoot_benches::{Table, rounds};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PER_ROUND: usize = 2_000;

async fn echo(n: u64) -> u64 {
    n
}

fn count(state: &mut u64, by: u64) -> u64 {
    *state += by;
    *state
}

fn channels(table: &mut Table) {
    let (to, there) = mpsc::channel::<u64>();
    let (back, from) = mpsc::channel::<u64>();
    let thread = std::thread::spawn(move || there.iter().try_for_each(|n| back.send(n)));
    for n in 0..PER_ROUND as u64 {
        let got = table.time("two std channels", || {
            to.send(n).ok().and_then(|()| from.recv().ok())
        });
        assert_eq!(got, Some(n));
    }
    drop(to);
    assert!(thread.join().is_ok());
}

fn sockets(table: &mut Table) {
    let (mut here, mut there) = UnixStream::pair().expect("a socket pair");
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 8];
        while there.read_exact(&mut buffer).is_ok() && there.write_all(&buffer).is_ok() {}
    });
    let mut buffer = [0; 8];
    for _ in 0..PER_ROUND {
        let done = table.time("socket pair, blocking", || {
            here.write_all(&buffer)
                .and_then(|()| here.read_exact(&mut buffer))
        });
        assert!(done.is_ok());
    }
    drop(here);
    assert!(thread.join().is_ok());
}

fn isolates(
    table: &mut Table,
    isolation: Isolation,
    call: &'static str,
    ask: &'static str,
) -> Result<()> {
    let samples = offshoot::Builder::new()
        .isolation(isolation)
        .run(async || {
            offshoot::nursery(async |nursery| {
                let farm = nursery.spawn("farm").await?;
                let counter = nursery.start("counter", 0_u64).await?;
                let mut samples: Vec<(Duration, Duration)> = Vec::with_capacity(PER_ROUND);
                for n in 0..PER_ROUND as u64 {
                    let start = Instant::now();
                    farm.call(echo, n).await?;
                    let called = start.elapsed();
                    let start = Instant::now();
                    counter.ask(count, 1).await?;
                    samples.push((called, start.elapsed()));
                }
                Ok(samples)
            })
            .await
        })?;
    for (called, asked) in samples {
        table.add(call, called);
        table.add(ask, asked);
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut table = Table::default();
    for _ in 0..rounds(10) {
        channels(&mut table);
        isolates(
            &mut table,
            Isolation::Thread,
            "call, thread isolate",
            "ask, thread isolate",
        )?;
        sockets(&mut table);
        isolates(
            &mut table,
            Isolation::Process,
            "call, process isolate",
            "ask, process isolate",
        )?;
    }
    table.print(
        "round trip, both sides asleep in between",
        &[
            ("call, thread isolate", "two std channels"),
            ("ask, thread isolate", "two std channels"),
            ("call, process isolate", "socket pair, blocking"),
            ("ask, process isolate", "socket pair, blocking"),
        ],
    );
    Ok(())
}
