//! A function that is opened and takes no peer.
use offshoot::prelude::*;

async fn double(n: u64) -> u64 {
    2 * n
}

async fn opens(farm: &Portal) -> Result<()> {
    let (_link, ()) = farm.open(double, 1).await?;
    Ok(())
}

fn main() {}
