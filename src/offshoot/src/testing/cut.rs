//! Where a link is cut: counts what passes over it, and says when that is enough.

use offshoot_wire::frame::HEADER;
use parking_lot::Mutex;

/// A direction of the connection between an owner and its process isolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the owner sends: calls, messages, cancellations.
    ToIsolate,
    /// What the isolate sends: answers, items, its last word.
    FromIsolate,
}

/// After how much a link is cut, see [`break_link_after`](super::break_link_after).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum After {
    /// So many whole frames have passed: nothing of the next one does.
    Frames(u64),
    /// So many bytes have passed, wherever in a frame that is.
    Bytes(u64),
}

/// Counts one direction of a link.
pub(crate) struct Cut {
    direction: Direction,
    state: Mutex<State>,
}

struct State {
    after: After,
    /// What is known of the header of the frame that is passing.
    header: Vec<u8>,
    /// How much of its body has not passed.
    body: usize,
}

impl Cut {
    pub(crate) fn new(direction: Direction, after: After) -> Cut {
        Cut {
            direction,
            state: Mutex::new(State {
                after,
                header: Vec::new(),
                body: 0,
            }),
        }
    }

    /// How much of these bytes may pass before it is cut; 0 if it is.
    pub(crate) fn room(&self, direction: Direction, bytes: &[u8]) -> usize {
        let state = self.state.lock();
        if state.is_over() {
            return 0;
        }
        if direction != self.direction {
            return bytes.len();
        }
        match state.after {
            After::Bytes(left) => bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
            After::Frames(_) => {
                let mut ahead = State {
                    header: state.header.clone(),
                    ..*state
                };
                let mut room = 0;
                while room < bytes.len() && !ahead.is_over() {
                    room += ahead.pass(&bytes[room..]);
                }
                room
            }
        }
    }

    /// Counts what has passed. True if nothing more may.
    pub(crate) fn passed(&self, direction: Direction, mut bytes: &[u8]) -> bool {
        let mut state = self.state.lock();
        while direction == self.direction && !bytes.is_empty() && !state.is_over() {
            let n = state.pass(bytes);
            bytes = &bytes[n..];
        }
        state.is_over()
    }
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self.after, After::Frames(0) | After::Bytes(0))
    }

    /// Counts the next bytes, at most to the end of a header or a body; how many that were.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let frames = match &mut self.after {
            After::Bytes(left) => {
                let n = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                return n;
            }
            After::Frames(left) => left,
        };
        let n = if self.header.len() < HEADER {
            let n = bytes.len().min(HEADER - self.header.len());
            self.header.extend_from_slice(&bytes[..n]);
            if let Some(len) = self.header.first_chunk()
                && self.header.len() == HEADER
            {
                self.body = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
            }
            n
        } else {
            let n = bytes.len().min(self.body);
            self.body -= n;
            n
        };
        if self.header.len() == HEADER && self.body == 0 {
            self.header.clear();
            *frames -= 1;
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two frames, of 3 bytes and of none, and the beginning of a third.
    fn stream() -> Vec<u8> {
        let header = |len: u32| [&len.to_le_bytes()[..], &[0; HEADER - 4]].concat();
        [header(3), vec![7; 3], header(0), header(9), vec![7; 4]].concat()
    }

    fn through(after: After, piece: usize) -> (usize, bool) {
        let cut = Cut::new(Direction::FromIsolate, after);
        let (mut passed, mut over) = (0, cut.room(Direction::FromIsolate, &[0]) == 0);
        for bytes in stream().chunks(piece) {
            let room = cut.room(Direction::FromIsolate, bytes);
            over = cut.passed(Direction::FromIsolate, &bytes[..room]);
            passed += room;
        }
        (passed, over)
    }

    #[test]
    fn it_is_cut_where_it_was_said_however_the_bytes_come() {
        let all = stream().len();
        for piece in 1..=all {
            for bytes in 0..all {
                let expected = (bytes, true);
                assert_eq!(through(After::Bytes(bytes as u64), piece), expected);
            }
            for (frames, passed) in [(0, 0), (1, HEADER + 3), (2, 2 * HEADER + 3)] {
                assert_eq!(through(After::Frames(frames), piece), (passed, true));
            }
            assert_eq!(through(After::Frames(3), piece), (all, false));
        }
    }

    #[test]
    fn the_other_direction_passes_until_then() {
        let cut = Cut::new(Direction::ToIsolate, After::Bytes(1));
        assert_eq!(cut.room(Direction::FromIsolate, &[0; 9]), 9);
        assert!(!cut.passed(Direction::FromIsolate, &[0; 9]));
        assert!(cut.passed(Direction::ToIsolate, &[0]));
        assert_eq!(cut.room(Direction::FromIsolate, &[0; 9]), 0);
    }
}
