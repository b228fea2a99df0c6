//! Every call of `docs/dialects.md`, made with curl, has the answer that stands below it.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod tokenize_support;
mod zmq_support;

use std::process::{Command, Stdio};

use daemon_support::{Batch, Daemon};
use failures_support::{batch, stored, with};
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

#[test]
fn every_call_has_the_answer_that_stands_below_it() {
    let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    if curl.is_err() {
        assert!(std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "there is no curl");
        eprintln!("skipped: there is no curl");
        return;
    }
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let source = format!("7={endpoint}");
    let tokenizer = tokenize_support::folder("llama3");
    let file = format!("[models.m]\ntokenizer = \"{}\"", tokenizer.display());
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], &file, &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    let tokens: Vec<u32> = (1..=16).collect();
    let block = with(stored(&[11], None, &tokens), &[("block_size", json!(16))]);
    // Of nobody's chain, so that no contract is found for it.
    daemon.feed(&socket, "", &Batch { seq: 0, payload: batch(&[block]) }, "7");

    let page = include_str!("../docs/dialects.md");
    // What follows is the business of tests/grpc.rs.
    let page = page.split_once("\n## gRPC").unwrap().0;
    let blocks: Vec<_> = blocks(page).into_iter().filter(|(kind, _)| *kind != "text").collect();
    let mut calls = 0;
    for pair in blocks.chunks(2) {
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
