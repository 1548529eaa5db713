//! What an operation costs, counted and not timed, so that a busy machine counts the same: allocations,
//! page faults, waits, mappings and descriptors. `ci/costs` compares it with a baseline.
//!
//! `costs` counts all operations, and prints a line each of operation, counter and how many per
//! operation. `costs OPERATION N` does one N times and counts nothing: for strace and valgrind, which
//! count what this process cannot, and of which two runs of different lengths are subtracted.

use offshoot::{Builder, Isolation, Nursery, Result};
use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What can be counted, and how many times it is done for that.
const OPERATIONS: [(&str, usize); 8] = [
    ("thread-spawn", 200),
    ("thread-call", 5_000),
    ("thread-ask", 5_000),
    ("thread-tell", 5_000),
    ("process-spawn", 40),
    ("process-call", 2_000),
    ("process-ask", 2_000),
    ("process-tell", 2_000),
];
/// How many messages warm up.
const WARM: usize = 2_000;
/// How many live isolates are looked at for what each holds.
const HELD: usize = 32;

async fn one() -> u64 {
    1
}

fn count(state: &mut u64, by: u64) -> u64 {
    *state += by;
    *state
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [] => OPERATIONS
            .iter()
            .try_for_each(|(name, n)| measure(name, *n)),
        [name, n] => match n.parse() {
            Ok(n) if OPERATIONS.iter().any(|(known, _)| known == name) => only(name, n),
            _ => return usage(),
        },
        _ => return usage(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.report());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let names: Vec<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
    eprintln!(
        "usage: costs [OPERATION N]; operations: {}",
        names.join(", ")
    );
    ExitCode::from(2)
}

/// A tree without reserves, whose refills would be counted when they come and not when they are caused.
fn tree(name: &str) -> Builder {
    let isolation = match name.starts_with("process") {
        true => Isolation::Process,
        false => Isolation::Thread,
    };
    let builder = Builder::new().isolation(isolation);
    builder.reserve_threads(0).reserve_processes(0)
}

fn only(name: &str, n: usize) -> Result<()> {
    let what = name.to_owned();
    tree(name).run(async move || repeat(&what, n, || {}).await)
}

/// Does an operation `n` times, after it has told that it begins.
async fn repeat(name: &str, n: usize, begins: impl FnOnce()) -> Result<()> {
    if name.ends_with("spawn") {
        spawn().await?;
        begins();
        for _ in 0..n {
            spawn().await?;
        }
        return Ok(());
    }
    offshoot::nursery(async |nursery| {
        let counter = nursery.start("counter", 0_u64).await?;
        // What grows with use has grown then.
        work(name, &counter, WARM).await?;
        begins();
        work(name, &counter, n).await
    })
    .await
}

async fn work(name: &str, counter: &offshoot::Portal<u64>, n: usize) -> Result<()> {
    for _ in 0..n {
        if name.ends_with("call") {
            counter.call(one, ()).await?;
        } else if name.ends_with("ask") {
            counter.ask(count, 1).await?;
        } else {
            counter.tell(count, 1).await?;
        }
    }
    // All that was told is done then.
    counter.ask(count, 0).await?;
    Ok(())
}

async fn spawn() -> Result<()> {
    offshoot::nursery(async |nursery| {
        nursery.spawn("counted").await?.call(one, ()).await?;
        Ok(())
    })
    .await
}

/// What this process has used so far.
struct Used {
    allocations: u64,
    faults: u64,
    waits: u64,
}

impl Used {
    fn now() -> Used {
        let allocations = ALLOCATIONS.load(Ordering::Relaxed);
        // SAFETY: an all-zero rusage is valid, and the pointer is to a live one.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let number = |n| u64::try_from(n).unwrap_or(0);
        Used {
            allocations,
            faults: number(usage.ru_minflt),
            waits: number(usage.ru_nvcsw),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // Of a few thousand.
fn measure(name: &'static str, n: usize) -> Result<()> {
    let used = tree(name).run(async move || {
        let mut before = Used::now();
        repeat(name, n, || before = Used::now()).await?;
        let after = Used::now();
        Ok([
            ("allocations", after.allocations - before.allocations),
            ("faults", after.faults - before.faults),
            ("waits", after.waits - before.waits),
        ])
    })?;
    for (what, used) in used {
        println!("{name} {what} {:.2}", used as f64 / n as f64);
    }
    if name.ends_with("spawn") {
        let held = tree(name).run(async || offshoot::nursery(held).await)?;
        for (what, held) in held {
            println!("{name} {what} {:.2}", held as f64 / HELD as f64);
        }
    }
    Ok(())
}

/// What so many live isolates hold of their owner.
async fn held<'scope>(nursery: &'scope Nursery<'scope, '_>) -> Result<[(&'static str, u64); 2]> {
    nursery.spawn("first").await?.call(one, ()).await?;
    let (mappings, descriptors) = (mappings(), descriptors());
    for _ in 0..HELD {
        nursery.spawn("held").await?.call(one, ()).await?;
    }
    Ok([
        ("mappings", self::mappings().saturating_sub(mappings)),
        (
            "descriptors",
            self::descriptors().saturating_sub(descriptors),
        ),
    ])
}

fn mappings() -> u64 {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    text.lines().count() as u64
}

fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}
