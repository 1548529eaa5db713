//! What a new process runs: it is told who it is, says that it is ready, and lives its first isolate.
//!
//! The first isolate runs on the process's main thread and reads the link to its owner in its own
//! loop, so that no thread has to be started before the first answer.

use super::decode_body;
use super::link::{Beside, Link, Parcel, Read, read_frames};
use super::protocol::{self, Outfit};
use super::served;
use crate::answer::RemoteAnswer;
use crate::carry;
use crate::chain::{self, Chain};
use crate::credit::Permit;
use crate::descriptor::{Descriptor, Run};
use crate::dialogue::remote::Remote;
use crate::dialogue::tie::{Role, Tie};
use crate::dialogue::{RemoteOpen, Window};
use crate::family::Status;
use crate::inspect;
use crate::isolate::inbox::serve_all;
use crate::isolate::local::Local;
use crate::isolate::panics;
use crate::isolate::shared::{Control, Message, Shared};
use crate::isolate::thread::{self, Manner, Work};
use crate::life::Life;
use crate::narrow::Allowed;
use crate::reactor::{Reactor, Readiness};
use crate::runtime::{Builder, ChildSettings, Runtime, SIGNALS};
use crate::spec::{Bounds, Sigint};
use crate::time::nanos;
use crate::{Cancel, Canceller, Error, ErrorKind, Exit, Origin, Result};
use mio::Interest;
use mio::unix::SourceFd;
use offshoot_sys::fork::FailedStep;
use offshoot_sys::signal::{self, Signals};
use offshoot_sys::{clock, fork, image, process, socket};
use offshoot_wire::codec;
use offshoot_wire::frame::{
    self, BODY_MAX, Body, Boot, CancelOrder, Ended, FrameReader, Header, Introduce, Invoke, Kind,
    Ready,
};
use offshoot_wire::order;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a new process waits for its first frame, which lies in its socket already.
const BOOT_BOUND: Duration = Duration::from_secs(10);
/// How long the last frames may take to be written.
const LAST_WORDS: u64 = 2_000_000_000;
/// How long a process has whose owner is gone; the forkserver kills it anyway.
const ORPHANED: u64 = 500_000_000;

/// The exit code of a process that refused to start.
const EXIT_REFUSED: i32 = 78;

/// The link to the owner, of every process however it was forked: its owner may offer a ring.
pub(crate) fn link_of(fd: OwnedFd) -> Arc<Link> {
    let link = Link::new(fd, BODY_MAX);
    link.open_to_ring();
    link.reads_from(order::From::Owner);
    link
}

/// The main function of a process that was forked before anybody wanted it, for any owner: waits until the
/// forkserver says whose it is, then becomes that one.
pub(crate) fn blank(control: OwnedFd, prelude: Result<(), FailedStep>) -> Infallible {
    if prelude.is_err() {
        fork::exit_at_once(fork::EXIT_PRELUDE);
    }
    let parent = process::parent();
    let warm = Warm::up();
    let mut buffer = Vec::new();
    loop {
        // Without a bound: it ends with the forkserver.
        match protocol::receive::<Outfit>(&control, &mut buffer) {
            Ok(Some((outfit, fds))) => {
                let Ok((link, outfit)) = outfit.unpack(fds) else {
                    fork::exit_at_once(fork::EXIT_PRELUDE);
                };
                let name = outfit.name.clone();
                let dressed = outfit.put_on(parent);
                let link = link_of(link);
                return begin_life(&name, link, control, dressed, warm);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket::wait_readable(&control, None).is_err() {
                    fork::exit_at_once(fork::EXIT_PRELUDE);
                }
            }
            Ok(None) | Err(_) => fork::exit_at_once(fork::EXIT_PRELUDE),
        }
    }
}

/// As [`blank`], in the hand of an owner, who has the other end of its link and says itself what it is to become.
pub(crate) fn blank_in_hand(
    link: OwnedFd,
    control: OwnedFd,
    prelude: Result<(), FailedStep>,
) -> Infallible {
    if prelude.is_err() {
        fork::exit_at_once(fork::EXIT_PRELUDE);
    }
    let parent = process::parent();
    let mut warm = Warm::up();
    let link = link_of(link);
    // Without a bound: the owner's end is closed when it ends, and with the forkserver this process does.
    let taken = read_one(&link, &mut warm.reader, None, |header, body| {
        link.in_order(header)?;
        if header.kind != Kind::Outfit {
            let what = format!("the first frame is {:?} instead of Outfit", header.kind);
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        let outfit: Outfit = decode_body(Kind::Outfit, &body)?;
        let fds = link.take_came(outfit.fds())?;
        let fds = fds.ok_or_else(|| Error::from(process::out_of_descriptors()))?;
        Ok((outfit.name.clone(), outfit.with(fds)?))
    });
    match taken {
        Ok(Some((name, outfit))) => {
            let dressed = outfit.put_on(parent);
            begin_life(&name, link, control, dressed, warm)
        }
        Ok(None) => fork::exit_at_once(fork::EXIT_PRELUDE),
        Err(error) => refuse(&link, &error),
    }
}

/// What a process needs before its first answer and can have before anybody wants it.
pub(crate) struct Warm {
    reactor: Option<(Reactor, mio::Waker)>,
    reader: FrameReader,
}

impl Warm {
    /// Nothing: what is needed is made when it is needed.
    pub(crate) fn cold() -> Warm {
        Warm {
            reactor: None,
            reader: FrameReader::new(BODY_MAX),
        }
    }

    /// Makes it, and goes once through what a start goes through, so that the pages of code and heap
    /// that it takes are there: most of a start is their faults. Nothing of the rehearsal is left.
    fn up() -> Warm {
        let mut warm = Warm::cold();
        warm.reader.space().fill(0);
        // Without it the start makes its own, and says why it cannot.
        warm.reactor = Reactor::new().ok();
        // That it fails is nobody's concern: it is done for its page faults.
        let _ = std::panic::catch_unwind(rehearse);
        warm
    }
}

/// A start and an end without anybody.
fn rehearse() -> Result<()> {
    let settings = ChildSettings {
        settings: Builder::new().settings()?,
        blocking: false,
        main: None,
        bounds: Bounds::default(),
        sigint: Sigint::Parent,
    };
    let mut bytes = Vec::new();
    codec::encode_into(&settings, &mut bytes).map_err(Error::other)?;
    let settings: ChildSettings = codec::decode(&bytes).map_err(Error::other)?;
    panics::name_main_thread();
    let runtime = Runtime::rehearsed(&settings)?;
    let origin = Origin {
        path: "root/rehearsal".to_owned(),
        id: runtime.next_id(),
        pid: process::id(),
    };
    let life = Arc::new(Life::new(origin));
    let shared = Shared::new(life, runtime, None, Arc::default(), settings.bounds);
    let (ours, theirs) = socket::stream_pair()?;
    let link = Link::new(ours, BODY_MAX);
    let owner = Link::new(theirs, BODY_MAX);
    owner.send_close();
    let reader = FrameReader::new(BODY_MAX);
    let (exit, _) = thread::live(&shared, Work::Serve, Manner::Loop, |local| {
        begin(local, link.clone(), reader, Sigint::Parent)
    });
    link.try_send_value(
        Kind::Ended,
        0,
        &Ended {
            exit,
            left: Vec::new(),
        },
    )
}

/// What a forked process does with its life once its prelude is over, or has failed.
pub(crate) fn begin_life(
    name: &str,
    link: Arc<Link>,
    control: OwnedFd,
    prelude: Result<(), FailedStep>,
    warm: Warm,
) -> Infallible {
    crate::fault::point("S1", name);
    let prelude = prelude.and_then(|()| {
        let step = "fault point";
        crate::fault::check("S2", name).map_err(|error| FailedStep { step, error })
    });
    match prelude {
        Ok(()) => main(link, control, warm),
        Err(FailedStep { step, error }) => {
            let error = Error::io(format!("its prelude failed at the {step}: {error}"), error);
            link.send_value(Kind::Refused, 0, &error);
            link.flush_until(clock::now() + LAST_WORDS);
            fork::exit_at_once(fork::EXIT_PRELUDE)
        }
    }
}

/// The main function of a forked process.
fn main(link: Arc<Link>, control: OwnedFd, warm: Warm) -> Infallible {
    let Warm {
        reactor,
        mut reader,
    } = warm;
    let boot = match read_boot(&link, &mut reader) {
        Ok(Some(boot)) => boot,
        // The owner has gone before it said anything.
        Ok(None) => fork::exit_now(EXIT_REFUSED),
        Err(error) => refuse(&link, &error),
    };
    // Start hooks and the decoding of the state are the program's own code.
    let prepared = std::panic::catch_unwind(AssertUnwindSafe(|| prepare(boot, control, &link)));
    match prepared.unwrap_or_else(|payload| Err(panicked(payload))) {
        Err(error) => refuse(&link, &error),
        Ok(Prepared {
            shared,
            work,
            manner,
            sigint,
        }) => {
            link.set_limit(shared.runtime.settings.frame_max);
            link.send_value(
                Kind::Ready,
                0,
                &Ready {
                    pid: process::id(),
                    build_id: image::build_id().into(),
                },
            );
            crate::fault::point("S5", shared.life.identity().name());
            let uplink_of = link.clone();
            let (exit, left) = thread::live(&shared, work, manner, |local| {
                if let Some((reactor, waker)) = reactor {
                    local.take_reactor(reactor, waker);
                }
                begin(local, uplink_of, reader, sigint)
            });
            let ended = Ended {
                exit: exit.clone(),
                left: flat(left),
            };
            let sent = link.try_send_value(Kind::Ended, 0, &ended).or_else(|_| {
                // Too much was forced below it: that as text, for as long as it fits.
                let reports: String = ended.left.iter().map(Error::report).collect();
                let left = vec![Error::new(ErrorKind::Other, link.shortened(reports))];
                let exit = exit.clone();
                link.try_send_value(Kind::Ended, 0, &Ended { exit, left })
            });
            if let Err(error) = sent {
                // Too deep or too long to cross: the same as text.
                let exit = crate::Exit::Lost {
                    why: link.shortened(format!("{exit} ({error})")),
                };
                link.send_value(
                    Kind::Ended,
                    0,
                    &Ended {
                        exit,
                        left: Vec::new(),
                    },
                );
            }
            thread::end(&shared, exit, Vec::new());
            shared.runtime.shut_down();
            #[cfg(feature = "fault-points")]
            crate::ledger::of_child();
            link.flush_until(clock::now() + LAST_WORDS);
            crate::fault::point("S8", shared.life.identity().name());
            fork::exit_now(0)
        }
    }
}

/// Errors that are too deep to cross, as text.
fn flat(errors: Vec<Error>) -> Vec<Error> {
    errors
        .into_iter()
        .map(|error| {
            let mut bytes = Vec::new();
            match codec::encode_into(&error, &mut bytes) {
                Ok(()) => error,
                Err(_) => Error::new(ErrorKind::Other, error.report()),
            }
        })
        .collect()
}

fn panicked(payload: Box<dyn std::any::Any + Send>) -> Error {
    let panic = panics::take(payload);
    let message = format!("it panicked: {panic}");
    Error::new(ErrorKind::Panicked(panic), message)
}

fn refuse(link: &Link, error: &Error) -> ! {
    link.send_value(Kind::Refused, 0, error);
    link.flush_until(clock::now() + LAST_WORDS);
    fork::exit_now(EXIT_REFUSED)
}

/// The first frame, and what came beside it, which needs the runtime that the frame tells of.
type First = (Boot, Option<Vec<u8>>);

/// Waits for the first frame.
fn read_boot(link: &Link, reader: &mut FrameReader) -> Result<Option<First>> {
    let mut enclosed = None;
    let deadline = clock::now() + u64::try_from(BOOT_BOUND.as_nanos()).unwrap_or(u64::MAX);
    loop {
        // It was written before this process was asked for, or with what it waited for.
        let read = read_one(link, reader, Some(deadline), |header, body| {
            link.in_order(header)?;
            if header.kind == Kind::Boot {
                return decode_body(Kind::Boot, &body).map(Some);
            }
            // What comes beside it, which needs the runtime that it tells of. It may be there already.
            enclosed = Some(body.to_vec());
            Ok(None)
        });
        match read? {
            Some(Some(boot)) => return Ok(Some((boot, enclosed))),
            Some(None) => {}
            None => return Ok(None),
        }
    }
}

/// Waits for one frame, at most until `deadline` (ns), and has it taken; `None` at the end of the link.
fn read_one<T>(
    link: &Link,
    reader: &mut FrameReader,
    deadline: Option<u64>,
    take: impl FnOnce(Header, Body<'_>) -> Result<T>,
) -> Result<Option<T>> {
    loop {
        match reader.next() {
            Ok(Some((header, body))) => return take(header, body).map(Some),
            Ok(None) => {}
            Err(error) => return Err(Error::new(ErrorKind::Protocol, error.to_string())),
        }
        let left = deadline.map(|deadline| deadline.saturating_sub(clock::now()));
        if left == Some(0) {
            return Err(Error::new(
                ErrorKind::TimedOut(10_000),
                "the owner said nothing for 10 s",
            ));
        }
        match link.receive(reader.space()) {
            Ok((0, _)) => return Ok(None),
            Ok((n, _)) => reader.filled(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket::wait_readable(&link.fd(), left.map(Duration::from_nanos))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A process that has become what its owner asked for.
struct Prepared {
    shared: Arc<Shared>,
    work: Work,
    manner: Manner,
    sigint: Sigint,
}

/// Makes this process what the owner asked for.
fn prepare((boot, enclosed): First, control: OwnedFd, link: &Arc<Link>) -> Result<Prepared> {
    // First, because a test may set a fault point by it.
    for (key, value) in &boot.environment {
        match value {
            Some(value) => process::set_env(key, value)?,
            None => process::remove_env(key)?,
        }
    }
    crate::fault::point("S3", boot.origin.name());
    let another = crate::fault::check("build", boot.origin.name()).is_err();
    if another || boot.build_id[..] != *image::build_id() {
        return Err(Error::new(
            ErrorKind::Protocol,
            format!(
                "the owner runs build {}, this process {}: all processes of a tree must be the same executable",
                hex(&boot.build_id),
                hex(image::build_id())
            ),
        ));
    }
    let settings: ChildSettings = codec::decode(&boot.settings)
        .map_err(|error| Error::new(ErrorKind::Protocol, format!("the settings: {error}")))?;
    panics::name_main_thread();
    let runtime = Runtime::of_child(boot.tree, &settings, control)?;
    runtime.report_to(link);
    let last_word = Arc::downgrade(link);
    panics::tell_before_abort(move |panic| {
        if let Some(link) = last_word.upgrade() {
            link.send_value(
                Kind::Ended,
                0,
                &Ended {
                    exit: Exit::Panicked(panic),
                    left: Vec::new(),
                },
            );
            link.flush_until(clock::now() + ORPHANED);
        }
    });
    let parent = boot.parent.clone();
    link.set_between(&runtime, move || parent.clone());
    let carried = match enclosed {
        None => Vec::new(),
        Some(body) => {
            link.take_enclosed(0, &body)?;
            link.take_all_beside().carried
        }
    };
    if let Some(hook) = boot.on_start {
        match Descriptor::find(hook)?.run() {
            Run::Hook(hook) => hook(),
            _ => return Err(Error::new(ErrorKind::Protocol, "the start hook is no hook")),
        }
    }
    let work = match boot.entry {
        None => Work::Serve,
        Some(entry) => match Descriptor::find(entry)?.run() {
            // Decoded here, so that a state that cannot be decoded fails the spawn.
            Run::State(decode) => {
                let parcel = Parcel {
                    bytes: boot.state,
                    carried,
                };
                let state = parcel.open(decode)?;
                Work::State(Box::new(move || state))
            }
            _ => return Err(Error::new(ErrorKind::Protocol, "the state is no state")),
        },
    };
    crate::fault::point("S4", boot.origin.name());
    let manner = match (settings.blocking, settings.main) {
        (false, _) => Manner::Loop,
        (true, None) => Manner::Blocking(serve_all),
        (true, Some(main)) => match Descriptor::find(main)?.run() {
            Run::Main(main) => Manner::Blocking(main),
            _ => return Err(Error::new(ErrorKind::Protocol, "the main function is none")),
        },
    };
    let origin = Origin {
        pid: process::id(),
        ..boot.origin
    };
    let life = Arc::new(Life::new(origin));
    let status = Arc::new(Status::default());
    let shared = Shared::new(life, runtime, None, status, settings.bounds);
    link.table().serves_owner(&shared);
    Ok(Prepared {
        shared,
        work,
        manner,
        sigint: settings.sigint,
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Registers the link with the isolate's poll and keeps what came behind the first frame.
fn begin(local: &Rc<Local>, link: Arc<Link>, reader: FrameReader, sigint: Sigint) {
    let registered = local.reactor().and_then(|reactor| {
        let fd = link.fd().as_raw_fd();
        let (key, readiness) = reactor.register(&mut SourceFd(&fd), Interest::READABLE)?;
        let signals = match sigint {
            Sigint::Parent => None,
            Sigint::Own => {
                let signals = Signals::install(&SIGNALS)?;
                let fd = signals.fd().as_raw_fd();
                let (_, readiness) = reactor.register(&mut SourceFd(&fd), Interest::READABLE)?;
                Some((ManuallyDrop::new(signals), readiness))
            }
        };
        Ok((key, readiness, signals))
    });
    match registered {
        Ok((key, readiness, signals)) => {
            let shared = local.shared.clone();
            // What was queued before is flushed in the first turn.
            link.on_queued(move || shared.tell(Control::Look));
            let uplink = Uplink {
                link,
                key,
                readiness,
                waits_for_room: Cell::new(false),
                reader: RefCell::new(reader),
                ended: Cell::new(false),
                signals,
            };
            let set = local.uplink.set(uplink);
            debug_assert!(set.is_ok(), "a process has one owner");
        }
        Err(error) => local.fail(crate::Exit::Failed(error.into())),
    }
}

/// The link to the owner, as the first isolate of a process reads it.
pub(crate) struct Uplink {
    link: Arc<Link>,
    /// Of the link in the isolate's poll.
    key: usize,
    readiness: Rc<Readiness>,
    /// Room to write is watched, because something is queued.
    waits_for_room: Cell<bool>,
    reader: RefCell<FrameReader>,
    ended: Cell<bool>,
    /// Of an isolate that handles its own, see [`Sigint::Own`].
    /// They stay for as long as the process does: without its handlers a further signal would
    /// kill it before it has said how it ended.
    signals: Option<(ManuallyDrop<Signals>, Rc<Readiness>)>,
}

impl Uplink {
    /// Cancels the isolate for a signal that was sent to its process; for a second one at once.
    fn take_signals(&self, local: &Local) {
        let Some((signals, readiness)) = &self.signals else {
            return;
        };
        if !readiness.is_readable() {
            return;
        }
        readiness.clear_readable();
        for number in signals.drain() {
            let bounds = local.shared.bounds;
            let now = clock::now();
            let grace = if local.above().is_some() {
                0
            } else {
                nanos(bounds.grace)
            };
            let cancel = Cancel {
                by: Canceller::Signal(signal::name(number)),
            };
            let hard_at = now + nanos(bounds.hard_kill);
            local.cancel(CancelOrder {
                cancel,
                grace_at: now + grace,
                hard_at,
                last_at: hard_at,
            });
        }
    }

    /// Reads what has come and writes what is queued. True if anything came.
    pub(crate) fn pump(&self, local: &Rc<Local>) -> bool {
        self.take_signals(local);
        if self.link.has_ring() && self.readiness.is_readable() {
            // Bells: for what is in the ring, or for room in it. They are taken when the ring has been read.
            self.readiness.clear_readable();
            self.link.rung();
            if self.link.has_queued() {
                self.link.flush();
            }
        }
        self.write_queued(local);
        if self.readiness.is_read_closed() {
            self.link.note_closed();
        }
        let more = self.readiness.is_readable() || self.link.has_more();
        if self.ended.get() || !more {
            return false;
        }
        // Only borrowed already if what came runs a destructor or a decoder that waits, blocking.
        let Ok(mut reader) = self.reader.try_borrow_mut() else {
            return false;
        };
        let mut any = false;
        let read = read_frames(&self.link, &mut reader, |header, body| {
            any = true;
            self.take(local, header, body)
        });
        match read {
            Read::Drained => self.readiness.clear_readable(),
            // Asked again in the next turn, which comes at once.
            Read::More => {
                // What was read and not taken is in no ring and makes no event.
                self.link.rung();
                any = true;
            }
            Read::Ended => self.orphaned(local, "its owner has gone"),
            Read::Wrong(error) => {
                crate::log::error!(%error, "the owner sent something wrong");
                self.orphaned(local, "its owner sent something wrong");
            }
        }
        any
    }

    /// Writes what is queued as far as that goes, and watches for room while something is left.
    fn write_queued(&self, local: &Local) {
        let waits = self.waits_for_room.get();
        if !(self.link.has_queued() && (!waits || self.readiness.is_writable())) {
            return;
        }
        let left = !self.link.flush();
        if left {
            self.readiness.clear_writable();
        }
        if left != waits
            && let Some(reactor) = local.existing_reactor()
        {
            let interest = match left {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            let fd = self.link.fd().as_raw_fd();
            match reactor.reregister(&mut SourceFd(&fd), self.key, interest) {
                Ok(()) => self.waits_for_room.set(left),
                Err(error) => crate::log::error!(%error, "cannot watch the link to the owner"),
            }
        }
    }

    fn orphaned(&self, local: &Local, why: &str) {
        self.ended.set(true);
        crate::log::debug!(isolate = %local.shared.life.identity(), why, "coming down");
        let now = clock::now();
        let by = Canceller::Dropped(local.shared.life.origin());
        local.cancel(CancelOrder {
            cancel: Cancel { by },
            grace_at: now,
            hard_at: now + ORPHANED,
            last_at: now + ORPHANED,
        });
    }

    fn take(&self, local: &Rc<Local>, header: Header, body: Body<'_>) -> Result<()> {
        let Header {
            kind, correlation, ..
        } = header;
        if kind == Kind::Enclosed {
            return self.link.enclose(correlation, &body);
        }
        let beside = self.link.take_beside(header)?;
        match kind {
            Kind::Call | Kind::Ask | Kind::Tell | Kind::Open => {
                let Some((invoke, arguments)) = Invoke::split(body.bytes()) else {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        format!("a frame {kind:?} of {} bytes", body.len()),
                    ));
                };
                // Decoding runs code of the user's; it must not take the link down.
                let decoded = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    body.decoding(|| self.invoke(local, header, invoke, arguments, beside));
                }));
                if decoded.is_err() {
                    crate::log::error!(?kind, "decoding a message panicked");
                }
                Ok(())
            }
            kind if kind.is_stream() => self.link.take_stream(header, body, beside.carried),
            Kind::Drop => {
                self.link.drop_expected(correlation);
                Ok(())
            }
            Kind::Cancel => {
                local.cancel(decode_body(kind, &body)?);
                Ok(())
            }
            Kind::Close => {
                local.close();
                Ok(())
            }
            Kind::Rest => {
                local.ask_rest(correlation);
                Ok(())
            }
            Kind::Inspect => {
                let until = decode_body(kind, &body)?;
                inspect::answer(&local.shared.runtime, &self.link, correlation, until);
                Ok(())
            }
            Kind::Introduce => {
                let mut introduce: Introduce = decode_body(kind, &body)?;
                let allowed = std::mem::replace(&mut introduce.allowed, frame::Allowed::All);
                let allowed = Allowed::from_wire(allowed)?;
                served::introduced(&self.link, &local.shared, introduce, &allowed)
            }
            _ => Err(Error::new(
                ErrorKind::Protocol,
                format!("a frame {kind:?} is not for a child"),
            )),
        }
    }

    fn invoke(
        &self,
        local: &Rc<Local>,
        header: Header,
        invoke: Invoke,
        arguments: &[u8],
        beside: Beside,
    ) {
        let Header {
            kind, correlation, ..
        } = header;
        let Beside { chain, carried } = beside;
        let life = &local.shared.life;
        if kind == Kind::Ask
            && let Err(error) = chain::check(&chain, &local.shared)
        {
            let error = error.leaving(&life.origin());
            self.link.send_failure(correlation, &error);
            return;
        }
        let run = Descriptor::find(invoke.entry).map(Descriptor::run);
        if kind == Kind::Open {
            let opened = carry::unpack(carried, || {
                self.open(local, correlation, run, arguments, chain)
            });
            if let Some(message) = opened {
                local.deliver(message);
            }
            return;
        }
        let answer = || RemoteAnswer::new(self.link.clone(), correlation, life.clone(), chain);
        let message = carry::unpack(carried, || match (kind, run) {
            (Kind::Call, Ok(Run::Call(decode))) => decode(arguments, answer()).map(Message::Job),
            (Kind::Ask, Ok(Run::Method(decode))) => {
                decode(arguments, Some(answer()), None).map(Message::State)
            }
            (Kind::Tell, Ok(Run::Method(decode))) => {
                let permit = Permit::remote(&self.link, invoke.lane);
                decode(arguments, None, Some(permit)).map(Message::State)
            }
            (kind, run) => {
                let error = run.err().unwrap_or_else(|| {
                    Error::new(
                        ErrorKind::Protocol,
                        format!("what a frame {kind:?} names is not of that kind"),
                    )
                });
                if kind != Kind::Tell {
                    answer().fail(error.leaving(&local.shared.life.origin()));
                }
                None
            }
        });
        if let Some(message) = message {
            local.deliver(message);
        }
    }

    fn open(
        &self,
        local: &Rc<Local>,
        correlation: u64,
        run: Result<Run>,
        body: &[u8],
        chain: Chain,
    ) -> Option<Message> {
        let split = Window::split(body);
        let window = split.map_or(Window::DEFAULT, |(window, _)| window);
        let grace = nanos(local.shared.runtime.settings.bounds.grace);
        let tie = Tie::new(local.shared.life.clone(), None, grace);
        let remote = Remote::new(&self.link, correlation, Role::Peer, tie, window, None);
        let open = RemoteOpen { remote, chain };
        let wrong = |what: &str| Error::new(ErrorKind::Protocol, what.to_owned());
        match (run, split) {
            (Ok(Run::Open(decode)), Some((_, arguments))) => {
                decode(arguments, open).map(Message::Job)
            }
            (Err(error), _) => {
                open.fail(error);
                None
            }
            (Ok(_), None) => {
                open.fail(wrong("a dialogue is opened without a window"));
                None
            }
            (Ok(_), Some(_)) => {
                open.fail(wrong("what a frame Open names is not of that kind"));
                None
            }
        }
    }

    pub(crate) fn acknowledge(&self) {
        self.link.send_acknowledgement();
    }

    /// Answers that this isolate is at rest.
    pub(crate) fn say_resting(&self, correlation: u64, word: u64) {
        self.link.send_value(Kind::Resting, correlation, &word);
    }

    pub(crate) fn before_sleep(&self) {
        self.link.flush_credit();
    }

    /// Looks into the ring by itself, until it asks whether it may sleep.
    pub(crate) fn stay_awake(&self) {
        self.link.stay_awake();
    }

    /// Whether there may be something in the ring. Of what it would wait for no longer, there is nothing.
    pub(crate) fn has_more(&self) -> bool {
        !self.ended.get() && self.link.has_more()
    }

    /// False if something has come by the ring, and it must not sleep.
    pub(crate) fn may_sleep(&self) -> bool {
        self.ended.get() || self.link.may_sleep()
    }
}
