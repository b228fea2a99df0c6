//! The store shared with others: behind memory, or in its place, where it knows the workers and ranks them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvscout::Error;
use kvscout::block::WorkerId;
use kvscout::scout::{Ranking, Request, Scratch, WorkerStatus};

use super::{Labels, Refusal, Service};
use crate::store::{Behind, Instead, Shared, SharedReport};

impl Service {
    /// The store behind memory, if there is one.
    pub(crate) fn behind(&self) -> Option<&Behind> {
        self.shared.as_ref()?.behind()
    }

    /// The store in memory's place, if it is.
    pub(crate) fn instead(&self) -> Option<&Arc<Instead>> {
        self.shared.as_ref()?.instead()
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

    /// Who holds how much, by memory or by the store that answers in its place.
    pub(super) fn rank<'s>(
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

    /// The labels of workers of a store that others keep.
    pub(super) fn labels_of_others(&self) -> BTreeMap<WorkerId, Labels> {
        let reader = self.instead().and_then(|instead| instead.reader().ok());
        let workers = reader.map(|reader| reader.workers()).unwrap_or_default();
        workers.into_iter().map(|known| (known.worker, known.facts.labels)).collect()
    }
}
