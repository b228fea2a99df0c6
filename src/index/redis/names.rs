//! What names mean, as far as a client remembers.

use std::collections::HashMap;
use std::mem;

use foldhash::fast::RandomState;

use super::chain::{Key, Link, Rest, Tag};
use super::place::{Place, Spot};
use crate::block::Name;

/// Names that mean one block, as far as this client has seen; what it forgets is read again. Some 40 bytes each, and up to
/// 85 where each block lies in another run than the one before. Much of what a store costs a client is to wait for the
/// table's memory, which is met at random places, so its entries are small.
#[derive(Debug)]
pub(super) struct Names {
    young: Generation,
    old: Generation,
    most: usize,
}

impl Default for Names {
    /// Seven eighths of a power of two, to which a table grows.
    fn default() -> Names {
        Names::new(7 << 14)
    }
}

/// What was put in lately, up to so many times. A name that is forgotten or put in again keeps its block until all go.
#[derive(Debug, Default)]
struct Generation {
    /// Which of the blocks.
    at: HashMap<u64, u32, RandomState>,
    blocks: Vec<Block>,
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    key: Key,
    run: u32,
    offset: u8,
}

/// What blocks of one run have in common that were put in one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    vocabulary: u32,
    tag: Tag,
    rest: Rest,
    run: Key,
    /// Blocks before the segment.
    above: usize,
}

impl Names {
    fn new(most: usize) -> Names {
        Names { young: Generation::default(), old: Generation::default(), most }
    }

    pub(super) fn get(&self, vocabulary: u32, name: Name) -> Option<Spot> {
        let at = mixed(vocabulary, name);
        // Whoever took its place in the younger one came later than what the older one has.
        let (of, block) = match self.young.at.get(&at) {
            Some(&block) => (&self.young, block),
            None => (&self.old, *self.old.at.get(&at)?),
        };
        of.spot(vocabulary, block)
    }

    pub(super) fn put(&mut self, vocabulary: u32, name: Name, spot: Spot) {
        if self.young.blocks.len() >= self.most {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.put(vocabulary, name, spot, self.most);
    }

    pub(super) fn forget(&mut self, vocabulary: u32, name: Name) {
        let at = mixed(vocabulary, name);
        self.young.at.remove(&at);
        self.old.at.remove(&at);
    }

    pub(super) fn clear(&mut self) {
        *self = Names::new(self.most);
    }
}

impl Generation {
    fn spot(&self, vocabulary: u32, block: u32) -> Option<Spot> {
        let block = self.blocks[block as usize];
        let of = self.runs[block.run as usize];
        (of.vocabulary == vocabulary).then(|| Spot {
            place: Place { tag: of.tag, run: of.run, offset: block.offset },
            link: Link {
                depth: of.above + usize::from(block.offset) + 1,
                tag: of.tag,
                rest: of.rest,
                key: block.key,
            },
        })
    }

    fn put(&mut self, vocabulary: u32, name: Name, spot: Spot, most: usize) {
        let Spot { place, link } = spot;
        let above = link.depth - 1 - usize::from(place.offset);
        let of = Run { vocabulary, tag: link.tag, rest: link.rest, run: place.run, above };
        if self.runs.last() != Some(&of) {
            self.runs.push(of);
        }
        // Who fills a sixteenth fills the rest, and each doubling of the table on the way would move all of it.
        if self.at.len() == self.at.capacity() && self.at.len() > most / 16 {
            self.at.reserve(most - self.at.len());
        }
        self.at.insert(mixed(vocabulary, name), self.blocks.len() as u32);
        let run = self.runs.len() as u32 - 1;
        self.blocks.push(Block { key: link.key, run, offset: place.offset });
    }

    fn clear(&mut self) {
        self.at.clear();
        self.blocks.clear();
        self.runs.clear();
    }
}

/// A name and its vocabulary in one number. Two that have the same take each other's place, and each is known from the
/// other by its vocabulary.
fn mixed(vocabulary: u32, name: Name) -> u64 {
    name.0 ^ u64::from(vocabulary).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(n: u64) -> Spot {
        let segment = n / 64;
        let tag = [segment as u8; 12];
        let place = Place { tag, run: [(n / 8) as u8; 8], offset: (n % 64) as u8 };
        let link = Link { depth: n as usize + 1, tag, rest: [3; 4], key: n.to_le_bytes() };
        Spot { place, link }
    }

    #[test]
    fn what_was_put_in_lately_is_known_and_never_more_than_two_generations() {
        let mut names = Names::new(100);
        for n in 0..1000 {
            names.put(1, Name(n), spot(n));
            let first = n.saturating_sub(99);
            assert!((first..=n).all(|n| names.get(1, Name(n)) == Some(spot(n))));
            for some in [&names.young, &names.old] {
                assert!(some.at.len() <= 100 && some.blocks.len() <= 100 && some.runs.len() <= 100);
            }
        }
        assert_eq!((names.get(1, Name(0)), names.get(2, Name(999))), (None, None));
        let gone = [850, 950].map(|n| {
            assert_eq!(names.get(1, Name(n)), Some(spot(n)));
            names.forget(1, Name(n));
            names.get(1, Name(n))
        });
        assert_eq!(gone, [None, None], "of either generation");
    }

    #[test]
    fn what_was_put_in_again_later_counts_whoever_has_its_place_by_then() {
        let mut names = Names::new(2);
        (0..2).for_each(|n| names.put(1, Name(n), spot(n)));
        names.put(1, Name(0), spot(70));
        assert_eq!(names.get(1, Name(0)), Some(spot(70)));
        // As a hostile engine may choose it.
        let twin = Name(mixed(1, Name(0)) ^ mixed(2, Name(0)));
        names.put(2, twin, spot(9));
        assert_eq!((names.get(1, Name(0)), names.get(2, twin)), (None, Some(spot(9))));
        names.forget(1, Name(0));
        assert_eq!((names.get(1, Name(0)), names.get(1, Name(1))), (None, Some(spot(1))));
    }

    #[test]
    fn a_name_means_what_was_put_in_last_in_its_own_vocabulary() {
        let mut names = Names::new(100);
        (0..3).for_each(|n| names.put(n, Name(5), spot(n.into())));
        names.put(1, Name(5), spot(70));
        let found = [0, 1, 2, 3].map(|vocabulary| names.get(vocabulary, Name(5)));
        assert_eq!(found, [Some(spot(0)), Some(spot(70)), Some(spot(2)), None]);
    }
}
