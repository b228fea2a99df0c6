//! What is read off workers, sources and the index when it is asked for, and kept nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvscout::index::Stats;
use kvscout::ingest::sequencer::AuditState;
use kvscout::ingest::zmq::ReplayCounters;
use kvscout::scout::{EventCounters, Warning};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

use super::series::{Kind, numbers, numbers_by, seconds};
use super::totals::{TRUSTS, Totals};
use crate::service::external::Load;
use crate::service::{Discovery, Service};
use crate::state::Report;
use crate::store;

/// Counters that repeat what was read off workers.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) stored: Counter,
    pub(super) removed: Counter,
}

impl Applied {
    /// Never falls, whatever is read.
    fn repeat(&self, events: &EventCounters) {
        self.stored.inner().fetch_max(events.stored, Ordering::Relaxed);
        self.removed.inner().fetch_max(events.removed, Ordering::Relaxed);
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Readings {
    pub(super) service: Arc<Service>,
    pub(super) applied: Applied,
}

/// A number's name, what it means, and what it is.
type Number = (&'static str, &'static str, u64);

impl Collector for Readings {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let (to, service) = (&mut to, &self.service);
        let (totals, pods) = service.metrics().pods.look(|| service.totals());
        let reported = service.external().load();
        self.applied.repeat(&totals.events);
        workers_by_state(to, &totals)?;
        numbers(to, Kind::Gauge, &now_of_sources(service, &totals, &reported))?;
        numbers(to, Kind::Gauge, &now_of_index(service.index_budget() as u64, &totals.index))?;
        numbers(to, Kind::Counter, &sums_of_streams(&totals))?;
        numbers(to, Kind::Counter, &sums_of_replays(&totals.replays))?;
        numbers(to, Kind::Counter, &sums_of_events(&totals.events))?;
        numbers(
            to,
            Kind::Counter,
            &[
                (
                    "evicted_entries",
                    "Entries given up because the memory was full",
                    totals.index.evicted,
                ),
                ("reported_evicted", "Reported blocks that made way for others", reported.evicted),
            ],
        )?;
        numbers(to, Kind::Counter, &sums_of_sources(&totals))?;
        outcomes(to, &totals)?;
        discoveries(to, &service.discoveries())?;
        if let Some(report) = service.state_report() {
            snapshots(to, &report)?;
        }
        if let Some(report) = service.shared_report() {
            store::encode(to, &report)?;
        }
        pods.encode(to)?;
        build_info(to)
    }
}

fn workers_by_state(to: &mut DescriptorEncoder<'_>, totals: &Totals) -> fmt::Result {
    let by_trust = TRUSTS.into_iter().zip(totals.workers);
    numbers_by(to, Kind::Gauge, ("workers", "Workers by trust"), "trust", by_trust)?;
    let by_warning = Warning::ALL.map(Warning::as_str).into_iter().zip(totals.warned);
    let warned = ("warned_workers", "Workers by warning");
    numbers_by(to, Kind::Gauge, warned, "warning", by_warning)?;
    let by_audit = AuditState::ALL.map(AuditState::as_str).into_iter().zip(totals.audited);
    let audited = ("audited_workers", "Workers by what audits say");
    numbers_by(to, Kind::Gauge, audited, "audit", by_audit)
}

/// What waits, and who is there.
fn now_of_sources(service: &Service, totals: &Totals, reported: &Load) -> [Number; 9] {
    let (running, waiting) = totals.replay_load;
    [
        ("predicted_blocks", "Blocks that picks predict", service.predicted_blocks() as u64),
        ("reported_blocks", "Blocks that bridges of SGLang report", reported.placements as u64),
        ("workers_off", "Workers whose receipts fall short", service.workers_off() as u64),
        ("sources", "Sources that are listened to", totals.sources),
        ("sources_up", "Sources whose publisher is connected", totals.sources_up),
        ("replays_running", "Replays under way", running as u64),
        ("replays_waiting", "Replays that wait for their turn", waiting as u64),
        ("held_back_batches", "Batches that wait for earlier ones", totals.held_back),
        ("held_back_bytes", "Bytes of their payloads", totals.held_back_bytes),
    ]
}

fn now_of_index(budget: u64, index: &Stats) -> [Number; 6] {
    [
        ("blocks", "Blocks that match by content", index.blocks),
        ("unplaced", "Blocks known by name only", index.unplaced),
        ("entries", "Entries (block, worker, group, tier)", index.entries),
        ("index_bytes", "Bytes of the index in use", index.bytes),
        ("index_budget_bytes", "Bytes that it may use", budget),
        ("index_reserved_bytes", "Bytes of the index, in use or kept for later", index.reserved),
    ]
}

fn sums_of_streams(totals: &Totals) -> [Number; 16] {
    let lane = &totals.counters;
    [
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
    ]
}

fn sums_of_replays(replays: &ReplayCounters) -> [Number; 4] {
    [
        ("replay_overruns", "Replays cut for a message or backlog too large", replays.overruns),
        ("replay_messages", "Batches received in replays", replays.batches),
        ("replay_bytes", "Bytes of their payloads", replays.bytes),
        ("replay_malformed", "Messages of replays that are no answer", replays.malformed),
    ]
}

fn sums_of_events(events: &EventCounters) -> [Number; 12] {
    [
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
    ]
}

fn sums_of_sources(totals: &Totals) -> [Number; 8] {
    [
        ("messages", "Messages received", totals.messages),
        ("message_bytes", "Bytes of their payloads", totals.bytes),
        ("disconnects", "Connections lost", totals.disconnects),
        ("failed_handshakes", "Connections without a handshake", totals.failed_handshakes),
        ("violations", "Connections closed for a broken protocol", totals.violations),
        ("overruns", "Connections cut for too large a message", totals.overruns),
        ("refused_connections", "Connections cut as too many", totals.refused),
        ("reconnects", "Sockets made anew", totals.redials),
    ]
}

/// What happened, by how it went.
fn outcomes(to: &mut DescriptorEncoder<'_>, totals: &Totals) -> fmt::Result {
    let (lane, replays) = (&totals.counters, &totals.replays);
    let audits = [
        ("ok", lane.audits_ok),
        ("differed", lane.audits_differed),
        ("unfinished", lane.audits_unfinished),
    ];
    let named = ("audits", "Audits by what they came to");
    numbers_by(to, Kind::Counter, named, "outcome", audits)?;
    let ended = [("marker", replays.complete), ("cut", replays.cut)];
    let named = ("replays_ended", "Replays by how they ended");
    numbers_by(to, Kind::Counter, named, "how", ended)?;
    let malformed = [("frames", totals.malformed_frames), ("sequence", totals.malformed_sequence)];
    let named = ("malformed", "Messages skipped by reason");
    numbers_by(to, Kind::Counter, named, "reason", malformed)?;
    let kinds = ["mismatched", "unreadable", "claimed", "excess"].into_iter();
    let named = ("topics", "Messages with a wrong topic by kind");
    numbers_by(to, Kind::Counter, named, "kind", kinds.zip(totals.topics))
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
            Kind::Counter.write(looks.encode_family(&labels)?, n)?;
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
            Kind::Gauge.write(addresses.encode_family(&labels)?, n as u64)?;
        }
    }
    Ok(())
}

/// What became of snapshots; sizes and times once there is one.
fn snapshots(to: &mut DescriptorEncoder<'_>, report: &Report) -> fmt::Result {
    let written = [
        ("snapshots", "Snapshots written", report.saved),
        ("snapshot_failures", "Snapshots that could not be written", report.failed),
    ];
    numbers(to, Kind::Counter, &written)?;
    let began = "Entries that this process began with";
    numbers(to, Kind::Gauge, &[("restored_entries", began, report.restored_entries)])?;
    let Some(last) = report.last else { return Ok(()) };
    let bytes = ("snapshot_bytes", "Bytes of the last snapshot", last.bytes);
    numbers(to, Kind::Gauge, &[bytes])?;
    for (name, help, time) in [
        ("snapshot_hold", "How long batches waited for the last snapshot", last.took),
        ("snapshot_write", "How long it took to bring it to the disk", last.wrote),
        ("snapshot_age", "Time since the last snapshot was taken", last.at.elapsed()),
    ] {
        seconds(to, name, help, time)?;
    }
    Ok(())
}

/// Which version this is.
fn build_info(to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let version = ("version", env!("CARGO_PKG_VERSION"));
    let mut family = to.encode_descriptor("build_info", "The version", None, MetricType::Gauge)?;
    Kind::Gauge.write(family.encode_family(&[version])?, 1)
}
