//! The state as an image.
//!
//! Invariants: nothing is dead while it is written; a run comes after its parent; a name is in
//! exactly one place of the image, beside the run's contents or in the list of further names. The
//! writer's lock is held from the first byte to the last, so nothing here may take long per block.

use std::collections::HashMap;

use super::cut::Cuts;
use super::names::{Names, VocId};
use super::run::{EXTRAS, HEAD, KIDS, MORE, OFFSET, POSITION, Run, RunId, SEGMENT, VOCABULARY};
use super::table::Place;
use super::write::Pen;
use crate::block::{Group, Name, Tier, WorkerId};
use crate::index::Image;

/// Who the image talks about, by their numbers in it.
struct Cast {
    vocabularies: HashMap<VocId, u32>,
    /// By slot.
    lanes: Vec<u32>,
    /// By position in the writer's list.
    runs: Vec<u32>,
    /// Whose blocks alone it is about.
    only: Option<Share>,
}

/// What of the index one worker has.
struct Share {
    slots: Vec<u32>,
    /// By position in the writer's list: runs that it holds something of, and those that lead there.
    runs: Vec<bool>,
}

/// Run and block, by numbers of the image.
type Places = Vec<(u32, u32)>;

impl Pen<'_> {
    /// All of it; or what one worker has, with whatever else its runs have.
    pub(super) fn export(&mut self, only: Option<WorkerId>) -> Image {
        while self.sweep(usize::MAX) {}
        let only = only.map(|worker| self.share_of(worker));
        let needed = |run: &Run<'_>| only.as_ref().is_none_or(|share| share.has(*run));
        let runs = self.w.runs.iter().map(|&id| self.run(id)).filter(needed);
        let mut out =
            Vec::with_capacity(runs.fold(4096, |n, run| n + run.len() as usize * 17 + 64));
        let names = self.shared.names.read();
        for total in [self.w.blocks, self.w.entries, self.w.unplaced] {
            word(&mut out, total);
        }
        let mut cast = Cast {
            vocabularies: HashMap::new(),
            lanes: Vec::new(),
            runs: vec![0; self.w.runs.len()],
            only,
        };
        self.vocabularies(&names, &mut cast, &mut out);
        self.workers(&mut cast, &mut out);
        self.trees(&names, &mut cast, &mut out);
        self.copies(&cast, &mut out);
        self.further_names(&names, &cast, &mut out);
        unplaced(&names, &cast, &mut out);
        self.losers(&mut out);
        Image::from_bytes(out)
    }

    fn share_of(&mut self, worker: WorkerId) -> Share {
        let slots = self.w.slots_of(worker);
        let mut runs = vec![false; self.w.runs.len()];
        for at in 0..runs.len() {
            let mut run = self.run(self.w.runs[at]);
            if !self.is_held_by(run, &slots) {
                continue;
            }
            while !std::mem::replace(&mut runs[run.get(POSITION) as usize], true) && !run.is_root()
            {
                run = self.run(run.parent());
            }
        }
        Share { slots, runs }
    }

    fn vocabularies(&self, names: &Names, cast: &mut Cast, out: &mut Vec<u8>) {
        let mut all: Vec<_> = names.vocabularies.iter().map(|(&id, v)| (id, v.key)).collect();
        all.sort_unstable();
        number(out, all.len() as u32);
        for (n, (id, (space, vocabulary))) in all.into_iter().enumerate() {
            cast.vocabularies.insert(id, n as u32);
            number(out, space.0);
            number(out, vocabulary.0);
        }
    }

    fn workers(&self, cast: &mut Cast, out: &mut Vec<u8>) {
        let mut all: Vec<_> = self.w.workers.iter().map(|(&id, worker)| (id, worker)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        number(out, all.len() as u32);
        let mut lanes: Vec<(u32, Group, Tier, u32)> = Vec::new();
        for (n, (WorkerId(id), worker)) in all.into_iter().enumerate() {
            number(out, id);
            number(out, cast.vocabularies.get(&worker.voc).copied().unwrap_or(u32::MAX));
            let mut mine = worker.lanes.clone();
            mine.sort_unstable();
            lanes.extend(mine.into_iter().map(|(g, t, slot)| (n as u32, g, t, slot)));
        }
        number(out, lanes.len() as u32);
        for (n, (worker, group, tier, slot)) in lanes.into_iter().enumerate() {
            number(out, worker);
            number(out, group.0);
            out.push(tier.rank().unwrap_or(Tier::KNOWN.len()) as u8);
            let slot = slot as usize;
            if cast.lanes.len() <= slot {
                cast.lanes.resize(slot + 1, u32::MAX);
            }
            cast.lanes[slot] = n as u32;
        }
    }

    /// Workers that lost copies, if there are any.
    fn losers(&self, out: &mut Vec<u8>) {
        let mut all = Vec::new();
        self.shared.losers.read(&mut all);
        if all.is_empty() {
            return;
        }
        number(out, all.len() as u32);
        all.into_iter().for_each(|WorkerId(id)| number(out, id));
    }

    fn trees(&mut self, names: &Names, cast: &mut Cast, out: &mut Vec<u8>) {
        let arena = &self.shared.arena;
        let all = self.w.runs.iter().map(|&id| Run::at(arena, id));
        let mut roots: Vec<Run<'_>> = all.filter(|run| run.is_root() && cast.needs(*run)).collect();
        roots.sort_unstable_by_key(|root| (root.field(HEAD), root.get(OFFSET)));
        number(out, roots.len() as u32);
        let (mut last, mut below) = (0u32, Vec::new());
        for root in roots {
            let head = root.field(HEAD);
            number(out, (head >> 32) as u32);
            number(out, head as u32);
            number(out, root.get(OFFSET));
            let count = out.len();
            number(out, 0);
            let before = last;
            below.extend(self.kids(root).filter(|kid| cast.needs(*kid)));
            while let Some(run) = below.pop() {
                last += 1;
                cast.runs[run.get(POSITION) as usize] = last;
                self.run_of(run, names, cast, out);
                if run.get(KIDS) > 0 {
                    below.extend(self.kids(run).filter(|kid| cast.needs(*kid)));
                }
            }
            out[count..count + 4].copy_from_slice(&(last - before).to_le_bytes());
        }
    }

    fn run_of(&mut self, run: Run<'_>, names: &Names, cast: &Cast, out: &mut Vec<u8>) {
        let len = run.len();
        let parent = self.run(run.parent());
        number(out, if parent.is_root() { 0 } else { cast.runs[parent.get(POSITION) as usize] });
        number(out, run.get(OFFSET));
        number(out, len);
        let segments = len.div_ceil(SEGMENT as u32);
        for segment in 0..segments {
            let words = run.segment(segment * SEGMENT as u32, len);
            (0..within(segment, len)).for_each(|i| word(out, words.load(i)));
        }
        let columns = out.len();
        number(out, 0);
        let mut count = 0u32;
        if let Some(&own) = cast.vocabularies.get(&VocId(run.get(VOCABULARY))) {
            let at = out.len();
            number(out, own);
            let mut any = 0;
            for segment in 0..segments {
                let words = run.segment(segment * SEGMENT as u32, len);
                for i in SEGMENT..SEGMENT + within(segment, len) {
                    let name = self.alone(names, VocId(run.get(VOCABULARY)), words.load(i));
                    any |= name;
                    word(out, name);
                }
            }
            count += u32::from(any != 0);
            if any == 0 {
                out.truncate(at);
            }
        }
        if run.get(MORE) > 0 {
            count += self.further_columns(run, names, cast, out);
        }
        out[columns..columns + 4].copy_from_slice(&count.to_le_bytes());
        self.w.cuts.load(run);
        holders(&self.w.cuts, len, cast, out);
    }

    /// The names of vocabularies other than the run's own; how many there are.
    fn further_columns(&self, run: Run<'_>, names: &Names, cast: &Cast, out: &mut Vec<u8>) -> u32 {
        let len = run.len();
        let mut columns: Vec<(u32, Vec<u64>)> = Vec::new();
        for segment in 0..len.div_ceil(SEGMENT as u32) {
            for &(voc, cell) in names.more.get(&(run.id, segment)).into_iter().flatten() {
                let Some(&vocabulary) = cast.vocabularies.get(&voc) else { continue };
                let i = columns.binary_search_by_key(&vocabulary, |c| c.0).unwrap_or_else(|i| {
                    columns.insert(i, (vocabulary, vec![0; len as usize]));
                    i
                });
                let words = run.arena.words(cell);
                for at in 0..within(segment, len) {
                    let name = self.alone(names, voc, words.load(at));
                    columns[i].1[segment as usize * SEGMENT + at] = name;
                }
            }
        }
        columns.retain(|(_, column)| column.iter().any(|&name| name != 0));
        for (vocabulary, column) in &columns {
            number(out, *vocabulary);
            column.iter().for_each(|&name| word(out, name));
        }
        columns.len() as u32
    }

    /// A name if it means one block; 0 if it means several, in an order that has to be kept.
    fn alone(&self, names: &Names, voc: VocId, name: u64) -> u64 {
        match self.w.dups > 0 && names.dups.contains_key(&(voc, Name(name))) {
            true => 0,
            false => name,
        }
    }

    /// Copies above one.
    fn copies(&self, cast: &Cast, out: &mut Vec<u8>) {
        let number_of = |id: RunId| cast.runs[self.run(id).get(POSITION) as usize];
        let mut all: Vec<[u32; 4]> = (self.w.extras.iter())
            .map(|(&(id, at, slot), &more)| {
                debug_assert!(self.run(id).get(EXTRAS) > 0);
                [number_of(id), at, cast.lanes[slot as usize], more]
            })
            .filter(|copies| copies[0] > 0)
            .collect();
        all.sort_unstable();
        number(out, all.len() as u32);
        all.into_iter().flatten().for_each(|n| number(out, n));
    }

    /// Second names of a block, the name 0, and names that mean several blocks.
    fn further_names(&self, names: &Names, cast: &Cast, out: &mut Vec<u8>) {
        let number_of = |run: RunId| cast.runs[self.run(run).get(POSITION) as usize];
        let mut all: Vec<(u32, Name, Places)> = Vec::new();
        for (&(id, at), also) in names.also.iter() {
            for &(voc, name) in also {
                let Some(&vocabulary) = cast.vocabularies.get(&voc) else { continue };
                let run = number_of(id);
                if run > 0 && !names.dups.contains_key(&(voc, name)) {
                    all.push((vocabulary, name, vec![(run, at)]));
                }
            }
        }
        for (&(voc, name), later) in names.dups.iter() {
            let Some(v) = names.vocabularies.get(&voc) else { continue };
            let is = |p: Place| {
                let run = self.run(RunId(p.run));
                names.is(run, p.at, run.len(), voc, name)
            };
            let first = v.table.find(&self.shared.arena, self.shared.hash(name.0), is);
            let places = first.iter().chain(later).map(|p| (number_of(RunId(p.run)), p.at));
            let places: Places = places.filter(|(run, _)| *run > 0).collect();
            if !places.is_empty() {
                all.push((cast.vocabularies[&voc], name, places));
            }
        }
        all.sort_unstable();
        number(out, all.len() as u32);
        for (vocabulary, name, places) in all {
            number(out, vocabulary);
            word(out, name.0);
            number(out, places.len() as u32);
            for (run, at) in places {
                number(out, run);
                number(out, at);
            }
        }
    }
}

impl Share {
    fn has(&self, run: Run<'_>) -> bool {
        self.runs[run.get(POSITION) as usize]
    }
}

impl Cast {
    fn needs(&self, run: Run<'_>) -> bool {
        self.only.as_ref().is_none_or(|share| share.has(run))
    }

    fn needs_of(&self, holders: &[(u32, u32)]) -> bool {
        let has = |share: &Share| holders.iter().any(|(slot, _)| share.slots.contains(slot));
        self.only.as_ref().is_none_or(has)
    }
}

/// How many of a segment's places a run of `len` blocks uses.
fn within(segment: u32, len: u32) -> usize {
    (len as usize - segment as usize * SEGMENT).min(SEGMENT)
}

/// Who holds how many leading blocks, and what lies behind holes.
fn holders(cuts: &Cuts, len: u32, cast: &Cast, out: &mut Vec<u8>) {
    number(out, cuts.cuts.len() as u32);
    for cut in &cuts.cuts {
        number(out, cut.end.min(len));
        number(out, cut.bits.count_ones());
        let mut bits = cut.bits;
        while bits != 0 {
            number(out, cast.lanes[(cut.page * 64 + bits.trailing_zeros()) as usize]);
            bits &= bits - 1;
        }
    }
    number(out, cuts.parts.len() as u32);
    for part in &cuts.parts {
        number(out, cast.lanes[part.slot as usize]);
        number(out, part.lo);
        number(out, part.hi);
    }
}

fn unplaced(names: &Names, cast: &Cast, out: &mut Vec<u8>) {
    let mut all: Vec<_> = (names.vocabularies.iter())
        .flat_map(|(id, v)| {
            v.orphans.blocks.iter().map(|(&name, block)| (cast.vocabularies[id], name, block))
        })
        .filter(|(.., block)| cast.needs_of(&block.holders))
        .collect();
    all.sort_unstable_by_key(|(vocabulary, name, _)| (*vocabulary, *name));
    number(out, all.len() as u32);
    for (vocabulary, name, block) in all {
        number(out, vocabulary);
        word(out, name.0);
        out.push(u8::from(block.link.is_some()));
        if let Some(link) = block.link {
            number(out, link.shape.size.get());
            number(out, link.shape.lookahead);
            word(out, link.parent.0);
            word(out, link.digest.0);
        }
        number(out, block.holders.len() as u32);
        for &(slot, copies) in &block.holders {
            number(out, cast.lanes[slot as usize]);
            number(out, copies);
        }
    }
}

#[inline]
fn number(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_le_bytes());
}

#[inline]
fn word(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}
