//! A ring in shared memory, beneath the frames of a link, in the place of its socket.
//!
//! The frames are the same bytes in the same order. The owner offers the memory (`Offer`), the child maps it and says that what follows of it
//! is in the ring (`Accept`), and the owner says the same (`Switch`): each at its place in the old stream, so that nothing overtakes. A child
//! that cannot map it says nothing, and all stays as it was. From then on the socket is for three things:
//!
//! - *bells*: bytes without a meaning, that wake who sleeps on the socket. A side rings where the other has said in the ring that it sleeps, or
//!   that it waits for room (see `offshoot_sys::ring`), so that between two that are awake there is no system call.
//! - *descriptors*, beside a bell, which is sent before the frame that speaks of them is in the ring: who reads the frame finds them.
//! - *the end*: what was written before it is in the ring, and is read first.
//!
//! Who may read is as without a ring (`inlet`). That nobody sleeps while something is in the ring comes of these:
//!
//! 1. Whoever is about to sleep asks [`Link::may_sleep`] first, which says so in the ring and looks once more.
//! 2. Only the isolate that has borrowed the link, and the first isolate of a child, say that they are awake again
//!    ([`Link::stay_awake`]): the former under the lease's lock, and whoever takes the link from it asks `may_sleep`, and has the warden look if
//!    it may not.
//! 3. A bell takes the word of who sleeps down. Whoever has taken bells out of the socket reads the ring afterwards, and then asks
//!    `may_sleep`, for itself or for the warden.
//!
//! The other process is not trusted: what it says in the ring is checked at each use, and what is wrong costs it the link, as a wrong frame
//! does.

use super::link::{GROUPS_MAX, Link, Way, too_many_wait};
use crate::runtime::Runtime;
use crate::testing::cut::Direction;
use crate::{Error, ErrorKind, Result};
use offshoot_sys::ring::{self, Reader, Side, Watch, Writer};
use offshoot_sys::socket;
use offshoot_wire::frame::Kind;
use parking_lot::{Mutex, RwLock};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many bells are taken out of the socket at once.
const BELLS: usize = 64;

/// How long a message is that counts as bulk. Below that a ring saves little but where both sides are awake, which is to be asked for.
const BULK: usize = 64 << 10;
/// How much bulk goes over a link before it is offered a ring by itself: making one takes as long as a few messages of this size.
const BULK_FIRST: usize = 1 << 20;
/// The ring that it is offered then, each way.
const BULK_RING: usize = 1 << 20;

/// What has been agreed upon.
#[derive(Default)]
pub(super) struct Ring {
    /// How much bulk is still to go before it is offered; 0 where that is not for it to decide.
    bulk: AtomicUsize,
    stage: Mutex<Stage>,
    /// None before, and again once the link is over: a portal may outlive its process for long, and the memory is not to.
    into: RwLock<Option<Into>>,
}

#[derive(Default)]
enum Stage {
    /// Nothing, and nothing will be.
    #[default]
    Socket,
    /// It may be offered one.
    Open,
    /// It has offered this one.
    Offered(Box<(Writer, Reader)>),
    /// It has accepted one, and the other side has not switched.
    Accepted(Box<Reader>),
    Done,
}

/// The end from which is read.
struct Into {
    reader: Mutex<Reader>,
    watch: Watch,
    /// There may be bells in the socket.
    rung: AtomicBool,
    /// The socket is at its end.
    over: AtomicBool,
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, what.to_owned())
}

impl Link {
    /// From now on the other side may offer a ring.
    pub(crate) fn open_to_ring(&self) {
        *self.ring.stage.lock() = Stage::Open;
    }

    /// Offers a ring of `capacity` bytes each way, and the seats of those who spin in this tree.
    ///
    /// # Errors
    /// That there is no memory or descriptor for one; the link stays as it was.
    pub(crate) fn offer_ring(&self, capacity: usize, runtime: &Runtime) -> Result<()> {
        let seats = runtime.spin.seats()?;
        let memory = ring::create(capacity)?;
        let ends = ring::open(memory.as_fd(), Side::Maker)?;
        {
            let mut stage = self.ring.stage.lock();
            // It may be over by now.
            if !matches!(*stage, Stage::Socket) {
                return Ok(());
            }
            *stage = Stage::Offered(Box::new(ends));
        }
        self.send_with(Kind::Offer, vec![memory, seats])
    }

    /// Offers a ring when it has turned out that there is bulk to carry.
    pub(crate) fn offer_ring_for_bulk(&self) {
        self.ring.bulk.store(BULK_FIRST, Ordering::Relaxed);
    }

    /// A frame of so many bytes has gone or come.
    pub(super) fn note_bulk(&self, bytes: usize) {
        if bytes < BULK || self.ring.bulk.load(Ordering::Relaxed) == 0 {
            return;
        }
        let less = |left: usize| (left > 0).then(|| left.saturating_sub(bytes));
        let before = self
            .ring
            .bulk
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        // By whoever takes the last of it.
        if before.is_ok_and(|before| before <= bytes)
            && let Some(runtime) = self.runtime()
            && let Err(error) = self.offer_ring(BULK_RING, &runtime)
        {
            crate::log::debug!(%error, "a link that carries bulk is without a ring");
        }
    }

    /// Takes one of the frames by which a ring is agreed upon. True if what follows it is in the ring.
    pub(super) fn take_ring_frame(&self, kind: Kind, body: &[u8]) -> Result<bool> {
        if !body.is_empty() {
            return Err(wrong("a frame about a ring has a body"));
        }
        let mut stage = self.ring.stage.lock();
        match (kind, std::mem::take(&mut *stage)) {
            (Kind::Offer, Stage::Open) => {
                let came = self.take_came(2)?.map(<[OwnedFd; 2]>::try_from);
                match came
                    .and_then(std::result::Result::ok)
                    .map(|came| self.take_memory(came))
                {
                    Some(Ok((writer, reader))) => {
                        *stage = Stage::Accepted(Box::new(reader));
                        drop(stage);
                        self.switch_to_ring(Kind::Accept, writer);
                    }
                    // Memory that could be taken away under us is no want of ours.
                    Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                        return Err(wrong(&error.to_string()));
                    }
                    Some(Err(error)) => crate::log::debug!(%error, "a ring cannot be mapped"),
                    None => crate::log::debug!("there was no descriptor left for a ring"),
                }
                Ok(false)
            }
            (Kind::Accept, Stage::Offered(ends)) => {
                let (writer, reader) = *ends;
                *stage = Stage::Done;
                drop(stage);
                self.read_from_ring(reader);
                self.switch_to_ring(Kind::Switch, writer);
                Ok(true)
            }
            (Kind::Switch, Stage::Accepted(reader)) => {
                *stage = Stage::Done;
                drop(stage);
                self.read_from_ring(*reader);
                Ok(true)
            }
            (kind, _) => Err(wrong(&format!("a frame {kind:?} where no ring is due"))),
        }
    }

    /// Maps what came.
    fn take_memory(&self, [memory, seats]: [OwnedFd; 2]) -> io::Result<(Writer, Reader)> {
        let ends = ring::open(memory.as_fd(), Side::Taker)?;
        if let Some(runtime) = self.runtime() {
            runtime.spin.share(seats)?;
        }
        Ok(ends)
    }

    fn read_from_ring(&self, reader: Reader) {
        let into = Into {
            watch: reader.watch(),
            reader: Mutex::new(reader),
            // Bells may have come behind the frame that switched.
            rung: AtomicBool::new(true),
            over: AtomicBool::new(false),
        };
        *self.ring.into.write() = Some(into);
    }

    /// Gives the memory back of a link over which nothing comes or goes any more.
    pub(super) fn release_ring(&self) {
        if matches!(
            std::mem::replace(&mut *self.ring.stage.lock(), Stage::Done),
            Stage::Socket
        ) {
            return;
        }
        self.close_way();
        *self.ring.into.write() = None;
    }

    /// Whether what the other side sends comes by a ring.
    pub(crate) fn has_ring(&self) -> bool {
        self.ring.into.read().is_some()
    }

    /// Somebody has seen that the socket is readable.
    pub(crate) fn rung(&self) {
        if let Some(into) = &*self.ring.into.read() {
            into.rung.store(true, Ordering::Release);
        }
    }

    /// Whether something may be in the ring, or beside it, that was not read. False without one.
    pub(crate) fn has_more(&self) -> bool {
        let into = self.ring.into.read();
        into.as_ref()
            .is_some_and(|into| into.watch.has_bytes() || into.rung.load(Ordering::Acquire))
    }

    /// Says in the ring that this side is about to sleep. False if there is something to be read first.
    pub(crate) fn may_sleep(&self) -> bool {
        let into = self.ring.into.read();
        into.as_ref()
            .is_none_or(|into| into.watch.sleep() && !into.rung.load(Ordering::Acquire))
    }

    /// Says in the ring that this side looks by itself, for as long as it does not ask [`Link::may_sleep`].
    pub(crate) fn stay_awake(&self) {
        if let Some(into) = &*self.ring.into.read() {
            into.watch.stay_awake();
        }
    }

    /// Whether the other end of the socket beneath the ring is known to be closed.
    fn is_over(&self) -> bool {
        let into = self.ring.into.read();
        into.as_ref()
            .is_some_and(|into| into.over.load(Ordering::Acquire))
    }

    /// As [`Link::receive`], where there is a ring; `None` where there is none.
    pub(super) fn receive_by_ring(&self, space: &mut [u8]) -> Option<io::Result<usize>> {
        let into = self.ring.into.read();
        into.as_ref().map(|into| self.receive_from(into, space))
    }

    fn receive_from(&self, into: &Into, space: &mut [u8]) -> io::Result<usize> {
        let mut reader = into.reader.lock();
        loop {
            // Before the look at the ring, as what was written before the end is there then.
            let over = into.over.load(Ordering::Acquire);
            let n = reader.read(space)?;
            if n > 0 {
                if reader.writer_waits() {
                    // Where it is gone, it waits for nothing.
                    let _ = self.ring_bell();
                }
                return Ok(n);
            }
            if over {
                return Ok(0);
            }
            if !into.rung.swap(false, Ordering::AcqRel) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.groups_came() >= GROUPS_MAX {
                return Err(too_many_wait());
            }
            // Then the ring again: what is there now was written before these bells.
            self.take_bells(into);
        }
    }

    fn take_bells(&self, into: &Into) {
        loop {
            match socket::recv_with_fds(&self.fd(), &mut [0; BELLS]) {
                Ok(received) if received.len == 0 => into.over.store(true, Ordering::Release),
                Ok(received) => {
                    self.keep_came(received);
                    if self.groups_came() >= GROUPS_MAX {
                        // The frames that speak of them first.
                        into.rung.store(true, Ordering::Release);
                        return;
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A reset connection has ended like a closed one.
                Err(_) => into.over.store(true, Ordering::Release),
            }
            return;
        }
    }

    /// For a process that ends, and reads nothing any more: takes the bells, so that waiting for the next one is a wait.
    pub(super) fn take_last_bells(&self) {
        if let Some(into) = &*self.ring.into.read() {
            self.take_bells(into);
        }
    }

    /// Takes descriptors that must be there, as the frame that speaks of them is; false if they are not.
    pub(super) fn take_bell_for_descriptors(&self) -> bool {
        if !self.has_ring() {
            return false;
        }
        match socket::recv_with_fds(&self.fd(), &mut [0; BELLS]) {
            Ok(received) if received.len > 0 => {
                self.keep_came(received);
                true
            }
            // Its end is seen again by whoever reads.
            _ => {
                self.rung();
                false
            }
        }
    }

    /// Wakes the other side. A socket that is full does that already.
    fn ring_bell(&self) -> io::Result<()> {
        match socket::send(&self.fd(), &[0]) {
            Err(error) if !socket::may_pass(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes what goes of bytes beside which no descriptor goes; how many that were. Less than all means that the other side rings when
    /// there is room.
    pub(super) fn write_to_ring(&self, writer: &mut Writer, bytes: &[u8]) -> io::Result<usize> {
        if self.is_over() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut at = 0;
        while at < bytes.len() {
            let part = self.admit(Direction::ToIsolate, &bytes[at..])?;
            // In parts, so that the other side is awake before the last one is there.
            let part = &part[..part.len().min(ring::PART)];
            // Broken only by the other side: whoever reads finds the end.
            let n = writer.write(part).inspect_err(|_| self.shut())?;
            if n > 0 {
                at += n;
                self.passed(Direction::ToIsolate, &part[..n]);
                if writer.reader_sleeps() {
                    self.ring_bell()?;
                }
            }
            if n < part.len() && !writer.await_room().inspect_err(|_| self.shut())? {
                break;
            }
        }
        Ok(at)
    }

    /// Sends descriptors whose frame is about to be in the ring.
    pub(super) fn send_beside_ring(&self, fds: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        socket::send_with_fds(&self.fd(), &[0], &fds).map(drop)
    }
}

impl Way {
    /// The ring, if it is its turn.
    pub(super) fn ring(&mut self) -> Option<&mut Writer> {
        match self.by_socket {
            0 => self.ring.as_mut(),
            _ => None,
        }
    }
}
