//! One direction of a dialogue between threads: values move, nothing is encoded.

use crate::Error;
use crate::isolate::panics::DropEach;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

pub(crate) struct Channel<T> {
    state: Mutex<State<T>>,
    window: usize,
}

struct State<T> {
    queue: DropEach<VecDeque<T>>,
    /// The sender sends nothing more, perhaps for this reason.
    ended: Option<Result<(), Error>>,
    /// The receiver takes nothing more.
    deaf: bool,
    /// The receiver has taken something.
    read: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What a receiver finds.
pub(crate) enum Found<T> {
    Item(T),
    End(Result<(), Error>),
    Nothing,
}

impl<T> Channel<T> {
    pub(crate) fn new(window: u32) -> Channel<T> {
        Channel {
            state: Mutex::new(State {
                queue: DropEach::default(),
                ended: None,
                deaf: false,
                read: false,
                reader: None,
                writer: None,
            }),
            window: usize::try_from(window).unwrap_or(usize::MAX),
        }
    }

    /// Takes the next item; otherwise, with a waker, woken when there is one.
    pub(crate) fn take(&self, waker: Option<&Waker>) -> Found<T> {
        let mut state = self.state.lock();
        if let Some(item) = state.queue.pop_front() {
            state.read = true;
            // Woken at half of the window, so that a fast sender is not woken for each item.
            let writer = if state.queue.len() <= self.window / 2 {
                state.writer.take()
            } else {
                None
            };
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Found::Item(item);
        }
        if let Some(how) = &state.ended {
            return Found::End(how.clone());
        }
        if let Some(waker) = waker {
            register(&mut state.reader, waker);
        }
        Found::Nothing
    }

    /// Ready when an item may be put in, or when nobody takes one any more.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.deaf || state.queue.len() < self.window {
            return Poll::Ready(());
        }
        register(&mut state.writer, cx.waker());
        Poll::Pending
    }

    /// Puts an item in. Without room it comes back, unless `displace`: then the oldest does.
    pub(crate) fn put(&self, item: T, displace: bool) -> Result<(), T> {
        let mut state = self.state.lock();
        let full = state.queue.len() >= self.window;
        if full && !displace {
            return Err(item);
        }
        let oldest = if full { state.queue.pop_front() } else { None };
        state.queue.push_back(item);
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        oldest.map_or(Ok(()), Err)
    }

    pub(crate) fn is_deaf(&self) -> bool {
        self.state.lock().deaf
    }

    /// How many items nobody has taken, and whether any was ever taken.
    pub(crate) fn unread(&self) -> (usize, bool) {
        let state = self.state.lock();
        (state.queue.len(), state.read)
    }

    /// Nothing more is put in. The first word counts.
    pub(crate) fn end(&self, how: Result<(), Error>) {
        let reader = {
            let mut state = self.state.lock();
            state.ended.get_or_insert(how);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Nothing more is taken out. What is in it is dropped, outside of the lock.
    pub(crate) fn deafen(&self) {
        let (queue, writer) = {
            let mut state = self.state.lock();
            state.deaf = true;
            (std::mem::take(&mut state.queue), state.writer.take())
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        drop(queue);
    }
}

/// Keeps a waker that wakes the same task, rather than cloning it again.
pub(crate) fn register(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(old) => old.clone_from(waker),
        None => *slot = Some(waker.clone()),
    }
}
