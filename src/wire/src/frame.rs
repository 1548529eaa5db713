//! The bytes between two processes: a fixed header, then a body.
//!
//! ```text
//!  0       4      5       6         8              16
//!  | len   | kind | flags | version | correlation  | body, `len` bytes …
//! ```
//!
//! All numbers are little-endian. The body of a control frame is one [`codec`](crate::codec) value; the body of
//! [`Kind::Call`], [`Kind::Ask`] and [`Kind::Tell`] is an [`Invoke`] of [`Invoke::SIZE`] bytes
//! followed by the encoded arguments, so that the arguments are copied once on each side; in [`Kind::Open`] the
//! [`Window`](crate::dialogue::Window) stands between the two.
//!
//! The order that is legal on one connection is that of its [`Order`](crate::order::Order). Descriptors go along with
//! the first bytes of Outfit, Enclosed, Introduce and Offer, 16 with each byte. What a side says after its Accept or Switch is in the
//! ring; on the socket it then sends only bytes without a meaning, which wake the other side, and descriptors beside some of
//! these, before the frame that speaks of them.
//!
//! The order of what carries the correlation of one Open is that of its
//! [`dialogue::Machine`](crate::dialogue::Machine). Whatever breaks this order, is longer than the limit or names an unknown kind costs its sender
//! the connection, and nobody else anything.

use crate::bytes::LONG;
use crate::{Bytes, Cancel, Error, Exit, Origin, TreeId};
use serde::{Deserialize, Serialize};

/// The version of this layout. The two ends are the same executable, so it only has to catch a
/// stranger; a difference is refused with both numbers in the error.
pub const VERSION: u16 = 1;

/// The length of the header in bytes.
pub const HEADER: usize = 16;

/// The default limit of a body in bytes.
pub const BODY_MAX: usize = 16 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Owner to child, first and once: a [`Boot`].
    Boot = 1,
    /// Owner to child: run this function as a new task, [`Invoke`] and arguments.
    Call = 2,
    /// Owner to child: run this method on the state and answer.
    Ask = 3,
    /// Owner to child: run this method on the state.
    Tell = 4,
    /// Owner to child: nobody waits for this correlation any more. Empty body.
    Drop = 5,
    /// Owner to child: a [`CancelOrder`].
    Cancel = 6,
    /// Owner to child: accept nothing more, end when all that was accepted is done. Empty body.
    Close = 7,
    /// Owner to child: start a dialogue with this function, [`Invoke`], window and arguments.
    Open = 8,
    /// Owner to child: somebody else may call through the socket that comes along, an [`Introduce`].
    Introduce = 9,
    /// Owner to child, before Boot, to one that was there before it had an owner: what else it is given at its start.
    Outfit = 10,
    /// Owner to child: say what your tree is doing, until this time (a `u64`, ns of the monotonic clock).
    Inspect = 11,
    /// Owner to child: say when you are at rest, by this correlation. Empty body.
    Rest = 12,
    /// Child to owner, first: a [`Ready`].
    Ready = 16,
    /// Child to owner, instead of Ready: an [`Error`].
    Refused = 17,
    /// Child to owner: the encoded result of this correlation.
    Reply = 18,
    /// Child to owner: this correlation failed with an [`Error`].
    Failure = 19,
    /// Child to owner: room for more messages of a lane, a [`Credit`].
    Credit = 20,
    /// Child to owner: the cancellation was seen. Empty body.
    CancelAck = 21,
    /// Child to owner, last: an [`Ended`].
    Ended = 22,
    /// Child to owner: the first value of a dialogue, encoded.
    Started = 23,
    /// Child to owner: lines of text, what its tree is doing.
    Inspected = 24,
    /// Child to owner: an isolate of its tree blocks.
    Noticed = 25,
    /// Child to owner: at rest, as it was asked; with a number (a `u64`) that is another one after it has worked again.
    Resting = 26,
    /// An item of a dialogue's stream, encoded.
    Item = 32,
    /// No item of this side comes any more. Empty body.
    End = 33,
    /// Room for more items, a [`Grant`](crate::dialogue::Grant).
    Grant = 34,
    /// This side takes no item any more. Empty body.
    Deaf = 35,
    /// This side cancels the dialogue, a [`Halt`].
    Halt = 36,
    /// The cancellation was seen. Empty body.
    HaltSeen = 37,
    /// No item of this side comes any more, because of this [`Error`].
    Cut = 38,
    /// What travels beside the next frame, which has the same correlation: an [`Enclosed`].
    Enclosed = 39,
    /// Owner to child: a ring in shared memory, which comes along as a descriptor, may take the place of the socket. Empty body.
    Offer = 40,
    /// Child to owner: what follows of this side is in the ring. Empty body.
    Accept = 41,
    /// Owner to child, after Accept: what follows of this side is in the ring. Empty body.
    Switch = 42,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 34] = [
            Boot, Call, Ask, Tell, Drop, Cancel, Close, Open, Introduce, Outfit, Ready, Refused,
            Reply, Failure, Credit, CancelAck, Ended, Started, Item, End, Grant, Deaf, Halt,
            HaltSeen, Cut, Enclosed, Offer, Accept, Switch, Inspect, Inspected, Noticed, Rest,
            Resting,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether it is said within a dialogue, by either side; see [`dialogue::Machine`](crate::dialogue::Machine).
    pub fn is_stream(self) -> bool {
        use Kind::*;
        matches!(self, Item | End | Cut | Grant | Deaf | Halt | HaltSeen)
    }
}

/// The first sixteen bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The length of the body in bytes.
    pub len: u32,
    /// What the body is.
    pub kind: Kind,
    /// Which call, ask or lane it belongs to; 0 where it belongs to none.
    pub correlation: u64,
}

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The kind's number is not known.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The body would be longer than the limit; nothing was allocated for it.
    #[error("a frame body of {len} bytes exceeds the limit of {limit} bytes")]
    TooLong {
        /// What the header said.
        len: u32,
        /// The limit in force.
        limit: usize,
    },
    /// The other side speaks another version.
    #[error(
        "frame version {theirs}, this side speaks {VERSION}: both ends must be the same executable"
    )]
    Version {
        /// What the header said.
        theirs: u16,
    },
    /// Flag bits that this version does not define.
    #[error("unknown frame flags {0:#04x}")]
    Flags(u8),
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame, {have} of {want} bytes")]
    Partial {
        /// The bytes that arrived.
        have: usize,
        /// The bytes that the frame needs.
        want: usize,
    },
}

impl Header {
    /// The header as bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[6..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.correlation.to_le_bytes());
        bytes
    }

    /// The header in these bytes, if its body may be read: known, of this version, within `limit`.
    ///
    /// # Errors
    /// The first thing that is wrong, version first: nothing else can be trusted before it.
    pub fn from_bytes(bytes: &[u8; HEADER], limit: usize) -> Result<Header, FrameError> {
        let theirs = u16::from_le_bytes([bytes[6], bytes[7]]);
        if theirs != VERSION {
            return Err(FrameError::Version { theirs });
        }
        let kind = Kind::from_number(bytes[4]).ok_or(FrameError::UnknownKind(bytes[4]))?;
        if bytes[5] != 0 {
            return Err(FrameError::Flags(bytes[5]));
        }
        let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if len as usize > limit {
            return Err(FrameError::TooLong { len, limit });
        }
        let mut correlation = [0; 8];
        correlation.copy_from_slice(&bytes[8..16]);
        Ok(Header {
            len,
            kind,
            correlation: u64::from_le_bytes(correlation),
        })
    }
}

/// Cuts a stream of bytes into frames, whatever the sizes in which they arrive.
///
/// It does no I/O: the caller reads into [`space`](FrameReader::space), says how much came by
/// [`filled`](FrameReader::filled) and takes the frames out by [`next`](FrameReader::next) until
/// there is none. At the end of the stream, [`finish`](FrameReader::finish) tells whether the other
/// side stopped between two frames or inside one.
///
/// A body is a slice of the buffer, valid until the next call; nothing is allocated per frame, but for one of 16 KiB and more: unless
/// it has come with others, it is read into memory of its own, which may be kept ([`Body::keep`]). The
/// buffer holds 4 KiB until a read has filled it and 128 KiB from then on, and grows where frames pile up.
///
/// # Examples
/// ```
/// use offshoot_wire::frame::{BODY_MAX, FrameReader, Header, Kind};
/// use std::io::Read;
///
/// let header = Header { len: 2, kind: Kind::Reply, correlation: 7 };
/// let bytes = [&header.to_bytes()[..], b"ok"].concat();
/// let mut stream = &bytes[..];
///
/// let mut reader = FrameReader::new(BODY_MAX);
/// let mut seen = Vec::new();
/// loop {
///     let n = stream.read(reader.space())?;
///     if n == 0 {
///         reader.finish()?;
///         break;
///     }
///     reader.filled(n);
///     while let Some((header, body)) = reader.next()? {
///         seen.push((header.correlation, body.to_vec()));
///     }
/// }
/// assert_eq!(seen, [(7, b"ok".to_vec())]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct FrameReader {
    limit: usize,
    /// All initialized, so that it can be handed out for reading. What arrived is `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// A read has filled all that it was offered: what comes is more than a word now and then.
    busy: bool,
    /// The last frame was long: little is read of the next before it is known where it belongs.
    long: bool,
    /// The long body of which a part has come, if one has.
    partial: Option<Partial>,
    /// The long body that was taken out last.
    taken: Bytes,
}

/// A long body that is read into memory of its own.
struct Partial {
    header: Header,
    /// All initialized, and as long as the body.
    bytes: Vec<u8>,
    have: usize,
}

impl Partial {
    fn is_whole(&self) -> bool {
        self.have == self.bytes.len()
    }
}

/// The body of a frame, as a [`FrameReader`] has it.
#[derive(Clone, Copy)]
pub struct Body<'a> {
    bytes: &'a [u8],
    /// What has these, and may be shared.
    whole: Option<&'a Bytes>,
}

impl<'a> Body<'a> {
    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// A part of it, to be kept: copied only where it is in a buffer that is used again.
    ///
    /// # Panics
    /// It may, if it is not a slice of the body.
    pub fn keep(self, part: &[u8]) -> Bytes {
        match self.whole {
            Some(whole) => whole.slice_ref(part),
            None => part.into(),
        }
    }

    /// Runs `f`, which decodes from it: long [`Bytes`] in what is decoded share its memory where it may be kept.
    pub fn decoding<R>(self, f: impl FnOnce() -> R) -> R {
        match self.whole {
            Some(whole) => whole.decoding(|_| f()),
            None => f(),
        }
    }
}

impl<'a> From<&'a [u8]> for Body<'a> {
    fn from(bytes: &'a [u8]) -> Body<'a> {
        Body { bytes, whole: None }
    }
}

impl std::ops::Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl PartialEq for Body<'_> {
    fn eq(&self, other: &Body<'_>) -> bool {
        self.bytes == other.bytes
    }
}

impl std::fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.fmt(f)
    }
}

/// What a call of `read` is offered at least, before one has filled that: the pages of a longer buffer would be a third of what the start of
/// a process takes.
const FIRST: usize = 4 << 10;

/// What a call of `read` is offered at least from then on: a full pipe or most of a socket's buffer.
const SPACE: usize = 64 << 10;

/// The usual length of a buffer: two reads, so that a partial frame rarely has to move.
const BUFFER: usize = 2 * SPACE;

/// A longer buffer than this is given back once the frame that needed it is done. Up to here it is
/// kept, since a stream of frames that are just too long would pay for fresh pages on each one.
const KEEP: usize = 4 * SPACE;

impl FrameReader {
    /// A reader that refuses bodies longer than `limit` bytes. It allocates on the first use.
    pub fn new(limit: usize) -> FrameReader {
        FrameReader {
            limit,
            ..FrameReader::default()
        }
    }

    /// Where to read into: the rest of a long body, or at least 4 KiB, or at least 64 KiB once as much as was offered has come at once.
    ///
    /// Frames that were not yet taken out stay where they are or move; none is lost.
    pub fn space(&mut self) -> &mut [u8] {
        self.taken = Bytes::default();
        self.divert();
        if self.is_partial() {
            return self.rest();
        }
        let have = self.end - self.start;
        // Whatever is wrong with the header is reported by `next`; here it needs nothing.
        let missing = match self.head() {
            Ok(Some((_, total))) => total.saturating_sub(have),
            Ok(None) | Err(_) => 0,
        };
        let (least, usual) = match self.busy {
            true => (SPACE, BUFFER),
            false => (FIRST, FIRST),
        };
        let want = missing.max(least);
        let room = (have + want).max(usual);
        if self.buffer.len() < have + want || (self.buffer.len() > KEEP && room <= KEEP) {
            // A fresh vector of zeros takes its pages when they are written to.
            let mut fresh = vec![0; room];
            fresh[..have].copy_from_slice(&self.buffer[self.start..self.end]);
            self.buffer = fresh;
            (self.start, self.end) = (0, have);
        } else if self.buffer.len() - self.end < want {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
        let most = match self.long {
            true => FIRST,
            false => usize::MAX,
        };
        let end = self.buffer.len().min(self.end.saturating_add(most));
        &mut self.buffer[self.end..end]
    }

    /// Whether what comes is the rest of a long body.
    fn is_partial(&self) -> bool {
        self.partial
            .as_ref()
            .is_some_and(|partial| !partial.is_whole())
    }

    /// The room for that.
    fn rest(&mut self) -> &mut [u8] {
        match &mut self.partial {
            Some(partial) => &mut partial.bytes[partial.have..],
            None => &mut [],
        }
    }

    /// Has the rest of a long body read into memory of its own.
    fn divert(&mut self) {
        let have = self.end - self.start;
        let (header, total) = match self.head() {
            Ok(Some(head)) => head,
            Ok(None) | Err(_) => return,
        };
        if self.partial.is_some() || (header.len as usize) < LONG || total <= have {
            return;
        }
        // A fresh vector of zeros takes its pages when they are written to: a header that announces a long body
        // costs nothing until the body comes.
        let mut bytes = vec![0; header.len as usize];
        let come = &self.buffer[self.start + HEADER..self.end];
        bytes[..come.len()].copy_from_slice(come);
        self.partial = Some(Partial {
            header,
            have: come.len(),
            bytes,
        });
        (self.start, self.end) = (0, 0);
    }

    /// Says that the first `n` bytes of the last [`space`](FrameReader::space) were read into.
    ///
    /// # Panics
    /// If `n` exceeds that space, which is a bug of the caller.
    pub fn filled(&mut self, n: usize) {
        const LIE: &str = "more bytes filled than there was space for";
        if self.is_partial() {
            assert!(n <= self.rest().len(), "{LIE}");
            self.partial
                .iter_mut()
                .for_each(|partial| partial.have += n);
            return;
        }
        assert!(n <= self.buffer.len() - self.end, "{LIE}");
        self.busy |= n == self.buffer.len() - self.end;
        self.end += n;
    }

    /// The next frame that is there as a whole, if there is one: its header and its body.
    ///
    /// # Errors
    /// What is wrong with the next header. The reader stays there, and says the same again.
    // Not an iterator: the body borrows from the reader.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<(Header, Body<'_>)>, FrameError> {
        self.taken = Bytes::default();
        if let Some(partial) = self.partial.take_if(|partial| partial.is_whole()) {
            self.long = true;
            self.taken = partial.bytes.into();
            let body = Body {
                bytes: &self.taken,
                whole: Some(&self.taken),
            };
            return Ok(Some((partial.header, body)));
        }
        let have = self.end - self.start;
        match self.head()? {
            Some((header, total)) if total <= have => {
                let body = self.start + HEADER..self.start + total;
                self.start += total;
                self.long = body.len() >= LONG;
                Ok(Some((header, Body::from(&self.buffer[body]))))
            }
            _ => {
                if have == 0 {
                    (self.start, self.end) = (0, 0);
                    if self.buffer.len() > KEEP {
                        self.buffer = Vec::new();
                    }
                }
                Ok(None)
            }
        }
    }

    /// Forgets what has been filled and not been taken out: it is of another stream.
    pub fn discard(&mut self) {
        (self.start, self.end) = (0, 0);
        self.partial = None;
    }

    /// Tells whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Partial`] if it is inside a frame, or what is wrong with a header.
    pub fn finish(&self) -> Result<(), FrameError> {
        if let Some(Partial { bytes, have, .. }) = &self.partial
            && *have < bytes.len()
        {
            let (have, want) = (HEADER + have, HEADER + bytes.len());
            return Err(FrameError::Partial { have, want });
        }
        let mut at = self.start;
        while at < self.end {
            let have = self.end - at;
            let want = self.head_at(at)?.map_or(HEADER, |(_, total)| total);
            if have < want {
                return Err(FrameError::Partial { have, want });
            }
            at += want;
        }
        Ok(())
    }

    /// The header of the current frame, if it is there, and the length of the frame with it.
    fn head(&self) -> Result<Option<(Header, usize)>, FrameError> {
        self.head_at(self.start)
    }

    fn head_at(&self, at: usize) -> Result<Option<(Header, usize)>, FrameError> {
        let Some(bytes) = self.buffer[at..self.end].first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(bytes, self.limit)?;
        Ok(Some((header, HEADER + header.len as usize)))
    }
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.have);
        let unread = self.end - self.start + partial;
        f.debug_struct("FrameReader")
            .field("limit", &self.limit)
            .field("unread", &unread)
            .finish_non_exhaustive()
    }
}

/// A function or method of the image, as it crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The offset of its descriptor from the image's base.
    pub offset: u64,
    /// A fingerprint of its argument, result and state types.
    pub fingerprint: u64,
}

/// The fixed part of a Call, Ask or Tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invoke {
    /// What to run.
    pub entry: Entry,
    /// Counts the messages of this lane, from 0.
    pub sequence: u64,
    /// The sending isolate, as a number of this link.
    pub lane: u32,
}

impl Invoke {
    /// The length of its encoding in bytes.
    pub const SIZE: usize = 28;

    /// It as bytes.
    pub fn to_bytes(self) -> [u8; Invoke::SIZE] {
        let mut bytes = [0; Invoke::SIZE];
        bytes[0..8].copy_from_slice(&self.entry.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.entry.fingerprint.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.lane.to_le_bytes());
        bytes
    }

    /// The fixed part and the arguments behind it; `None` if the body is too short.
    pub fn split(body: &[u8]) -> Option<(Invoke, &[u8])> {
        let (head, arguments) = body.split_first_chunk::<{ Invoke::SIZE }>()?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let invoke = Invoke {
            entry: Entry {
                offset: number(0),
                fingerprint: number(8),
            },
            sequence: number(16),
            lane: u32::from_le_bytes([head[24], head[25], head[26], head[27]]),
        };
        Some((invoke, arguments))
    }
}

/// All that a new process isolate is told, in its first frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// The build id of the owner's image; the child refuses another.
    pub build_id: Bytes,
    /// The tree.
    pub tree: TreeId,
    /// Who the child is. Its pid is filled in by itself.
    pub origin: Origin,
    /// The owner.
    pub parent: Origin,
    /// The settings of the runtime, encoded by `offshoot`.
    pub settings: Bytes,
    /// What the isolate serves: the descriptor that builds it, and the encoded state.
    pub entry: Option<Entry>,
    /// The state, encoded.
    pub state: Bytes,
    /// A function that runs before the first isolate of the process.
    pub on_start: Option<Entry>,
    /// Environment variables to set (or, with `None`, to remove) before anything else runs.
    pub environment: Vec<(String, Option<String>)>,
}

/// The child's first word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its process.
    pub pid: i32,
    /// The build id of its image.
    pub build_id: Bytes,
}

/// A cancellation with the ladder's absolute deadlines (CLOCK_MONOTONIC, nanoseconds).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelOrder {
    /// Who cancels.
    pub cancel: Cancel,
    /// When user futures are dropped.
    pub grace_at: u64,
    /// When the one above takes it down by force.
    pub hard_at: u64,
    /// Until when it is left alone while it only waits for its own children.
    pub last_at: u64,
}

/// The cancellation of one dialogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// Who cancels.
    pub cancel: Cancel,
    /// When the far task's future is dropped (CLOCK_MONOTONIC, nanoseconds).
    pub grace_at: u64,
}

/// Room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// The lane.
    pub lane: u32,
    /// How many messages it may send more.
    pub messages: u32,
    /// How many calls it may start more.
    pub calls: u32,
}

/// What travels beside the next frame.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Enclosed {
    /// Those who wait for the answer: each isolate and the number of its method, newest first.
    pub waits: Vec<(Origin, u64)>,
    /// The portals in the value, by place.
    pub portals: Vec<Introduced>,
}

/// Names a portal that was given over a connection. Whoever knows it has what was given with it, so it is drawn at random,
/// told only to the holder and to the process of the isolate, and never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key([u8; Key::SIZE]);

impl Key {
    /// Its length in bytes.
    pub const SIZE: usize = 16;

    /// The key of these bytes, which must be random.
    pub fn from_bytes(bytes: [u8; Key::SIZE]) -> Key {
        Key(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// A portal as it crosses.
///
/// Only `reached` decides what its receiver gets; `allowed` can take away from that. The rest is what the sender says of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Introduced {
    /// The isolate that it reaches. A label.
    pub origin: Origin,
    /// How many messages and calls one sender may have under way to it.
    pub limits: (u32, u32),
    /// What may be called through it.
    pub allowed: Allowed,
    /// By what its receiver reaches the isolate.
    pub reached: Reached,
}

/// By what the receiver of a portal reaches its isolate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reached {
    /// It is the isolate that this connection reaches. Owner to child, holder to isolate.
    Receiver,
    /// It is the isolate at whose end of the connection this was sent. Child to owner.
    Sender,
    /// The receiver knows it by this key.
    Key(Key),
    /// A socket to it comes along.
    Socket {
        /// Names the portal, to the receiver and in [`Introduce`]: the same for the same portal over one connection.
        key: Key,
        /// The sender's process hosts the isolate, and knows it by the key for as long as the connection lasts.
        home: bool,
        /// The key by which the sender has it, where the receiver may know it.
        known: Option<Key>,
    },
    /// Nothing does: it has ended like this.
    Ended(Exit),
}

/// Somebody is introduced to the isolate that this link reaches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Introduce {
    /// Who will hold the other end. A label.
    pub holder: Origin,
    /// What may be called through it.
    pub allowed: Allowed,
    /// How many messages and calls one sender may have under way.
    pub limits: (u32, u32),
    /// Names what the holder is given.
    pub key: Key,
}

/// What may be called through a portal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowed {
    /// Everything.
    All,
    /// No more than this.
    Only {
        /// Every method of the state.
        methods: bool,
        /// To cancel the isolate.
        cancel: bool,
        /// These functions and methods.
        entries: Vec<Entry>,
    },
}

/// The child's last word.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// How its first isolate ended.
    pub exit: Exit,
    /// What had to be taken down by force below it, which belongs in the report: abandoned
    /// threads, killed and unkillable processes.
    pub left: Vec<Error>,
}

impl Ended {
    /// Rebuilds in its errors what does not cross.
    #[must_use]
    pub fn arrived(mut self) -> Ended {
        if let Exit::Failed(error) = self.exit {
            self.exit = Exit::Failed(error.arrived());
        }
        self.left = self.left.into_iter().map(Error::arrived).collect();
        self
    }
}

/// The body of [`Kind::Failure`] and [`Kind::Refused`].
pub type FailureBody = Error;

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen from outside, the buffer would be small again on the next read. But nobody may read for
    /// hours, so it has to be so as soon as the last frame is done.
    #[test]
    fn the_memory_of_a_huge_frame_is_given_back_when_it_is_done() {
        let len = 1 << 20;
        let header = Header {
            len,
            kind: Kind::Reply,
            correlation: 1,
        };
        let mut reader = FrameReader::new(BODY_MAX);
        reader.space()[..HEADER].copy_from_slice(&header.to_bytes());
        reader.filled(HEADER);
        assert!(reader.space().len() >= len as usize);
        reader.filled(len as usize);
        assert!(matches!(reader.next(), Ok(Some(_))));
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.buffer.capacity() <= KEEP);
    }

    #[test]
    fn what_is_discarded_is_in_the_way_of_nothing() {
        let header = Header {
            len: 1,
            kind: Kind::Reply,
            correlation: 1,
        };
        let mut reader = FrameReader::new(BODY_MAX);
        reader.space()[..HEADER].copy_from_slice(&header.to_bytes());
        reader.filled(HEADER);
        reader.discard();
        assert_eq!((reader.finish(), reader.next()), (Ok(()), Ok(None)));
        let whole = [&header.to_bytes()[..], b"x"].concat();
        reader.space()[..whole.len()].copy_from_slice(&whole);
        reader.filled(whole.len());
        assert_eq!(reader.next(), Ok(Some((header, b"x"[..].into()))));
    }
}
