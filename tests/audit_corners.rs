//! The corners of audits, and of what a contract decides: each test was written for a mutation that no other one
//! noticed.

mod audit_support;
mod failures_support;

use std::rc::Rc;
use std::time::Duration;

use audit_support::{PERIOD, Pair, TOKENS, anchored, found};
use failures_support::{
    SIZE, Site, batch, bytes, names, removed, stored, stored_as, stored_by_name, with,
};
use kvscout::block::{BlockSize, Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use kvscout::index::MemoryOptions;
use kvscout::ingest::sequencer::{AuditState, Comparison};
use kvscout::ingest::verify::Status;
use kvscout::ingest::{Reason, ReplayOptions, Trust};
use kvscout::scout::{OnClear, Options, Registration};
use serde_json::{Value, json};

#[test]
fn what_the_engine_kept_and_nobody_can_read_decides_nothing() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.deliver(batch(&[stored(&[2], Some(1), &TOKENS[4..8])]), vec![0xc1]);
    pair.go_on();
    assert_eq!(found(&pair.audit()), (Comparison::Undecided, 0, 0));
    let status = pair.status();
    assert_eq!((status.trust, status.audit.as_of), (Trust::Exact, None), "it covers nothing");
    assert_eq!(status.counters.audits_unfinished, 1);
}

#[test]
fn what_an_audit_covered_is_of_one_life() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.audit();
    assert_eq!(pair.status().audit.as_of, Some(0));
    let anew = batch(&[stored(&[8], None, &TOKENS[8..12])]);
    pair.site.scout.apply(pair.worker, 0, &anew).unwrap();
    assert_eq!((pair.status().counters.restarts, pair.status().audit.as_of), (1, None));
}

#[test]
fn what_an_operator_clears_amid_an_audit_is_no_anchor() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.go_on();
    let ask = pair.due().expect("an audit");
    pair.site.scout.clear_worker(pair.worker).unwrap();
    pair.buffer.remove(0);
    pair.serve(ask);
    assert_eq!(pair.status().audit.state, AuditState::Unavailable);
}

/// The least room, in doublings, that an anchor of one worker finds place in; there is none for two.
fn room_for_one() -> usize {
    let fits = |anchor_memory: &usize| {
        let site = Site::with(Options { anchor_memory: *anchor_memory, ..Options::default() });
        anchored(site.into(), "a").status().audit.state == AuditState::Pending
    };
    (8..20).map(|n| 1 << n).find(fits).expect("some room is enough")
}

#[test]
fn the_room_of_an_anchor_is_free_when_it_is_replaced_or_not_needed_any_more() {
    let options = Options { anchor_memory: room_for_one(), ..Options::default() };
    let site: Rc<Site> = Site::with(options).into();
    let mut a = anchored(site.clone(), "a");
    for _ in 0..3 {
        assert_eq!(found(&a.audit_from(1)), (Comparison::Equal, 0, 0));
        assert_eq!(a.status().audit.state, AuditState::Ok);
    }
    let b = anchored(site.clone(), "b");
    assert_eq!(b.status().audit.state, AuditState::Unavailable, "there is room for one");
    // Whoever is not audited any more needs none.
    site.scout.follow(a.worker, ReplayOptions::default(), 7).unwrap();
    let mut c = anchored(site.clone(), "c");
    assert_eq!(c.status().audit.state, AuditState::Pending);
    // Nor who starts a new life.
    let anew = batch(&[stored(&[8], None, &TOKENS[8..12])]);
    site.scout.apply(c.worker, 0, &anew).unwrap();
    assert_eq!(c.status().counters.restarts, 1);
    assert_eq!(anchored(site, "d").status().audit.state, AuditState::Pending);
    assert_eq!(c.due().map(|ask| ask.from), Some(0), "its buffer is another one");
}

#[test]
fn a_mended_worker_knows_the_groups_that_it_was_given() {
    let mut pair = Pair::new();
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.go_on();
    pair.buffer.remove(0);
    pair.attempt();
    let window = [
        ("group_idx", json!(1)),
        ("kv_cache_spec_kind", json!("sliding_window")),
        ("kv_cache_spec_sliding_window", json!(6)),
    ];
    let lost = with(stored(&[1, 2], None, &TOKENS[..8]), &window);
    pair.publish(&[], &[lost]);
    pair.go_on();
    assert_eq!(pair.status().groups.len(), 1);
    let progress = pair.audit_from(1);
    assert_eq!(found(&progress).0, Comparison::Different);
    assert!(progress.audited.unwrap().mended);
    assert_eq!(pair.status().groups.len(), 2);
    // A partial block is no unit of a group whose blocks were on the GPU.
    let partial = with(stored(&[77], Some(2), &TOKENS[8..10]), &window);
    pair.same(with(partial, &[("block_size", json!(2))]));
    let sizes: Vec<u32> = pair.status().groups.iter().map(|group| group.shape.size.get()).collect();
    assert_eq!(sizes, [SIZE, SIZE]);
}

#[test]
fn whoever_is_blind_to_salts_or_lost_copies_to_the_budget_is_not_audited() {
    let mut pair = Pair::new();
    for n in 0..8 {
        pair.same(stored_as("0.13.0", &[json!(n + 1000)], Value::Null, &[n; 4], SIZE));
    }
    assert_eq!(pair.status().trust, Trust::Degraded(Reason::ExtrasHidden));
    assert_eq!(pair.due(), None);
    assert_eq!(pair.status().audit.state, AuditState::Unavailable);

    let mut pair = evicted();
    assert_eq!(pair.due(), None);
    assert_eq!(pair.status().audit.state, AuditState::Unavailable);
}

/// Twenty thousand blocks known by name only, which take the most room; of each `n` others.
fn many(n: u64) -> Vec<u8> {
    let names: Vec<u64> = (n * 20_000 + 1000..(n + 1) * 20_000 + 1000).collect();
    batch(&[stored_by_name(&names, "CPU")])
}

#[test]
fn whoever_is_too_large_for_a_shadow_is_not_audited_until_its_engine_begins_anew() {
    let mut pair = Pair::new();
    for n in 0..30 {
        pair.deliver(batch(&[]), many(n));
    }
    pair.go_on();
    assert_eq!(pair.status().audit.state, AuditState::Pending, "nobody knows yet");
    assert_eq!(found(&pair.audit()), (Comparison::Undecided, 0, 0));
    assert_eq!((pair.status().audit.state, pair.due()), (AuditState::Unavailable, None));
    let status = pair.status();
    assert_eq!((status.trust, status.counters.audits_unfinished), (Trust::Exact, 1));
    // Its next life is another story.
    let anew = batch(&[stored(&[8], None, &TOKENS[8..12])]);
    pair.site.scout.apply(pair.worker, 0, &anew).unwrap();
    assert_eq!(pair.status().audit.state, AuditState::Pending);
    (pair.buffer, pair.next) = (vec![(0, anew)], 1);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
}

#[test]
fn an_anchor_that_is_too_large_for_a_shadow_is_no_beginning() {
    let memory = MemoryOptions { unplaced_per_worker: usize::MAX, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let mut pair = Pair::of(site, Registration::new("a", "m"));
    let mut n = 0;
    // No index of a shadow's size is made of its image at all.
    while pair.site.scout.stats().bytes < 88 << 20 {
        let payload = many(n);
        pair.deliver(payload.clone(), payload);
        n += 1;
    }
    pair.go_on();
    pair.buffer.drain(..pair.buffer.len() - 1);
    pair.attempt();
    let ask = pair.due().expect("an audit of what was held");
    assert_eq!((ask.from, pair.status().audit.state), (pair.next - 1, AuditState::Pending));
    pair.serve(ask);
    assert_eq!((pair.status().audit.state, pair.due()), (AuditState::Unavailable, None));
    assert_eq!(pair.status().audit.state, AuditState::Unavailable, "nor is any other one");
    assert_eq!(pair.status().trust, Trust::Exact);
}

/// One that lost copies to the budget.
fn evicted() -> Pair {
    let memory = MemoryOptions { budget: 1 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let mut pair = Pair::of(site, Registration::new("a", "m"));
    for n in 0..2000_u32 {
        let hashes: Vec<u64> = (0..50).map(|block| u64::from(n) * 100 + block + 1000).collect();
        let tokens: Vec<u32> = (0..200).map(|token| n * 1000 + token + 200).collect();
        pair.store(&hashes, None, &tokens);
        if pair.status().trust != Trust::Exact {
            break;
        }
    }
    assert_eq!(pair.status().trust, Trust::Degraded(Reason::Evicted));
    pair
}

#[test]
fn removals_of_what_is_not_held_are_explained_by_clears_of_the_gpu_chunks_editions_and_the_budget()
{
    let site = Site::new();
    let gpu = Registration { on_clear: OnClear::Gpu, ..Registration::new("gpu", "m") };
    let gpu = site.register(gpu);
    site.apply(gpu, &[removed(&[5], "GPU")]);
    let chunks = site.worker("chunks");
    let chunk = with(
        stored(&[99], None, &TOKENS[..8]),
        &[("medium", json!("CPU")), ("block_size", json!(8))],
    );
    site.apply(chunks, &[stored(&[1], None, &TOKENS[..4]), chunk, removed(&[99], "CPU")]);
    for worker in [gpu, chunks] {
        let status = site.status(worker);
        assert_eq!((status.events.unknown_removals, status.unexplained.unknown), (1, 0));
    }
    let before = site.worker("before");
    site.apply(before, &[removed(&[5], "GPU")]);
    site.scout.clear_adapter("default", "x");
    site.apply(before, &[removed(&[6], "GPU")]);
    let status = site.status(before);
    assert_eq!((status.events.unknown_removals, status.unexplained.unknown), (2, 1));

    let mut pair = evicted();
    let before = pair.status().unexplained.unknown;
    pair.same(removed(&[7], "GPU"));
    assert_eq!((before, pair.status().unexplained.unknown), (0, 0));
}

/// Hashes of a prompt under the rules of 0.13, whose events hide extra keys.
fn of_0_13(prompt: &Prompt<'_>) -> Vec<Value> {
    names("0.13.0", Algorithm::Sha256, "0", SIZE, prompt).into_iter().map(Value::from).collect()
}

#[test]
fn what_waits_for_a_contract_is_applied_as_of_its_last_batch_once_a_prompt_proves_it() {
    let site = Site::new();
    let worker = site.worker("a");
    let salted = Prompt { cache_salt: Some("salt"), ..Prompt::new(&TOKENS) };
    let hashes = of_0_13(&salted);
    site.apply(worker, &[stored_as("0.13.0", &hashes, Value::Null, &TOKENS[..16], SIZE)]);
    assert_eq!((site.trust(worker), site.status(worker).as_of), (Trust::Syncing, None));
    assert_eq!(site.line("a", 0, salted).matched, 4);
    assert_eq!((site.trust(worker), site.status(worker).as_of), (Trust::Exact, Some(0)));
}

#[test]
fn what_waits_for_a_contract_is_bounded() {
    let site = Site::new();
    let worker = site.worker("a");
    let tokens: Vec<u32> = (0..80_000).collect();
    let event = |n: u64| {
        // They start no prompt: nothing is decided by them.
        let hashes: Vec<Value> = (0..20_000).map(|block| json!(n * 100_000 + block + 9)).collect();
        stored_as("0.13.0", &hashes, json!(7), &tokens, SIZE)
    };
    let payload = batch(&[event(1)]);
    let fit = (4 << 20) / payload.len();
    for n in 0..fit {
        site.apply(worker, &[event(n as u64)]);
        assert_eq!(site.trust(worker), Trust::Syncing, "{n}");
    }
    site.apply(worker, &[event(99)]);
    assert!(matches!(site.trust(worker), Trust::Degraded(_)), "{:?}", site.trust(worker));
    assert_eq!(site.status(worker).contract, Status::Private);
}

#[test]
fn a_prompt_of_plain_blocks_whose_extra_keys_are_hidden_has_its_place() {
    let site = Site::new();
    let worker = site.worker("a");
    let hashes = of_0_13(&Prompt::new(&TOKENS));
    let event = stored_as("0.13.0", &hashes, Value::Null, &TOKENS[..16], SIZE);
    assert_eq!(
        site.apply(worker, &[event]).applied.unplaced,
        0,
        "each follows from the one before"
    );
    assert_eq!(site.matched("a", &TOKENS), 4);
}

#[test]
fn a_whole_hash_in_an_event_is_a_parent_as_good_as_one_that_was_kept() {
    let contract =
        Contract::new(Version::new(0, 13, 0), Algorithm::Sha256, Root::Seed("0")).unwrap();
    let shape = Shape::plain(BlockSize::new(SIZE).unwrap());
    let prompt = Prompt::new(&TOKENS);
    let mut chain = contract.chain(shape, &prompt).unwrap();
    let hashes: Vec<Value> =
        chain.extend(&TOKENS).map(|hash| bytes(hash.as_bytes().unwrap())).collect();
    let site = Site::new();
    let worker = site.worker("a");
    let first = stored_as("0.13.0", &hashes[..1], Value::Null, &TOKENS[..4], SIZE);
    site.apply(worker, &[first.clone(), first]);
    // One of two copies goes; what was kept of its hash goes with it.
    let gone = json!({ "type": "BlockRemoved", "block_hashes": [hashes[0]], "medium": "GPU" });
    site.apply(worker, &[gone]);
    let second = stored_as("0.13.0", &hashes[1..2], hashes[0].clone(), &TOKENS[4..8], SIZE);
    assert_eq!(site.apply(worker, &[second]).applied.unplaced, 0);
    assert_eq!(site.matched("a", &TOKENS), 2);
}

#[test]
fn first_blocks_of_an_adapter_say_nothing_of_the_contract() {
    let site = Site::new();
    let worker = site.worker("a");
    for n in 0..9 {
        let mut event = stored_as("0.13.0", &[json!(n + 1000)], Value::Null, &[n; 4], SIZE);
        event[5] = json!(1);
        site.apply(worker, &[event]);
    }
    assert_eq!(site.status(worker).contract, Status::Undecided);
}

#[test]
fn blocks_of_another_shape_neither_contradict_a_contract_nor_are_compared_with_it() {
    let site = Site::new();
    let worker = site.worker("a");
    let other = |n: u32| {
        let tokens: Vec<u32> = (n..n + 8).collect();
        let fields = [("block_size", json!(8)), ("group_idx", json!(1))];
        with(stored(&[u64::from(n) + 9999], None, &tokens), &fields)
    };
    site.apply(worker, &[other(500)]);
    let plain = names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(&TOKENS));
    site.apply(worker, &[stored(&plain, None, &TOKENS[..16])]);
    assert!(matches!(site.status(worker).contract, Status::Verified(_)));
    let events: Vec<Value> = (0..32).map(|n| other(1000 + 10 * n)).collect();
    site.apply(worker, &events);
    assert_eq!(site.status(worker).checks.failed, 0);
    assert_eq!(site.warnings(worker), [""; 0]);
}

#[test]
fn an_array_of_eleven_fields_is_read_by_the_rules_of_ten() {
    let site = Site::new();
    let worker = site.worker("a");
    let tokens = &TOKENS[..4];
    let names = names("0.21.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(tokens));
    let mut event = stored_as("0.22.0", &[json!(names[0])], Value::Null, tokens, SIZE);
    event.as_array_mut().unwrap().truncate(11);
    site.apply(worker, &[event]);
    assert!(matches!(site.status(worker).contract, Status::Verified(_)));
}

#[test]
fn lists_of_tokens_after_blocks_that_differ_in_length_leave_the_blocks_known_by_name() {
    let site = Site::new();
    let worker = site.worker("a");
    let uneven = [("lookahead_token_ids", json!([[5], [9, 10]]))];
    site.apply(worker, &[with(stored(&[1, 2], None, &TOKENS[..8]), &uneven)]);
    assert_eq!((site.status(worker).events.sparse, site.matched("a", &TOKENS)), (1, 0));
    site.apply(worker, &[removed(&[1, 2], "GPU")]);
    assert_eq!(site.status(worker).events.unknown_removals, 0);
}

#[test]
fn the_next_audit_is_due_within_a_period() {
    let mut pair = Pair::new();
    pair.same(stored_by_name(&[1], "CPU"));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    let wake_at = pair.site.scout.tick(pair.worker, pair.now).unwrap().wake_at.unwrap();
    assert!(wake_at > pair.now && wake_at <= pair.now + PERIOD + Duration::from_millis(1));
}
