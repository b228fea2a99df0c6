//! The built binary's `demo`, as a newcomer runs it.
#![cfg(feature = "daemon")]

use std::process::Command;

use serde_json::Value;

fn demo(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvscout"));
    let output = command.arg("demo").args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
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
