//! The receiver's thread: waits, reads in turns, watches, obeys.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::socket::{Frames, Link, Subscriber, Turn};
use super::{Board, Endpoint, Options, Sink, Source, SourceId};
use crate::{Error, ErrorKind};

/// How often connections are checked for bytes without messages. At 25 Gbit/s a peer pushes
/// 150 MB meanwhile; checking 2,000 connections takes about 1 ms.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Sources of one context: three sockets each of libzmq's 1023, with room for closed ones that
/// libzmq has not cleared away yet.
const SOURCES_PER_CONTEXT: usize = 300;

/// libzmq's threads clear closed sockets away a moment after `close`; a source that comes and goes
/// quickly may find none free until they have.
const CLEARING_ATTEMPTS: u32 = 50;
const CLEARING_PAUSE: Duration = Duration::from_millis(1);

/// The waker's token; a source in slot `i` has `2i` for its socket and `2i + 1` for its monitor.
const WAKE: Token = Token(usize::MAX);

/// What callers ask of the thread.
pub(super) enum Command {
    Add { id: SourceId, source: Source, reply: mpsc::SyncSender<Result<Endpoint, Error>> },
    Remove { id: SourceId, reply: mpsc::SyncSender<bool> },
    Stop,
}

pub(super) struct Reactor {
    options: Options,
    sink: Box<dyn Sink>,
    inbox: mpsc::Receiver<Command>,
    board: Board,
    poll: Poll,
    slots: Vec<Option<Slot>>,
    index: HashMap<SourceId, usize>,
    /// Slots with something to read, each at most once.
    ready: VecDeque<usize>,
    frames: Frames,
    // Below the sockets: dropping a context waits until all of its sockets are closed.
    contexts: Vec<(zmq::Context, usize)>,
}

struct Slot {
    subscriber: Subscriber,
    context: usize,
    queued: bool,
}

impl Reactor {
    pub(super) fn new(
        options: Options,
        sink: Box<dyn Sink>,
        inbox: mpsc::Receiver<Command>,
        board: Board,
    ) -> io::Result<(Reactor, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let reactor = Reactor {
            options,
            sink,
            inbox,
            board,
            poll,
            slots: Vec::new(),
            index: HashMap::new(),
            ready: VecDeque::new(),
            frames: std::array::from_fn(|_| zmq::Message::new()),
            contexts: Vec::new(),
        };
        Ok((reactor, waker))
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        let mut watch_at = Instant::now() + WATCH_INTERVAL;
        loop {
            let timeout = if !self.ready.is_empty() {
                Some(Duration::ZERO)
            } else if !self.index.is_empty() {
                Some(watch_at.saturating_duration_since(Instant::now()))
            } else {
                None
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // epoll fails only for a bad descriptor, and this one is ours.
                Err(_) => return,
            }
            for event in &events {
                if event.token() != WAKE {
                    self.notice(event.token());
                }
            }
            if self.obey().is_break() {
                return;
            }
            for _ in 0..self.ready.len() {
                self.take_turn();
                if Instant::now() >= watch_at {
                    break;
                }
            }
            if Instant::now() >= watch_at {
                self.watch();
                watch_at = Instant::now() + WATCH_INTERVAL;
            }
            self.publish();
        }
    }

    /// Queues the slot whose socket may be readable, or follows its monitor.
    fn notice(&mut self, token: Token) {
        let number = token.0 / 2;
        // A slot may have been emptied after the event was reported.
        let Some(Some(slot)) = self.slots.get_mut(number) else { return };
        if token.0 % 2 == 1 {
            slot.subscriber.follow_reports(&self.options, &mut *self.sink);
            if !slot.subscriber.is_rising() {
                return;
            }
        }
        if !slot.queued {
            slot.queued = true;
            self.ready.push_back(number);
        }
    }

    /// Looks at a new socket and its monitor: what happened before the first look is not signalled.
    fn notice_all(&mut self, number: usize) {
        self.notice(Token(number * 2));
        self.notice(Token(number * 2 + 1));
    }

    fn obey(&mut self) -> ControlFlow<()> {
        loop {
            // A caller that has stopped waiting for its answer wants none.
            match self.inbox.try_recv() {
                Ok(Command::Add { id, source, reply }) => {
                    let _ = reply.send(self.add(id, source));
                }
                Ok(Command::Remove { id, reply }) => {
                    let _ = reply.send(self.remove(id));
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    return ControlFlow::Break(());
                }
                Err(mpsc::TryRecvError::Empty) => return ControlFlow::Continue(()),
            }
        }
    }

    fn add(&mut self, id: SourceId, source: Source) -> Result<Endpoint, Error> {
        if self.index.contains_key(&id) {
            return Err(Error::invalid(format!(
                "source {id} is registered already; remove it first"
            )));
        }
        let context = match self.contexts.iter().position(|(_, n)| *n < SOURCES_PER_CONTEXT) {
            Some(context) => context,
            None => {
                self.contexts.push((zmq::Context::new(), 0));
                self.contexts.len() - 1
            }
        };
        let refused = |error: zmq::Error| {
            let message = match error {
                zmq::Error::EMFILE => format!(
                    "no descriptors left for {}; a source needs up to eight, raise `ulimit -n`",
                    source.endpoint
                ),
                _ => format!("{} cannot be used as {:?}: {error}", source.endpoint, source.mode),
            };
            Error::new(ErrorKind::Unavailable, message).with_source(error)
        };
        let mut attempts = 0;
        let subscriber = loop {
            match Subscriber::open(id, source.clone(), &self.contexts[context].0, &self.options) {
                Err(zmq::Error::EMFILE) if attempts < CLEARING_ATTEMPTS => {
                    attempts += 1;
                    thread::sleep(CLEARING_PAUSE);
                }
                answer => break answer.map_err(refused)?,
            }
        };
        let number = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(link) = &subscriber.link {
            register(self.poll.registry(), link, number).map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the source cannot be waited for")
                    .with_source(error)
            })?;
        }
        let endpoint = subscriber.status.endpoint.clone();
        self.board.lock().insert(id, subscriber.status.clone());
        self.contexts[context].1 += 1;
        self.index.insert(id, number);
        self.slots[number] = Some(Slot { subscriber, context, queued: false });
        self.notice_all(number);
        Ok(endpoint)
    }

    fn remove(&mut self, id: SourceId) -> bool {
        let Some(slot) = self.index.remove(&id).and_then(|number| self.slots[number].take()) else {
            return false;
        };
        if let Some(link) = &slot.subscriber.link {
            deregister(self.poll.registry(), link);
        }
        self.contexts[slot.context].1 -= 1;
        self.board.lock().remove(&id);
        true
    }

    /// Reads from the source that has waited longest.
    fn take_turn(&mut self) {
        let Some(number) = self.ready.pop_front() else { return };
        let Some(slot) = &mut self.slots[number] else { return };
        slot.queued = false;
        match slot.subscriber.turn(&mut self.frames, &self.options, &mut *self.sink) {
            Turn::Drained => {}
            Turn::More => {
                slot.queued = true;
                self.ready.push_back(number);
            }
            Turn::Hostile => self.give_up(number),
        }
    }

    /// Checks every connection, and makes the sockets anew whose time has come.
    fn watch(&mut self) {
        let now = Instant::now();
        for number in 0..self.slots.len() {
            let Some(slot) = &mut self.slots[number] else { continue };
            let subscriber = &mut slot.subscriber;
            match subscriber.guard(&mut self.frames, &self.options, &mut *self.sink) {
                Turn::More if !slot.queued => {
                    slot.queued = true;
                    self.ready.push_back(number);
                }
                Turn::Hostile => {
                    self.give_up(number);
                    continue;
                }
                Turn::Drained | Turn::More => {}
            }
            if subscriber.redial_at.is_none_or(|at| at > now) {
                continue;
            }
            if let Some(link) = &subscriber.link {
                deregister(self.poll.registry(), link);
                subscriber.give_up_violated(&self.options, &mut *self.sink);
            } else {
                subscriber.reopen(&self.contexts[slot.context].0, &self.options);
                let link = subscriber.link.as_ref();
                if link.is_some_and(|link| register(self.poll.registry(), link, number).is_err()) {
                    subscriber.abandon(&self.options, &mut *self.sink);
                }
                self.notice_all(number);
            }
        }
    }

    /// Drops the socket of a source whose peer is hostile; it is dialled again later.
    fn give_up(&mut self, number: usize) {
        let Some(slot) = &mut self.slots[number] else { return };
        if let Some(link) = &slot.subscriber.link {
            deregister(self.poll.registry(), link);
        }
        slot.subscriber.give_up_overrun(&self.options, &mut *self.sink);
    }

    fn publish(&mut self) {
        let changed = |slot: &&mut Slot| slot.subscriber.dirty;
        let mut changed = self.slots.iter_mut().flatten().filter(changed).peekable();
        if changed.peek().is_none() {
            return;
        }
        let mut board = self.board.lock();
        for Slot { subscriber, .. } in changed {
            subscriber.dirty = false;
            if let Some(status) = board.get_mut(&subscriber.id) {
                status.clone_from(&subscriber.status);
            }
        }
    }
}

/// Waits for a socket and its monitor from now on.
///
/// libzmq's descriptors signal that something *changed*, once; they are therefore waited for by
/// edge, and each is read until it has no more before it is waited for again.
fn register(registry: &Registry, link: &Link, number: usize) -> io::Result<()> {
    let (socket, monitor) = link.descriptors()?;
    registry.register(&mut SourceFd(&socket), Token(number * 2), Interest::READABLE)?;
    registry.register(&mut SourceFd(&monitor), Token(number * 2 + 1), Interest::READABLE)
}

fn deregister(registry: &Registry, link: &Link) {
    let Ok((socket, monitor)) = link.descriptors() else { return };
    // An error means that it was not registered.
    let _ = registry.deregister(&mut SourceFd(&socket));
    let _ = registry.deregister(&mut SourceFd(&monitor));
}
