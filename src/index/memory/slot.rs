//! Slots: one bit position for each (worker, group, tier).
//!
//! Invariants: a slot that some run mentions stands for the same (worker, group, tier) until no run
//! mentions it any more; a retired slot answers to nobody from that store on, which is what makes
//! forgetting a worker one step; a slot is given to somebody else only after a new `epoch`, so a
//! reader that sees the epoch unchanged has attributed every bit to the right worker.

use std::fmt;
use std::sync::OnceLock;

use super::sync::{AtomicU64, Ordering, fence};
use crate::block::{Group, Tier, WorkerId};

const CHUNK: usize = 1024;
const CHUNKS: usize = 1024;

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

type Chunk = Box<[[AtomicU64; 2]]>;

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
    #[inline]
    fn words(&self, slot: u32) -> Option<&[AtomicU64; 2]> {
        let at = slot as usize;
        self.chunks.get(at / CHUNK)?.get()?.get(at % CHUNK)
    }

    /// The 64 slots of a page.
    #[inline]
    pub(super) fn page(&self, page: u32) -> Option<&[[AtomicU64; 2]; 64]> {
        let at = page as usize * 64;
        self.chunks.get(at / CHUNK)?.get()?.get(at % CHUNK..)?.first_chunk()
    }

    /// The owner of a slot, `None` once it is retired.
    #[inline]
    pub(super) fn owner(&self, slot: u32) -> Option<Owner> {
        Slots::owner_in(self.words(slot)?)
    }

    /// The owner in the words of a slot.
    #[inline]
    pub(super) fn owner_in([first, group]: &[AtomicU64; 2]) -> Option<Owner> {
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

    /// Whether every slot still meant the same since `epoch`.
    #[inline]
    pub(super) fn is(&self, epoch: u64) -> bool {
        fence(Ordering::Acquire);
        self.epoch.load(Ordering::Relaxed) == epoch
    }

    /// Writer: slots may now be given to others.
    pub(super) fn turn(&self) {
        self.epoch.store(self.epoch.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // Who sees a new owner also sees the new epoch.
        fence(Ordering::Release);
    }

    /// Writer: a slot gets its owner.
    pub(super) fn set(&self, slot: u32, owner: Owner) {
        let at = slot as usize;
        let Some(chunk) = self.chunks.get(at / CHUNK) else {
            panic!("more than {} (worker, group, tier) at a time", CHUNK * CHUNKS);
        };
        let chunk = chunk
            .get_or_init(|| (0..CHUNK).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect());
        let [first, group] = &chunk[at % CHUNK];
        let tier = owner.tier.rank().unwrap_or(4) as u64;
        let layered = if owner.layered { LAYERED } else { 0 };
        group.store(u64::from(owner.group.0), Ordering::Relaxed);
        let word = u64::from(owner.worker.0) | tier << 32 | ALIVE | layered;
        first.store(word, Ordering::Release);
    }

    /// Writer: a slot answers to nobody.
    pub(super) fn retire(&self, slot: u32) {
        if let Some([first, _]) = self.words(slot) {
            first.store(0, Ordering::Release);
        }
    }
}
