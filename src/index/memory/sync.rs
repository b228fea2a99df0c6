//! The atomics of the index, exchangeable for those of a model checker (`--cfg loom`).
//!
//! Invariant: every word that a reader may look at is one of these; nothing here needs `unsafe`.

#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A word that says whether what it guards is being changed: odd while it is.
///
/// The low 32 bits belong to whoever owns the guarded cell and stay as they are. One writer, any
/// number of readers; a reader that finds the word unchanged has seen one state of everything that
/// it read in between, cells that the guarded one led to included.
pub(super) mod guard {
    use super::{AtomicU64, Ordering, fence};

    const STEP: u64 = 1 << 32;

    /// Writer: what follows must not be seen half done.
    #[inline]
    pub(in super::super) fn open(word: &AtomicU64) {
        let now = word.load(Ordering::Relaxed);
        debug_assert!(!is_open(now), "changes do not nest");
        word.store(now.wrapping_add(STEP), Ordering::Relaxed);
        // A reader that sees any later store also sees the word odd.
        fence(Ordering::Release);
    }

    /// Writer: all of it may be seen.
    #[inline]
    pub(in super::super) fn close(word: &AtomicU64) {
        let now = word.load(Ordering::Relaxed);
        debug_assert!(is_open(now));
        word.store(now.wrapping_add(STEP), Ordering::Release);
    }

    /// Whether a change is under way in this state of the word.
    #[inline]
    pub(in super::super) fn is_open(seen: u64) -> bool {
        seen & STEP != 0
    }

    /// Reader: the word, before anything that it guards is read.
    #[inline]
    pub(in super::super) fn enter(word: &AtomicU64) -> u64 {
        word.load(Ordering::Acquire)
    }

    /// Reader: whether everything read since `seen` is one state.
    #[inline]
    pub(in super::super) fn held(word: &AtomicU64, seen: u64) -> bool {
        fence(Ordering::Acquire);
        word.load(Ordering::Relaxed) == seen
    }
}
