//! The recordings of real vLLM code and real engines, as questions with the engines' own answers.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Lines as `kvscout replay` takes them, and of each question in them its id and the cached tokens that
/// the engine itself answered.
pub(crate) type Recording = (Vec<Value>, Vec<(Value, Value)>);

/// What real vLLM code answered while its block manager was driven, by file.
pub(crate) fn drives() -> Vec<(String, Recording)> {
    let all: Vec<_> =
        vectors("drive-").into_iter().map(|(file, text)| (file, driven(&text))).collect();
    assert_eq!(all.len(), 8, "one file for each generation and hybrid case");
    all.iter().for_each(|(file, (_, asked))| assert!(asked.len() > 70, "{file}: {}", asked.len()));
    all
}

/// What whole engines answered, by file.
pub(crate) fn engines() -> Vec<(String, Recording)> {
    let all: Vec<_> =
        vectors("engine-").into_iter().map(|(file, text)| (file, engine(&text))).collect();
    assert_eq!(all.len(), 3);
    all.iter().for_each(|(file, (_, asked))| assert!(asked.len() > 15, "{file}: {}", asked.len()));
    all
}

fn vectors(prefix: &str) -> Vec<(String, String)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with(prefix))
        .map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

pub(crate) fn events(seq: &Value, payload: &Value) -> Value {
    json!({ "op": "events", "worker": "pod", "seq": seq, "payload": payload })
}

/// What a driven `KVCacheManager` published and answered, as a recording and its answers.
pub(crate) fn driven(text: &str) -> Recording {
    let (mut lines, mut expected) = (Vec::new(), Vec::new());
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        match line["op"].as_str().unwrap() {
            "events" => lines.push(events(&line["seq"], &line["payload"])),
            "request" | "probe" => {
                lines.push(json!({
                    "op": "query", "id": line["id"], "token_ids": line["tokens"],
                    "lora": line["lora"], "cache_salt": line["salt"],
                }));
                expected.push((line["id"].clone(), line["computed_tokens"].clone()));
            }
            _ => {}
        }
    }
    (lines, expected)
}

/// The same of a running engine; ids are the labels of its steps.
fn engine(text: &str) -> Recording {
    let recording: Value = serde_json::from_str(text).unwrap();
    let (mut lines, mut expected) = (Vec::new(), Vec::new());
    for step in recording["steps"].as_array().unwrap() {
        if step["cached_tokens"].is_u64() && step["prompt_token_ids"].is_array() {
            let request = &step["request"];
            let lora = json!({ "name": "sql-lora", "id": 1, "path": "/adapters/sql-lora" });
            let lora = if request["model"] == "sql-lora" { lora } else { Value::Null };
            lines.push(json!({
                "op": "query", "id": step["label"], "token_ids": step["prompt_token_ids"],
                "lora": lora, "cache_salt": request["cache_salt"],
            }));
            expected.push((step["label"].clone(), step["cached_tokens"].clone()));
        }
        for batch in step["events"].as_array().unwrap() {
            lines.push(events(&batch["seq"], &batch["frames"][2]));
        }
    }
    (lines, expected)
}
