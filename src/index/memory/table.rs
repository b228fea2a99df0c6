//! From a 64-bit hash to a place in a run: extendible hashing over buckets of 63 slots.
//!
//! Invariants: a place is in the bucket that the low bits of its hash name, at or after its home
//! slot without an empty slot in between; a bucket's guard is open while places move inside of it.
//! A reader that *finds* its place needs no guard, for it checks the place itself; a reader that
//! finds nothing has to see guard and directory unchanged to believe it.

use std::fmt;
use std::sync::OnceLock;

use super::arena::{Arena, Book, Cell, Kind};
use super::sync::{AtomicU32, Ordering, guard};

const SLOTS: usize = 63;
/// A bucket with more places is split before the next one comes.
const FULL: u64 = 60;
/// Bits of the hash that a slot keeps: the low ones for the directory, six for the home slot.
const TAG: u32 = 25;
const DIRECTORY_BITS: u32 = 19;

/// A run and an offset in it, with the part of the hash by which the slot is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    len: AtomicU32,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("len", &self.len).finish_non_exhaustive()
    }
}

#[inline]
fn home(hash: u64) -> usize {
    ((hash >> DIRECTORY_BITS & 63) as usize * SLOTS) >> 6
}

impl Table {
    pub(super) fn new(arena: &Arena, book: &mut Book) -> Table {
        let table = Table {
            depth: AtomicU32::new(0),
            levels: std::array::from_fn(|_| OnceLock::new()),
            len: AtomicU32::new(0),
        };
        let first = new_bucket(arena, book, 0);
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

    /// Starts to bring the bucket of a hash into the cache.
    #[inline]
    pub(super) fn touch(&self, arena: &Arena, hash: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        let bucket = arena.words(self.bucket(hash & ((1 << depth) - 1)));
        super::cpu::prefetch(bucket.word(1 + home(hash)));
    }

    /// A run that may be under this hash, to be asked for; 0 for none. Without a branch on what a slot
    /// says: what comes after this shall not wait for it.
    #[inline]
    pub(super) fn guess(&self, arena: &Arena, hash: u64) -> u32 {
        let depth = self.depth.load(Ordering::Relaxed);
        let words = arena.words(self.bucket(hash & ((1 << depth) - 1)));
        let (mut at, mut run) = (home(hash), 0);
        for _ in 0..4 {
            let slot = words.load(1 + at);
            run |= Place::of(slot).run * u32::from(same_tag(slot, hash));
            at = next(at);
        }
        run
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
            if let Some(place) = scan(arena, bucket, hash, &mut is) {
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
            let bucket = self.bucket(at);
            let words = arena.words(bucket);
            let head = words.load(0);
            let mut slot = home(hash);
            for _ in 0..SLOTS {
                let there = words.load(1 + slot);
                if there == 0 {
                    break;
                }
                if same_tag(there, hash) && is(Place::of(there)) {
                    return Some(Place::of(there));
                }
                slot = next(slot);
            }
            if count_of(head) < FULL {
                words.word(1 + slot).store(place.slot(hash), Ordering::Release);
                words.store(0, head + 1);
                self.len.store(self.len.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return None;
            }
            self.split(arena, book, at, bucket, rehash);
        }
    }

    /// Takes out a place that was added under this hash; whether it was there.
    pub(super) fn remove(&self, arena: &Arena, hash: u64, place: Place) -> bool {
        let depth = self.depth.load(Ordering::Relaxed);
        let words = arena.words(self.bucket(hash & ((1 << depth) - 1)));
        let wanted = place.slot(hash);
        let mut hole = home(hash);
        for _ in 0..SLOTS {
            match words.load(1 + hole) {
                0 => return false,
                slot if slot == wanted => break,
                _ => hole = next(hole),
            }
        }
        if words.load(1 + hole) != wanted {
            return false;
        }
        let mut at = next(hole);
        if words.load(1 + at) == 0 {
            words.store(1 + hole, 0);
        } else {
            guard::open(words.word(0));
            for _ in 1..SLOTS {
                let slot = words.load(1 + at);
                if slot == 0 {
                    break;
                }
                // A place may move back to the hole if its home is not after the hole.
                if distance(home(slot), at) >= distance(hole, at) {
                    words.store(1 + hole, slot);
                    hole = at;
                }
                at = next(at);
            }
            words.store(1 + hole, 0);
            guard::close(words.word(0));
        }
        words.store(0, words.load(0) - 1);
        self.len.store(self.len.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        true
    }

    /// Every place, with its slot's part of the hash.
    pub(super) fn places(&self, arena: &Arena) -> Vec<Place> {
        let depth = self.depth.load(Ordering::Relaxed);
        let mut places = Vec::new();
        for at in 0..1u64 << depth {
            let words = arena.words(self.bucket(at));
            if at >> depth_of(words.load(0)) == 0 {
                let slots = (1..=SLOTS).map(|i| words.load(i)).filter(|&slot| slot != 0);
                places.extend(slots.map(Place::of));
            }
        }
        places
    }

    #[cold]
    fn split(&self, arena: &Arena, book: &mut Book, at: u64, bucket: Cell, rehash: Rehash<'_>) {
        let depth = self.depth.load(Ordering::Relaxed);
        let words = arena.words(bucket);
        let own = depth_of(words.load(0));
        if own == depth {
            self.double(depth);
        }
        let depth = self.depth.load(Ordering::Relaxed);
        let other = new_bucket(arena, book, own + 1);
        let new = arena.words(other);
        let goes = |slot: u64| {
            let hash = if own < DIRECTORY_BITS {
                slot
            } else {
                rehash(Place::of(slot), slot & ((1 << TAG) - 1))
            };
            hash >> own & 1 == 1
        };
        let slots: [u64; SLOTS] = std::array::from_fn(|i| words.load(1 + i));
        let mut moved = 0;
        for slot in slots.into_iter().filter(|&slot| slot != 0 && goes(slot)) {
            put(new, slot);
            moved += 1;
        }
        new.store(0, new.load(0) + moved);
        // From here on the new bucket answers for its half; only then does the old one lose it.
        let low = at & ((1 << own) - 1);
        for upper in (0..1u64 << (depth - own)).filter(|upper| upper & 1 == 1) {
            if let Some(entry) = self.entry(upper << own | low) {
                entry.store(other.0, Ordering::Release);
            }
        }
        guard::open(words.word(0));
        for i in 0..SLOTS {
            words.store(1 + i, 0);
        }
        for slot in slots.into_iter().filter(|&slot| slot != 0 && !goes(slot)) {
            put(words, slot);
        }
        words.store(0, words.load(0) - moved + (1 << 8));
        guard::close(words.word(0));
    }

    fn double(&self, depth: u32) {
        let low = (0..1u64 << depth).map(|at| AtomicU32::new(self.bucket(at).0));
        let _ = self.levels[depth as usize + 1].set(low.collect());
        self.depth.store(depth + 1, Ordering::Release);
    }
}

fn new_bucket(arena: &Arena, book: &mut Book, depth: u32) -> Cell {
    let bucket = book.take(arena, Kind::Bucket);
    let words = arena.words(bucket);
    if !guard::is_open(words.load(0)) {
        guard::open(words.word(0));
    }
    for i in 1..=SLOTS {
        words.store(i, 0);
    }
    words.store(0, words.load(0) & !0xffff_ffff | u64::from(depth) << 8);
    guard::close(words.word(0));
    bucket
}

/// Places in a bucket, and how many bits of the hash it stands for.
#[inline]
fn count_of(head: u64) -> u64 {
    head & 0xff
}

#[inline]
fn depth_of(head: u64) -> u32 {
    (head >> 8) as u32 & 0xff
}

#[inline]
fn same_tag(slot: u64, hash: u64) -> bool {
    (slot ^ hash) << (64 - TAG) == 0
}

#[inline]
fn next(slot: usize) -> usize {
    if slot + 1 == SLOTS { 0 } else { slot + 1 }
}

/// Steps from `from` forward to `to`.
#[inline]
fn distance(from: usize, to: usize) -> usize {
    if to >= from { to - from } else { to + SLOTS - from }
}

fn put(words: super::arena::Words<'_>, slot: u64) {
    let mut at = home(slot);
    while words.load(1 + at) != 0 {
        at = next(at);
    }
    words.store(1 + at, slot);
}

#[inline]
fn scan(
    arena: &Arena,
    bucket: Cell,
    hash: u64,
    mut is: impl FnMut(Place) -> bool,
) -> Option<Place> {
    let words = arena.words(bucket);
    let mut at = home(hash);
    for _ in 0..SLOTS {
        let slot = words.word(1 + at).load(Ordering::Acquire);
        if slot == 0 {
            return None;
        }
        if same_tag(slot, hash) && is(Place::of(slot)) {
            return Some(Place::of(slot));
        }
        at = next(at);
    }
    None
}
