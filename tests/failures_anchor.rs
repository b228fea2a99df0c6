//! Audits where the engine's buffer does not reach back to batch 0: they begin with what was held as of a later one.

mod audit_support;
mod failures_support;

use std::rc::Rc;
use std::sync::{Arc, Mutex};

use audit_support::{PERIOD, Pair, TOKENS, anchored, found};
use failures_support::{Site, batch, removed, stored};
use kvscout::hash::content::DigestKey;
use kvscout::ingest::sequencer::{AuditState, Comparison};
use kvscout::ingest::{ReplayOptions, Trust};
use kvscout::scout::{AuditStatus, Mirror, Moved, Options, Registration, Scout};

#[test]
fn s7_where_the_buffer_does_not_reach_back_an_audit_begins_with_what_was_held() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.store(&[2], Some(1), &TOKENS[4..8]);
    pair.buffer.remove(0);
    let progress = pair.attempt();
    assert_eq!((progress.audited, progress.ask, progress.audit), (None, None, None));
    let status = pair.status();
    assert_eq!((status.audit.state, status.trust), (AuditState::Pending, Trust::Exact));
    pair.store(&[3], Some(2), &TOKENS[8..12]);
    // What is held as of batch 1 is what it begins with; that batch proves the publisher.
    let audit = pair.audit_from(1);
    assert_eq!(found(&audit), (Comparison::Equal, 0, 0));
    let AuditStatus { state, as_of, since, .. } = pair.status().audit;
    assert_eq!((state, as_of, since), (AuditState::Ok, Some(2), Some(1)));
    // The next one begins where this one ended, and rests on the same.
    pair.same(removed(&[3], "GPU"));
    pair.buffer.drain(..1);
    assert_eq!(found(&pair.audit_from(2)), (Comparison::Equal, 0, 0));
    let AuditStatus { as_of, since, .. } = pair.status().audit;
    assert_eq!((as_of, since), (Some(3), Some(1)));
    let counters = pair.status().counters;
    assert_eq!((counters.audits_ok, counters.audits_anchored, counters.rebuilt), (2, 2, 0));
    // The next life of its publisher has a buffer of its own.
    pair.buffer = vec![(0, batch(&[stored(&[5], None, &TOKENS[..4])]))];
    pair.site.scout.link(pair.worker, pair.now, false).unwrap();
    let ask = pair.site.scout.link(pair.worker, pair.now, true).unwrap().ask;
    pair.repair(ask);
    assert_eq!((pair.status().trust, pair.status().counters.restarts), (Trust::Exact, 1));
    assert_eq!(pair.status().audit.state, AuditState::Pending);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    assert_eq!(pair.status().audit.since, None);
    pair.site.bystander_is_unchanged();
}

#[test]
fn s7_an_audit_goes_on_from_the_last_one_that_began_at_batch_0() {
    let mut pair = Pair::new();
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.store(&[1, 2, 3], None, &TOKENS[..12]);
    pair.store(&[9], Some(8), &TOKENS[..4]);
    assert_eq!(found(&pair.audit()), (Comparison::Equal, 0, 0));
    pair.same(removed(&[2], "GPU"));
    pair.same(removed(&[2], "GPU"));
    pair.buffer.drain(..2);
    let ask = pair.due().expect("an audit");
    assert_eq!(ask.from, 0);
    let rest = pair.serve(ask).audit.expect("from where the last one ended");
    assert_eq!(rest.from, 2);
    assert_eq!(found(&pair.serve(rest)), (Comparison::Equal, 0, 0));
    let AuditStatus { as_of, since, .. } = pair.status().audit;
    assert_eq!((as_of, since), (Some(4), None), "all of it was compared, from the beginning");
}

#[test]
fn s7_a_difference_behind_an_anchor_is_mended() {
    let mut pair = Pair::new();
    // What the anchor has: two copies, a hole, a tier of its own, a chain that waits for its parent.
    pair.store(&[1, 2, 3, 4], None, &TOKENS[..16]);
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.same(removed(&[3], "GPU"));
    pair.store(&[9, 10], Some(8), &TOKENS[..8]);
    pair.buffer.drain(..3);
    assert_eq!(pair.attempt().audit, None);
    // The hole is filled, a copy goes, another chain comes: none of that arrives. What does, never was.
    let (third, other) = (stored(&[3], Some(2), &TOKENS[8..12]), [40, 41, 42, 43]);
    pair.publish(&[], &[third, removed(&[1], "GPU"), stored(&[30], None, &other)]);
    pair.publish(&[stored(&[50], Some(4), &[5, 6, 7, 8]), removed(&[10], "GPU")], &[]);
    pair.go_on();
    assert_eq!((pair.matched(), pair.status().trust), (2, Trust::Exact));
    let progress = pair.audit_from(3);
    assert_eq!(found(&progress), (Comparison::Different, 3, 2));
    assert!(progress.audited.unwrap().mended);
    assert_eq!((progress.ask, progress.audit), (None, None));
    let status = pair.status();
    assert_eq!((status.trust, status.as_of, pair.matched()), (Trust::Exact, Some(6), 4));
    assert_eq!(pair.site.matched("a", &other), 1);
    let counters = status.counters;
    assert_eq!((counters.audits_differed, counters.mended, counters.rebuilt), (1, 1, 0));
    assert_eq!((status.audit.state, status.audit.missing), (AuditState::Pending, 3));
    // Copies are as many as the engine has.
    for (hash, unknown) in [(2, 0), (2, 0), (1, 0), (1, 1), (50, 2), (10, 2), (9, 2)] {
        pair.same(removed(&[hash], "GPU"));
        assert_eq!(pair.status().events.unknown_removals, unknown, "{hash}");
    }
    assert_eq!(found(&pair.audit_from(6)), (Comparison::Equal, 0, 0));
    pair.site.bystander_is_unchanged();
}

/// Whether each step said everything that it changed, in order.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<bool>>);

impl Mirror for Told {
    fn moved(&self, moved: Moved) {
        self.0.lock().unwrap().push(moved.is_whole);
    }
}

#[test]
fn s7_whoever_keeps_the_same_elsewhere_hears_that_a_worker_was_mended() {
    let told = Arc::new(Told::default());
    let options = Options { mirror: Some(told.clone()), ..Options::default() };
    let mut pair = Pair::of(Site::with(options), Registration::new("a", "m"));
    pair.store(&[1, 2, 3, 4], None, &TOKENS[..16]);
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.buffer.drain(..1);
    assert_eq!(pair.attempt().audit, None);
    pair.publish(&[], &[removed(&[4], "GPU")]);
    pair.go_on();
    told.0.lock().unwrap().clear();
    let progress = pair.audit_from(1);
    assert!(progress.audited.unwrap().mended);
    assert_eq!(told.0.lock().unwrap()[..], [false]);
    pair.store(&[9], Some(2), &TOKENS[..4]);
    assert_eq!(told.0.lock().unwrap()[..], [false, true]);
}

#[test]
fn s7_what_was_wrong_before_an_anchor_is_carried_on_and_said_to_be_unseen() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.publish(&[], &[stored(&[2], Some(1), &TOKENS[4..8])]);
    pair.go_on();
    pair.buffer.drain(..2);
    pair.attempt();
    pair.go_on();
    assert_eq!(found(&pair.audit_from(2)), (Comparison::Equal, 0, 0));
    assert_eq!((pair.matched(), pair.status().audit.since), (1, Some(2)));
}

#[test]
fn s7_an_anchor_that_the_buffer_has_left_is_replaced_and_looked_at_before_that_happens_again() {
    let mut pair = Pair::new();
    let at = |seconds: u64| {
        let event = stored(&[seconds + 1], None, &[seconds as u32; 4]);
        failures_support::encode(&serde_json::json!([seconds as f64, [event], 0]))
    };
    let publish = |pair: &mut Pair, seconds: u64| pair.deliver(at(seconds), at(seconds));
    (0..100).for_each(|n| publish(&mut pair, n * 2));
    pair.buffer.drain(..40);
    // The buffer spans 118 seconds: the next one is due after 29 to 59 of them.
    let wake_at = pair.attempt().wake_at.expect("the next one");
    let wait = (wake_at - pair.now).as_secs_f64();
    assert!((29.0..=59.0).contains(&wait), "{wait}");
    (100..130).for_each(|n| publish(&mut pair, n * 2));
    pair.buffer.drain(..30);
    pair.now = wake_at;
    let ask = pair.site.scout.tick(pair.worker, pair.now).unwrap().audit.expect("an audit");
    assert_eq!(ask.from, 99);
    assert_eq!(found(&pair.serve(ask)), (Comparison::Equal, 0, 0));
    // By the next period it has moved on too far, and so on.
    (130..300).for_each(|n| publish(&mut pair, n * 2));
    pair.buffer.drain(..170);
    let progress = pair.attempt();
    assert_eq!((progress.audited, progress.audit), (None, None));
    assert!(progress.wake_at.unwrap() - pair.now < PERIOD / 2);
    assert_eq!(pair.status().audit.state, AuditState::Ok, "of the last one");
    assert_eq!(pair.status().audit.since, Some(99));
}

#[test]
fn s7_a_publisher_that_is_another_one_does_not_repeat_the_anchors_batch() {
    let mut pair = Pair::new();
    pair.store(&[1], None, &TOKENS[..4]);
    pair.store(&[2], Some(1), &TOKENS[4..8]);
    pair.buffer.remove(0);
    pair.attempt();
    pair.store(&[3], Some(2), &TOKENS[8..12]);
    // Its engine began anew, unseen, and is where the old one was.
    pair.buffer = (0..3).map(|n| (n, batch(&[stored(&[20 + n], None, &[9; 4])]))).collect();
    let ask = pair.due().expect("an audit");
    let progress = pair.serve(ask);
    assert_eq!((progress.audited, progress.ask.map(|ask| ask.from)), (None, Some(2)));
    pair.repair(progress.ask);
    let status = pair.status();
    assert_eq!((status.trust, status.counters.restarts, pair.matched()), (Trust::Exact, 1, 0));
}

#[test]
fn s7_a_restored_worker_is_audited_from_the_snapshots_watermark() {
    let key = DigestKey::random().unwrap();
    let options = || Options { digest_key: Some(key.clone()), ..Options::default() };
    let mut pair = Pair::of(Site::with(options()), Registration::new("a", "m"));
    // Somebody else's blocks and names are in the snapshot as well.
    let other = pair.site.worker("b");
    pair.site.apply(other, &[stored(&[1, 2, 3], None, &TOKENS[..12])]);
    pair.store(&[1, 2], None, &TOKENS[..8]);
    pair.store(&[1, 2, 3], None, &TOKENS[..12]);
    let snapshot = pair.site.scout.snapshot(0);
    pair.buffer.remove(0);
    // Published while nobody listens.
    let missed = batch(&[removed(&[3], "GPU"), stored(&[7], None, &[7; 4])]);
    pair.buffer.push((2, missed));
    pair.next = 3;
    let site = Rc::get_mut(&mut pair.site).expect("nobody else has it");
    site.scout = Scout::restore(options(), &snapshot).unwrap();
    let replay = ReplayOptions { audit: PERIOD, ..ReplayOptions::default() };
    pair.site.scout.follow(pair.worker, replay, 7).unwrap();
    let ask = pair.site.scout.link(pair.worker, pair.now, true).unwrap().ask;
    pair.repair(ask);
    assert_eq!((pair.status().trust, pair.status().as_of), (Trust::Exact, Some(2)));
    let ask = pair.due().expect("an audit");
    assert_eq!(ask.from, 0, "it is tried");
    let rest = pair.serve(ask).audit.expect("from the watermark");
    assert_eq!(rest.from, 1);
    assert_eq!(found(&pair.serve(rest)), (Comparison::Equal, 0, 0));
    let AuditStatus { as_of, since, .. } = pair.status().audit;
    assert_eq!((as_of, since), (Some(2), Some(1)));
    // And what goes wrong from then on is found and mended.
    pair.publish(&[], &[removed(&[2], "GPU"), removed(&[2], "GPU")]);
    pair.go_on();
    assert_eq!(found(&pair.audit_from(2)), (Comparison::Different, 0, 1));
    assert_eq!((pair.status().trust, pair.matched()), (Trust::Exact, 1));
    assert_eq!(pair.site.matched("b", &TOKENS[..12]), 3);
    pair.site.bystander_goes_on();
}

#[test]
fn s7_anchors_take_no_more_memory_than_they_may() {
    for (anchor_memory, state) in [
        (0, AuditState::Unavailable),
        (1 << 10, AuditState::Unavailable),
        (1 << 20, AuditState::Pending),
    ] {
        let site = Site::with(Options { anchor_memory, ..Options::default() });
        let mut pair = anchored(site.into(), "a");
        assert_eq!(pair.status().audit.state, state, "{anchor_memory}");
        assert_eq!(pair.due().is_some(), state == AuditState::Pending);
    }
}
