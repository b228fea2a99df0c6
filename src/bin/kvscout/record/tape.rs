//! What is recorded of each worker, in the order in which its batches count.
//!
//! Where past batches can be had, a [`Sequencer`] puts them in order, as the daemon's does: the recording begins
//! at 0 and its gaps are closed. Elsewhere batches are written as they come, and `kvscout replay` finds out
//! what is wrong with them as the daemon would have.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvscout::event::{Batch, Limits};
use kvscout::ingest::sequencer::{Arrival, Ended, Flow, Stage, Step};
use kvscout::ingest::zmq::{Asker, Endpoint, ReplaySink, Sink, SourceId};
use kvscout::ingest::{ReplayOptions, Sequencer};
use parking_lot::Mutex;
use serde_json::json;

use super::output::Pen;
use crate::config::source::SourceEntry;

/// A worker that missed something is not built anew from batch 0: in a recording its earlier batches stand already.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The longest time from one look at what is due to the next.
const LOOK: Duration = Duration::from_secs(1);

/// One worker.
#[derive(Debug)]
pub(super) struct Track {
    pod: String,
    rank: u32,
    replay: Option<Endpoint>,
    order: Sequencer,
    was_reached: bool,
    first: Option<u64>,
    last: Option<u64>,
    written: u64,
}

/// All workers, and what their lines are written with.
#[derive(Debug)]
pub(super) struct Tape {
    /// By the numbers of their sources.
    tracks: Vec<Track>,
    pen: Pen,
    limits: Limits,
    began: Instant,
}

impl Track {
    pub(super) fn new(
        pod: &str,
        rank: u32,
        replay: Option<Endpoint>,
        options: ReplayOptions,
    ) -> Track {
        let options =
            ReplayOptions { rebuild: NEVER, rebuild_max: NEVER, audit: Duration::ZERO, ..options };
        let order = match replay {
            Some(_) => Sequencer::with_replay(options, RandomState::new().build_hasher().finish()),
            None => Sequencer::without_replay(),
        };
        let pod = pod.to_owned();
        Track { pod, rank, replay, order, was_reached: false, first: None, last: None, written: 0 }
    }

    /// The line that says what is known of the worker from outside its stream.
    pub(super) fn registration(&self, entry: &SourceEntry) -> String {
        let line = json!({
            "op": "worker", "worker": self.pod, "rank": self.rank, "model": entry.model,
            "vllm": entry.vllm.map(|version| version.to_string()),
            "block_size": entry.block_size.map(|size| size.get()),
        });
        format!("{line}\n")
    }

    /// What there is of it, for people.
    pub(super) fn summary(&self) -> String {
        let Track { pod, rank, written, .. } = self;
        if !self.was_reached {
            return format!("{pod} rank {rank}: no publisher was reached");
        }
        let mut text = format!("{pod} rank {rank}: {written} batches");
        if let (Some(first), Some(last)) = (self.first, self.last) {
            text += &format!(", from {first} to {last}");
        }
        let counters = self.order.counters();
        let said = [
            (counters.missing, "missing"),
            (counters.restarts, "times the publisher began anew"),
            (self.order.held_back().0 as u64, "left out: those before them did not come in time"),
        ];
        for (n, what) in said.into_iter().filter(|(n, _)| *n > 0) {
            text += &format!("; {n} {what}");
        }
        text
    }

    pub(super) fn was_reached(&self) -> bool {
        self.was_reached
    }

    fn write(&mut self, pen: &Pen, seq: u64, payload: &[u8]) {
        (self.first, self.last) = (self.first.or(Some(seq)), Some(seq));
        self.written += 1;
        let pod = json!(self.pod);
        let head = format!(
            "{{\"op\":\"events\",\"worker\":{pod},\"rank\":{},\"seq\":{seq},\"payload\":\"",
            self.rank
        );
        let mut line = String::with_capacity(head.len() + payload.len() * 2 + 3);
        line.push_str(&head);
        for byte in payload {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            line.push(DIGITS[usize::from(byte >> 4)].into());
            line.push(DIGITS[usize::from(byte & 15)].into());
        }
        line.push_str("\"}\n");
        pen.line(line);
    }
}

impl Tape {
    pub(super) fn new(tracks: Vec<Track>, pen: Pen, limits: Limits) -> Tape {
        Tape { tracks, pen, limits, began: Instant::now() }
    }

    pub(super) fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Whether no past batches are being asked for.
    pub(super) fn is_settled(&self) -> bool {
        let is_asking =
            |track: &Track| matches!(track.order.stage(), Some(Stage::Asked | Stage::Waiting));
        !self.tracks.iter().any(is_asking)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Does what the worker's order wants, with the batch that was just handed in.
    fn obey(&mut self, source: SourceId, batch: Option<&[u8]>, asker: &Asker) {
        let Some(track) = self.tracks.get_mut(source.0 as usize) else { return };
        while let Some(step) = track.order.next_step() {
            match (step, batch) {
                (Step::Apply { seq }, Some(payload)) if track.replay.is_some() => {
                    track.write(&self.pen, seq, payload);
                }
                (Step::Release(held), _) => track.write(&self.pen, held.seq, &held.payload),
                (Step::Ask { round, from }, _) => {
                    if let Some(replay) = &track.replay {
                        asker.ask(source, replay, round, from);
                    }
                }
                // A number that falls to 0 says as much to whoever replays the recording; there are no audits.
                _ => {}
            }
        }
    }
}

/// What both threads that bring batches have.
#[derive(Debug)]
pub(super) struct Deck {
    tape: Arc<Mutex<Tape>>,
    asker: Asker,
}

impl Deck {
    pub(super) fn new(tape: &Arc<Mutex<Tape>>, asker: Asker) -> Deck {
        Deck { tape: Arc::clone(tape), asker }
    }
}

fn arrival<'a>(seq: u64, payload: &'a [u8], limits: &Limits) -> Arrival<'a> {
    let timestamp = Batch::parse(payload, limits).ok().map(|batch| batch.timestamp());
    Arrival { seq, timestamp, payload }
}

impl Sink for Deck {
    fn batch(&mut self, source: SourceId, _: &[u8], sequence: u64, payload: &[u8]) {
        let tape = &mut *self.tape.lock();
        let (now, limits) = (tape.now(), tape.limits);
        let Some(track) = tape.tracks.get_mut(source.0 as usize) else { return };
        if track.replay.is_none() {
            track.write(&tape.pen, sequence, payload);
        }
        track.order.live(now, arrival(sequence, payload, &limits));
        tape.obey(source, Some(payload), &self.asker);
    }

    fn link(&mut self, source: SourceId, up: bool) {
        let tape = &mut *self.tape.lock();
        let now = tape.now();
        let Some(track) = tape.tracks.get_mut(source.0 as usize) else { return };
        track.was_reached |= up;
        track.order.link(now, up);
        tape.obey(source, None, &self.asker);
    }
}

impl ReplaySink for Deck {
    fn batch(&mut self, source: SourceId, round: u64, seq: u64, payload: &[u8]) -> Flow {
        let tape = &mut *self.tape.lock();
        let (now, limits) = (tape.now(), tape.limits);
        let Some(track) = tape.tracks.get_mut(source.0 as usize) else { return Flow::Stop };
        let flow = track.order.replayed(now, round, arrival(seq, payload, &limits));
        tape.obey(source, Some(payload), &self.asker);
        flow
    }

    fn ended(&mut self, source: SourceId, round: u64, how: Ended) {
        let tape = &mut *self.tape.lock();
        let now = tape.now();
        let Some(track) = tape.tracks.get_mut(source.0 as usize) else { return };
        track.order.replay_ended(now, round, how);
        tape.obey(source, None, &self.asker);
    }

    fn tick(&mut self) -> Option<Duration> {
        let tape = &mut *self.tape.lock();
        for n in 0..tape.tracks.len() {
            let now = tape.now();
            if tape.tracks[n].order.wake_at().is_some_and(|at| at <= now) {
                tape.tracks[n].order.tick(now);
                tape.obey(SourceId(n as u32), None, &self.asker);
            }
        }
        let now = tape.now();
        let due = tape.tracks.iter().filter_map(|track| track.order.wake_at());
        Some(due.map(|at| at.saturating_sub(now)).min().unwrap_or(LOOK).min(LOOK))
    }
}
