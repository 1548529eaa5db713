//! What a message turns into: a call that runs as a task, or a method that runs on the state.
//!
//! Between threads a message is one allocation, its envelope, which comes out of the mailbox as [`Mail`] and has the slot for its
//! reply in it. What comes from elsewhere is decoded into a box of its own ([`Job`], [`StateJob`]).

use super::local::{Local, Turn};
use super::panics;
use super::shared::Message;
use crate::Payload;
use crate::answer::{Answer, Asker, Holding, LocalAnswer, NoAnswer};
use crate::chain::{Chain, Waits};
use crate::credit::{Permit, Taken};
use crate::scope::Scope;
use crate::{Endpoint, Error, ErrorKind, Exit, Method, Result};
use offshoot_mailbox::oneshot::{Sender, Slot};
use offshoot_mailbox::{Contents, Envelope, Refuse};
use std::any::Any;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A message of a sender in this process, with the slot for its reply.
pub(crate) type Sent<J, T> = Envelope<J, Slot<Result<T>>>;

/// A message of a sender in this process that nobody replies to.
pub(crate) type Told<J> = Envelope<J, ()>;

/// What lies in a mailbox.
pub(crate) trait Mail: Refuse + Any + Send + Sync {
    /// Starts what it asks for.
    fn begin(self: Arc<Self>, local: &Rc<Local>);

    /// Itself, for whoever knows its type.
    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// A method call that has come out of the mailbox, and waits for the state.
pub(crate) trait StateMail: Refuse {
    /// True if its caller has gone; it has then been withdrawn.
    fn is_unwanted(&self) -> bool;

    /// Runs it at once, if it is no async method.
    ///
    /// # Errors
    /// Itself, if it is one.
    fn run_plain(
        self: Arc<Self>,
        state: &mut dyn Any,
        local: &Rc<Local>,
    ) -> Result<(), Arc<dyn StateMail>>;

    /// Starts it as a task, which has the state until it gives it back.
    fn start(self: Arc<Self>, state: Box<dyn Any>, local: &Rc<Local>);
}

/// A call that has arrived.
pub(crate) trait Job: Send {
    /// Starts it as a task of this isolate.
    fn begin(self: Box<Self>, local: &Rc<Local>);
}

/// A method call that has arrived.
pub(crate) trait StateJob: Send {
    /// True if its caller has gone; it has then been withdrawn.
    fn is_unwanted(&self) -> bool;

    /// Runs it at once, if it is no async method.
    ///
    /// # Errors
    /// Itself, if it is one.
    fn run_plain(
        self: Box<Self>,
        state: &mut dyn Any,
        local: &Rc<Local>,
    ) -> Result<(), Box<dyn StateJob>>;

    /// Starts it as a task, which has the state until it gives it back.
    fn start(self: Box<Self>, state: Box<dyn Any>, local: &Rc<Local>);
}

/// What came of code that was run under watch.
pub(crate) enum Outcome<T> {
    Done(T),
    Panicked(crate::Panic),
    /// Nobody waits any more.
    Unwanted,
}

impl<T> Outcome<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Done(value) => Outcome::Done(f(value)),
            Outcome::Panicked(panic) => Outcome::Panicked(panic),
            Outcome::Unwanted => Outcome::Unwanted,
        }
    }
}

/// Polls user code inside of its scope, catching a panic.
pub(crate) fn poll_caught<F: Future + ?Sized>(
    future: Pin<&mut F>,
    scope: &Rc<Scope>,
    cx: &mut Context<'_>,
) -> Poll<Outcome<F::Output>> {
    // Unwind safety: what a panicking isolate could have left half-changed is never run again.
    let polled = scope.enter(|| std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))));
    match polled {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Outcome::Done(value)),
        Err(payload) => Poll::Ready(Outcome::Panicked(panics::take(payload))),
    }
}

/// The error that a caller gets of code that panicked.
pub(crate) fn panicked(local: &Local, panic: crate::Panic) -> Error {
    let origin = local.shared.life.origin();
    let message = format!("isolate `{origin}` panicked: {panic}");
    Error::new(ErrorKind::Panicked(panic), message)
        .leaving(&origin)
        .with_id(local.shared.life.failure_id())
}

/// What is added to a message when it is accepted.
pub(crate) struct Reply<R, P = Permit> {
    /// Where the result goes: nowhere, of a `tell`.
    pub(crate) answer: Option<R>,
    pub(crate) permit: Option<P>,
}

impl<R, P> Reply<R, P> {
    /// Of one that is not accepted yet.
    pub(crate) const NONE: Reply<R, P> = Reply {
        answer: None,
        permit: None,
    };
}

impl<R> Reply<R> {
    pub(crate) fn new(answer: R, permit: Permit) -> Reply<R> {
        Reply {
            answer: Some(answer),
            permit: Some(permit),
        }
    }

    fn map<T>(self, f: impl FnOnce(R) -> T) -> Reply<T> {
        Reply {
            answer: self.answer.map(f),
            permit: self.permit,
        }
    }
}

impl Reply<Asker> {
    /// With the answer for which its caller waits in this slot.
    fn to<T, H: Holding<T>>(self, sender: Sender<Result<T>, H>) -> Reply<LocalAnswer<T, H>> {
        self.map(|asker| LocalAnswer::new(sender, asker))
    }
}

fn spend(permit: Option<Permit>, local: &Local) {
    if let Some(permit) = permit {
        permit.spend(local);
    }
}

/// One call of the endpoint `F`.
pub(crate) struct CallJob<F, M, R>
where
    F: Endpoint<M>,
{
    pub(crate) function: F,
    pub(crate) args: F::Args,
    pub(crate) reply: Reply<R>,
    pub(crate) marker: PhantomData<fn(M)>,
}

impl<F, M: 'static, R> Job for CallJob<F, M, R>
where
    F: Endpoint<M>,
    F::Args: Send + 'static,
    F::Out: 'static,
    R: Answer<F::Out>,
{
    fn begin(self: Box<Self>, local: &Rc<Local>) {
        self.begin_here(local);
    }
}

impl<F, M: 'static, R> CallJob<F, M, R>
where
    F: Endpoint<M>,
    F::Args: Send + 'static,
    F::Out: 'static,
    R: Answer<F::Out>,
{
    fn begin_here(self, local: &Rc<Local>) {
        let CallJob {
            function,
            args,
            reply: Reply { answer, permit },
            ..
        } = self;
        let Some(answer) = answer else {
            debug_assert!(false, "a call without an answer");
            return;
        };
        if F::PLAIN {
            local.watched(|| run_call(local, || function.invoke_plain(args).ok(), answer));
            spend(permit, local);
            return;
        }
        begin_call(
            local,
            async move || function.invoke(args).await,
            answer,
            permit,
        );
    }
}

impl<F, M: 'static> Contents<Slot<Result<F::Out>>> for CallJob<F, M, Asker>
where
    F: Endpoint<M>,
    F::Args: Send + 'static,
    F::Out: Send + 'static,
{
    type Face = dyn Mail;

    fn face(envelope: Arc<Sent<Self, F::Out>>) -> Arc<dyn Mail> {
        envelope
    }
}

impl<F, M: 'static> Mail for Sent<CallJob<F, M, Asker>, F::Out>
where
    F: Endpoint<M>,
    F::Args: Send + 'static,
    F::Out: Send + 'static,
{
    fn begin(self: Arc<Self>, local: &Rc<Local>) {
        let Some((job, sender)) = Envelope::open(self) else {
            return;
        };
        job.answering(|reply| reply.to(sender)).begin_here(local);
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<F: Endpoint<M>, M, R> CallJob<F, M, R> {
    /// With this to reply by.
    pub(crate) fn answering<T>(self, reply: impl FnOnce(Reply<R>) -> Reply<T>) -> CallJob<F, M, T> {
        CallJob {
            function: self.function,
            args: self.args,
            reply: reply(self.reply),
            marker: PhantomData,
        }
    }
}

/// A closure that captures; only within the process.
pub(crate) struct RunJob<F> {
    pub(crate) function: F,
    pub(crate) reply: Reply<Asker>,
}

impl<F, T> Contents<Slot<Result<T>>> for RunJob<F>
where
    F: AsyncFnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    type Face = dyn Mail;

    fn face(envelope: Arc<Sent<Self, T>>) -> Arc<dyn Mail> {
        envelope
    }
}

impl<F, T> Mail for Sent<RunJob<F>, T>
where
    F: AsyncFnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn begin(self: Arc<Self>, local: &Rc<Local>) {
        let Some((RunJob { function, reply }, sender)) = Envelope::open(self) else {
            return;
        };
        let reply = reply.to(sender);
        let Some(answer) = reply.answer else {
            debug_assert!(false, "a call without an answer");
            return;
        };
        begin_call(local, function, answer, reply.permit);
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// What a call says of those who wait for it. It holds up nobody, but in a blocking isolate, which does nothing else
/// until it has ended.
fn call_turn(local: &Local, chain: Chain) -> (Option<Turn<'_>>, Option<Waits>) {
    if local.is_blocking() {
        let turn = local.begin_turn();
        let waits = Waits::new(turn.number, chain);
        return (Some(turn), Some(waits));
    }
    (None, chain.map(|chain| Waits::new(0, Some(chain))))
}

/// Runs a call of what is no async function, which needs no task.
fn run_call<T>(local: &Rc<Local>, function: impl FnOnce() -> Option<T>, answer: impl Answer<T>) {
    if answer.is_unwanted() {
        return;
    }
    let (turn, waits) = call_turn(local, answer.chain());
    let outcome = run_caught(local, waits, function);
    // Before the answer: whoever has it may ask.
    drop(turn);
    match outcome {
        Outcome::Done(Some(value)) => answer.send(Ok(value)),
        Outcome::Done(None) | Outcome::Unwanted => {
            debug_assert!(false, "a plain function was none");
        }
        Outcome::Panicked(panic) => {
            // Announced first: nobody may see the answer and still find the isolate alive.
            local.fail(Exit::Panicked(panic.clone()));
            answer.send(Err(panicked(local, panic)));
        }
    }
}

/// Runs user code inside of a scope, catching a panic.
fn run_caught<T>(local: &Local, waits: Option<Waits>, f: impl FnOnce() -> T) -> Outcome<T> {
    let scope = local.take_scope();
    if let Some(waits) = waits {
        scope.set_waits(waits);
    }
    // Unwind safety: as of `poll_caught`.
    let ran = scope.enter(|| std::panic::catch_unwind(AssertUnwindSafe(f)));
    local.give_scope(scope);
    match ran {
        Ok(value) => Outcome::Done(value),
        Err(payload) => Outcome::Panicked(panics::take(payload)),
    }
}

fn begin_call<T: 'static>(
    local: &Rc<Local>,
    function: impl AsyncFnOnce() -> T + 'static,
    mut answer: impl Answer<T>,
    permit: Option<Permit>,
) {
    local.spawn_at_once(|this| async move {
        let scope = this.take_scope();
        let (turn, waits) = call_turn(&this, answer.chain());
        if let Some(waits) = waits {
            scope.set_waits(waits);
        }
        let outcome = {
            let mut future = pin!(async { function().await });
            poll_fn(|cx| {
                if answer.poll_unwanted(cx).is_ready() {
                    return Poll::Ready(Outcome::Unwanted);
                }
                poll_caught(future.as_mut(), &scope, cx)
            })
            .await
        };
        drop(turn);
        this.give_scope(scope);
        match outcome {
            Outcome::Done(value) => answer.send(Ok(value)),
            Outcome::Unwanted => drop(answer),
            Outcome::Panicked(panic) => {
                // Announced first: nobody may see the answer and still find the isolate alive.
                this.fail(Exit::Panicked(panic.clone()));
                answer.send(Err(panicked(&this, panic)));
            }
        }
        spend(permit, &this);
    });
}

/// One call of the method `F` of the state `S`. If `CANCELLABLE`, it is dropped when nobody waits.
pub(crate) struct MethodJob<S, F, M, R, const CANCELLABLE: bool, P = Permit>
where
    F: Method<S, M>,
{
    pub(crate) method: F,
    pub(crate) args: F::Args,
    pub(crate) reply: Reply<R, P>,
    pub(crate) marker: PhantomData<fn(S, M)>,
}

/// One that is told within the process. Its credit is of this process, too, which is said by the type, since it takes less room.
pub(crate) type TellJob<S, F, M> = MethodJob<S, F, M, NoAnswer, false, Taken>;

impl<S, F: Method<S, M>, M> TellJob<S, F, M> {
    /// As any other.
    fn permitted(self) -> MethodJob<S, F, M, NoAnswer, false> {
        MethodJob {
            method: self.method,
            args: self.args,
            reply: Reply {
                answer: None,
                permit: self.reply.permit.map(Permit::Local),
            },
            marker: PhantomData,
        }
    }
}

impl<S, F: Method<S, M>, M, R, const CANCELLABLE: bool> MethodJob<S, F, M, R, CANCELLABLE> {
    /// With this to reply by.
    pub(crate) fn answering<T>(
        self,
        reply: impl FnOnce(Reply<R>) -> Reply<T>,
    ) -> MethodJob<S, F, M, T, CANCELLABLE> {
        MethodJob {
            method: self.method,
            args: self.args,
            reply: reply(self.reply),
            marker: PhantomData,
        }
    }
}

impl<S: 'static, F, M: 'static, R, const CANCELLABLE: bool> MethodJob<S, F, M, R, CANCELLABLE>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: 'static,
    R: Answer<F::Out>,
{
    /// Of a method that is not async.
    fn run_here(self, state: &mut dyn Any, local: &Rc<Local>) {
        let MethodJob {
            method,
            args,
            reply: Reply { answer, permit },
            ..
        } = self;
        spend(permit, local);
        let Some(state) = state.downcast_mut::<S>() else {
            wrong_state::<S, F::Out, R>(local, answer);
            return;
        };
        let turn = local.begin_turn();
        let chain = answer.as_ref().and_then(Answer::chain);
        let waits = Waits::new(turn.number, chain);
        let outcome = run_caught(local, Some(waits), || method.apply_plain(state, args).ok());
        drop(turn);
        end_method(local, std::any::type_name::<F>(), outcome, answer);
    }

    fn start_here(self, mut state: Box<dyn Any>, local: &Rc<Local>) {
        let MethodJob {
            method,
            args,
            reply: Reply { answer, permit },
            ..
        } = self;
        local.spawn_at_once(|this| async move {
            // Begun: the sender may send another one.
            spend(permit, &this);
            match state.downcast_mut::<S>() {
                Some(state) => {
                    let what = std::any::type_name::<F>();
                    let future = method.apply(state, args);
                    run_method::<CANCELLABLE, _, _>(&this, what, future, answer).await;
                }
                None => wrong_state::<S, F::Out, R>(&this, answer),
            }
            this.return_state(state);
        });
    }
}

impl<S: 'static, F, M: 'static, R, const CANCELLABLE: bool> StateJob
    for MethodJob<S, F, M, R, CANCELLABLE>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: 'static,
    R: Answer<F::Out>,
{
    fn is_unwanted(&self) -> bool {
        self.reply.answer.as_ref().is_some_and(Answer::is_unwanted)
    }

    fn run_plain(
        self: Box<Self>,
        state: &mut dyn Any,
        local: &Rc<Local>,
    ) -> Result<(), Box<dyn StateJob>> {
        if !F::PLAIN {
            return Err(self);
        }
        self.run_here(state, local);
        Ok(())
    }

    fn start(self: Box<Self>, state: Box<dyn Any>, local: &Rc<Local>) {
        self.start_here(state, local);
    }
}

impl<S: 'static, F, M: 'static, const CANCELLABLE: bool> Contents<Slot<Result<F::Out>>>
    for MethodJob<S, F, M, Asker, CANCELLABLE>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: Send + 'static,
{
    type Face = dyn Mail;

    fn face(envelope: Arc<Sent<Self, F::Out>>) -> Arc<dyn Mail> {
        envelope
    }
}

impl<S: 'static, F, M: 'static, const CANCELLABLE: bool> Mail
    for Sent<MethodJob<S, F, M, Asker, CANCELLABLE>, F::Out>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: Send + 'static,
{
    fn begin(self: Arc<Self>, local: &Rc<Local>) {
        local.begin_on_state(self);
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<S: 'static, F, M: 'static, const CANCELLABLE: bool> StateMail
    for Sent<MethodJob<S, F, M, Asker, CANCELLABLE>, F::Out>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: Send + 'static,
{
    fn is_unwanted(&self) -> bool {
        self.reply().is_closed()
    }

    fn run_plain(
        self: Arc<Self>,
        state: &mut dyn Any,
        local: &Rc<Local>,
    ) -> Result<(), Arc<dyn StateMail>> {
        if !F::PLAIN {
            return Err(self);
        }
        if let Some((job, sender)) = Envelope::open(self) {
            job.answering(|reply| reply.to(sender))
                .run_here(state, local);
        }
        Ok(())
    }

    fn start(self: Arc<Self>, state: Box<dyn Any>, local: &Rc<Local>) {
        match Envelope::open(self) {
            Some((job, sender)) => {
                let job = job.answering(|reply| reply.to(sender));
                job.start_here(state, local);
            }
            None => local.return_state(state),
        }
    }
}

impl<S: 'static, F, M: 'static> Contents<()> for TellJob<S, F, M>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: Payload,
{
    type Face = dyn Mail;

    fn face(envelope: Arc<Told<Self>>) -> Arc<dyn Mail> {
        envelope
    }
}

impl<S: 'static, F, M: 'static> Mail for Told<TellJob<S, F, M>>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: Payload,
{
    fn begin(self: Arc<Self>, local: &Rc<Local>) {
        local.begin_on_state(self);
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<S: 'static, F, M: 'static> StateMail for Told<TellJob<S, F, M>>
where
    F: Method<S, M>,
    F::Args: Send + 'static,
    F::Out: Payload,
{
    fn is_unwanted(&self) -> bool {
        false
    }

    fn run_plain(
        self: Arc<Self>,
        state: &mut dyn Any,
        local: &Rc<Local>,
    ) -> Result<(), Arc<dyn StateMail>> {
        if !F::PLAIN {
            return Err(self);
        }
        if let Some(job) = self.take() {
            // Its memory goes before the program's code runs, which may send.
            drop(self);
            job.permitted().run_here(state, local);
        }
        Ok(())
    }

    fn start(self: Arc<Self>, state: Box<dyn Any>, local: &Rc<Local>) {
        match self.take() {
            Some(job) => job.permitted().start_here(state, local),
            None => local.return_state(state),
        }
    }
}

/// A closure over the state that captures; only within the process.
pub(crate) struct WithJob<S, F> {
    pub(crate) function: F,
    pub(crate) reply: Reply<Asker>,
    pub(crate) marker: PhantomData<fn(S)>,
}

impl<S: 'static, F, T> Contents<Slot<Result<T>>> for WithJob<S, F>
where
    F: AsyncFnOnce(&mut S) -> T + Send + 'static,
    T: Send + 'static,
{
    type Face = dyn Mail;

    fn face(envelope: Arc<Sent<Self, T>>) -> Arc<dyn Mail> {
        envelope
    }
}

impl<S: 'static, F, T> Mail for Sent<WithJob<S, F>, T>
where
    F: AsyncFnOnce(&mut S) -> T + Send + 'static,
    T: Send + 'static,
{
    fn begin(self: Arc<Self>, local: &Rc<Local>) {
        local.begin_on_state(self);
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl<S: 'static, F, T> StateMail for Sent<WithJob<S, F>, T>
where
    F: AsyncFnOnce(&mut S) -> T + Send + 'static,
    T: Send + 'static,
{
    fn is_unwanted(&self) -> bool {
        self.reply().is_closed()
    }

    fn run_plain(
        self: Arc<Self>,
        _: &mut dyn Any,
        _: &Rc<Local>,
    ) -> Result<(), Arc<dyn StateMail>> {
        Err(self)
    }

    fn start(self: Arc<Self>, mut state: Box<dyn Any>, local: &Rc<Local>) {
        let Some((
            WithJob {
                function, reply, ..
            },
            sender,
        )) = Envelope::open(self)
        else {
            local.return_state(state);
            return;
        };
        let Reply { answer, permit } = reply.to(sender);
        local.spawn_at_once(|this| async move {
            spend(permit, &this);
            match state.downcast_mut::<S>() {
                Some(state) => {
                    // Called inside: a closure that is no async one runs the program's code at the call.
                    let future = async { function(state).await };
                    run_method::<false, _, _>(&this, "a closure", future, answer).await;
                }
                None => wrong_state::<S, T, _>(&this, answer),
            }
            this.return_state(state);
        });
    }
}

/// What has come from elsewhere, or was encoded and decoded on its way, as it lies in a mailbox.
pub(crate) struct Arrival(pub(crate) Message);

impl Contents<()> for Arrival {
    type Face = dyn Mail;

    fn face(envelope: Arc<Told<Self>>) -> Arc<dyn Mail> {
        envelope
    }
}

impl Mail for Told<Arrival> {
    fn begin(self: Arc<Self>, local: &Rc<Local>) {
        if let Some(Arrival(message)) = self.take() {
            local.begin(message);
        }
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A method that was told has failed, and nobody else can be told: its isolate has failed, as by a panic. One that comes down anyway has not.
#[cold]
fn fail_unheard(local: &Local, what: &str, error: Error) {
    let isolate = local.shared.life.origin();
    if local.above().is_some() && error.is_cancelled() {
        return;
    }
    if local.above().is_some() || error.is_cancelled() {
        crate::log::warn!(%isolate, method = what, %error, "a method that was told failed");
        return;
    }
    crate::log::error!(%isolate, method = what, %error, "a method that was told failed");
    local.fail(Exit::Failed(error.leaving(&isolate)));
}

/// The types of portals rule this out; a forged frame must still not take the isolate down.
fn wrong_state<S, T, R: Answer<T>>(local: &Local, answer: Option<R>) {
    let message = format!(
        "isolate `{}` has no state of type `{}`",
        local.shared.life.origin(),
        std::any::type_name::<S>()
    );
    crate::log::warn!("{message}");
    if let Some(answer) = answer {
        answer.send(Err(Error::new(ErrorKind::Misuse, message)));
    }
}

async fn run_method<const CANCELLABLE: bool, T, R: Answer<T>>(
    local: &Rc<Local>,
    what: &str,
    future: impl Future<Output = T>,
    mut answer: Option<R>,
) {
    let scope = local.take_scope();
    let turn = local.begin_turn();
    let chain = answer.as_ref().and_then(Answer::chain);
    scope.set_waits(Waits::new(turn.number, chain));
    let outcome = {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if CANCELLABLE
                && answer
                    .as_mut()
                    .is_some_and(|answer| answer.poll_unwanted(cx).is_ready())
            {
                return Poll::Ready(Outcome::Unwanted);
            }
            poll_caught(future.as_mut(), &scope, cx)
        })
        .await
    };
    // Before the answer: whoever has it may ask.
    drop(turn);
    local.give_scope(scope);
    end_method(local, what, outcome.map(Some), answer);
}

fn end_method<T, R: Answer<T>>(
    local: &Local,
    what: &str,
    outcome: Outcome<Option<T>>,
    answer: Option<R>,
) {
    match outcome {
        Outcome::Done(Some(value)) => match answer {
            Some(answer) => answer.send(Ok(value)),
            None => {
                if let Some(error) = R::unheard(&value, what) {
                    fail_unheard(local, what, error);
                }
            }
        },
        Outcome::Done(None) => debug_assert!(false, "a plain method was none"),
        Outcome::Panicked(panic) => {
            local.fail(Exit::Panicked(panic.clone()));
            if let Some(answer) = answer {
                answer.send(Err(panicked(local, panic)));
            }
        }
        Outcome::Unwanted => {}
    }
}
