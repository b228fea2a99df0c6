//! The block hashes of an event.

use std::fmt;

use super::Limits;
use super::error::{DecodeError, DecodeErrorKind, Field};
use super::msgpack::{Reader, Value};
use crate::block::Name;

/// A block hash as the engine wrote it.
///
/// vLLM 0.10.2 and later send the last 8 bytes as an integer
/// (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=1`, the default) or the whole digest: 32 bytes, 16 with
/// `xxhash`, a multiple for coarse groups before 0.24. Up to 0.23 the offloading connector sends
/// bytes whatever the setting. Earlier versions and SGLang send signed integers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash<'a> {
    /// An integer; a signed one keeps its bits.
    Int(u64),
    /// A byte string, as long as the engine made it; never empty when it comes from an event.
    Bytes(&'a [u8]),
}

impl<'a> Hash<'a> {
    /// The normal form, which is the same for every way to write a hash.
    pub fn name(self) -> Name {
        match self {
            Hash::Int(n) => Name(n),
            // Decoding refuses empty strings; a hash made by hand may hold one.
            Hash::Bytes(bytes) => Name::from_bytes(bytes).unwrap_or(Name(0)),
        }
    }

    /// The whole digest, where the engine sent it.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Hash::Int(_) => None,
            Hash::Bytes(bytes) => Some(bytes),
        }
    }

    /// Old msgpack encoders have no byte strings and write bytes as strings; a text is refused,
    /// since the last 8 characters of a hexadecimal rendering are no name.
    #[inline]
    pub(super) fn read(reader: &mut Reader<'a>, field: Field) -> Result<Hash<'a>, DecodeError> {
        if let Some(n) = reader.short_unsigned() {
            return Ok(Hash::Int(n));
        }
        let at = reader.at();
        let kind = match reader.value()? {
            Value::Unsigned(n) => return Ok(Hash::Int(n)),
            Value::Negative(n) => return Ok(Hash::Int(n as u64)),
            Value::Bin([]) | Value::Str([]) => DecodeErrorKind::EmptyHash,
            Value::Str(text) if is_text(text) => DecodeErrorKind::TextHash,
            Value::Bin(bytes) | Value::Str(bytes) => return Ok(Hash::Bytes(bytes)),
            other => DecodeErrorKind::WrongType { field, found: other.found() },
        };
        Err(DecodeError { at, kind })
    }
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b' '..=b'~'))
}

impl fmt::Debug for Hash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hash::Int(n) => write!(f, "{n:016x}"),
            Hash::Bytes(bytes) => bytes.iter().try_for_each(|b| write!(f, "{b:02x}")),
        }
    }
}

/// The hashes of an event, still in the payload. They were checked when the event was decoded:
/// iterating cannot fail.
#[derive(Clone, Copy)]
pub struct Hashes<'a> {
    list: Reader<'a>,
    len: usize,
}

impl<'a> Hashes<'a> {
    /// How many there are; may be 0.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The hashes as they were written, in order.
    pub fn iter(&self) -> HashIter<'a> {
        HashIter { reader: self.list, left: self.len }
    }

    /// The hashes in normal form, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = Name> + use<'a> {
        self.iter().map(Hash::name)
    }

    pub(super) fn read(
        reader: &mut Reader<'a>,
        field: Field,
        limits: &Limits,
    ) -> Result<Hashes<'a>, DecodeError> {
        let at = reader.at();
        let len = reader.array_of(field)?;
        if len > limits.max_hashes {
            let limit = limits.max_hashes;
            return Err(DecodeError {
                at,
                kind: DecodeErrorKind::TooManyHashes { found: len, limit },
            });
        }
        let list = *reader;
        for _ in 0..len {
            Hash::read(reader, field)?;
        }
        Ok(Hashes { list, len })
    }
}

impl<'a> IntoIterator for Hashes<'a> {
    type Item = Hash<'a>;
    type IntoIter = HashIter<'a>;

    fn into_iter(self) -> HashIter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Hashes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterator over [`Hashes`].
#[derive(Clone, Debug)]
pub struct HashIter<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for HashIter<'a> {
    type Item = Hash<'a>;

    #[inline]
    fn next(&mut self) -> Option<Hash<'a>> {
        self.left = self.left.checked_sub(1)?;
        Hash::read(&mut self.reader, Field::BlockHashes).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for HashIter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Hash<'_>, DecodeErrorKind> {
        Hash::read(&mut Reader::new(bytes), Field::BlockHashes).map_err(|e| e.kind)
    }

    #[test]
    fn one_hash_has_one_name_however_it_is_written() {
        let name = Name(0xffff_ffff_ffff_fffb);
        let mut digest = vec![0xc4, 32];
        digest.extend([7; 24]);
        digest.extend(name.0.to_be_bytes());
        let mut old_string = digest.clone();
        old_string[0] = 0xd9;
        for bytes in [&digest[..], &old_string, &[0xfb], &[0xd1, 0xff, 0xfb]] {
            assert_eq!(read(bytes).unwrap().name(), name);
        }
        assert_eq!(read(&[0xc4, 2, 1, 0]).unwrap().name(), Name(256));
    }

    #[test]
    fn what_cannot_be_a_hash_is_refused() {
        assert_eq!(read(&[0xc4, 0]), Err(DecodeErrorKind::EmptyHash));
        assert_eq!(read(&[0xa0]), Err(DecodeErrorKind::EmptyHash));
        assert_eq!(read(b"\xa818191a1b"), Err(DecodeErrorKind::TextHash));
        for bytes in [&[0xc0][..], &[0xc3], &[0xca, 0, 0, 0, 0], &[0x90], &[0x80]] {
            assert!(matches!(read(bytes), Err(DecodeErrorKind::WrongType { .. })));
        }
    }
}
