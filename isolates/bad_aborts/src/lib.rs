//! An isolate that aborts, as a failed assertion in a C library or a panic in a destructor does.
//!
//! Shows what a process of its own is for: as a process, it ends with `killed by SIGABRT`, which
//! its caller and its nursery get as an error. A thread takes the whole program down with it.
//!
//! Run it: `offshoot run bad_aborts --isolation process`. Exit code 1. As a thread: SIGABRT.
#![forbid(unsafe_code)]

use offshoot::prelude::*;

/// Starts it and calls it.
///
/// # Errors
/// Always, where it returns at all: how the isolate ended.
pub async fn run() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let aborts = nursery.spawn("aborts").await?;
        aborts.call(abort, ()).await
    })
    .await
}

fn abort() {
    std::process::abort()
}
