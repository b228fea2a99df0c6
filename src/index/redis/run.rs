//! A run as it lies in the store.

use redis::Value;

use super::chain::{Key, Rest, SEGMENT};
use super::place::Place;
use super::reply;
use super::store::Stamp;
use crate::error::Error;

/// A stretch of a chain within one segment, and who holds what of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// The offset of its first block in the segment.
    pub(super) start: usize,
    /// The number of the segment, from the root.
    pub(super) segment: u32,
    /// Block size and look-ahead, as in [`shape_bytes`](super::chain::shape_bytes).
    pub(super) shape: [u8; 8],
    /// Of the hash of its segment, what the tag leaves out: where that is another's, so are its blocks.
    pub(super) rest: Rest,
    /// What the run hangs on, unless its first block starts a prompt.
    pub(super) above: Option<Place>,
    /// Bit n: something hangs below offset n.
    pub(super) kids: u64,
    keys: Vec<u8>,
    holders: Vec<(u32, Vec<u8>)>,
}

/// Before the stretches of a holder: the stamp of the last change.
const STAMP: usize = 12;

impl Run {
    /// From the hash under `key`; `None` if there is none.
    pub(super) fn read(key: &[u8], value: Value) -> Result<Option<Run>, Error> {
        let bad = |what| reply::damaged(key, what);
        let fields = reply::fields(key, value)?;
        if fields.is_empty() {
            return Ok(None);
        }
        let (mut run, mut headed) = (Run::default(), false);
        for (field, value) in fields {
            match (field.as_slice(), value.as_slice()) {
                (b"h", &[1, start, a, b, c, d, ref after @ ..]) => {
                    run.start = usize::from(start);
                    run.segment = u32::from_le_bytes([a, b, c, d]);
                    let (shape, rest) =
                        after.split_first_chunk().ok_or_else(|| bad("header of a run"))?;
                    run.shape = *shape;
                    run.rest = rest.try_into().map_err(|_| bad("header of a run"))?;
                    headed = run.start < SEGMENT;
                }
                (b"k", _) => run.keys = value,
                (b"c", kids) => {
                    for kid in kids.chunks(5) {
                        run.kids |= 1_u64.checked_shl(kid[0].into()).unwrap_or(0);
                    }
                }
                (b"p", place) => {
                    run.above = Some(Place::read(place).ok_or_else(|| bad("place"))?);
                }
                (&[a, b, c, d], _) => run.holders.push((u32::from_le_bytes([a, b, c, d]), value)),
                _ => return Err(bad("run")),
            }
        }
        let fits = run.start + run.keys.len() / 8 <= SEGMENT && run.keys.len().is_multiple_of(8);
        let whole = |v: &Vec<u8>| v.len() >= STAMP && (v.len() - STAMP).is_multiple_of(6);
        if !headed || !fits || !run.holders.iter().all(|(_, v)| whole(v)) {
            return Err(bad("run"));
        }
        Ok(Some(run))
    }

    /// The block at an offset of the segment.
    pub(super) fn key(&self, offset: usize) -> Option<Key> {
        let at = offset.checked_sub(self.start)? * 8;
        self.keys.get(at..at + 8)?.try_into().ok()
    }

    /// Up to which offset the run's blocks are those of the path, from `offset` on; none are if the run
    /// begins later, which is damage.
    pub(super) fn equal(&self, offset: usize, path: impl Iterator<Item = Key>) -> usize {
        let at = offset.checked_sub(self.start).map(|blocks| blocks * 8);
        let keys = at.and_then(|at| self.keys.get(at..)).unwrap_or_default();
        offset + keys.chunks_exact(8).zip(path).take_while(|(have, want)| *have == want).count()
    }

    /// Each slot and stretch of which it has a copy.
    pub(super) fn holdings(&self) -> impl Iterator<Item = (u32, usize, usize)> + '_ {
        self.holders.iter().flat_map(|(slot, value)| {
            let stretches = value[STAMP..].chunks_exact(6);
            stretches.map(|s| (*slot, usize::from(s[0]), usize::from(s[1])))
        })
    }

    /// Whether one of these slots has a copy of the block at this offset.
    pub(super) fn held(&self, offset: usize, slots: &[u32]) -> bool {
        self.holdings()
            .any(|(slot, from, to)| slots.contains(&slot) && (from..to).contains(&offset))
    }
}

/// Whether what a holder's field says covers this offset.
pub(super) fn holds(value: &[u8], offset: u8) -> bool {
    let mut stretches = value.get(STAMP..).unwrap_or_default().chunks_exact(6);
    stretches.any(|s| (s[0]..s[1]).contains(&offset))
}

/// What a run that begins its segment says of a holder of one copy of each block up to an offset.
pub(super) fn once(stamp: &Stamp, to: u8) -> [u8; STAMP + 6] {
    let mut value = [0; STAMP + 6];
    value[..STAMP].copy_from_slice(stamp);
    value[STAMP + 1] = to;
    value[STAMP + 2] = 1;
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_begins_behind_its_segment_has_no_block_of_a_path_from_there() {
        let field = |name: &[u8], value: &[u8]| {
            (Value::BulkString(name.to_vec()), Value::BulkString(value.to_vec()))
        };
        let head = [1, 5, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        let fields = Value::Map(vec![field(b"h", &head), field(b"k", &[7; 16])]);
        let run = Run::read(b"r", fields).unwrap().unwrap();
        assert_eq!(run.equal(0, [[7; 8]; 3].into_iter()), 0);
        assert_eq!(run.equal(5, [[7; 8]; 3].into_iter()), 7);
    }

    #[test]
    fn who_holds_blocks_once_holds_those_and_no_further_one() {
        let value = once(&[9; 12], 40);
        assert_eq!(value, *b"\t\t\t\t\t\t\t\t\t\t\t\t\x00\x28\x01\x00\x00\x00");
        assert_eq!([0, 39, 40].map(|offset| holds(&value, offset)), [true, true, false]);
    }
}
