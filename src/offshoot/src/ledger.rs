//! What the tests' oracle is told: who began, who was reported to have ended, and what was promised and did not come true.
//!
//! Kept beside what it watches and used by nothing, so that a mistake there is not repeated here. One for the whole process. Without the feature
//! `fault-points` this is nothing at all. The numbers are those of the list of what must hold after every fault (docs/faults.md).

#[cfg(feature = "fault-points")]
pub(crate) use on::{
    began, capture, forgotten, link_ended, not_spawned, of_child, reported, returned, taken_over,
};
#[cfg(feature = "fault-points")]
pub use on::{captured, verdict};

#[cfg(feature = "fault-points")]
mod on {
    use crate::{Error, ErrorKind, Exit, IsolateId, Origin};
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// How late a spawn may say that it was too late: the catalogue's 100 ms, and what a busy machine adds.
    const LATE: Duration = Duration::from_millis(1_100);

    struct Ledger {
        /// By id: where it is in the tree, whose it is, of which nursery.
        alive: BTreeMap<IsolateId, (String, IsolateId, u64)>,
        reported: BTreeMap<IsolateId, u32>,
        wrong: Vec<String>,
    }

    static LEDGER: Mutex<Ledger> = Mutex::new(Ledger::new());

    impl Ledger {
        const fn new() -> Ledger {
            Ledger {
                alive: BTreeMap::new(),
                reported: BTreeMap::new(),
                wrong: Vec::new(),
            }
        }

        fn reported(&mut self, origin: &Origin, exit: &Exit, refuses: bool, dead: bool) {
            let path = &origin.path;
            if self.alive.remove(&origin.id).is_none() {
                let text =
                    format!("O7: `{path}` is reported, who had not begun or was reported before");
                self.wrong.push(text);
            }
            let times = self.reported.entry(origin.id).or_default();
            *times += 1;
            let times = *times;
            let mut wrong = |text: String| self.wrong.push(text);
            if times > 1 {
                wrong(format!("O7: `{path}` was reported {times} times"));
            }
            if !dead && !matches!(exit, Exit::Abandoned { .. } | Exit::Unkillable { .. }) {
                wrong(format!("O9: `{path}` is reported and still there: {exit}"));
            }
            if !refuses {
                wrong(format!(
                    "O10: `{path}` has ended ({exit}) and takes messages"
                ));
            }
            let named = match exit {
                Exit::Killed { name, .. } => !name.is_empty(),
                Exit::Failed(error) => !error.message().is_empty(),
                Exit::Lost { why } => !why.is_empty(),
                Exit::Abandoned { doing, .. } => !doing.is_empty(),
                _ => true,
            };
            if !named {
                wrong(format!("O6: the end of `{path}` has no cause: {exit:?}"));
            }
        }

        fn returned(&mut self, owner: &Origin, nursery: u64) {
            let left = self.alive.values();
            let left = left.filter(|(_, of, at)| (*of, *at) == (owner.id, nursery));
            let left: Vec<String> = left.map(|(path, ..)| path.clone()).collect();
            if !left.is_empty() {
                let text = format!("O9: a nursery of `{}` returned before {left:?}", owner.path);
                self.wrong.push(text);
            }
        }

        fn not_spawned(&mut self, name: &str, took: Duration, bound: Duration, error: &Error) {
            if took > bound + LATE {
                let text =
                    format!("O5: the spawn of `{name}` took {took:?}, its bound was {bound:?}");
                self.wrong.push(text);
            }
            if let ErrorKind::Spawn(stage) = error.kind()
                && stage.is_empty()
            {
                let text = format!("O6: the spawn of `{name}` failed at no stage: {error}");
                self.wrong.push(text);
            }
        }

        fn link_ended(&mut self, unanswered: usize) {
            if unanswered > 0 {
                let text = format!("O5: {unanswered} calls of a link were never answered");
                self.wrong.push(text);
            }
        }

        fn verdict(&mut self) -> Vec<String> {
            let mut wrong = std::mem::take(&mut self.wrong);
            let alive = std::mem::take(&mut self.alive);
            let text = |path| format!("O7: the end of `{path}` was never reported");
            wrong.extend(alive.into_values().map(|(path, ..)| text(path)));
            wrong
        }
    }

    static CAPTURED: AtomicBool = AtomicBool::new(false);

    /// A stack is captured, which costs memory that stays.
    pub(crate) fn capture() {
        CAPTURED.store(true, Ordering::Relaxed);
    }

    /// Whether any stack was captured in this process.
    pub fn captured() -> bool {
        CAPTURED.load(Ordering::Relaxed)
    }

    /// An isolate has an owner, from here on until it is reported.
    pub(crate) fn began(origin: &Origin, owner: IsolateId, nursery: u64) {
        let entry = (origin.path.clone(), owner, nursery);
        LEDGER.lock().alive.insert(origin.id, entry);
    }

    /// It never was.
    pub(crate) fn forgotten(id: IsolateId) {
        LEDGER.lock().alive.remove(&id);
    }

    /// It has another owner.
    pub(crate) fn taken_over(id: IsolateId, owner: IsolateId, nursery: u64) {
        if let Some((_, of, at)) = LEDGER.lock().alive.get_mut(&id) {
            (*of, *at) = (owner, nursery);
        }
    }

    /// Its end is reported to its owner. `refuses`: no handle to it takes anything any more; `dead`: what stood behind it is no more.
    pub(crate) fn reported(origin: &Origin, exit: &Exit, refuses: bool, dead: bool) {
        LEDGER.lock().reported(origin, exit, refuses, dead);
    }

    /// A nursery returns.
    pub(crate) fn returned(owner: &Origin, nursery: u64) {
        LEDGER.lock().returned(owner, nursery);
    }

    /// A spawn has failed.
    pub(crate) fn not_spawned(name: &str, took: Duration, bound: Duration, error: &Error) {
        LEDGER.lock().not_spawned(name, took, bound, error);
    }

    /// A link is no more, with so many callers whom nobody has told.
    pub(crate) fn link_ended(unanswered: usize) {
        if !std::thread::panicking() {
            LEDGER.lock().link_ended(unanswered);
        }
    }

    /// A forked process ends: says on its standard error what did not hold in it, where whoever runs the test looks for it.
    pub(crate) fn of_child() {
        for wrong in verdict() {
            offshoot_sys::say::report(&format!("the oracle: {wrong}\n"));
        }
    }

    /// What did not hold so far, and which isolates nobody has reported: none once every tree of this process has ended.
    pub fn verdict() -> Vec<String> {
        LEDGER.lock().verdict()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn one(slot: u32) -> Origin {
            let id = IsolateId {
                process: 1,
                slot,
                generation: 0,
            };
            let path = format!("root/{slot}");
            Origin { path, id, pid: 1 }
        }

        fn holds_but(number: &str, wrong: impl FnOnce(&mut Ledger)) {
            let mut ledger = Ledger::new();
            for slot in 0..3 {
                let origin = one(slot);
                let entry = (origin.path.clone(), one(9).id, 4);
                ledger.alive.insert(origin.id, entry);
            }
            wrong(&mut ledger);
            for slot in 0..3 {
                if ledger.alive.contains_key(&one(slot).id) {
                    ledger.reported(&one(slot), &Exit::Completed, true, true);
                }
            }
            ledger.returned(&one(9), 4);
            let found = ledger.verdict();
            assert!(
                found.iter().all(|text| text.starts_with(number))
                    && found.is_empty() == number.is_empty(),
                "{number}: {found:?}"
            );
        }

        /// Each thing that can be wrong is said, by its number, and nothing else is.
        #[test]
        fn the_ledger_sees_each_thing_that_does_not_hold() {
            let second = Duration::from_secs(1);
            let at = |stage: &str| Error::new(ErrorKind::Spawn(stage.to_owned()), "it failed");
            let killed = |name: &str| Exit::Killed {
                signal: 9,
                name: name.to_owned(),
                core: false,
                why: None,
            };
            holds_but("", |_| {});
            holds_but("", |ledger| {
                ledger.not_spawned("x", 2 * second, second, &at("fork"))
            });
            holds_but("", |ledger| {
                ledger.reported(&one(0), &killed("SIGKILL"), true, true)
            });
            holds_but("", |ledger| ledger.returned(&one(9), 5));
            holds_but("O5", |ledger| ledger.link_ended(1));
            holds_but("O5", |ledger| {
                ledger.not_spawned("x", 3 * second, second, &at("fork"))
            });
            holds_but("O6", |ledger| {
                ledger.not_spawned("x", second, second, &at(""))
            });
            holds_but("O6", |ledger| {
                ledger.reported(&one(0), &killed(""), true, true)
            });
            holds_but("O7", |ledger| {
                for _ in 0..2 {
                    ledger.reported(&one(0), &Exit::Completed, true, true);
                }
            });
            holds_but("O7", |ledger| {
                ledger.reported(&one(7), &Exit::Completed, true, true)
            });
            holds_but("O9", |ledger| {
                ledger.reported(&one(0), &Exit::Completed, true, false)
            });
            holds_but("O9", |ledger| ledger.returned(&one(9), 4));
            holds_but("O10", |ledger| {
                ledger.reported(&one(0), &Exit::Completed, false, true)
            });
            let mut ledger = Ledger::new();
            ledger
                .alive
                .insert(one(0).id, ("root/0".to_owned(), one(9).id, 4));
            let never = ledger.verdict();
            assert!(
                never.len() == 1 && never[0].starts_with("O7: the end of `root/0` was never"),
                "{never:?}"
            );
        }
    }
}
