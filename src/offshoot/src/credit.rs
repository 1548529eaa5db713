//! Credit: how many messages and calls one isolate may have under way to another.
//!
//! Every pair of a sending isolate and a receiver has a [`Lane`]: a bound on messages that the
//! receiver has not begun, a bound on calls that have not ended, and the sequence number of what
//! was accepted. A sender that is out of credit waits; nobody else does. The receiver's queue is
//! thereby bounded by its senders' lanes and needs no bound of its own.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// A counting semaphore whose waiters are served in the order in which they came.
pub(crate) struct Credit {
    state: Mutex<State>,
}

struct State {
    available: u32,
    next: u64,
    waiting: VecDeque<(u64, Waker)>,
}

/// A place in the queue for credit. Gone when dropped.
#[derive(Default)]
pub(crate) struct Place(Option<u64>);

impl Credit {
    fn new(available: u32) -> Credit {
        Credit {
            state: Mutex::new(State {
                available,
                next: 0,
                waiting: VecDeque::new(),
            }),
        }
    }

    /// Takes one if there is one and nobody waits for it.
    pub(crate) fn try_take(&self) -> bool {
        let mut state = self.state.lock();
        let free = state.available > 0 && state.waiting.is_empty();
        if free {
            state.available -= 1;
        }
        free
    }

    /// Takes one when it is this waiter's turn.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, place: &mut Place) -> Poll<()> {
        let mut state = self.state.lock();
        let first = state.waiting.front().map(|(number, _)| *number);
        let turn = match (place.0, first) {
            (None, None) => true,
            (Some(mine), Some(first)) => mine == first,
            // A waiter that is not in the queue any more was let through by `open`.
            (Some(_), None) => true,
            (None, Some(_)) => false,
        };
        if turn && state.available > 0 {
            state.available -= 1;
            if place.0.take().is_some() {
                state.waiting.pop_front();
            }
            // There may be more than one, and the next was not woken for it.
            let next = if state.available > 0 {
                state.waiting.front().map(|(_, waker)| waker.clone())
            } else {
                None
            };
            drop(state);
            if let Some(next) = next {
                next.wake();
            }
            return Poll::Ready(());
        }
        match place.0 {
            Some(mine) => {
                if let Some((_, waker)) =
                    state.waiting.iter_mut().find(|(number, _)| *number == mine)
                {
                    waker.clone_from(cx.waker());
                }
            }
            None => {
                let number = state.next;
                state.next += 1;
                state.waiting.push_back((number, cx.waker().clone()));
                place.0 = Some(number);
            }
        }
        Poll::Pending
    }

    /// Gives up a place; whoever is next may have to be woken in its stead.
    pub(crate) fn leave(&self, place: &mut Place) {
        let Some(mine) = place.0.take() else { return };
        let mut state = self.state.lock();
        let was_first = state
            .waiting
            .front()
            .is_some_and(|(number, _)| *number == mine);
        state.waiting.retain(|(number, _)| *number != mine);
        let next = if was_first && state.available > 0 {
            state.waiting.front().map(|(_, waker)| waker.clone())
        } else {
            None
        };
        drop(state);
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Gives back `n`.
    pub(crate) fn give(&self, n: u32) {
        let mut state = self.state.lock();
        state.available = state.available.saturating_add(n);
        let next = state.waiting.front().map(|(_, waker)| waker.clone());
        drop(state);
        if let Some(next) = next {
            next.wake();
        }
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
    pub(crate) fn new(number: u32, messages: u32, calls: u32) -> Arc<Lane> {
        Arc::new(Lane {
            number,
            messages: Credit::new(messages),
            calls: Credit::new(calls),
            sequence: AtomicU64::new(0),
        })
    }

    /// The number of the next accepted message.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
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

/// Credit in use; given back when dropped.
pub(crate) enum Permit {
    /// Of a lane in this process; of none, once the other side gives it back.
    Local(Option<Arc<Lane>>, Kind),
    /// Of a lane at the other end of a link.
    Remote(Arc<crate::process::link::Link>, u32),
}

impl Permit {
    /// One of a lane in this process.
    pub(crate) fn local(lane: Arc<Lane>, kind: Kind) -> Permit {
        Permit::Local(Some(lane), kind)
    }

    /// Leaves it to the other side of a link to give it back.
    pub(crate) fn hand_over(mut self) {
        if let Permit::Local(lane, _) = &mut self {
            *lane = None;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self {
            Permit::Local(Some(lane), kind) => lane.credit(*kind).give(1),
            Permit::Local(None, _) => {}
            Permit::Remote(link, lane) => link.return_credit(*lane),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(credit: &Credit, place: &mut Place) -> bool {
        credit
            .poll_take(&mut Context::from_waker(Waker::noop()), place)
            .is_ready()
    }

    #[test]
    fn waiters_are_served_in_order_and_one_that_leaves_hands_on_its_turn() {
        let credit = Credit::new(1);
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
    fn a_permit_gives_back_what_it_took() {
        let lane = Lane::new(0, 1, 1);
        assert!(lane.calls.try_take());
        drop(Permit::local(lane.clone(), Kind::Call));
        assert!(lane.calls.try_take());
    }

    #[test]
    fn one_that_is_handed_over_gives_back_nothing_and_keeps_nothing() {
        let lane = Lane::new(0, 1, 1);
        assert!(lane.messages.try_take());
        Permit::local(lane.clone(), Kind::Message).hand_over();
        assert!(!lane.messages.try_take());
        assert_eq!(
            Arc::strong_count(&lane),
            1,
            "the lane must go with its sender"
        );
    }
}
