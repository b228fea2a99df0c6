//! What can be wrong with a payload.

use std::fmt;

use crate::error::{Error, ErrorKind};

/// Why a payload, or one event of it, could not be decoded. Never carries a token, a salt or any
/// other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Offset of the offending value's first byte, counted from the start of the payload.
    pub at: usize,
    /// What is wrong with it.
    pub kind: DecodeErrorKind,
}

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The payload is longer than [`Limits::max_frame`](super::Limits::max_frame).
    FrameTooLarge {
        /// Bytes of the payload.
        size: usize,
        /// Bytes accepted.
        limit: usize,
    },
    /// The payload ends inside the value.
    Truncated,
    /// A string, array or map claims more than the payload can still hold; seen before anything
    /// was sized by the claim.
    LengthBeyondEnd {
        /// Bytes that the claim needs at least.
        claimed: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// The byte 0xc1, which msgpack never uses.
    ReservedByte,
    /// An ignored value nests deeper than [`Limits::max_depth`](super::Limits::max_depth).
    TooDeep {
        /// Levels accepted.
        limit: u32,
    },
    /// The batch claims more events than [`Limits::max_events`](super::Limits::max_events).
    TooManyEvents {
        /// Events claimed.
        found: usize,
        /// Events accepted.
        limit: usize,
    },
    /// The event claims more hashes than [`Limits::max_hashes`](super::Limits::max_hashes).
    TooManyHashes {
        /// Hashes claimed.
        found: usize,
        /// Hashes accepted.
        limit: usize,
    },
    /// The value is of another type than the field's.
    WrongType {
        /// The field.
        field: Field,
        /// What was found.
        found: Found,
    },
    /// The value is an integer beyond the field's range.
    TooLarge {
        /// The field.
        field: Field,
        /// What was found.
        value: u64,
    },
    /// A string is not UTF-8.
    NotUtf8 {
        /// The field.
        field: Field,
    },
    /// The event lacks a field that every version sends.
    Missing {
        /// The field.
        field: Field,
    },
    /// A map has the same key twice, so it has two readings.
    Duplicate {
        /// The field.
        field: Field,
    },
    /// The event's tag is none of the known ones.
    UnknownEvent,
    /// A block hash is an empty byte string.
    EmptyHash,
    /// A block hash is printable text, such as a hexadecimal rendering.
    TextHash,
    /// `block_size` is 0 and yet there are tokens.
    ZeroBlockSize,
    /// A token id does not fit [`TokenId`](crate::block::TokenId).
    TokenTooLarge,
    /// Bytes follow a value that should be the last.
    TrailingBytes,
}

/// The type of a msgpack value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// `nil`.
    Nil,
    /// `true` or `false`.
    Boolean,
    /// An integer of 0 or more.
    Unsigned,
    /// An integer below 0.
    Negative,
    /// A float of 32 or 64 bits.
    Float,
    /// A string.
    Text,
    /// A byte string.
    Bytes,
    /// An array.
    Array,
    /// A map.
    Map,
    /// An extension type.
    Extension,
}

impl Found {
    const fn as_str(self) -> &'static str {
        match self {
            Found::Nil => "nil",
            Found::Boolean => "a boolean",
            Found::Unsigned => "an unsigned integer",
            Found::Negative => "a negative integer",
            Found::Float => "a float",
            Found::Text => "a string",
            Found::Bytes => "a byte string",
            Found::Array => "an array",
            Found::Map => "a map",
            Found::Extension => "an extension type",
        }
    }
}

/// A place in a batch or in one of its events, under the engines' own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the variants are the engines' field names")]
pub enum Field {
    Batch,
    Timestamp,
    Events,
    DataParallelRank,
    Event,
    Type,
    BlockHashes,
    ParentBlockHash,
    TokenIds,
    BlockSize,
    LoraId,
    Medium,
    LoraName,
    ExtraKeys,
    GroupIdx,
    SpecKind,
    SlidingWindow,
    Locality,
    CacheSalt,
    LookaheadTokenIds,
    EventType,
    SeqHashes,
    ParentHash,
    GroupId,
    TenantId,
    ModelName,
}

impl Field {
    /// The name as it stands in an event.
    pub const fn as_str(self) -> &'static str {
        self.rule().0
    }

    /// Name, and what a value of the field has to be.
    const fn rule(self) -> (&'static str, &'static str) {
        match self {
            Field::Batch => ("batch", "an array of timestamp, events and optionally a rank"),
            Field::Timestamp => ("ts", "a float or an integer"),
            Field::Events => ("events", "an array"),
            Field::DataParallelRank => ("data_parallel_rank", "nil or an integer below 2^32"),
            Field::Event => ("event", "an array or a map, plain or once wrapped in bytes"),
            Field::Type => ("type", "a string"),
            Field::BlockHashes => ("block_hashes", "an array of integers or byte strings"),
            Field::ParentBlockHash => ("parent_block_hash", "nil, an integer or a byte string"),
            Field::TokenIds => ("token_ids", "an array of unsigned integers"),
            Field::BlockSize => ("block_size", "an integer from 0 to 2^20"),
            Field::LoraId => ("lora_id", "nil or an integer below 2^63"),
            Field::Medium => ("medium", "nil or a string"),
            Field::LoraName => ("lora_name", "nil or a string"),
            Field::ExtraKeys => ("extra_keys", "nil or an array"),
            Field::GroupIdx => ("group_idx", "nil or an integer below 2^32"),
            Field::SpecKind => ("kv_cache_spec_kind", "nil or a string"),
            Field::SlidingWindow => {
                ("kv_cache_spec_sliding_window", "nil or an integer below 2^32")
            }
            Field::Locality => ("locality", "nil or a string"),
            Field::CacheSalt => ("cache_salt", "nil or a string"),
            Field::LookaheadTokenIds => {
                ("lookahead_token_ids", "nil or an array of arrays of unsigned integers")
            }
            Field::EventType => ("event_type", "a string"),
            Field::SeqHashes => ("seq_hashes", "an array of integers or byte strings"),
            Field::ParentHash => ("parent_hash", "nil, an integer or a byte string"),
            Field::GroupId => ("group_id", "nil, a string or an integer below 2^32"),
            Field::TenantId => ("tenant_id", "nil or a string"),
            Field::ModelName => ("model_name", "nil or a string"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use DecodeErrorKind::*;

        write!(f, "byte {}: ", self.at)?;
        match self.kind {
            FrameTooLarge { size, limit } => {
                write!(f, "payload of {size} bytes, at most {limit} are accepted")
            }
            Truncated => f.write_str("the payload ends inside this value"),
            LengthBeyondEnd { claimed, left } => {
                write!(f, "length claim of at least {claimed} bytes, {left} are left")
            }
            ReservedByte => f.write_str("found 0xc1, which is no msgpack value"),
            TooDeep { limit } => write!(f, "nested deeper than {limit} levels"),
            TooManyEvents { found, limit } => {
                write!(f, "{found} events in a batch, at most {limit} are accepted")
            }
            TooManyHashes { found, limit } => {
                write!(f, "{found} hashes in an event, at most {limit} are accepted")
            }
            WrongType { field, found } => {
                let (name, wanted) = field.rule();
                write!(f, "found {} in {name}, which is {wanted}", found.as_str())
            }
            TooLarge { field, value } => {
                let (name, wanted) = field.rule();
                write!(f, "found {value} in {name}, which is {wanted}")
            }
            NotUtf8 { field } => write!(f, "{} is not UTF-8", field.as_str()),
            Missing { field } => write!(f, "the event has no {}", field.as_str()),
            Duplicate { field } => {
                write!(f, "the event has {} twice, once would be right", field.as_str())
            }
            UnknownEvent => f.write_str(
                "unknown event, known are BlockStored, BlockRemoved and AllBlocksCleared, or stored, \
                 removed and cleared as event_type",
            ),
            EmptyHash => f.write_str("found an empty block hash, one has at least 1 byte"),
            TextHash => {
                f.write_str("found a text as block hash, one is an integer or a byte string")
            }
            ZeroBlockSize => f.write_str("block_size is 0 although the event has tokens"),
            TokenTooLarge => f.write_str("found a token id beyond 2^32 - 1"),
            TrailingBytes => f.write_str("bytes follow where the payload should end"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Error {
        Error::new(ErrorKind::Decode, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_offset_what_was_found_and_what_would_be_right() {
        let kind = DecodeErrorKind::WrongType { field: Field::BlockSize, found: Found::Negative };
        let error = DecodeError { at: 17, kind };
        assert_eq!(
            error.to_string(),
            "byte 17: found a negative integer in block_size, which is an integer from 0 to 2^20"
        );
        let public = Error::from(error);
        assert_eq!(public.kind(), ErrorKind::Decode);
        assert_eq!(public.to_string(), error.to_string());
    }

    #[test]
    fn an_error_stays_small() {
        assert!(size_of::<DecodeError>() <= 32);
    }
}
