//! The small tokenizers and the chats of `tests/vectors/tokenize`.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvscout::tokenize::{Options, Tokenizer};
use serde_json::Value;

/// Every tokenizer there is a folder of.
pub(crate) const TOKENIZERS: [&str; 5] = ["llama3", "gpt2", "prepend", "metaspace", "unigram"];

/// What the engine of `docs/dialects.md` holds the first block of.
pub(crate) const PAGES_TEXT: &str = "How warm is it in Rome, and how warm will it be?";

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

/// A tokenizer's chats as they are written: their order of keys is part of the prompt.
pub(crate) fn chats(name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder(name).join("chats.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The lines of a file of JSON.
pub(crate) fn lines(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Two digits of base 64 for each id.
pub(crate) fn unpacked(packed: &Value) -> Vec<u32> {
    let digit = |c: u8| {
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        digits.iter().position(|d| *d == c).unwrap() as u32
    };
    let packed = packed.as_str().unwrap().as_bytes();
    packed.chunks(2).map(|pair| digit(pair[0]) * 64 + digit(pair[1])).collect()
}
