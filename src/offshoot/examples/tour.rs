//! A short tour: a tree with a thread, a process and a counter.
//!
//! ```text
//! cargo run -p offshoot --example tour
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example tour
//! ```
//! Both print the same.

use offshoot::prelude::*;
use std::process::ExitCode;

/// Any function of owned arguments can be called on an isolate.
async fn is_prime(n: u64) -> bool {
    n > 1 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

/// Any serde type can be an isolate's state, and its methods are the messages.
#[derive(Default, Serialize, Deserialize)]
struct Counter {
    total: u64,
}

impl Counter {
    async fn add(&mut self, by: u64) -> u64 {
        self.total += by;
        self.total
    }

    fn total(&self) -> u64 {
        self.total
    }
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        // An OS thread, or what OFFSHOOT_ISOLATION says.
        let farm = nursery.spawn("farm").await?;
        // A forked process.
        let vault = nursery.spawn(Isolate::named("vault").process()).await?;
        // To a thread the value is moved, to a process it is encoded.
        println!("7919 is prime: {}", farm.call(is_prime, 7_919).await?);
        println!("7917 is prime: {}", vault.call(is_prime, 7_917).await?);

        // One message at a time works on the state.
        let counter = nursery.start("counter", Counter::default()).await?;
        counter.ask(Counter::add, 5).await?;
        counter.tell(Counter::add, 5).await?;
        println!(
            "the counter says {}",
            counter.ask(Counter::total, ()).await?
        );
        Ok(())
    })
    // Returns when every isolate above has ended.
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
