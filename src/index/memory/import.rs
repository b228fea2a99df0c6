//! An index from its image.
//!
//! Invariants: the index is new and nobody else knows it yet; every run has its blocks, names and
//! holders before anything hangs below it, and names that mean several blocks are bound in their
//! old order, after all others. An image may say anything: what it refers to is looked at before it
//! is used, and nothing is sized by a number that it gives.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::cut::Cuts;
use super::hold::MOST_PARTS;
use super::names::VocId;
use super::orphan::Link;
use super::run::{EXTRAS, KIDS, LAST_KID, LONGEST, ROOT, Run, RunId, USED, VOCABULARY};
use super::slot::{self, Owner};
use super::sync::guard;
use super::table::{Place, Table};
use super::write::Pen;
use crate::block::{BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::index::image::Reader;
use crate::index::{Home, Image};

/// How many blocks ahead the buckets of names are asked for.
const AHEAD: usize = 8;
/// No index is larger than that while it is made: what the arena can address, nearly.
const LARGEST: usize = 63 << 28;

struct Vocabulary {
    space: SpaceId,
    key: VocabularyId,
    id: VocId,
    table: Arc<Table>,
}

struct Lane {
    space: SpaceId,
    voc: VocId,
    slot: u32,
}

/// What the image's numbers stand for.
#[derive(Default)]
struct Cast {
    vocabularies: Vec<Vocabulary>,
    workers: Vec<(WorkerId, Home)>,
    lanes: Vec<Lane>,
    /// With the space of each; number 1 is the first.
    runs: Vec<(RunId, SpaceId)>,
}

impl<'a> Pen<'a> {
    /// Fills a new index.
    pub(super) fn import(&mut self, image: &Image) -> Result<(), Error> {
        let mut from = Reader::new(image.as_bytes());
        let from = &mut from;
        let totals = [from.u64()?, from.u64()?, from.u64()?];
        let mut cast = Cast::default();
        self.read_vocabularies(from, &mut cast)?;
        self.read_workers(from, &mut cast)?;
        self.read_lanes(from, &mut cast)?;
        for _ in 0..from.count(16)? {
            self.read_tree(from, &mut cast)?;
        }
        for _ in 0..from.count(16)? {
            self.read_copies(from, &cast)?;
        }
        for _ in 0..from.count(16)? {
            self.read_names(from, &cast)?;
        }
        for _ in 0..from.count(17)? {
            self.read_unplaced(from, &cast)?;
        }
        // Left out where there are none, as before there was such a list.
        let losers = if from.is_empty() { 0 } else { from.count(4)? };
        for _ in 0..losers {
            let worker = WorkerId(from.u32()?);
            if !self.w.workers.contains_key(&worker) || self.shared.losers.has(worker) {
                return Err(from.wrong("a worker that lost copies is not there, or there twice"));
            }
            self.shared.losers.add(worker);
        }
        if !from.is_empty() {
            return Err(from.wrong("there is more after its end"));
        }
        for i in 0..self.w.runs.len() {
            self.check_needed(self.w.runs[i], from)?;
        }
        let found = [self.w.blocks, self.w.entries, self.w.unplaced];
        if totals != found {
            return Err(from.wrong(format_args!(
                "it announces blocks, entries and unplaced blocks {totals:?} and has {found:?}"
            )));
        }
        // An image may have names that nobody speaks.
        cast.vocabularies.iter().for_each(|v| self.leave_vocabulary(v.id));
        // What does not fit goes, as if it had been stored one after the other.
        self.make_room();
        Ok(())
    }

    fn read_vocabularies(&mut self, from: &mut Reader<'_>, cast: &mut Cast) -> Result<(), Error> {
        let mut seen = HashSet::new();
        for _ in 0..from.count(8)? {
            let (space, key) = (SpaceId(from.u32()?), VocabularyId(from.u32()?));
            if !seen.insert((space, key)) {
                return Err(from.wrong("a vocabulary is there twice"));
            }
            let (id, table) = self.vocabulary((space, key));
            cast.vocabularies.push(Vocabulary { space, key, id, table });
            self.check_size(from)?;
        }
        Ok(())
    }

    fn read_workers(&mut self, from: &mut Reader<'_>, cast: &mut Cast) -> Result<(), Error> {
        for _ in 0..from.count(8)? {
            let (worker, vocabulary) = (WorkerId(from.u32()?), from.u32()?);
            let Vocabulary { space, key, .. } = *cast.vocabulary(vocabulary, from)?;
            let home = Home { space, vocabulary: key };
            if self.w.workers.contains_key(&worker) {
                return Err(from.wrong("a worker is there twice"));
            }
            self.assign(worker, home)?;
            cast.workers.push((worker, home));
        }
        Ok(())
    }

    fn read_lanes(&mut self, from: &mut Reader<'_>, cast: &mut Cast) -> Result<(), Error> {
        let count = from.count(9)?;
        if count > slot::MOST {
            return Err(from.wrong(format_args!("{count} (worker, group, tier) are too many")));
        }
        let mut lanes = Vec::new();
        let mut counted: HashMap<(WorkerId, Group), u32> = HashMap::new();
        let mut seen = HashSet::new();
        for _ in 0..count {
            let (worker, group) = (from.u32()?, Group(from.u32()?));
            let tier = match from.u8()? as usize {
                rank @ 0..4 => Tier::KNOWN[rank],
                4 => Tier::Unknown,
                tier => return Err(from.wrong(format_args!("{tier} is no tier"))),
            };
            let Some(&(id, home)) = cast.workers.get(worker as usize) else {
                return Err(from.wrong(format_args!("there is no worker number {worker}")));
            };
            if !seen.insert((id, group, tier)) {
                return Err(from.wrong("a (worker, group, tier) is there twice"));
            }
            *counted.entry((id, group)).or_default() += u32::from(tier != Tier::Unknown);
            lanes.push((id, home, group, tier));
        }
        for (worker, home, group, tier) in lanes {
            let layered = tier != Tier::Unknown && counted[&(worker, group)] > 1;
            let owner = Owner { worker, group, tier, layered };
            let slot = self.w.slots.take(&self.shared.slots, owner);
            let Some(book) = self.w.workers.get_mut(&worker) else { continue };
            let before = book.lane_bytes();
            book.lanes.push((group, tier, slot));
            self.w.lane_bytes += book.lane_bytes() - before;
            cast.lanes.push(Lane { space: home.space, voc: book.voc, slot });
        }
        Ok(())
    }

    fn read_tree(&mut self, from: &mut Reader<'_>, cast: &mut Cast) -> Result<(), Error> {
        let space = SpaceId(from.u32()?);
        let Some(size) = BlockSize::new(from.u32()?) else {
            return Err(from.wrong("blocks of a tree have no tokens"));
        };
        let shape = Shape { size, lookahead: from.u32()? };
        let root = self.root(space, shape);
        if self.run(root).get(KIDS) > 0 {
            return Err(from.wrong("a tree is there twice"));
        }
        let first = cast.runs.len();
        for _ in 0..from.count(24)? {
            let run = self.read_run(root, space, first, from, cast)?;
            cast.runs.push((run, space));
            self.check_size(from)?;
        }
        Ok(())
    }

    fn read_run(
        &mut self,
        root: RunId,
        space: SpaceId,
        first: usize,
        from: &mut Reader<'_>,
        cast: &Cast,
    ) -> Result<RunId, Error> {
        let (number, at, len) = (from.u32()? as usize, from.u32()?, from.u32()?);
        let parent = match number {
            0 => root,
            n if n > first && n <= cast.runs.len() => cast.runs[n - 1].0,
            n => return Err(from.wrong(format_args!("run {n} does not come before in its tree"))),
        };
        if len == 0 || len > LONGEST {
            return Err(from.wrong(format_args!("a run of {len} blocks: 1 to {LONGEST} are right")));
        }
        let contents = from.words(len as usize)?;
        let head = contents.clone().next().unwrap_or(0);
        let above = self.run(parent);
        let fits = match number {
            0 => at == 0,
            _ => at > 0 && at <= above.len(),
        };
        if !fits {
            return Err(from.wrong(format_args!("a run cannot begin behind {at} blocks of that")));
        }
        let same = number > 0 && at < above.len() && above.content(at, above.len()) == head;
        if same || self.kid(parent, at, Digest(head)).is_some() {
            return Err(from.wrong("a block is there twice"));
        }
        let mut columns = Vec::new();
        for _ in 0..from.count(4 + len as usize * 8)? {
            let vocabulary = cast.vocabulary_of(from.u32()?, space, from)?;
            columns.push((vocabulary, from.words(len as usize)?));
        }
        self.read_holders(space, len, from, cast)?;

        let own = columns.first().map_or(VocId::default(), |c| c.0.id);
        let run = self.make(parent, at, head);
        run.set(ROOT, root.0);
        run.set(VOCABULARY, own.0);
        run.set(USED, self.shared.now());
        let Pen { w, .. } = self;
        match columns.first() {
            Some((_, names)) => {
                run.push(&mut w.book, contents.map(Digest).zip(names.clone()));
            }
            None => run.push(&mut w.book, contents.map(|content| (Digest(content), 0))),
        }
        w.cuts.save(run, &mut w.book);
        guard::close(run.guard());
        self.w.blocks += u64::from(len);
        self.publish(run, parent, at, head);
        self.adopt_kid(parent, run.id, at);
        for (i, (vocabulary, names)) in columns.into_iter().enumerate() {
            self.name_run(run.id, i == 0, vocabulary, names);
        }
        Ok(run.id)
    }

    /// Binds the names of a run in one vocabulary, which the run bears already if it is its own.
    fn name_run(
        &mut self,
        id: RunId,
        own: bool,
        vocabulary: &Vocabulary,
        names: impl Iterator<Item = u64> + Clone,
    ) {
        let Vocabulary { id: voc, table, .. } = vocabulary;
        let mut ahead = names.clone().skip(AHEAD);
        for (at, name) in (0..).zip(names) {
            if let Some(name) = ahead.next() {
                table.touch(&self.shared.arena, self.shared.hash(name));
            }
            match name {
                0 => {}
                name if own => self.link(*voc, table, Name(name), id, at),
                name => {
                    self.bind(*voc, table, id, at, Name(name));
                }
            }
        }
    }

    /// Reads the holders of a run into `cuts` and counts their entries.
    fn read_holders(
        &mut self,
        space: SpaceId,
        len: u32,
        from: &mut Reader<'_>,
        cast: &Cast,
    ) -> Result<(), Error> {
        self.w.cuts = Cuts::default();
        for _ in 0..from.count(8)? {
            let end = from.u32()?;
            for _ in 0..from.count(4)? {
                let slot = cast.lane(from.u32()?, space, from)?.slot;
                self.read_holder(slot, 0, end, len, from)?;
            }
        }
        for _ in 0..from.count(12)? {
            let slot = cast.lane(from.u32()?, space, from)?.slot;
            let (lo, hi) = (from.u32()?, from.u32()?);
            self.read_holder(slot, lo, hi, len, from)?;
        }
        let Cuts { cuts, parts } = &self.w.cuts;
        if parts.len() > MOST_PARTS || cuts.len() + parts.len() > 2 * MOST_PARTS {
            return Err(from.wrong("a run has more stretches of holders than an index can have"));
        }
        Ok(())
    }

    fn read_holder(
        &mut self,
        slot: u32,
        lo: u32,
        hi: u32,
        len: u32,
        from: &Reader<'_>,
    ) -> Result<(), Error> {
        if lo >= hi || hi > len {
            return Err(from.wrong(format_args!("nobody can hold {lo}..{hi} of {len} blocks")));
        }
        let Pen { w, .. } = self;
        if w.cuts.held(slot, lo, hi).next().is_some() {
            return Err(from.wrong("a holder of a block is there twice"));
        }
        w.cuts.hold(slot, lo, hi, len);
        w.entries += u64::from(hi - lo);
        w.slots.count(slot, i64::from(hi - lo));
        Ok(())
    }

    fn read_copies(&mut self, from: &mut Reader<'_>, cast: &Cast) -> Result<(), Error> {
        let (run, space) = cast.run(from.u32()?, from)?;
        let at = from.u32()?;
        let slot = cast.lane(from.u32()?, space, from)?.slot;
        let more = from.u32()?;
        let held =
            more > 0 && at < self.run(run).len() && { self.holds(Place { run: run.0, at }, slot) };
        if !held || self.w.extras.insert((run, at, slot), more).is_some() {
            return Err(from.wrong("copies are counted of a block that is not held, or twice"));
        }
        let run = self.run(run);
        run.set(EXTRAS, run.get(EXTRAS) + 1);
        Ok(())
    }

    fn read_names(&mut self, from: &mut Reader<'_>, cast: &Cast) -> Result<(), Error> {
        let number = from.u32()?;
        let Vocabulary { space, id, table, .. } = cast.vocabulary(number, from)?;
        let name = Name(from.u64()?);
        for _ in 0..from.count(8)? {
            let ((run, of), at) = (cast.run(from.u32()?, from)?, from.u32()?);
            if of != *space || at >= self.run(run).len() {
                return Err(from.wrong("a name means a block that is not there"));
            }
            let place = Place { run: run.0, at };
            if self.is_full(place, *id) && !self.is_named(place, *id, name) {
                return Err(from.wrong("a block has more names than it may"));
            }
            self.bind(*id, table, run, at, name);
        }
        self.check_size(from)
    }

    fn read_unplaced(&mut self, from: &mut Reader<'_>, cast: &Cast) -> Result<(), Error> {
        let number = from.u32()?;
        let voc = cast.vocabulary(number, from)?.id;
        let name = Name(from.u64()?);
        let link = match from.u8()? {
            0 => None,
            1 => {
                let Some(size) = BlockSize::new(from.u32()?) else {
                    return Err(from.wrong("an unplaced block has no tokens"));
                };
                let shape = Shape { size, lookahead: from.u32()? };
                let (parent, digest) = (Name(from.u64()?), Digest(from.u64()?));
                Some(Link { shape, parent, digest })
            }
            n => return Err(from.wrong(format_args!("{n} does not say whether a block is linked"))),
        };
        let holders = from.count(8)?;
        if holders == 0 {
            return Err(from.wrong("nobody holds an unplaced block"));
        }
        for _ in 0..holders {
            let (lane, copies) = (from.u32()?, from.u32()?);
            let Some(lane) = cast.lanes.get(lane as usize).filter(|l| l.voc == voc) else {
                return Err(from.wrong("an unplaced block's holder does not know its name"));
            };
            if copies == 0 {
                return Err(from.wrong("a holder has no copy"));
            }
            self.hold_orphan(voc, name, link, lane.slot, copies);
        }
        self.check_size(from)
    }

    /// A run ends where somebody holds a block or a child hangs, and is not empty.
    fn check_needed(&mut self, id: RunId, from: &Reader<'_>) -> Result<(), Error> {
        let run: Run<'_> = self.run(id);
        self.w.cuts.load(run);
        let needed = match run.is_root() {
            true => run.get(KIDS) > 0,
            false => self.w.cuts.extent(run.len()).max(run.get(LAST_KID)) == run.len(),
        };
        match needed {
            true => Ok(()),
            false => Err(from.wrong("there are blocks that nobody holds and nothing hangs below")),
        }
    }

    /// Keeps an image that is far more than the budget from taking all memory.
    fn check_size(&self, from: &Reader<'_>) -> Result<(), Error> {
        let budget = self.w.options.budget;
        let most = budget.saturating_add(budget / 4).saturating_add(1 << 20).min(LARGEST);
        if self.in_use() <= most {
            return Ok(());
        }
        let error = from.wrong(format_args!(
            "an index of this size needs more than the budget of {budget} bytes: give it more"
        ));
        Err(Error::new(ErrorKind::InvalidInput, error.to_string()))
    }
}

impl Cast {
    fn vocabulary(&self, number: u32, from: &Reader<'_>) -> Result<&Vocabulary, Error> {
        let found = self.vocabularies.get(number as usize);
        found.ok_or_else(|| from.wrong(format_args!("there is no vocabulary number {number}")))
    }

    fn vocabulary_of(
        &self,
        number: u32,
        space: SpaceId,
        from: &Reader<'_>,
    ) -> Result<&Vocabulary, Error> {
        let vocabulary = self.vocabulary(number, from)?;
        match vocabulary.space == space {
            true => Ok(vocabulary),
            false => Err(from.wrong("a block has a name of another space")),
        }
    }

    fn lane(&self, number: u32, space: SpaceId, from: &Reader<'_>) -> Result<&Lane, Error> {
        let found = self.lanes.get(number as usize).filter(|lane| lane.space == space);
        found.ok_or_else(|| {
            from.wrong(format_args!("there is no (worker, group, tier) number {number} there"))
        })
    }

    fn run(&self, number: u32, from: &Reader<'_>) -> Result<(RunId, SpaceId), Error> {
        let found = (number as usize).checked_sub(1).and_then(|n| self.runs.get(n)).copied();
        found.ok_or_else(|| from.wrong(format_args!("there is no run number {number}")))
    }
}
