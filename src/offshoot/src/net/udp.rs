//! UDP.

use super::ToAddresses;
use crate::reactor::{Direction, Registered};
use crate::testing::places;
use offshoot_sys::standard::make_above;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::Location;

/// A UDP socket.
///
/// A datagram that is longer than the buffer it is received into is cut off.
pub struct UdpSocket {
    socket: Registered<mio::net::UdpSocket>,
}

impl UdpSocket {
    /// Binds the first of the addresses that can be had; port 0 is any free port. A checkpoint if a
    /// name has to be looked up.
    ///
    /// # Errors
    /// That of the last address, named: `AddrInUse` among others.
    ///
    /// # Examples
    /// ```
    /// # use offshoot::prelude::*;
    /// use offshoot::net::UdpSocket;
    ///
    /// # offshoot::run(async || {
    /// let one = UdpSocket::bind("127.0.0.1:0").await?;
    /// let two = UdpSocket::bind("127.0.0.1:0").await?;
    /// one.send_to(b"hello", two.local_addr()?).await?;
    /// let mut read = [0; 16];
    /// let (length, from) = two.recv_from(&mut read).await?;
    /// assert_eq!(&read[..length], b"hello");
    /// assert_eq!(from, one.local_addr()?);
    /// # Ok(())
    /// # })?;
    /// # Ok::<(), offshoot::Error>(())
    /// ```
    #[track_caller]
    pub fn bind(to: impl ToAddresses) -> impl Future<Output = io::Result<UdpSocket>> {
        let place = Location::caller();
        places::at(place, async move {
            let bound = super::first(to, "bind", |to| {
                make_above(|| mio::net::UdpSocket::bind(to))
            })
            .await?;
            let socket = Registered::new(bound)?;
            Ok(UdpSocket { socket })
        })
    }

    /// A socket that was made elsewhere, of this isolate from now on.
    ///
    /// # Errors
    /// Outside of an isolate; a failed system call.
    #[track_caller]
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        places::run_at(Location::caller(), || {
            socket.set_nonblocking(true)?;
            let socket = Registered::new(mio::net::UdpSocket::from_std(socket))?;
            Ok(UdpSocket { socket })
        })
    }

    /// Sets whom [`send`](UdpSocket::send) sends to and [`recv`](UdpSocket::recv) receives from. A
    /// checkpoint if a name has to be looked up.
    ///
    /// # Errors
    /// That of the last address, named.
    pub async fn connect(&self, to: impl ToAddresses) -> io::Result<()> {
        super::first(to, "connect to", |address| {
            self.socket.get().connect(address)
        })
        .await
    }

    /// Sends a datagram to whom it is connected to. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call, also that of an earlier datagram.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.socket
            .operate(Direction::Write, |socket| socket.send(datagram))
            .await
    }

    /// Sends a datagram to the first of the addresses. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call, also that of an earlier datagram.
    pub async fn send_to(&self, datagram: &[u8], to: impl ToAddresses) -> io::Result<usize> {
        let address = to.to_addresses().resolve().await?[0];
        self.socket
            .operate(Direction::Write, |socket| socket.send_to(datagram, address))
            .await
    }

    /// Receives a datagram from whom it is connected to and returns its length. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call, also that of an earlier datagram.
    pub async fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket
            .operate(Direction::Read, |socket| socket.recv(buf))
            .await
    }

    /// Receives a datagram and returns its length and whose it is. A checkpoint.
    ///
    /// # Errors
    /// A cancelled error; a failed system call, also that of an earlier datagram.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket
            .operate(Direction::Read, |socket| socket.recv_from(buf))
            .await
    }

    /// Its address, with the port that it was given.
    ///
    /// # Errors
    /// A failed system call.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get().local_addr()
    }

    /// The address that it is connected to.
    ///
    /// # Errors
    /// If it is not connected.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get().peer_addr()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get().as_fd()
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.socket.get(), f)
    }
}
