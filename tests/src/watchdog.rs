//! Ends a test that takes too long, and says first what everything in it waits for.

use crate::oracle;
use offshoot_sys::{fork, thread};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The exit code of a test that was ended.
const EXIT: i32 = 99;

static BOUND_MS: AtomicU64 = AtomicU64::new(20_000);

pub(crate) fn set(bound: Duration) {
    let millis = u64::try_from(bound.as_millis()).expect("a bound of a test");
    BOUND_MS.store(millis, Ordering::Relaxed);
}

/// Watches from here on, on a thread that ends with the process.
pub(crate) fn start() {
    let began = Instant::now();
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            loop {
                let bound = Duration::from_millis(BOUND_MS.load(Ordering::Relaxed));
                let Some(left) = bound.checked_sub(began.elapsed()) else {
                    break;
                };
                // Looked at again from time to time: the test may give itself more.
                std::thread::sleep(
                    left.clamp(Duration::from_millis(10), Duration::from_millis(200)),
                );
            }
            tell(began.elapsed());
            fork::exit_at_once(EXIT);
        })
        .expect("a thread for the watchdog");
}

fn tell(after: Duration) {
    eprintln!("the test did not end within {after:?}");
    // The threads first: the isolates can only be asked if none of their locks is stuck.
    for tid in oracle::tasks("self") {
        eprintln!("  {}", thread::wait_channel(tid));
        if let Some(stack) = thread::capture_stack(tid, Duration::from_millis(50)) {
            eprintln!("{stack}");
        }
    }
    for (pid, command) in oracle::of_test(&crate::dir()) {
        eprintln!("process {pid}: {command}");
        for tid in oracle::tasks(&pid.to_string()) {
            let read = |name: &str| {
                let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}"));
                text.unwrap_or_default().trim_end().to_owned()
            };
            eprintln!(
                "  thread {tid} \"{}\": {}, system call {}",
                read("comm"),
                read("wchan"),
                read("syscall")
            );
        }
    }
    for line in offshoot::dump_all() {
        eprintln!("isolate {line}");
    }
}
