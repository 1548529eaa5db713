//! TCP.

use super::{ToAddresses, stream};
use crate::reactor::{Direction, Registered};
use crate::testing::places;
use futures_io::{AsyncRead, AsyncWrite};
use offshoot_sys::standard::make_above;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A TCP connection.
///
/// # Examples
/// ```
/// use futures_util::{AsyncReadExt, AsyncWriteExt};
/// use offshoot::net::{TcpListener, TcpStream};
///
/// # offshoot::run(async || {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let mut client = TcpStream::connect(listener.local_addr()?).await?;
/// let (mut server, _) = listener.accept().await?;
/// client.write_all(b"hello").await?;
/// client.close().await?;
/// let mut text = String::new();
/// server.read_to_string(&mut text).await?;
/// assert_eq!(text, "hello");
/// # Ok(())
/// # }).unwrap();
/// ```
pub struct TcpStream {
    socket: Registered<mio::net::TcpStream>,
}

impl TcpStream {
    /// Connects to the first of the addresses that accepts. A checkpoint.
    ///
    /// # Errors
    /// That of the last address, named; of the look-up of a name; a cancelled error at once, however
    /// long the other side takes.
    ///
    /// # Cancellation
    /// If the future is dropped, the connection is closed.
    #[track_caller]
    pub fn connect(to: impl ToAddresses) -> impl Future<Output = io::Result<TcpStream>> {
        let place = Location::caller();
        places::at(place, async move {
            let addresses = to.to_addresses().resolve().await?;
            let mut last = None;
            for address in addresses {
                match TcpStream::connect_one(address).await {
                    Ok(stream) => return Ok(stream),
                    // A cancellation is not this address's fault.
                    Err(error)
                        if error
                            .get_ref()
                            .is_some_and(|inner| inner.is::<crate::Error>()) =>
                    {
                        return Err(error);
                    }
                    Err(error) => {
                        let message = format!("cannot connect to {address}: {error}");
                        last = Some(io::Error::new(error.kind(), message));
                    }
                }
            }
            Err(last.unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
        })
    }

    async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Registered::new(make_above(|| mio::net::TcpStream::connect(address))?)?;
        let connected = |socket: &mio::net::TcpStream| {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            match socket.peer_addr() {
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                result => result.map(drop),
            }
        };
        socket.operate(Direction::Write, connected).await?;
        Ok(TcpStream { socket })
    }

    /// A connection that was made elsewhere, by this isolate from now on.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        places::run_at(Location::caller(), || {
            stream.set_nonblocking(true)?;
            let socket = Registered::new(mio::net::TcpStream::from_std(stream))?;
            Ok(TcpStream { socket })
        })
    }

    /// Reads without taking what is read. A checkpoint.
    ///
    /// # Errors
    /// As of a read.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket
            .operate(Direction::Read, |socket| socket.peek(buf))
            .await
    }

    /// Ends reading, writing or both.
    ///
    /// # Errors
    /// If it is not connected any more.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.get().shutdown(how)
    }

    /// The address of this side.
    ///
    /// # Errors
    /// A failed system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get().local_addr()
    }

    /// The address of the other side.
    ///
    /// # Errors
    /// If it is not connected any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get().peer_addr()
    }

    /// True if small packets are sent at once.
    ///
    /// # Errors
    /// A failed system call.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.socket.get().nodelay()
    }

    /// Sets whether small packets are sent at once (`TCP_NODELAY`). Off at first, as the operating
    /// system has it; a protocol of requests and answers wants it on.
    ///
    /// # Errors
    /// A failed system call.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.socket.get().set_nodelay(on)
    }
}

stream!(TcpStream);

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get().as_fd()
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.socket.get(), f)
    }
}

/// A TCP socket that listens.
pub struct TcpListener {
    socket: Registered<mio::net::TcpListener>,
}

impl TcpListener {
    /// Listens at the first of the addresses that can be had; port 0 is any free port. A checkpoint
    /// if a name has to be looked up.
    ///
    /// The port of a listener that was closed can be bound again at once (`SO_REUSEADDR`).
    ///
    /// # Errors
    /// That of the last address, named: `AddrInUse` among others.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use futures_util::{AsyncReadExt, AsyncWriteExt};
    /// use offshoot::net::{TcpListener, TcpStream};
    ///
    /// # offshoot::run(async || {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// let mut client = TcpStream::connect(address).await?;
    /// let (mut server, _) = listener.accept().await?;
    /// client.write_all(b"hello").await?;
    /// let mut read = [0; 5];
    /// server.read_exact(&mut read).await?;
    /// assert_eq!(&read, b"hello");
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn bind(to: impl ToAddresses) -> impl Future<Output = io::Result<TcpListener>> {
        let place = Location::caller();
        places::at(place, async move {
            let bound = super::first(to, "listen at", |to| {
                make_above(|| mio::net::TcpListener::bind(to))
            })
            .await?;
            let socket = Registered::new(bound)?;
            Ok(TcpListener { socket })
        })
    }

    /// A listener that was made elsewhere, of this isolate from now on.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        places::run_at(Location::caller(), || {
            listener.set_nonblocking(true)?;
            let socket = Registered::new(mio::net::TcpListener::from_std(listener))?;
            Ok(TcpListener { socket })
        })
    }

    /// The next connection, and whose it is. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call. Most of the latter concern one connection or pass
    /// (`ConnectionAborted`, too many open files); after a pause `accept` can be tried again.
    #[track_caller]
    pub fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> {
        let place = Location::caller();
        places::at(place, async move {
            let (stream, address) = self
                .socket
                .operate(Direction::Read, |socket| make_above(|| socket.accept()))
                .await?;
            let socket = Registered::new(stream)?;
            Ok((TcpStream { socket }, address))
        })
    }

    /// Its address, with the port that it was given.
    ///
    /// # Errors
    /// A failed system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get().local_addr()
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get().as_fd()
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.socket.get(), f)
    }
}
