//! Images of a memory index: long chains, hostile bytes, budgets, the time that writers wait.

mod index_support;

use std::thread;
use std::time::Instant;

use index_support::{
    Chain, QUERY, Ready, budget, home, lookup, mix, remove, store, store_of, swept,
};
use kvscout::block::{Digest, Group, Name, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::index::{
    Block, BlockSource, Change, Image, Matches, MemoryIndex, MemoryOptions, Parent, Query, Span,
    Store,
};
use proptest::prelude::*;

fn again(index: &MemoryIndex) -> MemoryIndex {
    MemoryIndex::import(MemoryOptions::default(), &index.export()).unwrap()
}

/// Everything that an index can have, in chains of several segments and runs.
fn varied() -> (MemoryIndex, Vec<Chain>) {
    let index = MemoryIndex::default();
    for w in 0..70 {
        index.assign(WorkerId(w), home(w % 3)).unwrap();
    }
    let trunk = Chain::new(1, 5_000);
    let mut chains = vec![trunk.clone()];
    for w in 0..70 {
        let of = w % 3;
        store(&index, WorkerId(w), &trunk.clone().of(of), 0..4_990 - 61 * w as usize);
        let branch = trunk.branch(10 + w as usize * 20, u64::from(w % 9), 2_000).of(of);
        store(&index, WorkerId(w), &branch, 0..1_500 + w as usize);
        for at in [0, 3, 17, 40, 41, 1_000] {
            remove(&index, WorkerId(w), &branch, at + w as usize..at + w as usize + 1);
        }
        chains.push(branch);
    }
    let cpu = |parent, blocks: &[Block]| {
        let (group, tier) = (Group(1), Tier::Cpu);
        let store = Store { shape: index_support::SHAPE, group, tier, parent, blocks };
        index.apply(WorkerId(3), &[Change::Store(store), Change::Store(store)]).unwrap();
    };
    cpu(Parent::Root, &trunk.blocks(0..30));
    // A block of no name, one of two names, a name of two blocks.
    cpu(Parent::Root, &[Block { name: Name(0), digest: Some(Digest(5)) }]);
    cpu(Parent::Root, &[Block { name: Name(9), digest: Some(Digest(5)) }]);
    cpu(Parent::Root, &[Block { name: Name(9), digest: Some(Digest(6)) }]);
    // Known by name only, and an orphan.
    cpu(Parent::Unknown, &[Block { name: Name(77), digest: None }]);
    cpu(Parent::Block(Name(78)), &[Block { name: Name(79), digest: Some(Digest(79)) }]);
    (index, chains)
}

/// A prompt with its names in vocabulary 0.
struct Named<'a>(&'a Chain);

impl BlockSource for Named<'_> {
    fn len(&self) -> usize {
        self.0.names.len()
    }

    fn digests(&mut self, from: usize, _: usize) -> &[Digest] {
        &self.0.digests[from..]
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        (vocabulary == VocabularyId(0)).then(|| self.0.names[block])
    }
}

fn answer(index: &MemoryIndex, chain: &Chain) -> (Vec<kvscout::index::Match>, Vec<Span>) {
    let mut matches = Matches::default();
    index.lookup(&Query { spans: true, ..QUERY }, &mut Named(chain), &mut matches);
    matches.sorted()
}

#[test]
fn long_chains_answer_alike_and_change_alike_after_an_image() {
    let (index, chains) = varied();
    let copy = again(&index);
    let counts = |index: &MemoryIndex| {
        let stats = swept(index);
        (stats.blocks, stats.entries, stats.unplaced)
    };
    assert_eq!(counts(&index), counts(&copy));
    assert_eq!(again(&copy).export(), copy.export());
    let compare = || {
        for chain in &chains {
            assert_eq!(answer(&index, chain), answer(&copy, chain));
        }
    };
    compare();
    for (w, chain) in chains[1..].iter().enumerate() {
        let worker = WorkerId(w as u32);
        for at in (1..300).step_by(7) {
            let ours = remove(&index, worker, chain, at..at + 3);
            assert_eq!(ours, remove(&copy, worker, chain, at..at + 3));
        }
        assert_eq!(store(&index, worker, chain, 50..90), store(&copy, worker, chain, 50..90));
    }
    for name in [0, 9, 9, 9, 9, 9, 77, 79] {
        let (group, tier, names) = (Group(1), Tier::Cpu, &[Name(name)]);
        let change = [Change::Remove { group, tier, names }];
        let ours = index.apply(WorkerId(3), &change).unwrap();
        assert_eq!(ours, copy.apply(WorkerId(3), &change).unwrap(), "{name}");
    }
    compare();
    (0..70).map(WorkerId).for_each(|w| (index.remove(w), copy.remove(w)).0);
    assert_eq!(counts(&copy), (0, 0, 0));
}

#[test]
fn an_empty_index_has_an_image() {
    let index = again(&MemoryIndex::default());
    assert_eq!(index.export(), MemoryIndex::default().export());
    assert!(MemoryIndex::import(MemoryOptions::default(), &Image::default()).is_err());
}

#[test]
fn workers_that_are_gone_leave_nothing_in_an_image() {
    let (index, chains) = varied();
    (1..70).map(WorkerId).for_each(|w| index.remove(w));
    let copy = again(&index);
    assert_eq!(copy.stats().entries, index.stats().entries);
    let mut matches = Matches::default();
    assert_eq!(lookup(&copy, &chains[0], &mut matches), [(WorkerId(0), 4_990)]);
    // A content and three names a block.
    let blocks = copy.stats().blocks as usize;
    assert!(copy.export().as_bytes().len() < blocks * 32 + 4096);
}

#[test]
fn an_image_beyond_the_budget_is_cut_to_it_and_one_far_beyond_is_refused() {
    let index = MemoryIndex::default();
    index.assign(WorkerId(0), home(0)).unwrap();
    for seed in 0..1_000 {
        store(&index, WorkerId(0), &Chain::new(seed, 100), 0..100);
    }
    let image = index.export();
    let bytes = index.stats().bytes as usize;
    let import =
        |budget| MemoryIndex::import(MemoryOptions { budget, ..MemoryOptions::default() }, &image);
    let cut = import(bytes / 100 * 90).unwrap().stats();
    assert!(cut.bytes <= bytes as u64 / 100 * 90 && cut.evicted > 0, "{cut:?}");
    assert_eq!(cut.entries + cut.evicted, 100_000);
    let refused = import(bytes / 4).unwrap_err().to_string();
    assert!(refused.contains("budget"), "{refused}");
    assert_eq!(budget(bytes * 2).stats().entries, 0);
}

#[test]
fn an_image_is_taken_while_others_write_and_read() {
    let index = MemoryIndex::default();
    let chains: Vec<Chain> = (0..200).map(|seed| Chain::new(seed, 64)).collect();
    (0..4).for_each(|w| index.assign(WorkerId(w), home(0)).unwrap());
    thread::scope(|scope| {
        for w in 0..4 {
            let (index, chains) = (&index, &chains);
            scope.spawn(move || {
                let mut matches = Matches::default();
                for round in 0..400 {
                    let chain = &chains[mix(round << 8 | u64::from(w)) as usize % 200];
                    store(index, WorkerId(w), chain, 0..64);
                    lookup(index, chain, &mut matches);
                    remove(index, WorkerId(w), chain, 10..64);
                }
            });
        }
        for _ in 0..20 {
            let copy = again(&index);
            let stats = copy.stats();
            assert!(stats.entries <= 4 * 200 * 64 && stats.blocks <= stats.entries);
        }
    });
    assert_eq!(again(&index).stats().entries, index.stats().entries);
}

#[test]
fn a_damaged_image_is_refused_or_read_and_never_a_panic() {
    let (index, chains) = {
        let index = MemoryIndex::default();
        (0..3).for_each(|w| index.assign(WorkerId(w), home(w % 2)).unwrap());
        let trunk = Chain::new(1, 40);
        (0..3).for_each(|w| {
            store(&index, WorkerId(w), &trunk.branch(20, u64::from(w), 40).of(w % 2), 0..40);
        });
        store(&index, WorkerId(0), &trunk, 0..30);
        remove(&index, WorkerId(0), &trunk, 5..6);
        let orphan = [Block { name: Name(3), digest: Some(Digest(3)) }];
        let parent = Parent::Block(Name(4));
        let store = Store { parent, ..store_of(&trunk, 0, &orphan) };
        index.apply(WorkerId(0), &[Change::Store(store)]).unwrap();
        (index, [trunk])
    };
    let whole = index.export().into_bytes();
    let mut refused = 0;
    let mut attempt = |bytes: Vec<u8>| {
        let image = Image::from_bytes(bytes);
        match MemoryIndex::import(MemoryOptions::default(), &image) {
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("at byte "), "{error}");
            }
            // Another content or name: right in itself, so the file's checksum has to tell.
            Ok(index) => {
                answer(&index, &chains[0]);
                (0..3).for_each(|w| index.remove(WorkerId(w)));
                index.remove(WorkerId(u32::MAX));
                index.stats();
            }
        }
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= [1, 0x80, 0xff][at % 3];
        attempt(bytes);
        if at % 5 == 0 {
            attempt(whole[..at].to_vec());
        }
    }
    attempt([&whole[..], &[0]].concat());
    assert!(refused > whole.len() / 5);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_image(bytes in prop::collection::vec(0u8..4, 0..400)) {
        let _ = MemoryIndex::import(MemoryOptions::default(), &Image::from_bytes(bytes));
    }
}

/// `cargo test --release --test index_image -- --ignored --nocapture`
#[test]
#[ignore = "prints how long writers wait for an image"]
fn time_of_a_million_entries() {
    for (chains, blocks, workers) in [(1_000, 1_000, 1), (20_000, 50, 4), (2_000, 50, 10)] {
        let index = MemoryIndex::default();
        (0..workers).for_each(|w| index.assign(WorkerId(w), home(0)).unwrap());
        for seed in 0..chains {
            let chain = Chain::new(seed, blocks);
            let copies = if chains * blocks as u64 == 100_000 { 0..workers } else { 0..1 };
            for w in copies {
                store(&index, WorkerId((seed as u32 + w) % workers), &chain, 0..blocks);
            }
        }
        let stats = index.stats();
        for _ in 0..3 {
            let start = Instant::now();
            let image = index.export();
            let exported = start.elapsed();
            let start = Instant::now();
            let copy = MemoryIndex::import(MemoryOptions::default(), &image).unwrap();
            let imported = start.elapsed();
            assert_eq!(copy.stats().entries, stats.entries);
            println!(
                "{chains} chains of {blocks} blocks, {workers} workers: {} blocks, {} entries: \
                 export {exported:?}, {} bytes, import {imported:?}",
                stats.blocks,
                stats.entries,
                image.as_bytes().len(),
            );
        }
        let query = Query { space: SpaceId(0), ..QUERY };
        let mut matches = Matches::default();
        index.lookup(&query, &mut Ready(&Chain::new(0, blocks).digests), &mut matches);
    }
}
