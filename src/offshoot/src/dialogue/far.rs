//! The far task of a dialogue: the function that is opened, and what runs it.

use super::channel::Channel;
use super::halves::{Incoming, Outgoing, Way};
use super::peer::Peer;
use super::remote::Remote;
use super::tie::{Role, State, Tie, TieWatch};
use crate::chain::{self, Chain, Waits};
use crate::credit::Permit;
use crate::endpoint::Plain;
use crate::isolate::job::{Job, Outcome, panicked, poll_caught};
use crate::isolate::local::Local;
use crate::life::Life;
use crate::portal::through_serde;
use crate::scope::Scope;
use crate::sniff;
use crate::{Error, ErrorKind, Exit, Payload, Result};
use offshoot_sys::clock;
use parking_lot::Mutex;
use std::any::type_name;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A function that can be opened: `async fn(Peer<In, Out, First>, A, B) -> R`, or a plain `fn` in a blocking isolate.
///
/// Nobody implements this by hand, see [`Endpoint`](crate::Endpoint).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a function that a dialogue can be opened with",
    label = "not a dialogue",
    note = "a dialogue is a function or a closure that captures nothing, which takes a `Peer<In, Out, First>` and 0 to 6 owned arguments, and returns an owned serde result"
)]
pub trait Dialogue<M>: Copy + Send + 'static {
    /// What the function takes, and the opener sends.
    type In: Payload;
    /// What the function sends, and the opener takes.
    type Out: Payload;
    /// What it begins with.
    type First: Payload;
    /// The arguments beside the peer.
    type Args;
    /// What the function returns.
    type R;
    /// Runs it.
    fn begin(
        self,
        peer: Peer<Self::In, Self::Out, Self::First>,
        args: Self::Args,
    ) -> impl Future<Output = Self::R>;
}

macro_rules! dialogues {
    ($args:ty, $pattern:pat, [$($T:ident $t:ident),*]) => {
        impl<F, In: Payload, Out: Payload, First: Payload, Res, $($T),*>
            Dialogue<fn(Peer<In, Out, First>, $($T),*) -> Res> for F
        where
            F: AsyncFn(Peer<In, Out, First>, $($T),*) -> Res + Copy + Send + 'static,
        {
            type In = In;
            type Out = Out;
            type First = First;
            type Args = $args;
            type R = Res;
            fn begin(self, peer: Peer<In, Out, First>, $pattern: Self::Args) -> impl Future<Output = Res> {
                async move { self(peer, $($t),*).await }
            }
        }

        impl<F, In: Payload, Out: Payload, First: Payload, Res: Payload, $($T),*>
            Dialogue<Plain<fn(Peer<In, Out, First>, $($T),*) -> Res>> for F
        where
            F: Fn(Peer<In, Out, First>, $($T),*) -> Res + Copy + Send + 'static,
        {
            type In = In;
            type Out = Out;
            type First = First;
            type Args = $args;
            type R = Res;
            fn begin(self, peer: Peer<In, Out, First>, $pattern: Self::Args) -> impl Future<Output = Res> {
                async move { self(peer, $($t),*) }
            }
        }
    };
}

dialogues!((), (), []);
dialogues!(A, a, [A a]);
dialogues!((A, B), (a, b), [A a, B b]);
dialogues!((A, B, C), (a, b, c), [A a, B b, C c]);
dialogues!((A, B, C, D), (a, b, c, d), [A a, B b, C c, D d]);
dialogues!((A, B, C, D, E), (a, b, c, d, e), [A a, B b, C c, D d, E e]);
dialogues!((A, B, C, D, E, G), (a, b, c, d, e, g), [A a, B b, C c, D d, E e, G g]);

/// A place for one value that the far side gives: the first, or the result.
pub(crate) enum Put<T> {
    /// Between threads; through its encoding, where the tree asks for that.
    Local(Arc<Mutex<Option<T>>>, bool),
    Remote(Arc<Remote>),
}

impl<T: Payload> Put<T> {
    /// Gives the first value.
    pub(super) fn start(&self, first: T, tie: &Tie) -> Result<()> {
        match self {
            Put::Local(slot, serde) => *slot.lock() = Some(through_serde(first, *serde)?),
            Put::Remote(remote) => remote.say_started(&first)?,
        }
        tie.set_started();
        Ok(())
    }

    /// Gives the result, or why there is none. The last word.
    fn finish(self, result: Result<T>, tie: &Tie) {
        match self {
            Put::Remote(remote) => remote.say_over(result),
            Put::Local(slot, serde) => {
                let result = result.and_then(|value| {
                    through_serde(value, serde).map_err(|error| error.leaving(&tie.far.origin()))
                });
                let how = result.map(|value| *slot.lock() = Some(value));
                tie.set_over(how);
            }
        }
    }
}

/// The duty to say how the far task ended. Dropped, it says why it cannot.
struct Ending<R: Payload> {
    put: Option<Put<R>>,
    tie: Arc<Tie>,
    life: Arc<Life>,
}

impl<R: Payload> Ending<R> {
    fn finish(mut self, result: Result<R>) {
        if let Some(put) = self.put.take() {
            put.finish(result, &self.tie);
        }
    }
}

impl<R: Payload> Drop for Ending<R> {
    fn drop(&mut self) {
        if let Some(put) = self.put.take() {
            put.finish(Err(self.life.gone()), &self.tie);
        }
    }
}

/// A dialogue that has arrived.
pub(crate) struct OpenJob<F: Dialogue<M>, M>
where
    F::R: Payload,
{
    function: F,
    args: F::Args,
    incoming: Way<F::In>,
    outgoing: Way<F::Out>,
    first: Put<F::First>,
    ending: Ending<F::R>,
    permit: Option<Permit>,
    /// Those who wait for its start.
    chain: Chain,
    marker: PhantomData<fn(M)>,
}

/// The ways and places of a dialogue between threads.
pub(super) struct LocalWays<F: Dialogue<M>, M> {
    pub(super) to_peer: Arc<Channel<F::In>>,
    pub(super) to_opener: Arc<Channel<F::Out>>,
    pub(super) first: Arc<Mutex<Option<F::First>>>,
    pub(super) result: Arc<Mutex<Option<F::R>>>,
    pub(super) serde: bool,
    pub(super) marker: PhantomData<fn(M)>,
}

impl<F: Dialogue<M>, M> OpenJob<F, M>
where
    F::R: Payload,
{
    /// One that was opened in this process.
    pub(super) fn local(
        function: F,
        args: F::Args,
        ways: LocalWays<F, M>,
        tie: &Arc<Tie>,
        permit: Permit,
    ) -> Self {
        OpenJob {
            function,
            args,
            incoming: Way::Local(ways.to_peer, ways.serde),
            outgoing: Way::Local(ways.to_opener, ways.serde),
            first: Put::Local(ways.first, ways.serde),
            ending: Ending {
                put: Some(Put::Local(ways.result, ways.serde)),
                life: tie.far.clone(),
                tie: tie.clone(),
            },
            permit: Some(permit),
            chain: chain::current(),
            marker: PhantomData,
        }
    }

    /// One that came over the link.
    pub(crate) fn remote(function: F, args: F::Args, open: RemoteOpen) -> Self {
        let RemoteOpen { remote, chain } = open;
        OpenJob {
            function,
            args,
            incoming: Way::Remote(remote.clone()),
            outgoing: Way::Remote(remote.clone()),
            first: Put::Remote(remote.clone()),
            ending: Ending {
                tie: remote.tie().clone(),
                life: remote.tie().far.clone(),
                put: Some(Put::Remote(remote)),
            },
            permit: None,
            chain,
            marker: PhantomData,
        }
    }
}

/// What came with an `Open` over the link.
pub(crate) struct RemoteOpen {
    pub(crate) remote: Arc<Remote>,
    /// Those who wait for its start.
    pub(crate) chain: Chain,
}

impl RemoteOpen {
    /// Answers with an error whatever the type of the result is.
    pub(crate) fn fail(self, error: Error) {
        let error = error.leaving(&self.remote.tie().far.origin());
        self.remote.say_over::<()>(Err(error));
    }
}

/// Decodes the arguments of a dialogue and makes the job; answers with what is wrong with them.
pub(crate) type OpenEntryDecode = fn(&[u8], RemoteOpen) -> Option<Box<dyn Job>>;

impl<F, M: 'static> Job for OpenJob<F, M>
where
    F: Dialogue<M>,
    F::Args: Send + 'static,
    F::R: Payload,
{
    fn begin(self: Box<Self>, local: &Rc<Local>) {
        let OpenJob {
            function,
            args,
            incoming,
            outgoing,
            first,
            ending,
            permit,
            chain,
            ..
        } = *self;
        let tie = ending.tie.clone();
        let (to_opener, from_opener) = (outgoing.clone(), incoming.clone());
        let halted = tie.look(|state| state.halt.clone());
        if let Some(halt) = halted {
            // Nobody waits any more: it never runs.
            tie.set_halt_seen();
            let error = tie.cancelled(&halt.cancel);
            ending.finish(Err(error));
            return;
        }
        let peer = Peer::new(
            Incoming::new(incoming, &tie, Role::Peer),
            Outgoing::new(outgoing, &tie, Role::Peer),
            first,
            tie.clone(),
        );
        let served = local.serve_dialogue();
        local.spawn_at_once(|this| async move {
            let _served = served;
            let scope = this.root_scope.child();
            if chain.is_some() {
                scope.set_waits(Waits::until_started(chain, &tie));
            }
            let outcome = {
                let mut future = pin!(async { function.begin(peer, args).await });
                let mut halt = HaltWatch::new(&tie, &this);
                poll_fn(|cx| {
                    if halt.poll(cx, &scope).is_ready() {
                        return Poll::Ready(Outcome::Unwanted);
                    }
                    let polled = tie.polled(|| poll_caught(future.as_mut(), &scope, cx));
                    if polled.is_pending() {
                        // It goes on without these.
                        let deferred = tie.take_deferred();
                        if deferred.end && tie.is_started() {
                            to_opener.end(Ok(()));
                        }
                        if deferred.deaf {
                            from_opener.deafen();
                        }
                    }
                    polled
                })
                .await
            };
            match outcome {
                Outcome::Done(value) if tie.is_started() => {
                    to_opener.end(how_ended(&value, &tie, &scope));
                    ending.finish(Ok(value));
                }
                Outcome::Done(value) => {
                    // Whoever cancelled it is why it never started, whatever it returned then.
                    let error = match scope.cancelled() {
                        Some(cancel) => tie.cancelled(&cancel),
                        None => never_started::<F, _>(&value, &tie),
                    };
                    ending.finish(Err(error));
                }
                Outcome::Unwanted => {
                    let halt = tie.look(|state| state.halt.clone());
                    let error = halt.map_or_else(
                        || this.shared.life.gone(),
                        |halt| tie.cancelled(&halt.cancel),
                    );
                    ending.finish(Err(error));
                }
                Outcome::Panicked(panic) => {
                    // Announced first: nobody may see the answer and still find the isolate alive.
                    this.fail(Exit::Panicked(panic.clone()));
                    ending.finish(Err(panicked(&this, panic)));
                }
            }
            drop(permit);
        });
    }
}

/// How the stream of a function has ended that returned this: well, unless it returned an error, or was cancelled by
/// another than the opener. A stream that was cut short must not look like one that has ended.
fn how_ended<R: Payload>(value: &R, tie: &Tie, scope: &Scope) -> Result<()> {
    let origin = tie.far.origin();
    if tie.look(|state| state.halt.is_some()) {
        return Ok(());
    }
    if let Some(error) = sniff::error_in(value) {
        return Err(error.leaving(&origin));
    }
    if sniff::is_err(value) {
        let what = "its function returned an error, which is its result";
        return Err(tie.closed(what).leaving(&origin));
    }
    // A half that it had let go of before is no part of this.
    match scope.cancelled() {
        Some(cancel) if !tie.take_deferred().end => Err(tie.cancelled(&cancel)),
        _ => Ok(()),
    }
}

/// What the opener is told of a function that returned before it had started the dialogue: the error that it
/// returned, where it is one of ours, as a relay does that failed to open the next.
fn never_started<F, R: Payload>(value: &R, tie: &Tie) -> Error {
    let origin = tie.far.origin();
    if let Some(error) = sniff::error_in(value) {
        return error.leaving(&origin);
    }
    let what = if sniff::is_err(value) {
        "returned an error"
    } else {
        "returned"
    };
    let message = format!(
        "`{}` {what} of type `{}` before it called `started`: nothing was begun; call `started` first, or return \
         `offshoot::Error`, which arrives as itself",
        type_name::<F>(),
        type_name::<R>()
    );
    Error::new(ErrorKind::Closed, message).leaving(&origin)
}

/// Sees that the far task is cancelled, cancels its scope, and is ready when its grace is over.
struct HaltWatch<'a> {
    local: &'a Rc<Local>,
    tie: TieWatch,
    grace_at: Option<u64>,
    timer: Option<(u64, u64)>,
}

impl<'a> HaltWatch<'a> {
    fn new(tie: &Arc<Tie>, local: &'a Rc<Local>) -> HaltWatch<'a> {
        HaltWatch {
            local,
            tie: TieWatch::new(tie),
            grace_at: None,
            timer: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, scope: &Rc<Scope>) -> Poll<()> {
        let halt = |state: &State| state.halt.clone();
        let mut first = false;
        if self.grace_at.is_none()
            && let Poll::Ready(halt) = self.tie.poll(cx, halt)
        {
            first = true;
            self.grace_at = Some(halt.grace_at);
            scope.cancel(halt.cancel);
            self.tie.tie().set_halt_seen();
        }
        let Some(at) = self.grace_at else {
            return Poll::Pending;
        };
        // A thread that ran late has used up the grace, but its code is to see the cancellation once.
        if !first && clock::now() >= at {
            return Poll::Ready(());
        }
        match self.timer {
            Some(timer) => self.local.set_timer(timer, cx.waker()),
            None => self.timer = Some(self.local.add_timer(at, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for HaltWatch<'_> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.local.remove_timer(timer);
        }
    }
}
