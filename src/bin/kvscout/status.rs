//! What `/v1/status` says: one document, of which `kvscout top` and the page at `/` show the same.
//!
//! Counters never fall while the daemon runs and include workers that are gone; whoever asks makes rates of two
//! documents, over the difference of `uptime_seconds`.

use serde::{Deserialize, Serialize};

/// The state of a daemon at one moment.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Status {
    /// Of the daemon.
    pub(crate) version: String,
    /// Since the daemon began.
    pub(crate) uptime_seconds: f64,
    /// What `/ready` says.
    pub(crate) ready: bool,
    /// What is missing for that.
    pub(crate) not_ready: Option<String>,
    /// Sizes of the index.
    pub(crate) index: IndexSizes,
    /// What came from engines.
    pub(crate) events: EventCounts,
    /// What was asked.
    pub(crate) scores: ScoreCounts,
    /// By tenant, pod and rank.
    pub(crate) workers: Vec<WorkerLine>,
}

/// Sizes of the index.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct IndexSizes {
    /// Blocks that match by content.
    pub(crate) blocks: u64,
    /// Blocks known by name only.
    pub(crate) unplaced: u64,
    /// (block, worker, group, tier).
    pub(crate) entries: u64,
    /// Entries given up because the budget was full; a counter.
    pub(crate) evicted: u64,
    /// Bytes in use.
    pub(crate) bytes: u64,
    /// Bytes in use or kept for later.
    pub(crate) reserved_bytes: u64,
    /// `memory.budget`.
    pub(crate) budget_bytes: u64,
}

/// What came from engines: counters.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct EventCounts {
    /// Batches applied.
    pub(crate) batches: u64,
    /// Events in them.
    pub(crate) events: u64,
    /// Copies added.
    pub(crate) stored: u64,
    /// Copies taken away one by one.
    pub(crate) removed: u64,
    /// Batches that were never applied.
    pub(crate) missing: u64,
}

/// What was asked, in any dialect: counters.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct ScoreCounts {
    /// Questions, in whatever dialect.
    pub(crate) questions: u64,
    /// Those of which somebody held a block.
    pub(crate) hits: u64,
    /// Tokens of all of them.
    pub(crate) asked_tokens: u64,
    /// Of these, what the first worker of each answer was expected to have cached.
    pub(crate) expected_tokens: u64,
    /// How long the index took, from the shortest time to the longest.
    pub(crate) latency: Vec<Bucket>,
}

/// Questions by how long they took.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Bucket {
    /// Up to so many seconds, and more than the bucket before; null for whatever took longer than all.
    pub(crate) up_to_seconds: Option<f64>,
    /// A counter.
    pub(crate) questions: u64,
}

/// One worker.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct WorkerLine {
    /// The pod.
    pub(crate) worker: String,
    /// The data-parallel rank.
    pub(crate) rank: u32,
    /// The tenant.
    pub(crate) tenant: String,
    /// The model; null if it answers for any.
    pub(crate) model: Option<String>,
    /// `exact`, `syncing`, `degraded` or `silent`.
    pub(crate) trust: String,
    /// Why it is degraded.
    pub(crate) reason: Option<String>,
    /// What an operator should look into.
    pub(crate) warnings: Vec<String>,
    /// `up`, `down`, `shared` or `none`.
    pub(crate) link: String,
    /// The last batch that was applied.
    pub(crate) as_of: Option<u64>,
    /// How many batches the last one that came is ahead of that.
    pub(crate) behind: u64,
    /// Batches that wait for the ones before them.
    pub(crate) held_back: u64,
    /// Since the last batch came; null before the first.
    pub(crate) seconds_since_batch: Option<f64>,
    /// What it holds.
    pub(crate) blocks: TierBlocks,
    /// Batches applied; a counter, like the following ones.
    pub(crate) batches: u64,
    /// Events in them.
    pub(crate) events: u64,
    /// Copies added.
    pub(crate) stored: u64,
    /// Copies taken away one by one.
    pub(crate) removed: u64,
    /// Batches that were never applied.
    pub(crate) missing: u64,
}

/// Blocks by tier; one that a worker holds in several cache groups counts in each.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct TierBlocks {
    pub(crate) gpu: u64,
    pub(crate) cpu: u64,
    pub(crate) disk: u64,
    pub(crate) remote: u64,
    /// Of a medium that is not known; they match nothing.
    pub(crate) unknown: u64,
}

impl From<[u64; 5]> for TierBlocks {
    /// Those of `Tier::KNOWN`, then those of unknown media.
    fn from([gpu, cpu, disk, remote, unknown]: [u64; 5]) -> TierBlocks {
        TierBlocks { gpu, cpu, disk, remote, unknown }
    }
}

impl TierBlocks {
    /// Adds those of another worker.
    pub(crate) fn add_all(&mut self, other: &TierBlocks) {
        self.gpu += other.gpu;
        self.cpu += other.cpu;
        self.disk += other.disk;
        self.remote += other.remote;
        self.unknown += other.unknown;
    }

    /// With the names of their tiers, the fastest first.
    pub(crate) fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let TierBlocks { gpu, cpu, disk, remote, unknown } = *self;
        [("gpu", gpu), ("cpu", cpu), ("disk", disk), ("remote", remote), ("unknown", unknown)]
            .into_iter()
    }

    /// Of all tiers.
    pub(crate) fn sum(&self) -> u64 {
        self.gpu + self.cpu + self.disk + self.remote + self.unknown
    }
}
