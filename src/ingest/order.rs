//! The order of one worker's batches: what a number says in the light of those that came before.

use std::collections::VecDeque;

/// How many late batches in a row, each the next of the one before, are a publisher that started
/// anew under an older clock.
const RESTART_AFTER: u32 = 3;

/// How many batches are remembered, to tell a repeated batch from a restart.
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

/// The numbers, clocks and digests that arrived, and what the next one says in their light.
///
/// Numbers start at 0 with each life of a publisher and grow by 1 (vLLM's `ZmqEventPublisher`);
/// there is no epoch in the stream, so a restart is recognised by the number going back: either the
/// batch differs from the one that was applied under its number, or its timestamp is newer than the
/// last one's, or it is one of several old numbers in a row.
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
            self.last = Some(Newest { seq, timestamp });
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

    /// The digest of the batch that arrived under a number, if that is remembered.
    pub(super) fn digest_of(&self, seq: u64) -> Option<u64> {
        self.recent.iter().find(|(number, _)| *number == seq).map(|(_, digest)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut order = Order::default();
        for seq in 0..5000 {
            assert_eq!(order.judge(seq, seq as f64, seq), Verdict::Next);
            order.record(seq, seq as f64, seq);
        }
        assert_eq!(order.recent.len(), REMEMBERED);
        assert_eq!(order.judge(0, 0.0, 0), Verdict::Late, "too old to compare, clock not newer");
        assert_eq!(order.judge(4999, 0.0, 4999), Verdict::Duplicate);
    }
}
