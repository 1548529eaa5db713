//! What crosses keeps its value, and its bytes are ours: they are written down here.
//!
//! A change of these bytes is a change of the protocol: count `frame::VERSION` or
//! `codec::CODEC_ID` up with it.

use offshoot_wire::dialogue::{Grant, Window};
use offshoot_wire::frame::{
    Allowed, Boot, CancelOrder, Credit, Enclosed, Ended, Entry, FailureBody, HEADER, Halt, Header,
    Introduce, Introduced, Invoke, Key, Kind, Reached, Ready, VERSION,
};
use offshoot_wire::{
    Bytes, Cancel, Canceller, Error, ErrorKind, Exit, FailureId, IsolateId, Origin, Panic, TreeId,
    codec,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn encoded<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode_into(value, &mut out).unwrap();
    out
}

/// The value has these bytes (hexadecimal, spaces as one likes), and they have this value.
#[track_caller]
fn golden<T: Serialize + DeserializeOwned + Debug>(value: T, bytes: &str) {
    let hex: String = encoded(&value)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, bytes.split_whitespace().collect::<String>());
    assert_eq!(
        format!("{:?}", codec::decode::<T>(&encoded(&value)).unwrap()),
        format!("{value:?}")
    );
}

fn id(slot: u32) -> IsolateId {
    IsolateId {
        process: 0x0a0b_0c0d,
        slot,
        generation: 1,
    }
}

fn origin() -> Origin {
    Origin {
        path: "root/a".to_owned(),
        id: id(2),
        pid: 300,
    }
}

// path, process, slot, generation, pid (zigzag)
const ORIGIN: &str = "06 726f6f742f61  fc0d0c0b0a 02 01  fb5802";

#[test]
fn the_bytes_of_a_header() {
    let header = Header {
        len: 0x0102_0304,
        kind: Kind::Call,
        correlation: 0x1112_1314_1516_1718,
    };
    let bytes = header.to_bytes();
    assert_eq!(
        bytes,
        [
            4, 3, 2, 1, 2, 0, 1, 0, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11
        ]
    );
    assert_eq!(Header::from_bytes(&bytes, 0x0102_0304), Ok(header));
    assert_eq!((HEADER, VERSION, codec::CODEC_ID), (16, 1, 1));
}

#[test]
fn the_numbers_of_the_kinds() {
    use Kind::*;
    let owner = [
        Boot, Call, Ask, Tell, Drop, Cancel, Close, Open, Introduce, Outfit, Inspect, Rest,
    ];
    let child = [
        Ready, Refused, Reply, Failure, Credit, CancelAck, Ended, Started, Inspected, Noticed,
        Resting,
    ];
    let both = [Item, End, Grant, Deaf, Halt, HaltSeen, Cut, Enclosed];
    let ring = [Offer, Accept, Switch];
    assert_eq!(
        owner.map(|kind| kind as u8),
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    );
    assert_eq!(
        child.map(|kind| kind as u8),
        [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]
    );
    assert_eq!(
        both.map(|kind| kind as u8),
        [32, 33, 34, 35, 36, 37, 38, 39]
    );
    assert_eq!(ring.map(|kind| kind as u8), [40, 41, 42]);
    let known: Vec<u8> = (0..=255)
        .filter(|&n| Kind::from_number(n).is_some())
        .collect();
    assert_eq!(
        known,
        [&owner[..], &child, &both, &ring]
            .concat()
            .iter()
            .map(|kind| *kind as u8)
            .collect::<Vec<_>>()
    );
    assert!(
        known
            .iter()
            .all(|&n| Kind::from_number(n).unwrap() as u8 == n)
    );
}

#[test]
fn the_bytes_of_an_invoke() {
    let entry = Entry {
        offset: 0x0102,
        fingerprint: 0x0304,
    };
    let invoke = Invoke {
        entry,
        sequence: 0x0506,
        lane: 0x0708,
    };
    let bytes = invoke.to_bytes();
    assert_eq!(
        bytes,
        [
            2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 6, 5, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0
        ]
    );
    assert_eq!(
        Invoke::split(&[&bytes[..], b"xy"].concat()),
        Some((invoke, &b"xy"[..]))
    );
    assert_eq!(Invoke::split(&bytes[..27]), None);
}

#[test]
fn the_bytes_of_boot() {
    let boot = Boot {
        build_id: vec![0xde, 0xad].into(),
        tree: TreeId(0x0102_0304_0506_0708),
        origin: origin(),
        parent: origin(),
        settings: vec![1, 2, 3].into(),
        entry: Some(Entry {
            offset: 0x1000,
            fingerprint: 9,
        }),
        state: Bytes::default(),
        on_start: None,
        environment: vec![
            ("A".to_owned(), Some("b".to_owned())),
            ("C".to_owned(), None),
        ],
    };
    let bytes = format!(
        "02 dead  fd0807060504030201  {ORIGIN}  {ORIGIN}  03 010203  01 fb0010 09  00  00  02 01 41 01 01 62  01 43 00"
    );
    golden(boot, &bytes);
}

#[test]
fn the_bytes_of_ready() {
    golden(
        Ready {
            pid: -1,
            build_id: vec![7].into(),
        },
        "01  01 07",
    );
}

#[test]
fn the_bytes_of_a_cancel_order() {
    let cancel = |by| CancelOrder {
        cancel: Cancel { by },
        grace_at: 250,
        hard_at: 251,
        last_at: 252,
    };
    golden(cancel(Canceller::Deadline), "03  fa  fbfb00  fbfc00");
    golden(
        cancel(Canceller::Nursery(origin())),
        &format!("00 {ORIGIN}  fa  fbfb00  fbfc00"),
    );
    golden(
        cancel(Canceller::Isolate(origin())),
        &format!("01 {ORIGIN}  fa  fbfb00  fbfc00"),
    );
    let parent = Canceller::Parent(origin(), Box::new(Canceller::Runtime));
    golden(
        cancel(parent),
        &format!("02 {ORIGIN} 06  fa  fbfb00  fbfc00"),
    );
    golden(
        cancel(Canceller::Dropped(origin())),
        &format!("04 {ORIGIN}  fa  fbfb00  fbfc00"),
    );
    golden(
        cancel(Canceller::Signal("INT".to_owned())),
        "05 03 494e54  fa  fbfb00  fbfc00",
    );
}

/// Every frame that a dialogue adds, whole: header and body.
#[test]
fn the_bytes_of_the_frames_of_a_dialogue() {
    let frame = |kind, body: &[u8]| {
        let header = Header {
            len: u32::try_from(body.len()).unwrap(),
            kind,
            correlation: 0x0102,
        };
        let bytes = [&header.to_bytes()[..], body].concat();
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let window = Window {
        items: 3,
        bytes: 0x0405,
    };
    let entry = Entry {
        offset: 1,
        fingerprint: 2,
    };
    let invoke = Invoke {
        entry,
        sequence: 3,
        lane: 4,
    };
    let open = [&invoke.to_bytes()[..], &window.to_bytes(), b"x"].concat();
    let grant = encoded(&Grant {
        items: 2,
        bytes: 300,
    });
    let cancel = Cancel {
        by: Canceller::Peer(origin()),
    };
    let halt = encoded(&Halt {
        cancel,
        grace_at: 251,
    });
    let head = |len: &str, kind: &str| format!("{len} 000000 {kind} 00 0100 0201000000000000");
    let cases = [
        (
            frame(Kind::Open, &open),
            format!(
                "{} 0100000000000000 0200000000000000 0300000000000000 04000000 03000000 05040000 78",
                head("25", "08")
            ),
        ),
        (
            frame(Kind::Started, b"ab"),
            format!("{} 6162", head("02", "17")),
        ),
        (
            frame(Kind::Item, b"ab"),
            format!("{} 6162", head("02", "20")),
        ),
        (frame(Kind::End, b""), head("00", "21")),
        (
            frame(Kind::Grant, &grant),
            format!("{} 02 fb2c01", head("04", "22")),
        ),
        (frame(Kind::Deaf, b""), head("00", "23")),
        (
            frame(Kind::Halt, &halt),
            format!(
                "{} 07 {ORIGIN} fbfb00",
                head(&format!("{:02x}", halt.len()), "24")
            ),
        ),
        (frame(Kind::HaltSeen, b""), head("00", "25")),
        (
            frame(Kind::Cut, &encoded(&Error::new(ErrorKind::Closed, "m"))),
            format!("{} 0c 01 6d 00 00 00 00 00 00", head("09", "26")),
        ),
    ];
    for (bytes, golden) in cases {
        assert_eq!(bytes, golden.replace(' ', ""));
    }
    assert_eq!(
        Window::split(&open[Invoke::SIZE..]),
        Some((window, &b"x"[..]))
    );
    assert_eq!(Window::split(&[1; 7]), None);
    for none in [[0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(Window::split(&none), None, "a window without room");
    }
    golden(
        Halt {
            cancel: Cancel {
                by: Canceller::HungUp(origin()),
            },
            grace_at: 1,
        },
        &format!("08 {ORIGIN} 01"),
    );
}

/// What comes beside a frame, and an introduction.
#[test]
fn the_bytes_of_portals() {
    let entry = Entry {
        offset: 1,
        fingerprint: 300,
    };
    let only = Allowed::Only {
        methods: true,
        cancel: false,
        entries: vec![entry],
    };
    golden(
        Introduce {
            holder: origin(),
            allowed: only.clone(),
            limits: (7, 300),
            key: Key::from_bytes([0xab; 16]),
        },
        &format!(
            "{ORIGIN}  01 01 00 01 01 fb2c01  07 fb2c01  {}",
            "ab".repeat(16)
        ),
    );
    let key = Key::from_bytes([0xab; 16]);
    let key_bytes = "ab".repeat(16);
    let socket = Reached::Socket {
        key,
        home: true,
        known: Some(key),
    };
    let introduced = |limits, allowed, reached| Introduced {
        origin: origin(),
        limits,
        allowed,
        reached,
    };
    assert_eq!(format!("{key:?}"), "Key(..)", "it is not printed");
    golden(
        Enclosed {
            waits: vec![(origin(), 3)],
            portals: vec![
                introduced((1024, 1), Allowed::All, socket),
                introduced((1, 2), only, Reached::Ended(Exit::Completed)),
                introduced((1, 1), Allowed::All, Reached::Key(key)),
                introduced((1, 1), Allowed::All, Reached::Receiver),
                introduced((1, 1), Allowed::All, Reached::Sender),
            ],
        },
        &format!(
            "01 {ORIGIN} 03  05 \
             {ORIGIN} fb0004 01 00 03 {key_bytes} 01 01 {key_bytes} \
             {ORIGIN} 01 02 01 01 00 01 01 fb2c01 04 00 \
             {ORIGIN} 01 01 00 02 {key_bytes} \
             {ORIGIN} 01 01 00 00 \
             {ORIGIN} 01 01 00 01"
        ),
    );
}

#[test]
fn the_bytes_of_credit() {
    golden(
        Credit {
            lane: 1,
            messages: 1024,
            calls: 70_000,
        },
        "01 fb0004 fc70110100",
    );
}

#[test]
fn the_bytes_of_ended() {
    let ended = |exit| Ended { exit, left: vec![] };
    let left = vec![Error::new(ErrorKind::Full, "stuck")];
    golden(
        Ended {
            exit: Exit::Completed,
            left,
        },
        "00  01 04 05 737475636b 00 00 00 00 00 00",
    );
    let panic = Panic {
        message: "no".to_owned(),
        location: Some("a:1:2".to_owned()),
        backtrace: None,
    };
    golden(
        ended(Exit::Panicked(panic)),
        "02 02 6e6f 01 05 613a313a32 00  00",
    );
    golden(
        ended(Exit::Cancelled(Cancel {
            by: Canceller::Runtime,
        })),
        "03 06  00",
    );
    let killed = Exit::Killed {
        signal: 11,
        name: "SIGSEGV".to_owned(),
        core: true,
        why: None,
    };
    golden(ended(killed), "04 16 07 53494753454756 01 00  00");
    golden(ended(Exit::Exited { code: 3 }), "05 06  00");
    golden(
        ended(Exit::Abandoned {
            doing: "x".to_owned(),
            after_ms: 3000,
        }),
        "06 01 78 fbb80b  00",
    );
    golden(ended(Exit::Unkillable { pid: 1 }), "07 02  00");
    golden(
        ended(Exit::Lost {
            why: "?".to_owned(),
        }),
        "08 01 3f  00",
    );
    golden(
        ended(Exit::Failed(Error::new(ErrorKind::Full, ""))),
        "01 04 00 00 00 00 00 00 00  00",
    );
}

#[test]
fn the_bytes_of_refused_and_failure() {
    let bare = |kind| Error::new(kind, "m");
    // kind, message, type's name, chain, origin, route, id, others
    let rest = "01 6d  00 00 00 00 00 00";
    golden::<FailureBody>(
        bare(ErrorKind::Cancelled(Cancel {
            by: Canceller::Deadline,
        })),
        &format!("00 03 {rest}"),
    );
    golden::<FailureBody>(bare(ErrorKind::TimedOut(5)), &format!("01 05 {rest}"));
    golden::<FailureBody>(
        bare(ErrorKind::Ended(Box::new(Exit::Completed))),
        &format!("02 00 {rest}"),
    );
    let panic = Panic {
        message: "no".to_owned(),
        location: None,
        backtrace: Some("b".to_owned()),
    };
    golden::<FailureBody>(
        bare(ErrorKind::Panicked(panic)),
        &format!("03 02 6e6f 00 01 01 62 {rest}"),
    );
    golden::<FailureBody>(bare(ErrorKind::Full), &format!("04 {rest}"));
    golden::<FailureBody>(
        bare(ErrorKind::Spawn("fork".to_owned())),
        &format!("05 04 666f726b {rest}"),
    );
    golden::<FailureBody>(bare(ErrorKind::Io(Some(2))), &format!("06 01 04 {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Protocol), &format!("07 {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Codec), &format!("08 {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Misuse), &format!("09 {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Several), &format!("0a {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Other), &format!("0b {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Closed), &format!("0c {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Lagged(300)), &format!("0d fb2c01 {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Cycle(Vec::new())), &format!("0e 00 {rest}"));
    golden::<FailureBody>(bare(ErrorKind::Cut(300)), &format!("0f fb2c01 {rest}"));

    let hop = Origin {
        path: "root".to_owned(),
        ..origin()
    };
    let hop = Origin { id: id(0), ..hop };
    let full = Error::several(bare(ErrorKind::Full), vec![bare(ErrorKind::Protocol)])
        .with_id(FailureId(9))
        .leaving(&origin())
        .leaving(&hop);
    let trail = format!("01 {ORIGIN}  01 04 726f6f74 fc0d0c0b0a 00 01 fb5802");
    let message = "18 32206661696c757265732c207468652066697273743a206d";
    golden::<FailureBody>(
        full,
        &format!(
            "0a {message} 00 00 {trail} 01 09  02  04 016d 00 00 {trail} 00 00  07 016d 00 00 {trail} 00 00"
        ),
    );
}

#[test]
fn the_bytes_of_bytes_are_those_of_a_vector() {
    golden(Bytes::from(b"abc"), "03 616263");
    for len in [0, 250, 251, 65_535, 65_536] {
        let plain: Vec<u8> = (0..len).map(|n| n as u8).collect();
        assert_eq!(encoded(&Bytes::from(plain.clone())), encoded(&plain));
        assert_eq!(
            codec::decode::<Bytes>(&encoded(&plain)).unwrap().into_vec(),
            plain
        );
    }
}

// ---- decode ∘ encode = id ----

fn ids() -> impl Strategy<Value = IsolateId> {
    any::<(u32, u32, u32)>().prop_map(|(process, slot, generation)| IsolateId {
        process,
        slot,
        generation,
    })
}

fn origins() -> impl Strategy<Value = Origin> {
    (".{0,12}", ids(), any::<i32>()).prop_map(|(path, id, pid)| Origin { path, id, pid })
}

fn panics() -> impl Strategy<Value = Panic> {
    (".{0,12}", option::of(".{0,12}"), option::of(".{0,12}")).prop_map(
        |(message, location, backtrace)| Panic {
            message,
            location,
            backtrace,
        },
    )
}

fn cancels() -> impl Strategy<Value = Cancel> {
    let first = prop_oneof![
        origins().prop_map(Canceller::Nursery),
        origins().prop_map(Canceller::Isolate),
        origins().prop_map(Canceller::Peer),
        origins().prop_map(Canceller::HungUp),
        Just(Canceller::Deadline),
        origins().prop_map(Canceller::Dropped),
        ".{0,8}".prop_map(Canceller::Signal),
        Just(Canceller::Runtime),
    ];
    let by = first.prop_recursive(6, 6, 1, |inner| {
        (origins(), inner).prop_map(|(origin, first)| Canceller::Parent(origin, Box::new(first)))
    });
    by.prop_map(|by| Cancel { by })
}

fn exits_of(errors: BoxedStrategy<Error>) -> impl Strategy<Value = Exit> {
    prop_oneof![
        Just(Exit::Completed),
        errors.prop_map(Exit::Failed),
        panics().prop_map(Exit::Panicked),
        cancels().prop_map(Exit::Cancelled),
        (any::<i32>(), ".{0,8}", any::<bool>(), option::of(".{0,8}")).prop_map(
            |(signal, name, core, why)| Exit::Killed {
                signal,
                name,
                core,
                why
            }
        ),
        any::<i32>().prop_map(|code| Exit::Exited { code }),
        (".{0,12}", any::<u64>()).prop_map(|(doing, after_ms)| Exit::Abandoned { doing, after_ms }),
        any::<i32>().prop_map(|pid| Exit::Unkillable { pid }),
        ".{0,12}".prop_map(|why| Exit::Lost { why }),
    ]
}

fn errors() -> BoxedStrategy<Error> {
    let kinds = prop_oneof![
        cancels().prop_map(ErrorKind::Cancelled),
        any::<u64>().prop_map(ErrorKind::TimedOut),
        panics().prop_map(ErrorKind::Panicked),
        Just(ErrorKind::Full),
        ".{0,8}".prop_map(ErrorKind::Spawn),
        any::<Option<i32>>().prop_map(ErrorKind::Io),
        Just(ErrorKind::Protocol),
        Just(ErrorKind::Codec),
        Just(ErrorKind::Misuse),
        Just(ErrorKind::Several),
        Just(ErrorKind::Other),
        Just(ErrorKind::Closed),
        any::<u64>().prop_map(ErrorKind::Lagged),
        vec(origins(), 0..3).prop_map(ErrorKind::Cycle),
        any::<u64>().prop_map(ErrorKind::Cut),
    ];
    let leaf = prop_oneof![
        (kinds, ".{0,12}").prop_map(|(kind, message)| Error::new(kind, message)),
        ".{0,12}".prop_map(
            |message| Error::other(std::io::Error::other(std::io::Error::other(message)))
        ),
    ];
    let dressed =
        (leaf, vec(origins(), 0..3), any::<Option<u64>>()).prop_map(|(error, hops, id)| {
            let error = hops.iter().fold(error, Error::leaving);
            id.map_or(error.clone(), |id| error.with_id(FailureId(id)))
        });
    dressed
        .prop_recursive(4, 16, 4, |inner| {
            prop_oneof![
                exits_of(inner.clone().boxed())
                    .prop_map(|exit| Error::new(ErrorKind::Ended(Box::new(exit)), "ended")),
                (inner.clone(), vec(inner, 0..4))
                    .prop_map(|(cause, others)| Error::several(cause, others)),
            ]
        })
        .boxed()
}

fn byte_vectors() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 200..300)]
}

fn entries() -> impl Strategy<Value = Entry> {
    any::<(u64, u64)>().prop_map(|(offset, fingerprint)| Entry {
        offset,
        fingerprint,
    })
}

fn boots() -> impl Strategy<Value = Boot> {
    let who = (byte_vectors(), any::<u64>(), origins(), origins());
    let what = (
        byte_vectors(),
        option::of(entries()),
        byte_vectors(),
        option::of(entries()),
    );
    let environment = vec((".{0,8}", option::of(".{0,8}")), 0..4);
    (who, what, environment).prop_map(|(who, what, environment)| {
        let (build_id, tree, origin, parent) = who;
        let (settings, entry, state, on_start) = what;
        Boot {
            build_id: build_id.into(),
            tree: TreeId(tree),
            origin,
            parent,
            settings: settings.into(),
            entry,
            state: state.into(),
            on_start,
            environment,
        }
    })
}

/// Equal where the type can tell, else by what it prints, and in any case by its bytes.
fn survives<T: Serialize + DeserializeOwned + Debug>(value: &T) -> T {
    let bytes = encoded(value);
    let back = codec::decode::<T>(&bytes).unwrap();
    assert_eq!(encoded(&back), bytes);
    assert_eq!(format!("{back:?}"), format!("{value:?}"));
    // No prefix of an encoding is one, and nothing may follow it.
    for cut in 0..bytes.len() {
        assert!(codec::decode::<T>(&bytes[..cut]).is_err());
    }
    assert!(codec::decode::<T>(&[&bytes[..], &[0]].concat()).is_err());
    back
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 4 } else { 256 };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn ids_and_origins_survive(origin in origins(), tree in any::<u64>(), failure in any::<u64>()) {
        prop_assert_eq!(survives(&origin), origin.clone());
        prop_assert_eq!(survives(&origin.id), origin.id);
        prop_assert_eq!(survives(&TreeId(tree)), TreeId(tree));
        prop_assert_eq!(survives(&FailureId(failure)), FailureId(failure));
    }

    #[test]
    fn cancels_and_panics_survive(cancel in cancels(), panic in panics(), at in any::<(u64, u64, u64)>()) {
        prop_assert_eq!(survives(&panic), panic);
        prop_assert_eq!(survives(&cancel), cancel.clone());
        let order = CancelOrder { cancel, grace_at: at.0, hard_at: at.1, last_at: at.2 };
        prop_assert_eq!(survives(&order), order);
    }

    #[test]
    fn errors_survive(error in errors()) {
        let back = survives(&error).arrived();
        prop_assert_eq!(back.message(), error.message());
        prop_assert_eq!(back.type_name(), error.type_name());
        prop_assert_eq!(back.id(), error.id());
        prop_assert_eq!(back.origin(), error.origin());
        prop_assert_eq!(back.route(), error.route());
        prop_assert_eq!(back.chain().collect::<Vec<_>>(), error.chain().collect::<Vec<_>>());
        prop_assert_eq!(back.failures().len(), error.failures().len());
        prop_assert_eq!(back.report(), error.report());
    }

    #[test]
    fn ends_survive(exit in exits_of(errors()), left in vec(errors(), 0..3)) {
        survives(&exit);
        survives(&Ended { exit, left });
    }

    #[test]
    fn boots_survive(boot in boots()) {
        let back = survives(&boot);
        prop_assert_eq!((back.build_id, back.settings, back.state), (boot.build_id, boot.settings, boot.state));
        prop_assert_eq!((back.entry, back.on_start, back.environment), (boot.entry, boot.on_start, boot.environment));
    }

    #[test]
    fn small_ones_survive(pid in any::<i32>(), bytes in byte_vectors(), n in any::<(u32, u32, u32)>(), entry in entries()) {
        let ready = Ready { pid, build_id: bytes.clone().into() };
        prop_assert_eq!(survives(&ready), ready);
        let credit = Credit { lane: n.0, messages: n.1, calls: n.2 };
        prop_assert_eq!(survives(&credit), credit);
        prop_assert_eq!(survives(&entry), entry);
        let bytes = Bytes::from(bytes);
        prop_assert_eq!(survives(&bytes), bytes);
    }

    #[test]
    fn headers_and_invokes_survive(len in 0..=1000_u32, number in any::<u8>(), correlation in any::<u64>(), entry in entries(), sequence in any::<u64>(), lane in any::<u32>()) {
        if let Some(kind) = Kind::from_number(number) {
            let header = Header { len, kind, correlation };
            prop_assert_eq!(Header::from_bytes(&header.to_bytes(), 1000), Ok(header));
        }
        let invoke = Invoke { entry, sequence, lane };
        let bytes = invoke.to_bytes();
        prop_assert_eq!(Invoke::split(&bytes), Some((invoke, &[][..])));
    }
}
