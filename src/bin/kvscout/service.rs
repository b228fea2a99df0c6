//! What each request means, whatever protocol it came in.
//!
//! Everything here may wait for a lock or for the receiver's thread: asynchronous callers go
//! through a blocking thread, except for the scoring of short prompts.

mod answering;
mod bounds;
mod clearing;
mod dialled;
mod discovered;
pub(crate) mod dump;
pub(crate) mod external;
mod labels;
mod peers;
mod pending;
mod picks;
mod question;
mod readiness;
mod receipts;
mod refusal;
mod registering;
mod returning;
mod sharing;
mod starting;
mod status;
mod texts;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use kvscout::block::{BlockSize, WorkerId};
use kvscout::ingest::ReplayOptions;
use kvscout::ingest::snapshot::WorkerState;
use kvscout::ingest::zmq::{Receiver, Replays, SourceId};
use kvscout::scout::{Scout, WorkerStatus};
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;

pub(crate) use self::answering::Row;
use self::bounds::Bounds;
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
pub(crate) use self::refusal::{OVERLOADED, Refusal, elsewhere};
pub(crate) use self::registering::{Enrolment, Origin};
use self::returning::Attached;
use self::texts::Texts;
pub(crate) use self::view::{WorkerView, contract_state};
use crate::config::OnGap;
use crate::dial::Dial;
use crate::intake::Switchboard;
use crate::metrics::{Metrics, Totals};
use crate::state::{Report, State};
use crate::store::Shared;

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
    bounds: Bounds,
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
    /// What hears the engines.
    pub(crate) fn scout(&self) -> &Arc<Scout> {
        &self.scout
    }

    /// What routers tell a worker apart by.
    pub(crate) fn labels_of(&self, worker: WorkerId) -> Labels {
        self.labels.of(worker)
    }

    fn new_source(&self) -> SourceId {
        SourceId(self.next_source.fetch_add(1, Ordering::Relaxed))
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

    /// How old live batches were when they were taken in.
    pub(crate) fn lag(&self) -> Histogram {
        self.switchboard.lag.0.clone()
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
