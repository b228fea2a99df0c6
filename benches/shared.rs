//! What `serve` does with a store, beside the same done by memory alone: a reader's whole answer, and a
//! scout's workers kept in the store behind it. One server, 256 chains of 1,000 blocks, each held by 4 of 64
//! workers, and one chain held by all of them.
//!
//! `cargo bench --features redis --bench shared`. Starts its own server. The reader's rows are compared with
//! memory's for every chain before anything is timed. Figures are to be read as ratios within one run.

#[path = "../tests/redis_support/mod.rs"]
mod redis_support;
#[path = "../tests/scout_support/mod.rs"]
mod scout_support;

use std::future::pending;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvscout::block::{BlockSize, Prompt, Shape, TokenId, WorkerId};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use kvscout::index::redis::{RedisIndex, RedisOptions, StoreOptions};
use kvscout::ingest::Trust;
use kvscout::scout::shared::{
    Labelling, Outbox, Reader, ReaderOptions, Writer, WriterOptions, WriterReport, WriterWatch,
};
use kvscout::scout::{Mirror, Options, Ranked, Ranking, Registration, Request, Scout, Scratch};
use redis_support::Server;
use scout_support::{SIZE, tokens};
use serde_json::{Value, json};

const CHAINS: usize = 256;
const BLOCKS: usize = 1_000;
const WORKERS: usize = 64;
const HOLDERS: usize = 4;
const BATCH: usize = 64;
/// Answers that are timed of each side and kind.
const ANSWERS: usize = 2_000;

/// The last chain is everybody's.
fn holds(worker: usize, chain: usize) -> bool {
    chain == CHAINS || worker / HOLDERS == chain % (WORKERS / HOLDERS)
}

/// The batches that store a chain, as vLLM 0.33 writes them and under the names that it gives.
fn batches(contract: &Contract, tokens: &[TokenId]) -> Vec<Vec<u8>> {
    let shape = Shape::plain(BlockSize::DEFAULT);
    let asked = Prompt::new(tokens);
    let mut chain = contract.chain(shape, &asked).expect("the prompt is plain");
    let names: Vec<i128> = chain.extend(tokens).filter_map(|hash| hash.event()).collect();
    assert_eq!(names.len(), BLOCKS);
    let batch = |from: usize| {
        let names = |range: std::ops::Range<usize>| -> Vec<u64> {
            names[range].iter().map(|&name| name as u64).collect()
        };
        let to = BLOCKS.min(from + BATCH);
        let parent = if from == 0 { Value::Null } else { json!(names(from - 1..from)[0]) };
        let event = json!({
            "type": "BlockStored", "block_hashes": names(from..to), "parent_block_hash": parent,
            "token_ids": tokens[from * SIZE..to * SIZE], "block_size": SIZE, "lora_id": null,
            "medium": "GPU", "lora_name": null, "extra_keys": vec![Value::Null; to - from],
            "group_idx": 0, "kv_cache_spec_kind": "full_attention",
            "kv_cache_spec_sliding_window": null,
        });
        rmp_serde::to_vec(&json!([1.0, [event], 0])).expect("plain values can be written")
    };
    (0..BLOCKS).step_by(BATCH).map(batch).collect()
}

/// A scout with all workers, and the number of each one's next batch.
struct Fleet {
    scout: Arc<Scout>,
    workers: Vec<(WorkerId, u64)>,
}

impl Fleet {
    fn new(options: Options) -> Fleet {
        let scout = Arc::new(Scout::new(options).expect("the system gives a random key"));
        let worker = |n| scout.register(Registration::new(format!("engine-{n}"), "m"));
        let workers =
            (0..WORKERS).map(|n| (worker(n).expect("no worker comes twice"), 0)).collect();
        Fleet { scout, workers }
    }

    /// Stores a chain at each of its holders, who take turns; how many blocks that were.
    fn store(&mut self, chain: usize, batches: &[Vec<u8>]) -> usize {
        let mut blocks = 0;
        for payload in batches {
            let holders = self.workers.iter_mut().enumerate().filter(|(n, _)| holds(*n, chain));
            for (_, (worker, seq)) in holders {
                let ingested = self.scout.apply(*worker, *seq, payload).expect("it is registered");
                *seq += 1;
                blocks += ingested.applied.stored as usize;
            }
        }
        blocks
    }

    /// Stores what not everybody holds; how long it took.
    fn fill(&mut self, all: &[Vec<Vec<u8>>]) -> Duration {
        let started = Instant::now();
        let blocks: usize = (0..CHAINS).map(|chain| self.store(chain, &all[chain])).sum();
        assert_eq!(blocks, CHAINS * HOLDERS * BLOCKS);
        started.elapsed()
    }
}

/// An index of the server, once that is there.
fn index(server: &Server, owner: Option<&str>) -> Arc<RedisIndex> {
    let owner = owner.map(str::to_owned);
    let options = RedisOptions { only_reads: owner.is_none(), owner, ..RedisOptions::default() };
    // Not what is measured: on a busy machine a reply may take longer than a router would wait.
    let (read_deadline, write_deadline) = (Duration::from_secs(5), Duration::from_secs(5));
    let link = StoreOptions { read_deadline, write_deadline, ..StoreOptions::default() };
    let address = server.socket_address().parse().expect("it is a path");
    server.block_on(async {
        let index = RedisIndex::open(address, link, options).expect("the options are right");
        while index.digest_key().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Arc::new(index)
    })
}

/// A fleet whose workers are kept in the store.
struct Behind {
    fleet: Fleet,
    outbox: Arc<Outbox>,
    watch: WriterWatch,
}

impl Behind {
    fn start(server: &Server) -> Behind {
        let index = index(server, Some("bench"));
        let key = server.block_on(index.digest_key()).expect("it was there a moment ago");
        // Nothing is dropped, however far the store is behind.
        let outbox = Arc::new(Outbox::new(usize::MAX));
        let (digest_key, mirror) = (Some(key), Some(outbox.clone() as Arc<dyn Mirror>));
        let fleet = Fleet::new(Options { digest_key, mirror, ..Options::default() });
        let (labels, options) = (Labelling::default(), WriterOptions::default());
        let writer = Writer::new(fleet.scout.clone(), index, outbox.clone(), labels, options);
        let watch = writer.watch();
        let _entered = server.enter();
        tokio::spawn(writer.run(pending()));
        Behind { fleet, outbox, watch }
    }

    /// Waits until the store has all, each step as it was.
    fn drained(&self) {
        loop {
            let WriterReport { following, lag, diverged, left_out, .. } = self.watch.report();
            if self.outbox.is_empty() && following as usize == WORKERS && lag == 0 {
                assert_eq!((diverged, left_out, self.outbox.dropped()), (0, 0, 0));
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The batches that the store has, as it says.
    fn is_read_by(&self, reader: &Reader) -> bool {
        let (mine, known) = (self.fleet.scout.workers(), reader.workers());
        mine.iter().all(|status| {
            let of = known.iter().find(|known| known.facts.pod == status.registration.pod);
            of.is_some_and(|of| (of.facts.as_of, of.facts.trust) == (status.as_of, status.trust))
        })
    }
}

/// A row as both sides say it.
type Row = (String, u32, Option<u32>, Trust, Option<u64>);

fn rows(ranking: &Ranking<'_>) -> Vec<Row> {
    let row = |row: Ranked<'_>| {
        let score = row.score;
        let cached = score.expected_cached_tokens.ok();
        (row.pod.to_owned(), score.matched_blocks, cached, row.trust, row.as_of)
    };
    let mut rows: Vec<Row> = ranking.iter().map(row).collect();
    // Who is equal comes in the order in which it was met.
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

/// Times one way of answering; the median and the 99th of a hundred, in microseconds.
fn timed(mut answer: impl FnMut(usize)) -> [f64; 2] {
    let mut took: Vec<Duration> = (0..ANSWERS)
        .map(|n| {
            let started = Instant::now();
            answer(n);
            started.elapsed()
        })
        .collect();
    took.sort();
    [took[ANSWERS / 2], took[ANSWERS * 99 / 100]].map(|took| took.as_secs_f64() * 1e6)
}

fn answers(server: &Server, scout: &Scout, reader: &Reader, prompts: &[Vec<TokenId>]) {
    let mut scratch = Scratch::default();
    let request = |chain: usize| Request::new("m", Prompt::new(&prompts[chain]));
    for chain in 0..=CHAINS {
        let expected = rows(&scout.score(&request(chain), &mut scratch).expect("m is served"));
        let found = server.block_on(async {
            rows(&reader.score(&request(chain), &mut scratch).await.expect("m is served"))
        });
        assert_eq!(found, expected, "chain {chain}");
        let whole = found.iter().filter(|row| row.1 as usize == BLOCKS).count();
        assert_eq!(whole, (0..WORKERS).filter(|&n| holds(n, chain)).count());
        assert!(found.iter().all(|row| row.3 == Trust::Exact), "{found:?}");
    }
    let kinds: [(&str, &dyn Fn(usize) -> usize); 2] =
        [("held by 4 of 64", &|n| n % CHAINS), ("held by all 64", &|_| CHAINS)];
    for (what, chain) in kinds {
        let memory = timed(|n| {
            let ranking = scout.score(&request(chain(n)), &mut scratch).expect("m is served");
            black_box(ranking.best().map(|row| row.worker));
        });
        let store = timed(|n| {
            server.block_on(async {
                let asked = reader.score(&request(chain(n)), &mut scratch).await;
                black_box(asked.expect("m is served").best().map(|row| row.worker));
            });
        });
        println!(
            "answer, {what}: memory {:.1} us (p99 {:.1}), reader {:.1} us (p99 {:.1}), ratio {:.1}",
            memory[0],
            memory[1],
            store[0],
            store[1],
            store[0] / memory[0]
        );
    }
}

fn write_behind(server: &Server, all: &[Vec<Vec<u8>>]) -> Behind {
    let mut alone = Fleet::new(Options::default());
    alone.store(CHAINS, &all[CHAINS]);
    let memory = alone.fill(all);
    drop(alone);
    let mut behind = Behind::start(server);
    // First batches settle contracts and begin each worker's part of the store, once in a life.
    behind.fleet.store(CHAINS, &all[CHAINS]);
    behind.drained();
    let (begun, started) = (behind.watch.report().rebuilt, Instant::now());
    let applied = behind.fleet.fill(all);
    behind.drained();
    let kept = started.elapsed();
    assert_eq!(behind.watch.report().rebuilt, begun, "every step went as one");
    let rate = |took: Duration| (CHAINS * HOLDERS * BLOCKS) as f64 / took.as_secs_f64();
    println!(
        "blocks/s in batches of {BATCH}: memory alone {:.0}, memory with a store behind it {:.0} (ratio {:.2}), until the \
         store has them {:.0} (ratio {:.3})",
        rate(memory),
        rate(applied),
        rate(applied) / rate(memory),
        rate(kept),
        rate(kept) / rate(memory)
    );
    behind
}

fn main() {
    let contract = Contract::new(Version::new(0, 33, 0), Algorithm::Sha256Cbor, Root::Seed("0"));
    let contract = contract.expect("0.33 has it");
    // Longer by a token, so that the last block may count as cached.
    let prompt = |chain| tokens(chain, BLOCKS * SIZE + 1);
    let prompts: Vec<Vec<TokenId>> = (0..=CHAINS as u64).map(prompt).collect();
    let all: Vec<Vec<Vec<u8>>> = prompts.iter().map(|tokens| batches(&contract, tokens)).collect();

    let server = Server::start();
    let behind = write_behind(&server, &all);
    let (deadline, stale_after) = (Duration::from_secs(10), Duration::from_secs(3600));
    let options = ReaderOptions { deadline, stale_after, ..ReaderOptions::default() };
    let reader = server.block_on(Reader::open(index(&server, None), options));
    let reader = reader.expect("the store is there");
    while !behind.is_read_by(&reader) {
        std::thread::sleep(Duration::from_millis(50));
        server.block_on(reader.refresh()).expect("the store is there");
    }
    answers(&server, &behind.fleet.scout, &reader, &prompts);
}
