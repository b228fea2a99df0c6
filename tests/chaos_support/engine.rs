//! A simulated engine: serves requests, publishes what that does to its cache, and answers replay
//! requests, all on one thread as vLLM's publisher does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::zmq_support::eventually;

use super::cache::Cache;
use super::oracle::{Answers, Oracle};
use super::prompts::{Prompts, Question};
use super::random::Random;
use super::schedule::{Fault, ReplayFault};
use super::wire;

/// What all engines of a fleet share.
pub(crate) struct Fleet {
    pub(crate) prompts: Prompts,
    pub(crate) questions: Vec<Question>,
    pub(crate) oracle: Oracle,
}

impl Fleet {
    /// So many engines of these makes, and what they will be asked about.
    pub(crate) fn start(
        engines: usize,
        questions: usize,
        random: &mut Random,
        make: impl Fn(&mut Random) -> Make,
    ) -> (Arc<Fleet>, Vec<Engine>) {
        let prompts = Prompts::new(random.next(), engines);
        let questions = prompts.questions(questions, random);
        let oracle = Oracle::new(questions.len(), engines);
        let fleet = Arc::new(Fleet { prompts, questions, oracle });
        let context = zmq::Context::new();
        let engine = |number| {
            let make = make(random);
            Engine::start(&context, number, make, &fleet, random.next())
        };
        let engines = (0..engines).map(engine).collect();
        (fleet, engines)
    }
}

/// What an engine is like.
#[derive(Clone, Copy)]
pub(crate) struct Make {
    /// Blocks of its pool.
    pub(crate) blocks: usize,
    /// The time between two steps, on average.
    pub(crate) step: Duration,
    /// Batches that it keeps for replays.
    pub(crate) buffer_steps: usize,
}

/// What an engine tells of itself. Counts are of batches where nothing else is said.
#[derive(Default)]
pub(crate) struct Facts {
    /// The newest life that was asked for a replay.
    pub(crate) asked_life: AtomicUsize,
    /// The number of the next batch of the present life.
    pub(crate) next: AtomicU64,
    /// It publishes no more.
    pub(crate) done: AtomicBool,
    pub(crate) batches: AtomicU64,
    pub(crate) events: AtomicU64,
    /// Not sent live, or sent while nobody was connected.
    pub(crate) lost: AtomicU64,
    pub(crate) lost_events: AtomicU64,
    pub(crate) replayed: AtomicU64,
    pub(crate) replayed_events: AtomicU64,
    pub(crate) replays: AtomicU64,
}

/// What is said to an engine.
enum Command {
    Strike(Fault),
    /// Faults are over: a few more batches, then none.
    Finish,
}

/// A running engine; ends when dropped.
pub(crate) struct Engine {
    pub(crate) publisher_at: String,
    pub(crate) replay_at: String,
    pub(crate) facts: Arc<Facts>,
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    pub(crate) fn start(
        context: &zmq::Context,
        number: usize,
        make: Make,
        fleet: &Arc<Fleet>,
        seed: u64,
    ) -> Engine {
        let publisher_at = free_address(context);
        let replay_at = free_address(context);
        let facts = Arc::new(Facts::default());
        let (commands, inbox) = mpsc::channel();
        let mut running = Running {
            number,
            make,
            context: context.clone(),
            publisher_at: publisher_at.clone(),
            replay_at: replay_at.clone(),
            facts: Arc::clone(&facts),
            fleet: Arc::clone(fleet),
            random: Random::new(seed),
            cache: Cache::new(make.blocks),
            answers: Answers::new(&fleet.questions),
            sockets: None,
            opens_at: None,
            buffer: VecDeque::new(),
            next: 0,
            connected: 0,
            idle_until: None,
            drop: 0,
            twice: 0,
            replay_faults: VecDeque::new(),
            left: None,
        };
        running.open();
        let thread = thread::spawn(move || running.run(&inbox));
        Engine { publisher_at, replay_at, facts, commands: Some(commands), thread: Some(thread) }
    }

    pub(crate) fn strike(&self, fault: Fault) {
        self.say(Command::Strike(fault));
    }

    pub(crate) fn finish(&self) {
        self.say(Command::Finish);
    }

    fn say(&self, command: Command) {
        self.commands.as_ref().unwrap().send(command).unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// An address that stays ours while its socket is closed for a while: below the ports that the system
/// gives to outgoing connections, because one of those, dialling the closed port, could take it or even
/// connect to itself.
fn free_address(context: &zmq::Context) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let socket = context.socket(zmq::REP).unwrap();
    loop {
        let n = std::process::id() as usize * 64 + NEXT.fetch_add(1, SeqCst);
        let at = format!("tcp://127.0.0.1:{}", 10_000 + n % 22_000);
        if socket.bind(&at).is_ok() {
            return at;
        }
    }
}

struct Batch {
    seq: u64,
    payload: Vec<u8>,
    events: u64,
}

struct Sockets {
    /// On the wire the same as a PUB; it tells whether anyone has subscribed.
    publisher: zmq::Socket,
    subscribed: bool,
    router: zmq::Socket,
}

struct Running {
    number: usize,
    make: Make,
    context: zmq::Context,
    publisher_at: String,
    replay_at: String,
    facts: Arc<Facts>,
    fleet: Arc<Fleet>,
    random: Random,
    cache: Cache,
    answers: Answers,
    sockets: Option<Sockets>,
    /// When closed sockets are opened again.
    opens_at: Option<Instant>,
    buffer: VecDeque<Batch>,
    next: u64,
    /// The first batch that was made while these sockets were open.
    connected: u64,
    /// Until when it waits for a subscriber.
    idle_until: Option<Instant>,
    drop: usize,
    twice: usize,
    replay_faults: VecDeque<ReplayFault>,
    /// Batches that are left to publish, once it is to finish.
    left: Option<usize>,
}

/// Batches that are published after the last fault.
const LAST_BATCHES: usize = 5;

/// How long an engine waits for a subscriber, who may be one that is just being started again.
const IDLE: Duration = Duration::from_secs(5);

impl Running {
    fn run(&mut self, commands: &Receiver<Command>) {
        let mut due = Instant::now();
        loop {
            match commands.try_recv() {
                Ok(Command::Strike(fault)) => self.suffer(fault),
                Ok(Command::Finish) => {
                    (self.drop, self.twice) = (0, 0);
                    self.replay_faults.clear();
                    self.left = Some(LAST_BATCHES);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return,
            }
            if self.opens_at.is_some_and(|at| at <= Instant::now()) {
                self.open();
            }
            self.hear();
            if Instant::now() >= due {
                self.live_step();
                // From now on, not from when it was due: who fell behind does not catch up in a burst.
                let step = self.make.step.as_micros() as usize;
                due = Instant::now()
                    + Duration::from_micros(self.random.within(step / 2, step * 3 / 2) as u64);
            }
            let wait = due.saturating_duration_since(Instant::now()).min(Duration::from_millis(20));
            match &self.sockets {
                Some(sockets) => {
                    sockets.router.poll(zmq::POLLIN, wait.as_millis() as i64 + 1).unwrap();
                }
                None => thread::sleep(wait),
            }
        }
    }

    fn live_step(&mut self) {
        let subscribed = self.sockets.as_ref().is_some_and(|sockets| sockets.subscribed);
        if self.idle_until.is_some_and(|until| subscribed || until <= Instant::now()) {
            self.idle_until = None;
        }
        match self.left {
            None if self.idle_until.is_some() => {}
            None => drop(self.step()),
            Some(0) => self.facts.done.store(true, SeqCst),
            // The last batches are sent to somebody: one that nobody gets leaves no trace.
            Some(left) if subscribed => {
                if self.step() {
                    self.left = Some(left - 1);
                }
            }
            Some(_) => {}
        }
    }

    /// One step of the engine, and its batch if there is anything to say.
    fn step(&mut self) -> bool {
        let events = self.cache.step(self.number, &self.fleet.prompts, &mut self.random);
        if events.is_empty() {
            return false;
        }
        self.answers.record(&self.fleet.oracle, self.number, &self.cache, &events);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let batch = Batch {
            seq: self.next,
            payload: wire::batch(now, &events),
            events: events.len() as u64,
        };
        self.next += 1;
        self.facts.next.store(self.next, SeqCst);
        self.facts.batches.fetch_add(1, SeqCst);
        self.facts.events.fetch_add(batch.events, SeqCst);
        self.publish(&batch);
        self.buffer.push_back(batch);
        if self.buffer.len() > self.make.buffer_steps {
            self.buffer.pop_front();
        }
        true
    }

    fn publish(&mut self, batch: &Batch) {
        let sockets = self.sockets.as_ref().filter(|sockets| sockets.subscribed);
        let dropped = self.drop > 0;
        self.drop = self.drop.saturating_sub(1);
        let Some(sockets) = sockets.filter(|_| !dropped) else {
            self.facts.lost.fetch_add(1, SeqCst);
            self.facts.lost_events.fetch_add(batch.events, SeqCst);
            return;
        };
        sockets.send(batch);
        if self.twice > 0 {
            self.twice -= 1;
            sockets.send(batch);
        }
    }

    fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Drop(batches) => self.drop += batches,
            Fault::Twice(batches) => self.twice += batches,
            Fault::Repeat(back) => {
                // A socket never carries again what another one carried.
                let batch = self.buffer.iter().rev().nth(back);
                if let (Some(sockets), Some(batch)) = (&self.sockets, batch)
                    && batch.seq >= self.connected
                {
                    sockets.send(batch);
                }
            }
            Fault::Stall(time) => thread::sleep(time),
            Fault::Outage(time) => self.close(time),
            Fault::Restart(time) => {
                self.close(time);
                self.begin_life();
            }
            Fault::Overtake(beyond) => {
                let reached = self.next + beyond as u64;
                self.close(Duration::ZERO);
                self.begin_life();
                while self.next < reached {
                    self.step();
                }
                self.idle();
            }
            Fault::Idle => self.idle(),
            Fault::Clear => self.cache.clear(),
            Fault::Replay(fault) => self.replay_faults.push_back(fault),
        }
    }

    fn idle(&mut self) {
        self.idle_until = Some(Instant::now() + IDLE);
    }

    fn begin_life(&mut self) {
        // In this order: a life is never seen together with the number that its last one had reached.
        self.facts.next.store(0, SeqCst);
        self.fleet.oracle.begin_life(self.number);
        self.cache = Cache::new(self.make.blocks);
        self.answers.clear();
        self.buffer.clear();
        self.next = 0;
        (self.drop, self.twice) = (0, 0);
    }

    fn close(&mut self, time: Duration) {
        self.sockets = None;
        self.opens_at = Some(Instant::now() + time);
    }

    fn open(&mut self) {
        let publisher = self.context.socket(zmq::XPUB).unwrap();
        // vLLM's.
        publisher.set_sndhwm(100_000).unwrap();
        let router = self.context.socket(zmq::ROUTER).unwrap();
        // As vLLM 0.33 does.
        router.set_sndhwm(2 * (self.make.buffer_steps as i32 + 1)).unwrap();
        for (socket, at) in [(&publisher, &self.publisher_at), (&router, &self.replay_at)] {
            socket.set_linger(0).unwrap();
            // The address of a socket that was just closed is free a moment later.
            eventually("an engine's address is free", || socket.bind(at).is_ok());
        }
        self.sockets = Some(Sockets { publisher, subscribed: false, router });
        self.opens_at = None;
        self.connected = self.next;
    }

    /// Subscriptions, and one replay request.
    fn hear(&mut self) {
        let Some(sockets) = &mut self.sockets else { return };
        while let Ok(message) = sockets.publisher.recv_bytes(zmq::DONTWAIT) {
            sockets.subscribed = message.first() == Some(&1);
        }
        let Ok(request) = sockets.router.recv_multipart(zmq::DONTWAIT) else { return };
        // Whoever has sent this knows that there is something to find out about its publisher.
        self.facts.asked_life.fetch_max(self.fleet.oracle.life(self.number), SeqCst);
        let [client, empty, from] = &request[..] else {
            panic!("vLLM answers nothing to {} frames", request.len())
        };
        assert!(empty.is_empty());
        let from = u64::from_be_bytes(from[..].try_into().unwrap());
        self.facts.replays.fetch_add(1, SeqCst);
        let fault = self.replay_faults.pop_front();
        self.answer(client, from, fault);
    }

    fn answer(&mut self, client: &[u8], from: u64, fault: Option<ReplayFault>) {
        let Some(sockets) = &self.sockets else { return };
        // Whoever followed this life asks from the last batch on that it has.
        let first_new = if from == 0 { 0 } else { from + 1 };
        if matches!(fault, Some(ReplayFault::Silence)) {
            return;
        }
        // A ROUTER drops what does not fit and says nothing, and so it does for a client that is gone.
        let send = |topic: &[u8], seq: u64, payload: &[u8]| {
            let frames = [client, b"", topic, &seq.to_be_bytes()[..], payload];
            let _ = sockets.router.send_multipart(frames, zmq::DONTWAIT);
        };
        let asked = self.buffer.iter().filter(|batch| batch.seq >= from);
        for (sent, batch) in asked.enumerate() {
            match fault {
                Some(ReplayFault::CutAfter(batches)) if sent == batches => return,
                Some(ReplayFault::Holes) if self.random.below(10) == 0 => continue,
                Some(ReplayFault::Beheaded) if batch.seq == first_new => continue,
                _ => send(b"kv@engine", batch.seq, &batch.payload),
            }
            self.facts.replayed.fetch_add(1, SeqCst);
            self.facts.replayed_events.fetch_add(batch.events, SeqCst);
        }
        send(b"", u64::MAX, b"");
    }
}

impl Sockets {
    fn send(&self, batch: &Batch) {
        let frames = [&b""[..], &batch.seq.to_be_bytes(), &batch.payload];
        self.publisher.send_multipart(frames, 0).unwrap();
    }
}
