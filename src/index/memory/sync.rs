//! The atomics of the index, exchangeable for those of a model checker (`--cfg loom`).
//!
//! Invariant: every word that a reader may look at is one of these; nothing here needs `unsafe`.

#[cfg(not(loom))]
pub(super) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread::yield_now,
};

#[cfg(loom)]
pub(super) use loom::{
    hint::spin_loop,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread::yield_now,
};

#[cfg(not(loom))]
pub(super) use parking_lot::RwLock;

/// With the methods of `parking_lot`.
#[cfg(loom)]
#[derive(Debug, Default)]
pub(super) struct RwLock<T>(loom::sync::RwLock<T>);

#[cfg(loom)]
impl<T> RwLock<T> {
    pub(super) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }

    pub(super) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }
}

/// What a writer writes often, on lines that hold nothing else: whoever reads what lay beside it
/// would have to fetch that from the writer again and again. Two lines, for processors fetch pairs.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(super) struct Apart<T>(pub(super) T);

impl<T> std::ops::Deref for Apart<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

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

/// Every interleaving of a reader with a writer that changes a cell, or gives it away and uses it
/// again: `RUSTFLAGS="--cfg loom" cargo test --release --lib index::memory`. What is built on the guard
/// is in `model.rs` beside this file.
#[cfg(all(test, loom))]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::{AtomicU64, Ordering::Relaxed, guard};

    /// A record that leads to one of two cells of two words.
    struct Words {
        guard: AtomicU64,
        leads_to: AtomicU64,
        cells: [[AtomicU64; 2]; 2],
    }

    fn words() -> Arc<Words> {
        let cell = || [AtomicU64::new(1), AtomicU64::new(1)];
        let (guard, leads_to) = (AtomicU64::new(7), AtomicU64::new(0));
        Arc::new(Words { guard, leads_to, cells: [cell(), cell()] })
    }

    /// One try of a reader: both words of the cell, if they are one state.
    fn read(words: &Words) -> Option<(u64, u64)> {
        let seen = guard::enter(&words.guard);
        let cell = &words.cells[words.leads_to.load(Relaxed) as usize];
        let pair = (cell[0].load(Relaxed), cell[1].load(Relaxed));
        (!guard::is_open(seen) && guard::held(&words.guard, seen)).then_some(pair)
    }

    #[test]
    fn a_change_is_seen_whole_or_not_at_all() {
        loom::model(|| {
            let words = words();
            let reader = words.clone();
            let reader = thread::spawn(move || read(&reader));
            for value in [2, 3] {
                guard::open(&words.guard);
                words.cells[0][0].store(value, Relaxed);
                words.cells[0][1].store(value, Relaxed);
                guard::close(&words.guard);
            }
            if let Some((first, second)) = reader.join().unwrap() {
                assert_eq!(first, second);
            }
        });
    }

    #[test]
    fn a_cell_that_was_given_away_and_used_again_is_noticed() {
        loom::model(|| {
            let words = words();
            let reader = words.clone();
            let reader = thread::spawn(move || read(&reader));
            // The record leads elsewhere; from then on its old cell belongs to others, who write to
            // it without looking at this record's guard.
            guard::open(&words.guard);
            words.leads_to.store(1, Relaxed);
            guard::close(&words.guard);
            words.cells[0][0].store(9, Relaxed);
            words.cells[0][1].store(9, Relaxed);
            if let Some(pair) = reader.join().unwrap() {
                assert_eq!(pair, (1, 1));
            }
        });
    }

    /// A place that moves inside of a bucket that is split, and a reader that looks for it slot by
    /// slot: it may only say that there is none if the guard held.
    #[test]
    fn a_place_that_moves_is_not_missed() {
        loom::model(|| {
            let words = words();
            words.cells[0][0].store(0, Relaxed);
            words.cells[0][1].store(5, Relaxed);
            let reader = words.clone();
            let reader = thread::spawn(move || {
                let seen = guard::enter(&reader.guard);
                let found = reader.cells[0].iter().any(|slot| slot.load(Relaxed) == 5);
                found || guard::is_open(seen) || !guard::held(&reader.guard, seen)
            });
            guard::open(&words.guard);
            words.cells[0][0].store(5, Relaxed);
            words.cells[0][1].store(0, Relaxed);
            guard::close(&words.guard);
            assert!(reader.join().unwrap());
        });
    }
}
