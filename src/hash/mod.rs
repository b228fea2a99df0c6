//! Everything that looks into tokens: content digests and engines' block hashes.
//!
//! - [`content`]: this crate's own keyed digest of one block, parent excluded. The same for every
//!   engine, so it is what an index compares.
//! - [`vllm`]: the chained block hashes of vLLM 0.8.5 and later, bit for bit, for every algorithm
//!   and seed. What an engine calls a block.
//! - [`sglang`]: the page hashes of SGLang 0.5.6 and later.
//!
//! Nothing here reads a clock, an environment variable or a socket; the only randomness is
//! [`content::DigestKey::random`].

mod aes;
pub mod content;
pub mod sglang;
pub mod vllm;

/// Runs the example of the guide as a test.
#[cfg(doctest)]
#[doc = include_str!("../../docs/hashing.md")]
mod guide {}
