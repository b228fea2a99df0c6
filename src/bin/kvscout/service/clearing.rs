//! What workers hold is forgotten while they stay.

use kvscout::block::WorkerId;
use tracing::info;

use super::registering::unknown_instance;
use super::{Refusal, Service};

impl Service {
    /// Forgets what a pod's worker of one rank holds, or all of them do; how many workers these are.
    pub(crate) fn clear_pod(
        &self,
        tenant: &str,
        pod: &str,
        rank: Option<u32>,
    ) -> Result<usize, Refusal> {
        self.follows_engines("clear a worker")?;
        let workers = self.workers_of(tenant, pod, rank);
        if workers.is_empty() {
            return Err(unknown_instance(tenant, pod, rank));
        }
        // One that was unregistered meanwhile holds nothing any more either.
        let cleared = workers.into_iter().filter(|&worker| self.scout.clear_worker(worker).is_ok());
        let cleared = cleared.count();
        info!(pod, rank, cleared, "cleared by request");
        Ok(cleared)
    }

    /// Forgets what the workers of a model hold; how many workers these are.
    pub(crate) fn clear_model(&self, tenant: &str, model: &str) -> Result<usize, Refusal> {
        self.follows_engines("clear a model")?;
        let cleared = self.scout.clear_model(tenant, model)?;
        info!(model, cleared, "cleared by request");
        Ok(cleared)
    }

    /// Forgets what anyone holds of an adapter.
    pub(crate) fn clear_adapter(&self, tenant: &str, adapter: &str) -> Result<(), Refusal> {
        self.follows_engines("clear an adapter")?;
        self.scout.clear_adapter(tenant, adapter);
        info!(adapter, "cleared by request");
        Ok(())
    }

    /// Forgets what the worker of a sleeping engine held.
    pub(crate) fn clear_sleeping(&self, worker: WorkerId) {
        // One that was unregistered meanwhile holds nothing any more either.
        let _ = self.scout.clear_worker(worker);
    }
}
