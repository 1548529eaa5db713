//! Under what is measured: with which reserve, with what else to do, in how large a process.

use offshoot::{Builder, Isolation, Result};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a tree keeps ready for its spawns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// What it does by itself.
    Default,
    /// Nothing: each spawn starts what it needs.
    Cold,
    /// This many threads and processes, ready before the first spawn.
    Of(u32),
}

/// Settings for a tree that keeps `reserve` ready.
pub fn builder(isolation: Isolation, reserve: Reserve) -> Builder {
    let builder = Builder::new().isolation(isolation);
    match reserve {
        Reserve::Default => builder,
        Reserve::Cold => builder.reserve_threads(0).reserve_processes(0),
        Reserve::Of(n) => builder.reserve_threads(n).reserve_processes(n),
    }
}

/// Runs a tree to measure in.
///
/// # Errors
/// What went wrong in it.
pub fn tree<T, F>(isolation: Isolation, reserve: Reserve, root: F) -> Result<T>
where
    F: AsyncFnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    builder(isolation, reserve).run(root)
}

/// Waits between two operations, asleep, so that whoever is asked next sleeps by then.
pub fn pause(pause: Duration) {
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
}

/// Other work on every usable core, as long as this lives.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it.
    pub fn start() -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..offshoot_sys::limits::usable_cores())
            .map(|_| {
                let over = over.clone();
                std::thread::spawn(move || {
                    let mut n = 1_u64;
                    while !over.load(Ordering::Relaxed) {
                        for _ in 0..1_000 {
                            n = black_box(n.wrapping_mul(6_364_136_223_846_793_005) + 1);
                        }
                    }
                })
            })
            .collect();
        Load { over, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a large program has: memory that it has touched, and threads that wait.
#[derive(Debug)]
pub struct Ballast {
    memory: Vec<u8>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Ballast {
    /// Of this many bytes and threads.
    ///
    /// # Panics
    /// When there is not that much memory, or no thread to be had.
    pub fn new(bytes: usize, threads: usize) -> Ballast {
        let mut memory = vec![0_u8; bytes];
        // Fresh pages are not there before they are written to.
        memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..threads)
            .map(|_| {
                let over = over.clone();
                std::thread::spawn(move || {
                    while !over.load(Ordering::Acquire) {
                        std::thread::park();
                    }
                })
            })
            .collect();
        Ballast {
            memory,
            over,
            threads,
        }
    }

    /// How many bytes it has touched.
    pub fn bytes(&self) -> usize {
        self.memory.len()
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
