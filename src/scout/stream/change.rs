//! What a batch's events change, and the index changed by it.
//!
//! Changes are planned as events are read and made together, in order. Blocks of an event that cannot be read
//! are left out as a whole; what comes before and behind them counts.

use std::collections::HashMap;
use std::ops::Range;

use super::{MAX_ADAPTERS, Shared, Stream};
use crate::block::{BlockSize, Group, Name, Shape, Tier, TokenId};
use crate::error::Error;
use crate::event::{Batch, Cleared, Event, Origin, Removed, SpecKind, Stored};
use crate::index::{Applied, Block, Change, MOST_GROUPS, Matches, Parent, Query, Store};
use crate::ingest::Reason;
use crate::ingest::translate::{self, Rejection};
use crate::ingest::verify::Status;
use crate::score::{GroupFacts, GroupRule};
use crate::scout::follow::Progress;
use crate::scout::habit::{Copies, OnClear};
use crate::scout::prompt::NameBlocks;

/// How many changes are applied together, and how many blocks they may name: enough to hide the
/// memory's latency, and little memory whatever a batch holds.
const MAX_PLANNED: usize = 64;
const MAX_NAMED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) tokens: Vec<TokenId>,
    blocks: Vec<Block>,
    names: Vec<Name>,
    planned: Vec<Planned>,
}

/// A change of the index that is applied together with those around it; its blocks or names lie in
/// the scratch memory.
#[derive(Clone, Debug)]
enum Planned {
    Store {
        shape: Shape,
        group: Group,
        tier: Tier,
        parent: Parent,
        blocks: Range<usize>,
        /// Whether it adds no copy to what is there.
        once: bool,
    },
    Remove {
        group: Group,
        tier: Tier,
        names: Range<usize>,
    },
}

/// Blocks that change their tier within one batch.
#[derive(Debug, Default)]
struct Moving {
    /// Where they go, by name.
    to: HashMap<Name, Tier>,
    /// Removals from where they were, until they have arrived.
    held_back: Vec<(Group, Tier, Name)>,
}

impl Moving {
    /// Whether a removal from a tier has to wait. One from the tier that the block goes to is about
    /// another copy.
    fn holds_back(&self, name: Name, tier: Tier) -> bool {
        !self.to.is_empty() && self.to.get(&name).is_some_and(|&to| to != tier)
    }
}

impl Stream {
    pub(super) fn apply_batch(
        &mut self,
        shared: &Shared,
        batch: &Batch<'_>,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let mut moving = self.moving(batch);
        let mut events = batch.events();
        while let Some(event) = events.next_into(&mut self.scratch.tokens) {
            match event {
                Ok(Event::Stored(Stored { origin, .. }))
                | Ok(Event::Removed(Removed { origin, .. }))
                | Ok(Event::Cleared(Cleared { origin, .. }))
                    if self.seat.is_foreign(origin) =>
                {
                    self.events.foreign += 1;
                }
                Ok(Event::Stored(stored)) => {
                    if self.stored(shared, &stored, &mut progress.applied).is_ok() {
                        self.events.stored_events += 1;
                    } else {
                        self.flush(shared, &mut progress.applied)?;
                        progress.rejected += 1;
                        self.reject();
                    }
                }
                Ok(Event::Removed(removed)) => {
                    self.events.removed_events += 1;
                    self.removed(&removed, &mut moving);
                }
                Ok(Event::Cleared(cleared)) => {
                    self.release(&mut moving);
                    // What was refused before it does not matter any more.
                    self.flush(shared, &mut progress.applied)?;
                    self.cleared(shared, cleared)?;
                }
                Err(error) => {
                    self.flush(shared, &mut progress.applied)?;
                    progress.error.get_or_insert(error);
                    progress.rejected += 1;
                    self.reject();
                }
            }
            let Scratch { planned, blocks, names, .. } = &self.scratch;
            if planned.len() >= MAX_PLANNED || blocks.len() + names.len() >= MAX_NAMED {
                self.flush(shared, &mut progress.applied)?;
            }
        }
        self.release(&mut moving);
        self.flush(shared, &mut progress.applied)
    }

    /// Applies what was planned since the last time, in order. Together, because the index then asks
    /// memory for what a change needs while it makes those before.
    fn flush(&mut self, shared: &Shared, total: &mut Applied) -> Result<(), Error> {
        let Stream { seat, record, scratch: Scratch { blocks, names, planned, .. }, .. } = self;
        if planned.is_empty() {
            return Ok(());
        }
        if planned.iter().any(|change| matches!(change, Planned::Store { once: true, .. })) {
            return self.flush_once(shared, total);
        }
        let change = |planned: Planned| match planned {
            Planned::Store { shape, group, tier, parent, blocks: range, .. } => {
                Change::Store(Store { shape, group, tier, parent, blocks: &blocks[range] })
            }
            Planned::Remove { group, tier, names: range } => {
                Change::Remove { group, tier, names: &names[range] }
            }
        };
        let changes: Vec<Change<'_>> = planned.drain(..).map(change).collect();
        let applied = record.apply(shared, seat.worker, &changes);
        drop(changes);
        blocks.clear();
        names.clear();
        self.count(shared, applied?, total);
        Ok(())
    }

    /// Applies what was planned one by one, stores that add no copy to what is there among it.
    fn flush_once(&mut self, shared: &Shared, total: &mut Applied) -> Result<(), Error> {
        let Scratch { blocks, names, planned, .. } = std::mem::take(&mut self.scratch);
        for change in planned {
            let applied = match change {
                Planned::Remove { group, tier, names: range } => {
                    let change = Change::Remove { group, tier, names: &names[range] };
                    self.record.apply(shared, self.seat.worker, &[change])?
                }
                Planned::Store { shape, group, tier, parent, blocks: range, .. } => {
                    let blocks = &blocks[range];
                    self.store_once(shared, Store { shape, group, tier, parent, blocks })?
                }
            };
            self.count(shared, applied, total);
        }
        Ok(())
    }

    /// Stores what is not there yet.
    fn store_once(&mut self, shared: &Shared, mut store: Store<'_>) -> Result<Applied, Error> {
        let worker = self.seat.worker;
        let held = self.leading(shared, &store);
        if let Some(last) = held.checked_sub(1) {
            store.parent = Parent::Block(store.blocks[last].name);
            store.blocks = &store.blocks[held..];
        }
        // Whether a single block is there cannot be asked, but it can be taken away; from the end, as
        // engines do it.
        let names: Vec<Name> = store.blocks.iter().rev().map(|block| block.name).collect();
        let Store { group, tier, .. } = store;
        let remove = Change::Remove { group, tier, names: &names };
        while self.record.apply(shared, worker, &[remove])?.removed > 0 {}
        self.record.apply(shared, worker, &[Change::Store(store)])
    }

    /// How many blocks of a store that starts a prompt are there, one after the other: a report of
    /// what is cached must not take that away for a moment.
    fn leading(&self, shared: &Shared, store: &Store<'_>) -> usize {
        let &Store { shape, group, tier, parent, blocks } = store;
        if self.seat.copies != Copies::Presence || (parent, tier) != (Parent::Root, Tier::Gpu) {
            return 0;
        }
        let names: Vec<Name> = blocks.iter().map(|block| block.name).collect();
        let (space, worker) = (self.seat.space, self.seat.worker);
        let query = Query { space, shape, candidates: Some(&[worker]), spans: false };
        let mut matches = Matches::default();
        shared.index.lookup(&query, &mut NameBlocks(&names), &mut matches);
        let of_group = matches.iter().find(|found| found.group == group);
        of_group.map_or(0, |found| found.leading[0] as usize)
    }

    /// Plans what a stored event changes. An error leaves it out as a whole.
    fn stored(
        &mut self,
        shared: &Shared,
        stored: &Stored<'_>,
        total: &mut Applied,
    ) -> Result<(), Rejection> {
        let outline = translate::outline(stored, &mut self.scratch.tokens)?;
        let describes = !self.scratch.tokens.is_empty();
        if describes && !outline.dense {
            self.events.sparse += 1;
        }
        if describes && self.has_too_many_groups(stored.group) {
            let refused = stored.names.names().count() as u64;
            self.count(shared, Applied { refused, ..Applied::default() }, total);
            return Ok(());
        }
        if describes && !self.learn_group(stored, outline.shape) {
            self.events.other_unit += 1;
            return Ok(());
        }
        if !describes {
            self.assume_group(stored);
        }
        if outline.dense {
            self.verifier.sample(stored, outline.shape, &self.scratch.tokens);
        }
        if let Some(name) = stored.lora_name
            && self.adapters.len() < MAX_ADAPTERS
            && !self.adapters.contains(name)
        {
            self.adapters.insert(name.into());
        }
        let Stream { scratch: Scratch { tokens, blocks, planned, .. }, verifier, seat, .. } = self;
        let edition = shared.editions.of(&seat.tenant, stored.lora_name);
        let before = blocks.len();
        let parent =
            translate::blocks(stored, outline, tokens, &shared.key, edition, verifier, blocks)?;
        let (shape, group, tier) = (outline.shape, stored.group, stored.tier);
        if outline.dense && outline.shape.lookahead == 0 && shared.local.are_kept() {
            let size = outline.shape.size.tokens();
            shared.local.learn(&shared.key, tokens, size, stored.lora_name, &blocks[before..]);
        }
        let blocks = before..blocks.len();
        // Copies of an earlier edition are under the same names: the next removal would not tell
        // them from these.
        let once =
            seat.copies == Copies::Presence || edition > 0 || stored.origin != Origin::Engine;
        planned.push(Planned::Store { shape, group, tier, parent, blocks, once });
        Ok(())
    }

    /// Whether a group would be one more than a worker may have: every query looks through them.
    fn has_too_many_groups(&self, group: Group) -> bool {
        self.groups.len() >= MOST_GROUPS
            && self.groups.binary_search_by_key(&group, |facts| facts.group).is_err()
    }

    /// Records what an event says about its group; whether its blocks are the group's unit.
    ///
    /// The unit of a group is the largest block that it stores on the GPU, or what it stored first as
    /// long as nothing is there: chunks of offload tiers (LMCache, offloading with a `block_size` of its
    /// own) and partial blocks (Mamba's aligned states, SGLang's last pages) come in other sizes.
    fn learn_group(&mut self, stored: &Stored<'_>, shape: Shape) -> bool {
        let group = stored.group;
        let rule = rule(stored.kind, stored.window);
        let on_gpu = stored.tier == Tier::Gpu;
        let first_on_gpu = on_gpu && !self.seen_on_gpu.contains(&group);
        if first_on_gpu {
            self.seen_on_gpu.push(group);
        }
        let at = self.groups.partition_point(|facts| facts.group < group);
        match self.groups.get_mut(at).filter(|facts| facts.group == group) {
            Some(facts) => {
                if first_on_gpu || (on_gpu && shape.size > facts.shape.size) {
                    facts.shape = shape;
                }
                if facts.rule == GroupRule::Unannounced {
                    facts.rule = rule;
                }
                facts.shape == shape
            }
            None => {
                self.groups.insert(at, GroupFacts { group, rule, shape });
                true
            }
        }
    }

    /// Takes a group of which only names were told to be cut as the event says, or the operator: a
    /// publisher without tokens says no more. The first block with tokens on the GPU says it better.
    fn assume_group(&mut self, stored: &Stored<'_>) {
        let at = self.groups.partition_point(|facts| facts.group < stored.group);
        if self.groups.get(at).is_some_and(|facts| facts.group == stored.group) {
            return;
        }
        if let Some(size) = BlockSize::new(stored.block_size).or(self.seat.block_size) {
            let rule = rule(stored.kind, stored.window);
            let (group, shape) = (stored.group, Shape::plain(size));
            self.groups.insert(at, GroupFacts { group, rule, shape });
        }
    }

    fn removed(&mut self, removed: &Removed<'_>, moving: &mut Moving) {
        let Scratch { names, planned, .. } = &mut self.scratch;
        let before = names.len();
        let (group, tier) = (removed.group, removed.tier);
        for name in removed.names.names() {
            self.verifier.removed(name);
            match moving.holds_back(name, tier) {
                true => moving.held_back.push((group, tier, name)),
                false => names.push(name),
            }
        }
        let names = before..names.len();
        planned.push(Planned::Remove { group, tier, names });
    }

    /// What a batch stores by name only.
    ///
    /// An engine that offloads a block may announce in one batch that it left the GPU and, after
    /// that, that it is in host memory, without its tokens. Where names cannot be computed from
    /// tokens, its content would be forgotten in between.
    fn moving(&self, batch: &Batch<'_>) -> Moving {
        let mut moving = Moving::default();
        if matches!(self.verifier.status(), Status::Verified(_)) {
            return moving;
        }
        for event in batch.events() {
            if let Ok(Event::Stored(stored)) = event
                && stored.tokens.is_empty()
            {
                moving.to.extend(stored.names.names().map(|name| (name, stored.tier)));
            }
        }
        moving
    }

    /// Plans the removals that were held back.
    fn release(&mut self, moving: &mut Moving) {
        let Scratch { names, planned, .. } = &mut self.scratch;
        for (group, tier, name) in moving.held_back.drain(..) {
            names.push(name);
            planned.push(Planned::Remove { group, tier, names: names.len() - 1..names.len() });
        }
    }

    fn cleared(&mut self, shared: &Shared, cleared: Cleared<'_>) -> Result<(), Error> {
        self.events.cleared += 1;
        let tier = match (self.seat.on_clear, cleared.origin) {
            (OnClear::Gpu, Origin::Engine) => cleared.tier.or(Some(Tier::Gpu)),
            _ => cleared.tier,
        };
        if tier.is_none() {
            if !self.lost_later {
                self.lane.cleared();
            }
            self.verifier.cleared();
            self.whole_again();
        }
        self.record.apply(shared, self.seat.worker, &[Change::Clear { tier }]).map(drop)
    }

    pub(super) fn reject(&mut self) {
        self.events.rejected += 1;
        self.lane.degrade(Reason::Undecodable);
    }

    fn count(&mut self, shared: &Shared, applied: Applied, total: &mut Applied) {
        self.events.stored += applied.stored;
        self.events.removed += applied.removed;
        self.events.unknown_removals += applied.unknown_removals;
        self.events.unknown_parents += applied.unknown_parents;
        self.unexplained.changes += applied.stored + applied.removed;
        let unknown = applied.unknown_removals + applied.unknown_parents;
        if unknown > 0 && !self.may_lack(shared) {
            self.unexplained.unknown += unknown;
        }
        self.events.refused += applied.refused;
        if applied.refused > 0 {
            self.lane.overflowed(self.now);
        }
        total.add(&applied);
    }
}

/// How an engine answers from a group of this kind (vLLM's `kv_cache_spec_kind`).
fn rule(kind: Option<SpecKind>, window: Option<u32>) -> GroupRule {
    match (kind, window) {
        (None, _) => GroupRule::Unannounced,
        (
            Some(SpecKind::FullAttention | SpecKind::MlaAttention | SpecKind::SinkFullAttention),
            _,
        ) => GroupRule::Full,
        (Some(SpecKind::SlidingWindow | SpecKind::SlidingWindowMla), Some(tokens)) => {
            GroupRule::Window { tokens }
        }
        _ => GroupRule::NoRule,
    }
}
