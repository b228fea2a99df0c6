//! Rows L of the catalogue (`docs/failures.md`): publishers and pods that come, go and come back.

mod failures_support;

use failures_support::*;
use kvscout::ErrorKind;
use kvscout::block::{Lora, Prompt, Tier, WorkerId};
use kvscout::hash::vllm::Algorithm;
use kvscout::ingest::{Reason, Trust, Verdict};
use kvscout::scout::{OnClear, Registration, Request};
use serde_json::{Value, json};

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
    let request = |tokens| Request::new("other", Prompt::new(tokens));
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

#[test]
fn l10_whether_a_clear_without_a_tier_takes_the_host_tiers_is_the_sources_own_setting() {
    let site = Site::new();
    for (pod, on_clear, left) in
        [("all", OnClear::All, [0; 4]), ("gpu", OnClear::Gpu, [0, 8, 8, 8])]
    {
        let worker = site.register(Registration { on_clear, ..Registration::new(pod, "m") });
        let chain = stored(&[1, 2], None, &TOKENS[..8]);
        site.apply(worker, &[chain, stored_by_name(&[1, 2], "CPU")]);
        site.apply(worker, &[cleared()]);
        assert_eq!(site.line(pod, 0, Prompt::new(&TOKENS)).tiers, left, "{pod}");
        assert_eq!(site.status(worker).events.cleared, 1);
    }
}

#[test]
fn l9_a_clear_that_leaves_host_tiers_makes_a_worker_no_sounder() {
    let site = Site::new();
    for (pod, on_clear, trust) in [
        ("all", OnClear::All, Trust::Exact),
        ("gpu", OnClear::Gpu, Trust::Degraded(Reason::Undecodable)),
    ] {
        let worker = site.register(Registration { on_clear, ..Registration::new(pod, "m") });
        site.apply(worker, &[json!(17)]);
        site.apply(worker, &[cleared()]);
        assert_eq!(site.trust(worker), trust, "{pod}");
    }
}

#[test]
fn l12_clearing_an_adapter_takes_its_blocks_and_no_others() {
    let site = Site::new();
    let events = || {
        let event = |name: u64| stored(&[name, name + 1], None, &TOKENS[..8]);
        [event(1), of_adapter(event(11), "x"), of_adapter(event(21), "y")]
    };
    let tenant = Registration { tenant: "t".into(), ..Registration::new("theirs", "m") };
    let theirs = site.register(tenant);
    let workers = [site.worker("a"), site.worker("b"), theirs];
    for worker in workers {
        site.apply(worker, &events());
    }
    let plain = Prompt::new(&TOKENS);
    let held = |pod: &str| {
        let prompts =
            [plain, Prompt { lora: lora("x"), ..plain }, Prompt { lora: lora("y"), ..plain }];
        prompts.map(|prompt| site.line(pod, 0, prompt).matched)
    };
    let of_tenant = || {
        let prompt = Prompt { lora: lora("x"), ..plain };
        ask(&site.scout, &Request { tenant: "t", ..Request::new("m", prompt) })[0].matched
    };
    assert_eq!((held("a"), held("b"), of_tenant()), ([2, 2, 2], [2, 2, 2], 2));
    site.scout.clear_adapter("default", "x");
    assert_eq!((held("a"), held("b"), of_tenant()), ([2, 0, 2], [2, 0, 2], 2));
    assert_eq!(site.trust(workers[0]), Trust::Exact);

    // What the engine goes on to say of its old blocks changes nothing.
    let child = of_adapter(stored(&[13], Some(12), &[8, 9, 10, 11]), "x");
    site.apply(workers[0], &[child]);
    site.apply(workers[0], &[removed(&[13, 12, 11], "GPU")]);
    assert_eq!(held("a"), [2, 0, 2]);
    // What it stores of the new ones counts, and one removal takes it away, although `b` never said
    // that the old ones are gone.
    for (worker, pod) in [(workers[0], "a"), (workers[1], "b")] {
        site.apply(worker, &[events()[1].clone()]);
        assert_eq!(held(pod), [2, 2, 2]);
        site.apply(worker, &[removed(&[12], "GPU")]);
        assert_eq!(held(pod), [2, 1, 2]);
    }
    assert_eq!(site.status(workers[1]).events.unknown_removals, 0);
    site.scout.clear_adapter("default", "x");
    assert_eq!((held("a"), held("b"), of_tenant()), ([2, 0, 2], [2, 0, 2], 2));
}

#[test]
fn l12_blocks_of_a_cleared_adapter_are_not_found_by_names_computed_from_tokens_either() {
    let site = Site::new();
    let worker = site.worker("a");
    let adapter = Lora { name: "x", id: None, path: Some("/x") };
    let plain = Prompt::new(&TOKENS);
    let prompt = Prompt { lora: Some(adapter), ..plain };
    let of = |prompt: &Prompt<'_>| names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, prompt);
    // The contract becomes known, then the adapter's blocks are announced by name alone.
    site.apply(worker, &[stored(&of(&plain), None, &TOKENS[..8])]);
    site.apply(worker, &[stored_by_name(&of(&prompt), "CPU")]);
    let held = |prompt| site.line("a", 0, prompt).tiers[1];
    assert_eq!((held(plain), held(prompt)), (8, 8));
    site.scout.clear_adapter("default", "x");
    assert_eq!((held(plain), held(prompt)), (8, 0));
}

#[test]
fn l12_clearing_a_worker_or_a_model_takes_exactly_theirs() {
    let site = Site::new();
    let (a, b, other) = (site.worker("a"), site.worker("b"), Registration::new("c", "other"));
    let other = site.register(other);
    let any = site.register(Registration { model: None, ..Registration::new("any", "") });
    let store = |worker| {
        site.apply(worker, &[stored(&[1, 2], None, &TOKENS[..8])]);
    };
    [a, b, other, any].into_iter().for_each(store);
    let held = |pod: &str, model| {
        let lines = ask(&site.scout, &Request::new(model, Prompt::new(&TOKENS)));
        lines.iter().find(|line| line.pod == pod).unwrap().matched
    };
    let all = || [held("a", "m"), held("b", "m"), held("c", "other"), held("any", "m")];
    site.scout.clear_worker(a).unwrap();
    assert_eq!(all(), [0, 2, 2, 2]);
    assert_eq!(site.scout.clear_model("default", "other").unwrap(), 1);
    assert_eq!(all(), [0, 2, 0, 2]);
    store(a);
    assert_eq!(all(), [2, 2, 0, 2], "what is stored afterwards counts");
    let unknown = [
        site.scout.clear_model("default", "nothing").unwrap_err().kind(),
        site.scout.clear_model("t", "m").unwrap_err().kind(),
        site.scout.clear_worker(WorkerId(999)).unwrap_err().kind(),
    ];
    assert_eq!(
        unknown,
        [ErrorKind::UnknownModel, ErrorKind::UnknownModel, ErrorKind::UnknownWorker]
    );
    assert_eq!(all(), [2, 2, 0, 2]);
}

#[test]
fn l12_clearing_a_worker_drops_what_waits_for_its_contract() {
    let site = Site::new();
    let worker = site.worker("a");
    let salted = Prompt { cache_salt: Some("s"), ..Prompt::new(&TOKENS) };
    let names = names("0.13.0", Algorithm::Sha256, "0", SIZE, &salted);
    let names: Vec<Value> = names.into_iter().map(Value::from).collect();
    site.apply(worker, &[stored_as("0.13.0", &names, Value::Null, &TOKENS[..8], SIZE)]);
    assert_eq!(site.trust(worker), Trust::Syncing);
    site.scout.clear_worker(worker).unwrap();
    let status = site.status(worker);
    assert_eq!((status.trust, status.as_of), (Trust::Exact, Some(0)));
    assert_eq!(site.line("a", 0, salted).matched, 0, "its names would prove the contract");
}
