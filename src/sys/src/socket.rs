//! Unix sockets: pairs without a name, descriptors in messages, and who is on the other side.
//!
//! All pairs are non-blocking and close-on-exec; nothing here has a path. [`send_packet`] and [`recv_packet`] keep a message whole and
//! its descriptors with it, or fail: a message that lost a part of either is never delivered.

use crate::retry::retry;
use crate::standard::above;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socketpair, sockopt};
use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest message of [`send_packet`], in bytes. Well below the default send buffer (208 KiB), so that one always fits.
pub const PACKET_MAX: usize = 64 * 1024;

/// The most descriptors in one message.
pub const PACKET_FDS_MAX: usize = 16;

/// What [`recv_packet`] received besides the bytes.
#[derive(Debug)]
pub struct Packet {
    /// How many bytes the message had; the buffer's length.
    pub len: usize,
    /// Its descriptors, in the sender's order, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// It carried more than [`PACKET_FDS_MAX`], or more than this process may open. None of them is here, and none is open.
    pub fds_lost: bool,
}

/// Who made the other end of a socket pair, or called `connect` or `listen`: the kernel's word, taken at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCred {
    /// The process, or 0 when it cannot be seen from this pid namespace.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// No call waits, whatever the flags of the descriptor: those of one that another process has sent are shared with it, and
/// it can change them at any time.
const SEND: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
const RECEIVE: libc::c_int = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;

/// Two connected stream sockets.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SockType::Stream)
}

/// Two connected sockets that keep message boundaries and tell the end of file (`SOCK_SEQPACKET`).
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(SockType::SeqPacket)
}

/// Sends what fits now of `bytes`; how many that were.
///
/// # Errors
/// `WouldBlock` when nothing fits, `BrokenPipe` when the peer is gone (never SIGPIPE).
pub fn send(fd: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: pointer and length describe one live slice, which the kernel only reads.
    retry(|| unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), SEND) })
        .map(|sent| sent as usize)
}

/// As [`send`], from several buffers in their order.
pub fn send_vectored(fd: &impl AsFd, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut message = message_header();
    // IoSlice has the layout of iovec by its documentation. The kernel reads through it, whatever the pointer's mutability.
    message.msg_iov = bytes.as_ptr().cast_mut().cast();
    // More than IOV_MAX would be an error; the caller learns from the result that a part is left.
    message.msg_iovlen = bytes.len().min(libc::UIO_MAXIOV as usize) as _;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `message` is live and holds the live buffers above, no address and no control data.
    retry(|| unsafe { libc::sendmsg(fd, &message, SEND) }).map(|sent| sent as usize)
}

/// Receives what is there, at most `buf.len()` bytes; 0 is the end of file (or of an empty buffer).
///
/// # Errors
/// `WouldBlock` when nothing is there, `ConnectionReset` when the peer ended with our data unread.
pub fn recv(fd: &impl AsFd, buf: &mut [u8]) -> io::Result<usize> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: pointer and length describe one live, writable slice.
    retry(|| unsafe { libc::recv(fd, buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) })
        .map(|received| received as usize)
}

/// As [`send`], with descriptors, which arrive with the first of the bytes. They are duplicated, not given away.
///
/// # Errors
/// As of [`send`]; `InvalidInput` without a byte, or with more than [`PACKET_FDS_MAX`] descriptors; `ETOOMANYREFS` when more are in flight than
/// `RLIMIT_NOFILE` allows.
pub fn send_with_fds(fd: &impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if bytes.is_empty() || fds.len() > PACKET_FDS_MAX {
        let what = "descriptors go along with a byte, and not more than 16 at once";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    send_message(fd, bytes, fds)
}

/// What [`recv_with_fds`] received.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; 0 is the end of file.
    pub len: usize,
    /// The descriptors that came with the first of them, in the sender's order, close-on-exec. Never those of two sends.
    pub fds: Vec<OwnedFd>,
    /// There were more than this process may open. None of them is here, and none is open.
    pub fds_lost: bool,
}

/// As [`recv`], with the descriptors that were sent along. A call gives no more than those of one send, and ends before those of the next.
///
/// # Errors
/// As of [`recv`].
pub fn recv_with_fds(fd: &impl AsFd, buf: &mut [u8]) -> io::Result<Received> {
    let part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: `part` is `buf`, which is borrowed until this returns.
    let Message {
        len, fds, fds_lost, ..
    } = unsafe { receive_message(fd, part) }?;
    Ok(Received { len, fds, fds_lost })
}

/// Sends one message with descriptors over a packet socket, whole or not at all. The descriptors are duplicated, not given away.
///
/// # Errors
/// `InvalidInput` for an empty message (it could not be told from the end of file), one above [`PACKET_MAX`] or one with more than
/// [`PACKET_FDS_MAX`] descriptors; `WouldBlock` when it does not fit now; `BrokenPipe` when the peer is gone. `ETOOMANYREFS` when more
/// descriptors are in flight than `RLIMIT_NOFILE` allows.
pub fn send_packet(fd: &impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > PACKET_MAX || fds.len() > PACKET_FDS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a packet of {} bytes and {} descriptors cannot be sent",
                bytes.len(),
                fds.len()
            ),
        ));
    }
    let sent = send_message(fd, bytes, fds)?;
    // A packet socket never sends a part. On a stream socket, where this function has no business, it could.
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the packet was cut",
        ))
    }
}

/// One `sendmsg`, with at most [`PACKET_FDS_MAX`] descriptors.
fn send_message(fd: &impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control::default();
    let mut message = message_header();
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let length = size_of_val(fds) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic on the length. 16 descriptors fit, see `Control`.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
        // SAFETY: the control buffer is aligned for a header, zeroed, and as long as `msg_controllen` says, so that the first header
        // exists and has room for `length` bytes of data behind it. A BorrowedFd has the layout of the number it holds.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as _;
            libc::CMSG_DATA(header).copy_from_nonoverlapping(fds.as_ptr().cast(), length as usize);
        }
    }
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `message` holds the live buffers above, which the kernel only reads.
    retry(|| unsafe { libc::sendmsg(fd, &message, SEND) }).map(|sent| sent as usize)
}

/// True for errors of a send that may pass by themselves: no room in the socket, no memory, too many descriptors under way.
pub fn may_pass(error: &io::Error) -> bool {
    let pass = [
        libc::EAGAIN,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::ETOOMANYREFS,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| pass.contains(&errno))
        || error.kind() == io::ErrorKind::WouldBlock
}

/// True for errors of a send that say that nobody is there to receive.
pub fn is_peer_gone(error: &io::Error) -> bool {
    let gone = [
        libc::EPIPE,
        libc::ECONNRESET,
        libc::ENOTCONN,
        libc::ECONNREFUSED,
        libc::EBADF,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| gone.contains(&errno))
}

/// Receives one message of at most [`PACKET_MAX`] bytes with its descriptors; `None` at the end of file. The bytes replace what is in `buf`.
///
/// # Errors
/// `WouldBlock` when nothing is there. `InvalidData` when the message was longer: what did arrive of it is closed, and the next call gives the
/// next message. Descriptors that are too many are no error, see [`Packet::fds_lost`]: the bytes say whom that concerns.
pub fn recv_packet(fd: &impl AsFd, buf: &mut Vec<u8>) -> io::Result<Option<Packet>> {
    buf.clear();
    buf.reserve(PACKET_MAX);
    let part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: PACKET_MAX,
    };
    // SAFETY: `part` is the room of `buf`, which is borrowed until this returns.
    let Message {
        len: length,
        fds,
        fds_lost,
        cut,
    } = unsafe { receive_message(fd, part) }?;
    if cut {
        let what = "a packet lost bytes: it was longer than the limit";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if length == 0 {
        return match fds.is_empty() && !fds_lost {
            true => Ok(None),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a packet had descriptors and no bytes",
            )),
        };
    }
    // SAFETY: the kernel has written `length` bytes, at most PACKET_MAX, and the capacity was reserved above.
    unsafe { buf.set_len(length) };
    Ok(Some(Packet {
        len: length,
        fds,
        fds_lost,
    }))
}

/// Whether `fd` is an open Unix socket of the packet kind. Takes a number because the question is asked of numbers that came from outside.
pub fn is_packet_socket(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
        && socket_option(fd, libc::SO_TYPE) == Some(libc::SOCK_SEQPACKET)
}

/// The peer's credentials.
pub fn peer(fd: &impl AsFd) -> io::Result<PeerCred> {
    let cred = getsockopt(&fd.as_fd(), sockopt::PeerCredentials)?;
    Ok(PeerCred {
        pid: cred.pid(),
        uid: cred.uid(),
        gid: cred.gid(),
    })
}

/// Ends both directions at once, for every holder of the socket: blocked calls return, the peer sees the end of file. A descriptor that
/// is no connected socket is left as it is.
pub fn shutdown_both(fd: &impl AsFd) {
    // SAFETY: takes no pointer. ENOTCONN and ENOTSOCK mean that there is nothing to end.
    let _ = retry(|| unsafe { libc::shutdown(fd.as_fd().as_raw_fd(), libc::SHUT_RDWR) });
}

/// Waits until `fd` is readable, at its end or in error; false when `timeout` passed first. Without one it waits without bound.
pub fn wait_readable(fd: &impl AsFd, timeout: Option<Duration>) -> io::Result<bool> {
    Ok(crate::poll::wait(&[fd.as_fd()], timeout)?[0])
}

/// Puts a dead socket in the place of `fd`: whoever uses the number from now on reads the end of file and gets `EPIPE` for a write.
///
/// For the sockets of an abandoned thread. Closing them would free the number, and the thread, should it ever run again, would write
/// into a stranger's socket. [`shutdown_both`] first: a call that is blocked in the old socket does not notice its replacement.
/// A plain `write` (not `send` with `MSG_NOSIGNAL`, which std uses) raises SIGPIPE where the program does not ignore it, as Rust's do.
///
/// # Safety
/// `fd` must be open, and belong to code that will not be surprised: nothing may rely on it still being the file that it was (a mapping's
/// owner, a lock's holder). The number stays open, and is closed by whoever would have closed it before.
pub unsafe fn replace_with_dead_socket(fd: RawFd) -> io::Result<()> {
    let (dead, peer) = stream_pair()?;
    shutdown_both(&dead);
    drop(peer);
    loop {
        // SAFETY: takes no pointer. That the caller may lose the old file is the contract above.
        match retry(|| unsafe { libc::dup3(dead.as_raw_fd(), fd, libc::O_CLOEXEC) }) {
            // Another thread is in the middle of opening that number, which ends by itself.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::yield_now(),
            result => return result.map(drop),
        }
    }
}

/// Sockets that can be taken away from a thread that does not come back; see [`Revocable::revoke`].
#[derive(Debug, Default)]
pub struct Revocable {
    /// The numbers of those that are open; `None` once they were revoked.
    held: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    numbers: BTreeSet<RawFd>,
    revoked: bool,
}

impl Revocable {
    /// Shuts every held socket down and puts a dead one in its place: peers see the end of file, and so does the thread.
    ///
    /// From here on none can be added. Doing it twice is no error.
    pub fn revoke(&self) {
        let mut state = self.lock();
        state.revoked = true;
        for number in std::mem::take(&mut state.numbers) {
            // SAFETY: a number is in the set only while its `Held` is alive, whose drop takes the lock that is held here before it
            // closes; so it is open.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            shutdown_both(&fd);
            // SAFETY: open, as above. `Held::new` has let only sockets in, whose owner expects no more of them than that a peer may end
            // the connection at any time.
            let _ = unsafe { replace_with_dead_socket(number) };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that a [`Revocable`] may take away. Derefs to it, never mutably, so that it stays the one that was put in; closed when dropped.
#[derive(Debug)]
pub struct Held<T: AsFd> {
    /// Only `None` while it is dropped.
    socket: Option<T>,
    number: RawFd,
    holder: Arc<Revocable>,
}

impl<T: AsFd> Held<T> {
    /// Lets `holder` take `socket` away.
    ///
    /// # Errors
    /// `ENOTSOCK` when it is no socket, `BrokenPipe` when `holder` has revoked its sockets already.
    pub fn new(holder: &Arc<Revocable>, socket: T) -> io::Result<Self> {
        let number = socket.as_fd().as_raw_fd();
        getsockopt(&socket, sockopt::SockType)?;
        let mut state = holder.lock();
        if state.revoked {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the sockets of this thread were revoked",
            ));
        }
        state.numbers.insert(number);
        drop(state);
        Ok(Self {
            socket: Some(socket),
            number,
            holder: holder.clone(),
        })
    }
}

impl<T: AsFd> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.socket
            .as_ref()
            .expect("it is there until it is dropped")
    }
}

impl<T: AsFd> Drop for Held<T> {
    fn drop(&mut self) {
        let mut state = self.holder.lock();
        state.numbers.remove(&self.number);
        // Closed under the lock, so that the number is not revoked when it is somebody else's.
        drop(self.socket.take());
        drop(state);
    }
}

/// Room for one control message with [`PACKET_FDS_MAX`] descriptors, aligned as its header must be.
#[derive(Default)]
struct Control([u64; 16]);

// A header takes at most 16 bytes on any Linux, its data 64.
const _: () = assert!(size_of::<Control>() >= 16 + PACKET_FDS_MAX * size_of::<RawFd>());

fn pair(kind: SockType) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (one, other) = socketpair(AddressFamily::Unix, kind, None, flags)?;
    Ok((above(one)?, above(other)?))
}

fn message_header() -> libc::msghdr {
    // SAFETY: an all-zero msghdr is valid and means nothing sent, nothing received. It has private padding on some targets, so that it
    // cannot be written as a literal.
    unsafe { std::mem::zeroed() }
}

/// What [`receive_message`] received. Dropped, it closes its descriptors.
struct Message {
    len: usize,
    fds: Vec<OwnedFd>,
    /// There were more than this process may open; the others are closed.
    fds_lost: bool,
    /// The message was longer.
    cut: bool,
}

/// Receives into `part`, with descriptors.
///
/// # Safety
/// `part` is memory that may be written for as long as this runs.
unsafe fn receive_message(fd: &impl AsFd, mut part: libc::iovec) -> io::Result<Message> {
    let mut control = Control::default();
    let mut message = message_header();
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: pure arithmetic on the length.
    message.msg_controllen =
        unsafe { libc::CMSG_SPACE((PACKET_FDS_MAX * size_of::<RawFd>()) as u32) } as _;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `message` holds two live, writable buffers of the lengths given, one of them by the caller's word.
    let len = retry(|| unsafe { libc::recvmsg(raw, &mut message, RECEIVE) })? as usize;
    // Taken before anything else is looked at: from here on an early return closes them.
    let mut fds = take_fds(&message);
    let fds_lost = message.msg_flags & libc::MSG_CTRUNC != 0;
    if fds_lost {
        fds.clear();
    }
    Ok(Message {
        len,
        fds,
        fds_lost,
        cut: message.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// Every descriptor in the control data of a received message.
fn take_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: `message` was filled by recvmsg, its control buffer is live and has the length that the kernel wrote back. The macros walk
    // within it. Each number is a descriptor that the kernel has just made for us, so that nobody else owns it; the data need not be
    // aligned, hence read_unaligned.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(current) = header.as_ref() {
            if current.cmsg_level == libc::SOL_SOCKET && current.cmsg_type == libc::SCM_RIGHTS {
                let length: usize = current.cmsg_len as _;
                let bytes = length - libc::CMSG_LEN(0) as usize;
                let data: *const RawFd = libc::CMSG_DATA(current).cast();
                for index in 0..bytes / size_of::<RawFd>() {
                    let fd = OwnedFd::from_raw_fd(data.add(index).read_unaligned());
                    // Without room it is lost, as the kernel leaves out those for which there is none.
                    fds.extend(above(fd));
                }
            }
            header = libc::CMSG_NXTHDR(message, current);
        }
    }
    fds
}

fn socket_option(fd: RawFd, option: i32) -> Option<i32> {
    let mut value = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: value and length are live and writable, and the length is that of the value. Any number may be asked about.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &mut length,
        )
    };
    (result == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    /// A descriptor to send, and what tells whether every copy of it is closed: the reading end sees the end of file.
    fn traced() -> (OwnedFd, UnixStream) {
        let (traced, witness) = UnixStream::pair().unwrap();
        witness.set_read_timeout(LONG).unwrap();
        (traced.into(), witness)
    }

    fn all_closed(mut witness: UnixStream) -> bool {
        matches!(witness.read(&mut [0]), Ok(0))
    }

    fn is_cloexec(fd: &OwnedFd) -> bool {
        // SAFETY: takes no pointer.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) & libc::FD_CLOEXEC != 0 }
    }

    fn is_nonblocking(fd: &OwnedFd) -> bool {
        // SAFETY: takes no pointer.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK != 0 }
    }

    /// Sends descriptors without the limit of `send_packet`.
    fn send_raw(fd: &OwnedFd, bytes: &[u8], fds: &[RawFd]) {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let rights = [ControlMessage::ScmRights(fds)];
        sendmsg::<()>(
            fd.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .unwrap();
    }

    #[test]
    fn descriptors_come_with_their_bytes_over_a_stream_and_never_those_of_two_sends() {
        let (a, b) = stream_pair().unwrap();
        let (first, mut of_first) = traced();
        let (second, of_second) = traced();
        assert_eq!(send(&a, b"xx").unwrap(), 2);
        assert_eq!(send_with_fds(&a, b"yy", &[first.as_fd()]).unwrap(), 2);
        assert_eq!(send_with_fds(&a, b"zz", &[second.as_fd()]).unwrap(), 2);
        drop((first, second));
        let mut buffer = [0; 64];
        let (mut bytes, mut came) = (Vec::new(), Vec::new());
        while bytes.len() < 6 {
            let received = recv_with_fds(&b, &mut buffer).unwrap();
            assert!(received.fds.len() <= 1 && !received.fds_lost);
            bytes.extend_from_slice(&buffer[..received.len]);
            came.extend(received.fds.into_iter().map(|fd| (bytes.len(), fd)));
        }
        assert_eq!(bytes, b"xxyyzz");
        assert_eq!(came.len(), 2);
        assert!(came[0].0 <= 4, "before what was sent after it");
        assert!(came.iter().all(|(_, fd)| is_cloexec(fd)));
        UnixStream::from(came.remove(0).1).write_all(b"1").unwrap();
        of_first.read_exact(&mut [0]).unwrap();
        drop(came);
        assert!(all_closed(of_second));
        drop(a);
        assert_eq!(recv_with_fds(&b, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn pairs_are_nonblocking_and_close_on_exec() {
        for (a, b) in [stream_pair().unwrap(), packet_pair().unwrap()] {
            for fd in [&a, &b] {
                assert!(is_cloexec(fd) && is_nonblocking(fd));
            }
            assert_eq!(
                recv(&a, &mut [0; 4]).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
        }
    }

    #[test]
    fn a_stream_carries_bytes_and_ends() {
        let (a, b) = stream_pair().unwrap();
        assert_eq!(send(&a, b"abc").unwrap(), 3);
        assert_eq!(
            send_vectored(
                &a,
                &[IoSlice::new(b"de"), IoSlice::new(b""), IoSlice::new(b"f")]
            )
            .unwrap(),
            3
        );
        let mut buf = [0; 10];
        assert_eq!(recv(&b, &mut buf).unwrap(), 6);
        assert_eq!(&buf[..6], b"abcdef");
        // Full, then the rest is refused rather than waited for.
        let big = vec![0_u8; 1 << 20];
        while send(&a, &big).is_ok() {}
        assert_eq!(
            send(&a, &big).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(b);
        // Neither raises SIGPIPE, which the test would not show: Rust ignores it. The process tests have it at its default.
        assert_eq!(
            send(&a, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(
            send_vectored(&a, &[IoSlice::new(b"x")]).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn packets_keep_their_borders_and_descriptors() {
        let (a, b) = packet_pair().unwrap();
        let (mut write_end, read_end) = {
            let (x, y) = UnixStream::pair().unwrap();
            (x, OwnedFd::from(y))
        };
        let null = File::open("/dev/null").unwrap();
        send_packet(&a, b"one", &[]).unwrap();
        send_packet(&a, b"two!", &[read_end.as_fd(), null.as_fd()]).unwrap();
        drop(read_end);

        let mut buf = b"what was here before".to_vec();
        let packet = recv_packet(&b, &mut buf).unwrap().unwrap();
        assert_eq!(
            (packet.len, packet.fds.len(), &buf[..]),
            (3, 0, &b"one"[..])
        );
        let packet = recv_packet(&b, &mut buf).unwrap().unwrap();
        assert_eq!(
            (packet.len, packet.fds.len(), &buf[..]),
            (4, 2, &b"two!"[..])
        );
        assert!(packet.fds.iter().all(is_cloexec));
        let mut received = packet.fds.into_iter();
        let mut stream = UnixStream::from(received.next().unwrap());
        write_end.write_all(b"through").unwrap();
        drop(write_end);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        // Second in order: /dev/null reads as empty.
        let mut null = File::from(received.next().unwrap());
        assert_eq!(null.read(&mut [0]).unwrap(), 0);

        assert_eq!(
            recv_packet(&b, &mut buf).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(a);
        assert!(recv_packet(&b, &mut buf).unwrap().is_none());
        assert_eq!(
            send_packet(&b, b"x", &[]).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn the_limits_of_a_packet_are_exact() {
        let (a, b) = packet_pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let bytes = vec![7; PACKET_MAX + 1];
        let fds = vec![null.as_fd(); PACKET_FDS_MAX + 1];
        let refused = |bytes: &[u8], fds: &[BorrowedFd<'_>]| {
            assert_eq!(
                send_packet(&a, bytes, fds).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        };
        refused(b"", &[]);
        refused(&bytes, &[]);
        refused(b"x", &fds);
        send_packet(&a, &bytes[1..], &fds[1..]).unwrap();
        let mut buf = Vec::new();
        let packet = recv_packet(&b, &mut buf).unwrap().unwrap();
        assert_eq!((packet.len, packet.fds.len()), (PACKET_MAX, PACKET_FDS_MAX));
        assert_eq!(buf, bytes[1..]);
    }

    #[test]
    fn a_packet_with_too_many_descriptors_is_refused_and_none_leaks() {
        let (a, b) = packet_pair().unwrap();
        let mut witnesses = Vec::new();
        let fds: Vec<OwnedFd> = (0..PACKET_FDS_MAX + 1)
            .map(|_| {
                let (fd, witness) = traced();
                witnesses.push(witness);
                fd
            })
            .collect();
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        send_raw(&a, b"too many", &numbers);
        send_packet(&a, b"next", &[]).unwrap();
        drop(fds);
        let mut buf = Vec::new();
        let packet = recv_packet(&b, &mut buf).unwrap().unwrap();
        assert!(packet.fds_lost && packet.fds.is_empty(), "{packet:?}");
        assert_eq!(buf, b"too many");
        assert!(witnesses.into_iter().all(all_closed));
        recv_packet(&b, &mut buf).unwrap().unwrap();
        assert_eq!(buf, b"next");
    }

    #[test]
    fn a_packet_that_is_too_long_is_refused_and_its_descriptor_closed() {
        let (a, b) = packet_pair().unwrap();
        let (fd, witness) = traced();
        send_raw(&a, &vec![0; PACKET_MAX + 1], &[fd.as_raw_fd()]);
        drop(fd);
        let error = recv_packet(&b, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("lost bytes"), "{error}");
        assert!(all_closed(witness));
    }

    #[test]
    fn descriptors_without_bytes_are_no_end_of_file() {
        let (a, b) = packet_pair().unwrap();
        let (fd, witness) = traced();
        send_raw(&a, b"", &[fd.as_raw_fd()]);
        drop(fd);
        assert_eq!(
            recv_packet(&b, &mut Vec::new()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert!(all_closed(witness));
    }

    #[test]
    fn tells_sockets_apart() {
        let (packet, _peer) = packet_pair().unwrap();
        let (stream, _peer) = stream_pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        assert!(is_packet_socket(packet.as_raw_fd()));
        assert!(!is_packet_socket(stream.as_raw_fd()));
        assert!(!is_packet_socket(file.as_raw_fd()));
        assert!(!is_packet_socket(-1));
        assert!(!is_packet_socket(RawFd::MAX));
        let cred = peer(&packet).unwrap();
        // SAFETY: no arguments, cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        assert_eq!(
            cred,
            PeerCred {
                pid: std::process::id() as i32,
                uid,
                gid
            }
        );
        assert!(peer(&file).is_err());
    }

    #[test]
    fn a_dead_socket_takes_the_place_of_a_live_one() {
        let (socket, peer) = stream_pair().unwrap();
        assert!(!wait_readable(&socket, Some(Duration::ZERO)).unwrap());
        let blocked = socket.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            assert!(wait_readable(&blocked, LONG).unwrap());
            recv(&blocked, &mut [0]).unwrap()
        });
        shutdown_both(&socket);
        assert_eq!(
            reader.join().unwrap(),
            0,
            "whoever is blocked in it sees the end of file"
        );
        assert_eq!(recv(&peer, &mut [0]).unwrap(), 0);

        let number = socket.as_raw_fd();
        // SAFETY: it is open and used by nobody else.
        unsafe { replace_with_dead_socket(number).unwrap() };
        assert!(is_cloexec(&socket));
        assert_eq!(recv(&socket, &mut [0]).unwrap(), 0);
        assert_eq!(
            send(&socket, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        // SAFETY: it is not open: the number is beyond any limit.
        assert!(unsafe { replace_with_dead_socket(RawFd::MAX) }.is_err());
    }

    #[test]
    fn a_revoked_socket_is_dead_and_its_number_stays_taken() {
        let holder = Arc::new(Revocable::default());
        let (ours, peer) = stream_pair().unwrap();
        let (other, _other_peer) = stream_pair().unwrap();
        let held = Held::new(&holder, ours).unwrap();
        let gone = Held::new(&holder, other).unwrap();
        drop(gone);
        assert_eq!(holder.lock().numbers.len(), 1, "a dropped one is forgotten");
        holder.revoke();
        holder.revoke();
        assert_eq!(
            recv(&peer, &mut [0]).unwrap(),
            0,
            "the peer sees the end of file"
        );
        assert_eq!(recv(&*held, &mut [0]).unwrap(), 0, "and so does the thread");
        assert_eq!(
            send(&*held, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        let (late, _) = stream_pair().unwrap();
        assert_eq!(
            Held::new(&holder, late).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        let file = std::fs::File::open("/dev/null").unwrap();
        let fresh = Arc::new(Revocable::default());
        assert_eq!(
            Held::new(&fresh, file).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
    }
}
