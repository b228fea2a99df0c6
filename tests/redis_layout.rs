//! What `docs/redis.md` says of the keys is enough to read them: a script that shares no code with
//! the crate gives the crate's answer.
#![cfg(feature = "redis")]

mod redis_support;

use std::process::Command;

use kvscout::block::{
    BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId,
};
use kvscout::index::redis::{RedisIndex, RedisOptions};
use kvscout::index::{Block, Change, Home, Index as _, Parent, Store};
use redis_support::Server;

const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);

#[test]
fn a_client_in_another_language_reads_what_the_document_describes() {
    let server = Server::start();
    let owner = Some("daemon-1".to_owned());
    let options = RedisOptions { owner, ..RedisOptions::default() };
    let index = server.block_on(RedisIndex::connect(&server.socket_address(), options)).unwrap();
    index.name_space(SpaceId(0), "tenant/model");
    let home = Home { space: SpaceId(0), vocabulary: VocabularyId(0) };
    // The second leaves the path of the first within a segment, the third within a later one.
    let paths: [(u32, Tier, Vec<u64>); 3] = [
        (1, Tier::Gpu, (0..200).collect()),
        (2, Tier::Cpu, (0..10).chain(1000..1100).collect()),
        (3, Tier::Gpu, (0..150).chain(2000..2100).collect()),
    ];
    for (worker, tier, path) in &paths {
        index.name_worker(WorkerId(*worker), &format!("pod-{worker}"));
        server.block_on(index.assign(WorkerId(*worker), home)).unwrap();
        let block = |&n: &u64| Block { name: Name(n + 1), digest: Some(Digest(n * n)) };
        let blocks: Vec<Block> = path.iter().map(block).collect();
        let (parent, group) = (Parent::Root, Group(0));
        let store = Store { shape: SHAPE, group, tier: *tier, parent, blocks: &blocks };
        server.block_on(index.apply(WorkerId(*worker), &[Change::Store(store)])).unwrap();
    }
    let ask = |path: &[u64]| {
        let output = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/redis_lookup.py"))
            .arg(server.socket())
            .args(["default", "tenant/model", "16"])
            .args(path.iter().map(|n| (n * n).to_string()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(ask(&paths[0].2), "pod-1 0 gpu 200\npod-2 0 cpu 10\npod-3 0 gpu 150\n");
    assert_eq!(ask(&paths[1].2), "pod-1 0 gpu 10\npod-2 0 cpu 110\npod-3 0 gpu 10\n");
    assert_eq!(ask(&paths[2].2), "pod-1 0 gpu 150\npod-2 0 cpu 10\npod-3 0 gpu 250\n");
    assert_eq!(ask(&[7, 8]), "");
}
