//! The memory index keeps the contract of an index.
#![cfg(feature = "conformance")]

use kvscout::block::{Group, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::conformance::{self, Step};
use kvscout::index::{Home, Image, MemoryIndex, MemoryOptions};
use proptest::prelude::*;

#[test]
fn the_memory_index_keeps_the_contract() {
    conformance::check(MemoryIndex::default);
}

fn worker() -> impl Strategy<Value = WorkerId> {
    (0u32..5).prop_map(WorkerId)
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..3, 1..6)
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![
        4 => Just(Tier::Gpu),
        2 => Just(Tier::Cpu),
        1 => Just(Tier::Disk),
        1 => Just(Tier::Remote),
        1 => Just(Tier::Unknown),
    ]
}

fn group() -> impl Strategy<Value = Group> {
    (0u32..2).prop_map(Group)
}

fn home() -> impl Strategy<Value = Home> {
    (0u32..2, 0u32..3).prop_map(|(s, v)| Home { space: SpaceId(s), vocabulary: VocabularyId(v) })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (worker(), home()).prop_map(|(w, h)| Step::Assign(w, h)),
        9 => (worker(), path(), any::<prop::sample::Index>(), tier(), group(), prop::bool::weighted(0.8))
            .prop_map(|(worker, path, from, tier, group, content)| {
                let from = from.index(path.len() + 1).saturating_sub(1);
                Step::Store { worker, path, from, tier, group, content }
            }),
        5 => (worker(), path(), tier(), group())
            .prop_map(|(worker, path, tier, group)| Step::Remove { worker, path, tier, group }),
        1 => (worker(), prop::option::of(tier())).prop_map(|(w, t)| Step::Clear(w, t)),
        1 => worker().prop_map(Step::Forget),
        4 => ((0u32..2).prop_map(SpaceId), path())
            .prop_map(|(space, path)| Step::Lookup { space, path }),
    ]
}

fn crowding() -> impl Strategy<Value = Step> {
    let path = || {
        let below = prop::collection::vec(0u8..5, 0..4);
        (prop::bool::weighted(0.9), below)
            .prop_map(|(crowded, below)| [&[u8::from(!crowded)], &below[..]].concat())
    };
    let (group, gpu) = (Group(0), Tier::Gpu);
    let home = (1u32..3).prop_map(|v| Home { space: SpaceId(0), vocabulary: VocabularyId(v) });
    prop_oneof![
        20 => (worker(), path(), any::<prop::sample::Index>(), prop::bool::weighted(0.9)).prop_map(
            move |(worker, path, from, content)| {
                let from = from.index(path.len());
                Step::Store { worker, path, from, tier: gpu, group, content }
            }
        ),
        5 => (worker(), path())
            .prop_map(move |(worker, path)| Step::Remove { worker, path, tier: gpu, group }),
        1 => worker().prop_map(|w| Step::Clear(w, None)),
        1 => (3u32..5, home).prop_map(|(w, home)| Step::Assign(WorkerId(w), home)),
        4 => path().prop_map(|path| Step::Lookup { space: SpaceId(0), path }),
    ]
}

/// A worker brings names of a vocabulary of its own, of blocks that are there or of orphans, into one
/// that is shared.
fn joining() -> impl Strategy<Value = Vec<Step>> {
    let path = prop_oneof![4 => Just(vec![1]), 4 => Just(vec![1, 2]), 1 => Just(vec![1, 2, 1])];
    let change = (3u32..5, 10u32..120, path, any::<prop::sample::Index>(), 0u32..40);
    change.prop_map(|(worker, vocabulary, path, from, dice)| {
        let (worker, group, tier) = (WorkerId(worker), Group(0), Tier::Gpu);
        let home = |v| Home { space: SpaceId(0), vocabulary: VocabularyId(v) };
        let from = from.index(path.len());
        let lookup = Step::Lookup { space: SpaceId(0), path: path.clone() };
        let store = Step::Store { worker, path, from, tier, group, content: dice % 8 > 0 };
        let mut steps = vec![Step::Assign(worker, home(vocabulary)), store];
        steps.push(Step::Assign(worker, home(0)));
        steps.push(lookup);
        match dice {
            0 => steps.push(Step::Clear(WorkerId(0), None)),
            1 => steps.push(Step::Forget(worker)),
            _ if dice % 2 == 0 => steps.push(Step::Clear(worker, None)),
            _ => {}
        }
        steps
    })
}

fn history(first: Vec<Home>, steps: Vec<Step>) -> Vec<Step> {
    let assigns = first.into_iter().enumerate();
    let assigns = assigns.map(|(w, home)| Step::Assign(WorkerId(w as u32), home));
    assigns.chain(steps).collect()
}

/// The index that the image of another one gives, which gives the same image.
fn through_image(index: MemoryIndex, options: MemoryOptions) -> Result<MemoryIndex, String> {
    let image = Image::from_bytes(index.export().into_bytes());
    let again = MemoryIndex::import(options, &image).map_err(|e| e.to_string())?;
    let second = again.export();
    let third = MemoryIndex::import(options, &second).map_err(|e| e.to_string())?.export();
    match second == third {
        true => Ok(again),
        false => Err("an image changed on its way through an index".to_owned()),
    }
}

#[test]
fn stated_histories_go_on_after_an_image_as_if_nothing_had_happened() {
    let options = MemoryOptions::default();
    for seed in 0..64 {
        let steps = conformance::history(seed, 150);
        let rebuild = |index| through_image(index, options);
        let index = MemoryIndex::new(options);
        if let Err(difference) = conformance::run_rebuilding(index, 10, rebuild, options, &steps) {
            panic!("seed {seed}: {difference}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_history_gives_what_the_reference_gives(
        first in prop::collection::vec(home(), 5),
        steps in prop::collection::vec(step(), 1..60),
        unplaced_per_worker in prop_oneof![Just(2usize), Just(65_536)],
    ) {
        let history = history(first, steps);
        let options = MemoryOptions { unplaced_per_worker, ..MemoryOptions::default() };
        if let Err(difference) = conformance::run(&MemoryIndex::new(options), options, &history) {
            prop_assert!(false, "{}", difference);
        }
    }

    /// Paths that begin with content 0 have one name, which soon means more blocks than it may.
    #[test]
    fn any_history_of_crowded_names_gives_what_the_reference_gives(
        steps in prop::collection::vec(crowding(), 60..200),
        every in 20usize..200,
    ) {
        let homes = [0, 0, 0, 1, 2].map(|v| Home { space: SpaceId(0), vocabulary: VocabularyId(v) });
        let steps = history(homes.to_vec(), steps);
        let options = MemoryOptions::default();
        let rebuild = |index| through_image(index, options);
        let index = MemoryIndex::new(options);
        let run = conformance::run_rebuilding(index, every, rebuild, options, &steps);
        if let Err(difference) = run {
            prop_assert!(false, "{}", difference);
        }
    }

    #[test]
    fn any_history_goes_on_after_an_image_as_if_nothing_had_happened(
        first in prop::collection::vec(home(), 5),
        steps in prop::collection::vec(step(), 1..60),
        unplaced_per_worker in prop_oneof![Just(2usize), Just(65_536)],
        every in 1usize..60,
    ) {
        let steps = history(first, steps);
        let options = MemoryOptions { unplaced_per_worker, ..MemoryOptions::default() };
        let rebuild = |index| through_image(index, options);
        let index = MemoryIndex::new(options);
        let run = conformance::run_rebuilding(index, every, rebuild, options, &steps);
        if let Err(difference) = run {
            prop_assert!(false, "{}", difference);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Names move to few blocks, which soon have as many as they may.
    #[test]
    fn any_history_of_blocks_with_many_names_gives_what_the_reference_gives(
        steps in prop::collection::vec(joining(), 150..300),
        every in 20usize..1_000,
    ) {
        let homes = [0, 0, 1, 2, 3].map(|v| Home { space: SpaceId(0), vocabulary: VocabularyId(v) });
        let first = [1, 2].map(|last| Step::Store {
            worker: WorkerId(0),
            path: vec![1, 2, 1][..=last].to_vec(),
            from: 0,
            tier: Tier::Gpu,
            group: Group(0),
            content: true,
        });
        let steps = history(homes.to_vec(), [first.to_vec(), steps.concat()].concat());
        let options = MemoryOptions::default();
        let rebuild = |index| through_image(index, options);
        let index = MemoryIndex::new(options);
        let run = conformance::run_rebuilding(index, every, rebuild, options, &steps);
        if let Err(difference) = run {
            prop_assert!(false, "{}", difference);
        }
    }
}

/// In vocabulary 1 the block `[0]` has the name that `[1]` has in vocabulary 2.
#[test]
fn names_that_move_mean_what_is_there_before_anything_is_placed_below_it() {
    let home = |v| Home { space: SpaceId(0), vocabulary: VocabularyId(v) };
    let (tier, group) = (Tier::Gpu, Group(0));
    let store = |w, path: &[u8], from| {
        let (worker, path) = (WorkerId(w), path.to_vec());
        Step::Store { worker, path, from, tier, group, content: true }
    };
    let steps = vec![
        store(3, &[0, 4], 0),
        store(4, &[1], 0),
        store(0, &[1], 0),
        Step::Assign(WorkerId(3), home(2)),
        Step::Clear(WorkerId(4), None),
        Step::Assign(WorkerId(4), home(1)),
        store(4, &[0, 4], 1),
        Step::Assign(WorkerId(3), home(1)),
    ];
    let steps = history([0, 0, 0, 1, 2].map(home).to_vec(), steps);
    let options = MemoryOptions::default();
    conformance::run(&MemoryIndex::new(options), options, &steps).unwrap();
}
