//! A stream mapped over a pool of isolates, its results in order.
//!
//! ```text
//! cargo run -p offshoot --example pool
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example pool
//! ```
//! Both print the same.

use offshoot::Pool;
use offshoot::prelude::*;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll};

/// The largest factor of `n` that is below it.
fn largest_factor(n: u64) -> u64 {
    (1..n)
        .rev()
        .find(|factor| n.is_multiple_of(*factor))
        .unwrap_or(1)
}

/// Numbers as a stream; any stream will do.
struct Numbers(std::ops::Range<u64>);

impl futures_core::Stream for Numbers {
    type Item = u64;
    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u64>> {
        Poll::Ready(self.0.next())
    }
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let names = ["a", "b", "c"];
        let pool = Pool::new(offshoot::gather(names.map(|name| nursery.spawn(name))).await?);
        let mut factors = pool.map(largest_factor, Numbers(10_000..10_008));
        while let Some(factor) = factors.next().await? {
            println!("{factor}");
        }
        Ok(())
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
