//! The nursery itself, kept beyond its scope.
use offshoot::prelude::*;

async fn opens() -> Result<()> {
    let mut kept = None;
    offshoot::nursery(async |nursery| {
        kept = Some(nursery);
        Ok(())
    })
    .await?;
    let _ = kept.unwrap().task(async {});
    Ok(())
}

fn main() {}
