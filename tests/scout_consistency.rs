//! Queries beside batches: an answer is the state as of the batch that it names.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvscout::block::{Prompt, WorkerId};
use kvscout::ingest::Trust;
use kvscout::scout::{Options, Ranked, Registration, Request, Scout, Scratch};
use serde_json::{Value, json};

const BLOCKS: u32 = 48;
const SIZE: u32 = 4;
const TOKENS: u32 = BLOCKS * SIZE;

fn batch(timestamp: u64, events: &[Value]) -> Vec<u8> {
    rmp_serde::to_vec(&json!([timestamp as f64, events, 0])).unwrap()
}

/// The prompt in blocks of a size; names differ from one size and life to the next.
fn stored(size: u32, first: u64, group: u32, kind: &str) -> Value {
    let names: Vec<u64> = (0..u64::from(TOKENS / size)).map(|n| first + n).collect();
    let tokens: Vec<u32> = (0..TOKENS).collect();
    json!({
        "type": "BlockStored", "block_hashes": names, "parent_block_hash": null,
        "token_ids": tokens, "block_size": size, "lora_id": null, "medium": "GPU",
        "lora_name": null, "extra_keys": vec![Value::Null; names.len()], "group_idx": group,
        "kv_cache_spec_kind": kind,
        "kv_cache_spec_sliding_window": (kind == "sliding_window").then_some(9),
    })
}

fn removed(size: u32, first: u64, group: u32) -> Value {
    let names: Vec<u64> = (0..u64::from(TOKENS / size)).map(|n| first + n).collect();
    json!({ "type": "BlockRemoved", "block_hashes": names, "medium": "GPU", "group_idx": group })
}

/// Tokens that a worker holds after a batch, if it stores the prompt with each even one and evicts it
/// with each odd one.
fn held(as_of: Option<u64>) -> u32 {
    as_of.map_or(0, |seq| if seq.is_multiple_of(2) { TOKENS } else { 0 })
}

/// Runs `writers` and two queries beside them for a while; `check` gets every row of each answer.
fn beside(
    scout: &Scout,
    writers: Vec<Box<dyn Fn(u64) + Send + '_>>,
    check: impl Fn(Ranked<'_>) + Sync,
) {
    // Longer by a token, so that the last block may count as cached.
    let tokens: Vec<u32> = (0..=TOKENS).collect();
    let (done, asked, written) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    thread::scope(|scope| {
        for write in writers {
            let (done, written) = (&done, &written);
            scope.spawn(move || {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    write(n);
                    n += 1;
                }
                written.fetch_add(n, Ordering::Relaxed);
            });
        }
        let query = || {
            let mut scratch = Scratch::default();
            while !done.load(Ordering::Relaxed) {
                let request = Request::new("m", Prompt::new(&tokens));
                scout.score(&request, &mut scratch).unwrap().iter().for_each(&check);
                asked.fetch_add(1, Ordering::Relaxed);
            }
        };
        let queries = [scope.spawn(query), scope.spawn(query)];
        // Under load it may take a while until everyone had a turn.
        let is_short =
            || start.elapsed() < Duration::from_millis(700) || asked.load(Ordering::Relaxed) < 60;
        while is_short() && !queries.iter().any(|query| query.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(written.into_inner() > 100);
}

fn register(scout: &Scout, pod: &str) -> WorkerId {
    scout.register(Registration::new(pod, "m")).unwrap()
}

/// A writer of batches made beforehand: the first with even numbers, the second with odd ones.
fn toggle<'a>(
    scout: &'a Scout,
    worker: WorkerId,
    events: [Vec<Value>; 2],
) -> Box<dyn Fn(u64) + Send + 'a> {
    let payloads = events.map(|events| batch(1, &events));
    Box::new(move |seq| {
        scout.apply(worker, seq, &payloads[seq as usize % 2]).unwrap();
    })
}

#[test]
fn a_worker_is_seen_as_of_a_batch_and_never_in_the_middle_of_one() {
    let scout = Scout::new(Options::default()).unwrap();
    let writers = (0..3).map(|n| {
        let first = 1000 * (n + 1);
        let events =
            [vec![stored(SIZE, first, 0, "full_attention")], vec![removed(SIZE, first, 0)]];
        toggle(&scout, register(&scout, &format!("w{n}")), events)
    });
    let still = register(&scout, "still");
    scout.apply(still, 0, &batch(1, &[stored(SIZE, 9000, 0, "full_attention")])).unwrap();
    let writers = writers.collect();
    beside(&scout, writers, |row| {
        assert_eq!(row.trust, Trust::Exact);
        let expected = if row.worker == still { TOKENS } else { held(row.as_of) };
        assert_eq!(row.score.tier_tokens, [expected; 4], "{row:?}");
        assert_eq!(row.score.expected_cached_tokens, Ok(expected), "{row:?}");
    });
}

#[test]
fn all_groups_of_a_worker_are_seen_as_of_the_same_batch() {
    let scout = Scout::new(Options::default()).unwrap();
    let writers = (0..2).map(|n| {
        let (full, window) = (1000 * (2 * n + 1), 1000 * (2 * n + 2));
        // The groups change in turn: in the middle of a batch one has its blocks and one has not.
        let events = [
            vec![
                stored(SIZE, full, 0, "full_attention"),
                stored(SIZE, window, 1, "sliding_window"),
            ],
            vec![removed(SIZE, window, 1), removed(SIZE, full, 0)],
        ];
        toggle(&scout, register(&scout, &format!("w{n}")), events)
    });
    let writers = writers.collect();
    beside(&scout, writers, |row| {
        assert_eq!(row.trust, Trust::Exact);
        assert_eq!(row.score.tier_tokens, [held(row.as_of); 4], "{row:?}");
        assert_eq!(row.score.expected_cached_tokens, Ok(held(row.as_of)), "{row:?}");
    });
}

#[test]
fn a_worker_whose_groups_change_is_scored_by_those_of_its_batch() {
    let scout = Scout::new(Options::default()).unwrap();
    let worker = register(&scout, "restarts");
    // Each life holds the whole prompt, in blocks of another size.
    let lives = Box::new(|n: u64| {
        let size = if n.is_multiple_of(2) { SIZE } else { 2 * SIZE };
        let payload = batch(n + 1, &[stored(size, 1000 * (n + 1), 0, "full_attention")]);
        scout.apply(worker, 0, &payload).unwrap();
    });
    // Others come and go meanwhile.
    let come_and_go = Box::new(|n: u64| {
        let worker = register(&scout, "visitor");
        scout
            .apply(worker, 0, &batch(1, &[stored(SIZE, 1 << 40 | n << 8, 0, "full_attention")]))
            .unwrap();
        scout.unregister(worker).unwrap();
    });
    beside(&scout, vec![lives, come_and_go], |row| {
        assert_eq!(row.trust, Trust::Exact);
        let expected = if row.as_of.is_some() { TOKENS } else { 0 };
        assert_eq!(row.score.tier_tokens, [expected; 4], "{row:?}");
    });
}
