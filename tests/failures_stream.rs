//! What a stream must survive, row by row; the rows that need no socket.

mod stream_support;

use std::time::Duration;

use kvscout::ingest::sequencer::{Arrival, Ended, Flow, Step};
use kvscout::ingest::{Reason, ReplayOptions, Sequencer, Trust, Verdict};
use stream_support::{Fault, Published, World, tight};

const NOW: Duration = Duration::ZERO;

fn degraded(world: &World) -> Option<Reason> {
    world.sequencer.trust().reason()
}

#[test]
fn s1_a_lost_batch_is_replayed_before_what_was_held_back() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.publish_many(5);
    world.lose();
    world.deliver_all();
    assert_eq!((world.asked(), world.applied.len()), (Some(4), 5), "from the last one on");
    assert_eq!(world.sequencer.trust(), Trust::Syncing);
    assert_eq!(world.sequencer.held_back().0, 4);
    world.settle();
    world.check_complete();
    let counters = world.sequencer.counters();
    assert_eq!((counters.gaps, counters.rounds, counters.missing), (1, 1, 0));
    assert_eq!(counters.replayed, 2, "the lost one, and one to meet what was held back");
}

#[test]
fn s2_a_buffer_that_reaches_no_further_degrades_until_the_worker_clears() {
    let mut world = World::new(ReplayOptions::default(), 10);
    world.publish_many(5);
    world.deliver_all();
    world.flap(50);
    world.publish();
    world.settle();
    assert_eq!(degraded(&world), Some(Reason::Gap));
    let applied: Vec<_> = world.applied.iter().map(|batch| batch.seq).collect();
    let what_there_was: Vec<_> = (0..5).chain(46..56).collect();
    assert_eq!(applied, what_there_was, "what could be had is applied all the same");
    assert_eq!(world.sequencer.counters().missing, 41);
    world.sequencer.cleared();
    assert_eq!(world.sequencer.trust(), Trust::Exact);
}

#[test]
fn s2_a_new_incarnation_heals() {
    let mut world = World::new(ReplayOptions::default(), 10);
    world.publish_many(5);
    world.deliver_all();
    world.flap(50);
    world.settle();
    assert_eq!(degraded(&world), Some(Reason::Gap));
    world.restart();
    world.publish_many(3);
    world.settle();
    world.check_complete();
}

#[test]
fn s3_without_a_replay_source_a_gap_degrades_at_once_and_restarts_are_found() {
    let mut sequencer = Sequencer::without_replay();
    let mut hand_in = |seq: u64, clock: f64| {
        let payload = clock.to_be_bytes();
        let arrival = Arrival { seq, timestamp: Some(clock), payload: &payload };
        let verdict = sequencer.live(NOW, arrival);
        let steps: Vec<_> = std::iter::from_fn(|| sequencer.next_step()).collect();
        (verdict, steps, sequencer.trust())
    };
    hand_in(0, 1.0);
    let gap = Trust::Degraded(Reason::Gap);
    let apply = |seq| vec![Step::Apply { seq }];
    assert_eq!(hand_in(4, 2.0), (Verdict::Gap { missing: 3 }, apply(4), gap));
    let anew = vec![Step::StartOver, Step::Apply { seq: 0 }];
    assert_eq!(hand_in(0, 3.0), (Verdict::Restart, anew, Trust::Exact));
}

#[test]
fn s4_a_late_joiner_replays_from_0() {
    let mut world = World::new(ReplayOptions::default(), 10_000);
    world.publish_many(900);
    (0..899).for_each(|_| world.lose());
    world.deliver();
    assert_eq!((world.asked(), world.applied.len()), (Some(0), 0));
    assert_eq!(world.sequencer.trust(), Trust::Syncing);
    world.settle();
    world.check_complete();
}

#[test]
fn s4_a_late_joiner_of_an_idle_engine_replays_once_the_link_is_up() {
    let mut world = World::new(ReplayOptions::default(), 10_000);
    world.publish_many(900);
    (0..900).for_each(|_| world.lose());
    world.flap(0);
    world.deliver_all();
    assert_eq!(world.asked(), Some(0));
    world.settle();
    world.check_complete();
}

#[test]
fn s5_falling_numbers_are_rejected_and_checked() {
    let mut world = World::in_step(ReplayOptions::default(), 4);
    // A second worker that never saw them: nothing to compare with.
    let mut late = World::new(ReplayOptions::default(), 10_000);
    late.published = world.published.clone();
    for seq in [3, 2, 1] {
        let batch = world.published[seq].clone();
        late.hand_in(&batch);
        world.hand_in(&batch);
    }
    assert_eq!(world.applied.len(), 4);
    assert_eq!((late.applied.len(), late.asked()), (0, Some(0)));
    late.settle();
    late.check_complete();
}

#[test]
fn s6_repeated_batches_are_applied_once() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.repeat(0);
    world.repeat(3);
    world.publish_many(3);
    world.lose();
    world.deliver_all();
    world.repeat(0);
    world.settle();
    world.repeat(1);
    world.check_complete();
    assert_eq!(world.sequencer.counters().duplicates, 4);
    assert_eq!(world.start_overs, 0);
}

#[test]
fn s8_cut_and_holed_replays_go_on_from_what_is_contiguous() {
    let mut world = World::new(ReplayOptions::default(), 10_000);
    world.publish_many(1000);
    (0..999).for_each(|_| world.lose());
    world.deliver();
    let mut from = Vec::new();
    for fault in [Fault::Cut(2), Fault::Hole(300, 50), Fault::Hole(200, 500), Fault::Cut(100)] {
        from.push(world.asked().unwrap());
        world.serve(fault);
        world.deliver_replays();
        assert_eq!(world.sequencer.trust(), Trust::Syncing, "{fault:?}");
    }
    assert_eq!(from, [0, 1, 300, 499], "each from the last contiguous one");
    world.settle();
    world.check_complete();
    assert_eq!(world.sequencer.counters().missing, 0);
}

#[test]
fn s8_rounds_are_bounded_and_what_was_held_back_is_applied() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.publish_many(5);
    world.lose();
    world.deliver_all();
    let mut waits = Vec::new();
    while world.asked().is_some() {
        world.serve(Fault::Cut(0));
        world.deliver_replays();
        if let (Some(at), true) = (world.sequencer.wake_at(), world.asked().is_none()) {
            waits.push(at - world.now);
            if degraded(&world).is_none() {
                world.pass(at - world.now);
            }
        }
    }
    let options = ReplayOptions::default();
    assert_eq!(world.sequencer.counters().rounds, u64::from(options.max_fruitless));
    assert!(waits[0] >= options.backoff / 2 && waits[3] >= options.backoff * 4);
    assert_eq!(degraded(&world), Some(Reason::Gap));
    assert_eq!(world.sequencer.as_of(), Some(9));
    assert_eq!(world.applied.len(), 9);
    // The source works again: the buffer reaches back to 0, so everything can be had anew.
    world.settle();
    world.check_complete();
    assert_eq!(world.sequencer.counters().rebuilt, 1);
}

#[test]
fn s8_a_hole_that_stays_is_stepped_over_after_its_second_showing() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    // Its encoding failed: the number is gone for good.
    world.publish_many(5);
    world.published.remove(5);
    world.lose();
    world.deliver_all();
    world.settle();
    let applied: Vec<_> = world.applied.iter().map(|batch| batch.seq).collect();
    assert_eq!(applied, [0, 1, 2, 3, 4, 6, 7, 8, 9]);
    assert_eq!(degraded(&world), Some(Reason::Gap));
}

#[test]
fn s8_answers_of_an_older_round_change_nothing() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.flap(3);
    world.deliver_all();
    let payload = world.published[4].payload();
    let arrival = Arrival { seq: 5, timestamp: Some(9.0), payload: &payload };
    assert_eq!(world.sequencer.replayed(NOW, 0, arrival), Flow::Stop);
    world.sequencer.replay_ended(NOW, 0, Ended::Marker);
    assert_eq!(world.sequencer.next_step(), None);
    assert_eq!(world.sequencer.counters().stale, 1);
    assert_eq!(world.sequencer.trust(), Trust::Syncing);
    world.settle();
    world.check_complete();
}

/// In step up to batch 5, with batch 3 missing, and the time at which the next attempt to rebuild comes.
fn given_up() -> (World, Duration) {
    let mut world = World::in_step(ReplayOptions::default(), 3);
    world.publish_many(3);
    world.lose();
    world.deliver_all();
    while degraded(&world).is_none() {
        world.serve(Fault::Cut(0));
        world.deliver_replays();
        let wait = world.sequencer.wake_at().map_or(Duration::ZERO, |at| at - world.now);
        if degraded(&world).is_none() {
            world.pass(wait);
        }
    }
    let at = world.sequencer.wake_at().expect("it tries to rebuild");
    (world, at)
}

#[test]
fn s8_answers_of_an_older_round_do_not_end_a_rebuild() {
    let (mut world, at) = given_up();
    world.pass(at - world.now);
    assert_eq!(world.asked(), Some(0));
    let (stale, payload) = (world.sequencer.counters().stale, world.published[5].payload());
    let arrival = Arrival { seq: 5, timestamp: Some(6.0), payload: &payload };
    assert_eq!(world.sequencer.replayed(world.now, 0, arrival), Flow::Stop);
    assert_eq!(world.sequencer.counters().stale, stale + 1);
    world.serve(Fault::None);
    world.deliver_replays();
    world.check_complete();
    assert_eq!(world.sequencer.counters().rebuilt, 1);
}

#[test]
fn nothing_is_asked_before_its_time() {
    let mut world = World::in_step(ReplayOptions::default(), 3);
    world.publish_many(3);
    world.lose();
    world.deliver_all();
    world.serve(Fault::Cut(0));
    world.deliver_replays();
    let waits_for_a_round = (world, "the next round");
    let waits_for_a_rebuild = (given_up().0, "a rebuild");
    for (mut world, what) in [waits_for_a_round, waits_for_a_rebuild] {
        let at = world.sequencer.wake_at().expect(what);
        let early = at - world.now - Duration::from_nanos(1);
        world.pass(early);
        assert_eq!((world.asked(), world.sequencer.wake_at()), (None, Some(at)), "{what}");
        world.pass(Duration::from_nanos(1));
        assert!(world.asked().is_some(), "{what}");
    }
}

#[test]
fn s8_a_replay_that_contradicts_what_came_live_is_asked_again() {
    let mut world = World::in_step(ReplayOptions::default(), 2);
    // Of the same clock, so that only the bytes tell.
    let leftover = Published { incarnation: 9, seq: 3, timestamp: 4 };
    world.hand_in(&leftover);
    assert_eq!(world.sequencer.held_back().0, 1);
    world.publish_many(3);
    (0..3).for_each(|_| world.forget_newest_live());
    world.settle();
    world.check_complete();
    assert_eq!(world.start_overs, 0);
}

#[test]
fn l2_leftovers_of_a_lost_link_are_not_taken_for_news() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.publish_many(2);
    world.lose_link(2);
    world.deliver_all();
    assert_eq!((world.applied.len(), world.sequencer.held_back().0), (5, 0));
    assert_eq!(world.sequencer.trust(), Trust::Syncing);
    world.flap(0);
    world.settle();
    world.check_complete();
}

#[test]
fn s11_a_flood_during_a_replay_is_bounded_and_asked_for_again() {
    let mut world = World::new(ReplayOptions::default(), usize::MAX);
    world.publish_many(2);
    world.lose();
    for _ in 0..100_000 {
        world.publish();
        world.deliver();
    }
    let counters = world.sequencer.counters();
    assert!(counters.overflows >= 5, "{counters:?}");
    assert_eq!(
        world.sequencer.trust(),
        Trust::Degraded(Reason::Gap),
        "batches came and were dropped"
    );
    world.settle();
    world.check_complete();
    assert_eq!(world.sequencer.trust(), Trust::Exact, "they came again");
}

#[test]
fn s11_bytes_are_bounded_too() {
    let mut world = World::new(tight(), usize::MAX);
    world.publish();
    world.lose();
    let payload = [0; 24 * 12 + 1];
    let arrival = Arrival { seq: 1, timestamp: Some(1.0), payload: &payload };
    world.sequencer.live(NOW, arrival);
    assert_eq!(world.sequencer.held_back(), (0, 0));
    assert_eq!(world.sequencer.counters().overflows, 1);
    assert_eq!(world.sequencer.trust(), Trust::Degraded(Reason::Gap));
}

#[test]
fn s12_the_largest_number_is_data() {
    let mut sequencer = Sequencer::with_replay(ReplayOptions::default(), 1);
    let [before, last, anew] = [1_u64, 2, 3].map(u64::to_be_bytes);
    fn arrival(seq: u64, payload: &[u8]) -> Arrival<'_> {
        Arrival { seq, timestamp: Some(1.0), payload }
    }
    sequencer.live(NOW, arrival(u64::MAX, &last));
    let steps: Vec<_> = std::iter::from_fn(|| sequencer.next_step()).collect();
    assert_eq!(steps, [Step::Ask { round: 1, from: 0 }]);
    // Twice the same head: the buffer reaches no further.
    assert_eq!(sequencer.replayed(NOW, 1, arrival(u64::MAX - 1, &before)), Flow::Stop);
    sequencer.tick(Duration::from_secs(1));
    assert_eq!(sequencer.next_step(), Some(Step::Ask { round: 2, from: 0 }));
    assert_eq!(sequencer.replayed(NOW, 2, arrival(u64::MAX - 1, &before)), Flow::Continue);
    assert_eq!(sequencer.next_step(), Some(Step::Apply { seq: u64::MAX - 1 }));
    assert_eq!(sequencer.replayed(NOW, 2, arrival(u64::MAX, &last)), Flow::Stop);
    while sequencer.next_step().is_some() {}
    assert_eq!(sequencer.as_of(), Some(u64::MAX));
    assert_eq!(sequencer.trust().reason(), Some(Reason::MissedStart));
    // There is no number after it; the next batch can only be another publisher's.
    let restarted = Arrival { seq: 0, timestamp: Some(2.0), payload: &anew };
    assert_eq!(sequencer.live(NOW, restarted), Verdict::Restart);
    assert_eq!(sequencer.next_step(), Some(Step::StartOver));
}

#[test]
fn l1_a_restart_forgets_before_its_first_batch_is_applied() {
    let mut world = World::in_step(ReplayOptions::default(), 900);
    world.publish();
    world.lose();
    world.restart();
    world.publish();
    let fresh = Published { incarnation: 1, seq: 0, timestamp: 5000 };
    world.hand_in(&fresh);
    assert_eq!((&world.applied[..], world.start_overs), (&[fresh][..], 1));
    assert!(world.is_exact());
}

#[test]
fn l2_a_restart_that_has_overtaken_is_found_by_the_batch_it_repeats() {
    let mut world = World::in_step(ReplayOptions::default(), 900);
    world.restart();
    world.publish_many(950);
    (0..950).for_each(|_| world.forget_newest_live());
    world.deliver_all();
    assert_eq!(world.asked(), Some(899));
    world.settle();
    assert_eq!(world.start_overs, 1);
    world.check_complete();
}

#[test]
fn l2_a_restart_that_has_not_come_so_far_is_found_by_what_it_does_not_know() {
    let mut world = World::in_step(ReplayOptions::default(), 900);
    world.restart();
    world.publish_many(3);
    (0..3).for_each(|_| world.forget_newest_live());
    world.deliver_all();
    world.settle();
    assert_eq!(world.start_overs, 1);
    world.check_complete();
}

#[test]
fn l2_an_equal_batch_proves_that_the_publisher_lives_on() {
    let mut world = World::in_step(ReplayOptions::default(), 900);
    world.flap(0);
    world.deliver_all();
    assert_eq!(world.sequencer.trust(), Trust::Syncing, "until it is proven");
    world.settle();
    assert_eq!((world.start_overs, world.applied.len()), (0, 900));
    assert!(world.is_exact());
}

#[test]
fn l7_what_was_published_before_the_subscription_is_replayed() {
    let mut world = World::new(ReplayOptions::default(), 10_000);
    world.flap(3);
    world.deliver_all();
    world.publish_many(2);
    world.settle();
    world.check_complete();
}

#[test]
fn l8_each_of_several_gaps_is_closed() {
    let mut world = World::in_step(ReplayOptions::default(), 3);
    for _ in 0..5 {
        world.publish_many(6);
        (0..2).for_each(|_| world.lose());
        (0..2).for_each(|_| world.deliver());
        world.lose();
    }
    world.publish();
    world.settle();
    world.check_complete();
}

/// A worker that goes on from batch 899 of an incarnation, and knows nothing else of it.
fn resumed(incarnation: u64) -> World {
    let mut world = World::new(ReplayOptions::default(), 10_000);
    world.publish_many(900);
    (0..900).for_each(|_| world.lose());
    let applied = world.published.clone();
    let last = applied[899].payload();
    world.sequencer.resume(899, xxhash_rust::xxh3::xxh3_64(&last), applied[899].timestamp as f64);
    world.applied = applied;
    for _ in 0..incarnation {
        world.restart();
    }
    assert_eq!((world.sequencer.trust(), world.sequencer.as_of()), (Trust::Syncing, Some(899)));
    world
}

#[test]
fn a_resumed_worker_asks_from_its_last_batch_on_once_the_link_is_up() {
    for lost in [0, 30] {
        let mut world = resumed(0);
        world.flap(lost);
        world.deliver_all();
        assert_eq!(world.asked(), Some(899));
        assert_eq!(world.sequencer.trust(), Trust::Syncing);
        world.settle();
        world.check_complete();
        assert_eq!(world.start_overs, 0);
    }
}

#[test]
fn a_resumed_worker_asks_when_a_batch_comes_even_if_it_is_the_next_one() {
    let mut world = resumed(0);
    world.publish();
    world.deliver_all();
    assert_eq!((world.asked(), world.applied.len()), (Some(899), 900));
    world.settle();
    world.check_complete();
    let mut world = resumed(0);
    let last = world.published[899].clone();
    world.hand_in(&last);
    assert_eq!(world.asked(), Some(899), "what it saw was the last of what is to be had");
    world.settle();
    world.check_complete();
}

#[test]
fn a_resumed_worker_starts_over_when_its_publisher_did() {
    for published in [3, 950] {
        let mut world = resumed(1);
        world.publish_many(published);
        world.settle();
        world.check_complete();
        assert_eq!(world.start_overs, 1);
    }
}

#[test]
fn a_resumed_worker_whose_source_does_not_answer_is_given_up() {
    let mut world = resumed(0);
    world.publish();
    world.deliver_all();
    while world.sequencer.trust() == Trust::Syncing {
        world.serve(Fault::Cut(0));
        world.deliver_replays();
        world.pass(Duration::from_secs(10));
    }
    assert_eq!(degraded(&world), Some(Reason::Gap));
}

#[test]
fn a_resumed_worker_that_had_missed_something_is_built_anew() {
    let mut world = resumed(0);
    world.sequencer.degrade(Reason::Gap);
    world.flap(2);
    world.settle();
    world.check_complete();
    assert_eq!(world.sequencer.counters().rebuilt, 1);
}

#[test]
fn a_resumed_worker_without_a_replay_source_is_proven_by_what_comes() {
    let digest = xxhash_rust::xxh3::xxh3_64(b"five");
    let hand_in = |seq: u64, clock: f64, payload: &[u8]| {
        let mut sequencer = Sequencer::without_replay();
        sequencer.resume(5, digest, 10.0);
        assert_eq!(sequencer.trust(), Trust::Syncing);
        let verdict = sequencer.live(NOW, Arrival { seq, timestamp: Some(clock), payload });
        while sequencer.next_step().is_some() {}
        (verdict, sequencer.trust())
    };
    let gap = Trust::Degraded(Reason::Gap);
    let start = Trust::Degraded(Reason::MissedStart);
    assert_eq!(hand_in(6, 11.0, b"six"), (Verdict::Next, Trust::Exact));
    assert_eq!(hand_in(5, 10.0, b"five"), (Verdict::Duplicate, Trust::Exact));
    assert_eq!(hand_in(6, 9.0, b"six"), (Verdict::Next, gap), "its clock is of another life");
    assert_eq!(hand_in(9, 11.0, b"nine"), (Verdict::Gap { missing: 3 }, gap));
    assert_eq!(hand_in(5, 11.0, b"else"), (Verdict::Restart, start));
    assert_eq!(hand_in(0, 11.0, b"zero"), (Verdict::Restart, Trust::Exact));
    let late = Trust::Degraded(Reason::OutOfOrder);
    assert_eq!(hand_in(4, 9.0, b"four"), (Verdict::Late, late));
}

#[test]
fn what_a_worker_resumes_from_is_what_another_one_applied_last() {
    let world = World::in_step(ReplayOptions::default(), 3);
    let mark = world.sequencer.watermark().unwrap();
    let clock = f64::from_bits(mark.timestamp);
    assert_eq!((mark.seq, clock), (2, world.published[2].timestamp as f64));
    assert_eq!(mark.digest, xxhash_rust::xxh3::xxh3_64(&world.published[2].payload()));
    assert_eq!(Sequencer::without_replay().watermark(), None);
}

#[test]
fn a_stream_that_gets_a_replay_source_asks_for_the_next_gap() {
    let mut world = World::new(ReplayOptions::default(), 10_000);
    world.sequencer = Sequencer::without_replay();
    world.publish_many(3);
    world.deliver_all();
    world.sequencer.follow(ReplayOptions::default(), 7);
    world.publish_many(2);
    world.lose();
    world.deliver_all();
    assert_eq!(world.asked(), Some(2));
    world.settle();
    world.check_complete();
}
