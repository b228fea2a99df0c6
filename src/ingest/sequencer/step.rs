//! What a sequencer is told and what it answers.

use super::Held;

/// A batch as it arrives, live or replayed.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its number.
    pub seq: u64,
    /// The publisher's clock in it; `None` if it cannot be read.
    pub timestamp: Option<f64>,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// What the driver has to do, in this order, before it says anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forget everything the worker held. Comes before any batch of the incarnation that follows.
    StartOver,
    /// Apply the batch that was just handed in.
    Apply {
        /// Its number.
        seq: u64,
    },
    /// Apply this batch, which was held back.
    Release(Held),
    /// Ask the replay source for the batches from a number on, over a fresh connection, in place of
    /// any round that was asked before. Say [`Sequencer::replay_ended`](super::Sequencer::replay_ended) exactly once, however it ends.
    Ask {
        /// Number of the round, to be given back with each of its batches.
        round: u64,
        /// The first number wanted.
        from: u64,
    },
    /// The same as [`Ask`](Step::Ask), but nobody waits for it: everyone else's turn comes first. It ends
    /// as any round does, and cut if somebody else needs the turn.
    Audit {
        /// Number of the round.
        round: u64,
        /// The first number wanted; the shadow has everything before it.
        from: u64,
    },
    /// Keep what is held as of the last applied batch, in place of what was kept before, and say
    /// [`Sequencer::anchored`](super::Sequencer::anchored) if that could be done.
    Anchor,
    /// Begin a shadow with what was kept as an anchor.
    ShadowAnchor,
    /// Apply the batch that was just handed in to the shadow, a residency of its own that is empty
    /// before batch 0.
    Shadow {
        /// Its number.
        seq: u64,
    },
    /// Apply this batch to the shadow; it was applied to the worker already.
    ShadowHeld(Held),
    /// The shadow has what the worker has: compare them, and say [`Sequencer::compared`](super::Sequencer::compared).
    Compare,
    /// Drop the shadow, if there is one.
    Discard,
}

/// Whether a round is worth reading further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next batch may be of use.
    Continue,
    /// Nothing more of this round is of use: close the connection. The round has ended;
    /// `replay_ended` need not be said.
    Stop,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ended {
    /// With the publisher's end marker.
    Marker,
    /// Without it: the source could not be reached, the connection was lost, nothing came for too long
    /// or too much came.
    Cut,
}
