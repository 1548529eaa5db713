//! The dialogues that were opened in a nursery, for which it waits.

use super::tie::{Tie, TieWatch};
use crate::isolate::local::Local;
use crate::life::Watch;
use crate::time::timed_out;
use crate::{Canceller, Error};
use offshoot_sys::clock;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Held {
    ties: RefCell<Vec<(TieWatch, Watch)>>,
    /// Until when the nursery waits for what was cancelled, and the timer for that.
    until: RefCell<Option<Bound>>,
}

struct Bound {
    local: Rc<Local>,
    at: u64,
    after: u64,
    timer: Option<(u64, u64)>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.local.remove_timer(timer);
        }
    }
}

fn is_over(tie: &Tie) -> bool {
    tie.is_over() || tie.far.exit().is_some()
}

impl Held {
    pub(super) fn add(&self, tie: &Arc<Tie>) {
        let mut ties = self.ties.borrow_mut();
        // Those that are over go whenever the list would have to grow.
        if ties.len() == ties.capacity() {
            ties.retain(|(watch, _)| !is_over(watch.tie()));
        }
        ties.push((TieWatch::new(tie), Watch::new(tie.far.clone())));
    }

    /// Cancels those that are not over.
    pub(crate) fn halt(&self, by: &Canceller) {
        // Taken out: whoever is woken may come here.
        let ties: Vec<Arc<Tie>> = self
            .ties
            .borrow()
            .iter()
            .map(|(watch, _)| watch.tie().clone())
            .collect();
        for tie in ties.iter().filter(|tie| !is_over(tie)) {
            tie.halt(by.clone());
        }
    }

    /// Cancels those that are not over and waits for them, no longer than `after` ns. Ready with what is left then.
    pub(crate) fn poll_over(
        &self,
        cx: &mut Context<'_>,
        local: &Rc<Local>,
        after: u64,
    ) -> Poll<Vec<Error>> {
        {
            let mut ties = self.ties.borrow_mut();
            ties.retain_mut(|(tie, life)| {
                tie.poll(cx, |state| state.over.is_some().then_some(()))
                    .is_pending()
                    && life.poll(cx, |life| life.exit().is_some()).is_pending()
            });
            if ties.is_empty() {
                self.until.take();
                return Poll::Ready(Vec::new());
            }
        }
        let mut until = self.until.borrow_mut();
        let bound = until.get_or_insert_with(|| {
            self.halt(&Canceller::Nursery(local.shared.life.origin()));
            Bound {
                local: local.clone(),
                at: clock::now().saturating_add(after),
                after,
                timer: None,
            }
        });
        if clock::now() < bound.at {
            match bound.timer {
                Some(timer) => local.set_timer(timer, cx.waker()),
                None => bound.timer = Some(local.add_timer(bound.at, cx.waker().clone())),
            }
            return Poll::Pending;
        }
        let late = |tie: &TieWatch| {
            let origin = tie.tie().far.origin();
            let what = format!("a dialogue with isolate `{origin}`, which was cancelled,");
            timed_out(&what, Duration::from_nanos(bound.after))
        };
        let left = self.ties.take().iter().map(|(tie, _)| late(tie)).collect();
        Poll::Ready(left)
    }
}
