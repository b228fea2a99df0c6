//! CPython's `hash()` of a block: the algorithm `builtin`.
//!
//! CPython 3.8 and later hash tuples this way, 3.11 and later strings, 3.12 and later `None`.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::block_hash::Int;
use super::writer::{Tag, Writer};
use crate::block::TokenId;

/// `hash(None)` since CPython 3.12.
const NONE: i64 = 0xFCA8_6420;

/// Integers are reduced modulo this Mersenne prime (`_PyHASH_MODULUS` of 64-bit builds).
const MODULUS: u64 = (1 << 61) - 1;

/// Constants of xxHash64, of which CPython's tuple hash is a simplification.
const PRIME_1: u64 = 11_400_714_785_074_694_791;
const PRIME_2: u64 = 14_029_467_366_897_019_727;
const PRIME_5: u64 = 2_870_177_450_012_600_261;

/// The secret of CPython's string hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StringKey([u64; 2]);

impl StringKey {
    /// The key that an interpreter derives from `PYTHONHASHSEED`; `None` unless it is a plain
    /// decimal number of 32 bits (`random` and an empty text mean a random key).
    pub(super) fn from_seed(seed: &str) -> Option<StringKey> {
        if seed.is_empty() || !seed.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let mut state: u32 = seed.parse().ok()?;
        if state == 0 {
            return Some(StringKey([0; 2]));
        }
        // `lcg_urandom` of CPython's bootstrap_hash.c; it makes 24 bytes, the key is the first 16.
        let mut word = || {
            u64::from_le_bytes(std::array::from_fn(|_| {
                state = state.wrapping_mul(214_013).wrapping_add(2_531_011);
                (state >> 16) as u8
            }))
        };
        Some(StringKey([word(), word()]))
    }
}

/// `hash(text)`; `None` where that depends on an unknown key. An empty string hashes to 0 under
/// every key.
pub(super) fn text_hash(key: Option<StringKey>, text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let StringKey([low, high]) = key?;
    let mut sip = SipHasher13::new_with_keys(low, high);
    // CPython hashes its internal buffer, which has as many bytes for each character as the widest
    // one needs.
    match text.chars().map(u32::from).max().unwrap_or(0) {
        0..=0x7f => sip.write(text.as_bytes()),
        0x80..=0xff => text.chars().for_each(|c| sip.write(&[c as u8])),
        0x100..=0xffff => text.chars().for_each(|c| sip.write(&(c as u16).to_le_bytes())),
        _ => text.chars().for_each(|c| sip.write(&(c as u32).to_le_bytes())),
    }
    Some(not_minus_one(sip.finish() as i64))
}

/// `hash(n)` of an integer.
fn int_hash(n: i64) -> i64 {
    let magnitude = (n.unsigned_abs() % MODULUS) as i64;
    not_minus_one(if n < 0 { -magnitude } else { magnitude })
}

/// -1 reports an error in CPython's interface, so no hash is -1.
fn not_minus_one(hash: i64) -> i64 {
    if hash == -1 { -2 } else { hash }
}

/// The hash of a block in the making.
#[derive(Clone, Debug)]
pub(super) struct Builtin {
    key: Option<StringKey>,
    /// The accumulator of each open tuple, outermost first; the first holds the finished hash.
    open: Vec<u64>,
}

impl Builtin {
    /// A hash whose strings are hashed under `key`.
    pub(super) fn new(key: Option<StringKey>) -> Builtin {
        Builtin { key, open: Vec::new() }
    }

    /// Starts over.
    pub(super) fn start(&mut self) {
        self.open.clear();
        self.open.push(0);
    }

    /// The hash of the tuple that was written.
    pub(super) fn finish(&self) -> i64 {
        self.open.first().map_or(0, |&hash| hash as i64)
    }

    fn item(&mut self, hash: i64) {
        if let Some(accumulator) = self.open.last_mut() {
            let sum = accumulator.wrapping_add((hash as u64).wrapping_mul(PRIME_2));
            *accumulator = sum.rotate_left(31).wrapping_mul(PRIME_1);
        }
    }
}

impl Writer for Builtin {
    fn none(&mut self) {
        self.item(NONE);
    }

    fn int(&mut self, n: i64) {
        self.item(int_hash(n));
    }

    fn unsigned(&mut self, n: &Int) {
        let rest = n
            .iter()
            .fold(0, |rest: u128, &byte| (rest << 8 | u128::from(byte)) % u128::from(MODULUS));
        self.item(rest as i64);
    }

    fn tokens(&mut self, tokens: &[TokenId]) {
        // 32 bits are below the modulus: a token is its own hash.
        tokens.iter().for_each(|&token| self.item(i64::from(token)));
    }

    fn bytes(&mut self, _bytes: &[u8]) {
        unreachable!("no version with this algorithm hashes bytes");
    }

    fn text(&mut self, text: &str) {
        // A contract refuses texts whose hash it cannot know before any block is hashed.
        let hash = text_hash(self.key, text).expect("a text was checked by its contract");
        self.item(hash);
    }

    fn tag(&mut self, tag: Tag) {
        self.text(tag.as_str());
    }

    fn open(&mut self, _len: usize) {
        self.open.push(PRIME_5);
    }

    fn close(&mut self, len: usize) {
        let Some(accumulator) = self.open.pop() else { return };
        let hash = match accumulator.wrapping_add(len as u64 ^ PRIME_5 ^ 3_527_539) {
            u64::MAX => 1_546_275_796,
            hash => hash,
        };
        match self.open.as_mut_slice() {
            [result] => *result = hash,
            _ => self.item(hash as i64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str, seed: &str) -> Option<i64> {
        text_hash(StringKey::from_seed(seed), text)
    }

    #[test]
    fn integers_hash_as_in_cpython() {
        let cases = [
            (0, 0),
            (-1, -2),
            (-2, -2),
            ((1 << 61) - 1, 0),
            (1 << 61, 1),
            (-(1 << 61), -2),
            (i64::MIN, -4),
        ];
        for (n, hash) in cases {
            assert_eq!(int_hash(n), hash, "{n}");
        }
    }

    #[test]
    fn strings_hash_as_in_cpython_whatever_their_width() {
        for (text, seed, expected) in [
            ("abc", "0", -4_594_863_902_769_663_758),
            ("abc", "4294967295", -6_122_489_556_238_538_401),
            ("\u{e9}", "0", 6_047_309_291_227_476_195),
            ("\u{43b}\u{430}\u{43c}a", "42", -4_876_170_921_956_296_011),
            ("\u{1f600}a", "42", 6_939_127_490_655_956_730),
        ] {
            assert_eq!(hash(text, seed), Some(expected), "{text} {seed}");
        }
    }

    #[test]
    fn a_seed_that_is_no_decimal_number_leaves_strings_unknown() {
        for seed in ["", "random", "-1", "+1", " 1", "0x1", "4294967296"] {
            assert_eq!(hash("a", seed), None, "{seed:?}");
            assert_eq!(hash("", seed), Some(0), "{seed:?}");
        }
        assert_eq!(hash("a", "00"), hash("a", "0"));
    }
}
