//! What a tree takes from its surroundings: standard streams that are broken, signals that are ignored, a terminal.

use crate::oracle;
use crate::program::{PATIENCE, Running, double, say, stopped};
use offshoot::prelude::*;
use offshoot_sys::pidfd::Status;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Starts a program whose surroundings `change` makes.
fn start(
    program: &str,
    environment: &[(&str, &str)],
    change: impl FnOnce(&mut Command),
) -> Running {
    Running::start_changed(Path::new("/proc/self/exe"), program, environment, change)
}

fn assert_nothing_left(running: &Running) {
    assert!(
        matches!(oracle::wait_childless(PATIENCE), oracle::Left::Nothing),
        "{}",
        oracle::table()
    );
    let left = oracle::own_tree_files();
    assert!(left.is_empty(), "{left:?}\n{}", running.log());
}

// ---- a standard error that cannot be written ----

/// A root that fails.
pub(crate) async fn fails() -> Result<()> {
    Err(Error::other(std::io::Error::other("the disk is full")))
}

/// A log that cannot be written, as the usual one behaves: it panics.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        panic!("cannot write {}", event.metadata().target());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

fn log_that_panics() {
    tracing::subscriber::set_global_default(Panics).expect("the first");
    // What the hook says of each has nowhere to go either.
    std::panic::set_hook(Box::new(|_| {}));
}

/// A tree in which everything that has something to say says it: the forkserver, and the log in each process.
pub(crate) fn broken_tree() -> ExitCode {
    // A host that is not written in Rust has this.
    // SAFETY: sets the default action.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    offshoot::Builder::new()
        .on_process_start(log_that_panics)
        .main(async || {
            offshoot::nursery(async |nursery| {
                let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
                let process = nursery.spawn(Isolate::named("process").process()).await?;
                // Its first try for the reserve fails, which it says; then there is one.
                let own = oracle::own_pid();
                while oracle::below(own).len() == oracle::isolates_below(own).len() {
                    offshoot::sleep(Duration::from_millis(1)).await?;
                }
                let failing: Result<()> = offshoot::nursery(async |inner| {
                    for isolate in [Isolate::named("t").thread(), Isolate::named("p").process()] {
                        let one = inner.spawn(isolate).await?;
                        one.cancel().await;
                    }
                    Err(Error::other(std::io::Error::other("on purpose")))
                })
                .await;
                assert!(failing.is_err());
                assert_eq!(thread.call(double, 1).await?, 2);
                assert_eq!(process.call(double, 2).await?, 4);
                say("@right");
                Ok(())
            })
            .await
        })
}

/// A pipe that nobody reads any more, and one that is full; the second has to be kept.
fn broken_and_stuck() -> [(&'static str, OwnedFd, Option<OwnedFd>); 2] {
    let (reader, broken) = std::io::pipe().expect("a pipe");
    drop(reader);
    let (reader, mut stuck) = std::io::pipe().expect("a pipe");
    // SAFETY: takes no pointer.
    let room = unsafe { libc::fcntl(stuck.as_raw_fd(), libc::F_GETPIPE_SZ) };
    let room = usize::try_from(room).expect("a size");
    stuck.write_all(&vec![b'x'; room]).expect("so much fits");
    [
        ("broken", broken.into(), None),
        ("stuck", stuck.into(), Some(reader.into())),
    ]
}

/// What cannot be said is not said; the exit code is that of the end, and no isolate ends for it.
pub(crate) fn broken_stderr() {
    let [(_, broken, _), _] = broken_and_stuck();
    let failing = start("broken-fails", &[], |command| {
        command.stderr(broken);
    });
    assert_eq!(failing.wait(PATIENCE), Status::Exited(1));
    for (which, stderr, _reader) in broken_and_stuck() {
        let environment = [
            ("OFFSHOOT_RESERVE_PROCESSES", "2"),
            ("OFFSHOOT_FAULT", "forked@offshoot-reserve*1:fail=11"),
        ];
        let running = start("broken-tree", &environment, |command| {
            command.stderr(stderr);
        });
        let status = running.wait(PATIENCE);
        assert_eq!(status, Status::Exited(0), "{which}: {}", running.log());
        let log = running.all_output(PATIENCE);
        assert!(log.contains("@right"), "{which}: {log}");
        assert_nothing_left(&running);
    }
}

// ---- signals that are ignored ----

/// Which signals this process ignores, as a set of bits.
async fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    u64::from_str_radix(set.expect("a line").trim(), 16).expect("a number")
}

/// Serves until it is stopped; says what its processes ignore.
pub(crate) async fn ignores() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let process = nursery.spawn(Isolate::named("process").process()).await?;
        let own = Isolate::named("own")
            .process()
            .sigint(offshoot::Sigint::Own);
        let own = nursery.spawn(own).await?;
        for portal in [&process, &own] {
            say(&format!("@ignored {}", portal.call(ignored, ()).await?));
        }
        say("@ready");
        stopped().await?;
        assert_eq!(process.call(double, 1).await?, 2);
        assert_eq!(own.call(double, 1).await?, 2);
        Ok(())
    })
    .await
}

/// Sends `signal` to every process of a program.
fn send_to_all(running: &Running, signal: i32) {
    for process in oracle::below(running.process.pid) {
        if !process.name.starts_with("offshoot-forks") {
            let pidfd = process.pidfd().expect("it lives");
            assert!(pidfd.signal(signal).expect("our own"));
        }
    }
    assert!(running.signal(signal));
}

/// `nohup`, and a job in the background of a script: the program goes on, and its processes do.
pub(crate) fn stays_ignored() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        let mut running = start("ignores", &[], |command| {
            // SAFETY: one system call between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    libc::signal(signal, libc::SIG_IGN);
                    Ok(())
                })
            };
        });
        for _ in 0..2 {
            let set: u64 = running
                .line("@ignored", PATIENCE)
                .parse()
                .expect("a number");
            assert_ne!(set & 1 << (signal - 1), 0, "{signal}: {set:x}");
        }
        running.line("@ready", PATIENCE);
        send_to_all(&running, signal);
        running.stop();
        let status = running.wait(PATIENCE);
        assert_eq!(status, Status::Exited(0), "{signal}: {}", running.log());
        assert_nothing_left(&running);
    }
}

// ---- a terminal ----

/// Reads the terminal and writes to it, from a process group that is not in front.
async fn use_terminal() -> String {
    let read = std::io::stdin().read(&mut [0; 8]);
    let wrote = std::io::stdout()
        .write_all(b"written\n")
        .and_then(|()| std::io::stdout().flush());
    // SAFETY: an all-zero structure is valid; the pointers are to it.
    let set = unsafe {
        let mut terminal: libc::termios = std::mem::zeroed();
        libc::tcgetattr(0, &mut terminal) == 0 && libc::tcsetattr(0, libc::TCSANOW, &terminal) == 0
    };
    let read = read.map_err(|error| error.raw_os_error());
    format!("{read:?} {:?} {set}", wrote.is_ok())
}

pub(crate) async fn on_terminal() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let process = nursery.spawn(Isolate::named("process").process()).await?;
        say(&format!("@used {}", process.call(use_terminal, ()).await?));
        Ok(())
    })
    .await
}

/// In the background of a terminal, a read is an error and a write goes through, also with `tostop`.
pub(crate) fn a_terminal_stops_no_process() {
    for tostop in [false, true] {
        let (mut master, mut slave) = (0, 0);
        let null = std::ptr::null_mut::<libc::c_char>();
        // SAFETY: the pointers are to live numbers, or null where that is allowed.
        let opened = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                null,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both have just been opened.
        let (master, slave) = unsafe {
            (
                std::fs::File::from_raw_fd(master),
                OwnedFd::from_raw_fd(slave),
            )
        };
        // SAFETY: an all-zero structure is valid; the pointers are to it.
        unsafe {
            let mut terminal: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(slave.as_raw_fd(), &mut terminal), 0);
            if tostop {
                terminal.c_lflag |= libc::TOSTOP;
            }
            let set = libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &terminal);
            assert_eq!(set, 0);
        }
        let copy = || slave.try_clone().expect("a copy");
        let running = start("terminal", &[], |command| {
            command.stdin(copy()).stdout(copy()).stderr(copy());

            // SAFETY: system calls between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    // Its group was made for it, and whoever leads one cannot lead a session.
                    libc::setpgid(0, libc::getpgid(libc::getppid()));
                    libc::setsid();
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                    Ok(())
                })
            };
        });
        drop(slave);
        let (sender, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut master, mut all) = (master, Vec::new());
            // EIO is the end of a terminal that nobody has open any more.
            let _ = master.read_to_end(&mut all);
            let _ = sender.send(String::from_utf8_lossy(&all).into_owned());
        });
        let status = running.wait(PATIENCE);
        let output = output.recv_timeout(PATIENCE).expect("an end");
        assert_eq!(status, Status::Exited(0), "{output}");
        assert!(output.contains("written"), "{output}");
        // EIO.
        assert!(output.contains("@used Err(Some(5)) true true"), "{output}");
        assert_nothing_left(&running);
    }
}

// ---- what C has buffered ----

unsafe extern "C" {
    static stdout: *mut libc::FILE;
    fn flockfile(stream: *mut libc::FILE);
}

async fn print_by_c(text: String) {
    let text = std::ffi::CString::new(text).expect("a text");
    // SAFETY: both are NUL-terminated, and the first takes one text.
    unsafe { libc::printf(c"%s".as_ptr(), text.as_ptr()) };
}

/// Holds the lock of the stream, and never gives it back.
async fn lock_stream() {
    let (sender, locked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: the C library's own stream.
        unsafe { flockfile(stdout) };
        let _ = sender.send(());
        loop {
            std::thread::park();
        }
    });
    let _ = locked.recv();
}

pub(crate) async fn c_output() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let one = nursery.spawn(Isolate::named("one").process()).await?;
        one.call(print_by_c, "@c from one\n".to_owned()).await?;
        let two = nursery.spawn(Isolate::named("two").process()).await?;
        two.call(print_by_c, "@c from two\n".to_owned()).await?;
        two.call(lock_stream, ()).await?;
        Ok(())
    })
    .await
}

/// At an orderly end, what C's streams hold is written; a stream that is locked for ever holds nobody up.
pub(crate) fn what_c_has_buffered_is_written() {
    let running = Running::start("c-output", &[]);
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
    let log = running.all_output(PATIENCE);
    assert!(log.contains("@c from one"), "{log}");
    assert_nothing_left(&running);
}

// ---- what a spawned isolate has of its spawner ----

/// The rows of the guide's table, and what an isolate has of each.
type Here = Vec<(String, String)>;

async fn here() -> Here {
    let read = |path: &str| std::fs::read_to_string(path).expect("/proc");
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a line").trim().to_owned()
    };
    let (process, thread) = (read("/proc/self/status"), read("/proc/thread-self/status"));
    let limits = read("/proc/self/limits");
    let limits = limits
        .lines()
        .filter(|line| !line.starts_with("Max core file size"));
    let variables: std::collections::BTreeMap<_, _> = std::env::vars_os()
        .filter(|(name, _)| name != "OFFSHOOT_TREE")
        .collect();
    let streams = (0..3).map(|number| std::fs::read_link(format!("/proc/self/fd/{number}")));
    let streams: Vec<_> = streams.map(|link| link.expect("open")).collect();
    let ignored = u64::from_str_radix(&field(&process, "SigIgn:"), 16).expect("a number");
    let kept = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGTSTP,
    ];
    let kept: u64 = kept.iter().map(|signal| 1 << (signal - 1)).sum();
    // SAFETY: take no pointers.
    let (nice, policy, slack) = unsafe {
        (
            libc::getpriority(libc::PRIO_PROCESS, 0),
            libc::sched_getscheduler(0),
            libc::prctl(libc::PR_GET_TIMERSLACK),
        )
    };
    [
        (
            "working directory",
            format!("{:?}", std::env::current_dir()),
        ),
        ("umask", field(&process, "Umask:")),
        ("environment", format!("{variables:?}")),
        ("resource limits", limits.collect::<Vec<_>>().join("\n")),
        ("standard streams", format!("{streams:?}")),
        ("ignored signals", format!("{:x}", ignored & kept)),
        ("signal mask", field(&thread, "SigBlk:")),
        ("core affinity", field(&thread, "Cpus_allowed_list:")),
        ("nice value", nice.to_string()),
        ("scheduling class", policy.to_string()),
        ("timer slack", slack.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Changes each row, for this process and the calling thread. `n` makes it another value each time.
fn change_all(n: u64) {
    use std::os::unix::ffi::OsStrExt;
    let directory = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").expect("it is set"));
    let directory = directory.join(format!("directory-{n}-{}", oracle::own_pid()));
    std::fs::create_dir(&directory).expect("a directory");
    std::env::set_current_dir(&directory).expect("it is there");
    let log = std::fs::File::create(directory.join("log")).expect("a file");
    let odd = std::ffi::OsStr::from_bytes(b"OFFSHOOT_TEST_\xff");
    // SAFETY: nobody else reads the environment meanwhile; the pointers are to live values of the right types.
    unsafe {
        libc::umask(0o070 + n as libc::mode_t);
        std::env::set_var("OFFSHOOT_TEST_LEVEL", format!("level {n}"));
        std::env::set_var(odd, odd);
        std::env::remove_var(format!("OFFSHOOT_TEST_GONE_{n}"));
        for (resource, value) in [
            (libc::RLIMIT_NOFILE, 512),
            (libc::RLIMIT_FSIZE, 1 << 40),
            (libc::RLIMIT_STACK, 7 << 20),
        ] {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(resource, &mut limit);
            limit.rlim_cur = limit.rlim_max.min(value + n);
            assert_eq!(libc::setrlimit(resource, &limit), 0);
        }
        libc::dup2(log.as_raw_fd(), 2);
        libc::signal(
            libc::SIGHUP,
            if n % 2 == 1 {
                libc::SIG_IGN
            } else {
                libc::SIG_DFL
            },
        );
        libc::prctl(libc::PR_SET_TIMERSLACK, 70_000 + n);
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut blocked);
        libc::sigaddset(
            &mut blocked,
            if n % 2 == 1 {
                libc::SIGUSR2
            } else {
                libc::SIGURG
            },
        );
        libc::pthread_sigmask(libc::SIG_SETMASK, &blocked, std::ptr::null_mut());
        pin_and_be_nice(n);
        let parameters: libc::sched_param = std::mem::zeroed();
        assert_eq!(
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters),
            0
        );
    }
}

fn pin_and_be_nice(n: u64) {
    // SAFETY: the pointers are to live values of the right types.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        assert_eq!(libc::sched_getaffinity(0, size, &mut all), 0);
        let first = (0..1024).find(|core| libc::CPU_ISSET(*core, &all));
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(first.expect("a core"), &mut one);
        assert_eq!(libc::sched_setaffinity(0, size, &one), 0);
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0) + 1 + n as i32;
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
    }
}

fn of(kind: &str, name: &str) -> Isolate {
    match kind {
        "thread" => Isolate::named(name).thread(),
        _ => Isolate::named(name).process(),
    }
}

/// What a spawned isolate has is what its spawner has.
async fn spawns_equals(kind: String, again: bool) -> Result<()> {
    offshoot::nursery(async |nursery| {
        // More than wait in reserve.
        for n in 0..4 {
            let later = nursery.spawn(of(&kind, &format!("later-{n}"))).await?;
            let (has, own) = (later.call(here, ()).await?, here().await);
            for (has, own) in has.iter().zip(&own) {
                assert_eq!(
                    has,
                    own,
                    "{kind}, a spawn of {}",
                    offshoot::current().name()
                );
            }
            if again && n == 3 {
                later.call(change_and_spawn, (kind.clone(), 2)).await??;
            }
        }
        Ok(())
    })
    .await
}

async fn change_and_spawn(kind: String, n: u64) -> Result<()> {
    change_all(n);
    spawns_equals(kind, false).await
}

/// A careful isolate that spawns the first process of all.
async fn pins_itself_and_spawns(kind: String) -> Result<()> {
    pin_and_be_nice(3);
    spawns_equals(kind, false).await
}

/// How the threads of the runtime and the forkserver are scheduled.
fn helpers() -> Vec<String> {
    let own = format!("/proc/{}/task", oracle::own_pid());
    let mut tasks = vec![own];
    if let Some(server) = oracle::forkserver_of(oracle::own_pid()) {
        tasks.push(format!("/proc/{}/task", server.pid));
    }
    let tasks = tasks
        .iter()
        .filter_map(|tasks| std::fs::read_dir(tasks).ok());
    let of = |task: std::fs::DirEntry| {
        let status = std::fs::read(task.path().join("status")).ok()?;
        let status = String::from_utf8_lossy(&status).into_owned();
        let stat = std::fs::read(task.path().join("stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat).into_owned();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Some(line?.trim().to_owned())
        };
        let nice = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(16)?
            .to_owned();
        let name = field("Name:")?;
        let is_helper = name.starts_with("offshoot-");
        is_helper.then(|| Some(format!("{name}: {} {nice}", field("Cpus_allowed_list:")?)))?
    };
    tasks.flatten().flatten().filter_map(of).collect()
}

pub(crate) async fn changes() -> Result<()> {
    let kind = std::env::var("OFFSHOOT_TEST_KIND").expect("the case sets it");
    let before = here().await;
    offshoot::nursery(async |nursery| {
        let pinned = nursery.spawn(Isolate::named("pinned").thread()).await?;
        pinned.call(pins_itself_and_spawns, kind.clone()).await??;
        offshoot::unblock(|| ()).await?;
        spawns_equals(kind.clone(), false).await?;
        assert_eq!(before, here().await);
        let value = |name: &str| {
            let found = before.iter().find(|(row, _)| row == name);
            found.expect("a row").1.clone()
        };
        let wanted = format!(": {} {}", value("core affinity"), value("nice value"));
        for helper in helpers() {
            assert!(helper.ends_with(&wanted), "{helper}, not {wanted}");
        }
        change_all(1);
        let changed = here().await;
        for (before, now) in before.iter().zip(&changed) {
            // With one core, the affinity cannot be another one.
            assert!(before != now || before.0 == "core affinity", "{now:?}");
        }
        spawns_equals(kind, true).await?;
        say("@right");
        Ok(())
    })
    .await
}

/// Each row of the guide's table, for both kinds: what is spawned has what its spawner has then, whoever has spawned before; and the helpers have what
/// the caller of `run` has.
pub(crate) fn what_is_spawned_has_what_its_spawner_has() {
    let guide = include_str!("../../docs/guide.md");
    for kind in ["thread", "process"] {
        let environment = [
            ("OFFSHOOT_TEST_KIND", kind),
            ("OFFSHOOT_TEST_GONE_1", "x"),
            ("OFFSHOOT_TEST_GONE_2", "x"),
            ("OFFSHOOT_RESERVE_PROCESSES", "2"),
        ];
        let running = start("changes", &environment, |_| {});
        let status = running.wait(PATIENCE);
        let log = running.all_output(PATIENCE);
        assert_eq!(status, Status::Exited(0), "{kind}: {log}");
        assert!(log.contains("@right"), "{log}");
        assert_nothing_left(&running);
    }
    let run = offshoot::run(async || Ok(here().await)).expect("a tree");
    for (row, _) in run {
        assert!(
            guide.contains(&format!("| {row} |")),
            "the guide has no row `{row}`"
        );
    }
}

// ---- limits that would kill ----

/// What has no room or is too long is an error.
async fn too_long(name: String) -> Result<Vec<(String, String)>> {
    let directory = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").expect("it is set"));
    let text = |result: Result<String>| result.unwrap_or_else(|error| error.report());
    let bind = offshoot::net::UnixListener::bind(directory.join(&name)).await;
    let file = offshoot::fs::write(directory.join("file"), vec![1; 8192]).await;
    let name = format!("offshoot-{}-{name}", oracle::own_pid());
    let memory = offshoot::create_shared_memory(&name, 8192).await;
    Ok(vec![
        (
            "bind".into(),
            text(bind.map(|_| "bound".into()).map_err(Error::from)),
        ),
        ("file".into(), text(file.map(|()| "written".into()))),
        ("memory".into(), text(memory.map(|_| "made".into()))),
    ])
}

/// More than any machine has.
async fn too_much_memory(name: String) -> String {
    let name = format!("offshoot-{}-{name}", oracle::own_pid());
    match offshoot::create_shared_memory(&name, 1 << 52).await {
        Ok(_) => "made".to_owned(),
        Err(error) => error.report(),
    }
}

pub(crate) async fn limited() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let kinds = ["thread", "process"];
        for kind in kinds {
            let one = nursery.spawn(of(kind, &format!("memory-{kind}"))).await?;
            let told = one.call(too_much_memory, kind.to_owned()).await?;
            assert!(
                told.contains("os error 28") || told.contains("os error 27"),
                "{told}"
            );
        }
        let few = libc::rlimit {
            rlim_cur: 4096,
            rlim_max: 4096,
        };
        // SAFETY: the pointer is to a live value.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &few) }, 0);
        for kind in kinds {
            let isolate = of(kind, &format!("limited-{kind}"));
            let isolate = match kind {
                "process" => isolate.ring(1 << 20),
                _ => isolate,
            };
            let one = nursery.spawn(isolate).await?;
            for (what, told) in one.call(too_long, kind.to_owned()).await?? {
                // Tables are made by the root, whose is there already, and by the forkserver, which is of before the limit.
                let before = std::env::var_os("OFFSHOOT_TEST_LIMITED").is_some();
                if what == "bind" && !before && told == "bound" {
                    continue;
                }
                assert!(told.contains("os error 27"), "{kind}, {what}: {told}");
            }
            assert_eq!(one.call(double, 1).await?, 2);
        }
        say("@right");
        Ok(())
    })
    .await
}

/// Over a limit of files, and beyond what there is, is an error: no signal ends the root, the forkserver or an isolate.
pub(crate) fn limits_are_errors() {
    // What is limited before the tree is, too: the forkserver has it, then.
    for limited_before in [false, true] {
        let environment = [("OFFSHOOT_TEST_LIMITED", "1")];
        let environment = &environment[usize::from(!limited_before)..];
        let running = start("limited", environment, |command| {
            // SAFETY: one system call between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    let few = libc::rlimit {
                        rlim_cur: 4096,
                        rlim_max: 4096,
                    };
                    if limited_before {
                        libc::setrlimit(libc::RLIMIT_FSIZE, &few);
                    }
                    Ok(())
                })
            };
        });
        let status = running.wait(PATIENCE);
        assert_eq!(status, Status::Exited(0), "{}", running.log());
        let log = running.all_output(PATIENCE);
        assert!(log.contains("@right"), "{log}");
        assert_nothing_left(&running);
    }
}

// ---- descriptors 0 to 2 ----

/// What the standard descriptors of a process are, by number, as far as they are open and anything of a runtime: a socket, a poll, a process.
fn taken(pid: i32) -> Vec<String> {
    let links = (0..3).filter_map(|number| {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?;
        let link = link.display().to_string();
        let plain = link == "/dev/null" || link.starts_with("pipe:");
        // The C library counts the processors with a number that it gives back at once.
        let plain = plain || link.starts_with("/sys/devices/system/cpu");
        (!plain).then(|| format!("{pid}, {number}: {link}"))
    });
    links.collect()
}

async fn io_of_an_isolate() -> Result<Vec<String>> {
    let (mut one, mut other) = offshoot::net::UnixStream::pair()?;
    futures_util::AsyncWriteExt::write_all(&mut one, b"x").await?;
    futures_util::AsyncReadExt::read_exact(&mut other, &mut [0]).await?;
    Ok(taken(oracle::own_pid()))
}

fn close_standard() {
    for number in 0..3 {
        // SAFETY: takes no pointer; std does not mind that they are closed.
        unsafe { libc::close(number) };
    }
}

async fn closed_tree(later: bool) -> Result<()> {
    if later {
        close_standard();
    }
    offshoot::nursery(async |nursery| {
        let mut all = Vec::new();
        for kind in ["thread", "process"] {
            let one = nursery.spawn(of(kind, kind)).await?;
            let two = nursery.spawn(of(kind, &format!("{kind}-2"))).await?;
            all.extend(one.call(io_of_an_isolate, ()).await??);
            all.extend(two.call(io_of_an_isolate, ()).await??);
        }
        let own = oracle::own_pid();
        all.extend(taken(own));
        for process in oracle::below(own) {
            all.extend(taken(process.pid));
        }
        match all.is_empty() {
            true => Ok(()),
            false => Err(Error::other(std::io::Error::other(all.join("; ")))),
        }
    })
    .await
}

/// The program, whose output has nowhere to go: its exit code tells.
pub(crate) fn closed() -> ExitCode {
    let when = std::env::var("OFFSHOOT_TEST_CLOSED").expect("the case sets it");
    if when == "before" {
        close_standard();
    }
    let later = when == "later";
    match offshoot::run(async move || closed_tree(later).await) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let place = std::env::var_os("XDG_RUNTIME_DIR").expect("it is set");
            let _ = std::fs::write(Path::new(&place).join("told"), error.report());
            ExitCode::FAILURE
        }
    }
}

/// Whenever they are closed, nothing of the runtime's takes their numbers, in any of its processes.
pub(crate) fn standard_numbers_are_not_taken() {
    for when in ["at the start", "before", "later"] {
        let environment = [("OFFSHOOT_TEST_CLOSED", when)];
        let running = start("closed", &environment, |command| {
            if when == "at the start" {
                // SAFETY: system calls between fork and exec.
                unsafe {
                    command.pre_exec(|| {
                        close_standard();
                        Ok(())
                    })
                };
            }
        });
        let status = running.wait(PATIENCE);
        let place = std::env::var_os("XDG_RUNTIME_DIR").expect("the runner sets it");
        let told = std::fs::read_to_string(Path::new(&place).join("told"));
        assert_eq!(status, Status::Exited(0), "{when}: {told:?}");
        assert_nothing_left(&running);
    }
}
