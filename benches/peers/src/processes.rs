//! Other ways to have a process do something: `procspawn`, and Python's forkserver.

use offshoot_benches::engine::{Failure, Subject};
use offshoot_benches::record::{Kind, Row, Side};
use std::process::Command;
use std::time::{Duration, Instant};

/// All that can be asked a question.
pub(crate) fn subjects(question: &str) -> Vec<Subject> {
    match question {
        "spawn" => vec![procspawn(), forkserver()],
        _ => Vec::new(),
    }
}

fn procspawn() -> Subject {
    let row = Row::new(Kind::Peer, Side::Process, "procspawn").note("exec, and a value back");
    Subject::new("procspawn", [row], |into| {
        for _ in 0..5 {
            let start = Instant::now();
            let process = procspawn::spawn(1_u64, |n| n);
            let answer = process.join()?;
            into.time(0, start.elapsed());
            if answer != 1 {
                return Err(Failure::from("a wrong answer"));
            }
        }
        Ok(())
    })
}

/// Starts processes of Python's forkserver, which runs already, and prints the nanoseconds until the first
/// byte of each.
const SCRIPT: &str = "
import multiprocessing, time
def child(pipe): pipe.send_bytes(b'1')
if __name__ == '__main__':
    context = multiprocessing.get_context('forkserver')
    for n in range(6):
        here, there = context.Pipe()
        start = time.perf_counter_ns()
        process = context.Process(target=child, args=(there,))
        process.start()
        here.recv_bytes()
        took = time.perf_counter_ns() - start
        process.join()
        if n: print(took, flush=True)
";

fn forkserver() -> Subject {
    let row = Row::new(Kind::Peer, Side::Process, "Python's forkserver")
        .note("multiprocessing.Process, a module is imported");
    Subject::new("python", [row], |into| {
        // A file, because its children import it.
        let path = std::env::temp_dir().join(format!("offshoot-peers-{}.py", std::process::id()));
        std::fs::write(&path, SCRIPT)?;
        let output = Command::new("python3").arg(&path).output();
        std::fs::remove_file(&path)?;
        let output = output.map_err(|error| format!("python3: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let times: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if times.len() != 5 {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("python3 gave {} times: {why}", times.len()).into());
        }
        into.times(0, times.into_iter().map(Duration::from_nanos));
        Ok(())
    })
}

/// The version of Python, where there is one.
pub(crate) fn python() -> Option<String> {
    let output = Command::new("python3").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
