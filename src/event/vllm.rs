//! One event, in the forms that vLLM has used; SGLang's are the same with some fields more or less.
//!
//! Up to vLLM 0.23 and SGLang 0.5.16 an event is an array: a tag, then fields by position; since
//! then a map with the tag under `type` and the fields under their names. Storage connectors of
//! llm-d wrap each event in a byte string.

use super::error::{DecodeError, DecodeErrorKind, Field};
use super::extras::{ExtraKeys, Facts};
use super::fields::wrong_type;
use super::hashes::{Hash, Hashes};
use super::medium::tier;
use super::msgpack::{Reader, Value};
use super::tokens::{Lookahead, Tokens};
use super::{Cleared, Event, Form, Limits, Origin, Removed, SpecKind, Stored, rfc1527};
use crate::block::{Group, TokenId};

/// A block of more tokens is no block: hybrid models reach a few thousand.
pub(super) const MAX_BLOCK_SIZE: u32 = 1 << 20;

/// What decoding needs besides the payload.
pub(super) struct Context<'c> {
    pub(super) limits: &'c Limits,
    /// Where token ids are written to while they are checked.
    pub(super) ids: Option<&'c mut Vec<TokenId>>,
}

/// Decodes the next event.
#[inline]
pub(super) fn event<'a>(
    reader: &mut Reader<'a>,
    context: &mut Context<'_>,
) -> Result<Event<'a>, DecodeError> {
    let at = reader.at();
    match reader.value()? {
        Value::Bin(wrapped) => {
            let mut inner = reader.inside(wrapped);
            let at = inner.at();
            let head = inner.value()?;
            let event = unwrapped(at, head, &mut inner, context)?;
            if !inner.is_at_end() {
                let kind = DecodeErrorKind::TrailingBytes;
                return Err(DecodeError { at: inner.at(), kind });
            }
            Ok(event)
        }
        head => unwrapped(at, head, reader, context),
    }
}

#[inline]
fn unwrapped<'a>(
    at: usize,
    head: Value<'a>,
    reader: &mut Reader<'a>,
    context: &mut Context<'_>,
) -> Result<Event<'a>, DecodeError> {
    match head {
        Value::Array(len) => positional(at, len, reader, context),
        Value::Map(len) => keyed(at, len, reader, context),
        other => Err(wrong_type(at, Field::Event, other)),
    }
}

fn positional<'a>(
    at: usize,
    len: usize,
    reader: &mut Reader<'a>,
    context: &mut Context<'_>,
) -> Result<Event<'a>, DecodeError> {
    if len == 0 {
        return Err(missing(at, Field::Type));
    }
    let tag = Tag::read(reader)?;
    let mut fields = Fields::new(at, reader);
    for position in 0..len - 1 {
        match tag.positions().get(position) {
            Some(&field) => fields.read(field, reader, context)?,
            None => reader.skip(context.limits.max_depth)?,
        }
    }
    fields.event(tag, Form::Array(u8::try_from(len).unwrap_or(u8::MAX)))
}

fn keyed<'a>(
    at: usize,
    len: usize,
    reader: &mut Reader<'a>,
    context: &mut Context<'_>,
) -> Result<Event<'a>, DecodeError> {
    let (tag, tag_at) = match tag_of(at, len, *reader, context)? {
        Tagged::Engine(tag, at) => (tag, at),
        Tagged::Pool(kind) => return rfc1527::event(at, len, kind, reader, context.limits),
    };
    let mut fields = Fields::new(at, reader);
    for _ in 0..len {
        let at = reader.at();
        let Value::Str(name) = key(reader, context.limits)? else {
            reader.skip(context.limits.max_depth)?;
            continue;
        };
        match tag.field(name) {
            Some(Field::Type) if at == tag_at => reader.skip(context.limits.max_depth)?,
            Some(Field::Type) => return Err(duplicate(at, Field::Type)),
            Some(field) if fields.has(field) => return Err(duplicate(at, field)),
            Some(field) => fields.read(field, reader, context)?,
            None => reader.skip(context.limits.max_depth)?,
        }
    }
    fields.event(tag, Form::Map)
}

/// Who writes a map, by the key of its tag.
enum Tagged {
    /// `type`, and where that key is.
    Engine(Tag, usize),
    /// `event_type`.
    Pool(rfc1527::Kind),
}

/// The tag of a map, which every encoder writes among the first keys although none has to. Mooncake
/// may write both tags, its own before the engines'.
fn tag_of(
    at: usize,
    len: usize,
    mut reader: Reader<'_>,
    context: &mut Context<'_>,
) -> Result<Tagged, DecodeError> {
    for _ in 0..len {
        let key_at = reader.at();
        match key(&mut reader, context.limits)? {
            Value::Str(b"type") => return Ok(Tagged::Engine(Tag::read(&mut reader)?, key_at)),
            Value::Str(b"event_type") => return rfc1527::Kind::read(&mut reader).map(Tagged::Pool),
            _ => reader.skip(context.limits.max_depth)?,
        }
    }
    Err(missing(at, Field::Type))
}

/// The key of a pair, passed completely. Only strings can be names of fields.
pub(super) fn key<'a>(reader: &mut Reader<'a>, limits: &Limits) -> Result<Value<'a>, DecodeError> {
    if let Some(name) = reader.short_str() {
        return Ok(Value::Str(name));
    }
    let start = *reader;
    let key = reader.value()?;
    if matches!(key, Value::Array(_) | Value::Map(_)) {
        *reader = start;
        reader.skip(limits.max_depth)?;
    }
    Ok(key)
}

#[derive(Clone, Copy)]
enum Tag {
    Stored,
    Removed,
    Cleared,
}

impl Tag {
    fn read(reader: &mut Reader<'_>) -> Result<Tag, DecodeError> {
        let at = reader.at();
        match reader.string(Field::Type)? {
            b"BlockStored" => Ok(Tag::Stored),
            b"BlockRemoved" => Ok(Tag::Removed),
            b"AllBlocksCleared" => Ok(Tag::Cleared),
            _ => Err(DecodeError { at, kind: DecodeErrorKind::UnknownEvent }),
        }
    }

    /// The fields of the array form after the tag. Versions differ in how many they send.
    fn positions(self) -> &'static [Field] {
        match self {
            // 0.9.0 sends 5 of these; 0.10.2, 0.14, 0.17 and 0.20 one more each; 0.22 all.
            Tag::Stored => &[
                Field::BlockHashes,
                Field::ParentBlockHash,
                Field::TokenIds,
                Field::BlockSize,
                Field::LoraId,
                Field::Medium,
                Field::LoraName,
                Field::ExtraKeys,
                Field::GroupIdx,
                Field::SpecKind,
                Field::SlidingWindow,
            ],
            // 0.9.0 sends 1 of these, 0.10.2 2, 0.20 all.
            Tag::Removed => &[Field::BlockHashes, Field::Medium, Field::GroupIdx],
            Tag::Cleared => &[],
        }
    }

    /// The field with this name in the map form, or `None` for one that is ignored: `ownership`,
    /// `session_id` and whatever later versions add.
    fn field(self, name: &[u8]) -> Option<Field> {
        let field = match name {
            b"type" => return Some(Field::Type),
            b"medium" => return Some(Field::Medium),
            b"locality" => return Some(Field::Locality),
            b"block_hashes" => Field::BlockHashes,
            b"group_idx" => Field::GroupIdx,
            b"parent_block_hash" => Field::ParentBlockHash,
            b"token_ids" => Field::TokenIds,
            b"block_size" => Field::BlockSize,
            b"lora_id" => Field::LoraId,
            b"lora_name" => Field::LoraName,
            b"extra_keys" => Field::ExtraKeys,
            b"kv_cache_spec_kind" => Field::SpecKind,
            b"kv_cache_spec_sliding_window" => Field::SlidingWindow,
            b"cache_salt" => Field::CacheSalt,
            b"lookahead_token_ids" => Field::LookaheadTokenIds,
            _ => return None,
        };
        match self {
            Tag::Stored => Some(field),
            Tag::Removed => self.positions().contains(&field).then_some(field),
            Tag::Cleared => None,
        }
    }
}

/// What was read of an event so far.
struct Fields<'a> {
    /// Offset of the event.
    at: usize,
    /// One bit for each [`Field`].
    seen: u32,
    names: Option<Hashes<'a>>,
    parent: Option<Hash<'a>>,
    tokens: Tokens<'a>,
    block_size: u32,
    block_size_at: usize,
    lora_id: Option<i64>,
    lora_name: Option<&'a str>,
    medium: Option<&'a [u8]>,
    locality: Option<&'a [u8]>,
    extra_keys: Option<(Reader<'a>, usize)>,
    group: Option<u32>,
    kind: Option<SpecKind>,
    window: Option<u32>,
    cache_salt: Option<&'a str>,
    lookahead: Option<Lookahead<'a>>,
}

impl<'a> Fields<'a> {
    fn new(at: usize, reader: &Reader<'a>) -> Fields<'a> {
        Fields {
            at,
            seen: 0,
            names: None,
            parent: None,
            tokens: Tokens::none(reader),
            block_size: 0,
            block_size_at: at,
            lora_id: None,
            lora_name: None,
            medium: None,
            locality: None,
            extra_keys: None,
            group: None,
            kind: None,
            window: None,
            cache_salt: None,
            lookahead: None,
        }
    }

    fn has(&self, field: Field) -> bool {
        self.seen & 1 << field as u32 != 0
    }

    fn require(&self, field: Field) -> Result<(), DecodeError> {
        if self.has(field) { Ok(()) } else { Err(missing(self.at, field)) }
    }

    /// Reads the value of a field.
    #[inline]
    fn read(
        &mut self,
        field: Field,
        reader: &mut Reader<'a>,
        context: &mut Context<'_>,
    ) -> Result<(), DecodeError> {
        self.seen |= 1 << field as u32;
        match field {
            Field::BlockHashes => self.names = Some(Hashes::read(reader, field, context.limits)?),
            Field::ParentBlockHash => self.parent = reader.optional(|r| Hash::read(r, field))?,
            Field::TokenIds => {
                self.tokens = match &mut context.ids {
                    Some(ids) => Tokens::read_to(reader, field, ids)?,
                    None => Tokens::read(reader, field)?,
                };
            }
            Field::BlockSize => {
                self.block_size_at = reader.at();
                self.block_size = reader.up_to(MAX_BLOCK_SIZE, field)?;
            }
            Field::LoraId => self.lora_id = reader.optional(|r| r.integer(field))?,
            Field::LoraName => self.lora_name = reader.optional(|r| r.text(field))?,
            Field::Medium => self.medium = reader.optional(|r| r.string(field))?,
            Field::Locality => self.locality = reader.optional(|r| r.string(field))?,
            Field::ExtraKeys => {
                self.extra_keys =
                    reader.optional(|r| ExtraKeys::read(r, context.limits.max_depth))?;
            }
            Field::GroupIdx => self.group = reader.optional(|r| r.up_to(u32::MAX, field))?,
            Field::SpecKind => self.kind = reader.optional(|r| r.string(field))?.map(SpecKind::of),
            Field::SlidingWindow => self.window = reader.optional(|r| r.up_to(u32::MAX, field))?,
            Field::CacheSalt => self.cache_salt = reader.optional(|r| r.text(field))?,
            Field::LookaheadTokenIds => self.lookahead = reader.optional(Lookahead::read)?,
            Field::Batch
            | Field::Timestamp
            | Field::Events
            | Field::DataParallelRank
            | Field::Event
            | Field::Type
            | Field::EventType
            | Field::SeqHashes
            | Field::ParentHash
            | Field::GroupId
            | Field::TenantId
            | Field::ModelName => reader.skip(context.limits.max_depth)?,
        }
        Ok(())
    }

    fn event(self, tag: Tag, form: Form) -> Result<Event<'a>, DecodeError> {
        match tag {
            Tag::Stored => self.stored(form).map(Event::Stored),
            Tag::Removed => self.removed().map(Event::Removed),
            Tag::Cleared => Ok(Event::Cleared(self.cleared())),
        }
    }

    fn stored(self, form: Form) -> Result<Stored<'a>, DecodeError> {
        let names = self.names()?;
        // A missing parent would read as the start of a prompt, so it has to be said.
        self.require(Field::ParentBlockHash)?;
        self.require(Field::TokenIds)?;
        self.require(Field::BlockSize)?;
        if self.block_size == 0 && !self.tokens.is_empty() {
            let kind = DecodeErrorKind::ZeroBlockSize;
            return Err(DecodeError { at: self.block_size_at, kind });
        }
        let extra_keys = ExtraKeys::new(Facts {
            list: self.extra_keys,
            blocks: names.len(),
            starts_prompt: self.parent.is_none(),
            lora_id: self.lora_id,
            lora_name: self.lora_name,
            cache_salt: self.cache_salt,
            is_vllm: self.has(Field::GroupIdx)
                || self.has(Field::SpecKind)
                || self.has(Field::Locality)
                || self.has(Field::ExtraKeys),
            form,
        });
        Ok(Stored {
            names,
            parent: self.parent,
            tokens: self.tokens,
            block_size: self.block_size,
            lora_id: self.lora_id,
            lora_name: self.lora_name,
            tier: tier(self.medium, self.locality),
            extra_keys,
            group: Group(self.group.unwrap_or(0)),
            kind: self.kind,
            window: self.window,
            cache_salt: self.cache_salt,
            lookahead: self.lookahead,
            origin: Origin::Engine,
            form,
        })
    }

    fn removed(self) -> Result<Removed<'a>, DecodeError> {
        Ok(Removed {
            names: self.names()?,
            tier: tier(self.medium, self.locality),
            group: Group(self.group.unwrap_or(0)),
            origin: Origin::Engine,
        })
    }

    /// The engine's own event names no medium and means everything it holds.
    fn cleared(self) -> Cleared<'a> {
        let named = self.medium.is_some() || self.locality.is_some();
        let tier = named.then(|| tier(self.medium, self.locality));
        Cleared { tier, origin: Origin::Engine }
    }

    fn names(&self) -> Result<Hashes<'a>, DecodeError> {
        self.names.ok_or_else(|| missing(self.at, Field::BlockHashes))
    }
}

pub(super) fn missing(at: usize, field: Field) -> DecodeError {
    DecodeError { at, kind: DecodeErrorKind::Missing { field } }
}

pub(super) fn duplicate(at: usize, field: Field) -> DecodeError {
    DecodeError { at, kind: DecodeErrorKind::Duplicate { field } }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::block::Tier;
    use crate::event::Batch;

    fn encode(events: &[Json]) -> Vec<u8> {
        rmp_serde::to_vec(&json!([0.0, events, 0])).unwrap()
    }

    fn decode(payload: &[u8]) -> Vec<Result<Event<'_>, DecodeErrorKind>> {
        let batch = Batch::parse(payload, &Limits::default()).unwrap();
        batch.events().map(|event| event.map_err(|e| e.kind)).collect()
    }

    fn error(event: Json) -> DecodeErrorKind {
        let payload = encode(&[event, json!(["AllBlocksCleared"])]);
        let events = decode(&payload);
        assert!(matches!(events[1], Ok(Event::Cleared(_))), "the next event is lost");
        events[0].err().unwrap()
    }

    fn stored(event: Json, check: impl FnOnce(Stored<'_>)) {
        match decode(&encode(&[event]))[..] {
            [Ok(Event::Stored(stored))] => check(stored),
            ref other => panic!("{other:?}"),
        }
    }

    #[test]
    fn five_fields_are_enough_and_more_than_twelve_are_ignored() {
        stored(json!(["BlockStored", [1], 2, [3], 1]), |s| {
            assert_eq!(s.form, Form::Array(5));
            assert_eq!(s.tier, Tier::Gpu);
            assert_eq!(s.group, Group(0));
        });
        let long = json!([
            "BlockStored", [1], 2, [3], 1, 7, "cpu", "l", null, 4, "mamba", 128, {"x": [1]}, 5,
        ]);
        stored(long, |s| {
            assert_eq!(s.form, Form::Array(14));
            assert_eq!((s.tier, s.group), (Tier::Cpu, Group(4)));
            assert_eq!((s.lora_id, s.lora_name), (Some(7), Some("l")));
            assert_eq!((s.kind, s.window), (Some(SpecKind::Mamba), Some(128)));
        });
        let kind = error(json!(["BlockStored", [1], 2, [3]]));
        assert_eq!(kind, DecodeErrorKind::Missing { field: Field::BlockSize });
    }

    #[test]
    fn a_map_without_a_parent_is_refused_because_it_would_start_a_prompt() {
        let map =
            json!({"type": "BlockStored", "block_hashes": [1], "token_ids": [], "block_size": 0});
        assert_eq!(error(map), DecodeErrorKind::Missing { field: Field::ParentBlockHash });
    }

    #[test]
    fn an_unknown_attention_is_unknown() {
        stored(json!(["BlockStored", [], null, [], 0, 0, null, null, null, 0, "new"]), |s| {
            assert_eq!(s.kind, Some(SpecKind::Unknown));
        });
    }

    #[test]
    fn a_block_size_is_plausible() {
        let with_size = |size: Json| json!(["BlockStored", [1], null, [1], size]);
        let field = Field::BlockSize;
        assert_eq!(error(with_size(json!(0))), DecodeErrorKind::ZeroBlockSize);
        assert_eq!(
            error(with_size(json!(1 << 20 | 1))),
            DecodeErrorKind::TooLarge { field, value: 1 << 20 | 1 }
        );
        for bad in [json!(-1), json!(null), json!(16.0), json!("16")] {
            assert!(matches!(error(with_size(bad)), DecodeErrorKind::WrongType { .. }));
        }
    }

    #[test]
    fn events_of_no_known_kind_are_refused_one_by_one() {
        assert_eq!(error(json!(["BlockMoved", [1]])), DecodeErrorKind::UnknownEvent);
        assert_eq!(error(json!([])), missing(0, Field::Type).kind);
        for bad in [json!(null), json!(5), json!("BlockStored"), json!([1]), json!({"type": 1})] {
            assert!(matches!(error(bad), DecodeErrorKind::WrongType { .. }));
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        // {"type": "AllBlocksCleared", "type": "AllBlocksCleared"}
        let pair = b"\xa4type\xb0AllBlocksCleared";
        let payload = [b"\x92\0\x91\x82", &pair[..], pair].concat();
        let kind = DecodeErrorKind::Duplicate { field: Field::Type };
        assert_eq!(decode(&payload)[0].unwrap_err(), kind);
    }

    #[test]
    fn keys_that_are_no_strings_are_ignored() {
        // {[1]: 2, 3: nil, "type": "AllBlocksCleared"}
        let payload = b"\x92\0\x91\x83\x91\x01\x02\x03\xc0\xa4type\xb0AllBlocksCleared";
        assert!(matches!(decode(payload)[..], [Ok(Event::Cleared(Cleared { tier: None, .. }))]));
    }

    #[test]
    fn a_clear_may_name_its_medium() {
        let payload = encode(&[json!({"type": "AllBlocksCleared", "medium": "CPU"})]);
        let Ok(Event::Cleared(cleared)) = decode(&payload)[0] else { panic!("no clear") };
        assert_eq!(cleared.tier, Some(Tier::Cpu));
    }

    #[test]
    fn an_event_in_a_byte_string_is_unwrapped_once() {
        let clear = b"\x91\xb0AllBlocksCleared";
        let wrap = |inner: &[u8]| [&[0xc4, inner.len() as u8], inner].concat();
        let batch = |event: &[u8]| [b"\x92\0\x91", event].concat();

        assert!(matches!(decode(&batch(&wrap(clear)))[0], Ok(Event::Cleared(_))));
        let twice = batch(&wrap(&wrap(clear)));
        assert!(matches!(decode(&twice)[0], Err(DecodeErrorKind::WrongType { .. })));
        let trailing = batch(&wrap(&[&clear[..], b"\0"].concat()));
        assert_eq!(decode(&trailing)[0].unwrap_err(), DecodeErrorKind::TrailingBytes);

        // A break inside the wrapping is a broken event, not a broken batch; offsets stay those of
        // the payload.
        let cut = [b"\x92\0\x92", &wrap(&clear[..5])[..], clear].concat();
        let batch = Batch::parse(&cut, &Limits::default()).unwrap();
        let events: Vec<_> = batch.events().collect();
        assert_eq!(events[0].unwrap_err().at, 6);
        assert!(matches!(events[1], Ok(Event::Cleared(_))));
    }
}
