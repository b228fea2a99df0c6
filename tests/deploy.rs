//! What `deploy/` has: the unit as systemd reads it, the container file as far as it can be checked without building it.
#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use daemon_support::{config_file, kvscout};

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The unit with the program under test in place of the installed one, as a file of its own.
fn unit() -> (PathBuf, String) {
    let text = read("deploy/kvscout.service");
    let text = text.replace("/usr/local/bin/kvscout", env!("CARGO_BIN_EXE_kvscout"));
    let folder = config_file("").with_extension("units");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("kvscout.service");
    fs::write(&path, &text).unwrap();
    (path, text)
}

/// What `systemd-analyze` says; `None` where it is not installed and need not be.
fn analyze(arguments: &[&str]) -> Option<Output> {
    let output = Command::new("systemd-analyze").args(arguments).output();
    if output.is_err() {
        assert!(std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "there is no systemd-analyze");
        eprintln!("skipped: there is no systemd-analyze");
    }
    output.ok()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let (path, _) = unit();
    let Some(verified) = analyze(&["verify", "--man=no", path.to_str().unwrap()]) else { return };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // Other units of the machine are not ours to judge.
    let ours = said.lines().filter(|line| line.contains("kvscout"));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(verified.status.success(), "{said}");
}

#[test]
fn the_unit_gives_away_no_more_than_it_needs() {
    let (path, _) = unit();
    let threshold = ["security", "--offline=true", "--threshold=15", path.to_str().unwrap()];
    let Some(security) = analyze(&threshold) else { return };
    // An exposure of 1.5 of 10.
    assert!(security.status.success(), "{}", String::from_utf8_lossy(&security.stdout));
}

#[test]
fn the_units_flags_are_the_programs() {
    let (_, text) = unit();
    let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let file = config_file("");
    let state = file.with_extension("state");
    let start = start
        .replace("/etc/kvscout/kvscout.toml", file.to_str().unwrap())
        .replace("%S/kvscout", state.to_str().unwrap());
    let flags = start.split(' ').skip(1);
    let printed = kvscout().args(flags).arg("--print-config").output().unwrap();
    let config = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.status.success() && config.contains(state.to_str().unwrap()), "{config}");
}

#[test]
fn the_container_is_built_as_the_readme_says_from_files_that_are_there() {
    let file = read("deploy/Containerfile");
    let builds: Vec<&str> = file.lines().filter(|line| line.contains("cargo build")).collect();
    assert_eq!(builds, ["RUN cargo build --locked --release --features daemon --bin kvscout"]);
    assert!(read("README.md").contains("--release --features daemon"));
    let toolchain = read("Cargo.toml");
    let toolchain =
        toolchain.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let image = format!("FROM docker.io/library/rust:{}-", toolchain.trim_matches('"'));
    assert!(file.contains(&image), "no {image}");
    let copies = file.lines().filter_map(|line| line.strip_prefix("COPY "));
    for line in copies.filter(|line| !line.starts_with("--from")) {
        for path in line.split(' ').filter(|path| !path.starts_with("./")) {
            assert!(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{line}");
        }
    }
}

#[test]
fn the_containers_command_is_the_programs() {
    let file = read("deploy/Containerfile");
    let command = file.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    let flags: Vec<String> = serde_json::from_str(command).unwrap();
    let printed = kvscout().args(flags).arg("--print-config").output().unwrap();
    let config = String::from_utf8(printed.stdout).unwrap();
    assert!(config.contains("listen = \"0.0.0.0:13333\""), "{config}");
}
