//! Homes: which space and vocabulary a worker belongs to.

use std::collections::{BTreeMap, BTreeSet};

use super::local::{Member, Table};
use super::meaning::name_bytes;
use super::place::Place;
use super::reply::{bytes, damaged, fields, int, value};
use super::sweep::Leaving;
use super::table::record_bytes;
use super::unplaced::Waiter;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{Name, WorkerId};
use crate::error::Error;
use crate::index::Home;

/// How many names are looked for at once.
const SOME: usize = 512;

impl RedisIndex {
    pub(super) async fn settle_in(&self, worker: WorkerId, home: Home) -> Result<(), Error> {
        let owner = self.options.owner.as_deref().unwrap_or_default();
        self.settle_under(worker, home, owner).await
    }

    /// The same under an owner: only while that lives does the worker count.
    pub(super) async fn settle_under(
        &self,
        worker: WorkerId,
        home: Home,
        owner: &str,
    ) -> Result<(), Error> {
        let opened = self.current().await?;
        let (lives, old) = {
            let local = self.local.lock();
            local.same_store(&opened)?;
            (local.lives, local.members.get(&worker).copied())
        };
        let space = self.space(home.space).await?;
        // Another client's worker may have been the last to leave it.
        self.local.lock().vocabularies.remove(&(space, home.vocabulary));
        let vocabulary = self.vocabulary(space, home.vocabulary).await?;
        let number = self.worker(worker).await?;
        // What a lookup may notice meanwhile: the numbers would be of two stores, and so would the homes.
        self.local.lock().same_life(lives)?;
        let member = Member { home, space, vocabulary, worker: number };
        if let Some(old) = old.filter(|old| *old != member) {
            self.sweep().await?;
            let table = self.load_table(old.space).await?;
            if self.holds(&old, &table).await? {
                let others = table.workers.iter().filter(|(w, _)| **w != old.worker);
                let shared = others.into_iter().any(|(_, r)| r.vocabulary == old.vocabulary);
                if old.space != space || shared {
                    return Err(Error::invalid(format!(
                        "worker {} cannot move: it holds blocks, and {}",
                        worker.0,
                        if shared { "others share its vocabulary" } else { "its space is another" }
                    )));
                }
                self.move_names(&old, &member).await?;
            } else if old.space != space {
                self.retire(&old, Leaving::Whole).await?;
            }
        }
        let text = self.local.lock().texts.worker(worker);
        let (key, about) = (self.keys.table(space), self.keys.space(space));
        let field = [b"w", &number.to_le_bytes()[..]].concat();
        let record = record_bytes(vocabulary, owner, &text);
        self.heartbeat().await?;
        self.local.lock().same_life(lives)?;
        let mut batch = Batch::new();
        batch.script(&script::HOME, &[&key, &about], &[&field, &record, &opened.birth]);
        value(&key, next(&mut self.send(batch).await?))?;
        let table = self.load_table(space).await?;
        self.inherit(&member).await?;
        if let Some(old) = old.filter(|old| *old != member) {
            self.leave(&old).await?;
        }
        let mut local = self.local.lock();
        local.same_life(lives)?;
        local.took_from(number);
        // What the table does not know is nobody's: retired by another client, or lost.
        local.slots.retain(|(at, owner), slot| {
            (*at, owner.0) != (space, number) || table.slots.get(slot) == Some(owner)
        });
        for (&slot, owner) in table.slots.iter().filter(|(_, owner)| owner.0 == number) {
            local.slots.insert((space, *owner), slot);
        }
        local.members.insert(worker, member);
        Ok(())
    }

    /// Whether the worker has copies.
    async fn holds(&self, member: &Member, table: &Table) -> Result<bool, Error> {
        let own = table.slots.iter().filter(|(_, owner)| owner.0 == member.worker);
        let mut keys: Vec<Vec<u8>> =
            own.map(|(&slot, _)| self.keys.held(member.space, slot)).collect();
        keys.push(self.keys.share(member.space, member.worker));
        let mut batch = Batch::reading();
        keys.iter().for_each(|key| batch.push(key, command("SCARD", &[key])));
        let mut replies = self.send(batch).await?;
        for key in &keys {
            if int(key, value(key, next(&mut replies))?)? > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The old vocabulary's names become names of the new one, with all that they mean.
    async fn move_names(&self, old: &Member, new: &Member) -> Result<(), Error> {
        let groups = self.opened().await?.groups;
        self.local.lock().names.clear();
        let (mut names, mut waiters) = (Vec::new(), Vec::new());
        for group in 0..groups {
            let key = self.keys.meanings(old.vocabulary, group);
            let all: Vec<Name> = self.entries(&key).await?.into_keys().collect();
            for some in all.chunks(SOME) {
                let places = self.places(old.vocabulary, some).await?;
                let some = some.iter().zip(places);
                names.extend(some.map(|(&name, places)| (name, places, key.clone())));
            }
            let key = self.keys.unplaced(old.vocabulary, group);
            let found = self.entries(&key).await?;
            waiters.extend(found.into_iter().map(|(name, found)| (name, found, key.clone())));
        }
        names.sort_unstable_by_key(|(name, ..)| *name);
        let mut touched = BTreeSet::new();
        for (name, places, key) in &names {
            touched.insert(*name);
            for place in places {
                touched.extend(self.rename(old.vocabulary, new, *name, place).await?);
            }
            let mut batch = Batch::new();
            batch.push(key, command("HDEL", &[key, &name_bytes(*name)]));
            value(key, next(&mut self.send(batch).await?))?;
        }
        waiters.sort_unstable_by_key(|(name, ..)| *name);
        for (name, found, key) in waiters {
            let waiter = Waiter::read(&key, &found)?;
            self.move_waiter(old, new, name, &waiter).await?;
            touched.insert(name);
        }
        self.settle(new, touched).await
    }

    /// What is under each name of a hash, read in small steps.
    async fn entries(&self, key: &[u8]) -> Result<BTreeMap<Name, Vec<u8>>, Error> {
        let (mut cursor, mut entries) = (b"0".to_vec(), BTreeMap::new());
        loop {
            let (next, found) = self.scan("HSCAN", key, &cursor).await?;
            for (name, found) in fields(key, found)? {
                let name: [u8; 8] = name.try_into().map_err(|_| damaged(key, "name"))?;
                entries.insert(Name(u64::from_le_bytes(name)), found);
            }
            cursor = next;
            if cursor == b"0" {
                return Ok(entries);
            }
        }
    }

    /// One binding is made in the new vocabulary, and known beside the run.
    async fn rename(
        &self,
        old: u32,
        new: &Member,
        name: Name,
        place: &Place,
    ) -> Result<Vec<Name>, Error> {
        let key = self.keys.names(&place.tag, &place.run);
        let run = self.keys.run(&place.tag, &place.run);
        let bytes_of = name_bytes(name);
        let mut batch = Batch::reading();
        batch.push(&run, command("HGET", &[&run, b"h"]));
        let head = bytes(&run, value(&run, next(&mut self.send(batch).await?))?)?;
        let Some(&start) = head.get(1) else { return Ok(Vec::new()) };
        // First, as the name beside the run says what is to be moved if this is done again.
        let waiting = self.bind_one(new.vocabulary, name, place, false).await?;
        let (start, offset) = (start.to_string(), place.offset.to_string());
        let args: [&[u8]; 5] = [
            &old.to_le_bytes(),
            &new.vocabulary.to_le_bytes(),
            start.as_bytes(),
            offset.as_bytes(),
            &bytes_of,
        ];
        let mut batch = Batch::new();
        batch.script(&script::RENAME, &[&key], &args);
        value(&key, next(&mut self.send(batch).await?))?;
        Ok(waiting)
    }
}
