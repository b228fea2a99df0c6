//! The examples of the shared index do what they say, with a real server. `cargo test` builds them beside its tests.
#![cfg(feature = "daemon")]

mod daemon_store_support;
mod daemon_support;
mod redis_support;
mod zmq_support;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use daemon_store_support::*;
use daemon_support::{Step, batches, recording};
use redis_support::Server;

fn example(name: &str) -> Command {
    let own = std::env::current_exe().unwrap();
    let path: PathBuf = own.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{path:?} is missing: cargo build --example {name} --features redis");
    Command::new(path)
}

#[test]
fn two_routers_share_what_one_of_them_learns() {
    let server = Server::start();
    let output = example("shared_index").arg(server.address()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "tenant/pod-1/0 holds 62 of 62 blocks\n");
}

#[test]
fn a_router_without_an_index_says_what_the_daemons_memory_says() {
    let server = Server::start();
    let (socket, endpoint) = publisher();
    let writer = writer(&server.address(), &endpoint, STORE);
    let all = batches();
    feed(&writer, &socket, &all);
    read_up_to(&reader(&server.address()), all.last().unwrap().seq);
    // The example asks for plain prompts.
    let plain = recording().into_iter().filter_map(|step| match step {
        Step::Question { line, .. } if line["salt"].is_null() && line["lora"].is_null() => {
            Some(line)
        }
        _ => None,
    });
    let (mut asked, mut expected, mut most) = (String::new(), String::new(), 0);
    for line in plain {
        let tokens: Vec<u64> = serde_json::from_value(line["tokens"].clone()).unwrap();
        let row = &writer.post("/v1/score", &question(&line)).json(200)["workers"][0];
        let cached = row["expected_cached_tokens"].as_u64().unwrap();
        let words: Vec<String> = tokens.iter().map(u64::to_string).collect();
        asked += &(words.join(" ") + "\n");
        expected += &format!("7: {cached} tokens cached\n");
        most = most.max(cached);
    }
    assert!(most > 0);
    let mut child = example("shared_reader")
        .args([&server.address(), "m"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}
