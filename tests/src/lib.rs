//! What the tests share: how one test runs for every isolation, and what is checked after each.
//!
//! Each test runs in a process of its own, which the test binary starts by executing itself again
//! for that one test. So descriptors, threads and child processes can be counted exactly, a test
//! that hangs or crashes takes no other along, and whatever leaks a process or a file is named.
//! [`both!`] and its siblings make the tests, [`run`] runs one, `oracle` looks at what is left.

mod oracle;
mod signs;
mod stopwatch;
mod waiter;
mod watchdog;

pub use oracle::{Oracle, bystander, forget_bystanders, of_children};
pub use signs::{Guard, append, held, hold, lines, mark, marked, soon, until};
pub use stopwatch::{SinceDeath, Stopwatch};
pub use waiter::{Waiter, waits};

use offshoot::{Builder, Isolation, Result};
use offshoot_sys::pidfd::Pidfd;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Names the directory of the running test, in its process and in all that it starts.
const DIR: &str = "OFFSHOOT_TEST_DIR";

/// How long the process of a test may take, whatever it allowed itself; and in a long form.
const OUTER_BOUND: Duration = Duration::from_secs(180);
const OUTER_BOUND_LONG: Duration = Duration::from_secs(1_000);

/// The running test.
#[derive(Clone, Debug)]
pub struct T {
    /// What its isolates are.
    pub isolation: Isolation,
}

impl T {
    /// A tree of this test's isolation, otherwise as default.
    pub fn builder(&self) -> Builder {
        Builder::new().isolation(self.isolation)
    }

    /// Runs a tree of this test's isolation.
    ///
    /// # Errors
    /// As of [`Builder::run`].
    pub fn run<F, R>(&self, root: F) -> Result<R>
    where
        F: AsyncFnOnce() -> Result<R> + Send + 'static,
        R: Send + 'static,
    {
        self.builder().run(root)
    }

    /// Sets the faults of the trees that this test runs from here on, and of all their processes; see
    /// `fault.rs` of the crate `offshoot` for how they are written.
    pub fn faults(&self, faults: &str) {
        // SAFETY: the other threads of this process are the harness's and the watchdog, which read
        // the environment through std, if at all, as this does.
        unsafe { std::env::set_var("OFFSHOOT_FAULT", faults) };
    }

    /// True if its isolates are processes.
    pub fn is_process(&self) -> bool {
        self.isolation == Isolation::Process
    }

    /// Lets this test take longer than 20 s.
    pub fn within(&self, bound: Duration) {
        watchdog::set(bound);
    }

    /// Says that so many threads of this process will have been abandoned.
    pub fn abandons(&self, threads: usize) {
        oracle::expect_abandoned(threads);
    }
}

/// The directory of the running test.
///
/// # Panics
/// Outside of a test that [`run`] runs.
pub fn dir() -> PathBuf {
    PathBuf::from(std::env::var_os(DIR).expect("only inside of a test"))
}

/// Runs the test `name` in a process of its own, and fails as it does, or if it leaves anything.
///
/// # Panics
/// If the test fails.
pub fn run(name: &str, isolation: Isolation, body: impl FnOnce(T)) {
    // The harness knows a test by its path below the crate.
    let name = name.split_once("::").map_or(name, |(_, name)| name);
    if std::env::var_os(DIR).is_some() {
        inside(T { isolation }, body);
    } else {
        outside(name);
    }
}

fn inside(t: T, body: impl FnOnce(T)) {
    watchdog::start();
    let oracle = Oracle::begin();
    body(t);
    oracle.check();
}

/// Has what is started from here end by the signals of a terminal: `nohup`, and a shell that starts a job in the background, have this program ignore
/// them, and what it starts.
pub fn heed_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: sets no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn outside(name: &str) {
    heed_signals();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Short, because socket paths are.
    let dir = std::env::temp_dir().join(format!("ot-{}-{number}", std::process::id()));
    for part in ["run", "signs"] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.join(part))
            .expect("a directory for the test");
    }
    let output = dir.join("output");
    let end = execute(name, &dir, &output);
    let strays = oracle::strays(&dir);
    let left = oracle::files_in(&dir.join("run"));
    let text = fs::read_to_string(&output).unwrap_or_default();
    let _ = fs::remove_dir_all(&dir);
    // A harness that finds no test of that name is content, too.
    let ran = text.contains("1 passed");
    let said = oracle::of_children(&text);
    if std::env::var_os("OFFSHOOT_LONG").is_some() {
        // The figures of the long forms, for `--nocapture`.
        println!("{text}");
    }
    assert!(
        end == "exit status: 0" && ran && strays.is_empty() && left.is_empty() && said.is_empty(),
        "{name}: {end}\nprocesses left: {strays:#?}\nfiles left: {left:#?}\n{text}"
    );
}

/// Runs this executable for this one test; says how it ended.
fn execute(name: &str, dir: &Path, output: &Path) -> String {
    let out = File::create(output).expect("a file for the output");
    let err = out.try_clone().expect("a descriptor");
    let mut child = Command::new(std::env::current_exe().expect("the path of this executable"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .env("XDG_RUNTIME_DIR", dir.join("run"))
        .env_remove("OFFSHOOT_ISOLATION")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .expect("a process for the test");
    let bound = match std::env::var_os("OFFSHOOT_LONG") {
        Some(_) => OUTER_BOUND_LONG,
        None => OUTER_BOUND,
    };
    let in_time = Pidfd::open(i32::try_from(child.id()).expect("a process id"))
        .and_then(|pidfd| pidfd.wait_dead(bound))
        .unwrap_or(false);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().expect("the end of the test's process");
    if in_time {
        status.to_string()
    } else {
        format!("{status}, killed after {bound:?}")
    }
}

/// Makes each function a module with the tests `thread`, `process` and `serde`.
///
/// An `async fn` is the root of a tree with that isolation, and may use `?`; a `fn` runs its trees
/// itself.
#[macro_export]
macro_rules! both {
    () => {};
    ($(#[$meta:meta])* async fn $name:ident($t:ident: T) $body:block $($rest:tt)*) => {
        $crate::case! { $(#[$meta])* async fn $name($t: T) $body [thread process serde] }
        $crate::both! { $($rest)* }
    };
    ($(#[$meta:meta])* fn $name:ident($t:ident: T) $body:block $($rest:tt)*) => {
        $crate::case! { $(#[$meta])* fn $name($t: T) $body [thread process serde] }
        $crate::both! { $($rest)* }
    };
}

/// As [`both!`], for what holds of processes only.
#[macro_export]
macro_rules! processes {
    () => {};
    ($(#[$meta:meta])* async fn $name:ident($t:ident: T) $body:block $($rest:tt)*) => {
        $crate::case! { $(#[$meta])* async fn $name($t: T) $body [process] }
        $crate::processes! { $($rest)* }
    };
    ($(#[$meta:meta])* fn $name:ident($t:ident: T) $body:block $($rest:tt)*) => {
        $crate::case! { $(#[$meta])* fn $name($t: T) $body [process] }
        $crate::processes! { $($rest)* }
    };
}

/// As [`both!`], for what holds of threads only.
#[macro_export]
macro_rules! threads {
    () => {};
    ($(#[$meta:meta])* async fn $name:ident($t:ident: T) $body:block $($rest:tt)*) => {
        $crate::case! { $(#[$meta])* async fn $name($t: T) $body [thread serde] }
        $crate::threads! { $($rest)* }
    };
    ($(#[$meta:meta])* fn $name:ident($t:ident: T) $body:block $($rest:tt)*) => {
        $crate::case! { $(#[$meta])* fn $name($t: T) $body [thread serde] }
        $crate::threads! { $($rest)* }
    };
}

/// One function as tests of these isolations.
#[doc(hidden)]
#[macro_export]
macro_rules! case {
    ($(#[$meta:meta])* async fn $name:ident($t:ident: T) $body:block [$($isolation:ident)*]) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)] // Not every test names something from around it.
            use super::*;
            fn body($t: $crate::T) {
                let t = $t.clone();
                let root = async move || -> offshoot::Result<()> {
                    let () = $body;
                    Ok(())
                };
                if let Err(error) = t.run(root) {
                    panic!("{}", error.report());
                }
            }
            $($crate::case! { @$isolation })*
        }
    };
    ($(#[$meta:meta])* fn $name:ident($t:ident: T) $body:block [$($isolation:ident)*]) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)] // Not every test names something from around it.
            use super::*;
            fn body($t: $crate::T) $body
            $($crate::case! { @$isolation })*
        }
    };
    (@thread) => {
        #[test]
        fn thread() {
            $crate::run(concat!(module_path!(), "::thread"), offshoot::Isolation::Thread, body);
        }
    };
    (@process) => {
        #[test]
        fn process() {
            $crate::run(concat!(module_path!(), "::process"), offshoot::Isolation::Process, body);
        }
    };
    (@serde) => {
        #[test]
        fn serde() {
            $crate::run(concat!(module_path!(), "::serde"), offshoot::Isolation::Serde, body);
        }
    };
}
