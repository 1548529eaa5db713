//! What must hold for any bytes: shared by the fuzz targets, the replay of the corpus and the
//! property tests.

use offshoot_wire::dialogue::{Grant, Window};
use offshoot_wire::frame::{
    Boot, CancelOrder, Credit, Enclosed, Ended, FrameError, FrameReader, HEADER, Halt, Header,
    Introduce, Invoke, Ready,
};
use offshoot_wire::{Bytes, Cancel, Error, Exit, Origin, Rope, codec};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// The limit of the reader under test: small, so that short inputs reach it.
pub const LIMIT: usize = 300 << 10;

/// The first byte chooses the type, the others are decoded as one.
///
/// # Panics
/// If a value that was decoded cannot be used, or does not survive another round.
pub fn value(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    match choice % CHOICES {
        0 => round::<Error>(bytes),
        1 => round::<Exit>(bytes),
        2 => round::<Boot>(bytes),
        3 => round::<Ready>(bytes),
        4 => round::<CancelOrder>(bytes),
        5 => round::<Credit>(bytes),
        6 => round::<Ended>(bytes),
        7 => round::<Origin>(bytes),
        8 => round::<Cancel>(bytes),
        9 => round::<Bytes>(bytes),
        10 => round::<Vec<(String, Option<char>)>>(bytes),
        11 => call(bytes),
        12 => round::<Halt>(bytes),
        13 => round::<Grant>(bytes),
        14 => round::<Enclosed>(bytes),
        _ => round::<Introduce>(bytes),
    }
}

/// How many choices [`value`] knows.
pub const CHOICES: u8 = 16;

fn round<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    let Ok(value) = codec::decode::<T>(bytes) else {
        return;
    };
    // To print it is part of the check: errors and exits are there to be printed.
    let printed = format!("{value:?}");
    let mut first = Vec::new();
    codec::encode_into(&value, &mut first).expect("what was decoded can be encoded");
    // Not the same bytes: a number may have been written longer than it has to be.
    assert!(first.len() <= bytes.len(), "the encoding is the shortest");
    let again: T = codec::decode(&first).expect("what was encoded can be decoded");
    assert_eq!(format!("{again:?}"), printed);
    let mut second = Vec::new();
    codec::encode_into(&again, &mut second).expect("twice");
    assert_eq!(first, second);
    // The same where long bytes are not copied.
    let whole = Bytes::from(first);
    let shared: T = whole.decoding(codec::decode).expect("the same bytes");
    let mut rope = Rope::default();
    codec::encode_onto(&shared, &mut rope).expect("the same value");
    assert_eq!(rope.into_vec(), whole[..]);
}

fn call(body: &[u8]) {
    if let Some((window, rest)) = Window::split(body) {
        assert_eq!([&window.to_bytes()[..], rest].concat(), body);
    }
    match Invoke::split(body) {
        Some((invoke, arguments)) => assert_eq!([&invoke.to_bytes()[..], arguments].concat(), body),
        None => assert!(body.len() < Invoke::SIZE),
    }
}

/// The first eight bytes choose the sizes of the reads, the others are the stream.
///
/// # Panics
/// If the reader yields something else than the frames that are there as a whole.
pub fn stream(data: &[u8]) {
    let Some((sizes, stream)) = data.split_first_chunk::<8>() else {
        return;
    };
    let mut state = u64::from_le_bytes(*sizes) | 1;
    cut(stream, LIMIT, || {
        // A xorshift; the sizes are spread over the powers of two.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bits = 1 + (state >> 32) % 18;
        1 + (state % (1 << bits)) as usize
    });
}

/// Feeds `stream` to a reader in pieces of these sizes, and compares it with the plain rule.
///
/// # Panics
/// If the reader yields something else than the frames that are there as a whole.
pub fn cut(stream: &[u8], limit: usize, mut size: impl FnMut() -> usize) {
    let mut reader = FrameReader::new(limit);
    let mut expected = Plain {
        rest: stream,
        limit,
    };
    let mut given = 0;
    while given < stream.len() {
        let space = reader.space();
        assert!(!space.is_empty(), "nothing is the end of the stream");
        let n = size().min(space.len()).min(stream.len() - given);
        space[..n].copy_from_slice(&stream[given..given + n]);
        reader.filled(n);
        given += n;
        loop {
            // What the plain rule says of the bytes that the reader has by now.
            expected.rest = &stream[expected.at(stream)..given];
            let want = expected.next();
            let got = reader.next();
            let got = got.map(|next| next.map(|(header, body)| (header, body.bytes())));
            assert_eq!(got, want);
            match want {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(
                        reader.next().err(),
                        Some(error.clone()),
                        "it says the same again"
                    );
                    assert_eq!(reader.finish(), Err(error));
                    return;
                }
            }
        }
        assert_eq!(reader.finish(), expected.finish());
    }
}

/// The rule without any buffer.
struct Plain<'a> {
    rest: &'a [u8],
    limit: usize,
}

impl<'a> Plain<'a> {
    fn at(&self, stream: &[u8]) -> usize {
        self.rest.as_ptr() as usize - stream.as_ptr() as usize
    }

    fn next(&mut self) -> Result<Option<(Header, &'a [u8])>, FrameError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(head, self.limit)?;
        let Some((body, rest)) = rest.split_at_checked(header.len as usize) else {
            return Ok(None);
        };
        self.rest = rest;
        Ok(Some((header, body)))
    }

    fn finish(&self) -> Result<(), FrameError> {
        let have = self.rest.len();
        match self.rest.first_chunk::<HEADER>() {
            _ if have == 0 => Ok(()),
            None => Err(FrameError::Partial { have, want: HEADER }),
            Some(head) => {
                let want = HEADER + Header::from_bytes(head, self.limit)?.len as usize;
                Err(FrameError::Partial { have, want })
            }
        }
    }
}
