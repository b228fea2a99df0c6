//! Answers from a store that others write.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::facts::{WorkerFacts, adapters_from_json};
use super::writer::AGAIN;
use super::{space_text, worker_text};
use crate::block::{SpaceId, WorkerId};
use crate::error::{Error, ErrorKind};
use crate::index::Query;
use crate::index::redis::{Notes, RedisIndex};
use crate::ingest::snapshot::KeptContract;
use crate::ingest::verify::Status;
use crate::ingest::{Reason, Trust};
use crate::score::Weights;
use crate::scout::prompt::Asked;
use crate::scout::query::{Begun, Work, credit_general, credit_plain, has};
use crate::scout::ranking::{Answer, Ranking};
use crate::scout::roster::{Plain, Roster};
use crate::scout::standing::Standing;
use crate::scout::{Adapter, Options, Registration, Request, Scout, Scratch, WorkerStatus};

/// The note about adapters; notes about workers are called by their texts, which are lists.
pub(super) const ADAPTERS: &str = "adapters";

/// How a [`Reader`] answers.
///
/// # Defaults
///
/// The defaults of [`Weights`]; `deadline` 100 ms: two round trips of the default `read_deadline`;
/// `stale_after` 10 s; 32 MiB of chains.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// What a block is worth in each tier.
    pub weights: Weights,
    /// How long an answer may take in all; afterwards it says that the store did not answer.
    pub deadline: Duration,
    /// How long what is known of workers counts after it was read last.
    pub stale_after: Duration,
    /// See [`Options::chain_memory`].
    pub chain_memory: usize,
}

impl Default for ReaderOptions {
    fn default() -> ReaderOptions {
        let Options { weights, chain_memory, .. } = Options::default();
        ReaderOptions {
            weights,
            deadline: Duration::from_millis(100),
            stale_after: Duration::from_secs(10),
            chain_memory,
        }
    }
}

/// A worker as a reader knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownWorker {
    /// Its number here.
    pub worker: WorkerId,
    /// What its owner said last.
    pub facts: WorkerFacts,
    /// Who keeps its part of the store.
    pub owner: String,
    /// Since when nobody speaks of it although nobody took it back: the store has lost who said so, perhaps.
    unheard: Option<Instant>,
}

/// Answers the same questions as a [`Scout`] from a store that others write, and hears no engine itself.
///
/// What it has to know of workers it reads now and then ([`refresh`](Reader::refresh)), what they hold with each
/// question. An answer holds all up to the batch that it names; of batches after it may show a part.
#[derive(Debug)]
pub struct Reader {
    index: Arc<RedisIndex>,
    /// Who is who; its own index stays empty.
    scout: Scout,
    options: ReaderOptions,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    workers: BTreeMap<WorkerId, KnownWorker>,
    by_text: HashMap<String, WorkerId>,
    adapters: Vec<u8>,
    /// Those that no owner speaks of.
    own_adapters: HashMap<(String, String), Adapter>,
    read: Option<Instant>,
}

impl Reader {
    /// A reader of a store, which need not be there yet. It asks for the store's secret.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] while the store is not there: to be tried again.
    pub async fn open(index: Arc<RedisIndex>, options: ReaderOptions) -> Result<Reader, Error> {
        let key = index.digest_key().await?;
        let scout = Scout::new(Options {
            weights: options.weights,
            digest_key: Some(key),
            chain_memory: options.chain_memory,
            ..Options::default()
        })?;
        Ok(Reader { index, scout, options, known: Mutex::default() })
    }

    /// Reads what owners say of workers. To be called every half second or so.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] without a server: what was known stays, and is marked once it is older than
    /// [`ReaderOptions::stale_after`].
    pub async fn refresh(&self) -> Result<(), Error> {
        let said = self.index.announced().await?;
        let workers = best(&said);
        self.adapters(&said);
        let mut strange: HashSet<(SpaceId, crate::block::VocabularyId)> = HashSet::new();
        let mut gone = {
            let known = self.known.lock();
            known.by_text.clone()
        };
        for (text, (facts, owner, lives)) in workers {
            gone.remove(&text);
            let Some((worker, space)) = self.acquaint(&text, &facts)? else { continue };
            if let Some(contract) =
                facts.contract.restore(self.scout.shared.candidates.contracts())?
            {
                let vocabulary = self.scout.shared.vocabularies.write().shared(space, &contract);
                self.index.name_vocabulary(vocabulary, &facts.vocabulary);
                strange.insert((space, vocabulary));
            }
            let trust = if lives { facts.trust } else { Trust::Degraded(Reason::Store) };
            let said = Standing { trust, as_of: facts.as_of, groups: 0 };
            if let Some(of) = self.scout.directory.read().get(worker) {
                of.say(said, &facts.groups, &self.scout.shared.generation);
            }
            let mut known = self.known.lock();
            let facts = WorkerFacts { trust, ..facts };
            let unheard = None;
            known.workers.insert(worker, KnownWorker { worker, facts, owner, unheard });
            known.by_text.insert(text, worker);
        }
        let speaking: HashSet<&str> =
            said.iter().filter(|of| !of.notes.is_empty()).map(|of| of.owner.as_str()).collect();
        for (text, worker) in gone {
            if !self.is_missed(worker, &speaking) {
                self.part(&text, worker);
            }
        }
        for (space, vocabulary) in strange {
            self.index.understand(space, vocabulary).await?;
        }
        self.known.lock().read = Some(Instant::now());
        Ok(())
    }

    /// The worker's numbers here; a new one, or one that serves something else by now, gets new ones.
    fn acquaint(
        &self,
        text: &str,
        facts: &WorkerFacts,
    ) -> Result<Option<(WorkerId, SpaceId)>, Error> {
        let WorkerFacts { tenant, pod, rank, model, .. } = facts;
        if text != worker_text(tenant, pod, *rank) {
            // Somebody speaks for another worker than he says.
            return Ok(None);
        }
        let (known, was_missed) = {
            let known = self.known.lock();
            let worker = known.by_text.get(text).copied();
            let of = worker.and_then(|worker| known.workers.get(&worker));
            (worker, of.is_some_and(|of| of.unheard.is_some()))
        };
        if let Some(worker) = known {
            let directory = self.scout.directory.read();
            // After the store lost who spoke for it, it is met as if it were new.
            if let Some(found) = directory.get(worker)
                && found.registration.model == *model
                && !was_missed
            {
                return Ok(Some((worker, found.space)));
            }
            drop(directory);
            self.part(text, worker);
        }
        let registration = Registration {
            rank: *rank,
            tenant: tenant.clone(),
            model: model.clone(),
            ..Registration::new(pod.clone(), "")
        };
        let (worker, space) = {
            let mut directory = self.scout.directory.write();
            let added = directory.add(registration);
            self.scout.shared.generation.turn();
            (added.id, added.space)
        };
        self.index.name_worker(worker, text);
        self.index.name_space(space, &space_text(tenant, model.as_deref()));
        Ok(Some((worker, space)))
    }

    /// Whether it is only that the store does not have what the worker's owner said, for as long as what was read
    /// before counts; such a worker is not believed.
    fn is_missed(&self, worker: WorkerId, speaking: &HashSet<&str>) -> bool {
        let mut known = self.known.lock();
        let Some(missed) = known.workers.get_mut(&worker) else { return false };
        // Until everything was said anew.
        let missed_for = self.options.stale_after.max(AGAIN * 3);
        let since = *missed.unheard.get_or_insert_with(Instant::now);
        if speaking.contains(missed.owner.as_str()) || since.elapsed() > missed_for {
            return false;
        }
        missed.facts.trust = Trust::Degraded(Reason::Store);
        let WorkerFacts { trust, as_of, ref groups, .. } = missed.facts;
        if let Some(of) = self.scout.directory.read().get(worker) {
            of.say(Standing { trust, as_of, groups: 0 }, groups, &self.scout.shared.generation);
        }
        true
    }

    /// Nobody speaks of a worker any more.
    fn part(&self, text: &str, worker: WorkerId) {
        self.scout.directory.write().remove(worker);
        self.scout.shared.generation.turn();
        let mut known = self.known.lock();
        known.workers.remove(&worker);
        known.by_text.remove(text);
    }

    fn adapters(&self, said: &[Notes]) {
        let notes = said.iter().filter(|of| of.lives).flat_map(|of| &of.notes);
        let Some((_, note)) = notes.into_iter().find(|(about, _)| about == ADAPTERS) else {
            return;
        };
        let mut known = self.known.lock();
        if known.adapters == *note {
            return;
        }
        let Ok((adapters, editions)) = adapters_from_json(note) else { return };
        let mut gone: HashSet<_> =
            self.scout.adapters().into_iter().map(|of| (of.tenant, of.name)).collect();
        for of in adapters {
            let adapter = Adapter { model: of.model, id: of.id, path: of.path };
            self.scout.register_adapter(&of.tenant, &of.name, adapter);
            gone.remove(&(of.tenant, of.name));
        }
        for name in gone {
            match known.own_adapters.get(&name) {
                Some(own) => self.scout.register_adapter(&name.0, &name.1, own.clone()),
                None => drop(self.scout.unregister_adapter(&name.0, &name.1)),
            }
        }
        self.scout.shared.editions.set(&editions);
        known.adapters = note.clone();
    }

    /// Makes an adapter's name stand for its model, beside those that owners speak of.
    pub fn register_adapter(&self, tenant: &str, name: &str, adapter: Adapter) {
        let named = (tenant.to_owned(), name.to_owned());
        self.known.lock().own_adapters.insert(named, adapter.clone());
        self.scout.register_adapter(tenant, name, adapter);
    }

    /// The store.
    pub fn index(&self) -> &RedisIndex {
        &self.index
    }

    /// How long ago workers were read; `None` before the first time.
    pub fn age(&self) -> Option<Duration> {
        self.known.lock().read.map(|read| read.elapsed())
    }

    /// Every worker, by number.
    pub fn workers(&self) -> Vec<KnownWorker> {
        self.known.lock().workers.values().cloned().collect()
    }

    /// Every worker as an operator sees it, by tenant, pod and rank; what only whoever follows its engine can know is
    /// as if nothing had happened.
    pub fn statuses(&self) -> Vec<WorkerStatus> {
        let is_stale = self.age().is_none_or(|age| age > self.options.stale_after);
        let mut all = self.scout.workers();
        let known = self.known.lock();
        for status in &mut all {
            let Some(KnownWorker { facts, .. }) = known.workers.get(&status.worker) else {
                continue;
            };
            status.groups = facts.groups.clone();
            let contract = facts.contract.restore(self.scout.shared.candidates.contracts());
            status.contract = match (&facts.contract, contract) {
                (_, Ok(Some(contract))) => Status::Verified(contract),
                (KeptContract::Private, _) => Status::Private,
                _ => Status::Undecided,
            };
            if is_stale {
                status.trust = Trust::Degraded(Reason::Store);
            }
        }
        all
    }

    /// The worker of this identity.
    pub fn find(&self, tenant: &str, pod: &str, rank: u32) -> Option<WorkerId> {
        self.scout.find(tenant, pod, rank)
    }

    /// The workers of a pod, by rank.
    pub fn ranks(&self, tenant: &str, pod: &str) -> Vec<WorkerId> {
        self.scout.ranks(tenant, pod)
    }

    /// Ranks the workers by what they hold of a prompt, as [`Scout::score`] does.
    ///
    /// Where the store does not answer in time, or not at all, every worker is in the answer, holds nothing, and
    /// is [`Degraded`](Trust::Degraded) for the reason [`Store`](Reason::Store). Where a part of a cluster is away that
    /// the prompt comes to, they are so, too, with what they hold up to there.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) before workers were read for the first time;
    /// [`UnknownModel`](ErrorKind::UnknownModel) when no worker of the tenant serves the model;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for hashes of single blocks, which are not in a store.
    pub async fn score<'s>(
        &self,
        request: &Request<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<Ranking<'s>, Error> {
        let age = self.age();
        let Some(age) = age else {
            let why = "the store was not reached yet, so nobody knows which workers there are";
            return Err(Error::unavailable(why));
        };
        self.scout.check(&request.blocks)?;
        let Scratch { roster, answer, work } = scratch;
        let roster = self.scout.roster(roster, request)?;
        let begun = self.scout.begin(roster, request, answer, work);
        roster.read(&mut answer.readings);
        let any = roster.shapes.iter().any(|shape| shape.blocks_in(begun.length.tokens) > 0);
        let lookup = self.look_up(roster, &begun, answer, work);
        let found = tokio::time::timeout(self.options.deadline, lookup).await;
        let (is_answered, is_whole) = match found {
            Ok(Ok(is_whole)) => (true, is_whole),
            Ok(Err(error)) if is_away(&error) => (false, false),
            Ok(Err(error)) => return Err(error),
            Err(_late) => (false, false),
        };
        if !is_answered {
            // What was found so far is part of an answer.
            self.scout.begin(roster, request, answer, work);
            roster.read(&mut answer.readings);
        }
        if !is_whole || age > self.options.stale_after {
            for reading in &mut answer.readings {
                *reading = reading.without_store();
            }
        }
        // Behind the lookup: a part that was begun anew meanwhile was seen in part at most.
        if is_answered && any {
            self.mark_unkept(roster, answer);
        }
        answer.rank();
        Ok(Ranking::new(roster, answer))
    }

    /// Says of which workers nobody has the whole part in the store.
    fn mark_unkept(&self, roster: &Roster, answer: &mut Answer) {
        let kept: Vec<HashSet<WorkerId>> =
            roster.spaces.iter().map(|&space| self.index.kept_in(space)).collect();
        for (row, worker) in roster.ids().iter().enumerate() {
            if !kept.iter().any(|kept| kept.contains(worker)) {
                answer.readings[row] = answer.readings[row].without_store();
            }
        }
    }

    /// Credits what the store says; whether that is all.
    async fn look_up(
        &self,
        roster: &Roster,
        begun: &Begun<'_>,
        answer: &mut Answer,
        work: &mut Work,
    ) -> Result<bool, Error> {
        let &Begun { ref blocks, length, edition } = begun;
        let (shared, weights) = (&self.scout.shared, &self.options.weights);
        let Work { candidates, digests, matches, found, spans, .. } = work;
        let candidates = answer.asked().map(|_| &candidates[..]);
        if let Some(plain @ Plain { space, shape, .. }) = roster.plain {
            let asked = Asked::new(shared, blocks, edition, shape, digests);
            let Some(mut asked) = asked else { return Ok(true) };
            let query = Query { space, shape, candidates, spans: false };
            let is_whole = self.index.lookup_present(&query, &mut asked, matches).await?;
            credit_plain(roster, plain, matches, length, weights, answer);
            return Ok(is_whole);
        }
        let mut is_whole = true;
        found.clear();
        spans.clear();
        for &shape in &roster.shapes {
            // A group's matches are those of its own shape.
            let fits = |worker, group| {
                let row = roster.row(worker);
                row.is_some_and(|row| has(&roster.rows()[row].groups.facts, group, shape))
            };
            for &space in &roster.spaces {
                let asked = Asked::new(shared, blocks, edition, shape, digests);
                let Some(mut asked) = asked else { continue };
                let query = Query { space, shape, candidates, spans: roster.spans };
                is_whole &= self.index.lookup_present(&query, &mut asked, matches).await?;
                found.extend(matches.iter().filter(|m| fits(m.worker, m.group)));
                spans.extend(matches.spans.iter().filter(|s| fits(s.worker, s.group)));
            }
        }
        credit_general(roster, found, spans, length, weights, answer);
        Ok(is_whole)
    }
}

/// Whether the store is away, slow, or refuses this client: no fault of who asks.
fn is_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied | ErrorKind::Decode)
}

/// Of what owners say of each worker, the word of whoever lives, then of the latest life, then of the latest batch.
fn best(said: &[Notes]) -> BTreeMap<String, (WorkerFacts, String, bool)> {
    let mut best: BTreeMap<String, (WorkerFacts, String, bool)> = BTreeMap::new();
    for Notes { owner, lives, notes } in said {
        for (about, note) in notes.iter().filter(|(about, _)| about != ADAPTERS) {
            // What cannot be read is as if it were not said: others' words still count.
            let Ok(facts) = WorkerFacts::from_json(note) else { continue };
            let rank = |facts: &WorkerFacts, lives| (lives, facts.life, facts.as_of);
            let known = best.get(about).map(|(known, _, lives)| rank(known, *lives));
            if known.is_none_or(|known| known < rank(&facts, *lives)) {
                best.insert(about.clone(), (facts, owner.clone(), *lives));
            }
        }
    }
    best
}
