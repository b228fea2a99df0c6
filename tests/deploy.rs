//! What `deploy/` has: the unit as systemd reads it, the container file as far as it can be checked without building it.
#![cfg(feature = "daemon")]

mod daemon_support;
mod docs_support;
mod zmq_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use daemon_support::{Daemon, config_file, kvscout};
use docs_support::{Item, items};

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

/// What the page has done to install the unit, in its order.
fn lines_that_install() -> Vec<String> {
    let page = read("docs/operations.md");
    let (_, section) = page.split_once("### Under systemd\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let commands = items(section).into_iter().filter_map(|item| match item {
        Item::Command(command) => Some(command.text),
        _ => None,
    });
    commands.collect()
}

/// The absolute paths in a text.
fn paths(text: &str) -> Vec<String> {
    let words = text.split(|c: char| c.is_whitespace() || "()\"'=:".contains(c));
    words.filter(|word| word.starts_with('/') && word.len() > 1).map(str::to_owned).collect()
}

/// The unit's credentials: what each is a copy of.
fn credentials(unit: &str) -> BTreeMap<&str, &str> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("LoadCredential="));
    lines.map(|line| line.split_once(':').unwrap()).collect()
}

fn has_curl() -> bool {
    let is_there = Command::new("curl").arg("--version").output().is_ok();
    assert!(is_there || std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "there is no curl");
    if !is_there {
        eprintln!("skipped in part: there is no curl");
    }
    is_there
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_lines_that_install_the_unit_make_every_file_that_they_and_it_name() {
    let root = config_file("").with_extension("root");
    let _ = fs::remove_dir_all(&root);
    // Every system has it.
    fs::create_dir_all(root.join("usr/local/bin")).unwrap();
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    let lines = lines_that_install();
    // What calls the service is for when it runs.
    let (calls, lines): (Vec<String>, Vec<String>) =
        lines.into_iter().partition(|line| line.starts_with("curl "));
    let is_run = |line: &&String| !["cargo ", "systemctl "].iter().any(|b| line.starts_with(b));
    assert!(lines.iter().filter(is_run).count() >= 3, "{lines:?}");
    for line in lines.iter().filter(is_run) {
        let mut here = line.clone();
        for path in paths(line) {
            here = here.replace(&path, within(&path).to_str().unwrap());
        }
        let here = here.replace("target/release/kvscout", env!("CARGO_BIN_EXE_kvscout"));
        let mut shell = Command::new("sh");
        shell.args(["-ec", &here]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let run = shell.output().unwrap();
        assert!(run.status.success(), "{here}: {}", String::from_utf8_lossy(&run.stderr));
    }
    let unit = fs::read_to_string(within("/etc/systemd/system/kvscout.service")).unwrap();
    let start = unit.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    let credentials = credentials(&unit);
    let mut named: Vec<String> =
        lines.iter().chain(&calls).flat_map(|line| paths(line)).chain(paths(start)).collect();
    named.extend(credentials.values().map(|path| (*path).to_owned()));
    let needed = unit.lines().filter_map(|line| line.strip_prefix("EnvironmentFile=/"));
    named.extend(needed.map(|path| format!("/{path}")));
    named.retain(|path| path != "/workers");
    assert!(named.len() >= 6, "{named:?}");
    for path in &named {
        assert!(within(path).is_file(), "{path} is named and not made");
    }

    // Whoever the service runs as reads what is not secret, and nobody but root what is.
    let others = |path: &str| mode(&within(path)) & 0o007;
    assert_eq!(others("/usr/local/bin/kvscout"), 0o005);
    assert_eq!((others("/etc/kvscout"), others("/etc/kvscout/kvscout.toml")), (0o005, 0o004));
    let given = root.join("credentials");
    fs::create_dir_all(&given).unwrap();
    for (name, path) in credentials {
        assert_eq!(mode(&within(path)), 0o600, "{path}");
        // What systemd does with it.
        fs::copy(within(path), given.join(name)).unwrap();
        fs::set_permissions(given.join(name), fs::Permissions::from_mode(0o400)).unwrap();
    }
    let config = fs::read_to_string(within("/etc/kvscout/kvscout.toml")).unwrap();
    let here = config.replace("/run/credentials/kvscout.service", given.to_str().unwrap());
    assert_ne!(here, config);
    let daemon = Daemon::start(&[], &here, &[]);
    assert_eq!(daemon.get("/workers").status, 401);
    let token = fs::read_to_string(within("/etc/kvscout/token")).unwrap();
    let headers = format!("authorization: Bearer {}\r\n", token.trim());
    let workers = daemon.send("GET", "/workers", &headers, "").json(200);
    assert_eq!(calls.len(), 1, "{calls:?}");
    if has_curl() {
        let here = calls[0].replace("localhost:13333", daemon.address());
        let here = here.replace("/etc/kvscout/", within("/etc/kvscout/").to_str().unwrap());
        let call = Command::new("sh").args(["-ec", &here]).output().unwrap();
        let said = String::from_utf8_lossy(&call.stdout).into_owned();
        let told: serde_json::Value = serde_json::from_str(&said).expect(&said);
        assert_eq!(told, workers, "{here}");
    }
    // What is shown there and not in effect is right, too.
    let whole: String = config
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let (_, source) = whole.split_once("[[source]]").unwrap();
    let file = config_file(&format!("[[source]]{source}"));
    let printed =
        kvscout().args(["serve", "--print-config", "--config"]).arg(file).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let _ = fs::remove_dir_all(&root);
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
