//! KV-cache block index for LLM routers.

pub mod block;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
pub mod event;
pub mod hash;
pub mod index;
pub mod ingest;
pub mod score;
pub mod scout;

pub use error::{Error, ErrorKind};
