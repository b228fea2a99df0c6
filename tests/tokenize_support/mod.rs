//! The small tokenizers and the chats of `tests/vectors/tokenize`.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvscout::tokenize::{Options, Tokenizer};

/// Every tokenizer there is a folder of.
pub(crate) const TOKENIZERS: [&str; 5] = ["llama3", "gpt2", "prepend", "metaspace", "unigram"];

/// The moment that `scripts/tokenize-vectors` takes for the present.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_772_874_303)
}

pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/tokenize").join(name)
}

pub(crate) fn load(name: &str, options: Options) -> Tokenizer {
    let options = Options { now: Some(now()), ..options };
    Tokenizer::load(name, folder(name).to_str().unwrap(), options).unwrap()
}

/// The lines of the chats as they are written: their order of keys is part of the prompt.
pub(crate) fn chats() -> Vec<String> {
    let text = std::fs::read_to_string(folder("chats.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}
