//! Encoded values with what is long in them by reference.

use crate::Bytes;

/// A sequence of bytes: a vector, and [`Bytes`] at places in it.
///
/// Its content is one sequence, whatever is held how; where a reader of the parts is wanted, there is [`slices`](Rope::slices).
///
/// # Examples
/// ```
/// use offshoot_wire::{Bytes, codec, Rope};
///
/// let long = Bytes::from(vec![7; 64 << 10]);
/// let mut rope = Rope::default();
/// codec::encode_onto(&(1_u8, &long, 2_u8), &mut rope)?;
/// assert!(rope.slices().any(|slice| std::ptr::eq(slice, &*long)), "it was not copied");
///
/// let mut vec = Vec::new();
/// codec::encode_into(&(1_u8, &long, 2_u8), &mut vec)?;
/// assert_eq!(rope.slices().collect::<Vec<_>>().concat(), vec);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Rope {
    /// What is not shared.
    pub bytes: Vec<u8>,
    /// What is, before so many of `bytes`: in order.
    pub(crate) parts: Vec<(usize, Bytes)>,
}

impl Rope {
    /// How many bytes it is.
    pub fn len(&self) -> usize {
        let shared: usize = self.parts.iter().map(|(_, part)| part.len()).sum();
        self.bytes.len() + shared
    }

    /// Whether it is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a part of it is shared.
    pub fn is_shared(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Its bytes, in order. None of the slices is empty.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces().map(|(slice, _)| slice)
    }

    /// As [`slices`](Rope::slices), each with what it is of where that is shared.
    pub fn pieces(&self) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        let places = self.parts.iter().map(|(place, _)| *place);
        let starts = [0].into_iter().chain(places.clone());
        let own = starts.zip(places.chain([self.bytes.len()]));
        let own = own.map(|(start, end)| (&self.bytes[start..end], None));
        let shared = self.parts.iter().map(|(_, part)| Some(part));
        own.zip(shared.chain([None]))
            .flat_map(|(own, part)| [Some(own), part.map(|part| (&**part, Some(part)))])
            .flatten()
            .filter(|(slice, _)| !slice.is_empty())
    }

    /// Its bytes in one piece: copied if some are shared.
    pub fn into_vec(self) -> Vec<u8> {
        match self.is_shared() {
            true => self.slices().collect::<Vec<_>>().concat(),
            false => self.bytes,
        }
    }

    /// Appends another one.
    pub fn append(&mut self, other: Rope) {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        let parts = other.parts.into_iter();
        self.parts
            .extend(parts.map(|(place, part)| (before + place, part)));
    }

    /// Appends bytes that are shared.
    pub fn push(&mut self, part: Bytes) {
        self.parts.push((self.bytes.len(), part));
    }
}

impl From<Vec<u8>> for Rope {
    fn from(bytes: Vec<u8>) -> Rope {
        Rope {
            bytes,
            parts: Vec::new(),
        }
    }
}
