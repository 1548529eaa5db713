//! The bare ring: two processes that share memory, spin a while, then sleep on a futex.
//!
//! It has a word each way for a round trip and sixteen slots of 64 KiB for a stream, and no more of
//! what a real one needs: no lengths, no check of what the other side wrote, no end.

use super::Helper;
use super::processes::{control, memory_file, receive_with_fd, send_with_fd};
use crate::engine::Failure;
use offshoot_sys::futex::shared as futex;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

/// The bytes of one chunk of the stream.
pub const CHUNK: usize = 64 * 1024;
const SLOTS: u32 = 16;
/// Where the words lie, each on a line of its own. Beside each lies whether somebody sleeps on it.
const ASKED: usize = 0;
const ANSWERED: usize = 128;
const WRITTEN: usize = 256;
const READ: usize = 384;
const DATA: usize = 4096;
const SIZE: usize = DATA + SLOTS as usize * CHUNK;
/// How long a side looks at a word before it sleeps.
const SPIN: Duration = Duration::from_micros(30);

/// What the other process does, as its first byte says.
const PING: u8 = b'p';
const STREAM: u8 = b's';

/// Memory that two processes share. It is never unmapped: the few of a run end with it.
struct Memory(*mut u8);

impl Memory {
    fn map(file: &File) -> io::Result<Memory> {
        // SAFETY: without a wished address the kernel takes a place where nothing is; the file has this size, see `memory_file`.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        match base {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            base => Ok(Memory(base.cast())),
        }
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: within the mapping, which is never unmapped, and aligned; both sides use it as an atomic only.
        unsafe { AtomicU32::from_ptr(self.0.add(offset).cast()) }
    }

    fn slot(&self, turn: u32) -> *mut u8 {
        // SAFETY: within the mapping.
        unsafe { self.0.add(DATA + (turn % SLOTS) as usize * CHUNK) }
    }

    /// Sets a word, and wakes the other side if it sleeps on it.
    fn set(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
        // Between this store and the look at the sleeper, and between the sleeper's store and its look at the word.
        fence(Ordering::SeqCst);
        let sleeper = self.word(offset + 4);
        if sleeper.load(Ordering::Relaxed) == 1 {
            sleeper.store(0, Ordering::Relaxed);
            futex::wake_one(self.word(offset));
        }
    }

    /// Waits until a word is as wanted: by looking at it for a while, then asleep.
    fn wait(&self, offset: usize, wanted: impl Fn(u32) -> bool) {
        let word = self.word(offset);
        let mut spinning = None;
        for turn in 0_u32.. {
            if wanted(word.load(Ordering::Acquire)) {
                return;
            }
            std::hint::spin_loop();
            if turn % 64 == 63 && spinning.get_or_insert_with(Instant::now).elapsed() > SPIN {
                self.word(offset + 4).store(1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                let now = word.load(Ordering::Acquire);
                if !wanted(now) {
                    futex::wait(word, now, None);
                }
            }
        }
    }
}

/// A ring to another process.
pub struct Ring {
    memory: Memory,
    turn: u32,
    _helper: Helper,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// One for round trips.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn for_pings() -> Result<Ring, Failure> {
        Ring::start(PING)
    }

    /// One for a stream.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn for_stream() -> Result<Ring, Failure> {
        Ring::start(STREAM)
    }

    fn start(what: u8) -> Result<Ring, Failure> {
        let helper = Helper::start("ring")?;
        let file = memory_file(SIZE)?;
        send_with_fd(&helper.socket, what, file.as_raw_fd())?;
        let memory = Memory::map(&file)?;
        Ok(Ring {
            memory,
            turn: 0,
            _helper: helper,
        })
    }

    /// One round trip.
    pub fn ping(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.memory.set(ASKED, self.turn);
        let turn = self.turn;
        self.memory.wait(ANSWERED, |answered| answered == turn);
    }

    /// Writes `chunk` that many times, and waits until the other side has read all.
    pub fn stream(&mut self, chunk: &[u8; CHUNK], times: u32) {
        for _ in 0..times {
            let turn = self.turn;
            self.memory
                .wait(READ, |read| turn.wrapping_sub(read) < SLOTS);
            // SAFETY: the slot is ours until it is announced: the reader has said that it is done with it. Both are of this size.
            unsafe {
                self.memory
                    .slot(turn)
                    .copy_from_nonoverlapping(chunk.as_ptr(), CHUNK)
            };
            self.turn = turn.wrapping_add(1);
            self.memory.set(WRITTEN, self.turn);
        }
        let turn = self.turn;
        self.memory.wait(READ, |read| read == turn);
    }
}

/// The other side. It is killed when it is no longer wanted.
pub(super) fn serve() {
    let control = control();
    let Ok(Some((what, Some(fd)))) = receive_with_fd(&control) else {
        return;
    };
    let Ok(memory) = Memory::map(&File::from(fd)) else {
        return;
    };
    let mut turn = 0_u32;
    let mut into = Box::new([0_u8; CHUNK]);
    loop {
        if what == PING {
            memory.wait(ASKED, |asked| asked != turn);
            turn = turn.wrapping_add(1);
            memory.set(ANSWERED, turn);
        } else {
            memory.wait(WRITTEN, |written| written != turn);
            // SAFETY: the slot is ours until we say that it is read: the writer has announced it. Both are of this size.
            unsafe {
                memory
                    .slot(turn)
                    .copy_to_nonoverlapping(into.as_mut_ptr(), CHUNK)
            };
            std::hint::black_box(&into);
            turn = turn.wrapping_add(1);
            memory.set(READ, turn);
        }
    }
}
