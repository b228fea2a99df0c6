//! The blocks of one simulated engine, by the rules of vLLM's `BlockPool`.

use std::collections::{BTreeMap, HashMap};

use kvscout::hash::vllm::BlockHash;

/// A physical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockId(u32);

/// A fixed number of physical blocks, which are in use, or free and perhaps still cached.
///
/// A free block keeps its content until it is needed: the queue of free blocks is at once the order
/// of eviction. Several blocks may hold the same content; nothing is de-duplicated.
#[derive(Debug)]
pub(super) struct Pool {
    blocks: Vec<Block>,
    /// Free blocks by their place in the queue; the first is taken next.
    free: BTreeMap<i64, BlockId>,
    /// The last place at either end.
    back: i64,
    front: i64,
    /// The blocks that hold a content, the one cached first in front.
    cached: HashMap<BlockHash, Vec<BlockId>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    users: u32,
    hash: Option<BlockHash>,
    /// Its key in the queue while it is free.
    queued: i64,
}

impl Pool {
    /// A pool of `size` blocks, of which the first is vLLM's null block and never used.
    pub(super) fn new(size: u32) -> Pool {
        let mut pool = Pool {
            blocks: vec![Block::default(); size as usize],
            free: BTreeMap::new(),
            back: 0,
            front: 0,
            cached: HashMap::new(),
        };
        for id in (1..size).rev() {
            pool.enqueue(BlockId(id));
        }
        pool
    }

    /// How many blocks nobody uses.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// A block with this content.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        self.cached.get(hash)?.first().copied()
    }

    pub(super) fn is_free(&self, id: BlockId) -> bool {
        self.block(id).users == 0
    }

    /// Uses a block for what it holds.
    pub(super) fn share(&mut self, id: BlockId) {
        let block = self.block_mut(id);
        block.users += 1;
        if block.users == 1 {
            let queued = block.queued;
            self.free.remove(&queued);
        }
    }

    /// Takes the block that has been free for longest, with what it held until now; `None` when
    /// every block is in use.
    pub(super) fn take(&mut self) -> Option<(BlockId, Option<BlockHash>)> {
        let (_, id) = self.free.pop_first()?;
        let block = self.block_mut(id);
        block.users = 1;
        let evicted = block.hash.take();
        if let Some(hash) = evicted
            && let Some(copies) = self.cached.get_mut(&hash)
        {
            copies.retain(|&copy| copy != id);
            if copies.is_empty() {
                self.cached.remove(&hash);
            }
        }
        Some((id, evicted))
    }

    /// Says what a block holds, now that it is full.
    pub(super) fn cache(&mut self, id: BlockId, hash: BlockHash) {
        self.block_mut(id).hash = Some(hash);
        self.cached.entry(hash).or_default().push(id);
    }

    /// Ends the use of a request's blocks, given in order. The end of the chain is queued first, so
    /// that it is evicted before what it hangs on; a block that holds nothing to keep (a partial
    /// one) goes to the front of the queue.
    pub(super) fn release(&mut self, chain: &[BlockId]) {
        for &id in chain.iter().rev() {
            let block = self.block_mut(id);
            block.users -= 1;
            if block.users == 0 {
                self.enqueue(id);
            }
        }
    }

    /// Forgets all contents; refused (`false`) while a block is in use.
    #[cfg(test)]
    pub(super) fn reset(&mut self) -> bool {
        let idle = self.free.len() + 1 == self.blocks.len();
        if idle {
            self.cached.clear();
            self.blocks.iter_mut().for_each(|block| block.hash = None);
        }
        idle
    }

    fn enqueue(&mut self, id: BlockId) {
        let at = if self.block(id).hash.is_some() {
            self.back += 1;
            self.back
        } else {
            self.front -= 1;
            self.front
        };
        self.block_mut(id).queued = at;
        self.free.insert(at, id);
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }
}
