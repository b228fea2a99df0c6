//! What happened on a stream.

/// What happened on a stream since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SequencerCounters {
    /// Batches to apply, however they came.
    pub batches: u64,
    /// Gaps; a missed start is none.
    pub gaps: u64,
    /// Batches that were never applied.
    pub missing: u64,
    /// Live batches dropped as repeated.
    pub duplicates: u64,
    /// Live batches dropped as late.
    pub late: u64,
    /// Restarts of the publisher.
    pub restarts: u64,
    /// Times that replays closed everything that was open.
    pub repaired: u64,
    /// Rounds asked for.
    pub rounds: u64,
    /// Batches applied from replays.
    pub replayed: u64,
    /// Replayed batches dropped because their round was over.
    pub stale: u64,
    /// Times that what was held back went beyond its bounds and was dropped.
    pub overflows: u64,
    /// Times that missing batches were given up.
    pub given_up: u64,
    /// Times that a worker was built anew from batch 0 of the same publisher.
    pub rebuilt: u64,
    /// Audits that found what is held.
    pub audits_ok: u64,
    /// Audits that found something else.
    pub audits_differed: u64,
    /// Of both, those that began with what had been held as of some batch.
    pub audits_anchored: u64,
    /// Times that a worker was given what such an audit made of the batches behind.
    pub mended: u64,
    /// Audits that came to no end: cut, overtaken by something more urgent, or not to be judged.
    pub audits_unfinished: u64,
}
