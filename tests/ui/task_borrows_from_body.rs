//! A task that borrows a local of the nursery's own body, which is dropped before it.
use offshoot::prelude::*;

async fn opens() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let words = vec!["one".to_string()];
        let count = nursery.task(async { words.len() });
        assert_eq!(count.await?, 1);
        Ok(())
    })
    .await
}

fn main() {}
