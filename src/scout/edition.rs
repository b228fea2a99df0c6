//! Adapters that were told to be something else under their old name.
//!
//! A cleared adapter starts a new edition. The edition is part of the content of its blocks, so that
//! those of earlier ones match nothing any more, at once and without being looked for; they go when
//! their engines remove them, or make room for others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::ingest::snapshot::EditionState;

/// The editions of all adapters, by tenant and name; 0 for those that were never cleared.
#[derive(Debug, Default)]
pub(super) struct Editions {
    /// Whether there is any beside 0; most never come to have one.
    any: AtomicBool,
    numbers: RwLock<HashMap<String, HashMap<String, u32>>>,
}

impl Editions {
    /// Editions as a snapshot has them.
    pub(super) fn resume(states: &[EditionState]) -> Editions {
        let mut numbers: HashMap<String, HashMap<String, u32>> = HashMap::new();
        for EditionState { tenant, adapter, number } in states {
            numbers.entry(tenant.clone()).or_default().insert(adapter.clone(), *number);
        }
        Editions { any: AtomicBool::new(!numbers.is_empty()), numbers: RwLock::new(numbers) }
    }

    /// All but 0, by tenant and name.
    pub(super) fn state(&self) -> Vec<EditionState> {
        let numbers = self.numbers.read();
        let mut all = Vec::new();
        for (tenant, of_tenant) in &*numbers {
            all.extend(of_tenant.iter().map(|(adapter, &number)| EditionState {
                tenant: tenant.clone(),
                adapter: adapter.clone(),
                number,
            }));
        }
        all.sort_unstable_by(|a, b| (&a.tenant, &a.adapter).cmp(&(&b.tenant, &b.adapter)));
        all
    }

    /// The edition of a tenant's adapter.
    #[inline]
    pub(super) fn of(&self, tenant: &str, adapter: Option<&str>) -> u32 {
        match adapter {
            Some(adapter) if self.any.load(Ordering::Acquire) => {
                let numbers = self.numbers.read();
                numbers.get(tenant).and_then(|of| of.get(adapter)).copied().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Whether any adapter of a tenant has one beside 0.
    pub(super) fn any_of(&self, tenant: &str) -> bool {
        self.any.load(Ordering::Acquire) && self.numbers.read().contains_key(tenant)
    }

    /// Takes over what somebody else says.
    #[cfg(feature = "redis")]
    pub(super) fn set(&self, states: &[EditionState]) {
        let said = Editions::resume(states);
        *self.numbers.write() = said.numbers.into_inner();
        self.any.store(!states.is_empty(), Ordering::Release);
    }

    /// Starts a new one.
    pub(super) fn begin(&self, tenant: &str, adapter: &str) {
        let mut numbers = self.numbers.write();
        let of_tenant = numbers.entry(tenant.to_owned()).or_default();
        *of_tenant.entry(adapter.to_owned()).or_default() += 1;
        self.any.store(true, Ordering::Release);
    }
}
