//! Any frames of a replay's message are an answer or none, and a worker stays honest whatever a replay
//! socket says.
#![no_main]

use std::time::Duration;

use kvscout::ingest::sequencer::{Aftermath, Arrival, Comparison, Ended, Step};
use kvscout::ingest::{Answer, ReplayOptions, Sequencer, Trust};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|wire: &[u8]| {
    let now = Duration::ZERO;
    let options = ReplayOptions { audit: Duration::from_secs(1), ..ReplayOptions::default() };
    let mut sequencer = Sequencer::with_replay(options, 0);
    // Batch 0 is all that this worker knows for sure; everything else comes from the replay socket.
    sequencer.live(now, Arrival { seq: 0, timestamp: Some(0.0), payload: b"" });
    assert_eq!(sequencer.next_step(), Some(Step::Apply { seq: 0 }));
    sequencer.link(now, true);
    let Some(Step::Ask { mut round, from: 0 }) = sequencer.next_step() else { unreachable!() };
    let (mut applied, mut shadow, mut anchor) = (vec![0], Vec::new(), Vec::new());
    for message in wire.split(|byte| *byte == b'\n') {
        let frames: Vec<&[u8]> = message.split(|byte| *byte == b'|').collect();
        let mut handed_in = None;
        match Answer::parse(&frames) {
            Some(Answer::Batch { seq, payload }) => {
                handed_in = Some(seq);
                sequencer.replayed(now, round, Arrival { seq, timestamp: Some(1.0), payload });
            }
            Some(Answer::End) => sequencer.replay_ended(now, round, Ended::Marker),
            None => sequencer.tick(sequencer.wake_at().unwrap_or(now)),
        }
        while let Some(step) = sequencer.next_step() {
            match step {
                Step::StartOver => applied.clear(),
                Step::Apply { seq } => {
                    assert_eq!(handed_in, Some(seq));
                    assert!(applied.last().is_none_or(|last| *last < seq));
                    applied.push(seq);
                }
                Step::Release(held) => applied.push(held.seq),
                Step::Ask { round: asked, .. } | Step::Audit { round: asked, .. } => round = asked,
                Step::Shadow { seq } => {
                    assert_eq!((handed_in, seq), (Some(seq), shadow.len() as u64));
                    shadow.push(seq);
                }
                Step::Anchor => {
                    anchor.clone_from(&applied);
                    sequencer.anchored();
                }
                Step::ShadowAnchor => shadow.clone_from(&anchor),
                Step::ShadowHeld(held) => shadow.push(held.seq),
                Step::Compare => {
                    // An audit begins only where nothing is missing.
                    assert_eq!(shadow, applied);
                    sequencer.compared(now, Comparison::Equal, Aftermath::None);
                }
                Step::Discard => shadow.clear(),
            }
        }
        assert_eq!(sequencer.as_of(), applied.last().copied());
        if sequencer.trust() == Trust::Exact {
            assert!(applied.iter().copied().eq(0..applied.len() as u64));
        }
    }
});
