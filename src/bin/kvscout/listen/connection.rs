//! One client's connection, and what is known of who is at its other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::tls;

/// A connection. Its place is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    peer: Peer,
    greeting: Option<Greeting>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a client has to say before anything, by when: hyper waits for it for ever, and asks for signs of life only
/// after it.
#[derive(Debug)]
struct Greeting {
    /// Bytes of it that have not come yet.
    left: usize,
    late: Pin<Box<Sleep>>,
}

/// Who is at the other end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    certificate: Option<Arc<[String]>>,
    crowded: bool,
}

impl Peer {
    /// The names in its certificate, if it showed one, which was verified.
    pub(crate) fn certificate(&self) -> Option<&[String]> {
        self.certificate.as_deref()
    }

    /// Whether it came when all places were taken.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded
    }
}

impl Connection {
    pub(super) fn plain(
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        crowded: bool,
    ) -> Connection {
        let peer = Peer { certificate: None, crowded };
        Connection { stream: Stream::Plain(stream), peer, greeting: None, _place: place }
    }

    pub(super) fn secured(
        stream: TlsStream<TcpStream>,
        place: OwnedSemaphorePermit,
        crowded: bool,
    ) -> Connection {
        let (_, session) = stream.get_ref();
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        let peer = Peer { certificate: shown.map(tls::names), crowded };
        Connection { stream: Stream::Tls(Box::new(stream)), peer, greeting: None, _place: place }
    }

    /// Reading fails once `within` is over, unless so many bytes have come by then.
    pub(super) fn greeted(self, bytes: usize, within: Duration) -> Connection {
        let greeting = Greeting { left: bytes, late: Box::pin(sleep(within)) };
        Connection { greeting: Some(greeting), ..self }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        let Some(greeting) = &mut self.greeting else { return read };
        if read.is_pending() {
            ready!(greeting.late.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        greeting.left = greeting.left.saturating_sub(buffer.filled().len() - before);
        if greeting.left == 0 {
            self.greeting = None;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
