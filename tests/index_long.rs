//! Long chains: segments, sums, runs that reach their limit, tables that split. The reference is
//! asked at the end and in between.
//!
//! A run has at most 4,096 blocks and a longer chain goes on in a child. What happens there is tried
//! by histories of their own, in which most steps end near that edge.
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

/// The longest run.
const RUN: usize = 4096;

/// The first `len` blocks of a chain whose contents repeat with no short period; another one from
/// `leaves` on.
fn long(len: usize, leaves: usize) -> Vec<u8> {
    let content = |at: usize| 1 + (at * 7 + at / 97) as u8 % 200;
    (0..len).map(|at| if at < leaves { content(at) } else { content(at) + 50 }).collect()
}

const GPU: Tier = Tier::Gpu;

struct Long {
    steps: Vec<Step>,
}

impl Long {
    fn new() -> Long {
        let homes = (0..4).map(|w| Step::Assign(WorkerId(w), home(WorkerId(w), w % 2)));
        Long { steps: homes.collect() }
    }

    fn store(&mut self, worker: u32, path: &[u8], from: usize, tier: Tier) {
        let (worker, path, group) = (WorkerId(worker), path.to_vec(), Group(0));
        self.steps.push(Step::Store { worker, path, from, tier, group, content: true });
    }

    /// One block after the other, from the last one on, as engines evict.
    fn remove(&mut self, worker: u32, path: &[u8], blocks: std::ops::Range<usize>, tier: Tier) {
        for at in blocks.rev() {
            let (worker, path, group) = (WorkerId(worker), path[..=at].to_vec(), Group(0));
            self.steps.push(Step::Remove { worker, path, tier, group });
        }
    }

    fn clear(&mut self, worker: u32, tier: Option<Tier>) {
        self.steps.push(Step::Clear(WorkerId(worker), tier));
    }

    fn ask(&mut self, path: &[u8]) {
        self.steps.push(Step::Lookup { space: SpaceId(0), path: path.to_vec() });
    }

    #[track_caller]
    fn check(&self, about: &str) {
        let options = MemoryOptions::default();
        let run = conformance::run(&MemoryIndex::new(options), options, &self.steps);
        if let Err(difference) = run {
            let step = format!("{:?}", self.steps.get(difference.step));
            panic!("{about}: {difference:.400} after {step:.200}");
        }
    }
}

#[test]
fn a_chain_can_shrink_and_grow_through_the_end_of_its_run() {
    let chain = long(RUN + 120, usize::MAX);
    let mut history = Long::new();
    history.store(0, &chain, 0, GPU);
    history.store(1, &chain[..RUN], 0, GPU);
    history.store(2, &chain[..RUN + 1], 0, GPU);
    history.ask(&chain);
    history.remove(0, &chain, RUN - 40..RUN + 120, GPU);
    history.ask(&chain);
    // Only where the run ends, with what lies behind it missing or not.
    history.remove(2, &chain, RUN - 1..RUN + 1, GPU);
    history.store(1, &chain[..RUN + 60], RUN, GPU);
    history.ask(&chain);
    history.remove(1, &chain, RUN - 1..RUN + 1, GPU);
    history.ask(&chain);
    history.store(0, &chain, RUN - 40, GPU);
    history.store(1, &chain[..RUN + 1], RUN - 1, GPU);
    history.ask(&chain);
    for worker in 0..3 {
        history.remove(worker, &chain, RUN - 50..RUN + 120, GPU);
        history.ask(&chain);
    }
    history.store(3, &chain, 0, GPU);
    history.ask(&chain);
    history.check("through the edge");
}

#[test]
fn holes_and_clears_around_the_end_of_a_run_leave_what_was_held() {
    let chain = long(2 * RUN + 60, usize::MAX);
    let other = long(RUN + 90, RUN - 3);
    let mut history = Long::new();
    for (worker, end) in [(0, 2 * RUN + 60), (1, RUN + 20), (2, 2 * RUN), (3, RUN)] {
        history.store(worker, &chain[..end], 0, GPU);
    }
    history.store(1, &chain[..RUN + 20], 0, Tier::Cpu);
    history.store(2, &other, 0, GPU);
    history.ask(&chain);
    // A hole that ends where the run ends, one that begins there, one over the edge.
    history.remove(0, &chain, RUN - 5..RUN, GPU);
    history.remove(1, &chain, RUN..RUN + 5, GPU);
    history.remove(2, &chain, RUN - 2..RUN + 2, GPU);
    history.remove(2, &chain, 2 * RUN - 2..2 * RUN, GPU);
    [&chain, &other].into_iter().for_each(|path| history.ask(path));
    // The other half of the chain is held behind a hole only.
    history.clear(3, None);
    history.clear(1, Some(GPU));
    history.ask(&chain);
    history.store(0, &chain[..RUN + 1], RUN - 5, GPU);
    history.store(2, &chain[..RUN + 2], RUN - 2, GPU);
    history.ask(&chain);
    history.clear(0, None);
    [&chain, &other].into_iter().for_each(|path| history.ask(path));
    history.clear(2, None);
    history.ask(&chain);
    history.store(3, &other, 0, Tier::Cpu);
    history.store(0, &chain, 0, GPU);
    [&chain, &other].into_iter().for_each(|path| history.ask(path));
    history.check("holes and clears");
}

/// SplitMix64's output function.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn any_history_around_the_end_of_a_run_gives_what_the_reference_gives() {
    for seed in 0..SEEDS {
        let mut turn = 0;
        let mut below = |bound: usize| {
            turn += 1;
            mix(mix(seed) ^ turn) as usize % bound
        };
        let mut history = Long::new();
        // Chains that are one up to some block around the first or the second edge.
        let trunk = if seed % 4 == 3 { 2 * RUN } else { RUN };
        let near = |n: usize, below: &mut dyn FnMut(usize) -> usize| n - 40 + below(80);
        let paths: Vec<Vec<u8>> = (0..3)
            .map(|n| {
                let leaves = if n == 0 { usize::MAX } else { near(trunk, &mut below) };
                long(trunk + 40 + below(80), leaves)
            })
            .collect();
        // As far as each worker surely holds something of each path: what a store may go on from.
        let mut held = [[0; 3]; 4];
        for step in 0..28 {
            let worker = below(4) as u32;
            let which = below(paths.len());
            let path = &paths[which];
            let tier = if below(4) == 0 { Tier::Cpu } else { GPU };
            let to = near(trunk, &mut below).max(1);
            match below(14) {
                _ if step < 4 => {
                    history.store(step, path, 0, GPU);
                    held[step as usize][which] = path.len();
                }
                0..=1 => {
                    history.store(worker, &path[..to], 0, tier);
                    let held = &mut held[worker as usize][which];
                    *held = to.max(*held);
                }
                2..=5 => {
                    // An orphan is not what this is about, and slow in the reference.
                    let held = &mut held[worker as usize][which];
                    let from = to.min(*held);
                    history.store(worker, path, from, tier);
                    *held = path.len();
                }
                6..=10 => {
                    let end = if below(3) == 0 { path.len() } else { to };
                    let from = to - 1 - below(60).min(below(60));
                    history.remove(worker, path, from..end, tier);
                    held[worker as usize].iter_mut().for_each(|held| *held = from.min(*held));
                }
                11 => history.clear(worker, Some(tier).filter(|_| below(2) == 0)),
                12 => history.steps.push(Step::Forget(WorkerId(worker))),
                _ if seed % 2 == 0 => history.ask(path),
                _ => {}
            }
            if let Some(Step::Forget(_) | Step::Clear(..)) = history.steps.last() {
                held[worker as usize] = [0; 3];
            }
            if let Some(Step::Forget(worker)) = history.steps.last() {
                history.steps.push(Step::Assign(*worker, home(*worker, below(2) as u32)));
            }
        }
        history.ask(&paths[seed as usize % 3]);
        history.check(&format!("seed {seed}"));
    }
}

/// A reference of this length is slow.
const SEEDS: u64 = 4;
