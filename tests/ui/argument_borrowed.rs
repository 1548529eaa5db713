//! A function that borrows its argument. The guide has this message, word by word, with what to do.
use offshoot::prelude::*;

async fn length(text: &str) -> usize {
    text.len()
}

async fn calls(farm: &Portal) -> Result<usize> {
    farm.call(length, "four").await
}

fn main() {}
