//! One end of a dialogue between processes: its frames, its order and its credit.
//!
//! Whoever reads the link calls [`Remote::receive`], whatever thread that is; the halves in the program's hands
//! take and send. What came is kept encoded until the program takes it, so that decoding, which runs code of the
//! program's types, runs on its own isolate. The machine of `offshoot_wire::dialogue` is asked before each frame.

use super::Overflow;
use super::channel::{Found, register};
use super::tie::{Role, Tie};
use crate::carry;
use crate::credit::Taken;
use crate::isolate::shared::Target;
use crate::process::link::{Frame, Link, Parcel};
use crate::{Error, ErrorKind, Payload, Result};
use offshoot_wire::dialogue::{Event, Machine, Window};
use offshoot_wire::frame::{Halt, Kind};
use offshoot_wire::{Rope, codec};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub(crate) struct Remote {
    link: Arc<Link>,
    /// The correlation.
    id: u64,
    role: Role,
    tie: Arc<Tie>,
    flows: Mutex<Flows>,
    /// The first value and the result, where they have come.
    first: Mutex<Option<Parcel>>,
    result: Mutex<Option<Parcel>>,
    /// Of the opener, until it is over: its credit, and what keeps the link open.
    permit: Mutex<Option<(Taken, Arc<Target>)>>,
}

struct Flows {
    machine: Machine,
    /// What has come and was not taken, encoded.
    queue: VecDeque<Parcel>,
    /// Our program takes nothing any more.
    deaf: bool,
    /// The other side has granted something, hence has read.
    read: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Whole frames of items that wait for room, where the oldest give way to the newest.
    backlog: VecDeque<Frame>,
    /// What is to follow the backlog: an `End` or a `Cut`, then the last word.
    ending: Option<Result<(), Error>>,
    last: Option<Frame>,
    /// Why the other side sends nothing more, if it said.
    cut: Option<Error>,
}

impl Remote {
    /// An end, which the link knows from here on until the dialogue is over.
    pub(crate) fn new(
        link: &Arc<Link>,
        id: u64,
        role: Role,
        tie: Arc<Tie>,
        window: Window,
        permit: Option<(Taken, Arc<Target>)>,
    ) -> Arc<Remote> {
        let remote = Arc::new(Remote {
            link: link.clone(),
            id,
            role,
            tie,
            flows: Mutex::new(Flows {
                machine: Machine::new(role, window),
                queue: VecDeque::new(),
                deaf: false,
                read: false,
                reader: None,
                writer: None,
                backlog: VecDeque::new(),
                ending: None,
                last: None,
                cut: None,
            }),
            first: Mutex::default(),
            result: Mutex::default(),
            permit: Mutex::new(permit),
        });
        remote.tie.bind(&remote);
        link.add_dialogue(id, &remote);
        remote
    }

    pub(crate) fn tie(&self) -> &Arc<Tie> {
        &self.tie
    }

    // ---- in ----

    /// A frame has come.
    ///
    /// # Errors
    /// It is not legal: the connection is to be ended.
    pub(crate) fn receive(&self, kind: Kind, parcel: Parcel) -> Result<()> {
        let body = &parcel.bytes;
        match kind {
            Kind::Started => {
                self.heard(Event::Started, |_| ())?;
                *self.first.lock() = Some(parcel);
                self.tie.set_started();
            }
            Kind::Item => self.take_item(parcel)?,
            Kind::End => {
                let reader = self.heard(Event::End, |flows| flows.reader.take())?;
                reader.flatten().into_iter().for_each(Waker::wake);
            }
            Kind::Cut => {
                let error = crate::process::decode_body::<Error>(kind, body)?.arrived();
                let reader = self.heard(Event::End, |flows| {
                    flows.cut = Some(error);
                    flows.reader.take()
                })?;
                reader.flatten().into_iter().for_each(Waker::wake);
            }
            Kind::Deaf => {
                let writer = self.heard(Event::Deaf, |flows| {
                    flows.backlog.clear();
                    self.flush(flows);
                    flows.writer.take()
                })?;
                writer.flatten().into_iter().for_each(Waker::wake);
            }
            Kind::Grant => {
                let grant = crate::process::decode_body(kind, body)?;
                let writer = self.heard(Event::Grant(grant), |flows| {
                    flows.read = true;
                    self.flush(flows);
                    flows.writer.take()
                })?;
                writer.flatten().into_iter().for_each(Waker::wake);
            }
            Kind::Halt => {
                let halt: Halt = crate::process::decode_body(kind, body)?;
                let heard = self.heard(Event::Halt, |flows| {
                    // Nobody waits for it any more.
                    flows.backlog.clear();
                    self.flush(flows);
                })?;
                if heard.is_none() {
                    return Ok(());
                }
                match self.role {
                    // Its task says when it has seen it.
                    Role::Peer => self.tie.take_halt(halt),
                    Role::Opener => {
                        self.tie.take_parting(halt.cancel);
                        self.say_halt_seen();
                    }
                }
            }
            Kind::HaltSeen => {
                self.heard(Event::HaltSeen, |_| ())?;
                match self.role {
                    Role::Opener => self.tie.set_halt_seen_here(),
                    Role::Peer => self.tie.set_parted_seen(),
                }
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("a frame {kind:?} is not of a dialogue"),
                ));
            }
        }
        Ok(())
    }

    /// The result has come, or why there is none.
    pub(crate) fn receive_over(&self, result: Result<Parcel>) -> Result<()> {
        if self.role == Role::Peer {
            return Err(Error::new(ErrorKind::Protocol, "a result of an opener"));
        }
        self.heard(Event::Over, |_| ())?;
        self.end(result);
        Ok(())
    }

    /// The other side has ended otherwise.
    pub(crate) fn lost(&self, error: Error) {
        self.end(Err(error));
    }

    fn end(&self, result: Result<Parcel>) {
        self.link.remove_dialogue(self.id);
        let how = match result {
            Ok(parcel) => {
                *self.result.lock() = Some(parcel);
                Ok(())
            }
            Err(error) => Err(error),
        };
        let permit = self.permit.lock().take();
        drop(permit);
        self.tie.set_over(how);
    }

    /// Asks whether a frame that came is legal and, if so, does what it asks for. None if it came too late to count,
    /// since the two last words crossed.
    fn heard<T>(&self, event: Event, then: impl FnOnce(&mut Flows) -> T) -> Result<Option<T>> {
        let mut flows = self.flows.lock();
        if flows.machine.is_over() && self.role == Role::Peer {
            return Ok(None);
        }
        match flows.machine.receive(event) {
            Ok(()) => Ok(Some(then(&mut flows))),
            Err(violation) => Err(Error::new(
                ErrorKind::Protocol,
                format!("dialogue {}: {violation}", self.id),
            )),
        }
    }

    fn take_item(&self, parcel: Parcel) -> Result<()> {
        let reader = self.heard(Event::Item(parcel.bytes.len()), |flows| {
            if flows.deaf {
                return None;
            }
            flows.queue.push_back(parcel);
            flows.reader.take()
        })?;
        reader.flatten().into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Takes the next item, encoded, and gives its room back when enough has gathered; otherwise, with a waker,
    /// woken when there is one.
    pub(crate) fn take(&self, waker: Option<&Waker>) -> Found<Parcel> {
        let mut flows = self.flows.lock();
        if let Some(item) = flows.queue.pop_front() {
            if let Some(grant) = flows.machine.take(item.bytes.len()) {
                self.say_in(&mut flows, Event::Grant(grant), Kind::Grant, |out| {
                    codec::encode_onto(&grant, out)
                });
            }
            return Found::Item(item);
        }
        if flows.machine.has_ended() {
            return Found::End(flows.cut.clone().map_or(Ok(()), Err));
        }
        if let Some(waker) = waker {
            register(&mut flows.reader, waker);
        }
        Found::Nothing
    }

    pub(crate) fn take_first(&self) -> Option<Parcel> {
        self.first.lock().take()
    }

    pub(crate) fn take_result(&self) -> Option<Parcel> {
        self.result.lock().take()
    }

    // ---- out ----

    /// Sends a frame if it is legal; under the lock, so that the order of the frames is that of the machine.
    fn say_in(
        &self,
        flows: &mut Flows,
        event: Event,
        kind: Kind,
        fill: impl FnOnce(&mut Rope) -> Result<(), codec::EncodeError>,
    ) {
        // What is too late needs not be said: the other side has said its last word, or ours was said already.
        if flows.machine.send(event).is_err() {
            return;
        }
        let frame = self.link.frame(kind, self.id, |out| {
            fill(out).map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))
        });
        match frame {
            Ok(frame) => self.link.write(frame),
            // Its body is ours and small, so that it always fits.
            Err(error) => crate::log::error!(?kind, %error, "cannot send a frame of a dialogue"),
        }
    }

    fn say(
        &self,
        event: Event,
        kind: Kind,
        fill: impl FnOnce(&mut Rope) -> Result<(), codec::EncodeError>,
    ) {
        self.say_in(&mut self.flows.lock(), event, kind, fill);
    }

    pub(crate) fn say_halt(&self, halt: &Halt) {
        self.say(Event::Halt, Kind::Halt, |out| codec::encode_onto(halt, out));
    }

    pub(crate) fn say_halt_seen(&self) {
        self.say(Event::HaltSeen, Kind::HaltSeen, |_| Ok(()));
    }

    /// Sends the first value.
    pub(crate) fn say_started<T: Payload>(&self, first: &T) -> Result<()> {
        let frame = self.encoded(Kind::Started, first)?;
        let mut flows = self.flows.lock();
        if flows.machine.send(Event::Started).is_ok() {
            self.link.write(frame);
        }
        Ok(())
    }

    /// Sends the result, the last word. What cannot be sent becomes the error that says so.
    pub(crate) fn say_over<T: Payload>(&self, result: Result<T>) {
        {
            let result = result.and_then(|value| {
                let frame = self.encoded(Kind::Reply, &value);
                frame.map_err(|error| error.leaving(&self.tie.far.origin()))
            });
            let frame = result.unwrap_or_else(|error| self.link.failure(self.id, &error));
            let mut flows = self.flows.lock();
            flows.last = Some(frame);
            self.flush(&mut flows);
        }
        self.tie
            .set_over(Err(self.tie.closed("its task has ended")));
    }

    fn encoded<T: Payload>(&self, kind: Kind, value: &T) -> Result<Frame> {
        self.link.frame(kind, self.id, |out| {
            codec::encode_checked(value, out, carry::rehearse).map_err(|error| {
                let name = std::any::type_name::<T>();
                Error::new(
                    ErrorKind::Codec,
                    format!("a value of type `{name}`: {error}"),
                )
            })
        })
    }

    /// Ready when an item may be sent, or when nobody takes one any more.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        {
            let mut flows = self.flows.lock();
            let room = flows.machine.has_room() && flows.backlog.is_empty();
            if !room && !flows.machine.is_deaf() {
                register(&mut flows.writer, cx.waker());
                return Poll::Pending;
            }
        }
        self.link.poll_room(cx)
    }

    /// Sends an item, or does what is to be done where there is no room. True if one was dropped for it.
    pub(crate) fn put<T: Payload>(&self, value: &T, overflow: Overflow) -> Result<bool> {
        // Encoded outside of the lock: this runs code of the program's.
        let frame = self.encoded(Kind::Item, value)?;
        let len = frame.len();
        let mut flows = self.flows.lock();
        if flows.machine.is_over() || flows.machine.is_deaf() {
            return Ok(false);
        }
        if flows.backlog.is_empty() && flows.machine.send(Event::Item(len)).is_ok() {
            self.link.write(frame);
            return Ok(false);
        }
        match overflow {
            Overflow::DropNewest => Ok(true),
            Overflow::DropOldest => {
                flows.backlog.push_back(frame);
                let most = usize::try_from(flows.machine.window().items).unwrap_or(usize::MAX);
                Ok(flows.backlog.len() > most && flows.backlog.pop_front().is_some())
            }
            Overflow::Wait | Overflow::Error => {
                let (unread, read) = (flows.machine.under_way(), flows.read);
                drop(flows);
                Err(super::overrun(&self.tie, self.role, unread as usize, read))
            }
        }
    }

    /// Sends what waits for room, as far as there is some.
    fn flush(&self, flows: &mut Flows) {
        while let Some(frame) = flows.backlog.front() {
            let len = frame.len();
            if flows.machine.send(Event::Item(len)).is_err() {
                return;
            }
            if let Some(frame) = flows.backlog.pop_front() {
                self.link.write(frame);
            }
        }
        match flows.ending.take() {
            Some(Ok(())) => self.say_in(flows, Event::End, Kind::End, |_| Ok(())),
            // It crossed once already, or is ours and small.
            Some(Err(error)) => self.say_in(flows, Event::End, Kind::Cut, |out| {
                codec::encode_onto(&error, out)
            }),
            None => {}
        }
        if let Some(frame) = flows.last.take() {
            if flows.machine.send(Event::Over).is_ok() {
                self.link.settle(self.id);
                self.link.write(frame);
            }
            self.link.remove_dialogue(self.id);
        }
    }

    pub(crate) fn is_deaf(&self) -> bool {
        self.flows.lock().machine.is_deaf()
    }

    /// Nothing more is sent, once all is.
    pub(crate) fn end_sending(&self, how: Result<()>) {
        let mut flows = self.flows.lock();
        flows.ending.get_or_insert(how);
        self.flush(&mut flows);
    }

    /// Nothing more is taken.
    pub(crate) fn deafen(&self) {
        let mut flows = self.flows.lock();
        flows.deaf = true;
        flows.queue.clear();
        self.say_in(&mut flows, Event::Deaf, Kind::Deaf, |_| Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(bytes: &[u8]) -> Parcel {
        Parcel {
            bytes: bytes.into(),
            carried: Vec::new(),
        }
    }
    use crate::life::Life;
    use crate::{IsolateId, Origin};
    use offshoot_sys::socket;
    use offshoot_wire::frame::BODY_MAX;

    const WINDOW: Window = Window {
        items: 4,
        bytes: 1_000,
    };

    /// An end whose frames go nowhere; the other end of the socket, which must not be closed.
    fn end(role: Role) -> (Arc<Remote>, std::os::fd::OwnedFd) {
        let (ours, theirs) = socket::stream_pair().expect("a socket pair");
        let link = Link::new(ours, BODY_MAX);
        let id = IsolateId {
            process: 1,
            slot: 1,
            generation: 0,
        };
        let path = "root/p".to_owned();
        let life = Arc::new(Life::new(Origin { path, id, pid: 1 }));
        let remote = Remote::new(&link, 1, role, Tie::new(life, None, 1), WINDOW, None);
        (remote, theirs)
    }

    #[test]
    fn f39_a_peer_that_ignores_its_credit_is_refused_and_costs_no_memory() {
        let (remote, _theirs) = end(Role::Opener);
        remote
            .receive(Kind::Started, parcel(b""))
            .expect("its first word");
        for _ in 0..4 {
            remote
                .receive(Kind::Item, parcel(b"x"))
                .expect("within the window");
        }
        let error = remote.receive(Kind::Item, parcel(b"x")).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol), "{error:?}");
        assert!(
            error.message().contains("beyond the window of 4 items"),
            "{error:?}"
        );
        let held = remote.flows.lock().queue.len();
        assert_eq!(held, 4);
    }

    #[test]
    fn f39_a_peer_that_ignores_its_bytes_is_refused() {
        let (remote, _theirs) = end(Role::Opener);
        remote
            .receive(Kind::Started, parcel(b""))
            .expect("its first word");
        remote
            .receive(Kind::Item, parcel(&[0; 1_000]))
            .expect("one may fill it");
        assert!(remote.receive(Kind::Item, parcel(b"")).is_err());
    }

    #[test]
    fn frames_out_of_their_order_are_refused_and_late_ones_ignored() {
        let (remote, _theirs) = end(Role::Opener);
        for kind in [Kind::Item, Kind::End, Kind::Deaf, Kind::HaltSeen] {
            assert!(remote.receive(kind, parcel(b"")).is_err(), "{kind:?}");
        }
        assert!(
            remote.receive(Kind::Grant, parcel(b"\xff")).is_err(),
            "no grant at all"
        );
        assert!(
            remote.receive(Kind::Call, parcel(b"")).is_err(),
            "no frame of a dialogue"
        );
        remote
            .receive_over(Ok(Parcel::default()))
            .expect("its last word");
        assert!(remote.receive_over(Ok(Parcel::default())).is_err());

        let (remote, _theirs) = end(Role::Peer);
        assert!(remote.receive(Kind::Started, parcel(b"")).is_err());
        assert!(remote.receive_over(Ok(Parcel::default())).is_err());
        remote.say_over::<()>(Ok(()));
        // What the opener had sent before it saw that.
        remote.receive(Kind::Item, parcel(b"x")).expect("ignored");
        remote.receive(Kind::Deaf, parcel(b"")).expect("ignored");
        assert!(remote.link.dialogue(1).is_none(), "it is forgotten");
    }

    #[test]
    fn what_came_before_the_end_is_taken_before_it_is_told() {
        let (remote, _theirs) = end(Role::Opener);
        remote
            .receive(Kind::Started, parcel(b""))
            .expect("its first word");
        remote.receive(Kind::Item, parcel(b"x")).expect("an item");
        remote.lost(remote.tie.closed("lost"));
        assert!(remote.tie.is_over());
        assert!(matches!(remote.take(None), Found::Item(item) if item.bytes[..] == *b"x"));
        assert!(matches!(remote.take(None), Found::Nothing));
    }
}
