//! The socket between an owner and its process: what is on its way out, and who waits for what.
//!
//! Any thread may send. A frame is encoded outside of the lock, then written at once if nothing is
//! queued before it, and queued otherwise; whoever reads the link flushes it when it is writable
//! again. The queue is bounded by the senders' credit, and senders also wait while it is longer
//! than [`HIGH`].

use super::account::Account;
use super::introduce;
use super::keys::Table;
use super::protocol::Outfit;
use super::queue::{Cursor, Queue};
use super::ring::Ring;
use crate::carry::{self, Arrived, Carried};
use crate::chain::{self, Chain};
use crate::credit::{self, Lane, Taken};
use crate::dialogue::Window;
use crate::dialogue::remote::Remote;
use crate::isolate::local::Local;
use crate::life::Life;
use crate::process::Process;
use crate::runtime::Runtime;
use crate::testing::cut::{Cut, Direction};
use crate::{Cancel, Canceller, Error, ErrorKind, Origin, Payload, Result};
use mio::event::Event;
use offshoot_mailbox::{WakerCell, oneshot};
use offshoot_sys::ring::Writer;
use offshoot_sys::socket::{self, Received};
use offshoot_sys::{clock, limits};
use offshoot_wire::codec;
use offshoot_wire::frame::{
    self, Body, Boot, Credit, Enclosed, Entry, HEADER, Halt, Header, Introduce, Introduced, Invoke,
    Kind, Reached,
};
use offshoot_wire::order::{self, Order};
use offshoot_wire::{Bytes, Rope};
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Queued bytes above which senders wait.
const HIGH: usize = 1 << 20;

/// How many groups of descriptors of one peer may wait for the rest of the frame that speaks of them. A frame has eight at most.
pub(super) const GROUPS_MAX: usize = 10;

/// How long they may wait (ns). A frame is written in one piece, but for what the socket has no room for.
const GROUPS_WAIT: u64 = 5_000_000_000;

/// How much credit of a lane is gathered before it is returned without being asked.
const CREDIT_BATCH: u32 = 256;

/// Descriptors that go along with one byte, and which of a buffer that is.
type Group = (usize, Vec<OwnedFd>);

/// Descriptors that wait for the rest of the frame that speaks of them.
struct Waiting(Vec<OwnedFd>);

/// How many such descriptors this process has, of all peers.
static WAITING: AtomicUsize = AtomicUsize::new(0);

impl Waiting {
    /// None if those of all peers together would be more than a quarter of what this process may have.
    fn new(fds: Vec<OwnedFd>) -> Option<Waiting> {
        let all = WAITING.fetch_add(fds.len(), Ordering::Relaxed) + fds.len();
        let waiting = Waiting(fds);
        // So few that the limit need not be asked for.
        let few = all <= 2 * socket::PACKET_FDS_MAX;
        (few || all as u64 <= limits::open_files().0 / 4).then_some(waiting)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn take(mut self) -> Vec<OwnedFd> {
        WAITING.fetch_sub(self.len(), Ordering::Relaxed);
        std::mem::take(&mut self.0)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.len(), Ordering::Relaxed);
    }
}

/// Descriptors are held back, or belong to nothing.
pub(super) fn too_many_wait() -> io::Error {
    let most = GROUPS_MAX * socket::PACKET_FDS_MAX;
    let what = format!("more than {most} descriptors came before the frame that speaks of them");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whole frames, to be written in one piece.
pub(crate) struct Frame {
    rope: Rope,
    groups: VecDeque<Group>,
    /// The length of the body of the last one.
    body: usize,
}

impl Frame {
    /// The length of its body in bytes, as its receiver counts it.
    pub(crate) fn len(&self) -> usize {
        self.body
    }

    /// None, which writes nothing.
    fn none() -> Frame {
        Frame {
            rope: Rope::default(),
            groups: VecDeque::new(),
            body: 0,
        }
    }
}

/// An encoded value that has come, and the portals beside it.
#[derive(Default)]
pub(crate) struct Parcel {
    pub(crate) bytes: Bytes,
    pub(crate) carried: Vec<Arrived>,
}

impl Parcel {
    /// The value in it.
    pub(crate) fn open<T>(self, decode: impl FnOnce(&[u8]) -> T) -> T {
        carry::unpack(self.carried, || self.bytes.decoding(decode))
    }
}

/// What came beside the frame that follows.
#[derive(Default)]
pub(crate) struct Beside {
    pub(crate) chain: Chain,
    pub(crate) carried: Vec<Arrived>,
}

/// A call or ask of ours that the other side has.
pub(crate) struct Pending {
    pub(crate) sender: oneshot::Sender<Result<Parcel>>,
    /// Held until the answer is here.
    pub(crate) permit: Taken,
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
    /// What could not be written yet.
    queue: Queue,
    /// The descriptors that go along with it.
    groups: VecDeque<Group>,
    closed: bool,
    /// Senders that wait for room.
    waiting: Vec<Waker>,
    way: Way,
}

/// By what one sends.
#[derive(Default)]
pub(super) struct Way {
    /// The ring, once there is one.
    pub(super) ring: Option<Writer>,
    /// So many bytes that are queued go by the socket before.
    pub(super) by_socket: usize,
}

/// What whoever reads a link keeps between two frames.
#[derive(Default)]
struct Inward {
    /// None where nobody has said who sends.
    order: Option<Order>,
    beside: Option<(u64, Beside)>,
}

impl Inward {
    fn receive(&mut self, header: Header) -> Result<()> {
        match &mut self.order {
            None => Ok(()),
            Some(order) => order
                .receive(header)
                .map_err(|disorder| Error::new(ErrorKind::Protocol, disorder.to_string())),
        }
    }
}

/// The runtime of this process, and who is at the other end.
type Between = (Weak<Runtime>, Box<dyn Fn() -> Origin + Send + Sync>);

pub(crate) struct Link {
    fd: OwnedFd,
    /// The process at its other end, at the owner's.
    process: OnceLock<Weak<Process>>,
    /// Where a test has it break.
    cut: OnceLock<Cut>,
    /// Tells whoever flushes this link that something has been queued.
    on_queued: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Something is queued; as of `out`, for whoever flushes.
    has_queued: AtomicBool,
    out: Mutex<Out>,
    limit: AtomicUsize,
    next_correlation: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    /// What everybody is told who waits, once the other side has ended.
    gone: OnceLock<Error>,
    /// Dialogues that are not over, of either side.
    dialogues: Mutex<HashMap<u64, Arc<Remote>>>,
    lanes: Mutex<HashMap<u32, Weak<Lane>>>,
    next_lane: AtomicU32,
    /// Callers at the other end, by correlation.
    expected: Mutex<HashMap<u64, Arc<Wanted>>>,
    /// What the other side has under way here, where it is not trusted to keep to its credit.
    account: OnceLock<Account>,
    /// Credit that is to be returned, by lane.
    credit: Mutex<HashMap<u32, u32>>,
    /// How much of it is gathered before it is returned without being asked.
    credit_batch: AtomicU32,
    /// The runtime of this process, and who is at the other end.
    between: OnceLock<Between>,
    /// Descriptors that have come, of one byte each; none where they were lost.
    came: Mutex<VecDeque<Option<Waiting>>>,
    /// Since when the first of them waits (ns); 0 if none does.
    waits_since: AtomicU64,
    /// What has come of frames, and what belongs to the next.
    inward: Mutex<Inward>,
    /// A poll has reported that the other end is closed. It reports that once, perhaps together with the last bytes, so that from then
    /// on a read goes on to the end.
    closed: AtomicBool,
    /// Nothing was sent but the first frame.
    alone: AtomicBool,
    /// The other side was given portals, or its portals to others.
    knows_others: AtomicBool,
    /// A message was sent since the porter asked last.
    sent: AtomicBool,
    /// The other side has ended without having taken that.
    untaken: AtomicBool,
    /// What may take the place of the socket.
    pub(super) ring: Ring,
    /// The portals that went over it.
    table: Table,
}

impl Link {
    /// The correlation of the first frame and of its answer; no other exchange has it.
    pub(crate) const START: u64 = 0;

    /// Takes our end of a socket pair, which must not block.
    pub(crate) fn new(fd: OwnedFd, limit: usize) -> Arc<Link> {
        Arc::new(Link {
            fd,
            process: OnceLock::new(),
            cut: OnceLock::new(),
            on_queued: OnceLock::new(),
            has_queued: AtomicBool::new(false),
            out: Mutex::default(),
            limit: AtomicUsize::new(limit),
            next_correlation: AtomicU64::new(1),
            pending: Mutex::default(),
            gone: OnceLock::new(),
            dialogues: Mutex::default(),
            lanes: Mutex::default(),
            next_lane: AtomicU32::new(0),
            expected: Mutex::default(),
            account: OnceLock::new(),
            credit: Mutex::default(),
            credit_batch: AtomicU32::new(CREDIT_BATCH),
            between: OnceLock::new(),
            came: Mutex::default(),
            waits_since: AtomicU64::new(0),
            inward: Mutex::default(),
            closed: AtomicBool::new(false),
            alone: AtomicBool::new(false),
            knows_others: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            untaken: AtomicBool::new(false),
            ring: Ring::default(),
            table: Table::default(),
        })
    }

    /// Says whose this end is and who is at the other, once. Without it nothing can be introduced over this link.
    pub(crate) fn set_between(
        &self,
        runtime: &Arc<Runtime>,
        far: impl Fn() -> Origin + Send + Sync + 'static,
    ) {
        let set = self.between.set((Arc::downgrade(runtime), Box::new(far)));
        debug_assert!(set.is_ok(), "a link is between two");
    }

    /// Says who sends what is read here: what comes out of its order is refused from now on.
    pub(crate) fn reads_from(&self, from: order::From) {
        self.inward.lock().order = Some(Order::new(from));
    }

    /// Who is at the other end, where that is known.
    pub(crate) fn far(&self) -> Option<Origin> {
        self.between.get().map(|(_, far)| far())
    }

    pub(crate) fn runtime(&self) -> Option<Arc<Runtime>> {
        self.between
            .get()
            .and_then(|(runtime, _)| runtime.upgrade())
    }

    /// The portals that went over it, and what its ends are.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// At its other end is the process of this isolate, which is owned here.
    pub(crate) fn owns(&self, target: &Arc<crate::isolate::shared::Target>) {
        self.table.owns(target);
    }

    /// Holds the other side to this credit, messages and calls of each of its isolates. Returns it in smaller parts
    /// where that is less.
    pub(crate) fn hold_to(&self, limits: (u32, u32)) {
        let batch = CREDIT_BATCH.min(limits.0 / 4).max(1);
        self.credit_batch.store(batch, Ordering::Relaxed);
        let set = self.account.set(Account::new(limits)).is_ok();
        debug_assert!(set, "a link has one account");
    }

    /// To what the other side is held.
    pub(crate) fn held_to(&self) -> Option<(u32, u32)> {
        self.account.get().map(Account::limits)
    }

    /// Notes what the other side has sent.
    ///
    /// # Errors
    /// It had no credit for it: the connection is to be ended.
    pub(crate) fn charge(
        &self,
        lane: u32,
        kind: credit::Kind,
        correlation: Option<u64>,
    ) -> Result<()> {
        match self.account.get() {
            Some(account) => account.charge(lane, kind, correlation),
            None => Ok(()),
        }
    }

    /// The one of this number is about to be answered: before that is written, as the other side may then send
    /// another one.
    pub(crate) fn settle(&self, correlation: u64) {
        if let Some(account) = self.account.get() {
            account.settle(correlation);
        }
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

    /// Has the link break where this says. False if that was said before.
    pub(crate) fn cut_after(&self, cut: Cut) -> bool {
        let now = cut.room(Direction::ToIsolate, &[0]) == 0
            || cut.room(Direction::FromIsolate, &[0]) == 0;
        let set = self.cut.set(cut).is_ok();
        if set && now {
            socket::shutdown_both(&self.fd);
        }
        set
    }

    /// What of these bytes may pass.
    ///
    /// # Errors
    /// That it is cut.
    pub(super) fn admit<'a>(&self, direction: Direction, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        match self.cut.get() {
            None => Ok(bytes),
            Some(cut) => match cut.room(direction, bytes) {
                0 => Err(io::ErrorKind::BrokenPipe.into()),
                room => Ok(&bytes[..room]),
            },
        }
    }

    /// These bytes have passed.
    pub(super) fn passed(&self, direction: Direction, bytes: &[u8]) {
        if let Some(cut) = self.cut.get()
            && cut.passed(direction, bytes)
        {
            socket::shutdown_both(&self.fd);
        }
    }

    // ---- out ----

    /// Sends one frame whose body `fill` appends.
    fn send(
        &self,
        kind: Kind,
        correlation: u64,
        fill: impl FnOnce(&mut Rope) -> Result<()>,
    ) -> Result<()> {
        let frame = self.frame(kind, correlation, fill)?;
        self.write(frame);
        Ok(())
    }

    /// A whole frame, to be written later, whose body `fill` appends. Portals in it are introduced. Its
    /// buffer is one of this thread's, see [`buffers`].
    pub(crate) fn frame(
        &self,
        kind: Kind,
        correlation: u64,
        fill: impl FnOnce(&mut Rope) -> Result<()>,
    ) -> Result<Frame> {
        let mut rope = buffers::take();
        rope.bytes.resize(HEADER, 0);
        let (filled, carried) = carry::pack(|| fill(&mut rope));
        filled?;
        self.head(kind, correlation, &mut rope)?;
        self.enclosing(correlation, rope, &carried, &None)
    }

    /// The frame with what goes beside it before it.
    fn enclosing(
        &self,
        correlation: u64,
        rope: Rope,
        carried: &[Carried],
        chain: &Chain,
    ) -> Result<Frame> {
        let body = rope.len() - HEADER;
        if carried.is_empty() && chain.is_none() {
            return Ok(Frame {
                rope,
                groups: VecDeque::new(),
                body,
            });
        }
        let mut sockets = Vec::new();
        let mut portals = Vec::with_capacity(carried.len());
        if !carried.is_empty() {
            self.knows_others.store(true, Ordering::Relaxed);
        }
        for carried in carried {
            let (introduced, socket) = introduce::send(self, carried)?;
            portals.push(introduced);
            sockets.extend(socket);
        }
        let enclosed = Enclosed {
            waits: chain::to_cross(chain),
            portals,
        };
        let mut whole = buffers::take();
        whole.bytes.resize(HEADER, 0);
        encode(&enclosed, &mut whole)?;
        self.head(Kind::Enclosed, correlation, &mut whole)?;
        whole.append(rope);
        Ok(Frame {
            rope: whole,
            groups: grouped(sockets),
            body,
        })
    }

    /// Writes the header before a body.
    fn head(&self, kind: Kind, correlation: u64, rope: &mut Rope) -> Result<()> {
        let len = rope.len() - HEADER;
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
        rope.bytes[..HEADER].copy_from_slice(&header.to_bytes());
        Ok(())
    }

    /// Sends the first frame, and the portals in the state; before it the outfit, to a process that waited for it.
    pub(crate) fn send_boot(
        &self,
        outfit: Option<(&Outfit, Vec<OwnedFd>)>,
        boot: &Boot,
        carried: &[Carried],
    ) -> Result<()> {
        let framed = |kind, encoded: &dyn Fn(&mut Rope) -> Result<()>| {
            let mut rope = Rope::default();
            rope.bytes.resize(HEADER, 0);
            encoded(&mut rope)?;
            self.head(kind, Link::START, &mut rope)?;
            Ok::<Rope, Error>(rope)
        };
        let rope = framed(Kind::Boot, &|rope| encode(boot, rope))?;
        let mut frame = self.enclosing(Link::START, rope, carried, &None)?;
        if let Some((outfit, fds)) = outfit {
            let mut rope = framed(Kind::Outfit, &|rope| encode(outfit, rope))?;
            let before = rope.len();
            rope.append(std::mem::take(&mut frame.rope));
            frame.rope = rope;
            let groups = frame.groups.into_iter();
            let behind = groups.map(|(place, fds)| (before + place, fds));
            frame.groups = grouped(fds).into_iter().chain(behind).collect();
        }
        self.alone.store(true, Ordering::Release);
        self.put(self.out.lock(), &frame.rope, frame.groups, |_| {});
        Ok(())
    }

    /// Whether the other side surely ended before it had the first frame as a whole, so that nothing of what that asks for was begun.
    pub(crate) fn is_untaken(&self) -> bool {
        self.untaken.load(Ordering::Acquire)
    }

    /// The other side has ended, and something that was sent was not read.
    fn note_unread(&self) {
        if self.alone.load(Ordering::Acquire) {
            self.untaken.store(true, Ordering::Release);
        }
    }

    /// Introduces the holder of the other end of `socket` to the isolate that this link reaches.
    pub(crate) fn send_introduce(&self, introduce: &Introduce, socket: OwnedFd) -> Result<()> {
        let mut frame = self.frame(Kind::Introduce, 0, |out| encode(introduce, out))?;
        frame.groups = grouped(vec![socket]);
        // Those have portals, too, and may send them.
        self.knows_others.store(true, Ordering::Relaxed);
        self.write(frame);
        Ok(())
    }

    /// Sends a frame without a body, with descriptors.
    pub(super) fn send_with(&self, kind: Kind, fds: Vec<OwnedFd>) -> Result<()> {
        let mut frame = self.frame(kind, 0, |_| Ok(()))?;
        frame.groups = grouped(fds);
        self.write(frame);
        Ok(())
    }

    /// Sends this frame, without a body, as the last by the socket.
    pub(super) fn switch_to_ring(&self, kind: Kind, writer: Writer) {
        let Ok(frame) = self.frame(kind, 0, |_| Ok(())) else {
            return;
        };
        let out = self.out.lock();
        self.put(out, &frame.rope, frame.groups, |out| {
            out.way = Way {
                ring: Some(writer),
                by_socket: out.queue.len(),
            };
        });
        buffers::give_back(frame.rope);
    }

    /// Writes as much as goes; how many bytes that were.
    fn push(
        &self,
        way: &mut Way,
        slices: &[&[u8]],
        groups: &mut VecDeque<Group>,
    ) -> io::Result<usize> {
        let mut cursor = Cursor::new(slices);
        while !cursor.is_at_end() {
            let at = cursor.at();
            let along = groups.front().filter(|(place, _)| *place == at);
            let mut places = groups.iter().map(|(place, _)| *place);
            let next = places.find(|place| *place > at);
            let mut most = next.map_or(usize::MAX, |next| next - at);
            if let Some(writer) = way.ring() {
                if let Some((_, fds)) = along {
                    match self.send_beside_ring(fds) {
                        Ok(()) => drop(groups.pop_front()),
                        Err(error) if socket::may_pass(&error) => break,
                        Err(error) => return Err(error),
                    }
                    continue;
                }
                let part = cursor.slice(most);
                let n = self.write_to_ring(writer, part)?;
                cursor.advance(n);
                if n < part.len() {
                    break;
                }
                continue;
            }
            if way.by_socket > 0 {
                most = most.min(way.by_socket);
            }
            let one = self.admit(Direction::ToIsolate, cursor.slice(most))?;
            let sent = match along {
                Some((_, fds)) => {
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    socket::send_with_fds(&self.fd, one, &fds)
                }
                // What may be cut goes slice by slice.
                None if !cursor.is_in_last() && self.cut.get().is_none() => {
                    let (parts, count) = cursor.slices(most);
                    socket::send_vectored(&self.fd, &parts[..count])
                }
                None => socket::send(&self.fd, one),
            };
            match sent {
                Ok(n) => {
                    if along.is_some() {
                        groups.pop_front();
                    }
                    self.passed(Direction::ToIsolate, &one[..n.min(one.len())]);
                    cursor.advance(n);
                    way.by_socket = way.by_socket.saturating_sub(n);
                }
                Err(error) if socket::may_pass(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(cursor.at())
    }

    /// Writes whole frames, or queues what cannot be written.
    pub(crate) fn write(&self, frame: Frame) {
        let Frame { rope, groups, .. } = frame;
        if self.alone.load(Ordering::Relaxed) {
            self.alone.store(false, Ordering::Release);
        }
        self.put(self.out.lock(), &rope, groups, |_| {});
        let bytes = rope.len();
        buffers::give_back(rope);
        self.note_bulk(bytes);
    }

    /// Writes or queues; `then` sees the queue behind these bytes.
    fn put(
        &self,
        mut guard: MutexGuard<'_, Out>,
        rope: &Rope,
        mut groups: VecDeque<Group>,
        then: impl FnOnce(&mut Out),
    ) {
        let out = &mut *guard;
        if out.closed {
            // Whoever waits for an answer is told by the end of the process.
            return;
        }
        let mut written = 0;
        let first = out.queue.is_empty();
        if first {
            let pushed = match rope.is_shared() {
                false => self.push(&mut out.way, &[&rope.bytes], &mut groups),
                true => {
                    let slices: Vec<_> = rope.slices().collect();
                    self.push(&mut out.way, &slices, &mut groups)
                }
            };
            match pushed {
                Ok(n) => written = n,
                Err(error) => {
                    self.note_unread();
                    let waiting = Link::close_out(out, &error);
                    drop(guard);
                    // A caller may hold a lock, of a dialogue or of a family, under which no waker may run. None
                    // does: nobody waits for room while nothing is queued, since `poll_room` has them wait at
                    // `HIGH` only, and the flush that comes below it has woken all.
                    debug_assert!(waiting.is_empty(), "a sender waits for room that there is");
                    waiting.into_iter().for_each(Waker::wake);
                    return;
                }
            }
        }
        let left = rope.len() - written;
        if left > 0 {
            let behind = out.queue.len();
            let queued = groups.into_iter();
            out.groups
                .extend(queued.map(|(place, fds)| (behind + place - written, fds)));
            out.queue.push(rope, written);
            self.has_queued.store(true, Ordering::Release);
        }
        then(out);
        drop(guard);
        // Otherwise it is known already, and what is left is written when there is room.
        if left > 0
            && first
            && let Some(tell) = self.on_queued.get()
        {
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

    /// Nothing is written any more, and no ring is needed for that.
    pub(super) fn close_way(&self) {
        let waiting = {
            let mut out = self.out.lock();
            let waiting = Link::close_out(&mut out, &io::ErrorKind::BrokenPipe.into());
            out.way = Way::default();
            waiting
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Returns who is to be woken once the lock is given back.
    #[must_use]
    fn close_out(out: &mut Out, error: &io::Error) -> Vec<Waker> {
        crate::log::debug!(%error, "a link ended");
        out.closed = true;
        // `has_queued` may stay: the next flush finds nothing.
        out.queue = Queue::default();
        out.groups.clear();
        // Their isolate's end tells them; here they only must not wait for room for ever.
        std::mem::take(&mut out.waiting)
    }

    /// Whether anything is queued.
    pub(crate) fn has_queued(&self) -> bool {
        self.has_queued.load(Ordering::Acquire)
    }

    /// Writes what is queued, as far as that goes. True if nothing is left.
    pub(crate) fn flush(&self) -> bool {
        let mut guard = self.out.lock();
        let out = &mut *guard;
        match self.push(&mut out.way, &out.queue.slices(), &mut out.groups) {
            Ok(n) => {
                out.queue.advance(n);
                out.groups.iter_mut().for_each(|(place, _)| *place -= n);
            }
            Err(error) => {
                self.note_unread();
                let waiting = Link::close_out(out, &error);
                drop(guard);
                waiting.into_iter().for_each(Waker::wake);
                return true;
            }
        }
        let waiting = match out.queue.len() < HIGH {
            true => std::mem::take(&mut out.waiting),
            false => Vec::new(),
        };
        let empty = out.queue.is_empty();
        self.has_queued.store(!empty, Ordering::Release);
        drop(guard);
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
            self.take_last_bells();
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        let out = self.out.lock();
        out.queue.len() < HIGH
    }

    /// Ready when a sender may add to the queue.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut out = self.out.lock();
        if out.closed || out.queue.len() < HIGH {
            return Poll::Ready(());
        }
        if !out.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            out.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Sends a control frame. Its body is ours and small, so that it always fits.
    pub(crate) fn send_value<T: Serialize>(&self, kind: Kind, correlation: u64, value: &T) {
        let sent = self.send(kind, correlation, |out| encode(value, out));
        if let Err(error) = sent {
            crate::log::error!(?kind, %error, "cannot send a control frame");
        }
    }

    /// As [`Link::send_value`], for a body that carries a value of the user.
    pub(crate) fn try_send_value<T: Serialize>(
        &self,
        kind: Kind,
        correlation: u64,
        value: &T,
    ) -> Result<()> {
        self.send(kind, correlation, |out| encode(value, out))
    }

    pub(crate) fn send_rest(&self, correlation: u64) {
        let _ = self.send(Kind::Rest, correlation, |_| Ok(()));
    }

    /// Whether the other side was given anything by which it could reach others than its own.
    pub(crate) fn knows_others(&self) -> bool {
        self.knows_others.load(Ordering::Relaxed)
    }

    /// Whether something was sent since this was asked last.
    pub(super) fn take_sent(&self) -> bool {
        self.sent.swap(false, Ordering::AcqRel)
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
        self.settle(correlation);
        let sent = self.send(Kind::Reply, correlation, |out| {
            codec::encode_checked(value, out, carry::rehearse).map_err(|error| {
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
        self.settle(correlation);
        self.write(self.failure(correlation, error));
    }

    /// The frame of a failure.
    pub(crate) fn failure(&self, correlation: u64, error: &Error) -> Frame {
        let frame =
            |error: &Error| self.frame(Kind::Failure, correlation, |out| encode(error, out));
        frame(error).unwrap_or_else(|_| {
            // Too deep or too long to cross: the same as text.
            let text = self.shortened(error.report());
            let short = frame(&Error::new(ErrorKind::Other, text));
            short.unwrap_or_else(|error| {
                crate::log::error!(%error, "cannot send a failure");
                Frame::none()
            })
        })
    }

    /// Sends a Call or Ask with the number of a pending one.
    pub(crate) fn send_invoke_as(
        &self,
        correlation: u64,
        lane: &Lane,
        encode: impl FnOnce(&mut Rope) -> Result<(Kind, Entry)>,
    ) -> Result<()> {
        // The kind is known only to who encodes, and a message that cannot be encoded takes no place in
        // the sequence: both are filled in behind.
        let mut rope = buffers::take();
        rope.bytes.resize(HEADER + Invoke::SIZE, 0);
        let (encoded, carried) = carry::pack(|| encode(&mut rope));
        let (kind, entry) = encoded?;
        self.head(kind, correlation, &mut rope)?;
        let invoke = Invoke {
            entry,
            sequence: lane.next_sequence(),
            lane: lane.number,
        };
        rope.bytes[HEADER..HEADER + Invoke::SIZE].copy_from_slice(&invoke.to_bytes());
        // Nobody waits for a tell.
        let chain = match kind {
            Kind::Tell => None,
            _ => chain::current(),
        };
        self.write(self.enclosing(correlation, rope, &carried, &chain)?);
        self.sent.store(true, Ordering::Release);
        Ok(())
    }

    /// Opens a dialogue.
    pub(crate) fn send_open(
        &self,
        correlation: u64,
        lane: &Lane,
        window: Window,
        encode: impl FnOnce(&mut Rope) -> Result<Entry>,
    ) -> Result<()> {
        self.send_invoke(Kind::Open, correlation, lane, |out| {
            out.bytes.extend_from_slice(&window.to_bytes());
            encode(out)
        })
    }

    /// Sends a message of this kind.
    pub(crate) fn send_invoke(
        &self,
        kind: Kind,
        correlation: u64,
        lane: &Lane,
        encode: impl FnOnce(&mut Rope) -> Result<Entry>,
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
        let mut all = self.pending.lock();
        // Those who wait are told first that nobody answers any more, and are then looked for: one who comes in between would be
        // told by nobody. Its sender is dropped instead, which says the same.
        let late = match self.gone.get() {
            None => all.insert(correlation, pending),
            Some(_) => Some(pending),
        };
        drop(all);
        drop(late);
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

    /// Whether the other side owes an answer.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.lock().is_empty()
    }

    /// Forgets one that could not be sent.
    pub(crate) fn unpend(&self, correlation: u64) {
        drop(self.pending.lock().remove(&correlation));
    }

    /// Hands an answer to whoever waits for it. An unknown number is ignored: its caller has gone.
    pub(crate) fn answer(&self, correlation: u64, result: Result<Parcel>) {
        let pending = self.pending.lock().remove(&correlation);
        if let Some(Pending { sender, permit }) = pending {
            let _ = sender.send(result);
            drop(permit);
        }
    }

    /// Takes a Reply or a Failure: of a call, or of a dialogue whose last word it is.
    pub(crate) fn take_reply(
        &self,
        header: Header,
        body: Body<'_>,
        carried: Vec<Arrived>,
    ) -> Result<()> {
        let result = match header.kind {
            Kind::Reply => Ok(Parcel {
                bytes: body.keep(&body),
                carried,
            }),
            kind => Err(super::decode_body::<Error>(kind, &body)?.arrived()),
        };
        match self.dialogue(header.correlation) {
            Some(remote) => remote.receive_over(result)?,
            None => self.answer(header.correlation, result),
        }
        Ok(())
    }

    /// Takes what is said within a dialogue. What is of none that is known is of one that is over: the two last words have crossed.
    pub(crate) fn take_stream(
        &self,
        header: Header,
        body: Body<'_>,
        carried: Vec<Arrived>,
    ) -> Result<()> {
        let Some(remote) = self.dialogue(header.correlation) else {
            return Ok(());
        };
        let bytes = body.keep(&body);
        remote.receive(header.kind, Parcel { bytes, carried })
    }

    /// Answers everybody that the other side has ended.
    pub(crate) fn fail_pending(&self, life: &Life) {
        let _ = self.gone.set(life.gone());
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
        self.table.end();
    }

    // ---- dialogues ----

    pub(crate) fn add_dialogue(&self, id: u64, remote: &Arc<Remote>) {
        let mut all = self.dialogues.lock();
        // As of `pend`.
        let late = self.gone.get();
        if late.is_none() {
            all.insert(id, remote.clone());
        }
        drop(all);
        if let Some(gone) = late {
            remote.lost(gone.clone());
        }
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

    /// Notes what a poll has said of the socket: to be called for each of its events before the link is read.
    pub(crate) fn note_event(&self, event: &Event) {
        if event.is_read_closed() || event.is_error() {
            self.note_closed();
        }
    }

    /// A poll has said that the other end is closed.
    pub(crate) fn note_closed(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    // ---- what comes beside frames ----

    /// Reads what has come, and keeps the descriptors that came with it.
    pub(crate) fn receive(&self, space: &mut [u8]) -> io::Result<(usize, bool)> {
        let (len, more) = match self.receive_by_ring(space) {
            // Nobody is told again of what is in a ring, so it is read until there is nothing.
            Some(received) => (received?, true),
            None => {
                let received = socket::recv_with_fds(&self.fd, space).inspect_err(|error| {
                    if error.kind() == io::ErrorKind::ConnectionReset {
                        self.note_unread();
                    }
                })?;
                let fds = received.fds_lost || !received.fds.is_empty();
                if fds && self.groups_came() >= GROUPS_MAX {
                    return Err(too_many_wait());
                }
                let len = received.len;
                (len, self.keep_came(received))
            }
        };
        // Nothing more of a link that is cut: its end.
        let Ok(admitted) = self.admit(Direction::FromIsolate, &space[..len]) else {
            return Ok((0, more));
        };
        self.passed(Direction::FromIsolate, admitted);
        // What is kept back has been read, too.
        let passed = more || admitted.len() < len;
        Ok((admitted.len(), passed))
    }

    /// Keeps the descriptors that came; whether any did.
    pub(super) fn keep_came(&self, received: Received) -> bool {
        let any = received.fds_lost || !received.fds.is_empty();
        if any {
            // What there is no room for is lost, as where the kernel had none.
            let group = match received.fds_lost {
                true => None,
                false => Waiting::new(received.fds),
            };
            let mut came = self.came.lock();
            if came.is_empty() {
                self.waits_since.store(clock::now(), Ordering::Relaxed);
            }
            came.push_back(group);
        }
        any
    }

    /// When descriptors will have waited for too long for the rest of their frame (ns), if any wait.
    pub(crate) fn late_at(&self) -> Option<u64> {
        match self.waits_since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(since + GROUPS_WAIT),
        }
    }

    /// That they have: the connection is to be ended.
    pub(crate) fn late(&self, now: u64) -> Option<Error> {
        let is_late = self.late_at().is_some_and(|at| at <= now);
        is_late.then(|| {
            let bound = Duration::from_nanos(GROUPS_WAIT);
            let what = format!("descriptors have waited for {bound:?} for the rest of their frame");
            Error::new(ErrorKind::Protocol, what)
        })
    }

    /// How many groups of descriptors are there of which no frame has spoken.
    pub(super) fn groups_came(&self) -> usize {
        self.came.lock().len()
    }

    /// Between two frames: closes what came and belongs to none of those before.
    fn drop_came(&self) {
        if self.has_ring() {
            // There they come before the frames that speak of them.
            return;
        }
        let came = std::mem::take(&mut *self.came.lock());
        if !came.is_empty() {
            self.waits_since.store(0, Ordering::Relaxed);
            crate::log::debug!("descriptors came that no frame speaks of");
        }
    }

    /// The next `count` descriptors; none where they were lost, for want of room in this process.
    pub(crate) fn take_came(&self, count: usize) -> Result<Option<Vec<OwnedFd>>> {
        let mut all = Vec::with_capacity(count);
        let mut lost = false;
        let groups = count.div_ceil(socket::PACKET_FDS_MAX);
        while self.groups_came() < groups && self.take_bell_for_descriptors() {}
        let mut came = self.came.lock();
        for start in (0..count).step_by(socket::PACKET_FDS_MAX) {
            let here = (count - start).min(socket::PACKET_FDS_MAX);
            match came.pop_front() {
                Some(Some(fds)) if fds.len() == here => all.extend(fds.take()),
                Some(None) => lost = true,
                _ => {
                    let what = "a frame speaks of descriptors that did not come";
                    return Err(Error::new(ErrorKind::Protocol, what));
                }
            }
        }
        if count > 0 {
            let since = if came.is_empty() { 0 } else { clock::now() };
            self.waits_since.store(since, Ordering::Relaxed);
        }
        Ok((!lost).then_some(all))
    }

    /// Takes what comes beside the next frame.
    pub(crate) fn enclose(self: &Arc<Link>, correlation: u64, body: &[u8]) -> Result<()> {
        let header = Header {
            len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            kind: Kind::Enclosed,
            correlation,
        };
        self.in_order(header)?;
        self.take_enclosed(correlation, body)
    }

    /// Fails if a frame may not come now: the connection is to be ended.
    pub(crate) fn in_order(&self, header: Header) -> Result<()> {
        self.inward.lock().receive(header)
    }

    /// As [`enclose`](Link::enclose), for a frame whose order was looked at before.
    pub(crate) fn take_enclosed(self: &Arc<Link>, correlation: u64, body: &[u8]) -> Result<()> {
        let enclosed: Enclosed = super::decode_body(Kind::Enclosed, body)?;
        let with_socket = |one: &&Introduced| matches!(one.reached, Reached::Socket { .. });
        let sockets = enclosed.portals.iter().filter(with_socket).count();
        if enclosed.portals.len() > carry::MOST || enclosed.waits.len() > chain::CROSSING {
            let what = "more comes beside a frame than may";
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        let mut sockets = self.take_came(sockets)?.map(Vec::into_iter);
        let carried = enclosed.portals.into_iter().map(|introduced| {
            let socket = match (&introduced.reached, &mut sockets) {
                (Reached::Socket { .. }, Some(sockets)) => sockets.next(),
                _ => None,
            };
            introduce::receive(self, introduced, socket)
        });
        let beside = Beside {
            carried: carried.collect(),
            chain: chain::crossed(enclosed.waits),
        };
        match self.inward.lock().beside.replace((correlation, beside)) {
            None => Ok(()),
            Some(_) => {
                let what = "something comes beside a frame that does not come";
                Err(Error::new(ErrorKind::Protocol, what))
            }
        }
    }

    /// What came beside the frame that was the first.
    pub(crate) fn take_all_beside(&self) -> Beside {
        let beside = self.inward.lock().beside.take();
        beside.map(|(_, beside)| beside).unwrap_or_default()
    }

    /// What came beside this frame.
    ///
    /// # Errors
    /// The frame is out of order, or what came is not of it: the connection is to be ended.
    pub(crate) fn take_beside(&self, header: Header) -> Result<Beside> {
        let mut inward = self.inward.lock();
        inward.receive(header)?;
        match inward.beside.take() {
            None => Ok(Beside::default()),
            Some((correlation, beside)) if correlation == header.correlation => Ok(beside),
            Some(_) => {
                let what = "what comes beside a frame is of another one";
                Err(Error::new(ErrorKind::Protocol, what))
            }
        }
    }

    // ---- ends ----

    /// Nobody is at the other end any more: whoever called from there waits for nothing, and what it opened is
    /// cancelled.
    pub(crate) fn hung_up(&self, by: &Canceller, grace_at: u64) {
        let expected = std::mem::take(&mut *self.expected.lock());
        for wanted in expected.into_values() {
            wanted.unwanted.store(true, Ordering::Release);
            wanted.waker.wake();
        }
        let dialogues = std::mem::take(&mut *self.dialogues.lock());
        for remote in dialogues.into_values() {
            remote.tie().take_halt(Halt {
                cancel: Cancel { by: by.clone() },
                grace_at,
            });
        }
    }

    /// True if nobody at the other end waits for an answer.
    pub(crate) fn is_served(&self) -> bool {
        self.expected.lock().is_empty() && self.dialogues.lock().is_empty()
    }

    /// Ends the connection for everybody who holds it.
    pub(crate) fn shut(&self) {
        socket::shutdown_both(&self.fd);
    }

    // ---- credit ----

    /// A number for a lane.
    pub(crate) fn next_lane(&self) -> u32 {
        self.next_lane.fetch_add(1, Ordering::Relaxed)
    }

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
        if let Some(account) = self.account.get() {
            account.begun(lane);
        }
        let due = {
            let mut credit = self.credit.lock();
            let gathered = credit.entry(lane).or_default();
            *gathered += 1;
            (*gathered >= self.credit_batch.load(Ordering::Relaxed))
                .then(|| std::mem::take(gathered))
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

/// Appends a value of ours.
fn encode<T: Serialize>(value: &T, out: &mut Rope) -> Result<()> {
    codec::encode_onto(value, out).map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))
}

/// Descriptors as they go along: so many with each byte.
fn grouped(fds: Vec<OwnedFd>) -> VecDeque<Group> {
    let mut groups = VecDeque::new();
    let mut fds = fds.into_iter().peekable();
    while fds.peek().is_some() {
        let group = fds.by_ref().take(socket::PACKET_FDS_MAX).collect();
        groups.push_back((groups.len(), group));
    }
    groups
}

/// Buffers of frames, which are used again: one that is new for each message has to grow, and a long one
/// takes fresh pages from the kernel, which cost more than to copy it.
pub(crate) mod buffers {
    use offshoot_wire::Rope;
    use std::cell::RefCell;

    /// What is kept is no longer than this, so that one huge message does not stay for ever.
    const LONGEST: usize = 256 << 10;
    /// How many are kept by a thread.
    const MOST: usize = 2;

    thread_local! {
        static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    }

    /// An empty one.
    pub(crate) fn take() -> Rope {
        // Also asked for while the thread's locals are being destroyed.
        let kept = KEPT.try_with(|kept| kept.borrow_mut().pop());
        Rope::from(kept.ok().flatten().unwrap_or_default())
    }

    /// Keeps one for another time.
    pub(crate) fn give_back(rope: Rope) {
        let mut buffer = rope.bytes;
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

#[cfg(feature = "fault-points")]
impl Drop for Link {
    fn drop(&mut self) {
        crate::ledger::link_ended(self.pending.get_mut().len());
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
const READS_PER_TURN: usize = 16;
/// And how many bytes.
const BYTES_PER_TURN: usize = 256 << 10;

/// As [`read_frames`], by one read: for who is told again at once if that was not all.
pub(crate) fn read_once(
    link: &Link,
    reader: &mut frame::FrameReader,
    mut take: impl FnMut(Header, Body<'_>) -> Result<()>,
) -> Read {
    match link.receive(reader.space()) {
        Ok((0, _)) => return Read::Ended,
        Ok((n, _)) => reader.filled(n),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Drained,
        Err(error) => return ended(&error),
    }
    match take_frames(link, reader, &mut take) {
        Ok(()) => Read::Drained,
        Err(error) => Read::Wrong(error),
    }
}

/// Hands each frame that is there as a whole to `take`, until one of them is wrong.
fn take_frames(
    link: &Link,
    reader: &mut frame::FrameReader,
    take: &mut impl FnMut(Header, Body<'_>) -> Result<()>,
) -> Result<()> {
    loop {
        match reader.next() {
            Ok(None) => {
                if reader.finish().is_ok() {
                    link.drop_came();
                }
                return Ok(());
            }
            Ok(Some((header, body))) => match header.kind {
                Kind::Offer | Kind::Accept | Kind::Switch => {
                    link.in_order(header)?;
                    if link.take_ring_frame(header.kind, &body)? {
                        // Only bells are behind it.
                        reader.discard();
                    }
                }
                _ => {
                    take(header, body)?;
                    link.note_bulk(header.len as usize);
                }
            },
            Err(error) => return Err(Error::new(ErrorKind::Protocol, error.to_string())),
        }
    }
}

/// How a link has ended that cannot be read any more.
fn ended(error: &io::Error) -> Read {
    match error.kind() {
        // What is in a ring cannot be true.
        io::ErrorKind::InvalidData => {
            Read::Wrong(Error::new(ErrorKind::Protocol, error.to_string()))
        }
        // A reset connection has ended like a closed one.
        _ => Read::Ended,
    }
}

/// Hands each frame that has come to `take`, up to a bound, until one of them is wrong.
pub(crate) fn read_frames(
    link: &Link,
    reader: &mut frame::FrameReader,
    mut take: impl FnMut(Header, Body<'_>) -> Result<()>,
) -> Read {
    let mut drained = false;
    let mut bytes = 0;
    for _ in 0..READS_PER_TURN {
        // First what came behind the last frame that somebody else has read.
        if let Err(error) = take_frames(link, reader, &mut take) {
            return Read::Wrong(error);
        }
        if drained && !link.has_more() && !link.closed.load(Ordering::Relaxed) {
            return Read::Drained;
        }
        let space = reader.space();
        let room = space.len();
        match link.receive(space) {
            Ok((0, _)) => return Read::Ended,
            Ok((n, fds)) => {
                // A read that passes over descriptors ends there; another one that gave less than it
                // had room for has taken all bytes, and what comes later makes a new event. An end that
                // was there already makes none: its event is noted, see `Link::note_event`.
                drained = n < room && !fds;
                reader.filled(n);
                bytes += n;
                if bytes >= BYTES_PER_TURN {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Drained,
            Err(error) => return ended(&error),
        }
    }
    Read::More
}

#[cfg(test)]
mod ends;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credit::Kind as Of;
    use crate::{Exit, IsolateId};
    use offshoot_wire::frame::BODY_MAX;
    use std::pin::pin;

    /// A call that is sent when those who wait are being told of the end is told of it, too, and costs no credit.
    #[test]
    fn a_call_that_comes_with_the_end_is_answered() {
        let (ours, _theirs) = socket::stream_pair().expect("a socket pair");
        let link = Link::new(ours, BODY_MAX);
        let id = IsolateId {
            process: 1,
            slot: 1,
            generation: 0,
        };
        let path = "root/p".to_owned();
        let life = Life::new(Origin { path, id, pid: 1 });
        let lane = Lane::new(1, (4, 4), true);
        let asks = || {
            assert!(lane.credit(Of::Call).try_take());
            let (sender, receiver) = oneshot::channel();
            let permit = Taken::of(lane.clone(), Of::Call);
            (link.pend(Pending { sender, permit }), receiver)
        };
        let (early, told) = asks();
        assert!(link.is_awaited(early));
        life.announce(Exit::Completed);
        link.fail_pending(&life);
        let (late, told_late) = asks();
        assert!(!link.is_awaited(early) && !link.is_awaited(late));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(pin!(told).poll(&mut cx), Poll::Ready(Ok(Err(_)))));
        let dropped = pin!(told_late).poll(&mut cx);
        assert!(matches!(dropped, Poll::Ready(Err(oneshot::Dropped))));
        for _ in 0..4 {
            assert!(lane.credit(Of::Call).try_take(), "the credit is back");
        }
    }
}
