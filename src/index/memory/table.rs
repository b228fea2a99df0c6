//! From a 64-bit hash to a place in a run: extendible hashing over buckets of 63 slots in 8 lines.
//!
//! Invariants: a place is in the bucket that the low bits of its hash name, in its home line or
//! behind it, and all lines from its home up to its own are full: a search ends at the first line
//! with an empty slot, and most touch one line and nothing else of the bucket. A bucket's guard is
//! open while places move inside of it: in a split, and where a full line that others had to pass
//! gets an empty slot. A line is searched as a whole, without a branch for each slot: where in a
//! line a place is cannot be predicted.
//! A reader that *finds* its place needs no guard, for it checks the place itself; a reader that
//! finds nothing has to see guard and directory unchanged to believe it.

use std::fmt;
use std::sync::OnceLock;

use super::arena::{Arena, Book, Cell, Kind, Line};
use super::cpu;
use super::sync::{Apart, AtomicU32, AtomicU64, Ordering, guard, spin_loop};

const SLOTS: usize = 63;
/// A bucket is split where a place finds no empty slot in so many lines from its home on. That comes
/// at some 55 places; three quarters of the searches of a bucket as full as that touch one line. The
/// model checker fills a line, not three.
const REACH: usize = if cfg!(loom) { 1 } else { 3 };
/// Bits of the hash that a slot keeps: the low ones for the directory, six for the home line.
const TAG: u32 = 25;
const DIRECTORY_BITS: u32 = 19;

/// A run and an offset in it, with the part of the hash by which the slot is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the run; never 0.
    pub(super) run: u32,
    /// Block of the run.
    pub(super) at: u32,
}

impl Place {
    #[inline]
    fn slot(self, hash: u64) -> u64 {
        u64::from(self.run) << 37 | u64::from(self.at) << TAG | hash & ((1 << TAG) - 1)
    }

    #[inline]
    fn of(slot: u64) -> Place {
        Place { run: (slot >> 37) as u32, at: (slot >> TAG) as u32 & 0xfff }
    }
}

/// What the hash of a place is; asked only where a table outgrows the bits that its slots keep.
/// The second argument has the low 25 bits.
pub(super) type Rehash<'a> = &'a dyn Fn(Place, u64) -> u64;

/// Level `n > 0` of the directory holds entries `2^(n-1)..2^n`, so that growing moves nothing.
type Levels = [OnceLock<Box<[AtomicU32]>>; 28];

pub(super) struct Table {
    depth: AtomicU32,
    levels: Levels,
    /// Changes with every place, which readers of the directory shall not notice.
    len: Apart<AtomicU32>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The line of a hash: each has as many hashes as slots, and the first has a slot less.
#[inline]
fn home(hash: u64) -> usize {
    ((((hash >> DIRECTORY_BITS & 63) as usize * SLOTS) >> 6) + 1) / 8
}

impl Table {
    pub(super) fn new(arena: &Arena, book: &mut Book) -> Table {
        let table = Table {
            depth: AtomicU32::new(0),
            levels: std::array::from_fn(|_| OnceLock::new()),
            len: Apart(AtomicU32::new(0)),
        };
        let first = new_bucket(arena, book, 0, &Half::default());
        let _ = table.levels[0].set([AtomicU32::new(first.0)].into());
        book.add_outside(4);
        table
    }

    /// Gives all buckets back; the table must not be used any more.
    pub(super) fn dismantle(&self, arena: &Arena, book: &mut Book) {
        let depth = self.depth.load(Ordering::Relaxed);
        for at in 0..1u64 << depth {
            let bucket = self.bucket(at);
            // Each bucket once: at the least of its entries.
            let own = depth_of(arena.line(bucket)[0].load(Ordering::Relaxed));
            if at >> own == 0 {
                book.give(arena, Kind::Bucket, bucket);
            }
        }
        book.drop_outside(4 << depth);
    }

    /// Bits of a hash that choose the bucket.
    #[cfg(all(test, loom))]
    pub(super) fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn entry(&self, at: u64) -> Option<&AtomicU32> {
        let level = (64 - at.leading_zeros()) as usize;
        let first = if level == 0 { 0 } else { 1 << (level - 1) };
        self.levels.get(level)?.get()?.get(at as usize - first)
    }

    #[inline]
    fn bucket(&self, at: u64) -> Cell {
        Cell(self.entry(at).map_or(0, |e| e.load(Ordering::Acquire)))
    }

    /// Starts to bring into the cache what a reader's search for this hash looks at: where the bucket
    /// begins and where the hash is at home in it.
    #[inline]
    pub(super) fn touch(&self, arena: &Arena, hash: u64) {
        let bucket = arena.bucket(self.bucket_of(hash));
        cpu::prefetch(&bucket[0]);
        cpu::prefetch(&bucket[home(hash)]);
    }

    /// Starts to bring into the cache what the writer looks at for this hash.
    #[inline]
    pub(super) fn touch_home(&self, arena: &Arena, hash: u64) {
        cpu::prefetch(&arena.bucket(self.bucket_of(hash))[home(hash)]);
    }

    /// Writer: the bucket of a hash.
    #[inline]
    fn bucket_of(&self, hash: u64) -> Cell {
        let depth = self.depth.load(Ordering::Relaxed);
        self.bucket(hash & ((1 << depth) - 1))
    }

    /// Writer: the first place under this hash that `is` confirms.
    #[inline]
    pub(super) fn seek(
        &self,
        arena: &Arena,
        hash: u64,
        is: impl FnMut(Place) -> bool,
    ) -> Option<Place> {
        search(arena.bucket(self.bucket_of(hash)), hash, is)
    }

    /// A run that may be under this hash, to be asked for; 0 for none. Without a branch on what a slot
    /// says: what comes after this shall not wait for it.
    #[inline]
    pub(super) fn guess(&self, arena: &Arena, hash: u64) -> u32 {
        let bucket = arena.bucket(self.bucket_of(hash));
        let home = home(hash);
        // The head, which is the first word of the first line, is taken for a slot, too: it is a guess.
        (0..8).fold(0, |run, i| {
            let slot = load(bucket, home * 8 + i);
            run | (Place::of(slot).run * u32::from(same_tag(slot, hash)))
        })
    }

    /// The first place under this hash that `is` confirms. Readers beside the writer may call it if
    /// `is` checks everything for itself.
    #[inline]
    pub(super) fn find(
        &self,
        arena: &Arena,
        hash: u64,
        mut is: impl FnMut(Place) -> bool,
    ) -> Option<Place> {
        loop {
            let depth = self.depth.load(Ordering::Acquire);
            let at = hash & ((1 << depth) - 1);
            let bucket = self.bucket(at);
            let word = &arena.line(bucket)[0];
            let seen = guard::enter(word);
            if let Some(place) = search(arena.bucket(bucket), hash, &mut is) {
                return Some(place);
            }
            if !guard::is_open(seen)
                && guard::held(word, seen)
                && self.bucket(at) == bucket
                && self.depth.load(Ordering::Acquire) == depth
            {
                return None;
            }
            spin_loop();
        }
    }

    /// Adds a place, unless `is` confirms one that is there already: that one is returned.
    pub(super) fn insert(
        &self,
        arena: &Arena,
        book: &mut Book,
        hash: u64,
        place: Place,
        mut is: impl FnMut(Place) -> bool,
        rehash: Rehash<'_>,
    ) -> Option<Place> {
        loop {
            let depth = self.depth.load(Ordering::Relaxed);
            let at = hash & ((1 << depth) - 1);
            let cell = self.bucket(at);
            let bucket = arena.bucket(cell);
            let home = home(hash);
            // Mostly one line says both that the place is not there yet and where it may go.
            let mut free = None;
            for line in (home..home + 8).map(|line| line % 8) {
                let (mut found, empty) = scan(bucket, line, hash);
                while found != 0 {
                    let slot = load(bucket, line * 8 + found.trailing_zeros() as usize);
                    found &= found - 1;
                    if slot != 0 && is(Place::of(slot)) {
                        return Some(Place::of(slot));
                    }
                }
                if empty != 0 {
                    free = Some((line, empty.trailing_zeros() as usize % 8));
                    break;
                }
            }
            if let Some((line, i)) = free.filter(|f| (f.0 + 8 - home) % 8 < REACH) {
                bucket[line].0[i].store(place.slot(hash), Ordering::Release);
                self.len.store(self.len.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return None;
            }
            self.split(arena, book, at, cell, rehash);
        }
    }

    /// Takes out a place that was added under this hash; whether it was there.
    pub(super) fn remove(&self, arena: &Arena, hash: u64, place: Place) -> bool {
        let bucket = arena.bucket(self.bucket_of(hash));
        let (home, slot) = (home(hash), place.slot(hash));
        for line in (home..home + 8).map(|line| line % 8) {
            let (mut found, empty) = scan(bucket, line, hash);
            while found != 0 {
                let word = line * 8 + found.trailing_zeros() as usize % 8;
                found &= found - 1;
                if load(bucket, word) == slot {
                    if empty != 0 || !close_gap(bucket, word) {
                        store(bucket, word, 0);
                    }
                    self.len.store(self.len.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
                    return true;
                }
            }
            if empty != 0 {
                break;
            }
        }
        false
    }

    /// The first place of the bucket that an entry of the directory names, if that is the first of
    /// the bucket's entries; `Err` behind the last entry.
    pub(super) fn first_at(&self, arena: &Arena, at: u64) -> Result<Option<Place>, ()> {
        if at >> self.depth.load(Ordering::Relaxed) != 0 {
            return Err(());
        }
        let bucket = arena.bucket(self.bucket(at));
        if at >> depth_of(load(bucket, 0)) != 0 {
            return Ok(None);
        }
        let slot = (1..=SLOTS).map(|i| load(bucket, i)).find(|&slot| slot != 0);
        Ok(slot.map(Place::of))
    }

    /// Every place, with its slot's part of the hash.
    pub(super) fn places(&self, arena: &Arena) -> Vec<Place> {
        let depth = self.depth.load(Ordering::Relaxed);
        let mut places = Vec::new();
        for at in 0..1u64 << depth {
            let bucket = arena.bucket(self.bucket(at));
            if at >> depth_of(load(bucket, 0)) == 0 {
                let slots = (1..=SLOTS).map(|i| load(bucket, i)).filter(|&slot| slot != 0);
                places.extend(slots.map(Place::of));
            }
        }
        places
    }

    #[cold]
    fn split(&self, arena: &Arena, book: &mut Book, at: u64, cell: Cell, rehash: Rehash<'_>) {
        let bucket = arena.bucket(cell);
        let head = load(bucket, 0);
        let own = depth_of(head);
        if own == self.depth.load(Ordering::Relaxed) {
            self.double(book, own);
        }
        let depth = self.depth.load(Ordering::Relaxed);
        let goes = |slot: u64| {
            let hash = if own < DIRECTORY_BITS {
                slot
            } else {
                rehash(Place::of(slot), slot & ((1 << TAG) - 1))
            };
            (hash >> own & 1) as usize
        };
        let mut halves = [Half::default(), Half::default()];
        for slot in (1..=SLOTS).map(|i| load(bucket, i)).filter(|&slot| slot != 0) {
            halves[goes(slot)].add(slot);
        }
        let [stay, go] = halves;
        let other = new_bucket(arena, book, own + 1, &go);
        // From here on the new bucket answers for its half; only then does the old one lose it.
        let low = at & ((1 << own) - 1);
        for upper in (0..1u64 << (depth - own)).filter(|upper| upper & 1 == 1) {
            if let Some(entry) = self.entry(upper << own | low) {
                entry.store(other.0, Ordering::Release);
            }
        }
        guard::open(word(bucket, 0));
        stay.write(bucket, own + 1);
        guard::close(word(bucket, 0));
    }

    fn double(&self, book: &mut Book, depth: u32) {
        let low = (0..1u64 << depth).map(|at| AtomicU32::new(self.bucket(at).0));
        let _ = self.levels[depth as usize + 1].set(low.collect());
        book.add_outside(4 << depth);
        self.depth.store(depth + 1, Ordering::Release);
    }
}

fn new_bucket(arena: &Arena, book: &mut Book, depth: u32, half: &Half) -> Cell {
    let cell = book.take(arena, Kind::Bucket);
    let bucket = arena.bucket(cell);
    if !guard::is_open(load(bucket, 0)) {
        guard::open(word(bucket, 0));
    }
    half.write(bucket, depth);
    guard::close(word(bucket, 0));
    cell
}

/// What a bucket gets when another is split.
#[derive(Debug)]
struct Half {
    words: [u64; 64],
    used: [u8; 8],
}

impl Default for Half {
    fn default() -> Half {
        // The head is in the first line.
        Half { words: [0; 64], used: [1, 0, 0, 0, 0, 0, 0, 0] }
    }
}

impl Half {
    fn add(&mut self, slot: u64) {
        let mut line = home(slot);
        while self.used[line] == 8 {
            line = (line + 1) % 8;
        }
        self.words[line * 8 + usize::from(self.used[line])] = slot;
        self.used[line] += 1;
    }

    /// Into a bucket whose guard is open. What stays where it is need not be written.
    fn write(&self, bucket: &[Line; 8], depth: u32) {
        for i in (1..64).filter(|&i| load(bucket, i) != self.words[i]) {
            store(bucket, i, self.words[i]);
        }
        store(bucket, 0, load(bucket, 0) & !0xffff_ffff | u64::from(depth));
    }
}

/// A word of a bucket: its head, then the slots.
#[inline]
fn word(bucket: &[Line; 8], i: usize) -> &AtomicU64 {
    &bucket[i / 8 % 8].0[i % 8]
}

#[inline]
fn load(bucket: &[Line; 8], i: usize) -> u64 {
    word(bucket, i).load(Ordering::Relaxed)
}

#[inline]
fn store(bucket: &[Line; 8], i: usize, value: u64) {
    word(bucket, i).store(value, Ordering::Relaxed);
}

/// How many bits of the hash a bucket stands for.
#[inline]
fn depth_of(head: u64) -> u32 {
    head as u32 & 0xff
}

#[inline]
fn same_tag(slot: u64, hash: u64) -> bool {
    (slot ^ hash) << (64 - TAG) == 0
}

/// The slots of a line under the tag of a hash, and its empty slots, as bits; never the head.
#[inline]
fn scan(bucket: &[Line; 8], line: usize, hash: u64) -> (u32, u32) {
    let slots = u32::from(line != 0) | 0xfe;
    // The run of a place is in the upper half of its slot and never 0, its tag in the lower half.
    let (same, empty) = cpu::scan(&bucket[line % 8], hash as u32, TAG);
    (same & slots, empty & slots)
}

/// The first place under a hash that `is` confirms.
#[inline]
fn search(bucket: &[Line; 8], hash: u64, mut is: impl FnMut(Place) -> bool) -> Option<Place> {
    let home = home(hash);
    for line in home..home + 8 {
        let line = line % 8;
        let (mut found, empty) = scan(bucket, line, hash);
        while found != 0 {
            let i = found.trailing_zeros() as usize;
            found &= found - 1;
            // A tag may be all zeros, as an empty slot is, and a reader may see other words now.
            let slot = bucket[line].0[i].load(Ordering::Acquire);
            if slot != 0 && same_tag(slot, hash) && is(Place::of(slot)) {
                return Some(Place::of(slot));
            }
        }
        if empty != 0 {
            break;
        }
    }
    None
}

/// Moves a place that had to pass the line of a word, which is full, to that word, and so on with the
/// place that it leaves; whether there was any. Otherwise the word is as it was.
#[cold]
fn close_gap(bucket: &[Line; 8], word: usize) -> bool {
    let (mut gap, mut line) = (word, word / 8);
    // Places of a line that are at home in one that is so many lines before it, or more.
    let passed = |line: usize, lines: usize| {
        let mut slots = usize::from(line == 0)..8;
        slots.find(|i| {
            let slot = load(bucket, line * 8 + i);
            slot != 0 && (line + 8 - home(slot)) % 8 >= lines
        })
    };
    for lines in 1..8 {
        let next = (word / 8 + lines) % 8;
        let full = scan(bucket, next, 0).1 == 0;
        if let Some(from) = passed(next, (next + 8 - line) % 8) {
            if gap == word {
                guard::open(self::word(bucket, 0));
            }
            let from = next * 8 + from;
            self::word(bucket, gap).store(load(bucket, from), Ordering::Release);
            (gap, line) = (from, next);
        }
        if !full {
            break;
        }
    }
    if gap != word {
        store(bucket, gap, 0);
        guard::close(self::word(bucket, 0));
    }
    gap != word
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Hashes of which many are at home in few lines, so that places pass full ones.
    fn hash(n: u64) -> u64 {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = mixed ^ mixed >> 29;
        let crowded = if n.is_multiple_of(3) { 0x0030_0000 } else { 0 };
        mixed & !0x0180_0000 | crowded
    }

    #[test]
    fn a_table_is_a_map_whatever_comes_and_goes() {
        let (arena, mut book) = (Arena::default(), Book::default());
        let table = Table::new(&arena, &mut book);
        let place = |n: u64| Place { run: n as u32 + 1, at: n as u32 % 4096 };
        let rehash = |p: Place, _: u64| hash(u64::from(p.run) - 1);
        let mut model: HashMap<u64, Place> = HashMap::new();
        let mut state = 1u64;
        for step in 0..60_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Grows, then is held at a size, then shrinks.
            let grows = state >> 33 & 7 < if step < 20_000 { 6 } else { 4 };
            let n = (state >> 40) % 6_000;
            let (key, there) = (hash(n), place(n));
            if grows && step < 50_000 {
                let old = table.insert(&arena, &mut book, key, there, |p| p == there, &rehash);
                assert_eq!(old, model.insert(n, there), "step {step}");
            } else {
                let gone = table.remove(&arena, key, there);
                assert_eq!(gone, model.remove(&n).is_some(), "step {step}");
            }
            assert_eq!(table.len(), model.len());
            if step.is_multiple_of(500) {
                for n in 0..6_000 {
                    let found = table.find(&arena, hash(n), |p| p == place(n));
                    assert_eq!(found, model.get(&n).copied(), "{n} at step {step}");
                    assert_eq!(table.seek(&arena, hash(n), |p| p == place(n)), found);
                }
            }
        }
        let mut all = table.places(&arena);
        all.sort_by_key(|p| p.run);
        let mut expected: Vec<Place> = model.into_values().collect();
        expected.sort_by_key(|p| p.run);
        assert_eq!(all, expected);
    }
}
