//! The arguments: parsed without effects, then validated into a [`Plan`].

use crate::{bench, log};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use offshoot::reap::{Phase, Reaper};
use offshoot::{Isolation, TreeId};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// More threads than this are a slip of the finger, not a wish.
const WORKERS_MAX: u64 = 1_024;

/// Some minutes of publishing.
const MESSAGES_MAX: u64 = 1_000_000_000;

/// The variable that stands for `--isolation`.
const ISOLATION: &str = "OFFSHOOT_ISOLATION";

/// The longest grace, in seconds. More would look like a hang.
const GRACE_MAX: f64 = 3_600.0;

/// What is to be done.
pub(crate) enum Plan {
    /// Words of the current directory, and how to go on from there.
    Welcome(Isolation, words::Options),
    List,
    Words(Isolation, words::Options),
    Baseline(words::Options),
    Primes(Isolation, primes::Options),
    Topics(Isolation, topics::Options),
    Bad(Isolation, Bad),
    Reap(Reaper, Style, Option<TreeId>),
    Bench(bench::Options),
}

/// How what was found is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Text { dry: bool },
    Json,
}

/// The programs that go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    Panics,
    Hangs,
    IgnoresCancel,
    Segfaults,
    Aborts,
    Exits,
    LeaksFd,
    Floods,
}

/// Reads the arguments, and the environment where an option says so.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Plan, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let named = args
        .iter()
        .any(|arg| arg.to_string_lossy().starts_with("--isolation"));
    let plan = plan(args).map_err(|error| match named {
        true => error,
        false => blame_environment(error),
    })?;
    let wrong = |message| Cli::command().error(ErrorKind::InvalidValue, message);
    log::check().map_err(wrong)?;
    Ok(plan)
}

/// An isolation that nobody has named on the command line comes from the environment.
fn blame_environment(error: clap::Error) -> clap::Error {
    let names = |value: &ContextValue| value.to_string().starts_with("--isolation");
    let is_isolation = error.get(ContextKind::InvalidArg).is_some_and(names);
    match std::env::var_os(ISOLATION) {
        Some(value) if error.kind() == ErrorKind::InvalidValue && is_isolation => {
            let value = value.to_string_lossy();
            let message = format!(
                "the environment variable {ISOLATION} is `{value}`: set it to `thread`, `process` or `serde`, or unset it"
            );
            Cli::command().error(ErrorKind::InvalidValue, message)
        }
        _ => error,
    }
}

fn plan(args: Vec<OsString>) -> Result<Plan, clap::Error> {
    let program = match Cli::try_parse_from(args)?.command {
        Some(Command::Run { program }) => program,
        Some(Command::Reap(reap)) => return Ok(reap.validate()),
        Some(Command::Bench(bench)) => return bench.validate(),
        None => {
            let shared = Shared::try_parse_from(["offshoot"])?;
            return Ok(Plan::Welcome(
                shared.isolation(),
                words::Options::new(["."]),
            ));
        }
    };
    let bad = |tree: Tree, bad| Plan::Bad(tree.isolation(), bad);
    Ok(match program {
        None => Plan::List,
        Some(Program::Words(words)) => words.validate(),
        Some(Program::Primes(primes)) => primes.validate(),
        Some(Program::Topics(topics)) => topics.validate(),
        Some(Program::BadPanics(tree)) => bad(tree, Bad::Panics),
        Some(Program::BadHangs(tree)) => bad(tree, Bad::Hangs),
        Some(Program::BadIgnoresCancel(tree)) => bad(tree, Bad::IgnoresCancel),
        Some(Program::BadSegfaults(tree)) => bad(tree, Bad::Segfaults),
        Some(Program::BadAborts(tree)) => bad(tree, Bad::Aborts),
        Some(Program::BadExits(tree)) => bad(tree, Bad::Exits),
        Some(Program::BadLeaksFd(tree)) => bad(tree, Bad::LeaksFd),
        Some(Program::BadFloods(tree)) => bad(tree, Bad::Floods),
    })
}

/// The name of each program and a line about it.
pub(crate) fn programs() -> Vec<(String, String)> {
    let command = Cli::command();
    let run = command.find_subcommand("run");
    run.into_iter()
        .flat_map(clap::Command::get_subcommands)
        .filter(|program| program.get_name() != "help")
        .map(|program| {
            let about = program.get_about().map(ToString::to_string);
            (program.get_name().to_owned(), about.unwrap_or_default())
        })
        .collect()
}

/// Runs trees of actors: threads, or by one flag processes, and nothing is left behind.
#[derive(Parser)]
#[command(name = "offshoot", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "\
Without a command, it runs `words` on the current directory and says how to go on.

Exit codes: 0 done; 1 the tree failed, some input could not be read, or `reap` left something; 2 wrong arguments;
130 interrupted; 143 terminated; 141 nobody reads the output.
Environment: OFFSHOOT_ISOLATION as --isolation, OFFSHOOT_LOG=debug for what the runtime does.";

#[derive(Subcommand)]
enum Command {
    /// Run a program; without a name, list what there is
    Run {
        #[command(subcommand)]
        program: Option<Program>,
    },
    Reap(Reap),
    /// Measure what isolates cost on this machine, beside what else one could use
    Bench(Bench),
}

/// Remove what dead trees have left: processes, sockets and files, shared memory
///
/// A tree cleans up after itself, and the next one after those that were killed whole; this is for what nobody
/// was left to end. A dead tree is one whose lock nobody holds; a stray process is one that has such a tree's mark
/// in its environment. Trees that live, other users' things and shared memory in use are never touched.
///
/// Exit codes: 0 clean; 1 something survived or went wrong; 2 wrong arguments.
#[derive(Args)]
struct Reap {
    /// This tree only; the number is the name of its directory
    #[arg(long, value_name = "ID", value_parser = tree_id, conflicts_with = "all")]
    tree: Option<TreeId>,
    /// All trees of this user, also those whose directory is not where one of yours would be
    #[arg(long)]
    all: bool,
    /// Only print what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// How long processes have between SIGINT and SIGKILL, in seconds
    #[arg(long, value_name = "SECS", default_value = "3", value_parser = seconds)]
    grace: Duration,
    /// Only processes; may be combined with the other two
    #[arg(long)]
    processes: bool,
    /// Only sockets, registered files and the trees' directories
    #[arg(long)]
    sockets: bool,
    /// Only shared memory
    #[arg(long)]
    shm: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Reap {
    fn validate(self) -> Plan {
        let mut reaper = Reaper::new().dry_run(self.dry_run).grace(self.grace);
        if self.all {
            reaper = reaper.all();
        }
        if let Some(id) = self.tree {
            reaper = reaper.tree(id);
        }
        for (wanted, phase) in [
            (self.processes, Phase::Processes),
            (self.sockets, Phase::Sockets),
            (self.shm, Phase::SharedMemory),
        ] {
            if wanted {
                reaper = reaper.only(phase);
            }
        }
        let style = match self.json {
            true => Style::Json,
            false => Style::Text { dry: self.dry_run },
        };
        Plan::Reap(reaper, style, self.tree)
    }
}

fn tree_id(text: &str) -> Result<TreeId, String> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 16 || !text.bytes().all(digits) {
        return Err("a tree's id has 16 hexadecimal digits, in small letters".to_owned());
    }
    u64::from_str_radix(text, 16)
        .map(TreeId)
        .map_err(|error| error.to_string())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.0..=GRACE_MAX).contains(&seconds) {
        return Err(format!("not between 0 and {GRACE_MAX} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[derive(Subcommand)]
#[command(rename_all = "snake_case")]
enum Program {
    /// Count the words of files and directories
    Words(Words),
    /// Count the primes up to a limit
    Primes(Primes),
    /// Publish to many subscribers
    Topics(Topics),
    /// An isolate that panics in a call
    BadPanics(Tree),
    /// An isolate that blocks for ever in code that is not async
    BadHangs(Tree),
    /// An isolate that swallows its cancellation and goes on
    BadIgnoresCancel(Tree),
    /// An isolate that reads memory that is not there
    BadSegfaults(Tree),
    /// An isolate that aborts
    BadAborts(Tree),
    /// An isolate that ends its process by `exit`
    BadExits(Tree),
    /// An isolate that opens files and forgets them
    BadLeaksFd(Tree),
    /// An isolate that sends faster than the other can work
    BadFloods(Tree),
}

/// What every program has.
#[derive(Args)]
struct Tree {
    /// What each isolate is
    #[arg(long, value_enum, env = ISOLATION, default_value = "thread")]
    isolation: IsolationArg,
}

impl Tree {
    fn isolation(&self) -> Isolation {
        match self.isolation {
            IsolationArg::Thread => Isolation::Thread,
            IsolationArg::Process => Isolation::Process,
            IsolationArg::Serde => Isolation::Serde,
        }
    }
}

/// For the command without arguments, which takes its isolation from the environment, too.
#[derive(Parser)]
struct Shared {
    #[command(flatten)]
    tree: Tree,
}

impl Shared {
    fn isolation(&self) -> Isolation {
        self.tree.isolation()
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum IsolationArg {
    /// A thread of this process
    Thread,
    /// A process of its own
    Process,
    /// A thread, but every message is encoded and decoded, to find what would differ
    Serde,
}

#[derive(Args)]
struct Workers {
    /// How many isolates share the work [default: the usable cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=WORKERS_MAX))]
    workers: Option<u64>,
}

impl Workers {
    fn get(&self) -> Option<NonZeroUsize> {
        let workers = self.workers.and_then(|n| usize::try_from(n).ok());
        workers.and_then(NonZeroUsize::new)
    }
}

/// Count the words of files and directories
///
/// A word is a run of letters, digits and `_`, with apostrophes inside; capitals count as small
/// letters. In directories, hidden files, caches (marked by a CACHEDIR.TAG), Cargo's `target` and
/// symbolic links are left out, and so are binary files (a NUL in the first 8 KiB).
#[derive(Args)]
struct Words {
    /// Files, directories and pipes to read, `-` for the standard input [default: the current directory]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    tree: Tree,
    #[command(flatten)]
    workers: Workers,
    /// How many of the most frequent words to print
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Count by a plain loop on one thread instead, to compare the times with
    #[arg(long)]
    baseline: bool,
}

impl Words {
    fn validate(self) -> Plan {
        let isolation = self.tree.isolation();
        let paths = match self.paths.is_empty() {
            true => vec![PathBuf::from(".")],
            false => self.paths,
        };
        let mut options = words::Options::new(paths).with_top(self.top);
        if let Some(workers) = self.workers.get() {
            options = options.with_workers(workers);
        }
        match self.baseline {
            true => Plan::Baseline(options),
            false => Plan::Words(isolation, options),
        }
    }
}

/// Count the primes up to a limit
#[derive(Args)]
struct Primes {
    /// The largest number to look at
    #[arg(default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(..=primes::LIMIT_MAX))]
    limit: u64,
    #[command(flatten)]
    tree: Tree,
    #[command(flatten)]
    workers: Workers,
    /// How many of the largest primes to print
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=primes::TOP_MAX as u64))]
    top: u64,
}

impl Primes {
    fn validate(self) -> Plan {
        let top = usize::try_from(self.top).unwrap_or(primes::TOP_MAX);
        let mut options = primes::Options::new(self.limit).with_top(top);
        if let Some(workers) = self.workers.get() {
            options = options.with_workers(workers);
        }
        Plan::Primes(self.tree.isolation(), options)
    }
}

/// Publish numbers on one topic, as fast as it goes, and count what each of its subscribers gets and misses
#[derive(Args)]
struct Topics {
    /// How many numbers to publish
    #[arg(default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(..=MESSAGES_MAX))]
    messages: u64,
    #[command(flatten)]
    tree: Tree,
    /// How many subscribe
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=WORKERS_MAX))]
    subscribers: u64,
}

impl Topics {
    fn validate(self) -> Plan {
        let subscribers = usize::try_from(self.subscribers).ok();
        let subscribers = subscribers.and_then(NonZeroUsize::new);
        let options = topics::Options::new(self.messages);
        let options = options.with_subscribers(subscribers.unwrap_or(NonZeroUsize::MIN));
        Plan::Topics(self.tree.isolation(), options)
    }
}

/// Measure what isolates cost on this machine, beside what else one could use
///
/// Each question is asked of Offshoot and of its floors (the same, by the barest means) in turns, so
/// that a drift of the machine meets all alike. Without a question, all but `memory` and `goals` are
/// asked, in less than a minute.
#[derive(Args)]
struct Bench {
    /// What to ask; `goals` asks all, and says which goal is met (exit code 1 if one is not)
    #[arg(value_name = "QUESTION", value_parser = bench::questions())]
    questions: Vec<String>,
    /// Only this kind of isolate, and what it is compared with
    #[arg(long, value_enum)]
    isolation: Option<KindArg>,
    /// Compare with these only: std, fork, forkserver, exec, crossbeam, …; or `none`
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    vs: Option<Vec<String>>,
    /// How long all questions together are asked, in seconds
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Print one JSON object instead of tables, times in nanoseconds
    #[arg(long)]
    json: bool,
    /// Also draw a chart into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure while every core has other work
    #[arg(long)]
    busy: bool,
    /// Measure in a process that has touched 1 GiB and has 100 threads
    #[arg(long)]
    large: bool,
}

/// The kinds that are different to measure.
#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    /// Threads
    Thread,
    /// Processes
    Process,
}

impl Bench {
    fn validate(self) -> Result<Plan, clap::Error> {
        let options = bench::Options {
            questions: self.questions,
            side: self.isolation.map(|kind| match kind {
                KindArg::Thread => bench::Side::Thread,
                KindArg::Process => bench::Side::Process,
            }),
            vs: self.vs,
            time: Duration::from_secs(self.seconds),
            json: self.json,
            svg: self.svg,
            busy: self.busy,
            large: self.large,
        };
        let wrong = |message| Cli::command().error(ErrorKind::InvalidValue, message);
        options.check().map_err(wrong)?;
        Ok(Plan::Bench(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_whole() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_program_has_a_line_of_its_own() {
        let programs = programs();
        assert_eq!(programs.len(), 11);
        for (name, about) in programs {
            assert!(
                !about.is_empty() && !about.contains('\n'),
                "{name}: {about:?}"
            );
        }
    }
}
