//! Past batches, asked for again at the engines' replay sockets.
//!
//! [`Replays`] has one thread. It opens a fresh DEALER for each round, hands what comes to its
//! [`ReplaySink`] at once, and closes the socket when the round is over. Rounds beyond
//! [`RoundOptions::at_a_time`] wait in order.
//!
//! vLLM's replay socket is a ROUTER. Before 0.33 its send queue has libzmq's default of 1000 messages for
//! each peer, and what does not fit is dropped without a word, the end marker too or not. Our side
//! therefore takes in without a limit of messages, as fast as the network brings them, and what is in
//! memory is counted in bytes instead: a round whose backlog grows too large is cut, what came is used,
//! and the next round goes on from there.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use zmq::{DEALER, DONTWAIT, POLLIN, PollItem, SNDMORE};

use super::monitor::{Monitor, Report};
use super::tcp::Connection;
use super::{Endpoint, SourceId};
use crate::ingest::sequencer::{Ended, Flow};
use crate::ingest::{Answer, Turns};
use crate::{Error, ErrorKind};

/// How often connections are checked: for what they hold, and whether they are gone.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Frames that one round may deliver before the next one has its turn.
const FRAMES_PER_TURN: usize = 256;

/// A message of more frames is no mistake of an engine.
const FRAMES_TOLERATED: usize = 64;

/// What a message may take beyond the limit: framing, libzmq's read buffer.
const SLACK_BYTES: u64 = 64 << 10;

/// How long what came before a connection's end may take to become readable after the report of it.
const CLOSING_GRACE: Duration = Duration::from_millis(50);

/// How rounds are made. The same for all sources.
///
/// # Defaults
///
/// 4 rounds at a time; a message of at most 4 MiB; 64 MiB of backlog; 5 s without a message, enough for an
/// engine that serves replays from its publishing thread; 120 s in all, for 200 MB over a slow link; 64
/// malformed messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundOptions {
    /// Rounds at a time; further ones wait in order. At most 256.
    pub at_a_time: usize,
    /// Largest frame accepted.
    pub max_message_bytes: u64,
    /// Bytes of one round that may wait for the sink, beyond which its connection is cut.
    pub max_backlog_bytes: u64,
    /// How long a round may bring no message before it is cut.
    pub idle: Duration,
    /// How long a round may take.
    pub overall: Duration,
    /// Malformed messages of one round before it is cut.
    pub max_malformed: u64,
}

impl Default for RoundOptions {
    fn default() -> RoundOptions {
        RoundOptions {
            at_a_time: 4,
            max_message_bytes: 4 << 20,
            max_backlog_bytes: 64 << 20,
            idle: Duration::from_secs(5),
            overall: Duration::from_secs(120),
            max_malformed: 64,
        }
    }
}

/// What receives the batches of rounds. Called from the thread of [`Replays`] only, and it may
/// [`ask`](Asker::ask) from there.
///
/// A panic ends that thread: rounds asked for later never end.
pub trait ReplaySink: Send {
    /// A batch of a round. After [`Flow::Stop`] the round is over without `ended`.
    fn batch(&mut self, source: SourceId, round: u64, seq: u64, payload: &[u8]) -> Flow;

    /// A round has ended. Said once for each that was asked for, unless a later one of the same source
    /// took its place, or it was stopped or forgotten.
    fn ended(&mut self, source: SourceId, round: u64, how: Ended);

    /// Called at the start, after each of the above and when the time is over that it asked for last: the place to let
    /// [`Sequencer`](crate::ingest::Sequencer)s wake up. Returns how long it may be left alone.
    fn tick(&mut self) -> Option<Duration> {
        None
    }
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayCounters {
    /// Rounds begun.
    pub rounds: u64,
    /// Rounds that came to the end marker.
    pub complete: u64,
    /// Rounds that broke off: unreachable, disconnected, too slow, too much.
    pub cut: u64,
    /// Of those, rounds whose backlog or message grew too large.
    pub overruns: u64,
    /// Batches.
    pub batches: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Messages that are no answer.
    pub malformed: u64,
}

#[derive(Debug, Default)]
struct Board {
    rounds: AtomicU64,
    complete: AtomicU64,
    cut: AtomicU64,
    overruns: AtomicU64,
    batches: AtomicU64,
    bytes: AtomicU64,
    malformed: AtomicU64,
    running: AtomicUsize,
    waiting: AtomicUsize,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

enum Command {
    Ask { source: SourceId, request: Request, patiently: bool },
    Forget { source: SourceId },
    Stop,
}

#[derive(Clone, Debug)]
struct Request {
    endpoint: Endpoint,
    round: u64,
    from: u64,
}

/// Asks for rounds; cheap to clone, and never waits.
#[derive(Clone)]
pub struct Asker {
    commands: mpsc::Sender<Command>,
    wake: Arc<UnixStream>,
}

impl Asker {
    /// Asks `endpoint`, the replay socket of `source`, for its batches from a number on. Replaces a round of
    /// this source that runs or waits and whose number is not above this one.
    pub fn ask(&self, source: SourceId, endpoint: &Endpoint, round: u64, from: u64) {
        let request = Request { endpoint: endpoint.clone(), round, from };
        self.send(Command::Ask { source, request, patiently: false });
    }

    /// The same, when nobody waits for his turn who asked in the usual way. The round is cut when
    /// somebody does.
    pub fn ask_patiently(&self, source: SourceId, endpoint: &Endpoint, round: u64, from: u64) {
        let request = Request { endpoint: endpoint.clone(), round, from };
        self.send(Command::Ask { source, request, patiently: true });
    }

    /// Ends whatever runs or waits for a source, without a word.
    pub fn forget(&self, source: SourceId) {
        self.send(Command::Forget { source });
    }

    fn send(&self, command: Command) {
        // Both fail only when the thread has ended. A full pipe wakes it as well.
        let _ = self.commands.send(command);
        let _ = (&*self.wake).write(&[0]);
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

/// Replays from any number of sources, until it is dropped.
pub struct Replays {
    asker: Asker,
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Replays {
    /// Starts the thread. The sink is made with what it needs to ask for further rounds.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an option out of range; `Unavailable` when the system gives no thread or
    /// descriptor.
    pub fn start<S: ReplaySink + 'static>(
        options: RoundOptions,
        sink: impl FnOnce(Asker) -> S,
    ) -> Result<Replays, Error> {
        if !(1..=256).contains(&options.at_a_time) {
            return Err(Error::invalid(format!(
                "at_a_time {} is out of range; 1 to 256",
                options.at_a_time
            )));
        }
        let unavailable = |error: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "replays could not be started").with_source(error)
        };
        let (wake, woken) = UnixStream::pair().map_err(unavailable)?;
        wake.set_nonblocking(true).map_err(unavailable)?;
        woken.set_nonblocking(true).map_err(unavailable)?;
        let (commands, inbox) = mpsc::channel();
        let asker = Asker { commands, wake: Arc::new(wake) };
        let board = Arc::new(Board::default());
        let client = Client {
            turns: Turns::new(options.at_a_time),
            options,
            sink: Box::new(sink(asker.clone())),
            inbox,
            woken,
            board: Arc::clone(&board),
            requests: HashMap::new(),
            running: BTreeMap::new(),
            context: zmq::Context::new(),
        };
        let thread = thread::Builder::new()
            .name("kvscout-replay".into())
            .spawn(move || client.run())
            .map_err(unavailable)?;
        Ok(Replays { asker, board, thread: Some(thread) })
    }

    /// What asks for rounds, from any thread.
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    /// Rounds that run, and rounds that wait for their turn.
    pub fn load(&self) -> (usize, usize) {
        let Board { running, waiting, .. } = &*self.board;
        (running.load(Ordering::Relaxed), waiting.load(Ordering::Relaxed))
    }

    /// What happened so far.
    pub fn counters(&self) -> ReplayCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let board = &*self.board;
        ReplayCounters {
            rounds: read(&board.rounds),
            complete: read(&board.complete),
            cut: read(&board.cut),
            overruns: read(&board.overruns),
            batches: read(&board.batches),
            bytes: read(&board.bytes),
            malformed: read(&board.malformed),
        }
    }
}

impl Drop for Replays {
    /// Closes every socket and waits for the thread. A sink in the middle of a call is waited for.
    fn drop(&mut self) {
        self.asker.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the sink was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Replays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replays").field("load", &self.load()).finish_non_exhaustive()
    }
}

/// The thread's state.
struct Client {
    options: RoundOptions,
    sink: Box<dyn ReplaySink>,
    inbox: mpsc::Receiver<Command>,
    woken: UnixStream,
    board: Arc<Board>,
    turns: Turns<SourceId>,
    /// What was asked for and has not begun.
    requests: HashMap<SourceId, Request>,
    running: BTreeMap<SourceId, Round>,
    // Below the sockets: dropping a context waits until all of its sockets are closed.
    context: zmq::Context,
}

/// What became of a round in a turn.
enum Outcome {
    /// It goes on, with or without more to read.
    Open,
    /// It ended like this.
    Ended(Ended),
    /// Nobody wants more of it.
    Stopped,
}

impl Client {
    fn run(mut self) {
        let mut alone = self.sink.tick().map(|time| Instant::now() + time);
        loop {
            if !self.wait(alone) {
                return;
            }
            if !self.obey() {
                return;
            }
            let sources: Vec<_> = self.running.keys().copied().collect();
            for source in sources {
                let Some(round) = self.running.get_mut(&source) else { continue };
                match round.turn(source, &self.options, &mut *self.sink, &self.board) {
                    Outcome::Open => {}
                    Outcome::Stopped => self.end(source),
                    Outcome::Ended(how) => {
                        let number = round.number;
                        count(match how {
                            Ended::Marker => &self.board.complete,
                            Ended::Cut => &self.board.cut,
                        });
                        self.end(source);
                        self.sink.ended(source, number, how);
                    }
                }
            }
            alone = self.sink.tick().map(|time| Instant::now() + time);
            self.board.running.store(self.turns.running(), Ordering::Relaxed);
            self.board.waiting.store(self.turns.waiting(), Ordering::Relaxed);
        }
    }

    /// Waits for a message, a command, the next look at the connections or the sink's next tick.
    fn wait(&mut self, alone: Option<Instant>) -> bool {
        let watch = (!self.running.is_empty()).then_some(WATCH_INTERVAL);
        let tick = alone.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = match watch.into_iter().chain(tick).min() {
            // Rounded up, or the last millisecond would be spent awake.
            Some(time) => i64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i64::MAX),
            None => -1,
        };
        let mut items = vec![PollItem::from_fd(self.woken.as_raw_fd(), POLLIN)];
        items.extend(self.running.values().map(|round| round.socket.as_poll_item(POLLIN)));
        match zmq::poll(&mut items, timeout) {
            Ok(_) | Err(zmq::Error::EINTR) => true,
            // It fails only for a bad socket, and these are ours.
            Err(_) => false,
        }
    }

    fn obey(&mut self) -> bool {
        while matches!((&self.woken).read(&mut [0; 64]), Ok(read) if read > 0) {}
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Ask { source, request, patiently }) => {
                    let newest = self.requests.get(&source).map(|request| request.round);
                    let newest = newest.max(self.running.get(&source).map(|round| round.number));
                    if newest.is_some_and(|newest| newest > request.round) {
                        // Two threads may ask; this one was overtaken on its way.
                        continue;
                    }
                    if self.running.contains_key(&source) {
                        // Its place in the queue is the last one, like anyone's who asks.
                        self.end(source);
                    }
                    self.requests.insert(source, request);
                    let has_turn = match patiently {
                        true => self.turns.ask_patiently(source),
                        false => self.turns.ask(source),
                    };
                    if has_turn {
                        self.begin(source);
                    } else if let Some(patient) = self.turns.to_give_back() {
                        self.cut(patient);
                    }
                }
                Ok(Command::Forget { source }) => self.end(source),
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    fn begin(&mut self, first: SourceId) {
        let mut next = Some(first);
        while let Some(source) = next {
            let Some(request) = self.requests.remove(&source) else {
                next = self.turns.end(source);
                continue;
            };
            count(&self.board.rounds);
            match Round::open(&self.context, &request, &self.options) {
                Ok(round) => {
                    self.running.insert(source, round);
                    return;
                }
                Err(_) => {
                    count(&self.board.cut);
                    self.sink.ended(source, request.round, Ended::Cut);
                    next = self.turns.end(source);
                }
            }
        }
    }

    /// Ends a round that others need the turn of.
    fn cut(&mut self, source: SourceId) {
        let number = self.running.get(&source).map(|round| round.number);
        self.end(source);
        if let Some(number) = number {
            count(&self.board.cut);
            self.sink.ended(source, number, Ended::Cut);
        }
    }

    /// Closes a source's round, or takes it out of the queue, and begins the next one.
    fn end(&mut self, source: SourceId) {
        self.running.remove(&source);
        self.requests.remove(&source);
        if let Some(next) = self.turns.end(source) {
            self.begin(next);
        }
    }
}

/// A round that runs.
struct Round {
    number: u64,
    monitor: Monitor,
    socket: zmq::Socket,
    connection: Option<Connection>,
    /// The message that is being read: its first four frames and how many there were.
    frames: [zmq::Message; 4],
    part: usize,
    /// Bytes read, as they were on the wire.
    read: u64,
    malformed: u64,
    began: Instant,
    heard: Instant,
    /// When the connection was reported gone.
    closed: Option<Instant>,
}

impl Round {
    fn open(
        context: &zmq::Context,
        request: &Request,
        options: &RoundOptions,
    ) -> zmq::Result<Round> {
        let socket = context.socket(DEALER)?;
        socket.set_ipv6(true)?;
        socket.set_linger(0)?;
        socket.set_rcvhwm(0)?;
        socket.set_maxmsgsize(i64::try_from(options.max_message_bytes).unwrap_or(i64::MAX))?;
        let monitor = Monitor::attach(context, &socket)?;
        let now = Instant::now();
        let round = Round {
            number: request.round,
            monitor,
            socket,
            connection: None,
            frames: std::array::from_fn(|_| zmq::Message::new()),
            part: 0,
            read: 0,
            malformed: 0,
            began: now,
            heard: now,
            closed: None,
        };
        round.socket.connect(&request.endpoint.to_string())?;
        // Exactly these two frames: vLLM answers nothing else.
        round.socket.send(&b""[..], DONTWAIT | SNDMORE)?;
        round.socket.send(&request.from.to_be_bytes()[..], DONTWAIT)?;
        Ok(round)
    }

    /// Reads what has come and looks at the connection.
    fn turn(
        &mut self,
        source: SourceId,
        options: &RoundOptions,
        sink: &mut dyn ReplaySink,
        board: &Board,
    ) -> Outcome {
        let mut drained = false;
        for _ in 0..FRAMES_PER_TURN {
            match self.frame() {
                None => {
                    drained = true;
                    break;
                }
                Some(false) if self.part > FRAMES_TOLERATED => return Outcome::Ended(Ended::Cut),
                Some(false) => continue,
                Some(true) => {}
            }
            self.heard = Instant::now();
            let parts = std::mem::take(&mut self.part);
            let frames: [&[u8]; 4] = self.frames.each_ref().map(|frame| &**frame);
            match frames.get(..parts).and_then(Answer::parse) {
                Some(Answer::End) => return Outcome::Ended(Ended::Marker),
                Some(Answer::Batch { seq, payload }) => {
                    count(&board.batches);
                    board.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
                    if sink.batch(source, self.number, seq, payload) == Flow::Stop {
                        return Outcome::Stopped;
                    }
                }
                None => {
                    count(&board.malformed);
                    self.malformed += 1;
                    if self.malformed > options.max_malformed {
                        return Outcome::Ended(Ended::Cut);
                    }
                }
            }
        }
        self.watch(drained, options, board)
    }

    /// Reads one frame: whether it was the last one of its message.
    fn frame(&mut self) -> Option<bool> {
        let frame = &mut self.frames[self.part.min(3)];
        loop {
            match self.socket.recv(frame, DONTWAIT) {
                Ok(()) => break,
                Err(zmq::Error::EINTR) => {}
                Err(_) => return None,
            }
        }
        let header = if frame.len() > 255 { 9 } else { 2 };
        self.read += frame.len() as u64 + header;
        self.part += 1;
        Some(!frame.get_more())
    }

    fn watch(&mut self, drained: bool, options: &RoundOptions, board: &Board) -> Outcome {
        let now = Instant::now();
        while let Some(report) = self.monitor.next() {
            match report {
                Report::Opened(fd) => self.connection = Connection::duplicate(fd),
                Report::Established => {}
                // Nothing is asked on another connection.
                Report::HandshakeFailed | Report::Closed(_) | Report::Retried => {
                    self.closed.get_or_insert(now);
                }
            }
        }
        let is_gone = self.closed.is_some_and(|at| now.duration_since(at) >= CLOSING_GRACE);
        let is_late = now.duration_since(self.heard) >= options.idle
            || now.duration_since(self.began) >= options.overall;
        if (is_gone && drained) || is_late {
            return Outcome::Ended(Ended::Cut);
        }
        // A message that is not complete is not readable: what is taken and not readable is one of those.
        let limit = if drained { options.max_message_bytes } else { options.max_backlog_bytes };
        if self.closed.is_none()
            && let Some(connection) = &self.connection
            && let Ok(taken) = connection.taken()
            && taken.saturating_sub(self.read) > limit + SLACK_BYTES
        {
            if drained && self.frame_is_ready() {
                // It came meanwhile.
                return Outcome::Open;
            }
            count(&board.overruns);
            // What has come whole is still read; then the round ends.
            connection.cut();
            self.closed = Some(now);
        }
        Outcome::Open
    }

    fn frame_is_ready(&self) -> bool {
        self.socket.get_events().is_ok_and(|events| events.contains(zmq::PollEvents::POLLIN))
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.monitor.detach(&self.socket);
    }
}
