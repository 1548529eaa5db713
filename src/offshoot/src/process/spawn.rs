//! Starting an isolate that is a process, from the owner's side.

use super::Process;
use super::link::Link;
use super::warden::{SpawnFds, Warden};
use crate::carry::{self, Carried};
use crate::descriptor::StateEntry;
use crate::family::{Body, Key, Member, Status};
use crate::isolate::shared::{Route, Shared, Target};
use crate::life::Life;
use crate::nursery::Core;
use crate::runtime::ChildSettings;
use crate::scope::{ScopeWatch, cancelled_error};
use crate::spec::{Isolate, Stdio};
use crate::time;
use crate::{Error, ErrorKind, Payload, Result};
use offshoot_mailbox::oneshot;
use offshoot_sys::{clock, image, process, socket};
use offshoot_wire::codec;
use offshoot_wire::frame::{Boot, Entry};
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::path::Path;
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
        let mut bytes = Vec::new();
        let (encoded, carried) = carry::pack(|| codec::encode_into(state, &mut bytes));
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
        Ok(Start::State(entry, bytes, carried))
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

/// Forks a process and waits until it serves. What may pass by itself is tried again.
pub(crate) async fn spawn_process(
    core: &Core,
    isolate: Isolate,
    mut start: Start,
) -> Result<Arc<Target>> {
    let began = clock::now();
    let bounds = isolate.resolve_bounds(core.local.shared.runtime.settings.bounds);
    for again in 0.. {
        let error = match try_spawn(core, &isolate, &mut start).await {
            Ok(target) => return Ok(target),
            Err(error) => error,
        };
        let passes = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
            .is_some_and(process::may_pass);
        let pause = AGAIN * (1 << again.min(AGAIN_MAX));
        let pause = pause + pause / 64 * u32::try_from(clock::now() / 64 % 32).unwrap_or(0);
        let elapsed = Duration::from_nanos(clock::now() - began);
        if !passes || again == AGAIN_MAX || elapsed + pause >= bounds.start {
            return Err(error);
        }
        tracing::debug!(isolate = %isolate.name, %error, ?pause, "fork is tried again");
        time::pause(pause).await?;
    }
    unreachable!("the last try returns")
}

async fn try_spawn(core: &Core, isolate: &Isolate, start: &mut Start) -> Result<Arc<Target>> {
    core.check_open()?;
    isolate.check()?;
    let owner = core.local.shared.clone();
    let runtime = owner.runtime.clone();
    let settings = &runtime.settings;
    let bounds = isolate.resolve_bounds(settings.bounds);
    let name = isolate.name.as_str();
    let warden = runtime
        .warden()
        .map_err(|error| failed("forkserver", name, error, ""))?;
    crate::budget::process().map_err(|why| failed("descriptors", name, why, ""))?;
    let fds_hint = "; the limit is RLIMIT_NOFILE, see `ulimit -n`";
    let (ours, theirs) = crate::fault::check("pair", name)
        .and_then(|()| socket::stream_pair())
        .map_err(|error| failed("socket pair", name, &error, fds_hint).with_source(error))?;
    let (fds, outputs) =
        open_fds(isolate, theirs).map_err(|(what, error)| failed(&what, name, error, ""))?;

    let origin = core.origin_of_child(name, 0);
    let life = Arc::new(Life::new(origin.clone()).spawned_at(isolate.spawned_at));
    let status = Arc::new(Status::default());
    let link = Link::new(ours, settings.frame_max);
    let far = life.clone();
    link.set_between(&runtime, move || far.origin());
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
            build_id: image::build_id().to_vec(),
            tree: runtime.tree,
            origin,
            parent: owner.life.origin(),
            settings: bytes,
            entry,
            state,
            on_start: settings.settings.on_start,
            environment: isolate.process.environment.clone(),
        };
        let sent = link.send_boot(&boot, &carried);
        // For another try.
        if let Start::State(_, bytes, _) = start {
            *bytes = boot.state;
        }
        sent
    });
    if let Err(error) = child {
        process.never_was(error.clone());
        return Err(error);
    }
    let ring = isolate.process.ring.unwrap_or(settings.ring);
    if ring > 0
        && let Err(error) = link.offer_ring(ring, &runtime)
    {
        tracing::warn!(isolate = name, %error, "a link is without its ring");
    }
    let asked =
        crate::fault::check("request", name).and_then(|()| warden.spawn(&process, isolate, fds));
    if let Err(error) = asked {
        let error = failed("request", name, error, "");
        process.never_was(error.clone());
        return Err(error);
    }

    owner.set_waiting("a process to start");
    #[cfg(feature = "fault-points")]
    let asked_at = clock::now();
    let mut bound = pin!(time::pause(bounds.start));
    let mut scope = ScopeWatch::default();
    let started = poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut ready).poll(cx) {
            return Poll::Ready(result.unwrap_or_else(|oneshot::Dropped| Err(life.gone())));
        }
        if let Poll::Ready(cancel) = scope.poll(cx) {
            return Poll::Ready(Err(cancelled_error(cancel)));
        }
        // Its own watch of the scope is behind ours, so that it can only be the time.
        if bound.as_mut().poll(cx).is_ready() {
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
    started?;
    abort.armed = false;
    Ok(target)
}

/// The reading ends of a process's standard output and error, where they are drained.
pub(crate) type Outputs = [Option<PipeReader>; 2];

/// Opens what the process gets beside its link.
fn open_fds(isolate: &Isolate, link: OwnedFd) -> Result<(SpawnFds, Outputs), (String, io::Error)> {
    let null = |write: bool| -> Result<OwnedFd, (String, io::Error)> {
        let file = File::options().read(!write).write(write).open("/dev/null");
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
                    let (reader, writer) =
                        io::pipe().map_err(|error| ("a pipe".to_owned(), error))?;
                    Ok((Some(writer.into()), Some(reader)))
                }
            }
        };
    let (stdout, out) = output(process.stdout)?;
    let (stderr, err) = output(process.stderr)?;
    Ok((
        SpawnFds {
            link,
            directory,
            stdio: [stdin, stdout, stderr],
        },
        [out, err],
    ))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    if !file.metadata()?.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    Ok(file.into())
}
