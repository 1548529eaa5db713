//! A file mapped into memory, shared with other processes, behind accessors that are sound whoever else writes.
//!
//! No reference into the mapping is ever given out: another process may change any byte at any time, which a Rust reference forbids.
//! Every access is atomic, so that a race gives an odd value and never undefined behaviour.
//!
//! What it cannot guard against is a file that is made *shorter* while mapped: the next access is a SIGBUS. Map only what nobody else may
//! truncate, or nobody who is not trusted with this process.

use nix::sys::mman::{MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// A shared mapping of the first bytes of a file, for reading and writing, unmapped on drop.
#[derive(Debug)]
pub struct SharedMap {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and this is the only owner that unmaps it.
unsafe impl Send for SharedMap {}
// SAFETY: every access through `&self` is atomic.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `len` bytes of `file`, which must be open for reading and writing.
    ///
    /// # Errors
    /// `InvalidInput` when `len` is zero or the file is shorter; `EACCES`, `ENODEV`, `ENOMEM` (also at the limit of mappings).
    pub fn new(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let found = crate::fsx::metadata(file)?;
        let length = NonZeroUsize::new(len).filter(|_| found.size >= len as u64);
        let length = length.ok_or_else(|| {
            let message = format!("a file of {} bytes cannot be mapped for {len}", found.size);
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without MAP_FIXED and an address, the kernel chooses a place where nothing is mapped.
        let base = unsafe {
            nix::sys::mman::mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0)
        }?;
        Ok(Self {
            base: base.cast(),
            len,
        })
    }

    /// How many bytes are mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped, which cannot be.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads the aligned word at byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 4, or beyond the end.
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.word_u32(offset).load(order)
    }

    /// Writes the aligned word at byte `offset`. With [`Ordering::Release`], whoever loads it with `Acquire`, and whoever reads the file after
    /// this process was killed, sees all that was written before.
    ///
    /// # Panics
    /// As [`load_u32`](Self::load_u32).
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.word_u32(offset).store(value, order);
    }

    /// Reads the aligned double word at byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 8, or beyond the end.
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        self.word_u64(offset).load(order)
    }

    /// Writes the aligned double word at byte `offset`.
    ///
    /// # Panics
    /// As [`load_u64`](Self::load_u64).
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.word_u64(offset).store(value, order);
    }

    /// Replaces the aligned double word at byte `offset` if it is `old`; whether it was.
    ///
    /// # Panics
    /// As [`load_u64`](Self::load_u64).
    pub fn replace_u64(&self, offset: usize, old: u64, new: u64, order: Ordering) -> bool {
        self.word_u64(offset)
            .compare_exchange(old, new, order, Ordering::Relaxed)
            .is_ok()
    }

    /// Writes bytes from `offset` on, each by itself: a reader in another process may see some of them and not yet others.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (place, byte) in self.bytes(offset, bytes.len()).zip(bytes) {
            place.store(*byte, Ordering::Relaxed);
        }
    }

    /// Reads bytes from `offset` on, each by itself.
    ///
    /// # Panics
    /// When that is beyond the end.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        for (place, byte) in self.bytes(offset, bytes.len()).zip(bytes) {
            *byte = place.load(Ordering::Relaxed);
        }
    }

    fn bytes(&self, offset: usize, count: usize) -> impl Iterator<Item = &AtomicU8> {
        self.check(offset, count, 1);
        (offset..offset + count).map(|at| {
            // SAFETY: `at` is within the mapping (checked above), which lives as long as `self`; an AtomicU8 has no alignment; all access
            // to the mapping is atomic.
            unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) }
        })
    }

    fn word_u32(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4, 4);
        // SAFETY: the four bytes are within the mapping, which lives as long as `self` and starts at a page, so that a multiple of 4 is aligned;
        // all access to the mapping is atomic.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn word_u64(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8, 8);
        // SAFETY: as in `word_u32`, with eight bytes and a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn check(&self, offset: usize, count: usize, alignment: usize) {
        let fits = offset.checked_add(count).is_some_and(|end| end <= self.len);
        assert!(
            fits,
            "{count} bytes at {offset} are beyond a mapping of {}",
            self.len
        );
        assert!(
            offset.is_multiple_of(alignment),
            "{offset} is not a multiple of {alignment}"
        );
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: base and length are those of one mapping that this value alone owns; no reference into it can outlive `self`.
        let result = unsafe { nix::sys::mman::munmap(self.base.cast::<c_void>(), self.len) };
        debug_assert!(
            result.is_ok(),
            "munmap of an own mapping fails only for wrong arguments"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::panic::catch_unwind;

    fn mapped(len: u64) -> (std::fs::File, SharedMap) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let map = SharedMap::new(file.as_fd(), len as usize).unwrap();
        (file, map)
    }

    #[test]
    fn what_is_written_is_in_the_file_and_in_other_mappings() {
        let (file, map) = mapped(4096);
        let other = SharedMap::new(file.as_fd(), 4096).unwrap();
        map.write(1, b"hello");
        map.store_u32(8, 0xdead_beef, Ordering::Release);
        map.store_u64(16, 7, Ordering::Release);
        assert!(!map.replace_u64(16, 8, 9, Ordering::AcqRel));
        assert!(map.replace_u64(16, 7, u64::MAX - 1, Ordering::AcqRel));
        let mut bytes = [0; 5];
        other.read(1, &mut bytes);
        assert_eq!(&bytes, b"hello");
        assert_eq!(other.load_u32(8, Ordering::Acquire), 0xdead_beef);
        assert_eq!(other.load_u64(16, Ordering::Acquire), u64::MAX - 1);
        drop((map, other));
        let mut bytes = [0; 12];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert_eq!(&bytes[1..6], b"hello");
        assert_eq!(bytes[8..], 0xdead_beef_u32.to_ne_bytes());
    }

    #[test]
    fn nothing_beyond_the_end_or_askew_is_touched() {
        let (_file, map) = mapped(4096);
        map.write(4096, b"");
        map.store_u64(4088, 1, Ordering::Relaxed);
        let attempts: [fn(&SharedMap); 8] = [
            |map| map.write(4095, b"xy"),
            |map| map.write(usize::MAX, b"x"),
            |map| map.read(4090, &mut [0; 7]),
            |map| map.store_u32(4096, 0, Ordering::Relaxed),
            |map| map.store_u32(2, 0, Ordering::Relaxed),
            |map| assert_eq!(map.load_u32(usize::MAX - 3, Ordering::Relaxed), 0),
            |map| assert_eq!(map.load_u64(4092, Ordering::Relaxed), 0),
            |map| map.store_u64(4, 0, Ordering::Relaxed),
        ];
        for (index, attempt) in attempts.into_iter().enumerate() {
            let result = catch_unwind(std::panic::AssertUnwindSafe(|| attempt(&map)));
            assert!(result.is_err(), "attempt {index} was let through");
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let refused = SharedMap::new(file.as_fd(), 101).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            refused.to_string(),
            "a file of 100 bytes cannot be mapped for 101"
        );
        assert!(SharedMap::new(file.as_fd(), 0).is_err());
        let map = SharedMap::new(file.as_fd(), 100).unwrap();
        assert_eq!((map.len(), map.is_empty()), (100, false));
    }

    #[test]
    fn the_mapping_goes_with_its_owner() {
        let count = || {
            let maps = crate::procfs::text("/proc/self/maps").unwrap();
            maps.lines()
                .filter(|line| line.contains("offshoot-map-drop"))
                .count()
        };
        let dir = tempfile::Builder::new()
            .prefix("offshoot-map-drop")
            .tempdir()
            .unwrap();
        let file = std::fs::File::create_new(dir.path().join("f")).unwrap();
        drop(file);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.path().join("f"))
            .unwrap();
        file.set_len(4096).unwrap();
        let map = SharedMap::new(file.as_fd(), 4096).unwrap();
        assert_eq!(count(), 1);
        drop(map);
        assert_eq!(count(), 0);
    }
}
