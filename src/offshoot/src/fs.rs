//! Files, read and written on the threads for blocking work, so that no isolate waits for a disk.
//!
//! The short functions do what those of [`std::fs`] do; a [`File`] is read and written in chunks.
//! Errors name the path; [`Error::downcast_ref`](crate::Error::downcast_ref) finds the `io::Error`.
//! Each operation is a checkpoint, see [`unblock`] for what a cancellation leaves.

use crate::testing::places;
use crate::{Error, Result, unblock};
use offshoot_sys::signal::{Held, SIGXFSZ};
use offshoot_sys::standard::make_above;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest chunk of one read in bytes.
const CHUNK_MAX: usize = 16 << 20;

fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot {doing} {}: {error}", path.display()), error)
}

async fn on<T: Send + 'static>(
    doing: &'static str,
    path: &Path,
    operation: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let path = path.to_owned();
    unblock(move || limited(|| operation(&path)).map_err(|error| failed(doing, &path, error)))
        .await?
}

/// Over the limit of a file's size (RLIMIT_FSIZE), an operation is an error, and no signal that ends the process.
fn limited<T>(operation: impl FnOnce() -> T) -> T {
    let _held = Held::new(&[SIGXFSZ]);
    operation()
}

/// The whole content of a file.
///
/// # Errors
/// As of [`std::fs::read`]; a cancelled error.
pub async fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    on("read", path.as_ref(), |path| fs::read(path)).await
}

/// The whole content of a file that is UTF-8.
///
/// # Errors
/// As of [`std::fs::read_to_string`]; a cancelled error.
pub async fn read_to_string(path: impl AsRef<Path>) -> Result<String> {
    on("read", path.as_ref(), |path| fs::read_to_string(path)).await
}

/// Makes `content` the whole content of a file, which is made if there is none.
///
/// # Errors
/// As of [`std::fs::write`]; a cancelled error.
///
/// # Cancellation
/// The file may have been written wholly, in part, or not at all.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # offshoot::run(async || {
/// let path = std::env::temp_dir().join(format!("offshoot-example-{}", std::process::id()));
/// offshoot::fs::write(&path, "hello").await?;
/// assert_eq!(offshoot::fs::read_to_string(&path).await?, "hello");
/// std::fs::remove_file(&path)?;
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn write(path: impl AsRef<Path>, content: impl Into<Vec<u8>>) -> Result<()> {
    let content = content.into();
    on("write", path.as_ref(), move |path| fs::write(path, content)).await
}

/// What the file system knows of a file. Follows symbolic links.
///
/// # Errors
/// As of [`std::fs::metadata`]; a cancelled error.
pub async fn metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    on("look at", path.as_ref(), |path| fs::metadata(path)).await
}

/// The paths of what lies in a directory, sorted.
///
/// # Errors
/// As of [`std::fs::read_dir`]; a cancelled error.
///
/// # Examples
/// ```
/// # use offshoot::prelude::*;
/// # offshoot::run(async || {
/// let entries = offshoot::fs::read_dir(".").await?;
/// assert!(!entries.is_empty());
/// # Ok(())
/// # })?;
/// # Ok::<(), offshoot::Error>(())
/// ```
pub async fn read_dir(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    on("list", path.as_ref(), |path| {
        let mut paths: Vec<PathBuf> = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<_>>()?;
        paths.sort();
        Ok(paths)
    })
    .await
}

/// An open file with a place in it, at which chunks are read and written one after the other.
///
/// It is closed when it is dropped. What was written is then with the operating system;
/// [`File::sync`] waits until it is on the disk.
///
/// # Examples
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("notes");
/// # offshoot::run(async move || {
/// let mut file = offshoot::fs::File::create(&path).await?;
/// file.write_all("one two").await?;
/// let mut file = offshoot::fs::File::open(&path).await?;
/// let mut chunk = Vec::with_capacity(4);
/// while file.read_chunk(&mut chunk).await? > 0 {
///     assert!(chunk == b"one " || chunk == b"two");
/// }
/// # Ok(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct File {
    file: Arc<Opened>,
    path: Arc<Path>,
    at: u64,
}

/// A file whose descriptor a census can name.
#[derive(Debug)]
struct Opened(fs::File);

impl Opened {
    fn new(file: fs::File) -> Opened {
        places::made(file.as_raw_fd());
        Opened(file)
    }
}

impl Deref for Opened {
    type Target = fs::File;

    fn deref(&self) -> &fs::File {
        &self.0
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        places::closed(self.0.as_raw_fd());
    }
}

impl File {
    /// Opens a file to read it.
    ///
    /// # Errors
    /// As of [`std::fs::File::open`]; a cancelled error.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> impl Future<Output = Result<File>> {
        let place = Location::caller();
        places::at(place, async move {
            let path = path.as_ref();
            let file = on("open", path, |path| make_above(|| fs::File::open(path))).await?;
            Ok(File::of(file, path))
        })
    }

    /// Opens a file to write and read it. It is made if there is none, and emptied if there is one.
    ///
    /// # Errors
    /// As of [`std::fs::File::create`]; a cancelled error.
    #[track_caller]
    pub fn create(path: impl AsRef<Path>) -> impl Future<Output = Result<File>> {
        let place = Location::caller();
        places::at(place, async move {
            let path = path.as_ref();
            let file = on("create", path, |path| {
                make_above(|| {
                    fs::File::options()
                        .read(true)
                        .write(true)
                        .create(true)
                        .truncate(true)
                        .open(path)
                })
            })
            .await?;
            Ok(File::of(file, path))
        })
    }

    fn of(file: fs::File, path: &Path) -> File {
        File {
            file: Arc::new(Opened::new(file)),
            path: path.into(),
            at: 0,
        }
    }

    /// A file that was opened elsewhere, at its beginning; `path` is what errors call it.
    #[track_caller]
    pub fn from_std(file: fs::File, path: impl AsRef<Path>) -> File {
        places::run_at(Location::caller(), || File::of(file, path.as_ref()))
    }

    async fn on<T: Send + 'static>(
        &self,
        doing: &'static str,
        operation: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (file, path) = (self.file.clone(), self.path.clone());
        unblock(move || limited(|| operation(&file)).map_err(|error| failed(doing, &path, error)))
            .await?
    }

    /// The place at which the next chunk is read or written, in bytes from the beginning.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Sets the place at which the next chunk is read or written.
    pub fn set_position(&mut self, at: u64) {
        self.at = at;
    }

    /// Replaces what is in `chunk` by the next bytes, at most its capacity (8 KiB if it has none,
    /// 16 MiB at a time). Returns how many there are: 0 at the end of the file.
    ///
    /// # Errors
    /// A failed read; a cancelled error.
    ///
    /// # Cancellation
    /// If the future is dropped, nothing has been read: the next call reads the same bytes. `chunk`
    /// is then empty and without capacity.
    pub async fn read_chunk(&mut self, chunk: &mut Vec<u8>) -> Result<usize> {
        let mut bytes = std::mem::take(chunk);
        let at = self.at;
        bytes.clear();
        bytes.reserve(if bytes.capacity() == 0 { 8 << 10 } else { 0 });
        bytes.resize(bytes.capacity().min(CHUNK_MAX), 0);
        let bytes = self
            .on("read", move |file| {
                let read = loop {
                    match file.read_at(&mut bytes, at) {
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        result => break result?,
                    }
                };
                bytes.truncate(read);
                Ok(bytes)
            })
            .await?;
        self.at += bytes.len() as u64;
        *chunk = bytes;
        Ok(chunk.len())
    }

    /// Writes all of `content` at the file's place.
    ///
    /// # Errors
    /// A failed write, after which some of it may have been written; a cancelled error.
    ///
    /// # Cancellation
    /// If the future is dropped, some or all of it may have been written, now or soon; the place has
    /// not changed.
    pub async fn write_all(&mut self, content: impl Into<Vec<u8>>) -> Result<()> {
        let content = content.into();
        let (at, len) = (self.at, content.len() as u64);
        self.on("write", move |file| file.write_all_at(&content, at))
            .await?;
        self.at += len;
        Ok(())
    }

    /// Waits until what was written is on the disk.
    ///
    /// # Errors
    /// A failed write, also an earlier one; a cancelled error.
    pub async fn sync(&self) -> Result<()> {
        self.on("sync", fs::File::sync_all).await
    }

    /// What the file system knows of it.
    ///
    /// # Errors
    /// As of [`std::fs::File::metadata`]; a cancelled error.
    pub async fn metadata(&self) -> Result<Metadata> {
        self.on("look at", fs::File::metadata).await
    }

    /// Cuts it off or extends it with zeros, to `bytes`.
    ///
    /// # Errors
    /// As of [`std::fs::File::set_len`]; a cancelled error.
    pub async fn set_len(&self, bytes: u64) -> Result<()> {
        self.on("resize", move |file| file.set_len(bytes)).await
    }
}
