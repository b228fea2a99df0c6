//! Labels of workers: what a router tells them apart by, such as their role, and kvscout knows nothing of.

use std::collections::{BTreeMap, HashMap};

use kvscout::block::WorkerId;
use parking_lot::RwLock;

use super::Service;

/// Names and values.
pub(crate) type Labels = BTreeMap<String, String>;

/// The labels that a worker must have: each name with one of these values.
pub(crate) type Wanted = BTreeMap<String, Vec<String>>;

/// Labels by worker; whoever has none is left out.
#[derive(Debug, Default)]
pub(super) struct Labelled(RwLock<HashMap<WorkerId, Labels>>);

impl Labelled {
    /// Gives a worker these and no others.
    pub(super) fn set(&self, worker: WorkerId, labels: Labels) {
        match labels.is_empty() {
            true => self.0.write().remove(&worker),
            false => self.0.write().insert(worker, labels),
        };
    }

    pub(super) fn of(&self, worker: WorkerId) -> Labels {
        self.0.read().get(&worker).cloned().unwrap_or_default()
    }

    pub(super) fn forget(&self, worker: WorkerId) {
        self.0.write().remove(&worker);
    }
}

impl Service {
    /// The workers with these labels, ascending, of whichever tenant.
    pub(crate) fn labelled(&self, wanted: &Wanted) -> Vec<WorkerId> {
        let has = |labels: &Labels| {
            wanted.iter().all(|(name, values)| {
                labels.get(name).is_some_and(|value| values.iter().any(|wanted| wanted == value))
            })
        };
        if self.waits() {
            let of_others = self.labels_of_others().into_iter();
            return of_others.filter(|(_, labels)| has(labels)).map(|(worker, _)| worker).collect();
        }
        let labels = self.labels.0.read();
        let mut found: Vec<WorkerId> =
            labels.iter().filter(|(_, labels)| has(labels)).map(|(&worker, _)| worker).collect();
        found.sort_unstable();
        found
    }
}
