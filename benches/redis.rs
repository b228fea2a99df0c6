//! The shared index beside two layouts with a key for each block, on one server with one data set:
//! 250,000 blocks, each held by 4 of 16 workers, which is 1 million entries.
//!
//! `hkeys_per_block` is the layout of the nearest peer: a hash for each block with a field for each
//! holder. It is measured twice, with the peer's own fields (JSON of some 100 bytes) and with short
//! ones (`pod@tier`), and its ingest a third time with its map of engines' names, as ours is counted. `mget_per_block` is a string for each block with 4 bytes for each holder. All three
//! use one client crate, a connection of one kind, and one pipeline or one MGET for a lookup.
//!
//! Prints ingest and memory while it loads, ours and the peer's first a few times in turn; the groups are the lookups.

#[path = "../tests/redis_support/mod.rs"]
mod redis_support;

use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kvscout::block::{
    BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId,
};
use kvscout::index::redis::{RedisIndex, RedisOptions, StoreOptions};
use kvscout::index::{Block, BlockSource, Change, Home, Index as _, Matches, Parent, Query, Store};
use redis::aio::MultiplexedConnection;
use redis_support::Server;

const CHAINS: usize = 250;
const BLOCKS: usize = 1_000;
const WORKERS: usize = 16;
const HOLDERS: usize = 4;
const BATCH: usize = 64;
/// How often ours and the peer's are loaded in turn: one load of half a second says as much of what else the machine did.
const TURNS: usize = 21;
const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);

/// A well-mixed number for each block, by SplitMix64.
fn number(chain: usize, block: usize, salt: u64) -> u64 {
    let z = ((chain * BLOCKS + block) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn key(chain: usize, block: usize) -> Vec<u8> {
    [number(chain, block, 1), number(chain, block, 2)].map(u64::to_le_bytes).concat()
}

fn holds(worker: usize, chain: usize) -> bool {
    worker / HOLDERS == chain % (WORKERS / HOLDERS)
}

/// The batches of a worker: chain and first block.
fn batches(worker: usize) -> impl Iterator<Item = (usize, usize)> {
    let chains = (0..CHAINS).filter(move |&chain| holds(worker, chain));
    chains.flat_map(|chain| (0..BLOCKS).step_by(BATCH).map(move |from| (chain, from)))
}

struct Prompt(Vec<Digest>);

impl BlockSource for Prompt {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn digests(&mut self, from: usize, _least: usize) -> &[Digest] {
        &self.0[from..]
    }

    fn name(&mut self, _: VocabularyId, _: usize) -> Option<Name> {
        None
    }
}

fn prompt(chain: usize) -> Prompt {
    Prompt((0..BLOCKS).map(|block| Digest(number(chain, block, 3))).collect())
}

/// Runs a future for each worker, all at once; seconds.
fn ingest<F: Future<Output = ()> + Send + 'static>(
    server: &Server,
    mut worker: impl FnMut(usize) -> F,
) -> f64 {
    server.block_on(async {
        let started = Instant::now();
        let tasks: Vec<_> = (0..WORKERS).map(|w| tokio::spawn(worker(w))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        started.elapsed().as_secs_f64()
    })
}

/// A number of the server's own account.
fn info(server: &Server, section: &str, field: &str) -> f64 {
    let info: String = redis::cmd("INFO").arg(section).query(&mut server.raw()).unwrap();
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).unwrap().1.trim().parse().unwrap()
}

fn memory(server: &Server) -> f64 {
    info(server, "memory", "used_memory")
}

/// Seconds that the server and this process have computed.
fn computed(server: &Server) -> [f64; 2] {
    let theirs = ["used_cpu_user", "used_cpu_sys"].map(|field| info(server, "cpu", field));
    // Where there is no such file, the client's share is not known. It counts in hundredths.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let own: f64 = fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    [theirs.iter().sum(), own / 100.0]
}

/// Loads one layout and says what that cost; entries a second.
fn load<F: Future<Output = ()> + Send + 'static>(
    server: &Server,
    layout: &str,
    worker: impl FnMut(usize) -> F,
) -> f64 {
    let (bytes, before) = (memory(server), computed(server));
    let seconds = ingest(server, worker);
    let after = computed(server);
    let entries = (CHAINS * BLOCKS * HOLDERS) as f64;
    println!(
        "{layout}: ingest {:.0} entries/s ({seconds:.2} s; server {:.2} s, client {:.2} s), {:.1} bytes an entry",
        entries / seconds,
        after[0] - before[0],
        after[1] - before[1],
        (memory(server) - bytes) / entries
    );
    entries / seconds
}

fn connect(server: &Server) -> MultiplexedConnection {
    let client = redis::Client::open(server.socket_address()).unwrap();
    server.block_on(client.get_multiplexed_async_connection()).unwrap()
}

fn empty(server: &Server) {
    // At once: Valkey would free it beside what is measured next.
    redis::cmd("FLUSHALL").arg("SYNC").exec(&mut server.raw()).unwrap();
}

/// An index where every worker has a home.
fn opened(server: &Server, namespace: &str) -> Arc<RedisIndex> {
    let options = RedisOptions { namespace: namespace.to_owned(), ..RedisOptions::default() };
    // Not what is measured: on a busy machine a reply may take longer than a router would wait.
    let (read_deadline, write_deadline) = (Duration::from_secs(5), Duration::from_secs(5));
    let patience = StoreOptions { read_deadline, write_deadline, ..StoreOptions::default() };
    let address = server.socket_address().parse().unwrap();
    let index = server.block_on(async { RedisIndex::open(address, patience, options).unwrap() });
    server.block_on(async {
        while index.digest_key().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let home = Home { space: SpaceId(0), vocabulary: VocabularyId(0) };
    for worker in 0..WORKERS as u32 {
        server.block_on(index.assign(WorkerId(worker), home)).unwrap();
    }
    Arc::new(index)
}

async fn store(index: Arc<RedisIndex>, worker: usize) {
    for (chain, from) in batches(worker) {
        let name = |block| Name(number(chain, block, 4));
        let blocks: Vec<Block> = (from..BLOCKS.min(from + BATCH))
            .map(|block| Block { name: name(block), digest: Some(Digest(number(chain, block, 3))) })
            .collect();
        let parent = if from == 0 { Parent::Root } else { Parent::Block(name(from - 1)) };
        let change = Change::Store(Store {
            shape: SHAPE,
            group: Group(0),
            tier: Tier::Gpu,
            parent,
            blocks: &blocks,
        });
        let applied = index.apply(WorkerId(worker as u32), &[change]).await.unwrap();
        assert_eq!((applied.stored, applied.unplaced), (blocks.len() as u64, 0));
    }
}

const PEER: &str = "hkeys_per_block, the peer's fields";

/// A field as the nearest peer writes it.
fn long(worker: usize) -> String {
    format!(
        "{{\"PodIdentifier\":\"10.0.0.{worker}:8000\",\"DeviceTier\":\"gpu\",\"Speculative\":false,\
         \"HasGroup\":false,\"GroupIdx\":0}}"
    )
}

/// The shortest that says pod and tier.
fn short(worker: usize) -> String {
    format!("10.0.0.{worker}:8000@gpu")
}

async fn hset(mut to: MultiplexedConnection, worker: usize, salt: u8, field: String) {
    for (chain, from) in batches(worker) {
        let mut pipe = redis::pipe();
        for block in from..BLOCKS.min(from + BATCH) {
            pipe.cmd("HSET").arg(salted(chain, block, salt)).arg(&field).arg("").ignore();
        }
        pipe.query_async::<()>(&mut to).await.unwrap();
    }
}

/// What the nearest peer writes when blocks are added: its map from the engine's name, too.
async fn hset_named(mut to: MultiplexedConnection, worker: usize, salt: u8, field: String) {
    for (chain, from) in batches(worker) {
        let mut pipe = redis::pipe();
        for block in from..BLOCKS.min(from + BATCH) {
            let (key, name) = (salted(chain, block, salt), number(chain, block, 4));
            pipe.cmd("ZADD").arg(format!("engine:{name}")).arg(0).arg(&key).ignore();
            pipe.cmd("HSET").arg(key).arg(&field).arg("").ignore();
        }
        pipe.query_async::<()>(&mut to).await.unwrap();
    }
}

async fn append(mut to: MultiplexedConnection, worker: usize, salt: u8) {
    for (chain, from) in batches(worker) {
        let mut pipe = redis::pipe();
        for block in from..BLOCKS.min(from + BATCH) {
            let holder = (worker as u32).to_le_bytes();
            pipe.cmd("APPEND").arg(salted(chain, block, salt)).arg(&holder[..]).ignore();
        }
        pipe.query_async::<()>(&mut to).await.unwrap();
    }
}

/// The layouts lie beside each other, in keys of 16 bytes that differ in the first.
fn salted(chain: usize, block: usize, salt: u8) -> Vec<u8> {
    let mut key = key(chain, block);
    key[0] = salt;
    key
}

/// Leading blocks of each holder, by the fields of one HKEYS a block.
async fn hkeys(mut to: MultiplexedConnection, keys: &[Vec<u8>]) -> Vec<(Vec<u8>, usize)> {
    let mut pipe = redis::pipe();
    for key in keys {
        pipe.cmd("HKEYS").arg(key);
    }
    let found: Vec<Vec<Vec<u8>>> = pipe.query_async(&mut to).await.unwrap();
    let mut leading: Vec<(Vec<u8>, usize)> =
        found[0].iter().map(|field| (field.clone(), 0)).collect();
    for (at, fields) in found.iter().enumerate() {
        for (field, n) in &mut leading {
            if *n == at && fields.contains(field) {
                *n += 1;
            }
        }
    }
    leading
}

/// Leading blocks of each holder, by one MGET.
async fn mget(mut to: MultiplexedConnection, keys: &[Vec<u8>]) -> Vec<([u8; 4], usize)> {
    let found: Vec<Vec<u8>> = redis::cmd("MGET").arg(keys).query_async(&mut to).await.unwrap();
    let holders = |value: &[u8]| value.chunks_exact(4).map(|h| [h[0], h[1], h[2], h[3]]).collect();
    let first: Vec<[u8; 4]> = holders(&found[0]);
    let mut leading: Vec<([u8; 4], usize)> = first.into_iter().map(|h| (h, 0)).collect();
    for (at, value) in found.iter().enumerate() {
        for (holder, n) in &mut leading {
            if *n == at && value.chunks_exact(4).any(|h| h == holder) {
                *n += 1;
            }
        }
    }
    leading
}

async fn ours(index: &RedisIndex, prompt: &mut Prompt, matches: &mut Matches) {
    let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: false };
    index.lookup(&query, prompt, matches).await.unwrap();
}

fn lookups(c: &mut Criterion) {
    let server = Server::start();
    let to = connect(&server);
    let mut ratios: Vec<f64> = (0..TURNS)
        .map(|turn| {
            empty(&server);
            let index = opened(&server, &format!("turn{turn}"));
            let ours = load(&server, "kvscout", |worker| store(index.clone(), worker));
            empty(&server);
            ours / load(&server, PEER, |worker| hset(to.clone(), worker, 1, long(worker)))
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "kvscout's ingest beside {PEER}: {:.2} times, the median of {TURNS} turns between {:.2} and {:.2}",
        ratios[TURNS / 2],
        ratios[0],
        ratios[TURNS - 1]
    );
    empty(&server);
    let index = opened(&server, "bench");
    load(&server, "kvscout", |worker| store(index.clone(), worker));
    load(&server, PEER, |worker| hset(to.clone(), worker, 1, long(worker)));
    load(&server, "hkeys_per_block, the peer's fields and its map of names", |worker| {
        hset_named(to.clone(), worker, 4, long(worker))
    });
    load(&server, "hkeys_per_block, short fields", |worker| {
        hset(to.clone(), worker, 2, short(worker))
    });
    load(&server, "mget_per_block", |worker| append(to.clone(), worker, 3));

    // Every layout says what is true before it is timed.
    let mut matches = Matches::default();
    for chain in 0..CHAINS {
        let truth: Vec<usize> = (0..WORKERS).filter(|&worker| holds(worker, chain)).collect();
        let keys = |salt| -> Vec<Vec<u8>> {
            (0..BLOCKS).map(|block| salted(chain, block, salt)).collect()
        };
        server.block_on(ours(&index, &mut prompt(chain), &mut matches));
        let (found, _) = matches.sorted();
        let found: Vec<(u32, u32)> = found.iter().map(|m| (m.worker.0, m.leading[3])).collect();
        assert_eq!(found, truth.iter().map(|&w| (w as u32, BLOCKS as u32)).collect::<Vec<_>>());
        for (salt, field) in [(1, long as fn(usize) -> String), (2, short)] {
            let mut found = server.block_on(hkeys(to.clone(), &keys(salt)));
            found.sort();
            let mut want: Vec<_> = truth.iter().map(|&w| (field(w).into_bytes(), BLOCKS)).collect();
            want.sort();
            assert_eq!(found, want);
        }
        let mut found = server.block_on(mget(to.clone(), &keys(3)));
        found.sort();
        let want: Vec<_> = truth.iter().map(|&w| ((w as u32).to_le_bytes(), BLOCKS)).collect();
        assert_eq!(found, want);
    }

    let mut group = c.benchmark_group("redis_lookup");
    let keys = |salt| -> Vec<Vec<Vec<u8>>> {
        (0..CHAINS).map(|chain| (0..BLOCKS).map(|b| salted(chain, b, salt)).collect()).collect()
    };
    let mut prompts: Vec<Prompt> = (0..CHAINS).map(prompt).collect();
    let mut next = (0..CHAINS).cycle();
    group.bench_function(BenchmarkId::new("kvscout", BLOCKS), |b| {
        b.iter(|| {
            let chain = next.next().unwrap();
            server.block_on(ours(&index, &mut prompts[chain], &mut matches));
            black_box(&matches);
        });
    });
    for (layout, salt) in [("hkeys_per_block", 1), ("hkeys_per_block_short", 2)] {
        let keys = keys(salt);
        group.bench_function(BenchmarkId::new(layout, BLOCKS), |b| {
            b.iter(|| server.block_on(hkeys(to.clone(), &keys[next.next().unwrap()])));
        });
    }
    let keys = keys(3);
    group.bench_function(BenchmarkId::new("mget_per_block", BLOCKS), |b| {
        b.iter(|| server.block_on(mget(to.clone(), &keys[next.next().unwrap()])));
    });
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
