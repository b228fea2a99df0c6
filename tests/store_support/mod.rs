//! Clients of one store: two workers with the same kind of names, paths of numbered blocks.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kvscout::ErrorKind;
use kvscout::block::{
    BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId,
};
use kvscout::index::redis::{RedisIndex, RedisOptions, StoreOptions};
use kvscout::index::{
    Applied, Block, BlockSource, Change, Home, Index as _, Matches, Parent, Query, Store,
};

use crate::redis_support::{Server, eventually};

pub const SHAPE: Shape = Shape::plain(BlockSize::DEFAULT);
pub const HOME: Home = Home { space: SpaceId(1), vocabulary: VocabularyId(1) };
pub const A: WorkerId = WorkerId(1);
pub const B: WorkerId = WorkerId(2);

pub fn options() -> RedisOptions {
    RedisOptions::default()
}

/// Deadlines that a machine under load keeps; finds out soon that a server is back.
pub fn patient() -> StoreOptions {
    StoreOptions {
        read_deadline: Duration::from_secs(30),
        write_deadline: Duration::from_secs(30),
        retry_max: Duration::from_millis(200),
        health_interval: Duration::from_millis(200),
        ..StoreOptions::default()
    }
}

/// As [`patient`], for lookups that must end while the store is in trouble.
pub fn in_time() -> StoreOptions {
    StoreOptions { read_deadline: Duration::from_secs(5), ..patient() }
}

/// Four tasks that look up a path of 100 blocks, whatever happens to the store meanwhile.
pub struct Looks {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Looked>>,
}

#[derive(Default)]
struct Looked {
    longest: Duration,
    answered: u32,
    failed: u32,
}

impl Looks {
    /// Begins them, and waits until they are under way. The index is one of [`in_time`].
    pub fn begin(host: &Server, index: &Arc<RedisIndex>) -> Looks {
        let stop = Arc::new(AtomicBool::new(false));
        let before = index.counters().calls;
        let _entered = host.enter();
        let tasks = (0..4).map(|_| tokio::spawn(look(Arc::clone(index), Arc::clone(&stop))));
        let looks = Looks { tasks: tasks.collect(), stop };
        eventually("lookups are under way", || index.counters().calls > before + 100);
        looks
    }

    /// Ends them: each kept its deadline, and every task had answers. Returns how many lookups of each failed.
    pub fn end(self, host: &Server) -> Vec<u32> {
        self.stop.store(true, SeqCst);
        let looked = self.tasks.into_iter().map(|task| {
            let Looked { longest, answered, failed } = host.block_on(task).unwrap();
            assert!(longest < Duration::from_secs(30), "{longest:?}: 3 trips of 5 s, and slack");
            assert!(answered > 0, "{failed} failed");
            failed
        });
        looked.collect()
    }
}

async fn look(index: Arc<RedisIndex>, stop: Arc<AtomicBool>) -> Looked {
    let mut looked = Looked::default();
    while !stop.load(SeqCst) {
        let query = Query { space: SpaceId(1), shape: SHAPE, candidates: None, spans: false };
        let (started, mut matches) = (Instant::now(), Matches::default());
        match index.lookup(&query, &mut Prompt(blocks(0..100)), &mut matches).await {
            Ok(()) => looked.answered += 1,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
                looked.failed += 1;
            }
        }
        looked.longest = looked.longest.max(started.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    looked
}

/// Lookups by a client that does nothing else, once it is answered.
pub fn looks(host: &Server, address: &str) -> Looks {
    let index = Arc::new(open(host, address, in_time(), options()));
    eventually("it is answered", || try_held(host, &index, 10).is_ok());
    Looks::begin(host, &index)
}

/// An index that need not be connected yet. `host` is the server whose runtime it lives in.
pub fn open(
    host: &Server,
    address: &str,
    limits: StoreOptions,
    options: RedisOptions,
) -> RedisIndex {
    named(opened(host, address, limits, options))
}

fn opened(host: &Server, address: &str, limits: StoreOptions, options: RedisOptions) -> RedisIndex {
    let _entered = host.enter();
    RedisIndex::open(address.parse().unwrap(), limits, options).unwrap()
}

/// A connected index whose ids have no texts.
pub fn connected(server: &Server, options: RedisOptions) -> RedisIndex {
    let index = opened(server, &server.socket_address(), patient(), options);
    eventually("it is connected", || index.counters().servers_ready == 1);
    index
}

pub fn client(server: &Server, options: RedisOptions) -> RedisIndex {
    named(connected(server, options))
}

/// The index, knowing what the ids here are called.
pub fn named(index: RedisIndex) -> RedisIndex {
    index.name_space(SpaceId(1), "tenant/model");
    index.name_vocabulary(VocabularyId(1), "sha256 seed 0");
    index.name_worker(A, "tenant/pod-a/0");
    index.name_worker(B, "tenant/pod-b/0");
    index
}

pub fn blocks(range: std::ops::Range<u64>) -> Vec<Block> {
    let block = |n| Block { name: Name(n * 0x1_0001), digest: Some(Digest(n)) };
    range.map(block).collect()
}

pub fn parent(range: &std::ops::Range<u64>) -> Parent {
    match range.start {
        0 => Parent::Root,
        n => Parent::Block(Name((n - 1) * 0x1_0001)),
    }
}

pub fn stored(blocks: &[Block], parent: Parent) -> Change<'_> {
    Change::Store(Store { shape: SHAPE, group: Group(0), tier: Tier::Gpu, parent, blocks })
}

pub fn store(server: &Server, index: &RedisIndex, worker: WorkerId, range: std::ops::Range<u64>) {
    let blocks = blocks(range.clone());
    let change = stored(&blocks, parent(&range));
    let applied = server.block_on(index.apply(worker, &[change])).unwrap();
    assert_eq!(applied.stored, blocks.len() as u64);
}

pub fn remove(
    server: &Server,
    index: &RedisIndex,
    worker: WorkerId,
    range: std::ops::Range<u64>,
) -> Applied {
    let names: Vec<Name> = blocks(range).iter().map(|block| block.name).collect();
    let change = Change::Remove { group: Group(0), tier: Tier::Gpu, names: &names };
    server.block_on(index.apply(worker, &[change])).unwrap()
}

pub struct Prompt(pub(crate) Vec<Block>);

impl BlockSource for Prompt {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn digests(&mut self, from: usize, _: usize) -> &[Digest] {
        let digests = self.0[from..].iter().filter_map(|block| block.digest);
        // Tests may leak.
        Vec::leak(digests.collect())
    }

    fn name(&mut self, _: VocabularyId, block: usize) -> Option<Name> {
        Some(self.0[block].name)
    }
}

/// Worker and leading blocks of a prompt.
pub fn leading(server: &Server, index: &RedisIndex, prompt: &[Block]) -> Vec<(u32, u32)> {
    try_leading(server, index, prompt.to_vec()).unwrap()
}

fn try_leading(
    server: &Server,
    index: &RedisIndex,
    prompt: Vec<Block>,
) -> Result<Vec<(u32, u32)>, kvscout::Error> {
    let query = Query { space: SpaceId(1), shape: SHAPE, candidates: None, spans: false };
    let mut matches = Matches::default();
    server.block_on(index.lookup(&query, &mut Prompt(prompt), &mut matches))?;
    Ok(matches.sorted().0.iter().map(|m| (m.worker.0, m.leading[3])).collect())
}

pub fn try_held(
    server: &Server,
    index: &RedisIndex,
    n: u64,
) -> Result<Vec<(u32, u32)>, kvscout::Error> {
    try_leading(server, index, blocks(0..n))
}

/// Worker and leading blocks of the prompt of so many blocks.
pub fn held(server: &Server, index: &RedisIndex, n: u64) -> Vec<(u32, u32)> {
    try_held(server, index, n).unwrap()
}

pub fn assign(server: &Server, index: &RedisIndex, worker: WorkerId) {
    server.block_on(index.assign(worker, HOME)).unwrap();
}

pub fn keys(server: &Server, pattern: &str) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut server.raw()).unwrap();
    keys.sort();
    keys
}
