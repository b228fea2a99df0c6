//! The bounds of repairing a stream.

use std::time::Duration;

/// Bounds of a [`Sequencer`](super::Sequencer) with a replay source.
///
/// # Defaults
///
/// 16 MiB and 16,384 batches held back: minutes of an engine's steps, more than a replay takes. 6 rounds in
/// a row without any progress and 64 in all: a send queue of 1000 messages, which older vLLM has, needs
/// ten rounds for its 10,000 batches. Waits of 100 ms doubling to 10 s, each shortened by up to a half at
/// random. Rebuilding is tried after 10 s, then ever less often down to once an hour. No audits: each costs
/// the engine a replay of all that it has kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Bytes of live batches that may be held back.
    pub max_held_bytes: usize,
    /// Live batches that may be held back.
    pub max_held_batches: usize,
    /// Rounds in a row that may bring nothing new before the missing batches are given up.
    pub max_fruitless: u32,
    /// Rounds in all before the missing batches are given up.
    pub max_rounds: u32,
    /// The wait after the first round that brought nothing.
    pub backoff: Duration,
    /// The longest such wait.
    pub backoff_max: Duration,
    /// The wait before the first attempt to rebuild a worker that missed something.
    pub rebuild: Duration,
    /// The longest such wait.
    pub rebuild_max: Duration,
    /// The longest time from one audit to the next, of which up to a half is left out at random; zero for none.
    pub audit: Duration,
}

impl Default for ReplayOptions {
    fn default() -> ReplayOptions {
        ReplayOptions {
            max_held_bytes: 16 << 20,
            max_held_batches: 16_384,
            max_fruitless: 6,
            max_rounds: 64,
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            rebuild: Duration::from_secs(10),
            rebuild_max: Duration::from_secs(3600),
            audit: Duration::ZERO,
        }
    }
}
