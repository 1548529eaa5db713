//! What can be read only once, from its beginning: the standard input, a pipe. It is copied into a file
//! without a name, so that any number of counters can read their pieces of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where a copy of `path` lies, and what keeps it; nothing where it can be read piece by piece. `-` is the standard input.
///
/// # Errors
/// When it cannot be read, or the copy not be written.
pub(crate) fn copied(path: &Path) -> io::Result<Option<(PathBuf, File)>> {
    let standard = path == Path::new("-");
    let path = if standard {
        Path::new("/dev/stdin")
    } else {
        path
    };
    // What is not there is a problem of the walk.
    let pipe = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if !standard && !pipe {
        return Ok(None);
    }
    let mut copy = unnamed()?;
    match standard {
        true => io::copy(&mut io::stdin().lock(), &mut copy)?,
        false => io::copy(&mut File::open(path)?, &mut copy)?,
    };
    // Also for processes of this tree, which have descriptors of their own.
    let place = format!("/proc/{}/fd/{}", std::process::id(), copy.as_raw_fd());
    Ok(Some((place.into(), copy)))
}

/// A file that goes with its last descriptor.
fn unnamed() -> io::Result<File> {
    for n in 0.. {
        let name = format!("offshoot-words-{}-{n}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && n < 100 => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no name is free"))
}
