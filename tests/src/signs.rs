//! Signs by which the parts of a test, in whatever process, tell each other what has happened:
//! files in the test's own directory. They outlive whoever made them.

use offshoot::{Error, Result};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a test waits for what is to happen soon.
const SOON: Duration = Duration::from_secs(15);

const STEP: Duration = Duration::from_millis(1);

fn path(sign: &str) -> PathBuf {
    crate::dir().join("signs").join(sign)
}

/// Makes the sign.
///
/// # Panics
/// If the file cannot be written.
pub fn mark(sign: &str) {
    append(sign, "");
}

/// True once the sign is there.
pub fn marked(sign: &str) -> bool {
    path(sign).exists()
}

/// Makes the sign, if need be, and adds a line to it. Whole also when several do so at once.
///
/// # Panics
/// If the file cannot be written.
pub fn append(sign: &str, line: &str) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path(sign))
        .expect("a sign");
    file.write_all(format!("{line}\n").as_bytes())
        .expect("a line of a sign");
}

/// The lines of the sign; none while it is not there.
pub fn lines(sign: &str) -> Vec<String> {
    let text = fs::read_to_string(path(sign)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Blocks the thread until `condition` holds; false if it does not soon.
pub fn until(condition: impl FnMut() -> bool) -> bool {
    within(SOON, condition)
}

/// Blocks the thread until `condition` holds; false if it does not in time.
pub(crate) fn within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + bound;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

/// Blocks the thread, seeing no cancellation, until the sign is there.
///
/// # Panics
/// If it does not come.
pub fn hold(sign: &str) {
    assert!(until(|| marked(sign)), "the sign `{sign}` did not come");
}

/// Waits on the isolate until `condition` holds.
///
/// # Errors
/// If it does not soon; if the scope is cancelled.
pub async fn soon(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !condition() {
        if Instant::now() >= deadline {
            return Err(Error::other(format!("this did not come true: {what}")));
        }
        offshoot::sleep(STEP).await?;
    }
    Ok(())
}

/// Waits on the isolate until the sign is there.
///
/// # Errors
/// As of [`soon`].
pub async fn held(sign: &str) -> Result<()> {
    soon(sign, || marked(sign)).await
}

/// Makes its sign when it is dropped.
#[derive(Debug)]
pub struct Guard(pub String);

impl Drop for Guard {
    fn drop(&mut self) {
        mark(&self.0);
    }
}
