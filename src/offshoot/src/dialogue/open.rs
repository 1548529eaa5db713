//! Opening a dialogue, and what the opener holds of it.

use super::channel::Channel;
use super::far::{Dialogue, LocalWays, OpenJob};
use super::halves::{Incoming, NextItem, Outgoing, SendItem, Way};
use super::remote::Remote;
use super::tie::{Role, Tie, TieWatch};
use super::{Overflow, Window, here};
use crate::credit::{Kind, Permit, Taken};
use crate::descriptor::{OpenEntry, captures_nothing};
use crate::isolate::local::Local;
use crate::isolate::shared::{Message, Route, Target};
use crate::life::Watch;
use crate::portal::{Portal, Sending, block_on, decode, encode, polled_again, through_serde};
use crate::scope::{Scope, SendWatch, cancelled_error, poll_refusal};
use crate::time::{nanos, timed_out};
use crate::{Error, ErrorKind, Payload, Result};
use futures_core::Stream;
use futures_sink::Sink;
use offshoot_sys::clock;
use parking_lot::Mutex;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// What opening `F` gives.
type OpenedBy<F, M> = (
    Link<<F as Dialogue<M>>::Out, <F as Dialogue<M>>::In, <F as Dialogue<M>>::R>,
    <F as Dialogue<M>>::First,
);

impl<S: 'static> Portal<S> {
    /// Starts a dialogue: runs `function` on the isolate as a new task that is given a [`Peer`](super::Peer), and
    /// is ready with a [`Link`] to it and the value that it gave to [`Peer::started`](super::Peer::started).
    ///
    /// The function takes the peer and 0 to 6 owned arguments, which are given as for [`call`](Portal::call).
    ///
    /// # Blocking
    /// Never. The future waits for credit while `calls_max` calls of this isolate to that one run, and then for the
    /// function to begin the dialogue.
    ///
    /// # Cancellation
    /// A checkpoint. Dropping the future, or the link, cancels the far task, and the nursery around it waits for
    /// that.
    ///
    /// # Errors
    /// As of [`call`](Portal::call). The function returned before it called `started`: the error that it returned,
    /// if that is an [`Error`], otherwise one of [`Error::is_closed`].
    ///
    /// # Examples
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
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, ()) = thread.open(doubler, ()).await?;
    ///     link.send(21).await?;
    ///     assert_eq!(link.next().await?, Some(42));
    ///     link.close();
    ///     assert_eq!(link.result().await??, 21);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn open<M: 'static, F: Dialogue<M>>(
        &self,
        function: F,
        args: F::Args,
    ) -> Opening<F::Out, F::In, F::R, F::First>
    where
        F::Args: Payload,
        F::R: Payload,
    {
        captures_nothing!(F);
        Opening {
            sending: self.sending(OpenEntry::<F, M>::DESCRIPTOR),
            window: None,
            state: Phase::Unsent(Box::new(OpenOut::<F, M> {
                function,
                args,
                marker: PhantomData,
            })),
        }
    }

    /// [`open`](Portal::open) for code that is not async.
    ///
    /// # Blocking
    /// Until the dialogue has begun. In a task of an isolate it blocks the whole isolate.
    ///
    /// # Errors
    /// As of [`open`](Portal::open).
    pub fn open_blocking<M: 'static, F: Dialogue<M>>(
        &self,
        function: F,
        args: F::Args,
    ) -> Result<OpenedBy<F, M>>
    where
        F::Args: Payload,
        F::R: Payload,
    {
        captures_nothing!(F);
        self.check_other("open_blocking")?;
        block_on(self.open(function, args))
    }
}

/// What is to be opened, its function's type erased.
trait Begin<In: Payload, Out: Payload, R: Payload, First> {
    fn begin(
        self: Box<Self>,
        target: &Arc<Target>,
        taken: Taken,
        window: Option<Window>,
    ) -> Result<(Link<In, Out, R>, Place<First>)>;
}

struct OpenOut<F: Dialogue<M>, M> {
    function: F,
    args: F::Args,
    marker: PhantomData<fn(M)>,
}

impl<F: Dialogue<M>, M: 'static> Begin<F::Out, F::In, F::R, F::First> for OpenOut<F, M>
where
    F::Args: Payload,
    F::R: Payload,
{
    fn begin(
        self: Box<Self>,
        target: &Arc<Target>,
        taken: Taken,
        window: Option<Window>,
    ) -> Result<(Link<F::Out, F::In, F::R>, Place<F::First>)> {
        let OpenOut { function, args, .. } = *self;
        let grace = nanos(target.runtime.settings.bounds.grace);
        let tie = Tie::new(target.life.clone(), here(), grace);
        let opened = match target.route() {
            Route::Thread(shared) => {
                let serde = target.through_serde;
                let window = window.unwrap_or(Window::BETWEEN_THREADS);
                let args = through_serde(args, serde)?;
                let to_peer = Arc::new(Channel::new(window.items));
                let to_opener = Arc::new(Channel::new(window.items));
                let first = Arc::new(Mutex::new(None));
                let result = Arc::new(Mutex::new(None));
                let ways = LocalWays {
                    to_peer: to_peer.clone(),
                    to_opener: to_opener.clone(),
                    first: first.clone(),
                    result: result.clone(),
                    serde,
                    marker: PhantomData,
                };
                taken.lane().next_sequence();
                let job = OpenJob::<F, M>::local(function, args, ways, &tie, Permit::Local(taken));
                // One that is refused is dropped, and its ending then says why.
                shared.deliver(Message::Job(Box::new(job)));
                let link = Link::new(
                    Way::Local(to_opener, serde),
                    Way::Local(to_peer, serde),
                    Place::Local(result),
                    &tie,
                );
                (link, Place::Local(first))
            }
            Route::Gone => return Err(target.gone()),
            route @ (Route::Process(_) | Route::Introduced(_)) => {
                let Some(link) = route.link() else {
                    return Err(target.gone());
                };
                let window = window.unwrap_or(Window::DEFAULT);
                let id = link.next_correlation();
                let lane = taken.lane().clone();
                let held = Some((taken, target.clone()));
                let remote = Remote::new(link, id, Role::Opener, tie.clone(), window, held);
                let sent = link.send_open(id, &lane, window, |out| {
                    encode(&args, out)?;
                    OpenEntry::<F, M>::DESCRIPTOR.entry()
                });
                if let Err(error) = sent {
                    remote.lost(error.clone());
                    return Err(error);
                }
                let link = Link::new(
                    Way::Remote(remote.clone()),
                    Way::Remote(remote.clone()),
                    Place::Remote(remote.clone()),
                    &tie,
                );
                (link, Place::Remote(remote))
            }
        };
        if let Some(local) = Local::try_current() {
            local.shared.hold(&tie);
        }
        if let Some(held) = Scope::current().and_then(|scope| scope.held()) {
            held.add(&tie);
        }
        Ok(opened)
    }
}

/// Where a value of the far side arrives: the first, or the result.
enum Place<T> {
    Local(Arc<Mutex<Option<T>>>),
    Remote(Arc<Remote>),
}

enum Phase<In: Payload, Out: Payload, R: Payload, First> {
    Unsent(Box<dyn Begin<In, Out, R, First>>),
    Sent(Box<Sent<In, Out, R, First>>),
    Over,
}

/// What is held while the far function has not begun the dialogue.
struct Sent<In: Payload, Out: Payload, R: Payload, First> {
    link: Link<In, Out, R>,
    first: Place<First>,
    scope: SendWatch,
    tie: TieWatch,
}

/// The future of [`Portal::open`]: a link and the peer's first value. Nothing is sent before it is first polled.
#[must_use = "nothing is opened unless it is awaited"]
pub struct Opening<In: Payload, Out: Payload, R: Payload, First> {
    sending: Sending,
    /// None where it was not asked for.
    window: Option<Window>,
    state: Phase<In, Out, R, First>,
}

impl<In: Payload, Out: Payload, R: Payload, First> Opening<In, Out, R, First> {
    /// How much may be under way in each direction; without it, [`Window::DEFAULT`] to another process and
    /// [`Window::BETWEEN_THREADS`] to a thread. Between threads only the items count, as nothing is encoded. A window
    /// without room has room for one.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use offshoot::Window;
    ///
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let window = Window { items: 8, ..Window::default() };
    ///     let (mut link, ()) = thread.open(doubler, ()).window(window).await?;
    ///     link.send(1).await?;
    ///     assert_eq!(link.next().await?, Some(2));
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn window(mut self, window: Window) -> Self {
        self.window = Some(Window {
            items: window.items.max(1),
            bytes: window.bytes.max(1),
        });
        self
    }
}

impl<In: Payload, Out: Payload, R: Payload, First> Unpin for Opening<In, Out, R, First> {}

impl<In: Payload, Out: Payload, R: Payload, First: Payload> Future for Opening<In, Out, R, First> {
    type Output = Result<(Link<In, Out, R>, First)>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Err(error) = this.sending.check_scope() {
            ready!(poll_refusal(cx));
            // Dropped here, a link cancels the far task.
            this.state = Phase::Over;
            return Poll::Ready(Err(error));
        }
        if let Phase::Unsent(_) = this.state {
            let taken = ready!(this.sending.poll_permit(Kind::Call, cx))?;
            let Phase::Unsent(out) = std::mem::replace(&mut this.state, Phase::Over) else {
                return Poll::Ready(Err(polled_again()));
            };
            let (link, first) = out.begin(this.sending.target(), taken, this.window)?;
            let tie = TieWatch::new(link.outcome.tie());
            this.state = Phase::Sent(Box::new(Sent {
                link,
                first,
                scope: SendWatch::default(),
                tie,
            }));
        }
        let Phase::Sent(sent) = &mut this.state else {
            return Poll::Ready(Err(polled_again()));
        };
        let Sent { scope, tie, .. } = &mut **sent;
        if scope.poll(cx).is_ready() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let begun = |state: &super::tie::State| {
            if let Some(cancel) = &state.parted {
                return Some(Err(cancelled_error(cancel.clone())));
            }
            match &state.over {
                // What it gave before it failed does not count: nothing can be done with it any more.
                Some(Err(error)) => Some(Err(error.clone())),
                _ => state.started.then_some(Ok(())),
            }
        };
        let result = match tie.poll(cx, begun) {
            Poll::Ready(result) => result,
            Poll::Pending => {
                let gone = this.sending.poll_in_vain(cx);
                // What was said before the end counts.
                match (gone, tie.tie().look(begun)) {
                    (_, Some(result)) => result,
                    (Poll::Ready(error), None) => Err(error),
                    (Poll::Pending, None) => return Poll::Pending,
                }
            }
        };
        let Phase::Sent(sent) = std::mem::replace(&mut this.state, Phase::Over) else {
            return Poll::Ready(Err(polled_again()));
        };
        let Sent { link, first, .. } = *sent;
        result?;
        let first = match &first {
            Place::Local(slot) => slot.lock().take(),
            Place::Remote(remote) => match remote.take_first() {
                Some(parcel) => Some(parcel.open(decode)?),
                None => None,
            },
        };
        match first {
            Some(first) => Poll::Ready(Ok((link, first))),
            None => Poll::Ready(Err(polled_again())),
        }
    }
}

impl<In: Payload, Out: Payload, R: Payload, First> std::fmt::Debug for Opening<In, Out, R, First> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening")
            .field("with", self.sending.target().life.identity())
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

/// The opener's side of a dialogue: takes `In`, sends `Out`, and ends with an `R`.
///
/// Dropping it cancels the far task, and the nursery in which it was opened does not return before
/// that task has ended.
///
/// # Room
/// Each direction has a [`Window`]: a sender waits while its receiver is that far behind, and holds
/// up no other one. [`Overflow`](crate::Overflow) is what a sender can have instead of waiting.
///
/// # Ends
/// The other side takes what was sent into a half that is closed, then sees its end. When the
/// function has returned, the opener can still take what was sent, then sees the end, then the
/// result. When it fails, is killed or is abandoned, the opener sees that instead of an end: a stream
/// that was cut short never looks like one that has ended.
///
/// # Cancellation
/// [`Link::cancel`] cancels the far task as its isolate's cancellation would: its checkpoints fail,
/// and after the tree's grace its future is dropped. [`Peer::cancel`](crate::Peer::cancel) makes
/// everything fail that the opener does with its link. Each error names its author.
#[must_use = "dropping it cancels the far task"]
pub struct Link<In: Payload, Out: Payload, R: Payload> {
    // First, so that the far task hears of the cancellation before it could take the end of a stream for one.
    outcome: Outcome<R>,
    outgoing: Outgoing<Out>,
    incoming: Incoming<In>,
}

impl<In: Payload, Out: Payload, R: Payload> Link<In, Out, R> {
    fn new(incoming: Way<In>, outgoing: Way<Out>, place: Place<R>, tie: &Arc<Tie>) -> Self {
        Link {
            outcome: Outcome {
                place,
                watch: TieWatch::new(tie),
                life: Watch::new(tie.far.clone()),
                scope: SendWatch::default(),
            },
            outgoing: Outgoing::new(outgoing, tie, Role::Opener),
            incoming: Incoming::new(incoming, tie, Role::Opener),
        }
    }

    /// The next item, see [`Incoming::next`].
    ///
    /// # Errors
    /// As there.
    // Not the iterator's: it is awaited.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> NextItem<'_, In> {
        self.incoming.next()
    }

    /// Sends an item, see [`Outgoing::send`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, ()) = thread.open(doubler, ()).await?;
    ///     link.send(1).await?;
    ///     assert_eq!(link.next().await?, Some(2));
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn send(&mut self, item: Out) -> SendItem<'_, Out> {
        self.outgoing.send(item)
    }

    /// Sends nothing more, see [`Outgoing::close`]. The far function takes what was sent, then sees the end.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, ()) = thread.open(doubler, ()).await?;
    ///     link.close();
    ///     // The far side has seen the end of its input, and ends.
    ///     assert_eq!(link.next().await?, None);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn close(&mut self) {
        self.outgoing.close();
    }

    /// What to do when the far function is a whole window behind, see [`Outgoing::set_overflow`].
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use offshoot::Overflow;
    ///
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, ()) = thread.open(doubler, ()).await?;
    ///     link.set_overflow(Overflow::DropOldest);
    ///     link.send(1).await?;
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn set_overflow(&mut self, overflow: Overflow) {
        self.outgoing.set_overflow(overflow);
    }

    /// How many items were dropped for want of room.
    pub fn dropped(&self) -> u64 {
        self.outgoing.dropped()
    }

    /// Closes this half, drops what still comes, and waits for the result of the far function.
    ///
    /// # Cancellation
    /// A checkpoint. Dropped, it can be asked for again.
    ///
    /// # Errors
    /// The dialogue was cancelled, with its author; the far task panicked, or its isolate ended before it had
    /// returned. What the function itself returns as `Result` arrives as a value, inside `Ok`. Misuse the second
    /// time.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (mut link, ()) = thread.open(doubler, ()).await?;
    ///     link.close();
    ///     assert_eq!(link.result().await??, 0);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn result(&mut self) -> ResultOf<'_, R, In> {
        self.outgoing.close();
        ResultOf {
            outcome: &mut self.outcome,
            incoming: Some(&mut self.incoming),
        }
    }

    /// Cancels the far task, see [`Outcome::cancel`].
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (link, ()) = thread.open(doubler, ()).await?;
    ///     link.cancel().await;
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn cancel(&self) -> LinkCancelling {
        self.outcome.cancel()
    }

    /// [`next`](Link::next) for code that is not async.
    ///
    /// # Errors
    /// As of [`Incoming::next`].
    pub fn next_blocking(&mut self) -> Result<Option<In>> {
        self.incoming.next_blocking()
    }

    /// [`send`](Link::send) for code that is not async.
    ///
    /// # Errors
    /// As of [`Outgoing::send`].
    pub fn send_blocking(&mut self, item: Out) -> Result<()> {
        self.outgoing.send_blocking(item)
    }

    /// [`result`](Link::result) for code that is not async.
    ///
    /// # Errors
    /// As of [`result`](Link::result).
    pub fn result_blocking(&mut self) -> Result<R> {
        block_on(self.result())
    }

    /// The two directions and the outcome by themselves, to be used by several tasks. Who holds the outcome holds
    /// the dialogue: dropping that cancels it.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// # async fn doubler(mut peer: Peer<u64, u64>) -> Result<u64> {
    /// #     peer.started(())?;
    /// #     let mut sum = 0;
    /// #     while let Some(n) = peer.next().await? {
    /// #         peer.send(2 * n).await?;
    /// #         sum += n;
    /// #     }
    /// #     Ok(sum)
    /// # }
    /// # offshoot::run(async || {
    /// offshoot::nursery(async |nursery| {
    ///     let thread = nursery.spawn("thread").await?;
    ///     let (link, ()) = thread.open(doubler, ()).await?;
    ///     let (mut outgoing, mut incoming, mut outcome) = link.split();
    ///     let sender = nursery.task(async move {
    ///         for n in 0..3 {
    ///             outgoing.send(n).await?;
    ///         }
    ///         outgoing.close();
    ///         Ok::<(), Error>(())
    ///     });
    ///     let mut doubled = Vec::new();
    ///     while let Some(n) = incoming.next().await? {
    ///         doubled.push(n);
    ///     }
    ///     sender.await?;
    ///     assert_eq!(doubled, [0, 2, 4]);
    ///     assert_eq!(outcome.result().await??, 3);
    ///     Ok(())
    /// })
    /// .await
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    pub fn split(self) -> (Outgoing<Out>, Incoming<In>, Outcome<R>) {
        (self.outgoing, self.incoming, self.outcome)
    }
}

impl<In: Payload, Out: Payload, R: Payload> Stream for Link<In, Out, R> {
    type Item = Result<In>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<In>>> {
        Pin::new(&mut self.get_mut().incoming).poll_next(cx)
    }
}

impl<In: Payload, Out: Payload, R: Payload> Sink<Out> for Link<In, Out, R> {
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

impl<In: Payload, Out: Payload, R: Payload> Unpin for Link<In, Out, R> {}

impl<In: Payload, Out: Payload, R: Payload> std::fmt::Debug for Link<In, Out, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("with", self.outcome.tie().far.identity())
            .field("over", &self.outcome.tie().is_over())
            .finish_non_exhaustive()
    }
}

/// What becomes of a dialogue: its result, and the power to cancel it. Dropping it cancels the far task.
#[must_use = "dropping it cancels the far task"]
pub struct Outcome<R: Payload> {
    place: Place<R>,
    watch: TieWatch,
    life: Watch,
    scope: SendWatch,
}

impl<R: Payload> Outcome<R> {
    fn tie(&self) -> &Arc<Tie> {
        self.watch.tie()
    }

    /// Waits for the result of the far function. The directions are somebody else's: if nobody takes what the
    /// function sends, it may never return.
    ///
    /// # Errors
    /// As of [`Link::result`].
    pub fn result(&mut self) -> ResultOf<'_, R> {
        ResultOf {
            outcome: self,
            incoming: None,
        }
    }

    /// Cancels the far task: its checkpoints fail, with the opener's isolate as the author, and after the tree's
    /// grace its future is dropped. What it had sent can still be taken, and its result, if it returns one.
    ///
    /// The request is made at once, also if the future is dropped. Awaited, it is ready when the task has seen it.
    /// Idempotent: the first author counts.
    ///
    /// # Errors
    /// Of the future: a timeout if the far isolate has not seen it within the tree's grace, as one that blocks. The
    /// nursery in which the dialogue was opened waits for it nevertheless, within its bounds.
    pub fn cancel(&self) -> LinkCancelling {
        let tie = self.tie();
        let now = clock::now();
        tie.halt(tie.opener());
        LinkCancelling {
            tie: TieWatch::new(tie),
            life: Watch::new(tie.far.clone()),
            bound: tie.grace(),
            until: now.saturating_add(tie.grace()),
            timer: None,
        }
    }

    fn poll_result(&mut self, cx: &mut Context<'_>) -> Poll<Result<R>> {
        let over = self
            .watch
            .poll(cx, |state| match (&state.parted, &state.over) {
                (Some(cancel), _) => Some(Err(cancelled_error(cancel.clone()))),
                (None, over) => over.clone(),
            });
        let how = match over {
            Poll::Ready(how) => how,
            Poll::Pending => {
                let scope = self.scope.poll(cx);
                if scope.is_ready() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                ready!(self.life.poll(cx, |life| life.exit().is_some()));
                let over = self.tie().look(|state| state.over.clone());
                over.unwrap_or_else(|| Err(self.life.life().gone()))
            }
        };
        Poll::Ready(how.and_then(|()| {
            let value = match &self.place {
                Place::Local(slot) => slot.lock().take(),
                Place::Remote(remote) => match remote.take_result() {
                    Some(parcel) => Some(parcel.open(decode)?),
                    None => None,
                },
            };
            let misuse = "the result of a dialogue was asked for a second time";
            value.ok_or_else(|| Error::new(ErrorKind::Misuse, misuse))
        }))
    }
}

impl<R: Payload> Drop for Outcome<R> {
    fn drop(&mut self) {
        let tie = self.tie();
        if !tie.is_over() {
            tie.halt(tie.hung_up());
        }
    }
}

impl<R: Payload> std::fmt::Debug for Outcome<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome")
            .field("of", self.tie().far.identity())
            .field("over", &self.tie().is_over())
            .finish()
    }
}

/// The future of [`Link::result`] and [`Outcome::result`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct ResultOf<'a, R: Payload, In: Payload = ()> {
    outcome: &'a mut Outcome<R>,
    incoming: Option<&'a mut Incoming<In>>,
}

impl<R: Payload, In: Payload> Unpin for ResultOf<'_, R, In> {}

impl<R: Payload, In: Payload> Future for ResultOf<'_, R, In> {
    type Output = Result<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R>> {
        let this = self.get_mut();
        // A result that is there is not thrown away for a cancellation.
        if !this.outcome.tie().is_over()
            && let Some(cancel) = Scope::current().and_then(|scope| scope.cancelled())
        {
            ready!(poll_refusal(cx));
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        if let Some(incoming) = &mut this.incoming {
            incoming.discard(cx);
        }
        this.outcome.poll_result(cx)
    }
}

impl<R: Payload, In: Payload> std::fmt::Debug for ResultOf<'_, R, In> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ResultOf").field(&self.outcome).finish()
    }
}

/// The future of [`Link::cancel`]: ready when the far task has seen it, or has ended.
#[must_use = "the cancellation is under way; await this to know that it was seen"]
pub struct LinkCancelling {
    tie: TieWatch,
    life: Watch,
    bound: u64,
    until: u64,
    timer: Option<crate::time::Sleep>,
}

impl Future for LinkCancelling {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let seen = this.tie.poll(cx, |state| {
            (state.halt_seen || state.over.is_some()).then_some(())
        });
        if seen.is_ready() || this.life.poll(cx, |life| life.exit().is_some()).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Off the runtime there is no timer, and nobody to keep waiting.
        if Local::try_current().is_none() {
            return Poll::Pending;
        }
        let until = this.until;
        let timer = this
            .timer
            .get_or_insert_with(|| crate::time::sleep_until(until));
        ready!(timer.poll_elapsed(cx))?;
        let what = format!(
            "the cancellation of a dialogue with isolate `{}`",
            this.life.life().origin()
        );
        Poll::Ready(Err(timed_out(&what, Duration::from_nanos(this.bound))))
    }
}

impl std::fmt::Debug for LinkCancelling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LinkCancelling")
            .field(self.life.life().identity())
            .finish()
    }
}
