//! Who is registered: workers by identity, models and tenants as spaces, adapters.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::stream::{Seat, Standing, Stream};
use super::{Adapter, Registration, WorkerStatus};
use crate::block::{SpaceId, WorkerId};

/// One registered worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) pod: Arc<str>,
    pub(super) registration: Registration,
    pub(super) stream: Mutex<Stream>,
    /// What queries read of the stream, published after each batch.
    pub(super) standing: RwLock<Standing>,
}

impl Worker {
    /// Shows queries where the stream stands.
    pub(super) fn publish(&self, stream: &Stream) {
        *self.standing.write() = stream.standing();
    }

    pub(super) fn status(&self) -> WorkerStatus {
        let stream = self.stream.lock();
        let standing = self.standing.read().clone();
        WorkerStatus {
            worker: self.id,
            registration: self.registration.clone(),
            trust: standing.trust,
            as_of: standing.as_of,
            counters: stream.counters(),
            events: stream.events(),
            groups: standing.groups,
            contract: stream.contract().clone(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    workers: BTreeMap<WorkerId, Arc<Worker>>,
    by_identity: BTreeMap<(String, String, u32), WorkerId>,
    spaces: HashMap<(String, Option<String>), SpaceId>,
    adapters: HashMap<(String, String), Adapter>,
    next_worker: u32,
    next_space: u32,
}

impl Directory {
    pub(super) fn add(&mut self, registration: Registration) -> Arc<Worker> {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let key = (registration.tenant.clone(), registration.model.clone());
        let space = *self.spaces.entry(key).or_insert_with(|| {
            // Never given twice: what is left of an old space must not show in a new one.
            self.next_space += 1;
            SpaceId(self.next_space)
        });
        let identity = (registration.tenant.clone(), registration.pod.clone(), registration.rank);
        let worker = Arc::new(Worker {
            id,
            pod: registration.pod.as_str().into(),
            stream: Mutex::new(Stream::new(Seat { worker: id, space, version: registration.vllm })),
            standing: RwLock::default(),
            registration,
        });
        self.by_identity.insert(identity, id);
        self.workers.insert(id, worker.clone());
        worker
    }

    /// Removes a worker, and its space if it was the last one there.
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<(Arc<Worker>, Option<SpaceId>)> {
        let worker = self.workers.remove(&id)?;
        let Registration { tenant, pod, rank, model, .. } = &worker.registration;
        self.by_identity.remove(&(tenant.clone(), pod.clone(), *rank));
        let shares = |other: &Arc<Worker>| {
            (&other.registration.tenant, &other.registration.model) == (tenant, model)
        };
        let emptied = match self.workers.values().any(shares) {
            true => None,
            false => self.spaces.remove(&(tenant.clone(), model.clone())),
        };
        Some((worker, emptied))
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Arc<Worker>> {
        self.workers.get(&id)
    }

    pub(super) fn find(&self, tenant: &str, pod: &str, rank: u32) -> Option<&Arc<Worker>> {
        let id = self.by_identity.get(&(tenant.to_owned(), pod.to_owned(), rank))?;
        self.workers.get(id)
    }

    pub(super) fn ranks(&self, tenant: &str, pod: &str) -> impl Iterator<Item = WorkerId> {
        let of = |rank| (tenant.to_owned(), pod.to_owned(), rank);
        self.by_identity.range(of(0)..=of(u32::MAX)).map(|(_, &id)| id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.by_identity.values().filter_map(|id| self.workers.get(id))
    }

    /// The workers that answer for a model, ascending; all of the tenant's for `None`.
    pub(super) fn serving(
        &self,
        tenant: &str,
        model: Option<&str>,
    ) -> impl Iterator<Item = &Arc<Worker>> {
        self.workers.values().filter(move |worker| {
            worker.registration.tenant == tenant
                && is_asked(worker.registration.model.as_deref(), model)
        })
    }

    /// The spaces of those workers.
    pub(super) fn spaces(
        &self,
        tenant: &str,
        model: Option<&str>,
    ) -> impl Iterator<Item = SpaceId> {
        let asked = self
            .spaces
            .iter()
            .filter(move |((t, served), _)| t == tenant && is_asked(served.as_deref(), model));
        asked.map(|(_, &space)| space)
    }

    pub(super) fn add_adapter(&mut self, tenant: &str, name: &str, adapter: Adapter) {
        self.adapters.insert((tenant.to_owned(), name.to_owned()), adapter);
    }

    pub(super) fn adapter(&self, tenant: &str, name: &str) -> Option<&Adapter> {
        self.adapters.get(&(tenant.to_owned(), name.to_owned()))
    }

    /// The model that a request's model name means: its own, or the one its adapter belongs to. A name
    /// that some worker serves as a model is no adapter's.
    pub(super) fn resolve<'a>(
        &'a self,
        tenant: &str,
        model: Option<&'a str>,
    ) -> (Option<&'a str>, Option<&'a Adapter>) {
        let is_served =
            |name: &str| self.spaces.contains_key(&(tenant.to_owned(), Some(name.to_owned())));
        let adapter =
            model.and_then(|name| self.adapter(tenant, name).filter(|_| !is_served(name)));
        match adapter {
            Some(adapter) => (Some(&adapter.model), Some(adapter)),
            None => (model, None),
        }
    }
}

fn is_asked(served: Option<&str>, asked: Option<&str>) -> bool {
    match (served, asked) {
        (Some(served), Some(asked)) => served == asked,
        _ => true,
    }
}
