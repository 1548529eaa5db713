//! A pipeline of isolates: each opens the next, and gives on what it gets from there.
//!
//! ```text
//! cargo run -p offshoot --example pipeline
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example pipeline
//! ```
//! Both print the same.

use offshoot::prelude::*;
use std::process::ExitCode;

/// The source, at the far end.
async fn source(mut peer: Peer<(), u64>, count: u64) -> Result<()> {
    peer.started(())?;
    for n in 1..=count {
        peer.send(n).await?;
    }
    Ok(())
}

/// A stage that multiplies what comes from below, so many stages deep. A slow reader at the top slows all of them.
async fn stage(mut peer: Peer<(), u64>, below: u32, count: u64) -> Result<()> {
    offshoot::nursery(async |nursery| {
        let next = nursery.spawn(format!("stage-{below}")).await?;
        let mut link = match below {
            0 => next.open(source, count).await?.0,
            _ => next.open(stage, (below - 1, count)).await?.0,
        };
        peer.started(())?;
        while let Some(n) = link.next().await? {
            peer.send(n * 10).await?;
        }
        link.result().await?
    })
    .await
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let first = nursery.spawn("first").await?;
        let (mut link, ()) = first.open(stage, (2, 1_000)).await?;
        let (mut count, mut sum) = (0, 0);
        while let Some(n) = link.next().await? {
            (count, sum) = (count + 1, sum + n);
        }
        println!("{count} items, {sum} in all");
        link.result().await?
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
