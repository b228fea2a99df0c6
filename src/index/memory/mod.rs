//! The embedded index: chains as runs, read by anybody beside one writer. See `docs/index.md`.
//!
//! Invariants of the whole: a block that some worker holds, or that has a held block below it, is at
//! one offset of one run; a copy is counted in exactly one place, a run's holders or an unplaced
//! block's. Readers take no lock that a batch holds.

mod ahead;
mod answer;
mod arena;
mod budget;
mod cpu;
mod cut;
mod detail;
mod export;
mod hold;
mod import;
mod losers;
mod map;
#[cfg(all(test, modelled))]
mod model;
mod names;
mod orphan;
mod residency;
mod run;
mod slot;
mod slots;
mod store;
mod sweep;
mod sync;
mod table;
mod walk;
mod write;

use std::future::{Future, ready};

use parking_lot::Mutex;

use self::arena::Book;
pub(crate) use self::residency::Held;
pub(crate) use self::walk::Scratch;
use self::write::{Pen, Shared, Writer};
use super::{Applied, BlockSource, Change, Home, Image, Index, Matches, Query, Stats};
use crate::block::WorkerId;
use crate::error::Error;

/// Limits of a [`MemoryIndex`].
///
/// # Defaults
///
/// `unplaced_per_worker`: 65,536, four times the physical blocks of a mid-size engine, so that an
/// engine whose first events were missed can be known by name only without being cut.
/// `budget`: 8 GiB, some 250 million blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// How many unplaced blocks one worker may hold, one that it holds in several groups or tiers
    /// counted in each; further ones are refused and counted.
    pub unplaced_per_worker: usize,
    /// Bytes that blocks, names and holders may take together, at most 15 GiB. When they are full,
    /// ends of chains that were not used for longest go ([`Stats::evicted`]): first those of a worker
    /// with more than `2 / (workers + 2)` of all entries, which is half where there are two and nearly
    /// twice its share where there are many. A chain that alone is more is refused beyond
    /// ([`Applied::refused`]).
    pub budget: usize,
}

impl Default for MemoryOptions {
    fn default() -> MemoryOptions {
        MemoryOptions { unplaced_per_worker: 65_536, budget: 8 << 30 }
    }
}

/// An [`Index`] in this process's memory.
///
/// Its methods are plain functions; the trait's futures wrap them and are always ready. Lookups run
/// beside a batch without waiting for it, and see each of its changes once that is made.
#[derive(Debug)]
pub struct MemoryIndex {
    shared: Shared,
    writer: Mutex<Writer>,
}

impl Default for MemoryIndex {
    fn default() -> MemoryIndex {
        MemoryIndex::new(MemoryOptions::default())
    }
}

impl MemoryIndex {
    /// An empty index with these limits.
    pub fn new(options: MemoryOptions) -> MemoryIndex {
        let options = MemoryOptions { budget: options.budget.min(15 << 30), ..options };
        let mut book = Book::default();
        let shared = Shared::new(&mut book);
        let unplaced = shared.names.read().unplaced.clone();
        MemoryIndex { shared, writer: Mutex::new(Writer::new(options, book, unplaced)) }
    }

    /// An index in the state that an image shows, but for what it leaves out (see [`Image`]).
    ///
    /// If that is more than the budget, the ends of some chains are evicted at once.
    ///
    /// # Errors
    ///
    /// An error of kind [`Decode`](crate::ErrorKind::Decode) when the image is no image or
    /// contradicts itself, or when it would take far more than the budget.
    pub fn import(options: MemoryOptions, image: &Image) -> Result<MemoryIndex, Error> {
        let index = MemoryIndex::new(options);
        index.write(|pen| pen.import(image))?;
        Ok(index)
    }

    /// The state of this index. Changes wait for as long as it takes; lookups do not.
    pub fn export(&self) -> Image {
        self.write(|pen| pen.export(None))
    }

    /// What a worker holds, as the image of an index in which nobody else is (see [`Image::apart`]); `None` if it has no
    /// home here. Changes wait while what is dead is swept and each run is looked at; only the worker's are written down.
    pub(crate) fn export_of(&self, worker: WorkerId) -> Option<Image> {
        let image = self.write(|pen| pen.export(Some(worker)));
        let mut alone = None;
        // It is an image.
        let _ = image.apart(&[worker], |_, image| alone = Some(image));
        alone
    }

    fn write<T>(&self, change: impl FnOnce(&mut Pen<'_>) -> T) -> T {
        change(&mut Pen { shared: &self.shared, w: &mut self.writer.lock() })
    }

    /// See [`Index::assign`].
    ///
    /// # Errors
    ///
    /// A worker that shares its old vocabulary with others, or that holds blocks in another space,
    /// cannot move.
    pub fn assign(&self, worker: WorkerId, home: Home) -> Result<(), Error> {
        self.write(|pen| pen.assign(worker, home))
    }

    /// See [`Index::apply`].
    ///
    /// # Errors
    ///
    /// The worker has no home; nothing was applied.
    pub fn apply(&self, worker: WorkerId, changes: &[Change<'_>]) -> Result<Applied, Error> {
        self.write(|pen| pen.apply(worker, changes))
    }

    /// See [`Index::lookup`]. Allocates nothing once `matches` has grown to its size.
    pub fn lookup(&self, query: &Query<'_>, blocks: &mut impl BlockSource, matches: &mut Matches) {
        self.shared.lookup(query, blocks, matches);
    }

    /// See [`Index::remove`]. The worker is gone from every answer at once, however much it held;
    /// its entries are swept by the changes that follow, a few with each.
    pub fn remove(&self, worker: WorkerId) {
        self.write(|pen| pen.remove_worker(worker));
    }

    /// See [`Index::evicted`]. Known before the first copy goes, to whoever looks behind a lookup.
    pub fn evicted(&self, worker: WorkerId) -> bool {
        self.shared.losers.has(worker)
    }

    /// All workers of which [`evicted`](MemoryIndex::evicted) is true, ascending.
    #[inline]
    pub(crate) fn losers(&self, into: &mut Vec<WorkerId>) {
        self.shared.losers.read(into);
    }

    /// See [`Index::stats`]. Sweeps a little of what is still to be swept; what it says is exact once
    /// [`Stats::unswept`] is 0. Changes wait for it no longer than for a batch.
    pub fn stats(&self) -> Stats {
        self.write(|pen| pen.stats())
    }
}

impl Index for MemoryIndex {
    fn assign(
        &self,
        worker: WorkerId,
        home: Home,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        ready(MemoryIndex::assign(self, worker, home))
    }

    fn apply(
        &self,
        worker: WorkerId,
        changes: &[Change<'_>],
    ) -> impl Future<Output = Result<Applied, Error>> + Send {
        ready(MemoryIndex::apply(self, worker, changes))
    }

    fn lookup(
        &self,
        query: &Query<'_>,
        blocks: &mut (impl BlockSource + Send),
        matches: &mut Matches,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        MemoryIndex::lookup(self, query, blocks, matches);
        ready(Ok(()))
    }

    fn remove(&self, worker: WorkerId) -> impl Future<Output = Result<(), Error>> + Send {
        MemoryIndex::remove(self, worker);
        ready(Ok(()))
    }

    fn evicted(&self, worker: WorkerId) -> impl Future<Output = Result<bool, Error>> + Send {
        ready(Ok(MemoryIndex::evicted(self, worker)))
    }

    fn stats(&self) -> impl Future<Output = Result<Stats, Error>> + Send {
        ready(Ok(MemoryIndex::stats(self)))
    }
}
