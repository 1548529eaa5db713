//! The runner: one case after the other, each in a process of its own, with libtest's command line and output.

use crate::oracle::{self, Left};
use offshoot_sys::pidfd::{Pidfd, Status};
use offshoot_sys::process;
use offshoot_tests::{Oracle, of_children};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Names the case that this process is to be.
const CASE: &str = "OFFSHOOT_TEST_CASE";

/// How long a case may take, in its long form, too.
const CASE_MAX: Duration = Duration::from_secs(300);
/// The same in a long form, which on a loaded machine takes three times as long as on an idle one.
const CASE_MAX_LONG: Duration = Duration::from_secs(900);

/// How long what a case started may take to be gone after it.
const GONE: Duration = Duration::from_secs(1);

pub(crate) struct Case {
    name: &'static str,
    run: fn(),
}

pub(crate) const fn case(name: &'static str, run: fn()) -> Case {
    Case { name, run }
}

/// What the command line asks for.
#[derive(Default)]
struct Options {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    quiet: bool,
    terse: bool,
    show: bool,
    only_ignored: bool,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let (flag, mut value) = match argument.split_once('=') {
                Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let takes_value = matches!(
                flag,
                "--skip"
                    | "--test-threads"
                    | "--color"
                    | "--format"
                    | "--logfile"
                    | "--shuffle-seed"
                    | "-Z"
            );
            if takes_value && value.is_none() {
                value = Some(arguments.next().ok_or(format!("{flag} needs a value"))?);
            }
            match flag {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--quiet" | "-q" => options.quiet = true,
                "--nocapture" | "--no-capture" => options.show = true,
                "--ignored" => options.only_ignored = true,
                "--skip" => options.skip.extend(value),
                "--format" => options.terse = value.as_deref() == Some("terse"),
                // Taken and of no consequence: the cases run one after the other, none is ignored, none is a benchmark.
                "--test-threads" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => {}
                "--include-ignored" | "--show-output" | "--test" | "--bench" | "--shuffle" => {}
                "--report-time" | "--ensure-time" | "--force-run-in-process" => {}
                flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
                filter => options.filters.push(filter.to_owned()),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        let matches = |pattern: &String| {
            if self.exact {
                name == pattern
            } else {
                name.contains(pattern.as_str())
            }
        };
        !self.only_ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skip.iter().any(matches)
    }
}

/// The whole program: the case that the environment names, or the runner.
pub(crate) fn main(cases: &[Case]) -> ExitCode {
    if let Ok(name) = std::env::var(CASE) {
        return be(cases, &name);
    }
    offshoot_tests::heed_signals();
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let chosen: Vec<&Case> = cases
        .iter()
        .filter(|case| options.wants(case.name))
        .collect();
    if options.list {
        chosen
            .iter()
            .for_each(|case| println!("{}: test", case.name));
        if !options.terse {
            println!("\n{} tests, 0 benchmarks", chosen.len());
        }
        return ExitCode::SUCCESS;
    }
    run_all(&chosen, cases.len() - chosen.len(), &options)
}

/// Runs the case in this process. The exit code says how it went, the standard error why.
fn be(cases: &[Case], name: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.name == name) else {
        eprintln!("no case is named {name}");
        return ExitCode::from(2);
    };
    // What the killed leave becomes ours to see and to reap.
    process::become_subreaper().expect("prctl");
    let oracle = Oracle::begin();
    let checked = || {
        (case.run)();
        // What it adopted is looked at by the runner, too; here it would count as left.
        let _ = oracle::wait_childless(GONE);
        oracle::unwatch_stalls();
        oracle.check();
    };
    match catch_unwind(AssertUnwindSafe(checked)) {
        Ok(()) => ExitCode::SUCCESS,
        // The panic hook has printed it.
        Err(_) => ExitCode::from(101),
    }
}

fn run_all(chosen: &[&Case], filtered: usize, options: &Options) -> ExitCode {
    process::become_subreaper().expect("prctl");
    let began = Instant::now();
    let plural = if chosen.len() == 1 { "" } else { "s" };
    println!("\nrunning {} test{plural}", chosen.len());
    let mut failures = Vec::new();
    for case in chosen {
        if !options.quiet {
            print!("test {} ... ", case.name);
            let _ = io::stdout().flush();
        }
        let result = run_one(case, options.show);
        let (word, letter) = if result.is_ok() {
            ("ok", '.')
        } else {
            ("FAILED", 'F')
        };
        if options.quiet {
            print!("{letter}");
            let _ = io::stdout().flush();
        } else {
            println!("{word}");
        }
        if let Err(output) = result {
            failures.push((case.name, output));
        }
    }
    if options.quiet {
        println!();
    }
    if !failures.is_empty() {
        println!("\nfailures:\n");
        for (name, output) in &failures {
            println!("---- {name} ----\n{output}\n");
        }
        println!("failures:");
        failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        chosen.len() - failures.len(),
        failures.len(),
        began.elapsed().as_secs_f64()
    );
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(101)
    }
}

/// Runs one case; what it printed and what is wrong, if anything is.
fn run_one(case: &Case, show: bool) -> Result<(), String> {
    let directory =
        tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(directory.path(), private).map_err(|error| error.to_string())?;
    let output = directory.path().join("output");
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command
        .env(CASE, case.name)
        .env("XDG_RUNTIME_DIR", directory.path())
        .env_remove("OFFSHOOT_ISOLATION")
        .env_remove("OFFSHOOT_FAULT")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .process_group(0);
    if !show {
        let file = File::create(&output).map_err(|error| error.to_string())?;
        let copy = file.try_clone().map_err(|error| error.to_string())?;
        command.stdout(file).stderr(copy);
    }
    // Not waited for through std: this process reaps all of its children in one place.
    let child = command
        .spawn()
        .map_err(|error| format!("cannot start the case: {error}"))?;
    let pid = i32::try_from(child.id()).expect("a pid");
    let pidfd = Pidfd::open(pid).map_err(|error| error.to_string())?;
    let bound = match std::env::var_os("OFFSHOOT_LONG") {
        Some(_) => CASE_MAX_LONG,
        None => CASE_MAX,
    };
    let ended = pidfd.wait_dead(bound).unwrap_or(false);
    let mut problems = Vec::new();
    if ended {
        match pidfd.reap() {
            Ok(Some(Status::Exited(0))) => {}
            status => problems.push(format!("it ended with {status:?}")),
        }
    } else {
        problems.push(format!(
            "it did not end within {bound:?}; the processes were:\n{}",
            oracle::table()
        ));
        let _ = pidfd.kill();
    }
    match oracle::wait_childless(GONE) {
        Left::Nothing => {}
        Left::Processes(table) => {
            problems.push(format!("processes were left {GONE:?} after it:\n{table}"));
            oracle::kill_children();
        }
    }
    let text = printed(&output);
    for said in of_children(&text) {
        problems.push(said.to_owned());
    }
    let files = oracle::tree_files(directory.path());
    if !files.is_empty() {
        problems.push(format!("files were left in the base directory: {files:?}"));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(format!("{}{}", printed(&output), problems.join("\n")))
}

fn printed(output: &Path) -> String {
    let bytes = fs::read(output).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.is_empty() || text.ends_with('\n') {
        text
    } else {
        text + "\n"
    }
}
