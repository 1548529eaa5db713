//! The `offshoot` command: runs the programs of `isolates/`, removes what dead trees have left, measures. Arguments and printing, nothing else.
//!
//! | exit code | means |
//! |---|---|
//! | 0 | all went well; binary files that `words` passed over are no failure |
//! | 1 | the tree failed, as its report says, or some input could not be read, or the output not be written; `reap` left something |
//! | 2 | the arguments are wrong |
//! | 3 | `bad_exits` ran as a thread, which ends the program with its own code |
//! | 130, 143 | interrupted by SIGINT, terminated by SIGTERM; the tree came down first |
//! | 141 | nobody reads the output any more, as the shell shows it for other tools, too |
//!
//! A thread that crashes ends the program by its signal; the shell shows 128 more than its number.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod args;
mod bench;
mod log;
mod print;
mod tree;

use args::{Bad, Plan};
use std::process::ExitCode;

fn main() -> ExitCode {
    // `bench` compares with small processes, which are this program again.
    offshoot_benches::floor::enter();
    match args::parse(std::env::args_os()) {
        Err(usage) => print::usage(&usage),
        Ok(Plan::Reap(reaper, style, tree)) => print::reaped(reaper.run(), style, tree),
        Ok(Plan::Bench(options)) => bench::run(options),
        Ok(Plan::List) => print::list(&args::programs()),
        Ok(Plan::Baseline(options)) => match options.with_streams() {
            Ok(options) => print::words(&words::baseline(options), None),
            Err(error) => print::unreadable(&error),
        },
        Ok(Plan::Words(isolation, options)) => match options.with_streams() {
            Ok(options) => tree::words(isolation, options, false),
            Err(error) => print::unreadable(&error),
        },
        Ok(Plan::Welcome(isolation, options)) => tree::words(isolation, options, true),
        Ok(Plan::Primes(isolation, options)) => tree::run(
            isolation,
            async || primes::run(options).await,
            |report| print::primes(&report, isolation),
        ),
        Ok(Plan::Topics(isolation, options)) => tree::run(
            isolation,
            async || topics::run(options).await,
            |report| print::topics(&report, isolation),
        ),
        Ok(Plan::Bad(isolation, bad)) => {
            print::before(bad, isolation);
            match bad {
                Bad::Panics => tree::fail(isolation, bad_panics::run),
                Bad::Hangs => tree::fail(isolation, bad_hangs::run),
                Bad::Segfaults => tree::fail(isolation, bad_segfaults::run),
                Bad::Aborts => tree::fail(isolation, bad_aborts::run),
                Bad::Exits => tree::fail(isolation, bad_exits::run),
                Bad::IgnoresCancel => {
                    tree::run(isolation, bad_ignores_cancel::run, print::ignores_cancel)
                }
                Bad::LeaksFd => tree::run(isolation, bad_leaks_fd::run, print::leaks_fd),
                Bad::Floods => tree::run(isolation, bad_floods::run, print::floods),
            }
        }
    }
}
