//! Whatever the sizes of the reads, the reader yields the frames that are there as a whole.

use offshoot_wire::frame::{BODY_MAX, FrameError, FrameReader, HEADER, Header, Kind};
use proptest::collection::vec;
use proptest::prelude::*;

// Public there, for it is the library of the fuzz targets.
#[allow(unreachable_pub)]
#[path = "../fuzz/checks.rs"]
mod checks;

const KINDS: [Kind; 4] = [Kind::Boot, Kind::Tell, Kind::Reply, Kind::Ended];

fn frame(len: usize, correlation: u64) -> Vec<u8> {
    let kind = KINDS[len % KINDS.len()];
    let header = Header {
        len: len as u32,
        kind,
        correlation,
    };
    let body = (0..len).map(|n| (n as u64 ^ correlation) as u8);
    header.to_bytes().into_iter().chain(body).collect()
}

fn frames(lens: impl IntoIterator<Item = usize>) -> Vec<u8> {
    lens.into_iter()
        .enumerate()
        .flat_map(|(n, len)| frame(len, n as u64))
        .collect()
}

/// Mostly small, some beyond one read, few beyond the usual buffer.
fn lens() -> impl Strategy<Value = Vec<usize>> {
    let len = prop_oneof![60 => 0..64_usize, 6 => 0..5000_usize, 2 => 16_380..16_390_usize, 2 => 60_000..140_000_usize, 1 => 250_000..300_000_usize];
    vec(len, 0..if cfg!(miri) { 4 } else { 40 })
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 2 } else { 128 };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_prefix_yields_its_whole_frames(lens in lens(), sizes in vec(1..100_000_usize, 1..20), cut in any::<prop::sample::Index>()) {
        let stream = frames(lens);
        let cut = cut.index(stream.len() + 1);
        let mut sizes = sizes.into_iter().cycle();
        checks::cut(&stream[..cut], checks::LIMIT, || sizes.next().unwrap());
    }

    #[test]
    fn bytes_of_any_kind_are_frames_or_an_error(lens in lens(), seed in any::<[u8; 8]>(), at in any::<prop::sample::Index>(), bits in 1..=255_u8) {
        let mut stream = frames(lens);
        if !stream.is_empty() {
            let at = at.index(stream.len());
            stream[at] ^= bits;
        }
        checks::stream(&[&seed[..], &stream].concat());
    }

    #[test]
    fn arbitrary_bytes_never_panic(choice in 0..checks::CHOICES, bytes in vec(prop_oneof![4 => 0..4_u8, 1 => any::<u8>()], 0..200)) {
        checks::value(&[&[choice][..], &bytes].concat());
        checks::stream(&bytes);
    }
}

#[test]
fn every_cut_of_a_short_stream_byte_by_byte() {
    let stream = frames([0, 1, 17, 0, 40]);
    for cut in 0..=stream.len() {
        for size in [1, 2, 3, 15, 16, 17, 1000] {
            checks::cut(&stream[..cut], 40, || size);
        }
    }
}

/// Puts all of `bytes` into the reader, without taking frames out.
fn feed(reader: &mut FrameReader, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let space = reader.space();
        let n = space.len().min(bytes.len());
        space[..n].copy_from_slice(&bytes[..n]);
        reader.filled(n);
        bytes = &bytes[n..];
    }
}

#[test]
fn frames_may_pile_up() {
    let stream = frames((0..3000).map(|n| n % 700));
    let mut reader = FrameReader::new(700);
    feed(&mut reader, &stream);
    assert_eq!(reader.finish(), Ok(()));
    let mut count = 0;
    while let Some((header, body)) = reader.next().unwrap() {
        assert_eq!(
            (header.correlation, body.len()),
            (count, count as usize % 700)
        );
        count += 1;
    }
    assert_eq!(count, 3000);
}

#[test]
fn the_end_of_the_stream_is_between_frames_or_an_error() {
    let bytes = frame(10, 1);
    for cut in 0..=bytes.len() {
        let mut reader = FrameReader::new(10);
        feed(&mut reader, &bytes[..cut]);
        let expected = match cut {
            0 | 26 => Ok(()),
            _ if cut < HEADER => Err(FrameError::Partial {
                have: cut,
                want: HEADER,
            }),
            _ => Err(FrameError::Partial {
                have: cut,
                want: 26,
            }),
        };
        assert_eq!(reader.finish(), expected);
    }
}

#[test]
fn f36_a_bad_header_is_refused_before_its_body_and_for_good() {
    let good = frame(3, 1);
    let bad = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        (bad(4, 99), FrameError::UnknownKind(99)),
        (bad(5, 1), FrameError::Flags(1)),
        (bad(6, 2), FrameError::Version { theirs: 2 }),
        (
            bad(3, 255),
            FrameError::TooLong {
                len: 0xff00_0003,
                limit: 100,
            },
        ),
        (
            bad(0, 101),
            FrameError::TooLong {
                len: 101,
                limit: 100,
            },
        ),
    ];
    for (bytes, error) in cases {
        let mut reader = FrameReader::new(100);
        feed(&mut reader, &[&good[..], &bytes[..HEADER]].concat());
        assert!(reader.next().unwrap().is_some());
        assert_eq!(reader.next(), Err(error.clone()));
        feed(&mut reader, &good);
        assert_eq!(reader.next(), Err(error.clone()));
        assert_eq!(reader.finish(), Err(error));
        assert!(
            reader.space().len() < 1 << 20,
            "nothing was allocated for it"
        );
    }
}

#[test]
fn a_huge_frame_gets_its_space_at_once_and_the_memory_is_given_back() {
    let huge = frame(BODY_MAX, 1);
    let mut reader = FrameReader::new(BODY_MAX);
    feed(&mut reader, &huge[..HEADER]);
    assert!(reader.space().len() >= BODY_MAX);
    feed(&mut reader, &huge[HEADER..]);
    // The next frame has begun: shrinking must not lose it.
    let next = frame(20, 2);
    feed(&mut reader, &next[..5]);
    let (header, body) = reader.next().unwrap().unwrap();
    assert_eq!((header.correlation, body.bytes()), (1, &huge[HEADER..]));
    assert_eq!(reader.next(), Ok(None));
    assert!(
        reader.space().len() <= 128 << 10,
        "the buffer of the huge frame is kept"
    );
    feed(&mut reader, &next[5..]);
    assert_eq!(reader.next().unwrap().unwrap().1.bytes(), &next[HEADER..]);
    // Also if nothing follows, and nobody reads any more.
    feed(&mut reader, &huge);
    assert!(reader.next().unwrap().is_some());
    assert_eq!(reader.next(), Ok(None));
    assert!(reader.space().len() <= 128 << 10);
}

#[test]
fn a_long_body_is_kept_without_a_copy() {
    let first = frame(100_000, 1);
    let long = frame(64 << 10, 2);
    let mut reader = FrameReader::new(BODY_MAX);
    let mut at = Vec::new();
    for frame in [&first, &long] {
        feed(&mut reader, frame);
        let (_, body) = reader.next().unwrap().unwrap();
        let kept = body.keep(&body[7..]);
        assert!(kept[..] == frame[HEADER + 7..]);
        at.push((kept.as_ptr() == body[7..].as_ptr(), kept));
    }
    assert!(at[0].0 && at[1].0, "each was read into memory of its own");
    assert_eq!(
        at[0].1.len(),
        100_000 - 7,
        "and is still there when the reader has gone on"
    );
    // Of those that came with others and of short ones there is a copy.
    feed(&mut reader, &frames([10, 20_000, 10]));
    while let Some((header, body)) = reader.next().unwrap() {
        let kept = body.keep(&body);
        assert_eq!(
            kept.as_ptr() == body.as_ptr(),
            body.is_empty(),
            "{header:?}"
        );
    }
}

#[test]
#[should_panic(expected = "more bytes filled than there was space for")]
fn to_fill_more_than_the_space_is_a_bug() {
    let mut reader = FrameReader::new(100);
    let n = reader.space().len();
    reader.filled(n + 1);
}
