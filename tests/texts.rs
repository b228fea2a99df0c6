//! Questions by text and by chat, as a client asks them: the answers are those of the tokens that Python's
//! `transformers` makes of them (`tests/vectors/tokenize`).
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod tokenize_support;
mod zmq_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::thread;

use daemon_support::{Batch, Daemon, config_file, kvscout};
use failures_support::{batch, stored};
use kvscout::tokenize::{Chat, Options, Tokenize};
use serde_json::{Value, json};
use tokenize_support::{chats, folder, lines, unpacked};
use zmq_support::{bound_publisher, eventually};

/// What must be in no log.
const SECRET: &str = "nobody but me";

fn tokenizer(name: &str) -> String {
    folder(name).to_str().unwrap().to_owned()
}

/// A daemon with one engine of model `m`, pod 7, that holds all full blocks (of 4) of these prompts.
fn daemon(config: &str, source: &str, prompts: &[Vec<u32>]) -> Daemon {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let file = format!(
        "log.level = \"trace\"\nsilent_after_down = \"600s\"\n{config}\n[[source]]\nname = \"7\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n{source}\n"
    );
    let daemon = Daemon::start(&[], &file, &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    let mut next = 1;
    let stored = prompts.iter().filter(|tokens| tokens.len() >= 4).map(|tokens| {
        let names: Vec<u64> = (next..).take(tokens.len() / 4).collect();
        next += names.len() as u64;
        stored(&names, None, &tokens[..4 * names.len()])
    });
    let events: Vec<Value> = stored.collect();
    daemon.feed(&socket, "", &Batch { seq: 0, payload: batch(&events) }, "7");
    daemon
}

/// With a tokenizer from files.
fn with_files(prompts: &[Vec<u32>]) -> Daemon {
    let config = format!("models.m.tokenizer = \"{}\"", tokenizer("llama3"));
    daemon(&config, "", prompts)
}

/// Posts JSON as it is written: the order of its keys is part of the prompt.
fn post(daemon: &Daemon, path: &str, body: &str) -> (u16, Value) {
    let answer = daemon.send("POST", path, "content-type: application/json\r\n", body);
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

/// A question: the fields of a prompt beside the model.
fn asked(fields: &str) -> String {
    let fields = fields.strip_prefix('{').unwrap();
    format!("{{\"model\":\"m\",{fields}")
}

fn matched(answer: &Value) -> u64 {
    answer["workers"][0]["matched_blocks"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

/// What the prompts of Python's chats are; none where it refuses one. Not the chats with the template that writes
/// the day.
fn chats_of_python() -> Vec<(String, Option<Vec<u32>>)> {
    let pairs = chats("llama3").into_iter().zip(lines("llama3/prompts.jsonl"));
    let pairs = pairs.filter(|(chat, _)| !chat.contains("\"chat_template\":\"headers\""));
    pairs
        .map(|(chat, expected)| {
            let ids = (expected["refused"] != true).then(|| unpacked(&expected["ids"]));
            (chat, ids)
        })
        .collect()
}

/// An engine that holds these tokens holds all of the prompt: each token is the same, but for the last block's.
fn holds(answer: &Value, tokens: &[u32]) -> bool {
    matched(answer) == tokens.len() as u64 / 4
}

#[test]
fn a_chat_scores_as_the_tokens_that_python_makes_of_it() {
    let all = chats_of_python();
    let held: Vec<Vec<u32>> = all.iter().filter_map(|(_, ids)| ids.clone()).collect();
    let daemon = with_files(&held);
    let (mut same, mut refused) = (0, 0);
    for (chat, ids) in &all {
        let (status, answer) = post(&daemon, "/v1/score", &asked(chat));
        let Some(ids) = ids else {
            assert_eq!((status, &answer["field"]), (400, &json!("messages")), "{answer}");
            refused += 1;
            continue;
        };
        assert!(holds(&answer, ids), "{chat}: {answer}");
        for path in ["/v1/score", "/v1/explain"] {
            let by_ids = daemon.post(path, &json!({ "model": "m", "token_ids": ids })).json(200);
            assert_eq!(post(&daemon, path, &asked(chat)), (200, by_ids), "{path} {chat}");
        }
        same += 1;
    }
    assert!(same >= 30 && refused >= 2, "{same} {refused}");
}

#[test]
fn a_text_scores_as_the_tokens_that_python_makes_of_it() {
    let cases = lines("llama3/texts.jsonl");
    let held: Vec<Vec<u32>> = cases.iter().map(|case| unpacked(&case["ids"])).collect();
    let daemon = with_files(&held);
    let (mut requests, mut by_ids) = (Vec::new(), Vec::new());
    for (case, ids) in cases.iter().zip(&held) {
        requests.push(match case["special"] == true {
            // As for a completion, unless it is said otherwise.
            true => json!({ "model": "m", "prompt": case["text"] }),
            false => json!({ "model": "m", "prompt": case["text"], "add_special_tokens": false }),
        });
        by_ids.push(json!({ "model": "m", "token_ids": ids }));
        let answer = daemon.post("/v1/score", requests.last().unwrap()).json(200);
        assert!(holds(&answer, ids), "{case}: {answer}");
        let expected = daemon.post("/v1/score", by_ids.last().unwrap()).json(200);
        assert_eq!(answer, expected, "{case}");
    }
    let answer = daemon.post("/v1/score/batch", &json!({ "requests": requests })).json(200);
    assert_eq!(answer, daemon.post("/v1/score/batch", &json!({ "requests": by_ids })).json(200));
}

#[test]
fn a_pick_by_text_counts_for_the_same_text() {
    let daemon = with_files(&[vec![1, 2, 3, 4]]);
    let prompt = "a text that is long enough for some blocks of four tokens";
    let pick = json!({ "model": "m", "prompt": prompt, "worker": "7" });
    let picked = daemon.post("/v1/picked", &pick).json(200)["predicted_blocks"].as_u64().unwrap();
    assert!(picked > 2, "{picked}");
    let answer = daemon.post("/v1/score", &json!({ "model": "m", "prompt": prompt })).json(200);
    assert_eq!(answer["workers"][0]["predicted_blocks"], picked);
}

#[test]
fn an_adapter_of_the_model_has_its_tokenizer() {
    let config = format!(
        "models.m.tokenizer = \"{}\"\n[[adapter]]\nname = \"sql\"\nmodel = \"m\"",
        tokenizer("llama3")
    );
    let daemon = daemon(&config, "", &[vec![1, 2, 3, 4]]);
    let answer = daemon.post("/v1/score", &json!({ "model": "sql", "prompt": "hi" })).json(200);
    assert_eq!(answer["workers"][0]["worker"], "7");
    let other = json!({ "model": "sql", "prompt": "hi", "tenant": "other" });
    assert_eq!(daemon.post("/v1/score", &other).json(400)["field"], "prompt");
}

#[test]
fn what_is_wrong_with_a_prompt_is_said_with_its_field() {
    let daemon = with_files(&[vec![1, 2, 3, 4]]);
    let user = json!([{ "role": "user", "content": "hi" }]);
    for (body, field, words) in [
        (json!({ "model": "m" }), "token_ids", "give one of token_ids, prompt, messages"),
        (json!({ "model": "m", "token_ids": [1], "prompt": "a" }), "prompt", "beside 'token_ids'"),
        (json!({ "model": "m", "prompt": "a", "messages": user }), "messages", "beside 'prompt'"),
        (json!({ "model": "m", "prompt": 5 }), "prompt", "expected a text, found a number"),
        (json!({ "model": "m", "messages": "a" }), "messages", "expected a list, found a text"),
        (json!({ "model": "m", "messages": [] }), "messages", "at least one"),
        (json!({ "model": "m", "messages": [5] }), "messages", "messages[0]"),
        (json!({ "model": "m", "prompt": "a", "tools": [] }), "tools", "does not go with 'prompt'"),
        (
            json!({ "model": "m", "token_ids": [1], "add_special_tokens": true }),
            "add_special_tokens",
            "does not go with 'token_ids'",
        ),
        (
            json!({ "model": "m", "messages": user, "add_generation_prompt": "yes" }),
            "add_generation_prompt",
            "true or false",
        ),
        (
            json!({ "model": "m", "messages": user, "chat_template_kwargs": 5 }),
            "messages",
            "chat_template_kwargs",
        ),
        (
            json!({ "model": "m", "prompt": "a", "mm": [{ "hash": "x", "offset": 0, "length": 1 }] }),
            "mm",
            "does not go with 'prompt'",
        ),
        (json!({ "prompt": "a" }), "model", "'prompt' needs the model"),
        (json!({ "model": "n", "prompt": "a" }), "prompt", "[models.\"n\"] tokenizer"),
    ] {
        let answer = daemon.post("/v1/score", &body).json(400);
        assert_eq!(answer["field"], field, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{body}: {answer}");
        let together = json!({ "requests": [body] });
        let answer = daemon.post("/v1/score/batch", &together).json(200);
        assert_eq!(answer["answers"][0]["field"], format!("requests[0].{field}"), "{answer}");
    }
}

#[test]
fn no_word_of_a_prompt_is_in_a_log() {
    let daemon = with_files(&[vec![1, 2, 3, 4]]);
    let user = json!([{ "role": "user", "content": SECRET }]);
    let image = json!([{ "role": "user", "content": [{ "type": SECRET }] }]);
    for (body, status) in [
        (json!({ "model": "m", "prompt": SECRET }), 200),
        (json!({ "model": "m", "messages": user }), 200),
        (json!({ "model": "m", "messages": image }), 400),
        (json!({ "model": "m", "messages": user, "tools": [{ "type": SECRET }] }), 400),
        (json!({ "model": "m", "messages": [SECRET] }), 400),
    ] {
        daemon.post("/v1/score", &body).json(status);
    }
    let log = daemon.terminate();
    assert!(log.contains("/v1/score"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

#[test]
fn a_tokenizer_that_cannot_be_read_ends_the_start() {
    let file = config_file("[models.m]\ntokenizer = \"/nowhere/tokenizer.json\"");
    let mut command = kvscout();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(file);
    let output = command.stdout(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("model \"m\"") && said.contains("/nowhere/tokenizer.json"), "{said}");
}

/// An engine's `/tokenize` with a tokenizer of ours, which answers with this status where it refuses.
fn engine(name: &'static str, refusal: u16) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let tokenizer = tokenize_support::load(name, Options::default());
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
            assert!(head.starts_with("POST /tokenize "), "{head}");
            let lower = head.to_ascii_lowercase();
            let length = lower.split("content-length: ").nth(1).and_then(|l| l.lines().next());
            let mut body = vec![0; length.unwrap().trim().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let body = String::from_utf8(body).unwrap();
            let fields: Value = serde_json::from_str(&body).unwrap();
            let ids = match fields["prompt"].as_str() {
                _ if fields["model"] != "m" => panic!("{fields}"),
                Some(text) => tokenizer.text(text, fields["add_special_tokens"] == true),
                None => Chat::parse(&body).and_then(|chat| tokenizer.chat(&chat)),
            };
            let (status, answer) = match ids {
                Ok(ids) => (200, json!({ "count": ids.len(), "tokens": ids })),
                Err(error) => (refusal, json!({ "error": { "message": error.to_string() } })),
            };
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                answer.len()
            );
            stream.write_all((head + &answer).as_bytes()).unwrap();
        }
    });
    base
}

/// Nobody listens there.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Another source of the model, that is asked for tokens only.
fn also(name: &str, base: &str) -> String {
    format!(
        "http = \"{base}\"\n[[source]]\nname = \"{name}\"\nendpoint = \"tcp://127.0.0.1:9\"\nmodel = \"m\""
    )
}

#[test]
fn an_engine_is_asked_and_another_one_where_the_first_does_not_answer() {
    let all = chats_of_python();
    let held: Vec<Vec<u32>> = all.iter().filter_map(|(_, ids)| ids.clone()).collect();
    let config = "models.m.tokenizer = \"engine\"";
    let source = also("8", &nobody()) + &format!("\nhttp = \"{}/\"", engine("llama3", 400));
    let daemon = daemon(config, &source, &held);
    let mut refused = 0;
    for (chat, ids) in &all {
        let (status, answer) = post(&daemon, "/v1/score", &asked(chat));
        match ids {
            Some(ids) => assert!(status == 200 && holds(&answer, ids), "{chat}: {answer}"),
            None => {
                assert_eq!((status, &answer["field"]), (400, &json!("messages")), "{answer}");
                assert!(
                    answer["error"].as_str().unwrap().contains("the engine says: "),
                    "{answer}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused >= 2);
    let text = json!({ "model": "m", "prompt": "hi" });
    assert_eq!(daemon.post("/v1/score", &text).status, 200);
}

#[test]
fn where_no_engine_answers_the_question_may_be_asked_again_later() {
    let config = "models.m.tokenizer = \"engine\"";
    let source = also("8", &nobody()) + &format!("\nhttp = \"{}\"", engine("llama3", 500));
    let daemon = daemon(config, &source, &[vec![1, 2, 3, 4]]);
    let image = json!([{ "role": "user", "content": [{ "type": "image_url" }] }]);
    let answer = daemon.post("/v1/score", &json!({ "model": "m", "messages": image })).json(503);
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("status 500") && answer["reason"] == "unavailable", "{answer}");
}

#[test]
fn more_texts_than_may_wait_for_an_engine_are_refused_at_once() {
    // It takes every question and answers none.
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http = \"http://{}\"", engine.local_addr().unwrap());
    let daemon = daemon("models.m.tokenizer = \"engine\"", &source, &[]);
    let body = asked(r#"{"prompt":"once upon a time"}"#);
    let length = body.len();
    let question = format!(
        "POST /v1/score HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    // 32 are asked at a time, and 192 wait.
    let mut waiting: Vec<TcpStream> = (0..=32 + 192)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.address()).unwrap();
            stream.write_all(question.as_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let mut answer = [0; 4096];
    let mut said = 0;
    eventually("one is answered", || {
        let read = waiting.iter_mut().find_map(|stream| stream.read(&mut answer).ok());
        said = read.unwrap_or_default();
        said > 0
    });
    let said = String::from_utf8_lossy(&answer[..said]);
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("\"overloaded\""), "{said}");
    assert!(said.contains("\r\nretry-after: 1\r\n"), "{said}");
}
