//! Losses that leave no gap: what is held is compared with what the engine has kept, and what no replay
//! brings back leaves its traces.

mod audit_support;
mod failures_support;
mod wire_support;

use std::collections::BTreeMap;
use std::time::Duration;

use audit_support::{PERIOD, Pair, TOKENS, found};
use failures_support::{SIZE, Site, batch, cleared, names, removed, stored, stored_as};
use kvscout::block::{Prompt, WorkerId};
use kvscout::hash::content::DigestKey;
use kvscout::hash::vllm::Algorithm;
use kvscout::ingest::sequencer::{AuditState, Comparison, Ended, Flow, Stage};
use kvscout::ingest::verify::Status;
use kvscout::ingest::{Reason, ReplayOptions, Trust};
use kvscout::scout::{
    Ask, AuditStatus, Copies, Options, Registration, Scout, Warning, WorkerStatus,
};
use serde_json::Value;

#[test]
fn s7_an_audit_of_what_is_held_rightly_changes_nothing() {
    let mut pair = Pair::new();
    assert_eq!(pair.status().audit.state, AuditState::Pending);
    pair.store(&[1, 2], None, &TOKENS[..8]);
    // Two copies, a hole, a chain that waits for its parent, and a clear of one tier.
    pair.store(&[1, 2, 3], None, &TOKENS[..12]);
    pair.store(&[9], Some(8), &TOKENS[..4]);
    pair.same(removed(&[3], "GPU"));
    let before = pair.matched();
    let ask = pair.due().expect("an audit");
    assert_eq!((pair.status().stage, pair.status().trust), (Some(Stage::Auditing), Trust::Exact));
    let progress = pair.serve(ask);
    assert_eq!(found(&progress), (Comparison::Equal, 0, 0));
    assert_eq!((progress.ask, progress.audit), (None, None));
    let WorkerStatus { trust, as_of, counters, audit, stage, .. } = pair.status();
    assert_eq!((trust, as_of, pair.matched()), (Trust::Exact, Some(3), before));
    assert_eq!((counters.audits_ok, counters.rebuilt, counters.restarts), (1, 0, 0));
    let AuditStatus { state, as_of, missing, surplus, .. } = audit;
    assert_eq!((state, as_of, missing, surplus), (AuditState::Ok, Some(3), 0, 0));
    assert_eq!(stage, Some(Stage::InStep));
    // It can be removed as often as it was stored, and not once more.
    pair.same(removed(&[2], "GPU"));
    pair.same(removed(&[2], "GPU"));
    assert_eq!((pair.matched(), pair.status().events.unknown_removals), (1, 0));
    pair.site.bystander_is_unchanged();
}

#[test]
fn s7_what_was_kept_and_never_came_is_found_and_the_worker_built_anew() {
    let mut pair = Pair::new();
    pair.store(&[1, 2], None, &TOKENS[..8]);
    // A batch comes without one of its events.
    pair.publish(&[], &[stored(&[3], Some(2), &TOKENS[8..12])]);
    pair.go_on();
    assert_eq!((pair.matched(), pair.status().trust), (2, Trust::Exact));
    let progress = pair.audit();
    assert_eq!(found(&progress), (Comparison::Different, 1, 0));
    // It goes on answering, flagged, until what replaces it comes.
    let status = pair.status();
    assert_eq!((status.trust, pair.matched()), (Trust::Degraded(Reason::Audit), 2));
    assert_eq!(status.stage, Some(Stage::Rebuilding));
    let ask = progress.ask.expect("what is to replace it");
    let (_, first) = pair.buffer[0].clone();
    pair.site.scout.replayed(pair.worker, pair.now, ask.round, 0, &first).unwrap();
    assert_eq!(pair.status().trust, Trust::Syncing, "emptied, and not exact");
    pair.repair(Some(ask));
    let status = pair.status();
    assert_eq!((status.trust, status.as_of, pair.matched()), (Trust::Exact, Some(2), 3));
    assert_eq!((status.counters.audits_differed, status.counters.rebuilt), (1, 1));
    assert_eq!((status.audit.missing, status.audit.surplus), (1, 0));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0), "healed");
    pair.site.bystander_is_unchanged();
}

#[test]
fn s7_what_should_not_be_held_is_found_too() {
    let mut pair = Pair::new();
    pair.store(&[1, 2, 3], None, &TOKENS[..12]);
    pair.store(&[1, 2, 3], None, &TOKENS[..12]);
    pair.publish(&[], &[removed(&[3], "GPU"), removed(&[2], "GPU"), removed(&[2], "GPU")]);
    // A block that the engine's buffer has never heard of.
    pair.publish(&[stored(&[30], None, &TOKENS[3..7])], &[]);
    pair.go_on();
    let progress = pair.audit();
    assert_eq!(found(&progress), (Comparison::Different, 0, 4));
    pair.repair(progress.ask);
    assert_eq!((pair.status().trust, pair.matched()), (Trust::Exact, 1));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
}

#[test]
fn s7_batches_that_come_during_an_audit_count_on_both_sides() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.store(&[2], Some(1), &TOKENS[4..8]);
    let ask = pair.due().expect("an audit");
    // After the request was answered, as far as the engine is concerned.
    let kept = pair.buffer.clone();
    pair.store(&[3], Some(2), &TOKENS[8..12]);
    pair.same(removed(&[2], "GPU"));
    let all = std::mem::replace(&mut pair.buffer, kept);
    let progress = pair.serve(ask);
    assert_eq!(found(&progress), (Comparison::Equal, 0, 0));
    assert_eq!(pair.status().audit.as_of, Some(3));
    // The same when the answer has more than what had come.
    pair.buffer = all;
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
}

#[test]
fn s7_without_a_replay_source_audits_are_unavailable_and_without_a_period_off() {
    let site = Site::new();
    let worker = site.worker("a");
    assert_eq!(site.status(worker).audit.state, AuditState::Unavailable);
    site.scout.follow(worker, ReplayOptions::default(), 7).unwrap();
    assert_eq!(site.status(worker).audit.state, AuditState::Off);
    site.scout.link(worker, Duration::ZERO, true).unwrap();
    assert_eq!(site.scout.tick(worker, Duration::from_secs(1 << 20)).unwrap().audit, None);
}

#[test]
fn s7_a_batch_dropped_before_it_had_a_number_is_in_no_replay_and_leaves_traces() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    // Block 2 below it was stored in a batch that never had a number.
    pair.store(&[3], Some(2), &TOKENS[8..12]);
    pair.same(removed(&[2], "GPU"));
    let status = pair.status();
    assert_eq!((status.events.unknown_parents, status.events.unknown_removals), (1, 1));
    assert_eq!((status.unexplained.unknown, status.unexplained.changes), (2, 2));
    assert!(status.warnings().any(|warning| warning == Warning::EventsUnexplained));
    // Every batch there is was applied: that is what `exact` says, and no audit can say otherwise.
    assert_eq!(status.trust, Trust::Exact);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    // A full clear by the engine ends what was unclear.
    pair.same(cleared());
    assert_eq!(pair.status().warnings().count(), 0);
    assert_eq!(pair.status().unexplained.unknown, 0);
}

#[test]
fn s7_traces_that_something_else_explains_are_no_warning() {
    let registration = Registration { copies: Copies::Presence, ..Registration::new("a", "m") };
    let site = Site::new();
    let presence = site.register(registration);
    site.apply(presence, &[stored(&[1], None, &TOKENS[..4]), stored(&[1], None, &TOKENS[..4])]);
    site.apply(presence, &[removed(&[1], "GPU"), removed(&[1], "GPU")]);
    let degraded = site.worker("b");
    let late = batch(&[removed(&[1], "GPU")]);
    site.scout.apply(degraded, 5, &late).unwrap();
    let cleared = site.worker("c");
    site.apply(cleared, &[stored(&[1], None, &TOKENS[..4])]);
    site.scout.clear_worker(cleared).unwrap();
    site.apply(cleared, &[removed(&[1], "GPU"), stored(&[2], Some(1), &TOKENS[4..8])]);
    for worker in [presence, degraded, cleared] {
        let status = site.status(worker);
        assert!(status.events.unknown_removals > 0, "{:?}", status.events);
        assert_eq!((status.unexplained.unknown, status.warnings().count()), (0, 0));
    }
}

#[test]
fn s7_an_audit_that_is_cut_goes_on_where_it_was_and_one_that_brings_nothing_is_dropped() {
    let mut pair = Pair::new();
    for n in 0..6_u32 {
        pair.store(&[u64::from(n) + 1], None, &[n, n + 1, n + 2, n + 3]);
    }
    let ask = pair.due().expect("an audit");
    let next = pair.serve_some(ask, 2, Ended::Cut).audit.expect("the rest");
    assert_eq!((next.from, next.round), (2, ask.round + 1));
    let next = pair.serve_some(next, 1, Ended::Marker).audit.expect("the rest");
    assert_eq!(next.from, 3);
    // A late answer of a round that is over changes nothing.
    let (seq, payload) = pair.buffer[2].clone();
    let stale = pair.site.scout.replayed(pair.worker, pair.now, ask.round, seq, &payload).unwrap();
    assert_eq!(stale.0, Flow::Stop);
    assert_eq!(found(&pair.serve(next)), (Comparison::Equal, 0, 0));
    let ask = pair.due().expect("the next one");
    let next = pair.serve_some(ask, 3, Ended::Cut).audit.expect("the rest");
    let progress = pair.serve_some(next, 0, Ended::Cut);
    assert_eq!((progress.audit, progress.audited, progress.ask), (None, None, None));
    let status = pair.status();
    assert_eq!((status.trust, status.stage), (Trust::Exact, Some(Stage::InStep)));
    assert_eq!((status.counters.audits_ok, status.counters.audits_unfinished), (1, 1));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0), "it begins anew");
}

#[test]
fn s7_a_restart_during_an_audit_discards_it() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.store(&[2], Some(1), &TOKENS[4..8]);
    let ask = pair.due().expect("an audit");
    let (seq, payload) = pair.buffer[0].clone();
    pair.site.scout.replayed(pair.worker, pair.now, ask.round, seq, &payload).unwrap();
    // The same number, another batch.
    let anew = batch(&[stored(&[8], None, &TOKENS[8..12])]);
    pair.site.scout.apply(pair.worker, 0, &anew).unwrap();
    let (seq, payload) = pair.buffer[1].clone();
    let (flow, progress) =
        pair.site.scout.replayed(pair.worker, pair.now, ask.round, seq, &payload).unwrap();
    assert_eq!((flow, progress.audited), (Flow::Stop, None));
    let status = pair.status();
    assert_eq!((status.counters.restarts, status.counters.audits_unfinished), (1, 1));
    assert_eq!((status.trust, pair.matched()), (Trust::Exact, 0));
    pair.buffer = vec![(0, anew)];
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
}

#[test]
fn s7_a_repair_takes_the_place_of_an_audit() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    let audit = pair.due().expect("an audit");
    let lost = batch(&[stored(&[2], Some(1), &TOKENS[4..8])]);
    pair.buffer.push((1, lost));
    let third = batch(&[stored(&[3], Some(2), &TOKENS[8..12])]);
    let ask = pair.site.scout.apply(pair.worker, 2, &third).unwrap().ask.expect("what is lost");
    pair.buffer.push((2, third));
    assert_eq!(pair.status().trust, Trust::Syncing);
    let stale = pair.serve(audit);
    assert_eq!((stale.audited, stale.ask), (None, None));
    pair.serve(ask);
    assert_eq!((pair.status().trust, pair.matched()), (Trust::Exact, 3));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
}

#[test]
fn s7_an_audit_shows_a_publisher_that_was_taken_for_another_one() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.store(&[2], Some(1), &TOKENS[4..8]);
    // Its engine began anew and came to exactly that number, while nobody listened.
    let (first, second) = (stored(&[9], None, &TOKENS[8..12]), stored(&[10], None, &TOKENS[4..8]));
    pair.buffer = vec![(0, batch(&[first])), (1, batch(&[second]))];
    let ask = pair.due().expect("an audit");
    let progress = pair.serve(ask);
    assert_eq!((progress.audited, progress.audit), (None, None));
    // Where the publisher stands is asked for as ever: from what was applied last on.
    assert_eq!(progress.ask.map(|ask| ask.from), Some(1));
    pair.repair(progress.ask);
    let status = pair.status();
    assert_eq!((status.trust, status.counters.restarts, pair.matched()), (Trust::Exact, 1, 0));
}

#[test]
fn s7_an_audit_shows_a_publisher_that_has_not_come_so_far() {
    let mut pair = Pair::new();
    for n in 0..4 {
        pair.store(&[n + 1], None, &TOKENS[n as usize..n as usize + 4]);
    }
    let anew = batch(&[stored(&[9], None, &TOKENS[8..12])]);
    pair.buffer = vec![(0, anew)];
    let ask = pair.due().expect("an audit");
    let next = pair.serve(ask).audit.expect("the rest");
    let progress = pair.serve(next);
    assert_eq!((progress.audited, progress.ask.map(|ask| ask.from)), (None, Some(3)));
    pair.repair(progress.ask);
    let status = pair.status();
    assert_eq!((status.trust, status.as_of), (Trust::Exact, Some(0)));
    assert_eq!((status.counters.restarts, pair.matched()), (1, 0));
}

#[test]
fn s7_what_an_operator_cleared_is_not_brought_back() {
    let mut pair = Pair::new();
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.site.scout.clear_worker(pair.worker).unwrap();
    assert_eq!(pair.due(), None);
    let status = pair.status();
    assert_eq!((status.audit.state, pair.matched()), (AuditState::Unavailable, 0));
    // Amid an audit, too.
    pair.same(cleared());
    pair.store(&[1, 2], None, &TOKENS[..8]);
    let ask = pair.due().expect("the engine has cleared itself since");
    pair.site.scout.clear_worker(pair.worker).unwrap();
    assert_eq!(found(&pair.serve(ask)), (Comparison::Undecided, 0, 0));
    assert_eq!((pair.status().trust, pair.matched()), (Trust::Exact, 0));
    // Nor after a restart of this process.
    let key = DigestKey::random().unwrap();
    let options = || Options { digest_key: Some(key.clone()), ..Options::default() };
    let mut pair = Pair::of(Site::with(options()), Registration::new("a", "m"));
    pair.store(&[1, 2], None, &TOKENS[..8]);
    let before = pair.site.scout.snapshot(0);
    pair.site.scout.clear_worker(pair.worker).unwrap();
    let after = pair.site.scout.snapshot(0);
    for (snapshot, audits) in [(before, true), (after, false)] {
        let scout = Scout::restore(options(), &snapshot).unwrap();
        let replay = ReplayOptions { audit: PERIOD, ..ReplayOptions::default() };
        scout.follow(pair.worker, replay, 7).unwrap();
        let ask = scout.link(pair.worker, pair.now, true).unwrap().ask.unwrap();
        let (seq, payload) = &pair.buffer[0];
        scout.replayed(pair.worker, pair.now, ask.round, *seq, payload).unwrap();
        scout.replay_ended(pair.worker, pair.now, ask.round, Ended::Marker).unwrap();
        let ask = scout.tick(pair.worker, pair.now + PERIOD).unwrap().audit;
        assert_eq!(ask.is_some(), audits);
        let Some(Ask { round, .. }) = ask else { continue };
        let (_, progress) = scout.replayed(pair.worker, pair.now, round, *seq, payload).unwrap();
        assert_eq!(found(&progress), (Comparison::Equal, 0, 0));
    }
}

#[test]
fn s7_an_adapter_that_an_operator_cleared_makes_audits_unavailable() {
    let mut pair = Pair::new();
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.site.scout.clear_adapter("other tenant", "sql");
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    pair.site.scout.clear_adapter("default", "sql");
    assert_eq!((pair.due(), pair.status().audit.state), (None, AuditState::Unavailable));
}

#[test]
fn s7_reported_blocks_are_compared_as_present_or_not() {
    let registration = Registration { copies: Copies::Presence, ..Registration::new("a", "m") };
    let mut pair = Pair::of(Site::new(), registration);
    for _ in 0..3 {
        pair.store(&[1, 2], None, &TOKENS[..8]);
    }
    pair.store(&[3], Some(2), &TOKENS[8..12]);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    pair.publish(&[], &[removed(&[3], "GPU")]);
    pair.go_on();
    assert_eq!(found(&pair.audit()), (Comparison::Different, 0, 1));
}

#[test]
fn s7_a_worker_that_shares_its_blocks_and_names_is_compared_by_what_it_holds_itself() {
    let mut pair = Pair::new();
    let names = names("0.33.0", Algorithm::Sha256Cbor, "0", SIZE, &Prompt::new(&TOKENS));
    // Another one of the same contract holds the same chain, and the block that this one never announced.
    let other = pair.site.worker("b");
    pair.site.apply(other, &[stored(&names[..3], None, &TOKENS[..12])]);
    pair.store(&names[..1], None, &TOKENS[..4]);
    pair.store(&names[2..3], Some(names[1]), &TOKENS[8..12]);
    let status = pair.status();
    assert_eq!(
        (&status.contract, status.events.unknown_parents),
        (&pair.site.status(other).contract, 1)
    );
    assert!(matches!(status.contract, Status::Verified(_)));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    pair.publish(&[], &[removed(&names[..1], "GPU")]);
    pair.go_on();
    assert_eq!(found(&pair.audit()), (Comparison::Different, 0, 1));
}

#[test]
fn s7_what_a_prompt_proved_is_known_to_an_audit() {
    let mut pair = Pair::new();
    let salted = Prompt { cache_salt: Some("salt"), ..Prompt::new(&TOKENS) };
    let names = names("0.13.0", Algorithm::Sha256, "0", SIZE, &salted);
    let hashes: Vec<Value> = names.into_iter().map(Value::from).collect();
    // Events that hide the salt wait until a prompt proves the contract.
    pair.same(stored_as("0.13.0", &hashes, Value::Null, &TOKENS[..16], SIZE));
    assert_eq!((pair.status().trust, pair.due()), (Trust::Syncing, None));
    assert_eq!(pair.status().audit.state, AuditState::Unavailable);
    assert_eq!(pair.site.line("a", 0, salted).matched, 4);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    pair.publish(&[], &[removed(&[hashes[3].as_u64().unwrap()], "GPU")]);
    pair.go_on();
    assert_eq!(found(&pair.audit()), (Comparison::Different, 0, 1));
}

/// Stores of the first block of as many prompts as begin with a number of these, hashed under a salt that the event hides.
fn salted(range: std::ops::Range<u32>) -> Vec<Value> {
    let store = |n: u32| {
        let tokens = [n + 1000; 4];
        let prompt = Prompt { cache_salt: Some("salt"), ..Prompt::new(&tokens) };
        let names = names("0.13.0", Algorithm::Sha256, "0", SIZE, &prompt);
        stored_as("0.13.0", &[names[0].into()], Value::Null, &tokens, SIZE)
    };
    range.map(store).collect()
}

#[test]
fn s7_salted_prompts_before_any_of_plain_text_keep_no_audit_from_its_end() {
    let mut pair = Pair::new();
    for event in salted(0..4) {
        pair.same(event);
    }
    assert_eq!(pair.status().trust, Trust::Syncing);
    // A query proves the contract; nothing else ever does.
    let asked = Prompt { cache_salt: Some("salt"), ..Prompt::new(&[1000; 5]) };
    assert_eq!(pair.site.line("a", 0, asked).matched, 1);
    for event in salted(4..20) {
        pair.same(event);
    }
    assert_eq!(pair.status().trust, Trust::Exact);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    // Nor does one of plain text that comes later.
    let plain = names("0.13.0", Algorithm::Sha256, "0", SIZE, &Prompt::new(&TOKENS));
    let plain: Vec<Value> = plain.into_iter().map(Value::from).collect();
    pair.same(stored_as("0.13.0", &plain, Value::Null, &TOKENS[..16], SIZE));
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    assert_eq!((pair.status().trust, pair.matched()), (Trust::Exact, 4));
}

#[test]
fn s7_audits_of_many_workers_at_a_time_are_bounded() {
    let site = Site::new();
    let options = ReplayOptions { audit: PERIOD, ..ReplayOptions::default() };
    let one = batch(&[stored(&[1], None, &TOKENS[..4])]);
    let two = batch(&[stored(&[2], None, &TOKENS[4..8])]);
    let workers: Vec<WorkerId> = (0..20).map(|n| site.worker(&n.to_string())).collect();
    for &worker in &workers {
        site.scout.follow(worker, options, u64::from(worker.0)).unwrap();
        site.scout.apply(worker, 0, &one).unwrap();
        site.scout.apply(worker, 1, &two).unwrap();
        // When the first one is due is decided by the first word of what time it is.
        site.scout.tick(worker, Duration::ZERO).unwrap();
    }
    let (mut begun, mut later) = (Vec::new(), 0);
    for &worker in &workers {
        let ask = site.scout.tick(worker, PERIOD).unwrap().audit.expect("an audit");
        let (_, progress) = site.scout.replayed(worker, PERIOD, ask.round, 0, &one).unwrap();
        assert_eq!(progress.audited, None);
        match site.status(worker).stage {
            Some(Stage::Auditing) => begun.push((worker, ask)),
            _ => later += 1,
        }
    }
    assert_eq!((begun.len(), later), (8, 12));
    for (worker, ask) in begun {
        let (_, progress) = site.scout.replayed(worker, PERIOD, ask.round, 1, &two).unwrap();
        assert_eq!(found(&progress), (Comparison::Equal, 0, 0));
    }
    let ask = site.scout.tick(workers[19], 2 * PERIOD).unwrap().audit.expect("an audit");
    site.scout.replayed(workers[19], PERIOD, ask.round, 0, &one).unwrap();
    let (_, progress) = site.scout.replayed(workers[19], PERIOD, ask.round, 1, &two).unwrap();
    assert_eq!(found(&progress), (Comparison::Equal, 0, 0), "the others have made room");
}

#[test]
fn s7_recordings_of_real_engines_are_held_rightly_and_leave_nothing_unexplained() {
    let mut files: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for sent in wire_support::drive().into_iter().chain(wire_support::engine()) {
        let (file, seq) = sent.name.rsplit_once(' ').unwrap();
        let batches = files.entry(file.to_owned()).or_default();
        assert_eq!(seq.parse::<usize>().unwrap(), batches.len());
        batches.push(sent.payload);
    }
    assert_eq!(files.len(), 11);
    for (file, batches) in files {
        for copies in [Copies::Count, Copies::Presence] {
            let registration = Registration { copies, ..Registration::new("a", "m") };
            let mut pair = Pair::of(Site::with(Options::default()), registration);
            let (mut equal, mut changes) = (0, 0);
            let every = (batches.len() / 5).max(1);
            for (n, payload) in batches.iter().enumerate() {
                pair.deliver(payload.clone(), payload.clone());
                let status = pair.status();
                assert_eq!(status.unexplained.unknown, 0, "{file} batch {n}");
                changes = changes.max(status.unexplained.changes);
                if n % every == every - 1 && status.trust == Trust::Exact {
                    let progress = pair.audit();
                    assert_eq!(found(&progress), (Comparison::Equal, 0, 0), "{file} batch {n}");
                    equal += 1;
                }
            }
            let status = pair.status();
            let is_blind = status.trust == Trust::Degraded(Reason::ExtrasHidden);
            println!("{file}: {equal} audits, {changes} changes, {:?}", status.trust);
            assert!(equal >= 3 || is_blind, "{file}: {:?} {:?}", status.trust, status.audit);
        }
    }
}
