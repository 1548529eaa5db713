//! An isolate that ends its process in the middle of a call, by `std::process::exit`.
//!
//! Shows that an isolate which leaves without a word is a failure whatever its code is: as a
//! process, its caller and its nursery are told the code. A thread ends the whole program with it.
//!
//! Run it: `offshoot run bad_exits --isolation process`. Exit code 1. As a thread: exit code 3.
#![forbid(unsafe_code)]

use offshoot::prelude::*;

/// The code that it exits with.
pub const CODE: i32 = 3;

/// Starts it and calls it.
///
/// # Errors
/// Always, where it returns at all: how the isolate ended.
pub async fn run() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let exits = nursery.spawn("exits").await?;
        exits.call(exit, ()).await
    })
    .await
}

fn exit() {
    std::process::exit(CODE)
}
