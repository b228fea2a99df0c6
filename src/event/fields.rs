//! Typed values of fields: what a [`Reader`] yields once it is known what should come.

use super::error::{DecodeError, DecodeErrorKind, Field};
use super::msgpack::{Reader, Value};

impl<'a> Reader<'a> {
    /// The number of elements of the array whose elements come next.
    #[inline]
    pub(super) fn array_of(&mut self, field: Field) -> Result<usize, DecodeError> {
        if let Some(len) = self.short_array() {
            return Ok(len);
        }
        let at = self.at();
        match self.value()? {
            Value::Array(len) => Ok(len),
            other => Err(wrong_type(at, field, other)),
        }
    }

    #[inline]
    pub(super) fn unsigned(&mut self, field: Field) -> Result<u64, DecodeError> {
        match self.short_unsigned() {
            Some(n) => Ok(n),
            None => self.any_unsigned(field),
        }
    }

    #[cold]
    fn any_unsigned(&mut self, field: Field) -> Result<u64, DecodeError> {
        let at = self.at();
        match self.value()? {
            Value::Unsigned(n) => Ok(n),
            other => Err(wrong_type(at, field, other)),
        }
    }

    /// An integer of 0 to `max`.
    pub(super) fn up_to(&mut self, max: u32, field: Field) -> Result<u32, DecodeError> {
        let at = self.at();
        let value = self.unsigned(field)?;
        match u32::try_from(value) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(DecodeError { at, kind: DecodeErrorKind::TooLarge { field, value } }),
        }
    }

    pub(super) fn integer(&mut self, field: Field) -> Result<i64, DecodeError> {
        let at = self.at();
        match self.value()? {
            Value::Negative(n) => Ok(n),
            Value::Unsigned(value) => i64::try_from(value)
                .map_err(|_| DecodeError { at, kind: DecodeErrorKind::TooLarge { field, value } }),
            other => Err(wrong_type(at, field, other)),
        }
    }

    #[inline]
    pub(super) fn string(&mut self, field: Field) -> Result<&'a [u8], DecodeError> {
        if let Some(string) = self.short_str() {
            return Ok(string);
        }
        let at = self.at();
        match self.value()? {
            Value::Str(string) => Ok(string),
            other => Err(wrong_type(at, field, other)),
        }
    }

    pub(super) fn text(&mut self, field: Field) -> Result<&'a str, DecodeError> {
        let at = self.at();
        str::from_utf8(self.string(field)?)
            .map_err(|_| DecodeError { at, kind: DecodeErrorKind::NotUtf8 { field } })
    }

    /// `None` for nil, otherwise what `read` makes of the value.
    pub(super) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.nil() { Ok(None) } else { read(self).map(Some) }
    }
}

pub(super) fn wrong_type(at: usize, field: Field, value: Value<'_>) -> DecodeError {
    DecodeError { at, kind: DecodeErrorKind::WrongType { field, found: value.found() } }
}
