//! The transport: receives engines' event messages over ZeroMQ and hands over their bytes.
//!
//! It knows sockets and frames, not what they mean. A message is three frames: topic, sequence
//! number (8 bytes, big-endian), payload. Anything else is counted by reason and skipped, and the
//! stream goes on.
//!
//! **Identity.** Every source has a socket of its own, so the [`SourceId`] that reaches the
//! [`Sink`] comes from the registration and never from a message. The topic is handed over as the
//! bytes it is; only under [`Mode::BindShared`] has it any part in telling pods apart.
//!
//! **Threads.** A [`Receiver`] has one thread, which owns all sockets and calls the sink, beside
//! libzmq's own (two for each 300
//! sources). It sleeps while nothing arrives, apart from a look at
//! the connections every 50 ms, and reads from busy sources in turns.
//!
//! # What libzmq leaves to its user
//!
//! * `ZMQ_MAXMSGSIZE` counts a single frame. A message of ever more frames grows inside libzmq
//!   and never reaches the reader. Here every TCP connection is watched: the bytes that libzmq has
//!   taken from it (`TCP_INFO`, less what the kernel still queues) since it last delivered a
//!   message may not exceed [`Options::max_message_bytes`], or the connection is cut. What libzmq
//!   frees then is the whole unfinished message. A hostile peer thus holds at most this limit, plus
//!   what arrives within 50 ms, times the 32 by which an empty frame (2 bytes on the wire, 64 in
//!   memory) grows. Unix sockets have no such count: an `ipc` peer shares our machine and is
//!   trusted. Systems other than Linux do not count either.
//! * After a violation of the protocol or of the frame limit libzmq closes the connection and never
//!   dials again. Here the socket's monitor is followed, and a socket that was left like this is
//!   made anew, at growing intervals up to [`Options::reconnect_max`].
//! * A context serves 1023 sockets and a source needs three. Here contexts are added as needed.
//!
//! A source takes six file descriptors and two more for its connection; 2,000 sources therefore
//! need a limit (`ulimit -n`) above 16,000.
//!
//! # Guarantees
//!
//! * Messages of one connection reach the sink in order, each once. Nothing is promised about
//!   loss: a publisher drops what a slow reader does not take, and what it sends while no
//!   connection stands. The sequence number tells.
//! * Once [`Receiver::remove`] has returned, the sink is not called for that source again.
//! * A sink that is slow delays every source, and the watch over connections with them: it should
//!   pass the bytes on and return.

mod endpoint;
mod monitor;
mod options;
mod reactor;
mod replay;
mod socket;
mod tcp;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::Mutex;

use crate::{Error, ErrorKind};
use reactor::{Command, Reactor};

pub use endpoint::Endpoint;
pub use options::Options;
pub use replay::{Asker, ReplayCounters, ReplaySink, Replays, RoundOptions};

/// A source as its owner numbers it; unique within a [`Receiver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// We dial one publisher that listens (vLLM: an endpoint with `*` or `::`, or `ipc`).
    Connect,
    /// We listen for one publisher that dials (vLLM: every other endpoint). One port for each pod:
    /// whoever reaches the port is taken for it.
    Bind,
    /// We listen on one port for many publishers, and only the topic tells them apart. Any of them
    /// can speak for all: **the topic is what the sender says it is.** The sink must resolve it.
    BindShared,
}

/// Where a source's messages come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Source {
    /// What to connect to or to bind.
    pub endpoint: Endpoint,
    /// Which of the two.
    pub mode: Mode,
}

impl Source {
    /// A source at `endpoint`.
    pub fn new(endpoint: Endpoint, mode: Mode) -> Source {
        Source { endpoint, mode }
    }
}

/// What receives the messages. Called from the receiver's thread only.
///
/// A panic ends the receiver: its thread stops, and every later [`Receiver::add`] fails.
pub trait Sink: Send {
    /// A message of `source`: its topic, which may be no UTF-8, its sequence number, of which
    /// every value is an ordinary one, and its payload. The bytes are libzmq's own buffer.
    fn batch(&mut self, source: SourceId, topic: &[u8], sequence: u64, payload: &[u8]);

    /// A publisher of `source` has completed the handshake (`up`), or the last connection of
    /// `source` is gone. Never twice the same in a row; the first is `true`.
    ///
    /// Messages received before a connection was lost may follow the report of its loss, but not the
    /// report that the link is up again; and no message of a later connection comes before the report
    /// that the one before was lost. Where many publishers share a bound endpoint, this says nothing of
    /// each of them.
    fn link(&mut self, source: SourceId, up: bool) {
        let _ = (source, up);
    }
}

/// What is known about a source's connections and messages.
///
/// The counters start at zero with [`Receiver::add`] and never fall.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStatus {
    /// The source.
    pub source: SourceId,
    /// Its endpoint; where any port was asked for, with the one in use.
    pub endpoint: Endpoint,
    /// Who dials.
    pub mode: Mode,
    /// Whether a publisher has completed the handshake and is still connected.
    pub up: bool,
    /// Since when; `None` while down.
    pub since: Option<Instant>,
    /// Connections that stand, with or without handshake.
    pub connections: usize,
    /// Connections lost, for whatever reason.
    pub disconnects: u64,
    /// Connections that ended before the handshake did: the peer speaks no ZMTP, is no publisher,
    /// or is a proxy without one.
    pub failed_handshakes: u64,
    /// Connections that libzmq closed for good: a broken protocol or a frame above
    /// [`Options::max_message_bytes`]. Known only where we dial.
    pub violations: u64,
    /// Connections cut because a message grew beyond [`Options::max_message_bytes`] or had more
    /// than 64 frames.
    pub overruns: u64,
    /// Connections cut because there were [`Options::max_connections`] already.
    pub refused: u64,
    /// Sockets made anew after a violation or an overrun.
    pub redials: u64,
    /// Messages handed to the sink.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Messages skipped because they had not three frames.
    pub malformed_frames: u64,
    /// Messages skipped because the sequence number had not eight bytes.
    pub malformed_sequence: u64,
}

impl SourceStatus {
    fn new(source: SourceId, endpoint: Endpoint, mode: Mode) -> SourceStatus {
        SourceStatus {
            source,
            endpoint,
            mode,
            up: false,
            since: None,
            connections: 0,
            disconnects: 0,
            failed_handshakes: 0,
            violations: 0,
            overruns: 0,
            refused: 0,
            redials: 0,
            messages: 0,
            bytes: 0,
            malformed_frames: 0,
            malformed_sequence: 0,
        }
    }
}

/// What the thread last said about each source; written by it, read by everyone.
type Board = Arc<Mutex<BTreeMap<SourceId, SourceStatus>>>;

/// Receives from any number of sources until it is dropped.
///
/// Shared by reference between threads; [`add`](Receiver::add) and [`remove`](Receiver::remove)
/// wait for the receiver's thread and therefore must not be called from the sink.
///
/// ```no_run
/// use kvscout::ingest::zmq::{Mode, Options, Receiver, Sink, Source, SourceId};
///
/// struct Print;
///
/// impl Sink for Print {
///     fn batch(&mut self, source: SourceId, _topic: &[u8], sequence: u64, payload: &[u8]) {
///         println!("{source}: {sequence}, {} bytes", payload.len());
///     }
/// }
///
/// let receiver = Receiver::start(Options::default(), Print)?;
/// let pod = Source::new("tcp://pod-7:5557".parse()?, Mode::Connect);
/// receiver.add(SourceId(7), pod)?;
/// # Ok::<(), kvscout::Error>(())
/// ```
pub struct Receiver {
    commands: mpsc::Sender<Command>,
    waker: Arc<mio::Waker>,
    board: Board,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// A receiver without sources, whose thread runs.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an option out of range; `Unavailable` when the system gives no thread or
    /// descriptor.
    pub fn start(options: Options, sink: impl Sink + 'static) -> Result<Receiver, Error> {
        options.check()?;
        let unavailable = |error: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "the receiver could not be started")
                .with_source(error)
        };
        let board = Board::default();
        let (commands, inbox) = mpsc::channel();
        let (reactor, waker) = Reactor::new(options, Box::new(sink), inbox, Arc::clone(&board))
            .map_err(unavailable)?;
        let thread = thread::Builder::new()
            .name("kvscout-zmq".into())
            .spawn(move || reactor.run())
            .map_err(unavailable)?;
        Ok(Receiver { commands, waker: Arc::new(waker), board, thread: Some(thread) })
    }

    /// Begins to receive from `source` and returns its endpoint, with the port in use where any
    /// was asked for. A publisher that is not there yet is no error: it is dialled until it is.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the id is in use or a wildcard is to be dialled; `Unavailable` when the
    /// endpoint cannot be bound, descriptors are exhausted, or the receiver's thread has ended.
    pub fn add(&self, id: SourceId, source: Source) -> Result<Endpoint, Error> {
        if source.mode == Mode::Connect && !source.endpoint.is_connectable() {
            return Err(Error::invalid(format!(
                "{} cannot be dialled; name host and port, or bind it",
                source.endpoint
            )));
        }
        self.ask(|reply| Command::Add { id, source, reply })?
    }

    /// Ends a source; whether there was one. Once this has returned, the sink is not called for
    /// `id` again, and `id` may be added anew.
    pub fn remove(&self, id: SourceId) -> bool {
        // Without its thread the receiver calls no sink, which is what was asked for.
        self.ask(|reply| Command::Remove { id, reply }).unwrap_or(false)
    }

    /// The status of every source, in the order of their ids.
    pub fn status(&self) -> Vec<SourceStatus> {
        self.board.lock().values().cloned().collect()
    }

    /// The status of one source, or `None` when there is no such source.
    pub fn status_of(&self, id: SourceId) -> Option<SourceStatus> {
        self.board.lock().get(&id).cloned()
    }

    fn ask<T>(&self, command: impl FnOnce(mpsc::SyncSender<T>) -> Command) -> Result<T, Error> {
        let ended = || Error::new(ErrorKind::Unavailable, "the receiver's thread has ended");
        let own = self.thread.as_ref().map(|thread| thread.thread().id());
        if own == Some(thread::current().id()) {
            return Err(Error::invalid("a sink cannot add or remove sources; use another thread"));
        }
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands.send(command(reply)).map_err(|_| ended())?;
        self.waker.wake().map_err(|error| ended().with_source(error))?;
        answer.recv().map_err(|_| ended())
    }
}

impl Drop for Receiver {
    /// Closes every socket and waits for the thread. A sink in the middle of a call is waited for.
    fn drop(&mut self) {
        // Both fail only when the thread has ended already.
        let _ = self.commands.send(Command::Stop);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the sink was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("sources", &self.board.lock().len())
            .finish_non_exhaustive()
    }
}
