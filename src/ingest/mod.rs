//! From a worker's numbered batches to changes of the index, with a record of how far they can be
//! trusted.
//!
//! [`Sequencer`] is the state machine of one worker's stream, whether missed batches can be asked for
//! again or not. It has no socket, no clock and no index. [`verify`] finds out which hash contract a worker follows; [`translate`] turns
//! decoded events into index changes; [`zmq`] (feature) moves the bytes.

mod answer;
mod order;
pub mod sequencer;
pub mod snapshot;
pub mod translate;
mod turns;
pub mod verify;
#[cfg(feature = "zmq")]
pub mod zmq;

pub use answer::Answer;
pub use order::Verdict;
pub use sequencer::{ReplayOptions, Sequencer};
pub use turns::Turns;

/// How far a worker's residency can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trust {
    /// It equals the effect of batches `0..=as_of` of this incarnation.
    Exact,
    /// Batches are known to be outstanding and are being waited for.
    Syncing,
    /// Something is missing or unclear, for this reason.
    Degraded(Reason),
    /// Nothing has been heard for too long.
    Silent,
}

impl Trust {
    /// A stable label, as it appears in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Trust::Exact => "exact",
            Trust::Syncing => "syncing",
            Trust::Degraded(_) => "degraded",
            Trust::Silent => "silent",
        }
    }

    /// Why a worker is degraded.
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Trust::Degraded(reason) => Some(reason),
            _ => None,
        }
    }
}

/// Why a worker is [`Trust::Degraded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The first batch had a number above 0: earlier ones were missed.
    MissedStart,
    /// Batches between two that were received are missing, or may be: nothing could show that they
    /// are not.
    Gap,
    /// A batch came that was neither the next one nor a known one.
    OutOfOrder,
    /// A batch or an event could not be decoded or made no sense; its effect is missing.
    Undecodable,
    /// Copies were refused because something of the worker was too much
    /// ([`Applied::refused`](crate::index::Applied::refused)).
    Overflow,
    /// The engine's events leave extra keys out (vLLM before 0.17) and its hash contract is not
    /// known, so that salted and multimodal blocks look like plain text.
    ExtrasHidden,
    /// Copies of it were given up because `memory.budget` was reached; it really holds more.
    Evicted,
    /// An audit found that what is held is not what the engine's past batches amount to.
    Audit,
    /// The store that answers for it cannot be reached, or nobody keeps the worker's part of it any more.
    Store,
}

impl Reason {
    pub(crate) const ALL: [Reason; 9] = [
        Reason::MissedStart,
        Reason::Gap,
        Reason::OutOfOrder,
        Reason::Undecodable,
        Reason::Overflow,
        Reason::ExtrasHidden,
        Reason::Evicted,
        Reason::Audit,
        Reason::Store,
    ];

    /// Whether removals may be missing, so that the worker may hold less than is known. Otherwise it can only hold more.
    pub fn may_hold_less(self) -> bool {
        matches!(self, Reason::Gap | Reason::OutOfOrder | Reason::Undecodable | Reason::Audit)
    }

    /// The reason with this label.
    pub(crate) fn from_label(label: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.as_str() == label)
    }

    /// A stable label, as it appears in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::MissedStart => "missed_start",
            Reason::Gap => "gap",
            Reason::OutOfOrder => "out_of_order",
            Reason::Undecodable => "undecodable",
            Reason::Overflow => "overflow",
            Reason::ExtrasHidden => "extras_hidden",
            Reason::Evicted => "evicted",
            Reason::Audit => "audit",
            Reason::Store => "store",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trust_is_said_by_its_label_and_its_reason() {
        let trusts = [Trust::Exact, Trust::Syncing, Trust::Silent];
        assert_eq!(trusts.map(Trust::as_str), ["exact", "syncing", "silent"]);
        assert_eq!(trusts.map(Trust::reason), [None; 3]);
        for reason in Reason::ALL {
            let degraded = Trust::Degraded(reason);
            assert_eq!((degraded.as_str(), degraded.reason()), ("degraded", Some(reason)));
        }
    }
}
