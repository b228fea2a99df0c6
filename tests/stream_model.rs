//! Arbitrary schedules of faults: a worker that says `exact` is exact, and ends so where the
//! publisher's buffer allows it.

mod stream_support;

use std::time::Duration;

use proptest::prelude::*;
use stream_support::{Fault, World, tight};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whoever_says_exact_is_exact(schedule in prop::collection::vec(any::<u8>(), 0..400)) {
        stream_support::run(&schedule);
    }
}

#[test]
fn audits_go_on_where_the_buffer_has_moved_on() {
    let mut world = World::new(tight(), 8);
    for _ in 0..200 {
        world.publish_many(3);
        world.deliver_all();
        world.pass(Duration::from_secs(7));
        world.serve(Fault::None);
        world.deliver_replays();
        world.settle();
    }
    let counters = world.sequencer.counters();
    assert!(world.dropped > 500 && world.start_overs == 0, "{counters:?}");
    assert!(counters.audits_anchored > 50 && counters.audits_differed == 0, "{counters:?}");
    world.check_complete();
}
