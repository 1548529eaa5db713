//! The children of one isolate, and the ladder by which each of them comes down.
//!
//! This is the one place that decides when a child is cancelled, interrupted, killed, abandoned
//! and counted as gone. It is no thread and no task: the isolate's loop (or, for the root, the
//! caller's waiting thread) drives it by [`Family::collect`] and [`Family::advance`]. It stands
//! behind a lock beside its isolate, not inside, so that the one above can take over the children
//! of an isolate that is wedged.
//!
//! The ladder, all of it in absolute time (nanoseconds of the monotonic clock):
//!
//! 1. [`Family::cancel`] tells the child, with its deadlines. They shrink from level to level, by a
//!    tenth below the topmost, then by a fixed [`RESERVE`], so that a parent has time to reap and
//!    report (`docs/decisions/one-ladder.md`).
//! 2. At `grace_at` the child itself drops its user futures.
//! 3. At `hard_at` a process is killed. A thread is interrupted [`INTERRUPT`] before, and if it has
//!    not ended then, abandoned; its own children are then taken over, and taken down. One whose loop
//!    turns is not stuck: it waits for its own children, whose own ladder ends what is stuck. It is left
//!    alone until `last_at`, the bound of the topmost isolate of the cancelled subtree. After that, and
//!    where a child wants a processor and hardly had one, force is put off up to [`EXCUSES`] times.
//! 4. A killed process that is not gone after [`KILL_BOUND`] and what its memory asks for is
//!    reported unkillable.

use crate::isolate::job::Mail;
use crate::isolate::panics;
use crate::isolate::shared::{Control, Route, Shared, Target};
use crate::life::{News, ended};
use crate::process::Process;
use crate::spec::Bounds;
use crate::time::nanos;
use crate::{Cancel, Canceller, Error, Exit, IsolateId, Origin};
use offshoot_mailbox::Letter;
use offshoot_sys::{clock, limits, thread};
use offshoot_wire::frame::CancelOrder;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// How long an interrupted thread has to end.
const INTERRUPT: u64 = 40_000_000;
/// How often force is put off when the time of a child is over and it is not to blame, for [`INTERRUPT`] each.
const EXCUSES: u32 = 7;
/// How long a loop may take to turn once it is asked to. It may be busy with the end of a child, which comes at the
/// same moments as its own, on a machine that is busy with others.
const PATIENCE: u64 = 160_000_000;
/// How long before the bound of a child its loop is first asked to turn; more than [`PATIENCE`], so that one that is
/// stuck is known by then.
const ASKED_BEFORE: u64 = PATIENCE + INTERRUPT;
/// What a level of the tree keeps of the time that the level above it has, so that it sees its children end
/// before its own time is over. A thousand levels take half a second of the bounds.
const RESERVE: u64 = 500_000;
/// As [`RESERVE`], where the child is a process, which has to be reaped and swept as well.
const RESERVE_PROCESS: u64 = 4_000_000;
/// How long a killed process has to be gone, whatever its size.
const KILL_BOUND: u64 = 2_000_000_000;
/// How long children have that were taken over from an abandoned thread.
const TAKEN_OVER: u64 = 150_000_000;
/// How long the operating system may take for the rest of a thread's exit.
const JOIN_BOUND: u64 = 1_000_000_000;
/// How many stacks are captured in one round: each takes a thread for a moment.
const STACKS_PER_ROUND: usize = 4;

/// Which member of a family.
pub(crate) type Key = u32;

/// The nursery to which a member belongs, as a number of its isolate.
pub(crate) type NurseryKey = u64;

/// The members whose nursery is gone.
pub(crate) const ADOPTED: NurseryKey = 0;

/// How far a child's end has come, written by the child (or by whoever watches its process).
#[derive(Default)]
pub(crate) struct Status {
    /// No code of the isolate's own runs any more.
    pub(crate) ended: OnceLock<(Exit, Vec<Error>)>,
    /// Nor any destructor of it: its thread is about to exit, its process is reaped and swept.
    pub(crate) gone: AtomicBool,
    /// Its end is told to whoever spawned it, as the failure of the spawn, and is no other news.
    pub(crate) silent: AtomicBool,
}

/// Where a child reports to: its owner, which changes when an owner is abandoned.
pub(crate) struct Upward(Mutex<(Weak<Shared>, Key)>);

impl Upward {
    pub(crate) fn new(owner: &Arc<Shared>, key: Key) -> Arc<Upward> {
        Arc::new(Upward(Mutex::new((Arc::downgrade(owner), key))))
    }

    /// Tells the owner to look at this child's status.
    pub(crate) fn nudge(&self) {
        let (owner, key) = self.owner();
        if let Some(owner) = owner {
            owner.nudge(key);
        }
    }

    /// Asks the owner to take this child down by the ladder.
    pub(crate) fn cancel(&self, cancel: &Cancel) {
        let (Some(owner), key) = self.owner() else {
            return;
        };
        owner.family.lock().cancel(key, cancel, None);
        // The owner has a new deadline to look after.
        owner.tell(Control::Look);
    }

    pub(crate) fn owner(&self) -> (Option<Arc<Shared>>, Key) {
        let to = self.0.lock();
        (to.0.upgrade(), to.1)
    }

    fn point_to(&self, owner: &Arc<Shared>, key: Key) {
        *self.0.lock() = (Arc::downgrade(owner), key);
    }
}

/// What stands behind a child.
pub(crate) enum Body {
    /// A thread; without a handle while it is being made.
    Thread(Option<thread::Joiner>),
    Process(Arc<Process>),
}

#[cfg(feature = "fault-points")]
impl Body {
    /// Whether it is no more, by what the system says where that can be asked.
    fn is_dead(&self) -> bool {
        match self {
            // Joined.
            Body::Thread(_) => true,
            // One that was never forked has none.
            Body::Process(process) => {
                let kept = || offshoot_sys::process::kept_by_tracer(process.life.pid());
                let dead = |pidfd: &offshoot_sys::pidfd::Pidfd| pidfd.is_dead();
                process.pidfd().is_none_or(dead) || kept().is_some()
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Cancelled,
    Interrupted,
    Killed,
    /// Nothing more is done to it; it is gone, abandoned or unkillable.
    Over,
}

pub(crate) struct Member {
    pub(crate) nursery: NurseryKey,
    pub(crate) target: Arc<Target>,
    pub(crate) status: Arc<Status>,
    pub(crate) upward: Arc<Upward>,
    pub(crate) bounds: Bounds,
    pub(crate) body: Body,
    /// Its end is no news: its spawn has reported it.
    pub(crate) silent: bool,
    /// What of the program runs at its end.
    last_words: LastWords,
    stage: Stage,
    order: Option<CancelOrder>,
    /// When something is due to it, as `Family::due` has it.
    due: Option<u64>,
    /// What its thread was doing when it was interrupted.
    stack: Option<thread::PendingStack>,
    starved: Starved,
    /// When its cancellation was first asked for.
    since: u64,
    /// How often its loop had turned when it was last asked to, and when that was (ns).
    asked: (u64, u64),
}

/// Whether a child that does not come down was given the time to do so.
#[derive(Default)]
struct Starved {
    /// When it was looked at (ns), and for how long it had had a processor by then, if it wanted one.
    last: Option<(u64, u64)>,
    excused: u32,
}

impl Starved {
    /// Looks at the thread `tid`. True if force is to be put off: it wanted a processor since the last time and hardly
    /// had one.
    fn look(&mut self, tid: Option<i32>, now: u64) -> bool {
        self.seen(tid.and_then(thread::wants_processor), now)
    }

    /// For how long force is put off, if it is. `unanswered`: for how long its loop has not turned, if it has not
    /// since it was asked to; `left`: what is left of the topmost bound.
    fn put_off(&mut self, unanswered: Option<u64>, starved: bool, left: u64) -> Option<u64> {
        let answers = unanswered.is_none_or(|since| since < PATIENCE);
        if answers && left > 0 {
            // At most half of what is left: one that is stuck is forced before those above it.
            return Some(PATIENCE.min(left / 2).max(INTERRUPT));
        }
        if !answers && !starved {
            return None;
        }
        self.excused += 1;
        (self.excused <= EXCUSES).then_some(INTERRUPT)
    }

    /// As [`look`](Starved::look), at one that has had a processor for `ran` ns, if it wants one.
    fn seen(&mut self, ran: Option<u64>, now: u64) -> bool {
        let before = std::mem::replace(&mut self.last, ran.map(|ran| (now, ran)));
        let (Some((at, had)), Some(ran)) = (before, ran) else {
            return false;
        };
        ran.saturating_sub(had) < now.saturating_sub(at) / 4
    }
}

/// What of the program runs at the end of an isolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastWords {
    None,
    /// Destructors of its state.
    State,
    /// What its main function does when nothing comes any more.
    Main,
}

/// Those that compute though their time is over. Where there are more of them than processors, they are what keeps
/// the ladder from its work and each other from coming down: those beyond get a smaller share from there on.
#[derive(Default)]
struct Computing {
    seen: usize,
    cores: usize,
    /// When the last one was seen (ns).
    at: u64,
}

impl Computing {
    fn is_one_too_many(&mut self, now: u64) -> bool {
        // Those of one cancellation come by at moments that differ by little; after that all of them are gone.
        if now.saturating_sub(self.at) > INTERRUPT * u64::from(EXCUSES) {
            (self.seen, self.cores) = (0, limits::usable_cores());
        }
        self.at = now;
        self.seen += 1;
        self.seen > self.cores
    }
}

/// A child that is no more.
pub(crate) struct Departed {
    pub(crate) nursery: NurseryKey,
    pub(crate) origin: Origin,
    pub(crate) exit: Exit,
    /// When it died (ns).
    pub(crate) at: u64,
    /// What had to be taken down by force below it.
    pub(crate) left: Vec<Error>,
    /// Names its failure.
    pub(crate) id: offshoot_wire::FailureId,
    silent: bool,
}

impl Departed {
    /// The failure that this end is for its nursery, if it is one.
    pub(crate) fn failure(&self) -> Option<Error> {
        (!self.exit.is_clean() && !self.silent)
            .then(|| ended(self.exit.clone(), &self.origin).with_id(self.id))
    }

    /// True if it had to be taken down by force, which belongs in every report above.
    pub(crate) fn was_forced(&self) -> bool {
        !self.silent
            && matches!(
                self.exit,
                Exit::Killed { .. } | Exit::Abandoned { .. } | Exit::Unkillable { .. }
            )
    }
}

/// A child that is gone and is no member any more.
#[must_use = "its thread is to be joined"]
pub(crate) struct Leaving(Member);

impl Leaving {
    /// How it ended.
    ///
    /// Blocks for the rest of its thread's exit, in the order of 20 µs, and wakes those who wait for
    /// its end: not for under a lock.
    pub(crate) fn join(self) -> Departed {
        let Leaving(mut member) = self;
        let origin = member.target.life.origin();
        let (mut exit, left) = match member.status.ended.get() {
            Some((exit, left)) => (exit.clone(), left.clone()),
            None => (
                Exit::Lost {
                    why: "it left no word".to_owned(),
                },
                Vec::new(),
            ),
        };
        if let Body::Thread(Some(joiner)) = &mut member.body {
            // What is left of the thread is the operating system's part of its exit, unless a C
            // library's thread-specific destructor hangs; that one must not hang us.
            let abandoned = member.stage == Stage::Over;
            if !abandoned && !joiner.join_until(clock::now() + JOIN_BOUND) {
                exit = Exit::Abandoned {
                    doing: "its thread hangs in a destructor of a C library".to_owned(),
                    after_ms: JOIN_BOUND / 1_000_000,
                };
                member.target.runtime.count_abandoned();
            }
        }
        member.target.life.announce(exit.clone());
        let at = member.target.life.died_at().unwrap_or_else(clock::now);
        let id = member.target.life.failure_id();
        #[cfg(feature = "fault-points")]
        crate::ledger::reported(
            &origin,
            &exit,
            member.target.refuses(),
            member.body.is_dead(),
        );
        Departed {
            nursery: member.nursery,
            origin,
            exit,
            at,
            left,
            id,
            silent: member.silent || member.status.silent.load(Ordering::Relaxed),
        }
    }
}

/// The deadlines of the isolate above, if it is being taken down itself.
pub(crate) type Above = Option<Deadlines>;

/// The deadlines of a cancelled isolate (ns); see [`CancelOrder`].
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    pub(crate) grace: u64,
    pub(crate) hard: u64,
    pub(crate) last: u64,
}

impl Deadlines {
    pub(crate) fn of(order: &CancelOrder) -> Deadlines {
        Deadlines {
            grace: order.grace_at,
            hard: order.hard_at,
            last: order.last_at,
        }
    }

    /// The earlier of each.
    pub(crate) fn or_before(self, other: Deadlines) -> Deadlines {
        Deadlines {
            grace: self.grace.min(other.grace),
            hard: self.hard.min(other.hard),
            last: self.last.min(other.last),
        }
    }

    /// Those of a child: what is left here, less what is kept for seeing it end.
    fn below(self, now: u64, reserve: u64) -> Deadlines {
        // The topmost keeps more: what is stuck below is to be forced before any bound of it is over, also after
        // it was let off. At a great depth as little as is left can be kept.
        let most = if self.hard == self.last {
            u64::MAX
        } else {
            reserve
        };
        let kept = |at: u64| at - (at.saturating_sub(now) / 10).min(most);
        Deadlines {
            grace: kept(self.grace),
            hard: kept(self.hard),
            last: self.last,
        }
    }
}

#[derive(Default)]
pub(crate) struct Family {
    members: BTreeMap<Key, Member>,
    /// How many members each nursery has that has any, by its number. With this and the next one, the end of each of
    /// many children costs no look at all of the others. A vector keeps its room: no spawn allocates for this.
    counts: Vec<(NurseryKey, usize)>,
    /// How many members are not cancelled.
    at_liberty: usize,
    computing: Computing,
    next: Key,
    /// When something has to be done to a member, soonest first.
    due: BTreeSet<(u64, Key)>,
    /// Its isolate was abandoned or has ended; nobody would look after a new member.
    closed: bool,
}

impl Family {
    /// Adds a child that has been or is about to be started. `None` if nobody could look after it.
    pub(crate) fn add(
        &mut self,
        owner: &Arc<Shared>,
        make: impl FnOnce(&Arc<Upward>) -> Member,
    ) -> Option<Key> {
        if self.closed {
            return None;
        }
        self.next += 1;
        let key = self.next;
        let upward = Upward::new(owner, key);
        let member = make(&upward);
        #[cfg(feature = "fault-points")]
        crate::ledger::began(
            &member.target.life.origin(),
            owner.life.identity().id,
            member.nursery,
        );
        self.insert(key, member);
        Some(key)
    }

    fn insert(&mut self, key: Key, member: Member) {
        match self.place_of(member.nursery) {
            Ok(place) => self.counts[place].1 += 1,
            Err(place) => self.counts.insert(place, (member.nursery, 1)),
        }
        self.at_liberty += usize::from(member.order.is_none());
        if let Some(at) = member.due {
            self.due.insert((at, key));
        }
        self.members.insert(key, member);
    }

    fn remove(&mut self, key: Key) -> Option<Member> {
        let member = self.members.remove(&key)?;
        if let Ok(place) = self.place_of(member.nursery) {
            self.counts[place].1 -= 1;
            if self.counts[place].1 == 0 {
                self.counts.remove(place);
            }
        }
        self.at_liberty -= usize::from(member.order.is_none());
        if let Some(at) = member.due {
            self.due.remove(&(at, key));
        }
        Some(member)
    }

    fn place_of(&self, nursery: NurseryKey) -> Result<usize, usize> {
        self.counts.binary_search_by_key(&nursery, |(key, _)| *key)
    }

    fn count(&self, nursery: NurseryKey) -> usize {
        self.place_of(nursery)
            .map_or(0, |place| self.counts[place].1)
    }

    /// Says when something is to be done to a member; not when it was due before.
    fn set_due(&mut self, key: Key, at: u64) {
        if let Some(member) = self.members.get_mut(&key) {
            if let Some(old) = member.due.replace(at) {
                self.due.remove(&(old, key));
            }
            self.due.insert((at, key));
        }
    }

    pub(crate) fn member(&mut self, key: Key) -> Option<&mut Member> {
        self.members.get_mut(&key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn keys_of(&self, nursery: NurseryKey) -> Vec<Key> {
        let members = self.members.iter();
        let own = members.filter(|(_, member)| member.nursery == nursery);
        // No further than the last one.
        own.map(|(key, _)| *key).take(self.count(nursery)).collect()
    }

    /// Whether this nursery has no member.
    pub(crate) fn is_empty_of(&self, nursery: NurseryKey) -> bool {
        self.count(nursery) == 0
    }

    /// How many members there are.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The members that are not cancelled.
    pub(crate) fn keys_at_liberty(&self) -> Vec<Key> {
        let members = self.members.iter();
        let free = members.filter(|(_, member)| member.order.is_none());
        free.map(|(key, _)| *key).take(self.at_liberty).collect()
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.members.keys().copied().collect()
    }

    /// Removes a member that never came to life.
    pub(crate) fn forget(&mut self, key: Key) {
        let forgotten = self.remove(key);
        #[cfg(feature = "fault-points")]
        if let Some(member) = &forgotten {
            crate::ledger::forgotten(member.target.life.identity().id);
        }
        drop(forgotten);
    }

    /// Hands the members of a nursery that is gone to the isolate itself.
    pub(crate) fn adopt_nursery(&mut self, nursery: NurseryKey) {
        for key in self.keys_of(nursery) {
            if let Some(mut member) = self.remove(key) {
                member.nursery = ADOPTED;
                self.insert(key, member);
            }
        }
    }

    /// Cancels a child. Repeated, it can only bring the deadlines forward.
    pub(crate) fn cancel(&mut self, key: Key, cancel: &Cancel, above: Above) {
        let now = clock::now();
        let Some(member) = self.members.get_mut(&key) else {
            return;
        };
        let hard = now + nanos(member.bounds.hard_kill);
        let mut deadlines = Deadlines {
            grace: now + nanos(member.bounds.grace),
            hard,
            last: hard,
        };
        if let Some(above) = above {
            let reserve = match member.body {
                Body::Thread(_) => RESERVE,
                Body::Process(_) => RESERVE_PROCESS,
            };
            deadlines = deadlines.or_before(above.below(now, reserve));
        }
        self.order(key, cancel, deadlines, now);
    }

    /// Cancels a child with hardly any time: its owner is wedged, or nobody waits any more. Where it only waits
    /// for its own children it has until `last`.
    pub(crate) fn cancel_now(&mut self, key: Key, cancel: &Cancel, within: u64, last: u64) {
        let now = clock::now();
        let hard = now + within;
        let deadlines = Deadlines {
            grace: now,
            hard,
            last: hard.max(last),
        };
        self.order(key, cancel, deadlines, now);
    }

    fn order(&mut self, key: Key, cancel: &Cancel, deadlines: Deadlines, now: u64) {
        let Some(member) = self.members.get_mut(&key) else {
            return;
        };
        // The first author counts; deadlines only ever come closer.
        let (cancel, deadlines) = match &member.order {
            None => (cancel, deadlines),
            Some(old) => (&old.cancel, Deadlines::of(old).or_before(deadlines)),
        };
        let hard_at = deadlines.hard.max(deadlines.grace);
        let order = CancelOrder {
            cancel: cancel.clone(),
            grace_at: deadlines.grace,
            hard_at,
            last_at: deadlines.last.max(hard_at),
        };
        if member.order.as_ref() == Some(&order)
            || !matches!(member.stage, Stage::Running | Stage::Cancelled)
        {
            return;
        }
        if member.order.is_none() {
            member.since = now;
            // The order itself has its loop turn.
            member.asked = (member.turns(), now);
            self.at_liberty -= 1;
        }
        member.stage = Stage::Cancelled;
        member.target.life.cancel(order.cancel.clone());
        member.order = Some(order.clone());
        let at = order.hard_at.saturating_sub(ASKED_BEFORE);
        member.target.send_order(order);
        self.set_due(key, at);
    }

    /// Lets a child finish what it accepted and end. Says what of the program runs then, and the child's number at this time, see
    /// [`Rest`](crate::rest::Rest).
    pub(crate) fn close(&self, key: Key) -> (LastWords, Option<u64>) {
        let Some(member) = self.members.get(&key) else {
            return (LastWords::None, None);
        };
        let word = member.target.thread().map(|shared| shared.rest.word());
        member.target.send_close();
        (member.last_words, word)
    }

    /// A child's number in this wave, if it is at rest; see [`Waves`](crate::rest::Waves).
    pub(crate) fn rest(&self, key: Key, wave: u64) -> Option<u64> {
        self.members.get(&key)?.target.rest(wave)
    }

    /// Whether a child that was closed, with this number, waits for others before it ends.
    pub(crate) fn waits_for_others(&self, key: Key, wave: u64, word: Option<u64>) -> bool {
        let Some(member) = self.members.get(&key) else {
            return false;
        };
        match &member.body {
            Body::Thread(_) => member
                .target
                .rest(wave)
                .is_some_and(|now| Some(now) != word),
            // Asked behind what has closed it.
            Body::Process(process) => process.ask_rest(wave).is_some(),
        }
    }

    pub(crate) fn has(&self, key: Key) -> bool {
        self.members.contains_key(&key)
    }

    /// Removes a child that is gone; `None` while it is not.
    pub(crate) fn collect(&mut self, key: Key) -> Option<Leaving> {
        let member = self.members.get(&key)?;
        if !member.status.gone.load(Ordering::Acquire) {
            return None;
        }
        self.remove(key).map(Leaving)
    }

    /// When [`Family::advance`] has something to do.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes every member whose time has come one rung down.
    ///
    /// Children of a thread that has to be abandoned are taken over into this family.
    #[must_use = "what an abandoned child had in its mailbox is dropped by `Advanced::settle`"]
    pub(crate) fn advance(&mut self, owner: &Arc<Shared>, now: u64) -> Advanced {
        let mut gone = Vec::new();
        let mut unserved = Vec::new();
        let mut news = News::default();
        let mut stacks = 0;
        while let Some(&(at, key)) = self.due.first().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, key));
            let Some(member) = self.members.get_mut(&key) else {
                continue;
            };
            member.due = None;
            if member.status.gone.load(Ordering::Acquire) {
                gone.push(key);
                continue;
            }
            let hard_at = member.order.as_ref().map_or(0, |order| order.hard_at);
            match (&member.body, member.stage) {
                (_, Stage::Running | Stage::Cancelled) if now < force_at(hard_at) => {
                    member.ask_for_turn(now);
                    self.set_due(key, force_at(hard_at));
                }
                (Body::Process(process), Stage::Running | Stage::Cancelled) => {
                    // To see in the end whether it was given the time.
                    let pid = process_tid(process);
                    member.starved.look(pid, now);
                    member.give_way(pid, &mut self.computing, now);
                    member.stage = Stage::Interrupted;
                    self.set_due(key, hard_at.max(now + INTERRUPT / 2));
                }
                (Body::Process(process), Stage::Interrupted) => {
                    let process = process.clone();
                    if let Some(at) = member.put_off(now) {
                        self.set_due(key, at);
                        continue;
                    }
                    let after = now.saturating_sub(member.since) / 1_000_000;
                    let why = format!("it had not ended {after} ms after its cancellation");
                    let (bound, told) = process.kill_quietly(&why);
                    news.append(told);
                    member.stage = Stage::Killed;
                    self.set_due(key, now + KILL_BOUND + bound);
                }
                (Body::Process(process), Stage::Killed) => {
                    member.stage = Stage::Over;
                    news.append(process.give_up());
                    gone.push(key);
                }
                (Body::Thread(_), Stage::Running | Stage::Cancelled) => {
                    // Ends an interruptible system call; a thread that sees its cancellation then
                    // still comes down by itself.
                    if let Some(shared) = member.target.thread() {
                        stacks += 1;
                        if stacks <= STACKS_PER_ROUND {
                            member.stack = shared.capture_stack();
                        }
                        shared.interrupt();
                        let tid = shared.tid();
                        member.starved.look(tid, now);
                        member.give_way(tid, &mut self.computing, now);
                    }
                    member.stage = Stage::Interrupted;
                    self.set_due(key, hard_at.max(now + INTERRUPT / 2));
                }
                (Body::Thread(_), Stage::Interrupted) => {
                    if let Some(at) = member.put_off(now) {
                        self.set_due(key, at);
                        continue;
                    }
                    let after_ms = now.saturating_sub(member.since) / 1_000_000;
                    let (heirs, messages) = abandon(member, after_ms, &mut news);
                    unserved.extend(messages);
                    member.stage = Stage::Over;
                    let nursery = member.nursery;
                    let last = member.order.as_ref().map_or(0, |order| order.last_at);
                    gone.push(key);
                    self.take_over(owner, heirs, nursery, last);
                }
                (_, Stage::Over) | (Body::Thread(_), Stage::Killed) => {}
            }
        }
        Advanced {
            gone,
            unserved,
            news,
        }
    }

    fn take_over(
        &mut self,
        owner: &Arc<Shared>,
        heirs: Vec<Member>,
        nursery: NurseryKey,
        last: u64,
    ) {
        for mut heir in heirs {
            self.next += 1;
            let key = self.next;
            heir.nursery = nursery;
            heir.upward.point_to(owner, key);
            #[cfg(feature = "fault-points")]
            crate::ledger::taken_over(
                heir.target.life.identity().id,
                owner.life.identity().id,
                nursery,
            );
            let by = Canceller::Parent(owner.life.origin(), Box::new(Canceller::Deadline));
            self.insert(key, heir);
            self.cancel_now(key, &Cancel { by }, TAKEN_OVER, last);
            self.resume(key);
            // It may have ended while its news went to the one that was abandoned.
            owner.nudge(key);
        }
    }

    /// Looks after a member that its former owner may have left on any rung: if its order could not
    /// be hastened, nothing is due here yet, and nobody would take it further down.
    fn resume(&mut self, key: Key) {
        let Some(member) = self.members.get(&key) else {
            return;
        };
        let at = match member.stage {
            Stage::Over => return,
            Stage::Killed => clock::now() + KILL_BOUND,
            Stage::Running | Stage::Cancelled | Stage::Interrupted => member
                .order
                .as_ref()
                .map_or(0, |order| force_at(order.hard_at)),
        };
        if member.due.is_none() {
            self.set_due(key, at);
        }
    }

    /// The process isolates among the children: id, process, and who they are.
    pub(crate) fn processes(&self) -> Vec<(IsolateId, i32, String)> {
        let processes = self.members.values().filter_map(|member| {
            let life = &member.target.life;
            matches!(member.body, Body::Process(_)).then(|| {
                let id = life.identity().id;
                (id, life.pid(), life.describe())
            })
        });
        processes.collect()
    }

    /// What stands behind each child.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Body> {
        self.members.values().map(|member| &member.body)
    }

    /// Whether no child is about to begin or to be collected, and no process is being started or owes an answer.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.members.values().all(|member| {
            if member.status.gone.load(Ordering::Acquire) {
                return false;
            }
            match &member.body {
                Body::Thread(_) => member.target.thread().is_some_and(|it| it.has_begun()),
                Body::Process(process) => !process.is_starting() && !process.link.has_pending(),
            }
        })
    }

    /// Empties the family of an isolate that is cut off.
    fn surrender(&mut self) -> Vec<Member> {
        self.closed = true;
        self.due.clear();
        self.counts.clear();
        self.at_liberty = 0;
        let members = std::mem::take(&mut self.members).into_values();
        members
            .map(|mut member| {
                // Whoever takes it over looks after it from the beginning.
                member.due = None;
                member
            })
            .collect()
    }

    /// Refuses members from now on: the isolate has ended.
    pub(crate) fn close_down(&mut self) {
        self.closed = true;
    }
}

impl Member {
    pub(crate) fn new(
        nursery: NurseryKey,
        target: Arc<Target>,
        status: Arc<Status>,
        upward: Arc<Upward>,
        bounds: Bounds,
        body: Body,
    ) -> Member {
        Member {
            nursery,
            target,
            status,
            upward,
            bounds,
            body,
            silent: false,
            last_words: LastWords::None,
            stage: Stage::Running,
            order: None,
            due: None,
            stack: None,
            starved: Starved::default(),
            since: 0,
            asked: (0, 0),
        }
    }

    /// Says what of the program runs at its end.
    pub(crate) fn with_last_words(mut self, last_words: LastWords) -> Member {
        self.last_words = last_words;
        self
    }

    /// Gives way to the others, if it computes and is one too many.
    fn give_way(&self, tid: Option<i32>, computing: &mut Computing, now: u64) {
        if let Some(tid) = tid
            && self.starved.last.is_some()
            && computing.is_one_too_many(now)
            && let Err(error) = thread::make_nice(tid)
        {
            crate::log::debug!(isolate = %self.target.life.origin(), %error, "cannot lower its priority");
        }
    }

    /// Asks its loop to turn, which shows that it is not stuck. A process says so by acknowledging the order again.
    fn ask_for_turn(&mut self, now: u64) {
        self.asked = (self.turns(), now);
        match &self.body {
            Body::Thread(_) => {
                if let Some(shared) = self.target.thread() {
                    shared.tell(Control::Look);
                }
            }
            Body::Process(process) => {
                if let Some(order) = &self.order {
                    process.send_order(order);
                }
            }
        }
    }

    /// How often its loop has turned, or its process has acknowledged its order.
    fn turns(&self) -> u64 {
        match &self.body {
            Body::Thread(_) => self.target.thread().map_or(0, |shared| shared.turns()),
            Body::Process(process) => process.acknowledgements(),
        }
    }

    /// Until when force is put off although its time is over; `None` if it is stuck.
    fn put_off(&mut self, now: u64) -> Option<u64> {
        let thread = self.target.thread();
        let asleep = thread.is_some_and(|shared| shared.is_asleep());
        let tid = match &self.body {
            Body::Thread(_) => thread.and_then(|shared| shared.tid()),
            Body::Process(process) => process_tid(process),
        };
        let starved = self.starved.look(tid, now);
        let turns = asleep || self.turns() != self.asked.0;
        let unanswered = (!turns).then(|| now.saturating_sub(self.asked.1));
        let last = self.order.as_ref().map_or(0, |order| order.last_at);
        if turns {
            self.ask_for_turn(now);
        }
        let more = self
            .starved
            .put_off(unanswered, starved, last.saturating_sub(now))?;
        Some(now + more)
    }
}

/// The thread of a process on which its isolate runs; `None` before it is forked.
fn process_tid(process: &Process) -> Option<i32> {
    Some(process.life.pid()).filter(|pid| *pid != 0)
}

/// When force begins, if it is to be over at `hard_at`.
fn force_at(hard_at: u64) -> u64 {
    hard_at.saturating_sub(INTERRUPT)
}

/// Cuts a thread off that does not return: its callers are answered, its mailbox closed, its
/// processor share lowered. Returns its children, and the messages that nobody will serve.
fn abandon(
    member: &mut Member,
    after_ms: u64,
    news: &mut News,
) -> (Vec<Member>, Vec<Letter<dyn Mail>>) {
    let Route::Thread(shared) = member.target.route() else {
        return Default::default();
    };
    let mut doing = shared.describe();
    if let Some(stack) = member.stack.take() {
        doing.push('\n');
        doing.push_str(&stack.so_far());
    }
    let exit = Exit::Abandoned { doing, after_ms };
    let origin = member.target.life.origin();
    let text = exit.to_string();
    news.add(move || {
        crate::log::error!(isolate = %origin, id = %origin.id, exit = text, "thread abandoned");
    });
    news.append(member.target.life.announce_quietly(exit.clone()));
    let heirs = shared.family.lock().surrender();
    let unserved = shared.cut_off();
    // Written last, and only if the thread has not ended at this very moment.
    let _ = member.status.ended.set((exit, Vec::new()));
    member.status.gone.store(true, Ordering::Release);
    if let Body::Thread(joiner) = &mut member.body
        && let Some(joiner) = joiner.take()
    {
        joiner.detach();
    }
    // Its paths are free for a successor, whatever the thread does. Said with the news, because a
    // file system may take its time.
    let target = member.target.clone();
    news.add(move || target.runtime.binder.release(target.life.identity().id));
    member.target.runtime.count_abandoned();
    (heirs, unserved)
}

/// What came of taking members down.
#[derive(Default)]
pub(crate) struct Advanced {
    /// Those that are now gone.
    gone: Vec<Key>,
    /// What the abandoned had not begun.
    unserved: Vec<Letter<dyn Mail>>,
    news: News,
}

impl Advanced {
    /// Tells the news, drops what nobody will serve, which tells its callers, and says who is gone. Not
    /// for under a lock: wakers and destructors are the program's. Their panics are logged, and harm
    /// nobody else.
    pub(crate) fn settle(self) -> Vec<Key> {
        self.news.tell();
        for message in self.unserved {
            if let Some(panic) = panics::drop_caught(message) {
                crate::log::error!(%panic, "a destructor of a message to an abandoned isolate panicked");
            }
        }
        self.gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn who_wants_a_processor_and_has_none_is_starved() {
        let mut starved = Starved::default();
        assert!(
            !starved.seen(Some(5 * MS), 0),
            "there is nothing to compare with"
        );
        for n in 1..4 {
            assert!(starved.seen(Some(5 * MS + n), n * 40 * MS), "{n}");
        }
    }

    #[test]
    fn force_is_put_off_for_who_turns_until_the_topmost_bound() {
        let mut it = Starved::default();
        for _ in 0..1_000 {
            assert_eq!(it.put_off(None, false, 1_000 * MS), Some(PATIENCE));
        }
        assert_eq!(it.put_off(None, false, 200 * MS), Some(100 * MS));
        assert_eq!(it.put_off(None, false, 1), Some(INTERRUPT));
        // And a little longer, but not for ever.
        for _ in 0..EXCUSES {
            assert_eq!(it.put_off(None, false, 0), Some(INTERRUPT));
        }
        assert_eq!(it.put_off(None, false, 0), None);
    }

    #[test]
    fn force_is_put_off_for_who_does_not_turn_until_it_had_time_to() {
        let mut it = Starved::default();
        let asked = Some(INTERRUPT);
        assert_eq!(it.put_off(asked, false, 300 * MS), Some(150 * MS));
        assert_eq!(it.put_off(Some(PATIENCE), false, 300 * MS), None);
        assert_eq!(it.put_off(Some(PATIENCE), false, 0), None);
        // Past the topmost bound it counts.
        assert_eq!(it.put_off(asked, false, 0), Some(INTERRUPT));
        for _ in 1..EXCUSES {
            assert_eq!(it.put_off(Some(PATIENCE), true, 300 * MS), Some(INTERRUPT));
        }
        assert_eq!(it.put_off(Some(PATIENCE), true, 300 * MS), None);
    }

    #[test]
    fn a_level_takes_a_fixed_reserve_and_the_topmost_a_tenth() {
        let (now, s) = (5, 1_000 * MS);
        let topmost = Deadlines {
            grace: now + s,
            hard: now + 3 * s,
            last: now + 3 * s,
        };
        let mut deadlines = topmost.below(now, RESERVE);
        assert_eq!(deadlines.grace, now + 900 * MS);
        assert_eq!(deadlines.hard, now + 2_700 * MS);
        for _ in 0..1_000 {
            deadlines = deadlines.below(now, RESERVE);
        }
        assert_eq!(deadlines.grace, now + 400 * MS);
        assert_eq!(deadlines.hard, now + 2_200 * MS);
        // Where nothing is left for it, it is as little as there is, and the topmost bound is what it was.
        for _ in 0..100_000 {
            deadlines = deadlines.below(now, RESERVE);
        }
        assert!(deadlines.grace >= now && deadlines.hard >= deadlines.grace);
        assert_eq!(deadlines.last, topmost.last);
    }

    /// A member that is nowhere.
    fn member(owner: &Arc<Shared>, nursery: NurseryKey, upward: &Arc<Upward>) -> Member {
        let id = owner.runtime.next_id();
        let (path, pid) = ("root/one".to_owned(), 0);
        let life = Arc::new(crate::life::Life::new(Origin { path, id, pid }));
        let target = Target::new(life, owner.runtime.clone(), Route::Gone, (1, 1), false);
        Member::new(
            nursery,
            target,
            Arc::default(),
            upward.clone(),
            owner.bounds,
            Body::Thread(None),
        )
    }

    #[test]
    fn the_end_of_each_of_many_costs_no_look_at_all_others() {
        const MANY: u32 = 30_000;
        let took = crate::run(async || {
            let local = crate::isolate::local::Local::try_current().expect("an isolate");
            let owner = local.shared.clone();
            let mut family = Family::default();
            for n in 0..MANY {
                let nursery = u64::from(1 + n % 3);
                family.add(&owner, |upward| member(&owner, nursery, upward));
            }
            let began = std::time::Instant::now();
            let by = Canceller::Runtime;
            for key in family.keys() {
                family.cancel(key, &Cancel { by: by.clone() }, None);
            }
            family.adopt_nursery(2);
            assert!(family.is_empty_of(2) && !family.is_empty_of(ADOPTED));
            for (left, key) in family.keys().into_iter().enumerate() {
                assert_eq!(family.len(), MANY as usize - left);
                // What the loop and the nursery ask after each.
                assert!(family.keys_at_liberty().is_empty() && !family.is_empty());
                let _ = family.is_empty_of(1);
                let member = family.member(key).expect("a member");
                member.status.gone.store(true, Ordering::Release);
                assert!(family.collect(key).is_some());
            }
            assert!(family.counts.is_empty() && family.due.is_empty());
            assert_eq!(family.at_liberty, 0);
            Ok(began.elapsed())
        });
        // 0.2 s where each is for itself, and minutes where each looks at all.
        let took = took.expect("no failure");
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn members_are_found_by_nursery_however_they_come_and_go() {
        let done = crate::run(async || {
            let local = crate::isolate::local::Local::try_current().expect("an isolate");
            let owner = local.shared.clone();
            let mut family = Family::default();
            let add = |family: &mut Family, nursery| {
                let key = family.add(&owner, |upward| member(&owner, nursery, upward));
                key.expect("it is open")
            };
            let (a, b, c) = (
                add(&mut family, 3),
                add(&mut family, 7),
                add(&mut family, 3),
            );
            assert_eq!(family.keys_of(3), [a, c]);
            assert_eq!(family.keys_of(7), [b]);
            assert!(family.is_empty_of(5) && family.keys_of(5).is_empty());
            family.cancel(
                b,
                &Cancel {
                    by: Canceller::Runtime,
                },
                None,
            );
            assert_eq!(family.keys_at_liberty(), [a, c]);
            family.adopt_nursery(3);
            assert_eq!(family.keys_of(ADOPTED), [a, c]);
            family.forget(b);
            assert!(family.is_empty_of(7) && family.due.is_empty());
            family.cancel(
                a,
                &Cancel {
                    by: Canceller::Runtime,
                },
                None,
            );
            assert_eq!(family.keys_at_liberty(), [c]);
            assert_eq!(family.due.len(), 1);
            Ok(())
        });
        done.expect("no failure");
    }

    #[test]
    fn who_computes_or_waits_is_not_starved() {
        let mut computes = Starved::default();
        let mut waits = Starved::default();
        for n in 0..4 {
            assert!(!computes.seen(Some(n * 20 * MS), n * 40 * MS));
            assert!(!waits.seen(None, n * 40 * MS));
        }
        // It has waited until now, so it was not kept from coming down.
        assert!(!waits.seen(Some(1), 200 * MS));
    }
}
