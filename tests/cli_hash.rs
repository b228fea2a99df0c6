//! `kvscout hash` from outside.
#![cfg(feature = "daemon")]

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Runs the command over lines; gives its exit status and its answers.
fn hash(lines: &[String]) -> (i32, Vec<Value>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvscout"))
        .arg("hash")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = lines.join("\n");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let answers = str::from_utf8(&output.stdout).unwrap().lines();
    (
        output.status.code().unwrap(),
        answers.map(|line| serde_json::from_str(line).unwrap()).collect(),
    )
}

/// A request that is fine, with some fields changed.
fn request(changes: Value) -> String {
    let mut request = json!({
        "algorithm": "sha256_cbor",
        "vllm": "0.33.0",
        "seed": "0",
        "block_size": 2,
        "token_ids": [1, 2, 3, 4, 5],
    });
    for (name, value) in changes.as_object().unwrap() {
        request[name] = value.clone();
    }
    request.to_string()
}

/// The vector files of versions with different hash types, forms of LoRA and of items.
const FILES: [&str; 5] = [
    include_str!("vectors/hash-0.8.5-py3.12.json"),
    include_str!("vectors/hash-0.10.1-py3.12.json"),
    include_str!("vectors/hash-0.11.2-py3.12.json"),
    include_str!("vectors/hash-0.20.2-py3.12.json"),
    include_str!("vectors/hash-0.33.0-py3.12.json"),
];

#[test]
fn it_gives_the_hashes_and_events_that_vllm_gave() {
    let (mut lines, mut expected) = (Vec::new(), Vec::new());
    for file in FILES {
        let file: Value = serde_json::from_str(file).unwrap();
        for run in file["runs"].as_array().unwrap() {
            let decimal = run["seed"].as_str().is_some_and(|seed| seed.parse::<u32>().is_ok());
            if run["algo"] == "builtin" && !decimal {
                continue;
            }
            for case in run["cases"].as_array().unwrap() {
                let set = &file["token_sets"][case["tokens"].as_str().unwrap()];
                let name = case["name"].as_str().unwrap();
                let special =
                    ["edge", "neg", "prompt-embeds", "mm-same-twice-SHARED", "decode", "big"];
                if special.iter().any(|prefix| name.starts_with(prefix)) {
                    continue;
                }
                let part = |name: &str| set[name].as_u64().unwrap();
                let tokens: Vec<u64> = match set.as_array() {
                    Some(ids) => ids.iter().map(|id| id.as_u64().unwrap()).collect(),
                    None => (0..part("n"))
                        .map(|i| (i * part("mul") + part("add")) % part("mod"))
                        .collect(),
                };
                let limit = case["limit"].as_u64().map_or(tokens.len(), |n| n as usize);
                let root = if run["seed"].is_null() { &run["none_hash"] } else { &Value::Null };
                lines.push(
                    json!({
                        "algorithm": run["algo"], "vllm": file["vllm_version"], "seed": run["seed"],
                        "none_hash": root, "block_size": case["block_size"],
                        "token_ids": tokens[..limit.min(tokens.len())], "lora": case["lora"],
                        "cache_salt": case["salt"], "mm": case["mm"], "lookahead": case["lookahead"],
                    })
                    .to_string(),
                );
                expected.push(json!({ "hashes": case["hashes"], "events": case["event_int"] }));
            }
        }
    }
    let (status, answers) = hash(&lines);
    assert_eq!(status, 0);
    assert_eq!(answers, expected);
    assert_eq!(answers.len(), 732);
}

#[test]
fn an_absent_field_and_a_null_one_are_the_same() {
    let lines = [
        json!({ "algorithm": "sha256", "block_size": 2, "token_ids": [1, 2] }),
        json!({
            "algorithm": "sha256", "vllm": null, "seed": null, "none_hash": null, "block_size": 2,
            "token_ids": [1, 2], "lora": null, "cache_salt": null, "mm": null, "lookahead": null,
        }),
    ];
    let (status, answers) = hash(&lines.map(|line| line.to_string()));
    assert_eq!(status, 0);
    assert_eq!(answers[0]["hashes"].as_array().unwrap().len(), 1);
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_newer_version_is_assumed_to_follow_the_newest_known_one() {
    let (status, answers) = hash(&[request(json!({})), request(json!({ "vllm": "0.99.1" }))]);
    assert_eq!(status, 0);
    assert_eq!(answers[0].get("assumed"), None);
    assert_eq!(answers[1]["assumed"], true);
    assert_eq!(answers[0]["hashes"], answers[1]["hashes"]);
}

#[test]
fn a_line_that_cannot_be_answered_names_the_field_and_stops_no_other() {
    let cases = [
        (request(json!({ "algorithm": "md5" })), "`algorithm`"),
        (request(json!({ "algorithm": null })), "`algorithm` is missing"),
        (request(json!({ "algorithm": "builtin" })), "it has sha256"),
        (request(json!({ "vllm": "latest" })), "`vllm`"),
        (request(json!({ "vllm": "0.7.0" })), "0.8.5"),
        (request(json!({ "vllm": "0.20.2", "seed": null })), "`seed`"),
        (request(json!({ "seed": 0 })), "`seed` is not a string"),
        (request(json!({ "none_hash": "00" })), "`none_hash`"),
        (request(json!({ "seed": null, "none_hash": "00" })), "64 hex digits"),
        (request(json!({ "block_size": 0 })), "`block_size`"),
        (request(json!({ "block_size": null })), "`block_size` is missing"),
        (request(json!({ "token_ids": null })), "`token_ids` is missing"),
        (request(json!({ "token_ids": [1, 4_294_967_296_u64] })), "`token_ids[1]`"),
        (request(json!({ "token_ids": [-1] })), "`token_ids[0]`"),
        (request(json!({ "token_ids": [1.5] })), "`token_ids[0]`"),
        (request(json!({ "token_ids": "1" })), "`token_ids` is not a list"),
        (request(json!({ "lora": { "name": "x", "id": 7 } })), "path"),
        (request(json!({ "lora": { "id": 7 } })), "`lora.name`"),
        (request(json!({ "lora": { "name": "x", "id": "7" } })), "`lora.id`"),
        (request(json!({ "lora": "x" })), "`lora`"),
        (request(json!({ "lora": { "name": "x", "rank": 8 } })), "`lora.rank`"),
        (request(json!({ "cache_salt": 1 })), "`cache_salt`"),
        (request(json!({ "mm": [{ "hash": "a", "offset": 0 }] })), "`mm[0].length`"),
        (request(json!({ "mm": [{ "hash": "a", "offset": -1, "length": 1 }] })), "`mm[0].offset`"),
        (request(json!({ "lookahead": 1, "vllm": "0.32.0" })), "look-ahead"),
        (request(json!({ "salt": "s" })), "`salt`"),
        ("[]".to_owned(), "no JSON object"),
        ("{".to_owned(), "no JSON"),
    ];
    let lines: Vec<_> =
        cases.iter().flat_map(|(line, _)| [line.clone(), request(json!({}))]).collect();
    let (status, answers) = hash(&lines);
    assert_eq!(status, 1);
    assert_eq!(answers.len(), lines.len());
    for ((line, part), answer) in cases.iter().zip(answers.chunks(2)) {
        let message = answer[0]["error"].as_str().unwrap();
        assert!(message.contains(part), "{line}: {message}");
        assert_eq!(answer[1]["hashes"].as_array().unwrap().len(), 2);
    }
}
