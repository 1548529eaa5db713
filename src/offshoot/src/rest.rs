//! Whether isolates are at rest: nothing that they have accepted is queued, running or under way, so that they can be closed and nothing
//! is lost. The argument, and what it is instead of, stands in `docs/decisions/ends.md`.
//!
//! [`Rest`] is what one isolate says of itself. [`Waves`] is how a nursery finds out that all of its children are at rest at the same time,
//! though it looks at one after the other.

use offshoot_mailbox::List;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// What an isolate says of itself, and others look at.
#[derive(Default)]
pub(crate) struct Rest {
    /// Odd while it is at rest, but for what its mailbox has. Another number each time that it has worked.
    word: AtomicU64,
    /// Its owner is to be told when it is at rest.
    watched: AtomicBool,
}

impl Rest {
    /// Says that it is at rest: all that it was asked is done, all that it sends is sent. True if its owner waits for that.
    ///
    /// By its own thread.
    pub(crate) fn begin(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        debug_assert!(word.is_multiple_of(2), "it is at rest already");
        // In one order with the load, as `look` has it the other way round: one of both sees the other.
        self.word.store(word + 1, Ordering::SeqCst);
        self.watched.load(Ordering::SeqCst) && self.watched.swap(false, Ordering::SeqCst)
    }

    /// Says that it works. Before it takes anything out of its mailbox; by its own thread.
    pub(crate) fn end(&self) {
        let word = self.word.load(Ordering::Relaxed);
        debug_assert!(!word.is_multiple_of(2), "it is not at rest");
        self.word.store(word + 1, Ordering::Relaxed);
        // Who sees that something was taken sees this, too.
        fence(Ordering::Release);
    }

    /// Its number, as it is now.
    pub(crate) fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// Its number if it is at rest, with nothing in its mailbox. Else its owner is told once it is.
    pub(crate) fn look<N: offshoot_mailbox::Node>(&self, inbox: &List<N>) -> Option<u64> {
        let look = || {
            let empty = inbox.is_empty();
            fence(Ordering::Acquire);
            let word = self.word.load(Ordering::SeqCst);
            (empty && !word.is_multiple_of(2)).then_some(word)
        };
        look().or_else(|| {
            self.watched.store(true, Ordering::SeqCst);
            look()
        })
    }
}

/// Looks at all members again and again, until none has worked between two looks.
///
/// In each wave each member is seen at rest once, at some time; a wave begins when the last has seen all. Who has the same number in
/// two waves has not worked in between. So all are at rest at the moment between these two, and nobody of them has anything under way, since
/// it would not be at rest, or else who is to take it would not.
#[derive(Default)]
pub(crate) struct Waves<K> {
    /// Of this wave.
    number: u64,
    /// What was seen in the one before.
    before: BTreeMap<K, u64>,
}

impl<K: Ord + Copy> Waves<K> {
    /// The number of the next wave.
    pub(crate) fn next(&self) -> u64 {
        self.number
    }

    /// True once all of these are at rest. `look` gives the number of one in the wave with this number, or `None` and
    /// has this be asked again when it is at rest.
    ///
    /// A member may be missing in a later wave, as one that has ended, but none may be new.
    pub(crate) fn are_at_rest(
        &mut self,
        members: &[K],
        mut look: impl FnMut(K, u64) -> Option<u64>,
    ) -> bool {
        loop {
            // All of them, so that each is watched.
            let seen: Vec<Option<u64>> = members
                .iter()
                .map(|member| look(*member, self.number))
                .collect();
            let Some(seen) = seen.into_iter().collect::<Option<Vec<u64>>>() else {
                return false;
            };
            let seen: BTreeMap<K, u64> = members.iter().copied().zip(seen).collect();
            let same = seen
                .iter()
                .all(|(member, word)| self.before.get(member) == Some(word));
            self.before = seen;
            self.number += 1;
            if same {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashSet, VecDeque};

    /// How many messages each member has in its mailbox, how many it may still send to each of the others, its number, and what
    /// was seen of it in the waves so far.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct World {
        mail: Vec<u8>,
        /// How often a message that is run may send another one.
        left: u8,
        working: Vec<bool>,
        words: Vec<u64>,
        /// Of the wave before, and of this one.
        waves: [Vec<Option<u64>>; 2],
    }

    impl World {
        fn new(members: usize, mail: usize, left: u8) -> World {
            let mut world = World {
                mail: vec![0; members],
                left,
                working: vec![false; members],
                words: vec![1; members],
                waves: [vec![None; members], vec![None; members]],
            };
            world.mail[mail] = 1;
            world
        }

        fn is_at_rest(&self) -> bool {
            self.mail.iter().all(|mail| *mail == 0) && !self.working.contains(&true)
        }

        /// All that can happen next. `waves`: how many it takes to believe it.
        fn next(&self, waves: usize) -> (Vec<World>, bool) {
            let members = self.mail.len();
            let mut next = Vec::new();
            let mut told = false;
            for one in 0..members {
                if !self.working[one] && self.mail[one] > 0 {
                    let mut world = self.clone();
                    world.mail[one] -= 1;
                    world.working[one] = true;
                    world.words[one] += 1;
                    next.push(world);
                }
                if self.working[one] {
                    let mut world = self.clone();
                    world.working[one] = false;
                    world.words[one] += 1;
                    next.push(world);
                    for other in (0..members).filter(|_| self.left > 0) {
                        let mut world = self.clone();
                        world.mail[other] += 1;
                        world.left -= 1;
                        next.push(world);
                    }
                }
                let quiet = !self.working[one] && self.mail[one] == 0;
                if quiet && self.waves[1][one].is_none() {
                    let mut world = self.clone();
                    world.waves[1][one] = Some(self.words[one]);
                    if !world.waves[1].contains(&None) {
                        told |= waves == 1 || world.waves[0] == world.waves[1];
                        world.waves[0] =
                            std::mem::replace(&mut world.waves[1], vec![None; members]);
                    }
                    next.push(world);
                }
            }
            (next, told)
        }
    }

    /// Whether it is ever believed while something is left to do, over all orders in which things can happen.
    fn is_ever_wrong(waves: usize) -> bool {
        let mut queue = VecDeque::new();
        let mut known = HashSet::new();
        for first in 0..3 {
            queue.push_back(World::new(3, first, 3));
        }
        let mut wrong = false;
        while let Some(world) = queue.pop_front() {
            let (next, told) = world.next(waves);
            wrong |= told && !world.is_at_rest();
            for world in next {
                // Beyond that it is the same again.
                if world.words.iter().all(|word| *word < 10) && known.insert(world.clone()) {
                    queue.push_back(world);
                }
            }
        }
        assert!(known.len() > 1_000, "{} states", known.len());
        wrong
    }

    #[test]
    fn two_equal_waves_are_never_wrong() {
        assert!(!is_ever_wrong(2));
    }

    #[test]
    fn one_wave_alone_is() {
        assert!(is_ever_wrong(1));
    }

    #[test]
    fn a_member_that_has_worked_between_two_waves_is_looked_at_again() {
        let mut waves = Waves::default();
        let mut looks = Vec::new();
        let words = [1, 3, 3];
        let rest = waves.are_at_rest(&[7, 8], |member, wave| {
            looks.push((member, wave));
            Some(if member == 7 { words[wave as usize] } else { 1 })
        });
        assert!(rest);
        assert_eq!(looks.len(), 6, "{looks:?}");
    }

    #[test]
    fn all_are_looked_at_though_one_is_not_at_rest() {
        let mut waves = Waves::default();
        let mut looked = Vec::new();
        let mut look = |member: u32, _| {
            looked.push(member);
            (member != 1).then_some(1)
        };
        assert!(!waves.are_at_rest(&[1, 2], &mut look));
        assert!(!waves.are_at_rest(&[1, 2], &mut look));
        assert_eq!(looked, [1, 2, 1, 2]);
        // It has ended.
        assert!(waves.are_at_rest(&[2], |_, _| Some(1)));
    }

    #[test]
    fn who_watches_is_told_once() {
        let rest = Rest::default();
        let inbox = List::<offshoot_mailbox::Letter<dyn crate::isolate::job::Mail>>::new();
        assert_eq!(rest.look(&inbox), None);
        assert!(rest.begin());
        assert_eq!(rest.look(&inbox), Some(1));
        rest.end();
        assert!(!rest.begin(), "nobody has asked since");
        assert_eq!(rest.look(&inbox), Some(3));
    }
}
