//! Replies taken apart. What is not as it should be is an error that names the key.

use redis::Value;

use super::key::shown;
use super::link::Fault;
use crate::error::{Error, ErrorKind};

/// A value in the store that is not kvscout's, or damaged.
#[cold]
pub(super) fn damaged(key: &[u8], what: &str) -> Error {
    let text = format!(
        "the store has no {what} under {}: another program wrote there, or it is damaged; delete the key",
        shown(key)
    );
    Error::new(ErrorKind::Decode, text)
}

/// The reply to a command about `key`.
pub(super) fn value(key: &[u8], reply: Result<Value, Fault>) -> Result<Value, Error> {
    reply.map_err(|fault| {
        let text = fault.to_string();
        // A script says itself which of its keys it was.
        if let Some((_, rest)) = text.split_once("value under ") {
            let named = rest.split_whitespace().next().unwrap_or_default();
            return damaged(named.as_bytes(), "value of kvscout's");
        }
        if text.contains("WRONGTYPE") || text.contains("not an integer") {
            return damaged(key, "value of kvscout's");
        }
        Error::from(fault)
    })
}

pub(super) fn int(key: &[u8], value: Value) -> Result<i64, Error> {
    match value {
        Value::Int(n) => Ok(n),
        Value::Nil => Ok(0),
        Value::BulkString(text) => {
            let n = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
            n.ok_or_else(|| damaged(key, "number"))
        }
        _ => Err(damaged(key, "number")),
    }
}

/// A string; nothing where there is none.
pub(super) fn bytes(key: &[u8], value: Value) -> Result<Vec<u8>, Error> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        Value::Nil => Ok(Vec::new()),
        _ => Err(damaged(key, "string")),
    }
}

pub(super) fn list(key: &[u8], value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(values) | Value::Set(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        _ => Err(damaged(key, "list")),
    }
}

/// A hash: its fields and their values.
pub(super) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A hash, field by field.
pub(super) fn fields(key: &[u8], value: Value) -> Result<Fields, Error> {
    let pairs: Vec<(Value, Value)> = match value {
        Value::Map(pairs) => pairs,
        other => {
            let mut values = list(key, other)?.into_iter();
            let mut pairs = Vec::with_capacity(values.len() / 2);
            while let (Some(field), Some(value)) = (values.next(), values.next()) {
                pairs.push((field, value));
            }
            pairs
        }
    };
    pairs.into_iter().map(|(field, value)| Ok((bytes(key, field)?, bytes(key, value)?))).collect()
}
