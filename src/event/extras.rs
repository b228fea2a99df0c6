//! The extra keys of an event's blocks, in normal form.
//!
//! vLLM 0.17 and later list, for each hash, what identifies the block besides its tokens: nil, or
//! an untagged array `[adapter name, items.., salt, digest of embeddings]`. Which string is which
//! follows from the order alone, so a list is read only where it has one reading; any other block
//! is [`BlockExtras::Opaque`].

use std::fmt;

use super::Form;
use super::error::{DecodeError, Field};
use super::msgpack::{Reader, Value};
use crate::block::ExtraKey;

/// What an event says about its blocks' extra keys.
#[derive(Clone, Copy, Debug)]
pub enum ExtraKeys<'a> {
    /// Nothing: vLLM before 0.17, SGLang's arrays, SGLang's maps without salt and adapter (0.5.20
    /// does not tell adapters), placeholders of offloaded blocks. The blocks may have extra keys
    /// nevertheless.
    Hidden,
    /// The extra keys of each block.
    Listed(Listed<'a>),
}

/// The extra keys of each block, still in the payload.
#[derive(Clone, Copy)]
pub struct Listed<'a> {
    source: Source<'a>,
    adapter: Adapter<'a>,
    /// Number of the event's hashes.
    blocks: usize,
    /// Whether the event's first block is the first of a prompt.
    starts_prompt: bool,
    /// Whether the sender may be vLLM 0.17 or 0.18, which write an item as a plain string.
    bare_items: bool,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    /// vLLM's `extra_keys`; the reader is at the first block's entry.
    List(Reader<'a>),
    /// SGLang's fields, which hold for the whole event.
    Salt(Option<&'a str>),
    /// The event contradicts itself.
    Unreadable,
}

/// The adapter an event is about.
#[derive(Clone, Copy)]
enum Adapter<'a> {
    None,
    Named(&'a str),
    /// Known by its number only; blocks carry its name.
    Nameless,
}

/// The extra keys of one block.
#[derive(Clone, Copy, Debug)]
pub enum BlockExtras<'a> {
    /// The block has none.
    Plain,
    /// These, in normal order.
    Keys(BlockKeys<'a>),
    /// The block has some that cannot be read without a guess. It must not be matched by content.
    Opaque,
}

/// The facts of an event that decide how its extra keys read.
pub(super) struct Facts<'a> {
    /// The reader is at the array's first element.
    pub(super) list: Option<(Reader<'a>, usize)>,
    pub(super) blocks: usize,
    pub(super) starts_prompt: bool,
    pub(super) lora_id: Option<i64>,
    pub(super) lora_name: Option<&'a str>,
    pub(super) cache_salt: Option<&'a str>,
    /// Whether the event has a field that SGLang's lack.
    pub(super) is_vllm: bool,
    pub(super) form: Form,
}

impl<'a> ExtraKeys<'a> {
    pub(super) fn new(facts: Facts<'a>) -> ExtraKeys<'a> {
        let source = match facts.list {
            // No engine sends both, so both together have no known reading.
            Some(_) if facts.cache_salt.is_some() => Source::Unreadable,
            Some((list, len)) if len == facts.blocks => Source::List(list),
            Some(_) => Source::Unreadable,
            None if facts.cache_salt.is_some() => Source::Salt(facts.cache_salt),
            None if facts.form == Form::Map && facts.lora_name.is_some() && !facts.is_vllm => {
                Source::Salt(None)
            }
            None => return ExtraKeys::Hidden,
        };
        let adapter = match (facts.lora_name, facts.lora_id) {
            (Some(name), _) => Adapter::Named(name),
            // vLLM refuses adapters numbered below 1; publishers that translate other engines'
            // events write 0 for none.
            (None, None | Some(0)) => Adapter::None,
            (None, Some(_)) => Adapter::Nameless,
        };
        ExtraKeys::Listed(Listed {
            source,
            adapter,
            blocks: facts.blocks,
            starts_prompt: facts.starts_prompt,
            // 0.20 is the first version with 10 fields; 0.19, too, has 9.
            bare_items: matches!(facts.form, Form::Array(..=9)),
        })
    }

    /// Passes the field's value and keeps where its elements start.
    pub(super) fn read(
        reader: &mut Reader<'a>,
        max_depth: u32,
    ) -> Result<(Reader<'a>, usize), DecodeError> {
        let len = reader.array_of(Field::ExtraKeys)?;
        let list = *reader;
        for _ in 0..len {
            reader.skip(max_depth)?;
        }
        Ok((list, len))
    }
}

impl<'a> Listed<'a> {
    /// How many blocks there are: as many as the event has hashes.
    pub fn len(&self) -> usize {
        self.blocks
    }

    /// Whether there are no blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Whether every block is [`BlockExtras::Plain`]; may be `false` although they are, where that
    /// is not plain to see.
    pub(crate) fn all_plain(&self) -> bool {
        let Source::List(list) = self.source else { return false };
        matches!(self.adapter, Adapter::None) && list.has_nils(self.blocks)
    }

    /// The extra keys of each block, in the order of the hashes.
    pub fn iter(&self) -> ExtrasIter<'a> {
        ExtrasIter { listed: *self, next: 0 }
    }
}

impl<'a> IntoIterator for Listed<'a> {
    type Item = BlockExtras<'a>;
    type IntoIter = ExtrasIter<'a>;

    fn into_iter(self) -> ExtrasIter<'a> {
        self.iter()
    }
}

/// Iterator over [`Listed`].
#[derive(Clone, Debug)]
pub struct ExtrasIter<'a> {
    listed: Listed<'a>,
    next: usize,
}

impl<'a> Iterator for ExtrasIter<'a> {
    type Item = BlockExtras<'a>;

    fn next(&mut self) -> Option<BlockExtras<'a>> {
        let listed = &mut self.listed;
        if self.next == listed.blocks {
            return None;
        }
        let first = listed.starts_prompt && self.next == 0;
        self.next += 1;
        Some(match &mut listed.source {
            Source::List(entries) => {
                let mut entry = *entries;
                // Decoding has passed every entry before.
                let passed = entries.pass_over();
                debug_assert!(passed.is_ok(), "entries were passed when the event was decoded");
                read_entry(&mut entry, listed.adapter, first, listed.bare_items)
                    .unwrap_or(BlockExtras::Opaque)
            }
            Source::Salt(salt) => {
                let salt = salt.filter(|s| first && !s.is_empty());
                match listed.adapter {
                    Adapter::None => BlockKeys::of(None, salt),
                    Adapter::Named(name) => BlockKeys::of(Some(name), salt),
                    Adapter::Nameless => BlockExtras::Opaque,
                }
            }
            Source::Unreadable => BlockExtras::Opaque,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.listed.blocks - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for ExtrasIter<'_> {}

/// The one reading of a block's entry, or `None`.
fn read_entry<'a>(
    entry: &mut Reader<'a>,
    adapter: Adapter<'a>,
    first: bool,
    bare_items: bool,
) -> Option<BlockExtras<'a>> {
    let mut left = match entry.value().ok()? {
        Value::Nil => 0,
        Value::Array(len) => len,
        _ => return None,
    };
    let lora = match adapter {
        Adapter::None => None,
        Adapter::Nameless => return None,
        // Every block of an adapter's request carries its name, and it comes first.
        Adapter::Named(name) => {
            left = left.checked_sub(1)?;
            match entry.value().ok()? {
                Value::Str(bytes) if bytes == name.as_bytes() => Some(name),
                _ => return None,
            }
        }
    };
    let keys = BlockKeys { lora, salt: None, rest: Some(*entry), left };

    // What comes next may only move forward in the normal order.
    let mut last_item = None;
    let mut salted = false;
    for n in (0..left).rev() {
        match key(entry)? {
            ExtraKey::Item { offset, .. } => {
                if salted || last_item.is_some_and(|last| offset < last) {
                    return None;
                }
                last_item = Some(offset);
            }
            // Only a prompt's first block is salted. A string elsewhere is an item without its
            // place, and where the sender may write items so, one on a first block may be either.
            ExtraKey::Salt(salt) => {
                let maybe_item = bare_items && last_item.is_none();
                if !first || salted || maybe_item || salt.is_empty() {
                    return None;
                }
                salted = true;
            }
            ExtraKey::Embeds(digest) => {
                if n != 0 || digest.len() != 32 {
                    return None;
                }
            }
            ExtraKey::Lora(_) => return None,
        }
    }
    Some(if lora.is_none() && left == 0 { BlockExtras::Plain } else { BlockExtras::Keys(keys) })
}

/// The next element of an entry after the adapter, by its type alone.
fn key<'a>(entry: &mut Reader<'a>) -> Option<ExtraKey<'a>> {
    let text = |bytes| str::from_utf8(bytes).ok();
    match entry.value().ok()? {
        Value::Str(salt) => text(salt).map(ExtraKey::Salt),
        Value::Bin(digest) => digest.try_into().ok().map(ExtraKey::Embeds),
        Value::Array(2) => {
            let Value::Str(identifier) = entry.value().ok()? else { return None };
            let offset = match entry.value().ok()? {
                Value::Unsigned(offset) => i64::try_from(offset).ok()?,
                Value::Negative(offset) => offset,
                _ => return None,
            };
            text(identifier).map(|identifier| ExtraKey::Item { identifier, offset })
        }
        _ => None,
    }
}

/// Iterator over the extra keys of one block, in the order of [`ExtraKey`].
#[derive(Clone, Copy)]
pub struct BlockKeys<'a> {
    lora: Option<&'a str>,
    /// The entry after the adapter; it was read once before.
    rest: Option<Reader<'a>>,
    /// Elements of `rest` still to come.
    left: usize,
    salt: Option<&'a str>,
}

impl<'a> BlockKeys<'a> {
    fn of(lora: Option<&'a str>, salt: Option<&'a str>) -> BlockExtras<'a> {
        if lora.is_none() && salt.is_none() {
            return BlockExtras::Plain;
        }
        BlockExtras::Keys(BlockKeys { lora, rest: None, left: 0, salt })
    }
}

impl<'a> Iterator for BlockKeys<'a> {
    type Item = ExtraKey<'a>;

    fn next(&mut self) -> Option<ExtraKey<'a>> {
        if let Some(name) = self.lora.take() {
            return Some(ExtraKey::Lora(name));
        }
        if let (Some(rest), Some(left)) = (&mut self.rest, self.left.checked_sub(1)) {
            self.left = left;
            return key(rest);
        }
        self.salt.take().map(ExtraKey::Salt)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = usize::from(self.lora.is_some()) + self.left + usize::from(self.salt.is_some());
        (n, Some(n))
    }
}

impl ExactSizeIterator for BlockKeys<'_> {}

/// Shows how many, never which: salts are secrets.
impl fmt::Debug for BlockKeys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockKeys").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Shows how many, never which: salts are secrets.
impl fmt::Debug for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed").field("len", &self.blocks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::event::{Batch, Event, Limits};

    /// The extra keys of the event's blocks as text, one string for each block.
    fn read(event: &Json) -> Vec<String> {
        let payload = rmp_serde::to_vec(&json!([0.0, [event], 0])).unwrap();
        decode(&payload)
    }

    fn decode(payload: &[u8]) -> Vec<String> {
        let batch = Batch::parse(payload, &Limits::default()).unwrap();
        let Some(Ok(Event::Stored(stored))) = batch.events().next() else { panic!("no store") };
        let ExtraKeys::Listed(listed) = stored.extra_keys else { return vec!["hidden".into()] };
        assert_eq!(listed.iter().len(), stored.names.len());
        listed
            .iter()
            .map(|block| match block {
                BlockExtras::Plain => "plain".into(),
                BlockExtras::Opaque => "opaque".into(),
                BlockExtras::Keys(keys) => keys.map(text).collect::<Vec<_>>().join(" "),
            })
            .collect()
    }

    fn text(key: ExtraKey<'_>) -> String {
        match key {
            // Its `Debug` hides it.
            ExtraKey::Salt(salt) => format!("Salt({salt:?})"),
            key => format!("{key:?}"),
        }
    }

    /// An event of vLLM 0.24 or later about as many blocks as there are entries.
    fn vllm(parent: Option<u64>, lora: Option<&str>, extra_keys: &Json) -> Vec<String> {
        let blocks = extra_keys.as_array().unwrap().len();
        read(&json!({
            "type": "BlockStored", "block_hashes": vec![1; blocks], "parent_block_hash": parent,
            "token_ids": [], "block_size": 4, "lora_id": lora.map(|_| 1), "lora_name": lora,
            "extra_keys": extra_keys,
        }))
    }

    /// An event of vLLM 0.17 to 0.19 that starts a prompt, with one block.
    fn array_of_nine(extra_keys: &Json) -> String {
        read(&json!(["BlockStored", [1], null, [], 4, null, "GPU", null, [extra_keys]])).remove(0)
    }

    #[test]
    fn a_list_is_read_in_the_order_that_vllm_writes() {
        let keys = json!([["l", ["a", -3], ["b", 2], "s"], ["l", ["b", -2]], ["l"]]);
        let item = |id: &str, offset| format!("Item {{ identifier: {id:?}, offset: {offset} }}");
        assert_eq!(
            vllm(None, Some("l"), &keys),
            [
                format!("Lora(\"l\") {} {} Salt(\"s\")", item("a", -3), item("b", 2)),
                format!("Lora(\"l\") {}", item("b", -2)),
                "Lora(\"l\")".into(),
            ]
        );
        assert_eq!(vllm(None, None, &json!([["s"], null, []])), ["Salt(\"s\")", "plain", "plain"]);
    }

    #[test]
    fn a_digest_of_embeddings_has_32_bytes_and_comes_last() {
        let event = |digest: &[u8], tail: &[u8]| {
            let mut payload =
                b"\x92\0\x91\x99\xabBlockStored\x91\x01\xc0\x90\x04\xc0\xc0\xc0\x91".to_vec();
            payload.extend([0x91 + u8::from(!tail.is_empty()), 0xc4, digest.len() as u8]);
            payload.extend(digest);
            payload.extend(tail);
            decode(&payload).remove(0)
        };
        assert_eq!(event(&[1; 32], &[]), format!("Embeds({:?})", [1; 32]));
        assert_eq!(event(&[1; 31], &[]), "opaque");
        assert_eq!(event(&[1; 32], &[0x92, 0xa1, b'a', 0]), "opaque");
    }

    #[test]
    fn a_list_with_two_readings_is_opaque() {
        let cases = [
            // A string that is no salt: vLLM 0.17 and 0.18 write items without their place.
            (Some(1), None, json!(["s"])),
            (None, None, json!(["a", "s"])),
            // Out of order.
            (None, None, json!(["s", ["a", 0]])),
            (None, None, json!([["b", 2], ["a", 1]])),
            // The adapter is missing, another one, or not announced.
            (None, Some("l"), json!(null)),
            (None, Some("l"), json!(["m"])),
            (Some(1), None, json!(["l"])),
            // Of unknown shape.
            (None, None, json!([["a"]])),
            (None, None, json!([["a", 0, 0]])),
            (None, None, json!([["a", "b"]])),
            (None, None, json!([[0, 0]])),
            (None, None, json!([["a", u64::MAX]])),
            (None, None, json!([1])),
            (None, None, json!([null])),
            (None, None, json!([""])),
            (None, None, json!({"a": 1})),
            (None, None, json!("s")),
        ];
        for (parent, lora, entry) in cases {
            // The next block is found all the same.
            let after = lora.map_or(json!(null), |l| json!([l]));
            let blocks = vllm(parent, lora, &json!([entry, after]));
            assert_eq!(blocks[0], "opaque", "{entry}");
            assert_ne!(blocks[1], "opaque", "{entry}");
        }
    }

    #[test]
    fn a_list_of_another_length_than_the_hashes_is_opaque() {
        let event = json!(["BlockStored", [1, 2], null, [], 4, null, null, null, [null], 0]);
        assert_eq!(read(&event), ["opaque", "opaque"]);
    }

    #[test]
    fn an_adapter_known_by_its_number_only_is_opaque_and_number_0_is_none() {
        let event = |id| json!(["BlockStored", [1], null, [], 4, id, null, null, [null], 0]);
        assert_eq!(read(&event(7)), ["opaque"]);
        assert_eq!(read(&event(0)), ["plain"]);
    }

    #[test]
    fn nine_fields_may_come_from_a_version_whose_items_look_like_salts() {
        assert_eq!(array_of_nine(&json!(["s"])), "opaque");
        assert_eq!(array_of_nine(&json!(null)), "plain");
        // An item with its place proves 0.19.
        let proven = array_of_nine(&json!([["a", 0], "s"]));
        assert_eq!(proven, "Item { identifier: \"a\", offset: 0 } Salt(\"s\")");
    }

    #[test]
    fn sglang_salts_the_first_block_of_a_prompt_and_adapts_all() {
        let event = |parent: Option<i64>, more: Json| {
            let mut event = json!({
                "type": "BlockStored", "block_hashes": [-5, 6], "parent_block_hash": parent,
                "token_ids": [1, 2], "block_size": 1, "lora_id": null, "medium": "GPU",
            });
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(&event)
        };
        assert_eq!(event(None, json!({})), ["hidden"]);
        assert_eq!(event(None, json!({"cache_salt": "s"})), ["Salt(\"s\")", "plain"]);
        assert_eq!(event(Some(-7), json!({"cache_salt": "s"})), ["plain", "plain"]);
        assert_eq!(
            event(None, json!({"cache_salt": "s", "lora_name": "l"})),
            ["Lora(\"l\") Salt(\"s\")", "Lora(\"l\")"]
        );
        assert_eq!(event(Some(1), json!({"lora_name": "l"})), ["Lora(\"l\")", "Lora(\"l\")"]);
        // vLLM's maps name the group, and leave extra keys out only where they do not know them.
        assert_eq!(event(None, json!({"lora_name": "l", "group_idx": 0})), ["hidden"]);
        // Both engines' ways at once are no engine's.
        let both = json!({"cache_salt": "s", "extra_keys": [null, null]});
        assert_eq!(event(None, both), ["opaque", "opaque"]);
    }

    #[test]
    fn events_without_extra_keys_are_told_at_a_glance() {
        let glance = |keys: Json, more: Json| {
            let mut event = json!({
                "type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": null,
                "token_ids": [1, 2], "block_size": 1, "group_idx": 0, "extra_keys": keys,
            });
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let payload = rmp_serde::to_vec(&json!([0, [event]])).unwrap();
            let batch = Batch::parse(&payload, &Limits::default()).unwrap();
            let event = batch.events().next().unwrap().unwrap();
            let Event::Stored(stored) = event else { panic!("no store") };
            let ExtraKeys::Listed(listed) = stored.extra_keys else { panic!("hidden") };
            let plain = listed.iter().all(|block| matches!(block, BlockExtras::Plain));
            assert!(plain || !listed.all_plain());
            (listed.all_plain(), plain)
        };
        assert_eq!(glance(json!([null, null]), json!({})), (true, true));
        assert_eq!(glance(json!([null, null]), json!({"lora_id": 0})), (true, true));
        assert_eq!(glance(json!([null, []]), json!({})), (false, true));
        assert_eq!(glance(json!([["s"], null]), json!({})), (false, false));
        assert_eq!(glance(json!([null]), json!({})), (false, false));
        assert_eq!(glance(json!([null, null]), json!({"lora_name": "l"})), (false, false));
        assert_eq!(glance(json!([null, null]), json!({"lora_id": 7})), (false, false));
        assert_eq!(glance(json!([null, null]), json!({"cache_salt": "s"})), (false, false));
    }

    #[test]
    fn debugging_shows_no_salt() {
        let event = json!({
            "type": "BlockStored", "block_hashes": [1], "parent_block_hash": null,
            "token_ids": [4711], "block_size": 1, "cache_salt": "secret",
        });
        let payload = rmp_serde::to_vec(&json!([0, [event]])).unwrap();
        let batch = Batch::parse(&payload, &Limits::default()).unwrap();
        let event = batch.events().next().unwrap().unwrap();
        let Event::Stored(stored) = event else { panic!("no store") };
        let ExtraKeys::Listed(listed) = stored.extra_keys else { panic!("hidden") };
        let blocks: Vec<_> = listed.iter().collect();
        let shown = format!("{batch:?} {event:?} {listed:?} {blocks:?}");
        assert!(!shown.contains("secret") && !shown.contains("4711"), "{shown}");
    }
}
