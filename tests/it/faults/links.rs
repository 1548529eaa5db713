//! A hostile process on a link: bytes that are wrong, too many, for nobody, or not read.
//!
//! The code of a process isolate finds its own end of the link among its descriptors, and writes to
//! it beside the runtime.

use super::{SOON, double, pends, serves};
use offshoot::Window;
use offshoot::prelude::*;
use offshoot::testing::Fault;
use offshoot::{Error, ErrorKind};
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::{process, socket};
use offshoot_tests::{Stopwatch, held, mark, marked, processes};
use std::path::Path;
use std::time::{Duration, Instant};

const REPLY: u8 = 18;
const CREDIT: u8 = 20;
const ENDED: u8 = 22;

/// The header of a frame of version 1.
pub(super) fn header(len: u32, kind: u8, correlation: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes[4] = kind;
    bytes[6] = 1;
    bytes[8..].copy_from_slice(&correlation.to_le_bytes());
    bytes
}

fn option(fd: i32, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointers are to a live value and to its length.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(value)
}

/// The sockets of this process, of this type.
fn sockets(kind: libc::c_int) -> Vec<i32> {
    let listed = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let numbers = listed
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<i32> = numbers
        .filter(|fd| {
            *fd > 2
                && option(*fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
                && option(*fd, libc::SO_TYPE) == Some(kind)
        })
        .collect();
    found.sort_unstable();
    found
}

/// Writes to the link of this process isolate, beside the runtime, with these descriptors.
fn send_raw(kind: libc::c_int, mut bytes: &[u8], descriptors: &[i32]) {
    let link = sockets(kind)[0];
    let mut control = vec![0_u8; 2048];
    while !bytes.is_empty() {
        let mut part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: an all-zero header is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !descriptors.is_empty() {
            let len = size_of_val(descriptors);
            message.msg_control = control.as_mut_ptr().cast();
            // SAFETY: the control buffer is live and long enough for one header and all numbers.
            unsafe {
                message.msg_controllen = libc::CMSG_SPACE(len as u32) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const message);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(len as u32) as _;
                std::ptr::copy_nonoverlapping(
                    descriptors.as_ptr().cast(),
                    libc::CMSG_DATA(first),
                    len,
                );
            }
        }
        // SAFETY: the header points to live buffers of the lengths given.
        let n = unsafe { libc::sendmsg(link, &raw const message, libc::MSG_NOSIGNAL) };
        match usize::try_from(n) {
            Ok(n) => bytes = &bytes[n..],
            Err(_) => {
                let error = std::io::Error::last_os_error();
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

pub(super) fn write_raw(bytes: &[u8]) {
    send_raw(libc::SOCK_STREAM, bytes, &[]);
}

/// Ends this process as a kill from outside does.
pub(super) fn kill_self() {
    let _ = Pidfd::open(process::id()).and_then(|this| this.kill());
}

fn write_frame(bytes: Vec<u8>) {
    write_raw(&bytes);
}

fn frame(kind: u8, correlation: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short");
    [&header(len, kind, correlation)[..], body].concat()
}

/// Says half of an answer, and is killed.
fn half_of_an_answer() {
    write_raw(&header(100, REPLY, 1));
    write_raw(&[7; 10]);
    kill_self();
}

/// How many descriptors this process has, but for the event counters, of which an isolate makes one when it first waits for a process.
fn descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let counters = |path: &Path| path.to_string_lossy().contains("[eventfd]");
    all.filter_map(|one| std::fs::read_link(one.ok()?.path()).ok())
        .filter(|path| !counters(path))
        .count()
}

/// What the owner of a process says that has written this: how it was ended, and that nobody else was.
async fn ended_for(bytes: Vec<u8>) -> Result<Error> {
    offshoot::nursery(async |outer| {
        let sibling = outer.spawn("sibling").await?;
        let error = offshoot::nursery(async |nursery| {
            // What it writes to the socket beside a ring has no meaning; see `rings` for that.
            let hostile = nursery.spawn(Isolate::named("hostile").ring(0)).await?;
            let _ = hostile.call(write_frame, bytes).await;
            hostile.call(pends, ()).await
        })
        .await
        .expect_err("it is ended");
        serves(&sibling).await?;
        Ok(error)
    })
    .await
}

async fn text() -> Result<String> {
    held("text").await?;
    Ok("text".to_owned())
}

/// Answers the first call with a text that claims to be 2^62 bytes long.
fn bomb() {
    write_raw(&frame(REPLY, 1, &[253, 0, 0, 0, 0, 0, 0, 0, 0x40]));
}

/// Answers calls that nobody has made, and one twice.
fn answers_for_nobody() {
    for correlation in [1, 77, 1 << 40, u64::MAX] {
        write_raw(&frame(REPLY, correlation, &[1]));
        write_raw(&frame(REPLY, correlation, &[1]));
    }
}

/// Gives lanes that there are and lanes that there are not more credit than there is.
fn gives_credit() {
    for lane in 0..8 {
        let body = [
            lane, 252, 0xff, 0xff, 0xff, 0xff, 252, 0xff, 0xff, 0xff, 0xff,
        ];
        write_raw(&frame(CREDIT, 0, &body));
        write_raw(&frame(CREDIT, 0, &body));
    }
}

/// Sends its owner descriptors that it has no use for.
fn sends_descriptors(many: usize) {
    let answer = frame(REPLY, 1 << 50, &[1]);
    send_raw(libc::SOCK_STREAM, &answer, &vec![0; many]);
}

/// Sends the forkserver something that is no request, with as many descriptors as fit.
fn sends_rubbish_to_the_forkserver() {
    assert!(socket::is_packet_socket(sockets(libc::SOCK_SEQPACKET)[0]));
    send_raw(libc::SOCK_SEQPACKET, &[0xee; 100], &[0; 253]);
}

/// Sends frames for nobody, as fast as it can, for so long (ms).
fn floods(millis: u64) {
    let many: Vec<u8> = frame(REPLY, 1 << 50, &[1]).repeat(4_096);
    let end = Instant::now() + Duration::from_millis(millis);
    mark("flooding");
    while Instant::now() < end {
        write_raw(&many);
    }
    mark("flooded");
}

fn length(bytes: Vec<u8>) -> usize {
    bytes.len()
}

processes! {
    async fn f05_killed_in_the_middle_of_an_answer(_t: T) {
        offshoot::nursery(async |outer| {
            let mut calls = Vec::new();
            let inner = offshoot::nursery(async |nursery| {
                let p = nursery.spawn(Isolate::named("p").ring(0)).await?;
                for _ in 0..4 {
                    let p = p.clone();
                    calls.push(outer.task(async move { p.call(pends, ()).await }));
                }
                offshoot::sleep(Duration::from_millis(10)).await?;
                p.call(half_of_an_answer, ()).await
            })
            .await;
            let error = inner.unwrap_err();
            assert_eq!(error.failures().len(), 1, "{}", error.report());
            assert!(error.message().contains("SIGKILL"), "{error}");
            for call in calls {
                let error = call.await?.unwrap_err();
                assert!(error.is_ended() && error.message().contains("SIGKILL"), "{error}");
            }
            Ok(())
        })
        .await?;
    }

    /// What an isolate finds wrong while the warden is held up, having just looked for new processes, is heard all the same.
    fn f36_a_frame_that_is_wrong_while_the_warden_is_slow(t: T) {
        let slow = Fault::at("look").delay(Duration::from_millis(3));
        let said = t.builder().faults(vec![slow]).run(async || {
            for _ in 0..10 {
                let error = ended_for(header(0, 99, 0).to_vec()).await?;
                assert!(error.report().contains("unknown frame kind 99"));
            }
            Ok(())
        });
        said.expect("each is ended, and nobody waits for ever");
    }

    async fn f34_a_frame_that_claims_four_gigabytes(_t: T) {
        let error = ended_for(header(u32::MAX, REPLY, 1).to_vec()).await?;
        assert!(error.report().contains("exceeds the limit"), "{}", error.report());
    }

    async fn f35_an_answer_that_claims_more_than_it_is(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("hostile").ring(0)).await?;
            let mut asked = Box::pin(p.call(text, ()));
            let began = Instant::now();
            let (answer, ()) = futures_util::future::join(asked.as_mut(), async {
                p.call(bomb, ()).await.expect("the bomb is another call");
            })
            .await;
            let error = answer.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Codec), "{}", error.report());
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
            // It costs that call, and nothing else. Its own answer comes too late for anybody.
            mark("text");
            serves(&p).await
        })
        .await?;
    }

    async fn f36_bytes_that_are_no_frame(_t: T) {
        let mut version = header(0, REPLY, 1);
        version[6] = 9;
        let mut flags = header(0, REPLY, 1);
        flags[5] = 0x80;
        let wrong = [
            (header(0, 99, 0).to_vec(), "unknown frame kind 99"),
            (version.to_vec(), "frame version 9"),
            (flags.to_vec(), "unknown frame flags"),
            // Boot is for a child, which says Ready once, and nothing in an acknowledgement.
            (header(0, 1, 0).to_vec(), "Boot is not for the child to send"),
            (header(0, 16, 0).to_vec(), "Ready after the last of its kind"),
            (frame(21, 0, &[1]), "CancelAck with a body"),
            (frame(ENDED, 0, &[0xff; 20]), "Ended"),
            (frame(CREDIT, 0, &[]), "Credit"),
            (vec![0xa5; 64], "frame"),
        ];
        for (bytes, text) in wrong {
            let error = ended_for(bytes).await?;
            assert_eq!(error.failures().len(), 1, "{}", error.report());
            assert!(error.report().contains("broke the protocol"), "{}", error.report());
            assert!(error.report().contains(text), "{text}: {}", error.report());
        }
    }

    async fn f37_answers_for_nobody(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("hostile").ring(0)).await?;
            // The first call has been answered.
            serves(&p).await?;
            p.call(answers_for_nobody, ()).await?;
            serves(&p).await?;
            // And one that is late.
            let late = offshoot::timeout(Duration::from_millis(20), p.call(|| {
                std::thread::sleep(Duration::from_millis(60));
            }, ()));
            assert!(late.await.is_err());
            serves(&p).await
        })
        .await?;
    }

    async fn f38_a_process_that_reads_nothing(_t: T) {
        offshoot::nursery(async |nursery| {
            let sibling = nursery.spawn("sibling").await?;
            let p = nursery.spawn("p").await?;
            serves(&p).await?;
            let process = Pidfd::open(p.origin().pid)?;
            process.signal(libc::SIGSTOP)?;
            for _ in 0..8 {
                let call = p.call(length, vec![0; 1 << 20]);
                let error = offshoot::timeout(Duration::from_millis(50), call).await.unwrap_err();
                assert!(error.is_timeout(), "{}", error.report());
                serves(&sibling).await?;
            }
            // What was accepted is bounded by what may be queued, so that the rest was never sent; and
            // it reads on when it can.
            process.signal(libc::SIGCONT)?;
            assert_eq!(p.call(length, vec![0; 3 << 20]).await?, 3 << 20);
            Ok(())
        })
        .await?;
    }

    async fn f38_a_process_that_never_stops_sending(_t: T) {
        offshoot::nursery(async |nursery| {
            let sibling = nursery.spawn("sibling").await?;
            let p = nursery.spawn(Isolate::named("hostile").ring(0)).await?;
            let flood = nursery.task(p.call(floods, 1_500));
            held("flooding").await?;
            let watch = Stopwatch::start();
            let mut slowest = Duration::ZERO;
            while !marked("flooded") {
                let began = watch.elapsed();
                assert_eq!(sibling.call(double, 21).await?, 42);
                slowest = slowest.max(watch.elapsed().saturating_sub(began));
            }
            drop(watch);
            assert!(slowest < Duration::from_millis(500), "{slowest:?}");
            flood.await?
        })
        .await?;
    }

    async fn f39_more_credit_than_there_is(_t: T) {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("hostile").ring(0)).await?;
            serves(&p).await?;
            p.call(gives_credit, ()).await?;
            serves(&p).await
        })
        .await?;
    }

    fn f41_descriptors_that_nobody_asked_for(t: T) {
        // Without processes in reserve, whose descriptors come at any time.
        t.builder().reserve_processes(0).run(async || {
        offshoot::nursery(async |nursery| {
            let p = nursery.spawn(Isolate::named("hostile").ring(0)).await?;
            serves(&p).await?;
            let before = descriptors();
            for many in [1, 3, 253] {
                p.call(sends_descriptors, many).await?;
            }
            serves(&p).await?;
            assert_eq!(descriptors(), before);
            Ok(())
        })
        .await
        })
        .unwrap();
    }

    async fn f41_rubbish_with_descriptors_for_the_forkserver(_t: T) {
        offshoot::nursery(async |outer| {
            let sibling = outer.spawn("sibling").await?;
            let error = offshoot::nursery(async |nursery| {
                let p = nursery.spawn("hostile").await?;
                let _ = p.call(sends_rubbish_to_the_forkserver, ()).await;
                mark("sent");
                p.call(pends, ()).await
            })
            .await
            .unwrap_err();
            assert!(error.message().contains("SIGKILL"), "{error}");
            held("sent").await?;
            serves(&sibling).await?;
            // The forkserver is the same as before, and has room.
            let next = outer.spawn("next").await?;
            assert_eq!(next.call(double, 4).await?, 8);
            Ok(())
        })
        .await?;
    }

    /// A link ends while a dialogue over it is in each of its half-states: both sides take what had come and get one end, which is no orderly one.
    async fn f40_the_link_ends_in_each_half_state(_t: T) {
        for (round, (opener_closed, peer_closed, full)) in [
            (false, false, false),
            (true, false, false),
            (false, true, false),
            (true, true, false),
            (false, false, true),
        ]
        .into_iter()
        .enumerate()
        {
            let lost = offshoot::nursery(async |outer| {
                let sibling = outer.spawn("sibling").await?;
                let mut link = None;
                let lost = offshoot::nursery(async |nursery| {
                    let p = nursery.spawn("p").await?;
                    let window = Window { items: 2, bytes: 1 << 20 };
                    let opened = p.open(half_state, (round, peer_closed)).window(window).await?;
                    let (mut opened, ()) = opened;
                    opened.send(1).await?;
                    if full {
                        // The peer takes nothing: there is room for one more.
                        opened.send(2).await?;
                        let none = offshoot::timeout(Duration::from_millis(50), opened.send(3)).await;
                        assert!(none.unwrap_err().is_timeout());
                    }
                    if opener_closed {
                        opened.close();
                    }
                    held(&format!("state {round}")).await?;
                    // What had come counts: an answer is behind the items.
                    p.call(double, 1).await?;
                    link = Some(opened);
                    assert!(offshoot::testing::break_link(&p));
                    p.ended().await;
                    Ok(())
                })
                .await
                .expect_err("it is cut off");
                let mut link = link.expect("it was opened");
                assert_eq!(link.next().await?, Some(7), "round {round}");
                match link.next().await {
                    Ok(None) => assert!(peer_closed, "round {round}: it looks as if it had ended"),
                    Ok(Some(item)) => panic!("round {round}: {item} came from nowhere"),
                    Err(error) => assert!(error.message().contains("root/p"), "round {round}: {error}"),
                }
                let send = link.send(9).await.unwrap_err();
                assert!(send.is_closed() || send.message().contains("root/p"), "round {round}: {send}");
                let result = link.result().await.map(drop).unwrap_err();
                assert!(result.message().contains("root/p"), "round {round}: {result}");
                serves(&sibling).await?;
                Ok(lost)
            })
            .await?;
            assert!(lost.report().contains("root/p"), "{}", lost.report());
        }
    }
}

/// Sends one, takes nothing, and waits in a state of its stream.
async fn half_state(mut peer: Peer<u64, u64>, (round, closed): (usize, bool)) -> Result<()> {
    peer.started(())?;
    peer.send(7).await?;
    if closed {
        peer.close();
    }
    mark(&format!("state {round}"));
    offshoot::cancelled().await;
    Ok(())
}
