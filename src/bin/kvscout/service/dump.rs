//! What workers hold, as events that would bring it about.

use std::collections::{BTreeMap, HashSet};

use kvscout::block::{BlockSize, Group, Name, Tier, WorkerId};
use kvscout::score::GroupRule;
use kvscout::scout::{Registration, WorkerStatus};

use super::{Refusal, Service};

/// More entries than these are not written out: 100 MB of text. Replicas begin with a snapshot.
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
    pub(crate) worker: WorkerId,
    pub(crate) pod: String,
    pub(crate) rank: u32,
    pub(crate) tier: Tier,
    /// How many blocks of the prompt come before.
    pub(crate) at: u32,
    pub(crate) parent: Option<Name>,
    pub(crate) blocks: Vec<Block>,
}

/// A block by its name and, where that is kept, by Dynamo's hash of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) name: Name,
    pub(crate) hash: Option<u64>,
}

impl Service {
    /// What every worker holds of the group that its matches are counted in: no tokens and no salts. What comes
    /// before in a prompt comes before here, too.
    pub(crate) fn dump(&self) -> Result<BTreeMap<Context, Vec<Stored>>, Refusal> {
        self.follows_engines("write out what workers hold")?;
        let entries = self.scout.stats().entries;
        if entries > MOST_ENTRIES {
            return Err(Refusal::Unavailable(format!(
                "{entries} entries are more than are written out ({MOST_ENTRIES}); begin a replica \
                 with a snapshot"
            )));
        }
        let hashes = self.scout.local_hashes();
        let workers = self.scout.workers().into_iter();
        let workers: BTreeMap<WorkerId, (Option<Group>, Registration)> = workers
            .map(|status| (status.worker, (counted(&status), status.registration)))
            .collect();
        let mut contexts: BTreeMap<Context, Vec<Stored>> = BTreeMap::new();
        self.scout.holdings(|holding| {
            // One that was registered since.
            let Some((group, registration)) = workers.get(&holding.worker) else { return };
            if *group != Some(holding.group) || holding.tier == Tier::Unknown {
                return;
            }
            let Registration { model, tenant, pod, rank, .. } = registration.clone();
            let context = Context { model, tenant, block_size: holding.shape.size };
            let blocks = holding.names.iter().zip(holding.contents);
            let block = |(&name, content)| Block { name, hash: hashes.get(content).copied() };
            contexts.entry(context).or_default().push(Stored {
                worker: holding.worker,
                pod,
                rank,
                tier: holding.tier,
                at: holding.at,
                parent: holding.parent,
                blocks: blocks.map(block).collect(),
            });
        })?;
        contexts.values_mut().for_each(|stored| stored.sort_by_key(|stored| stored.at));
        Ok(contexts)
    }
}

/// The first group in which all leading blocks count.
fn counted(status: &WorkerStatus) -> Option<Group> {
    let whole = |rule| matches!(rule, GroupRule::Full | GroupRule::Unannounced);
    status.groups.iter().find(|facts| whole(facts.rule)).map(|facts| facts.group)
}

/// The stretches that an index of Dynamo's can take: blocks with its hashes, from the beginning of a prompt or behind
/// what is told of the same worker before; in a lower tier also behind a faster one. A pod whose name is no
/// number has no place in it.
pub(crate) fn told_by_hash(stored: Vec<Stored>) -> Vec<Stored> {
    let mut told: HashSet<(WorkerId, bool, Name)> = HashSet::new();
    let connected = stored.into_iter().filter_map(|mut stored| {
        stored.pod.parse::<u64>().ok()?;
        let (worker, is_device) = (stored.worker, stored.tier == Tier::Gpu);
        let follows = match stored.parent {
            Some(parent) => {
                told.contains(&(worker, true, parent))
                    || !is_device && told.contains(&(worker, false, parent))
            }
            // Where something comes before that has no name nobody can say what this follows.
            None => stored.at == 0,
        };
        let known = stored.blocks.iter().take_while(|block| block.hash.is_some()).count();
        if !follows || known == 0 {
            return None;
        }
        stored.blocks.truncate(known);
        told.extend(stored.blocks.iter().map(|block| (worker, is_device, block.name)));
        Some(stored)
    });
    connected.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(
        pod: &str,
        tier: Tier,
        at: u32,
        parent: Option<u64>,
        blocks: &[(u64, Option<u64>)],
    ) -> Stored {
        let block = |&(name, hash)| Block { name: Name(name), hash };
        Stored {
            worker: WorkerId(pod.len() as u32),
            pod: pod.to_owned(),
            rank: 0,
            tier,
            at,
            parent: parent.map(Name),
            blocks: blocks.iter().map(block).collect(),
        }
    }

    fn names(told: &[Stored]) -> Vec<Vec<u64>> {
        told.iter().map(|stored| stored.blocks.iter().map(|block| block.name.0).collect()).collect()
    }

    #[test]
    fn only_what_hangs_together_is_told_to_an_index_of_another_kind() {
        let told = told_by_hash(vec![
            stored("7", Tier::Gpu, 0, None, &[(1, Some(1)), (2, Some(2)), (3, None), (4, Some(4))]),
            stored("text", Tier::Gpu, 0, None, &[(1, Some(1))]),
            stored("77", Tier::Gpu, 0, None, &[(1, None)]),
            // Behind what is told, what is not, what another worker holds, and what has no name.
            stored("7", Tier::Cpu, 2, Some(2), &[(3, Some(3))]),
            stored("7", Tier::Gpu, 3, Some(3), &[(4, Some(4))]),
            stored("77", Tier::Gpu, 1, Some(1), &[(2, Some(2))]),
            stored("7", Tier::Gpu, 3, None, &[(5, Some(5))]),
            stored("7", Tier::Disk, 3, Some(3), &[(6, Some(6))]),
        ]);
        assert_eq!(names(&told), [vec![1, 2], vec![3], vec![6]]);
    }
}
