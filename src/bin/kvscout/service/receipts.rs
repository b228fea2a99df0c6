//! What engines delivered of what was expected of them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use kvscout::block::WorkerId;
use parking_lot::Mutex;
use tracing::warn;

use super::{Candidate, Refusal, Service};

/// The last so many receipts decide whether a worker is believed; a bit of a number each.
const RECENT: u32 = 64;

/// Fewer say nothing.
const LEAST: u32 = 16;

/// An error within this many tokens, a block of the usual size, or within a tenth, is none: between
/// answer and request an engine goes on.
const TOLERATED: u32 = 16;

/// What to expect of receipts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceiptOptions {
    /// Whether workers that do not deliver are left out of rankings.
    pub(crate) quarantine: bool,
    /// For how long.
    pub(crate) quarantine_for: Duration,
}

/// How far off an expectation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As expected, or nearly.
    Kept,
    /// The engine computed what it was expected to have.
    Over,
    /// The engine had more than was expected.
    Under,
}

impl Verdict {
    fn of(expected: u32, delivered: u32) -> Verdict {
        let off = expected.abs_diff(delivered);
        if off <= TOLERATED.max(expected / 10) {
            Verdict::Kept
        } else if expected > delivered {
            Verdict::Over
        } else {
            Verdict::Under
        }
    }

    /// A stable label.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::Over => "over",
            Verdict::Under => "under",
        }
    }
}

/// What a worker's receipts came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Record {
    /// Receipts by verdict.
    pub(crate) kept: u64,
    pub(crate) over: u64,
    pub(crate) under: u64,
    /// Sums of tokens.
    pub(crate) expected_tokens: u64,
    pub(crate) delivered_tokens: u64,
    /// Of errors, either way.
    pub(crate) error_tokens: u64,
    /// Errors, either way, by the bucket of [`BOUNDS`].
    pub(crate) errors: [u64; BOUNDS.len() + 1],
    /// Whether too much was expected in most of the last receipts.
    pub(crate) is_off: bool,
    /// One bit for each of the last receipts: whether too much was expected; and how many there are.
    recent: u64,
    seen: u32,
    /// Since when it is off.
    since: Option<Instant>,
}

/// Tokens, inclusive, up to which an error is in each bucket; one more is for what is above.
pub(crate) const BOUNDS: [u32; 6] = [0, 16, 128, 1024, 8192, 65_536];

impl Record {
    fn add(&mut self, expected: u32, delivered: u32, now: Instant) -> Verdict {
        let verdict = Verdict::of(expected, delivered);
        match verdict {
            Verdict::Kept => self.kept += 1,
            Verdict::Over => self.over += 1,
            Verdict::Under => self.under += 1,
        }
        self.expected_tokens += u64::from(expected);
        self.delivered_tokens += u64::from(delivered);
        self.error_tokens += u64::from(expected.abs_diff(delivered));
        self.errors[BOUNDS.partition_point(|&bound| bound < expected.abs_diff(delivered))] += 1;
        self.recent = self.recent << 1 | u64::from(verdict == Verdict::Over);
        self.seen = (self.seen + 1).min(RECENT);
        let over = self.recent.count_ones();
        // Off above a half, on again below a quarter.
        let is_off = match self.is_off {
            false => self.seen >= LEAST && over * 2 > self.seen,
            true => over * 4 >= self.seen,
        };
        if is_off != self.is_off {
            self.since = is_off.then_some(now);
        }
        self.is_off = is_off;
        verdict
    }

    /// Begins to believe again: the receipts so far decide nothing any more.
    fn absolve(&mut self) {
        (self.recent, self.seen, self.is_off, self.since) = (0, 0, false, None);
    }
}

/// Receipts by worker.
#[derive(Debug)]
pub(super) struct Receipts {
    options: ReceiptOptions,
    records: Mutex<HashMap<WorkerId, Record>>,
}

impl Receipts {
    pub(super) fn new(options: ReceiptOptions) -> Receipts {
        Receipts { options, records: Mutex::default() }
    }

    pub(super) fn forget(&self, worker: WorkerId) {
        self.records.lock().remove(&worker);
    }

    pub(super) fn of(&self, worker: WorkerId) -> Option<Record> {
        self.records.lock().get(&worker).copied()
    }

    /// The workers that are left out now. Their time over, they get another chance.
    pub(super) fn quarantined(&self, now: Instant) -> Vec<WorkerId> {
        if !self.options.quarantine {
            return Vec::new();
        }
        let mut records = self.records.lock();
        let off = records.iter_mut().filter(|(_, record)| record.is_off);
        let mut left_out = Vec::new();
        for (&worker, record) in off {
            let since = record.since.unwrap_or(now);
            match now.saturating_duration_since(since) < self.options.quarantine_for {
                true => left_out.push(worker),
                false => record.absolve(),
            }
        }
        left_out
    }

    pub(super) fn off(&self) -> usize {
        self.records.lock().values().filter(|record| record.is_off).count()
    }
}

impl Service {
    /// Notes what an engine reported as cached, beside what had been expected.
    pub(crate) fn receipt(
        &self,
        tenant: &str,
        from: &Candidate,
        expected: u32,
        delivered: u32,
    ) -> Result<Verdict, Refusal> {
        let worker = self.one_worker(tenant, from)?;
        let mut records = self.receipts.records.lock();
        let record = records.entry(worker).or_default();
        let was_off = record.is_off;
        let verdict = record.add(expected, delivered, Instant::now());
        if record.is_off && !was_off {
            let Candidate { pod, rank } = from;
            warn!(pod, rank, "holds less than it announces: most of its last receipts fall short");
        }
        let verdict_label = verdict.as_str();
        drop(records);
        self.metrics.count_receipt(verdict_label, expected, delivered);
        Ok(verdict)
    }

    /// Workers whose last receipts mostly fall short.
    pub(crate) fn workers_off(&self) -> usize {
        self.receipts.off()
    }
}

/// Receipts as `/workers` counts them, by bucket.
pub(crate) fn histogram(record: &Record) -> BTreeMap<String, u64> {
    let label = |n: usize| match BOUNDS.get(n) {
        Some(bound) => format!("<={bound:05}"),
        None => format!(">{:05}", BOUNDS[BOUNDS.len() - 1]),
    };
    record.errors.iter().enumerate().map(|(n, &count)| (label(n), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(receipts: &[(u32, u32)]) -> Record {
        let mut record = Record::default();
        let now = Instant::now();
        receipts.iter().for_each(|&(expected, delivered)| {
            record.add(expected, delivered, now);
        });
        record
    }

    #[test]
    fn a_block_or_a_tenth_off_is_as_expected() {
        for (expected, delivered, verdict) in [
            (0, 16, Verdict::Kept),
            (32, 16, Verdict::Kept),
            (1000, 900, Verdict::Kept),
            (1000, 899, Verdict::Over),
            (17, 0, Verdict::Over),
            (0, 17, Verdict::Under),
            (u32::MAX, 0, Verdict::Over),
        ] {
            assert_eq!(Verdict::of(expected, delivered), verdict, "{expected} {delivered}");
        }
    }

    #[test]
    fn a_worker_is_off_when_most_of_its_last_receipts_fall_short_and_not_for_a_few() {
        assert!(!record(&[(160, 0); 15]).is_off);
        assert!(record(&[(160, 0); 16]).is_off);
        let half: Vec<_> = (1..65).map(|n| (160, 160 * (n % 2))).collect();
        assert!(!record(&half).is_off);
        assert!(!record(&[(0, 160); 64]).is_off, "more than expected is no lie");
        let repented = [vec![(160, 0); 64], vec![(160, 160); 48]].concat();
        assert!(record(&repented).is_off);
        assert!(!record(&[repented, vec![(160, 160)]].concat()).is_off);
    }

    #[test]
    fn errors_are_counted_by_their_size() {
        let record = record(&[(5, 5), (16, 0), (0, 16), (17, 0), (65_536, 0), (65_537, 0)]);
        assert_eq!(record.errors, [1, 2, 1, 0, 0, 1, 1]);
        assert_eq!((record.kept, record.over, record.under), (3, 3, 0));
        assert_eq!(histogram(&record).values().sum::<u64>(), 6);
    }

    #[test]
    fn quarantine_ends_with_its_time() {
        let options = ReceiptOptions { quarantine: true, quarantine_for: Duration::from_secs(60) };
        let receipts = Receipts::new(options);
        let (worker, now) = (WorkerId(3), Instant::now());
        for _ in 0..16 {
            receipts.records.lock().entry(worker).or_default().add(160, 0, now);
        }
        assert_eq!(receipts.quarantined(now + Duration::from_secs(59)), [worker]);
        assert_eq!(receipts.quarantined(now + Duration::from_secs(60)), []);
        assert_eq!(receipts.off(), 0);
        let idle = Receipts::new(ReceiptOptions { quarantine: false, ..options });
        idle.records.lock().insert(worker, record(&[(160, 0); 16]));
        assert_eq!((idle.quarantined(now), idle.off()), (vec![], 1));
    }
}
