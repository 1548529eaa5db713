//! A state that cannot be encoded.
use offshoot::prelude::*;

struct Counter(u64);

async fn starts() -> Result<()> {
    offshoot::nursery(async |nursery| {
        nursery.start("counter", Counter(1)).await?;
        Ok(())
    })
    .await
}

fn main() {}
