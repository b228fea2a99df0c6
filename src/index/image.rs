//! The state of an index as bytes.
//!
//! Invariant: nothing in an image depends on where things lay in memory; parts refer to each other
//! by their number in the image, and only to parts before them. `docs/state.md` has the layout.

mod apart;
mod changes;
mod parts;
#[cfg(test)]
mod tests;

use std::fmt;

use super::Home;
use crate::block::{SpaceId, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};

/// The state of an index: which blocks there are, what they are called, who holds them.
///
/// An index made of it answers every query as the old one did, and does the same with every change.
/// Left out are what only says how an index came about: when a block was used last, how many
/// entries were evicted (of whom some were is there). Spaces, vocabularies and workers keep their numbers.
///
/// An image is more than the changes that would lead to the same state: no changes of today's
/// workers make names mean blocks in the same order as before, or bring back the names of workers
/// that are gone.
///
/// There are no tokens in it and no salts, only digests under the key of whoever filled the index.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Image(Vec<u8>);

impl Image {
    /// Takes bytes for an image; whether they are one shows when it is used.
    pub fn from_bytes(bytes: Vec<u8>) -> Image {
        Image(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The workers that have a home in it.
    pub(crate) fn homes(&self) -> Result<Vec<(WorkerId, Home)>, Error> {
        let mut from = Reader::new(&self.0);
        // The totals.
        from.take(24)?;
        let mut vocabularies = Vec::new();
        for _ in 0..from.count(8)? {
            let (space, vocabulary) = (SpaceId(from.u32()?), VocabularyId(from.u32()?));
            vocabularies.push(Home { space, vocabulary });
        }
        let mut homes = Vec::new();
        for _ in 0..from.count(8)? {
            let (worker, n) = (WorkerId(from.u32()?), from.u32()?);
            let home = vocabularies
                .get(n as usize)
                .ok_or_else(|| from.wrong(format_args!("there is no vocabulary {n}")))?;
            homes.push((worker, *home));
        }
        Ok(homes)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.0.len())
    }
}

/// Reads little-endian numbers one after the other, never beyond the end.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    len: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, len: bytes.len() }
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let Some((taken, rest)) = self.rest.split_at_checked(n) else {
            return Err(self.wrong(format!("it ends where {n} more bytes are expected")));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Error> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// `n` numbers of 64 bits.
    pub(crate) fn words(
        &mut self,
        n: usize,
    ) -> Result<impl ExactSizeIterator<Item = u64> + Clone + use<'a>, Error> {
        let bytes = self.take(n.saturating_mul(8))?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)))
    }

    /// How many items of at least so many bytes there are: no more than there are bytes for.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, Error> {
        let count = self.u32()?;
        if (count as usize).saturating_mul(least) > self.rest.len() {
            return Err(self.wrong(format!("it ends where {count} items are announced")));
        }
        Ok(count as usize)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error that says where it is.
    #[cold]
    pub(crate) fn wrong(&self, what: impl fmt::Display) -> Error {
        let at = self.len - self.rest.len();
        Error::new(ErrorKind::Decode, format!("at byte {at} of {}: {what}", self.len))
    }
}
