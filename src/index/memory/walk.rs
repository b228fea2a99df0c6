//! The common query: by content, nothing unplaced in its space, no spans.
//!
//! Invariants: nothing is waited for and nothing is written but a run's time of use; what was read
//! of a run counts only if its guard held; what was read of a path counts only if each run was still
//! the same run once its child had been read; what was said of a slot counts only if the epoch held.

use super::answer::{Answer, Layer};
use super::cut::Cuts;
use super::run::{HEAD, LAST_KID, OFFSET, Run, RunId, SEGMENT, UP, USED};
use super::sync::{guard, spin_loop, yield_now};
use super::table::Place;
use super::write::Shared;
use crate::block::{Digest, WorkerId};
use crate::index::{BlockSource, Matches, Query};

/// Memory of a lookup, in the caller's `Matches`.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Slots that hold every block so far, and those that also hold the next stretch.
    alive: Vec<u64>,
    keep: Vec<u64>,
    /// The root of the last lookup: most that follow begin there, too.
    root: RunId,
    layers: Vec<Layer>,
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

/// A run that a walk has come through. Its record may be given away under the walk and serve as
/// another run, whose children are then under the same numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Above {
    pub(super) id: RunId,
    pub(super) born: u32,
}

/// What was read of a run, its holders left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) born: u32,
    /// How many of its first blocks are the prompt's.
    pub(super) same: u32,
    /// The greatest offset of a child.
    last_kid: u32,
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
        !query.spans && self.unplaced(query.space).load(Acquire) == 0
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

    /// Where a walk begins: the root of a query's tree, which may be `last`. `Err` says that it was not
    /// to be read just now.
    #[inline]
    pub(super) fn enter(&self, key: Key, last: RunId) -> Result<Option<Above>, Outcome> {
        let id = match key.is(self.run(last)) {
            true => last,
            false => match self.find_kid(key) {
                Some(id) => id,
                None => return Ok(None),
            },
        };
        self.begin(key, id).map(Some).ok_or(Outcome::Again)
    }

    /// A run as what it was found as, number and birth of one state: by now its record may serve as the
    /// root of another space.
    #[inline]
    pub(super) fn begin(&self, key: Key, id: RunId) -> Option<Above> {
        let run = self.run(id);
        let seen = guard::enter(run.guard());
        let is = key.is(run) && !guard::is_open(seen) && guard::held(run.guard(), seen);
        is.then_some(Above { id, born: seen as u32 })
    }

    /// Whether a run is still the one that a walk came through, asked once its child was read: then that
    /// was its child, and not one of a later run with its number.
    #[inline]
    pub(super) fn is_same(&self, above: Above) -> bool {
        self.run(above.id).born() == above.born
    }

    /// Reads a run with its holders, and how much of it the prompt has from block `start` on.
    /// `None` if it is no longer the child that it was found as.
    ///
    /// Reads that depend on each other are asked for as soon as it is known where they are, and
    /// `meanwhile` is called, with holders that may still turn out wrong, before the contents are
    /// needed.
    #[inline]
    pub(super) fn see(
        &self,
        run: Run<'_>,
        key: Key,
        start: usize,
        blocks: &mut impl BlockSource,
        cuts: &mut Cuts,
        mut meanwhile: impl FnMut(&Cuts),
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
            let (len, last_kid) = (run.len(), run.get(LAST_KID));
            let most = (len as usize).min(total - start);
            // Where most prompts leave the run.
            let leave = if last_kid > 0 { most.min(last_kid as usize) } else { most };
            run.ask(len, leave as u32);
            if leave == len as usize && leave % SEGMENT > 0 {
                run.ask_tail(len - 1);
            }
            let mut kid = None;
            if last_kid > 0 {
                // Only if it is there already: digests are computed no further than is needed.
                if let Some(&Digest(head)) = blocks.digests(start, 1).get(last_kid as usize) {
                    let hash = self.kid_hash(run.id, last_kid, head);
                    self.kids.touch(&self.arena, hash);
                    kid = Some(hash);
                }
            }
            cuts.load(run);
            meanwhile(cuts);
            if leave < len as usize {
                run.ask_segment(leave as u32, len);
            }
            if let Some(hash) = kid {
                self.run(RunId(self.kids.guess(&self.arena, hash))).ask_record();
            }
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
            let now = self.now();
            if guard::held(run.guard(), seen) {
                if run.get(USED) != now {
                    run.touch(now);
                }
                return Some(Seen { born: seen as u32, same: same as u32, last_kid });
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
        let outcome = self.follow(query, blocks, matches);
        match outcome {
            Outcome::Done if !self.slots.is(epoch) => Outcome::Again,
            outcome => outcome,
        }
    }

    fn follow(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        matches: &mut Matches,
    ) -> Outcome {
        let total = blocks.len();
        let Matches { classes, members, scratch, .. } = matches;
        let Scratch { alive, keep, cuts, root: last, layers, .. } = scratch;
        let key = Self::root_key(query);
        let mut above = match self.enter(key, *last) {
            Ok(Some(root)) => root,
            Ok(None) => return Outcome::Done,
            Err(outcome) => return outcome,
        };
        *last = above.id;
        let Some(&Digest(head)) = blocks.digests(0, 1).first() else { return Outcome::Detail };
        let mut key = Key { parent: above.id, at: 0, head };
        let mut start = 0;
        alive.clear();
        layers.clear();
        let slots = &self.slots;
        let candidates = query.candidates;
        let mut answer = Answer { slots, candidates, classes, members, layers };
        let mut first = true;
        while let Some(id) = self.find_kid(key) {
            let run = self.run(id);
            // Whoever holds nothing of this run is done, whatever the contents say.
            let mark = answer.mark();
            let meanwhile = |cuts: &Cuts| {
                answer.back_to(mark);
                keep.clone_from(alive);
                for cut in &cuts.cuts {
                    if let Some(word) = keep.get_mut(cut.page as usize) {
                        *word &= !cut.bits;
                    }
                }
                answer.all(keep, start as u32);
            };
            let Some(seen) = self.see(run, key, start, blocks, cuts, meanwhile) else {
                return Outcome::Again;
            };
            if !self.is_same(above) {
                return Outcome::Again;
            }
            if answer.has_uneven(cuts, seen.same, if first { None } else { Some(alive) }) {
                return Outcome::Detail;
            }
            let pages = if first { page_count(cuts) } else { alive.len() };
            keep.clear();
            keep.resize(pages, 0);
            for cut in &cuts.cuts {
                let page = cut.page as usize;
                let Some(&word) = (if first { Some(&u64::MAX) } else { alive.get(page) }) else {
                    continue;
                };
                let bits = word & cut.bits;
                if cut.end >= seen.same {
                    keep[page] |= bits;
                } else {
                    answer.page(cut.page, bits, start as u32 + cut.end);
                }
            }
            first = false;
            std::mem::swap(alive, keep);
            start += seen.same as usize;
            let goes_on = seen.same <= seen.last_kid && seen.same > 0 && start < total;
            if !goes_on || alive.iter().all(|&bits| bits == 0) {
                break;
            }
            let Some(&Digest(head)) = blocks.digests(start, 1).first() else { break };
            key = Key { parent: id, at: seen.same, head };
            above = Above { id, born: seen.born };
        }
        answer.all(alive, start as u32);
        answer.join_layers();
        Outcome::Done
    }
}

fn page_count(cuts: &Cuts) -> usize {
    cuts.cuts.iter().map(|cut| cut.page as usize + 1).max().unwrap_or(0)
}

pub(super) fn is_candidate(candidates: Option<&[WorkerId]>, worker: WorkerId) -> bool {
    candidates.is_none_or(|ids| ids.binary_search(&worker).is_ok())
}

/// Lets the writer, which may have been put to sleep in the middle of a change, go on.
pub(super) fn pause(tries: &mut u32) {
    *tries += 1;
    if tries.is_multiple_of(64) {
        yield_now();
    } else {
        spin_loop();
    }
}
