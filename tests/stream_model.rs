//! Arbitrary schedules of faults: a worker that says `exact` is exact, and ends so where the
//! publisher's buffer allows it.

mod stream_support;

use kvscout::ingest::sequencer::Arrival;
use kvscout::ingest::{Lane, Sequencer};
use proptest::prelude::*;
use std::time::Duration;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whoever_says_exact_is_exact(schedule in prop::collection::vec(any::<u8>(), 0..400)) {
        stream_support::run(&schedule);
    }

    #[test]
    fn without_a_replay_source_it_judges_as_a_lane_does(
        batches in prop::collection::vec((0_u64..12, 0_u8..12, 0_u8..3, any::<bool>()), 0..60),
    ) {
        let mut lane = Lane::default();
        let mut sequencer = Sequencer::without_replay();
        for (seq, clock, variant, readable) in batches {
            let payload = [seq as u8, variant];
            let digest = xxhash_rust::xxh3::xxh3_64(&payload);
            let timestamp = readable.then_some(f64::from(clock));
            let expected = match timestamp {
                Some(timestamp) => lane.judge(seq, timestamp, digest),
                None => lane.judge_unreadable(seq, digest),
            };
            let arrival = Arrival { seq, timestamp, payload: &payload };
            prop_assert_eq!(sequencer.live(Duration::ZERO, arrival), expected);
            while sequencer.next_step().is_some() {}
            prop_assert_eq!(sequencer.unsound(), lane.unsound());
            prop_assert_eq!(sequencer.as_of(), lane.as_of());
            let (ours, theirs) = (sequencer.counters(), lane.counters());
            prop_assert_eq!(
                [ours.batches, ours.gaps, ours.missing, ours.duplicates, ours.late, ours.restarts],
                [
                    theirs.batches,
                    theirs.gaps,
                    theirs.missing,
                    theirs.duplicates,
                    theirs.late,
                    theirs.restarts,
                ]
            );
        }
    }
}
