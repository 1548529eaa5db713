//! `offshoot bench`: asks the questions of `benches/`, and shows what was found.

use crate::print;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use offshoot_benches::record::Kind;
pub(crate) use offshoot_benches::record::Side;
use offshoot_benches::setting::{Ballast, Load};
use offshoot_benches::{Limits, Question, Report, ask_all, chart, goals, question};
use std::fs::File;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What is asked without being told: `memory` fills the machine.
const DEFAULT: [&str; 7] = [
    "spawn", "burst", "call", "tell", "stream", "tree", "teardown",
];
/// What `--large` adds to this process.
const BALLAST: (usize, usize) = (1 << 30, 100);

/// What is to be measured.
pub(crate) struct Options {
    pub(crate) questions: Vec<String>,
    pub(crate) side: Option<Side>,
    pub(crate) vs: Option<Vec<String>>,
    pub(crate) time: Duration,
    pub(crate) json: bool,
    pub(crate) svg: Option<PathBuf>,
    pub(crate) busy: bool,
    pub(crate) large: bool,
}

/// Instead of a question: whether each goal is met.
const GOALS: &str = "goals";
/// How many questions the goals ask, for their share of the time.
const GOALS_ASK: u32 = 8;

/// The names of all questions, for the arguments.
pub(crate) fn questions() -> Vec<&'static str> {
    question::NAMES.into_iter().chain([GOALS]).collect()
}

impl Options {
    /// What is wrong with them together.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.is_goals() && self.is_narrowed() {
            return Err(
                "`goals` is asked by itself: they are what they are under their own conditions"
                    .to_owned(),
            );
        }
        let Some(vs) = &self.vs else { return Ok(()) };
        let known = keys(&self.asked());
        let unknown = vs
            .iter()
            .find(|name| *name != "none" && !known.contains(&name.as_str()));
        match unknown {
            None => Ok(()),
            Some(name) => Err(format!(
                "`--vs {name}`: these questions compare with {}, or `none`",
                known.join(", ")
            )),
        }
    }

    fn is_goals(&self) -> bool {
        self.questions.iter().any(|name| name == GOALS)
    }

    /// Whether it is about less than all of the goals.
    fn is_narrowed(&self) -> bool {
        let else_asked = self.questions.len() > 1 || self.side.is_some() || self.vs.is_some();
        else_asked || self.busy || self.large
    }

    fn asked(&self) -> Vec<Question> {
        let given = self.questions.iter().map(String::as_str);
        let names: Vec<&str> = match self.questions.is_empty() {
            true => DEFAULT.to_vec(),
            false => given.collect(),
        };
        names.into_iter().filter_map(question::named).collect()
    }

    /// The command as one would type it, for who reads the figures later.
    fn command(&self) -> String {
        let mut command = String::from("offshoot bench");
        for question in &self.questions {
            command += &format!(" {question}");
        }
        if let Some(side) = self.side {
            command += match side {
                Side::Thread => " --isolation thread",
                Side::Process => " --isolation process",
            };
        }
        if let Some(vs) = &self.vs {
            command += &format!(" --vs {}", vs.join(","));
        }
        if self.busy {
            command += " --busy";
        }
        if self.large {
            command += " --large";
        }
        command
    }
}

/// By what names the others of some questions are picked.
fn keys(questions: &[Question]) -> Vec<&'static str> {
    let subjects = questions.iter().flat_map(|question| &question.subjects);
    let others = subjects.filter(|subject| {
        let ours = |row: &offshoot_benches::record::Row| row.kind == Kind::Offshoot;
        !subject.rows.iter().any(ours)
    });
    let mut keys: Vec<&str> = others.map(|subject| subject.key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Measures and shows.
pub(crate) fn run(options: Options) -> ExitCode {
    // Before the minute of measuring, so that a wrong path costs none of it.
    let mut chart = match options.svg.as_ref().map(File::create).transpose() {
        Ok(chart) => chart,
        Err(error) => return cannot_write(&options, &error.to_string()),
    };
    let bar = bar();
    let progress = |name, done| {
        bar.set_message(name);
        bar.set_position(per_mille(done));
    };
    let found = match options.is_goals() {
        true => goals::run(options.time / GOALS_ASK, progress).map(Found::Goals),
        false => Ok(Found::Report(ask(&options, progress))),
    };
    bar.finish_and_clear();
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            print::err(&format!("error: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let report = match &found {
        Found::Report(report) => report,
        Found::Goals(goals) => &goals.report,
    };
    if let Some(chart) = &mut chart {
        let drawn = chart::svg(report).and_then(|svg| Ok(chart.write_all(svg.as_bytes())?));
        if let Err(error) = drawn {
            return cannot_write(&options, &error.to_string());
        }
    }
    match &found {
        Found::Report(report) => show(report, options.json),
        Found::Goals(goals) => show_goals(goals, options.json),
    }
}

/// What a run comes to.
enum Found {
    Report(Report),
    Goals(goals::Goals),
}

/// Measures all that was asked for.
fn ask(options: &Options, progress: impl FnMut(&'static str, f64)) -> Report {
    let mut questions = options.asked();
    for question in &mut questions {
        question.keep(options.side, options.vs.as_deref());
    }
    questions.retain(|question| !question.subjects.is_empty());
    let limits = Limits {
        time: options.time / u32::try_from(questions.len()).unwrap_or(1).max(1),
        ..Limits::default()
    };
    let ballast = options.large.then(|| Ballast::new(BALLAST.0, BALLAST.1));
    let load = options.busy.then(Load::start);
    let report = ask_all(questions, limits, options.command(), progress);
    drop((load, ballast));
    report
}

fn show_goals(goals: &goals::Goals, json: bool) -> ExitCode {
    let code = match json {
        true => print::out(&format!("{:#}\n", goals.json())),
        false => print::out(&goals.text()),
    };
    match goals.are_met() || code != ExitCode::SUCCESS {
        true => code,
        false => ExitCode::FAILURE,
    }
}

fn show(report: &Report, json: bool) -> ExitCode {
    let code = match json {
        true => print::out(&format!("{:#}\n", report.json())),
        false => print::out(&report.text()),
    };
    let mut whole = true;
    for (who, why) in report.answers.iter().flat_map(|answer| &answer.failed) {
        print::err(&format!("error: {who} could not be measured: {why}\n"));
        whole = false;
    }
    match whole || code != ExitCode::SUCCESS {
        true => code,
        false => ExitCode::FAILURE,
    }
}

fn cannot_write(options: &Options, why: &str) -> ExitCode {
    let path = options.svg.as_deref().unwrap_or("the chart".as_ref());
    print::err(&format!("error: {}: {why}\n", path.display()));
    ExitCode::FAILURE
}

/// On the standard error, where somebody sees it. It is drawn when there is news and has no thread
/// of its own, which would be measured, too.
fn bar() -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr_with_hz(5),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{msg:10} {wide_bar} {percent:>3} % {eta:>4}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(1_000), target).with_style(style)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
fn per_mille(part: f64) -> u64 {
    (part * 1_000.0).clamp(0.0, 1_000.0) as u64
}
