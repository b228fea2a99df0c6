//! What a router compiles when it adds this crate.

use std::process::Command;

fn tree(features: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-e", "normal,build", "--prefix", "none", "--format", "{p}"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut crates: Vec<String> =
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    crates.sort();
    crates.dedup();
    crates
}

#[test]
fn a_router_compiles_no_socket_library_runtime_web_server_or_command_line() {
    let crates = tree(&["--no-default-features"]);
    for name in ["zmq", "zmq-sys", "tokio", "hyper", "axum", "tonic", "redis", "rustls", "clap"] {
        assert!(!crates.iter().any(|c| c == name), "{name} is in the default closure: {crates:?}");
    }
    assert!(crates.len() <= 25, "{} crates in the default closure: {crates:?}", crates.len());
    assert!(crates.iter().any(|c| c == "sha2"), "the tree was read: {crates:?}");
}

#[test]
fn the_default_features_are_none() {
    assert_eq!(tree(&[]), tree(&["--no-default-features"]));
}

#[test]
fn the_shared_index_brings_no_event_library_web_server_command_line_or_second_tls() {
    let crates = tree(&["--no-default-features", "--features", "redis"]);
    for name in ["zmq", "zmq-sys", "axum", "hyper", "clap", "aws-lc-rs", "openssl", "native-tls"] {
        assert!(!crates.iter().any(|c| c == name), "{name} is in the closure of redis: {crates:?}");
    }
    for name in ["redis", "rustls", "ring", "tokio"] {
        assert!(crates.iter().any(|c| c == name), "{name} is in the closure of redis: {crates:?}");
    }
}
