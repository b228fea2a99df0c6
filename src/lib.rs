//! KV-cache block index for LLM routers.
//!
//! LLM engines keep the KV cache of prompts in blocks and announce which ones they store and evict.
//! A router that sends a request to the engine that already holds the longest prefix of its prompt
//! saves most of the prefill. This crate answers the router's question: *for this prompt, which
//! engine already holds how much, in which tier, and how sure is that?*
//!
//! ```
//! use kvscout::block::Prompt;
//! use kvscout::scout::{Options, Registration, Request, Scout, Scratch};
//!
//! let scout = Scout::new(Options::default())?;
//! let engine = scout.register(Registration::new("engine-a", "tiny"))?;
//!
//! // One batch as vLLM 0.9 to 0.33 or SGLang publish it: [timestamp, [events], rank]. Here engine-a
//! // stores the tokens 0, 1, 2, 3 as one block of 4.
//! let payload = b"\x93\xcb\x41\xd9\x54\xfc\x40\x10\0\0\x91\x87\xa4type\xabBlockStored\
//!     \xacblock_hashes\x91\x07\xb1parent_block_hash\xc0\xa9token_ids\x94\0\x01\x02\x03\
//!     \xaablock_size\x04\xa6medium\xa3GPU\xaaextra_keys\x91\xc0\0";
//! scout.apply(engine, 0, payload)?;
//!
//! let mut scratch = Scratch::default();
//! let ranked = scout.score(&Request::new("tiny", Prompt::new(&[0, 1, 2, 3, 4])), &mut scratch)?;
//! let best = ranked.best().expect("a model that is served has a worker");
//! assert_eq!((best.pod, best.score.expected_cached_tokens), ("engine-a", Ok(4)));
//! assert_eq!((best.trust.as_str(), best.as_of), ("exact", Some(0)));
//! # Ok::<(), kvscout::Error>(())
//! ```
//!
//! # Guarantees
//!
//! - [`expected_cached_tokens`](score::Score::expected_cached_tokens) is what the engine itself
//!   would report, as of the batch that the answer names; where no rule is known it is a reason, not
//!   a guess.
//! - [`hash`] gives vLLM's block hashes bit for bit, for every version since 0.8.5, or says which
//!   fact is missing.
//! - Every answer carries the worker's [`Trust`](ingest::Trust). Lost, repeated and late batches and
//!   restarts are noticed by their numbers; where the engine keeps past batches, what was lost is asked
//!   for ([`Scout::follow`]).
//! - Identity comes from the registration, never from a message; a payload is bounded before it is
//!   read; tokens are forgotten once digested; salts and tokens appear in no error and no log.
//!
//! # Consistency
//!
//! Batches of one worker are applied in order, each as a whole before [`Scout::apply`] returns.
//! A query sees each worker as of the batch it names and of none after it, also while batches are being
//! applied; two workers in one answer may be seen at different moments. What an engine has not
//! announced yet, nobody knows.
//!
//! # Features
//!
//! None by default: hashing, decoding, the memory index and scoring compile no socket library, no
//! runtime and no web server.
//!
//! | feature | adds |
//! |---|---|
//! | `zmq` | [`ingest`]`::zmq`: receive engines' events over ZeroMQ (builds libzmq, needs a C++ compiler) |
//! | `redis` | [`index`]`::redis`: the index on a Redis or Valkey server that several processes share; needs a tokio runtime |
//! | `conformance` | `conformance`: the contract of an [`Index`](index::Index) as a test for any backend |
//! | `tokenizers` | `tokenize`: text and chats to token ids, from Hugging Face's files |
//! | `daemon` | the `kvscout` binary; includes `redis`, `tokenizers` and `zmq` |
//!
//! Start reading at [`scout`]; [`block`] defines the words.

pub mod block;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
pub mod event;
pub mod hash;
pub mod index;
pub mod ingest;
pub mod predict;
pub mod score;
pub mod scout;
#[cfg(feature = "tokenizers")]
pub mod tokenize;

pub use error::{Error, ErrorKind};
pub use scout::Scout;
