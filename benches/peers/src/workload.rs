//! The workload: a fleet of engines with vLLM's block pools serves multi-turn sessions that open
//! with one of a few shared system prompts. The simulation gives the events that the engines would
//! publish and keeps the blocks that each of them holds, which is the oracle for every score.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ours::{Engine, Hash};
use crate::pool::Pool;
use crate::rng::{Rng, mix};

/// Tokens in a block: vLLM's default.
pub const BLOCK: usize = 16;

/// Both rivals digest a block's tokens with XXH3-64 under this seed.
const CONTENT_SEED: u64 = 1337;

/// Names are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only names are keys");
    }

    fn write_u64(&mut self, name: u64) {
        self.0 = name.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(20);
    }
}

/// A map by block name.
pub type ByName<V> = HashMap<u64, V, BuildHasherDefault<NameHasher>>;

/// A block as events and prompts show it.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The engine's name for it.
    pub name: u64,
    /// Digest of its tokens.
    pub content: u64,
    /// What its tokens are made from; see [`tokens`].
    pub text: u64,
}

/// What happened to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They became resident.
    Stored,
    /// They were evicted.
    Removed,
}

/// One event of one worker. vLLM names any number of blocks in a `BlockStored` and one in each
/// `BlockRemoved`.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The worker.
    pub worker: u16,
    /// What happened.
    pub kind: Kind,
    /// Number of blocks.
    pub len: u32,
    /// The first of them, in [`Stream::stored`] or [`Stream::removed`].
    pub start: u64,
    /// The name before the first stored block; `None` where a prompt starts.
    pub parent: Option<u64>,
}

/// A session's prompt and answers so far.
#[derive(Debug)]
pub struct Session {
    id: u64,
    system: u64,
    system_len: usize,
    /// Blocks so far.
    pub blocks: Vec<Block>,
    last: Option<Hash>,
}

/// The size of a fleet and how long it is watched.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Engines.
    pub workers: usize,
    /// Blocks of each engine's pool.
    pub pool: usize,
    /// System prompts; 32 in every run.
    pub system_prompts: usize,
    /// Whether sessions open with a system prompt and sometimes change their engine.
    pub share: bool,
    /// Blocks stored or evicted once the pools are full.
    pub churn: usize,
    /// Seed of the run.
    pub seed: u64,
}

/// Events of a fleet and its state after the last one.
#[derive(Debug)]
pub struct Stream {
    /// Blocks of `Stored` events.
    pub stored: Vec<Block>,
    /// Names of `Removed` events.
    pub removed: Vec<u64>,
    /// All events.
    pub events: Vec<Event>,
    /// Events before this one fill the pools (early evictions included).
    pub fill_end: usize,
    /// Every session.
    pub sessions: Vec<Session>,
    /// Sessions that go on.
    pub active: Vec<usize>,
    /// What each worker holds.
    pub held: Vec<ByName<u32>>,
    /// (block, worker) entries.
    pub entries: usize,
}

/// The tokens of a block, from a number that stands for them.
pub fn tokens(text: u64) -> [u32; BLOCK] {
    let mut tokens = [0; BLOCK];
    let mut state = text;
    for token in &mut tokens {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        *token = (mix(state) % 151_000) as u32;
    }
    tokens
}

/// The digest of a block's tokens as both rivals make it.
pub fn content(text: u64) -> u64 {
    let mut bytes = [0; BLOCK * 4];
    for (bytes, token) in bytes.chunks_exact_mut(4).zip(tokens(text)) {
        bytes.copy_from_slice(&token.to_le_bytes());
    }
    xxh3_64_with_seed(&bytes, CONTENT_SEED)
}

impl Session {
    fn text(&self, block: usize) -> u64 {
        if block < self.system_len {
            mix(0xA5A5_0000_0000_0000 ^ (self.system << 20) ^ block as u64)
        } else {
            mix(0x5A5A_0000_0000_0000 ^ (self.id << 14) ^ block as u64)
        }
    }

    fn extend_to(&mut self, len: usize, engine: &Engine) {
        while self.blocks.len() < len {
            let text = self.text(self.blocks.len());
            let hash = engine.block(self.last.as_ref(), &tokens(text));
            self.blocks.push(Block { name: hash.name().0, content: content(text), text });
            self.last = Some(hash);
        }
    }
}

/// What the simulation knows of a session and nobody else.
struct Plan {
    goal: usize,
    home: usize,
}

/// Runs the fleet.
pub fn simulate(fleet: &Fleet) -> Stream {
    let engine = Engine::default();
    let mut rng = Rng::new(fleet.seed);
    let mut pools: Vec<Pool> = (0..fleet.workers).map(|_| Pool::new(fleet.pool)).collect();
    let mut stream = Stream {
        stored: Vec::new(),
        removed: Vec::new(),
        events: Vec::new(),
        fill_end: 0,
        sessions: Vec::new(),
        active: Vec::new(),
        held: Vec::new(),
        entries: 0,
    };
    let system_len: Vec<usize> = (0..fleet.system_prompts).map(|_| 16 + rng.below(497)).collect();
    let full = (fleet.workers * fleet.pool) as f64 * 0.985;
    let mut plans: Vec<Plan> = Vec::new();
    let mut slots = Vec::new();
    let (mut filled, mut churned) = (false, 0);
    loop {
        if !filled && stream.entries as f64 >= full {
            filled = true;
            stream.fill_end = stream.events.len();
        }
        if filled && churned >= fleet.churn {
            break;
        }
        // A new session a quarter of the time, else the next turn of one that goes on.
        let few = stream.active.len() < fleet.workers * 8;
        let at = if few && (stream.active.is_empty() || rng.unit() < 0.25) {
            let system = if fleet.share { zipf(fleet.system_prompts, rng.unit()) } else { 0 };
            let system_len = if fleet.share { system_len[system] } else { 0 };
            let id = stream.sessions.len();
            plans.push(Plan {
                goal: system_len + rng.log_uniform(48, 1800),
                home: rng.below(fleet.workers),
            });
            stream.sessions.push(Session {
                id: id as u64,
                system: system as u64,
                system_len,
                blocks: Vec::new(),
                last: None,
            });
            stream.active.push(id);
            stream.active.len() - 1
        } else {
            rng.below(stream.active.len())
        };
        let number = stream.active[at];
        let Plan { goal, home } = plans[number];
        let stays = !fleet.share || rng.unit() < 0.85;
        let worker = if stays { home } else { rng.below(fleet.workers) };
        let session = &mut stream.sessions[number];
        let first = session.blocks.is_empty();
        let known = if first { session.system_len } else { session.blocks.len() };
        let asked = if first { rng.log_uniform(16, 512) } else { rng.log_uniform(8, 128) };
        let prompt = (known + asked).min(goal.max(known + 1));
        let len = prompt + 2 + rng.below(24);
        session.extend_to(len, &engine);

        // The engine serves the turn: hits leave its free list, the rest is computed in chunks,
        // then token by token; a finished request gives its blocks back tail first.
        let session = &stream.sessions[number];
        let pool = &mut pools[worker];
        slots.clear();
        slots.extend(session.blocks[..len].iter().map_while(|block| pool.hit(block.name)));
        let mut full = false;
        while slots.len() < len && !full {
            let done = slots.len();
            let chunk = if done < prompt { (1 + rng.below(64)).min(prompt - done) } else { 1 };
            for _ in 0..chunk {
                let Some((slot, evicted)) = pool.take() else {
                    full = true;
                    break;
                };
                if let Some(name) = evicted {
                    let start = stream.removed.len() as u64;
                    let (worker, kind) = (worker as u16, Kind::Removed);
                    stream.events.push(Event { worker, kind, len: 1, start, parent: None });
                    stream.removed.push(name);
                    stream.entries -= 1;
                    churned += usize::from(filled);
                }
                slots.push(slot);
            }
            let blocks = &session.blocks[done..slots.len()];
            if blocks.is_empty() {
                break;
            }
            stream.events.push(Event {
                worker: worker as u16,
                kind: Kind::Stored,
                len: blocks.len() as u32,
                start: stream.stored.len() as u64,
                parent: done.checked_sub(1).map(|last| session.blocks[last].name),
            });
            for (block, &slot) in blocks.iter().zip(&slots[done..]) {
                pool.fill(slot, block.name);
                stream.stored.push(*block);
            }
            stream.entries += blocks.len();
            churned += if filled { blocks.len() } else { 0 };
        }
        slots.iter().rev().for_each(|&slot| pool.free(slot));
        if stream.sessions[number].blocks.len() >= goal {
            stream.active.swap_remove(at);
        }
    }
    stream.held = pools.into_iter().map(Pool::into_held).collect();
    stream
}

/// Rank of a thing whose popularity falls with the rank, from an evenly spread number.
fn zipf(n: usize, unit: f64) -> usize {
    let total: f64 = (1..=n).map(|rank| 1.0 / rank as f64).sum();
    let mut sum = 0.0;
    let found = (1..=n).position(|rank| {
        sum += 1.0 / rank as f64 / total;
        unit <= sum
    });
    found.unwrap_or(n - 1)
}

impl Stream {
    /// Blocks that a stretch of events names.
    pub fn blocks_in(&self, range: Range<usize>) -> usize {
        self.events[range].iter().map(|event| event.len as usize).sum()
    }

    /// The stretch cut into what one step of one engine publishes as one batch: evictions and the
    /// store that they made room for.
    pub fn steps(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut start = range.start;
        std::iter::from_fn(move || {
            let first = self.events[..range.end].get(start)?;
            let mut end = start;
            while end < range.end && self.events[end].worker == first.worker {
                end += 1;
                if self.events[end - 1].kind == Kind::Stored {
                    break;
                }
            }
            Some(std::mem::replace(&mut start, end)..end)
        })
    }

    /// Leading blocks of a prompt that a worker holds.
    pub fn depth_on(&self, worker: usize, names: &[u64]) -> u32 {
        names.iter().take_while(|name| self.held[worker].contains_key(name)).count() as u32
    }

    /// Lets each worker call its blocks by names of its own, as engines with random seeds do;
    /// contents stay.
    pub fn rename_per_worker(&mut self) {
        let own = |worker: u16, name: u64| mix(name ^ ((u64::from(worker) + 1) << 40));
        for event in &mut self.events {
            let range = event.start as usize..event.start as usize + event.len as usize;
            match event.kind {
                Kind::Stored => {
                    let blocks = &mut self.stored[range];
                    blocks.iter_mut().for_each(|b| b.name = own(event.worker, b.name));
                }
                Kind::Removed => {
                    let names = &mut self.removed[range];
                    names.iter_mut().for_each(|name| *name = own(event.worker, *name));
                }
            }
            event.parent = event.parent.map(|name| own(event.worker, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Stream {
        simulate(&Fleet {
            workers: 4,
            pool: 512,
            system_prompts: 4,
            share: true,
            churn: 5000,
            seed: 1,
        })
    }

    #[test]
    fn replaying_the_events_gives_what_the_pools_hold() {
        let stream = small();
        let mut held = vec![ByName::<u32>::default(); 4];
        for event in &stream.events {
            let range = event.start as usize..event.start as usize + event.len as usize;
            let held = &mut held[event.worker as usize];
            match event.kind {
                Kind::Stored => {
                    for block in &stream.stored[range] {
                        assert!(held.insert(block.name, 0).is_none(), "stored twice");
                    }
                }
                Kind::Removed => {
                    for name in &stream.removed[range] {
                        assert!(held.remove(name).is_some(), "removed and not held");
                    }
                }
            }
        }
        assert_eq!(held.iter().map(ByName::len).sum::<usize>(), stream.entries);
        for (replayed, simulated) in held.iter().zip(&stream.held) {
            assert!(replayed.keys().all(|name| simulated.contains_key(name)));
        }
    }

    #[test]
    fn steps_cover_every_event_once_and_end_at_a_store() {
        let stream = small();
        let all = 0..stream.events.len();
        let mut next = 0;
        for step in stream.steps(all.clone()) {
            assert_eq!(step.start, next);
            let events = &stream.events[step.clone()];
            assert!(events.iter().all(|event| event.worker == events[0].worker));
            let stores = events[..events.len() - 1].iter().filter(|e| e.kind == Kind::Stored);
            assert_eq!(stores.count(), 0);
            next = step.end;
        }
        assert_eq!(next, all.end);
    }
}
