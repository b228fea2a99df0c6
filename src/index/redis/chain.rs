//! The identity of a block in the store: a keyed hash of everything from the root to it.
//!
//! A path is cut into **segments** of 64 blocks. A segment is known by the hash of its first block, 128 bits: by the first
//! 96, its **tag**, it is found, and the **rest** stands in its runs; within the segment a block is known by the
//! first 8 bytes of its own hash. Each is taken of the segment's hash before it, the 8 bytes of the parent and the block's
//! digest, so equal hashes mean equal paths, and a block can be continued from (tag, rest, 8 bytes) alone.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::block::{Digest, Shape};

/// Blocks in a segment.
pub(super) const SEGMENT: usize = 64;

/// What names a segment: all its blocks and all chains that part within it lie in one slot.
pub(super) type Tag = [u8; 12];

/// What a tag leaves out of a segment's hash.
pub(super) type Rest = [u8; 4];

/// Bytes of a tag. With the offset before it and what the server puts around it, a place takes 16 bytes there; of
/// more it would take twice as much.
pub(super) const TAG: usize = size_of::<Tag>();

/// Bytes of a run among what a slot holds something of: its tag and its first block.
pub(super) const HELD: usize = TAG + 8;

/// What names a block, or a run by its first block, within a segment.
pub(super) type Key = [u8; 8];

/// The secret under which paths are hashed.
#[derive(Clone)]
pub(super) struct ChainKey([u8; 16]);

/// A block as its descendants see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// How many blocks come before the next one.
    pub(super) depth: usize,
    /// The tag of the segment that it lies in; of the root, of the root's own hash.
    pub(super) tag: Tag,
    /// And the rest of that hash.
    pub(super) rest: Rest,
    /// Its first 8 bytes.
    pub(super) key: Key,
}

impl ChainKey {
    pub(super) fn new(secret: [u8; 16]) -> ChainKey {
        ChainKey(secret)
    }

    /// What comes before the first block of prompts of this space, cut in this shape.
    pub(super) fn root(&self, space: &[u8], shape: Shape) -> Link {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(b"root");
        hasher.write(&shape_bytes(shape));
        hasher.write(space);
        let hash = hasher.finish128().as_bytes();
        Link { depth: 0, tag: head(&hash), rest: rest(&hash), key: head(&hash) }
    }

    /// What stands for a list of names.
    pub(super) fn names(&self, names: &[u8]) -> [u8; 8] {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(b"names");
        hasher.write(names);
        head(&hasher.finish128().as_bytes())
    }

    /// The block with this digest behind `above`.
    pub(super) fn next(&self, above: &Link, digest: Digest) -> Link {
        let mut bytes = [0; 32];
        bytes[..TAG].copy_from_slice(&above.tag);
        bytes[TAG..16].copy_from_slice(&above.rest);
        bytes[16..24].copy_from_slice(&above.key);
        bytes[24..].copy_from_slice(&digest.0.to_le_bytes());
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write(&bytes);
        let hash = hasher.finish128().as_bytes();
        let starts = above.depth.is_multiple_of(SEGMENT);
        let (tag, rest) = if starts { (head(&hash), rest(&hash)) } else { (above.tag, above.rest) };
        Link { depth: above.depth + 1, tag, rest, key: head(&hash) }
    }
}

/// Says nothing of the secret.
impl std::fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChainKey(..)")
    }
}

/// Block size and look-ahead, little-endian.
pub(super) fn shape_bytes(shape: Shape) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&shape.size.get().to_le_bytes());
    bytes[4..].copy_from_slice(&shape.lookahead.to_le_bytes());
    bytes
}

/// The key of a segment's first block.
pub(super) fn first(tag: &Tag) -> Key {
    head(tag)
}

fn head<const N: usize>(hash: &[u8]) -> [u8; N] {
    let mut head = [0; N];
    head.copy_from_slice(&hash[..N]);
    head
}

fn rest(hash: &[u8; 16]) -> Rest {
    let mut rest = [0; 4];
    rest.copy_from_slice(&hash[TAG..]);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockSize;

    #[test]
    fn a_block_knows_its_whole_path_and_a_tag_lasts_for_a_segment() {
        let key = ChainKey::new([7; 16]);
        let root = key.root(b"space", Shape::plain(BlockSize::DEFAULT));
        let path = |first: u64, n: u64| {
            (1..n).fold(key.next(&root, Digest(first)), |above, d| key.next(&above, Digest(d)))
        };
        assert_eq!(path(1, 70), path(1, 70));
        assert_ne!(path(1, 70).key, path(2, 70).key);
        assert_eq!((path(1, 1).tag, path(1, 1).rest), (path(1, 64).tag, path(1, 64).rest));
        assert_ne!(path(1, 64).rest, path(1, 65).rest);
        assert_ne!(path(1, 64).tag, path(1, 65).tag);
        assert_eq!(first(&path(1, 65).tag), path(1, 65).key);
        assert_ne!(
            key.root(b"space", Shape::plain(BlockSize::DEFAULT)),
            key.root(b"other", Shape::plain(BlockSize::DEFAULT))
        );
    }
}
