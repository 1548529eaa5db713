//! What a word is, and how words are found in chunks of bytes.
//!
//! A word is a run of letters, digits and `_` of any script, with apostrophes inside but not at its
//! ends; capitals count as small letters. `Don't` is one word, `well-known` are two.
//!
//! First, runs of bytes are found that may be words: those of ASCII words, and all beyond ASCII,
//! so that a chunk may end anywhere in a character. Nearly all runs are words as they stand; those
//! with other letters are cut by Unicode's rules.

use crate::tally::Tally;

/// Of a longer run, the words of so many bytes at its start are counted, so that a file without a
/// single space cannot fill the memory.
pub(crate) const RUN_MAX: usize = 1 << 10;

/// True for the bytes of runs.
pub(crate) fn is_in_word(byte: u8) -> bool {
    IN_RUN[usize::from(byte)]
}

const IN_RUN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        // Fits: it is below 256.
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || b == b'_' || b == b'\'' || !b.is_ascii();
        byte += 1;
    }
    table
};

/// Finds words in chunks of bytes that follow each other.
#[derive(Default)]
pub(crate) struct Scanner {
    /// The run that is under way, its first [`RUN_MAX`] bytes.
    run: Vec<u8>,
    /// The run that is under way is not ours.
    skipping: bool,
    /// For a word in small letters.
    small: Vec<u8>,
}

impl Scanner {
    /// Forgets a run that is under way.
    pub(crate) fn reset(&mut self) {
        self.run.clear();
        self.skipping = false;
    }

    /// Passes over the run with which the next chunk begins, if it begins with one.
    pub(crate) fn skip_word(&mut self) {
        self.skipping = true;
    }

    /// True if a run that is to be counted goes on beyond what was fed.
    pub(crate) fn is_in_counted_word(&self) -> bool {
        !self.run.is_empty()
    }

    /// Counts the words of a chunk. One that reaches its end is kept for the next.
    pub(crate) fn feed(&mut self, chunk: &[u8], tally: &mut Tally) {
        let mut at = 0;
        if self.skipping || !self.run.is_empty() {
            at = self.feed_run(chunk, tally);
        }
        while let Some(start) = find(chunk, at, true) {
            match find(chunk, start, false) {
                Some(end) => {
                    count(&chunk[start..end], &mut self.small, tally);
                    at = end;
                }
                None => {
                    self.extend(&chunk[start..]);
                    break;
                }
            }
        }
    }

    /// Goes on with the run that is under way and no further.
    pub(crate) fn feed_rest(&mut self, chunk: &[u8], tally: &mut Tally) {
        self.feed_run(chunk, tally);
    }

    /// Counts the run that is under way.
    pub(crate) fn finish(&mut self, tally: &mut Tally) {
        if !self.run.is_empty() {
            count(&self.run, &mut self.small, tally);
        }
        self.reset();
    }

    /// Goes on with the run that is under way; where it ended, if it did.
    fn feed_run(&mut self, chunk: &[u8], tally: &mut Tally) -> usize {
        match find(chunk, 0, false) {
            Some(end) => {
                self.extend(&chunk[..end]);
                self.finish(tally);
                end
            }
            None => {
                self.extend(chunk);
                chunk.len()
            }
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        if !self.skipping {
            let room = RUN_MAX - self.run.len();
            self.run.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }
}

/// The next place from `at` on whose byte belongs to a run, or to none.
fn find(chunk: &[u8], at: usize, in_run: bool) -> Option<usize> {
    let rest = chunk.get(at..)?;
    let found = rest.iter().position(|byte| is_in_word(*byte) == in_run)?;
    Some(at + found)
}

fn count(run: &[u8], small: &mut Vec<u8>, tally: &mut Tally) {
    // Long before the end of its file, so that every piece of it cuts at the same place.
    let run = &run[..run.len().min(RUN_MAX)];
    if !run.is_ascii() {
        return count_unicode(run, tally);
    }
    small.clear();
    small.extend_from_slice(run);
    small.make_ascii_lowercase();
    add(small, tally);
}

fn count_unicode(run: &[u8], tally: &mut Tally) {
    let text = String::from_utf8_lossy(run);
    // The typographic apostrophe is one, too.
    let text = text.replace('\u{2019}', "'").to_lowercase();
    for word in text.split(|c: char| !(is_letter(c) || c == '_' || c == '\'')) {
        add(word.as_bytes(), tally);
    }
}

/// Also a mark that is written over a letter is part of the word.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '\u{300}'..='\u{36f}')
}

fn add(word: &[u8], tally: &mut Tally) {
    let Some(start) = word.iter().position(|byte| *byte != b'\'') else {
        return;
    };
    let end = word
        .iter()
        .rposition(|byte| *byte != b'\'')
        .map_or(0, |last| last + 1);
    tally.add(&word[start..end], 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of a text that is fed in chunks of `size` bytes.
    fn words(text: &[u8], size: usize) -> Vec<(String, u64)> {
        let mut tally = Tally::default();
        let mut scanner = Scanner::default();
        text.chunks(size)
            .for_each(|chunk| scanner.feed(chunk, &mut tally));
        scanner.finish(&mut tally);
        tally.top(usize::MAX)
    }

    fn check(text: &str, wanted: &[(&str, u64)]) {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(word, n)| ((*word).to_owned(), *n))
            .collect();
        for size in 1..=text.len().max(1) {
            assert_eq!(words(text.as_bytes(), size), wanted, "{text:?} by {size}");
        }
    }

    #[test]
    fn a_word_is_what_a_reader_would_call_one() {
        check("", &[]);
        check(" \n-- ' ''", &[]);
        check("The cat, the 'cat'.", &[("cat", 2), ("the", 2)]);
        check(
            "Don't; a well-known b_1",
            &[
                ("a", 1),
                ("b_1", 1),
                ("don't", 1),
                ("known", 1),
                ("well", 1),
            ],
        );
        check(
            "Grün—ГРАД “grün” don’t",
            &[("grün", 2), ("don't", 1), ("град", 1)],
        );
    }

    #[test]
    fn bytes_that_are_no_text_separate() {
        assert_eq!(
            words(b"a\xffb a", 2),
            [("a".to_owned(), 2), ("b".to_owned(), 1)]
        );
    }

    #[test]
    fn a_run_without_end_is_cut() {
        let text = vec![b'x'; 10 * RUN_MAX];
        for size in [1, 700, RUN_MAX, text.len()] {
            assert_eq!(words(&text, size), [("x".repeat(RUN_MAX), 1)]);
        }
    }
}
