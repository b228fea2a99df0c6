//! The daemon's state at a glance, as [`Status`] has it.

use kvscout::scout::{EventCounters, Registration};
use prometheus_client::encoding::text;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Service, WorkerView};
use crate::status::{Bucket, EventCounts, IndexSizes, ScoreCounts, Status, TierBlocks, WorkerLine};

impl Service {
    /// Everything that an operator sees at a glance.
    pub(crate) fn status(&self) -> Status {
        let readiness = self.readiness();
        let (totals, workers) = self.totals();
        let lookups = self.metrics.lookups();
        let index = totals.index;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.began.elapsed().as_secs_f64(),
            ready: readiness.is_ok(),
            not_ready: readiness.err(),
            index: IndexSizes {
                blocks: index.blocks,
                unplaced: index.unplaced,
                entries: index.entries,
                evicted: index.evicted,
                bytes: index.bytes,
                reserved_bytes: index.reserved,
                budget_bytes: self.index_budget as u64,
            },
            events: EventCounts {
                batches: totals.counters.batches,
                events: events(&totals.events),
                stored: totals.events.stored,
                removed: totals.events.removed,
                missing: totals.counters.missing,
            },
            scores: ScoreCounts {
                questions: lookups.all.get(),
                hits: lookups.hits.get(),
                asked_tokens: lookups.tokens.get(),
                expected_tokens: lookups.expected_tokens.get(),
                latency: buckets(&self.metrics.score_seconds),
            },
            workers: workers.iter().map(line).collect(),
        }
    }
}

/// Events of batches that were applied, whatever became of them.
fn events(counters: &EventCounters) -> u64 {
    let EventCounters { stored_events, removed_events, cleared, rejected, foreign, .. } = counters;
    stored_events + removed_events + cleared + rejected + foreign
}

fn line(view: &WorkerView) -> WorkerLine {
    let status = &view.status;
    let Registration { pod, rank, tenant, model, .. } = &status.registration;
    // What was registered and has sent nothing has no last batch.
    let came = view.heard.filter(|heard| heard.sequence.is_some());
    let last = came.and_then(|heard| heard.sequence);
    let next = status.as_of.map_or(0, |as_of| as_of.saturating_add(1));
    WorkerLine {
        worker: pod.clone(),
        rank: *rank,
        tenant: tenant.clone(),
        model: model.clone(),
        trust: status.trust.as_str().to_owned(),
        reason: status.trust.reason().map(|reason| reason.as_str().to_owned()),
        warnings: view.warnings().map(str::to_owned).collect(),
        link: view.link().to_owned(),
        as_of: status.as_of,
        behind: last.map_or(0, |last| last.saturating_add(1).saturating_sub(next)),
        held_back: status.held_back as u64,
        seconds_since_batch: came.map(|heard| heard.at.elapsed().as_secs_f64()),
        blocks: TierBlocks::from(status.held),
        batches: status.counters.batches,
        events: events(&status.events),
        stored: status.events.stored,
        removed: status.events.removed,
        missing: status.counters.missing,
    }
}

/// The counts of a histogram, which its crate hands to encoders only.
fn buckets(histogram: &Histogram) -> Vec<Bucket> {
    let (mut registry, mut written) = (Registry::default(), String::new());
    registry.register("x", "x", histogram.clone());
    if text::encode(&mut written, &registry).is_err() {
        return Vec::new();
    }
    let mut before = 0;
    let bucket = |line: &str| {
        let (bound, sum) = line.strip_prefix("x_bucket{le=\"")?.split_once("\"} ")?;
        let sum: u64 = sum.trim().parse().ok()?;
        let up_to_seconds = bound.parse().ok().filter(|bound: &f64| bound.is_finite());
        let questions = sum.saturating_sub(std::mem::replace(&mut before, sum));
        Some(Bucket { up_to_seconds, questions })
    };
    written.lines().filter_map(bucket).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_of_a_histogram_counts_for_itself() {
        let histogram = Histogram::new([0.001, 0.002]);
        for seconds in [0.0005, 0.001, 0.0015, 7.0] {
            histogram.observe(seconds);
        }
        let bucket = |up_to_seconds, questions| Bucket { up_to_seconds, questions };
        let expected = [bucket(Some(0.001), 2), bucket(Some(0.002), 1), bucket(None, 1)];
        assert_eq!(buckets(&histogram), expected);
    }
}
