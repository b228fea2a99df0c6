//! What the machine can do beyond the baseline: the one module of the index with `unsafe`.
//!
//! Invariants: a chunk is memory of the global allocator in the layout of its type, all zeros, which
//! is a value of it; advice to the system changes nothing that the program can see; a prefetch reads and writes nothing that the program can see and never faults, and is
//! given the address of a live word all the same; a function compiled for a feature is called only
//! where that feature was found. `tests/index_stress.rs` runs all of it under an address sanitizer.

#![allow(unsafe_code)]

#[cfg(not(loom))]
use std::alloc::{Layout, alloc, handle_alloc_error};

use super::arena::{Chunk, Line, Words};
use super::run;
use super::sync::Ordering;
use crate::block::Digest;

/// A chunk of zeros, in one huge page where the system has any: queries jump from record to record,
/// and with small pages each jump would miss the translation buffer, too.
#[cfg(not(loom))]
pub(super) fn zeroed_chunk() -> Box<Chunk> {
    let layout = Layout::new::<Chunk>();
    // SAFETY: the layout is not of size zero.
    let memory = unsafe { alloc(layout) }.cast::<Chunk>();
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: the range is ours, and advice neither frees nor moves it. Before the first write, which
    // is what decides about the page; a system without huge pages refuses, and nothing depends on it.
    unsafe {
        libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE);
    }
    // SAFETY: the memory is valid for one `Chunk`, of which every word may be zero; it came from the
    // global allocator in the layout of `Chunk`, as `Box` wants it.
    unsafe {
        memory.write_bytes(0, 1);
        Box::from_raw(memory)
    }
}

/// The model of the guard builds no arena.
#[cfg(loom)]
pub(super) fn zeroed_chunk() -> Box<Chunk> {
    unimplemented!("an arena of modelled words")
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

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx512f")]
fn with_avx512(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    run::equal_sums(sums, first, digests)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
fn with_avx2(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    run::equal_sums(sums, first, digests)
}
