//! Engines whose events hide extra keys (vLLM before 0.17): what is taken for plain text, what waits until that is
//! known, and what is said of it.

mod failures_support;

use failures_support::*;
use kvscout::block::{Item, Lora, Prompt, Tier, WorkerId};
use kvscout::hash::content::DigestKey;
use kvscout::hash::vllm::Algorithm;
use kvscout::index::MemoryOptions;
use kvscout::ingest::verify::Status;
use kvscout::ingest::{Reason, ReplayOptions, Trust};
use kvscout::scout::{Options, Registration, Scout};
use serde_json::{Value, json};

const BLIND: Trust = Trust::Degraded(Reason::ExtrasHidden);
const GAP: Trust = Trust::Degraded(Reason::Gap);

/// The first block of prompt `n`, and one token more.
fn prompt(n: u32) -> [u32; 5] {
    [10 * n, 10 * n + 1, 10 * n + 2, 10 * n + 3, 10 * n + 4]
}

/// A store of prompt `n`'s block that hides the salt that it was hashed with, if any.
fn hidden(n: u32, salt: Option<&str>) -> Value {
    let tokens = prompt(n);
    let prompt = Prompt { cache_salt: salt, ..Prompt::new(&tokens) };
    let names = names("0.13.0", Algorithm::Sha256, "0", SIZE, &prompt);
    stored_as("0.13.0", &[json!(names[0])], Value::Null, &tokens[..4], SIZE)
}

fn plain(n: u32) -> Value {
    hidden(n, None)
}

fn salted(n: u32) -> Value {
    hidden(n, Some("salt"))
}

#[track_caller]
fn send(site: &Site, worker: WorkerId, seq: u64, events: &[Value]) {
    site.scout.apply(worker, seq, &batch(events)).unwrap();
}

/// A worker whose engine salted eight prompts: its contract looks like a private one.
fn blind(site: &Site) -> WorkerId {
    let worker = site.worker("a");
    for n in 0..8 {
        site.apply(worker, &[salted(n)]);
    }
    assert_eq!((site.status(worker).contract, site.trust(worker)), (Status::Private, BLIND));
    assert_eq!(site.matched("a", &prompt(0)), 1, "taken for plain text");
    worker
}

#[test]
fn h9_salted_blocks_that_were_taken_for_plain_text_stay_said_until_the_engine_clears() {
    let site = Site::new();
    let worker = blind(&site);
    site.apply(worker, &[plain(8)]);
    assert!(matches!(site.status(worker).contract, Status::Verified(_)));
    assert_eq!((site.trust(worker), site.matched("a", &prompt(0))), (BLIND, 1));
    site.apply(worker, &[plain(9), salted(10)]);
    assert_eq!([9, 10].map(|n| site.matched("a", &prompt(n))), [1, 0], "they are told apart now");
    assert_eq!(site.trust(worker), BLIND);
    site.apply(worker, &[cleared(), salted(0), plain(8)]);
    assert_eq!(site.trust(worker), Trust::Exact);
    assert_eq!([0, 8].map(|n| site.matched("a", &prompt(n))), [0, 1]);
}

#[test]
fn h9_a_new_life_of_the_engine_ends_what_was_taken_for_plain_text() {
    let site = Site::new();
    let worker = blind(&site);
    site.apply(worker, &[plain(8)]);
    site.restart(worker);
    site.apply_payload(worker, &encode(&json!([9.0, [plain(8)], 0])));
    assert_eq!(site.status(worker).counters.restarts, 1);
    assert_eq!((site.trust(worker), site.matched("a", &prompt(0))), (Trust::Exact, 0));
}

#[test]
fn h9_a_clear_before_the_contract_is_known_leaves_nothing_to_be_said() {
    let site = Site::new();
    let worker = blind(&site);
    site.apply(worker, &[cleared()]);
    assert_eq!(site.trust(worker), BLIND, "what comes next would be taken for plain text, too");
    site.apply(worker, &[plain(8)]);
    assert_eq!(site.trust(worker), Trust::Exact);
    // Not so if something came in between.
    let site = Site::new();
    let worker = blind(&site);
    site.apply(worker, &[cleared(), salted(20)]);
    site.apply(worker, &[plain(8)]);
    assert_eq!((site.trust(worker), site.matched("a", &prompt(20))), (BLIND, 1));
}

#[test]
fn h9_what_was_taken_for_plain_text_is_said_after_a_restart_of_kvscout_too() {
    let key = DigestKey::random().unwrap();
    let options = || Options { digest_key: Some(key.clone()), ..Options::default() };
    for proved_before in [false, true] {
        let site = Site::with(options());
        let worker = blind(&site);
        if proved_before {
            site.apply(worker, &[plain(8)]);
        }
        let next = site.status(worker).as_of.unwrap() + 1;
        let scout = Scout::restore(options(), &site.scout.snapshot(0)).unwrap();
        for seq in next..next + 2 {
            scout.apply(worker, seq, &batch(&[plain(seq as u32)])).unwrap();
        }
        let status = scout.worker(worker).unwrap();
        assert!(matches!(status.contract, Status::Verified(_)));
        assert_eq!(status.trust, BLIND);
        scout.apply(worker, next + 2, &batch(&[cleared()])).unwrap();
        assert_eq!(scout.worker(worker).unwrap().trust, Trust::Exact);
    }
}

#[test]
fn h9_waiting_that_was_given_up_leaves_blocks_taken_for_plain_text() {
    let memory = MemoryOptions { unplaced_per_worker: 1 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let worker = site.worker("a");
    site.apply(worker, &[salted(0)]);
    let tokens: Vec<u32> = (100_000..180_000).collect();
    let chunk = |n: u64| {
        // They start no prompt: nothing is decided by them.
        let hashes: Vec<Value> = (0..20_000).map(|block| json!(n * 100_000 + block + 9)).collect();
        stored_as("0.13.0", &hashes, json!(7 + n), &tokens, SIZE)
    };
    let mut n = 1;
    while site.status(worker).contract == Status::Undecided {
        site.apply(worker, &[chunk(n)]);
        n += 1;
    }
    assert_eq!((site.trust(worker), site.matched("a", &prompt(0))), (BLIND, 1));
    site.apply(worker, &[plain(8)]);
    assert!(matches!(site.status(worker).contract, Status::Verified(_)));
    assert_eq!((site.trust(worker), site.matched("a", &prompt(0))), (BLIND, 1));
    site.apply(worker, &[cleared()]);
    assert_eq!(site.trust(worker), Trust::Exact);
}

/// A batch of some 600 KB that says that unknown blocks are gone.
fn large() -> Value {
    let names: Vec<u64> = (0..70_000).map(|n| u64::MAX - n).collect();
    removed(&names, "GPU")
}

#[test]
fn h9_who_waits_for_a_contract_goes_on_waiting_however_much_others_hold_back() {
    let memory = MemoryOptions { budget: 16 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    for pod in ["b", "c", "d"] {
        let other = site.worker(pod);
        site.scout.follow(other, ReplayOptions::default(), 7).unwrap();
        send(&site, other, 0, &[cleared()]);
        send(&site, other, 2, &[large()]);
        assert_eq!(site.status(other).held_back, 1);
    }
    let worker = site.worker("a");
    send(&site, worker, 0, &[salted(0)]);
    send(&site, worker, 1, &[large()]);
    assert_eq!(site.status(worker).contract, Status::Undecided);
    send(&site, worker, 2, &[plain(1)]);
    assert_eq!((site.trust(worker), site.matched("a", &prompt(1))), (Trust::Exact, 1));
    assert_eq!(site.matched("a", &prompt(0)), 0, "nothing was taken for plain text");
}

/// A worker of which a clear waits for the contract, as batch 1.
fn clear_waits(site: &Site) -> WorkerId {
    let worker = site.worker("a");
    send(site, worker, 0, &[salted(0)]);
    send(site, worker, 1, &[cleared()]);
    assert_eq!((site.trust(worker), site.status(worker).as_of), (Trust::Syncing, None));
    worker
}

#[test]
fn s2_a_clear_that_waited_heals_no_loss_that_came_behind_it() {
    let site = Site::new();
    let worker = clear_waits(&site);
    // Batch 2 is lost for good.
    send(&site, worker, 3, &[salted(3)]);
    assert_eq!(site.trust(worker), GAP);
    send(&site, worker, 4, &[plain(4)]);
    assert!(matches!(site.status(worker).contract, Status::Verified(_)));
    assert_eq!((site.trust(worker), site.status(worker).as_of), (GAP, Some(4)));
    assert_eq!([3, 4].map(|n| site.matched("a", &prompt(n))), [0, 1]);
    send(&site, worker, 5, &[cleared()]);
    assert_eq!(site.trust(worker), Trust::Exact, "this one came behind the loss");
}

#[test]
fn s2_a_clear_that_waited_heals_no_batch_behind_it_that_nobody_can_read() {
    let site = Site::new();
    let worker = clear_waits(&site);
    site.scout.apply(worker, 2, &[0xc1]).unwrap();
    send(&site, worker, 3, &[plain(3)]);
    assert_eq!(site.trust(worker), Trust::Degraded(Reason::Undecodable));
}

#[test]
fn s2_a_clear_that_a_query_lets_through_heals_no_loss_that_came_behind_it() {
    let site = Site::new();
    let worker = clear_waits(&site);
    send(&site, worker, 3, &[salted(3)]);
    let tokens = prompt(3);
    let asked = Prompt { cache_salt: Some("salt"), ..Prompt::new(&tokens) };
    assert_eq!(site.line("a", 0, asked).matched, 1);
    assert!(matches!(site.status(worker).contract, Status::Verified(_)));
    assert_eq!(site.trust(worker), GAP);
}

#[test]
fn s2_a_clear_that_waited_heals_what_was_lost_before_it_came() {
    let site = Site::new();
    let worker = site.worker("a");
    send(&site, worker, 0, &[salted(0)]);
    // Batch 1 is lost, and an event of batch 2 makes no sense.
    send(&site, worker, 2, &[with_hash_twice(salted(2))]);
    send(&site, worker, 3, &[cleared()]);
    assert_eq!(site.trust(worker), GAP);
    send(&site, worker, 4, &[plain(4)]);
    assert_eq!((site.trust(worker), site.matched("a", &prompt(4))), (Trust::Exact, 1));
}

/// An event that is left out as a whole.
fn with_hash_twice(mut event: Value) -> Value {
    event[1] = json!([5, 5]);
    event[3] = json!([7, 7, 7, 7, 7, 7, 7, 7]);
    event
}

/// Writes a field that forms with fewer fields lack.
fn put(event: &mut Value, name: &str, at: usize, value: Value) {
    match event.as_array_mut() {
        Some(fields) => fields.get_mut(at).into_iter().for_each(|field| *field = value.clone()),
        None => event[name] = value,
    }
}

/// A placeholder for blocks on the CPU in the form of a version: names, no tokens.
fn by_name(version: &str, names: &[u64]) -> Value {
    let hashes: Vec<Value> = names.iter().map(|name| json!(name)).collect();
    let mut event = stored_as(version, &hashes, Value::Null, &[], 0);
    put(&mut event, "medium", 6, json!("CPU"));
    put(&mut event, "extra_keys", 8, Value::Null);
    event
}

/// A store of one block in the form of a version that lists these extra keys.
fn listed(version: &str, name: u64, tokens: &[u32], keys: Value) -> Value {
    let mut event = stored_as(version, &[json!(name)], Value::Null, tokens, SIZE);
    put(&mut event, "extra_keys", 8, json!([keys]));
    event
}

#[track_caller]
fn verified(site: &Site, worker: WorkerId) -> String {
    let Status::Verified(contract) = site.status(worker).contract else { panic!() };
    contract.describe()
}

/// What a pod holds on its CPU of a prompt, in tokens.
#[track_caller]
fn on_cpu(site: &Site, pod: &str, prompt: Prompt<'_>) -> u32 {
    site.line(pod, 0, prompt).tiers[Tier::Cpu.rank().unwrap()]
}

#[test]
fn h3_versions_that_hash_plain_text_alike_are_named_together_and_what_is_known_by_name_is_found_in_all()
 {
    let tokens = prompt(1);
    let salted = Prompt { cache_salt: Some("salt"), ..Prompt::new(&tokens) };
    for version in ["0.25.1", "0.30.0", "0.31.0", "0.33.0"] {
        for told in [true, false] {
            let site = Site::new();
            let vllm = told.then(|| version.parse().unwrap());
            let worker = site.register(Registration { vllm, ..Registration::new("a", "m") });
            let names = |prompt: &Prompt<'_>| names(version, Algorithm::Sha256, "0", SIZE, prompt);
            let plain = stored(&names(&Prompt::new(&tokens)), None, &tokens[..4]);
            site.apply(worker, &[plain, stored_by_name(&names(&salted), "CPU")]);
            let of = if told { version } else { "0.33.0" };
            let named = format!("vllm {of} (plain text alike since 0.24.0) sha256");
            assert_eq!(verified(&site, worker), named, "its root is for nobody to read");
            assert_eq!(on_cpu(&site, "a", salted), 4, "{version} {told}");
            let other = Prompt { cache_salt: Some("another"), ..salted };
            assert_eq!([other, Prompt::new(&tokens)].map(|p| on_cpu(&site, "a", p)), [0, 4]);
        }
    }
}

#[test]
fn h3_two_generations_that_hash_plain_text_alike_share_their_names_and_keep_their_salts() {
    let site = Site::new();
    let tokens = prompt(1);
    let salted = Prompt { cache_salt: Some("salt"), ..Prompt::new(&tokens) };
    for (pod, version) in [("old", "0.30.0"), ("new", "0.33.0")] {
        let names = |prompt: &Prompt<'_>| names(version, Algorithm::Sha256, "0", SIZE, prompt);
        let plain = stored(&names(&Prompt::new(&tokens)), None, &tokens[..4]);
        let worker = site.worker(pod);
        site.apply(worker, &[plain, stored_by_name(&names(&salted), "CPU")]);
        assert_eq!(verified(&site, worker), "vllm 0.33.0 (plain text alike since 0.24.0) sha256");
    }
    assert_eq!(["old", "new"].map(|pod| on_cpu(&site, pod, salted)), [4, 4]);
}

#[test]
fn h3_items_and_adapters_that_are_known_by_name_are_found_whatever_version_named_them() {
    let tokens = prompt(1);
    let items = [Item { identifier: "image", offset: 1, length: 2 }];
    let image = Prompt { items: &items, ..Prompt::new(&tokens) };
    let adapter = Some(Lora { name: "adapter", id: Some(3), path: Some("/adapter") });
    let adapted = Prompt { lora: adapter, ..Prompt::new(&tokens) };
    let cases = [
        ("0.10.2", adapted),
        ("0.13.0", adapted),
        ("0.17.0", image),
        ("0.19.0", image),
        ("0.24.0", image),
        ("0.24.0", adapted),
        ("0.33.0", image),
        ("0.33.0", adapted),
    ];
    for (version, asked) in cases {
        let site = Site::new();
        let worker = site.worker("a");
        let names = |prompt: &Prompt<'_>| names(version, Algorithm::Sha256, "0", SIZE, prompt);
        let plain = json!(names(&Prompt::new(&tokens))[0]);
        let plain = stored_as(version, &[plain], Value::Null, &tokens[..4], SIZE);
        site.apply(worker, &[plain, by_name(version, &names(&asked))]);
        verified(&site, worker);
        assert_eq!(on_cpu(&site, "a", asked), 4, "{version} {asked:?}");
    }
}

#[test]
fn h3_a_salted_or_pictured_first_block_proves_the_contract_where_events_list_what_it_has() {
    let tokens = prompt(1);
    let items = [Item { identifier: "image", offset: 1, length: 2 }];
    let image = Prompt { items: &items, ..Prompt::new(&tokens) };
    let salted = Prompt { cache_salt: Some("salt"), ..Prompt::new(&tokens) };
    let cases = [
        ("0.19.0", image, json!([["image", 1]]), "0.19.0 (plain text alike since 0.17.0)"),
        ("0.21.0", salted, json!(["salt"]), "0.21.0 (plain text alike since 0.20.0)"),
        ("0.25.1", salted, json!(["salt"]), "0.30.0 (plain text alike since 0.24.0)"),
        ("0.25.1", image, json!([["image", 1]]), "0.30.0 (plain text alike since 0.24.0)"),
        ("0.33.0", salted, json!(["salt"]), "0.33.0 (plain text alike since 0.24.0)"),
        ("0.33.0", image, json!([["image", 1]]), "0.33.0 (plain text alike since 0.24.0)"),
    ];
    for (version, asked, keys, named) in cases {
        let site = Site::new();
        let worker = site.worker("a");
        let names = names(version, Algorithm::Sha256, "0", SIZE, &asked);
        let event = listed(version, names[0], &tokens[..4], keys);
        site.apply(worker, &[event, by_name(version, &names)]);
        assert_eq!(verified(&site, worker), format!("vllm {named} sha256"));
        assert_eq!(on_cpu(&site, "a", asked), 4, "{version} {asked:?}");
    }
}

#[test]
fn h3_first_blocks_with_extra_keys_that_fit_nothing_say_nothing_of_the_contract() {
    let site = Site::new();
    let worker = site.worker("a");
    for n in 0..20 {
        let event = listed("0.33.0", 1_000 + u64::from(n), &prompt(n)[..4], json!(["salt"]));
        site.apply(worker, &[event]);
    }
    assert_eq!(site.status(worker).contract, Status::Undecided);
    let tokens = prompt(30);
    let name = names("0.33.0", Algorithm::Sha256, "42", SIZE, &Prompt::new(&tokens))[0];
    site.apply(worker, &[stored(&[name], None, &tokens[..4])]);
    assert_eq!(verified(&site, worker), "vllm 0.33.0 (plain text alike since 0.24.0) sha256");
}
