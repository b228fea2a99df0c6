//! What numbers, clocks and bytes say of a stream whose missed batches cannot be asked for again.

mod lane_support;

use std::time::Duration;

use kvscout::ingest::sequencer::{Arrival, SequencerCounters};
use kvscout::ingest::{Reason, Sequencer, Verdict};
use lane_support::{Lane, Totals};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

/// A batch; its bytes are its number and its clock.
fn hand_in(sequencer: &mut Sequencer, seq: u64, clock: f64) -> Verdict {
    let payload = [seq.to_be_bytes(), clock.to_be_bytes()].concat();
    give(sequencer, seq, Some(clock), &payload)
}

fn give(sequencer: &mut Sequencer, seq: u64, timestamp: Option<f64>, payload: &[u8]) -> Verdict {
    let verdict = sequencer.live(Duration::ZERO, Arrival { seq, timestamp, payload });
    while sequencer.next_step().is_some() {}
    verdict
}

fn feed(sequencer: &mut Sequencer, batches: &[(u64, f64)]) -> Vec<Verdict> {
    batches.iter().map(|&(seq, clock)| hand_in(sequencer, seq, clock)).collect()
}

fn fed(batches: &[(u64, f64)]) -> (Sequencer, Vec<Verdict>) {
    let mut sequencer = Sequencer::without_replay();
    let verdicts = feed(&mut sequencer, batches);
    (sequencer, verdicts)
}

#[test]
fn consecutive_batches_from_zero_are_sound() {
    let (sequencer, verdicts) = fed(&[(0, 1.0), (1, 2.0)]);
    assert_eq!(verdicts, [Verdict::Next; 2]);
    assert_eq!((sequencer.unsound(), sequencer.as_of()), (None, Some(1)));
}

#[test]
fn a_first_number_above_zero_means_a_missed_start() {
    let (sequencer, _) = fed(&[(3, 1.0)]);
    assert_eq!(sequencer.unsound(), Some(Reason::MissedStart));
    assert_eq!(sequencer.counters().missing, 3);
}

#[test]
fn a_gap_degrades_until_the_worker_clears_itself() {
    let (mut sequencer, verdicts) = fed(&[(0, 1.0), (4, 2.0)]);
    assert_eq!(verdicts[1], Verdict::Gap { missing: 3 });
    assert_eq!(sequencer.unsound(), Some(Reason::Gap));
    sequencer.cleared();
    assert_eq!(sequencer.unsound(), None);
}

#[test]
fn a_gap_is_said_after_a_missed_start_because_it_may_hide_removals() {
    let (sequencer, _) = fed(&[(1, 1.0), (3, 2.0)]);
    assert_eq!(sequencer.unsound(), Some(Reason::Gap));
}

#[test]
fn a_repeated_batch_is_dropped() {
    let (_, verdicts) = fed(&[(0, 1.0), (1, 2.0), (0, 1.0), (1, 2.0)]);
    assert_eq!(verdicts[2..], [Verdict::Duplicate; 2]);
}

#[test]
fn batches_in_falling_order_are_late_and_not_a_restart() {
    let (_, verdicts) = fed(&[(3, 3.0), (2, 2.0), (1, 1.0)]);
    assert_eq!(verdicts[1..], [Verdict::Late; 2]);
}

#[test]
fn another_batch_under_an_applied_number_is_a_restart() {
    let (sequencer, verdicts) = fed(&[(0, 1.0), (1, 2.0), (2, 3.0), (0, 9.0), (1, 9.5)]);
    assert_eq!(verdicts[3..], [Verdict::Restart, Verdict::Next]);
    assert_eq!((sequencer.unsound(), sequencer.counters().restarts), (None, 1));
}

#[test]
fn a_lower_number_with_a_newer_clock_is_a_restart_that_missed_its_start() {
    let (sequencer, verdicts) = fed(&[(0, 1.0), (900, 2.0), (500, 9.0)]);
    assert_eq!(verdicts[2], Verdict::Restart);
    assert_eq!(sequencer.unsound(), Some(Reason::MissedStart));
}

#[test]
fn an_unreadable_batch_takes_its_place_but_proves_no_restart() {
    let (mut sequencer, _) = fed(&[(0, 1.0)]);
    assert_eq!(give(&mut sequencer, 1, None, b"seven"), Verdict::Next);
    assert_eq!(give(&mut sequencer, 0, None, b"eight"), Verdict::Late);
    assert_eq!(hand_in(&mut sequencer, 2, 2.0), Verdict::Next);
    assert_eq!(sequencer.counters().restarts, 0);
}

#[test]
fn the_largest_number_is_data_and_does_not_overflow() {
    let (_, verdicts) = fed(&[(u64::MAX - 1, 1.0), (u64::MAX, 2.0), (0, 3.0)]);
    assert_eq!(verdicts, [Verdict::Next, Verdict::Next, Verdict::Restart]);
}

#[test]
fn numbers_however_far_apart_do_not_overflow_what_is_counted() {
    let (sequencer, _) = fed(&[(u64::MAX, 1.0), (0, 2.0), (u64::MAX, 3.0)]);
    assert_eq!(sequencer.counters().missing, u64::MAX);
}

#[test]
fn a_batch_that_is_too_old_to_compare_may_be_of_another_life() {
    let mut sequencer = Sequencer::without_replay();
    (0..5000).for_each(|seq| assert_eq!(hand_in(&mut sequencer, seq, seq as f64), Verdict::Next));
    assert_eq!(hand_in(&mut sequencer, 0, 0.0), Verdict::Late);
    assert_eq!(sequencer.unsound(), Some(Reason::OutOfOrder));
}

#[test]
fn old_numbers_in_a_row_are_a_restart_under_an_older_clock() {
    let mut sequencer = Sequencer::without_replay();
    let clock = |seq: u64| 1e9 + seq as f64;
    (0..5000).for_each(|seq| assert_eq!(hand_in(&mut sequencer, seq, clock(seq)), Verdict::Next));
    let verdicts = feed(&mut sequencer, &[(0, 5.0), (1, 6.0), (2, 7.0), (3, 8.0)]);
    let late = Verdict::Late;
    assert_eq!(verdicts, [late, late, Verdict::Restart, Verdict::Next]);
    assert_eq!(sequencer.unsound(), Some(Reason::MissedStart), "its first two were dropped");
}

#[test]
fn a_clock_that_is_no_number_is_no_clock() {
    let (mut sequencer, _) = fed(&[(0, 1.0)]);
    assert_eq!(hand_in(&mut sequencer, 2000, f64::INFINITY), Verdict::Gap { missing: 1999 });
    assert_eq!(hand_in(&mut sequencer, 5, 2.0), Verdict::Restart, "newer than the last clock");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn it_is_judged_as_the_literal_rules_say(
        batches in prop::collection::vec((0_u64..12, 0_u8..12, 0_u8..3, any::<bool>()), 0..60),
    ) {
        let (mut lane, mut sequencer) = (Lane::default(), Sequencer::without_replay());
        for (seq, clock, variant, readable) in batches {
            let payload = [seq as u8, variant];
            let digest = xxh3_64(&payload);
            let timestamp = readable.then_some(f64::from(clock));
            let expected = match timestamp {
                Some(timestamp) => lane.judge(seq, timestamp, digest),
                None => lane.judge_unreadable(seq, digest),
            };
            prop_assert_eq!(give(&mut sequencer, seq, timestamp, &payload), expected);
            prop_assert_eq!(sequencer.unsound(), lane.unsound);
            prop_assert_eq!(sequencer.as_of(), lane.as_of());
            let SequencerCounters { batches, gaps, missing, duplicates, late, restarts, .. } =
                sequencer.counters();
            let totals = Totals { batches, gaps, missing, duplicates, late, restarts };
            prop_assert_eq!(totals, lane.totals);
        }
    }
}
