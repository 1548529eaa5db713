//! Where the descriptors were made that the library's own types have, and the names that it registers, for a census to name.
//!
//! Kept from the first census on; a program that takes none pays one load for each socket.

use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

static ON: AtomicBool = AtomicBool::new(false);
static PLACES: Mutex<BTreeMap<RawFd, &'static Location<'static>>> = Mutex::new(BTreeMap::new());

static PATHS: Mutex<BTreeMap<PathBuf, &'static Location<'static>>> = Mutex::new(BTreeMap::new());

thread_local! {
    static HERE: Cell<Option<&'static Location<'static>>> = const { Cell::new(None) };
}

/// Keeps them from here on.
pub(super) fn keep() {
    ON.store(true, Ordering::Relaxed);
}

/// Where the descriptor of this number was made, if that is known.
pub(super) fn of(fd: RawFd) -> Option<&'static Location<'static>> {
    PLACES.lock().get(&fd).copied()
}

/// A descriptor is made, by what is polled or run [`at`] a place.
pub(crate) fn made(fd: RawFd) {
    if ON.load(Ordering::Relaxed)
        && let Some(place) = HERE.get()
    {
        PLACES.lock().insert(fd, place);
    }
}

/// It is about to be closed.
pub(crate) fn closed(fd: RawFd) {
    if ON.load(Ordering::Relaxed) {
        PLACES.lock().remove(&fd);
    }
}

/// Where this name was registered, if that is known.
pub(super) fn of_path(path: &Path) -> Option<&'static Location<'static>> {
    PATHS.lock().get(path).copied()
}

/// A name is registered, by what is polled [`at`] a place.
pub(crate) fn registered(path: &Path) {
    if ON.load(Ordering::Relaxed)
        && let Some(place) = HERE.get()
    {
        PATHS.lock().insert(path.to_owned(), place);
    }
}

/// It is about to be removed.
pub(crate) fn released(path: &Path) {
    if ON.load(Ordering::Relaxed) {
        PATHS.lock().remove(path);
    }
}

/// Runs `make`, for the line that asked for it.
pub(crate) fn run_at<T>(place: &'static Location<'static>, make: impl FnOnce() -> T) -> T {
    let before = HERE.replace(Some(place));
    let made = make();
    HERE.set(before);
    made
}

/// Awaits a future whose descriptors are made for one line.
pub(crate) async fn at<F: Future>(place: &'static Location<'static>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| run_at(place, || future.as_mut().poll(cx))).await
}
