//! What is under way, for whoever looks on.

/// What a [`Sequencer`](super::Sequencer) does with its replay source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Nothing: live batches are applied as they come.
    InStep,
    /// The link to the publisher is down.
    Down,
    /// A round was asked for.
    Asked,
    /// The next round is due later.
    Waiting,
    /// Batch 0 was asked for, to build the worker anew; live batches are applied meanwhile.
    Rebuilding,
    /// What is held is being compared with what the engine has kept; live batches are applied meanwhile.
    Auditing,
}

impl Stage {
    /// A stable label, as it appears in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stage::InStep => "in_step",
            Stage::Down => "down",
            Stage::Asked => "asked",
            Stage::Waiting => "waiting",
            Stage::Rebuilding => "rebuilding",
            Stage::Auditing => "auditing",
        }
    }
}
