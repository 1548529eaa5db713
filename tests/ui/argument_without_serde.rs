//! An argument, and a result, that cannot be encoded.
use offshoot::prelude::*;

struct Order(u64);

async fn place(order: Order) -> u64 {
    order.0
}

async fn newest() -> Order {
    Order(1)
}

async fn calls(farm: &Portal) -> Result<()> {
    farm.call(place, Order(1)).await?;
    farm.call(newest, ()).await?;
    Ok(())
}

fn main() {}
