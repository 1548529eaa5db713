//! Counts the primes up to a limit over any number of workers.
//!
//! The smallest useful shape of a tree: one isolate per worker, and tasks here that hand each the
//! next segment as soon as it has done its last. Each segment is one call of a plain function, so
//! that the same code runs on threads and on processes.
//!
//! Run it: `offshoot run primes 100000000 --workers 4`, also with `--isolation process`.
#![forbid(unsafe_code)]

use offshoot::prelude::*;
use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// The numbers of one call: half a megabyte of sieve, which stays in a core's own cache, and some
/// tenths of a millisecond, which is long beside what a call costs.
const SEGMENT: u64 = 1 << 20;

/// How far below the limit the largest primes are looked for: where they are thinnest, there are
/// half a million of them.
const KEEP: u64 = 16 * SEGMENT;

/// The largest limit. The sieve of its root still fits into the cache.
pub const LIMIT_MAX: u64 = 1_000_000_000_000;

/// The most of the largest primes that can be named.
pub const TOP_MAX: usize = 1_000;

/// What is to be counted.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    limit: u64,
    workers: NonZeroUsize,
    top: usize,
}

impl Options {
    /// The primes up to and with `limit`, at most [`LIMIT_MAX`], with a worker for each usable core.
    pub fn new(limit: u64) -> Options {
        Options {
            limit: limit.min(LIMIT_MAX),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            top: 3,
        }
    }

    /// Sets the number of workers. Default: the usable cores.
    pub fn with_workers(mut self, workers: NonZeroUsize) -> Options {
        self.workers = workers;
        self
    }

    /// Sets how many of the largest primes are named, at most [`TOP_MAX`]. Default 3.
    pub fn with_top(mut self, top: usize) -> Options {
        self.top = top.min(TOP_MAX);
        self
    }
}

/// What was counted, and how long it took.
#[derive(Clone, Debug)]
pub struct Report {
    /// How many primes there are.
    pub count: u64,
    /// The largest of them, in descending order.
    pub largest: Vec<u64>,
    /// How many isolates were started.
    pub isolates: usize,
    /// Until all of them had started.
    pub spawn: Duration,
    /// From then until the last had answered.
    pub work: Duration,
    /// From then until all of them had ended.
    pub teardown: Duration,
}

/// Counts them.
///
/// # Errors
/// What stopped a worker.
pub async fn run(options: Options) -> Result<Report> {
    let Options {
        limit,
        workers,
        top,
    } = options;
    // Outside of the nursery, so that its tasks can borrow them.
    let next = Cell::new(0);
    let found = RefCell::new(Found::default());
    let begun = Instant::now();
    let (spawned, worked) = offshoot::nursery(async |nursery| {
        let spawning: Vec<_> = (0..workers.get())
            .map(|n| nursery.task(nursery.spawn(format!("worker-{n}"))))
            .collect();
        let mut portals = Vec::new();
        for spawning in spawning {
            portals.push(spawning.await??);
        }
        let spawned = Instant::now();
        let feeding: Vec<_> = portals
            .into_iter()
            .map(|worker| nursery.task(feed(worker, limit, top, &next, &found)))
            .collect();
        for feeding in feeding {
            feeding.await??;
        }
        Ok((spawned, Instant::now()))
    })
    .await?;
    let ended = Instant::now();
    let Found { count, mut largest } = found.into_inner();
    largest.sort_unstable_by(|a, b| b.cmp(a));
    largest.truncate(top);
    Ok(Report {
        count,
        largest,
        isolates: workers.get(),
        spawn: spawned - begun,
        work: worked - spawned,
        teardown: ended - worked,
    })
}

/// What all segments so far have given.
#[derive(Default)]
struct Found {
    count: u64,
    largest: Vec<u64>,
}

/// Hands segments to one worker until there are none left.
async fn feed(
    worker: Portal,
    limit: u64,
    top: usize,
    next: &Cell<u64>,
    found: &RefCell<Found>,
) -> Result<()> {
    while next.get() <= limit {
        let from = next.replace(next.get() + SEGMENT);
        let to = limit.min(from + SEGMENT - 1);
        // The largest primes lie in the last segments; those of the others need not be sent.
        let top = if to + KEEP >= limit { top } else { 0 };
        let (count, largest) = worker.call(sieve, (from, to, top)).await?;
        let mut found = found.borrow_mut();
        found.count += count;
        found.largest.extend(largest);
    }
    Ok(())
}

/// How many primes lie from `from` to `to`, and the `top` largest of them.
fn sieve(from: u64, to: u64, top: usize) -> (u64, Vec<u64>) {
    // Only odd numbers from 3 on have a place: that of n is (n - first) / 2.
    let first = from.max(3) | 1;
    let places = if to < first { 0 } else { (to - first) / 2 + 1 };
    let mut composite = vec![false; index(places)];
    for prime in small_primes(to.isqrt()) {
        // From its square on: smaller multiples have a smaller divisor.
        let multiple = (prime * prime).max(first.next_multiple_of(prime));
        let odd = if multiple.is_multiple_of(2) {
            multiple + prime
        } else {
            multiple
        };
        let places = composite.iter_mut().skip(index((odd - first) / 2));
        places.step_by(index(prime)).for_each(|place| *place = true);
    }
    let two = from <= 2 && 2 <= to;
    let odd = composite.iter().filter(|composite| !**composite).count();
    let largest = (0u64..)
        .zip(&composite)
        .filter(|(_, composite)| !**composite)
        .map(|(place, _)| first + 2 * place)
        .skip(odd.saturating_sub(top));
    let mut largest: Vec<u64> = two.then_some(2).into_iter().chain(largest).collect();
    largest.reverse();
    largest.truncate(top);
    (odd as u64 + u64::from(two), largest)
}

/// The odd primes up to and with `limit`, which is the root of a larger one.
fn small_primes(limit: u64) -> Vec<u64> {
    let limit = index(limit);
    let mut composite = vec![false; limit + 1];
    let mut primes = Vec::new();
    for n in (3..=limit).step_by(2) {
        if !composite[n] {
            primes.push(n as u64);
            let multiples = composite.iter_mut().skip(n * n);
            multiples.step_by(n).for_each(|place| *place = true);
        }
    }
    primes
}

/// A place in a sieve, all of which fit into memory.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_agree_with_trial_division_however_they_are_cut() {
        let is_prime = |n: u64| n > 1 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d));
        for (from, to) in [
            (0, 0),
            (0, 1),
            (0, 2),
            (1, 3),
            (2, 2),
            (3, 4),
            (4, 4),
            (8, 10),
        ] {
            let wanted: Vec<u64> = (from..=to).rev().filter(|n| is_prime(*n)).collect();
            assert_eq!(
                sieve(from, to, 99),
                (wanted.len() as u64, wanted),
                "{from}..={to}"
            );
        }
        for from in (0..5_000).step_by(37) {
            let to = from + 100;
            let wanted: Vec<u64> = (from..=to).rev().filter(|n| is_prime(*n)).collect();
            assert_eq!(
                sieve(from, to, 99),
                (wanted.len() as u64, wanted),
                "{from}..={to}"
            );
        }
    }
}
