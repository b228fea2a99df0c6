//! A bounded memory of pieces of text and their tokens.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use crate::block::TokenId;

/// Locks, each with its share of the bytes, so that texts of several threads seldom meet.
const SHARDS: usize = 16;
/// What an entry takes besides its text and tokens: the entry, its place in the map and in the queue.
const OVERHEAD: usize = 128;

/// Pieces of text with their tokens, bounded in bytes; what was not used for longest goes first, nearly.
pub(super) struct Pieces {
    shards: Box<[Mutex<Shard>]>,
    /// Bytes for each shard.
    share: usize,
    seed: u64,
}

#[derive(Default)]
struct Shard {
    known: HashMap<u64, Piece>,
    /// Keys in the order of their arrival; one that was used meanwhile is put behind once more.
    order: VecDeque<u64>,
    bytes: usize,
}

struct Piece {
    text: Box<str>,
    tokens: Box<[TokenId]>,
    used: bool,
}

/// Without the texts.
impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, pieces) = self.size();
        f.debug_struct("Pieces").field("bytes", &bytes).field("pieces", &pieces).finish()
    }
}

impl Piece {
    fn bytes(&self) -> usize {
        self.text.len() + 4 * self.tokens.len() + OVERHEAD
    }
}

impl Pieces {
    /// Room for `bytes`, counted with the overhead of an entry. `seed` keeps outsiders from choosing texts whose hashes collide, which
    /// would make them forget each other; texts are compared, so ids are right in any case.
    pub(super) fn new(bytes: usize, seed: u64) -> Pieces {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Pieces { shards, share: bytes / SHARDS, seed }
    }

    /// Appends the tokens of a piece that is known.
    pub(super) fn append(&self, text: &str, out: &mut Vec<TokenId>) -> bool {
        let (key, shard) = self.place(text);
        let mut shard = shard.lock();
        match shard.known.get_mut(&key) {
            Some(piece) if *piece.text == *text => {
                piece.used = true;
                out.extend_from_slice(&piece.tokens);
                true
            }
            _ => false,
        }
    }

    /// Remembers a piece, as far as it is not too large a part of the whole.
    pub(super) fn insert(&self, text: &str, tokens: &[TokenId]) {
        let piece = Piece { text: text.into(), tokens: tokens.into(), used: false };
        let bytes = piece.bytes();
        if bytes > self.share / 4 {
            return;
        }
        let (key, shard) = self.place(text);
        let mut shard = shard.lock();
        shard.make_room(bytes, self.share);
        shard.bytes += bytes;
        match shard.known.insert(key, piece) {
            Some(replaced) => shard.bytes -= replaced.bytes(),
            None => shard.order.push_back(key),
        }
    }

    /// Bytes and number of what is remembered.
    pub(super) fn size(&self) -> (usize, usize) {
        self.shards.iter().map(|shard| shard.lock()).fold((0, 0), |(bytes, number), shard| {
            (bytes + shard.bytes, number + shard.known.len())
        })
    }

    fn place(&self, text: &str) -> (u64, &Mutex<Shard>) {
        let key = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), self.seed);
        (key, &self.shards[(key >> 32) as usize % SHARDS])
    }
}

impl Shard {
    fn make_room(&mut self, bytes: usize, share: usize) {
        while self.bytes + bytes > share {
            let Some(key) = self.order.pop_front() else { break };
            match self.known.get_mut(&key) {
                Some(piece) if piece.used => {
                    piece.used = false;
                    self.order.push_back(key);
                }
                Some(_) => {
                    let piece = self.known.remove(&key);
                    self.bytes -= piece.map_or(0, |piece| piece.bytes());
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_stays_within_its_bytes_and_what_is_used_stays() {
        let pieces = Pieces::new(64 << 10, 7);
        pieces.insert("the popular one", &[1, 2, 3]);
        let mut out = Vec::new();
        for n in 0..10_000u32 {
            pieces.insert(&format!("text {n}"), &[n; 8]);
            assert!(pieces.size().0 <= 64 << 10);
            out.clear();
            assert!(pieces.append("the popular one", &mut out), "forgotten after {n}");
            assert_eq!(out, [1, 2, 3]);
        }
        assert!(pieces.size().1 > 200 && !pieces.append("text 0", &mut out));
        assert!(pieces.append("text 9999", &mut out));
    }

    #[test]
    fn a_piece_larger_than_a_part_of_the_room_is_not_kept() {
        let pieces = Pieces::new(16 << 10, 7);
        pieces.insert(&"x".repeat(1000), &[1; 300]);
        assert_eq!(pieces.size(), (0, 0));
    }

    #[test]
    fn a_piece_remembered_twice_counts_once() {
        let pieces = Pieces::new(64 << 10, 7);
        pieces.insert("a", &[1]);
        let once = pieces.size();
        pieces.insert("a", &[1]);
        assert_eq!(pieces.size(), once);
    }
}
