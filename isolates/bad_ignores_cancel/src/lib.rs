//! An isolate that swallows its cancellation and goes on, in async code.
//!
//! Shows the middle of the ladder: at the end of the grace, its future is dropped where it waits,
//! its destructors run, and it ends as cancelled. No force is needed, for a thread as for a process.
//!
//! Run it: `offshoot run bad_ignores_cancel`, also with `--isolation process`. Exit code 0.
#![forbid(unsafe_code)]

use offshoot::prelude::*;
use std::time::{Duration, Instant};

/// How long the caller waits for an answer.
pub const PATIENCE: Duration = Duration::from_millis(50);
/// From the cancellation until futures are dropped.
pub const GRACE: Duration = Duration::from_millis(200);
/// From the cancellation until force would be used.
pub const HARD_KILL: Duration = Duration::from_millis(600);

/// How it came down.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// The time from the request to cancel until its end.
    pub after: Duration,
}

/// Starts it, calls it, cancels it, and waits for its end.
///
/// # Errors
/// What stopped the start.
pub async fn run() -> Result<Outcome> {
    let spec = Isolate::named("ignores_cancel")
        .grace(GRACE)
        .hard_kill(HARD_KILL);
    offshoot::nursery(async |nursery| {
        let portal = nursery.spawn(spec).await?;
        let mut call = std::pin::pin!(portal.call(ignore_cancel, ()));
        match offshoot::timeout(PATIENCE, &mut call).await {
            Err(late) if late.is_timeout() => {}
            Err(other) => return Err(other),
            Ok(answer) => answer?,
        }
        // Calls begin in their order: when this one is answered, that one has begun.
        portal.call(greet, ()).await?;
        let asked = Instant::now();
        portal.cancel().await;
        let exit = portal.ended().await;
        let after = asked.elapsed();
        Ok(Outcome { exit, after })
    })
    .await
}

async fn ignore_cancel() {
    // The cancellation arrives here, as an error, and is thrown away …
    let _ = offshoot::sleep(Duration::from_secs(3_600)).await;
    // … and this waits for something that never comes, at no checkpoint.
    std::future::pending::<()>().await
}

fn greet() {}
