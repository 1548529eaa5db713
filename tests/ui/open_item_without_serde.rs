//! An item of a dialogue that cannot be encoded.
use offshoot::prelude::*;

struct Tick(u64);

async fn ticker(mut peer: Peer<(), Tick>) -> Result<()> {
    peer.started(())?;
    peer.send(Tick(1)).await
}

fn main() {}
