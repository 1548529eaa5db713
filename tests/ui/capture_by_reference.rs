//! A closure that borrows what it captures.
use offshoot::prelude::*;

async fn calls(farm: &Portal, k: u64) -> Result<u64> {
    farm.call(|n: u64| n + k, 1).await
}

fn main() {}
