//! Where a text may be cut so that the ids of the pieces are the ids of the whole.
//!
//! **Before a special token.** A tokenizer looks for its added tokens first, in the raw text, from left to
//! right, the longest of the leftmost; what lies between is tokenized on its own. Say the token T begins at
//! s. The text before s is scanned with the same result when it ends at s: whatever was found there ends at or
//! before s, and a candidate that was passed over began later or was shorter. A text that begins with T is
//! scanned from s on as the whole is. T must not swallow white space to its left (`lstrip`) nor be looked for after
//! normalization (`normalized`), and no token may depend on its neighbour (`single_word`). White space that a token
//! before T swallows (`rstrip`) is no token on either side. The piece begins *with* T, so that rules for
//! the start of a text (`prepend_scheme: first`) meet the special token, as they do in the whole.
//!
//! **Between an ASCII letter and a space**, for byte-level BPE whose pre-tokenizer splits by one of the known
//! patterns: no alternative of them matches a letter followed by a space, every letter is matched by one, and
//! none looks behind, so a match ends there in any text. NFC changes nothing on either side of such a place. Added tokens must not
//! contain a letter and a space, nor reach over the place with `rstrip`, nor ask for their neighbours.
//!
//! Elsewhere, and for tokenizers where neither holds, nothing is cut.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use serde_json::Value;

/// Pieces shorter than this are not worth remembering one by one.
const SHORT: usize = 128;
/// A piece longer than this is cut inside a message too.
const LONG: usize = 1024;

/// Alternatives of the split patterns of GPT-2, GPT-4, Llama 3, Qwen and their like. None matches an
/// ASCII letter that is followed by a space; those in `LETTERS` match any ASCII letter.
const LETTERS: [&str; 5] = [
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
];
const OTHERS: [&str; 22] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"'(?i:[sdmt]|ll|ve|re)",
    r"'s",
    r"'t",
    r"'re",
    r"'ve",
    r"'m",
    r"'ll",
    r"'d",
    r" ?\p{N}+",
    r"\p{N}{1,3}",
    r"\p{N}{1,3}+",
    r"\p{N}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{N}]+",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s+",
];

/// The rules of one tokenizer.
#[derive(Debug)]
pub(super) struct Cuts {
    /// Finds added tokens as the tokenizer does; the pattern's number is an index of `tokens`.
    scan: Option<AhoCorasick>,
    tokens: Vec<Added>,
    words: bool,
}

#[derive(Clone, Copy, Debug)]
struct Added {
    cut_before: bool,
    single_word: bool,
}

impl Cuts {
    /// Reads the rules off a `tokenizer.json`.
    pub(super) fn new(json: &Value) -> Cuts {
        let none = Cuts { scan: None, tokens: Vec::new(), words: false };
        let empty = Vec::new();
        let added = json["added_tokens"].as_array().unwrap_or(&empty);
        let flag = |token: &Value, key: &str| token[key].as_bool().unwrap_or(false);
        let in_the_way = |token: &Value| {
            let text = token["content"].as_str().unwrap_or("");
            flag(token, "single_word")
                || text.as_bytes().windows(2).any(is_letter_and_space)
                || (flag(token, "rstrip") && text.ends_with(|c: char| c.is_ascii_alphabetic()))
        };
        let words = splits_at_words(json) && !added.iter().any(in_the_way);
        let raw: Vec<&Value> = added
            .iter()
            .filter(|token| !flag(token, "normalized"))
            .filter(|token| token["content"].as_str().is_some_and(|text| !text.is_empty()))
            .collect();
        let tokens: Vec<Added> = raw
            .iter()
            .map(|token| Added {
                cut_before: !flag(token, "lstrip") && !flag(token, "single_word"),
                single_word: flag(token, "single_word"),
            })
            .collect();
        // Whether such a token counts depends on what stands behind it, which a cut would hide.
        if tokens.iter().any(|token| token.single_word) {
            return none;
        }
        let scan = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(raw.iter().filter_map(|token| token["content"].as_str()));
        match scan {
            Ok(scan) if !tokens.is_empty() => Cuts { scan: Some(scan), tokens, words },
            _ => Cuts { words, ..none },
        }
    }

    /// Whether any text is ever cut.
    pub(super) fn any(&self) -> bool {
        self.words || self.tokens.iter().any(|token| token.cut_before)
    }

    /// The pieces of a text, in order. They depend on what is left of them only, so two texts with the same beginning have the same
    /// pieces there, all but the last.
    pub(super) fn pieces(&self, text: &str, mut each: impl FnMut(Range<usize>)) {
        let mut start = 0;
        let mut found = 0;
        let bytes = text.as_bytes();
        while let Some(scan) = &self.scan
            && let Some(token) = scan.find(Input::new(text).range(found..))
        {
            let kind = self.tokens[token.pattern().as_usize()];
            found = token.end();
            if !kind.cut_before {
                continue;
            }
            start = self.at_words(bytes, start, token.start(), &mut each);
            if token.start() - start >= SHORT {
                each(start..token.start());
                start = token.start();
            }
        }
        start = self.at_words(bytes, start, bytes.len(), &mut each);
        if start < bytes.len() {
            each(start..bytes.len());
        }
    }

    /// Cuts a stretch before its end as often as it is long; where the rest begins.
    fn at_words(
        &self,
        bytes: &[u8],
        mut start: usize,
        end: usize,
        each: &mut impl FnMut(Range<usize>),
    ) -> usize {
        while self.words && end - start > LONG {
            let Some(at) = bytes[start + LONG - 1..end].windows(2).position(is_letter_and_space)
            else {
                break;
            };
            let cut = start + LONG + at;
            each(start..cut);
            start = cut;
        }
        start
    }
}

fn is_letter_and_space(pair: &[u8]) -> bool {
    pair[0].is_ascii_alphabetic() && pair[1] == b' '
}

/// Whether the tokenizer is byte-level BPE with a known split, and no normalizer that looks further than NFC.
fn splits_at_words(json: &Value) -> bool {
    if !(json["normalizer"].is_null() || json["normalizer"]["type"] == "NFC") {
        return false;
    }
    let model = &json["model"];
    let unset = |key: &str| model[key].is_null() || model[key] == "";
    if model["type"].as_str().unwrap_or("BPE") != "BPE"
        || !unset("continuing_subword_prefix")
        || !unset("end_of_word_suffix")
    {
        return false;
    }
    let steps = match json["pre_tokenizer"]["type"].as_str() {
        Some("Sequence") => {
            json["pre_tokenizer"]["pretokenizers"].as_array().map_or(&[][..], |s| s)
        }
        Some(_) => std::slice::from_ref(&json["pre_tokenizer"]),
        None => return false,
    };
    let Some((last, before)) = steps.split_last() else { return false };
    if last["type"] != "ByteLevel" {
        return false;
    }
    let own_split = last["use_regex"].as_bool().unwrap_or(true);
    match before {
        [] => own_split,
        [split] => {
            !own_split
                && last["add_prefix_space"] == false
                && split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] == false
                && split["pattern"]["Regex"].as_str().is_some_and(is_known)
        }
        _ => false,
    }
}

/// Whether a pattern consists of known alternatives and one of them matches letters.
fn is_known(pattern: &str) -> bool {
    let mut rest = pattern;
    let mut letters = false;
    loop {
        let longest = LETTERS
            .iter()
            .map(|&text| (text, true))
            .chain(OTHERS.iter().map(|&text| (text, false)))
            .filter(|(text, _)| {
                rest.strip_prefix(text).is_some_and(|rest| rest.is_empty() || rest.starts_with('|'))
            })
            .max_by_key(|(text, _)| text.len());
        let Some((text, is_letters)) = longest else { return false };
        letters |= is_letters;
        match rest[text.len()..].strip_prefix('|') {
            Some(next) => rest = next,
            None => return letters,
        }
    }
}
