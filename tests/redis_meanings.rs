//! What a name means where its run stands for the block: it is as if the block were said, also when a batch is repeated,
//! a block goes that was never bound, or a move of names fails half way.
#![cfg(feature = "redis")]

mod redis_support;
mod store_support;

use kvscout::block::{Digest, Group, Name, SpaceId, Tier, VocabularyId};
use kvscout::index::redis::{Once, RedisIndex, RedisOptions, Turn};
use kvscout::index::{Applied, Block, Change, Home, Index as _, MOST_MEANINGS, Parent};
use redis_support::Server;
use store_support::*;

/// The name that all of this is about.
const NAME: Name = Name(500);

fn scene() -> (Server, RedisIndex) {
    let server = Server::start();
    let index = client(&server, owned());
    assign(&server, &index, A);
    (server, index)
}

fn owned() -> RedisOptions {
    RedisOptions { owner: Some("one".to_owned()), ..options() }
}

/// A prompt of one block of that name, with this content.
fn one(content: u64) -> [Block; 1] {
    [Block { name: NAME, digest: Some(Digest(content)) }]
}

fn at_root(server: &Server, index: &RedisIndex, blocks: &[Block]) -> Applied {
    server.block_on(index.apply(A, &[stored(blocks, Parent::Root)])).unwrap()
}

/// A stores this as batch 7, and once more as by somebody who came after a writer which died before it said so.
fn twice(server: &Server, index: &RedisIndex, batch: &[Change<'_>]) -> Applied {
    let once = || server.block_on(index.apply_once(A, Turn { life: 1, seq: 7 }, batch)).unwrap();
    assert!(matches!(once(), Once::Applied(_)));
    for record in keys(server, "*:w:*") {
        redis::cmd("HSET").arg(&record).arg("seq").arg(6).exec(&mut server.raw()).unwrap();
    }
    let Once::Applied(applied) = once() else { panic!("it is not done yet") };
    applied
}

/// A client that remembers nothing takes one block of the name from A; whether there was one.
fn take(server: &Server) -> bool {
    let fresh = client(server, owned());
    assign(server, &fresh, A);
    let change = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &[NAME] };
    server.block_on(fresh.apply(A, &[change])).unwrap().removed == 1
}

#[test]
fn a_repeated_batch_leaves_a_names_blocks_in_their_order() {
    let (server, index) = scene();
    let (first, second) = (one(1), one(2));
    let batch = [stored(&first, Parent::Root), stored(&second, Parent::Root)];
    assert_eq!(twice(&server, &index, &batch).refused, 0);
    assert!(take(&server));
    assert_eq!(leading(&server, &index, &first), []);
    assert_eq!(leading(&server, &index, &second), [(1, 1)]);
    assert!(take(&server));
    assert!(!take(&server));
    assert_eq!(keys(&server, "*:[rnv]:*"), [] as [String; 0]);
}

#[test]
fn a_repeated_batch_is_not_refused_for_what_its_names_mean_by_itself() {
    let (server, index) = scene();
    let all: Vec<[Block; 1]> = (0..MOST_MEANINGS as u64).map(one).collect();
    let batch: Vec<Change<'_>> = all.iter().map(|block| stored(block, Parent::Root)).collect();
    assert_eq!(twice(&server, &index, &batch).refused, 0);
    assert!(all.iter().all(|block| leading(&server, &index, block) == [(1, 1)]));
    assert_eq!(at_root(&server, &index, &one(100)).refused, 1);
}

/// They are all that says which block of the run a name means.
#[test]
fn names_last_as_long_as_the_run_that_goes_on() {
    let (server, index) = scene();
    at_root(&server, &index, &blocks(1..11));
    let run = keys(&server, "*:[rn]:*");
    // Straight on, and the long way: by then something hangs below the run.
    for path in [11..21, 21..31] {
        for key in &run {
            redis::cmd("EXPIRE").arg(key).arg(100).exec(&mut server.raw()).unwrap();
        }
        store(&server, &index, A, path);
        for key in &run {
            let ttl: i64 = redis::cmd("TTL").arg(key).query(&mut server.raw()).unwrap();
            assert!(ttl > 100, "{key} ends in {ttl} s");
        }
        at_root(&server, &index, &[blocks(1..6), blocks(2001..2003)].concat());
    }
}

#[test]
fn a_move_to_another_vocabulary_that_failed_half_way_is_gone_on_with() {
    let (server, index) = scene();
    index.name_vocabulary(VocabularyId(2), "other");
    let other = Home { space: SpaceId(1), vocabulary: VocabularyId(2) };
    // So the other vocabulary has a number, and a key for what its names mean.
    server.block_on(index.assign(B, other)).unwrap();
    server.block_on(index.apply(B, &[stored(&blocks(1001..1002), Parent::Root)])).unwrap();
    let key = keys(&server, "*:v:*").remove(0);
    remove(&server, &index, B, 1001..1002);
    at_root(&server, &index, &blocks(1..11));
    redis::cmd("SET").arg(&key).arg("x").exec(&mut server.raw()).unwrap();
    assert!(server.block_on(index.assign(A, other)).is_err());
    redis::cmd("DEL").arg(&key).exec(&mut server.raw()).unwrap();
    server.block_on(index.assign(A, other)).unwrap();
    assert_eq!(remove(&server, &index, A, 1..11).removed, 10);
    assert_eq!(keys(&server, "*:[rnv]:*"), [] as [String; 0]);
}

#[test]
fn a_block_that_goes_unbound_takes_its_name_from_no_other_block_of_its_run() {
    let (server, index) = scene();
    assign(&server, &index, B);
    let mut path = blocks(1..6);
    path[1].name = NAME;
    path[4].name = NAME;
    let elsewhere = one(999);
    at_root(&server, &index, &path[..4]);
    at_root(&server, &index, &elsewhere);
    let key = keys(&server, "*:v:*").remove(0);
    let field = &NAME.0.to_le_bytes()[..];
    let list = || redis::cmd("HGET").arg(&key).arg(field).query::<Vec<u8>>(&mut server.raw());
    let before = list().unwrap();
    server.block_on(index.apply(B, &[stored(&path, Parent::Root)])).unwrap();
    assert!(list().unwrap().len() > before.len());
    // As if B's client had died before it bound the last block's name.
    redis::cmd("HSET").arg(&key).arg(field).arg(&before).exec(&mut server.raw()).unwrap();
    server.block_on(index.apply(B, &[Change::Clear { tier: None }])).unwrap();
    server.block_on(index.apply(B, &[])).unwrap();
    assert_eq!(list().unwrap(), before);
    assert!(take(&server));
    assert_eq!(leading(&server, &index, &path), [(1, 1)], "the second one went");
    assert_eq!(leading(&server, &index, &elsewhere), [(1, 1)]);
}
