//! The words everyone uses: tokens, blocks, names, workers, tiers, prompts.
//!
//! This module imports nothing of the crate; every other module imports it.

use std::fmt;
use std::num::NonZeroU32;

/// A token id as the model's tokenizer numbers it.
pub type TokenId = u32;

/// Number of tokens in one block.
///
/// vLLM's default is 16; the value that counts is the one in the engine's own events (a CPU engine
/// uses 128, hybrid models more than 1000). Only full blocks are ever hashed or matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// vLLM's default block size.
    // Evaluated by the compiler: 16 is not zero.
    pub const DEFAULT: BlockSize = BlockSize(NonZeroU32::new(16).unwrap());

    /// A block size, or `None` for zero.
    pub const fn new(tokens: u32) -> Option<BlockSize> {
        match NonZeroU32::new(tokens) {
            Some(n) => Some(BlockSize(n)),
            None => None,
        }
    }

    /// The number of tokens.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The number of tokens, as an index.
    pub const fn tokens(self) -> usize {
        self.0.get() as usize
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a prompt is cut into blocks: blocks of different shapes are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Tokens in a block.
    pub size: BlockSize,
    /// Tokens after a block that are part of its identity (vLLM 0.33 with EAGLE-like drafters; 0
    /// otherwise). A block exists only when these tokens exist.
    pub lookahead: u32,
}

impl Shape {
    /// Blocks of `size` tokens without look-ahead.
    pub const fn plain(size: BlockSize) -> Shape {
        Shape { size, lookahead: 0 }
    }

    /// How many blocks of this shape a prompt of `tokens` tokens has.
    pub const fn blocks_in(self, tokens: usize) -> usize {
        tokens.saturating_sub(self.lookahead as usize) / self.size.tokens()
    }
}

/// What an engine calls a block, in normal form: the last 8 bytes of its chained block hash, read
/// big-endian.
///
/// This is the integer that vLLM publishes by default
/// (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=1`, 0.10.2 and later); the byte-string form, the signed
/// integers of older versions and of SGLang, and concatenated hashes of coarse groups all reduce to
/// it.
///
/// ```
/// use kvscout::block::Name;
///
/// let digest = [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 1, 0];
/// assert_eq!(Name::from_bytes(&digest), Some(Name(256)));
/// assert_eq!(Name::from(-1_i64), Name(u64::MAX));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub u64);

impl Name {
    /// The normal form of a byte-string hash; shorter strings are padded with zeros on the left.
    /// `None` for an empty string.
    pub fn from_bytes(hash: &[u8]) -> Option<Name> {
        if hash.is_empty() {
            return None;
        }
        let tail = &hash[hash.len().saturating_sub(8)..];
        Some(Name(tail.iter().fold(0, |n, &b| n << 8 | u64::from(b))))
    }
}

impl From<i64> for Name {
    /// Signed hashes (vLLM's `builtin`, SGLang) keep their bits.
    fn from(hash: i64) -> Name {
        Name(hash as u64)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Keyed digest of one block's content (tokens, extra keys, look-ahead), parent excluded.
///
/// Made by [`hash::content`](crate::hash::content); equal only under the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u64);

/// One worker: a (pod, data-parallel rank) pair, interned by registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u32);

/// One (tenant, model) pair, interned by registration.
///
/// Engine hashes leave the model out, so blocks of different spaces are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpaceId(pub u32);

/// One vocabulary: the hash contract under which names are valid, shared by every worker that
/// follows it, or private to one worker whose contract cannot be recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VocabularyId(pub u32);

/// A KV cache group of an engine (`group_idx` of its events; 0 where there is only one).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub u32);

/// Where a copy of a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The engine's own device memory.
    Gpu,
    /// Host memory of the engine's node.
    Cpu,
    /// A disk of the engine's node.
    Disk,
    /// Anything that must be fetched over a network or an object store.
    Remote,
    /// A medium this version does not know; kept apart, never counted.
    Unknown,
}

impl Tier {
    /// The tiers that count, fastest first.
    pub const KNOWN: [Tier; 4] = [Tier::Gpu, Tier::Cpu, Tier::Disk, Tier::Remote];

    /// Position in [`Tier::KNOWN`], or `None` for an unknown medium.
    pub const fn rank(self) -> Option<usize> {
        match self {
            Tier::Gpu => Some(0),
            Tier::Cpu => Some(1),
            Tier::Disk => Some(2),
            Tier::Remote => Some(3),
            Tier::Unknown => None,
        }
    }

    /// Lower-case name, as it appears in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Tier::Gpu => "gpu",
            Tier::Cpu => "cpu",
            Tier::Disk => "disk",
            Tier::Remote => "remote",
            Tier::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What identifies one block besides its tokens, in normal form.
///
/// A block's extra keys always come in this order: adapter, items by position, salt, embeddings.
/// The engine's event and the router's prompt are both brought to this form before their digests
/// are compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtraKey<'a> {
    /// Name of the LoRA adapter; on every block of its requests.
    Lora(&'a str),
    /// A multimodal item that overlaps the block.
    Item {
        /// Content hash of the item.
        identifier: &'a str,
        /// Where the item starts, counted from the block's first token; negative when it began in
        /// an earlier block.
        offset: i64,
    },
    /// The request's cache salt; on its first block only.
    Salt(&'a str),
    /// SHA-256 of the rows of prompt embeddings of the block and its look-ahead.
    Embeds([u8; 32]),
}

/// Leaves the salt out: it is a secret.
impl fmt::Debug for ExtraKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExtraKey::Lora(name) => f.debug_tuple("Lora").field(name).finish(),
            ExtraKey::Item { identifier, offset } => f
                .debug_struct("Item")
                .field("identifier", identifier)
                .field("offset", offset)
                .finish(),
            ExtraKey::Salt(_) => f.write_str("Salt(..)"),
            ExtraKey::Embeds(digest) => f.debug_tuple("Embeds").field(digest).finish(),
        }
    }
}

/// A LoRA adapter as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lora<'a> {
    /// The adapter's name; identifies it in events (vLLM 0.14 and later).
    pub name: &'a str,
    /// The engine's integer id; enters hashes up to vLLM 0.11.0.
    pub id: Option<i64>,
    /// The path as the engine sees it; enters hashes since vLLM 0.31.
    pub path: Option<&'a str>,
}

/// A multimodal item (image, audio, video) at its place in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Content hash of the item, as the engine computes it.
    pub identifier: &'a str,
    /// First token of the item's placeholder.
    pub offset: u32,
    /// Tokens of the placeholder.
    pub length: u32,
}

/// Prompt embeddings that replace tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embeds<'a> {
    /// The tensor's raw bytes, `row` bytes for each position. vLLM 0.11.1 to 0.16 hashes them as
    /// they are, later versions their SHA-256.
    Rows {
        /// All rows, one after the other.
        bytes: &'a [u8],
        /// Bytes of one row.
        row: usize,
    },
    /// SHA-256 of each block's rows, those of its look-ahead included, in block order (vLLM 0.17
    /// and later).
    Digests(&'a [[u8; 32]]),
}

/// A prompt as the router asks about it: tokens, and what else identifies its blocks.
///
/// ```
/// use kvscout::block::Prompt;
///
/// let tokens = [1, 2, 3];
/// let prompt = Prompt { cache_salt: Some("tenant-a"), ..Prompt::new(&tokens) };
/// assert_eq!(prompt.token_ids.len(), 3);
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// The prompt's token ids.
    pub token_ids: &'a [TokenId],
    /// The LoRA adapter of the request.
    pub lora: Option<Lora<'a>>,
    /// The cache salt of the request; an empty salt is no salt.
    pub cache_salt: Option<&'a str>,
    /// Multimodal items, by position.
    pub items: &'a [Item<'a>],
    /// Prompt embeddings.
    pub embeds: Option<Embeds<'a>>,
}

impl<'a> Prompt<'a> {
    /// A prompt of plain text.
    pub fn new(token_ids: &'a [TokenId]) -> Prompt<'a> {
        Prompt { token_ids, ..Prompt::default() }
    }
}

/// Shows how much there is, never what: tokens are the user's words and a salt is a secret.
impl fmt::Debug for Prompt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt")
            .field("tokens", &self.token_ids.len())
            .field("lora", &self.lora)
            .field("salted", &self.cache_salt.is_some_and(|salt| !salt.is_empty()))
            .field("items", &self.items.len())
            .field("embeds", &self.embeds.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_tokens_nor_salts_show_in_debug_output() {
        let prompt = Prompt { cache_salt: Some("secret"), ..Prompt::new(&[987_654]) };
        let text = format!("{prompt:?} {:?}", ExtraKey::Salt("secret"));
        assert!(!text.contains("secret") && !text.contains("987654"), "{text}");
    }

    #[test]
    fn a_name_is_the_last_eight_bytes_of_any_hash() {
        let bytes: Vec<u8> = (0..32).collect();
        assert_eq!(Name::from_bytes(&bytes), Some(Name(0x18191a1b1c1d1e1f)));
        assert_eq!(Name::from_bytes(&[1, 2]), Some(Name(258)));
        assert_eq!(Name::from_bytes(&[]), None);
    }

    #[test]
    fn a_block_with_look_ahead_exists_only_with_the_tokens_after_it() {
        let size = BlockSize::DEFAULT;
        assert_eq!(Shape::plain(size).blocks_in(32), 2);
        assert_eq!(Shape { size, lookahead: 1 }.blocks_in(32), 1);
        assert_eq!(Shape { size, lookahead: 1 }.blocks_in(33), 2);
        assert_eq!(Shape { size, lookahead: 3 }.blocks_in(0), 0);
    }
}
