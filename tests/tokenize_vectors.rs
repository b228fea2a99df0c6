//! Token ids and prompts against the Python packages `tokenizers` and `transformers`
//! (`scripts/tokenize-vectors`).
#![cfg(feature = "tokenizers")]

mod tokenize_support;

use std::collections::HashSet;

use kvscout::tokenize::{Chat, Options, Tokenize};
use tokenize_support::{TOKENIZERS, chats, lines, load, unpacked};

#[test]
fn the_ids_of_texts_are_those_of_python() {
    for name in TOKENIZERS {
        let tokenizer = load(name, Options::default());
        let cases = lines(&format!("{name}/texts.jsonl"));
        assert!(cases.len() >= 50, "{name}: {} cases", cases.len());
        for case in cases {
            let (text, special) = (case["text"].as_str().unwrap(), case["special"] == true);
            let ids = tokenizer.text(text, special).unwrap();
            assert_eq!(ids, unpacked(&case["ids"]), "{name}: {text:?}, special: {special}");
        }
    }
}

#[test]
fn the_prompts_of_chats_and_their_ids_are_those_of_python() {
    let (mut same, mut refused, mut prompts) = (0, 0, 0);
    let mut different = HashSet::new();
    for name in TOKENIZERS {
        let tokenizer = load(name, Options::default());
        let chats = chats(name);
        different.extend(chats.clone());
        let expected = lines(&format!("{name}/prompts.jsonl"));
        assert_eq!(expected.len(), chats.len());
        for (n, (chat, expected)) in chats.iter().zip(expected).enumerate() {
            let chat = Chat::parse(chat).unwrap();
            let prompt = tokenizer.render(&chat);
            if expected["refused"] == true {
                assert!(prompt.is_err(), "{name}, chat {n}: {prompt:?}");
                refused += 1;
                continue;
            }
            if let Some(expected) = expected["prompt"].as_str() {
                assert_eq!(prompt.as_deref().unwrap(), expected, "{name}, chat {n}");
                prompts += 1;
            }
            let ids = tokenizer.chat(&chat).unwrap();
            assert_eq!(ids, unpacked(&expected["ids"]), "{name}, chat {n}: {prompt:?}");
            same += 1;
        }
    }
    assert!(same >= 250 && refused >= 5 && prompts >= 10, "{same} {refused} {prompts}");
    assert!(different.len() >= 280, "{} chats", different.len());
}
