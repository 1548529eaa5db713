//! An isolate that opens files and forgets them.
//!
//! Shows what its end gives back: the descriptors of a process are gone with it, those of a thread
//! belong to the whole program and stay open until that ends.
//!
//! Run it: `offshoot run bad_leaks_fd`, also with `--isolation process`. Exit code 0.
#![forbid(unsafe_code)]

use offshoot::prelude::*;
use std::fs::File;

/// How many files it opens.
pub const FILES: u32 = 100;

/// What was open when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// How many descriptors the isolate has leaked.
    pub leaked: u32,
    /// How many of them are still open in this process after the isolate has ended.
    pub left: usize,
}

/// Starts it, lets it leak, and counts when it has ended.
///
/// # Errors
/// A file cannot be opened, or what stopped the start.
pub async fn run() -> Result<Leak> {
    let before = open_leaks()?;
    let leaked = offshoot::nursery(async |nursery| {
        let leaks = nursery.spawn("leaks_fd").await?;
        leaks.call(leak, FILES).await?
    })
    .await?;
    let left = open_leaks()?.saturating_sub(before);
    Ok(Leak { leaked, left })
}

fn leak(files: u32) -> Result<u32> {
    for _ in 0..files {
        std::mem::forget(File::open("/dev/null")?);
    }
    Ok(files)
}

/// How many descriptors of this process are open on what it leaks. Others come and go: the runtime
/// has some of its own while there are processes.
fn open_leaks() -> Result<usize> {
    let mut open = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        // One that was closed meanwhile is none.
        if let Ok(path) = std::fs::read_link(entry?.path())
            && path.as_os_str() == "/dev/null"
        {
            open += 1;
        }
    }
    Ok(open)
}
