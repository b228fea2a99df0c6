//! Workers come and go by request: each is registered with a source of its own, and leaves with it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Instant;

use kvscout::Error;
use kvscout::block::WorkerId;
use kvscout::ingest::zmq::{Endpoint, Mode, Source};
use kvscout::scout::{Registration, WorkerStatus};
use tracing::info;

use super::{Labels, Refusal, Service};
use crate::intake::{Feed, Heard, Route};

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

impl Service {
    /// Registers a worker and begins to receive its batches. Doing so again changes nothing.
    pub(crate) fn register(&self, enrolment: Enrolment) -> Result<(), Refusal> {
        self.follows_engines("register a worker")?;
        let (endpoint, mode) = (enrolment.endpoint.clone(), enrolment.mode);
        if mode == Mode::Connect && !endpoint.is_connectable() {
            return Err(Refusal::Invalid(format!(
                "{endpoint} cannot be dialled; name host and port"
            )));
        }
        // Before anyone has to wait for it: a name server may take its time.
        let dialled = self.dialled(&enrolment)?;
        let _one_at_a_time = self.enrolling.lock();
        self.make_way(&enrolment)?;
        let source = self.new_source();
        let (worker, pod, rank) = {
            let mut feeds = self.switchboard.feeds.lock();
            if let Some(worker) = self.fed_as(&feeds, &enrolment)? {
                enrolment.labels.into_iter().for_each(|labels| self.labels.set(worker, labels));
                return Ok(());
            }
            let Registration { tenant, pod, rank, model, .. } = enrolment.registration.clone();
            if self.scout.find(&tenant, &pod, rank).is_none() {
                self.has_room_for(&enrolment, &feeds)?;
            }
            let worker = self.scout.register(enrolment.registration)?;
            if enrolment.replay.is_some() {
                // Not the same in two daemons, which would else ask together.
                let seed = RandomState::new().build_hasher().finish();
                self.scout.follow(worker, self.replay, seed)?;
            }
            let replay = dialled.replay.map(Arc::new);
            let model = model.as_deref().map(Arc::from);
            let route = Route::Worker { worker, pod: pod.as_str().into(), model, replay };
            self.switchboard.routes.write().insert(source, route);
            self.switchboard.down.lock().insert(source, Instant::now());
            let registered = Heard::nothing();
            self.switchboard.heard.lock().insert(worker, registered);
            let feed = Feed::Source {
                source,
                endpoint: endpoint.clone(),
                dialled: dialled.endpoint.clone(),
                mode,
                replay: enrolment.replay,
                origin: enrolment.origin,
            };
            feeds.insert(worker, feed);
            enrolment.labels.into_iter().for_each(|labels| self.labels.set(worker, labels));
            (worker, pod, rank)
        };
        if let Err(error) = self.receiver.add(source, Source::new(dialled.endpoint, mode)) {
            self.forget(worker)?;
            return Err(error.into());
        }
        info!(pod, rank, %endpoint, "registered");
        Ok(())
    }

    /// The worker of an enrolment, if it is registered and fed exactly so.
    ///
    /// # Errors
    ///
    /// It is registered or fed otherwise.
    fn fed_as(
        &self,
        feeds: &BTreeMap<WorkerId, Feed>,
        enrolment: &Enrolment,
    ) -> Result<Option<WorkerId>, Refusal> {
        let Registration { tenant, pod, rank, .. } = &enrolment.registration;
        let conflict = |what: &str| {
            Err(Refusal::Conflict(format!(
                "instance {pod:?} rank {rank} is registered {what}; unregister it first"
            )))
        };
        let Some(worker) = self.scout.find(tenant, pod, *rank) else { return Ok(None) };
        match feeds.get(&worker) {
            Some(Feed::Source { endpoint, replay, .. }) => {
                let registered = self.scout.worker(worker).map(|status| status.registration);
                if registered.as_ref() != Some(&enrolment.registration) {
                    return conflict("with another model, block size, version or hash profile");
                }
                if *endpoint != enrolment.endpoint || *replay != enrolment.replay {
                    return conflict(&format!("with endpoint {endpoint}"));
                }
                Ok(Some(worker))
            }
            Some(Feed::Topic) => conflict("by its topic"),
            // One that returns is itself again.
            None => Ok(None),
        }
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
        let ranks = self.scout.ranks(tenant, pod).into_iter();
        let ranks = ranks.filter_map(|worker| self.scout.worker(worker));
        let removed = self.forget_those(ranks, rank, model)?;
        if removed.is_empty() {
            return Err(unknown_instance(tenant, pod, rank));
        }
        Ok(removed)
    }

    /// The same of the pods of this name that serve `model`, whatever their tenant.
    pub(crate) fn unregister_everywhere(
        &self,
        pod: &str,
        rank: Option<u32>,
        model: &str,
    ) -> Result<(), Refusal> {
        self.follows_engines("unregister a worker")?;
        let _one_at_a_time = self.enrolling.lock();
        let workers = self.scout.workers().into_iter();
        let ranks = workers.filter(|status| status.registration.pod == pod);
        if self.forget_those(ranks, rank, Some(model))?.is_empty() {
            let rank = rank.map_or(String::new(), |rank| format!(" rank {rank}"));
            let unknown = format!("no instance {pod:?}{rank} is registered for model {model:?}");
            return Err(Refusal::UnknownWorker(unknown));
        }
        Ok(())
    }

    /// Forgets those that have this rank and serve this model, as far as these are given; returns their ranks.
    fn forget_those(
        &self,
        workers: impl Iterator<Item = WorkerStatus>,
        rank: Option<u32>,
        model: Option<&str>,
    ) -> Result<Vec<u32>, Refusal> {
        let mut removed = Vec::new();
        for status in workers {
            let Registration { rank: its_rank, model: serves, pod, .. } = status.registration;
            let other_model = serves.is_some() && model.is_some() && serves.as_deref() != model;
            if other_model || rank.is_some_and(|rank| rank != its_rank) {
                continue;
            }
            self.forget(status.worker)?;
            info!(pod, rank = its_rank, "unregistered");
            removed.push(its_rank);
        }
        Ok(removed)
    }

    /// Ends a worker's source, then the worker; what they counted stays in the totals.
    pub(super) fn forget(&self, worker: WorkerId) -> Result<(), Error> {
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
        self.forget_adapters();
        self.switchboard.feeds.lock().remove(&worker);
        self.switchboard.heard.lock().remove(&worker);
        self.labels.forget(worker);
        self.picks.forget(worker);
        self.receipts.forget(worker);
        self.returning.lock().remove(&worker);
        gone
    }
}

pub(super) fn unknown_instance(tenant: &str, pod: &str, rank: Option<u32>) -> Refusal {
    let rank = rank.map_or(String::new(), |rank| format!(" rank {rank}"));
    Refusal::UnknownWorker(format!("no instance {pod:?}{rank} is registered for tenant {tenant:?}"))
}
