//! Any schedule of losses, repetitions, restarts and failing replays: a worker that says `exact` is
//! exact, holds back no more than it may, and ends exact where the publisher's buffer allows it.
#![no_main]

#[path = "../../tests/stream_support/mod.rs"]
mod stream_support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|schedule: &[u8]| {
    // Longer ones say nothing new, and the check of a step grows with what was applied.
    stream_support::run(&schedule[..schedule.len().min(2_000)]);
});
