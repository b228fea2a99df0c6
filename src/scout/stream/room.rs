//! Memory that all workers share, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that all workers share: for anchors, or for batches that were not applied yet.
#[derive(Debug, Default)]
pub(in crate::scout) struct Room {
    most: usize,
    used: AtomicUsize,
}

impl Room {
    pub(in crate::scout) fn new(most: usize) -> Arc<Room> {
        Arc::new(Room { most, used: AtomicUsize::new(0) })
    }

    /// Whether there is any.
    pub(in crate::scout) fn is_there(&self) -> bool {
        self.most > 0
    }

    /// How many are left.
    pub(super) fn left(&self) -> usize {
        self.most.saturating_sub(self.used.load(Ordering::Acquire))
    }

    /// What somebody took is more now, or less: who takes more has looked before whether there is so much.
    pub(super) fn changed(&self, before: usize, now: usize) {
        match now.checked_sub(before) {
            Some(more) => self.used.fetch_add(more, Ordering::AcqRel),
            None => self.used.fetch_sub(before - now, Ordering::AcqRel),
        };
    }

    pub(super) fn take(self: &Arc<Room>, bytes: usize) -> Option<Taken> {
        let more = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.most);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Taken { room: self.clone(), bytes })
    }
}

/// A part of the room.
#[derive(Debug)]
pub(super) struct Taken {
    room: Arc<Room>,
    bytes: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
