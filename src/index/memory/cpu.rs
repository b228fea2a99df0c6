//! What the processor can do beyond the baseline: the one module of the index with `unsafe`.
//!
//! Invariants: a prefetch reads and writes nothing that the program can see and never faults, and is
//! given the address of a live word all the same; a function compiled for a feature is called only
//! where that feature was found. `tests/index_stress.rs` runs both under an address sanitizer.

#![allow(unsafe_code)]

use super::arena::Words;
use super::run;
use super::sync::AtomicU64;
use crate::block::Digest;

/// Asks for the cache line of a word.
#[inline]
pub(super) fn prefetch(word: &AtomicU64) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: `word` is a reference, so its address is valid; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = word;
}

/// See [`run::equal_sums`]; four contents at a time where there is AVX2.
#[inline]
pub(super) fn equal_sums(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if digests.len() >= 2 * run::SEGMENT && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was found; the function has no other condition.
        return unsafe { with_avx2(sums, first, digests) };
    }
    run::equal_sums(sums, first, digests)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
fn with_avx2(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    run::equal_sums(sums, first, digests)
}
