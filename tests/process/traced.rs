//! A process that a debugger or `strace` has attached to, and whose end that does not wait for.

use crate::oracle;
use crate::program::{PATIENCE, Running, STOP, say};
use offshoot::Builder;
use offshoot::prelude::*;
use offshoot_sys::pidfd::Status;
use offshoot_tests::Stopwatch;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

const HARD: Duration = Duration::from_secs(3);
/// What the tracer may take, and what a busy machine adds.
const LATE: Duration = Duration::from_millis(500);

/// Names the process that is traced.
const TRACED: &str = "OFFSHOOT_TEST_TRACED";

/// Traces every thread of a process, waits for none, and ends when its standard input does.
pub(crate) fn tracer() -> ExitCode {
    let pid = std::env::var(TRACED).expect("the case says it");
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    for task in tasks {
        let tid = task.expect("a thread").file_name();
        let tid: i32 = tid.to_string_lossy().parse().expect("a number");
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: takes no memory.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, none, none) } != 0 {
            say(&format!("@refused {}", std::io::Error::last_os_error()));
            return ExitCode::FAILURE;
        }
    }
    say("@traces");
    while !STOP.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(1));
    }
    ExitCode::SUCCESS
}

/// Says who it is, and blocks.
fn blocks(threads: u32, said: PathBuf) {
    // Where only ancestors may trace, anyone may. (It fails where there is no such rule.)
    // SAFETY: takes no memory.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    for _ in 0..threads {
        std::thread::spawn(|| std::thread::sleep(HARD * 10));
    }
    let partly = said.with_extension("partly");
    std::fs::write(&partly, std::process::id().to_string()).expect("a file");
    std::fs::rename(partly, said).expect("its name");
    std::thread::sleep(HARD * 10);
}

async fn has_a_leaf(threads: u32, said: PathBuf) -> Result<()> {
    offshoot::nursery(async |nursery| {
        let leaf = nursery.spawn(Isolate::named("leaf").process()).await?;
        leaf.call(blocks, (threads, said)).await
    })
    .await
}

/// True if tracing is allowed here.
fn one(threads: u32) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let said = dir.path().join("leaf");
    let (took, top, error, tracing) = Builder::new()
        .hard_kill(HARD)
        .run(async move || {
            let mut began = Stopwatch::start();
            let (mut top, mut tracing) = (None, None);
            let result = offshoot::nursery(async |nursery| {
                let p = nursery.spawn(Isolate::named("top").process()).await?;
                nursery
                    .task(p.call(has_a_leaf, (threads, said.clone())))
                    .detach();
                let pid = loop {
                    match std::fs::read_to_string(&said) {
                        Ok(pid) => break pid,
                        Err(_) => offshoot::sleep(Duration::from_millis(1)).await?,
                    }
                };
                let tracer = Running::start("tracer", &[(TRACED, &pid)]);
                let said = tracer.line("@", PATIENCE);
                tracing = (said == "traces").then_some(tracer);
                began = Stopwatch::start();
                p.cancel().await;
                top = Some(p.ended().await);
                Ok(())
            })
            .await;
            let error = result.expect_err("a leaf is killed");
            Ok((began.elapsed(), top, error, tracing))
        })
        .expect("only a leaf is killed");
    let Some(mut tracer) = tracing else {
        return false;
    };
    assert!(took < HARD + LATE, "{took:?}");
    assert!(matches!(top, Some(Exit::Cancelled(_))), "{top:?}");
    let report = error.report();
    assert_eq!(error.failures().len(), 1, "{report}");
    assert!(report.contains("root/top/leaf"), "{report}");
    let tracer_pid = tracer.process.pid;
    assert!(
        report.contains(&format!("traced by {tracer_pid}")),
        "{report}"
    );
    tracer.stop();
    assert_eq!(tracer.wait(PATIENCE), Status::Exited(0), "{}", tracer.log());
    println!("{threads} more threads: down after {took:?}");
    true
}

/// The end of the leaf is told within the ladder, and it is the leaf that is named, with who traces it.
pub(crate) fn by_one_that_does_not_wait() {
    for threads in [0, 2] {
        if !one(threads) {
            println!("not tried: a process may not be traced here");
            return;
        }
        // The tracer has let it go; its parent is no more.
        let left = oracle::wait_childless(PATIENCE);
        assert!(matches!(left, oracle::Left::Nothing), "{}", oracle::table());
    }
}
