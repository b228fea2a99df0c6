//! KV-cache block index for LLM routers.

pub mod block;
mod error;
pub mod event;
pub mod hash;
pub mod index;
pub mod ingest;

pub use error::{Error, ErrorKind};
