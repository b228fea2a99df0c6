//! Sums over workers and sources: of those that are there, and of those that are gone.

use std::sync::atomic::Ordering;

use kvscout::index::Stats;
use kvscout::ingest::Trust;
use kvscout::ingest::sequencer::{AuditState, SequencerCounters};
use kvscout::ingest::zmq::{ReplayCounters, SourceStatus};
use kvscout::scout::{EventCounters, Warning, WorkerStatus};

use crate::intake::TopicCounters;

/// Sums over workers and sources, present and gone; and what is there now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(super) workers: [u64; 4],
    pub(super) warned: [u64; Warning::ALL.len()],
    /// What happened on streams.
    pub(crate) counters: SequencerCounters,
    pub(super) audited: [u64; AuditState::ALL.len()],
    pub(super) audit_missing: u64,
    pub(super) audit_surplus: u64,
    pub(super) held_back: u64,
    pub(super) held_back_bytes: u64,
    /// What became of events.
    pub(crate) events: EventCounters,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) disconnects: u64,
    pub(super) failed_handshakes: u64,
    pub(super) violations: u64,
    pub(super) overruns: u64,
    pub(super) refused: u64,
    pub(super) redials: u64,
    pub(super) malformed_frames: u64,
    pub(super) malformed_sequence: u64,
    pub(super) topics: [u64; 4],
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
pub(super) const TRUSTS: [&str; 4] = ["exact", "syncing", "degraded", "silent"];

/// Where in `TRUSTS` a worker's trust is.
pub(super) fn trust_at(trust: Trust) -> usize {
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
