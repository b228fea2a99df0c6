//! Dynamo's hashes of single blocks, and which content each means.
//!
//! A router of Dynamo's names a block by XXH3-64, seed 1337, of its tokens as little-endian words of 32
//! bits: a public hash of the block alone. The index has digests under a secret key, and neither can be made
//! of the other; but where an event brings tokens both can be computed. Blocks with adapter, salt or items
//! are left out: how these enter differs between Dynamo's versions.
//!
//! Invariants: a hash stands for the one content that was seen under it, or, once two were (which who
//! wants to can bring about), for none; never more than the given number of hashes are kept.

use std::collections::HashMap;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::block::{Digest, TokenId};
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

    /// Takes note of stored blocks of `size` tokens; of those whose content is not their tokens alone,
    /// nothing.
    pub(super) fn learn(&self, key: &DigestKey, tokens: &[TokenId], size: usize, blocks: &[Block]) {
        let half = (self.most / 2).max(1);
        let mut bytes = Vec::with_capacity(size * 4);
        let mut plain = [Digest(0)];
        let mut known = self.known.lock();
        for (tokens, block) in tokens.chunks_exact(size).zip(blocks) {
            key.plain(tokens, size, &mut plain);
            if block.digest != Some(plain[0]) {
                continue;
            }
            bytes.clear();
            bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            let hash = xxh3_64_with_seed(&bytes, SEED);
            let meaning = match known.get(hash, half) {
                Some(Meaning::One(digest)) if digest == plain[0] => continue,
                Some(_) => Meaning::Several,
                None => Meaning::One(plain[0]),
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
        local.learn(&key, &tokens[..8], 4, &blocks);
        local.learn(&key, &tokens, 16, &[block(&key, &tokens)]);
        let digests: Vec<Digest> = blocks.iter().filter_map(|block| block.digest).collect();
        assert_eq!(resolved(&local, &HASHES[..2]), digests);
        assert_eq!(resolved(&local, &HASHES[2..]), [block(&key, &tokens).digest.unwrap()]);
        assert_eq!(resolved(&local, &[HASHES[1], 5, HASHES[0]]), digests[1..], "as far as known");
    }

    #[test]
    fn what_is_not_its_tokens_alone_is_left_out() {
        let (local, key) = (LocalHashes::new(100), DigestKey::from_bytes([7; 16]));
        let salted = key.digest(&[0, 1, 2, 3], &[], [crate::block::ExtraKey::Salt("s")]);
        for digest in [Some(salted), None] {
            local.learn(&key, &[0, 1, 2, 3], 4, &[Block { name: Name(1), digest }]);
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
            local.learn(&key, &tokens, 4, &[block(&key, &tokens)]);
        }
        assert_eq!(resolved(&local, &HASHES[..1]), []);
    }

    #[test]
    fn no_more_are_kept_than_there_may_be_and_what_is_used_stays() {
        let (local, key) = (LocalHashes::new(100), DigestKey::from_bytes([7; 16]));
        local.learn(&key, &[0, 1, 2, 3], 4, &[block(&key, &[0, 1, 2, 3])]);
        for n in 0..1000_u32 {
            let tokens = [n, 7, 7, 7];
            local.learn(&key, &tokens, 4, &[block(&key, &tokens)]);
            let known = local.known.lock();
            assert!(known.young.len() + known.old.len() <= 100);
            drop(known);
            assert_eq!(resolved(&local, &HASHES[..1]).len(), 1, "after {n}");
        }
    }
}
