//! Seven arguments.
use offshoot::prelude::*;

async fn sum(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8) -> u8 {
    a + b + c + d + e + f + g
}

async fn calls(farm: &Portal) -> Result<()> {
    farm.call(sum, (1, 2, 3, 4, 5, 6, 7)).await?;
    Ok(())
}

fn main() {}
