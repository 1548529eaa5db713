//! What does it take to have many at once?
//!
//! All are asked for before the first has answered; a row has the time of all divided by their
//! number. More than any reserve holds, so that this is also the sustained cost beyond it.

use crate::engine::{Question, Subject};
use crate::floor::processes::BareForkserver;
use crate::record::{Kind, Row, Side, Unit};
use crate::setting::{Reserve, tree};
use futures_util::future::try_join_all;
use offshoot::Isolation;
use std::sync::mpsc;
use std::time::Instant;

/// How many threads at once.
const THREADS: usize = 500;
/// How many processes at once.
const PROCESSES: usize = 32;

async fn one() -> u64 {
    1
}

/// The question.
pub fn question() -> Question {
    Question {
        name: "burst",
        asks: "Many at once, the time of each: until all have answered, and until all are gone",
        subjects: vec![
            threads(),
            isolates(Isolation::Thread, THREADS),
            forkserver(),
            isolates(Isolation::Process, PROCESSES),
        ],
    }
}

fn rows(kind: Kind, side: Side, who: &str) -> [Row; 2] {
    let n = match side {
        Side::Thread => THREADS,
        Side::Process => PROCESSES,
    };
    ["ready", "gone"].map(|what| {
        let floor = match side {
            Side::Thread => "std threads",
            Side::Process => "children of a bare forkserver",
        };
        let row = Row::new(kind, side, format!("{n} {who}: {what}")).unit(Unit::Message);
        match kind {
            Kind::Offshoot => row.floor(format!("{n} {floor}: {what}")),
            _ => row,
        }
    })
}

fn threads() -> Subject {
    let rows = rows(Kind::Floor, Side::Thread, "std threads");
    Subject::new("std", rows, |into| {
        let (sender, receiver) = mpsc::channel();
        let start = Instant::now();
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (sender, (end, ended)) = (sender.clone(), mpsc::channel::<()>());
                let thread = std::thread::spawn(move || {
                    let _ = sender.send(1_u64);
                    // Alive until all are.
                    let _ = ended.recv();
                });
                (thread, end)
            })
            .collect();
        for _ in 0..THREADS {
            receiver.recv()?;
        }
        into.each(0, start.elapsed(), THREADS);
        let start = Instant::now();
        let threads: Vec<_> = threads.into_iter().map(|(thread, _)| thread).collect();
        for thread in threads {
            let _ = thread.join();
        }
        into.each(1, start.elapsed(), THREADS);
        Ok(())
    })
}

fn isolates(isolation: Isolation, n: usize) -> Subject {
    let (key, side) = match isolation {
        Isolation::Process => ("process", Side::Process),
        _ => ("thread", Side::Thread),
    };
    let who = match side {
        Side::Thread => "thread isolates",
        Side::Process => "process isolates",
    };
    Subject::new(key, rows(Kind::Offshoot, side, who), move |into| {
        let (ready, gone) = tree(isolation, Reserve::Default, async move || {
            offshoot::nursery(async |nursery| nursery.spawn("warm").await?.call(one, ()).await)
                .await?;
            let start = Instant::now();
            let mut body_ended = start;
            offshoot::nursery(async |nursery| {
                let spawning = (0..n).map(|n| async move {
                    let isolate = nursery.spawn(format!("burst-{n}")).await?;
                    isolate.call(one, ()).await
                });
                try_join_all(spawning).await?;
                body_ended = Instant::now();
                Ok(())
            })
            .await?;
            Ok((body_ended - start, body_ended.elapsed()))
        })?;
        into.each(0, ready, n);
        into.each(1, gone, n);
        Ok(())
    })
}

fn forkserver() -> Subject {
    let rows = rows(Kind::Floor, Side::Process, "children of a bare forkserver");
    let mut server = None;
    Subject::new("forkserver", rows, move |into| {
        let server = match &mut server {
            Some(server) => server,
            server => server.insert(BareForkserver::start()?),
        };
        let start = Instant::now();
        let children = server.fork_many(PROCESSES)?;
        into.each(0, start.elapsed(), PROCESSES);
        let start = Instant::now();
        server.end_many(children)?;
        into.each(1, start.elapsed(), PROCESSES);
        Ok(())
    })
}
