//! Programs with a tree, to be killed: what they run, and the handle that a case has of a running one.
//!
//! A program says what a case waits for in lines that begin with `@`. It ends when its standard input does.

use crate::oracle;
use offshoot::net::{UnixDatagram, UnixListener};
use offshoot::prelude::*;
use offshoot_sys::clock;
use offshoot_sys::pidfd::{Pidfd, Status};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Names the program that this process is to be.
pub(crate) const PROGRAM: &str = "OFFSHOOT_TEST_PROGRAM";

/// Long enough for a busy machine; nothing waits for it that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

// ---- the handle ----

pub(crate) struct Running {
    pub(crate) process: oracle::Process,
    pidfd: Pidfd,
    stdin: Option<PipeWriter>,
    lines: Receiver<String>,
    log: Arc<Mutex<String>>,
}

impl Running {
    /// Starts a program in a process group of its own.
    pub(crate) fn start(program: &str, environment: &[(&str, &str)]) -> Running {
        let image = std::env::current_exe().expect("an executable");
        Running::start_image(&image, program, environment)
    }

    /// As [`Running::start`], of another copy of this executable.
    pub(crate) fn start_image(
        image: &Path,
        program: &str,
        environment: &[(&str, &str)],
    ) -> Running {
        Running::start_changed(image, program, environment, |_| {})
    }

    /// As [`Running::start_image`], where `change` has the last word.
    pub(crate) fn start_changed(
        image: &Path,
        program: &str,
        environment: &[(&str, &str)],
        change: impl FnOnce(&mut Command),
    ) -> Running {
        let (input, stdin) = std::io::pipe().expect("a pipe");
        let (output, stdout) = std::io::pipe().expect("a pipe");
        let stderr = stdout.try_clone().expect("a copy");
        let mut command = Command::new(image);
        command
            .env(PROGRAM, program)
            .envs(environment.iter().copied())
            .stdin(OwnedFd::from(input))
            .stdout(OwnedFd::from(stdout))
            .stderr(OwnedFd::from(stderr))
            .process_group(0);
        change(&mut command);
        #[expect(clippy::zombie_processes)] // Reaped through its pidfd, or with all other orphans.
        let child = command.spawn().expect("the program starts");
        drop(command);
        let pid = i32::try_from(child.id()).expect("a pid");
        let pidfd = Pidfd::open(pid).expect("not reaped yet");
        let process = oracle::below(oracle::own_pid())
            .into_iter()
            .find(|process| process.pid == pid)
            .expect("not reaped yet");
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, lines) = channel();
        let into = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                {
                    let mut log = into.lock().expect("no panic under it");
                    log.push_str(&line);
                    log.push('\n');
                }
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running {
            process,
            pidfd,
            stdin: Some(stdin),
            lines,
            log,
        }
    }

    /// Waits for the line that begins with `prefix`, and returns the rest of it. Lines before it are skipped.
    pub(crate) fn line(&self, prefix: &str, bound: Duration) -> String {
        let deadline = Instant::now() + bound;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return rest.trim().to_owned();
                    }
                }
                Err(why) => panic!(
                    "no line `{prefix}` within {bound:?} ({why}); so far:\n{}",
                    self.log()
                ),
            }
        }
    }

    /// Waits until nobody holds its output any more, and returns all of it.
    pub(crate) fn all_output(&self, bound: Duration) -> String {
        let deadline = Instant::now() + bound;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.log(),
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "somebody still holds its output after {bound:?}:\n{}\n{}",
                        oracle::table(),
                        self.log()
                    )
                }
            }
        }
    }

    /// What it has said so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no panic under it").clone()
    }

    /// Asks it to end.
    pub(crate) fn stop(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal. False if it has ended before.
    pub(crate) fn signal(&self, signal: i32) -> bool {
        !self.pidfd.is_dead() && self.pidfd.signal(signal).expect("our own child")
    }

    /// How it ended; panics if it does not in time.
    pub(crate) fn wait(&self, bound: Duration) -> Status {
        if !self.pidfd.wait_dead(bound).expect("a poll") {
            panic!(
                "it did not end within {bound:?}:\n{}\n{}",
                oracle::table(),
                self.log()
            );
        }
        let status = self.pidfd.reap().expect("nobody else reaps it");
        status.expect("it is dead")
    }
}

/// Starts a program that makes a tree of its own and ends, so that it sweeps what dead trees have left.
pub(crate) fn sweep_by_next_start() {
    let mut next = Running::start("clean", &[]);
    next.stop();
    let status = next.wait(PATIENCE);
    assert_eq!(status, Status::Exited(0), "{}", next.log());
}

/// Where a program's addresses are to lie: none of it is the runtime's own.
pub(crate) struct Addresses {
    directory: PathBuf,
    /// What names of shared memory begin with.
    memory: String,
}

/// Names the directory of [`Addresses`].
const ADDRESSES: &str = "OFFSHOOT_TEST_ADDRESSES";

impl Addresses {
    /// Those of a case. Everything that it starts from here on is told of them.
    pub(crate) fn of_case() -> Addresses {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").expect("the runner sets it");
        let directory = Path::new(&runtime).join("addresses");
        std::fs::create_dir(&directory).expect("a directory");
        // SAFETY: a case begins with one thread, and the watch of stalls reads no environment.
        unsafe { std::env::set_var(ADDRESSES, &directory) };
        Addresses::of_program()
    }

    fn of_program() -> Addresses {
        // A program that only starts and ends has none.
        let directory = PathBuf::from(std::env::var_os(ADDRESSES).unwrap_or_default());
        let name = directory.to_string_lossy().replace('/', "-");
        let memory = format!("offshoot{name}-");
        Addresses { directory, memory }
    }

    /// What lies there.
    pub(crate) fn left(&self) -> Vec<PathBuf> {
        let names = |directory: &Path| {
            let entries = std::fs::read_dir(directory).expect("a directory");
            entries.flatten().map(|entry| entry.path())
        };
        let memory = names(Path::new("/dev/shm")).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&self.memory))
        });
        names(&self.directory).chain(memory).collect()
    }
}

// ---- the programs ----

/// Runs the program that the environment names, if it names one.
pub(crate) fn main() -> Option<ExitCode> {
    let program = std::env::var(PROGRAM).ok()?;
    crate::refused::refuse_as_told();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        STOP.store(true, Ordering::Release);
    });
    Some(match program.as_str() {
        "clean" => offshoot::main(clean),
        "all" => offshoot::main(all),
        "busy" => offshoot::main(busy),
        // The same in a program that has a main function of its own.
        "busy-run" => finish(offshoot::run(busy)),
        "stayer" => offshoot::main(stayer),
        "segfault" => offshoot::main(segfault),
        "overflow" => offshoot::main(overflow),
        "bombs" => offshoot::main(bombs),
        "late" => offshoot::main(late),
        "daemons" => offshoot::main(daemons),
        "handed" => offshoot::main(handed),
        "liar" => offshoot::main(crate::given_up::liar),
        "flood" => finish(
            offshoot::Builder::new()
                .reserve_processes(0)
                .run(crate::flood::flooded),
        ),
        "flood-deaf" => offshoot::main(crate::flood::deaf),
        "headless" => offshoot::main(crate::strangers::headless),
        "without-head" => crate::strangers::lose_head(),
        "storm" => offshoot::main(crate::storm::tree),
        "strangers" => offshoot::main(crate::strangers::by_isolate),
        "brief" => offshoot::main(crate::strangers::brief),
        "bereft" => offshoot::main(crate::strangers::bereft),
        "inner" => offshoot::main(crate::strangers::inner),
        "broken-fails" => offshoot::main(crate::surroundings::fails),
        "broken-tree" => crate::surroundings::broken_tree(),
        "changes" => finish(offshoot::run(crate::surroundings::changes)),
        "limited" => finish(offshoot::run(crate::surroundings::limited)),
        "closed" => crate::surroundings::closed(),
        "ignores" => offshoot::main(crate::surroundings::ignores),
        "terminal" => finish(offshoot::run(crate::surroundings::on_terminal)),
        "c-output" => finish(offshoot::run(crate::surroundings::c_output)),
        "unlinked" => finish(offshoot::run(crate::rights::unlinked)),
        "secure" => finish(offshoot::run(crate::rights::secure)),
        "rights" => finish(offshoot::run(crate::rights::program)),
        "turncoats" => offshoot::main(turncoats),
        "stubborn" => offshoot::main(stubborn),
        "tracer" => crate::traced::tracer(),
        "handlers" => finish(handlers()),
        other => panic!("no program is named {other}"),
    })
}

fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("error: {}", error.report());
            ExitCode::FAILURE
        }
    }
}

pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Returns when the standard input has ended.
pub(crate) async fn stopped() -> Result<()> {
    while !STOP.load(Ordering::Acquire) {
        offshoot::sleep(Duration::from_millis(1)).await?;
    }
    Ok(())
}

/// One line, written at once, so that lines of several processes do not mix.
pub(crate) fn say(line: &str) {
    let line = format!("{line}\n");
    // The reader may have gone.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
    let _ = std::io::stdout().flush();
}

pub(crate) async fn double(n: u64) -> u64 {
    n * 2
}

/// Does not return before it is cancelled.
pub(crate) async fn hang() -> Result<()> {
    loop {
        offshoot::sleep(Duration::from_secs(3600)).await?;
    }
}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Count(u64);

impl Count {
    pub(crate) async fn add(&mut self, by: u64) -> u64 {
        self.0 += by;
        self.0
    }
}

/// Says when a call that waits for this isolate ends, and how. On a thread that belongs to no isolate, so that nothing but the
/// isolate's death can end the call.
fn wait_on<S: 'static>(portal: &Portal<S>) -> JoinHandle<()> {
    let portal = portal.clone();
    std::thread::spawn(move || {
        let result = portal.call_blocking(hang, ());
        let path = portal.origin().path;
        match result {
            Ok(result) => say(&format!("@answered {path} {result:?}")),
            Err(error) => say(&format!("@lost {path} {} {error}", clock::now())),
        }
    })
}

/// The way in and out of a tree, quickly.
async fn clean() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let one = nursery.spawn(Isolate::named("one").process()).await?;
        assert_eq!(one.call(double, 2).await?, 4);
        Ok(())
    })
    .await
}

async fn kill_itself() {
    let own = Pidfd::open(oracle::own_pid()).expect("it lives");
    let _ = own.kill();
}

/// All that a tree has in the file system, by a process that ends and by one that is killed.
async fn all() -> Result<()> {
    for name in ["ends", "killed"] {
        let result = offshoot::nursery(async |nursery| {
            let isolate = nursery.spawn(Isolate::named(name).process()).await?;
            holds(nursery, &isolate);
            offshoot::unblock(move || {
                let bound = || Addresses::of_program().left().len() == 5;
                assert!(oracle::within(PATIENCE, bound));
            })
            .await?;
            match name {
                "killed" => {
                    isolate.call(kill_itself, ()).await?;
                }
                _ => {
                    isolate.cancel().await;
                }
            }
            Ok(())
        })
        .await;
        if name == "ends" {
            result?;
        }
        let left = Addresses::of_program().left();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    Ok(())
}

/// Binds one of each kind of address in the directory of the case, and holds them until it is cancelled.
async fn hold_addresses(name: String) -> Result<()> {
    let place = Addresses::of_program();
    let path = |kind: &str| place.directory.join(format!("{name}.{kind}"));
    let _listener = UnixListener::bind(path("socket")).await?;
    let _datagram = UnixDatagram::bind(path("datagram")).await?;
    let _pid = offshoot::pid_file(path("pid")).await?;
    let _file = offshoot::create_file(path("file"), |path| std::fs::write(path, "x")).await?;
    let memory = format!("{}{name}", place.memory);
    let _memory = offshoot::create_shared_memory(&memory, 4096).await?;
    say(&format!("@bound {name}"));
    hang().await
}

/// Lets an isolate hold addresses for as long as it lives.
pub(crate) fn holds<'scope>(
    nursery: &'scope Nursery<'scope, '_>,
    portal: &Portal<impl Sized + 'static>,
) {
    let portal = portal.clone();
    let name = portal.name().to_owned();
    nursery
        .task(async move { portal.call(hold_addresses, name).await })
        .detach();
}

/// Starts processes that bind, and cancels them, one after the other, at whatever point they are.
async fn churn() -> Result<()> {
    for round in 0_u64.. {
        offshoot::nursery(async |nursery| {
            let brief = nursery.spawn(Isolate::named("brief").process()).await?;
            holds(nursery, &brief);
            offshoot::sleep(Duration::from_micros(round * 700 % 4_000)).await?;
            brief.cancel().await;
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// A tree of threads and processes, two levels of each, in which calls go all the while, everybody has addresses, and processes come and go.
async fn busy() -> Result<()> {
    let mut waiting = Vec::new();
    let result = offshoot::nursery(async |nursery| {
        let near = nursery.spawn(Isolate::named("near").thread()).await?;
        let left = nursery.spawn(Isolate::named("left").process()).await?;
        holds(nursery, &near);
        holds(nursery, &left);
        let right = nursery
            .start(Isolate::named("right").process(), Count::default())
            .await?;
        waiting.push(wait_on(&left));
        waiting.push(wait_on(&right));
        {
            let growing = async { left.call(grow, ()).await? };
            let growing = async {
                futures_util::future::try_join(growing, churn())
                    .await
                    .map(drop)
            };
            let calling = async {
                let mut sum = 0;
                loop {
                    sum += near.call(double, 1).await? + left.call(double, 2).await?;
                    sum += right.ask(Count::add, sum % 3).await?;
                    if sum > 100 {
                        say("@ready");
                        sum = 0;
                        // Not a flood of lines.
                        offshoot::sleep(Duration::from_millis(20)).await?;
                    }
                }
                #[allow(unreachable_code)] // For the type.
                Ok(())
            };
            let growing = pin!(growing);
            let calling = pin!(calling);
            let both = futures_util::future::try_select(growing, calling);
            let stop = pin!(stopped());
            match futures_util::future::select(both, stop).await {
                futures_util::future::Either::Left((Ok(_), _)) => {
                    unreachable!("neither ends by itself")
                }
                futures_util::future::Either::Left((Err(error), _)) => {
                    return Err(error.factor_first().0);
                }
                futures_util::future::Either::Right((result, _)) => result?,
            }
        }
        say("@stopping");
        // They have calls that do not end by themselves.
        let _ = left.cancel().await;
        let _ = right.cancel().await;
        let _ = near.cancel().await;
        Ok(())
    })
    .await;
    join(waiting);
    result
}

/// Waits for the threads of [`wait_on`]: the process may end right after, and they have to have said their word before.
pub(crate) fn join(waiting: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in waiting {
        thread.join().expect("it only prints");
    }
}

/// The second level, in a process.
async fn grow() -> Result<()> {
    let mut waiting = None;
    let result = offshoot::nursery(async |nursery| {
        let inner = nursery.spawn(Isolate::named("inner").thread()).await?;
        let deep = nursery.spawn(Isolate::named("deep").process()).await?;
        waiting = Some(wait_on(&deep));
        holds(nursery, &inner);
        holds(nursery, &deep);
        deep.call(double, 1).await?;
        say("@grown");
        loop {
            inner.call(double, 1).await?;
            deep.call(double, 2).await?;
        }
    })
    .await;
    join(waiting);
    result
}

/// Undoes what ties this process to the life of its parent.
async fn wants_to_stay() {
    // SAFETY: PR_SET_PDEATHSIG takes an integer and changes a flag of this thread only.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    assert_eq!(result, 0);
}

/// A tree with a process that has cleared its parent-death signal, and then blocks, deaf to everything.
async fn stayer() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let deaf = nursery.spawn(Isolate::named("deaf").process()).await?;
        let other = nursery.spawn(Isolate::named("other").process()).await?;
        deaf.call(wants_to_stay, ()).await?;
        let _ = wait_on(&other);
        let blocked = deaf.call(block_for_ever, ());
        let mut blocked = pin!(blocked);
        let started = pin!(offshoot::sleep(Duration::from_millis(20)));
        let _ = futures_util::future::select(blocked.as_mut(), started).await;
        say("@ready");
        stopped().await
    })
    .await
}

/// Which rights a process gives up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum GivesUp {
    User,
    Group,
    /// In a user namespace of its own, where it has others.
    Namespace,
}

/// Changes the rights of this process, and then computes, deaf to everything. Says before how that went.
async fn turn(gives_up: GivesUp) {
    // SAFETY: these take integers and an optional pointer that is null.
    let changed = unsafe {
        match gives_up {
            GivesUp::User => libc::setresuid(65_534, 65_534, 65_534),
            GivesUp::Group => libc::setresgid(65_534, 65_534, 65_534),
            GivesUp::Namespace => libc::unshare(libc::CLONE_NEWUSER),
        }
    };
    let mut signal = 0;
    // SAFETY: the pointer is to a live, writable integer.
    unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) };
    say(&format!("@turned {gives_up:?} {changed} {signal}"));
    block_for_ever().await
}

/// A tree of processes whose parent-death signal the kernel has cleared, since their rights have changed.
async fn turncoats() -> Result<()> {
    offshoot::nursery(async |nursery| {
        for gives_up in [GivesUp::User, GivesUp::Group, GivesUp::Namespace] {
            let name = format!("{gives_up:?}");
            let isolate = nursery.spawn(Isolate::named(&name).process()).await?;
            nursery
                .task(async move {
                    let _ = isolate.call(turn, gives_up).await;
                })
                .detach();
        }
        stopped().await
    })
    .await
}

async fn block_for_ever() {
    loop {
        std::thread::park();
    }
}

async fn crash() {
    // SAFETY: none; this is the fault that the test is about: a read of an address that is never mapped.
    let value = unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() };
    say(&format!("it read {value}"));
}

/// A tree whose root crashes when it is told to stop.
async fn segfault() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let left = nursery.spawn(Isolate::named("left").process()).await?;
        let _ = wait_on(&left);
        say("@ready");
        stopped().await?;
        crash().await;
        Ok(())
    })
    .await
}

/// Recurses until its stack is full.
fn dig(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    frame[1] + std::hint::black_box(dig as fn(u64) -> u64)(depth + 1)
}

/// A tree with a process, and a thread isolate that overflows its stack when it is told to stop.
async fn overflow() -> Result<()> {
    with_a_faulty_thread(|| {
        let depth = dig(0);
        say(&format!("it got to {depth}"));
    })
    .await
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("and in its destructor");
    }
}

/// A tree with a process, and a thread isolate that panics while it panics.
async fn bombs() -> Result<()> {
    with_a_faulty_thread(|| {
        let _bomb = Bomb;
        panic!("in the call");
    })
    .await
}

async fn with_a_faulty_thread(fault: fn()) -> Result<()> {
    offshoot::nursery(async |nursery| {
        let left = nursery.spawn(Isolate::named("left").process()).await?;
        let _ = wait_on(&left);
        let thread = Isolate::named("thread").stack_size(256 << 10);
        let thread = nursery.spawn_local(thread).await?;
        say("@ready");
        stopped().await?;
        thread.run(async move || fault()).await
    })
    .await
}

/// Starts its first process when it is told to stop.
async fn late() -> Result<()> {
    say("@ready");
    stopped().await?;
    clean().await
}

/// Starts programs that know nothing of the tree: a child, and a daemon that has left its session and its parent.
async fn start_strangers() -> Result<()> {
    // Not waited for, which is the point.
    let child = Command::new("sleep").arg("1000").spawn()?;
    say(&format!("@stranger {}", child.id()));
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg("setsid sh -c 'sleep 1000 & echo @stranger $!' &");
    let mut shell = shell.spawn()?;
    shell.wait()?;
    Ok(())
}

async fn daemons() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let left = nursery.spawn(Isolate::named("left").process()).await?;
        left.call(start_strangers, ()).await??;
        say("@ready");
        stopped().await
    })
    .await
}

/// Takes a process of the root's hand, once it is told to.
async fn handed() -> Result<()> {
    offshoot::nursery(async |nursery| {
        nursery.spawn(Isolate::named("first").process()).await?;
        let waits =
            |line: &String| line.contains("that wait for a spawn: ") && !line.ends_with(": 0");
        while !offshoot::dump_all().iter().any(waits) {
            offshoot::sleep(Duration::from_millis(1)).await?;
        }
        say("@ready");
        stopped().await?;
        let taken = nursery.spawn(Isolate::named("taken").process()).await?;
        taken.call(std::process::id, ()).await.map(drop)
    })
    .await
}

/// A process that ignores its cancellation, so that only force ends it.
async fn stubborn() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let deaf = nursery.spawn(Isolate::named("deaf").process()).await?;
        let blocked = deaf.call(block_for_ever, ());
        let mut blocked = pin!(blocked);
        let started = pin!(offshoot::sleep(Duration::from_millis(20)));
        let _ = futures_util::future::select(blocked.as_mut(), started).await;
        say("@ready");
        blocked.await
    })
    .await
}

/// The signals that this process catches, as the kernel shows them.
fn caught() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("SigCgt:"));
    line.expect("a line of signals").to_owned()
}

/// Runs a tree in a program with a main function of its own and compares what signals are caught.
fn handlers() -> Result<()> {
    let bits = |text: &str| {
        let number = text.split_whitespace().nth(1).expect("a mask");
        let mask = u64::from_str_radix(number, 16).expect("hexadecimal");
        (
            mask & (1 << (libc::SIGINT - 1)) != 0,
            mask & (1 << (libc::SIGTERM - 1)) != 0,
        )
    };
    let before = bits(&caught());
    let during = offshoot::run(async move || {
        offshoot::nursery(async |nursery| {
            let one = nursery.spawn(Isolate::named("one").process()).await?;
            one.call(double, 1).await?;
            Ok(caught())
        })
        .await
    })?;
    let after = bits(&caught());
    say(&format!(
        "@handlers {before:?} {:?} {after:?}",
        bits(&during)
    ));
    Ok(())
}
