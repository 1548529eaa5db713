//! A closure that owns what it captures.
use offshoot::prelude::*;

async fn calls(farm: &Portal, name: String) -> Result<String> {
    farm.call(async move |n: u64| format!("{name} {n}"), 1).await
}

fn main() {}
