//! Error answers: a status, a sentence, a stable reason, and the field that was wrong.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::generated::kvscout_v1;
use crate::admission::Overloaded;
use crate::service::{OVERLOADED, Refusal, elsewhere};

/// Why a call has no answer. On the wire `kvscout-reason` and `kvscout-field` go with the status.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    code: Code,
    reason: &'static str,
    field: Option<String>,
    message: String,
}

impl Failure {
    pub(super) fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, reason, field: None, message: message.into() }
    }

    /// What is wrong with a field.
    pub(super) fn field(name: impl Into<String>, wrong: impl AsRef<str>) -> Failure {
        let name = name.into();
        let message = format!("field '{name}': {}", wrong.as_ref());
        let failure = Failure::new(Code::InvalidArgument, "invalid_field", message);
        Failure { field: Some(name), ..failure }
    }

    /// More than is served; less, or later, may be.
    pub(super) fn exhausted(message: impl Into<String>) -> Failure {
        Failure::new(Code::ResourceExhausted, "too_much", message)
    }

    pub(super) fn internal() -> Failure {
        Failure::new(Code::Internal, "internal", "the call could not be completed")
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// As an answer of a stream.
    pub(super) fn into_error(self) -> kvscout_v1::Error {
        kvscout_v1::Error {
            code: self.code as u32,
            reason: self.reason.to_owned(),
            field: self.field.unwrap_or_default(),
            message: self.message,
        }
    }
}

impl From<Overloaded> for Failure {
    fn from(_: Overloaded) -> Failure {
        Failure::new(Code::ResourceExhausted, "overloaded", OVERLOADED)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let (code, reason, message) = match refusal {
            Refusal::Candidate { n, wrong } => {
                return Failure::field(format!("candidates[{n}]"), wrong);
            }
            Refusal::Rank(wrong) => return Failure::field("rank", wrong),
            Refusal::Conflict(message) => (Code::AlreadyExists, "conflict", message),
            Refusal::UnknownWorker(message) => (Code::NotFound, "unknown_worker", message),
            Refusal::UnknownModel(message) => (Code::NotFound, "unknown_model", message),
            Refusal::UnknownPeer(message) => (Code::NotFound, "unknown_peer", message),
            Refusal::NotAllowed(message) => (Code::PermissionDenied, "not_allowed", message),
            Refusal::Invalid(message) => (Code::InvalidArgument, "invalid", message),
            Refusal::Unavailable(message) | Refusal::Busy(message) => {
                (Code::Unavailable, "unavailable", message)
            }
            Refusal::Overloaded => return Overloaded.into(),
            Refusal::Elsewhere(what) => (Code::Unimplemented, "not_implemented", elsewhere(what)),
        };
        Failure::new(code, reason, message)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        let Failure { code, reason, field, message } = failure;
        let mut status = Status::new(code, message);
        let metadata = status.metadata_mut();
        metadata.insert("kvscout-reason", MetadataValue::from_static(reason));
        // Names of fields are ours, with numbers at most.
        if let Some(Ok(field)) = field.map(MetadataValue::try_from) {
            metadata.insert("kvscout-field", field);
        }
        status
    }
}

/// A status as gRPC's documents write it.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
