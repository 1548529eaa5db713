//! What a message turns into: a call that runs as a task, or a method that runs on the state.

use super::local::{Local, Turn};
use super::panics;
use crate::answer::Answer;
use crate::chain::{Chain, Waits};
use crate::credit::Permit;
use crate::scope::Scope;
use crate::{Endpoint, Error, ErrorKind, Exit, Method};
use std::any::Any;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

/// A call that has arrived.
pub(crate) trait Job: Send {
    /// Starts it as a task of this isolate.
    fn begin(self: Box<Self>, local: &Rc<Local>);
}

/// A method call that has arrived.
pub(crate) trait StateJob: Send + Any {
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

    /// Runs it to its end.
    fn run<'a>(
        self: Box<Self>,
        state: &'a mut dyn Any,
        local: &'a Rc<Local>,
    ) -> Pin<Box<dyn Future<Output = ()> + 'a>>;
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
pub(crate) struct Reply<R> {
    /// Where the result goes: nowhere, of a `tell`.
    pub(crate) answer: Option<R>,
    pub(crate) permit: Option<Permit>,
}

impl<R> Reply<R> {
    /// Of one that is not accepted yet.
    pub(crate) const NONE: Reply<R> = Reply {
        answer: None,
        permit: None,
    };

    pub(crate) fn new(answer: R, permit: Permit) -> Reply<R> {
        Reply {
            answer: Some(answer),
            permit: Some(permit),
        }
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
        let CallJob {
            function,
            args,
            reply: Reply { answer, permit },
            ..
        } = *self;
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

/// A closure that captures; only within the process.
pub(crate) struct RunJob<F, R> {
    pub(crate) function: F,
    pub(crate) reply: Reply<R>,
}

impl<F, T: 'static, R> Job for RunJob<F, R>
where
    F: AsyncFnOnce() -> T + Send + 'static,
    R: Answer<T>,
{
    fn begin(self: Box<Self>, local: &Rc<Local>) {
        let RunJob { function, reply } = *self;
        let Some(answer) = reply.answer else {
            debug_assert!(false, "a call without an answer");
            return;
        };
        begin_call(local, function, answer, reply.permit);
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
    let this = local.clone();
    local.spawn_at_once(async move {
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
pub(crate) struct MethodJob<S, F, M, R, const CANCELLABLE: bool>
where
    F: Method<S, M>,
{
    pub(crate) method: F,
    pub(crate) args: F::Args,
    pub(crate) reply: Reply<R>,
    pub(crate) marker: PhantomData<fn(S, M)>,
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
        let MethodJob {
            method,
            args,
            reply: Reply { answer, permit },
            ..
        } = *self;
        spend(permit, local);
        let Some(state) = state.downcast_mut::<S>() else {
            wrong_state::<S, F::Out, R>(local, answer);
            return Ok(());
        };
        let turn = local.begin_turn();
        let chain = answer.as_ref().and_then(Answer::chain);
        let waits = Waits::new(turn.number, chain);
        let outcome = run_caught(local, Some(waits), || method.apply_plain(state, args).ok());
        drop(turn);
        end_method(local, outcome, answer);
        Ok(())
    }

    fn run<'a>(
        self: Box<Self>,
        state: &'a mut dyn Any,
        local: &'a Rc<Local>,
    ) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        let MethodJob {
            method,
            args,
            reply: Reply { answer, permit },
            ..
        } = *self;
        Box::pin(async move {
            // Begun: the sender may send another one.
            spend(permit, local);
            let Some(state) = state.downcast_mut::<S>() else {
                wrong_state::<S, F::Out, R>(local, answer);
                return;
            };
            run_method::<CANCELLABLE, _, _>(local, method.apply(state, args), answer).await;
        })
    }
}

/// A closure over the state that captures; only within the process.
pub(crate) struct WithJob<S, F, R> {
    pub(crate) function: F,
    pub(crate) reply: Reply<R>,
    pub(crate) marker: PhantomData<fn(S)>,
}

impl<S: 'static, F, T: 'static, R> StateJob for WithJob<S, F, R>
where
    F: AsyncFnOnce(&mut S) -> T + Send + 'static,
    R: Answer<T>,
{
    fn is_unwanted(&self) -> bool {
        self.reply.answer.as_ref().is_some_and(Answer::is_unwanted)
    }

    fn run_plain(self: Box<Self>, _: &mut dyn Any, _: &Rc<Local>) -> Result<(), Box<dyn StateJob>> {
        Err(self)
    }

    fn run<'a>(
        self: Box<Self>,
        state: &'a mut dyn Any,
        local: &'a Rc<Local>,
    ) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        let WithJob {
            function,
            reply: Reply { answer, permit },
            ..
        } = *self;
        Box::pin(async move {
            spend(permit, local);
            let Some(state) = state.downcast_mut::<S>() else {
                wrong_state::<S, T, R>(local, answer);
                return;
            };
            // Called inside: a closure that is no async one runs the program's code at the call.
            let future = async { function(state).await };
            run_method::<false, _, _>(local, future, answer).await;
        })
    }
}

/// The types of portals rule this out; a forged frame must still not take the isolate down.
fn wrong_state<S, T, R: Answer<T>>(local: &Local, answer: Option<R>) {
    let message = format!(
        "isolate `{}` has no state of type `{}`",
        local.shared.life.origin(),
        std::any::type_name::<S>()
    );
    tracing::warn!("{message}");
    if let Some(answer) = answer {
        answer.send(Err(Error::new(ErrorKind::Misuse, message)));
    }
}

async fn run_method<const CANCELLABLE: bool, T, R: Answer<T>>(
    local: &Rc<Local>,
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
    end_method(local, outcome.map(Some), answer);
}

fn end_method<T, R: Answer<T>>(local: &Local, outcome: Outcome<Option<T>>, answer: Option<R>) {
    match outcome {
        Outcome::Done(Some(value)) => {
            if let Some(answer) = answer {
                answer.send(Ok(value));
            }
        }
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
