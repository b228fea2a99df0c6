//! A simulated engine: requests in, KV events out, by the rules of vLLM's `KVCacheManager`.
//!
//! It shares no code with the index or with scoring; only the block hashes are the crate's own,
//! since they must be vLLM's. `replay` (tests) holds it to a recording of the real thing: the same
//! operations give the same answers and the same bytes.

mod pool;
#[cfg(test)]
mod replay;

use std::collections::HashMap;

use kvscout::block::{BlockSize, ExtraKey, Lora, TokenId};
use kvscout::hash::vllm::{BlockHash, Contract};

use self::pool::{BlockId, Pool};
use super::wire::{Event, Stored};

/// Numbers the requests of an engine.
pub(super) type RequestId = u64;

/// What an engine is asked to serve.
#[derive(Clone, Debug, Default)]
pub(super) struct Prompt {
    pub(super) token_ids: Vec<TokenId>,
    pub(super) cache_salt: Option<String>,
    pub(super) adapter: Option<Adapter>,
}

/// A LoRA adapter as the engine has loaded it.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    pub(super) name: String,
    pub(super) id: u32,
    pub(super) path: String,
}

/// Why a request was not admitted: too few blocks are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolFull;

/// The KV cache of one engine: one group of full attention.
#[derive(Debug)]
pub(super) struct Engine {
    contract: Contract,
    block_size: BlockSize,
    pool: Pool,
    running: HashMap<RequestId, Running>,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Running {
    prompt: Prompt,
    /// The prompt's tokens and those generated since.
    token_ids: Vec<TokenId>,
    /// Of every full block.
    hashes: Vec<BlockHash>,
    blocks: Vec<BlockId>,
    /// Leading blocks whose content is known to the pool.
    cached: usize,
}

impl Engine {
    /// An engine with `blocks` physical blocks (vLLM's `num_gpu_blocks`).
    pub(super) fn new(contract: Contract, block_size: BlockSize, blocks: u32) -> Engine {
        Engine {
            contract,
            block_size,
            pool: Pool::new(blocks),
            running: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// The prompt tokens that need no computing, were it admitted now
    /// (`KVCacheManager.get_computed_blocks`). The last token is always computed.
    #[cfg(test)]
    fn cached_tokens(&self, prompt: &Prompt) -> u32 {
        let hits = self.hits(&self.hashes(prompt), prompt.token_ids.len());
        hits.len() as u32 * self.block_size.get()
    }

    /// Admits and prefills a request; returns how many of its tokens were cached.
    pub(super) fn admit(&mut self, id: RequestId, prompt: Prompt) -> Result<u32, PoolFull> {
        let hashes = self.hashes(&prompt);
        let tokens = prompt.token_ids.len();
        let hits = self.hits(&hashes, tokens);
        // Hits that nobody uses are still in the queue and will not be there for allocation.
        let idle_hits = hits.iter().filter(|&&id| self.pool.is_free(id)).count();
        let missing = tokens.div_ceil(self.block_size.tokens()) - hits.len();
        if missing + idle_hits > self.pool.free() {
            return Err(PoolFull);
        }
        hits.iter().for_each(|&id| self.pool.share(id));
        let cached = hits.len();
        let token_ids = prompt.token_ids.clone();
        let mut request = Running { prompt, token_ids, hashes, blocks: hits, cached };
        self.compute(&mut request)?;
        self.running.insert(id, request);
        Ok(cached as u32 * self.block_size.get())
    }

    /// One step of decoding: the request's next token is computed. Nothing happens to a request
    /// that does not run.
    pub(super) fn decode(&mut self, id: RequestId, token: TokenId) -> Result<(), PoolFull> {
        let Some(mut request) = self.running.remove(&id) else { return Ok(()) };
        request.token_ids.push(token);
        let result = self.compute(&mut request);
        self.running.insert(id, request);
        result
    }

    /// Ends a request. Its blocks stay cached until they are needed.
    pub(super) fn free(&mut self, id: RequestId) {
        if let Some(request) = self.running.remove(&id) {
            self.pool.release(&request.blocks);
        }
    }

    /// Forgets all cached blocks; refused (`false`) while requests run.
    #[cfg(test)]
    fn reset(&mut self) -> bool {
        let done = self.pool.reset();
        if done {
            self.events.push(Event::Cleared);
        }
        done
    }

    /// What happened since the last call: the batch of one step, empty if there is nothing to say.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Gives every token of a request its place (`KVCacheManager.allocate_slots`).
    fn compute(&mut self, request: &mut Running) -> Result<(), PoolFull> {
        let size = self.block_size.tokens();
        while request.blocks.len() < request.token_ids.len().div_ceil(size) {
            let (id, evicted) = self.pool.take().ok_or(PoolFull)?;
            if let Some(hash) = evicted {
                self.events.push(Event::Removed { hash: hash.name().0 });
            }
            request.blocks.push(id);
        }
        self.extend_hashes(&request.prompt, &request.token_ids, &mut request.hashes);
        self.announce(request);
        Ok(())
    }

    /// Caches the blocks that became full (`BlockPool.cache_full_blocks`).
    fn announce(&mut self, request: &mut Running) {
        let new = request.cached..request.hashes.len();
        if new.is_empty() {
            return;
        }
        for at in new.clone() {
            self.pool.cache(request.blocks[at], request.hashes[at]);
        }
        let size = self.block_size.tokens();
        let name = |hash: &BlockHash| hash.name().0;
        let adapter = request.prompt.adapter.as_ref();
        self.events.push(Event::Stored(Stored {
            hashes: request.hashes[new.clone()].iter().map(name).collect(),
            parent: new.start.checked_sub(1).map(|before| name(&request.hashes[before])),
            token_ids: request.token_ids[new.start * size..new.end * size].to_vec(),
            block_size: self.block_size.get(),
            lora: adapter.map(|adapter| (adapter.id, adapter.name.clone())),
            extra_keys: new.clone().map(|at| texts(&request.prompt, at)).collect(),
            kind: Some("full_attention"),
        }));
        request.cached = new.end;
    }

    fn hits(&self, hashes: &[BlockHash], tokens: usize) -> Vec<BlockId> {
        let most = tokens.saturating_sub(1) / self.block_size.tokens();
        hashes.iter().take(most).map_while(|hash| self.pool.find(hash)).collect()
    }

    fn hashes(&self, prompt: &Prompt) -> Vec<BlockHash> {
        let mut hashes = Vec::new();
        self.extend_hashes(prompt, &prompt.token_ids, &mut hashes);
        hashes
    }

    fn extend_hashes(&self, prompt: &Prompt, tokens: &[TokenId], hashes: &mut Vec<BlockHash>) {
        let adapter = prompt.adapter.as_ref().map(|adapter| Lora {
            name: &adapter.name,
            id: Some(i64::from(adapter.id)),
            path: Some(&adapter.path),
        });
        for block in tokens.chunks_exact(self.block_size.tokens()).skip(hashes.len()) {
            let parent = hashes.last().copied().unwrap_or_else(|| self.contract.root());
            let extra_keys = extra_keys(prompt, hashes.len());
            let hash = self.contract.child(&parent, block, &[], extra_keys, adapter);
            // `child` refuses foreign parents and incomplete adapters, and has neither here.
            hashes.push(hash.expect("a block whose every fact is given"));
        }
    }
}

/// What identifies a request's block number `at` besides its tokens: the adapter, and in the first
/// block the salt.
fn extra_keys(prompt: &Prompt, at: usize) -> impl Iterator<Item = ExtraKey<'_>> {
    let adapter = prompt.adapter.iter().map(|adapter| ExtraKey::Lora(&adapter.name));
    let salt = prompt.cache_salt.iter().filter(move |_| at == 0);
    adapter.chain(salt.map(|salt| ExtraKey::Salt(salt)))
}

/// The same as events name it: without tags.
fn texts(prompt: &Prompt, at: usize) -> Vec<String> {
    let text = |key| match key {
        ExtraKey::Lora(text) | ExtraKey::Salt(text) => Some(str::to_owned(text)),
        ExtraKey::Item { .. } | ExtraKey::Embeds(_) => None,
    };
    extra_keys(prompt, at).filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use kvscout::hash::vllm::{Algorithm, Root, Version};

    use super::*;

    fn prompt(tokens: std::ops::Range<TokenId>) -> Prompt {
        Prompt { token_ids: tokens.collect(), ..Prompt::default() }
    }

    #[test]
    fn a_request_that_does_not_fit_changes_nothing() {
        let contract = Contract::new(Version::NEWEST, Algorithm::Sha256Cbor, Root::Unset).unwrap();
        // One of the five is the null block.
        let mut engine = Engine::new(contract, BlockSize::DEFAULT, 5);
        assert_eq!(engine.admit(1, prompt(0..40)), Ok(0));
        engine.take_events();
        assert_eq!(engine.admit(2, prompt(100..120)), Err(PoolFull));
        assert_eq!(engine.take_events(), []);
        engine.free(1);
        // Two blocks are hit and idle: the two others are enough for the rest of 64 tokens.
        assert_eq!(engine.admit(3, prompt(0..65)), Err(PoolFull));
        assert_eq!(engine.admit(4, prompt(0..64)), Ok(32));
        assert_eq!(engine.cached_tokens(&prompt(0..64)), 48, "the last token is computed");
    }
}
