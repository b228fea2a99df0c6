//! Every other query: spans, unplaced blocks, prompts known by names only, and workers whose tiers
//! have holes on the prompt's path.
//!
//! What each slot holds of the prompt is collected in pieces, then put together per (worker, group).
//! Invariant: as in `walk`; and locks are held for one block at a time, so that no batch waits long
//! and none is waited for.

use super::cut::Cuts;
use super::names::VocId;
use super::run::{LEN, OFFSET, RunId, UP};
use super::sync::{Ordering, guard};
use super::table::Place;
use super::walk::{Above, Key, Outcome, Scratch, is_candidate, pause};
use super::write::Shared;
use crate::block::{Group, Name, VocabularyId, WorkerId};
use crate::index::{BlockSource, Match, Matches, Query, Span};

/// Blocks `start..end` of the prompt, held by a worker in a group and in the tier of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    worker: WorkerId,
    group: Group,
    start: u32,
    end: u32,
    rank: usize,
}

/// Memory of these lookups.
#[derive(Debug, Default)]
pub(super) struct Detail {
    pieces: Vec<Piece>,
    vocabularies: Vec<(VocabularyId, VocId)>,
    /// Places below the blocks that the names of the prompt's last block mean, and of this one.
    above: Vec<(RunId, u32)>,
    below: Vec<(RunId, u32)>,
    places: Vec<Place>,
}

struct Collect<'a> {
    shared: &'a Shared,
    candidates: Option<&'a [WorkerId]>,
    pieces: &'a mut Vec<Piece>,
    /// One past the last block of any piece.
    end: u32,
}

impl Collect<'_> {
    fn add(&mut self, slot: u32, start: u32, end: u32) {
        let Some(owner) = self.shared.slots.owner(slot) else { return };
        let Some(rank) = owner.tier.rank() else { return };
        if start < end && is_candidate(self.candidates, owner.worker) {
            let (worker, group) = (owner.worker, owner.group);
            self.pieces.push(Piece { worker, group, start, end, rank });
            self.end = self.end.max(end);
        }
    }

    /// The first `same` blocks of a run that begins at block `start`.
    fn run(&mut self, cuts: &Cuts, start: u32, same: u32) {
        for cut in &cuts.cuts {
            for slot in slots(cut.page, cut.bits) {
                self.add(slot, start, start + cut.end.min(same));
            }
        }
        for part in &cuts.parts {
            self.add(part.slot, start + part.lo.min(same), start + part.hi.min(same));
        }
    }
}

fn slots(page: u32, mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let slot = (bits != 0).then(|| page * 64 + bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(slot)
    })
}

impl Shared {
    pub(super) fn detail(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        matches: &mut Matches,
    ) -> Outcome {
        matches.clear();
        if blocks.is_empty() {
            return Outcome::Done;
        }
        let mut scratch = std::mem::take(&mut matches.scratch);
        let outcome = self.collect(query, blocks, &mut scratch, matches);
        matches.scratch = scratch;
        outcome
    }

    fn collect(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        scratch: &mut Scratch,
        matches: &mut Matches,
    ) -> Outcome {
        let total = blocks.len();
        let epoch = self.slots.epoch();
        let Scratch { cuts, detail, .. } = scratch;
        let Detail { pieces, vocabularies, above, below, places } = detail;
        pieces.clear();
        let mut into = Collect { shared: self, candidates: query.candidates, pieces, end: 0 };
        let unplaced = self.unplaced(query.space).load(Ordering::Acquire) > 0;
        let by_content = !blocks.digests(0, 1).is_empty();
        if by_content && !self.by_content(query, blocks, cuts, unplaced, &mut into) {
            return Outcome::Again;
        }
        if unplaced || !by_content {
            self.vocabularies(query, vocabularies);
            above.clear();
            if !by_content {
                above.extend(self.find_kid(Self::root_key(query)).map(|root| (root, 0)));
            }
            for at in 0..total {
                below.clear();
                for &(vocabulary, voc) in vocabularies.iter() {
                    let names = [blocks.name(vocabulary, at), blocks.second_name(vocabulary, at)];
                    for name in names.into_iter().flatten() {
                        if !by_content && !above.is_empty() {
                            self.places_of(voc, name, places);
                            for &place in places.iter() {
                                self.by_name(place, (voc, name), at, above, below, cuts, &mut into);
                            }
                        }
                        if unplaced && let Some(v) = self.names.read().vocabularies.get(&voc) {
                            for slot in v.orphans.holders(name) {
                                into.add(slot, at as u32, at as u32 + 1);
                            }
                        }
                    }
                }
                std::mem::swap(above, below);
                let goes_on =
                    into.end > at as u32 || (query.spans && (unplaced || !above.is_empty()));
                if !goes_on {
                    break;
                }
            }
        }
        summarize(pieces, matches, query.spans);
        if self.slots.is(epoch) { Outcome::Done } else { Outcome::Again }
    }

    /// Collects what lies on the prompt's path; `false` if that changed under way.
    fn by_content(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        cuts: &mut Cuts,
        unplaced: bool,
        into: &mut Collect<'_>,
    ) -> bool {
        let total = blocks.len();
        let mut above = match self.enter(Self::root_key(query), RunId::NONE) {
            Ok(Some(root)) => root,
            Ok(None) => return true,
            Err(_) => return false,
        };
        let (mut start, mut at) = (0, 0);
        while start < total
            && let Some(head) = blocks.digests(start, 1).first().copied()
        {
            let key = Key { parent: above.id, at, head: head.0 };
            let Some(id) = self.find_kid(key) else { break };
            let Some(seen) = self.see(self.run(id), key, start, blocks, cuts, |_| ()) else {
                return false;
            };
            if !self.is_same(above) {
                return false;
            }
            if seen.same == 0 {
                break;
            }
            into.run(cuts, start as u32, seen.same);
            start += seen.same as usize;
            (above, at) = (Above { id, born: seen.born }, seen.same);
            // Nobody holds the last block: nobody's leading stretch goes on.
            if !query.spans && !unplaced && into.end < start as u32 {
                break;
            }
        }
        true
    }

    /// The vocabularies of the workers that may answer.
    fn vocabularies(&self, query: &Query<'_>, into: &mut Vec<(VocabularyId, VocId)>) {
        into.clear();
        let homes = self.homes.read();
        let asked = homes.iter().filter(|(id, (home, _))| {
            home.space == query.space && is_candidate(query.candidates, **id)
        });
        into.extend(asked.map(|(_, (home, voc))| (home.vocabulary, *voc)));
        into.sort_unstable();
        into.dedup();
    }

    /// The blocks that a name means, as far as a reader can tell.
    fn places_of(&self, voc: VocId, name: Name, into: &mut Vec<Place>) {
        into.clear();
        let names = self.names.read();
        let Some(v) = names.vocabularies.get(&voc) else { return };
        let is = |p: Place| {
            let run = self.run(RunId(p.run));
            let len = run.len();
            p.at < len && names.is(run, p.at, len, voc, name)
        };
        into.extend(v.table.find(&self.arena, self.hash(name.0), is));
        into.extend(names.dups.get(&(voc, name)).into_iter().flatten());
    }

    /// Collects the holders of a block found by its name, if it lies below the block before.
    #[allow(clippy::too_many_arguments)]
    fn by_name(
        &self,
        place: Place,
        name: (VocId, Name),
        at: usize,
        above: &[(RunId, u32)],
        below: &mut Vec<(RunId, u32)>,
        cuts: &mut Cuts,
        into: &mut Collect<'_>,
    ) {
        let run = self.run(RunId(place.run));
        let mut tries = 0;
        let parent = loop {
            let seen = guard::enter(run.guard());
            let parent = match place.at {
                0 => (RunId(run.get(UP)), run.get(OFFSET)),
                at => (run.id, at),
            };
            let len = run.get(LEN);
            let is = place.at < len && self.names.read().is(run, place.at, len, name.0, name.1);
            cuts.load(run);
            if !guard::is_open(seen) && guard::held(run.guard(), seen) {
                break is.then_some(parent);
            }
            if run.get(OFFSET) == u32::MAX {
                break None;
            }
            pause(&mut tries);
        };
        if parent.is_none_or(|parent| !above.contains(&parent)) {
            return;
        }
        below.push((run.id, place.at + 1));
        let homes = self.homes.read();
        let mut held = |slot: u32| {
            let owner = self.slots.owner(slot);
            let speaks = owner.and_then(|o| homes.get(&o.worker)).is_some_and(|h| h.1 == name.0);
            if speaks {
                into.add(slot, at as u32, at as u32 + 1);
            }
        };
        for cut in cuts.cuts.iter().filter(|cut| place.at < cut.end) {
            slots(cut.page, cut.bits).for_each(&mut held);
        }
        let parts = cuts.parts.iter().filter(|p| p.lo <= place.at && place.at < p.hi);
        parts.for_each(|p| held(p.slot));
    }
}

/// Puts the pieces of each (worker, group) together.
fn summarize(pieces: &mut [Piece], matches: &mut Matches, spans: bool) {
    pieces.sort_unstable();
    for mine in pieces.chunk_by(|a, b| (a.worker, a.group) == (b.worker, b.group)) {
        let (worker, group) = (mine[0].worker, mine[0].group);
        let leading = [0, 1, 2, 3].map(|rank| {
            let within = mine.iter().filter(|p| p.rank <= rank);
            within.fold(0, |end, p| if p.start <= end { end.max(p.end) } else { end })
        });
        // Blocks of the leading stretch that lie in a tier up to this rank.
        let within = [0, 1, 2, 3].map(|rank| {
            let pieces = mine.iter().filter(|p| p.rank <= rank);
            let (_, blocks) = pieces.fold((0, 0), |(end, blocks), p| {
                let stop = p.end.min(leading[3]);
                (end.max(stop), blocks + stop.saturating_sub(end.max(p.start)))
            });
            blocks
        });
        let fastest = [0, 1, 2, 3]
            .map(|rank| if rank == 0 { within[0] } else { within[rank] - within[rank - 1] });
        if leading[3] > 0 {
            matches.push(Match { worker, group, leading, fastest });
        }
        if spans {
            let mut open: Option<Span> = None;
            for p in mine.iter().filter(|p| p.rank == 0) {
                match &mut open {
                    Some(span) if p.start <= span.end => span.end = span.end.max(p.end),
                    _ => {
                        matches.spans.extend(open);
                        let (start, end) = (p.start, p.end);
                        open = Some(Span { worker, group, start, end });
                    }
                }
            }
            matches.spans.extend(open);
        }
    }
}
