//! Sockets, enough for real programs: TCP, UDP, and Unix streams and datagrams.
//!
//! A socket belongs to the isolate that made it and stays on its thread; it is readied by that
//! isolate's own poll, which is made with its first socket. Streams are
//! [`AsyncRead`](futures_io::AsyncRead) and [`AsyncWrite`](futures_io::AsyncWrite), by value and by
//! reference, so that the extension traits of `futures-util` work on them, and so that one task can
//! read while another one writes.
//!
//! **Each operation is a checkpoint**: inside of a cancelled scope it fails at once, with an
//! `io::Error` that `?` turns back into the cancelled error ([`Error::from`](crate::Error)).
//! Dropping the future of an operation loses nothing, unless its documentation says otherwise.
//!
//! **Several tasks** may await methods of the same socket (`accept`, `recv_from`, …). Of several
//! that poll `AsyncRead`, or `AsyncWrite`, of the same socket at once only the last is woken.
//!
//! A Unix socket that is bound to a path leaves nothing behind, however its process ends.

mod addr;
mod tcp;
mod udp;
mod unix;

use std::io;
use std::net::SocketAddr;

pub use addr::{Addresses, ToAddresses};
pub use tcp::{TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UnixDatagram, UnixListener, UnixStream};

/// What `make` makes of the first address that it succeeds with. Does not wait for anything but the
/// look-up of a name.
async fn first<T>(
    to: impl ToAddresses,
    doing: &str,
    make: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = None;
    for address in to.to_addresses().resolve().await? {
        match make(address) {
            Ok(made) => return Ok(made),
            Err(error) => {
                let message = format!("cannot {doing} {address}: {error}");
                last = Some(io::Error::new(error.kind(), message));
            }
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::InvalidInput.into()))
}

/// `AsyncRead` and `AsyncWrite` for a type with `socket: Registered<S>` where `&S: Read + Write`,
/// and for references to it.
macro_rules! stream {
    ($type:ty) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut &*self).poll_read(cx, buf)
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut &*self).poll_read_vectored(cx, bufs)
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut &*self).poll_write(cx, buf)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut &*self).poll_write_vectored(cx, bufs)
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                // A socket has no buffer that it could keep back.
                Poll::Ready(Ok(()))
            }

            fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut &*self).poll_close(cx)
            }
        }

        impl AsyncRead for &$type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                self.socket
                    .poll_with(cx, Direction::Read, |mut socket| socket.read(buf))
            }

            fn poll_read_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                self.socket
                    .poll_with(cx, Direction::Read, |mut socket| socket.read_vectored(bufs))
            }
        }

        impl AsyncWrite for &$type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.socket
                    .poll_with(cx, Direction::Write, |mut socket| socket.write(buf))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.socket.poll_with(cx, Direction::Write, |mut socket| {
                    socket.write_vectored(bufs)
                })
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                // Also in a cancelled scope: it does not wait, and it is part of cleaning up.
                Poll::Ready(match self.socket.get().shutdown(Shutdown::Write) {
                    // The other side was faster.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                    result => result,
                })
            }
        }
    };
}
use stream;
