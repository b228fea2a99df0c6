//! The index on a real server keeps the contract of an index.
#![cfg(all(feature = "redis", feature = "conformance"))]

mod redis_support;
mod store_support;

use std::sync::atomic::{AtomicU32, Ordering};

use kvscout::block::{Group, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::conformance::{self, Step};
use kvscout::index::redis::{RedisIndex, RedisOptions};
use kvscout::index::{Home, MemoryOptions};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};
use redis_support::Server;
use store_support::connected;

/// One, as on one server; or some, as in a cluster.
fn groups() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1), Just(3)]
}

fn fresh(server: &Server, options: RedisOptions) -> RedisIndex {
    static NAMESPACES: AtomicU32 = AtomicU32::new(0);
    let namespace = format!("n{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
    let options = RedisOptions { namespace, ..options };
    connected(server, options)
}

#[test]
fn the_redis_index_keeps_the_contract() {
    let server = Server::start();
    let _entered = server.enter();
    conformance::check(|| fresh(&server, RedisOptions::default()));
}

fn worker() -> impl Strategy<Value = WorkerId> {
    (0u32..5).prop_map(WorkerId)
}

fn path() -> impl Strategy<Value = Vec<u8>> + Clone {
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

fn home() -> impl Strategy<Value = Home> {
    (0u32..2, 0u32..3).prop_map(|(s, v)| Home { space: SpaceId(s), vocabulary: VocabularyId(v) })
}

/// Paths that begin with content 0 have one name, which soon means more blocks than it may.
fn step(path: impl Strategy<Value = Vec<u8>> + Clone) -> impl Strategy<Value = Step> {
    let group = || (0u32..2).prop_map(Group);
    let from = any::<prop::sample::Index>();
    prop_oneof![
        2 => (worker(), home()).prop_map(|(w, h)| Step::Assign(w, h)),
        12 => (worker(), path.clone(), from, tier(), group(), prop::bool::weighted(0.8))
            .prop_map(|(worker, path, from, tier, group, content)| {
                let from = from.index(path.len() + 1).saturating_sub(1);
                Step::Store { worker, path, from, tier, group, content }
            }),
        5 => (worker(), path.clone(), tier(), group())
            .prop_map(|(worker, path, tier, group)| Step::Remove { worker, path, tier, group }),
        1 => (worker(), prop::option::of(tier())).prop_map(|(w, t)| Step::Clear(w, t)),
        1 => worker().prop_map(Step::Forget),
        4 => ((0u32..2).prop_map(SpaceId), path)
            .prop_map(|(space, path)| Step::Lookup { space, path }),
    ]
}

fn crowded() -> impl Strategy<Value = Vec<u8>> + Clone {
    let below = prop::collection::vec(0u8..5, 0..4);
    (prop::bool::weighted(0.9), below)
        .prop_map(|(crowded, below)| [&[u8::from(!crowded)], &below[..]].concat())
}

fn holds(
    server: &Server,
    first: Vec<Home>,
    steps: Vec<Step>,
    unplaced_per_worker: usize,
    groups: u32,
) -> TestCaseResult {
    let assigns = first.into_iter().enumerate();
    let assigns = assigns.map(|(w, home)| Step::Assign(WorkerId(w as u32), home));
    let steps: Vec<Step> = assigns.chain(steps).collect();
    let options =
        RedisOptions { groups: Some(groups), unplaced_per_worker, ..RedisOptions::default() };
    let limits = MemoryOptions { unplaced_per_worker, ..MemoryOptions::default() };
    let run = conformance::run(&fresh(server, options), limits, &steps);
    run.map_err(|difference| TestCaseError::fail(difference.to_string()))
}

/// Not the macro: the server ends with the test.
fn runner() -> TestRunner {
    TestRunner::new(ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(48) })
}

#[test]
fn any_history_gives_what_the_reference_gives() {
    let server = Server::start();
    let _entered = server.enter();
    let unplaced = prop_oneof![Just(2usize), Just(65_536)];
    let homes = prop::collection::vec(home(), 5);
    let histories = (homes, prop::collection::vec(step(path()), 1..50), unplaced, groups());
    let run = |(first, steps, unplaced, groups)| holds(&server, first, steps, unplaced, groups);
    runner().run(&histories, run).unwrap();
}

#[test]
fn any_history_of_crowded_names_gives_what_the_reference_gives() {
    let server = Server::start();
    let _entered = server.enter();
    let homes = [0, 0, 0, 1, 2].map(|v| Home { space: SpaceId(0), vocabulary: VocabularyId(v) });
    let histories = (prop::collection::vec(step(crowded()), 40..120), groups());
    let run = |(steps, groups)| holds(&server, homes.to_vec(), steps, 65_536, groups);
    runner().run(&histories, run).unwrap();
}
