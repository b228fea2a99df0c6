//! `kvscout replay` from outside: what engines published in, what they answered out.
#![cfg(feature = "daemon")]

mod recording_support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use kvscout::block::{BlockSize, Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use recording_support::{driven, drives, engines, events};
use serde_json::{Value, json};

/// How a run ended, its answers and its complaints.
struct Run {
    status: i32,
    answers: Vec<Value>,
    complaints: Vec<String>,
}

fn replay_bytes(flags: &[&str], input: Vec<u8>) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvscout"))
        .arg("replay")
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let answers = str::from_utf8(&output.stdout).unwrap().lines();
    let complaints = str::from_utf8(&output.stderr).unwrap().lines();
    Run {
        status: output.status.code().unwrap(),
        answers: answers.map(|line| serde_json::from_str(line).unwrap()).collect(),
        complaints: complaints.map(str::to_owned).collect(),
    }
}

fn replay(flags: &[&str], lines: &[Value]) -> Run {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    replay_bytes(flags, lines.join("\n").into_bytes())
}

/// A run without complaints.
#[track_caller]
fn answers(flags: &[&str], lines: &[Value]) -> Vec<Value> {
    let Run { status, answers, complaints } = replay(flags, lines);
    assert_eq!((status, complaints), (0, vec![]));
    answers
}

/// The ids of the questions whose answer is not the engine's own; every question has one.
fn wrong(lines: &[Value], expected: &[(Value, Value)]) -> Vec<Value> {
    let worker = json!({ "op": "worker", "worker": "pod" });
    let answers = answers(&[], &[&[worker], lines].concat());
    assert_eq!(answers.len(), expected.len());
    let mut wrong = Vec::new();
    for (answer, (id, cached)) in answers.iter().zip(expected) {
        assert_eq!(answer["id"], *id);
        let [worker] = &answer["workers"].as_array().unwrap()[..] else { panic!("{answer}") };
        assert_eq!((&worker["worker"], &worker["rank"]), (&json!("pod"), &json!(0)));
        assert_eq!(worker["trust"], "exact", "{answer}");
        if worker["expected_cached_tokens"] != *cached {
            wrong.push(id.clone());
        }
    }
    wrong
}

#[test]
fn every_answer_equals_the_one_of_the_driven_kv_cache_manager() {
    for (file, (lines, expected)) in drives() {
        assert_eq!(wrong(&lines, &expected), [] as [Value; 0], "{file}");
    }
}

#[test]
fn every_answer_equals_the_one_of_the_running_engine() {
    for (file, (lines, expected)) in engines() {
        // The engine announces a reset with its next step only: until then nobody can know.
        assert_eq!(wrong(&lines, &expected), [json!("request after reset")], "{file}");
    }
}

/// The first batches of vLLM 0.33.0, as lines.
fn batches() -> Vec<Value> {
    let (lines, _) = driven(include_str!("vectors/drive-0.33.0.jsonl"));
    lines.into_iter().filter(|line| line["op"] == "events").collect()
}

#[test]
fn workers_are_sorted_by_name_and_rank() {
    let mut lines: Vec<Value> = [("b", 0), ("a", 10), ("a", 2), ("c", 0), ("B", 1)]
        .map(|(worker, rank)| json!({ "op": "worker", "worker": worker, "rank": rank }))
        .into();
    // Holding something does not move a worker.
    let mut batch = batches().remove(0);
    batch["worker"] = json!("c");
    lines.push(batch);
    lines.push(json!({ "op": "query", "id": 1, "token_ids": [1, 2] }));
    let answers = answers(&[], &lines);
    let workers = answers[0]["workers"].as_array().unwrap().iter();
    let order: Vec<_> =
        workers.map(|w| (w["worker"].as_str().unwrap(), w["rank"].as_u64().unwrap())).collect();
    assert_eq!(order, [("B", 1), ("a", 2), ("a", 10), ("b", 0), ("c", 0)]);
}

#[test]
fn a_gap_shows_in_the_next_answer() {
    let batches = batches();
    let query = |id| json!({ "op": "query", "id": id, "token_ids": [1] });
    let lines = [batches[0].clone(), query(0), batches[3].clone(), query(1)];
    let answers = answers(&[], &lines);
    let workers: Vec<_> = answers.iter().map(|answer| &answer["workers"][0]).collect();
    assert_eq!((&workers[0]["trust"], &workers[0]["as_of"]), (&json!("exact"), &json!(0)));
    assert_eq!(workers[0].get("reason"), None);
    assert_eq!((&workers[1]["trust"], &workers[1]["reason"]), (&json!("degraded"), &json!("gap")));
}

/// Two blocks of a salted prompt as vLLM 0.10 published them, without the salt, under a seed: its
/// plain text begins with the second batch, so that the first can only be told by its hash.
fn seeded(seed: &str) -> Vec<Value> {
    let version: Version = "0.10.2".parse().unwrap();
    let contract = Contract::new(version, Algorithm::Sha256Cbor, Root::Seed(seed)).unwrap();
    let shape = Shape { size: BlockSize::new(4).unwrap(), lookahead: 0 };
    let stored = |tokens: &[u32], salt: Option<&str>| {
        let prompt = Prompt { cache_salt: salt, ..Prompt::new(tokens) };
        let mut chain = contract.chain(shape, &prompt).unwrap();
        let hashes: Vec<u64> = chain
            .extend(tokens)
            .map(|hash| hash.event().unwrap().to_string().parse().unwrap())
            .collect();
        json!(["BlockStored", hashes, null, tokens, 4, null, "GPU"])
    };
    let line = |seq: u64, event: Value| {
        let payload = rmp_serde::to_vec(&json!([1.5 + seq as f64, [event], 0])).unwrap();
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        events(&json!(seq), &json!(hex))
    };
    let query = |id: &str, salt: Value| {
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        json!({ "op": "query", "id": id, "token_ids": tokens, "cache_salt": salt })
    };
    vec![
        line(0, stored(&[20, 21, 22, 23], None)),
        line(1, stored(&[1, 2, 3, 4, 5, 6, 7, 8], Some("s"))),
        query("salted", json!("s")),
        query("plain", Value::Null),
    ]
}

#[test]
fn a_seed_is_found_only_if_it_is_tried() {
    let held = |flags: &[&str], seed: &str| -> Vec<Value> {
        let answers = answers(flags, &seeded(seed));
        answers.iter().map(|a| a["workers"][0]["expected_cached_tokens"].clone()).collect()
    };
    assert_eq!(held(&[], "42"), [8, 0], "tried by default");
    assert_ne!(held(&[], "20250722"), [8, 0]);
    assert_ne!(held(&["--seed", "7"], "20250722"), [8, 0]);
    assert_eq!(held(&["--seed", "7", "--seed", "20250722"], "20250722"), [8, 0]);
}

#[test]
fn a_malformed_line_is_named_and_stops_no_other() {
    let cases: &[(&str, Option<Value>, &str)] = &[
        ("{", None, "no JSON"),
        ("[]", None, "no JSON object"),
        ("{}", None, "`op` is missing"),
        (r#"{"op":"ask"}"#, None, "worker, events, query"),
        (r#"{"op":"worker"}"#, None, "`worker` is missing"),
        (r#"{"op":"worker","worker":7}"#, None, "`worker` is not a string"),
        (r#"{"op":"worker","worker":"b","rank":-1}"#, None, "`rank` is not an integer from 0"),
        (r#"{"op":"worker","worker":"b","block_size":0}"#, None, "`block_size` is 0"),
        (r#"{"op":"worker","worker":"b","vllm":"new"}"#, None, "`vllm`"),
        (r#"{"op":"events","worker":"a","payload":"90"}"#, None, "`seq` is missing"),
        (r#"{"op":"events","worker":"a","seq":"1","payload":"90"}"#, None, "`seq` is not an"),
        (r#"{"op":"events","worker":"a","seq":1}"#, None, "`payload` is missing"),
        (r#"{"op":"events","worker":"a","seq":1,"payload":"9"}"#, None, "`payload` is not hex"),
        (r#"{"op":"events","worker":"a","seq":1,"payload":"9x"}"#, None, "at character 0"),
        (r#"{"op":"events","worker":"z","seq":0,"payload":"00"}"#, None, "batch 0 of z"),
        (r#"{"op":"query","token_ids":[]}"#, Some(Value::Null), "`id` is missing"),
        (r#"{"op":"query","id":null}"#, Some(Value::Null), "`token_ids` is missing"),
        (r#"{"op":"query","id":"q"}"#, Some(json!("q")), "`token_ids` is missing"),
        (r#"{"op":"query","id":1,"token_ids":"x"}"#, Some(json!(1)), "`token_ids` is not a list"),
        (r#"{"op":"query","id":[2],"token_ids":[1,4294967296]}"#, Some(json!([2])), "4294967295"),
        (r#"{"op":"query","id":3,"token_ids":[-1]}"#, Some(json!(3)), "`token_ids[0]`"),
        (r#"{"op":"query","id":4,"token_ids":[1],"lora":{}}"#, Some(json!(4)), "`lora.name`"),
        (r#"{"op":"query","id":5,"token_ids":[1],"cache_salt":1}"#, Some(json!(5)), "`cache_salt`"),
        (r#"{"op":"query","id":6,"token_ids":[1],"model":1}"#, Some(json!(6)), "`model`"),
        (r#"{"op":"query","id":7,"token_ids":[1],"mm":[{}]}"#, Some(json!(7)), "`mm[0].hash`"),
    ];
    let good = r#"{"op":"query","id":"good","token_ids":[1]}"#;
    let mut input = format!("{}\n", json!({ "op": "worker", "worker": "a" }));
    for (line, ..) in cases {
        input += &format!("{line}\n\n{good}\n");
    }
    let mut input = input.into_bytes();
    input.extend(b"{\"op\":\"worker\",\"worker\":\"\xff\"}\n");
    input.extend(good.as_bytes());
    let run = replay_bytes(&[], input);
    assert_eq!(run.status, 1);
    assert_eq!(run.complaints.len(), cases.len() + 1, "{:#?}", run.complaints);
    let mut answers = run.answers.iter();
    for (n, ((line, id, part), complaint)) in cases.iter().zip(&run.complaints).enumerate() {
        let number = format!("line {}: ", 2 + 3 * n);
        assert!(complaint.contains(&number) && complaint.contains(part), "{line}: {complaint}");
        if let Some(id) = id {
            let answer = answers.next().unwrap();
            let message = complaint.split_once(&number).unwrap().1;
            assert_eq!(*answer, json!({ "id": id, "error": message }));
        }
        assert_eq!(answers.next().unwrap()["id"], "good", "{line}");
    }
    let last = run.complaints.last().unwrap();
    assert!(last.contains(&format!("line {}: ", 2 + 3 * cases.len())), "{last}");
    assert!(last.contains("no UTF-8"), "{last}");
    assert_eq!(answers.next().unwrap()["id"], "good");
    assert_eq!(answers.next(), None);
}

#[test]
fn an_empty_recording_and_a_model_of_nobody_are_no_problem() {
    assert_eq!(answers(&[], &[]), [] as [Value; 0]);
    let worker = json!({ "op": "worker", "worker": "a", "model": "m" });
    let query = json!({ "op": "query", "id": 1, "model": "n", "token_ids": [1] });
    assert_eq!(answers(&[], &[worker, query]), [json!({ "id": 1, "workers": [] })]);
}
