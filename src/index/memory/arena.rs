//! Memory of the index: cells of atomic words, addressed by number, never given back while the
//! index lives.
//!
//! Invariants: a cell keeps its kind for ever, so that a reader with an old address reads words that
//! once were, or now are, of the kind it expects; it notices by the guard of whatever led it there.
//! `live + free == made`, in words, at every moment: the footprint is counted, not estimated.

use std::fmt;
use std::sync::OnceLock;

use super::cpu;
use super::sync::{AtomicU64, Ordering};

/// Bits of a cell's address within its chunk. The model checker makes each word anew for every
/// interleaving, so its chunks are as small as its cases allow.
const WITHIN: u32 = if cfg!(modelled) { 8 } else { 17 };
/// Units of a whole chunk: 2 MiB at a time are asked of the system, one huge page.
const UNITS: usize = 1 << WITHIN;
/// So many chunks come before the first whole one, each of half the next one's size: an index of a few
/// thousand blocks takes what it needs.
const SMALL: usize = if cfg!(modelled) { 0 } else { 3 };
/// At most so many chunks: 16 GiB, what the 27 bits of a run's number address.
pub(super) const CHUNKS: usize = if cfg!(modelled) { 4 } else { 1 << 13 };
/// Bytes of a whole chunk.
pub(super) const CHUNK_BYTES: usize = UNITS * 16;
/// Units of a line.
const LINE: usize = 4;

/// Units of a chunk.
fn units(chunk: usize) -> usize {
    UNITS >> SMALL.saturating_sub(chunk)
}

/// A cache line of words.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(super) struct Line(pub(super) [AtomicU64; 8]);

/// A huge page of lines.
#[cfg_attr(not(modelled), repr(C, align(2_097_152)))]
#[derive(Debug)]
pub(super) struct Page([Line; UNITS / LINE]);

#[cfg(modelled)]
impl Page {
    pub(super) fn new() -> Page {
        Page(std::array::from_fn(|_| Line::default()))
    }
}

#[derive(Debug)]
pub(super) enum Chunk {
    Small(Box<[Line]>),
    Whole(Box<Page>),
}

impl Chunk {
    fn new(units: usize) -> Chunk {
        if units == UNITS {
            Chunk::Whole(cpu::zeroed_page())
        } else {
            Chunk::Small((0..units / LINE).map(|_| Line::default()).collect())
        }
    }

    #[inline]
    fn lines(&self) -> &[Line] {
        match self {
            Chunk::Small(lines) => lines,
            Chunk::Whole(page) => &page.0,
        }
    }
}

/// Where a cell is, in units of 16 bytes; 0 is nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Cell(pub(super) u32);

impl Cell {
    pub(super) const NONE: Cell = Cell(0);
}

/// What a cell is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The record of a run: 16 words.
    Run,
    /// A bucket of a table: 64 words.
    Bucket,
    /// Sixteen blocks of a run: 32 words.
    Segment,
    /// `2 << n` words: lists of two-word entries.
    List(u8),
}

impl Kind {
    /// The smallest list for so many entries of two words.
    pub(super) fn list(entries: usize) -> Kind {
        Kind::List(entries.next_power_of_two().trailing_zeros() as u8)
    }

    pub(super) const fn words(self) -> usize {
        match self {
            Kind::Run => 16,
            Kind::Bucket => 64,
            Kind::Segment => 32,
            Kind::List(n) => 2 << n,
        }
    }

    const fn number(self) -> usize {
        match self {
            Kind::Run => 0,
            Kind::Bucket => 1,
            Kind::Segment => 2,
            Kind::List(n) => 3 + n as usize,
        }
    }
}

/// The words, as readers and the writer see them.
pub(super) struct Arena {
    chunks: Box<[OnceLock<Chunk>]>,
    /// What a stale address outside of every chunk reads: a record in the middle of a change.
    nowhere: [Line; 8],
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").finish_non_exhaustive()
    }
}

impl Default for Arena {
    fn default() -> Arena {
        let nowhere: [Line; 8] = Default::default();
        nowhere[0].0[0].store(1 << 32, Ordering::Relaxed);
        Arena { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(), nowhere }
    }
}

impl Arena {
    #[inline]
    fn lines(&self, cell: Cell) -> &[Line] {
        let chunk = self.chunks.get((cell.0 >> WITHIN) as usize);
        chunk.and_then(OnceLock::get).map_or(&[], Chunk::lines)
    }

    /// The line in which a cell begins, for cells of at least a line.
    #[inline]
    pub(super) fn line(&self, cell: Cell) -> &[AtomicU64; 8] {
        let at = (cell.0 & ((1 << WITHIN) - 1)) as usize >> 2;
        &self.lines(cell).get(at).unwrap_or(&self.nowhere[0]).0
    }

    /// All lines of a bucket.
    #[inline]
    pub(super) fn bucket(&self, cell: Cell) -> &[Line; 8] {
        let at = (cell.0 & ((1 << WITHIN) - 1)) as usize >> 2;
        let lines = self.lines(cell).get(at..).and_then(|lines| lines.first_chunk());
        lines.unwrap_or(&self.nowhere)
    }

    /// A cell's words from the first on.
    #[inline]
    pub(super) fn words(&self, cell: Cell) -> Words<'_> {
        let at = (cell.0 & ((1 << WITHIN) - 1)) as usize * 2;
        let lines = self.lines(cell).get(at / 8..).unwrap_or_default();
        Words { lines, at: at % 8, nowhere: &self.nowhere[0].0[0] }
    }
}

/// The words of one cell.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    lines: &'a [Line],
    at: usize,
    nowhere: &'a AtomicU64,
}

impl<'a> Words<'a> {
    #[inline]
    pub(super) fn word(self, i: usize) -> &'a AtomicU64 {
        let at = self.at + i;
        self.lines.get(at / 8).map_or(self.nowhere, |line| &line.0[at % 8])
    }

    #[inline]
    pub(super) fn load(self, i: usize) -> u64 {
        self.word(i).load(Ordering::Relaxed)
    }

    /// Four words, which as a rule lie in one line.
    #[inline(always)]
    pub(super) fn four(self, i: usize) -> [u64; 4] {
        let at = self.at + i;
        match self.lines.get(at / 8) {
            Some(Line(line)) if at.is_multiple_of(4) => {
                let half = &line.as_chunks::<4>().0[at / 4 % 2];
                half.each_ref().map(|word| word.load(Ordering::Relaxed))
            }
            _ => std::array::from_fn(|n| self.load(i + n)),
        }
    }

    #[inline]
    pub(super) fn store(self, i: usize, value: u64) {
        self.word(i).store(value, Ordering::Relaxed);
    }
}

/// The writer's book of what is in use. Second words of free cells link them.
#[derive(Debug)]
pub(super) struct Book {
    free: [Cell; 3 + 17],
    /// The next unit never used.
    next: u32,
    made: usize,
    live: usize,
    outside: usize,
}

impl Default for Book {
    fn default() -> Book {
        // Unit 0 is given up: its address means nowhere.
        Book { free: [Cell::NONE; 20], next: 1, made: 0, live: 0, outside: 0 }
    }
}

impl Book {
    /// A cell with whatever words it had. Run records keep a guard that is open.
    pub(super) fn take(&mut self, arena: &Arena, kind: Kind) -> Cell {
        self.live += kind.words();
        let first = &mut self.free[kind.number()];
        if *first != Cell::NONE {
            let cell = *first;
            *first = Cell(arena.words(cell).load(1) as u32);
            return cell;
        }
        self.carve(arena, kind)
    }

    pub(super) fn give(&mut self, arena: &Arena, kind: Kind, cell: Cell) {
        debug_assert_ne!(cell, Cell::NONE);
        self.live -= kind.words();
        self.link(arena, kind, cell);
    }

    fn link(&mut self, arena: &Arena, kind: Kind, cell: Cell) {
        let first = &mut self.free[kind.number()];
        arena.words(cell).store(1, u64::from(first.0));
        *first = cell;
    }

    #[cold]
    fn carve(&mut self, arena: &Arena, kind: Kind) -> Cell {
        let wanted = kind.words() / 2;
        loop {
            let chunk = (self.next >> WITHIN) as usize;
            if arena.chunks.get(chunk).is_none_or(|c| c.get().is_none()) {
                self.add_chunk(arena, chunk);
            }
            let (at, end) = (self.next as usize % UNITS, units(chunk));
            let cell = Cell(self.next);
            if at.is_multiple_of(wanted) && wanted <= end {
                self.pass(wanted);
                if kind == Kind::Run {
                    arena.line(cell)[0].store(1 << 32, Ordering::Relaxed);
                }
                return cell;
            }
            // What alignment, or too small a chunk, leaves over serves lists.
            let gap = if at == 0 { end } else { 1 << at.trailing_zeros() };
            self.link(arena, Kind::list(gap), cell);
            self.pass(gap);
        }
    }

    /// Goes so many units on; behind a small chunk's end the next one's units begin.
    fn pass(&mut self, by: usize) {
        let (chunk, at) = (self.next as usize / UNITS, self.next as usize % UNITS + by);
        self.next =
            if at == units(chunk) { (chunk + 1) << WITHIN } else { chunk << WITHIN | at } as u32;
    }

    fn add_chunk(&mut self, arena: &Arena, chunk: usize) {
        let Some(place) = arena.chunks.get(chunk) else {
            panic!("the memory index is at its limit of {CHUNKS} chunks: set a smaller budget");
        };
        let _ = place.set(Chunk::new(units(chunk)));
        self.made += units(chunk) * 2;
    }

    /// Bytes asked of the system.
    pub(super) fn made(&self) -> usize {
        self.made * 8
    }

    /// Bytes in use.
    #[inline]
    pub(super) fn live(&self) -> usize {
        self.live * 8
    }

    /// Counts bytes that were asked of the system beside the arena.
    pub(super) fn add_outside(&mut self, bytes: usize) {
        self.outside += bytes;
    }

    pub(super) fn drop_outside(&mut self, bytes: usize) {
        self.outside -= bytes;
    }

    /// Bytes of directories.
    #[inline]
    pub(super) fn outside(&self) -> usize {
        self.outside
    }
}

#[cfg(all(test, not(modelled)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::Run),
            Just(Kind::Bucket),
            Just(Kind::Segment),
            (0_u8..17).prop_map(Kind::List),
        ]
    }

    proptest! {
        #[test]
        fn cells_of_all_kinds_are_words_of_their_own_in_small_chunks_and_whole_ones(
            wanted in prop::collection::vec((kind(), any::<bool>()), 1..200),
        ) {
            let (arena, mut book) = (Arena::default(), Book::default());
            let mut taken = BTreeMap::new();
            for (kind, back) in wanted {
                let cell = book.take(&arena, kind);
                let (first, units) = (cell.0, (kind.words() / 2) as u32);
                prop_assert!(first > 0 && first.is_multiple_of(units.min(LINE as u32)));
                for word in [0, kind.words() - 1] {
                    let nowhere = &raw const arena.nowhere[0].0[0];
                    prop_assert!(&raw const *arena.words(cell).word(word) != nowhere, "{kind:?} {cell:?}");
                }
                let before = taken.range(..first + units).next_back();
                prop_assert!(before.is_none_or(|(at, units)| at + units <= first), "{cell:?}");
                match back {
                    true => book.give(&arena, kind, cell),
                    false => drop(taken.insert(first, units)),
                }
            }
            let units: u32 = taken.values().sum();
            prop_assert_eq!(book.live(), units as usize * 16);
        }
    }

    #[test]
    fn little_is_asked_for_a_little_and_at_most_a_chunk_more_than_is_needed() {
        let (arena, mut book) = (Arena::default(), Book::default());
        while book.live() < 5 * CHUNK_BYTES {
            book.take(&arena, Kind::Segment);
            let most = (2 * book.live() + CHUNK_BYTES / 8).min(book.live() + CHUNK_BYTES);
            assert!(book.made() <= most, "{} for {}", book.made(), book.live());
        }
    }
}
