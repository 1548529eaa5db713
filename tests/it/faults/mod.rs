//! Faults, by their numbers in docs/faults.md: each is made to happen, and what it costs is what that
//! table says. What is asserted elsewhere (process deaths in tests/process, bytes in the crate of the
//! wire, paths in the janitor) bears its number there.
//!
//! The oracle of the harness runs after each: no process, descriptor, thread or file is left.

mod links;
mod lives;
mod running;
mod spawning;
mod surroundings;

use offshoot::prelude::*;
use std::time::{Duration, Instant};

/// What a loaded machine may take for what should take a moment.
const SOON: Duration = Duration::from_millis(1_500);

fn double(n: u64) -> u64 {
    n * 2
}

/// Never answers.
async fn pends() {
    std::future::pending::<()>().await;
}

/// True for the bystander of a fault: it answers, and soon.
async fn serves<S: 'static>(portal: &Portal<S>) -> Result<()> {
    let began = Instant::now();
    assert_eq!(portal.call(double, 21).await?, 42);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    Ok(())
}
