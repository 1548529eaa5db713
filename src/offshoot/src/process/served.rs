//! What is said over the socket of a portal that crossed: its frames, at the holder's end and at the isolate's.
//!
//! [`porter`](super::porter) reads them. What a holder asks for is handed to the isolate as it came, and decoded there.

use super::decode_body;
use super::link::{Beside, Link, Parcel};
use crate::answer::RemoteAnswer;
use crate::chain;
use crate::credit::{self, Permit};
use crate::descriptor::{Descriptor, Run};
use crate::dialogue::remote::Remote;
use crate::dialogue::tie::{Role, Tie};
use crate::dialogue::{RemoteOpen, Window};
use crate::isolate::job::{Job, StateJob};
use crate::isolate::local::Local;
use crate::isolate::shared::{Message, Shared};
use crate::life::Life;
use crate::narrow::Allowed;
use crate::time::nanos;
use crate::{Error, ErrorKind, Origin, Result};
use offshoot_wire::frame::{Body, CancelOrder, Ended, Header, Introduce, Invoke, Kind};
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;

/// Whom a connection calls, who does, and what it may.
pub(super) struct Served {
    pub(super) shared: Arc<Shared>,
    pub(super) holder: Origin,
    pub(super) allowed: Allowed,
}

/// One frame of the isolate, at the holder's end.
pub(super) fn take_answer(
    link: &Arc<Link>,
    life: &Arc<Life>,
    header: Header,
    body: Body<'_>,
) -> Result<()> {
    let Header {
        kind, correlation, ..
    } = header;
    if kind == Kind::Enclosed {
        return link.enclose(correlation, &body);
    }
    let Beside { carried, .. } = link.take_beside(header)?;
    match kind {
        Kind::Reply | Kind::Failure => link.take_reply(header, body, carried)?,
        kind if kind == Kind::Started || kind.is_stream() => {
            link.take_stream(header, body, carried)?;
        }
        Kind::Credit => link.credited(decode_body(kind, &body)?),
        Kind::CancelAck => life.acknowledge(),
        // It has taken all that was sent.
        Kind::Close => {}
        Kind::Ended => {
            life.announce(decode_body::<Ended>(kind, &body)?.arrived().exit);
            link.fail_pending(life);
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("a frame {kind:?} is not for the holder of a portal"),
            ));
        }
    }
    Ok(())
}

impl Served {
    /// One frame of the holder, at the isolate's end.
    pub(super) fn take(&self, link: &Arc<Link>, header: Header, body: Body<'_>) -> Result<()> {
        let Header {
            kind, correlation, ..
        } = header;
        if kind == Kind::Enclosed {
            return link.enclose(correlation, &body);
        }
        let beside = link.take_beside(header)?;
        match kind {
            Kind::Call | Kind::Ask | Kind::Tell | Kind::Open => {
                let Some((invoke, arguments)) = Invoke::split(body.bytes()) else {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        format!("a frame {kind:?} of {} bytes", body.len()),
                    ));
                };
                self.invoke(link, header, invoke, (body, arguments), beside)
            }
            kind if kind.is_stream() => link.take_stream(header, body, beside.carried),
            Kind::Drop => {
                link.drop_expected(correlation);
                Ok(())
            }
            Kind::Cancel => {
                if !self.allowed.permits_cancel() {
                    return Err(denied("cancel the isolate"));
                }
                let order: CancelOrder = decode_body(kind, &body)?;
                self.shared.cancel(&order.cancel);
                Ok(())
            }
            // Nobody uses it for now, and all that was sent is taken.
            Kind::Close => {
                link.send_close();
                Ok(())
            }
            Kind::Introduce => {
                let mut introduce: Introduce = decode_body(kind, &body)?;
                let asked = Allowed::from_wire(std::mem::replace(
                    &mut introduce.allowed,
                    offshoot_wire::frame::Allowed::All,
                ))?;
                // Nobody can give on more than it has.
                if let Some((messages, calls)) = link.held_to() {
                    let (asked_messages, asked_calls) = introduce.limits;
                    introduce.limits = (asked_messages.min(messages), asked_calls.min(calls));
                }
                introduced(link, &self.shared, introduce, &asked.and(&self.allowed))
            }
            _ => Err(Error::new(
                ErrorKind::Protocol,
                format!("a frame {kind:?} is not for an isolate"),
            )),
        }
    }

    fn invoke(
        &self,
        link: &Arc<Link>,
        header: Header,
        invoke: Invoke,
        (body, arguments): (Body<'_>, &[u8]),
        beside: Beside,
    ) -> Result<()> {
        let Header {
            kind, correlation, ..
        } = header;
        let Beside { chain, carried } = beside;
        // An honest holder's portal has looked before: whoever asks for more than it was given is cut off.
        let descriptor = Descriptor::find(invoke.entry)?;
        if !self.allowed.permits(descriptor) {
            return Err(denied(descriptor.name()));
        }
        let life = &self.shared.life;
        if kind == Kind::Ask
            && let Err(error) = chain::check(&chain, &self.shared)
        {
            link.send_failure(correlation, &error.leaving(&life.origin()));
            return Ok(());
        }
        let bound = match kind {
            Kind::Call | Kind::Open => credit::Kind::Call,
            _ => credit::Kind::Message,
        };
        let answered = (kind != Kind::Tell).then_some(correlation);
        link.charge(invoke.lane, bound, answered)?;
        let parcel = |bytes: &[u8]| Parcel {
            bytes: body.keep(bytes),
            carried,
        };
        let answer = |chain| RemoteAnswer::new(link.clone(), correlation, life.clone(), chain);
        let message = match (kind, descriptor.run()) {
            (Kind::Call, Run::Call(decode)) => Message::Job(Box::new(Arrived {
                parcel: parcel(arguments),
                what: (decode, answer(chain)),
            })),
            (Kind::Ask, Run::Method(decode)) => Message::State(Box::new(Arrived {
                parcel: parcel(arguments),
                what: Asked {
                    decode,
                    answer: Some(answer(chain)),
                    permit: None,
                },
            })),
            (Kind::Tell, Run::Method(decode)) => Message::State(Box::new(Arrived {
                parcel: parcel(arguments),
                what: Asked {
                    decode,
                    answer: None,
                    permit: Some(Permit::remote(link, invoke.lane)),
                },
            })),
            (Kind::Open, Run::Open(decode)) => {
                let Some((window, arguments)) = Window::split(arguments) else {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        "a dialogue is opened without a window",
                    ));
                };
                let grace = nanos(self.shared.runtime.settings.bounds.grace);
                let tie = Tie::new(life.clone(), None, grace);
                let remote = Remote::new(link, correlation, Role::Peer, tie, window, None);
                Message::Job(Box::new(Arrived {
                    parcel: parcel(arguments),
                    what: (decode, RemoteOpen { remote, chain }),
                }))
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("what a frame {kind:?} names is not of that kind"),
                ));
            }
        };
        if !self.shared.deliver(message) && kind == Kind::Tell {
            let (isolate, holder) = (life.origin(), &self.holder);
            let method = descriptor.name();
            crate::log::warn!(%isolate, %holder, method, "a message came after the end of its isolate");
        }
        Ok(())
    }
}

fn denied(what: &str) -> Error {
    let message = format!("the holder of a portal that was narrowed wants to call `{what}`");
    Error::new(ErrorKind::Protocol, message)
}

/// Somebody else is introduced to this isolate of ours.
pub(super) fn introduced(
    link: &Link,
    shared: &Arc<Shared>,
    introduce: Introduce,
    allowed: &Allowed,
) -> Result<()> {
    let Some(mut sockets) = link.take_came(1)? else {
        // The other end is closed by that, and its holder told.
        crate::log::error!(isolate = %shared.life.origin(), holder = %introduce.holder,
            "there was no descriptor left for an introduction; raise RLIMIT_NOFILE");
        return Ok(());
    };
    let socket = sockets.pop();
    if let (Some(socket), Ok(porter)) = (socket, shared.runtime.porter()) {
        let table = link.table();
        // It costs the one that asks nothing else: another may have used the key before it.
        if let Err(error) = porter.serve(socket, shared, introduce, allowed, table) {
            crate::log::warn!(isolate = %shared.life.origin(), %error, "an introduction is refused");
        }
    }
    Ok(())
}

/// A message that is decoded where it runs: that runs code of the program's types.
struct Arrived<W> {
    parcel: Parcel,
    what: W,
}

/// Decodes, and keeps a panic of that from the loop.
fn decoded<T>(decode: impl FnOnce() -> Option<T>) -> Option<T> {
    let decoded = std::panic::catch_unwind(AssertUnwindSafe(decode));
    decoded.unwrap_or_else(|_| {
        crate::log::error!("decoding a message panicked");
        None
    })
}

impl<A: Send> Job for Arrived<(fn(&[u8], A) -> Option<Box<dyn Job>>, A)> {
    fn begin(self: Box<Self>, local: &Rc<Local>) {
        let (decode, answer) = self.what;
        let parcel = self.parcel;
        if let Some(job) = decoded(|| parcel.open(|bytes| decode(bytes, answer))) {
            job.begin(local);
        }
    }
}

/// A method that is asked for or told.
struct Asked {
    decode: crate::descriptor::DecodeMethod,
    answer: Option<RemoteAnswer>,
    permit: Option<Permit>,
}

impl StateJob for Arrived<Asked> {
    fn is_unwanted(&self) -> bool {
        self.what
            .answer
            .as_ref()
            .is_some_and(RemoteAnswer::is_given_up)
    }

    fn run_plain(
        self: Box<Self>,
        state: &mut dyn Any,
        local: &Rc<Local>,
    ) -> Result<(), Box<dyn StateJob>> {
        // What it has become runs as any other, also later.
        match self.decoded() {
            Some(job) => job.run_plain(state, local),
            None => Ok(()),
        }
    }

    fn start(self: Box<Self>, state: Box<dyn Any>, local: &Rc<Local>) {
        match self.decoded() {
            Some(job) => job.start(state, local),
            None => local.return_state(state),
        }
    }
}

impl Arrived<Asked> {
    fn decoded(self) -> Option<Box<dyn StateJob>> {
        let Arrived { parcel, what } = self;
        let Asked {
            decode,
            answer,
            permit,
        } = what;
        decoded(|| parcel.open(|bytes| decode(bytes, answer, permit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{CallEntry, MethodEntry};
    use crate::family::Status;
    use crate::process::keys::Table;
    use crate::runtime::Runtime;
    use crate::{Endpoint, Method, Payload};
    use offshoot_sys::clock;
    use offshoot_sys::socket;
    use offshoot_wire::frame::{self, Entry};
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    fn open() -> u32 {
        7
    }

    fn secret() -> u64 {
        8
    }

    fn entry<M: 'static, F: Endpoint<M>>(_: F) -> Entry
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        CallEntry::<F, M>::DESCRIPTOR
            .entry()
            .expect("in this image")
    }

    fn method<S: 'static, M: 'static, F: Method<S, M>>(_: F) -> Entry
    where
        F::Args: Payload,
        F::Out: Payload,
    {
        MethodEntry::<S, F, M, false>::DESCRIPTOR
            .entry()
            .expect("in this image")
    }

    /// What came of these frames of a holder who may have 4 messages and 2 calls under way: so many messages for the
    /// isolate that it has not begun, and the end of the connection or not.
    fn talked(
        allowed: frame::Allowed,
        frames: &[(Kind, u64, Vec<u8>)],
        along: Option<OwnedFd>,
    ) -> Result<(usize, bool), &'static str> {
        let runtime = Runtime::bare().expect("a runtime");
        let origin = || Origin {
            path: "root/p".to_owned(),
            id: runtime.next_id(),
            pid: 1,
        };
        let bounds = runtime.settings.bounds;
        let life = Arc::new(Life::new(origin()));
        let status = Arc::new(Status::default());
        let shared = Shared::new(life, runtime.clone(), None, status, bounds);
        let (ours, theirs) = socket::stream_pair().expect("a socket pair");
        let porter = runtime.porter().expect("a porter");
        let introduce = Introduce {
            holder: origin(),
            allowed: frame::Allowed::All,
            limits: (4, 2),
            key: runtime.keys().draw().expect("a key"),
        };
        let allowed = Allowed::from_wire(allowed).expect("in this image");
        let by = Table::default();
        let served = porter.serve(ours, &shared, introduce, &allowed, &by);
        served.expect("a new key");
        let mut bytes = Vec::new();
        for (kind, correlation, body) in frames {
            let header = Header {
                len: u32::try_from(body.len()).expect("small"),
                kind: *kind,
                correlation: *correlation,
            };
            bytes.extend_from_slice(&header.to_bytes());
            bytes.extend_from_slice(body);
        }
        let fds: Vec<_> = along.iter().map(AsFd::as_fd).collect();
        let mut written = socket::send_with_fds(&theirs, &bytes, &fds).expect("room");
        let deadline = clock::now() + 10_000_000_000;
        let mut buffer = [0; 4096];
        // Kept, so that none has begun.
        let mut came = Vec::new();
        let outcome = loop {
            if written < bytes.len() {
                match socket::send(&theirs, &bytes[written..]) {
                    Ok(n) => written += n,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => written = bytes.len(),
                }
            }
            came.extend(shared.inbox.take_all());
            match socket::recv(&theirs, &mut buffer) {
                Ok(0) => break Ok((came.len(), true)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    break Ok((came.len(), true));
                }
                _ if came.len() == frames.len() => break Ok((came.len(), false)),
                _ if clock::now() > deadline => break Err("neither happened"),
                _ => std::thread::yield_now(),
            }
        };
        drop(shared.inbox.close());
        drop(came);
        runtime.shut_down();
        outcome
    }

    /// What came of a frame of a holder who may call `open` and no more: a message for the isolate, or the end of the
    /// connection.
    fn sent(kind: Kind, body: &[u8], along: Option<OwnedFd>) -> Result<bool, &'static str> {
        let allowed = frame::Allowed::Only {
            methods: false,
            cancel: false,
            entries: vec![entry(open)],
        };
        let (_, ended) = talked(allowed, &[(kind, 1, body.to_vec())], along)?;
        Ok(!ended)
    }

    #[test]
    fn f39_a_holder_that_ignores_its_credit_is_cut_off_and_fills_no_memory() {
        let flood = |kind, body: Vec<u8>, count| -> Vec<_> {
            (1..=count).map(|n| (kind, n, body.clone())).collect()
        };
        let call = invoke(entry(open));
        let method = invoke(method::<u64, _, _>(|n: &u64| *n));
        let all = || frame::Allowed::All;
        assert_eq!(
            talked(all(), &flood(Kind::Call, call.clone(), 2), None),
            Ok((2, false))
        );
        assert_eq!(
            talked(all(), &flood(Kind::Tell, method.clone(), 4), None),
            Ok((4, false))
        );
        // As many as a second of flooding has, and no more than what it had credit for gets through.
        assert_eq!(
            talked(all(), &flood(Kind::Call, call.clone(), 100_000), None),
            Ok((2, true))
        );
        assert_eq!(
            talked(all(), &flood(Kind::Tell, method.clone(), 100_000), None),
            Ok((4, true))
        );
        assert_eq!(
            talked(all(), &flood(Kind::Ask, method.clone(), 100_000), None),
            Ok((4, true))
        );
        // Asks and tells share their bound.
        let mixed = [
            flood(Kind::Ask, method.clone(), 3),
            flood(Kind::Tell, method, 3),
        ]
        .concat();
        assert_eq!(talked(all(), &mixed, None), Ok((4, true)));
        // A number that is to be answered twice.
        let twice = [(Kind::Call, 5, call.clone()), (Kind::Call, 5, call)];
        assert_eq!(talked(all(), &twice, None), Ok((1, true)));
    }

    fn invoke(entry: Entry) -> Vec<u8> {
        let invoke = Invoke {
            entry,
            sequence: 0,
            lane: 0,
        };
        invoke.to_bytes().to_vec()
    }

    #[test]
    fn a_holder_that_asks_for_more_than_it_was_given_is_cut_off() {
        assert_eq!(sent(Kind::Call, &invoke(entry(open)), None), Ok(true));
        assert_eq!(sent(Kind::Call, &invoke(entry(secret)), None), Ok(false));
        let asked = invoke(method::<u64, _, _>(|n: &u64| *n));
        assert_eq!(sent(Kind::Ask, &asked, None), Ok(false));
        assert_eq!(sent(Kind::Tell, &asked, None), Ok(false));
        // As another kind than it is.
        assert_eq!(sent(Kind::Ask, &invoke(entry(open)), None), Ok(false));
        let mut forged = entry(open);
        forged.offset += 8;
        assert_eq!(sent(Kind::Call, &invoke(forged), None), Ok(false));
        assert_eq!(sent(Kind::Boot, b"", None), Ok(false));
        assert_eq!(sent(Kind::Reply, b"", None), Ok(false));
    }

    #[test]
    fn descriptors_and_frames_that_speak_of_none_end_the_connection() {
        let (one, witness) = socket::stream_pair().expect("a socket pair");
        // With a frame that speaks of none it waits, and is closed with the connection.
        assert_eq!(
            sent(Kind::Call, &invoke(entry(secret)), Some(one)),
            Ok(false)
        );
        let closed = socket::wait_readable(&witness, Some(Duration::from_secs(10)));
        assert!(closed.expect("a wait"), "it was closed");
        let mut body = Vec::new();
        let introduced = frame::Introduced {
            origin: Origin {
                path: "root/x".to_owned(),
                id: crate::IsolateId {
                    process: 1,
                    slot: 2,
                    generation: 0,
                },
                pid: 3,
            },
            limits: (1, 1),
            allowed: frame::Allowed::All,
            reached: frame::Reached::Socket {
                key: frame::Key::from_bytes([1; 16]),
                home: false,
                known: None,
            },
        };
        let enclosed = frame::Enclosed {
            waits: Vec::new(),
            portals: vec![introduced],
        };
        offshoot_wire::codec::encode_into(&enclosed, &mut body).expect("a value");
        assert_eq!(sent(Kind::Enclosed, &body, None), Ok(false));
        assert_eq!(sent(Kind::Introduce, b"x", None), Ok(false));
    }
}
