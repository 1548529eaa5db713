//! The socket between an owner and its process: what is on its way out, and who waits for what.
//!
//! Any thread may send. A frame is encoded outside of the lock, then written at once if nothing is
//! queued before it, and queued otherwise; whoever reads the link flushes it when it is writable
//! again. The queue is bounded by the senders' credit, and senders also wait while it is longer
//! than [`HIGH`].

use crate::credit::{Lane, Permit};
use crate::dialogue::Window;
use crate::dialogue::remote::Remote;
use crate::isolate::local::Local;
use crate::life::Life;
use crate::process::Process;
use crate::{Error, ErrorKind, Payload, Result};
use offshoot_mailbox::{WakerCell, oneshot};
use offshoot_sys::socket;
use offshoot_wire::codec;
use offshoot_wire::frame::{self, Credit, Entry, HEADER, Header, Invoke, Kind};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};

/// Queued bytes above which senders wait.
const HIGH: usize = 1 << 20;

/// How much credit of a lane is gathered before it is returned without being asked.
const CREDIT_BATCH: u32 = 256;

/// A call or ask of ours that the other side has.
pub(crate) struct Pending {
    pub(crate) sender: oneshot::Sender<Result<Vec<u8>>>,
    /// Held until the answer is here.
    pub(crate) permit: Permit,
}

/// Whether a caller at the other end still waits.
#[derive(Default)]
pub(crate) struct Wanted {
    unwanted: AtomicBool,
    waker: WakerCell,
}

impl Wanted {
    pub(crate) fn poll_unwanted(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_unwanted() {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        // Looked at again after registering, so that no change between the two is missed.
        if self.is_unwanted() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub(crate) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Out {
    /// What could not be written yet, from `start` on.
    queued: Vec<u8>,
    start: usize,
    closed: bool,
    /// Senders that wait for room.
    waiting: Vec<Waker>,
}

pub(crate) struct Link {
    fd: OwnedFd,
    /// The process at its other end, at the owner's.
    process: OnceLock<Weak<Process>>,
    /// Tells whoever flushes this link that something has been queued.
    on_queued: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Something is queued; as of `out`, for whoever flushes.
    has_queued: AtomicBool,
    out: Mutex<Out>,
    limit: AtomicUsize,
    next_correlation: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    /// Dialogues that are not over, of either side.
    dialogues: Mutex<HashMap<u64, Arc<Remote>>>,
    lanes: Mutex<HashMap<u32, Weak<Lane>>>,
    /// Callers at the other end, by correlation.
    expected: Mutex<HashMap<u64, Arc<Wanted>>>,
    /// Credit that is to be returned, by lane.
    credit: Mutex<HashMap<u32, u32>>,
}

impl Link {
    /// Takes our end of a socket pair, which must not block.
    pub(crate) fn new(fd: OwnedFd, limit: usize) -> Arc<Link> {
        Arc::new(Link {
            fd,
            process: OnceLock::new(),
            on_queued: OnceLock::new(),
            has_queued: AtomicBool::new(false),
            out: Mutex::default(),
            limit: AtomicUsize::new(limit),
            next_correlation: AtomicU64::new(1),
            pending: Mutex::default(),
            dialogues: Mutex::default(),
            lanes: Mutex::default(),
            expected: Mutex::default(),
            credit: Mutex::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The longest body that may be sent or received, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets the limit, once it is known to a process that has just begun.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    // ---- out ----

    /// Sends one frame whose body `fill` appends.
    fn send(
        &self,
        kind: Kind,
        correlation: u64,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let frame = self.frame(kind, correlation, fill)?;
        self.write(&frame);
        buffers::give_back(frame);
        Ok(())
    }

    /// A whole frame, to be written later, whose body `fill` appends. Its buffer is one of this thread's,
    /// see [`buffers::give_back`].
    pub(crate) fn frame(
        &self,
        kind: Kind,
        correlation: u64,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let mut bytes = buffers::take();
        bytes.resize(HEADER, 0);
        fill(&mut bytes)?;
        let len = bytes.len() - HEADER;
        let limit = self.limit();
        if len > limit {
            let message = format!(
                "a message of {len} bytes exceeds the limit of {limit} bytes: send bulk data in chunks, or raise the limit by `Builder::frame_max`"
            );
            return Err(Error::new(ErrorKind::Codec, message));
        }
        // In range: the limit is far below 4 GiB.
        let header = Header {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            kind,
            correlation,
        };
        bytes[..HEADER].copy_from_slice(&header.to_bytes());
        Ok(bytes)
    }

    /// Writes whole frames, or queues what cannot be written.
    pub(crate) fn write(&self, mut bytes: &[u8]) {
        let mut out = self.out.lock();
        if out.closed {
            // Whoever waits for an answer is told by the end of the process.
            return;
        }
        if out.start == out.queued.len() {
            while !bytes.is_empty() {
                match socket::send(&self.fd, bytes) {
                    Ok(n) => bytes = &bytes[n..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        let waiting = Link::close_out(&mut out, &error);
                        drop(out);
                        waiting.into_iter().for_each(Waker::wake);
                        return;
                    }
                }
            }
        }
        if bytes.is_empty() {
            return;
        }
        let first = out.queued.is_empty();
        out.queued.extend_from_slice(bytes);
        self.has_queued.store(true, Ordering::Release);
        drop(out);
        // Otherwise it is known already, and what is left is written when there is room.
        if first && let Some(tell) = self.on_queued.get() {
            tell();
        }
    }

    /// From now on `tell` is called, on the sender's thread, when something had to be queued and
    /// nothing was.
    /// Until then whoever sets it flushes the link, and afterwards when it has been told: room to
    /// write is not watched while nothing is queued, because each message that the other side
    /// takes would be an event.
    pub(crate) fn on_queued(&self, tell: impl Fn() + Send + Sync + 'static) {
        let set = self.on_queued.set(Box::new(tell));
        debug_assert!(set.is_ok(), "a link is flushed by one");
    }

    /// Returns who is to be woken once the lock is given back.
    #[must_use]
    fn close_out(out: &mut Out, error: &io::Error) -> Vec<Waker> {
        tracing::debug!(%error, "a link ended");
        out.closed = true;
        // `has_queued` may stay: the next flush finds nothing.
        out.queued = Vec::new();
        out.start = 0;
        // Their isolate's end tells them; here they only must not wait for room for ever.
        std::mem::take(&mut out.waiting)
    }

    /// Whether anything is queued.
    pub(crate) fn has_queued(&self) -> bool {
        self.has_queued.load(Ordering::Acquire)
    }

    /// Writes what is queued, as far as that goes. True if nothing is left.
    pub(crate) fn flush(&self) -> bool {
        let mut out = self.out.lock();
        while out.start < out.queued.len() {
            match socket::send(&self.fd, &out.queued[out.start..]) {
                Ok(n) => out.start += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    let waiting = Link::close_out(&mut out, &error);
                    drop(out);
                    waiting.into_iter().for_each(Waker::wake);
                    return true;
                }
            }
        }
        if out.start == out.queued.len() {
            out.start = 0;
            if out.queued.capacity() > HIGH {
                out.queued = Vec::new();
            } else {
                out.queued.clear();
            }
        } else if out.start > HIGH {
            let start = out.start;
            out.queued.drain(..start);
            out.start = 0;
        }
        let waiting = if out.queued.len() - out.start < HIGH {
            std::mem::take(&mut out.waiting)
        } else {
            Vec::new()
        };
        let empty = out.queued.is_empty();
        self.has_queued.store(!empty, Ordering::Release);
        drop(out);
        waiting.into_iter().for_each(Waker::wake);
        empty
    }

    /// Writes all that is queued, waiting for room until `deadline` (ns). For a process that ends.
    pub(crate) fn flush_until(&self, deadline: u64) {
        while !self.flush() {
            let now = offshoot_sys::clock::now();
            if now >= deadline {
                return;
            }
            let left = std::time::Duration::from_nanos(deadline - now)
                .min(std::time::Duration::from_millis(10));
            // Readability is all that can be waited for here; the short bound makes up for that.
            let _ = socket::wait_readable(&self.fd, Some(left));
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        let out = self.out.lock();
        out.queued.len() - out.start < HIGH
    }

    /// Ready when a sender may add to the queue.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut out = self.out.lock();
        if out.closed || out.queued.len() - out.start < HIGH {
            return Poll::Ready(());
        }
        if !out.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            out.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Sends a control frame. Its body is ours and small, so that it always fits.
    pub(crate) fn send_value<T: Serialize>(&self, kind: Kind, correlation: u64, value: &T) {
        let sent = self.send(kind, correlation, |out| {
            codec::encode_into(value, out)
                .map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))
        });
        if let Err(error) = sent {
            tracing::error!(?kind, %error, "cannot send a control frame");
        }
    }

    /// As [`Link::send_value`], for a body that carries a value of the user.
    pub(crate) fn try_send_value<T: Serialize>(
        &self,
        kind: Kind,
        correlation: u64,
        value: &T,
    ) -> Result<()> {
        self.send(kind, correlation, |out| {
            codec::encode_into(value, out)
                .map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))
        })
    }

    pub(crate) fn send_close(&self) {
        let _ = self.send(Kind::Close, 0, |_| Ok(()));
    }

    pub(crate) fn send_acknowledgement(&self) {
        let _ = self.send(Kind::CancelAck, 0, |_| Ok(()));
    }

    /// Tells the other side that nobody waits for this correlation any more.
    pub(crate) fn send_drop(&self, correlation: u64) {
        // The credit stays in use until the other side has answered.
        if self.pending.lock().contains_key(&correlation) {
            let _ = self.send(Kind::Drop, correlation, |_| Ok(()));
        }
    }

    pub(crate) fn send_reply<T: Payload>(&self, correlation: u64, value: &T) {
        let sent = self.send(Kind::Reply, correlation, |out| {
            codec::encode_into(value, out).map_err(|error| {
                let name = std::any::type_name::<T>();
                Error::new(
                    ErrorKind::Codec,
                    format!("the result of type `{name}`: {error}"),
                )
            })
        });
        if let Err(error) = sent {
            self.send_failure(correlation, &error);
        }
    }

    /// As much of a text as surely crosses.
    pub(crate) fn shortened(&self, mut text: String) -> String {
        text.truncate(text.floor_char_boundary(self.limit() / 2));
        text
    }

    pub(crate) fn send_failure(&self, correlation: u64, error: &Error) {
        self.write(&self.failure(correlation, error));
    }

    /// The frame of a failure.
    pub(crate) fn failure(&self, correlation: u64, error: &Error) -> Vec<u8> {
        let frame = |error: &Error| {
            self.frame(Kind::Failure, correlation, |out| {
                codec::encode_into(error, out)
                    .map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))
            })
        };
        frame(error).unwrap_or_else(|_| {
            // Too deep or too long to cross: the same as text.
            let text = self.shortened(error.report());
            let short = frame(&Error::new(ErrorKind::Other, text));
            short.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot send a failure");
                Vec::new()
            })
        })
    }

    /// Sends a Call or Ask with the number of a pending one.
    pub(crate) fn send_invoke_as(
        &self,
        correlation: u64,
        lane: &Lane,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(Kind, Entry)>,
    ) -> Result<()> {
        // The kind is known only to who encodes, and a message that cannot be encoded takes no place in
        // the sequence: both are filled in behind.
        let mut kind = Kind::Call;
        let mut frame = self.frame(kind, correlation, |out| {
            let start = out.len();
            out.resize(start + Invoke::SIZE, 0);
            let entry;
            (kind, entry) = encode(out)?;
            let invoke = Invoke {
                entry,
                sequence: 0,
                lane: lane.number,
            };
            out[start..start + Invoke::SIZE].copy_from_slice(&invoke.to_bytes());
            Ok(())
        })?;
        Header::set_kind(&mut frame, kind);
        Invoke::set_sequence(&mut frame[HEADER..], lane.next_sequence());
        self.write(&frame);
        buffers::give_back(frame);
        Ok(())
    }

    /// Opens a dialogue.
    pub(crate) fn send_open(
        &self,
        correlation: u64,
        lane: &Lane,
        window: Window,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<Entry>,
    ) -> Result<()> {
        self.send_invoke(Kind::Open, correlation, lane, |out| {
            out.extend_from_slice(&window.to_bytes());
            encode(out)
        })
    }

    /// Sends a message of this kind.
    pub(crate) fn send_invoke(
        &self,
        kind: Kind,
        correlation: u64,
        lane: &Lane,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<Entry>,
    ) -> Result<()> {
        self.send_invoke_as(correlation, lane, |out| Ok((kind, encode(out)?)))
    }

    // ---- who waits ----

    /// A number for what is about to be sent.
    pub(crate) fn next_correlation(&self) -> u64 {
        self.next_correlation.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes a call or ask that is about to be sent; its number.
    pub(crate) fn pend(&self, pending: Pending) -> u64 {
        let correlation = self.next_correlation();
        self.pending.lock().insert(correlation, pending);
        correlation
    }

    /// Whether an answer of this number, or a dialogue's, is still to come.
    pub(crate) fn is_awaited(&self, correlation: u64) -> bool {
        self.pending.lock().contains_key(&correlation)
            || self.dialogues.lock().contains_key(&correlation)
    }

    /// The current isolate waits for an answer of this number: it may read the link while it sleeps.
    pub(crate) fn await_here(&self, correlation: u64) {
        if let Some(process) = self.process.get()
            && let Some(local) = Local::try_current()
        {
            local.await_answer(process, correlation);
        }
    }

    /// Of which process this is the owner's end.
    pub(crate) fn belongs_to(&self, process: &Arc<Process>) {
        let set = self.process.set(Arc::downgrade(process));
        debug_assert!(set.is_ok(), "a link has one process");
    }

    /// Forgets one that could not be sent.
    pub(crate) fn unpend(&self, correlation: u64) {
        drop(self.pending.lock().remove(&correlation));
    }

    /// Hands an answer to whoever waits for it. An unknown number is ignored: its caller has gone.
    pub(crate) fn answer(&self, correlation: u64, result: Result<Vec<u8>>) {
        let pending = self.pending.lock().remove(&correlation);
        if let Some(Pending { sender, permit }) = pending {
            let _ = sender.send(result);
            drop(permit);
        }
    }

    /// Answers everybody that the other side has ended.
    pub(crate) fn fail_pending(&self, life: &Life) {
        let pending = std::mem::take(&mut *self.pending.lock());
        for (_, Pending { sender, permit }) in pending {
            let _ = sender.send(Err(life.gone()));
            drop(permit);
        }
        let dialogues = std::mem::take(&mut *self.dialogues.lock());
        for (_, remote) in dialogues {
            remote.lost(life.gone());
        }
        let waiting = std::mem::take(&mut self.out.lock().waiting);
        waiting.into_iter().for_each(Waker::wake);
    }

    // ---- dialogues ----

    pub(crate) fn add_dialogue(&self, id: u64, remote: &Arc<Remote>) {
        self.dialogues.lock().insert(id, remote.clone());
    }

    pub(crate) fn remove_dialogue(&self, id: u64) {
        let removed = self.dialogues.lock().remove(&id);
        drop(removed);
    }

    /// The dialogue of this number, unless it is over.
    pub(crate) fn dialogue(&self, id: u64) -> Option<Arc<Remote>> {
        self.dialogues.lock().get(&id).cloned()
    }

    /// Notes a caller at the other end.
    pub(crate) fn expect(&self, correlation: u64) -> Arc<Wanted> {
        let wanted = Arc::new(Wanted::default());
        self.expected.lock().insert(correlation, wanted.clone());
        wanted
    }

    /// Its answer is on its way.
    pub(crate) fn forget(&self, correlation: u64) {
        self.expected.lock().remove(&correlation);
    }

    /// The caller at the other end has gone.
    pub(crate) fn drop_expected(&self, correlation: u64) {
        let wanted = self.expected.lock().get(&correlation).cloned();
        if let Some(wanted) = wanted {
            wanted.unwanted.store(true, Ordering::Release);
            wanted.waker.wake();
        }
    }

    // ---- credit ----

    pub(crate) fn add_lane(&self, lane: &Arc<Lane>) {
        let mut lanes = self.lanes.lock();
        // Those of senders that are no more go whenever the map would have to grow.
        if lanes.len() == lanes.capacity() {
            lanes.retain(|_, lane| lane.strong_count() > 0);
        }
        lanes.insert(lane.number, Arc::downgrade(lane));
    }

    /// The other side has room again.
    pub(crate) fn credited(&self, credit: Credit) {
        let lane = self.lanes.lock().get(&credit.lane).and_then(Weak::upgrade);
        if let Some(lane) = lane {
            lane.messages.give(credit.messages);
            lane.calls.give(credit.calls);
        }
    }

    /// A message of this lane has been begun.
    pub(crate) fn return_credit(&self, lane: u32) {
        let due = {
            let mut credit = self.credit.lock();
            let gathered = credit.entry(lane).or_default();
            *gathered += 1;
            (*gathered >= CREDIT_BATCH).then(|| std::mem::take(gathered))
        };
        if let Some(messages) = due {
            self.send_value(
                Kind::Credit,
                0,
                &Credit {
                    lane,
                    messages,
                    calls: 0,
                },
            );
        }
    }

    /// Returns what has been gathered, before the isolate goes to sleep.
    pub(crate) fn flush_credit(&self) {
        let gathered: Vec<(u32, u32)> = {
            // Emptied, or it would grow with every sender that there ever was.
            let mut credit = self.credit.lock();
            credit.drain().filter(|(_, n)| *n > 0).collect()
        };
        for (lane, messages) in gathered {
            self.send_value(
                Kind::Credit,
                0,
                &Credit {
                    lane,
                    messages,
                    calls: 0,
                },
            );
        }
    }
}

/// Buffers of frames, which are used again: one that is new for each message has to grow, and a long one
/// takes fresh pages from the kernel, which cost more than to copy it.
pub(crate) mod buffers {
    use std::cell::RefCell;

    /// What is kept is no longer than this, so that one huge message does not stay for ever.
    const LONGEST: usize = 256 << 10;
    /// How many are kept by a thread.
    const MOST: usize = 2;

    thread_local! {
        static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }

    /// An empty one.
    pub(crate) fn take() -> Vec<u8> {
        // Also asked for while the thread's locals are being destroyed.
        let kept = KEPT.try_with(|kept| kept.borrow_mut().pop());
        kept.ok().flatten().unwrap_or_default()
    }

    /// Keeps one for another time.
    pub(crate) fn give_back(mut buffer: Vec<u8>) {
        if buffer.capacity() > LONGEST {
            return;
        }
        buffer.clear();
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < MOST {
                kept.push(buffer);
            }
        });
    }
}

/// How a read of a link went.
pub(crate) enum Read {
    /// All that was there has been read.
    Drained,
    /// So much has been read that others must have their turn; there may be more.
    More,
    /// The other end is closed.
    Ended,
    /// The other side sent something wrong.
    Wrong(Error),
}

/// How often a link is read before others have their turn: a process that never stops sending must not
/// keep whoever reads from all others. In the order of 1 ms for the smallest frames.
const READS_PER_TURN: usize = 4;

/// As [`read_frames`], by one read: for who is told again at once if that was not all.
pub(crate) fn read_once(
    link: &Link,
    reader: &mut frame::FrameReader,
    mut take: impl FnMut(Header, &[u8]) -> Result<()>,
) -> Read {
    match socket::recv(&link.fd, reader.space()) {
        Ok(0) => return Read::Ended,
        Ok(n) => reader.filled(n),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Drained,
        Err(_) => return Read::Ended,
    }
    match take_frames(reader, &mut take) {
        Ok(()) => Read::Drained,
        Err(error) => Read::Wrong(error),
    }
}

/// Hands each frame that is there as a whole to `take`, until one of them is wrong.
fn take_frames(
    reader: &mut frame::FrameReader,
    take: &mut impl FnMut(Header, &[u8]) -> Result<()>,
) -> Result<()> {
    loop {
        match reader.next() {
            Ok(None) => return Ok(()),
            Ok(Some((header, body))) => take(header, body)?,
            Err(error) => return Err(Error::new(ErrorKind::Protocol, error.to_string())),
        }
    }
}

/// Whether a read that gave less than it had room for has taken all that was there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// It has: what comes later makes a new event.
    IsAll,
    /// It need not have: a read that passes over descriptors, which nobody asked for, ends there. An owner
    /// does not rely on what its process sends.
    IsPerhapsNotAll,
}

/// Hands each frame that has come to `take`, up to a bound, until one of them is wrong.
pub(crate) fn read_frames(
    link: &Link,
    reader: &mut frame::FrameReader,
    short: Short,
    mut take: impl FnMut(Header, &[u8]) -> Result<()>,
) -> Read {
    let mut drained = false;
    for _ in 0..READS_PER_TURN {
        // First what came behind the last frame that somebody else has read.
        if let Err(error) = take_frames(reader, &mut take) {
            return Read::Wrong(error);
        }
        if drained {
            return Read::Drained;
        }
        let space = reader.space();
        let room = space.len();
        match socket::recv(&link.fd, space) {
            Ok(0) => return Read::Ended,
            Ok(n) => {
                drained = short == Short::IsAll && n < room;
                reader.filled(n);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Drained,
            // A reset connection has ended like a closed one.
            Err(_) => return Read::Ended,
        }
    }
    Read::More
}
