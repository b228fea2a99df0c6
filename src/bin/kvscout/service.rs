//! What each request means, whatever protocol it came in.
//!
//! Everything here may wait for a lock or for the receiver's thread: asynchronous callers go
//! through a blocking thread, except for the scoring of short prompts.

mod answering;
mod clearing;
mod dialled;
mod discovered;
pub(crate) mod dump;
pub(crate) mod external;
mod labels;
mod peers;
mod picks;
mod question;
mod readiness;
mod receipts;
mod registering;
mod returning;
mod sharing;
mod status;
mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use kvscout::block::{BlockSize, WorkerId};
use kvscout::ingest::ReplayOptions;
use kvscout::ingest::snapshot::WorkerState;
use kvscout::ingest::zmq::{
    Endpoint, Mode, Receiver, Replays, RoundOptions, Source, SourceId, SourceStatus,
};
use kvscout::scout::{Options, Registration, Scout, WorkerStatus};
use kvscout::{Error, ErrorKind};
use parking_lot::Mutex;
use tracing::info;

pub(crate) use self::answering::Row;
use self::answering::trust;
use self::discovered::Discoveries;
pub(crate) use self::discovered::{Discovery, Sighting};
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
use crate::store::{Behind, Instead, Shared};

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

    /// What a worker's own source has counted.
    fn source_of(&self, feed: Option<&Feed>) -> Option<SourceStatus> {
        match feed {
            Some(Feed::Source { source, .. }) => self.receiver.status_of(*source),
            _ => None,
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
            status.trust = trust(status.trust, status.as_of, feed.as_ref(), source.as_ref());
            let labels = match of_others.get(&status.worker) {
                Some(labels) => labels.clone(),
                None => self.labels.of(status.worker),
            };
            let receipts = self.receipts.of(status.worker);
            let heard = heard.get(&status.worker).copied();
            WorkerView { status, feed, source, labels, receipts, heard }
        });
        views.collect()
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
    let mut begun = match (state, &key) {
        (Some(state), Some(key)) => state.begin(&options, key)?,
        _ => None,
    };
    if let (None, Some(Shared::Behind(behind))) = (&begun, shared) {
        let most = state::most_bytes(config);
        begun = behind.snapshots(most, |snapshot| state::restore(&options, snapshot));
    }
    if let Some(begun) = begun {
        state.inspect(|state| state.began_with(&begun));
        return Ok((begun.scout, begun.workers));
    }
    if state.is_some() || shared.is_some() {
        info!("starting cold: workers are scored as they publish");
    }
    Ok((Scout::new(options)?, Vec::new()))
}

/// The name under which the shared endpoint is pending.
const TOPIC_ENDPOINT: &str = "topic_bind";
