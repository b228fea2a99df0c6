//! One worker's stream: order, contract, translation, application.
//!
//! Two queues follow each other. Batches that came too early wait in the sequencer for those before
//! them; then, in order, they come here.
//! Batches whose blocks cannot be read yet (extra keys hidden, contract not known) wait here, whole
//! and in order, until a plain prompt or a query proves the contract, or until waiting costs too
//! much.

pub(super) mod anchor;
pub(super) mod audit;
mod change;
pub(super) mod feed;
pub(super) mod room;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::RwLock;

use self::anchor::Anchor;
use self::audit::{Found, Shadow};
use self::change::Scratch;
use self::room::Room;
use super::edition::Editions;
use super::follow::Progress;
use super::habit::{Copies, OnClear};
use super::local::LocalHashes;
use super::mirror::{Mirror, Moved, Record};
use super::roster::Generation;
use super::standing::{Post, Standing};
use super::vocabulary::Vocabularies;
use super::{EventCounters, Unexplained};
use crate::block::{BlockSize, Group, Prompt, SpaceId, VocabularyId, WorkerId};
use crate::error::Error;
use crate::event::{Batch, Event, Limits, Origin};
use crate::hash::content::DigestKey;
use crate::hash::vllm::{ChainMemory, Version};
use crate::index::{Change, Home, MemoryIndex};
use crate::ingest::sequencer::{Sequencer, SequencerCounters, Stage};
use crate::ingest::snapshot::{GroupState, Watermark, WorkerState};
use crate::ingest::translate;
use crate::ingest::verify::{Candidates, Checks, Contract, Status, Told, Verifier};
use crate::ingest::{Reason, Trust};
use crate::score::GroupFacts;

/// How many bytes of payloads may wait for a worker's contract: minutes of an engine's traffic, and
/// far more than the first prompts of plain text take to come.
const MAX_WAITING: usize = 4 << 20;

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
    /// For what audits begin from.
    pub(super) anchors: Arc<Room>,
    /// For batches that came and wait, for those before them or for a contract.
    pub(super) kept_back: Arc<Room>,
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
    /// How its names are made, by the registration.
    pub(super) told: Option<Contract>,
    /// Opened before a batch changes anything; closed by [`Worker`](super::directory::Worker).
    pub(super) post: Post,
}

impl Seat {
    /// What the registration says of the worker's contract.
    fn told(&self) -> Told<'_> {
        Told { version: self.version, contract: self.told.as_ref() }
    }

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
    anchor: Option<Box<Anchor>>,
    found: Found,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    /// Bytes of what waits, as the others know of it.
    kept_back: usize,
    /// Something was lost behind the batch that is applied, which had waited: its clear does not heal that.
    lost_later: bool,
    applied_to: Option<Watermark>,
    /// What the mirror is told next.
    record: Record,
    retired: bool,
    scratch: Scratch,
}

/// A batch that waits for the contract.
#[derive(Debug)]
struct Waiting {
    payload: Box<[u8]>,
    /// How often something was wrong when its turn came.
    wrongs: u64,
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
            anchor: None,
            found: Found::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            kept_back: 0,
            lost_later: false,
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
        let vocabulary = {
            let mut known = shared.vocabularies.write();
            known.doubt(self.vocabulary);
            match &self.seat.told {
                Some(contract) => known.told(contract),
                None => known.private(),
            }
        };
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
        self.anchor = None;
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
                let (candidates, told) = (&shared.candidates, self.seat.told());
                self.verifier.observe(&stored, outline.shape, tokens, candidates, told);
            }
        }
        self.adopt(shared)
    }

    /// Moves the worker's names to the vocabulary of its contract once that is known. What was said of
    /// it does not count any more then, nor where it proves wrong.
    fn adopt(&mut self, shared: &Shared) -> Result<(), Error> {
        let before = self.vocabulary;
        match self.verifier.status() {
            Status::Undecided => return Ok(()),
            Status::Private => {}
            Status::Verified(contract) => {
                if self.verifier.has_guessed() {
                    self.lane.degrade(Reason::ExtrasHidden);
                }
                let vocabulary = shared.vocabularies.write().shared(self.seat.space, contract);
                self.move_to(shared, vocabulary)?;
            }
        }
        if self.seat.told.is_some() {
            shared.vocabularies.write().doubt(before);
        }
        Ok(())
    }

    /// Lets a prompt prove the contract, and applies what waited for it.
    pub(super) fn settle(&mut self, shared: &Shared, prompt: &Prompt<'_>) {
        let Shared { candidates, chains, .. } = shared;
        if self.verifier.settle(prompt, candidates, self.seat.told(), chains) {
            self.seat.post.open();
            let mut progress = Progress::default();
            let moved = self.adopt(shared);
            if self.apply_waiting(shared, &mut progress).and(moved).is_err() {
                self.lane.degrade(Reason::Undecodable);
            }
            self.tell_kept_back(shared);
            self.applied_to = self.lane.watermark();
        }
    }

    /// How many bytes of live batches may be held back: what is, and what all workers together still may.
    fn may_hold_back(&self, shared: &Shared) -> usize {
        self.lane.held_back().1.saturating_add(shared.kept_back.left())
    }

    fn tell_kept_back(&mut self, shared: &Shared) {
        let now = self.lane.held_back().1 + self.waiting_bytes;
        if now != self.kept_back {
            shared.kept_back.changed(self.kept_back, now);
            self.kept_back = now;
        }
    }

    /// Applies what waited, all of it: an error keeps no later batch from its turn.
    fn apply_waiting(&mut self, shared: &Shared, progress: &mut Progress) -> Result<(), Error> {
        self.waiting_bytes = 0;
        let (wrongs, mut outcome) = (self.lane.wrongs(), Ok(()));
        for Waiting { payload, wrongs: then } in std::mem::take(&mut self.waiting) {
            self.lost_later = wrongs > then;
            match Batch::parse(&payload, &shared.limits) {
                Ok(batch) => outcome = outcome.and(self.apply_batch(shared, &batch, progress)),
                // It was read once already, when it came.
                Err(_) => self.reject(),
            }
        }
        self.lost_later = false;
        outcome
    }

    /// Forgets everything, by an operator's word.
    pub(super) fn clear(&mut self, shared: &Shared) -> Result<(), Error> {
        self.check()?;
        self.seat.post.open();
        // What waits was stored before.
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.tell_kept_back(shared);
        self.applied_to = self.lane.watermark();
        self.lane.cleared();
        self.verifier.cleared();
        self.whole_again();
        self.cleared_by_hand = true;
        self.record.apply(shared, self.seat.worker, &[Change::Clear { tier: None }]).map(drop)
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
    pub(super) fn retire(&mut self, shared: &Shared) {
        shared.vocabularies.write().doubt(self.vocabulary);
        // A query that was on its way finds nothing to settle.
        self.waiting.clear();
        self.waiting_bytes = 0;
        shared.kept_back.changed(std::mem::take(&mut self.kept_back), 0);
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::block::Shape;
    use crate::hash::vllm::{self, Algorithm, Root};
    use crate::scout::{Options, Registration, Scout};

    /// Registers a worker for which three batches wait that hide what else was hashed.
    fn waiting(scout: &Scout) -> WorkerId {
        let worker = scout.register(Registration::new("a", "m")).unwrap();
        // Its extra keys are there to read, and are none that are known: it is held by name.
        let opaque = json!(["BlockStored", [5], null, [5, 5, 5, 5], 4, null, "GPU", null, [[1.5]]]);
        send(scout, worker, 0, opaque).unwrap();
        for seq in 1..4 {
            send(scout, worker, seq, hidden(seq, 90 + seq)).unwrap();
        }
        assert_eq!(scout.worker(worker).unwrap().trust, Trust::Syncing);
        worker
    }

    fn tokens(n: u64) -> [u32; 4] {
        [n as u32; 4]
    }

    fn hidden(n: u64, name: u64) -> Value {
        json!(["BlockStored", [name], null, tokens(n), 4, null, "GPU", null])
    }

    fn plain(n: u64) -> Value {
        let (version, root) = (Version::new(0, 16, 0), Root::Seed("0"));
        let contract = vllm::Contract::new(version, Algorithm::Sha256, root).unwrap();
        let (tokens, shape) = (tokens(n), Shape::plain(BlockSize::new(4).unwrap()));
        let mut chain = contract.chain(shape, &Prompt::new(&tokens)).unwrap();
        hidden(n, chain.extend(&tokens).next().unwrap().name().0)
    }

    fn send(scout: &Scout, worker: WorkerId, seq: u64, event: Value) -> Result<(), Error> {
        let payload = rmp_serde::to_vec(&json!([seq as f64, [event]])).unwrap();
        scout.apply(worker, seq, &payload).map(drop)
    }

    #[test]
    fn a_batch_whose_names_could_not_move_to_their_contract_is_applied_and_so_is_what_waited() {
        let scout = Scout::new(Options::default()).unwrap();
        let worker = waiting(&scout);
        let directory = scout.directory.read().get(worker).cloned().unwrap();
        let (space, vocabulary) = {
            let stream = directory.stream.lock();
            (stream.seat.space, stream.vocabulary)
        };
        // Somebody else has the names that are to move.
        scout.shared.index.assign(WorkerId(99), Home { space, vocabulary }).unwrap();
        send(&scout, worker, 4, plain(4)).unwrap_err();
        let status = scout.worker(worker).unwrap();
        assert_eq!(status.trust, Trust::Degraded(Reason::Undecodable));
        assert_eq!((status.as_of, status.events.stored), (Some(4), 5));
    }

    #[test]
    fn what_waited_and_cannot_be_applied_degrades_its_worker() {
        let scout = Scout::new(Options::default()).unwrap();
        let worker = waiting(&scout);
        scout.shared.index.remove(worker);
        for seq in 4..9 {
            // The eighth decides that the contract is a private one.
            let sent = send(&scout, worker, seq, hidden(seq, 90 + seq));
            assert_eq!(sent.is_err(), seq == 8);
        }
        let status = scout.worker(worker).unwrap();
        assert_eq!((status.contract, status.as_of), (Status::Private, Some(8)));
        assert_eq!(status.trust, Trust::Degraded(Reason::Undecodable));
    }
}
