//! An isolate that panics in the middle of a call, beside one that does nothing wrong.
//!
//! Shows that a panic ends the isolate and nothing else: the caller gets it as an error with its
//! message and place, the nursery cancels the healthy sibling and reports the panic once, as the
//! cause. A thread and a process look the same from outside.
//!
//! Run it: `offshoot run bad_panics`, also with `--isolation process`. Exit code 1.
#![forbid(unsafe_code)]

use offshoot::prelude::*;

/// Starts both, calls both, and returns the panic as the error that it is.
///
/// # Errors
/// Always: the panic.
pub async fn run() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let steady = nursery.spawn("steady").await?;
        let panics = nursery.spawn("panics").await?;
        let half = steady.call(halve, 42).await?;
        panics.call(divide, (half, 0)).await?;
        Ok(())
    })
    .await
}

fn halve(n: u32) -> u32 {
    n / 2
}

fn divide(n: u32, by: u32) -> u32 {
    assert!(by != 0, "asked to divide {n} by zero");
    n / by
}
