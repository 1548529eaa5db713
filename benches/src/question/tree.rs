//! What does a whole tree take: 1,111 thread isolates in three levels below the topmost, or 111
//! process isolates in two?
//!
//! Build: until all are ready. Round: a call to every one by its parent, and the sum of the answers.
//! Down: from the cancellation until every one has been joined, or reaped and swept. Floors: a tree
//! of plain threads, with std's channels and with an `mio::Poll` each; for processes, as many
//! children of a bare forkserver, without any tree.

use crate::engine::{Failure, Question, Subject};
use crate::floor::processes::BareForkserver;
use crate::floor::tree::{Kind as Threads, Tree, WIDTH};
use crate::record::{Kind, Row, Side};
use crate::setting::{Reserve, tree};
use futures_util::future::{LocalBoxFuture, try_join_all};
use offshoot::{Isolation, Portal, Result};
use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Levels below the topmost.
const THREAD_LEVELS: u32 = 3;
const PROCESS_LEVELS: u32 = 2;
/// Rounds in a tree.
const ROUNDS: usize = 10;
const MIO: &str = "threads with mio";
const FORKSERVER: &str = "children of a bare forkserver";

/// The question.
pub fn question() -> Question {
    Question {
        name: "tree",
        asks: "A whole tree: build it, ask every node once, take it down",
        subjects: vec![
            threads("std", "threads with std channels", Threads::Std),
            threads("mio", MIO, Threads::Mio),
            isolates(Isolation::Thread),
            forkserver(),
            isolates(Isolation::Process),
        ],
    }
}

/// How many nodes a tree has.
fn nodes(levels: u32) -> usize {
    (0..=levels).map(|level| WIDTH.pow(level)).sum()
}

fn rows(kind: Kind, side: Side, who: &str) -> Vec<Row> {
    let (levels, floor) = match side {
        Side::Thread => (THREAD_LEVELS, MIO),
        Side::Process => (PROCESS_LEVELS, FORKSERVER),
    };
    let n = nodes(levels);
    ["build", "down", "round"]
        .into_iter()
        .map(|what| {
            let row = Row::new(kind, side, format!("{n} {who}: {what}"));
            match kind {
                Kind::Offshoot => row.floor(format!("{n} {floor}: {what}")),
                _ => row,
            }
        })
        .collect()
}

fn threads(key: &'static str, who: &str, kind: Threads) -> Subject {
    Subject::new(key, rows(Kind::Floor, Side::Thread, who), move |into| {
        let start = Instant::now();
        let mut tree = Tree::build(kind, THREAD_LEVELS)?;
        into.time(0, start.elapsed());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let sum = tree.round()?;
            into.time(2, start.elapsed());
            check(sum, THREAD_LEVELS)?;
        }
        let start = Instant::now();
        drop(tree);
        into.time(1, start.elapsed());
        Ok(())
    })
}

fn forkserver() -> Subject {
    let mut rows = rows(Kind::Floor, Side::Process, FORKSERVER);
    rows.truncate(2);
    let mut server = None;
    Subject::new("forkserver", rows, move |into| {
        let server = match &mut server {
            Some(server) => server,
            server => server.insert(BareForkserver::start()?),
        };
        let start = Instant::now();
        let children = server.fork_many(nodes(PROCESS_LEVELS))?;
        into.time(0, start.elapsed());
        let start = Instant::now();
        server.end_many(children)?;
        into.time(1, start.elapsed());
        Ok(())
    })
}

fn check(sum: u64, levels: u32) -> Result<(), Failure> {
    match sum == nodes(levels) as u64 {
        true => Ok(()),
        false => Err(format!("{sum} nodes of {} have answered", nodes(levels)).into()),
    }
}

/// What a node knows. Isolate-local, because an isolate is a thread.
#[derive(Default)]
struct Node {
    kids: Vec<Portal>,
    grown: bool,
    waiting: Vec<Waker>,
}

thread_local! {
    static NODE: RefCell<Node> = RefCell::default();
}

/// Makes this isolate a node with `levels` below it, until it is cancelled.
fn grow(levels: u32) -> LocalBoxFuture<'static, Result<()>> {
    Box::pin(async move {
        offshoot::nursery(async |nursery| {
            let mut kids = Vec::new();
            if levels > 0 {
                kids = try_join_all((0..WIDTH).map(|_| nursery.spawn("node"))).await?;
                for kid in kids.clone() {
                    nursery
                        .task(async move { kid.call(grow, levels - 1).await })
                        .detach();
                }
                try_join_all(kids.iter().map(|kid| kid.call(grown, ()))).await?;
            }
            NODE.with_borrow_mut(|node| {
                node.kids = kids;
                node.grown = true;
                node.waiting.drain(..).for_each(Waker::wake);
            });
            offshoot::cancelled().await;
            Ok(())
        })
        .await
    })
}

/// Ready when this isolate and all below it are.
async fn grown() {
    poll_fn(|cx| {
        NODE.with_borrow_mut(|node| match node.grown {
            true => Poll::Ready(()),
            false => {
                node.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        })
    })
    .await;
}

/// How many nodes there are from this one down.
fn round() -> LocalBoxFuture<'static, Result<u64>> {
    Box::pin(async {
        let kids = NODE.with_borrow(|node| node.kids.clone());
        let sums = try_join_all(kids.iter().map(|kid| kid.call(round, ()))).await?;
        sums.into_iter()
            .try_fold(1, |sum, of_kid| Ok(sum + of_kid?))
    })
}

fn isolates(isolation: Isolation) -> Subject {
    let (key, side, who, levels) = match isolation {
        Isolation::Process => ("process", Side::Process, "process isolates", PROCESS_LEVELS),
        _ => ("thread", Side::Thread, "thread isolates", THREAD_LEVELS),
    };
    Subject::new(key, rows(Kind::Offshoot, side, who), move |into| {
        let (built, rounds, down) =
            tree(isolation, Reserve::Default, async move || one(levels).await)?;
        into.time(0, built);
        into.time(1, down);
        for (time, sum) in rounds {
            into.time(2, time);
            check(sum, levels)?;
        }
        Ok(())
    })
}

/// The times of one tree: built, each round and its sum, down.
async fn one(levels: u32) -> Result<(Duration, Vec<(Duration, u64)>, Duration)> {
    let start = Instant::now();
    let (mut built, mut rounds, mut cancelled) = (Duration::ZERO, Vec::new(), start);
    let ended = offshoot::nursery(async |nursery| {
        let top = nursery.spawn("top").await?;
        let growing = top.clone();
        nursery
            .task(async move { growing.call(grow, levels).await })
            .detach();
        top.call(grown, ()).await?;
        built = start.elapsed();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let sum = top.call(round, ()).await??;
            rounds.push((start.elapsed(), sum));
        }
        cancelled = Instant::now();
        nursery.cancel();
        Ok(())
    })
    .await;
    match ended {
        Err(error) if !error.is_cancelled() => Err(error),
        _ => Ok((built, rounds, cancelled.elapsed())),
    }
}
