//! The built binary's `demo`, as a newcomer runs it.
#![cfg(feature = "daemon")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

fn demo(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvscout"));
    let output = command.arg("demo").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A file that is not there yet.
fn scratch(name: &str) -> PathBuf {
    let name = format!("demo-{}-{name}", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

#[test]
fn every_prediction_is_what_the_engine_found_and_kvscout_finds_most() {
    let (status, stdout, stderr) = demo(&["--requests", "300", "--json"]);
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["exact"], true);
    assert_eq!(report["contract"], "vllm sha256_cbor");
    let served = report["requests"].as_u64().unwrap();
    let policies = report["policies"].as_array().unwrap();
    let names: Vec<_> = policies.iter().map(|policy| policy["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["random", "round-robin", "session affinity", "kvscout"]);
    for policy in policies {
        assert_eq!(policy["requests"], served);
        assert_eq!(policy["predicted_equals_actual"], served, "{policy}");
        let engines = policy["requests_per_engine"].as_array().unwrap();
        assert_eq!(engines.iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), served);
    }
    let rate = |n: usize| policies[n]["cached_rate"].as_f64().unwrap();
    assert!((0..3).all(|other| rate(3) > rate(other)), "{policies:#?}");
}

#[test]
fn the_table_names_every_policy_and_fits_a_terminal() {
    let (status, stdout, stderr) = demo(&["--requests", "40", "--engines", "6", "--seed", "3"]);
    assert_eq!(status, Some(0), "{stderr}");
    for expected in ["random", "round-robin", "session affinity", "kvscout serve --source"] {
        assert!(stdout.contains(expected), "{stdout}");
    }
    let widest = stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?}\n{stdout}");
    assert!(!stderr.contains('\x1b'), "no terminal, no control sequences");
}

#[test]
fn a_fleet_of_no_engines_is_wrong_usage() {
    let (status, _, stderr) = demo(&["--engines", "0"]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("1..=16"), "{stderr}");
}

#[test]
fn the_report_is_one_page_with_a_chart_for_each_question() {
    let path = scratch("report.html");
    let arguments = ["--requests", "60", "--engines", "3", "--json", "--report"];
    let (status, stdout, stderr) = demo(&[&arguments[..], &[path.to_str().unwrap()]].concat());
    assert_eq!(status, Some(0), "{stderr}");
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"), "{page}");
    for title in [
        "Prompt tokens found in the cache",
        "The same over time",
        "Balance between the engines",
        "Time to the first token",
        "How long kvscout took to score",
        "In numbers",
    ] {
        assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
    }
    assert_eq!((page.matches("<svg ").count(), page.matches("</svg>").count()), (5, 5));
    assert_eq!(page.matches("class=\"line ").count(), 4, "a line for each policy");
    for word in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "NaN", "inf\""] {
        assert!(!page.contains(word), "{word}");
    }
    // It says what the JSON says.
    let report: Value = serde_json::from_str(&stdout).unwrap();
    for policy in report["policies"].as_array().unwrap() {
        let rate = format!("{:.1} %", 100.0 * policy["cached_rate"].as_f64().unwrap());
        let name = policy["policy"].as_str().unwrap();
        assert!(page.contains(&format!("<tr><td>{name}</td><td>{rate}</td>")), "{name} {rate}");
    }
    assert!(
        page.contains("kvscout demo --engines 3 --blocks 4096 --requests 60 --seed 1"),
        "{page}"
    );
}

/// Requests as recorded ones look: all begin with the same 512 tokens, every third goes on from an earlier one.
fn recorded() -> String {
    let (mut ids, mut next, mut text) = (Vec::<Vec<u64>>::new(), 1, String::new());
    for n in 0..20usize {
        let mut mine = if n % 3 == 2 { ids[n / 3].clone() } else { vec![0] };
        mine.extend(next..next + 2 + (n as u64 * 7) % 11);
        next += 20;
        let tokens = 512 * mine.len() - 100 - n;
        let line = serde_json::json!({
            "timestamp": 900 * (n / 2), "input_length": tokens, "output_length": 40 + n, "hash_ids": mine,
        });
        text += &format!("{line}\n");
        ids.push(mine);
    }
    text
}

/// Replays the first twenty requests of a trace; the least share of cached tokens of any policy.
fn replayed(trace: &str) -> f64 {
    // As many as every machine serves before time runs out: one round.
    let name = trace.rsplit('/').next().unwrap();
    let path = scratch(&format!("{name}.html"));
    let arguments =
        ["--trace", trace, "--requests", "20", "--blocks", "8192", "--json", "--report"];
    let (status, stdout, stderr) = demo(&[&arguments[..], &[path.to_str().unwrap()]].concat());
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["trace"], trace);
    let text = fs::read_to_string(trace).unwrap();
    let lines = text.lines().take(20).map(|line| serde_json::from_str::<Value>(line).unwrap());
    let tokens: u64 = lines.map(|line| line["input_length"].as_u64().unwrap()).sum();
    for policy in report["policies"].as_array().unwrap() {
        assert_eq!(policy["requests"], 20);
        assert_eq!(policy["prompt_tokens"], tokens);
        assert_eq!(policy["predicted_equals_actual"], 20, "{policy}");
    }
    assert!(fs::read_to_string(path).unwrap().contains(name));
    let rate = |n: usize| report["policies"][n]["cached_rate"].as_f64().unwrap();
    (0..4).map(rate).fold(1.0, f64::min)
}

#[test]
fn a_trace_is_replayed_in_its_order_and_every_prediction_holds() {
    let path = scratch("recorded.jsonl");
    fs::write(&path, recorded()).unwrap();
    // Whoever served one before has the tokens that all begin with.
    assert!(replayed(path.to_str().unwrap()) > 0.04);
}

#[test]
#[ignore = "wants a file of the public Mooncake traces: KVSCOUT_TRACE"]
fn a_public_trace_is_replayed_in_its_order_and_every_prediction_holds() {
    assert!(replayed(&std::env::var("KVSCOUT_TRACE").unwrap()) > 0.0);
}

#[test]
fn a_trace_that_is_wrong_is_refused_with_the_line() {
    let good = r#"{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}"#;
    let path = scratch("wrong.jsonl");
    let name = path.to_str().unwrap();
    for (text, said) in [
        (format!("{good}\n{good}\n{{\"timestamp\": 7}}\n"), "line 3: missing field `input_length`"),
        (format!("{good}\n\n{}\n", good.replace("5,", "4,")), "line 3: timestamp 4 is before 5"),
        (
            good.replace("[1, 2]", "[1]"),
            "line 1: 1 hash_ids for an input_length of 600; expected 2",
        ),
        (good.replace("[1, 2]", "[1, -2]"), "line 1: invalid value: integer `-2`, expected u64"),
        (format!("{good}\nno json\n"), "line 2: expected ident"),
        ("\n".to_owned(), "it has no request"),
    ] {
        fs::write(&path, text).unwrap();
        let (status, stdout, stderr) = demo(&["--trace", name]);
        assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains(name), "{stderr}");
    }
    fs::write(
        &path,
        good.replace("600", "9000")
            .replace("[1, 2]", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18]"),
    )
    .unwrap();
    let (_, _, stderr) = demo(&["--trace", name, "--blocks", "256"]);
    assert!(stderr.contains("line 1 of the trace: a prompt of 9000 tokens"), "{stderr}");
    let (_, _, stderr) = demo(&["--trace", "/nowhere/x.jsonl"]);
    assert!(stderr.contains("--trace /nowhere/x.jsonl: No such file"), "{stderr}");
    let (_, _, stderr) = demo(&["--requests", "1", "--report", "/nowhere/x.html"]);
    assert!(stderr.contains("--report /nowhere/x.html: No such file"), "{stderr}");
}

#[test]
fn prompts_of_a_trace_share_what_their_ids_say() {
    // Five conversations, turn by turn; each turn repeats the one before and adds 512 tokens.
    let line = |n: u64| {
        let (conversation, turn) = (n % 5, n / 5);
        let ids: Vec<u64> = (0..turn + 2).map(|block| 100 * conversation + block).collect();
        let (at, tokens) = (10_000 * n, 512 * (turn + 2));
        serde_json::json!({
            "timestamp": at, "input_length": tokens, "output_length": 3, "hash_ids": ids,
        })
        .to_string()
    };
    let path = scratch("conversations.jsonl");
    fs::write(&path, (0..20).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let (status, stdout, stderr) = demo(&["--json", "--trace", path.to_str().unwrap()]);
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rate = |n: usize| report["policies"][n]["cached_rate"].as_f64().unwrap();
    // Of 2 + 3 + 4 + 5 times 512 tokens, 2 + 3 + 4 times where the turn before was.
    let all = 9.0 / 14.0;
    assert!((rate(3) - all).abs() < 1e-9, "kvscout: {report:#}");
    assert!((rate(2) - all).abs() < 1e-9, "session affinity: {report:#}");
    assert!(rate(0) < all && rate(1) < all, "{report:#}");
}
