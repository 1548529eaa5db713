//! What isolates start that is none: programs, and daemons that have left parent, group and session. F29.

use crate::oracle;
use crate::program::{PATIENCE, Running, double, say, stopped};
use offshoot::prelude::*;
use offshoot_sys::pidfd::Status;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Starts a child in a group of its own and a daemon that has forked twice and left the session. Their ids.
async fn start() -> Result<Vec<i32>> {
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "setsid sh -c 'sleep 1000 >/dev/null 2>&1 & echo $!'; setsid sleep 1000 >/dev/null 2>&1 & echo $!",
        ])
        .stdin(Stdio::null());
    let output = shell.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn alive(pids: &[i32]) -> usize {
    let runs = |pid: &&i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    pids.iter().filter(runs).count()
}

/// Two isolates with strangers; one ends, then the other's are looked at.
pub(crate) async fn by_isolate() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let right = nursery.spawn(Isolate::named("right").process()).await?;
        let right_has = right.call(start, ()).await??;
        let left_has = offshoot::nursery(async |inner| {
            let left = inner.spawn(Isolate::named("left").process()).await?;
            let has = left.call(start, ()).await??;
            say(&format!("@before {} {}", alive(&has), alive(&right_has)));
            Ok(has)
        })
        .await?;
        // Without a wait: the nursery has returned, and so they are gone.
        say(&format!(
            "@after {} {}",
            alive(&left_has),
            alive(&right_has)
        ));
        assert_eq!(right.call(double, 2).await?, 4);
        stopped().await
    })
    .await
}

pub(crate) fn end_with_their_isolate() {
    let mut running = Running::start("strangers", &[]);
    assert_eq!(
        running.line("@before", PATIENCE),
        "2 2",
        "{}",
        running.log()
    );
    assert_eq!(running.line("@after", PATIENCE), "0 2", "{}", running.log());
    running.stop();
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
    assert!(matches!(
        oracle::wait_childless(PATIENCE),
        oracle::Left::Nothing
    ));
}

/// Starts daemons that end at once.
async fn start_brief() -> Result<()> {
    for _ in 0..20 {
        let mut shell = Command::new("sh");
        shell.args(["-c", "setsid sh -c 'true & true &'"]);
        shell.stdin(Stdio::null()).status()?;
    }
    Ok(())
}

pub(crate) async fn brief() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let left = nursery.spawn(Isolate::named("left").process()).await?;
        left.call(start_brief, ()).await??;
        say("@ready");
        stopped().await
    })
    .await
}

/// While their isolate lives on, and nothing else happens.
pub(crate) fn are_reaped_when_they_end() {
    let mut running = Running::start("brief", &[]);
    running.line("@ready", PATIENCE);
    let zombies = || {
        let tree = oracle::below(running.process.pid);
        tree.into_iter()
            .filter(|process| process.state == 'Z')
            .count()
    };
    assert!(
        oracle::within(PATIENCE, || zombies() == 0),
        "{}",
        oracle::table()
    );
    running.stop();
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
}

/// A program whose first thread has ended, and that has a child. The kernel shows neither memory nor environment of such a process by its id.
pub(crate) fn lose_head() -> ! {
    std::thread::spawn(|| {
        #[expect(clippy::zombie_processes)] // Killed with all of it.
        let child = Command::new("sleep").arg("1000").spawn().expect("a child");
        say(&format!("@has {} {}", std::process::id(), child.id()));
        loop {
            std::thread::park();
        }
    });
    // SAFETY: it ends this thread alone; nothing that it has is used by another one.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("it has ended")
}

/// Starts one as a daemon, in a session of its own.
async fn start_headless() -> Result<()> {
    let image = std::env::current_exe()?;
    let mut shell = Command::new("setsid");
    shell
        .arg("--fork")
        .arg(image)
        .env(crate::program::PROGRAM, "without-head")
        .stdin(Stdio::null());
    shell.status()?;
    Ok(())
}

pub(crate) async fn headless() -> Result<()> {
    offshoot::nursery(async |nursery| {
        // What has hidden could be this one's, too.
        let _right = nursery.spawn(Isolate::named("right").process()).await?;
        offshoot::nursery(async |inner| {
            let left = inner.spawn(Isolate::named("left").process()).await?;
            left.call(start_headless, ()).await??;
            stopped().await
        })
        .await?;
        say("@after");
        offshoot::sleep(Duration::from_millis(100)).await
    })
    .await
}

/// By the environment that its other threads have.
pub(crate) fn end_without_their_first_thread() {
    let mut running = Running::start("headless", &[]);
    let has = running.line("@has", PATIENCE);
    let has: Vec<i32> = has
        .split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect();
    let is_headless = || {
        std::fs::read_to_string(format!("/proc/{}/stat", has[0]))
            .is_ok_and(|stat| stat.contains(") Z "))
    };
    assert!(oracle::within(PATIENCE, is_headless), "{}", oracle::table());
    let tree = oracle::below(running.process.pid);
    running.stop();
    running.line("@after", PATIENCE);
    let left = tree.iter().filter(|process| has.contains(&process.pid));
    let left: Vec<String> = left
        .filter(|process| process.is_there())
        .map(|process| process.describe())
        .collect();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
}

/// The forkserver is killed, and the root starts another one; what the first one's isolates had started is gone by then.
pub(crate) async fn bereft() -> Result<()> {
    let mut had = Vec::new();
    let lost: Result<()> = offshoot::nursery(async |nursery| {
        let left = nursery.spawn(Isolate::named("left").process()).await?;
        had = left.call(start, ()).await??;
        say(&format!("@before {}", alive(&had)));
        let forkserver = oracle::forkserver_of(oracle::own_pid()).expect("a forkserver");
        forkserver.pidfd().expect("it lives").kill()?;
        left.call(crate::program::hang, ()).await?
    })
    .await;
    assert!(lost.is_err(), "the forkserver was killed");
    offshoot::nursery(async |nursery| {
        let next = nursery.spawn(Isolate::named("next").process()).await?;
        let has = next.call(start, ()).await??;
        // Those of the dead go, though not before it is told; those of the living stay.
        let gone = || alive(&had) == 0;
        let gone = offshoot::unblock({
            let had = had.clone();
            move || oracle::within(PATIENCE, || alive(&had) == 0)
        })
        .await?
            && gone();
        say(&format!("@after {gone} {}", alive(&has)));
        stopped().await
    })
    .await
}

pub(crate) fn end_with_their_forkserver() {
    let mut running = Running::start("bereft", &[]);
    assert_eq!(running.line("@before", PATIENCE), "2", "{}", running.log());
    assert_eq!(
        running.line("@after", PATIENCE),
        "true 2",
        "{}",
        running.log()
    );
    running.stop();
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
}

/// A process isolate that runs a tree of its own, with processes, until it is killed.
async fn run_inner() -> Result<()> {
    let path = PathBuf::from(std::env::var_os("OFFSHOOT_TEST_SOCKET").expect("a path"));
    offshoot::unblock(move || {
        offshoot::run(async move || {
            offshoot::nursery(async |nursery| {
                let deep = nursery.spawn(Isolate::named("deep").process()).await?;
                deep.call(start, ()).await??;
                deep.call(bind, path.clone()).await?
            })
            .await
        })
    })
    .await?
}

async fn bind(path: PathBuf) -> Result<()> {
    let _listener = offshoot::net::UnixListener::bind(path).await?;
    say("@bound");
    crate::program::hang().await
}

pub(crate) async fn inner() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let outer = nursery.spawn(Isolate::named("outer").process()).await?;
        let result = outer.call(run_inner, ()).await;
        result?
    })
    .await
}

/// Also when the isolate that is its root is killed, and with it the only owner: its forkserver ends and sweeps before ours gives up on it.
pub(crate) fn a_tree_in_a_tree_cleans_up() {
    let socket = std::env::temp_dir().join(format!("ot-inner-{}", oracle::own_pid()));
    let value = socket.to_str().expect("a plain path").to_owned();
    let running = Running::start("inner", &[("OFFSHOOT_TEST_SOCKET", &value)]);
    running.line("@bound", PATIENCE);
    assert!(socket.exists());
    let outer = oracle::below(running.process.pid)
        .into_iter()
        .find(|process| process.name == "outer")
        .expect("the isolate");
    assert!(outer.pidfd().expect("it lives").kill().expect("our own"));
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(1),
        "{}",
        running.log()
    );
    assert!(matches!(
        oracle::wait_childless(PATIENCE),
        oracle::Left::Nothing
    ));
    let left = socket.exists();
    let _ = std::fs::remove_file(&socket);
    assert!(!left, "the socket is left");
    assert_eq!(oracle::own_tree_files(), Vec::<PathBuf>::new());
}
