//! Time as a bound counts it: without what the machine itself took.

use offshoot_sys::pidfd::Pidfd;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the machine is asked.
const TICK: Duration = Duration::from_millis(1);
/// How late an answer may be on a machine that has time.
const LATE: Duration = Duration::from_millis(2);

/// Measures how long something takes, less the time for which the machine did not run a thread that
/// wanted to run: a test beside this one, or a neighbour on the same host, is nothing that the code
/// under test can answer for.
#[derive(Debug)]
pub struct Stopwatch {
    began: Instant,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stalled_ns: AtomicU64,
    stopped: AtomicBool,
}

impl Stopwatch {
    /// Begins now.
    #[allow(clippy::missing_panics_doc)] // Only a machine without threads.
    pub fn start() -> Stopwatch {
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        let thread = std::thread::spawn(move || {
            while !its.stopped.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(TICK);
                let late = before.elapsed() - TICK;
                if late > LATE {
                    let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
                    its.stalled_ns.fetch_add(late, Ordering::Relaxed);
                }
            }
        });
        Stopwatch {
            began: Instant::now(),
            shared,
            thread: Some(thread),
        }
    }

    /// What has passed since, less the time for which the machine stood still.
    pub fn elapsed(&self) -> Duration {
        let stalled = self.shared.stalled_ns.load(Ordering::Relaxed);
        let passed = self.began.elapsed();
        passed.saturating_sub(Duration::from_nanos(stalled))
    }
}

/// Measures from the moment at which a process is dead, as its pidfd says. The kernel kills no process that has no
/// processor for it, so that on a busy machine the signal comes long before.
#[derive(Debug)]
pub struct SinceDeath(JoinHandle<io::Result<Stopwatch>>);

impl SinceDeath {
    /// Begins to wait for the death of this process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> io::Result<SinceDeath> {
        let pidfd = Pidfd::open(i32::try_from(pid).map_err(io::Error::other)?)?;
        Ok(SinceDeath(std::thread::spawn(move || {
            while !pidfd.wait_dead(Duration::from_secs(60))? {}
            Ok(Stopwatch::start())
        })))
    }

    /// How long it has been dead, in the sense of [`Stopwatch::elapsed`]. Blocks until it is.
    ///
    /// # Panics
    /// When its pidfd cannot be waited for.
    pub fn elapsed(self) -> Duration {
        let waited = self.0.join().expect("no panic");
        waited.expect("a pidfd").elapsed()
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
