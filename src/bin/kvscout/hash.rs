//! `kvscout hash`: the block hashes that an engine would give a request.
//!
//! JSON lines in, JSON lines out, in order. A line that cannot be answered gives an error of its
//! own and stops no other.

use std::io::{self, BufRead, Write};

use kvscout::block::{Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use serde::Serialize;
use serde_json::{Value, json};

use crate::fields::Fields;
use crate::lines::Lines;

/// Answers every line of `input` on `output`. True if all lines could be answered.
///
/// Blank lines are passed over.
pub(crate) fn run(input: impl BufRead, mut output: impl Write) -> io::Result<bool> {
    let mut all = true;
    let mut lines = Lines::new(input);
    while let Some((_, line)) = lines.next()? {
        match line.and_then(answer) {
            Ok(answer) => serde_json::to_writer(&mut output, &answer)?,
            Err(message) => {
                all = false;
                serde_json::to_writer(&mut output, &json!({ "error": message }))?;
            }
        }
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(all)
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

fn answer(line: &str) -> Result<Answer, String> {
    let request: Value = serde_json::from_str(line).map_err(|e| format!("no JSON: {e}"))?;
    let fields = Fields::new(&request)?;
    fields.only(&[
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
    ])?;
    let contract = contract(&fields)?;
    let shape = Shape {
        size: fields.block_size("block_size")?.ok_or_else(|| fields.missing("block_size"))?,
        lookahead: fields.u32("lookahead")?.unwrap_or(0),
    };
    let token_ids = fields.token_ids()?;
    let items = fields.items()?;
    let prompt = Prompt {
        token_ids: &token_ids,
        lora: fields.lora()?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_text_has_an_error_and_a_blank_one_no_answer() {
        let good = r#"{"algorithm":"sha256","block_size":1,"token_ids":[]}"#;
        let input = [b"\xff\n  \r\n", good.as_bytes()].concat();
        let mut output = Vec::new();
        assert!(!run(&input[..], &mut output).unwrap());
        let lines = str::from_utf8(&output).unwrap().lines();
        let answers: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let wrong = json!({ "error": "byte 0 of the line is no UTF-8" });
        assert_eq!(answers, [wrong, json!({ "hashes": [], "events": [] })]);
    }
}
