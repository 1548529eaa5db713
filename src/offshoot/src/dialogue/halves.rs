//! The two directions of a dialogue, as either side holds them.

use super::channel::{Channel, Found};
use super::remote::Remote;
use super::tie::{Role, Tie, TieWatch};
use super::{Overflow, is_orderly, overrun};
use crate::isolate::local::Local;
use crate::life::Watch;
use crate::portal::{block_on, decode, through_serde};
use crate::scope::{Scope, SendWatch, cancelled_error, poll_refusal};
use crate::{Error, ErrorKind, Payload, Result};
use futures_core::Stream;
use futures_sink::Sink;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The way of one direction.
pub(crate) enum Way<T> {
    /// Between threads; through its encoding, where the tree asks for that.
    Local(Arc<Channel<T>>, bool),
    /// Over a link.
    Remote(Arc<Remote>),
}

impl<T> Way<T> {
    /// Nothing more is sent, perhaps for this reason.
    pub(super) fn end(&self, how: Result<()>) {
        match self {
            Way::Local(channel, _) => channel.end(how),
            Way::Remote(remote) => remote.end_sending(how),
        }
    }

    /// Nothing more is taken.
    pub(super) fn deafen(&self) {
        match self {
            Way::Local(channel, _) => channel.deafen(),
            Way::Remote(remote) => remote.deafen(),
        }
    }
}

impl<T> Clone for Way<T> {
    fn clone(&self) -> Way<T> {
        match self {
            Way::Local(channel, serde) => Way::Local(channel.clone(), *serde),
            Way::Remote(remote) => Way::Remote(remote.clone()),
        }
    }
}

/// What ends a wait beside what is waited for.
struct Waits {
    role: Role,
    tie: TieWatch,
    scope: SendWatch,
    /// Of the other side's isolate, which an abandoned thread ends without another word.
    life: Watch,
}

impl Waits {
    fn new(tie: &Arc<Tie>, role: Role) -> Waits {
        Waits {
            role,
            tie: TieWatch::new(tie),
            scope: SendWatch::default(),
            life: Watch::new(tie.far.clone()),
        }
    }

    /// Fails once the scope in which this is polled is cancelled.
    fn check_scope(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(cancel) = Scope::current().and_then(|scope| scope.cancelled()) {
            ready!(poll_refusal(cx));
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        Poll::Ready(Ok(()))
    }

    /// Ready with what ends the wait; with `Ok` if the far task has returned.
    fn poll(&mut self, cx: &mut Context<'_>, taking: bool) -> Poll<Result<()>> {
        let role = self.role;
        if self.scope.poll(cx).is_ready() {
            // Looked at again, with the refusal that it may need.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let changed = self.tie.poll(cx, |state| {
            let cancelled =
                state.parted.is_some() || (state.halt.is_some() && (role == Role::Peer || !taking));
            (cancelled || state.over.is_some()).then(|| state.over.clone())
        });
        if let Poll::Ready(over) = changed {
            if let Some(error) = self.tie.tie().stop(role, taking) {
                return Poll::Ready(Err(error));
            }
            return Poll::Ready(over.unwrap_or(Ok(())));
        }
        if role == Role::Opener && self.life.poll(cx, |life| life.exit().is_some()).is_ready() {
            // What was said before the end counts.
            let over = self.tie.tie().look(|state| state.over.clone());
            return Poll::Ready(over.unwrap_or_else(|| Err(self.life.life().gone())));
        }
        Poll::Pending
    }

    /// Misuse, of a peer that has not begun.
    fn check_started(&self) -> Result<()> {
        if self.role == Role::Opener || self.tie.tie().is_started() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Misuse,
            "a dialogue begins with `started`: call it on the peer before anything is sent or taken",
        ))
    }

    /// Misuse, of a wait that nothing can end: an isolate that is not a blocking one reads for its peers in the
    /// loop that the wait would stop.
    pub(super) fn check_blocking(&self) -> Result<()> {
        let stuck = Local::try_current().is_some_and(|local| !local.is_blocking());
        if self.role == Role::Peer && stuck {
            return Err(Error::new(
                ErrorKind::Misuse,
                "the blocking twins of a peer work in a blocking isolate and off the runtime: await it here, or start \
                 the isolate with `Isolate::blocking`",
            ));
        }
        Ok(())
    }
}

/// What comes from the other side of a dialogue.
///
/// A [`Stream`]; also each [`next`](Incoming::next) by itself. Dropping it tells the other side that nothing is
/// taken any more, whose sends then fail with [`Error::is_closed`].
#[must_use = "dropping it tells the other side that nothing is taken any more"]
pub struct Incoming<T: Payload> {
    way: Way<T>,
    waits: Waits,
    failed: Option<Error>,
}

impl<T: Payload> Incoming<T> {
    pub(super) fn new(way: Way<T>, tie: &Arc<Tie>, role: Role) -> Incoming<T> {
        Incoming {
            way,
            waits: Waits::new(tie, role),
            failed: None,
        }
    }

    /// The next item; `None` once the other side has closed its half, or its function has returned, and all that it
    /// sent was taken.
    ///
    /// # Cancellation
    /// A checkpoint. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// The dialogue was cancelled, with its author; the far isolate or task ended otherwise than by a return; the
    /// item cannot be decoded, which costs this item only.
    // Not the iterator's: it is awaited.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> NextItem<'_, T> {
        NextItem { incoming: self }
    }

    /// [`next`](Incoming::next) for code that is not async.
    ///
    /// # Blocking
    /// Until there is an item, or none can come.
    ///
    /// # Errors
    /// As of [`next`](Incoming::next); misuse for a peer on an isolate that is not a blocking one.
    pub fn next_blocking(&mut self) -> Result<Option<T>> {
        self.waits.check_blocking()?;
        block_on(self.next())
    }

    fn take(&self, cx: Option<&Context<'_>>) -> Found<Result<T>> {
        let waker = cx.map(Context::waker);
        match &self.way {
            Way::Local(channel, _) => match channel.take(waker) {
                Found::Item(item) => Found::Item(Ok(item)),
                Found::End(how) => Found::End(how),
                Found::Nothing => Found::Nothing,
            },
            Way::Remote(remote) => match remote.take(waker) {
                Found::Item(parcel) => Found::Item(parcel.open(decode)),
                Found::End(how) => Found::End(how),
                Found::Nothing => Found::Nothing,
            },
        }
    }

    pub(super) fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        if let Err(error) = ready!(self.waits.check_scope(cx)) {
            return Poll::Ready(Some(Err(error)));
        }
        if let Err(error) = self.waits.check_started() {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(error) = self.waits.tie.tie().stop(self.waits.role, true) {
            return Poll::Ready(Some(Err(error)));
        }
        for looked in [None, Some(&*cx)] {
            match self.take(looked) {
                Found::Item(item) => return Poll::Ready(Some(item)),
                Found::End(how) => return Poll::Ready(how.err().map(Err)),
                Found::Nothing => {}
            }
        }
        let end = ready!(self.waits.poll(cx, true));
        // It may have been sent between the look and the end.
        match (self.take(None), end) {
            (Found::Item(item), _) => Poll::Ready(Some(item)),
            (Found::End(how), _) => Poll::Ready(how.err().map(Err)),
            (Found::Nothing, Ok(())) => Poll::Ready(None),
            (Found::Nothing, Err(error)) => Poll::Ready(Some(Err(error))),
        }
    }

    /// Takes and drops all that is there.
    pub(super) fn discard(&mut self, cx: &Context<'_>) {
        while let Found::Item(_) = self.take(Some(cx)) {}
    }
}

impl<T: Payload> Drop for Incoming<T> {
    fn drop(&mut self) {
        let tie = self.waits.tie.tie();
        if is_orderly() && !tie.defer(|deferred| deferred.deaf = true) {
            self.way.deafen();
        }
    }
}

impl<T: Payload> Stream for Incoming<T> {
    type Item = Result<T>;

    /// As [`next`](Incoming::next). A stream ends after an error that is not of one item alone.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let this = self.get_mut();
        if this.failed.is_some() {
            return Poll::Ready(None);
        }
        let item = ready!(this.poll_item(cx));
        if let Some(Err(error)) = &item
            && !matches!(error.kind(), ErrorKind::Codec)
        {
            this.failed = Some(error.clone());
        }
        Poll::Ready(item)
    }
}

impl<T: Payload> Unpin for Incoming<T> {}

impl<T: Payload> std::fmt::Debug for Incoming<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("with", self.waits.tie.tie().far.identity())
            .finish_non_exhaustive()
    }
}

/// The future of [`Incoming::next`].
#[must_use = "nothing is taken unless it is awaited"]
pub struct NextItem<'a, T: Payload> {
    incoming: &'a mut Incoming<T>,
}

impl<T: Payload> Future for NextItem<'_, T> {
    type Output = Result<Option<T>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Option<T>>> {
        self.get_mut().incoming.poll_item(cx).map(Option::transpose)
    }
}

impl<T: Payload> std::fmt::Debug for NextItem<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NextItem").field(self.incoming).finish()
    }
}

/// What goes to the other side of a dialogue.
///
/// A [`Sink`]; also each [`send`](Outgoing::send) by itself. Dropping it closes it, unless a panic or a cancellation
/// drops it: then the other side is told of that.
#[must_use = "dropping it closes this half"]
pub struct Outgoing<T: Payload> {
    way: Way<T>,
    waits: Waits,
    overflow: Overflow,
    dropped: u64,
    closed: bool,
}

impl<T: Payload> Outgoing<T> {
    pub(super) fn new(way: Way<T>, tie: &Arc<Tie>, role: Role) -> Outgoing<T> {
        Outgoing {
            way,
            waits: Waits::new(tie, role),
            overflow: Overflow::Wait,
            dropped: 0,
            closed: false,
        }
    }

    /// Sends an item. Ready when there was room for it, not when it was taken.
    ///
    /// # Cancellation
    /// A checkpoint. Dropped while it waits, the item is not sent; what was accepted is delivered in order.
    ///
    /// # Errors
    /// The other side takes nothing any more, or this half is closed ([`Error::is_closed`]); the dialogue was
    /// cancelled, with its author; the far isolate has ended; the item cannot be encoded; with
    /// [`Overflow::Error`], there is no room.
    pub fn send(&mut self, item: T) -> SendItem<'_, T> {
        SendItem {
            outgoing: self,
            item: Some(item),
        }
    }

    /// [`send`](Outgoing::send) for code that is not async.
    ///
    /// # Blocking
    /// Until there is room.
    ///
    /// # Errors
    /// As of [`send`](Outgoing::send); misuse for a peer on an isolate that is not a blocking one.
    pub fn send_blocking(&mut self, item: T) -> Result<()> {
        self.waits.check_blocking()?;
        block_on(self.send(item))
    }

    /// Sends nothing more. The other side takes what was sent, then sees the end. Never waits.
    pub fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) || !self.waits.tie.tie().is_started() {
            return;
        }
        self.way.end(Ok(()));
    }

    /// What to do when the other side is a whole window behind; [`Overflow::Wait`] unless set.
    pub fn set_overflow(&mut self, overflow: Overflow) {
        self.overflow = overflow;
    }

    /// How many items were dropped for want of room, by [`Overflow::DropOldest`] and [`Overflow::DropNewest`].
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_deaf(&self) -> bool {
        match &self.way {
            Way::Local(channel, _) => channel.is_deaf(),
            Way::Remote(remote) => remote.is_deaf(),
        }
    }

    /// Why nothing can be sent any more, if that is so.
    fn check(&self) -> Result<()> {
        self.waits.check_started()?;
        let tie = self.waits.tie.tie();
        if let Some(error) = tie.stop(self.waits.role, false) {
            return Err(error);
        }
        if self.closed {
            return Err(tie.closed("this half of it is closed"));
        }
        if self.is_deaf() {
            return Err(tie.closed("the other side takes nothing any more"));
        }
        Ok(())
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Err(error) = ready!(self.waits.check_scope(cx)) {
            return Poll::Ready(Err(error));
        }
        self.check()?;
        if self.overflow != Overflow::Wait {
            return Poll::Ready(Ok(()));
        }
        let room = match &self.way {
            Way::Local(channel, _) => channel.poll_room(cx),
            Way::Remote(remote) => remote.poll_room(cx),
        };
        if room.is_ready() {
            // Also when nobody takes anything any more.
            return Poll::Ready(self.check());
        }
        match ready!(self.waits.poll(cx, false)) {
            Err(error) => Poll::Ready(Err(error)),
            Ok(()) => Poll::Ready(self.check()),
        }
    }

    fn put(&mut self, item: T) -> Result<()> {
        let dropped = match &self.way {
            Way::Remote(remote) => remote.put(&item, self.overflow)?,
            Way::Local(channel, serde) => {
                let item = through_serde(item, *serde)?;
                match (
                    channel.put(item, self.overflow == Overflow::DropOldest),
                    self.overflow,
                ) {
                    (Ok(()), _) => false,
                    (Err(_), Overflow::DropOldest | Overflow::DropNewest) => true,
                    (Err(_), Overflow::Wait | Overflow::Error) => {
                        let (unread, read) = channel.unread();
                        return Err(overrun(self.waits.tie.tie(), self.waits.role, unread, read));
                    }
                }
            }
        };
        self.dropped += u64::from(dropped);
        Ok(())
    }
}

impl<T: Payload> Drop for Outgoing<T> {
    fn drop(&mut self) {
        let tie = self.waits.tie.tie();
        if is_orderly() && !self.closed && !tie.defer(|deferred| deferred.end = true) {
            self.close();
        }
    }
}

impl<T: Payload> Sink<T> for Outgoing<T> {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_room(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: T) -> Result<()> {
        let this = self.get_mut();
        this.check()?;
        this.put(item)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        // What was accepted is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().close();
        Poll::Ready(Ok(()))
    }
}

impl<T: Payload> Unpin for Outgoing<T> {}

impl<T: Payload> std::fmt::Debug for Outgoing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing")
            .field("with", self.waits.tie.tie().far.identity())
            .field("overflow", &self.overflow)
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

/// The future of [`Outgoing::send`].
#[must_use = "nothing is sent unless it is awaited"]
pub struct SendItem<'a, T: Payload> {
    outgoing: &'a mut Outgoing<T>,
    item: Option<T>,
}

impl<T: Payload> Unpin for SendItem<'_, T> {}

impl<T: Payload> Future for SendItem<'_, T> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.outgoing.poll_room(cx))?;
        match this.item.take() {
            Some(item) => Poll::Ready(this.outgoing.put(item)),
            None => Poll::Ready(Err(Error::new(
                ErrorKind::Misuse,
                "a send was polled again after it was ready",
            ))),
        }
    }
}

impl<T: Payload> std::fmt::Debug for SendItem<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SendItem").field(self.outgoing).finish()
    }
}
