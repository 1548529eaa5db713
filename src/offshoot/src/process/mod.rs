//! An isolate that is a process, as its owner sees it.
//!
//! `forkserver` is the process that forks; `spawn` asks it; `child` is what the new process runs;
//! `link` is the socket between an owner and its child, `ring` what may take its place, `inlet` says who reads it; `warden` is the thread of an owner that
//! reads all of its links and watches all of its processes, so that a blocked isolate holds up
//! neither a reply to another one nor a kill.

mod account;
pub(crate) mod child;
pub(crate) mod forkserver;
pub(crate) mod inlet;
pub(crate) mod introduce;
pub(crate) mod keys;
pub(crate) mod link;
pub(crate) mod porter;
pub(crate) mod protocol;
mod queue;
pub(crate) mod ring;
mod served;
pub(crate) mod spawn;
pub(crate) mod warden;

use crate::family::{Status, Upward};
use crate::inspect::Inspections;
use crate::isolate::shared::Control;
use crate::life::{Life, News};
use crate::{Cancel, Canceller, Descendants, Error, ErrorKind, Exit, Result};
use inlet::Inlet;
use link::Link;
use offshoot_mailbox::oneshot;
use offshoot_sys::pidfd::{self, Pidfd};
use offshoot_sys::{clock, signal, socket};
use offshoot_wire::codec;
use offshoot_wire::frame::{CancelOrder, Ended, Kind};
use parking_lot::Mutex;
use protocol::End;
use spawn::Outputs;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use warden::Warden;

/// A process isolate of ours.
pub(crate) struct Process {
    pub(crate) life: Arc<Life>,
    pub(crate) link: Arc<Link>,
    pub(crate) inlet: Inlet,
    pub(crate) upward: Arc<Upward>,
    /// Names it between us and the forkserver.
    pub(crate) request: u64,
    /// When it was asked for (ns).
    pub(crate) since: u64,
    /// The forkserver that was asked for it, once one was.
    server: AtomicU32,
    status: Arc<Status>,
    pidfd: OnceLock<Pidfd>,
    descendants: OnceLock<Descendants>,
    pub(crate) inspections: Mutex<Inspections>,
    /// How often it has acknowledged a cancellation.
    acknowledgements: AtomicU64,
    state: Mutex<State>,
    resting: Mutex<Resting>,
    output: Mutex<Output>,
}

/// What it was asked and has said of being at rest.
#[derive(Default)]
struct Resting {
    /// The wave for which it was asked.
    asked: Option<u64>,
    /// That for which it has answered, and its number then.
    answered: Option<(u64, u64)>,
}

/// The number of no forkserver.
const NO_SERVER: u32 = u32::MAX;

/// How much of what a process printed is kept, in bytes.
const TAIL: usize = 16 << 10;

/// What a process prints, where it is piped.
struct Output {
    pipes: Outputs,
    /// The last of it, both streams as they came.
    tail: Vec<u8>,
    /// The line of each stream that has not ended.
    line: [Vec<u8>; 2],
}

#[derive(Default)]
struct State {
    /// Whoever waits for it to be ready.
    starting: Option<oneshot::Sender<Result<()>>>,
    ready: bool,
    spawned: bool,
    /// Its own last word.
    ended: Option<Ended>,
    /// Why we killed it, if we did.
    killed: Option<String>,
    over: bool,
}

impl Process {
    pub(crate) fn new(
        life: Arc<Life>,
        pipes: Outputs,
        link: Arc<Link>,
        upward: Arc<Upward>,
        (request, warden): (u64, Weak<Warden>),
        status: Arc<Status>,
        starting: oneshot::Sender<Result<()>>,
    ) -> Arc<Process> {
        let state = State {
            starting: Some(starting),
            ..State::default()
        };
        let inlet = Inlet::new(link.limit(), warden);
        let process = Arc::new(Process {
            life,
            link,
            inlet,
            upward,
            request,
            since: clock::now(),
            server: AtomicU32::new(NO_SERVER),
            status,
            pidfd: OnceLock::new(),
            descendants: OnceLock::new(),
            inspections: Mutex::default(),
            acknowledgements: AtomicU64::new(0),
            state: Mutex::new(state),
            resting: Mutex::default(),
            output: Mutex::new(Output {
                pipes,
                tail: Vec::new(),
                line: Default::default(),
            }),
        });
        process.link.belongs_to(&process);
        process
    }

    /// Notes which forkserver is asked for it, before it is.
    pub(crate) fn set_server(&self, number: u32) {
        self.server.store(number, Ordering::Release);
    }

    /// The forkserver that was asked for it; another number than that of any, if none was.
    pub(crate) fn server(&self) -> u32 {
        self.server.load(Ordering::Acquire)
    }

    /// Whether it was this forkserver that was asked for it.
    pub(crate) fn is_of_server(&self, number: u32) -> bool {
        self.server() == number
    }

    /// The numbers of the pipes that are to be watched.
    pub(crate) fn pipe_fds(&self) -> [Option<RawFd>; 2] {
        let output = self.output.lock();
        [0, 1].map(|stream: usize| output.pipes[stream].as_ref().map(AsRawFd::as_raw_fd))
    }

    /// Reads all that is in a pipe, so that the process never waits for us.
    pub(crate) fn drain(&self, stream: usize) {
        let mut output = self.output.lock();
        let Output { pipes, tail, line } = &mut *output;
        let mut buffer = [0; 4096];
        while let Some(pipe) = &mut pipes[stream] {
            // The pipe blocks, as its other end must; so only what is there is read.
            if !socket::wait_readable(pipe, Some(Duration::ZERO)).unwrap_or(false) {
                return;
            }
            let n = pipe.read(&mut buffer).unwrap_or(0);
            if n == 0 {
                pipes[stream] = None;
            }
            tail.extend_from_slice(&buffer[..n]);
            let over = tail.len().saturating_sub(TAIL);
            tail.drain(..over);
            for &byte in &buffer[..n] {
                // A line without an end must not grow without one.
                if byte == b'\n' || line[stream].len() >= TAIL {
                    self.print(stream, &mut line[stream]);
                }
                if byte != b'\n' {
                    line[stream].push(byte);
                }
            }
            if n == 0 && !line[stream].is_empty() {
                self.print(stream, &mut line[stream]);
            }
        }
    }

    /// Nobody reads its output any more. A portal may live on, and must not keep the pipes.
    pub(crate) fn close_pipes(&self) {
        self.output.lock().pipes = [None, None];
    }

    fn print(&self, stream: usize, line: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(line);
        let stream = ["stdout", "stderr"][stream];
        crate::log::info!(target: "offshoot::output", isolate = %self.life.identity(), stream, "{text}");
        line.clear();
    }

    /// The last of what it printed.
    pub(crate) fn output_tail(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().tail).into_owned()
    }

    pub(crate) fn pidfd(&self) -> Option<&Pidfd> {
        self.pidfd.get()
    }

    /// True once the forkserver has said that it exists.
    pub(crate) fn is_spawned(&self) -> bool {
        self.state.lock().spawned
    }

    /// True while somebody waits for it to be ready.
    pub(crate) fn is_starting(&self) -> bool {
        self.state.lock().starting.is_some()
    }

    /// True once its end has been told.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().over
    }

    /// How surely what it starts ends with it.
    pub(crate) fn descendants(&self) -> Option<Descendants> {
        self.descendants.get().copied()
    }

    /// The forkserver has forked it.
    pub(crate) fn set_spawned(&self, pid: i32, pidfd: Pidfd, descendants: Descendants) {
        let _ = self.descendants.set(descendants);
        self.life.set_pid(pid);
        // One request is answered once; a second answer would be the forkserver's bug.
        let _ = self.pidfd.set(pidfd);
        let (kill, ready) = {
            let mut state = self.state.lock();
            state.spawned = true;
            (
                state.killed.is_some(),
                state.ready.then(|| state.starting.take()).flatten(),
            )
        };
        if kill {
            self.signal_kill().tell();
        }
        if let Some(starting) = ready {
            let _ = starting.send(Ok(()));
        }
    }

    /// It has said that it serves.
    pub(crate) fn set_ready(&self) {
        let starting = {
            let mut state = self.state.lock();
            state.ready = true;
            // A portal whose process could not be killed yet would be half a portal.
            state.spawned.then(|| state.starting.take()).flatten()
        };
        if let Some(starting) = starting {
            let _ = starting.send(Ok(()));
        }
    }

    /// It has said how it ended; its process is about to. No code of it runs any more but what ends the
    /// process, so that its end is told at once, as that of a thread is. What it had bound is free once
    /// it is reaped and swept, for which its nursery waits.
    pub(crate) fn set_ended(&self, ended: Ended) {
        let exit = ended.exit.clone();
        self.state.lock().ended = Some(ended);
        self.announce(exit).tell();
    }

    /// True between its last word and its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    /// It has said that it cannot start, or the forkserver that it cannot fork it.
    pub(crate) fn fail_start(&self, error: Error) {
        let starting = self.state.lock().starting.take();
        if let Some(starting) = starting {
            self.status.silent.store(true, Ordering::Relaxed);
            let _ = starting.send(Err(error));
        }
    }

    /// Its number in this wave if it is at rest; else it is asked, and its owner told of the answer.
    pub(crate) fn rest(&self, wave: u64) -> Option<u64> {
        if !self.link.knows_others() {
            // It has no portal but to what it has spawned: nothing comes from it that its siblings could miss.
            return Some(0);
        }
        self.ask_rest(wave)
    }

    /// As [`rest`](Process::rest), also of one that reaches no others.
    pub(crate) fn ask_rest(&self, wave: u64) -> Option<u64> {
        let ask = {
            let mut resting = self.resting.lock();
            match resting.answered {
                Some((answered, word)) if answered == wave => return Some(word),
                _ => resting.asked.replace(wave) != Some(wave),
            }
        };
        if ask {
            self.link.send_rest(wave);
        }
        None
    }

    /// It has said that it is at rest. What was not asked, or longer ago, means nothing.
    pub(crate) fn rests(&self, wave: u64, word: u64) {
        let news = {
            let mut resting = self.resting.lock();
            let news = resting.asked == Some(wave)
                && resting.answered.is_none_or(|(last, _)| last != wave);
            if news {
                resting.answered = Some((wave, word));
            }
            news
        };
        if news {
            self.upward.nudge();
        }
    }

    pub(crate) fn send_order(&self, order: &CancelOrder) {
        self.link.send_value(Kind::Cancel, 0, order);
    }

    /// It is cancelled. If that did not come from here, it has cancelled itself, and comes down by
    /// the same ladder.
    pub(crate) fn has_seen_cancellation(&self) {
        self.acknowledgements.fetch_add(1, Ordering::Relaxed);
        let (Some(owner), key) = self.upward.owner() else {
            return;
        };
        if self.life.cancelled().is_none() {
            let by = Canceller::Isolate(self.life.origin());
            owner.family.lock().cancel(key, &Cancel { by }, None);
            owner.tell(Control::Look);
        }
    }

    /// How often it has acknowledged a cancellation: once for each order.
    pub(crate) fn acknowledgements(&self) -> u64 {
        self.acknowledgements.load(Ordering::Relaxed)
    }

    fn signal_kill(&self) -> News {
        let mut news = News::default();
        if let Some(pidfd) = self.pidfd.get()
            && let Err(error) = pidfd.kill()
        {
            let life = self.life.clone();
            news.add(move || {
                crate::log::error!(isolate = %life.identity(), %error, "cannot kill a process");
            });
        }
        news
    }

    /// Kills it and says so at once.
    pub(crate) fn kill(&self, why: &str) {
        let (_, news) = self.kill_quietly(why);
        news.tell();
    }

    /// It is dead, and a zombie still if `tracer` is not 0: that thread traces it and has not waited for it.
    pub(crate) fn note_tracer(&self, tracer: i32) {
        if tracer == 0 {
            return;
        }
        let mut why = format!("it is traced by {tracer}, which has not waited for it");
        {
            let killed = &mut self.state.lock().killed;
            match killed {
                // Of its death, and again of its end.
                Some(killed) if killed.ends_with(&why) => return,
                Some(killed) => why = format!("{killed}; {why}"),
                None => {}
            }
            *killed = Some(why.clone());
        }
        crate::log::warn!(isolate = %self.life.origin(), "a process stays a zombie: {why}");
    }

    /// What the forkserver says of its end.
    pub(crate) fn note_end(&self, end: End) {
        if let Some(why) = end.why {
            self.state.lock().killed.get_or_insert(why);
        }
        self.note_tracer(end.tracer);
    }

    /// The forkserver has reaped it. No code of it runs any more, so that its end is told at once; it is gone once it is swept.
    pub(crate) fn died(&self, end: End) {
        let status = end.status();
        self.note_end(end);
        let exit = {
            let state = self.state.lock();
            match (&state.ended, state.over) {
                (None, false) => exit_of(status, state.killed.clone()),
                // It has been told.
                _ => return,
            }
        };
        self.announce(exit).tell();
    }

    /// As [`kill`](Process::kill), for under a lock. Also how long its memory may take to be freed, in
    /// ns.
    pub(crate) fn kill_quietly(&self, why: &str) -> (u64, News) {
        let resident = self.resident_bytes();
        {
            let mut state = self.state.lock();
            if state.over || state.ended.is_some() {
                // It has said its last word; only its process is left to end.
                drop(state);
                return (0, self.signal_kill());
            }
            state.killed.get_or_insert_with(|| why.to_owned());
        }
        let mut news = self.signal_kill();
        let why = Some(why.to_owned());
        news.append(self.announce(Exit::Killed {
            signal: signal::SIGKILL,
            name: signal::name(signal::SIGKILL),
            core: false,
            why,
        }));
        // 100 ms per GiB was measured; four times that leaves room for a loaded machine.
        (resident / (1 << 20) * 400_000, news)
    }

    /// Says that it will not answer any more, and tells those who wait.
    fn announce(&self, exit: Exit) -> News {
        let mut news = self.life.announce_quietly(exit);
        let (link, life) = (self.link.clone(), self.life.clone());
        news.add(move || link.fail_pending(&life));
        news
    }

    fn resident_bytes(&self) -> u64 {
        let statm = offshoot_sys::procfs::text(format!("/proc/{}/statm", self.life.pid()))
            .unwrap_or_default();
        let pages: u64 = statm
            .split_whitespace()
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .unwrap_or(0);
        pages * 4096
    }

    /// It does not end though it was killed.
    pub(crate) fn give_up(&self) -> News {
        let exit = Exit::Unkillable {
            pid: self.life.pid(),
        };
        let (life, text) = (self.life.clone(), exit.to_string());
        let mut news = News::default();
        news.add(
            move || crate::log::error!(isolate = %life.origin(), exit = text, "process does not end"),
        );
        news.append(self.finish_quietly(exit, Vec::new()));
        self.release();
        news
    }

    /// The forkserver has reaped it and swept what it had bound.
    pub(crate) fn reaped(&self, status: pidfd::Status) {
        let (ended, killed) = {
            let mut state = self.state.lock();
            (state.ended.take(), state.killed.clone())
        };
        let (exit, left) = match (ended, status) {
            // Its own word counts, also if it was killed while it ended.
            (Some(ended), _) => (ended.exit, ended.left),
            (None, status) => (exit_of(status, killed), Vec::new()),
        };
        self.finish(exit, left);
    }

    /// It is dead, and nobody is there who could say how.
    pub(crate) fn lost(&self, why: &str) {
        let ended = self.state.lock().ended.take();
        match ended {
            Some(ended) => self.finish(ended.exit, ended.left),
            None => {
                let exit = Exit::Killed {
                    signal: signal::SIGKILL,
                    name: signal::name(signal::SIGKILL),
                    core: false,
                    why: Some(why.to_owned()),
                };
                // Unless that was told before.
                let exit = self.life.exit().cloned().unwrap_or(exit);
                self.finish(exit, Vec::new());
            }
        }
    }

    fn finish(&self, exit: Exit, left: Vec<Error>) {
        self.finish_quietly(exit, left).tell();
    }

    fn finish_quietly(&self, exit: Exit, left: Vec<Error>) -> News {
        let mut news = News::default();
        let starting = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.over, true) {
                return news;
            }
            state.starting.take()
        };
        if let Some(starting) = starting {
            let origin = self.life.origin();
            let message = format!("isolate `{origin}` did not start: {exit}");
            let error = Error::new(ErrorKind::Spawn("before it was ready".to_owned()), message);
            // The nursery may see the end before the spawn is polled, and must not count it twice.
            self.status.silent.store(true, Ordering::Relaxed);
            news.add(move || {
                let _ = starting.send(Err(error.leaving(&origin)));
            });
        }
        // Written before it is announced: who sees the end finds the whole report.
        let _ = self.status.ended.set((exit.clone(), left));
        news.append(self.announce(exit));
        // Last: the owner, once it looks, ends what waits for this one, which must have been told why.
        let (status, upward) = (self.status.clone(), self.upward.clone());
        news.add(move || {
            status.gone.store(true, Ordering::Release);
            upward.nudge();
        });
        news
    }

    /// Nothing was forked for it, and nothing will be.
    pub(crate) fn never_was(&self, error: Error) {
        self.fail_start(error);
        self.finish(
            Exit::Lost {
                why: "it was never forked".to_owned(),
            },
            Vec::new(),
        );
    }
}

/// How one has ended that has not said so itself, and why it was killed, if it was.
fn exit_of(status: pidfd::Status, killed: Option<String>) -> Exit {
    match status {
        pidfd::Status::Signaled { signal, core } => Exit::Killed {
            signal,
            name: signal::name(signal),
            core,
            why: killed.filter(|_| signal == signal::SIGKILL),
        },
        pidfd::Status::Exited(code) => Exit::Exited { code },
    }
}

/// Decodes the body of a control frame.
pub(crate) fn decode_body<T: serde::de::DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T> {
    codec::decode(body)
        .map_err(|error| Error::new(ErrorKind::Protocol, format!("a frame {kind:?}: {error}")))
}
