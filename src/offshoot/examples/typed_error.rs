//! Errors: one of the program's own arrives as itself, any other with where it came from.
//!
//! ```text
//! cargo run -p offshoot --example typed_error
//! OFFSHOOT_ISOLATION=process cargo run -p offshoot --example typed_error
//! ```
//! Both print the same.

use offshoot::prelude::*;
use std::process::ExitCode;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Refused {
    TooMuch { limit: u64 },
    Closed,
}

async fn withdraw(amount: u64) -> Result<u64, Refused> {
    match amount {
        0 => Err(Refused::Closed),
        1..=100 => Ok(amount),
        _ => Err(Refused::TooMuch { limit: 100 }),
    }
}

async fn parse(text: String) -> Result<u64> {
    Ok(text.parse()?)
}

async fn root() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let bank = nursery.spawn("bank").await?;
        // The outer error is the runtime's, the inner one the function's.
        assert_eq!(bank.call(withdraw, 50).await?, Ok(50));
        match bank.call(withdraw, 500).await? {
            Err(Refused::TooMuch { limit }) => println!("too much, the limit is {limit}"),
            other => println!("{other:?}"),
        }
        println!("{:?}", bank.call(withdraw, 0).await?);
        // With `offshoot::Error` any error goes, by `?`: its type's name and its message arrive.
        if let Err(error) = bank.call(parse, "fifty".to_owned()).await? {
            println!("{}: {error}", error.type_name().unwrap_or("?"));
        }
        Ok(())
    })
    .await
}

fn main() -> ExitCode {
    offshoot::main(root)
}
