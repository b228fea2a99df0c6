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

    /// Writes tokens from `at` and returns where they end. Bytes behind are overwritten, up to
    /// [`SPILL`].
    #[inline]
    fn write(self, bytes: &mut [u8], at: usize, tokens: &[TokenId]) -> usize {
        match self {
            Layout::Pickle => {
                let (strides, rest) = tokens.as_chunks::<STRIDE>();
                let at = strides.iter().fold(at, |at, stride| write_pickled(bytes, at, stride));
                words(bytes, at, rest, pickled)
            }
            Layout::Cbor => words(bytes, at, tokens, |token| {
                let (word, length) = cbor::token_word(token);
                (word.to_be_bytes(), length)
            }),
        }
    }
}

/// Tokens that are pickled at a time, in at most 80 bytes.
const STRIDE: usize = 16;

/// A cache line.
const LINE: usize = 64;

/// How far behind the tokens' end writing them may reach.
const SPILL: usize = 136;

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

fn pickled(token: TokenId) -> Part {
    let (word, length) = pickle::token_word(token);
    (word.to_le_bytes(), length)
}

/// The same for a stride of tokens, without a branch for each.
#[inline]
fn write_pickled(bytes: &mut [u8], at: usize, tokens: &[TokenId; STRIDE]) -> usize {
    // Opcode and length of BININT, BININT2 and BININT1. What fits one byte fits two, so that place 1
    // is never asked for.
    const FORMS: [[u8; 2]; 4] = [[0x4a, 5], [0x4a, 5], [0x4d, 3], [0x4b, 2]];
    let place = bytes[at..].first_chunk_mut::<SPILL>();
    let (Some(place), 0) = (place, tokens.iter().fold(0, |all, token| all | token) >> 31) else {
        return words(bytes, at, tokens, pickled);
    };
    let mut end = 0;
    for &token in tokens {
        let form = usize::from(token <= 0xff) + 2 * usize::from(token <= 0xffff);
        // The masks change nothing: they show the compiler that no index is out of bounds.
        let ([opcode, length], from) = (FORMS[form & 3], end & (SPILL - 9));
        let word = u64::from(token) << 8 | u64::from(opcode);
        place[from..from + 8].copy_from_slice(&word.to_le_bytes());
        end += usize::from(length);
    }
    at + end
}

/// The chain of one request's blocks.
#[derive(Clone)]
pub(super) struct PlainChain {
    layout: Layout,
    messages: [Message; 2],
    /// Which of the two is hashed next. It has its parent.
    second: bool,
    /// Whether it has its tokens, too.
    ready: bool,
    parent_at: usize,
    tokens_at: usize,
}

/// A message with its padding (FIPS 180-4, section 5.1.1).
#[derive(Clone)]
struct Message {
    memory: Vec<u8>,
    /// Where it begins: at a cache line, since a parent that lies in two costs every link ten
    /// nanoseconds.
    start: usize,
    /// How many bytes count.
    used: usize,
}

impl PlainChain {
    /// A chain of blocks of `size` tokens that follow `parent`; `None` if they are not done here.
    pub(super) fn new(layout: Layout, size: usize, parent: &BlockHash) -> Option<PlainChain> {
        let Value::Bytes32(parent) = &parent.0 else { return None };
        if !SIZES.contains(&size) {
            return None;
        }
        let head = layout.before_parent();
        let (middle, length) = layout.before_tokens(size);
        let tokens_at = head.len() + 32 + length;
        let most = tokens_at + size * pickle::TOKEN_MAX + SPILL;
        let messages = [(); 2].map(|()| {
            let mut message = Message::new(most);
            let bytes = message.bytes();
            bytes[..head.len()].copy_from_slice(head);
            bytes[head.len()..head.len() + 32].copy_from_slice(parent);
            bytes[head.len() + 32..tokens_at].copy_from_slice(&middle[..length]);
            message
        });
        let parent_at = head.len();
        Some(PlainChain { layout, messages, second: false, ready: false, parent_at, tokens_at })
    }

    /// Goes on after another block; `false` if its hash is of another form.
    pub(super) fn follow(&mut self, parent: &BlockHash) -> bool {
        self.ready = false;
        let Value::Bytes32(parent) = &parent.0 else { return false };
        self.messages[usize::from(self.second)].put(self.parent_at, parent);
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
        let [first, second] = &mut self.messages;
        let (message, ahead) = if self.second { (second, first) } else { (first, second) };
        if !self.ready {
            message.fill(self.layout, self.tokens_at, tokens);
        }
        if let Some(next) = next {
            ahead.fill(self.layout, self.tokens_at, next);
        }
        let mut state = START;
        compress256(&mut state, message.padded());
        // At once, so that it lies there when the next compression reads it.
        let hash = bytes(&state);
        ahead.put(self.parent_at, &hash);
        self.ready = next.is_some();
        self.second = !self.second;
        BlockHash(Value::Bytes32(hash))
    }
}

impl Message {
    fn new(most: usize) -> Message {
        let memory = vec![0; most + LINE];
        // A copy begins at the same place, at a line or not.
        let start = memory.as_ptr().align_offset(LINE).min(LINE);
        Message { memory, start, used: 0 }
    }

    #[inline]
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }

    #[inline]
    fn put(&mut self, at: usize, parent: &[u8; 32]) {
        self.bytes()[at..at + 32].copy_from_slice(parent);
    }

    #[inline]
    fn padded(&self) -> &[[u8; 64]] {
        self.memory[self.start..self.start + self.used].as_chunks().0
    }

    /// Writes everything but the parent.
    #[inline]
    fn fill(&mut self, layout: Layout, tokens_at: usize, tokens: &[TokenId]) {
        let bytes = self.bytes();
        let at = layout.write(bytes, tokens_at, tokens);
        let (tail, length) = layout.after_tokens();
        // The tail, and zeros as far as a padded message can reach.
        let rest = &mut bytes[at..at + 72];
        rest[..8].copy_from_slice(&tail);
        rest[8..].fill(0);
        let length = at + length;
        if layout == Layout::Pickle {
            // A frame's length counts from behind it.
            bytes[3..11].copy_from_slice(&(length as u64 - 11).to_le_bytes());
        }
        let end = (length + 9).next_multiple_of(64);
        bytes[end - 8..end].copy_from_slice(&(length as u64 * 8).to_be_bytes());
        self.used = end;
    }
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
