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
//! The same digest comes from the CPU's AES instructions, one word, two or four at a time, and from software.
//!
//! Invariant of the `unsafe` here: a function compiled for a feature is called only where that feature
//! was found; what is loaded and stored by address is a whole array behind a reference.

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
            let (mut done, whole) = (0, size > 0 && size.is_multiple_of(STRIDE));
            if whole && wide::is_there() {
                // SAFETY: the CPU has the features that the function is compiled for.
                done += unsafe { wide::digests(self, tokens, size, out) };
            }
            if whole && double::is_there() {
                // SAFETY: the CPU has the features that the function is compiled for.
                done += unsafe {
                    double::digests(self, &tokens[done * size..], size, &mut out[done..])
                };
            }
            // SAFETY: the CPU has the one feature that the function is compiled for.
            unsafe { instructions::digests(self, &tokens[done * size..], size, &mut out[done..]) };
            return;
        }
        software::digests(self, tokens, size, out);
    }
}

/// Types without padding, which are loaded by address.
#[cfg(target_arch = "x86_64")]
trait Plain {}
#[cfg(target_arch = "x86_64")]
impl Plain for Word {}
#[cfg(target_arch = "x86_64")]
impl Plain for TokenId {}

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

/// The CPU's AES instructions, on the four words of a stride at once.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512i, _mm512_aesenc_epi128, _mm512_loadu_si512, _mm512_set_epi64, _mm512_shuffle_i64x2,
        _mm512_storeu_si512, _mm512_xor_si512,
    };

    use super::{Digest, Plain, STRIDE, Schedule, TokenId, Word};

    /// Blocks that are digested side by side: their accumulators fill one register.
    const ABREAST: usize = 4;

    #[inline]
    pub(super) fn is_there() -> bool {
        std::arch::is_x86_feature_detected!("vaes")
            && std::arch::is_x86_feature_detected!("avx512f")
    }

    /// Writes the digests of the first blocks, four at a time, and says of how many. `tokens` are `size` for
    /// each digest of `out`, and that is a multiple of the stride.
    #[target_feature(enable = "avx512f,vaes")]
    pub(super) fn digests(
        keys: &Schedule,
        tokens: &[TokenId],
        size: usize,
        out: &mut [Digest],
    ) -> usize {
        let words = load(&keys.words);
        let word_rounds = keys.word_rounds.each_ref().map(|key| broadcast(key));
        let sum_rounds = keys.sum_rounds.each_ref().map(|key| broadcast(key));
        let n = size as i64;
        let start = _mm512_set_epi64(0, n, 0, n, 0, n, 0, n);
        let start = _mm512_xor_si512(broadcast(&keys.start), start);
        let rounds = |word: __m512i, keys: &[__m512i; 4]| {
            keys.iter().fold(word, |word, &key| _mm512_aesenc_epi128(word, key))
        };
        let (strides, _) = tokens.as_chunks::<STRIDE>();
        let per = size / STRIDE;
        let (groups, _) = out.as_chunks_mut::<ABREAST>();
        let done = groups.len() * ABREAST;
        for (group, strides) in groups.iter_mut().zip(strides.chunks_exact(ABREAST * per)) {
            let mut sum = start;
            for at in 0..per {
                let [a, b, c, d] = std::array::from_fn(|block| {
                    let stride = load(&strides[block * per + at]);
                    rounds(_mm512_xor_si512(stride, words), &word_rounds)
                });
                // The four words of each block together, a block a lane.
                sum = _mm512_xor_si512(sum, lanes(halves(a, b), halves(c, d)));
                sum = rounds(sum, &sum_rounds);
            }
            let mut all = [0_u64; 8];
            // SAFETY: `all` is 64 bytes; the store needs no alignment.
            unsafe { _mm512_storeu_si512(all.as_mut_ptr().cast(), sum) };
            *group = [0, 2, 4, 6].map(|low| Digest(all[low]));
        }
        done
    }

    /// The halves of `a` together in the lower half, those of `b` in the upper.
    #[target_feature(enable = "avx512f")]
    fn halves(a: __m512i, b: __m512i) -> __m512i {
        let lower = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
        let upper = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
        _mm512_xor_si512(lower, upper)
    }

    /// The lanes 0 and 1, and 2 and 3, of `a` together in the lower half, those of `b` in the upper.
    #[target_feature(enable = "avx512f")]
    fn lanes(a: __m512i, b: __m512i) -> __m512i {
        let even = _mm512_shuffle_i64x2::<0b10_00_10_00>(a, b);
        let odd = _mm512_shuffle_i64x2::<0b11_01_11_01>(a, b);
        _mm512_xor_si512(even, odd)
    }

    #[target_feature(enable = "avx512f")]
    fn broadcast(word: &Word) -> __m512i {
        load(&[*word; 4])
    }

    /// 64 bytes of words or tokens.
    #[target_feature(enable = "avx512f")]
    fn load<T: Plain, const N: usize>(from: &[T; N]) -> __m512i {
        const { assert!(size_of::<[T; N]>() == 64) }
        // SAFETY: the reference is to 64 bytes, all of them written; the load needs no alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
}

/// The CPU's AES instructions, on two words at once.
#[cfg(target_arch = "x86_64")]
mod double {
    use std::arch::x86_64::{
        __m256i, _mm256_aesenc_epi128, _mm256_loadu_si256, _mm256_permute2x128_si256,
        _mm256_set_epi64x, _mm256_storeu_si256, _mm256_xor_si256,
    };

    use super::{Digest, Plain, STRIDE, Schedule, TokenId};

    /// Blocks that are digested side by side: their accumulators fill one register.
    const ABREAST: usize = 2;

    #[inline]
    pub(super) fn is_there() -> bool {
        std::arch::is_x86_feature_detected!("vaes") && std::arch::is_x86_feature_detected!("avx2")
    }

    /// Writes the digests of the first blocks, two at a time, and says of how many. `tokens` are `size` for
    /// each digest of `out`, and that is a multiple of the stride.
    #[target_feature(enable = "avx2,vaes")]
    pub(super) fn digests(
        keys: &Schedule,
        tokens: &[TokenId],
        size: usize,
        out: &mut [Digest],
    ) -> usize {
        let [first, second, third, fourth] = keys.words;
        let words = [load(&[first, second]), load(&[third, fourth])];
        let word_rounds = keys.word_rounds.each_ref().map(|key| load(&[*key; 2]));
        let sum_rounds = keys.sum_rounds.each_ref().map(|key| load(&[*key; 2]));
        let n = size as i64;
        let start = _mm256_xor_si256(load(&[keys.start; 2]), _mm256_set_epi64x(0, n, 0, n));
        let rounds = |words: __m256i, keys: &[__m256i; 4]| {
            keys.iter().fold(words, |words, &key| _mm256_aesenc_epi128(words, key))
        };
        // Words 0 and 2 of a stride in the lower half, 1 and 3 in the upper.
        let halves = |stride: &[TokenId; STRIDE]| {
            let (pairs, _) = stride.as_chunks::<8>();
            let [a, b] = [0, 1]
                .map(|at| rounds(_mm256_xor_si256(load(&pairs[at]), words[at]), &word_rounds));
            _mm256_xor_si256(a, b)
        };
        let (strides, _) = tokens.as_chunks::<STRIDE>();
        let per = size / STRIDE;
        let (groups, _) = out.as_chunks_mut::<ABREAST>();
        let done = groups.len() * ABREAST;
        for (group, strides) in groups.iter_mut().zip(strides.chunks_exact(ABREAST * per)) {
            let mut sum = start;
            for at in 0..per {
                let (a, b) = (halves(&strides[at]), halves(&strides[per + at]));
                let lower = _mm256_permute2x128_si256::<0x20>(a, b);
                let upper = _mm256_permute2x128_si256::<0x31>(a, b);
                // The four words of each block together, a block a lane.
                sum = _mm256_xor_si256(sum, _mm256_xor_si256(lower, upper));
                sum = rounds(sum, &sum_rounds);
            }
            let mut all = [0_u64; 4];
            // SAFETY: `all` is 32 bytes; the store needs no alignment.
            unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), sum) };
            *group = [0, 2].map(|low| Digest(all[low]));
        }
        done
    }

    /// 32 bytes of words or tokens.
    #[target_feature(enable = "avx2")]
    fn load<T: Plain, const N: usize>(from: &[T; N]) -> __m256i {
        const { assert!(size_of::<[T; N]>() == 32) }
        // SAFETY: the reference is to 32 bytes, all of them written; the load needs no alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
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

        /// In groups of four where the CPU can, with up to three blocks behind.
        #[test]
        fn many_blocks_together_give_the_same(
            secret: [u8; 16],
            strides in 1_usize..4,
            blocks in 0_usize..14,
            tokens in prop::collection::vec(any::<TokenId>(), 14 * 4 * STRIDE),
        ) {
            let (schedule, size) = (Schedule::of(&secret), strides * STRIDE);
            let (mut fast, mut slow) = (vec![Digest(0); blocks], vec![Digest(0); blocks]);
            // Tokens need not begin where the CPU would like it.
            schedule.digests(&tokens[1..], size, &mut fast);
            software::digests(&schedule, &tokens[1..][..blocks * size], size, &mut slow);
            prop_assert_eq!(fast, slow);
        }

        /// Also where the CPU has wider ones.
        #[test]
        #[cfg(target_arch = "x86_64")]
        fn two_words_at_once_give_the_same(
            secret: [u8; 16],
            strides in 1_usize..4,
            tokens in prop::collection::vec(any::<TokenId>(), 5 * 4 * STRIDE),
        ) {
            prop_assume!(double::is_there());
            let (schedule, size) = (Schedule::of(&secret), strides * STRIDE);
            let tokens = &tokens[1..][..5 * size];
            let (mut fast, mut slow) = ([Digest(0); 5], [Digest(0); 5]);
            // SAFETY: it is there.
            let done = unsafe { double::digests(&schedule, tokens, size, &mut fast) };
            software::digests(&schedule, tokens, size, &mut slow);
            prop_assert_eq!((done, &fast[..4]), (4, &slow[..4]));
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
