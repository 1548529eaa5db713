//! What Offshoot costs, measured beside its floors in the same run.
//!
//! The speed of a shared machine drifts, and a wake-up costs ten times more on one than on another.
//! So nothing here is measured alone: each [`Question`] has Offshoot's [`Subject`]s and their floors,
//! which take turns, round after round ([`ask`]); what counts is the ratio, taken round by round.
//!
//! `cargo bench -p offshoot-benches --bench spawn` and `offshoot bench spawn` are the same
//! measurements: both are this library. Where to start reading: [`question::spawn`].

#[cfg(not(target_os = "linux"))]
compile_error!("the floors are Linux's");

pub mod chart;
pub mod engine;
pub mod floor;
pub mod goals;
pub mod machine;
pub mod question;
pub mod record;
pub mod report;
pub mod setting;

pub use engine::{Answer, Failure, Limits, Question, Subject, ask};
pub use report::Report;

use machine::{Machine, Others};
use std::process::ExitCode;
use std::time::Duration;

/// Asks all questions, one after another. `progress` is told which is asked, and how much of all is
/// done, from 0 to 1.
#[allow(clippy::cast_precision_loss)] // A progress bar has a hundred steps.
pub fn ask_all(
    questions: Vec<Question>,
    limits: Limits,
    command: String,
    mut progress: impl FnMut(&'static str, f64),
) -> Report {
    let others = Others::watch();
    let count = questions.len() as f64;
    let mut answers = Vec::new();
    for question in questions {
        let (name, before) = (question.name, answers.len() as f64);
        answers.push(ask(question, limits, |done| {
            progress(name, (before + done) / count);
        }));
    }
    let mut machine = Machine::here();
    machine.busy = others.part();
    Report {
        machine,
        command,
        answers,
    }
}

/// The `main` of the bench of the goals, each question for as many seconds as the first argument that
/// is a number says.
pub fn bench_goals() -> ExitCode {
    floor::enter();
    match goals::run(seconds(8.0), |_, _| {}) {
        Ok(goals) => {
            print!("{}", goals.text());
            ExitCode::from(u8::from(!goals.are_met()))
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The first argument that is a number. Cargo's own arguments (`--bench`) are passed over.
fn seconds(default: f64) -> Duration {
    let seconds = std::env::args().skip(1).find_map(|text| text.parse().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(default)).unwrap_or(Duration::from_secs(10))
}

/// The `main` of a bench: asks one question, for as many seconds as the first argument that is a
/// number says, and prints the table.
pub fn bench(name: &str) -> ExitCode {
    floor::enter();
    let Some(question) = question::named(name) else {
        eprintln!("there is no question `{name}`");
        return ExitCode::from(2);
    };
    let limits = Limits {
        time: seconds(10.0),
        ..Limits::default()
    };
    let command = format!("cargo bench -p offshoot-benches --bench {name}");
    let report = ask_all(vec![question], limits, command, |_, _| {});
    print!("{}", report.text());
    match report.answers.iter().all(|answer| answer.failed.is_empty()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
