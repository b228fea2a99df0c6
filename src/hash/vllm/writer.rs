//! The recurrence, and what writes it.

use sha2::block_api::compress256;
use xxhash_rust::xxh3::xxh3_128;

use super::block_hash::{BlockHash, Int, Value};
use super::builtin::{Builtin, StringKey};
use super::cbor::Cbor;
use super::extra::Extra;
use super::pickle::Pickle;
use super::plain::{self, Layout};
use super::{Algorithm, Version};
use crate::block::TokenId;

/// Writes Python objects, depth first, in one encoding.
pub(super) trait Writer {
    /// `None`.
    fn none(&mut self);
    /// An integer.
    fn int(&mut self, n: i64);
    /// An integer of up to 256 bits.
    fn unsigned(&mut self, n: &Int);
    /// Integers, one after the other.
    fn tokens(&mut self, tokens: &[TokenId]);
    /// Bytes.
    fn bytes(&mut self, bytes: &[u8]);
    /// A string.
    fn text(&mut self, text: &str);
    /// A string that is one object wherever vLLM uses it.
    fn tag(&mut self, tag: Tag);
    /// Begins a tuple of `len` items.
    fn open(&mut self, len: usize);
    /// Ends a tuple of `len` items.
    fn close(&mut self, len: usize);
}

/// The constants that mark extra keys since vLLM 0.31.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tag {
    Lora,
    Item,
    Salt,
    Embeds,
}

impl Tag {
    pub(super) const COUNT: usize = 4;

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Tag::Lora => "lora",
            Tag::Item => "mm",
            Tag::Salt => "cache_salt",
            Tag::Embeds => "prompt_embeds",
        }
    }
}

/// What a block's hash is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'a> {
    pub(super) parent: &'a BlockHash,
    pub(super) tokens: &'a [TokenId],
    pub(super) lookahead: &'a [TokenId],
    pub(super) extras: &'a [Extra<'a>],
}

impl Link<'_> {
    /// The recurrence of every version: `hash((parent, tokens, extra keys))`, where extra keys are a
    /// tuple, or `None` if there are none. With look-ahead (0.33) the third part is a tuple of that
    /// and of the tokens after the block.
    fn write(&self, writer: &mut impl Writer) {
        writer.open(3);
        match &self.parent.0 {
            Value::Bytes32(hash) => writer.bytes(hash),
            Value::Bytes16(hash) => writer.bytes(hash),
            Value::Int(hash) => writer.unsigned(hash),
            Value::Signed(hash) => writer.int(*hash),
        }
        writer.open(self.tokens.len());
        writer.tokens(self.tokens);
        writer.close(self.tokens.len());
        if self.lookahead.is_empty() {
            self.write_extras(writer);
        } else {
            writer.open(1 + self.lookahead.len());
            self.write_extras(writer);
            writer.tokens(self.lookahead);
            writer.close(1 + self.lookahead.len());
        }
        writer.close(3);
    }

    fn write_extras(&self, writer: &mut impl Writer) {
        if self.extras.is_empty() {
            return writer.none();
        }
        writer.open(self.extras.len());
        self.extras.iter().for_each(|extra| extra.write(writer));
        writer.close(self.extras.len());
    }
}

/// Turns links into hashes; keeps the memory that encoding needs.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    encoding: Encoding,
    finish: Finish,
}

#[derive(Clone, Debug)]
enum Encoding {
    Pickle(Pickle),
    Cbor(Cbor),
    Builtin(Builtin),
}

/// What becomes of the encoded bytes.
#[derive(Clone, Copy, Debug)]
enum Finish {
    Sha256,
    /// SHA-256 as an integer (before 0.10.2).
    Sha256Int,
    /// The last 64 bits of SHA-256 as an integer.
    Sha256Low,
    /// XXH3-128 with seed 0, in canonical (big-endian) order.
    Xxh3,
}

impl Encoder {
    pub(super) fn new(version: Version, algorithm: Algorithm, key: Option<StringKey>) -> Encoder {
        let bytes = version >= Version::new(0, 10, 2);
        let finish = match algorithm {
            Algorithm::Xxhash | Algorithm::XxhashCbor => Finish::Xxh3,
            Algorithm::Sha256Cbor64Bit => Finish::Sha256Low,
            _ if bytes => Finish::Sha256,
            _ => Finish::Sha256Int,
        };
        let encoding = match algorithm {
            Algorithm::Sha256 | Algorithm::Xxhash => Encoding::Pickle(Pickle::default()),
            Algorithm::Sha256Cbor | Algorithm::Sha256Cbor64Bit | Algorithm::XxhashCbor => {
                Encoding::Cbor(Cbor::default())
            }
            Algorithm::Builtin => Encoding::Builtin(Builtin::new(key)),
        };
        Encoder { encoding, finish }
    }

    /// How blocks without extra keys are written, if SHA-256 itself is their hash.
    pub(super) fn plain_layout(&self) -> Option<Layout> {
        match (&self.encoding, self.finish) {
            (Encoding::Pickle(_), Finish::Sha256) => Some(Layout::Pickle),
            (Encoding::Cbor(_), Finish::Sha256) => Some(Layout::Cbor),
            _ => None,
        }
    }

    pub(super) fn link(&mut self, link: &Link<'_>) -> BlockHash {
        let bytes = match &mut self.encoding {
            Encoding::Pickle(pickle) => {
                pickle.start();
                link.write(pickle);
                pickle.finish()
            }
            Encoding::Cbor(cbor) => {
                cbor.start();
                link.write(cbor);
                cbor.finish()
            }
            Encoding::Builtin(builtin) => {
                builtin.start();
                link.write(builtin);
                return BlockHash(Value::Signed(builtin.finish()));
            }
        };
        self.finish.hash(bytes)
    }

    /// The hash of a string alone, which is how a seed becomes a root hash. Not for `builtin`.
    pub(super) fn text(&mut self, text: &str) -> Option<BlockHash> {
        let bytes = match &mut self.encoding {
            Encoding::Pickle(pickle) => {
                pickle.start();
                pickle.text(text);
                pickle.finish()
            }
            Encoding::Cbor(cbor) => {
                cbor.start();
                cbor.text(text);
                cbor.finish()
            }
            Encoding::Builtin(_) => return None,
        };
        Some(self.finish.hash(bytes))
    }
}

/// SHA-256 of what is in the buffer, which is padded in place (FIPS 180-4, section 5.1.1): the hasher's
/// own buffer would copy a message that is whole already.
fn sha256(bytes: &mut Vec<u8>) -> [u8; 32] {
    let bits = bytes.len() as u64 * 8;
    bytes.push(0x80);
    let padded = (bytes.len() + 8).next_multiple_of(64);
    bytes.resize(padded - 8, 0);
    bytes.extend_from_slice(&bits.to_be_bytes());
    let mut state = plain::START;
    compress256(&mut state, bytes.as_chunks().0);
    plain::bytes(&state)
}

impl Finish {
    /// Hashes what was encoded and leaves the buffer as it may.
    fn hash(self, bytes: &mut Vec<u8>) -> BlockHash {
        BlockHash(match self {
            Finish::Sha256 => Value::Bytes32(sha256(bytes)),
            Finish::Sha256Int => Value::Int(sha256(bytes)),
            Finish::Sha256Low => {
                let mut low: Int = sha256(bytes);
                low[..24].fill(0);
                Value::Int(low)
            }
            Finish::Xxh3 => Value::Bytes16(xxh3_128(bytes).to_be_bytes()),
        })
    }
}
