//! [`Scout::explain`]: why each worker scored what it did.
//!
//! Far from the hot path: each worker is asked about alone, several times, with its stream held still, so
//! that everything that is said of it is of one batch.

use super::directory::Worker;
use super::prompt::Asked;
use super::query::with_adapter;
use super::{Blocks, Request, Scout};
use crate::block::{Digest, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId};
use crate::error::Error;
use crate::index::{BlockSource, Match, Matches, Query};
use crate::ingest::Trust;
use crate::ingest::verify::Status;
use crate::score::GroupFacts;

/// How many stretches are told apart of what one worker holds: more tiers taking turns than an engine
/// has reason for.
const MOST_STRETCHES: usize = 256;

/// Why one worker scored what it did.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The worker.
    pub worker: WorkerId,
    /// Its pod.
    pub pod: String,
    /// Its data-parallel rank.
    pub rank: u32,
    /// How far that can be believed.
    pub trust: Trust,
    /// The last batch that is included; `None` before the first.
    pub as_of: Option<u64>,
    /// Whether the names of its blocks can be computed from tokens: where not, what it announced
    /// without tokens cannot match.
    pub computes_names: bool,
    /// Its cache groups, by number; empty before it has announced one.
    pub groups: Vec<ExplainedGroup>,
}

/// What one cache group of a worker holds of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct ExplainedGroup {
    /// The group.
    pub facts: GroupFacts,
    /// Full blocks of the prompt, as this group cuts it.
    pub blocks: u32,
    /// Leading blocks that are each resident in tier `Tier::KNOWN[t]` or a faster one.
    pub leading: [u32; 4],
    /// The leading blocks in order.
    pub stretches: Vec<Stretch>,
    /// Whether there are further stretches.
    pub is_cut: bool,
    /// The first block that is missing; `None` where the whole prompt is held.
    pub divergence: Option<Divergence>,
}

/// Blocks `from..to`, one after the other, that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First block.
    pub from: u32,
    /// One past the last.
    pub to: u32,
    /// Their fastest tier.
    pub tier: Tier,
    /// How they match.
    pub known_by: KnownBy,
}

/// How a block of a prompt matches one that a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KnownBy {
    /// Its tokens and extra keys, and those of all before it.
    Content,
    /// What the engine calls it: computed from the prompt, or given by it.
    Name,
}

impl KnownBy {
    /// A stable label, as it appears in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            KnownBy::Content => "content",
            KnownBy::Name => "name",
        }
    }
}

/// Where a prompt leaves what a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The first block that is missing.
    pub block: u32,
    /// What is known of it.
    pub why: Missing,
}

/// What is known of a block that a worker lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Missing {
    /// The worker holds later blocks of the prompt, from this one on, on its GPU: it gave up, or never
    /// announced, what lies before.
    Hole {
        /// The next block that it holds.
        next: u32,
    },
    /// Another worker of the model holds the prompt further.
    Elsewhere,
    /// Nobody holds the prompt further: it is new from here on, or names, salt, adapter or items
    /// differ from what was announced.
    Unknown,
}

impl Missing {
    /// A stable label, as it appears in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Missing::Hole { .. } => "hole",
            Missing::Elsewhere => "elsewhere",
            Missing::Unknown => "unknown",
        }
    }
}

impl Scout {
    /// Says block by block why each worker scores what it does for a request, by worker.
    ///
    /// For people who wonder, and for tests: it costs many lookups for each worker, and holds back each
    /// worker's batches meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Scout::score`].
    pub fn explain(&self, request: &Request<'_>) -> Result<Vec<Explained>, Error> {
        self.check(&request.blocks)?;
        let roster = self.find_roster(request)?;
        let blocks = match request.blocks {
            Blocks::Prompt(prompt) => {
                let prompt = with_adapter(&roster, request, prompt);
                self.settle(&roster, &prompt);
                Blocks::Prompt(prompt)
            }
            names => names,
        };
        let edition = match &blocks {
            Blocks::Prompt(prompt) => {
                self.shared.editions.of(request.tenant, prompt.lora.map(|lora| lora.name))
            }
            _ => 0,
        };
        let mut question = Question { scout: self, blocks, edition, matches: Matches::default() };
        let is_asked = |id: &WorkerId| request.candidates.is_none_or(|asked| asked.contains(id));
        let mut explained = Vec::new();
        for id in roster.ids().iter().filter(|id| is_asked(id)) {
            let worker = self.directory.read().get(*id).cloned();
            // One that was unregistered meanwhile is not there.
            explained.extend(worker.map(|worker| question.about(&worker)));
        }
        Ok(explained)
    }
}

/// A request that is asked again and again.
struct Question<'a> {
    scout: &'a Scout,
    blocks: Blocks<'a>,
    edition: u32,
    matches: Matches,
}

/// Whom a lookup is about.
#[derive(Clone, Copy)]
struct Subject<'a> {
    space: SpaceId,
    facts: &'a GroupFacts,
    /// Everyone if absent.
    worker: Option<WorkerId>,
}

impl Question<'_> {
    fn about(&mut self, worker: &Worker) -> Explained {
        let stream = worker.stream.lock();
        let lost = self.scout.shared.index.evicted(worker.id);
        let reading = worker.post.cell().read().with_loss(lost);
        let groups = stream.groups().to_vec();
        let computes_names = matches!(stream.contract(), Status::Verified(_));
        let groups = groups.iter().map(|facts| self.group(worker, facts)).collect();
        drop(stream);
        Explained {
            worker: worker.id,
            pod: worker.registration.pod.clone(),
            rank: worker.registration.rank,
            trust: reading.trust(),
            as_of: reading.as_of(),
            computes_names,
            groups,
        }
    }

    fn group(&mut self, worker: &Worker, facts: &GroupFacts) -> ExplainedGroup {
        let subject = Subject { space: worker.space, facts, worker: Some(worker.id) };
        let blocks = self.len(facts.shape);
        let (held, next) = self.held(subject, blocks);
        let by_content = self.lookup(subject, blocks, false, false).map_or(0, |m| m.leading[3]);
        let mut told = Told { stretches: Vec::new(), is_cut: false };
        let end = held.leading[3];
        // What matches by content does so from the beginning.
        for (from, to, known_by) in
            [(0, by_content.min(end), KnownBy::Content), (by_content.min(end), end, KnownBy::Name)]
        {
            let (before, after) = (self.fastest(subject, from), self.fastest(subject, to));
            self.tell(subject, (from, before), (to, after), known_by, &mut told);
        }
        let why = |question: &mut Self| match next {
            Some(next) => Missing::Hole { next },
            None if question.furthest(subject, blocks) > end => Missing::Elsewhere,
            None => Missing::Unknown,
        };
        let divergence = (end < blocks).then(|| Divergence { block: end, why: why(self) });
        let Told { stretches, is_cut } = told;
        ExplainedGroup {
            facts: *facts,
            blocks,
            leading: held.leading,
            stretches,
            is_cut,
            divergence,
        }
    }

    fn len(&self, shape: Shape) -> u32 {
        let blocks = match &self.blocks {
            Blocks::Prompt(prompt) => shape.blocks_in(prompt.token_ids.len()),
            Blocks::Names { names, block_size } if *block_size == shape.size => names.len(),
            Blocks::Local { hashes, block_size } if shape == Shape::plain(*block_size) => {
                hashes.len()
            }
            Blocks::Names { .. } | Blocks::Local { .. } => 0,
        };
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// Tells blocks `a..b` apart by their tiers, given how many of those before each are in which.
    fn tell(
        &mut self,
        subject: Subject<'_>,
        a: (u32, [u32; 4]),
        b: (u32, [u32; 4]),
        known_by: KnownBy,
        told: &mut Told,
    ) {
        let ((from, before), (to, after)) = (a, b);
        if from >= to || told.is_cut {
            return;
        }
        let tier = (0..4).find(|&t| after[t].saturating_sub(before[t]) == to - from);
        if let Some(tier) = tier.map(|t| Tier::KNOWN[t]) {
            let count = told.stretches.len();
            match told.stretches.last_mut() {
                Some(last) if (last.tier, last.known_by) == (tier, known_by) => last.to = to,
                _ if count == MOST_STRETCHES => told.is_cut = true,
                _ => told.stretches.push(Stretch { from, to, tier, known_by }),
            }
            return;
        }
        if to - from == 1 {
            // A copy was given up for lack of memory while this was asked.
            told.is_cut = true;
            return;
        }
        let middle = from + (to - from) / 2;
        let between = (middle, self.fastest(subject, middle));
        self.tell(subject, a, between, known_by, told);
        self.tell(subject, between, b, known_by, told);
    }

    /// Of the first `blocks` blocks, as far as they are held, how many have which fastest tier.
    fn fastest(&mut self, subject: Subject<'_>, blocks: u32) -> [u32; 4] {
        self.lookup(subject, blocks, true, false).map_or([0; 4], |m| m.fastest)
    }

    /// How far the worker holds the prompt, and the next block that it holds on its GPU behind that.
    fn held(&mut self, subject: Subject<'_>, blocks: u32) -> (Match, Option<u32>) {
        let nothing = Match {
            worker: WorkerId(0),
            group: subject.facts.group,
            leading: [0; 4],
            fastest: [0; 4],
        };
        let held = self.lookup(subject, blocks, true, true).unwrap_or(nothing);
        let group = subject.facts.group;
        let spans = self.matches.spans.iter().filter(|span| span.group == group);
        let starts = spans.map(|span| span.start).filter(|&start| start > held.leading[3]);
        (held, starts.min())
    }

    /// How far anyone of the same model holds the prompt.
    fn furthest(&mut self, subject: Subject<'_>, blocks: u32) -> u32 {
        self.lookup(Subject { worker: None, ..subject }, blocks, true, false);
        self.matches.classes.iter().map(|class| class.leading[3]).max().unwrap_or(0)
    }

    /// One lookup of the prompt's first `blocks` blocks; the match of the subject's group.
    fn lookup(
        &mut self,
        subject: Subject<'_>,
        blocks: u32,
        names: bool,
        spans: bool,
    ) -> Option<Match> {
        let Subject { space, facts, worker } = subject;
        let shared = &self.scout.shared;
        let mut digests = Vec::new();
        self.matches.clear();
        let asked = Asked::new(shared, &self.blocks, self.edition, facts.shape, &mut digests)?;
        let mut beginning = Beginning { asked, blocks: blocks as usize, names };
        let candidates = worker.as_slice();
        let query = Query {
            space,
            shape: facts.shape,
            candidates: worker.is_some().then_some(candidates),
            spans,
        };
        shared.index.lookup(&query, &mut beginning, &mut self.matches);
        self.matches.iter().find(|found| found.group == facts.group)
    }
}

struct Told {
    stretches: Vec<Stretch>,
    is_cut: bool,
}

/// The first blocks of a prompt; or those that match by content alone.
struct Beginning<'a> {
    asked: Asked<'a>,
    blocks: usize,
    names: bool,
}

impl BlockSource for Beginning<'_> {
    fn len(&self) -> usize {
        self.asked.len().min(self.blocks)
    }

    fn digests(&mut self, from: usize, least: usize) -> &[Digest] {
        let most = self.len().saturating_sub(from);
        let digests = self.asked.digests(from, least);
        &digests[..digests.len().min(most)]
    }

    fn name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        if self.names { self.asked.name(vocabulary, block) } else { None }
    }

    fn second_name(&mut self, vocabulary: VocabularyId, block: usize) -> Option<Name> {
        if self.names { self.asked.second_name(vocabulary, block) } else { None }
    }
}
