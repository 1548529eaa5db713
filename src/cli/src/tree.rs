//! Runs a program as a tree of its own, then prints what it found.

use crate::{log, print};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use offshoot::{Builder, Isolation, Result};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Runs a program whose value `show` prints when its tree has ended.
pub(crate) fn run<T, F>(
    isolation: Isolation,
    program: F,
    show: impl FnOnce(T) -> ExitCode,
) -> ExitCode
where
    T: Send + 'static,
    F: AsyncFnOnce() -> Result<T> + Send + 'static,
{
    let slot = Arc::new(Mutex::new(None));
    let into = slot.clone();
    let code = Builder::new()
        .isolation(isolation)
        .on_process_start(log::install)
        .main(async move || {
            let value = program().await?;
            *into.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(value);
            Ok(())
        });
    let value = slot
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .take();
    match value {
        Some(value) if code == ExitCode::SUCCESS => show(value),
        _ => print::ended(code),
    }
}

/// Runs a program that does not end well, and says how long that took.
pub(crate) fn fail<F>(isolation: Isolation, program: F) -> ExitCode
where
    F: AsyncFnOnce() -> Result<()> + Send + 'static,
{
    let program = async move || {
        let begun = Instant::now();
        let result = program().await;
        // Here and not at the end: with an abandoned thread, the program ends without coming back.
        print::came_down(begun.elapsed());
        result
    };
    run(isolation, program, |()| ExitCode::SUCCESS)
}

/// Counts words, with a progress bar where somebody sees it.
pub(crate) fn words(isolation: Isolation, options: words::Options, welcome: bool) -> ExitCode {
    let program = async move || {
        let bar = std::io::stderr().is_terminal().then(bar);
        words::run_with(options, |read| {
            if let Some(bar) = &bar {
                bar.set_position(read.bytes);
                bar.set_message(format!("{} files", read.files));
            }
        })
        .await
    };
    run(isolation, program, |report| {
        let code = print::words(&report, Some(isolation));
        match welcome && code == ExitCode::SUCCESS {
            true => print::welcome(isolation),
            false => code,
        }
    })
}

fn bar() -> ProgressBar {
    // Without an end: how much there is to read is known when it has been found, not before.
    let style = ProgressStyle::with_template("{spinner} {bytes} {msg} ({bytes_per_sec})");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
    // Also when it is dropped because of an interrupt.
    ProgressBar::no_length()
        .with_style(style)
        .with_finish(ProgressFinish::AndClear)
}
