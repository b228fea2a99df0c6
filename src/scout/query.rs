//! [`Scout::score`]: from a request to ranked workers.
//!
//! One lookup answers for all workers that did not move while it ran; those that did are asked again
//! one by one (`standing` has the protocol).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::prompt::Asked;
use super::ranking::{Answer, Length, Ranking};
use super::roster::{Plain, Roster};
use super::standing::Reading;
use super::{Blocks, Request, Scout};
use crate::block::{Digest, Group, Lora, Prompt, Shape, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::index::{Class, Match, Matches, Query, Span};
use crate::score::{self, GroupFacts, GroupRule, Weights};

/// How often a worker that moved is asked again before its stream is held still.
const TRIES: usize = 3;

/// How long to wait, in spins, for a batch to end: the time of a small one.
const SPINS: usize = 64;

/// Memory of a caller's queries, reused from one to the next.
///
/// It also keeps what it learned of the workers that were asked about last: a caller that asks about
/// one model again and again does best with a scratch for it. Any scratch serves any [`Scout`].
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) roster: Option<Arc<Roster>>,
    pub(super) answer: Answer,
    pub(super) work: Work,
}

/// What a query works in.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) candidates: Vec<WorkerId>,
    pub(super) digests: Vec<Digest>,
    pub(super) matches: Matches,
    /// What was found of groups and their shapes, by worker and group.
    pub(super) found: Vec<Match>,
    pub(super) spans: Vec<Span>,
    /// Workers of which the index gave up copies.
    losers: Vec<WorkerId>,
}

impl Scout {
    /// Ranks the workers by what they hold of a prompt: by weighted score, best first, ties by
    /// worker. Workers that hold nothing are in the answer, too.
    ///
    /// May be called from any thread, beside any [`apply`](Scout::apply). A worker to which a batch is
    /// being applied just then is waited for, as long as it takes to apply that; the others are not.
    ///
    /// # Errors
    ///
    /// [`UnknownModel`](ErrorKind::UnknownModel) when no worker of the tenant serves the model;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for [`Blocks::Local`] where no such hashes are kept.
    pub fn score<'s>(
        &self,
        request: &Request<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<Ranking<'s>, Error> {
        let Scratch { roster, answer, work } = scratch;
        self.check(&request.blocks)?;
        if self.waiting.load(Ordering::Relaxed) > 0
            && let Blocks::Prompt(prompt) = request.blocks
        {
            let roster = self.roster(roster, request)?;
            self.settle(roster, &with_adapter(roster, request, prompt));
        }
        let roster = self.roster(roster, request)?;
        let Begun { blocks, length, edition } = self.begin(roster, request, answer, work);
        Lookup { scout: self, roster, blocks, edition, length, answer: &mut *answer, work }.run();
        answer.rank();
        Ok(Ranking::new(roster, answer))
    }

    /// Begins an answer: nobody who is asked about holds anything yet.
    #[inline]
    pub(super) fn begin<'a>(
        &self,
        roster: &'a Roster,
        request: &Request<'a>,
        answer: &mut Answer,
        work: &mut Work,
    ) -> Begun<'a> {
        let (blocks, length) = match request.blocks {
            Blocks::Prompt(prompt) => {
                let tokens = prompt.token_ids.len();
                let prompt = with_adapter(roster, request, prompt);
                (Blocks::Prompt(prompt), Length { tokens, is_unknown: false })
            }
            Blocks::Names { block_size, .. } | Blocks::Local { block_size, .. } => {
                let blocks = match request.blocks {
                    Blocks::Names { names, .. } => names.len(),
                    Blocks::Local { hashes, .. } => hashes.len(),
                    Blocks::Prompt(_) => 0,
                };
                // One more than the blocks have, so that the last one may count as cached.
                let tokens = blocks * block_size.tokens() + 1;
                (request.blocks, Length { tokens, is_unknown: true })
            }
        };
        let candidates = request.candidates.map(|candidates| {
            work.candidates.clear();
            work.candidates.extend(candidates);
            work.candidates.sort_unstable();
            work.candidates.dedup();
        });
        answer.begin(roster, candidates.map(|()| &work.candidates[..]), length, self.weights);
        let edition = match blocks {
            Blocks::Prompt(prompt) => {
                let adapter = prompt.lora.map(|lora| lora.name);
                self.shared.editions.of(request.tenant, adapter)
            }
            Blocks::Names { .. } | Blocks::Local { .. } => 0,
        };
        Begun { blocks, length, edition }
    }

    /// Refuses what cannot be looked up.
    #[inline]
    pub(super) fn check(&self, blocks: &Blocks<'_>) -> Result<(), Error> {
        match blocks {
            Blocks::Local { .. } if !self.shared.local.are_kept() => Err(Error::invalid(
                "hashes of single blocks are not kept here (Options::local_hashes is 0)",
            )),
            _ => Ok(()),
        }
    }

    /// Who answers a request: the last one's roster if that still holds.
    #[inline]
    pub(super) fn roster<'r>(
        &self,
        kept: &'r mut Option<Arc<Roster>>,
        request: &Request<'_>,
    ) -> Result<&'r Roster, Error> {
        let generation = self.shared.generation.now();
        let is_for =
            |roster: &mut Arc<Roster>| roster.is_for(generation, request.tenant, request.model);
        if !kept.as_mut().is_some_and(is_for) {
            *kept = None;
        }
        match kept {
            Some(roster) => Ok(roster),
            None => Ok(kept.insert(self.find_roster(request)?)),
        }
    }

    #[cold]
    pub(super) fn find_roster(&self, request: &Request<'_>) -> Result<Arc<Roster>, Error> {
        let directory = self.directory.read();
        let roster = directory.roster(&self.shared.generation, request.tenant, request.model);
        roster.ok_or_else(|| {
            Error::new(
                ErrorKind::UnknownModel,
                format!(
                    "no worker serves model '{}' for tenant '{}'",
                    request.model.unwrap_or("(any)"),
                    request.tenant
                ),
            )
        })
    }

    /// Lets a query's prompt prove the contract of workers whose batches wait for it.
    #[cold]
    pub(super) fn settle(&self, roster: &Roster, prompt: &Prompt<'_>) {
        for &id in roster.ids() {
            let Some(worker) = self.directory.read().get(id).cloned() else { continue };
            let mut stream = worker.stream.lock();
            if stream.is_waiting() {
                stream.settle(&self.shared, prompt);
                worker.publish(&mut stream, &self.shared);
                self.count_waiting(true, stream.is_waiting());
            }
        }
    }
}

/// What is asked, once an answer was begun.
pub(super) struct Begun<'a> {
    pub(super) blocks: Blocks<'a>,
    pub(super) length: Length,
    /// Of the prompt's adapter.
    pub(super) edition: u32,
}

/// Gives scores to everyone in an index's answer, where all workers have one group alike.
pub(super) fn credit_plain(
    roster: &Roster,
    plain: Plain,
    matches: &Matches,
    length: Length,
    weights: &Weights,
    answer: &mut Answer,
) {
    for class in matches.classes.iter().filter(|class| class.group == plain.group) {
        let &Class { leading, fastest, .. } = class;
        let score = score::score_full(length.tokens, plain.shape, leading, fastest, weights);
        let score = answer.add(score);
        let rows = matches.members(class).iter().filter_map(|&worker| roster.row(worker));
        // Whoever has not said what the group is like is not known to answer from it.
        let has_group = |&row: &usize| plain.is_announced || roster.rows()[row].has_group();
        answer.give(rows.filter(has_group), score);
    }
}

/// Gives every worker its score by its own groups.
pub(super) fn credit_general(
    roster: &Roster,
    found: &mut [Match],
    spans: &mut [Span],
    length: Length,
    weights: &Weights,
    answer: &mut Answer,
) {
    found.sort_unstable_by_key(|m| (m.worker, m.group));
    spans.sort_unstable();
    for place in 0..answer.rows() {
        let row = answer.asked_at(place);
        let worker = roster.ids()[row];
        let found = stretch(found, |m| m.worker, worker);
        let spans = stretch(spans, |s| s.worker, worker);
        if found.is_empty() && spans.is_empty() {
            continue;
        }
        let groups = &roster.rows()[row].groups.facts;
        let score = score::score(length.tokens, groups, found, spans, weights);
        let score = answer.add(score);
        answer.give([row], score);
    }
}

/// One query under way.
struct Lookup<'a, 'w> {
    scout: &'a Scout,
    roster: &'a Roster,
    blocks: Blocks<'a>,
    /// Of the prompt's adapter.
    edition: u32,
    length: Length,
    answer: &'w mut Answer,
    work: &'w mut Work,
}

impl Lookup<'_, '_> {
    fn run(mut self) {
        match self.answer.asked() {
            None => self.roster.read(&mut self.answer.readings),
            Some(_) => {
                for place in 0..self.answer.rows() {
                    let row = self.answer.asked_at(place);
                    self.answer.readings[row] = self.roster.cell(row).read();
                }
            }
        }
        match self.roster.plain {
            Some(plain) => self.plain(plain),
            None => self.general(),
        }
        self.look_for_losses();
        let readings = &self.answer.readings;
        let held = match self.answer.asked() {
            None => self.roster.are(readings),
            Some(rows) => {
                rows.iter().all(|&row| self.roster.cell(row as usize).is(readings[row as usize]))
            }
        };
        if !held || !self.roster.is_of(self.scout.shared.generation.now()) {
            self.mend();
        }
    }

    /// Copies that the index gave up are missing from what was found. Before the standings are compared:
    /// a worker that is not listed any more was cleared meanwhile, which moved it.
    #[inline]
    fn look_for_losses(&mut self) {
        self.scout.shared.index.losers(&mut self.work.losers);
        for &worker in &self.work.losers {
            if let Some(row) = self.roster.row(worker) {
                let reading = &mut self.answer.readings[row];
                *reading = reading.with_loss(true);
            }
        }
    }

    /// All workers have one group alike: whoever holds equally far is scored together.
    fn plain(&mut self, plain: Plain) {
        let Lookup { scout, roster, length, .. } = *self;
        let Plain { space, shape, .. } = plain;
        let Work { candidates, digests, matches, .. } = &mut *self.work;
        let asked = Asked::new(&scout.shared, &self.blocks, self.edition, shape, digests);
        let Some(mut asked) = asked else { return };
        let candidates = self.answer.asked().map(|_| &candidates[..]);
        let query = Query { space, shape, candidates, spans: false };
        scout.shared.index.lookup(&query, &mut asked, matches);
        credit_plain(roster, plain, matches, length, &scout.weights, self.answer);
    }

    /// Workers differ in their groups: each is scored by its own.
    #[cold]
    fn general(&mut self) {
        let Lookup { scout, roster, length, .. } = *self;
        self.work.found.clear();
        self.work.spans.clear();
        for &shape in &roster.shapes {
            // A group's matches are those of its own shape.
            let fits = |worker, group| {
                let row = roster.row(worker);
                row.is_some_and(|row| has(&roster.rows()[row].groups.facts, group, shape))
            };
            let only = self.answer.asked().map(|_| std::mem::take(&mut self.work.candidates));
            self.gather(shape, only.as_deref(), roster.spans, fits);
            if let Some(only) = only {
                self.work.candidates = only;
            }
        }
        let Work { found, spans, .. } = &mut *self.work;
        credit_general(roster, found, spans, length, &scout.weights, self.answer);
    }

    /// Asks the index about one shape, and adds what `fits` to what was found.
    fn gather(
        &mut self,
        shape: Shape,
        candidates: Option<&[WorkerId]>,
        spans: bool,
        fits: impl Fn(WorkerId, Group) -> bool,
    ) {
        let shared = &self.scout.shared;
        let Work { digests, matches, found, spans: all_spans, .. } = &mut *self.work;
        let asked = Asked::new(shared, &self.blocks, self.edition, shape, digests);
        let Some(mut asked) = asked else { return };
        for &space in &self.roster.spaces {
            shared.index.lookup(&Query { space, shape, candidates, spans }, &mut asked, matches);
            found.extend(matches.iter().filter(|m| fits(m.worker, m.group)));
            all_spans.extend(matches.spans.iter().filter(|s| fits(s.worker, s.group)));
        }
    }

    /// Asks again about every worker that moved, or that has other groups than the roster says.
    #[cold]
    fn mend(&mut self) {
        for place in 0..self.answer.rows() {
            let row = self.answer.asked_at(place);
            let reading = self.answer.readings[row];
            if !self.roster.cell(row).is(reading) || !self.is_known(row, reading) {
                self.ask_again(row);
            }
        }
    }

    /// Whether the roster has the groups that a worker had then.
    fn is_known(&self, row: usize, reading: Reading) -> bool {
        reading.groups() == self.roster.rows()[row].groups.number
    }

    fn ask_again(&mut self, row: usize) {
        let roster = self.roster;
        let (cell, groups) = (roster.cell(row), &roster.rows()[row].groups.facts);
        let index = &self.scout.shared.index;
        for _ in 0..TRIES {
            let mut reading = cell.read();
            for _ in 0..SPINS {
                if !reading.is_open() {
                    break;
                }
                std::hint::spin_loop();
                reading = cell.read();
            }
            if reading.is_open() || !self.is_known(row, reading) {
                break;
            }
            let score = self.score_of(row, groups);
            let lost = index.evicted(roster.ids()[row]);
            if cell.is(reading) {
                self.answer.readings[row] = reading.with_loss(lost);
                self.answer.give([row], score);
                return;
            }
        }
        // Between two batches, then. No lock but the stream's is held meanwhile.
        let worker = self.scout.directory.read().get(roster.ids()[row]).cloned();
        let (reading, score) = match &worker {
            Some(worker) => {
                let stream = worker.stream.lock();
                let score = self.score_of(row, stream.groups());
                (cell.read().with_loss(index.evicted(worker.id)), score)
            }
            // It was unregistered.
            None => (Reading::UNHEARD, self.score_of(row, &[])),
        };
        self.answer.readings[row] = reading;
        self.answer.give([row], score);
    }

    /// One worker's score, as the index shows it now.
    fn score_of(&mut self, row: usize, groups: &[GroupFacts]) -> u32 {
        let worker = self.roster.ids()[row];
        self.work.found.clear();
        self.work.spans.clear();
        let spans = groups.iter().any(|facts| matches!(facts.rule, GroupRule::Window { .. }));
        for (n, facts) in groups.iter().enumerate() {
            let shape = facts.shape;
            if groups[..n].iter().all(|before| before.shape != shape) {
                self.gather(shape, Some(&[worker]), spans, |_, group| has(groups, group, shape));
            }
        }
        let Work { found, spans, .. } = &mut *self.work;
        spans.sort_unstable();
        let weights = &self.scout.weights;
        let score = score::score(self.length.tokens, groups, found, spans, weights);
        self.answer.add(score)
    }
}

pub(super) fn has(groups: &[GroupFacts], group: Group, shape: Shape) -> bool {
    groups.iter().any(|facts| facts.group == group && facts.shape == shape)
}

/// What belongs to one worker, of a list in the order of workers.
fn stretch<T>(all: &[T], worker: impl Fn(&T) -> WorkerId, id: WorkerId) -> &[T] {
    let from = all.partition_point(|t| worker(t) < id);
    let len = all[from..].partition_point(|t| worker(t) == id);
    &all[from..from + len]
}

/// Fills in what is known of the request's adapter.
#[inline]
pub(super) fn with_adapter<'a>(
    roster: &'a Roster,
    request: &Request<'a>,
    mut prompt: Prompt<'a>,
) -> Prompt<'a> {
    if let (Some(adapter), Some(name), None) = (&roster.adapter, request.model, prompt.lora) {
        prompt.lora = Some(Lora { name, id: adapter.id, path: adapter.path.as_deref() });
    } else if let Some(lora) = &mut prompt.lora
        && let Some(adapter) = roster.adapters.get(lora.name)
    {
        lora.id = lora.id.or(adapter.id);
        lora.path = lora.path.or(adapter.path.as_deref());
    }
    prompt
}
