//! Files that are there, that are not, and that are not what they have to be.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("kvscout-tokenize-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> &Folder {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn load(&self) -> Result<Tokenizer, Error> {
        Tokenizer::load("m", self.0.to_str().unwrap(), Options::default())
    }

    fn refused(&self, words: &[&str]) {
        let error = self.load().unwrap_err().to_string();
        for word in words.iter().chain(&["model \"m\"", self.0.to_str().unwrap()]) {
            assert!(error.contains(word), "no {word:?} in {error:?}");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A byte-level tokenizer: "a" 0, "b" 1, "ab" 2, other bytes behind, one special token 257.
fn tiny() -> Value {
    let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
    let mut vocab = json!({ "a": 0, "b": 1, "ab": 2 });
    for (n, c) in alphabet.filter(|c| !matches!(c, 'a' | 'b')).enumerate() {
        vocab[c.to_string()] = json!(n + 3);
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{ "id": 257, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": ["a b"] },
    })
}

fn with(change: impl Fn(&mut Value)) -> String {
    let mut json = tiny();
    change(&mut json);
    json.to_string()
}

#[test]
fn a_model_is_found_in_the_hub_cache_by_its_name() {
    let cache = Folder::new();
    cache
        .write("models--org--name/refs/main", "abc123\n")
        .write("models--org--name/snapshots/abc123/tokenizer.json", tiny().to_string())
        .write("models--org--gone/refs/main", "../../secret");
    let load = |source: &str| Tokenizer::load_from("m", source, &cache.0, Options::default());
    for source in ["org/name", "org/name@main", "org/name@abc123"] {
        assert_eq!(load(source).unwrap().text("ab<s>a", false).unwrap(), [2, 257, 0], "{source}");
    }
    let cases = [
        ("org/other", "no model \"org/other\" in the Hugging Face cache"),
        ("org/name@v2", "revision \"v2\""),
        ("org/gone", "revision \"main\""),
        ("../../no/such", "has to be a tokenizer.json"),
    ];
    for (source, expected) in cases {
        let error = load(source).unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn a_file_that_is_not_a_tokenizer_is_named_with_what_is_wrong() {
    let folder = Folder::new();
    folder.refused(&["no tokenizer.json", "/tokenize"]);
    folder.write("tokenizer.json", "{\"model\": ").refused(&[
        "tokenizer.json",
        "not JSON",
        "line 1",
    ]);
    folder.write("tokenizer.json", [b'"', 0xff, b'"']).refused(&["not UTF-8 at byte 1"]);
    folder.write("tokenizer.json", "{}").refused(&["no model in it"]);
    let kind = with(|json| json["model"]["type"] = json!("Word"));
    folder.write("tokenizer.json", kind).refused(&["not a tokenizer that can be used"]);
    let random = with(|json| json["model"]["dropout"] = json!(0.1));
    folder.write("tokenizer.json", random).refused(&["model.dropout", "null"]);
    let merges = with(|json| json["model"]["merges"] = json!(["a x"]));
    folder
        .write("tokenizer.json", merges)
        .refused(&["tokenizer.json", "not a tokenizer that can be used"]);
}

#[test]
fn a_configuration_that_contradicts_itself_is_named() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    folder.load().unwrap();
    let cases = [
        ("[]", "has to be a JSON object"),
        (r#"{"chat_template": 7}"#, "chat_template has to be"),
        (r#"{"chat_template": [{"name": "a"}]}"#, "without a name and a template"),
        (r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#, "added_tokens_decoder: \"x\""),
    ];
    for (config, expected) in cases {
        folder.write("tokenizer_config.json", config).refused(&["tokenizer_config.json", expected]);
    }
    let long = json!({ "chat_template": "x".repeat(1 << 20) }).to_string();
    folder.write("tokenizer_config.json", long).refused(&["larger than"]);
}

#[test]
fn the_post_processor_says_what_is_put_around_a_text() {
    let folder = Folder::new();
    let config = r#"{"add_bos_token": true, "bos_token": {"content": "<s>"}}"#;
    folder.write("tokenizer.json", tiny().to_string()).write("tokenizer_config.json", config);
    assert_eq!(folder.load().unwrap().text("ab", true).unwrap(), [2]);
    let bos = with(|json| {
        json["post_processor"] = json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [257], "tokens": ["<s>"] } },
        })
    });
    folder.write("tokenizer.json", bos);
    let tokenizer = folder.load().unwrap();
    assert_eq!(tokenizer.text("ab", true).unwrap(), [257, 2]);
    assert_eq!(tokenizer.text("ab", false).unwrap(), [2]);
}

#[test]
fn tokens_that_only_the_configuration_has_are_added() {
    let folder = Folder::new();
    let config = r#"{"added_tokens_decoder": {"258": {"content": "<x>", "special": true}}}"#;
    folder.write("tokenizer.json", tiny().to_string()).write("tokenizer_config.json", config);
    assert_eq!(folder.load().unwrap().text("a<x>b", false).unwrap(), [0, 258, 1]);
}

fn chat(json: &str) -> Chat {
    Chat::parse(json).unwrap()
}

const HELLO: &str = r#"{"messages":[{"role":"user","content":"ab"}]}"#;

#[test]
fn the_template_file_wins_and_tools_take_their_own() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    let error = folder.load().unwrap().chat(&chat(HELLO)).unwrap_err().to_string();
    assert_eq!(error, "model \"m\": the model has no chat template");
    let named = r#"{"chat_template": [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]}"#;
    folder.write("tokenizer_config.json", named);
    let tools = r#"{"messages":[{"role":"user","content":"ab"}],"tools":[{"type":"function","function":{"name":"f"}}]}"#;
    let tokenizer = folder.load().unwrap();
    assert_eq!(tokenizer.render(&chat(HELLO)).unwrap(), "one");
    assert_eq!(tokenizer.render(&chat(tools)).unwrap(), "two");
    folder.write("chat_template.jinja", "three");
    assert_eq!(folder.load().unwrap().render(&chat(tools)).unwrap(), "three");
    let other = HELLO.replacen('{', "{\"chat_template\":\"{{ 1 }}\",", 1);
    let error = folder.load().unwrap().render(&chat(&other)).unwrap_err().to_string();
    assert!(error.contains("no chat template \"{{ 1 }}\"") && error.contains("default"), "{error}");
}

#[test]
fn a_template_that_fails_is_named_with_its_model() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    folder.write("chat_template.jinja", "{% if %}").refused_template(&["default", "line 1"]);
    folder.write("chat_template.jinja", "{{ raise_exception('no ' ~ messages[0].role) }}");
    let error = folder.load().unwrap().render(&chat(HELLO)).unwrap_err().to_string();
    assert_eq!(error, "model \"m\": chat template \"default\": no user (line 1)");
}

impl Folder {
    fn refused_template(&self, words: &[&str]) {
        let error = self.load().unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn a_text_or_prompt_that_is_too_long_is_refused() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    folder.write("chat_template.jinja", "{{ messages[0].content }}{{ messages[0].content }}");
    let options = Options { max_text: 10, ..Options::default() };
    let tokenizer = Tokenizer::load("m", folder.0.to_str().unwrap(), options).unwrap();
    assert_eq!(tokenizer.text("abababab", false).unwrap(), [2; 4]);
    assert!(tokenizer.text("abababababab", false).unwrap_err().to_string().contains("12 bytes"));
    let long = HELLO.replace("ab", "abababab");
    assert!(tokenizer.chat(&chat(&long)).unwrap_err().to_string().contains("more than"));
}

#[test]
fn a_chat_that_is_none_is_refused_without_its_text() {
    let cases = [
        ("[", "not a chat"),
        ("{}", "missing field `messages`"),
        (r#"{"messages":"secret"}"#, "expected a sequence"),
        (r#"{"messages":[]}"#, "messages: at least one"),
        (r#"{"messages":["secret"]}"#, "messages[0]"),
        (r#"{"messages":[{"role":"user"},{"content":"secret"}]}"#, "messages[1]"),
        (r#"{"messages":[{"role":"user"}],"continue_final_message":true}"#, "cannot both"),
        (r#"{"messages":[{"role":"user"}],"chat_template_kwargs":{"tokenize":1}}"#, "tokenize"),
        (r#"{"messages":[{"role":"user"}],"chat_template_kwargs":["secret"]}"#, "an object"),
    ];
    for (json, expected) in cases {
        let error = Chat::parse(json).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("secret"), "{json}: {error}");
    }
}

#[test]
fn parts_that_only_the_engine_can_make_tokens_of_are_named() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string()).write("chat_template.jinja", "x");
    let tokenizer = folder.load().unwrap();
    let cases = [
        (
            r#"[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"u"}}]"#,
            "messages[0].content[1]: a part of type \"image_url\"",
        ),
        (r#"[{"type":"text"}]"#, "messages[0].content[0]: a part of type \"text\" needs text"),
        ("7", "messages[0].content: has to be"),
    ];
    for (content, expected) in cases {
        let json = format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#);
        let error = tokenizer.render(&chat(&json)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_developers_message_is_a_system_message_where_the_template_knows_no_other() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    let show = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}";
    let json = r#"{"messages":[{"role":"user","content":"a"},{"role":"developer","content":"b"},
        {"role":"system","content":"c"}]}"#;
    folder.write("chat_template.jinja", show);
    let rendered = |folder: &Folder| folder.load().unwrap().render(&chat(json)).unwrap();
    assert_eq!(rendered(&folder), "system=b\n\nc;user=a;");
    folder.write("chat_template.jinja", format!("{show}{{# 'developer' #}}"));
    assert_eq!(rendered(&folder), "user=a;developer=b;system=c;");
}

#[test]
fn arguments_of_calls_are_objects_whatever_the_client_sent() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    let show = "{% for c in messages[0].tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}";
    folder.write("chat_template.jinja", show);
    let tokenizer = folder.load().unwrap();
    let cases = [
        (r#""{\"b\":1,\"a\":2}""#, r#"{"b": 1, "a": 2}"#),
        (r#"{"x":[]}"#, r#"{"x": []}"#),
        (r#""no json""#, "{}"),
        (r#""[1]""#, "{}"),
        ("null", "{}"),
    ];
    for (arguments, expected) in cases {
        let json = format!(
            r#"{{"messages":[{{"role":"assistant","tool_calls":[{{"type":"function","function":{{"name":"f","arguments":{arguments}}}}}]}}]}}"#
        );
        assert_eq!(tokenizer.render(&chat(&json)).unwrap(), expected, "{arguments}");
    }
}

#[test]
fn what_is_asked_about_does_not_show_up_when_a_tokenizer_is_printed() {
    let folder = Folder::new();
    folder.write("tokenizer.json", tiny().to_string());
    let tokenizer = folder.load().unwrap();
    tokenizer.text("abababab", false).unwrap();
    assert!(!format!("{tokenizer:?}").contains("abab"));
    assert!(!format!("{:?}", chat(&HELLO.replace("ab", "secret"))).contains("secret"));
}

#[test]
fn the_path_of_a_file_is_a_source_too() {
    let folder = Folder::new();
    folder.write("sub/tokenizer.json", tiny().to_string()).write("sub/chat_template.jinja", "b");
    let file = folder.0.join("sub/tokenizer.json");
    let tokenizer = Tokenizer::load("m", file.to_str().unwrap(), Options::default()).unwrap();
    assert_eq!(tokenizer.chat(&chat(HELLO)).unwrap(), [1]);
    assert!(Path::new(&file).is_file());
}
