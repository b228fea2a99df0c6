//! `kvscout hash`: the block hashes that an engine would give a request.
//!
//! JSON lines in, JSON lines out, in order. A line that cannot be answered gives an error of its
//! own and stops no other.

use std::io::{self, BufRead, Read, Write};

use kvscout::block::{BlockSize, Item, Lora, Prompt, Shape, TokenId};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Longest line that is read; a prompt of a million tokens takes a tenth of it.
const LINE_MAX: u64 = 64 << 20;

/// Answers every line of `input` on `output`. True if all lines could be answered.
///
/// Blank lines are passed over.
pub(crate) fn run(mut input: impl BufRead, mut output: impl Write) -> io::Result<bool> {
    let mut all = true;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line)? == 0 {
            output.flush()?;
            return Ok(all);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let answer = if line.len() as u64 > LINE_MAX && !line.ends_with(b"\n") {
            skip_line(&mut input)?;
            Err(format!("the line is longer than {LINE_MAX} bytes"))
        } else {
            answer(&line)
        };
        match answer {
            Ok(answer) => serde_json::to_writer(&mut output, &answer)?,
            Err(message) => {
                all = false;
                serde_json::to_writer(&mut output, &json!({ "error": message }))?;
            }
        }
        output.write_all(b"\n")?;
    }
}

/// What a line that can be answered gets.
#[derive(Serialize)]
struct Answer {
    /// Hex, or decimal where hashes are integers.
    hashes: Vec<String>,
    /// The integers that events carry, as decimal text.
    events: Vec<Option<String>>,
    /// Whether the version is newer than any that was checked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    assumed: bool,
}

/// Reads up to the next line's begin, in pieces.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let piece = input.fill_buf()?;
        let end = piece.iter().position(|&byte| byte == b'\n');
        let (length, found) = match end {
            Some(end) => (end + 1, true),
            None => (piece.len(), piece.is_empty()),
        };
        input.consume(length);
        if found {
            return Ok(());
        }
    }
}

fn answer(line: &[u8]) -> Result<Answer, String> {
    let request: Value = serde_json::from_slice(line).map_err(|e| format!("no JSON: {e}"))?;
    let fields = Fields::new(
        "",
        &request,
        &[
            "algorithm",
            "vllm",
            "seed",
            "none_hash",
            "block_size",
            "token_ids",
            "lora",
            "cache_salt",
            "mm",
            "lookahead",
        ],
    )?;
    let contract = contract(&fields)?;
    let size = fields.u32("block_size")?.ok_or_else(|| fields.missing("block_size"))?;
    let shape = Shape {
        size: BlockSize::new(size).ok_or("`block_size` is 0; it is at least 1")?,
        lookahead: fields.u32("lookahead")?.unwrap_or(0),
    };
    let token_ids = token_ids(&fields)?;
    let items = items(&fields)?;
    let prompt = Prompt {
        token_ids: &token_ids,
        lora: lora(&fields)?,
        cache_salt: fields.text("cache_salt")?,
        items: &items,
        embeds: None,
    };
    let mut chain = contract.chain(shape, &prompt).map_err(|e| e.to_string())?;

    let mut answer = Answer { hashes: vec![], events: vec![], assumed: contract.assumed() };
    for hash in chain.extend(&token_ids) {
        answer.hashes.push(hash.to_string());
        answer.events.push(hash.event().map(|event| event.to_string()));
    }
    Ok(answer)
}

fn contract(fields: &Fields<'_>) -> Result<Contract, String> {
    let algorithm = fields.text("algorithm")?.ok_or_else(|| fields.missing("algorithm"))?;
    let algorithm: Algorithm = algorithm.parse().map_err(|e| format!("`algorithm`: {e}"))?;
    let version = match fields.text("vllm")? {
        Some(version) => version.parse().map_err(|e| format!("`vllm`: {e}"))?,
        None => Version::NEWEST,
    };
    let (root, field) = match (fields.text("seed")?, fields.text("none_hash")?) {
        (Some(_), Some(_)) => {
            return Err("`seed` and `none_hash` are both given; one of them decides".to_owned());
        }
        (None, Some(hash)) => (Root::Hash(hash), "`none_hash`: "),
        (Some(seed), None) => (Root::Seed(seed), ""),
        (None, None) => (Root::Unset, ""),
    };
    Contract::new(version, algorithm, root).map_err(|e| match version.cmp(&Version::OLDEST) {
        std::cmp::Ordering::Less => format!("`vllm`: {e}"),
        _ if !algorithm.exists_in(version) => format!("`algorithm`: {e}"),
        _ if root == Root::Unset => format!("`seed`: {e}"),
        _ => format!("{field}{e}"),
    })
}

fn token_ids(fields: &Fields<'_>) -> Result<Vec<TokenId>, String> {
    let ids = fields.list("token_ids")?.ok_or_else(|| fields.missing("token_ids"))?;
    let id = |(place, id): (usize, &Value)| {
        id.as_u64().and_then(|id| TokenId::try_from(id).ok()).ok_or_else(|| {
            format!("`token_ids[{place}]` is no token id; ids are integers from 0 to {}", u32::MAX)
        })
    };
    ids.iter().enumerate().map(id).collect()
}

fn lora<'a>(fields: &Fields<'a>) -> Result<Option<Lora<'a>>, String> {
    let Some(lora) = fields.get("lora") else { return Ok(None) };
    let fields = Fields::new("lora", lora, &["name", "id", "path"])?;
    Ok(Some(Lora {
        name: fields.text("name")?.ok_or_else(|| fields.missing("name"))?,
        id: match fields.get("id") {
            None => None,
            Some(id) => {
                Some(id.as_i64().ok_or_else(|| fields.wrong("id", "an integer of 64 bits"))?)
            }
        },
        path: fields.text("path")?,
    }))
}

fn items<'a>(fields: &Fields<'a>) -> Result<Vec<Item<'a>>, String> {
    let items = fields.list("mm")?.unwrap_or(&[]);
    let item = |(place, item): (usize, &'a Value)| {
        let fields = Fields::new(&format!("mm[{place}]"), item, &["hash", "offset", "length"])?;
        Ok(Item {
            identifier: fields.text("hash")?.ok_or_else(|| fields.missing("hash"))?,
            offset: fields.u32("offset")?.ok_or_else(|| fields.missing("offset"))?,
            length: fields.u32("length")?.ok_or_else(|| fields.missing("length"))?,
        })
    };
    items.iter().enumerate().map(item).collect()
}

/// An object whose fields are all known; null counts as absent.
struct Fields<'a> {
    /// Where the object stands in the line; empty for the line itself.
    place: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(place: &str, value: &'a Value, known: &[&str]) -> Result<Fields<'a>, String> {
        let object = value.as_object().ok_or_else(|| match place {
            "" => "the line is no JSON object".to_owned(),
            _ => format!("`{place}` is no object with {}", known.join(", ")),
        })?;
        let fields = Fields { place: place.to_owned(), object };
        match object.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                Err(format!("{} is no field; these are: {}", fields.path(name), known.join(", ")))
            }
            None => Ok(fields),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, String> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(name, "a string"));
        self.get(name).map(text).transpose()
    }

    fn u32(&self, name: &str) -> Result<Option<u32>, String> {
        let number = |value: &Value| {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| self.wrong(name, "an integer from 0 to 4294967295"))
        };
        self.get(name).map(number).transpose()
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

    fn missing(&self, name: &str) -> String {
        format!("{} is missing", self.path(name))
    }

    fn path(&self, name: &str) -> String {
        match self.place.as_str() {
            "" => format!("`{name}`"),
            place => format!("`{place}.{name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> (bool, Vec<Value>) {
        let mut output = Vec::new();
        let all = run(input, &mut output).unwrap();
        let parse = |line: &[u8]| serde_json::from_slice(line).unwrap();
        (all, output.split(|&b| b == b'\n').filter(|line| !line.is_empty()).map(parse).collect())
    }

    #[test]
    fn a_line_beyond_the_bound_is_refused_and_the_next_one_answered() {
        let good = br#"{"algorithm":"sha256","block_size":1,"token_ids":[]}"#;
        let mut input = vec![b' '; LINE_MAX as usize + 10];
        input[0] = b'[';
        input.push(b'\n');
        input.extend(good);
        let (all, answers) = lines(&input);
        assert!(!all);
        assert_eq!(answers.len(), 2);
        assert!(answers[0]["error"].as_str().unwrap().contains("67108864 bytes"));
        assert_eq!(answers[1], json!({ "hashes": [], "events": [] }));
    }

    #[test]
    fn blank_lines_have_no_answer() {
        assert_eq!(lines(b"\n  \r\n"), (true, vec![]));
    }
}
