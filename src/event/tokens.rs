//! The token ids of an event.

use std::fmt;

use super::error::{DecodeError, DecodeErrorKind, Field};
use super::msgpack::Reader;
use crate::block::TokenId;

/// Token ids, still in the payload. That they are unsigned integers was checked when the event was
/// decoded: iterating cannot fail.
///
/// There may be more of them than the event's hashes account for (vLLM skips blocks that a
/// sliding window or Mamba has dropped), fewer, or none (offloaded blocks).
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    list: Reader<'a>,
    len: usize,
}

impl<'a> Tokens<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values as they were sent. SGLang can send more than 32 bits.
    pub fn iter(&self) -> TokenIter<'a> {
        TokenIter { reader: self.list, left: self.len }
    }

    /// Appends the token ids to `out`.
    ///
    /// # Errors
    ///
    /// [`DecodeErrorKind::TokenTooLarge`] at the first one that is no [`TokenId`]; `out` is then
    /// as it was.
    pub fn read_into(&self, out: &mut Vec<TokenId>) -> Result<(), DecodeError> {
        let before = out.len();
        out.reserve(self.len);
        let mut tokens = self.iter();
        loop {
            let at = tokens.reader.at();
            match tokens.next().map(TokenId::try_from) {
                Some(Ok(token)) => out.push(token),
                Some(Err(_)) => {
                    out.truncate(before);
                    return Err(DecodeError { at, kind: DecodeErrorKind::TokenTooLarge });
                }
                None => return Ok(()),
            }
        }
    }

    pub(super) fn none(at: &Reader<'a>) -> Tokens<'a> {
        Tokens { list: *at, len: 0 }
    }

    pub(super) fn read(reader: &mut Reader<'a>, field: Field) -> Result<Tokens<'a>, DecodeError> {
        let len = reader.array_of(field)?;
        let list = *reader;
        let mut passed = 0;
        while passed < len {
            passed += reader.words(len - passed, |_, _| {});
            if passed < len {
                reader.unsigned(field)?;
                passed += 1;
            }
        }
        Ok(Tokens { list, len })
    }

    /// The same, and writes the token ids to `out` on the way: all of them, or none if one is no
    /// [`TokenId`].
    pub(super) fn read_to(
        reader: &mut Reader<'a>,
        field: Field,
        out: &mut Vec<TokenId>,
    ) -> Result<Tokens<'a>, DecodeError> {
        let len = reader.array_of(field)?;
        let list = *reader;
        out.clear();
        let (mut passed, mut fits) = (0, true);
        while passed < len {
            // Piece by piece: a claim that breaks after a few tokens must not cost more than these.
            out.resize(len.min(passed + PIECE), 0);
            let ids = &mut out[passed..];
            let room = ids.len();
            let words = reader.words(room, |n, id| ids[n] = id);
            passed += words;
            if words < room {
                match TokenId::try_from(reader.unsigned(field)?) {
                    Ok(id) => out[passed] = id,
                    Err(_) => fits = false,
                }
                passed += 1;
            }
        }
        if !fits {
            out.clear();
        }
        Ok(Tokens { list, len })
    }
}

impl<'a> IntoIterator for Tokens<'a> {
    type Item = u64;
    type IntoIter = TokenIter<'a>;

    fn into_iter(self) -> TokenIter<'a> {
        self.iter()
    }
}

/// Shows how many, never which.
impl fmt::Debug for Tokens<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Token ids that room is made for at a time.
const PIECE: usize = 1024;

/// Iterator over [`Tokens`].
#[derive(Clone, Debug)]
pub struct TokenIter<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl Iterator for TokenIter<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        self.reader.unsigned(Field::TokenIds).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for TokenIter<'_> {}

/// The tokens after each block that are part of the block's identity (`lookahead_token_ids`, vLLM
/// 0.33 with EAGLE-like drafters): normally one list for each hash.
#[derive(Clone, Copy)]
pub struct Lookahead<'a> {
    lists: Reader<'a>,
    len: usize,
}

impl<'a> Lookahead<'a> {
    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lists, in the order of the hashes; nil counts as an empty one.
    pub fn iter(&self) -> impl Iterator<Item = Tokens<'a>> + Clone + use<'a> {
        let mut reader = self.lists;
        (0..self.len).map_while(move |_| Self::list(&mut reader).ok())
    }

    /// How many tokens every list has, or `None` when they differ or there are no lists. Together
    /// with the block size this is the [`Shape`](crate::block::Shape) of the blocks.
    pub fn depth(&self) -> Option<u32> {
        let mut lists = self.iter();
        let depth = lists.next()?.len();
        if lists.all(|list| list.len() == depth) { u32::try_from(depth).ok() } else { None }
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Lookahead<'a>, DecodeError> {
        let len = reader.array_of(Field::LookaheadTokenIds)?;
        let lists = *reader;
        for _ in 0..len {
            Self::list(reader)?;
        }
        Ok(Lookahead { lists, len })
    }

    fn list(reader: &mut Reader<'a>) -> Result<Tokens<'a>, DecodeError> {
        if reader.nil() {
            return Ok(Tokens::none(reader));
        }
        Tokens::read(reader, Field::LookaheadTokenIds)
    }
}

/// Shows how many, never which.
impl fmt::Debug for Lookahead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookahead").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(bytes: &[u8]) -> Result<Tokens<'_>, DecodeError> {
        Tokens::read(&mut Reader::new(bytes), Field::TokenIds)
    }

    #[test]
    fn a_token_beyond_32_bits_is_told_apart_only_when_ids_are_wanted() {
        let payload = [0x93, 1, 0xce, 0xff, 0xff, 0xff, 0xff, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0];
        let list = tokens(&payload).unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, u32::MAX.into(), 1 << 32]);

        let mut ids = vec![9];
        let error = list.read_into(&mut ids).unwrap_err();
        assert_eq!(error, DecodeError { at: 7, kind: DecodeErrorKind::TokenTooLarge });
        assert_eq!(ids, [9]);
        tokens(&[0x92, 3, 4]).unwrap().read_into(&mut ids).unwrap();
        assert_eq!(ids, [9, 3, 4]);
    }

    #[test]
    fn ids_read_on_the_way_are_those_read_afterwards() {
        let mut payload = vec![0xdc, 0x30, 0x39];
        let mut edges = 0..12_345_u32;
        let mut put = |n: u32| match (n % 7, n % 256) {
            (0, n) => payload.push(n as u8 & 0x7f),
            (1, n) => payload.extend([0xcc, n as u8]),
            (2, n) => payload.extend([0xcd, n as u8, 0xff]),
            (3, n) => payload.extend([0xce, 0xff, n as u8, 0, 1]),
            (4, n) => payload.extend([0xcf, 0, 0, 0, 0, 0xff, 0xff, 0xff, n as u8]),
            (5, n) => payload.extend([0xd1, n as u8 & 0x7f, 9]),
            (_, n) => payload.extend([0xd2, n as u8 & 0x7f, 9, 8, 7]),
        };
        edges.by_ref().for_each(&mut put);
        for tail in [0, 1, 7, 8, 20] {
            let mut payload = payload.clone();
            payload.resize(payload.len() + tail, 0xc0);
            let (mut ids, mut later) = (vec![9], Vec::new());
            let mut reader = Reader::new(&payload);
            let list = Tokens::read_to(&mut reader, Field::TokenIds, &mut ids).unwrap();
            assert_eq!(reader.at(), payload.len() - tail);
            assert_eq!(tokens(&payload).unwrap().len(), list.len());
            list.read_into(&mut later).unwrap();
            assert_eq!(ids, later);
        }
        let error =
            Tokens::read_to(&mut Reader::new(&payload[..999]), Field::TokenIds, &mut vec![]);
        assert_eq!(error.unwrap_err(), tokens(&payload[..999]).unwrap_err());
    }

    #[test]
    fn an_id_beyond_32_bits_leaves_none_on_the_way() {
        let payload = [0x92, 1, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0];
        let mut ids = vec![9];
        let list = Tokens::read_to(&mut Reader::new(&payload), Field::TokenIds, &mut ids).unwrap();
        assert_eq!((list.len(), ids), (2, vec![]));
    }

    #[test]
    fn tokens_are_unsigned_integers() {
        for (payload, at) in [(&[0x92, 0, 0xff][..], 2), (&[0x91, 0xc0], 1), (&[0x91, 0x90], 1)] {
            let error = tokens(payload).unwrap_err();
            assert_eq!(error.at, at);
            assert!(matches!(error.kind, DecodeErrorKind::WrongType { .. }));
        }
    }

    #[test]
    fn the_depth_of_a_look_ahead_is_known_when_all_blocks_agree() {
        let read = |bytes| Lookahead::read(&mut Reader::new(bytes)).unwrap().depth();
        assert_eq!(read(&[0x92, 0x91, 9, 0x91, 8]), Some(1));
        assert_eq!(read(&[0x92, 0x91, 9, 0xc0]), None);
        assert_eq!(read(&[0x90]), None);
    }
}
