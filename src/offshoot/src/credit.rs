//! Credit: how many messages and calls one isolate may have under way to another.
//!
//! Every pair of a sending isolate and a receiver has a [`Lane`]: a bound on messages that the
//! receiver has not begun, a bound on calls that have not ended, and the sequence number of what
//! was accepted. A sender that is out of credit waits; nobody else does. The receiver's queue is
//! thereby bounded by its senders' lanes and needs no bound of its own.

use crate::isolate::local::Local;
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// How much is given back at a time, at most: each time takes the line of memory in which it lies away from the
/// sender's processor.
pub(crate) const TOGETHER: u32 = 32;

/// A counting semaphore whose waiters are served in the order in which they came.
///
/// Who waits is woken when half of it is available again, or when the receiver has nothing else to do: a wake-up for
/// each message would cost more than the messages.
///
/// # Why no wake-up is lost
///
/// Who waits first counts itself among the waiting and then looks whether something is available; who gives back
/// first makes it available and then looks whether anybody waits. All four are sequentially consistent, so that one
/// of the two sees the other.
///
/// # Why nobody waits for one that does not look
///
/// A future that was polled once and is kept, neither polled nor dropped, has a place. All places of a lane are of one
/// isolate, and before it sleeps whoever was woken in it has been polled: one that was woken and has not looked by
/// then is passed over ([`pass_on`](Credit::pass_on)) until it does. Of a lane of senders that are no isolates nobody
/// knows when they sleep: there all are woken, and whoever looks takes.
pub(crate) struct Credit {
    available: AtomicU32,
    /// How many wait and are not passed over, which tells all others to queue up behind them.
    waiters: AtomicU32,
    /// When there is so much, it is worth a wake-up.
    enough: u32,
    /// In order; not for senders that are no isolates.
    fair: bool,
    /// Somebody waits though something is available, and the receiver knows that it owes a wake-up.
    owed: AtomicBool,
    /// An isolate looks after it before it sleeps.
    watched: AtomicBool,
    queue: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    places: VecDeque<Waiter>,
}

struct Waiter {
    number: u64,
    waker: Waker,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Waits to be woken.
    Waiting,
    /// Was woken, and has not looked since.
    Woken,
    /// Did not look when it was its turn: nobody waits for it until it does.
    Idle,
}

impl Waiting {
    fn find(&mut self, number: u64) -> Option<&mut Waiter> {
        self.places.iter_mut().find(|one| one.number == number)
    }

    fn first(&mut self) -> Option<&mut Waiter> {
        let mut places = self.places.iter_mut();
        places.find(|one| one.stage != Stage::Idle)
    }

    /// Removes a place; false if it was passed over.
    fn remove(&mut self, number: u64) -> bool {
        let at = self.places.iter().position(|one| one.number == number);
        let removed = at.and_then(|at| self.places.remove(at));
        removed.is_some_and(|one| one.stage != Stage::Idle)
    }
}

/// A place in the queue for credit. Gone when dropped.
#[derive(Default)]
pub(crate) struct Place(Option<u64>);

impl Credit {
    fn new(available: u32, fair: bool) -> Credit {
        Credit {
            available: AtomicU32::new(available),
            waiters: AtomicU32::new(0),
            enough: available.div_ceil(2),
            fair,
            owed: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            queue: Mutex::default(),
        }
    }

    /// Takes one if there is one and nobody waits for it.
    pub(crate) fn try_take(&self) -> bool {
        (!self.fair || self.waiters.load(Ordering::SeqCst) == 0) && self.take()
    }

    fn take(&self) -> bool {
        let less = |available: u32| available.checked_sub(1);
        self.available
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, less)
            .is_ok()
    }

    /// Takes one when it is this waiter's turn. One that is `urgent`, since it holds up all others of its isolate
    /// until it has one, goes before them.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        place: &mut Place,
        urgent: bool,
    ) -> Poll<()> {
        if place.0.is_none() && self.try_take() {
            return Poll::Ready(());
        }
        let mut queue = self.queue.lock();
        let known = place.0.and_then(|mine| queue.find(mine));
        let mine = match known {
            Some(waiter) => {
                waiter.waker.clone_from(cx.waker());
                if std::mem::replace(&mut waiter.stage, Stage::Waiting) == Stage::Idle {
                    self.waiters.fetch_add(1, Ordering::SeqCst);
                }
                waiter.number
            }
            None => {
                let number = queue.next;
                queue.next += 1;
                let waiter = Waiter {
                    number,
                    waker: cx.waker().clone(),
                    stage: Stage::Waiting,
                };
                if urgent {
                    queue.places.push_front(waiter);
                } else {
                    queue.places.push_back(waiter);
                }
                place.0 = Some(number);
                self.waiters.fetch_add(1, Ordering::SeqCst);
                number
            }
        };
        let first = !self.fair || queue.first().is_some_and(|one| one.number == mine);
        if !first || !self.take() {
            return Poll::Pending;
        }
        place.0 = None;
        queue.remove(mine);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        // There may be more than one, and the next was not woken for it.
        self.wake_in(queue);
        Poll::Ready(())
    }

    /// Wakes whoever is next, if something is available.
    fn wake_in(&self, mut queue: MutexGuard<'_, Waiting>) {
        if self.available.load(Ordering::SeqCst) == 0 {
            return;
        }
        let take = |one: &mut Waiter| {
            (one.stage == Stage::Waiting).then(|| {
                one.stage = Stage::Woken;
                one.waker.clone()
            })
        };
        if self.fair {
            // One that was woken already wakes the next when it has taken its own.
            let next = queue.first().and_then(take);
            drop(queue);
            if let Some(next) = next {
                next.wake();
            }
        } else {
            let all: Vec<Waker> = queue.places.iter_mut().filter_map(take).collect();
            drop(queue);
            all.into_iter().for_each(Waker::wake);
        }
    }

    /// Gives up a place; whoever is next may have to be woken in its stead.
    pub(crate) fn leave(&self, place: &mut Place) {
        let Some(mine) = place.0.take() else { return };
        let mut queue = self.queue.lock();
        if queue.remove(mine) {
            self.waiters.fetch_sub(1, Ordering::SeqCst);
        }
        self.wake_in(queue);
    }

    /// Passes over those that were woken and have not looked, now that all that was woken has run. True while there is
    /// anybody to look after.
    fn pass_on(&self) -> bool {
        let mut queue = self.queue.lock();
        for one in &mut queue.places {
            if one.stage == Stage::Woken {
                one.stage = Stage::Idle;
                self.waiters.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let anybody = queue.first().is_some();
        self.watched.store(anybody, Ordering::Relaxed);
        self.wake_in(queue);
        anybody
    }

    /// Gives back `n`, and wakes whoever waits for it.
    pub(crate) fn give(&self, n: u32) {
        if self.give_quietly(n) {
            self.wake();
        }
    }

    /// Gives back `n`; true if somebody waits, who is to be woken at some time.
    fn give_quietly(&self, n: u32) -> bool {
        let more = |available: u32| Some(available.saturating_add(n));
        let _ = self
            .available
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, more);
        self.waiters.load(Ordering::SeqCst) > 0
    }

    /// Gives back `n`. Whoever waits is woken at once if there is enough by now; otherwise this is true the first
    /// time, and [`pay`](Credit::pay) is to be called as soon as there is nothing else to do.
    fn give_some(&self, n: u32) -> bool {
        if !self.give_quietly(n) {
            return false;
        }
        if self.available.load(Ordering::Relaxed) >= self.enough {
            self.wake();
            return false;
        }
        !self.owed.swap(true, Ordering::Relaxed)
    }

    /// Wakes whoever waits though something is available.
    fn pay(&self) {
        self.owed.store(false, Ordering::Relaxed);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        self.wake_in(self.queue.lock());
    }
}

/// Credit for which somebody waits in an isolate, which looks after it before it sleeps.
pub(crate) struct Awaited(Arc<Lane>, Kind);

impl Awaited {
    /// One, unless somebody looks after it already.
    pub(crate) fn new(lane: &Arc<Lane>, kind: Kind) -> Option<Awaited> {
        let first = !lane.credit(kind).watched.swap(true, Ordering::Relaxed);
        first.then(|| Awaited(lane.clone(), kind))
    }

    /// The one that waits is no isolate's: nobody looks after it, until one of an isolate waits.
    pub(crate) fn nobody(self) {
        self.0
            .credit(self.1)
            .watched
            .store(false, Ordering::Relaxed);
    }

    /// Passes over whoever does not look. True while there is anybody to look after.
    pub(crate) fn pass_on(&self) -> bool {
        self.0.credit(self.1).pass_on()
    }
}

/// A wake-up that a receiver owes to one of its senders.
pub(crate) struct Owed(Arc<Lane>, Kind);

impl Owed {
    pub(crate) fn pay(self) {
        self.0.credit(self.1).pay();
    }
}

/// What one sending isolate may have under way to one receiver.
pub(crate) struct Lane {
    /// The lane's number on a link.
    pub(crate) number: u32,
    /// Messages that the receiver has not begun.
    pub(crate) messages: Credit,
    /// Calls that have not ended.
    pub(crate) calls: Credit,
    sequence: AtomicU64,
}

impl Lane {
    /// Of an isolate, or of all senders that are none.
    pub(crate) fn new(number: u32, (messages, calls): (u32, u32), isolate: bool) -> Arc<Lane> {
        Arc::new(Lane {
            number,
            messages: Credit::new(messages, isolate),
            calls: Credit::new(calls, isolate),
            sequence: AtomicU64::new(0),
        })
    }

    /// The number of the next accepted message.
    pub(crate) fn next_sequence(&self) -> u64 {
        if !self.messages.fair {
            return self.sequence.fetch_add(1, Ordering::Relaxed);
        }
        // Of one isolate, whose thread alone counts.
        let next = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(next + 1, Ordering::Relaxed);
        next
    }

    pub(crate) fn credit(&self, kind: Kind) -> &Credit {
        match kind {
            Kind::Message => &self.messages,
            Kind::Call => &self.calls,
        }
    }
}

/// Which bound a message counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Until the receiver begins it.
    Message,
    /// Until it has ended.
    Call,
}

/// Of a lane in this process, in use; given back when dropped.
pub(crate) struct Taken {
    lane: Arc<Lane>,
    kind: Kind,
    count: u32,
}

/// Credit in use; given back when dropped.
pub(crate) enum Permit {
    Local(Taken),
    /// Of a lane at the other end of a link.
    Remote(RemotePermit),
}

/// One of a lane at the other end of a link.
pub(crate) struct RemotePermit {
    link: Arc<crate::process::link::Link>,
    lane: u32,
}

impl Taken {
    /// One that was taken from this.
    pub(crate) fn of(lane: Arc<Lane>, kind: Kind) -> Taken {
        Taken {
            lane,
            kind,
            count: 1,
        }
    }

    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Leaves it to the other side of a link to give it back.
    pub(crate) fn hand_over(mut self) {
        self.count = 0;
    }

    /// Whether its sender hardly notices if it comes back later, together with others.
    pub(crate) fn may_wait(&self) -> bool {
        self.lane.credit(self.kind).enough >= 8 * TOGETHER
    }

    /// Gives all of these back, those of one lane together.
    pub(crate) fn give_back(all: &mut Vec<Taken>) {
        while let Some(mut taken) = all.pop() {
            while let Some(mut other) = all.pop_if(|other| taken.is_like(other)) {
                taken.count += std::mem::take(&mut other.count);
            }
        }
    }

    fn is_like(&self, other: &Taken) -> bool {
        Arc::ptr_eq(&self.lane, &other.lane) && self.kind == other.kind
    }
}

impl Permit {
    /// One of a lane at the other end of a link.
    pub(crate) fn remote(link: &Arc<crate::process::link::Link>, lane: u32) -> Permit {
        Permit::Remote(RemotePermit {
            link: link.clone(),
            lane,
        })
    }

    /// Gives it back, in time together with others.
    pub(crate) fn spend(self, local: &Local) {
        match self {
            Permit::Local(taken) if taken.may_wait() => local.spend(taken),
            Permit::Local(taken) => drop(taken),
            Permit::Remote(permit) => drop(permit),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let credit = self.lane.credit(self.kind);
        if self.count == 0 || !credit.give_some(self.count) {
            return;
        }
        match Local::try_current() {
            Some(local) => local.owe(Owed(self.lane.clone(), self.kind)),
            None => credit.pay(),
        }
    }
}

impl Drop for RemotePermit {
    fn drop(&mut self) {
        self.link.return_credit(self.lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(credit: &Credit, place: &mut Place) -> bool {
        credit
            .poll_take(&mut Context::from_waker(Waker::noop()), place, false)
            .is_ready()
    }

    #[test]
    fn waiters_are_served_in_order_and_one_that_leaves_hands_on_its_turn() {
        let credit = Credit::new(1, true);
        let (mut a, mut b, mut c) = (Place::default(), Place::default(), Place::default());
        assert!(poll(&credit, &mut a));
        assert!(!poll(&credit, &mut b));
        assert!(!poll(&credit, &mut c));
        credit.give(1);
        assert!(!poll(&credit, &mut c), "c must not overtake b");
        assert!(!credit.try_take(), "a newcomer must not overtake b");
        credit.leave(&mut b);
        assert!(poll(&credit, &mut c));
        assert!(!credit.try_take());
        credit.give(2);
        assert!(credit.try_take() && credit.try_take() && !credit.try_take());
    }

    #[test]
    fn one_that_does_not_look_when_it_is_its_turn_is_passed_over_until_it_does() {
        let credit = Credit::new(1, true);
        assert!(credit.try_take());
        let (mut a, mut b, mut c) = (Place::default(), Place::default(), Place::default());
        assert!(!poll(&credit, &mut a) && !poll(&credit, &mut b) && !poll(&credit, &mut c));
        credit.give(1);
        assert!(!poll(&credit, &mut b), "a was not asked to look for long");
        assert!(credit.pass_on());
        assert!(poll(&credit, &mut b), "a is asleep");
        credit.give(1);
        assert!(poll(&credit, &mut c));
        assert!(!credit.pass_on(), "nobody is left but a");
        credit.give(1);
        assert!(credit.try_take(), "a newcomer does not wait for a either");
        let mut d = Place::default();
        assert!(!poll(&credit, &mut a) && !poll(&credit, &mut d));
        credit.give(1);
        assert!(!poll(&credit, &mut d), "a has its place again");
        assert!(poll(&credit, &mut a));
        credit.leave(&mut d);
        credit.give(1);
        assert!(credit.try_take());
    }

    #[test]
    fn one_that_holds_up_the_others_goes_first() {
        let credit = Credit::new(1, true);
        assert!(credit.try_take());
        let (mut a, mut b) = (Place::default(), Place::default());
        assert!(!poll(&credit, &mut a));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(credit.poll_take(&mut cx, &mut b, true).is_pending());
        credit.give(1);
        assert!(!poll(&credit, &mut a));
        assert!(credit.poll_take(&mut cx, &mut b, true).is_ready());
    }

    #[test]
    fn of_senders_that_are_no_isolates_whoever_looks_takes() {
        let credit = Credit::new(1, false);
        assert!(credit.try_take());
        let (mut a, mut b) = (Place::default(), Place::default());
        assert!(!poll(&credit, &mut a) && !poll(&credit, &mut b));
        credit.give(1);
        assert!(poll(&credit, &mut b));
        credit.give(1);
        assert!(credit.try_take());
        credit.leave(&mut a);
    }

    #[test]
    fn who_waits_is_woken_for_half_of_it_or_when_the_receiver_has_nothing_else_to_do() {
        struct Count(AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(count.clone());
        let woken = || count.0.swap(0, Ordering::SeqCst);
        let credit = Credit::new(8, true);
        for _ in 0..8 {
            assert!(credit.try_take());
        }
        let mut place = Place::default();
        let wait = |place: &mut Place| {
            credit
                .poll_take(&mut Context::from_waker(&waker), place, false)
                .is_ready()
        };
        assert!(!wait(&mut place));
        assert!(credit.give_some(1), "it owes a wake-up now");
        assert!(!credit.give_some(1) && !credit.give_some(1), "and knows");
        assert_eq!(woken(), 0);
        credit.pay();
        assert_eq!(woken(), 1);
        assert!(wait(&mut place));
        while credit.try_take() {}
        assert!(!wait(&mut place));
        for _ in 0..3 {
            credit.give_some(1);
        }
        assert_eq!(woken(), 0);
        assert!(!credit.give_some(1));
        assert_eq!(woken(), 1, "half of it is there");
        // With nobody there, nothing is owed.
        assert!(wait(&mut place));
        assert!(!credit.give_some(1) && woken() == 0);
    }

    #[test]
    fn a_permit_gives_back_what_it_took() {
        let lane = Lane::new(0, (1, 1), true);
        assert!(lane.calls.try_take());
        drop(Taken::of(lane.clone(), Kind::Call));
        assert!(lane.calls.try_take());
    }

    #[test]
    fn one_that_is_handed_over_gives_back_nothing_and_keeps_nothing() {
        let lane = Lane::new(0, (1, 1), true);
        assert!(lane.messages.try_take());
        Taken::of(lane.clone(), Kind::Message).hand_over();
        assert!(!lane.messages.try_take());
        assert_eq!(
            Arc::strong_count(&lane),
            1,
            "the lane must go with its sender"
        );
    }
}
