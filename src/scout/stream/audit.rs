//! A worker's residency once more, from its engine's past batches, and the comparison of the two.
//!
//! The shadow is a stream of its own over an index of its own, empty at batch 0 or with what an anchor has, so it
//! does with a batch what the live one does. It is alone there: no query sees it, and no other worker's blocks or budget change what it holds.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::anchor::Anchor;
use super::room::Room;
use super::{Shared, Stream};
use crate::block::{Name, WorkerId};
use crate::error::Error;
use crate::event::Batch;
use crate::hash::vllm::ChainMemory;
use crate::index::{Change, Held, MemoryIndex, MemoryOptions};
use crate::ingest::sequencer::{Aftermath, AuditState, Comparison};
use crate::ingest::verify::{Status, Verifier};
use crate::ingest::{Reason, Trust};
use crate::scout::follow::Progress;
use crate::scout::local::LocalHashes;
use crate::scout::standing::{Post, Slab};
use crate::scout::vocabulary::Vocabularies;

/// What a shadow's index may take: two million blocks, more than an engine has room for.
const SHADOW_BYTES: usize = 64 << 20;

/// Shadows at a time, of all workers: one for each replay that runs by default, and as many whose replay
/// had to make room for a more urgent one.
const SHADOWS: usize = 8;

/// Names that are asked together: the index makes no change meanwhile.
const TOGETHER: usize = 512;

/// What audits of a worker have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditStatus {
    /// Whether audits can be had, and what the last one found.
    pub state: AuditState,
    /// The last batch that the last one covered, in this life of the publisher.
    pub as_of: Option<u64>,
    /// Where what that one rests on begins: `None` at batch 0. Otherwise at what was held as of this batch: whatever
    /// was wrong then, no audit since has seen.
    pub since: Option<u64>,
    /// Copies that all audits since the worker was registered found missing.
    pub missing: u64,
    /// Copies that they found to be too many; a block that should not be there at all counts once.
    pub surplus: u64,
}

/// What one audit has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audited {
    /// Whether the engine's past batches amount to what was held.
    pub comparison: Comparison,
    /// Copies that were missing.
    pub missing: u64,
    /// Copies that were too many.
    pub surplus: u64,
    /// Whether the worker was given what the past batches amount to. Otherwise, if that is something else, it is
    /// built anew from batch 0, or stays degraded where that cannot be had.
    pub mended: bool,
}

impl Audited {
    const UNDECIDED: Audited =
        Audited { comparison: Comparison::Undecided, missing: 0, surplus: 0, mended: false };
}

/// What is remembered of audits that ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    pub(super) as_of: Option<u64>,
    missing: u64,
    surplus: u64,
}

/// The right to have a shadow.
#[derive(Debug)]
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(shadows: &Arc<AtomicUsize>) -> Option<Permit> {
        let more = |n| (n < SHADOWS).then_some(n + 1);
        shadows.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Permit(shadows.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
pub(super) struct Shadow {
    shared: Shared,
    stream: Stream,
    /// Whether it began with an anchor.
    anchored: bool,
    _permit: Permit,
}

impl Shadow {
    /// An error says why there is none.
    fn begin(
        live: &Stream,
        shared: &Shared,
        anchor: Option<&Anchor>,
    ) -> Result<Box<Shadow>, Aftermath> {
        // Too many others have one.
        let permit = Permit::take(&shared.shadows).ok_or(Aftermath::None)?;
        // Unplaced blocks are bounded by the bytes that they take.
        let memory = MemoryOptions { unplaced_per_worker: usize::MAX, budget: SHADOW_BYTES };
        let (index, vocabularies) = match anchor {
            None => (MemoryIndex::new(memory), Vocabularies::default()),
            Some(anchor) => {
                let index = MemoryIndex::import(memory, &anchor.image);
                let index = index.map_err(|_| Aftermath::TooLarge)?;
                (index, Vocabularies::resume(anchor.given()))
            }
        };
        let own = Shared {
            key: shared.key.clone(),
            limits: shared.limits,
            candidates: shared.candidates.clone(),
            chains: ChainMemory::new(shared.key.clone(), 0),
            index,
            vocabularies: vocabularies.into(),
            generation: Default::default(),
            editions: Default::default(),
            // What a shadow learns, nobody asks it.
            local: LocalHashes::new(0),
            shadows: Arc::default(),
            anchors: Arc::default(),
            // The live stream keeps within bounds what it hands on.
            kept_back: Room::new(usize::MAX),
            mirror: None,
        };
        let post = Post::new(Arc::<Slab>::default(), live.seat.worker);
        let mut stream = Stream::new(super::Seat { post, ..live.seat.clone() });
        match anchor {
            None => {
                stream.begin(&own).map_err(|_| Aftermath::None)?;
                if live.verifier.hides_extras()
                    && matches!(live.verifier.status(), Status::Verified(_))
                {
                    stream.know(&own, &live.verifier).map_err(|_| Aftermath::None)?;
                }
            }
            Some(anchor) => stream = anchor.resume(stream),
        }
        Ok(Box::new(Shadow { shared: own, stream, anchored: anchor.is_some(), _permit: permit }))
    }

    fn apply(&mut self, payload: &[u8]) {
        let batch = Batch::parse(payload, &self.shared.limits);
        let mut progress = Progress::default();
        if self.stream.take(&self.shared, batch, payload, &mut progress).is_err() {
            self.stream.reject();
        }
    }

    /// Applies what waits for a contract under the one that is known by now. An error says why not everything
    /// could be taken in.
    fn settle(mut self: Box<Shadow>, live: &Verifier) -> Result<Box<Shadow>, Aftermath> {
        if !self.stream.waiting.is_empty() {
            let mut progress = Progress::default();
            let known = self.stream.know(&self.shared, live);
            let applied =
                known.and_then(|()| self.stream.apply_waiting(&self.shared, &mut progress));
            applied.map_err(|_| Aftermath::None)?;
        }
        let Stream { lane, seat, .. } = &self.stream;
        match lane.unsound() {
            _ if self.shared.index.evicted(seat.worker) => Err(Aftermath::TooLarge),
            None => Ok(self),
            Some(Reason::Overflow) => Err(Aftermath::TooLarge),
            Some(_) => Err(Aftermath::None),
        }
    }
}

impl Stream {
    /// Begins the shadow with what the anchor has.
    pub(super) fn shade_anchor(&mut self, shared: &Shared) {
        self.shadow = None;
        let anchor = self.anchor.as_deref().ok_or(Aftermath::None);
        match anchor.and_then(|anchor| Shadow::begin(self, shared, Some(anchor))) {
            Ok(shadow) => self.shadow = Some(shadow),
            Err(why) => self.undecided(why),
        }
    }

    /// Ends an audit that cannot be had.
    fn undecided(&mut self, why: Aftermath) {
        self.end_audit(Comparison::Undecided, why);
    }

    fn end_audit(&mut self, comparison: Comparison, aftermath: Aftermath) {
        if aftermath == Aftermath::TooLarge {
            self.anchor = None;
        }
        self.lane.compared(self.now, comparison, aftermath);
    }

    /// Takes over a contract that is known elsewhere of the same engine, and what is known of it.
    fn know(&mut self, shared: &Shared, of: &Verifier) -> Result<(), Error> {
        let shape = self.groups.first().map(|facts| facts.shape);
        self.verifier = Verifier::resume(of.status().clone(), of.hides_extras(), shape);
        self.adopt(shared)
    }

    /// Applies a batch to the shadow; batch 0 begins a new one.
    pub(super) fn shade(&mut self, shared: &Shared, seq: u64, payload: &[u8]) {
        if seq == 0 {
            self.shadow = None;
            match Shadow::begin(self, shared, None) {
                Ok(shadow) => self.shadow = Some(shadow),
                // Nothing is to be had from the rest of the replay.
                Err(why) => return self.undecided(why),
            }
        }
        match &mut self.shadow {
            Some(shadow) => shadow.apply(payload),
            None => self.undecided(Aftermath::None),
        }
    }

    /// Compares the shadow with what is held; the shadow is right.
    pub(super) fn compare(&mut self, shared: &Shared, progress: &mut Progress) {
        let shadow = self.shadow.take().ok_or(Aftermath::None);
        let rebuilt = shadow.and_then(|shadow| shadow.settle(&self.verifier));
        let compared = |it: &Shadow| compare(&shared.index, &it.shared.index, self.seat.worker);
        let audited = rebuilt.as_deref().ok().map(compared);
        // Asked behind the comparison: the index may give up copies at any time.
        let audited = audited.filter(|_| self.may_be_audited(shared));
        let mut audited = audited.unwrap_or(Audited::UNDECIDED);
        self.found.missing += audited.missing;
        self.found.surplus += audited.surplus;
        if audited.comparison != Comparison::Undecided {
            self.found.as_of = self.lane.as_of();
        }
        let aftermath = match (rebuilt, audited.comparison) {
            (Ok(shadow), Comparison::Equal) => {
                let image = shadow.shared.index.export();
                match self.anchor_at(&shared.anchors, image, Some(&shadow.stream)) {
                    true => Aftermath::Anchored,
                    false => Aftermath::None,
                }
            }
            (Ok(shadow), Comparison::Different) if shadow.anchored => {
                audited.mended = self.mend(shared, &shadow);
                if audited.mended { Aftermath::Mended } else { Aftermath::None }
            }
            (Ok(_), _) => Aftermath::None,
            (Err(why), _) => why,
        };
        progress.audited = Some(audited);
        self.end_audit(audited.comparison, aftermath);
    }

    /// Gives the worker what the shadow has in place of what it holds; whether it has all of that now, and
    /// nothing else.
    fn mend(&mut self, shared: &Shared, shadow: &Shadow) -> bool {
        let worker = self.seat.worker;
        self.seat.post.open();
        // Whoever keeps the same elsewhere takes it as a whole.
        self.record.breaks();
        let apply = |change: Change<'_>| shared.index.apply(worker, &[change]).map(drop);
        let image = shadow.shared.index.export();
        let given = apply(Change::Clear { tier: None }).and_then(|()| image.changes(apply));
        self.groups.clone_from(&shadow.stream.groups);
        self.seen_on_gpu.clone_from(&shadow.stream.seen_on_gpu);
        let again = compare(&shared.index, &shadow.shared.index, worker);
        given.is_ok_and(|all| all)
            && again.comparison == Comparison::Equal
            && !shared.index.evicted(worker)
    }

    /// Whether what is held is meant to be the effect of the batches, all of them and nothing else.
    pub(super) fn may_be_audited(&self, shared: &Shared) -> bool {
        self.lane.trust() == Trust::Exact && !self.is_beyond_audits(shared)
    }

    /// Whether something else than batches decides what is held: an operator, the budget; or it is not
    /// known yet, or for good, what the batches mean.
    pub(super) fn is_beyond_audits(&self, shared: &Shared) -> bool {
        self.cleared_by_hand
            || !self.waiting.is_empty()
            || self.verifier.is_blind()
            || shared.editions.any_of(&self.seat.tenant)
            || shared.index.evicted(self.seat.worker)
    }

    /// What audits have come to.
    pub(in crate::scout) fn audit(&self) -> AuditStatus {
        let Found { as_of, missing, surplus } = self.found;
        let since = as_of.and_then(|_| self.lane.audited_since());
        AuditStatus { state: self.lane.audit_state(), as_of, since, missing, surplus }
    }
}

/// Compares what a worker holds in two indexes, of which the second has nobody else.
///
/// Blocks are told apart by their names, since the places of two indexes have nothing in common: each name
/// has to mean as many blocks and copies here as there, and there may be no block besides.
fn compare(held: &MemoryIndex, rebuilt: &MemoryIndex, worker: WorkerId) -> Audited {
    let (mut missing, mut surplus, mut lacking, mut further) = (0, 0, 0, 0);
    let mut differ = |ours: (u64, u64), theirs: (u64, u64)| {
        missing += theirs.0.saturating_sub(ours.0);
        surplus += ours.0.saturating_sub(theirs.0);
        lacking += theirs.1.saturating_sub(ours.1);
        further += ours.1.saturating_sub(theirs.1);
    };
    let names: Vec<Name> = rebuilt.names(worker);
    for names in names.chunks(TOGETHER) {
        let (ours, theirs) = (held.held(worker, names), rebuilt.held(worker, names));
        let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
        let key = |held: &Held| (held.name, held.group, held.tier);
        loop {
            let order = match (ours.peek(), theirs.peek()) {
                (None, None) => break,
                (Some(_), None) => Less,
                (None, Some(_)) => Greater,
                (Some(ours), Some(theirs)) => key(ours).cmp(&key(theirs)),
            };
            let here = if order == Greater { None } else { ours.next() };
            let there = if order == Less { None } else { theirs.next() };
            debug_assert!(order != Equal || here.is_some() && there.is_some());
            let counts = |held: Option<&Held>| held.map_or((0, 0), |h| (h.copies, h.entries));
            differ(counts(here), counts(there));
        }
    }
    // Blocks that are held and that the rebuilt index has never heard of.
    let expected = (rebuilt.entries(worker) + further).saturating_sub(lacking);
    surplus += held.entries(worker).saturating_sub(expected);
    let comparison = match missing + surplus {
        0 => Comparison::Equal,
        _ => Comparison::Different,
    };
    Audited { comparison, missing, surplus, mended: false }
}
