//! SIGINT and SIGTERM, as a terminal or a service manager sends them: F33.

use crate::oracle;
use crate::program::{PATIENCE, Running};
use offshoot_sys::clock;
use offshoot_sys::pidfd::Status;
use std::time::Duration;

fn ended_by(signal: i32, code: i32) {
    let running = Running::start("busy", &[]);
    running.line("@grown", PATIENCE);
    running.line("@ready", PATIENCE);
    assert!(running.signal(signal));
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(code),
        "{}",
        running.log()
    );
    assert_orderly(&running);
}

/// What a tree looks like that was cancelled and came down by itself: nobody was killed, nothing is left.
fn assert_orderly(running: &Running) {
    let log = running.all_output(PATIENCE);
    let lost: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("@lost "))
        .collect();
    assert!(
        !lost.iter().any(|line| line.contains("killed by")),
        "{lost:?}"
    );
    assert!(
        oracle::below(oracle::own_pid()).is_empty(),
        "{}",
        oracle::table()
    );
    assert_eq!(oracle::own_tree_files(), Vec::<std::path::PathBuf>::new());
}

pub(crate) fn interrupt_cancels() {
    ended_by(libc::SIGINT, 130);
}

pub(crate) fn terminate_cancels() {
    ended_by(libc::SIGTERM, 143);
}

/// As by Ctrl-C: the processes of the tree do not get it, so that they are cancelled and not killed. (F33)
pub(crate) fn interrupt_of_the_group() {
    let running = Running::start("busy", &[]);
    running.line("@grown", PATIENCE);
    running.line("@ready", PATIENCE);
    // SAFETY: takes no pointer. The group was made for this program, which has not been reaped.
    let result = unsafe { libc::kill(-running.process.pid, libc::SIGINT) };
    assert_eq!(result, 0);
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(130),
        "{}",
        running.log()
    );
    assert_orderly(&running);
}

/// What does not come down by itself is ended by the second one, long before its bound of 3 s. (F28)
pub(crate) fn second_interrupt() {
    let running = Running::start("stubborn", &[]);
    running.line("@ready", PATIENCE);
    let began = clock::now();
    assert!(running.signal(libc::SIGINT));
    // Not yet: it has its grace.
    assert!(!oracle::within(Duration::from_millis(300), || !running
        .process
        .is_there()
        || oracle::below(running.process.pid).is_empty()));
    assert!(running.signal(libc::SIGINT));
    assert_eq!(
        running.wait(Duration::from_millis(1500)),
        Status::Exited(130),
        "{}",
        running.log()
    );
    println!("ended after {} ms", (clock::now() - began) / 1_000_000);
    let log = running.all_output(PATIENCE);
    assert!(
        log.contains("root/deaf") && log.contains("SIGKILL"),
        "who had to be killed is not named:\n{log}"
    );
}

/// A program that only calls `run` keeps its signals to itself.
pub(crate) fn run_installs_no_handler() {
    let running = Running::start("handlers", &[]);
    let masks = running.line("@handlers ", PATIENCE);
    assert_eq!(masks, "(false, false) (false, false) (false, false)");
    assert_eq!(
        running.wait(PATIENCE),
        Status::Exited(0),
        "{}",
        running.log()
    );
}
