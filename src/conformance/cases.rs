//! Histories that state one rule of the contract each.

use super::Step;
use crate::block::{Group, SpaceId, Tier, VocabularyId, WorkerId};
use crate::index::{Home, MOST_GROUPS};

const A: WorkerId = WorkerId(0);
const B: WorkerId = WorkerId(1);

/// Every case with the rule it is about.
pub(super) fn all() -> Vec<(&'static str, Vec<Step>)> {
    let cases: Vec<(&'static str, Vec<Step>)> = vec![
        ("a stored chain matches to its end", vec![store(A, &[1, 2, 3], 0), lookup(&[1, 2, 3, 1])]),
        (
            "a second copy keeps a block until it is removed too",
            vec![
                store(A, &[1, 2], 0),
                store(A, &[1, 2], 1),
                remove(A, &[1, 2]),
                lookup(&[1, 2]),
                remove(A, &[1, 2]),
                lookup(&[1, 2]),
            ],
        ),
        (
            "a hole ends the match and storing it again restores the rest",
            vec![
                store(A, &[1, 2, 1, 2], 0),
                remove(A, &[1, 2]),
                lookup(&[1, 2, 1, 2]),
                store(A, &[1, 2], 1),
                lookup(&[1, 2, 1, 2]),
            ],
        ),
        (
            "the block before a hole can be gone and the chain still heals",
            vec![
                store(A, &[1, 2, 1], 0),
                remove(A, &[1]),
                lookup(&[1, 2, 1]),
                store(A, &[1], 0),
                lookup(&[1, 2, 1]),
            ],
        ),
        (
            "an orphan never matches as if it started a prompt and attaches when its parent comes",
            vec![
                store(A, &[1, 2, 1], 1),
                lookup(&[2, 1]),
                lookup(&[1, 2, 1]),
                store(A, &[1], 0),
                lookup(&[1, 2, 1]),
            ],
        ),
        (
            "orphans below orphans attach together",
            vec![
                store(A, &[1, 2, 1, 2], 3),
                store(A, &[1, 2, 1], 2),
                store(A, &[1, 2], 1),
                lookup(&[1, 2, 1, 2]),
                store(A, &[1], 0),
                lookup(&[1, 2, 1, 2]),
            ],
        ),
        (
            "a worker of another vocabulary does not place an orphan",
            vec![store(A, &[1, 2], 1), store(WorkerId(2), &[1], 0), lookup(&[1, 2])],
        ),
        (
            "a worker of the same vocabulary does",
            vec![store(A, &[1, 2], 1), store(B, &[1], 0), lookup(&[1, 2])],
        ),
        (
            "a block known by name only matches under the second of its names as well",
            vec![
                assign(WorkerId(2), 0),
                named(A, &[1, 2], Tier::Cpu),
                named(WorkerId(2), &[1, 2, 1], Tier::Cpu),
                lookup(&[1, 2, 1]),
            ],
        ),
        (
            "a block known by name only matches by name, and by content once someone tells it",
            vec![
                named(A, &[1, 2], Tier::Cpu),
                lookup(&[1, 2]),
                store(B, &[1, 2], 0),
                lookup(&[1, 2]),
                remove(B, &[1, 2]),
                lookup(&[1, 2]),
            ],
        ),
        (
            "tiers are counted apart and add up from the fastest",
            vec![
                store(A, &[1, 2, 1], 0),
                named(A, &[1, 2, 1, 2], Tier::Cpu),
                remove(A, &[1, 2]),
                lookup(&[1, 2, 1, 2]),
                Step::Clear(A, Some(Tier::Gpu)),
                lookup(&[1, 2, 1, 2]),
            ],
        ),
        (
            "an unknown medium never counts",
            vec![named(A, &[1], Tier::Unknown), lookup(&[1]), store(A, &[1], 0), lookup(&[1])],
        ),
        (
            "removing what is not there changes nothing",
            vec![remove(A, &[1]), store(B, &[1], 0), remove(A, &[1]), lookup(&[1])],
        ),
        (
            "a group's removal leaves the other group's copy",
            vec![
                store(A, &[1], 0),
                Step::Store {
                    worker: A,
                    path: vec![1],
                    from: 0,
                    tier: Tier::Gpu,
                    group: Group(1),
                    content: true,
                },
                remove(A, &[1]),
                lookup(&[1]),
            ],
        ),
        (
            "clearing one worker leaves the others",
            vec![
                store(A, &[1, 2], 0),
                store(B, &[1, 2], 0),
                Step::Clear(A, None),
                lookup(&[1, 2]),
                store(A, &[1, 2], 1),
                lookup(&[1, 2]),
            ],
        ),
        (
            "blocks of one name are told apart by who holds them",
            vec![
                store(A, &[0, 1], 0),
                store(A, &[0, 2], 0),
                remove(A, &[0, 1]),
                lookup(&[0, 1]),
                lookup(&[0, 2]),
            ],
        ),
        (
            "a name that means sixteen blocks means no seventeenth until one of them goes",
            (1..20)
                .map(|content| store(A, &[0, content], 0))
                .chain([lookup(&[0, 15]), lookup(&[0, 16]), store(B, &[0, 16, 1], 0)])
                .chain([store(A, &[0, 2, 3, 4], 3), lookup(&[0, 2, 3, 4])])
                .chain((0..20).map(|_| remove(A, &[0, 1])))
                .chain([lookup(&[0, 15]), store(A, &[0, 16, 1], 0), lookup(&[0, 16, 1])])
                .chain([Step::Forget(B), store(A, &[0, 17, 1], 0), lookup(&[0, 17, 1])])
                .collect(),
        ),
        (
            "names move with a worker that joins another vocabulary",
            vec![
                assign(WorkerId(4), 5),
                store(WorkerId(4), &[1, 2], 0),
                store(WorkerId(4), &[2, 1], 1),
                assign(WorkerId(4), 0),
                lookup(&[1, 2]),
                store(A, &[2], 0),
                lookup(&[2, 1]),
            ],
        ),
        (
            "names go when the last worker of their vocabulary leaves, and not before",
            vec![
                store(A, &[1, 2], 0),
                assign(WorkerId(4), 5),
                store(WorkerId(4), &[1, 2], 0),
                Step::Clear(WorkerId(4), None),
                named(WorkerId(4), &[1], Tier::Cpu),
                lookup(&[1, 2]),
                Step::Forget(WorkerId(4)),
                assign(WorkerId(4), 5),
                named(WorkerId(4), &[1, 2], Tier::Cpu),
                store(WorkerId(4), &[1, 2, 1], 2),
                lookup(&[1, 2, 1]),
                assign(WorkerId(4), 6),
                assign(WorkerId(5), 6),
                Step::Clear(WorkerId(4), None),
                assign(WorkerId(4), 7),
                store(WorkerId(5), &[1], 0),
                Step::Clear(WorkerId(5), None),
                assign(WorkerId(5), 7),
                assign(WorkerId(4), 6),
                store(WorkerId(4), &[1, 2], 1),
                lookup(&[1, 2]),
            ],
        ),
        (
            "a block gets no more than its names, whichever way they come",
            (10..90)
                .flat_map(|v| {
                    let moves = [assign(B, v), store(B, &[1, 2], 0), assign(B, 0), lookup(&[1, 2])];
                    [vec![Step::Clear(B, None)], moves.to_vec()].concat()
                })
                .chain([store(A, &[1, 2], 0), lookup(&[1, 2]), Step::Clear(B, None)])
                .chain([store(B, &[1, 2], 0), store(B, &[1, 2], 1), lookup(&[1, 2])])
                .collect(),
        ),
        (
            "a store in one group too many is refused whole until another group is empty",
            (0..MOST)
                .map(|group| grouped(A, group))
                .chain([grouped(A, MOST), grouped(B, MOST), lookup(&[1, 2])])
                .chain([ungroup(A, MOST), lookup(&[1, 2]), ungroup(A, 3), grouped(A, MOST)])
                .chain([lookup(&[1, 2]), grouped(A, MOST + 1), grouped(A, 3), ungroup(A, 5)])
                .chain([waiting(A, MOST + 1), grouped(A, 5), lookup(&[1, 2])])
                .chain([Step::Clear(A, None), grouped(A, MOST + 2), lookup(&[1, 2])])
                .collect(),
        ),
        (
            "a forgotten worker is gone and may come back",
            vec![
                store(A, &[1], 0),
                Step::Forget(A),
                lookup(&[1]),
                assign(A, 0),
                lookup(&[1]),
                store(A, &[1], 0),
                lookup(&[1]),
            ],
        ),
        ("an empty index answers with nothing", vec![lookup(&[1]), lookup(&[])]),
    ];
    let homes = [(0, 0), (1, 0), (2, 1)].map(|(worker, v)| assign(WorkerId(worker), v));
    cases.into_iter().map(|(name, steps)| (name, [&homes[..], &steps].concat())).collect()
}

fn assign(worker: WorkerId, vocabulary: u32) -> Step {
    Step::Assign(worker, Home { space: SpaceId(0), vocabulary: VocabularyId(vocabulary) })
}

fn store(worker: WorkerId, path: &[u8], from: usize) -> Step {
    let (tier, group) = (Tier::Gpu, Group(0));
    Step::Store { worker, path: path.to_vec(), from, tier, group, content: true }
}

/// The last block of a path, by name only.
fn named(worker: WorkerId, path: &[u8], tier: Tier) -> Step {
    let (from, group) = (path.len() - 1, Group(0));
    Step::Store { worker, path: path.to_vec(), from, tier, group, content: false }
}

fn remove(worker: WorkerId, path: &[u8]) -> Step {
    Step::Remove { worker, path: path.to_vec(), tier: Tier::Gpu, group: Group(0) }
}

/// More groups than a worker may hold blocks of begin here.
const MOST: u32 = MOST_GROUPS as u32;

fn grouped(worker: WorkerId, group: u32) -> Step {
    let (tier, group, path) = (Tier::Gpu, Group(group), vec![1]);
    Step::Store { worker, path, from: 0, tier, group, content: true }
}

/// An orphan.
fn waiting(worker: WorkerId, group: u32) -> Step {
    let (tier, group, path) = (Tier::Gpu, Group(group), vec![2, 2, 1]);
    Step::Store { worker, path, from: 2, tier, group, content: true }
}

/// The block of [`grouped`].
fn ungroup(worker: WorkerId, group: u32) -> Step {
    Step::Remove { worker, path: vec![1], tier: Tier::Gpu, group: Group(group) }
}

fn lookup(path: &[u8]) -> Step {
    Step::Lookup { space: SpaceId(0), path: path.to_vec() }
}
