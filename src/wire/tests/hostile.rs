//! Bytes and values made to hurt: each is an error, soon, in little memory and on a small stack.
//!
//! A decoder that fails here aborts or eats the machine, so each case runs in a child process, and
//! the parent looks at how that ended and at how much memory it had taken.

#![cfg(not(miri))]

use offshoot_wire::{Bytes, Cancel, Canceller, Error, ErrorKind, Exit, IsolateId, Origin, codec};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Names the case that this process is to run; unset in the process that the test harness started.
const CASE: &str = "OFFSHOOT_WIRE_HOSTILE_CASE";
/// A watchdog, not a promise: each case takes milliseconds.
const BOUND: Duration = Duration::from_secs(60);
/// Half of the usual stack of a thread, and this is a debug build.
const STACK: usize = 1 << 20;
const MIB: u64 = 1 << 20;

/// Runs `work` in a process of its own and fails if that dies, hangs or takes more than `mib`.
fn isolated(name: &str, mib: u64, work: impl FnOnce() + Send + 'static) {
    if std::env::var_os(CASE).is_some() {
        let (done, wait) = mpsc::channel();
        let before = peak();
        let worker = thread::Builder::new().stack_size(STACK).spawn(move || {
            work();
            // Not reached if the work panics; the receiver is then told by the closed channel.
            done.send(()).unwrap();
        });
        worker.unwrap();
        match wait.recv_timeout(BOUND) {
            Ok(()) => {}
            Err(error) => panic!("the case did not end well: {error}"),
        }
        let taken = peak().saturating_sub(before);
        assert!(
            taken <= mib * MIB,
            "it took {} KiB, {} KiB are allowed",
            taken >> 10,
            mib << 10
        );
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CASE, name)
        .output()
        .unwrap();
    assert!(
        child.status.success(),
        "{}\n{}{}",
        child.status,
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(
        String::from_utf8_lossy(&child.stdout).contains("1 passed"),
        "no test is called {name}"
    );
}

/// The most memory that this process has had, in bytes; 0 where the system does not tell.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

#[track_caller]
fn refused<T: DeserializeOwned>(bytes: &[u8], why: &str) {
    match codec::decode::<T>(bytes) {
        Ok(_) => panic!("{} bytes were decoded", bytes.len()),
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
    }
}

/// A length as the codec writes it, in nine bytes.
fn length(len: u64) -> Vec<u8> {
    [&[253][..], &len.to_le_bytes()].concat()
}

#[derive(Serialize, Deserialize)]
struct Unit;

#[derive(Serialize, Deserialize)]
enum Chain {
    End,
    Link(Box<Chain>),
}

#[derive(Serialize, Deserialize)]
struct Shell(Option<Box<Shell>>);

#[derive(Serialize, Deserialize)]
struct Tree(Vec<Tree>);

#[derive(Serialize, Deserialize)]
struct Table(BTreeMap<u8, Table>);

#[derive(Serialize, Deserialize)]
enum Fields {
    End,
    Tuple(u8, Box<Fields>),
    Struct { next: Box<Fields> },
}

/// Cannot exist, and a decoder that trusts its type looks for it forever without reading a byte.
#[derive(Deserialize)]
struct Endless {
    _inner: Box<Endless>,
}

#[test]
fn f35_a_length_that_is_not_there_allocates_nothing() {
    isolated(
        "f35_a_length_that_is_not_there_allocates_nothing",
        4,
        || {
            for len in [1, 1 << 20, 100 << 20, 1 << 32, 1 << 62, u64::MAX] {
                let bytes = length(len);
                refused::<String>(&bytes, "more are needed");
                refused::<Bytes>(&bytes, "more are needed");
                refused::<Box<str>>(&bytes, "more are needed");
                refused::<Vec<u8>>(&bytes, "more are needed");
            }
            for len in [1 << 20, 1 << 32, 1 << 62, u64::MAX] {
                let bytes = length(len);
                refused::<Vec<u64>>(&bytes, "more elements than");
                refused::<Vec<[u64; 32]>>(&bytes, "more elements than");
                refused::<BTreeMap<u64, u64>>(&bytes, "more elements than");
            }
            refused::<Vec<u8>>(&length(100), "more are needed");
        },
    );
}

#[test]
fn f35_elements_without_bytes_are_bounded() {
    isolated("f35_elements_without_bytes_are_bounded", 4, || {
        for len in [1 << 20, 1 << 32, u64::MAX] {
            refused::<Vec<()>>(&length(len), "more elements than");
            refused::<Vec<Unit>>(&length(len), "more elements than");
            refused::<BTreeMap<(), ()>>(&length(len), "more elements than");
        }
        // Many small bombs are one: the budget is for the whole value.
        let bombs = [&[251, 232, 3][..], &[251, 232, 3].repeat(1000)].concat();
        refused::<Vec<Vec<()>>>(&bombs, "more elements than");
        // Up to the budget they are values as any other.
        assert_eq!(codec::decode::<Vec<()>>(&[250]).unwrap().len(), 250);
    });
}

#[test]
fn f35_nesting_is_an_error_not_a_stack_overflow() {
    isolated("f35_nesting_is_an_error_not_a_stack_overflow", 8, || {
        const DEEP: usize = 900_000;
        let deep = |unit: &[u8]| unit.repeat(DEEP / unit.len());
        refused::<Chain>(&deep(&[1]), "nested deeper");
        refused::<Shell>(&deep(&[1]), "nested deeper");
        refused::<Tree>(&deep(&[1]), "nested deeper");
        refused::<Table>(&deep(&[1, 0]), "nested deeper");
        refused::<Fields>(&deep(&[1, 0]), "nested deeper");
        refused::<Fields>(&deep(&[2]), "nested deeper");
        refused::<Endless>(&[], "nested deeper");
    });
}

#[test]
fn the_deepest_value_that_is_allowed_fits_the_stack_both_ways() {
    isolated(
        "the_deepest_value_that_is_allowed_fits_the_stack_both_ways",
        8,
        || {
            let chain =
                |depth| (1..depth).fold(Chain::End, |chain, _| Chain::Link(Box::new(chain)));
            let mut out = Vec::new();
            codec::encode_into(&chain(128), &mut out).unwrap();
            assert_eq!(out.len(), 128);
            codec::decode::<Chain>(&out).unwrap();
            out.insert(0, 1);
            refused::<Chain>(&out, "nested deeper than the limit of 128 levels");
            assert!(
                codec::encode_into(&chain(129), &mut out)
                    .unwrap_err()
                    .to_string()
                    .contains("nested deeper")
            );
        },
    );
}

#[test]
fn a_deep_value_is_not_encoded() {
    isolated("a_deep_value_is_not_encoded", 64, || {
        let mut out = b"kept".to_vec();
        let mut chain = Chain::End;
        let mut shell = Shell(None);
        for _ in 0..100_000 {
            chain = Chain::Link(Box::new(chain));
            shell = Shell(Some(Box::new(shell)));
        }
        assert!(
            codec::encode_into(&chain, &mut out)
                .unwrap_err()
                .to_string()
                .contains("nested deeper")
        );
        assert!(
            codec::encode_into(&shell, &mut out)
                .unwrap_err()
                .to_string()
                .contains("nested deeper")
        );
        assert_eq!(out, b"kept");
        // To drop them would recurse as well, and that is none of the codec's business.
        std::mem::forget((chain, shell));
    });
}

#[test]
fn an_error_within_errors_is_bounded_both_ways() {
    isolated("an_error_within_errors_is_bounded_both_ways", 64, || {
        let wrap = |inner| Error::new(ErrorKind::Ended(Box::new(Exit::Failed(inner))), "gone");
        let mut error = Error::new(ErrorKind::Other, "deep inside");
        let mut out = Vec::new();
        let mut depth = 0;
        while codec::encode_into(&error, &mut out).is_ok() {
            out.clear();
            error = wrap(error);
            depth += 1;
        }
        assert!((24..64).contains(&depth), "{depth} processes deep");
        for _ in 0..100_000 {
            error = wrap(error);
        }
        assert!(codec::encode_into(&error, &mut out).is_err());
        std::mem::forget(error);

        // `Ended`, `Failed`, and so on: kind 2 holds an exit, exit 1 holds an error.
        refused::<Error>(&[2, 1].repeat(450_000), "nested deeper");
        // The others: all fields empty up to the vector of errors, which has one.
        refused::<Error>(&[11, 0, 0, 0, 0, 0, 0, 1].repeat(100_000), "nested deeper");
        // The canceller's parents: cancelled by a parent, whose origin is empty.
        let parents = [&[0][..], &[2, 0, 0, 0, 0, 0].repeat(100_000)].concat();
        refused::<Error>(&parents, "nested deeper");
        refused::<Exit>(&[1, 2].repeat(450_000), "nested deeper");
    });
}

/// What was decoded is used: printed, passed on and dropped, on the same small stack.
#[test]
fn the_deepest_error_that_arrives_can_be_used() {
    isolated("the_deepest_error_that_arrives_can_be_used", 64, || {
        let origin = Origin {
            path: "root/a".to_owned(),
            id: IsolateId {
                process: 1,
                slot: 2,
                generation: 0,
            },
            pid: 3,
        };
        let mut error = Error::new(ErrorKind::Other, "deep inside").leaving(&origin);
        let mut canceller = Canceller::Deadline;
        let (mut out, mut spare) = (Vec::new(), Vec::new());
        loop {
            let next = Error::several(error.clone(), vec![Error::new(ErrorKind::Full, "full")]);
            spare.clear();
            if codec::encode_into(&next, &mut spare).is_err() {
                break;
            }
            (error, out) = (next, spare.clone());
        }
        assert!(error.failures().len() > 30);
        let back = codec::decode::<Error>(&out)
            .unwrap()
            .arrived()
            .leaving(&origin);
        assert!(back.report().contains("deep inside"));
        assert!(format!("{back:#} {back:?}").contains("failures"));
        let _ = back.clone();

        loop {
            let by = Canceller::Parent(origin.clone(), Box::new(canceller.clone()));
            spare.clear();
            if codec::encode_into(&Cancel { by: by.clone() }, &mut spare).is_err() {
                break;
            }
            (canceller, out) = (by, spare.clone());
        }
        assert!(
            codec::decode::<Cancel>(&out)
                .unwrap()
                .to_string()
                .ends_with("a deadline")
        );
    });
}

/// 900 000 empty vectors in 900 004 bytes are an ordinary value of 21 MiB, so they are decoded. What
/// is refused is the same up to the longest body, which would take half a gigabyte.
#[test]
fn short_encodings_of_large_values_are_bounded() {
    isolated("short_encodings_of_large_values_are_bounded", 80, || {
        let empties = |len: u32| [&[252][..], &len.to_le_bytes(), &vec![0; len as usize]].concat();
        assert_eq!(
            codec::decode::<Vec<Vec<u8>>>(&empties(900_000))
                .unwrap()
                .len(),
            900_000
        );
    });
}

#[test]
fn the_memory_of_a_body_is_bounded() {
    isolated("the_memory_of_a_body_is_bounded", 640, || {
        let mut body = vec![0; offshoot_wire::frame::BODY_MAX];
        body[0] = 252;
        let elements = body.len() as u32 - 5;
        body[1..5].copy_from_slice(&elements.to_le_bytes());
        refused::<Vec<Vec<u8>>>(&body, "bytes of memory");
        refused::<Vec<Option<[u64; 32]>>>(&body, "bytes of memory");
        // Errors lie in boxes, so that a vector of them hides their size. The shortest is eight bytes.
        body[1..5].copy_from_slice(&(elements / 8).to_le_bytes());
        body.truncate(5 + elements as usize / 8 * 8);
        body[5..].chunks_exact_mut(8).for_each(|error| error[0] = 4);
        refused::<Vec<Error>>(&body, "bytes of memory");
    });
}

#[test]
fn two_million_small_numbers_are_no_attack() {
    let mut out = Vec::new();
    codec::encode_into(&vec![1_u64; 3_000_000], &mut out).unwrap();
    assert_eq!(codec::decode::<Vec<u64>>(&out).unwrap().len(), 3_000_000);
}

#[test]
fn the_length_is_exact() {
    let mut out = Vec::new();
    codec::encode_into(&(7_u8, "seven"), &mut out).unwrap();
    codec::decode::<(u8, String)>(&out).unwrap();
    for cut in 0..out.len() {
        refused::<(u8, String)>(&out[..cut], "more are needed");
    }
    out.push(0);
    refused::<(u8, String)>(&out, "it ends at byte 7 of 8");
    refused::<()>(&out, "it ends at byte 0 of 8");
}

#[test]
fn both_directions_have_the_same_limit() {
    use codec::VALUE_MAX;
    let mut out = b"kept".to_vec();
    let longest = Bytes::from(vec![7; VALUE_MAX - 5]);
    codec::encode_into(&longest, &mut out).unwrap();
    assert_eq!(out.len(), 4 + VALUE_MAX);
    assert!(codec::decode::<Bytes>(&out[4..]).unwrap() == longest);
    out.truncate(4);
    let longer = Bytes::from(vec![7; VALUE_MAX - 4]);
    let error = codec::encode_into(&longer, &mut out)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("exceeds the limit of 16777188 bytes; send bulk data in chunks"),
        "{error}"
    );
    assert_eq!(out, b"kept");
    refused::<Bytes>(
        &vec![0; offshoot_wire::frame::BODY_MAX + 1],
        "exceed the limit of 16777216 bytes",
    );
    let units = codec::encode_into(&vec![(); 2000], &mut out)
        .unwrap_err()
        .to_string();
    assert!(units.contains("more elements than"), "{units}");
    assert_eq!(out, b"kept");
}

#[test]
fn an_encoder_that_fails_or_panics_leaves_the_buffer_as_it_was() {
    struct Failing(bool);
    impl Serialize for Failing {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            assert!(!self.0, "told to panic");
            Err(serde::ser::Error::custom("told to fail"))
        }
    }
    let mut out = b"kept".to_vec();
    let error = codec::encode_into(&("begun", Failing(false)), &mut out).unwrap_err();
    assert!(error.to_string().contains("told to fail"), "{error}");
    assert_eq!(out, b"kept");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        codec::encode_into(&("begun", Failing(true)), &mut out)
    }));
    assert!(panicked.is_err());
    assert_eq!(out, b"kept");
}

#[test]
fn a_type_that_needs_another_format_is_named_with_the_reason() {
    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Unit,
    }
    let error = codec::decode::<Untagged>(&[1]).unwrap_err().to_string();
    assert!(
        error.contains("Untagged: it needs a self-describing format"),
        "{error}"
    );
}
