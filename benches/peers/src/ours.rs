//! kvscout as a router uses it. Everything this package knows of the crate's interface is here.

use std::ops::Range;

use kvscout::block::{
    BlockSize, Digest, Group, Name, Prompt, Shape, SpaceId, Tier, TokenId, VocabularyId, WorkerId,
};
use kvscout::hash::content::DigestKey;
use kvscout::hash::vllm::{Algorithm, BlockHash, ChainMemory, Contract, Root, Version};
use kvscout::index::{
    Applied, Block, BlockSource, Change, Home, Matches, MemoryIndex, Parent, Query as Lookup, Store,
};
use kvscout::ingest::Verdict;
use kvscout::scout::{Options, Ranking, Registration, Request, Scout, Scratch};

use crate::clock::thread_cpu;
use crate::peer::{Peer, Ranker, Seeds};
use crate::query::Query;
use crate::workload::{Kind, Stream};

const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);
const SPACE: SpaceId = SpaceId(1);
const MODEL: &str = "model";

/// An engine's block hash.
pub type Hash = BlockHash;

/// How the simulated engines hash: vLLM with `sha256_cbor` and `PYTHONHASHSEED=0`, which is found
/// out from their events.
#[derive(Debug)]
pub struct Engine {
    contract: Contract,
    root: BlockHash,
}

impl Default for Engine {
    fn default() -> Engine {
        let contract = contract(Algorithm::Sha256Cbor);
        Engine { root: contract.root(), contract }
    }
}

impl Engine {
    /// The hash of the block of these tokens after `parent`.
    pub fn block(&self, parent: Option<&Hash>, tokens: &[TokenId]) -> Hash {
        let parent = parent.unwrap_or(&self.root);
        self.contract.child(parent, tokens, &[], [], None).expect("plain tokens have a hash")
    }
}

fn contract(algorithm: Algorithm) -> Contract {
    Contract::new(Version::NEWEST, algorithm, Root::Seed("0")).expect("a seed gives a root hash")
}

/// vLLM's default hashes, by `sha256`, of the blocks of a prompt.
#[derive(Debug)]
pub struct Exact(Contract);

impl Exact {
    /// The contract; made once by a router.
    pub fn new() -> Exact {
        Exact(contract(Algorithm::Sha256))
    }

    /// The parent of a first block.
    pub fn root(&self) -> [u8; 32] {
        let root = self.0.root();
        let bytes = root.as_bytes().and_then(|bytes| bytes.try_into().ok());
        bytes.expect("sha256 has a root hash of 32 bytes")
    }

    /// Hands the name of each block of a prompt to `sink`.
    pub fn names(&self, tokens: &[TokenId], mut sink: impl FnMut(u64)) {
        let chain = self.0.chain(SHAPE, &Prompt::new(tokens));
        let mut chain = chain.expect("plain tokens have hashes");
        chain.extend(tokens).for_each(|hash| sink(hash.name().0));
    }
}

/// The memory of chains after a turn of a chat.
#[derive(Debug)]
pub struct Turn<'a>(&'a Contract, ChainMemory);

impl Exact {
    /// What is remembered once a prompt was hashed.
    pub fn turn_after(&self, tokens: &[TokenId]) -> Turn<'_> {
        let turn = Turn(&self.0, ChainMemory::new(DigestKey::from_bytes([7; 16]), 64 << 10));
        turn.names(tokens, |_| {});
        turn
    }
}

impl Turn<'_> {
    /// Hands the name of each block of a prompt to `sink`.
    pub fn names(&self, tokens: &[TokenId], sink: impl FnMut(u64)) {
        let names = self.1.names(self.0, SHAPE, &Prompt::new(tokens));
        names.expect("plain tokens have hashes").map(|name| name.0).for_each(sink);
    }
}

/// Digests of whole prompts under one key.
#[derive(Debug)]
pub struct Content(DigestKey, Vec<Digest>);

impl Content {
    /// Room for prompts of so many blocks.
    pub fn new(blocks: usize) -> Content {
        Content(DigestKey::from_bytes([7; 16]), vec![Digest(0); blocks])
    }

    /// The digests of a prompt's blocks.
    pub fn digests(&mut self, tokens: &[TokenId]) -> &[Digest] {
        self.0.plain(tokens, SHAPE.size.tokens(), &mut self.1);
        &self.1
    }
}

/// The index alone.
pub struct Ours(MemoryIndex);

/// Events whose blocks and names lie in two arrays.
pub struct Events {
    blocks: Vec<Block>,
    names: Vec<Name>,
    changes: Vec<Planned>,
    batches: Vec<(WorkerId, Range<usize>)>,
}

enum Planned {
    Store { parent: Parent, blocks: Range<usize> },
    Remove { names: Range<usize> },
}

/// A prompt whose digests are ready.
struct Ready<'a>(&'a [Digest]);

impl BlockSource for Ready<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn digests(&mut self, from: usize, _: usize) -> &[Digest] {
        &self.0[from..]
    }

    fn name(&mut self, _: VocabularyId, _: usize) -> Option<Name> {
        None
    }
}

impl Peer for Ours {
    const NAME: &'static str = "kvscout";
    type Writer = ();
    type Events = Events;
    type Prompt = Vec<Digest>;
    type Answer = Matches;

    fn new(workers: usize, seeds: Seeds) -> Ours {
        let index = MemoryIndex::default();
        for worker in 0..workers as u32 {
            let vocabulary = match seeds {
                Seeds::Shared => VocabularyId(1),
                Seeds::PerWorker => VocabularyId(1 + worker),
            };
            let home = Home { space: SPACE, vocabulary };
            index.assign(WorkerId(worker), home).expect("a new worker can have any home");
        }
        Ours(index)
    }

    fn writer(&self) {}

    fn events(&self, stream: &Stream, range: Range<usize>) -> Events {
        let mut events = Events { blocks: vec![], names: vec![], changes: vec![], batches: vec![] };
        for step in stream.steps(range) {
            let first = events.changes.len();
            let worker = WorkerId(u32::from(stream.events[step.start].worker));
            for event in &stream.events[step] {
                let named = event.start as usize..event.start as usize + event.len as usize;
                events.changes.push(match event.kind {
                    Kind::Stored => {
                        let start = events.blocks.len();
                        events.blocks.extend(stream.stored[named].iter().map(|block| Block {
                            name: Name(block.name),
                            digest: Some(Digest(block.content)),
                        }));
                        let parent =
                            event.parent.map_or(Parent::Root, |name| Parent::Block(Name(name)));
                        Planned::Store { parent, blocks: start..events.blocks.len() }
                    }
                    Kind::Removed => {
                        let start = events.names.len();
                        events.names.extend(stream.removed[named].iter().map(|&name| Name(name)));
                        Planned::Remove { names: start..events.names.len() }
                    }
                });
            }
            events.batches.push((worker, first..events.changes.len()));
        }
        events
    }

    fn apply(&self, (): &mut (), events: Events, started: impl FnOnce()) -> f64 {
        let Events { blocks, names, changes, batches } = &events;
        let (group, tier) = (Group(0), Tier::Gpu);
        let change = |planned: &Planned| match planned {
            Planned::Store { parent, blocks: range } => Change::Store(Store {
                shape: SHAPE,
                group,
                tier,
                parent: *parent,
                blocks: &blocks[range.clone()],
            }),
            Planned::Remove { names: range } => {
                Change::Remove { group, tier, names: &names[range.clone()] }
            }
        };
        let changes: Vec<Change<'_>> = changes.iter().map(change).collect();
        let mut total = Applied::default();
        started();
        let start = thread_cpu();
        for (worker, range) in batches {
            let applied = self.0.apply(*worker, &changes[range.clone()]);
            let applied = applied.expect("every worker has a home");
            total.stored += applied.stored;
            total.removed += applied.removed;
            total.refused += applied.refused;
        }
        let seconds = thread_cpu() - start;
        assert_eq!(total.stored, blocks.len() as u64, "copies stored");
        assert_eq!(total.removed, names.len() as u64, "copies removed");
        assert_eq!(total.refused, 0, "copies refused");
        seconds
    }

    fn prompt(&self, query: &Query) -> Vec<Digest> {
        query.contents.iter().map(|&content| Digest(content)).collect()
    }

    fn touch(&self, prompt: &Vec<Digest>) -> u64 {
        prompt.iter().fold(0, |sum, digest| sum ^ digest.0)
    }

    fn lookup(&self, prompt: &Vec<Digest>, answer: &mut Matches) {
        let lookup = Lookup { space: SPACE, shape: SHAPE, candidates: None, spans: false };
        self.0.lookup(&lookup, &mut Ready(prompt), answer);
    }

    fn leading(&self, answer: &Matches, leading: &mut [u32]) {
        for class in &answer.classes {
            for worker in answer.members(class) {
                leading[worker.0 as usize] = class.leading[0];
            }
        }
    }

    fn entries(&self) -> Option<usize> {
        Some(self.0.stats().entries as usize)
    }
}

/// The whole path: payloads as engines publish them, prompts as tokens.
pub struct Scouted {
    scout: Scout,
    workers: Vec<WorkerId>,
    batches: Vec<u64>,
}

impl Scouted {
    /// A scout with default settings and so many registered workers.
    pub fn new(workers: usize) -> Scouted {
        let scout = Scout::new(Options::default()).expect("the system gives a random key");
        let register = |n| scout.register(Registration::new(format!("engine-{n}"), MODEL));
        let workers: Vec<_> =
            (0..workers).map(|n| register(n).expect("no worker comes twice")).collect();
        Scouted { batches: vec![0; workers.len()], scout, workers }
    }

    /// Applies the next batch of a worker, as it came from the wire; copies stored and removed.
    pub fn receive(&mut self, worker: usize, payload: &[u8]) -> u64 {
        let batch = self.batches[worker];
        self.batches[worker] += 1;
        let ingested = self.scout.apply(self.workers[worker], batch, payload);
        let ingested = ingested.expect("the worker is registered");
        assert!(
            ingested.verdict == Verdict::Next && ingested.error.is_none() && ingested.rejected == 0,
            "batch {batch} of worker {worker}: {ingested:?}"
        );
        ingested.applied.stored + ingested.applied.removed
    }

    /// (block, worker) entries.
    pub fn entries(&self) -> usize {
        self.scout.stats().entries as usize
    }

    /// Workers that are not fully trusted, or whose contract was not found.
    pub fn doubts(&self) -> usize {
        let workers = self.scout.workers();
        let unverified = |contract: &kvscout::ingest::verify::Status| {
            !matches!(contract, kvscout::ingest::verify::Status::Verified(_))
        };
        workers.iter().filter(|w| w.trust.as_str() != "exact" || unverified(&w.contract)).count()
    }

    fn request<'a>(&self, tokens: &'a [u32], scratch: &'a mut Scratch) -> Ranking<'a> {
        let request = Request::new(MODEL, Prompt::new(tokens));
        self.scout.score(&request, scratch).expect("workers serve the model")
    }
}

impl Ranker for Scouted {
    const NAME: &'static str = "kvscout";
    type Answer = Scratch;

    fn rank(&self, tokens: &[u32], answer: &mut Scratch) {
        let ranked = self.request(tokens, answer);
        std::hint::black_box((ranked.len(), ranked.best().map(|best| best.worker)));
        for row in ranked.holders() {
            std::hint::black_box((row.worker, row.score.weighted));
        }
    }

    fn check(&self, tokens: &[u32], leading: &mut [u32]) {
        let mut scratch = Scratch::default();
        for ranked in self.request(tokens, &mut scratch) {
            let at = self.workers.iter().position(|worker| *worker == ranked.worker);
            let at = at.expect("only registered workers are ranked");
            leading[at] = ranked.score.matched_blocks;
        }
    }
}
