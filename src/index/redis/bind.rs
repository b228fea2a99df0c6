//! Names that get meanings, and lose them.

use std::collections::{BTreeMap, HashSet};

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
                args.extend(bindings.iter().map(Vec::as_slice));
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
    pub(super) async fn unbind(&self, bindings: Vec<(u32, Name, Place)>) -> Result<(), Error> {
        if bindings.is_empty() {
            return Ok(());
        }
        let count = self.opened().await?.groups;
        let mut groups: BTreeMap<(u32, u32), Vec<Vec<u8>>> = BTreeMap::new();
        for (vocabulary, name, place) in &bindings {
            let bindings = groups.entry((*vocabulary, group(*name, count))).or_default();
            bindings.extend([name_bytes(*name).to_vec(), place.bytes()]);
            self.local.lock().names.forget(*vocabulary, *name);
        }
        let names: HashSet<(u32, Name)> = bindings.iter().map(|&(v, name, _)| (v, name)).collect();
        self.local.lock().last.retain(|_, last| !names.contains(&(last.vocabulary, last.name)));
        let mut batch = Batch::new();
        for ((vocabulary, group), pairs) in &groups {
            let args: Vec<&[u8]> = pairs.iter().map(Vec::as_slice).collect();
            batch.script(&script::UNBIND, &[&self.keys.meanings(*vocabulary, *group)], &args);
        }
        for (reply, &(vocabulary, group)) in self.send(batch).await?.zip(groups.keys()) {
            value(&self.keys.meanings(vocabulary, group), reply)?;
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

/// Names, each with its place, in strings with places of one length.
pub(super) fn bindings(names: impl Iterator<Item = (Name, Place)>) -> Vec<Vec<u8>> {
    let mut strings: Vec<(usize, Vec<u8>)> = Vec::new();
    for (name, place) in names {
        let place = place.bytes();
        if strings.last().is_none_or(|(length, _)| *length != place.len()) {
            strings.push((place.len(), Vec::new()));
        }
        if let Some((_, string)) = strings.last_mut() {
            string.extend(name_bytes(name));
            string.extend(place);
        }
    }
    strings.into_iter().map(|(_, string)| string).collect()
}
