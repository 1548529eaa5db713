//! Readiness of file descriptors, for the one isolate that owns it: `mio`, made on first use.
//!
//! An isolate without I/O has no file descriptor at all; see `Local::sleep`.

use crate::isolate::local::Local;
use crate::scope::{Scope, ScopeWatch, cancelled_error, poll_refusal};
use crate::testing::places;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker as MioWaker};
use offshoot_sys::event::EventFd;
use offshoot_sys::socket::Held;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll as TaskPoll, Waker};
use std::time::Duration;

const WAKE: Token = Token(usize::MAX);

/// How many operations of one descriptor in a row may succeed before its task lets others run: a
/// peer that is always faster must not keep the isolate from its other work or its cancellation.
const STREAK: u32 = 128;

/// One direction of a descriptor.
struct Side {
    /// It may be ready; stays so until an attempt would block.
    ready: Cell<bool>,
    /// Whoever polled last, of those who poll without a future of ours.
    polling: RefCell<Option<Waker>>,
    /// Those who await an operation, any number.
    waiting: RefCell<Slab<Waker>>,
}

impl Side {
    fn new() -> Side {
        Side {
            // Taken for ready until the first attempt says otherwise.
            ready: Cell::new(true),
            polling: RefCell::new(None),
            waiting: RefCell::default(),
        }
    }

    fn wake(&self) {
        self.ready.set(true);
        // Woken outside of the borrow: a waker is the program's code and may come back here.
        let polling = self.polling.borrow_mut().take();
        let waiting: Vec<Waker> = self
            .waiting
            .borrow()
            .iter()
            .map(|(_, waker)| waker.clone())
            .collect();
        polling.into_iter().for_each(Waker::wake);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// What is known of one descriptor.
pub(crate) struct Readiness {
    read: Side,
    write: Side,
    /// The other end was seen to be closed, which an event says once.
    read_closed: Cell<bool>,
    streak: Cell<u32>,
}

impl Readiness {
    /// True if it may be readable; stays so until a read would block.
    pub(crate) fn is_readable(&self) -> bool {
        self.read.ready.get()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.write.ready.get()
    }

    /// True once an event has said that the other end is closed, or broken.
    pub(crate) fn is_read_closed(&self) -> bool {
        self.read_closed.get()
    }

    pub(crate) fn clear_readable(&self) {
        self.read.ready.set(false);
    }

    pub(crate) fn clear_writable(&self) {
        self.write.ready.set(false);
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
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
        let reactor = Reactor::bare()?;
        let waker = offshoot_sys::standard::make_above(|| MioWaker::new(&reactor.registry, WAKE))?;
        Ok((reactor, waker))
    }

    /// One that is woken by an event of which others know already.
    pub(crate) fn woken_by(event: &EventFd) -> io::Result<Reactor> {
        let reactor = Reactor::bare()?;
        let fd = event.as_fd().as_raw_fd();
        reactor
            .registry
            .register(&mut SourceFd(&fd), WAKE, Interest::READABLE)?;
        Ok(reactor)
    }

    fn bare() -> io::Result<Reactor> {
        let poll = offshoot_sys::standard::make_above(Poll::new)?;
        let registry = poll.registry().try_clone()?;
        Ok(Reactor {
            poll: RefCell::new(poll),
            events: RefCell::new(Events::with_capacity(256)),
            registry,
            sources: RefCell::default(),
        })
    }

    /// The number of its descriptor, which is readable while anything is ready.
    pub(crate) fn fd(&self) -> RawFd {
        self.poll.borrow().as_raw_fd()
    }

    /// Waits for readiness, for no longer than `timeout`, and wakes whoever waited for it.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let mut events = self.events.borrow_mut();
        if let Err(error) = self.poll.borrow_mut().poll(&mut events, timeout) {
            if error.kind() != io::ErrorKind::Interrupted {
                crate::log::error!(%error, "cannot wait for readiness");
            }
            return;
        }
        for event in events.iter().filter(|event| event.token() != WAKE) {
            let Some(readiness) = self.sources.borrow().get(event.token().0).cloned() else {
                continue;
            };
            // Errors and hang-ups are for the next read or write to find.
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                let closed = event.is_read_closed() || event.is_error();
                readiness
                    .read_closed
                    .set(readiness.read_closed.get() || closed);
                readiness.read.wake();
            }
            if event.is_writable() || event.is_write_closed() || event.is_error() {
                readiness.write.wake();
            }
        }
    }

    pub(crate) fn register(
        &self,
        source: &mut impl Source,
        interest: Interest,
    ) -> io::Result<(usize, Rc<Readiness>)> {
        let readiness = Rc::new(Readiness {
            read: Side::new(),
            write: Side::new(),
            read_closed: Cell::new(false),
            streak: Cell::new(0),
        });
        let key = self.sources.borrow_mut().insert(readiness.clone());
        if let Err(error) = self.registry.register(source, Token(key), interest) {
            self.sources.borrow_mut().remove(key);
            return Err(error);
        }
        Ok((key, readiness))
    }

    /// Watches for something else from now on. What is so already makes an event.
    pub(crate) fn reregister(
        &self,
        source: &mut impl Source,
        key: usize,
        interest: Interest,
    ) -> io::Result<()> {
        self.registry.reregister(source, Token(key), interest)
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
pub(crate) struct Registered<S: AsFd> {
    /// Taken away if the isolate is abandoned.
    source: Held<S>,
    key: usize,
    readiness: Rc<Readiness>,
    local: Rc<Local>,
    read_watch: RefCell<ScopeWatch>,
    write_watch: RefCell<ScopeWatch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

impl<S: AsFd> Registered<S> {
    /// Registers it with the current isolate.
    pub(crate) fn new(source: S) -> io::Result<Registered<S>> {
        let local = Local::try_current().ok_or_else(|| {
            io::Error::other("offshoot's I/O types work on an isolate only: make them inside of a call, a method or a nursery")
        })?;
        let source = Held::new(&local.shared.sockets, source)?;
        let fd = source.as_fd().as_raw_fd();
        places::made(fd);
        let (key, readiness) = local
            .reactor()?
            .register(&mut SourceFd(&fd), Interest::READABLE | Interest::WRITABLE)
            .inspect_err(|_| places::closed(fd))?;
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
    ///
    /// For implementations of traits that poll: of several tasks that poll the same direction only
    /// the last is woken. [`Registered::operate`] has no such limit.
    pub(crate) fn poll_with<T>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        operation: impl FnMut(&S) -> io::Result<T>,
    ) -> TaskPoll<io::Result<T>> {
        let watch = match direction {
            Direction::Read => &self.read_watch,
            Direction::Write => &self.write_watch,
        };
        let result = self.attempt(cx, direction, &mut watch.borrow_mut(), operation);
        if result.is_pending() {
            let waker = Some(cx.waker().clone());
            drop(self.readiness.side(direction).polling.replace(waker));
        }
        result
    }

    /// As [`Registered::poll_with`], as a future. Any number of tasks may wait in each direction.
    pub(crate) fn operate<T, F>(&self, direction: Direction, operation: F) -> Operation<'_, S, F>
    where
        F: FnMut(&S) -> io::Result<T>,
    {
        Operation {
            registered: self,
            direction,
            operation,
            watch: ScopeWatch::default(),
            place: None,
        }
    }

    /// Leaves the waker to the caller if it is pending.
    fn attempt<T>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        watch: &mut ScopeWatch,
        mut operation: impl FnMut(&S) -> io::Result<T>,
    ) -> TaskPoll<io::Result<T>> {
        // Watched only if it has to wait. The descriptor may be used in many scopes, and the one
        // that counts is the one in which it is used now.
        *watch = ScopeWatch::default();
        if let Some(cancel) = Scope::current().and_then(|scope| scope.cancelled()) {
            std::task::ready!(poll_refusal(cx));
            return TaskPoll::Ready(Err(cancelled_error(cancel).into()));
        }
        let Readiness { streak, .. } = &*self.readiness;
        if streak.get() >= STREAK {
            streak.set(0);
            cx.waker().wake_by_ref();
            return TaskPoll::Pending;
        }
        let ready = &self.readiness.side(direction).ready;
        while ready.get() {
            match operation(&self.source) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.set(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    streak.set(streak.get() + 1);
                    return TaskPoll::Ready(result);
                }
            }
        }
        streak.set(0);
        match watch.poll(cx) {
            TaskPoll::Ready(cancel) => TaskPoll::Ready(Err(cancelled_error(cancel).into())),
            TaskPoll::Pending => TaskPoll::Pending,
        }
    }
}

impl<S: AsFd> Drop for Registered<S> {
    fn drop(&mut self) {
        places::closed(self.source.as_fd().as_raw_fd());
        if let Some(reactor) = self.local.existing_reactor() {
            let fd = self.source.as_fd().as_raw_fd();
            reactor.deregister(&mut SourceFd(&fd), self.key);
        }
    }
}

/// The future of [`Registered::operate`]. Nothing is lost if it is dropped: an operation is done
/// when it is ready, or not at all.
pub(crate) struct Operation<'a, S: AsFd, F> {
    registered: &'a Registered<S>,
    direction: Direction,
    operation: F,
    watch: ScopeWatch,
    place: Option<usize>,
}

// Nothing in it is pinned; the operation is only called.
impl<S: AsFd, F> Unpin for Operation<'_, S, F> {}

impl<S: AsFd, T, F: FnMut(&S) -> io::Result<T>> Future for Operation<'_, S, F> {
    type Output = io::Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> TaskPoll<io::Result<T>> {
        let this = self.get_mut();
        let result =
            this.registered
                .attempt(cx, this.direction, &mut this.watch, &mut this.operation);
        if result.is_pending() {
            let mut waiting = this
                .registered
                .readiness
                .side(this.direction)
                .waiting
                .borrow_mut();
            match this.place {
                Some(place) => waiting[place].clone_from(cx.waker()),
                None => this.place = Some(waiting.insert(cx.waker().clone())),
            }
        }
        result
    }
}

impl<S: AsFd, F> Drop for Operation<'_, S, F> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let side = self.registered.readiness.side(self.direction);
            let waker = side.waiting.borrow_mut().try_remove(place);
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isolate, nursery, timeout};

    #[test]
    fn what_is_dropped_leaves_no_entry() {
        async fn look() {
            let (one, _other) = mio::net::UnixStream::pair().expect("a pair");
            let one = Registered::new(one).expect("a registration");
            let local = Local::try_current().expect("an isolate");
            let reactor = local.existing_reactor().expect("its poll");
            let entries = || reactor.sources.borrow().len();
            let before = entries();
            {
                let (three, _four) = mio::net::UnixStream::pair().expect("a pair");
                let _three = Registered::new(three).expect("a registration");
                assert_eq!(entries(), before + 1);
            }
            assert_eq!(entries(), before);
            // Awaited, and given up.
            let read = one.operate(Direction::Read, |_| blocked());
            assert!(timeout(Duration::ZERO, read).await.is_err());
            assert!(one.readiness.read.waiting.borrow().is_empty());
        }
        fn blocked() -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        crate::run(async || {
            nursery(async |nursery| {
                let other = nursery.spawn(Isolate::named("other").thread()).await?;
                other.call(look, ()).await
            })
            .await
        })
        .expect("nothing is left");
    }
}
