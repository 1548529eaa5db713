//! A dialogue as the function sees it that was opened.

use super::Overflow;
use super::far::Put;
use super::halves::{Incoming, NextItem, Outgoing, SendItem};
use super::tie::{Tie, TieWatch};
use crate::life::Watch;
use crate::{Error, ErrorKind, Payload, Result};
use futures_core::Stream;
use futures_sink::Sink;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The other side of a [`Link`](super::Link): the first argument of a function that is opened.
///
/// `In` is what it takes, `Out` what it sends, `First` what it begins with.
///
/// ```
/// use offshoot::prelude::*;
///
/// async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
///     peer.started(())?;
///     let mut sum = 0;
///     while let Some(n) = peer.next().await? {
///         peer.send(2 * n).await?;
///         sum += n;
///     }
///     Ok(sum)
/// }
///
/// # offshoot::run(async || {
/// offshoot::nursery(async |nursery| {
///     let farm = nursery.spawn("farm").await?;
///     let (mut link, ()) = farm.open(doubler, ()).await?;
///     for n in 1..=3 {
///         link.send(n).await?;
///         assert_eq!(link.next().await?, Some(2 * n));
///     }
///     assert_eq!(link.result().await??, 6);
///     Ok(())
/// })
/// .await
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
///
/// When its task returns, the dialogue is over, wherever this is by then.
#[must_use = "dropping it closes both of its halves"]
pub struct Peer<In: Payload, Out: Payload, First: Payload = ()> {
    outgoing: Outgoing<Out>,
    incoming: Incoming<In>,
    first: Option<Put<First>>,
    tie: Arc<Tie>,
}

impl<In: Payload, Out: Payload, First: Payload> Peer<In, Out, First> {
    pub(super) fn new(
        incoming: Incoming<In>,
        outgoing: Outgoing<Out>,
        first: Put<First>,
        tie: Arc<Tie>,
    ) -> Self {
        Peer {
            outgoing,
            incoming,
            first: Some(first),
            tie,
        }
    }

    /// Begins the dialogue: the opener gets its link and this value. Never waits.
    ///
    /// # Errors
    /// Misuse the second time; the value cannot be encoded, after which another one may be tried.
    ///
    /// # Examples
    /// ```
    /// use offshoot::prelude::*;
    ///
    /// async fn greeter(mut peer: Peer<u64, u64, String>) -> Result<()> {
    ///     peer.started("hello".to_string())
    /// }
    ///
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, first) = thread.open(greeter, ()).await?;
    ///     assert_eq!(first, "hello");
    ///     link.result().await??;
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn started(&mut self, first: First) -> Result<()> {
        let Some(put) = &self.first else {
            return Err(Error::new(
                ErrorKind::Misuse,
                "`started` was called a second time: a dialogue begins once",
            ));
        };
        put.start(first, &self.tie)?;
        self.first = None;
        Ok(())
    }

    /// The next item, see [`Incoming::next`].
    ///
    /// # Errors
    /// As there; misuse before [`started`](Peer::started).
    // Not the iterator's: it is awaited.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> NextItem<'_, In> {
        self.incoming.next()
    }

    /// Sends an item, see [`Outgoing::send`].
    ///
    /// # Errors
    /// As there; misuse before [`started`](Peer::started).
    ///
    /// # Examples
    /// ```
    /// use offshoot::prelude::*;
    ///
    /// async fn ticker(mut peer: Peer<(), u64>, count: u64) -> Result<()> {
    ///     peer.started(())?;
    ///     for n in 0..count {
    ///         peer.send(n).await?;
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, ()) = thread.open(ticker, 2).await?;
    ///     assert_eq!(link.next().await?, Some(0));
    ///     assert_eq!(link.next().await?, Some(1));
    ///     assert_eq!(link.next().await?, None);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn send(&mut self, item: Out) -> SendItem<'_, Out> {
        self.outgoing.send(item)
    }

    /// [`next`](Peer::next) for a function that is not async, in a blocking isolate.
    ///
    /// # Errors
    /// As of [`Incoming::next_blocking`].
    pub fn next_blocking(&mut self) -> Result<Option<In>> {
        self.incoming.next_blocking()
    }

    /// [`send`](Peer::send) for a function that is not async, in a blocking isolate.
    ///
    /// # Errors
    /// As of [`Outgoing::send_blocking`].
    pub fn send_blocking(&mut self, item: Out) -> Result<()> {
        self.outgoing.send_blocking(item)
    }

    /// Sends nothing more, see [`Outgoing::close`].
    pub fn close(&mut self) {
        self.outgoing.close();
    }

    /// What to do when the opener is a whole window behind, see [`Outgoing::set_overflow`].
    pub fn set_overflow(&mut self, overflow: Overflow) {
        self.outgoing.set_overflow(overflow);
    }

    /// How many items were dropped for want of room.
    pub fn dropped(&self) -> u64 {
        self.outgoing.dropped()
    }

    /// Cancels the opener's side: whatever it does with its link fails, with this isolate as the author. This task
    /// goes on; its result will not be delivered.
    ///
    /// The request is made at once, also if the future is dropped. Awaited, it is ready when the opener's side has
    /// seen it. Idempotent.
    pub fn cancel(&self) -> Parting {
        self.tie.part();
        Parting {
            tie: TieWatch::new(&self.tie),
            life: Watch::new(self.tie.far.clone()),
        }
    }

    /// The two directions by themselves, to be used by two tasks.
    pub fn split(self) -> (Outgoing<Out>, Incoming<In>) {
        (self.outgoing, self.incoming)
    }
}

impl<In: Payload, Out: Payload, First: Payload> Stream for Peer<In, Out, First> {
    type Item = Result<In>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<In>>> {
        Pin::new(&mut self.get_mut().incoming).poll_next(cx)
    }
}

impl<In: Payload, Out: Payload, First: Payload> Sink<Out> for Peer<In, Out, First> {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().outgoing).poll_ready(cx)
    }

    fn start_send(self: Pin<&mut Self>, item: Out) -> Result<()> {
        Pin::new(&mut self.get_mut().outgoing).start_send(item)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().outgoing).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().outgoing).poll_close(cx)
    }
}

impl<In: Payload, Out: Payload, First: Payload> Unpin for Peer<In, Out, First> {}

impl<In: Payload, Out: Payload, First: Payload> std::fmt::Debug for Peer<In, Out, First> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("on", self.tie.far.identity())
            .field("started", &self.tie.is_started())
            .finish_non_exhaustive()
    }
}

/// The future of [`Peer::cancel`]: ready when the opener's side has seen it, or the dialogue is over.
#[must_use = "the cancellation is under way; await this to know that it was seen"]
pub struct Parting {
    tie: TieWatch,
    life: Watch,
}

impl Future for Parting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let seen = this.tie.poll(cx, |state| {
            (state.parted_seen || state.halt.is_some() || state.over.is_some()).then_some(())
        });
        if seen.is_ready() {
            return seen;
        }
        this.life.poll(cx, |life| {
            life.exit().is_some() || life.cancelled().is_some()
        })
    }
}

impl std::fmt::Debug for Parting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parting")
    }
}
