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
/// Words of a chunk: 2 MiB at a time are asked of the system, one huge page.
const CHUNK: usize = 2 << WITHIN;
/// At most so many chunks: 16 GiB, what the 27 bits of a run's number address.
pub(super) const CHUNKS: usize = if cfg!(modelled) { 4 } else { 1 << 13 };
/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: usize = CHUNK * 8;
const LINES: usize = CHUNK / 8;

/// A cache line of words.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(super) struct Line(pub(super) [AtomicU64; 8]);

/// A huge page of lines.
#[cfg_attr(not(modelled), repr(C, align(2_097_152)))]
#[derive(Debug)]
pub(super) struct Chunk([Line; LINES]);

#[cfg(modelled)]
impl Chunk {
    pub(super) fn new() -> Chunk {
        Chunk(std::array::from_fn(|_| Line::default()))
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
    chunks: Box<[OnceLock<Box<Chunk>>]>,
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
        self.chunks.get((cell.0 >> WITHIN) as usize).and_then(OnceLock::get).map_or(&[], |c| &c.0)
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
        let units = kind.words() as u32 / 2;
        loop {
            let chunk = (self.next >> WITHIN) as usize;
            if arena.chunks.get(chunk).is_none_or(|c| c.get().is_none()) {
                self.add_chunk(arena, chunk);
            }
            let at = self.next & ((1 << WITHIN) - 1);
            if at.is_multiple_of(units) {
                let cell = Cell(self.next);
                self.next += units;
                if kind == Kind::Run {
                    arena.line(cell)[0].store(1 << 32, Ordering::Relaxed);
                }
                return cell;
            }
            // What alignment leaves over serves lists.
            let gap = 1 << at.trailing_zeros();
            self.link(arena, Kind::list(gap), Cell(self.next));
            self.next += gap as u32;
        }
    }

    fn add_chunk(&mut self, arena: &Arena, chunk: usize) {
        let Some(place) = arena.chunks.get(chunk) else {
            panic!("the memory index is at its limit of {CHUNKS} chunks: set a smaller budget");
        };
        let _ = place.set(cpu::zeroed_chunk());
        self.made += CHUNK;
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
