//! A keyed digest of token words, made of AES rounds.
//!
//! Tokens are taken 16 at a time as four 128-bit words. Each word is XORed with a key of its own and
//! goes through four AES rounds; the four results are XORed into an accumulator, which starts with
//! the number of tokens and goes through four rounds, under other keys, after every 16 tokens. All
//! keys are derived from the secret.
//!
//! Why this is hard to collide without the key: two different words of 128 bits that are XORed with
//! a uniform unknown value keep a given difference through four AES rounds with probability at most
//! about 2^-113 (Keliher and Sui, "Exact maximum expected differential and linear probability for
//! two-round AES", 2007, squared), so that two blocks have equal accumulators about as rarely; what
//! decides is then the 64 bits that are kept.
//!
//! The same digest comes from the CPU's AES instructions and from software.

#![allow(unsafe_code)]

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use crate::block::{Digest, TokenId};

/// Tokens that are taken at a time.
const STRIDE: usize = 16;

type Word = [u8; 16];

/// The keys of all rounds.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    /// One for each word of a stride.
    words: [Word; 4],
    /// The rounds of a word.
    word_rounds: [Word; 4],
    /// The rounds of the accumulator.
    sum_rounds: [Word; 4],
    start: Word,
}

impl Schedule {
    /// The keys that belong to a secret.
    pub(super) fn of(secret: &[u8; 16]) -> Schedule {
        let mut count = 0_u64;
        let mut next = || {
            let mut sip = SipHasher13::new_with_key(secret);
            sip.write(b"kvscout content digest");
            sip.write_u64(count);
            count += 1;
            sip.finish128().as_bytes()
        };
        Schedule {
            words: std::array::from_fn(|_| next()),
            word_rounds: std::array::from_fn(|_| next()),
            sum_rounds: std::array::from_fn(|_| next()),
            start: next(),
        }
    }

    /// Writes the digests of consecutive blocks of `size` tokens to `out`, as many as `out` has.
    ///
    /// # Panics
    ///
    /// `tokens` are fewer than `out` asks for.
    pub(super) fn digests(&self, tokens: &[TokenId], size: usize, out: &mut [Digest]) {
        let tokens = &tokens[..out.len() * size];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("aes") {
            // SAFETY: the CPU has the one feature that the function is compiled for.
            unsafe { instructions::digests(self, tokens, size, out) };
            return;
        }
        software::digests(self, tokens, size, out);
    }
}

/// The CPU's AES instructions.
#[cfg(target_arch = "x86_64")]
mod instructions {
    use std::arch::x86_64::{
        __m128i, _mm_aesenc_si128, _mm_cvtsi128_si64, _mm_set_epi32, _mm_set_epi64x, _mm_xor_si128,
    };

    use super::{Digest, STRIDE, Schedule, TokenId, Word, padded};

    #[target_feature(enable = "aes")]
    pub(super) fn digests(keys: &Schedule, tokens: &[TokenId], size: usize, out: &mut [Digest]) {
        let words = keys.words.each_ref().map(|key| load(key));
        let word_rounds = keys.word_rounds.each_ref().map(|key| load(key));
        let sum_rounds = keys.sum_rounds.each_ref().map(|key| load(key));
        let start = _mm_xor_si128(load(&keys.start), _mm_set_epi64x(0, size as i64));
        let rounds = |word: __m128i, keys: &[__m128i; 4]| {
            keys.iter().fold(word, |word, &key| _mm_aesenc_si128(word, key))
        };
        let absorb = |sum: __m128i, stride: &[TokenId; STRIDE]| {
            let mut sum = sum;
            for (at, &key) in words.iter().enumerate() {
                let [a, b, c, d] = std::array::from_fn(|n| stride[4 * at + n] as i32);
                let word = _mm_xor_si128(_mm_set_epi32(d, c, b, a), key);
                sum = _mm_xor_si128(sum, rounds(word, &word_rounds));
            }
            rounds(sum, &sum_rounds)
        };
        for (block, digest) in tokens.chunks_exact(size).zip(out) {
            let (strides, rest) = block.as_chunks::<STRIDE>();
            let mut sum = strides.iter().fold(start, absorb);
            if !rest.is_empty() || strides.is_empty() {
                sum = absorb(sum, &padded(rest));
            }
            *digest = Digest(_mm_cvtsi128_si64(sum) as u64);
        }
    }

    #[target_feature(enable = "aes")]
    fn load(word: &Word) -> __m128i {
        let word = u128::from_le_bytes(*word);
        _mm_set_epi64x((word >> 64) as i64, word as i64)
    }
}

/// The last tokens of a block whose size is no multiple of the stride. The number of tokens is in
/// the accumulator already, so zeros cannot be taken for tokens.
fn padded(rest: &[TokenId]) -> [TokenId; STRIDE] {
    let mut stride = [0; STRIDE];
    stride[..rest.len()].copy_from_slice(rest);
    stride
}

/// The same in software, for other CPUs.
mod software {
    use aes::Block;
    use aes::hazmat::cipher_round;

    use super::{Digest, STRIDE, Schedule, TokenId, Word, padded};

    pub(super) fn digests(keys: &Schedule, tokens: &[TokenId], size: usize, out: &mut [Digest]) {
        let start = xor(keys.start, (size as u128).to_le_bytes());
        let absorb = |sum: Word, stride: &[TokenId; STRIDE]| {
            let mut sum = sum;
            for (at, key) in keys.words.iter().enumerate() {
                let mut word = [0; 16];
                for (bytes, token) in word.chunks_exact_mut(4).zip(&stride[4 * at..]) {
                    bytes.copy_from_slice(&token.to_le_bytes());
                }
                sum = xor(sum, rounds(xor(word, *key), &keys.word_rounds));
            }
            rounds(sum, &keys.sum_rounds)
        };
        for (block, digest) in tokens.chunks_exact(size).zip(out) {
            let (strides, rest) = block.as_chunks::<STRIDE>();
            let mut sum = strides.iter().fold(start, absorb);
            if !rest.is_empty() || strides.is_empty() {
                sum = absorb(sum, &padded(rest));
            }
            *digest = Digest(u128::from_le_bytes(sum) as u64);
        }
    }

    fn rounds(word: Word, keys: &[Word; 4]) -> Word {
        let mut block = Block::from(word);
        for key in keys {
            cipher_round(&mut block, &Block::from(*key));
        }
        block.into()
    }

    fn xor(a: Word, b: Word) -> Word {
        (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digests_never_change() {
        let schedule = Schedule::of(&[7; 16]);
        let tokens: Vec<TokenId> = (0..40).collect();
        let mut digests = [Digest(0); 2];
        schedule.digests(&tokens, 16, &mut digests);
        assert_eq!(digests, [Digest(17088472989036444154), Digest(13337229654141924144)]);
        schedule.digests(&tokens, 20, &mut digests);
        assert_eq!(digests, [Digest(4437565810733051914), Digest(16951270467611595486)]);
    }

    proptest! {
        #[test]
        fn instructions_and_software_give_the_same(
            secret: [u8; 16],
            size in 1_usize..70,
            tokens in prop::collection::vec(any::<TokenId>(), 70 * 3),
        ) {
            let schedule = Schedule::of(&secret);
            let (mut fast, mut slow) = ([Digest(0); 3], [Digest(0); 3]);
            schedule.digests(&tokens, size, &mut fast);
            software::digests(&schedule, &tokens[..3 * size], size, &mut slow);
            prop_assert_eq!(fast, slow);
        }

        #[test]
        fn any_changed_token_changes_the_digest(
            size in 1_usize..40,
            at: prop::sample::Index,
            flip in 1_u32..,
        ) {
            let schedule = Schedule::of(&[9; 16]);
            let mut tokens: Vec<TokenId> = (0..size as u32).collect();
            let (mut before, mut after) = ([Digest(0)], [Digest(0)]);
            schedule.digests(&tokens, size, &mut before);
            tokens[at.index(size)] ^= flip;
            schedule.digests(&tokens, size, &mut after);
            prop_assert_ne!(before, after);
        }
    }
}
