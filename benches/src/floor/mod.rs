//! The floors: what the same costs with as little between it and the operating system as can be.
//!
//! Some of them are another process, small and with one thread: this program again, told by an
//! environment variable what to be. So each program that measures calls [`enter`] first of all.

pub mod processes;
pub mod ring;
pub mod threads;
pub mod tree;

use crate::engine::Failure;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// Says to this program what it is to be instead of itself.
const ROLE: &str = "OFFSHOOT_BENCH_ROLE";

/// Becomes a floor, if this process was started to be one; then it does not return.
///
/// To be called at the beginning of `main`, before there is a second thread.
pub fn enter() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    // Also when the one that measures is killed.
    if offshoot_sys::process::die_with_parent(offshoot_sys::process::parent()).is_err() {
        std::process::exit(2);
    }
    match role.as_str() {
        "forkserver" => processes::serve_forks(),
        "echo" => processes::serve_echo(),
        "ring" => ring::serve(),
        "sink" => processes::serve_sink(),
        "values" => processes::serve_values(),
        role => {
            if let Some(what) = role.strip_prefix("memory:") {
                crate::question::memory::report(what);
            } else if let Some(n) = role.strip_prefix("idle:") {
                crate::question::memory::report_idle(n);
            } else {
                eprintln!("{ROLE} is `{role}`, which is no role");
                std::process::exit(2);
            }
        }
    }
    std::process::exit(0);
}

/// A process of this program in another role. Its end of the socket is its standard input; it ends
/// when ours is closed.
pub struct Helper {
    /// Our end.
    pub socket: UnixStream,
    child: Child,
}

impl Helper {
    /// Starts one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(role: &str) -> Result<Helper, Failure> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = command(role)?.stdin(OwnedFd::from(theirs)).spawn()?;
        Ok(Helper { socket, child })
    }
}

impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Helper").field(&self.child.id()).finish()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        // It sees the end of the socket; one that does not is not to hold up the measuring.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program in another role.
pub(crate) fn command(role: &str) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(ROLE, role).stdout(Stdio::piped());
    Ok(command)
}
