//! Constants as offsets into the executable, so that they can be named to another process of the same program.
//!
//! An address differs from one `exec` to the next (ASLR); the offset from where the image was loaded does not, as long as it is the same
//! file, which [`build_id`] tells. Only data that cannot be written at run time counts: constants, and the constants with addresses in
//! them that the loader fixes and then write-protects (RELRO). The last is where a `static` with a function pointer lies. Code does not
//! count: the bytes of an instruction could be taken for a constant.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;

/// The offset of `ptr` from the base of the main executable, if it lies in a part of it that is never written or executed. `None` for everything else:
/// code, the heap, a writable `static`, a shared library.
pub fn offset_of(ptr: *const u8) -> Option<u64> {
    let image = image();
    let address = ptr.addr();
    image
        .constant
        .iter()
        .any(|part| part.contains(&address))
        .then(|| (address - image.base) as u64)
}

/// The address at `offset`, if `size` bytes from there on lie wholly in one part of the main executable that is never written or executed, and it is a
/// multiple of `align`. What is there is not checked: the offset may have come from anywhere.
///
/// # Panics
/// If `align` is no power of two.
pub fn address_of(offset: u64, size: usize, align: usize) -> Option<*const u8> {
    assert!(align.is_power_of_two(), "an alignment is a power of two");
    let image = image();
    let start = image.base.checked_add(usize::try_from(offset).ok()?)?;
    let end = start.checked_add(size)?;
    let inside = image
        .constant
        .iter()
        .any(|part| part.contains(&start) && end <= part.end);
    (inside && start % align == 0).then(|| std::ptr::with_exposed_provenance(start))
}

/// What tells this program's file from every other: the linker's build id, or where there is none a digest of the loaded layout and of the file's device, inode, size
/// and time of change.
pub fn build_id() -> &'static [u8] {
    &image().build_id
}

struct Image {
    /// What the loader added to every address of the file. Zero for a program that is not position-independent.
    base: usize,
    /// The mapped ranges that are readable, and neither writable nor executable.
    constant: Vec<Range<usize>>,
    build_id: Vec<u8>,
}

#[cfg(target_pointer_width = "64")]
type Header = libc::Elf64_Phdr;
#[cfg(target_pointer_width = "32")]
type Header = libc::Elf32_Phdr;

/// Read once: the main executable's mapping does not change.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut found = None;
        // SAFETY: the callback has the right type, is called before this returns, and gets the pointer to `found`, which is live.
        unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
        found.expect("a running program has an image")
    })
}

/// Reads the first object of the list, which is the main executable by the manual, and ends the iteration.
unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> i32 {
    // SAFETY: the loader passes a valid structure, whose program headers stay mapped as long as the object, that is, for ever here.
    let (base, headers) = unsafe {
        let info = &*info;
        (
            info.dlpi_addr as usize,
            std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize),
        )
    };
    // SAFETY: `image` passed the address of an `Option<Image>`, and nothing else refers to it meanwhile.
    unsafe { *found.cast::<Option<Image>>() = Some(read(base, headers)) };
    1
}

fn read(base: usize, headers: &[Header]) -> Image {
    let constant = headers
        .iter()
        .filter_map(|header| constant_part(base, header))
        .collect();
    let build_id = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_NOTE)
        .find_map(|header| {
            let start = std::ptr::with_exposed_provenance(base + header.p_vaddr as usize);
            // SAFETY: a note segment of the main executable is part of a loaded one, readable, and stays mapped.
            find_build_id(unsafe { std::slice::from_raw_parts(start, header.p_memsz as usize) })
        })
        .unwrap_or_else(|| digest(headers));
    Image {
        base,
        constant,
        build_id,
    }
}

fn constant_part(base: usize, header: &Header) -> Option<Range<usize>> {
    let start = base + header.p_vaddr as usize;
    let end = start + header.p_memsz as usize;
    match header.p_type {
        libc::PT_LOAD if header.p_flags & (libc::PF_R | libc::PF_W | libc::PF_X) == libc::PF_R => {
            Some(start..end)
        }
        // The loader protects whole pages only, and rounds the end down.
        libc::PT_GNU_RELRO => Some(start..end & !(page_size() - 1)),
        _ => None,
    }
}

fn page_size() -> usize {
    // SAFETY: takes no pointer.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// The description of the note `NT_GNU_BUILD_ID` of owner "GNU", in a segment of notes.
fn find_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word = |bytes: &[u8], index: usize| {
        Some(u32::from_ne_bytes(
            bytes.get(index * 4..index * 4 + 4)?.try_into().ok()?,
        ))
    };
    loop {
        let (name, description, kind) = (
            word(notes, 0)? as usize,
            word(notes, 1)? as usize,
            word(notes, 2)?,
        );
        let description_at = 12 + name.next_multiple_of(4);
        let bytes = notes.get(description_at..description_at + description)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" && !bytes.is_empty() {
            return Some(bytes.to_vec());
        }
        notes = notes.get(description_at + description.next_multiple_of(4)..)?;
    }
}

/// For a program that was linked without a build id. Two builds can have the same headers, hence the file's own marks, which are the same for
/// every process of one file, also after it was replaced on disk.
fn digest(headers: &[Header]) -> Vec<u8> {
    use std::os::unix::fs::MetadataExt;
    let mut hash = Fnv::new();
    for header in headers {
        for value in [
            header.p_type as usize,
            header.p_flags as usize,
            header.p_offset as usize,
            header.p_vaddr as usize,
            header.p_filesz as usize,
            header.p_memsz as usize,
        ] {
            hash.add(value as u64);
        }
    }
    if let Ok(file) = std::fs::metadata("/proc/self/exe") {
        for value in [
            file.dev(),
            file.ino(),
            file.size(),
            file.mtime() as u64,
            file.mtime_nsec() as u64,
        ] {
            hash.add(value);
        }
    }
    hash.0.to_ne_bytes().to_vec()
}

/// FNV-1a: the standard library promises no hash that is the same from one process to the next.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, value: u64) {
        for byte in value.to_ne_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// With an address in it, so that the loader writes it once: RELRO.
    struct Entry {
        magic: u64,
        function: fn(u64) -> u64,
    }

    static ENTRY: Entry = Entry {
        magic: 0x5eed,
        function: double,
    };
    static CONSTANT: u64 = 77;
    static WRITABLE: AtomicU64 = AtomicU64::new(1);

    fn double(value: u64) -> u64 {
        value * 2
    }

    fn round_trip<T>(value: &'static T) -> Option<&'static T> {
        let offset = offset_of(std::ptr::from_ref(value).cast())?;
        let address = address_of(offset, size_of::<T>(), align_of::<T>())?;
        assert_eq!(address.addr(), std::ptr::from_ref(value).addr());
        // SAFETY: it is the address that went in.
        Some(unsafe { &*address.cast() })
    }

    #[test]
    fn constants_have_offsets() {
        assert_eq!(round_trip(&CONSTANT), Some(&77));
        let entry = round_trip(&ENTRY).expect("a constant with an address in it");
        assert_eq!((entry.magic, (entry.function)(21)), (0x5eed, 42));
    }

    #[test]
    fn code_has_none() {
        let code = double as *const u8;
        assert_eq!(offset_of(code), None);
        let offset = (code.addr() - image().base) as u64;
        assert_eq!(address_of(offset, 1, 1), None);
    }

    #[test]
    fn what_can_be_written_has_none() {
        WRITABLE.store(2, Ordering::Relaxed);
        assert_eq!(offset_of(WRITABLE.as_ptr().cast()), None);
        let (local, heap) = (1_u8, Box::new(1_u8));
        assert_eq!(offset_of(&local), None);
        assert_eq!(offset_of(&*heap), None);
        assert_eq!(offset_of(std::ptr::null()), None);
        // Not of the main executable, in a build that is linked dynamically.
        let library = libc::getpid as *const u8;
        let own = image()
            .constant
            .iter()
            .any(|part| part.contains(&library.addr()));
        assert_eq!(offset_of(library).is_some(), own);
    }

    #[test]
    fn hostile_offsets_give_nothing() {
        let image = image();
        for part in &image.constant {
            let start = (part.start - image.base) as u64;
            let length = part.len();
            assert!(address_of(start, length, 1).is_some());
            assert!(address_of(start, 0, 1).is_some());
            // One byte beyond the part, unless another begins there; but no object lies across two.
            assert_eq!(address_of(start, length + 1, 1), None);
            assert_eq!(address_of(start, usize::MAX, 1), None);
        }
        assert_eq!(address_of(u64::MAX, 1, 1), None);
        assert_eq!(address_of(u64::MAX - 7, 8, 1), None);
        let odd = offset_of(std::ptr::from_ref(&CONSTANT).cast()).unwrap() + 1;
        assert!(address_of(odd, 1, 1).is_some());
        assert_eq!(address_of(odd, 1, 2), None);
        let writable = (WRITABLE.as_ptr().addr() - image.base) as u64;
        assert_eq!(address_of(writable, 1, 1), None);
    }

    /// Checked against what the kernel says, page by page.
    #[test]
    fn constant_parts_are_only_readable_in_fact() {
        let maps = crate::procfs::text("/proc/self/maps").unwrap();
        let mut checked = 0;
        for line in maps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (range, access) = (fields.next().unwrap(), fields.next().unwrap());
            let (start, end) = range.split_once('-').unwrap();
            let parse = |text| usize::from_str_radix(text, 16).unwrap();
            let (start, end) = (parse(start), parse(end));
            for part in &image().constant {
                if part.start < end && start < part.end {
                    assert!(access.starts_with("r--"), "{part:x?} overlaps {line}");
                    checked += 1;
                }
            }
        }
        assert!(checked >= image().constant.len());
    }

    #[test]
    fn reads_notes_and_survives_bad_ones() {
        let note = |name: &[u8], kind: u32, description: &[u8]| {
            let mut bytes = Vec::new();
            for word in [name.len() as u32, description.len() as u32, kind] {
                bytes.extend(word.to_ne_bytes());
            }
            for part in [name, description] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let other = note(b"Linux\0", 3, &[1; 6]);
        let abi = note(b"GNU\0", 1, &[2; 16]);
        let id = note(b"GNU\0", 3, &[9; 20]);
        assert_eq!(
            find_build_id(&[&other[..], &abi, &id].concat()),
            Some(vec![9; 20])
        );
        assert_eq!(find_build_id(&[&other[..], &abi].concat()), None);
        assert_eq!(find_build_id(&[]), None);
        for cut in 0..id.len() - 1 {
            assert_eq!(find_build_id(&id[..cut]), None, "cut to {cut}");
        }
        assert_eq!(find_build_id(&[0xff; 64]), None);
    }

    #[test]
    fn without_a_build_id_the_layout_and_the_file_count() {
        assert!(build_id().len() >= 8);
        // SAFETY: an all-zero program header is a valid value of that plain C structure.
        let mut header: Header = unsafe { std::mem::zeroed() };
        let first = digest(std::slice::from_ref(&header));
        assert_eq!(first, digest(std::slice::from_ref(&header)));
        header.p_memsz = 1;
        assert_ne!(first, digest(std::slice::from_ref(&header)));
    }
}
