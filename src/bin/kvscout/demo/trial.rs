//! One policy serves the workload, and every prediction is held against the engine's answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kvscout::block::TokenId;

use super::Failure;
use super::engine::{PoolFull, RequestId};
use super::fleet::Fleet;
use super::policy::{Load, Policy, Router};
use super::workload::{Millis, Turn};

/// How fast an engine computes prompts, one after the other: 8,000 tokens a second.
const PREFILL_TOKENS_PER_MS: u64 = 8;
/// How fast a reply grows, however many others do: 100 tokens a second.
const DECODE_MS_PER_TOKEN: Millis = 10;

/// A policy with engines and an index of its own.
pub(super) struct Trial {
    pub(super) policy: Policy,
    router: Router,
    fleet: Fleet,
    /// Until when each engine computes the prompts that it has.
    busy_until: Vec<Millis>,
    running: BTreeMap<(Millis, RequestId), Running>,
    tally: Tally,
}

struct Running {
    engine: usize,
    reply: Arc<[TokenId]>,
}

/// What came of the requests so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) prompt_tokens: u64,
    /// As the engines said.
    pub(super) cached_tokens: u64,
    /// Requests of which the index, once it had applied all that was published, said the same.
    pub(super) as_predicted: u64,
    /// Requests of which it said something else when it was asked at once.
    pub(super) differed_at_once: u64,
    pub(super) scoring: Vec<Duration>,
    /// Modelled time to first token.
    pub(super) first_token: Vec<Millis>,
    pub(super) engines: Vec<PerEngine>,
    /// Every request, in order.
    pub(super) served: Vec<Served>,
}

/// What one request found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    pub(super) at: Millis,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
}

/// An engine's part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PerEngine {
    pub(super) requests: u64,
    pub(super) computed_tokens: u64,
}

impl Trial {
    pub(super) fn start(
        policy: Policy,
        seed: u64,
        engines: usize,
        blocks: u32,
    ) -> Result<Trial, Failure> {
        Ok(Trial {
            policy,
            router: Router::new(policy, seed),
            fleet: Fleet::start(engines, blocks)?,
            busy_until: vec![0; engines],
            running: BTreeMap::new(),
            tally: Tally { engines: vec![PerEngine::default(); engines], ..Tally::default() },
        })
    }

    /// Lets the policy choose an engine for a turn, and the engine serve it. Turns come by time.
    pub(super) fn serve(&mut self, id: RequestId, turn: &Turn) -> Result<(), Failure> {
        while let Some((&key, _)) = self.running.first_key_value()
            && key.0 <= turn.at
        {
            self.finish(key)?;
        }
        let at_once = self.fleet.predict(&turn.token_ids)?;
        self.fleet.catch_up()?;
        let prediction = self.fleet.predict(&turn.token_ids)?;
        let chosen = self.router.choose(turn, &prediction.cached, &self.loads(turn.at));

        let mut predicted = prediction.cached[chosen];
        let cached = loop {
            match self.fleet.engine(chosen).serve(id, Arc::clone(&turn.token_ids))? {
                Ok(cached) => break cached,
                // The request waits until another one ends; what it finds then is another question.
                Err(PoolFull) => {
                    self.finish_next_of(chosen)?;
                    self.fleet.catch_up()?;
                    predicted = self.fleet.predict(&turn.token_ids)?.cached[chosen];
                }
            }
        };

        let tally = &mut self.tally;
        tally.as_predicted += u64::from(predicted == cached);
        tally.differed_at_once += u64::from(at_once.cached[chosen] != cached);
        tally.scoring.push(prediction.took);
        self.account(id, turn, chosen, cached);
        Ok(())
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The engines and what the index knows of them, once it knows everything.
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    fn account(&mut self, id: RequestId, turn: &Turn, engine: usize, cached: u32) {
        let tokens = turn.token_ids.len() as u64;
        let computed = tokens - u64::from(cached);
        let begins = self.busy_until[engine].max(turn.at);
        let first_token = begins + computed.div_ceil(PREFILL_TOKENS_PER_MS);
        self.busy_until[engine] = first_token;
        let ends = first_token + turn.reply.len() as u64 * DECODE_MS_PER_TOKEN;
        self.running.insert((ends, id), Running { engine, reply: Arc::clone(&turn.reply) });

        let tally = &mut self.tally;
        tally.requests += 1;
        tally.prompt_tokens += tokens;
        tally.cached_tokens += u64::from(cached);
        tally.first_token.push(first_token - turn.at);
        tally.served.push(Served {
            at: turn.at,
            prompt_tokens: tokens,
            cached_tokens: u64::from(cached),
        });
        tally.engines[engine].requests += 1;
        tally.engines[engine].computed_tokens += computed;
    }

    fn loads(&self, now: Millis) -> Vec<Load> {
        let waiting = |until: &Millis| until.saturating_sub(now) * PREFILL_TOKENS_PER_MS;
        let mut loads: Vec<Load> = self
            .busy_until
            .iter()
            .map(|until| Load { waiting_tokens: waiting(until), running: 0 })
            .collect();
        for running in self.running.values() {
            loads[running.engine].running += 1;
        }
        loads
    }

    fn finish_next_of(&mut self, engine: usize) -> Result<(), Failure> {
        let next = self.running.iter().find(|(_, running)| running.engine == engine);
        let Some((&key, _)) = next else {
            return Err("a prompt does not fit into an engine's cache".into());
        };
        self.finish(key)
    }

    fn finish(&mut self, key: (Millis, RequestId)) -> Result<(), Failure> {
        match self.running.remove(&key) {
            Some(Running { engine, reply }) => self.fleet.engine(engine).finish(key.1, reply),
            None => Ok(()),
        }
    }
}
