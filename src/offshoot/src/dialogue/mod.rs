//! Dialogues: a task on each of two isolates, joined by a typed stream each way, that live and die as one.
//!
//! [`Portal::open`] starts a function of an isolate that is given a [`Peer`], and gives the opener a [`Link`] once
//! that function has called [`Peer::started`]. Both sides send and take, close their half, cancel the other; the
//! opener gets the function's result.
//!
//! - *Room.* Each direction has a [`Window`]: a sender waits while its receiver is that far behind, and nobody else
//!   does. [`Overflow`] says what happens instead of waiting, where a sender wants that.
//! - *Ends.* A half that is closed is drained by the other side, which then sees the end. When the function has
//!   returned, the opener can still take what was sent, then sees the end, then the result. When it has not
//!   returned but failed, was killed or abandoned, the opener sees that instead of an end.
//! - *Cancelling.* [`Link::cancel`] cancels the far task as its isolate's cancellation would: its checkpoints fail,
//!   after the tree's grace its future is dropped. Dropping the link does the same. [`Peer::cancel`] makes whatever
//!   the opener does with its link fail. Each error names the author.
//! - *Scope.* A nursery does not return before the far tasks of the links that were opened in it have ended; those
//!   whose links are still about are cancelled then.
//!
//! Read `tie` for what the two sides know of each other, `channel` and `remote` for the ways between them.

mod channel;
mod far;
mod halves;
mod held;
mod open;
mod peer;
pub(crate) mod remote;
pub(crate) mod tie;

pub(crate) use channel::register;
pub use far::Dialogue;
pub(crate) use far::{OpenEntryDecode, OpenJob, RemoteOpen};
pub use halves::{Incoming, NextItem, Outgoing, SendItem};
pub(crate) use held::Held;
pub use open::{Link, LinkCancelling, Opening, Outcome, ResultOf};
pub use peer::{Parting, Peer};

pub use offshoot_wire::dialogue::Window;

use crate::{Error, ErrorKind, Origin};
use tie::{Role, Tie};

/// What a sender does when its receiver is a whole [`Window`] behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// Waits, so that a slow receiver slows its sender. Nothing is lost.
    #[default]
    Wait,
    /// Fails, to the side that is too fast: [`Error::is_full`]. The item is lost, the stream goes on.
    Error,
    /// Drops the oldest item that is not on its way, and counts it. The newest window of items is kept, to a process
    /// up to two.
    DropOldest,
    /// Drops this item, and counts it.
    DropNewest,
}

/// The error of a sender that overran its receiver.
pub(crate) fn overrun(tie: &Tie, role: Role, unread: usize, read: bool) -> Error {
    let far = tie.far.origin();
    let (who, with) = match role {
        Role::Opener => (format!("isolate `{far}`"), "the opener"),
        Role::Peer => ("the opener".to_owned(), "its peer"),
    };
    let why = if read {
        "it reads too slowly"
    } else {
        "it has read nothing yet"
    };
    let message =
        format!("{who} has {unread} unread items of {with} in a dialogue with `{far}`: {why}");
    Error::new(ErrorKind::Full, message)
}

/// Where code runs that ends a half: only what a living, uncancelled task lets go of is an end that its other side
/// may take for one. What a panic or a cancellation drops is told by the end of the task.
fn is_orderly() -> bool {
    if std::thread::panicking() {
        return false;
    }
    match crate::isolate::local::Local::try_current() {
        None => true,
        Some(_) => crate::scope::Scope::current().is_some_and(|scope| scope.cancelled().is_none()),
    }
}

fn here() -> Option<Origin> {
    crate::isolate::local::Local::try_current().map(|local| local.shared.life.origin())
}
