//! The mark of a tree in the environment of its processes and of all that these start: which tree, and which process of it.
//!
//! It is what tells a stray from any other process, whoever its parent is by now. The text is the path of the tree's directory, `@`, and 16
//! hexadecimal digits: eight for the forkserver, of which a tree has one after the other, and eight for the process among its children, zero in
//! the forkserver itself. See [`offshoot_sys::mark`] for how
//! it gets and stays there.
//!
//! It is no fence. A program that was started with an empty environment has none, and one that means harm can have any.

use offshoot_sys::mark::{DIGITS, ENV};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The largest environment that is read. The kernel allows a quarter of the stack's limit, 2 MiB by default.
const ENVIRONMENT_MAX: u64 = 8 << 20;

/// What the environment of a process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The tree's directory.
    pub(crate) tree: PathBuf,
    /// The forkserver that it is or comes from.
    pub(crate) server: u32,
    /// The child of that forkserver that it is or comes from; 0 for the forkserver itself.
    pub(crate) process: u32,
}

impl Mark {
    /// The mark that a tree's forkserver is started with. `server` is a number that no other one of the tree has.
    pub(crate) fn of_forkserver(tree: &Path, server: u32) -> OsString {
        let mut text = tree.as_os_str().to_owned();
        text.push(format!("@{:0DIGITS$x}", Self::number(server, 0)));
        text
    }

    /// The digits at the end of a mark, as a number.
    pub(crate) fn number(server: u32, process: u32) -> u64 {
        u64::from(server) << 32 | u64::from(process)
    }

    /// The mark of a process; `None` if it has none, as a zombie has.
    ///
    /// # Errors
    /// When there is no such process, or we may not look into it.
    pub(crate) fn of(pid: i32) -> io::Result<Option<Mark>> {
        let mut environment = Vec::new();
        File::open(format!("/proc/{pid}/environ"))?
            .take(ENVIRONMENT_MAX)
            .read_to_end(&mut environment)?;
        Ok(Self::in_environment(&environment))
    }

    fn in_environment(environment: &[u8]) -> Option<Mark> {
        // The first one, as getenv finds it.
        let value = environment
            .split(|&byte| byte == 0)
            .find_map(|variable| variable.strip_prefix(ENV.as_bytes())?.strip_prefix(b"="))?;
        Self::parse(value)
    }

    fn parse(value: &[u8]) -> Option<Mark> {
        let (tree, digits) = value.split_at_checked(value.len().checked_sub(DIGITS)?)?;
        let tree = PathBuf::from(OsString::from_vec(tree.strip_suffix(b"@")?.to_vec()));
        let lower = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        let digits = digits.iter().all(lower).then_some(digits)?;
        let number = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        // Nothing of ours names a tree by any other path.
        let plain = tree.is_absolute() && tree.components().collect::<PathBuf>() == tree;
        let id = tree.file_name().map(OsStr::as_bytes)?;
        (plain && id.len() == 16 && id.iter().all(lower)).then_some(Mark {
            tree,
            server: (number >> 32) as u32,
            process: number as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_is_written() {
        for path in [
            "/run/user/1000/offshoot/0123456789abcdef",
            "/t@mp/a b/ffffffffffffffff",
        ] {
            let mut text = b"PATH=/bin\0OFFSHOOT_TREES=no\0OFFSHOOT_TREE=".to_vec();
            text.extend(Mark::of_forkserver(Path::new(path), 7).as_bytes());
            text.extend(b"\0HOME=/\0OFFSHOOT_TREE=second\0");
            let wanted = Mark {
                tree: path.into(),
                server: 7,
                process: 0,
            };
            assert_eq!(Mark::in_environment(&text), Some(wanted));
        }
        let text = b"OFFSHOOT_TREE=/b/0123456789abcdef@00000000000000ff";
        assert_eq!(
            Mark::in_environment(text).map(|mark| mark.process),
            Some(255)
        );
    }

    #[test]
    fn what_is_no_mark_is_none() {
        for text in [
            "",
            "OFFSHOOT_TREE",
            "OFFSHOOT_TREE=",
            "OFFSHOOT_TREE=@0000000000000000",
            "OFFSHOOT_TREE=/b/0123456789abcdef",
            "OFFSHOOT_TREE=/b/0123456789abcdef@",
            "OFFSHOOT_TREE=/b/0123456789abcdef@000000000000000",
            "OFFSHOOT_TREE=/b/0123456789abcdef@000000000000000G",
            "OFFSHOOT_TREE=/b/0123456789abcdef@+00000000000000f",
            "OFFSHOOT_TREE=/b/0123456789abcdeF@0000000000000000",
            "OFFSHOOT_TREE=/b/../b/0123456789abcdef@0000000000000000x",
            "OFFSHOOT_TREE=b/0123456789abcdef@0000000000000000",
            "OFFSHOOT_TREE=/@0000000000000000",
            "XOFFSHOOT_TREE=/b/0123456789abcdef@0000000000000000",
        ] {
            assert_eq!(Mark::in_environment(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_process_without_a_mark_has_none() {
        assert_eq!(
            Mark::of(offshoot_sys::process::parent()).ok().flatten(),
            None
        );
        assert!(Mark::of(i32::MAX).is_err());
    }
}
