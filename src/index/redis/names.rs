//! What names mean, as far as a client remembers.

use super::chain::{Key, Link, Rest, Tag};
use super::place::{Place, Spot};
use super::recent::Recent;
use crate::block::Name;

/// Names that mean one block, as far as this client has seen; what it forgets is read again. Much of what a store costs a
/// client is to wait for the memory of this table, which is met at random places: so what blocks of one run have in
/// common is not in it.
#[derive(Debug)]
pub(super) struct Names {
    blocks: Recent<u64, Block>,
    runs: Recent<u32, Run>,
    /// The run that was put in last, and its number.
    last: Option<Run>,
    number: u32,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    run: u32,
    key: Key,
    offset: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    vocabulary: u32,
    tag: Tag,
    rest: Rest,
    run: Key,
    /// Blocks before the segment.
    above: usize,
}

impl Default for Names {
    /// Seven eighths of a power of two, to which a table grows.
    fn default() -> Names {
        Names::new(7 << 14)
    }
}

impl Names {
    fn new(most: usize) -> Names {
        Names { blocks: Recent::new(most), runs: Recent::new(most), last: None, number: 0 }
    }

    pub(super) fn get(&self, vocabulary: u32, name: Name) -> Option<Spot> {
        let Block { run, key, offset } = self.blocks.get(&mixed(vocabulary, name))?;
        let of = self.runs.get(&run).filter(|of| of.vocabulary == vocabulary)?;
        let depth = of.above + usize::from(offset) + 1;
        Some(Spot {
            place: Place { tag: of.tag, run: of.run, offset },
            link: Link { depth, tag: of.tag, rest: of.rest, key },
        })
    }

    pub(super) fn put(&mut self, vocabulary: u32, name: Name, spot: Spot) {
        let Spot { place: Place { tag, run, offset }, link } = spot;
        let above = link.depth - 1 - usize::from(offset);
        let of = Run { vocabulary, tag, rest: link.rest, run, above };
        if self.last != Some(of) {
            // A number never means two runs: some name may still have it.
            if self.number == u32::MAX {
                self.clear();
            }
            self.number += 1;
            self.runs.put(self.number, of);
            self.last = Some(of);
        }
        let block = Block { run: self.number, key: link.key, offset };
        self.blocks.put(mixed(vocabulary, name), block);
    }

    pub(super) fn forget(&mut self, vocabulary: u32, name: Name) {
        self.blocks.forget(&mixed(vocabulary, name));
    }

    pub(super) fn clear(&mut self) {
        *self = Names::default();
    }
}

/// A name and its vocabulary in one number. Two that have the same take each other's place, and each is known from the
/// other by its run's vocabulary.
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
    fn what_was_put_in_lately_is_known_whether_its_run_is_that_of_the_one_before_or_not() {
        for apart in [1, 8] {
            let mut names = Names::new(100);
            for n in (0..1000).map(|n| n * apart) {
                names.put(1, Name(n), spot(n));
                let first = n.saturating_sub(99 * apart);
                let mut lately = (first..=n).step_by(apart as usize);
                assert!(lately.all(|n| names.get(1, Name(n)) == Some(spot(n))), "{apart}");
            }
            assert_eq!(names.get(1, Name(0)), None);
            names.forget(1, Name(999 * apart));
            assert_eq!(names.get(1, Name(999 * apart)), None);
        }
    }

    /// What is of another run by then, or of none, is not taken for what it was.
    #[test]
    fn a_run_that_is_forgotten_before_its_names_takes_them_along() {
        let mut names = Names::new(4);
        names.put(1, Name(0), spot(0));
        // Runs come and names stay the same, so that the runs' generations end sooner.
        (1..20).for_each(|n| names.put(1, Name(1), spot(8 * n)));
        assert_eq!((names.get(1, Name(0)), names.get(1, Name(1))), (None, Some(spot(152))));
    }

    #[test]
    fn where_the_numbers_of_runs_end_all_is_forgotten_before_one_comes_again() {
        let mut names = Names::new(100);
        names.put(1, Name(0), spot(0));
        names.number = u32::MAX;
        names.put(1, Name(70), spot(70));
        assert_eq!((names.get(1, Name(0)), names.get(1, Name(70))), (None, Some(spot(70))));
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
