//! Workers taken out of an image, alone and put back, against the index that they were taken from.

use proptest::prelude::*;

use super::Image;
use crate::block::{BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::index::memory::{Held, MemoryIndex, MemoryOptions};
use crate::index::{Block, BlockSource, Change, Home, Match, Matches, Parent, Query, Span, Store};

const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);
const WORKERS: u32 = 4;

/// Two workers share a vocabulary.
fn home(worker: u32) -> Home {
    Home { space: SpaceId(1), vocabulary: VocabularyId(1 + worker / 2) }
}

/// One of sixteen chains, which part ever later; a block's name follows from its path.
fn path(chain: u32, len: u32) -> Vec<Block> {
    let content = |at: u32| u64::from(at / 3 + 1) << 32 | u64::from(chain >> (3 - (at / 5).min(3)));
    let block = |at: u32| {
        let path = (0..=at).fold(7_u64, |sum, at| sum.wrapping_mul(31).wrapping_add(content(at)));
        Block { name: Name(path), digest: Some(Digest(content(at) + u64::from(at))) }
    };
    (0..len).map(block).collect()
}

#[derive(Clone, Debug)]
enum Act {
    Store { worker: u32, chain: u32, from: u32, to: u32, tier: Tier, group: u32 },
    Name { worker: u32, chain: u32, at: u32 },
    Remove { worker: u32, chain: u32, from: u32, to: u32, tier: Tier, group: u32 },
}

fn act() -> impl Strategy<Value = Act> {
    let tier = || prop::sample::select(vec![Tier::Gpu, Tier::Gpu, Tier::Cpu]);
    let part = || (0..WORKERS, 0_u32..16, 0_u32..40, 1_u32..40);
    prop_oneof![
        4 => (part(), tier(), 0_u32..2).prop_map(|((worker, chain, from, len), tier, group)| {
            // Mostly from the beginning; otherwise below what may not be there.
            let from = if from < 30 { 0 } else { from - 29 };
            Act::Store { worker, chain, from, to: from + len, tier, group }
        }),
        1 => part().prop_map(|(worker, chain, at, _)| Act::Name { worker, chain, at }),
        3 => (part(), tier(), 0_u32..2).prop_map(|((worker, chain, from, len), tier, group)| {
            Act::Remove { worker, chain, from, to: from + len.min(6), tier, group }
        }),
    ]
}

fn apply(index: &MemoryIndex, act: &Act) {
    match *act {
        Act::Store { worker, chain, from, to, tier, group } => {
            let blocks = path(chain, to);
            let before = (from as usize).checked_sub(1);
            let parent = before.map_or(Parent::Root, |at| Parent::Block(blocks[at].name));
            let (group, blocks) = (Group(group), &blocks[from as usize..]);
            let store = Store { shape: SHAPE, group, tier, parent, blocks };
            index.apply(WorkerId(worker), &[Change::Store(store)]).unwrap();
        }
        Act::Name { worker, chain, at } => {
            let name = path(chain, at + 1)[at as usize].name;
            let (group, tier, blocks) = (Group(0), Tier::Cpu, &[Block { name, digest: None }]);
            let store = Store { shape: SHAPE, group, tier, parent: Parent::Unknown, blocks };
            index.apply(WorkerId(worker), &[Change::Store(store)]).unwrap();
        }
        Act::Remove { worker, chain, from, to, tier, group } => {
            let names: Vec<Name> = path(chain, to).iter().map(|block| block.name).collect();
            let (group, names) = (Group(group), &names[from as usize..]);
            index.apply(WorkerId(worker), &[Change::Remove { group, tier, names }]).unwrap();
        }
    }
}

fn filled(acts: &[Act]) -> MemoryIndex {
    let index = MemoryIndex::default();
    (0..WORKERS).for_each(|worker| index.assign(WorkerId(worker), home(worker)).unwrap());
    acts.iter().for_each(|act| apply(&index, act));
    index
}

struct Contents(Vec<Digest>);

impl BlockSource for Contents {
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

/// What queries by content find of one worker.
fn answers(index: &MemoryIndex, worker: WorkerId) -> Vec<(Vec<Match>, Vec<Span>)> {
    let candidates = Some(&[worker][..]);
    let query = Query { space: SpaceId(1), shape: SHAPE, candidates, spans: true };
    let answer = |chain| {
        let contents = path(chain, 60).iter().filter_map(|block| block.digest).collect();
        let mut matches = Matches::default();
        index.lookup(&query, &mut Contents(contents), &mut matches);
        matches.sorted()
    };
    (0..16).map(answer).collect()
}

/// What it holds by name, and how many entries it has.
fn held(index: &MemoryIndex, worker: WorkerId) -> (Vec<Held>, u64) {
    (index.held(worker, &index.names(worker)), index.entries(worker))
}

fn apart(image: &Image, workers: &[WorkerId]) -> Vec<(WorkerId, Image)> {
    let mut all = Vec::new();
    image.apart(workers, |worker, image| all.push((worker, image))).unwrap();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_worker_alone_and_put_back_holds_what_it_held(
        acts in prop::collection::vec(act(), 0..60),
        later in prop::collection::vec(act(), 0..30),
    ) {
        let index = filled(&acts);
        let all: Vec<WorkerId> = (0..WORKERS).map(WorkerId).collect();
        let apart = apart(&index.export(), &all);
        prop_assert_eq!(apart.len(), all.len());
        for (worker, image) in apart {
            prop_assert_eq!(&index.export_of(worker), &Some(image.clone()));
            let alone = MemoryIndex::import(MemoryOptions::default(), &image).unwrap();
            prop_assert_eq!(held(&alone, worker), held(&index, worker));
            prop_assert_eq!(answers(&alone, worker), answers(&index, worker));
            // Put back among others that have gone on, and among nobody.
            let others = filled(&acts);
            later.iter().for_each(|act| apply(&others, act));
            let empty = filled(&[]);
            for index in [&others, &empty] {
                let change = |change: Change<'_>| index.apply(worker, &[change]).map(drop);
                change(Change::Clear { tier: None }).unwrap();
                prop_assert!(image.changes(change).unwrap());
                prop_assert_eq!(held(index, worker), held(&alone, worker));
            }
            prop_assert_eq!(answers(&empty, worker), answers(&alone, worker));
        }
    }
}

#[test]
fn names_of_several_blocks_and_blocks_of_several_names_stay_what_they_are() {
    let (index, me) = (filled(&[]), WorkerId(0));
    let store = |name, content| {
        let blocks = &[Block { name: Name(name), digest: Some(Digest(content)) }];
        let (group, tier, parent) = (Group(0), Tier::Gpu, Parent::Root);
        let store = Store { shape: SHAPE, group, tier, parent, blocks };
        index.apply(me, &[Change::Store(store)]).unwrap();
    };
    [(3, 30), (3, 31), (4, 40), (5, 40), (0, 50)].into_iter().for_each(|(n, c)| store(n, c));
    let (_, image) = apart(&index.export(), &[me]).pop().unwrap();
    let alone = MemoryIndex::import(MemoryOptions::default(), &image).unwrap();
    assert_eq!(held(&alone, me), held(&index, me));
}

#[test]
fn what_is_no_image_is_refused_and_who_is_not_in_it_left_out() {
    let image = filled(&[]).export();
    assert!(apart(&image, &[WorkerId(77)]).is_empty());
    let bytes =
        filled(&[Act::Store { worker: 0, chain: 3, from: 0, to: 9, tier: Tier::Gpu, group: 0 }])
            .export()
            .into_bytes();
    for len in 0..bytes.len() {
        let cut = Image::from_bytes(bytes[..len].to_vec());
        assert!(cut.apart(&[WorkerId(0)], |_, _| {}).is_err(), "{len} of {}", bytes.len());
    }
}
