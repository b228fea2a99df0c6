//! Some engines, and the real thing that watches them: ZeroMQ receiver, ingest, index, scoring.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvscout::block::{BlockSize, Prompt, TokenId, WorkerId};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use kvscout::ingest::zmq::{self as transport, Mode, Receiver, Sink, Source, SourceId};
use kvscout::scout::{self, Registration, Request, Scout, Scratch, WorkerStatus};

use super::Failure;
use super::engine::Engine;
use super::serving::Server;

const MODEL: &str = "demo";

/// How long a message may take from an engine to the index before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The engines that serve one policy, and their index.
pub(super) struct Fleet {
    engines: Vec<Server>,
    workers: Vec<WorkerId>,
    scout: Arc<Scout>,
    applied: Arc<Applied>,
    scratch: Scratch,
    /// Held for its thread, which feeds the scout.
    _receiver: Receiver,
}

/// What the index says of one prompt.
pub(super) struct Prediction {
    /// The tokens that each engine would find in its cache.
    pub(super) cached: Vec<u32>,
    /// How long the question took.
    pub(super) took: Duration,
}

impl Fleet {
    /// Starts engines with `blocks` blocks each, whose every message will reach the index.
    pub(super) fn start(engines: usize, blocks: u32) -> Result<Fleet, Failure> {
        let context = zmq::Context::new();
        let contract = Contract::new(Version::new(0, 33, 0), Algorithm::Sha256Cbor, Root::Unset)?;
        let mut engines: Vec<Server> = (0..engines)
            .map(|_| {
                let engine = Engine::new(contract.clone(), BlockSize::DEFAULT, blocks);
                Server::start(&context, engine)
            })
            .collect::<Result<_, _>>()?;

        let scout = Arc::new(Scout::new(scout::Options::default())?);
        let workers: Vec<WorkerId> = (0..engines.len())
            .map(|n| scout.register(Registration::new(format!("engine-{}", n + 1), MODEL)))
            .collect::<Result<_, _>>()?;
        let applied = Arc::new(Applied::new(engines.len()));
        let feed = Feed {
            scout: Arc::clone(&scout),
            workers: workers.clone(),
            applied: Arc::clone(&applied),
        };
        let receiver = Receiver::start(transport::Options::default(), feed)?;
        for (n, engine) in (0..).zip(&engines) {
            let source = Source::new(engine.endpoint().parse()?, Mode::Connect);
            receiver.add(SourceId(n), source)?;
        }
        for engine in &mut engines {
            engine.await_subscriber()?;
        }
        let scratch = Scratch::default();
        Ok(Fleet { engines, workers, scout, applied, scratch, _receiver: receiver })
    }

    pub(super) fn engine(&mut self, n: usize) -> &mut Server {
        &mut self.engines[n]
    }

    /// Waits until the index has applied everything that the engines have published.
    pub(super) fn catch_up(&self) -> Result<(), Failure> {
        let published: Vec<_> = self.engines.iter().map(Server::last).collect();
        if self.applied.wait_for(&published) {
            return Ok(());
        }
        Err(format!("an engine's message did not reach the index within {PATIENCE:?}").into())
    }

    /// Asks the index about a prompt.
    pub(super) fn predict(&mut self, token_ids: &[TokenId]) -> Result<Prediction, Failure> {
        let begun = Instant::now();
        let request = Request::new(MODEL, Prompt::new(token_ids));
        let ranked = self.scout.score(&request, &mut self.scratch)?;
        let took = begun.elapsed();
        let mut cached = vec![0; self.workers.len()];
        for answer in ranked {
            let Some(n) = self.workers.iter().position(|&worker| worker == answer.worker) else {
                continue;
            };
            cached[n] = answer
                .score
                .expected_cached_tokens
                .map_err(|reason| format!("no prediction for engine {n}: {}", reason.as_str()))?;
        }
        Ok(Prediction { cached, took })
    }

    /// What the index knows of each engine.
    pub(super) fn status(&self) -> Vec<WorkerStatus> {
        self.workers.iter().filter_map(|&worker| self.scout.worker(worker)).collect()
    }
}

/// Feeds the index from the receiver's thread.
struct Feed {
    scout: Arc<Scout>,
    workers: Vec<WorkerId>,
    applied: Arc<Applied>,
}

impl Sink for Feed {
    fn batch(&mut self, source: SourceId, _topic: &[u8], sequence: u64, payload: &[u8]) {
        let n = source.0 as usize;
        // Only an unregistered worker is refused, and all of them stay registered. What is wrong
        // with a batch shows in the worker's trust, which is reported at the end.
        if self.scout.apply(self.workers[n], sequence, payload).is_ok() {
            self.applied.advance(n, sequence);
        }
    }
}

/// The last message of each engine that the index has applied.
struct Applied {
    last: Mutex<Vec<Option<u64>>>,
    changed: Condvar,
}

impl Applied {
    fn new(engines: usize) -> Applied {
        Applied { last: Mutex::new(vec![None; engines]), changed: Condvar::new() }
    }

    fn advance(&self, n: usize, sequence: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last[n] = Some(sequence);
        self.changed.notify_one();
    }

    /// Whether every number was reached in time.
    fn wait_for(&self, published: &[Option<u64>]) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = |last: &mut Vec<Option<u64>>| {
            last.iter().zip(published).any(|(have, want)| have < want)
        };
        let waited = self.changed.wait_timeout_while(last, PATIENCE, behind);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
