//! A stretch that is new: its blocks, the meaning of their names and what it hangs on in one round trip, where one
//! server has all slots; and the same store as by steps, where it has not.
#![cfg(feature = "redis")]

mod redis_support;
mod store_support;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use kvscout::block::{Digest, Group, Name, Tier, WorkerId};
use kvscout::index::redis::{Once, RedisIndex, RedisOptions, Turn};
use kvscout::index::{Applied, Block, Change, Index as _, MOST_MEANINGS, MOST_NAMES, Parent};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis_support::{ClusterServers, Server};
use store_support::*;

/// A client by which A has a slot, in a path of its own.
fn scene(server: &Server, options: RedisOptions) -> RedisIndex {
    let index = client(server, options);
    assign(server, &index, A);
    store_all(server, &index, A, &blocks(5001..5002), Parent::Root);
    index
}

fn store_all(
    server: &Server,
    index: &RedisIndex,
    worker: WorkerId,
    blocks: &[Block],
    parent: Parent,
) -> Applied {
    server.block_on(index.apply(worker, &[stored(blocks, parent)])).unwrap()
}

/// A stores this part of the path, which begins with block 1: name 0 stands for a block without one. How often the store
/// was called.
fn calls(server: &Server, index: &RedisIndex, range: Range<u64>) -> u64 {
    let before = index.counters().calls;
    let parent = if range.start == 1 { Parent::Root } else { parent(&range) };
    let path = blocks(range);
    assert_eq!(store_all(server, index, A, &path, parent).stored, path.len() as u64);
    index.counters().calls - before
}

/// A client that remembers nothing removes this part of a worker's path.
fn removes(server: &Server, worker: WorkerId, range: Range<u64>) {
    let other = client(server, options());
    assign(server, &other, worker);
    let expected = range.end - range.start;
    assert_eq!(remove(server, &other, worker, range).removed, expected);
}

#[test]
fn a_new_stretch_takes_one_round_trip_on_one_server_wherever_it_begins() {
    let server = Server::start();
    let index = scene(&server, options());
    // A segment; the next one and more; the rest of that and more; a run's end and two more segments.
    for range in [1..65, 65..130, 130..200, 200..300] {
        assert_eq!(calls(&server, &index, range.clone()), 1, "{range:?}");
    }
    assert_eq!(leading(&server, &index, &blocks(1..400)), [(1, 299)]);
    removes(&server, A, 1..300);
    assert_eq!(leading(&server, &index, &blocks(1..400)), []);
    assert_eq!(keys(&server, "*:r:*").len(), 1, "the other path");
}

#[test]
fn what_continues_a_run_that_parted_from_another_is_found_by_its_names() {
    let server = Server::start();
    let index = scene(&server, options());
    calls(&server, &index, 1..65);
    let branch = [blocks(1..11), blocks(2011..2021)].concat();
    assign(&server, &index, B);
    store_all(&server, &index, B, &branch, Parent::Root);
    let before = index.counters().calls;
    store_all(&server, &index, B, &blocks(2021..2041), parent(&(2021..2041)));
    assert_eq!(index.counters().calls - before, 1);
    removes(&server, B, 2021..2041);
    assert_eq!(leading(&server, &index, &branch), [(1, 10), (2, 20)]);
}

#[test]
fn a_batch_that_came_in_one_round_trip_adds_nothing_when_it_is_repeated() {
    let server = Server::start();
    let index = scene(&server, RedisOptions { owner: Some("one".to_owned()), ..options() });
    let path = blocks(1..150);
    let once = || {
        let change = [stored(&path, Parent::Root)];
        server.block_on(index.apply_once(A, Turn { life: 1, seq: 7 }, &change)).unwrap()
    };
    assert!(matches!(once(), Once::Applied(_)));
    // As if it had died before it said that batch 7 is done.
    for record in keys(&server, "*:w:*") {
        redis::cmd("HSET").arg(&record).arg("seq").arg(6).exec(&mut server.raw()).unwrap();
    }
    assert!(matches!(once(), Once::Applied(_)));
    removes(&server, A, 1..150);
    assert_eq!(keys(&server, "*:r:*").len(), 1, "one copy of each, and the other path");
    assert_eq!(hash(&server, &keys(&server, "*:v:*")[0]).len(), 1, "the other path's");
}

/// The client remembers the run, so that nobody has read it before it is stored below.
#[test]
fn below_a_run_with_a_damaged_head_a_segment_is_stored_with_its_names_all_the_same() {
    let server = Server::start();
    for damage in ["", "x"] {
        let index = scene(&server, options());
        calls(&server, &index, 1..65);
        let runs = keys(&server, "*:r:*");
        let head = |run: &String| hash(&server, run)[&b"h"[..]].clone();
        let heads: Vec<Vec<u8>> = runs.iter().map(head).collect();
        let write = |run: &String, head: &[u8]| {
            redis::cmd("HSET").arg(run).arg("h").arg(head).exec(&mut server.raw()).unwrap();
        };
        runs.iter().for_each(|run| write(run, damage.as_bytes()));
        calls(&server, &index, 65..129);
        runs.iter().zip(&heads).for_each(|(run, head)| write(run, head));
        assert_eq!(leading(&server, &index, &blocks(1..129)), [(1, 128)]);
        removes(&server, A, 65..129);
        removes(&server, A, 1..65);
        assert_eq!(keys(&server, "*:r:*").len(), 1, "the other path");
    }
}

/// The first names, or some behind others that mean nothing yet and are bound before that is known.
#[test]
fn what_its_names_mean_already_they_mean_still() {
    let elsewhere = |block: Block| Block { digest: Some(Digest(block.name.0 ^ 7)), ..block };
    for taken in [1..41, 40..65, 65..66] {
        let server = Server::start();
        let (index, other) = (scene(&server, options()), client(&server, options()));
        let path: Vec<Block> = blocks(taken.clone()).into_iter().map(elsewhere).collect();
        assign(&server, &other, B);
        store_all(&server, &other, B, &path, Parent::Root);
        assert_eq!(calls(&server, &index, 1..70), 2, "{taken:?} mean something else");
        removes(&server, A, 1..70);
        assert_eq!(leading(&server, &index, &path), [(2, path.len() as u32)]);
        removes(&server, B, taken);
        assert_eq!(leading(&server, &index, &path), []);
        assert_eq!(keys(&server, "*:v:*").len(), 1, "the other path's");
        assert_eq!(hash(&server, &keys(&server, "*:v:*")[0]).len(), 1, "the other path's");
    }
}

/// It is bound before that is known of another one, and the client remembers another block of that name.
#[test]
fn a_name_that_meant_a_block_which_is_gone_is_a_parent_where_it_is_now() {
    let server = Server::start();
    let (index, other) = (scene(&server, options()), client(&server, options()));
    assign(&server, &other, B);
    let named = |name: u64, digest: u64| Block { name: Name(name), digest: Some(Digest(digest)) };
    store_all(&server, &index, A, &[named(1001, 5)], Parent::Root);
    assign(&server, &other, A);
    let gone = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &[Name(1001)] };
    assert_eq!(server.block_on(other.apply(A, &[gone])).unwrap().removed, 1);
    store_all(&server, &other, B, &[named(1104, 8)], Parent::Root);
    let name = |at| if at == 40 { 1104 } else { 1001 + at };
    let path: Vec<Block> = (0..64).map(|at| named(name(at), 100 + at)).collect();
    store_all(&server, &index, A, &path, Parent::Root);
    store_all(&server, &other, B, &[named(3000, 5)], Parent::Root);
    store_all(&server, &index, A, &[named(4000, 9)], Parent::Block(Name(1001)));
    assert_eq!(leading(&server, &index, &[named(1001, 100), named(4000, 9)]), [(1, 2)]);
}

#[test]
fn who_waits_for_one_of_its_names_is_placed() {
    let server = Server::start();
    let index = scene(&server, options());
    let applied = store_all(&server, &index, A, &blocks(41..51), parent(&(41..51)));
    assert_eq!((applied.stored, applied.unplaced), (10, 10));
    assert!(calls(&server, &index, 1..41) > 1);
    assert_eq!(leading(&server, &index, &blocks(1..65)), [(1, 50)]);
    assert_eq!(server.block_on(index.stats()).unwrap().unplaced, 0);
}

/// A block without a known parent waits for its own name, and the others for that of their parent: two keys.
#[test]
fn what_waits_by_one_key_alone_is_seen_as_well() {
    let server = Server::start();
    let index = scene(&server, options());
    let waits = |kind: &str| keys(&server, &format!("*:{kind}:*")).len();
    assert_eq!(store_all(&server, &index, A, &blocks(41..42), Parent::Unknown).unplaced, 1);
    assert_eq!((waits("u"), waits("c")), (1, 0));
    assert!(calls(&server, &index, 1..65) > 1);
    assert_eq!(server.block_on(index.stats()).unwrap().unplaced, 0);
    removes(&server, A, 41..42);
    assert_eq!(leading(&server, &index, &blocks(1..65)), [(1, 64)], "a second copy of block 41");

    store_all(&server, &index, A, &blocks(2041..2051), parent(&(2041..2051)));
    for key in keys(&server, "*:u:*") {
        let _: () = redis::cmd("DEL").arg(key).query(&mut server.raw()).unwrap();
    }
    assert_eq!((waits("u"), waits("c")), (0, 1));
    let before = index.counters().calls;
    store_all(&server, &index, A, &blocks(2001..2041), Parent::Root);
    assert!(index.counters().calls - before > 1);
    assert_eq!(leading(&server, &index, &blocks(2001..2065)), [(1, 40)]);
}

#[test]
fn who_comes_second_below_a_block_is_known_there_as_well() {
    let server = Server::start();
    let index = scene(&server, options());
    calls(&server, &index, 1..65);
    assert_eq!(calls(&server, &index, 65..129), 1);
    let parent = parent(&(65..129));
    assert_eq!(store_all(&server, &index, A, &blocks(2065..2129), parent).stored, 64);
    // What both hang on stays until the second one is gone.
    removes(&server, A, 65..129);
    removes(&server, A, 1..65);
    let branch = [blocks(1..65), blocks(2065..2129)].concat();
    let kids = |key: &String| hash(&server, key).contains_key(&b"c"[..]);
    assert!(keys(&server, "*:r:*").iter().any(kids));
    assert_eq!(leading(&server, &index, &branch), []);
    calls(&server, &index, 1..65);
    assert_eq!(leading(&server, &index, &branch), [(1, 128)]);
    removes(&server, A, 2065..2129);
    removes(&server, A, 1..65);
    assert_eq!(keys(&server, "*:r:*").len(), 1, "the other path");
}

/// A cluster of one node answers every command, but for those whose keys lie in two slots.
#[test]
fn a_server_that_keeps_slots_apart_is_stored_to_in_steps() {
    let cluster = ClusterServers::start(1);
    let server = &cluster.nodes[0];
    let index = client(server, options());
    assign(server, &index, A);
    // What was refused is stored, each block once.
    calls(server, &index, 1..200);
    assert_eq!(leading(server, &index, &blocks(1..200)), [(1, 199)]);
    removes(server, A, 1..200);
    assert_eq!(keys(server, "*:[rv]:*"), Vec::<String>::new());
    let before = index.counters().calls;
    store_all(server, &index, A, &blocks(1001..1065), Parent::Root);
    assert_eq!(index.counters().calls - before, 2, "it is not tried again");
}

/// A stretch of one of four paths, which part from the first at block 50, 64 and 100.
#[derive(Clone, Debug)]
struct Step {
    worker: WorkerId,
    path: usize,
    /// Most begin at the root or where the path ended until now: whoever stores below nothing waits, and binds all names
    /// in steps.
    from: Begin,
    n: u64,
    stores: bool,
}

#[derive(Clone, Debug)]
enum Begin {
    Root,
    End,
    At(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let worker = prop_oneof![Just(A), Just(B)];
    let begin = prop_oneof![
        4 => Just(Begin::Root),
        12 => Just(Begin::End),
        1 => (0_u64..160).prop_map(Begin::At),
    ];
    let n = prop_oneof![Just(64), 1_u64..140];
    (worker, 0_usize..4, begin, n, prop::bool::weighted(0.9))
        .prop_map(|(worker, path, from, n, stores)| Step { worker, path, from, n, stores })
}

/// Blocks of a path, and the one before. The last two paths call different blocks the same.
fn part(path: usize, from: u64, to: u64) -> (Vec<Block>, Parent) {
    let parts_at = [u64::MAX, 50, 64, 100][path];
    let name =
        |n: u64| Name(if n < parts_at { n + 1 } else { n + 1 + 1000 * (path as u64).min(2) });
    let digest = |n: u64| Digest(if n < parts_at { n } else { n + 1000 * path as u64 });
    let block = |n| Block { name: name(n), digest: Some(digest(n)) };
    let parent = if from == 0 { Parent::Root } else { Parent::Block(name(from - 1)) };
    ((from..to).map(block).collect(), parent)
}

type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

fn hash(server: &Server, key: &str) -> Fields {
    redis::cmd("HGETALL").arg(key).query(&mut server.raw()).unwrap()
}

/// What of a store does not depend on who got which number: runs with what hangs where, how many hold something of
/// each, the names beside it; and what names mean.
fn lies(server: &Server) -> BTreeSet<(String, Fields)> {
    let mut all = BTreeSet::new();
    let mut meanings: BTreeMap<String, Fields> = BTreeMap::new();
    let found = keys(server, "*:[rnv]:*").into_iter();
    let hashes: BTreeMap<String, Fields> =
        found.map(|key| (key.clone(), hash(server, &key))).collect();
    for (key, fields) in hashes.clone() {
        let kind = key.split(':').nth(3).unwrap().to_owned();
        if kind == "v" {
            let places = |(name, list): (Vec<u8>, Vec<u8>)| {
                let list = said(&hashes, &name, &list);
                (name, list)
            };
            meanings.entry(kind).or_default().extend(fields.into_iter().map(places));
            continue;
        }
        let mut fixed = Fields::new();
        for (field, value) in fields {
            let (field, value) = match (field.as_slice(), kind.as_str()) {
                (b"c", _) => (field, sorted(&value)),
                (b"j", _) => (field, value[4..].to_vec()),
                ([_], _) => (field, value),
                (_, "r") => {
                    let holders: &mut Vec<u8> =
                        fixed.entry([b"held ", &value[12..]].concat()).or_default();
                    holders.push(1);
                    continue;
                }
                (number, _) => (number[4..].to_vec(), value),
            };
            fixed.insert(field, value);
        }
        all.insert((key, fixed));
    }
    all.extend(meanings);
    all
}

/// The places of a list, each by itself: a run that is meant without an offset stands for those of its blocks that
/// have the name and that the list does not say.
fn said(hashes: &BTreeMap<String, Fields>, name: &[u8], mut list: &[u8]) -> Vec<u8> {
    let mut meanings: Vec<&[u8]> = Vec::new();
    while let Some(start) = list.first() {
        let (one, rest) = list.split_at(if start & 64 == 0 { 13 } else { 21 });
        meanings.push(one);
        list = rest;
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut places = Vec::new();
    for meaning in &meanings {
        let (start, run) = (meaning[0], &meaning[1..]);
        if start < 128 {
            places.extend_from_slice(meaning);
            continue;
        }
        let key = if start & 64 == 0 { &run[..8] } else { &run[12..] };
        let key = format!("{{{}}}:{}", hex(&run[..12]), hex(key));
        let of = |kind| {
            let end = format!(":{kind}:{key}");
            hashes.iter().find_map(|(key, fields)| key.ends_with(&end).then_some(fields))
        };
        let (Some(fields), Some(named)) = (of("r"), of("n")) else { continue };
        let first = fields[&b"h"[..]][1];
        for (field, names) in named {
            let offsets: Vec<u8> = match field.len() {
                4 => names.chunks(8).zip(first..).filter(|n| n.0 == name).map(|n| n.1).collect(),
                5 => names.chunks(9).filter(|n| &n[1..] == name).map(|n| n[0]).collect(),
                _ => continue,
            };
            let place = |offset| [&[start - 128 + offset][..], run].concat();
            let named = offsets.into_iter().map(place);
            places.extend(named.filter(|place| !meanings.contains(&&place[..])).flatten());
        }
    }
    places
}

/// What hangs below a run, whoever came first.
fn sorted(kids: &[u8]) -> Vec<u8> {
    let mut kids: Vec<&[u8]> = kids.chunks(5).collect();
    kids.sort_unstable();
    kids.concat()
}

/// Does all of this to a store of one server at once and to one in steps, and compares them after each; how many round trips
/// the first one saved.
fn alike(steps: &[(WorkerId, Vec<Block>, Parent, bool)]) -> Result<i64, TestCaseError> {
    let one = (Server::start(), Some(1));
    let groups = (Server::start(), Some(4));
    let stores = [one, groups].map(|(server, groups)| {
        let options = RedisOptions { groups, secret: Some([5; 32]), ..options() };
        let index = client(&server, options);
        for worker in [A, B] {
            assign(&server, &index, worker);
        }
        (server, index)
    });
    for (n, (worker, blocks, parent, stores_it)) in steps.iter().enumerate() {
        let names: Vec<Name> = blocks.iter().map(|block| block.name).collect();
        let change = match stores_it {
            true => stored(blocks, *parent),
            false => Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names },
        };
        let applied = stores
            .each_ref()
            .map(|(server, index)| server.block_on(index.apply(*worker, &[change])).unwrap());
        prop_assert_eq!(applied[0], applied[1], "step {}", n);
        let [one, groups] = stores.each_ref().map(|(server, _)| lies(server));
        prop_assert_eq!(one, groups, "after step {}", n);
    }
    let [one, groups] = stores.each_ref().map(|(_, index)| index.counters().calls as i64);
    Ok(groups - one)
}

#[test]
fn any_history_leaves_the_store_that_steps_leave() {
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(24) };
    let histories = prop::collection::vec(step(), 1..24);
    let steps = |steps: Vec<Step>| {
        let mut ends = [0; 4];
        let step = |step: Step| {
            let from = match step.from {
                Begin::Root => 0,
                Begin::End => ends[step.path],
                Begin::At(from) => from,
            };
            if step.stores {
                ends[step.path] = from + step.n;
            }
            let (blocks, parent) = part(step.path, from, from + step.n);
            (step.worker, blocks, parent, step.stores)
        };
        steps.into_iter().map(step).collect::<Vec<_>>()
    };
    let saved = Cell::new(0);
    let run = |history| {
        saved.set(saved.get() + alike(&steps(history))?);
        Ok(())
    };
    TestRunner::new(config).run(&histories, run).unwrap();
    assert!(saved.get() >= 10, "{} round trips saved: hardly anything came at once", saved.get());
}

/// What lies behind a block that is refused has been named before that is known.
#[test]
fn a_stretch_that_is_refused_from_the_middle_on_leaves_no_name_behind() {
    let path = |n: u64, to: u64| -> Vec<Block> {
        let name = |at: u64| if at == 63 { Name(77) } else { Name(1000 * (n + 1) + at) };
        let block = |at| Block { name: name(at), digest: Some(Digest(1000 * (n + 1) + at)) };
        (0..to).map(block).collect()
    };
    let meanings = MOST_MEANINGS as u64;
    let mut steps: Vec<_> = (0..meanings).map(|n| (A, path(n, 64), Parent::Root, true)).collect();
    steps.push((B, path(meanings, 150), Parent::Root, true));
    alike(&steps).unwrap();
}

/// The block that may have no further name is known last, and by then some of the names behind it are bound: up to those
/// of which one means something else.
#[test]
fn behind_a_block_that_has_all_its_names_none_is_left_bound() {
    let named = |name: u64, digest: u64| Block { name: Name(name), digest: Some(Digest(digest)) };
    let root = |blocks: Vec<Block>| (A, blocks, Parent::Root, true);
    let mut steps: Vec<_> =
        (0..MOST_NAMES as u64).map(|n| root(vec![named(2000 + n, 7)])).collect();
    steps.push(root(vec![named(1104, 8)]));
    let path = (0..128).map(|at| named(1000 + at, if at == 0 { 7 } else { at + 100 }));
    steps.push((B, path.collect(), Parent::Root, true));
    alike(&steps).unwrap();
}
