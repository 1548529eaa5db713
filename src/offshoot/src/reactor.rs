//! Readiness of file descriptors, for the one isolate that owns it: `mio`, made on first use.
//!
//! An isolate without I/O has no file descriptor at all; see `Local::sleep`.

use crate::isolate::local::Local;
use crate::scope::{ScopeWatch, cancelled_error};
use mio::event::Source;
use mio::{Events, Interest, Poll, Registry, Token, Waker as MioWaker};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll as TaskPoll, Waker};
use std::time::Duration;

const WAKE: Token = Token(usize::MAX);

/// What is known of one descriptor.
pub(crate) struct Readiness {
    readable: Cell<bool>,
    writable: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Readiness {
    /// True if it may be readable; stays so until a read would block.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable.get()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable.get()
    }

    pub(crate) fn clear_readable(&self) {
        self.readable.set(false);
    }

    pub(crate) fn clear_writable(&self) {
        self.writable.set(false);
    }
}

pub(crate) struct Reactor {
    poll: RefCell<Poll>,
    events: RefCell<Events>,
    registry: Registry,
    sources: RefCell<Slab<Rc<Readiness>>>,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<(Reactor, MioWaker)> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = MioWaker::new(&registry, WAKE)?;
        let reactor = Reactor {
            poll: RefCell::new(poll),
            events: RefCell::new(Events::with_capacity(256)),
            registry,
            sources: RefCell::default(),
        };
        Ok((reactor, waker))
    }

    /// Waits for readiness, for no longer than `timeout`, and wakes whoever waited for it.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut events = self.events.borrow_mut();
        if let Err(error) = self.poll.borrow_mut().poll(&mut events, timeout) {
            if error.kind() != io::ErrorKind::Interrupted {
                tracing::error!(%error, "cannot wait for readiness");
            }
            return;
        }
        for event in events.iter().filter(|event| event.token() != WAKE) {
            let Some(readiness) = self.sources.borrow().get(event.token().0).cloned() else {
                continue;
            };
            // Errors and hang-ups are for the next read or write to find.
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                readiness.readable.set(true);
                if let Some(waker) = readiness.reader.borrow_mut().take() {
                    waker.wake();
                }
            }
            if event.is_writable() || event.is_write_closed() || event.is_error() {
                readiness.writable.set(true);
                if let Some(waker) = readiness.writer.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }

    pub(crate) fn register(&self, source: &mut impl Source) -> io::Result<(usize, Rc<Readiness>)> {
        // Taken for ready until the first attempt says otherwise.
        let readiness = Rc::new(Readiness {
            readable: Cell::new(true),
            writable: Cell::new(true),
            reader: RefCell::new(None),
            writer: RefCell::new(None),
        });
        let key = self.sources.borrow_mut().insert(readiness.clone());
        if let Err(error) =
            self.registry
                .register(source, Token(key), Interest::READABLE | Interest::WRITABLE)
        {
            self.sources.borrow_mut().remove(key);
            return Err(error);
        }
        Ok((key, readiness))
    }

    fn deregister(&self, source: &mut impl Source, key: usize) {
        // Failing means that the kernel has forgotten it already.
        let _ = self.registry.deregister(source);
        self.sources.borrow_mut().try_remove(key);
    }
}

/// A descriptor that is registered with the isolate on whose thread it was made.
///
/// Each operation is a checkpoint: inside of a cancelled scope it fails with an error that
/// [`Error::from`](crate::Error) turns back into the cancellation.
pub(crate) struct Registered<S: Source> {
    source: S,
    key: usize,
    readiness: Rc<Readiness>,
    local: Rc<Local>,
    read_watch: RefCell<ScopeWatch>,
    write_watch: RefCell<ScopeWatch>,
}

#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl<S: Source> Registered<S> {
    /// Registers it with the current isolate.
    pub(crate) fn new(mut source: S) -> io::Result<Registered<S>> {
        let local = Local::try_current().ok_or_else(|| {
            io::Error::other("offshoot's I/O types work on an isolate only: make them inside of a call, a method or a nursery")
        })?;
        let (key, readiness) = local.reactor()?.register(&mut source)?;
        Ok(Registered {
            source,
            key,
            readiness,
            local,
            read_watch: RefCell::default(),
            write_watch: RefCell::default(),
        })
    }

    pub(crate) fn get(&self) -> &S {
        &self.source
    }

    /// Tries `operation` until it does not block; otherwise the task is woken when it may succeed.
    pub(crate) fn poll_with<T>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut operation: impl FnMut(&S) -> io::Result<T>,
    ) -> TaskPoll<io::Result<T>> {
        let (watch, ready, slot) = match direction {
            Direction::Read => (
                &self.read_watch,
                &self.readiness.readable,
                &self.readiness.reader,
            ),
            Direction::Write => (
                &self.write_watch,
                &self.readiness.writable,
                &self.readiness.writer,
            ),
        };
        if let TaskPoll::Ready(cancel) = watch.borrow_mut().poll(cx) {
            return TaskPoll::Ready(Err(io::Error::other(cancelled_error(cancel))));
        }
        while ready.get() {
            match operation(&self.source) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.set(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    *watch.borrow_mut() = ScopeWatch::default();
                    return TaskPoll::Ready(result);
                }
            }
        }
        *slot.borrow_mut() = Some(cx.waker().clone());
        TaskPoll::Pending
    }
}

impl<S: Source> Drop for Registered<S> {
    fn drop(&mut self) {
        if let Some(reactor) = self.local.existing_reactor() {
            reactor.deregister(&mut self.source, self.key);
        }
    }
}
