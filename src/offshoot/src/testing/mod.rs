//! For the tests of programs that use this library: what a test left behind, what runs away, and links that break on purpose.
//!
//! Always there, since it costs a program nothing that does not use it, and a feature would have to be switched on where tests are built.
//! Linux only, as process isolates are.
//!
//! - [`Guard`] takes a [`Census`] and compares when it is dropped: whatever is left is named and, where that is safe, cleaned up.
//! - [`within`] runs a tree under a time limit with the guard on, and says what everybody was doing if it takes longer.
//! - [`runaways`] finds threads that do nothing but compute.
//! - [`Clock`] is a clock for timers that a test moves.
//! - [`break_link`] cuts the connection to a process isolate, [`break_link_after`] at a chosen point; [`unique_name`] makes names that no other
//!   process has.
//!
//! A census counts things of the whole process. Tests that use it must not run beside others in one process: give each test one of its own,
//! as cargo-nextest does, or run them with `--test-threads=1`.
//!
//! ```
//! use offshoot::prelude::*;
//! use offshoot::testing;
//! use std::time::Duration;
//!
//! async fn double(n: u64) -> u64 {
//!     n * 2
//! }
//!
//! let answer = testing::within(Duration::from_secs(20), async || {
//!     offshoot::nursery(async |nursery| {
//!         nursery.spawn("one").await?.call(double, 21).await
//!     })
//!     .await
//! })?;
//! assert_eq!(answer, 42);
//! # Ok::<(), offshoot::Error>(())
//! ```

mod census;
pub(crate) mod clock;
pub(crate) mod cut;
#[cfg(feature = "fault-points")]
mod fault;
#[cfg(feature = "fault-points")]
#[doc(hidden)]
pub mod hostile;
pub(crate) mod places;

pub use census::{Census, Kind, Leak};
pub use clock::Clock;
pub use cut::{After, Direction};
#[cfg(feature = "fault-points")]
pub use fault::Fault;

use crate::{Builder, Error, ErrorKind, Portal, Result};
use offshoot_sys::say;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long what is about to end may take: the kernel forgets a thread some time after it was joined.
const SETTLING: Duration = Duration::from_secs(5);

const STEP: Duration = Duration::from_millis(1);

/// How long the processes of a tree may take to say what they were doing.
const DUMPED: Duration = Duration::from_secs(1);

/// Takes a census, and when it is dropped, another one: what is there now and was not before is named in a panic, and cleaned up as
/// [`Leak::clean`] says. During a panic it only prints.
///
/// ```
/// let guard = offshoot::testing::Guard::new();
/// offshoot::run(async || Ok(()))?;
/// drop(guard); // Panics if anything is left.
/// # Ok::<(), offshoot::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "it compares when it is dropped"]
pub struct Guard {
    before: Option<Census>,
    abandoned: usize,
    settling: Duration,
}

impl Guard {
    /// Looks at what there is.
    pub fn new() -> Guard {
        Guard {
            before: Some(Census::now()),
            abandoned: 0,
            settling: SETTLING,
        }
    }

    /// How long what is about to end may take. Five seconds as default.
    pub fn settle(mut self, settling: Duration) -> Guard {
        self.settling = settling;
        self
    }

    /// So many threads will have been abandoned, and are no leak.
    pub fn abandons(mut self, threads: usize) -> Guard {
        self.abandoned = threads;
        self
    }

    /// What is there now and was not before. It is not cleaned up, and the guard is done.
    ///
    /// # Blocking
    /// For what is about to end, see [`settle`](Guard::settle).
    pub fn finish(mut self) -> Vec<Leak> {
        self.before
            .take()
            .map(|before| leaks(&before, self.abandoned, self.settling))
            .unwrap_or_default()
    }
}

impl Default for Guard {
    fn default() -> Guard {
        Guard::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(before) = self.before.take() else {
            return;
        };
        let leaks = leaks(&before, self.abandoned, self.settling);
        if leaks.is_empty() {
            return;
        }
        let text = list(&leaks);
        for leak in leaks {
            leak.clean();
        }
        match std::thread::panicking() {
            true => say::report(&format!("left behind:\n{text}\n")),
            false => panic!("left behind:\n{text}"),
        }
    }
}

fn leaks(before: &Census, abandoned: usize, settling: Duration) -> Vec<Leak> {
    settled(settling, || {
        let mut leaks = before.leaks();
        let threads = leaks.iter().filter(|leak| leak.kind() == Kind::Thread);
        if threads.count() <= abandoned {
            leaks.retain(|leak| leak.kind() != Kind::Thread);
        }
        leaks
    })
}

/// Looks until there is nothing, or what there is has had time enough.
fn settled(settling: Duration, mut look: impl FnMut() -> Vec<Leak>) -> Vec<Leak> {
    let deadline = Instant::now() + settling;
    loop {
        let leaks = look();
        if leaks.is_empty() || Instant::now() >= deadline {
            return leaks;
        }
        // There is no event for most of it.
        std::thread::sleep(STEP);
    }
}

fn list(leaks: &[Leak]) -> String {
    let mut text = String::new();
    for leak in leaks {
        let _ = writeln!(text, "  {leak}");
    }
    text
}

/// Runs a tree with the default settings under a time limit, and looks at what it leaves behind; see [`within_of`].
///
/// # Errors
/// As of [`within_of`].
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// let result = offshoot::testing::within(Duration::from_secs(30), async || {
///     offshoot::nursery(async |nursery| {
///         nursery.spawn("farm").await?;
///         Ok(())
///     })
///     .await
/// });
/// # let _ = result;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub fn within<F, T>(limit: Duration, root: F) -> Result<T>
where
    F: AsyncFnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    within_of(Builder::new(), limit, root)
}

/// Runs a tree under a time limit, and looks at what it leaves behind: its isolates, threads that were abandoned, processes with its mark,
/// its directory.
///
/// Tests run beside each other in one process, and what else that has (threads of the test's own, descriptors, shared memory, processes
/// without a mark) may be another test's. A [`Guard`] compares all of it, in a test that runs by itself.
///
/// When the limit has passed, what each isolate of the tree is doing is printed on the standard error, and the tree is cancelled and
/// comes down within its bounds. A process that does not answer within a second is named with what the system says of it.
///
/// # Blocking
/// Until the tree has ended.
///
/// # Errors
/// The root's own; one of kind [`ErrorKind::TimedOut`] if it took longer, with what everybody was doing; one that names what was left
/// behind. What was left is cleaned up as far as that is safe.
pub fn within_of<F, T>(builder: Builder, limit: Duration, root: F) -> Result<T>
where
    F: AsyncFnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    let before = Census::now();
    let running = builder.start(root)?;
    let handle = running.handle();
    let tree = handle.tree();
    let (done, ended) = channel::<()>();
    let watch = std::thread::spawn(move || match ended.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => {
            let dump = handle.dump_tree(DUMPED).join("\n");
            say::report(&format!("not done after {limit:?}:\n{dump}\n"));
            handle.cancel();
            Some(dump)
        }
        _ => None,
    });
    let result = running.wait();
    drop(done);
    let dump = watch.join().unwrap_or_default();
    // Other tests run beside this one: what is theirs, or nobody can say whose, is none of its.
    let leaks = settled(SETTLING, || {
        let mut leaks = before.leaks();
        leaks.retain(|leak| leak.is_of(tree));
        leaks
    });
    let text = list(&leaks);
    leaks.into_iter().for_each(Leak::clean);
    if let Some(dump) = dump {
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let message = format!("the tree was not done after {limit:?}; it did:\n{dump}");
        return Err(Error::new(ErrorKind::TimedOut(millis), message));
    }
    match (result, text.is_empty()) {
        (Ok(_), false) => Err(Error::new(
            ErrorKind::Other,
            format!("the tree left behind:\n{text}"),
        )),
        (result, _) => result,
    }
}

/// A thread that does nothing but compute.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Runaway {
    /// Its process.
    pub pid: i32,
    /// Its thread.
    pub tid: i32,
    /// The thread's name, which is that of its isolate.
    pub name: String,
    /// How much of the time it computed in which it had a processor or waited for nothing but one: 1 for one that never waits.
    pub share: f64,
}

/// Threads of this process, and of those below it, that compute for at least 95 % of so long, the time not counted in which a busy machine made
/// them wait for a processor.
///
/// # Blocking
/// For the window.
pub fn runaways(window: Duration) -> Vec<Runaway> {
    let (begun, before) = (Instant::now(), census::times());
    std::thread::sleep(window);
    let (after, passed) = (census::times(), begun.elapsed());
    let mut found = Vec::new();
    for (thread, now) in after {
        let Some(then) = before.get(&thread) else {
            continue;
        };
        let computed = Duration::from_nanos(now.computed.saturating_sub(then.computed));
        let waited = Duration::from_nanos(now.waited.saturating_sub(then.waited));
        let own = passed.saturating_sub(waited).max(computed);
        // Too little to say anything, as of one that was started and never had its turn.
        if computed < passed / 100 {
            continue;
        }
        let (share, name) = (computed.as_secs_f64() / own.as_secs_f64(), now.name);
        if share >= 0.95 {
            found.push(Runaway {
                pid: thread.0,
                tid: thread.1,
                name,
                share,
            });
        }
    }
    found
}

/// Cuts the connection to a process isolate, as if a cable had been pulled: neither side can say anything more. False if the isolate is a
/// thread.
///
/// Each side finds the end of its stream; the process comes down, and what waited for it fails. Never blocks.
pub fn break_link<S>(portal: &Portal<S>) -> bool {
    portal.break_link()
}

/// Cuts the connection to a process isolate as [`break_link`] does, once so much has passed in that direction from now on. False if the isolate is a
/// thread, or its link is to be cut already.
///
/// Frames are counted right only if none is half through at the time of the call: make it while nothing goes that way. Each message, answer,
/// item of a dialogue and cancellation is a frame. Never blocks.
///
/// ```no_run
/// # use offshoot::prelude::*;
/// use offshoot::testing::{After, Direction, break_link_after};
/// # async fn double(n: u64) -> u64 { 2 * n }
/// # async fn example(portal: Portal) -> Result<()> {
/// // In the middle of the first answer's header.
/// assert!(break_link_after(&portal, Direction::FromIsolate, After::Bytes(7)));
/// assert!(portal.call(double, 1).await.is_err());
/// # Ok(())
/// # }
/// ```
pub fn break_link_after<S>(portal: &Portal<S>, direction: Direction, after: After) -> bool {
    portal.break_link_after(direction, after)
}

/// A name that no other process, test or call gets: the prefix and 32 random hexadecimal digits.
///
/// # Errors
/// When the kernel's random numbers are forbidden to this process.
pub fn unique_name(prefix: &str) -> Result<String> {
    Ok(format!("{prefix}{:032x}", offshoot_sys::fsx::random()?))
}

/// A path for a Unix socket, in the temporary directory, that nobody else has: see [`unique_name`]. Short enough for any of them, if that
/// directory's is.
///
/// # Errors
/// As of [`unique_name`].
pub fn unique_socket() -> Result<PathBuf> {
    Ok(std::env::temp_dir().join(unique_name("s-")?))
}
