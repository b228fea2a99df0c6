//! Blocks that are known and have no place: their parent is not there, or their content is unknown.

use std::collections::BTreeSet;

use super::chain::shape_bytes;
use super::lay::Stretch;
use super::local::Member;
use super::meaning::{Fit, group, name_bytes};
use super::reply::{bytes, damaged, int, list, value};
use super::store::{Stamp, Stamps};
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{BlockSize, Digest, Name, Shape};
use crate::error::Error;
use crate::index::{Block, MOST_MEANINGS};

/// What an unplaced block would hang on: shape, the parent's name, its own content.
pub(super) type Hook = (Shape, Name, Digest);

/// An unplaced block as it lies in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) hook: Option<Hook>,
    /// Slot, stamp, copies.
    pub(super) holders: Vec<(u32, Stamp, u32)>,
}

fn hook_bytes(&(shape, parent, digest): &Hook) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&shape_bytes(shape));
    bytes[8..16].copy_from_slice(&name_bytes(parent));
    bytes[16..].copy_from_slice(&digest.0.to_le_bytes());
    bytes
}

impl Waiter {
    pub(super) fn read(key: &[u8], value: &[u8]) -> Result<Waiter, Error> {
        Waiter::parse(value).ok_or_else(|| damaged(key, "unplaced block"))
    }

    fn parse(value: &[u8]) -> Option<Waiter> {
        let u32_at = |bytes: &[u8], at: usize| {
            Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let u64_at = |bytes: &[u8], at: usize| {
            Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let (hook, rest) = match value.split_first()? {
            (0, rest) => (None, rest),
            (1, rest) => {
                let (hook, rest) = rest.split_at_checked(24)?;
                let shape =
                    Shape { size: BlockSize::new(u32_at(hook, 0)?)?, lookahead: u32_at(hook, 4)? };
                (Some((shape, Name(u64_at(hook, 8)?), Digest(u64_at(hook, 16)?))), rest)
            }
            _ => return None,
        };
        let holder =
            |h: &[u8]| Some((u32_at(h, 0)?, h.get(4..16)?.try_into().ok()?, u32_at(h, 16)?));
        let holders = rest.chunks(20).map(holder).collect::<Option<_>>()?;
        Some(Waiter { hook, holders })
    }
}

/// What the script for unplaced blocks answers.
struct Changed {
    known: bool,
    hit: bool,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// What is to be done with a slot's copies of an unplaced block.
struct Act<'a> {
    what: &'a [u8],
    hook: Option<Hook>,
    slot: u32,
    stamp: Stamp,
    copies: u32,
}

impl RedisIndex {
    /// Whether the worker holds an unplaced block of this name.
    pub(super) async fn waits(&self, member: &Member, name: Name) -> Result<bool, Error> {
        let key = self.unplaced_key(member.vocabulary, name, self.opened().await?.groups);
        let found = self.ask(&key, command("HGET", &[&key, &name_bytes(name)])).await?;
        let found = bytes(&key, found)?;
        if found.is_empty() {
            return Ok(false);
        }
        let own = self.own_slots(member);
        let holders = Waiter::read(&key, &found)?.holders;
        Ok(holders.iter().any(|(slot, ..)| own.contains(slot)))
    }

    /// One more copy of an unplaced block; `false` if it was refused. `means` says how many blocks
    /// the name means.
    pub(super) async fn wait(
        &self,
        member: &Member,
        slot: u32,
        stamp: Stamp,
        name: Name,
        hook: Option<Hook>,
        means: usize,
    ) -> Result<bool, Error> {
        let opened = self.opened().await?;
        let key = self.unplaced_key(member.vocabulary, name, opened.groups);
        let share = self.keys.share(member.space, member.worker);
        let one = slot_bytes(member.vocabulary, name, slot);
        let mut batch = Batch::reading();
        batch.push(&share, command("SCARD", &[&share]));
        batch.push(&share, command("SISMEMBER", &[&share, &one]));
        batch.push(&key, command("HEXISTS", &[&key, &name_bytes(name)]));
        let mut replies = self.send(batch).await?;
        let held = int(&share, value(&share, next(&mut replies))?)?;
        let mine = int(&share, value(&share, next(&mut replies))?)? == 1;
        let there = int(&key, value(&key, next(&mut replies))?)? == 1;
        let full = held >= i64::try_from(self.options.unplaced_per_worker).unwrap_or(i64::MAX);
        if means >= MOST_MEANINGS && !there || full && !mine {
            return Ok(false);
        }
        let act = Act { what: b"add", hook, slot, stamp, copies: 1 };
        if self.add_waiter(member, name, act).await? {
            Box::pin(self.settle(member, [name].into())).await?;
        }
        Ok(true)
    }

    /// Adds copies to an unplaced block; whether it can be placed by now.
    async fn add_waiter(&self, member: &Member, name: Name, act: Act<'_>) -> Result<bool, Error> {
        let slot = act.slot;
        let groups = self.opened().await?.groups;
        let changed = self.change(member.vocabulary, name, act).await?;
        let share = self.keys.share(member.space, member.worker);
        let held = self.keys.held(member.space, slot);
        let about = self.keys.space(member.space);
        let one = share_bytes(member.vocabulary, name);
        let mut steps = vec![
            (&share, command("SADD", &[&share, &slot_bytes(member.vocabulary, name, slot)])),
            (&share, command("EXPIRE", &[&share, &self.ttl()])),
            (&held, command("SADD", &[&held, &one])),
        ];
        if !changed.known {
            steps.push((&about, command("HINCRBY", &[&about, b"u", b"1"])));
        }
        let entries = i64::from(!changed.hit);
        self.local.lock().changed(member.space, 0, entries);
        self.run_all(steps).await?;
        let key = self.unplaced_key(member.vocabulary, name, groups);
        let before = match changed.before.is_empty() {
            true => None,
            false => Waiter::read(&key, &changed.before)?.hook,
        };
        let hook = Waiter::read(&key, &changed.after)?.hook;
        // Whoever bound the parent before this is written down did not see it, so this looks itself.
        let mut ready = false;
        if let Some(hook) = hook.filter(|_| before.is_none()) {
            ready = !self.wait_for(member.vocabulary, name, hook.1, b"add").await?.is_empty();
        }
        ready |= !self.meanings(member.vocabulary, &[name]).await?.concat().is_empty();
        Ok(ready)
    }

    /// Commands of which only their errors are of interest, each with its key.
    async fn run_all(&self, steps: Vec<(impl AsRef<[u8]>, redis::Cmd)>) -> Result<(), Error> {
        let (mut batch, mut keys) = (Batch::new(), Vec::with_capacity(steps.len()));
        for (key, command) in steps {
            batch.push(key.as_ref(), command);
            keys.push(key);
        }
        for (reply, key) in self.send(batch).await?.zip(&keys) {
            value(key.as_ref(), reply)?;
        }
        Ok(())
    }

    /// A name waits for its parent, or does not any more. Gives what the parent's name means.
    async fn wait_for(
        &self,
        vocabulary: u32,
        name: Name,
        parent: Name,
        what: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let groups = self.opened().await?.groups;
        let of = group(parent, groups);
        let (key, waiting) =
            (self.keys.meanings(vocabulary, of), self.keys.waiting(vocabulary, of));
        let args: [&[u8]; 4] = [what, &name_bytes(parent), &name_bytes(name), &self.ttl()];
        let mut batch = Batch::new();
        batch.script(&script::WAIT, &[&key, &waiting], &args);
        bytes(&key, value(&key, next(&mut self.send(batch).await?))?)
    }

    pub(super) fn unplaced_key(&self, vocabulary: u32, name: Name, groups: u32) -> Vec<u8> {
        self.keys.unplaced(vocabulary, group(name, groups))
    }

    async fn change(&self, vocabulary: u32, name: Name, act: Act<'_>) -> Result<Changed, Error> {
        let groups = self.opened().await?.groups;
        let key = self.unplaced_key(vocabulary, name, groups);
        let hook = act.hook.map(|hook| hook_bytes(&hook).to_vec()).unwrap_or_default();
        let copies = act.copies.to_string();
        let args: [&[u8]; 7] = [
            act.what,
            &name_bytes(name),
            &hook,
            &act.slot.to_le_bytes(),
            &act.stamp,
            copies.as_bytes(),
            &self.ttl(),
        ];
        let mut batch = Batch::new();
        batch.script(&script::UNPLACED, &[&key], &args);
        let reply = list(&key, value(&key, next(&mut self.send(batch).await?))?)?;
        let reply: [redis::Value; 4] = reply.try_into().map_err(|_| damaged(&key, "answer"))?;
        let [known, hit, before, after] = reply;
        Ok(Changed {
            known: int(&key, known)? == 1,
            hit: int(&key, hit)? == 1,
            before: bytes(&key, before)?,
            after: bytes(&key, after)?,
        })
    }

    /// One copy less of an unplaced block; `false` if the slot holds none.
    pub(super) async fn take_unplaced(
        &self,
        member: &Member,
        slot: u32,
        name: Name,
        stamp: Stamp,
    ) -> Result<bool, Error> {
        let act = Act { what: b"take", hook: None, slot, stamp, copies: 1 };
        self.lessen(member, name, act).await
    }

    /// All copies of a slot that is nobody's any more.
    pub(super) async fn drop_unplaced(
        &self,
        member: &Member,
        slot: u32,
        name: Name,
    ) -> Result<(), Error> {
        let act = Act { what: b"drop", hook: None, slot, stamp: [0; 12], copies: 0 };
        self.lessen(member, name, act).await.map(drop)
    }

    async fn lessen(&self, member: &Member, name: Name, act: Act<'_>) -> Result<bool, Error> {
        let slot = act.slot;
        let changed = self.change(member.vocabulary, name, act).await?;
        if !changed.hit {
            return Ok(false);
        }
        let key = self.unplaced_key(member.vocabulary, name, self.opened().await?.groups);
        let before = Waiter::read(&key, &changed.before)?;
        let after = match changed.after.is_empty() {
            true => Waiter::default(),
            false => Waiter::read(&key, &changed.after)?,
        };
        let stays = after.holders.iter().any(|(s, ..)| *s == slot);
        let (share, held) =
            (self.keys.share(member.space, member.worker), self.keys.held(member.space, slot));
        let one = share_bytes(member.vocabulary, name);
        let about = self.keys.space(member.space);
        let mut steps = Vec::new();
        if !stays {
            self.local.lock().changed(member.space, 0, -1);
            steps.push((&held, command("SREM", &[&held, &one])));
            let counted = slot_bytes(member.vocabulary, name, slot);
            steps.push((&share, command("SREM", &[&share, &counted])));
        }
        if after.holders.is_empty() {
            steps.push((&about, command("HINCRBY", &[&about, b"u", b"-1"])));
        }
        self.run_all(steps).await?;
        if let Some((_, parent, _)) = before.hook.filter(|_| after.holders.is_empty()) {
            self.wait_for(member.vocabulary, name, parent, b"end").await?;
        }
        Ok(true)
    }

    /// Places what can be placed of these names, and of those that wait for them then.
    pub(super) async fn settle(
        &self,
        member: &Member,
        mut names: BTreeSet<Name>,
    ) -> Result<(), Error> {
        while let Some(name) = names.pop_first() {
            names.extend(self.settle_one(member, name).await?);
        }
        Ok(())
    }

    /// Places one unplaced block if it can be placed; gives the names that waited for it.
    async fn settle_one(&self, member: &Member, name: Name) -> Result<Vec<Name>, Error> {
        let opened = self.opened().await?;
        let vocabulary = member.vocabulary;
        let key = self.unplaced_key(vocabulary, name, opened.groups);
        let found = self.ask(&key, command("HGET", &[&key, &name_bytes(name)])).await?;
        let found = bytes(&key, found)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let waiter = Waiter::read(&key, &found)?;
        let fit = match waiter.hook {
            Some((shape, _, digest)) => Fit::Content(shape, digest),
            None => Fit::Any,
        };
        let own = self.meaning(member, &[], name, fit).await?.0;
        let parent = match (own, waiter.hook) {
            (None, Some((shape, parent, _))) => {
                self.meaning(member, &[], parent, Fit::Shape(shape)).await?.0
            }
            _ => None,
        };
        if own.is_none() && parent.is_none() {
            return Ok(Vec::new());
        }
        // Whoever lifts it places it; what dies in between is missed, never counted twice.
        let act = Act { what: b"lift", hook: None, slot: 0, stamp: [0; 12], copies: 0 };
        let lifted = self.change(vocabulary, name, act).await?;
        if !lifted.known {
            return Ok(Vec::new());
        }
        let waiter = Waiter::read(&key, &lifted.before)?;
        self.forget_waiter(member, name, &waiter).await?;
        let mut waiting = Vec::new();
        for &(slot, _, copies) in &waiter.holders {
            if let Some(own) = own {
                self.hold(member.space, slot, [0; 12], copies, &own.place).await?;
            } else if let (Some(parent), Some((shape, _, digest))) = (parent, waiter.hook) {
                let stretch = Stretch {
                    space: member.space,
                    vocabulary,
                    above: (parent.link, Some(parent.place)),
                    shape,
                    blocks: &[Block { name, digest: Some(digest) }],
                    slot,
                    copies,
                    stamps: Stamps::default(),
                    most: 0,
                    worker: None,
                    asks: &[],
                };
                waiting.extend(self.lay(&stretch).await?.unwrap_or_default().waiting);
            }
        }
        Ok(waiting)
    }

    /// Takes a lifted block out of the lists that it stood in.
    async fn forget_waiter(
        &self,
        member: &Member,
        name: Name,
        waiter: &Waiter,
    ) -> Result<(), Error> {
        let mut table = self.local.lock().tables.get(&member.space).cloned();
        let known = |table: &super::local::Table| {
            waiter.holders.iter().all(|(slot, ..)| table.slots.contains_key(slot))
        };
        if !table.as_deref().is_some_and(known) {
            table = Some(self.load_table(member.space).await?);
        }
        let one = share_bytes(member.vocabulary, name);
        let about = self.keys.space(member.space);
        let mut steps = Vec::new();
        for (slot, ..) in &waiter.holders {
            let held = self.keys.held(member.space, *slot);
            let out = command("SREM", &[&held, &one]);
            steps.push((held, out));
            if let Some((worker, ..)) = table.as_ref().and_then(|table| table.slots.get(slot)) {
                let share = self.keys.share(member.space, *worker);
                let counted = slot_bytes(member.vocabulary, name, *slot);
                let out = command("SREM", &[&share, &counted]);
                steps.push((share, out));
            }
        }
        let fewer = command("HINCRBY", &[&about, b"u", b"-1"]);
        steps.push((about, fewer));
        self.local.lock().changed(member.space, 0, -(waiter.holders.len() as i64));
        self.run_all(steps).await?;
        if let Some((_, parent, _)) = waiter.hook {
            self.wait_for(member.vocabulary, name, parent, b"end").await?;
        }
        Ok(())
    }

    /// An unplaced block of one vocabulary becomes one of another.
    pub(super) async fn move_waiter(
        &self,
        old: &Member,
        new: &Member,
        name: Name,
        waiter: &Waiter,
    ) -> Result<(), Error> {
        let act = Act { what: b"lift", hook: None, slot: 0, stamp: [0; 12], copies: 0 };
        if !self.change(old.vocabulary, name, act).await?.known {
            return Ok(());
        }
        self.forget_waiter(old, name, waiter).await?;
        for &(slot, stamp, copies) in &waiter.holders {
            let act = Act { what: b"add", hook: waiter.hook, slot, stamp, copies };
            self.add_waiter(new, name, act).await?;
        }
        Ok(())
    }
}

fn share_bytes(vocabulary: u32, name: Name) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&vocabulary.to_le_bytes());
    bytes[4..].copy_from_slice(&name_bytes(name));
    bytes
}

/// A block as a worker's share counts it: once in each of the worker's slots.
fn slot_bytes(vocabulary: u32, name: Name, slot: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..12].copy_from_slice(&share_bytes(vocabulary, name));
    bytes[12..].copy_from_slice(&slot.to_le_bytes());
    bytes
}
