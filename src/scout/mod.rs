//! The facade: numbered payloads of registered workers in, ranked workers out.
//!
//! [`Scout`] alone joins decoding, hashing, the index and scoring. It has no socket and no clock:
//! whoever embeds it calls [`Scout::apply`] with what came from the wire, one worker's batches in
//! order and from one thread at a time, and [`Scout::score`] from any thread. Where an engine's past
//! batches can be had, [`Scout::follow`] and what it leads to repair what was missed.

mod clear;
mod directory;
mod edition;
mod explain;
mod follow;
mod habit;
mod local;
mod mirror;
mod prompt;
mod query;
mod ranking;
mod roster;
#[cfg(feature = "redis")]
pub mod shared;
mod standing;
mod state;
mod stream;
mod vocabulary;
mod warning;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

pub use self::explain::{Divergence, Explained, ExplainedGroup, KnownBy, Missing, Stretch};
pub use self::follow::{Ask, Progress};
pub use self::habit::{Copies, OnClear};
pub use self::mirror::{Changes, Mirror, Moved};
pub use self::query::Scratch;
pub use self::ranking::{Ranked, Ranking, Rows};
pub use self::stream::audit::{AuditStatus, Audited};
pub use self::warning::Warning;

use self::directory::{Directory, Worker};
use self::edition::Editions;
use self::local::LocalHashes;
use self::roster::Generation;
use self::stream::room::Room;
use self::stream::{Shared, Stream};
use crate::block::{BlockSize, Digest, Name, Prompt, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::event::{DecodeError, Limits};
use crate::hash::content::DigestKey;
use crate::hash::vllm::{ChainMemory, Version};
use crate::index::{Applied, Holding, MemoryIndex, MemoryOptions, Stats};
use crate::ingest::sequencer::{SequencerCounters, Stage};
use crate::ingest::snapshot::AdapterState;
#[cfg(feature = "redis")]
use crate::ingest::snapshot::EditionState;
use crate::ingest::verify::{Candidates, Checks, Contract, Status};
use crate::ingest::{Trust, Verdict};
use crate::score::{GroupFacts, Weights};

/// Settings of a [`Scout`].
///
/// # Defaults
///
/// No extra seeds; the defaults of [`Weights`], [`Limits`] and [`MemoryOptions`]; a random key; 32 MiB
/// of chains, about three million blocks; none of Dynamo's hashes; 256 MiB for what audits begin from, some
/// 15 million (block, worker) pairs; no mirror.
#[derive(Clone, Debug)]
pub struct Options {
    /// Texts of `PYTHONHASHSEED` to try beside unset, `0` and `42`.
    pub seeds: Vec<String>,
    /// What a block is worth in each tier.
    pub weights: Weights,
    /// What a payload may cost.
    pub limits: Limits,
    /// What the index may cost.
    pub memory: MemoryOptions,
    /// The secret of content digests; random if absent.
    pub digest_key: Option<DigestKey>,
    /// Bytes for names of prompts that were asked about before, so that a next turn is not hashed
    /// again; used only where blocks are known by name alone.
    pub chain_memory: usize,
    /// How many of Dynamo's hashes of single blocks are kept for [`Blocks::Local`]; some 50 bytes each.
    /// With 0 none are, and storing costs nothing for them.
    pub local_hashes: usize,
    /// Bytes for what audits begin from where an engine's buffer does not reach batch 0 any more: what each
    /// audited worker held as of some batch, some 17 bytes a block. Where they are used up, or 0, such audits
    /// are unavailable.
    pub anchor_memory: usize,
    /// Who is told what each batch changed, to keep the same elsewhere.
    pub mirror: Option<Arc<dyn Mirror>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seeds: Vec::new(),
            weights: Weights::default(),
            limits: Limits::default(),
            memory: MemoryOptions::default(),
            digest_key: None,
            chain_memory: 32 << 20,
            local_hashes: 0,
            anchor_memory: 256 << 20,
            mirror: None,
        }
    }
}

/// What is known of a worker from outside its stream. Identity comes from here alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The pod: one serving process.
    pub pod: String,
    /// The data-parallel rank within the pod.
    pub rank: u32,
    /// The tenant; tenants never see each other's blocks.
    pub tenant: String,
    /// The model it serves; `None` answers for any model.
    pub model: Option<String>,
    /// The engine's vLLM version, if known: settles how extra keys are hashed.
    pub vllm: Option<Version>,
    /// The block size the operator expects. Recorded for comparison; the one in the engine's events
    /// counts.
    pub block_size: Option<BlockSize>,
    /// What a clear that names no tier takes away.
    pub on_clear: OnClear,
    /// What a second store of a block that is there means.
    pub copies: Copies,
    /// How its blocks' names are made, as whoever registers it says: for publishers that announce names
    /// alone, from which nothing can be detected. Once a worker's own events show something else, that counts.
    pub contract: Option<Contract>,
}

impl Registration {
    /// The tenant of registrations and requests that name none.
    pub const DEFAULT_TENANT: &'static str = "default";

    /// Rank 0 of a pod that serves a model, for the default tenant.
    pub fn new(pod: impl Into<String>, model: impl Into<String>) -> Registration {
        Registration {
            pod: pod.into(),
            rank: 0,
            tenant: Registration::DEFAULT_TENANT.to_owned(),
            model: Some(model.into()),
            vllm: None,
            block_size: None,
            on_clear: OnClear::default(),
            copies: Copies::default(),
            contract: None,
        }
    }
}

/// A LoRA adapter that requests may name instead of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// The model it belongs to.
    pub model: String,
    /// The engine's integer id (enters hashes up to vLLM 0.11.0).
    pub id: Option<i64>,
    /// The path as the engine sees it (enters hashes since vLLM 0.31).
    pub path: Option<String>,
}

/// What a router asks.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// The model, or the name of a registered adapter; `None` asks every worker of the tenant.
    pub model: Option<&'a str>,
    /// The prompt.
    pub blocks: Blocks<'a>,
    /// Only these workers, in any order; `None` means every worker of the model.
    pub candidates: Option<&'a [WorkerId]>,
}

/// The prompt of a [`Request`].
#[derive(Clone, Copy, Debug)]
pub enum Blocks<'a> {
    /// By its tokens and extra keys.
    Prompt(Prompt<'a>),
    /// By the names that engines of the asked workers' vocabulary give its blocks.
    Names {
        /// The names, in prompt order.
        names: &'a [Name],
        /// Tokens in a block.
        block_size: BlockSize,
    },
    /// By Dynamo's hashes of its single blocks: XXH3-64, seed 1337, of each block's tokens as
    /// little-endian words of 32 bits.
    ///
    /// They find what was stored since this scout was made, as text alone or of an adapter (without salt or
    /// items) and with its tokens, as far as [`Options::local_hashes`] reach; never more than is held.
    Local {
        /// The hashes, in prompt order.
        hashes: &'a [u64],
        /// Tokens in a block.
        block_size: BlockSize,
    },
}

impl<'a> Request<'a> {
    /// Asks every worker of a model about a prompt, for the default tenant.
    pub fn new(model: &'a str, prompt: Prompt<'a>) -> Request<'a> {
        Request {
            tenant: Registration::DEFAULT_TENANT,
            model: Some(model),
            blocks: Blocks::Prompt(prompt),
            candidates: None,
        }
    }
}

/// What [`Scout::apply`] did with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// What the batch's number said about it.
    pub verdict: Verdict,
    /// What changed in the index; batches that had waited are included.
    pub applied: Applied,
    /// Events left out as a whole because they could not be decoded or made no sense.
    pub rejected: u32,
    /// The first decoding error, with its offset in this payload.
    pub error: Option<DecodeError>,
    /// What to ask the worker's replay source, if it is [followed](Scout::follow).
    pub ask: Option<Ask>,
}

/// A worker as an operator sees it.
#[derive(Clone, Debug)]
pub struct WorkerStatus {
    /// The worker.
    pub worker: WorkerId,
    /// What it was registered with.
    pub registration: Registration,
    /// How far it can be believed.
    pub trust: Trust,
    /// The last batch that was applied.
    pub as_of: Option<u64>,
    /// What happened on its stream.
    pub counters: SequencerCounters,
    /// What is under way with its replay source; `None` where it is not [followed](Scout::follow).
    pub stage: Option<Stage>,
    /// Batches that wait for the ones before them.
    pub held_back: usize,
    /// Their bytes.
    pub held_back_bytes: usize,
    /// What comparing it with its engine's past batches has come to.
    pub audit: AuditStatus,
    /// What became of its events.
    pub events: EventCounters,
    /// What losses that leave no gap would look like.
    pub unexplained: Unexplained,
    /// Blocks that it holds by tier, one of several groups counted in each: those of
    /// [`Tier::KNOWN`](crate::block::Tier::KNOWN), then those of unknown media.
    pub held: [u64; 5],
    /// Its cache groups, as announced.
    pub groups: Vec<GroupFacts>,
    /// Its hash contract, as detected.
    pub contract: Status,
    /// How often its names were compared with those that the contract gives, in this incarnation.
    pub checks: Checks,
    /// Adapters that it stored blocks of and whose path is not registered; the first 64.
    pub unknown_adapters: Vec<String>,
}

/// What became of a worker's events since it was registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventCounters {
    /// Stored events applied, in whole or in part.
    pub stored_events: u64,
    /// Removed events applied.
    pub removed_events: u64,
    /// Copies added.
    pub stored: u64,
    /// Copies taken away one by one.
    pub removed: u64,
    /// Removals of blocks that were not held.
    pub unknown_removals: u64,
    /// Stored events whose blocks follow one that was not held.
    pub unknown_parents: u64,
    /// `AllBlocksCleared`.
    pub cleared: u64,
    /// Events left out as a whole.
    pub rejected: u64,
    /// Stored events whose tokens do not cover their blocks one by one; known by name only.
    pub sparse: u64,
    /// Stored events in other units than the group's blocks (chunks of an offload tier, partial
    /// blocks); not counted as resident.
    pub other_unit: u64,
    /// Copies refused, or given up again, because something of the worker was too much: blocks known by
    /// name only, cache groups, blocks of one name, holes, or memory.
    pub refused: u64,
    /// Events of a pool about blocks of another tenant or model, passed over.
    pub foreign: u64,
}

/// Events of a worker about blocks that it was not known to hold, although nothing is known to be missing.
/// Since its publisher began, or since its engine last cleared it.
///
/// An engine removes what it stored, and stores below what it holds. So these are what is seen of batches that
/// it dropped before they had a number, which no gap shows and no replay brings back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unexplained {
    /// Unknown removals and unknown parents.
    pub unknown: u64,
    /// Copies that were added or taken away, to compare that with.
    pub changes: u64,
}

/// The KV-cache block index of a set of workers, with everything that feeds and reads it.
#[derive(Debug)]
pub struct Scout {
    shared: Shared,
    weights: Weights,
    directory: RwLock<Directory>,
    /// Held while a worker comes or goes, as a whole, and while a snapshot is taken. Before all other
    /// locks.
    membership: Mutex<()>,
    /// Workers whose batches wait for their contract; a query may settle it.
    waiting: AtomicUsize,
}

/// Live batches that are held back, of all workers together, take about this part of the memory that blocks may take.
const KEPT_BACK_PART: usize = 8;

impl Scout {
    /// A scout without workers.
    ///
    /// # Errors
    ///
    /// The operating system gave no randomness for the digest key.
    pub fn new(options: Options) -> Result<Scout, Error> {
        let key = match options.digest_key.clone() {
            Some(key) => key,
            None => DigestKey::random()?,
        };
        let index = MemoryIndex::new(options.memory);
        Ok(Scout::made_of(options, key, index))
    }

    fn made_of(options: Options, key: DigestKey, index: MemoryIndex) -> Scout {
        Scout {
            shared: Shared {
                key: key.clone(),
                limits: options.limits,
                candidates: Candidates::new(&options.seeds),
                chains: ChainMemory::new(key, options.chain_memory),
                index,
                vocabularies: RwLock::default(),
                generation: Generation::default(),
                editions: Editions::default(),
                local: LocalHashes::new(options.local_hashes),
                shadows: Arc::default(),
                anchors: Room::new(options.anchor_memory),
                kept_back: Room::new(options.memory.budget / KEPT_BACK_PART),
                mirror: options.mirror,
            },
            weights: options.weights,
            directory: RwLock::default(),
            membership: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Adds a worker; the same registration again gives the same worker.
    ///
    /// # Errors
    ///
    /// The (tenant, pod, rank) is registered with other facts.
    pub fn register(&self, registration: Registration) -> Result<WorkerId, Error> {
        let _comes = self.membership.lock();
        let mut directory = self.directory.write();
        if let Some(worker) =
            directory.find(&registration.tenant, &registration.pod, registration.rank)
        {
            if worker.registration == registration {
                return Ok(worker.id);
            }
            return Err(Error::invalid(format!(
                "pod '{}' rank {} is registered with other facts: unregister it first",
                registration.pod, registration.rank
            )));
        }
        let worker = directory.add(registration);
        self.shared.generation.turn();
        worker.stream.lock().begin(&self.shared)?;
        Ok(worker.id)
    }

    /// Forgets a worker and all its blocks.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn unregister(&self, worker: WorkerId) -> Result<(), Error> {
        let _goes = self.membership.lock();
        let removed = {
            let mut directory = self.directory.write();
            let removed = directory.remove(worker);
            self.shared.generation.turn();
            removed
        };
        let (removed, emptied) = removed.ok_or_else(|| unknown_worker(worker))?;
        // Under the stream's lock, so that a batch being applied ends before its blocks go.
        let mut stream = removed.stream.lock();
        if stream.is_waiting() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        stream.retire(&self.shared);
        self.shared.index.remove(worker);
        removed.publish(&mut stream, &self.shared);
        if let Some(space) = emptied {
            self.shared.vocabularies.write().forget(space);
        }
        Ok(())
    }

    /// The worker registered under this identity.
    pub fn find(&self, tenant: &str, pod: &str, rank: u32) -> Option<WorkerId> {
        self.directory.read().find(tenant, pod, rank).map(|worker| worker.id)
    }

    /// The workers of a pod, by rank.
    pub fn ranks(&self, tenant: &str, pod: &str) -> Vec<WorkerId> {
        self.directory.read().ranks(tenant, pod).collect()
    }

    /// Makes an adapter's name stand for its model, for requests of this tenant.
    pub fn register_adapter(&self, tenant: &str, name: &str, adapter: Adapter) {
        let mut directory = self.directory.write();
        directory.add_adapter(tenant, name, adapter);
        self.shared.generation.turn();
    }

    /// Makes a name stand for no adapter of this tenant any more; whether it did.
    pub fn unregister_adapter(&self, tenant: &str, name: &str) -> bool {
        let mut directory = self.directory.write();
        let removed = directory.remove_adapter(tenant, name);
        self.shared.generation.turn();
        removed
    }

    /// Every adapter, by tenant and name.
    pub fn adapters(&self) -> Vec<AdapterState> {
        self.directory.read().all_adapters()
    }

    /// Whether a worker is registered that serves a tenant's model, by the model's own name.
    pub fn serves(&self, tenant: &str, model: &str) -> bool {
        self.directory.read().serves(tenant, model)
    }

    /// Applies a batch of a worker, as it came from the wire: the sequence number and the msgpack
    /// payload.
    ///
    /// Batches of one worker are applied in the order of the calls; what is wrong with a batch is
    /// counted, shown in the worker's trust, and never undoes what is known. A worker that is
    /// [followed](Scout::follow) may hold a batch back; then [`Ingested::ask`] says what to ask for.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn apply(&self, worker: WorkerId, seq: u64, payload: &[u8]) -> Result<Ingested, Error> {
        self.with_stream(worker, |stream| stream.apply(&self.shared, seq, payload))
    }

    /// Changes a worker's stream and shows queries where it stands then.
    fn with_stream<T>(
        &self,
        worker: WorkerId,
        change: impl FnOnce(&mut Stream) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let found = self.directory.read().get(worker).cloned();
        let found = found.ok_or_else(|| unknown_worker(worker))?;
        let mut stream = found.stream.lock();
        let waited = stream.is_waiting();
        let outcome = change(&mut stream);
        found.publish(&mut stream, &self.shared);
        self.count_waiting(waited, stream.is_waiting());
        outcome
    }

    fn count_waiting(&self, before: bool, after: bool) {
        match (before, after) {
            (false, true) => self.waiting.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.waiting.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// Every worker, by tenant, pod and rank.
    pub fn workers(&self) -> Vec<WorkerStatus> {
        let workers: Vec<_> = self.directory.read().all().cloned().collect();
        workers.iter().map(|worker| self.status(worker)).collect()
    }

    /// One worker.
    pub fn worker(&self, worker: WorkerId) -> Option<WorkerStatus> {
        let worker = self.directory.read().get(worker).cloned();
        worker.map(|worker| self.status(&worker))
    }

    fn status(&self, worker: &Worker) -> WorkerStatus {
        let adapters = self.directory.read().adapters(&worker.registration.tenant);
        worker.status(&self.shared.index, &adapters)
    }

    /// Hands everything that workers hold, by name, to `each`; see [`Image::holdings`](crate::index::Image::holdings) for what is left
    /// out.
    ///
    /// Batches wait for some 25 ms for a million blocks, and half as much memory as the index has is
    /// needed meanwhile. A batch that is being applied may be in it by half.
    ///
    /// # Errors
    ///
    /// None that is known of: what was just written is readable.
    pub fn holdings(&self, each: impl FnMut(Holding<'_>)) -> Result<(), Error> {
        self.shared.index.export().holdings(each)
    }

    /// What Dynamo calls the contents of blocks that were stored lately, as far as [`Options::local_hashes`] reach; see
    /// [`Blocks::Local`]. A copy, made under the lock that storing takes, too.
    pub fn local_hashes(&self) -> HashMap<Digest, u64> {
        self.shared.local.by_content()
    }

    /// The adapters that became something else under their old name.
    #[cfg(feature = "redis")]
    fn editions(&self) -> Vec<EditionState> {
        self.shared.editions.state()
    }

    /// Sizes of the index.
    pub fn stats(&self) -> Stats {
        self.shared.index.stats()
    }
}

fn unknown_worker(worker: WorkerId) -> Error {
    Error::new(ErrorKind::UnknownWorker, format!("no worker {} is registered", worker.0))
}
