//! What the command prints: results on the standard output, everything else on the standard error.

use crate::args::{Bad, Style};
use offshoot::reap::{End, Report, Stray};
use offshoot::{Isolation, TreeId};
use serde_json::json;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// As the shell shows it for a tool that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

/// Prints `text` on the standard output.
pub(crate) fn out(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read it has enough, as `head` has. That is nothing to talk about.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(BROKEN_PIPE),
        Err(error) => {
            err(&format!(
                "error: cannot write to the standard output: {error}\n"
            ));
            ExitCode::FAILURE
        }
    }
}

/// Prints `text` on the standard error. If that fails, there is nobody left to tell.
pub(crate) fn err(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// What clap has to say: help on the standard output, wrong arguments on the standard error.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    let text = |colour: bool| match colour {
        true => text.ansi().to_string(),
        false => text.to_string(),
    };
    if error.use_stderr() {
        err(&text(io::stderr().is_terminal() && !is_plain()));
        return ExitCode::from(2);
    }
    out(&text(io::stdout().is_terminal() && !is_plain()))
}

/// Whether the environment asks for text without colours: <https://no-color.org>, or a terminal that has none.
fn is_plain() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_set("NO_COLOR") || std::env::var_os("TERM").is_none_or(|term| term == "dumb")
}

/// A number of things, in words.
fn several(n: u64, one: &str, many: &str) -> String {
    let word = if n == 1 { one } else { many };
    format!("{} {word}", number(n))
}

/// The programs, one a line.
pub(crate) fn list(programs: &[(String, String)]) -> ExitCode {
    let width = programs
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (name, about) in programs {
        text += &format!("{name:width$}  {about}\n");
    }
    text += "\nRun one with `offshoot run NAME`, its isolates as processes with `--isolation process`.\n";
    out(&text)
}

/// How a tree ended that gave nothing to print. Its report was printed by the runtime.
pub(crate) fn ended(code: ExitCode) -> ExitCode {
    if code == ExitCode::from(130) {
        err("interrupted\n");
    } else if code == ExitCode::from(143) {
        err("terminated\n");
    }
    code
}

/// What was to be read first, and cannot be.
pub(crate) fn unreadable(error: &io::Error) -> ExitCode {
    err(&format!("error: {error}\n"));
    ExitCode::FAILURE
}

/// The words, their line of figures and, apart, what could not be read.
pub(crate) fn words(report: &words::Report, isolation: Option<Isolation>) -> ExitCode {
    let read = &report.read;
    let mut text = String::new();
    let counts: Vec<String> = report.top.iter().map(|(_, count)| number(*count)).collect();
    let width = counts.iter().map(String::len).max().unwrap_or(0);
    for ((word, _), count) in report.top.iter().zip(&counts) {
        text += &format!("{count:>width$}  {word}\n");
    }
    text += &format!(
        "{}, {}, {} ({} different); {}\n",
        several(read.files, "file", "files"),
        several(read.bytes, "byte", "bytes"),
        several(report.words, "word", "words"),
        number(report.distinct),
        figures(
            report.isolates,
            isolation,
            [report.spawn, report.work, report.teardown]
        ),
    );
    let code = out(&text);
    for problem in &read.problems {
        err(&format!("error: {problem}\n"));
    }
    let untold = read.problems_total - read.problems.len() as u64;
    if untold > 0 {
        err(&format!(
            "error: {} more could not be read\n",
            number(untold)
        ));
    }
    if read.binary > 0 {
        err(&format!(
            "note: {} passed over\n",
            several(read.binary, "binary file", "binary files")
        ));
    }
    match read.problems_total > 0 && code == ExitCode::SUCCESS {
        true => ExitCode::FAILURE,
        false => code,
    }
}

/// The count, the largest ones, and the line of figures.
pub(crate) fn primes(report: &primes::Report, isolation: Isolation) -> ExitCode {
    let mut text = String::new();
    for prime in &report.largest {
        text += &format!("{prime}\n");
    }
    text += &format!(
        "{}; {}\n",
        several(report.count, "prime", "primes"),
        figures(
            report.isolates,
            Some(isolation),
            [report.spawn, report.work, report.teardown]
        ),
    );
    out(&text)
}

/// What each subscriber got and missed, and the line of figures.
pub(crate) fn topics(report: &topics::Report, isolation: Isolation) -> ExitCode {
    let mut text = String::new();
    let counts = report.received.iter().zip(&report.missed);
    for (n, (received, missed)) in counts.enumerate() {
        let (received, missed) = (number(*received), number(*missed));
        text += &format!("subscriber {n}: received {received}, missed {missed}\n");
    }
    text += &format!(
        "{} published; {}\n",
        number(report.published),
        figures(
            1,
            Some(isolation),
            [report.spawn, report.work, report.teardown]
        ),
    );
    out(&text)
}

fn figures(isolates: usize, isolation: Option<Isolation>, times: [Duration; 3]) -> String {
    let [spawn, work, teardown] = times.map(|time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
    let (one, many) = match isolation {
        None => return format!("no isolates: work {work}"),
        Some(Isolation::Process) => ("process", "processes"),
        Some(Isolation::Serde) => ("thread through serde", "threads through serde"),
        Some(_) => ("thread", "threads"),
    };
    let isolates = several(isolates as u64, one, many);
    format!("{isolates}: spawn {spawn}, work {work}, teardown {teardown}")
}

/// What to try after the first run.
pub(crate) fn welcome(isolation: Isolation) -> ExitCode {
    let other = match isolation {
        Isolation::Process => "thread",
        _ => "process",
    };
    out(&format!(
        "\nThe words of the current directory. To go on:\n\
         \x20 offshoot run words --isolation {other}    the same with a {other} for each isolate\n\
         \x20 offshoot run bad_segfaults --isolation process    a crash that the tree survives\n\
         \x20 offshoot run    all the programs\n\
         From the sources, `cargo run --release --` stands for `offshoot`.\n"
    ))
}

/// What is going to happen that nothing can prevent.
pub(crate) fn before(bad: Bad, isolation: Isolation) {
    let how = match bad {
        Bad::Segfaults => "with SIGSEGV",
        Bad::Aborts => "with SIGABRT",
        Bad::Exits => "with exit code 3",
        _ => return,
    };
    if isolation != Isolation::Process {
        err(&format!(
            "note: as a thread, this ends the whole program {how}; `--isolation process` contains it\n"
        ));
    }
}

/// How long it took until all was over.
pub(crate) fn came_down(after: Duration) {
    err(&format!(
        "note: all isolates were down after {} ms\n",
        after.as_millis()
    ));
}

pub(crate) fn ignores_cancel(outcome: bad_ignores_cancel::Outcome) -> ExitCode {
    out(&format!(
        "ignores_cancel: {}\nits end came {} ms after the request; the grace was {} ms\n",
        outcome.exit,
        outcome.after.as_millis(),
        bad_ignores_cancel::GRACE.as_millis(),
    ))
}

pub(crate) fn leaks_fd(leak: bad_leaks_fd::Leak) -> ExitCode {
    out(&format!(
        "leaked {} descriptors, {} are still open after the isolate's end\n",
        leak.leaked, leak.left
    ))
}

pub(crate) fn floods(flood: bad_floods::Flood) -> ExitCode {
    out(&format!(
        "offered {}: {} accepted, {} handed back; then waited {} ms to send {} more; {} done\n\
         the bystander answered within {:.1} ms\n",
        bad_floods::OFFERED,
        flood.accepted,
        flood.refused,
        flood.waited.as_millis(),
        bad_floods::WAITED_FOR,
        flood.done,
        flood.bystander.as_secs_f64() * 1e3,
    ))
}

/// What `reap` found and did.
pub(crate) fn reaped(
    report: offshoot::Result<Report>,
    style: Style,
    asked: Option<TreeId>,
) -> ExitCode {
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            err(&format!("error: {}", error.report()));
            return ExitCode::FAILURE;
        }
    };
    let code = match style {
        Style::Json => out(&format!("{}\n", reaped_json(&report))),
        Style::Text { dry } => {
            let code = out(&reaped_text(&report, dry));
            for problem in &report.problems {
                err(&format!("error: {}\n", plain(problem)));
            }
            for note in &report.notes {
                err(&format!("note: {}\n", plain(note)));
            }
            if let Some(TreeId(id)) = asked
                && report.trees.is_empty()
            {
                err(&format!(
                    "note: no tree of yours has the id {id:016x}; it may have cleaned up after itself\n"
                ));
            }
            code
        }
    };
    match report.is_clean() || code != ExitCode::SUCCESS {
        true => code,
        false => ExitCode::FAILURE,
    }
}

fn reaped_text(report: &Report, dry: bool) -> String {
    let (mut text, mut ended, mut removed, mut left) = (String::new(), 0_u64, 0, 0);
    for tree in report.trees.iter().filter(|tree| !tree.alive) {
        text += &format!("dead tree {}\n", plain(&tree.path.display().to_string()));
        for Stray {
            pid, command, end, ..
        } in &tree.processes
        {
            text += &format!("  {} {pid} {}\n", word(*end, dry), plain(command));
            match end {
                End::Survived => left += 1,
                _ => ended += 1,
            }
        }
        for path in &tree.removed {
            let verb = if dry { "would remove" } else { "removed" };
            text += &format!("  {verb} {}\n", plain(&path.display().to_string()));
        }
        removed += tree.removed.len();
        for thing in &tree.left {
            let (path, why) = (thing.path.display().to_string(), &thing.why);
            text += &format!("  left {}: {}\n", plain(&path), plain(why));
            left += usize::from(thing.ours);
        }
    }
    let alive = report.trees.iter().filter(|tree| tree.alive).count();
    let would = if dry { "would be " } else { "" };
    text += &format!(
        "{}, {alive} alive: {} {would}ended, {} {would}removed, {left} left\n",
        several(
            (report.trees.len() - alive) as u64,
            "dead tree",
            "dead trees"
        ),
        several(ended, "process", "processes"),
        several(removed as u64, "path", "paths"),
    );
    text
}

fn word(end: End, dry: bool) -> &'static str {
    match end {
        End::Interrupted => "interrupted",
        End::Killed => "killed",
        End::Survived => "could not kill",
        _ if dry => "would end",
        _ => "found",
    }
}

fn reaped_json(report: &Report) -> serde_json::Value {
    let trees: Vec<_> = report
        .trees
        .iter()
        .map(|tree| {
            let processes: Vec<_> = tree
                .processes
                .iter()
                .map(|stray| {
                    let end = match stray.end {
                        End::Interrupted => "interrupted",
                        End::Killed => "killed",
                        End::Survived => "survived",
                        _ => "found",
                    };
                    json!({ "pid": stray.pid, "command": stray.command, "end": end })
                })
                .collect();
            let paths = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
            let left: Vec<_> = tree
                .left
                .iter()
                .map(
                    |left| json!({ "path": paths(&left.path), "why": left.why, "ours": left.ours }),
                )
                .collect();
            json!({
                "path": paths(&tree.path),
                "alive": tree.alive,
                "processes": processes,
                "removed": tree.removed.iter().map(paths).collect::<Vec<_>>(),
                "left": left,
            })
        })
        .collect();
    json!({ "trees": trees, "problems": report.problems, "notes": report.notes, "clean": report.is_clean() })
}

/// Without what a terminal would act on.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// A number that can be read.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn one_is_one() {
        let wanted = ["0 files", "1 file", "2 files"];
        assert_eq!(
            [0, 1, 2].map(|n| super::several(n, "file", "files")),
            wanted
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let wanted = ["0", "999", "1,000", "65,536", "1,234,567"];
        assert_eq!([0, 999, 1_000, 65_536, 1_234_567].map(number), wanted);
    }
}
