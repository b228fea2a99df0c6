//! Who is registered: workers by identity, models and tenants as spaces, adapters.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::roster::{Generation, Roster};
#[cfg(feature = "redis")]
use super::standing::Standing;
use super::standing::{Post, SLAB, Slab};
use super::stream::{Seat, Shared, Stream};
use super::{Adapter, Registration, WorkerStatus};
use crate::block::{SpaceId, WorkerId};
use crate::index::MemoryIndex;
use crate::ingest::snapshot::{AdapterState, Given};
use crate::score::GroupFacts;

/// Rosters that are kept. There are as many as models and adapters that are asked for; where a worker
/// answers for any model, whoever asks makes the names up.
const MAX_ROSTERS: usize = 1024;

/// A worker's groups as it has announced them.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Another one after each change, so that a query can tell whether it knows the newest.
    pub(super) number: u16,
    pub(super) facts: Vec<GroupFacts>,
}

/// One registered worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) space: SpaceId,
    pub(super) pod: Arc<str>,
    pub(super) registration: Registration,
    pub(super) stream: Mutex<Stream>,
    /// Where queries read how the stream stands.
    pub(super) post: Post,
    /// For rosters; written under the stream's lock.
    pub(super) groups: RwLock<Arc<Groups>>,
}

impl Worker {
    /// Shows queries where the stream stands, once it is between two batches.
    pub(super) fn publish(&self, stream: &mut Stream, shared: &Shared) {
        let (mut number, known) = {
            let groups = self.groups.read();
            (groups.number, groups.facts == stream.groups())
        };
        if !known {
            number = number.wrapping_add(1);
            let facts = stream.groups().to_vec();
            *self.groups.write() = Arc::new(Groups { number, facts });
            // Before the standing: who reads that also sees that there is a new generation.
            shared.generation.turn();
        }
        self.post.close(stream.standing(number));
        stream.tell(shared);
    }

    /// Shows queries what somebody else says of the worker.
    #[cfg(feature = "redis")]
    pub(super) fn say(&self, said: Standing, facts: &[GroupFacts], generation: &Generation) {
        let mut number = self.groups.read().number;
        if self.groups.read().facts != facts {
            number = number.wrapping_add(1);
            *self.groups.write() = Arc::new(Groups { number, facts: facts.to_vec() });
            generation.turn();
        }
        self.post.close(Standing { groups: number, ..said });
    }

    /// Where the worker stands, its tenant's adapters being these.
    pub(super) fn status(
        &self,
        index: &MemoryIndex,
        adapters: &HashMap<String, Adapter>,
    ) -> WorkerStatus {
        let has_path = |name: &str| adapters.get(name).is_some_and(|known| known.path.is_some());
        let stream = self.stream.lock();
        let standing = self.post.cell().read().with_loss(index.evicted(self.id));
        let (held_back, held_back_bytes) = stream.held_back();
        WorkerStatus {
            worker: self.id,
            registration: self.registration.clone(),
            trust: standing.trust(),
            as_of: standing.as_of(),
            counters: stream.counters(),
            stage: stream.stage(),
            held_back,
            held_back_bytes,
            audit: stream.audit(),
            events: stream.events(),
            unexplained: stream.unexplained(),
            held: index.entries_by_tier(self.id),
            groups: stream.groups().to_vec(),
            contract: stream.contract().clone(),
            checks: stream.checks(),
            unknown_adapters: stream
                .adapters()
                .filter(|name| !has_path(name))
                .map(Into::into)
                .collect(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    workers: BTreeMap<WorkerId, Arc<Worker>>,
    by_identity: BTreeMap<(String, String, u32), WorkerId>,
    spaces: HashMap<(String, Option<String>), SpaceId>,
    /// By tenant and name.
    adapters: HashMap<String, Arc<HashMap<String, Adapter>>>,
    next_worker: u32,
    next_space: u32,
    /// Where the last worker's standing is: its number among the slabs of all worker ids.
    slab: (u32, Arc<Slab>),
    rosters: Mutex<Rosters>,
}

/// Rosters by tenant and asked model.
type Rosters = HashMap<String, HashMap<Option<String>, Arc<Roster>>>;

impl Directory {
    /// A directory of nobody, whose numbers go on after those that were given.
    pub(super) fn resume(given: Given) -> Directory {
        Directory { next_worker: given.workers, next_space: given.spaces, ..Directory::default() }
    }

    /// The numbers given to workers and spaces.
    pub(super) fn given(&self) -> Given {
        Given { workers: self.next_worker, spaces: self.next_space, ..Given::default() }
    }

    pub(super) fn add(&mut self, registration: Registration) -> Arc<Worker> {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let key = (registration.tenant.clone(), registration.model.clone());
        let space = *self.spaces.entry(key).or_insert_with(|| {
            // Never given twice: what is left of an old space must not show in a new one.
            self.next_space += 1;
            SpaceId(self.next_space)
        });
        self.put(id, space, registration, Stream::new)
    }

    /// Puts a worker back under its old numbers, which nobody else has.
    pub(super) fn put_back(
        &mut self,
        id: WorkerId,
        space: SpaceId,
        registration: Registration,
        stream: impl FnOnce(Seat) -> Stream,
    ) -> Arc<Worker> {
        self.spaces.insert((registration.tenant.clone(), registration.model.clone()), space);
        self.put(id, space, registration, stream)
    }

    fn put(
        &mut self,
        id: WorkerId,
        space: SpaceId,
        registration: Registration,
        stream: impl FnOnce(Seat) -> Stream,
    ) -> Arc<Worker> {
        let slab = id.0 / SLAB as u32;
        if self.slab.0 != slab {
            self.slab = (slab, Arc::default());
        }
        let post = Post::new(self.slab.1.clone(), id);
        let identity = (registration.tenant.clone(), registration.pod.clone(), registration.rank);
        let seat = Seat {
            worker: id,
            space,
            tenant: registration.tenant.as_str().into(),
            model: registration.model.as_deref().map(Into::into),
            version: registration.vllm,
            block_size: registration.block_size,
            on_clear: registration.on_clear,
            copies: registration.copies,
            told: registration.contract.clone(),
            post: post.clone(),
        };
        let worker = Arc::new(Worker {
            id,
            space,
            pod: registration.pod.as_str().into(),
            stream: Mutex::new(stream(seat)),
            post,
            groups: RwLock::default(),
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

    /// Every worker, by number.
    pub(super) fn by_number(&self) -> Vec<Arc<Worker>> {
        self.workers.values().cloned().collect()
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
        let of_tenant = self.adapters.entry(tenant.to_owned()).or_default();
        Arc::make_mut(of_tenant).insert(name.to_owned(), adapter);
    }

    pub(super) fn remove_adapter(&mut self, tenant: &str, name: &str) -> bool {
        let Some(of_tenant) = self.adapters.get_mut(tenant) else { return false };
        let removed = Arc::make_mut(of_tenant).remove(name).is_some();
        if of_tenant.is_empty() {
            self.adapters.remove(tenant);
        }
        removed
    }

    pub(super) fn serves(&self, tenant: &str, model: &str) -> bool {
        self.spaces.contains_key(&(tenant.to_owned(), Some(model.to_owned())))
    }

    /// All adapters, by tenant and name.
    pub(super) fn all_adapters(&self) -> Vec<AdapterState> {
        let mut all = Vec::new();
        for (tenant, of_tenant) in &self.adapters {
            all.extend(of_tenant.iter().map(|(name, adapter)| AdapterState {
                tenant: tenant.clone(),
                name: name.clone(),
                model: adapter.model.clone(),
                id: adapter.id,
                path: adapter.path.clone(),
            }));
        }
        all.sort_unstable_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
        all
    }

    /// A tenant's adapters by name.
    pub(super) fn adapters(&self, tenant: &str) -> Arc<HashMap<String, Adapter>> {
        self.adapters.get(tenant).cloned().unwrap_or_default()
    }

    /// Who answers for a tenant's model, as of now; `None` when nobody does.
    pub(super) fn roster(
        &self,
        generation: &Generation,
        tenant: &str,
        asked: Option<&str>,
    ) -> Option<Arc<Roster>> {
        let asked_for = asked.map(str::to_owned);
        let mut rosters = self.rosters.lock();
        // Read before anything that a roster is made from.
        let generation = generation.now();
        if let Some(roster) = rosters.get(tenant).and_then(|of_tenant| of_tenant.get(&asked_for))
            && roster.is_of(generation)
        {
            return Some(roster.clone());
        }
        let roster = Arc::new(Roster::new(self, generation, tenant, asked)?);
        if rosters.values().map(HashMap::len).sum::<usize>() >= MAX_ROSTERS {
            rosters.clear();
        }
        let of_tenant = rosters.entry(tenant.to_owned()).or_default();
        of_tenant.insert(asked_for, roster.clone());
        Some(roster)
    }

    /// The model that a request's model name means: its own, or the one its adapter belongs to. A name
    /// that some worker serves as a model is no adapter's.
    pub(super) fn resolve<'a>(
        &'a self,
        tenant: &str,
        model: Option<&'a str>,
    ) -> (Option<&'a str>, Option<&'a Adapter>) {
        let of_tenant = self.adapters.get(tenant);
        let of_name = |name| of_tenant?.get(name).filter(|_| !self.serves(tenant, name));
        let adapter = model.and_then(of_name);
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
