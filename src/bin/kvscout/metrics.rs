//! `/metrics`: what the daemon counts, for Prometheus.
//!
//! No label has a worker, a model or a tenant in it, so that the number of series does not grow
//! with the cluster; `/workers` has the details.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvscout::index::Stats;
use kvscout::ingest::Trust;
use kvscout::ingest::sequencer::{AuditState, SequencerCounters};
use kvscout::ingest::zmq::{ReplayCounters, SourceStatus};
use kvscout::scout::{EventCounters, Warning, WorkerStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::intake::TopicCounters;
use crate::service::{BOUNDS, Service};
use crate::state::Report;
use crate::store;

/// One HTTP route and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// The route's pattern, or `other`.
    pub(crate) route: String,
    /// The status code.
    pub(crate) status: u16,
}

/// One gRPC method and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    method: &'static str,
    code: &'static str,
}

/// What requests count themselves.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Answers by route and status.
    pub(crate) requests: Family<Answered, Counter>,
    /// Calls by method and status.
    calls: Family<Called, Counter>,
    /// Time within the index for one question, tokens already read.
    pub(crate) score_seconds: Histogram,
    /// Receipts by whether they were as expected.
    receipts: Family<Received, Counter>,
    /// How far off expectations were, either way.
    error_tokens: Histogram,
}

/// How a receipt compares with what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Received {
    verdict: &'static str,
}

impl Metrics {
    /// Counts a call by its method, as gRPC writes it without the first slash, and its status.
    pub(crate) fn count_call(&self, method: &'static str, code: &'static str) {
        self.calls.get_or_create(&Called { method, code }).inc();
    }

    /// Counts a receipt.
    pub(crate) fn count_receipt(&self, verdict: &'static str, off_by: u32) {
        self.receipts.get_or_create(&Received { verdict }).inc();
        self.error_tokens.observe(f64::from(off_by));
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            requests: Family::default(),
            calls: Family::default(),
            // 10 us, where the answers for short prompts are, to 0.33 s.
            score_seconds: Histogram::new(exponential_buckets(10e-6, 2.0, 16)),
            receipts: Family::default(),
            error_tokens: Histogram::new(BOUNDS.map(f64::from)),
        }
    }
}

/// Sums over workers and sources, present and gone; and what is there now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    workers: [u64; 4],
    warned: [u64; Warning::ALL.len()],
    counters: SequencerCounters,
    audited: [u64; AuditState::ALL.len()],
    audit_missing: u64,
    audit_surplus: u64,
    held_back: u64,
    held_back_bytes: u64,
    events: EventCounters,
    messages: u64,
    bytes: u64,
    disconnects: u64,
    failed_handshakes: u64,
    violations: u64,
    overruns: u64,
    refused: u64,
    redials: u64,
    malformed_frames: u64,
    malformed_sequence: u64,
    topics: [u64; 4],
    /// What rounds of replays came to.
    pub(crate) replays: ReplayCounters,
    /// Rounds that run, and that wait for their turn.
    pub(crate) replay_load: (usize, usize),
    /// Sources with a publisher connected.
    pub(crate) sources_up: u64,
    /// Sizes of the index.
    pub(crate) index: Stats,
}

/// The trust states in the order of `Totals::workers`.
const TRUSTS: [&str; 4] = ["exact", "syncing", "degraded", "silent"];

impl Totals {
    /// Adds what a worker counted.
    pub(crate) fn add_worker(&mut self, status: &WorkerStatus) {
        let (sum, part) = (&mut self.counters, status.counters);
        sum.batches += part.batches;
        sum.gaps += part.gaps;
        // One gap may be almost as wide as a number can be.
        sum.missing = sum.missing.saturating_add(part.missing);
        sum.duplicates += part.duplicates;
        sum.late += part.late;
        sum.restarts += part.restarts;
        sum.repaired += part.repaired;
        sum.rounds += part.rounds;
        sum.replayed += part.replayed;
        sum.stale += part.stale;
        sum.overflows += part.overflows;
        sum.given_up += part.given_up;
        sum.rebuilt += part.rebuilt;
        sum.audits_ok += part.audits_ok;
        sum.audits_differed += part.audits_differed;
        sum.audits_unfinished += part.audits_unfinished;
        self.audit_missing += status.audit.missing;
        self.audit_surplus += status.audit.surplus;
        let (sum, part) = (&mut self.events, status.events);
        sum.stored += part.stored;
        sum.removed += part.removed;
        sum.unknown_removals += part.unknown_removals;
        sum.unknown_parents += part.unknown_parents;
        sum.cleared += part.cleared;
        sum.rejected += part.rejected;
        sum.sparse += part.sparse;
        sum.other_unit += part.other_unit;
        sum.refused += part.refused;
        sum.foreign += part.foreign;
    }

    /// Counts a present worker by its trust and its warnings, and what it holds back.
    pub(crate) fn count_present(&mut self, status: &WorkerStatus) {
        self.held_back += status.held_back as u64;
        self.held_back_bytes += status.held_back_bytes as u64;
        let at = match status.trust {
            Trust::Exact => 0,
            Trust::Syncing => 1,
            Trust::Silent => 3,
            // Whatever comes to be known beside these is not sound either.
            _ => 2,
        };
        self.workers[at] += 1;
        let at = AuditState::ALL.iter().position(|other| *other == status.audit.state);
        self.audited[at.unwrap_or_default()] += 1;
        for warning in status.warnings() {
            let at = Warning::ALL.iter().position(|other| *other == warning);
            self.warned[at.unwrap_or_default()] += 1;
        }
    }

    /// Adds what a source counted.
    pub(crate) fn add_source(&mut self, status: &SourceStatus) {
        self.messages += status.messages;
        self.bytes += status.bytes;
        self.disconnects += status.disconnects;
        self.failed_handshakes += status.failed_handshakes;
        self.violations += status.violations;
        self.overruns += status.overruns;
        self.refused += status.refused;
        self.redials += status.redials;
        self.malformed_frames += status.malformed_frames;
        self.malformed_sequence += status.malformed_sequence;
    }

    /// Adds what topics were worth.
    pub(crate) fn add_topics(&mut self, topics: &TopicCounters) {
        let all = [&topics.mismatched, &topics.unreadable, &topics.claimed, &topics.excess];
        for (sum, counter) in self.topics.iter_mut().zip(all) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
}

/// The text that `/metrics` answers with.
#[derive(Debug)]
pub(crate) struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// Everything that `service` counts.
    pub(crate) fn new(service: Arc<Service>) -> Exposition {
        let mut registry = Registry::with_prefix("kvscout");
        let Metrics { requests, calls, score_seconds, receipts, error_tokens } = service.metrics();
        registry.register("http_requests", "Answers by route and status", requests.clone());
        registry.register("grpc_requests", "Answers by method and status", calls.clone());
        registry.register_with_unit(
            "score",
            "Time within the index for one question",
            Unit::Seconds,
            score_seconds.clone(),
        );
        registry.register("receipts", "Receipts by verdict", receipts.clone());
        registry.register(
            "prediction_error_tokens",
            "Tokens by which receipts differed from what was expected",
            error_tokens.clone(),
        );
        registry.register_collector(Box::new(Snapshot(service)));
        Exposition { registry }
    }

    /// The current values, in the OpenMetrics text format.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What is read off workers and sources when it is asked for.
#[derive(Debug)]
struct Snapshot(Arc<Service>);

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let totals = self.0.totals();
        let (lane, events, index) = (totals.counters, totals.events, totals.index);
        let external = self.0.external().load();
        let (replays, (running, waiting)) = (totals.replays, totals.replay_load);
        let by_trust = TRUSTS.into_iter().zip(totals.workers);
        gauges(&mut to, "workers", "Workers by trust", "trust", by_trust)?;
        let by_warning = Warning::ALL.map(Warning::as_str).into_iter().zip(totals.warned);
        gauges(&mut to, "warned_workers", "Workers by warning", "warning", by_warning)?;
        let by_audit = AuditState::ALL.map(AuditState::as_str).into_iter().zip(totals.audited);
        gauges(&mut to, "audited_workers", "Workers by what audits say", "audit", by_audit)?;
        for (name, help, value) in [
            ("predicted_blocks", "Blocks that picks predict", self.0.predicted_blocks() as u64),
            ("reported_blocks", "Blocks that bridges of SGLang report", external.placements as u64),
            ("workers_off", "Workers whose receipts fall short", self.0.workers_off() as u64),
            ("sources_up", "Sources whose publisher is connected", totals.sources_up),
            ("replays_running", "Replays under way", running as u64),
            ("replays_waiting", "Replays that wait for their turn", waiting as u64),
            ("held_back_batches", "Batches that wait for earlier ones", totals.held_back),
            ("held_back_bytes", "Bytes of their payloads", totals.held_back_bytes),
            ("blocks", "Blocks that match by content", index.blocks),
            ("unplaced", "Blocks known by name only", index.unplaced),
            ("entries", "Entries (block, worker, group, tier)", index.entries),
            ("index_bytes", "Bytes of the index in use", index.bytes),
            (
                "index_reserved_bytes",
                "Bytes of the index, in use or kept for later",
                index.reserved,
            ),
        ] {
            let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(gauge(value)).encode(metric)?;
        }
        for (name, help, value) in [
            ("batches", "Batches applied", lane.batches),
            ("gaps", "Gaps in the numbers of batches", lane.gaps),
            ("missing_batches", "Batches that gaps and missed starts left out", lane.missing),
            ("duplicates", "Batches dropped as repeated", lane.duplicates),
            ("late", "Batches dropped as late", lane.late),
            ("restarts", "Publishers that started anew", lane.restarts),
            ("replay_rounds", "Replays asked for", lane.rounds),
            ("replayed_batches", "Batches applied from replays", lane.replayed),
            ("stale_batches", "Replayed batches dropped as of an old round", lane.stale),
            ("repaired", "Times that replays closed all that was open", lane.repaired),
            ("given_up", "Times that missing batches were given up", lane.given_up),
            ("rebuilt", "Workers built anew from batch 0", lane.rebuilt),
            ("audit_missing_copies", "Copies that audits found missing", totals.audit_missing),
            ("audit_surplus_copies", "Copies that audits found too many", totals.audit_surplus),
            ("held_back_overflows", "Times that too much waited for a replay", lane.overflows),
            ("replay_overruns", "Replays cut for a message or backlog too large", replays.overruns),
            ("replay_messages", "Batches received in replays", replays.batches),
            ("replay_bytes", "Bytes of their payloads", replays.bytes),
            ("replay_malformed", "Messages of replays that are no answer", replays.malformed),
            ("stored", "Copies added", events.stored),
            ("removed", "Copies taken away one by one", events.removed),
            ("unknown_removals", "Removals of blocks that were not held", events.unknown_removals),
            ("unknown_parents", "Stores below blocks that were not held", events.unknown_parents),
            ("cleared", "Workers that dropped all their blocks", events.cleared),
            ("rejected_events", "Events left out as unreadable or senseless", events.rejected),
            ("sparse_events", "Stores whose tokens do not cover their blocks", events.sparse),
            ("other_unit_events", "Stores in units other than blocks", events.other_unit),
            ("refused_blocks", "Copies refused as beyond a worker's share", events.refused),
            ("foreign_events", "Events of pools about other tenants or models", events.foreign),
            ("evicted_entries", "Entries given up because the memory was full", index.evicted),
            ("reported_evicted", "Reported blocks that made way for others", external.evicted),
            ("messages", "Messages received", totals.messages),
            ("message_bytes", "Bytes of their payloads", totals.bytes),
            ("disconnects", "Connections lost", totals.disconnects),
            ("failed_handshakes", "Connections without a handshake", totals.failed_handshakes),
            ("violations", "Connections closed for a broken protocol", totals.violations),
            ("overruns", "Connections cut for too large a message", totals.overruns),
            ("refused_connections", "Connections cut as too many", totals.refused),
            ("reconnects", "Sockets made anew", totals.redials),
        ] {
            let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        let audits = [
            ("ok", lane.audits_ok),
            ("differed", lane.audits_differed),
            ("unfinished", lane.audits_unfinished),
        ];
        counters(&mut to, "audits", "Audits by what they came to", "outcome", audits)?;
        let ended = [("marker", replays.complete), ("cut", replays.cut)];
        counters(&mut to, "replays_ended", "Replays by how they ended", "how", ended)?;
        let malformed =
            [("frames", totals.malformed_frames), ("sequence", totals.malformed_sequence)];
        counters(&mut to, "malformed", "Messages skipped by reason", "reason", malformed)?;
        if let Some(report) = self.0.state_report() {
            snapshots(&mut to, &report)?;
        }
        if let Some(report) = self.0.shared_report() {
            store::encode(&mut to, &report)?;
        }
        let kinds = ["mismatched", "unreadable", "claimed", "excess"].into_iter();
        let topics = kinds.zip(totals.topics);
        counters(&mut to, "topics", "Messages with a wrong topic by kind", "kind", topics)
    }
}

/// What became of snapshots; sizes and times once there is one.
fn snapshots(to: &mut DescriptorEncoder<'_>, report: &Report) -> fmt::Result {
    for (name, help, value) in [
        ("snapshots", "Snapshots written", report.saved),
        ("snapshot_failures", "Snapshots that could not be written", report.failed),
    ] {
        let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)?;
    }
    let mut gauges =
        vec![("restored_entries", "Entries that this process began with", report.restored_entries)];
    gauges.extend(
        report.last.map(|last| ("snapshot_bytes", "Bytes of the last snapshot", last.bytes)),
    );
    for (name, help, value) in gauges {
        let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(gauge(value)).encode(metric)?;
    }
    let Some(last) = report.last else { return Ok(()) };
    for (name, help, time) in [
        ("snapshot_hold", "How long batches waited for the last snapshot", last.took),
        ("snapshot_write", "How long it took to bring it to the disk", last.wrote),
        ("snapshot_age", "Time since the last snapshot was taken", last.at.elapsed()),
    ] {
        let unit = Some(&Unit::Seconds);
        let metric = to.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(time.as_secs_f64()).encode(metric)?;
    }
    Ok(())
}

/// A number as gauges have it.
pub(crate) fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// One gauge for each value of a label.
pub(crate) fn gauges(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, n) in values {
        ConstGauge::new(gauge(n)).encode(family.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}

/// One counter for each value of a label.
pub(crate) fn counters(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, n) in values {
        ConstCounter::new(n).encode(family.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}
