//! A bounded memory of chains: the names of prompts that were hashed before.
//!
//! A chat's next turn begins with the whole turn before, and its chain with the same hashes. A
//! segment of [`SEGMENT`] blocks is kept under a keyed digest of everything that leads to its end,
//! which costs a few nanoseconds a block where SHA-256 costs eighty.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use parking_lot::Mutex;
use siphasher::sip::SipHasher13;

use super::{BlockHash, Chain, Contract};
use crate::block::{Name, Prompt, Shape, TokenId};
use crate::error::Error;
use crate::hash::content::DigestKey;

/// Blocks of a segment. Longer ones save lookups, shorter ones leave less of a prompt's end to be
/// hashed again.
const SEGMENT: usize = 32;

/// The names of a segment, and the whole hash of its last block, from which the chain goes on.
#[derive(Clone, Copy, Debug)]
struct Segment {
    names: [Name; SEGMENT],
    last: BlockHash,
}

/// The names of prompts that were hashed before, the least recently used forgotten first.
#[derive(Debug)]
pub struct ChainMemory {
    key: DigestKey,
    capacity: usize,
    generations: Mutex<Generations>,
}

/// What was used since the last turn, and what was used in the turn before. When the young are as
/// many as half the capacity, the old are forgotten: whatever was used lately is in one of the two.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Segment>,
    old: HashMap<u64, Segment>,
}

impl ChainMemory {
    /// A memory of about `bytes` bytes; its keys are made with `key`.
    pub fn new(key: DigestKey, bytes: usize) -> ChainMemory {
        // A key and the table's own share of an entry (7/8 full at most, half full on average).
        let entry = size_of::<Segment>() + 24;
        ChainMemory { key, capacity: bytes / entry, generations: Mutex::default() }
    }

    /// The names of a prompt's blocks, computed as they are asked for.
    ///
    /// # Errors
    ///
    /// Those of [`Contract::chain`].
    pub fn names<'p>(
        &self,
        contract: &Contract,
        shape: Shape,
        prompt: &Prompt<'p>,
    ) -> Result<Names<'p, '_>, Error> {
        let chain = contract.chain(shape, prompt)?;
        // Items and embeddings belong to single blocks; prompts with them are rare, and hashed anew.
        let plain = prompt.items.is_empty() && prompt.embeds.is_none() && self.capacity > 0;
        let path = plain.then(|| self.start(contract, shape, prompt));
        let tokens = prompt.token_ids;
        Ok(Names { memory: self, chain, shape, tokens, path, segment: None, fresh: Vec::new() })
    }

    /// The digest of what leads to the first block.
    fn start(&self, contract: &Contract, shape: Shape, prompt: &Prompt<'_>) -> u64 {
        let mut sip = SipHasher13::new_with_key(&self.key.to_bytes());
        contract.hash(&mut sip);
        shape.hash(&mut sip);
        prompt.cache_salt.hash(&mut sip);
        if let Some(lora) = prompt.lora {
            (lora.name, lora.id, lora.path).hash(&mut sip);
        }
        sip.finish()
    }

    /// The digest of what leads to the end of a segment.
    fn follow(&self, path: u64, tokens: &[TokenId], lookahead: &[TokenId]) -> u64 {
        let mut sip = SipHasher13::new_with_key(&self.key.to_bytes());
        sip.write_u64(path);
        sip.write_u64(self.key.digest(tokens, lookahead, []).0);
        sip.finish()
    }

    fn recall(&self, path: u64) -> Option<Segment> {
        let mut generations = self.generations.lock();
        if let Some(segment) = generations.young.get(&path) {
            return Some(*segment);
        }
        let segment = generations.old.remove(&path)?;
        self.keep(&mut generations, path, segment);
        Some(segment)
    }

    fn keep(&self, generations: &mut Generations, path: u64, segment: Segment) {
        if generations.young.len() >= self.capacity.div_ceil(2) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(path, segment);
    }

    /// How many segments are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        let generations = self.generations.lock();
        generations.young.len() + generations.old.len()
    }
}

/// Iterator over the names of a prompt's blocks; see [`ChainMemory::names`].
#[derive(Debug)]
pub struct Names<'p, 'm> {
    memory: &'m ChainMemory,
    chain: Chain<'p>,
    shape: Shape,
    tokens: &'p [TokenId],
    /// The digest of what leads to the current segment's end; `None` if nothing is remembered.
    path: Option<u64>,
    /// What is left of a remembered segment.
    segment: Option<(Segment, usize)>,
    /// The names of a segment that is hashed anew.
    fresh: Vec<Name>,
}

impl Names<'_, '_> {
    /// At the beginning of a segment: finds out where it leads, and whether it is remembered.
    fn enter_segment(&mut self) -> Option<()> {
        let size = self.shape.size.tokens();
        let start = self.chain.blocks() * size;
        let end = start + SEGMENT * size;
        let whole = self
            .tokens
            .get(start..end)
            .zip(self.tokens.get(end..end + self.shape.lookahead as usize));
        let (Some(path), Some((tokens, lookahead))) = (self.path, whole) else {
            self.path = None;
            return None;
        };
        let path = self.memory.follow(path, tokens, lookahead);
        self.path = Some(path);
        let segment = self.memory.recall(path)?;
        // A hash that was made under this contract has its form.
        self.chain.resume(self.chain.blocks() + SEGMENT, segment.last).ok()?;
        self.segment = Some((segment, 0));
        Some(())
    }
}

impl Iterator for Names<'_, '_> {
    type Item = Name;

    fn next(&mut self) -> Option<Name> {
        if let Some((segment, at)) = &mut self.segment {
            let name = segment.names[*at];
            *at += 1;
            if *at == SEGMENT {
                self.segment = None;
            }
            return Some(name);
        }
        if self.path.is_some() && self.fresh.is_empty() && self.enter_segment().is_some() {
            return self.next();
        }
        let hash = self.chain.advance_within(self.tokens)?;
        if let Some(path) = self.path {
            self.fresh.push(hash.name());
            if let Ok(names) = self.fresh.as_slice().try_into() {
                let mut generations = self.memory.generations.lock();
                self.memory.keep(&mut generations, path, Segment { names, last: hash });
                self.fresh.clear();
            }
        }
        Some(hash.name())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Algorithm, Root, Version};
    use super::*;
    use crate::block::{BlockSize, Item, Lora};

    const SHAPE: Shape = Shape::plain(BlockSize::new(4).unwrap());

    fn memory(segments: usize) -> ChainMemory {
        let bytes = segments * (size_of::<Segment>() + 24);
        ChainMemory::new(DigestKey::from_bytes([3; 16]), bytes)
    }

    fn contract(seed: &str) -> Contract {
        Contract::new(Version::NEWEST, Algorithm::Sha256, Root::Seed(seed)).unwrap()
    }

    fn cold(contract: &Contract, shape: Shape, prompt: &Prompt<'_>) -> Vec<Name> {
        let mut chain = contract.chain(shape, prompt).unwrap();
        chain.extend(prompt.token_ids).map(|hash| hash.name()).collect()
    }

    #[test]
    fn a_remembered_prompt_has_the_names_of_a_fresh_one() {
        let memory = memory(100);
        let tokens: Vec<u32> = (0..4 * 200).collect();
        let other: Vec<u32> = tokens[..4 * 70].iter().chain(&tokens[..4 * 100]).copied().collect();
        let lora = |path| Lora { name: "l", id: Some(1), path: Some(path) };
        let items = [Item { identifier: "i", offset: 3, length: 9 }];
        let prompts = [
            Prompt::new(&tokens[..4 * 40]),
            Prompt::new(&tokens),
            Prompt::new(&tokens),
            Prompt::new(&other),
            Prompt { cache_salt: Some("s"), ..Prompt::new(&tokens) },
            Prompt { lora: Some(lora("/a")), ..Prompt::new(&tokens) },
            Prompt { lora: Some(lora("/b")), ..Prompt::new(&tokens) },
            Prompt { items: &items, ..Prompt::new(&tokens) },
        ];
        let ahead = Shape { lookahead: 3, ..SHAPE };
        for seed in ["0", "1"] {
            let contract = contract(seed);
            for _ in 0..2 {
                for (prompt, shape) in prompts.iter().flat_map(|p| [(p, SHAPE), (p, ahead)]) {
                    let found: Vec<Name> =
                        memory.names(&contract, shape, prompt).unwrap().collect();
                    assert_eq!(found, cold(&contract, shape, prompt), "{prompt:?}");
                }
            }
        }
    }

    #[test]
    fn a_memory_never_holds_more_than_its_capacity() {
        let memory = memory(10);
        let contract = contract("0");
        for n in 0..50 {
            let tokens: Vec<u32> = (0..4 * 64).map(|t| t + n * 1000).collect();
            assert_eq!(memory.names(&contract, SHAPE, &Prompt::new(&tokens)).unwrap().count(), 64);
            assert!(memory.len() <= 11, "{} segments", memory.len());
        }
    }

    #[test]
    fn what_is_used_again_and_again_is_not_forgotten() {
        let memory = memory(10);
        let contract = contract("0");
        let system: Vec<u32> = (0..4 * 32).collect();
        let path = {
            let prompt = Prompt::new(&system);
            memory.follow(memory.start(&contract, SHAPE, &prompt), &system, &[])
        };
        for n in 0..50 {
            let mut tokens = system.clone();
            tokens.extend((0..4 * 32).map(|t| t + n * 1000));
            memory.names(&contract, SHAPE, &Prompt::new(&tokens)).unwrap().count();
            assert!(memory.recall(path).is_some());
        }
    }
}
