//! One worker's stream: order, contract, translation, application.
//!
//! Two queues follow each other. Batches that came too early wait in the sequencer for those before
//! them; then, in order, they come here.
//! Batches whose blocks cannot be read yet (extra keys hidden, contract not known) wait here, whole
//! and in order, until a plain prompt or a query proves the contract, or until waiting costs too
//! much.

use std::ops::Range;
use std::time::Duration;

use parking_lot::RwLock;

use super::follow::{Ask, Progress};
use super::roster::Generation;
use super::standing::{Post, Standing};
use super::vocabulary::Vocabularies;
use super::{EventCounters, Ingested};
use crate::block::{Group, Name, Prompt, Shape, SpaceId, Tier, TokenId, WorkerId};
use crate::error::Error;
use crate::event::{Batch, DecodeError, Event, Limits, Removed, SpecKind, Stored};
use crate::hash::content::DigestKey;
use crate::hash::vllm::{ChainMemory, Version};
use crate::index::{Applied, Block, Change, Home, MemoryIndex, Parent, Store};
use crate::ingest::sequencer::{Arrival, Ended, Flow, Sequencer, SequencerCounters, Stage, Step};
use crate::ingest::translate::{self, Rejection};
use crate::ingest::verify::{Candidates, Status, Verifier};
use crate::ingest::{Reason, ReplayOptions, Trust, Verdict};
use crate::score::{GroupFacts, GroupRule};

/// How many bytes of payloads may wait for a worker's contract: minutes of an engine's traffic, and
/// far more than the first prompts of plain text take to come.
const MAX_WAITING: usize = 4 << 20;

/// How many changes are applied together, and how many blocks they may name: enough to hide the
/// memory's latency, and little memory whatever a batch holds.
const MAX_PLANNED: usize = 64;
const MAX_NAMED: usize = 4096;

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
}

/// What a stream needs to know of the worker that it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) worker: WorkerId,
    pub(super) space: SpaceId,
    pub(super) version: Option<Version>,
    /// Opened before a batch changes anything; closed by [`Worker`](super::directory::Worker).
    pub(super) post: Post,
}

#[derive(Debug)]
pub(super) struct Stream {
    seat: Seat,
    lane: Sequencer,
    /// The time that was said last.
    now: Duration,
    /// Nothing was heard for too long.
    silent: bool,
    verifier: Verifier,
    groups: Vec<GroupFacts>,
    /// The groups whose unit was seen on the GPU.
    seen_on_gpu: Vec<Group>,
    events: EventCounters,
    waiting: Vec<Box<[u8]>>,
    waiting_bytes: usize,
    applied_to: Option<u64>,
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
    Store { shape: Shape, group: Group, tier: Tier, parent: Parent, blocks: Range<usize> },
    Remove { group: Group, tier: Tier, names: Range<usize> },
}

impl Stream {
    pub(super) fn new(seat: Seat) -> Stream {
        Stream {
            seat,
            lane: Sequencer::without_replay(),
            now: Duration::ZERO,
            silent: false,
            verifier: Verifier::default(),
            groups: Vec::new(),
            seen_on_gpu: Vec::new(),
            events: EventCounters::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            applied_to: None,
            retired: false,
            scratch: Scratch::default(),
        }
    }

    /// Takes in a batch that came live.
    pub(super) fn apply(
        &mut self,
        shared: &Shared,
        seq: u64,
        payload: &[u8],
    ) -> Result<Ingested, Error> {
        self.check()?;
        self.silent = false;
        let batch = Batch::parse(payload, &shared.limits);
        let arrival = arrival(seq, payload, &batch);
        let verdict = self.lane.live(self.now, arrival);
        let mut progress = Progress::default();
        if let (Verdict::Duplicate | Verdict::Late, Err(error)) = (verdict, &batch) {
            progress.error = Some(*error);
            progress.rejected += 1;
            self.events.rejected += 1;
        }
        self.obey(shared, Some((batch, payload)), &mut progress)?;
        let Progress { applied, rejected, error, ask, .. } = progress;
        Ok(Ingested { verdict, applied, rejected, error, ask })
    }

    /// Takes in a batch of a replay.
    pub(super) fn replayed(
        &mut self,
        shared: &Shared,
        now: Duration,
        round: u64,
        seq: u64,
        payload: &[u8],
    ) -> Result<(Flow, Progress), Error> {
        self.check()?;
        self.now = now;
        let batch = Batch::parse(payload, &shared.limits);
        let flow = self.lane.replayed(now, round, arrival(seq, payload, &batch));
        let mut progress = Progress::default();
        self.obey(shared, Some((batch, payload)), &mut progress)?;
        Ok((flow, progress))
    }

    /// Tells the sequencer of something that is no batch.
    pub(super) fn told(
        &mut self,
        shared: &Shared,
        now: Duration,
        news: News,
    ) -> Result<Progress, Error> {
        self.check()?;
        self.now = now;
        match news {
            News::Ended(round, how) => self.lane.replay_ended(now, round, how),
            News::Link(up) => {
                self.silent &= !up;
                self.lane.link(now, up);
            }
            News::Time => self.lane.tick(now),
        }
        let mut progress = Progress::default();
        self.obey(shared, None, &mut progress)?;
        Ok(progress)
    }

    pub(super) fn follow(&mut self, options: ReplayOptions, seed: u64) -> Result<(), Error> {
        self.check()?;
        self.lane.follow(options, seed);
        Ok(())
    }

    /// Says that nothing was heard for too long.
    pub(super) fn fall_silent(&mut self) {
        self.silent = true;
    }

    fn check(&self) -> Result<(), Error> {
        match self.retired {
            true => Err(super::unknown_worker(self.seat.worker)),
            false => Ok(()),
        }
    }

    /// Does what the sequencer says, all of it: an error keeps no later batch from its turn.
    fn obey(
        &mut self,
        shared: &Shared,
        handed_in: Option<(Result<Batch<'_>, DecodeError>, &[u8])>,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let (mut handed_in, mut failed) = (handed_in, None);
        while let Some(step) = self.lane.next_step() {
            if !matches!(step, Step::Ask { .. }) {
                self.seat.post.open();
            }
            let done = match step {
                Step::StartOver => self.start_over(shared),
                Step::Apply { .. } => match handed_in.take() {
                    Some((batch, payload)) => self.take(shared, batch, payload, progress),
                    None => Ok(()),
                },
                Step::Release(held) => {
                    let batch = Batch::parse(&held.payload, &shared.limits);
                    self.take(shared, batch, &held.payload, progress)
                }
                Step::Ask { round, from } => {
                    progress.ask = Some(Ask { round, from });
                    Ok(())
                }
            };
            if let Err(error) = done {
                failed.get_or_insert(error);
            }
        }
        if self.waiting.is_empty() {
            self.applied_to = self.lane.as_of();
        }
        progress.wake_at = self.lane.wake_at();
        failed.map_or(Ok(()), Err)
    }

    /// Takes in a batch whose turn it is: applies it, or lets it wait for the contract.
    fn take(
        &mut self,
        shared: &Shared,
        batch: Result<Batch<'_>, DecodeError>,
        payload: &[u8],
        progress: &mut Progress,
    ) -> Result<(), Error> {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                progress.error.get_or_insert(error);
                progress.rejected += 1;
                self.reject();
                return Ok(());
            }
        };
        self.observe(shared, &batch)?;
        if self.verifier.must_wait() {
            if self.waiting_bytes + payload.len() <= MAX_WAITING {
                self.waiting_bytes += payload.len();
                self.waiting.push(payload.into());
                return Ok(());
            }
            self.verifier.give_up();
        }
        self.apply_waiting(shared, progress)?;
        self.apply_batch(shared, &batch, progress)
    }

    /// Gives an incarnation of the worker its place in the index.
    pub(super) fn begin(&self, shared: &Shared) -> Result<(), Error> {
        let vocabulary = shared.vocabularies.write().private();
        shared.index.assign(self.seat.worker, Home { space: self.seat.space, vocabulary })
    }

    /// Forgets what the last incarnation held.
    fn start_over(&mut self, shared: &Shared) -> Result<(), Error> {
        shared.index.remove(self.seat.worker);
        self.verifier = Verifier::default();
        self.groups.clear();
        self.seen_on_gpu.clear();
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.applied_to = None;
        self.begin(shared)
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
        shared.index.assign(self.seat.worker, Home { space: self.seat.space, vocabulary })
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
            self.applied_to = self.lane.as_of();
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
        let mut events = batch.events();
        while let Some(event) = events.next_into(&mut self.scratch.tokens) {
            match event {
                Ok(Event::Stored(stored)) => {
                    if self.stored(shared, &stored).is_err() {
                        self.flush(shared, &mut progress.applied)?;
                        progress.rejected += 1;
                        self.reject();
                    }
                }
                Ok(Event::Removed(removed)) => self.removed(&removed),
                Ok(Event::Cleared(cleared)) => {
                    // What was refused before it does not matter any more.
                    self.flush(shared, &mut progress.applied)?;
                    self.events.cleared += 1;
                    if cleared.tier.is_none() {
                        self.lane.cleared();
                        self.verifier.cleared();
                    }
                    let clear = [Change::Clear { tier: cleared.tier }];
                    let applied = shared.index.apply(self.seat.worker, &clear)?;
                    self.count(applied, &mut progress.applied);
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
        self.flush(shared, &mut progress.applied)
    }

    /// Applies what was planned since the last time, in order. Together, because the index then asks
    /// memory for what a change needs while it makes those before.
    fn flush(&mut self, shared: &Shared, total: &mut Applied) -> Result<(), Error> {
        let Scratch { blocks, names, planned, .. } = &mut self.scratch;
        if planned.is_empty() {
            return Ok(());
        }
        let change = |planned: Planned| match planned {
            Planned::Store { shape, group, tier, parent, blocks: range } => {
                Change::Store(Store { shape, group, tier, parent, blocks: &blocks[range] })
            }
            Planned::Remove { group, tier, names: range } => {
                Change::Remove { group, tier, names: &names[range] }
            }
        };
        let changes: Vec<Change<'_>> = planned.drain(..).map(change).collect();
        let applied = shared.index.apply(self.seat.worker, &changes);
        drop(changes);
        blocks.clear();
        names.clear();
        self.count(applied?, total);
        Ok(())
    }

    /// Plans what a stored event changes. An error leaves it out as a whole.
    fn stored(&mut self, shared: &Shared, stored: &Stored<'_>) -> Result<(), Rejection> {
        let outline = translate::outline(stored, &mut self.scratch.tokens)?;
        let describes = !self.scratch.tokens.is_empty();
        if describes && !outline.dense {
            self.events.sparse += 1;
        }
        if describes && !self.learn_group(stored, outline.shape) {
            self.events.other_unit += 1;
            return Ok(());
        }
        let Stream { scratch: Scratch { tokens, blocks, planned, .. }, verifier, .. } = self;
        let before = blocks.len();
        let parent = translate::blocks(stored, outline, tokens, &shared.key, verifier, blocks)?;
        let (shape, group, tier) = (outline.shape, stored.group, stored.tier);
        let blocks = before..blocks.len();
        planned.push(Planned::Store { shape, group, tier, parent, blocks });
        Ok(())
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

    fn removed(&mut self, removed: &Removed<'_>) {
        let Scratch { names, planned, .. } = &mut self.scratch;
        let before = names.len();
        names.extend(removed.names.names());
        for &name in &names[before..] {
            self.verifier.removed(name);
        }
        let (group, tier, names) = (removed.group, removed.tier, before..names.len());
        planned.push(Planned::Remove { group, tier, names });
    }

    fn reject(&mut self) {
        self.events.rejected += 1;
        self.lane.degrade(Reason::Undecodable);
    }

    fn count(&mut self, applied: Applied, total: &mut Applied) {
        self.events.stored += applied.stored;
        self.events.removed += applied.removed;
        self.events.unknown_removals += applied.unknown_removals;
        self.events.refused += applied.refused;
        if applied.refused > 0 {
            self.lane.degrade(Reason::Overflow);
        }
        total.stored += applied.stored;
        total.removed += applied.removed;
        total.unknown_removals += applied.unknown_removals;
        total.unplaced += applied.unplaced;
        total.refused += applied.refused;
    }

    /// How far queries can believe what the index shows of the worker; its groups have this number.
    pub(super) fn standing(&self, groups: u16) -> Standing {
        if self.retired {
            return Standing { groups, ..Standing::UNHEARD };
        }
        Standing { trust: self.trust(), as_of: self.applied_to, groups }
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

    pub(super) fn contract(&self) -> &Status {
        self.verifier.status()
    }
}

/// What happens on a stream beside batches.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// A round has ended.
    Ended(u64, Ended),
    /// The link is up or down.
    Link(bool),
    /// Time has passed.
    Time,
}

fn arrival<'a>(seq: u64, payload: &'a [u8], batch: &Result<Batch<'_>, DecodeError>) -> Arrival<'a> {
    let timestamp = batch.as_ref().ok().map(Batch::timestamp);
    Arrival { seq, timestamp, payload }
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
