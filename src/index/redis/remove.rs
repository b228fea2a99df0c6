//! Copies that go, and what goes with the last one.

use std::collections::BTreeMap;

use redis::Value;

use super::bind::Unbound;
use super::chain::{Key, SEGMENT, Tag};
use super::local::Member;
use super::place::Place;
use super::reply::{bytes, damaged, int, list, value};
use super::store::{Stamp, Stamps};
use super::{Batch, RedisIndex, command, next, script};
use crate::block::Name;
use crate::error::Error;
use crate::index::Applied;

/// What a script took from a run.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// For each block asked for, whether there was a copy.
    pub(super) hits: Vec<bool>,
    /// Whether the slot holds nothing of the run any more.
    pub(super) gone: bool,
    lost: i64,
    blocks: i64,
    /// What blocks that went were called.
    unbound: Vec<Unbound>,
    /// A block of another segment below which a run went.
    above: Option<Place>,
}

impl Taken {
    /// From the answer of a script about a run of this segment.
    pub(super) fn read(key: &[u8], tag: &Tag, reply: Value) -> Result<Taken, Error> {
        let bad = || damaged(key, "answer");
        let parts = list(key, reply)?;
        let [lost, blocks, cut, above, hits]: [Value; 5] = parts.try_into().map_err(|_| bad())?;
        let (cut, above, hits) = (bytes(key, cut)?, bytes(key, above)?, bytes(key, hits)?);
        let (mut unbound, mut cut) = (Vec::new(), &cut[..]);
        while !cut.is_empty() {
            let (one, rest) = unbound_of(tag, cut).ok_or_else(bad)?;
            unbound.push(one);
            cut = rest;
        }
        Ok(Taken {
            hits: hits.iter().filter(|&&hit| hit != b'g').map(|&hit| hit == b'1').collect(),
            gone: hits.last() == Some(&b'g'),
            lost: int(key, lost)?,
            blocks: int(key, blocks)?,
            unbound,
            above: match above.is_empty() {
                true => None,
                false => Some(Place::read(&above).ok_or_else(bad)?),
            },
        })
    }
}

/// The first of a list: run, offset, vocabulary, name, how many blocks of the run are called so still, and their offsets.
fn unbound_of<'a>(tag: &Tag, cut: &'a [u8]) -> Option<(Unbound, &'a [u8])> {
    let (run, rest) = cut.split_first_chunk()?;
    let (&[offset, vocabulary @ ..], rest) = rest.split_first_chunk::<5>()?;
    let (name, rest) = rest.split_first_chunk()?;
    let (&count, rest) = rest.split_first()?;
    let (others, rest) = rest.split_at_checked(count.into())?;
    let one = Unbound {
        vocabulary: u32::from_le_bytes(vocabulary),
        name: Name(u64::from_le_bytes(*name)),
        place: Place { tag: *tag, run: *run, offset },
        others: others.to_vec(),
    };
    let fits = |offset: &u8| usize::from(*offset) < SEGMENT;
    (fits(&offset) && others.iter().all(fits)).then_some((one, rest))
}

impl RedisIndex {
    /// One copy less of each block.
    pub(super) async fn take(
        &self,
        member: &Member,
        slot: u32,
        names: &[Name],
        stamps: Stamps,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let mut known: Vec<Option<Place>> = {
            let mut local = self.local.lock();
            local.took_from(member.worker);
            let place = |&name: &Name| local.names.get(member.vocabulary, name).map(|s| s.place);
            names.iter().map(place).collect()
        };
        let strange: Vec<usize> = (0..names.len()).filter(|&n| known[n].is_none()).collect();
        let asked: Vec<Name> = strange.iter().map(|&n| names[n]).collect();
        if !asked.is_empty() {
            let found = self.places(member.vocabulary, &asked).await?;
            for (n, places) in strange.into_iter().zip(found) {
                known[n] = Some(places).filter(|places| places.len() == 1).map(|p| p[0]);
            }
        }
        let mut runs: BTreeMap<(Tag, Key), Vec<usize>> = BTreeMap::new();
        for (n, place) in known.iter().enumerate() {
            if let Some(place) = place {
                runs.entry((place.tag, place.run)).or_default().push(n);
            }
        }
        let mut batch = Batch::new();
        let mut keys = Vec::with_capacity(runs.len());
        for (&(tag, run), of) in &runs {
            let offsets: Vec<u8> = of.iter().filter_map(|&n| Some(known[n]?.offset)).collect();
            keys.push(self.take_script(&mut batch, slot, (&tag, &run), &offsets, stamps.at(0)));
        }
        let (about, opened) = (self.keys.space(member.space), self.opened().await?);
        batch.push(&about, command("HGET", &[&about, b"b"]));
        let mut replies = self.send(batch).await?;
        let (mut missed, mut all) = (Vec::new(), Vec::new());
        for ((&(tag, run), of), key) in runs.iter().zip(&keys) {
            let taken = Taken::read(key, &tag, value(key, next(&mut replies))?)?;
            if taken.hits.len() != of.len() {
                return Err(damaged(key, "answer"));
            }
            applied.removed += taken.hits.iter().filter(|&&hit| hit).count() as u64;
            missed.extend(of.iter().zip(&taken.hits).filter(|(_, hit)| !**hit).map(|(&n, _)| n));
            all.push(((tag, run), taken));
        }
        self.same_store(&opened, &about, value(&about, next(&mut replies))?)?;
        self.taken(member.space, slot, all).await?;
        missed.extend((0..names.len()).filter(|&n| known[n].is_none()));
        missed.sort_unstable();
        for n in missed {
            let stamp = stamps.at(n + 1);
            match self.take_one(member, slot, names[n], stamp, known[n]).await? {
                true => applied.removed += 1,
                false => applied.unknown_removals += 1,
            }
        }
        Ok(())
    }

    /// One copy less of the first of a name's blocks of which the slot holds one; `tried` holds none.
    async fn take_one(
        &self,
        member: &Member,
        slot: u32,
        name: Name,
        stamp: Stamp,
        tried: Option<Place>,
    ) -> Result<bool, Error> {
        let places = self.places(member.vocabulary, &[name]).await?.pop().unwrap_or_default();
        if places.len() != 1 || tried != Some(places[0]) {
            self.local.lock().names.forget(member.vocabulary, name);
        }
        for place in places.iter().filter(|&&place| Some(place) != tried) {
            let offsets = [place.offset];
            if self.take_from(member.space, slot, place, &offsets, stamp).await? == [true] {
                return Ok(true);
            }
        }
        self.take_unplaced(member, slot, name, stamp).await
    }

    /// One copy less of blocks of one run; for each whether there was one.
    pub(super) async fn take_from(
        &self,
        space: u32,
        slot: u32,
        place: &Place,
        offsets: &[u8],
        stamp: Stamp,
    ) -> Result<Vec<bool>, Error> {
        let mut batch = Batch::new();
        let run = (&place.tag, &place.run);
        let key = self.take_script(&mut batch, slot, run, offsets, stamp);
        let reply = value(&key, next(&mut self.send(batch).await?))?;
        let mut taken = Taken::read(&key, &place.tag, reply)?;
        let hits = std::mem::take(&mut taken.hits);
        self.taken(space, slot, vec![((place.tag, place.run), taken)]).await?;
        Ok(hits)
    }

    fn take_script(
        &self,
        batch: &mut Batch,
        slot: u32,
        (tag, run): (&Tag, &Key),
        offsets: &[u8],
        stamp: Stamp,
    ) -> Vec<u8> {
        let key = self.keys.run(tag, run);
        let args: [&[u8]; 7] = [
            &self.keys.runs(tag),
            &self.keys.named(tag),
            tag,
            run,
            &slot.to_le_bytes(),
            &stamp,
            offsets,
        ];
        batch.script(&script::TAKE, &[&key], &args);
        key
    }

    /// Follows up what was taken from runs: sizes, the list of what the slot holds, names, and runs
    /// of earlier segments below which nothing hangs any more.
    pub(super) async fn taken(
        &self,
        space: u32,
        slot: u32,
        mut all: Vec<((Tag, Key), Taken)>,
    ) -> Result<(), Error> {
        let held = self.keys.held(space, slot);
        let mut batch = Batch::new();
        for ((tag, run), taken) in all.iter().filter(|(_, taken)| taken.gone) {
            let _ = taken;
            batch.push(&held, command("SREM", &[&held, &[&tag[..], run].concat()]));
        }
        // A chain of many segments may go from its end on; each round takes one off each chain.
        loop {
            let (mut unbound, mut kids) = (Vec::new(), Vec::new());
            for (_, taken) in all.drain(..) {
                self.local.lock().changed(space, -taken.blocks, -taken.lost);
                unbound.extend(taken.unbound);
                kids.extend(taken.above);
            }
            let first = batch.len();
            kids.iter().for_each(|above| self.kid(&mut batch, above));
            let mut replies = self.send(batch).await?;
            for _ in 0..first {
                value(&held, next(&mut replies))?;
            }
            for above in kids {
                let key = self.keys.run(&above.tag, &above.run);
                let taken = Taken::read(&key, &above.tag, value(&key, next(&mut replies))?)?;
                all.push(((above.tag, above.run), taken));
            }
            self.unbind(unbound).await?;
            if all.is_empty() {
                return Ok(());
            }
            batch = Batch::new();
        }
    }

    /// A run of another segment hangs below this block no more.
    fn kid(&self, batch: &mut Batch, above: &Place) {
        let key = self.keys.run(&above.tag, &above.run);
        let offset = above.offset.to_string();
        let args: [&[u8]; 5] = [
            &self.keys.runs(&above.tag),
            &self.keys.named(&above.tag),
            &above.tag,
            &above.run,
            offset.as_bytes(),
        ];
        batch.script(&script::KID, &[&key], &args);
    }
}
