//! One source: its socket, its connections and what it has counted.

use std::collections::HashMap;
use std::mem;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use zmq::{DONTWAIT, SUB};

use super::monitor::{Monitor, Report};
use super::tcp::Connection;
use super::{Endpoint, Mode, Options, Sink, Source, SourceId, SourceStatus};

/// Frames that one source may deliver before the next one has its turn.
const FRAMES_PER_TURN: usize = 192;

/// A message of more frames is no mistake of an engine; its connection is cut. Reading a message
/// of millions of empty frames to its end would be the sender's gain.
const FRAMES_TOLERATED: usize = 64;

/// What a message may take beyond `max_message_bytes`: framing, heartbeats, libzmq's read buffer.
const SLACK_BYTES: u64 = 64 << 10;

/// How long libzmq may take to report that it dials again, before we conclude that it never will.
const RETRY_GRACE: Duration = Duration::from_millis(200);

/// How old the monitor's word may be when a message is handed over. A connection that follows another one
/// takes longer than this to come up ([`Options::reconnect_interval`] is at least 1 ms, libzmq's own
/// default 100 ms), so no message of it gets ahead of the report that the one before was lost.
const REPORTS_AGE: Duration = Duration::from_millis(1);

/// The state of one registered source.
pub(super) struct Subscriber {
    pub(super) id: SourceId,
    source: Source,
    pub(super) link: Option<Link>,
    pub(super) status: SourceStatus,
    /// Whether `status` differs from what readers see.
    pub(super) dirty: bool,
    /// With a socket: when to conclude that libzmq has given it up, unless it reports otherwise.
    /// Without: when to make the next one.
    pub(super) redial_at: Option<Instant>,
    backoff: Duration,
    opened_at: Instant,
    /// What the sink was told of the link.
    told_up: bool,
    /// With a link that is up and the sink not told: how many messages of connections before this one may
    /// still be on their way.
    rising: Option<usize>,
    followed_at: Instant,
}

/// A socket and its monitor.
pub(super) struct Link {
    monitor: Monitor,
    socket: zmq::Socket,
    connections: HashMap<RawFd, Option<Watch>>,
    /// Frames of the message that is being read; above three only between turns.
    part: usize,
}

/// A connection whose bytes can be counted.
struct Watch {
    connection: Connection,
    /// What the connection had taken when its last message had been delivered.
    mark: u64,
    /// Whether a message was delivered since the mark was set.
    progressed: bool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing is left to read.
    Drained,
    /// There may be more.
    More,
    /// The peer sent what no engine sends and this socket must go.
    Hostile,
}

impl Watch {
    fn new(connection: Connection) -> Watch {
        Watch { connection, mark: 0, progressed: false }
    }
}

impl Link {
    fn open(context: &zmq::Context, source: &Source, options: &Options) -> zmq::Result<Link> {
        let socket = context.socket(SUB)?;
        options.apply(&socket)?;
        let monitor = Monitor::attach(context, &socket)?;
        let link = Link { monitor, socket, connections: HashMap::new(), part: 0 };
        let endpoint = source.endpoint.to_string();
        match source.mode {
            Mode::Connect => link.socket.connect(&endpoint)?,
            Mode::Bind | Mode::BindShared => link.socket.bind(&endpoint)?,
        }
        Ok(link)
    }

    /// The descriptors of the socket and of its monitor.
    pub(super) fn descriptors(&self) -> zmq::Result<(RawFd, RawFd)> {
        Ok((self.socket.get_fd()?, self.monitor.descriptor()?))
    }

    /// What libzmq has bound or dials. It writes IPv4 addresses as IPv6 ones.
    fn last_endpoint(&self) -> Option<Endpoint> {
        self.socket.get_last_endpoint().ok()?.ok()?.parse().ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.monitor.detach(&self.socket);
    }
}

impl Subscriber {
    /// Opens the source's first socket.
    pub(super) fn open(
        id: SourceId,
        source: Source,
        context: &zmq::Context,
        options: &Options,
    ) -> zmq::Result<Subscriber> {
        let link = Link::open(context, &source, options)?;
        let endpoint = match link.last_endpoint() {
            Some(bound) => source.endpoint.on_port_of(&bound),
            None => source.endpoint.clone(),
        };
        Ok(Subscriber {
            id,
            status: SourceStatus::new(id, endpoint, source.mode),
            source,
            link: Some(link),
            dirty: true,
            redial_at: None,
            backoff: options.reconnect_interval,
            opened_at: Instant::now(),
            told_up: false,
            rising: None,
            followed_at: Instant::now(),
        })
    }

    /// Makes the socket anew. On failure the next attempt is scheduled.
    pub(super) fn reopen(&mut self, context: &zmq::Context, options: &Options) {
        self.link = Link::open(context, &self.source, options).ok();
        self.opened_at = Instant::now();
        self.redial_at = None;
        self.status.redials += 1;
        self.dirty = true;
        if self.link.is_none() {
            self.schedule_redial(options);
        }
    }

    /// Gives up a socket whose peer sent more than a message may have.
    pub(super) fn give_up_overrun(&mut self, options: &Options, sink: &mut dyn Sink) {
        self.status.overruns += 1;
        self.abandon(options, sink);
    }

    /// Gives up a socket that libzmq has closed for good.
    pub(super) fn give_up_violated(&mut self, options: &Options, sink: &mut dyn Sink) {
        self.status.violations += 1;
        self.abandon(options, sink);
    }

    /// Gives the socket up and schedules the next one.
    pub(super) fn abandon(&mut self, options: &Options, sink: &mut dyn Sink) {
        self.link = None;
        self.went_down(sink);
        self.schedule_redial(options);
    }

    fn schedule_redial(&mut self, options: &Options) {
        // A socket that lasted is a new misfortune, not the old one going on.
        if self.opened_at.elapsed() > options.reconnect_max.saturating_mul(2) {
            self.backoff = options.reconnect_interval;
        }
        self.redial_at = Some(Instant::now() + self.backoff);
        self.backoff = self.backoff.saturating_mul(2).min(options.reconnect_max);
    }

    /// Acts on everything the monitor has to report.
    pub(super) fn follow_reports(&mut self, options: &Options, sink: &mut dyn Sink) {
        self.followed_at = Instant::now();
        while let Some(report) = self.link.as_ref().and_then(|link| link.monitor.next()) {
            self.dirty = true;
            self.follow(report, options, sink);
        }
    }

    fn follow(&mut self, report: Report, options: &Options, sink: &mut dyn Sink) {
        let dials = self.source.mode == Mode::Connect;
        let Some(link) = &mut self.link else { return };
        match report {
            Report::Opened(fd) => {
                self.redial_at = None;
                let watch = Connection::duplicate(fd).map(Watch::new);
                if link.connections.len() >= options.max_connections {
                    // Cut, and tracked like the others until libzmq reports its end.
                    if let Some(watch) = &watch {
                        watch.connection.cut();
                    }
                    self.status.refused += 1;
                }
                link.connections.insert(fd, watch);
            }
            Report::Established => {
                if !self.status.up {
                    self.status.up = true;
                    self.status.since = Some(Instant::now());
                    let queue = usize::try_from(options.receive_hwm).unwrap_or(usize::MAX);
                    self.rising = Some(queue.saturating_mul(link.connections.len() + 1));
                }
            }
            Report::HandshakeFailed => self.status.failed_handshakes += 1,
            Report::Closed(fd) => {
                link.connections.remove(&fd);
                self.status.disconnects += 1;
                if dials {
                    self.redial_at = Some(Instant::now() + RETRY_GRACE);
                }
                if link.connections.is_empty() {
                    self.went_down(sink);
                }
            }
            Report::Retried => self.redial_at = None,
        }
        self.status.connections = self.link.as_ref().map_or(0, |link| link.connections.len());
    }

    fn went_down(&mut self, sink: &mut dyn Sink) {
        self.dirty = true;
        self.status.connections = 0;
        if self.status.up {
            self.status.up = false;
            self.status.since = None;
        }
        self.rising = None;
        if mem::take(&mut self.told_up) {
            sink.link(self.id, false);
        }
    }

    /// Whether the sink waits to be told that the link is up.
    pub(super) fn is_rising(&self) -> bool {
        self.rising.is_some()
    }

    /// Tells the sink that the link is up, once nothing of an earlier connection is left to read.
    fn rise(&mut self, read: usize, sink: &mut dyn Sink) {
        let Some(left) = self.rising else { return };
        self.rising = left.checked_sub(read).filter(|left| *left > 0);
        if self.rising.is_none() {
            self.told_up = true;
            sink.link(self.id, true);
        }
    }

    /// Reads what has arrived, up to one turn's worth.
    pub(super) fn turn(
        &mut self,
        frames: &mut Frames,
        options: &Options,
        sink: &mut dyn Sink,
    ) -> Turn {
        let mut read = 0;
        while let Some(link) = &mut self.link {
            // `frames` serves all sources, so a message that fits is read to its end.
            if read >= FRAMES_PER_TURN && !(1..=3).contains(&link.part) {
                return Turn::More;
            }
            read += 1;
            match link.read(frames) {
                Read::Nothing => {
                    self.rise(usize::MAX, sink);
                    return Turn::Drained;
                }
                Read::Frame if link.part <= FRAMES_TOLERATED => {}
                Read::Frame if self.source.mode == Mode::Connect => return Turn::Hostile,
                Read::Frame => {
                    if link.part == FRAMES_TOLERATED + 1 {
                        self.status.overruns += 1;
                        self.dirty = true;
                        link.cut_sender(&mut frames[3]);
                    }
                }
                Read::Message { frames: count } => {
                    self.dirty = true;
                    link.note_progress(self.source.mode, &mut frames[0]);
                    if self.followed_at.elapsed() >= REPORTS_AGE {
                        self.follow_reports(options, sink);
                    }
                    let [topic, sequence, payload, _] = &*frames;
                    match <[u8; 8]>::try_from(&**sequence) {
                        _ if count != 3 => self.status.malformed_frames += 1,
                        Err(_) => self.status.malformed_sequence += 1,
                        Ok(sequence) => {
                            self.status.messages += 1;
                            self.status.bytes += payload.len() as u64;
                            sink.batch(self.id, topic, u64::from_be_bytes(sequence), payload);
                        }
                    }
                    self.rise(1, sink);
                }
            }
        }
        Turn::Drained
    }

    /// Looks for connections that take in bytes without end and without a message, and cuts them.
    pub(super) fn guard(
        &mut self,
        frames: &mut Frames,
        options: &Options,
        sink: &mut dyn Sink,
    ) -> Turn {
        let limit = options.max_message_bytes.saturating_add(SLACK_BYTES);
        let Some(link) = &mut self.link else { return Turn::Drained };
        if !link.has_suspects(limit) {
            return Turn::Drained;
        }
        // Its messages may be complete and merely wait for us. libzmq takes one message from each
        // connection in turn, so as many messages as there are connections settle it.
        let mut turn = Turn::More;
        for _ in 0..=link.connections.len() * 3 / FRAMES_PER_TURN {
            turn = self.turn(frames, options, sink);
            if turn != Turn::More {
                break;
            }
        }
        let Some(link) = &mut self.link else { return turn };
        let guilty = link.cut_suspects(limit);
        if guilty > 0 && self.source.mode == Mode::Connect {
            return Turn::Hostile;
        }
        self.status.overruns += guilty;
        self.dirty |= guilty > 0;
        turn
    }
}

/// Three frames of a message and one for all that follow.
pub(super) type Frames = [zmq::Message; 4];

enum Read {
    Nothing,
    /// A frame with more to come.
    Frame,
    /// The last frame of a message of this many.
    Message {
        frames: usize,
    },
}

impl Link {
    fn read(&mut self, frames: &mut Frames) -> Read {
        let frame = &mut frames[self.part.min(3)];
        loop {
            match self.socket.recv(frame, DONTWAIT) {
                Ok(()) => break,
                Err(zmq::Error::EINTR) => {}
                // EAGAIN; the others mean a socket that is closed, and this one is ours.
                Err(_) => return Read::Nothing,
            }
        }
        self.part += 1;
        if frame.get_more() {
            Read::Frame
        } else {
            Read::Message { frames: mem::take(&mut self.part) }
        }
    }

    /// Notes that the connection which sent `frame` has completed a message.
    fn note_progress(&mut self, mode: Mode, frame: &mut zmq::Message) {
        if mode == Mode::Connect {
            // One connection at a time; leftovers of the one before do no harm.
            self.connections.values_mut().flatten().for_each(|watch| watch.progressed = true);
        } else if let Some(watch) =
            origin(frame).and_then(|fd| self.connections.get_mut(&fd)?.as_mut())
        {
            watch.progressed = true;
        }
    }

    fn cut_sender(&self, frame: &mut zmq::Message) {
        if let Some(watch) = origin(frame).and_then(|fd| self.connections.get(&fd)?.as_ref()) {
            watch.connection.cut();
        }
    }

    /// Moves the marks of connections that delivered something; whether any of the others is
    /// beyond `limit`.
    fn has_suspects(&mut self, limit: u64) -> bool {
        let mut any = false;
        for watch in self.connections.values_mut().flatten() {
            let Ok(taken) = watch.connection.taken() else {
                continue;
            };

            if mem::take(&mut watch.progressed) {
                watch.mark = taken;
            }
            any |= taken.saturating_sub(watch.mark) > limit;
        }
        any
    }

    /// Cuts the connections beyond `limit` that have still delivered nothing; how many.
    fn cut_suspects(&mut self, limit: u64) -> u64 {
        let mut cut = 0;
        for watch in self.connections.values_mut().flatten() {
            let taken = watch.connection.taken().unwrap_or(watch.mark);
            if !watch.progressed && taken.saturating_sub(watch.mark) > limit {
                watch.connection.cut();
                // The end is reported soon; until then it is not guilty again.
                watch.mark = taken;
                cut += 1;
            }
        }
        cut
    }
}

/// The descriptor of the connection that a frame came from.
fn origin(frame: &mut zmq::Message) -> Option<RawFd> {
    // `ZMQ_SRCFD`, under the name that `zmq_msg_gets` knows it by; a peer cannot set it.
    frame.gets("__fd")?.parse().ok()
}
