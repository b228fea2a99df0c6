//! From the configuration to a service that runs, with the workers that it had before.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use kvscout::Error;
use kvscout::ingest::snapshot::WorkerState;
use kvscout::ingest::zmq::{Receiver, Replays, RoundOptions};
use kvscout::scout::{Options, Scout};
use parking_lot::Mutex;
use tracing::info;

use super::bounds::Bounds;
use super::discovered::Discoveries;
use super::external::External;
use super::labels::Labelled;
use super::picks::Picks;
use super::readiness::Readiness;
use super::receipts::Receipts;
use super::texts::Texts;
use super::{Service, pending};
use crate::Failure;
use crate::config::{Config, Dialects};
use crate::dial::Dial;
use crate::follow::{Follower, Replayer};
use crate::intake::{Intake, Switchboard};
use crate::metrics::Metrics;
use crate::state::{self, State};
use crate::store::{Behind, Shared};

impl Service {
    /// A service with the workers that it had before, if a snapshot says so, whose receiver runs.
    ///
    /// # Errors
    ///
    /// An option of the configuration is out of range, a tokenizer cannot be read, the state directory cannot be used, or the
    /// system gives no thread, descriptor or randomness.
    pub(crate) fn start(config: &Config) -> Result<Service, Failure> {
        let texts = Texts::new(config)?;
        let state = State::open(config)?;
        let shared = Shared::open(config, state.as_ref().map(State::directory))?;
        let (scout, workers) = begin(config, state.as_ref(), shared.as_ref())?;
        let scout = Arc::new(scout);
        for entry in &config.adapters {
            scout.register_adapter(&entry.tenant, &entry.name, entry.adapter());
        }
        let switchboard = Arc::new(Switchboard::default());
        let began = Instant::now();
        let (replays, receiver) = listen(config, &scout, &switchboard, began)?;
        let service = Service {
            scout,
            receiver,
            replays,
            replay: config.replay,
            on_gap: config.on_gap,
            dial: Dial::new(&config.dial, config.listen),
            bounds: Bounds::new(config),
            switchboard,
            next_source: AtomicU32::new(0),
            enrolling: Mutex::default(),
            pending: Mutex::new(pending::at_first(config)),
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
}

/// The scout to begin with, and its workers: from the state directory or what it names, from the store, or a cold one.
fn begin(
    config: &Config,
    state: Option<&State>,
    shared: Option<&Shared>,
) -> Result<(Scout, Vec<WorkerState>), Error> {
    let behind = shared.and_then(Shared::behind);
    let key = match (behind, state) {
        (Some(behind), _) => Some(behind.digest_key()),
        (None, Some(state)) => Some(state.directory().key()?),
        (None, None) => None,
    };
    let options = Options {
        digest_key: key.clone(),
        mirror: behind.map(Behind::mirror),
        ..options_of(config)
    };
    let mut begun = match (state, &key) {
        (Some(state), Some(key)) => state.begin(&options, key)?,
        _ => None,
    };
    if let (None, Some(behind)) = (&begun, behind) {
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

/// What the configuration says of the scout alone.
fn options_of(config: &Config) -> Options {
    Options {
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
    }
}

/// What receives batches and asks for past ones, for the scout.
fn listen(
    config: &Config,
    scout: &Arc<Scout>,
    switchboard: &Arc<Switchboard>,
    began: Instant,
) -> Result<(Replays, Receiver), Error> {
    let follower = |asker| Follower {
        scout: Arc::clone(scout),
        switchboard: Arc::clone(switchboard),
        asker,
        began,
    };
    let max_message_bytes = config.zmq.max_message_bytes;
    let rounds = RoundOptions { max_message_bytes, ..config.rounds.clone() };
    let replays = Replays::start(rounds, |asker| {
        Replayer::new(follower(asker), config.silent_after_down, config.silent_after_quiet)
    })?;
    let follower = follower(replays.asker());
    let intake = Intake::new(follower, config.events, config.limits.topic_workers);
    let receiver = Receiver::start(config.zmq.clone(), intake)?;
    Ok((replays, receiver))
}
