//! SHA-256 chains of blocks without extra keys, faster than by the general writer.
//!
//! Such blocks give messages that differ in the parent, in the tokens and in the lengths that follow
//! from these, so a message is put together in place, padding and all. The chain leaves nothing to
//! run in parallel but that: the next block's tokens are written before this block is compressed, so
//! that the CPU does it while it waits for the compressions, and no compression waits for bytes that
//! were only just written.

use std::fmt;

use sha2::block_api::compress256;

use super::block_hash::{BlockHash, Value};
use super::{cbor, pickle};
use crate::block::TokenId;

/// The state of SHA-256 (FIPS 180-4, section 6.2), which at the end is the hash.
type State = [u32; 8];

/// The initial hash value (FIPS 180-4, section 5.3.3).
pub(super) const START: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Block sizes that are done here. Tuples below are written without a mark in pickles, and messages
/// of larger ones would reach the size at which pickles are cut into frames.
const SIZES: std::ops::RangeInclusive<usize> = 4..=1024;

/// The encoding of a block without extra keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Pickle,
    Cbor,
}

/// A word of which the first bytes count, and how many.
type Part = ([u8; 8], usize);

impl Layout {
    /// What comes before the parent.
    fn before_parent(self) -> &'static [u8] {
        match self {
            // Protocol 5, a frame of a length that is filled in, 32 bytes.
            Layout::Pickle => b"\x80\x05\x95\0\0\0\0\0\0\0\0C\x20",
            // An array of three, 32 bytes.
            Layout::Cbor => b"\x83\x58\x20",
        }
    }

    /// What comes between the parent and so many tokens.
    fn before_tokens(self, tokens: usize) -> Part {
        match self {
            // The parent enters the memo; a mark.
            Layout::Pickle => (*b"\x94(\0\0\0\0\0\0", 2),
            Layout::Cbor => {
                // At most 1024.
                let (word, length) = cbor::array_word(tokens as u32);
                (word.to_be_bytes(), length)
            }
        }
    }

    /// What comes after the tokens, with the first bit of the padding behind it.
    fn after_tokens(self) -> Part {
        match self {
            // A tuple to the memo, None, a tuple of three to the memo, the end.
            Layout::Pickle => (*b"t\x94N\x87\x94.\x80\0", 6),
            // Null.
            Layout::Cbor => (*b"\xf6\x80\0\0\0\0\0\0", 1),
        }
    }

    /// Writes tokens from `at` and returns where they end. Up to 7 bytes behind are overwritten.
    #[inline]
    fn write(self, bytes: &mut [u8], at: usize, tokens: &[TokenId]) -> usize {
        match self {
            Layout::Pickle => words(bytes, at, tokens, |token| {
                let (word, length) = pickle::token_word(token);
                (word.to_le_bytes(), length)
            }),
            Layout::Cbor => words(bytes, at, tokens, |token| {
                let (word, length) = cbor::token_word(token);
                (word.to_be_bytes(), length)
            }),
        }
    }
}

#[inline]
fn words(
    bytes: &mut [u8],
    mut at: usize,
    tokens: &[TokenId],
    word: impl Fn(TokenId) -> Part,
) -> usize {
    for &token in tokens {
        let (word, length) = word(token);
        bytes[at..at + 8].copy_from_slice(&word);
        at += length;
    }
    at
}

/// The chain of one request's blocks.
#[derive(Clone)]
pub(super) struct PlainChain {
    layout: Layout,
    parent: State,
    /// The message that is to be hashed, and the next one.
    messages: [Message; 2],
    /// Whether the first message has its tokens.
    ready: bool,
    parent_at: usize,
    tokens_at: usize,
}

/// A message with its padding (FIPS 180-4, section 5.1.1).
#[derive(Clone)]
struct Message {
    blocks: Vec<[u8; 64]>,
    /// How many blocks count.
    used: usize,
}

impl PlainChain {
    /// A chain of blocks of `size` tokens that follow `parent`; `None` if they are not done here.
    pub(super) fn new(layout: Layout, size: usize, parent: &BlockHash) -> Option<PlainChain> {
        let parent = state(parent).filter(|_| SIZES.contains(&size))?;
        let head = layout.before_parent();
        let (middle, length) = layout.before_tokens(size);
        let tokens_at = head.len() + 32 + length;
        // The longest tokens, then what `Message::fill` writes behind them.
        let most = tokens_at + size * pickle::TOKEN_MAX + 8 + 64;
        let mut message = Message { blocks: vec![[0; 64]; most.div_ceil(64)], used: 0 };
        let bytes = message.blocks.as_flattened_mut();
        bytes[..head.len()].copy_from_slice(head);
        bytes[head.len() + 32..tokens_at].copy_from_slice(&middle[..length]);
        let messages = [message.clone(), message];
        let parent_at = head.len();
        Some(PlainChain { layout, parent, messages, ready: false, parent_at, tokens_at })
    }

    /// Goes on after another block; `false` if its hash is of another form.
    pub(super) fn follow(&mut self, parent: &BlockHash) -> bool {
        self.ready = false;
        match state(parent) {
            Some(parent) => self.parent = parent,
            None => return false,
        }
        true
    }

    /// Forgets tokens that were written ahead.
    pub(super) fn forget_ahead(&mut self) {
        self.ready = false;
    }

    /// The hash of the block of these tokens, which becomes the parent.
    ///
    /// With `next`, the next call is for those tokens unless
    /// [`forget_ahead`](PlainChain::forget_ahead) comes in between.
    #[inline]
    pub(super) fn link(&mut self, tokens: &[TokenId], next: Option<&[TokenId]>) -> BlockHash {
        let PlainChain { layout, messages: [message, ahead], .. } = self;
        if !self.ready {
            message.fill(*layout, self.tokens_at, tokens);
        }
        if let Some(next) = next {
            ahead.fill(*layout, self.tokens_at, next);
        }
        let parent = &mut message.blocks.as_flattened_mut()[self.parent_at..self.parent_at + 32];
        parent.copy_from_slice(&bytes(&self.parent));
        let mut state = START;
        compress256(&mut state, &message.blocks[..message.used]);
        self.parent = state;
        self.ready = next.is_some();
        self.messages.swap(0, 1);
        BlockHash(Value::Bytes32(bytes(&state)))
    }
}

impl Message {
    /// Writes everything but the parent.
    #[inline]
    fn fill(&mut self, layout: Layout, tokens_at: usize, tokens: &[TokenId]) {
        let bytes = self.blocks.as_flattened_mut();
        let at = layout.write(bytes, tokens_at, tokens);
        let (tail, length) = layout.after_tokens();
        bytes[at..at + 8].copy_from_slice(&tail);
        bytes[at + 8..at + 72].fill(0);
        let length = at + length;
        if layout == Layout::Pickle {
            // A frame's length counts from behind it.
            bytes[3..11].copy_from_slice(&(length as u64 - 11).to_le_bytes());
        }
        self.used = (length + 9).div_ceil(64);
        let end = self.used * 64;
        bytes[end - 8..end].copy_from_slice(&(length as u64 * 8).to_be_bytes());
    }
}

fn state(hash: &BlockHash) -> Option<State> {
    let Value::Bytes32(bytes) = &hash.0 else { return None };
    let (words, _) = bytes.as_chunks();
    Some(std::array::from_fn(|n| u32::from_be_bytes(words[n])))
}

/// The hash that a state is.
#[inline]
pub(super) fn bytes(state: &State) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Messages hold prompts.
impl fmt::Debug for PlainChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainChain").field("layout", &self.layout).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::writer::{Encoder, Link};
    use super::super::{Algorithm, Version};
    use super::*;

    const BOUNDARIES: [TokenId; 14] = [
        0,
        23,
        24,
        255,
        256,
        65_535,
        65_536,
        (1 << 24) - 1,
        1 << 24,
        (1 << 31) - 1,
        1 << 31,
        (1 << 31) + 1,
        u32::MAX - 1,
        u32::MAX,
    ];

    /// Both ways over the same blocks, written ahead or not.
    fn compare(tokens: &[TokenId], size: usize, algorithm: Algorithm, root: [u8; 32]) {
        let root = BlockHash(Value::Bytes32(root));
        let mut general = Encoder::new(Version::NEWEST, algorithm, None);
        let layout = general.plain_layout().unwrap();
        let mut alone = PlainChain::new(layout, size, &root).unwrap();
        let mut ahead = alone.clone();
        let mut parent = root;
        let mut blocks = tokens.chunks_exact(size).peekable();
        while let Some(block) = blocks.next() {
            let link = Link { parent: &parent, tokens: block, lookahead: &[], extras: &[] };
            parent = general.link(&link);
            assert_eq!(alone.link(block, None), parent, "{algorithm}, {block:?}");
            assert_eq!(ahead.link(block, blocks.peek().copied()), parent, "{algorithm}, ahead");
        }
    }

    #[test]
    fn every_length_of_a_message_hashes_like_the_general_writer() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha256Cbor] {
            for size in (4..=80).chain([127, 128, 255, 256, 257, 528, 1024]) {
                for token in BOUNDARIES {
                    compare(&vec![token; 2 * size], size, algorithm, [0xa5; 32]);
                }
                let mixed: Vec<_> = BOUNDARIES.into_iter().cycle().take(3 * size).collect();
                compare(&mixed, size, algorithm, [7; 32]);
            }
        }
    }

    #[test]
    fn what_is_not_done_here_is_refused() {
        let root = BlockHash(Value::Bytes32([1; 32]));
        for size in [1, 2, 3, 1025] {
            assert!(PlainChain::new(Layout::Pickle, size, &root).is_none());
        }
        assert!(PlainChain::new(Layout::Cbor, 16, &BlockHash::from(7_u64)).is_none());
    }

    #[test]
    fn tokens_written_ahead_are_forgotten_on_request() {
        let root = BlockHash(Value::Bytes32([1; 32]));
        let (a, b, c) = ([1; 16], [2; 16], [3; 16]);
        let mut chain = PlainChain::new(Layout::Pickle, 16, &root).unwrap();
        let mut other = chain.clone();
        let first = chain.link(&a, Some(&b));
        chain.forget_ahead();
        other.link(&a, None);
        assert_eq!(chain.link(&c, Some(&b)), other.link(&c, None));
        assert!(chain.follow(&first));
        other.follow(&first);
        assert_eq!(chain.link(&c, None), other.link(&c, None));
    }

    proptest! {
        #[test]
        fn any_tokens_hash_like_the_general_writer(
            size in 4_usize..70,
            root: [u8; 32],
            tokens in prop::collection::vec(
                prop_oneof![any::<TokenId>(), 0_u32..70_000, prop::sample::select(&BOUNDARIES[..])],
                70 * 3,
            ),
        ) {
            compare(&tokens, size, Algorithm::Sha256, root);
            compare(&tokens, size, Algorithm::Sha256Cbor, root);
        }
    }
}
