//! What every peer can do, and the questions in those terms.

use offshoot_benches::engine::{Failure, Subject};
use offshoot_benches::question::call::paces;
use offshoot_benches::question::tell::{MESSAGES, Order};
use offshoot_benches::record::{Kind, Row, Side, Unit};
use std::time::{Duration, Instant};

/// A way to have actors. All of them run on a runtime that [`Peer::run`] brings.
pub(crate) trait Peer: Sized + 'static {
    /// By what it is picked.
    const KEY: &'static str;
    /// What it is called.
    const NAME: &'static str;
    /// What its actor is, where that is not a thread with a loop of its own.
    const NOTE: Option<&'static str>;

    type Actor: Send + 'static;

    /// Runs a future where its actors live, as one of their tasks.
    fn run<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T;

    fn spawn() -> impl Future<Output = Self::Actor> + Send;
    /// Adds to its sum, which it answers with.
    fn ask(actor: &Self::Actor, by: u64) -> impl Future<Output = u64> + Send;
    fn tell(actor: &Self::Actor, order: Order) -> impl Future<Output = ()> + Send;
    /// Until it is known to have ended, as far as the peer tells.
    fn stop(actor: Self::Actor) -> impl Future<Output = ()> + Send;
}

/// The subject of a peer for a question, if peers are asked that.
pub(crate) fn subject<P: Peer>(question: &str) -> Option<Subject> {
    Some(match question {
        "spawn" => spawn::<P>(),
        "call" => call::<P>(),
        "tell" => tell::<P>(),
        "teardown" => stop::<P>(),
        _ => return None,
    })
}

fn row<P: Peer>(name: &str) -> Row {
    let row = Row::new(Kind::Peer, Side::Thread, name);
    match P::NOTE {
        Some(note) => row.note(note),
        None => row,
    }
}

fn per_round<P: Peer>() -> usize {
    // A task takes so little that a few say nothing.
    if P::NOTE.is_some() { 500 } else { 40 }
}

fn spawn<P: Peer>() -> Subject {
    Subject::new(P::KEY, [row::<P>(P::NAME)], |into| {
        let times = P::run(async {
            let mut times = Vec::new();
            for _ in 0..per_round::<P>() {
                let start = Instant::now();
                let actor = P::spawn().await;
                P::ask(&actor, 1).await;
                times.push(start.elapsed());
                P::stop(actor).await;
            }
            times
        });
        into.times(0, times);
        Ok(())
    })
}

fn stop<P: Peer>() -> Subject {
    Subject::new(P::KEY, [row::<P>(P::NAME)], |into| {
        let times = P::run(async {
            let mut times = Vec::new();
            for _ in 0..per_round::<P>() {
                let actor = P::spawn().await;
                P::ask(&actor, 1).await;
                let start = Instant::now();
                P::stop(actor).await;
                times.push(start.elapsed());
            }
            times
        });
        into.times(0, times);
        Ok(())
    })
}

fn call<P: Peer>() -> Subject {
    let rows: Vec<Row> = paces()
        .iter()
        .map(|pace| row::<P>(&format!("ask, {}, {}", P::NAME, pace.name)))
        .collect();
    Subject::new(P::KEY, rows, |into| {
        let times: Vec<(usize, Duration)> = P::run(async {
            let actor = P::spawn().await;
            let mut times = Vec::new();
            for (row, pace) in paces().iter().enumerate() {
                for _ in 0..pace.per_round {
                    offshoot_benches::setting::pause(pace.pause);
                    let start = Instant::now();
                    P::ask(&actor, 1).await;
                    times.push((row, start.elapsed()));
                }
            }
            P::stop(actor).await;
            times
        });
        for (row, time) in times {
            into.time(row, time);
        }
        Ok(())
    })
}

fn tell<P: Peer>() -> Subject {
    let row = row::<P>(&format!("tell, {}, from 1", P::NAME)).unit(Unit::Message);
    Subject::new(P::KEY, [row], |into| {
        let (time, sum) = P::run(async {
            let actor = P::spawn().await;
            let start = Instant::now();
            for n in 0..MESSAGES {
                let parts = [n as u64; 8];
                P::tell(&actor, Order { parts }).await;
            }
            let sum = P::ask(&actor, 0).await;
            let time = start.elapsed();
            P::stop(actor).await;
            (time, sum)
        });
        into.each(0, time, MESSAGES);
        let wanted: u64 = (0..MESSAGES as u64).sum();
        match sum == wanted {
            true => Ok(()),
            false => Err(Failure::from(format!(
                "messages got lost: the sum is {sum}"
            ))),
        }
    })
}
