//! The legal order of the frames of one connection: one state machine for each direction, which whoever reads runs.
//!
//! ```text
//!                    first            then, in any order                                       last
//! owner  → child     [Outfit] Boot    Call Ask Tell Drop Cancel Close Open Introduce · stream
//!                                     Offer, Switch
//! child  → owner     Ready | Refused  Reply Failure Credit CancelAck Started · stream          Ended, Refused
//!                                     Accept
//! holder → isolate                    Call Ask Tell Drop Cancel Close Open Introduce · stream
//! isolate → holder                    Reply Failure Credit CancelAck Started Close · stream    Ended
//! ```
//!
//! - *stream* is Item End Cut Grant Deaf Halt HaltSeen, whose own order, for each Open, is that of
//!   [`dialogue::Machine`](crate::dialogue::Machine).
//! - Boot, Ready and Refused come once and first, but that an Outfit may come before a Boot, to a child that waited for
//!   its owner. Nothing follows a Refused.
//! - Ended comes once. Behind it may come answers and streams that were under way, which nobody waits for any more;
//!   nothing that needs a living isolate: no Credit, no Started, no CancelAck, no Close, no Accept, no Resting.
//! - Enclosed stands before the frame that it belongs to, which has its correlation and is one that can carry a value:
//!   Boot Call Ask Tell Open Reply Started Item. Nothing comes between the two.
//! - An owner may also send Inspect, which a child answers by Inspected, and Rest, which it answers by Resting, and a
//!   child Noticed, as often as they like.
//! - Of a ring: an owner may send Offer once, and once after it Switch; a child Accept, once.
//! - Drop, Close, CancelAck, End, Deaf, HaltSeen, Offer, Accept, Switch and Rest have no body.
//!
//! What breaks the order costs its sender the connection, and nobody else anything.

use crate::frame::{Header, Kind};

/// Who sends over a direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The owner of a process, to it.
    Owner,
    /// A process, to its owner.
    Child,
    /// The holder of a portal that was given to it, to the isolate.
    Holder,
    /// That isolate, to the holder.
    Isolate,
}

/// What is illegal about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Disorder {
    /// It is not for this side to send.
    #[error("a frame {0:?} is not for the {from} to send", from = name(*.1))]
    WrongSide(Kind, From),
    /// Something else has to come first.
    #[error("the first frame of the {from} is {0:?} instead of {wanted}", from = name(*.1), wanted = first(*.1))]
    NotFirst(Kind, From),
    /// It came a second time, or after the last.
    #[error("a frame {0:?} after the last of its kind")]
    TooLate(Kind),
    /// What came before it belongs to another frame.
    #[error("a frame {0:?} of {1} between an Enclosed of {2} and what that belongs to")]
    NotEnclosed(Kind, u64, u64),
    /// It takes up a ring that nobody has offered.
    #[error("a frame Switch without an Offer")]
    NoOffer,
    /// It has a body, which its kind has not.
    #[error("a frame {0:?} with a body of {1} bytes")]
    Body(Kind, u32),
}

fn name(from: From) -> &'static str {
    match from {
        From::Owner => "owner",
        From::Child => "child",
        From::Holder => "holder of a portal",
        From::Isolate => "isolate",
    }
}

fn first(from: From) -> &'static str {
    match from {
        From::Owner => "Boot",
        From::Child => "Ready or Refused",
        From::Holder | From::Isolate => "any",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come.
    New,
    /// Only an Outfit has come.
    Dressed,
    Open,
    /// It has said how it ended.
    Ended,
    /// Nothing may come any more.
    Shut,
}

/// One direction of one connection.
#[derive(Clone, Debug)]
pub struct Order {
    from: From,
    stage: Stage,
    /// An Enclosed of this correlation has come, whose frame has not.
    enclosed: Option<u64>,
    /// The last that has come of Offer, Switch and Accept.
    ring: Option<Kind>,
}

impl Order {
    /// A direction in which nothing has been sent.
    pub fn new(from: From) -> Order {
        let stage = match from {
            From::Owner | From::Child => Stage::New,
            From::Holder | From::Isolate => Stage::Open,
        };
        Order {
            from,
            stage,
            enclosed: None,
            ring: None,
        }
    }

    /// Says that a frame has come.
    ///
    /// # Errors
    /// It is illegal: the connection is to be ended. Nothing has changed then.
    pub fn receive(&mut self, header: Header) -> Result<(), Disorder> {
        let Header {
            kind,
            correlation,
            len,
        } = header;
        if !may_send(self.from, kind) {
            return Err(Disorder::WrongSide(kind, self.from));
        }
        if len > 0 && !has_body(kind) {
            return Err(Disorder::Body(kind, len));
        }
        if let Some(enclosed) = self.enclosed
            && (enclosed != correlation || !carries(kind))
        {
            return Err(Disorder::NotEnclosed(kind, correlation, enclosed));
        }
        let stage = self.after(kind)?;
        let ring = self.ring_after(kind)?;
        self.stage = stage;
        self.ring = ring;
        self.enclosed = (kind == Kind::Enclosed).then_some(correlation);
        Ok(())
    }

    /// The stage that it is in with a frame of this kind.
    fn after(&self, kind: Kind) -> Result<Stage, Disorder> {
        let greeting = matches!(
            kind,
            Kind::Outfit | Kind::Boot | Kind::Ready | Kind::Refused
        );
        match self.stage {
            Stage::New if kind == Kind::Refused => Ok(Stage::Shut),
            Stage::New if kind == Kind::Outfit => Ok(Stage::Dressed),
            Stage::Dressed if kind == Kind::Outfit => Err(Disorder::TooLate(kind)),
            Stage::New | Stage::Dressed if greeting => Ok(Stage::Open),
            // Of the state in a Boot; a child has nothing to enclose so early.
            Stage::Dressed if kind == Kind::Enclosed => Ok(Stage::Dressed),
            Stage::New if kind == Kind::Enclosed && self.from == From::Owner => Ok(Stage::New),
            Stage::New | Stage::Dressed => Err(Disorder::NotFirst(kind, self.from)),
            Stage::Shut => Err(Disorder::TooLate(kind)),
            _ if greeting => Err(Disorder::TooLate(kind)),
            Stage::Open if kind == Kind::Ended => Ok(Stage::Ended),
            Stage::Open => Ok(Stage::Open),
            Stage::Ended => match kind {
                Kind::Ended
                | Kind::Credit
                | Kind::Started
                | Kind::CancelAck
                | Kind::Close
                | Kind::Accept
                | Kind::Resting => Err(Disorder::TooLate(kind)),
                _ => Ok(Stage::Ended),
            },
        }
    }

    /// What has come of a ring with a frame of this kind.
    fn ring_after(&self, kind: Kind) -> Result<Option<Kind>, Disorder> {
        match (kind, self.ring) {
            (Kind::Offer | Kind::Accept, None) | (Kind::Switch, Some(Kind::Offer)) => {
                Ok(Some(kind))
            }
            (Kind::Switch, None) => Err(Disorder::NoOffer),
            (Kind::Offer | Kind::Accept | Kind::Switch, Some(_)) => Err(Disorder::TooLate(kind)),
            (_, ring) => Ok(ring),
        }
    }
}

fn may_send(from: From, kind: Kind) -> bool {
    use Kind::*;
    let asks = matches!(from, From::Owner | From::Holder);
    match kind {
        Outfit | Boot | Offer | Switch | Inspect | Rest => from == From::Owner,
        Ready | Refused | Accept | Inspected | Noticed | Resting => from == From::Child,
        Call | Ask | Tell | Drop | Cancel | Open | Introduce => asks,
        Close => from != From::Child,
        Reply | Failure | Credit | CancelAck | Ended | Started => !asks,
        Item | End | Cut | Grant | Deaf | Halt | HaltSeen | Enclosed => true,
    }
}

fn has_body(kind: Kind) -> bool {
    use Kind::*;
    !matches!(
        kind,
        Drop | Close | CancelAck | End | Deaf | HaltSeen | Offer | Accept | Switch | Rest
    )
}

fn carries(kind: Kind) -> bool {
    use Kind::*;
    matches!(
        kind,
        Boot | Call | Ask | Tell | Open | Reply | Started | Item
    )
}
