//! Whether a type that is sent can arrive, found out where it is sent.
//!
//! A format without names cannot carry all that serde can say, and a part of that only the type's
//! `Deserialize` knows: `untagged`, `flatten`, a field that is written and not read. The far
//! side would fail, or, worse, not fail and have other values. So a value that makes a choice for the first
//! time (a variant, something in an option or a sequence, the type itself) is decoded once by its sender.
//! What is known to arrive is kept for the process, and what is asked of each value after that is a look into
//! a small table for each such choice.
//!
//! What is decoded must be the same value. `PartialEq` is not there to ask, so it is asked only where the names
//! of fields or variants give a reason to (an `alias` does, too): then it is encoded again, and has to have
//! the same length, bytes (in any order: a hash map has none) and names.

use std::any::TypeId;
use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{PoisonError, RwLock};

/// What a value has said of its types while it was encoded, in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrote {
    /// The name of a struct or of a variant, and the fields.
    Struct(&'static str, Vec<&'static str>),
    /// Enum, index, variant.
    Variant(&'static str, u32, &'static str),
}

/// What types have said of themselves while a value was decoded, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Read {
    /// The fields of a struct or of a variant.
    Struct(&'static [&'static str]),
    /// The variants of an enum.
    Enum(&'static [&'static str]),
}

/// The first difference between what was written and what is read, if the names show one.
///
/// It need not be one: an `alias` is among the names that are read, and both directions may have names of their own.
pub(crate) fn difference(wrote: &[Wrote], read: &[Read]) -> Option<String> {
    for (wrote, read) in wrote.iter().zip(read) {
        match (wrote, read) {
            (Wrote::Struct(name, ours), Read::Struct(theirs)) => {
                if ours.as_slice() != *theirs {
                    let odd = ours.iter().find(|field| !theirs.contains(field));
                    let odd = odd.or_else(|| theirs.iter().find(|field| !ours.contains(field)));
                    let odd = odd.or(ours.first()).copied().unwrap_or_default();
                    return Some(format!(
                        "field `{odd}` of `{name}`: it is written and not read, or read and not written (serde's \
                         skip_serializing and skip_deserializing); use `skip`, which is both"
                    ));
                }
            }
            (Wrote::Variant(name, index, variant), Read::Enum(theirs)) => {
                let there = usize::try_from(*index).ok().and_then(|at| theirs.get(at));
                if there != Some(variant) {
                    return Some(format!(
                        "variant `{variant}` of `{name}`: it has number {index} where it is written and another one \
                         where it is read (serde counts without the variants that it skips); put skipped variants last"
                    ));
                }
            }
            // One side has an implementation of its own: from here on they are not comparable.
            _ => return None,
        }
    }
    None
}

/// True if two encodings can be of the same value: the same length, bytes and names, in whatever order.
pub(crate) fn is_alike(ours: (&[u8], &[Wrote]), theirs: (&[u8], &[Wrote])) -> bool {
    let sorted = |wrote: &[Wrote]| {
        let mut wrote = wrote.to_vec();
        wrote.sort_unstable();
        wrote
    };
    let counts = |bytes: &[u8]| {
        let mut counts = [0_usize; 256];
        bytes
            .iter()
            .for_each(|byte| counts[usize::from(*byte)] += 1);
        counts
    };
    counts(ours.0) == counts(theirs.0) && sorted(ours.1) == sorted(theirs.1)
}

/// Takes numbers that are hashes already.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }
}

/// A number for the type, whatever it borrows. The compiler knows it.
#[inline]
pub(crate) fn id<T: ?Sized>() -> u64 {
    let mut hasher = Plain::default();
    TypeId::hash(&typeid::of::<T>(), &mut hasher);
    hasher.finish()
}

/// True of types that need no try: numbers, texts and bytes, whose two directions are std's and ours.
#[inline]
pub(crate) fn is_plain<T: ?Sized>() -> bool {
    macro_rules! any {
        ($($type:ty),*) => { $(id::<T>() == id::<$type>())||* };
    }
    any!(
        (),
        bool,
        char,
        u8,
        u16,
        u32,
        u64,
        u128,
        usize,
        i8,
        i16,
        i32,
        i64,
        i128,
        isize,
        f32,
        f64,
        String,
        Vec<u8>,
        Vec<u32>,
        Vec<u64>,
        Vec<f32>,
        Vec<f64>,
        Vec<String>,
        crate::Bytes
    )
}

type Known = HashSet<u64, BuildHasherDefault<Plain>>;

/// What is known to arrive, in this process: as much as there are types and variants.
static KNOWN: RwLock<Known> = RwLock::new(HashSet::with_hasher(BuildHasherDefault::new()));

const PLACES: usize = 512;

/// The part of [`KNOWN`] that this thread has met of late, without a lock.
type Table = [u64; PLACES];

thread_local! {
    static TABLE: Cell<Option<Box<Table>>> = const { Cell::new(None) };
}

/// The choices that one value makes.
pub(crate) struct Facts {
    table: Option<Box<Table>>,
    /// Those that are not known.
    fresh: Vec<u64>,
}

impl Facts {
    /// With what this thread knows.
    pub(crate) fn new() -> Facts {
        let table = TABLE.try_with(Cell::take).ok().flatten();
        Facts {
            table: Some(table.unwrap_or_else(|| Box::new([0; PLACES]))),
            fresh: Vec::new(),
        }
    }

    /// The type has chosen this.
    #[inline]
    pub(crate) fn saw(&mut self, of: u64, what: u64) {
        // Never 0, which is an empty place.
        let fact = (of ^ what.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let place = (fact >> 55) as usize;
        let known = |table: &Table| table[place] == fact || table[place ^ 1] == fact;
        if !self.table.as_deref().is_some_and(known) {
            self.missed(fact, place);
        }
    }

    #[cold]
    fn missed(&mut self, fact: u64, place: usize) {
        if let Some(table) = &mut self.table {
            table[place ^ 1] = table[place];
            table[place] = fact;
        }
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&fact) {
            self.fresh.push(fact);
        }
    }

    /// True if all are known to arrive.
    #[inline]
    pub(crate) fn are_known(&self) -> bool {
        self.fresh.is_empty()
    }

    /// They are from now on.
    pub(crate) fn keep(&mut self) {
        let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(self.fresh.drain(..));
    }
}

impl Drop for Facts {
    #[inline]
    fn drop(&mut self) {
        // A table that holds what did not turn out to arrive is not used again.
        if self.fresh.is_empty() && !std::thread::panicking() {
            let _ = TABLE.try_with(|table| table.set(self.table.take()));
        }
    }
}
