//! One error for callers; precise kinds inside.

use std::fmt;

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is out of range or contradicts another one.
    InvalidInput,
    /// The request cannot be hashed exactly because a fact is missing.
    MissingFact,
    /// No such worker is registered.
    UnknownWorker,
    /// No worker is registered for this (tenant, model).
    UnknownModel,
    /// A payload could not be decoded.
    Decode,
    /// A backend or a socket did not answer as it should.
    Unavailable,
    /// A backend refuses this client: a password or a permission is wrong or missing.
    Denied,
}

/// An error of this crate. The message names the value that was wrong and what would be right.
pub struct Error {
    kind: ErrorKind,
    message: Box<str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// What went wrong, as far as a caller can act on it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later without any change by the caller.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Unavailable
    }

    #[cold]
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Box<str>>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    #[cold]
    pub(crate) fn invalid(message: impl Into<Box<str>>) -> Error {
        Error::new(ErrorKind::InvalidInput, message)
    }

    #[cold]
    pub(crate) fn missing(message: impl Into<Box<str>>) -> Error {
        Error::new(ErrorKind::MissingFact, message)
    }

    #[cold]
    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}
