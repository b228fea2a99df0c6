//! Where each worker stands, for queries to read without a lock.
//!
//! A worker has a [`Cell`] of two words: which of its states the index shows (a version that its
//! stream raises with each batch, and whether one is being applied), how far that can be believed, and
//! the number of the last batch. Cells lie side by side in a [`Slab`].
//!
//! # The protocol
//!
//! The stream, under its lock: [`Post::open`] before the batch changes anything; the index and the
//! announced groups change; [`Post::close`] says the new standing.
//!
//! A query: [`Cell::read`] each worker, look the prompt up, ask each worker's [`Cell::is`]. Where the
//! answer is yes, and no batch was under way at first, what was found is the worker's state as of the
//! batch that was read, exactly: no change was begun before the lookup had ended. Where it is no, the
//! worker has to be asked again, alone; the others' answers stay good. A query waits for nobody that
//! does not move.
//!
//! Copies that the index gives up because it is full go without the worker's stream. The index lists
//! the worker before, and takes it from the list only amid a batch; the query looks at the list between
//! the lookup and [`Cell::is`], and marks its readings ([`Reading::with_loss`]).
//!
//! The groups that a query takes a worker to have are those of its roster; the cell has their number,
//! so that newer ones are noticed.

use std::sync::Arc;

#[cfg(not(modelled))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(modelled)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

use crate::block::WorkerId;
use crate::ingest::{Reason, Trust};

/// The stream's side of a standing, as it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) trust: Trust,
    /// The last batch that is applied.
    pub(super) as_of: Option<u64>,
    /// Number of the announced groups, see [`Groups`](super::directory::Groups).
    pub(super) groups: u16,
}

impl Standing {
    /// Nothing was heard, and nothing is known: that is exact.
    pub(super) const UNHEARD: Standing = Standing { trust: Trust::Exact, as_of: None, groups: 0 };
}

/// A batch is being applied.
const OPEN: u64 = 1;
/// The second word is the number of a batch.
const HEARD: u64 = 1 << 1;
/// Only in a reading: the index gave up copies of the worker. That is no step of its stream, so the
/// query finds it out behind the lookup.
const LOST: u64 = 1 << 2;
/// From here on: 8 bits of trust.
const TRUST: u32 = 8;
/// From here on: 16 bits, the number of the groups.
const GROUPS: u32 = 16;
/// From here on: 32 bits of version. A query would have to sleep through four billion batches to
/// take a later state for the one it read.
const VERSION: u32 = 32;

/// What was read of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    word: u64,
    number: u64,
}

impl Reading {
    /// Of a worker that was never heard of.
    pub(super) const UNHEARD: Reading = Reading { word: 0, number: 0 };

    #[inline]
    pub(super) fn is_open(self) -> bool {
        self.word & OPEN != 0
    }

    #[inline]
    pub(super) fn groups(self) -> u16 {
        (self.word >> GROUPS) as u16
    }

    #[inline]
    pub(super) fn as_of(self) -> Option<u64> {
        (self.word & HEARD != 0).then_some(self.number)
    }

    #[inline]
    pub(super) fn trust(self) -> Trust {
        match (self.word >> TRUST) as u8 {
            0 | 1 if self.word & LOST != 0 => Trust::Degraded(Reason::Evicted),
            0 => Trust::Exact,
            1 => Trust::Syncing,
            2 => Trust::Silent,
            3 => Trust::Degraded(Reason::MissedStart),
            4 => Trust::Degraded(Reason::Gap),
            5 => Trust::Degraded(Reason::OutOfOrder),
            6 => Trust::Degraded(Reason::Undecodable),
            7 => Trust::Degraded(Reason::Overflow),
            8 => Trust::Degraded(Reason::ExtrasHidden),
            9 => Trust::Degraded(Reason::Evicted),
            10 => Trust::Degraded(Reason::Audit),
            _ => Trust::Degraded(Reason::Store),
        }
    }

    /// The same, of a worker whose part of a store cannot be believed.
    #[cfg(feature = "redis")]
    pub(super) fn without_store(self) -> Reading {
        let code = trust_bits(Trust::Degraded(Reason::Store));
        Reading { word: self.word & !(0xff << TRUST) & !LOST | code, ..self }
    }

    fn says(self) -> Standing {
        Standing { trust: self.trust(), as_of: self.as_of(), groups: self.groups() }
    }

    /// The same of a worker of which the index gave up copies, if that is so.
    #[inline]
    pub(super) fn with_loss(self, lost: bool) -> Reading {
        Reading { word: if lost { self.word | LOST } else { self.word & !LOST }, ..self }
    }
}

fn trust_bits(trust: Trust) -> u64 {
    let code = match trust {
        Trust::Exact => 0,
        Trust::Syncing => 1,
        Trust::Silent => 2,
        Trust::Degraded(Reason::MissedStart) => 3,
        Trust::Degraded(Reason::Gap) => 4,
        Trust::Degraded(Reason::OutOfOrder) => 5,
        Trust::Degraded(Reason::Undecodable) => 6,
        Trust::Degraded(Reason::Overflow) => 7,
        Trust::Degraded(Reason::ExtrasHidden) => 8,
        Trust::Degraded(Reason::Evicted) => 9,
        Trust::Degraded(Reason::Audit) => 10,
        Trust::Degraded(Reason::Store) => 11,
    };
    code << TRUST
}

/// Where one worker stands.
#[derive(Debug)]
pub(super) struct Cell {
    word: AtomicU64,
    number: AtomicU64,
}

impl Default for Cell {
    fn default() -> Cell {
        Cell { word: AtomicU64::new(0), number: AtomicU64::new(0) }
    }
}

impl Cell {
    /// Query: before the index is asked.
    #[inline]
    pub(super) fn read(&self) -> Reading {
        // Who reads a closed word sees everything that was done before it was closed.
        let word = self.word.load(Ordering::Acquire);
        Reading { word, number: self.number.load(Ordering::Relaxed) }
    }

    /// Query: bits that differ from a reading, or say that it was made while a batch was applied. A
    /// [`fence`](fence_before_is) comes before the first of these calls.
    #[inline]
    fn moved(&self, reading: Reading) -> u64 {
        self.word.load(Ordering::Relaxed) ^ reading.word & !LOST | reading.word & OPEN
    }

    /// Query: after the index was asked, whether its answer is that of the reading.
    #[inline]
    pub(super) fn is(&self, reading: Reading) -> bool {
        fence(Ordering::Acquire);
        self.moved(reading) == 0
    }
}

/// Whether nothing moved since a stretch of cells was read: [`Cell::is`] for all of them.
#[inline]
pub(super) fn are(cells: &[Cell], readings: &[Reading]) -> bool {
    fence(Ordering::Acquire);
    cells.iter().zip(readings).fold(0, |moved, (cell, &reading)| moved | cell.moved(reading)) == 0
}

/// Workers of a slab.
pub(super) const SLAB: usize = 64;

/// The cells of [`SLAB`] workers with consecutive ids.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Slab([Cell; SLAB]);

impl Default for Slab {
    fn default() -> Slab {
        Slab(std::array::from_fn(|_| Cell::default()))
    }
}

impl Slab {
    /// Where a worker is in its slab.
    pub(super) fn at(worker: WorkerId) -> usize {
        worker.0 as usize % SLAB
    }

    #[inline]
    pub(super) fn cells(&self) -> &[Cell; SLAB] {
        &self.0
    }
}

/// A worker's own cell: what its stream writes to, under the stream's lock.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) slab: Arc<Slab>,
    at: usize,
}

impl Post {
    pub(super) fn new(slab: Arc<Slab>, worker: WorkerId) -> Post {
        Post { slab, at: Slab::at(worker) }
    }

    #[inline]
    pub(super) fn cell(&self) -> &Cell {
        &self.slab.0[self.at]
    }

    /// What follows must not be taken for the state that was said last.
    pub(super) fn open(&self) {
        self.cell().open();
    }

    /// What was done so far is the state that this says. If nobody opened, nothing was done, and
    /// queries are disturbed only if it says something new.
    pub(super) fn close(&self, standing: Standing) {
        self.cell().close(standing);
    }
}

impl Cell {
    fn open(&self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word.wrapping_add(1 << VERSION) | OPEN, Ordering::Relaxed);
        // A query that sees any later store also sees the word open, or newer.
        fence(Ordering::Release);
    }

    fn close(&self, standing: Standing) {
        if self.word.load(Ordering::Relaxed) & OPEN == 0 {
            if self.read().says() == standing {
                return;
            }
            self.open();
        }
        let Standing { trust, as_of, groups } = standing;
        let version = self.word.load(Ordering::Relaxed) >> VERSION << VERSION;
        let heard = if as_of.is_some() { HEARD } else { 0 };
        let word = version | u64::from(groups) << GROUPS | trust_bits(trust) | heard;
        self.number.store(as_of.unwrap_or(0), Ordering::Relaxed);
        self.word.store(word, Ordering::Release);
    }
}

#[cfg(all(test, not(modelled)))]
mod tests {
    use super::*;

    #[test]
    fn a_standing_reads_as_it_was_said() {
        let trusts = [Trust::Exact, Trust::Syncing, Trust::Silent].into_iter();
        let cell = Cell::default();
        assert_eq!(cell.read(), Reading::UNHEARD);
        for trust in trusts.chain(Reason::ALL.map(Trust::Degraded)) {
            for as_of in [None, Some(0), Some(u64::MAX)] {
                cell.close(Standing { trust, as_of, groups: 0xabcd });
                let read = cell.read();
                assert_eq!((read.trust(), read.as_of(), read.groups()), (trust, as_of, 0xabcd));
                assert!(!read.is_open());
            }
        }
    }

    #[test]
    fn a_loss_shows_where_the_worker_would_be_believed_and_is_no_step_of_its_stream() {
        let evicted = Trust::Degraded(Reason::Evicted);
        let gap = Trust::Degraded(Reason::Gap);
        let cell = Cell::default();
        for (said, shown) in [(Trust::Exact, evicted), (Trust::Syncing, evicted), (gap, gap)] {
            cell.close(Standing { trust: said, ..Standing::UNHEARD });
            let read = cell.read().with_loss(true);
            assert_eq!((read.trust(), read.with_loss(false).trust()), (shown, said));
            assert!(cell.is(read));
        }
    }

    #[test]
    fn saying_the_same_again_disturbs_no_query() {
        let cell = Cell::default();
        let said = Standing { as_of: Some(7), ..Standing::UNHEARD };
        cell.close(said);
        let before = cell.read();
        cell.close(said);
        assert!(cell.is(before));
        cell.close(Standing { as_of: Some(8), ..said });
        assert!(!cell.is(before), "something new");
        let before = cell.read();
        cell.open();
        cell.close(before.says());
        assert!(!cell.is(before), "a batch may have changed what is found");
    }

    #[test]
    fn a_reading_holds_until_the_next_batch_begins() {
        let cell = Cell::default();
        let before = cell.read();
        assert!(cell.is(before));
        cell.open();
        let amid = cell.read();
        assert!(!cell.is(before) && !cell.is(amid) && amid.is_open());
        cell.close(Standing::UNHEARD);
        assert!(!cell.is(before) && !cell.is(amid) && cell.is(cell.read()));
    }
}

/// Every interleaving of a query with a stream's batches:
/// `RUSTFLAGS="--cfg modelled" cargo test --release --lib ::model`.
#[cfg(all(test, modelled))]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[test]
    fn what_was_found_is_the_state_as_of_the_batch_that_was_read() {
        // Two batches are so many steps that all orders of them would take minutes.
        let mut bounded = loom::model::Builder::new();
        bounded.preemption_bound = Some(3);
        bounded.check(|| {
            // Two words of the index, both `n + 1` once batch `n` is applied.
            let index = || [AtomicU64::new(0), AtomicU64::new(0)];
            let shared = Arc::new((Cell::default(), index()));
            let query = shared.clone();
            let query = thread::spawn(move || {
                let (cell, index) = &*query;
                let reading = cell.read();
                let found = [0, 1].map(|at| index[at].load(Ordering::Relaxed));
                cell.is(reading).then_some((reading.as_of(), found))
            });
            let (cell, index) = &*shared;
            for n in 0..2 {
                cell.open();
                index.iter().for_each(|word| word.store(n + 1, Ordering::Relaxed));
                cell.close(Standing { as_of: Some(n), ..Standing::UNHEARD });
            }
            if let Some((as_of, found)) = query.join().unwrap() {
                assert_eq!(found, [as_of.map_or(0, |n| n + 1); 2]);
            }
        });
    }

    #[test]
    fn groups_announced_before_a_batch_was_closed_are_noticed() {
        loom::model(|| {
            // The number that rosters are compared with, raised when groups change.
            let shared = Arc::new((Cell::default(), AtomicU64::new(0)));
            let query = shared.clone();
            let query = thread::spawn(move || {
                let (cell, generation) = &*query;
                let roster = generation.load(Ordering::Acquire);
                let reading = cell.read();
                let held = cell.is(reading);
                (held && reading.as_of().is_some()).then(|| {
                    let is_current = generation.load(Ordering::Relaxed) == roster;
                    (roster, is_current)
                })
            });
            let (cell, generation) = &*shared;
            cell.open();
            generation.store(1, Ordering::Release);
            cell.close(Standing { as_of: Some(0), groups: 1, ..Standing::UNHEARD });
            if let Some((roster, is_current)) = query.join().unwrap() {
                assert!(roster == 1 || !is_current);
            }
        });
    }
}
