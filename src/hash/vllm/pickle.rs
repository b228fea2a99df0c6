//! Pickle, protocol 5, as CPython's C pickler writes it (PEP 3154, PEP 574).
//!
//! vLLM pickles with `pickle.HIGHEST_PROTOCOL`, which is 5 from Python 3.8 to 3.14. The bytes are
//! hashed, so it is not enough to write something that loads: which opcode is chosen, what enters
//! the memo and where a frame ends is the C pickler's choice, not the protocol's.

use super::block_hash::Int;
use super::writer::{Tag, Writer};
use crate::block::TokenId;

/// Content at which the C pickler ends a frame (`FRAME_SIZE_TARGET`); data of this size or more is
/// written outside of frames.
const FRAME_TARGET: usize = 64 * 1024;

/// Content below which it writes no frame header (`FRAME_SIZE_MIN`).
const FRAME_MIN: usize = 4;

/// Opcode FRAME and the length that follows it.
const FRAME_HEADER: usize = 9;

/// A pickle in the making; its memory is reused.
#[derive(Clone, Debug, Default)]
pub(super) struct Pickle {
    bytes: Vec<u8>,
    /// Where the open frame's header begins.
    frame: Option<usize>,
    /// How many objects the memo holds.
    memo: u32,
    /// Places in the memo of the tags written so far.
    tags: [Option<u32>; Tag::COUNT],
    /// Places in the memo of strings that are one object wherever they occur.
    shared: Vec<(Option<char>, u32)>,
}

impl Pickle {
    /// Starts over.
    pub(super) fn start(&mut self) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&[0x80, 5]);
        self.frame = None;
        self.memo = 0;
        self.tags = [None; Tag::COUNT];
        self.shared.clear();
    }

    /// Ends the pickle and gives its bytes.
    pub(super) fn finish(&mut self) -> &mut Vec<u8> {
        self.put(b".");
        self.end_frame();
        &mut self.bytes
    }

    /// Writes into the open frame; opens one if there is none.
    fn put(&mut self, bytes: &[u8]) {
        self.open_frame();
        self.bytes.extend_from_slice(bytes);
    }

    fn open_frame(&mut self) {
        if self.frame.is_none() {
            self.frame = Some(self.bytes.len());
            self.bytes.extend_from_slice(&[0x95, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    /// Size of the open frame's content.
    fn content(&self) -> usize {
        self.frame.map_or(0, |frame| self.bytes.len() - frame - FRAME_HEADER)
    }

    fn end_frame(&mut self) {
        let content = self.content();
        let Some(frame) = self.frame.take() else { return };
        if content < FRAME_MIN {
            self.bytes.drain(frame..frame + FRAME_HEADER);
        } else {
            let length = (content as u64).to_le_bytes();
            self.bytes[frame + 1..frame + FRAME_HEADER].copy_from_slice(&length);
        }
    }

    /// The pickler looks at the frame's size when it begins to save an object, and only then.
    fn begin_object(&mut self) {
        if self.content() >= FRAME_TARGET {
            self.end_frame();
        }
    }

    fn memoize(&mut self) -> u32 {
        self.put(&[0x94]);
        self.memo += 1;
        self.memo - 1
    }

    fn recall(&mut self, place: u32) {
        match u8::try_from(place) {
            Ok(place) => self.put(&[b'h', place]),
            Err(_) => {
                self.put(b"j");
                self.put(&place.to_le_bytes());
            }
        }
    }

    /// Opcode, length and data of a string or of bytes; large data leaves the frame.
    fn data(&mut self, short: u8, long: u8, data: &[u8]) {
        if let Ok(length) = u8::try_from(data.len()) {
            self.put(&[short, length]);
            return self.put(data);
        }
        let outside = data.len() >= FRAME_TARGET;
        if outside {
            self.end_frame();
        } else {
            self.open_frame();
        }
        // Beyond 4 GiB there would be another opcode; a salt or a block's rows are never that long.
        self.bytes.push(long);
        self.bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(data);
    }

    fn text_data(&mut self, text: &str) -> u32 {
        self.data(0x8c, b'X', text.as_bytes());
        self.memoize()
    }
}

impl Writer for Pickle {
    fn none(&mut self) {
        self.begin_object();
        self.put(b"N");
    }

    fn int(&mut self, n: i64) {
        self.begin_object();
        if let Ok(n) = u8::try_from(n) {
            self.put(&[b'K', n]);
        } else if let Ok(n) = u16::try_from(n) {
            let [low, high] = n.to_le_bytes();
            self.put(&[b'M', low, high]);
        } else if let Ok(n) = i32::try_from(n) {
            self.put(b"J");
            self.put(&n.to_le_bytes());
        } else {
            self.long(&n.to_le_bytes(), if n < 0 { 0xff } else { 0 });
        }
    }

    fn unsigned(&mut self, n: &Int) {
        let mut bytes = [0; 33];
        bytes[..32].copy_from_slice(n);
        bytes[..32].reverse();
        // What fits 32 bits has a shorter form, the same as for a signed integer.
        match bytes[4..].iter().any(|&byte| byte != 0) {
            true => {
                self.begin_object();
                self.long(&bytes, 0);
            }
            false => {
                self.int(i64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])))
            }
        }
    }

    fn tokens(&mut self, tokens: &[TokenId]) {
        if self.content() + tokens.len() * TOKEN_MAX >= FRAME_TARGET || self.frame.is_none() {
            return tokens.iter().for_each(|&token| self.int(i64::from(token)));
        }
        // No frame can end here: each token is one word of which the first bytes count, and the
        // next one overwrites the rest.
        let mut at = self.bytes.len();
        self.bytes.resize(at + tokens.len() * TOKEN_MAX + 1, 0);
        for &token in tokens {
            let (word, length) = token_word(token);
            self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            at += length;
        }
        self.bytes.truncate(at);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.begin_object();
        self.data(b'C', b'B', bytes);
        self.memoize();
    }

    fn text(&mut self, text: &str) {
        self.begin_object();
        let Some(object) = shared_object(text) else {
            self.text_data(text);
            return;
        };
        match self.shared.iter().find(|(known, _)| *known == object) {
            Some(&(_, place)) => self.recall(place),
            None => {
                let place = self.text_data(text);
                self.shared.push((object, place));
            }
        }
    }

    fn tag(&mut self, tag: Tag) {
        self.begin_object();
        match self.tags[tag as usize] {
            Some(place) => self.recall(place),
            None => self.tags[tag as usize] = Some(self.text_data(tag.as_str())),
        }
    }

    fn open(&mut self, len: usize) {
        self.begin_object();
        if len > 3 {
            self.put(b"(");
        }
    }

    fn close(&mut self, len: usize) {
        match len {
            0 => return self.put(b")"),
            1 => self.put(&[0x85]),
            2 => self.put(&[0x86]),
            3 => self.put(&[0x87]),
            _ => self.put(b"t"),
        }
        self.memoize();
    }
}

impl Pickle {
    /// LONG1: the shortest two's complement of a little-endian integer that `fill` extends.
    fn long(&mut self, bytes: &[u8], fill: u8) {
        let used = bytes.iter().rposition(|&byte| byte != fill).map_or(1, |last| last + 1);
        // The top bit is the sign: where it is the other one, a byte of the sign follows.
        let sign = bytes[used - 1] & 0x80 == fill & 0x80;
        self.put(&[0x8a, (used + usize::from(!sign)) as u8]);
        self.put(&bytes[..used]);
        if !sign {
            self.put(&[fill]);
        }
    }
}

/// Bytes of the longest token: LONG1, its length, five bytes.
pub(super) const TOKEN_MAX: usize = 7;

/// A token's opcode and value as a little-endian word, and how many of its bytes count.
///
/// Tokens of all lengths follow each other without a pattern, so the common ones are told apart
/// without a branch.
#[inline]
pub(super) fn token_word(token: TokenId) -> (u64, usize) {
    const OPCODES: [u64; 3] = [0x4b, 0x4d, 0x4a];
    const LENGTHS: [usize; 3] = [2, 3, 5];
    let value = u64::from(token);
    if token > 0x7fff_ffff {
        return (value << 16 | 0x058a, TOKEN_MAX);
    }
    let class = usize::from(token > 0xff) + usize::from(token > 0xffff);
    (value << 8 | OPCODES[class], LENGTHS[class])
}

/// CPython has one object for the empty string and one for each character below U+0100, so such
/// strings are equal only if they are identical, and the second occurrence is a memo reference.
/// Any other string that reaches an engine in a message is an object of its own.
fn shared_object(text: &str) -> Option<Option<char>> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (None, _) => Some(None),
        (Some(c), None) if c < '\u{100}' => Some(Some(c)),
        _ => None,
    }
}
