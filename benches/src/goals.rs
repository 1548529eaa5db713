//! The goals: what each operation may cost, as a ratio to its floor in the same run, and whether it
//! does.
//!
//! Those that are ratios to other frameworks are asked by `benches/peers`, which has them.

use crate::engine::{Answer, Failure, Limits, ask};
use crate::floor::command;
use crate::machine::{Machine, Others};
use crate::question::{self, memory};
use crate::record::{Kind, Measured, Ratio, Unit};
use crate::report::{Report, amount};
use crate::setting::Ballast;
use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Value, json};
use std::time::Duration;

/// What is wanted of a row.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// A median of at most this many times the floor's.
    AtMost(f64),
    /// A rate of at least this part of the floor's.
    Rate(f64),
    /// A 99th percentile of at most this many picoseconds.
    P99(f64),
    /// None at all.
    None,
}

/// A goal: a row of a question, and what it is measured against.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The question.
    pub question: &'static str,
    /// The row.
    pub row: String,
    /// The row that it is compared with, if it is.
    pub floor: String,
    /// What is wanted.
    pub wanted: Wanted,
}

fn goal(
    question: &'static str,
    row: impl Into<String>,
    wanted: Wanted,
    floor: impl Into<String>,
) -> Goal {
    Goal {
        question,
        row: row.into(),
        floor: floor.into(),
        wanted,
    }
}

/// All goals that have their floor in this package.
pub fn goals() -> Vec<Goal> {
    use Wanted::{AtMost, None, P99, Rate};
    let std = |what| memory::row_name(Kind::Floor, question::memory::THREADS, what);
    let ours = |what| memory::row_name(Kind::Offshoot, question::memory::THREADS, what);
    let mut all = vec![
        goal(
            "spawn",
            "thread isolate, cold",
            AtMost(1.15),
            "std thread + channel",
        ),
        goal(
            "spawn",
            "process isolate, cold",
            AtMost(1.5),
            "bare forkserver",
        ),
    ];
    for pace in ["every 200 µs", "every 5 ms"] {
        for (who, floor, most) in [
            ("thread isolate, reserve", "parked thread woken", 1.1),
            ("process isolate, reserve", "waiting process woken", 1.3),
        ] {
            let (row, floor) = (format!("{who}, {pace}"), format!("{floor}, {pace}"));
            all.push(goal("spawn", row, AtMost(most), floor));
        }
    }
    all.extend([
        goal(
            "teardown",
            "thread isolate, confirmed",
            AtMost(0.5),
            "std thread, exit + join",
        ),
        goal(
            "teardown",
            "64 wedged process isolates, all killed and swept",
            AtMost(1.5),
            "one ladder of 100 ms",
        ),
        goal(
            "call",
            "ask, thread isolate, one after another",
            AtMost(1.0),
            "crossbeam channels, one after another",
        ),
        goal(
            "call",
            "ask, thread isolate, one after another",
            P99(1e6),
            "",
        ),
        goal(
            "call",
            "ask, thread isolate, every 200 µs",
            AtMost(1.1),
            "eventfds, every 200 µs",
        ),
        goal(
            "call",
            "ask, process isolate, every 200 µs",
            AtMost(1.2),
            "socket pair, every 200 µs",
        ),
        goal(
            "call",
            "ask, process isolate with a ring, one after another",
            AtMost(1.5),
            "bare ring that spins 30 µs, one after another",
        ),
    ]);
    for from in ["from 1", "from 4"] {
        let row = format!("tell, thread isolate, {from}");
        let boxed = format!("crossbeam, boxed closures, {from}");
        let structs = format!("crossbeam, 64-byte structs, {from}");
        all.push(goal("tell", row.clone(), Rate(0.9), boxed));
        all.push(goal("tell", row, Rate(0.7), structs));
    }
    all.push(goal(
        "stream",
        "stream of bytes, process isolate with a ring",
        Rate(0.9),
        "bare ring",
    ));
    for (what, most) in [("build", 0.95), ("round", 0.95), ("down", 1.0)] {
        let (row, floor) = (
            format!("1111 thread isolates: {what}"),
            format!("1111 threads with mio: {what}"),
        );
        all.push(goal("tree", row, AtMost(most), floor));
    }
    for what in ["ready", "resident, private"] {
        all.push(goal("memory", ours(what), AtMost(1.1), std(what)));
    }
    all.push(goal("memory", ours("descriptors of the owner"), None, ""));
    all
}

/// How a goal stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What was measured.
    pub what: String,
    /// What is wanted.
    pub wanted: String,
    /// What was found.
    pub found: String,
    /// Whether that is it; `None` when it could not be measured.
    pub met: Option<bool>,
}

/// How a goal stands by the answer to its question.
pub fn judge(goal: &Goal, answer: &Answer) -> Standing {
    let (row, floor) = (answer.row(&goal.row), answer.row(&goal.floor));
    let against = row.and_then(|row| row.ratio(floor?));
    let range = |Ratio {
                     median,
                     least,
                     most,
                 }: Ratio,
                 turned: bool| match turned {
        false => format!("{median:.2} ({least:.2} to {most:.2})"),
        true => format!(
            "{:.2} ({:.2} to {:.2})",
            1.0 / median,
            1.0 / most,
            1.0 / least
        ),
    };
    let p99 = row.map(|row| row.quantile(0.99));
    let p50 = row.map(|row| row.quantile(0.5));
    let (wanted, found, met) = match goal.wanted {
        Wanted::AtMost(most) => (
            format!("≤ {most} × {}", goal.floor),
            against.map(|ratio| range(ratio, false)),
            against.map(|ratio| ratio.median <= most),
        ),
        Wanted::Rate(least) => (
            format!("≥ {least} × the rate of {}", goal.floor),
            against.map(|ratio| range(ratio, true)),
            against.map(|ratio| ratio.median * least <= 1.0),
        ),
        Wanted::P99(most) => (
            format!("p99 ≤ {}", amount(Unit::Time, most)),
            p99.map(|p99| amount(Unit::Time, p99)),
            p99.map(|p99| p99 <= most),
        ),
        Wanted::None => (
            "none".to_owned(),
            p50.map(|p50| amount(Unit::Count, p50)),
            // The least that a histogram holds is a thousandth.
            p50.map(|p50| p50 <= 1.0),
        ),
    };
    Standing {
        what: format!("{}: {}", goal.question, goal.row),
        wanted,
        found: found.unwrap_or_else(|| "not measured".to_owned()),
        met,
    }
}

/// All goals and how they stand.
#[derive(Debug)]
pub struct Goals {
    /// On what.
    pub machine: Machine,
    /// Each.
    pub standings: Vec<Standing>,
    /// What was measured for them.
    pub report: Report,
}

/// How often a small parent and a large one take turns.
const TURNS: usize = 3;

/// Measures all questions, each for `time`, and judges.
///
/// # Errors
/// When the large parent cannot be had.
pub fn run(time: Duration, mut progress: impl FnMut(&'static str, f64)) -> Result<Goals, Failure> {
    let others = Others::watch();
    let limits = Limits {
        time,
        ..Limits::default()
    };
    let names = [
        "spawn", "call", "tell", "stream", "tree", "teardown", "memory",
    ];
    let steps = names.len() + 2;
    #[allow(clippy::cast_precision_loss)] // Of a dozen.
    let part = |step: usize, done: f64| (step as f64 + done) / steps as f64;
    let mut answers = Vec::new();
    for (step, name) in names.into_iter().enumerate() {
        if let Some(question) = question::named(name) {
            answers.push(ask(question, limits, |done| {
                progress(name, part(step, done))
            }));
        }
    }
    let mut standings: Vec<Standing> = goals()
        .iter()
        .filter_map(|goal| {
            let answer = answers.iter().find(|answer| answer.name == goal.question);
            Some(judge(goal, answer?))
        })
        .collect();
    progress("large", part(names.len(), 0.0));
    standings.extend(in_a_large_parent(time)?);
    progress("idle", part(names.len() + 1, 0.0));
    standings.push(idle());
    standings.push(many());
    progress("idle", 1.0);
    let mut machine = Machine::here();
    machine.busy = others.part();
    Ok(Goals {
        report: Report {
            machine: machine.clone(),
            command: "offshoot bench goals".to_owned(),
            answers,
        },
        machine,
        standings,
    })
}

/// Whether spawns cost the same in a process of 1 GiB and 100 threads.
fn in_a_large_parent(time: Duration) -> Result<Vec<Standing>, Failure> {
    let limits = Limits {
        time: time / u32::try_from(2 * TURNS).unwrap_or(1),
        rounds_min: 2,
        ..Limits::default()
    };
    let spawn = || {
        let mut question = question::spawn::question();
        question.keep(None, Some(&["fork".to_owned()]));
        ask(question, limits, |_| {})
    };
    let mut turns: Vec<(Answer, Answer)> = Vec::new();
    for _ in 0..TURNS {
        let small = spawn();
        let ballast = Ballast::new(1 << 30, 100);
        let large = spawn();
        drop(ballast);
        turns.push((small, large));
    }
    let mut standings = Vec::new();
    for row in &turns[0].0.rows {
        let name = &row.row.name;
        let mut ratios: Vec<f64> = turns
            .iter()
            .filter_map(|(small, large)| {
                let p50 = |row: &Measured| row.quantile(0.5);
                Some(p50(large.row(name)?) / p50(small.row(name)?))
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let Some(median) = ratios.get(ratios.len() / 2) else {
            continue;
        };
        let range = format!(
            "{median:.2} ({:.2} to {:.2})",
            ratios[0],
            ratios[ratios.len() - 1]
        );
        let ours = row.row.kind == Kind::Offshoot;
        standings.push(Standing {
            what: format!("large parent: {name}"),
            wanted: match ours {
                true => "≤ 1.1 × a small one".to_owned(),
                false => "for comparison".to_owned(),
            },
            found: range,
            met: ours.then_some(*median <= 1.1),
        });
    }
    Ok(standings)
}

/// What the process says that counts something by itself.
fn counted(role: &str) -> Result<f64, Failure> {
    let output = command(role)?.stdin(std::process::Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.trim().parse() {
        Ok(number) if output.status.success() => Ok(number),
        _ => Err(format!("it ended with {} and said {text:?}", output.status).into()),
    }
}

fn idle() -> Standing {
    let found = counted("idle:1000");
    Standing {
        what: "1,000 idle thread isolates".to_owned(),
        wanted: "≤ 0.05 % of a core".to_owned(),
        met: found.as_ref().ok().map(|part| *part <= 0.05),
        found: found.map_or_else(|error| error.to_string(), |part| format!("{part:.3} %")),
    }
}

fn many() -> Standing {
    let output = command("memory:thread:30000")
        .and_then(|mut command| Ok(command.stdin(std::process::Stdio::null()).output()?));
    let why = match &output {
        Err(error) => error.to_string(),
        Ok(output) if output.status.success() => "they are".to_owned(),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            text.lines().next().unwrap_or("it crashed").to_owned()
        }
    };
    Standing {
        what: "30,000 thread isolates alive, lean".to_owned(),
        wanted: "possible".to_owned(),
        met: Some(output.is_ok_and(|output| output.status.success())),
        found: why,
    }
}

impl Goals {
    /// Whether every one that could be measured is met.
    pub fn are_met(&self) -> bool {
        self.standings.iter().all(|one| one.met != Some(false))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(["what", "goal", "measured", ""]);
        for one in &self.standings {
            let verdict = match one.met {
                Some(true) => "pass",
                Some(false) => "SHORT",
                None => "–",
            };
            table.add_row([
                Cell::new(&one.what),
                Cell::new(&one.wanted),
                Cell::new(&one.found).set_alignment(CellAlignment::Left),
                Cell::new(verdict),
            ]);
        }
        let mut text = String::new();
        for line in table.to_string().lines() {
            text += &format!("{}\n", line.trim_end());
        }
        let count = |met| self.standings.iter().filter(|one| one.met == met).count();
        text += &format!(
            "\n{} pass, {} short, {} not judged\n{}\n",
            count(Some(true)),
            count(Some(false)),
            count(None),
            self.machine.line()
        );
        if let Some(busy) = self.machine.busy {
            text += &format!("others kept {:.0} % of the cores busy\n", busy * 100.0);
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let standings: Vec<Value> = self
            .standings
            .iter()
            .map(|one| {
                json!({
                    "what": one.what,
                    "goal": one.wanted,
                    "measured": one.found,
                    "met": one.met,
                })
            })
            .collect();
        json!({ "goals": standings, "report": self.report.json() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::NAMES;
    use crate::record::{Row, Side};

    /// A goal whose row was renamed would silently not be judged.
    #[test]
    fn every_goal_names_rows_that_there_are() {
        for goal in goals() {
            assert!(NAMES.contains(&goal.question), "{goal:?}");
            let question = question::named(goal.question).unwrap();
            let rows = question.subjects.iter().flat_map(|subject| &subject.rows);
            let names: Vec<&str> = rows.map(|row| row.name.as_str()).collect();
            assert!(names.contains(&goal.row.as_str()), "{goal:?} of {names:?}");
            assert!(
                goal.floor.is_empty() || names.contains(&goal.floor.as_str()),
                "{goal:?} of {names:?}"
            );
        }
    }

    fn answer(ours: u64, floor: u64) -> Answer {
        let measured = |name: &str, sample| {
            let mut row = Measured::new(Row::new(Kind::Floor, Side::Thread, name));
            row.add(sample);
            row.end_round();
            row
        };
        Answer {
            name: "spawn",
            asks: "",
            rows: vec![measured("ours", ours), measured("floor", floor)],
            failed: Vec::new(),
            rounds: 1,
        }
    }

    #[test]
    fn times_are_to_be_small_and_rates_large() {
        let stands = |wanted, ours, floor| {
            let goal = goal("spawn", "ours", wanted, "floor");
            judge(&goal, &answer(ours, floor)).met
        };
        assert_eq!(stands(Wanted::AtMost(1.5), 150, 100), Some(true));
        assert_eq!(stands(Wanted::AtMost(1.5), 151, 100), Some(false));
        assert_eq!(stands(Wanted::Rate(0.5), 200, 100), Some(true));
        assert_eq!(stands(Wanted::Rate(0.5), 202, 100), Some(false));
        assert_eq!(stands(Wanted::P99(100.0), 100, 1), Some(true));
        assert_eq!(stands(Wanted::P99(99.0), 100, 1), Some(false));
        assert_eq!(stands(Wanted::None, 0, 1), Some(true));
        assert_eq!(stands(Wanted::None, 1_000, 1), Some(false));
        let missing = goal("spawn", "ours", Wanted::AtMost(9.0), "nobody");
        assert_eq!(judge(&missing, &answer(1, 1)).met, None);
    }
}
