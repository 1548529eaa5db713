//! Bytes on their way out of a link: where the next write begins, and what waits for room.

use offshoot_wire::{Bytes, Rope};
use std::collections::VecDeque;
use std::io::IoSlice;

/// So much is gathered in one piece of what is copied.
const PIECE: usize = 64 << 10;

/// How many slices are handed to the kernel at once.
pub(super) const AT_ONCE: usize = 16;

/// What could not be written yet. What is copied into it is short; what is long is held by reference.
#[derive(Default)]
pub(super) struct Queue {
    pieces: VecDeque<Piece>,
    /// So much of the first one is written.
    start: usize,
    len: usize,
}

enum Piece {
    Own(Vec<u8>),
    Shared(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Own(bytes) => bytes,
            Piece::Shared(bytes) => bytes,
        }
    }
}

impl Queue {
    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what is behind the first `written` bytes.
    pub(super) fn push(&mut self, rope: &Rope, mut written: usize) {
        for (slice, shared) in rope.pieces() {
            let skipped = written.min(slice.len());
            written -= skipped;
            let rest = &slice[skipped..];
            if rest.is_empty() {
                continue;
            }
            self.len += rest.len();
            match (shared, self.pieces.back_mut()) {
                (Some(shared), _) => self
                    .pieces
                    .push_back(Piece::Shared(shared.slice(skipped..))),
                (None, Some(Piece::Own(bytes))) if bytes.len() < PIECE => {
                    bytes.extend_from_slice(rest);
                }
                (None, _) => self.pieces.push_back(Piece::Own(rest.to_vec())),
            }
        }
    }

    /// All of it, in order.
    pub(super) fn slices(&self) -> Vec<&[u8]> {
        let mut slices: Vec<_> = self.pieces.iter().map(Piece::bytes).collect();
        if let Some(first) = slices.first_mut() {
            *first = &first[self.start..];
        }
        slices
    }

    /// The first `n` bytes are written.
    pub(super) fn advance(&mut self, n: usize) {
        self.len -= n;
        self.start += n;
        while let Some(first) = self.pieces.front()
            && first.bytes().len() <= self.start
        {
            self.start -= first.bytes().len();
            self.pieces.pop_front();
        }
    }
}

/// A place in a sequence of slices.
pub(super) struct Cursor<'a> {
    slices: &'a [&'a [u8]],
    /// Within the first of these.
    within: usize,
    /// From the beginning.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(slices: &'a [&'a [u8]]) -> Cursor<'a> {
        let mut cursor = Cursor {
            slices,
            within: 0,
            at: 0,
        };
        // Past what is empty.
        cursor.advance(0);
        cursor
    }

    /// How many bytes are before it.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.slices.is_empty()
    }

    /// Whether all that follows is one slice.
    pub(super) fn is_in_last(&self) -> bool {
        self.slices.len() <= 1
    }

    /// What follows in one slice, at most `most` bytes.
    pub(super) fn slice(&self, most: usize) -> &'a [u8] {
        match self.slices {
            [] => &[],
            [first, ..] => {
                let rest = &first[self.within..];
                &rest[..rest.len().min(most)]
            }
        }
    }

    /// What follows, at most `most` bytes, in as many slices as go to the kernel at once; and how many those are.
    pub(super) fn slices(&self, mut most: usize) -> ([IoSlice<'a>; AT_ONCE], usize) {
        let mut all = [IoSlice::new(&[]); AT_ONCE];
        let mut count = 0;
        let mut within = self.within;
        for (slice, place) in self.slices.iter().zip(&mut all) {
            let rest = &slice[within..];
            let part = &rest[..rest.len().min(most)];
            if most == 0 {
                break;
            }
            *place = IoSlice::new(part);
            most -= part.len();
            count += 1;
            within = 0;
        }
        (all, count)
    }

    pub(super) fn advance(&mut self, n: usize) {
        self.at += n;
        self.within += n;
        while let [first, rest @ ..] = self.slices
            && first.len() <= self.within
        {
            self.within -= first.len();
            self.slices = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(lens: &[(usize, bool)]) -> (Rope, Vec<u8>) {
        let (mut rope, mut all) = (Rope::default(), Vec::new());
        for (n, &(len, shared)) in lens.iter().enumerate() {
            let bytes = vec![n as u8; len];
            all.extend_from_slice(&bytes);
            match shared {
                true => rope.push(bytes.into()),
                false => rope.bytes.extend_from_slice(&bytes),
            }
        }
        (rope, all)
    }

    const LENS: [(usize, bool); 7] = [
        (5, false),
        (20_000, true),
        (17_000, true),
        (1, false),
        (3, false),
        (16_384, true),
        (70_000, false),
    ];

    #[test]
    fn what_waits_is_what_was_not_written() {
        let (rope, all) = rope(&LENS);
        assert_eq!(rope.slices().collect::<Vec<_>>().concat(), all);
        for written in [0, 1, 5, 6, 20_005, 37_005, 37_006, 53_392, all.len()] {
            let mut queue = Queue::default();
            queue.push(&rope, written);
            queue.push(&rope, 0);
            let expected = [&all[written..], &all].concat();
            assert_eq!(
                (queue.len(), queue.slices().concat()),
                (expected.len(), expected.clone())
            );
            let mut left = &expected[..];
            for n in [1, 4, 19_000, 0, 30_000, 60_000].into_iter().cycle() {
                let n = n.min(left.len());
                queue.advance(n);
                left = &left[n..];
                assert_eq!(
                    (queue.len(), queue.slices().concat()),
                    (left.len(), left.to_vec())
                );
                if left.is_empty() {
                    break;
                }
            }
            assert!(queue.is_empty() && queue.pieces.is_empty());
        }
    }

    #[test]
    fn what_is_long_waits_without_a_copy() {
        let (rope, _) = rope(&LENS);
        let mut queue = Queue::default();
        queue.push(&rope, 6);
        let slices = queue.slices();
        let shared: Vec<_> = rope.slices().filter(|slice| slice.len() > 10_000).collect();
        assert!(std::ptr::eq(slices[0], &shared[0][1..]));
        assert!(std::ptr::eq(slices[1], shared[1]));
    }

    #[test]
    fn a_cursor_goes_over_all_of_it() {
        assert!(Cursor::new(&[]).is_at_end() && Cursor::new(&[&[], &[]]).is_at_end());
        let slices: Vec<Vec<u8>> = (0..=40).map(|n| vec![n; usize::from(n)]).collect();
        let slices: Vec<&[u8]> = slices.iter().map(Vec::as_slice).collect();
        let all = slices.concat();
        for most in [1, 7, 100, 10_000] {
            let mut cursor = Cursor::new(&slices);
            let mut seen = Vec::new();
            while !cursor.is_at_end() {
                let (parts, count) = cursor.slices(most);
                let parts: Vec<u8> = parts[..count]
                    .iter()
                    .flat_map(|part| part.to_vec())
                    .collect();
                assert!(count <= AT_ONCE && !parts.is_empty() && parts.len() <= most);
                assert!(parts.starts_with(cursor.slice(most)));
                cursor.advance(parts.len());
                seen.extend(parts);
                assert_eq!(cursor.at(), seen.len());
            }
            assert_eq!(seen, all);
        }
    }
}
