//! From the bytes of a batch to an index that readers see changed.
//!
//! Engines with full pools store 32 blocks and evict 32 in every batch; nothing is shared between
//! them, and batches come from one engine after the other, so that little is in the cache.

use serde_json::json;

use super::{Options, progress};
use crate::clock::{median, pin, thread_cpu};
use crate::dynamo::{Crtc, Listeners};
use crate::ours::{Engine, Hash, Scouted};
use crate::peer::{Peer, Ranker};
use crate::rng::mix;
use crate::row::Row;
use crate::wire::Payload;
use crate::workload::{Block, content, tokens};

/// The row of this part.
pub const ROW: &str = "wire-to-applied";

/// Blocks stored, and blocks evicted, in a batch.
const STEP: usize = 32;

/// Steps until an engine goes on with a new prompt, of 1024 blocks.
const STEPS: usize = 32;

/// Measures the row if it is wanted.
pub fn rows(options: &Options) -> Vec<Row> {
    if !options.wants(ROW) {
        return Vec::new();
    }
    progress("wire: load");
    let (workers, pool) = if options.quick { (16, 4096) } else { (64, 16_384) };
    let mut engines: Vec<Serving> = (0..workers).map(|n| Serving::new(n, pool)).collect();
    let mut scouted = Scouted::new(workers);
    let mut listeners = Listeners::new(workers);
    for _ in 0..pool / STEP {
        let mut decoded = Vec::new();
        for (worker, engine) in engines.iter_mut().enumerate() {
            let payload = engine.step();
            assert_eq!(scouted.receive(worker, &payload), STEP as u64, "the pool is not full yet");
            listeners.decode(worker, &payload, &mut decoded);
        }
        listeners.apply(decoded);
    }

    progress("wire");
    pin(1);
    let rounds = if options.quick { 4 } else { 20 };
    let (mut ours, mut decode, mut apply) = (vec![], vec![], vec![]);
    for _ in 0..options.reps {
        let steps = (0..rounds).flat_map(|_| 0..workers);
        let payloads: Vec<_> = steps.map(|worker| (worker, engines[worker].step())).collect();
        let blocks = (payloads.len() * 2 * STEP) as f64;
        let per_block = |seconds: f64| seconds * 1e9 / blocks;

        let start = thread_cpu();
        let applied: u64 =
            payloads.iter().map(|(worker, payload)| scouted.receive(*worker, payload)).sum();
        ours.push(per_block(thread_cpu() - start));
        assert_eq!(applied as f64, blocks, "every copy is applied");

        let start = thread_cpu();
        let mut decoded = Vec::with_capacity(payloads.len() * (STEP + 1));
        for (worker, payload) in &payloads {
            listeners.decode(*worker, payload, &mut decoded);
        }
        decode.push(per_block(thread_cpu() - start));
        apply.push(per_block(listeners.apply(decoded)));
    }

    let tree = &listeners.tree;
    let wrong = engines.iter().enumerate().map(|(worker, engine)| {
        usize::from(!engine.agrees(worker, &scouted)) + usize::from(!engine.agrees(worker, tree))
    });
    let wrong: usize = wrong.sum();
    let doubts = scouted.doubts();
    let sums: Vec<f64> = decode.iter().zip(&apply).map(|(decode, apply)| decode + apply).collect();
    let detail = json!({
        "blocks_named_per_batch": 2 * STEP, "batches_per_repetition": rounds * workers,
        "entries": scouted.entries(), "ours": ours, "rival_decode": decode, "rival_apply": apply,
    });
    let row = Row::new(ROW, median(&ours), median(&sums), <Crtc as Peer>::NAME, detail)
        .fail_if(wrong > 0, "an index gives wrong scores")
        .fail_if(doubts > 0, "workers are not trusted or have no known contract")
        .fail_if(scouted.entries() != workers * pool, "the index lost entries");
    vec![row]
}

/// An engine that computes one prompt after the other and evicts the oldest from its end.
struct Serving {
    number: usize,
    hashing: Engine,
    prompts: std::collections::VecDeque<Vec<Block>>,
    last: Option<Hash>,
    stored: usize,
    pool: usize,
    held: usize,
}

impl Serving {
    fn new(number: usize, pool: usize) -> Serving {
        Serving {
            number,
            hashing: Engine::default(),
            prompts: std::collections::VecDeque::new(),
            last: None,
            stored: 0,
            pool,
            held: 0,
        }
    }

    /// The payload of the next step.
    fn step(&mut self) -> Vec<u8> {
        if self.stored.is_multiple_of(STEP * STEPS) {
            self.prompts.push_back(Vec::new());
            self.last = None;
        }
        let mut evicted = Vec::new();
        while self.held + STEP > self.pool + evicted.len() {
            let Some(oldest) = self.prompts.front_mut() else { break };
            match oldest.pop() {
                Some(block) => evicted.push(block.name),
                None => drop(self.prompts.pop_front()),
            }
        }
        let parent = self.last.map(|hash| hash.name().0);
        let mut blocks = Vec::with_capacity(STEP);
        for _ in 0..STEP {
            let text = mix((self.number as u64) << 40 | self.stored as u64);
            let hash = self.hashing.block(self.last.as_ref(), &tokens(text));
            blocks.push(Block { name: hash.name().0, content: content(text), text });
            self.last = Some(hash);
            self.stored += 1;
        }
        self.held += STEP;
        self.held -= evicted.len();
        let newest = self.prompts.back_mut().expect("a prompt is being computed");
        newest.extend(&blocks);
        let mut payload = Payload::new(evicted.len() + 1);
        evicted.into_iter().for_each(|name| payload.removed(name));
        payload.stored(parent, &blocks);
        payload.finish()
    }

    /// Whether an index knows what is left of the oldest and of the newest prompt.
    fn agrees(&self, worker: usize, ranker: &impl Ranker) -> bool {
        let prompts = [self.prompts.front(), self.prompts.back()];
        prompts.into_iter().flatten().all(|prompt| {
            let mut asked: Vec<u32> = prompt.iter().flat_map(|block| tokens(block.text)).collect();
            asked.extend(tokens(1));
            let mut leading = vec![0; worker + 64];
            ranker.check(&asked, &mut leading);
            leading[worker] as usize == prompt.len()
        })
    }
}
