//! Floors with more than one process: fork, a bare forkserver, `posix_spawn`, a socket pair.

use super::Helper;
use crate::engine::Failure;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

/// A forked process that has said its first byte. It ends when `socket` is closed.
#[derive(Debug)]
pub struct Forked {
    /// Our end.
    socket: UnixStream,
    pid: libc::pid_t,
}

/// Forks this very process, however large it is and however many threads it has, and waits for the
/// first byte of the child.
///
/// # Errors
/// When there is no process or descriptor to be had.
pub fn fork_self() -> io::Result<Forked> {
    let (mut socket, theirs) = UnixStream::pair()?;
    let pid = fork(&theirs, Some(socket.as_raw_fd()))?;
    drop(theirs);
    socket.read_exact(&mut [0])?;
    Ok(Forked { socket, pid })
}

/// Forks a child that closes `close`, sends a byte, waits for the end of `socket`, and ends.
fn fork(socket: &UnixStream, close: Option<RawFd>) -> io::Result<libc::pid_t> {
    let fd = socket.as_raw_fd();
    // SAFETY: the child of a process with threads may do what is async-signal-safe, and does no more: close, write, read and _exit, with
    // memory of its own stack. Nothing of ours is dropped in it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let mut byte = 1_u8;
            // SAFETY: see above; `byte` is live for both calls.
            unsafe {
                if let Some(close) = close {
                    libc::close(close);
                }
                libc::write(fd, (&raw const byte).cast(), 1);
                libc::read(fd, (&raw mut byte).cast(), 1);
                libc::_exit(0)
            }
        }
        pid => Ok(pid),
    }
}

impl Forked {
    /// Lets it end, and reaps it.
    ///
    /// # Errors
    /// When somebody else has reaped it.
    pub fn end(self) -> io::Result<()> {
        drop(self.socket);
        reap(self.pid)
    }

    /// Kills it, and reaps it.
    ///
    /// # Errors
    /// When somebody else has reaped it.
    pub fn kill(self) -> io::Result<()> {
        // SAFETY: takes no pointer; it is our child and not reaped, so that the number is its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        reap(self.pid)
    }
}

fn reap(pid: libc::pid_t) -> io::Result<()> {
    loop {
        // SAFETY: a null status is allowed.
        if unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The requests to the bare forkserver.
const FORK: u8 = b'f';
const REAP: u8 = b'r';

/// A bare forkserver: a small process with one thread that forks on request, passes the child one
/// end of a socket pair, and reaps it on request. It does nothing else of what ours does.
#[derive(Debug)]
pub struct BareForkserver {
    helper: Helper,
}

impl BareForkserver {
    /// Starts it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start() -> Result<BareForkserver, Failure> {
        let helper = Helper::start("forkserver")?;
        Ok(BareForkserver { helper })
    }

    /// Asks for a child, and waits for the child's first byte.
    ///
    /// # Errors
    /// When there is no process or descriptor to be had.
    pub fn fork(&mut self) -> io::Result<UnixStream> {
        let (mut ours, theirs) = UnixStream::pair()?;
        send_with_fd(&self.helper.socket, FORK, theirs.as_raw_fd())?;
        drop(theirs);
        ours.read_exact(&mut [0])?;
        Ok(ours)
    }

    /// Asks for `n` children at once, and waits for the first byte of each.
    ///
    /// # Errors
    /// As of [`fork`](BareForkserver::fork).
    pub fn fork_many(&mut self, n: usize) -> io::Result<Vec<UnixStream>> {
        let mut children = Vec::with_capacity(n);
        for _ in 0..n {
            let (ours, theirs) = UnixStream::pair()?;
            send_with_fd(&self.helper.socket, FORK, theirs.as_raw_fd())?;
            children.push(ours);
        }
        for child in &mut children {
            child.read_exact(&mut [0])?;
        }
        Ok(children)
    }

    /// Lets children end, and waits until the forkserver has reaped all.
    ///
    /// # Errors
    /// When the forkserver is gone.
    pub fn end_many(&mut self, children: Vec<UnixStream>) -> io::Result<()> {
        let n = children.len();
        drop(children);
        self.helper.socket.write_all(&vec![REAP; n])?;
        self.helper.socket.read_exact(&mut vec![0; n])
    }

    /// Lets a child end, and waits until the forkserver has reaped it.
    ///
    /// # Errors
    /// When the forkserver is gone.
    pub fn end(&mut self, child: UnixStream) -> io::Result<()> {
        drop(child);
        self.helper.socket.write_all(&[REAP])?;
        self.helper.socket.read_exact(&mut [0])
    }
}

/// The standard input, which is the socket to whoever started this process.
pub(super) fn control() -> ManuallyDrop<UnixStream> {
    // SAFETY: descriptor 0 is open, because `Helper::start` put a socket there; it is not closed here.
    ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(0) })
}

/// The bare forkserver itself.
pub(super) fn serve_forks() {
    let mut control = control();
    while let Ok(Some((request, fd))) = receive_with_fd(&control) {
        match (request, fd) {
            (FORK, Some(fd)) => {
                let socket = UnixStream::from(fd);
                if fork(&socket, Some(control.as_raw_fd())).is_err() {
                    return;
                }
            }
            (REAP, _) => {
                if reap(-1).is_err() || control.write_all(&[1]).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// A process that sends back what it gets, eight bytes at a time.
pub(super) fn serve_echo() {
    let mut control = control();
    let mut buffer = [0; 8];
    while control.read_exact(&mut buffer).is_ok() && control.write_all(&buffer).is_ok() {}
}

/// A process that waits on a socket, and a round trip to it.
#[derive(Debug)]
pub struct Echo {
    helper: Helper,
}

impl Echo {
    /// Starts it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start() -> Result<Echo, Failure> {
        let mut echo = Echo {
            helper: Helper::start("echo")?,
        };
        // It has to be there before it is measured.
        echo.ping()?;
        Ok(echo)
    }

    /// One round trip of eight bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn ping(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8];
        self.helper.socket.write_all(&buffer)?;
        self.helper.socket.read_exact(&mut buffer)
    }
}

/// A process that reads chunks from a socket, and says when it has them all.
#[derive(Debug)]
pub struct Sink {
    helper: Helper,
}

impl Sink {
    /// Starts it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start() -> Result<Sink, Failure> {
        let helper = Helper::start("sink")?;
        Ok(Sink { helper })
    }

    /// Writes `chunk` that many times, and waits until the other side has read all.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn stream(&mut self, chunk: &[u8], times: usize) -> io::Result<()> {
        let socket = &mut self.helper.socket;
        socket.write_all(&(chunk.len() * times).to_ne_bytes())?;
        for _ in 0..times {
            socket.write_all(chunk)?;
        }
        socket.read_exact(&mut [0])
    }
}

/// The other side of a [`Sink`].
pub(super) fn serve_sink() {
    let mut control = control();
    let mut buffer = vec![0; super::ring::CHUNK];
    let mut length = [0; size_of::<usize>()];
    while control.read_exact(&mut length).is_ok() {
        let mut left = usize::from_ne_bytes(length);
        while left > 0 {
            let most = left.min(buffer.len());
            match control.read(&mut buffer[..most]) {
                Ok(0) | Err(_) => return,
                Ok(read) => left -= read,
            }
        }
        if control.write_all(&[1]).is_err() {
            return;
        }
    }
}

/// A process that reads values whole, each into the same memory, and answers each by a byte.
#[derive(Debug)]
pub struct Values {
    helper: Helper,
}

impl Values {
    /// Starts it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start() -> Result<Values, Failure> {
        let helper = Helper::start("values")?;
        Ok(Values { helper })
    }

    /// Sends a value, and waits for the answer.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn send(&mut self, value: &[u8]) -> io::Result<()> {
        let socket = &mut self.helper.socket;
        socket.write_all(&value.len().to_ne_bytes())?;
        socket.write_all(value)?;
        socket.read_exact(&mut [0])
    }
}

/// The other side of [`Values`].
pub(super) fn serve_values() {
    let mut control = control();
    let mut buffer = Vec::new();
    let mut length = [0; size_of::<usize>()];
    while control.read_exact(&mut length).is_ok() {
        buffer.resize(usize::from_ne_bytes(length), 0);
        if control.read_exact(&mut buffer).is_err() || control.write_all(&[1]).is_err() {
            return;
        }
    }
}

/// `posix_spawn` of a small program, and its first byte; then its end.
///
/// # Errors
/// When there is no `echo` to be run.
pub fn spawn_small(first: impl FnOnce()) -> Result<(), Failure> {
    let mut child = Command::new("/bin/echo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("/bin/echo: {error}"))?;
    let mut out = child.stdout.take().ok_or("a pipe was asked for")?;
    out.read_exact(&mut [0])?;
    first();
    child.wait()?;
    Ok(())
}

#[repr(C, align(8))]
struct Ancillary([u8; 64]);

pub(super) fn send_with_fd(socket: &UnixStream, byte: u8, fd: RawFd) -> io::Result<()> {
    let mut ancillary = Ancillary([0; 64]);
    let mut data = libc::iovec {
        iov_base: (&raw const byte).cast_mut().cast(),
        iov_len: 1,
    };
    // SAFETY: all pointers are to live objects of this frame; the buffer is aligned for a header and large enough for one descriptor,
    // which the macros below rely on.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    match sent {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A byte and perhaps a descriptor; `None` at the end.
pub(super) fn receive_with_fd(socket: &UnixStream) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut ancillary = Ancillary([0; 64]);
    let mut byte = 0_u8;
    let mut data = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: as above; a descriptor that the kernel has put into the buffer belongs to this process and to nobody in it yet.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_controllen = ancillary.0.len() as _;
        match libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) {
            0 => return Ok(None),
            1 => {}
            _ => return Err(io::Error::last_os_error()),
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let fd = (!header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS).then(|| {
            let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            OwnedFd::from_raw_fd(fd)
        });
        Ok(Some((byte, fd)))
    }
}

/// A file in memory without a name.
///
/// # Errors
/// When there is no memory or descriptor to be had.
pub(super) fn memory_file(bytes: usize) -> io::Result<File> {
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(c"offshoot-bench".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor, so that nobody else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(u64::try_from(bytes).unwrap_or(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_crosses_with_its_byte() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        send_with_fd(&here, FORK, theirs.as_raw_fd()).unwrap();
        drop((theirs, here));
        let (byte, fd) = receive_with_fd(&there).unwrap().unwrap();
        assert_eq!(byte, FORK);
        UnixStream::from(fd.unwrap()).write_all(b"x").unwrap();
        let mut got = [0];
        ours.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"x");
        assert!(receive_with_fd(&there).unwrap().is_none());
    }

    #[test]
    fn a_forked_child_answers_and_ends_or_is_killed() {
        fork_self().unwrap().end().unwrap();
        fork_self().unwrap().kill().unwrap();
    }
}
