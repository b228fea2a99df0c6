//! Rows L of the catalogue (`docs/failures.md`): publishers and pods that come, go and come back.

mod failures_support;

use failures_support::*;
use kvscout::ErrorKind;
use kvscout::block::{Prompt, Tier};
use kvscout::ingest::{Trust, Verdict};
use kvscout::scout::Registration;
use serde_json::json;

const TOKENS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn l3_a_pod_at_a_reused_address_starts_empty_and_outlives_a_late_farewell_to_the_old_one() {
    let site = Site::new();
    let old = site.worker("10.0.0.7:8000");
    site.apply(old, &[stored(&[1, 2], None, &TOKENS[..8])]);
    site.scout.unregister(old).unwrap();
    // The same name, another model and block size.
    let new = site.register(Registration::new("10.0.0.7:8000", "other"));
    assert_ne!(new, old);
    let request = |tokens| kvscout::scout::Request::new("other", Prompt::new(tokens));
    assert_eq!(ask(&site.scout, &request(&TOKENS))[0].matched, 0);
    let wide = with(stored(&[1], None, &TOKENS[..8]), &[("block_size", json!(8))]);
    site.apply(new, &[wide]);
    // What is still said to and of the old one.
    let late = site.scout.apply(old, 1, &batch(&[removed(&[1], "GPU"), cleared()])).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::UnknownWorker);
    assert_eq!(site.scout.unregister(old).unwrap_err().kind(), ErrorKind::UnknownWorker);
    let line = &ask(&site.scout, &request(&TOKENS))[0];
    assert_eq!((line.matched, line.expected, line.trust), (1, Some(8), Trust::Exact));
    assert!(site.ask(Prompt::new(&TOKENS)).iter().all(|line| line.pod != "10.0.0.7:8000"));
}

#[test]
fn l4_a_pod_restarted_in_place_has_nothing_of_its_last_life() {
    let site = Site::new();
    let worker = site.worker("engine-0");
    for n in 0..3_u32 {
        let at = n as usize * 4;
        let tokens: Vec<u32> = (0..12).collect();
        let parent = (n > 0).then_some(u64::from(n));
        site.apply(worker, &[stored(&[u64::from(n) + 1], parent, &tokens[at..at + 4])]);
    }
    assert_eq!(site.matched("engine-0", &TOKENS), 2);
    site.restart(worker);
    // Its first batch is an empty step: nothing is stored that could hide what is left over.
    let ingested = site.apply_payload(worker, &encode(&json!([9.5, [], 0])));
    assert_eq!(ingested.verdict, Verdict::Restart);
    let line = site.line("engine-0", 0, Prompt::new(&TOKENS));
    assert_eq!((line.matched, line.expected, line.trust), (0, Some(0), Trust::Exact));
    assert_eq!(site.status(worker).counters.restarts, 1);
    assert_eq!(site.scout.stats().blocks, 3, "the bystander's own");
}

#[test]
fn l5_a_pod_that_is_gone_is_in_no_answer_and_what_was_queued_does_not_bring_it_back() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1, 2], None, &TOKENS[..8])]);
    site.scout.unregister(worker).unwrap();
    assert!(site.ask(Prompt::new(&TOKENS)).iter().all(|line| line.pod != "a"));
    for seq in 1..5 {
        let queued = batch(&[stored(&[seq], None, &TOKENS[..4])]);
        let error = site.scout.apply(worker, seq, &queued).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownWorker);
    }
    assert!(site.ask(Prompt::new(&TOKENS)).iter().all(|line| line.pod != "a"));
    assert_eq!(site.scout.stats().blocks, 3, "the bystander's own");
}

#[test]
fn l9_a_clear_takes_everything_of_its_own_rank_and_nothing_of_others() {
    let site = Site::new();
    let rank = |rank| site.register(Registration { rank, ..Registration::new("pod", "m") });
    let (first, second) = (rank(0), rank(1));
    for worker in [first, second] {
        let chain = stored(&[1, 2], None, &TOKENS[..8]);
        site.apply(worker, &[chain, stored_by_name(&[1, 2], "CPU")]);
    }
    site.apply(first, &[cleared()]);
    let of = |rank| site.line("pod", rank, Prompt::new(&TOKENS)).tiers;
    assert_eq!((of(0), of(1)), ([0; 4], [8; 4]));
    // What it stores afterwards counts again, and only that.
    site.apply(first, &[stored(&[1], None, &TOKENS[..4])]);
    assert_eq!((of(0), of(1)), ([4; 4], [8; 4]));
    assert_eq!(site.status(first).events.cleared, 1);
}

#[test]
fn l10_a_clear_that_names_its_tier_takes_that_tier_alone() {
    let site = Site::new();
    let worker = site.worker("a");
    let chain = stored(&[1, 2], None, &TOKENS[..8]);
    site.apply(worker, &[chain, stored_by_name(&[1, 2], "CPU")]);
    let clear = |medium: &str| with(cleared(), &[("medium", json!(medium))]);
    site.apply(worker, &[clear("DISK")]);
    assert_eq!(site.line("a", 0, Prompt::new(&TOKENS)).tiers, [8; 4]);
    site.apply(worker, &[clear("GPU")]);
    let line = site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!((line.tiers, line.expected), ([0, 8, 8, 8], Some(0)));
    site.apply(worker, &[clear("CPU")]);
    assert_eq!(site.held("a", Tier::Remote, &TOKENS), 0);
}

#[test]
fn l13_a_pod_that_flaps_leaves_one_worker_and_no_trace() {
    let site = Site::new();
    for _ in 0..100 {
        let worker = site.worker("a");
        assert_eq!(site.worker("a"), worker, "registering again is the same worker");
        let ingested =
            site.scout.apply(worker, 0, &batch(&[stored(&[1, 2], None, &TOKENS[..8])])).unwrap();
        assert_eq!((ingested.verdict, ingested.applied.stored), (Verdict::Next, 2));
        site.scout.unregister(worker).unwrap();
    }
    let before = site.scout.stats();
    let worker = site.worker("a");
    site.scout.apply(worker, 0, &batch(&[stored(&[1, 2], None, &TOKENS[..8])])).unwrap();
    assert_eq!(site.matched("a", &TOKENS), 2);
    assert_eq!(site.scout.ranks("default", "a"), [worker]);
    assert_eq!(site.scout.stats().blocks, before.blocks + 2);
}
