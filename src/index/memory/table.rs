//! From a 64-bit hash to a place in a run: extendible hashing over buckets of 63 slots in 8 lines.
//!
//! Invariants: a place is in the bucket that the low bits of its hash name, in its home line unless
//! the bucket's head counts it among those that were spilled from there; a bucket's guard is open
//! while places move inside of it, which only a split does. A line is searched as a whole, without
//! a branch for each slot: where in a line a place is cannot be predicted.
//! A reader that *finds* its place needs no guard, for it checks the place itself; a reader that
//! finds nothing has to see guard and directory unchanged to believe it.

use std::fmt;
use std::sync::OnceLock;

use super::arena::{Arena, Book, Cell, Kind, Line};
use super::cpu;
use super::sync::{Apart, AtomicU32, AtomicU64, Ordering, guard};

const SLOTS: usize = 63;
/// A bucket with more places is split before the next one comes: in fuller ones too many places are
/// not in their home lines.
const FULL: u64 = 52;
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

/// Where the writer found a place, until the table changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    bucket: Cell,
    word: usize,
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
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) as usize
    }

    /// Bytes of the directory.
    pub(super) fn directory_bytes(&self) -> usize {
        4 << self.depth.load(Ordering::Relaxed)
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

    /// Starts to bring into the cache what a search for this hash looks at: where the bucket begins
    /// and where the hash is at home in it.
    #[inline]
    pub(super) fn touch(&self, arena: &Arena, hash: u64) {
        let bucket = arena.bucket(self.bucket_of(hash));
        cpu::prefetch(&bucket[0]);
        cpu::prefetch(&bucket[home(hash)]);
    }

    /// Writer: the bucket of a hash.
    #[inline]
    fn bucket_of(&self, hash: u64) -> Cell {
        let depth = self.depth.load(Ordering::Relaxed);
        self.bucket(hash & ((1 << depth) - 1))
    }

    /// Writer: the first place under this hash that `is` confirms, and where it is.
    #[inline]
    pub(super) fn seek(
        &self,
        arena: &Arena,
        hash: u64,
        is: impl FnMut(Place) -> bool,
    ) -> Option<(Place, Spot)> {
        let cell = self.bucket_of(hash);
        let bucket = arena.bucket(cell);
        let found = search(bucket, load(bucket, 0), hash, is);
        found.map(|(place, word)| (place, Spot { bucket: cell, word }))
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
            if let Some((place, _)) = search(arena.bucket(bucket), seen, hash, &mut is) {
                return Some(place);
            }
            if !guard::is_open(seen)
                && guard::held(word, seen)
                && self.bucket(at) == bucket
                && self.depth.load(Ordering::Acquire) == depth
            {
                return None;
            }
            std::hint::spin_loop();
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
            let head = load(bucket, 0);
            if let Some((there, _)) = search(bucket, head, hash, &mut is) {
                return Some(there);
            }
            if count_of(head) < FULL {
                let home = home(hash);
                let free = (home..home + 8).find_map(|line| {
                    let free = empty(bucket, line % 8);
                    (free != 0).then(|| (line % 8, free.trailing_zeros() as usize))
                });
                // There is one, for the bucket is not full.
                let (line, i) = free.unwrap_or((home, 7));
                let head = if line == home { head } else { spill(head, home) };
                bucket[line].0[i].store(place.slot(hash), Ordering::Release);
                store(bucket, 0, head + 1);
                self.len.store(self.len.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return None;
            }
            self.split(arena, book, at, cell, rehash);
        }
    }

    /// Takes out a place that was added under this hash; whether it was there.
    pub(super) fn remove(&self, arena: &Arena, hash: u64, place: Place) -> bool {
        let there = self.seek(arena, hash, |p| p == place);
        if let Some((_, spot)) = there {
            self.remove_at(arena, spot);
        }
        there.is_some()
    }

    /// Takes out the place that was found at a spot since the table last changed.
    #[inline]
    pub(super) fn remove_at(&self, arena: &Arena, spot: Spot) {
        let bucket = arena.bucket(spot.bucket);
        let home = home(load(bucket, spot.word));
        let head = load(bucket, 0);
        let head = if spot.word / 8 == home { head } else { unspill(head, home) };
        store(bucket, spot.word, 0);
        store(bucket, 0, head - 1);
        self.len.store(self.len.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
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
            self.double(own);
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

    fn double(&self, depth: u32) {
        let low = (0..1u64 << depth).map(|at| AtomicU32::new(self.bucket(at).0));
        let _ = self.levels[depth as usize + 1].set(low.collect());
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
    /// As in a head, without the depth.
    head: u64,
}

impl Default for Half {
    fn default() -> Half {
        // The head is in the first line.
        Half { words: [0; 64], used: [1, 0, 0, 0, 0, 0, 0, 0], head: 0 }
    }
}

impl Half {
    fn add(&mut self, slot: u64) {
        let home = home(slot);
        let mut line = home;
        while self.used[line] == 8 {
            line = (line + 1) % 8;
        }
        if line != home {
            self.head = spill(self.head, home);
        }
        self.words[line * 8 + usize::from(self.used[line])] = slot;
        self.used[line] += 1;
        self.head += 1;
    }

    /// Into a bucket whose guard is open.
    fn write(&self, bucket: &[Line; 8], depth: u32) {
        for i in 1..64 {
            store(bucket, i, self.words[i]);
        }
        store(bucket, 0, load(bucket, 0) & !0xffff_ffff | u64::from(depth) << 8 | self.head);
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

/// Places in a bucket, how many bits of the hash it stands for, and how many places of a home line
/// are in others: two bits a line, which stay as they are once they say 3.
#[inline]
fn count_of(head: u64) -> u64 {
    head & 0xff
}

#[inline]
fn depth_of(head: u64) -> u32 {
    (head >> 8) as u32 & 0xff
}

#[inline]
fn spilled(head: u64, home: usize) -> u64 {
    head >> (16 + 2 * home) & 3
}

#[inline]
fn spill(head: u64, home: usize) -> u64 {
    if spilled(head, home) == 3 { head } else { head + (1 << (16 + 2 * home)) }
}

#[inline]
fn unspill(head: u64, home: usize) -> u64 {
    if spilled(head, home) == 3 { head } else { head - (1 << (16 + 2 * home)) }
}

#[inline]
fn same_tag(slot: u64, hash: u64) -> bool {
    (slot ^ hash) << (64 - TAG) == 0
}

/// The words of a line of which `is` is true, as bits; never the head.
#[inline]
fn words(bucket: &[Line; 8], line: usize, is: impl Fn(u64) -> bool) -> u32 {
    let words = &bucket[line % 8].0;
    let mut bits = 0;
    for (i, word) in words.iter().enumerate() {
        bits |= u32::from(is(word.load(Ordering::Relaxed))) << i;
    }
    bits & !u32::from(line == 0)
}

#[inline]
fn empty(bucket: &[Line; 8], line: usize) -> u32 {
    words(bucket, line, |slot| slot == 0)
}

/// The first place under a hash that `is` confirms, and its word.
#[inline]
fn search(
    bucket: &[Line; 8],
    head: u64,
    hash: u64,
    mut is: impl FnMut(Place) -> bool,
) -> Option<(Place, usize)> {
    let home = home(hash);
    let lines = if spilled(head, home) == 0 { 1 } else { 8 };
    for line in home..home + lines {
        let line = line % 8;
        let mut found = words(bucket, line, |slot| same_tag(slot, hash));
        while found != 0 {
            let i = found.trailing_zeros() as usize;
            found &= found - 1;
            // A tag may be all zeros, as an empty slot is, and a reader may see other words now.
            let slot = bucket[line].0[i].load(Ordering::Acquire);
            if slot != 0 && same_tag(slot, hash) && is(Place::of(slot)) {
                return Some((Place::of(slot), line * 8 + i));
            }
        }
    }
    None
}
