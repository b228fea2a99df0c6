//! Where a block is in the store, and what a name means.

use super::chain::{Key, Link, TAG, Tag, first};

/// A block's place: an offset of its segment, and the run that it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// The segment.
    pub(super) tag: Tag,
    /// The run, by its first block.
    pub(super) run: Key,
    /// Which block of the segment, below 64.
    pub(super) offset: u8,
}

/// A block's place, and what its descendants need of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) place: Place,
    pub(super) link: Link,
}

/// Something that a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This block.
    At(Place),
    /// Each block of this run that the run's names call so, unless it is said by itself.
    In(Tag, Key),
}

/// Set in a place's first byte where the run is not the segment's first one and is named at the end.
const CHILD: u8 = 64;

/// Set in the first byte where there is no offset.
const IN: u8 = 128;

/// Bytes of a place in a segment's first run.
const OWN: usize = TAG + 1;

impl Place {
    /// The first byte is the offset, then the tag (12 bytes), then the run (8) unless that is the segment's first.
    pub(super) fn bytes(&self) -> Vec<u8> {
        at_run(self.offset, &self.tag, &self.run)
    }

    /// A place, or `None` if these bytes are none.
    pub(super) fn read(bytes: &[u8]) -> Option<Place> {
        match Meaning::list(bytes)?[..] {
            [Meaning::At(place)] => Some(place),
            _ => None,
        }
    }

    pub(super) fn in_run(&self) -> Meaning {
        Meaning::In(self.tag, self.run)
    }
}

impl Meaning {
    /// As a place; 128 stands for the offset where there is none.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Meaning::At(place) => place.bytes(),
            Meaning::In(tag, run) => at_run(IN, tag, run),
        }
    }

    /// The meanings of a list, or `None` if that is none.
    pub(super) fn list(mut bytes: &[u8]) -> Option<Vec<Meaning>> {
        let mut meanings = Vec::new();
        while let Some(&start) = bytes.first() {
            let offset = start & !(CHILD | IN);
            let tag: Tag = bytes.get(1..OWN)?.try_into().ok()?;
            let (run, length) = match start & CHILD {
                0 => (first(&tag), OWN),
                _ => (bytes.get(OWN..OWN + 8)?.try_into().ok()?, OWN + 8),
            };
            meanings.push(match (start & IN, offset) {
                (0, _) => Meaning::At(Place { tag, run, offset }),
                (_, 0) => Meaning::In(tag, run),
                _ => return None,
            });
            bytes = &bytes[length..];
        }
        Some(meanings)
    }

    /// Whether it is a whole run.
    pub(super) fn is_run(&self) -> bool {
        matches!(self, Meaning::In(..))
    }

    /// The run that it lies in.
    pub(super) fn run(&self) -> (Tag, Key) {
        match *self {
            Meaning::At(place) => (place.tag, place.run),
            Meaning::In(tag, run) => (tag, run),
        }
    }
}

fn at_run(start: u8, tag: &Tag, run: &Key) -> Vec<u8> {
    let child = *run != first(tag);
    let mut bytes = Vec::with_capacity(OWN + 8);
    bytes.push(start | if child { CHILD } else { 0 });
    bytes.extend(tag);
    if child {
        bytes.extend(run);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_mean_is_read_as_it_was_written_and_anything_else_is_refused() {
        let main = Place { tag: [7; TAG], run: [7; 8], offset: 63 };
        let child = Place { run: [1; 8], ..main };
        let all = [Meaning::At(main), Meaning::At(child), main.in_run(), child.in_run()];
        let bytes: Vec<u8> = all.iter().flat_map(Meaning::bytes).collect();
        assert_eq!(all.map(|meaning| meaning.bytes().len()), [13, 21, 13, 21]);
        assert_eq!(Meaning::list(&bytes), Some(all.to_vec()));
        assert_eq!(Meaning::list(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Meaning::list(&[129; 13]), None);
        assert_eq!(Meaning::list(&[]), Some(vec![]));
        assert_eq!(Place::read(&child.bytes()), Some(child));
        assert_eq!(Place::read(&bytes[..34]), None);
        assert_eq!(Place::read(&child.in_run().bytes()), None);
        assert_eq!(Place::read(&[]), None);
    }
}
