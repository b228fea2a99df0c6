//! The walk of a query down one tree.
//!
//! Content leads: the walk follows the digests from the root. Beside it, blocks that are known by
//! name only are found under the name that each vocabulary gives to the prompt's block.

use std::collections::BTreeMap;

use super::State;
use super::tree::{Holder, NodeId};
use crate::block::{Group, Tier, VocabularyId, WorkerId};
use crate::index::{BlockSource, Match, Matches, Query, Span};

/// One (worker, group) during the walk.
#[derive(Default)]
struct Row {
    leading: [u32; 4],
    fastest: [u32; 4],
    spans: Vec<(u32, u32)>,
}

type Rows = BTreeMap<(WorkerId, Group), Row>;

impl State {
    pub(super) fn lookup(
        &self,
        query: &Query<'_>,
        blocks: &mut impl BlockSource,
        matches: &mut Matches,
    ) {
        matches.clear();
        let vocabularies = self.vocabularies_of(query);
        let root = self.roots.get(&(query.space, query.shape)).copied();
        let mut path = root;
        // Nodes reached by name at the block before; only a query without content uses them.
        let mut named: Vec<NodeId> = root.into_iter().collect();
        let unplaced = vocabularies.iter().any(|&vocabulary| {
            self.tables.get(&(query.space, vocabulary)).is_some_and(|t| !t.unplaced.is_empty())
        });
        let mut rows = Rows::new();
        for at in 0..blocks.len() {
            let mut here: Vec<Holder> = Vec::new();
            let digest = blocks.digest(at);
            if let Some(digest) = digest {
                path = path.and_then(|node| self.tree.find(node, digest));
                here.extend(path.iter().flat_map(|&node| self.tree.holders(node)));
            } else {
                path = None;
            }
            let mut next_named = Vec::new();
            for &vocabulary in &vocabularies {
                let Some(table) = self.tables.get(&(query.space, vocabulary)) else { continue };
                if digest.is_some() && table.unplaced.is_empty() {
                    continue;
                }
                let Some(name) = blocks.name(vocabulary, at) else { continue };
                if digest.is_none() {
                    // A 64-bit name may be shared by chance: only the one below the block before.
                    let below = |n: &&NodeId| {
                        self.tree.parent(**n).is_some_and(|parent| named.contains(&parent))
                    };
                    for &node in table.nodes(name).iter().filter(below) {
                        next_named.push(node);
                        let spoken = self.tree.holders(node).iter().filter(|h| {
                            self.workers
                                .get(&h.worker)
                                .is_some_and(|w| w.home.vocabulary == vocabulary)
                        });
                        here.extend(spoken);
                    }
                }
                here.extend(table.unplaced.get(&name).iter().flat_map(|block| &block.holders));
            }
            named = next_named;
            let alive = step(&mut rows, query, at as u32, &here);
            let reachable = path.is_some() || !named.is_empty() || unplaced;
            let goes_on = alive || (query.spans && reachable);
            if !goes_on {
                break;
            }
        }
        for ((worker, group), row) in rows {
            if row.leading[3] > 0 {
                let Row { leading, fastest, .. } = row;
                matches.matches.push(Match { worker, group, leading, fastest });
            }
            if query.spans {
                let span = |(start, end)| Span { worker, group, start, end };
                matches.spans.extend(row.spans.into_iter().map(span));
            }
        }
    }

    /// The vocabularies of the workers that may answer.
    fn vocabularies_of(&self, query: &Query<'_>) -> Vec<VocabularyId> {
        let asked = self
            .workers
            .iter()
            .filter(|(id, worker)| worker.home.space == query.space && is_candidate(query, **id));
        let mut all: Vec<VocabularyId> = asked.map(|(_, w)| w.home.vocabulary).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn is_candidate(query: &Query<'_>, worker: WorkerId) -> bool {
    query.candidates.is_none_or(|ids| ids.binary_search(&worker).is_ok())
}

/// Counts block `at` for everyone who holds it; says whether anyone's leading stretch goes on.
fn step(rows: &mut Rows, query: &Query<'_>, at: u32, here: &[Holder]) -> bool {
    let mut tiers: BTreeMap<(WorkerId, Group), [bool; 4]> = BTreeMap::new();
    for holder in here {
        if let Some(rank) = holder.tier.rank()
            && is_candidate(query, holder.worker)
        {
            tiers.entry((holder.worker, holder.group)).or_default()[rank] = true;
        }
    }
    let mut alive = false;
    for (key, has) in tiers {
        let row = rows.entry(key).or_default();
        let Some(fastest) = has.iter().position(|&h| h) else { continue };
        for rank in fastest..4 {
            if row.leading[rank] == at {
                row.leading[rank] += 1;
            }
        }
        if row.leading[3] == at + 1 {
            row.fastest[fastest] += 1;
            alive = true;
        }
        if Tier::KNOWN[fastest] == Tier::Gpu {
            match row.spans.last_mut() {
                Some((_, end)) if *end == at => *end += 1,
                _ => row.spans.push((at, at + 1)),
            }
        }
    }
    alive
}
