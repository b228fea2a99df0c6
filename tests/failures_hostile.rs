//! Rows M, X3, X4, X5, R12 and R14 of the catalogue (`docs/failures.md`): payloads that are broken,
//! crafted, or too many.

mod failures_support;
mod scope_support;
mod wire_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use failures_support::*;
use kvscout::block::{Prompt, WorkerId};
use kvscout::event::{DecodeErrorKind, Limits};
use kvscout::hash::vllm::Algorithm;
use kvscout::index::{MOST_GROUPS, MOST_MEANINGS, MemoryOptions};
use kvscout::ingest::{Reason, Trust, Verdict};
use kvscout::scout::{Options, Registration, Request, Scout, Scratch};
use scope_support::Raises;
use serde_json::{Value, json};

const TOKENS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn m1_broken_payloads_are_counted_and_the_stream_goes_on() {
    let site = Site::new();
    let worker = site.worker("a");
    site.apply(worker, &[stored(&[1], None, &TOKENS[..4])]);
    let mut broken: Vec<Vec<u8>> = vec![
        vec![],
        vec![0xc1],
        vec![0xc0],
        encode(&json!("a text")),
        encode(&json!([])),
        encode(&json!([1.0])),
        encode(&json!([1.0, "no list", 0])),
        encode(&json!({ "ts": 1.0, "events": [] })),
        vec![0xff; 4096],
    ];
    // What real publishers sent, cut off, and with one byte turned round.
    let recorded = wire_support::wire();
    let recorded: Vec<_> = recorded.iter().filter(|sent| sent.name.as_str() > "wire-0.2").collect();
    for (n, sent) in recorded.iter().enumerate() {
        broken.push(sent.payload[..sent.payload.len() / 2].to_vec());
        let mut turned = sent.payload.clone();
        let at = n * 31 % turned.len();
        turned[at] ^= 0xff;
        broken.push(turned);
    }
    assert!(broken.len() > 100, "{}", broken.len());
    for payload in &broken {
        // A clear among them would be one that an engine sent.
        site.apply_payload(worker, payload);
    }
    let status = site.status(worker);
    assert!(status.events.rejected >= 9, "{:?}", status.events);
    assert_eq!(status.counters.gaps, 0, "every broken batch fills its place");
    assert_eq!(status.as_of, Some(broken.len() as u64));
    site.apply(worker, &[cleared(), stored(&[1, 2], None, &TOKENS[..8])]);
    assert_eq!(site.matched("a", &TOKENS), 2);
    // A turned byte may leave the extra keys out, which is a reason of its own.
    assert_ne!(site.trust(worker), Trust::Degraded(Reason::Undecodable), "cleared since");
}

#[test]
fn m2_one_bad_event_costs_itself_and_the_workers_soundness() {
    let site = Site::new();
    let bad = [
        json!({ "type": "BlockStored", "block_hashes": "no list" }),
        json!({ "type": "BlockMoved" }),
        json!(["BlockRemoved"]),
        json!(17),
        with(stored(&[9], None, &[1, 2, 3, 4]), &[("block_size", json!(0))]),
    ];
    for (n, bad) in bad.into_iter().enumerate() {
        let pod = format!("pod {n}");
        let worker = site.worker(&pod);
        let good = [stored(&[1], None, &TOKENS[..4]), stored(&[2], Some(1), &TOKENS[4..8])];
        let ingested = site.apply(worker, &[good[0].clone(), bad, good[1].clone()]);
        assert_eq!((ingested.rejected, ingested.applied.stored), (1, 2), "event {n}");
        let line = site.line(&pod, 0, Prompt::new(&TOKENS));
        assert_eq!((line.matched, line.trust), (2, Trust::Degraded(Reason::Undecodable)));
    }
}

#[test]
fn m3_lengths_that_are_claimed_and_depths_that_never_end_are_refused_before_they_cost() {
    let site = Site::new();
    let worker = site.worker("a");
    let claims: [&[u8]; 6] = [
        // A list of events, of hashes, of tokens; a byte string, a text, a map.
        b"\x92\0\xdd\xff\xff\xff\xff",
        b"\x92\0\x91\x92\xacBlockRemoved\xdd\xff\xff\xff\xff",
        b"\x92\0\x91\x95\xabBlockStored\x91\x01\xc0\xdd\xff\xff\xff\xff",
        b"\x92\0\x91\xc6\xff\xff\xff\xff",
        b"\x92\0\x91\x92\xdb\xff\xff\xff\xff",
        b"\x92\0\x91\xdf\xff\xff\xff\xff",
    ];
    for claim in claims {
        let ingested = site.apply_payload(worker, claim);
        assert_eq!(ingested.rejected, 1);
        assert!(ingested.error.is_some());
    }
    // An unknown field that nests lists and maps ten thousand deep.
    for opening in [&b"\x91"[..], b"\x81\x01"] {
        let deep =
            [b"\x92\0\x91\x82\xa4type\xb0AllBlocksCleared\xa1x", &*opening.repeat(10_000)].concat();
        let ingested = site.apply_payload(worker, &deep);
        assert_eq!((ingested.rejected, ingested.applied.stored), (1, 0));
    }
    assert_eq!(site.status(worker).counters.gaps, 0);
}

#[test]
fn m4_a_payload_beyond_the_limit_is_refused_unread() {
    let limits = Limits { max_frame: 1000, ..Limits::default() };
    let site = Site::with(Options { limits, ..Options::default() });
    let worker = site.worker("a");
    let ingested = site.apply_payload(worker, &vec![0x93; 1001]);
    let kind = DecodeErrorKind::FrameTooLarge { size: 1001, limit: 1000 };
    assert_eq!(ingested.error.map(|error| error.kind), Some(kind));
    assert_eq!(site.trust(worker), Trust::Degraded(Reason::Undecodable));
}

#[test]
fn m5_impossible_sizes_and_tokens_are_rejected() {
    let site = Site::new();
    let worker = site.worker("a");
    let block = || stored(&[1], None, &TOKENS[..4]);
    let sizes = [json!(0), json!(-4), json!((1 << 20) + 1), json!(u64::MAX), json!(4.0)];
    let tokens = [json!([0, 1, 2, -3]), json!([0, 1, 2, 1_u64 << 32]), json!([0, 1, 2, u64::MAX])];
    let mut events: Vec<Value> =
        sizes.into_iter().map(|size| with(block(), &[("block_size", size)])).collect();
    events.extend(tokens.into_iter().map(|tokens| with(block(), &[("token_ids", tokens)])));
    for event in events {
        let ingested = site.apply(worker, std::slice::from_ref(&event));
        assert_eq!((ingested.rejected, ingested.applied.stored), (1, 0), "{event}");
    }
    let stats = site.scout.stats();
    assert_eq!((stats.blocks, stats.unplaced), (3, 0), "the bystander's own");
    // The largest that is plausible is taken as it is: no block of the prompt is that long.
    site.apply(worker, &[with(block(), &[("block_size", json!(1 << 20))])]);
    assert_eq!(site.matched("a", &TOKENS), 0);
}

#[test]
fn m6_a_million_hashes_in_one_event_stay_within_their_senders_share_or_are_rejected_whole() {
    let site = Site::new();
    let worker = site.worker("a");
    let many: Vec<u64> = (1..=1_000_000).collect();
    let ingested =
        site.apply(worker, &[stored_by_name(&many, "CPU"), stored(&[1], None, &TOKENS[..4])]);
    let share = MemoryOptions::default().unplaced_per_worker as u64;
    assert_eq!(ingested.applied.unplaced, share);
    assert_eq!(ingested.applied.refused, 1_000_000 - share);
    assert_eq!(site.matched("a", &TOKENS), 1, "the event after it");
    assert_eq!(site.trust(worker), Trust::Degraded(Reason::Overflow));
    let ingested = site.apply(worker, &[removed(&many, "CPU")]);
    assert_eq!(ingested.applied.removed, share);
    let beyond: Vec<u64> = (1..=(1 << 20) + 1).collect();
    let ingested = site.apply(worker, &[removed(&beyond, "GPU")]);
    assert_eq!((ingested.rejected, ingested.applied.removed), (1, 0));
    assert_eq!(site.matched("a", &TOKENS), 1);
}

#[test]
fn x3_forged_removals_and_clears_reach_only_the_forgers_own_blocks() {
    let site = Site::new();
    let victim = site.worker("victim");
    let forger = site.worker("forger");
    for worker in [victim, forger] {
        site.apply(worker, &[stored(&[1, 2], None, &TOKENS[..8])]);
    }
    site.apply(forger, &[removed(&[2], "GPU")]);
    assert_eq!((site.matched("victim", &TOKENS), site.matched("forger", &TOKENS)), (2, 1));
    site.apply(forger, &[cleared()]);
    assert_eq!((site.matched("victim", &TOKENS), site.matched("forger", &TOKENS)), (2, 0));
    // And where both follow one contract, so that their names are the same names.
    let prompt = Prompt::new(&TOKENS);
    let names = names("0.33.0", Algorithm::Sha256, "0", SIZE, &prompt);
    for worker in [victim, forger] {
        site.apply(worker, &[stored(&names, None, &TOKENS[..8])]);
    }
    site.apply(forger, &[removed(&names, "GPU"), cleared()]);
    assert_eq!((site.matched("victim", &TOKENS), site.matched("forger", &TOKENS)), (2, 0));
}

#[test]
fn x4_a_flood_of_unique_blocks_costs_the_flooder_and_not_the_others() {
    let memory = MemoryOptions { budget: 16 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let quiet: Vec<WorkerId> = (0..8).map(|n| site.worker(&format!("quiet {n}"))).collect();
    let own = |n: u32| -> Vec<u32> { (0..401).map(|token| n << 16 | token).collect() };
    for (n, &worker) in quiet.iter().enumerate() {
        let names: Vec<u64> = (0..100).map(|at| (n as u64 + 1) << 32 | at).collect();
        site.apply(worker, &[stored(&names, None, &own(n as u32)[..400])]);
    }
    let flooder = site.worker("flooder");
    let mut name = 1 << 60;
    for prompt in 0..6000_u32 {
        let tokens: Vec<u32> = (0..400).map(|at| 1 << 31 | prompt << 9 | at).collect();
        let names: Vec<u64> = (name..name + 100).collect();
        name += 100;
        site.apply(flooder, &[stored(&names, None, &tokens)]);
    }
    let stats = site.scout.stats();
    assert!(stats.evicted > 0, "the budget was never reached: {stats:?}");
    assert!(stats.bytes <= 16 << 20, "{stats:?}");
    for n in 0..8 {
        let line = site.line(&format!("quiet {n}"), 0, Prompt::new(&own(n)));
        assert_eq!((line.matched, line.trust), (100, Trust::Exact), "quiet {n}");
    }
}

#[test]
fn x4_of_two_workers_the_one_that_floods_pays() {
    let memory = MemoryOptions { budget: 4 << 20, ..MemoryOptions::default() };
    let scout = Scout::new(Options { memory, ..Options::default() }).unwrap();
    let [quiet, flooder] =
        ["quiet", "flooder"].map(|pod| scout.register(Registration::new(pod, "m")).unwrap());
    let chain = |seed: u32| -> Vec<u32> { (0..400).map(|at| seed << 9 | at).collect() };
    let store = |worker, seq: u32, seed: u32| {
        let names: Vec<u64> = (0..100).map(|at| u64::from(seed) << 8 | at | 1 << 63).collect();
        let payload = batch(&[stored(&names, None, &chain(seed))]);
        scout.apply(worker, u64::from(seq), &payload).unwrap();
    };
    // A third of what there is room for, and then nothing any more.
    const KEPT: u32 = 300;
    (0..KEPT).for_each(|seq| store(quiet, seq, seq));
    (0..4000).for_each(|seq| store(flooder, seq, KEPT + seq));
    let stats = scout.stats();
    assert!(stats.evicted > 100_000, "the budget was never reached: {stats:?}");
    let held = |worker, seed| {
        let tokens = [chain(seed), vec![0]].concat();
        let mut scratch = Scratch::default();
        let ranking = scout.score(&Request::new("m", Prompt::new(&tokens)), &mut scratch).unwrap();
        ranking.find(worker).unwrap().score.matched_blocks
    };
    assert!((0..KEPT).all(|seed| held(quiet, seed) == 100));
    assert_eq!(held(flooder, KEPT + 3999), 100, "the newest");
    // The quiet one comes back: it gets its half, and the flooder loses what is above.
    (0..1000).for_each(|seq| store(quiet, KEPT + seq, 1 << 16 | seq));
    let whole = (0..1000).filter(|seed| held(quiet, 1 << 16 | seed) == 100).count();
    assert!(whole >= 50, "{whole}");
}

#[test]
fn x5_names_chosen_to_collide_in_a_table_cost_no_more_than_others() {
    let memory = MemoryOptions { unplaced_per_worker: 1 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    // Equal in their low and in their high bits, and multiples that a multiplication by the golden
    // ratio brings together. Were a table's place for them predictable, each would walk over all
    // before it, and this test would not end.
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let mut inverse = golden;
    for _ in 0..6 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(golden.wrapping_mul(inverse)));
    }
    let families: [&dyn Fn(u64) -> u64; 3] =
        [&|n| n << 40, &|n| n | 0xffff << 48, &|n| inverse.wrapping_mul(n)];
    for (n, name) in families.iter().enumerate() {
        let pod = format!("pod {n}");
        let worker = site.worker(&pod);
        let names: Vec<u64> = (1..=60_000).map(name).collect();
        for chunk in names.chunks(10_000) {
            let ingested = site.apply(worker, &[stored_by_name(chunk, "CPU")]);
            assert_eq!(ingested.applied.stored, chunk.len() as u64);
        }
        let tokens: Vec<u32> = (0..40_000).collect();
        site.apply(worker, &[stored(&names[..10_000], None, &tokens)]);
        let ingested = site.apply(worker, &[removed(&names, "CPU")]);
        assert_eq!(ingested.applied.removed, 60_000);
        assert_eq!(site.matched(&pod, &tokens), 10_000);
    }
}

/// So many that what costs each of them a look at all others does not end within minutes.
const CROWD: u64 = 40_000;

#[test]
fn x5_orphans_of_one_parent_attach_in_the_time_of_as_many_parents() {
    let site = Site::new();
    let worker = site.worker("a");
    // Each another block below block 1, which nobody has told of.
    let below = |n: u64| stored(&[1 + n], Some(1), &[n as u32, 0, 0, 0]);
    let events: Vec<Value> = (1..=CROWD).map(below).collect();
    for chunk in events.chunks(10_000) {
        let ingested = site.apply(worker, chunk);
        assert_eq!(ingested.applied.unplaced, chunk.len() as u64);
    }
    site.apply(worker, &[stored(&[1], None, &TOKENS[..4])]);
    assert_eq!(site.scout.stats().unplaced, 0);
    for n in [1, CROWD / 2, CROWD] {
        let prompt = [0, 1, 2, 3, n as u32, 0, 0, 0, 9];
        assert_eq!(site.matched("a", &prompt), 2, "orphan {n}");
    }
}

#[test]
fn x5_a_name_that_means_more_blocks_than_collide_by_chance_is_refused() {
    let site = Site::new();
    let worker = site.worker("a");
    let first = |n: u64| vec![n as u32, 0, 0, 0];
    let events: Vec<Value> = (1..=CROWD).map(|n| stored(&[7], None, &first(n))).collect();
    let (mut stored, mut removed) = (0, 0);
    for chunk in events.chunks(10_000) {
        let applied = site.apply(worker, chunk).applied;
        assert_eq!(applied.stored + applied.refused, chunk.len() as u64);
        stored += applied.stored;
    }
    assert_eq!(stored, MOST_MEANINGS as u64);
    assert_eq!(site.trust(worker), Trust::Degraded(Reason::Overflow));
    // Removals of a copy that is not there have to look at all of them.
    let names = vec![7; 10_000];
    for tier in ["CPU", "GPU"].repeat(3) {
        removed += site.apply(worker, &[self::removed(&names, tier)]).applied.removed;
    }
    assert_eq!(removed, MOST_MEANINGS as u64);
    assert_eq!(site.scout.stats().blocks, 3, "the bystander's own");
}

#[test]
fn x5_a_publisher_that_names_a_hundred_thousand_groups_has_as_many_as_an_engine_may_have() {
    let site = Site::new();
    let worker = site.worker("a");
    let of_group = |event: Value, n: u64| with(event, &[("group_idx", json!(n))]);
    let (mut stored, mut refused) = (0, 0);
    let events: Vec<Value> = (0..100_000_u64)
        .map(|n| match n % 2 {
            0 => of_group(self::stored(&[7], None, &TOKENS[..4]), n),
            _ => of_group(stored_by_name(&[8], "GPU"), n),
        })
        .collect();
    for chunk in events.chunks(10_000) {
        let applied = site.apply(worker, chunk).applied;
        stored += applied.stored;
        refused += applied.refused;
    }
    assert_eq!((stored, refused), (MOST_GROUPS as u64, 100_000 - MOST_GROUPS as u64));
    let status = site.status(worker);
    assert_eq!(status.trust, Trust::Degraded(Reason::Overflow));
    assert!(status.groups.len() <= MOST_GROUPS, "{}", status.groups.len());
    assert_eq!(site.scout.stats().entries, 3 + MOST_GROUPS as u64, "with the bystander's own");
    // Removals of what it does not hold, and the groups that it has, go on.
    let gone: Vec<Value> = (0..10_000).map(|n| of_group(removed(&[7], "GPU"), n)).collect();
    assert_eq!(site.apply(worker, &gone).applied.removed, MOST_GROUPS as u64 / 2);
    // A new life has groups of its own.
    site.restart(worker);
    site.apply(worker, &[of_group(self::stored(&[7], None, &TOKENS[..4]), 1 << 20)]);
    assert_eq!((site.matched("a", &TOKENS), site.trust(worker)), (1, Trust::Exact));
}

/// A chain of 100 blocks that no other seed begins, and one token more.
fn chain_of(seed: u32) -> (Vec<u64>, Vec<u32>) {
    let names = (0..100).map(|at| u64::from(seed) << 8 | at | 1 << 63).collect();
    (names, (0..401).map(|at| seed << 9 | at).collect())
}

#[test]
fn r10_whoever_lost_copies_to_the_budget_says_so_before_the_first_is_gone() {
    let memory = MemoryOptions { budget: 4 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let evicted = Trust::Degraded(Reason::Evicted);
    let (idle, busy) = (site.worker("idle"), site.worker("busy"));
    let store = |worker, seed: u32| {
        let (names, tokens) = chain_of(seed);
        site.apply(worker, &[stored(&names, None, &tokens[..400])]);
    };
    const OLD: u32 = 700;
    (0..OLD).for_each(|seed| store(idle, seed));
    assert_eq!(site.scout.stats().evicted, 0);
    assert_eq!((site.trust(idle), site.trust(busy)), (Trust::Exact, Trust::Exact));
    // What the busy one stores costs the idle one its oldest, while somebody asks for those.
    let done = AtomicBool::new(false);
    let scout = &site.scout;
    let (whole, short) = thread::scope(|scope| {
        let raised = Raises(&done);
        let reader = scope.spawn(|| {
            let (mut whole, mut short, mut seed) = (0_u32, 0_u32, 0);
            let mut scratch = Scratch::default();
            while !done.load(Ordering::Relaxed) {
                seed = (seed + 1) % OLD;
                let (_, tokens) = chain_of(seed);
                let request = Request::new("m", Prompt::new(&tokens));
                let row = scout.score(&request, &mut scratch).unwrap().find(idle).unwrap();
                match row.trust {
                    Trust::Exact => {
                        assert_eq!(row.score.matched_blocks, 100, "chain {seed}");
                        whole += 1;
                    }
                    trust => {
                        assert_eq!(trust, evicted);
                        short += 1;
                    }
                }
            }
            (whole, short)
        });
        (OLD..OLD + 600).for_each(|seed| store(busy, seed));
        drop(raised);
        reader.join().unwrap()
    });
    assert!(whole > 0 && short > 0, "{whole} {short}");
    let (_, tokens) = chain_of(OLD + 599);
    let line = |pod| site.line(pod, 0, Prompt::new(&tokens)).trust;
    assert_eq!((line("idle"), site.trust(idle)), (evicted, evicted));
    // Until it is known again what the worker holds: nothing, as a new one or by its own word.
    site.restart(idle);
    store(idle, 9000);
    assert_eq!((line("idle"), site.trust(idle)), (Trust::Exact, Trust::Exact));
    assert_eq!(site.matched("idle", &chain_of(9000).1), 100);
    (0..2000).for_each(|seed| store(busy, OLD + 600 + seed));
    assert_eq!((line("busy"), line("idle")), (evicted, Trust::Exact), "only who floods pays");
    site.apply(busy, &[cleared()]);
    assert_eq!((line("busy"), site.trust(busy)), (Trust::Exact, Trust::Exact));
    (0..2000).for_each(|seed| store(busy, OLD + 600 + seed));
    assert_eq!(line("busy"), evicted);
    site.scout.unregister(busy).unwrap();
    let busy = site.worker("busy");
    store(busy, 1);
    assert_eq!((line("busy"), site.trust(busy)), (Trust::Exact, Trust::Exact));
}

#[test]
fn r12_blocks_of_one_token_are_indexed_within_the_budget() {
    let memory = MemoryOptions { budget: 16 << 20, ..MemoryOptions::default() };
    let site = Site::with(Options { memory, ..Options::default() });
    let worker = site.worker("a");
    // Workers that hold nothing have a share, too.
    for n in 0..3 {
        site.worker(&format!("idle {n}"));
    }
    let mut name = 1;
    for prompt in 0..1000_u32 {
        let tokens: Vec<u32> = (0..1000).map(|at| prompt << 12 | at).collect();
        let names: Vec<u64> = (name..name + 1000).collect();
        name += 1000;
        let event = with(stored(&names, None, &tokens), &[("block_size", json!(1))]);
        site.apply(worker, &[event]);
    }
    let last: Vec<u32> = (0..1000).map(|at| 999 << 12 | at).collect();
    let line = site.line("a", 0, Prompt::new(&last));
    assert_eq!((line.matched, line.expected), (1000, Some(999)), "the last token is computed");
    let stats = site.scout.stats();
    assert!(stats.bytes <= 16 << 20 && stats.evicted > 0, "{stats:?}");
    assert!(site.warnings(worker).contains(&"tiny_blocks"));
}

#[test]
fn r14_two_hundred_thousand_batches_of_two_thousand_workers_are_all_applied() {
    const WORKERS: usize = 2000;
    const BATCHES: u64 = 100;
    const THREADS: usize = 4;
    let site = Site::new();
    let register = |n| site.register(Registration { rank: n, ..Registration::new("pod", "m") });
    let workers: Vec<WorkerId> = (0..WORKERS as u32).map(register).collect();
    let chain: Vec<u32> = (0..4 * BATCHES as u32).collect();
    let payloads: Vec<Vec<u8>> = (0..BATCHES)
        .map(|seq| {
            let parent = (seq > 0).then_some(seq);
            let at = 4 * seq as usize;
            batch(&[stored(&[seq + 1], parent, &chain[at..at + 4])])
        })
        .collect();
    let scout = &site.scout;
    std::thread::scope(|scope| {
        for part in workers.chunks(WORKERS / THREADS) {
            let payloads = &payloads;
            scope.spawn(move || {
                for (seq, payload) in payloads.iter().enumerate() {
                    for &worker in part {
                        let ingested = scout.apply(worker, seq as u64, payload).unwrap();
                        assert_eq!((ingested.verdict, ingested.rejected), (Verdict::Next, 0));
                    }
                }
            });
        }
    });
    let statuses = scout.workers();
    let of_pod = statuses.iter().filter(|status| status.registration.pod == "pod");
    let lost = of_pod.filter(|status| {
        status.counters.batches != BATCHES
            || status.events.stored != BATCHES
            || (status.as_of, status.trust) != (Some(BATCHES - 1), Trust::Exact)
    });
    assert_eq!(lost.count(), 0);
    let all = site.ask(Prompt::new(&chain));
    let full = all.iter().filter(|line| u64::from(line.matched) == BATCHES);
    assert_eq!(full.count(), WORKERS);
}
