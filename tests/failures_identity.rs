//! Rows H and X1, X7 of the catalogue (`docs/failures.md`): who an engine is, and what its blocks are.

mod failures_support;
mod wire_support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use failures_support::*;
use kvscout::ErrorKind;
use kvscout::block::{BlockSize, SpaceId};
use kvscout::block::{Digest, Embeds, Item, Name, Prompt, Shape, Tier, VocabularyId, WorkerId};
use kvscout::hash::vllm::{Algorithm, Contract as Hashes, Root, Version};
use kvscout::index::{
    Block, BlockSource, Change, Home, Matches, MemoryIndex, MemoryOptions, Parent, Query, Store,
};
use kvscout::ingest::verify::{Checks, Contract, Status, Told};
use kvscout::ingest::{Reason, Trust};
use kvscout::scout::{Adapter, Divergence, Missing, Registration, Request, Scratch};
use serde_json::{Value, json};

/// Eight tokens and one more, so that both blocks may count as cached.
const TOKENS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

fn algorithm(status: &Status) -> Option<&'static str> {
    match status {
        Status::Verified(Contract::Vllm(contract)) => Some(contract.algorithm().as_str()),
        Status::Verified(Contract::Sglang) => Some("sglang"),
        _ => None,
    }
}

#[test]
fn h1_the_algorithm_is_detected_whatever_was_expected_and_tokens_match_under_each() {
    let site = Site::new();
    let algorithms =
        [Algorithm::Sha256, Algorithm::Sha256Cbor, Algorithm::Xxhash, Algorithm::XxhashCbor];
    for algorithm_in_use in algorithms {
        let pod = algorithm_in_use.as_str();
        let worker = site.worker(pod);
        let names = names("0.33.0", algorithm_in_use, "0", SIZE, &Prompt::new(&TOKENS));
        site.apply(worker, &[stored(&names, None, &TOKENS[..8])]);
        assert_eq!(algorithm(&site.status(worker).contract), Some(pod));
        assert_eq!((site.matched(pod, &TOKENS), site.trust(worker)), (2, Trust::Exact));
        assert_eq!((site.status(worker).checks.failed, site.warnings(worker).len()), (0, 0));
    }
}

#[test]
fn h1_a_version_that_is_not_the_engines_is_noticed_with_its_first_block() {
    let site = Site::new();
    let vllm = Some("0.10.2".parse().unwrap());
    let worker = site.register(Registration { vllm, ..Registration::new("a", "m") });
    let names = names("0.33.0", Algorithm::Xxhash, "0", SIZE, &Prompt::new(&TOKENS));
    site.apply(worker, &[stored(&names, None, &TOKENS[..8])]);
    assert_eq!(site.status(worker).checks.failed, 1);
    assert_eq!(algorithm(&site.status(worker).contract), Some("xxhash"));
    assert_eq!(site.warnings(worker), ["contract_differs"]);
    assert_eq!(site.matched("a", &TOKENS), 2, "tokens match all the same");
}

#[test]
fn h1_a_registered_contract_that_is_not_the_engines_is_said_and_the_detected_one_counts() {
    let told = |algorithm, seed| {
        let version = "0.33.0".parse().unwrap();
        Some(Contract::Vllm(Hashes::new(version, algorithm, Root::Seed(seed)).unwrap()))
    };
    let site = Site::new();
    for (pod, contract, differs) in [
        ("algorithm", told(Algorithm::Sha256Cbor, "0"), true),
        ("seed", told(Algorithm::Xxhash, "1"), true),
        ("engine", Some(Contract::Sglang), true),
        ("right", told(Algorithm::Xxhash, "0"), false),
    ] {
        let worker = site.register(Registration { contract, ..Registration::new(pod, "m") });
        let names = names("0.33.0", Algorithm::Xxhash, "0", SIZE, &Prompt::new(&TOKENS));
        site.apply(worker, &[stored(&names, None, &TOKENS[..8])]);
        let status = site.status(worker);
        assert_eq!(algorithm(&status.contract), Some("xxhash"), "{pod}");
        assert_eq!(
            status.checks,
            Checks { checked: 1, failed: differs.into(), misled: differs.into() },
            "{pod}"
        );
        let expected: &[&str] = if differs { &["contract_differs"] } else { &[] };
        assert_eq!(site.warnings(worker), expected, "{pod}");
        assert_eq!((site.matched(pod, &TOKENS), site.trust(worker)), (2, Trust::Exact), "{pod}");
        // A second engine is another matter.
        let event = |n: u32| stored(&[u64::from(n) + 999], None, &[n, n, n, n]);
        site.apply(worker, &(100..116).map(event).collect::<Vec<Value>>());
        assert!(site.warnings(worker).contains(&"contract_contradicted"), "{pod}");
    }
}

#[test]
fn h1_a_right_version_is_never_called_another() {
    let versions = ["0.8.5", "0.9.2", "0.10.0", "0.10.1", "0.10.2", "0.17.0", "0.33.0", "0.34.1"];
    for version in versions.map(|version| version.parse().unwrap()) {
        for algorithm in Algorithm::ALL {
            for root in [Root::Unset, Root::Seed("0")] {
                let Ok(found) = Hashes::new(version, algorithm, root) else { continue };
                let found = Contract::Vllm(found);
                let told = Told { version: Some(version), contract: Some(&found) };
                assert!(!told.contradicts(&found), "{version} {algorithm}");
            }
        }
    }
    // Other rules under an algorithm that both have.
    let found = Hashes::new("0.33.0".parse().unwrap(), Algorithm::Sha256, Root::Seed("0")).unwrap();
    let told = Told { version: Some("0.10.1".parse().unwrap()), contract: None };
    assert!(told.contradicts(&Contract::Vllm(found)));
}

#[test]
fn h2_two_engines_under_one_registration_contradict_each_other() {
    for second_comes_first in [false, true] {
        let site = Site::new();
        let worker = site.worker("a");
        let prompts: Vec<[u32; 4]> = (0..16).map(|n| [n, n, n, n]).collect();
        let of = |seed: &str, tokens: &[u32; 4]| {
            let names = names("0.33.0", Algorithm::Sha256Cbor, seed, SIZE, &Prompt::new(tokens));
            stored(&names, None, tokens)
        };
        let random = |tokens: &[u32; 4]| stored(&[u64::from(tokens[0]) + 999], None, tokens);
        if second_comes_first {
            site.apply(worker, &[random(&prompts[0])]);
            assert_eq!(site.warnings(worker), [""; 0], "one may be anything");
        }
        let events: Vec<Value> = prompts.iter().map(|prompt| of("0", prompt)).collect();
        site.apply(worker, &events);
        assert_eq!(algorithm(&site.status(worker).contract), Some("sha256_cbor"));
        if !second_comes_first {
            assert_eq!(site.status(worker).checks, Checks { checked: 3, failed: 0, misled: 0 });
            let events: Vec<Value> = prompts.iter().map(random).collect();
            site.apply(worker, &events);
        }
        assert!(site.status(worker).checks.failed > 0);
        assert_eq!(site.warnings(worker), ["contract_contradicted"]);
        for prompt in &prompts {
            assert_eq!(site.matched("a", prompt), 1, "tokens match all the same");
        }
    }
}

#[test]
fn h2_a_second_engine_shows_although_its_events_hide_what_else_was_hashed() {
    let prompt = |n: u32| [n, n, n, n];
    let event =
        |name: u64, n: u32| stored_as("0.13.0", &[json!(name)], Value::Null, &prompt(n), SIZE);
    let own = |n: u32| {
        let tokens = prompt(n);
        event(names("0.13.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(&tokens))[0], n)
    };
    // Salted ones, or another engine's: nobody can tell one from the other.
    let strange = |n: u32| event(u64::from(n) + 999, n);
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[own(0)]);
    assert_eq!(algorithm(&site.status(worker).contract), Some("sha256_cbor"));
    for n in 0..60 {
        let mixed: Vec<Value> = (5 * n..5 * n + 4).map(strange).chain([own(5 * n + 4)]).collect();
        site.apply(worker, &mixed);
    }
    assert_eq!(site.status(worker).checks.failed, 0, "one of five prompts has no salt");
    assert_eq!(site.warnings(worker), [""; 0]);
    site.apply(worker, &(400..480).map(strange).collect::<Vec<_>>());
    assert!(site.status(worker).checks.failed > 0);
    assert_eq!(site.warnings(worker), ["contract_contradicted"]);
}

#[test]
fn h2_no_recording_of_a_real_engine_contradicts_itself() {
    let recorded = wire_support::drive().into_iter().chain(wire_support::engine());
    let mut scouts: BTreeMap<String, (Site, WorkerId, u64)> = BTreeMap::new();
    for sent in recorded {
        let (file, seq) = sent.name.rsplit_once(' ').unwrap();
        let (site, worker, last) = scouts.entry(file.to_owned()).or_insert_with(|| {
            let site = Site::new();
            let worker = site.worker("a");
            (site, worker, 0)
        });
        *last = seq.parse().unwrap();
        site.scout.apply(*worker, *last, &sent.payload).unwrap();
    }
    assert_eq!(scouts.len(), 11);
    let mut checked = 0;
    for (file, (site, worker, _)) in &scouts {
        let status = site.status(*worker);
        let is_random = file.contains("random");
        assert_eq!(algorithm(&status.contract).is_none(), is_random, "{file}");
        assert!(is_random || status.checks.failed == 0, "{file} {:?}", status.checks);
        checked += status.checks.checked;
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn h2_an_adapter_whose_path_is_not_known_is_named() {
    let site = Site::new();
    let worker = site.worker("a");
    let names = names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(&TOKENS));
    site.apply(worker, &[stored(&names, None, &TOKENS[..8])]);
    site.apply(worker, &[of_adapter(stored(&[1], None, &TOKENS[..4]), "sql")]);
    site.apply(worker, &[of_adapter(stored(&[2], None, &TOKENS[..4]), "chat")]);
    let adapter =
        |path: Option<&str>| Adapter { model: "m".into(), id: None, path: path.map(str::to_owned) };
    site.scout.register_adapter("default", "chat", adapter(Some("/adapters/chat")));
    site.scout.register_adapter("default", "sql", adapter(None));
    assert_eq!(site.status(worker).unknown_adapters, ["sql"]);
    assert_eq!(site.warnings(worker), ["adapter_path_unknown"]);
    let prompt = Prompt { lora: lora("sql"), ..Prompt::new(&TOKENS[..5]) };
    assert_eq!(site.line("a", 0, prompt).matched, 1, "content matches all the same");
    site.scout.register_adapter("default", "sql", adapter(Some("/adapters/sql")));
    assert_eq!(site.warnings(worker), [""; 0]);
}

#[test]
fn h2_what_a_registration_says_of_the_contract_counts_until_events_show_another() {
    let site = Site::new();
    let told = |seed: &str| {
        let root = Root::Seed(seed);
        Hashes::new(Version::NEWEST, Algorithm::Sha256Cbor, root).unwrap()
    };
    let register = |pod: &str| {
        let contract = Some(Contract::Vllm(told("1234")));
        let block_size = BlockSize::new(SIZE);
        site.register(Registration { contract, block_size, ..Registration::new(pod, "m") })
    };
    // A seed that nobody would guess is found where it was told, whatever version the engine has.
    let right = register("right");
    let names = names("0.20.2", Algorithm::Sha256Cbor, "1234", SIZE, &Prompt::new(&TOKENS));
    site.apply(right, &[stored(&names, None, &TOKENS[..8])]);
    assert!(matches!(site.status(right).contract, Status::Verified(_)));
    // Of a publisher without tokens it is all that there is.
    let pool = register("pool");
    site.apply(pool, &[stored_by_name(&names, "CPU")]);
    assert_eq!(site.status(pool).contract, Status::Undecided);
    assert_eq!(site.matched("pool", &TOKENS), 2);
    // What was told wrongly is dropped: its blocks match by content, as those of any random seed.
    let wrong = register("wrong");
    for n in 0..9_u32 {
        site.apply(wrong, &[stored(&[u64::from(n) + 900], None, &[n + 70; 4])]);
    }
    assert_eq!(site.status(wrong).contract, Status::Private);
    assert_eq!(site.matched("wrong", &[75; 5]), 1);
    site.apply(wrong, &[stored_by_name(&names, "CPU")]);
    assert_eq!(site.matched("wrong", &TOKENS), 0, "its names are its own");
}

#[test]
fn h2_pods_with_different_and_random_seeds_all_score_for_the_same_prompt() {
    let site = Site::new();
    let known = site.worker("known");
    let names = names("0.20.2", Algorithm::Sha256, "42", SIZE, &Prompt::new(&TOKENS));
    site.apply(known, &[stored(&names, None, &TOKENS[..8])]);
    for (pod, names) in [("random", [11, 12]), ("other", [21, 22])] {
        let worker = site.worker(pod);
        site.apply(worker, &[stored(&names, None, &TOKENS[..8])]);
        assert_eq!(site.status(worker).contract, Status::Undecided, "one prompt may be salted");
        for prompt in 1..8 {
            let name = u64::from(prompt) * 100 + names[0];
            site.apply(worker, &[stored(&[name], None, &[prompt * 50; 4])]);
        }
        assert_eq!(site.status(worker).contract, Status::Private);
        let checks = site.status(worker).checks;
        assert_eq!((checks.checked, checks.failed), (8, 8));
        assert_eq!(site.warnings(worker), ["contract_unknown"]);
    }
    assert_eq!(site.warnings(known), [""; 0]);
    for pod in ["known", "random", "other"] {
        let line = site.line(pod, 0, Prompt::new(&TOKENS));
        assert_eq!((line.matched, line.expected, line.trust), (2, Some(8), Trust::Exact), "{pod}");
    }
}

/// Hashes that a release made of the tokens `i * 7919 + 13` in blocks of 16, under seed 0.
fn recorded_hashes(version: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let text = std::fs::read(folder.join(format!("hash-{version}-py3.12.json"))).unwrap();
    let file: Value = serde_json::from_slice(&text).unwrap();
    let of = |list: &Value, fits: &dyn Fn(&Value) -> bool| {
        list.as_array().unwrap().iter().find(|entry| fits(entry)).unwrap().clone()
    };
    let run = of(&file["runs"], &|run| run["algo"] == "sha256" && run["seed"] == "0");
    let case = of(&run["cases"], &|case| case["name"] == "lcg-bs16");
    let hex = |text: &str| {
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(byte).collect()
    };
    case["hashes"].as_array().unwrap().iter().map(|h| hex(h.as_str().unwrap())).collect()
}

#[test]
fn h3_every_generation_is_recognised_and_a_rolling_upgrade_scores_all_of_them() {
    let site = Site::new();
    let tokens: Vec<u32> = (0..65).map(|i| (i * 7919 + 13) % 151_936).collect();
    let versions = ["0.10.2", "0.20.2", "0.25.1", "0.30.0", "0.33.0"];
    for version in versions {
        let worker = site.worker(version);
        let hashes = recorded_hashes(version);
        let name = |hash: &Vec<u8>| json!(Name::from_bytes(hash).unwrap().0);
        let names: Vec<Value> = hashes[..4].iter().map(name).collect();
        site.apply(worker, &[stored_as(version, &names, Value::Null, &tokens[..64], 16)]);
        assert_eq!(algorithm(&site.status(worker).contract), Some("sha256"), "{version}");
    }
    for version in versions {
        let line = site.line(version, 0, Prompt::new(&tokens));
        let expected = (4, Some(64), Trust::Exact);
        assert_eq!((line.matched, line.expected, line.trust), expected, "{version}");
    }
    // The pod of 0.20.2 comes back as 0.33.0 under the same registration.
    let worker = site.scout.find("default", "0.20.2", 0).unwrap();
    site.restart(worker);
    let hashes = recorded_hashes("0.33.0");
    let whole: Vec<Value> = hashes[..3].iter().map(|hash| bytes(hash)).collect();
    let event = stored_as("0.33.0", &whole, Value::Null, &tokens[..48], 16);
    site.apply_payload(worker, &encode(&json!([9.0, [event], 0])));
    assert_eq!(site.line("0.20.2", 0, Prompt::new(&tokens)).matched, 3);
    assert_eq!(site.status(worker).counters.restarts, 1);
}

#[test]
fn h4_the_block_size_in_the_events_counts_and_not_the_registered_one() {
    let site = Site::new();
    let tokens: Vec<u32> = (0..2 * 2096 + 1).collect();
    for size in [64_u32, 528, 2096] {
        let pod = format!("blocks of {size}");
        let expected = BlockSize::new(16);
        let registration = Registration { block_size: expected, ..Registration::new(&*pod, "m") };
        let worker = site.register(registration);
        let event = with(
            stored(&[1, 2], None, &tokens[..2 * size as usize]),
            &[("block_size", json!(size))],
        );
        site.apply(worker, &[event]);
        let line = site.line(&pod, 0, Prompt::new(&tokens[..2 * size as usize + 1]));
        assert_eq!((line.matched, line.expected), (2, Some(2 * size)));
        let status = site.status(worker);
        assert_eq!(status.groups[0].shape.size.get(), size);
        assert_eq!(status.registration.block_size, expected, "what was registered stays visible");
        let short = site.line(&pod, 0, Prompt::new(&tokens[..size as usize - 1]));
        assert_eq!((short.matched, short.expected), (0, Some(0)));
        assert_eq!((line.miss, short.miss), (None, Some("shorter_than_block")));
        assert_eq!(site.warnings(worker), ["block_size_differs"]);
    }
}

#[test]
fn h5_a_hash_is_the_same_in_every_form_that_engines_write_it_in() {
    let site = Site::new();
    let long: Vec<u8> = (0..24).chain([0xff, 0xfe, 3, 4, 5, 6, 7, 8]).collect();
    let last = u64::from_be_bytes(*long.last_chunk().unwrap());
    let forms = [json!(last), json!(last as i64), bytes(&long[24..]), bytes(&long)];
    let worker = site.worker("a");
    for stored_form in &forms {
        for removed_form in &forms {
            let event =
                with(stored(&[0], None, &TOKENS[..4]), &[("block_hashes", json!([stored_form]))]);
            site.apply(worker, &[event]);
            let child = with(
                stored(&[7], None, &TOKENS[4..8]),
                &[("parent_block_hash", removed_form.clone())],
            );
            site.apply(worker, &[child]);
            assert_eq!(site.matched("a", &TOKENS), 2, "{stored_form} is parent {removed_form}");
            let event = with(removed(&[7], "GPU"), &[("block_hashes", json!([7, removed_form]))]);
            site.apply(worker, &[event]);
            assert_eq!(site.matched("a", &TOKENS), 0, "{stored_form} removed as {removed_form}");
        }
    }
    assert_eq!(site.status(worker).events.unknown_removals, 0);
}

#[test]
fn h6_chains_whose_64_bit_hashes_collide_stay_apart() {
    let site = Site::new();
    let root = &names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(&TOKENS))[..1];
    let (mine, theirs) = ([0, 1, 2, 3, 50, 51, 52, 53, 9], [0, 1, 2, 3, 60, 61, 62, 63, 9]);
    // Both follow one contract, so their names are in one vocabulary.
    for (pod, tokens) in [("a", mine), ("b", theirs)] {
        let worker = site.worker(pod);
        let first = stored(root, None, &tokens[..4]);
        let second = stored(&[7], Some(root[0]), &tokens[4..8]);
        site.apply(worker, &[first, second]);
        assert!(algorithm(&site.status(worker).contract).is_some());
    }
    let both = |tokens: &[u32]| (site.matched("a", tokens), site.matched("b", tokens));
    assert_eq!((both(&mine), both(&theirs)), ((2, 1), (1, 2)));
    let a = site.scout.find("default", "a", 0).unwrap();
    site.apply(a, &[removed(&[7], "GPU")]);
    assert_eq!((both(&mine), both(&theirs)), ((1, 1), (1, 2)), "only the remover's copy went");
    // One worker that holds both loses one of them with each removal.
    let c = site.worker("c");
    site.apply(c, &[stored(&[1], None, &mine[4..8]), stored(&[1], None, &theirs[4..8])]);
    let held = || site.matched("c", &mine[4..8]) + site.matched("c", &theirs[4..8]);
    assert_eq!(held(), 2);
    site.apply(c, &[removed(&[1], "GPU")]);
    assert_eq!(held(), 1);
    site.apply(c, &[removed(&[1], "GPU")]);
    assert_eq!((held(), site.status(c).events.unknown_removals), (0, 0));
}

/// Stores one block in each of these ways on a pod of its own, and asserts that each prompt matches
/// exactly the pod of its own number.
#[track_caller]
fn assert_told_apart(site: &Site, events: &[Value], prompts: &[Prompt<'_>]) {
    for (n, event) in events.iter().enumerate() {
        let worker = site.worker(&format!("pod {n}"));
        let ingested = site.apply(worker, std::slice::from_ref(event));
        assert_eq!(ingested.rejected, 0, "event {n}");
    }
    for (asked, prompt) in prompts.iter().enumerate() {
        for n in 0..events.len() {
            let matched = site.line(&format!("pod {n}"), 0, *prompt).matched;
            assert_eq!(matched > 0, n == asked, "prompt {asked} matched {matched} of pod {n}");
        }
    }
}

#[test]
fn h7_where_the_routers_tokens_part_from_the_engines_the_match_ends_and_the_block_is_named() {
    let site = Site::new();
    let (engine, other) = (site.worker("engine"), site.worker("other"));
    let tokens: Vec<u32> = (0..21).collect();
    site.apply(engine, &[stored(&[1, 2, 3, 4, 5], None, &tokens[..20])]);
    site.apply(other, &[stored(&[1], None, &tokens[..4])]);
    for k in 0..5_u32 {
        // Another tokenizer, or another template: one token of block `k` is another, or one more is before it.
        let at = k as usize * 4;
        let mut other_token = tokens.clone();
        other_token[at + 1] = 999;
        let one_more = [&tokens[..at], &[999], &tokens[at..]].concat();
        for asked in [other_token, one_more] {
            assert_eq!(site.matched("engine", &asked), k);
            let explained = site.scout.explain(&Request::new("m", Prompt::new(&asked))).unwrap();
            let of =
                |worker| explained.iter().find(|explained| explained.worker == worker).unwrap();
            let group = &of(engine).groups[0];
            let expected = Divergence { block: k, why: Missing::Unknown };
            assert_eq!(
                (group.divergence, group.leading[0]),
                (Some(expected), k),
                "nobody holds it"
            );
            // Of blocks that are as the engine cut them others show that they exist.
            let why = if k > 1 { Missing::Elsewhere } else { Missing::Unknown };
            let expected = Divergence { block: k.min(1), why };
            assert_eq!(of(other).groups[0].divergence, Some(expected), "{k}");
        }
    }
}

#[test]
fn h8_adapters_and_none_are_three_results_and_an_adapter_is_no_image() {
    let site = Site::new();
    let event = || stored(&[1], None, &TOKENS[..4]);
    let image = with(event(), &[("extra_keys", json!([[["x", 0]]]))]);
    let events = [event(), of_adapter(event(), "x"), of_adapter(event(), "y"), image];
    let plain = Prompt::new(&TOKENS[..5]);
    let items = [Item { identifier: "x", offset: 0, length: 2 }];
    let prompts = [
        plain,
        Prompt { lora: lora("x"), ..plain },
        Prompt { lora: lora("y"), ..plain },
        Prompt { items: &items, ..plain },
    ];
    assert_told_apart(&site, &events, &prompts);
}

#[test]
fn h8_an_adapter_in_the_form_that_wrote_images_as_bare_text_is_no_image() {
    let site = Site::new();
    let worker = site.worker("a");
    // vLLM 0.17: the adapter's name is in its own field and again first among the extra keys.
    let event = json!(["BlockStored", [1], null, TOKENS[..4], SIZE, 1, "GPU", "x", [["x"]],]);
    site.apply(worker, &[event]);
    let plain = Prompt::new(&TOKENS[..5]);
    let items = [Item { identifier: "x", offset: 0, length: 2 }];
    assert_eq!(site.line("a", 0, Prompt { lora: lora("x"), ..plain }).matched, 1);
    assert_eq!(site.line("a", 0, Prompt { items: &items, ..plain }).matched, 0);
    assert_eq!(site.line("a", 0, plain).matched, 0);
}

#[test]
fn h9_salted_prompts_never_match_in_any_direction() {
    let event = || stored(&[1], None, &TOKENS[..4]);
    let vllm = |salt: &str| with(event(), &[("extra_keys", json!([[salt]]))]);
    // SGLang 0.5.23 names the salt in a field of its own and hashes it; before, the hashes were equal.
    let sglang = |name: u64, salt: Value| {
        json!({
            "type": "BlockStored", "block_hashes": [name], "parent_block_hash": null,
            "token_ids": TOKENS[..4], "block_size": SIZE, "lora_id": null, "medium": "GPU",
            "cache_salt": salt,
        })
    };
    let plain = Prompt::new(&TOKENS[..5]);
    let prompts = [
        plain,
        Prompt { cache_salt: Some("salt-a"), ..plain },
        Prompt { cache_salt: Some("salt-b"), ..plain },
    ];
    let families = [
        [event(), vllm("salt-a"), vllm("salt-b")],
        [event(), sglang(1, json!("salt-a")), sglang(1, json!("salt-b"))],
        [event(), sglang(2, json!("salt-a")), sglang(3, json!("salt-b"))],
    ];
    for events in families {
        assert_told_apart(&Site::new(), &events, &prompts);
        // The same on one worker, where the names are equal, too.
        let site = Site::new();
        let worker = site.worker("all");
        site.apply(worker, &events[..2]);
        let held = prompts.map(|prompt| site.line("all", 0, prompt).matched);
        assert_eq!(held, [1, 1, 0]);
        let shown = format!("{:?} {:?}", site.status(worker), site.scout);
        assert!(!shown.contains("salt-"), "a salt shows");
    }
}

#[test]
fn h9_a_salt_that_the_event_hides_matches_by_its_exact_names_alone() {
    let site = Site::new();
    let worker = site.worker("a");
    let plain = Prompt::new(&TOKENS);
    let salted = Prompt { cache_salt: Some("salt-a"), ..plain };
    let other: Vec<u32> = (50..59).collect();
    let of = |prompt: &Prompt<'_>| -> Vec<Value> {
        let names = names("0.13.0", Algorithm::Sha256, "0", SIZE, prompt);
        names.into_iter().map(Value::from).collect()
    };
    let store = |names: &[Value], tokens: &[u32]| {
        stored_as("0.13.0", names, Value::Null, &tokens[..8], SIZE)
    };
    site.apply(worker, &[store(&of(&Prompt::new(&other)), &other), store(&of(&salted), &TOKENS)]);
    let matched = |salt| site.line("a", 0, Prompt { cache_salt: salt, ..plain }).matched;
    assert_eq!([None, Some("salt-b"), Some("salt-a")].map(matched), [0, 0, 2]);
}

#[test]
fn h10_an_adapter_and_a_salt_of_the_same_text_are_distinct() {
    let event = || stored(&[1], None, &TOKENS[..4]);
    let salted = with(event(), &[("extra_keys", json!([["X"]]))]);
    let both = with(of_adapter(event(), "X"), &[("extra_keys", json!([["X", "X"]]))]);
    let events = [event(), of_adapter(event(), "X"), salted, both];
    let plain = Prompt::new(&TOKENS[..5]);
    let prompts = [
        plain,
        Prompt { lora: lora("X"), ..plain },
        Prompt { cache_salt: Some("X"), ..plain },
        Prompt { lora: lora("X"), cache_salt: Some("X"), ..plain },
    ];
    assert_told_apart(&Site::new(), &events, &prompts);
}

#[test]
fn h11_images_are_told_apart_by_content_and_place_and_the_text_before_is_shared() {
    let site = Site::new();
    let store = |extras: Value| {
        with(stored(&[1, 2], None, &TOKENS[..8]), &[("extra_keys", json!([null, extras]))])
    };
    let events =
        [store(json!([["cat", 0]])), store(json!([["dog", 0]])), store(json!([["cat", 1]]))];
    for (n, event) in events.iter().enumerate() {
        let worker = site.worker(&format!("pod {n}"));
        site.apply(worker, std::slice::from_ref(event));
    }
    let at = |identifier, offset| [Item { identifier, offset, length: 3 }];
    let asked = [at("cat", 4), at("dog", 4), at("cat", 5)];
    for (asked, items) in asked.iter().enumerate() {
        let prompt = Prompt { items, ..Prompt::new(&TOKENS) };
        for n in 0..events.len() {
            let expected = if n == asked { 2 } else { 1 };
            assert_eq!(site.line(&format!("pod {n}"), 0, prompt).matched, expected, "{asked} {n}");
        }
    }
    assert_eq!(site.matched("pod 0", &TOKENS), 1, "text asks for the text before the image");
}

#[test]
fn h12_extra_keys_of_no_known_kind_keep_a_block_out_of_reach_and_removable() {
    let unknown = [
        json!([{ "kind": "audio" }]),
        json!([[["future", "x", 0, 1]]]),
        json!([[1, 2, 3]]),
        json!([7]),
        json!([[bytes(&[9; 16])]]),
        json!([["a"], ["b"]]),
    ];
    let site = Site::new();
    let worker = site.worker("a");
    for extras in unknown {
        let event = with(stored(&[1], None, &TOKENS[..4]), &[("extra_keys", extras.clone())]);
        let ingested = site.apply(worker, &[event]);
        assert_eq!((ingested.rejected, ingested.applied.stored), (0, 1), "{extras}");
        let plain = Prompt::new(&TOKENS[..5]);
        for prompt in [plain, Prompt { cache_salt: Some("a"), ..plain }] {
            assert_eq!(site.line("a", 0, prompt).matched, 0, "{extras}");
        }
        let ingested = site.apply(worker, &[removed(&[1], "GPU")]);
        assert_eq!(
            (ingested.applied.removed, ingested.applied.unknown_removals),
            (1, 0),
            "{extras}"
        );
    }
}

#[test]
fn h12_prompt_embeddings_match_their_own_rows_and_never_text() {
    let site = Site::new();
    let worker = site.worker("a");
    let digests = [[5; 32]];
    let fields = [("extra_keys", json!([[bytes(&digests[0])]]))];
    site.apply(worker, &[with(stored(&[1], None, &[0; 4]), &fields)]);
    let plain = Prompt::new(&[0; 5]);
    assert_eq!(site.line("a", 0, plain).matched, 0);
    let embeds = |digests| Prompt { embeds: Some(Embeds::Digests(digests)), ..plain };
    assert_eq!(site.line("a", 0, embeds(&digests)).matched, 1);
    assert_eq!(site.line("a", 0, embeds(&[[6; 32]])).matched, 0);
}

#[test]
fn h13_a_block_that_looks_ahead_matches_only_before_the_same_next_tokens() {
    let site = Site::new();
    let worker = site.worker("a");
    let event =
        with(stored(&[1, 2], None, &TOKENS[..8]), &[("lookahead_token_ids", json!([[4], [8]]))]);
    site.apply(worker, &[event]);
    assert_eq!(
        site.status(worker).groups[0].shape,
        Shape { size: BlockSize::new(SIZE).unwrap(), lookahead: 1 }
    );
    assert_eq!(site.matched("a", &TOKENS), 2);
    assert_eq!(site.matched("a", &TOKENS[..8]), 1, "what follows the last block is not known yet");
    let mut other = TOKENS;
    other[8] = 77;
    assert_eq!(site.matched("a", &other), 1);
    other[4] = 77;
    assert_eq!(site.matched("a", &other), 0);
}

#[test]
fn h15_ranks_of_a_pod_are_workers_of_their_own_whatever_their_batches_claim() {
    let site = Site::new();
    for rank in 0..8 {
        let worker = site.register(Registration { rank, ..Registration::new("pod", "m") });
        let held = 4 * (rank as usize % 3);
        let names: Vec<u64> = (1..).take(rank as usize % 3).collect();
        // A local number where a global one was registered.
        let event = stored(&names, None, &TOKENS[..held]);
        site.apply_payload(worker, &encode(&json!([1.5, [event], rank % 4])));
    }
    for rank in 0..8 {
        assert_eq!(site.line("pod", rank, Prompt::new(&TOKENS)).matched, rank % 3);
    }
    let best = &site.ask(Prompt::new(&TOKENS))[0];
    assert_eq!((&*best.pod, best.rank, best.matched), ("pod", 2, 2), "the first of the best");
    let unregistered = site.scout.find("default", "pod", 8);
    assert_eq!(unregistered, None);
    assert_eq!(site.scout.ranks("default", "pod").len(), 8, "no rank was added by a claim");
}

#[test]
fn x1_a_batch_counts_for_the_worker_it_came_from_and_no_other() {
    let site = Site::new();
    let victim = site.worker("victim");
    site.apply(victim, &[stored(&[1, 2], None, &TOKENS[..8])]);
    let attacker = site.worker("attacker");
    // The victim's own names: removed, cleared, and stored with other contents.
    site.apply(attacker, &[removed(&[1, 2], "GPU"), cleared()]);
    site.apply(attacker, &[stored(&[1, 2], None, &[70; 8]), removed(&[1], "CPU")]);
    let line = site.line("victim", 0, Prompt::new(&TOKENS));
    assert_eq!((line.matched, line.expected, line.trust), (2, Some(8), Trust::Exact));
    assert_eq!(site.matched("victim", &[70; 8]), 0);
    assert_eq!(site.status(attacker).events.unknown_removals, 3);
}

/// A prompt that counts how many of its digests are asked for.
struct Counted {
    digests: Vec<Digest>,
    asked: usize,
}

impl BlockSource for Counted {
    fn len(&self) -> usize {
        self.digests.len()
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        self.asked = self.asked.max(from + least);
        self.digests.get(from..from + least).unwrap_or_default()
    }

    fn name(&mut self, _: VocabularyId, _: usize) -> Option<Name> {
        None
    }
}

#[test]
fn x7_another_tenants_prefix_looks_and_costs_like_one_that_nobody_has() {
    let site = Site::new();
    let theirs =
        site.register(Registration { tenant: "theirs".into(), ..Registration::new("victim", "m") });
    site.apply(theirs, &[stored(&[1, 2], None, &TOKENS[..8])]);
    let own = Registration { tenant: "mine".into(), ..Registration::new("own", "m") };
    let own = site.register(own);
    site.apply(own, &[stored(&[9], None, &[70; 4])]);
    let asked = |tokens: &[u32]| {
        let request = Request { tenant: "mine", ..Request::new("m", Prompt::new(tokens)) };
        ask(&site.scout, &request)
    };
    for length in 1..=TOKENS.len() {
        assert_eq!(asked(&TOKENS[..length]), asked(&[30; 9][..length]));
    }
    // A tenant without workers has one error, whatever it asks.
    let error = |tokens: &[u32]| {
        let request = Request { tenant: "nobody", ..Request::new("m", Prompt::new(tokens)) };
        let mut scratch = Scratch::default();
        let error = site.scout.score(&request, &mut scratch).unwrap_err();
        (error.kind(), error.to_string())
    };
    assert_eq!(error(&TOKENS), error(&[30; 9]));
    assert_eq!(error(&TOKENS).0, ErrorKind::UnknownModel);

    // In the index: no more blocks are asked for than of a prompt that nobody has.
    let index = MemoryIndex::new(MemoryOptions::default());
    let shape = Shape::plain(BlockSize::DEFAULT);
    let blocks: Vec<Block> =
        (1..100).map(|n| Block { name: Name(n), digest: Some(Digest(n)) }).collect();
    for (worker, blocks) in [(1, &blocks[..]), (2, &blocks[98..])] {
        let home = Home { space: SpaceId(worker), vocabulary: VocabularyId(worker) };
        index.assign(WorkerId(worker), home).unwrap();
        let (group, tier, parent) = (Default::default(), Tier::Gpu, Parent::Root);
        let store = Store { shape, group, tier, parent, blocks };
        index.apply(WorkerId(worker), &[Change::Store(store)]).unwrap();
    }
    let cost = |space, first: u64| {
        let digests = (first..first + 99).map(Digest).collect();
        let mut prompt = Counted { digests, asked: 0 };
        let query = Query { space: SpaceId(space), shape, candidates: None, spans: false };
        let mut matches = Matches::default();
        index.lookup(&query, &mut prompt, &mut matches);
        (prompt.asked, matches.iter().count())
    };
    assert_eq!(cost(1, 1), (99, 1), "who may see it walks it");
    assert_eq!(cost(2, 1), cost(2, 1000), "held by another tenant only, or by nobody");
}

#[test]
fn h1_content_is_believed_and_flagged_where_neither_extra_keys_nor_contract_are_known() {
    let site = Site::new();
    let worker = site.worker("a");
    for n in 0..8 {
        let hashes = [json!(n + 1000)];
        let event = stored_as("0.13.0", &hashes, Value::Null, &[n; 4], SIZE);
        site.apply(worker, &[event]);
    }
    assert_eq!(site.trust(worker), Trust::Degraded(Reason::ExtrasHidden));
    assert_eq!(site.matched("a", &[0; 5]), 1);
}
