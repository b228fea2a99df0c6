//! What libzmq reports about the connections of one socket.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use zmq::{DONTWAIT, PAIR};

/// One report, reduced to what the receiver acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// A TCP or Unix connection stands; ZMTP's handshake follows.
    Opened(RawFd),
    /// The handshake is done.
    Established,
    /// The peer speaks no ZMTP, another socket type, or closed before the handshake was done.
    HandshakeFailed,
    /// The connection is gone. If it was ours to dial and not the peer's fault, `Retried` follows.
    Closed(RawFd),
    /// libzmq will dial again by itself.
    Retried,
}

/// The reading end of a socket's monitor.
///
/// It must outlive the reports: libzmq's I/O thread writes each with a blocking send, holding a
/// lock that closing the socket needs. Without a reader, or with a full queue, that thread would
/// stand still, and with it every source of its context.
pub(super) struct Monitor {
    socket: zmq::Socket,
    name: String,
}

impl Monitor {
    /// Starts to monitor `watched`, before it connects or binds, so that no report is missed.
    pub(super) fn attach(context: &zmq::Context, watched: &zmq::Socket) -> zmq::Result<Monitor> {
        // inproc names are unique per context; unique per process is simpler and as good.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("inproc://kvscout.monitor.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let reports = [
            zmq::SocketEvent::CONNECTED,
            zmq::SocketEvent::CONNECT_RETRIED,
            zmq::SocketEvent::ACCEPTED,
            zmq::SocketEvent::DISCONNECTED,
            zmq::SocketEvent::HANDSHAKE_SUCCEEDED,
            zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL,
            zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL,
            zmq::SocketEvent::HANDSHAKE_FAILED_AUTH,
        ];
        let mask = reports.iter().fold(0, |mask, report| mask | i32::from(report.to_raw()));
        watched.monitor(&name, mask)?;
        let socket = context.socket(PAIR)?;
        socket.set_linger(0)?;
        // No limit: see the type's description.
        socket.set_rcvhwm(0)?;
        socket.connect(&name)?;
        Ok(Monitor { socket, name })
    }

    /// Ends the reports about `watched`; afterwards the monitor may be dropped.
    pub(super) fn detach(&self, watched: &zmq::Socket) {
        // To monitor anew ends the monitoring that was, before anything of it can fail; the new
        // one reports nothing (and fails where the name is still taken). `zmq_socket_monitor`
        // with a null name would say this better, but the binding has no such call.
        let _ = watched.monitor(&self.name, 0);
    }

    /// The descriptor that becomes readable when there may be reports.
    pub(super) fn descriptor(&self) -> zmq::Result<RawFd> {
        self.socket.get_fd()
    }

    /// The next report, or `None` when there is none now.
    pub(super) fn next(&self) -> Option<Report> {
        let mut event = zmq::Message::new();
        let mut address = zmq::Message::new();
        loop {
            match self.socket.recv(&mut event, DONTWAIT) {
                Ok(()) => {}
                Err(zmq::Error::EINTR) => continue,
                Err(_) => return None,
            }
            while event.get_more() && self.socket.recv(&mut address, 0) == Err(zmq::Error::EINTR) {}
            if let Some(report) = decode(&event) {
                return Some(report);
            }
        }
    }
}

/// Reads an event frame: 16 bits of event, 32 bits of value, both in native order
/// (`zmq_socket_monitor(3)`).
fn decode(frame: &[u8]) -> Option<Report> {
    let (&event, value) = frame.split_first_chunk::<2>()?;
    let value = RawFd::from_ne_bytes(*value.first_chunk::<4>()?);
    match zmq::SocketEvent::from_raw(u16::from_ne_bytes(event)) {
        zmq::SocketEvent::CONNECTED | zmq::SocketEvent::ACCEPTED => Some(Report::Opened(value)),
        zmq::SocketEvent::HANDSHAKE_SUCCEEDED => Some(Report::Established),
        zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL
        | zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL
        | zmq::SocketEvent::HANDSHAKE_FAILED_AUTH => Some(Report::HandshakeFailed),
        zmq::SocketEvent::DISCONNECTED => Some(Report::Closed(value)),
        zmq::SocketEvent::CONNECT_RETRIED => Some(Report::Retried),
        _ => None,
    }
}
