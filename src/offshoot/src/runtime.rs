//! One tree in one process: its settings, its ids, what it shares, and how it starts and ends.
//!
//! There is no process-wide runtime: any number of trees can live in one process, one after the
//! other or at once. What stands here belongs to one of them.

use crate::blocking::Pool;
use crate::descriptor::{HookEntry, captures_nothing};
use crate::family::{Body, Departed, Family, Key, Member, Status};
use crate::inspect::{Blocked, Noticed, Watcher};
use crate::isolate::job::{Outcome, poll_caught};
use crate::isolate::local::Local;
use crate::isolate::panics;
use crate::isolate::reserve::Reserve;
use crate::isolate::shared::{Control, PollWaker, Route, Shared, Target};
use crate::isolate::thread::{self, Manner, Work};
use crate::janitor::{ProcessKey, TreeDir, sweep_dead_trees};
use crate::life::{Life, ended};
use crate::process::keys::Keys;
use crate::process::link::Link;
use crate::process::porter::Porter;
use crate::process::warden::Warden;
use crate::scope::cancelled_error;
use crate::spec::{Bounds, Descendants, Isolation, Sigint};
use crate::spin::{self, Spin};
use crate::time::nanos;
use crate::{Cancel, Canceller, Error, ErrorKind, Exit, IsolateId, Origin, Result, TreeId};
use dashmap::DashMap;
use offshoot_mailbox::{Parker, Sleep};
use offshoot_sys::event::EventFd;
use offshoot_sys::original::Original;
use offshoot_sys::signal::{self, Signals};
use offshoot_sys::surroundings::OfThread;
use offshoot_sys::{clock, fork, fsx, futex, poll, process, say};
use offshoot_wire::frame::{self, Entry};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::env::VarError;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// What holds for the whole tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) isolation: Isolation,
    pub(crate) bounds: Bounds,
    pub(crate) messages: u32,
    pub(crate) calls: u32,
    pub(crate) stack: Option<usize>,
    pub(crate) lean: bool,
    pub(crate) reserve: Reserves,
    /// For how long whoever runs out of work looks for more before it sleeps.
    pub(crate) spin: Duration,
    pub(crate) frame_max: usize,
    pub(crate) descendants: Descendants,
    /// Process isolates have addresses only where they were granted.
    pub(crate) confined: bool,
    /// How long an isolate may keep from its loop unnoticed.
    pub(crate) notice_blocked: Option<Duration>,
    /// The bytes of the ring of a link each way; 0 for none, `None` for one when there is bulk.
    pub(crate) ring: Option<usize>,
    pub(crate) on_start: Option<Entry>,
}

/// How many are kept ready.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Reserves {
    /// Threads, in each process of the tree.
    pub(crate) threads: u32,
    /// Children of the forkserver, for the whole tree.
    pub(crate) processes: u32,
}

/// What a new process is told of it, and of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChildSettings {
    pub(crate) settings: Settings,
    pub(crate) blocking: bool,
    pub(crate) main: Option<Entry>,
    pub(crate) bounds: Bounds,
    pub(crate) sigint: Sigint,
}

/// What asks a whole program to end: from the terminal, from a supervisor, from a lost terminal.
pub(crate) const SIGNALS: [i32; 3] = [signal::SIGINT, signal::SIGTERM, signal::SIGHUP];

/// How long processes may take to say what they do, where a signal asks.
const DUMPED: Duration = Duration::from_secs(1);

/// Into how many parts the table of isolates is divided, each with a lock of its own.
const SHARDS: usize = 16;

/// Where in the tree this process is.
enum Place {
    Root,
    /// Forked; with its connection to the forkserver, until the warden takes it.
    Child(Mutex<Option<OwnedFd>>),
}

pub(crate) struct Runtime {
    /// How the thread is scheduled that has made it, as all helpers are: the caller of `run`, or the first of a process.
    pub(crate) caller: OfThread,
    pub(crate) tree: TreeId,
    /// The process that it runs in. A copy by `fork` touches nothing.
    pub(crate) original: Original,
    pub(crate) settings: Settings,
    pub(crate) pool: Pool,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) spin: Spin,
    /// Part of the ids that are given out here.
    process_key: u32,
    next_slot: AtomicU32,
    place: Place,
    pub(crate) isolates: DashMap<IsolateId, Weak<Shared>>,
    /// By which portals come back from elsewhere.
    keys: Arc<Keys>,
    porter: Mutex<Option<Arc<Porter>>>,
    warden: Mutex<Option<Arc<Warden>>>,
    /// The newest last.
    tree_dirs: Mutex<Vec<Arc<TreeDir>>>,
    pub(crate) binder: crate::binder::Binder,
    /// What timers go by, if a test has given another clock than the machine's.
    pub(crate) clock: OnceLock<Arc<crate::testing::clock::Inner>>,
    /// The link to our owner, of a process isolate.
    pub(crate) uplink: OnceLock<Weak<Link>>,
    pub(crate) noticed: Noticed,
    watcher: Mutex<Option<Watcher>>,
    abandoned: AtomicUsize,
    /// The tree has ended; an abandoned thread that comes back must not start anything again.
    over: AtomicBool,
}

/// Every tree of this process, for reports alone.
static ALL: Mutex<Vec<Weak<Runtime>>> = Mutex::new(Vec::new());

/// One line per isolate of every tree of this process, for a watchdog that stands outside of them:
/// what each is waiting for, or running since when. Not part of the interface.
#[cfg(feature = "fault-points")]
#[doc(hidden)]
pub fn dump_all() -> Vec<String> {
    let mut all = ALL.lock();
    all.retain(|runtime| runtime.strong_count() > 0);
    let runtimes: Vec<Arc<Runtime>> = all.iter().filter_map(Weak::upgrade).collect();
    drop(all);
    runtimes.iter().flat_map(|runtime| runtime.dump()).collect()
}

/// An isolate of this process, or one that is a process and belongs to one of this process.
pub(crate) struct Inhabitant {
    pub(crate) tree: TreeId,
    pub(crate) id: IsolateId,
    /// Its thread, or its process.
    pub(crate) runs: Runs,
    /// Who it is, and where it was spawned.
    pub(crate) who: String,
    /// It was given up, and its thread runs on.
    pub(crate) abandoned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runs {
    Thread(i32),
    Process(i32),
}

/// All isolates that there are, of all trees, as far as this process knows.
pub(crate) fn inhabitants() -> Vec<Inhabitant> {
    let trees: Vec<Arc<Runtime>> = ALL.lock().iter().filter_map(Weak::upgrade).collect();
    let mut found = Vec::new();
    for tree in trees {
        let isolates: Vec<Arc<Shared>> = tree
            .isolates
            .iter()
            .filter_map(|entry| entry.value().upgrade())
            .collect();
        for isolate in isolates {
            let abandoned = isolate.is_cut_off();
            let gone = isolate.status.gone.load(Ordering::Acquire);
            if let Some(tid) = isolate.tid().filter(|_| abandoned || !gone) {
                found.push(Inhabitant {
                    tree: tree.tree,
                    id: isolate.life.identity().id,
                    runs: Runs::Thread(tid),
                    who: isolate.life.describe(),
                    abandoned,
                });
            }
            let processes = isolate.family.lock().processes();
            found.extend(processes.into_iter().map(|(id, pid, who)| Inhabitant {
                tree: tree.tree,
                id,
                runs: Runs::Process(pid),
                who,
                abandoned: false,
            }));
        }
    }
    found
}

fn random() -> Result<u64> {
    // The upper half is as good as the lower.
    Ok(u64::try_from(fsx::random()? >> 64).unwrap_or(0))
}

impl Runtime {
    /// Settings for a tree: its default isolation, its bounds, its limits.
    #[allow(clippy::new_ret_no_self)] // As of `Builder::default`, but found where one looks for it.
    fn new(tree: TreeId, settings: Settings, place: Place) -> Result<Arc<Runtime>> {
        panics::install();
        let threads = usize::try_from(settings.reserve.threads).unwrap_or(usize::MAX);
        let runtime = Arc::new(Runtime {
            tree,
            original: Original::here(),
            reserve: Arc::new(Reserve::new(threads, settings.stack, settings.lean)),
            spin: Spin::new(settings.spin, matches!(place, Place::Child(_))),
            settings,
            pool: Pool::default(),
            caller: OfThread::now(),
            process_key: u32::try_from(random()? >> 32).unwrap_or(0),
            next_slot: AtomicU32::new(0),
            place,
            // A number of shards of our own: the default reads the size of the machine from /proc,
            // which is most of what a new process would do before its first answer.
            isolates: DashMap::with_shard_amount(SHARDS),
            keys: Arc::default(),
            porter: Mutex::new(None),
            warden: Mutex::new(None),
            tree_dirs: Mutex::default(),
            binder: crate::binder::Binder::default(),
            clock: OnceLock::new(),
            uplink: OnceLock::new(),
            noticed: Noticed::default(),
            watcher: Mutex::new(None),
            abandoned: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let mut all = ALL.lock();
        all.retain(|runtime| runtime.strong_count() > 0);
        all.push(Arc::downgrade(&runtime));
        drop(all);
        Ok(runtime)
    }

    /// The runtime of a forked process.
    pub(crate) fn of_child(
        tree: TreeId,
        settings: &ChildSettings,
        control: OwnedFd,
    ) -> Result<Arc<Runtime>> {
        let settings = settings.settings.clone();
        Runtime::new(tree, settings, Place::Child(Mutex::new(Some(control))))
    }

    /// The runtime of a process that nobody wants yet, to go through what one does.
    pub(crate) fn rehearsed(settings: &ChildSettings) -> Result<Arc<Runtime>> {
        let place = Place::Child(Mutex::new(None));
        Runtime::new(TreeId(0), settings.settings.clone(), place)
    }

    /// A runtime without a tree, for tests that drive an isolate by hand.
    #[cfg(test)]
    pub(crate) fn bare() -> Result<Arc<Runtime>> {
        Runtime::new(TreeId(random()?), Builder::new().settings()?, Place::Root)
    }

    pub(crate) fn is_root(&self) -> bool {
        matches!(self.place, Place::Root)
    }

    pub(crate) fn next_id(&self) -> IsolateId {
        let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
        IsolateId {
            process: self.process_key,
            slot,
            generation: 0,
        }
    }

    pub(crate) fn register(&self, shared: &Arc<Shared>) {
        self.isolates
            .insert(shared.life.identity().id, Arc::downgrade(shared));
    }

    pub(crate) fn unregister(&self, shared: &Shared) {
        self.isolates.remove(&shared.life.identity().id);
    }

    /// By which portals come back from elsewhere.
    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The thread that reads the sockets of portals.
    pub(crate) fn porter(self: &Arc<Runtime>) -> Result<Arc<Porter>> {
        let mut slot = self.porter.lock();
        self.check_running()?;
        if let Some(porter) = &*slot {
            return Ok(porter.clone());
        }
        Ok(slot.insert(Porter::start(self)?).clone())
    }

    /// The porter, if there is one.
    pub(crate) fn existing_porter(&self) -> Option<Arc<Porter>> {
        self.porter.lock().clone()
    }

    /// One line per isolate of this process.
    pub(crate) fn dump(&self) -> Vec<String> {
        // Collected first: describing an isolate takes other locks, and never under a map's.
        let isolates: Vec<Arc<Shared>> = self
            .isolates
            .iter()
            .filter_map(|entry| entry.value().upgrade())
            .collect();
        let mut lines: Vec<String> = isolates.iter().map(|shared| shared.dump()).collect();
        lines.sort();
        let warden = self.warden.lock().clone();
        match warden.map_or(0, |warden| warden.waiting()) {
            0 => {}
            n => lines.push(format!("processes in reserve that wait for a spawn: {n}")),
        }
        lines
    }

    /// The turns that the isolates of this process have had, if all of them have nothing to do but to wait; and whether something may come from
    /// outside of all of them.
    pub(crate) fn rest(&self) -> Option<(Vec<u64>, bool)> {
        let isolates: Vec<Arc<Shared>> = self
            .isolates
            .iter()
            .filter_map(|entry| entry.value().upgrade())
            .collect();
        // The root has not begun, or somebody else's work is under way.
        if isolates.is_empty() || self.pool.is_busy() {
            return None;
        }
        let mut turns = Vec::new();
        let mut outside = self.warden.lock().is_some();
        for isolate in isolates {
            // One that has ended is seen in its owner's family until it is collected; an abandoned one does nothing any more.
            if isolate.is_cut_off() || isolate.status.gone.load(Ordering::Acquire) {
                continue;
            }
            turns.push(isolate.at_rest()?);
            outside |= isolate.poll_waker.get().is_some();
            if !isolate.family.lock().is_at_rest() {
                return None;
            }
        }
        Some((turns, outside))
    }

    /// Tells an owner what is noticed here.
    pub(crate) fn report_to(self: &Arc<Runtime>, link: &Arc<Link>) {
        let _ = self.uplink.set(Arc::downgrade(link));
        self.begin_watch();
    }

    /// Looks for isolates that block, if that was asked for.
    fn begin_watch(self: &Arc<Runtime>) {
        if let Some(bound) = self.settings.notice_blocked {
            match Watcher::start(self, bound) {
                Ok(watcher) => *self.watcher.lock() = Some(watcher),
                Err(error) => crate::log::warn!(%error, "nobody looks for isolates that block"),
            }
        }
    }

    pub(crate) fn count_abandoned(&self) {
        self.abandoned.fetch_add(1, Ordering::Relaxed);
    }

    fn check_running(&self) -> Result<()> {
        match self.over.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Misuse,
                "the tree of this isolate has ended",
            )),
        }
    }

    /// The warden, with a forkserver behind it.
    pub(crate) fn warden(self: &Arc<Runtime>) -> Result<Arc<Warden>> {
        let warden = self.started_warden()?;
        warden.ensure_any_server()?;
        Ok(warden)
    }

    /// The warden, and the number of a forkserver whose processes may do what the calling thread may.
    pub(crate) fn warden_of_thread(self: &Arc<Runtime>) -> Result<(Arc<Warden>, u32)> {
        let warden = self.started_warden()?;
        let server = warden.ensure_server()?;
        Ok((warden, server))
    }

    fn started_warden(self: &Arc<Runtime>) -> Result<Arc<Warden>> {
        {
            let mut slot = self.warden.lock();
            self.check_running()?;
            match &*slot {
                Some(warden) => Ok(warden.clone()),
                None => {
                    let control = match &self.place {
                        Place::Root => None,
                        Place::Child(control) => control.lock().take(),
                    };
                    let warden = Warden::start(self, control)?;
                    *slot = Some(warden.clone());
                    Ok(warden)
                }
            }
        }
    }

    /// The tree's own directory, made on first use by the root. Another one, once this process may not
    /// write to it any more. What dead trees have left is swept before.
    pub(crate) fn tree_dir(&self) -> Result<Arc<TreeDir>> {
        self.tree_dir_beside(&[])
    }

    /// As [`tree_dir`](Self::tree_dir), but none of these.
    pub(crate) fn tree_dir_beside(&self, in_use: &[Arc<TreeDir>]) -> Result<Arc<TreeDir>> {
        let mut dirs = self.tree_dirs.lock();
        self.check_running()?;
        let is_used = |dir: &TreeDir| in_use.iter().any(|used| std::ptr::eq(&**used, dir));
        let usable = |dir: &&Arc<TreeDir>| !is_used(dir) && dir.is_usable();
        if let Some(dir) = dirs.iter().rev().find(usable) {
            return Ok(dir.clone());
        }
        offshoot_sys::process::check_proc()?;
        match sweep_dead_trees(None) {
            Ok(report) => report.swept.tell("of dead trees"),
            Err(error) => crate::log::warn!(%error, "cannot sweep dead trees"),
        }
        crate::fault::check("tree", "")
            .map_err(|error| Error::io(format!("cannot make the tree's directory: {error}; set XDG_RUNTIME_DIR (or TMPDIR) to a directory with room that is yours alone"), error))?;
        // The first has the tree's own number.
        let key = match dirs.is_empty() {
            true => ProcessKey::new(self.tree.0),
            false => ProcessKey::random()?,
        };
        let dir = TreeDir::create_named(key, None)
            .map_err(|error| Error::new(ErrorKind::Io(None), error.to_string()))?;
        let dir = Arc::new(dir);
        dirs.push(dir.clone());
        Ok(dir)
    }

    /// A forkserver removes it, which alone has used it.
    pub(crate) fn forget_tree_dir(&self, dir: &Arc<TreeDir>) {
        self.tree_dirs
            .lock()
            .retain(|known| !Arc::ptr_eq(known, dir));
    }

    /// The processes, but this one, of which there is anything to sweep in a directory.
    pub(crate) fn bound_by_others(&self, dir: &TreeDir) -> Vec<ProcessKey> {
        let own = self.binder.key();
        let mut keys = dir.processes();
        keys.retain(|key| Some(*key) != own);
        keys
    }

    /// Sweeps what these processes have left. They are dead.
    pub(crate) fn sweep(&self, dir: &TreeDir, keys: &[ProcessKey]) {
        for key in keys {
            dir.sweep(*key).tell("after the forkserver");
        }
    }

    /// Kills what the processes of a forkserver had started, which is dead itself.
    pub(crate) fn end_strays(&self, dir: &TreeDir, server: u32) {
        dir.end_cgroups(Some(server))
            .tell("in the control groups of a forkserver");
        crate::reap::kill_strays(dir.path(), server);
    }

    /// Ends what the tree shares in this process. All its isolates have ended before.
    pub(crate) fn shut_down(&self) {
        self.over.store(true, Ordering::Release);
        let watcher = self.watcher.lock().take();
        drop(watcher);
        // First, while the warden still gets answers for those who wait in it.
        let left = self.pool.stop(self.settings.bounds.hard_kill);
        self.abandoned.fetch_add(left, Ordering::Relaxed);
        self.reserve.close();
        let porter = self.porter.lock().take();
        if let Some(porter) = porter {
            porter.stop();
        }
        let warden = self.warden.lock().take();
        if let Some(warden) = warden {
            warden.stop();
        }
        self.spin.close();
        self.binder.clear();
        let dirs = std::mem::take(&mut *self.tree_dirs.lock());
        // What this process may not write to any more, its forkserver has removed.
        for dir in dirs.into_iter().filter(|dir| dir.is_usable()) {
            dir.remove().tell("at the end of the tree");
        }
    }
}

/// The settings of a tree, and how to run it.
///
/// # Examples
/// ```
/// use offshoot::prelude::*;
/// use std::time::Duration;
///
/// let name = offshoot::Builder::new()
///     .grace(Duration::from_millis(500))
///     .run(async || Ok(offshoot::current().name()))?;
/// assert_eq!(name, "root");
/// # Ok::<(), offshoot::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it runs a tree"]
pub struct Builder {
    isolation: Option<Isolation>,
    bounds: Bounds,
    messages: u32,
    calls: u32,
    stack: Option<usize>,
    lean: bool,
    reserve_threads: Option<u32>,
    reserve_processes: Option<u32>,
    spin: Duration,
    frame_max: usize,
    descendants: Descendants,
    confined: bool,
    notice_blocked: Option<Duration>,
    dump_on_signal: bool,
    #[cfg(feature = "fault-points")]
    faults: Option<String>,
    ring: Option<usize>,
    on_start: Option<(fn(), &'static crate::descriptor::Descriptor)>,
    signals: bool,
    clock: Option<crate::testing::Clock>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// The defaults: threads (or what `OFFSHOOT_ISOLATION` says), 1.6 s of grace, 3 s until force,
    /// 10 s for a start, 1,024 messages and calls per sender and receiver, frames of 16 MiB.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use offshoot::Builder;
    ///
    /// let tree = Builder::new().mailbox(64).grace(Duration::from_millis(500));
    /// assert_eq!(tree.run(async || Ok(7))?, 7);
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn new() -> Builder {
        Builder {
            isolation: None,
            bounds: Bounds::default(),
            messages: 1_024,
            calls: 1_024,
            stack: None,
            lean: false,
            reserve_threads: None,
            reserve_processes: None,
            spin: spin::WINDOW,
            frame_max: frame::BODY_MAX,
            descendants: Descendants::default(),
            confined: false,
            notice_blocked: None,
            dump_on_signal: false,
            #[cfg(feature = "fault-points")]
            faults: None,
            ring: None,
            on_start: None,
            signals: false,
            clock: None,
        }
    }

    /// Sets what isolates are that do not say it. Goes before `OFFSHOOT_ISOLATION`.
    ///
    /// # Examples
    /// ```
    /// use offshoot::{Builder, Isolation};
    ///
    /// // Processes where a specification does not say otherwise.
    /// let tree = Builder::new().isolation(Isolation::Process);
    /// # let _ = tree;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn isolation(mut self, isolation: Isolation) -> Builder {
        self.isolation = Some(isolation);
        self
    }

    /// Sets the bounds of isolates that do not bring their own.
    pub fn bounds(mut self, bounds: Bounds) -> Builder {
        self.bounds = bounds;
        self
    }

    /// Sets the time from a cancellation until user futures are dropped.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use offshoot::Builder;
    ///
    /// let tree = Builder::new()
    ///     .grace(Duration::from_millis(200))
    ///     .hard_kill(Duration::from_secs(1));
    /// tree.run(async || Ok(()))?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn grace(mut self, grace: Duration) -> Builder {
        self.bounds.grace = grace;
        self
    }

    /// Sets the time from a cancellation until a process is killed and a thread abandoned.
    pub fn hard_kill(mut self, hard_kill: Duration) -> Builder {
        self.bounds.hard_kill = hard_kill;
        self
    }

    /// Sets the time that a start may take.
    pub fn start_within(mut self, start: Duration) -> Builder {
        self.bounds.start = start;
        self
    }

    /// Sets how many messages of one sender may wait for one receiver. At least 1.
    pub fn mailbox(mut self, messages: u32) -> Builder {
        self.messages = messages.max(1);
        self
    }

    /// Sets how many calls of one sender may run on one receiver. At least 1.
    pub fn calls_max(mut self, calls: u32) -> Builder {
        self.calls = calls.max(1);
        self
    }

    /// Sets the size of the stack of threads in bytes.
    pub fn stack_size(mut self, bytes: usize) -> Builder {
        self.stack = Some(bytes);
        self
    }

    /// Makes the threads of isolates without what `std` adds to its own: two memory mappings instead of
    /// four, so that a tree can have twice as many (30,000 with the default `vm.max_map_count`), and a
    /// fifth less time to start. Off by default.
    ///
    /// The price: an overflow of the stack ends the process by SIGSEGV without a word, the message of a
    /// panic calls the thread `<unnamed>` (its report names the isolate as ever), and a test harness
    /// does not capture what isolates print.
    pub fn lean_threads(mut self, on: bool) -> Builder {
        self.lean = on;
        self
    }

    /// Keeps `threads` threads started and waiting in each process of the tree, so that a spawn is
    /// a hand-over; 0 starts each isolate's thread when it is spawned. Goes before the environment
    /// variable `OFFSHOOT_RESERVE_THREADS`, and that before the default of 4.
    ///
    /// Each serves one isolate and then ends. A new one takes its place when the isolate has nothing
    /// to do for the first time. A burst that uses up the reserve gets new threads, as without one.
    /// What was set here or in the environment is made ready when the tree starts; by default
    /// nothing is before the first spawn.
    ///
    /// Isolates with a [stack size](crate::Isolate::stack_size) of their own do not come from it.
    /// `std` calls its threads "isolate"; an isolate's own name is that of [`current`](crate::current).
    pub fn reserve_threads(mut self, threads: u32) -> Builder {
        self.reserve_threads = Some(threads);
        self
    }

    /// Keeps `processes` processes forked and waiting for the whole tree, so that the spawn of a
    /// process isolate is a message to one that is there; 0 forks each when it is spawned. Goes
    /// before the environment variable `OFFSHOOT_RESERVE_PROCESSES`, and that before the default of 2.
    ///
    /// Each serves one isolate. One that dies while it waits is replaced. A burst that uses up the
    /// reserve is forked, as without one. What was set here or in the environment is made ready
    /// when the tree starts; by default nothing is before the first spawn of a process.
    ///
    /// They wait for the root, in which each takes two descriptors. As many again wait for all other
    /// processes together, once one of these has spawned a process.
    pub fn reserve_processes(mut self, processes: u32) -> Builder {
        self.reserve_processes = Some(processes);
        self
    }

    /// Sets for how long an isolate that has nothing to do looks for work before it sleeps: at most
    /// 1 ms, by default 20 µs; zero for not at all.
    ///
    /// It is what makes an answer of a thread that is awake come after a microsecond instead of after a
    /// wake-up, and costs others next to nothing: fewer threads spin than there are cores, no more than
    /// 0.5 % of the time is spun in vain, and whoever loses its core while it spins stays away from spinning
    /// for up to half a second. Of process isolates those do whose owner gave them a [ring](Builder::ring): the cores are counted once for
    /// the whole tree, the time for each process.
    pub fn spin(mut self, window: Duration) -> Builder {
        self.spin = window;
        self
    }

    /// Sets the longest message between processes in bytes; from 4 KiB to 16 MiB, the default.
    pub fn frame_max(mut self, bytes: usize) -> Builder {
        self.frame_max = bytes.clamp(4 << 10, frame::BODY_MAX);
        self
    }

    /// Sets how surely what process isolates start themselves is to end with them. By default
    /// [`Descendants::Subreaper`], which needs nothing and costs nothing.
    ///
    /// [`Descendants::Cgroup`] has each process made in a control group of its own, where this process may make groups (version 2 is
    /// mounted, and its own group is root's or delegated to it; Linux 5.14), and what was asked for as default where it may not:
    /// [`Portal::descendants`](crate::Portal::descendants) tells which it is. It costs each process that is forked the making of a group, and
    /// a move into it, for which the kernel may wait for milliseconds; one from the reserve has that behind it.
    pub fn descendants(mut self, wanted: Descendants) -> Builder {
        self.descendants = wanted;
        self
    }

    /// Lets process isolates have addresses only where [`Isolate::grant`](crate::Isolate::grant) says; off by default.
    pub fn confined(mut self, on: bool) -> Builder {
        self.confined = on;
        self
    }

    /// Has isolates noticed, in every process of the tree, that block: whose code has not come back to their loop for so long. It is
    /// a warning of `tracing` in each process on the way to the root, and [`Handle::noticed`]. Off by default.
    ///
    /// Noticed are also processes that were stopped by a signal or a debugger; not [blocking](crate::Isolate::blocking) isolates, which may. A
    /// thread per process looks four times in that time (at least once a second) at what each isolate notes anyhow: no message costs more for it. What
    /// is noticed a second time is another block.
    pub fn notice_blocked(mut self, longer_than: Duration) -> Builder {
        self.notice_blocked = Some(longer_than);
        self
    }

    /// Has SIGUSR1, sent to this process, print on its standard error what each isolate of the tree is doing, as
    /// [`Handle::dump_tree`] says; off by default. For one tree of a process at a time. Seen while somebody waits for the tree's end.
    pub fn dump_on_sigusr1(mut self, on: bool) -> Builder {
        self.dump_on_signal = on;
        self
    }

    /// Has faults happen in this tree, in all its processes; see [`testing::Fault`](crate::testing::Fault). They hold for this
    /// process until another tree is started in it, together with those of the environment variable `OFFSHOOT_FAULT`.
    #[cfg(feature = "fault-points")]
    pub fn faults(mut self, faults: impl IntoIterator<Item = crate::testing::Fault>) -> Builder {
        let faults: Vec<String> = faults.into_iter().map(|fault| fault.text()).collect();
        self.faults = Some(faults.join(","));
        self
    }

    /// Gives the link of each process isolate that does not say it a ring of so many bytes each way; see
    /// [`Isolate::ring`](crate::Isolate::ring). Zero for none. Goes before the environment variable `OFFSHOOT_RING`, and that before the
    /// default: a link gets a ring of 1 MiB by itself when 1 MiB has gone over it, either way, in messages of 64 KiB or more.
    pub fn ring(mut self, bytes: usize) -> Builder {
        self.ring = Some(bytes);
        self
    }

    /// Has `hook` run in every process of the tree, the root's included, before its first isolate.
    ///
    /// The program's `main` never runs in a process isolate: this is the place for a tracing
    /// subscriber, a panic hook, or whatever else `main` sets up for the whole process.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Builder;
    ///
    /// let tree = Builder::new().on_process_start(|| {
    ///     // What `main` would set up: it does not run in a process isolate.
    ///     std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    /// });
    /// # let _ = tree;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn on_process_start<F: Fn() + Copy + Send + 'static>(mut self, hook: F) -> Builder {
        captures_nothing!(F);
        let _ = hook;
        let descriptor = HookEntry::<F>::DESCRIPTOR;
        if let crate::descriptor::Run::Hook(run) = descriptor.run() {
            self.on_start = Some((run, descriptor));
        }
        self
    }

    /// Lets SIGINT, SIGTERM and SIGHUP cancel the tree; a second one takes it down by force at
    /// once. Off by default; on in [`main`]. One tree of a process at a time can have it.
    ///
    /// Process isolates lead process groups of their own, so that the terminal's Ctrl-C reaches the
    /// root alone, and its Ctrl-Z stops the root and the forkserver but no isolate.
    pub fn signals(mut self, on: bool) -> Builder {
        self.signals = on;
        self
    }

    /// Has the timers of thread isolates go by a test's clock; see [`Clock`](crate::testing::Clock). For tests.
    pub fn clock(mut self, clock: &crate::testing::Clock) -> Builder {
        self.clock = Some(clock.clone());
        self
    }

    /// Runs `root` as the first isolate of a new tree, on a thread of its own, and waits until the
    /// whole tree has ended.
    ///
    /// # Blocking
    /// Until then. Works on any thread, any number of times, also at once.
    ///
    /// # Errors
    /// What `root` returns; its panic or its cancellation; what stopped the start of the tree.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Builder;
    ///
    /// let answer = Builder::new().run(async || Ok(42))?;
    /// assert_eq!(answer, 42);
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn run<F, T>(self, root: F) -> Result<T>
    where
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.run_tree(root).result
    }

    /// As [`run`](Builder::run), but returns while the tree runs; [`Running::wait`] waits for it.
    ///
    /// # Blocking
    /// Never.
    ///
    /// # Errors
    /// What stopped the start of the tree.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Builder;
    ///
    /// let running = Builder::new().start(async || {
    ///     offshoot::cancelled().await;
    ///     Ok(())
    /// })?;
    /// running.handle().cancel();
    /// assert!(running.wait().is_ok());
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn start<F, T>(self, root: F) -> Result<Running<T>>
    where
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Ok(Running {
            tree: Some(self.start_tree(root)?),
        })
    }

    pub(crate) fn settings(&self) -> Result<Settings> {
        let isolation = match (self.isolation, std::env::var("OFFSHOOT_ISOLATION")) {
            (Some(isolation), _) => isolation,
            (None, Ok(text)) => text.parse().map_err(|error: Error| {
                Error::new(
                    ErrorKind::Misuse,
                    format!("the environment variable OFFSHOOT_ISOLATION: {error}"),
                )
            })?,
            (None, Err(_)) => Isolation::Thread,
        };
        let on_start = match self.on_start {
            None => None,
            Some((_, descriptor)) => Some(descriptor.entry()?),
        };
        Ok(Settings {
            isolation,
            bounds: self.bounds,
            messages: self.messages,
            calls: self.calls,
            stack: self.stack,
            lean: self.lean,
            reserve: Reserves {
                threads: number(self.reserve_threads, RESERVE_THREADS)?.unwrap_or(4),
                processes: number(self.reserve_processes, RESERVE_PROCESSES)?.unwrap_or(2),
            },
            spin: self.spin,
            frame_max: self.frame_max,
            descendants: self.descendants,
            confined: self.confined,
            notice_blocked: self.notice_blocked,
            ring: number(self.ring, RING)?,
            on_start,
        })
    }

    fn run_tree<F, T>(self, root: F) -> Ran<T>
    where
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let started = self.start_tree(root);
        match started {
            Err(error) => Ran {
                result: Err(error),
                signal: None,
                abandoned: 0,
            },
            Ok(tree) => tree.wait(),
        }
    }

    fn start_tree<F, T>(&self, root: F) -> Result<Tree<T>>
    where
        F: AsyncFnOnce() -> Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let settings = self.settings()?;
        // Before anything is opened that could take their numbers.
        process::open_standard_fds();
        #[cfg(feature = "fault-points")]
        crate::fault::set(self.faults.clone().unwrap_or_default());
        let mut handled = Vec::new();
        if self.signals {
            handled.extend(SIGNALS);
        }
        if self.dump_on_signal {
            handled.push(signal::SIGUSR1);
        }
        let signals = match handled[..] {
            [] => None,
            _ => Some(Signals::install(&handled)?),
        };
        #[cfg(panic = "abort")]
        crate::log::warn!(
            "built with `panic = \"abort\"`: a panic in a thread isolate ends the whole program; use process isolates, or unwind"
        );
        // The last that stands between a copy of this program and one that starts copies of its own.
        offshoot_sys::premain::end_copy();
        let runtime = Runtime::new(TreeId(random()?), settings, Place::Root)?;
        let clock = self.clock.as_ref();
        let clock = clock
            .map(|clock| crate::testing::clock::Attached::new(clock, &runtime))
            .transpose()?;
        if let Some((hook, _)) = self.on_start {
            hook();
        }
        let pid = process::id();
        let origin = |path: &str| Origin {
            path: path.to_owned(),
            id: runtime.next_id(),
            pid,
        };
        let root_life = Arc::new(Life::new(origin("root")));
        let outside_life = Arc::new(Life::new(origin("")));
        let bounds = runtime.settings.bounds;
        let outside = Shared::new(outside_life, runtime.clone(), None, Arc::default(), bounds);
        if signals.is_some() {
            // To be woken while waiting for signals, too.
            let set = outside.poll_waker.set(PollWaker::Event(EventFd::new()?));
            debug_assert!(set.is_ok(), "nobody else waits here");
        }
        let status = Arc::new(Status::default());
        let mut made = None;
        let key = outside.family.lock().add(&outside, |upward| {
            let shared = Shared::new(
                root_life.clone(),
                runtime.clone(),
                Some(upward.clone()),
                status.clone(),
                bounds,
            );
            let settings = &runtime.settings;
            let limits = (settings.messages, settings.calls);
            let route = Route::Thread(shared.clone());
            let target = Target::new(root_life, runtime.clone(), route, limits, false);
            made = Some(shared);
            Member::new(
                crate::family::ADOPTED,
                target,
                status,
                upward.clone(),
                settings.bounds,
                Body::Thread(None),
            )
        });
        let (Some(key), Some(shared)) = (key, made) else {
            unreachable!("a new family takes members")
        };
        let slot = Arc::new(Mutex::new(None));
        let into = slot.clone();
        let work = Work::Main(Box::new(move |local| begin_root(local, root, into)));
        let joiner = thread::start(shared, work, Manner::Loop, None).map_err(|(error, _)| error)?;
        self.fill_reserves(&runtime);
        runtime.begin_watch();
        if let Some(member) = outside.family.lock().member(key) {
            member.body = Body::Thread(Some(joiner));
        }
        Ok(Tree {
            runtime,
            outside,
            key,
            signals,
            slot,
            clock,
        })
    }

    /// Fills the reserves that somebody has asked for, off the caller's path.
    fn fill_reserves(&self, runtime: &Arc<Runtime>) {
        let asked_for = |built, variable| number(built, variable).ok().flatten();
        if asked_for(self.reserve_threads, RESERVE_THREADS).is_some() {
            runtime.reserve.want();
            runtime.reserve.refill();
        }
        if asked_for(self.reserve_processes, RESERVE_PROCESSES).is_some_and(|size| size > 0) {
            let this = runtime.clone();
            // The forkserver's start, which it waits for. If it fails, so does the first spawn, and says why.
            runtime.pool.try_submit(move || {
                if let Err(error) = this.warden_of_thread() {
                    crate::log::warn!(%error, "no process is kept in reserve");
                }
            });
        }
    }
}

const RESERVE_THREADS: &str = "OFFSHOOT_RESERVE_THREADS";
const RESERVE_PROCESSES: &str = "OFFSHOOT_RESERVE_PROCESSES";
const RING: &str = "OFFSHOOT_RING";

/// A number, if anybody has set it: the size of a reserve or of a ring.
fn number<N: std::str::FromStr>(built: Option<N>, variable: &str) -> Result<Option<N>> {
    match (built, std::env::var(variable)) {
        (Some(size), _) => Ok(Some(size)),
        (None, Err(VarError::NotPresent)) => Ok(None),
        (None, Ok(text)) if text.trim().parse::<N>().is_ok() => Ok(text.trim().parse().ok()),
        (None, text) => {
            let text = text.unwrap_or_else(|error| error.to_string());
            let message = format!(
                "the environment variable {variable} is `{text}` instead of a number of 0 or more"
            );
            Err(Error::new(ErrorKind::Misuse, message))
        }
    }
}

/// Where the root's result lies when it has returned.
type RootSlot<T> = Arc<Mutex<Option<Result<T>>>>;

fn begin_root<F, T>(local: &std::rc::Rc<Local>, root: F, slot: RootSlot<T>)
where
    F: AsyncFnOnce() -> Result<T> + 'static,
    T: Send + 'static,
{
    let this = local.clone();
    local.spawn(async move {
        let scope = this.root_scope.clone();
        let outcome = {
            let mut future = pin!(root());
            poll_fn(|cx| poll_caught(future.as_mut(), &scope, cx)).await
        };
        match outcome {
            Outcome::Panicked(panic) => this.fail(Exit::Panicked(panic)),
            Outcome::Unwanted => {}
            Outcome::Done(result) => {
                let error = result.as_ref().err().cloned();
                *slot.lock() = Some(result);
                match error {
                    Some(error) if !(error.is_cancelled() && this.above().is_some()) => {
                        this.fail(Exit::Failed(error))
                    }
                    _ => this.close(),
                }
            }
        }
    });
}

/// A tree that runs, as its caller waits for it.
struct Tree<T> {
    runtime: Arc<Runtime>,
    outside: Arc<Shared>,
    key: Key,
    signals: Option<Signals>,
    slot: RootSlot<T>,
    clock: Option<crate::testing::clock::Attached>,
}

/// A tree that was started by [`Builder::start`]. Dropping it cancels the tree and waits for its end.
#[must_use = "dropping it ends the tree"]
pub struct Running<T: Send + 'static> {
    /// Only taken by `wait` and by the drop.
    tree: Option<Tree<T>>,
}

impl<T: Send + 'static> Running<T> {
    /// A handle by which any thread can cancel the tree or look at it.
    ///
    /// # Panics
    /// Never.
    pub fn handle(&self) -> Handle {
        let tree = self
            .tree
            .as_ref()
            .expect("only `wait` takes it, which also takes this");
        Handle {
            outside: tree.outside.clone(),
            key: tree.key,
        }
    }

    /// Waits until the whole tree has ended. This also looks after the root's own bounds: a root
    /// that is cancelled and does not come down is taken down by force here.
    ///
    /// # Blocking
    /// Until then.
    ///
    /// # Errors
    /// As of [`Builder::run`]. Misuse, at once, on an isolate of this tree or in what it has handed to
    /// [`unblock`](crate::unblock): it would wait for itself. The tree then goes on, looked after by a
    /// thread of its own, and its result is lost.
    ///
    /// # Panics
    /// Never.
    ///
    /// # Examples
    /// ```
    /// use offshoot::Builder;
    ///
    /// let running = Builder::new().start(async || Ok(7))?;
    /// assert_eq!(running.wait()?, 7);
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn wait(mut self) -> Result<T> {
        let tree = self
            .tree
            .take()
            .expect("only `wait` takes it, which takes this");
        if tree.is_here() {
            let message = "`Running::wait` within its own tree would wait for ever: wait on the thread that has started it";
            tree.leave();
            return Err(Error::new(ErrorKind::Misuse, message));
        }
        tree.wait().result
    }
}

impl<T: Send + 'static> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(tree) = self.tree.take() {
            Handle {
                outside: tree.outside.clone(),
                key: tree.key,
            }
            .cancel();
            if tree.is_here() {
                // It cannot end before this returns.
                tree.leave();
                return;
            }
            // Nobody is left to hear how it ended, but for what the log says.
            if let Err(error) = tree.wait().result
                && !error.is_cancelled()
            {
                crate::log::warn!(%error, "a tree failed whose handle was dropped");
            }
        }
    }
}

impl<T: Send + 'static> std::fmt::Debug for Running<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// A handle to a tree, for code outside of it: a signal handler of the program's own, a watchdog.
#[derive(Clone)]
pub struct Handle {
    outside: Arc<Shared>,
    key: Key,
}

impl Handle {
    /// Cancels the tree. Never blocks; idempotent.
    pub fn cancel(&self) {
        self.outside.family.lock().cancel(
            self.key,
            &Cancel {
                by: Canceller::Runtime,
            },
            None,
        );
        self.outside.tell(Control::Look);
    }

    /// The tree.
    pub fn tree(&self) -> TreeId {
        self.outside.runtime.tree
    }

    /// One line per isolate of this process: what each is waiting for, or running since when.
    pub fn dump(&self) -> Vec<String> {
        self.outside.runtime.dump()
    }

    /// As [`dump`](Handle::dump), of every process of the tree. Each is asked over its control lane; one that does not answer in time, because its first
    /// isolate blocks or the process was stopped, has a line with what the system says of it.
    ///
    /// # Blocking
    /// Until all have answered, for at most so long.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    /// use offshoot::Builder;
    ///
    /// let running = Builder::new().start(async || {
    ///     offshoot::cancelled().await;
    ///     Ok(())
    /// })?;
    /// for line in running.handle().dump_tree(Duration::from_secs(1)) {
    ///     println!("{line}");
    /// }
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn dump_tree(&self, at_most: Duration) -> Vec<String> {
        self.outside
            .runtime
            .dump_tree(clock::now() + nanos(at_most))
    }

    /// The isolates of the tree that were noticed to block, the last 64, or as many as have 256 KiB of text together, oldest first; see [`Builder::notice_blocked`].
    pub fn noticed(&self) -> Vec<Blocked> {
        self.outside
            .runtime
            .noticed
            .lock()
            .iter()
            .cloned()
            .collect()
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Handle").field(&self.tree()).finish()
    }
}

/// A tree that has ended.
struct Ran<T> {
    result: Result<T>,
    /// The first signal that cancelled it.
    signal: Option<i32>,
    abandoned: usize,
}

impl<T> Tree<T> {
    /// Looks after the root as an isolate does after a child, without being one.
    fn wait(mut self) -> Ran<T> {
        let mut first_signal = None;
        // What had to be forced of those that were taken over from an abandoned root.
        let mut left = Vec::new();
        let mut collect = |key: Key| {
            if let Some(heir) = self.family(|family| family.collect(key)) {
                let heir = heir.join();
                left.extend(heir.left.iter().cloned());
                left.extend(heir.failure().filter(|_| heir.was_forced()));
            }
        };
        let mut departed = loop {
            for control in self.outside.control.take_all() {
                // A heir of an abandoned root is a member like the root.
                if let Control::Child(key) = control
                    && key != self.key
                {
                    collect(key);
                }
            }
            if let Some(signals) = &self.signals {
                for number in signals.drain() {
                    if number == signal::SIGUSR1 {
                        self.print_dump();
                        continue;
                    }
                    let cancel = Cancel {
                        by: Canceller::Signal(signal::name(number)),
                    };
                    self.family(|family| match first_signal {
                        None => family.cancel(self.key, &cancel, None),
                        Some(_) => family.cancel_now(self.key, &cancel, 0, 0),
                    });
                    first_signal.get_or_insert(number);
                }
            }
            let advanced = {
                let now = clock::now();
                let mut family = self.outside.family.lock();
                family.advance(&self.outside, now)
            };
            for key in advanced.settle().into_iter().filter(|key| *key != self.key) {
                collect(key);
            }
            // The root last: what it left must have ended before.
            let departed = self.family(|family| {
                if family.len() > 1 {
                    None
                } else {
                    family.collect(self.key)
                }
            });
            if let Some(departed) = departed {
                break departed.join();
            }
            self.sleep();
        };
        departed.left.append(&mut left);
        drop(self.clock.take());
        self.runtime.shut_down();
        let abandoned = self.runtime.abandoned.load(Ordering::Relaxed);
        let result = result_of(departed, self.slot.lock().take());
        Ran {
            result,
            signal: first_signal,
            abandoned,
        }
    }

    /// Prints what everybody does, by a thread of its own: it waits for answers, and this one has a tree to look after.
    fn print_dump(&self) {
        let runtime = self.runtime.clone();
        let printed = std::thread::Builder::new()
            .name("offshoot-dump".to_owned())
            .spawn(move || {
                let until = clock::now() + nanos(DUMPED);
                let lines = runtime.dump_tree(until).join("\n");
                say::report(&format!("offshoot: the tree {}:\n{lines}\n", runtime.tree));
            });
        if let Err(error) = printed {
            offshoot_sys::note!("cannot print what the tree does: {error}");
        }
    }

    /// Whether this thread is one of the tree: an isolate's, or one that works for an isolate.
    fn is_here(&self) -> bool {
        let own = |local: Rc<Local>| Arc::ptr_eq(&local.shared.runtime, &self.runtime);
        Local::try_current().is_some_and(own) || self.runtime.pool.is_here()
    }

    fn family<R>(&self, f: impl FnOnce(&mut Family) -> R) -> R {
        f(&mut self.outside.family.lock())
    }

    fn sleep(&self) {
        let due = self.family(|family| family.next_due());
        let timeout = due.map(|at| Duration::from_nanos(at.saturating_sub(clock::now())));
        let parker = &self.outside.parker;
        match (&self.signals, self.outside.poll_waker.get()) {
            (Some(signals), Some(PollWaker::Event(event))) => {
                if parker.prepare(Sleep::Poll) {
                    if let Err(error) = poll::wait(&[signals.fd(), event.as_fd()], timeout) {
                        crate::log::error!(%error, "cannot wait for signals");
                    }
                    parker.finish();
                }
                event.drain();
            }
            _ => {
                if parker.prepare(Sleep::Futex) {
                    futex::wait(parker.word(), Parker::ASLEEP, timeout);
                    parker.finish();
                }
            }
        }
    }
}

impl<T: Send + 'static> Tree<T> {
    /// Has it looked after by a thread of its own, since the one that should wait for it cannot.
    fn leave(self) {
        // Kept here too, so that it is not dropped with a thread that cannot be started.
        let kept = Arc::new(Mutex::new(Some(self)));
        let given = kept.clone();
        let started = std::thread::Builder::new()
            .name("offshoot-wait".to_owned())
            .spawn(move || {
                let tree = given.lock().take();
                if let Some(Err(error)) = tree.map(|tree| tree.wait().result)
                    && !error.is_cancelled()
                {
                    crate::log::warn!(%error, "a tree failed whose handle was given up within it");
                }
            });
        if let Err(error) = started {
            crate::log::error!(%error, "no thread can be had to look after a tree whose handle was given up within it");
            std::mem::forget(kept);
        }
    }
}

fn result_of<T>(departed: Departed, returned: Option<Result<T>>) -> Result<T> {
    let Departed {
        exit, origin, left, ..
    } = departed;
    let result = match (exit, returned) {
        (exit @ (Exit::Panicked(_) | Exit::Abandoned { .. } | Exit::Lost { .. }), _) => {
            Err(ended(exit, &origin))
        }
        (_, Some(result)) => result,
        (Exit::Cancelled(cancel), None) => Err(cancelled_error(cancel)),
        (exit, None) => Err(ended(exit, &origin)),
    };
    // What had to be forced is in the root's own error already, unless that error got lost.
    let known: Vec<_> = match &result {
        Ok(_) => Vec::new(),
        Err(error) => error
            .failures()
            .iter()
            .filter_map(|error| error.id())
            .collect(),
    };
    let mut left: Vec<Error> = left
        .into_iter()
        .filter(|error| error.id().is_none_or(|id| !known.contains(&id)))
        .collect();
    match result {
        Err(error) => Err(Error::several(error, left)),
        Ok(value) if left.is_empty() => Ok(value),
        Ok(_) => {
            let first = left.remove(0);
            Err(Error::several(first, left))
        }
    }
}

/// Runs `root` as the first isolate of a new tree with the default settings; see [`Builder::run`].
///
/// # Errors
/// As of [`Builder::run`].
pub fn run<F, T>(root: F) -> Result<T>
where
    F: AsyncFnOnce() -> Result<T> + Send + 'static,
    T: Send + 'static,
{
    Builder::new().run(root)
}

/// A program that is a tree: runs `root`, lets SIGINT, SIGTERM and SIGHUP cancel it, prints its
/// error.
///
/// The exit code is 0 for `Ok`, 1 for an error (its report goes to the standard error), and
/// 128 + n if the signal n cancelled the tree. If a thread had to be abandoned, the process ends
/// here at once, since it cannot be waited for.
pub fn main<F>(root: F) -> ExitCode
where
    F: AsyncFnOnce() -> Result<()> + Send + 'static,
{
    Builder::new().main(root)
}

impl Builder {
    /// As [`main`], with these settings.
    pub fn main<F>(self, root: F) -> ExitCode
    where
        F: AsyncFnOnce() -> Result<()> + Send + 'static,
    {
        let ran = self.signals(true).run_tree(root);
        let code = match (&ran.result, ran.signal) {
            (Ok(()), None) => 0,
            (result, Some(number)) => {
                if let Err(error) = result
                    && !error.is_cancelled()
                {
                    say::report(&format!("error: {}", error.report()));
                }
                128 + number
            }
            (Err(error), None) => {
                say::report(&format!("error: {}", error.report()));
                1
            }
        };
        if ran.abandoned > 0 {
            fork::exit_now(code);
        }
        ExitCode::from(u8::try_from(code).unwrap_or(1))
    }
}
