//! What an operator knows to be gone and no engine has said.

use super::directory::Worker;
use super::{Scout, unknown_worker};
use crate::block::WorkerId;
use crate::error::{Error, ErrorKind};

impl Scout {
    /// Forgets what a worker holds, in every tier, as if its engine had announced it: an engine that
    /// was reset or put to sleep says so only with its next step.
    ///
    /// What is being asked for just then (the worker is syncing) was published before: it may bring
    /// blocks back until the engine says so itself.
    ///
    /// # Errors
    ///
    /// No such worker.
    pub fn clear_worker(&self, worker: WorkerId) -> Result<(), Error> {
        let found = self.directory.read().get(worker).cloned();
        self.clear(&*found.ok_or_else(|| unknown_worker(worker))?)
    }

    /// Forgets what the workers of a tenant that are registered for a model hold; how many these are.
    /// Workers that answer for any model are left alone.
    ///
    /// # Errors
    ///
    /// [`UnknownModel`](ErrorKind::UnknownModel) when no worker of the tenant is.
    pub fn clear_model(&self, tenant: &str, model: &str) -> Result<usize, Error> {
        let found: Vec<_> = {
            let directory = self.directory.read();
            let serving = directory.serving(tenant, Some(model));
            serving.filter(|worker| worker.registration.model.is_some()).cloned().collect()
        };
        if found.is_empty() {
            return Err(Error::new(
                ErrorKind::UnknownModel,
                format!("no worker is registered for model '{model}' and tenant '{tenant}'"),
            ));
        }
        // One that was unregistered meanwhile holds nothing any more either.
        Ok(found.iter().filter(|worker| self.clear(worker).is_ok()).count())
    }

    /// Forgets the blocks that a tenant's workers hold of an adapter: its name means other weights
    /// now. Nothing else changes.
    ///
    /// From here on the adapter's blocks count as one copy each, however often they are stored, and
    /// match by content alone: blocks of it that are known by name only, as in offload tiers and with
    /// engines whose events hide extra keys (vLLM before 0.17), match no more. A prompt given by its
    /// names still finds what was stored before.
    pub fn clear_adapter(&self, tenant: &str, adapter: &str) {
        self.shared.editions.begin(tenant, adapter);
    }

    fn clear(&self, worker: &Worker) -> Result<(), Error> {
        let mut stream = worker.stream.lock();
        let waited = stream.is_waiting();
        let cleared = stream.clear(&self.shared);
        worker.publish(&mut stream, &self.shared);
        self.count_waiting(waited, stream.is_waiting());
        cleared
    }
}
