//! What a panic of a thread isolate costs: the isolate, or, in a program that is built with `panic = "abort"`, all of it.
//!
//! `cargo run --example abort` says that the panic was caught. With `CARGO_PROFILE_DEV_PANIC=abort` the program ends by SIGABRT, and what it has
//! bound and forked goes with it all the same; `ci/faults` looks. Of a process isolate the message arrives in both.

use offshoot::prelude::*;
use std::path::PathBuf;

fn panics() {
    panic!("on purpose");
}

async fn binds(path: PathBuf) -> Result<()> {
    // Kept for as long as the process lives.
    std::mem::forget(offshoot::net::UnixListener::bind(&path).await?);
    Ok(())
}

fn main() -> Result<()> {
    let path = std::env::temp_dir().join(format!("offshoot-abort-{}", std::process::id()));
    offshoot::run(async move || {
        offshoot::nursery(async |nursery| {
            let process = nursery.spawn(Isolate::named("process").process()).await?;
            process.call(binds, path.clone()).await??;
            println!(
                "bound {} in process {}",
                path.display(),
                process.origin().pid
            );
            let told = offshoot::nursery(async |nursery| {
                let other = nursery.spawn(Isolate::named("other").process()).await?;
                other.call(panics, ()).await
            });
            println!(
                "told of a process: {}",
                told.await
                    .expect_err("it panics")
                    .report()
                    .replace('\n', " ")
            );
            let thread = nursery.spawn(Isolate::named("thread").thread()).await?;
            let error = thread.call(panics, ()).await.expect_err("it panics");
            println!("told: {error}");
            Ok(())
        })
        .await
        .or_else(|error: Error| match error.is_panic() {
            true => Ok(()),
            false => Err(error),
        })
    })
}
