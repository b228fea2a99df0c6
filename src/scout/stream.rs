//! One worker's stream: order, contract, translation, application.
//!
//! Two queues follow each other. Batches that came too early wait in the sequencer for those before
//! them; then, in order, they come here.
//! Batches whose blocks cannot be read yet (extra keys hidden, contract not known) wait here, whole
//! and in order, until a plain prompt or a query proves the contract, or until waiting costs too
//! much.

pub(super) mod audit;
pub(super) mod feed;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::RwLock;

use self::audit::{Found, Shadow};
use super::edition::Editions;
use super::follow::Progress;
use super::habit::{Copies, OnClear};
use super::local::LocalHashes;
use super::mirror::{Mirror, Moved, Record};
use super::prompt::NameBlocks;
use super::roster::Generation;
use super::standing::{Post, Standing};
use super::vocabulary::Vocabularies;
use super::{EventCounters, Unexplained};
use crate::block::{
    BlockSize, Group, Name, Prompt, Shape, SpaceId, Tier, TokenId, VocabularyId, WorkerId,
};
use crate::error::Error;
use crate::event::{Batch, Cleared, Event, Limits, Origin, Removed, SpecKind, Stored};
use crate::hash::content::DigestKey;
use crate::hash::vllm::{ChainMemory, Version};
use crate::index::{
    Applied, Block, Change, Home, MOST_GROUPS, Matches, MemoryIndex, Parent, Query, Store,
};
use crate::ingest::sequencer::{Sequencer, SequencerCounters, Stage};
use crate::ingest::snapshot::{GroupState, Watermark, WorkerState};
use crate::ingest::translate::{self, Rejection};
use crate::ingest::verify::{Candidates, Checks, Status, Verifier};
use crate::ingest::{Reason, Trust};
use crate::score::{GroupFacts, GroupRule};

/// How many bytes of payloads may wait for a worker's contract: minutes of an engine's traffic, and
/// far more than the first prompts of plain text take to come.
const MAX_WAITING: usize = 4 << 20;

/// How many changes are applied together, and how many blocks they may name: enough to hide the
/// memory's latency, and little memory whatever a batch holds.
const MAX_PLANNED: usize = 64;
const MAX_NAMED: usize = 4096;

/// How many names of adapters are kept of a worker: for an operator's eyes.
const MAX_ADAPTERS: usize = 64;

/// What all streams use.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) key: DigestKey,
    pub(super) limits: Limits,
    pub(super) candidates: Candidates,
    pub(super) chains: ChainMemory,
    pub(super) index: MemoryIndex,
    pub(super) vocabularies: RwLock<Vocabularies>,
    pub(super) generation: Generation,
    pub(super) editions: Editions,
    pub(super) local: LocalHashes,
    /// How many workers are being audited.
    pub(super) shadows: Arc<AtomicUsize>,
    /// Who keeps the same elsewhere.
    pub(super) mirror: Option<Arc<dyn Mirror>>,
}

/// What a stream needs to know of the worker that it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) worker: WorkerId,
    pub(super) space: SpaceId,
    pub(super) tenant: Box<str>,
    /// `None` answers for any.
    pub(super) model: Option<Box<str>>,
    pub(super) version: Option<Version>,
    /// As the operator says.
    pub(super) block_size: Option<BlockSize>,
    pub(super) on_clear: OnClear,
    pub(super) copies: Copies,
    /// Opened before a batch changes anything; closed by [`Worker`](super::directory::Worker).
    pub(super) post: Post,
}

impl Seat {
    /// Whether an event is about blocks of somebody else, by its own word.
    fn is_foreign(&self, origin: Origin<'_>) -> bool {
        let Origin::Pool { tenant, model } = origin else { return false };
        let is_other = |said: Option<&str>, ours: &str| said.is_some_and(|said| said != ours);
        is_other(tenant, &self.tenant) || self.model.as_deref().is_some_and(|m| is_other(model, m))
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    seat: Seat,
    /// Where its names are in the index.
    vocabulary: VocabularyId,
    /// Which life of its publisher is followed.
    incarnation: u64,
    lane: Sequencer,
    /// The time that was said last.
    now: Duration,
    /// Nothing was heard for too long.
    silent: bool,
    verifier: Verifier,
    groups: Vec<GroupFacts>,
    /// The groups whose unit was seen on the GPU.
    seen_on_gpu: Vec<Group>,
    /// Adapters whose blocks it stored.
    adapters: BTreeSet<Box<str>>,
    events: EventCounters,
    unexplained: Unexplained,
    /// What is held is less than the effect of the batches, by an operator's word.
    cleared_by_hand: bool,
    shadow: Option<Box<Shadow>>,
    found: Found,
    waiting: Vec<Box<[u8]>>,
    waiting_bytes: usize,
    applied_to: Option<Watermark>,
    /// What the mirror is told next.
    record: Record,
    retired: bool,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    tokens: Vec<TokenId>,
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
    pub(super) fn new(seat: Seat) -> Stream {
        Stream {
            seat,
            vocabulary: VocabularyId(0),
            incarnation: 0,
            lane: Sequencer::without_replay(),
            now: Duration::ZERO,
            silent: false,
            verifier: Verifier::default(),
            groups: Vec::new(),
            seen_on_gpu: Vec::new(),
            adapters: BTreeSet::new(),
            events: EventCounters::default(),
            unexplained: Unexplained::default(),
            cleared_by_hand: false,
            shadow: None,
            found: Found::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            applied_to: None,
            record: Record::default(),
            retired: false,
            scratch: Scratch::default(),
        }
    }

    /// A stream that goes on after the last batch that a snapshot holds; its worker has its blocks.
    pub(super) fn resume(seat: Seat, state: &WorkerState, contract: Status) -> Stream {
        let on_gpu = state.groups.iter().filter(|group| group.on_gpu);
        let mut shapes = state.groups.iter().map(|group| group.facts.shape);
        let shape = shapes.next().filter(|first| shapes.all(|other| other == *first));
        let mut lane = Sequencer::without_replay();
        // Where nothing was applied, nothing of it can be wrong.
        if let Some(Watermark { seq, digest, timestamp }) = state.watermark {
            lane.resume(seq, digest, f64::from_bits(timestamp));
            state.unsound.into_iter().for_each(|reason| lane.degrade(reason));
        }
        Stream {
            vocabulary: state.vocabulary,
            incarnation: state.incarnation,
            lane,
            verifier: Verifier::resume(contract, state.hides_extras, shape),
            groups: state.groups.iter().map(|group| group.facts).collect(),
            seen_on_gpu: on_gpu.map(|group| group.facts.group).collect(),
            cleared_by_hand: state.cleared_by_hand,
            applied_to: state.watermark,
            record: Record::since(state.watermark),
            ..Stream::new(seat)
        }
    }

    /// Writes down how far the stream was followed. Batches that wait are after the watermark.
    pub(super) fn describe(&self, state: &mut WorkerState) {
        let group = |facts: &GroupFacts| GroupState {
            facts: *facts,
            on_gpu: self.seen_on_gpu.contains(&facts.group),
        };
        state.vocabulary = self.vocabulary;
        state.incarnation = self.incarnation;
        state.watermark = self.applied_to;
        state.unsound = self.lane.unsound();
        state.cleared_by_hand = self.cleared_by_hand;
        state.hides_extras = self.verifier.hides_extras();
        state.contract = self.verifier.status().into();
        state.groups = self.groups.iter().map(group).collect();
    }

    /// Gives an incarnation of the worker its place in the index.
    pub(super) fn begin(&mut self, shared: &Shared) -> Result<(), Error> {
        let vocabulary = shared.vocabularies.write().private();
        self.move_to(shared, vocabulary)
    }

    fn move_to(&mut self, shared: &Shared, vocabulary: VocabularyId) -> Result<(), Error> {
        let home = Home { space: self.seat.space, vocabulary };
        self.record.breaks();
        shared.index.assign(self.seat.worker, home)?;
        self.vocabulary = vocabulary;
        Ok(())
    }

    /// Forgets what the last incarnation held.
    fn start_over(&mut self, shared: &Shared) -> Result<(), Error> {
        shared.index.remove(self.seat.worker);
        self.verifier = Verifier::default();
        self.groups.clear();
        self.seen_on_gpu.clear();
        self.adapters.clear();
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.applied_to = None;
        self.whole_again();
        self.found.as_of = None;
        self.incarnation += 1;
        self.begin(shared)
    }

    /// Says that nothing is held and that this is so by the engine's own word.
    fn whole_again(&mut self) {
        self.cleared_by_hand = false;
        self.unexplained = Unexplained::default();
    }

    /// Feeds a batch's first blocks to the contract check, as long as that is open.
    fn observe(&mut self, shared: &Shared, batch: &Batch<'_>) -> Result<(), Error> {
        if matches!(self.verifier.status(), Status::Verified(_)) {
            return Ok(());
        }
        let tokens = &mut self.scratch.tokens;
        let mut events = batch.events();
        while let Some(event) = events.next_into(tokens) {
            let Ok(Event::Stored(stored)) = event else { continue };
            let Ok(outline) = translate::outline(&stored, tokens) else { continue };
            if outline.dense {
                let (candidates, version) = (&shared.candidates, self.seat.version);
                self.verifier.observe(&stored, outline.shape, tokens, candidates, version);
            }
        }
        self.adopt(shared)
    }

    /// Moves the worker's names to the vocabulary of its contract once that is known.
    fn adopt(&mut self, shared: &Shared) -> Result<(), Error> {
        let Status::Verified(contract) = self.verifier.status() else { return Ok(()) };
        let vocabulary = shared.vocabularies.write().shared(self.seat.space, contract);
        self.move_to(shared, vocabulary)
    }

    /// Lets a prompt prove the contract, and applies what waited for it.
    pub(super) fn settle(&mut self, shared: &Shared, prompt: &Prompt<'_>) {
        let Shared { candidates, chains, .. } = shared;
        if self.verifier.settle(prompt, candidates, self.seat.version, chains) {
            self.seat.post.open();
            let mut progress = Progress::default();
            let moved = self.adopt(shared);
            if moved.and_then(|()| self.apply_waiting(shared, &mut progress)).is_err() {
                self.lane.degrade(Reason::Undecodable);
            }
            self.applied_to = self.lane.watermark();
        }
    }

    fn apply_waiting(&mut self, shared: &Shared, progress: &mut Progress) -> Result<(), Error> {
        self.waiting_bytes = 0;
        for payload in std::mem::take(&mut self.waiting) {
            // It was parsed once already, when it came.
            if let Ok(batch) = Batch::parse(&payload, &shared.limits) {
                self.apply_batch(shared, &batch, progress)?;
            }
        }
        Ok(())
    }

    fn apply_batch(
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
                    if self.stored(shared, &stored, &mut progress.applied).is_err() {
                        self.flush(shared, &mut progress.applied)?;
                        progress.rejected += 1;
                        self.reject();
                    }
                }
                Ok(Event::Removed(removed)) => self.removed(&removed, &mut moving),
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
            shared.local.learn(&shared.key, tokens, size, &blocks[before..]);
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
            self.lane.cleared();
            self.verifier.cleared();
            self.whole_again();
        }
        self.record.apply(shared, self.seat.worker, &[Change::Clear { tier }]).map(drop)
    }

    /// Forgets everything, by an operator's word.
    pub(super) fn clear(&mut self, shared: &Shared) -> Result<(), Error> {
        self.check()?;
        self.seat.post.open();
        // What waits was stored before.
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.applied_to = self.lane.watermark();
        self.lane.cleared();
        self.verifier.cleared();
        self.whole_again();
        self.cleared_by_hand = true;
        self.record.apply(shared, self.seat.worker, &[Change::Clear { tier: None }]).map(drop)
    }

    fn reject(&mut self) {
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
            self.lane.degrade(Reason::Overflow);
        }
        total.add(&applied);
    }

    /// Whether it is known why blocks may be missing that the engine holds: something was lost, given up or
    /// left out, or copies are not counted.
    fn may_lack(&self, shared: &Shared) -> bool {
        self.lane.unsound().is_some()
            || self.cleared_by_hand
            || self.seat.copies == Copies::Presence
            || self.seat.on_clear == OnClear::Gpu
            || self.events.other_unit > 0
            || shared.editions.any_of(&self.seat.tenant)
            || shared.index.evicted(self.seat.worker)
    }

    /// Tells the mirror what has changed since it was told last.
    pub(super) fn tell(&mut self, shared: &Shared) {
        let Some(mirror) = &shared.mirror else { return };
        let Some(told) = self.record.next(self.applied_to, self.retired) else { return };
        mirror.moved(Moved {
            worker: self.seat.worker,
            home: Home { space: self.seat.space, vocabulary: self.vocabulary },
            incarnation: self.incarnation,
            ..told
        });
    }

    /// How far queries can believe what the index shows of the worker; its groups have this number.
    pub(super) fn standing(&self, groups: u16) -> Standing {
        if self.retired {
            return Standing { groups, ..Standing::UNHEARD };
        }
        Standing { trust: self.trust(), as_of: self.applied_to.map(|last| last.seq), groups }
    }

    /// The worker's cache groups by number.
    pub(super) fn groups(&self) -> &[GroupFacts] {
        &self.groups
    }

    fn trust(&self) -> Trust {
        match self.lane.trust() {
            _ if self.silent => Trust::Silent,
            Trust::Exact if !self.waiting.is_empty() => Trust::Syncing,
            Trust::Exact if self.verifier.is_blind() => Trust::Degraded(Reason::ExtrasHidden),
            trust => trust,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Says that the worker is unregistered: a batch that was on its way changes nothing.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.seat.post.open();
    }

    pub(super) fn counters(&self) -> SequencerCounters {
        self.lane.counters()
    }

    /// What is under way with the replay source.
    pub(super) fn stage(&self) -> Option<Stage> {
        self.lane.stage()
    }

    /// Batches held back, and their bytes.
    pub(super) fn held_back(&self) -> (usize, usize) {
        self.lane.held_back()
    }

    pub(super) fn events(&self) -> EventCounters {
        self.events
    }

    /// What losses without a gap would look like.
    pub(super) fn unexplained(&self) -> Unexplained {
        self.unexplained
    }

    /// How the contract check went.
    pub(super) fn checks(&self) -> Checks {
        self.verifier.checks()
    }

    /// The adapters whose blocks were stored, as far as they are kept.
    pub(super) fn adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().map(|name| &**name)
    }

    pub(super) fn contract(&self) -> &Status {
        self.verifier.status()
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
