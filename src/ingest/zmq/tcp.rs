//! How many bytes a TCP connection of libzmq has taken in, and a way to cut it.
//!
//! The one module of the transport with `unsafe`: libzmq reports its connections as bare descriptor numbers, and
//! `TCP_INFO` has no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Where `tcpi_bytes_received` (`u64`) lies in the kernel's `struct tcp_info`
/// (`include/uapi/linux/tcp.h`, since Linux 4.1). glibc's copy of the struct ends before it.
#[cfg(target_os = "linux")]
const BYTES_RECEIVED: usize = 128;

/// A second handle to a TCP connection that libzmq owns.
///
/// It is a duplicate made when libzmq reports the connection and held until libzmq reports its
/// end, so no later reuse of the number can make it mean another connection.
#[derive(Debug)]
pub(super) struct Connection(TcpStream);

impl Connection {
    /// A handle to the TCP connection with descriptor `fd`, or `None` when that is no open TCP
    /// connection or its bytes cannot be counted (Unix sockets; systems other than Linux).
    pub(super) fn duplicate(fd: RawFd) -> Option<Connection> {
        if fd < 0 {
            return None;
        }
        // SAFETY: `fd` is not -1, and the borrow ends with this statement. If libzmq has closed
        // the descriptor meanwhile, `fcntl(F_DUPFD_CLOEXEC)` fails with EBADF; if the number
        // already means another file, the duplicate is harmless, because libzmq's report of the
        // end is queued behind the one that brought us here and drops it.
        let duplicate: OwnedFd = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?;
        let connection = Connection(TcpStream::from(duplicate));
        connection.taken().ok()?;
        Some(connection)
    }

    /// Bytes that libzmq has read from the connection so far: those the kernel received in order,
    /// less those still in its queue.
    #[cfg(target_os = "linux")]
    pub(super) fn taken(&self) -> io::Result<u64> {
        let mut info = [0_u8; BYTES_RECEIVED + 8];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: `info` is writable for `length` bytes and the kernel writes no more than that;
        // `length` outlives the call; the descriptor is our own.
        let answer = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &mut length,
            )
        };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        let Some((_, &received)) = info[..length as usize].split_last_chunk::<8>() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        if length as usize != info.len() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut queued: libc::c_int = 0;
        // SAFETY: FIONREAD writes one `c_int`, which `queued` is; the descriptor is our own.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), libc::FIONREAD, &mut queued) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Bytes that arrive between the two calls make the result too small for a moment, never
        // too large: nobody is accused of them.
        Ok(u64::from_ne_bytes(received).saturating_sub(u64::try_from(queued).unwrap_or(0)))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn taken(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends the connection. libzmq reads the end of the stream, frees what it holds of an
    /// unfinished message and reports the disconnection as it does any other.
    pub(super) fn cut(&self) {
        // An error means that the peer was faster.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_count_as_taken_only_once_they_are_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let watched = Connection::duplicate(server.as_raw_fd()).unwrap();
        assert_eq!(watched.taken().unwrap(), 0);

        client.write_all(&[7; 100_000]).unwrap();
        let mut half = vec![0; 50_000];
        server.read_exact(&mut half).unwrap();
        assert_eq!(watched.taken().unwrap(), 50_000);
        server.read_exact(&mut half).unwrap();
        assert_eq!(watched.taken().unwrap(), 100_000);

        watched.cut();
        assert_eq!(server.read(&mut half).unwrap(), 0);
    }

    #[test]
    fn only_an_open_tcp_connection_is_watched() {
        let (unix, _peer) = UnixStream::pair().unwrap();
        assert!(Connection::duplicate(unix.as_raw_fd()).is_none());
        assert!(Connection::duplicate(-1).is_none());
        assert!(Connection::duplicate(RawFd::MAX).is_none());
    }
}
