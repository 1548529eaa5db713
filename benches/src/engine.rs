//! How it is measured: subjects in turns, round after round, until the time is over.

use crate::record::{Kind, Measured, Recorder, Row, Side};
use std::time::{Duration, Instant};

/// What went wrong with one subject; its rows are left out, and the report says why.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One round of measuring.
pub type Round = Box<dyn FnMut(&mut Recorder<'_>) -> Result<(), Failure>>;

/// One thing to be measured: it fills its rows, a few samples of each per round.
pub struct Subject {
    /// By what a user picks it, as in `--vs std,fork`.
    pub key: &'static str,
    /// What it gives.
    pub rows: Vec<Row>,
    /// Measures for one round, which takes from some milliseconds to a tenth of a second.
    pub round: Round,
}

impl Subject {
    /// A subject of these rows.
    pub fn new(
        key: &'static str,
        rows: impl Into<Vec<Row>>,
        round: impl FnMut(&mut Recorder<'_>) -> Result<(), Failure> + 'static,
    ) -> Subject {
        Subject {
            key,
            rows: rows.into(),
            round: Box::new(round),
        }
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("key", &self.key)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

/// A question and who is asked.
#[derive(Debug)]
pub struct Question {
    /// Its name, as on the command line.
    pub name: &'static str,
    /// What is asked, in a line.
    pub asks: &'static str,
    /// Who is asked.
    pub subjects: Vec<Subject>,
}

impl Question {
    /// Leaves only what concerns `side` (if any is given), and of the floors and peers only those
    /// in `others` (if any are given). A row whose floor is gone has no ratio.
    pub fn keep(&mut self, side: Option<Side>, others: Option<&[String]>) {
        self.subjects.retain(|subject| {
            let wanted = |row: &Row| {
                side.is_none_or(|side| row.side == side)
                    && (row.kind == Kind::Offshoot
                        || others.is_none_or(|keys| keys.iter().any(|key| key == subject.key)))
            };
            subject.rows.iter().any(wanted)
        });
    }
}

/// For how long each question is asked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After this a question gets no new round, once it had `rounds_min`.
    pub time: Duration,
    /// The fewest rounds, whatever they take.
    pub rounds_min: usize,
    /// The most rounds.
    pub rounds_max: usize,
}

impl Default for Limits {
    /// Ten seconds, but three rounds at least.
    fn default() -> Limits {
        Limits {
            time: Duration::from_secs(10),
            rounds_min: 3,
            rounds_max: 1_000,
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The question's name.
    pub name: &'static str,
    /// What was asked.
    pub asks: &'static str,
    /// What was measured, in the order of the subjects.
    pub rows: Vec<Measured>,
    /// Who could not be asked, and why.
    pub failed: Vec<(&'static str, String)>,
    /// How many rounds there were.
    pub rounds: usize,
}

impl Answer {
    /// The row of this name.
    pub fn row(&self, name: &str) -> Option<&Measured> {
        self.rows.iter().find(|row| row.row.name == name)
    }

    /// The floor of a row, if it has one and that was measured.
    pub fn floor_of(&self, row: &Measured) -> Option<&Measured> {
        self.row(row.row.floor.as_deref()?)
    }
}

/// Asks one question. `progress` is told how much of it is done, from 0 to 1.
///
/// A first round warms up and is forgotten. Then all subjects have their turn in each round, each
/// round beginning with another one, so that what drifts meets all of them alike.
pub fn ask(question: Question, limits: Limits, mut progress: impl FnMut(f64)) -> Answer {
    let Question {
        name,
        asks,
        subjects,
    } = question;
    let mut lanes: Vec<Lane> = subjects.into_iter().map(Lane::new).collect();
    let count = lanes.len();
    for (n, lane) in lanes.iter_mut().enumerate() {
        lane.round();
        lane.rows.iter_mut().for_each(Measured::reset);
        progress(0.1 * part(n + 1, count));
    }
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds < limits.rounds_max
        && (rounds < limits.rounds_min || begun.elapsed() < limits.time)
    {
        for turn in 0..count {
            lanes[(rounds + turn) % count].round();
            let in_round = part(rounds * count + turn + 1, count);
            let by_rounds = in_round / part(limits.rounds_max, 1);
            let by_time = begun.elapsed().as_secs_f64() / limits.time.as_secs_f64().max(0.001);
            let floor = in_round / part(limits.rounds_min.max(1), 1);
            progress(0.1 + 0.9 * by_rounds.max(by_time.min(floor)).min(1.0));
        }
        rounds += 1;
    }
    progress(1.0);
    let mut answer = Answer {
        name,
        asks,
        rows: Vec::new(),
        failed: Vec::new(),
        rounds,
    };
    for lane in lanes {
        match lane.failed {
            None => answer.rows.extend(lane.rows),
            Some(why) => answer.failed.push((lane.subject.key, why)),
        }
    }
    answer.rows.retain(|row| row.count() > 0);
    answer
}

struct Lane {
    subject: Subject,
    rows: Vec<Measured>,
    failed: Option<String>,
}

impl Lane {
    fn new(subject: Subject) -> Lane {
        let rows = subject.rows.iter().cloned().map(Measured::new).collect();
        Lane {
            subject,
            rows,
            failed: None,
        }
    }

    fn round(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let rows = &mut self.rows;
        if let Err(failure) = (self.subject.round)(&mut Recorder { rows }) {
            self.failed = Some(failure.to_string());
        }
        self.rows.iter_mut().for_each(Measured::end_round);
    }
}

#[allow(clippy::cast_precision_loss)] // A progress bar has a hundred steps.
fn part(n: usize, of: usize) -> f64 {
    n as f64 / of.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    fn subject(key: &'static str, kind: Kind, order: &Rc<RefCell<Vec<&'static str>>>) -> Subject {
        let order = order.clone();
        Subject::new(key, [Row::new(kind, Side::Thread, key)], move |into| {
            order.borrow_mut().push(key);
            into.time(0, Duration::from_nanos(100));
            Ok(())
        })
    }

    fn limits(rounds: usize) -> Limits {
        Limits {
            time: Duration::ZERO,
            rounds_min: rounds,
            rounds_max: rounds,
        }
    }

    #[test]
    fn subjects_take_turns_and_each_begins_a_round() {
        let order = Rc::default();
        let question = Question {
            name: "q",
            asks: "?",
            subjects: vec![
                subject("a", Kind::Offshoot, &order),
                subject("b", Kind::Floor, &order),
            ],
        };
        let mut told = Vec::new();
        let answer = ask(question, limits(2), |done| told.push(done));
        // The first two warm up.
        assert_eq!(order.borrow().as_slice(), ["a", "b", "a", "b", "b", "a"]);
        assert_eq!(answer.rounds, 2);
        assert_eq!(answer.row("a").unwrap().count(), 2);
        assert!(told.is_sorted() && told.last() == Some(&1.0), "{told:?}");
    }

    #[test]
    fn one_that_fails_is_named_and_the_rest_is_measured() {
        let order = Rc::default();
        let question = Question {
            name: "q",
            asks: "?",
            subjects: vec![
                subject("a", Kind::Offshoot, &order),
                Subject::new("bad", [Row::new(Kind::Peer, Side::Thread, "bad")], |_| {
                    Err("no such program".into())
                }),
            ],
        };
        let answer = ask(question, limits(3), |_| {});
        assert_eq!(answer.failed, [("bad", "no such program".to_owned())]);
        assert_eq!(answer.row("a").unwrap().count(), 3);
        assert!(answer.row("bad").is_none());
    }

    #[test]
    fn others_are_picked_by_their_keys_and_ours_always_stay() {
        let order = Rc::default();
        let subjects = || {
            vec![
                subject("a", Kind::Offshoot, &order),
                subject("std", Kind::Floor, &order),
                subject("fork", Kind::Floor, &order),
            ]
        };
        let keys = |others: Option<&[String]>, side| {
            let (name, asks) = ("q", "?");
            let mut question = Question {
                name,
                asks,
                subjects: subjects(),
            };
            question.keep(side, others);
            let keys: Vec<_> = question.subjects.iter().map(|one| one.key).collect();
            keys
        };
        assert_eq!(keys(Some(&["fork".to_owned()]), None), ["a", "fork"]);
        assert_eq!(keys(None, Some(Side::Thread)), ["a", "std", "fork"]);
        assert!(keys(None, Some(Side::Process)).is_empty());
    }
}
