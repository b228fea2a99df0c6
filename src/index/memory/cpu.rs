//! What the machine can do beyond the baseline: the one module of the index with `unsafe`.
//!
//! Invariants: a page is memory of the global allocator in the layout of its type, all zeros, which
//! is a value of it; advice to the system changes nothing that the program can see; a prefetch reads and writes nothing that the program can see and never faults, and is
//! given the address of a live word all the same; a function compiled for a feature is called only
//! where that feature was found, and gives what the portable one gives. `tests/index_stress.rs` runs all of it under an address sanitizer.

#![allow(unsafe_code)]

#[cfg(not(modelled))]
use std::alloc::{Layout, alloc, handle_alloc_error};

use super::arena::{Line, Page, Words};
use super::run;
use super::sync::Ordering;
use crate::block::Digest;

/// A page of zeros, a huge one where the system has any: queries jump from record to record,
/// and with small pages each jump would miss the translation buffer, too.
#[cfg(not(modelled))]
pub(super) fn zeroed_page() -> Box<Page> {
    let layout = Layout::new::<Page>();
    // SAFETY: the layout is not of size zero.
    let memory = unsafe { alloc(layout) }.cast::<Page>();
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: the range is ours, and advice neither frees nor moves it. Before the first write, which
    // is what decides about the page; a system without huge pages refuses, and nothing depends on it.
    unsafe {
        libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE);
    }
    // SAFETY: the memory is valid for one `Page`, of which every word may be zero; it came from the
    // global allocator in the layout of `Page`, as `Box` wants it.
    unsafe {
        memory.write_bytes(0, 1);
        Box::from_raw(memory)
    }
}

/// The model checker's words are made one by one.
#[cfg(modelled)]
pub(super) fn zeroed_page() -> Box<Page> {
    Box::new(Page::new())
}

/// Asks for the cache line in which a word begins.
#[inline]
pub(super) fn prefetch<T>(word: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: `word` is a reference, so its address is valid; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = word;
}

/// The words of a line of which the low `bits` bits of the lower halves are those of `tag`, and those
/// whose upper halves are 0, as bits. All words are read once; a branch for each would be guessed
/// wrong, and eight comparisons one by one are three times the instructions.
#[inline]
pub(super) fn scan(line: &Line, tag: u32, bits: u32) -> (u32, u32) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: SSE2 is part of x86-64; the function has no other condition.
    return unsafe { scan_with_sse2(line, tag, bits) };
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    {
        let (mut same, mut empty) = (0, 0);
        for (i, word) in line.0.iter().enumerate() {
            let word = word.load(Ordering::Relaxed);
            same |= u32::from((word as u32 ^ tag) << (32 - bits) == 0) << i;
            empty |= u32::from(word >> 32 == 0) << i;
        }
        (same, empty)
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "sse2")]
#[inline]
fn scan_with_sse2(line: &Line, tag: u32, bits: u32) -> (u32, u32) {
    use std::arch::x86_64::{
        __m128i, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_cvtsi32_si128,
        _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32, _mm_set_epi64x, _mm_set1_epi32,
        _mm_setzero_si128, _mm_shuffle_ps, _mm_sll_epi32,
    };
    let word = |i: usize| line.0[i].load(Ordering::Relaxed) as i64;
    let pair = |i: usize| _mm_castsi128_ps(_mm_set_epi64x(word(i + 1), word(i)));
    let (a, b, c, d) = (pair(0), pair(2), pair(4), pair(6));
    let lower = [_mm_shuffle_ps::<0x88>(a, b), _mm_shuffle_ps::<0x88>(c, d)];
    let upper = [_mm_shuffle_ps::<0xdd>(a, b), _mm_shuffle_ps::<0xdd>(c, d)];
    let zero = _mm_setzero_si128();
    let shift = _mm_cvtsi32_si128((32 - bits) as i32);
    let tag = _mm_sll_epi32(_mm_set1_epi32(tag as i32), shift);
    let bits = |halves: [__m128i; 2]| {
        let words = _mm_packs_epi32(halves[0], halves[1]);
        _mm_movemask_epi8(_mm_packs_epi16(words, zero)) as u32
    };
    let same = lower.map(|h| _mm_cmpeq_epi32(_mm_sll_epi32(_mm_castps_si128(h), shift), tag));
    let empty = upper.map(|h| _mm_cmpeq_epi32(_mm_castps_si128(h), zero));
    (bits(same), bits(empty))
}

/// See [`run::equal_sums`]; eight contents at a time where there is AVX-512, four where AVX2.
#[inline]
pub(super) fn equal_sums(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if digests.len() >= 2 * run::SEGMENT {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was found; the function has no other condition.
            return unsafe { with_avx512(sums, first, digests) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { with_avx2(sums, first, digests) };
        }
    }
    run::equal_sums(sums, first, digests)
}

/// Four segments together, so that what is left of each is added up once for all, and what decides
/// is one branch.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx512f")]
fn with_avx512(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    let mut same = 0;
    for four in digests.as_chunks::<{ 4 * run::SEGMENT }>().0 {
        let (ours, theirs) = (four_sums(four), sums.four(first + same));
        let differ = (0..4).fold(0, |differ, i| differ | ours[i] ^ theirs[i]);
        if differ != 0 {
            return same + (0..4).take_while(|&i| ours[i] == theirs[i]).count();
        }
        same += 4;
    }
    same + run::equal_sums(sums, first + same, &digests[same * run::SEGMENT..])
}

/// [`run::sum`] of four segments.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx512f")]
fn four_sums(contents: &[Digest; 4 * run::SEGMENT]) -> [u64; 4] {
    use std::arch::x86_64::*;

    // Of each segment eight sums, one for each place of a register.
    let mut sums = [_mm512_setzero_si512(); 4];
    for (sum, contents) in sums.iter_mut().zip(contents.as_chunks::<8>().0.chunks_exact(2)) {
        for (contents, salts) in contents.iter().zip(run::SALTS.as_chunks::<8>().0) {
            const { assert!(size_of::<Digest>() == 8) }
            // SAFETY: both references are to 64 bytes that are all written, for a digest has room for
            // nothing but its word; the loads need no alignment.
            let (contents, salts) = unsafe {
                (
                    _mm512_loadu_si512(contents.as_ptr().cast()),
                    _mm512_loadu_si512(salts.as_ptr().cast()),
                )
            };
            let salted = _mm512_xor_si512(contents, salts);
            let product = _mm512_mul_epu32(salted, _mm512_srli_epi64::<32>(salted));
            *sum = _mm512_add_epi64(*sum, _mm512_add_epi64(product, contents));
        }
    }
    // Pairs of places: lanes of one word of the first and one of the second.
    let pairs = |a, b| _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let [a, b, c, d] = sums;
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    // Lanes 0 and 2, 1 and 3: two of the first two, two of the others.
    let two = _mm512_add_epi64(
        _mm512_shuffle_i64x2::<0b01_00_01_00>(ab, cd),
        _mm512_shuffle_i64x2::<0b11_10_11_10>(ab, cd),
    );
    let all = _mm512_add_epi64(two, _mm512_shuffle_i64x2::<0b10_11_00_01>(two, two));
    let mut out = [0; 8];
    // SAFETY: `out` is 64 bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), all) };
    [out[0], out[1], out[4], out[5]]
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
fn with_avx2(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    run::equal_sums(sums, first, digests)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::index::memory::arena::{Arena, Book, Kind};

    proptest! {
        #[test]
        fn as_many_sums_are_equal_as_the_portable_comparison_says(
            digests in prop::collection::vec(any::<u64>().prop_map(Digest), 0..400),
            first in 0_usize..5,
            wrong: prop::sample::Index,
        ) {
            let (arena, mut book) = (Arena::default(), Book::default());
            let sums = arena.words(book.take(&arena, Kind::List(5)));
            for (i, segment) in digests.as_chunks().0.iter().enumerate() {
                sums.store(first + i, run::sum(segment));
            }
            let all = digests.len() / run::SEGMENT;
            prop_assert_eq!(equal_sums(sums, first, &digests), all);
            let wrong = first + wrong.index(all + 1);
            sums.store(wrong, sums.load(wrong) ^ 1 << 63);
            prop_assert_eq!(equal_sums(sums, first, &digests), (wrong - first).min(all));
            prop_assert_eq!(run::equal_sums(sums, first, &digests), (wrong - first).min(all));
        }
    }
}
