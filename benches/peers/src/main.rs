//! The questions of `benches/`, asked of other ways to have actors as well, in the same run.
//!
//! Each peer does the same work with the same message, in its own idiom and with its default
//! features. A row says what its actor is: a task on a shared pool is not an isolate, however fast
//! it is, and is shown because people compare the two; a row that is marked "thread" has an event
//! loop and a thread of its own, and can be compared.

mod bulk;
mod frameworks;
mod peer;
mod processes;

use offshoot_benches::{Limits, Question, ask_all, floor, question};
use std::process::ExitCode;
use std::time::Duration;

/// What peers are asked.
const QUESTIONS: [&str; 5] = ["spawn", "call", "tell", "teardown", "bulk"];

const USAGE: &str = "\
usage: offshoot-peers [spawn|call|tell|teardown|bulk]... [--seconds N] [--json]
  without a question, all but bulk, which takes GiB and minutes; N seconds each [default: 10]";

fn main() -> ExitCode {
    // Processes of procspawn and the floors are this program again.
    floor::enter();
    bulk::enter();
    procspawn::init();
    let (mut names, mut seconds, mut json) = (Vec::new(), 10_u64, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--seconds" => match args.next().and_then(|text| text.parse().ok()) {
                Some(number) => seconds = number,
                None => return usage(),
            },
            name if QUESTIONS.contains(&name) => names.push(name.to_owned()),
            _ => return usage(),
        }
    }
    if names.is_empty() {
        names = QUESTIONS[..4].iter().map(|&name| name.to_owned()).collect();
    }
    let mut questions: Vec<Question> = Vec::new();
    for name in &names {
        if let Some(mut question) = question::named(name) {
            question.subjects.extend(frameworks::subjects(name));
            question.subjects.extend(processes::subjects(name));
            if name == "bulk" {
                question.subjects.extend(bulk::subjects());
            }
            questions.push(question);
        }
    }
    let limits = Limits {
        time: Duration::from_secs(seconds),
        ..Limits::default()
    };
    let command = format!("offshoot-peers {}", names.join(" "));
    let mut last = "";
    let report = ask_all(questions, limits, command, |name, _| {
        if name != last {
            eprintln!("{name} …");
            last = name;
        }
    });
    if json {
        let mut object = report.json();
        object["versions"] = versions().into();
        println!("{object:#}");
    } else {
        print!("{}", report.text());
        println!("{}", versions().join(", "));
    }
    match report.answers.iter().all(|answer| answer.failed.is_empty()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// The versions of all that was measured, as the lock file of this build says them.
fn versions() -> Vec<String> {
    let lock = include_str!("../Cargo.lock");
    let mut versions = Vec::new();
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        let name = line
            .strip_prefix("name = ")
            .map(|name| name.trim_matches('"'));
        if let Some(name) = name
            && [
                "actix",
                "actix-rt",
                "ipc-channel",
                "kameo",
                "procspawn",
                "ractor",
                "tokio",
            ]
            .contains(&name)
            && let Some(version) = lines
                .next()
                .and_then(|line| line.strip_prefix("version = "))
        {
            versions.push(format!("{name} {}", version.trim_matches('"')));
        }
    }
    versions.extend(processes::python());
    versions
}
