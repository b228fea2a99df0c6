//! The facade: numbered payloads of registered workers in, ranked workers out.
//!
//! [`Scout`] alone joins decoding, hashing, the index and scoring. It has no socket and no clock:
//! whoever embeds it calls [`Scout::apply`] with what came from the wire, one worker's batches in
//! order and from one thread at a time, and [`Scout::score`] from any thread.

mod directory;
mod prompt;
mod stream;
mod vocabulary;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use self::directory::{Directory, Worker};
use self::prompt::{NameBlocks, PromptBlocks};
use self::stream::Shared;
use crate::block::{BlockSize, Digest, Lora, Name, Prompt, Shape, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::event::{DecodeError, Limits};
use crate::hash::content::DigestKey;
use crate::hash::vllm::{ChainMemory, Version};
use crate::index::{Applied, Match, Matches, MemoryIndex, MemoryOptions, Query, Span, Stats};
use crate::ingest::verify::{Candidates, Status};
use crate::ingest::{Counters, Trust, Verdict};
use crate::score::{self, GroupFacts, Score, Unpredictable, Weights};

/// Settings of a [`Scout`].
///
/// # Defaults
///
/// No extra seeds; the defaults of [`Weights`], [`Limits`] and [`MemoryOptions`]; a random key; 32 MiB
/// of chains, about three million blocks.
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

/// One worker's place in the answer to a [`Request`].
#[derive(Clone, Debug)]
pub struct Ranked {
    /// The worker.
    pub worker: WorkerId,
    /// Its pod.
    pub pod: Arc<str>,
    /// Its data-parallel rank.
    pub rank: u32,
    /// What it holds of the prompt.
    pub score: Score,
    /// How far that can be believed.
    pub trust: Trust,
    /// The last batch whose effect is certainly included; `None` before the first.
    pub as_of: Option<u64>,
}

/// Memory of a caller's lookups, reused from one to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    ranked: Vec<Ranked>,
    matches: Matches,
    all: Vec<Match>,
    spans: Vec<Span>,
    digests: Vec<Digest>,
    candidates: Vec<WorkerId>,
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
    pub counters: Counters,
    /// What became of its events.
    pub events: EventCounters,
    /// Its cache groups, as announced.
    pub groups: Vec<GroupFacts>,
    /// Its hash contract, as detected.
    pub contract: Status,
}

/// What became of a worker's events since it was registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventCounters {
    /// Copies added.
    pub stored: u64,
    /// Copies taken away one by one.
    pub removed: u64,
    /// Removals of blocks that were not held.
    pub unknown_removals: u64,
    /// `AllBlocksCleared`.
    pub cleared: u64,
    /// Events left out as a whole.
    pub rejected: u64,
    /// Stored events whose tokens do not cover their blocks one by one; known by name only.
    pub sparse: u64,
    /// Stored events in other units than the group's blocks (chunks of an offload tier, partial
    /// blocks); not counted as resident.
    pub other_unit: u64,
    /// Copies refused because the share of blocks known by name only was full.
    pub refused: u64,
}

/// The KV-cache block index of a set of workers, with everything that feeds and reads it.
#[derive(Debug)]
pub struct Scout {
    shared: Shared,
    weights: Weights,
    directory: RwLock<Directory>,
    /// Workers whose batches wait for their contract; a query may settle it.
    waiting: AtomicUsize,
}

impl Scout {
    /// A scout without workers.
    ///
    /// # Errors
    ///
    /// The operating system gave no randomness for the digest key.
    pub fn new(options: Options) -> Result<Scout, Error> {
        let key = match options.digest_key {
            Some(key) => key,
            None => DigestKey::random()?,
        };
        Ok(Scout {
            shared: Shared {
                key: key.clone(),
                limits: options.limits,
                candidates: Candidates::new(&options.seeds),
                chains: ChainMemory::new(key, options.chain_memory),
                index: MemoryIndex::new(options.memory),
                vocabularies: RwLock::default(),
            },
            weights: options.weights,
            directory: RwLock::default(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Adds a worker; the same registration again gives the same worker.
    ///
    /// # Errors
    ///
    /// The (tenant, pod, rank) is registered with other facts.
    pub fn register(&self, registration: Registration) -> Result<WorkerId, Error> {
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
        worker.stream.lock().begin(&self.shared)?;
        Ok(worker.id)
    }

    /// Forgets a worker and all its blocks.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn unregister(&self, worker: WorkerId) -> Result<(), Error> {
        let removed = self.directory.write().remove(worker);
        let (removed, emptied) = removed.ok_or_else(|| unknown_worker(worker))?;
        // Under the stream's lock, so that a batch being applied ends before its blocks go.
        let mut stream = removed.stream.lock();
        if stream.is_waiting() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        stream.retire();
        self.shared.index.remove(worker);
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
        self.directory.write().add_adapter(tenant, name, adapter);
    }

    /// Applies a batch of a worker, as it came from the wire: the sequence number and the msgpack
    /// payload.
    ///
    /// Batches of one worker are applied in the order of the calls; what is wrong with a batch is
    /// counted, shown in the worker's trust, and never undoes what is known.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn apply(&self, worker: WorkerId, seq: u64, payload: &[u8]) -> Result<Ingested, Error> {
        let found = self.directory.read().get(worker).cloned();
        let found = found.ok_or_else(|| unknown_worker(worker))?;
        let mut stream = found.stream.lock();
        let waited = stream.is_waiting();
        let ingested = stream.apply(&self.shared, seq, payload)?;
        found.publish(&stream);
        self.count_waiting(waited, stream.is_waiting());
        Ok(ingested)
    }

    /// Ranks the workers by what they hold of a prompt: by weighted score, best first, ties by
    /// worker. Workers that hold nothing are in the answer, too.
    ///
    /// # Errors
    ///
    /// [`UnknownModel`](ErrorKind::UnknownModel) when no worker of the tenant serves the model.
    pub fn score<'s>(
        &self,
        request: &Request<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [Ranked], Error> {
        let directory = self.directory.read();
        let (model, adapter) = directory.resolve(request.tenant, request.model);
        let blocks = match request.blocks {
            Blocks::Prompt(prompt) => {
                let prompt = with_adapter(&directory, request, prompt, adapter);
                if self.waiting.load(Ordering::Relaxed) > 0 {
                    self.settle(directory.serving(request.tenant, model), &prompt);
                }
                Blocks::Prompt(prompt)
            }
            names => names,
        };
        self.rank(&directory, request, model, &blocks, scratch)
    }

    fn rank<'s>(
        &self,
        directory: &Directory,
        request: &Request<'_>,
        model: Option<&str>,
        blocks: &Blocks<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [Ranked], Error> {
        let Scratch { ranked, matches, all, spans: all_spans, digests, candidates } = scratch;
        ranked.clear();
        candidates.clear();
        candidates.extend(request.candidates.into_iter().flatten());
        candidates.sort_unstable();
        let asked =
            |id: WorkerId| request.candidates.is_none() || candidates.binary_search(&id).is_ok();
        let mut known = false;
        let mut groups: Vec<(WorkerId, Vec<GroupFacts>)> = Vec::new();
        for worker in directory.serving(request.tenant, model) {
            known = true;
            if !asked(worker.id) {
                continue;
            }
            let standing = worker.standing.read();
            groups.push((worker.id, standing.groups.clone()));
            ranked.push(Ranked {
                worker: worker.id,
                pod: worker.pod.clone(),
                rank: worker.registration.rank,
                score: Score::NOTHING,
                trust: standing.trust,
                as_of: standing.as_of,
            });
        }
        if !known {
            return Err(Error::new(
                ErrorKind::UnknownModel,
                format!(
                    "no worker serves model '{}' for tenant '{}'",
                    request.model.unwrap_or("(any)"),
                    request.tenant
                ),
            ));
        }
        let mut shapes: Vec<Shape> =
            groups.iter().flat_map(|(_, groups)| groups.iter().map(|g| g.shape)).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let spans = groups.iter().any(|(_, groups)| groups.iter().any(has_window));
        let filter = request.candidates.is_some().then_some(&candidates[..]);
        all.clear();
        all_spans.clear();
        for shape in shapes {
            for space in directory.spaces(request.tenant, model) {
                let query = Query { space, shape, candidates: filter, spans };
                match blocks {
                    Blocks::Prompt(prompt) => {
                        let mut source = PromptBlocks::new(&self.shared, *prompt, shape, digests);
                        self.shared.index.lookup(&query, &mut source, matches);
                    }
                    Blocks::Names { names, block_size } => {
                        if shape.size != *block_size {
                            continue;
                        }
                        let mut source = NameBlocks(names);
                        self.shared.index.lookup(&query, &mut source, matches);
                    }
                }
                // A group's matches are those of its own shape.
                let fits = |worker, group| {
                    groups.iter().any(|(w, groups)| {
                        *w == worker && groups.iter().any(|g| g.group == group && g.shape == shape)
                    })
                };
                all.extend(matches.iter().filter(|m| fits(m.worker, m.group)));
                let found = matches.spans.iter().filter(|s| fits(s.worker, s.group));
                all_spans.extend(found.copied());
            }
        }
        all.sort_unstable_by_key(|m| (m.worker, m.group));
        all_spans.sort_unstable();
        let tokens = match blocks {
            Blocks::Prompt(prompt) => prompt.token_ids.len(),
            // One more than the blocks have, so that the last one may count as cached.
            Blocks::Names { names, block_size } => names.len() * block_size.tokens() + 1,
        };
        for (ranked, (worker, groups)) in ranked.iter_mut().zip(&groups) {
            let mine = stretch(all, |m| m.worker, *worker);
            let spans = stretch(all_spans, |s| s.worker, *worker);
            ranked.score = score::score(tokens, groups, mine, spans, &self.weights);
            if matches!(blocks, Blocks::Names { .. }) {
                ranked.score.expected_cached_tokens = Err(Unpredictable::LengthUnknown);
            }
        }
        ranked.sort_by(|a, b| {
            b.score.weighted.total_cmp(&a.score.weighted).then(a.worker.cmp(&b.worker))
        });
        Ok(ranked)
    }

    /// Lets a query's prompt prove the contract of workers whose batches wait for it.
    fn settle<'d>(&self, workers: impl Iterator<Item = &'d Arc<Worker>>, prompt: &Prompt<'_>) {
        for worker in workers {
            let mut stream = worker.stream.lock();
            if stream.is_waiting() {
                stream.settle(&self.shared, prompt);
                worker.publish(&stream);
                self.count_waiting(true, stream.is_waiting());
            }
        }
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
        workers.iter().map(|worker| worker.status()).collect()
    }

    /// One worker.
    pub fn worker(&self, worker: WorkerId) -> Option<WorkerStatus> {
        let worker = self.directory.read().get(worker).cloned();
        worker.map(|worker| worker.status())
    }

    /// Sizes of the index.
    pub fn stats(&self) -> Stats {
        self.shared.index.stats()
    }
}

/// What belongs to one worker, of a list in the order of workers.
fn stretch<T>(all: &[T], worker: impl Fn(&T) -> WorkerId, id: WorkerId) -> &[T] {
    let from = all.partition_point(|t| worker(t) < id);
    let len = all[from..].partition_point(|t| worker(t) == id);
    &all[from..from + len]
}

fn has_window(facts: &GroupFacts) -> bool {
    matches!(facts.rule, score::GroupRule::Window { .. })
}

/// Fills in what the directory knows of the request's adapter.
fn with_adapter<'a>(
    directory: &'a Directory,
    request: &Request<'a>,
    mut prompt: Prompt<'a>,
    adapter: Option<&'a Adapter>,
) -> Prompt<'a> {
    if let (Some(adapter), Some(name), None) = (adapter, request.model, prompt.lora) {
        prompt.lora = Some(Lora { name, id: adapter.id, path: adapter.path.as_deref() });
    } else if let Some(lora) = &mut prompt.lora
        && let Some(adapter) = directory.adapter(request.tenant, lora.name)
    {
        lora.id = lora.id.or(adapter.id);
        lora.path = lora.path.or(adapter.path.as_deref());
    }
    prompt
}

fn unknown_worker(worker: WorkerId) -> Error {
    Error::new(ErrorKind::UnknownWorker, format!("no worker {} is registered", worker.0))
}
