//! Each kind of frame, sent by each peer that a hostile process can be, and what comes of it: docs/hostile.md has the answers.

use crate::wire::{
    Wire, along, by_socket, encoded, frame, label, pair, portal, pose, random_key, said,
};
use offshoot::prelude::*;
use offshoot::testing::hostile;
use offshoot::{Cancel, Canceller, Error, Exit, current};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::processes;
use offshoot_wire::dialogue::Window;
use offshoot_wire::frame::{
    Allowed, CancelOrder, Credit, Enclosed, Ended, Halt, Introduce, Invoke, Kind, Ready,
};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Who the hostile process is to the one that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Peer {
    /// A process, to its owner.
    Child,
    /// Who has a portal, to the isolate.
    Holder,
    /// An isolate, to who has a portal to it.
    Isolate,
}

const PEERS: [Peer; 3] = [Peer::Child, Peer::Holder, Peer::Isolate];

/// What comes of a frame.
const LIVES: &str = "lives";
const ENDS: &str = "ends";
const ITS_END: &str = "its end";
const CANCELLED: &str = "cancelled";

/// Asks, tells and calls are counted here.
#[derive(Default, Serialize, Deserialize)]
struct Desk {
    kept: Option<Portal<Desk>>,
}

impl Desk {
    fn keep(&mut self, portal: Portal<Desk>) {
        self.kept = Some(portal);
    }

    fn double(&self, n: u64) -> u64 {
        2 * n
    }

    /// What comes of asking the one that is kept.
    async fn ask_kept(&mut self) -> String {
        match &self.kept {
            None => "none".to_owned(),
            Some(kept) => match kept.ask(Desk::double, 21).await {
                Ok(_) => LIVES.to_owned(),
                Err(error) => ended_by(&error),
            },
        }
    }

    fn forget(&mut self) {
        self.kept = None;
    }
}

async fn nothing() {}

async fn open(mut peer: offshoot::Peer<u64, u64>) -> Result<()> {
    peer.started(())?;
    Ok(())
}

/// Why a connection has ended.
fn ended_by(error: &Error) -> String {
    let text = error.report();
    match text.contains("broke the protocol") || text.contains("ended the connection") {
        true => ENDS.to_owned(),
        false if error.is_ended() => ITS_END.to_owned(),
        false if error.is_cancelled() => CANCELLED.to_owned(),
        false => text,
    }
}

/// All kinds that there are.
fn kinds() -> Vec<Kind> {
    (0..=u8::MAX).filter_map(Kind::from_number).collect()
}

/// The number of nothing that was ever asked.
const NOBODYS: u64 = 1 << 40;

/// A body that is what a frame of this kind should have, and a descriptor that belongs to it.
fn fitting(kind: Kind) -> Result<(Vec<u8>, Option<OwnedFd>)> {
    let invoke = |entry| {
        let invoke = Invoke {
            entry,
            sequence: 0,
            lane: 3,
        };
        invoke.to_bytes().to_vec()
    };
    let cancel = Cancel {
        by: Canceller::Runtime,
    };
    let far = u64::MAX;
    let mut along = None;
    let body = match kind {
        Kind::Call => invoke(hostile::function(nothing)?),
        Kind::Ask | Kind::Tell => {
            [invoke(hostile::method(Desk::double)?), encoded(&4_u64)].concat()
        }
        Kind::Open => {
            let window = Window::DEFAULT.to_bytes();
            [invoke(hostile::dialogue(open)?), window.to_vec()].concat()
        }
        Kind::Cancel => encoded(&CancelOrder {
            cancel,
            grace_at: far,
            hard_at: far,
            last_at: far,
        }),
        Kind::Halt => encoded(&Halt {
            cancel,
            grace_at: far,
        }),
        Kind::Introduce => {
            along = Some(pair()?.1);
            encoded(&Introduce {
                holder: label(1, 2, 3, 4),
                allowed: Allowed::All,
                limits: (4, 4),
                key: random_key(),
            })
        }
        Kind::Inspect | Kind::Resting => encoded(&1_u64),
        Kind::Ready => encoded(&Ready {
            pid: 1,
            build_id: offshoot_sys::image::build_id().into(),
        }),
        Kind::Refused | Kind::Failure | Kind::Cut => encoded(&Error::other("made up")),
        Kind::Reply | Kind::Started | Kind::Item => encoded(&4_u64),
        Kind::Credit => encoded(&Credit {
            lane: 99,
            messages: 1,
            calls: 1,
        }),
        Kind::Ended => encoded(&Ended {
            exit: Exit::Completed,
            left: Vec::new(),
        }),
        Kind::Inspected => encoded(&vec!["a line".to_owned()]),
        Kind::Noticed => {
            let doing = "it is said to block".to_owned();
            encoded(&(
                label(1, 2, 3, 4),
                None::<String>,
                Duration::from_secs(1),
                doing,
            ))
        }
        Kind::Grant => encoded(&(1_u32, 1_u32)),
        Kind::Enclosed => encoded(&Enclosed::default()),
        // They have none; or are for nobody here, whatever is in them.
        _ => Vec::new(),
    };
    Ok((body, along))
}

/// The frame, and what has to follow for it to be one.
fn frames(kind: Kind, peer: Peer, rubbish: bool) -> Result<(Vec<u8>, Option<OwnedFd>)> {
    if rubbish {
        return Ok((frame(kind, NOBODYS, &[0xff; 3]), None));
    }
    let (body, along) = fitting(kind)?;
    let mut bytes = frame(kind, NOBODYS, &body);
    if kind == Kind::Enclosed {
        let next = match peer {
            Peer::Holder => Kind::Tell,
            Peer::Child | Peer::Isolate => Kind::Reply,
        };
        bytes.extend(frame(next, NOBODYS, &fitting(next)?.0));
    }
    Ok((bytes, along))
}

fn send(wire: &Wire, (bytes, fd): &(Vec<u8>, Option<OwnedFd>)) {
    let fds: Vec<BorrowedFd<'_>> = fd.iter().flat_map(along).collect();
    wire.write(bytes, &fds);
}

/// As a child, from which this returns to its owner; the one that says that it has ended does end.
async fn say_as_child(number: u8, rubbish: bool) -> Result<()> {
    let kind = Kind::from_number(number).ok_or_else(|| Error::other("no kind"))?;
    send(
        &Wire::new(hostile::uplink()?),
        &frames(kind, Peer::Child, rubbish)?,
    );
    if kind == Kind::Ended && !rubbish {
        std::process::exit(0);
    }
    Ok(())
}

/// As the holder of a portal, on a connection of its own.
async fn say_as_holder(desk: Portal<Desk>, number: u8, rubbish: bool) -> Result<String> {
    let kind = Kind::from_number(number).ok_or_else(|| Error::other("no kind"))?;
    let (mut wire, _) = Wire::to(&desk)?;
    send(&wire, &frames(kind, Peer::Holder, rubbish)?);
    let answer = wire.ask(hostile::method(Desk::double)?, &21_u64, (Vec::new(), &[]));
    if answer.is_ended() {
        return Ok(ENDS.to_owned());
    }
    assert_eq!(answer.value::<u64>(), 42);
    Ok(LIVES.to_owned())
}

/// As an isolate, to which it gives a portal.
async fn say_as_isolate(desk: Portal<Desk>, number: u8, rubbish: bool) -> Result<String> {
    let kind = Kind::from_number(number).ok_or_else(|| Error::other("no kind"))?;
    let (mut wire, _) = Wire::to(&desk)?;
    let (ours, theirs) = pair()?;
    let own = vec![said(current().origin(), by_socket(random_key(), true))];
    let keep = hostile::method(Desk::keep)?;
    let kept = wire.ask(keep, &portal::<Desk>(0), (own, &along(&theirs)));
    assert!(!kept.is_ended(), "{kept:?}");
    send(&ours, &frames(kind, Peer::Isolate, rubbish)?);
    pose(ours, encoded(&42_u64), |_| {});
    let answer = wire.ask(hostile::method(Desk::ask_kept)?, &(), (Vec::new(), &[]));
    let outcome = answer.value::<String>();
    wire.ask(hostile::method(Desk::forget)?, &(), (Vec::new(), &[]));
    Ok(outcome)
}

async fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// What comes of this frame from a child.
async fn of_child(kind: Kind, rubbish: bool) -> String {
    let mut outcome = String::new();
    let lived: Result<()> = offshoot::nursery(async |nursery| {
        let evil = nursery.spawn("evil").await?;
        let said = evil.call(say_as_child, (kind as u8, rubbish)).await;
        let asked = match said {
            Ok(said) => {
                said?;
                evil.call(add, (1, 2)).await
            }
            Err(error) => Err(error),
        };
        outcome = match asked {
            Ok(sum) => {
                assert_eq!(sum, 3);
                LIVES.to_owned()
            }
            Err(error) => ended_by(&error),
        };
        Ok(())
    })
    .await;
    // The nursery may hear of its end, and cancel the call for it, before the call itself does.
    if lived.is_err() && outcome == CANCELLED {
        outcome = ENDS.to_owned();
    }
    // Its owner has an error of one that was ended for it, and of no other.
    assert_eq!(
        lived.is_err(),
        outcome == ENDS,
        "{kind:?}: {outcome}, {lived:?}"
    );
    outcome
}

/// The table of docs/hostile.md: of each kind what comes of a fitting body, and of rubbish, for each peer.
fn table() -> BTreeMap<String, Vec<[String; 2]>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hostile.md");
    let text = std::fs::read_to_string(path).expect("docs/hostile.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let kind = cells.next().unwrap_or_default().trim_matches('`');
        let answers = cells.take(PEERS.len()).map(|cell| {
            let (fitting, rubbish) = cell.split_once(" / ").unwrap_or((cell, cell));
            [fitting, rubbish].map(str::to_owned)
        });
        (kind.to_owned(), answers.collect())
    })
    .collect()
}

/// How long a process that says nonsense may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A sequence that anybody can have again.
struct Random(u64);

impl Random {
    /// xorshift64* (Vigna 2016).
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % below
    }
}

/// Some frames in a row: of any kind, with bodies that fit, were changed, were cut or are rubbish, with descriptors or without.
fn nonsense(random: &mut Random) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let kinds = kinds();
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    for _ in 0..1 + random.next(8) {
        let kind = kinds[random.next(kinds.len())];
        let (mut body, fd) = fitting(kind)?;
        match random.next(4) {
            0 if !body.is_empty() => {
                let at = random.next(body.len());
                body[at] ^= 1 << random.next(8);
            }
            1 => body.truncate(random.next(body.len() + 1)),
            2 => {
                body = (0..random.next(40))
                    .map(|_| random.next(256) as u8)
                    .collect()
            }
            _ => {}
        }
        let numbers = [0, 1, 2, NOBODYS, u64::MAX];
        bytes.extend(frame(kind, numbers[random.next(numbers.len())], &body));
        if random.next(2) == 0 {
            fds.extend(fd);
        }
        if random.next(8) == 0 {
            let at = random.next(bytes.len());
            bytes[at] ^= 1 << random.next(8);
        }
    }
    Ok((bytes, fds))
}

/// Says nonsense as this peer, so many times, from this seed on.
async fn babble(desk: Portal<Desk>, peer: Peer, seed: u64, rounds: usize) -> Result<()> {
    let mut random = Random(seed | 1);
    for _ in 0..rounds {
        let (bytes, fds) = nonsense(&mut random)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().flat_map(along).collect();
        match peer {
            Peer::Child => {
                Wire::new(hostile::uplink()?).write(&bytes, &fds);
            }
            Peer::Holder => {
                let (wire, _) = Wire::to(&desk)?;
                wire.write(&bytes, &fds);
            }
            Peer::Isolate => {
                let (mut wire, _) = Wire::to(&desk)?;
                let (ours, theirs) = pair()?;
                let own = vec![said(current().origin(), by_socket(random_key(), true))];
                let keep = hostile::method(Desk::keep)?;
                let kept = wire.ask(keep, &portal::<Desk>(0), (own, &along(&theirs)));
                assert!(!kept.is_ended(), "{kept:?}");
                ours.write(&bytes, &fds);
            }
        }
    }
    Ok(())
}

/// What this process has open, by what it is.
fn fds() -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    for entry in entries.flatten() {
        let what = std::fs::read_link(entry.path()).unwrap_or_default();
        let what = what.to_string_lossy();
        let kind = what.split_once(":[").map_or(&*what, |(kind, _)| kind);
        *all.entry(kind.to_owned()).or_default() += 1;
    }
    all
}

processes! {
    async fn each_frame_of_each_peer_has_its_answer(t: T) {
        t.within(Duration::from_secs(150));
        let mut table = table();
        let mut wrong = Vec::new();
        offshoot::nursery(async |nursery| {
            let desk = nursery.start_local("desk", Desk::default()).await?;
            let evil = nursery.spawn("evil").await?;
            let honest = nursery.spawn("honest").await?;
            // Everything but its end.
            let narrow = || desk.narrow().methods().call(nothing).open(open).portal();
            for kind in kinds() {
                let name = format!("{kind:?}");
                let row = table.remove(&name).unwrap_or_default();
                for (at, peer) in PEERS.into_iter().enumerate() {
                    for rubbish in [false, true] {
                        let args = (narrow(), kind as u8, rubbish);
                        let came = match peer {
                            Peer::Child => of_child(kind, rubbish).await,
                            Peer::Holder => evil.call(say_as_holder, args).await??,
                            Peer::Isolate => evil.call(say_as_isolate, args).await??,
                        };
                        let said = row.get(at).map(|cell| cell[usize::from(rubbish)].as_str());
                        if said != Some(came.as_str()) {
                            wrong.push(format!("{name}, {peer:?}, rubbish {rubbish}: {came}, not {said:?}"));
                        }
                    }
                }
            }
            // Nobody else has noticed.
            assert_eq!(honest.call(add, (3, 4)).await?, 7);
            assert_eq!(desk.ask(Desk::double, 4).await?, 8);
            Ok(())
        })
        .await?;
        assert!(wrong.is_empty() && table.is_empty(), "{wrong:#?}\nno kinds: {:?}", table.keys());
    }

    async fn nonsense_costs_nobody_else_anything(t: T) {
        t.within(Duration::from_secs(900));
        let long = std::env::var_os("OFFSHOOT_LONG").is_some();
        let (lives, rounds) = if long { (150, 100) } else { (10, 20) };
        let given = std::env::var("OFFSHOOT_SEED").ok();
        let seed: u64 = given.map_or(0x6f66_6673_686f_6f74, |seed| seed.parse().expect("a number"));
        println!("OFFSHOOT_SEED={seed}");
        offshoot::nursery(async |nursery| {
            let desk = nursery.start_local("desk", Desk::default()).await?;
            let honest = nursery.spawn("honest").await?;
            assert_eq!(honest.call(add, (3, 4)).await?, 7);
            let mut before = None;
            for life in 0..lives {
                for peer in PEERS {
                    let narrow = desk.narrow().methods().call(nothing).open(open).portal();
                    let one = seed.wrapping_add(life * 1_000_003);
                    // How it ends is its own affair.
                    let ended: Result<()> = offshoot::nursery(async |inner| {
                        let evil = inner.spawn("evil").await?;
                        let rounds = if peer == Peer::Child { 1 } else { rounds };
                        let babbles = evil.call(babble, (narrow, peer, one, rounds));
                        let told = offshoot::timeout(PATIENCE, babbles).await;
                        // Half a frame may have swallowed its answer.
                        if told.is_err() {
                            let pidfd = Pidfd::open(evil.origin().pid)?;
                            pidfd.kill()?;
                        }
                        told??
                    })
                    .await;
                    drop(ended);
                    assert_eq!(honest.call(add, (3, life)).await?, 3 + life, "seed {one}, {peer:?}");
                    assert_eq!(desk.ask(Desk::double, life).await?, 2 * life, "seed {one}, {peer:?}");
                }
                before.get_or_insert_with(fds);
            }
            desk.ask(Desk::forget, ()).await?;
            let before: BTreeMap<String, usize> = before.unwrap_or_default();
            // But for those of processes that wait in reserve.
            let sum = |all: &BTreeMap<String, usize>| all.values().sum::<usize>();
            let gone = offshoot_tests::soon("no descriptor is left of it", || sum(&fds()) <= sum(&before) + 12);
            if let Err(error) = gone.await {
                panic!("{error}: {before:?} has become {:?}", fds());
            }
            println!("{before:?} has become {:?}", fds());
            Ok(())
        })
        .await?;
    }
}
