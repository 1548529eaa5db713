//! Where a result goes: to a reply slot in this process, back over a link, or nowhere.
//!
//! An answer that is dropped unsent tells its caller why: nothing that was accepted is ever
//! silently forgotten.

use crate::chain::{self, Chain};
use crate::life::Life;
use crate::process::link::Link;
use crate::{Error, Payload, Result};
use offshoot_mailbox::oneshot;
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
}

/// An answer to a caller in this process.
pub(crate) struct LocalAnswer<T> {
    sender: Option<oneshot::Sender<Result<T>>>,
    /// The callee's, for the reason if the answer is dropped.
    life: Arc<Life>,
    chain: Chain,
}

impl<T> LocalAnswer<T> {
    /// One for which the code waits that is running.
    pub(crate) fn new(sender: oneshot::Sender<Result<T>>, life: Arc<Life>) -> LocalAnswer<T> {
        LocalAnswer {
            sender: Some(sender),
            life,
            chain: chain::current(),
        }
    }
}

impl<T: Send + 'static> Answer<T> for LocalAnswer<T> {
    fn send(mut self, result: Result<T>) {
        if let Some(sender) = self.sender.take() {
            // The caller may have gone meanwhile; then the result is dropped here.
            let _ = sender.send(result);
        }
    }

    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sender
            .as_mut()
            .map_or(Poll::Ready(()), |sender| sender.poll_closed(cx))
    }

    fn is_unwanted(&self) -> bool {
        self.sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn chain(&self) -> Chain {
        self.chain.clone()
    }
}

impl<T> Drop for LocalAnswer<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(Err(self.life.gone()));
        }
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
}

impl Drop for RemoteAnswer {
    fn drop(&mut self) {
        self.link.forget(self.correlation);
        if !self.sent {
            self.link.send_failure(self.correlation, &self.life.gone());
        }
    }
}

/// No answer: the other side of a `tell`.
pub(crate) struct NoAnswer;

impl<T> Answer<T> for NoAnswer {
    fn send(self, _: Result<T>) {}

    fn poll_unwanted(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn is_unwanted(&self) -> bool {
        false
    }

    fn chain(&self) -> Chain {
        None
    }
}
