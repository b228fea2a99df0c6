//! The keys of the store; `docs/redis.md` lists them.

use std::fmt::Write;

use super::chain::{Key, Tag};

/// The keys of one namespace.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(namespace: &str) -> Keys {
        Keys { prefix: format!("kvscout:1:{namespace}:") }
    }

    /// Version, secret, birth and number of groups.
    pub(super) fn meta(&self) -> Vec<u8> {
        self.text("m")
    }

    /// Numbers of texts.
    pub(super) fn texts(&self) -> Vec<u8> {
        self.text("i")
    }

    /// A space's birth, generation and sizes.
    pub(super) fn space(&self, space: u32) -> Vec<u8> {
        self.text(&format!("s:{{{space}}}"))
    }

    /// A space's workers and slots.
    pub(super) fn table(&self, space: u32) -> Vec<u8> {
        self.text(&format!("t:{{{space}}}"))
    }

    /// Slots of a space that are nobody's any more.
    pub(super) fn dead(&self, space: u32) -> Vec<u8> {
        self.text(&format!("d:{{{space}}}"))
    }

    /// What a slot holds something of.
    pub(super) fn held(&self, space: u32, slot: u32) -> Vec<u8> {
        self.text(&format!("h:{space}.{slot}"))
    }

    /// The unplaced blocks of a worker.
    pub(super) fn share(&self, space: u32, worker: u32) -> Vec<u8> {
        self.text(&format!("p:{space}.{worker}"))
    }

    /// How far a worker's stream was applied, and by whom.
    pub(super) fn worker(&self, worker: u32) -> Vec<u8> {
        self.text(&format!("w:{worker}"))
    }

    /// Everyone who has notes.
    pub(super) fn authors(&self) -> Vec<u8> {
        self.text("a")
    }

    /// An owner's notes.
    pub(super) fn notes(&self, owner: &str) -> Vec<u8> {
        self.text(&format!("f:{owner}"))
    }

    /// Whose snapshots there are.
    pub(super) fn snapshots(&self) -> Vec<u8> {
        self.text("k")
    }

    /// Part of a snapshot.
    pub(super) fn part(&self, id: &str, n: usize) -> Vec<u8> {
        self.text(&format!("k:{id}:{n}"))
    }

    /// Whether an owner lives.
    pub(super) fn owner(&self, owner: &str) -> Vec<u8> {
        self.text(&format!("o:{owner}"))
    }

    /// What the keys of a segment's runs begin with.
    pub(super) fn runs(&self, tag: &Tag) -> Vec<u8> {
        self.tagged("r", tag)
    }

    /// What the keys of the names of a segment's runs begin with.
    pub(super) fn named(&self, tag: &Tag) -> Vec<u8> {
        self.tagged("n", tag)
    }

    /// A run.
    pub(super) fn run(&self, tag: &Tag, run: &Key) -> Vec<u8> {
        with_hex(self.runs(tag), run)
    }

    /// The names of a run's blocks.
    pub(super) fn names(&self, tag: &Tag, run: &Key) -> Vec<u8> {
        with_hex(self.named(tag), run)
    }

    /// What the names of a group mean.
    pub(super) fn meanings(&self, vocabulary: u32, group: u32) -> Vec<u8> {
        self.text(&format!("v:{{{vocabulary}.{group}}}"))
    }

    /// The unplaced blocks of a group of names.
    pub(super) fn unplaced(&self, vocabulary: u32, group: u32) -> Vec<u8> {
        self.text(&format!("u:{{{vocabulary}.{group}}}"))
    }

    /// Who waits for names of a group.
    pub(super) fn waiting(&self, vocabulary: u32, group: u32) -> Vec<u8> {
        self.text(&format!("c:{{{vocabulary}.{group}}}"))
    }

    /// What a user's permissions are tried on.
    pub(super) fn trial(&self, kind: &str) -> Vec<u8> {
        self.text(&format!("x:{kind}"))
    }

    fn tagged(&self, kind: &str, tag: &Tag) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + 54);
        key.extend_from_slice(self.prefix.as_bytes());
        key.extend_from_slice(kind.as_bytes());
        key.extend_from_slice(b":{");
        let mut key = with_hex(key, tag);
        key.extend_from_slice(b"}:");
        key
    }

    fn text(&self, rest: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), rest.as_bytes()].concat()
    }
}

fn with_hex(mut key: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        key.push(DIGITS[usize::from(byte >> 4)]);
        key.push(DIGITS[usize::from(byte & 15)]);
    }
    key
}

/// A key as an error shows it.
pub(super) fn shown(key: &[u8]) -> String {
    let mut text = String::new();
    for c in String::from_utf8_lossy(key).chars().take(200) {
        match c.is_control() {
            true => drop(write!(text, "{}", c.escape_default())),
            false => text.push(c),
        }
    }
    text
}
