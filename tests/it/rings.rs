//! A ring in the place of a link's socket: the same promises, faster. That every other promise holds over it, too, is seen by running
//! all tests with `OFFSHOOT_RING=65536` in the environment.

use offshoot::prelude::*;
use offshoot::{Bytes, Limit, Window};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::process;
use offshoot_tests::{mark, marked, processes, until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The least ring: whatever is long goes through it in parts.
const LEAST: usize = 4 << 10;
/// Where the words of the child's direction lie, and what the other side says of it.
const WRITTEN: u64 = 1024;
const READ: u64 = 1024 + 512;
const WRITTEN_BY_OWNER: u64 = 0;
const READ_BY_CHILD: u64 = 512;
/// Where the bytes of the child begin.
const BYTES: u64 = 4096 + LEAST as u64;

async fn double(n: u64) -> u64 {
    n * 2
}

async fn echo(bytes: Bytes) -> Bytes {
    bytes
}

async fn length(bytes: Bytes) -> usize {
    bytes.len()
}

async fn ones(len: usize) -> Bytes {
    Bytes::from(vec![1; len])
}

/// How many rings this process has mapped.
fn rings() -> usize {
    mapped().len()
}

/// The places where rings are mapped.
fn mapped() -> Vec<u64> {
    let maps = fs::read_to_string("/proc/self/maps").expect("the mappings of this process");
    let rings = maps
        .lines()
        .filter(|line| line.contains("memfd:offshoot-ring"));
    rings
        .map(|line| {
            let (start, _) = line.split_once('-').expect("a range");
            u64::from_str_radix(start, 16).expect("an address")
        })
        .collect()
}

/// Resident bytes of this process.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    let number = line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<usize>().ok());
    number.expect("a number") << 10
}

/// Writes into the ring beside the runtime, and then does nothing more, so that nothing of the runtime comes behind.
fn meddle((at, bytes, written): (u64, Vec<u8>, Option<u64>)) {
    let base = mapped()[0];
    let memory = File::options()
        .write(true)
        .open("/proc/self/mem")
        .expect("the memory of this process");
    let (at, written) = match at {
        // Behind what it has written.
        u64::MAX => {
            let count = count_of_written();
            let place = BYTES + count % LEAST as u64;
            assert!(
                place + bytes.len() as u64 <= BYTES + LEAST as u64,
                "it would go around"
            );
            (place, Some(count + bytes.len() as u64))
        }
        at => (at, written),
    };
    memory
        .write_all_at(&bytes, base + at)
        .expect("it is mapped");
    if let Some(written) = written {
        memory
            .write_all_at(&written.to_le_bytes(), base + WRITTEN)
            .expect("it is mapped");
    }
    mark("meddled");
    loop {
        std::thread::park();
    }
}

/// How much the child has written.
fn count_of_written() -> u64 {
    let memory = File::open("/proc/self/mem").expect("the memory of this process");
    let mut bytes = [0; 8];
    memory
        .read_exact_at(&mut bytes, mapped()[0] + WRITTEN)
        .expect("it is mapped");
    u64::from_le_bytes(bytes)
}

async fn holds(portal: Portal<u64>) -> Result<u64> {
    portal.ask(|state: &mut u64, ()| *state, ()).await
}

async fn counts(mut peer: Peer<Bytes, u64>, (): ()) -> Result<u64> {
    peer.started(())?;
    let mut all = 0;
    while let Some(bytes) = peer.next().await? {
        all += bytes.len() as u64;
    }
    Ok(all)
}

async fn spawn_ringed<'scope>(nursery: &'scope Nursery<'scope, '_>, name: &str) -> Result<Portal> {
    let portal = nursery.spawn(Isolate::named(name).ring(LEAST)).await?;
    // Agreed upon behind the boot: the first answer may still come by the socket.
    assert!(rings() > 0, "it has offered one");
    for _ in 0..2 {
        assert_eq!(portal.call(double, 4).await?, 8);
    }
    Ok(portal)
}

/// What the owner says of one that has written this into its ring.
async fn ended_for(at: u64, bytes: Vec<u8>, written: Option<u64>) -> Result<String> {
    offshoot::nursery(async |outer| {
        let sibling = spawn_ringed(outer, "sibling").await?;
        let ended = offshoot::nursery(async |nursery| {
            let hostile = spawn_ringed(nursery, "hostile").await?;
            let (error, ()) =
                futures_util::future::join(hostile.call(meddle, (at, bytes, written)), async {
                    // What is in the ring is looked at when there is news of it.
                    while !marked("meddled") {
                        let _ = offshoot::sleep(Duration::from_millis(1)).await;
                    }
                    fs::remove_file(offshoot_tests::dir().join("signs/meddled")).expect("a sign");
                    for _ in 0..64 {
                        let call = hostile.call(length, Bytes::from(vec![0; LEAST]));
                        let _ = offshoot::timeout(Duration::from_millis(5), call).await;
                    }
                })
                .await;
            error.map(|()| String::new())
        })
        .await
        .expect_err("it is ended");
        assert_eq!(sibling.call(double, 21).await?, 42);
        Ok(ended.report())
    })
    .await
}

processes! {
    async fn calls_go_by_it_at_every_length_and_it_is_gone_with_the_process(_t: T) {
        offshoot::nursery(async |nursery| {
            assert_eq!(rings(), 0);
            let p = spawn_ringed(nursery, "p").await?;
            assert_eq!((rings(), p.call(rings, ()).await?), (1, 1));
            // Around the end at every place: the header makes the lengths odd ones.
            for len in (0..3 * LEAST).step_by(37) {
                let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + len) as u8).collect();
                let back = p.call(echo, Bytes::from(bytes.clone())).await?;
                assert!(back.into_vec() == bytes, "{len} bytes came back as others");
            }
            let long = vec![9; 5 << 20];
            assert!(p.call(echo, Bytes::from(long.clone())).await?.into_vec() == long);
            Ok(())
        })
        .await?;
        assert!(until(|| rings() == 0));
    }

    /// More than is read in one turn, and then nothing: what was read has to be taken, too.
    async fn a_burst_of_long_calls_is_taken_whole(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("p").ring(1 << 20)).await?;
            for _ in 0..200 {
                let calls = (0..8).map(|_| p.call(length, Bytes::from(vec![1; 64 << 10])));
                for length in futures_util::future::try_join_all(calls).await? {
                    assert_eq!(length, 64 << 10);
                }
            }
            Ok(())
        })
        .await?;
    }

    /// Whichever way it goes, and only if there is much of it.
    async fn a_link_that_carries_bulk_gets_one_by_itself(_t: T) {
        if std::env::var_os("OFFSHOOT_RING").is_some() {
            // Then it is for whoever runs this to say.
            return Ok(());
        }
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn("p").await?;
            for _ in 0..100 {
                assert_eq!(p.call(length, Bytes::from(vec![1; 32 << 10])).await?, 32 << 10);
            }
            for _ in 0..15 {
                assert_eq!(p.call(length, Bytes::from(vec![1; 64 << 10])).await?, 64 << 10);
            }
            assert_eq!((rings(), p.call(rings, ()).await?), (0, 0), "there was not enough of it");
            // The sixteenth, and then what comes when it has been agreed upon.
            for _ in 0..3 {
                assert_eq!(p.call(length, Bytes::from(vec![1; 64 << 10])).await?, 64 << 10);
            }
            assert_eq!((rings(), p.call(rings, ()).await?), (1, 1));
            let q = nursery.spawn("q").await?;
            for len in [100_000; 40] {
                assert_eq!(q.call(ones, len).await?.len(), len);
            }
            assert_eq!((rings(), q.call(rings, ()).await?), (2, 1));
            let none = nursery.spawn(Isolate::named("none").ring(0)).await?;
            for _ in 0..40 {
                assert_eq!(none.call(length, Bytes::from(vec![1; 64 << 10])).await?, 64 << 10);
            }
            assert_eq!((rings(), none.call(rings, ()).await?), (2, 0));
            Ok(())
        })
        .await?;
        assert!(until(|| rings() == 0), "they go with their links");
    }

    async fn nobody_has_one_who_did_not_ask(t: T) {
        let plain = t.builder().ring(0).run(async || {
            offshoot::nursery(async |nursery| {
                let plain = nursery.spawn("plain").await?;
                let thread = nursery.spawn(Isolate::named("thread").thread().ring(LEAST)).await?;
                assert_eq!(thread.call(double, 2).await?, 4);
                plain.call(rings, ()).await
            })
            .await
        })?;
        assert_eq!(plain, 0);
        let all = t.builder().ring(LEAST).run(async || {
            offshoot::nursery(async |nursery| {
                let ringed = nursery.spawn("ringed").await?;
                let not = nursery.spawn(Isolate::named("not").ring(0)).await?;
                assert_eq!(not.call(rings, ()).await?, 0);
                ringed.call(rings, ()).await
            })
            .await
        })?;
        assert_eq!(all, 1);
    }

    /// Descriptors go by the socket, all else by the ring; what they belong to arrives in its order.
    async fn portals_and_plain_messages_keep_their_order(_t: T) {
        fn note(state: &mut Vec<u64>, n: u64) {
            state.push(n);
        }
        async fn note_from(state: &mut Vec<u64>, (n, portal): (u64, Portal<u64>)) {
            let one = portal.ask(|state: &mut u64, ()| *state, ()).await;
            state.push(n - 1 + one.unwrap_or(0));
        }
        offshoot::nursery(async |nursery| {
            let one = nursery.start("one", 1_u64).await?;
            let spec = Isolate::named("notes").ring(LEAST);
            let notes = nursery.start(spec, Vec::<u64>::new()).await?;
            for n in 1..=200 {
                if n % 3 == 0 {
                    // The portal is to a process, so that its socket goes along.
                    notes.tell(note_from, (n, one.clone())).await?;
                } else {
                    notes.tell(note, n).await?;
                }
            }
            let seen = notes.ask(|state: &mut Vec<u64>, ()| state.clone(), ()).await?;
            assert_eq!(seen, (1..=200).collect::<Vec<u64>>());
            let p = spawn_ringed(nursery, "p").await?;
            for _ in 0..100 {
                assert_eq!(p.call(holds, one.clone()).await??, 1);
            }
            Ok(())
        })
        .await?;
    }

    async fn a_process_below_has_one_of_its_own(_t: T) {
        async fn below() -> Result<(usize, u64)> {
            offshoot::nursery(async |nursery| {
                let p = spawn_ringed(nursery, "below").await?;
                Ok((rings(), p.call(double, 3).await?))
            })
            .await
        }
        offshoot::nursery(async |nursery| {
            let p = spawn_ringed(nursery, "p").await?;
            assert_eq!(p.call(below, ()).await??, (2, 6));
            Ok(())
        })
        .await?;
    }

    /// 4 GiB in the long form, and 64 MiB otherwise, through a ring of 64 KiB and a window: no side holds more than these.
    async fn bulk_takes_no_memory(t: T) {
        let long = std::env::var_os("OFFSHOOT_LONG").is_some();
        t.within(Duration::from_secs(if long { 120 } else { 60 }));
        let chunks: u64 = if long { 65_536 } else { 1_024 };
        offshoot::nursery(async |nursery| {
            let sink = nursery.spawn(Isolate::named("sink").ring(64 << 10)).await?;
            let window = Window { items: 64, bytes: 2 << 20 };
            let (mut link, ()) = sink.open(counts, ()).window(window).await?;
            let before = (resident(), sink.call(resident, ()).await?);
            for _ in 0..chunks {
                link.send(Bytes::from(vec![3; 64 << 10])).await?;
            }
            link.close();
            assert_eq!(link.result().await??, chunks * (64 << 10));
            let after = (resident(), sink.call(resident, ()).await?);
            let more = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            assert!(more.0 < 32 << 20 && more.1 < 32 << 20, "{before:?}, then {after:?}");
            Ok(())
        })
        .await?;
    }

    async fn a_reader_that_is_stopped_holds_up_nobody_else_and_reads_on(_t: T) {
        offshoot::nursery(async |nursery| {
            let sibling = spawn_ringed(nursery, "sibling").await?;
            let p = spawn_ringed(nursery, "p").await?;
            let process = Pidfd::open(p.origin().pid)?;
            process.signal(libc::SIGSTOP)?;
            for _ in 0..8 {
                let call = p.call(length, Bytes::from(vec![0; 1 << 20]));
                let error = offshoot::timeout(Duration::from_millis(20), call).await.unwrap_err();
                assert!(error.is_timeout(), "{}", error.report());
                assert_eq!(sibling.call(double, 1).await?, 2);
            }
            process.signal(libc::SIGCONT)?;
            assert_eq!(p.call(length, Bytes::from(vec![0; 3 << 20])).await?, 3 << 20);
            Ok(())
        })
        .await?;
    }

    async fn half_of_an_answer_is_none(_t: T) {
        fn kills_itself_soon() {
            std::thread::spawn(|| {
                assert!(until(|| marked("answering")));
                std::thread::sleep(Duration::from_millis(2));
                let _ = Pidfd::open(process::id()).and_then(|this| this.kill());
            });
        }
        async fn long() -> Bytes {
            mark("answering");
            Bytes::from(vec![1; 15 << 20])
        }
        let error = offshoot::nursery(async |nursery| {
            let p = spawn_ringed(nursery, "p").await?;
            p.call(kills_itself_soon, ()).await?;
            // Through a ring of 4 KiB that takes far longer than the 2 ms; and if it comes whole, then it was whole.
            let answer = p.call(long, ()).await;
            match answer {
                Ok(bytes) => assert_eq!(bytes.len(), 15 << 20),
                Err(error) => assert!(error.is_ended() && error.message().contains("SIGKILL"), "{error}"),
            }
            p.ended().await;
            Ok(())
        })
        .await
        .expect_err("it was killed");
        assert!(error.report().contains("SIGKILL"), "{}", error.report());
    }

    async fn counts_that_cannot_be_cost_their_process_and_nobody_else(_t: T) {
        for (at, count, text) in [
            (WRITTEN, u64::MAX, "writer says"),
            (WRITTEN, 0, "writer says"),
            (WRITTEN, 1 << 40, "writer says"),
            // What is written to it finds that, and no process can be told from one that hung up by that.
            (READ_BY_CHILD, u64::MAX, ""),
            (READ_BY_CHILD, 1 << 40, ""),
        ] {
            let report = ended_for(at, count.to_le_bytes().to_vec(), None).await?;
            assert!(report.contains("SIGKILL") && report.contains(text), "{at}: {report}");
        }
    }

    async fn frames_that_are_wrong_cost_their_process(_t: T) {
        let mut unknown = [0; 16];
        (unknown[4], unknown[6]) = (99, 1);
        let mut huge = [0xff; 16];
        (huge[4], huge[5], huge[6], huge[7]) = (18, 0, 1, 0);
        for (bytes, text) in [
            (unknown, "unknown frame kind 99"),
            (huge, "exceeds the limit"),
            ([0xa5; 16], "frame version"),
        ] {
            let report = ended_for(u64::MAX, bytes.to_vec(), None).await?;
            assert!(report.contains("broke the protocol") && report.contains(text), "{report}");
        }
    }

    /// What is not to be changed by the other side is not believed either: its own counts it keeps in its own memory.
    async fn words_of_the_other_side_are_not_read_back(_t: T) {
        let report = ended_for(READ, u64::MAX.to_le_bytes().to_vec(), Some(u64::MAX)).await?;
        assert!(report.contains("writer says"), "{report}");
        let report = ended_for(WRITTEN_BY_OWNER, vec![0; 8], Some(u64::MAX)).await?;
        assert!(report.contains("writer says"), "{report}");
        let report = ended_for(BYTES, vec![0xff; LEAST], Some(u64::MAX)).await?;
        assert!(report.contains("writer says"), "{report}");
    }

    async fn without_room_to_map_it_the_link_stays_as_it_was(_t: T) {
        offshoot::nursery(async |nursery| {
            let spec = Isolate::named("p").ring(1 << 30).limit(Limit::AddressSpace, 1 << 30, 1 << 30);
            let p = nursery.spawn(spec).await?;
            for n in 0..10 {
                assert_eq!(p.call(double, n).await?, 2 * n);
            }
            assert_eq!(p.call(rings, ()).await?, 0);
            Ok(())
        })
        .await?;
    }
}
