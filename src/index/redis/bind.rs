//! Names that get meanings, and lose them.

use std::collections::{BTreeMap, HashSet};

use super::key::number;
use super::meaning::{GROUPS, bucket, name_bytes};
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
            // What the plain command bound is bound before to the script.
            if self.status[n] != b'1' {
                self.status[n] = status;
            }
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

impl RedisIndex {
    /// Binds names: the usual first meaning by a plain command, and a script for what is left of a group.
    /// `batch` is sent with it; `others` gets the replies to what was in it.
    pub(super) async fn bind(
        &self,
        mut batch: Batch,
        mut others: impl FnMut(Result<redis::Value, super::link::Fault>) -> Result<(), Error>,
        vocabulary: u32,
        names: &[(Name, Place)],
        most: usize,
    ) -> Result<Bound, Error> {
        let buckets = self.opened().await?.buckets;
        let mut bound = Bound { status: vec![b'0'; names.len()], ..Bound::default() };
        let mut groups: Vec<Vec<(usize, u32)>> = vec![Vec::new(); GROUPS as usize];
        for (n, (name, _)) in names.iter().enumerate() {
            let (group, bucket) = bucket(*name, buckets);
            groups[group as usize].push((n, bucket));
        }
        let (first, ttl, mut keys) = (batch.len(), self.ttl(), Vec::with_capacity(names.len()));
        for (group, of) in (0..).zip(&groups).filter(|(_, of)| !of.is_empty()) {
            let base = self.keys.buckets(vocabulary, group);
            let due = self.due_buckets((vocabulary, group), of);
            for (&(n, bucket), put_off) in of.iter().zip(due) {
                let mut key = base.clone();
                number(&mut key, bucket);
                let (name, place) = names[n];
                let meaning = place.bytes();
                batch.push(&key, command("HSETNX", &[&key, &name_bytes(name), &meaning]));
                if put_off {
                    batch.push(&key, command("EXPIRE", &[&key, &ttl]));
                }
                keys.push((n, key, put_off));
            }
            // After the names, in their slot: who waits and did not see them is seen here.
            let unplaced = self.keys.unplaced(vocabulary, group);
            let waiting = self.keys.waiting(vocabulary, group);
            batch.push(&unplaced, command("EXISTS", &[&unplaced, &waiting]));
        }
        let (mut replies, mut keys) = (self.send(batch).await?, keys.into_iter());
        for _ in 0..first {
            others(next(&mut replies))?;
        }
        let (mut batch, mut order) = (Batch::new(), Vec::new());
        for (group, of) in (0..).zip(groups).filter(|(_, of)| !of.is_empty()) {
            let mut left = Vec::new();
            for (&(n, bucket), (_, key, put_off)) in of.iter().zip(keys.by_ref()) {
                match int(&key, value(&key, next(&mut replies))?)? {
                    1 => bound.status[n] = b'1',
                    _ => left.push((n, bucket)),
                }
                if put_off {
                    value(&key, next(&mut replies))?;
                }
            }
            let unplaced = self.keys.unplaced(vocabulary, group);
            if int(&unplaced, value(&unplaced, next(&mut replies))?)? > 0 {
                left = of;
            }
            if left.is_empty() {
                continue;
            }
            let mut args =
                vec![self.keys.buckets(vocabulary, group), most.to_string().into_bytes()];
            for &(n, bucket) in &left {
                let (name, place) = names[n];
                args.push(bucket.to_string().into_bytes());
                args.extend([name_bytes(name).to_vec(), place.bytes()]);
            }
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            let waiting = self.keys.waiting(vocabulary, group);
            batch.script(&script::BIND, &[&unplaced, &waiting], &args);
            order.push((unplaced, left.into_iter().map(|(n, _)| n).collect::<Vec<usize>>()));
        }
        let mut replies = self.send(batch).await?;
        for (key, of) in &order {
            bound.read(key, of, names, value(key, next(&mut replies))?)?;
        }
        bound.waiting.sort_by_key(|(n, _)| *n);
        Ok(bound)
    }

    /// Of which of these buckets the end is to be put off.
    fn due_buckets(&self, (vocabulary, group): (u32, u32), of: &[(usize, u32)]) -> Vec<bool> {
        let (mut local, every) = (self.local.lock(), self.options.ttl / 4);
        of.iter().map(|&(_, bucket)| local.put_off((vocabulary, group, bucket), every)).collect()
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
    pub(super) async fn unbind(&self, bindings: Vec<(u32, Name, Place)>) -> Result<(), Error> {
        if bindings.is_empty() {
            return Ok(());
        }
        let buckets = self.opened().await?.buckets;
        let mut groups: BTreeMap<(u32, u32), Vec<Vec<u8>>> = BTreeMap::new();
        for (vocabulary, name, place) in &bindings {
            let (group, bucket) = bucket(*name, buckets);
            debug_assert!(group < GROUPS);
            groups.entry((*vocabulary, group)).or_default().extend([
                bucket.to_string().into_bytes(),
                name_bytes(*name).to_vec(),
                place.bytes(),
            ]);
            self.local.lock().names.forget(*vocabulary, *name);
        }
        let names: HashSet<(u32, Name)> = bindings.iter().map(|&(v, name, _)| (v, name)).collect();
        self.local.lock().last.retain(|_, (v, name, _)| !names.contains(&(*v, *name)));
        let mut batch = Batch::new();
        for ((vocabulary, group), triples) in &groups {
            let base = self.keys.buckets(*vocabulary, *group);
            let args: Vec<&[u8]> =
                [&base[..]].into_iter().chain(triples.iter().map(Vec::as_slice)).collect();
            batch.script(&script::UNBIND, &[&self.keys.unplaced(*vocabulary, *group)], &args);
        }
        for (reply, &(vocabulary, group)) in self.send(batch).await?.zip(groups.keys()) {
            value(&self.keys.buckets(vocabulary, group), reply)?;
        }
        let runs = self.runs(bindings.iter().map(|(.., p)| (p.tag, p.run))).await?;
        for (vocabulary, name, place) in &bindings {
            let run = runs.get(&(place.tag, place.run));
            if run.is_some_and(|run| usize::from(place.offset) < run.end()) {
                self.bind_if_named(*vocabulary, *name, place).await?;
            }
        }
        Ok(())
    }

    /// Binds a name again if the run says that its block has it.
    async fn bind_if_named(&self, vocabulary: u32, name: Name, place: &Place) -> Result<(), Error> {
        let run = self.keys.run(&place.tag, &place.run);
        let key = self.keys.names(&place.tag, &place.run);
        let field = vocabulary.to_le_bytes();
        let more = [&field[..], b"+"].concat();
        let mut batch = Batch::reading();
        batch.push(&run, command("HGET", &[&run, b"h"]));
        batch.push(&key, command("HGET", &[&key, &field]));
        batch.push(&key, command("HGET", &[&key, &more]));
        let mut replies = self.send(batch).await?;
        let head = bytes(&run, value(&run, next(&mut replies))?)?;
        let names = bytes(&key, value(&key, next(&mut replies))?)?;
        let more = bytes(&key, value(&key, next(&mut replies))?)?;
        let start = usize::from(head.get(1).copied().unwrap_or(u8::MAX));
        let at = usize::from(place.offset).checked_sub(start).map(|offset| offset * 8);
        let name_is = |bytes: &[u8]| bytes == &name_bytes(name)[..];
        let first = at.and_then(|at| names.get(at..at + 8)).is_some_and(name_is);
        let further = |one: &[u8]| one[0] == place.offset && name_is(&one[1..]);
        if first || more.chunks_exact(9).any(further) {
            self.bind_one(vocabulary, name, place).await?;
        }
        Ok(())
    }
}
