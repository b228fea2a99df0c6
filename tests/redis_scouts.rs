//! A scout whose workers are kept in a store, and readers of that store: what both answer, and what becomes of the
//! store when writers and servers go and come.
#![cfg(feature = "redis")]

mod recording_support;
mod redis_support;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use kvscout::block::{Lora, Prompt, TokenId, WorkerId};
use kvscout::index::redis::{RedisIndex, RedisOptions, StoreOptions};
use kvscout::ingest::{Reason, Trust};
use kvscout::scout::shared::{
    Labelling, Outbox, Reader, ReaderOptions, Writer, WriterOptions, WriterWatch,
};
use kvscout::scout::{Adapter, Options, Ranked, Registration, Request, Scout, Scratch};
use redis_support::{Server, eventually};
use serde_json::Value;

const LEASE: Duration = Duration::from_secs(2);

fn patient() -> StoreOptions {
    StoreOptions {
        read_deadline: Duration::from_secs(30),
        write_deadline: Duration::from_secs(30),
        retry_max: Duration::from_millis(200),
        health_interval: Duration::from_millis(200),
        ..StoreOptions::default()
    }
}

fn index(server: &Server, options: RedisOptions) -> Arc<RedisIndex> {
    let _entered = server.enter();
    let options = RedisOptions { lease: LEASE, ..options };
    Arc::new(RedisIndex::open(server.address().parse().unwrap(), patient(), options).unwrap())
}

/// A scout whose workers are kept in the store.
struct Writing {
    scout: Arc<Scout>,
    outbox: Arc<Outbox>,
    watch: WriterWatch,
    task: tokio::task::JoinHandle<()>,
}

impl Writing {
    fn start(server: &Server, owner: &str, most_bytes: usize) -> Writing {
        let options = RedisOptions { owner: Some(owner.to_owned()), ..RedisOptions::default() };
        let index = index(server, options);
        let key = server.block_on(async {
            loop {
                match index.digest_key().await {
                    Ok(key) => return key,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let outbox = Arc::new(Outbox::new(most_bytes));
        let options = Options {
            digest_key: Some(key),
            mirror: Some(outbox.clone()),
            seeds: vec!["7".to_owned()],
            ..Options::default()
        };
        let scout = Arc::new(Scout::new(options).unwrap());
        let every = Duration::from_millis(20);
        let options = WriterOptions { every, lease: LEASE, ..WriterOptions::default() };
        let (labels, kept) = (Labelling::default(), outbox.clone());
        let writer = Writer::new(scout.clone(), index, kept, labels, options);
        let watch = writer.watch();
        let _entered = server.enter();
        let task = tokio::spawn(writer.run(pending()));
        Writing { scout, outbox, watch, task }
    }

    fn add(&self, pod: &str) -> WorkerId {
        self.scout.register(Registration::new(pod, "m")).unwrap()
    }

    /// Waits until the store has everything.
    fn settled(&self, server: &Server, reader: &Reader) {
        eventually("the store has what memory has", || {
            let _ = server.block_on(reader.refresh());
            let mine = self.scout.workers();
            let known = reader.workers();
            self.outbox.is_empty()
                && mine.iter().all(|status| {
                    let of = known.iter().find(|k| k.facts.pod == status.registration.pod);
                    of.is_some_and(|k| {
                        (k.facts.as_of, k.facts.trust) == (status.as_of, status.trust)
                    })
                })
        });
    }
}

fn reader(server: &Server) -> Reader {
    let index = index(server, RedisOptions { only_reads: true, ..RedisOptions::default() });
    let options = ReaderOptions {
        deadline: Duration::from_secs(30),
        stale_after: Duration::from_secs(60),
        ..ReaderOptions::default()
    };
    let mut reader = None;
    eventually("the reader has the store's key", || {
        reader = server.block_on(Reader::open(index.clone(), options.clone())).ok();
        reader.is_some()
    });
    reader.unwrap()
}

/// What is compared of a row.
fn row(ranked: Ranked<'_>) -> (String, String, Trust, Option<u64>) {
    (ranked.pod.to_owned(), format!("{:?}", ranked.score), ranked.trust, ranked.as_of)
}

type Rows = Vec<(String, String, Trust, Option<u64>)>;

fn ask<'a>(tokens: &'a [TokenId], question: &'a Value) -> Request<'a> {
    let lora = question["lora"]["name"].as_str().map(|name| Lora {
        name,
        id: question["lora"]["id"].as_i64(),
        path: question["lora"]["path"].as_str(),
    });
    let cache_salt = question["cache_salt"].as_str();
    Request::new("m", Prompt { lora, cache_salt, ..Prompt::new(tokens) })
}

fn by_memory(scout: &Scout, request: &Request<'_>) -> Rows {
    scout.score(request, &mut Scratch::default()).unwrap().iter().map(row).collect()
}

fn by_store(server: &Server, reader: &Reader, request: &Request<'_>) -> Rows {
    server.block_on(async {
        let mut scratch = Scratch::default();
        let ranking = reader.score(request, &mut scratch).await.unwrap();
        ranking.iter().map(row).collect()
    })
}

fn payload(line: &Value) -> Vec<u8> {
    let hex = line["payload"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|n| u8::from_str_radix(&hex[n..n + 2], 16).unwrap()).collect()
}

fn tokens(line: &Value) -> Vec<TokenId> {
    serde_json::from_value(line["token_ids"].clone()).unwrap()
}

/// Asks both, and adds how many tokens were cached in all.
fn compare(server: &Server, writing: &Writing, reader: &Reader, line: &Value) -> u64 {
    let tokens = tokens(line);
    let request = ask(&tokens, line);
    let expected = by_memory(&writing.scout, &request);
    assert_eq!(by_store(server, reader, &request), expected, "{}", line["id"]);
    let mut scratch = Scratch::default();
    let best = writing.scout.score(&request, &mut scratch).unwrap().best().unwrap().score;
    u64::from(best.expected_cached_tokens.unwrap_or(0))
}

#[test]
fn a_reader_answers_what_the_writers_memory_answers_for_recordings_of_real_vllm() {
    for (file, (lines, _)) in recording_support::drives() {
        let server = Server::start();
        let writing = Writing::start(&server, "w", 64 << 20);
        let worker = writing.add("pod");
        let reader = reader(&server);
        let (mut asked, mut cached, mut dirty) = (0, 0, true);
        for (n, line) in lines.iter().enumerate() {
            match line["op"].as_str().unwrap() {
                "events" => {
                    let seq = line["seq"].as_u64().unwrap();
                    writing.scout.apply(worker, seq, &payload(line)).unwrap();
                    dirty = true;
                }
                // Each waits for the store.
                "query" if n % 3 == 0 => {
                    if std::mem::take(&mut dirty) {
                        writing.settled(&server, &reader);
                    }
                    cached += compare(&server, &writing, &reader, line);
                    asked += 1;
                }
                _ => {}
            }
        }
        let report = writing.watch.report();
        assert!(asked > 15 && cached > 0, "{file}: {asked} {cached}");
        assert_eq!((report.diverged, report.left_out), (0, 0), "{file}");
        assert!(report.applied > 10 && report.rebuilt <= 3, "{file}: {report:?}");
        writing.task.abort();
    }
}

/// The batches of one recording, and its questions.
fn drive() -> (Vec<(u64, Vec<u8>)>, Vec<Value>) {
    let (_, (lines, _)) = recording_support::drives().into_iter().last().unwrap();
    let batch = |line: &Value| Some((line["seq"].as_u64()?, payload(line)));
    let batches = lines.iter().filter(|line| line["op"] == "events").filter_map(batch).collect();
    (batches, lines.into_iter().filter(|line| line["op"] == "query").collect())
}

fn compare_all(server: &Server, writing: &Writing, reader: &Reader, questions: &[Value]) {
    let cached: u64 = questions.iter().map(|line| compare(server, writing, reader, line)).sum();
    assert!(cached > 0);
}

#[test]
fn r2_a_store_that_was_away_while_batches_came_is_whole_afterwards() {
    let mut server = Server::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    // So little room that steps are dropped.
    let writing = Writing::start(&server, "w", 4096);
    let worker = writing.add("pod");
    let reader = reader(&server);
    let (batches, questions) = drive();
    let (before, after) = batches.split_at(batches.len() / 2);
    for (seq, payload) in before {
        writing.scout.apply(worker, *seq, payload).unwrap();
    }
    writing.settled(&server, &reader);
    server.kill();
    for (seq, payload) in after {
        writing.scout.apply(worker, *seq, payload).unwrap();
    }
    assert!(writing.outbox.dropped() > 0 && writing.outbox.bytes() <= 4096);
    server.restart();
    writing.settled(&server, &reader);
    compare_all(&server, &writing, &reader, &questions);
    assert!(writing.watch.report().rebuilt >= 2, "{:?}", writing.watch.report());
}

#[test]
fn r3_blocks_that_somebody_took_from_the_store_are_noticed_and_made_up_for() {
    let server = Server::start();
    let writing = Writing::start(&server, "w", 64 << 20);
    let worker = writing.add("pod");
    let reader = reader(&server);
    let (batches, questions) = drive();
    let (before, after) = batches.split_at(batches.len() / 2);
    for (seq, payload) in before {
        writing.scout.apply(worker, *seq, payload).unwrap();
    }
    writing.settled(&server, &reader);
    for key in server.ask(&["KEYS", "*:r:*"]).split_whitespace() {
        server.ask(&["DEL", key]);
    }
    for (seq, payload) in after {
        writing.scout.apply(worker, *seq, payload).unwrap();
    }
    eventually("it is noticed", || writing.watch.report().diverged > 0);
    writing.settled(&server, &reader);
    compare_all(&server, &writing, &reader, &questions);
}

#[test]
fn r8_a_store_that_somebody_emptied_is_filled_again_under_the_same_secret() {
    let server = Server::start();
    let writing = Writing::start(&server, "w", 64 << 20);
    let worker = writing.add("pod");
    let reader = reader(&server);
    let (batches, questions) = drive();
    for (seq, payload) in &batches[..batches.len() - 1] {
        writing.scout.apply(worker, *seq, payload).unwrap();
    }
    writing.settled(&server, &reader);
    server.ask(&["FLUSHALL"]);
    let (seq, payload) = batches.last().unwrap();
    writing.scout.apply(worker, *seq, payload).unwrap();
    writing.settled(&server, &reader);
    compare_all(&server, &writing, &reader, &questions);
}

#[test]
fn a_reader_without_a_store_says_so_of_every_worker_it_knows() {
    let mut server = Server::start();
    let writing = Writing::start(&server, "w", 64 << 20);
    let worker = writing.add("pod");
    let reader = reader(&server);
    let (batches, questions) = drive();
    writing.scout.apply(worker, batches[0].0, &batches[0].1).unwrap();
    writing.settled(&server, &reader);
    server.kill();
    // The first may be shorter than a block, and need no store.
    let long = questions.iter().max_by_key(|line| tokens(line).len()).unwrap();
    let tokens = tokens(long);
    let rows = by_store(&server, &reader, &ask(&tokens, long));
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].2, Trust::Degraded(Reason::Store));
}

#[test]
fn an_adapter_that_its_owner_speaks_of_no_more_is_gone_and_a_reader_s_own_stays() {
    let server = Server::start();
    let writing = Writing::start(&server, "w", 64 << 20);
    writing.add("pod");
    let reader = reader(&server);
    let of = |model: &str| Adapter { model: model.to_owned(), id: None, path: None };
    let tenant = Registration::DEFAULT_TENANT;
    reader.register_adapter(tenant, "own", of("m"));
    for name in ["sql", "own", "chat"] {
        writing.scout.register_adapter(tenant, name, of("m"));
    }
    let knows = |name: &str| {
        server.block_on(reader.refresh()).unwrap();
        let request = Request::new(name, Prompt::new(&[1]));
        server.block_on(reader.score(&request, &mut Scratch::default())).is_ok()
    };
    eventually("the reader knows them", || ["sql", "own", "chat"].into_iter().all(knows));
    assert!(writing.scout.unregister_adapter(tenant, "sql"));
    assert!(writing.scout.unregister_adapter(tenant, "own"));
    assert!(!writing.scout.unregister_adapter(tenant, "own"), "it is gone already");
    eventually("one is gone", || !knows("sql"));
    assert!(knows("own") && knows("chat"));
}

#[test]
fn what_is_said_of_a_worker_under_another_ones_name_is_not_believed() {
    let server = Server::start();
    let writing = Writing::start(&server, "w", 64 << 20);
    writing.add("pod");
    let reader = reader(&server);
    writing.settled(&server, &reader);
    let note = server.ask(&["HGET", "kvscout:1:default:f:w", "[\"default\",\"pod\",0]"]);
    assert!(note.contains("\"pod\":\"pod\""), "{note}");
    for (about, note) in [
        ("[\"default\",\"other\",0]", note.as_str()),
        ("[\"default\",\"third\",0]", "no note"),
        ("adapters", "neither"),
    ] {
        server.ask(&["HSET", "kvscout:1:default:f:w", about, note]);
    }
    server.block_on(reader.refresh()).unwrap();
    let pods: Vec<String> = reader.workers().into_iter().map(|known| known.facts.pod).collect();
    assert_eq!(pods, ["pod"]);
}
