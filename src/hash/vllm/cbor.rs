//! Canonical CBOR (RFC 8949, section 4.2) of a block, as Python's `cbor2` writes it.
//!
//! Only what blocks hold: arrays of definite length, integers in their shortest form, byte and text
//! strings, null. cbor2 5.4.6, 5.6.5 and 6.2.1 give the same bytes.

use super::block_hash::Int;
use super::writer::{Tag, Writer};
use crate::block::TokenId;

/// CBOR in the making; its memory is reused.
#[derive(Clone, Debug, Default)]
pub(super) struct Cbor {
    bytes: Vec<u8>,
}

/// Major types (RFC 8949, section 3.1), already in their place in the first byte.
mod major {
    pub(super) const UNSIGNED: u8 = 0 << 5;
    pub(super) const NEGATIVE: u8 = 1 << 5;
    pub(super) const BYTES: u8 = 2 << 5;
    pub(super) const TEXT: u8 = 3 << 5;
    pub(super) const ARRAY: u8 = 4 << 5;
}

impl Cbor {
    /// Starts over.
    pub(super) fn start(&mut self) {
        self.bytes.clear();
    }

    /// The bytes written since [`start`](Cbor::start).
    pub(super) fn finish(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    fn head(&mut self, major: u8, n: u64) {
        match u32::try_from(n) {
            Ok(n) => {
                let (word, length) = head_word(major, n);
                self.bytes.extend_from_slice(&word.to_be_bytes()[..length]);
            }
            Err(_) => {
                self.bytes.push(major | 27);
                self.bytes.extend_from_slice(&n.to_be_bytes());
            }
        }
    }
}

impl Writer for Cbor {
    fn none(&mut self) {
        self.bytes.push(0xf6);
    }

    fn int(&mut self, n: i64) {
        match u64::try_from(n) {
            Ok(n) => self.head(major::UNSIGNED, n),
            // -1 - n, which is what a negative integer stores, is its complement.
            Err(_) => self.head(major::NEGATIVE, !n as u64),
        }
    }

    fn unsigned(&mut self, n: &Int) {
        let used = n.iter().position(|&byte| byte != 0).map_or(0, |first| n.len() - first);
        if used <= 8 {
            let word = n[24..].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
            return self.head(major::UNSIGNED, word);
        }
        // Tag 2, a bignum (RFC 8949, section 3.4.3).
        self.bytes.push(0xc2);
        self.bytes(&n[32 - used..]);
    }

    fn tokens(&mut self, tokens: &[TokenId]) {
        // Each token is one word of which the first bytes count, and the next one overwrites the
        // rest.
        let mut at = self.bytes.len();
        self.bytes.resize(at + tokens.len() * 5 + 8, 0);
        for &token in tokens {
            let (word, length) = token_word(token);
            self.bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
            at += length;
        }
        self.bytes.truncate(at);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.head(major::BYTES, bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.head(major::TEXT, text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn tag(&mut self, tag: Tag) {
        self.text(tag.as_str());
    }

    fn open(&mut self, len: usize) {
        self.head(major::ARRAY, len as u64);
    }

    fn close(&mut self, _len: usize) {}
}

/// A token as a big-endian word, and how many of its bytes count.
#[inline]
pub(super) fn token_word(token: TokenId) -> (u64, usize) {
    head_word(major::UNSIGNED, token)
}

/// The head of an array as a big-endian word, and how many of its bytes count.
pub(super) fn array_word(len: u32) -> (u64, usize) {
    head_word(major::ARRAY, len)
}

/// The head of a data item with argument `n` as a big-endian word, and how many of its bytes count.
///
/// Tokens of all lengths follow each other without a pattern, so they are told apart without a
/// branch.
#[inline]
fn head_word(major: u8, n: u32) -> (u64, usize) {
    const FIRST: [u8; 4] = [0, 24, 25, 26];
    const SHIFTS: [u32; 4] = [56, 48, 40, 24];
    const LENGTHS: [usize; 4] = [1, 2, 3, 5];
    let class = usize::from(n > 23) + usize::from(n > 0xff) + usize::from(n > 0xffff);
    let first = u64::from(major | FIRST[class]) << 56;
    (first | u64::from(n) << SHIFTS[class], LENGTHS[class])
}
