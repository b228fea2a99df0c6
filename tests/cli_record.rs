//! `kvscout record` from outside: a real publisher is recorded, and the recording gives the engine's own answers.
#![cfg(feature = "daemon")]

mod daemon_support;
mod recording_support;
mod zmq_support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use daemon_support::{batches, kvscout};
use recording_support::driven;
use serde_json::{Value, json};
use zmq_support::engine::{Engine, Shape};
use zmq_support::{bound_publisher, eventually, publish};

/// A path where nothing is.
fn nowhere(name: &str) -> PathBuf {
    let name = format!("record-{}-{name}.jsonl", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

fn record(flags: &[&str]) -> Child {
    let mut command = kvscout();
    command.arg("record").args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[track_caller]
fn end(child: Child, signal: &str) -> Output {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    child.wait_with_output().unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What `kvscout replay` answers.
#[track_caller]
fn replayed(lines: &[Value]) -> Vec<Value> {
    let mut child =
        kvscout().arg("replay").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    self::lines(str::from_utf8(&output.stdout).unwrap())
}

/// The batches of one worker in a recording, and what else is in it.
fn of<'a>(recorded: &'a [Value], pod: &str) -> (Vec<&'a Value>, Vec<&'a Value>) {
    recorded.iter().filter(|line| line["worker"] == pod).partition(|line| line["op"] == "events")
}

#[test]
fn a_recording_begins_at_0_has_no_gaps_and_gives_the_engines_own_answers() {
    let mut engine = Engine::start(&zmq::Context::new(), Shape::WithTopic, vec![]);
    let batches = batches();
    // These were published before anybody listened.
    batches[..20].iter().for_each(|batch| drop(engine.lose_batch(batch.payload.clone())));
    let path = nowhere("whole");
    let source = format!("pod={},replay={}", engine.at, engine.replay_at);
    let flags = ["--source", &source, "--model", "m", "--output", path.to_str().unwrap()];
    let child = record(&flags);
    let written = || fs::read_to_string(&path).map_or(0, |text| text.lines().count());
    eventually("the past is recorded", || written() == 21);
    for batch in &batches[20..] {
        // The last one is sent: what is lost behind it nobody can know of.
        match batch.seq % 3 == 1 && (batch.seq as usize) < batches.len() - 1 {
            true => drop(engine.lose_batch(batch.payload.clone())),
            false => engine.publish_batch(batch.payload.clone()),
        }
    }
    eventually("everything is recorded", || written() == batches.len() + 1);
    let Output { status, stdout, stderr } = end(child, "INT");
    let said = String::from_utf8(stderr).unwrap();
    assert!(status.success() && stdout.is_empty(), "{said}");
    let last = batches.len() - 1;
    let summary = format!("pod rank 0: {} batches, from 0 to {last}\n", batches.len());
    assert!(said.ends_with(&summary), "{said}");
    assert!(said.contains("holds the tokens of every prompt"), "{said}");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "prompts are in it");

    let recorded = lines(&fs::read_to_string(&path).unwrap());
    let known = json!({
        "op": "worker", "worker": "pod", "rank": 0, "model": "m", "vllm": null, "block_size": null,
    });
    assert_eq!(recorded[0], known);
    let (steps, expected) = driven(include_str!("vectors/drive-0.33.0.jsonl"));
    let (mut asked, mut events) = (vec![recorded[0].clone()], recorded[1..].iter());
    for mut step in steps {
        if step["op"] == "query" {
            step["model"] = json!("m");
            asked.push(step);
        } else {
            let found = events.next().unwrap();
            assert_eq!((&found["seq"], &found["payload"]), (&step["seq"], &step["payload"]));
            asked.push(found.clone());
        }
    }
    let answers = replayed(&asked);
    assert_eq!(answers.len(), expected.len());
    for (answer, (id, cached)) in answers.iter().zip(&expected) {
        let worker = &answer["workers"][0];
        assert_eq!((&answer["id"], &worker["trust"]), (id, &json!("exact")));
        assert_eq!(worker["expected_cached_tokens"], *cached, "{answer}");
    }
}

#[test]
fn without_a_replay_socket_batches_are_written_as_they_come_and_a_gap_shows_in_the_replay() {
    let context = zmq::Context::new();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let path = nowhere("raw");
    let child = record(&["--source", &format!("pod={at}"), "-o", path.to_str().unwrap()]);
    let text = || fs::read_to_string(&path).unwrap_or_default();
    let batches = batches();
    eventually("the first batch is recorded", || {
        publish(&publisher, b"", 0, &batches[0].payload);
        text().contains("\"seq\":0")
    });
    publish(&publisher, b"", 2, &batches[2].payload);
    eventually("a later batch is recorded", || text().contains("\"seq\":2"));
    let said = String::from_utf8(end(child, "TERM").stderr).unwrap();
    assert!(said.contains("from 0 to 2; 1 missing"), "{said}");
    let mut recorded = lines(&text());
    recorded.push(json!({ "op": "query", "id": 1, "token_ids": [1] }));
    let answers = replayed(&recorded);
    let worker = &answers[0]["workers"][0];
    assert_eq!((&worker["reason"], &worker["as_of"]), (&json!("gap"), &json!(2)));
}

#[test]
fn a_recording_of_several_engines_and_ranks_tells_them_apart_and_ends_by_itself() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    let batches = batches();
    batches[..3].iter().for_each(|batch| drop(engine.lose_batch(batch.payload.clone())));
    let (_silent, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let known = format!("b={},replay={},block_size=16,vllm=0.33.0", engine.at, engine.replay_at);
    let child = record(&["--source", &known, "--source", &format!("a={at}"), "--for", "3s"]);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{said}");
    let recorded = lines(str::from_utf8(&stdout).unwrap());
    let (events, facts) = of(&recorded, "b");
    assert_eq!(events.iter().map(|line| &line["seq"]).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((&facts[0]["vllm"], &facts[0]["block_size"]), (&json!("0.33.0"), &json!(16)));
    let (events, facts) = of(&recorded, "a");
    assert!(events.is_empty() && facts.len() == 1);
    assert!(said.contains("a rank 0: 0 batches\n"), "{said}");
}

#[test]
fn what_cannot_be_recorded_is_said_in_one_line() {
    let taken = nowhere("taken");
    fs::write(&taken, "kept").unwrap();
    let (source, taken) = ("pod=tcp://127.0.0.1:9", taken.to_str().unwrap());
    for (flags, status, named) in [
        (&[][..], 2, "--source NAME=tcp://host:port"),
        (&["--source", "pod"], 2, "\"pod\""),
        (&["--source", source, "--for", "5"], 2, "500ms, 5s or 2m"),
        (&["--source", source, "--output", taken], 2, taken),
        (&["--source", source, "--output", "/nowhere/a.jsonl"], 2, "/nowhere/a.jsonl"),
        (&["--source", source, "--config", "/nowhere/a.toml"], 2, "/nowhere/a.toml"),
        (&["--source", source, "--for", "200ms"], 1, "pod rank 0: no publisher was reached"),
    ] {
        let output = record(flags).wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{flags:?}: {said}");
        assert!(said.lines().last().unwrap().contains(named), "{flags:?}: {said}");
    }
    assert_eq!(fs::read_to_string(taken).unwrap(), "kept");
}

#[test]
fn whoever_reads_along_may_stop_reading() {
    let mut engine = Engine::start(&zmq::Context::new(), Shape::Plain, vec![]);
    let batches = batches();
    batches[..30].iter().for_each(|batch| drop(engine.lose_batch(batch.payload.clone())));
    let mut child =
        record(&["--source", &format!("pod={},replay={}", engine.at, engine.replay_at)]);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
}
