//! A closure that captures a number: only its size tells, so only a build finds it.
use offshoot::prelude::*;

async fn calls(farm: &Portal, k: u64) -> Result<u64> {
    farm.call(move |n: u64| n + k, 1).await
}

fn main() {
    let _ = offshoot::run(async || {
        offshoot::nursery(async |nursery| {
            let farm = nursery.spawn("farm").await?;
            calls(&farm, 2).await
        })
        .await
    });
}
