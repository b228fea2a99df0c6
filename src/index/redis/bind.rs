//! Names that get meanings, and lose them.

use std::collections::{BTreeMap, HashSet};

use super::meaning::{by_group, group, name_bytes};
use super::place::Place;
use super::reply::{bytes, damaged, int, list, value};
use super::{Batch, RedisIndex, next, script};
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
        names: &[(Name, Place, bool)],
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

/// A name that does not mean a block any more.
#[derive(Debug)]
pub(super) struct Unbound {
    pub(super) vocabulary: u32,
    pub(super) name: Name,
    pub(super) place: Place,
    /// The offsets of the other blocks that the run calls so.
    pub(super) others: Vec<u8>,
}

/// How many names one script binds at most: no other client waits for longer.
const AT_ONCE: usize = 512;

impl RedisIndex {
    /// Binds names, no two alike; the last of each says whether it may be bound by now. `batch` is sent with it; `others`
    /// gets the replies to what was in it.
    pub(super) async fn bind(
        &self,
        mut batch: Batch,
        mut others: impl FnMut(Result<redis::Value, super::link::Fault>) -> Result<(), Error>,
        vocabulary: u32,
        names: &[(Name, Place, bool)],
        most: usize,
    ) -> Result<Bound, Error> {
        let count = self.opened().await?.groups;
        let mut bound = Bound { status: vec![b'0'; names.len()], ..Bound::default() };
        let groups = by_group(names.iter().map(|(name, ..)| *name), count);
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

    /// Binds one name without limit, perhaps `again`; gives the names that wait for it.
    pub(super) async fn bind_one(
        &self,
        vocabulary: u32,
        name: Name,
        place: &Place,
        again: bool,
    ) -> Result<Vec<Name>, Error> {
        let none = |_| Ok(());
        let names = [(name, *place, again)];
        let bound = self.bind(Batch::new(), none, vocabulary, &names, 0).await?;
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
        let (key, mut replies) = (self.keys.meta(), self.send(batch).await?);
        let mut unbound = Vec::new();
        for &(name, place, bound) in names {
            let others = match runs.contains_key(&(place.tag, place.run)) {
                true => bytes(&key, value(&key, next(&mut replies))?)?,
                false => Vec::new(),
            };
            if bound {
                unbound.push(Unbound { vocabulary, name, place, others });
            }
        }
        self.unbind(unbound).await
    }

    /// Names do not mean blocks that went. Who stored such a block again meanwhile may have found the name
    /// bound; so whatever came back is bound again.
    pub(super) async fn unbind(&self, bindings: Vec<Unbound>) -> Result<(), Error> {
        let count = self.opened().await?.groups;
        let (mut groups, mut runs) = (BTreeMap::<_, Vec<Vec<u8>>>::new(), BTreeMap::new());
        let names: HashSet<(u32, Name)> = bindings.iter().map(|b| (b.vocabulary, b.name)).collect();
        {
            let mut local = self.local.lock();
            names.iter().for_each(|&(vocabulary, name)| local.names.forget(vocabulary, name));
            local.last.retain(|_, last| !names.contains(&(last.vocabulary, last.name)));
        }
        for Unbound { vocabulary, name, place, others } in bindings {
            let args = groups.entry((vocabulary, group(name, count))).or_default();
            args.extend([name_bytes(name).to_vec(), place.bytes(), others]);
            let of: &mut BTreeMap<_, Vec<Name>> = runs.entry(vocabulary).or_default();
            of.entry((place.tag, place.run)).or_default().push(name);
        }
        let mut batch = Batch::new();
        for ((vocabulary, group), args) in &groups {
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            batch.script(&script::UNBIND, &[&self.keys.meanings(*vocabulary, *group)], &args);
        }
        for (reply, &(vocabulary, group)) in self.send(batch).await?.zip(groups.keys()) {
            value(&self.keys.meanings(vocabulary, group), reply)?;
        }
        for (vocabulary, runs) in runs {
            let called = self.called(vocabulary, runs.keys().copied().collect()).await?;
            for (run, names) in runs {
                for name in names {
                    let places = called.get(&run).into_iter().flat_map(|c| c.places(name));
                    for place in places.collect::<Vec<_>>() {
                        self.bind_one(vocabulary, name, &place, true).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Names, run by run: the run as a meaning, its blocks' names, their offsets, and whether they may be bound by now.
fn bindings(names: impl Iterator<Item = (Name, Place, bool)>) -> Vec<[Vec<u8>; 4]> {
    let mut runs: Vec<[Vec<u8>; 4]> = Vec::new();
    for (name, place, again) in names {
        let (run, again) = (place.in_run().bytes(), vec![b'0' + u8::from(again)]);
        if runs.last().is_none_or(|[last, .., before]| (last, before) != (&run, &again)) {
            runs.push([run, Vec::new(), Vec::new(), again]);
        }
        if let Some([_, names, offsets, _]) = runs.last_mut() {
            names.extend(name_bytes(name));
            offsets.push(place.offset);
        }
    }
    runs
}
