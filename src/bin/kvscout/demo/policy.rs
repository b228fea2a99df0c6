//! How a router chooses an engine.

use super::random::{Random, mix};
use super::workload::Turn;

/// What a prompt token that must be computed outweighs in tokens that wait: besides the time that it
/// takes, its block displaces another one, and the next turn finds the conversation in two places.
/// With 1, conversations wander so much that session affinity has more cached here.
const COMPUTED_COST: u64 = 3;

/// What a sequence in progress counts for, in tokens that wait: its decoding slows others down and
/// its blocks cannot be evicted, so that new users go elsewhere even where a system prompt is cached.
const RUNNING_COST: u64 = 300;

/// The policies that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Any engine.
    Random,
    /// One after the other.
    RoundRobin,
    /// By a hash of the conversation.
    Affinity,
    /// By what the index says of each engine's cache, and by load.
    Kvscout,
}

impl Policy {
    pub(super) const ALL: [Policy; 4] =
        [Policy::Random, Policy::RoundRobin, Policy::Affinity, Policy::Kvscout];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Policy::Random => "random",
            Policy::RoundRobin => "round-robin",
            Policy::Affinity => "session affinity",
            Policy::Kvscout => "kvscout",
        }
    }
}

/// What a router knows of an engine's load from its own traffic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Prompt tokens that wait to be computed.
    pub(super) waiting_tokens: u64,
    /// Requests in progress.
    pub(super) running: u64,
}

/// A policy at work.
#[derive(Debug)]
pub(super) struct Router {
    policy: Policy,
    random: Random,
    next: usize,
}

impl Router {
    pub(super) fn new(policy: Policy, seed: u64) -> Router {
        Router { policy, random: Random::new(seed, 1), next: 0 }
    }

    /// The engine for a request; `cached` and `loads` have one entry for each engine.
    pub(super) fn choose(&mut self, turn: &Turn, cached: &[u32], loads: &[Load]) -> usize {
        let engines = loads.len();
        match self.policy {
            Policy::Random => self.random.below(engines as u64) as usize,
            Policy::RoundRobin => {
                let chosen = self.next;
                self.next = (chosen + 1) % engines;
                chosen
            }
            Policy::Affinity => (mix(turn.session) % engines as u64) as usize,
            Policy::Kvscout => {
                let tokens = turn.token_ids.len() as u64;
                let cost = |n: &usize| cost(tokens, cached[*n], loads[*n]);
                (0..engines).min_by_key(cost).unwrap_or(0)
            }
        }
    }
}

/// What it costs to send a request to an engine, in tokens that wait there: those that do, the
/// request's own that are not cached, and the sequences in progress. The one formula trades cache
/// for load without thresholds.
fn cost(tokens: u64, cached: u32, load: Load) -> u64 {
    let computed = tokens.saturating_sub(u64::from(cached));
    load.waiting_tokens + load.running * RUNNING_COST + computed * COMPUTED_COST
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn choose(policy: Policy, session: u64, cached: &[u32], loads: &[Load]) -> usize {
        let (token_ids, reply) = (Arc::from([7; 1000]), Arc::from([]));
        let turn = Turn { at: 0, session, token_ids, reply };
        Router::new(policy, 1).choose(&turn, cached, loads)
    }

    #[test]
    fn the_score_wins_unless_too_much_waits_there() {
        let mut loads = [Load::default(); 3];
        assert_eq!(choose(Policy::Kvscout, 1, &[0, 800, 320], &loads), 1);
        loads[1].waiting_tokens = (800 - 320) * COMPUTED_COST + 1;
        assert_eq!(choose(Policy::Kvscout, 1, &[0, 800, 320], &loads), 2);
        loads[2].running = 320 * COMPUTED_COST / RUNNING_COST + 1;
        loads[1].waiting_tokens = 5000;
        assert_eq!(choose(Policy::Kvscout, 1, &[0, 800, 320], &loads), 0);
    }

    #[test]
    fn a_session_stays_with_its_engine() {
        let loads = [Load::default(); 4];
        let engines: Vec<_> =
            (0..40).map(|session| choose(Policy::Affinity, session, &[0; 4], &loads)).collect();
        assert!((0..4).all(|n| engines.contains(&n)));
        assert_eq!(choose(Policy::Affinity, 7, &[9, 9, 9, 9], &loads), engines[7]);
    }
}
