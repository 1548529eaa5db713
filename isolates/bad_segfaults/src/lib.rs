//! An isolate that reads memory that is not there.
//!
//! Shows what a process of its own is for: as a process, it ends with `killed by SIGSEGV`, which
//! its caller and its nursery get as an error. A thread takes the whole program down with it, as a
//! fault in any thread does; nothing in the same process could prevent that.
//!
//! Run it: `offshoot run bad_segfaults --isolation process`. Exit code 1. As a thread: SIGSEGV.

use offshoot::prelude::*;

/// Starts it and calls it.
///
/// # Errors
/// Always, where it returns at all: how the isolate ended.
pub async fn run() -> Result<()> {
    offshoot::nursery(async |nursery| {
        let segfaults = nursery.spawn("segfaults").await?;
        segfaults.call(segfault, ()).await?;
        Ok(())
    })
    .await
}

fn segfault() -> u8 {
    read_unmapped()
}

/// Reads an address of the first page, which no process can map.
///
/// JUSTIFICATION: `raise(SIGSEGV)` would end the process too, but by another way: this is to be
/// the real fault, as a wrong pointer in a C library makes it.
fn read_unmapped() -> u8 {
    let address = std::ptr::without_provenance::<u8>(64);
    // SAFETY: The pointer is not null and is aligned for a byte. It lies outside of every Rust
    // allocation: the kernel maps nothing below `vm.mmap_min_addr` unless it was configured to. A
    // volatile read of such an address is not undefined but whatever the target makes of it, which
    // is a fault that ends the process.
    unsafe { address.read_volatile() }
}
