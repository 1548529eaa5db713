//! What does an isolate hold while it waits: memory, mappings, descriptors, threads?
//!
//! 10,000 thread isolates beside 10,000 threads of `std`, and 1,000 process isolates beside 1,000
//! children of a bare forkserver, all of them alive and having answered. Each is counted in a process
//! of its own, as a difference to before. `OFFSHOOT_BENCH_MEMORY=100` takes a hundredth of them.

use crate::engine::{Failure, Question, Subject};
use crate::floor::command;
use crate::floor::processes::BareForkserver;
use crate::record::{Kind, Row, Side, Unit};
use crate::setting::{Reserve, tree};
use futures_util::future::try_join_all;
use offshoot::Isolation;
use std::fs;
use std::sync::mpsc;

const THREADS: usize = 10_000;
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

/// The question.
pub fn question() -> Question {
    Question {
        name: "memory",
        asks: "What each holds while it waits, of many that are alive",
        subjects: vec![
            subject("std", Kind::Floor, Side::Thread, "std threads"),
            subject("thread", Kind::Offshoot, Side::Thread, "thread isolates"),
            subject("forkserver", Kind::Floor, Side::Process, "bare children"),
            subject("process", Kind::Offshoot, Side::Process, "process isolates"),
        ],
    }
}

/// What is counted, and in what.
const COUNTED: [(&str, Unit); 5] = [
    ("resident, private", Unit::Bytes),
    ("kernel stacks and page tables", Unit::Bytes),
    ("mappings of the owner", Unit::Count),
    ("descriptors of the owner", Unit::Count),
    ("threads", Unit::Count),
];

fn subject(key: &'static str, kind: Kind, side: Side, who: &'static str) -> Subject {
    let (n, floor) = match side {
        Side::Thread => (divided(THREADS), "std threads"),
        Side::Process => (divided(PROCESSES), "bare children"),
    };
    let rows: Vec<Row> = COUNTED
        .iter()
        .map(|(what, unit)| {
            let name = |who| format!("{n} {who}: {what}");
            let row = Row::new(kind, side, name(who)).unit(*unit).not_charted();
            match (kind, *unit) {
                // A ratio of what may be nothing says nothing.
                (Kind::Offshoot, Unit::Bytes) => row.floor(name(floor)),
                _ => row,
            }
        })
        .collect();
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
                "{n} {who}: it ended with {} and said {text:?}",
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

    fn print_per(self, before: Holding, n: usize) {
        let n = u64::try_from(n).unwrap_or(1);
        let per = |now: u64, before: u64| now.saturating_sub(before) / n;
        let thousandths = |now: u64, before: u64| now.saturating_sub(before) * 1_000 / n;
        println!(
            "{} {} {} {} {}",
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

fn threads(n: usize) -> Result<(), Failure> {
    let before = Holding::now();
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
    Holding::now().print_per(before, n);
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
    let children = server.fork_many(n)?;
    Holding::now().print_per(before, n);
    Ok(server.end_many(children)?)
}

fn isolates(isolation: Isolation, n: usize) -> Result<(), Failure> {
    tree(isolation, Reserve::Cold, async move || {
        offshoot::nursery(async |nursery| {
            nursery.spawn("first").await?.call(one, ()).await?;
            let before = Holding::now();
            // A few at a time, as a program would; the owner's descriptors are the bound.
            let mut isolates = Vec::with_capacity(n);
            while isolates.len() < n {
                let more = (n - isolates.len()).min(64);
                isolates.extend(try_join_all((0..more).map(|_| nursery.spawn("held"))).await?);
            }
            try_join_all(isolates.iter().map(|isolate| isolate.call(one, ()))).await?;
            Holding::now().print_per(before, n);
            Ok(())
        })
        .await
    })?;
    Ok(())
}
