//! What the numbers of a stream without a replay source say, as literally as it can be written: everything that
//! came is kept, and looked through from the beginning each time.

use kvscout::ingest::{Reason, Verdict};

/// The newest batches whose bytes can be compared.
const REMEMBERED: usize = 1024;
/// So many old numbers in a row are a new life.
const RESTART_AFTER: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Seen {
    seq: u64,
    clock: f64,
    digest: u64,
}

/// One worker's stream since its publisher began, as far as it was applied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lane {
    applied: Vec<Seen>,
    /// Numbers of late batches, in order of arrival.
    late: Vec<u64>,
    /// The first thing that was wrong; what may hide removals says more than a missed start, which cannot.
    pub(crate) unsound: Option<Reason>,
    pub(crate) totals: Totals,
}

/// What came of all batches, those of earlier lives included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) batches: u64,
    pub(crate) gaps: u64,
    pub(crate) missing: u64,
    pub(crate) duplicates: u64,
    pub(crate) late: u64,
    pub(crate) restarts: u64,
}

impl Lane {
    /// Judges a batch by its number, its own clock and a digest of its bytes.
    pub(crate) fn judge(&mut self, seq: u64, clock: f64, digest: u64) -> Verdict {
        let verdict = self.verdict(seq, clock, digest);
        match verdict {
            Verdict::Duplicate => self.totals.duplicates += 1,
            Verdict::Late => {
                self.late.push(seq);
                self.totals.late += 1;
                self.lose(Reason::OutOfOrder);
            }
            Verdict::Next => {}
            Verdict::Gap { missing } => {
                self.totals.gaps += 1;
                self.totals.missing += missing;
                self.lose(Reason::Gap);
            }
            Verdict::Restart => {
                *self = Lane { totals: self.totals, ..Lane::default() };
                self.totals.restarts += 1;
            }
        }
        if !matches!(verdict, Verdict::Late | Verdict::Duplicate) {
            if self.applied.is_empty() && seq > 0 {
                self.totals.missing += seq;
                self.unsound = Some(Reason::MissedStart);
            }
            self.applied.push(Seen { seq, clock, digest });
            self.totals.batches += 1;
        }
        verdict
    }

    /// Judges a batch of which only the number can be read.
    pub(crate) fn judge_unreadable(&mut self, seq: u64, digest: u64) -> Verdict {
        match self.newest() {
            Some(newest) if seq <= newest.seq => {
                self.totals.late += 1;
                Verdict::Late
            }
            _ => self.judge(seq, f64::NAN, digest),
        }
    }

    /// Something is missing that may have been a removal.
    fn lose(&mut self, reason: Reason) {
        if matches!(self.unsound, None | Some(Reason::MissedStart)) {
            self.unsound = Some(reason);
        }
    }

    /// The number of the last batch that was applied.
    pub(crate) fn as_of(&self) -> Option<u64> {
        self.newest().map(|newest| newest.seq)
    }

    fn newest(&self) -> Option<Seen> {
        self.applied.last().copied()
    }

    fn verdict(&self, seq: u64, clock: f64, digest: u64) -> Verdict {
        let Some(newest) = self.newest() else { return Verdict::Next };
        if seq > newest.seq {
            return match seq - newest.seq {
                1 => Verdict::Next,
                more => Verdict::Gap { missing: more - 1 },
            };
        }
        let remembered = self.applied.iter().rev().take(REMEMBERED);
        if let Some(same) = remembered.clone().find(|seen| seen.seq == seq) {
            return if same.digest == digest { Verdict::Duplicate } else { Verdict::Restart };
        }
        // The last clock that was one.
        let last = self.applied.iter().rev().map(|seen| seen.clock).find(|clock| clock.is_finite());
        if last.is_none_or(|last| clock > last) && !clock.is_nan() {
            return Verdict::Restart;
        }
        let before = self.late.iter().rev().take(RESTART_AFTER - 1).enumerate();
        let in_row =
            before.filter(|&(n, &late)| late.checked_add(n as u64 + 1) == Some(seq)).count();
        if in_row == RESTART_AFTER - 1 { Verdict::Restart } else { Verdict::Late }
    }
}
