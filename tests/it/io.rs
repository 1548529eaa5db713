//! Sockets, files and blocking work: they do what they say, see every cancellation, and leave
//! nothing behind, however the isolate that has them ends.

use futures_util::future::{join, join_all};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use offshoot::net::{TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixListener, UnixStream};
use offshoot::prelude::*;
use offshoot::{Error, Exit, fs, timeout, unblock};
use offshoot_sys::pidfd::Pidfd;
use offshoot_tests::{
    Guard, append, both, dir, held, hold, lines, mark, marked, processes, soon, threads, until,
};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

const HOME: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);
/// Enough for no buffer of a socket.
const MUCH: usize = 8 << 20;

/// Bytes of which no two thousand are like others.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn pool_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.trim() == "offshoot-pool")
        .count()
}

fn kind(error: &Error) -> Option<ErrorKind> {
    error
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind)
}

/// Lets a listener have one connection that is not accepted, and no more.
fn shrink_backlog(listener: &impl AsFd) {
    // SAFETY: the descriptor is open; `listen` takes no pointer.
    let result = unsafe { libc::listen(listener.as_fd().as_raw_fd(), 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

async fn port(sign: &str) -> Result<u16> {
    held(sign).await?;
    soon("a port", || !lines(sign).is_empty()).await?;
    Ok(lines(sign)[0].parse()?)
}

async fn echo_tcp() -> Result<()> {
    let listener = TcpListener::bind(HOME).await?;
    append("port", &listener.local_addr()?.port().to_string());
    let (stream, _) = listener.accept().await?;
    futures_util::io::copy(&stream, &mut &stream).await?;
    (&stream).close().await?;
    Ok(())
}

async fn echo_unix(path: PathBuf) -> Result<()> {
    let listener = UnixListener::bind(&path).await?;
    mark("bound");
    let stream = listener.accept().await?;
    futures_util::io::copy(&stream, &mut &stream).await?;
    (&stream).close().await?;
    Ok(())
}

/// Sends much to an echo and compares what comes back.
async fn exchange<S>(stream: &S) -> Result<()>
where
    for<'a> &'a S: futures_util::AsyncRead + futures_util::AsyncWrite + Unpin,
{
    let sent = pattern(MUCH);
    let (mut reader, mut writer) = (stream, stream);
    let write = async {
        writer.write_all(&sent).await?;
        writer.close().await?;
        Ok::<(), Error>(())
    };
    let read = async {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).await?;
        Ok::<_, Error>(back)
    };
    let (written, back) = join(write, read).await;
    written?;
    assert!(back? == sent, "what came back is something else");
    Ok(())
}

async fn answer_udp() -> Result<()> {
    let socket = UdpSocket::bind(HOME).await?;
    append("port", &socket.local_addr()?.port().to_string());
    let mut buf = [0; 64];
    let (len, from) = socket.recv_from(&mut buf).await?;
    socket.connect(from).await?;
    assert_eq!(socket.peer_addr()?, from);
    buf[..len].reverse();
    socket.send(&buf[..len]).await?;
    Ok(())
}

async fn answer_unix(path: PathBuf, back: PathBuf) -> Result<()> {
    let socket = UnixDatagram::bind(&path).await?;
    mark("bound");
    let mut buf = [0; 64];
    let (len, from) = socket.recv_from(&mut buf).await?;
    assert_eq!(from, None, "it would lead nowhere");
    buf[..len].reverse();
    socket.send_to(&buf[..len], &back).await?;
    Ok(())
}

/// Serves so many connections at the same time: none ends before all are there.
async fn serve_many(connections: usize) -> Result<()> {
    let listener = TcpListener::bind(HOME).await?;
    append("port", &listener.local_addr()?.port().to_string());
    let mut streams = Vec::new();
    for _ in 0..connections {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        assert!(stream.nodelay()?);
        streams.push(stream);
    }
    let served = join_all(streams.iter().map(async |mut stream| {
        let mut number = [0; 4];
        stream.read_exact(&mut number).await?;
        let double = u32::from_le_bytes(number) * 2;
        stream.write_all(&double.to_le_bytes()).await?;
        Ok::<(), Error>(())
    }));
    served.await.into_iter().collect()
}

/// Awaits an operation that cannot end by itself, and writes down how it did.
async fn wait_for(what: String, port: u16, path: PathBuf) -> Result<()> {
    let what = what.as_str();
    let sign = format!("{what} waits");
    // The sign is made once the operation is pending.
    async fn pending<T>(sign: &str, operation: impl Future<Output = std::io::Result<T>>) -> Error {
        let mut operation = pin!(operation);
        let mut signed = false;
        let result = std::future::poll_fn(|cx| {
            let polled = operation.as_mut().poll(cx);
            if polled.is_pending() && !std::mem::replace(&mut signed, true) {
                mark(sign);
            }
            polled
        })
        .await;
        match result {
            Ok(_) => Error::other("it ended"),
            Err(error) => error.into(),
        }
    }
    let mut buf = [0; 16];
    let error = match what {
        "read" => {
            let (mut one, _other) = UnixStream::pair()?;
            pending(&sign, one.read(&mut buf)).await
        }
        "write" => {
            let (mut one, _other) = UnixStream::pair()?;
            let much = pattern(MUCH);
            pending(&sign, one.write_all(&much)).await
        }
        "accept" => {
            let listener = TcpListener::bind(HOME).await?;
            pending(&sign, listener.accept()).await
        }
        "connect tcp" => pending(&sign, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await,
        "connect unix" => pending(&sign, UnixStream::connect(&path)).await,
        "receive" => {
            let socket = UdpSocket::bind(HOME).await?;
            pending(&sign, socket.recv_from(&mut buf)).await
        }
        "send" => {
            let socket = UnixDatagram::unbound()?;
            let much = async {
                loop {
                    socket
                        .send_to(b"again", &path.with_extension("dgram"))
                        .await?;
                }
                #[allow(unreachable_code)] // Names the type.
                Ok(())
            };
            pending(&sign, much).await
        }
        "blocking" => {
            let hold = unblock(|| hold("released"));
            pending(&sign, async { hold.await.map_err(std::io::Error::from) }).await
        }
        other => unreachable!("{other}"),
    };
    append(
        what,
        if error.is_cancelled() {
            "cancelled"
        } else {
            "not"
        },
    );
    Err(error)
}

both! {
    async fn a_tcp_stream_carries_both_ways(_t: T) {
        offshoot::nursery(async |nursery| {
            let server = nursery.spawn("server").await?;
            let served = nursery.task(server.call(echo_tcp, ()));
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port("port").await?)).await?;
            assert!(stream.peer_addr()?.ip().is_loopback() && stream.local_addr()?.port() > 0);
            exchange(&stream).await?;
            served.await??
        })
        .await?;
    }

    async fn a_unix_stream_carries_both_ways(_t: T) {
        let path = dir().join("echo");
        offshoot::nursery(async |nursery| {
            let server = nursery.spawn("server").await?;
            let served = nursery.task(server.call(echo_unix, path.clone()));
            held("bound").await?;
            exchange(&UnixStream::connect(&path).await?).await?;
            served.await??
        })
        .await?;
        assert!(!path.exists());
    }

    async fn datagrams_come_whole(_t: T) {
        offshoot::nursery(async |nursery| {
            let server = nursery.spawn("server").await?;
            let mut buf = [0; 64];

            let served = nursery.task(server.call(answer_udp, ()));
            let socket = UdpSocket::bind("127.0.0.1:0").await?;
            let to = ("127.0.0.1", port("port").await?);
            socket.send_to(b"stressed", to).await?;
            assert_eq!(timeout(LONG, socket.recv(&mut buf)).await??, 8);
            assert_eq!(&buf[..8], b"desserts");
            served.await???;

            let (there, here) = (dir().join("there"), dir().join("here"));
            let served = nursery.task(server.call(answer_unix, (there.clone(), here.clone())));
            held("bound").await?;
            let socket = UnixDatagram::bind(&here).await?;
            assert_eq!(socket.path(), Some(&*here));
            socket.send_to(b"drawer", &there).await?;
            assert_eq!(timeout(LONG, socket.recv(&mut buf)).await??, 6);
            assert_eq!(&buf[..6], b"reward");
            served.await???;
            drop(socket);
            assert!(!there.exists() && !here.exists());
            Ok(())
        })
        .await?;
    }

    async fn one_isolate_serves_hundreds_of_connections_at_once(_t: T) {
        // In one process this is two descriptors each, and 1,024 is a common limit.
        const MANY: usize = 450;
        offshoot::nursery(async |nursery| {
            let server = nursery.spawn("server").await?;
            let served = nursery.task(server.call(serve_many, MANY));
            let to = (Ipv4Addr::LOCALHOST, port("port").await?);
            let doubled = join_all((0..MANY as u32).map(async |number| {
                let mut stream = TcpStream::connect(to).await?;
                stream.write_all(&number.to_le_bytes()).await?;
                let mut double = [0; 4];
                stream.read_exact(&mut double).await?;
                Ok::<_, Error>((stream, u32::from_le_bytes(double)))
            }));
            for (number, doubled) in doubled.await.into_iter().enumerate() {
                assert_eq!(doubled?.1 as usize, number * 2);
            }
            served.await??
        })
        .await?;
    }

    async fn whatever_waits_is_told_of_a_cancellation_at_once(_t: T) {
        const ALL: [&str; 8] = [
            "read", "write", "accept", "connect tcp", "connect unix", "receive", "send", "blocking",
        ];
        let (path, home) = (dir().join("full"), (Ipv4Addr::LOCALHOST, 0));
        let tcp = TcpListener::bind(home).await?;
        let unix = UnixListener::bind(&path).await?;
        let _dgram = UnixDatagram::bind(path.with_extension("dgram")).await?;
        shrink_backlog(&tcp);
        shrink_backlog(&unix);
        // Nobody accepts; once one has to wait, all others have to.
        let to = tcp.local_addr()?;
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(SHORT, TcpStream::connect(to)).await {
            waiting.push(stream?);
        }
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(SHORT, UnixStream::connect(&path)).await {
            waiting.push(stream?);
        }
        offshoot::nursery(async |nursery| {
            let waiter = nursery.spawn("waiter").await?;
            for what in ALL {
                let args = (what.to_owned(), to.port(), path.clone());
                let call = waiter.call(wait_for, args);
                drop(nursery.task(async { drop(call.await) }));
            }
            for what in ALL {
                held(&format!("{what} waits")).await?;
            }
            // What does not look is dropped after the grace, and writes nothing.
            waiter.cancel().await;
            for what in ALL {
                soon(what, || !lines(what).is_empty()).await?;
                assert_eq!(lines(what), ["cancelled"], "{what}");
            }
            mark("released");
            let exit = waiter.ended().await;
            assert!(matches!(exit, Exit::Cancelled(_)), "{exit}");
            Ok(())
        })
        .await?;
    }

    fn a_path_goes_with_a_panic(t: T) {
        let path = dir().join("socket");
        let bound = path.clone();
        let result = t.run(async move || {
            offshoot::nursery(async |nursery| {
                let other = nursery.spawn("other").await?;
                other.call(bind_and_panic, bound).await
            })
            .await
        });
        assert!(result.unwrap_err().is_panic());
        assert!(marked("bound") && !path.exists());
    }

    fn a_path_goes_with_the_end_of_an_isolate(t: T) {
        let path = dir().join("socket");
        let bound = path.clone();
        t.run(async move || {
            offshoot::nursery(async |nursery| {
                let other = nursery.spawn("other").await?;
                let call = other.call(bind_and_wait, bound.clone());
                drop(nursery.task(async { drop(call.await) }));
                held("bound").await?;
                assert!(bound.exists());
                other.cancel().await;
                let exit = other.ended().await;
                assert!(matches!(exit, Exit::Cancelled(_)), "{exit}");
                assert!(!bound.exists());
                Ok(())
            })
            .await
        })
        .unwrap();
        assert!(!path.exists());
    }

    async fn f44_nothing_is_bound_over_anything(_t: T) {
        let path = dir().join("socket");
        offshoot::nursery(async |nursery| {
            let other = nursery.spawn("other").await?;
            let call = other.call(bind_and_wait, path.clone());
            drop(nursery.task(async { drop(call.await) }));
            held("bound").await?;
            let error = Error::from(UnixListener::bind(&path).await.unwrap_err());
            assert_eq!(kind(&error), Some(ErrorKind::AddrInUse));
            assert!(error.message().contains(path.to_str().unwrap()), "{error}");
            // It is still the other one's.
            drop(UnixStream::connect(&path).await?);
            let elsewhere = dir().join("file");
            fs::write(&elsewhere, "mine").await?;
            let error = UnixDatagram::bind(&elsewhere).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            assert_eq!(fs::read(&elsewhere).await?, b"mine");
            mark("go");
            Ok(())
        })
        .await?;
        assert!(!path.exists());
    }

    fn a_registered_file_goes_with_its_isolate(t: T) {
        let path = dir().join("pid");
        let file = path.clone();
        t.run(async move || {
            offshoot::nursery(async |nursery| {
                let other = nursery.spawn("other").await?;
                other.call(register_and_leave, file.clone()).await??;
                assert!(!file.exists(), "the guard was dropped");
                let error = offshoot::register_path(&file).await.unwrap_err();
                assert_eq!(kind(&error), Some(ErrorKind::NotFound));
                Ok(())
            })
            .await
        })
        .unwrap();
    }

    async fn files_are_read_and_written(_t: T) {
        offshoot::nursery(async |nursery| {
            let other = nursery.spawn("other").await?;
            other.call(use_files, dir().join("files")).await?
        })
        .await?;
    }

    async fn a_panic_of_blocking_work_is_that_of_its_isolate(_t: T) {
        let ended = offshoot::nursery(async |nursery| {
            let other = nursery.spawn("other").await?;
            other.call(panic_elsewhere, ()).await
        })
        .await;
        let error = ended.unwrap_err();
        assert!(error.is_panic(), "{error}");
        let report = error.report();
        assert!(report.contains("on another thread") && report.contains("io.rs:"), "{report}");
    }
}

async fn bind_and_panic(path: PathBuf) {
    let _listener = UnixListener::bind(&path).await.expect("a listener");
    assert!(path.exists());
    mark("bound");
    panic!("with a socket");
}

async fn bind_and_wait(path: PathBuf) -> Result<()> {
    let _listener = UnixListener::bind(&path).await?;
    let _datagram = UnixDatagram::bind(path.with_extension("dgram")).await?;
    mark("bound");
    held("go").await
}

async fn bind_and_hang(path: PathBuf) -> Result<()> {
    let _listener = UnixListener::bind(&path).await?;
    mark("bound");
    hold("go");
    Ok(())
}

async fn register_and_leave(path: PathBuf) -> Result<()> {
    fs::write(&path, "1").await?;
    let guard = offshoot::register_path(&path).await?;
    assert_eq!(guard.path(), path);
    assert!(path.exists());
    Ok(())
}

async fn register_and_wait(path: PathBuf) -> Result<()> {
    fs::write(&path, "1").await?;
    let _guard = offshoot::register_path(&path).await?;
    mark("registered");
    held("go").await
}

async fn use_files(path: PathBuf) -> Result<()> {
    std::fs::create_dir(&path)?;
    let (file, content) = (path.join("file"), pattern(100_000));
    fs::write(&file, content.clone()).await?;
    assert!(fs::read(&file).await? == content);
    assert_eq!(fs::metadata(&file).await?.len(), 100_000);
    assert_eq!(fs::read_dir(&path).await?, std::slice::from_ref(&file));
    fs::write(&file, "text").await?;
    assert_eq!(fs::read_to_string(&file).await?, "text");

    let mut new = fs::File::create(path.join("new")).await?;
    for part in content.chunks(30_000) {
        new.write_all(part).await?;
    }
    new.sync().await?;
    assert_eq!(
        (new.position(), new.metadata().await?.len()),
        (100_000, 100_000)
    );
    let mut file = fs::File::open(path.join("new")).await?;
    let (mut back, mut chunk) = (Vec::new(), Vec::with_capacity(7_000));
    while file.read_chunk(&mut chunk).await? > 0 {
        assert!(chunk.len() <= 7_000);
        back.extend_from_slice(&chunk);
    }
    assert!(back == content);
    new.set_len(10).await?;
    file.set_position(5);
    assert_eq!(file.read_chunk(&mut chunk).await?, 5);
    assert_eq!(chunk, content[5..10]);
    let error = file.write_all("no").await.unwrap_err();
    assert!(
        error.message().contains("new") && kind(&error).is_some(),
        "{error}"
    );

    let missing = path.join("missing");
    let error = fs::read(&missing).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::NotFound));
    assert!(matches!(
        error.kind(),
        offshoot::ErrorKind::Io(Some(libc::ENOENT))
    ));
    assert!(
        error.message().contains(missing.to_str().unwrap()),
        "{error}"
    );
    Ok(())
}

async fn panic_elsewhere() -> Result<()> {
    unblock(|| panic!("on another thread")).await
}

processes! {
    fn a_path_goes_with_a_killed_process(t: T) {
        let (path, pid) = (dir().join("socket"), dir().join("pid"));
        let (bound, file) = (path.clone(), pid.clone());
        let result = t.run(async move || {
            offshoot::nursery(async |nursery| {
                let other = nursery.spawn("other").await?;
                for call in [other.call(bind_and_wait, bound.clone()), other.call(register_and_wait, file.clone())] {
                    drop(nursery.task(async { drop(call.await) }));
                }
                held("bound").await?;
                held("registered").await?;
                assert!(bound.exists() && file.exists());
                Pidfd::open(other.origin().pid)?.kill()?;
                let exit = other.ended().await;
                // Its end is told when it has been swept.
                assert!(!bound.exists() && !file.exists() && !bound.with_extension("dgram").exists());
                assert!(matches!(exit, Exit::Killed { .. }), "{exit}");
                // And its address is free.
                drop(UnixListener::bind(&bound).await?);
                Ok(())
            })
            .await
        });
        assert!(result.is_err(), "a child was killed");
        assert!(!path.exists() && !pid.exists());
    }

    fn a_path_goes_with_a_process_that_hangs(t: T) {
        let path = dir().join("socket");
        let bound = path.clone();
        let builder = t.builder().grace(SHORT).hard_kill(SHORT * 4);
        let result = builder.run(async move || {
            offshoot::nursery(async |nursery| {
                let other = nursery.spawn("other").await?;
                let call = other.call(bind_and_hang, bound);
                drop(nursery.task(async { drop(call.await) }));
                held("bound").await?;
                other.cancel().await;
                Ok(())
            })
            .await
        });
        assert!(result.is_err(), "a child had to be killed");
        assert!(!path.exists());
    }
}

threads! {
    fn a_path_goes_with_a_thread_that_hangs(t: T) {
        t.abandons(0);
        let path = dir().join("socket");
        let bound = path.clone();
        let builder = t.builder().grace(SHORT).hard_kill(SHORT * 4);
        let result = builder.run(async move || {
            let error = offshoot::nursery(async |nursery| {
                let other = nursery.spawn("other").await?;
                let call = other.call(bind_and_hang, bound.clone());
                drop(nursery.task(async { drop(call.await) }));
                held("bound").await?;
                other.cancel().await;
                Ok(())
            })
            .await
            .unwrap_err();
            // While the tree goes on, and the thread has the listener still.
            let free = UnixListener::bind(&bound).await?;
            // When the thread returns at last, it removes nothing of its successor's.
            mark("go");
            soon("the thread has gone", || {
                std::fs::read_dir("/proc/self/task").unwrap().flatten().all(|task| {
                    std::fs::read_to_string(task.path().join("comm"))
                        .map_or(true, |name| name.trim() != "other")
                })
            })
            .await?;
            drop(UnixStream::connect(free.path()).await?);
            Ok(error)
        });
        let error = result.unwrap();
        assert!(matches!(error.exit(), Some(Exit::Abandoned { .. })), "{error}");
        assert!(!path.exists());
    }

    async fn an_isolate_without_io_has_no_descriptor(_t: T) {
        let before = descriptors();
        offshoot::nursery(async |nursery| {
            for n in 0..200 {
                let idle = nursery.spawn(format!("idle {n}")).await?;
                idle.call(offshoot::checkpoint, ()).await??;
            }
            // Whoever refills the reserve has one for a moment: it looks how many mappings there may be.
            soon("nothing is open", || descriptors() == before).await
        })
        .await?;
    }

    async fn what_is_dropped_is_deregistered_and_closed(_t: T) {
        let _first = UnixStream::pair()?;
        let before = descriptors();
        let path = dir().join("socket");
        for round in 0..3 {
            let pairs: Vec<_> = (0..50).map(|_| UnixStream::pair()).collect::<Result<_, _>>()?;
            let listener = TcpListener::bind(HOME).await?;
            let udp = UdpSocket::bind(HOME).await?;
            // Dropped while it is awaited, too.
            assert!(timeout(Duration::ZERO, listener.accept()).await.is_err());
            assert!(descriptors() >= before + 102);
            drop((pairs, listener, udp));
            assert_eq!(descriptors(), before, "round {round}");
        }
        // The first one opens the table; the next ones nothing that stays.
        drop(UnixListener::bind(&path).await?);
        let before = descriptors();
        for _ in 0..3 {
            drop(UnixListener::bind(&path).await?);
        }
        assert_eq!(descriptors(), before);
    }

    async fn a_slow_reader_holds_up_its_writer(_t: T) {
        let (one, other) = UnixStream::pair()?;
        let sent = pattern(MUCH);
        let mut writer = &one;
        let mut write = pin!(writer.write_all(&sent));
        assert!(timeout(SHORT, &mut write).await.is_err(), "nobody reads");
        let mut back = vec![0; MUCH];
        let mut reader = &other;
        let (written, read) = join(write, reader.read_exact(&mut back)).await;
        written?;
        read?;
        assert!(back == sent);
    }

    async fn a_stream_outlives_the_scopes_it_is_used_in(_t: T) {
        let (one, other) = UnixStream::pair()?;
        let (mut reader, mut writer) = (&one, &other);
        let mut byte = [0];
        let cancelled = offshoot::nursery(async |nursery| {
            let waiting = nursery.task(async { (&one).read(&mut [0]).await.map_err(Error::from) });
            offshoot::checkpoint().await?;
            nursery.cancel();
            assert!(waiting.await?.unwrap_err().is_cancelled());
            assert!((&one).read(&mut [0]).await.is_err());
            Ok(())
        })
        .await;
        drop(cancelled);
        let late = timeout(SHORT, reader.read(&mut byte)).await;
        assert!(late.unwrap_err().is_timeout(), "out here nothing is cancelled");
        writer.write_all(b"x").await?;
        assert_eq!(timeout(LONG, reader.read(&mut byte)).await??, 1);
        one.shutdown(Shutdown::Write)?;
        assert_eq!(writer.read(&mut byte).await.unwrap_or(9), 0, "the end of the stream");
    }

    async fn a_stream_that_is_always_ready_lets_others_run(_t: T) {
        let (mut one, mut other) = UnixStream::pair()?;
        let busy = async {
            let mut byte = [7];
            loop {
                one.write_all(&byte).await?;
                other.read_exact(&mut byte).await?;
            }
            #[allow(unreachable_code)] // Names the type.
            Ok::<(), Error>(())
        };
        assert!(timeout(SHORT, busy).await.unwrap_err().is_timeout());
    }

    async fn any_number_of_tasks_may_accept(_t: T) {
        // From 31 on, `join_all` wakes each of its futures by itself.
        const MANY: usize = 40;
        let listener = TcpListener::bind(HOME).await?;
        let to = listener.local_addr()?;
        let accept = join_all((0..MANY).map(|_| listener.accept()));
        let connect = async {
            // Not before all of them wait; and all at once, so that there is one event.
            offshoot::sleep(Duration::from_millis(1)).await?;
            let connect = |_| std::net::TcpStream::connect(to);
            Ok::<_, Error>((0..MANY).map(connect).collect::<Result<Vec<_>, _>>()?)
        };
        let (accepted, connected) = timeout(LONG, join(accept, connect)).await?;
        assert_eq!(accepted.into_iter().filter(Result::is_ok).count(), MANY);
        assert_eq!(connected?.len(), MANY);
    }

    async fn f45_paths_may_be_long_or_relative(_t: T) {
        let long = dir().join("l".repeat(100)).join("m".repeat(100));
        std::fs::create_dir_all(&long)?;
        let path = long.join("socket");
        let listener = UnixListener::bind(&path).await?;
        assert_eq!(listener.path(), path);
        let (connected, accepted) = join(UnixStream::connect(&path), listener.accept()).await;
        drop((connected?, accepted?));
        let datagram = UnixDatagram::bind(long.join("datagram")).await?;
        let sender = UnixDatagram::unbound()?;
        sender.send_to(b"1", long.join("datagram")).await?;
        sender.connect(long.join("datagram"))?;
        sender.send(b"2").await?;
        let mut byte = [0];
        for expected in *b"12" {
            assert_eq!(datagram.recv(&mut byte).await?, 1);
            assert_eq!(byte, [expected]);
        }
        std::env::set_current_dir(dir())?;
        let relative = UnixListener::bind("relative").await?;
        assert!(dir().join("relative").exists());
        drop((relative, listener, datagram));
        assert!(!dir().join("relative").exists() && !path.exists());
    }

    async fn a_directory_that_was_made_again_is_another_one(_t: T) {
        let place = dir().join("place");
        for _ in 0..2 {
            std::fs::create_dir(&place)?;
            let listener = UnixListener::bind(place.join("socket")).await?;
            drop(UnixStream::connect(place.join("socket")).await?);
            drop(listener);
            std::fs::remove_dir(&place)?;
        }
        let error = UnixListener::bind(place.join("socket")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("place"), "{error}");
    }

    async fn errors_say_what_they_are_about(_t: T) {
        let listener = TcpListener::bind(HOME).await?;
        let address = listener.local_addr()?;
        let error = TcpListener::bind(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        drop(listener);
        let error = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        let error = UnixStream::connect(dir().join("nobody")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("nobody"), "{error}");
        let error = TcpStream::connect("no port").await.unwrap_err();
        assert!(error.to_string().contains("no port"), "{error}");
    }

    async fn names_are_looked_up(_t: T) {
        let listener = TcpListener::bind("localhost:0").await?;
        let port = listener.local_addr()?.port();
        let (connected, accepted) =
            join(TcpStream::connect(("localhost", port)), listener.accept()).await;
        drop((connected?, accepted?));
    }

    async fn four_closures_run_at_once_and_no_more(_t: T) {
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let job = |number: usize| {
            let (running, most) = (running.clone(), most.clone());
            unblock(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                // Each of the first four waits for the other three.
                let met = number >= 4 || until(|| most.load(Ordering::SeqCst) >= 4);
                running.fetch_sub(1, Ordering::SeqCst);
                assert!(met, "they do not run at once");
                number
            })
        };
        // More than there is room for: the rest waits with this task.
        let done = join_all((0..300).map(job)).await;
        for (number, done) in done.into_iter().enumerate() {
            assert_eq!(done?, number);
        }
        assert_eq!(most.load(Ordering::SeqCst), 4);
        assert!((1..=4).contains(&pool_threads()));
        // Those that have nothing to do end.
        soon("the threads have gone", || pool_threads() == 0).await?;
        assert_eq!(unblock(|| 1).await?, 1);
    }

    async fn what_the_pool_has_no_room_for_waits_with_its_task(_t: T) {
        let jobs: Vec<_> = (0..100).map(|n| unblock(move || { hold("go"); n })).collect();
        let mut jobs: Vec<_> = jobs.into_iter().map(Box::pin).collect();
        for job in &mut jobs {
            assert!(timeout(Duration::ZERO, job).await.is_err());
        }
        let queued = jobs.iter().filter(|job| format!("{job:?}").contains("queued: true")).count();
        // 64 in the queue, and four that are running or about to be.
        assert!((64..=68).contains(&queued), "{queued}");
        // One of those that wait for room goes; the others are not held up by that.
        drop(jobs.remove(70));
        mark("go");
        let done: Vec<usize> = join_all(jobs).await.into_iter().collect::<Result<_>>()?;
        assert_eq!(done, (0..100).filter(|n| *n != 70).collect::<Vec<_>>());
    }

    async fn a_closure_that_nobody_waits_for_is_not_begun(_t: T) {
        let mut held_up: Vec<_> = (0..4)
            .map(|n| {
                Box::pin(unblock(move || {
                    mark(&format!("begun {n}"));
                    hold("released");
                    Guard(format!("result {n}"))
                }))
            })
            .collect();
        for job in &mut held_up {
            assert!(timeout(Duration::ZERO, job).await.is_err());
        }
        for n in 0..4 {
            held(&format!("begun {n}")).await?;
        }
        let late = timeout(SHORT, unblock(|| mark("late"))).await;
        assert!(late.unwrap_err().is_timeout());
        // One of those that have begun is given up: it runs to its end and its result is dropped.
        drop(held_up.remove(0));
        assert!(!marked("result 0"));
        mark("released");
        held("result 0").await?;
        for job in held_up {
            job.await?;
        }
        // Behind the late one in the queue.
        unblock(|| ()).await?;
        assert!(!marked("late"));
    }

    fn the_tree_waits_for_closures_within_its_bound(t: T) {
        t.run(async || {
            let _ = timeout(SHORT, unblock(|| {
                std::thread::sleep(SHORT * 4);
                mark("done");
            }))
            .await;
            Ok(())
        })
        .unwrap();
        assert!(marked("done"), "a closure that has begun runs to its end");
        t.builder()
            .hard_kill(SHORT)
            .run(async || {
                let mut waiting = pin!(unblock(|| {
                    mark("begun");
                    hold("go");
                }));
                std::future::poll_fn(|cx| {
                    assert!(waiting.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                held("begun").await
            })
            .unwrap();
        assert_eq!(pool_threads(), 1, "the bound passed");
        mark("go");
    }
}

#[test]
fn off_an_isolate_everything_is_an_error_that_says_so() {
    let error = UnixStream::pair().unwrap_err();
    assert!(error.to_string().contains("isolate"), "{error}");
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let bind = pin!(UnixListener::bind(Path::new("/nowhere/socket")));
    let Poll::Ready(Err(error)) = bind.poll(&mut cx) else {
        panic!("it waits");
    };
    assert!(error.to_string().contains("isolate"), "{error}");
    let unblocked = pin!(unblock(|| ()));
    assert!(unblocked.poll(&mut cx).is_ready());
}
