//! Counts the words of files and directories with a tree of isolates.
//!
//! ```text
//!            root          hands batches from the reader to the counters, tallies to the merger
//!   ┌─────────┼──────────┐
//! reader  counter-0 …  merger
//! ```
//!
//! The **reader** walks the directories and gives out batches of work: which ranges of which files.
//! What is sent are paths, not contents; each **counter** reads its ranges by itself, so that a
//! process costs no more than a thread. When nothing is left to read, each counter's tally is
//! encoded once and merged, in groups of four and at last by the **merger**, which names the most
//! frequent.
//!
//! Read [`run_with`] first, then `counter.rs`. What a word is stands in `scanner.rs`; which files
//! are read, in `reader.rs`.
//!
//! Run it: `offshoot run words src --top 20`, also with `--isolation process`.
#![forbid(unsafe_code)]

mod counter;
mod input;
mod reader;
mod scanner;
mod tally;

use counter::{Counter, Summary};
use offshoot::prelude::*;
use reader::{Batch, Reader};
use std::cell::RefCell;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many tallies are merged into one at a time. Two would be as few steps in a row for each of
/// them, but have every tally sent once more often.
const FAN_IN: usize = 4;

/// So many problems are told in full; the others are counted.
pub const PROBLEMS_MAX: usize = 100;

/// What is to be counted.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    paths: Vec<PathBuf>,
    /// Copies of what can be read only once.
    copies: Vec<Arc<File>>,
    workers: NonZeroUsize,
    top: usize,
}

impl Options {
    /// All words of these files and directories, with a counter for each usable core.
    pub fn new(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Options {
        Options {
            paths: paths.into_iter().map(Into::into).collect(),
            copies: Vec::new(),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            top: 10,
        }
    }

    /// Sets the number of counters. Default: the usable cores.
    pub fn with_workers(mut self, workers: NonZeroUsize) -> Options {
        self.workers = workers;
        self
    }

    /// Copies what can be read only once: the standard input, which `-` stands for, and pipes. Blocks until that ends.
    ///
    /// # Errors
    /// When it cannot be read, or the copy not be written; with its path.
    pub fn with_streams(mut self) -> std::io::Result<Options> {
        for path in &mut self.paths {
            let copied = input::copied(path).map_err(|error| {
                let message = format!("{}: {error}", path.display());
                std::io::Error::new(error.kind(), message)
            })?;
            if let Some((place, copy)) = copied {
                *path = place;
                self.copies.push(Arc::new(copy));
            }
        }
        Ok(self)
    }

    /// Sets how many of the most frequent words are named. Default 10.
    pub fn with_top(mut self, top: usize) -> Options {
        self.top = top;
        self
    }
}

/// What was read so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Files that were begun, without binary ones.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files that were passed over, because they have a NUL in their first 8 KiB.
    pub binary: u64,
    /// What could not be read, and why; the first [`PROBLEMS_MAX`].
    pub problems: Vec<String>,
    /// How many could not be read in all.
    pub problems_total: u64,
}

impl Progress {
    fn problem(&mut self, problem: String) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn add(&mut self, counted: counter::Counted) {
        self.files += counted.files;
        self.bytes += counted.bytes;
        self.binary += counted.binary;
        counted
            .problems
            .into_iter()
            .for_each(|problem| self.problem(problem));
    }
}

/// What was counted, and how long it took.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was read.
    pub read: Progress,
    /// How many words there are.
    pub words: u64,
    /// How many different ones.
    pub distinct: u64,
    /// The most frequent, in descending order; of equals the first in the alphabet.
    pub top: Vec<(String, u64)>,
    /// How many isolates were started.
    pub isolates: usize,
    /// Until all of them had started.
    pub spawn: Duration,
    /// From then until the words were counted and merged.
    pub work: Duration,
    /// From then until all isolates had ended.
    pub teardown: Duration,
}

/// Counts them. What cannot be read is part of the report.
///
/// # Errors
/// What stopped an isolate, or the cancellation of the scope in which this runs.
pub async fn run(options: Options) -> Result<Report> {
    run_with(options, |_| ()).await
}

/// As [`run`], and calls `progress` now and then.
///
/// # Errors
/// As of [`run`].
pub async fn run_with(options: Options, progress: impl FnMut(&Progress)) -> Result<Report> {
    let Options {
        paths,
        copies: _copies,
        workers,
        top,
    } = options;
    let begun = Instant::now();
    // Outside of the nursery, so that its tasks can borrow it.
    let read = RefCell::new((Progress::default(), progress));
    let (spawned, summary, worked) = offshoot::nursery(async |nursery| {
        // All at once; each is awaited below.
        let reader = nursery.task(nursery.start("reader", Reader::new(paths)));
        let merger = nursery.task(nursery.start("merger", Counter::default()));
        let counters: Vec<_> = (0..workers.get())
            .map(|n| nursery.task(nursery.start(format!("counter-{n}"), Counter::default())))
            .collect();
        let reader = reader.await??;
        let merger = merger.await??;
        let mut portals = Vec::new();
        for counter in counters {
            portals.push(counter.await??);
        }
        let spawned = Instant::now();

        // Two feeders for each counter, so that its next batch is there when it has done one.
        let feeders: Vec<_> = portals
            .iter()
            .flat_map(|counter| [counter, counter])
            .map(|counter| nursery.task(feed(reader.clone(), counter.clone(), &read)))
            .collect();
        for feeder in feeders {
            feeder.await??;
        }

        while portals.len() > FAN_IN {
            let merging: Vec<_> = portals
                .chunks(FAN_IN)
                .map(|group| nursery.task(merge(group[0].clone(), group[1..].to_vec())))
                .collect();
            for merged in merging {
                merged.await??;
            }
            portals = portals.into_iter().step_by(FAN_IN).collect();
        }
        nursery.task(merge(merger.clone(), portals)).await??;
        let summary = merger.ask(Counter::summary, top).await?;
        Ok((spawned, summary, Instant::now()))
    })
    .await?;
    let ended = Instant::now();
    Ok(Report {
        isolates: workers.get() + 2,
        spawn: spawned - begun,
        work: worked - spawned,
        teardown: ended - worked,
        ..Report::new(read.into_inner().0, summary)
    })
}

impl Report {
    fn new(read: Progress, summary: Summary) -> Report {
        Report {
            read,
            words: summary.words,
            distinct: summary.distinct,
            top: summary.top,
            isolates: 0,
            spawn: Duration::ZERO,
            work: Duration::ZERO,
            teardown: Duration::ZERO,
        }
    }
}

/// Hands batches from the reader to one counter until there are none left.
async fn feed<P: FnMut(&Progress)>(
    reader: Portal<Reader>,
    counter: Portal<Counter>,
    read: &RefCell<(Progress, P)>,
) -> Result<()> {
    loop {
        let Batch {
            pieces,
            problems,
            last,
        } = reader.ask(Reader::next, ()).await?;
        let counted = counter.ask(Counter::count, pieces).await?;
        let (read, progress) = &mut *read.borrow_mut();
        problems
            .into_iter()
            .for_each(|problem| read.problem(problem));
        read.add(counted);
        progress(read);
        if last {
            return Ok(());
        }
    }
}

/// Has one counter take over what the others have counted.
async fn merge(into: Portal<Counter>, from: Vec<Portal<Counter>>) -> Result<()> {
    for counter in from {
        loop {
            let share = counter.ask(Counter::take, ()).await?;
            into.tell(Counter::absorb, share.words).await?;
            if share.last {
                break;
            }
        }
    }
    Ok(())
}

/// The same count by a plain loop on this thread, to compare the times with.
///
/// # Blocking
/// Until everything is read.
pub fn baseline(options: Options) -> Report {
    let begun = Instant::now();
    let mut reader = Reader::new(options.paths);
    let mut counter = Counter::default();
    let mut read = Progress::default();
    loop {
        let batch = reader.next();
        batch
            .problems
            .into_iter()
            .for_each(|problem| read.problem(problem));
        read.add(counter.count(batch.pieces));
        if batch.last {
            break;
        }
    }
    let summary = counter.summary(options.top);
    Report {
        work: begun.elapsed(),
        ..Report::new(read, summary)
    }
}
