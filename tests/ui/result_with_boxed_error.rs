//! An error that is of any type, and of none that can cross.
use offshoot::prelude::*;

type Parsed = std::result::Result<u64, Box<dyn std::error::Error>>;

async fn parses(text: String) -> Parsed {
    Ok(text.parse()?)
}

async fn calls(farm: &Portal) -> Result<Parsed> {
    farm.call(parses, "4".to_owned()).await
}

fn main() {}
