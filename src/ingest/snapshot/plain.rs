//! Numbers, texts, options: what every part of a snapshot is written with.

use crate::error::Error;
use crate::index::image::Reader;

pub(super) fn number(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_le_bytes());
}

pub(super) fn word(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn option<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        write(out, value);
    }
}

pub(super) fn read_text(from: &mut Reader<'_>) -> Result<String, Error> {
    let length = from.count(1)?;
    let bytes = from.take(length)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(from.wrong(format_args!("a text is none: {error}"))),
    }
}

pub(super) fn read_flag(from: &mut Reader<'_>) -> Result<bool, Error> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        n => Err(from.wrong(format_args!("{n} is neither yes (1) nor no (0)"))),
    }
}

pub(super) fn read_option<'a, T>(
    from: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    match read_flag(from)? {
        true => read(from).map(Some),
        false => Ok(None),
    }
}

pub(super) fn ended(from: &Reader<'_>) -> Result<(), Error> {
    match from.is_empty() {
        true => Ok(()),
        false => Err(from.wrong("there is more after its end")),
    }
}
