//! The receiving end of a blocking isolate: a plain loop over messages, on a thread that may block.

use super::local::{Local, Phase};
use crate::scope::cancelled_error;
use crate::time::{nanos, virtual_clock};
use crate::{Cancel, Canceller, Result};
use offshoot_sys::clock;
use std::rc::Rc;
use std::time::Duration;

/// The mailbox of a blocking isolate, given to its main function.
///
/// Each received message is run to its end before the next one begins. While no message runs and
/// the isolate is not receiving, nothing of it runs: its thread belongs to the main function,
/// which may block for as long as its owner's bounds allow.
pub struct Inbox {
    local: Rc<Local>,
}

impl Inbox {
    pub(crate) fn new(local: Rc<Local>) -> Inbox {
        Inbox { local }
    }

    /// Waits for the next message and runs it. False once the isolate was closed and all that it
    /// had accepted is done.
    ///
    /// # Blocking
    /// Always, until a message comes. # Cancellation: wakes up and returns the error.
    ///
    /// # Errors
    /// A cancelled error once the isolate is cancelled; the main function should then return.
    pub fn serve(&mut self) -> Result<bool> {
        Ok(self.serve_until(None)?.unwrap_or(false))
    }

    /// As [`serve`](Inbox::serve), for no longer than this; `None` when no message came in time.
    ///
    /// # Errors
    /// As [`serve`](Inbox::serve).
    pub fn serve_timeout(&mut self, timeout: Duration) -> Result<Option<bool>> {
        let timeout = nanos(timeout);
        let Some(clock) = virtual_clock() else {
            return self.serve_until(Some(clock::now().saturating_add(timeout)));
        };
        // By a test's clock: it has the loop look again when the time has come.
        let at = clock.now().saturating_add(timeout);
        let timer = clock.add_isolate(at, &self.local.shared);
        let outcome = self.serve_while(|| clock.now() < at);
        clock.remove(timer);
        outcome
    }

    /// Runs the next message if there is one; never blocks for one to come.
    ///
    /// # Errors
    /// As [`serve`](Inbox::serve).
    pub fn try_serve(&mut self) -> Result<Option<bool>> {
        self.serve_until(Some(0))
    }

    /// Runs `f` on the isolate's state, if it was started with one of this type.
    pub fn with_state<S: 'static, R>(&mut self, f: impl FnOnce(&mut S) -> R) -> Option<R> {
        self.local.with_state(f)
    }

    /// True once the isolate is cancelled. Sees what has arrived only when the inbox is used.
    pub fn is_cancelled(&self) -> bool {
        self.local.phase() >= Phase::Cancelling
    }

    fn serve_until(&mut self, deadline: Option<u64>) -> Result<Option<bool>> {
        let local = self.local.clone();
        // A timer of the loop, so that it wakes up in time; one that is due keeps it from sleeping.
        let timer = deadline.map(|at| local.add_timer(at, std::task::Waker::noop().clone()));
        let outcome = self.serve_while(|| deadline.is_none_or(|at| clock::now() < at));
        if let Some(timer) = timer {
            local.remove_timer(timer);
        }
        outcome
    }

    /// Serves one message, or none once it is late.
    fn serve_while(&mut self, in_time: impl Fn() -> bool) -> Result<Option<bool>> {
        let local = &self.local;
        local.open_gate();
        let mut turns = 0;
        let outcome = local.run_until(|| {
            turns += 1;
            if local.phase() >= Phase::Cancelling {
                return Some(Err(()));
            }
            if local.gate_used() {
                // Received: done when it has ended.
                return (!local.has_work()).then_some(Ok(Some(true)));
            }
            if local.is_drained() {
                return Some(Ok(Some(false)));
            }
            // Asked before and after each turn. The first turn finds what is in the mailbox, the
            // second what the poll after the first has found.
            (turns > 3 && !in_time()).then_some(Ok(None))
        });
        local.shut_gate();
        outcome.map_err(|()| {
            let cancel = local.shared.life.cancelled().cloned();
            cancelled_error(cancel.unwrap_or(Cancel {
                by: Canceller::Nursery(local.shared.life.origin()),
            }))
        })
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("isolate", &self.local.shared.life.origin())
            .finish_non_exhaustive()
    }
}

/// The main function of a blocking isolate that brought none.
pub(crate) fn serve_all(inbox: &mut Inbox) -> Result<()> {
    while inbox.serve()? {}
    Ok(())
}
