//! Every system call of Offshoot, and nearly all of its `unsafe`.
//!
//! Nothing here knows what an isolate, a message or a nursery is: these are the operating system's own nouns (thread, process,
//! socket, signal, image) with `io::Result`, owned descriptors and bounded waits. It is the only crate that names `libc` and `nix`.
//!
//! Rules that hold in every module:
//! - a descriptor is an [`OwnedFd`](std::os::fd::OwnedFd) from its birth, close-on-exec, and borrowed in arguments;
//! - `EINTR` is retried, and a timeout is then shortened by what has passed;
//! - nothing raises SIGPIPE (`MSG_NOSIGNAL`);
//! - a wait has a bound, or its documentation says that it has none.
//!
//! Where to start reading: [`fork`] for how a process isolate is made, [`premain`] and [`spawn`] for how the forkserver is.
//!
//! The modules for processes exist on Linux only; the others build on every Unix.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[cfg(all(test, target_os = "linux"))]
mod apart;
mod retry;

pub mod clock;
pub mod poll;
pub mod say;
pub mod signal;

#[cfg(target_os = "linux")]
pub mod acting;
#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod event;
#[cfg(target_os = "linux")]
pub mod fork;
#[cfg(target_os = "linux")]
pub mod fsx;
#[cfg(target_os = "linux")]
pub mod futex;
#[cfg(target_os = "linux")]
pub mod image;
#[cfg(target_os = "linux")]
pub mod lifeline;
pub mod limits;
#[cfg(target_os = "linux")]
pub mod map;
#[cfg(target_os = "linux")]
pub mod mark;
#[cfg(target_os = "linux")]
pub mod memfd;
#[cfg(target_os = "linux")]
pub mod original;
#[cfg(target_os = "linux")]
pub mod pidfd;
#[cfg(target_os = "linux")]
pub mod premain;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(target_os = "linux")]
pub mod procfs;
#[cfg(target_os = "linux")]
pub mod rights;
#[cfg(target_os = "linux")]
pub mod ring;
#[cfg(target_os = "linux")]
pub mod socket;
#[cfg(target_os = "linux")]
pub mod spawn;
#[cfg(target_os = "linux")]
pub mod standard;
#[cfg(target_os = "linux")]
pub mod surroundings;
#[cfg(target_os = "linux")]
pub mod thread;
