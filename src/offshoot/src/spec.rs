//! What an isolate is to be: its name, its isolation, its bounds.

use crate::descriptor::{Descriptor, MainEntry, captures_nothing};
use crate::family::LastWords;
use crate::isolate::inbox::Inbox;
use crate::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What separates an isolate from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Isolation {
    /// An OS thread of the spawning process. Values move; a crash takes the process down.
    Thread,
    /// A forked process of its own. Values are encoded; a crash is an [`Exit`](crate::Exit).
    Process,
    /// A thread whose payloads are encoded and decoded all the same, to find what would differ.
    Serde,
}

impl std::str::FromStr for Isolation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Isolation> {
        match text {
            "thread" => Ok(Isolation::Thread),
            "process" => Ok(Isolation::Process),
            "serde" => Ok(Isolation::Serde),
            other => Err(Error::new(
                ErrorKind::Misuse,
                format!("unknown isolation `{other}`: use `thread`, `process` or `serde`"),
            )),
        }
    }
}

/// The bounds of an isolate's start and end. Each is counted from its own request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// From the cancellation until user futures are dropped. Default 1.6 s.
    pub grace: Duration,
    /// From the cancellation until a process is killed and a thread abandoned. Default 3 s.
    pub hard_kill: Duration,
    /// From the request to spawn until it fails. Default 10 s.
    pub start: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            grace: Duration::from_millis(1_600),
            hard_kill: Duration::from_secs(3),
            start: Duration::from_secs(10),
        }
    }
}

/// What becomes of a process isolate's standard streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdio {
    /// The root process's own.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A pipe that the runtime always drains, so that the isolate never blocks on it. Each line is an
    /// event of the target `offshoot::output`, and the last 16 KiB are kept, see
    /// [`Portal::output_tail`](crate::Portal::output_tail). For output only; as input it is `Null`.
    Piped,
}

/// What a process isolate does with SIGINT, SIGTERM and SIGHUP that are sent to its own process.
///
/// It leads a process group of its own, so that the terminal's Ctrl-C is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Sigint {
    /// Nothing: they end it as they end any process, and its owner gets an
    /// [`Exit::Killed`](crate::Exit). Its owner decides when it is cancelled.
    #[default]
    Parent,
    /// The first one cancels it with its own bounds; a second one ends its grace at once.
    Own,
}

/// How surely what a process isolate has started itself (a `Command`, a daemon that forked twice) ends with it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[non_exhaustive]
pub enum Descendants {
    /// What is in its process group, and what bears the mark of its tree in the environment, ends with it. A program that was started
    /// with an emptied environment and has become a daemon ends with the tree's last process isolate.
    #[default]
    Subreaper,
    /// It is in a control group of its own, from before its first instruction on: all that it has started ends with it, whatever
    /// that has done to get away.
    Cgroup,
}

/// A limit on what a process isolate may use, as `setrlimit` counts it.
pub use offshoot_sys::fork::Limit;

/// The main function of a blocking isolate.
pub(crate) type Main = &'static Descriptor;

/// An isolate that is to be spawned. A name alone is one, too: `nursery.spawn("farm")`.
///
/// ```
/// use offshoot::prelude::*;
/// use std::time::Duration;
///
/// let spec = Isolate::named("vault").process().grace(Duration::from_millis(200));
/// assert_eq!(spec.name(), "vault");
/// ```
#[derive(Clone)]
#[must_use = "a specification does nothing until it is given to a nursery"]
pub struct Isolate {
    pub(crate) name: String,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) bounds: Option<Bounds>,
    pub(crate) grace: Option<Duration>,
    pub(crate) hard_kill: Option<Duration>,
    pub(crate) start: Option<Duration>,
    pub(crate) messages: Option<u32>,
    pub(crate) calls: Option<u32>,
    pub(crate) stack: Option<usize>,
    pub(crate) blocking: bool,
    pub(crate) main: Option<Main>,
    pub(crate) process: ProcessOptions,
    /// Its state has something to drop.
    pub(crate) drops: bool,
    /// Where it was given to a nursery.
    pub(crate) spawned_at: Option<&'static Location<'static>>,
}

/// What only a process can have.
#[derive(Clone, Default)]
pub(crate) struct ProcessOptions {
    pub(crate) directory: Option<PathBuf>,
    pub(crate) umask: Option<u32>,
    pub(crate) environment: Vec<(String, Option<String>)>,
    pub(crate) limits: Vec<(Limit, u64, u64)>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) sigint: Sigint,
    /// The only directories in which it may have addresses, if that is limited.
    pub(crate) grants: Option<Vec<PathBuf>>,
    pub(crate) ring: Option<usize>,
}

/// How many directories can be granted at a spawn.
pub(crate) const GRANTS_MAX: usize = 8;

impl Isolate {
    /// An isolate of this name, with the tree's default isolation and bounds.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// let vault = Isolate::named("vault").process();
    /// assert_eq!(vault.name(), "vault");
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn named(name: impl Into<String>) -> Isolate {
        Isolate {
            name: name.into(),
            isolation: None,
            bounds: None,
            grace: None,
            hard_kill: None,
            start: None,
            messages: None,
            calls: None,
            stack: None,
            blocking: false,
            main: None,
            process: ProcessOptions::default(),
            drops: false,
            spawned_at: None,
        }
    }

    /// Is started with a state of this type.
    pub(crate) fn started_with<S>(mut self) -> Isolate {
        self.drops = std::mem::needs_drop::<S>();
        self
    }

    /// What of the program runs at its end.
    pub(crate) fn last_words(&self) -> LastWords {
        match (&self.main, self.drops) {
            (Some(_), _) => LastWords::Main,
            (None, true) => LastWords::State,
            (None, false) => LastWords::None,
        }
    }

    pub(crate) fn spawned_at(mut self, place: &'static Location<'static>) -> Isolate {
        self.spawned_at = Some(place);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes it a thread, whatever the tree's default is.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// // A thread also where the tree's default is a process.
    /// let near = Isolate::named("near").thread();
    /// # let _ = near;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn thread(self) -> Isolate {
        self.isolation(Isolation::Thread)
    }

    /// Makes it a process, whatever the tree's default is.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let vault = nursery.spawn(Isolate::named("vault").process()).await?;
    ///     assert_ne!(vault.call(std::process::id, ()).await?, std::process::id());
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn process(self) -> Isolate {
        self.isolation(Isolation::Process)
    }

    /// Sets its isolation, whatever the tree's default is.
    pub fn isolation(mut self, isolation: Isolation) -> Isolate {
        self.isolation = Some(isolation);
        self
    }

    /// Sets all of its bounds.
    pub fn bounds(mut self, bounds: Bounds) -> Isolate {
        self.bounds = Some(bounds);
        self
    }

    /// Sets the time from a cancellation until user futures are dropped.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use offshoot::Isolate;
    ///
    /// let slow = Isolate::named("slow")
    ///     .grace(Duration::from_secs(5))
    ///     .hard_kill(Duration::from_secs(10));
    /// # let _ = slow;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn grace(mut self, grace: Duration) -> Isolate {
        self.grace = Some(grace);
        self
    }

    /// Sets the time from a cancellation until it is killed or abandoned.
    pub fn hard_kill(mut self, hard_kill: Duration) -> Isolate {
        self.hard_kill = Some(hard_kill);
        self
    }

    /// Sets the time that its start may take.
    pub fn start_within(mut self, start: Duration) -> Isolate {
        self.start = Some(start);
        self
    }

    /// Sets how many messages of one sender may wait for it. Default 1,024; at least 1.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// let narrow = Isolate::named("narrow").mailbox(16).calls_max(4);
    /// # let _ = narrow;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn mailbox(mut self, messages: u32) -> Isolate {
        self.messages = Some(messages.max(1));
        self
    }

    /// Sets how many calls of one sender may run on it. Default 1,024; at least 1.
    pub fn calls_max(mut self, calls: u32) -> Isolate {
        self.calls = Some(calls.max(1));
        self
    }

    /// Sets the size of its thread's stack in bytes. Default 2 MiB. No effect on a process, whose
    /// first isolate runs on the main thread.
    pub fn stack_size(mut self, bytes: usize) -> Isolate {
        self.stack = Some(bytes);
        self
    }

    /// Lets it serve one message at a time, each to its end, so that code which blocks is at home.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let disk = nursery.spawn(Isolate::named("disk").blocking()).await?;
    ///     // A plain function, which may block its thread.
    ///     let length = disk.call(|| std::env::args().count(), ()).await?;
    ///     assert!(length > 0);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn blocking(mut self) -> Isolate {
        self.blocking = true;
        self
    }

    /// Gives it a main function of its own, which receives in a loop and may block.
    ///
    /// ```
    /// use offshoot::prelude::*;
    ///
    /// fn careful(inbox: &mut Inbox) -> Result<()> {
    ///     while inbox.serve()? { /* between two messages */ }
    ///     Ok(())
    /// }
    /// let spec = Isolate::named("disk").blocking_main(careful);
    /// ```
    pub fn blocking_main<F>(mut self, main: F) -> Isolate
    where
        F: Fn(&mut Inbox) -> Result<()> + Copy + Send + 'static,
    {
        captures_nothing!(F);
        let _ = main;
        self.blocking = true;
        self.main = Some(MainEntry::<F>::DESCRIPTOR);
        self
    }

    /// Sets the working directory of a process isolate. Opened at the spawn, in this process.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// let tool = Isolate::named("tool").process().current_dir("/");
    /// # let _ = tool;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Isolate {
        self.process.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Sets the file mode creation mask of a process isolate.
    pub fn umask(mut self, umask: u32) -> Isolate {
        self.process.umask = Some(umask);
        self
    }

    /// Sets an environment variable of a process isolate.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// let tool = Isolate::named("tool").process().env("LANG", "C").env_remove("HOME");
    /// # let _ = tool;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Isolate {
        self.process
            .environment
            .push((key.into(), Some(value.into())));
        self
    }

    /// Removes an environment variable from a process isolate.
    pub fn env_remove(mut self, key: impl Into<String>) -> Isolate {
        self.process.environment.push((key.into(), None));
        self
    }

    /// Limits what a process isolate may use: `soft` and `hard` as of `setrlimit`.
    ///
    /// # Examples
    /// ```
    /// use offshoot::{Isolate, Limit};
    ///
    /// let small = Isolate::named("small")
    ///     .process()
    ///     .limit(Limit::OpenFiles, 256, 256);
    /// # let _ = small;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn limit(mut self, limit: Limit, soft: u64, hard: u64) -> Isolate {
        self.process.limits.push((limit, soft, hard));
        self
    }

    /// Sets the standard input of a process isolate.
    pub fn stdin(mut self, stdio: Stdio) -> Isolate {
        self.process.stdin = stdio;
        self
    }

    /// Sets the standard output of a process isolate.
    ///
    /// # Examples
    /// ```
    /// use offshoot::{Isolate, Stdio};
    ///
    /// let tool = Isolate::named("tool").process().stdout(Stdio::Piped).stderr(Stdio::Null);
    /// # let _ = tool;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn stdout(mut self, stdio: Stdio) -> Isolate {
        self.process.stdout = stdio;
        self
    }

    /// Sets the standard error of a process isolate.
    pub fn stderr(mut self, stdio: Stdio) -> Isolate {
        self.process.stderr = stdio;
        self
    }

    /// Gives the link between a process isolate and its owner a ring in shared memory, of `bytes` each way: for bulk data, which then take
    /// no way through the kernel, and for answers within a microsecond, where both sides are awake. Zero for none, whatever
    /// [`Builder::ring`](crate::Builder::ring) says. Without a word of either, a link that carries bulk gets one by itself.
    ///
    /// Between 4 KiB and 1 GiB, rounded up to a power of two; 1 MiB is good for most. Whatever is longer than the ring goes through it in
    /// parts. The memory has no name, belongs to the two processes alone and is gone with them; its pages are taken when they are used. No
    /// effect on a thread, nor on portals that other processes were given, which have sockets of their own. Where a process cannot map it, the
    /// link stays without one.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// let store = Isolate::named("store").process().ring(1 << 20);
    /// # let _ = store;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn ring(mut self, bytes: usize) -> Isolate {
        self.process.ring = Some(bytes);
        self
    }

    /// Sets what a process isolate does with signals that ask it to end.
    pub fn sigint(mut self, sigint: Sigint) -> Isolate {
        self.process.sigint = sigint;
        self
    }

    /// Lets a process isolate have addresses in this directory and those below it, and, with all that were granted, in no other: Unix
    /// sockets that it binds, files, pid files and shared memory (`/dev/shm`) that it makes or registers by this library. May be called up
    /// to eight times; opened at the spawn, in this process. [`Portal::grant`](crate::Portal::grant) adds one later.
    ///
    /// Without it a process may have addresses wherever its owner may, which is everywhere unless somebody above is limited: so
    /// that it can do what a thread can. With it, what its bind table says is honoured by nobody beyond, whatever it writes there.
    /// What it spawns can be granted no more than it has. It is no sandbox: the process may make files by other means, which nobody sweeps.
    pub fn grant(mut self, directory: impl AsRef<Path>) -> Isolate {
        let grants = self.process.grants.get_or_insert_default();
        grants.push(directory.as_ref().to_owned());
        self
    }

    /// Lets a process isolate have no addresses but where [`grant`](Isolate::grant) says: without one, nowhere.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Isolate;
    ///
    /// let guest = Isolate::named("guest").process().confined();
    /// # let _ = guest;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn confined(mut self) -> Isolate {
        self.process.grants.get_or_insert_default();
        self
    }

    pub(crate) fn resolve_bounds(&self, default: Bounds) -> Bounds {
        let base = self.bounds.unwrap_or(default);
        Bounds {
            grace: self.grace.unwrap_or(base.grace),
            hard_kill: self.hard_kill.unwrap_or(base.hard_kill),
            start: self.start.unwrap_or(base.start),
        }
    }

    /// The same as a value, checked.
    pub(crate) fn check(&self) -> Result<()> {
        if self.name.is_empty() || self.name.contains(['/', '\0', '\n']) {
            return Err(Error::new(
                ErrorKind::Misuse,
                format!(
                    "`{}` is no name for an isolate: it must not be empty nor contain `/`, NUL or a line break",
                    self.name.escape_debug()
                ),
            ));
        }
        let grants = self.process.grants.as_ref().map_or(0, Vec::len);
        if grants > GRANTS_MAX {
            let message = format!(
                "isolate `{}` is granted {grants} directories, and at a spawn {GRANTS_MAX} can be: grant one that holds several, or add the others \
                 by `Portal::grant`",
                self.name
            );
            return Err(Error::new(ErrorKind::Misuse, message));
        }
        Ok(())
    }

    /// An error if something is set that only a process can have.
    pub(crate) fn check_thread(&self) -> Result<()> {
        let process = &self.process;
        let set = [
            (process.directory.is_some(), "current_dir"),
            (process.umask.is_some(), "umask"),
            (!process.environment.is_empty(), "env"),
            (!process.limits.is_empty(), "limit"),
            (process.stdin != Stdio::Inherit, "stdin"),
            (process.stdout != Stdio::Inherit, "stdout"),
            (process.stderr != Stdio::Inherit, "stderr"),
            (process.sigint != Sigint::Parent, "sigint"),
            (process.grants.is_some(), "grant"),
        ];
        match set.into_iter().find(|(set, _)| *set) {
            None => Ok(()),
            Some((_, what)) => Err(Error::new(
                ErrorKind::Misuse,
                format!(
                    "isolate `{}` sets `{what}`, which belongs to a whole process, but is a thread: add `.process()`",
                    self.name
                ),
            )),
        }
    }
}

impl std::fmt::Debug for Isolate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Isolate")
            .field("name", &self.name)
            .field("isolation", &self.isolation)
            .field("bounds", &self.resolve_bounds(Bounds::default()))
            .field("blocking", &self.blocking)
            .finish_non_exhaustive()
    }
}

impl From<&str> for Isolate {
    fn from(name: &str) -> Isolate {
        Isolate::named(name)
    }
}

impl From<String> for Isolate {
    fn from(name: String) -> Isolate {
        Isolate::named(name)
    }
}

impl From<&String> for Isolate {
    fn from(name: &String) -> Isolate {
        Isolate::named(name.as_str())
    }
}
