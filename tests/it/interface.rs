//! The interface of the design, as it stands there.
use offshoot::prelude::*;

async fn is_prime(n: u64) -> bool {
    n > 1 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

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
        let farm = nursery.spawn("farm").await?;
        let vault = nursery.spawn(Isolate::named("vault").process()).await?;
        assert!(farm.call(is_prime, 7_919).await?);
        assert!(vault.call(is_prime, 7_919).await?);

        let counter = nursery.start("counter", Counter::default()).await?;
        counter.ask(Counter::add, 5).await?;
        counter.tell(Counter::add, 5).await?;
        assert_eq!(counter.ask(Counter::total, ()).await?, 10);
        Ok(())
    })
    .await
}

#[test]
fn the_design_runs_as_it_stands() {
    for isolation in [Isolation::Thread, Isolation::Serde, Isolation::Process] {
        offshoot::Builder::new()
            .isolation(isolation)
            .run(root)
            .unwrap();
    }
}
