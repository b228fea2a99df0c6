//! What is remembered of texts never changes their ids: the same as tokenizing the whole, for texts that grow as chats do.
#![cfg(feature = "tokenizers")]

mod tokenize_support;

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use kvscout::tokenize::{Chat, Options, Tokenize, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokenize_support::{TOKENIZERS, chats, folder, load};

const SMALL: Options = Options {
    max_text: 1 << 20,
    memory: 4 << 20,
    format: kvscout::tokenize::ContentFormat::Auto,
    now: None,
};

/// Stretches of text of the kinds at which a wrong cut would show.
fn stretch() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec![
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|><|pad|>",
        "<left>",
        "<right>",
        "  <left>",
        "<right>  x",
        "<tool_call>",
        "     ",
        "[INST]",
        "</s>",
        "<|im_end|><|pa",
        "nai\u{308}ve",
        "naïve",
        "<word>",
        "a b",
    ]);
    let odd = prop::sample::select(vec![
        " ",
        "  ",
        "\n",
        " \n",
        "\r\n\n",
        "\t",
        "'s",
        "'ll ",
        "'S x",
        " '",
        "é",
        "e\u{301}",
        " \u{301}",
        "a\u{301} ",
        "日本",
        "ا",
        "😀",
        "\u{a0}",
        "\u{3000}",
        "123",
        "1234567",
        "½",
        "ſ",
        "'ſ ",
        "K ",
        "#!?",
        "/\n",
        "\0",
        "\u{feff}",
    ]);
    let word = "[a-zA-Z]{1,9}";
    let sentence = "([a-z]{1,8}[ ,.'\n]{1,2}){30,120}";
    let noise = prop::collection::vec(any::<char>(), 1..6).prop_map(String::from_iter);
    prop_oneof![
        4 => special.prop_map(str::to_owned),
        5 => odd.prop_map(str::to_owned),
        6 => word.prop_map(|word| format!("{word} ")),
        2 => word.prop_map(String::from),
        2 => sentence.prop_map(String::from),
        2 => noise,
        1 => Just("x".repeat(1500)),
    ]
}

/// Copies of a small tokenizer with another part.
fn variant(name: &str, change: impl Fn(&mut Value)) -> [Tokenizer; 2] {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let copy = std::env::temp_dir().join(format!("kvscout-pieces-{}-{number}", std::process::id()));
    fs::create_dir_all(&copy).unwrap();
    let text = fs::read_to_string(folder(name).join("tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    change(&mut json);
    fs::write(copy.join("tokenizer.json"), json.to_string()).unwrap();
    let source = copy.to_str().unwrap();
    let forgetful = Options { memory: 0, ..SMALL };
    let pair = [SMALL, forgetful].map(|options| Tokenizer::load(name, source, options).unwrap());
    fs::remove_dir_all(&copy).unwrap();
    pair
}

fn split(pattern: &str) -> impl Fn(&mut Value) {
    let pattern = pattern.to_owned();
    move |json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({ "Regex": pattern })
}

fn added(id: u32, content: &str, flags: &str) -> Value {
    let mut token = json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false });
    for flag in flags.split_whitespace() {
        token[flag] = json!(true);
    }
    token
}

/// Each tokenizer as it is, and with parts that make cutting harder.
fn all() -> Vec<(String, [Tokenizer; 2])> {
    let mut all: Vec<(String, [Tokenizer; 2])> =
        TOKENIZERS.map(|name| (name.to_owned(), variant(name, |_| {}))).into();
    let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let o200k = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    all.push(("qwen".into(), variant("llama3", split(qwen))));
    all.push(("o200k".into(), variant("llama3", split(o200k))));
    // Words joined by one space are one match here: cutting between them would be wrong.
    let pairs = r"\p{L}+(?: \p{L}+)?|\s+|[^\s\p{L}]+";
    all.push(("pairs".into(), variant("llama3", split(pairs))));
    for flag in [
        "",
        "single_word",
        "lstrip",
        "rstrip",
        "normalized",
        "single_word normalized",
        "rstrip normalized",
    ] {
        for content in ["<word>", "a b", " x", "end"] {
            let with = |json: &mut Value| {
                json["added_tokens"].as_array_mut().unwrap().push(added(5000, content, flag));
            };
            all.push((format!("{content:?} {flag}"), variant("gpt2", with)));
        }
    }
    all
}

#[test]
fn ids_of_growing_texts_are_those_of_the_whole_text() {
    let tokenizers = all();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(10));
    let texts = prop::collection::vec(prop::collection::vec(stretch(), 1..12), 1..5);
    let outcome = runner.run(&texts, |turns| {
        for (name, [remembering, forgetful]) in &tokenizers {
            let mut text = String::new();
            for turn in &turns {
                text.extend(turn.iter().map(String::as_str));
                let whole = forgetful.text(&text, true).unwrap();
                prop_assert_eq!(
                    &remembering.text(&text, true).unwrap(),
                    &whole,
                    "{}: {:?}",
                    name,
                    text
                );
            }
        }
        Ok(())
    });
    outcome.unwrap();
    for (name, [remembering, forgetful]) in &tokenizers {
        assert_eq!(forgetful.remembered().pieces, 0);
        assert!(remembering.remembered().pieces > 0 || !remembering.remembers(), "{name}");
    }
}

#[test]
fn a_long_text_is_not_cut_where_an_added_token_lies() {
    let long =
        ["a b", "end  ", "a x ", "the end x", "<word> a ", "end"].map(|text| text.repeat(900));
    for (name, [remembering, forgetful]) in &all() {
        for text in &long {
            let whole = forgetful.text(text, false).unwrap();
            assert_eq!(remembering.text(text, false).unwrap(), whole, "{name}: {:?}", &text[..12]);
        }
    }
}

#[test]
fn chats_have_the_ids_of_the_whole_prompt_turn_by_turn() {
    for name in TOKENIZERS {
        let (remembering, forgetful) =
            (load(name, SMALL), load(name, Options { memory: 0, ..SMALL }));
        for chat in chats(name) {
            let mut whole: Value = serde_json::from_str(&chat).unwrap();
            whole["chat_template"] = json!("default");
            whole["add_generation_prompt"] = json!(true);
            whole["continue_final_message"] = json!(false);
            let messages = whole["messages"].as_array().unwrap().clone();
            for turns in 1..=messages.len() {
                whole["messages"] = messages[..turns].into();
                let chat = Chat::parse(&whole.to_string()).unwrap();
                assert_eq!(remembering.chat(&chat).unwrap(), forgetful.chat(&chat).unwrap());
            }
        }
        let remembered = remembering.remembered();
        assert!(
            remembered.pieces > 20 && remembered.bytes <= SMALL.memory,
            "{name}: {remembered:?}"
        );
    }
}

#[test]
fn what_was_said_before_is_not_tokenized_again() {
    // By special tokens, and within a text by its words. No two pieces of a text are equal.
    let message = |n: usize, k: usize| {
        format!("<|im_start|>user\nquestion {k} of turn {n} {}<|im_end|>\n", "of words ".repeat(20))
    };
    let words = |n: usize, k: usize| format!("and {k} words of {n} say what they are made of ");
    type Part<'a> = (&'a str, usize, &'a dyn Fn(usize, usize) -> String);
    let parts: [Part<'_>; 2] = [("llama3", 8, &message), ("gpt2", 60, &words)];
    for (name, number, part) in parts {
        let tokenizer = load(name, SMALL);
        let mut text = String::new();
        for n in 0..20 {
            text.extend((0..number).map(|k| part(n, k)));
            tokenizer.text(&text, false).unwrap();
        }
        let after = tokenizer.remembered();
        let (new, largest) = (text.len() as u64, 20 * 1100);
        assert!(after.asked > 10 * new, "{name}: {after:?}");
        assert!((new..=new + largest).contains(&after.tokenized), "{name}: {after:?} of {new}");
        // The same again: nothing of it but, at most, the end.
        tokenizer.text(&text, false).unwrap();
        let again = tokenizer.remembered();
        assert_eq!(again.asked - after.asked, new);
        assert!(again.tokenized - after.tokenized <= 1100, "{name}: {again:?} {after:?}");
        // Without a memory all of it.
        let forgetful = load(name, Options { memory: 0, ..SMALL });
        forgetful.text(&text, false).unwrap();
        forgetful.text(&text, false).unwrap();
        let without = forgetful.remembered();
        assert_eq!((without.asked, without.tokenized, without.bytes), (2 * new, 2 * new, 0));
    }
}

#[test]
fn a_memory_that_is_full_forgets_and_gives_the_same_ids() {
    let small = Options { memory: 256 << 10, ..SMALL };
    let (remembering, forgetful) =
        (load("llama3", small.clone()), load("llama3", Options { memory: 0, ..SMALL }));
    for n in 0..1000 {
        let text = format!("<|im_start|>user\n{}<|im_end|>", format!("question {n} ").repeat(40));
        assert_eq!(remembering.text(&text, true).unwrap(), forgetful.text(&text, true).unwrap());
        assert!(remembering.remembered().bytes <= small.memory);
    }
    assert!(remembering.remembered().pieces > 50, "{:?}", remembering.remembered());
    let first = format!("<|im_start|>user\n{}<|im_end|>", "question 0 ".repeat(40));
    let before = remembering.remembered().tokenized;
    remembering.text(&first, true).unwrap();
    assert!(remembering.remembered().tokenized > before, "forgotten");
}
