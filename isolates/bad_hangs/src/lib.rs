//! An isolate that blocks for ever in code that is not async, so that it sees no cancellation.
//!
//! Shows the end of the ladder. Its caller loses patience after 100 ms, which cancels the isolate;
//! nothing comes of that, nor of the end of its grace; when the bound is over, a process is killed
//! and a thread, which nothing can kill, is abandoned and named in the report. The program ends
//! all the same.
//!
//! Run it: `offshoot run bad_hangs`, also with `--isolation process`. Exit code 1 within a second.
#![forbid(unsafe_code)]

use offshoot::prelude::*;
use std::time::Duration;

/// How long the caller waits for an answer.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// From the cancellation until futures are dropped. There is none here that could be.
pub const GRACE: Duration = Duration::from_millis(200);
/// From the cancellation until force is used.
pub const HARD_KILL: Duration = Duration::from_millis(600);

/// Starts it, calls it, and returns what became of both.
///
/// # Errors
/// Always: the timeout first, then how the isolate was ended.
pub async fn run() -> Result<()> {
    let spec = Isolate::named("hangs").grace(GRACE).hard_kill(HARD_KILL);
    offshoot::nursery(async |nursery| {
        let hangs = nursery.spawn(spec).await?;
        offshoot::timeout(PATIENCE, hangs.call(hang, ())).await?
    })
    .await
}

fn hang() {
    loop {
        // In a loop, because parking may end for no reason.
        std::thread::park();
    }
}
