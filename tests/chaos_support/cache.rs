//! An engine's KV cache: a pool of blocks and the requests that use them, as vLLM's scheduler and block
//! pool treat them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::prompts::{Block, Blocks, Prompts, SIZE};
use super::random::Random;
use super::wire::Event;

/// A physical block.
#[derive(Default)]
struct Slot {
    name: Option<u64>,
    /// Requests that use it.
    users: u32,
    /// Its place among the free ones.
    freed: u64,
}

struct Pool {
    slots: Vec<Slot>,
    /// Blocks without users, the one that is taken next first.
    free: BTreeMap<u64, usize>,
    clock: u64,
    /// Where blocks are; two requests that compute the same block make two copies.
    cached: HashMap<u64, Vec<usize>>,
}

impl Pool {
    fn new(blocks: usize) -> Pool {
        let slots: Vec<Slot> =
            (0..blocks).map(|at| Slot { freed: at as u64, ..Slot::default() }).collect();
        let free = (0..blocks).map(|at| (at as u64, at)).collect();
        Pool { slots, free, clock: blocks as u64, cached: HashMap::new() }
    }

    /// Another user of a block that is there.
    fn share(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        if slot.users == 0 {
            self.free.remove(&slot.freed);
        }
        slot.users += 1;
    }

    /// A free block, and what it was until now.
    fn take(&mut self) -> Option<(usize, Option<u64>)> {
        let (_, at) = self.free.pop_first()?;
        self.slots[at].users = 1;
        let was = self.slots[at].name.take();
        if let Some(name) = was {
            let copies = self.cached.get_mut(&name).unwrap();
            copies.retain(|copy| *copy != at);
            if copies.is_empty() {
                self.cached.remove(&name);
            }
        }
        Some((at, was))
    }

    fn fill(&mut self, at: usize, name: u64) {
        self.slots[at].name = Some(name);
        self.cached.entry(name).or_default().push(at);
    }

    /// The last blocks are free first, so that prefixes stay longest.
    fn release(&mut self, blocks: &[usize]) {
        for &at in blocks.iter().rev() {
            let slot = &mut self.slots[at];
            slot.users -= 1;
            if slot.users == 0 {
                slot.freed = self.clock;
                self.free.insert(self.clock, at);
                self.clock += 1;
            }
        }
    }
}

struct Request {
    prompt: Blocks,
    /// The pool's blocks of its first blocks.
    held: Vec<usize>,
    /// Blocks that it will generate.
    reply: usize,
}

/// The cache of one life of an engine.
pub(crate) struct Cache {
    pool: Pool,
    running: VecDeque<Request>,
    cleared: bool,
}

/// Blocks that are computed in a step for one request.
const CHUNK: usize = 8;

/// Requests that run at a time.
const RUNNING: usize = 4;

impl Cache {
    pub(crate) fn new(blocks: usize) -> Cache {
        Cache { pool: Pool::new(blocks), running: VecDeque::new(), cleared: false }
    }

    /// Whether at least one copy of a block is there.
    pub(crate) fn holds(&self, name: u64) -> bool {
        self.pool.cached.contains_key(&name)
    }

    /// Forgets everything; the next step's events begin with that.
    pub(crate) fn clear(&mut self) {
        while let Some(request) = self.running.pop_front() {
            self.pool.release(&request.held);
        }
        self.pool.cached.clear();
        self.pool.slots.iter_mut().for_each(|slot| slot.name = None);
        self.cleared = true;
    }

    /// One step of the scheduler: a request may come, those that run go on, and what it did to the
    /// cache.
    pub(crate) fn step(
        &mut self,
        engine: usize,
        prompts: &Prompts,
        random: &mut Random,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        if std::mem::take(&mut self.cleared) {
            events.push(Event::Cleared);
        }
        if self.running.len() < RUNNING {
            self.admit(prompts.request(engine, random), random);
        }
        for _ in 0..self.running.len() {
            let Some(mut request) = self.running.pop_front() else { break };
            if request.held.len() == request.prompt.len() && request.reply > 0 {
                request.reply -= 1;
                request.prompt = prompts.longer(&request.prompt, 1, random);
            }
            let from = request.held.len();
            let until = request.prompt.len().min(from + CHUNK);
            match self.compute(&mut request, from, until, &mut events) {
                // Everything that there was to do for it is done, or there is no room for it.
                Ok(()) if request.held.len() == request.prompt.len() && request.reply == 0 => {
                    self.pool.release(&request.held);
                }
                Err(Full) => self.pool.release(&request.held),
                Ok(()) => self.running.push_back(request),
            }
        }
        events
    }

    fn admit(&mut self, prompt: Blocks, random: &mut Random) {
        // A prompt that ends with a block: its last token is computed again, and with it the block.
        let ends_with_block = random.below(4) == 0;
        let tokens = prompt.len() * SIZE + usize::from(!ends_with_block);
        let most = (tokens - 1) / SIZE;
        let copy = |block: &Arc<Block>| Some(self.pool.cached.get(&block.name)?[0]);
        let held: Vec<usize> = prompt[..most].iter().map_while(copy).collect();
        held.iter().for_each(|&at| self.pool.share(at));
        self.running.push_back(Request { prompt, held, reply: random.below(4) });
    }

    /// Takes blocks for a part of a request and announces what they held and what they hold now.
    fn compute(
        &mut self,
        request: &mut Request,
        from: usize,
        until: usize,
        events: &mut Vec<Event>,
    ) -> Result<(), Full> {
        if self.pool.free.len() < until - from {
            return Err(Full);
        }
        for _ in from..until {
            let (at, was) = self.pool.take().ok_or(Full)?;
            events.extend(was.map(Event::Removed));
            request.held.push(at);
        }
        let full = &request.prompt[from..until];
        for (block, &at) in full.iter().zip(&request.held[from..]) {
            self.pool.fill(at, block.name);
        }
        if !full.is_empty() {
            events.push(Event::Stored(full.to_vec()));
        }
        Ok(())
    }
}

/// No block is free.
struct Full;
