//! A keyed digest of one block's content.
//!
//! An outsider who may choose prompts must not be able to make two blocks look alike, so the digest
//! is made under a 128-bit secret: of the tokens by AES rounds (`hash::aes` says why that is
//! hard to collide), XORed, where a block has extra keys or look-ahead, with SipHash-1-3 of those. It
//! leaves out the parent, the engine and the block's place in the prompt: engines with different
//! seeds, algorithms and versions agree on it.

use std::fmt;
use std::hash::Hasher;

use sha2::{Digest as _, Sha256};
use siphasher::sip::SipHasher13;

use super::aes::Schedule;
use crate::block::{Digest, Embeds, ExtraKey, Prompt, Shape, TokenId};
use crate::error::{Error, ErrorKind};

/// The secret under which digests are made; digests of different keys are unrelated.
#[derive(Clone, PartialEq, Eq)]
pub struct DigestKey {
    secret: [u8; 16],
    schedule: Schedule,
}

impl DigestKey {
    /// A new key from the operating system's random source.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] when that source fails.
    pub fn random() -> Result<DigestKey, Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(|e| {
            Error::new(ErrorKind::Unavailable, "the system's random source gave no digest key")
                .with_source(e)
        })?;
        Ok(DigestKey::from_bytes(key))
    }

    /// The key with these bytes, as [`to_bytes`](DigestKey::to_bytes) gave them.
    pub fn from_bytes(secret: [u8; 16]) -> DigestKey {
        DigestKey { secret, schedule: Schedule::of(&secret) }
    }

    /// The secret itself, to be stored where only its owner can read it.
    pub fn to_bytes(&self) -> [u8; 16] {
        self.secret
    }

    /// A public fingerprint of the key: the first 8 bytes, big-endian, of
    /// SHA-256(`"kvscout digest key id"` ‖ key). It says nothing about digests made with the key.
    pub fn id(&self) -> u64 {
        let hash =
            Sha256::new_with_prefix(b"kvscout digest key id").chain_update(self.secret).finalize();
        hash[..8].iter().fold(0, |id, &byte| id << 8 | u64::from(byte))
    }

    /// The digest of one block: its tokens, the tokens of its look-ahead, its extra keys.
    ///
    /// Extra keys count in the order given; [`ExtraKey`] fixes it.
    pub fn digest<'a>(
        &self,
        tokens: &[TokenId],
        lookahead: &[TokenId],
        extra_keys: impl IntoIterator<Item = ExtraKey<'a>>,
    ) -> Digest {
        let mut plain = [Digest(0)];
        if !tokens.is_empty() {
            self.plain(tokens, tokens.len(), &mut plain);
        }
        let mut extra_keys = extra_keys.into_iter().peekable();
        if lookahead.is_empty() && extra_keys.peek().is_none() {
            return plain[0];
        }
        let mut sip = SipHasher13::new_with_key(&self.secret);
        encode(lookahead, extra_keys, |bytes| sip.write(bytes));
        Digest(plain[0].0 ^ sip.finish())
    }

    /// Writes the digests of consecutive blocks without extra keys and look-ahead to `out`, as many
    /// as `out` has; a block is `size` tokens.
    ///
    /// # Panics
    ///
    /// `size` is 0, or `tokens` are fewer than `out` asks for.
    pub fn plain(&self, tokens: &[TokenId], size: usize, out: &mut [Digest]) {
        self.schedule.digests(tokens, size, out);
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestKey(id {:016x})", self.id())
    }
}

/// The extra keys of block number `block` of a prompt, in the normal form of [`ExtraKey`].
///
/// An item belongs to a block if it covers any of its tokens or of its look-ahead (the rule of
/// vLLM 0.19 and later); its offset counts from the block's first token. An empty salt is no salt.
/// The digest of embeddings covers the rows of the block and of its look-ahead; rows that the
/// prompt lacks are left out.
pub fn extra_keys<'p>(
    prompt: &Prompt<'p>,
    shape: Shape,
    block: usize,
) -> impl Iterator<Item = ExtraKey<'p>> {
    let start = block.saturating_mul(shape.size.tokens());
    let end = start.saturating_add(shape.size.tokens()).saturating_add(shape.lookahead as usize);
    let items = prompt.items;
    // Items come by position, so those that a block can touch are one stretch of them.
    let first = items.partition_point(|item| item.offset as usize + item.length as usize <= start);

    let lora = prompt.lora.map(|lora| ExtraKey::Lora(lora.name));
    let items = items[first..].iter().take_while(move |item| (item.offset as usize) < end);
    let items = items.filter(move |item| item.offset as usize + item.length as usize > start);
    let items = items.map(move |item| ExtraKey::Item {
        identifier: item.identifier,
        offset: i64::from(item.offset) - start as i64,
    });
    let salt = prompt.cache_salt.filter(|salt| block == 0 && !salt.is_empty()).map(ExtraKey::Salt);
    let embeds = prompt.embeds.and_then(|embeds| match embeds {
        Embeds::Rows { .. } => {
            let rows = rows(embeds, start, end)?;
            Some(ExtraKey::Embeds(Sha256::digest(rows).into()))
        }
        Embeds::Digests(digests) => digests.get(block).copied().map(ExtraKey::Embeds),
    });
    lora.into_iter().chain(items).chain(salt).chain(embeds)
}

/// The raw rows of positions `start..end`, cut where the tensor ends (as a tensor's slice is).
/// `None` when embeddings are known by their digests only.
pub(super) fn rows<'p>(embeds: Embeds<'p>, start: usize, end: usize) -> Option<&'p [u8]> {
    let Embeds::Rows { bytes, row } = embeds else { return None };
    let at = |position: usize| position.saturating_mul(row).min(bytes.len());
    Some(&bytes[at(start)..at(end)])
}

/// Feeds `sink` with what a block has besides its tokens. Different lists give different bytes: each
/// part says how long it is, or what it is, before it begins.
fn encode<'a>(
    lookahead: &[TokenId],
    extra_keys: impl IntoIterator<Item = ExtraKey<'a>>,
    mut sink: impl FnMut(&[u8]),
) {
    sink(&(lookahead.len() as u32).to_le_bytes());
    lookahead.iter().for_each(|token| sink(&token.to_le_bytes()));
    for key in extra_keys {
        match key {
            ExtraKey::Lora(name) => string(b'l', name, &mut sink),
            ExtraKey::Item { identifier, offset } => {
                string(b'i', identifier, &mut sink);
                sink(&offset.to_le_bytes());
            }
            ExtraKey::Salt(salt) => string(b's', salt, &mut sink),
            ExtraKey::Embeds(digest) => {
                sink(b"e");
                sink(&digest);
            }
        }
    }
}

fn string(kind: u8, text: &str, sink: &mut impl FnMut(&[u8])) {
    sink(&[kind]);
    sink(&(text.len() as u64).to_le_bytes());
    sink(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::{BlockSize, Item, Lora};

    fn key(byte: u8) -> DigestKey {
        DigestKey::from_bytes([byte; 16])
    }

    fn encoded(lookahead: &[u32], keys: &[ExtraKey<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(lookahead, keys.iter().copied(), |part| bytes.extend_from_slice(part));
        bytes
    }

    #[test]
    fn blocks_together_and_one_by_one_give_the_same() {
        let tokens: Vec<u32> = (0..300).map(|i| i * 7919).collect();
        for size in [1, 15, 16, 17, 32, 33, 100] {
            let mut together = [Digest(0); 3];
            key(7).plain(&tokens, size, &mut together);
            let one_by_one =
                [0, 1, 2].map(|n| key(7).digest(&tokens[n * size..(n + 1) * size], &[], []));
            assert_eq!(together, one_by_one, "blocks of {size}");
        }
    }

    #[test]
    fn a_digest_depends_on_the_key_the_tokens_the_split_and_the_extras() {
        let base = key(7).digest(&[1, 2, 3], &[], []);
        assert_eq!(base, key(7).digest(&[1, 2, 3], &[], []));
        assert_ne!(base, key(8).digest(&[1, 2, 3], &[], []));
        assert_ne!(base, key(7).digest(&[1, 2], &[3], []));
        assert_ne!(base, key(7).digest(&[1, 2, 3, 0], &[], []));
        assert_ne!(base, key(7).digest(&[1, 2, 3], &[], [ExtraKey::Salt("a")]));
        let lora = key(7).digest(&[1], &[], [ExtraKey::Lora("a")]);
        assert_ne!(lora, key(7).digest(&[1], &[], [ExtraKey::Salt("a")]));
    }

    #[test]
    fn a_key_shows_its_fingerprint_and_never_its_bytes() {
        let key = DigestKey::from_bytes([0xab; 16]);
        assert_eq!(format!("{key:?}"), format!("DigestKey(id {:016x})", key.id()));
        assert_ne!(key.id(), DigestKey::from_bytes([7; 16]).id());
        assert_eq!(DigestKey::from_bytes(key.to_bytes()), key);
        assert_ne!(DigestKey::random().unwrap(), DigestKey::random().unwrap());
    }

    fn keys_of(prompt: &Prompt<'_>, lookahead: u32, block: usize) -> Vec<String> {
        let shape = Shape { size: BlockSize::DEFAULT, lookahead };
        extra_keys(prompt, shape, block)
            .map(|key| match key {
                // Its `Debug` hides it.
                ExtraKey::Salt(salt) => format!("Salt({salt:?})"),
                key => format!("{key:?}"),
            })
            .collect()
    }

    #[test]
    fn extra_keys_come_as_adapter_items_salt_embeddings() {
        let rows = vec![3; 48 * 2];
        let items = [
            Item { identifier: "a", offset: 4, length: 12 },
            Item { identifier: "b", offset: 20, length: 20 },
        ];
        let prompt = Prompt {
            lora: Some(Lora { name: "l", id: None, path: None }),
            cache_salt: Some("s"),
            items: &items,
            embeds: Some(Embeds::Rows { bytes: &rows, row: 2 }),
            ..Prompt::default()
        };
        let digest: [u8; 32] = Sha256::digest(&rows[..32]).into();
        let embeds = format!("{:?}", ExtraKey::Embeds(digest));
        let first = r#"Item { identifier: "a", offset: 4 }"#;
        assert_eq!(keys_of(&prompt, 0, 0), [r#"Lora("l")"#, first, r#"Salt("s")"#, &embeds]);
        let second = r#"Item { identifier: "b", offset: 4 }"#;
        assert_eq!(keys_of(&prompt, 0, 1), [r#"Lora("l")"#, second, &embeds]);
        let later = r#"Item { identifier: "b", offset: -12 }"#;
        assert_eq!(keys_of(&prompt, 0, 2), [r#"Lora("l")"#, later, &embeds]);
        let beyond = format!("{:?}", ExtraKey::Embeds(Sha256::digest([]).into()));
        assert_eq!(keys_of(&prompt, 0, 3), [r#"Lora("l")"#, &beyond]);
    }

    #[test]
    fn an_item_in_the_look_ahead_belongs_to_the_block_too() {
        let items = [Item { identifier: "a", offset: 18, length: 1 }];
        let prompt = Prompt { items: &items, ..Prompt::default() };
        assert!(keys_of(&prompt, 2, 0).is_empty());
        assert_eq!(keys_of(&prompt, 3, 0), [r#"Item { identifier: "a", offset: 18 }"#]);
    }

    #[test]
    fn an_empty_salt_is_no_salt() {
        let prompt = Prompt { cache_salt: Some(""), ..Prompt::default() };
        assert!(keys_of(&prompt, 0, 0).is_empty());
    }

    #[derive(Clone, Debug, PartialEq)]
    enum Key {
        Lora(String),
        Item(String, i64),
        Salt(String),
        Embeds([u8; 32]),
    }

    impl Key {
        fn borrow(&self) -> ExtraKey<'_> {
            match self {
                Key::Lora(name) => ExtraKey::Lora(name),
                Key::Item(identifier, offset) => ExtraKey::Item { identifier, offset: *offset },
                Key::Salt(salt) => ExtraKey::Salt(salt),
                Key::Embeds(digest) => ExtraKey::Embeds(*digest),
            }
        }
    }

    fn extras() -> impl Strategy<Value = (Vec<u32>, Vec<Key>)> {
        let text = || "[lise\\x00\\x01]{0,3}";
        let key = prop_oneof![
            text().prop_map(Key::Lora),
            (text(), 0_i64..3).prop_map(|(text, offset)| Key::Item(text, offset)),
            text().prop_map(Key::Salt),
            any::<bool>().prop_map(|b| Key::Embeds([u8::from(b); 32])),
        ];
        (prop::collection::vec(0_u32..2, 0..4), prop::collection::vec(key, 0..3))
    }

    proptest! {
        #[test]
        fn different_extras_never_encode_to_the_same_bytes(a in extras(), b in extras()) {
            let bytes = |(lookahead, keys): &(Vec<u32>, Vec<Key>)| {
                encoded(lookahead, &keys.iter().map(Key::borrow).collect::<Vec<_>>())
            };
            prop_assert_eq!(a == b, bytes(&a) == bytes(&b));
        }
    }
}
