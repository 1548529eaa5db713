//! Starting an isolate that is a process, from the owner's side.

use super::Process;
use super::link::Link;
use super::protocol::{self, Outfit};
use super::warden::{ANSWER, Blank, SpawnFds, Taken, Unanswered, Warden};
use crate::carry::{self, Carried};
use crate::descriptor::StateEntry;
use crate::family::{Body, Key, Member, Status};
use crate::isolate::shared::{Route, Shared, Target, Wait};
use crate::janitor::GrantedDir;
use crate::life::Life;
use crate::nursery::Core;
use crate::runtime::ChildSettings;
use crate::scope::{ScopeWatch, cancelled_error};
use crate::spec::{Descendants, Isolate, Stdio};
use crate::time;
use crate::{Error, ErrorKind, Payload, Result};
use offshoot_mailbox::oneshot;
use offshoot_sys::pidfd::Pidfd;
use offshoot_sys::surroundings::{self, Attribute, Surroundings, Variable};
use offshoot_sys::{clock, image, process, socket};
use offshoot_wire::frame::{Boot, Entry};
use offshoot_wire::order;
use offshoot_wire::{Rope, codec};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// What the process is there for.
pub(crate) enum Start {
    Serve,
    /// The state, encoded, and the portals in it.
    State(Entry, Vec<u8>, Vec<Carried>),
}

impl Start {
    pub(crate) fn state<S: Payload>(state: &S) -> Result<Start> {
        let mut rope = Rope::default();
        let (encoded, carried) =
            carry::pack(|| codec::encode_checked(state, &mut rope, carry::rehearse));
        encoded.map_err(|error| {
            Error::new(
                ErrorKind::Codec,
                format!(
                    "the state of type `{}`: {error}",
                    std::any::type_name::<S>()
                ),
            )
        })?;
        let entry = StateEntry::<S>::DESCRIPTOR.entry()?;
        Ok(Start::State(entry, rope.into_vec(), carried))
    }
}

fn failed(stage: &str, name: &str, error: impl std::fmt::Display, hint: &str) -> Error {
    let message = format!("cannot start a process for isolate `{name}`: {stage}: {error}{hint}");
    Error::new(ErrorKind::Spawn(stage.to_owned()), message)
}

/// Takes a process down whose spawn was given up, in whatever way.
struct Abort {
    owner: Arc<Shared>,
    key: Key,
    process: Arc<Process>,
    warden: Arc<Warden>,
    armed: bool,
}

impl Abort {
    /// It has failed and was reported; its end is no failure of the nursery, too.
    fn silence(&self) {
        let mut family = self.owner.family.lock();
        if let Some(member) = family.member(self.key) {
            member.silent = true;
        }
        drop(family);
        // It may be gone already, and then nobody else will say so.
        self.owner.nudge(self.key);
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        if self.armed {
            self.silence();
            self.process.kill("its spawn was given up");
            self.warden.given_up(&self.process);
        }
    }
}

/// How long is waited before a fork is tried again that failed for want of a process, of memory or of
/// the system's descriptors; each time twice as long, and up to half as long again by chance, so that
/// many who wait do not come back at once.
const AGAIN: Duration = Duration::from_millis(2);
/// How often a fork is tried again: 60 to 90 ms in all.
const AGAIN_MAX: u32 = 5;

/// How many that wait in reserve may die as they are handed over, before a process is forked for the spawn.
const DEAD_MAX: u32 = 3;

/// How many forkservers may leave a spawn without an answer.
const SILENT_MAX: u32 = 3;

/// One try to spawn.
struct Try {
    /// When the first one began (ns).
    began: u64,
    /// One that waits in reserve may be taken.
    reserve: bool,
    /// One was, and has died before it had taken anything of what it was to become.
    was_dead: bool,
}

/// Forks a process and waits until it serves. What may pass by itself is tried again.
pub(crate) async fn spawn_process(
    core: &Core,
    isolate: Isolate,
    mut start: Start,
) -> Result<Arc<Target>> {
    let began = clock::now();
    let bounds = isolate.resolve_bounds(core.local.shared.runtime.settings.bounds);
    let mut dead = 0;
    let mut silent = 0;
    let mut again = 0;
    loop {
        let mut this = Try {
            began,
            reserve: dead < DEAD_MAX,
            was_dead: false,
        };
        let error = match try_spawn(core, &isolate, &mut start, &mut this).await {
            Ok(target) => return Ok(target),
            Err(error) => error,
        };
        if this.was_dead {
            crate::log::debug!(isolate = %isolate.name, %error, "another process is taken");
            dead += 1;
            continue;
        }
        if error.downcast_ref::<Unanswered>().is_some() {
            crate::log::debug!(isolate = %isolate.name, %error, "another forkserver is asked");
            silent += 1;
            if silent < SILENT_MAX {
                continue;
            }
        }
        wait_before(again, began, bounds.start, error).await?;
        again += 1;
    }
}

/// Waits until what has failed so often, a fork or a thread, is to be tried again; gives the error back if it is not.
pub(crate) async fn wait_before(
    again: u32,
    began: u64,
    bound: Duration,
    error: Error,
) -> Result<()> {
    let passes = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
        .is_some_and(process::may_pass);
    let pause = AGAIN * (1 << again.min(AGAIN_MAX));
    let pause = pause + pause / 64 * u32::try_from(clock::now() / 64 % 32).unwrap_or(0);
    let elapsed = Duration::from_nanos(clock::now() - began);
    if !passes || again >= AGAIN_MAX || elapsed + pause >= bound {
        return Err(error);
    }
    crate::log::debug!(%error, ?pause, "a start is tried again");
    time::pause(pause).await
}

async fn try_spawn(
    core: &Core,
    isolate: &Isolate,
    start: &mut Start,
    this: &mut Try,
) -> Result<Arc<Target>> {
    core.check_open()?;
    isolate.check()?;
    let owner = core.local.shared.clone();
    let runtime = owner.runtime.clone();
    let settings = &runtime.settings;
    let bounds = isolate.resolve_bounds(settings.bounds);
    let name = isolate.name.as_str();
    // First of all: what it gives, and whether it has to be asked, depends on what this thread may do now.
    let (warden, server) = runtime
        .warden_of_thread()
        .map_err(|error| failed("forkserver", name, &error, "").with_source(error))?;
    crate::budget::process().map_err(|why| failed("descriptors", name, why, ""))?;
    let fds_hint = "; the limit is RLIMIT_NOFILE, see `ulimit -n`";
    let (fds, outputs) = open_fds(isolate, settings.confined)
        .map_err(|(what, error)| failed(&what, name, error, ""))?;
    let mut fds = fds;
    let differs = differing(&warden, server, isolate, &mut fds)
        .map_err(|(what, error)| failed(&what, name, &error, "").with_source(error))?;
    let outfit = outfit(isolate, &fds, differs);
    // One that cannot be put on is refused by the forkserver, which says why; and it has to know of grants before the process does anything.
    let by_hand =
        || fds.grants.is_none() && outfit.plain().and_then(|outfit| outfit.check()).is_ok();
    let blank = match this.reserve && by_hand() {
        true => warden.take_blank(server),
        false => None,
    };
    let (ours, source) = match blank {
        Some(blank) => {
            let taken = blank.taken();
            let Blank { child, link, .. } = blank;
            (link, Source::Reserve(taken, child))
        }
        None => {
            let (ours, theirs) = crate::fault::check("pair", name)
                .and_then(|()| socket::stream_pair())
                .map_err(|error| {
                    failed("socket pair", name, &error, fds_hint).with_source(error)
                })?;
            (ours, Source::Fork(theirs))
        }
    };

    let origin = core.origin_of_child(name, 0);
    let life = Arc::new(Life::new(origin.clone()).spawned_at(isolate.spawned_at));
    let status = Arc::new(Status::default());
    let link = Link::new(ours, settings.frame_max);
    let far = life.clone();
    link.set_between(&runtime, move || far.origin());
    link.reads_from(order::From::Child);
    let limits = (
        isolate.messages.unwrap_or(settings.messages),
        isolate.calls.unwrap_or(settings.calls),
    );
    let (sender, mut ready) = oneshot::channel();
    let request = warden.next_request();
    let mut made = None;
    let key = owner.family.lock().add(&owner, |upward| {
        let process = Process::new(
            life.clone(),
            outputs,
            link.clone(),
            upward.clone(),
            (request, Arc::downgrade(&warden)),
            status.clone(),
            sender,
        );
        let target = Target::new(
            life.clone(),
            runtime.clone(),
            Route::Process(process.clone()),
            limits,
            false,
        );
        made = Some((process.clone(), target.clone()));
        Member::new(
            core.key,
            target,
            status.clone(),
            upward.clone(),
            bounds,
            Body::Process(process),
        )
        .with_last_words(isolate.last_words())
    });
    let (Some(key), Some((process, target))) = (key, made) else {
        return Err(Error::new(
            ErrorKind::Misuse,
            "an isolate that was abandoned cannot spawn",
        ));
    };
    let mut abort = Abort {
        owner: owner.clone(),
        key,
        process: process.clone(),
        warden: warden.clone(),
        armed: true,
    };

    let ask = match source {
        Source::Reserve(taken, (pid, pidfd, descendants)) => {
            process.set_server(taken.server);
            process.set_spawned(pid, pidfd, descendants);
            crate::fault::point("give", name);
            Ask::Claim(taken, Some(fds.all()))
        }
        Source::Fork(theirs) => Ask::Fork(theirs, fds),
    };
    if let Err(error) = warden.watch(&process) {
        let error = failed("watching it", name, &error, "").with_source(error);
        warden.never_was(&process, error.clone());
        return Err(error);
    }
    let (entry, state, carried) = match start {
        Start::Serve => (None, Vec::new(), Vec::new()),
        Start::State(entry, bytes, carried) => {
            (Some(*entry), std::mem::take(bytes), carried.clone())
        }
    };
    let main = isolate
        .main
        .map(crate::descriptor::Descriptor::entry)
        .transpose();
    let mut ask = ask;
    let child = main.and_then(|main| {
        let settings = ChildSettings {
            settings: settings.clone(),
            blocking: isolate.blocking,
            main,
            bounds,
            sigint: isolate.process.sigint,
        };
        let mut bytes = Vec::new();
        codec::encode_into(&settings, &mut bytes)
            .map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))?;
        let boot = Boot {
            build_id: image::build_id().into(),
            tree: runtime.tree,
            origin,
            parent: owner.life.origin(),
            settings: bytes.into(),
            entry,
            state: state.into(),
            on_start: settings.settings.on_start,
            environment: isolate.process.environment.clone(),
        };
        let given = match &mut ask {
            Ask::Claim(_, fds) => fds.take().map(|fds| (&outfit, fds)),
            Ask::Fork(..) => None,
        };
        let sent = link.send_boot(given, &boot, &carried);
        // For another try.
        if let Start::State(_, bytes, _) = start {
            *bytes = boot.state.into_vec();
        }
        sent
    });
    if let Err(error) = child {
        warden.never_was(&process, error.clone());
        return Err(error);
    }
    match isolate.process.ring.or(settings.ring) {
        Some(0) => {}
        None => link.offer_ring_for_bulk(),
        Some(ring) => {
            if let Err(error) = link.offer_ring(ring, &runtime) {
                crate::log::warn!(isolate = name, %error, "a link is without its ring");
            }
        }
    }
    let taken = match ask {
        Ask::Claim(taken, _) => {
            crate::fault::point("claim", name);
            warden.claim(&process, taken);
            true
        }
        Ask::Fork(theirs, fds) => {
            let asked = crate::fault::check("request", name)
                .and_then(|()| warden.spawn(server, &process, outfit, theirs, fds));
            if let Err(error) = asked {
                let silent = error.kind() == io::ErrorKind::WouldBlock;
                let error = failed("request", name, error, "");
                let error = match silent {
                    true => {
                        warden.unanswered(&process);
                        error.with_source(Unanswered)
                    }
                    false => error,
                };
                warden.never_was(&process, error.clone());
                return Err(error);
            }
            false
        }
    };

    owner.set_waiting(Wait::Start);
    core.local.await_start(&process);
    #[cfg(feature = "fault-points")]
    let asked_at = clock::now();
    let began = this.began;
    let left = || {
        let past = clock::now().saturating_sub(began);
        bounds.start.saturating_sub(Duration::from_nanos(past))
    };
    // Also looked at whether it is forked at all.
    let next = || time::pause(left().min(Duration::from_nanos(ANSWER)));
    let mut bound = pin!(next());
    let mut scope = ScopeWatch::default();
    let mut by_itself = false;
    let started = poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut ready).poll(cx) {
            by_itself = true;
            return Poll::Ready(result.unwrap_or_else(|oneshot::Dropped| Err(life.gone())));
        }
        if let Poll::Ready(cancel) = scope.poll(cx) {
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        // Its own watch of the scope is behind ours, so that it can only be the time.
        while let Poll::Ready(elapsed) = bound.as_mut().poll(cx) {
            elapsed?;
            if !left().is_zero() {
                if !process.is_spawned() {
                    warden.unanswered(&process);
                }
                bound.set(next());
                continue;
            }
            let error = failed(
                "start",
                name,
                format_args!("it was not ready within {:?}", bounds.start),
                "",
            );
            return Poll::Ready(Err(error));
        }
        Poll::Pending
    })
    .await;
    #[cfg(feature = "fault-points")]
    if let Err(error) = &started {
        let took = std::time::Duration::from_nanos(clock::now() - asked_at);
        crate::ledger::not_spawned(name, took, bounds.start, error);
    }
    if started.is_err() && by_itself {
        this.was_dead = taken && link.is_untaken() && life.cancelled().is_none();
    }
    started?;
    abort.armed = false;
    Ok(target)
}

/// Where a process comes from.
enum Source {
    /// One that waits.
    Reserve(Taken, (i32, Pidfd, Descendants)),
    /// A new one, whose end of the link this is.
    Fork(OwnedFd),
}

/// What the forkserver is told.
enum Ask {
    /// Whose one is that waited; before that it is given these, once.
    Claim(Taken, Option<Vec<OwnedFd>>),
    Fork(OwnedFd, SpawnFds),
}

/// What the process is given beside its link, as it crosses.
fn outfit(
    isolate: &Isolate,
    fds: &SpawnFds,
    (attributes, variables): (Vec<Attribute>, Vec<Variable>),
) -> Outfit {
    let options = &isolate.process;
    let limits = options.limits.iter();
    Outfit {
        name: isolate.name.clone(),
        umask: options.umask,
        limits: limits
            .map(|(limit, soft, hard)| (protocol::limit_number(*limit), *soft, *hard))
            .collect(),
        directory: fds.directory.is_some(),
        stdio: fds.stdio.each_ref().map(Option::is_some),
        grants: fds
            .grants
            .as_ref()
            .map(|grants| u8::try_from(grants.len()).unwrap_or(u8::MAX)),
        attributes,
        variables,
    }
}

/// What this thread has now otherwise than the forkserver's children. Of directory and streams, what the isolate says goes before it.
fn differing(
    warden: &Warden,
    server: u32,
    isolate: &Isolate,
    fds: &mut SpawnFds,
) -> Result<(Vec<Attribute>, Vec<Variable>), (String, io::Error)> {
    let Some((pid, theirs)) = warden.surroundings(server) else {
        return Ok(Default::default());
    };
    let ours = Surroundings::now().map_err(|error| ("umask".to_owned(), error))?;
    if fds.directory.is_none() {
        fds.directory = ours
            .directory_beside(&theirs)
            .map_err(|error| ("working directory".to_owned(), error))?;
    }
    let wanted = [
        isolate.process.stdin,
        isolate.process.stdout,
        isolate.process.stderr,
    ];
    for ((number, slot), wanted) in (0..).zip(&mut fds.stdio).zip(wanted) {
        if wanted == Stdio::Inherit && surroundings::stream_differs(pid, number) {
            let stream = surroundings::stream(number);
            *slot = Some(stream.map_err(|error| (format!("descriptor {number}"), error))?);
        }
    }
    Ok((ours.beside(&theirs), ours.variables_beside(&theirs)))
}

/// The reading ends of a process's standard output and error, where they are drained.
pub(crate) type Outputs = [Option<PipeReader>; 2];

/// Opens what the process gets beside its link.
fn open_fds(isolate: &Isolate, confined: bool) -> Result<(SpawnFds, Outputs), (String, io::Error)> {
    let null = |write: bool| -> Result<OwnedFd, (String, io::Error)> {
        let file = offshoot_sys::standard::make_above(|| {
            File::options().read(!write).write(write).open("/dev/null")
        });
        file.map(OwnedFd::from)
            .map_err(|error| ("/dev/null".to_owned(), error))
    };
    let process = &isolate.process;
    let directory = match &process.directory {
        None => None,
        Some(path) => {
            let opened = open_directory(path);
            Some(
                opened
                    .map_err(|error| (format!("working directory `{}`", path.display()), error))?,
            )
        }
    };
    let stdin = match process.stdin {
        Stdio::Inherit => None,
        Stdio::Null | Stdio::Piped => Some(null(false)?),
    };
    let output =
        |stdio: Stdio| -> Result<(Option<OwnedFd>, Option<PipeReader>), (String, io::Error)> {
            match stdio {
                Stdio::Inherit => Ok((None, None)),
                Stdio::Null => Ok((Some(null(true)?), None)),
                Stdio::Piped => {
                    let (reader, writer) = offshoot_sys::standard::make_above(io::pipe)
                        .map_err(|error| ("a pipe".to_owned(), error))?;
                    Ok((Some(writer.into()), Some(reader)))
                }
            }
        };
    let none = confined.then(Vec::new);
    let grants = process.grants.as_ref().or(none.as_ref());
    let grant = |path: &PathBuf| {
        GrantedDir::open(path)
            .map_err(|error| (format!("granted directory `{}`", path.display()), error))
    };
    let grants = grants.map(|grants| grants.iter().map(grant).collect::<Result<Vec<_>, _>>());
    let grants = grants.transpose()?;
    let (stdout, out) = output(process.stdout)?;
    let (stderr, err) = output(process.stderr)?;
    Ok((
        SpawnFds {
            directory,
            stdio: [stdin, stdout, stderr],
            grants,
        },
        [out, err],
    ))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let file = offshoot_sys::standard::make_above(|| File::open(path))?;
    if !file.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    Ok(file.into())
}
