//! What an image says that workers hold, as changes that make another index hold the same.

use std::collections::HashMap;

use super::image::Reader;
use super::{Block, Change, Home, Image, Parent, Store};
use crate::block::{BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::Error;

/// How many blocks one change stores, and how many names it takes away.
const TOGETHER: usize = 256;

/// Further copies of one block that are made again, one by one. Engines have two; who announces ever more
/// must not make others repeat that without end.
const MOST_COPIES: u32 = 64;

/// Where a block is: its run's number, from 0, and its place there.
type Place = (u32, u32);

struct Run<'a> {
    shape: Shape,
    parent: Option<Place>,
    digests: &'a [[u8; 8]],
    /// By number of the vocabulary.
    columns: Vec<(u32, &'a [[u8; 8]])>,
}

#[derive(Clone, Copy)]
struct Lane {
    /// Number of the worker.
    worker: u32,
    group: Group,
    tier: Tier,
}

/// Blocks `from..to` of a run that a lane holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stretch {
    run: u32,
    from: u32,
    to: u32,
    lane: u32,
}

struct Unplaced {
    vocabulary: u32,
    name: Name,
    link: Option<(Shape, Name, Digest)>,
    /// Lane and copies.
    holders: Vec<(u32, u32)>,
}

/// An image, read once for all its workers.
pub struct Residencies<'a> {
    /// By number.
    vocabularies: Vec<Home>,
    /// With the number of the vocabulary.
    workers: Vec<(WorkerId, u32)>,
    lanes: Vec<Lane>,
    runs: Vec<Run<'a>>,
    /// By number of the worker, those of a run after those of its parent.
    held: Vec<Vec<Stretch>>,
    /// Run, block, lane, copies above one; by number of the worker.
    copies: Vec<Vec<(Place, u32, u32)>>,
    /// Names beside the columns, and whether each means this block alone.
    names: HashMap<(u32, Place), Vec<(Name, bool)>>,
    unplaced: Vec<Unplaced>,
}

impl std::fmt::Debug for Residencies<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Residencies of {} workers", self.workers.len())
    }
}

impl Image {
    /// Reads what every worker holds.
    ///
    /// # Errors
    ///
    /// The image is no image.
    pub fn residencies(&self) -> Result<Residencies<'_>, Error> {
        Residencies::read(&mut Reader::new(self.as_bytes()))
    }
}

fn tier_of(byte: u8) -> Tier {
    Tier::KNOWN.get(usize::from(byte)).copied().unwrap_or(Tier::Unknown)
}

impl<'a> Residencies<'a> {
    fn read(from: &mut Reader<'a>) -> Result<Residencies<'a>, Error> {
        // The totals.
        from.take(24)?;
        let mut all = Residencies {
            vocabularies: Vec::new(),
            workers: Vec::new(),
            lanes: Vec::new(),
            runs: Vec::new(),
            held: Vec::new(),
            copies: Vec::new(),
            names: HashMap::new(),
            unplaced: Vec::new(),
        };
        all.read_workers(from)?;
        all.read_runs(from)?;
        all.read_copies(from)?;
        all.read_names(from)?;
        all.read_unplaced(from)?;
        Ok(all)
    }

    /// Vocabularies, workers and lanes.
    fn read_workers(&mut self, from: &mut Reader<'a>) -> Result<(), Error> {
        for _ in 0..from.count(8)? {
            let (space, vocabulary) = (SpaceId(from.u32()?), VocabularyId(from.u32()?));
            self.vocabularies.push(Home { space, vocabulary });
        }
        for _ in 0..from.count(8)? {
            let (worker, vocabulary) = (WorkerId(from.u32()?), from.u32()?);
            if vocabulary as usize >= self.vocabularies.len() {
                return Err(from.wrong(format_args!("there is no vocabulary {vocabulary}")));
            }
            self.workers.push((worker, vocabulary));
        }
        self.held.resize_with(self.workers.len(), Vec::new);
        self.copies.resize_with(self.workers.len(), Vec::new);
        for _ in 0..from.count(9)? {
            let (worker, group) = (from.u32()?, Group(from.u32()?));
            if worker as usize >= self.workers.len() {
                return Err(from.wrong("a lane is nobody's"));
            }
            self.lanes.push(Lane { worker, group, tier: tier_of(from.u8()?) });
        }
        Ok(())
    }

    /// The trees, and who holds which stretches of their runs.
    fn read_runs(&mut self, from: &mut Reader<'a>) -> Result<(), Error> {
        for _ in 0..from.count(16)? {
            // The space is that of whoever holds something.
            from.take(4)?;
            let size = BlockSize::new(from.u32()?);
            let size = size.ok_or_else(|| from.wrong("blocks of a tree have no tokens"))?;
            let shape = Shape { size, lookahead: from.u32()? };
            for _ in 0..from.count(24)? {
                self.read_run(from, shape)?;
            }
        }
        self.held.iter_mut().for_each(|held| held.sort_unstable());
        Ok(())
    }

    /// Copies above one.
    fn read_copies(&mut self, from: &mut Reader<'a>) -> Result<(), Error> {
        for _ in 0..from.count(16)? {
            let place = (from.u32()?.wrapping_sub(1), from.u32()?);
            let (lane, more) = (from.u32()?, from.u32()?);
            let worker = self.lane(from, lane)?.worker;
            self.copies[worker as usize].push((place, lane, more));
        }
        Ok(())
    }

    /// Names beside the columns.
    fn read_names(&mut self, from: &mut Reader<'a>) -> Result<(), Error> {
        for _ in 0..from.count(16)? {
            let (vocabulary, name) = (from.u32()?, Name(from.u64()?));
            let n = from.count(8)?;
            for _ in 0..n {
                let place = (from.u32()?.wrapping_sub(1), from.u32()?);
                self.names.entry((vocabulary, place)).or_default().push((name, n == 1));
            }
        }
        Ok(())
    }

    fn read_unplaced(&mut self, from: &mut Reader<'a>) -> Result<(), Error> {
        for _ in 0..from.count(17)? {
            let (vocabulary, name) = (from.u32()?, Name(from.u64()?));
            let link = match from.u8()? {
                0 => None,
                _ => {
                    let size = BlockSize::new(from.u32()?);
                    let size = size.ok_or_else(|| from.wrong("a block has no tokens"))?;
                    let shape = Shape { size, lookahead: from.u32()? };
                    Some((shape, Name(from.u64()?), Digest(from.u64()?)))
                }
            };
            let mut holders = Vec::new();
            for _ in 0..from.count(8)? {
                let (lane, copies) = (from.u32()?, from.u32()?);
                self.lane(from, lane)?;
                holders.push((lane, copies));
            }
            self.unplaced.push(Unplaced { vocabulary, name, link, holders });
        }
        Ok(())
    }

    fn lane(&self, from: &Reader<'_>, lane: u32) -> Result<Lane, Error> {
        self.lanes.get(lane as usize).copied().ok_or_else(|| from.wrong("a holder is nobody"))
    }

    fn read_run(&mut self, from: &mut Reader<'a>, shape: Shape) -> Result<(), Error> {
        let number = self.runs.len() as u32;
        let (parent, at, len) = (from.u32()?, from.u32()?, from.u32()?);
        let parent = match parent {
            0 => None,
            n if n <= number
                && at > 0
                && at as usize <= self.runs[n as usize - 1].digests.len() =>
            {
                Some((n - 1, at - 1))
            }
            _ => return Err(from.wrong("a run hangs on nothing")),
        };
        let words = |from: &mut Reader<'a>| -> Result<&'a [[u8; 8]], Error> {
            Ok(from.take((len as usize).saturating_mul(8))?.as_chunks::<8>().0)
        };
        let digests = words(from)?;
        let mut columns = Vec::new();
        for _ in 0..from.count((len as usize).saturating_mul(8).saturating_add(4))? {
            columns.push((from.u32()?, words(from)?));
        }
        self.runs.push(Run { shape, parent, digests, columns });
        let hold = |all: &mut Residencies<'_>, from: &Reader<'_>, lane, lo, hi: u32| {
            let worker = all.lane(from, lane)?.worker;
            let stretch = Stretch { run: number, from: lo, to: hi.min(len), lane };
            all.held[worker as usize].push(stretch);
            Ok::<(), Error>(())
        };
        for _ in 0..from.count(8)? {
            let end = from.u32()?;
            for _ in 0..from.count(4)? {
                let lane = from.u32()?;
                hold(self, from, lane, 0, end)?;
            }
        }
        for _ in 0..from.count(12)? {
            let (lane, lo, hi) = (from.u32()?, from.u32()?, from.u32()?);
            hold(self, from, lane, lo, hi)?;
        }
        Ok(())
    }

    /// Hands `each` the changes, in order, after which a worker that held nothing in another index holds there
    /// what this one holds here: the same blocks as often under the same names. Returns how many copies and
    /// names are left out because they cannot be said so: of blocks without a name of their own, and more than
    /// 65 copies of a block. Nothing for a worker that is not there.
    ///
    /// For a block that is held without the ones before it, these are stored first, and taken away again
    /// in the end.
    pub fn changes(&self, worker: WorkerId, each: &mut dyn FnMut(Change<'_>)) -> u64 {
        let Some(number) = self.workers.iter().position(|(id, _)| *id == worker) else { return 0 };
        let mut telling = Telling {
            all: self,
            vocabulary: self.workers[number].1,
            stored: HashMap::new(),
            scaffold: Vec::new(),
            left_out: 0,
            each,
        };
        for &stretch in &self.held[number] {
            telling.stretch(stretch);
        }
        for &(place, lane, more) in &self.copies[number] {
            telling.copies(place, lane, more);
        }
        telling.unplaced(number as u32);
        telling.take_down();
        telling.left_out
    }
}

/// The changes of one worker under way.
struct Telling<'t> {
    all: &'t Residencies<'t>,
    vocabulary: u32,
    /// Stretches of runs that are stored by now, ascending and apart.
    stored: HashMap<u32, Vec<(u32, u32)>>,
    /// What is stored for the sake of what comes after it: names by lane.
    scaffold: Vec<(u32, Name)>,
    left_out: u64,
    each: &'t mut dyn FnMut(Change<'_>),
}

impl Telling<'_> {
    /// What the worker's engine calls a block.
    fn name(&self, (run, at): Place) -> Option<Name> {
        let of_run = self.all.runs.get(run as usize)?;
        let column = of_run.columns.iter().find(|(of, _)| *of == self.vocabulary);
        let word = column.and_then(|(_, words)| words.get(at as usize));
        let name = word.map(|&word| Name(u64::from_le_bytes(word))).filter(|name| name.0 != 0);
        name.or_else(|| Some(self.further(&(run, at)).first()?.0))
    }

    fn further(&self, place: &Place) -> &[(Name, bool)] {
        self.all.names.get(&(self.vocabulary, *place)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The block before a place.
    fn above(&self, (run, at): Place) -> Option<Place> {
        match at {
            0 => self.all.runs[run as usize].parent,
            at => Some((run, at - 1)),
        }
    }

    fn is_stored(&self, (run, at): Place) -> bool {
        let stretches = self.stored.get(&run).map(Vec::as_slice).unwrap_or_default();
        let after = stretches.partition_point(|&(from, _)| from <= at);
        after > 0 && at < stretches[after - 1].1
    }

    /// Parts of a run's beginning that are not stored.
    fn gaps(&self, run: u32, to: u32) -> Vec<(u32, u32)> {
        let (mut gaps, mut at) = (Vec::new(), 0);
        for &(from, end) in self.stored.get(&run).into_iter().flatten() {
            if from >= to {
                break;
            }
            if at < from {
                gaps.push((at, from));
            }
            at = at.max(end);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    fn note(&mut self, run: u32, from: u32, to: u32) {
        let stretches = self.stored.entry(run).or_default();
        let at = stretches.partition_point(|&(_, end)| end < from);
        let (mut from, mut to, mut end) = (from, to, at);
        while let Some(&(a, b)) = stretches.get(end).filter(|&&(a, _)| a <= to) {
            (from, to, end) = (from.min(a), to.max(b), end + 1);
        }
        stretches.splice(at..end, [(from, to)]);
    }

    fn stretch(&mut self, Stretch { run, from, to, lane }: Stretch) {
        if from >= to {
            return;
        }
        if let Some(above) = self.above((run, from))
            && !self.is_stored(above)
        {
            self.build_up(above, lane);
        }
        self.store(run, from, to, lane, false);
        for at in from..to {
            let first = self.name((run, at));
            for (name, is_alone) in self.further(&(run, at)).to_vec() {
                match is_alone {
                    _ if Some(name) == first => {}
                    true => self.call(run, at, lane, name),
                    false => self.left_out += 1,
                }
            }
        }
    }

    /// Stores what is missing of the way to a place.
    fn build_up(&mut self, place: Place, lane: u32) {
        let mut way = vec![(place.0, place.1 + 1)];
        while let Some((run, at)) = self.all.runs[way[way.len() - 1].0 as usize].parent {
            way.push((run, at + 1));
        }
        for (run, to) in way.into_iter().rev() {
            for (from, to) in self.gaps(run, to) {
                self.store(run, from, to, lane, true);
            }
        }
    }

    /// Stores blocks of a run, as far as they have names.
    fn store(&mut self, run: u32, from: u32, to: u32, lane: u32, is_scaffold: bool) {
        let Lane { group, tier, .. } = self.all.lanes[lane as usize];
        let of_run = &self.all.runs[run as usize];
        let mut at = from;
        let mut blocks = Vec::with_capacity(TOGETHER.min((to - from) as usize));
        while at < to {
            let parent = match self.above((run, at)) {
                None => Parent::Root,
                Some(above) => match self.name(above) {
                    Some(name) => Parent::Block(name),
                    None => break,
                },
            };
            blocks.clear();
            let end = to.min(at + TOGETHER as u32);
            for at in at..end {
                let Some(name) = self.name((run, at)) else { break };
                let digest = Digest(u64::from_le_bytes(of_run.digests[at as usize]));
                blocks.push(Block { name, digest: Some(digest) });
            }
            if blocks.is_empty() {
                break;
            }
            let shape = of_run.shape;
            (self.each)(Change::Store(Store { shape, group, tier, parent, blocks: &blocks }));
            if is_scaffold {
                self.scaffold.extend(blocks.iter().map(|block| (lane, block.name)));
            }
            let done = at + blocks.len() as u32;
            self.note(run, at, done);
            at = done;
        }
        if !is_scaffold {
            self.left_out += u64::from(to - at);
        }
    }

    /// Stores one block again, under one of its names.
    fn again(&mut self, place: Place, lane: u32, name: Name) -> bool {
        let parent = match self.above(place) {
            None => Parent::Root,
            Some(above) => match self.name(above) {
                Some(name) => Parent::Block(name),
                None => return false,
            },
        };
        let Lane { group, tier, .. } = self.all.lanes[lane as usize];
        let run = &self.all.runs[place.0 as usize];
        let digest = Digest(u64::from_le_bytes(run.digests[place.1 as usize]));
        let blocks = &[Block { name, digest: Some(digest) }];
        let shape = run.shape;
        (self.each)(Change::Store(Store { shape, group, tier, parent, blocks }));
        true
    }

    /// Gives a block that is stored a further name.
    fn call(&mut self, run: u32, at: u32, lane: u32, name: Name) {
        if self.again((run, at), lane, name) {
            let Lane { group, tier, .. } = self.all.lanes[lane as usize];
            (self.each)(Change::Remove { group, tier, names: &[name] });
        }
    }

    fn copies(&mut self, (run, at): Place, lane: u32, more: u32) {
        let is_there =
            self.all.runs.get(run as usize).is_some_and(|r| (at as usize) < r.digests.len());
        let name = self.name((run, at)).filter(|_| is_there && self.is_stored((run, at)));
        let Some(name) = name else {
            self.left_out += u64::from(more);
            return;
        };
        for _ in 0..more.min(MOST_COPIES) {
            self.again((run, at), lane, name);
        }
        self.left_out += u64::from(more.saturating_sub(MOST_COPIES));
    }

    fn unplaced(&mut self, worker: u32) {
        let all = self.all;
        for Unplaced { vocabulary, name, link, holders } in &all.unplaced {
            if *vocabulary != self.vocabulary {
                continue;
            }
            for &(lane, copies) in holders {
                let Lane { worker: of, group, tier } = all.lanes[lane as usize];
                if of != worker {
                    continue;
                }
                let (shape, parent, digest) = match *link {
                    Some((shape, parent, digest)) => (shape, Parent::Block(parent), Some(digest)),
                    None => (Shape::plain(BlockSize::DEFAULT), Parent::Unknown, None),
                };
                let blocks = &[Block { name: *name, digest }];
                for _ in 0..copies.min(MOST_COPIES + 1) {
                    (self.each)(Change::Store(Store { shape, group, tier, parent, blocks }));
                }
                self.left_out += u64::from(copies.saturating_sub(MOST_COPIES + 1));
            }
        }
    }

    /// Takes away what was stored only for the sake of what comes after it.
    fn take_down(&mut self) {
        let scaffold = std::mem::take(&mut self.scaffold);
        for same in scaffold.chunk_by(|a, b| a.0 == b.0) {
            let Lane { group, tier, .. } = self.all.lanes[same[0].0 as usize];
            for part in same.chunks(TOGETHER) {
                let names: Vec<Name> = part.iter().map(|(_, name)| *name).collect();
                (self.each)(Change::Remove { group, tier, names: &names });
            }
        }
    }
}
