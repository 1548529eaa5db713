//! A task that takes too long: cancelled, it says goodbye, and nothing of it is left.
//!
//! ```text
//! cargo run -p offshoot --example cancel_on_timeout
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example cancel_on_timeout
//! ```
//! Both print the same.

use offshoot::prelude::*;
use std::process::ExitCode;
use std::time::Duration;

/// Searches for ever, and tells how far it came when it is cancelled.
async fn search(mut peer: Peer<(), u64>) -> Result<String> {
    peer.started(())?;
    for n in 0_u64.. {
        let step = async {
            if n < 3 {
                peer.send(n).await?;
            }
            offshoot::sleep(Duration::from_millis(1)).await
        };
        if step.await.is_err() {
            break;
        }
    }
    let by = offshoot::cancelled().await;
    // A goodbye that itself has to wait.
    offshoot::shield(Duration::from_secs(1), async || {
        offshoot::sleep(Duration::from_millis(5)).await
    })
    .await?;
    Ok(by.to_string())
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let worker = nursery.spawn("worker").await?;
        let (mut link, ()) = worker.open(search, ()).await?;
        let bound = Duration::from_millis(100);
        let found = offshoot::move_on_after(bound, async || {
            while let Some(n) = link.next().await? {
                println!("found {n}");
            }
            Ok(())
        })
        .await?;
        assert!(found.is_none());
        link.cancel().await?;
        println!("{}", link.result().await??);
        Ok(())
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
