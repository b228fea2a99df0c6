//! Dynamo's hashes of single blocks, and which content each means.
//!
//! A router of Dynamo's names a block by XXH3-64, seed 1337, of its tokens as little-endian words of 32
//! bits: a public hash of the block alone. The index has digests under a secret key, and neither can be made
//! of the other; but where an event brings tokens both can be computed. Blocks of an adapter have XXH3-64 of
//! its name added to the seed (dynamo-kv-hashing 1.6; earlier routers did otherwise and do not find them).
//! Blocks with a salt or items are left out: Dynamo takes a salt to be part of each block, and an engine names
//! it with the first one only.
//!
//! Invariants: a hash stands for the one content that was seen under it, or, once two were (which who
//! wants to can bring about), for none; never more than the given number of hashes are kept.

use std::collections::HashMap;

use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::block::{Digest, ExtraKey, TokenId};
use crate::hash::content::DigestKey;
use crate::index::Block;

const SEED: u64 = 1337;

/// What a hash means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    One(Digest),
    /// More than one content.
    Several,
}

/// The hashes of blocks that were stored lately.
#[derive(Debug)]
pub(super) struct LocalHashes {
    most: usize,
    known: Mutex<Halves>,
}

/// What was stored or asked for lately, and before that. The older half goes when the younger is full.
#[derive(Debug, Default)]
struct Halves {
    young: HashMap<u64, Meaning>,
    old: HashMap<u64, Meaning>,
}

impl Halves {
    /// What is known of a hash; it counts as young from here on.
    fn get(&mut self, hash: u64, half: usize) -> Option<Meaning> {
        if let Some(&known) = self.young.get(&hash) {
            return Some(known);
        }
        let known = self.old.remove(&hash)?;
        self.put(hash, known, half);
        Some(known)
    }

    fn put(&mut self, hash: u64, meaning: Meaning, half: usize) {
        if self.young.len() >= half && !self.young.contains_key(&hash) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, meaning);
    }
}

impl LocalHashes {
    /// Keeps up to so many; none if that is 0.
    pub(super) fn new(most: usize) -> LocalHashes {
        LocalHashes { most, known: Mutex::default() }
    }

    /// Whether any are kept.
    #[inline]
    pub(super) fn are_kept(&self) -> bool {
        self.most > 0
    }

    /// Takes note of stored blocks of `size` tokens, of an adapter or none; of those whose content is more than
    /// that, nothing.
    pub(super) fn learn(
        &self,
        key: &DigestKey,
        tokens: &[TokenId],
        size: usize,
        adapter: Option<&str>,
        blocks: &[Block],
    ) {
        let adapter = adapter.filter(|name| !name.is_empty());
        let seed = adapter.map_or(SEED, |name| SEED.wrapping_add(xxh3_64(name.as_bytes())));
        let half = (self.most / 2).max(1);
        let mut bytes = Vec::with_capacity(size * 4);
        let mut known = self.known.lock();
        for (tokens, block) in tokens.chunks_exact(size).zip(blocks) {
            let content = key.digest(tokens, &[], adapter.map(ExtraKey::Lora));
            if block.digest != Some(content) {
                continue;
            }
            bytes.clear();
            bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            let hash = xxh3_64_with_seed(&bytes, seed);
            let meaning = match known.get(hash, half) {
                Some(Meaning::One(digest)) if digest == content => continue,
                Some(_) => Meaning::Several,
                None => Meaning::One(content),
            };
            known.put(hash, meaning, half);
        }
    }

    /// Writes the content of a prompt's leading blocks to `digests`, as far as each hash means one.
    pub(super) fn resolve(&self, hashes: &[u64], digests: &mut Vec<Digest>) {
        let half = (self.most / 2).max(1);
        digests.clear();
        let mut known = self.known.lock();
        for &hash in hashes {
            let Some(Meaning::One(digest)) = known.get(hash, half) else { return };
            digests.push(digest);
        }
    }

    /// The other way round: the hash of each content that has one of its own.
    pub(super) fn by_content(&self) -> HashMap<Digest, u64> {
        let known = self.known.lock();
        let halves = known.young.iter().chain(&known.old);
        let one = halves.filter_map(|(&hash, meaning)| match meaning {
            Meaning::One(digest) => Some((*digest, hash)),
            Meaning::Several => None,
        });
        one.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Name;

    /// Of tokens 0..4, 4..8 and 0..16, as Python's `xxhash` computes them.
    const HASHES: [u64; 3] =
        [9_143_094_415_614_847_814, 12_124_091_508_212_882_195, 15_310_707_395_893_867_146];

    fn block(key: &DigestKey, tokens: &[u32]) -> Block {
        let mut digest = [Digest(0)];
        key.plain(tokens, tokens.len(), &mut digest);
        Block { name: Name(1), digest: Some(digest[0]) }
    }

    fn resolved(local: &LocalHashes, hashes: &[u64]) -> Vec<Digest> {
        let mut digests = vec![Digest(9)];
        local.resolve(hashes, &mut digests);
        digests
    }

    #[test]
    fn a_hash_finds_the_content_that_was_stored_under_it() {
        let (local, key) = (LocalHashes::new(100), DigestKey::from_bytes([7; 16]));
        let tokens: Vec<u32> = (0..16).collect();
        let blocks = [block(&key, &tokens[..4]), block(&key, &tokens[4..8])];
        local.learn(&key, &tokens[..8], 4, None, &blocks);
        local.learn(&key, &tokens, 16, None, &[block(&key, &tokens)]);
        let digests: Vec<Digest> = blocks.iter().filter_map(|block| block.digest).collect();
        assert_eq!(resolved(&local, &HASHES[..2]), digests);
        assert_eq!(resolved(&local, &HASHES[2..]), [block(&key, &tokens).digest.unwrap()]);
        assert_eq!(resolved(&local, &[HASHES[1], 5, HASHES[0]]), digests[1..], "as far as known");
        let named = local.by_content();
        assert_eq!(
            (named.len(), named[&digests[0]], named[&digests[1]]),
            (3, HASHES[0], HASHES[1])
        );
    }

    #[test]
    fn a_block_of_an_adapter_has_the_hash_of_that_adapter() {
        // Of tokens 0..4 and adapter `sql-lora`, as Python's `xxhash` computes it.
        const HASH: u64 = 2_536_401_604_203_606_606;
        let (local, key) = (LocalHashes::new(100), DigestKey::from_bytes([7; 16]));
        let tokens = [0, 1, 2, 3];
        let digest = key.digest(&tokens, &[], [ExtraKey::Lora("sql-lora")]);
        let block = Block { name: Name(1), digest: Some(digest) };
        local.learn(&key, &tokens, 4, Some("sql-lora"), &[block]);
        assert_eq!(
            (resolved(&local, &[HASH]), resolved(&local, &HASHES[..1])),
            (vec![digest], vec![])
        );
        // As it is told where an adapter's name came to mean other weights: not under its own hash.
        let later = key.digest(&tokens, &[], [ExtraKey::Lora("sql-lora"), ExtraKey::Lora("1")]);
        let block = Block { name: Name(1), digest: Some(later) };
        local.learn(&key, &tokens, 4, Some("sql-lora"), &[block]);
        assert_eq!(resolved(&local, &[HASH]), [digest]);
    }

    #[test]
    fn what_is_not_its_tokens_alone_is_left_out() {
        let (local, key) = (LocalHashes::new(100), DigestKey::from_bytes([7; 16]));
        let salted = key.digest(&[0, 1, 2, 3], &[], [crate::block::ExtraKey::Salt("s")]);
        for digest in [Some(salted), None] {
            local.learn(&key, &[0, 1, 2, 3], 4, None, &[Block { name: Name(1), digest }]);
        }
        assert_eq!(resolved(&local, &HASHES[..1]), []);
    }

    #[test]
    fn a_hash_of_two_contents_means_none() {
        let local = LocalHashes::new(100);
        let tokens = [0, 1, 2, 3];
        // Two keys stand for two contents under one hash, which would take long to find.
        for secret in [[1; 16], [2; 16], [1; 16]] {
            let key = DigestKey::from_bytes(secret);
            local.learn(&key, &tokens, 4, None, &[block(&key, &tokens)]);
        }
        assert_eq!(resolved(&local, &HASHES[..1]), []);
        assert!(local.by_content().is_empty());
    }

    #[test]
    fn no_more_are_kept_than_there_may_be_and_what_is_used_stays() {
        let (local, key) = (LocalHashes::new(100), DigestKey::from_bytes([7; 16]));
        local.learn(&key, &[0, 1, 2, 3], 4, None, &[block(&key, &[0, 1, 2, 3])]);
        for n in 0..1000_u32 {
            let tokens = [n, 7, 7, 7];
            local.learn(&key, &tokens, 4, None, &[block(&key, &tokens)]);
            let known = local.known.lock();
            assert!(known.young.len() + known.old.len() <= 100);
            drop(known);
            assert_eq!(resolved(&local, &HASHES[..1]).len(), 1, "after {n}");
        }
    }
}
