//! The counter: reads pieces of files, counts their words, and takes over what others counted.
//!
//! The merger is one, too, that reads nothing.

use crate::reader::{Piece, problem};
use crate::scanner::{Scanner, is_in_word};
use crate::tally::Tally;
use offshoot::Bytes;
use offshoot::prelude::*;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is read at once: it stays in a core's own cache while its words are counted.
pub(crate) const CHUNK: usize = 128 << 10;

/// What is sent at once of a tally: far below the 16 MiB that a message between processes may have.
const SHARE: usize = 4 << 20;

/// The state of a counter. A new one is sent; a used one never is.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Counter {
    #[serde(skip)]
    tally: Tally,
    #[serde(skip)]
    scanner: Scanner,
    #[serde(skip)]
    buffer: Vec<u8>,
    /// What [`take`](Counter::take) has still to give.
    #[serde(skip)]
    shares: Vec<Vec<u8>>,
}

/// What became of a batch.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) binary: u64,
    pub(crate) problems: Vec<String>,
}

/// A part of a tally.
#[derive(Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) words: Bytes,
    pub(crate) last: bool,
}

/// What there is to say about a tally.
#[derive(Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) words: u64,
    pub(crate) distinct: u64,
    pub(crate) top: Vec<(String, u64)>,
}

impl Counter {
    /// Reads these pieces and counts their words.
    pub(crate) fn count(&mut self, pieces: Vec<Piece>) -> Counted {
        let mut counted = Counted::default();
        for piece in pieces {
            let path = piece.path();
            let result = File::open(&path).and_then(|file| self.read(&file, &piece, &mut counted));
            // A word that an error cut off is none.
            self.scanner.reset();
            if let Err(error) = result {
                counted.problems.push(problem(&path, &error));
            }
        }
        counted
    }

    fn read(&mut self, file: &File, piece: &Piece, counted: &mut Counted) -> io::Result<()> {
        self.buffer.resize(CHUNK, 0);
        let mut at = piece.from;
        // A word belongs to the piece in which it begins: one that is under way is the previous
        // one's, and ours is read to its end.
        if at > 0
            && read_at(file, &mut self.buffer[..1], at - 1)? == 1
            && is_in_word(self.buffer[0])
        {
            self.scanner.skip_word();
        }
        loop {
            let left = piece.to.map_or(u64::MAX, |to| to.saturating_sub(at));
            if left == 0 {
                break;
            }
            let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            let read = read_at(file, &mut self.buffer[..wanted], at)?;
            let chunk = &self.buffer[..read];
            if at == 0 {
                if is_binary(chunk) {
                    counted.binary += 1;
                    return Ok(());
                }
                counted.files += 1;
            }
            self.scanner.feed(chunk, &mut self.tally);
            at += read as u64;
            counted.bytes += read as u64;
            if read == 0 {
                break;
            }
        }
        // The rest of a word that began here. Its bytes are counted where they lie.
        while piece.to.is_some() && self.scanner.is_in_counted_word() {
            let read = read_at(file, &mut self.buffer[..4 << 10], at)?;
            if read == 0 {
                break;
            }
            at += read as u64;
            self.scanner
                .feed_rest(&self.buffer[..read], &mut self.tally);
        }
        self.scanner.finish(&mut self.tally);
        Ok(())
    }

    /// Gives away what was counted, share by share.
    pub(crate) fn take(&mut self) -> Share {
        if !self.tally.is_empty() {
            self.shares = std::mem::take(&mut self.tally).encode(SHARE);
        }
        Share {
            words: self.shares.pop().unwrap_or_default().into(),
            last: self.shares.is_empty(),
        }
    }

    /// Adds what another one counted.
    pub(crate) fn absorb(&mut self, words: Bytes) {
        self.tally.absorb(&words);
    }

    /// What was counted in all, and the most frequent.
    pub(crate) fn summary(&self, top: usize) -> Summary {
        Summary {
            words: self.tally.total(),
            distinct: self.tally.distinct(),
            top: self.tally.top(top),
        }
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// By its start, as `grep` and `git` tell binary files.
pub(crate) fn is_binary(start: &[u8]) -> bool {
    start[..start.len().min(8 << 10)].contains(&0)
}
