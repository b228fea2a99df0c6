//! Why a request was not done, before a protocol gives it a form.

use kvscout::{Error, ErrorKind};

/// Why a request was not done.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The worker is registered with other facts, or fed in another way.
    Conflict(String),
    /// No such worker.
    UnknownWorker(String),
    /// No worker serves the model.
    UnknownModel(String),
    /// No such replica.
    UnknownPeer(String),
    /// One of the candidates of a question is wrong.
    Candidate {
        /// Which one.
        n: usize,
        /// What is wrong with it.
        wrong: String,
    },
    /// A pod has several ranks, and none is named.
    Rank(String),
    /// A value is out of range or contradicts another.
    Invalid(String),
    /// The configuration does not allow it.
    NotAllowed(String),
    /// A resource is not there at the moment.
    Unavailable(String),
    /// As much of this is done already as may be at a time; it is soon over.
    Busy(String),
    /// More is waiting than is served in time.
    Overloaded,
    /// Only a kvscout that follows engines can do it.
    Elsewhere(&'static str),
}

impl Refusal {
    /// What was wrong and what would be right.
    pub(crate) fn into_message(self) -> String {
        match self {
            Refusal::Conflict(message)
            | Refusal::UnknownWorker(message)
            | Refusal::UnknownModel(message)
            | Refusal::UnknownPeer(message)
            | Refusal::Rank(message)
            | Refusal::Candidate { wrong: message, .. }
            | Refusal::Invalid(message)
            | Refusal::NotAllowed(message)
            | Refusal::Unavailable(message)
            | Refusal::Busy(message) => message,
            Refusal::Overloaded => OVERLOADED.to_owned(),
            Refusal::Elsewhere(what) => elsewhere(what),
        }
    }
}

/// What whoever comes beyond the limits is told.
pub(crate) const OVERLOADED: &str = "more questions are waiting than are answered in time; go on without an answer, \
    or ask again (limits.concurrency, limits.queue, limits.body_memory_bytes, limits.connections)";

/// Why a reader of a store does not do something.
pub(crate) fn elsewhere(what: &str) -> String {
    format!(
        "this kvscout answers from a store (store.mode \"redis\") and follows no engine, so it cannot {what}: ask one \
         that keeps the store"
    )
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::UnknownWorker => Refusal::UnknownWorker(message),
            ErrorKind::UnknownModel => Refusal::UnknownModel(message),
            // A store that refuses the daemon is no fault of who asks.
            ErrorKind::Unavailable | ErrorKind::Denied => Refusal::Unavailable(message),
            _ => Refusal::Invalid(message),
        }
    }
}
