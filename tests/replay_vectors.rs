//! The bar: for every question in the recordings of real vLLM code and of a real engine, the
//! expected cached tokens equal what the engine itself answered.

use std::fs;
use std::path::PathBuf;

use kvscout::block::{Lora, Prompt};
use kvscout::ingest::Trust;
use kvscout::scout::{Options, Ranked, Registration, Request, Scout, Scratch};
use serde_json::Value;

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

fn scout() -> Scout {
    Scout::new(Options::default()).unwrap()
}

fn anywhere(pod: &str) -> Registration {
    Registration { model: None, ..Registration::new(pod, "") }
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn ask<'s>(
    scout: &Scout,
    scratch: &'s mut Scratch,
    tokens: &[u32],
    lora: Option<Lora<'_>>,
    cache_salt: Option<&str>,
) -> Ranked<'s> {
    let prompt = Prompt { lora, cache_salt, ..Prompt::new(tokens) };
    scout.score(&Request::new("any", prompt), scratch).unwrap().best().unwrap()
}

#[test]
fn every_answer_equals_the_one_of_the_driven_kv_cache_manager() {
    let files = vectors("drive-");
    assert_eq!(files.len(), 8, "one file for each generation and hybrid case");
    let mut wrong = Vec::new();
    for (file, text) in &files {
        let scout = scout();
        let worker = scout.register(anywhere("pod")).unwrap();
        let mut scratch = Scratch::default();
        let mut questions = 0;
        for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            match line["op"].as_str().unwrap() {
                "events" => {
                    let payload = hex(line["payload"].as_str().unwrap());
                    scout.apply(worker, line["seq"].as_u64().unwrap(), &payload).unwrap();
                }
                "request" | "probe" => {
                    let lora = line["lora"].as_object().map(|lora| Lora {
                        name: lora["name"].as_str().unwrap(),
                        id: lora["id"].as_i64(),
                        path: lora["path"].as_str(),
                    });
                    let salt = line["salt"].as_str();
                    let answer = ask(&scout, &mut scratch, &tokens(&line["tokens"]), lora, salt);
                    let expected = Ok(line["computed_tokens"].as_u64().unwrap() as u32);
                    questions += 1;
                    if answer.score.expected_cached_tokens != expected {
                        wrong.push(format!("{file} {}: {expected:?}, {answer:?}", line["id"]));
                    } else if answer.trust != Trust::Exact {
                        wrong.push(format!("{file} {}: {:?}", line["id"], answer.trust));
                    }
                }
                _ => {}
            }
        }
        assert!(questions > 70, "{file} asks {questions} questions");
    }
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn every_answer_equals_the_one_of_the_running_engine() {
    let files = vectors("engine-");
    assert_eq!(files.len(), 3);
    for (file, text) in &files {
        let recording: Value = serde_json::from_str(text).unwrap();
        let scout = scout();
        let worker = scout.register(anywhere("pod")).unwrap();
        let mut scratch = Scratch::default();
        let mut wrong = Vec::new();
        let mut questions = 0;
        for step in recording["steps"].as_array().unwrap() {
            let label = step["label"].as_str().unwrap();
            if let (Some(cached), Some(_)) =
                (step["cached_tokens"].as_u64(), step["prompt_token_ids"].as_array())
            {
                let request = &step["request"];
                let lora = (request["model"] == "sql-lora").then_some(Lora {
                    name: "sql-lora",
                    id: Some(1),
                    path: Some("/adapters/sql-lora"),
                });
                let salt = request["cache_salt"].as_str();
                let prompt = tokens(&step["prompt_token_ids"]);
                let answer = ask(&scout, &mut scratch, &prompt, lora, salt);
                questions += 1;
                if answer.score.expected_cached_tokens != Ok(cached as u32) {
                    wrong.push((label, cached, answer.score.expected_cached_tokens));
                }
            }
            for batch in step["events"].as_array().unwrap() {
                let frames = batch["frames"].as_array().unwrap();
                let payload = hex(frames[2].as_str().unwrap());
                scout.apply(worker, batch["seq"].as_u64().unwrap(), &payload).unwrap();
            }
        }
        // The engine announces a reset with its next step only: until then nobody can know.
        let labels: Vec<&str> = wrong.iter().map(|(label, ..)| *label).collect();
        assert_eq!(labels, ["request after reset"], "{file}: {wrong:?}");
        assert!(questions > 15, "{file} asks {questions} questions");
    }
}
