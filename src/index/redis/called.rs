//! What the blocks of a run are called.

use redis::Value;

use super::chain::{Key, SEGMENT, Tag};
use super::key::Keys;
use super::meaning::name_bytes;
use super::place::{Meaning, Place};
use super::reply::{bytes, damaged, list};
use super::{Batch, command};
use crate::block::Name;
use crate::error::Error;

/// The names of a run's blocks in one vocabulary.
#[derive(Debug)]
pub(super) struct Called {
    tag: Tag,
    run: Key,
    /// The offset of the run's first block.
    start: u8,
    /// One for each block, zeros where it has none.
    names: Vec<u8>,
    /// Further ones: offset and name.
    more: Vec<u8>,
}

impl Called {
    /// The command that asks for them, and its key.
    pub(super) fn ask(
        batch: &mut Batch,
        keys: &Keys,
        vocabulary: u32,
        (tag, run): (&Tag, &Key),
    ) -> Vec<u8> {
        let key = keys.names(tag, run);
        let field = vocabulary.to_le_bytes();
        batch.push(&key, command("HMGET", &[&key, &field, &[&field[..], b"+"].concat()]));
        key
    }

    /// From the answer to that, of a run that begins at this offset.
    pub(super) fn read(
        key: &[u8],
        (tag, run): (Tag, Key),
        start: u8,
        reply: Value,
    ) -> Result<Called, Error> {
        let bad = || damaged(key, "names of a run");
        let [names, more]: [Value; 2] = list(key, reply)?.try_into().map_err(|_| bad())?;
        let (names, more) = (bytes(key, names)?, bytes(key, more)?);
        let fits = names.len().is_multiple_of(8) && usize::from(start) + names.len() / 8 <= SEGMENT;
        let is_further = |one: &[u8]| one.len() == 9 && (start..SEGMENT as u8).contains(&one[0]);
        if !fits || !more.chunks(9).all(is_further) {
            return Err(bad());
        }
        Ok(Called { tag, run, start, names, more })
    }

    /// The blocks that are called so.
    pub(super) fn places(&self, name: Name) -> impl Iterator<Item = Place> + '_ {
        let called = name_bytes(name);
        let names = self.names.chunks_exact(8).zip(self.start..);
        // Zeros stand for none.
        let first = names.filter(move |(one, _)| name != Name(0) && **one == called);
        let more = self.more.chunks_exact(9).filter(move |one| one[1..] == called);
        let offsets = first.map(|(_, offset)| offset).chain(more.map(|one| one[0]));
        offsets.map(|offset| Place { tag: self.tag, run: self.run, offset })
    }
}

/// The blocks that a name means, in the order in which they got it. A run that `called` does not know has none.
pub(super) fn resolved<'a>(
    meanings: &[Meaning],
    name: Name,
    called: impl Fn(&(Tag, Key)) -> Option<&'a Called>,
) -> Vec<Place> {
    let mut places = Vec::with_capacity(meanings.len());
    for meaning in meanings {
        match meaning {
            Meaning::At(place) => places.push(*place),
            Meaning::In(..) => {
                let all = called(&meaning.run()).into_iter().flat_map(|called| called.places(name));
                places.extend(all.filter(|place| !meanings.contains(&Meaning::At(*place))));
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::chain::TAG;
    use super::*;

    const TAG_OF: Tag = [7; TAG];
    const RUN: Key = [1; 8];

    fn called(names: &[u64], more: &[(u8, u64)]) -> Result<Called, Error> {
        let names: Vec<u8> = names.iter().flat_map(|name| name.to_le_bytes()).collect();
        let more = more.iter().flat_map(|(at, name)| [&[*at][..], &name.to_le_bytes()].concat());
        let reply = [names, more.collect()].map(Value::BulkString);
        Called::read(b"n", (TAG_OF, RUN), 10, Value::Array(reply.into()))
    }

    fn at(offset: u8) -> Place {
        Place { tag: TAG_OF, run: RUN, offset }
    }

    #[test]
    fn a_name_means_the_blocks_of_its_run_that_have_it_and_those_said_by_themselves_once() {
        let called = called(&[5, 0, 6, 5], &[(12, 5), (11, 0)]).unwrap();
        let of = |meanings: &[Meaning], name| {
            resolved(meanings, Name(name), |run| (*run == (TAG_OF, RUN)).then_some(&called))
        };
        let run = Meaning::In(TAG_OF, RUN);
        assert_eq!(of(&[run], 6), [at(12)]);
        assert_eq!(of(&[run], 5), [at(10), at(13), at(12)]);
        assert_eq!(of(&[Meaning::At(at(13)), run], 5), [at(13), at(10), at(12)]);
        assert_eq!(of(&[run], 0), [at(11)], "zeros among the names stand for none");
        assert_eq!(of(&[run], 9), []);
        assert_eq!(of(&[Meaning::In(TAG_OF, [2; 8]), Meaning::At(at(1))], 5), [at(1)]);
    }

    #[test]
    fn names_that_reach_beyond_their_segment_are_damage() {
        assert!(called(&[1; 54], &[(63, 1)]).is_ok());
        for damaged in [called(&[1; 55], &[]), called(&[], &[(64, 1)]), called(&[], &[(9, 1)])] {
            assert_eq!(damaged.unwrap_err().kind(), crate::error::ErrorKind::Decode);
        }
    }
}
