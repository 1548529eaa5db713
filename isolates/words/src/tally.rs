//! How often each word was seen: a table from bytes to counts, and its encoding.
//!
//! The words lie one after the other in a single vector, so that a new one costs no allocation of
//! its own, and a table of a million words is dropped at once. The standard map with its keyed hash
//! is as right and, for short words, half as fast.

use std::hash::{BuildHasher, RandomState};

/// A place of the table.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// The word's hash; the table's size is its mask.
    hash: u32,
    /// One more than the word's number; 0 in an empty place.
    entry: u32,
}

struct Entry {
    start: usize,
    len: usize,
    count: u64,
}

/// How often each word was seen.
pub(crate) struct Tally {
    /// A power of two, and at most half of them used.
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    text: Vec<u8>,
    /// Differs from tally to tally, so that nobody can choose words that all have one hash.
    seed: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            slots: vec![Slot::default(); 1 << 10],
            entries: Vec::new(),
            text: Vec::new(),
            seed: RandomState::new().hash_one(0),
        }
    }
}

impl Tally {
    /// Adds to the count of a word.
    pub(crate) fn add(&mut self, word: &[u8], count: u64) {
        let hash = hash(self.seed, word);
        let mask = self.slots.len() - 1;
        let mut place = hash as usize & mask;
        loop {
            let slot = self.slots[place];
            if slot.entry == 0 {
                break;
            }
            if slot.hash == hash {
                let entry = &mut self.entries[slot.entry as usize - 1];
                if &self.text[entry.start..entry.start + entry.len] == word {
                    entry.count += count;
                    return;
                }
            }
            place = (place + 1) & mask;
        }
        self.entries.push(Entry {
            start: self.text.len(),
            len: word.len(),
            count,
        });
        self.text.extend_from_slice(word);
        let entry =
            u32::try_from(self.entries.len()).expect("four thousand million words fit nowhere");
        self.slots[place] = Slot { hash, entry };
        if self.entries.len() * 2 > self.slots.len() {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let size = self.slots.len() * 4;
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); size]);
        for slot in old.into_iter().filter(|slot| slot.entry != 0) {
            let mut place = slot.hash as usize & (size - 1);
            while self.slots[place].entry != 0 {
                place = (place + 1) & (size - 1);
            }
            self.slots[place] = slot;
        }
    }

    /// True if no word was seen.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many words were seen.
    pub(crate) fn total(&self) -> u64 {
        self.entries.iter().map(|entry| entry.count).sum()
    }

    /// How many different ones.
    pub(crate) fn distinct(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The most frequent; of equals the first in the alphabet.
    pub(crate) fn top(&self, n: usize) -> Vec<(String, u64)> {
        let mut order: Vec<(u64, &[u8])> = self.iter().map(|(word, count)| (count, word)).collect();
        let by_rank = |a: &(u64, &[u8]), b: &(u64, &[u8])| b.0.cmp(&a.0).then(a.1.cmp(b.1));
        // Most words are seen once: to sort them all would take longer than to count them.
        if n < order.len() {
            order.select_nth_unstable_by(n, by_rank);
            order.truncate(n);
        }
        order.sort_unstable_by(by_rank);
        order
            .into_iter()
            .map(|(count, word)| (String::from_utf8_lossy(word).into_owned(), count))
            .collect()
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let word = |entry: &Entry| &self.text[entry.start..entry.start + entry.len];
        self.entries
            .iter()
            .map(move |entry| (word(entry), entry.count))
    }

    /// The words and their counts in parts of about `size` bytes: of each word, its count, its
    /// length and its bytes.
    pub(crate) fn encode(&self, size: usize) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        let mut part = Vec::new();
        for (word, count) in self.iter() {
            if part.len() >= size {
                parts.push(std::mem::take(&mut part));
            }
            put(count, &mut part);
            put(word.len() as u64, &mut part);
            part.extend_from_slice(word);
        }
        parts.push(part);
        parts
    }

    /// Adds the words of a part that another tally has encoded.
    ///
    /// # Panics
    /// If it was not: both sides are the same program.
    pub(crate) fn absorb(&mut self, mut part: &[u8]) {
        while !part.is_empty() {
            let count = get(&mut part);
            let len = usize::try_from(get(&mut part)).unwrap_or(usize::MAX);
            let (word, rest) = part.split_at(len);
            self.add(word, count);
            part = rest;
        }
    }
}

/// Seven bits a byte, the lowest first; most numbers here need one.
fn put(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn get(part: &mut &[u8]) -> u64 {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = part.split_first().expect("a number of a share is cut off");
        *part = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    n
}

/// The two halves of a product, folded: a word of up to sixteen bytes costs two multiplications.
fn hash(seed: u64, word: &[u8]) -> u32 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product >> 64) as u64 ^ product as u64
    };
    let four = |at: usize| {
        u64::from(u32::from_le_bytes([
            word[at],
            word[at + 1],
            word[at + 2],
            word[at + 3],
        ]))
    };
    let eight = |at: usize| four(at) | four(at + 4) << 32;
    let len = word.len();
    // Far from the bits of the word, so that lengths and letters cannot make up for each other.
    let mut state = seed ^ (len as u64).wrapping_mul(MIX);
    // The last bytes may be read twice; that is cheaper than a loop over them.
    let (a, b) = match len {
        0 => (0, 0),
        1..4 => (
            u64::from(word[0]) << 8 | u64::from(word[len / 2]),
            u64::from(word[len - 1]),
        ),
        4..8 => (four(0), four(len - 4)),
        8..=16 => (eight(0), eight(len - 8)),
        _ => {
            for at in (0..len - 16).step_by(8) {
                state = fold(state ^ eight(at), MIX);
            }
            (eight(len - 16), eight(len - 8))
        }
    };
    let mixed = fold(fold(a ^ state, b ^ MIX), MIX ^ seed);
    (mixed >> 32) as u32 ^ mixed as u32
}

/// An odd number whose bits have no pattern: 2^64 divided by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Words of all lengths, the short ones often.
    fn sample() -> Vec<Vec<u8>> {
        (0u64..40_000)
            .map(|n| {
                let word = (n * n % 7_919)
                    .to_string()
                    .repeat(1 + usize::try_from(n % 9).unwrap());
                word.into_bytes()
            })
            .collect()
    }

    fn map(tally: &Tally) -> HashMap<Vec<u8>, u64> {
        tally
            .iter()
            .map(|(word, count)| (word.to_vec(), count))
            .collect()
    }

    #[test]
    fn a_tally_is_a_map() {
        let mut tally = Tally::default();
        let mut wanted: HashMap<Vec<u8>, u64> = HashMap::new();
        for (n, word) in (1..).zip(sample()) {
            tally.add(&word, n);
            *wanted.entry(word).or_default() += n;
        }
        tally.add(b"", 3);
        wanted.insert(Vec::new(), 3);
        assert_eq!(map(&tally), wanted);
        assert_eq!(tally.total(), wanted.values().sum());
        assert_eq!(tally.distinct(), wanted.len() as u64);
    }

    #[test]
    fn what_is_encoded_in_parts_adds_up_again() {
        let mut tally = Tally::default();
        sample()
            .iter()
            .zip(1..)
            .for_each(|(word, n)| tally.add(word, n << (n % 40)));
        let parts = tally.encode(1_000);
        assert!(parts.len() > 100 && parts.iter().all(|part| part.len() < 2_100));
        let mut twice = Tally::default();
        parts
            .iter()
            .chain(&parts)
            .for_each(|part| twice.absorb(part));
        let doubled = map(&tally)
            .into_iter()
            .map(|(word, n)| (word, 2 * n))
            .collect();
        assert_eq!(map(&twice), doubled);
    }

    #[test]
    fn the_top_is_in_order() {
        let mut tally = Tally::default();
        for (word, n) in [("b", 2), ("a", 2), ("d", 9), ("c", 1)] {
            tally.add(word.as_bytes(), n);
        }
        let top = |n| {
            tally
                .top(n)
                .into_iter()
                .map(|(word, _)| word)
                .collect::<String>()
        };
        assert_eq!([top(0), top(1), top(3), top(9)], ["", "d", "dab", "dabc"]);
    }

    #[test]
    fn hashes_spread() {
        let hashes: std::collections::HashSet<u32> = (0..100_000u32)
            .map(|n| hash(7, n.to_string().as_bytes()))
            .collect();
        assert!(hashes.len() > 99_900, "{}", hashes.len());
    }
}
