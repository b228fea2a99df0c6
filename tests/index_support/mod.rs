//! Chains of made-up blocks, and short ways to ask a memory index about them.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use kvscout::block::{
    BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId,
};
use kvscout::index::{
    Applied, Block, BlockSource, Change, Home, Matches, MemoryIndex, MemoryOptions, Parent, Query,
    Stats, Store,
};

pub const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);

pub const QUERY: Query<'static> =
    Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: false };

/// SplitMix64's output function.
pub fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Blocks with random contents, and with names chained from them.
#[derive(Clone)]
pub struct Chain {
    pub digests: Vec<Digest>,
    pub names: Vec<Name>,
}

impl Chain {
    pub fn new(seed: u64, blocks: usize) -> Chain {
        let digests = (0..blocks as u64).map(|at| Digest(mix(mix(seed) ^ at))).collect();
        Chain { digests, names: Vec::new() }.of(0)
    }

    /// The same contents as a vocabulary names them.
    pub fn of(mut self, vocabulary: u32) -> Chain {
        let mut above = mix(u64::from(vocabulary));
        self.names.clear();
        for digest in &self.digests {
            above = mix(above ^ digest.0);
            self.names.push(Name(above));
        }
        self
    }

    /// The first `from` blocks of this chain, then others up to `len`.
    pub fn branch(&self, from: usize, seed: u64, len: usize) -> Chain {
        let mut digests = self.digests[..from].to_vec();
        digests.extend((from..len).map(|at| Digest(mix(mix(!seed) ^ at as u64))));
        Chain { digests, names: Vec::new() }.of(0)
    }

    pub fn blocks(&self, range: Range<usize>) -> Vec<Block> {
        range.map(|at| Block { name: self.names[at], digest: Some(self.digests[at]) }).collect()
    }

    pub fn parent(&self, at: usize) -> Parent {
        at.checked_sub(1).map_or(Parent::Root, |above| Parent::Block(self.names[above]))
    }
}

/// A prompt whose digests are all there.
pub struct Ready<'a>(pub &'a [Digest]);

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

/// A prompt that counts how far it was digested.
pub struct Counting<'a> {
    digests: &'a [Digest],
    pub asked: usize,
}

impl<'a> Counting<'a> {
    pub fn new(digests: &'a [Digest]) -> Counting<'a> {
        Counting { digests, asked: 0 }
    }
}

impl BlockSource for Counting<'_> {
    fn len(&self) -> usize {
        self.digests.len()
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        self.asked = self.asked.max(from + least);
        &self.digests[from..self.asked]
    }

    fn name(&mut self, _: VocabularyId, _: usize) -> Option<Name> {
        None
    }
}

pub fn home(vocabulary: u32) -> Home {
    Home { space: SpaceId(0), vocabulary: VocabularyId(vocabulary) }
}

pub fn budget(bytes: usize) -> MemoryIndex {
    MemoryIndex::new(MemoryOptions { budget: bytes, ..MemoryOptions::default() })
}

/// A store of blocks that begin at block `at` of a chain.
pub fn store_of<'a>(chain: &Chain, at: usize, blocks: &'a [Block]) -> Store<'a> {
    let (group, tier, parent) = (Group(0), Tier::Gpu, chain.parent(at));
    Store { shape: SHAPE, group, tier, parent, blocks }
}

pub fn store(index: &MemoryIndex, worker: WorkerId, chain: &Chain, at: Range<usize>) -> Applied {
    let from = at.start;
    let blocks = chain.blocks(at);
    index.apply(worker, &[Change::Store(store_of(chain, from, &blocks))]).unwrap()
}

pub fn remove(index: &MemoryIndex, worker: WorkerId, chain: &Chain, at: Range<usize>) -> Applied {
    let names = &chain.names[at];
    let remove = Change::Remove { group: Group(0), tier: Tier::Gpu, names };
    index.apply(worker, &[remove]).unwrap()
}

/// Sizes once everything is swept that the gone held.
pub fn swept(index: &MemoryIndex) -> Stats {
    swept_after(index).0
}

/// The same, and how often they had to be asked for.
pub fn swept_after(index: &MemoryIndex) -> (Stats, usize) {
    let all = (1..100_000).map(|asked| (index.stats(), asked));
    let mut done = all.skip_while(|(stats, _)| stats.unswept > 0);
    done.next().unwrap()
}

/// Who holds how many leading blocks, by worker.
pub fn lookup(index: &MemoryIndex, chain: &Chain, matches: &mut Matches) -> Vec<(WorkerId, u32)> {
    index.lookup(&QUERY, &mut Ready(&chain.digests), matches);
    matches.sorted().0.iter().map(|m| (m.worker, m.leading[3])).collect()
}

/// One test at a time, where the memory of the process is looked at.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Resident bytes of this process.
pub fn rss() -> i64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4096
}
