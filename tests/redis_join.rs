//! Workers that store what another has stored: the short way where all is still as it was, and whatever is
//! otherwise.
#![cfg(feature = "redis")]

mod redis_support;
mod store_support;

use kvscout::ErrorKind;
use kvscout::block::{Digest, Group, Name, Tier, VocabularyId, WorkerId};
use kvscout::index::redis::{Once, RedisIndex, RedisOptions, Turn};
use kvscout::index::{Applied, Block, Change, Home, Index as _, Parent};
use redis_support::{Server, eventually};
use store_support::*;

/// The segment that all of this is about. Name 0, which blocks without a name have in a run, is not in it.
const PATH: std::ops::Range<u64> = 1..65;

/// A store in which A has the path, a client that stored it, and one through which it changes meanwhile. B has a
/// slot, by another path.
fn scene() -> (Server, RedisIndex, RedisIndex) {
    let server = Server::start();
    let (index, other) = (who_knows_both(&server), who_knows_both(&server));
    at_root(&server, &index, B, &blocks(1001..1011));
    assert_eq!(at_root(&server, &index, A, &blocks(PATH)).stored, 64);
    (server, index, other)
}

fn at_root(server: &Server, index: &RedisIndex, worker: WorkerId, blocks: &[Block]) -> Applied {
    server.block_on(index.apply(worker, &[stored(blocks, Parent::Root)])).unwrap()
}

/// B stores these blocks; how often the store was called.
fn follow(server: &Server, index: &RedisIndex, blocks: &[Block]) -> u64 {
    let before = index.counters().calls;
    let applied = at_root(server, index, B, blocks);
    assert_eq!((applied.stored, applied.unplaced), (blocks.len() as u64, 0));
    index.counters().calls - before
}

fn take(server: &Server, index: &RedisIndex, worker: WorkerId, blocks: &[Block]) -> u64 {
    let names: Vec<Name> = blocks.iter().map(|block| block.name).collect();
    let change = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names };
    server.block_on(index.apply(worker, &[change])).unwrap().removed
}

/// The number behind these words in a section of what the server says of itself.
fn counted(server: &Server, section: &str, words: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg(section).query(&mut server.raw()).unwrap();
    let number = info.lines().find_map(|line| line.strip_prefix(words)).unwrap();
    number.split(',').next().unwrap().parse().unwrap()
}

fn received(server: &Server) -> u64 {
    counted(server, "stats", "total_net_input_bytes:")
}

/// A client that remembers nothing.
fn who_knows_both(server: &Server) -> RedisIndex {
    let index = client(server, options());
    for worker in [A, B] {
        assign(server, &index, worker);
    }
    index
}

/// The same contents under other names.
fn renamed(blocks: Vec<Block>) -> Vec<Block> {
    let rename = |block: Block| Block { name: Name(block.name.0 ^ 1 << 60), ..block };
    blocks.into_iter().map(rename).collect()
}

#[test]
fn who_follows_another_worker_of_its_client_says_less_than_who_follows_one_elsewhere() {
    let (server, index, other) = scene();
    // Both have sent their scripts once.
    for index in [&index, &other] {
        at_root(&server, index, A, &blocks(2001..2011));
        follow(&server, index, &blocks(2001..2011));
    }
    let before = received(&server);
    assert_eq!(follow(&server, &index, &blocks(PATH)), 1);
    let between = received(&server);
    // A has the path twice from here on.
    at_root(&server, &other, A, &blocks(PATH));
    let (short, long) = (between - before, received(&server) - between);
    assert!(short * 4 < long * 3, "{short} bytes, and {long} without a memory");
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 64), (2, 64)]);
    server.block_on(index.stats()).unwrap();
    assert_eq!(server.block_on(other.stats()).unwrap().entries, 64 + 64 + 10 + 10 + 10);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64)]);
}

#[test]
fn a_slot_joins_what_comes_behind_the_part_that_it_holds() {
    let (server, index, _) = scene();
    follow(&server, &index, &blocks(1..33));
    let rest = blocks(33..65);
    let before = index.counters().calls;
    server.block_on(index.apply(B, &[stored(&rest, parent(&(33..65)))])).unwrap();
    assert_eq!(index.counters().calls - before, 1);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64), (2, 64)]);
    assert_eq!(take(&server, &index, B, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64)]);
}

#[test]
fn a_run_that_is_gone_meanwhile_is_made_again_with_its_names() {
    let (server, index, other) = scene();
    assert_eq!(take(&server, &other, A, &blocks(PATH)), 64);
    // The short way, and the long one with the names.
    assert_eq!(follow(&server, &index, &blocks(PATH)), 2);
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(2, 64)]);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &index, &blocks(PATH)), []);
}

#[test]
fn of_a_stretch_one_segment_is_joined_and_the_next_that_is_gone_is_stored() {
    let (server, index, other) = scene();
    let path = blocks(3001..3129);
    assert_eq!(at_root(&server, &index, A, &path).stored, 128);
    let before = server.block_on(index.stats()).unwrap().entries;
    assert_eq!(take(&server, &other, A, &path[64..]), 64);
    // Both are tried, and one is stored.
    assert_eq!(follow(&server, &index, &path), 2);
    assert_eq!(leading(&server, &other, &path), [(1, 64), (2, 128)]);
    server.block_on(other.stats()).unwrap();
    assert_eq!(server.block_on(index.stats()).unwrap().entries, before - 64 + 128);
    assert_eq!(take(&server, &other, B, &path), 128, "one copy of each");
    assert_eq!(leading(&server, &index, &path), [(1, 64)]);
}

/// Another client's loss of a space's key takes the records with it; a new slot would be one that nobody sees.
#[test]
fn a_worker_whose_record_is_gone_is_told_so_and_gets_no_slot() {
    let (server, index, other) = scene();
    for key in keys(&server, "*:s:{*}") {
        let _: () = redis::cmd("DEL").arg(key).query(&mut server.raw()).unwrap();
    }
    assign(&server, &other, B);
    let path = blocks(PATH);
    let refused: Vec<ErrorKind> = (0..2)
        .map(|_| {
            server.block_on(index.apply(A, &[stored(&path, Parent::Root)])).unwrap_err().kind()
        })
        .collect();
    assert!(refused.contains(&ErrorKind::UnknownWorker), "{refused:?}");
    assign(&server, &index, A);
    assert_eq!(at_root(&server, &index, A, &path).stored, 64);
    assert_eq!(leading(&server, &other, &path), [(1, 64)]);
}

/// The same names may stand for other contents: only the keys say what a block is.
#[test]
fn a_run_of_other_contents_behind_the_same_first_block_is_not_joined() {
    let (server, index, other) = scene();
    take(&server, &other, A, &blocks(PATH));
    let change = |block: Block| Block { digest: block.digest.map(|d| Digest(d.0 + 500)), ..block };
    let mut changed = blocks(1..2);
    changed.extend(blocks(2..65).into_iter().map(change));
    at_root(&server, &other, A, &changed);
    assert!(follow(&server, &index, &blocks(PATH)) > 1);
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 1), (2, 64)]);
    assert_eq!(leading(&server, &other, &changed), [(1, 64), (2, 1)]);
}

#[test]
fn a_run_that_has_become_shorter_is_gone_on_with() {
    let (server, index, other) = scene();
    assert_eq!(take(&server, &other, A, &blocks(33..65)), 32);
    assert!(follow(&server, &index, &blocks(PATH)) > 1);
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 32), (2, 64)]);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
}

#[test]
fn a_run_whose_blocks_have_other_names_by_now_gets_these_as_well() {
    let (server, index, other) = scene();
    take(&server, &other, A, &blocks(PATH));
    let renamed = renamed(blocks(PATH));
    at_root(&server, &other, A, &renamed);
    assert_eq!(follow(&server, &index, &blocks(PATH)), 3);
    let third = who_knows_both(&server);
    assert_eq!(take(&server, &third, B, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 64)]);
    assert_eq!(take(&server, &third, A, &renamed), 64);
    assert_eq!(keys(&server, "*:n:*").len(), 1, "what B stored elsewhere");
}

/// A worker stores what comes behind part of the path.
fn go_on(server: &Server, index: &RedisIndex, range: std::ops::Range<u64>) -> Applied {
    let path = blocks(range.clone());
    let change = [stored(&path, parent(&range))];
    server.block_on(index.apply(A, &change)).unwrap()
}

#[test]
fn a_parent_that_was_stored_just_now_is_not_looked_for_until_something_was_taken() {
    let (server, index, other) = scene();
    let (mut at, mut asked) = (65, Vec::new());
    let hmgets = || counted(&server, "commandstats", "cmdstat_hmget:calls=");
    // On a busy machine it may be long ago.
    while asked.last() != Some(&3) {
        assert!(asked.len() < 20, "{asked:?}");
        let before = hmgets();
        assert_eq!(go_on(&server, &index, at..at + 64).unknown_parents, 0);
        // The scripts' own, and one more where it is looked for.
        asked.push(hmgets() - before);
        at += 64;
    }
    // B has the path as well, so that it stays when A loses it.
    at_root(&server, &index, B, &blocks(1..at + 5));
    assert_eq!(go_on(&server, &index, at..at + 1).unknown_parents, 0);
    assert_eq!(take(&server, &index, A, &blocks(at..at + 1)), 1);
    assert_eq!(go_on(&server, &index, at + 1..at + 2).unknown_parents, 1, "it was taken");
    assert_eq!(go_on(&server, &index, at + 2..at + 3).unknown_parents, 0);
    server.block_on(index.apply(A, &[Change::Clear { tier: None }])).unwrap();
    assert_eq!(go_on(&server, &index, at + 3..at + 4).unknown_parents, 1, "it was cleared");
    server.block_on(other.apply(A, &[Change::Clear { tier: None }])).unwrap();
    let range = at + 4..at + 5;
    let lost = blocks(range.clone());
    let change = [stored(&lost, parent(&range))];
    server.block_on(index.apply(A, &change)).unwrap_err();
    let again = server.block_on(index.apply(A, &change)).unwrap();
    assert_eq!(again.unknown_parents, 1, "another client cleared it");
}

/// Each run's proof of its names, where it has one.
fn proofs(server: &Server) -> Vec<Option<Vec<u8>>> {
    let runs = keys(server, "*:n:*");
    let proof = |run| redis::cmd("HGET").arg(run).arg("j").query(&mut server.raw()).unwrap();
    runs.into_iter().map(proof).collect()
}

#[test]
fn a_run_without_a_proof_is_stored_to_as_ever_and_has_one_again() {
    let (server, index, other) = scene();
    let before = proofs(&server);
    assert!(before.iter().all(Option::is_some));
    for run in keys(&server, "*:n:*") {
        let _: () = redis::cmd("HDEL").arg(run).arg("j").query(&mut server.raw()).unwrap();
    }
    // In vain by the proof, then the long way.
    assert_eq!(follow(&server, &index, &blocks(PATH)), 2);
    assert_eq!(proofs(&server).iter().flatten().count(), 1, "of the path that was followed");
    assert!(before.contains(proofs(&server).iter().find(|proof| proof.is_some()).unwrap()));
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 64), (2, 64)]);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
    // By the names from now on, as why there was no proof may last.
    assert_eq!(follow(&server, &index, &blocks(PATH)), 1);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64)]);
}

/// They end by themselves where nobody refreshes them, and a server may throw them away.
#[test]
fn a_run_whose_names_are_gone_gets_them_again_with_whoever_follows() {
    let (server, index, other) = scene();
    for names in keys(&server, "*:[nv]:*") {
        let _: () = redis::cmd("DEL").arg(names).query(&mut server.raw()).unwrap();
    }
    // In vain by the proof, the long way, and the names.
    assert_eq!(follow(&server, &index, &blocks(PATH)), 3);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
    assert_eq!(take(&server, &other, A, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &index, &blocks(PATH)), []);
}

/// A server may throw a run away and keep what its blocks were called: that is of blocks which are gone.
#[test]
fn a_run_that_is_made_anew_beside_names_that_outlived_it_begins_without_them() {
    for nameless in [false, true] {
        let (server, index, other) = scene();
        let run = keys(&server, "*:r:*").into_iter().find(|run| {
            let fields: Vec<Vec<u8>> =
                redis::cmd("HVALS").arg(run).query(&mut server.raw()).unwrap();
            fields.iter().any(|value| value.len() == 64 * 8)
        });
        let run = run.unwrap();
        let _: () = redis::cmd("DEL").arg(&run).query(&mut server.raw()).unwrap();
        // As of another vocabulary: nothing overwrites it.
        let (names, other_field) = (run.replacen(":r:", ":n:", 1), 999_u32.to_le_bytes());
        let outlived =
            redis::cmd("HSET").arg(&names).arg(&other_field).arg(&[7_u8; 512][..]).to_owned();
        let _: () = outlived.query(&mut server.raw()).unwrap();
        let mut changed = [blocks(1..2), blocks(2002..2065)].concat();
        if nameless {
            // What has a block without a name is stored the long way.
            changed[63].name = Name(0);
        }
        at_root(&server, &other, A, &changed);
        let is_kept: bool =
            redis::cmd("HEXISTS").arg(&names).arg(&other_field).query(&mut server.raw()).unwrap();
        assert!(!is_kept, "{nameless}");
        follow(&server, &index, &blocks(PATH));
        assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 1), (2, 64)], "{nameless}");
        assert_eq!(leading(&server, &other, &changed), [(1, 64), (2, 1)], "{nameless}");
        // No block of the new run has a name of the old one.
        let fresh = who_knows_both(&server);
        assert_eq!(take(&server, &fresh, A, &blocks(2..65)), 0);
        assert_eq!(leading(&server, &other, &changed), [(1, 64), (2, 1)], "{nameless}");
    }
}

#[test]
fn a_run_that_went_on_under_other_names_has_no_proof_of_those_before() {
    let (server, index, other) = scene();
    assert_eq!(take(&server, &other, A, &blocks(33..65)), 32);
    let renamed = renamed(blocks(33..65));
    let change = [stored(&renamed, parent(&(33..65)))];
    assert_eq!(server.block_on(other.apply(A, &change)).unwrap().stored, 32);
    assert!(follow(&server, &index, &blocks(PATH)) > 1);
    let third = who_knows_both(&server);
    assert_eq!(take(&server, &third, B, &blocks(PATH)), 64);
    assert_eq!(take(&server, &third, A, &renamed), 32);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 32)]);
}

#[test]
fn a_run_whose_names_moved_to_another_vocabulary_has_no_proof_of_those_before() {
    let server = Server::start();
    let (index, other) = (client(&server, options()), client(&server, options()));
    assign(&server, &index, A);
    at_root(&server, &index, A, &blocks(PATH));
    let home = Home { vocabulary: VocabularyId(2), ..HOME };
    server.block_on(index.assign(A, home)).unwrap();
    assert_eq!(proofs(&server), [None]);
    assign(&server, &index, B);
    at_root(&server, &index, B, &blocks(PATH));
    assign(&server, &other, B);
    assert_eq!(take(&server, &other, B, &blocks(PATH)), 64);
    server.block_on(other.assign(A, home)).unwrap();
    assert_eq!(take(&server, &other, A, &blocks(PATH)), 64);
    assert_eq!(keys(&server, "*:[rnvh]:*"), [""; 0]);
}

#[test]
fn a_slot_that_holds_part_of_it_has_two_copies_of_that_part_then() {
    let (server, index, _) = scene();
    follow(&server, &index, &blocks(1..33));
    assert!(follow(&server, &index, &blocks(PATH)) > 1);
    assert_eq!(take(&server, &index, B, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64), (2, 32)]);
    assert_eq!(take(&server, &index, B, &blocks(1..33)), 32);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64)]);
}

#[test]
fn a_batch_that_joined_before_its_writer_died_adds_nothing_when_it_is_repeated() {
    let server = Server::start();
    let owned = RedisOptions { owner: Some("one".to_owned()), ..options() };
    let index = client(&server, owned);
    assign(&server, &index, A);
    assign(&server, &index, B);
    at_root(&server, &index, A, &blocks(PATH));
    let path = blocks(PATH);
    let once = || {
        let turn = Turn { life: 1, seq: 7 };
        let change = [stored(&path, Parent::Root)];
        server.block_on(index.apply_once(B, turn, &change)).unwrap()
    };
    assert!(matches!(once(), Once::Applied(_)));
    assert_eq!(once(), Once::Repeated);
    // As if it had died before it said that batch 7 is done.
    for record in keys(&server, "*:w:*") {
        let _: () =
            redis::cmd("HSET").arg(&record).arg("seq").arg(6).query(&mut server.raw()).unwrap();
    }
    assert!(matches!(once(), Once::Applied(_)));
    assert_eq!(take(&server, &index, B, &path), 64);
    assert_eq!(leading(&server, &index, &path), [(1, 64)]);
}

#[test]
fn a_worker_of_another_vocabulary_binds_names_of_its_own() {
    let (server, index, other) = scene();
    let (third, home) = (WorkerId(3), Home { vocabulary: VocabularyId(2), ..HOME });
    for index in [&index, &other] {
        server.block_on(index.assign(third, home)).unwrap();
    }
    assert_eq!(at_root(&server, &index, third, &blocks(PATH)).stored, 64);
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 64), (3, 64)]);
    assert_eq!(take(&server, &other, third, &blocks(PATH)), 64);
    assert_eq!(leading(&server, &other, &blocks(PATH)), [(1, 64)]);
    // The names that a run has for one vocabulary say nothing of another, whatever the client remembers.
    let vocabularies = |run: &String| {
        let fields: Vec<Vec<u8>> = redis::cmd("HKEYS").arg(run).query(&mut server.raw()).unwrap();
        let number = |field: Vec<u8>| Some(u32::from_le_bytes(field.try_into().ok()?));
        fields.into_iter().filter_map(number).collect::<Vec<u32>>()
    };
    let run = keys(&server, "*:n:*").into_iter().find(|run| vocabularies(run).len() == 2);
    let run = run.expect("a run with names of two vocabularies");
    let later = vocabularies(&run).into_iter().max().unwrap();
    let _: () =
        redis::cmd("HDEL").arg(&run).arg(&later.to_le_bytes()).query(&mut server.raw()).unwrap();
    assert_eq!(at_root(&server, &index, third, &blocks(PATH)).stored, 64);
    assert_eq!(take(&server, &other, third, &blocks(PATH)), 64);
    assert_eq!(vocabularies(&run).len(), 2);
}

#[test]
fn after_a_store_was_emptied_nothing_is_joined_and_workers_need_homes() {
    let (server, index, _) = scene();
    let _: () = redis::cmd("FLUSHALL").query(&mut server.raw()).unwrap();
    let error = server.block_on(index.apply(B, &[stored(&blocks(PATH), Parent::Root)]));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::UnknownWorker);
    assert_eq!(leading(&server, &index, &blocks(PATH)), []);
    assign(&server, &index, B);
    at_root(&server, &index, B, &blocks(PATH));
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(2, 64)]);
}

#[test]
fn a_server_that_forgot_its_scripts_is_told_the_short_one_again() {
    let (server, index, _) = scene();
    follow(&server, &index, &blocks(1..33));
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut server.raw()).unwrap();
    let rest = blocks(33..65);
    let before = index.counters();
    server.block_on(index.apply(B, &[stored(&rest, parent(&(33..65)))])).unwrap();
    let after = index.counters();
    assert_eq!(after.calls - before.calls, 1);
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64), (2, 64)]);
}

/// Where a retired slot's copies go to is nobody; the client finds out with the very call.
#[test]
fn a_slot_that_another_client_has_retired_joins_for_nobody() {
    let (server, index, other) = scene();
    server.block_on(other.apply(B, &[Change::Clear { tier: None }])).unwrap();
    let change = blocks(PATH);
    let error = server.block_on(index.apply(B, &[stored(&change, Parent::Root)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64)]);
    at_root(&server, &index, B, &blocks(PATH));
    assert_eq!(leading(&server, &index, &blocks(PATH)), [(1, 64), (2, 64)]);
}

#[test]
fn of_two_blocks_with_one_name_the_first_is_the_parent_though_the_other_was_joined_last() {
    let (server, index, _) = scene();
    let mut second = blocks(2001..2064);
    second.push(Block { digest: Some(Digest(7)), ..blocks(64..65)[0] });
    at_root(&server, &index, A, &second);
    assert_eq!(follow(&server, &index, &blocks(PATH)), 1);
    assert_eq!(follow(&server, &index, &second), 1);
    let child = blocks(3001..3002);
    let name = second[63].name;
    server.block_on(index.apply(B, &[stored(&child, Parent::Block(name))])).unwrap();
    let first = [blocks(PATH), child.clone()].concat();
    assert_eq!(leading(&server, &index, &first), [(1, 64), (2, 65)]);
    assert_eq!(leading(&server, &index, &[second, child].concat()), [(1, 64), (2, 64)]);
}

#[test]
fn workers_that_store_one_path_side_by_side_all_have_it_and_leave_nothing_behind() {
    let server = Server::start();
    let index = std::sync::Arc::new(client(&server, options()));
    let workers: Vec<WorkerId> = (1..9).map(WorkerId).collect();
    workers.iter().for_each(|&worker| assign(&server, &index, worker));
    let batches = |worker: WorkerId| {
        let index = index.clone();
        async move {
            let mut total = Applied::default();
            // Different steps, so that pieces of one segment end in different places.
            let step = [16, 64, 40, 64][worker.0 as usize % 4];
            for from in (1..1001).step_by(step as usize) {
                let range = from..1001.min(from + step);
                let parent = if from == 1 { Parent::Root } else { parent(&range) };
                let change = blocks(range);
                let applied = index.apply(worker, &[stored(&change, parent)]).await.unwrap();
                total.stored += applied.stored;
                total.unplaced += applied.unplaced;
                total.unknown_parents += applied.unknown_parents;
            }
            total
        }
    };
    server.block_on(async {
        let tasks: Vec<_> = workers.iter().map(|&worker| tokio::spawn(batches(worker))).collect();
        for task in tasks {
            let total = task.await.unwrap();
            assert_eq!((total.stored, total.unplaced, total.unknown_parents), (1000, 0, 0));
        }
    });
    let all: Vec<(u32, u32)> = workers.iter().map(|worker| (worker.0, 1000)).collect();
    assert_eq!(leading(&server, &index, &blocks(1..1001)), all);
    server.block_on(index.stats()).unwrap();
    let other = client(&server, options());
    for &worker in &workers {
        assign(&server, &other, worker);
        assert_eq!(take(&server, &other, worker, &blocks(1..1001)), 1000);
    }
    assert_eq!(keys(&server, "*:[rnvh]:*"), [""; 0]);
}

#[test]
fn who_only_stores_notices_the_loss_of_the_key_of_a_space() {
    let (server, index, _) = scene();
    let lost = keys(&server, "*:s:*");
    let _: () = redis::cmd("DEL").arg(&lost).query(&mut server.raw()).unwrap();
    let path = blocks(PATH);
    eventually("a store finds out", || {
        let stored = server.block_on(index.apply(B, &[stored(&path, Parent::Root)]));
        stored.is_err_and(|error| error.kind() == ErrorKind::UnknownWorker)
    });
    assign(&server, &index, B);
}
