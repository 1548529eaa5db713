//! One ticker, many subscribers: a dialogue each, and none of them holds up another.
//!
//! ```text
//! cargo run -p offshoot --example ticker
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example ticker
//! ```
//! Both print the same.

use offshoot::Broadcast;
use offshoot::prelude::*;
use std::cell::OnceCell;
use std::process::ExitCode;
use std::time::Duration;

thread_local! {
    /// An isolate is a thread, so this is the ticker's own.
    static PRICES: OnceCell<Broadcast<u64>> = const { OnceCell::new() };
}

/// Gives on the prices to one subscriber, after their number so far.
async fn subscribe(mut peer: Peer<(), u64, usize>) -> Result<()> {
    let (mut prices, subscribers) = PRICES.with(|prices| {
        let prices = prices.get_or_init(|| Broadcast::new(16));
        (prices.subscribe(), prices.subscribers())
    });
    peer.started(subscribers)?;
    while let Some(price) = prices.next().await? {
        peer.send(price).await?;
    }
    Ok(())
}

/// Ticks so many times.
async fn run(ticks: u64) -> Result<()> {
    for tick in 0..ticks {
        PRICES.with(|prices| prices.get().map(|prices| prices.send(100 + tick)));
        offshoot::sleep(Duration::from_millis(5)).await?;
    }
    Ok(())
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let ticker = nursery.spawn("ticker").await?;
        let mut links = Vec::new();
        for n in 1..=5 {
            let (link, subscribers) = ticker.open(subscribe, ()).await?;
            assert_eq!(subscribers, n);
            links.push(link);
        }
        let ticking = nursery.task(ticker.call(run, 3));
        for (n, mut link) in links.into_iter().enumerate() {
            let mut prices = Vec::new();
            while prices.len() < 3
                && let Some(price) = link.next().await?
            {
                prices.push(price);
            }
            println!("subscriber {n}: {prices:?}");
            // Dropping the link ends the subscription.
        }
        ticking.await??
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
