//! A pull reader of msgpack that borrows everything from the payload.
//!
//! It accepts every encoding of a value, not only the shortest: vLLM 0.30 and later write the header
//! of a 10-pair map in 16 bits. A claimed length is compared with the bytes that are left before it
//! is believed, so nothing can be sized, looped over or allocated by a claim alone.

use std::fmt;

use super::error::{DecodeError, DecodeErrorKind, Found};

/// No caller can raise the depth limit above this: the levels of a skipped value are counted on the
/// stack.
const DEEPEST: usize = 64;

/// One value; of arrays and maps only the header.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Nil,
    Bool,
    Unsigned(u64),
    /// Below zero; other integers are `Unsigned` in whichever way they are encoded.
    Negative(i64),
    Float(f64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    /// Number of elements.
    Array(usize),
    /// Number of pairs.
    Map(usize),
    Ext,
}

impl Value<'_> {
    pub(super) fn found(&self) -> Found {
        match self {
            Value::Nil => Found::Nil,
            Value::Bool => Found::Boolean,
            Value::Unsigned(_) => Found::Unsigned,
            Value::Negative(_) => Found::Negative,
            Value::Float(_) => Found::Float,
            Value::Str(_) => Found::Text,
            Value::Bin(_) => Found::Bytes,
            Value::Array(_) => Found::Array,
            Value::Map(_) => Found::Map,
            Value::Ext => Found::Extension,
        }
    }
}

/// A place in a payload. Copies are independent.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Where `rest` ends, counted from the payload's first byte.
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Reader<'a> {
        Reader { rest: payload, end: payload.len() }
    }

    /// Reads the content of the byte string that `self` has just passed.
    pub(super) fn inside(&self, bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, end: self.at() }
    }

    /// Offset of the next value in the payload.
    pub(super) fn at(&self) -> usize {
        self.end - self.rest.len()
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next value.
    ///
    /// # Errors
    ///
    /// Only those of the framing: afterwards it is unknown where the next value starts.
    pub(super) fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        let start = self.at();
        let [marker] = self.fixed(start)?;
        let value = match marker {
            0x00..=0x7f => Value::Unsigned(marker.into()),
            0x80..=0x8f => self.map(start, usize::from(marker & 0x0f))?,
            0x90..=0x9f => self.array(start, usize::from(marker & 0x0f))?,
            0xa0..=0xbf => Value::Str(self.bytes(start, usize::from(marker & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(DecodeError { at: start, kind: DecodeErrorKind::ReservedByte }),
            0xc2 | 0xc3 => Value::Bool,
            0xc4 => {
                let len = self.length8(start)?;
                Value::Bin(self.bytes(start, len)?)
            }
            0xc5 => {
                let len = self.length16(start)?;
                Value::Bin(self.bytes(start, len)?)
            }
            0xc6 => {
                let len = self.length32(start)?;
                Value::Bin(self.bytes(start, len)?)
            }
            0xc7 => {
                let len = self.length8(start)?;
                self.ext(start, len)?
            }
            0xc8 => {
                let len = self.length16(start)?;
                self.ext(start, len)?
            }
            0xc9 => {
                let len = self.length32(start)?;
                self.ext(start, len)?
            }
            0xca => Value::Float(f32::from_be_bytes(self.fixed(start)?).into()),
            0xcb => Value::Float(f64::from_be_bytes(self.fixed(start)?)),
            0xcc => Value::Unsigned(u8::from_be_bytes(self.fixed(start)?).into()),
            0xcd => Value::Unsigned(u16::from_be_bytes(self.fixed(start)?).into()),
            0xce => Value::Unsigned(u32::from_be_bytes(self.fixed(start)?).into()),
            0xcf => Value::Unsigned(u64::from_be_bytes(self.fixed(start)?)),
            0xd0 => signed(i8::from_be_bytes(self.fixed(start)?).into()),
            0xd1 => signed(i16::from_be_bytes(self.fixed(start)?).into()),
            0xd2 => signed(i32::from_be_bytes(self.fixed(start)?).into()),
            0xd3 => signed(i64::from_be_bytes(self.fixed(start)?)),
            0xd4..=0xd8 => self.ext(start, 1 << (marker - 0xd4))?,
            0xd9 => {
                let len = self.length8(start)?;
                Value::Str(self.bytes(start, len)?)
            }
            0xda => {
                let len = self.length16(start)?;
                Value::Str(self.bytes(start, len)?)
            }
            0xdb => {
                let len = self.length32(start)?;
                Value::Str(self.bytes(start, len)?)
            }
            0xdc => {
                let len = self.length16(start)?;
                self.array(start, len)?
            }
            0xdd => {
                let len = self.length32(start)?;
                self.array(start, len)?
            }
            0xde => {
                let len = self.length16(start)?;
                self.map(start, len)?
            }
            0xdf => {
                let len = self.length32(start)?;
                self.map(start, len)?
            }
            0xe0..=0xff => Value::Negative((marker as i8).into()),
        };
        Ok(value)
    }

    /// The next value; an array's claim is not compared with the bytes left, for callers that stop
    /// at the first element that is missing and size nothing by the claim.
    pub(super) fn open(&mut self) -> Result<Value<'a>, DecodeError> {
        let before = *self;
        let start = self.at();
        match self.fixed(start)? {
            [marker @ 0x90..=0x9f] => Ok(Value::Array(usize::from(marker & 0x0f))),
            [0xdc] => self.length16(start).map(Value::Array),
            [0xdd] => self.length32(start).map(Value::Array),
            _ => {
                *self = before;
                self.value()
            }
        }
    }

    /// The next value if it is an unsigned integer in its shortest form, as nearly all values of an
    /// event are: much faster than [`Reader::value`], which is to be asked otherwise.
    #[inline(always)]
    pub(super) fn short_unsigned(&mut self) -> Option<u64> {
        let (value, rest) = match *self.rest {
            [n @ 0..=0x7f, ref rest @ ..] => (n.into(), rest),
            [0xcc, a, ref rest @ ..] => (a.into(), rest),
            [0xcd, a, b, ref rest @ ..] => (u16::from_be_bytes([a, b]).into(), rest),
            [0xce, a, b, c, d, ref rest @ ..] => (u32::from_be_bytes([a, b, c, d]).into(), rest),
            [0xcf, a, b, c, d, e, f, g, h, ref rest @ ..] => {
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), rest)
            }
            _ => return None,
        };
        self.rest = rest;
        Some(value)
    }

    /// The next value if it is a string of less than 32 bytes in its shortest form, as names of
    /// fields are.
    #[inline(always)]
    pub(super) fn short_str(&mut self) -> Option<&'a [u8]> {
        let (&marker, rest) = self.rest.split_first()?;
        if marker & 0xe0 != 0xa0 {
            return None;
        }
        let (text, rest) = rest.split_at_checked(usize::from(marker & 0x1f))?;
        self.rest = rest;
        Some(text)
    }

    /// The length of the array whose elements come next, if it has less than 16.
    #[inline(always)]
    pub(super) fn short_array(&mut self) -> Option<usize> {
        let (&marker, rest) = self.rest.split_first()?;
        let len = usize::from(marker & 0x0f);
        if marker & 0xf0 != 0x90 || len > rest.len() {
            return None;
        }
        self.rest = rest;
        Some(len)
    }

    /// Whether the next value is nil, which is then passed.
    #[inline(always)]
    pub(super) fn nil(&mut self) -> bool {
        match self.rest {
            [0xc0, rest @ ..] => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Whether the next so many values are nil.
    pub(super) fn has_nils(&self, count: usize) -> bool {
        let nils = self.rest.get(..count);
        // Without leaving at the first other byte, several are compared at once.
        nils.is_some_and(|nils| nils.iter().fold(0, |other, byte| other | (byte ^ 0xc0)) == 0)
    }

    /// Passes unsigned integers of up to 32 bits in their shortest forms, as many as there are but
    /// no more than `count`, hands them to `sink`, and returns how many they were.
    ///
    /// Their lengths follow each other without a pattern, so the next one's place is computed, not
    /// branched to.
    #[inline(always)]
    pub(super) fn words(&mut self, count: usize, mut sink: impl FnMut(usize, u32)) -> usize {
        let rest = self.rest;
        let (mut at, mut passed) = (0, 0);
        while passed < count {
            let Some(window) = rest.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
                break;
            };
            let word = u64::from_be_bytes(*window);
            let marker = window[0];
            // 0xcc, 0xcd, 0xce: one, two, four bytes follow.
            let width = marker.wrapping_sub(0xcc);
            if width < 3 {
                let bytes = 1_usize << width;
                sink(passed, (word << 8 >> (64 - 8 * bytes)) as u32);
                at += 1 + bytes;
            } else if marker < 0x80 {
                sink(passed, marker.into());
                at += 1;
            } else {
                break;
            }
            passed += 1;
        }
        self.rest = &rest[at..];
        passed
    }

    /// Passes one value of any kind that nests at most `max_depth` levels.
    pub(super) fn skip(&mut self, max_depth: u32) -> Result<(), DecodeError> {
        let start = self.at();
        let too_deep =
            |at| Err(DecodeError { at, kind: DecodeErrorKind::TooDeep { limit: max_depth } });
        let limit = DEEPEST.min(max_depth as usize);
        let children = self.children()?;
        if children == 0 {
            return Ok(());
        }
        if limit == 0 {
            return too_deep(start);
        }
        // Values still to come on each open level.
        let mut open = [0; DEEPEST];
        open[0] = children;
        let mut depth = 1;
        while depth > 0 {
            if open[depth - 1] == 0 {
                depth -= 1;
                continue;
            }
            open[depth - 1] -= 1;
            let at = self.at();
            let children = self.children()?;
            if children > 0 {
                if depth == limit {
                    return too_deep(at);
                }
                open[depth] = children;
                depth += 1;
            }
        }
        Ok(())
    }

    /// Passes one value however deep it nests, to find what comes after it.
    pub(super) fn pass_over(&mut self) -> Result<(), DecodeError> {
        let mut left = 1_usize;
        while left > 0 {
            left = (left - 1).saturating_add(self.children()?);
        }
        Ok(())
    }

    /// Passes one value without those inside of it, and returns how many these are.
    #[inline]
    fn children(&mut self) -> Result<usize, DecodeError> {
        if self.nil() || self.short_unsigned().is_some() || self.short_str().is_some() {
            return Ok(0);
        }
        Ok(match self.value()? {
            Value::Array(len) => len,
            Value::Map(len) => 2 * len,
            _ => 0,
        })
    }

    #[inline]
    fn fixed<const N: usize>(&mut self, start: usize) -> Result<[u8; N], DecodeError> {
        match self.rest.split_first_chunk::<N>() {
            Some((chunk, rest)) => {
                self.rest = rest;
                Ok(*chunk)
            }
            None => Err(DecodeError { at: start, kind: DecodeErrorKind::Truncated }),
        }
    }

    fn length8(&mut self, start: usize) -> Result<usize, DecodeError> {
        Ok(u8::from_be_bytes(self.fixed(start)?).into())
    }

    fn length16(&mut self, start: usize) -> Result<usize, DecodeError> {
        Ok(u16::from_be_bytes(self.fixed(start)?).into())
    }

    fn length32(&mut self, start: usize) -> Result<usize, DecodeError> {
        Ok(u32::from_be_bytes(self.fixed(start)?) as usize)
    }

    fn bytes(&mut self, start: usize, len: usize) -> Result<&'a [u8], DecodeError> {
        match self.rest.split_at_checked(len) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(self.beyond_end(start, len)),
        }
    }

    fn ext(&mut self, start: usize, len: usize) -> Result<Value<'a>, DecodeError> {
        // One byte more for the extension's type.
        self.bytes(start, len.saturating_add(1))?;
        Ok(Value::Ext)
    }

    fn array(&self, start: usize, len: usize) -> Result<Value<'a>, DecodeError> {
        self.claim(start, len)?;
        Ok(Value::Array(len))
    }

    fn map(&self, start: usize, len: usize) -> Result<Value<'a>, DecodeError> {
        self.claim(start, len.saturating_mul(2))?;
        Ok(Value::Map(len))
    }

    /// Every value takes at least one byte, so a claim beyond the bytes left cannot be true.
    #[inline]
    fn claim(&self, start: usize, claimed: usize) -> Result<(), DecodeError> {
        if claimed <= self.rest.len() { Ok(()) } else { Err(self.beyond_end(start, claimed)) }
    }

    #[cold]
    fn beyond_end(&self, start: usize, claimed: usize) -> DecodeError {
        let left = self.rest.len();
        DecodeError { at: start, kind: DecodeErrorKind::LengthBeyondEnd { claimed, left } }
    }
}

fn signed(n: i64) -> Value<'static> {
    match u64::try_from(n) {
        Ok(n) => Value::Unsigned(n),
        Err(_) => Value::Negative(n),
    }
}

/// Payloads hold prompts: only the position is shown.
impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("at", &self.at()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(bytes: &[u8]) -> Result<Value<'_>, DecodeErrorKind> {
        Reader::new(bytes).value().map_err(|e| e.kind)
    }

    #[test]
    fn an_integer_reads_the_same_in_every_width() {
        let sevens: [&[u8]; 9] = [
            &[7],
            &[0xcc, 7],
            &[0xcd, 0, 7],
            &[0xce, 0, 0, 0, 7],
            &[0xcf, 0, 0, 0, 0, 0, 0, 0, 7],
            &[0xd0, 7],
            &[0xd1, 0, 7],
            &[0xd2, 0, 0, 0, 7],
            &[0xd3, 0, 0, 0, 0, 0, 0, 0, 7],
        ];
        for bytes in sevens {
            assert!(matches!(only(bytes), Ok(Value::Unsigned(7))), "{bytes:02x?}");
        }
        let minus_ones: [&[u8]; 4] =
            [&[0xff], &[0xd0, 0xff], &[0xd1, 0xff, 0xff], &[0xd2, 0xff, 0xff, 0xff, 0xff]];
        for bytes in minus_ones {
            assert!(matches!(only(bytes), Ok(Value::Negative(-1))), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_string_reads_the_same_in_every_width() {
        let forms: [&[u8]; 4] = [
            &[0xa2, b'h', b'i'],
            &[0xd9, 2, b'h', b'i'],
            &[0xda, 0, 2, b'h', b'i'],
            &[0xdb, 0, 0, 0, 2, b'h', b'i'],
        ];
        for bytes in forms {
            assert!(matches!(only(bytes), Ok(Value::Str(b"hi"))), "{bytes:02x?}");
        }
        let forms: [&[u8]; 3] = [&[0xc4, 1, 9], &[0xc5, 0, 1, 9], &[0xc6, 0, 0, 0, 1, 9]];
        for bytes in forms {
            assert!(matches!(only(bytes), Ok(Value::Bin(&[9]))), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_length_claim_beyond_the_payload_is_refused_at_its_header() {
        let claims: [&[u8]; 8] = [
            &[0x91],
            &[0x81, 0xc0],
            &[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0],
            &[0xdf, 0xff, 0xff, 0xff, 0xff, 0xc0],
            &[0xc6, 0xff, 0xff, 0xff, 0xff, 0x00],
            &[0xdb, 0xff, 0xff, 0xff, 0xff, 0x00],
            &[0xc9, 0xff, 0xff, 0xff, 0xff, 0x00],
            &[0xd8, 1, 2],
        ];
        for bytes in claims {
            let error = Reader::new(bytes).value().map(|_| ()).unwrap_err();
            assert_eq!(error.at, 0);
            assert!(
                matches!(error.kind, DecodeErrorKind::LengthBeyondEnd { .. }),
                "{bytes:02x?}: {error}"
            );
        }
    }

    #[test]
    fn a_cut_header_is_truncated_and_0xc1_is_no_value() {
        for bytes in [&[0xcf, 1][..], &[0xcb, 1], &[0xdd, 0], &[0xda], &[]] {
            assert!(matches!(only(bytes), Err(DecodeErrorKind::Truncated)), "{bytes:02x?}");
        }
        assert!(matches!(only(&[0xc1]), Err(DecodeErrorKind::ReservedByte)));
    }

    #[test]
    fn skipping_counts_levels_and_passing_over_does_not() {
        // [[[0]]], then 5
        let bytes = [0x91, 0x91, 0x91, 0, 5];
        let mut reader = Reader::new(&bytes);
        reader.skip(3).unwrap();
        assert!(matches!(reader.value(), Ok(Value::Unsigned(5))));

        let error = Reader::new(&bytes).skip(2).unwrap_err();
        assert_eq!(error, DecodeError { at: 2, kind: DecodeErrorKind::TooDeep { limit: 2 } });
        assert_eq!(Reader::new(&bytes).skip(0).unwrap_err().at, 0);

        let mut deep = vec![0x91; 100_000];
        deep.push(0xc0);
        assert!(Reader::new(&deep).skip(u32::MAX).is_err());
        let mut reader = Reader::new(&deep);
        reader.pass_over().unwrap();
        assert!(reader.is_at_end());
    }

    #[test]
    fn skipping_passes_siblings_pairs_and_extensions() {
        // {1: [2, {}], "a": ext8 of 2 bytes}, then 5
        let bytes = [0x82, 1, 0x92, 2, 0x80, 0xa1, b'a', 0xc7, 2, 1, 0, 0, 5];
        let mut reader = Reader::new(&bytes);
        reader.skip(2).unwrap();
        assert!(matches!(reader.value(), Ok(Value::Unsigned(5))));
    }
}
