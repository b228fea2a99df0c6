//! What users ask: prompts that share beginnings, cut into blocks under the names that vLLM 0.33 gives
//! them.

use std::sync::Arc;

use kvscout::hash::vllm::{Algorithm, BlockHash, Contract, Root, Version};

use super::random::Random;

/// Tokens in a block.
pub(crate) const SIZE: usize = 16;

/// One block of a prompt.
pub(crate) struct Block {
    pub(crate) name: u64,
    pub(crate) parent: Option<u64>,
    pub(crate) tokens: [u32; SIZE],
    hash: BlockHash,
}

/// The full blocks of a prompt, from its beginning.
pub(crate) type Blocks = Vec<Arc<Block>>;

/// A prompt that the checker asks about.
pub(crate) struct Question {
    pub(crate) tokens: Vec<u32>,
    pub(crate) names: Vec<u64>,
}

impl Question {
    /// What the engine would report as cached if it held so many leading blocks: it computes at least
    /// the last token.
    pub(crate) fn cached_tokens(&self, matched: u32) -> u64 {
        let most = self.tokens.len().saturating_sub(1) / SIZE;
        (most.min(matched as usize) * SIZE) as u64
    }
}

/// The prompts of a fleet.
pub(crate) struct Prompts {
    contract: Contract,
    /// Beginnings that all have in common, as system prompts.
    trunks: Vec<Blocks>,
    /// Prompts that are asked on every engine; each goes on from a trunk.
    shared: Vec<Blocks>,
    /// Prompts that are asked on one engine.
    own: Vec<Vec<Blocks>>,
}

/// Prompts of its own that an engine has.
const OWN: usize = 2;

impl Prompts {
    pub(crate) fn new(seed: u64, engines: usize) -> Prompts {
        let mut random = Random::new(seed);
        let contract =
            Contract::new(Version::new(0, 33, 0), Algorithm::Sha256Cbor, Root::Unset).unwrap();
        let mut prompts =
            Prompts { contract, trunks: Vec::new(), shared: Vec::new(), own: Vec::new() };
        for _ in 0..4 {
            let length = random.within(8, 24);
            let trunk = prompts.longer(&[], length, &mut random);
            for _ in 0..3 {
                let (at, length) = (random.within(length / 2, length), random.within(3, 10));
                let branch = prompts.longer(&trunk[..at], length, &mut random);
                prompts.shared.push(branch);
            }
            prompts.trunks.push(trunk);
        }
        for _ in 0..engines {
            let own = |_| {
                let trunk = random.pick(&prompts.trunks);
                let (at, length) = (random.within(0, trunk.len()), random.within(4, 12));
                prompts.longer(&trunk[..at], length, &mut random)
            };
            let own = (0..OWN).map(own).collect();
            prompts.own.push(own);
        }
        prompts
    }

    /// A prompt that goes on from `start` with blocks that no other has.
    pub(crate) fn longer(
        &self,
        start: &[Arc<Block>],
        blocks: usize,
        random: &mut Random,
    ) -> Blocks {
        let mut prompt = start.to_vec();
        for _ in 0..blocks {
            // 17 bits: token ids of every width that msgpack has for them.
            let tokens = std::array::from_fn(|_| (random.next() >> 47) as u32);
            let last = prompt.last();
            let parent = last.map_or(self.contract.root(), |block| block.hash);
            let hash = self.contract.child(&parent, &tokens, &[], [], None).unwrap();
            let parent = last.map(|block| block.name);
            prompt.push(Arc::new(Block { name: hash.name().0, parent, tokens, hash }));
        }
        prompt
    }

    /// What a user of this engine asks next.
    pub(crate) fn request(&self, engine: usize, random: &mut Random) -> Blocks {
        match random.below(20) {
            0..=8 => random.pick(&self.shared).clone(),
            9..=10 => random.pick(&self.trunks).clone(),
            11..=14 => random.pick(&self.own[engine]).clone(),
            _ => {
                let trunk = random.pick(&self.trunks);
                let (at, length) = (random.within(0, trunk.len()), random.within(2, 14));
                self.longer(&trunk[..at], length, random)
            }
        }
    }

    /// About `count` prompts to ask about: the shared ones, and of some engines their own.
    pub(crate) fn questions(&self, count: usize, random: &mut Random) -> Vec<Question> {
        let own = self.own.iter().flatten();
        let all = self.trunks.iter().chain(&self.shared).chain(own).take(count);
        let question = |blocks: &Blocks| {
            let mut tokens: Vec<u32> = blocks.iter().flat_map(|block| block.tokens).collect();
            // Every other one ends with a block, where the engine's answer is one block less.
            let tail = [0, random.within(1, SIZE - 1)][random.below(2)];
            tokens.extend((0..tail).map(|_| random.next() as u32));
            Question { tokens, names: blocks.iter().map(|block| block.name).collect() }
        };
        all.map(question).collect()
    }
}
