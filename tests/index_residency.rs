//! What an image says that workers hold, made again in another index.
#![cfg(feature = "conformance")]

mod index_support;

use index_support::{Chain, SHAPE, mix};
use kvscout::block::{Digest, Group, Name, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::index::{
    Block, BlockSource, Change, Home, Matches, MemoryIndex, MemoryOptions, Parent, Query, Store,
};

const WORKERS: [WorkerId; 3] = [WorkerId(1), WorkerId(2), WorkerId(3)];

fn home(worker: WorkerId) -> Home {
    // The first two share a vocabulary.
    Home { space: SpaceId(0), vocabulary: VocabularyId(worker.0.max(2)) }
}

fn index() -> MemoryIndex {
    let index = MemoryIndex::new(MemoryOptions::default());
    WORKERS.into_iter().for_each(|worker| index.assign(worker, home(worker)).unwrap());
    index
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % n
    }
}

/// Paths that share beginnings, named as the worker's vocabulary does.
fn chains(worker: WorkerId) -> Vec<Chain> {
    let base = Chain::new(1, 40);
    (0..6)
        .map(|n| {
            let mut chain = base.clone();
            let own = Chain::new(100 + n, 40);
            let fork = (n * 7) as usize;
            chain.digests.truncate(fork);
            chain.digests.extend_from_slice(&own.digests[fork..]);
            chain.of(home(worker).vocabulary.0)
        })
        .collect()
}

fn store<'a>(blocks: &'a [Block], parent: Parent, tier: Tier) -> Change<'a> {
    Change::Store(Store { shape: SHAPE, group: Group(0), tier, parent, blocks })
}

/// A step of a history: a stretch of a chain is stored, some names go, or something comes by its name alone.
fn step(dice: &mut Dice, index: &MemoryIndex) {
    let worker = WORKERS[dice.roll(3) as usize];
    let chains = chains(worker);
    let chain = &chains[dice.roll(6) as usize];
    let tier = [Tier::Gpu, Tier::Cpu][dice.roll(2) as usize];
    let from = dice.roll(40) as usize;
    let to = (from + 1 + dice.roll(20) as usize).min(40);
    let block = |at: usize| Block { name: chain.names[at], digest: Some(chain.digests[at]) };
    match dice.roll(10) {
        0..=5 => {
            // Mostly from the root; else below something that may not be there.
            let from = if dice.roll(3) > 0 { 0 } else { from };
            let blocks: Vec<Block> = (from..to).map(block).collect();
            let parent = match from {
                0 => Parent::Root,
                at => Parent::Block(chain.names[at - 1]),
            };
            index.apply(worker, &[store(&blocks, parent, tier)]).unwrap();
        }
        6 => {
            let blocks = [Block { name: Name(mix(dice.roll(50))), digest: None }];
            index.apply(worker, &[store(&blocks, Parent::Unknown, tier)]).unwrap();
        }
        _ => {
            let names = &chain.names[from..to];
            index.apply(worker, &[Change::Remove { group: Group(0), tier, names }]).unwrap();
        }
    }
}

struct Asked(Chain);

impl BlockSource for Asked {
    fn len(&self) -> usize {
        self.0.digests.len()
    }

    fn digests(&mut self, from: usize, _: usize) -> &[Digest] {
        &self.0.digests[from..]
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        let chain = self.0.clone().of(vocabulary.0);
        chain.names.get(block).copied()
    }
}

/// Everything that lookups say, and how many copies of each block can be taken away.
fn says(index: MemoryIndex) -> Vec<String> {
    let mut all = Vec::new();
    for chain in chains(WORKERS[0]) {
        for spans in [false, true] {
            let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans };
            let mut matches = Matches::default();
            index.lookup(&query, &mut Asked(chain.clone()), &mut matches);
            all.push(format!("{:?}", matches.sorted()));
        }
    }
    for worker in WORKERS {
        let mut names: Vec<Name> = chains(worker).into_iter().flat_map(|c| c.names).collect();
        names.extend((0..50).map(|n| Name(mix(n))));
        names.sort_unstable();
        names.dedup();
        for tier in [Tier::Gpu, Tier::Cpu] {
            for &name in names.iter().rev() {
                let remove = Change::Remove { group: Group(0), tier, names: &[name] };
                let mut copies = 0;
                while index.apply(worker, &[remove]).unwrap().removed > 0 {
                    copies += 1;
                }
                all.push(format!("{worker:?} {tier:?} {name:?}: {copies}"));
            }
        }
    }
    all
}

#[test]
fn another_index_holds_the_same_after_these_changes_and_answers_alike() {
    for seed in 0..300 {
        let mut dice = Dice(seed << 32);
        let original = index();
        for _ in 0..dice.roll(60) {
            step(&mut dice, &original);
        }
        let image = original.export();
        let made = index();
        let residencies = image.residencies().unwrap();
        for worker in WORKERS {
            let left_out = residencies.changes(worker, &mut |change| {
                let applied = made.apply(worker, &[change]).unwrap();
                assert_eq!((applied.refused, applied.unknown_removals), (0, 0), "seed {seed}");
            });
            assert_eq!(left_out, 0, "seed {seed}");
        }
        assert_eq!(says(made), says(original), "seed {seed}");
    }
}

#[test]
fn an_image_that_is_cut_off_or_changed_is_an_error_or_says_less_and_never_panics() {
    let mut dice = Dice(7);
    let original = index();
    (0..40).for_each(|_| step(&mut dice, &original));
    let bytes = original.export().into_bytes();
    let read = |bytes: Vec<u8>| {
        let image = kvscout::index::Image::from_bytes(bytes);
        if let Ok(residencies) = image.residencies() {
            WORKERS.into_iter().for_each(|worker| {
                residencies.changes(worker, &mut |_| {});
            });
        }
    };
    (0..bytes.len()).for_each(|end| read(bytes[..end].to_vec()));
    for _ in 0..3000 {
        let mut changed = bytes.clone();
        let at = dice.roll(bytes.len() as u64) as usize;
        changed[at] = dice.roll(256) as u8;
        read(changed);
    }
}
