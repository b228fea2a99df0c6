//! Who lost copies that it did not remove.
//!
//! Invariants: a worker is listed before the first of its copies is given up, for whoever sees that
//! one go; it stays until all it held is gone, by its own word or with its home. `any` is how many are
//! listed, so that queries of an index that never was full read one word.

use super::sync::{AtomicU32, Ordering, RwLock, fence};
use crate::block::WorkerId;

#[derive(Debug)]
pub(super) struct Losers {
    any: AtomicU32,
    /// For how many the list has room.
    room: AtomicU32,
    /// Ascending.
    ids: RwLock<Vec<WorkerId>>,
}

impl Default for Losers {
    fn default() -> Losers {
        Losers { any: AtomicU32::new(0), room: AtomicU32::new(0), ids: RwLock::default() }
    }
}

impl Losers {
    /// Writer: before a copy goes.
    pub(super) fn add(&self, worker: WorkerId) {
        let Err(at) = self.ids.read().binary_search(&worker) else { return };
        let mut ids = self.ids.write();
        ids.insert(at, worker);
        self.room.store(ids.capacity() as u32, Ordering::Relaxed);
        self.any.store(ids.len() as u32, Ordering::Relaxed);
        drop(ids);
        // Who sees any later store also sees that somebody is listed.
        fence(Ordering::Release);
    }

    /// Writer: after all that the worker held went.
    pub(super) fn forget(&self, worker: WorkerId) {
        let Ok(at) = self.ids.read().binary_search(&worker) else { return };
        let mut ids = self.ids.write();
        ids.remove(at);
        self.any.store(ids.len() as u32, Ordering::Relaxed);
    }

    /// Bytes of the list.
    pub(super) fn bytes(&self) -> usize {
        self.room.load(Ordering::Relaxed) as usize * size_of::<WorkerId>()
    }

    /// Reader: after it has looked at what the worker holds.
    pub(super) fn has(&self, worker: WorkerId) -> bool {
        self.is_any() && self.ids.read().binary_search(&worker).is_ok()
    }

    /// Reader: everybody listed, ascending; after it has looked at what they hold.
    #[inline]
    pub(super) fn read(&self, into: &mut Vec<WorkerId>) {
        into.clear();
        if self.is_any() {
            into.extend_from_slice(&self.ids.read());
        }
    }

    #[inline]
    fn is_any(&self) -> bool {
        fence(Ordering::Acquire);
        self.any.load(Ordering::Relaxed) > 0
    }
}
