//! The events of a KV cache pool (Mooncake's RFC 1527; its master and others publish them): maps with
//! the tag under `event_type`.
//!
//! A pool knows names and media. What it says beyond that has several readings, so little of it is
//! believed:
//!
//! - A nil `parent_hash` is a prompt's first block or a parent that is not known, and `base_block_idx`
//!   0 stands for both; extra keys of requests are not told. So blocks are known by name only, and
//!   tokens are passed over.
//! - `group_id` is a cache group where it is a number (parts of object keys are strings), otherwise a
//!   name of the pool's own.
//! - `tenant_id` and `model_name` make an event somebody else's, never the listener's: see [`Origin`].
//!
//! The same map may hold an engine's fields, too (`type`, `block_hashes`), for readers that know no
//! others; they say the same again.

use super::error::{DecodeError, DecodeErrorKind, Field};
use super::extras::{ExtraKeys, Facts};
use super::fields::wrong_type;
use super::hashes::{Hash, Hashes};
use super::medium::tier;
use super::msgpack::{Reader, Value};
use super::tokens::Tokens;
use super::vllm::{duplicate, key, missing};
use super::{Cleared, Event, Form, Limits, Origin, Removed, Stored};
use crate::block::Group;

/// `event_type`.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Stored,
    Removed,
    Cleared,
}

impl Kind {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Kind, DecodeError> {
        let at = reader.at();
        match reader.string(Field::EventType)? {
            b"stored" => Ok(Kind::Stored),
            b"removed" => Ok(Kind::Removed),
            b"cleared" => Ok(Kind::Cleared),
            _ => Err(DecodeError { at, kind: DecodeErrorKind::UnknownEvent }),
        }
    }
}

/// The field with this name, or `None` for one that is ignored.
fn field(name: &[u8]) -> Option<Field> {
    Some(match name {
        b"event_type" => Field::EventType,
        b"seq_hashes" => Field::SeqHashes,
        b"parent_hash" => Field::ParentHash,
        b"block_size" => Field::BlockSize,
        b"lora_name" => Field::LoraName,
        b"medium" => Field::Medium,
        b"group_id" => Field::GroupId,
        b"tenant_id" => Field::TenantId,
        b"model_name" => Field::ModelName,
        _ => return None,
    })
}

/// What was read of an event so far.
#[derive(Default)]
struct Fields<'a> {
    /// One bit for each [`Field`].
    seen: u32,
    names: Option<Hashes<'a>>,
    parent: Option<Hash<'a>>,
    block_size: u32,
    lora_name: Option<&'a str>,
    medium: Option<&'a [u8]>,
    group: u32,
    tenant: Option<&'a str>,
    model: Option<&'a str>,
}

/// Decodes the rest of a map whose tag was found.
#[cold]
pub(super) fn event<'a>(
    at: usize,
    len: usize,
    kind: Kind,
    reader: &mut Reader<'a>,
    limits: &Limits,
) -> Result<Event<'a>, DecodeError> {
    let none = Tokens::none(reader);
    let mut fields = Fields::default();
    for _ in 0..len {
        let key_at = reader.at();
        let known = match key(reader, limits)? {
            Value::Str(name) => field(name),
            _ => None,
        };
        match known {
            Some(field) if fields.seen & 1 << field as u32 != 0 => {
                return Err(duplicate(key_at, field));
            }
            Some(field) => fields.read(field, reader, limits)?,
            None => reader.skip(limits.max_depth)?,
        }
    }
    let Fields { medium, group, tenant, model, .. } = fields;
    let origin = Origin::Pool { tenant, model };
    let names = fields.names.ok_or_else(|| missing(at, Field::SeqHashes));
    let group = Group(group);
    Ok(match kind {
        Kind::Cleared => {
            let tier = medium.is_some().then(|| tier(medium, None));
            Event::Cleared(Cleared { tier, origin })
        }
        Kind::Removed => {
            Event::Removed(Removed { names: names?, tier: tier(medium, None), group, origin })
        }
        Kind::Stored => {
            let names = names?;
            let extra_keys = ExtraKeys::new(Facts {
                list: None,
                blocks: names.len(),
                starts_prompt: false,
                lora_id: None,
                lora_name: fields.lora_name,
                cache_salt: None,
                is_vllm: false,
                form: Form::Map,
            });
            Event::Stored(Stored {
                names,
                parent: fields.parent,
                tokens: none,
                block_size: fields.block_size,
                lora_id: None,
                lora_name: fields.lora_name,
                tier: tier(medium, None),
                extra_keys,
                group,
                kind: None,
                window: None,
                cache_salt: None,
                lookahead: None,
                origin,
                form: Form::Map,
            })
        }
    })
}

impl<'a> Fields<'a> {
    fn read(
        &mut self,
        field: Field,
        reader: &mut Reader<'a>,
        limits: &Limits,
    ) -> Result<(), DecodeError> {
        self.seen |= 1 << field as u32;
        match field {
            Field::SeqHashes => self.names = Some(Hashes::read(reader, field, limits)?),
            Field::ParentHash => self.parent = reader.optional(|r| Hash::read(r, field))?,
            Field::BlockSize => {
                let size = reader.optional(|r| r.up_to(super::vllm::MAX_BLOCK_SIZE, field))?;
                self.block_size = size.unwrap_or(0);
            }
            Field::LoraName => self.lora_name = reader.optional(|r| r.text(field))?,
            Field::Medium => self.medium = reader.optional(|r| r.string(field))?,
            Field::GroupId => self.group = group(reader)?,
            Field::TenantId => self.tenant = reader.optional(|r| r.text(field))?,
            Field::ModelName => self.model = reader.optional(|r| r.text(field))?,
            _ => reader.skip(limits.max_depth)?,
        }
        Ok(())
    }
}

/// A number as such or as text; what else a pool calls its groups is none of an engine's.
fn group(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let at = reader.at();
    match reader.value()? {
        Value::Nil => Ok(0),
        Value::Str(text) => {
            Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
        }
        Value::Unsigned(value) => u32::try_from(value).map_err(|_| {
            let kind = DecodeErrorKind::TooLarge { field: Field::GroupId, value };
            DecodeError { at, kind }
        }),
        other => Err(wrong_type(at, Field::GroupId, other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::block::{Name, Tier};
    use crate::event::Batch;

    fn decoded<T>(event: Json, look: impl FnOnce(Result<Event<'_>, DecodeErrorKind>) -> T) -> T {
        let payload = rmp_serde::to_vec(&json!([1_700_000_000_000_u64, [event], 0])).unwrap();
        let batch = Batch::parse(&payload, &Limits::default()).unwrap();
        look(batch.events().next().unwrap().map_err(|error| error.kind))
    }

    #[test]
    fn a_pools_blocks_have_names_and_a_medium_and_no_content() {
        let event = json!({
            "event_type": "stored", "seq_hashes": [7, 8], "parent_hash": 6, "base_block_idx": 3,
            "token_ids": [1, 2, 3, 4], "block_size": 2, "medium": "disk", "group_id": "2",
            "additional_salt": "s", "lora_name": "l", "tenant_id": "t", "model_name": "m",
            "dp_rank": 0, "connector_block_hash": "07", "later": {"x": [1]},
        });
        decoded(event, |event| {
            let Ok(Event::Stored(stored)) = event else { panic!("{event:?}") };
            assert_eq!(stored.names.names().collect::<Vec<_>>(), [Name(7), Name(8)]);
            assert_eq!(stored.parent.map(|hash| hash.name()), Some(Name(6)));
            assert!(stored.tokens.is_empty());
            assert_eq!((stored.tier, stored.group, stored.block_size), (Tier::Disk, Group(2), 2));
            assert_eq!(stored.lora_name, Some("l"));
            assert_eq!(stored.origin, Origin::Pool { tenant: Some("t"), model: Some("m") });
        });
    }

    #[test]
    fn an_engines_fields_beside_a_pools_say_nothing_more() {
        let event = json!({
            "event_type": "removed", "type": "BlockRemoved", "seq_hashes": [7],
            "block_hashes": [-9], "medium": null, "group_id": "sglang-hicache:ab",
        });
        decoded(event, |event| {
            let Ok(Event::Removed(removed)) = event else { panic!("{event:?}") };
            assert_eq!(removed.names.names().collect::<Vec<_>>(), [Name(7)]);
            assert_eq!((removed.tier, removed.group), (Tier::Gpu, Group(0)));
            assert_eq!(removed.origin, Origin::Pool { tenant: None, model: None });
        });
    }

    #[test]
    fn a_clear_without_a_medium_names_no_tier() {
        for (medium, tier) in [(json!(null), None), (json!("cpu"), Some(Tier::Cpu))] {
            decoded(json!({"medium": medium, "event_type": "cleared"}), |event| {
                let Ok(Event::Cleared(cleared)) = event else { panic!("{event:?}") };
                assert_eq!(cleared.tier, tier);
            });
        }
    }

    #[test]
    fn what_is_no_event_of_a_pool_is_refused_with_the_fields_own_name() {
        let with = |field: &str, value: Json| {
            let mut event = json!({"event_type": "stored", "seq_hashes": [7]});
            event[field] = value;
            decoded(event, |event| event.err().unwrap())
        };
        assert_eq!(with("event_type", json!("moved")), DecodeErrorKind::UnknownEvent);
        assert_eq!(with("seq_hashes", json!(["07"])), DecodeErrorKind::TextHash);
        for (name, value, field) in [
            ("seq_hashes", json!(7), Field::SeqHashes),
            ("parent_hash", json!(1.5), Field::ParentHash),
            ("group_id", json!(-1), Field::GroupId),
            ("tenant_id", json!(1), Field::TenantId),
            ("model_name", json!([]), Field::ModelName),
        ] {
            let kind = with(name, value);
            let named = |f: Field| f == field && f.as_str() == name;
            assert!(
                matches!(kind, DecodeErrorKind::WrongType { field, .. } if named(field)),
                "{kind:?}"
            );
        }
        let kind = decoded(json!({"event_type": "stored"}), |event| event.err().unwrap());
        assert_eq!(kind, DecodeErrorKind::Missing { field: Field::SeqHashes });
    }
}
