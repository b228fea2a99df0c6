//! Replays over real sockets: a receiver, a replay client and sequencers against engines that publish and
//! answer as vLLM does.
#![cfg(feature = "zmq")]

mod zmq_support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvscout::ingest::sequencer::{Arrival, Ended, Flow, SequencerCounters, Step};
use kvscout::ingest::zmq::{
    Asker, Endpoint, Options, Receiver, ReplaySink, Replays, RoundOptions, Sink, SourceId,
};
use kvscout::ingest::{ReplayOptions, Sequencer, Trust};
use zmq_support::engine::{Engine, Fault, Shape, payload};
use zmq_support::*;

struct Worker {
    sequencer: Sequencer,
    replay_at: Endpoint,
    applied: Vec<u64>,
}

/// What a daemon's intake does, reduced to numbers. One for each of the two threads.
#[derive(Clone)]
struct Fleet {
    workers: Arc<Mutex<BTreeMap<u32, Worker>>>,
    asker: Asker,
    began: Instant,
    /// How long it takes to apply a batch, in microseconds.
    toil: Arc<AtomicU64>,
}

impl Fleet {
    fn hand_in<T>(
        &self,
        source: SourceId,
        input: impl FnOnce(&mut Sequencer, Duration) -> T,
        seq: Option<u64>,
    ) -> Option<T> {
        let mut workers = self.workers.lock().unwrap();
        let Worker { sequencer, replay_at, applied } = workers.get_mut(&source.0)?;
        let answer = input(sequencer, self.began.elapsed());
        while let Some(step) = sequencer.next_step() {
            match step {
                Step::StartOver => applied.clear(),
                Step::Apply { seq: number } => {
                    assert_eq!(Some(number), seq);
                    applied.push(number);
                    thread::sleep(Duration::from_micros(self.toil.load(Ordering::Relaxed)));
                }
                Step::Release(held) => applied.push(held.seq),
                Step::Ask { round, from } => self.asker.ask(source, replay_at, round, from),
                _ => unreachable!("nothing is audited"),
            }
        }
        Some(answer)
    }

    fn trust(&self, source: u32) -> Trust {
        self.workers.lock().unwrap()[&source].sequencer.trust()
    }

    fn counters(&self, source: u32) -> SequencerCounters {
        self.workers.lock().unwrap()[&source].sequencer.counters()
    }

    fn is_complete(&self, source: u32, batches: u64) -> bool {
        let workers = self.workers.lock().unwrap();
        let worker = &workers[&source];
        worker.sequencer.trust() == Trust::Exact && worker.applied.len() as u64 == batches
    }

    #[track_caller]
    fn check_complete(&self, source: u32, batches: u64) {
        assert!(self.workers.lock().unwrap()[&source].applied.iter().copied().eq(0..batches));
    }
}

fn arrival(seq: u64, payload: &[u8]) -> Arrival<'_> {
    let clock = u64::from_be_bytes(payload[..8].try_into().unwrap());
    Arrival { seq, timestamp: Some(clock as f64), payload }
}

impl Sink for Fleet {
    fn batch(&mut self, source: SourceId, _topic: &[u8], sequence: u64, payload: &[u8]) {
        let input = |s: &mut Sequencer, now| s.live(now, arrival(sequence, payload));
        self.hand_in(source, input, Some(sequence));
    }

    fn link(&mut self, source: SourceId, up: bool) {
        self.hand_in(source, |s, now| s.link(now, up), None);
    }
}

impl ReplaySink for Fleet {
    fn batch(&mut self, source: SourceId, round: u64, seq: u64, payload: &[u8]) -> Flow {
        let input = |s: &mut Sequencer, now| s.replayed(now, round, arrival(seq, payload));
        self.hand_in(source, input, Some(seq)).unwrap_or(Flow::Stop)
    }

    fn ended(&mut self, source: SourceId, round: u64, how: Ended) {
        self.hand_in(source, |s, now| s.replay_ended(now, round, how), None);
    }

    fn tick(&mut self) -> Option<Duration> {
        let sources: Vec<u32> = self.workers.lock().unwrap().keys().copied().collect();
        for source in sources {
            self.hand_in(SourceId(source), |s, now| s.tick(now), None);
        }
        let workers = self.workers.lock().unwrap();
        let next = workers.values().filter_map(|worker| worker.sequencer.wake_at()).min();
        next.map(|at| at.saturating_sub(self.began.elapsed()))
    }
}

struct Setup {
    // Dropped first, so that nothing is received any more when the rest goes.
    receiver: Receiver,
    replays: Replays,
    fleet: Fleet,
}

impl Setup {
    fn new(rounds: RoundOptions) -> Setup {
        let workers = Arc::default();
        let toil = Arc::default();
        let began = Instant::now();
        let fleet =
            |asker| Fleet { workers: Arc::clone(&workers), asker, began, toil: Arc::clone(&toil) };
        let replays = Replays::start(rounds, fleet).unwrap();
        let fleet = fleet(replays.asker());
        let receiver = Receiver::start(Options::default(), fleet.clone()).unwrap();
        Setup { receiver, replays, fleet }
    }

    fn add(&self, source: u32, engine: &Engine) {
        let worker = Worker {
            sequencer: Sequencer::with_replay(ReplayOptions::default(), u64::from(source)),
            replay_at: engine.replay_at.clone(),
            applied: Vec::new(),
        };
        self.fleet.workers.lock().unwrap().insert(source, worker);
        connect(&self.receiver, source, &engine.at);
    }

    /// Publishes until the worker has all of it.
    #[track_caller]
    fn catch_up(&self, source: u32, engine: &mut Engine) {
        eventually("the worker is complete", || {
            engine.publish();
            thread::sleep(Duration::from_millis(20));
            self.fleet.is_complete(source, engine.next)
        });
        self.fleet.check_complete(source, engine.next);
    }
}

#[test]
fn s1_a_lost_batch_is_repaired() {
    let context = zmq::Context::new();
    for shape in [Shape::Plain, Shape::WithTopic] {
        let mut engine = Engine::start(&context, shape, vec![]);
        let setup = Setup::new(RoundOptions::default());
        setup.add(1, &engine);
        setup.catch_up(1, &mut engine);
        let before = setup.fleet.counters(1);
        engine.lose(8);
        engine.publish();
        eventually("the gap is closed", || setup.fleet.is_complete(1, engine.next));
        setup.fleet.check_complete(1, engine.next);
        let after = setup.fleet.counters(1);
        assert_eq!(after.gaps - before.gaps, 1);
        assert_eq!(after.missing, 0);
    }
}

#[test]
fn s4_a_late_joiner_is_complete_even_if_the_engine_is_idle() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    (0..300).for_each(|_| drop(engine.lose(100)));
    let setup = Setup::new(RoundOptions::default());
    setup.add(1, &engine);
    eventually("everything is there", || setup.fleet.is_complete(1, 300));
    setup.fleet.check_complete(1, 300);
    assert_eq!(engine.requests()[0], 0);
}

#[test]
fn s8_ten_thousand_batches_pass_through_a_send_queue_of_a_thousand() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    (0..10_000).for_each(|_| drop(engine.lose(20_000)));
    let setup = Setup::new(RoundOptions::default());
    // Slower than the engine, so that its queue overflows wherever ours has no room.
    setup.fleet.toil.store(20, Ordering::Relaxed);
    setup.add(1, &engine);
    eventually("everything is there", || setup.fleet.is_complete(1, 10_000));
    setup.fleet.check_complete(1, 10_000);
    let counters = setup.fleet.counters(1);
    assert!(counters.rounds > 1, "one round brought all of it: nothing was too much for anybody");
    assert_eq!(counters.missing, 0);
}

#[test]
fn s8_cut_holed_and_silent_answers_are_made_up_for() {
    let context = zmq::Context::new();
    let faults = [Fault::CutAfter(2), Fault::Holes, Fault::Silence, Fault::CutAfter(50)];
    let mut engine = Engine::start(&context, Shape::WithTopic, faults.to_vec());
    (0..100).for_each(|_| drop(engine.lose(100)));
    let idle = Duration::from_millis(300);
    let setup = Setup::new(RoundOptions { idle, ..RoundOptions::default() });
    setup.add(1, &engine);
    eventually("everything is there", || setup.fleet.is_complete(1, 100));
    setup.fleet.check_complete(1, 100);
    assert!(setup.replays.counters().cut >= 2);
    assert!(engine.requests().is_sorted());
    // What is left over of one round comes to nobody.
    assert_eq!(engine.askers(), engine.requests().len());
}

#[test]
fn s9_garbage_is_counted_and_passed_over() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::WithTopic, vec![Fault::Garbage]);
    (0..10).for_each(|_| drop(engine.lose(100)));
    // Just so much as there is.
    let setup = Setup::new(RoundOptions { max_malformed: 30, ..RoundOptions::default() });
    setup.add(1, &engine);
    eventually("everything is there", || setup.fleet.is_complete(1, 10));
    setup.fleet.check_complete(1, 10);
    let counters = setup.replays.counters();
    assert_eq!((counters.malformed, counters.cut), (30, 0));
}

#[test]
fn s9_endless_garbage_ends_the_round() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![Fault::Garbage]);
    (0..100).for_each(|_| drop(engine.lose(100)));
    let setup = Setup::new(RoundOptions { max_malformed: 5, ..RoundOptions::default() });
    setup.add(1, &engine);
    eventually("everything is there", || setup.fleet.is_complete(1, 100));
    assert_eq!(setup.replays.counters().cut, 1);
}

#[test]
fn s8_a_round_that_goes_on_for_ever_is_cut_although_something_always_comes() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::WithTopic, vec![Fault::Drip]);
    (0..20).for_each(|_| drop(engine.lose(100)));
    let (idle, overall) = (2 * PATIENCE, Duration::from_secs(1));
    let setup = Setup::new(RoundOptions { idle, overall, ..RoundOptions::default() });
    setup.add(1, &engine);
    eventually("everything is there", || setup.fleet.is_complete(1, 20));
    setup.fleet.check_complete(1, 20);
    assert!(setup.replays.counters().cut >= 1);
}

#[test]
fn s10_a_storm_of_replays_is_served_a_few_at_a_time_and_holds_up_no_live_batch() {
    // Each has some six descriptors, of which a process of Debian may have 1024 unless it asks for more.
    const SOURCES: u32 = 500;
    const BYSTANDER: u32 = SOURCES;
    let context = zmq::Context::new();
    // The first to be asked for do not come for a while, so that all others wait.
    let mut engine = Engine::start(&context, Shape::WithTopic, vec![Fault::Silence; 4]);
    (0..200).for_each(|_| drop(engine.lose(500)));
    let mut bystander = Engine::start(&context, Shape::WithTopic, vec![]);
    let idle = Duration::from_secs(2);
    let setup = Setup::new(RoundOptions { idle, ..RoundOptions::default() });
    setup.add(BYSTANDER, &bystander);
    setup.catch_up(BYSTANDER, &mut bystander);
    // Each has sockets of its own; that they meet at one engine only makes the queue longer.
    for source in 0..SOURCES {
        setup.add(source, &engine);
    }
    let mut meanwhile = 0;
    eventually("all are complete", || {
        let (running, waiting) = setup.replays.load();
        assert!(running <= 4);
        bystander.publish();
        eventually("a live batch is applied", || {
            setup.fleet.is_complete(BYSTANDER, bystander.next)
        });
        meanwhile += u32::from(waiting > 0 && setup.replays.load().1 > 0);
        (0..SOURCES).all(|source| setup.fleet.is_complete(source, 200))
    });
    assert!(meanwhile > 0, "no live batch came while sources waited");
    (0..SOURCES).for_each(|source| setup.fleet.check_complete(source, 200));
}

#[test]
fn s10_a_silent_source_does_not_hold_up_the_others() {
    let context = zmq::Context::new();
    let silent = Engine::start(&context, Shape::Plain, vec![Fault::Silence; 100]);
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    (0..50).for_each(|_| drop(engine.lose(100)));
    // It is given up after an hour: nobody may wait for it.
    let idle = Duration::from_secs(3600);
    let setup = Setup::new(RoundOptions { at_a_time: 2, idle, ..RoundOptions::default() });
    setup.add(1, &silent);
    eventually("it was asked", || !silent.requests().is_empty());
    setup.add(2, &engine);
    eventually("the other one is complete", || setup.fleet.is_complete(2, 50));
    assert_eq!(setup.fleet.trust(1), Trust::Syncing);
}

/// Source, round, and how it ended if it did.
type Entry = (u32, u64, Option<Ended>);

/// Writes down what rounds bring.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<Entry>>>);

impl Log {
    fn has(&self, source: u32, round: u64, ended: Option<Ended>) -> bool {
        self.0.lock().unwrap().contains(&(source, round, ended))
    }
}

impl ReplaySink for Log {
    fn batch(&mut self, source: SourceId, round: u64, _seq: u64, _payload: &[u8]) -> Flow {
        self.0.lock().unwrap().push((source.0, round, None));
        Flow::Continue
    }

    fn ended(&mut self, source: SourceId, round: u64, how: Ended) {
        self.0.lock().unwrap().push((source.0, round, Some(how)));
    }
}

#[test]
fn s10_who_asks_patiently_makes_room_for_a_repair() {
    let context = zmq::Context::new();
    let silent = Engine::start(&context, Shape::Plain, vec![Fault::Silence; 100]);
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    (0..50).for_each(|_| drop(engine.lose(100)));
    // It is given up after an hour: nobody may wait for it.
    let idle = Duration::from_secs(3600);
    let log = Log::default();
    let options = RoundOptions { at_a_time: 1, idle, ..RoundOptions::default() };
    let replays = Replays::start(options, |_| log.clone()).unwrap();
    let asker = replays.asker();
    asker.ask_patiently(SourceId(1), &silent.replay_at, 1, 0);
    eventually("it was asked", || !silent.requests().is_empty());
    asker.ask_patiently(SourceId(3), &engine.replay_at, 1, 0);
    asker.ask(SourceId(2), &engine.replay_at, 1, 0);
    eventually("the repair is complete", || log.has(2, 1, Some(Ended::Marker)));
    eventually("and the one that waited after it", || log.has(3, 1, Some(Ended::Marker)));
    let ends = log.0.lock().unwrap().clone();
    let ends: Vec<_> = ends.into_iter().filter(|(.., ended)| ended.is_some()).collect();
    let marker = Some(Ended::Marker);
    assert_eq!(ends, [(1, 1, Some(Ended::Cut)), (2, 1, marker), (3, 1, marker)]);
}

#[test]
fn s8_a_request_that_was_overtaken_on_its_way_replaces_nothing() {
    let context = zmq::Context::new();
    let silent = Engine::start(&context, Shape::Plain, vec![Fault::Silence; 100]);
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    (0..50).for_each(|_| drop(engine.lose(100)));
    let log = Log::default();
    let replays =
        Replays::start(RoundOptions { at_a_time: 1, ..RoundOptions::default() }, |_| log.clone());
    let replays = replays.unwrap();
    let asker = replays.asker();
    // One that runs.
    asker.ask(SourceId(1), &silent.replay_at, 6, 0);
    eventually("it was asked", || silent.requests().len() == 1);
    asker.ask(SourceId(1), &silent.replay_at, 5, 0);
    // One that waits.
    asker.ask(SourceId(2), &engine.replay_at, 6, 0);
    asker.ask_patiently(SourceId(2), &engine.replay_at, 5, 0);
    asker.forget(SourceId(1));
    eventually("the newer one is answered", || log.has(2, 6, Some(Ended::Marker)));
    // Whoever was forgotten begins to count anew.
    asker.ask(SourceId(1), &engine.replay_at, 1, 0);
    eventually("and the next one", || log.has(1, 1, Some(Ended::Marker)));
    assert_eq!((silent.requests().len(), engine.requests().len()), (1, 2));
}

#[test]
fn s11_live_batches_wait_for_a_replay_and_follow_it() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::WithTopic, vec![Fault::Silence]);
    (0..500).for_each(|_| drop(engine.lose(1000)));
    let idle = Duration::from_secs(1);
    let setup = Setup::new(RoundOptions { idle, ..RoundOptions::default() });
    setup.add(1, &engine);
    eventually("it was asked", || !engine.requests().is_empty());
    (0..20_000).for_each(|_| engine.publish());
    setup.catch_up(1, &mut engine);
    assert_eq!(setup.fleet.counters(1).missing, 0);
}

#[test]
fn s12_the_end_marker_is_a_batch_on_the_live_path_only() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    engine.next = u64::MAX - 1;
    engine.publish();
    let setup = Setup::new(RoundOptions::default());
    setup.add(1, &engine);
    eventually("the last number but one came from the replay", || {
        setup.fleet.workers.lock().unwrap()[&1].sequencer.as_of() == Some(u64::MAX - 1)
    });
    eventually("the last number came live", || {
        publish(&engine.publisher, b"", u64::MAX, &payload(u64::MAX, 8));
        setup.fleet.workers.lock().unwrap()[&1].sequencer.as_of() == Some(u64::MAX)
    });
}

#[test]
fn l2_a_restart_that_has_overtaken_is_found_when_the_link_is_back() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    let setup = Setup::new(RoundOptions::default());
    setup.add(1, &engine);
    setup.catch_up(1, &mut engine);
    let reached = engine.next;
    let at = engine.at.clone();
    drop(std::mem::replace(&mut engine.publisher, context.socket(zmq::PUB).unwrap()));
    eventually("the link is down", || setup.fleet.trust(1) == Trust::Syncing);
    {
        // The next life of the engine, behind the same replay address.
        let mut buffer = engine.buffer.lock().unwrap();
        *buffer = (0..reached + 10).map(|seq| (seq, payload(1_000_000 + seq, 8))).collect();
    }
    engine.next = reached + 10;
    let (publisher, _) = bound_publisher(&context, &at);
    engine.publisher = publisher;
    eventually("the new life is known", || setup.fleet.is_complete(1, engine.next));
    setup.fleet.check_complete(1, engine.next);
    assert_eq!(setup.fleet.counters(1).restarts, 1);
}

#[test]
fn an_unreachable_source_is_given_up_and_flagged() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    // A port that nobody listens on.
    engine.replay_at = endpoint("tcp://127.0.0.1:1");
    engine.lose(8);
    let setup = Setup::new(RoundOptions::default());
    setup.add(1, &engine);
    eventually("it is given up", || {
        engine.publish();
        thread::sleep(Duration::from_millis(20));
        matches!(setup.fleet.trust(1), Trust::Degraded(_))
    });
}

#[test]
fn whatever_runs_ends_with_the_client() {
    let context = zmq::Context::new();
    let engine = Engine::start(&context, Shape::Plain, vec![Fault::Silence; 8]);
    // None of them ends by itself meanwhile.
    let idle = Duration::from_secs(3600);
    let setup = Setup::new(RoundOptions { idle, ..RoundOptions::default() });
    for source in 0..8 {
        setup.add(source, &engine);
    }
    eventually("four run and four wait", || setup.replays.load() == (4, 4));
    setup.replays.asker().forget(SourceId(0));
    eventually("one less", || setup.replays.load() == (4, 3));
    drop(setup);
}

/// Wants one batch of a round and no more.
struct One {
    batches: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
}

impl ReplaySink for One {
    fn batch(&mut self, _source: SourceId, _round: u64, _seq: u64, _payload: &[u8]) -> Flow {
        self.batches.fetch_add(1, Ordering::Relaxed);
        Flow::Stop
    }

    fn ended(&mut self, _source: SourceId, _round: u64, _how: Ended) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_round_of_which_no_more_is_wanted_is_over_without_a_word() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    (0..50).for_each(|_| drop(engine.lose(100)));
    let (batches, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let sink = One { batches: Arc::clone(&batches), ended: Arc::clone(&ended) };
    let one_at_a_time = RoundOptions { at_a_time: 1, ..RoundOptions::default() };
    let replays = Replays::start(one_at_a_time, |_| sink).unwrap();
    // The second begins once the first is over, and both are cut off behind their first batch.
    replays.asker().ask(SourceId(1), &engine.replay_at, 1, 0);
    replays.asker().ask(SourceId(2), &engine.replay_at, 1, 0);
    eventually("both are over", || replays.counters().rounds == 2 && replays.load() == (0, 0));
    let said = (batches.load(Ordering::Relaxed), ended.load(Ordering::Relaxed));
    assert_eq!((said, replays.counters().batches), ((2, 0), 2));
}
