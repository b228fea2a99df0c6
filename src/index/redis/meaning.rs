//! What names mean.

use std::collections::{BTreeSet, HashMap};

use redis::Value;

use super::called::{Called, resolved};
use super::chain::{Key, Link, SEGMENT, Tag, shape_bytes};
use super::link::Fault;
use super::local::Member;
use super::place::{Meaning, Place, Spot};
use super::read::present;
use super::reply::{bytes, damaged, list, value};
use super::run::Run;
use super::{Batch, RedisIndex, command, next};
use crate::block::{Digest, Name, Shape};
use crate::error::Error;

/// The group that a name belongs to. All of a group lies in one slot of a cluster.
pub(super) fn group(name: Name, groups: u32) -> u32 {
    let mixed = name.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((mixed * u64::from(groups)) >> 32) as u32
}

/// Which of these names, by their places among them, each group has; without the groups that have none.
pub(super) fn by_group(names: impl Iterator<Item = Name>, groups: u32) -> Vec<(u32, Vec<usize>)> {
    let mut all: Vec<(u32, Vec<usize>)> = (0..groups).map(|group| (group, Vec::new())).collect();
    for (at, name) in names.enumerate() {
        all[group(name, groups) as usize].1.push(at);
    }
    all.retain(|(_, of)| !of.is_empty());
    all
}

/// Names as they lie in the store.
pub(super) fn name_bytes(name: Name) -> [u8; 8] {
    name.0.to_le_bytes()
}

/// Which of a name's meanings will do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fit {
    /// Any.
    Any,
    /// A block of this shape.
    Shape(Shape),
    /// A block of this shape and content.
    Content(Shape, Digest),
}

/// Runs by tag and key, as read together.
pub(super) type Runs = HashMap<(Tag, Key), Run>;

type Reply = Result<Value, Fault>;

impl RedisIndex {
    /// What each name means, as it lies in the store.
    pub(super) async fn meanings(
        &self,
        vocabulary: u32,
        names: &[Name],
    ) -> Result<Vec<Vec<Meaning>>, Error> {
        let groups = self.opened().await?.groups;
        let (mut batch, mut keys) = (Batch::reading(), Vec::new());
        for (group, of) in by_group(names.iter().copied(), groups) {
            let key = self.keys.meanings(vocabulary, group);
            let mut ask = command("HMGET", &[&key]);
            for &at in &of {
                ask.arg(&name_bytes(names[at])[..]);
            }
            batch.push(&key, ask);
            keys.push((key, of));
        }
        let (mut replies, mut meanings) = (self.send(batch).await?, vec![Vec::new(); names.len()]);
        for (key, of) in keys {
            let found = list(&key, value(&key, next(&mut replies))?)?;
            for (at, one) in of.into_iter().zip(found) {
                let found = Meaning::list(&bytes(&key, one)?);
                meanings[at] = found.ok_or_else(|| damaged(&key, "list of meanings"))?;
            }
        }
        Ok(meanings)
    }

    /// All blocks that each name means, in the order in which they were bound.
    pub(super) async fn places(
        &self,
        vocabulary: u32,
        names: &[Name],
    ) -> Result<Vec<Vec<Place>>, Error> {
        let meanings = self.meanings(vocabulary, names).await?;
        let whole = meanings.iter().flatten().filter(|meaning| meaning.is_run());
        let asked: BTreeSet<(Tag, Key)> = whole.map(Meaning::run).collect();
        let called = self.called(vocabulary, asked).await?;
        Ok(all_resolved(&meanings, names, &called))
    }

    /// The same, and the runs of these blocks as far as they are there.
    pub(super) async fn placed(
        &self,
        vocabulary: u32,
        names: &[Name],
    ) -> Result<(Vec<Vec<Place>>, Runs), Error> {
        let meanings = self.meanings(vocabulary, names).await?;
        let wanted: BTreeSet<(Tag, Key)> = meanings.iter().flatten().map(Meaning::run).collect();
        let (mut batch, mut keys) = (Batch::reading(), Vec::with_capacity(wanted.len()));
        for (tag, run) in &wanted {
            let key = self.keys.run(tag, run);
            batch.push(&key, command("HGETALL", &[&key]));
            let named = Called::ask(&mut batch, &self.keys, vocabulary, (tag, run));
            keys.push((key, named));
        }
        let (mut replies, mut runs) = (self.send(batch).await?, Runs::new());
        let mut called = HashMap::new();
        for (at, (key, named)) in wanted.into_iter().zip(keys) {
            let run = Run::read(&key, value(&key, next(&mut replies))?)?;
            let names = value(&named, next(&mut replies))?;
            if let Some(run) = run {
                called.insert(at, Called::read(&named, at, run.start as u8, names)?);
                runs.insert(at, run);
            }
        }
        Ok((all_resolved(&meanings, names, &called), runs))
    }

    /// What the blocks of these runs are called, as far as they are there.
    pub(super) async fn called(
        &self,
        vocabulary: u32,
        runs: BTreeSet<(Tag, Key)>,
    ) -> Result<HashMap<(Tag, Key), Called>, Error> {
        let (mut batch, mut keys) = (Batch::reading(), Vec::with_capacity(runs.len()));
        for (tag, run) in &runs {
            let key = self.keys.run(tag, run);
            batch.push(&key, command("HGET", &[&key, b"h"]));
            let named = Called::ask(&mut batch, &self.keys, vocabulary, (tag, run));
            keys.push((key, named));
        }
        let (mut replies, mut called) = (self.send(batch).await?, HashMap::new());
        for (at, (key, named)) in runs.into_iter().zip(keys) {
            let head = bytes(&key, value(&key, next(&mut replies))?)?;
            let names = value(&named, next(&mut replies))?;
            match head[..] {
                [] => {}
                [1, start, ..] if usize::from(start) < SEGMENT => {
                    called.insert(at, Called::read(&named, at, start, names)?);
                }
                _ => return Err(damaged(&key, "header of a run")),
            }
        }
        Ok(called)
    }

    /// The runs of these places, as far as they are there.
    pub(super) async fn runs(&self, of: impl Iterator<Item = (Tag, Key)>) -> Result<Runs, Error> {
        Ok(self.read_runs(of.collect(), Some).await?.0)
    }

    /// The same without those whose server is away, and whether there was none of these.
    pub(super) async fn present_runs(
        &self,
        wanted: Vec<(Tag, Key)>,
    ) -> Result<(Runs, bool), Error> {
        self.read_runs(wanted, present).await
    }

    async fn read_runs(
        &self,
        mut wanted: Vec<(Tag, Key)>,
        counts: fn(Reply) -> Option<Reply>,
    ) -> Result<(Runs, bool), Error> {
        wanted.sort_unstable();
        wanted.dedup();
        let keys: Vec<Vec<u8>> = wanted.iter().map(|(tag, run)| self.keys.run(tag, run)).collect();
        let mut batch = Batch::reading();
        keys.iter().for_each(|key| batch.push(key, command("HGETALL", &[key])));
        let (mut replies, mut runs) = (self.send(batch).await?, Runs::new());
        let mut is_whole = true;
        for (at, key) in wanted.into_iter().zip(&keys) {
            let Some(reply) = counts(next(&mut replies)) else {
                is_whole = false;
                continue;
            };
            if let Some(run) = Run::read(key, value(key, reply)?)? {
                runs.insert(at, run);
            }
        }
        Ok((runs, is_whole))
    }

    /// What a name means: of the meanings that fit the first one of which these slots hold a copy,
    /// else the first one bound. Also how many blocks the name means.
    pub(super) async fn meaning(
        &self,
        member: &Member,
        own: &[u32],
        name: Name,
        fit: Fit,
    ) -> Result<(Option<Spot>, usize), Error> {
        let (mut places, runs) = self.placed(member.vocabulary, &[name]).await?;
        let places = places.pop().unwrap_or_default();
        let above = match fit {
            Fit::Content(..) => {
                self.runs(runs.values().filter_map(|r| r.above).map(|p| (p.tag, p.run))).await?
            }
            _ => Runs::new(),
        };
        let opened = self.opened().await?;
        let (mut first, count) = (None, places.len());
        for place in places {
            let Some(run) = runs.get(&(place.tag, place.run)) else { continue };
            let Some(spot) = spot(run, place) else { continue };
            let fits = match fit {
                Fit::Any => true,
                Fit::Shape(shape) => run.shape == shape_bytes(shape),
                Fit::Content(shape, digest) if run.shape == shape_bytes(shape) => {
                    let parent = match (usize::from(place.offset) - run.start, run.above) {
                        (0, None) => {
                            let space = self.local.lock().texts.space(member.home.space);
                            Some(opened.chain.root(space.as_bytes(), shape))
                        }
                        (0, Some(at)) => {
                            above.get(&(at.tag, at.run)).and_then(|r| spot_link(r, at))
                        }
                        (_, _) => spot_link(run, Place { offset: place.offset - 1, ..place }),
                    };
                    parent.is_some_and(|parent| opened.chain.next(&parent, digest) == spot.link)
                }
                Fit::Content(..) => false,
            };
            if fits && run.held(usize::from(place.offset), own) {
                return Ok((Some(spot), count));
            }
            if fits && first.is_none() {
                first = Some(spot);
            }
        }
        Ok((first, count))
    }

    /// Like [`meaning`](Self::meaning) for a parent, which this client often has just stored.
    pub(super) async fn parent(
        &self,
        member: &Member,
        name: Name,
        shape: Shape,
        remembered: bool,
    ) -> Result<Option<Spot>, Error> {
        let last = {
            let local = self.local.lock();
            if remembered && let Some(spot) = local.names.get(member.vocabulary, name) {
                return Ok(Some(spot));
            }
            let last = local.last.get(&member.worker).copied();
            last.filter(|last| {
                remembered && (last.vocabulary, last.name) == (member.vocabulary, name)
            })
        };
        if let Some(last) = last.filter(|last| last.alone) {
            return Ok(Some(last.spot));
        }
        let own = self.own_slots(member);
        let meaning = self.meaning(member, &own, name, Fit::Shape(shape)).await?.0;
        Ok(meaning.or(last.map(|last| last.spot)))
    }
}

fn all_resolved(
    meanings: &[Vec<Meaning>],
    names: &[Name],
    called: &HashMap<(Tag, Key), Called>,
) -> Vec<Vec<Place>> {
    let all = meanings.iter().zip(names);
    all.map(|(meanings, &name)| resolved(meanings, name, |run| called.get(run))).collect()
}

/// A block of a run; `None` if the run has none at this place.
pub(super) fn spot(run: &Run, place: Place) -> Option<Spot> {
    spot_link(run, place).map(|link| Spot { place, link })
}

fn spot_link(run: &Run, place: Place) -> Option<Link> {
    let offset = usize::from(place.offset);
    let key = run.key(offset)?;
    let depth = run.segment as usize * SEGMENT + offset + 1;
    Some(Link { depth, tag: place.tag, rest: run.rest, key })
}
