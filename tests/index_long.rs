//! Long chains: segments, sums, runs that reach their limit, tables that split. The reference is
//! asked at the end and in between.
#![cfg(feature = "conformance")]

use kvscout::block::{Group, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::conformance::{self, Step};
use kvscout::index::{Home, MemoryIndex, MemoryOptions};
use proptest::prelude::*;

/// A path along one of three trunks that leaves it at some block, so that paths share long
/// prefixes and part inside of segments and at their edges.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let leaves = prop_oneof![Just(15usize), Just(16), Just(17), Just(32), 1usize..70];
    (1u8..3, leaves, 0usize..40, 3u8..5).prop_map(|(trunk, trunk_len, branch_len, branch)| {
        let trunk = std::iter::repeat_n(trunk, trunk_len);
        trunk.chain(std::iter::repeat_n(branch, branch_len)).collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let worker = || (0u32..4).prop_map(WorkerId);
    let tier = || prop_oneof![5 => Just(Tier::Gpu), 1 => Just(Tier::Cpu)];
    let group = || (0u32..5).prop_map(|g| Group(u32::from(g == 0)));
    let cut = any::<prop::sample::Index>;
    prop_oneof![
        6 => (worker(), path(), cut(), any::<bool>(), tier(), group()).prop_map(
            |(worker, path, from, whole, tier, group)| {
                let from = if whole { 0 } else { from.index(path.len()) };
                Step::Store { worker, path, from, tier, group, content: true }
            }
        ),
        8 => (worker(), path(), any::<bool>(), cut(), tier(), group()).prop_map(
            |(worker, mut path, end, to, tier, group)| {
                if !end {
                    path.truncate(to.index(path.len()) + 1);
                }
                Step::Remove { worker, path, tier, group }
            }
        ),
        1 => (worker(), prop::option::weighted(0.5, tier())).prop_map(|(w, t)| Step::Clear(w, t)),
        1 => worker().prop_map(Step::Forget),
        1 => (worker(), 0u32..2).prop_map(|(w, v)| Step::Assign(w, home(w, v))),
        4 => path().prop_map(|path| Step::Lookup { space: SpaceId(0), path }),
    ]
}

fn home(worker: WorkerId, vocabulary: u32) -> Home {
    let vocabulary = if worker.0 < 2 { 0 } else { 1 + vocabulary };
    Home { space: SpaceId(0), vocabulary: VocabularyId(vocabulary) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn long_chains_give_what_the_reference_gives(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut history: Vec<Step> =
            (0..4).map(|w| Step::Assign(WorkerId(w), home(WorkerId(w), w % 2))).collect();
        history.extend(steps);
        let options = MemoryOptions::default();
        if let Err(difference) = conformance::run(&MemoryIndex::new(options), options, &history) {
            prop_assert!(false, "{}", difference);
        }
    }
}

/// Evicting a chain from its end, block by block, through every edge of a segment and of a list of
/// segments.
#[test]
fn a_chain_can_grow_and_shrink_block_by_block() {
    let worker = WorkerId(0);
    let mut steps = vec![Step::Assign(worker, home(worker, 0))];
    let path: Vec<u8> = (0..130u8).map(|i| 1 + i % 2).collect();
    let (tier, group) = (Tier::Gpu, Group(0));
    for n in 1..=path.len() {
        let path = path[..n].to_vec();
        steps.push(Step::Store { worker, path, from: n - 1, tier, group, content: true });
    }
    steps.push(Step::Lookup { space: SpaceId(0), path: path.clone() });
    for n in (1..=path.len()).rev() {
        steps.push(Step::Remove { worker, path: path[..n].to_vec(), tier, group });
        if n % 13 == 0 {
            steps.push(Step::Lookup { space: SpaceId(0), path: path.clone() });
        }
    }
    let options = MemoryOptions::default();
    conformance::run(&MemoryIndex::new(options), options, &steps).unwrap();
}
