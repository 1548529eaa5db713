//! What the tests' oracle is told: who began, who was reported to have ended, and what was promised and did not come true.
//!
//! Kept beside what it watches and used by nothing, so that a mistake there is not repeated here. One for the whole process. Without the feature
//! `fault-points` this is nothing at all. The numbers are those of the list of what must hold after every fault (docs/faults.md).

#[cfg(feature = "fault-points")]
pub use on::verdict;
#[cfg(feature = "fault-points")]
pub(crate) use on::{
    began, forgotten, link_ended, not_spawned, of_child, reported, returned, taken_over,
};

#[cfg(feature = "fault-points")]
mod on {
    use crate::{Error, ErrorKind, Exit, IsolateId, Origin};
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use std::time::Duration;

    /// How late a spawn may say that it was too late: the catalogue's 100 ms, and what a busy machine adds.
    const LATE: Duration = Duration::from_millis(1_100);

    struct Ledger {
        /// By id: where it is in the tree, whose it is, of which nursery.
        alive: BTreeMap<IsolateId, (String, IsolateId, u64)>,
        reported: BTreeMap<IsolateId, u32>,
        wrong: Vec<String>,
    }

    static LEDGER: Mutex<Ledger> = Mutex::new(Ledger {
        alive: BTreeMap::new(),
        reported: BTreeMap::new(),
        wrong: Vec::new(),
    });

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
        let mut ledger = LEDGER.lock();
        let path = &origin.path;
        if ledger.alive.remove(&origin.id).is_none() {
            let text =
                format!("O7: `{path}` is reported, who had not begun or was reported before");
            ledger.wrong.push(text);
        }
        let times = ledger.reported.entry(origin.id).or_default();
        *times += 1;
        let times = *times;
        let mut wrong = |text: String| ledger.wrong.push(text);
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

    /// A nursery returns.
    pub(crate) fn returned(owner: &Origin, nursery: u64) {
        let mut ledger = LEDGER.lock();
        let left = ledger.alive.values();
        let left = left.filter(|(_, of, at)| (*of, *at) == (owner.id, nursery));
        let left: Vec<String> = left.map(|(path, ..)| path.clone()).collect();
        if !left.is_empty() {
            let text = format!("O9: a nursery of `{}` returned before {left:?}", owner.path);
            ledger.wrong.push(text);
        }
    }

    /// A spawn has failed.
    pub(crate) fn not_spawned(name: &str, took: Duration, bound: Duration, error: &Error) {
        let mut ledger = LEDGER.lock();
        if took > bound + LATE {
            let text = format!("O5: the spawn of `{name}` took {took:?}, its bound was {bound:?}");
            ledger.wrong.push(text);
        }
        if let ErrorKind::Spawn(stage) = error.kind()
            && stage.is_empty()
        {
            let text = format!("O6: the spawn of `{name}` failed at no stage: {error}");
            ledger.wrong.push(text);
        }
    }

    /// A link is no more, with so many callers whom nobody has told.
    pub(crate) fn link_ended(unanswered: usize) {
        if unanswered > 0 && !std::thread::panicking() {
            let text = format!("O5: {unanswered} calls of a link were never answered");
            LEDGER.lock().wrong.push(text);
        }
    }

    /// A forked process ends: says on its standard error what did not hold in it, where whoever runs the test looks for it.
    pub(crate) fn of_child() {
        for wrong in verdict() {
            eprintln!("the oracle: {wrong}");
        }
    }

    /// What did not hold so far, and which isolates nobody has reported: none once every tree of this process has ended.
    pub fn verdict() -> Vec<String> {
        let mut ledger = LEDGER.lock();
        let mut wrong = std::mem::take(&mut ledger.wrong);
        let alive = std::mem::take(&mut ledger.alive);
        let text = |path| format!("O7: the end of `{path}` was never reported");
        wrong.extend(alive.into_values().map(|(path, ..)| text(path)));
        wrong
    }
}
