//! What each request means, whatever protocol it came in.
//!
//! Everything here may wait for a lock or for the receiver's thread: asynchronous callers go
//! through a blocking thread, except for the scoring of short prompts.

mod dialled;
mod discovered;
mod dump;
pub(crate) mod external;
mod labels;
mod peers;
mod picks;
mod question;
mod readiness;
mod receipts;
mod returning;
mod status;
mod texts;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kvscout::block::{BlockSize, WorkerId};
use kvscout::ingest::snapshot::WorkerState;
use kvscout::ingest::zmq::{
    Endpoint, Mode, Receiver, Replays, RoundOptions, Source, SourceId, SourceStatus,
};
use kvscout::ingest::{Reason, ReplayOptions, Trust};
use kvscout::score::Score;
use kvscout::scout::{
    self, Blocks, Options, Ranked, Ranking, Registration, Request, Scout, Scratch, WorkerStatus,
};
use kvscout::{Error, ErrorKind};
use parking_lot::Mutex;
use tracing::info;

use self::discovered::Discoveries;
pub(crate) use self::discovered::{Discovery, Sighting};
pub(crate) use self::dump::Stored;
use self::external::External;
use self::labels::Labelled;
pub(crate) use self::labels::{Labels, Wanted};
use self::picks::Picks;
pub(crate) use self::question::{Adapter, Candidate, Medium, Question};
use self::readiness::Readiness;
use self::receipts::Receipts;
pub(crate) use self::receipts::{BOUNDS, ReceiptOptions, Record, histogram};
use self::returning::Attached;
use self::texts::Texts;
use crate::config::{Config, Dialects, OnGap};
use crate::dial::Dial;
use crate::follow::{Follower, Replayer};
use crate::intake::{Feed, Heard, Intake, Route, Switchboard};
use crate::metrics::{Metrics, Totals};
use crate::state::{self, Report, State};
use crate::store::{Behind, Instead, Shared, SharedReport};

/// Why a request was not done.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The worker is registered with other facts, or fed in another way.
    Conflict(String),
    /// No such worker.
    UnknownWorker(String),
    /// No worker serves the model.
    UnknownModel(String),
    /// No such replica.
    UnknownPeer(String),
    /// One of the candidates of a question is wrong.
    Candidate {
        /// Which one.
        n: usize,
        /// What is wrong with it.
        wrong: String,
    },
    /// A pod has several ranks, and none is named.
    Rank(String),
    /// A value is out of range or contradicts another.
    Invalid(String),
    /// The configuration does not allow it.
    NotAllowed(String),
    /// A resource is not there at the moment.
    Unavailable(String),
    /// Only a kvscout that follows engines can do it.
    Elsewhere(&'static str),
}

impl Refusal {
    /// What was wrong and what would be right.
    pub(crate) fn into_message(self) -> String {
        match self {
            Refusal::Conflict(message)
            | Refusal::UnknownWorker(message)
            | Refusal::UnknownModel(message)
            | Refusal::UnknownPeer(message)
            | Refusal::Rank(message)
            | Refusal::Candidate { wrong: message, .. }
            | Refusal::Invalid(message)
            | Refusal::NotAllowed(message)
            | Refusal::Unavailable(message) => message,
            Refusal::Elsewhere(what) => elsewhere(what),
        }
    }
}

/// Why a reader of a store does not do something.
pub(crate) fn elsewhere(what: &str) -> String {
    format!(
        "this kvscout answers from a store (store.mode \"redis\") and follows no engine, so it cannot {what}: ask one \
         that keeps the store"
    )
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let message = error.to_string();
        match error.kind() {
            ErrorKind::UnknownWorker => Refusal::UnknownWorker(message),
            ErrorKind::UnknownModel => Refusal::UnknownModel(message),
            // A store that refuses the daemon is no fault of who asks.
            ErrorKind::Unavailable | ErrorKind::Denied => Refusal::Unavailable(message),
            _ => Refusal::Invalid(message),
        }
    }
}

/// A worker to be registered, with its own source.
#[derive(Debug)]
pub(crate) struct Enrolment {
    /// Who it is.
    pub(crate) registration: Registration,
    /// Where its batches come from.
    pub(crate) endpoint: Endpoint,
    /// Who dials.
    pub(crate) mode: Mode,
    /// Where its past batches are asked for.
    pub(crate) replay: Option<Endpoint>,
    /// Who wants it.
    pub(crate) origin: Origin,
    /// What routers tell it apart by; the ones that it has if none are given.
    pub(crate) labels: Option<Labels>,
}

/// Who had a worker registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The configuration, for as long as it does.
    Configured,
    /// A request, until another one takes it back.
    Requested,
    /// The so-manieth name of the configuration, for as long as its address is there.
    Discovered(usize),
}

/// A worker with everything around it.
#[derive(Debug)]
pub(crate) struct WorkerView {
    /// What the index knows.
    pub(crate) status: WorkerStatus,
    /// How it is fed.
    pub(crate) feed: Option<Feed>,
    /// What its own source has counted.
    pub(crate) source: Option<SourceStatus>,
    /// What routers tell it apart by.
    pub(crate) labels: Labels,
    /// What it delivered of what was expected, as far as routers said.
    pub(crate) receipts: Option<Record>,
    /// What came last of it.
    pub(crate) heard: Option<Heard>,
    /// How long it has published nothing although it could: at most since it was registered here, or its
    /// link came up. None while that is down.
    pub(crate) quiet: Option<Duration>,
}

/// One worker in an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'s> {
    /// The worker, and what it holds. Its weighted score includes what is predicted.
    pub(crate) ranked: Ranked<'s>,
    /// Leading blocks beyond those that it holds which it was given to compute lately.
    pub(crate) predicted_blocks: u32,
    /// Whether it is left out of the ranking because it did not deliver what it announced.
    pub(crate) quarantined: bool,
    /// Whether it counts as holding nothing, for that or any other reason.
    pub(crate) excluded: bool,
}

impl WorkerView {
    /// Where its batches come from: the port in use, where any was asked for.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        match (&self.source, &self.feed) {
            // By its name, if it has one.
            (_, Some(Feed::Source { endpoint, mode: Mode::Connect, .. })) => Some(endpoint),
            (Some(source), _) => Some(&source.endpoint),
            (None, Some(Feed::Source { endpoint, .. })) => Some(endpoint),
            _ => None,
        }
    }

    /// Where its past batches are asked for.
    pub(crate) fn replay(&self) -> Option<&Endpoint> {
        match &self.feed {
            Some(Feed::Source { replay, .. }) => replay.as_ref(),
            _ => None,
        }
    }
}

/// The daemon without its protocols.
#[derive(Debug)]
pub(crate) struct Service {
    scout: Arc<Scout>,
    // Above the replays: what is received may ask for some.
    receiver: Receiver,
    replays: Replays,
    replay: ReplayOptions,
    on_gap: OnGap,
    dial: Dial,
    switchboard: Arc<Switchboard>,
    next_source: AtomicU32,
    /// One registration or removal at a time; never taken by the receiver's thread.
    enrolling: Mutex<()>,
    /// Configured sources that are not added yet, and names that nobody answered for, with the reason.
    pending: Mutex<BTreeMap<String, String>>,
    /// Workers of a snapshot whose configured sources are not added yet.
    returning: Mutex<BTreeMap<WorkerId, Attached>>,
    /// Those of a snapshot whose names have no address yet.
    unresolved: Mutex<Vec<WorkerState>>,
    readiness: Readiness,
    state: Option<State>,
    shared: Option<Shared>,
    labels: Labelled,
    peers: Mutex<BTreeSet<String>>,
    discoveries: Discoveries,
    picks: Picks,
    receipts: Receipts,
    external: External,
    texts: Texts,
    departed: Mutex<Totals>,
    metrics: Metrics,
    index_budget: usize,
    began: Instant,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Service {
    /// A service with the workers that it had before, if a snapshot says so, whose receiver runs.
    ///
    /// # Errors
    ///
    /// An option of the configuration is out of range, a tokenizer cannot be read, the state directory cannot be used, or the
    /// system gives no thread, descriptor or randomness.
    pub(crate) fn start(config: &Config) -> Result<Service, Error> {
        let mut options = Options {
            seeds: config.seeds.clone(),
            weights: config.weights,
            limits: config.events,
            memory: config.memory,
            digest_key: None,
            mirror: None,
            chain_memory: config.chain_memory,
            anchor_memory: config.anchor_memory,
            local_hashes: match config.dialects {
                Dialects { dynamo_hashes: true, dynamo_blocks, .. } => dynamo_blocks.get(),
                _ => 0,
            },
        };
        let texts = Texts::new(config)?;
        let state = State::open(config)?;
        let shared = match config.store.is_reader() {
            true => Instead::open(config)?.map(|instead| Shared::Instead(Arc::new(instead))),
            false => {
                let directory = state.as_ref().map(State::directory);
                Behind::open(config, directory)?.map(Shared::Behind)
            }
        };
        if let Some(Shared::Behind(behind)) = &shared {
            options.digest_key = Some(behind.digest_key());
            options.mirror = Some(behind.mirror());
        }
        let (scout, workers) = begin(config, options, state.as_ref(), shared.as_ref())?;
        let scout = Arc::new(scout);
        for entry in &config.adapters {
            scout.register_adapter(&entry.tenant, &entry.name, entry.adapter());
        }
        let switchboard = Arc::new(Switchboard::default());
        let began = Instant::now();
        let follower = |asker| Follower {
            scout: Arc::clone(&scout),
            switchboard: Arc::clone(&switchboard),
            asker,
            began,
        };
        let max_message_bytes = config.zmq.max_message_bytes;
        let rounds = RoundOptions { max_message_bytes, ..config.rounds.clone() };
        let replays = Replays::start(rounds, |asker| {
            Replayer::new(follower(asker), config.silent_after_down)
        })?;
        let follower = follower(replays.asker());
        let intake = Intake::new(follower, config.events, config.limits.topic_workers);
        let mut pending = BTreeMap::new();
        for entry in &config.sources {
            pending.insert(format!("source {:?}", entry.name), "not added yet".to_owned());
        }
        for entry in &config.discover {
            pending.insert(discovered::pending_name(entry), "not resolved yet".to_owned());
        }
        if config.trust_topics {
            pending.insert(TOPIC_ENDPOINT.to_owned(), "not bound yet".to_owned());
        }
        let service = Service {
            scout,
            receiver: Receiver::start(config.zmq.clone(), intake)?,
            replays,
            replay: config.replay,
            on_gap: config.on_gap,
            dial: Dial::new(&config.dial, config.listen),
            switchboard,
            next_source: AtomicU32::new(0),
            enrolling: Mutex::default(),
            pending: Mutex::new(pending),
            returning: Mutex::default(),
            unresolved: Mutex::default(),
            readiness: Readiness::new(config.ready),
            state,
            shared,
            labels: Labelled::default(),
            discoveries: Discoveries::new(config),
            peers: Mutex::new(config.state.replicas().cloned().collect()),
            picks: Picks::new(config.predict, config.predict_weight)?,
            receipts: Receipts::new(config.receipts),
            external: External::new(config.dialects.sglang_blocks.get()),
            texts,
            departed: Mutex::default(),
            metrics: Metrics::new(config.most_pods),
            index_budget: config.memory.budget,
            began,
        };
        service.take_back(config, workers);
        Ok(service)
    }

    /// The store behind memory, if there is one.
    pub(crate) fn behind(&self) -> Option<&Behind> {
        match &self.shared {
            Some(Shared::Behind(behind)) => Some(behind),
            _ => None,
        }
    }

    /// The store in memory's place, if it is.
    pub(crate) fn instead(&self) -> Option<&Arc<Instead>> {
        match &self.shared {
            Some(Shared::Instead(instead)) => Some(instead),
            _ => None,
        }
    }

    /// What there is to count of a shared store.
    pub(crate) fn shared_report(&self) -> Option<SharedReport> {
        self.shared.as_ref().map(Shared::report)
    }

    /// Whether answers wait for a store, so that they are not given on a thread that must not wait.
    pub(crate) fn waits(&self) -> bool {
        self.instead().is_some()
    }

    /// Refuses what only whoever follows engines can do.
    pub(crate) fn follows_engines(&self, to: &'static str) -> Result<(), Refusal> {
        match self.instead() {
            Some(_) => Err(Refusal::Elsewhere(to)),
            None => Ok(()),
        }
    }

    /// What hears the engines.
    pub(crate) fn scout(&self) -> &Arc<Scout> {
        &self.scout
    }

    /// What routers tell a worker apart by.
    pub(crate) fn labels_of(&self, worker: WorkerId) -> Labels {
        self.labels.of(worker)
    }

    /// Adds every configured source that is not there yet; whether all are.
    pub(crate) fn add_configured(&self, config: &Config) -> bool {
        for entry in &config.sources {
            let added = (0..NonZeroU32::get(entry.ranks)).try_for_each(|rank| {
                self.register(discovered::enrolment(entry, rank, Origin::Configured)?)
            });
            self.note(&format!("source {:?}", entry.name), added);
        }
        let unbound = self.pending.lock().contains_key(TOPIC_ENDPOINT);
        if let (true, Some(bind)) = (unbound, &config.topic_bind) {
            self.note(TOPIC_ENDPOINT, self.bind_topics(bind, &config.topic_tenant));
        }
        self.pending.lock().is_empty()
    }

    fn note(&self, name: &str, added: Result<(), Refusal>) {
        let mut pending = self.pending.lock();
        match added {
            Ok(()) => pending.remove(name),
            Err(refusal) => pending.insert(name.to_owned(), refusal.into_message()),
        };
    }

    fn bind_topics(&self, bind: &Endpoint, tenant: &str) -> Result<(), Refusal> {
        let source = self.new_source();
        let route = Route::Topics { tenant: tenant.into() };
        self.switchboard.routes.write().insert(source, route);
        match self.receiver.add(source, Source::new(bind.clone(), Mode::BindShared)) {
            Ok(bound) => {
                info!(endpoint = %bound, "telling pods apart by their topics");
                Ok(())
            }
            Err(error) => {
                self.switchboard.routes.write().remove(&source);
                Err(error.into())
            }
        }
    }

    fn new_source(&self) -> SourceId {
        SourceId(self.next_source.fetch_add(1, Ordering::Relaxed))
    }

    /// What of the configuration is not there yet, with the reason.
    pub(crate) fn pending(&self) -> BTreeMap<String, String> {
        self.pending.lock().clone()
    }

    /// Registers a worker and begins to receive its batches. Doing so again changes nothing.
    pub(crate) fn register(&self, enrolment: Enrolment) -> Result<(), Refusal> {
        self.follows_engines("register a worker")?;
        if enrolment.mode == Mode::Connect && !enrolment.endpoint.is_connectable() {
            let endpoint = &enrolment.endpoint;
            return Err(Refusal::Invalid(format!(
                "{endpoint} cannot be dialled; name host and port"
            )));
        }
        // Before anyone has to wait for it: a name server may take its time.
        let dialled = self.dialled(&enrolment)?;
        let _one_at_a_time = self.enrolling.lock();
        self.make_way(&enrolment)?;
        let Enrolment { registration, endpoint, mode, replay, origin, labels } = enrolment;
        let (pod, rank) = (registration.pod.clone(), registration.rank);
        let conflict = |what: &str| {
            Refusal::Conflict(format!(
                "instance {pod:?} rank {rank} is registered {what}; unregister it first"
            ))
        };
        let source = self.new_source();
        let worker = {
            let mut feeds = self.switchboard.feeds.lock();
            let known = self.scout.find(&registration.tenant, &pod, rank);
            match known.map(|worker| (worker, feeds.get(&worker))) {
                Some((worker, Some(Feed::Source { endpoint: before, replay: past, .. }))) => {
                    let same = self.scout.worker(worker).map(|status| status.registration);
                    if same.as_ref() != Some(&registration) {
                        return Err(conflict(
                            "with another model, block size, version or hash profile",
                        ));
                    }
                    if *before != endpoint || *past != replay {
                        return Err(conflict(&format!("with endpoint {before}")));
                    }
                    labels.into_iter().for_each(|labels| self.labels.set(worker, labels));
                    return Ok(());
                }
                Some((_, Some(Feed::Topic))) => return Err(conflict("by its topic")),
                // One that returns is itself again.
                Some((_, None)) | None => {}
            }
            let model = registration.model.as_deref().map(Arc::from);
            let worker = self.scout.register(registration)?;
            if replay.is_some() {
                // Not the same in two daemons, which would else ask together.
                let seed = RandomState::new().build_hasher().finish();
                self.scout.follow(worker, self.replay, seed)?;
            }
            let past = dialled.replay.map(Arc::new);
            let route = Route::Worker { worker, pod: pod.as_str().into(), model, replay: past };
            self.switchboard.routes.write().insert(source, route);
            self.switchboard.down.lock().insert(source, Instant::now());
            let registered = Heard { at: Instant::now(), sequence: None };
            self.switchboard.heard.lock().insert(worker, registered);
            let (endpoint, dialled) = (endpoint.clone(), dialled.endpoint.clone());
            feeds.insert(worker, Feed::Source { source, endpoint, dialled, mode, replay, origin });
            labels.into_iter().for_each(|labels| self.labels.set(worker, labels));
            worker
        };
        if let Err(error) = self.receiver.add(source, Source::new(dialled.endpoint, mode)) {
            self.forget(worker)?;
            return Err(error.into());
        }
        info!(pod, rank, %endpoint, "registered");
        Ok(())
    }

    /// Makes an adapter's name stand for a model.
    pub(crate) fn register_adapter(&self, tenant: &str, name: &str, model: &str) {
        let adapter = scout::Adapter { model: model.to_owned(), id: None, path: None };
        self.scout.register_adapter(tenant, name, adapter);
    }

    /// Removes a pod's worker of one rank, or all of them, with their sources; returns the ranks.
    ///
    /// Only workers that serve `model` count, if it is given.
    pub(crate) fn unregister(
        &self,
        tenant: &str,
        pod: &str,
        rank: Option<u32>,
        model: Option<&str>,
    ) -> Result<Vec<u32>, Refusal> {
        self.follows_engines("unregister a worker")?;
        let _one_at_a_time = self.enrolling.lock();
        let mut removed = Vec::new();
        for worker in self.scout.ranks(tenant, pod) {
            let Some(status) = self.scout.worker(worker) else { continue };
            let Registration { rank: its_rank, model: serves, .. } = status.registration;
            let other_model = serves.is_some() && model.is_some() && serves.as_deref() != model;
            if other_model || rank.is_some_and(|rank| rank != its_rank) {
                continue;
            }
            self.forget(worker)?;
            info!(pod, rank = its_rank, "unregistered");
            removed.push(its_rank);
        }
        if removed.is_empty() {
            return Err(unknown_instance(tenant, pod, rank));
        }
        Ok(removed)
    }

    /// Ends a worker's source, then the worker; what they counted stays in the totals.
    fn forget(&self, worker: WorkerId) -> Result<(), Error> {
        // Held throughout, so that what leaves the workers is in the totals at once.
        let mut departed = self.departed.lock();
        let feed = self.switchboard.feeds.lock().get(&worker).cloned();
        if let Some(Feed::Source { source, .. }) = feed {
            if let Some(status) = self.receiver.status_of(source) {
                departed.add_source(&status);
            }
            // From here on no batch of it is applied.
            self.receiver.remove(source);
            self.switchboard.routes.write().remove(&source);
            self.switchboard.down.lock().remove(&source);
            self.replays.asker().forget(source);
        }
        if let Some(status) = self.scout.worker(worker) {
            departed.add_worker(&status);
        }
        let gone = self.scout.unregister(worker);
        self.switchboard.feeds.lock().remove(&worker);
        self.switchboard.heard.lock().remove(&worker);
        self.labels.forget(worker);
        self.picks.forget(worker);
        self.receipts.forget(worker);
        self.returning.lock().remove(&worker);
        gone
    }

    /// Forgets what a pod's worker of one rank holds, or all of them do; how many workers these are.
    pub(crate) fn clear_pod(
        &self,
        tenant: &str,
        pod: &str,
        rank: Option<u32>,
    ) -> Result<usize, Refusal> {
        self.follows_engines("clear a worker")?;
        let workers = self.workers_of(tenant, pod, rank);
        if workers.is_empty() {
            return Err(unknown_instance(tenant, pod, rank));
        }
        // One that was unregistered meanwhile holds nothing any more either.
        let cleared = workers.into_iter().filter(|&worker| self.scout.clear_worker(worker).is_ok());
        let cleared = cleared.count();
        info!(pod, rank, cleared, "cleared by request");
        Ok(cleared)
    }

    /// Forgets what the workers of a model hold; how many workers these are.
    pub(crate) fn clear_model(&self, tenant: &str, model: &str) -> Result<usize, Refusal> {
        self.follows_engines("clear a model")?;
        let cleared = self.scout.clear_model(tenant, model)?;
        info!(model, cleared, "cleared by request");
        Ok(cleared)
    }

    /// Forgets what anyone holds of an adapter.
    pub(crate) fn clear_adapter(&self, tenant: &str, adapter: &str) -> Result<(), Refusal> {
        self.follows_engines("clear an adapter")?;
        self.scout.clear_adapter(tenant, adapter);
        info!(adapter, "cleared by request");
        Ok(())
    }

    /// Forgets what the worker of a sleeping engine held.
    pub(crate) fn clear_sleeping(&self, worker: WorkerId) {
        // One that was unregistered meanwhile holds nothing any more either.
        let _ = self.scout.clear_worker(worker);
    }

    /// Says that nothing was heard of a worker for too long.
    pub(crate) fn silence(&self, worker: WorkerId) {
        // One that was unregistered meanwhile is in no answer.
        let _ = self.scout.silence(worker);
    }

    /// How many messages came from a worker's own source.
    pub(crate) fn messages_of(&self, worker: WorkerId) -> u64 {
        let feed = self.switchboard.feeds.lock().get(&worker).cloned();
        self.source_of(feed.as_ref()).map_or(0, |source| source.messages)
    }

    /// Scores, and hands the ranked workers to `read`.
    pub(crate) fn score<T>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(&[Row<'_>]) -> T,
    ) -> Result<T, Refusal> {
        let start = Instant::now();
        let answer = SCRATCH.with_borrow_mut(|scratch| {
            let ranked = self.rank(request, scratch)?;
            self.metrics.score_seconds.observe(start.elapsed().as_secs_f64());
            let mut rows = self.heard(ranked);
            self.count_lookup(request, &rows);
            self.picks.predict(request, &mut rows);
            Ok::<T, Error>(read(&rows))
        });
        Ok(answer?)
    }

    /// Counts what a lookup came to, before anything is predicted.
    fn count_lookup(&self, request: &Request<'_>, rows: &[Row<'_>]) {
        let tokens = match &request.blocks {
            Blocks::Prompt(prompt) => prompt.token_ids.len(),
            Blocks::Names { names, block_size } => names.len() * block_size.tokens(),
            Blocks::Local { hashes, block_size } => hashes.len() * block_size.tokens(),
        };
        let most = rows.iter().map(|row| row.ranked.score.matched_blocks).max();
        let first = rows.first().and_then(|row| row.ranked.score.expected_cached_tokens.ok());
        self.metrics.count_lookup(tokens as u64, most.unwrap_or(0), first.unwrap_or(0));
    }

    /// Who holds how much, by memory or by the store that answers in its place.
    fn rank<'s>(
        &self,
        request: &Request<'_>,
        scratch: &'s mut Scratch,
    ) -> Result<Ranking<'s>, Error> {
        match self.instead() {
            None => self.scout.score(request, scratch),
            Some(instead) => {
                let reader = instead.reader()?;
                instead.wait(reader.score(request, scratch))
            }
        }
    }

    /// The answer with the trust of workers that were never heard of, and without what workers hold that
    /// may have lost it, or that do not deliver.
    fn heard<'r>(&self, ranking: Ranking<'r>) -> Vec<Row<'r>> {
        let unheard =
            |row: &Row<'_>| row.ranked.trust == Trust::Exact && row.ranked.as_of.is_none();
        let row = |ranked| Row { ranked, predicted_blocks: 0, quarantined: false, excluded: false };
        let mut rows: Vec<Row<'r>> = ranking.iter().map(row).collect();
        if rows.iter().any(unheard) {
            let feeds = self.switchboard.feeds.lock();
            for Row { ranked, .. } in rows.iter_mut().filter(|row| unheard(row)) {
                let feed = feeds.get(&ranked.worker);
                ranked.trust = trust(ranked.trust, ranked.as_of, feed, &self.source_of(feed));
            }
        }
        for worker in self.receipts.quarantined(Instant::now()) {
            let row = rows.iter_mut().find(|row| row.ranked.worker == worker);
            row.into_iter().for_each(|row| row.quarantined = true);
        }
        let excludes = self.on_gap == OnGap::Exclude;
        let is_out = |row: &Row<'_>| row.quarantined || excludes && may_be_gone(row.ranked.trust);
        if rows.iter().any(is_out) {
            for row in rows.iter_mut().filter(|row| is_out(row)) {
                (row.ranked.score, row.excluded) = (Score::NOTHING, true);
            }
            // Stable: among equals the order stays.
            rows.sort_by(|a, b| b.ranked.score.weighted.total_cmp(&a.ranked.score.weighted));
        }
        rows
    }

    /// What a worker's own source has counted.
    fn source_of(&self, feed: Option<&Feed>) -> Option<SourceStatus> {
        match feed {
            Some(Feed::Source { source, .. }) => self.receiver.status_of(*source),
            _ => None,
        }
    }

    /// The workers of a pod: the one of a rank, or all.
    pub(crate) fn workers_of(&self, tenant: &str, pod: &str, rank: Option<u32>) -> Vec<WorkerId> {
        let reader = self.instead().map(|instead| instead.reader());
        match (reader, rank) {
            (None, Some(rank)) => self.scout.find(tenant, pod, rank).into_iter().collect(),
            (None, None) => self.scout.ranks(tenant, pod),
            (Some(Ok(reader)), Some(rank)) => reader.find(tenant, pod, rank).into_iter().collect(),
            (Some(Ok(reader)), None) => reader.ranks(tenant, pod),
            // Nobody is known before the store was read.
            (Some(Err(_)), _) => Vec::new(),
        }
    }

    /// Every worker that can be asked about, by tenant, pod and rank.
    pub(super) fn statuses(&self) -> Vec<WorkerStatus> {
        match self.instead().map(|instead| instead.reader()) {
            None => self.scout.workers(),
            Some(Ok(reader)) => reader.statuses(),
            Some(Err(_)) => Vec::new(),
        }
    }

    /// The sizes of blocks that workers of a model announced; the usual one as long as none has.
    pub(crate) fn block_sizes(
        &self,
        tenant: &str,
        model: &str,
    ) -> Result<BTreeSet<BlockSize>, Refusal> {
        let (mut sizes, mut serving) = (BTreeSet::new(), false);
        for WorkerStatus { registration, groups, .. } in self.statuses() {
            let serves = registration.model.as_deref().is_none_or(|serves| serves == model);
            if registration.tenant == tenant && serves {
                serving = true;
                sizes.extend(groups.iter().map(|facts| facts.shape.size));
            }
        }
        match (serving, sizes.is_empty()) {
            (true, true) => Ok(BTreeSet::from([BlockSize::DEFAULT])),
            (true, false) => Ok(sizes),
            (false, _) => Err(Refusal::UnknownModel(format!(
                "no worker serves model '{model}' for tenant '{tenant}'"
            ))),
        }
    }

    /// Every worker, by tenant, pod and rank.
    pub(crate) fn workers(&self) -> Vec<WorkerView> {
        let feeds = self.switchboard.feeds.lock().clone();
        let heard = self.switchboard.heard.lock().clone();
        let of_others = self.labels_of_others();
        let views = self.statuses().into_iter().map(|mut status| {
            let feed = feeds.get(&status.worker).cloned();
            let source = self.source_of(feed.as_ref());
            status.trust = trust(status.trust, status.as_of, feed.as_ref(), &source);
            let labels = match of_others.get(&status.worker) {
                Some(labels) => labels.clone(),
                None => self.labels.of(status.worker),
            };
            let receipts = self.receipts.of(status.worker);
            let heard = heard.get(&status.worker).copied();
            let quiet =
                heard.map(|heard| heard.at).max(source.as_ref().and_then(|source| source.since));
            let is_down = source.as_ref().is_some_and(|source| !source.up);
            let quiet = quiet.filter(|_| !is_down).map(|since| since.elapsed());
            WorkerView { status, feed, source, labels, receipts, heard, quiet }
        });
        views.collect()
    }

    /// The labels of workers of a store that others keep.
    pub(super) fn labels_of_others(&self) -> BTreeMap<WorkerId, Labels> {
        let reader = self.instead().and_then(|instead| instead.reader().ok());
        let workers = reader.map(|reader| reader.workers()).unwrap_or_default();
        workers.into_iter().map(|known| (known.worker, known.facts.labels)).collect()
    }

    /// What bridges of SGLang reported.
    pub(crate) fn external(&self) -> &External {
        &self.external
    }

    /// What became of snapshots, if there is a place for them.
    pub(crate) fn state_report(&self) -> Option<Report> {
        self.state.as_ref().map(State::report)
    }

    /// Whether snapshots have a place.
    pub(crate) fn keeps_snapshots(&self) -> bool {
        self.state.is_some() || self.behind().is_some()
    }

    /// What requests count.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Bytes that the index may use.
    pub(crate) fn index_budget(&self) -> usize {
        self.index_budget
    }

    /// Everything that was counted, of workers and sources that are gone, too; and every worker.
    pub(crate) fn totals(&self) -> (Totals, Vec<WorkerView>) {
        // Held throughout, so that nobody is counted twice or not at all.
        let departed = self.departed.lock();
        let mut totals = departed.clone();
        let workers = self.workers();
        for view in &workers {
            totals.add_worker(&view.status);
            totals.count_present(&view.status);
        }
        for status in self.receiver.status() {
            totals.add_source(&status);
            totals.sources += 1;
            totals.sources_up += u64::from(status.up);
        }
        totals.add_topics(&self.switchboard.topics);
        totals.replays = self.replays.counters();
        totals.replay_load = self.replays.load();
        totals.index = self.scout.stats();
        (totals, workers)
    }
}

/// The scout to begin with, and its workers: from the state directory or what it names, from the store, or a cold one.
fn begin(
    config: &Config,
    options: Options,
    state: Option<&State>,
    shared: Option<&Shared>,
) -> Result<(Scout, Vec<WorkerState>), Error> {
    let key = match (&options.digest_key, state) {
        (Some(key), _) => Some(key.clone()),
        (None, Some(state)) => Some(state.directory().key()?),
        (None, None) => None,
    };
    let options = Options { digest_key: key.clone(), ..options };
    if let (Some(state), Some(key)) = (state, &key)
        && let Some(begun) = state.begin(&options, key)?
    {
        return Ok((begun.scout, begun.workers));
    }
    if let Some(Shared::Behind(behind)) = shared {
        let most = state::most_bytes(config);
        let begun = behind.snapshots(most, |snapshot| state::restore(&options, snapshot));
        if let Some(begun) = begun {
            return Ok((begun.scout, begun.workers));
        }
    }
    if state.is_some() || shared.is_some() {
        info!("starting cold: workers are scored as they publish");
    }
    Ok((Scout::new(options)?, Vec::new()))
}

fn unknown_instance(tenant: &str, pod: &str, rank: Option<u32>) -> Refusal {
    let rank = rank.map_or(String::new(), |rank| format!(" rank {rank}"));
    Refusal::UnknownWorker(format!("no instance {pod:?}{rank} is registered for tenant {tenant:?}"))
}

/// How far a worker can be believed, the link to it considered: before its first batch, nothing is
/// known of an engine that we do not reach. Later, `as_of` says what an answer rests on.
fn trust(
    trust: Trust,
    as_of: Option<u64>,
    feed: Option<&Feed>,
    source: &Option<SourceStatus>,
) -> Trust {
    // A batch that was applied always leaves a number or another trust.
    let unheard = trust == Trust::Exact && as_of.is_none();
    let reached = source.as_ref().is_some_and(|source| source.up);
    match feed {
        Some(Feed::Source { .. }) if unheard && !reached => Trust::Silent,
        _ => trust,
    }
}

/// Whether a worker may hold less than the index shows. One that missed only its beginning holds more.
fn may_be_gone(trust: Trust) -> bool {
    match trust {
        Trust::Silent => true,
        Trust::Degraded(reason) => {
            matches!(reason, Reason::Gap | Reason::OutOfOrder | Reason::Undecodable | Reason::Audit)
        }
        _ => false,
    }
}

/// The name under which the shared endpoint is pending.
const TOPIC_ENDPOINT: &str = "topic_bind";
