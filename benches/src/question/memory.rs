//! What does an isolate hold while it waits: memory, mappings, descriptors, threads?
//!
//! 10,000 thread isolates beside 10,000 threads of `std`, and 1,000 process isolates beside 1,000
//! children of a bare forkserver, all of them alive and having answered. Each is counted in a process
//! of its own, as a difference to before. `OFFSHOOT_BENCH_MEMORY=100` takes a hundredth of them.

use crate::engine::{Failure, Question, Subject};
use crate::floor::command;
use crate::floor::processes::BareForkserver;
use crate::record::{Kind, Row, Side, Unit};
use crate::setting::{Reserve, builder, tree};
use futures_util::future::try_join_all;
use offshoot::Isolation;
use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How many threads are held.
pub(crate) const THREADS: usize = 10_000;
const PROCESSES: usize = 1_000;
/// Divides how many there are.
const DIVISOR: &str = "OFFSHOOT_BENCH_MEMORY";

async fn one() -> u64 {
    1
}

fn divided(n: usize) -> usize {
    let divisor = std::env::var(DIVISOR).ok();
    let divisor = divisor.and_then(|text| text.parse().ok()).unwrap_or(1);
    (n / std::cmp::max(divisor, 1)).max(1)
}

/// With four mappings each, no more threads than this fit under the default `vm.max_map_count`.
const MAPPED: usize = 16_000;

/// The question.
pub fn question() -> Question {
    Question {
        name: "memory",
        asks: "What each holds while it waits, of many that are alive",
        subjects: vec![
            subject("std", Kind::Floor, Side::Thread),
            subject("thread", Kind::Offshoot, Side::Thread),
            subject("forkserver", Kind::Floor, Side::Process),
            subject("process", Kind::Offshoot, Side::Process),
        ],
    }
}

/// What is counted, and in what.
const COUNTED: [(&str, Unit); 6] = [
    ("ready", Unit::Message),
    ("resident, private", Unit::Bytes),
    ("kernel stacks and page tables", Unit::Bytes),
    ("mappings of the owner", Unit::Count),
    ("descriptors of the owner", Unit::Count),
    ("threads", Unit::Count),
];

/// What a row is called: of the threads or, by their number, the processes.
pub(crate) fn row_name(kind: Kind, n: usize, what: &str) -> String {
    let who = match (kind, n) {
        (Kind::Offshoot, THREADS) => "thread isolates",
        (Kind::Offshoot, _) => "process isolates",
        (_, THREADS) => "std threads",
        _ => "bare children",
    };
    format!("{} {who}: {what}", divided(n))
}

fn subject(key: &'static str, kind: Kind, side: Side) -> Subject {
    let n = match side {
        Side::Thread => THREADS,
        Side::Process => PROCESSES,
    };
    let rows: Vec<Row> = COUNTED
        .iter()
        .map(|(what, unit)| {
            let row = Row::new(kind, side, row_name(kind, n, what))
                .unit(*unit)
                .not_charted();
            match (kind, *unit) {
                // A ratio of what may be nothing says nothing.
                (Kind::Offshoot, Unit::Bytes | Unit::Message) => {
                    row.floor(row_name(Kind::Floor, n, what))
                }
                _ => row,
            }
        })
        .collect();
    let n = divided(n);
    Subject::new(key, rows, move |into| {
        let output = command(&format!("memory:{key}:{n}"))?
            .stdin(std::process::Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let counted: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match counted {
            Ok(counted) if counted.len() == COUNTED.len() && output.status.success() => {
                for (row, sample) in counted.into_iter().enumerate() {
                    into.raw(row, sample);
                }
                Ok(())
            }
            _ => Err(format!(
                "{n} of {key}: it ended with {} and said {text:?}",
                output.status
            )
            .into()),
        }
    })
}

/// What there is of everything, of this process and of all that came of it.
#[derive(Clone, Copy, Default)]
struct Holding {
    private: u64,
    kernel: u64,
    mappings: u64,
    descriptors: u64,
    threads: u64,
}

impl Holding {
    fn now() -> Holding {
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.unwrap_or(0)
        };
        let me = std::process::id();
        let mut holding = Holding {
            mappings: lines("/proc/self/maps"),
            descriptors: entries("/proc/self/fd"),
            ..Holding::default()
        };
        for pid in descendants(me) {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
            let rollup = read("smaps_rollup").unwrap_or_default();
            for name in ["Private_Clean:", "Private_Dirty:"] {
                holding.private += field(&rollup, name) * 1024;
            }
            holding.threads += field(&read("status").unwrap_or_default(), "Threads:");
        }
        // Of the whole machine, as the kernel does not tell it by process.
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        for name in ["KernelStack:", "PageTables:"] {
            holding.kernel += field(&memory, name) * 1024;
        }
        holding
    }

    fn print_per(self, before: Holding, ready: Duration, n: usize) {
        let ready = ready.as_nanos() * 1_000 / n as u128;
        let n = u64::try_from(n).unwrap_or(1);
        let per = |now: u64, before: u64| now.saturating_sub(before) / n;
        let thousandths = |now: u64, before: u64| now.saturating_sub(before) * 1_000 / n;
        println!(
            "{ready} {} {} {} {} {}",
            per(self.private, before.private),
            per(self.kernel, before.kernel),
            thousandths(self.mappings, before.mappings),
            thousandths(self.descriptors, before.descriptors),
            thousandths(self.threads, before.threads),
        );
    }
}

fn lines(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().count() as u64
}

fn entries(path: &str) -> u64 {
    fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}

/// A process and all that came of it.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace();
            all.extend(children.filter_map(|child| child.parse::<u32>().ok()));
        }
        next += 1;
    }
    all
}

/// Counts in this process, which is there for nothing else, and prints it.
pub(crate) fn report(what: &str) {
    let counted = match what.split_once(':') {
        Some((key, n)) => match (key, n.parse()) {
            ("std", Ok(n)) => threads(n),
            ("thread", Ok(n)) => isolates(Isolation::Thread, n),
            ("process", Ok(n)) => isolates(Isolation::Process, n),
            ("forkserver", Ok(n)) => children(n),
            _ => Err(format!("`{what}` cannot be counted").into()),
        },
        None => Err(format!("`{what}` cannot be counted").into()),
    };
    if let Err(error) = counted {
        println!("{error}");
        std::process::exit(1);
    }
}

/// The part of a core, in percent, that isolates take that have nothing to do. Prints it.
pub(crate) fn report_idle(n: &str) {
    let n = n.parse().unwrap_or(1_000);
    let part = tree(Isolation::Thread, Reserve::Default, async move || {
        offshoot::nursery(async |nursery| {
            let isolates = try_join_all((0..n).map(|_| nursery.spawn("idle"))).await?;
            try_join_all(isolates.iter().map(|isolate| isolate.call(one, ()))).await?;
            offshoot::sleep(SETTLE).await?;
            let (start, before) = (Instant::now(), processor_time());
            offshoot::sleep(IDLE).await?;
            let used = processor_time().saturating_sub(before);
            Ok(used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
        })
        .await
    });
    match part {
        Ok(part) => println!("{part}"),
        Err(error) => {
            println!("{error}");
            std::process::exit(1);
        }
    }
}

/// How long they have to come to rest, and for how long they are watched.
const SETTLE: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(3);

/// What all threads of this process have used of the processor.
fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

fn threads(n: usize) -> Result<(), Failure> {
    let before = Holding::now();
    let start = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..n)
        .map(|_| {
            let (sender, (end, ended)) = (sender.clone(), mpsc::channel::<()>());
            let thread = std::thread::Builder::new().spawn(move || {
                let _ = sender.send(1);
                let _ = ended.recv();
            });
            thread.map(|thread| (thread, end))
        })
        .collect::<Result<_, _>>()?;
    for _ in 0..n {
        receiver.recv()?;
    }
    let ready = start.elapsed();
    Holding::now().print_per(before, ready, n);
    let (threads, ends): (Vec<_>, Vec<_>) = threads.into_iter().unzip();
    drop(ends);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn children(n: usize) -> Result<(), Failure> {
    let mut server = BareForkserver::start()?;
    let before = Holding::now();
    let start = Instant::now();
    let children = server.fork_many(n)?;
    let ready = start.elapsed();
    Holding::now().print_per(before, ready, n);
    Ok(server.end_many(children)?)
}

fn isolates(isolation: Isolation, n: usize) -> Result<(), Failure> {
    let builder = builder(isolation, Reserve::Default).lean_threads(n > MAPPED);
    builder.run(async move || {
        offshoot::nursery(async |nursery| {
            nursery.spawn("first").await?.call(one, ()).await?;
            let before = Holding::now();
            let start = Instant::now();
            // A few at a time, as a program would; the owner's descriptors are the bound.
            let mut isolates = Vec::with_capacity(n);
            while isolates.len() < n {
                let more = (n - isolates.len()).min(64);
                isolates.extend(try_join_all((0..more).map(|_| nursery.spawn("held"))).await?);
            }
            try_join_all(isolates.iter().map(|isolate| isolate.call(one, ()))).await?;
            let ready = start.elapsed();
            Holding::now().print_per(before, ready, n);
            Ok(())
        })
        .await
    })?;
    Ok(())
}
