//! Names that get meanings, and lose them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::called::Called;
use super::chain::{Key, Tag};
use super::meaning::{by_group, group, name_bytes};
use super::place::Place;
use super::reply::{bytes, damaged, int, list, value};
use super::{Batch, RedisIndex, command, next, script};
use crate::block::Name;
use crate::error::Error;

/// What became of names that were to be bound.
#[derive(Debug, Default)]
pub(super) struct Bound {
    /// As the script says it, for each name.
    pub(super) status: Vec<u8>,
    /// By number of the name: what waits for it. In the order of the names.
    pub(super) waiting: Vec<(usize, Name)>,
}

impl Bound {
    /// From the script's answer about some of the names.
    pub(super) fn read(
        &mut self,
        key: &[u8],
        of: &[usize],
        names: &[(Name, Place)],
        reply: redis::Value,
    ) -> Result<(), Error> {
        let bad = || damaged(key, "answer");
        let parts = list(key, reply)?;
        let [status, waiting]: [redis::Value; 2] = parts.try_into().map_err(|_| bad())?;
        let status = bytes(key, status)?;
        if status.len() != of.len() {
            return Err(bad());
        }
        for (&n, &status) in of.iter().zip(&status) {
            self.status[n] = status;
        }
        for one in list(key, waiting)? {
            let parts = list(key, one)?;
            let [n, unplaced, waiters]: [redis::Value; 3] = parts.try_into().map_err(|_| bad())?;
            let n = usize::try_from(int(key, n)?).ok();
            let n = *n.and_then(|n| of.get(n)).ok_or_else(bad)?;
            if !bytes(key, unplaced)?.is_empty() {
                self.waiting.push((n, names[n].0));
            }
            for name in bytes(key, waiters)?.chunks_exact(8) {
                let name: [u8; 8] = name.try_into().map_err(|_| bad())?;
                self.waiting.push((n, Name(u64::from_le_bytes(name))));
            }
        }
        Ok(())
    }
}

/// How many names one script binds at most: no other client waits for longer.
const AT_ONCE: usize = 512;

impl RedisIndex {
    /// Binds names, no two alike. `batch` is sent with it; `others` gets the replies to what was in it.
    pub(super) async fn bind(
        &self,
        mut batch: Batch,
        mut others: impl FnMut(Result<redis::Value, super::link::Fault>) -> Result<(), Error>,
        vocabulary: u32,
        names: &[(Name, Place)],
        most: usize,
    ) -> Result<Bound, Error> {
        let count = self.opened().await?.groups;
        let mut bound = Bound { status: vec![b'0'; names.len()], ..Bound::default() };
        let groups = by_group(names.iter().map(|(name, _)| *name), count);
        let (first, most, mut order) = (batch.len(), most.to_string(), Vec::new());
        for (group, of) in &groups {
            for of in of.chunks(AT_ONCE) {
                let key = self.keys.meanings(vocabulary, *group);
                let unplaced = self.keys.unplaced(vocabulary, *group);
                let waiting = self.keys.waiting(vocabulary, *group);
                let bindings = bindings(of.iter().map(|&n| names[n]));
                let ttl = self.ttl();
                let mut args: Vec<&[u8]> = vec![most.as_bytes(), &ttl];
                args.extend(bindings.iter().flatten().map(Vec::as_slice));
                batch.script(&script::BIND, &[&key, &unplaced, &waiting], &args);
                order.push((key, of));
            }
        }
        let mut replies = self.send(batch).await?;
        for _ in 0..first {
            others(next(&mut replies))?;
        }
        for (key, of) in &order {
            bound.read(key, of, names, value(key, next(&mut replies))?)?;
        }
        bound.waiting.sort_by_key(|(n, _)| *n);
        Ok(bound)
    }

    /// Binds one name without limit; gives the names that wait for it.
    pub(super) async fn bind_one(
        &self,
        vocabulary: u32,
        name: Name,
        place: &Place,
    ) -> Result<Vec<Name>, Error> {
        let none = |_| Ok(());
        let bound = self.bind(Batch::new(), none, vocabulary, &[(name, *place)], 0).await?;
        self.local.lock().names.forget(vocabulary, name);
        Ok(bound.waiting.into_iter().map(|(_, name)| name).collect())
    }

    /// Names that were refused after all; the last of each says whether it was bound meanwhile.
    pub(super) async fn unname(
        &self,
        vocabulary: u32,
        names: &[(Name, Place, bool)],
    ) -> Result<(), Error> {
        let runs = self.runs(names.iter().map(|(_, p, _)| (p.tag, p.run))).await?;
        let mut batch = Batch::new();
        for (name, place, _) in names {
            let Some(run) = runs.get(&(place.tag, place.run)) else { continue };
            let key = self.keys.names(&place.tag, &place.run);
            let (start, offset) = (run.start.to_string(), place.offset.to_string());
            let args: [&[u8]; 4] = [
                &vocabulary.to_le_bytes(),
                start.as_bytes(),
                offset.as_bytes(),
                &name_bytes(*name),
            ];
            batch.script(&script::UNNAME, &[&key], &args);
        }
        let key = self.keys.meta();
        for reply in self.send(batch).await? {
            value(&key, reply)?;
        }
        let bound = names.iter().filter(|(.., bound)| *bound);
        self.unbind(bound.map(|(name, place, _)| (vocabulary, *name, *place)).collect()).await
    }

    /// Names do not mean blocks that went. Who stored such a block again meanwhile found the name
    /// bound; so whatever came back is bound again.
    pub(super) async fn unbind(&self, mut bindings: Vec<(u32, Name, Place)>) -> Result<(), Error> {
        let names: HashSet<(u32, Name)> = bindings.iter().map(|&(v, name, _)| (v, name)).collect();
        {
            let mut local = self.local.lock();
            names.iter().for_each(|&(vocabulary, name)| local.names.forget(vocabulary, name));
            local.last.retain(|_, last| !names.contains(&(last.vocabulary, last.name)));
        }
        while !bindings.is_empty() {
            let still = self.take_meanings(&bindings).await?;
            bindings = self.bind_again(bindings, &still).await?;
        }
        Ok(())
    }

    /// For each name whether it still means the block's run.
    async fn take_meanings(&self, bindings: &[(u32, Name, Place)]) -> Result<Vec<bool>, Error> {
        let count = self.opened().await?.groups;
        let mut groups: BTreeMap<(u32, u32), Vec<usize>> = BTreeMap::new();
        for (n, (vocabulary, name, _)) in bindings.iter().enumerate() {
            groups.entry((*vocabulary, group(*name, count))).or_default().push(n);
        }
        let mut batch = Batch::new();
        for ((vocabulary, group), of) in &groups {
            let pair = |&n: &usize| [name_bytes(bindings[n].1).to_vec(), bindings[n].2.bytes()];
            let pairs: Vec<[Vec<u8>; 2]> = of.iter().map(pair).collect();
            let args: Vec<&[u8]> = pairs.iter().flatten().map(Vec::as_slice).collect();
            batch.script(&script::UNBIND, &[&self.keys.meanings(*vocabulary, *group)], &args);
        }
        let mut still = vec![false; bindings.len()];
        for (reply, ((vocabulary, group), of)) in self.send(batch).await?.zip(groups) {
            let key = self.keys.meanings(vocabulary, group);
            let answer = bytes(&key, value(&key, reply)?)?;
            if answer.len() != of.len() {
                return Err(damaged(&key, "answer"));
            }
            of.into_iter().zip(answer).for_each(|(n, one)| still[n] = one == b'1');
        }
        Ok(still)
    }

    /// Binds again what runs say that their blocks are called. Gives the names that mean a run where no block is called so.
    async fn bind_again(
        &self,
        bindings: Vec<(u32, Name, Place)>,
        still: &[bool],
    ) -> Result<Vec<(u32, Name, Place)>, Error> {
        let runs: BTreeSet<(u32, Tag, Key)> =
            bindings.iter().map(|(vocabulary, _, at)| (*vocabulary, at.tag, at.run)).collect();
        let (mut batch, mut keys) = (Batch::reading(), Vec::with_capacity(runs.len()));
        for (vocabulary, tag, run) in &runs {
            let key = self.keys.run(tag, run);
            batch.push(&key, command("HGET", &[&key, b"h"]));
            let named = Called::ask(&mut batch, &self.keys, *vocabulary, (tag, run));
            keys.push((key, named));
        }
        let (mut replies, mut called) = (self.send(batch).await?, BTreeMap::new());
        for ((vocabulary, tag, run), (key, named)) in runs.into_iter().zip(keys) {
            let head = bytes(&key, value(&key, next(&mut replies))?)?;
            let names = value(&named, next(&mut replies))?;
            if let Some(&start) = head.get(1) {
                let names = Called::read(&named, (tag, run), start, names)?;
                called.insert((vocabulary, tag, run), names);
            }
        }
        let mut stale = Vec::new();
        for ((vocabulary, name, at), still) in bindings.into_iter().zip(still) {
            let called = called.get(&(vocabulary, at.tag, at.run));
            let places: Vec<Place> = called.into_iter().flat_map(|c| c.places(name)).collect();
            if *still && places.is_empty() {
                stale.push((vocabulary, name, at));
            } else if !still {
                for place in &places {
                    self.bind_one(vocabulary, name, place).await?;
                }
            }
        }
        Ok(stale)
    }
}

/// Names, run by run: the run as a meaning, their blocks' names, and their offsets.
fn bindings(names: impl Iterator<Item = (Name, Place)>) -> Vec<[Vec<u8>; 3]> {
    let mut runs: Vec<[Vec<u8>; 3]> = Vec::new();
    for (name, place) in names {
        let run = place.in_run().bytes();
        if runs.last().is_none_or(|[last, ..]| *last != run) {
            runs.push([run, Vec::new(), Vec::new()]);
        }
        if let Some([_, names, offsets]) = runs.last_mut() {
            names.extend(name_bytes(name));
            offsets.push(place.offset);
        }
    }
    runs
}
