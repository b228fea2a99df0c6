//! A scout's state as a snapshot, and a scout from one.
//!
//! Invariants: a snapshot shows every worker as of its watermark and no further, because all streams
//! are held while it is taken; what a snapshot says of workers and what its image says agree, or it
//! is refused as a whole; no number that was given is given again.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::{MutexGuard, RwLock};

use super::directory::{Directory, Worker};
use super::edition::Editions;
use super::stream::Stream;
use super::vocabulary::Vocabularies;
use super::{Adapter, Copies, OnClear, Options, Registration, Scout};
use crate::block::{SpaceId, VocabularyId, WorkerId};
use crate::error::Error;
use crate::hash::content::DigestKey;
use crate::index::{Home, Image, MOST_GROUPS, MemoryIndex};
use crate::ingest::snapshot::{Given, KeptContract, Refused, Registrations, Snapshot, WorkerState};
use crate::ingest::verify::{Contract, Status};

impl Scout {
    /// Everything that another scout needs to go on here; `created` is the time, in milliseconds since
    /// 1970.
    ///
    /// Batches, registrations and removals wait while it is taken, some 25 ms for a million blocks;
    /// queries do not. Writing it down is the caller's, afterwards.
    /// [`attached`](WorkerState::attached) is empty, for the caller to fill.
    pub fn snapshot(&self, created: u64) -> Snapshot {
        let _nobody_comes_or_goes = self.membership.lock();
        let (given, workers, adapters) = {
            let directory = self.directory.read();
            (directory.given(), directory.by_number(), directory.all_adapters())
        };
        // In one order, although nobody else holds more than one.
        let streams: Vec<MutexGuard<'_, Stream>> =
            workers.iter().map(|worker| worker.stream.lock()).collect();
        let image = self.shared.index.export();
        let (vocabularies, given) = {
            let known = self.shared.vocabularies.read();
            (known.state(), Given { vocabularies: known.given(), ..given })
        };
        let editions = self.shared.editions.state();
        let states = workers.iter().zip(&streams).map(|(worker, stream)| worker.state(stream));
        let registrations =
            Registrations { given, vocabularies, adapters, editions, workers: states.collect() };
        drop(streams);
        Snapshot::new(&self.shared.key, created, registrations, image)
    }

    /// A scout that goes on where the one of a snapshot was: the same workers under the same
    /// [`WorkerId`]s, the same answers, and the same effect of every further batch.
    ///
    /// Each worker that had applied something is [`Syncing`](crate::ingest::Trust::Syncing), or
    /// degraded as it was, until its stream shows that it goes on there: with the batch after the
    /// watermark, or with that one again. What else comes is judged as ever: a gap, a restart. Whoever
    /// had applied nothing is as if registered anew. Counters begin at 0.
    ///
    /// [`Options::digest_key`] is the key of the scout that the snapshot was taken of; the other options
    /// may differ.
    ///
    /// # Errors
    ///
    /// The key is another one, or the snapshot contradicts itself or would take far more than the
    /// memory budget. The source of the error is a [`Refused`].
    pub fn restore(options: Options, snapshot: &Snapshot) -> Result<Scout, Error> {
        let key = match options.digest_key.clone() {
            Some(key) => key,
            None => DigestKey::random()?,
        };
        if key.id() != snapshot.key {
            return Err(Refused::OtherKey { theirs: snapshot.key, ours: key.id() }.into());
        }
        let Snapshot { registrations, image, .. } = snapshot;
        let refused = |section| move |error| Refused::Contradictory { section, error };
        let index = MemoryIndex::import(options.memory, image).map_err(refused("the index"))?;
        check(registrations, image).map_err(refused("the list of registrations"))?;
        let mut scout = Scout::made_of(options, key, index);
        scout.fill(registrations).map_err(refused("the list of registrations"))?;
        scout.anchor(registrations, image).map_err(refused("the index"))?;
        Ok(scout)
    }

    /// Keeps what the snapshot says of each worker that is sound, as far as there is room: where its engine's
    /// buffer does not reach back to batch 0, audits begin at the watermark.
    fn anchor(&self, registrations: &Registrations, image: &Image) -> Result<(), Error> {
        let is_sound = |state: &&WorkerState| {
            state.watermark.is_some() && state.unsound.is_none() && !state.cleared_by_hand
        };
        let sound = registrations.workers.iter().filter(is_sound);
        let sound: Vec<WorkerId> = sound.map(|state| state.worker).collect();
        if !self.shared.anchors.is_there() || sound.is_empty() {
            return Ok(());
        }
        image.apart(&sound, |id, image| {
            let worker = self.directory.read().get(id).cloned();
            if let Some(worker) = worker.filter(|_| !self.shared.index.evicted(id)) {
                worker.stream.lock().anchored(&self.shared.anchors, image);
            }
        })
    }

    fn fill(&mut self, registrations: &Registrations) -> Result<(), Error> {
        let Registrations { given, vocabularies, adapters, editions, workers } = registrations;
        let mut contracts = Contracts { scout: self, restored: Vec::new() };
        let mut known = Vocabularies::resume(given.vocabularies);
        for state in vocabularies {
            let contract = contracts.restore(&state.contract)?.ok_or_else(|| {
                wrong(format!("vocabulary {} has no contract", state.home.vocabulary.0))
            })?;
            known.put_back(state.home, contract);
        }
        let mut directory = Directory::resume(*given);
        for adapter in adapters {
            let (tenant, name) = (&adapter.tenant, &adapter.name);
            let (model, path) = (adapter.model.clone(), adapter.path.clone());
            directory.add_adapter(tenant, name, Adapter { model, id: adapter.id, path });
        }
        // Ascending, as they were registered.
        let workers: BTreeMap<WorkerId, &WorkerState> =
            workers.iter().map(|state| (state.worker, state)).collect();
        for (id, state) in workers {
            let contract = match (&state.contract, contracts.restore(&state.contract)?) {
                (_, Some(contract)) => Status::Verified(contract),
                (KeptContract::Private, None) => Status::Private,
                (_, None) => Status::Undecided,
            };
            let told = contracts.restore(&state.told)?;
            if let (Some(told), Status::Undecided) = (&told, &contract) {
                known.tell(state.vocabulary, told.clone());
            }
            let registration = registration(state, told);
            let resume = |seat| Stream::resume(seat, state, contract);
            let worker = directory.put_back(id, state.space, registration, resume);
            worker.publish(&mut worker.stream.lock(), &self.shared);
        }
        self.shared.editions = Editions::resume(editions);
        self.shared.vocabularies = RwLock::new(known);
        self.directory = RwLock::new(directory);
        Ok(())
    }
}

/// Contracts that were restored already: there are few, and many workers.
struct Contracts<'a> {
    scout: &'a Scout,
    restored: Vec<(KeptContract, Option<Contract>)>,
}

impl Contracts<'_> {
    fn restore(&mut self, kept: &KeptContract) -> Result<Option<Contract>, Error> {
        if let Some((_, contract)) = self.restored.iter().find(|(known, _)| known == kept) {
            return Ok(contract.clone());
        }
        let contract = kept.restore(self.scout.shared.candidates.contracts())?;
        self.restored.push((kept.clone(), contract.clone()));
        Ok(contract)
    }
}

impl Worker {
    fn state(&self, stream: &Stream) -> WorkerState {
        let Registration { pod, rank, tenant, model, vllm, block_size, on_clear, copies, contract } =
            self.registration.clone();
        let mut state = WorkerState {
            worker: self.id,
            space: self.space,
            vocabulary: VocabularyId(0),
            tenant,
            pod,
            rank,
            model,
            vllm,
            block_size,
            clears_gpu_only: on_clear == OnClear::Gpu,
            reports_presence: copies == Copies::Presence,
            told: contract.as_ref().map_or(KeptContract::Undecided, KeptContract::from),
            attached: String::new(),
            incarnation: 0,
            watermark: None,
            unsound: None,
            cleared_by_hand: false,
            hides_extras: false,
            contract: KeptContract::Undecided,
            groups: Vec::new(),
        };
        stream.describe(&mut state);
        state
    }
}

fn registration(state: &WorkerState, contract: Option<Contract>) -> Registration {
    let WorkerState { pod, rank, tenant, model, vllm, block_size, .. } = state.clone();
    let on_clear = if state.clears_gpu_only { OnClear::Gpu } else { OnClear::All };
    let copies = if state.reports_presence { Copies::Presence } else { Copies::Count };
    Registration { pod, rank, tenant, model, vllm, block_size, on_clear, copies, contract }
}

/// Whether the list agrees with itself and with the image.
fn check(registrations: &Registrations, image: &Image) -> Result<(), Error> {
    let Registrations { given, vocabularies, workers, .. } = registrations;
    let homes: HashMap<WorkerId, Home> = image.homes()?.into_iter().collect();
    if homes.len() != workers.len() {
        let (there, here) = (homes.len(), workers.len());
        return Err(wrong(format!("the index knows {there} workers, the list {here}")));
    }
    let (mut spaces, mut models) = (HashMap::new(), HashMap::new());
    let (mut ids, mut identities) = (HashSet::new(), HashSet::new());
    for state in workers {
        let &WorkerState { worker, space, vocabulary, ref tenant, ref pod, rank, .. } = state;
        let number = worker.0;
        if homes.get(&worker) != Some(&Home { space, vocabulary }) {
            return Err(wrong(format!("worker {number} has another home in the index")));
        }
        let served = (tenant, &state.model);
        let same_space = *spaces.entry(served).or_insert(space) == space
            && *models.entry(space).or_insert(served) == served;
        if !ids.insert(worker) || !identities.insert((tenant, pod, rank)) || !same_space {
            return Err(wrong(format!("worker {number} contradicts another one")));
        }
        is_given(given, space, vocabulary)?;
        if number >= given.workers {
            return Err(wrong(format!("worker {number} has a number that was not given")));
        }
        if !state.groups.is_sorted_by(|a, b| a.facts.group < b.facts.group) {
            return Err(wrong(format!("the groups of worker {number} are out of order")));
        }
        if state.groups.len() > MOST_GROUPS {
            return Err(wrong(format!("worker {number} has more than {MOST_GROUPS} groups")));
        }
    }
    let mut contracts = HashSet::new();
    for state in vocabularies {
        is_given(given, state.home.space, state.home.vocabulary)?;
        if !contracts.insert(state.home.vocabulary) {
            return Err(wrong(format!("vocabulary {} is there twice", state.home.vocabulary.0)));
        }
    }
    Ok(())
}

/// Spaces and vocabularies are numbered from 1.
fn is_given(given: &Given, space: SpaceId, vocabulary: VocabularyId) -> Result<(), Error> {
    if space.0 > given.spaces || vocabulary.0 > given.vocabularies {
        let (space, vocabulary) = (space.0, vocabulary.0);
        return Err(wrong(format!("space {space} or vocabulary {vocabulary} was not given")));
    }
    Ok(())
}

fn wrong(message: String) -> Error {
    Error::new(crate::ErrorKind::Decode, message)
}
