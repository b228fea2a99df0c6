//! Blocks that become resident.

use std::time::Instant;

use super::chain::Link;
use super::lay::Stretch;
use super::local::{Last, Member};
use super::meaning::Fit;
use super::place::Place;
use super::reply::{bytes, damaged, list, value};
use super::sweep::Leaving;
use super::{Batch, RedisIndex, command, next, script};
use crate::block::{Name, Shape};
use crate::error::{Error, ErrorKind};
use crate::index::{Applied, Block, Change, MOST_MEANINGS, Parent, Store};

/// Marks what a change did, so that it does it once: the batch's number and the place in it, both
/// big-endian. Zeros mark nothing.
pub(super) type Stamp = [u8; 12];

/// Stamps of one batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamps {
    seq: Option<u64>,
    base: u32,
}

impl Stamps {
    pub(super) fn at(&self, step: usize) -> Stamp {
        let mut stamp = [0; 12];
        if let Some(seq) = self.seq {
            stamp[..8].copy_from_slice(&(seq + 1).to_be_bytes());
            stamp[8..].copy_from_slice(&self.base.saturating_add(step as u32).to_be_bytes());
        }
        stamp
    }
}

impl RedisIndex {
    pub(super) async fn apply_stamped(
        &self,
        member: &Member,
        changes: &[Change<'_>],
        seq: Option<u64>,
    ) -> Result<Applied, Error> {
        self.sweep().await?;
        let (mut applied, mut stamps) = (Applied::default(), Stamps { seq, base: 0 });
        for change in changes {
            let steps = match change {
                Change::Store(store) => {
                    self.store(member, store, stamps, &mut applied).await?;
                    store.blocks.len()
                }
                Change::Remove { group, tier, names } => {
                    match self.found_slot(member, *group, *tier).await? {
                        Some(slot) => {
                            self.take(member, slot, names, stamps, &mut applied).await?;
                        }
                        None => applied.unknown_removals += names.len() as u64,
                    }
                    names.len()
                }
                Change::Clear { tier } => {
                    self.retire(member, Leaving::Tier(*tier)).await?;
                    0
                }
            };
            stamps.base = stamps.base.saturating_add(steps as u32 + 2);
        }
        Ok(applied)
    }

    async fn store(
        &self,
        member: &Member,
        store: &Store<'_>,
        stamps: Stamps,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        let Store { shape, blocks, .. } = *store;
        // A parent that the worker does not hold is counted, by the first block.
        let told = match store.parent {
            Parent::Block(name) if blocks.first().is_some_and(|b| b.digest.is_some()) => Some(name),
            _ => None,
        };
        let Some(slot) = self.slot(member, store.group, store.tier).await? else {
            applied.refused += blocks.len() as u64;
            return Ok(());
        };
        // A client that has remembered a parent which is gone finds out and asks again.
        let mut remembered = true;
        'again: loop {
            let mut above = match store.parent {
                Parent::Root => Some(self.root(member, shape).await?),
                Parent::Block(name) => {
                    let spot = self.parent(member, name, shape, remembered).await?;
                    spot.map(|spot| (spot.link, Some(spot.place)))
                }
                Parent::Unknown => None,
            };
            let mut at = 0;
            while let Some(block) = blocks.get(at) {
                let stamps = Stamps { base: stamps.base.saturating_add(at as u32), ..stamps };
                let Some(placed) = above.filter(|_| block.digest.is_some()) else {
                    if let Some(name) = told.filter(|_| at == 0)
                        && !self.waits(member, name).await?
                    {
                        applied.unknown_parents += 1;
                    }
                    let above_name = match (at, store.parent) {
                        (0, Parent::Block(name)) => Some(name),
                        (0, _) => None,
                        (at, _) => Some(blocks[at - 1].name),
                    };
                    let link = block.digest.filter(|_| above.is_none()).zip(above_name);
                    let link = link.map(|(digest, parent)| (shape, parent, digest));
                    let fit = match block.digest {
                        Some(digest) if link.is_some() => Fit::Content(shape, digest),
                        _ => Fit::Any,
                    };
                    let own = self.own_slots(member);
                    let (spot, means) = self.meaning(member, &own, block.name, fit).await?;
                    match spot {
                        Some(spot) => {
                            self.hold(member.space, slot, stamps.at(0), 1, &spot.place).await?;
                            applied.stored += 1;
                        }
                        None => {
                            let held = self
                                .wait(member, slot, stamps.at(0), block.name, link, means)
                                .await?;
                            match held {
                                true => {
                                    applied.stored += 1;
                                    applied.unplaced += 1;
                                }
                                false => applied.refused += 1,
                            }
                        }
                    }
                    above = spot.map(|spot| (spot.link, Some(spot.place)));
                    at += 1;
                    continue;
                };
                let known = blocks[at..].iter().take_while(|b| b.digest.is_some()).count();
                // Who waits for the first of two blocks with one name comes before the second, so one by one.
                let n = if distinct(&blocks[at..at + known]) { known } else { 1 };
                let sure = at > 0 || told.is_none() || self.just_stored(member, placed.1.as_ref());
                let asks = if sure { Vec::new() } else { self.own_slots(member) };
                let stretch = Stretch {
                    space: member.space,
                    vocabulary: member.vocabulary,
                    above: placed,
                    shape,
                    blocks: &blocks[at..at + n],
                    slot,
                    copies: 1,
                    stamps,
                    most: MOST_MEANINGS,
                    worker: Some(member.worker),
                    asks: &asks,
                };
                let Some(laid) = self.lay(&stretch).await? else {
                    if at == 0 && remembered {
                        remembered = false;
                        if let Parent::Block(name) = store.parent {
                            self.local.lock().names.forget(member.vocabulary, name);
                        }
                        continue 'again;
                    }
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the block that others were to be stored behind went away meanwhile",
                    ));
                };
                if !sure && !laid.above_held {
                    applied.unknown_parents += 1;
                }
                self.settle(member, laid.waiting.into_iter().collect()).await?;
                applied.stored += laid.stored as u64;
                if laid.stored < n {
                    applied.refused += (blocks.len() - at - laid.stored) as u64;
                    return Ok(());
                }
                if let Some(spot) = laid.last {
                    let (vocabulary, name) = (member.vocabulary, blocks[at + n - 1].name);
                    let (alone, stored) = (laid.alone, Some(Instant::now()));
                    let last = Last { vocabulary, name, spot, alone, stored };
                    self.local.lock().last.insert(member.worker, last);
                }
                above = laid.last.map(|spot| (spot.link, Some(spot.place)));
                at += n;
            }
            return Ok(());
        }
    }

    /// Whether a worker holds this block because it was the last that it stored, a moment ago.
    fn just_stored(&self, member: &Member, place: Option<&Place>) -> bool {
        let local = self.local.lock();
        let last = local.last.get(&member.worker);
        last.zip(place).is_some_and(|(last, place)| last.is_held(place))
    }

    async fn root(&self, member: &Member, shape: Shape) -> Result<(Link, Option<Place>), Error> {
        let opened = self.opened().await?;
        let space = self.local.lock().texts.space(member.home.space);
        Ok((opened.chain.root(space.as_bytes(), shape), None))
    }

    /// More copies of a block that has a place.
    pub(super) async fn hold(
        &self,
        space: u32,
        slot: u32,
        stamp: Stamp,
        copies: u32,
        place: &Place,
    ) -> Result<bool, Error> {
        let key = self.keys.run(&place.tag, &place.run);
        let held = self.keys.held(space, slot);
        let copies = copies.to_string();
        let mut batch = Batch::new();
        let args: [&[u8]; 4] = [&slot.to_le_bytes(), &stamp, copies.as_bytes(), &[place.offset]];
        batch.script(&script::HOLD, &[&key], &args);
        batch.push(&held, command("SADD", &[&held, &[&place.tag[..], &place.run].concat()]));
        let mut replies = self.send(batch).await?;
        let reply = list(&key, value(&key, next(&mut replies))?)?;
        let [hits, gained, _]: [redis::Value; 3] =
            reply.try_into().map_err(|_| damaged(&key, "answer"))?;
        let gained = super::reply::int(&key, gained)?;
        self.local.lock().changed(space, 0, gained);
        Ok(bytes(&key, hits)? == b"1")
    }
}

/// Whether no two of them have one name.
fn distinct(blocks: &[Block]) -> bool {
    let mut names: Vec<Name> = blocks.iter().map(|block| block.name).collect();
    names.sort_unstable();
    names.windows(2).all(|pair| pair[0] != pair[1])
}
