//! Who is who in a space: slots and workers, cached as of a generation.

use std::collections::BTreeSet;
use std::sync::Arc;

use redis::Value;

use super::local::{Member, Owner, Record, Table, Texts};
use super::reply::{bytes, damaged, fields, int, value};
use super::sweep::Leaving;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{Group, Tier};
use crate::error::{Error, ErrorKind};
use crate::index::MOST_GROUPS;

/// Records that a table may have; more is no table of kvscout's.
const MOST_RECORDS: usize = 1 << 20;

/// A tier's number in the store: its rank, or 4.
pub(super) fn tier_byte(tier: Tier) -> u8 {
    tier.rank().unwrap_or(Tier::KNOWN.len()) as u8
}

fn tier_of(byte: u8) -> Option<Tier> {
    match byte {
        4 => Some(Tier::Unknown),
        rank => Tier::KNOWN.get(usize::from(rank)).copied(),
    }
}

fn owner_bytes(&(worker, group, tier): &Owner) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[..4].copy_from_slice(&worker.to_le_bytes());
    bytes[4..8].copy_from_slice(&group.0.to_le_bytes());
    bytes[8] = tier_byte(tier);
    bytes
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// What a space's record says.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) birth: Vec<u8>,
    pub(super) generation: i64,
    /// Unplaced blocks in the space.
    pub(super) unplaced: i64,
    pub(super) blocks: i64,
    pub(super) entries: i64,
}

impl Space {
    pub(super) fn read(key: &[u8], value: Value) -> Result<Space, Error> {
        let mut space = Space::default();
        for (field, value) in fields(key, value)? {
            let number = || {
                let n = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                n.ok_or_else(|| damaged(key, "number"))
            };
            match field.as_slice() {
                b"b" => space.birth = value,
                b"g" => space.generation = number()?,
                b"u" => space.unplaced = number()?,
                b"blocks" => space.blocks = number()?,
                b"entries" => space.entries = number()?,
                _ => {}
            }
        }
        Ok(space)
    }
}

/// A worker's record as it lies in the table: the vocabulary, the owner's length and text, the
/// worker's text.
pub(super) fn record_bytes(vocabulary: u32, owner: &str, worker: &str) -> Vec<u8> {
    let owner = &owner.as_bytes()[..owner.len().min(255)];
    let mut bytes = vocabulary.to_le_bytes().to_vec();
    bytes.push(owner.len() as u8);
    bytes.extend_from_slice(owner);
    bytes.extend_from_slice(worker.as_bytes());
    bytes
}

impl Table {
    /// From the hash under `key`; workers that it names and this process does not know get ids.
    pub(super) fn read(key: &[u8], value: Value, texts: &mut Texts) -> Result<Table, Error> {
        let (mut table, found) = (Table::default(), fields(key, value)?);
        if found.len() > MOST_RECORDS {
            return Err(damaged(key, "table of fewer than a million records"));
        }
        for (field, value) in found {
            let bad = || damaged(key, "table");
            match field.split_first() {
                Some((b's', slot)) => {
                    let slot = u32_of(slot).ok_or_else(bad)?;
                    let whole = value.len() == 9;
                    let tier = value.get(8).and_then(|&b| tier_of(b)).filter(|_| whole);
                    let (worker, group) = (u32_of(&value[..4.min(value.len())]), value.get(4..8));
                    let (Some(worker), Some(group), Some(tier)) =
                        (worker, group.and_then(u32_of), tier)
                    else {
                        return Err(bad());
                    };
                    table.slots.insert(slot, (worker, Group(group), tier));
                }
                Some((b'w', worker)) => {
                    let worker = u32_of(worker).ok_or_else(bad)?;
                    let vocabulary = value.get(..4).and_then(u32_of).ok_or_else(bad)?;
                    let length = usize::from(*value.get(4).ok_or_else(bad)?);
                    let owner = value.get(5..5 + length).ok_or_else(bad)?;
                    let text = String::from_utf8_lossy(&value[5 + length..]);
                    let owner = String::from_utf8_lossy(owner).into_owned();
                    let id = texts.worker_id(&text);
                    table.workers.insert(worker, Record { vocabulary, id, owner });
                }
                _ => {}
            }
        }
        Ok(table)
    }
}

impl RedisIndex {
    /// The table of a space as it is now.
    pub(super) async fn load_table(&self, space: u32) -> Result<Arc<Table>, Error> {
        let (key, about) = (self.keys.table(space), self.keys.space(space));
        let mut batch = Batch::reading();
        // The generation first: a table may be younger than it says, never older.
        batch.push(&about, command("HGET", &[&about, b"g"]));
        batch.push(&key, command("HGETALL", &[&key]));
        let mut replies = self.send(batch).await?;
        let generation = int(&about, value(&about, next(&mut replies))?)?;
        self.keep_table(space, generation, value(&key, next(&mut replies))?)
    }

    /// Reads a table and keeps it at hand, under the names that workers have at that moment.
    pub(super) fn keep_table(
        &self,
        space: u32,
        generation: i64,
        value: Value,
    ) -> Result<Arc<Table>, Error> {
        let key = self.keys.table(space);
        let mut local = self.local.lock();
        let read = Table::read(&key, value, &mut local.texts)?;
        let table = Arc::new(Table { generation, ..read });
        local.tables.insert(space, table.clone());
        Ok(table)
    }

    /// The slot of one of the member's (group, tier), made if there is none; `None` if the worker holds
    /// blocks of [`MOST_GROUPS`] other groups.
    pub(super) async fn slot(
        &self,
        member: &Member,
        group: Group,
        tier: Tier,
    ) -> Result<Option<u32>, Error> {
        let owner = (member.worker, group, tier);
        if let Some(&slot) = self.local.lock().slots.get(&(member.space, owner)) {
            return Ok(Some(slot));
        }
        if self.groups_beside(member, group) < MOST_GROUPS {
            if let Some(slot) = self.make_slot(member, owner).await? {
                return Ok(Some(slot));
            }
            // Another client has made slots for this worker.
            self.learn_slots(member).await?;
        }
        match self.retire_idle(member).await? {
            true => self.make_slot(member, owner).await,
            false => Ok(None),
        }
    }

    /// The slot of one of the member's (group, tier), if there is one.
    pub(super) async fn found_slot(
        &self,
        member: &Member,
        group: Group,
        tier: Tier,
    ) -> Result<Option<u32>, Error> {
        let owner = (member.worker, group, tier);
        if let Some(&slot) = self.local.lock().slots.get(&(member.space, owner)) {
            return Ok(Some(slot));
        }
        let key = self.keys.table(member.space);
        let field = [b"k", &owner_bytes(&owner)[..]].concat();
        let found = bytes(&key, self.ask(&key, command("HGET", &[&key, &field])).await?)?;
        self.note_slot(member, owner, &key, &found)
    }

    async fn make_slot(&self, member: &Member, owner: Owner) -> Result<Option<u32>, Error> {
        let (key, about) = (self.keys.table(member.space), self.keys.space(member.space));
        let base = super::open::random_base()?;
        let most = MOST_GROUPS.to_string();
        let args: [&[u8]; 3] = [&owner_bytes(&owner), base.as_bytes(), most.as_bytes()];
        let mut batch = Batch::new();
        batch.script(&script::SLOT, &[&key, &about], &args);
        let reply = bytes(&key, value(&key, next(&mut self.send(batch).await?))?)?;
        if reply == b"?" {
            self.local.lock().members.retain(|_, known| known.worker != member.worker);
            let text = "the worker has no home in the store any more: another client took it, or the store lost it";
            return Err(Error::new(ErrorKind::UnknownWorker, text));
        }
        self.note_slot(member, owner, &key, &reply)
    }

    fn note_slot(
        &self,
        member: &Member,
        owner: Owner,
        key: &[u8],
        found: &[u8],
    ) -> Result<Option<u32>, Error> {
        if found.is_empty() {
            return Ok(None);
        }
        let slot = u32_of(found).ok_or_else(|| damaged(key, "slot"))?;
        self.local.lock().slots.insert((member.space, owner), slot);
        Ok(Some(slot))
    }

    async fn learn_slots(&self, member: &Member) -> Result<(), Error> {
        let table = self.load_table(member.space).await?;
        let mut local = self.local.lock();
        for (&slot, owner) in table.slots.iter().filter(|(_, owner)| owner.0 == member.worker) {
            local.slots.insert((member.space, *owner), slot);
        }
        Ok(())
    }

    /// How many other groups the member has slots of, as far as this client knows.
    fn groups_beside(&self, member: &Member, group: Group) -> usize {
        let local = self.local.lock();
        let mine =
            |(space, owner): &&(u32, Owner)| (*space, owner.0) == (member.space, member.worker);
        let groups = local.slots.keys().filter(mine).map(|(_, owner)| owner.1);
        groups.filter(|other| *other != group).collect::<BTreeSet<Group>>().len()
    }

    /// Gives up the slots of the member's groups that hold nothing; whether there were any. A worker has
    /// one writer at a time, so none of them comes to hold something meanwhile.
    async fn retire_idle(&self, member: &Member) -> Result<bool, Error> {
        let own: Vec<(Group, u32)> = {
            let local = self.local.lock();
            let own = local.slots.iter();
            let own = own.filter(|((s, o), _)| (*s, o.0) == (member.space, member.worker));
            own.map(|((_, owner), &slot)| (owner.1, slot)).collect()
        };
        let mut batch = Batch::reading();
        let keys: Vec<Vec<u8>> =
            own.iter().map(|&(_, slot)| self.keys.held(member.space, slot)).collect();
        keys.iter().for_each(|key| batch.push(key, command("SCARD", &[key])));
        let (mut replies, mut busy) = (self.send(batch).await?, BTreeSet::new());
        for ((group, _), key) in own.iter().zip(&keys) {
            if int(key, value(key, next(&mut replies))?)? > 0 {
                busy.insert(*group);
            }
        }
        let idle = own.iter().filter(|(group, _)| !busy.contains(group));
        let idle: Vec<u32> = idle.map(|&(_, slot)| slot).collect();
        if !idle.is_empty() {
            self.retire(member, Leaving::Slots(&idle)).await?;
        }
        Ok(!idle.is_empty())
    }

    /// The slots of one of the member's groups and tiers, or of all, that this client knows of.
    pub(super) fn own_slots(&self, member: &Member) -> Vec<u32> {
        let local = self.local.lock();
        let own = local
            .slots
            .iter()
            .filter(|((space, owner), _)| (*space, owner.0) == (member.space, member.worker));
        own.map(|(_, &slot)| slot).collect()
    }
}
