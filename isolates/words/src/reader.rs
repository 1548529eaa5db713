//! The reader: walks files and directories and cuts them into pieces of work. Counts nothing.
//!
//! Read are regular files. In directories, left out are what is hidden (its name begins with a
//! point), what is marked as a cache (it holds a file `CACHEDIR.TAG`), and Cargo's `target` (beside
//! a `Cargo.toml`), and symbolic links are not followed. A path that was named is read whatever it
//! is called, and through a link.

use crate::counter::{CHUNK, is_binary};
use offshoot::Bytes;
use offshoot::prelude::*;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, FilterEntry, IntoIter, WalkDir};

/// A batch ends at so many bytes: some milliseconds of work, which is long beside the two messages
/// that it costs, and short enough that no counter is long alone with the last one.
const BATCH_BYTES: u64 = 1 << 20;
/// A batch ends at so many files.
const BATCH_FILES: usize = 256;
/// A batch ends after so many directory entries, so that a search which finds nothing ends, too.
const BATCH_ENTRIES: usize = 4_096;

/// A range of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// As bytes, because a path need not be text.
    path: Bytes,
    pub(crate) from: u64,
    /// `None` in the last piece of a file: up to its end, wherever that is by then.
    pub(crate) to: Option<u64>,
}

impl Piece {
    pub(crate) fn path(&self) -> PathBuf {
        OsString::from_vec(self.path.to_vec()).into()
    }
}

/// What one counter reads next.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Batch {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) problems: Vec<String>,
    /// Nothing comes after it.
    pub(crate) last: bool,
}

/// The state of the reader. Made where the tree is started, used where the reader runs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Reader {
    /// Still to be walked, the next one at the end.
    paths: Vec<Bytes>,
    #[serde(skip)]
    walk: Option<Walk>,
    #[serde(skip)]
    large: Option<Large>,
}

type Walk = FilterEntry<IntoIter, fn(&DirEntry) -> bool>;

/// A file of several pieces that is being cut.
struct Large {
    path: Bytes,
    at: u64,
    size: u64,
}

impl Reader {
    pub(crate) fn new(paths: Vec<PathBuf>) -> Reader {
        let bytes = |path: PathBuf| Bytes::from(path.into_os_string().into_vec());
        Reader {
            paths: paths.into_iter().rev().map(bytes).collect(),
            walk: None,
            large: None,
        }
    }

    /// The next batch. It may be empty without being the last one.
    pub(crate) fn next(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        for _ in 0..BATCH_ENTRIES {
            if bytes >= BATCH_BYTES || batch.pieces.len() >= BATCH_FILES {
                return batch;
            }
            if let Some(large) = &mut self.large {
                let to = large.at + BATCH_BYTES;
                let last = to >= large.size;
                batch.pieces.push(Piece {
                    path: large.path.clone(),
                    from: large.at,
                    to: (!last).then_some(to),
                });
                bytes += BATCH_BYTES;
                large.at = to;
                if last {
                    self.large = None;
                }
                continue;
            }
            match self.next_entry() {
                None => {
                    batch.last = true;
                    return batch;
                }
                Some(Ok(entry)) => match self.enter(&entry) {
                    Ok(Some((piece, size))) => {
                        batch.pieces.push(piece);
                        bytes += size;
                    }
                    Ok(None) => {}
                    Err(what) => batch.problems.push(problem(entry.path(), &what)),
                },
                Some(Err(error)) => batch.problems.push(match (error.path(), error.io_error()) {
                    (Some(path), Some(error)) => problem(path, error),
                    _ => error.to_string(),
                }),
            }
        }
        batch
    }

    fn next_entry(&mut self) -> Option<walkdir::Result<DirEntry>> {
        loop {
            if let Some(entry) = self.walk.as_mut().and_then(Iterator::next) {
                return Some(entry);
            }
            let path: OsString = OsString::from_vec(self.paths.pop()?.into_vec());
            let walk = WalkDir::new(path).into_iter();
            self.walk = Some(walk.filter_entry(is_wanted as fn(&DirEntry) -> bool));
        }
    }

    /// The piece that is a whole file, and its size; nothing for what is none or is cut later.
    fn enter(&mut self, entry: &DirEntry) -> std::io::Result<Option<(Piece, u64)>> {
        let metadata = match entry.depth() {
            // One that was named, perhaps by a link.
            0 => std::fs::metadata(entry.path())?,
            _ => entry.metadata()?,
        };
        if !metadata.is_file() {
            if entry.depth() == 0 && !metadata.is_dir() {
                return Err(std::io::Error::other("neither a file nor a directory"));
            }
            return Ok(None);
        }
        let size = metadata.len();
        let path = Bytes::from(entry.path().as_os_str().as_bytes());
        if size >= 2 * BATCH_BYTES && !begins_binary(entry.path())? {
            self.large = Some(Large { path, at: 0, size });
            return Ok(None);
        }
        let whole = Piece {
            path,
            from: 0,
            to: None,
        };
        // A binary file costs no more than its first chunk.
        Ok(Some((whole, size.min(2 * BATCH_BYTES))))
    }
}

fn is_wanted(entry: &DirEntry) -> bool {
    if entry.depth() == 0 {
        return true;
    }
    if entry.file_name().as_bytes().starts_with(b".") {
        return false;
    }
    !entry.file_type().is_dir() || !is_cache(entry.path())
}

fn is_cache(directory: &Path) -> bool {
    // Cargo marks a directory that it makes, but not one that was there.
    directory.join("CACHEDIR.TAG").exists()
        || directory.ends_with("target") && directory.with_file_name("Cargo.toml").exists()
}

/// A large file's first piece may be read after its others, so that it is looked at here.
fn begins_binary(path: &Path) -> std::io::Result<bool> {
    let mut start = vec![0; CHUNK.min(8 << 10)];
    let read = File::open(path)?.read_at(&mut start, 0)?;
    Ok(is_binary(&start[..read]))
}

/// One line for people: nothing in a path may make two of it, or move their cursor.
pub(crate) fn problem(path: &Path, what: &std::io::Error) -> String {
    let path: String = path
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    format!("{path}: {what}")
}
