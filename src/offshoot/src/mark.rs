//! The mark of a tree in the environment of its processes and of all that these start: which tree, and which process of it.
//!
//! It is what tells a stray from any other process, whoever its parent is by now. The text is the path of the tree's directory, `@`, and 16
//! hexadecimal digits: eight for the forkserver, of which a tree has one after the other, and eight for the process among its children, zero in
//! the forkserver itself. See [`offshoot_sys::mark`] for how
//! it gets and stays there.
//!
//! It is no fence. A program that was started with an empty environment has none, and one that means harm can have any.

use offshoot_sys::clock;
use offshoot_sys::mark::{DIGITS, ENV};
use offshoot_sys::procfs::{self, Image};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest environment that is read. The kernel allows a quarter of the stack's limit, 2 MiB by default.
const ENVIRONMENT_MAX: usize = 8 << 20;

/// Room for most.
const ENVIRONMENT_USUAL: usize = 32 << 10;

/// The environment of a process, by one call: between two, execve may have taken what was left to read. Empty where the kernel has none.
fn environment(pid: i32) -> io::Result<Vec<u8>> {
    match read_environment(Path::new(&format!("/proc/{pid}/environ"))) {
        // It is ending, and has no memory any more; or its first thread has ended, and another one has it still.
        Err(error) if procfs::is_without_memory(&error) => {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"));
            let mut tasks = tasks.into_iter().flatten().flatten();
            let of_task = tasks.find_map(|task| {
                let environment = read_environment(&task.path().join("environ")).ok()?;
                (!environment.is_empty()).then_some(environment)
            });
            Ok(of_task.unwrap_or_default())
        }
        result => result,
    }
}

fn read_environment(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; ENVIRONMENT_USUAL];
    loop {
        let length = match file.read_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        if length < bytes.len() || length >= ENVIRONMENT_MAX {
            bytes.truncate(length);
            return Ok(bytes);
        }
        bytes.resize(4 * length, 0);
    }
}

/// How long a process may be in `execve`, in ns, before it counts as one whose mark cannot be known. It reads the head of its new image meanwhile.
pub(crate) const CHANGE_MAX: u64 = 1_000_000_000;

/// How soon it is looked at again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// What one look at a process has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    Marked(Mark),
    /// It has no mark.
    Plain,
    /// It is in `execve`, where it has no environment: 4 % of all looks at one that executes all the time.
    Unknown,
    /// It is ending, and has none any more; what it has started may not have come to another parent yet.
    Ending,
}

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

    /// The mark of this process, as it was started with it. Without /proc, where a process may not look at its own environment whose executable
    /// may not be read.
    pub(crate) fn own() -> Option<Mark> {
        Self::parse(std::env::var_os(ENV)?.as_bytes())
    }

    /// The mark of a process; `None` if it has none, as a zombie has, or if it cannot be known in time.
    ///
    /// # Blocking
    /// For [`CHANGE_MAX`] at most, if the process is in `execve`.
    ///
    /// # Errors
    /// When there is no such process, or we may not look into it.
    pub(crate) fn of(pid: i32) -> io::Result<Option<Mark>> {
        let deadline = clock::now() + CHANGE_MAX;
        loop {
            match Self::look(pid)? {
                Looked::Marked(mark) => return Ok(Some(mark)),
                Looked::Unknown if clock::now() < deadline => std::thread::sleep(LOOK_AGAIN),
                Looked::Plain | Looked::Unknown | Looked::Ending => return Ok(None),
            }
        }
    }

    /// What the environment of a process says now. Never blocks.
    ///
    /// # Errors
    /// When there is no such process, or we may not look into it.
    pub(crate) fn look(pid: i32) -> io::Result<Looked> {
        let environment = environment(pid)?;
        match Self::in_environment(&environment) {
            Some(mark) => return Ok(Looked::Marked(mark)),
            None if !environment.is_empty() => return Ok(Looked::Plain),
            None => {}
        }
        // One without an environment, or one that was in execve as its environment was read, and may be no more.
        Ok(match procfs::image(pid) {
            Image::Gone | Image::None | Image::WithoutEnvironment => Looked::Plain,
            Image::Ending => Looked::Ending,
            Image::Changing | Image::Whole => Looked::Unknown,
        })
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

    /// One that executes all the time, looked at as often as one can: each answer is the mark, or that it is not known.
    #[test]
    fn a_process_in_execve_is_not_taken_for_one_without_a_mark() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("again");
        std::fs::write(&script, "exec sh \"$0\"\n").unwrap();
        let mark = Mark::of_forkserver(Path::new("/t/0123456789abcdef"), 7);
        let mut child = std::process::Command::new("sh")
            .arg(&script)
            .env(ENV, &mark)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let expected = Mark::of(pid).unwrap();
        let (mut plain, mut unknown) = (0, 0);
        for _ in 0..20_000 {
            match Mark::look(pid).unwrap() {
                Looked::Marked(mark) => assert_eq!(Some(mark), expected),
                Looked::Plain => plain += 1,
                Looked::Unknown | Looked::Ending => unknown += 1,
            }
        }
        let certain = (0..200).filter(|_| Mark::of(pid).unwrap() == expected);
        let certain = certain.count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(expected.is_some());
        assert_eq!((plain, certain), (0, 200), "of them unknown: {unknown}");
    }

    #[test]
    fn an_empty_environment_is_known() {
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("1000")
            .env_clear()
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let looked = Mark::of(pid).and_then(|mark| Ok((mark, Mark::look(pid)?)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(looked.unwrap(), (None, Looked::Plain));
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
