//! Going on where another sequencer was.

use std::time::Duration;

use super::{Mark, Sequencer};
use crate::ingest::snapshot::Watermark;

impl Sequencer {
    /// Goes on where another sequencer was: the last batch that was applied, the XXH3-64 of its bytes, and
    /// its clock if that is a number. To be said first.
    ///
    /// Nothing shows yet that the publisher that is there now is the one that was followed, so the trust
    /// is [`Trust::Syncing`](crate::ingest::Trust::Syncing). What proves it: with a replay source a round
    /// from that batch on, asked for by the first batch or when the link is up; without one the next
    /// number or that batch once more.
    pub fn resume(&mut self, seq: u64, digest: u64, timestamp: f64) {
        let known = Some(timestamp).filter(|timestamp| timestamp.is_finite());
        self.order.record(seq, timestamp, digest);
        self.applied = Some(Mark { seq, timestamp: known, digest });
        self.unproven = true;
    }

    /// The last batch that was applied, for [`resume`](Sequencer::resume).
    pub fn watermark(&self) -> Option<Watermark> {
        let Mark { seq, timestamp, digest } = self.applied?;
        Some(Watermark { seq, digest, timestamp: timestamp.unwrap_or(f64::NAN).to_bits() })
    }

    /// The batch that was resumed from, once more.
    pub(super) fn recognise(&mut self, now: Duration, mark: Mark) {
        if !self.unproven || self.applied.is_none_or(|applied| applied.seq != mark.seq) {
            return;
        }
        match self.replay {
            None => self.unproven = false,
            // What was published between is still to be had.
            Some(_) => self.doubt(now),
        }
    }
}
