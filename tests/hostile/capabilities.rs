//! Forged, stolen, widened and misdirected portals.

use crate::wire::{
    Answer, Wire, along, by_socket, encoded, frame, label, pair, portal, pose, random_key, said,
};
use offshoot::prelude::*;
use offshoot::testing::hostile;
use offshoot::{Error, Exit, Limit, Origin, current};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{append, held, lines, mark, marked, processes, soon};
use offshoot_wire::frame::{Enclosed, Introduce, Introduced, Key, Kind, Reached};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

const NONE: (Vec<Introduced>, &[std::os::fd::BorrowedFd<'static>]) = (Vec::new(), &[]);

/// Keeps portals and gives them out.
#[derive(Default, Serialize, Deserialize)]
struct Directory {
    kept: Vec<Portal<Vault>>,
}

impl Directory {
    fn keep(&mut self, portal: Portal<Vault>) {
        self.kept.push(portal);
    }

    fn give(&self, at: usize) -> Option<Portal<Vault>> {
        self.kept.get(at).cloned()
    }

    fn count(&self) -> usize {
        self.kept.len()
    }

    /// What is said of the one that is kept last.
    fn last(&self) -> Option<(Origin, Option<Exit>)> {
        let last = self.kept.last()?;
        Some((last.origin(), last.exit()))
    }

    /// Asks the one that is kept last.
    async fn ask_last(&mut self) -> Result<String> {
        let last = self.kept.last().ok_or_else(|| Error::other("none"))?;
        last.ask(Vault::a, ()).await
    }
}

/// What is worth stealing.
#[derive(Default, Serialize, Deserialize)]
struct Vault {
    name: String,
    heard: Vec<String>,
}

impl Vault {
    fn named(name: &str) -> Vault {
        Vault {
            name: name.to_owned(),
            heard: Vec::new(),
        }
    }

    fn a(&self) -> String {
        format!("a of {}", self.name)
    }

    fn b(&self) -> String {
        format!("b of {}", self.name)
    }

    fn c(&self) -> String {
        format!("c of {}", self.name)
    }

    /// Takes a password; says who took it.
    fn log_in(&mut self, password: String) -> String {
        self.heard.push(password);
        self.name.clone()
    }
}

async fn echo(portal: Portal<Vault>) -> Portal<Vault> {
    portal
}

/// What no portal of these tests lets through.
async fn secret() -> String {
    "the secret".to_owned()
}

/// Whether what came as a portal lets this method of a vault be asked.
fn lets(wire: &mut Wire, introduced: &Introduced, what: &str) -> bool {
    let Reached::Socket { .. } = introduced.reached else {
        panic!("no socket came: {introduced:?}");
    };
    let fd = wire.fds.pop_front().expect("its socket");
    let mut held = Wire::new(fd);
    let asked = |held: &mut Wire, what: &str| {
        let entry = match what {
            "a" => hostile::method(Vault::a),
            "b" => hostile::method(Vault::b),
            _ => hostile::method(Vault::c),
        };
        held.ask(entry.expect("in this image"), &(), NONE)
    };
    let answer = asked(&mut held, what);
    match &answer {
        Answer::Reply(..) => {
            assert!(answer.value::<String>().starts_with(what), "{answer:?}");
            true
        }
        Answer::Failure(_) | Answer::Ended => false,
    }
}

/// Tries to have the directory keep what was never given, and to get it back as a portal.
async fn forge(directory: Portal<Directory>) -> Result<()> {
    let (mut wire, _) = Wire::to(&directory)?;
    let (keep, give) = (
        hostile::method(Directory::keep)?,
        hostile::method(Directory::give)?,
    );
    let known = directory.origin();
    let own = current().origin();
    let mut refused = 0;
    for process in [known.id.process, own.id.process, 0, u32::MAX] {
        for slot in 0..6 {
            for generation in [0, 1] {
                let origin = label(process, slot, generation, known.pid);
                // The id itself, as bytes, as what is random otherwise.
                let mut id = [0; 16];
                id[..4].copy_from_slice(&process.to_le_bytes());
                id[4..8].copy_from_slice(&slot.to_le_bytes());
                id[8..12].copy_from_slice(&generation.to_le_bytes());
                for reached in [Reached::Key(Key::from_bytes(id)), Reached::Sender] {
                    let beside = vec![said(origin.clone(), reached)];
                    let answer = wire.ask(keep, &portal::<Vault>(0), (beside, &[]));
                    let error = answer.error();
                    assert!(error.message().contains("has not given it"), "{error:?}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(refused, 96);
    assert_eq!(
        wire.ask(hostile::method(Directory::count)?, &(), NONE)
            .value::<usize>(),
        0
    );
    // The isolate at the other end may be named, and is what it was.
    let beside = vec![said(known, Reached::Receiver)];
    let kept = wire.ask(keep, &portal::<Vault>(0), (beside, &[]));
    assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
    let answer = wire.ask(give, &0_usize, NONE);
    let Answer::Reply(_, portals) = &answer else {
        panic!("{answer:?}");
    };
    // It has the rights that this process has: not to call.
    match portals.first().map(|one| &one.reached) {
        Some(Reached::Socket { .. }) => {
            let fd = wire.fds.pop_front().expect("its socket");
            let mut again = Wire::new(fd);
            let stolen = again.call(hostile::function(secret)?, &(), NONE);
            assert!(stolen.is_ended(), "{stolen:?}");
        }
        other => panic!("{other:?}"),
    }
    // The same over its own connection, which ends.
    let stolen = wire.call(hostile::function(secret)?, &(), NONE);
    assert!(stolen.is_ended(), "{stolen:?}");
    Ok(())
}

/// One that gives on less than it has.
#[derive(Default, Serialize, Deserialize)]
struct Relay {
    held: Option<Portal<Vault>>,
}

impl Relay {
    fn take(&mut self, vault: Portal<Vault>) {
        self.held = Some(vault);
    }

    async fn hand_to_relay(&mut self, next: Portal<Relay>) -> Result<()> {
        let held = self.held.as_ref().ok_or_else(|| Error::other("none"))?;
        let less = held.narrow().ask(Vault::a).ask(Vault::b).portal();
        next.ask(Relay::take, less).await
    }

    async fn hand_to(&mut self, evil: Portal, echoes: Vec<Portal>) -> Result<()> {
        let giver = current().portal::<Relay>()?.narrow().call(echo).portal();
        let held = self.held.as_ref().ok_or_else(|| Error::other("none"))?;
        let less = held.narrow().ask(Vault::a).portal();
        evil.call(ask_back, (less, giver, echoes)).await?
    }
}

/// Sends what it has to all of these as if it were more, and looks at what comes back.
async fn ask_back(vault: Portal<Vault>, giver: Portal<Relay>, echoes: Vec<Portal>) -> Result<()> {
    let key = hostile::key(&vault).expect("it came by one");
    let (mut direct, _) = Wire::to(&vault)?;
    assert_eq!(
        direct
            .ask(hostile::method(Vault::a)?, &(), NONE)
            .value::<String>(),
        "a of vault"
    );
    assert!(direct.ask(hostile::method(Vault::b)?, &(), NONE).is_ended());
    let mut back = 0;
    let mut wires = vec![Wire::to(&giver)?.0];
    for echoing in &echoes {
        wires.push(Wire::to(echoing)?.0);
    }
    for wire in &mut wires {
        let entry = hostile::function(echo)?;
        let named = vec![said(vault.origin(), Reached::Key(key))];
        for what in ["a", "b", "c"] {
            let answer = wire.call(entry, &portal::<Vault>(0), (named.clone(), &[]));
            match &answer {
                Answer::Reply(_, portals) => {
                    assert_eq!(lets(wire, &portals[0], what), what == "a");
                    back += 1;
                }
                // It is not given over this connection, and not of this process.
                Answer::Failure(error) => {
                    assert!(error.message().contains("has not given it"), "{error:?}");
                }
                Answer::Ended => panic!("an honest connection ended"),
            }
        }
        // As a third, by a socket that was introduced with all rights.
        for what in ["a", "b"] {
            let (socket, key) = Wire::to(&vault)?;
            let named = vec![said(vault.origin(), by_socket(key, false))];
            let fd = along(&socket.fd);
            let answer = wire.call(entry, &portal::<Vault>(0), (named, &fd));
            let Answer::Reply(_, portals) = &answer else {
                panic!("{answer:?}");
            };
            assert_eq!(lets(wire, &portals[0], what), what == "a");
        }
    }
    // The process of the vault knows it; its giver does by the connection over which it gave it, the other not at all.
    assert_eq!(back, 3, "of {} times 3", wires.len());
    Ok(())
}

/// Names keys that it was not given for this, or no longer.
async fn guess(
    directory: Portal<Directory>,
    other: Portal<Vault>,
    brief: Portal<Vault>,
) -> Result<()> {
    let keep = hostile::method(Directory::keep)?;
    let count = hostile::method(Directory::count)?;
    let origin = directory.origin();
    let (mut wire, _) = Wire::to(&directory)?;
    let of_other = hostile::key(&other).expect("it came by one");
    let of_brief = hostile::key(&brief).expect("it came by one");
    let zero = Key::from_bytes([0; 16]);
    let full = Key::from_bytes([255; 16]);
    // The one of `other` is known to who gave it over another connection, and to another process.
    for key in [zero, full, random_key(), of_other] {
        for _replayed in 0..2 {
            let named = vec![said(origin.clone(), Reached::Key(key))];
            let error = wire.ask(keep, &portal::<Vault>(0), (named, &[])).error();
            assert!(error.message().contains("has not given it"), "{error:?}");
        }
    }
    assert_eq!(wire.ask(count, &(), NONE).value::<usize>(), 0);
    // Of one that has ended: it comes as that, and a replay of it, too.
    brief.ended().await;
    for n in 1..=2 {
        let named = vec![said(origin.clone(), Reached::Key(of_brief))];
        let kept = wire.ask(keep, &portal::<Vault>(0), (named, &[]));
        assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
        assert_eq!(wire.ask(count, &(), NONE).value::<usize>(), n);
        let last = wire.ask(hostile::method(Directory::last)?, &(), NONE);
        let (label, exit) = last
            .value::<Option<(Origin, Option<Exit>)>>()
            .expect("it is kept");
        assert!(exit.is_some(), "{label}");
        // As its process knows it, not as it was said to be.
        assert_eq!(label.id, brief.id());
    }
    // A key that is cut.
    let waits = Vec::new();
    let portals = vec![said(origin.clone(), Reached::Key(zero))];
    let whole = encoded(&Enclosed { waits, portals });
    wire.send(Kind::Enclosed, 9, &whole[..whole.len() - 1]);
    assert!(wire.receive().is_none(), "the connection has ended");

    // One by which another was introduced: refused, and the connection that asks for it lives.
    let (wire, key) = Wire::to(&directory)?;
    let (mut second, _) = Wire::to(&directory)?;
    let introduces = |wire: &Wire, key| -> Result<Wire> {
        let (ours, theirs) = pair()?;
        let introduce = Introduce {
            holder: label(1, 2, 3, 4),
            allowed: offshoot_wire::frame::Allowed::All,
            limits: (4, 4),
            key,
        };
        let bytes = frame(Kind::Introduce, 0, &encoded(&introduce));
        assert!(wire.write(&bytes, &along(&theirs)));
        Ok(ours)
    };
    // A descriptor that is still here would keep it open.
    let mut refused = introduces(&second, key)?;
    assert!(refused.receive().is_none(), "it was closed");
    let mut fresh = introduces(&second, random_key())?;
    assert_eq!(fresh.ask(count, &(), NONE).value::<usize>(), 2);
    assert_eq!(second.ask(count, &(), NONE).value::<usize>(), 2);
    drop(wire);
    Ok(())
}

/// Poses as the isolate with this label: gives portals to itself to all of these, and writes down what it hears.
async fn pose_as(bank: Portal<Vault>, tellers: Vec<Portal<Directory>>, sign: String) -> Result<()> {
    for teller in &tellers {
        let (mut wire, _) = Wire::to(teller)?;
        let (ours, theirs) = pair()?;
        let sign = sign.clone();
        pose(ours, encoded(&"attacker"), move |_| mark(&sign));
        let lie = vec![said(bank.origin(), by_socket(random_key(), true))];
        let keep = hostile::method(Directory::keep)?;
        let kept = wire.ask(keep, &portal::<Vault>(0), (lie, &along(&theirs)));
        assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
    }
    Ok(())
}

/// Logs in at an honest portal.
async fn log_in(bank: Portal<Vault>) -> Result<String> {
    bank.ask(Vault::log_in, "a password".to_owned()).await
}

/// Takes all that a directory has, and logs in at each.
async fn log_in_everywhere(directory: Portal<Directory>) -> Result<Vec<String>> {
    let mut portals = Vec::new();
    for at in 0..directory.ask(Directory::count, ()).await? {
        portals.extend(directory.ask(Directory::give, at).await?);
    }
    let mut heard = Vec::new();
    for portal in portals {
        heard.push(portal.ask(Vault::log_in, "a password".to_owned()).await?);
    }
    Ok(heard)
}

/// Has the directory keep things that are no sockets of a portal, or not of one that it should be.
async fn odd_sockets(directory: Portal<Directory>) -> Result<()> {
    let keep = hostile::method(Directory::keep)?;
    let (mut wire, own) = Wire::to(&directory)?;
    let origin = directory.origin();
    // One that waits where it is read or written, unless it is told not to.
    let (blocking, _kept) = std::os::unix::net::UnixStream::pair()?;
    let (reader, writer) = std::io::pipe()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair()?;
    let odd: Vec<OwnedFd> = vec![
        blocking.into(),
        reader.into(),
        writer.into(),
        listener.into(),
        datagrams.into(),
        File::open("/dev/null")?.into(),
        File::open("/")?.into(),
        // The holder's end of a connection to where it is sent.
        hostile::introduce(&directory, random_key())?,
    ];
    for fd in &odd {
        for key in [random_key(), own] {
            let lie = vec![said(origin.clone(), by_socket(key, true))];
            let kept = wire.ask(keep, &portal::<Vault>(0), (lie, &along(fd)));
            assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
        }
    }
    // The other ends stay open, and say nothing.
    mark("odd");
    held("looked").await
}

/// The portal of the isolate that runs it.
async fn own() -> Result<Portal<Vault>> {
    current().portal()
}

/// Introduces as many as it can, and keeps what is not refused; how many these are.
async fn flood(served: Portal<Vault>, rounds: usize) -> Result<usize> {
    let mut kept: Vec<Wire> = Vec::new();
    // Half of them are left when it asks for the same portal again and again.
    let (mut wire, _) = Wire::to(&served)?;
    let mut given = Vec::new();
    for round in 0..rounds / 10 {
        let answer = wire.call(hostile::function(own)?, &(), NONE);
        given.extend(wire.fds.drain(..));
        match answer {
            Answer::Reply(..) => assert_eq!(given.len(), round + 1),
            Answer::Failure(error) => {
                assert!(error.message().contains("RLIMIT_NOFILE"), "{error:?}");
                break;
            }
            Answer::Ended => panic!("it only asked"),
        }
    }
    assert!(
        (64..=128).contains(&given.len()),
        "{} were given",
        given.len()
    );
    drop(given);
    for _ in 0..rounds {
        let (mut wire, _) = Wire::to(&served)?;
        // A refused one is closed. One that is served answers.
        match wire.ask(hostile::method(Vault::a)?, &(), NONE) {
            Answer::Reply(..) => kept.push(wire),
            Answer::Ended => {}
            Answer::Failure(error) => return Err(error),
        }
    }
    let count = kept.len();
    mark("flooded");
    held("looked").await?;
    drop(kept);
    Ok(count)
}

/// Says of others how they ended, what they are called, and what they take.
async fn labels(directory: Portal<Directory>, other: Portal<Vault>) -> Result<()> {
    let keep = hostile::method(Directory::keep)?;
    let (mut wire, _) = Wire::to(&directory)?;
    let exit = Exit::Lost {
        why: "so it is said".to_owned(),
    };
    let ended = vec![said(other.origin(), Reached::Ended(exit))];
    let kept = wire.ask(keep, &portal::<Vault>(0), (ended, &[]));
    assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
    let error = wire.ask(hostile::method(Directory::ask_last)?, &(), NONE);
    let asked = error.value::<Result<String, Error>>();
    assert!(asked.is_err_and(|error| error.is_ended()));
    // Limits of which none would let a message through, and names of all kinds.
    for (limits, path) in [
        ((0, 0), ""),
        ((u32::MAX, u32::MAX), "root/../bank"),
        ((1, 1), "\u{1b}[2J"),
    ] {
        let (ours, theirs) = pair()?;
        pose(ours, encoded(&"attacker"), |_| {});
        let mut lie = said(other.origin(), by_socket(random_key(), true));
        lie.limits = limits;
        lie.origin.path = path.to_owned();
        let kept = wire.ask(keep, &portal::<Vault>(0), (vec![lie], &along(&theirs)));
        assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
        let asked = wire.ask(hostile::method(Directory::ask_last)?, &(), NONE);
        let asked = asked.value::<Result<String, Error>>();
        assert_eq!(asked.expect("the attacker answers"), "attacker");
    }
    Ok(())
}

/// Says of the directory, in the middle of a method of it, and of another isolate that they wait for the answers to these asks.
async fn forge_waits(directory: Portal<Directory>, other: Portal<Vault>) -> Result<()> {
    let (mut wire, _) = Wire::to(&directory)?;
    let (mut ours, theirs) = pair()?;
    let lie = vec![said(other.origin(), by_socket(random_key(), true))];
    let keep = hostile::method(Directory::keep)?;
    let kept = wire.ask(keep, &portal::<Vault>(0), (lie, &along(&theirs)));
    assert!(matches!(kept, Answer::Reply(..)), "{kept:?}");
    // A method that waits for this process.
    let ask_last = hostile::method(Directory::ask_last)?;
    let asking = wire
        .invoke(Kind::Ask, ask_last, &(), NONE)
        .expect("it lives");
    let asked = loop {
        let (header, _) = ours.receive().expect("it is asked");
        if header.kind == Kind::Ask {
            break header.correlation;
        }
    };
    mark("in the middle");
    held("asked meanwhile").await?;
    for origin in [directory.origin(), other.origin()] {
        let waits = (1..=64).map(|turn| (origin.clone(), turn)).collect();
        let portals = Vec::new();
        let enclosed = encoded(&Enclosed { waits, portals });
        let invoke = offshoot_wire::frame::Invoke {
            entry: hostile::method(Directory::count)?,
            sequence: 0,
            lane: 7,
        };
        let number = if origin.id == directory.id() { 1 } else { 2 };
        let ask = frame(Kind::Ask, number, &invoke.to_bytes());
        wire.write(
            &[frame(Kind::Enclosed, number, &enclosed), ask].concat(),
            &[],
        );
    }
    // Its own ask fails, and nothing else is answered before the method has its answer.
    let (header, _) = wire.receive().expect("it lives");
    assert_eq!((header.kind, header.correlation), (Kind::Failure, 1));
    ours.send(Kind::Reply, asked, &encoded(&"attacker"));
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let (header, _) = wire.receive().expect("it lives");
        if matches!(header.kind, Kind::Reply | Kind::Failure) {
            answered.push((header.kind, header.correlation));
        }
    }
    answered.sort_by_key(|(_, correlation)| *correlation);
    assert_eq!(answered, [(Kind::Reply, 2), (Kind::Reply, asking)]);
    Ok(())
}

/// Gives portals until it is killed.
async fn give_for_ever(directory: Portal<Directory>, vault: Portal<Vault>) -> Result<()> {
    loop {
        directory.tell(Directory::keep, vault.clone()).await?;
        append("given", "x");
    }
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn kill(pid: i32) {
    let killed = Pidfd::open(pid).and_then(|pidfd| pidfd.kill());
    killed.expect("it lives");
}

processes! {
    async fn a_portal_is_found_by_no_label(_t: T) {
        offshoot::nursery(async |nursery| {
            let _vault = nursery.start_local("vault", Vault::named("vault")).await?;
            let directory = nursery.start_local("directory", Directory::default()).await?;
            let evil = nursery.spawn("evil").await?;
            let narrow = directory.narrow().methods().portal();
            evil.call(forge, narrow).await??;
            // Also where the directory is a process, whose first isolate it is.
            let directory = nursery.start("far", Directory::default()).await?;
            evil.call(forge, directory.narrow().methods().portal()).await??;
            Ok(())
        })
        .await?;
    }

    async fn rights_do_not_come_back(_t: T) {
        offshoot::nursery(async |nursery| {
            let vault = nursery.start_local("vault", Vault::named("vault")).await?;
            let one = nursery.start("one", Relay::default()).await?;
            let two = nursery.start("two", Relay::default()).await?;
            let here = nursery.spawn_local("here").await?;
            let third = nursery.spawn("third").await?;
            let evil = nursery.spawn("evil").await?;
            let plain = |portal: &Portal| portal.narrow().call(echo).portal();
            // Its process, and one that has nothing to do with it; its giver adds itself.
            let echoes = vec![plain(&here), plain(&third)];
            one.ask(Relay::take, (*vault).clone()).await?;
            one.ask(Relay::hand_to_relay, two.clone()).await??;
            two.ask(Relay::hand_to, (evil, echoes)).await??;
            Ok(())
        })
        .await?;
    }

    async fn keys_that_were_not_given_are_refused(_t: T) {
        offshoot::nursery(async |nursery| {
            let directory = nursery.start_local("directory", Directory::default()).await?;
            let other = nursery.start("other", Vault::named("other")).await?;
            let evil = nursery.spawn("evil").await?;
            let mut guessed = None;
            offshoot::nursery(async |inner| {
                let brief = inner.start_local("brief", Vault::named("brief")).await?;
                let args = ((*directory).clone(), other.clone(), (*brief).clone());
                guessed = Some(nursery.task(evil.call(guess, args)));
                offshoot::sleep(Duration::from_millis(100)).await
            })
            .await?;
            guessed.expect("it was called").await???;
            Ok(())
        })
        .await?;
    }

    async fn a_password_meant_for_the_bank_arrives_there(_t: T) {
        offshoot::nursery(async |nursery| {
            let bank = nursery.start("bank", Vault::named("bank")).await?;
            let evil = nursery.spawn("evil").await?;
            let teller = nursery.start("teller", Directory::default()).await?;
            let here = nursery.start_local("here", Directory::default()).await?;
            let directory = nursery.start("directory", Directory::default()).await?;
            let label = bank.narrow().portal();
            // Before the honest one, and after it.
            for round in 0..2 {
                let tellers = vec![teller.clone(), (*here).clone(), directory.clone()];
                evil.call(pose_as, (label.clone(), tellers, "stolen".to_owned())).await??;
                assert_eq!(teller.call(log_in, bank.clone()).await??, "bank");
                assert_eq!(here.call(log_in, bank.clone()).await??, "bank");
                assert!(lines("stolen").is_empty(), "round {round}");
                directory.ask(Directory::keep, bank.clone()).await?;
            }
            // An honest directory that has both gives both, and each is what it was.
            let heard = teller.call(log_in_everywhere, directory.clone()).await??;
            assert_eq!(heard, ["attacker", "bank", "attacker", "bank"]);
            let heard = here.call(log_in_everywhere, directory).await??;
            assert_eq!(heard, ["attacker", "bank", "attacker", "bank"]);
            Ok(())
        })
        .await?;
    }

    async fn odd_sockets_harm_nobody_else(_t: T) {
        offshoot::nursery(async |nursery| {
            let evil = nursery.spawn("evil").await?;
            let honest = nursery.spawn("honest").await?;
            let vault = nursery.start_local("vault", Vault::named("vault")).await?;
            let directory = nursery.start_local("directory", Directory::default()).await?;
            let odd = nursery.task(evil.call(odd_sockets, (*directory).clone()));
            held("odd").await?;
            // The thread that reads all of them reads the others.
            assert_eq!(honest.call(log_in, (*vault).clone()).await??, "vault");
            assert_eq!(honest.call(log_in, vault.narrow().methods().portal()).await??, "vault");
            mark("looked");
            odd.await???;
            Ok(())
        })
        .await?;
    }

    async fn a_flood_of_introductions_is_bounded(t: T) {
        t.within(Duration::from_secs(600));
        offshoot::nursery(async |nursery| {
            let limited = Isolate::named("served").limit(Limit::OpenFiles, 256, 256);
            let served = nursery.start(limited, Vault::named("served")).await?;
            let evil = nursery.spawn("evil").await?;
            let honest = nursery.spawn("honest").await?;
            let rounds = match std::env::var_os("OFFSHOOT_LONG") {
                Some(_) => 100_000,
                None => 2_000,
            };
            let flooded = nursery.task(evil.call(flood, (served.clone(), rounds)));
            while !marked("flooded") {
                offshoot::sleep(Duration::from_millis(5)).await?;
            }
            // It has descriptors for itself and for others.
            let open = served.call(async || File::open("/dev/null").is_ok(), ()).await?;
            assert!(open);
            assert_eq!(honest.call(log_in, served.clone()).await??, "served");
            mark("looked");
            let kept = flooded.await???;
            assert!((64..=128).contains(&kept), "{kept} were served");
            Ok(())
        })
        .await?;
    }

    async fn a_holder_that_dies_leaves_nothing(_t: T) {
        offshoot::nursery(async |nursery| {
            let vault = nursery.start_local("vault", Vault::named("vault")).await?;
            let directory = nursery.start_local("directory", Directory::default()).await?;
            let mut before = None;
            for _ in 0..5 {
                let died: Result<()> = offshoot::nursery(async |inner| {
                    let giver = inner.spawn("giver").await?;
                    let args = ((*directory).clone(), (*vault).clone());
                    nursery.task(giver.call(give_for_ever, args)).detach();
                    let seen = lines("given").len();
                    soon("some are given", || lines("given").len() > seen + 20).await?;
                    kill(giver.origin().pid);
                    giver.ended().await;
                    Ok(())
                })
                .await;
                assert!(died.is_err());
                // The first has started what all need.
                before.get_or_insert_with(fds);
            }
            let before = before.expect("there was one");
            // What came whole is the vault itself.
            assert!(directory.ask(Directory::count, ()).await? > 0);
            assert_eq!(directory.ask(Directory::ask_last, ()).await??, "a of vault");
            // But for those of processes that wait in reserve.
            soon("no descriptor is left of it", || fds() <= before + 12).await?;
            Ok(())
        })
        .await?;
    }

    async fn who_is_said_to_wait_fails_no_other(_t: T) {
        offshoot::nursery(async |nursery| {
            let evil = nursery.spawn("evil").await?;
            let honest = nursery.start("honest", Vault::named("honest")).await?;
            let directory = nursery.start_local("directory", Directory::default()).await?;
            let args = ((*directory).clone(), honest.clone());
            let forged = nursery.task(evil.call(forge_waits, args));
            held("in the middle").await?;
            let counted = nursery.task(directory.ask(Directory::count, ()));
            async fn count(directory: Portal<Directory>) -> Result<usize> {
                directory.ask(Directory::count, ()).await
            }
            let by_honest = nursery.task(honest.call(count, (*directory).clone()));
            mark("asked meanwhile");
            forged.await???;
            assert_eq!(counted.await??, 1);
            assert_eq!(by_honest.await???, 1);
            assert_eq!(honest.ask(Vault::a, ()).await?, "a of honest");
            Ok(())
        })
        .await?;
    }

    async fn labels_end_and_bound_one_portal(_t: T) {
        offshoot::nursery(async |nursery| {
            let evil = nursery.spawn("evil").await?;
            let directory = nursery.start_local("directory", Directory::default()).await?;
            let other = nursery.start("other", Vault::named("other")).await?;
            evil.call(labels, ((*directory).clone(), other.clone())).await??;
            assert!(other.exit().is_none());
            assert_eq!(other.ask(Vault::a, ()).await?, "a of other");
            directory.ask(Directory::keep, other).await?;
            assert_eq!(directory.ask(Directory::ask_last, ()).await??, "a of other");
            Ok(())
        })
        .await?;
    }
}
