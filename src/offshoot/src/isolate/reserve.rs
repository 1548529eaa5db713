//! Threads that are started ahead and wait, so that a spawn is a hand-over instead of a `clone`.
//!
//! Each serves one isolate and then ends, so that its thread-locals are never seen by two. A thread
//! of its own, the keeper, starts them: never the one who spawns, and not before a new isolate has
//! nothing left to do, so that the refill does not delay its first answer. With the reserve used
//! up, spawns start their threads themselves.

use super::thread::{Assignment, launch, thread_main};
use offshoot_mailbox::{Parker, Sleep, Wake};
use offshoot_sys::surroundings::OfThread;
use offshoot_sys::thread::{self, Joiner};
use offshoot_sys::{clock, futex};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The name of a thread of the reserve for `std`, where it cannot be changed any more.
const NAME: &str = "isolate";
/// How long the threads have to end, which do nothing but wait (ns).
const END: u64 = 5_000_000_000;

pub(crate) struct Reserve {
    /// How many are to wait.
    size: usize,
    stack: Option<usize>,
    lean: bool,
    /// Somebody has use for it.
    wanted: AtomicBool,
    /// How many do, as of the lock below, for those who only look.
    level: AtomicUsize,
    state: Mutex<State>,
    keeper: Parker,
    /// Of the thread that made it, and so of those that wait here.
    maker: OfThread,
}

#[derive(Default)]
struct State {
    /// The newest last, which is taken first: its memory is warmest.
    idle: Vec<(Arc<Seat>, Joiner)>,
    keeper: Option<Joiner>,
    closed: bool,
}

/// Where one thread waits for what it is to do.
#[derive(Default)]
struct Seat {
    parker: Parker,
    order: Mutex<Order>,
}

#[derive(Default)]
enum Order {
    #[default]
    Wait,
    Live(Assignment),
    Leave,
}

impl Reserve {
    /// A reserve of `size` threads, empty for now.
    pub(crate) fn new(size: usize, stack: Option<usize>, lean: bool) -> Reserve {
        Reserve {
            size,
            stack,
            lean,
            wanted: AtomicBool::new(false),
            level: AtomicUsize::new(0),
            state: Mutex::default(),
            keeper: Parker::new(),
            maker: OfThread::now(),
        }
    }

    /// Says that isolates are being spawned here; before, nothing is kept ready.
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Gives an isolate to a thread that waits; gives it back if there is none.
    pub(crate) fn hand_over(&self, assignment: Assignment) -> Result<Joiner, Assignment> {
        // A thread has what the spawning one has; if that is something else, it has to be started by it.
        if self.level.load(Ordering::Relaxed) == 0 || OfThread::now() != self.maker {
            return Err(assignment);
        }
        let taken = {
            let mut state = self.state.lock();
            let taken = state.idle.pop();
            self.level.store(state.idle.len(), Ordering::Relaxed);
            taken
        };
        let Some((seat, joiner)) = taken else {
            return Err(assignment);
        };
        seat.tell(Order::Live(assignment));
        Ok(joiner)
    }

    /// Has the reserve filled if it is not full. Called by isolates that have
    /// nothing to do for the first time.
    pub(crate) fn refill(self: &Arc<Reserve>) {
        if self.level.load(Ordering::Relaxed) < self.size && self.wanted.load(Ordering::Relaxed) {
            self.fill();
        }
    }

    #[cold]
    fn fill(self: &Arc<Reserve>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if state.keeper.is_none() {
            let this = self.clone();
            let keeper = std::thread::Builder::new()
                .name("offshoot-keeper".to_owned())
                .stack_size(64 << 10)
                .spawn(move || this.keep());
            match keeper {
                Ok(keeper) => state.keeper = Some(Joiner::from(keeper)),
                Err(error) => {
                    crate::log::debug!(%error, "no thread to keep the reserve of threads")
                }
            }
            return;
        }
        drop(state);
        wake(&self.keeper);
    }

    /// The keeper's own thread.
    fn keep(self: Arc<Reserve>) {
        self.maker.put_on();
        loop {
            {
                let state = self.state.lock();
                if state.closed {
                    return;
                }
                if state.idle.len() >= self.size {
                    drop(state);
                    wait(&self.keeper);
                    continue;
                }
            }
            match self.start_one() {
                Ok((seat, joiner)) => {
                    let mut state = self.state.lock();
                    state.idle.push((seat, joiner));
                    self.level.store(state.idle.len(), Ordering::Relaxed);
                }
                Err(error) => {
                    // The next isolate that has nothing to do asks again.
                    crate::log::debug!(%error, "cannot start a thread for the reserve");
                    wait(&self.keeper);
                }
            }
        }
    }

    fn start_one(&self) -> io::Result<(Arc<Seat>, Joiner)> {
        let seat = Arc::new(Seat::default());
        let own = seat.clone();
        crate::budget::thread(self.stack, self.lean).map_err(io::Error::other)?;
        let joiner = launch(self.lean, NAME, self.stack, move || {
            if let Some(assignment) = own.wait() {
                drop(own);
                // For debuggers and /proc alone; and nothing of the program's may run here, such as
                // a log's subscriber.
                let _ = thread::take_name(assignment.name());
                thread_main(assignment);
            }
        })?;
        Ok((seat, joiner))
    }

    /// Ends all that wait. Later isolates get threads of their own making.
    pub(crate) fn close(&self) {
        let deadline = clock::now() + END;
        let keeper = {
            let mut state = self.state.lock();
            state.closed = true;
            state.keeper.take()
        };
        let mut joined = true;
        if let Some(mut keeper) = keeper {
            wake(&self.keeper);
            joined &= keeper.join_until(deadline);
        }
        // After it, so that it has left no other.
        let idle = std::mem::take(&mut self.state.lock().idle);
        self.level.store(0, Ordering::Relaxed);
        for (seat, _) in &idle {
            seat.tell(Order::Leave);
        }
        for (_, mut joiner) in idle {
            joined &= joiner.join_until(deadline);
        }
        if !joined {
            crate::log::error!("a thread of the reserve does not end");
        }
    }
}

impl Seat {
    fn tell(&self, order: Order) {
        *self.order.lock() = order;
        wake(&self.parker);
    }

    /// Waits for what this thread is to do; `None` if for nothing.
    fn wait(&self) -> Option<Assignment> {
        loop {
            // Not in the `match`, which would hold the lock through it.
            let order = std::mem::take(&mut *self.order.lock());
            match order {
                Order::Wait => wait(&self.parker),
                Order::Live(assignment) => return Some(assignment),
                Order::Leave => return None,
            }
        }
    }
}

fn wait(parker: &Parker) {
    if parker.prepare(Sleep::Futex) {
        futex::wait(parker.word(), Parker::ASLEEP, None);
        parker.finish();
    }
}

fn wake(parker: &Parker) {
    if parker.unpark() == Wake::Futex {
        futex::wake_one(parker.word());
    }
}
