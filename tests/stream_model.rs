//! Arbitrary schedules of faults: a worker that says `exact` is exact, and ends so where the
//! publisher's buffer allows it.

mod stream_support;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whoever_says_exact_is_exact(schedule in prop::collection::vec(any::<u8>(), 0..400)) {
        stream_support::run(&schedule);
    }
}
