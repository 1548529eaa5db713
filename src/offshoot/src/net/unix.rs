//! Unix sockets: streams and datagrams between processes of one machine.
//!
//! A path that is bound here stands in the bind table of its process before it exists, and is
//! removed when the socket is dropped, its isolate given up, or its process dead. It is made under
//! another name and then moved, so the address that the kernel reports for the socket is not its
//! path; that is why the types here have `path` and no `local_addr`.

use super::stream;
use crate::binder::{self, Claimed};
use crate::janitor::GrantedDir;
use crate::reactor::{Direction, Registered};
use crate::testing::places;
use crate::time;
use futures_io::{AsyncRead, AsyncWrite};
use offshoot_sys::fsx;
use offshoot_sys::standard::make_above;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest path that an address of the kernel's holds, in bytes.
const ADDRESS_MAX: usize = 107;
/// How long to wait before something is tried again that the kernel does not tell the end of.
const RETRY_FIRST: Duration = Duration::from_micros(200);
const RETRY_LAST: Duration = Duration::from_millis(20);

/// Calls `attempt` with a path that fits into an address and leads to `path`.
fn through<T>(path: &Path, attempt: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(parent), Some(name), true) = (
        path.parent(),
        path.file_name(),
        path.as_os_str().as_bytes().len() > ADDRESS_MAX,
    ) else {
        return attempt(path);
    };
    let directory = GrantedDir::open(parent)?;
    attempt(&fsx::path_through(directory.as_fd(), name)?)
}

/// Tries until it does not block: when a Unix socket's receiver has room is told to nobody who has
/// no connection to it. A checkpoint.
async fn retry<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut pause = RETRY_FIRST;
    crate::checkpoint().await?;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => return result,
        }
        time::pause(pause).await?;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

fn named(doing: &str, path: &Path, error: io::Error) -> io::Error {
    if error
        .get_ref()
        .is_some_and(|inner| inner.is::<crate::Error>())
    {
        return error;
    }
    let message = format!("cannot {doing} {}: {error}", path.display());
    io::Error::new(error.kind(), message)
}

/// A connection of Unix streams.
pub struct UnixStream {
    socket: Registered<mio::net::UnixStream>,
}

impl UnixStream {
    /// Connects to the socket at `path`, of whatever length. A checkpoint.
    ///
    /// While the listener has too many connections that it has not accepted, this waits.
    ///
    /// # Errors
    /// If nobody listens there; a cancelled error.
    ///
    /// # Cancellation
    /// If the future is dropped, there is no connection.
    #[track_caller]
    pub fn connect(path: impl AsRef<Path>) -> impl Future<Output = io::Result<UnixStream>> {
        let place = Location::caller();
        places::at(place, async move {
            let path = path.as_ref();
            let connected = retry(|| {
                through(path, |path| {
                    make_above(|| mio::net::UnixStream::connect(path))
                })
            })
            .await;
            let stream = connected.map_err(|error| named("connect to", path, error))?;
            let socket = Registered::new(stream)?;
            Ok(UnixStream { socket })
        })
    }

    /// Two ends of one connection.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use futures_util::{AsyncReadExt, AsyncWriteExt};
    /// use offshoot::net::UnixStream;
    ///
    /// # offshoot::run(async || {
    /// let (mut one, mut two) = UnixStream::pair()?;
    /// one.write_all(b"hello").await?;
    /// let mut read = [0; 5];
    /// two.read_exact(&mut read).await?;
    /// assert_eq!(&read, b"hello");
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        places::run_at(Location::caller(), || {
            let (one, other) = make_above(mio::net::UnixStream::pair)?;
            let (one, other) = (Registered::new(one)?, Registered::new(other)?);
            Ok((UnixStream { socket: one }, UnixStream { socket: other }))
        })
    }

    /// A connection that was made elsewhere, of this isolate from now on.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn from_std(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
        places::run_at(Location::caller(), || {
            stream.set_nonblocking(true)?;
            let socket = Registered::new(mio::net::UnixStream::from_std(stream))?;
            Ok(UnixStream { socket })
        })
    }

    /// Ends reading, writing or both.
    ///
    /// # Errors
    /// If it is not connected any more.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.get().shutdown(how)
    }
}

stream!(UnixStream);

impl AsFd for UnixStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get().as_fd()
    }
}

impl fmt::Debug for UnixStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.socket.get(), f)
    }
}

/// A Unix stream socket that listens at a path, which it removes when it is dropped.
pub struct UnixListener {
    // Dropped first: nobody finds a path at which nobody listens.
    claimed: Claimed,
    socket: Registered<mio::net::UnixListener>,
}

impl UnixListener {
    /// Listens at `path`, of whatever length. A checkpoint.
    ///
    /// The path appears when everything is in place: whoever sees it can connect. It goes away with
    /// the listener, with an isolate that has to be given up, and with the process, also if that is
    /// killed.
    ///
    /// # Errors
    /// `AddrInUse` if anything lies at the path, also a socket that nobody listens at; if the
    /// directory does not exist or may not be written; if the process has 255 paths already; a
    /// cancelled error. Each names the path.
    ///
    /// # Cancellation
    /// If the future is dropped, the path may exist for a moment.
    ///
    /// # Examples
    /// ```
    /// use futures_util::{AsyncReadExt, AsyncWriteExt};
    /// use offshoot::net::{UnixListener, UnixStream};
    ///
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("socket");
    /// # offshoot::run(async move || {
    /// let listener = UnixListener::bind(&path).await?;
    /// let mut client = UnixStream::connect(&path).await?;
    /// let mut server = listener.accept().await?;
    /// server.write_all(b"hi").await?;
    /// let mut two = [0; 2];
    /// client.read_exact(&mut two).await?;
    /// drop(listener);
    /// assert!(!path.exists());
    /// # Ok(())
    /// # }).unwrap();
    /// ```
    #[track_caller]
    pub fn bind(path: impl AsRef<Path>) -> impl Future<Output = io::Result<UnixListener>> {
        let place = Location::caller();
        places::at(place, async move {
            let bind = |path: &Path| make_above(|| mio::net::UnixListener::bind(path));
            let (listener, claimed) = binder::bind_socket(path.as_ref(), bind).await?;
            let socket = Registered::new(listener)?;
            Ok(UnixListener { socket, claimed })
        })
    }

    /// The next connection. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call, see [`TcpListener::accept`](super::TcpListener::accept).
    #[track_caller]
    pub fn accept(&self) -> impl Future<Output = io::Result<UnixStream>> {
        let place = Location::caller();
        places::at(place, async move {
            let accept = |socket: &mio::net::UnixListener| make_above(|| socket.accept());
            let (stream, _) = self.socket.operate(Direction::Read, accept).await?;
            let socket = Registered::new(stream)?;
            Ok(UnixStream { socket })
        })
    }

    /// Where it listens, symbolic links of the directory resolved.
    pub fn path(&self) -> &Path {
        self.claimed.path()
    }
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get().as_fd()
    }
}

impl fmt::Debug for UnixListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnixListener").field(&self.path()).finish()
    }
}

/// A Unix datagram socket, perhaps with a path, which it removes when it is dropped.
///
/// Datagrams arrive whole and in order, or their sender waits. One that is longer than the buffer
/// it is received into is cut off.
///
/// **A receiver cannot answer to the path of a socket that was bound here** by looking at whom a
/// datagram is from: the kernel reports another name. Put the path into the datagram.
pub struct UnixDatagram {
    // Dropped first, as that of a listener.
    claimed: Option<Claimed>,
    socket: Registered<mio::net::UnixDatagram>,
}

impl UnixDatagram {
    /// Receives at `path`, of whatever length. A checkpoint.
    ///
    /// # Errors
    /// As of [`UnixListener::bind`].
    ///
    /// # Cancellation
    /// If the future is dropped, the path may exist for a moment.
    #[track_caller]
    pub fn bind(path: impl AsRef<Path>) -> impl Future<Output = io::Result<UnixDatagram>> {
        let place = Location::caller();
        places::at(place, async move {
            let bind = |path: &Path| make_above(|| mio::net::UnixDatagram::bind(path));
            let (socket, claimed) = binder::bind_socket(path.as_ref(), bind).await?;
            UnixDatagram::new(socket, Some(claimed))
        })
    }

    /// One that has no path: it can send, and be half of a connection.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn unbound() -> io::Result<UnixDatagram> {
        places::run_at(Location::caller(), || {
            UnixDatagram::new(make_above(mio::net::UnixDatagram::unbound)?, None)
        })
    }

    /// Two that are connected with each other.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
        places::run_at(Location::caller(), || {
            let (one, other) = make_above(mio::net::UnixDatagram::pair)?;
            Ok((
                UnixDatagram::new(one, None)?,
                UnixDatagram::new(other, None)?,
            ))
        })
    }

    /// One that was made elsewhere, of this isolate from now on. A path that it has is not removed.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn from_std(socket: std::os::unix::net::UnixDatagram) -> io::Result<UnixDatagram> {
        places::run_at(Location::caller(), || {
            socket.set_nonblocking(true)?;
            UnixDatagram::new(mio::net::UnixDatagram::from_std(socket), None)
        })
    }

    fn new(socket: mio::net::UnixDatagram, claimed: Option<Claimed>) -> io::Result<UnixDatagram> {
        let socket = Registered::new(socket)?;
        Ok(UnixDatagram { socket, claimed })
    }

    /// Sets whom [`send`](UnixDatagram::send) sends to and [`recv`](UnixDatagram::recv) receives from.
    ///
    /// # Errors
    /// If nobody receives there.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        through(path, |path| self.socket.get().connect(path))
            .map_err(|error| named("connect to", path, error))
    }

    /// Sends a datagram to whom it is connected to. A checkpoint; waits while the receiver has no room.
    ///
    /// # Errors
    /// A cancelled error; a failed system call.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.socket
            .operate(Direction::Write, |socket| socket.send(datagram))
            .await
    }

    /// Sends a datagram to the socket at `path`. A checkpoint; waits while the receiver has no room.
    ///
    /// # Errors
    /// If nobody receives there; a cancelled error; a failed system call.
    pub async fn send_to(&self, datagram: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        let path = path.as_ref();
        retry(|| through(path, |path| self.socket.get().send_to(datagram, path)))
            .await
            .map_err(|error| named("send to", path, error))
    }

    /// Receives a datagram and returns its length. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket
            .operate(Direction::Read, |socket| socket.recv(buf))
            .await
    }

    /// Receives a datagram and returns its length and the path of its sender, if that has one which
    /// can be sent to. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, Option<PathBuf>)> {
        let (len, from) = self
            .socket
            .operate(Direction::Read, |socket| socket.recv_from(buf))
            .await?;
        // Such a path leads somewhere in the sender's process only.
        let path = from
            .as_pathname()
            .filter(|path| !path.starts_with("/proc/self"));
        Ok((len, path.map(Path::to_owned)))
    }

    /// Where it receives, symbolic links of the directory resolved, if it was bound here.
    pub fn path(&self) -> Option<&Path> {
        self.claimed.as_ref().map(Claimed::path)
    }
}

impl AsFd for UnixDatagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get().as_fd()
    }
}

impl fmt::Debug for UnixDatagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnixDatagram").field(&self.path()).finish()
    }
}
