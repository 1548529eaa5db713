//! The one report type: what went wrong, where, by which way it came here, and what to do.

use crate::{Cancel, Exit, Origin, Panic};
use serde::{Deserialize, Serialize};
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// Names one failure of one tree, however many reports of it there are.
///
/// A panic in a call reaches the caller as the call's error and the nursery as the isolate's exit;
/// the id is what lets the nursery report it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FailureId(pub u64);

/// What kind of thing went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The scope in which this was awaited is cancelled, or the callee was.
    Cancelled(Cancel),
    /// A bound passed, in milliseconds.
    TimedOut(u64),
    /// The isolate ended before it answered, or had ended before it was asked.
    Ended(Box<Exit>),
    /// The called code panicked.
    Panicked(Panic),
    /// No credit for another message: the receiver is behind.
    Full,
    /// An isolate could not be started; the stage at which it stopped.
    Spawn(String),
    /// A system call failed; the operating system's number where there is one.
    Io(Option<i32>),
    /// Bytes from the other side were wrong. The connection is ended.
    Protocol,
    /// A value could not be encoded or decoded.
    Codec,
    /// The interface was used in a way that cannot work; the message tells how to.
    Misuse,
    /// Several failures; the first is the cause, the others follow in order of death.
    Several,
    /// An error of the program's own.
    Other,
    /// The other side of a dialogue has ended what this needs: it takes nothing, or is over.
    Closed,
    /// A subscriber of a broadcast was so far behind that so many items were dropped for it.
    Lagged(u64),
    /// An ask would have waited for itself: these wait for each other, each for the next, the last for the first.
    Cycle(Vec<Origin>),
    /// A shielded body was dropped before it had ended, so many milliseconds after it was cancelled: the grace was over.
    Cut(u64),
}

/// What went wrong, as one value that crosses threads and processes.
///
/// `Display` is one line without its [`source`](StdError::source); `{:#}` adds the sources, the
/// origin and the route; [`Error::report`] prints all there is, several failures as a tree.
///
/// Cloning is cheap where the error was made in this process, since the original source is shared.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Raw")]
pub struct Error(Box<Inner>);

/// An error as its bytes say it, without what serde skips.
#[derive(Deserialize)]
#[serde(rename = "Error")]
struct Raw(Box<Inner>);

impl From<Raw> for Error {
    fn from(raw: Raw) -> Error {
        let mut error = Error(raw.0);
        error.link_chain();
        error
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Inner {
    kind: ErrorKind,
    message: String,
    type_name: Option<String>,
    /// The messages of the sources, outermost first. Kept as strings so that they cross.
    chain: Vec<String>,
    origin: Option<Origin>,
    route: Vec<Origin>,
    id: Option<FailureId>,
    others: Vec<Error>,
    #[serde(skip)]
    source: Option<Arc<dyn StdError + Send + Sync>>,
    /// The chain again, as something that `source()` can point to.
    #[serde(skip)]
    link: Option<Box<Link>>,
}

/// A source that crossed a boundary: its text and the next.
#[derive(Clone, Debug)]
struct Link {
    message: String,
    next: Option<Box<Link>>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Link {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.next.as_deref().map(|next| next as _)
    }
}

impl Error {
    /// An error of this kind with this message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            type_name: None,
            chain: Vec::new(),
            origin: None,
            route: Vec::new(),
            id: None,
            others: Vec::new(),
            source: None,
            link: None,
        }))
    }

    /// An error of the program's own, made from any error. Its type's name, its message and its
    /// sources are kept when it crosses to another isolate; the value itself while it stays here.
    pub fn other<E>(error: E) -> Error
    where
        E: Into<Box<dyn StdError + Send + Sync>> + 'static,
    {
        let type_name = std::any::type_name::<E>();
        let boxed: Box<dyn StdError + Send + Sync> = error.into();
        // `Error::other("text")` is a message, not a value of a type that anybody looks for.
        let named = !matches!(type_name, "&str" | "alloc::string::String");
        let mut made = Error::new(ErrorKind::Other, boxed.to_string());
        made.0.type_name = named.then(|| type_name.to_owned());
        made.attach(Arc::from(boxed));
        made
    }

    /// A failed system call, with a message that says more than the operating system does: what was
    /// attempted, on what. [`Error::downcast_ref`] finds `source`.
    pub fn io(message: impl Into<String>, source: std::io::Error) -> Error {
        let mut made = Error::new(ErrorKind::Io(source.raw_os_error()), message);
        made.0.type_name = Some("std::io::error::Error".to_owned());
        made.attach(Arc::new(source));
        made
    }

    /// The same error with this one as its source, for [`Error::downcast_ref`] and the chain.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Error {
        self.attach(Arc::new(source));
        self
    }

    /// Several failures as one: the cause first, the others in order of death. One alone is itself.
    pub fn several(cause: Error, others: Vec<Error>) -> Error {
        if others.is_empty() {
            return cause;
        }
        let mut all = vec![cause];
        all.extend(others);
        let message = format!("{} failures, the first: {}", all.len(), all[0]);
        let mut group = Error::new(ErrorKind::Several, message);
        group.0.others = all;
        group
    }

    /// Keeps `source` for [`StdError::source`] and [`Error::downcast_ref`], and its texts for crossing.
    fn attach(&mut self, source: Arc<dyn StdError + Send + Sync>) {
        let mut chain = Vec::new();
        let mut next = source.source();
        // Sixteen is far deeper than real chains go; a cyclic one must end somewhere.
        while let Some(error) = next.filter(|_| chain.len() < 16) {
            chain.push(error.to_string());
            next = error.source();
        }
        self.0.chain = chain;
        self.0.source = Some(source);
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The message, without sources, origin or route.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The name of the type that the error had where it was made.
    pub fn type_name(&self) -> Option<&str> {
        self.0.type_name.as_deref()
    }

    /// The messages of its sources, outermost first, also after it crossed a boundary.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.0.chain.iter().map(String::as_str)
    }

    /// The isolate in which it was made, once it left it.
    pub fn origin(&self) -> Option<&Origin> {
        self.0.origin.as_ref()
    }

    /// The isolates that it passed through after its origin, in that order.
    pub fn route(&self) -> &[Origin] {
        &self.0.route
    }

    /// The failures inside, the cause first; the error itself if it is a single one.
    pub fn failures(&self) -> Vec<&Error> {
        if self.0.others.is_empty() {
            vec![self]
        } else {
            self.0.others.iter().flat_map(Error::failures).collect()
        }
    }

    /// How the isolate ended whose end this error reports; of several failures, the first that reports one.
    pub fn exit(&self) -> Option<&Exit> {
        let others = || self.0.others.iter().find_map(Error::exit);
        self.own_exit().or_else(others)
    }

    fn own_exit(&self) -> Option<&Exit> {
        match &self.0.kind {
            ErrorKind::Ended(exit) => Some(exit),
            _ => None,
        }
    }

    /// The error as the value that it was made from, while it has not left its process.
    pub fn downcast_ref<E: StdError + 'static>(&self) -> Option<&E> {
        self.0
            .source
            .as_deref()
            .and_then(|source| source.downcast_ref())
    }

    /// True if the awaiting scope, or the one that was called, is cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.kind(), ErrorKind::Cancelled(_))
            || matches!(self.own_exit(), Some(Exit::Cancelled(_)))
    }

    /// True if a bound passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind(), ErrorKind::TimedOut(_))
    }

    /// True if the called code panicked, or the isolate ended by a panic.
    pub fn is_panic(&self) -> bool {
        matches!(self.kind(), ErrorKind::Panicked(_))
            || matches!(self.own_exit(), Some(Exit::Panicked(_)))
    }

    /// True if the receiver had no room.
    pub fn is_full(&self) -> bool {
        matches!(self.kind(), ErrorKind::Full)
    }

    /// True if an isolate could not be started.
    pub fn is_spawn(&self) -> bool {
        matches!(self.kind(), ErrorKind::Spawn(_))
    }

    /// True if the other side of a dialogue takes nothing any more, or the dialogue is over.
    pub fn is_closed(&self) -> bool {
        matches!(self.kind(), ErrorKind::Closed)
    }

    /// How many items a subscriber of a broadcast has missed, if that is what this says.
    pub fn lagged(&self) -> Option<u64> {
        match self.kind() {
            ErrorKind::Lagged(missed) => Some(*missed),
            _ => None,
        }
    }

    /// The isolates that would have waited for each other, each for the next and the last for the first, if that is
    /// what this says: an ask that closes such a cycle fails.
    pub fn cycle(&self) -> Option<&[Origin]> {
        match self.kind() {
            ErrorKind::Cycle(isolates) => Some(isolates),
            _ => None,
        }
    }

    /// True if the isolate had ended or ended before it answered.
    pub fn is_ended(&self) -> bool {
        matches!(self.kind(), ErrorKind::Ended(_))
    }

    /// Sets where it was made, if that is not known yet; otherwise adds a hop to its route.
    ///
    /// Called once for each boundary that it crosses, with the isolate that it leaves.
    #[must_use]
    pub fn leaving(mut self, isolate: &Origin) -> Error {
        match &self.0.origin {
            None => self.0.origin = Some(isolate.clone()),
            Some(origin) if origin.id == isolate.id && self.0.route.is_empty() => {}
            Some(_) => {
                if self.0.route.last().is_none_or(|last| last.id != isolate.id) {
                    self.0.route.push(isolate.clone());
                }
            }
        }
        for other in &mut self.0.others {
            let taken = std::mem::replace(other, Error::new(ErrorKind::Other, ""));
            *other = taken.leaving(isolate);
        }
        self
    }

    /// Marks it as a report of this failure.
    #[must_use]
    pub fn with_id(mut self, id: FailureId) -> Error {
        self.0.id = Some(id);
        self
    }

    /// Which failure this is a report of, where that was recorded.
    pub fn id(&self) -> Option<FailureId> {
        self.0.id
    }

    /// Rebuilds what serde skips, so that [`StdError::source`] works after a crossing.
    #[must_use]
    pub fn arrived(mut self) -> Error {
        self.link_chain();
        if let ErrorKind::Ended(exit) = &mut self.0.kind
            && let Exit::Failed(inner) = &mut **exit
        {
            let taken = std::mem::replace(inner, Error::new(ErrorKind::Other, ""));
            *inner = taken.arrived();
        }
        let others = std::mem::take(&mut self.0.others);
        self.0.others = others.into_iter().map(Error::arrived).collect();
        self
    }

    /// Makes the chain of texts something that `source()` can point to.
    fn link_chain(&mut self) {
        let mut link = None;
        for message in self.0.chain.iter().rev() {
            link = Some(Box::new(Link {
                message: message.clone(),
                next: link,
            }));
        }
        self.0.link = link;
    }

    /// All there is to say, over several lines: message, sources, origin, route, exits, backtrace;
    /// several failures as a tree with the cause first.
    pub fn report(&self) -> String {
        let mut out = String::new();
        self.report_into(&mut out, "");
        out
    }

    fn report_into(&self, out: &mut String, indent: &str) {
        use fmt::Write;
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{indent}{self}");
        for (n, other) in self.0.others.iter().enumerate() {
            let _ = write!(out, "{indent}  {}. ", n + 1);
            let mut inner = String::new();
            other.report_into(&mut inner, &format!("{indent}     "));
            out.push_str(inner.trim_start());
        }
        for source in &self.0.chain {
            let _ = writeln!(out, "{indent}  caused by: {source}");
        }
        if let Some(origin) = &self.0.origin {
            let _ = write!(out, "{indent}  in {origin:?}");
            for hop in &self.0.route {
                let _ = write!(out, " → {}", hop.path);
            }
            out.push('\n');
        }
        let panic = match (&self.0.kind, self.own_exit()) {
            (ErrorKind::Panicked(panic), _) => Some(panic),
            (_, Some(Exit::Panicked(panic))) => Some(panic),
            _ => None,
        };
        if let Some(backtrace) = panic.and_then(|panic| panic.backtrace.as_deref()) {
            for line in backtrace.lines() {
                let _ = writeln!(out, "{indent}  {line}");
            }
        }
        if let Some(Exit::Abandoned { doing, .. }) = self.own_exit() {
            for line in doing.lines().skip(1) {
                let _ = writeln!(out, "{indent}  {line}");
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if f.alternate() {
            for source in &self.0.chain {
                write!(f, ": {source}")?;
            }
            if let Some(origin) = &self.0.origin {
                write!(f, " (in {origin}")?;
                for hop in &self.0.route {
                    write!(f, ", through {hop}")?;
                }
                f.write_str(")")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `fn main() -> Result<(), Error>` prints Debug; a struct dump would help nobody there.
        f.write_str(self.report().trim_end())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match (&self.0.source, &self.0.link) {
            (Some(source), _) => source.source(),
            (None, Some(link)) => Some(&**link),
            (None, None) => None,
        }
    }
}

macro_rules! from_std {
    ($($type:ty),* $(,)?) => {$(
        impl From<$type> for Error {
            fn from(error: $type) -> Error {
                Error::other(error)
            }
        }
    )*};
}

from_std!(
    fmt::Error,
    std::num::ParseIntError,
    std::num::ParseFloatError,
    std::num::TryFromIntError,
    std::str::Utf8Error,
    std::string::FromUtf8Error,
    std::time::SystemTimeError,
    Box<dyn StdError + Send + Sync>,
);

impl From<std::io::Error> for Error {
    /// An error of ours that went through an interface of `io::Error`, as that of a cancelled read
    /// does, is itself again.
    fn from(error: std::io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => {
                let message = error.to_string();
                Error::io(message, error)
            }
        }
    }
}

impl From<Error> for std::io::Error {
    /// For implementations of `Read`, `AsyncRead` and the like; `?` gives back the error itself.
    fn from(error: Error) -> std::io::Error {
        use std::io::ErrorKind as Io;
        let kind = match error.downcast_ref::<std::io::Error>() {
            Some(source) => source.kind(),
            None if error.is_timeout() => Io::TimedOut,
            None => Io::Other,
        };
        std::io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Canceller, IsolateId};

    fn origin(path: &str, slot: u32) -> Origin {
        let id = IsolateId {
            process: 1,
            slot,
            generation: 0,
        };
        Origin {
            path: path.to_owned(),
            id,
            pid: 42,
        }
    }

    #[test]
    fn several_failures_have_the_exit_of_the_first_that_reports_one() {
        let killed = Exit::Unkillable { pid: 7 };
        let late = || Error::new(ErrorKind::TimedOut(100), "it did not end within 100ms");
        let ended = Error::new(ErrorKind::Ended(Box::new(killed)), "it was killed");
        let all = Error::several(late(), vec![ended]);
        assert!(matches!(all.exit(), Some(Exit::Unkillable { pid: 7 })));
        assert_eq!(all.report().matches("it was killed").count(), 1);
        assert!(Error::several(late(), vec![late()]).exit().is_none());
        // It is none of these by what is inside.
        let by = Canceller::Runtime;
        let cancelled = Exit::Cancelled(crate::Cancel { by });
        let ended = Error::new(ErrorKind::Ended(Box::new(cancelled)), "cancelled");
        assert!(!Error::several(late(), vec![ended]).is_cancelled());
    }

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("cannot read the setting")
        }
    }
    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_crosses_with_type_message_chain_origin_and_route() {
        let parse = "x".parse::<u32>().unwrap_err();
        let made = Error::other(Outer(parse))
            .leaving(&origin("root/a/b", 2))
            .leaving(&origin("root/a", 1));
        assert!(made.downcast_ref::<Outer>().is_some());
        let mut bytes = Vec::new();
        crate::codec::encode_into(&made, &mut bytes).unwrap();
        let back: Error = crate::codec::decode::<Error>(&bytes).unwrap().arrived();
        assert!(back.type_name().unwrap().ends_with("Outer"));
        assert_eq!(back.message(), "cannot read the setting");
        assert_eq!(
            back.chain().collect::<Vec<_>>(),
            ["invalid digit found in string"]
        );
        assert_eq!(
            back.source().unwrap().to_string(),
            "invalid digit found in string"
        );
        assert_eq!(back.origin().unwrap().path, "root/a/b");
        assert_eq!(back.route().len(), 1);
        assert_eq!(
            format!("{back:#}"),
            "cannot read the setting: invalid digit found in string (in root/a/b, through root/a)"
        );
    }

    #[test]
    fn a_group_keeps_every_leaf_with_the_cause_first() {
        let leaf = |n: u32| Error::other(format!("leaf {n}")).leaving(&origin("root/x", n));
        let group = Error::several(leaf(0), (1..25).map(leaf).collect());
        assert_eq!(group.failures().len(), 25);
        assert_eq!(group.failures()[0].message(), "leaf 0");
        assert_eq!(Error::several(leaf(7), vec![]).message(), "leaf 7");
        assert!(group.report().contains("25. leaf 24"));
    }

    #[test]
    fn an_error_of_ours_passes_through_io_error_unchanged() {
        use std::io;
        let cancel = Cancel {
            by: Canceller::Deadline,
        };
        let ours = Error::new(ErrorKind::Cancelled(cancel), "cancelled").with_id(FailureId(7));
        for wrapped in [io::Error::other(ours.clone()), io::Error::from(ours)] {
            assert_eq!(wrapped.kind(), io::ErrorKind::Other);
            let back = Error::from(wrapped);
            assert!(back.is_cancelled() && back.id() == Some(FailureId(7)));
            assert_eq!(back.message(), "cancelled");
        }
        let late = Error::new(ErrorKind::TimedOut(5), "late");
        assert_eq!(io::Error::from(late).kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_io_error_keeps_its_number_and_its_kind() {
        use std::io;
        let error = Error::io("cannot read x", io::Error::from_raw_os_error(2));
        assert!(matches!(error.kind(), ErrorKind::Io(Some(2))));
        assert_eq!(error.message(), "cannot read x");
        let source = error.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(source, Some(io::ErrorKind::NotFound));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
        let plain = Error::from(io::Error::other("plain"));
        assert!(matches!(plain.kind(), ErrorKind::Io(None)) && plain.message() == "plain");
    }

    #[test]
    fn predicates_see_through_an_exit() {
        let cancel = Cancel {
            by: Canceller::Deadline,
        };
        let ended = Error::new(ErrorKind::Ended(Box::new(Exit::Cancelled(cancel))), "gone");
        assert!(ended.is_cancelled() && ended.is_ended() && !ended.is_panic());
    }
}
