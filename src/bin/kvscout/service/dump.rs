//! What workers hold, as events that would bring it about.

use std::collections::BTreeMap;

use kvscout::block::{BlockSize, Name, Tier, WorkerId};
use kvscout::scout::Registration;

use super::{Refusal, Service};

/// More entries than these are not written out: 64 MB of text. Replicas begin with a snapshot.
const MOST_ENTRIES: u64 = 1 << 20;

/// What belongs together in a dump.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Context {
    pub(crate) model: Option<String>,
    pub(crate) tenant: String,
    pub(crate) block_size: BlockSize,
}

/// Blocks of one chain that a worker holds in a tier.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) pod: String,
    pub(crate) rank: u32,
    pub(crate) tier: Tier,
    pub(crate) parent: Option<Name>,
    pub(crate) names: Vec<Name>,
}

impl Service {
    /// What every worker holds, by name: no tokens and no salts.
    pub(crate) fn dump(&self) -> Result<BTreeMap<Context, Vec<Stored>>, Refusal> {
        self.follows_engines("write out what workers hold")?;
        let entries = self.scout.stats().entries;
        if entries > MOST_ENTRIES {
            return Err(Refusal::Unavailable(format!(
                "{entries} entries are more than are written out ({MOST_ENTRIES}); begin a replica \
                 with a snapshot"
            )));
        }
        let workers = self.scout.workers().into_iter();
        let workers: BTreeMap<WorkerId, Registration> =
            workers.map(|status| (status.worker, status.registration)).collect();
        let mut contexts: BTreeMap<Context, Vec<Stored>> = BTreeMap::new();
        self.scout.holdings(|holding| {
            // One that was registered since.
            let Some(registration) = workers.get(&holding.worker) else { return };
            let Registration { model, tenant, pod, rank, .. } = registration.clone();
            let context = Context { model, tenant, block_size: holding.shape.size };
            contexts.entry(context).or_default().push(Stored {
                pod,
                rank,
                tier: holding.tier,
                parent: holding.parent,
                names: holding.names.to_vec(),
            });
        })?;
        Ok(contexts)
    }
}
