//! Files of `/proc`, which are bytes: a name in them may be cut in the middle of a letter, or be anything else that a program gave itself.
//!
//! `std::fs::read_to_string` calls such a file invalid, and with it everything else that it says.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// A file as text; what is no UTF-8 in it is replaced, and the rest is as it was.
///
/// # Errors
/// As of reading a file.
pub fn text(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// The path of the file of which this process has mapped something at this address, as the kernel knows it; ` (deleted)` behind it if it is gone.
///
/// # Errors
/// When /proc is not mounted.
pub fn mapped_file(address: usize) -> io::Result<Option<OsString>> {
    let maps = fs::read("/proc/self/maps")?;
    let file = maps.split(|&byte| byte == b'\n').find_map(|line| {
        // Range, rights, offset, device, inode, and the path behind blanks, which may have some itself.
        let (range, rest) = line.split_at_checked(line.iter().position(|&byte| byte == b' ')?)?;
        let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        let is_there = (bound(start)?..bound(end)?).contains(&address);
        let path = rest.iter().position(|&byte| byte == b'/')?;
        is_there.then(|| OsString::from_vec(rest[path..].to_vec()))
    });
    Ok(file)
}

/// How much there is of what a process executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// There is no such process.
    Gone,
    /// None any more, or never: a zombie, whose children have another parent already, or a thread of the kernel.
    None,
    /// None any more: it is ending, and its children may still be its own.
    Ending,
    /// The process is in `execve`: the old image is gone, and of the new one neither arguments nor environment are there yet.
    Changing,
    /// All of it, with an environment.
    Whole,
    /// All of it, and its environment is empty.
    WithoutEnvironment,
}

/// Whether an open of a process's `environ` or `maps` has failed because it is ending, and has no memory any more. Older kernels open it, and
/// it is empty.
pub fn is_without_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH)
}

/// How much there is of what a process executes now.
pub fn image(pid: i32) -> Image {
    /// `PF_KTHREAD` and `PF_EXITING` among the kernel's flags of a task.
    const KERNEL: u64 = 0x0020_0000;
    const EXITING: u64 = 0x4;
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
        return Image::Gone;
    };
    let number = |field| stat_field(&stat, field).and_then(|text| text.parse::<u64>().ok());
    let is_dead = matches!(stat_field(&stat, 3), Some("Z" | "X" | "x") | None);
    let flags = number(9).unwrap_or(0);
    // The first thread may have ended before the others, whose children are theirs.
    if is_dead && number(20).is_some_and(|threads| threads > 1) {
        return Image::Ending;
    }
    if is_dead || flags & KERNEL != 0 {
        return Image::None;
    }
    if flags & EXITING != 0 {
        return Image::Ending;
    }
    // Where the environment begins and ends. While execve measures it, it looks empty; the beginning of the code is set after that.
    match (number(26), number(50), number(51)) {
        (Some(0), ..) | (.., Some(0)) => Image::Changing,
        (_, Some(start), Some(end)) if start == end => Image::WithoutEnvironment,
        _ => Image::Whole,
    }
}

/// A field of /proc/PID/stat by its number in proc(5), for the fields behind the name.
pub(crate) fn stat_field(stat: &[u8], number: usize) -> Option<&str> {
    // The name is in parentheses and may hold anything, parentheses and spaces included; the last one closes it.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_ascii_whitespace()
        .nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_fields_of_stat() {
        let stat = b"12 (a) R 7 (b) S 34 x\xc3) S 56 78";
        assert_eq!(stat_field(stat, 3), Some("S"));
        assert_eq!(stat_field(stat, 4), Some("56"));
        assert_eq!(stat_field(stat, 9), None);
        assert_eq!(stat_field(b"", 4), None);
    }

    #[test]
    fn a_name_that_is_cut_in_a_letter_hides_nothing() {
        // 15 bytes of a name are kept: the last letter is halved.
        let name = "fourteen-lette\u{e9}";
        let thread = std::thread::Builder::new();
        let read = thread
            .name(name.to_owned())
            .spawn(|| {
                let tid = crate::thread::id();
                (
                    fs::read("/proc/thread-self/comm").unwrap(),
                    text("/proc/thread-self/status").unwrap(),
                    crate::process::start_time(tid),
                    crate::process::parent_of(tid),
                    crate::process::is_ending(tid),
                    image(tid),
                )
            })
            .unwrap();
        let (comm, status, start, parent, ending, image) = read.join().unwrap();
        assert!(std::str::from_utf8(&comm).is_err(), "{comm:?}");
        assert!(status.contains("\nUid:"), "{status}");
        assert_eq!(parent, Some(crate::process::parent()));
        assert!(start.is_some() && !ending);
        assert_eq!(image, Image::Whole);
    }

    #[test]
    fn what_has_no_image_is_known() {
        assert_eq!(image(i32::MAX), Image::Gone);
        assert_eq!(image(crate::process::id()), Image::Whole);
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id() as i32;
        let pidfd = crate::pidfd::Pidfd::open(pid).unwrap();
        assert!(pidfd.wait_dead(std::time::Duration::from_secs(20)).unwrap());
        assert_eq!(image(pid), Image::None);
        child.wait().unwrap();
    }
}
