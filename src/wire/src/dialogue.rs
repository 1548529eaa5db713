//! The legal order of a dialogue's frames, and the account of its credit: one state machine that both ends run.
//!
//! A dialogue is a call whose two sides also stream to each other. Its frames carry one correlation, that of its
//! [`Kind::Open`](crate::frame::Kind::Open). This module knows no frame bytes and no I/O: the program says what it
//! is about to send and what has come, and is told whether that is legal.
//!
//! ```text
//!           opener ──► peer                          peer ──► opener
//!           ───────────────                          ───────────────
//! Opening   Halt                                     Started · Halt · HaltSeen · Over
//! Live      Item* then End · Grant · Deaf · Halt     Item* then End · Grant · Deaf · Halt · HaltSeen · Over
//! Over      (nothing)                                (nothing)
//! ```
//!
//! - *Opening* is what both ends begin in; the peer leaves it by sending `Started`, the opener by receiving it.
//! - `Over` (a Reply or a Failure) is sent by the peer only, once, and last. What the opener had sent before it saw
//!   that, reaches a peer that no longer knows the dialogue, and is ignored there.
//! - `Started`, `End`, `Deaf` and `Halt` come at most once from each side. `HaltSeen` answers a `Halt`.
//! - Items are bounded by the [`Window`]: a sender may send while fewer than `items` and fewer than `bytes` of what
//!   it sent have not been granted back. So a receiver holds at most `bytes` and one item more.
//! - `Grant` gives back what the receiver's program has taken: never more than was sent, and not nothing. It is due
//!   when half of the window has been taken, and at the first item, by which a sender learns that somebody reads.
//!   With that rule a sender that waits never waits for a receiver that has taken all.
//! - `Cut` is an `End` with the reason why there is no more; for the order the two are one.
//! - After `Deaf` nobody will take anything any more: items that were under way are dropped, none is granted.
//!
//! What breaks the order costs its sender the connection, and nobody else anything.

use serde::{Deserialize, Serialize};

/// How much of a stream may be under way in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// How many items that the receiver has not taken.
    pub items: u32,
    /// How many bytes of them after which the sender waits; the last item may exceed it.
    pub bytes: u32,
}

impl Window {
    /// The length of its encoding in bytes.
    pub const SIZE: usize = 8;

    /// What a dialogue between two processes has unless it asks for another: 4,096 items, 1 MiB. The bytes bound its
    /// memory; fewer items would have the two sides of a stream of small ones wait for each other.
    pub const DEFAULT: Window = Window {
        items: 4_096,
        bytes: 1 << 20,
    };

    /// What a dialogue between two threads has unless it asks for another: 64 items. Nothing is encoded, so that
    /// nobody knows how large an item is.
    pub const BETWEEN_THREADS: Window = Window {
        items: 64,
        bytes: 1 << 20,
    };

    /// It as bytes.
    pub fn to_bytes(self) -> [u8; Window::SIZE] {
        let mut bytes = [0; Window::SIZE];
        bytes[..4].copy_from_slice(&self.items.to_le_bytes());
        bytes[4..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    /// The window and what lies behind it; `None` if there are too few bytes, or if it has no room.
    pub fn split(body: &[u8]) -> Option<(Window, &[u8])> {
        let (head, rest) = body.split_first_chunk::<{ Window::SIZE }>()?;
        let window = Window {
            items: u32::from_le_bytes([head[0], head[1], head[2], head[3]]),
            bytes: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
        };
        (window.items > 0 && window.bytes > 0).then_some((window, rest))
    }
}

impl Default for Window {
    fn default() -> Window {
        Window::DEFAULT
    }
}

/// Room that a receiver gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Items that were taken.
    pub items: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// Which side of a dialogue this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that opened it.
    Opener,
    /// The one whose function runs.
    Peer,
}

/// A frame of a dialogue, as far as its order goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's first value.
    Started,
    /// One item of so many bytes.
    Item(usize),
    /// No item comes any more, as an End or a Cut.
    End,
    /// Room is given back.
    Grant(Grant),
    /// No item is taken any more.
    Deaf,
    /// The other side is asked to end.
    Halt,
    /// That was seen.
    HaltSeen,
    /// The result, or why there is none.
    Over,
}

/// What is illegal about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// It may not come from this side at all.
    #[error("{0:?} is not for this side of a dialogue to send")]
    WrongSide(Event),
    /// It came before the dialogue had started.
    #[error("{0:?} before the dialogue had started")]
    TooEarly(Event),
    /// It came a second time, or after what ends its kind.
    #[error("{0:?} after the end of it")]
    TooLate(Event),
    /// An item for which there was no room: the sender ignores its credit.
    #[error("an item beyond the window of {0} items and {1} bytes")]
    Overrun(u32, u32),
    /// A grant of nothing, or of more than was sent.
    #[error("a grant of {items} items and {bytes} bytes, of {out} items and {out_bytes} bytes that are under way", items = .0.items, bytes = .0.bytes, out = .1, out_bytes = .2)]
    Grant(Grant, u32, u64),
}

/// What has been said by one side.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    ended: bool,
    deaf: bool,
    halted: bool,
    halt_seen: bool,
    /// Items that were sent and not granted back, and their bytes.
    items: u32,
    bytes: u64,
}

/// One end of one dialogue.
#[derive(Clone, Debug)]
pub struct Machine {
    role: Role,
    window: Window,
    started: bool,
    over: bool,
    ours: Said,
    theirs: Said,
    /// What our program has taken and was not granted yet.
    taken: Grant,
    granted: bool,
}

impl Machine {
    /// A dialogue that has been opened.
    pub fn new(role: Role, window: Window) -> Machine {
        Machine {
            role,
            window,
            started: false,
            over: false,
            ours: Said::default(),
            theirs: Said::default(),
            taken: Grant::default(),
            granted: false,
        }
    }

    /// Its window.
    pub fn window(&self) -> Window {
        self.window
    }

    /// True once `Started` has been sent or received.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// True once `Over` has been sent or received.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// True once the other side has sent its `End`.
    pub fn has_ended(&self) -> bool {
        self.theirs.ended
    }

    /// True once the other side takes no item any more.
    pub fn is_deaf(&self) -> bool {
        self.theirs.deaf
    }

    /// True if an item may be sent now.
    pub fn has_room(&self) -> bool {
        has_room(&self.ours, self.window)
    }

    /// How many items we sent that the other side has not granted back.
    pub fn under_way(&self) -> u32 {
        self.ours.items
    }

    /// Says that this is about to be sent.
    ///
    /// # Errors
    /// It would be illegal, and must not be sent. Nothing has changed then.
    pub fn send(&mut self, event: Event) -> Result<(), Violation> {
        let (from, ours, theirs) = (self.role, &mut self.ours, &mut self.theirs);
        step(
            from,
            event,
            ours,
            theirs,
            &mut self.started,
            &mut self.over,
            self.window,
        )
    }

    /// Says that this has come.
    ///
    /// # Errors
    /// It is illegal: the connection is to be ended. Nothing has changed then.
    pub fn receive(&mut self, event: Event) -> Result<(), Violation> {
        let from = match self.role {
            Role::Opener => Role::Peer,
            Role::Peer => Role::Opener,
        };
        let (ours, theirs) = (&mut self.ours, &mut self.theirs);
        step(
            from,
            event,
            theirs,
            ours,
            &mut self.started,
            &mut self.over,
            self.window,
        )
    }

    /// Says that the program has taken an item of so many bytes. The grant that is due, if one is, which is to be
    /// sent as an [`Event::Grant`].
    pub fn take(&mut self, bytes: usize) -> Option<Grant> {
        self.taken.items += 1;
        self.taken.bytes += bytes as u64;
        let due = !self.granted
            || self.taken.items >= self.window.items.div_ceil(2)
            || self.taken.bytes >= u64::from(self.window.bytes.div_ceil(2));
        // One that has ended, or that we have told that we are deaf, needs no room.
        if !due || self.over || self.theirs.ended || self.ours.deaf {
            return None;
        }
        self.granted = true;
        Some(std::mem::take(&mut self.taken))
    }
}

fn has_room(said: &Said, window: Window) -> bool {
    said.items < window.items && said.bytes < u64::from(window.bytes)
}

/// One frame `from` a side; `said` is what that side has said, `heard` what the one it goes to has.
fn step(
    from: Role,
    event: Event,
    said: &mut Said,
    heard: &mut Said,
    started: &mut bool,
    over: &mut bool,
    window: Window,
) -> Result<(), Violation> {
    if *over {
        return Err(Violation::TooLate(event));
    }
    let peers = matches!(event, Event::Started | Event::Over);
    if peers && from == Role::Opener {
        return Err(Violation::WrongSide(event));
    }
    let streams = matches!(
        event,
        Event::Item(_) | Event::End | Event::Grant(_) | Event::Deaf
    );
    if streams && !*started {
        return Err(Violation::TooEarly(event));
    }
    let once = |flag: &mut bool| {
        if std::mem::replace(flag, true) {
            return Err(Violation::TooLate(event));
        }
        Ok(())
    };
    match event {
        Event::Started => once(started),
        Event::Over => once(over),
        Event::End => once(&mut said.ended),
        Event::Deaf => once(&mut said.deaf),
        Event::Halt => once(&mut said.halted),
        Event::HaltSeen if heard.halted => once(&mut said.halt_seen),
        Event::HaltSeen => Err(Violation::TooEarly(event)),
        Event::Item(_) if said.ended => Err(Violation::TooLate(event)),
        Event::Item(_) if !has_room(said, window) => {
            Err(Violation::Overrun(window.items, window.bytes))
        }
        Event::Item(bytes) => {
            said.items += 1;
            said.bytes += bytes as u64;
            Ok(())
        }
        // A grant is of what the one that it goes to has sent.
        Event::Grant(grant)
            if grant.items == 0 || grant.items > heard.items || grant.bytes > heard.bytes =>
        {
            Err(Violation::Grant(grant, heard.items, heard.bytes))
        }
        Event::Grant(grant) => {
            heard.items -= grant.items;
            heard.bytes -= grant.bytes;
            Ok(())
        }
    }
}
