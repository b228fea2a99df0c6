//! A body, field by field: each error names its field, and none repeats a value, which could be a salt
//! or a token.
//!
//! Whatever a body came as, it is read as a JSON object and, for lists of numbers, as their bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use kvscout::block::{BlockSize, Name, TokenId};
use kvscout::ingest::zmq::Endpoint;
use kvscout::scout::Registration;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::packed;
use super::query::parameters;
use super::refusal::HttpError;
use crate::auth::Leave;

const U32: &str = "an integer from 0 to 4294967295";
const U64: &str = "an integer from 0 to 18446744073709551615";
const I64: &str = "an integer of 64 bits";
/// Bytes of a name that a registration leaves here; the longest paths that models are served under fit.
const LONGEST_NAME: usize = 1024;
const SIZE: &str = "a number of tokens from 1";

/// The expectations that a number may meet.
const NUMBERS: [&str; 4] = [U32, U64, I64, SIZE];

/// The parameters of a binary body that may be given several times.
const LISTS: [&str; 2] = ["candidates", "labels"];

/// What a request brought.
#[derive(Debug, Default)]
pub(super) struct Body {
    json: Vec<u8>,
    /// What came as bytes, and what of it belongs to which field.
    bytes: Vec<u8>,
    binaries: Vec<(String, Range<usize>)>,
    /// The only tenant that it may name.
    tenant: Option<Arc<str>>,
}

impl Body {
    /// A JSON object.
    pub(super) fn json(json: Vec<u8>) -> Body {
        Body { json, ..Body::default() }
    }

    /// A msgpack map.
    pub(super) fn msgpack(bytes: Vec<u8>) -> Result<Body, HttpError> {
        let packed::Unpacked { json, binaries } =
            packed::unpack(&bytes).map_err(|wrong| HttpError::no_msgpack(&wrong))?;
        Ok(Body { json, bytes, binaries, tenant: None })
    }

    /// Token ids, and the other fields in the part of the address after the question mark.
    pub(super) fn tokens(bytes: Vec<u8>, query: &str) -> Result<Body, HttpError> {
        let mut fields = parameters(query, &LISTS)?;
        if fields.contains_key("token_ids") {
            return Err(HttpError::field("token_ids", "the body is these; give them once"));
        }
        if let Some(rank) = fields.get_mut("rank")
            && let Some(Ok(number)) = rank.as_str().map(str::parse::<u32>)
        {
            *rank = number.into();
        }
        let json = serde_json::to_vec(&fields).unwrap_or_default();
        let binaries = vec![("token_ids".to_owned(), 0..bytes.len())];
        Ok(Body { json, bytes, binaries, tenant: None })
    }

    /// The same of a caller with this leave.
    pub(super) fn of(self, leave: &Leave) -> Body {
        Body { tenant: leave.tenant.clone(), ..self }
    }

    /// Its fields.
    pub(super) fn fields(&self) -> Result<Fields<'_>, HttpError> {
        let mut fields = Fields::parse(&self.json)?;
        fields.tenant = self.tenant.as_deref();
        let binary =
            |(name, place): &(String, Range<usize>)| (name.clone(), &self.bytes[place.clone()]);
        fields.binaries = self.binaries.iter().map(binary).collect();
        Ok(fields)
    }
}

/// The fields of a JSON object; what is null is not there.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    /// The place of the object within the body, with a dot behind; empty for the body itself.
    within: String,
    fields: BTreeMap<Cow<'a, str>, &'a RawValue>,
    binaries: BTreeMap<String, &'a [u8]>,
    /// The only tenant that they may name.
    tenant: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// The fields of a JSON object.
    fn parse(body: &'a [u8]) -> Result<Fields<'a>, HttpError> {
        let fields = serde_json::from_slice(body).map_err(|error| match error.classify() {
            // It is JSON so far, but of another kind.
            Category::Data => HttpError::no_object(kind(body.trim_ascii_start())),
            _ => HttpError::no_json(&error),
        })?;
        let (within, binaries) = (String::new(), BTreeMap::new());
        Ok(Fields { within, fields, binaries, tenant: None }.without_nulls())
    }

    /// An object within these.
    fn inner(&self, value: &'a RawValue, within: String) -> Result<Fields<'a>, HttpError> {
        match serde_json::from_str(value.get()) {
            Ok(fields) => {
                let (within, binaries) = (format!("{within}."), BTreeMap::new());
                Ok(Fields { within, fields, binaries, tenant: self.tenant }.without_nulls())
            }
            Err(_) => Err(wrong(within, "an object", value)),
        }
    }

    fn without_nulls(mut self) -> Fields<'a> {
        self.fields.retain(|_, value| value.get() != "null");
        self
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.within)
    }

    /// Whether the field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name) || self.binaries.contains_key(name)
    }

    /// Refuses fields other than these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), HttpError> {
        let names = self.fields.keys().map(|name| &**name);
        let mut names = names.chain(self.binaries.keys().map(String::as_str));
        match names.find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) => Err(HttpError::field(
                self.path(name),
                format!("not known here; there are {}", known.join(", ")),
            )),
        }
    }

    fn get<T: Deserialize<'a>>(&self, name: &str, expected: &str) -> Result<Option<T>, HttpError> {
        let Some(value) = self.fields.get(name) else {
            return match self.binaries.contains_key(name) {
                true => Err(binary(self.path(name), expected)),
                false => Ok(None),
            };
        };
        match serde_json::from_str(value.get()) {
            Ok(found) => Ok(Some(found)),
            Err(_) => Err(wrong(self.path(name), expected, value)),
        }
    }

    fn missing(&self, name: &str, expected: &str) -> HttpError {
        HttpError::field(self.path(name), format!("missing; expected {expected}"))
    }

    /// A text; an empty one counts as absent.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, HttpError> {
        let text: Option<String> = self.get(name, "a text")?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The tenant of this name; the default one if there is none. A caller that is bound to a tenant may name no other,
    /// and learns nothing of any.
    pub(super) fn tenant(&self, name: &str) -> Result<String, HttpError> {
        let tenant = self.text(name)?;
        let tenant = tenant.unwrap_or_else(|| Registration::DEFAULT_TENANT.to_owned());
        match self.tenant {
            Some(only) if only != tenant => Err(HttpError::other_tenant(self.path(name))),
            _ => Ok(tenant),
        }
    }

    /// The tenant of this name; if there is none, the one that the caller is bound to, or all.
    pub(super) fn tenant_or_all(&self, name: &str) -> Result<Option<String>, HttpError> {
        match self.text(name)? {
            Some(_) => self.tenant(name).map(Some),
            None => Ok(self.tenant.map(str::to_owned)),
        }
    }

    /// A text that must be there.
    pub(super) fn required_text(&self, name: &str) -> Result<String, HttpError> {
        self.text(name)?.ok_or_else(|| self.missing(name, "a text that is not empty"))
    }

    /// A text that must be there and is kept: it has a bound.
    pub(super) fn required_name(&self, name: &str) -> Result<String, HttpError> {
        self.name(name)?.ok_or_else(|| self.missing(name, "a text that is not empty"))
    }

    /// A text that is kept.
    pub(super) fn name(&self, name: &str) -> Result<Option<String>, HttpError> {
        let text = self.text(name)?;
        text.map(|text| self.bounded(name, text)).transpose()
    }

    /// Refuses a text that is too long to be kept.
    pub(super) fn bounded(&self, name: &str, text: String) -> Result<String, HttpError> {
        if text.len() <= LONGEST_NAME {
            return Ok(text);
        }
        let wrong = format!("{} bytes; expected {LONGEST_NAME} at most", text.len());
        Err(HttpError::field(self.path(name), wrong))
    }

    /// A text that must be there and may be empty.
    pub(super) fn whole_text(&self, name: &str) -> Result<String, HttpError> {
        self.get(name, "a text")?.ok_or_else(|| self.missing(name, "a text"))
    }

    /// True or false.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, HttpError> {
        self.get(name, "true or false")
    }

    /// Refuses what is there and is no list.
    pub(super) fn is_list(&self, name: &str) -> Result<(), HttpError> {
        self.get::<Vec<&'a RawValue>>(name, "a list").map(drop)
    }

    /// The object of these fields alone, those that are there, as they came.
    pub(super) fn json_of(&self, names: &[&str]) -> Result<String, HttpError> {
        let mut json = String::from("{");
        for name in names {
            let Some(value) = self.get::<&'a RawValue>(name, "JSON")? else { continue };
            let comma = if json.len() > 1 { "," } else { "" };
            json += &format!("{comma}\"{name}\":{}", value.get());
        }
        json.push('}');
        Ok(json)
    }

    /// A number that fits 32 bits.
    pub(super) fn u32(&self, name: &str) -> Result<Option<u32>, HttpError> {
        self.get(name, U32)
    }

    /// A number that fits 32 bits and must be there.
    pub(super) fn required_u32(&self, name: &str) -> Result<u32, HttpError> {
        let number = self.u32(name)?;
        number.ok_or_else(|| self.missing(name, U32))
    }

    /// A number that fits 64 bits and must be there.
    pub(super) fn required_u64(&self, name: &str) -> Result<u64, HttpError> {
        self.get(name, U64)?.ok_or_else(|| self.missing(name, U64))
    }

    /// A signed number.
    pub(super) fn i64(&self, name: &str) -> Result<Option<i64>, HttpError> {
        self.get(name, I64)
    }

    /// A block size.
    pub(super) fn block_size(&self, name: &str) -> Result<Option<BlockSize>, HttpError> {
        let Some(tokens) = self.get(name, SIZE)? else { return Ok(None) };
        let size = BlockSize::new(tokens);
        let none = || HttpError::field(self.path(name), "0 is no block size; at least 1 token");
        size.map(Some).ok_or_else(none)
    }

    /// A block size that must be there.
    pub(super) fn required_block_size(&self, name: &str) -> Result<BlockSize, HttpError> {
        let size = self.block_size(name)?;
        size.ok_or_else(|| self.missing(name, SIZE))
    }

    /// An endpoint on the network: files of this machine are for its operator to name, not for
    /// everyone who reaches us.
    pub(super) fn endpoint(&self, name: &str) -> Result<Option<Endpoint>, HttpError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let wrong = |why: &str| HttpError::field(self.path(name), why);
        if !text.starts_with("tcp://") {
            return Err(wrong(&format!("endpoint {text:?}: expected tcp://host:port")));
        }
        text.parse().map(Some).map_err(|error: kvscout::Error| wrong(&error.to_string()))
    }

    /// An endpoint that must be there and can be dialled.
    pub(super) fn required_endpoint(&self, name: &str) -> Result<Endpoint, HttpError> {
        let endpoint = self.endpoint(name)?;
        let endpoint = endpoint.ok_or_else(|| self.missing(name, "tcp://host:port"))?;
        if endpoint.is_connectable() {
            return Ok(endpoint);
        }
        let wrong = format!("{endpoint} cannot be dialled; name host and port");
        Err(HttpError::field(self.path(name), wrong))
    }

    /// The token ids of a prompt: a list, or their bytes, four for each, the least first.
    pub(super) fn tokens(&self, name: &str) -> Result<Vec<TokenId>, HttpError> {
        let Some(bytes) = self.binaries.get(name) else { return self.list(name, U32) };
        let (words, rest) = bytes.as_chunks::<4>();
        if rest.is_empty() {
            return Ok(words.iter().map(|word| TokenId::from_le_bytes(*word)).collect());
        }
        let wrong = format!("expected four bytes for each token, found {} bytes", bytes.len());
        Err(HttpError::field(self.path(name), wrong))
    }

    /// The names of a prompt's blocks: unsigned, or signed with the same bits.
    pub(super) fn names(&self, name: &str) -> Result<Vec<Name>, HttpError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Hash {
            Unsigned(u64),
            Signed(i64),
        }
        let hashes: Vec<Hash> = self.list(name, I64)?;
        let name = |hash| match hash {
            Hash::Unsigned(hash) => Name(hash),
            Hash::Signed(hash) => Name::from(hash),
        };
        Ok(hashes.into_iter().map(name).collect())
    }

    /// A list that must be there.
    fn list<T: Deserialize<'a>>(&self, name: &str, expected: &str) -> Result<Vec<T>, HttpError> {
        let missing = || self.missing(name, &format!("a list, each {expected}"));
        if self.binaries.contains_key(name) {
            return Err(binary(self.path(name), "a list"));
        }
        let value = self.fields.get(name).ok_or_else(missing)?;
        if let Ok(list) = serde_json::from_str(value.get()) {
            return Ok(list);
        }
        // Read again, slowly, to find the first element that is wrong.
        let path = self.path(name);
        let Ok(elements) = serde_json::from_str::<Vec<&'a RawValue>>(value.get()) else {
            return Err(wrong(path, "a list", value));
        };
        let bad = |value: &&'a RawValue| serde_json::from_str::<T>(value.get()).is_err();
        match elements.iter().position(bad) {
            Some(index) => {
                let found = found_for(expected, elements[index]);
                Err(HttpError::element(
                    &path,
                    index,
                    &format!("expected {expected}, found {found}"),
                ))
            }
            None => Err(wrong(path, "a list", value)),
        }
    }

    /// The elements of a list of objects, if it is there; other elements come as `Err`.
    pub(super) fn objects(
        &self,
        name: &str,
    ) -> Result<Option<Vec<Result<Fields<'a>, String>>>, HttpError> {
        let Some(values) = self.get::<Vec<&'a RawValue>>(name, "a list")? else { return Ok(None) };
        let path = self.path(name);
        let element = |(n, value): (usize, &'a RawValue)| {
            let at = format!("{path}[{n}]");
            match serde_json::from_str::<String>(value.get()) {
                Ok(text) => Ok(Err(text)),
                Err(_) => self.inner(value, at).map(Ok),
            }
        };
        values.into_iter().enumerate().map(element).collect::<Result<_, _>>().map(Some)
    }

    /// Names with the values that each may have, if they are there: an object of texts or lists of
    /// texts, or a list of texts such as `name=value`.
    pub(super) fn choices(&self, name: &str) -> Result<Option<Vec<(String, String)>>, HttpError> {
        const EXPECTED: &str = "an object of texts or lists of texts";
        let Some(value) = self.get::<&'a RawValue>(name, EXPECTED)? else { return Ok(None) };
        let mut pairs = Vec::new();
        if let Ok(texts) = serde_json::from_str::<Vec<String>>(value.get()) {
            for (n, text) in texts.iter().enumerate() {
                let wrong = || HttpError::element(&self.path(name), n, "expected name=value");
                let (name, value) = text.split_once('=').ok_or_else(wrong)?;
                pairs.push((name.to_owned(), value.to_owned()));
            }
            return Ok(Some(pairs));
        }
        let inner = self.inner(value, self.path(name))?;
        for (name, value) in &inner.fields {
            match serde_json::from_str::<Vec<String>>(value.get()) {
                Ok(values) => {
                    pairs.extend(values.into_iter().map(|value| (name.to_string(), value)))
                }
                Err(_) => {
                    let value = inner.get(name, "a text or a list of texts")?;
                    pairs.extend(value.map(|value| (name.to_string(), value)));
                }
            }
        }
        Ok(Some(pairs))
    }

    /// The name of a field with its place within the body.
    pub(super) fn place(&self, name: &str) -> String {
        self.path(name)
    }

    /// An object of texts, if it is there.
    pub(super) fn texts(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, HttpError> {
        let Some(value) = self.get::<&'a RawValue>(name, "an object of texts")? else {
            return Ok(None);
        };
        let inner = self.inner(value, self.path(name))?;
        let names = inner.fields.keys().map(|name| name.to_string());
        let text = |name: String| {
            let text = inner.get::<String>(&name, "a text")?;
            Ok(text.map(|text| (name, text)))
        };
        names.filter_map(|name| text(name).transpose()).collect::<Result<_, _>>().map(Some)
    }

    /// An object, if it is there.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, HttpError> {
        let value = self.get::<&'a RawValue>(name, "an object")?;
        value.map(|value| self.inner(value, self.path(name))).transpose()
    }

    /// An object or a text, if it is there.
    pub(super) fn object_or_text(
        &self,
        name: &str,
    ) -> Result<Option<Result<Fields<'a>, String>>, HttpError> {
        let Some(value) = self.get::<&'a RawValue>(name, "an object or a text")? else {
            return Ok(None);
        };
        match serde_json::from_str::<String>(value.get()) {
            Ok(text) => Ok(Some(Err(text))),
            Err(_) => self.inner(value, self.path(name)).map(|fields| Some(Ok(fields))),
        }
    }
}

fn binary(path: String, expected: &str) -> HttpError {
    HttpError::field(path, format!("expected {expected}, found bytes"))
}

fn wrong(path: String, expected: &str, found: &RawValue) -> HttpError {
    HttpError::field(path, format!("expected {expected}, found {}", found_for(expected, found)))
}

/// What a value is beside what was expected: of a number, where one was, what is wrong with it.
fn found_for(expected: &str, found: &RawValue) -> &'static str {
    let text = found.get();
    match kind(text.as_bytes()) {
        "a number" if !NUMBERS.contains(&expected) => "a number",
        "a number" if text.contains(['.', 'e', 'E']) => "a number that is no integer",
        "a number" if text.starts_with('-') => "a negative number",
        "a number" => "a number out of range",
        other => other,
    }
}

/// What a value is, without saying what it says.
fn kind(json: &[u8]) -> &'static str {
    match json.first() {
        Some(b'"') => "a text",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of<T>(body: &str, read: impl Fn(&Fields<'_>) -> Result<T, HttpError>) -> String {
        let fields = Fields::parse(body.as_bytes()).unwrap();
        let error = read(&fields).err().expect("an error");
        serde_json::to_value(&error).unwrap()["error"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_wrong_token_is_named_by_its_place_and_never_repeated() {
        for (token, found) in [
            ("4294967296", "a number out of range"),
            ("-5", "a negative number"),
            ("1.5", "a number that is no integer"),
            ("\"77777\"", "a text"),
            ("null", "null"),
        ] {
            let body = format!("{{\"token_ids\":[1,{token}]}}");
            let error = error_of(&body, |fields| fields.tokens("token_ids"));
            let expected = "expected an integer from 0 to 4294967295";
            assert_eq!(error, format!("field 'token_ids', element 1: {expected}, found {found}"));
        }
    }

    #[test]
    fn a_wrong_salt_is_not_repeated() {
        let error = error_of("{\"cache_salt\":12345}", |fields| fields.text("cache_salt"));
        assert_eq!(error, "field 'cache_salt': expected a text, found a number");
    }

    #[test]
    fn what_is_wrong_with_a_number_is_said_where_one_is_expected() {
        let text = |body: &str| error_of(body, |fields| fields.text("a"));
        for number in ["5", "-5", "0.5"] {
            let error = text(&format!("{{\"a\":{number}}}"));
            assert_eq!(error, "field 'a': expected a text, found a number");
        }
        let error = error_of("{\"a\":4294967296}", |fields| fields.u32("a"));
        assert!(error.ends_with("found a number out of range"), "{error}");
        let error = error_of("{\"a\":-1}", |fields| fields.block_size("a"));
        assert!(error.ends_with("found a negative number"), "{error}");
        let error = error_of("{\"a\":7}", |fields| fields.tokens("a"));
        assert!(error.ends_with("expected a list, found a number"), "{error}");
    }

    #[test]
    fn only_endpoints_on_the_network_are_taken() {
        for text in ["ipc:///run/vllm.sock", "inproc://a", "pod:1", "TCP://pod:1"] {
            let body = format!("{{\"endpoint\":\"{text}\"}}");
            let error = error_of(&body, |fields| fields.required_endpoint("endpoint"));
            assert!(error.contains(text) && error.contains("tcp://host:port"), "{error}");
        }
    }

    #[test]
    fn fields_within_a_list_are_named_with_their_place() {
        let body = "{\"mm\":[{\"offset\":1},{\"offset\":-1}]}";
        let error = error_of(body, |fields| {
            let items = fields.objects("mm")?.unwrap();
            items[1].as_ref().unwrap().u32("offset")
        });
        assert!(error.starts_with("field 'mm[1].offset': expected an integer"), "{error}");
    }

    #[test]
    fn a_body_that_is_no_object_is_refused_with_its_kind_or_position() {
        for (body, said) in [
            ("[]", "expected an object, found a list"),
            (" [1]", "expected an object, found a list"),
            ("5", "expected an object, found a number"),
            ("\"{}\"", "expected an object, found a text"),
            ("null", "expected an object, found null"),
            ("", "broken at line 1, column 0"),
            ("{", "broken at line 1, column 1"),
            ("{\"a\":}", "broken at line 1, column 6"),
            ("nonsense", "broken at line 1, column 2"),
        ] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            let error = serde_json::to_value(&error).unwrap();
            assert_eq!(error["reason"], "invalid_json");
            assert!(error["error"].as_str().unwrap().contains(said), "{body}: {error}");
        }
    }

    #[test]
    fn tokens_in_bytes_have_four_each() {
        let body = Body::tokens(vec![1, 2, 0, 0, 255, 255, 255, 255], "model=m&labels=a").unwrap();
        let fields = body.fields().unwrap();
        assert_eq!(fields.tokens("token_ids").unwrap(), [513, u32::MAX]);
        assert_eq!(fields.text("model").unwrap().as_deref(), Some("m"));
        assert!(fields.has("token_ids") && fields.only(&["model", "labels"]).is_err());
        let body = Body::msgpack(b"\x81\xa9token_ids\xc4\x05\x01\0\0\0\0".to_vec()).unwrap();
        let fields = body.fields().unwrap();
        for error in [
            fields.tokens("token_ids").unwrap_err(),
            fields.text("token_ids").unwrap_err(),
            fields.names("token_ids").unwrap_err(),
        ] {
            assert_eq!(serde_json::to_value(&error).unwrap()["field"], "token_ids");
        }
    }

    #[test]
    fn hashes_may_be_signed() {
        let fields = Fields::parse(b"{\"h\":[18446744073709551615,-1]}").unwrap();
        assert_eq!(fields.names("h").unwrap(), [Name(u64::MAX), Name(u64::MAX)]);
    }
}
