//! Two rings of bytes in memory that two processes share: one for each direction.
//!
//! The memory is a file without a name (`memfd`), sealed so that nobody can make it shorter or longer, and passed by descriptor. This
//! knows no frames and makes no system call once it is mapped: who sleeps, and how it is woken, is the caller's, who is told by
//! [`Writer::reader_sleeps`] and [`Reader::writer_waits`] when the other side has to be woken.
//!
//! ```text
//!   byte 0      of each direction, 1 KiB: written | asleep | read | waits, each on lines of its own
//!   byte 4096   the bytes of the first direction, then those of the second
//! ```
//!
//! - `written` and `read` count bytes from the beginning and never come around; a place is a count modulo the capacity. Each is stored
//!   by one side only, with release, after the bytes that it speaks of were copied, so that a side that is killed in the middle of a
//!   copy has said nothing.
//! - Sleeping is Dekker's protocol, once for each flag: *who sleeps* sets its flag, passes a fence, and looks once more; *who brings
//!   news* stores its count, passes a fence, and looks at the flag. One of the two sees the other.
//!
//! The other side is not trusted. Its counts are looked at once per use and checked: more bytes than fit, or fewer than before, is
//! [`broken`]. What it wrote is copied out before anybody looks at it, and may change until then, but not afterwards.

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::memfd;
use nix::sys::mman::{MapFlags, ProtFlags};

/// The least capacity of a direction, in bytes.
pub const CAPACITY_MIN: usize = 4 << 10;

/// The largest capacity of a direction, in bytes.
pub const CAPACITY_MAX: usize = 1 << 30;

/// What is before the bytes of the directions.
const HEAD: usize = 4096;
/// What each direction has of that.
const DIRECTION: usize = 1024;
/// Each on a line of its own, and not on the next one, which processors fetch along.
const WRITTEN: usize = 0;
const ASLEEP: usize = 256;
const READ: usize = 512;
const WAITS: usize = 768;

/// So much is copied before it is published, so that the other side can begin with the first part while the next is copied.
pub const PART: usize = 64 << 10;

/// Which end of the rings one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who made them.
    Maker,
    /// Who was given them.
    Taker,
}

/// The error of a ring whose counts cannot be true.
pub fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a ring's {what}"))
}

/// Makes the memory of two rings of `capacity` bytes each: rounded up to a power of two, within [`CAPACITY_MIN`] and [`CAPACITY_MAX`].
/// Its pages are taken when they are first written to.
///
/// # Errors
/// `ENFILE`, `EMFILE`, `ENOMEM`.
pub fn create(capacity: usize) -> io::Result<OwnedFd> {
    let capacity = capacity
        .clamp(CAPACITY_MIN, CAPACITY_MAX)
        .next_power_of_two();
    memfd::create(c"offshoot-ring", HEAD + 2 * capacity)
}

/// Maps the memory of two rings: the end that writes and the end that reads, on this side. The descriptor is needed no more.
///
/// # Errors
/// `InvalidData` if it is not what [`create`] makes: sealed, and of a length that can be; `ENOMEM`, also at the limit of mappings.
pub fn open(memory: BorrowedFd<'_>, side: Side) -> io::Result<(Writer, Reader)> {
    let size = memfd::sealed_length(memory)?;
    let capacity = usize::try_from(size)
        .ok()
        .and_then(|size| size.checked_sub(HEAD))
        .map(|both| both / 2)
        .filter(|capacity| (CAPACITY_MIN..=CAPACITY_MAX).contains(capacity))
        .filter(|capacity| capacity.is_power_of_two() && (HEAD + 2 * capacity) as u64 == size)
        .ok_or_else(|| broken(&format!("memory of {size} bytes is of no such length")))?;
    let memory = Arc::new(Memory::map(memory, capacity)?);
    let (out, into) = match side {
        Side::Maker => (0, 1),
        Side::Taker => (1, 0),
    };
    let writer = Writer {
        direction: Direction::new(&memory, out),
        written: 0,
        read: 0,
    };
    let direction = Direction::new(&memory, into);
    let watch = Watch(Arc::new(Watched {
        direction,
        read: AtomicU64::new(0),
    }));
    Ok((writer, Reader { watch, read: 0 }))
}

/// The mapping.
struct Memory {
    base: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and this is the only owner that unmaps it.
unsafe impl Send for Memory {}
// SAFETY: through `&self` its words are used as atomics only, and its bytes by raw copies, of which `Writer` and `Reader` make one at a
// time for each direction, as both need `&mut`. The two directions do not overlap.
unsafe impl Sync for Memory {}

impl Memory {
    fn map(file: BorrowedFd<'_>, capacity: usize) -> io::Result<Memory> {
        let length = NonZeroUsize::new(HEAD + 2 * capacity).unwrap_or(NonZeroUsize::MIN);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without MAP_FIXED and an address, the kernel chooses a place where nothing is mapped.
        let base = unsafe {
            nix::sys::mman::mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0)
        }?;
        // A process that this one forks by other means than ours must not write into it. That it may not be had is no reason to fail.
        // SAFETY: it is the mapping just made, and what changes is only what a fork does with it.
        let _ = unsafe { libc::madvise(base.as_ptr(), length.get(), libc::MADV_DONTFORK) };
        Ok(Memory {
            base: base.cast(),
            capacity,
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let length = HEAD + 2 * self.capacity;
        // SAFETY: base and length are those of one mapping that this value alone owns; no reference into it outlives `self`.
        let result = unsafe { nix::sys::mman::munmap(self.base.cast::<c_void>(), length) };
        debug_assert!(
            result.is_ok(),
            "munmap of an own mapping fails only for wrong arguments"
        );
    }
}

/// Copies between private memory and memory that another process may write at the same time.
///
/// # Safety
/// As of `memcpy`, but for what another process does with either.
unsafe fn copy(to: *mut u8, from: *const u8, count: usize) {
    // The function is hidden from the optimizer, which so cannot assume anything of the bytes it copies: not that they stay as they are,
    // nor that it may read them twice.
    let memcpy: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void =
        black_box(libc::memcpy);
    // SAFETY: as above.
    unsafe { memcpy(to.cast(), from.cast(), count) };
}

/// One of the two rings.
#[derive(Clone)]
struct Direction {
    memory: Arc<Memory>,
    head: usize,
    data: usize,
}

impl Direction {
    fn new(memory: &Arc<Memory>, number: usize) -> Direction {
        Direction {
            memory: memory.clone(),
            head: number * DIRECTION,
            data: HEAD + number * memory.capacity,
        }
    }

    fn capacity(&self) -> usize {
        self.memory.capacity
    }

    fn count(&self, which: usize) -> &AtomicU64 {
        // SAFETY: within the head, which is mapped for as long as `self` lives, and aligned, as the mapping begins at a page and all
        // offsets are multiples of 256. Both sides use it as an atomic only.
        unsafe { AtomicU64::from_ptr(self.memory.base.as_ptr().add(self.head + which).cast()) }
    }

    fn flag(&self, which: usize) -> &AtomicU32 {
        // SAFETY: as in `count`.
        unsafe { AtomicU32::from_ptr(self.memory.base.as_ptr().add(self.head + which).cast()) }
    }

    /// The two parts of the ring that `len` bytes from the count `at` on have, as offset and length.
    fn parts(&self, at: u64, len: usize) -> [(usize, usize); 2] {
        debug_assert!(len <= self.capacity());
        // The remainder is below the capacity, which is a usize.
        let place = usize::try_from(at % self.capacity() as u64).unwrap_or(0);
        let first = len.min(self.capacity() - place);
        [
            (self.data + place, first),
            (self.data, len.saturating_sub(first)),
        ]
    }

    /// Takes a flag of the other side down; true if it was up.
    fn take(&self, which: usize) -> bool {
        let flag = self.flag(which);
        // Between our count and the look at the flag; see the protocol above.
        fence(Ordering::SeqCst);
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0
    }

    /// Puts a flag of ours up. What one looks at afterwards is not older than that.
    fn raise(&self, which: usize) {
        self.flag(which).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// The end of a ring into which is written.
pub struct Writer {
    direction: Direction,
    /// Ours, whatever the shared word says.
    written: u64,
    /// What the other side has read, as it said the last time.
    read: u64,
}

impl Writer {
    /// How many bytes the ring holds.
    pub fn capacity(&self) -> usize {
        self.direction.capacity()
    }

    /// Copies as much of `bytes` as there is room for; how many that were.
    ///
    /// # Errors
    /// That the other side says it has read what was never written, or less than before.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let part = &bytes[done..bytes.len().min(done + PART)];
            if self.room() < part.len() {
                self.look()?;
            }
            let len = part.len().min(self.room());
            if len == 0 {
                break;
            }
            let mut from = part;
            for (at, len) in self.direction.parts(self.written, len) {
                let (now, later) = from.split_at(len.min(from.len()));
                // SAFETY: the part is within the mapping, and of it the other side reads nothing by its own protocol, whatever it does by
                // another; nobody of this process uses these bytes, as `&mut self` is the only writer. `now` is private memory.
                unsafe {
                    copy(
                        self.direction.memory.base.as_ptr().add(at),
                        now.as_ptr(),
                        len,
                    )
                };
                from = later;
            }
            self.written += len as u64;
            let count = self.direction.count(WRITTEN);
            count.store(self.written, Ordering::Release);
            done += len;
        }
        Ok(done)
    }

    fn room(&self) -> usize {
        // In range: checked by `look`.
        let used = usize::try_from(self.written - self.read).unwrap_or(usize::MAX);
        self.capacity().saturating_sub(used)
    }

    /// Sees what the other side has read.
    fn look(&mut self) -> io::Result<()> {
        let read = self.direction.count(READ).load(Ordering::Acquire);
        if read < self.read || read > self.written {
            return Err(broken(&format!(
                "reader says that it has read {read} bytes, after {} of {}",
                self.read, self.written
            )));
        }
        self.read = read;
        Ok(())
    }

    /// Whether the reader sleeps and has to be woken, now that something was written. True once for each time that it goes to sleep.
    pub fn reader_sleeps(&self) -> bool {
        self.direction.take(ASLEEP)
    }

    /// Says that this side waits until half of the ring is free. True if it is, and nothing has to be waited for.
    ///
    /// # Errors
    /// As of [`write`](Self::write).
    pub fn await_room(&mut self) -> io::Result<bool> {
        self.direction.raise(WAITS);
        self.look()?;
        let there = self.room() >= self.capacity() / 2;
        if there {
            self.direction.flag(WAITS).store(0, Ordering::Relaxed);
        }
        Ok(there)
    }
}

/// The end of a ring from which is read.
pub struct Reader {
    watch: Watch,
    /// Ours, whatever the shared word says.
    read: u64,
}

struct Watched {
    direction: Direction,
    /// What was read, for who only looks.
    read: AtomicU64,
}

impl Reader {
    /// Copies what is there into `space`; how many bytes that were.
    ///
    /// # Errors
    /// That the other side says it has written more than fits, or less than before.
    pub fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let Watched { direction, read } = &*self.watch.0;
        let written = direction.count(WRITTEN).load(Ordering::Acquire);
        let there = written
            .checked_sub(self.read)
            .and_then(|there| usize::try_from(there).ok())
            .filter(|there| *there <= direction.capacity())
            .ok_or_else(|| {
                broken(&format!(
                    "writer says that it has written {written} bytes, of which {} were read and at most {} fit",
                    self.read,
                    direction.capacity()
                ))
            })?;
        let len = there.min(space.len());
        if len == 0 {
            return Ok(0);
        }
        let mut into = &mut space[..len];
        for (at, len) in direction.parts(self.read, len) {
            let (now, later) = into.split_at_mut(len);
            // SAFETY: the part is within the mapping; nobody of this process writes to it, as this is the side that reads. `now` is
            // private, of this length, and initialized; what another process writes meanwhile makes its bytes arbitrary and no more.
            unsafe {
                copy(
                    now.as_mut_ptr(),
                    direction.memory.base.as_ptr().add(at),
                    len,
                )
            };
            into = later;
        }
        self.read += len as u64;
        read.store(self.read, Ordering::Release);
        direction.count(READ).store(self.read, Ordering::Release);
        Ok(len)
    }

    /// Whether the writer waits for room, has half of the ring now, and has to be woken. True once for each time that it waits.
    pub fn writer_waits(&self) -> bool {
        let direction = &self.watch.0.direction;
        let written = direction.count(WRITTEN).load(Ordering::Relaxed);
        // Whatever it says: what is wrong with it is found by the next read.
        let used = written.saturating_sub(self.read);
        used <= direction.capacity() as u64 / 2 && direction.take(WAITS)
    }

    /// For whoever only looks whether something is there.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }
}

/// By which any thread of the reading side sees whether there is something to read, and says that it sleeps.
#[derive(Clone)]
pub struct Watch(Arc<Watched>);

impl Watch {
    /// Whether something may be there that was not read.
    pub fn has_bytes(&self) -> bool {
        let written = self.0.direction.count(WRITTEN).load(Ordering::Acquire);
        written != self.0.read.load(Ordering::Acquire)
    }

    /// Says that this side sleeps from now on and has to be woken. False if there is something to be read first.
    pub fn sleep(&self) -> bool {
        self.0.direction.raise(ASLEEP);
        !self.has_bytes()
    }

    /// Says that this side looks by itself. Whoever says so says [`sleep`](Self::sleep) before it looks no more.
    pub fn stay_awake(&self) {
        self.0.direction.flag(ASLEEP).store(0, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("capacity", &self.capacity())
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::SharedMap;
    use crate::{poll, socket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    type End = (Writer, Reader);

    fn pair(capacity: usize) -> (End, End, OwnedFd) {
        let memory = create(capacity).unwrap();
        let maker = open(memory.as_fd(), Side::Maker).unwrap();
        let taker = open(memory.as_fd(), Side::Taker).unwrap();
        (maker, taker, memory)
    }

    /// Bytes that tell where they belong.
    fn pattern(from: u64, len: usize) -> Vec<u8> {
        (from..from + len as u64)
            .map(|n| (n.wrapping_mul(31) >> 3) as u8)
            .collect()
    }

    #[test]
    fn what_is_written_is_read_on_the_other_side_and_both_directions_are_apart() {
        let ((mut to, mut from), (mut back, mut there), _) = pair(CAPACITY_MIN);
        assert_eq!(to.capacity(), CAPACITY_MIN);
        assert_eq!(to.write(b"ping").unwrap(), 4);
        assert_eq!(back.write(b"pong!").unwrap(), 5);
        let mut bytes = [0; 9];
        assert_eq!(there.read(&mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"ping");
        assert_eq!(from.read(&mut bytes[..3]).unwrap(), 3);
        assert_eq!(from.read(&mut bytes[3..]).unwrap(), 2);
        assert_eq!(&bytes[..5], b"pong!");
        assert_eq!(from.read(&mut bytes).unwrap(), 0);
        assert_eq!(from.read(&mut []).unwrap(), 0);
    }

    #[test]
    fn at_every_offset_bytes_go_around_and_come_out_as_they_were() {
        let ((mut to, _), (_, mut there), _) = pair(CAPACITY_MIN);
        let mut count = 0_u64;
        let mut space = vec![0; CAPACITY_MIN + 1];
        // Each turn moves the beginning by one, since the capacity and the length have no common divisor.
        for turn in 0..CAPACITY_MIN {
            let len = CAPACITY_MIN - 1;
            let bytes = pattern(count, len);
            assert_eq!(to.write(&bytes).unwrap(), len);
            // One more byte fits, and no other.
            let more = pattern(count + len as u64, 2);
            assert_eq!(to.write(&more).unwrap(), 1, "turn {turn}");
            assert_eq!(to.write(&more).unwrap(), 0, "turn {turn}");
            let n = there.read(&mut space).unwrap();
            assert_eq!(n, len + 1);
            assert!(
                space[..n] == pattern(count, n),
                "turn {turn} came out as another"
            );
            // Also short ones, across the end.
            count += n as u64;
            assert_eq!(to.write(&pattern(count, 3)).unwrap(), 3);
            assert_eq!(there.read(&mut space).unwrap(), 3);
            assert_eq!(space[..3], pattern(count, 3));
            count += 3;
        }
    }

    #[test]
    fn memory_that_could_become_shorter_or_is_of_another_length_is_refused() {
        let length = HEAD + 2 * CAPACITY_MIN;
        let file = tempfile::tempfile().unwrap();
        file.set_len(length as u64).unwrap();
        let refused = open(file.as_fd(), Side::Taker).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        for length in [
            0,
            HEAD,
            HEAD + 2,
            HEAD + CAPACITY_MIN,
            length + 1,
            length + 2,
            HEAD + 3 * CAPACITY_MIN,
        ] {
            let memory = memfd::create(c"test", length).unwrap();
            let text = open(memory.as_fd(), Side::Taker).unwrap_err().to_string();
            assert!(text.contains("no such length"), "{length}: {text}");
        }
        let memory = memfd::create(c"test", length).unwrap();
        assert!(open(memory.as_fd(), Side::Taker).is_ok());
    }

    #[test]
    fn counts_that_cannot_be_are_found_and_nothing_beyond_the_ring_is_touched() {
        let capacity = CAPACITY_MIN as u64;
        for wrong in [9, 11 + capacity, u64::MAX, 1 << 63] {
            let ((mut to, _), (_, mut there), memory) = pair(CAPACITY_MIN);
            let hostile = SharedMap::new(memory.as_fd(), HEAD).unwrap();
            to.write(&[7; 10]).unwrap();
            let mut space = vec![0; 3 * CAPACITY_MIN];
            assert_eq!(there.read(&mut space).unwrap(), 10);
            hostile.store_u64(WRITTEN, wrong, Ordering::Release);
            let error = there.read(&mut space).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{wrong}: {error}");
            // What only looks does not decide on it.
            let _ = there.writer_waits();
            assert!(there.watch().has_bytes());
        }
        for wrong in [3, 4097, u64::MAX] {
            let ((mut to, _), (_, mut there), memory) = pair(CAPACITY_MIN);
            let hostile = SharedMap::new(memory.as_fd(), HEAD).unwrap();
            to.write(&[7; 4]).unwrap();
            there.read(&mut [0; 4]).unwrap();
            assert_eq!(to.write(&[7; CAPACITY_MIN]).unwrap(), CAPACITY_MIN);
            assert!(!to.await_room().unwrap());
            hostile.store_u64(READ, wrong.max(3), Ordering::Release);
            match wrong {
                // Some of what was written: that may be.
                4097 => assert!(to.await_room().unwrap()),
                _ => assert!(to.await_room().is_err() && to.write(b"x").is_err()),
            }
        }
    }

    #[test]
    fn who_sleeps_is_woken_once_and_who_does_not_never() {
        let ((mut to, _), (_, mut there), _) = pair(CAPACITY_MIN);
        let watch = there.watch();
        to.write(b"a").unwrap();
        assert!(!to.reader_sleeps());
        assert!(watch.has_bytes() && !watch.sleep(), "something is there");
        there.read(&mut [0; 8]).unwrap();
        assert!(watch.sleep() && !watch.has_bytes());
        to.write(b"b").unwrap();
        assert!(to.reader_sleeps());
        assert!(!to.reader_sleeps());
        there.read(&mut [0; 8]).unwrap();
        assert!(watch.sleep());
        watch.stay_awake();
        to.write(b"c").unwrap();
        assert!(!to.reader_sleeps());
        there.read(&mut [0; 8]).unwrap();

        to.write(&[0; CAPACITY_MIN]).unwrap();
        assert!(!there.writer_waits());
        assert!(!to.await_room().unwrap());
        there.read(&mut [0; CAPACITY_MIN / 2 - 1]).unwrap();
        assert!(!there.writer_waits(), "not yet half of it");
        there.read(&mut [0; 1]).unwrap();
        assert!(there.writer_waits());
        assert!(!there.writer_waits());
        assert!(to.await_room().unwrap());
        assert!(!there.writer_waits(), "it did not have to wait");
    }

    /// A stream both ways at once through the least ring, where both sides sleep whenever they can, on a socket by which they are
    /// woken. A wake-up that is lost is a wait that nobody ends.
    #[test]
    fn no_wake_up_is_lost() {
        const BYTES: u64 = 24 << 20;
        const BOUND: Duration = Duration::from_secs(20);

        struct Half {
            writer: Writer,
            reader: Reader,
            bell: OwnedFd,
        }
        impl Half {
            fn ring(&self) {
                let _ = socket::send(&self.bell, &[0]);
            }

            fn run(mut self, seed: u64) {
                let (mut wrote, mut read) = (0, 0);
                let mut random = seed;
                let mut space = vec![0; 3_000];
                while wrote < BYTES || read < BYTES {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let len = 1 + (random >> 33) % 2_999;
                    let mut any = false;
                    if wrote < BYTES {
                        let len = len.min(BYTES - wrote) as usize;
                        let n = self.writer.write(&pattern(wrote, len)).unwrap();
                        wrote += n as u64;
                        any |= n > 0;
                        if n > 0 && self.writer.reader_sleeps() {
                            self.ring();
                        }
                        if n < len {
                            any |= self.writer.await_room().unwrap();
                        }
                    }
                    let n = self.reader.read(&mut space).unwrap();
                    if n > 0 {
                        assert!(space[..n] == pattern(read, n), "at {read}");
                        read += n as u64;
                        any = true;
                        if self.reader.writer_waits() {
                            self.ring();
                        }
                    }
                    if any || (wrote == BYTES && read == BYTES) {
                        continue;
                    }
                    if self.reader.watch().sleep() {
                        let rung = poll::wait(&[self.bell.as_fd()], Some(BOUND)).unwrap();
                        assert!(rung[0], "nobody woke it: {wrote} written, {read} read");
                        while socket::recv(&self.bell, &mut [0; 64]).is_ok_and(|n| n > 0) {}
                    }
                }
            }
        }

        let ((writer, reader), (back, there), _) = pair(CAPACITY_MIN);
        let (ours, theirs) = socket::stream_pair().unwrap();
        let one = Half {
            writer,
            reader,
            bell: ours,
        };
        let other = Half {
            writer: back,
            reader: there,
            bell: theirs,
        };
        std::thread::scope(|scope| {
            scope.spawn(|| one.run(1));
            scope.spawn(|| other.run(2));
        });
    }

    /// One byte there and one back. In most turns both sides look for long enough that the answer comes meanwhile, in the others one of
    /// them goes to sleep about when it comes. Nobody makes up for a wake-up that is lost.
    #[test]
    fn no_wake_up_is_lost_where_one_byte_is_all_there_is() {
        const ROUNDS: u64 = 20_000;
        const LONG: u64 = 5_000;

        fn wait(reader: &mut Reader, bell: &OwnedFd, looks: u64) -> bool {
            let watch = reader.watch();
            let mut byte = [0];
            loop {
                for _ in 0..looks {
                    if watch.has_bytes() {
                        break;
                    }
                    std::hint::spin_loop();
                }
                if reader.read(&mut byte).unwrap() == 1 {
                    return true;
                }
                if watch.sleep() {
                    if !poll::wait(&[bell.as_fd()], Some(Duration::from_secs(5))).unwrap()[0] {
                        return false;
                    }
                    let _ = socket::recv(bell, &mut [0; 64]);
                }
            }
        }
        fn write(writer: &mut Writer, bell: &OwnedFd) {
            assert_eq!(writer.write(&[1]).unwrap(), 1);
            if writer.reader_sleeps() {
                let _ = socket::send(bell, &[0]);
            }
        }

        let ((mut to, mut from), (mut back, mut there), _) = pair(CAPACITY_MIN);
        let (ours, theirs) = socket::stream_pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let looks = if round % 4 == 1 { round / 4 % 41 } else { LONG };
                    if !wait(&mut there, &theirs, looks) {
                        return;
                    }
                    write(&mut back, &theirs);
                }
            });
            for round in 0..ROUNDS {
                write(&mut to, &ours);
                let looks = if round % 4 == 3 { round / 4 % 37 } else { LONG };
                assert!(
                    wait(&mut from, &ours, looks),
                    "round {round}: nobody woke it"
                );
            }
        });
    }

    #[test]
    fn the_mapping_goes_with_both_ends() {
        let memory = create(CAPACITY_MIN).unwrap();
        let inode = nix::sys::stat::fstat(&memory).unwrap().st_ino.to_string();
        let count = || {
            let maps = crate::procfs::text("/proc/self/maps").unwrap();
            maps.lines()
                .filter(|line| line.contains("offshoot-ring"))
                .filter(|line| line.split_ascii_whitespace().nth(4) == Some(&*inode))
                .count()
        };
        let (writer, reader) = open(memory.as_fd(), Side::Maker).unwrap();
        assert_eq!(count(), 1);
        let watch = reader.watch();
        drop((memory, writer, reader));
        assert!(!watch.has_bytes());
        assert_eq!(count(), 1);
        drop(watch);
        assert_eq!(count(), 0);
    }
}
