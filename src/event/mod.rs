//! KV events: from an engine's bytes to what it stored, removed and cleared.
//!
//! A payload is a msgpack batch as vLLM, SGLang and Mooncake's pool publish it. Everything here borrows from the
//! payload; decoding allocates nothing. Each event is checked when its turn comes, so that what an
//! [`Event`] holds can be read without errors.
//!
//! # The normal form
//!
//! Engines and versions write the same fact in different ways. Afterwards
//!
//! - a block is named by a [`Name`](crate::block::Name): integers, signed integers and byte
//!   strings of any length reduce to it ([`Hash::name`]);
//! - a copy lies in a [`Tier`]; a medium that is not known is [`Tier::Unknown`], never the GPU;
//! - a missing cache group is group 0;
//! - a block's extra keys come in the order of [`ExtraKey`](crate::block::ExtraKey), or the block is
//!   [`BlockExtras::Opaque`]: nothing is guessed.
//!
//! Fields that are not known are ignored, wherever they stand. Lengths are left as they came: an
//! event may have more tokens than its hashes account for, or none.
//!
//! ```
//! use kvscout::event::{Batch, Event, Limits};
//!
//! // [1.0, [["BlockRemoved", [7], "CPU"]], 0]
//! let payload = b"\x93\xcb\x3f\xf0\0\0\0\0\0\0\x91\x93\xacBlockRemoved\x91\x07\xa3CPU\0";
//! let batch = Batch::parse(payload, &Limits::default())?;
//! for event in batch.events() {
//!     if let Event::Removed(removed) = event? {
//!         assert_eq!(removed.names.names().next().unwrap().0, 7);
//!         assert_eq!(removed.tier.as_str(), "cpu");
//!     }
//! }
//! # Ok::<(), kvscout::event::DecodeError>(())
//! ```

mod batch;
mod error;
mod extras;
mod fields;
mod hashes;
mod medium;
mod msgpack;
mod rfc1527;
mod tokens;
mod vllm;

use std::fmt;

pub use batch::{Batch, Events, Limits};
pub use error::{DecodeError, DecodeErrorKind, Field, Found};
pub use extras::{BlockExtras, BlockKeys, ExtraKeys, ExtrasIter, Listed};
pub use hashes::{Hash, HashIter, Hashes};
pub use tokens::{Lookahead, TokenIter, Tokens};

use crate::block::{Group, Tier};

/// One change that an engine announces.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each event")]
pub enum Event<'a> {
    /// Blocks became resident.
    Stored(Stored<'a>),
    /// Copies of blocks are gone.
    Removed(Removed<'a>),
    /// All copies are gone.
    Cleared(Cleared<'a>),
}

/// `BlockStored`: blocks of one chain became resident.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Stored<'a> {
    /// The blocks, in prompt order. Blocks that the engine has masked out (vLLM 0.14 and later) are
    /// left out, also at the beginning.
    pub names: Hashes<'a>,
    /// The block before the first one; `None` where a prompt starts, and in placeholders of
    /// offloaded blocks.
    pub parent: Option<Hash<'a>>,
    /// The tokens of the whole stretch; none in placeholders of offloaded blocks.
    pub tokens: Tokens<'a>,
    /// Tokens in a block; 0 only without tokens.
    pub block_size: u32,
    /// The engine's number for the LoRA adapter; it means something to that engine only.
    pub lora_id: Option<i64>,
    /// The adapter's name (vLLM 0.14 and later, SGLang 0.5.23 and later).
    pub lora_name: Option<&'a str>,
    /// Where the copies lie, from `medium` and `locality`.
    pub tier: Tier,
    /// What identifies the blocks besides their tokens (vLLM 0.17 and later, SGLang from
    /// `cache_salt` and `lora_name`).
    pub extra_keys: ExtraKeys<'a>,
    /// The cache group (vLLM 0.20 and later).
    pub group: Group,
    /// The attention of the group (vLLM 0.22 and later).
    pub kind: Option<SpecKind>,
    /// Tokens of the group's sliding window (vLLM 0.22 and later).
    pub window: Option<u32>,
    /// SGLang's salt of the request, in clear (0.5.20 and later); it is part of `extra_keys`.
    pub cache_salt: Option<&'a str>,
    /// The tokens after each block that belong to its identity (vLLM 0.33).
    pub lookahead: Option<Lookahead<'a>>,
    /// Who says it.
    pub origin: Origin<'a>,
    /// How the event was written.
    pub form: Form,
}

/// `BlockRemoved`: one copy less of each block.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Removed<'a> {
    /// The blocks, in no particular order.
    pub names: Hashes<'a>,
    /// Where the copies lay.
    pub tier: Tier,
    /// The cache group (vLLM 0.20 and later).
    pub group: Group,
    /// Who says it.
    pub origin: Origin<'a>,
}

/// `AllBlocksCleared`: all copies are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cleared<'a> {
    /// In this tier only; `None` when the event does not say, as with vLLM and SGLang.
    pub tier: Option<Tier>,
    /// Who says it.
    pub origin: Origin<'a>,
}

/// Who speaks in an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin<'a> {
    /// An engine, of its own blocks.
    #[default]
    Engine,
    /// A pool (RFC 1527), which holds blocks of several tenants and models and announces all of them
    /// on one stream. A store says that a block is there, not that there is one copy more; a clear
    /// that names no tier means all.
    ///
    /// What it says here can only take away: events of others than whom the stream is registered for
    /// are passed over, and nobody gets blocks by claiming to be somebody.
    Pool {
        /// `tenant_id`.
        tenant: Option<&'a str>,
        /// `model_name`.
        model: Option<&'a str>,
    },
}

/// How an event was written, which narrows down the version of an engine that does not say it.
///
/// `BlockStored` of vLLM has 6 fields from 0.9.0, 7 from 0.10.2, 8 from 0.14, 9 from 0.17, 10 from
/// 0.20, 12 from 0.22, and is a map from 0.24. SGLang's has 6 fields up to 0.5.6, 7 up to 0.5.16,
/// and is a map from 0.5.20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// An array of so many elements, the tag included; 255 for more.
    Array(u8),
    /// A map.
    Map,
}

impl Form {
    /// The versions of vLLM whose `BlockStored` has this form, and of SGLang, for a human.
    pub fn versions(self) -> &'static str {
        match self {
            Form::Array(..=6) => "0.9.0 to 0.10.1 (or SGLang up to 0.5.6)",
            Form::Array(7) => "0.10.2 to 0.13 (or SGLang 0.5.9 to 0.5.16)",
            Form::Array(8) => "0.14 to 0.16",
            Form::Array(9) => "0.17 to 0.19",
            Form::Array(10 | 11) => "0.20 or 0.21",
            Form::Array(_) => "0.22 or 0.23",
            Form::Map => "0.24 or newer (or SGLang 0.5.20 and newer)",
        }
    }
}

/// The attention of a cache group: `kv_cache_spec_kind` of vLLM 0.22 and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpecKind {
    /// `full_attention`
    FullAttention,
    /// `mla_attention`
    MlaAttention,
    /// `sliding_window`
    SlidingWindow,
    /// `sliding_window_mla`
    SlidingWindowMla,
    /// `mamba`
    Mamba,
    /// `chunked_local_attention`
    ChunkedLocalAttention,
    /// `sink_full_attention`
    SinkFullAttention,
    /// `encoder_only_attention`
    EncoderOnlyAttention,
    /// `cross_attention`
    CrossAttention,
    /// `unknown`, or a kind that this version does not know; no rule applies to it.
    Unknown,
}

impl SpecKind {
    /// As the engine writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SpecKind::FullAttention => "full_attention",
            SpecKind::MlaAttention => "mla_attention",
            SpecKind::SlidingWindow => "sliding_window",
            SpecKind::SlidingWindowMla => "sliding_window_mla",
            SpecKind::Mamba => "mamba",
            SpecKind::ChunkedLocalAttention => "chunked_local_attention",
            SpecKind::SinkFullAttention => "sink_full_attention",
            SpecKind::EncoderOnlyAttention => "encoder_only_attention",
            SpecKind::CrossAttention => "cross_attention",
            SpecKind::Unknown => "unknown",
        }
    }

    fn of(kind: &[u8]) -> SpecKind {
        match kind {
            b"full_attention" => SpecKind::FullAttention,
            b"mla_attention" => SpecKind::MlaAttention,
            b"sliding_window" => SpecKind::SlidingWindow,
            b"sliding_window_mla" => SpecKind::SlidingWindowMla,
            b"mamba" => SpecKind::Mamba,
            b"chunked_local_attention" => SpecKind::ChunkedLocalAttention,
            b"sink_full_attention" => SpecKind::SinkFullAttention,
            b"encoder_only_attention" => SpecKind::EncoderOnlyAttention,
            b"cross_attention" => SpecKind::CrossAttention,
            _ => SpecKind::Unknown,
        }
    }
}

/// Leaves the salt out: it is a secret.
impl fmt::Debug for Stored<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("names", &self.names)
            .field("parent", &self.parent)
            .field("tokens", &self.tokens)
            .field("block_size", &self.block_size)
            .field("lora_id", &self.lora_id)
            .field("lora_name", &self.lora_name)
            .field("tier", &self.tier)
            .field("extra_keys", &self.extra_keys)
            .field("group", &self.group)
            .field("kind", &self.kind)
            .field("window", &self.window)
            .field("lookahead", &self.lookahead)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}
