//! The hash of one block, the slow way: the value that vLLM builds, as a tree, written by recursion.
//!
//! Shares no code with the crate. Used by the property test and by the fuzz target.

use kvscout::block::{ExtraKey, Lora};
use kvscout::hash::vllm::{Algorithm, BlockHash, Contract, Root, Version};
use sha2::{Digest, Sha256};

/// One extra key; the adapter's path belongs to its name.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    Lora { name: String, id: i64, path: String },
    Item { identifier: String, offset: i64 },
    Salt(String),
    Embeds([u8; 32]),
}

/// One block and the contract under which it is hashed.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) version: Version,
    pub(crate) algorithm: Algorithm,
    /// 32 bytes, of which narrower hashes take the first.
    pub(crate) parent: [u8; 32],
    pub(crate) tokens: Vec<u32>,
    pub(crate) lookahead: Vec<u32>,
    pub(crate) keys: Vec<Key>,
}

/// Panics unless the crate hashes the block as the recursive writers do.
pub(crate) fn check(block: &Block) {
    if block.algorithm.exists_in(block.version) {
        let (found, expected) = compare(block).unwrap();
        assert_eq!(found.to_string(), expected, "{block:?}");
    }
}

fn compare(block: &Block) -> Option<(BlockHash, String)> {
    let root = if block.version < Version::new(0, 10, 2) { "1" } else { &"01".repeat(32) };
    let contract = Contract::new(block.version, block.algorithm, Root::Hash(root)).ok()?;
    let wide = !matches!(block.algorithm, Algorithm::Xxhash | Algorithm::XxhashCbor);
    let integers = block.version < Version::new(0, 10, 2);
    let parent = match (integers, wide) {
        (true, _) => {
            let word = u64::from_be_bytes(block.parent[..8].try_into().ok()?);
            BlockHash::from(word.max(1))
        }
        (false, true) => BlockHash::from_bytes(&block.parent)?,
        (false, false) => BlockHash::from_bytes(&block.parent[..16])?,
    };
    let adapter = block.keys.iter().find_map(|key| match key {
        Key::Lora { name, id, path } => Some(Lora { name, id: Some(*id), path: Some(path) }),
        _ => None,
    });
    let keys = block.keys.iter().map(|key| match key {
        Key::Lora { name, .. } => ExtraKey::Lora(name),
        Key::Item { identifier, offset } => ExtraKey::Item { identifier, offset: *offset },
        Key::Salt(salt) => ExtraKey::Salt(salt),
        Key::Embeds(digest) => ExtraKey::Embeds(*digest),
    });
    let found = contract.child(&parent, &block.tokens, &block.lookahead, keys, adapter).ok()?;

    let parent = match parent.as_bytes() {
        Some(bytes) => Tree::Bytes(bytes.to_vec()),
        None => Tree::Int(parent.event()?),
    };
    let tree = tree(block, parent);
    let bytes = match block.algorithm {
        Algorithm::Sha256 | Algorithm::Xxhash => pickle(&tree),
        _ => cbor(&tree),
    };
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    let expected = match (block.algorithm, integers) {
        (Algorithm::Sha256Cbor64Bit, _) => {
            u64::from_be_bytes(digest[24..].try_into().ok()?).to_string()
        }
        // 256 bits have no short way to decimal digits; their low half is compared as a name.
        (_, true) => {
            let low = u64::from_be_bytes(digest[24..].try_into().ok()?);
            assert_eq!(found.name().0, low, "{block:?}");
            found.to_string()
        }
        (_, false) if wide => hex(&digest),
        _ => format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)),
    };
    Some((found, expected))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A Python object. `Constant` is a string of which there is one object.
enum Tree {
    None,
    Int(i128),
    Bytes(Vec<u8>),
    Text(String),
    Constant(&'static str),
    Tuple(Vec<Tree>),
}

fn tree(block: &Block, parent: Tree) -> Tree {
    let ints = |ids: &[u32]| ids.iter().map(|&id| Tree::Int(id.into())).collect::<Vec<_>>();
    let since = |minor, patch| block.version >= Version::new(0, minor, patch);
    let text = |text: &String| Tree::Text(text.clone());
    let keys: Vec<Tree> = block
        .keys
        .iter()
        .filter_map(|key| {
            Some(match key {
                Key::Lora { name, path, .. } if since(31, 0) => {
                    Tree::Tuple(vec![Tree::Constant("lora"), text(name), text(path)])
                }
                Key::Lora { name, .. } if since(11, 1) => text(name),
                Key::Lora { id, .. } => Tree::Int((*id).into()),
                Key::Item { identifier, offset } if since(31, 0) => Tree::Tuple(vec![
                    Tree::Constant("mm"),
                    text(identifier),
                    Tree::Int((*offset).into()),
                ]),
                Key::Item { identifier, offset } if since(19, 0) => {
                    Tree::Tuple(vec![text(identifier), Tree::Int((*offset).into())])
                }
                Key::Item { identifier, .. } => text(identifier),
                Key::Salt(salt) if salt.is_empty() || !since(9, 0) => return None,
                Key::Salt(salt) if since(31, 0) => {
                    Tree::Tuple(vec![Tree::Constant("cache_salt"), text(salt)])
                }
                Key::Salt(salt) => text(salt),
                Key::Embeds(digest) if since(31, 0) => {
                    let digest = Tree::Bytes(digest.to_vec());
                    Tree::Tuple(vec![Tree::Constant("prompt_embeds"), digest])
                }
                Key::Embeds(digest) => Tree::Bytes(digest.to_vec()),
            })
        })
        .collect();
    let mut third = if keys.is_empty() { Tree::None } else { Tree::Tuple(keys) };
    if !block.lookahead.is_empty() {
        let mut items = vec![third];
        items.extend(ints(&block.lookahead));
        third = Tree::Tuple(items);
    }
    Tree::Tuple(vec![parent, Tree::Tuple(ints(&block.tokens)), third])
}

/// A pickle as a list of pieces, each a frame's content or bytes outside of frames.
#[derive(Default)]
struct Pickle {
    pieces: Vec<(bool, Vec<u8>)>,
    open: Vec<u8>,
    /// What each place of the memo holds, if it can be found again.
    memo: Vec<Option<String>>,
}

fn pickle(tree: &Tree) -> Vec<u8> {
    let mut pickle = Pickle::default();
    pickle.save(tree);
    pickle.open.push(b'.');
    pickle.cut();
    let mut bytes = vec![0x80, 5];
    for (framed, piece) in pickle.pieces {
        if framed && piece.len() >= 4 {
            bytes.push(0x95);
            bytes.extend((piece.len() as u64).to_le_bytes());
        }
        bytes.extend(piece);
    }
    bytes
}

impl Pickle {
    fn cut(&mut self) {
        let piece = std::mem::take(&mut self.open);
        if !piece.is_empty() {
            self.pieces.push((true, piece));
        }
    }

    fn save(&mut self, tree: &Tree) {
        if self.open.len() >= 65536 {
            self.cut();
        }
        match tree {
            Tree::None => self.open.push(b'N'),
            Tree::Int(n) => self.int(*n),
            Tree::Bytes(bytes) => {
                self.sized(b'C', b'B', bytes);
                self.remember(None);
            }
            Tree::Text(text) => {
                let mut chars = text.chars();
                let one = chars.next().is_none_or(|c| (c as u32) < 256) && chars.next().is_none();
                self.string(text, one.then(|| format!("={text}")));
            }
            Tree::Constant(text) => self.string(text, Some((*text).to_owned())),
            Tree::Tuple(items) if items.is_empty() => self.open.push(b')'),
            Tree::Tuple(items) => {
                if items.len() > 3 {
                    self.open.push(b'(');
                }
                items.iter().for_each(|item| self.save(item));
                self.open
                    .push([b't', 0x85, 0x86, 0x87][if items.len() > 3 { 0 } else { items.len() }]);
                self.remember(None);
            }
        }
    }

    fn string(&mut self, text: &str, object: Option<String>) {
        if let Some(place) =
            object.as_ref().and_then(|_| self.memo.iter().position(|known| *known == object))
        {
            match place {
                0..256 => self.open.extend([b'h', place as u8]),
                _ => {
                    self.open.push(b'j');
                    self.open.extend((place as u32).to_le_bytes());
                }
            }
            return;
        }
        self.sized(0x8c, b'X', text.as_bytes());
        self.remember(object);
    }

    fn remember(&mut self, object: Option<String>) {
        self.memo.push(object);
        self.open.push(0x94);
    }

    fn sized(&mut self, short: u8, long: u8, data: &[u8]) {
        let head = match data.len() {
            n @ 0..256 => vec![short, n as u8],
            n => [&[long][..], &(n as u32).to_le_bytes()].concat(),
        };
        if data.len() < 65536 {
            self.open.extend(head);
            self.open.extend(data);
        } else {
            self.cut();
            self.pieces.push((false, [&head, data].concat()));
        }
    }

    fn int(&mut self, n: i128) {
        if (0..256).contains(&n) {
            self.open.extend([b'K', n as u8]);
        } else if (0..65536).contains(&n) {
            self.open.push(b'M');
            self.open.extend((n as u16).to_le_bytes());
        } else if (-(1 << 31)..1 << 31).contains(&n) {
            self.open.push(b'J');
            self.open.extend((n as i32).to_le_bytes());
        } else {
            let length = (1..=16)
                .find(|bytes| n >> (bytes * 8 - 1) == 0 || n >> (bytes * 8 - 1) == -1)
                .unwrap();
            self.open.extend([0x8a, length as u8]);
            self.open.extend(&n.to_le_bytes()[..length]);
        }
    }
}

fn cbor(tree: &Tree) -> Vec<u8> {
    let head = |major: u8, n: u64| -> Vec<u8> {
        let bytes = n.to_be_bytes();
        let (code, bytes) = match n {
            0..=23 => return vec![major << 5 | n as u8],
            24..=0xff => (24, &bytes[7..]),
            0x100..=0xffff => (25, &bytes[6..]),
            0x1_0000..=0xffff_ffff => (26, &bytes[4..]),
            _ => (27, &bytes[..]),
        };
        [&[major << 5 | code], bytes].concat()
    };
    let string = |major, data: &[u8]| [head(major, data.len() as u64), data.to_vec()].concat();
    match tree {
        Tree::None => vec![0xf6],
        Tree::Int(n) if *n >= 0 => head(0, *n as u64),
        Tree::Int(n) => head(1, (-1 - n) as u64),
        Tree::Bytes(bytes) => string(2, bytes),
        Tree::Text(text) => string(3, text.as_bytes()),
        Tree::Constant(text) => string(3, text.as_bytes()),
        Tree::Tuple(items) => {
            let content: Vec<u8> = items.iter().flat_map(cbor).collect();
            [head(4, items.len() as u64), content].concat()
        }
    }
}
