//! What `docs/troubleshooting.md` says of refusals and of degraded workers is what a daemon says.
#![cfg(feature = "daemon")]

mod daemon_store_support;
mod daemon_support;
mod docs_support;
mod redis_support;
mod scope_support;
mod zmq_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use daemon_store_support::{STORE, publisher, read_up_to, reader, writer};
use daemon_support::{Daemon, Response, batches};
use docs_support::read;
use redis_support::Server;
use scope_support::Raises;
use serde_json::{Value, json};
use zmq_support::eventually;

const ADMIN: &str = "admin-0123456789abcdef0123456789abcdef";
const SCORE: &str = "score-0123456789abcdef0123456789abcdef";
const TENANT: &str = "tenant-0123456789abcdef0123456789abcdef";

/// The rows of the table below a heading, by their cells.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let page = read(page);
    let (_, section) = page.split_once(&format!("## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let cells = rows.map(|line| line.trim_matches('|').split(" | "));
    cells.map(|cells| cells.map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands between backticks.
fn marked(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn ask(daemon: &Daemon, headers: &str, path: &str, body: Value) -> Response {
    let kind = "content-type: application/json\r\n";
    match body.is_null() {
        true => daemon.send("GET", path, headers, ""),
        false => daemon.send("POST", path, &format!("{headers}{kind}"), &body.to_string()),
    }
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// A daemon with three callers: one that may do all, one that may score, one that is bound to tenant `a`.
fn with_callers() -> Daemon {
    let secret = |name: &str, token: &str| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = path.join(format!("troubleshooting-{}-{name}", std::process::id()));
        fs::write(&path, token).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let (admin, score, tenant) =
        (secret("admin", ADMIN), secret("score", SCORE), secret("tenant", TENANT));
    let config = format!(
        "[auth]\ntoken_file = {admin:?}\n\
         [[caller]]\nname = \"router\"\ntoken_file = {score:?}\nallows = [\"score\"]\n\
         [[caller]]\nname = \"a\"\ntoken_file = {tenant:?}\nallows = [\"score\", \"change\"]\ntenant = \"a\"\n"
    );
    Daemon::start(&[], &config, &[])
}

/// Every refusal of the table, as it comes about.
fn refusals() -> Vec<Response> {
    let question = json!({ "model": "m", "token_ids": [1, 2, 3] });
    let (open, closed) = (Daemon::start(&[], "", &[]), with_callers());
    let registered = json!({
        "model_name": "m", "instance_id": 7, "block_size": 16, "endpoint": "tcp://8.8.8.8:53",
    });
    let mut refusals = vec![
        ask(&open, "", "/v1/score", question.clone()),
        ask(&closed, "", "/workers", Value::Null),
        ask(&closed, &bearer(&format!("{SCORE}0")), "/workers", Value::Null),
        ask(&closed, &bearer(SCORE), "/workers", Value::Null),
        ask(&closed, &bearer(TENANT), "/register_peer", json!({ "url": "http://10.0.0.9:1" })),
        ask(&closed, &bearer(TENANT), "/v1/score", question.clone()),
        ask(&open, "origin: http://elsewhere.example\r\n", "/workers", Value::Null),
        // Beside the number that is sent besides; any of them counts.
        ask(&open, "host: kvscout.example\r\n", "/workers", Value::Null),
        ask(&open, "", "/register", registered),
        ask(&open, "", "/snapshot", Value::Null),
    ];
    let few = Daemon::start(&[], "[limits]\nconnections = 1\n", &[]);
    let held = TcpStream::connect(few.address()).unwrap();
    eventually("the only place is taken", || {
        let answer = ask(&few, "", "/v1/score", question.clone());
        let is_over = answer.status == 503;
        if is_over {
            refusals.push(answer);
        }
        is_over
    });
    drop(held);
    let worker = json!({
        "model_name": "m", "instance_id": 7, "block_size": 16, "endpoint": "tcp://127.0.0.1:9",
    });
    let none = Daemon::start(&[], "[limits]\nregistered_workers = 0\n", &[]);
    refusals.push(ask(&none, "", "/register", worker));
    refusals.push(second_dump(&open));
    refusals
}

/// What is said of a dump while another one is made.
fn second_dump(daemon: &Daemon) -> Response {
    let over = AtomicBool::new(false);
    let mut told = None;
    thread::scope(|scope| {
        let _over = Raises(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                ask(daemon, "", "/dump", Value::Null);
            }
        });
        eventually("two meet", || {
            told = Some(ask(daemon, "", "/dump", Value::Null)).filter(|told| told.status == 503);
            told.is_some()
        });
    });
    told.unwrap()
}

#[test]
fn every_refusal_is_the_one_that_the_page_shows() {
    let rows = rows("docs/troubleshooting.md", "A request is refused");
    let mut left: Vec<Response> = refusals();
    for row in &rows[1..] {
        let [seen, words, why, what] = &row[..] else { panic!("{row:?}") };
        assert!(!why.is_empty() && !what.is_empty(), "{row:?}");
        let status: u16 = seen.split(' ').next().unwrap().parse().unwrap();
        let (reason, words) = (marked(seen)[0], marked(words)[0]);
        let at = left.iter().position(|answer| {
            let said: Value = serde_json::from_str(&answer.body).unwrap();
            let error = said["error"].as_str().unwrap();
            (answer.status, &said["reason"]) == (status, &json!(reason)) && error.contains(words)
        });
        let bodies: Vec<&str> = left.iter().map(|answer| answer.body.as_str()).collect();
        let at = at.unwrap_or_else(|| panic!("no daemon says {seen} {words}: {bodies:#?}"));
        let answer = left.remove(at);
        for header in &marked(seen)[1..] {
            let (name, value) = header.split_once(": ").unwrap();
            assert_eq!(answer.header(name), Some(value), "{seen}");
        }
    }
    let bodies: Vec<&str> = left.iter().map(|answer| answer.body.as_str()).collect();
    assert!(left.is_empty(), "the page has no row for {bodies:#?}");
}

/// What http.md lists of these statuses, which the code's own reasons are in.
#[test]
fn every_reason_to_deny_something_has_a_row_here_and_there() {
    let here = rows("docs/troubleshooting.md", "A request is refused");
    let mut rows_here: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in &here[1..] {
        let status = row[0].split(' ').next().unwrap().to_owned();
        rows_here.entry(status).or_default().insert(marked(&row[0])[0].to_owned());
    }
    let there = rows("docs/http.md", "Errors");
    for status in ["401", "403"] {
        let row = there.iter().find(|row| row[0] == status).unwrap();
        // Before each colon, or between commas, stands a reason; behind it what it is.
        let reasons = marked(&row[1])
            .into_iter()
            .filter(|word| !word.contains(['.', ':', '-']) && source_has(word));
        let reasons: BTreeSet<String> = reasons.map(str::to_owned).collect();
        assert_eq!(rows_here[status], reasons, "{status}");
    }
    let source = refusals_of_the_source();
    for (status, name) in [("401", "UNAUTHORIZED"), ("403", "FORBIDDEN")] {
        for reason in source.get(name).into_iter().flatten() {
            assert!(rows_here[status].contains(reason), "{status} {reason} has no row");
        }
    }
    assert!(rows_here["403"].len() >= 6, "{rows_here:?}");
}

const SOURCES: [&str; 2] = ["src/bin/kvscout/http/refusal.rs", "src/bin/kvscout/auth/browser.rs"];

fn source_has(reason: &str) -> bool {
    SOURCES.iter().any(|file| read(file).contains(&format!("\"{reason}\"")))
}

/// The reasons that stand beside a status in the source, by the status.
fn refusals_of_the_source() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for part in read(SOURCES[0]).split("StatusCode::").skip(1) {
        let Some((status, rest)) = part.split_once(", \"") else { continue };
        if status.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            let reason = rest.split('"').next().unwrap().to_owned();
            found.entry(status.to_owned()).or_default().insert(reason);
        }
    }
    found
}

#[test]
fn a_worker_is_degraded_for_reasons_that_the_page_and_the_page_on_trust_have() {
    let first = |row: &Vec<String>| marked(&row[0]).first().map(|reason| (*reason).to_owned());
    let here = rows("docs/troubleshooting.md", "A worker is `degraded`");
    let here: BTreeSet<String> = here.iter().filter_map(first).collect();
    let trust = read("docs/trust.md");
    let (_, table) = trust.split_once("| reason | what happened | what ends it |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let lines = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let there: BTreeSet<String> =
        lines.map(|line| line.split('`').next().unwrap().to_owned()).collect();
    assert_eq!(here, there);
    let source = read("src/ingest/mod.rs");
    let labels = source.lines().filter(|line| line.trim().starts_with("Reason::"));
    let known: BTreeSet<String> =
        labels.filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect();
    assert!(known.contains("gap") && known.contains("store"), "{known:?}");
    assert_eq!(here, known);
}

#[test]
fn a_reader_without_its_store_is_degraded_as_the_page_says_and_is_well_again_by_itself() {
    let page = rows("docs/troubleshooting.md", "A worker is `degraded`");
    let row = page.iter().find(|row| row[0] == "`store`").unwrap();
    let shown: BTreeSet<&str> = marked(&row[2]).into_iter().collect();
    let mut server = Server::start();
    let (socket, endpoint) = publisher();
    let writer = writer(&server.address(), &endpoint, STORE);
    daemon_store_support::feed(&writer, &socket, &batches()[..20]);
    let reader = reader(&server.address());
    read_up_to(&reader, batches()[19].seq);
    let is = |trust: Value, reason: Value| {
        let worker = reader.worker("7", 0);
        (&worker["trust"], &worker["reason"]) == (&trust, &reason)
    };
    assert!(shown.contains("/ready") && shown.contains("kvscout_store_servers_ready"), "{shown:?}");
    server.kill();
    eventually("the worker is degraded", || is(json!("degraded"), json!("store")));
    eventually("/ready says so", || reader.get("/ready").status == 503);
    assert_eq!(reader.metric("kvscout_store_servers_ready"), Some(0.0));
    server.restart();
    eventually("it is well again", || is(json!("exact"), Value::Null));
}
