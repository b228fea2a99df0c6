//! The facade, fed with payloads as engines write them.

mod event_support;

use event_support::{SIZE, batch, removed, stored, with};
use kvscout::ErrorKind;
use kvscout::block::{BlockSize, Lora, Name, Prompt, Shape, WorkerId};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use kvscout::ingest::verify::Status;
use kvscout::ingest::{Reason, Trust, Verdict};
use kvscout::scout::{Adapter, Blocks, Options, Ranking, Registration, Request, Scout, Scratch};
use serde_json::{Value, json};

fn scout() -> Scout {
    Scout::new(Options::default()).unwrap()
}

fn ask<'s>(scout: &Scout, scratch: &'s mut Scratch, tokens: &[u32]) -> Ranking<'s> {
    scout.score(&Request::new("m", Prompt::new(tokens)), scratch).unwrap()
}

/// Matched blocks of one worker.
fn matched(scout: &Scout, worker: WorkerId, tokens: &[u32]) -> u32 {
    let mut scratch = Scratch::default();
    let ranked = ask(scout, &mut scratch, tokens);
    ranked.find(worker).unwrap().score.matched_blocks
}

fn trust(scout: &Scout, worker: WorkerId) -> Trust {
    scout.worker(worker).unwrap().trust
}

#[test]
fn workers_are_ranked_best_first_and_ties_by_registration() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let b = scout.register(Registration::new("b", "m")).unwrap();
    let c = scout.register(Registration::new("c", "m")).unwrap();
    scout.apply(b, 0, &batch(1.0, &[stored(&[1, 2], None, &[0, 1, 2, 3, 4, 5, 6, 7])])).unwrap();
    let mut scratch = Scratch::default();
    let order: Vec<_> =
        ask(&scout, &mut scratch, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).iter().map(|r| r.worker).collect();
    assert_eq!(order, [b, a, c]);
}

#[test]
fn only_candidates_are_in_the_answer() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let b = scout.register(Registration::new("b", "m")).unwrap();
    for worker in [a, b] {
        scout.apply(worker, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    }
    let mut scratch = Scratch::default();
    let request = Request {
        candidates: Some(&[b, WorkerId(99)]),
        ..Request::new("m", Prompt::new(&[0, 1, 2, 3]))
    };
    let ranked = scout.score(&request, &mut scratch).unwrap();
    assert_eq!(ranked.iter().map(|r| r.worker).collect::<Vec<_>>(), [b]);
    assert_eq!(ranked.best().unwrap().score.matched_blocks, 1);
}

#[test]
fn models_and_tenants_never_see_each_others_blocks() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let other = scout.register(Registration::new("b", "other")).unwrap();
    let tenant = Registration { tenant: "t".into(), ..Registration::new("a", "m") };
    scout.register(tenant).unwrap();
    for worker in [a, other] {
        scout.apply(worker, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    }
    let mut scratch = Scratch::default();
    let ranked = ask(&scout, &mut scratch, &[0, 1, 2, 3]);
    assert_eq!(ranked.iter().map(|r| r.worker).collect::<Vec<_>>(), [a]);
    let request = Request { tenant: "t", ..Request::new("m", Prompt::new(&[0, 1, 2, 3])) };
    let ranked = scout.score(&request, &mut scratch).unwrap();
    assert_eq!(ranked.best().unwrap().score.matched_blocks, 0, "same pod name, another tenant");
    let error = scout.score(&Request::new("nobody", Prompt::new(&[0])), &mut scratch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownModel);
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[test]
fn a_worker_without_a_model_answers_for_any() {
    let scout = scout();
    let any = Registration { model: None, ..Registration::new("a", "") };
    let worker = scout.register(any).unwrap();
    scout.apply(worker, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    assert_eq!(matched(&scout, worker, &[0, 1, 2, 3]), 1);
}

#[test]
fn registering_again_is_idempotent_and_other_facts_are_refused() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    assert_eq!(scout.register(Registration::new("a", "m")).unwrap(), a);
    let error = scout.register(Registration::new("a", "other")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_comes_after_unregistering_changes_nothing() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let payload = batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])]);
    scout.apply(a, 0, &payload).unwrap();
    scout.unregister(a).unwrap();
    assert_eq!(scout.apply(a, 1, &payload).unwrap_err().kind(), ErrorKind::UnknownWorker);
    let stats = scout.stats();
    assert_eq!((stats.blocks, stats.unplaced, stats.entries), (0, 0, 0));
    let again = scout.register(Registration::new("a", "m")).unwrap();
    assert_ne!(again, a);
    assert_eq!(matched(&scout, again, &[0, 1, 2, 3]), 0);
}

#[test]
fn a_gap_is_counted_and_flagged_and_the_worker_still_scores() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    scout.apply(a, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    let ingested = scout.apply(a, 3, &batch(2.0, &[stored(&[2], Some(1), &[4, 5, 6, 7])])).unwrap();
    assert_eq!(ingested.verdict, Verdict::Gap { missing: 2 });
    assert_eq!(trust(&scout, a), Trust::Degraded(Reason::Gap));
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3, 4, 5, 6, 7]), 2);
    let status = scout.worker(a).unwrap();
    assert_eq!((status.counters.gaps, status.counters.missing, status.as_of), (1, 2, Some(3)));
}

#[test]
fn a_full_clear_makes_a_worker_exact_again() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    scout.apply(a, 5, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    assert_eq!(trust(&scout, a), Trust::Degraded(Reason::MissedStart));
    scout.apply(a, 6, &batch(2.0, &[json!({ "type": "AllBlocksCleared" })])).unwrap();
    assert_eq!(trust(&scout, a), Trust::Exact);
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 0);
}

#[test]
fn a_restarted_publisher_leaves_nothing_of_its_last_life() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    scout.apply(a, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    scout.apply(a, 1, &batch(2.0, &[stored(&[2], Some(1), &[4, 5, 6, 7])])).unwrap();
    let ingested = scout.apply(a, 0, &batch(9.0, &[stored(&[5], None, &[8, 8, 8, 8])])).unwrap();
    assert_eq!(ingested.verdict, Verdict::Restart);
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 0);
    assert_eq!(matched(&scout, a, &[8, 8, 8, 8]), 1);
    assert_eq!(trust(&scout, a), Trust::Exact);
}

#[test]
fn s5_a_late_store_revives_no_block_that_was_removed() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let payload = batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])]);
    scout.apply(a, 0, &batch(0.0, &[stored(&[9], None, &[9; 4])])).unwrap();
    // The removal overtakes the store.
    scout.apply(a, 2, &batch(2.0, &[removed(&[1], "GPU")])).unwrap();
    assert_eq!(scout.apply(a, 1, &payload).unwrap().verdict, Verdict::Late);
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 0);
}

#[test]
fn s6_a_repeated_batch_counts_once() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let payload = batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])]);
    scout.apply(a, 0, &payload).unwrap();
    assert_eq!(scout.apply(a, 0, &payload).unwrap().verdict, Verdict::Duplicate);
    scout.apply(a, 1, &batch(2.0, &[removed(&[1], "GPU")])).unwrap();
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 0);
}

#[test]
fn one_bad_event_leaves_the_others_of_its_batch_and_flags_the_worker() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let bad = [
        json!({ "type": "BlockStored", "block_hashes": "no list" }),
        stored(&[8, 8], None, &[1; 8]),
        stored(&[9], Some(9), &[1; 4]),
        with(stored(&[9], None, &[]), &[("token_ids", json!([1, 2, 3, 1u64 << 32]))]),
    ];
    for (seq, bad) in bad.into_iter().enumerate() {
        let (start, name) = (seq as u32 * 100, seq as u64 + 100);
        let tokens = [start, start + 1, start + 2, start + 3];
        let events = [bad, stored(&[name], None, &tokens)];
        let ingested = scout.apply(a, seq as u64, &batch(seq as f64, &events)).unwrap();
        assert_eq!((ingested.rejected, ingested.applied.stored), (1, 1), "event {seq}");
        assert_eq!(matched(&scout, a, &tokens), 1);
    }
    assert_eq!(trust(&scout, a), Trust::Degraded(Reason::Undecodable));
    assert_eq!(scout.worker(a).unwrap().events.rejected, 4);
}

#[test]
fn events_in_one_batch_do_what_they_do_in_batches_of_their_own() {
    let mut events = Vec::new();
    for round in 0..3_u64 {
        for n in 0..150 {
            let name = round * 1000 + n;
            let tokens: Vec<u32> = (0..SIZE).map(|t| (name as u32) * SIZE + t).collect();
            let parent = (n % 10 > 0).then(|| name - 1);
            events.push(stored(&[name], parent, &tokens));
            events.push(match n % 7 {
                // Two of an event's own, one that was never there, one that is no event.
                0 => stored(&[name, name], parent, &[tokens.clone(), tokens].concat()),
                3 => removed(&[name.saturating_sub(5), name + 500], "GPU"),
                5 => json!({ "type": "BlockMoved" }),
                _ => removed(&[name], "CPU"),
            });
        }
        if round == 1 {
            events.push(json!({ "type": "AllBlocksCleared" }));
        }
    }
    let (together, apart) = (scout(), scout());
    let [a, b] = [&together, &apart].map(|s| s.register(Registration::new("a", "m")).unwrap());
    let mut sum = together.apply(a, 0, &batch(1.0, &events)).unwrap();
    for (n, event) in events.iter().enumerate() {
        let one = apart.apply(b, n as u64, &batch(1.0, std::slice::from_ref(event))).unwrap();
        sum.rejected -= one.rejected;
        sum.applied.stored -= one.applied.stored;
        sum.applied.removed -= one.applied.removed;
        sum.applied.unknown_removals -= one.applied.unknown_removals;
        sum.applied.unplaced -= one.applied.unplaced;
    }
    assert_eq!((sum.rejected, sum.applied), (0, kvscout::index::Applied::default()));
    let [a, b] = [together.worker(a).unwrap(), apart.worker(b).unwrap()];
    assert_eq!((a.trust, a.events), (b.trust, b.events));
    assert!(a.events.stored > 400 && a.events.rejected > 60 && a.events.unknown_removals > 60);
    assert_eq!(together.stats().entries, apart.stats().entries);
}

#[test]
fn a_payload_that_is_no_batch_is_counted_and_the_stream_goes_on() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let ingested = scout.apply(a, 0, b"\xc1 nonsense").unwrap();
    assert!(ingested.error.is_some());
    scout.apply(a, 1, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 1);
    assert_eq!(trust(&scout, a), Trust::Degraded(Reason::Undecodable));
}

#[test]
fn garbage_under_an_old_number_costs_nothing_that_is_known() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    scout.apply(a, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    let ingested = scout.apply(a, 0, b"garbage").unwrap();
    assert_eq!((ingested.verdict, ingested.rejected), (Verdict::Late, 1));
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 1);
    assert_eq!(trust(&scout, a), Trust::Exact);
}

#[test]
fn a_block_offloaded_by_name_counts_in_its_tier_after_it_left_the_gpu() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let offload = with(
        stored(&[1, 2], None, &[]),
        &[("medium", json!("CPU")), ("block_size", json!(0)), ("extra_keys", Value::Null)],
    );
    let tokens: Vec<u32> = (0..9).collect();
    scout.apply(a, 0, &batch(1.0, &[stored(&[1, 2], None, &tokens[..8]), offload])).unwrap();
    scout.apply(a, 1, &batch(2.0, &[removed(&[2], "GPU")])).unwrap();
    let mut scratch = Scratch::default();
    let ranked = ask(&scout, &mut scratch, &tokens).best().unwrap();
    assert_eq!(ranked.score.tier_tokens, [4, 8, 8, 8]);
    assert_eq!(ranked.score.expected_cached_tokens, Ok(4));
    assert!((ranked.score.weighted - 1.8).abs() < 1e-12);
}

#[test]
fn dynamos_hashes_find_exactly_what_is_held_where_they_are_kept() {
    // Of tokens 0..4 and 4..8, as Python's `xxhash` computes them.
    let hashes = [9_143_094_415_614_847_814, 12_124_091_508_212_882_195];
    fn request(hashes: &[u64]) -> Request<'_> {
        let block_size = BlockSize::new(SIZE).unwrap();
        let blocks = Blocks::Local { hashes, block_size };
        Request { blocks, ..Request::new("m", Prompt::new(&[])) }
    }
    let mut scratch = Scratch::default();
    let without = scout();
    without.register(Registration::new("a", "m")).unwrap();
    let error = without.score(&request(&hashes), &mut scratch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let scout = Scout::new(Options { local_hashes: 100, ..Options::default() }).unwrap();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let b = scout.register(Registration::new("b", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    scout.apply(a, 0, &batch(1.0, &[stored(&[1, 2], None, &tokens)])).unwrap();
    // The second block in another place of a prompt is not the second of this one.
    scout.apply(b, 0, &batch(1.0, &[stored(&[3], None, &tokens[4..])])).unwrap();
    let mut held = |hashes: &[u64]| {
        let ranked = scout.score(&request(hashes), &mut scratch).unwrap();
        [a, b].map(|worker| ranked.find(worker).unwrap().score.matched_blocks)
    };
    assert_eq!(held(&hashes), [2, 0]);
    assert_eq!(held(&[hashes[1]]), [0, 1]);
    assert_eq!(held(&[hashes[0], 7, hashes[1]]), [1, 0]);
    scout.apply(a, 1, &batch(2.0, &[removed(&[2], "GPU")])).unwrap();
    assert_eq!(held(&hashes), [1, 0]);
}

#[test]
fn media_that_are_not_known_never_count() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let odd = with(stored(&[1], None, &[0, 1, 2, 3]), &[("medium", json!("HOLOGRAM"))]);
    scout.apply(a, 0, &batch(1.0, &[odd])).unwrap();
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 0);
}

#[test]
fn a_masked_event_is_known_by_the_names_of_the_full_group() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..13).collect();
    let window = [
        ("group_idx", json!(1)),
        ("kv_cache_spec_kind", json!("sliding_window")),
        ("kv_cache_spec_sliding_window", json!(5)),
        ("extra_keys", json!([null])),
    ];
    let full = stored(&[1, 2, 3], None, &tokens[..12]);
    let masked = with(stored(&[3], None, &tokens[..12]), &window);
    // The window's group may come first in a batch.
    scout.apply(a, 0, &batch(1.0, &[masked, full])).unwrap();
    let mut scratch = Scratch::default();
    let ranked = ask(&scout, &mut scratch, &tokens).best().unwrap();
    assert_eq!(ranked.score.expected_cached_tokens, Ok(12));
    assert_eq!(scout.worker(a).unwrap().events.sparse, 1);
    let gone = with(removed(&[3], "GPU"), &[("group_idx", json!(1))]);
    scout.apply(a, 1, &batch(2.0, &[gone])).unwrap();
    let ranked = ask(&scout, &mut scratch, &tokens).best().unwrap();
    assert_eq!((ranked.score.matched_blocks, ranked.score.expected_cached_tokens), (3, Ok(0)));
}

#[test]
fn prompts_are_told_apart_by_adapter_and_salt() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens = [0, 1, 2, 3];
    let adapter =
        [("lora_name", json!("x")), ("lora_id", json!(1)), ("extra_keys", json!([["x"]]))];
    let salt = [("extra_keys", json!([["x"]]))];
    let both =
        [("lora_name", json!("x")), ("lora_id", json!(1)), ("extra_keys", json!([["x", "x"]]))];
    let lora = Lora { name: "x", id: None, path: None };
    let prompts = [
        Prompt::new(&tokens),
        Prompt { lora: Some(lora), ..Prompt::new(&tokens) },
        Prompt { cache_salt: Some("x"), ..Prompt::new(&tokens) },
        Prompt { lora: Some(lora), cache_salt: Some("x"), ..Prompt::new(&tokens) },
    ];
    let extras: [&[(&str, Value)]; 4] = [&[], &adapter, &salt, &both];
    let mut scratch = Scratch::default();
    for (stores, extra) in extras.iter().enumerate() {
        let seq = 2 * stores as u64;
        let event = with(stored(&[1], None, &tokens), extra);
        scout.apply(a, seq, &batch(seq as f64, &[event])).unwrap();
        for (asks, prompt) in prompts.iter().enumerate() {
            let ranked = scout.score(&Request::new("m", *prompt), &mut scratch).unwrap();
            let expected = u32::from(asks == stores);
            assert_eq!(
                ranked.best().unwrap().score.matched_blocks,
                expected,
                "stored {stores}, asked {asks}"
            );
        }
        scout.apply(a, seq + 1, &batch(seq as f64, &[removed(&[1], "GPU")])).unwrap();
    }
}

#[test]
fn an_adapters_name_stands_for_its_model() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let adapter = Adapter { model: "m".into(), id: None, path: None };
    scout.register_adapter(Registration::DEFAULT_TENANT, "x", adapter);
    let fields = [("lora_name", json!("x")), ("lora_id", json!(1)), ("extra_keys", json!([["x"]]))];
    let event = with(stored(&[1], None, &[0, 1, 2, 3]), &fields);
    scout.apply(a, 0, &batch(1.0, &[event])).unwrap();
    let mut scratch = Scratch::default();
    let request = Request::new("x", Prompt::new(&[0, 1, 2, 3]));
    assert_eq!(
        scout.score(&request, &mut scratch).unwrap().best().unwrap().score.matched_blocks,
        1
    );
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 0, "the model without its adapter");
}

/// Names of a prompt as vLLM 0.10.2 to 0.13 make them under PYTHONHASHSEED 42.
fn names(prompt: &Prompt<'_>) -> Vec<u64> {
    let version = Version::new(0, 13, 0);
    let contract = Contract::new(version, Algorithm::Sha256Cbor, Root::Seed("42")).unwrap();
    let shape = Shape::plain(BlockSize::new(SIZE).unwrap());
    let mut chain = contract.chain(shape, prompt).unwrap();
    chain.extend(prompt.token_ids).map(|hash| hash.name().0).collect()
}

/// `BlockStored` of vLLM 0.10.2 to 0.13, which says nothing of extra keys.
fn stored_hiding(names: &[u64], tokens: &[u32]) -> Value {
    json!(["BlockStored", names, null, tokens, SIZE, null, "GPU"])
}

#[test]
fn blocks_that_could_be_salted_wait_until_a_plain_prompt_shows_the_contract() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    let salted = Prompt { cache_salt: Some("s"), ..Prompt::new(&tokens) };
    let plain: Vec<u32> = (50..58).collect();
    scout.apply(a, 0, &batch(1.0, &[stored_hiding(&names(&salted), &tokens)])).unwrap();
    assert_eq!(trust(&scout, a), Trust::Syncing);
    assert_eq!(matched(&scout, a, &tokens), 0, "the salted block must not match a plain prompt");
    let names = names(&Prompt::new(&plain));
    scout.apply(a, 1, &batch(2.0, &[stored_hiding(&names, &plain)])).unwrap();
    assert_eq!((trust(&scout, a), scout.worker(a).unwrap().as_of), (Trust::Exact, Some(1)));
    assert!(matches!(scout.worker(a).unwrap().contract, Status::Verified(_)));
    assert_eq!(matched(&scout, a, &plain), 2);
    assert_eq!(matched(&scout, a, &tokens), 0);
    let mut scratch = Scratch::default();
    let ranked = scout.score(&Request::new("m", salted), &mut scratch).unwrap();
    assert_eq!(ranked.best().unwrap().score.matched_blocks, 2, "matched by its exact names");
}

#[test]
fn a_query_with_the_same_salt_shows_the_contract_too() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    let salted = Prompt { cache_salt: Some("s"), ..Prompt::new(&tokens) };
    scout.apply(a, 0, &batch(1.0, &[stored_hiding(&names(&salted), &tokens)])).unwrap();
    let mut scratch = Scratch::default();
    let ranked = scout.score(&Request::new("m", salted), &mut scratch).unwrap();
    assert_eq!(
        (ranked.best().unwrap().score.matched_blocks, ranked.best().unwrap().trust),
        (2, Trust::Exact)
    );
}

#[test]
fn an_engine_that_hides_extra_keys_under_a_random_seed_is_flagged() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    for n in 0..10u32 {
        let tokens = [n, n, n, n];
        let payload = batch(f64::from(n), &[stored_hiding(&[u64::from(n) + 7], &tokens)]);
        scout.apply(a, u64::from(n), &payload).unwrap();
    }
    assert_eq!(trust(&scout, a), Trust::Degraded(Reason::ExtrasHidden));
    assert_eq!(scout.worker(a).unwrap().contract, Status::Private);
    assert_eq!(matched(&scout, a, &[0; 4]), 1, "what had waited is there");
}

#[test]
fn engines_with_different_seeds_match_the_same_prompt() {
    let scout = scout();
    let tokens: Vec<u32> = (0..9).collect();
    for (pod, names) in [("a", [11, 12]), ("b", [21, 22])] {
        let worker = scout.register(Registration::new(pod, "m")).unwrap();
        scout.apply(worker, 0, &batch(1.0, &[stored(&names, None, &tokens[..8])])).unwrap();
        assert_eq!(matched(&scout, worker, &tokens), 2);
    }
    assert_eq!(scout.stats().blocks, 2, "one tree");
}

#[test]
fn a_prompt_may_be_asked_for_by_its_names() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    scout.apply(a, 0, &batch(1.0, &[stored(&[11, 12], None, &tokens)])).unwrap();
    let block_size = BlockSize::new(SIZE).unwrap();
    let mut scratch = Scratch::default();
    for (names, expected) in [(&[Name(11), Name(12), Name(13)][..], 2), (&[Name(12)], 0), (&[], 0)]
    {
        let request = Request {
            blocks: Blocks::Names { names, block_size },
            ..Request::new("m", Prompt::default())
        };
        let ranked = scout.score(&request, &mut scratch).unwrap();
        assert_eq!(ranked.best().unwrap().score.matched_blocks, expected, "{names:?}");
        assert_eq!(ranked.best().unwrap().score.tier_tokens, [expected * SIZE; 4]);
    }
}

#[test]
fn chunks_of_another_unit_are_not_counted_as_blocks() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    let chunk =
        with(stored(&[99], None, &tokens), &[("medium", json!("CPU")), ("block_size", json!(8))]);
    scout.apply(a, 0, &batch(1.0, &[stored(&[11], None, &tokens[..4]), chunk])).unwrap();
    let mut scratch = Scratch::default();
    assert_eq!(ask(&scout, &mut scratch, &tokens).best().unwrap().score.tier_tokens, [4; 4]);
    assert_eq!(scout.worker(a).unwrap().events.other_unit, 1);
}

#[test]
fn a_chunk_that_comes_first_does_not_hide_the_blocks_that_follow() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    let chunk =
        with(stored(&[99], None, &tokens), &[("medium", json!("CPU")), ("block_size", json!(8))]);
    scout.apply(a, 0, &batch(1.0, &[chunk, stored(&[11, 12], None, &tokens)])).unwrap();
    assert_eq!(matched(&scout, a, &tokens), 2);
}

#[test]
fn a_partial_block_does_not_change_the_unit_and_a_larger_one_does() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    let partial = with(stored(&[9], None, &tokens[..2]), &[("block_size", json!(2))]);
    scout.apply(a, 0, &batch(1.0, &[stored(&[11, 12], None, &tokens), partial.clone()])).unwrap();
    assert_eq!((matched(&scout, a, &tokens), scout.worker(a).unwrap().events.other_unit), (2, 1));
    let b = scout.register(Registration::new("b", "m")).unwrap();
    scout.apply(b, 0, &batch(1.0, &[partial, stored(&[11, 12], None, &tokens)])).unwrap();
    assert_eq!(matched(&scout, b, &tokens), 2);
}

#[test]
fn a_restarted_engine_may_have_another_block_size() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..8).collect();
    let wide = with(stored(&[1], None, &tokens), &[("block_size", json!(8))]);
    scout.apply(a, 0, &batch(1.0, &[wide])).unwrap();
    scout.apply(a, 0, &batch(9.0, &[stored(&[11, 12], None, &tokens)])).unwrap();
    assert_eq!(matched(&scout, a, &tokens), 2);
}

#[test]
fn what_kind_a_group_is_may_be_announced_later() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let tokens: Vec<u32> = (0..9).collect();
    let mut first = stored(&[11], None, &tokens[..4]);
    first.as_object_mut().unwrap().remove("kv_cache_spec_kind");
    scout.apply(a, 0, &batch(1.0, &[first])).unwrap();
    scout.apply(a, 1, &batch(2.0, &[stored(&[12], Some(11), &tokens[4..8])])).unwrap();
    assert_eq!(scout.worker(a).unwrap().groups[0].rule, kvscout::score::GroupRule::Full);
}

#[test]
fn a_model_that_is_served_is_not_taken_for_an_adapter() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    scout.apply(a, 0, &batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])])).unwrap();
    let adapter = Adapter { model: "elsewhere".into(), id: None, path: None };
    scout.register_adapter(Registration::DEFAULT_TENANT, "m", adapter);
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3]), 1);
}

#[test]
fn look_ahead_tokens_belong_to_a_blocks_identity() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let event = with(
        stored(&[1, 2], None, &[0, 1, 2, 3, 4, 5, 6, 7]),
        &[("lookahead_token_ids", json!([[4], [8]]))],
    );
    scout.apply(a, 0, &batch(1.0, &[event])).unwrap();
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3, 4, 5, 6, 7, 8]), 2);
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3, 4, 5, 6, 7, 9]), 1);
    assert_eq!(matched(&scout, a, &[0, 1, 2, 3, 4, 5, 6, 7]), 1, "the next token is not there yet");
}

#[test]
fn scoring_and_applying_run_beside_each_other() {
    let scout = scout();
    let workers: Vec<WorkerId> =
        (0..4).map(|n| scout.register(Registration::new(format!("w{n}"), "m")).unwrap()).collect();
    let tokens: Vec<u32> = (0..9).collect();
    std::thread::scope(|scope| {
        for &worker in &workers {
            let (scout, tokens) = (&scout, &tokens);
            scope.spawn(move || {
                for seq in 0..200 {
                    let event = match seq % 2 {
                        0 => stored(&[1, 2], None, &tokens[..8]),
                        _ => removed(&[2, 1], "GPU"),
                    };
                    scout.apply(worker, seq, &batch(seq as f64, &[event])).unwrap();
                }
            });
        }
        scope.spawn(|| {
            let mut scratch = Scratch::default();
            for _ in 0..500 {
                assert_eq!(ask(&scout, &mut scratch, &tokens).len(), 4);
            }
        });
    });
    for worker in workers {
        assert_eq!((matched(&scout, worker, &tokens), trust(&scout, worker)), (0, Trust::Exact));
    }
    assert_eq!(scout.stats().entries, 0);
}

#[test]
fn a_ranking_is_read_by_place_by_worker_and_in_order() {
    let scout = scout();
    let workers: Vec<WorkerId> =
        (0..70).map(|n| scout.register(Registration::new(format!("w{n}"), "m")).unwrap()).collect();
    let tokens: Vec<u32> = (0..9).collect();
    for (n, blocks) in [(66, 2), (3, 1), (5, 2)] {
        let names = &[1, 2][..blocks];
        let event = stored(names, None, &tokens[..blocks * SIZE as usize]);
        scout.apply(workers[n], 0, &batch(1.0, &[event])).unwrap();
    }
    scout.unregister(workers[4]).unwrap();
    let mut scratch = Scratch::default();
    let ranking = ask(&scout, &mut scratch, &tokens);
    assert_eq!((ranking.len(), ranking.is_empty(), ranking.holders().len()), (69, false, 3));
    let first = [5, 66, 3, 0, 1, 2, 6, 7];
    let order: Vec<u32> = ranking.iter().map(|row| row.worker.0).collect();
    assert_eq!(order[..8], first);
    assert!(order[3..].is_sorted());
    for (place, row) in ranking.iter().enumerate() {
        assert_eq!(ranking.get(place).unwrap().worker, row.worker);
        let found = ranking.find(row.worker).unwrap();
        assert_eq!((found.pod, found.score), (&*format!("w{}", row.worker.0), row.score));
    }
    assert!(ranking.get(69).is_none() && ranking.find(workers[4]).is_none());
    assert!(ranking.find(WorkerId(70)).is_none());
    let candidates = [workers[69], workers[3], workers[0], workers[3], workers[4]];
    let request =
        Request { candidates: Some(&candidates), ..Request::new("m", Prompt::new(&tokens)) };
    let ranking = scout.score(&request, &mut scratch).unwrap();
    assert_eq!(ranking.iter().map(|row| row.worker.0).collect::<Vec<_>>(), [3, 0, 69]);
    assert!(ranking.find(workers[66]).is_none());
    let request = Request { candidates: Some(&[]), ..request };
    let ranking = scout.score(&request, &mut scratch).unwrap();
    assert!(ranking.is_empty() && ranking.best().is_none());
}

#[test]
fn one_scratch_serves_many_scouts_models_and_changes() {
    let tokens = [0, 1, 2, 3];
    let mut scratch = Scratch::default();
    let scouts = [scout(), scout()];
    for round in 0..3 {
        for (n, scout) in scouts.iter().enumerate() {
            let pod = format!("s{n} r{round}");
            let worker = scout.register(Registration::new(&pod, "m")).unwrap();
            scout.apply(worker, 0, &batch(1.0, &[stored(&[1], None, &tokens)])).unwrap();
            let adapter = Adapter { model: "m".into(), id: None, path: None };
            for (name, held) in [("m", 1), (&*format!("x{round}"), 0)] {
                let request = Request::new(name, Prompt::new(&tokens));
                if held == 0 {
                    let unknown = scout.score(&request, &mut scratch).unwrap_err();
                    assert_eq!(unknown.kind(), ErrorKind::UnknownModel);
                    scout.register_adapter(Registration::DEFAULT_TENANT, name, adapter.clone());
                }
                let ranking = scout.score(&request, &mut scratch).unwrap();
                assert_eq!((ranking.len(), ranking.holders().len()), (1, held));
                assert_eq!(ranking.best().unwrap().pod, pod);
            }
            scout.unregister(worker).unwrap();
        }
    }
}

#[test]
fn what_is_worth_nothing_is_ranked_by_worker_with_those_that_hold_nothing() {
    let weights = kvscout::score::Weights { cpu: 0.0, ..Default::default() };
    let scout = Scout::new(Options { weights, ..Options::default() }).unwrap();
    let tokens = [0, 1, 2, 3];
    for (pod, medium) in [("a", None), ("b", Some("CPU")), ("c", Some("GPU"))] {
        let worker = scout.register(Registration::new(pod, "m")).unwrap();
        if let Some(medium) = medium {
            let event = with(stored(&[1], None, &tokens), &[("medium", json!(medium))]);
            scout.apply(worker, 0, &batch(1.0, &[event])).unwrap();
        }
    }
    let mut scratch = Scratch::default();
    let ranking = ask(&scout, &mut scratch, &tokens);
    let rows: Vec<_> = ranking.iter().map(|row| (row.pod, row.score.matched_blocks)).collect();
    assert_eq!(rows, [("c", 1), ("a", 0), ("b", 1)]);
    assert_eq!(ranking.holders().len(), 1);
}
