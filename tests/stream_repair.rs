//! The corners of repairing and auditing a stream: each test was written for a mutation of `ingest::sequencer` that no
//! other one noticed.

mod stream_support;

use std::time::Duration;

use kvscout::ingest::sequencer::{
    Aftermath, Arrival, AuditState, Comparison, Ended, Flow, Held, Stage, Step,
};
use kvscout::ingest::{Reason, ReplayOptions, Sequencer, Trust};
use stream_support::{Fault, Published, World};

const SECOND: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_secs(600);

/// One that has missed its beginning, and gone on.
fn degraded() -> World {
    let mut world = World::new(ReplayOptions::default(), 2);
    world.publish_many(6);
    (0..5).for_each(|_| world.lose());
    world.settle();
    assert_eq!(world.sequencer.unsound(), Some(Reason::MissedStart));
    world
}

/// A sequencer whose every step is looked at; its batches are one byte each, their clock is their number.
struct Lane {
    sequencer: Sequencer,
    now: Duration,
}

impl Lane {
    fn new(options: ReplayOptions) -> Lane {
        Lane { sequencer: Sequencer::with_replay(options, 7), now: Duration::ZERO }
    }

    /// One that is audited, and has applied these numbers.
    fn audited(options: ReplayOptions, last: u64) -> Lane {
        let mut lane = Lane::new(ReplayOptions { audit: PERIOD, ..options });
        (0..=last).for_each(|seq| assert_eq!(lane.live(seq, 0), [Step::Apply { seq }]));
        lane.tick(Duration::ZERO);
        lane
    }

    fn steps(&mut self) -> Vec<Step> {
        std::iter::from_fn(|| self.sequencer.next_step()).collect()
    }

    fn live(&mut self, seq: u64, byte: u8) -> Vec<Step> {
        let arrival = Arrival { seq, timestamp: Some(seq as f64), payload: &[byte] };
        self.sequencer.live(self.now, arrival);
        self.steps()
    }

    fn replayed(&mut self, round: u64, seq: u64, byte: u8) -> (Flow, Vec<Step>) {
        let arrival = Arrival { seq, timestamp: Some(seq as f64), payload: &[byte] };
        let flow = self.sequencer.replayed(self.now, round, arrival);
        (flow, self.steps())
    }

    fn ended(&mut self, round: u64, how: Ended) -> Vec<Step> {
        self.sequencer.replay_ended(self.now, round, how);
        self.steps()
    }

    fn tick(&mut self, time: Duration) -> Vec<Step> {
        self.now += time;
        self.sequencer.tick(self.now);
        self.steps()
    }

    /// The round of the audit that is due after a period.
    fn due(&mut self) -> (u64, u64) {
        match self.tick(PERIOD)[..] {
            [Step::Audit { round, from }] => (round, from),
            ref steps => panic!("{steps:?}"),
        }
    }

    /// One whose buffer has left batch 0 and begins at this one now; what is held as of the last batch was kept.
    fn anchored(last: u64, first: u64) -> Lane {
        let mut lane = Lane::audited(ReplayOptions::default(), last);
        let (round, _) = lane.due();
        assert_eq!(lane.replayed(round, first, 0), (Flow::Stop, vec![Step::Discard, Step::Anchor]));
        lane.sequencer.anchored();
        lane
    }
}

#[test]
fn a_worker_that_can_be_rebuilt_no_more_is_looked_at_again_all_the_same() {
    let world = degraded();
    let counters = world.sequencer.counters();
    assert!(counters.rounds > 8 && counters.rebuilt == 0, "it was tried: {counters:?}");
    assert!(world.sequencer.wake_at().is_some(), "and will be");
}

#[test]
fn attempts_to_rebuild_never_wait_longer_than_they_may() {
    let options = ReplayOptions { rebuild_max: 20 * SECOND, ..ReplayOptions::default() };
    let mut world = World::new(options, 2);
    world.publish_many(6);
    (0..5).for_each(|_| world.lose());
    world.settle();
    let wait = world.sequencer.wake_at().unwrap() - world.now;
    assert!(wait <= 20 * SECOND, "{wait:?} after two hours");
}

#[test]
fn one_round_that_does_not_know_the_last_batch_is_no_new_publisher() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.flap(0);
    world.deliver_all();
    // The end marker alone: an older engine may drop all before it.
    world.serve(Fault::Hole(0, 9));
    world.deliver_replays();
    assert_eq!((world.start_overs, world.applied.len()), (0, 5));
    world.settle();
    world.check_complete();
    assert_eq!(world.start_overs, 0);
}

#[test]
fn what_is_held_back_goes_with_its_link_and_with_an_overflow() {
    let options = ReplayOptions { max_held_batches: 3, ..ReplayOptions::default() };
    let mut world = World::in_step(options, 2);
    world.publish_many(3);
    world.lose();
    world.deliver_all();
    assert_eq!(world.sequencer.held_back().0, 2);
    world.lose_link(0);
    world.deliver_all();
    assert_eq!(world.sequencer.held_back(), (0, 0));
    world.flap(0);
    world.deliver_all();
    world.publish_many(3);
    world.deliver_all();
    assert_eq!(world.sequencer.held_back().0, 3);
    world.publish();
    world.deliver_all();
    assert_eq!(world.sequencer.held_back(), (0, 0), "no hole in the middle of what is held");
    world.settle();
    world.check_complete();
}

#[test]
fn bytes_that_are_not_held_any_more_are_free_and_the_last_one_may_be_used() {
    let options = ReplayOptions { max_held_bytes: 48, ..ReplayOptions::default() };
    let mut world = World::in_step(options, 2);
    for round in 0..4 {
        world.publish_many(3);
        world.lose();
        world.deliver_all();
        assert_eq!(world.sequencer.held_back(), (2, 48), "{round}");
        world.settle();
        world.check_complete();
    }
    assert_eq!(world.sequencer.counters().overflows, 0);
}

#[test]
fn a_clear_leaves_nothing_to_rebuild() {
    let mut world = degraded();
    assert!(world.sequencer.wake_at().is_some());
    world.sequencer.cleared();
    assert_eq!((world.sequencer.wake_at(), world.sequencer.trust()), (None, Trust::Exact));

    let mut lane = Lane::new(ReplayOptions::default());
    lane.live(0, 0);
    lane.sequencer.degrade(Reason::Gap);
    lane.sequencer.link(lane.now, true);
    let round = match lane.steps()[..] {
        [Step::Ask { round, from: 0 }] => round,
        ref steps => panic!("{steps:?}"),
    };
    assert_eq!(lane.replayed(round, 0, 0), (Flow::Continue, vec![]));
    assert_eq!(lane.ended(round, Ended::Marker), []);
    let round = match lane.tick(3600 * SECOND)[..] {
        [Step::Ask { round, from: 0 }] => round,
        ref steps => panic!("{steps:?}"),
    };
    assert_eq!(lane.sequencer.stage(), Some(Stage::Rebuilding));
    lane.sequencer.cleared();
    assert_eq!(lane.sequencer.stage(), Some(Stage::InStep));
    assert_eq!(lane.replayed(round, 0, 0), (Flow::Stop, vec![]), "it is wanted no more");
}

#[test]
fn nothing_is_asked_of_a_publisher_whose_link_is_down() {
    let mut world = degraded();
    world.lose_link(0);
    world.deliver_all();
    assert_eq!(world.sequencer.wake_at(), None);
    world.pass(3 * 3600 * SECOND);
    assert_eq!(world.asked(), None);
}

#[test]
fn batch_0_that_comes_after_all_was_not_missed() {
    let options = ReplayOptions { max_fruitless: 1, ..ReplayOptions::default() };
    let mut world = World::new(options, usize::MAX);
    world.flap(0);
    world.deliver_all();
    world.serve(Fault::Cut(0));
    world.deliver_replays();
    assert_eq!(world.sequencer.unsound(), Some(Reason::MissedStart), "nothing shows otherwise");
    world.publish_many(2);
    world.deliver_all();
    world.check_complete();
}

#[test]
fn numbers_that_fit_are_not_believed_without_the_batch_that_proves_them() {
    let mut world = World::in_step(ReplayOptions::default(), 5);
    world.flap(3);
    world.dropped = 5;
    world.deliver_all();
    for _ in 0..2 {
        world.serve(Fault::None);
        world.deliver_replays();
        assert_eq!(world.applied.len() == 8, world.sequencer.unsound() == Some(Reason::Gap));
        let at = world.sequencer.wake_at();
        world.pass(at.map_or(Duration::ZERO, |at| at.saturating_sub(world.now)));
    }
    assert_eq!((world.applied.len(), world.sequencer.unsound()), (8, Some(Reason::Gap)));
}

#[test]
fn a_batch_that_was_applied_is_known_although_what_came_live_was_contradicted() {
    let mut world = World::in_step(ReplayOptions::default(), 2);
    world.hand_in(&Published { incarnation: 9, seq: 3, timestamp: 4 });
    world.publish_many(3);
    (0..3).for_each(|_| world.forget_newest_live());
    world.serve(Fault::None);
    world.deliver_replays();
    let (applied, before) = (world.applied.len(), world.sequencer.counters().duplicates);
    let last = world.applied.last().cloned().unwrap();
    world.hand_in(&last);
    assert_eq!((world.applied.len(), world.sequencer.held_back().0), (applied, 0));
    assert_eq!(world.sequencer.counters().duplicates, before + 1);
    world.settle();
    world.check_complete();
}

/// Rounds of which every other one brings a batch, or each one, until nothing is asked.
fn rounds(options: ReplayOptions, brings: impl Fn(usize) -> usize) -> World {
    let mut world = World::in_step(options, 1);
    world.publish_many(20);
    (0..19).for_each(|_| world.lose());
    world.deliver_all();
    for round in 0..60 {
        world.serve(Fault::Cut(brings(round)));
        world.deliver_replays();
        if let (None, Some(at)) = (world.asked(), world.sequencer.wake_at()) {
            let wait = at.saturating_sub(world.now);
            assert!(wait <= options.backoff_max.max(options.rebuild_max));
            if world.sequencer.stage() == Some(Stage::Waiting) {
                assert!(wait <= options.backoff_max, "{wait:?}");
                world.pass(wait);
            }
        }
    }
    world
}

#[test]
fn fruitless_rounds_count_from_the_last_one_that_brought_something() {
    let options = ReplayOptions { max_fruitless: 2, ..ReplayOptions::default() };
    // The batch that proves the publisher, and one more; then nothing.
    let world = rounds(options, |round| if round % 2 == 0 { 2 } else { 0 });
    world.check_complete();
}

#[test]
fn rounds_are_bounded_also_where_each_brings_something() {
    let world = rounds(ReplayOptions { max_rounds: 5, ..ReplayOptions::default() }, |_| 2);
    assert_eq!(world.sequencer.counters().given_up, 1);
    assert_eq!(world.sequencer.unsound(), Some(Reason::Gap));
}

#[test]
fn waits_between_rounds_are_bounded() {
    let options = ReplayOptions {
        max_fruitless: 30,
        backoff: SECOND,
        backoff_max: 3 * SECOND,
        ..ReplayOptions::default()
    };
    let world = rounds(options, |_| 0);
    assert_eq!(world.sequencer.counters().given_up, 1);
}

#[test]
fn workers_that_lost_the_same_do_not_ask_again_at_the_same_time() {
    let options = ReplayOptions { backoff: SECOND, ..ReplayOptions::default() };
    let again = |seed: u64| {
        let mut lane = Lane { sequencer: Sequencer::with_replay(options, seed), now: SECOND };
        lane.live(0, 0);
        let [Step::Ask { round, .. }] = lane.live(2, 0)[..] else { panic!("a gap") };
        lane.ended(round, Ended::Cut);
        lane.sequencer.wake_at().unwrap() - lane.now
    };
    let waits: Vec<Duration> = (1..=8).map(again).collect();
    assert!(waits.iter().all(|wait| (SECOND / 2..=SECOND).contains(wait)), "{waits:?}");
    assert!(waits.windows(2).all(|pair| pair[0] != pair[1]), "{waits:?}");
}

#[test]
fn a_loss_that_may_hide_removals_is_said_although_another_reason_came_first() {
    for (first, then, said) in [
        (Reason::MissedStart, Reason::Gap, Reason::Gap),
        (Reason::Overflow, Reason::Undecodable, Reason::Undecodable),
        (Reason::Gap, Reason::Overflow, Reason::Gap),
        (Reason::Gap, Reason::Undecodable, Reason::Gap),
        (Reason::MissedStart, Reason::Overflow, Reason::MissedStart),
    ] {
        let mut sequencer = Sequencer::without_replay();
        sequencer.degrade(first);
        sequencer.degrade(then);
        assert_eq!(sequencer.trust(), Trust::Degraded(said), "{first:?}, then {then:?}");
    }
}

#[test]
fn what_was_too_much_is_asked_for_again_and_built_anew_once_it_fits() {
    let mut lane = Lane::new(ReplayOptions::default());
    (0..=1).for_each(|seq| assert_eq!(lane.live(seq, 0), [Step::Apply { seq }]));
    lane.sequencer.overflowed(lane.now);
    assert_eq!(lane.sequencer.trust(), Trust::Degraded(Reason::Overflow));
    let [Step::Ask { round, from: 1 }] = lane.steps()[..] else { panic!("it is asked for") };
    lane.sequencer.overflowed(lane.now);
    assert_eq!(lane.steps(), [], "once");
    lane.replayed(round, 1, 0);
    assert_eq!(lane.ended(round, Ended::Marker), []);
    let wait = lane.sequencer.wake_at().unwrap() - lane.now;
    let [Step::Ask { round, from: 0 }] = lane.tick(wait)[..] else { panic!("from the start") };
    let anew = [Step::StartOver, Step::Apply { seq: 0 }];
    assert_eq!(lane.replayed(round, 0, 0), (Flow::Continue, anew.to_vec()));
    lane.replayed(round, 1, 0);
    lane.ended(round, Ended::Marker);
    assert_eq!(lane.sequencer.trust(), Trust::Exact);
}

#[test]
fn a_resumed_worker_that_was_given_up_goes_on_with_the_next_batch() {
    let mut lane = Lane::new(ReplayOptions { max_fruitless: 1, ..ReplayOptions::default() });
    lane.sequencer.resume(4, 99, 4.0);
    lane.sequencer.link(lane.now, true);
    let [Step::Ask { round, from: 4 }] = lane.steps()[..] else { panic!() };
    assert_eq!(lane.ended(round, Ended::Cut), []);
    assert_eq!(lane.sequencer.trust(), Trust::Degraded(Reason::Gap));
    assert_eq!(lane.live(5, 0), [Step::Apply { seq: 5 }], "it is asked for no more");
}

#[test]
fn whoever_is_not_to_be_audited_is_not() {
    for reason in [None, Some(Reason::Undecodable)] {
        let mut lane = Lane::audited(ReplayOptions::default(), 1);
        reason.into_iter().for_each(|reason| lane.sequencer.degrade(reason));
        assert_eq!(lane.tick(PERIOD).is_empty(), reason.is_some());
    }
    let mut lane = Lane::new(ReplayOptions { audit: PERIOD, ..ReplayOptions::default() });
    lane.sequencer.resume(4, 99, 4.0);
    assert!(lane.tick(PERIOD).is_empty() && lane.tick(PERIOD).is_empty(), "nothing is proven yet");
    lane.sequencer.forbid_audits(true);
    assert_eq!(lane.sequencer.audit_state(), AuditState::Unavailable);
    assert!(lane.live(4, 1).contains(&Step::StartOver), "another batch 4");
    assert_eq!(lane.sequencer.audit_state(), AuditState::Unavailable, "its next life neither");
}

#[test]
fn an_anchor_that_nobody_keeps_any_more_is_none() {
    let mut lane = Lane::anchored(2, 1);
    let (round, from) = lane.due();
    assert_eq!(from, 2);
    let steps = lane.replayed(round, 2, 0);
    assert_eq!(steps, (Flow::Stop, vec![Step::ShadowAnchor, Step::Compare]));
    lane.sequencer.compared(lane.now, Comparison::Equal, Aftermath::None);
    assert_eq!(lane.steps(), [Step::Discard]);
    assert_eq!(lane.sequencer.audit_state(), AuditState::Unavailable);
}

#[test]
fn a_difference_behind_an_anchor_that_was_not_mended_is_tried_from_batch_0() {
    let mut lane = Lane::anchored(2, 1);
    let (round, _) = lane.due();
    lane.replayed(round, 2, 0);
    lane.sequencer.compared(lane.now, Comparison::Different, Aftermath::None);
    assert_eq!(lane.steps(), [Step::Discard]);
    assert_eq!(lane.sequencer.trust(), Trust::Degraded(Reason::Audit));
    assert!(matches!(lane.tick(3600 * SECOND)[..], [Step::Ask { from: 0, .. }]));
}

#[test]
fn another_batch_under_the_anchors_number_is_another_publisher() {
    let mut lane = Lane::anchored(2, 1);
    lane.live(3, 0);
    let (round, from) = lane.due();
    assert_eq!(from, 2);
    let (flow, steps) = lane.replayed(round, 2, 77);
    assert_eq!(flow, Flow::Stop);
    assert!(matches!(steps[..], [Step::Discard, Step::Ask { from: 3, .. }]), "{steps:?}");
}

#[test]
fn a_hole_in_the_answer_to_an_audit_is_asked_for_again_and_not_taken_for_its_beginning() {
    let mut lane = Lane::audited(ReplayOptions::default(), 4);
    let (round, from) = lane.due();
    assert_eq!(from, 0);
    assert_eq!(lane.replayed(round, 0, 0), (Flow::Continue, vec![Step::Shadow { seq: 0 }]));
    let (flow, steps) = lane.replayed(round, 2, 0);
    assert_eq!(flow, Flow::Stop);
    assert!(matches!(steps[..], [Step::Audit { from: 1, .. }]), "{steps:?}");
}

#[test]
fn rounds_of_an_audit_are_bounded() {
    let options = ReplayOptions { max_rounds: 3, ..ReplayOptions::default() };
    let mut lane = Lane::audited(options, 9);
    let (mut round, _) = lane.due();
    for seq in 0..2 {
        lane.replayed(round, seq, 0);
        match lane.ended(round, Ended::Cut)[..] {
            [Step::Audit { round: next, from }] if from == seq + 1 => round = next,
            ref steps => panic!("{steps:?}"),
        }
    }
    lane.replayed(round, 2, 0);
    assert_eq!(lane.ended(round, Ended::Cut), [Step::Discard]);
    assert_eq!(lane.sequencer.stage(), Some(Stage::InStep));
}

#[test]
fn an_audit_that_cannot_keep_what_comes_meanwhile_is_dropped() {
    let options = ReplayOptions { max_held_batches: 2, ..ReplayOptions::default() };
    let mut lane = Lane::audited(options, 1);
    let (round, _) = lane.due();
    for seq in 2..4 {
        assert_eq!(lane.live(seq, 0), [Step::Apply { seq }]);
    }
    assert_eq!(lane.live(4, 0), [Step::Apply { seq: 4 }, Step::Discard]);
    assert_eq!(lane.replayed(round, 0, 0), (Flow::Stop, vec![]));
    // Within the bound they follow.
    let (round, _) = lane.due();
    assert_eq!(lane.live(5, 1), [Step::Apply { seq: 5 }]);
    (0..4).for_each(|seq| drop(lane.replayed(round, seq, 0)));
    let held = Step::ShadowHeld(Held { seq: 5, payload: Box::from([1]) });
    assert_eq!(
        lane.replayed(round, 4, 0),
        (Flow::Stop, vec![Step::Shadow { seq: 4 }, held, Step::Compare])
    );
}

#[test]
fn a_publishers_clock_makes_an_anchor_due_neither_at_once_nor_later_than_any_audit() {
    for first in [1, 9] {
        // The buffer spans a few seconds, or none.
        let lane = Lane::anchored(9, first);
        let wait = lane.sequencer.wake_at().unwrap() - lane.now;
        assert!((PERIOD / 32..=PERIOD / 16).contains(&wait), "{wait:?}");
    }
}
