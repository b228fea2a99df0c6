//! Every call of `docs/dialects.md`, made with curl, has the answer that stands below it; every call of
//! `docs/http.md` has one of the form that stands below it.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod tokenize_support;
mod zmq_support;

use std::process::{Command, Stdio};

use std::path::PathBuf;

use daemon_support::{Batch, Daemon};
use failures_support::{batch, names, removed, stored, with};
use kvscout::block::Prompt;
use kvscout::hash::vllm::Algorithm;
use kvscout::tokenize::{Options, Tokenize};
use serde_json::{Value, json};
use zmq_support::{bound_publisher, eventually};

/// Code of a language, in the order of the page.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (language, after) = after.split_once('\n').unwrap();
        let (code, after) = after.split_once("\n```").unwrap();
        blocks.push((language, code));
        rest = after;
    }
    blocks
}

/// The daemon that a page begins with, started by its flags but for addresses; a file that it names has this text.
fn started(page: &str, endpoint: &str, more: &[&str], file: &str) -> Daemon {
    let all = blocks(page);
    let commands: Vec<&str> =
        all.iter().filter_map(|(_, code)| code.strip_prefix("kvscout serve ")).collect();
    let [command] = commands[..] else { panic!("one daemon for all calls: {commands:?}") };
    let (command, named) = match command.split_once(" --config ") {
        Some((flags, rest)) => {
            let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
            (format!("{flags} {more}"), Some(name))
        }
        None => (command.to_owned(), None),
    };
    assert!(named.is_none_or(|name| page.contains(&format!("\n`{name}`:\n"))), "{named:?}");
    // The page's engine is on a machine that the test has not.
    let here =
        command.replace("tcp://10.0.0.7:5557", endpoint).replace("127.0.0.1:13334", "127.0.0.1:0");
    assert!(here.contains(endpoint), "{command}");
    let flags: Vec<&str> = here.split_whitespace().chain(more.iter().copied()).collect();
    let daemon = Daemon::start(&flags, file, &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    daemon
}

/// Whether there is a curl, which there has to be where clients are required.
fn has_curl() -> bool {
    let is_there = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(is_there || std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "there is no curl");
    if !is_there {
        eprintln!("skipped: there is no curl");
    }
    is_there
}

#[test]
fn every_call_has_the_answer_that_stands_below_it() {
    if !has_curl() {
        return;
    }
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let page = include_str!("../docs/dialects.md");
    let tokenizer = tokenize_support::folder("llama3");
    let all = blocks(page);
    let file = all.iter().find_map(|(kind, code)| (*kind == "toml").then_some(code)).unwrap();
    assert!(file.contains("\"org/m\""), "{file}");
    let file = file.replace("org/m", tokenizer.to_str().unwrap());
    let daemon = started(page, &endpoint, &[], &file);
    let tokens: Vec<u32> = (1..=16).collect();
    let text = tokenize_support::load("llama3", Options::default());
    let text = text.text(tokenize_support::PAGES_TEXT, true).unwrap();
    let sixteen = |name, tokens| with(stored(&[name], None, tokens), &[("block_size", json!(16))]);
    // Of nobody's chain, so that no contract is found for them.
    let payload = batch(&[sixteen(11, &tokens), sixteen(21, &text[..16])]);
    daemon.feed(&socket, "", &Batch { seq: 0, payload }, "7");

    // What follows is the business of tests/grpc.rs.
    let page = page.split_once("\n## gRPC").unwrap().0;
    let is_call =
        |(kind, code): &(&str, &str)| *kind != "toml" && !code.starts_with("kvscout serve");
    let calls_and_answers: Vec<_> = blocks(page).into_iter().filter(is_call).collect();
    let mut calls = 0;
    for pair in calls_and_answers.chunks(2) {
        let [("sh", call), ("json", answer)] = pair else {
            panic!("a call, then its answer: {pair:?}")
        };
        // The page's engines are on machines that the test has not.
        let here = call
            .replace("localhost:13333", daemon.address())
            .replace("tcp://10.0.0.8:5557", "tcp://127.0.0.1:9");
        let run = Command::new("sh").args(["-c", &here]).output().unwrap();
        let found = String::from_utf8(run.stdout).unwrap();
        let found = found
            .replace(endpoint.as_str(), "tcp://10.0.0.7:5557")
            .replace("tcp://127.0.0.1:9", "tcp://10.0.0.8:5557");
        let found: Value =
            serde_json::from_str(&found).unwrap_or_else(|_| panic!("{call}: {found}"));
        let expected: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(found, expected, "{call}");
        calls += 1;
    }
    assert!(calls >= 16, "{calls}");
}

/// JSON values, one after the other.
fn values(text: &str) -> Vec<Value> {
    let values = serde_json::Deserializer::from_str(text).into_iter();
    values.map(|value| value.unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
}

/// Where two values have another form: other fields, or a value of another kind. What is null on one side may be
/// anything; of lists the first elements are compared.
fn difference(documented: &Value, found: &Value, at: &str) -> Option<String> {
    match (documented, found) {
        (Value::Null, _) | (_, Value::Null) => None,
        (Value::Object(documented), Value::Object(found)) => {
            let names = |object: &serde_json::Map<String, Value>| {
                object.keys().cloned().collect::<std::collections::BTreeSet<_>>()
            };
            let other: Vec<String> =
                names(documented).symmetric_difference(&names(found)).cloned().collect();
            if !other.is_empty() {
                return Some(format!("{at}: {other:?}"));
            }
            documented
                .iter()
                .find_map(|(name, value)| difference(value, &found[name], &format!("{at}.{name}")))
        }
        (Value::Array(documented), Value::Array(found)) => {
            let (documented, found) = (documented.first()?, found.first()?);
            difference(documented, found, &format!("{at}[0]"))
        }
        _ => {
            let is_same = std::mem::discriminant(documented) == std::mem::discriminant(found);
            (!is_same).then(|| format!("{at}: {documented} and {found}"))
        }
    }
}

#[test]
fn every_call_of_the_reference_has_an_answer_of_the_form_that_stands_below_it() {
    if !has_curl() {
        return;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("http-docs-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let tokenizer = tokenize_support::folder("llama3");
    let file =
        format!("[state]\nshare = true\n[models.m]\ntokenizer = \"{}\"\n", tokenizer.display());
    let state = folder.join("state");
    let page = include_str!("../docs/http.md");
    let daemon = started(page, &endpoint, &["--state", state.to_str().unwrap()], &file);
    // The first and the third token of the page's prompt, and not the second.
    let names = names("0.33.0", Algorithm::Sha256Cbor, "0", 1, &Prompt::new(&[1, 2, 3]));
    let block = with(stored(&names, None, &[1, 2, 3]), &[("block_size", json!(1))]);
    let payload = batch(&[block, removed(&names[1..2], "GPU")]);
    daemon.feed(&socket, "", &Batch { seq: 0, payload }, "7");

    let all = blocks(page);
    let mut calls = 0;
    for (n, (kind, call)) in all.iter().enumerate() {
        if *kind != "sh" || call.starts_with("kvscout serve") {
            continue;
        }
        let mut here = call.replace("localhost:13333", daemon.address());
        // The page's engines are on machines that the test has not.
        for host in ["tcp://10.0.0.8:5557", "tcp://10.0.0.9:5557"] {
            here = here.replace(host, "tcp://127.0.0.1:9");
        }
        let run = Command::new("sh").args(["-c", &here]).current_dir(&folder).output().unwrap();
        assert!(run.status.success(), "{call}");
        calls += call.matches("curl ").count();
        let text = String::from_utf8(run.stdout).unwrap();
        match all.get(n + 1) {
            // What stands below it is of another section.
            _ if call.contains("/metrics") => assert!(text.ends_with("# EOF\n"), "{text}"),
            Some(("json", documented)) => {
                let (documented, found) = (values(documented), values(&text));
                assert_eq!(documented.len(), found.len(), "{call}: {text}");
                for (documented, found) in documented.iter().zip(&found) {
                    assert_eq!(difference(documented, found, ""), None, "{call}: {found}");
                }
            }
            _ if call.contains("-o snapshot") => {
                assert!(std::fs::metadata(folder.join("snapshot")).unwrap().len() > 100);
            }
            _ => {
                let found = values(&text);
                assert!(found.len() == 1 && found[0].get("error").is_none(), "{call}: {text}");
            }
        }
    }
    assert!(calls >= 22, "{calls}");
}
