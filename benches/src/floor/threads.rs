//! Floors within one process: threads, parked threads, channels, eventfds.

use offshoot_sys::futex;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

/// Two words on which two threads wait in turns.
#[derive(Default)]
struct Words {
    ask: AtomicU32,
    answer: AtomicU32,
}

/// A thread that is parked on a futex, answers when it is woken, and parks again.
#[derive(Debug)]
pub struct Parked {
    words: Arc<Words>,
    turn: u32,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Words")
    }
}

/// The turn that ends the thread.
const OVER: u32 = u32::MAX;

fn wait_while(word: &AtomicU32, value: u32) -> u32 {
    loop {
        let now = word.load(Ordering::Acquire);
        if now != value {
            return now;
        }
        futex::wait(word, value, None);
    }
}

impl Parked {
    /// Starts it.
    pub fn start() -> Parked {
        let words = Arc::new(Words::default());
        let theirs = words.clone();
        let thread = std::thread::spawn(move || {
            let mut turn = 0;
            loop {
                turn = wait_while(&theirs.ask, turn);
                if turn == OVER {
                    return;
                }
                theirs.answer.store(turn, Ordering::Release);
                futex::wake_one(&theirs.answer);
            }
        });
        Parked {
            words,
            turn: 0,
            thread: Some(thread),
        }
    }

    /// Wakes it and waits, asleep, for its answer.
    pub fn wake(&mut self) {
        let before = self.turn;
        self.turn = before.wrapping_add(1) % OVER;
        self.words.ask.store(self.turn, Ordering::Release);
        futex::wake_one(&self.words.ask);
        wait_while(&self.words.answer, before);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.words.ask.store(OVER, Ordering::Release);
        futex::wake_one(&self.words.ask);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Two eventfds by which two threads wake each other.
#[derive(Debug)]
pub struct EventFds {
    ask: Option<File>,
    answer: File,
    thread: Option<JoinHandle<()>>,
}

fn event_fd() -> std::io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl EventFds {
    /// Starts the other thread.
    ///
    /// # Errors
    /// When there are no descriptors.
    pub fn start() -> std::io::Result<EventFds> {
        let (ask, answer) = (File::from(event_fd()?), File::from(event_fd()?));
        let (mut asked, mut answers) = (ask.try_clone()?, answer.try_clone()?);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 8];
            while asked.read_exact(&mut buffer).is_ok() {
                if u64::from_ne_bytes(buffer) != 1 || answers.write_all(&buffer).is_err() {
                    return;
                }
            }
        });
        Ok(EventFds {
            ask: Some(ask),
            answer,
            thread: Some(thread),
        })
    }

    /// One round trip.
    ///
    /// # Errors
    /// None that is known.
    pub fn ping(&mut self) -> std::io::Result<()> {
        let mut buffer = 1_u64.to_ne_bytes();
        if let Some(ask) = &mut self.ask {
            ask.write_all(&buffer)?;
        }
        self.answer.read_exact(&mut buffer)
    }
}

impl Drop for EventFds {
    fn drop(&mut self) {
        if let Some(mut ask) = self.ask.take() {
            // Not 1: the end.
            let _ = ask.write_all(&2_u64.to_ne_bytes());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_thread_answers_each_time_and_ends() {
        let mut parked = Parked::start();
        for turn in 1..=100 {
            parked.wake();
            assert_eq!(parked.words.answer.load(Ordering::Relaxed), turn);
        }
    }

    #[test]
    fn eventfds_go_round_and_end() {
        let mut event = EventFds::start().unwrap();
        for _ in 0..100 {
            event.ping().unwrap();
        }
    }
}
