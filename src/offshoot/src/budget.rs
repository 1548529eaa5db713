//! Whether there is room for one more thread or process: asked before std or the kernel would answer
//! by ending this process.
//!
//! A new thread that cannot map its alternate signal stack aborts the whole process, and so does an
//! allocation that fails; a thread costs four mappings, of which a process may have 65,530. So the
//! ceilings are errors here, a little before they are reached, that name the limit and how to raise it.

use offshoot_sys::{clock, limits};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Stack, guard page, alternate signal stack and its guard page.
const MAPPINGS_PER_THREAD: i64 = 4;
/// Stack and guard page.
const MAPPINGS_PER_LEAN_THREAD: i64 = 2;
/// What everything else in the process may still want when the last thread is started.
const MAPPINGS_SPARE: i64 = 512;
/// The same for memory, in bytes: the thread's own first allocations, and others'.
const MEMORY_SPARE: u64 = 16 << 20;
/// What std gives a thread that does not say, in bytes.
const STACK: usize = 2 << 20;
/// The descriptors of a process isolate on its owner's side (link, pidfd, two pipes), those that are
/// open for a moment while it starts, and some for the rest of the process.
const DESCRIPTORS: u64 = 16;

/// Counting 60,000 mappings takes 20 ms, so that they are not counted again before so many times as
/// long has passed: it takes a fiftieth of the time at most.
const COUNT_SHARE: u64 = 50;

/// Mappings that may be taken before they are counted again, and until when that holds (ns): others
/// than us take some, too.
static MAPPINGS: AtomicI64 = AtomicI64::new(0);
static COUNTED_UNTIL: AtomicU64 = AtomicU64::new(0);
static COUNTING: Mutex<()> = Mutex::new(());

/// Whether a thread with a stack of so many bytes may be started. The text is for the user.
pub(crate) fn thread(stack: Option<usize>, lean: bool) -> Result<(), String> {
    mappings(if lean {
        MAPPINGS_PER_LEAN_THREAD
    } else {
        MAPPINGS_PER_THREAD
    })?;
    memory(stack.unwrap_or(STACK) as u64)
}

fn mappings(each: i64) -> Result<(), String> {
    let began = clock::now();
    let take = || {
        MAPPINGS.fetch_sub(each, Ordering::Relaxed) >= each
            && began < COUNTED_UNTIL.load(Ordering::Relaxed)
    };
    if take() {
        return Ok(());
    }
    let _counting = COUNTING.lock();
    if take() {
        return Ok(());
    }
    // Without /proc nothing can be said, and the system will have to.
    let (Some(used), Some(max)) = (limits::mappings_now(), limits::mappings_max()) else {
        return Ok(());
    };
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let left = signed(max) - signed(used) - MAPPINGS_SPARE;
    if left < each {
        MAPPINGS.store(0, Ordering::Relaxed);
        return Err(format!(
            "this process has {used} memory mappings, and may have {max}; a thread takes {each}. Raise \
             vm.max_map_count (`sysctl -w vm.max_map_count=N`), use lean threads, or spread the isolates over processes"
        ));
    }
    // Half of them, for the same reason as the time; and near the end none.
    let ahead = if left > 4 * MAPPINGS_SPARE {
        left / 2
    } else {
        0
    };
    let now = clock::now();
    COUNTED_UNTIL.store(now + (now - began) * COUNT_SHARE, Ordering::Relaxed);
    MAPPINGS.store(ahead, Ordering::Relaxed);
    Ok(())
}

fn memory(stack: u64) -> Result<(), String> {
    let soft = limits::memory_limits();
    if soft == [None, None] {
        return Ok(());
    }
    let Some(used) = limits::memory_now() else {
        return Ok(());
    };
    for ((name, soft), used) in [("RLIMIT_AS", soft[0]), ("RLIMIT_DATA", soft[1])]
        .into_iter()
        .zip(used)
    {
        let Some(soft) = soft else { continue };
        if used.saturating_add(stack).saturating_add(MEMORY_SPARE) > soft {
            return Err(format!(
                "this process has {} MiB of {} MiB ({name}), and a thread takes {} KiB of stack. Raise the limit \
                 (`ulimit -v` or `ulimit -d`), or give isolates smaller stacks (`stack_size`)",
                used >> 20,
                soft >> 20,
                stack >> 10
            ));
        }
    }
    Ok(())
}

/// Whether a process may be started, as far as its owner's descriptors go.
pub(crate) fn process() -> Result<(), String> {
    let (soft, hard) = limits::open_files();
    match limits::open_now() {
        Some(used) if used.saturating_add(DESCRIPTORS) > soft => Err(format!(
            "this process has {used} of {soft} descriptors open, and keeps {DESCRIPTORS} in reserve. Raise \
             RLIMIT_NOFILE, up to its hard limit of {hard} (`ulimit -n`)"
        )),
        _ => Ok(()),
    }
}

/// Names the limits in an error of a thread of the runtime's own that could not be started.
pub(crate) fn of_thread(name: &'static str) -> impl FnOnce(std::io::Error) -> std::io::Error {
    move |error| {
        let message = format!(
            "cannot start the thread `{name}`: {error}; the limits are: {}",
            of_tasks()
        );
        std::io::Error::new(error.kind(), message)
    }
}

/// What bounds the number of threads and processes here and now, for an error that came from the system.
pub(crate) fn of_tasks() -> String {
    limits::of_tasks().join("; ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn f09_a_thread_of_the_runtime_that_cannot_be_had_names_the_limits() {
        let error = super::of_thread("offshoot-warden")(std::io::Error::from_raw_os_error(11));
        let text = error.to_string();
        for word in [
            "offshoot-warden",
            "os error 11",
            "RLIMIT_NPROC",
            "threads-max",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
