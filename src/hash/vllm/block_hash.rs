//! The hash of one block, in any of the forms that vLLM has used.

use std::fmt;

use crate::block::Name;

/// The hash of a block and of everything before it.
///
/// The form depends on version and algorithm: 32 bytes, or 16 for `xxhash` (0.10.2 and later); an
/// integer of 256 bits, of 64 bits, or of 64 bits with a sign (before 0.10.2). `Display` writes
/// bytes as lower-case hex and integers as decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(pub(super) Value);

/// The forms of a [`BlockHash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    /// SHA-256.
    Bytes32([u8; 32]),
    /// XXH3-128.
    Bytes16([u8; 16]),
    /// An integer of up to 256 bits, big-endian.
    Int(Int),
    /// CPython's `hash()`.
    Signed(i64),
}

/// An unsigned integer of 256 bits, big-endian.
pub(super) type Int = [u8; 32];

impl BlockHash {
    /// A full hash as an event in the form of bytes carries it: 16 or 32 bytes. `None` for any other
    /// length; the hash of a coarse group before vLLM 0.24 is several hashes in one string, of
    /// which the last is the block's.
    pub fn from_bytes(hash: &[u8]) -> Option<BlockHash> {
        if let Ok(hash) = hash.try_into() {
            return Some(BlockHash(Value::Bytes32(hash)));
        }
        hash.try_into().ok().map(|hash| BlockHash(Value::Bytes16(hash)))
    }

    /// The bytes of the hash, or `None` if it is an integer.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Value::Bytes32(hash) => Some(hash),
            Value::Bytes16(hash) => Some(hash),
            Value::Int(_) | Value::Signed(_) => None,
        }
    }

    /// The normal form, by which indexes know blocks: the last 64 bits.
    pub fn name(&self) -> Name {
        match &self.0 {
            Value::Bytes32(hash) | Value::Int(hash) => Name(low_word(hash)),
            Value::Bytes16(hash) => Name(low_word(hash)),
            Value::Signed(hash) => Name::from(*hash),
        }
    }

    /// The integer that events carry: the last 8 bytes, unsigned, since 0.10.2 (with
    /// `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=1`, the default); the integer itself before.
    ///
    /// `None` for integers beyond 64 bits, which msgpack cannot encode: those versions lose every
    /// event that holds one.
    pub fn event(&self) -> Option<i128> {
        match &self.0 {
            Value::Signed(hash) => Some(i128::from(*hash)),
            Value::Int(hash) if hash[..24] != [0; 24] => None,
            Value::Int(_) | Value::Bytes32(_) | Value::Bytes16(_) => {
                Some(i128::from(self.name().0))
            }
        }
    }

    /// Whether Python takes the hash for false: integers that are zero.
    pub(super) fn is_false(&self) -> bool {
        match self.0 {
            Value::Signed(hash) => hash == 0,
            Value::Int(hash) => hash == [0; 32],
            Value::Bytes32(_) | Value::Bytes16(_) => false,
        }
    }
}

impl From<i64> for BlockHash {
    /// A hash of algorithm `builtin`, which events carry whole.
    fn from(hash: i64) -> BlockHash {
        BlockHash(Value::Signed(hash))
    }
}

impl From<u64> for BlockHash {
    /// A hash of algorithm `sha256_cbor_64bit`, which events carry whole.
    fn from(hash: u64) -> BlockHash {
        let mut int = [0; 32];
        int[24..].copy_from_slice(&hash.to_be_bytes());
        BlockHash(Value::Int(int))
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Value::Bytes32(hash) => hash.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Value::Bytes16(hash) => hash.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Value::Int(hash) => f.write_str(&decimal(*hash)),
            Value::Signed(hash) => hash.fmt(f),
        }
    }
}

/// Reads hex digits of either case, two for each byte.
pub(super) fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let nibbles: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let nibbles = nibbles.filter(|nibbles| nibbles.len().is_multiple_of(2))?;
    Some(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Reads a decimal number of up to 256 bits.
pub(super) fn parse_decimal(text: &str) -> Option<Int> {
    let mut int: Int = [0; 32];
    if text.is_empty() {
        return None;
    }
    for c in text.chars() {
        let mut carry = c.to_digit(10)?;
        for byte in int.iter_mut().rev() {
            carry += u32::from(*byte) * 10;
            *byte = carry as u8;
            carry >>= 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(int)
}

fn decimal(mut int: Int) -> String {
    let mut digits = Vec::new();
    while digits.is_empty() || int != [0; 32] {
        let mut rest = 0;
        for byte in &mut int {
            let part = rest << 8 | u32::from(*byte);
            *byte = (part / 10) as u8;
            rest = part % 10;
        }
        digits.push(b'0' + rest as u8);
    }
    digits.iter().rev().map(|&digit| char::from(digit)).collect()
}

fn low_word(hash: &[u8]) -> u64 {
    hash[hash.len() - 8..].iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_up_to_256_bits_are_read_and_written_in_decimal() {
        let max = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        for text in ["0", "9", "10", "18446744073709551616", max] {
            assert_eq!(decimal(parse_decimal(text).unwrap()), text);
        }
        let beyond = max.replace("935", "936");
        for text in ["", "-1", "+1", "1e3", &beyond] {
            assert_eq!(parse_decimal(text), None, "{text}");
        }
    }

    #[test]
    fn an_integer_beyond_64_bits_has_a_name_and_no_event() {
        let int = |text| BlockHash(Value::Int(parse_decimal(text).unwrap()));
        assert_eq!(int("18446744073709551615").event(), Some(u64::MAX.into()));
        assert_eq!(int("18446744073709551617").event(), None);
        assert_eq!(int("18446744073709551617").name(), Name(1));
    }

    #[test]
    fn every_form_shows_itself_as_vllm_would() {
        assert_eq!(BlockHash::from(-5_i64).to_string(), "-5");
        assert_eq!(BlockHash::from(-5_i64).event(), Some(-5));
        assert_eq!(BlockHash::from(u64::MAX).to_string(), "18446744073709551615");
        let bytes = BlockHash::from_bytes(&[0xab; 16]).unwrap();
        assert_eq!(bytes.to_string(), "ab".repeat(16));
        assert_eq!(bytes.event(), Some(0xabab_abab_abab_abab));
        assert_eq!(BlockHash::from_bytes(&[0; 64]), None);
    }

    #[test]
    fn hex_is_read_in_either_case_and_whole_bytes_only() {
        assert_eq!(parse_hex("00fFAb"), Some(vec![0, 255, 171]));
        assert_eq!(parse_hex("abc"), None);
        assert_eq!(parse_hex("zz"), None);
    }
}
