//! Rows C of the catalogue (`docs/failures.md`): what a worker's events say it holds.

mod failures_support;

use failures_support::*;
use kvscout::block::{Prompt, Tier, WorkerId};
use kvscout::hash::vllm::Algorithm;
use kvscout::index::MemoryOptions;
use kvscout::ingest::{Reason, Trust};
use kvscout::scout::{Copies, Options, Registration};
use serde_json::{Value, json};

/// Three blocks and one token more.
const TOKENS: [u32; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

#[test]
fn c1_an_orphan_waits_unmatched_until_its_parent_comes() {
    let site = Site::new();
    let worker = site.worker("a");
    let ingested = site.apply(worker, &[stored(&[3], Some(2), &TOKENS[8..12])]);
    assert_eq!((ingested.applied.stored, ingested.applied.unplaced), (1, 1));
    assert_eq!(site.matched("a", &TOKENS[8..]), 0, "it is not taken for the start of a prompt");
    assert_eq!(site.matched("a", &TOKENS), 0);
    site.apply(worker, &[stored(&[1, 2], None, &TOKENS[..8])]);
    assert_eq!(site.matched("a", &TOKENS), 3);
    assert_eq!(site.scout.stats().unplaced, 0);
}

#[test]
fn c1_orphans_beyond_a_workers_share_are_refused_and_said() {
    let memory = MemoryOptions { unplaced_per_worker: 10, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let worker = site.worker("a");
    let neighbour = site.worker("neighbour");
    for orphan in 0..100 {
        site.apply(worker, &[stored(&[orphan + 1000], Some(orphan + 5000), &[7; 4])]);
    }
    let status = site.status(worker);
    assert_eq!((status.events.stored, status.events.refused), (10, 90));
    assert_eq!(status.trust, Trust::Degraded(Reason::Overflow));
    assert_eq!(site.scout.stats().unplaced, 10);
    site.apply(neighbour, &[stored(&[3], Some(2), &TOKENS[8..12])]);
    assert_eq!(site.trust(neighbour), Trust::Exact, "the share is each worker's own");
    // Whoever goes leaves nothing behind.
    site.scout.unregister(worker).unwrap();
    assert_eq!(site.scout.stats().unplaced, 1);
}

#[test]
fn c2_a_chain_without_its_first_block_scores_nothing_until_that_returns() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1, 2, 3], None, &TOKENS[..12])]);
    site.apply(worker, &[removed(&[1], "GPU")]);
    let line = site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!((line.matched, line.expected), (0, Some(0)));
    site.apply(worker, &[stored(&[1], None, &TOKENS[..4])]);
    let line = site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!((line.matched, line.expected), (3, Some(12)));
}

#[test]
fn c3_a_block_stored_twice_is_gone_after_the_second_removal() {
    let site = Site::new();
    let worker = site.worker("a");
    let event = stored(&[1], None, &TOKENS[..4]);
    site.apply(worker, &[event.clone(), event]);
    site.apply(worker, &[removed(&[1], "GPU")]);
    assert_eq!(site.matched("a", &TOKENS), 1);
    site.apply(worker, &[removed(&[1], "GPU")]);
    assert_eq!(site.matched("a", &TOKENS), 0);
    assert_eq!(site.status(worker).events.unknown_removals, 0);
}

#[test]
fn c5_a_removal_of_what_was_never_stored_is_counted_and_changes_nothing() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1], None, &TOKENS[..4])]);
    let ingested = site.apply(worker, &[removed(&[99, 98], "GPU"), removed(&[1], "CPU")]);
    assert_eq!((ingested.applied.removed, ingested.applied.unknown_removals), (0, 3));
    assert_eq!((site.matched("a", &TOKENS), site.trust(worker)), (1, Trust::Exact));
    assert_eq!(site.status(worker).events.unknown_removals, 3);
}

#[test]
fn c6_a_block_that_moved_to_host_memory_counts_there_with_its_weight() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1, 2], None, &TOKENS[..8])]);
    let weighted = || site.line("a", 0, Prompt::new(&TOKENS)).weighted;
    assert_eq!(weighted(), 2.0);
    site.apply(worker, &[removed(&[2], "GPU"), stored_by_name(&[2], "CPU")]);
    let line = site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!((line.matched, line.tiers, line.expected), (2, [4, 8, 8, 8], Some(4)));
    assert!((weighted() - 1.8).abs() < 1e-12);
}

#[test]
fn c7_an_offloaded_block_without_tokens_is_resolved_by_its_name_or_waits() {
    let site = Site::new();
    let worker = site.worker("a");
    let known = names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(&TOKENS));
    site.apply(worker, &[stored(&known[..1], None, &TOKENS[..4])]);
    let ingested =
        site.apply(worker, &[stored_by_name(&known, "CPU"), stored_by_name(&[7], "CPU")]);
    assert_eq!((ingested.rejected, ingested.error), (0, None));
    assert_eq!(ingested.applied.unplaced, 3, "two whose content nobody announced, one unknown");
    let line = site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!(line.tiers, [4, 12, 12, 12], "the chain of a known contract finds them");
    assert_eq!(site.trust(worker), Trust::Exact);
    // Under a contract that is not known, only what somebody announced with its tokens.
    let private = site.worker("private");
    site.apply(private, &[stored_by_name(&[21, 22], "CPU")]);
    assert_eq!(site.held("private", Tier::Cpu, &TOKENS), 0);
    site.apply(private, &[stored(&[21], None, &TOKENS[..4])]);
    assert_eq!(site.held("private", Tier::Cpu, &TOKENS), 4);
}

#[test]
fn c8_a_chunk_of_an_offload_tier_gives_no_credit_for_a_part_of_it() {
    let site = Site::new();
    let worker = site.worker("a");
    let tokens: Vec<u32> = (0..65).collect();
    let chunk = with(
        stored(&[99], None, &tokens[..64]),
        &[("medium", json!("CPU")), ("block_size", json!(64))],
    );
    let block = with(stored(&[1], None, &tokens[..16]), &[("block_size", json!(16))]);
    site.apply(worker, &[block, chunk]);
    assert_eq!(site.held("a", Tier::Cpu, &tokens[..48]), 16, "the block on the GPU alone");
    site.apply(worker, &[removed(&[1], "GPU")]);
    assert_eq!(site.held("a", Tier::Cpu, &tokens[..48]), 0);
    assert_eq!(site.status(worker).events.other_unit, 1);
}

/// A store of a sliding-window group of five tokens: two blocks of four are needed.
fn window(event: Value) -> Value {
    let fields = [
        ("group_idx", json!(1)),
        ("kv_cache_spec_kind", json!("sliding_window")),
        ("kv_cache_spec_sliding_window", json!(6)),
    ];
    with(event, &fields)
}

#[test]
fn c9_a_window_that_was_evicted_shortens_what_the_engine_would_answer_and_nothing_else() {
    let site = Site::new();
    let worker = site.worker("a");
    let names = [1, 2, 3];
    site.apply(worker, &[stored(&names, None, &TOKENS[..12])]);
    site.apply(worker, &[window(stored(&names, None, &TOKENS[..12]))]);
    let line = || site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!((line().matched, line().expected), (3, Some(12)));
    let gone = |name: u64| with(removed(&[name], "GPU"), &[("group_idx", json!(1))]);
    site.apply(worker, &[gone(3)]);
    assert_eq!((line().matched, line().expected), (3, Some(8)), "the full group keeps its blocks");
    site.apply(worker, &[gone(1)]);
    assert_eq!((line().matched, line().expected), (3, Some(0)));
    // And the other way round.
    site.apply(worker, &[window(stored(&names, None, &TOKENS[..12]))]);
    site.apply(worker, &[removed(&[3], "GPU")]);
    assert_eq!((line().matched, line().expected), (2, Some(8)));
}

#[test]
fn c10_a_masked_event_is_never_matched_by_the_wrong_tokens_and_the_rest_is_applied() {
    let site = Site::new();
    let worker = site.worker("a");
    let tokens: Vec<u32> = (0..41).collect();
    let masked = window(stored(&[4, 5, 6, 7, 8, 9, 10], None, &tokens[..40]));
    let full = stored(&[1, 2], None, &tokens[..8]);
    let ingested = site.apply(worker, &[masked, full]);
    assert_eq!((ingested.rejected, ingested.applied.unplaced), (0, 7));
    assert_eq!(site.status(worker).events.sparse, 1);
    // Cut as if hash n were block n, the seven would begin at the first block.
    let line = site.line("a", 0, Prompt::new(&tokens));
    assert_eq!((line.matched, line.expected), (2, Some(0)));
    assert_eq!(site.trust(worker), Trust::Exact);
    // Alone in its group and without the full one's names, nothing of it is believed.
    let alone = site.worker("alone");
    site.apply(alone, &[stored(&[4, 5, 6, 7, 8, 9, 10], None, &tokens[..40])]);
    for start in 0..10 {
        assert_eq!(site.matched("alone", &tokens[start * 4..]), 0);
    }
}

#[test]
fn c11_an_event_that_goes_round_in_a_circle_is_left_out_and_costs_nothing_else() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1], None, &TOKENS[..4])]);
    let crafted = [
        stored(&[5], Some(5), &[30; 4]),
        stored(&[5, 5], None, &[30; 8]),
        stored(&[5, 6, 5], None, &[30; 12]),
        stored(&[5, 6], Some(6), &[30; 8]),
    ];
    for event in crafted {
        let ingested = site.apply(worker, &[event, stored(&[2], Some(1), &TOKENS[4..8])]);
        assert_eq!((ingested.rejected, ingested.applied.stored), (1, 1));
        assert_eq!(site.matched("a", &TOKENS), 2, "what it held is still there");
        site.apply(worker, &[removed(&[2], "GPU")]);
    }
    assert_eq!(site.trust(worker), Trust::Degraded(Reason::Undecodable));
    // A circle over several events: each is the other's parent.
    let other = site.worker("b");
    site.apply(other, &[stored(&[8], Some(9), &[40; 4]), stored(&[9], Some(8), &[41; 4])]);
    assert_eq!(site.matched("b", &[40; 5]) + site.matched("b", &[41; 5]), 0);
    site.apply(other, &[removed(&[8, 9], "GPU")]);
    assert_eq!(site.status(other).events.unknown_removals, 0);
}

#[test]
fn c12_what_is_not_known_is_never_counted_as_the_gpu() {
    let site = Site::new();
    for (n, (medium, locality, tiers)) in [
        (json!("HBM9"), Value::Null, [0; 4]),
        (json!(""), Value::Null, [0; 4]),
        (json!("GPU"), json!("RACK"), [0; 4]),
        (json!("GPU"), json!("REMOTE"), [0, 0, 0, 4]),
        (Value::Null, json!("REMOTE"), [0, 0, 0, 4]),
        (json!("gpu"), json!("LOCAL"), [4; 4]),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = format!("pod {n}");
        let worker = site.worker(&pod);
        let fields = [("medium", medium.clone()), ("locality", locality.clone())];
        site.apply(worker, &[with(stored(&[1], None, &TOKENS[..4]), &fields)]);
        let line = site.line(&pod, 0, Prompt::new(&TOKENS[..5]));
        let expected = (tiers, Some(tiers[0]), Trust::Exact);
        assert_eq!((line.tiers, line.expected, line.trust), expected, "{medium} {locality}");
    }
}

#[test]
fn c12_an_unknown_kind_of_group_gives_a_reason_instead_of_a_number() {
    let site = Site::new();
    let worker = site.worker("a");
    let odd = with(
        stored(&[1], None, &TOKENS[..4]),
        &[("group_idx", json!(1)), ("kv_cache_spec_kind", json!("quantum_attention"))],
    );
    site.apply(worker, &[stored(&[1, 2], None, &TOKENS[..8]), odd]);
    let line = site.line("a", 0, Prompt::new(&TOKENS));
    assert_eq!(line.matched, 2, "the full group speaks for itself");
    assert_eq!((line.expected, line.unknown), (None, Some("group_kind_without_rule")));
}

/// A worker whose repeated stores are reports.
fn reporting(site: &Site) -> WorkerId {
    let presence = Registration { copies: Copies::Presence, ..Registration::new("a", "m") };
    site.register(presence)
}

#[test]
fn c4_a_full_report_adds_no_copy_where_presence_is_what_counts() {
    let site = Site::new();
    let worker = reporting(&site);
    let chain = || stored(&[1, 2, 3], None, &TOKENS[..12]);
    site.apply(worker, &[chain()]);
    for length in [1, 2, 3] {
        let names: Vec<u64> = (1..=length).collect();
        let report = stored(&names, None, &TOKENS[..4 * length as usize]);
        let ingested = site.apply(worker, &[report.clone(), report]);
        assert_eq!((ingested.applied.stored, ingested.applied.removed), (0, 0), "all are there");
        assert_eq!(site.matched("a", &TOKENS), 3);
    }
    site.apply(worker, &[removed(&[3], "GPU")]);
    assert_eq!(site.matched("a", &TOKENS), 2, "one removal takes it away");
    // A report may be longer than what is there, and may not begin a prompt.
    site.apply(worker, &[chain(), stored(&[2, 3], Some(1), &TOKENS[4..12])]);
    assert_eq!(site.matched("a", &TOKENS), 3);
    let ingested = site.apply(worker, &[removed(&[3, 2, 1], "GPU")]);
    assert_eq!((ingested.applied.removed, ingested.applied.unknown_removals), (3, 0));
    assert_eq!(site.matched("a", &TOKENS), 0);
    assert_eq!(site.status(worker).events.unknown_removals, 0);
    assert_eq!(site.scout.stats().entries, 3, "the bystander's own: no ghost");
}

#[test]
fn c4_presence_is_kept_for_each_tier_and_group() {
    let site = Site::new();
    let worker = reporting(&site);
    let chain = stored(&[1, 2], None, &TOKENS[..8]);
    for _ in 0..2 {
        site.apply(worker, &[chain.clone(), window(chain.clone()), stored_by_name(&[1], "CPU")]);
    }
    let line = || site.line("a", 0, Prompt::new(&TOKENS[..9]));
    assert_eq!((line().tiers, line().expected), ([8; 4], Some(8)));
    site.apply(worker, &[removed(&[1, 2], "GPU")]);
    assert_eq!((line().tiers, line().expected), ([0, 4, 4, 4], Some(0)));
    site.apply(worker, &[removed(&[1], "CPU")]);
    assert_eq!(line().tiers, [0; 4]);
    let gone = with(removed(&[1, 2], "GPU"), &[("group_idx", json!(1))]);
    assert_eq!(site.apply(worker, &[gone]).applied.removed, 2);
}

#[test]
fn c6_a_block_that_comes_back_in_the_batch_that_removed_it_is_there_once() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored_by_name(&[1], "CPU"), stored(&[1], None, &TOKENS[..4])]);
    let held = || site.line("a", 0, Prompt::new(&TOKENS)).tiers;
    assert_eq!(held(), [4; 4]);
    // The removal is of the copy in the same tier, and of one that is there only once.
    site.apply(worker, &[removed(&[1], "CPU"), stored_by_name(&[1], "CPU")]);
    site.apply(worker, &[removed(&[1], "GPU")]);
    assert_eq!(held(), [0, 4, 4, 4]);
    site.apply(worker, &[removed(&[1], "CPU")]);
    assert_eq!(held(), [0; 4]);
    // A clear in between ends the wait.
    site.apply(worker, &[stored(&[2], None, &TOKENS[..4])]);
    site.apply(worker, &[removed(&[2], "GPU"), cleared(), stored_by_name(&[2], "CPU")]);
    assert_eq!((held(), site.status(worker).events.unknown_removals), ([0; 4], 0));
}
