//! Replays the committed corpus of the fuzz targets, so that the gate needs no fuzzer.
//!
//! Some of its files are made here, so that they follow the protocol: `OFFSHOOT_BLESS=1` writes
//! them anew. Others were found; whatever a fuzzer finds is put beside them.

#![cfg(not(miri))]

use offshoot_wire::frame::{
    Allowed, Enclosed, Entry, Header, Introduce, Introduced, Key, Kind, Reached, Ready,
};
use offshoot_wire::{Cancel, Canceller, Error, ErrorKind, Exit, IsolateId, Origin, codec};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

// Public there, for it is the library of the fuzz targets.
#[allow(unreachable_pub)]
#[path = "../fuzz/checks.rs"]
mod checks;

#[allow(unreachable_pub)]
#[path = "../fuzz/dialogue.rs"]
mod talk;

#[allow(unreachable_pub)]
#[path = "../fuzz/order.rs"]
mod order;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

/// All files of a target's corpus, by name.
fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder(target)).unwrap();
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (
            entry.file_name().into_string().unwrap(),
            std::fs::read(entry.path()).unwrap(),
        )
    };
    entries.map(file).collect()
}

#[test]
fn the_corpus_of_values_holds() {
    let files = corpus("value");
    let mut seen = [false; checks::CHOICES as usize];
    for bytes in files.values() {
        checks::value(bytes);
        seen[usize::from(bytes.first().copied().unwrap_or(0) % checks::CHOICES)] = true;
    }
    assert_eq!(seen, [true; checks::CHOICES as usize], "a type has no file");
}

#[test]
fn the_corpus_of_streams_holds() {
    let files = corpus("stream");
    assert!(files.len() >= 5);
    files.values().for_each(|bytes| checks::stream(bytes));
}

#[test]
fn the_corpus_of_dialogues_holds() {
    let files = corpus("dialogue");
    assert!(files.len() >= 6);
    for bytes in files.values() {
        talk::dialogue(bytes);
        talk::hostile(bytes);
    }
}

#[test]
fn the_corpus_of_handshakes_holds() {
    let files = corpus("handshake");
    assert!(files.len() >= 8);
    files.values().for_each(|bytes| order::order(bytes));
}

/// A seed that no longer decodes would still be replayed, and test nothing.
#[test]
fn the_seeds_are_those_of_this_protocol() {
    for (target, name, bytes) in seeds() {
        let path = folder(target).join(name);
        if std::env::var_os("OFFSHOOT_BLESS").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let there = std::fs::read(&path).unwrap_or_default();
        assert!(
            there == bytes,
            "{target}/{name} is out of date: run this test with OFFSHOOT_BLESS=1"
        );
    }
}

fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let origin = Origin {
        path: "root/a".to_owned(),
        id: IsolateId {
            process: 7,
            slot: 1,
            generation: 0,
        },
        pid: 42,
    };
    let cancel = Cancel {
        by: Canceller::Parent(origin.clone(), Box::new(Canceller::Deadline)),
    };
    let hop = origin.clone();
    let only = Allowed::Only {
        methods: true,
        cancel: false,
        entries: vec![Entry {
            offset: 4_096,
            fingerprint: 9,
        }],
    };
    let key = Key::from_bytes([7; 16]);
    let introduced = Introduced {
        origin: origin.clone(),
        limits: (1_024, 1),
        allowed: only.clone(),
        reached: Reached::Socket {
            key,
            home: true,
            known: Some(key),
        },
    };
    let enclosed = Enclosed {
        waits: vec![(origin.clone(), 3), (origin.clone(), 0)],
        portals: vec![introduced],
    };
    let introduce = Introduce {
        holder: origin.clone(),
        allowed: only,
        limits: (7, 1_024),
        key,
    };
    let exit = Exit::Killed {
        signal: 11,
        name: "SIGSEGV".to_owned(),
        core: false,
        why: None,
    };
    let ended = Error::new(ErrorKind::Ended(Box::new(exit.clone())), "gone").leaving(&origin);
    let several = Error::several(ended, vec![Error::other(std::io::Error::other("disk"))]);
    let value = |choice: u8, encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = vec![choice];
        encode(&mut out);
        out
    };
    fn put<T: Serialize>(value: T) -> impl Fn(&mut Vec<u8>) {
        move |out| codec::encode_into(&value, out).unwrap()
    }
    let frame = |kind, len: u32, body: &[u8]| {
        [
            &Header {
                len,
                kind,
                correlation: 1,
            }
            .to_bytes()[..],
            body,
        ]
        .concat()
    };
    let stream = |parts: &[Vec<u8>]| [&[1, 2, 3, 4, 5, 6, 7, 8][..], &parts.concat()].concat();
    let small = frame(Kind::Close, 0, &[]);
    let reply = frame(Kind::Reply, 5, b"hello");
    let long = frame(Kind::Call, 2000, &[0x55; 2000]);
    vec![
        ("value", "error", value(0, &put(several))),
        (
            "value",
            "error-nested",
            [&[0][..], &[2, 1].repeat(200)].concat(),
        ),
        (
            "value",
            "error-others",
            [&[0][..], &[11, 0, 0, 0, 0, 0, 0, 1].repeat(100)].concat(),
        ),
        ("value", "exit", value(1, &put(exit))),
        (
            "value",
            "boot-cut",
            [&[2, 2, 0xde, 0xad, 253][..], &[1; 20]].concat(),
        ),
        (
            "value",
            "ready",
            value(
                3,
                &put(Ready {
                    pid: 1,
                    build_id: vec![1; 20].into(),
                }),
            ),
        ),
        (
            "value",
            "cancel-order",
            value(4, &put((cancel.clone(), 300_u64, 1_u64 << 40))),
        ),
        (
            "value",
            "credit",
            value(5, &put((1_u32, 70_000_u32, 3_u32))),
        ),
        (
            "value",
            "ended",
            value(6, &put((Exit::Completed, Vec::<Error>::new()))),
        ),
        ("value", "origin", value(7, &put(origin.clone()))),
        ("value", "cancel", value(8, &put(cancel))),
        (
            "value",
            "bytes-length",
            [&[9, 253][..], &(1_u64 << 62).to_le_bytes()].concat(),
        ),
        (
            "value",
            "strings",
            value(
                10,
                &put(vec![("ü".to_owned(), Some('→')), (String::new(), None)]),
            ),
        ),
        (
            "value",
            "strings-length",
            [&[10, 253][..], &u64::MAX.to_le_bytes()].concat(),
        ),
        ("value", "number-too-wide", vec![5, 254, 0, 0, 0, 0]),
        (
            "value",
            "number-longer-than-needed",
            vec![5, 251, 1, 0, 1, 1],
        ),
        ("value", "call", [&[11][..], &[9; 40]].concat()),
        (
            "value",
            "halt",
            value(
                12,
                &put((
                    Cancel {
                        by: Canceller::Peer(hop.clone()),
                    },
                    9_u64,
                )),
            ),
        ),
        ("value", "grant", value(13, &put((2_u32, 70_000_u64)))),
        ("value", "enclosed", value(14, &put(enclosed))),
        ("value", "introduce", value(15, &put(introduce))),
        // Opened, started, an item each way, both taken, ended both ways, over.
        (
            "dialogue",
            "a-whole-one",
            vec![
                3, 9, 0x80, 0, 0x0f, 0, 1, 5, 0x81, 6, 0x8f, 0, 0x0f, 0, 9, 0, 0x89, 0, 4, 0, 0x84,
                0, 0x0f, 0, 0x8f, 0, 0x88, 0, 0x0f, 0,
            ],
        ),
        (
            "dialogue",
            "a-window-that-fills",
            [
                &[1, 0, 0x80, 0, 0x0f, 0][..],
                &[1, 3].repeat(9),
                &[0x8f, 0].repeat(9),
            ]
            .concat(),
        ),
        (
            "dialogue",
            "bytes-that-fill",
            [
                &[8, 10, 0x80, 0, 0x0f, 0][..],
                &[1, 255].repeat(4),
                &[0x8f, 0, 0x89, 0].repeat(4),
            ]
            .concat(),
        ),
        (
            "dialogue",
            "halted-before-it-started",
            vec![4, 4, 6, 0, 0x8f, 0, 0x87, 0, 0x88, 0, 0x0f, 0, 0x0f, 0],
        ),
        (
            "dialogue",
            "deaf-with-items-under-way",
            vec![
                4, 4, 0x80, 0, 0x0f, 0, 1, 3, 1, 3, 0x85, 0, 0x8f, 0, 0x8f, 0, 0x0f, 0, 1, 3,
            ],
        ),
        (
            "dialogue",
            "over-with-items-under-way",
            vec![4, 4, 0x80, 0, 0x0f, 0, 1, 3, 0x88, 0, 0x8f, 0, 0x0f, 0],
        ),
        (
            "dialogue",
            "items-before-the-start",
            vec![0, 4, 4, 1, 1, 1, 1],
        ),
        ("dialogue", "grants-of-nothing", vec![1, 4, 4, 7, 0, 7, 200]),
        (
            "dialogue",
            "more-than-the-window",
            [&[1, 2, 200][..], &[1, 1].repeat(20)].concat(),
        ),
        // Who sends, in pieces of which size, then kind, correlation, length and body of each.
        (
            "handshake",
            "owner",
            vec![
                0, 8, 39, 0, 0, 1, 0, 0, 2, 1, 1, 5, 8, 2, 0, 32, 2, 1, 7, 33, 2, 0, 7, 0, 0,
            ],
        ),
        (
            "handshake",
            "owner-that-forgets-to-boot",
            vec![0, 0, 2, 1, 0],
        ),
        (
            "handshake",
            "child",
            [
                &[1, 200, 16, 0, 22, 84, 20][..],
                &[1; 20],
                &[
                    18, 1, 0, 23, 2, 0, 32, 2, 0, 20, 0, 3, 1, 1, 1, 22, 0, 2, 0, 0, 19, 1, 0,
                ],
            ]
            .concat(),
        ),
        (
            "handshake",
            "child-that-refuses",
            vec![1, 2, 17, 0, 0, 18, 1, 0],
        ),
        (
            "handshake",
            "two-ends",
            vec![1, 2, 16, 0, 0, 22, 0, 0, 22, 0, 0],
        ),
        (
            "handshake",
            "holder",
            vec![
                2, 254, 39, 3, 2, 0, 0, 3, 3, 0, 4, 1, 0, 9, 0, 0, 7, 0, 0, 5, 3, 0,
            ],
        ),
        (
            "handshake",
            "enclosed-in-nothing",
            vec![2, 2, 39, 3, 2, 0, 0, 34, 3, 0],
        ),
        (
            "handshake",
            "isolate",
            vec![
                3, 6, 39, 1, 0, 18, 1, 0, 7, 0, 0, 21, 0, 0, 22, 0, 0, 37, 2, 0,
            ],
        ),
        (
            "handshake",
            "raw",
            [&[2, 7][..], &small[..], &reply[..]].concat(),
        ),
        (
            "stream",
            "frames",
            stream(&[small.clone(), reply.clone(), long.clone(), reply.clone()]),
        ),
        (
            "stream",
            "cut-in-header",
            stream(&[reply.clone(), small[..9].to_vec()]),
        ),
        (
            "stream",
            "cut-in-body",
            stream(&[small.clone(), long[..1000].to_vec()]),
        ),
        (
            "stream",
            "unknown-kind",
            stream(&[
                small.clone(),
                vec![0, 0, 0, 0, 200, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ]),
        ),
        (
            "stream",
            "too-long",
            stream(&[small, frame(Kind::Ask, u32::MAX, b"x")]),
        ),
        (
            "stream",
            "other-version",
            stream(&[reply, vec![0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]]),
        ),
    ]
}
