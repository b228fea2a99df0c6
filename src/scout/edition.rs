//! Adapters that were told to be something else under their old name.
//!
//! A cleared adapter starts a new edition. The edition is part of the content of its blocks, so that
//! those of earlier ones match nothing any more, at once and without being looked for; they go when
//! their engines remove them, or make room for others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

/// The editions of all adapters, by tenant and name; 0 for those that were never cleared.
#[derive(Debug, Default)]
pub(super) struct Editions {
    /// Whether there is any beside 0; most never come to have one.
    any: AtomicBool,
    numbers: RwLock<HashMap<String, HashMap<String, u32>>>,
}

impl Editions {
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

    /// Starts a new one.
    pub(super) fn begin(&self, tenant: &str, adapter: &str) {
        let mut numbers = self.numbers.write();
        let of_tenant = numbers.entry(tenant.to_owned()).or_default();
        *of_tenant.entry(adapter.to_owned()).or_default() += 1;
        self.any.store(true, Ordering::Release);
    }
}
