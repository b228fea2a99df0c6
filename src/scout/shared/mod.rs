//! Workers that several processes know through a store: who writes it, and who reads it without hearing any
//! engine.
//!
//! One process follows the engines and has a [`Scout`](super::Scout); its [`Writer`] keeps the same in a
//! [`RedisIndex`](crate::index::redis::RedisIndex), behind and never in the way of its own answers. Another one has a
//! [`Reader`], which answers the same [`Request`](super::Request)s from there. What a reader has to know of
//! workers and the index does not say is in [`WorkerFacts`]. `docs/redis.md` has the form.

mod facts;
mod outbox;
mod reader;
mod writer;

pub use self::facts::WorkerFacts;
pub use self::outbox::Outbox;
pub use self::reader::{KnownWorker, Reader, ReaderOptions};
pub use self::writer::{Labelling, Writer, WriterOptions, WriterReport, WriterWatch};

use crate::ingest::snapshot::KeptContract;

/// What a space is called in the store.
fn space_text(tenant: &str, model: Option<&str>) -> String {
    serde_json::json!([tenant, model]).to_string()
}

/// What a worker is called in the store.
fn worker_text(tenant: &str, pod: &str, rank: u32) -> String {
    serde_json::json!([tenant, pod, rank]).to_string()
}

/// What a vocabulary is called in the store: its contract, or whose it is and in which life.
fn vocabulary_text(contract: &KeptContract, worker: &str, life: u64) -> String {
    let text = match contract {
        KeptContract::Vllm { version, algorithm, root } => {
            serde_json::json!(["vllm", version.to_string(), algorithm.as_str(), root])
        }
        KeptContract::Sglang => serde_json::json!(["sglang"]),
        KeptContract::Undecided | KeptContract::Private => {
            serde_json::json!(["private", worker, life])
        }
    };
    text.to_string()
}
