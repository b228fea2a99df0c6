//! From slots to the classes of an answer.
//!
//! Invariants: what is added counts only if the epoch held; a worker whose blocks of a group lie in
//! several tiers is in the answer once, and only if each of these tiers holds nothing of the prompt's
//! path but a first stretch: then the longest of the first tiers is what they hold together.

use super::cut::Cuts;
use super::slot::{Page, Slots};
use super::walk::is_candidate;
use crate::block::{Group, WorkerId};
use crate::index::{Class, Match, Matches};

/// How many leading blocks a worker with several tiers has in the tier of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Layer {
    worker: WorkerId,
    group: Group,
    rank: usize,
    blocks: u32,
}

/// An answer in the making.
pub(super) struct Answer<'a> {
    pub(super) slots: &'a Slots,
    pub(super) candidates: Option<&'a [WorkerId]>,
    pub(super) classes: &'a mut Vec<Class>,
    pub(super) members: &'a mut Vec<WorkerId>,
    pub(super) layers: &'a mut Vec<Layer>,
}

impl Answer<'_> {
    /// How much there is.
    pub(super) fn mark(&self) -> [usize; 3] {
        [self.classes.len(), self.members.len(), self.layers.len()]
    }

    /// Takes back what was added since.
    pub(super) fn back_to(&mut self, [classes, members, layers]: [usize; 3]) {
        self.classes.truncate(classes);
        self.members.truncate(members);
        self.layers.truncate(layers);
    }

    /// The slots of all pages hold so many leading blocks.
    #[inline]
    pub(super) fn all(&mut self, pages: &[u64], blocks: u32) {
        for (page, &bits) in pages.iter().enumerate() {
            self.page(page as u32, bits, blocks);
        }
    }

    /// Slots of one page hold so many leading blocks.
    #[inline]
    pub(super) fn page(&mut self, page: u32, mut bits: u64, blocks: u32) {
        if bits == 0 || blocks == 0 {
            return;
        }
        let Some(page) = self.slots.page(page) else { return };
        for lane in &page.lanes {
            let mine = bits & lane.bits();
            if mine != 0 {
                bits ^= mine;
                let (group, rank) = lane.kind();
                self.class(page, mine, group, rank, blocks);
            }
        }
        if bits & page.others() != 0 {
            self.others(page, bits & page.others(), blocks);
        }
    }

    #[inline]
    fn class(&mut self, page: &Page, mut bits: u64, group: Group, rank: usize, blocks: u32) {
        let from = self.members.len();
        // Without a branch for a member, and written where they stay: there are many of them.
        self.members.resize(from + bits.count_ones() as usize, WorkerId(0));
        for id in &mut self.members[from..] {
            *id = page.worker(bits.trailing_zeros());
            bits &= bits.wrapping_sub(1);
        }
        if self.candidates.is_some() {
            let mut kept = from;
            for at in from..self.members.len() {
                let id = self.members[at];
                self.members[kept] = id;
                kept += usize::from(is_candidate(self.candidates, id));
            }
            self.members.truncate(kept);
        }
        let from = from as u32;
        let to = self.members.len() as u32;
        if from < to {
            let leading = [0, 1, 2, 3].map(|r| if r >= rank { blocks } else { 0 });
            let fastest = [0, 1, 2, 3].map(|r| if r == rank { blocks } else { 0 });
            self.classes.push(Class { group, leading, fastest, from, to });
        }
    }

    /// One by one: workers with several tiers, and kinds that the page has no lane for.
    #[cold]
    fn others(&mut self, page: &Page, mut bits: u64, blocks: u32) {
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            let Some(owner) = page.owner(bit) else { continue };
            let Some(rank) = owner.tier.rank() else { continue };
            if !is_candidate(self.candidates, owner.worker) {
                continue;
            }
            let (worker, group) = (owner.worker, owner.group);
            if owner.layered {
                self.layers.push(Layer { worker, group, rank, blocks });
            } else {
                let found = one(worker, group, [(rank, blocks)]);
                Matches::push_to(self.classes, self.members, found);
            }
        }
    }

    /// Whether the first `same` blocks of a run show that some tier of several holds more of the path
    /// than a first stretch: something behind a hole, or something of a run though it was not
    /// `alive` where that begins.
    #[inline]
    pub(super) fn has_uneven(&self, cuts: &Cuts, same: u32, alive: Option<&Vec<u64>>) -> bool {
        let layered = |page: u32| self.slots.page(page).map_or(0, Page::layered);
        let late = alive.is_some_and(|alive| {
            cuts.cuts.iter().any(|cut| {
                let late = cut.bits & !alive.get(cut.page as usize).copied().unwrap_or(0);
                late != 0 && late & layered(cut.page) != 0
            })
        });
        let behind = |part: &super::cut::Part| {
            part.lo < same && layered(part.slot / 64) >> (part.slot % 64) & 1 == 1
        };
        late || cuts.parts.iter().any(behind)
    }

    /// Puts the tiers of each worker together.
    #[inline]
    pub(super) fn join_layers(&mut self) {
        if self.layers.is_empty() {
            return;
        }
        self.layers.sort_unstable();
        for tiers in self.layers.chunk_by(|a, b| (a.worker, a.group) == (b.worker, b.group)) {
            let (worker, group) = (tiers[0].worker, tiers[0].group);
            let found = one(worker, group, tiers.iter().map(|t| (t.rank, t.blocks)));
            Matches::push_to(self.classes, self.members, found);
        }
    }
}

/// What a worker holds that has so many leading blocks in the tiers of these ranks.
fn one(worker: WorkerId, group: Group, tiers: impl IntoIterator<Item = (usize, u32)>) -> Match {
    let mut leading = [0; 4];
    for (rank, blocks) in tiers {
        for within in &mut leading[rank..] {
            *within = blocks.max(*within);
        }
    }
    let [a, b, c, d] = leading;
    Match { worker, group, leading, fastest: [a, b - a, c - b, d - c] }
}
