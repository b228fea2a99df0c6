//! Bodies in msgpack: the same documents as in JSON, one value at a time, and numbers in binary.

use std::ops::Range;

use rmp::Marker;
use rmp::decode::{self, RmpRead};
use rmp::encode;
use serde_json::Value;

/// How deep values may lie in each other: far deeper than any request goes.
const DEEPEST: usize = 16;

/// A msgpack map as a JSON object.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// The object, without what is binary.
    pub(super) json: Vec<u8>,
    /// The fields that are binary, by name: where their bytes are in the body.
    pub(super) binaries: Vec<(String, Range<usize>)>,
}

/// What is wrong with a body, and at which byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) what: &'static str,
    pub(super) at: usize,
}

/// Reads a body. Binary values may be fields of the body, and nothing else.
pub(super) fn unpack(body: &[u8]) -> Result<Unpacked, Malformed> {
    let mut unpacker = Unpacker { body, rest: body, json: Vec::with_capacity(body.len()) };
    let mut binaries = Vec::new();
    let fields = unpacker.map_len()?;
    unpacker.json.push(b'{');
    for n in 0..fields {
        let before = unpacker.json.len();
        if n > 0 && unpacker.json.last() != Some(&b'{') {
            unpacker.json.push(b',');
        }
        let name = unpacker.key()?;
        if let Some(bytes) = unpacker.binary()? {
            unpacker.json.truncate(before);
            binaries.push((name, bytes));
            continue;
        }
        unpacker.value(1)?;
    }
    unpacker.json.push(b'}');
    if !unpacker.rest.is_empty() {
        return Err(unpacker.wrong("more than one value"));
    }
    Ok(Unpacked { json: unpacker.json, binaries })
}

struct Unpacker<'a> {
    body: &'a [u8],
    rest: &'a [u8],
    json: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.body.len() - self.rest.len() }
    }

    fn cut_off(&self) -> Malformed {
        self.wrong("it ends within a value")
    }

    fn marker(&mut self) -> Result<Marker, Malformed> {
        decode::read_marker(&mut self.rest).map_err(|_| self.cut_off())
    }

    fn number<T, E>(
        &mut self,
        read: impl FnOnce(&mut &'a [u8]) -> Result<T, E>,
    ) -> Result<T, Malformed> {
        read(&mut self.rest).map_err(|_| self.cut_off())
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let Some((bytes, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.cut_off());
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn map_len(&mut self) -> Result<u32, Malformed> {
        let begin = self.rest;
        match self.marker()? {
            Marker::FixMap(len) => Ok(u32::from(len)),
            Marker::Map16 => self.number(|rest| rest.read_data_u16()).map(u32::from),
            Marker::Map32 => self.number(|rest| rest.read_data_u32()),
            _ => {
                self.rest = begin;
                Err(self.wrong("it is no map"))
            }
        }
    }

    fn text(&mut self, marker: Marker) -> Result<Option<&'a str>, Malformed> {
        let len = match marker {
            Marker::FixStr(len) => u32::from(len),
            Marker::Str8 => self.number(|rest| rest.read_data_u8()).map(u32::from)?,
            Marker::Str16 => self.number(|rest| rest.read_data_u16()).map(u32::from)?,
            Marker::Str32 => self.number(|rest| rest.read_data_u32())?,
            _ => return Ok(None),
        };
        let bytes = self.bytes(len as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.wrong("a text is no UTF-8")),
        }
    }

    /// Writes a key and a colon; returns the key.
    fn key(&mut self) -> Result<String, Malformed> {
        let marker = self.marker()?;
        let Some(key) = self.text(marker)? else {
            return Err(self.wrong("the key of a map is no text"));
        };
        let key = key.to_owned();
        self.json_text(&key);
        self.json.push(b':');
        Ok(key)
    }

    fn json_text(&mut self, text: &str) {
        // Memory does not refuse to be written to.
        let _ = serde_json::to_writer(&mut self.json, text);
    }

    /// The place of a binary value, if that is what follows.
    fn binary(&mut self) -> Result<Option<Range<usize>>, Malformed> {
        let begin = self.rest;
        let len = match self.marker()? {
            Marker::Bin8 => self.number(|rest| rest.read_data_u8()).map(u32::from)?,
            Marker::Bin16 => self.number(|rest| rest.read_data_u16()).map(u32::from)?,
            Marker::Bin32 => self.number(|rest| rest.read_data_u32())?,
            _ => {
                self.rest = begin;
                return Ok(None);
            }
        };
        let start = self.body.len() - self.rest.len();
        self.bytes(len as usize)?;
        Ok(Some(start..start + len as usize))
    }

    fn integer(&mut self, value: impl serde::Serialize) {
        // As for texts; and several times faster than by way of `fmt`.
        let _ = serde_json::to_writer(&mut self.json, &value);
    }

    fn float(&mut self, value: f64) -> Result<(), Malformed> {
        if !value.is_finite() {
            return Err(self.wrong("a number is not finite"));
        }
        let _ = serde_json::to_writer(&mut self.json, &value);
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<(), Malformed> {
        if depth > DEEPEST {
            return Err(self.wrong("values lie too deep in each other"));
        }
        let marker = self.marker()?;
        if let Some(text) = self.text(marker)? {
            self.json_text(text);
            return Ok(());
        }
        match marker {
            Marker::Null => self.json.extend_from_slice(b"null"),
            Marker::True => self.json.extend_from_slice(b"true"),
            Marker::False => self.json.extend_from_slice(b"false"),
            Marker::FixPos(n) => self.integer(n),
            Marker::FixNeg(n) => self.integer(n),
            Marker::U8 => self.number(|rest| rest.read_data_u8()).map(|n| self.integer(n))?,
            Marker::U16 => self.number(|rest| rest.read_data_u16()).map(|n| self.integer(n))?,
            Marker::U32 => self.number(|rest| rest.read_data_u32()).map(|n| self.integer(n))?,
            Marker::U64 => self.number(|rest| rest.read_data_u64()).map(|n| self.integer(n))?,
            Marker::I8 => self.number(|rest| rest.read_data_i8()).map(|n| self.integer(n))?,
            Marker::I16 => self.number(|rest| rest.read_data_i16()).map(|n| self.integer(n))?,
            Marker::I32 => self.number(|rest| rest.read_data_i32()).map(|n| self.integer(n))?,
            Marker::I64 => self.number(|rest| rest.read_data_i64()).map(|n| self.integer(n))?,
            Marker::F32 => {
                let value = self.number(|rest| rest.read_data_f32())?;
                self.float(f64::from(value))?;
            }
            Marker::F64 => {
                let value = self.number(|rest| rest.read_data_f64())?;
                self.float(value)?;
            }
            Marker::FixArray(len) => self.array(u32::from(len), depth)?,
            Marker::Array16 => {
                let len = self.number(|rest| rest.read_data_u16())?;
                self.array(u32::from(len), depth)?;
            }
            Marker::Array32 => {
                let len = self.number(|rest| rest.read_data_u32())?;
                self.array(len, depth)?;
            }
            Marker::FixMap(len) => self.map(u32::from(len), depth)?,
            Marker::Map16 => {
                let len = self.number(|rest| rest.read_data_u16())?;
                self.map(u32::from(len), depth)?;
            }
            Marker::Map32 => {
                let len = self.number(|rest| rest.read_data_u32())?;
                self.map(len, depth)?;
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                return Err(self.wrong("a binary value within another value"));
            }
            _ => return Err(self.wrong("a value of a kind that JSON has not")),
        }
        Ok(())
    }

    /// Each element takes a byte at least, so that a claimed length costs nothing by itself.
    fn array(&mut self, len: u32, depth: usize) -> Result<(), Malformed> {
        self.json.push(b'[');
        for n in 0..len {
            if n > 0 {
                self.json.push(b',');
            }
            self.value(depth + 1)?;
        }
        self.json.push(b']');
        Ok(())
    }

    fn map(&mut self, len: u32, depth: usize) -> Result<(), Malformed> {
        self.json.push(b'{');
        for n in 0..len {
            if n > 0 {
                self.json.push(b',');
            }
            self.key()?;
            self.value(depth + 1)?;
        }
        self.json.push(b'}');
        Ok(())
    }
}

/// A JSON document in msgpack; what is no JSON is null.
pub(super) fn pack(json: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(json.len());
    let value = serde_json::from_slice(json).unwrap_or(Value::Null);
    // Memory does not refuse to be written to, and no answer has four billion elements.
    let _ = write(&mut packed, &value);
    packed
}

fn write(out: &mut Vec<u8>, value: &Value) -> Result<(), encode::ValueWriteError> {
    match value {
        Value::Null => encode::write_nil(out).map_err(encode::ValueWriteError::InvalidMarkerWrite),
        Value::Bool(value) => {
            encode::write_bool(out, *value).map_err(encode::ValueWriteError::InvalidMarkerWrite)
        }
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(n), _) => encode::write_uint(out, n).map(drop),
            (None, Some(n)) => encode::write_sint(out, n).map(drop),
            (None, None) => encode::write_f64(out, number.as_f64().unwrap_or(0.0)),
        },
        Value::String(text) => encode::write_str(out, text),
        Value::Array(list) => {
            encode::write_array_len(out, list.len() as u32)?;
            list.iter().try_for_each(|value| write(out, value))
        }
        Value::Object(map) => {
            encode::write_map_len(out, map.len() as u32)?;
            map.iter().try_for_each(|(key, value)| {
                encode::write_str(out, key)?;
                write(out, value)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn unpacked(body: &[u8]) -> Value {
        serde_json::from_slice(&unpack(body).unwrap().json).unwrap()
    }

    fn wrong(body: &[u8]) -> Malformed {
        unpack(body).unwrap_err()
    }

    #[test]
    fn what_was_packed_elsewhere_reads_as_the_same_document() {
        let document = json!({
            "a": [0, 1, 127, 128, 65_536, 4_294_967_295_u64, u64::MAX, -1, -33, -129, -40_000, i64::MIN],
            "b": { "c": null, "d": true, "e": "x\"\\\u{1F600}" },
            "f": 0.25, "g": "", "h": [[], {}],
        });
        let body = rmp_serde::to_vec_named(&document).unwrap();
        assert_eq!(unpacked(&body), document);
        let json = serde_json::to_vec(&document).unwrap();
        let back: Value = rmp_serde::from_slice(&pack(&json)).unwrap();
        assert_eq!(back, document);
    }

    #[test]
    fn a_binary_field_is_found_in_the_body() {
        let body = b"\x83\xa1a\x01\xa1t\xc4\x04\x07\0\0\0\xa1b\x02";
        let Unpacked { json, binaries } = unpack(body).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), json!({ "a": 1, "b": 2 }));
        let [(name, place)] = &binaries[..] else { panic!("{binaries:?}") };
        assert_eq!((name.as_str(), &body[place.clone()]), ("t", &b"\x07\0\0\0"[..]));
        let body = b"\x81\xa1t\xc4\x01\x07";
        assert_eq!(unpack(body).unwrap().json, b"{}");
    }

    #[test]
    fn every_shorter_body_is_refused() {
        let body =
            rmp_serde::to_vec_named(&json!({ "a": [1, 300, -7, "b", 1.5], "c": {} })).unwrap();
        for len in 0..body.len() {
            assert!(unpack(&body[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_json_has_not_is_refused_with_its_place() {
        for (body, what, at) in [
            (&b"\x93\x01\x02\x03"[..], "it is no map", 0),
            (b"\x81\x01\x02", "the key of a map is no text", 2),
            (b"\x81\xa1a\x91\xc4\x00", "a binary value within another value", 5),
            (b"\x81\xa1a\xd4\x01\x02", "a value of a kind that JSON has not", 4),
            (b"\x81\xa1a\xca\x7f\x80\x00\x00", "a number is not finite", 8),
            (b"\x81\xa1a\xa1\xff", "a text is no UTF-8", 5),
            (b"\x80\x01", "more than one value", 1),
            (b"\x81\xa1a\xdd\xff\xff\xff\xff\x01", "it ends within a value", 9),
        ] {
            assert_eq!(wrong(body), Malformed { what, at }, "{body:?}");
        }
        let deep = [&b"\x81\xa1a"[..], &[0x91; 40], &[0x01]].concat();
        assert_eq!(wrong(&deep).what, "values lie too deep in each other");
    }
}
