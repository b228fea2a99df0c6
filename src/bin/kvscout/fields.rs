//! The fields of a JSON line: each error names its field and what would be right, and none repeats
//! a value, which could be a salt or a token.

use kvscout::block::{BlockSize, Item, Lora, TokenId};
use serde_json::{Map, Value};

/// An object; null counts as absent.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// Where the object stands in the line; empty for the line itself.
    place: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The fields of a line.
    pub(crate) fn new(line: &'a Value) -> Result<Fields<'a>, String> {
        match line.as_object() {
            Some(object) => Ok(Fields { place: String::new(), object }),
            None => Err("the line is no JSON object".to_owned()),
        }
    }

    fn inner(place: String, value: &'a Value, known: &[&str]) -> Result<Fields<'a>, String> {
        let wrong = || format!("`{place}` is no object with {}", known.join(", "));
        let object = value.as_object().ok_or_else(wrong)?;
        let fields = Fields { place, object };
        fields.only(known)?;
        Ok(fields)
    }

    /// Refuses fields other than these.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.object.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                Err(format!("{} is no field; these are: {}", self.path(name), known.join(", ")))
            }
            None => Ok(()),
        }
    }

    /// A value of any kind.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(name, "a string"));
        self.get(name).map(text).transpose()
    }

    /// A string that must be there.
    pub(crate) fn required_text(&self, name: &str) -> Result<&'a str, String> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    /// A number that fits 32 bits.
    pub(crate) fn u32(&self, name: &str) -> Result<Option<u32>, String> {
        let number = |value: &Value| {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| self.wrong(name, "an integer from 0 to 4294967295"))
        };
        self.get(name).map(number).transpose()
    }

    /// A number that fits 64 bits and must be there.
    pub(crate) fn required_u64(&self, name: &str) -> Result<u64, String> {
        let value = self.get(name).ok_or_else(|| self.missing(name))?;
        let wrong = || self.wrong(name, "an integer from 0 to 18446744073709551615");
        value.as_u64().ok_or_else(wrong)
    }

    /// A block size.
    pub(crate) fn block_size(&self, name: &str) -> Result<Option<BlockSize>, String> {
        let Some(tokens) = self.u32(name)? else { return Ok(None) };
        let none = || format!("{} is 0; it is at least 1", self.path(name));
        BlockSize::new(tokens).map(Some).ok_or_else(none)
    }

    /// `token_ids`, which must be there.
    pub(crate) fn token_ids(&self) -> Result<Vec<TokenId>, String> {
        let ids = self.list("token_ids")?.ok_or_else(|| self.missing("token_ids"))?;
        let id = |(place, id): (usize, &Value)| {
            id.as_u64().and_then(|id| TokenId::try_from(id).ok()).ok_or_else(|| {
                let max = TokenId::MAX;
                format!("`token_ids[{place}]` is no token id; ids are integers from 0 to {max}")
            })
        };
        ids.iter().enumerate().map(id).collect()
    }

    /// `lora`.
    pub(crate) fn lora(&self) -> Result<Option<Lora<'a>>, String> {
        let Some(lora) = self.get("lora") else { return Ok(None) };
        let fields = Fields::inner("lora".to_owned(), lora, &["name", "id", "path"])?;
        let id =
            |id: &Value| id.as_i64().ok_or_else(|| fields.wrong("id", "an integer of 64 bits"));
        Ok(Some(Lora {
            name: fields.required_text("name")?,
            id: fields.get("id").map(id).transpose()?,
            path: fields.text("path")?,
        }))
    }

    /// `mm`.
    pub(crate) fn items(&self) -> Result<Vec<Item<'a>>, String> {
        let items = self.list("mm")?.unwrap_or(&[]);
        let item = |(place, item): (usize, &'a Value)| {
            let fields =
                Fields::inner(format!("mm[{place}]"), item, &["hash", "offset", "length"])?;
            Ok(Item {
                identifier: fields.required_text("hash")?,
                offset: fields.u32("offset")?.ok_or_else(|| fields.missing("offset"))?,
                length: fields.u32("length")?.ok_or_else(|| fields.missing("length"))?,
            })
        };
        items.iter().enumerate().map(item).collect()
    }

    fn list(&self, name: &str) -> Result<Option<&'a [Value]>, String> {
        let list = |value: &'a Value| {
            value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(name, "a list"))
        };
        self.get(name).map(list).transpose()
    }

    fn wrong(&self, name: &str, right: &str) -> String {
        format!("{} is not {right}", self.path(name))
    }

    /// What to say when a field that must be there is not.
    pub(crate) fn missing(&self, name: &str) -> String {
        format!("{} is missing", self.path(name))
    }

    fn path(&self, name: &str) -> String {
        match self.place.as_str() {
            "" => format!("`{name}`"),
            place => format!("`{place}.{name}`"),
        }
    }
}
