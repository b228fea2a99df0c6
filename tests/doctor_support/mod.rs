//! `kvscout doctor` as it is called, and what it is shown.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::Output;

use serde_json::Value;

use crate::daemon_support::kvscout;
use crate::zmq_support::engine::{Engine, Shape};

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

/// What is said of an idle engine whose replay socket has these batches; with the exit status.
pub(crate) fn of_buffer(batches: Vec<(u64, Vec<u8>)>, flags: &[&str]) -> (Vec<Value>, i32) {
    let engine = Engine::start(&zmq::Context::new(), Shape::WithTopic, Vec::new());
    *engine.buffer.lock().unwrap() = batches;
    let replay = engine.replay_at.to_string();
    findings(&[&["--events", &engine.at, "--replay", &replay, "--seconds", "1"], flags].concat())
}
