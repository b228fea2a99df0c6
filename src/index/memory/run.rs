//! Runs: stretches of chains, held as contiguous sums and segments of sixteen blocks.
//!
//! Invariants: a run is never split and its blocks never move, so (run, offset) means one block from
//! push to pop. A record is used again for other runs, each with a birth number of its own: who goes
//! from a run to its child looks at the birth number again behind the child. Blocks `0..len` have a content; the sum of a
//! segment is right once the segment is full. Line 0 of a record is what readers read, under the
//! guard in its first word; line 1 is the writer's alone.

use super::arena::{Arena, Book, Cell, Kind, Words};
use super::cpu;
use super::sync::{AtomicU64, Ordering, guard};
use crate::block::Digest;

/// Blocks of a segment.
pub(super) const SEGMENT: usize = 16;
/// Segments whose sums are asked for at once, eight in a line; the hardware sees the rest coming.
const ASKED: usize = 64;
/// A longer chain goes on in a child: offsets have 12 bits.
pub(super) const LONGEST: u32 = 4096;

/// Number of a run; its record is at 8 times that many units. 0 is no run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RunId(pub(super) u32);

impl RunId {
    pub(super) const NONE: RunId = RunId(0);

    #[inline]
    pub(super) fn cell(self) -> Cell {
        Cell(self.0 << 3)
    }
}

/// Fields of a record that share a word: word, shift, bits.
#[derive(Clone, Copy)]
pub(super) struct Field(usize, u32, u32);

/// The parent; 0 for a root.
pub(super) const UP: Field = Field(1, 32, 32);
/// Blocks of the parent before this run; the look-ahead of a root's shape.
pub(super) const OFFSET: Field = Field(1, 0, 32);
/// Content of the first block; (space, size) of a root.
pub(super) const HEAD: Field = Field(2, 0, 64);
pub(super) const LEN: Field = Field(3, 51, 13);
/// The greatest offset of a child, 0 without children: queries that leave the run behind it need not
/// look for one, and most that leave it elsewhere leave it there.
pub(super) const LAST_KID: Field = Field(3, 38, 13);
/// The size of the list that [`DATA`] names: so many sums as a power of two, then the segments.
const DATA_CLASS: Field = Field(3, 33, 5);
/// Entries of [`CUTS`]: how many are cuts, how many are parts.
pub(super) const CUT_COUNT: Field = Field(3, 16, 17);
pub(super) const PART_COUNT: Field = Field(3, 0, 16);
/// The only segment, or the list of sums and segments.
const DATA: Field = Field(4, 32, 32);
/// The list of residency entries, unless the only one is a cut, which is in words 5 and 6.
pub(super) const CUTS: Field = Field(4, 0, 32);
pub(super) const INLINE: usize = 5;
/// When a query or a store last came by.
pub(super) const USED: Field = Field(7, 0, 32);
/// The last segment, for whoever wants it before the list that says so has come: a hint, which a
/// reader that notes its use may set back to an older one.
const TAIL: Field = Field(7, 32, 32);

pub(super) const FIRST_KID: Field = Field(8, 0, 32);
pub(super) const NEXT: Field = Field(9, 32, 32);
pub(super) const BEFORE: Field = Field(9, 0, 32);
pub(super) const KIDS: Field = Field(10, 32, 32);
/// How many children are at the greatest offset.
pub(super) const KIDS_AT_LAST: Field = Field(10, 0, 32);
pub(super) const CUTS_CLASS: Field = Field(11, 32, 8);
/// Blocks with names of further vocabularies (segments), further names, further copies.
pub(super) const MORE: Field = Field(11, 0, 32);
pub(super) const VOCABULARY: Field = Field(12, 32, 32);
pub(super) const EXTRAS: Field = Field(12, 0, 32);
/// Place in the writer's list of runs.
pub(super) const POSITION: Field = Field(13, 32, 32);
/// The last retirement of which this run knows.
pub(super) const FRESH: Field = Field(13, 0, 32);
pub(super) const ROOT: Field = Field(14, 32, 32);
pub(super) const ALSO: Field = Field(14, 0, 32);
/// Whether the writer counts children by offset.
pub(super) const CROWDED: Field = Field(15, 0, 32);

/// A run's record.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) id: RunId,
    pub(super) arena: &'a Arena,
    read: &'a [AtomicU64; 8],
    write: &'a [AtomicU64; 8],
}

impl<'a> Run<'a> {
    #[inline]
    pub(super) fn at(arena: &'a Arena, id: RunId) -> Run<'a> {
        let cell = id.cell();
        Run { id, arena, read: arena.line(cell), write: arena.line(Cell(cell.0 + 4)) }
    }

    #[inline]
    pub(super) fn word(self, i: usize) -> &'a AtomicU64 {
        if i < 8 { &self.read[i] } else { &self.write[i & 7] }
    }

    #[inline]
    pub(super) fn raw(self, i: usize) -> u64 {
        self.word(i).load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn field(self, Field(word, shift, bits): Field) -> u64 {
        self.raw(word) >> shift & (u64::MAX >> (64 - bits))
    }

    #[inline]
    pub(super) fn get(self, field: Field) -> u32 {
        self.field(field) as u32
    }

    #[inline]
    pub(super) fn set(self, Field(word, shift, bits): Field, value: impl Into<u64>) {
        let mask = (u64::MAX >> (64 - bits)) << shift;
        let now = self.raw(word);
        let value = value.into() << shift & mask;
        self.word(word).store(now & !mask | value, Ordering::Relaxed);
    }

    /// Asks for what readers read of the record.
    #[inline]
    pub(super) fn ask_record(self) {
        cpu::prefetch(self.guard());
    }

    /// Asks for what the record leads to: holders, sums, and the segment in which a prompt leaves
    /// that shares `same` blocks of its `len`.
    #[inline]
    pub(super) fn ask(self, len: u32, same: u32) {
        cpu::prefetch(self.arena.words(Cell(self.get(CUTS))).word(0));
        let data = self.arena.words(Cell(self.get(DATA)));
        cpu::prefetch(data.word(0));
        if len as usize > SEGMENT {
            let last = same as usize / SEGMENT;
            for segment in (8..last.min(ASKED)).step_by(8) {
                cpu::prefetch(data.word(segment));
            }
            if !same.is_multiple_of(SEGMENT as u32) || same < len {
                cpu::prefetch(data.word(self.listed(last)));
            }
        }
    }

    /// Asks for the contents of a segment up to block `at`.
    #[inline]
    pub(super) fn ask_segment(self, at: u32, len: u32) {
        let contents = self.segment(at, len);
        cpu::prefetch(contents.word(0));
        if at as usize % SEGMENT >= 8 {
            cpu::prefetch(contents.word(8));
        }
    }

    /// Asks for the contents of the last segment up to block `at`.
    #[inline]
    pub(super) fn ask_tail(self, at: u32) {
        let contents = self.arena.words(Cell(self.get(TAIL)));
        cpu::prefetch(contents.word(0));
        if at as usize % SEGMENT >= 8 {
            cpu::prefetch(contents.word(8));
        }
    }

    /// Notes a use; readers may.
    #[inline]
    pub(super) fn touch(self, now: u32) {
        self.set(USED, now);
    }

    #[inline]
    pub(super) fn guard(self) -> &'a AtomicU64 {
        &self.read[0]
    }

    /// The run's birth number.
    #[inline]
    pub(super) fn born(self) -> u32 {
        self.raw(0) as u32
    }

    #[inline]
    pub(super) fn len(self) -> u32 {
        self.get(LEN)
    }

    #[inline]
    pub(super) fn parent(self) -> RunId {
        RunId(self.get(UP))
    }

    pub(super) fn is_root(self) -> bool {
        self.get(UP) == 0
    }

    /// Content and names of the segment that holds block `at`, of a run of `len` blocks.
    #[inline]
    pub(super) fn segment(self, at: u32, len: u32) -> Words<'a> {
        self.arena.words(self.segment_cell(at as usize / SEGMENT, len))
    }

    #[inline]
    fn segment_cell(self, segment: usize, len: u32) -> Cell {
        let data = Cell(self.get(DATA));
        if len as usize <= SEGMENT {
            return data;
        }
        Cell(self.arena.words(data).load(self.listed(segment)) as u32)
    }

    /// Where in the list a segment is.
    #[inline]
    fn listed(self, segment: usize) -> usize {
        (1 << self.get(DATA_CLASS)) + segment
    }

    #[inline]
    pub(super) fn content(self, at: u32, len: u32) -> u64 {
        self.segment(at, len).load(at as usize % SEGMENT)
    }

    /// The name of a block in the run's own vocabulary; 0 means none.
    #[inline]
    pub(super) fn name(self, at: u32, len: u32) -> &'a AtomicU64 {
        self.segment(at, len).word(SEGMENT + at as usize % SEGMENT)
    }

    /// How many blocks from `from` on, which begins a segment, have these contents, of a run of
    /// `len` blocks. Whole segments are compared by their sums.
    #[inline]
    pub(super) fn compare(self, from: u32, len: u32, digests: &[Digest]) -> usize {
        let mut done = 0;
        if len as usize > SEGMENT {
            let sums = self.arena.words(Cell(self.get(DATA)));
            done = SEGMENT * cpu::equal_sums(sums, from as usize / SEGMENT, digests);
        }
        let mut words = None;
        for digest in &digests[done..] {
            let at = from as usize + done;
            if at.is_multiple_of(SEGMENT) || words.is_none() {
                words = Some(self.segment(at as u32, len));
            }
            if words.is_some_and(|w| w.load(at % SEGMENT) != digest.0) {
                break;
            }
            done += 1;
        }
        done
    }

    /// A new run without blocks and holders; its guard stays open until the caller closes it.
    pub(super) fn make(arena: &'a Arena, book: &mut Book, born: u32) -> Run<'a> {
        let cell = book.take(arena, Kind::Run);
        let run = Run::at(arena, RunId(cell.0 >> 3));
        for i in 1..16 {
            run.word(i).store(0, Ordering::Relaxed);
        }
        let guard = run.raw(0);
        debug_assert!(guard::is_open(guard));
        run.word(0).store(guard & !0xffff_ffff | u64::from(born), Ordering::Relaxed);
        run
    }

    /// Gives an empty run's record back, its guard open.
    pub(super) fn free(self, book: &mut Book) {
        guard::open(self.guard());
        // No reader takes it for a child any more.
        self.set(OFFSET, u32::MAX);
        book.give(self.arena, Kind::Run, self.id.cell());
    }

    /// Adds blocks at the end, with their names if `names` has some. The guard is open.
    pub(super) fn push(
        self,
        book: &mut Book,
        blocks: impl ExactSizeIterator<Item = (Digest, u64)>,
    ) {
        let old = self.len() as usize;
        let new = old + blocks.len();
        let segments = new.div_ceil(SEGMENT);
        let had = old.div_ceil(SEGMENT);
        self.reserve(book, had, segments);
        let list = segments > 1;
        let data = Cell(self.get(DATA));
        for segment in had..segments {
            let cell = book.take(self.arena, Kind::Segment);
            let words = self.arena.words(cell);
            for i in SEGMENT..2 * SEGMENT {
                words.store(i, 0);
            }
            if list {
                self.arena.words(data).store(self.listed(segment), u64::from(cell.0));
            } else {
                self.set(DATA, cell.0);
            }
            self.set(TAIL, cell.0);
        }
        self.set(LEN, new as u64);
        let mut words = self.segment(old as u32, new as u32);
        for (i, (digest, name)) in blocks.enumerate() {
            let at = (old + i) % SEGMENT;
            if at == 0 {
                words = self.segment((old + i) as u32, new as u32);
            }
            words.store(at, digest.0);
            words.store(SEGMENT + at, name);
            if at == SEGMENT - 1 && list {
                self.write_sum((old + i) / SEGMENT);
            }
        }
        if list && had == 1 && old == SEGMENT {
            self.write_sum(0);
        }
    }

    fn write_sum(self, segment: usize) {
        let data = self.arena.words(Cell(self.get(DATA)));
        let words = self.arena.words(Cell(data.load(self.listed(segment)) as u32));
        data.store(segment, sum(&std::array::from_fn(|i| Digest(words.load(i)))));
    }

    /// Takes the blocks from `new` on away; their names are unbound already. The guard is open.
    pub(super) fn truncate(self, book: &mut Book, new: u32) {
        let old = self.len() as usize;
        let segments = (new as usize).div_ceil(SEGMENT);
        for segment in segments..old.div_ceil(SEGMENT) {
            book.give(self.arena, Kind::Segment, self.segment_cell(segment, old as u32));
        }
        let class = self.get(DATA_CLASS) as u8;
        if old > SEGMENT && segments <= 1 {
            let data = Cell(self.get(DATA));
            let first = self.arena.words(data).load(self.listed(0));
            self.set(DATA, if segments == 1 { first } else { 0 });
            book.give(self.arena, Kind::List(class), data);
        } else if old > SEGMENT && segments << 2 <= 1 << class && class > 2 {
            self.move_list(book, segments, Kind::list(segments * 2), Kind::List(class));
        } else if segments == 0 {
            self.set(DATA, 0u32);
        }
        self.set(LEN, u64::from(new));
        if (1..old.div_ceil(SEGMENT)).contains(&segments) {
            self.set(TAIL, self.segment_cell(segments - 1, new).0);
        }
    }

    /// Makes room for the list of `segments` segments, of which `had` exist.
    fn reserve(self, book: &mut Book, had: usize, segments: usize) {
        if segments <= 1 {
            return;
        }
        if had <= 1 {
            let first = self.get(DATA);
            let Kind::List(class) = Kind::list(segments.max(2)) else { return };
            let list = book.take(self.arena, Kind::List(class));
            self.set(DATA, list.0);
            self.set(DATA_CLASS, class);
            self.arena.words(list).store(self.listed(0), u64::from(first));
        } else if segments > 1 << self.get(DATA_CLASS) {
            let old = Kind::List(self.get(DATA_CLASS) as u8);
            self.move_list(book, had, Kind::list(segments), old);
        }
    }

    fn move_list(self, book: &mut Book, segments: usize, to: Kind, from: Kind) {
        let Kind::List(class) = to else { return };
        let (old, new) = (Cell(self.get(DATA)), book.take(self.arena, to));
        let (from_words, to_words) = (self.arena.words(old), self.arena.words(new));
        for i in 0..segments {
            to_words.store(i, from_words.load(i));
            to_words.store((1 << class) + i, from_words.load(self.listed(i)));
        }
        self.set(DATA, new.0);
        self.set(DATA_CLASS, class);
        book.give(self.arena, from, old);
    }
}

/// Odd constants of no meaning (SplitMix64 from 0), one for each place in a segment.
pub(super) const SALTS: [u64; SEGMENT] = {
    let mut salts = [0; SEGMENT];
    let mut i = 0;
    while i < SEGMENT {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        salts[i] = z ^ (z >> 31);
        i += 1;
    }
    salts
};

/// 64 bits that stand for sixteen contents in this order.
///
/// For each place, the halves of the salted content are multiplied and the content itself is added,
/// much as XXH3 accumulates. Contents are keyed 64-bit digests that nobody outside can choose or
/// see, so different segments have equal sums with odds of about 2^-63, those of two digests being
/// equal. Made so that compilers vectorise it.
#[inline(always)]
pub(super) fn sum(contents: &[Digest; SEGMENT]) -> u64 {
    let mut all = 0u64;
    for i in 0..SEGMENT {
        let salted = contents[i].0 ^ SALTS[i];
        let product = (salted & 0xffff_ffff).wrapping_mul(salted >> 32);
        all = all.wrapping_add(product).wrapping_add(contents[i].0);
    }
    all
}

/// How many leading segments of `digests` have the sums that are in the words from `first` on.
#[inline(always)]
pub(super) fn equal_sums(sums: Words<'_>, first: usize, digests: &[Digest]) -> usize {
    // A plain loop: what an iterator calls would not be compiled for the caller's features.
    let mut same = 0;
    for segment in digests.as_chunks::<SEGMENT>().0 {
        if sums.load(first + same) != sum(segment) {
            break;
        }
        same += 1;
    }
    same
}
