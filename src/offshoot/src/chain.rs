//! Who waits for whom: what makes an ask that would wait for itself fail instead.
//!
//! A method has the state of its isolate for as long as it runs, so that whoever asks that isolate
//! meanwhile waits for it. Each ask and each call therefore carries the [`Chain`] of those who wait
//! for its answer: the isolates of the methods and calls that sent it, newest first, each with the
//! number of its method. An ask whose target runs just that method closes a cycle, and fails.
//!
//! The number makes it exact on the side of the target: a method that has ended holds up nobody. A
//! `tell` carries nothing, as nobody waits for it, and a dialogue that has started neither, as its
//! opener may have gone on. What keeps a whole isolate from serving has a number as a method has: the
//! main function of a blocking isolate while it does not receive, a call that it has received, and a
//! blocking wait.

use crate::dialogue::tie::Tie;
use crate::isolate::local::Local;
use crate::isolate::shared::{Route, Shared, Target};
use crate::life::Life;
use crate::scope::Scope;
use crate::{Error, ErrorKind, IsolateId, Origin};
use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Who waits for an answer; none where it is nobody who holds up others.
pub(crate) type Chain = Option<Arc<Waiter>>;

/// How many of a chain, the newest, go along to another process. A frame has a bound.
pub(crate) const CROSSING: usize = 64;

/// One isolate of a chain.
pub(crate) struct Waiter {
    who: Who,
    /// The number of the method that waits, or 0 for a call, which holds nothing.
    turn: u64,
    above: Chain,
}

enum Who {
    Here(Arc<Life>),
    Elsewhere(Origin),
}

impl Waiter {
    fn id(&self) -> IsolateId {
        match &self.who {
            Who::Here(life) => life.identity().id,
            Who::Elsewhere(origin) => origin.id,
        }
    }

    fn origin(&self) -> Origin {
        match &self.who {
            Who::Here(life) => life.origin(),
            Who::Elsewhere(origin) => origin.clone(),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // One after the other: a chain may be long, and a stack is not.
        let mut next = self.above.take();
        while let Some(waiter) = next {
            next = Arc::into_inner(waiter).and_then(|mut waiter| waiter.above.take());
        }
    }
}

/// What a scope knows of the chain in which its code runs.
pub(crate) struct Waits {
    turn: u64,
    above: Chain,
    /// Nobody waits any more once this has started.
    until: Option<Arc<Tie>>,
    /// Made when it is first asked for, since most methods ask nobody.
    node: OnceCell<Arc<Waiter>>,
}

impl Waits {
    /// Of code for whose result these wait, and which is the method of this number or, with 0, a call.
    pub(crate) fn new(turn: u64, above: Chain) -> Waits {
        Waits {
            turn,
            above,
            until: None,
            node: OnceCell::new(),
        }
    }

    /// Of a far task, for whose start these wait.
    pub(crate) fn until_started(above: Chain, tie: &Arc<Tie>) -> Waits {
        Waits {
            until: Some(tie.clone()),
            ..Waits::new(0, above)
        }
    }

    /// The newest of the chain, made when it is first wanted.
    pub(crate) fn node(&self) -> Chain {
        if self.until.as_ref().is_some_and(|tie| tie.is_started()) {
            return None;
        }
        if let Some(node) = self.node.get() {
            return Some(node.clone());
        }
        let local = Local::try_current()?;
        let node = self.node.get_or_init(|| {
            Arc::new(Waiter {
                who: Who::Here(local.shared.life.clone()),
                turn: self.turn,
                above: self.above.clone(),
            })
        });
        Some(node.clone())
    }
}

/// The chain of whoever is running.
pub(crate) fn current() -> Chain {
    Scope::current()?.waiting()
}

/// Fails if an ask of this target, on behalf of whoever is running, would wait for itself.
///
/// Only for a target of this process. The process of another one looks itself, when the ask comes.
pub(crate) fn check_current(target: &Target) -> Result<(), Error> {
    let chain = current();
    match (chain, target.route()) {
        (Some(chain), Route::Thread(shared)) => check(&Some(chain), shared),
        _ => Ok(()),
    }
}

/// Fails if an ask of this isolate on behalf of these would wait for itself.
pub(crate) fn check(chain: &Chain, shared: &Shared) -> Result<(), Error> {
    let serving = shared.serving.load(Ordering::Acquire);
    let id = shared.life.identity().id;
    let mut next = chain.as_ref();
    let mut waiters = Vec::new();
    while let Some(waiter) = next {
        waiters.push(waiter);
        if waiter.turn != 0 && waiter.turn == serving && waiter.id() == id {
            let origins: Vec<Origin> = waiters.iter().rev().map(|waiter| waiter.origin()).collect();
            return Err(closed(origins));
        }
        next = waiter.above.as_ref();
    }
    Ok(())
}

/// The error that names the cycle, the first to ask first.
fn closed(origins: Vec<Origin>) -> Error {
    let mut text = String::new();
    for origin in &origins {
        text.push_str(&format!("`{}` waits for ", origin.path));
    }
    let first = origins.first().map_or("", |origin| origin.path.as_str());
    let message = format!(
        "asking isolate `{first}` would wait for ever: {text}`{first}`, whose method has not returned; \
         `tell` instead, or ask after the method has returned"
    );
    Error::new(ErrorKind::Cycle(origins), message)
}

/// A chain as it crosses to another process: origins and methods, newest first.
pub(crate) fn to_cross(chain: &Chain) -> Vec<(Origin, u64)> {
    let mut out = Vec::new();
    let mut next = chain.as_ref();
    while let Some(waiter) = next.filter(|_| out.len() < CROSSING) {
        out.push((waiter.origin(), waiter.turn));
        next = waiter.above.as_ref();
    }
    out
}

/// A chain that has come from another process.
pub(crate) fn crossed(waiters: Vec<(Origin, u64)>) -> Chain {
    let mut chain = None;
    for (origin, turn) in waiters.into_iter().rev() {
        chain = Some(Arc::new(Waiter {
            who: Who::Elsewhere(origin),
            turn,
            above: chain,
        }));
    }
    chain
}
