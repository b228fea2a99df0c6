//! The facade with a replay source: what was lost comes again, in order, and the trust says so.

use std::time::Duration;

use kvscout::ErrorKind;
use kvscout::block::{Prompt, WorkerId};
use kvscout::index::MemoryOptions;
use kvscout::ingest::sequencer::{Ended, Flow, Stage};
use kvscout::ingest::{Reason, ReplayOptions, Trust};
use kvscout::scout::{Ask, Options, Progress, Registration, Request, Scout, Scratch};
use serde_json::{Value, json};

const NOW: Duration = Duration::from_secs(5);

fn followed() -> (Scout, WorkerId) {
    let scout = Scout::new(Options::default()).unwrap();
    let worker = scout.register(Registration::new("a", "m")).unwrap();
    scout.follow(worker, ReplayOptions::default(), 7).unwrap();
    (scout, worker)
}

/// Batch `seq`: the `seq`th block of one long prompt is stored, as life `life` of an engine names it.
fn batch(life: u64, seq: u64) -> Vec<u8> {
    let name = |seq: u64| life << 32 | (seq + 1);
    let tokens: Vec<u64> = (4 * seq..4 * seq + 4).map(|token| token + 1000 * life).collect();
    let event = json!({
        "type": "BlockStored", "block_hashes": [name(seq)],
        "parent_block_hash": seq.checked_sub(1).map(name), "token_ids": tokens, "block_size": 4,
        "lora_id": null, "medium": "GPU", "lora_name": null, "extra_keys": [Value::Null],
        "group_idx": 0, "kv_cache_spec_kind": "full_attention",
    });
    let clock = (100 * life + seq) as f64;
    rmp_serde::to_vec(&json!([clock, [event], 0])).unwrap()
}

fn matched(scout: &Scout, life: u32) -> u32 {
    let tokens: Vec<u32> = (0..100).map(|token| token + 1000 * life).collect();
    let mut scratch = Scratch::default();
    let request = Request::new("m", Prompt::new(&tokens));
    scout.score(&request, &mut scratch).unwrap().best().unwrap().score.matched_blocks
}

fn trust(scout: &Scout, worker: WorkerId) -> Trust {
    scout.worker(worker).unwrap().trust
}

/// The engine answers with these batches and its end marker.
fn serve(scout: &Scout, worker: WorkerId, life: u64, ask: Ask, batches: u64) -> Option<Ask> {
    for seq in ask.from..batches {
        let (flow, progress) =
            scout.replayed(worker, NOW, ask.round, seq, &batch(life, seq)).unwrap();
        if flow == Flow::Stop {
            return progress.ask;
        }
    }
    scout.replay_ended(worker, NOW, ask.round, Ended::Marker).unwrap().ask
}

#[test]
fn s1_a_lost_batch_is_applied_before_those_after_it() {
    let (scout, worker) = followed();
    for seq in [0, 1, 2] {
        assert_eq!(scout.apply(worker, seq, &batch(1, seq)).unwrap().ask, None);
    }
    let ingested = scout.apply(worker, 4, &batch(1, 4)).unwrap();
    assert_eq!((ingested.ask, ingested.applied.stored), (Some(Ask { round: 1, from: 2 }), 0));
    scout.apply(worker, 5, &batch(1, 5)).unwrap();
    let status = scout.worker(worker).unwrap();
    assert_eq!((status.trust, status.as_of), (Trust::Syncing, Some(2)));
    assert_eq!((status.stage, status.held_back), (Some(Stage::Asked), 2));
    assert!(status.held_back_bytes > 0);
    assert_eq!(matched(&scout, 1), 3);
    assert_eq!(serve(&scout, worker, 1, Ask { round: 1, from: 2 }, 6), None);
    let status = scout.worker(worker).unwrap();
    assert_eq!((status.trust, status.as_of), (Trust::Exact, Some(5)));
    assert_eq!((status.counters.missing, status.counters.repaired), (0, 1));
    assert_eq!((status.stage, status.held_back), (Some(Stage::InStep), 0));
    assert_eq!(matched(&scout, 1), 6);
    assert_eq!(status.events.stored, 6, "each once");
}

#[test]
fn l2_a_restart_that_has_overtaken_leaves_nothing_of_the_life_before() {
    let (scout, worker) = followed();
    let asked = scout.link(worker, NOW, true).unwrap().ask.unwrap();
    serve(&scout, worker, 1, asked, 0);
    for seq in 0..3 {
        scout.apply(worker, seq, &batch(1, seq)).unwrap();
    }
    scout.link(worker, NOW, false).unwrap();
    assert_eq!(trust(&scout, worker), Trust::Syncing);
    let asked = scout.link(worker, NOW, true).unwrap().ask.unwrap();
    assert_eq!(asked.from, 2);
    let anew = serve(&scout, worker, 2, asked, 9).unwrap();
    assert_eq!((anew.from, matched(&scout, 1)), (0, 0));
    serve(&scout, worker, 2, anew, 9);
    assert_eq!(
        (trust(&scout, worker), matched(&scout, 1), matched(&scout, 2)),
        (Trust::Exact, 0, 9)
    );
    assert_eq!(scout.worker(worker).unwrap().counters.restarts, 1);
}

#[test]
fn s2_what_cannot_be_had_is_given_up_and_tried_again_later() {
    let (scout, worker) = followed();
    scout.apply(worker, 0, &batch(1, 0)).unwrap();
    let mut progress = Progress::default();
    progress.ask = scout.apply(worker, 2, &batch(1, 2)).unwrap().ask;
    let mut now = NOW;
    while trust(&scout, worker) == Trust::Syncing {
        progress = match (progress.ask, progress.wake_at) {
            (Some(ask), _) => scout.replay_ended(worker, now, ask.round, Ended::Cut).unwrap(),
            (None, at) => {
                now = at.expect("it waits for something");
                scout.tick(worker, now).unwrap()
            }
        };
    }
    let status = scout.worker(worker).unwrap();
    assert_eq!((status.trust, status.as_of), (Trust::Degraded(Reason::Gap), Some(2)));
    assert_eq!(progress.applied.stored, 1, "what waited is applied");
    let due = progress.wake_at.unwrap();
    let asked = scout.tick(worker, due).unwrap().ask.unwrap();
    assert_eq!(asked.from, 0);
    serve(&scout, worker, 1, asked, 3);
    assert_eq!((trust(&scout, worker), matched(&scout, 1)), (Trust::Exact, 3));
}

#[test]
fn s11_what_was_refused_is_asked_for_again() {
    let memory = MemoryOptions { unplaced_per_worker: 1, ..MemoryOptions::default() };
    let scout = Scout::new(Options { memory, ..Options::default() }).unwrap();
    let worker = scout.register(Registration::new("a", "m")).unwrap();
    scout.follow(worker, ReplayOptions::default(), 7).unwrap();
    // Their parents never came.
    assert_eq!(scout.apply(worker, 0, &batch(1, 0)).unwrap().ask, None);
    assert_eq!(scout.apply(worker, 1, &batch(2, 5)).unwrap().ask, None);
    let ask = scout.apply(worker, 2, &batch(2, 7)).unwrap().ask.unwrap();
    assert_eq!((trust(&scout, worker), ask.from), (Trust::Degraded(Reason::Overflow), 2));
    scout.replayed(worker, NOW, ask.round, 2, &batch(2, 7)).unwrap();
    let progress = scout.replay_ended(worker, NOW, ask.round, Ended::Marker).unwrap();
    let rebuild = scout.tick(worker, progress.wake_at.unwrap()).unwrap().ask.unwrap();
    assert_eq!(rebuild.from, 0);
}

/// A batch of some 600 KB that says that unknown blocks are gone.
fn large(seq: u64) -> Vec<u8> {
    let names: Vec<u64> = (0..70_000).map(|n| u64::MAX - n).collect();
    let event = json!({ "type": "BlockRemoved", "block_hashes": names, "medium": "GPU" });
    rmp_serde::to_vec(&json!([100.0 + seq as f64, [event], 0])).unwrap()
}

#[test]
fn s11_all_workers_together_keep_back_no_more_than_an_eighth_of_the_memory() {
    let memory = MemoryOptions { budget: 16 << 20, ..MemoryOptions::default() };
    let scout = Scout::new(Options { memory, ..Options::default() }).unwrap();
    let workers = ["a", "b", "c", "d"].map(|pod| {
        let worker = scout.register(Registration::new(pod, "m")).unwrap();
        scout.follow(worker, ReplayOptions::default(), 7).unwrap();
        scout.apply(worker, 0, &batch(1, 0)).unwrap();
        worker
    });
    let kept = || -> usize {
        workers.iter().filter_map(|w| scout.worker(*w)).map(|w| w.held_back_bytes).sum()
    };
    let gap = Trust::Degraded(Reason::Gap);
    let mut asks = Vec::new();
    for worker in workers {
        asks.push(scout.apply(worker, 2, &large(2)).unwrap().ask.unwrap());
        assert!((1..2 << 20).contains(&kept()), "{}", kept());
    }
    let said = || workers.map(|worker| trust(&scout, worker));
    assert_eq!(said(), [Trust::Syncing, Trust::Syncing, Trust::Syncing, gap]);
    // Who needs no more makes room, and so does who goes.
    scout.replayed(workers[0], NOW, asks[0].round, 0, &batch(1, 0)).unwrap();
    scout.replayed(workers[0], NOW, asks[0].round, 1, &batch(1, 1)).unwrap();
    scout.replay_ended(workers[0], NOW, asks[0].round, Ended::Marker).unwrap();
    scout.unregister(workers[1]).unwrap();
    assert_eq!(trust(&scout, workers[0]), Trust::Exact);
    for seq in [3, 4] {
        scout.apply(workers[2], seq, &large(seq)).unwrap();
    }
    assert_eq!(trust(&scout, workers[2]), Trust::Syncing);
    assert_eq!(scout.worker(workers[2]).unwrap().held_back, 3);
    // What was dropped comes again.
    for seq in 0..3 {
        let payload = if seq < 2 { batch(1, seq) } else { large(seq) };
        scout.replayed(workers[3], NOW, asks[3].round, seq, &payload).unwrap();
    }
    scout.replay_ended(workers[3], NOW, asks[3].round, Ended::Marker).unwrap();
    assert_eq!((trust(&scout, workers[3]), matched(&scout, 1)), (Trust::Exact, 2));
}

#[test]
fn a_batch_that_waited_and_cannot_be_read_degrades_when_its_turn_comes() {
    let (scout, worker) = followed();
    scout.apply(worker, 0, &batch(1, 0)).unwrap();
    let ask = scout.apply(worker, 2, b"broken").unwrap().ask.unwrap();
    assert_eq!(trust(&scout, worker), Trust::Syncing);
    scout.replayed(worker, NOW, ask.round, 0, &batch(1, 0)).unwrap();
    scout.replayed(worker, NOW, ask.round, 1, &batch(1, 1)).unwrap();
    let progress = scout.replay_ended(worker, NOW, ask.round, Ended::Marker).unwrap();
    assert_eq!(progress.rejected, 1);
    assert!(progress.error.is_some());
    assert_eq!(trust(&scout, worker), Trust::Degraded(Reason::Undecodable));
}

#[test]
fn a_worker_is_silent_until_it_is_heard_or_its_link_is_up() {
    let (scout, worker) = followed();
    scout.apply(worker, 0, &batch(1, 0)).unwrap();
    scout.silence(worker).unwrap();
    assert_eq!(trust(&scout, worker), Trust::Silent);
    scout.apply(worker, 1, &batch(1, 1)).unwrap();
    assert_eq!(trust(&scout, worker), Trust::Exact);
    scout.link(worker, NOW, false).unwrap();
    scout.silence(worker).unwrap();
    assert_eq!(trust(&scout, worker), Trust::Silent);
    let asked = scout.link(worker, NOW, true).unwrap().ask.unwrap();
    serve(&scout, worker, 1, asked, 2);
    assert_eq!(trust(&scout, worker), Trust::Exact);
}

#[test]
fn a_worker_that_is_gone_takes_nothing_in() {
    let (scout, worker) = followed();
    scout.unregister(worker).unwrap();
    let outcomes = [
        scout.follow(worker, ReplayOptions::default(), 7),
        scout.silence(worker),
        scout.replayed(worker, NOW, 1, 0, &batch(1, 0)).map(drop),
        scout.replay_ended(worker, NOW, 1, Ended::Cut).map(drop),
        scout.link(worker, NOW, true).map(drop),
        scout.tick(worker, NOW).map(drop),
    ];
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::UnknownWorker);
    }
}

#[test]
fn without_a_replay_source_nothing_is_asked_and_a_lost_link_changes_nothing() {
    let scout = Scout::new(Options::default()).unwrap();
    let worker = scout.register(Registration::new("a", "m")).unwrap();
    scout.link(worker, NOW, true).unwrap();
    scout.apply(worker, 0, &batch(1, 0)).unwrap();
    assert_eq!(scout.link(worker, NOW, false).unwrap(), Progress::default());
    assert_eq!(trust(&scout, worker), Trust::Exact);
    assert_eq!(scout.apply(worker, 2, &batch(1, 2)).unwrap().ask, None);
    let status = scout.worker(worker).unwrap();
    assert_eq!((status.trust, status.stage), (Trust::Degraded(Reason::Gap), None));
}
