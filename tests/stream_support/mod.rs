//! A publisher, its replay socket and the wires between, as simple as they can be; and a worker that
//! does what a [`Sequencer`] says. Schedules of faults run against them, from properties and from
//! fuzzing alike.
#![allow(dead_code, reason = "each binary uses its own part")]

use std::collections::VecDeque;
use std::time::Duration;

use kvscout::ingest::sequencer::{
    Aftermath, Arrival, Comparison, Ended, Flow, Sequencer, Stage, Step,
};
use kvscout::ingest::{ReplayOptions, Trust};

/// A batch as the publisher made it; the bytes say which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) incarnation: u64,
    pub(crate) seq: u64,
    /// Of the publisher's clock; all incarnations share one.
    pub(crate) timestamp: u64,
}

impl Published {
    pub(crate) fn payload(&self) -> Vec<u8> {
        [self.incarnation, self.seq, self.timestamp].iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    pub(crate) fn parse(payload: &[u8]) -> Published {
        let number = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
        Published { incarnation: number(0), seq: number(8), timestamp: number(16) }
    }
}

/// What travels from the publisher to the worker, in this order.
#[derive(Clone, Debug)]
enum Live {
    Batch(Published),
    Link(bool),
}

/// What travels from the replay socket to the worker, in this order.
#[derive(Clone, Debug)]
enum Replay {
    Batch(u64, Published),
    Ended(u64, Ended),
}

/// How a replay fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Only this many batches come, and no end marker.
    Cut(usize),
    /// From the first number on this many batches are left out; the end marker comes.
    Hole(usize, usize),
}

/// A worker under test, and everything around it.
pub(crate) struct World {
    pub(crate) sequencer: Sequencer,
    options: ReplayOptions,
    pub(crate) now: Duration,
    /// All that the living publisher ever published, and how much of it its buffer has dropped.
    pub(crate) published: Vec<Published>,
    pub(crate) dropped: usize,
    pub(crate) incarnation: u64,
    buffer_steps: usize,
    clock: u64,
    live: VecDeque<Live>,
    delivered: Vec<Published>,
    asked: Option<(u64, u64)>,
    pub(crate) replays: u64,
    replay: VecDeque<Replay>,
    /// What was applied since the last `StartOver`.
    pub(crate) applied: Vec<Published>,
    pub(crate) start_overs: u64,
    /// The second residency of an audit, if there is one.
    pub(crate) shadow: Option<Vec<Published>>,
    /// What audits may begin from.
    pub(crate) anchor: Option<Vec<Published>>,
}

impl World {
    pub(crate) fn new(options: ReplayOptions, buffer_steps: usize) -> World {
        World {
            sequencer: Sequencer::with_replay(options, 7),
            options,
            now: Duration::ZERO,
            published: Vec::new(),
            dropped: 0,
            incarnation: 0,
            buffer_steps,
            clock: 0,
            live: VecDeque::new(),
            delivered: Vec::new(),
            asked: None,
            replays: 0,
            replay: VecDeque::new(),
            applied: Vec::new(),
            start_overs: 0,
            shadow: None,
            anchor: None,
        }
    }

    /// A worker that is in step with a publisher of `count` batches, none of which leaves its buffer.
    pub(crate) fn in_step(options: ReplayOptions, count: usize) -> World {
        let mut world = World::new(options, usize::MAX);
        world.publish_many(count);
        world.deliver_all();
        assert!(world.is_exact());
        world
    }

    pub(crate) fn publish(&mut self) {
        self.clock += 1;
        let batch = Published {
            incarnation: self.incarnation,
            seq: self.published.len() as u64,
            timestamp: self.clock,
        };
        self.published.push(batch.clone());
        self.dropped = self.dropped.max(self.published.len().saturating_sub(self.buffer_steps));
        self.live.push_back(Live::Batch(batch));
    }

    pub(crate) fn publish_many(&mut self, count: usize) {
        (0..count).for_each(|_| self.publish());
    }

    /// The publisher starts anew; the worker learns of it only from the link.
    pub(crate) fn restart(&mut self) {
        self.lose_link(0);
        self.incarnation += 1;
        self.published.clear();
        self.dropped = 0;
        self.live.push_back(Live::Link(true));
    }

    /// The loss of the link is reported, before the last `leftovers` messages of it arrive.
    pub(crate) fn lose_link(&mut self, leftovers: usize) {
        let is_message = |live: &&Live| matches!(live, Live::Batch(_));
        let messages = self.live.iter().rev().take_while(is_message).count();
        self.live.insert(self.live.len() - leftovers.min(messages), Live::Link(false));
    }

    /// The link is lost and comes back; `lost` batches are published meanwhile.
    pub(crate) fn flap(&mut self, lost: usize) {
        self.lose_link(lost);
        for _ in 0..lost {
            self.publish();
            self.live.pop_back();
        }
        self.live.push_back(Live::Link(true));
    }

    /// The next live message is lost. Reports of the link are not messages.
    pub(crate) fn lose(&mut self) {
        if let Some(Live::Batch(_)) = self.live.front() {
            self.live.pop_front();
        }
    }

    /// The last batch that was published is lost.
    pub(crate) fn forget_newest_live(&mut self) {
        if let Some(Live::Batch(_)) = self.live.back() {
            self.live.pop_back();
        }
    }

    /// The next live message arrives.
    pub(crate) fn deliver(&mut self) {
        match self.live.pop_front() {
            Some(Live::Batch(batch)) => {
                self.delivered.push(batch.clone());
                self.hand_in(&batch);
            }
            Some(Live::Link(up)) => {
                self.delivered.clear();
                self.sequencer.link(self.now, up);
                self.obey(None);
            }
            None => {}
        }
    }

    pub(crate) fn deliver_all(&mut self) {
        while !self.live.is_empty() {
            self.deliver();
        }
    }

    /// A message of this connection arrives again.
    pub(crate) fn repeat(&mut self, back: usize) {
        let at = self.delivered.len().checked_sub(1 + back);
        if let Some(batch) = at.and_then(|at| self.delivered.get(at)).cloned() {
            self.hand_in(&batch);
        }
    }

    pub(crate) fn hand_in(&mut self, batch: &Published) {
        let payload = batch.payload();
        let timestamp = Some(batch.timestamp as f64);
        let arrival = Arrival { seq: batch.seq, timestamp, payload: &payload };
        self.sequencer.live(self.now, arrival);
        self.obey(Some(batch));
    }

    /// The publisher serves what was asked.
    pub(crate) fn serve(&mut self, fault: Fault) {
        let Some((round, from)) = self.asked.take() else { return };
        self.replays += 1;
        // A fresh connection: whatever the last one still carried is lost.
        self.replay.clear();
        let buffered = self.published[self.dropped..].iter().filter(|batch| batch.seq >= from);
        let mut batches: Vec<_> = buffered.cloned().collect();
        let mut ended = Ended::Marker;
        match fault {
            Fault::None => {}
            Fault::Cut(after) => {
                batches.truncate(after);
                ended = Ended::Cut;
            }
            Fault::Hole(at, count) => {
                let at = at.min(batches.len());
                batches.drain(at..(at + count).min(batches.len()));
            }
        }
        self.replay.extend(batches.into_iter().map(|batch| Replay::Batch(round, batch)));
        self.replay.push_back(Replay::Ended(round, ended));
    }

    /// The next message of a replay arrives.
    pub(crate) fn deliver_replay(&mut self) {
        match self.replay.pop_front() {
            Some(Replay::Batch(round, batch)) => {
                let payload = batch.payload();
                let timestamp = Some(batch.timestamp as f64);
                let arrival = Arrival { seq: batch.seq, timestamp, payload: &payload };
                let flow = self.sequencer.replayed(self.now, round, arrival);
                if flow == Flow::Stop {
                    self.replay.clear();
                }
                self.obey(Some(&batch));
            }
            Some(Replay::Ended(round, ended)) => {
                self.sequencer.replay_ended(self.now, round, ended);
                self.obey(None);
            }
            None => {}
        }
    }

    pub(crate) fn deliver_replays(&mut self) {
        while !self.replay.is_empty() {
            self.deliver_replay();
        }
    }

    /// The replay that is under way breaks off.
    pub(crate) fn cut(&mut self) {
        if let Some(Replay::Batch(round, _) | Replay::Ended(round, _)) =
            self.replay.front().cloned()
        {
            self.replay.clear();
            self.replay.push_back(Replay::Ended(round, Ended::Cut));
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.sequencer.tick(self.now);
        self.obey(None);
    }

    pub(crate) fn asked(&self) -> Option<u64> {
        self.asked.map(|(_, from)| from)
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.sequencer.trust() == Trust::Exact
    }

    /// Everything works from now on, until nothing more happens.
    pub(crate) fn settle(&mut self) {
        let until = self.now + Duration::from_secs(7200);
        // Far more than attempts to rebuild until then.
        for _ in 0..5_000 {
            self.deliver_all();
            self.serve(Fault::None);
            self.deliver_replays();
            if self.asked.is_none() {
                if self.is_exact() && self.sequencer.stage() == Some(Stage::InStep) {
                    return;
                }
                let Some(at) = self.sequencer.wake_at() else { return };
                // Attempts to rebuild go on for ever.
                if self.sequencer.unsound().is_some() && self.now > until {
                    return;
                }
                self.pass(at.saturating_sub(self.now));
            }
        }
        let (trust, counters) = (self.sequencer.trust(), self.sequencer.counters());
        unreachable!("it never comes to rest: {trust:?} {counters:?}");
    }

    fn obey(&mut self, handed_in: Option<&Published>) {
        while let Some(step) = self.sequencer.next_step() {
            match step {
                Step::StartOver => {
                    self.applied.clear();
                    self.anchor = None;
                    self.start_overs += 1;
                }
                Step::Apply { seq } => {
                    let batch = handed_in.expect("something was handed in");
                    assert_eq!(batch.seq, seq);
                    self.apply(batch.clone());
                }
                Step::Release(held) => {
                    let batch = Published::parse(&held.payload);
                    assert_eq!(batch.seq, held.seq);
                    self.apply(batch);
                }
                Step::Ask { round, from } | Step::Audit { round, from } => {
                    self.asked = Some((round, from));
                }
                Step::Shadow { seq } => {
                    let batch = handed_in.expect("something was handed in");
                    assert_eq!(batch.seq, seq);
                    self.shade(batch.clone());
                }
                Step::Anchor => {
                    self.anchor = Some(self.applied.clone());
                    self.sequencer.anchored();
                }
                Step::ShadowAnchor => {
                    let anchor = self.anchor.clone().expect("an anchor");
                    assert_eq!(handed_in, anchor.last(), "the batch that proves the publisher");
                    self.shadow = Some(anchor);
                }
                Step::ShadowHeld(held) => self.shade(Published::parse(&held.payload)),
                Step::Compare => {
                    let shadow = self.shadow.take().expect("a shadow");
                    let newest = shadow.last().map(|batch| batch.seq);
                    assert_eq!(newest, self.sequencer.as_of(), "both are of one number");
                    let comparison = match (self.is_exact(), shadow == self.applied) {
                        (false, _) => Comparison::Undecided,
                        (true, true) => Comparison::Equal,
                        (true, false) => Comparison::Different,
                    };
                    let mut aftermath = Aftermath::None;
                    if comparison == Comparison::Equal {
                        self.anchor = Some(shadow);
                        aftermath = Aftermath::Anchored;
                    }
                    self.sequencer.compared(self.now, comparison, aftermath);
                }
                Step::Discard => self.shadow = None,
            }
        }
        let audits = self.sequencer.stage() == Some(Stage::Auditing);
        assert!(audits || self.shadow.is_none(), "a shadow was left");
        self.check();
    }

    fn shade(&mut self, batch: Published) {
        let shadow = self.shadow.get_or_insert_default();
        assert_eq!(shadow.len() as u64, batch.seq, "each once, in order, from the first one on");
        shadow.push(batch);
    }

    fn apply(&mut self, batch: Published) {
        assert!(self.applied.last().is_none_or(|last| last.seq < batch.seq), "each once, in order");
        self.applied.push(batch);
    }

    /// What must hold at any time.
    pub(crate) fn check(&self) {
        let (batches, bytes) = self.sequencer.held_back();
        assert!(batches <= self.options.max_held_batches && bytes <= self.options.max_held_bytes);
        assert_eq!(self.sequencer.as_of(), self.applied.last().map(|batch| batch.seq));
        // What was applied long ago was checked then.
        let new = self.applied.len().saturating_sub(512);
        if self.is_exact() {
            let first = self.applied.first().map(|batch| batch.incarnation);
            for (number, batch) in self.applied.iter().enumerate().skip(new) {
                let expected = (number as u64, first);
                assert_eq!((batch.seq, Some(batch.incarnation)), expected, "exact, and is not");
            }
        }
    }

    /// That everything the living publisher published was applied.
    pub(crate) fn check_complete(&self) {
        assert!(self.is_exact(), "{:?} {:?}", self.sequencer.trust(), self.sequencer.counters());
        let (applied, published) = (self.applied.len(), self.published.len());
        assert!(
            self.applied == self.published,
            "{applied} of {published}: {:?}",
            self.sequencer.counters()
        );
    }
}

/// Small bounds, so that schedules reach them.
pub(crate) fn tight() -> ReplayOptions {
    ReplayOptions {
        max_held_bytes: 24 * 12,
        max_held_batches: 10,
        max_fruitless: 3,
        max_rounds: 12,
        audit: Duration::from_secs(20),
        ..ReplayOptions::default()
    }
}

/// Runs a schedule, two bytes an operation, then lets everything work.
pub(crate) fn run(schedule: &[u8]) {
    let (buffer_steps, schedule) = match schedule.split_first() {
        Some((first, rest)) if first % 3 == 0 => (usize::from(first / 3) + 1, rest),
        Some((_, rest)) => (usize::MAX, rest),
        None => return,
    };
    let mut world = World::new(tight(), buffer_steps);
    for operation in schedule.chunks_exact(2) {
        let much = usize::from(operation[1] % 16);
        match operation[0] % 20 {
            0..=3 => world.publish_many(1 + much % 4),
            4..=7 => (0..=much).for_each(|_| world.deliver()),
            8 => world.lose(),
            9 => world.repeat(much),
            10 => {
                world.lose_link(much);
                world.restart();
            }
            11 => world.flap(much % 4),
            12 => world.serve(Fault::None),
            13 => world.serve(Fault::Cut(much)),
            14 => world.serve(Fault::Hole(much / 4, 1 + much % 4)),
            15..=17 => (0..=much).for_each(|_| world.deliver_replay()),
            18 => world.cut(),
            _ => world.pass(Duration::from_millis(50 << much)),
        }
    }
    // A batch that comes shows what was lost last; one that is lost in silence shows with the next.
    world.publish();
    world.settle();
    world.check();
    let differed = world.sequencer.counters().audits_differed;
    assert_eq!(differed, 0, "nothing was lost that left no gap");
    if world.dropped == 0 {
        world.check_complete();
    }
}
