//! How much whoever may register can add, and adapters, which leave with the last worker of their model.

use std::collections::{BTreeMap, HashSet};

use kvscout::block::WorkerId;
use kvscout::scout;

use super::{Enrolment, Origin, Refusal, Service};
use crate::config::Config;
use crate::intake::Feed;

/// The bounds, and what does not count.
#[derive(Debug)]
pub(super) struct Bounds {
    workers: usize,
    adapters: usize,
    /// Adapters of the configuration, by tenant and name: they stay, whoever serves their model.
    configured: HashSet<(String, String)>,
}

impl Bounds {
    pub(super) fn new(config: &Config) -> Bounds {
        let adapters = config.adapters.iter();
        Bounds {
            workers: config.limits.registered_workers,
            adapters: config.limits.adapters,
            configured: adapters.map(|of| (of.tenant.clone(), of.name.clone())).collect(),
        }
    }
}

impl Service {
    /// Whether there is room for a worker that is not known yet.
    pub(super) fn has_room_for(
        &self,
        enrolment: &Enrolment,
        feeds: &BTreeMap<WorkerId, Feed>,
    ) -> Result<(), Refusal> {
        if enrolment.origin != Origin::Requested {
            return Ok(());
        }
        let requested =
            |feed: &&Feed| matches!(feed, Feed::Source { origin: Origin::Requested, .. });
        let (most, there) = (self.bounds.workers, feeds.values().filter(requested).count());
        match there < most {
            true => Ok(()),
            false => Err(full(there, "workers are", "limits.registered_workers", most)),
        }
    }

    /// Registers a worker, and makes an adapter's name stand for its model.
    pub(crate) fn register_with_adapter(
        &self,
        enrolment: Enrolment,
        name: &str,
        model: &str,
    ) -> Result<(), Refusal> {
        let tenant = enrolment.registration.tenant.clone();
        // Before the worker, which would else be there without it.
        self.has_room_for_adapter(&tenant, name)?;
        self.register(enrolment)?;
        let _one_at_a_time = self.enrolling.lock();
        self.has_room_for_adapter(&tenant, name)?;
        // The worker may be gone again.
        if !self.scout.serves(&tenant, model) {
            return Ok(());
        }
        let adapter = scout::Adapter { model: model.to_owned(), id: None, path: None };
        self.scout.register_adapter(&tenant, name, adapter);
        Ok(())
    }

    fn has_room_for_adapter(&self, tenant: &str, name: &str) -> Result<(), Refusal> {
        let bounds = &self.bounds;
        let named: HashSet<_> =
            self.scout.adapters().into_iter().map(|of| (of.tenant, of.name)).collect();
        let there = named.difference(&bounds.configured).count();
        match there < bounds.adapters || named.contains(&(tenant.to_owned(), name.to_owned())) {
            true => Ok(()),
            false => Err(full(there, "adapters are", "limits.adapters", bounds.adapters)),
        }
    }

    /// Forgets the adapters that requests registered of models that nobody serves any more.
    pub(super) fn forget_adapters(&self) {
        for of in self.scout.adapters() {
            if self.scout.serves(&of.tenant, &of.model) {
                continue;
            }
            let named = (of.tenant, of.name);
            if !self.bounds.configured.contains(&named) {
                self.scout.unregister_adapter(&named.0, &named.1);
            }
        }
    }
}

fn full(there: usize, what: &str, limit: &str, most: usize) -> Refusal {
    Refusal::NotAllowed(format!(
        "{there} {what} registered by requests already, and there may be {most} ({limit})"
    ))
}
