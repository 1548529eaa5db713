//! A handle to a task that outlives the nursery.
use offshoot::prelude::*;

async fn opens() -> Result<()> {
    let mut kept = None;
    offshoot::nursery(async |nursery| {
        kept = Some(nursery.task(async { 1 }));
        Ok(())
    })
    .await?;
    drop(kept);
    Ok(())
}

fn main() {}
