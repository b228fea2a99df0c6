//! Page hashes of SGLang 0.5.6 and later.
//!
//! SGLang's block is a *page* (`page_size` tokens; the last page of a sequence may be shorter). Its
//! hash is SHA-256(hash of the page before ‖ each token as 4 bytes, little-endian); the first page
//! has nothing before it. Events carry the first 8 bytes, big-endian, as a signed integer.
//! SGLang 0.5.3 and earlier did not chain pages; their hashes are not offered.
//!
//! Token ids beyond 32 bits, which recent versions write as 8 bytes, do not exist as
//! [`TokenId`].

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::block::{BlockSize, Name, TokenId};

/// The hash of one page and of everything before it.
///
/// ```
/// use kvscout::hash::sglang::PageHash;
///
/// let first = PageHash::of(None, &[13]);
/// assert_eq!(first.event(), 4883709756531329411);
/// let second = PageHash::of(Some(&first), &[7932]);
/// assert_eq!(second.event(), -1806851011812371635);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash([u8; 32]);

impl PageHash {
    /// The hash of the page `tokens` after the page `parent`.
    pub fn of(parent: Option<&PageHash>, tokens: &[TokenId]) -> PageHash {
        page(parent, tokens.iter().copied())
    }

    /// The hash of a page of bigrams, as speculative decoding with EAGLE keys its cache: `tokens`
    /// are the page's tokens and the one after it, and every token counts together with its
    /// successor.
    pub fn of_bigrams(parent: Option<&PageHash>, tokens: &[TokenId]) -> PageHash {
        page(parent, tokens.windows(2).flatten().copied())
    }

    /// What takes the place of the first page's parent for requests with a cache salt:
    /// SHA-256(`"sglang-cache-salt-v1\0"` ‖ salt), as 0.5.23 does it.
    pub fn salted_root(salt: &str) -> PageHash {
        let seed = Sha256::new_with_prefix(b"sglang-cache-salt-v1\0").chain_update(salt);
        PageHash(seed.finalize().into())
    }

    /// A hash that was computed elsewhere.
    pub fn from_bytes(hash: [u8; 32]) -> PageHash {
        PageHash(hash)
    }

    /// All 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// The integer that SGLang's events carry; where the request has a [`Namespace`], that is
    /// applied after.
    pub fn event(&self) -> i64 {
        first_word(&self.0)
    }

    /// The normal form of [`event`](PageHash::event).
    pub fn name(&self) -> Name {
        Name::from(self.event())
    }
}

impl fmt::Display for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The hashes of a sequence's pages, in order, the last page possibly shorter.
///
/// `root` is what comes before the first page: `None`, [`PageHash::salted_root`], or the page that
/// the sequence continues.
pub fn pages(
    tokens: &[TokenId],
    page_size: BlockSize,
    root: Option<PageHash>,
) -> impl Iterator<Item = PageHash> {
    let mut parent = root;
    tokens.chunks(page_size.tokens()).map(move |tokens| {
        let hash = PageHash::of(parent.as_ref(), tokens);
        parent = Some(hash);
        hash
    })
}

/// A separate name space for the hashes in events (SGLang 0.5.23).
///
/// Events of a request with a named LoRA adapter are namespaced by its extra key alone; with
/// `"format": "dynamo"` in the events' configuration, by extra key and cache salt of every request.
/// Page hashes themselves stay as they are: only what an event carries is hashed once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Namespace([u8; 32]);

impl Namespace {
    /// The name space of an extra key and a cache salt, or `None` if there is neither.
    ///
    /// The seed is SHA-256 over `"sglang-kv-event-namespace-v1"` and, for each of the two, a zero
    /// byte if it is absent, otherwise a one byte, its length as 8 bytes, little-endian, and its
    /// UTF-8 bytes. An empty text is present.
    pub fn new(extra_key: Option<&str>, cache_salt: Option<&str>) -> Option<Namespace> {
        if extra_key.is_none() && cache_salt.is_none() {
            return None;
        }
        let mut seed = Sha256::new_with_prefix(b"sglang-kv-event-namespace-v1");
        for part in [extra_key, cache_salt] {
            match part {
                None => seed.update([0]),
                Some(text) => {
                    seed.update([1]);
                    seed.update((text.len() as u64).to_le_bytes());
                    seed.update(text);
                }
            }
        }
        Some(Namespace(seed.finalize().into()))
    }

    /// What events of this name space carry instead of `event`: the first 8 bytes, big-endian, of
    /// SHA-256(seed ‖ `event` as 8 bytes, big-endian).
    pub fn event(&self, event: i64) -> i64 {
        let hash = Sha256::new_with_prefix(self.0).chain_update(event.to_be_bytes()).finalize();
        first_word(&hash.into())
    }
}

fn page(parent: Option<&PageHash>, words: impl Iterator<Item = u32>) -> PageHash {
    let mut hash = Sha256::new();
    if let Some(PageHash(parent)) = parent {
        hash.update(parent);
    }
    // SHA-256 takes 64 bytes at a time: smaller updates would cost more than the hash.
    let mut chunk = [0; 64];
    let mut filled = 0;
    for word in words {
        chunk[filled..filled + 4].copy_from_slice(&word.to_le_bytes());
        filled += 4;
        if filled == chunk.len() {
            hash.update(chunk);
            filled = 0;
        }
    }
    hash.update(&chunk[..filled]);
    PageHash(hash.finalize().into())
}

fn first_word(hash: &[u8; 32]) -> i64 {
    hash[..8].iter().fold(0, |word, &byte| word << 8 | i64::from(byte))
}
