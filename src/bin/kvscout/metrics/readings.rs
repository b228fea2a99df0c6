//! What is read off workers, sources and the index when it is asked for, and kept nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvscout::ingest::sequencer::AuditState;
use kvscout::scout::Warning;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::series::{counters, gauge, gauges};
use super::totals::TRUSTS;
use crate::service::{Discovery, Service};
use crate::state::Report;
use crate::store;

/// Counters that repeat what was read off workers.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) stored: Counter,
    pub(super) removed: Counter,
}

/// What is read off workers and sources when it is asked for.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) service: Arc<Service>,
    pub(super) applied: Applied,
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
