//! Who reads the link to a process: the warden, or for a while the isolate that waits for an answer.
//!
//! A reply that the warden reads costs two wake-ups, its own and that of the isolate which waits. An
//! isolate that is about to sleep until an answer comes, the first one (`Ready`) included, therefore borrows the link, sleeps on it and
//! reads it itself. The protocol:
//!
//! 1. *Any reader reads under [`Inlet::reading`]*, so that frames are taken whole and in their order,
//!    whoever reads; that both are awake for the same bytes costs a wake-up and nothing else.
//! 2. *The warden watches, or somebody else is bound to.* While the link is lent, the warden's poll
//!    does not watch it for bytes, only for its end. Every change of that is made under `lease`,
//!    together with the change of who has it; and whenever the warden watches again, its poll looks
//!    at the socket anew, so that bytes that came before make an event.
//! 3. *An isolate that has borrowed it* looks at the socket before each of its sleeps, by the wait
//!    itself, which ends at once if bytes are there. A sleep in which it waits for no answer of this link
//!    begins with giving it back, and so does a second turn in a row in which it had something to do.
//! 4. *An isolate that neither sleeps nor gives it back* (it computes, it is blocked, its thread has been
//!    abandoned) loses it: the warden comes around each [`TICK`] while anything is lent, and takes back what
//!    was not used since it came the last time. So nobody else waits for it for longer than two ticks, and
//!    a process whose links are all its own has no timer. An isolate that sleeps on the link for longer
//!    than that loses it as well, which it does not notice: whoever wakes first reads.
//! 5. *Deaths are the warden's*: it watches the pidfd, and the end of the link, whoever has that.
//! 6. *Where there is a ring* (see [`ring`](super::ring)), an isolate looks into it before it sleeps on the socket. Whoever changes who has
//!    the link says for the warden that it sleeps, and has it look if there is something to be read.
//! 7. *Two that wait for answers of the same link* would take it from each other: whoever finds it lent
//!    to another returns it to the warden, and nobody borrows it for [`SHARED`].

use super::warden::Warden;
use super::{Process, link};
use crate::{Error, IsolateId};
use link::Read;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use offshoot_sys::clock;
use offshoot_wire::frame::FrameReader;
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Weak;

/// How often the warden looks whether those that have borrowed a link still use it, in ns.
pub(crate) const TICK: u64 = 20_000_000;
/// For how long a link is not lent that several wait for, in ns.
const SHARED: u64 = 10_000_000;
/// For how long it is not lent to one that turned out to be busy, in ns.
const BUSY: u64 = 1_000_000;

pub(crate) struct Inlet {
    warden: Weak<Warden>,
    reading: Mutex<Reading>,
    lease: Mutex<Lease>,
}

pub(crate) struct Reading {
    pub(crate) reader: FrameReader,
    /// What an isolate found wrong, for the warden to act upon.
    pub(crate) wrong: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// It is not watched yet, or not any more.
    Nobody,
    Warden,
    Isolate(IsolateId),
}

struct Lease {
    holder: Holder,
    /// Slept on since the last tick.
    used: bool,
    /// The warden comes around for it.
    listed: bool,
    /// When it may be lent again (ns).
    not_before: u64,
    /// The warden watches for room to write, because something is queued.
    waits_for_room: bool,
    token: Token,
}

impl Lease {
    /// What the warden's poll watches for.
    fn interest(&self) -> Interest {
        let read = match self.holder {
            // Nothing is not to be had; what is urgent is never sent, and the end is always told.
            Holder::Isolate(_) | Holder::Nobody => Interest::PRIORITY,
            Holder::Warden => Interest::READABLE,
        };
        match self.waits_for_room {
            true => read | Interest::WRITABLE,
            false => read,
        }
    }
}

impl Inlet {
    /// Of a link whose frames have at most `limit` bytes.
    pub(crate) fn new(limit: usize, warden: Weak<Warden>) -> Inlet {
        Inlet {
            warden,
            reading: Mutex::new(Reading {
                reader: FrameReader::new(limit),
                wrong: None,
            }),
            lease: Mutex::new(Lease {
                holder: Holder::Nobody,
                used: false,
                listed: false,
                not_before: 0,
                waits_for_room: false,
                token: Token(0),
            }),
        }
    }

    /// To read, or to wait until nobody reads.
    pub(crate) fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock()
    }
}

impl Process {
    /// Tells the warden that its end is told, and nothing more to be done.
    pub(super) fn release(&self) {
        if let Some(warden) = self.inlet.warden.upgrade() {
            warden.release(self.request);
        }
    }

    /// The warden begins to watch its link.
    pub(crate) fn watch_link(&self, registry: &mio::Registry, token: Token) -> io::Result<()> {
        let mut lease = self.inlet.lease.lock();
        lease.token = token;
        let fd = self.link.fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        lease.holder = Holder::Warden;
        Ok(())
    }

    /// The warden ends watching it, for good.
    pub(crate) fn unwatch_link(&self, registry: &mio::Registry) {
        let mut lease = self.inlet.lease.lock();
        lease.holder = Holder::Nobody;
        let _ = registry.deregister(&mut SourceFd(&self.link.fd().as_raw_fd()));
    }

    /// Watches for room to write from now on, or does not any more.
    pub(crate) fn watch_for_room(&self, waits: bool) {
        let mut lease = self.inlet.lease.lock();
        if lease.waits_for_room != waits {
            lease.waits_for_room = waits;
            self.apply(&lease);
        }
    }

    /// Makes the warden's poll watch for what it should. What is so already makes an event.
    fn apply(&self, lease: &Lease) -> bool {
        let Some(warden) = self.inlet.warden.upgrade() else {
            return false;
        };
        if lease.holder == Holder::Nobody {
            return false;
        }
        let fd = self.link.fd().as_raw_fd();
        let done = warden
            .registry()
            .reregister(&mut SourceFd(&fd), lease.token, lease.interest());
        if let Err(error) = &done {
            crate::log::error!(%error, "cannot watch a link");
        }
        done.is_ok()
    }

    /// Lends the link to an isolate that is about to sleep until an answer comes; false if it is to
    /// sleep without it.
    pub(crate) fn lend_link(&self, to: IsolateId) -> bool {
        let mut lease = self.inlet.lease.lock();
        match lease.holder {
            Holder::Nobody => return false,
            Holder::Isolate(holder) if holder == to => {
                lease.used = true;
                self.link.stay_awake();
                return true;
            }
            Holder::Isolate(_) => {
                self.take_back(&mut lease, SHARED);
                return false;
            }
            Holder::Warden => {}
        }
        if clock::now() < lease.not_before {
            return false;
        }
        lease.holder = Holder::Isolate(to);
        if !self.apply(&lease) {
            lease.holder = Holder::Warden;
            return false;
        }
        lease.used = true;
        // Under the lease: whoever takes it from us says that it sleeps.
        self.link.stay_awake();
        if !std::mem::replace(&mut lease.listed, true)
            && let Some(warden) = self.inlet.warden.upgrade()
        {
            warden.come_around(self.request);
        }
        true
    }

    fn take_back(&self, lease: &mut Lease, pause: u64) {
        lease.holder = Holder::Warden;
        lease.not_before = clock::now() + pause;
        self.apply(lease);
        self.have_ring_read();
    }

    /// The warden, who reads the ring from now on, looks at it unless it may sleep.
    fn have_ring_read(&self) {
        if !self.link.may_sleep()
            && let Some(warden) = self.inlet.warden.upgrade()
        {
            warden.look_at(self.request);
        }
    }

    /// An isolate gives the link back, if it still has it.
    pub(crate) fn return_link(&self, from: IsolateId, busy: bool) {
        let mut lease = self.inlet.lease.lock();
        if lease.holder == Holder::Isolate(from) {
            self.take_back(&mut lease, if busy { BUSY } else { 0 });
        }
    }

    /// The warden comes around. True if it has to come again.
    pub(crate) fn look_after_link(&self) -> bool {
        let mut lease = self.inlet.lease.lock();
        if matches!(lease.holder, Holder::Isolate(_)) && !std::mem::take(&mut lease.used) {
            self.take_back(&mut lease, 0);
        }
        lease.listed = matches!(lease.holder, Holder::Isolate(_));
        lease.listed
    }

    /// Reads what has come, on the isolate that has borrowed the link.
    pub(crate) fn read_link(&self, from: IsolateId) {
        let mut reading = self.inlet.reading();
        if reading.wrong.is_some() {
            return;
        }
        let told = self.has_ended();
        let Reading { reader, wrong } = &mut *reading;
        let read = link::read_once(&self.link, reader, |header, body| {
            super::warden::take(self, header, body)
        });
        let over = match read {
            Read::Drained | Read::More => false,
            Read::Ended => true,
            Read::Wrong(error) => {
                *wrong = Some(error);
                true
            }
        };
        drop(reading);
        if over {
            self.return_link(from, false);
        } else if self.link.has_ring() {
            if self.link.has_queued() {
                // What came may have been word of room for it.
                self.link.flush();
            }
            let lease = self.inlet.lease.lock();
            if lease.holder != Holder::Isolate(from) {
                // It was taken from us, and bells may have been taken out of the socket since.
                self.have_ring_read();
            }
        }
        // What follows of these is the warden's.
        if (over || (!told && self.has_ended()))
            && let Some(warden) = self.inlet.warden.upgrade()
        {
            warden.look_at(self.request);
        }
    }
}
