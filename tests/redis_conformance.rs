//! The index on a real server keeps the contract of an index.
#![cfg(all(feature = "redis", feature = "conformance"))]

mod redis_server;

use std::sync::atomic::{AtomicU32, Ordering};

use kvscout::conformance;
use kvscout::index::redis::{RedisIndex, RedisOptions};

use redis_server::Server;

/// Few, so that a history's moves of a vocabulary are quick and buckets are shared.
const BUCKETS: u32 = 2;

fn fresh(server: &Server, options: RedisOptions) -> RedisIndex {
    static NAMESPACES: AtomicU32 = AtomicU32::new(0);
    let namespace = format!("n{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
    let options = RedisOptions { namespace, ..options };
    server.block_on(RedisIndex::connect(&server.url(), options)).unwrap()
}

#[test]
fn the_redis_index_keeps_the_contract() {
    let server = Server::start();
    let _entered = server.enter();
    conformance::check(|| fresh(&server, RedisOptions { buckets: BUCKETS, ..RedisOptions::default() }));
}
