//! The common query: by content, nobody in several tiers, nothing unplaced, no spans.
//!
//! Invariants: nothing is waited for and nothing is written but a run's time of use; what was read
//! of a run counts only if its guard held; what was read of a path counts only if each run was still
//! the same run once its child had been read; what was said of a slot counts only if the epoch held.

use super::cut::{ALL, Cuts};
use super::run::{HEAD, OFFSET, Run, RunId, SEGMENT, UP, USED};
use super::slot::Slots;
use super::sync::guard;
use super::table::Place;
use super::write::Shared;
use crate::block::{Digest, Group, WorkerId};
use crate::index::{BlockSource, Class, Matches, Query};

/// Memory of a lookup, in the caller's `Matches`.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Slots that hold every block so far, and those that also hold the next stretch.
    alive: Vec<u64>,
    keep: Vec<u64>,
    /// The root of the last lookup: most that follow begin there, too.
    root: RunId,
    pub(super) cuts: Cuts,
    pub(super) detail: super::detail::Detail,
}

/// How an attempt to answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Something changed under way.
    Again,
    /// The question is not a common one.
    Detail,
}

/// A child as the way to it names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) parent: RunId,
    pub(super) at: u32,
    pub(super) head: u64,
}

impl Key {
    pub(super) fn is(self, run: Run<'_>) -> bool {
        run.get(UP) == self.parent.0 && run.get(OFFSET) == self.at && run.field(HEAD) == self.head
    }
}

/// What was read of a run, its holders left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) born: u32,
    /// How many of its first blocks are the prompt's.
    pub(super) same: u32,
}

impl Shared {
    pub(super) fn lookup(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        matches: &mut Matches,
    ) {
        let mut tries = 0u32;
        loop {
            matches.clear();
            let outcome = match self.is_common(query) {
                true => self.walk(query, blocks, matches),
                false => Outcome::Detail,
            };
            let outcome = match outcome {
                Outcome::Detail => self.detail(query, blocks, matches),
                other => other,
            };
            if outcome == Outcome::Done {
                return;
            }
            pause(&mut tries);
        }
    }

    fn is_common(&self, query: &Query<'_>) -> bool {
        use super::sync::Ordering::Acquire;
        !query.spans && self.layered.load(Acquire) == 0 && self.unplaced.load(Acquire) == 0
    }

    /// The root of a query's tree.
    pub(super) fn root_key(query: &Query<'_>) -> Key {
        let head = u64::from(query.space.0) << 32 | u64::from(query.shape.size.get());
        Key { parent: RunId::NONE, at: query.shape.lookahead, head }
    }

    pub(super) fn find_kid(&self, key: Key) -> Option<RunId> {
        let hash = self.kid_hash(key.parent, key.at, key.head);
        let is = |p: Place| key.is(self.run(RunId(p.run)));
        self.kids.find(&self.arena, hash, is).map(|p| RunId(p.run))
    }

    /// Reads a run with its holders, and how much of it the prompt has from block `start` on.
    /// `None` if it is no longer the child that it was found as.
    #[inline]
    pub(super) fn see(
        &self,
        run: Run<'_>,
        key: Key,
        start: usize,
        blocks: &mut impl BlockSource,
        cuts: &mut Cuts,
    ) -> Option<Seen> {
        let total = blocks.len();
        let mut tries = 0;
        loop {
            let seen = guard::enter(run.guard());
            if !key.is(run) {
                return None;
            }
            if guard::is_open(seen) {
                pause(&mut tries);
                continue;
            }
            run.ask();
            let len = run.len();
            let most = (len as usize).min(total - start);
            let mut same = 0;
            while same < most {
                let digests = blocks.digests(start + same, (most - same).min(SEGMENT));
                let mut n = digests.len().min(most - same);
                if same + n < most {
                    // The next comparison begins a segment, too.
                    n -= n % SEGMENT;
                }
                let more = run.compare(same as u32, len, &digests[..n]);
                same += more;
                if more < n || n == 0 {
                    break;
                }
            }
            cuts.load(run);
            let now = self.now();
            if guard::held(run.guard(), seen) {
                if run.get(USED) != now {
                    run.touch(now);
                }
                return Some(Seen { born: seen as u32, same: same as u32 });
            }
            pause(&mut tries);
        }
    }

    fn walk(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        matches: &mut Matches,
    ) -> Outcome {
        let total = blocks.len();
        if total == 0 {
            return Outcome::Done;
        }
        let epoch = self.slots.epoch();
        let Matches { classes, members, scratch, .. } = matches;
        let Scratch { alive, keep, cuts, root: last, .. } = scratch;
        let key = Self::root_key(query);
        if !key.is(self.run(*last)) {
            let Some(root) = self.find_kid(key) else { return Outcome::Done };
            *last = root;
        }
        let root = *last;
        let root_born = self.run(root).born();
        let Some(&Digest(mut head)) = blocks.digests(0, 1).first() else { return Outcome::Detail };
        let mut above = (root, root_born);
        let mut key = Key { parent: root, at: 0, head };
        let mut start = 0;
        alive.clear();
        let candidates = query.candidates;
        let mut emit = Emit { shared: self, candidates, classes, members, layered: false };
        let mut first = true;
        while let Some(id) = self.find_kid(key) {
            let run = self.run(id);
            let Some(seen) = self.see(run, key, start, blocks, cuts) else { return Outcome::Again };
            if self.run(above.0).born() != above.1 {
                return Outcome::Again;
            }
            if seen.same == 0 {
                break;
            }
            keep.clear();
            if first {
                first = false;
                for cut in &cuts.cuts {
                    let page = cut.page as usize;
                    if cut.end >= seen.same {
                        if keep.len() <= page {
                            keep.resize(page + 1, 0);
                        }
                        keep[page] |= cut.bits;
                    } else {
                        emit.all(cut.page, cut.bits, cut.end);
                    }
                }
            } else {
                keep.resize(alive.len(), 0);
                for cut in &cuts.cuts {
                    let page = cut.page as usize;
                    let Some(word) = alive.get_mut(page) else { continue };
                    let bits = *word & cut.bits;
                    if bits == 0 {
                        continue;
                    }
                    if cut.end >= seen.same {
                        keep[page] |= bits;
                    } else {
                        emit.all(cut.page, bits, start as u32 + cut.end);
                    }
                    *word &= !bits;
                }
                for (page, &bits) in alive.iter().enumerate() {
                    emit.all(page as u32, bits, start as u32);
                }
            }
            std::mem::swap(alive, keep);
            start += seen.same as usize;
            if alive.iter().all(|&bits| bits == 0) || start == total {
                break;
            }
            let Some(&Digest(next)) = blocks.digests(start, 1).first() else { break };
            head = next;
            key = Key { parent: id, at: seen.same, head };
            above = (id, seen.born);
        }
        for (page, &bits) in alive.iter().enumerate() {
            emit.all(page as u32, bits, start as u32);
        }
        if emit.layered {
            return Outcome::Detail;
        }
        if self.slots.is(epoch) { Outcome::Done } else { Outcome::Again }
    }
}

/// Where the slots of an answer go.
struct Emit<'a> {
    shared: &'a Shared,
    candidates: Option<&'a [WorkerId]>,
    classes: &'a mut Vec<Class>,
    members: &'a mut Vec<WorkerId>,
    layered: bool,
}

impl Emit<'_> {
    /// The slots of a page hold so many leading blocks: a class for each (group, tier) among them.
    #[inline]
    fn all(&mut self, page: u32, mut bits: u64, blocks: u32) {
        debug_assert_ne!(blocks, ALL);
        if bits == 0 || blocks == 0 {
            return;
        }
        let Some(slots) = self.shared.slots.page(page) else { return };
        while bits != 0 {
            let mut others = 0;
            let mut class: Option<(Group, usize)> = None;
            let from = self.members.len();
            self.members.reserve(64);
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                let slot = &slots[bits.trailing_zeros() as usize % 64];
                bits ^= bit;
                let Some(owner) = Slots::owner_in(slot) else { continue };
                let Some(rank) = owner.tier.rank() else { continue };
                if !is_candidate(self.candidates, owner.worker) {
                    continue;
                }
                self.layered |= owner.layered;
                if *class.get_or_insert((owner.group, rank)) == (owner.group, rank) {
                    self.members.push(owner.worker);
                } else {
                    others |= bit;
                }
            }
            if let Some((group, rank)) = class {
                let leading = [0, 1, 2, 3].map(|r| if r >= rank { blocks } else { 0 });
                let fastest = [0, 1, 2, 3].map(|r| if r == rank { blocks } else { 0 });
                let (from, to) = (from as u32, self.members.len() as u32);
                self.classes.push(Class { group, leading, fastest, from, to });
            }
            bits = others;
        }
    }
}

pub(super) fn is_candidate(candidates: Option<&[WorkerId]>, worker: WorkerId) -> bool {
    candidates.is_none_or(|ids| ids.binary_search(&worker).is_ok())
}

/// Lets the writer, which may have been put to sleep in the middle of a change, go on.
pub(super) fn pause(tries: &mut u32) {
    *tries += 1;
    if tries.is_multiple_of(64) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}
