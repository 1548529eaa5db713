//! Runs the built command in a place of its own, and sees whether anything is left of it.
//!
//! Every process that comes of a run is known by a variable of its environment, which it inherits
//! and which shows in `/proc` until it is reaped; what a tree puts into the file system lies in a
//! directory that only this run uses.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// No wait of these tests is longer. The runs themselves take less than a second.
const BOUND: Duration = Duration::from_secs(30);

/// A command that is to be run.
pub(crate) struct Command {
    command: std::process::Command,
    place: Place,
}

/// Where a run is, and by what its processes are known.
struct Place {
    mark: String,
    directory: tempfile::TempDir,
}

/// A command that runs.
pub(crate) struct Running {
    child: Option<Child>,
    place: Place,
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Command {
    pub(crate) fn new(args: &[&str]) -> Command {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Ignored by a program that `nohup`, or a shell in the background, has started, and by what that starts.
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: sets no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            mark: format!("OFFSHOOT_TEST_MARK={}-{number}", std::process::id()),
            directory: tempfile::tempdir().unwrap(),
        };
        for sub in ["run", "tmp", "cwd"] {
            fs::create_dir(place.path(sub)).unwrap();
            fs::set_permissions(place.path(sub), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let (key, value) = place.mark.split_once('=').unwrap();
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("offshoot"));
        command
            .args(args)
            .env(key, value)
            .env("XDG_RUNTIME_DIR", place.path("run"))
            .env("TMPDIR", place.path("tmp"))
            .env_remove("OFFSHOOT_ISOLATION")
            .env_remove("OFFSHOOT_LOG")
            .env_remove("RUST_BACKTRACE")
            .current_dir(place.path("cwd"))
            .stdin(Stdio::null());
        Command { command, place }
    }

    pub(crate) fn arg(&mut self, arg: &Path) -> &mut Command {
        self.command.arg(arg);
        self
    }

    pub(crate) fn env(&mut self, key: &str, value: &str) {
        self.command.env(key, value);
    }

    pub(crate) fn stdin(&mut self, stdin: Stdio) {
        self.command.stdin(stdin);
    }

    /// Its working directory.
    pub(crate) fn directory(&self) -> PathBuf {
        self.place.path("cwd")
    }

    /// Runs it to its end and checks that nothing is left.
    pub(crate) fn run(&mut self) -> Done {
        self.run_to(Stdio::piped())
    }

    /// As [`run`](Command::run), with this standard output.
    pub(crate) fn run_to(&mut self, stdout: Stdio) -> Done {
        self.start_to(stdout).finish()
    }

    pub(crate) fn start(&mut self) -> Running {
        self.start_to(Stdio::piped())
    }

    fn start_to(&mut self, stdout: Stdio) -> Running {
        let child = self
            .command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let fresh = Place {
            mark: String::new(),
            directory: tempfile::tempdir().unwrap(),
        };
        Running {
            child: Some(child),
            // A second run would not be told from this one.
            place: std::mem::replace(&mut self.place, fresh),
        }
    }
}

impl Place {
    fn path(&self, sub: &str) -> PathBuf {
        self.directory.path().join(sub)
    }

    /// The processes that come of this run, zombies with an owner included as long as they show.
    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment
                .split(|byte| *byte == 0)
                .any(|var| var == self.mark.as_bytes())
            {
                let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push(format!("{} {}", entry.file_name().display(), name.trim()));
            }
        }
        found
    }

    /// What lies where trees put their directories.
    fn tree_dirs(&self) -> Vec<PathBuf> {
        let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
        ["run", "tmp"]
            .into_iter()
            .flat_map(|sub| entries(self.path(sub)))
            // The base directory stays, empty.
            .flat_map(
                |base| match base.file_name().as_encoded_bytes().starts_with(b"offshoot") {
                    true => entries(base.path()).map(|entry| entry.path()).collect(),
                    false => vec![base.path()],
                },
            )
            .collect()
    }
}

impl Running {
    pub(crate) fn processes(&self) -> Vec<String> {
        self.place.processes()
    }

    pub(crate) fn tree_dirs(&self) -> Vec<PathBuf> {
        self.place.tree_dirs()
    }

    /// How many threads its first process has.
    pub(crate) fn threads(&self) -> usize {
        let pid = self.child.as_ref().map_or(0, Child::id);
        fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
    }

    /// Sends a signal to its first process only.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().map_or(0, Child::id).to_string();
        let args = ["-c", "kill -s \"$0\" \"$1\"", name, &pid];
        assert!(
            std::process::Command::new("sh")
                .args(args)
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for its end and checks that nothing is left.
    pub(crate) fn finish(mut self) -> Done {
        let mut child = self.child.take().unwrap();
        // Read beside the wait: a full pipe would block the command.
        let stdout = child.stdout.take().map(read_all);
        let stderr = child.stderr.take().map(read_all);
        let begun = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if begun.elapsed() > BOUND => {
                    let left = self.place.processes();
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("it runs on after {BOUND:?}: {left:?}");
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        eventually("all of its processes are gone", || {
            self.place.processes().is_empty()
        });
        assert_eq!(
            self.place.tree_dirs(),
            Vec::<PathBuf>::new(),
            "left in the file system"
        );
        let cores = fs::read_dir(self.place.path("cwd")).unwrap().flatten();
        let cores = cores.filter(|entry| entry.file_name() != OsStr::new("here.txt"));
        assert_eq!(cores.count(), 0, "left in the working directory");
        let text = |reader: Option<std::thread::JoinHandle<String>>| {
            reader
                .map(|reader| reader.join().unwrap())
                .unwrap_or_default()
        };
        Done {
            code: status.code(),
            signal: status.signal(),
            stdout: text(stdout),
            stderr: text(stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    })
}

/// Waits until `condition` holds, and fails if it never does.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < BOUND, "not within {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
