//! Slots: one bit position for each (worker, group, tier).
//!
//! Invariants: a slot that some run mentions stands for the same (worker, group, tier) until no run
//! mentions it any more; a retired slot answers to nobody from that store on, which is what makes
//! forgetting a worker one step; a slot is given to somebody else only after a new `epoch`, so a
//! reader that sees an even epoch unchanged has attributed every bit to the right worker. A slot that
//! answers is in exactly one lane of its page or in its `others`, and there with its own kind.

use std::fmt;
use std::sync::OnceLock;

use super::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::block::{Group, Tier, WorkerId};

/// Pages that are made at once; the model checker makes each word anew for every interleaving.
const PAGES: usize = if cfg!(loom) { 1 } else { 16 };
const CHUNKS: usize = 1024;
/// So many slots there can be at a time.
pub(super) const MOST: usize = 64 * PAGES * CHUNKS;

const ALIVE: u64 = 1 << 40;
/// The worker's blocks of this group lie in several tiers, so that they only count together.
const LAYERED: u64 = 1 << 41;

/// Who a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) worker: WorkerId,
    pub(super) group: Group,
    pub(super) tier: Tier,
    pub(super) layered: bool,
}

/// Kinds of slots, (group, tier), that a page keeps apart; those of further kinds are looked at one
/// by one.
const LANES: usize = 3;

/// Slots of one page that hold blocks of the same group in the same tier, and that alone count for
/// their worker in that group.
#[derive(Debug)]
pub(super) struct Lane {
    kind: AtomicU64,
    bits: AtomicU64,
}

impl Lane {
    #[inline]
    pub(super) fn bits(&self) -> u64 {
        self.bits.load(Ordering::Relaxed)
    }

    /// The group, and the tier's rank.
    #[inline]
    pub(super) fn kind(&self) -> (Group, usize) {
        let kind = self.kind.load(Ordering::Relaxed);
        (Group(kind as u32), (kind >> 32) as usize & 3)
    }
}

/// 64 slots. One line says which of them answer and what for, four say for whom.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Page {
    pub(super) lanes: [Lane; LANES],
    /// Slots that answer and are in no lane.
    others: AtomicU64,
    /// Those of them that lie in several tiers.
    layered: AtomicU64,
    workers: [AtomicU32; 64],
    owners: [[AtomicU64; 2]; 64],
}

impl Page {
    fn new() -> Page {
        let zero = || AtomicU64::new(0);
        Page {
            lanes: std::array::from_fn(|_| Lane { kind: zero(), bits: zero() }),
            others: zero(),
            layered: zero(),
            workers: std::array::from_fn(|_| AtomicU32::new(0)),
            owners: std::array::from_fn(|_| [zero(), zero()]),
        }
    }

    /// The worker of a slot that was found in a lane.
    #[inline]
    pub(super) fn worker(&self, bit: u32) -> WorkerId {
        WorkerId(self.workers[bit as usize % 64].load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn others(&self) -> u64 {
        self.others.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn layered(&self) -> u64 {
        self.layered.load(Ordering::Relaxed)
    }

    /// The owner of a slot, `None` once it is retired.
    #[inline]
    pub(super) fn owner(&self, bit: u32) -> Option<Owner> {
        Slots::owner_in(&self.owners[bit as usize % 64])
    }

    /// Writer: a slot answers to nobody.
    fn quiet(&self, bit: u64) {
        let words = self.lanes.iter().map(|lane| &lane.bits).chain([&self.others, &self.layered]);
        for word in words {
            word.store(word.load(Ordering::Relaxed) & !bit, Ordering::Release);
        }
    }

    /// Writer: a slot answers again, as one of its kind.
    fn admit(&self, bit: u64, owner: Owner) {
        let add =
            |word: &AtomicU64| word.store(word.load(Ordering::Relaxed) | bit, Ordering::Release);
        let Some(rank) = owner.tier.rank() else { return };
        let kind = u64::from(owner.group.0) | (rank as u64) << 32;
        let is = |lane: &&Lane| lane.bits() != 0 && lane.kind.load(Ordering::Relaxed) == kind;
        let free = || self.lanes.iter().find(|lane| lane.bits() == 0);
        match self.lanes.iter().find(is).or_else(free) {
            Some(lane) if !owner.layered => {
                lane.kind.store(kind, Ordering::Relaxed);
                add(&lane.bits);
            }
            _ => {
                add(&self.others);
                if owner.layered {
                    add(&self.layered);
                }
            }
        }
    }
}

type Chunk = Box<[Page]>;

/// The owners of all slots.
pub(super) struct Slots {
    chunks: Box<[OnceLock<Chunk>]>,
    epoch: AtomicU64,
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(), epoch: AtomicU64::new(0) }
    }
}

impl Slots {
    /// Bytes of the pages where so many slots were given out.
    pub(super) fn bytes(slots: usize) -> usize {
        let chunks = slots.div_ceil(64 * PAGES);
        CHUNKS * size_of::<OnceLock<Chunk>>() + chunks * PAGES * size_of::<Page>()
    }

    /// The 64 slots of a page.
    #[inline]
    pub(super) fn page(&self, page: u32) -> Option<&Page> {
        let at = page as usize;
        self.chunks.get(at / PAGES)?.get()?.get(at % PAGES)
    }

    /// The owner of a slot, `None` once it is retired.
    #[inline]
    pub(super) fn owner(&self, slot: u32) -> Option<Owner> {
        self.page(slot / 64)?.owner(slot)
    }

    /// The owner in the words of a slot.
    #[inline]
    fn owner_in([first, group]: &[AtomicU64; 2]) -> Option<Owner> {
        let word = first.load(Ordering::Acquire);
        if word & ALIVE == 0 {
            return None;
        }
        let tier = match word >> 32 & 7 {
            0 => Tier::Gpu,
            1 => Tier::Cpu,
            2 => Tier::Disk,
            3 => Tier::Remote,
            _ => Tier::Unknown,
        };
        let group = Group(group.load(Ordering::Relaxed) as u32);
        let layered = word & LAYERED != 0;
        Some(Owner { worker: WorkerId(word as u32), group, tier, layered })
    }

    /// Before the first slot is looked at.
    #[inline]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether every slot still meant the same since `epoch`, and none was being changed then.
    #[inline]
    pub(super) fn is(&self, epoch: u64) -> bool {
        fence(Ordering::Acquire);
        epoch.is_multiple_of(2) && self.epoch.load(Ordering::Relaxed) == epoch
    }

    /// Writer: slots may now be given to others.
    pub(super) fn turn(&self) {
        self.advance(2);
    }

    /// Writer: the next epoch, or the change between two, which is odd.
    fn advance(&self, by: u64) {
        // Who begins in this epoch sees all that was done in those before.
        self.epoch.store(self.epoch.load(Ordering::Relaxed) + by, Ordering::Release);
        // Who sees anything of this epoch also sees that it began.
        fence(Ordering::Release);
    }

    /// Writer: a slot gets its owner, or its owner changes its kind. No epoch holds meanwhile, for
    /// readers may not see half of it: neither those who began before nor those who begin amid.
    pub(super) fn set(&self, slot: u32, owner: Owner) {
        let (at, bit) = (slot as usize / 64, slot as usize % 64);
        let Some(chunk) = self.chunks.get(at / PAGES) else {
            panic!("more than {} (worker, group, tier) at a time", 64 * PAGES * CHUNKS);
        };
        let chunk = chunk.get_or_init(|| (0..PAGES).map(|_| Page::new()).collect());
        let page = &chunk[at % PAGES];
        self.advance(1);
        page.quiet(1 << bit);
        let [first, group] = &page.owners[bit];
        let tier = owner.tier.rank().unwrap_or(4) as u64;
        let layered = if owner.layered { LAYERED } else { 0 };
        group.store(u64::from(owner.group.0), Ordering::Relaxed);
        let word = u64::from(owner.worker.0) | tier << 32 | ALIVE | layered;
        first.store(word, Ordering::Release);
        page.workers[bit].store(owner.worker.0, Ordering::Relaxed);
        page.admit(1 << bit, owner);
        self.advance(1);
    }

    /// Writer: a slot answers to nobody.
    pub(super) fn retire(&self, slot: u32) {
        if let Some(page) = self.page(slot / 64) {
            page.quiet(1 << (slot % 64));
            page.owners[slot as usize % 64][0].store(0, Ordering::Release);
        }
    }
}
