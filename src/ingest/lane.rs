//! The order of one worker's batches.

use std::collections::VecDeque;

use super::Reason;
use super::snapshot::Watermark;

/// How many late batches in a row, each the next of the one before, are a publisher that started
/// anew under an older clock.
const RESTART_AFTER: u32 = 3;

/// How many applied batches a lane remembers, to tell a repeated batch from a restart.
///
/// A publisher's replay socket repeats at most its buffer (10,000 batches by default); the newest
/// thousand is enough to recognise an overlap with live batches, at 16 bytes each.
const REMEMBERED: usize = 1024;

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it: it follows the last one, or it is the first.
    Next,
    /// Apply it, but `missing` batches before it were not seen.
    Gap {
        /// How many numbers were skipped.
        missing: u64,
    },
    /// Drop it: this very batch was applied.
    Duplicate,
    /// Drop it: it is older than what was applied, and was not applied in its turn.
    Late,
    /// Forget everything the worker held, then apply it: its publisher started anew.
    Restart,
}

/// The sequence state of one worker's stream without a replay source, fed with every batch in order
/// of arrival. [`Sequencer`](super::Sequencer) is the same with one.
///
/// Numbers start at 0 with each life of a publisher and grow by 1 (vLLM's `ZmqEventPublisher`);
/// there is no epoch in the stream, so a restart is recognised by the number going back: either the
/// batch differs from the one that was applied under its number, or its timestamp is newer than the
/// last one's, or it is one of several old numbers in a row.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    order: Order,
    unsound: Option<Reason>,
    /// Nothing has come yet that follows what was resumed, or repeats it.
    is_unproven: bool,
    counters: Counters,
}

/// What happened on a lane since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Batches to apply.
    pub batches: u64,
    /// Gaps.
    pub gaps: u64,
    /// Batches that the gaps and a missed start left out.
    pub missing: u64,
    /// Batches dropped as repeated.
    pub duplicates: u64,
    /// Batches dropped as late.
    pub late: u64,
    /// Restarts.
    pub restarts: u64,
}

impl Lane {
    /// A lane that goes on after a batch that another one was fed with, as sound as that was then.
    ///
    /// That batch coming again is a duplicate, another one under its number a restart. Of the batches
    /// before it nothing is remembered.
    pub fn resume(last: Watermark, unsound: Option<Reason>) -> Lane {
        let Watermark { seq, digest, timestamp } = last;
        let timestamp = f64::from_bits(timestamp);
        let mut order = Order::default();
        order.record(seq, timestamp, digest);
        Lane { order, unsound, is_unproven: true, ..Lane::default() }
    }

    /// Judges a batch by its number, its own timestamp and a digest of its bytes, and records the
    /// outcome.
    pub fn judge(&mut self, seq: u64, timestamp: f64, digest: u64) -> Verdict {
        let verdict = self.order.judge(seq, timestamp, digest);
        match verdict {
            Verdict::Duplicate => {
                self.counters.duplicates += 1;
                self.is_unproven = false;
            }
            Verdict::Late => {
                self.counters.late += 1;
                self.degrade(Reason::OutOfOrder);
            }
            Verdict::Next | Verdict::Gap { .. } => self.record(seq, timestamp, digest),
            Verdict::Restart => {
                let restarts = self.counters.restarts + 1;
                *self =
                    Lane { counters: Counters { restarts, ..self.counters }, ..Lane::default() };
                self.record(seq, timestamp, digest);
            }
        }
        if let Verdict::Gap { missing } = verdict {
            self.counters.gaps += 1;
            self.counters.missing = self.counters.missing.saturating_add(missing);
            self.degrade(Reason::Gap);
        }
        verdict
    }

    /// Judges a batch of which only the number can be read. It fills its place in the order, but it is
    /// no proof of a restart: garbage must not cost what is known.
    pub fn judge_unreadable(&mut self, seq: u64, digest: u64) -> Verdict {
        match self.order.newest() {
            Some(newest) if seq <= newest => {
                self.counters.late += 1;
                Verdict::Late
            }
            // It has no clock of its own.
            _ => self.judge(seq, f64::NAN, digest),
        }
    }

    fn record(&mut self, seq: u64, timestamp: f64, digest: u64) {
        if self.order.newest().is_none() && seq > 0 {
            self.counters.missing = self.counters.missing.saturating_add(seq);
            self.degrade(Reason::MissedStart);
        }
        self.is_unproven = false;
        self.order.record(seq, timestamp, digest);
        self.counters.batches += 1;
    }

    /// Says that the residency no longer equals the effect of the batches; the first reason stays.
    pub fn degrade(&mut self, reason: Reason) {
        self.unsound.get_or_insert(reason);
    }

    /// Says that everything the worker held is gone by its own word, and with it whatever was
    /// unclear about it.
    pub fn cleared(&mut self) {
        self.unsound = None;
    }

    /// Why the residency differs from the effect of all batches, if it may.
    pub fn unsound(&self) -> Option<Reason> {
        self.unsound
    }

    /// Whether nothing has shown yet that the publisher goes on where the lane was
    /// [resumed](Lane::resume).
    pub fn is_unproven(&self) -> bool {
        self.is_unproven
    }

    /// The last batch that was applied, to resume from.
    pub fn watermark(&self) -> Option<Watermark> {
        self.order.watermark()
    }

    /// The number of the last batch that was applied.
    pub fn as_of(&self) -> Option<u64> {
        self.order.newest()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

/// The numbers, clocks and digests that arrived, and what the next one says in their light.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    last: Option<Newest>,
    /// Number and digest, in order of arrival.
    recent: VecDeque<(u64, u64)>,
    /// The number after the last late batch, and how many late ones followed each other.
    late: Option<(u64, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    seq: u64,
    timestamp: f64,
    digest: u64,
}

impl Order {
    /// What a batch is; a new one is still to be recorded.
    pub(super) fn judge(&mut self, seq: u64, timestamp: f64, digest: u64) -> Verdict {
        let verdict = self.verdict(seq, timestamp, digest);
        if verdict != Verdict::Late {
            return verdict;
        }
        let run = match self.late {
            Some((next, run)) if next == seq => run + 1,
            _ => 1,
        };
        self.late = seq.checked_add(1).map(|next| (next, run));
        if run == RESTART_AFTER { Verdict::Restart } else { Verdict::Late }
    }

    fn verdict(&self, seq: u64, timestamp: f64, digest: u64) -> Verdict {
        let Some(last) = self.last else { return Verdict::Next };
        if seq > last.seq {
            return match seq - last.seq - 1 {
                0 => Verdict::Next,
                missing => Verdict::Gap { missing },
            };
        }
        match self.digest_of(seq) {
            Some(known) if known == digest => Verdict::Duplicate,
            Some(_) => Verdict::Restart,
            None if timestamp > last.timestamp => Verdict::Restart,
            None => Verdict::Late,
        }
    }

    /// Remembers a batch. The newest is the one with the highest number.
    pub(super) fn record(&mut self, seq: u64, timestamp: f64, digest: u64) {
        if self.last.is_none_or(|last| seq > last.seq) {
            let before = self.last.map_or(f64::NEG_INFINITY, |last| last.timestamp);
            let timestamp = if timestamp.is_finite() { timestamp } else { before };
            self.last = Some(Newest { seq, timestamp, digest });
        }
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((seq, digest));
    }

    /// The highest number that arrived.
    pub(super) fn newest(&self) -> Option<u64> {
        self.last.map(|last| last.seq)
    }

    /// The batch under that number, to resume from.
    fn watermark(&self) -> Option<Watermark> {
        let Newest { seq, timestamp, digest } = self.last?;
        Some(Watermark { seq, digest, timestamp: timestamp.to_bits() })
    }

    /// The digest of the batch that arrived under a number, if that is remembered.
    pub(super) fn digest_of(&self, seq: u64) -> Option<u64> {
        self.recent.iter().find(|(number, _)| *number == seq).map(|(_, digest)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds (seq, timestamp); the digest is the pair itself.
    fn feed(lane: &mut Lane, batches: &[(u64, f64)]) -> Vec<Verdict> {
        let digest = |&(seq, ts): &(u64, f64)| seq ^ ts.to_bits();
        batches.iter().map(|b| lane.judge(b.0, b.1, digest(b))).collect()
    }

    #[test]
    fn consecutive_batches_from_zero_are_sound() {
        let mut lane = Lane::default();
        assert_eq!(feed(&mut lane, &[(0, 1.0), (1, 2.0)]), [Verdict::Next; 2]);
        assert_eq!((lane.unsound(), lane.as_of()), (None, Some(1)));
    }

    #[test]
    fn a_first_number_above_zero_means_a_missed_start() {
        let mut lane = Lane::default();
        feed(&mut lane, &[(3, 1.0)]);
        assert_eq!(lane.unsound(), Some(Reason::MissedStart));
        assert_eq!(lane.counters().missing, 3);
    }

    #[test]
    fn a_gap_degrades_until_the_worker_clears_itself() {
        let mut lane = Lane::default();
        let verdicts = feed(&mut lane, &[(0, 1.0), (4, 2.0)]);
        assert_eq!(verdicts[1], Verdict::Gap { missing: 3 });
        assert_eq!(lane.unsound(), Some(Reason::Gap));
        lane.cleared();
        assert_eq!(lane.unsound(), None);
    }

    #[test]
    fn a_repeated_batch_is_dropped() {
        let mut lane = Lane::default();
        let verdicts = feed(&mut lane, &[(0, 1.0), (1, 2.0), (0, 1.0), (1, 2.0)]);
        assert_eq!(verdicts[2..], [Verdict::Duplicate; 2]);
    }

    #[test]
    fn batches_in_falling_order_are_late_and_not_a_restart() {
        let mut lane = Lane::default();
        let verdicts = feed(&mut lane, &[(3, 3.0), (2, 2.0), (1, 1.0)]);
        assert_eq!(verdicts[1..], [Verdict::Late; 2]);
    }

    #[test]
    fn another_batch_under_an_applied_number_is_a_restart() {
        let mut lane = Lane::default();
        let verdicts = feed(&mut lane, &[(0, 1.0), (1, 2.0), (2, 3.0), (0, 9.0), (1, 9.5)]);
        assert_eq!(verdicts[3..], [Verdict::Restart, Verdict::Next]);
        assert_eq!((lane.unsound(), lane.counters().restarts), (None, 1));
    }

    #[test]
    fn a_lower_number_with_a_newer_clock_is_a_restart_that_missed_its_start() {
        let mut lane = Lane::default();
        let verdicts = feed(&mut lane, &[(0, 1.0), (900, 2.0), (500, 9.0)]);
        assert_eq!(verdicts[2], Verdict::Restart);
        assert_eq!(lane.unsound(), Some(Reason::MissedStart));
    }

    #[test]
    fn an_unreadable_batch_takes_its_place_but_proves_no_restart() {
        let mut lane = Lane::default();
        feed(&mut lane, &[(0, 1.0)]);
        assert_eq!(lane.judge_unreadable(1, 7), Verdict::Next);
        assert_eq!(lane.judge_unreadable(0, 8), Verdict::Late);
        assert_eq!(feed(&mut lane, &[(2, 2.0)]), [Verdict::Next]);
        assert_eq!(lane.counters().restarts, 0);
    }

    #[test]
    fn the_largest_number_is_data_and_does_not_overflow() {
        let mut lane = Lane::default();
        let verdicts = feed(&mut lane, &[(u64::MAX - 1, 1.0), (u64::MAX, 2.0), (0, 3.0)]);
        assert_eq!(verdicts, [Verdict::Next, Verdict::Next, Verdict::Restart]);
    }

    #[test]
    fn numbers_however_far_apart_do_not_overflow_what_is_counted() {
        let mut lane = Lane::default();
        feed(&mut lane, &[(u64::MAX, 1.0), (0, 2.0), (u64::MAX, 3.0)]);
        assert_eq!(lane.counters().missing, u64::MAX);
    }

    #[test]
    fn what_a_lane_remembers_is_bounded() {
        let mut lane = Lane::default();
        for seq in 0..5000 {
            lane.judge(seq, seq as f64, seq);
        }
        assert_eq!(lane.order.recent.len(), REMEMBERED);
        assert_eq!(lane.judge(0, 0.0, 0), Verdict::Late, "too old to compare, clock not newer");
        assert_eq!(lane.unsound(), Some(Reason::OutOfOrder), "it may be a restart");
    }

    #[test]
    fn old_numbers_in_a_row_are_a_restart_under_an_older_clock() {
        let mut lane = Lane::default();
        for seq in 0..5000 {
            lane.judge(seq, 1e9 + seq as f64, seq);
        }
        let verdicts = feed(&mut lane, &[(0, 5.0), (1, 6.0), (2, 7.0), (3, 8.0)]);
        let late = Verdict::Late;
        assert_eq!(verdicts, [late, late, Verdict::Restart, Verdict::Next]);
        assert_eq!(lane.unsound(), Some(Reason::MissedStart), "its first two were dropped");
    }

    /// A lane resumed after batch 5 of 5.0 with digest 55.
    fn resumed(unsound: Option<Reason>) -> Lane {
        let last = Watermark { seq: 5, digest: 55, timestamp: 5.0_f64.to_bits() };
        let lane = Lane::resume(last, unsound);
        assert!(lane.is_unproven());
        assert_eq!(lane.watermark(), Some(last));
        lane
    }

    #[test]
    fn a_resumed_lane_is_proven_by_the_next_batch_or_by_the_last_one_again() {
        for (seq, timestamp, digest, verdict) in
            [(6, 6.0, 66, Verdict::Next), (5, 5.0, 55, Verdict::Duplicate)]
        {
            let mut lane = resumed(None);
            assert_eq!(lane.judge(seq, timestamp, digest), verdict);
            assert_eq!((lane.is_unproven(), lane.unsound()), (false, None));
        }
        let mut lane = resumed(Some(Reason::Undecodable));
        lane.judge(6, 6.0, 66);
        assert_eq!(lane.unsound(), Some(Reason::Undecodable), "it is as sound as it was");
    }

    #[test]
    fn a_resumed_lane_notices_gaps_and_restarts() {
        let mut lane = resumed(None);
        assert_eq!(lane.judge(8, 8.0, 88), Verdict::Gap { missing: 2 });
        assert_eq!(lane.unsound(), Some(Reason::Gap));
        let mut lane = resumed(Some(Reason::Gap));
        assert_eq!(lane.judge(5, 9.0, 56), Verdict::Restart, "other bytes under its number");
        assert_eq!(resumed(None).judge(0, 9.0, 1), Verdict::Restart, "a newer clock");
        let mut lane = resumed(None);
        assert_eq!(lane.judge(4, 4.0, 44), Verdict::Late);
        assert!(lane.is_unproven(), "an old batch proves nothing");
    }

    #[test]
    fn a_clock_that_is_no_number_is_no_clock() {
        let mut lane = Lane::default();
        feed(&mut lane, &[(0, 1.0)]);
        assert_eq!(lane.judge(2000, f64::INFINITY, 7), Verdict::Gap { missing: 1999 });
        assert_eq!(feed(&mut lane, &[(5, 2.0)]), [Verdict::Restart], "newer than the last clock");
    }
}
