//! What the holder of a portal has under way here: the other side of its lanes.
//!
//! An honest holder waits for credit before it sends, so that it never has more under way than its isolate allows.
//! Whoever reads from it counts the same, gives back before it says so, and ends the connection with one that sends
//! beyond its credit: what it can fill is bounded, whatever it does.

use crate::credit::Kind;
use crate::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::collections::HashMap;

/// How many lanes of one holder may have something under way at once. Each is an isolate of its process, of which
/// there cannot be more.
const LANES_MAX: usize = 32_768;

pub(super) struct Account {
    /// Messages and calls of one lane.
    limits: (u32, u32),
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    /// Messages and calls under way, by lane.
    lanes: HashMap<u32, (u32, u32)>,
    /// What is to be answered, by correlation.
    open: HashMap<u64, (u32, Kind)>,
}

impl Account {
    pub(super) fn new(limits: (u32, u32)) -> Account {
        Account {
            limits,
            books: Mutex::default(),
        }
    }

    pub(super) fn limits(&self) -> (u32, u32) {
        self.limits
    }

    /// Notes one of this lane that has come, and with what number it is to be answered, if it is.
    ///
    /// # Errors
    /// There was no credit for it, or the number is in use: the connection is to be ended.
    pub(super) fn charge(&self, lane: u32, kind: Kind, correlation: Option<u64>) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorKind::Protocol, what));
        let mut books = self.books.lock();
        if let Some(correlation) = correlation
            && books.open.contains_key(&correlation)
        {
            return wrong(format!("the number {correlation} is in use already"));
        }
        if !books.lanes.contains_key(&lane) && books.lanes.len() >= LANES_MAX {
            return wrong(format!(
                "more than {LANES_MAX} senders have something under way"
            ));
        }
        let (messages, calls) = books.lanes.entry(lane).or_default();
        let (used, limit, what) = match kind {
            Kind::Message => (messages, self.limits.0, "messages"),
            Kind::Call => (calls, self.limits.1, "calls"),
        };
        if *used >= limit {
            return wrong(format!("lane {lane} ignores its credit of {limit} {what}"));
        }
        *used += 1;
        if let Some(correlation) = correlation {
            books.open.insert(correlation, (lane, kind));
        }
        Ok(())
    }

    /// The one of this number is about to be answered.
    pub(super) fn settle(&self, correlation: u64) {
        let mut books = self.books.lock();
        if let Some((lane, kind)) = books.open.remove(&correlation) {
            books.give_back(lane, kind);
        }
    }

    /// A message of this lane that is not answered has been begun.
    pub(super) fn begun(&self, lane: u32) {
        self.books.lock().give_back(lane, Kind::Message);
    }
}

impl Books {
    fn give_back(&mut self, lane: u32, kind: Kind) {
        let Some((messages, calls)) = self.lanes.get_mut(&lane) else {
            return;
        };
        let used = match kind {
            Kind::Message => &mut *messages,
            Kind::Call => &mut *calls,
        };
        *used = used.saturating_sub(1);
        // Kept only while something is under way, or it would grow with every sender that there ever was.
        if (*messages, *calls) == (0, 0) {
            self.lanes.remove(&lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_has_its_credit_back_when_it_was_answered_or_begun() {
        let account = Account::new((2, 1));
        account.charge(1, Kind::Message, None).expect("the first");
        account
            .charge(1, Kind::Message, Some(7))
            .expect("the second");
        assert!(account.charge(1, Kind::Message, None).is_err());
        account
            .charge(2, Kind::Message, None)
            .expect("another lane");
        account.charge(1, Kind::Call, Some(8)).expect("a call");
        let error = account.charge(1, Kind::Call, Some(9)).unwrap_err();
        assert!(
            error.message().contains("its credit of 1 calls"),
            "{error:?}"
        );
        assert!(account.charge(2, Kind::Call, Some(8)).is_err(), "in use");
        account.settle(7);
        account.settle(7);
        account.begun(1);
        account.settle(8);
        account.begun(2);
        let books = account.books.lock();
        assert!(books.lanes.is_empty() && books.open.is_empty());
    }

    #[test]
    fn the_number_of_lanes_is_bounded() {
        let account = Account::new((1, 1));
        for lane in 0..LANES_MAX as u32 {
            account.charge(lane, Kind::Message, None).expect("a lane");
        }
        assert!(account.charge(u32::MAX, Kind::Message, None).is_err());
        account.begun(0);
        account
            .charge(u32::MAX, Kind::Message, None)
            .expect("one has gone");
    }
}
