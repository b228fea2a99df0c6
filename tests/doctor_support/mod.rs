//! `kvscout doctor` as it is called, and what it is shown.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::Output;
use std::thread;

use serde_json::Value;

use crate::daemon_support::kvscout;

pub(crate) fn doctor(flags: &[&str]) -> Output {
    kvscout().arg("doctor").args(flags).output().unwrap()
}

/// The findings of `--json`, with the exit status.
pub(crate) fn findings(flags: &[&str]) -> (Vec<Value>, i32) {
    let output = doctor(&[flags, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (report["findings"].as_array().unwrap().clone(), output.status.code().unwrap())
}

#[track_caller]
pub(crate) fn level(findings: &[Value], check: &str) -> String {
    let found = findings.iter().find(|finding| finding["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {findings:?}"));
    found["level"].as_str().unwrap().to_owned()
}

/// Answers replay requests with these batches, as vLLM 0.33 does.
pub(crate) fn replay_socket(context: &zmq::Context, batches: Vec<(u64, Vec<u8>)>) -> String {
    let socket = context.socket(zmq::ROUTER).unwrap();
    socket.set_linger(0).unwrap();
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    thread::spawn(move || {
        while let Ok(request) = socket.recv_multipart(0) {
            let [peer, empty, from] = &request[..] else { panic!("{} frames", request.len()) };
            assert!(empty.is_empty());
            let from = u64::from_be_bytes(from[..].try_into().unwrap());
            for (seq, payload) in batches.iter().filter(|(seq, _)| *seq >= from) {
                let seq = seq.to_be_bytes();
                let frames: [&[u8]; 5] = [peer, b"", b"kv@pod@m", &seq, payload];
                socket.send_multipart(frames, 0).unwrap();
            }
            let end: [&[u8]; 5] = [peer, b"", b"", &[0xff; 8], b""];
            socket.send_multipart(end, 0).unwrap();
        }
    });
    endpoint
}
