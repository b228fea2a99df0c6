//! Workers that go: out of sight at once, out of the store little by little.

use super::chain::{HELD, Key, TAG, Tag};
use super::local::{Dead, Member};
use super::remove::Taken;
use super::reply::{bytes, damaged, list, value};
use super::table::{Space, tier_byte};
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{Name, Tier, WorkerId};
use crate::error::Error;
use crate::index::Stats;

/// How much of what a dead slot holds is swept with one call to the store.
const STEP: usize = 128;

/// What of a worker is nobody's any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaving<'a> {
    /// The slots of one tier, or all.
    Tier(Option<Tier>),
    /// These slots.
    Slots(&'a [u32]),
    /// All slots, and the worker's record.
    Whole,
}

impl RedisIndex {
    pub(super) async fn forget(&self, worker: WorkerId) -> Result<(), Error> {
        let Some(member) = self.local.lock().members.get(&worker).copied() else { return Ok(()) };
        self.retire(&member, Leaving::Whole).await?;
        self.leave(&member).await?;
        self.local.lock().members.remove(&worker);
        Ok(())
    }

    /// From now on these of a worker's slots are nobody's.
    pub(super) async fn retire(&self, member: &Member, leaving: Leaving<'_>) -> Result<(), Error> {
        self.local.lock().took_from(member.worker);
        let space = member.space;
        let (table, about) = (self.keys.table(space), self.keys.space(space));
        let dead = self.keys.dead(space);
        let (tier, only) = match leaving {
            Leaving::Tier(Some(tier)) => (vec![tier_byte(tier)], Vec::new()),
            Leaving::Slots(slots) => {
                (Vec::new(), slots.iter().flat_map(|s| s.to_le_bytes()).collect())
            }
            Leaving::Tier(None) | Leaving::Whole => (Vec::new(), Vec::new()),
        };
        let whole: &[u8] = if matches!(leaving, Leaving::Whole) { b"1" } else { b"0" };
        let args: [&[u8]; 4] = [&member.worker.to_le_bytes(), &tier, whole, &only];
        let mut batch = Batch::new();
        batch.script(&script::RETIRE, &[&table, &about, &dead], &args);
        let reply = value(&table, next(&mut self.send(batch).await?))?;
        let mut local = self.local.lock();
        local.slots.retain(|(at, owner), slot| {
            let leaves = match leaving {
                Leaving::Tier(tier) => tier.is_none_or(|tier| tier == owner.2),
                Leaving::Slots(slots) => slots.contains(slot),
                Leaving::Whole => true,
            };
            (*at, owner.0) != (space, member.worker) || !leaves
        });
        for slot in list(&table, reply)? {
            let slot: [u8; 4] =
                bytes(&table, slot)?.try_into().map_err(|_| damaged(&table, "slot"))?;
            let slot = u32::from_le_bytes(slot);
            local.dead.push(Dead { space, slot, worker: member.worker });
        }
        Ok(())
    }

    /// Takes what this client retired out of the store.
    pub(super) async fn sweep(&self) -> Result<(), Error> {
        loop {
            let Some(dead) = self.local.lock().dead.last().copied() else { return Ok(()) };
            self.sweep_slot(&dead).await?;
            self.local.lock().dead.retain(|other| *other != dead);
        }
    }

    async fn sweep_slot(&self, dead: &Dead) -> Result<(), Error> {
        let held = self.keys.held(dead.space, dead.slot);
        loop {
            let some = command("SRANDMEMBER", &[&held, STEP.to_string().as_bytes()]);
            let some = list(&held, self.ask(&held, some).await?)?;
            if some.is_empty() {
                break;
            }
            let (mut batch, mut runs) = (Batch::new(), Vec::new());
            let mut gone = command("SREM", &[&held]);
            for one in some {
                let one = bytes(&held, one)?;
                gone.arg(&one[..]);
                if let Some((vocabulary, name)) = unplaced(&one) {
                    let member = Member {
                        home: crate::index::Home {
                            space: crate::block::SpaceId(0),
                            vocabulary: crate::block::VocabularyId(0),
                        },
                        space: dead.space,
                        vocabulary,
                        worker: dead.worker,
                    };
                    self.drop_unplaced(&member, dead.slot, name).await?;
                    continue;
                }
                let (Some(tag), Some(run), HELD) =
                    (one.first_chunk::<TAG>(), one.last_chunk::<8>(), one.len())
                else {
                    return Err(damaged(&held, "list of runs"));
                };
                self.drop_script(&mut batch, dead.slot, tag, run);
                runs.push((*tag, *run));
            }
            let (mut replies, mut all) = (self.send(batch).await?, Vec::new());
            for (tag, run) in runs {
                let key = self.keys.run(&tag, &run);
                let taken = Taken::read(&key, &tag, value(&key, next(&mut replies))?)?;
                all.push(((tag, run), taken));
            }
            self.taken(dead.space, dead.slot, all).await?;
            self.ask(&held, gone).await?;
        }
        let list = self.keys.dead(dead.space);
        self.ask(&list, command("SREM", &[&list, &dead_bytes(dead)])).await?;
        Ok(())
    }

    /// Goes on with what an earlier owner of the worker retired and did not live to sweep.
    pub(super) async fn inherit(&self, member: &Member) -> Result<(), Error> {
        let key = self.keys.dead(member.space);
        for one in list(&key, self.ask(&key, command("SMEMBERS", &[&key])).await?)? {
            let one: [u8; 8] = bytes(&key, one)?.try_into().map_err(|_| damaged(&key, "slot"))?;
            let (slot, worker) = one.split_at(4);
            let number = |four: &[u8]| four.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b));
            let dead = Dead { space: member.space, slot: number(slot), worker: number(worker) };
            let mut local = self.local.lock();
            if dead.worker == member.worker && !local.dead.contains(&dead) {
                local.dead.push(dead);
            }
        }
        Ok(())
    }

    fn drop_script(&self, batch: &mut Batch, slot: u32, tag: &Tag, run: &Key) {
        let key = self.keys.run(tag, run);
        let args: [&[u8]; 5] =
            [&self.keys.runs(tag), &self.keys.named(tag), tag, run, &slot.to_le_bytes()];
        batch.script(&script::DROP, &[&key], &args);
    }

    /// Writes sizes that changed into the store.
    pub(super) async fn flush(&self) -> Result<(), Error> {
        let deltas = std::mem::take(&mut self.local.lock().deltas);
        let (mut batch, mut keys) = (Batch::new(), Vec::new());
        for (space, delta) in deltas {
            let key = self.keys.space(space);
            for (field, by) in [(&b"blocks"[..], delta.blocks), (b"entries", delta.entries)] {
                if by != 0 {
                    batch.push(&key, command("HINCRBY", &[&key, field, by.to_string().as_bytes()]));
                    keys.push(key.clone());
                }
            }
        }
        for (reply, key) in self.send(batch).await?.zip(&keys) {
            value(key, reply)?;
        }
        Ok(())
    }

    pub(super) async fn sizes(&self) -> Result<Stats, Error> {
        self.sweep().await?;
        self.flush().await?;
        let spaces: Vec<u32> = self.local.lock().spaces.values().copied().collect();
        let mut batch = Batch::reading();
        let keys: Vec<Vec<u8>> = spaces.iter().map(|&space| self.keys.space(space)).collect();
        keys.iter().for_each(|key| batch.push(key, command("HGETALL", &[key])));
        let (mut replies, mut stats) = (self.send(batch).await?, Stats::default());
        for key in &keys {
            let space = Space::read(key, value(key, next(&mut replies))?)?;
            stats.blocks += space.blocks.max(0) as u64;
            stats.unplaced += space.unplaced.max(0) as u64;
            stats.entries += space.entries.max(0) as u64;
        }
        Ok(stats)
    }
}

fn dead_bytes(dead: &Dead) -> Vec<u8> {
    [dead.slot.to_le_bytes(), dead.worker.to_le_bytes()].concat()
}

/// An unplaced block in the list of what a slot holds.
fn unplaced(one: &[u8]) -> Option<(u32, Name)> {
    let bytes: &[u8; 12] = one.try_into().ok()?;
    let (vocabulary, name) = (bytes.first_chunk::<4>()?, bytes.last_chunk::<8>()?);
    Some((u32::from_le_bytes(*vocabulary), Name(u64::from_le_bytes(*name))))
}
