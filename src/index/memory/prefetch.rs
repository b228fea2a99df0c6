//! Hints to the cache: the one module of the index with `unsafe`.
//!
//! Invariant: a prefetch reads and writes nothing that the program can see and never faults; the
//! address given is that of a live word all the same. `tests/index_stress.rs` runs it under an
//! address sanitizer.

#![allow(unsafe_code)]

use super::sync::AtomicU64;

/// Asks for the cache line of a word.
#[inline]
pub(super) fn word(word: &AtomicU64) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: `word` is a reference, so its address is valid; SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = word;
}
