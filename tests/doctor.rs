//! `kvscout doctor` against publishers over real sockets and an engine's HTTP API.
#![cfg(feature = "daemon")]

#[path = "zmq_support/mod.rs"]
mod zmq_support;

mod daemon_support;
mod doctor_support;
mod engine_support;
mod tokenize_support;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use daemon_support::batches;
use doctor_support::{doctor, findings, level, of_buffer};
use engine_support::Engine;
use zmq_support::{bound_publisher, publish};

/// Publishes a recording once, and is there until the test ends.
struct Recording(Arc<AtomicBool>);

impl Recording {
    fn publish(context: &zmq::Context) -> (Recording, String) {
        let (socket, endpoint) = bound_publisher(context, "tcp://127.0.0.1:*");
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        thread::spawn(move || {
            // The subscription takes a moment; the doctor must see batch 0.
            thread::sleep(Duration::from_millis(700));
            for batch in batches() {
                publish(&socket, b"kv@pod@m", batch.seq, &batch.payload);
            }
            while !end.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
        });
        (Recording(ended), endpoint)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_engine_that_publishes_as_it_should_has_no_problem() {
    let context = zmq::Context::new();
    let (_recording, endpoint) = Recording::publish(&context);
    let (findings, status) = findings(&["--events", &endpoint, "--seconds", "4"]);
    assert_eq!(status, 0, "{findings:?}");
    for check in ["reachable", "events", "decoding", "sequence", "contract", "block_size", "scores"]
    {
        assert_eq!(level(&findings, check), "ok", "{check}: {findings:?}");
    }
    assert_eq!(level(&findings, "replay"), "note", "none was given");
}

#[test]
fn a_wrong_expectation_is_a_problem_and_status_1() {
    let context = zmq::Context::new();
    let (_recording, endpoint) = Recording::publish(&context);
    let flags = ["--events", &endpoint, "--seconds", "4", "--block-size", "32"];
    let (findings, status) = findings(&flags);
    assert_eq!((status, level(&findings, "block_size").as_str()), (1, "problem"));
}

#[test]
fn nobody_at_the_address_is_told_from_something_that_is_no_publisher() {
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = http.local_addr().unwrap().port();
    let text = |port: u16| {
        let endpoint = format!("tcp://127.0.0.1:{port}");
        let output = doctor(&["--events", &endpoint, "--seconds", "1"]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text(taken).contains("no ZMQ publisher"));
    drop(http);
    let nobody = text(taken);
    assert!(nobody.contains("nobody answers") && nobody.contains("--kv-events-config"), "{nobody}");
}

#[test]
fn wrong_flags_are_status_2_and_name_the_value() {
    let output = doctor(&["--events", "http://x"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("http://x"));
    let output = doctor(&["--events", "tcp://h:1", "--probe"]);
    assert_eq!(output.status.code(), Some(2), "--probe needs --engine");
}

#[test]
fn a_replay_tells_all_about_an_idle_engine() {
    let ask = |kept| {
        let kept = batches().into_iter().filter(|batch| batch.seq >= kept);
        of_buffer(kept.map(|batch| (batch.seq, batch.payload)).collect(), &[])
    };
    let (found, status) = ask(0);
    assert_eq!(status, 0, "{found:?}");
    for check in ["reachable", "replay", "contract", "block_size", "scores"] {
        assert_eq!(level(&found, check), "ok", "{check}: {found:?}");
    }
    assert_eq!(level(&found, "events"), "unknown", "it is idle");
    let (found, _) = ask(40);
    assert_eq!(level(&found, "replay"), "note", "its beginning is gone");

    // A publisher is no replay socket.
    let (_idle, events) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let (found, status) = findings(&["--events", &events, "--replay", &events, "--seconds", "1"]);
    assert_eq!((status, level(&found, "replay").as_str()), (1, "problem"));
}

#[test]
fn a_prompt_sent_twice_is_cached_as_predicted() {
    let context = zmq::Context::new();
    let Engine { base, events, .. } = Engine::start(&context, "served", false);
    let flags = ["--events", &events, "--engine", &base, "--seconds", "2", "--probe"];
    let (findings, status) = findings(&flags);
    assert_eq!(status, 0, "{findings:?}");
    for check in ["engine", "prefix_caching", "probe", "contract", "scores"] {
        assert_eq!(level(&findings, check), "ok", "{check}: {findings:?}");
    }
}

#[test]
fn an_engine_that_works_and_announces_nothing_is_found_out() {
    let context = zmq::Context::new();
    let Engine { base, events, .. } = Engine::start(&context, "served", true);
    let flags = ["--events", &events, "--engine", &base, "--seconds", "2", "--probe"];
    let (found, status) = findings(&flags);
    assert_eq!(status, 1);
    assert_eq!(level(&found, "events"), "problem", "{found:?}");
    assert_eq!(level(&found, "probe"), "problem");
    let (found, _) = findings(&[&flags[..6], &["--model", "another"]].concat());
    assert_eq!(level(&found, "model"), "problem");
}

#[test]
fn a_tokenizer_is_compared_with_the_one_of_the_engine() {
    let context = zmq::Context::new();
    let Engine { base, events, .. } = Engine::start(&context, "served", false);
    let ask = |name: &str| {
        let folder = tokenize_support::folder(name);
        let flags = ["--events", &events, "--engine", &base, "--seconds", "1"];
        let (found, _) =
            findings(&[&flags[..], &["--tokenizer", folder.to_str().unwrap()]].concat());
        let found = found.into_iter().find(|finding| finding["check"] == "tokenizer").unwrap();
        (found["level"].as_str().unwrap().to_owned(), found["text"].as_str().unwrap().to_owned())
    };
    let (level, text) = ask("llama3");
    assert_eq!(level, "ok", "{text}");
    assert!(text.starts_with("5 of 5 samples have the engine's ids"), "{text}");
    let (level, text) = ask("gpt2");
    assert_eq!(level, "problem", "{text}");
    assert!(text.contains("text 1 of the comparison: token "), "{text}");
    let (level, text) = ask("nowhere");
    assert!(level == "problem" && text.contains("nowhere"), "{text}");
}
