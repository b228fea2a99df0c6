//! A scout that goes on from a snapshot answers as the one that it was taken of, also after further
//! batches.

mod event_support;
mod scope_support;

use event_support::{SIZE, batch, removed, stored};
use kvscout::block::{BlockSize, Prompt, Shape, WorkerId};
use kvscout::hash::content::DigestKey;
use kvscout::hash::vllm::{self, Algorithm, ChainMemory, Root, Version};
use kvscout::index::Image;
use kvscout::ingest::snapshot::{Refused, Snapshot};
use kvscout::ingest::verify::{Contract, Status};
use kvscout::ingest::{Reason, Trust, Verdict};
use kvscout::scout::{Adapter, Copies, OnClear, Options, Registration, Request, Scout, Scratch};
use proptest::prelude::*;
use scope_support::Raises;
use serde_json::json;

fn options() -> Options {
    Options { digest_key: Some(DigestKey::from_bytes([7; 16])), ..Options::default() }
}

fn scout() -> Scout {
    Scout::new(options()).unwrap()
}

/// The scout that a file with this one's snapshot leads to.
fn restored(scout: &Scout) -> Scout {
    let mut file = Vec::new();
    scout.snapshot(5).write(&mut file).unwrap();
    let key = DigestKey::from_bytes([7; 16]);
    let snapshot = Snapshot::read(&mut &file[..], &key).unwrap();
    assert_eq!(snapshot.created, 5);
    Scout::restore(options(), &snapshot).unwrap()
}

/// The names that an engine with this seed gives the blocks of a prompt.
fn names(version: Version, seed: &str, tokens: &[u32]) -> Vec<u64> {
    let key = DigestKey::from_bytes([7; 16]);
    let contract = vllm::Contract::new(version, Algorithm::Sha256Cbor, Root::Seed(seed)).unwrap();
    let shape = Shape::plain(BlockSize::new(SIZE).unwrap());
    let memory = ChainMemory::new(key, 0);
    let names = Contract::Vllm(contract).names(shape, &Prompt::new(tokens), &memory).unwrap();
    names.map(|name| name.0).collect()
}

/// Rows of an answer, without trust: that is another one right after a restart.
fn answer(scout: &Scout, model: &str, tokens: &[u32]) -> Vec<(WorkerId, u32, Option<u64>)> {
    let mut scratch = Scratch::default();
    let ranking = scout.score(&Request::new(model, Prompt::new(tokens)), &mut scratch).unwrap();
    ranking.iter().map(|row| (row.worker, row.score.matched_blocks, row.as_of)).collect()
}

fn trust(scout: &Scout, worker: WorkerId) -> Trust {
    let trust = scout.worker(worker).unwrap().trust;
    let registration = scout.worker(worker).unwrap().registration;
    let mut scratch = Scratch::default();
    let request =
        Request { model: registration.model.as_deref(), ..Request::new("", Prompt::new(&[])) };
    let ranking = scout.score(&request, &mut scratch).unwrap();
    assert_eq!(ranking.find(worker).unwrap().trust, trust);
    trust
}

/// Worker `a` of model `m`, which holds two blocks as of batch 1.
fn two_blocks() -> (Scout, WorkerId, [Vec<u8>; 2]) {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let batches = [
        batch(1.0, &[stored(&[1], None, &[0, 1, 2, 3])]),
        batch(2.0, &[stored(&[2], Some(1), &[4, 5, 6, 7])]),
    ];
    for (seq, payload) in (0..).zip(&batches) {
        scout.apply(a, seq, payload).unwrap();
    }
    assert_eq!(trust(&scout, a), Trust::Exact);
    (scout, a, batches)
}

const TWO: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn a_restored_worker_is_syncing_until_the_next_batch() {
    let (scout, a, _) = two_blocks();
    let copy = restored(&scout);
    assert_eq!(answer(&copy, "m", &TWO), [(a, 2, Some(1))]);
    assert_eq!(trust(&copy, a), Trust::Syncing);
    copy.apply(a, 2, &batch(3.0, &[removed(&[2], "GPU")])).unwrap();
    assert_eq!(answer(&copy, "m", &TWO), [(a, 1, Some(2))]);
    assert_eq!(trust(&copy, a), Trust::Exact);
    assert_eq!(copy.worker(a).unwrap().counters.batches, 1, "counters begin anew");
}

#[test]
fn the_last_batch_again_is_a_duplicate_and_proves_that_nothing_is_missing() {
    let (scout, a, batches) = two_blocks();
    let copy = restored(&scout);
    assert_eq!(copy.apply(a, 1, &batches[1]).unwrap().verdict, Verdict::Duplicate);
    assert_eq!(trust(&copy, a), Trust::Exact);
    assert_eq!(answer(&copy, "m", &TWO), [(a, 2, Some(1))]);
}

#[test]
fn another_batch_under_the_last_number_is_a_restart() {
    let (scout, a, _) = two_blocks();
    for (seq, clock) in [(1, 9.0), (0, 9.0)] {
        let copy = restored(&scout);
        let other = batch(clock, &[stored(&[7], None, &[9, 9, 9, 9])]);
        assert_eq!(copy.apply(a, seq, &other).unwrap().verdict, Verdict::Restart);
        assert_eq!(answer(&copy, "m", &TWO), [(a, 0, Some(seq))]);
        assert_eq!(answer(&copy, "m", &[9, 9, 9, 9, 9]), [(a, 1, Some(seq))]);
        let expected = match seq {
            0 => Trust::Exact,
            _ => Trust::Degraded(Reason::MissedStart),
        };
        assert_eq!(trust(&copy, a), expected);
        let incarnation = |scout: &Scout| scout.snapshot(0).registrations.workers[0].incarnation;
        assert_eq!((incarnation(&scout), incarnation(&copy)), (0, 1));
    }
}

#[test]
fn an_older_clock_is_another_life_under_the_next_number_and_out_of_order_under_an_earlier_one() {
    let (scout, a, _) = two_blocks();
    for seq in 2..6 {
        scout.apply(a, seq, &batch(3.0, &[])).unwrap();
    }
    let copy = restored(&scout);
    copy.apply(a, 6, &batch(0.5, &[])).unwrap();
    assert_eq!(trust(&copy, a), Trust::Degraded(Reason::Gap));

    let copy = restored(&scout);
    let other = |n: u32| batch(0.5, &[stored(&[7], None, &[n, 9, 9, 9])]);
    for (seq, n) in [(0, 0), (1, 1)] {
        assert_eq!(copy.apply(a, seq, &other(n)).unwrap().verdict, Verdict::Late);
        assert_eq!(trust(&copy, a), Trust::Degraded(Reason::OutOfOrder));
        assert_eq!(answer(&copy, "m", &TWO), [(a, 2, Some(5))], "it is dropped");
    }
    assert_eq!(copy.apply(a, 2, &other(2)).unwrap().verdict, Verdict::Restart);
    assert_eq!(trust(&copy, a), Trust::Degraded(Reason::MissedStart));
    assert_eq!(answer(&copy, "m", &TWO), [(a, 0, Some(2))]);
}

#[test]
fn a_gap_after_a_restart_is_said_until_the_worker_clears_itself() {
    let (scout, a, _) = two_blocks();
    let copy = restored(&scout);
    let later = batch(5.0, &[stored(&[3], Some(2), &[8, 9, 10, 11])]);
    assert_eq!(copy.apply(a, 4, &later).unwrap().verdict, Verdict::Gap { missing: 2 });
    assert_eq!(trust(&copy, a), Trust::Degraded(Reason::Gap));
    let again = restored(&copy);
    assert_eq!(trust(&again, a), Trust::Degraded(Reason::Gap), "as it was");
    again.apply(a, 5, &batch(6.0, &[])).unwrap();
    assert_eq!(trust(&again, a), Trust::Degraded(Reason::Gap), "continuity mends nothing");
    again.apply(a, 6, &batch(7.0, &[json!({ "type": "AllBlocksCleared" })])).unwrap();
    assert_eq!(trust(&again, a), Trust::Exact);
}

#[test]
fn who_had_applied_nothing_is_as_if_registered_anew() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let copy = restored(&scout);
    assert_eq!(trust(&copy, a), Trust::Exact);
    assert_eq!(copy.worker(a).unwrap().as_of, None);
    copy.apply(a, 1, &batch(1.0, &[])).unwrap();
    assert_eq!(trust(&copy, a), Trust::Degraded(Reason::MissedStart));
}

#[test]
fn batches_that_wait_for_a_contract_are_after_the_watermark() {
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    // vLLM 0.16: extra keys are hidden, and the contract of a random seed fits nothing.
    let hidden = |name: u64, first: u32| {
        let tokens: Vec<u32> = (first..first + SIZE).collect();
        let store = json!(["BlockStored", [name], null, tokens, SIZE, null, "GPU", null]);
        rmp_serde::to_vec(&json!([f64::from(first), [store]])).unwrap()
    };
    scout.apply(a, 0, &hidden(1, 0)).unwrap();
    assert_eq!((trust(&scout, a), scout.worker(a).unwrap().as_of), (Trust::Syncing, None));
    let copy = restored(&scout);
    assert_eq!(copy.worker(a).unwrap().as_of, None);
    // They come again, and the engine turns out to use seed 0.
    let tokens = [50, 51, 52, 53];
    let name = names(Version::new(0, 16, 0), "0", &tokens)[0];
    for scout in [&scout, &copy] {
        scout.apply(a, 0, &hidden(1, 0)).unwrap();
        scout.apply(a, 1, &hidden(name, 50)).unwrap();
        assert_eq!(trust(scout, a), Trust::Exact);
        assert_eq!(answer(scout, "m", &tokens), [(a, 1, Some(1))]);
        assert_eq!(answer(scout, "m", &[0, 1, 2, 3]), [(a, 0, Some(1))], "known by its name only");
    }
    // A worker that hides extra keys still does so after a restart.
    let copy = restored(&copy);
    copy.apply(a, 2, &hidden(3, 90)).unwrap();
    assert_eq!(answer(&copy, "m", &[90, 91, 92, 93]), [(a, 0, Some(2))]);
    assert_eq!(answer(&copy, "m", &tokens), [(a, 1, Some(2))]);
}

#[test]
fn what_an_operator_knows_of_a_worker_and_of_adapters_comes_back() {
    let scout = scout();
    let habits = Registration {
        on_clear: OnClear::Gpu,
        copies: Copies::Presence,
        ..Registration::new("b", "other")
    };
    let b = scout.register(habits).unwrap();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let adapter = Adapter { model: "m".into(), id: None, path: None };
    scout.register_adapter("default", "sql", adapter);
    let tokens = [0, 1, 2, 3];
    let mut store = stored(&[1], None, &tokens);
    store["lora_name"] = json!("sql");
    store["extra_keys"] = json!([["sql"]]);
    scout.apply(a, 0, &batch(1.0, std::slice::from_ref(&store))).unwrap();
    assert_eq!(answer(&scout, "sql", &tokens), [(a, 1, Some(0))]);
    scout.clear_adapter("default", "sql");
    let copy = restored(&scout);
    assert_eq!(copy.worker(b).unwrap().registration, scout.worker(b).unwrap().registration);
    for scout in [&scout, &copy] {
        assert_eq!(answer(scout, "sql", &tokens), [(a, 0, Some(0))], "of an earlier edition");
        scout.apply(a, 1, &batch(2.0, std::slice::from_ref(&store))).unwrap();
        assert_eq!(answer(scout, "sql", &tokens), [(a, 1, Some(1))]);
    }
}

#[test]
fn numbers_contracts_and_adapters_come_back() {
    let scout = scout();
    let prompt: Vec<u32> = (0..12).collect();
    let mut ids = Vec::new();
    for n in 0..70 {
        ids.push(scout.register(Registration::new(format!("pod-{n}"), "m")).unwrap());
    }
    let other = scout.register(Registration::new("pod", "other")).unwrap();
    for gone in &ids[1..69] {
        scout.unregister(*gone).unwrap();
    }
    let adapter = Adapter { model: "m".into(), id: Some(3), path: Some("/lora".into()) };
    scout.register_adapter("default", "sql", adapter);
    let names = names(Version::NEWEST, "42", &prompt);
    for worker in [ids[0], ids[69], other] {
        scout.apply(worker, 0, &batch(1.0, &[stored(&names, None, &prompt)])).unwrap();
    }
    let copy = restored(&scout);
    for asked in ["m", "other", "sql"] {
        assert_eq!(answer(&copy, asked, &prompt), answer(&scout, asked, &prompt), "{asked}");
    }
    for worker in [ids[0], ids[69], other] {
        let (old, new) = (scout.worker(worker).unwrap(), copy.worker(worker).unwrap());
        assert_eq!(old.registration, new.registration);
        assert_eq!((old.groups, &old.contract), (new.groups, &new.contract));
        assert!(matches!(new.contract, Status::Verified(_)));
    }
    assert_eq!(copy.stats().entries, scout.stats().entries);
    assert_eq!(copy.snapshot(5).registrations, scout.snapshot(5).registrations);
    for scout in [&scout, &copy] {
        let next = scout.register(Registration::new("next", "m")).unwrap();
        assert_eq!(next.0, other.0 + 1);
        // It speaks the vocabulary of the others: what it names by name alone is known by content.
        let store = json!({
            "type": "BlockStored", "block_hashes": names, "parent_block_hash": null,
            "token_ids": [], "block_size": SIZE, "lora_id": null, "medium": "CPU",
        });
        let first = stored(&names[..1], None, &prompt[..4]);
        scout.apply(next, 0, &batch(1.0, &[first, store])).unwrap();
        scout.unregister(other).unwrap();
    }
    assert_eq!(answer(&copy, "m", &prompt), answer(&scout, "m", &prompt));
    assert_eq!(copy.snapshot(5).registrations.vocabularies.len(), 1, "the other space is gone");
}

#[test]
fn what_contradicts_itself_or_has_another_key_is_refused() {
    let (scout, _, _) = two_blocks();
    let snapshot = scout.snapshot(5);
    let refuse = |snapshot: &Snapshot, said: &str| {
        let error = Scout::restore(options(), snapshot).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.downcast_ref::<Refused>().is_some());
    };
    let other_key = Options { digest_key: Some(DigestKey::from_bytes([8; 16])), ..options() };
    let error = Scout::restore(other_key, &snapshot).unwrap_err().to_string();
    assert!(error.contains("made under digest key"), "{error}");
    assert!(Scout::restore(Options::default(), &snapshot).is_err(), "a random key is another one");

    let changed = |change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = snapshot.clone();
        change(&mut snapshot);
        snapshot
    };
    let none = changed(&|s| s.registrations.workers.clear());
    refuse(&none, "the index knows 1 workers, the list 0");
    refuse(&changed(&|s| s.registrations.workers[0].vocabulary.0 += 1), "another home");
    refuse(&changed(&|s| s.registrations.workers[0].worker.0 += 1), "another home");
    refuse(&changed(&|s| s.registrations.given.workers = 0), "not given");
    refuse(&changed(&|s| s.registrations.given.spaces = 0), "not given");
    refuse(&changed(&|s| s.image = Image::from_bytes(vec![1; 7])), "the index");
    let twice = changed(&|s| {
        let worker = s.registrations.workers[0].clone();
        s.registrations.workers.push(worker);
    });
    refuse(&twice, "the index knows 1 workers, the list 2");
}

#[test]
fn a_snapshot_is_consistent_beside_batches_and_registrations() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let scout = scout();
    let a = scout.register(Registration::new("a", "m")).unwrap();
    let b = scout.register(Registration::new("b", "m")).unwrap();
    let done = AtomicBool::new(false);
    let payload = |seq: u64| match seq % 2 {
        0 => batch(seq as f64, &[stored(&[1, 2], None, &TWO[..8])]),
        _ => batch(seq as f64, &[removed(&[1, 2], "GPU")]),
    };
    std::thread::scope(|scope| {
        let _done = Raises(&done);
        for worker in [a, b] {
            let (scout, done) = (&scout, &done);
            scope.spawn(move || {
                let mut seq = 0;
                while !done.load(Ordering::Relaxed) {
                    scout.apply(worker, seq, &payload(seq)).unwrap();
                    seq += 1;
                }
            });
        }
        let (scout_, done_) = (&scout, &done);
        scope.spawn(move || {
            while !done_.load(Ordering::Relaxed) {
                let c = scout_.register(Registration::new("c", "m")).unwrap();
                scout_.apply(c, 0, &payload(0)).unwrap();
                scout_.unregister(c).unwrap();
            }
        });
        for _ in 0..50 {
            let copy = restored(&scout);
            for (worker, matched, as_of) in answer(&copy, "m", &TWO) {
                let held = as_of.is_some_and(|seq| seq % 2 == 0);
                assert_eq!(matched, if held { 2 } else { 0 }, "{worker:?} {as_of:?}");
            }
        }
    });
}

/// One thing that happens to a worker's stream.
#[derive(Clone, Debug)]
enum Op {
    /// Stores a stretch of one of the prompts.
    Store {
        prompt: u32,
        blocks: u32,
    },
    /// Removes a block of one.
    Remove {
        prompt: u32,
        block: u32,
    },
    Clear,
    /// Skips a number.
    Skip,
    /// Comes again, as it was.
    Repeat,
    /// Begins at 0 again.
    Restart,
    /// Cannot be read.
    Garbage,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..4u32, 1..6u32).prop_map(|(prompt, blocks)| Op::Store { prompt, blocks }),
        4 => (0..4u32, 0..6u32).prop_map(|(prompt, block)| Op::Remove { prompt, block }),
        1 => Just(Op::Clear),
        1 => Just(Op::Skip),
        1 => Just(Op::Repeat),
        1 => Just(Op::Restart),
        1 => Just(Op::Garbage),
    ]
}

/// Prompt 1 begins as prompt 0 does.
fn tokens(prompt: u32) -> Vec<u32> {
    let first = |at: u32| if at < 8 { prompt / 2 * 2 } else { prompt };
    (0..24).map(|at| first(at) * 1000 + at).collect()
}

/// What the publishers have sent.
#[derive(Clone, Default)]
struct Publisher {
    seq: u64,
    clock: u64,
    last: Option<(u64, Vec<u8>)>,
}

impl Publisher {
    fn send(&mut self, op: &Op, seed: &str) -> Option<(u64, Vec<u8>)> {
        self.clock += 1;
        let name = |prompt: u32| names(Version::NEWEST, seed, &tokens(prompt));
        let events = match *op {
            Op::Store { prompt, blocks } => {
                let end = blocks as usize;
                vec![stored(&name(prompt)[..end], None, &tokens(prompt)[..end * SIZE as usize])]
            }
            Op::Remove { prompt, block } => vec![removed(&[name(prompt)[block as usize]], "GPU")],
            Op::Clear => vec![json!({ "type": "AllBlocksCleared" })],
            Op::Skip => {
                self.seq += 1;
                return None;
            }
            Op::Repeat => return self.last.clone(),
            Op::Restart => {
                self.seq = 0;
                vec![]
            }
            Op::Garbage => vec![json!({ "type": "BlockStored", "block_hashes": "x" })],
        };
        self.last = Some((self.seq, batch(self.clock as f64, &events)));
        self.seq += 1;
        self.last.clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_restored_scout_does_the_same_with_every_further_batch(
        history in prop::collection::vec((0..3usize, op()), 0..40),
        more in prop::collection::vec((0..3usize, op()), 0..30),
    ) {
        let scout = scout();
        // Two follow one contract, one another.
        let seeds = ["0", "0", "no candidate"];
        let ids: Vec<WorkerId> = (0..3)
            .map(|n| scout.register(Registration::new(format!("pod-{n}"), "m")).unwrap())
            .collect();
        let mut publishers: [Publisher; 3] = Default::default();
        for (n, op) in &history {
            if let Some((seq, payload)) = publishers[*n].send(op, seeds[*n]) {
                scout.apply(ids[*n], seq, &payload).unwrap();
            }
        }
        let copy = restored(&scout);
        let same = |scout: &Scout, copy: &Scout| {
            for prompt in 0..4 {
                let tokens = tokens(prompt);
                assert_eq!(answer(scout, "m", &tokens), answer(copy, "m", &tokens));
            }
            let (old, new) = (scout.snapshot(0), copy.snapshot(0));
            assert_eq!(old.registrations, new.registrations);
            let size = |scout: &Scout| {
                let stats = scout.stats();
                (stats.blocks, stats.entries, stats.unplaced)
            };
            assert_eq!(size(scout), size(copy));
        };
        same(&scout, &copy);
        for (n, id) in ids.iter().enumerate() {
            let before = trust(&scout, *id);
            let expected = match before {
                Trust::Exact if publishers[n].last.is_some() => Trust::Syncing,
                before => before,
            };
            prop_assert_eq!(trust(&copy, *id), expected);
        }
        let mut heard = [false; 3];
        for (n, op) in &more {
            if let Some((seq, payload)) = publishers[*n].send(op, seeds[*n]) {
                let old = scout.apply(ids[*n], seq, &payload).unwrap();
                let new = copy.apply(ids[*n], seq, &payload).unwrap();
                prop_assert_eq!(old, new);
                heard[*n] = true;
            }
        }
        same(&scout, &copy);
        for (n, id) in ids.iter().enumerate() {
            if heard[n] {
                prop_assert_eq!(trust(&scout, *id), trust(&copy, *id));
            }
        }
    }
}
