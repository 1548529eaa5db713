//! Fault points: places at which a test can make something go wrong.
//!
//! The environment variable `OFFSHOOT_FAULT` lists faults, separated by commas, each of the form
//! `stage[@name][*times]:action[=value]`. Without the feature `fault-points` this is nothing at all.
//!
//! - `@name` keeps to the isolate of that name, `*times` to so many times in each process.
//! - `action` is `kill` (SIGKILL itself), `stop` (SIGSTOP itself), `exit` (code 3, or the value),
//!   `panic`, `hang` (block for ever), `delay` (so many ms), and, where the stage can fail, `fail` by the
//!   number of an error of the operating system.
//!
//! [`testing::Fault`](crate::testing::Fault) and [`Builder::faults`](crate::Builder::faults) say the same by a builder.
//!
//! A process isolate sees the variable of its own [`env`](crate::Isolate::env) from S3 on, and before
//! that the one that the forkserver was started with, as does the forkserver.
//!
//! | stage | where | can fail |
//! |---|---|---|
//! | `thread` | the owner, before a thread is started | yes |
//! | `server` | the root, before a forkserver is started | yes |
//! | `pair` | the owner, before the socket pair of a process is made | yes |
//! | `request` | the owner, before a process is asked for | yes |
//! | `fork` | the forkserver, before it forks | yes |
//! | `forked` | the forkserver, having forked, before it says so | yes |
//! | `hand` | the forkserver, having forked a process for the root's hand, before it gives it | no |
//! | `give` | the root, before it tells a process of its hand what it is to become | no |
//! | `claim` | the root, having told that, before the forkserver is to be told | no |
//! | `claimed` | the forkserver, being told whose a process of the root's hand is | no |
//! | `S1` | a new process, before it has read or written anything | no |
//! | `S2` | a new process, as the last step of its prelude | yes |
//! | `S3` | a new process, told who it is, its environment set | no |
//! | `build` | a new process, as if it were of another build | yes, by any number |
//! | `S4` | a new process, its state decoded, before it says that it is ready | no |
//! | `S5` | a new process, having said that it is ready | no |
//! | `S6` | an isolate, thread or process, before its first turn | no |
//! | `S7` | an isolate, thread or process, that begins to close or to come down | no |
//! | `S8` | an isolate that has ended; a process has said so | no |
//! | `reap` | the forkserver, a child being dead and not reaped | no |
//! | `sweep` | the forkserver, a child being reaped and not swept | no |
//! | `end` | the forkserver, the root being gone | no |
//! | `lost` | the root, a forkserver being gone, before it ends that one's processes | no |
//! | `replaced` | the root, a forkserver being gone, before it sweeps what was left | no |
//! | `tree` | the root, before the tree's directory is made | yes |
//! | `cgroup` | the forkserver, before it makes its control group | yes, which is no failure |
//! | `bind` | whoever binds a path, before anything is made | yes |
//! | `look` | the root's warden, knowing what has been spawned, before it hears what isolates say of that | no |
//! | `wake` | a sender, having pushed a message, before it wakes the receiver | no |

use std::io;

/// The stages of the table above.
#[cfg(feature = "fault-points")]
pub(crate) const STAGES: [&str; 29] = [
    "thread", "server", "pair", "request", "fork", "forked", "hand", "give", "claim", "claimed",
    "S1", "S2", "S3", "build", "S4", "S5", "S6", "S7", "S8", "reap", "sweep", "end", "lost",
    "replaced", "tree", "cgroup", "bind", "look", "wake",
];

/// Does here what the environment says, for the isolate of this name.
#[cfg(feature = "fault-points")]
pub(crate) fn point(stage: &str, name: &str) {
    if let Err(error) = check(stage, name) {
        panic!("the stage {stage} cannot fail: {error}");
    }
}

/// The faults that a builder has set, of this process; a forked one has those of the forkserver.
#[cfg(feature = "fault-points")]
static BUILT: parking_lot::Mutex<String> = parking_lot::Mutex::new(String::new());
#[cfg(feature = "fault-points")]
static ANY_BUILT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Sets the faults of this process, in place of those that were set here before.
#[cfg(feature = "fault-points")]
pub(crate) fn set(faults: String) {
    ANY_BUILT.store(!faults.is_empty(), std::sync::atomic::Ordering::Relaxed);
    *BUILT.lock() = faults;
}

/// Those that a builder has set, for another process.
pub(crate) fn built() -> String {
    #[cfg(feature = "fault-points")]
    return BUILT.lock().clone();
    #[cfg(not(feature = "fault-points"))]
    String::new()
}

/// Takes over those that another process has sent.
pub(crate) fn take(faults: String) {
    #[cfg(feature = "fault-points")]
    set(faults);
    #[cfg(not(feature = "fault-points"))]
    drop(faults);
}

/// As [`point`], where an error of the operating system can be made up.
#[cfg(feature = "fault-points")]
pub(crate) fn check(stage: &str, name: &str) -> io::Result<()> {
    if let Ok(all) = std::env::var("OFFSHOOT_FAULT") {
        check_in(&all, stage, name)?;
    }
    if ANY_BUILT.load(std::sync::atomic::Ordering::Relaxed) {
        let all = BUILT.lock().clone();
        check_in(&all, stage, name)?;
    }
    Ok(())
}

/// As [`point`], on the way of every message: the environment is only asked the first time.
#[cfg(feature = "fault-points")]
pub(crate) fn frequent_point<'a>(stage: &str, name: impl FnOnce() -> &'a str) {
    static ANY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let built = ANY_BUILT.load(std::sync::atomic::Ordering::Relaxed);
    if built || *ANY.get_or_init(|| std::env::var_os("OFFSHOOT_FAULT").is_some()) {
        point(stage, name());
    }
}

/// Does what the faults of this list say.
#[cfg(feature = "fault-points")]
fn check_in(all: &str, stage: &str, name: &str) -> io::Result<()> {
    for one in all.split(',') {
        let Some((place, action)) = one.split_once(':') else {
            panic!("`{one}` in OFFSHOOT_FAULT is not of the form stage:action");
        };
        let (place, times) = match place.split_once('*') {
            Some((place, times)) => (place, times.parse::<u32>().ok()),
            None => (place, None),
        };
        let (at, only) = match place.split_once('@') {
            Some((at, only)) => (at, Some(only)),
            None => (place, None),
        };
        if at != stage || only.is_some_and(|only| only != name) {
            continue;
        }
        if times.is_some_and(|times| count(one) > times) {
            continue;
        }
        act(stage, action)?;
    }
    Ok(())
}

/// How often this fault has been due in this process.
#[cfg(feature = "fault-points")]
fn count(fault: &str) -> u32 {
    static COUNTS: parking_lot::Mutex<Vec<(String, u32)>> = parking_lot::Mutex::new(Vec::new());
    let mut counts = COUNTS.lock();
    match counts.iter_mut().find(|(known, _)| known == fault) {
        Some((_, n)) => {
            *n += 1;
            *n
        }
        None => {
            counts.push((fault.to_owned(), 1));
            1
        }
    }
}

#[cfg(feature = "fault-points")]
fn act(stage: &str, action: &str) -> io::Result<()> {
    let (action, value) = match action.split_once('=') {
        Some((action, value)) => (action, value.parse::<i32>().ok()),
        None => (action, None),
    };
    let signal = |number| {
        if let Ok(this) = offshoot_sys::pidfd::Pidfd::open(offshoot_sys::process::id()) {
            let _ = this.signal(number);
        }
    };
    match action {
        "kill" => signal(offshoot_sys::signal::SIGKILL),
        "stop" => signal(offshoot_sys::signal::SIGSTOP),
        "exit" => std::process::exit(value.unwrap_or(3)),
        "panic" => panic!("fault point {stage}"),
        "hang" => loop {
            std::thread::park();
        },
        "delay" => {
            let millis = u64::try_from(value.unwrap_or(0)).unwrap_or(0);
            std::thread::sleep(std::time::Duration::from_millis(millis));
        }
        "fail" => return Err(io::Error::from_raw_os_error(value.unwrap_or(0))),
        other => panic!("unknown action `{other}` in OFFSHOOT_FAULT"),
    }
    Ok(())
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn point(_: &str, _: &str) {}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn frequent_point<'a>(_: &str, _: impl FnOnce() -> &'a str) {}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub(crate) fn check(_: &str, _: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, feature = "fault-points"))]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_due_where_for_whom_and_as_often_as_it_says() {
        let faults = "t1@a*2:fail=11,t2:delay=1,t3:nonsense";
        let errno = |stage, name| {
            let result = check_in(faults, stage, name);
            result.err().and_then(|error| error.raw_os_error())
        };
        assert_eq!(errno("t1", "b"), None);
        assert_eq!(errno("t1", "a"), Some(11));
        assert_eq!(errno("t1", "a"), Some(11));
        assert_eq!(errno("t1", "a"), None, "the third time");
        assert_eq!(errno("t2", "anybody"), None);
        assert!(std::panic::catch_unwind(|| check_in(faults, "t3", "")).is_err());
    }

    #[test]
    fn the_table_has_each_stage_in_order() {
        let rows = include_str!("fault.rs").lines();
        let rows = rows.filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
        assert_eq!(rows.collect::<Vec<_>>(), super::STAGES);
    }
}
