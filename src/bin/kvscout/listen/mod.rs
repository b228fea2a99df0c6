//! Where clients connect: over TCP, with TLS where it is configured, and no more at a time than are served.

mod connection;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

pub(crate) use self::connection::{Connection, Peer};
pub(crate) use self::tls::{Protocol, Tls};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long nobody is accepted after the system gave no descriptor.
const REST: Duration = Duration::from_millis(100);

/// Connections that wait to be served.
const WAITING: usize = 64;

/// Connections beyond the limit of a listener that are still told why they are not served, and may ask whether the daemon
/// is alive.
const CROWD: usize = 64;

/// Bytes with which every connection of HTTP/2 begins.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// One address that clients connect to.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    protocol: Protocol,
    places: Arc<Semaphore>,
    crowd: Arc<Semaphore>,
    idle: Duration,
}

impl Listener {
    /// Listens here, for so many connections at a time. Over gRPC one may be silent for `idle` at first; whoever serves
    /// HTTP sees to that itself.
    ///
    /// # Errors
    ///
    /// The address is in use, or not ours.
    pub(crate) async fn bind(
        address: SocketAddr,
        protocol: Protocol,
        tls: Option<Arc<Tls>>,
        connections: usize,
        idle: Duration,
    ) -> io::Result<Listener> {
        let tcp = TcpListener::bind(address).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        })?;
        let crowd = match protocol {
            Protocol::Http => CROWD,
            // A client has one connection, and no use for one that refuses every call.
            Protocol::Grpc => 0,
        };
        let places = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Ok(Listener { tcp, tls, protocol, places, crowd: Arc::new(Semaphore::new(crowd)), idle })
    }

    /// The address in use.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// `http`, `https`, `grpc` or `grpcs`.
    pub(crate) fn scheme(&self) -> &'static str {
        match (self.protocol, self.tls.is_some()) {
            (Protocol::Http, false) => "http",
            (Protocol::Http, true) => "https",
            (Protocol::Grpc, false) => "grpc",
            (Protocol::Grpc, true) => "grpcs",
        }
    }

    /// The connections, as they come, until nobody takes them any more.
    pub(crate) fn accepted(self) -> ReceiverStream<io::Result<Connection>> {
        ReceiverStream::new(self.connections())
    }

    /// The same as a channel.
    pub(crate) fn connections(self) -> mpsc::Receiver<io::Result<Connection>> {
        let (accepted, waiting) = mpsc::channel(WAITING);
        tokio::spawn(self.accept(accepted));
        waiting
    }

    /// How a connection has to begin.
    fn greeting(&self) -> impl Fn(Connection) -> Connection + Send + use<> {
        let (protocol, idle) = (self.protocol, self.idle);
        move |connection| match protocol {
            Protocol::Http => connection,
            Protocol::Grpc => connection.greeted(PREFACE, idle),
        }
    }

    async fn accept(self, accepted: mpsc::Sender<io::Result<Connection>>) {
        loop {
            let stream = tokio::select! {
                () = accepted.closed() => return,
                stream = self.tcp.accept() => stream,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "no connection could be accepted");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            // Whoever finds not even a place in the crowd is hung up on.
            let Some((place, crowded)) = self.place() else { continue };
            // Answers are written whole; one that does not go at once is merely slower.
            let _ = stream.set_nodelay(true);
            let greeting = self.greeting();
            match &self.tls {
                None => {
                    // Fails when nobody takes it any more.
                    let connection = greeting(Connection::plain(stream, place, crowded));
                    let _ = accepted.send(Ok(connection)).await;
                }
                Some(tls) => {
                    let acceptor = TlsAcceptor::from(tls.config(self.protocol));
                    let accepted = accepted.clone();
                    tokio::spawn(async move {
                        if let Some(stream) = shake_hands(acceptor, stream).await {
                            let connection = greeting(Connection::secured(stream, place, crowded));
                            let _ = accepted.send(Ok(connection)).await;
                        }
                    });
                }
            }
        }
    }

    /// A place for one more, and whether it is only one in the crowd.
    fn place(&self) -> Option<(OwnedSemaphorePermit, bool)> {
        let of = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        let place = of(&self.places).map(|place| (place, false));
        place.or_else(|| of(&self.crowd).map(|place| (place, true)))
    }
}

async fn shake_hands(acceptor: TlsAcceptor, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => debug!(%error, "no TLS handshake"),
        Err(_) => debug!("a TLS handshake took too long"),
    }
    None
}
