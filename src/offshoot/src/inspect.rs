//! What a tree is doing: the dump of all its processes, and isolates that block, which are noticed without being asked.
//!
//! Both only look: at what each isolate says of itself anyhow (`Shared::dump`), and at `/proc`. Neither costs a message anything.

use crate::family::Body;
use crate::isolate::shared::Shared;
use crate::process::Process;
use crate::process::link::Link;
use crate::process::warden::wait_for;
use crate::runtime::Runtime;
use crate::{IsolateId, Origin};
use offshoot_mailbox::oneshot;
use offshoot_sys::clock;
use offshoot_wire::frame::Kind;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many notices are kept.
const NOTICES: usize = 64;
/// How long their texts may be together, in bytes: those of one process are kept by each above it.
const NOTICES_BYTES: usize = 256 << 10;
/// How long each text of a notice may be. What is longer is cut: a process says what it likes.
const TEXT_MAX: usize = 16 << 10;

/// How often is looked: four times in the bound, but not more often than this, nor more seldom than the other.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// An isolate that did not come back to its loop for longer than [`Builder::notice_blocked`](crate::Builder::notice_blocked) allows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Blocked {
    /// Which.
    pub isolate: Origin,
    /// Where it was spawned, as `file:line:column`, if that is known.
    pub spawned_at: Option<String>,
    /// For how long it had blocked when it was noticed.
    pub since: Duration,
    /// What it was doing: the thread, its state, the system call, where the kernel waits.
    pub doing: String,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocked {
            isolate,
            spawned_at,
            since,
            doing,
        } = self;
        write!(
            f,
            "isolate `{isolate}` ({}, pid {})",
            isolate.id, isolate.pid
        )?;
        if let Some(place) = spawned_at {
            write!(f, ", spawned at {place},")?;
        }
        write!(f, " blocks for {since:?}: {doing}")
    }
}

impl Runtime {
    fn here(&self) -> Vec<Arc<Shared>> {
        // Collected first: looking at an isolate takes other locks, and never under a map's.
        let isolates = self.isolates.iter();
        isolates
            .filter_map(|entry| entry.value().upgrade())
            .collect()
    }

    /// The process isolates that belong to an isolate of this process.
    fn processes(&self) -> Vec<Arc<Process>> {
        let mut found = Vec::new();
        for isolate in self.here() {
            found.extend(
                isolate
                    .family
                    .lock()
                    .bodies()
                    .filter_map(|body| match body {
                        Body::Process(process) => Some(process.clone()),
                        Body::Thread(_) => None,
                    }),
            );
        }
        found.retain(|process| process.is_spawned() && !process.is_over());
        found
    }

    /// One line per isolate of the tree from here down. A process that has said nothing by the deadline (ns) has a line with what the system says of it.
    ///
    /// # Blocking
    /// Until all have answered, at most until the deadline.
    pub(crate) fn dump_tree(&self, deadline: u64) -> Vec<String> {
        let mut lines = self.dump();
        // Those below have to answer before we have to.
        let now = clock::now();
        let earlier = now + deadline.saturating_sub(now) / 10 * 9;
        let asked: Vec<_> = self
            .processes()
            .into_iter()
            .map(|process| (process.inspect(earlier), process))
            .collect();
        for (answer, process) in asked {
            match wait_for(answer, deadline) {
                Some(Ok(answer)) => lines.extend(answer),
                Some(Err(oneshot::Dropped)) | None => {
                    let who = process.life.describe();
                    let pid = process.life.pid();
                    let state = state_of(pid).map_or("gone", in_words);
                    lines.push(format!("{who} (pid {pid}) does not answer; it is {state}"));
                }
            }
        }
        lines
    }

    /// Notes an isolate that blocks, and tells whoever is above.
    pub(crate) fn notice(&self, mut blocked: Blocked) {
        blocked.cut();
        crate::log::warn!(isolate = %blocked.isolate, pid = blocked.isolate.pid, since = ?blocked.since, "{blocked}");
        if let Some(link) = self.uplink.get().and_then(Weak::upgrade) {
            link.send_value(Kind::Noticed, 0, &blocked);
        }
        keep(&mut self.noticed.lock(), blocked);
    }
}

/// Keeps the newest, as many as there is room for.
fn keep(noticed: &mut VecDeque<Blocked>, blocked: Blocked) {
    noticed.push_back(blocked);
    let mut bytes: usize = noticed.iter().map(Blocked::bytes).sum();
    while noticed.len() > NOTICES || bytes > NOTICES_BYTES {
        let oldest = noticed.pop_front();
        bytes -= oldest.as_ref().map_or(bytes, Blocked::bytes);
    }
}

impl Blocked {
    fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        let Blocked {
            isolate,
            spawned_at,
            doing,
            ..
        } = self;
        [&mut isolate.path, doing].into_iter().chain(spawned_at)
    }

    fn cut(&mut self) {
        for text in self.texts().filter(|text| text.len() > TEXT_MAX) {
            text.truncate(text.floor_char_boundary(TEXT_MAX));
            text.push('\u{2026}');
            text.shrink_to_fit();
        }
    }

    fn bytes(&self) -> usize {
        let place = self.spawned_at.as_ref().map_or(0, String::len);
        self.isolate.path.len() + self.doing.len() + place
    }
}

/// The letter by which the system calls the state of a process.
fn state_of(pid: i32) -> Option<char> {
    let stat = offshoot_sys::procfs::text(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in brackets, and may hold some.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn in_words(state: char) -> &'static str {
    match state {
        'R' => "running",
        'S' | 'I' => "sleeping",
        'D' => "in a wait that nothing interrupts",
        'T' => "stopped by a signal",
        't' => "stopped by a debugger",
        'Z' | 'X' => "dead",
        _ => "in a state that has no name here",
    }
}

impl Process {
    /// Asks it what its tree is doing, until then (ns).
    fn inspect(&self, until: u64) -> oneshot::Receiver<Vec<String>> {
        let (sender, receiver) = oneshot::channel();
        let number = {
            let mut inspections = self.inspections.lock();
            let number = inspections.0;
            inspections.0 += 1;
            inspections.1.insert(number, sender);
            number
        };
        self.link.send_value(Kind::Inspect, number, &until);
        receiver
    }

    /// It has said what its tree is doing.
    pub(crate) fn inspected(&self, number: u64, lines: Vec<String>) {
        // One that came too late is nobody's.
        if let Some(sender) = self.inspections.lock().1.remove(&number) {
            let _ = sender.send(lines);
        }
    }
}

/// Who asked a process what it does, by the number of the question; and the next one.
pub(crate) type Inspections = (u64, BTreeMap<u64, oneshot::Sender<Vec<String>>>);

/// Answers an owner who wants to know what this process does.
pub(crate) fn answer(runtime: &Arc<Runtime>, link: &Arc<Link>, number: u64, until: u64) {
    let reply =
        move |link: &Link, lines: Vec<String>| link.send_value(Kind::Inspected, number, &lines);
    if runtime.processes().is_empty() {
        return reply(link, runtime.dump());
    }
    // It waits for others.
    let (asked, link) = (runtime.clone(), link.clone());
    runtime
        .pool
        .try_submit(move || reply(&link, asked.dump_tree(until)));
}

/// What is known of isolates that have blocked.
pub(crate) type Noticed = Mutex<VecDeque<Blocked>>;

/// The thread that looks for isolates that block, until it is dropped.
pub(crate) struct Watcher {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(crate) fn start(runtime: &Arc<Runtime>, bound: Duration) -> std::io::Result<Watcher> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let caller = runtime.caller;
        let (this, runtime) = (stop.clone(), Arc::downgrade(runtime));
        let thread = std::thread::Builder::new()
            .name("offshoot-watch".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                caller.put_on();
                watch(&this, &runtime, bound)
            })
            .map_err(crate::budget::of_thread("offshoot-watch"))?;
        Ok(Watcher {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        // Itself, if it has held the last of its tree.
        let thread = self.thread.take();
        let other = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = thread.filter(other) {
            let _ = thread.join();
        }
    }
}

fn watch((stopped, changed): &(Mutex<bool>, Condvar), runtime: &Weak<Runtime>, bound: Duration) {
    let pause = (bound / 4).clamp(LOOK_MIN, LOOK_MAX);
    // Since when each blocks of which that was said (ns).
    let mut told: BTreeMap<IsolateId, u64> = BTreeMap::new();
    loop {
        {
            let mut stopped = stopped.lock();
            if !*stopped {
                changed.wait_for(&mut stopped, pause);
            }
            if *stopped {
                return;
            }
        }
        let Some(runtime) = runtime.upgrade() else {
            return;
        };
        let mut blocking = BTreeMap::new();
        for isolate in runtime.here() {
            let Some(since) = isolate.busy_since().filter(|_| !isolate.is_cut_off()) else {
                continue;
            };
            let lasts = Duration::from_nanos(clock::now().saturating_sub(since));
            if lasts < bound {
                continue;
            }
            let id = isolate.life.identity().id;
            blocking.insert(id, since);
            if told.get(&id) != Some(&since) {
                let doing = isolate.describe();
                // It may have come back while it was looked at.
                if isolate.busy_since() == Some(since) {
                    runtime.notice(Blocked {
                        isolate: isolate.life.origin(),
                        spawned_at: isolate.life.spawned_at_text(),
                        since: lasts,
                        doing,
                    });
                }
            }
        }
        for process in runtime.processes() {
            let Some(state @ ('T' | 't')) = state_of(process.life.pid()) else {
                continue;
            };
            let id = process.life.identity().id;
            let now = clock::now();
            let since = told.get(&id).copied().unwrap_or(now);
            blocking.insert(id, since);
            if since == now {
                runtime.notice(Blocked {
                    isolate: process.life.origin(),
                    spawned_at: process.life.spawned_at_text(),
                    since: Duration::ZERO,
                    doing: format!("its process is {}", in_words(state)),
                });
            }
        }
        told = blocking;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_kept_by_number_and_by_bytes() {
        let blocked = |doing: String| {
            let id = IsolateId {
                process: 1,
                slot: 2,
                generation: 3,
            };
            let path = "root".to_owned();
            Blocked {
                isolate: Origin { path, id, pid: 4 },
                spawned_at: None,
                since: Duration::ZERO,
                doing,
            }
        };
        let mut kept = VecDeque::new();
        for number in 0..2 * NOTICES {
            keep(&mut kept, blocked(number.to_string()));
        }
        assert_eq!(kept.len(), NOTICES);
        assert_eq!(kept[0].doing, NOTICES.to_string());
        for _ in 0..NOTICES {
            let mut long = blocked("\u{e9}".repeat(TEXT_MAX));
            long.cut();
            assert!(long.doing.len() <= TEXT_MAX + 3);
            keep(&mut kept, long);
        }
        let bytes: usize = kept.iter().map(Blocked::bytes).sum();
        assert!(bytes <= NOTICES_BYTES && kept.len() > NOTICES_BYTES / TEXT_MAX / 2);
        // One that is longer by itself is not kept.
        keep(&mut kept, blocked("x".repeat(NOTICES_BYTES + 1)));
        assert!(kept.is_empty());
    }
}
