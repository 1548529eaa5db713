//! Where a result goes: to a reply slot in this process, back over a link, or nowhere.
//!
//! An answer that is dropped unsent tells its caller why: nothing that was accepted is ever
//! silently forgotten.

use crate::chain::{self, Chain};
use crate::isolate::local::Local;
use crate::life::Life;
use crate::process::link::Link;
use crate::sniff;
use crate::{Error, Payload, Result};
use offshoot_mailbox::oneshot::{Holds, Sender};
use std::sync::Arc;
use std::task::{Context, Poll};

/// The callee's end of a call.
pub(crate) trait Answer<T>: Send + 'static {
    /// Delivers it. A caller that has gone is no error.
    fn send(self, result: Result<T>);

    /// Ready once nobody waits any more.
    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// True once nobody waits any more.
    fn is_unwanted(&self) -> bool;

    /// Those who wait for it.
    fn chain(&self) -> Chain;

    /// The failure that a result is for the isolate where nobody can receive it: the message was told.
    fn unheard(value: &T, what: &str) -> Option<Error> {
        let _ = (value, what);
        None
    }
}

/// An error of a call or method for which nobody waits any more. The isolate lives on: its caller has left it alone.
fn warn_unheard(error: &Error) {
    let isolate = Local::try_current().map(|local| local.shared.life.origin());
    let isolate = isolate.map_or_else(|| "none".to_owned(), |origin| origin.to_string());
    crate::log::warn!(isolate, %error, "a call failed for which nobody waits any more");
}

/// What a caller in this process waits in: an envelope.
pub(crate) trait Holding<T>: Holds<Result<T>> + Send + Sync + 'static {}

impl<T, H: Holds<Result<T>> + Send + Sync + 'static> Holding<T> for H {}

/// Who waits for an answer that is still to be made.
pub(crate) struct Asker(Chain);

impl Asker {
    /// The code that is running.
    pub(crate) fn here() -> Asker {
        Asker(chain::current())
    }
}

/// An answer to a caller in this process. Of one that is dropped its caller knows that there will be none, and why from its callee's life.
pub(crate) struct LocalAnswer<T, H: Holding<T>> {
    sender: Sender<Result<T>, H>,
    chain: Chain,
}

impl<T, H: Holding<T>> LocalAnswer<T, H> {
    pub(crate) fn new(sender: Sender<Result<T>, H>, asker: Asker) -> LocalAnswer<T, H> {
        LocalAnswer {
            sender,
            chain: asker.0,
        }
    }
}

impl<T: Send + 'static, H: Holding<T>> Answer<T> for LocalAnswer<T, H> {
    fn send(self, result: Result<T>) {
        // The caller may have gone meanwhile; then the result is dropped here.
        if let Err(result) = self.sender.send(result)
            && let Some(error) = match &result {
                Ok(value) => sniff::failure_of(value, "a call"),
                Err(error) => Some(error.clone()),
            }
        {
            warn_unheard(&error);
        }
    }

    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sender.poll_closed(cx)
    }

    fn is_unwanted(&self) -> bool {
        self.sender.is_closed()
    }

    fn chain(&self) -> Chain {
        self.chain.clone()
    }
}

/// An answer to a caller at the other end of a link.
pub(crate) struct RemoteAnswer {
    link: Arc<Link>,
    correlation: u64,
    wanted: Arc<crate::process::link::Wanted>,
    life: Arc<Life>,
    chain: Chain,
    sent: bool,
}

impl RemoteAnswer {
    pub(crate) fn new(
        link: Arc<Link>,
        correlation: u64,
        life: Arc<Life>,
        chain: Chain,
    ) -> RemoteAnswer {
        let wanted = link.expect(correlation);
        RemoteAnswer {
            link,
            correlation,
            wanted,
            life,
            chain,
            sent: false,
        }
    }

    /// True once nobody waits any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.wanted.is_unwanted()
    }

    /// Answers with an error whatever the type of the result is.
    pub(crate) fn fail(mut self, error: Error) {
        self.sent = true;
        self.link.send_failure(self.correlation, &error);
    }
}

impl<T: Payload> Answer<T> for RemoteAnswer {
    fn send(mut self, result: Result<T>) {
        self.sent = true;
        if self.is_given_up()
            && let Ok(value) = &result
            && let Some(error) = sniff::failure_in(value, "a call")
        {
            warn_unheard(&error);
        }
        match result {
            Ok(value) => self.link.send_reply(self.correlation, &value),
            Err(error) => self.link.send_failure(self.correlation, &error),
        }
    }

    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wanted.poll_unwanted(cx)
    }

    fn is_unwanted(&self) -> bool {
        self.wanted.is_unwanted()
    }

    fn chain(&self) -> Chain {
        self.chain.clone()
    }

    fn unheard(value: &T, what: &str) -> Option<Error> {
        sniff::failure_in(value, what)
    }
}

impl Drop for RemoteAnswer {
    fn drop(&mut self) {
        self.link.forget(self.correlation);
        if !self.sent {
            self.link.send_failure(self.correlation, &self.life.gone());
        }
    }
}

/// No answer: the other side of a `tell`. There is none, so that it takes no room in a message.
pub(crate) enum NoAnswer {}

impl<T: Payload> Answer<T> for NoAnswer {
    fn send(self, _: Result<T>) {
        match self {}
    }

    fn poll_unwanted(&mut self, _: &mut Context<'_>) -> Poll<()> {
        match *self {}
    }

    fn is_unwanted(&self) -> bool {
        match *self {}
    }

    fn chain(&self) -> Chain {
        match *self {}
    }

    fn unheard(value: &T, what: &str) -> Option<Error> {
        sniff::failure_in(value, what)
    }
}
