//! A bounded memory of chains: the names of prompts that were hashed before.
//!
//! A chat's next turn begins with the whole turn before, and its chain with the same hashes. A
//! segment of [`SEGMENT`] blocks is kept under a keyed digest of everything that leads to its end,
//! which costs a few nanoseconds a block where SHA-256 costs eighty.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use parking_lot::Mutex;
use siphasher::sip::SipHasher13;

use super::{BlockHash, Chain, Contract};
use crate::block::{Digest, Name, Prompt, Shape, TokenId};
use crate::error::Error;
use crate::hash::content::DigestKey;

/// Blocks of a segment. Longer ones save lookups, shorter ones leave less of a prompt's end to be
/// hashed again.
const SEGMENT: usize = 32;

/// Segments that are looked for at once: at first, and at most. They are doubled as long as all are
/// found, so that the memory's latency is paid for many together, and nothing is digested in vain
/// for a prompt that is new.
const FIRST: usize = 2;
const MOST: usize = 16;

/// The names of a segment, and the whole hash of its last block, from which the chain goes on.
#[derive(Clone, Copy, Debug)]
struct Segment {
    names: [Name; SEGMENT],
    last: BlockHash,
}

/// Bytes of a segment that is kept: itself, its allocation's header, and its share of a table that
/// is half full at worst.
const ENTRY: usize = size_of::<Segment>() + 16 + 32;

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
    young: Generation,
    old: Generation,
}

/// Segments by the digest of what leads to their end, which is made under a secret and needs no
/// further hashing.
type Generation = HashMap<u64, Box<Segment>, BuildHasherDefault<AsItIs>>;

#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never called for the keys there are; right for any.
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}

impl ChainMemory {
    /// A memory of about `bytes` bytes; its keys are made with `key`.
    pub fn new(key: DigestKey, bytes: usize) -> ChainMemory {
        ChainMemory { key, capacity: bytes / ENTRY, generations: Mutex::default() }
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
        Ok(Names {
            memory: self,
            chain,
            shape,
            tokens: prompt.token_ids,
            path: plain.then(|| self.start(contract, shape, prompt)),
            stretch: FIRST,
            ends: Vec::new(),
            entered: 0,
            digests: Vec::new(),
            recalled: Vec::new(),
            given: 0,
            fresh: Vec::new(),
        })
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

    /// The digest of what leads to the end of a segment, whose blocks have these digests.
    fn follow(&self, path: u64, blocks: &[Digest], lookahead: &[TokenId]) -> u64 {
        let mut sip = SipHasher13::new_with_key(&self.key.to_bytes());
        sip.write_u64(path);
        blocks.iter().for_each(|block| sip.write_u64(block.0));
        // As many in every segment of a prompt: the shape is in its start.
        lookahead.iter().for_each(|&token| sip.write_u32(token));
        sip.finish()
    }

    /// Appends the names of the segments that end here to `names`, up to the first that is not
    /// known, and returns the hash of the last one's last block.
    fn recall(&self, ends: &[u64], names: &mut Vec<Name>) -> Option<BlockHash> {
        let mut generations = self.generations.lock();
        // First the table, then the segments: waits for memory overlap in short loops only.
        let known = ends.iter().take_while(|end| self.refresh(&mut generations, **end)).count();
        let mut last = None;
        for end in &ends[..known] {
            let Generations { young, old } = &*generations;
            // A memory of a few segments may have forgotten the first ones for the last.
            let Some(segment) = young.get(end).or_else(|| old.get(end)) else { break };
            names.extend_from_slice(&segment.names);
            last = Some(segment.last);
        }
        last
    }

    /// Whether a segment is known, which then counts as used.
    fn refresh(&self, generations: &mut Generations, end: u64) -> bool {
        if generations.young.contains_key(&end) {
            return true;
        }
        let Some(segment) = generations.old.remove(&end) else { return false };
        self.keep(generations, end, segment);
        true
    }

    fn keep(&self, generations: &mut Generations, end: u64, segment: Box<Segment>) {
        if generations.young.len() >= self.capacity.div_ceil(2) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(end, segment);
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
    /// The digest of what leads to the end of the last of `ends`; `None` if nothing is remembered, or
    /// no whole segment is left.
    path: Option<u64>,
    /// How many segments are looked for next.
    stretch: usize,
    /// The digests of what leads to the ends of segments that are, or were, looked for.
    ends: Vec<u64>,
    /// How many of these the chain has entered.
    entered: usize,
    /// Of the blocks of `ends`.
    digests: Vec<Digest>,
    /// The names of remembered segments, and how many of them were given.
    recalled: Vec<Name>,
    given: usize,
    /// The names of a segment that is hashed anew.
    fresh: Vec<Name>,
}

impl Names<'_, '_> {
    /// At the beginning of a segment: finds out where it leads, and whether it is remembered.
    fn enter_segment(&mut self) -> bool {
        if self.entered == self.ends.len() {
            self.look_ahead();
        }
        let ends = &self.ends[self.entered..];
        self.recalled.clear();
        self.given = 0;
        let Some(last) = self.memory.recall(ends, &mut self.recalled) else {
            match ends.is_empty() {
                true => self.path = None,
                false => self.entered += 1,
            }
            self.stretch = 1;
            return false;
        };
        let found = self.recalled.len() / SEGMENT;
        self.stretch = if found == ends.len() { MOST.min(2 * self.stretch) } else { 1 };
        self.entered += found;
        // A hash that was made under this contract has its form.
        let resumed = self.chain.resume(self.chain.blocks() + self.recalled.len(), last);
        debug_assert!(resumed.is_ok(), "the contract is part of the path");
        true
    }

    /// Finds out where the next segments lead.
    fn look_ahead(&mut self) {
        self.ends.clear();
        self.entered = 0;
        let Some(mut path) = self.path else { return };
        let (size, lookahead) = (self.shape.size.tokens(), self.shape.lookahead as usize);
        let tokens = self.tokens.get(self.chain.blocks() * size..).unwrap_or_default();
        let whole = tokens.len().saturating_sub(lookahead) / (SEGMENT * size);
        let segments = whole.min(self.stretch);
        self.digests.resize(segments * SEGMENT, Digest(0));
        self.memory.key.plain(tokens, size, &mut self.digests);
        for (n, blocks) in self.digests.chunks_exact(SEGMENT).enumerate() {
            let end = (n + 1) * SEGMENT * size;
            path = self.memory.follow(path, blocks, &tokens[end..end + lookahead]);
            self.ends.push(path);
        }
        self.path = Some(path);
    }
}

impl Iterator for Names<'_, '_> {
    type Item = Name;

    #[inline]
    fn next(&mut self) -> Option<Name> {
        if let Some(&name) = self.recalled.get(self.given) {
            self.given += 1;
            return Some(name);
        }
        self.hash_or_recall()
    }
}

impl Names<'_, '_> {
    fn hash_or_recall(&mut self) -> Option<Name> {
        if self.path.is_some() && self.fresh.is_empty() && self.enter_segment() {
            return self.next();
        }
        let hash = self.chain.advance_within(self.tokens)?;
        let name = hash.name();
        if self.path.is_some() {
            self.fresh.push(name);
            if let Ok(names) = self.fresh.as_slice().try_into() {
                let segment = Box::new(Segment { names, last: hash });
                let mut generations = self.memory.generations.lock();
                self.memory.keep(&mut generations, self.ends[self.entered - 1], segment);
                self.fresh.clear();
            }
        }
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Algorithm, Root, Version};
    use super::*;
    use crate::block::{BlockSize, Item, Lora};

    const SHAPE: Shape = Shape::plain(BlockSize::new(4).unwrap());

    fn memory(segments: usize) -> ChainMemory {
        ChainMemory::new(DigestKey::from_bytes([3; 16]), segments * ENTRY)
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
    fn a_memory_that_forgets_meanwhile_gives_the_same_names() {
        let contract = contract("0");
        let tokens: Vec<u32> = (0..4 * 32 * 40).collect();
        for segments in [1, 2, 3, 5, 9, 20, 45, 80] {
            let memory = memory(segments);
            for blocks in [32 * 40, 32 * 7 + 5, 31, 32, 33, 32 * 30, 32 * 40, 32 * 12 + 1, 32 * 40]
            {
                let prompt = Prompt::new(&tokens[..4 * blocks]);
                let found: Vec<Name> = memory.names(&contract, SHAPE, &prompt).unwrap().collect();
                assert_eq!(found, cold(&contract, SHAPE, &prompt), "{segments}, {blocks}");
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
            let mut blocks = [Digest(0); SEGMENT];
            memory.key.plain(&system, 4, &mut blocks);
            memory.follow(memory.start(&contract, SHAPE, &prompt), &blocks, &[])
        };
        for n in 0..50 {
            let mut tokens = system.clone();
            tokens.extend((0..4 * 32).map(|t| t + n * 1000));
            memory.names(&contract, SHAPE, &Prompt::new(&tokens)).unwrap().count();
            assert!(memory.recall(&[path], &mut Vec::new()).is_some());
        }
    }
}
