//! The wire by hand: frames as a hostile process writes them, and what comes back.

use offshoot::{Error, IsolateId, Origin, Portal, Result};
use offshoot_sys::socket;
use offshoot_wire::codec;
use offshoot_wire::frame::{
    Allowed, BODY_MAX, Enclosed, Entry, FrameReader, HEADER, Header, Introduced, Invoke, Key, Kind,
    Reached,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a connection.
pub(crate) struct Wire {
    pub(crate) fd: OwnedFd,
    reader: FrameReader,
    /// Descriptors that have come.
    pub(crate) fds: VecDeque<OwnedFd>,
    next: u64,
}

/// What came for something that was asked.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Its encoded value, and the portals beside it.
    Reply(Vec<u8>, Vec<Introduced>),
    Failure(Error),
    /// The connection has ended.
    Ended,
}

impl Answer {
    /// The value of a reply.
    pub(crate) fn value<T: DeserializeOwned>(&self) -> T {
        match self {
            Answer::Reply(bytes, _) => codec::decode(bytes).expect("a value of this type"),
            other => panic!("no reply, but {other:?}"),
        }
    }

    /// The error of a failure.
    pub(crate) fn error(self) -> Error {
        match self {
            Answer::Failure(error) => error,
            other => panic!("no failure, but {other:?}"),
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self, Answer::Ended)
    }
}

impl Wire {
    pub(crate) fn new(fd: OwnedFd) -> Wire {
        Wire {
            fd,
            reader: FrameReader::new(BODY_MAX),
            fds: VecDeque::new(),
            next: 1 << 32,
        }
    }

    /// A connection to the isolate as one that holds this portal may make it, and the key that names it.
    pub(crate) fn to<S: 'static>(portal: &Portal<S>) -> Result<(Wire, Key)> {
        let key = random_key();
        let fd = offshoot::testing::hostile::introduce(portal, key)?;
        Ok((Wire::new(fd), key))
    }

    /// Writes these bytes. False if nobody is there to read them.
    pub(crate) fn write(&self, mut bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let mut fds = Some(fds);
        while !bytes.is_empty() {
            let sent = match fds.filter(|fds| !fds.is_empty()) {
                Some(along) => socket::send_with_fds(&self.fd, bytes, along),
                None => socket::send(&self.fd, bytes),
            };
            match sent {
                Ok(n) => {
                    bytes = &bytes[n..];
                    fds = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends a frame.
    pub(crate) fn send(&self, kind: Kind, correlation: u64, body: &[u8]) -> bool {
        self.write(&frame(kind, correlation, body), &[])
    }

    /// The next frame; none at the end of the connection.
    pub(crate) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.receive_within(Some(PATIENCE))
    }

    fn receive_within(&mut self, patience: Option<Duration>) -> Option<(Header, Vec<u8>)> {
        loop {
            match self.reader.next() {
                Ok(Some((header, body))) => return Some((header, body.to_vec())),
                Ok(None) => {}
                Err(error) => panic!("the runtime sends rubbish: {error}"),
            }
            match socket::recv_with_fds(&self.fd, self.reader.space()) {
                Ok(received) if received.len == 0 => return None,
                Ok(received) => {
                    self.reader.filled(received.len);
                    self.fds.extend(received.fds);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let came = socket::wait_readable(&self.fd, patience).expect("a wait");
                    assert!(came, "nothing comes any more");
                }
                Err(_) => return None,
            }
        }
    }

    /// Sends a Call or Ask of this with these beside it; its number.
    pub(crate) fn invoke(
        &mut self,
        kind: Kind,
        entry: Entry,
        args: &impl Serialize,
        (portals, fds): (Vec<Introduced>, &[BorrowedFd<'_>]),
    ) -> Option<u64> {
        self.next += 1;
        let correlation = self.next;
        let mut bytes = Vec::new();
        if !portals.is_empty() {
            let waits = Vec::new();
            let enclosed = encoded(&Enclosed { waits, portals });
            bytes.extend(frame(Kind::Enclosed, correlation, &enclosed));
        }
        let invoke = Invoke {
            entry,
            sequence: 0,
            lane: 7,
        };
        let body = [&invoke.to_bytes()[..], &encoded(args)].concat();
        bytes.extend(frame(kind, correlation, &body));
        self.write(&bytes, fds).then_some(correlation)
    }

    /// Asks, and waits for what comes of it.
    pub(crate) fn ask(
        &mut self,
        entry: Entry,
        args: &impl Serialize,
        beside: (Vec<Introduced>, &[BorrowedFd<'_>]),
    ) -> Answer {
        self.exchange(Kind::Ask, entry, args, beside)
    }

    /// As [`ask`](Wire::ask), of a function.
    pub(crate) fn call(
        &mut self,
        entry: Entry,
        args: &impl Serialize,
        beside: (Vec<Introduced>, &[BorrowedFd<'_>]),
    ) -> Answer {
        self.exchange(Kind::Call, entry, args, beside)
    }

    fn exchange(
        &mut self,
        kind: Kind,
        entry: Entry,
        args: &impl Serialize,
        beside: (Vec<Introduced>, &[BorrowedFd<'_>]),
    ) -> Answer {
        let Some(correlation) = self.invoke(kind, entry, args, beside) else {
            return Answer::Ended;
        };
        let mut portals = Vec::new();
        while let Some((header, body)) = self.receive() {
            match header.kind {
                _ if header.correlation != correlation => {}
                Kind::Enclosed => {
                    portals = codec::decode::<Enclosed>(&body)
                        .expect("what came beside")
                        .portals
                }
                Kind::Reply => return Answer::Reply(body, portals),
                Kind::Failure => {
                    let error = codec::decode::<Error>(&body).expect("an error");
                    return Answer::Failure(error);
                }
                _ => {}
            }
        }
        Answer::Ended
    }
}

/// A frame as bytes.
pub(crate) fn frame(kind: Kind, correlation: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a short frame");
    let header = Header {
        len,
        kind,
        correlation,
    };
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&header.to_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn encoded(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(value, &mut bytes).expect("a value");
    bytes
}

/// What stands for a portal in a value: its place among those beside it, and the type of its state.
pub(crate) fn portal<S>(place: u32) -> (u32, u64) {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in type_name::<S>().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (place, hash)
}

pub(crate) fn random_key() -> Key {
    Key::from_bytes(offshoot_sys::fsx::random().expect("random").to_ne_bytes())
}

/// A portal with all rights that is said to be to this isolate.
pub(crate) fn said(origin: Origin, reached: Reached) -> Introduced {
    Introduced {
        origin,
        limits: (16, 16),
        allowed: Allowed::All,
        reached,
    }
}

/// By a socket that comes along, to an isolate of this process or of another one.
pub(crate) fn by_socket(key: Key, home: bool) -> Reached {
    Reached::Socket {
        key,
        home,
        known: None,
    }
}

/// A label.
pub(crate) fn label(process: u32, slot: u32, generation: u32, pid: i32) -> Origin {
    Origin {
        path: "root".to_owned(),
        id: IsolateId {
            process,
            slot,
            generation,
        },
        pid,
    }
}

/// A connection of which this process keeps one end; the other is to be sent.
pub(crate) fn pair() -> Result<(Wire, OwnedFd)> {
    let (ours, theirs) = socket::stream_pair()?;
    Ok((Wire::new(ours), theirs))
}

/// Serves whoever has the other end, on a thread, and those that are introduced: what is asked is heard by one function, and answered with
/// this. Ends with the connection.
pub(crate) fn pose(
    mut wire: Wire,
    answer: Vec<u8>,
    heard: impl Fn(&[u8]) + Clone + Send + 'static,
) {
    std::thread::spawn(move || {
        while let Some((header, body)) = wire.receive_within(None) {
            match header.kind {
                Kind::Ask | Kind::Call | Kind::Tell => {
                    heard(Invoke::split(&body).map_or(&[][..], |(_, arguments)| arguments));
                    wire.send(Kind::Reply, header.correlation, &answer);
                }
                Kind::Introduce => {
                    let fd = wire.fds.pop_front().expect("its socket");
                    pose(Wire::new(fd), answer.clone(), heard.clone());
                }
                Kind::Close => drop(wire.send(Kind::Close, 0, &[])),
                _ => {}
            }
        }
    });
}

pub(crate) fn along(fd: &OwnedFd) -> [BorrowedFd<'_>; 1] {
    [fd.as_fd()]
}
