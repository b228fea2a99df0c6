//! `/metrics`: what the daemon counts, for Prometheus. `docs/metrics.md` has every name.
//!
//! The number of series is bounded: labels are routes, states and the like, of which there are only so
//! many; [`pods`] has those with a pod in them.

mod pods;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

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

use self::pods::Pods;
use self::process::Process;
use crate::intake::TopicCounters;
use crate::service::{BOUNDS, Discovery, Service};
use crate::state::Report;
use crate::store;

/// One HTTP route and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

/// One gRPC method and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    method: &'static str,
    code: &'static str,
}

/// One HTTP route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Taken {
    route: String,
}

/// Who turns a text into tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokenized {
    by: &'static str,
}

/// A histogram from 100 us to 6 s.
type Waits<L> = Family<L, Histogram, fn() -> Histogram>;

fn waits<L: Clone + Eq + std::hash::Hash>() -> Waits<L> {
    Family::new_with_constructor(|| Histogram::new(exponential_buckets(100e-6, 2.5, 13)))
}

/// What requests count themselves.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Answers by route and status.
    requests: Family<Answered, Counter>,
    /// From a request's head to its answer's.
    request_seconds: Waits<Taken>,
    /// Calls by method and status.
    calls: Family<Called, Counter>,
    /// Time within the index for one question, tokens already read.
    pub(crate) score_seconds: Histogram,
    /// Time for a text or chat, by who turns it into tokens.
    tokenize_seconds: Waits<Tokenized>,
    /// What lookups came to.
    lookups: Lookups,
    /// Receipts by whether they were as expected.
    receipts: Family<Received, Counter>,
    /// Sums of what receipts say.
    expected_tokens: Counter,
    delivered_tokens: Counter,
    /// How far off expectations were, either way.
    error_tokens: Histogram,
    /// Which pods have series of their own.
    pods: Pods,
}

/// What lookups came to, as far as the first worker of each answer, or the one that holds most, says.
#[derive(Clone, Debug)]
pub(crate) struct Lookups {
    pub(crate) all: Counter,
    /// Those where somebody holds a block.
    pub(crate) hits: Counter,
    /// Prompt tokens asked about, and those that the first worker is expected to have cached.
    pub(crate) tokens: Counter,
    pub(crate) expected_tokens: Counter,
    /// Leading blocks of whoever holds most: their sum and how many are how long.
    matched: Counter,
    matched_blocks: Histogram,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups {
            all: Counter::default(),
            hits: Counter::default(),
            tokens: Counter::default(),
            expected_tokens: Counter::default(),
            matched: Counter::default(),
            // None, one, and so on to 16,384 blocks, some 262,144 tokens.
            matched_blocks: Histogram::new(
                [0.0].into_iter().chain(exponential_buckets(1.0, 4.0, 8)),
            ),
        }
    }
}

/// How a receipt compares with what was expected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Received {
    verdict: &'static str,
}

impl Metrics {
    /// Nothing counted yet; at most so many pods will have series of their own.
    pub(crate) fn new(most_pods: usize) -> Metrics {
        Metrics {
            requests: Family::default(),
            request_seconds: waits(),
            calls: Family::default(),
            // 10 us, where the answers for short prompts are, to 0.33 s.
            score_seconds: Histogram::new(exponential_buckets(10e-6, 2.0, 16)),
            tokenize_seconds: waits(),
            lookups: Lookups::default(),
            receipts: Family::default(),
            expected_tokens: Counter::default(),
            delivered_tokens: Counter::default(),
            error_tokens: Histogram::new(BOUNDS.map(f64::from)),
            pods: Pods::new(most_pods),
        }
    }

    /// Counts an answer by its route's pattern, or `other`, and its status.
    pub(crate) fn count_answer(&self, route: String, status: u16, took: Duration) {
        let taken = Taken { route: route.clone() };
        self.request_seconds.get_or_create(&taken).observe(took.as_secs_f64());
        self.requests.get_or_create(&Answered { route, status }).inc();
    }

    /// Counts a lookup for a prompt of so many tokens: the most leading blocks that anybody holds, and
    /// the tokens that the first worker is expected to have cached.
    pub(crate) fn count_lookup(&self, tokens: u64, most_blocks: u32, expected_tokens: u32) {
        let Lookups { all, hits, tokens: sum, expected_tokens: expected, matched, matched_blocks } =
            &self.lookups;
        all.inc();
        hits.inc_by(u64::from(most_blocks > 0));
        sum.inc_by(tokens);
        expected.inc_by(u64::from(expected_tokens));
        matched.inc_by(u64::from(most_blocks));
        matched_blocks.observe(f64::from(most_blocks));
    }

    /// What lookups came to so far.
    pub(crate) fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    /// Counts a text that was turned into tokens, or refused, `by` files or an engine.
    pub(crate) fn count_text(&self, by: &'static str, took: Duration) {
        self.tokenize_seconds.get_or_create(&Tokenized { by }).observe(took.as_secs_f64());
    }

    /// Counts a call by its method, as gRPC writes it without the first slash, and its status.
    pub(crate) fn count_call(&self, method: &'static str, code: &'static str) {
        self.calls.get_or_create(&Called { method, code }).inc();
    }

    /// Counts a receipt.
    pub(crate) fn count_receipt(&self, verdict: &'static str, expected: u32, delivered: u32) {
        self.receipts.get_or_create(&Received { verdict }).inc();
        self.expected_tokens.inc_by(u64::from(expected));
        self.delivered_tokens.inc_by(u64::from(delivered));
        self.error_tokens.observe(f64::from(expected.abs_diff(delivered)));
    }
}

/// Sums over workers and sources, present and gone; and what is there now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    workers: [u64; 4],
    warned: [u64; Warning::ALL.len()],
    /// What happened on streams.
    pub(crate) counters: SequencerCounters,
    audited: [u64; AuditState::ALL.len()],
    audit_missing: u64,
    audit_surplus: u64,
    held_back: u64,
    held_back_bytes: u64,
    /// What became of events.
    pub(crate) events: EventCounters,
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
    /// Sources, and those with a publisher connected.
    pub(crate) sources: u64,
    pub(crate) sources_up: u64,
    /// Sizes of the index.
    pub(crate) index: Stats,
}

/// The trust states in the order of `Totals::workers`.
const TRUSTS: [&str; 4] = ["exact", "syncing", "degraded", "silent"];

/// Where in `TRUSTS` a worker's trust is.
fn trust_at(trust: Trust) -> usize {
    match trust {
        Trust::Exact => 0,
        Trust::Syncing => 1,
        Trust::Silent => 3,
        // Whatever comes to be known beside these is not sound either.
        _ => 2,
    }
}

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
        sum.audits_anchored += part.audits_anchored;
        self.audit_missing += status.audit.missing;
        self.audit_surplus += status.audit.surplus;
        let (sum, part) = (&mut self.events, status.events);
        sum.stored_events += part.stored_events;
        sum.removed_events += part.removed_events;
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
        self.workers[trust_at(status.trust)] += 1;
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
    /// In the order in which they are written: the first sets counters of the last.
    registries: [Registry; 3],
}

impl Exposition {
    /// Everything that `service` counts.
    pub(crate) fn new(service: Arc<Service>) -> Exposition {
        let mut own = Registry::with_prefix("kvscout");
        let mut peer = Registry::with_prefix("kvcache_index");
        let mut process = Registry::with_prefix("process");
        service.metrics().register(&mut own);
        let applied = service.metrics().register_as_peer(&mut peer);
        own.register_collector(Box::new(Snapshot { service, applied }));
        process.register_collector(Box::new(Process::new()));
        Exposition { registries: [own, process, peer] }
    }

    /// The current values, in the OpenMetrics text format.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        for registry in &self.registries {
            text::encode_registry(&mut text, registry)?;
        }
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

impl Metrics {
    fn register(&self, to: &mut Registry) {
        let Lookups { all, hits, tokens, expected_tokens, matched, matched_blocks } = &self.lookups;
        to.register("http_requests", "Answers by route and status", self.requests.clone());
        to.register("grpc_requests", "Answers by method and status", self.calls.clone());
        to.register("receipts", "Receipts by verdict", self.receipts.clone());
        for (name, help, counter) in [
            ("lookups", "Lookups", all),
            ("lookup_hits", "Lookups where somebody holds a block", hits),
            ("lookup_tokens", "Tokens of the prompts looked up", tokens),
            (
                "lookup_expected_tokens",
                "Tokens of them that the best worker is expected to have cached",
                expected_tokens,
            ),
            ("lookup_matched_blocks", "Leading blocks that the best worker holds", matched),
            (
                "receipt_expected_tokens",
                "Tokens that receipts say were expected",
                &self.expected_tokens,
            ),
            (
                "receipt_delivered_tokens",
                "Tokens that receipts say were cached",
                &self.delivered_tokens,
            ),
        ] {
            to.register(name, help, counter.clone());
        }
        to.register(
            "matched_blocks",
            "Leading blocks that the best worker holds, by lookup",
            matched_blocks.clone(),
        );
        to.register(
            "prediction_error_tokens",
            "Tokens by which receipts differed from what was expected",
            self.error_tokens.clone(),
        );
        let (seconds, score) = (Unit::Seconds, self.score_seconds.clone());
        to.register_with_unit("score", "Time within the index for one question", seconds, score);
        let (seconds, requests) = (Unit::Seconds, self.request_seconds.clone());
        to.register_with_unit("http_request", "Time for an answer by route", seconds, requests);
        let (seconds, texts) = (Unit::Seconds, self.tokenize_seconds.clone());
        to.register_with_unit("tokenize", "Time to turn a text into tokens", seconds, texts);
    }

    /// The same under the names of llm-d's index, for dashboards that have them.
    fn register_as_peer(&self, to: &mut Registry) -> Applied {
        let Lookups { all, matched, .. } = &self.lookups;
        let applied = Applied::default();
        for (name, help, counter) in [
            ("admissions", "As kvscout_stored_total", &applied.stored),
            ("evictions", "As kvscout_removed_total", &applied.removed),
            ("lookup_requests", "As kvscout_lookups_total", all),
            ("lookup_hits", "As kvscout_lookup_matched_blocks_total", matched),
            ("max_pod_hit_count", "As kvscout_lookup_matched_blocks_total", matched),
        ] {
            to.register(name, help, counter.clone());
        }
        let (help, score) = ("As kvscout_score_seconds", self.score_seconds.clone());
        to.register_with_unit("lookup_latency", help, Unit::Seconds, score);
        applied
    }
}

/// Counters that repeat what was read off workers.
#[derive(Debug, Default)]
struct Applied {
    stored: Counter,
    removed: Counter,
}

/// What is read off workers and sources when it is asked for.
#[derive(Debug)]
struct Snapshot {
    service: Arc<Service>,
    applied: Applied,
}

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let service = &self.service;
        let (totals, workers) = service.totals();
        let (lane, events, index) = (totals.counters, totals.events, totals.index);
        self.applied.stored.inner().fetch_max(events.stored, Ordering::Relaxed);
        self.applied.removed.inner().fetch_max(events.removed, Ordering::Relaxed);
        let external = service.external().load();
        let (replays, (running, waiting)) = (totals.replays, totals.replay_load);
        let by_trust = TRUSTS.into_iter().zip(totals.workers);
        gauges(&mut to, "workers", "Workers by trust", "trust", by_trust)?;
        let by_warning = Warning::ALL.map(Warning::as_str).into_iter().zip(totals.warned);
        gauges(&mut to, "warned_workers", "Workers by warning", "warning", by_warning)?;
        let by_audit = AuditState::ALL.map(AuditState::as_str).into_iter().zip(totals.audited);
        gauges(&mut to, "audited_workers", "Workers by what audits say", "audit", by_audit)?;
        for (name, help, value) in [
            ("predicted_blocks", "Blocks that picks predict", service.predicted_blocks() as u64),
            ("reported_blocks", "Blocks that bridges of SGLang report", external.placements as u64),
            ("workers_off", "Workers whose receipts fall short", service.workers_off() as u64),
            ("sources", "Sources that are listened to", totals.sources),
            ("sources_up", "Sources whose publisher is connected", totals.sources_up),
            ("replays_running", "Replays under way", running as u64),
            ("replays_waiting", "Replays that wait for their turn", waiting as u64),
            ("held_back_batches", "Batches that wait for earlier ones", totals.held_back),
            ("held_back_bytes", "Bytes of their payloads", totals.held_back_bytes),
            ("blocks", "Blocks that match by content", index.blocks),
            ("unplaced", "Blocks known by name only", index.unplaced),
            ("entries", "Entries (block, worker, group, tier)", index.entries),
            ("index_bytes", "Bytes of the index in use", index.bytes),
            ("index_budget_bytes", "Bytes that it may use", service.index_budget() as u64),
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
            (
                "audits_anchored",
                "Audits that began with what was held as of a batch",
                lane.audits_anchored,
            ),
            ("audit_missing_copies", "Copies that audits found missing", totals.audit_missing),
            ("audit_surplus_copies", "Copies that audits found too many", totals.audit_surplus),
            ("held_back_overflows", "Times that too much waited for a replay", lane.overflows),
            ("replay_overruns", "Replays cut for a message or backlog too large", replays.overruns),
            ("replay_messages", "Batches received in replays", replays.batches),
            ("replay_bytes", "Bytes of their payloads", replays.bytes),
            ("replay_malformed", "Messages of replays that are no answer", replays.malformed),
            ("stored_events", "Stored events applied", events.stored_events),
            ("removed_events", "Removed events applied", events.removed_events),
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
        discoveries(&mut to, &service.discoveries())?;
        if let Some(report) = service.state_report() {
            snapshots(&mut to, &report)?;
        }
        if let Some(report) = service.shared_report() {
            store::encode(&mut to, &report)?;
        }
        service.metrics().pods.encode(&mut to, &workers)?;
        build_info(&mut to)?;
        let kinds = ["mismatched", "unreadable", "claimed", "excess"].into_iter();
        let topics = kinds.zip(totals.topics);
        counters(&mut to, "topics", "Messages with a wrong topic by kind", "kind", topics)
    }
}

/// How looking at each name of the configuration goes; none without names.
fn discoveries(to: &mut DescriptorEncoder<'_>, all: &BTreeMap<String, Discovery>) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    let mut looks = to.encode_descriptor(
        "discover_looks",
        "Looks at a name, by whether there was an answer",
        None,
        MetricType::Counter,
    )?;
    for (name, discovery) in all {
        for (outcome, n) in [("answered", discovery.answered), ("failed", discovery.failed)] {
            let labels = [("discover", name.as_str()), ("outcome", outcome)];
            ConstCounter::new(n).encode(looks.encode_family(&labels)?)?;
        }
    }
    let mut addresses = to.encode_descriptor(
        "discover_addresses",
        "Addresses behind a name, by what becomes of them",
        None,
        MetricType::Gauge,
    )?;
    for (name, discovery) in all {
        let last = discovery.last.unwrap_or_default();
        for (state, n) in [
            ("present", last.addresses),
            ("missing", last.missing),
            ("surplus", last.surplus),
            ("refused", last.refused),
        ] {
            let labels = [("discover", name.as_str()), ("state", state)];
            ConstGauge::new(gauge(n as u64)).encode(addresses.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Which version this is.
fn build_info(to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let version = ("version", env!("CARGO_PKG_VERSION"));
    let mut family = to.encode_descriptor("build_info", "The version", None, MetricType::Gauge)?;
    ConstGauge::new(1_i64).encode(family.encode_family(&[version])?)
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
