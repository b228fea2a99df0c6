//! Where a block is in the store, and what a name means.

use super::chain::{Key, Link, SEGMENT, TAG, Tag, first};

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

/// Set in a place's first byte where the run is not the segment's first one and is named at the end.
const CHILD: u8 = 64;

/// Bytes of a place in a segment's first run.
const OWN: usize = TAG + 1;

impl Place {
    /// The first byte is the offset, then the tag (12 bytes), then the run (8) unless that is the segment's first.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let child = self.run != first(&self.tag);
        let mut bytes = Vec::with_capacity(OWN + 8);
        bytes.push(self.offset | if child { CHILD } else { 0 });
        bytes.extend(self.tag);
        if child {
            bytes.extend(self.run);
        }
        bytes
    }

    /// The places of a list, or `None` if that is none.
    pub(super) fn list(mut bytes: &[u8]) -> Option<Vec<Place>> {
        let mut places = Vec::new();
        while let Some(&start) = bytes.first() {
            let offset = start & (CHILD - 1);
            let tag: Tag = bytes.get(1..OWN)?.try_into().ok()?;
            let (run, length) = match start {
                0..CHILD => (first(&tag), OWN),
                CHILD..128 => (bytes.get(OWN..OWN + 8)?.try_into().ok()?, OWN + 8),
                _ => return None,
            };
            debug_assert!(usize::from(offset) < SEGMENT);
            places.push(Place { tag, run, offset });
            bytes = &bytes[length..];
        }
        Some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_were_written_and_anything_else_is_refused() {
        let main = Place { tag: [7; TAG], run: [7; 8], offset: 63 };
        let child = Place { run: [1; 8], ..main };
        let bytes = [main.bytes(), child.bytes()].concat();
        assert_eq!((main.bytes().len(), child.bytes().len()), (13, 21));
        assert_eq!(Place::list(&bytes), Some(vec![main, child]));
        assert_eq!(Place::list(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Place::list(&[128; 40]), None);
        assert_eq!(Place::list(&[]), Some(vec![]));
    }
}
