//! The daemon at a glance: `/v1/status`, `kvscout top` in a real terminal, the page at `/` in a real browser.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod zmq_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use daemon_support::{Batch, Daemon, kvscout};
use failures_support::{batch, removed, stored, with};
use serde_json::{Value, json};
use zmq_support::{bound_publisher, eventually};

/// What somebody calls a pod who wants a browser to run it.
const MARKUP: &str = "<img src=x onerror=document.title='owned'>";

/// What somebody calls a pod who wants a terminal to obey it.
const SEQUENCE: &str = "evil\u{1b}[2J\u{1b}]0;owned\u{7}";

/// A daemon with pod 7, which holds two blocks on its GPU and one of them in host memory, too; with pods that nobody
/// reaches; asked for what pod 7 holds and for as many tokens that nobody does.
fn site(others: &[&str]) -> (Daemon, zmq::Socket) {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let source = format!("7={endpoint}");
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], "", &[]);
    eventually("the link is up", || daemon.worker("7", 0)["trust"] == "exact");
    for pod in others {
        let body = json!({
            "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": pod,
            "block_size": 4, "dp_rank": 0,
        });
        daemon.post("/register", &body).json(200);
    }
    let tokens: Vec<u32> = (0..8).collect();
    let first = batch(&[
        stored(&[11, 12, 13], None, &(0..12).collect::<Vec<u32>>()),
        with(stored(&[11], None, &tokens[..4]), &[("medium", json!("CPU"))]),
        removed(&[13], "GPU"),
    ]);
    daemon.feed(&socket, "", &Batch { seq: 0, payload: first }, "7");
    for tokens in [tokens, (100..108).collect()] {
        daemon.post("/v1/score", &json!({ "model": "m", "token_ids": tokens })).json(200);
    }
    (daemon, socket)
}

fn top(daemon: &Daemon, flags: &[&str]) -> Output {
    let url = format!("http://{}", daemon.address());
    let mut command = kvscout();
    command.args(["top", "--url", &url, "--every", "200ms"]).args(flags).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_status_counts_what_came_what_is_held_and_what_was_asked() {
    let (daemon, _socket) = site(&["8"]);
    let status = daemon.get("/v1/status").json(200);
    assert_eq!(status["ready"], true);
    assert_eq!(status["index"]["budget_bytes"], 8_u64 << 30);
    assert_eq!(status["index"]["entries"], 3);
    let events = json!({ "batches": 1, "events": 3, "stored": 4, "removed": 1, "missing": 0 });
    assert_eq!(status["events"], events);
    let scores = &status["scores"];
    assert_eq!((&scores["questions"], &scores["hits"]), (&json!(2), &json!(1)));
    assert_eq!((&scores["asked_tokens"], &scores["expected_tokens"]), (&json!(16), &json!(4)));
    let latency = scores["latency"].as_array().unwrap();
    let timed: u64 = latency.iter().map(|bucket| bucket["questions"].as_u64().unwrap()).sum();
    assert_eq!(timed, 2);
    let workers = status["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    let seven = &workers[0];
    let blocks = json!({ "gpu": 2, "cpu": 1, "disk": 0, "remote": 0, "unknown": 0 });
    assert_eq!((&seven["worker"], &seven["blocks"]), (&json!("7"), &blocks));
    assert_eq!((&seven["trust"], &seven["link"]), (&json!("exact"), &json!("up")));
    assert_eq!((&seven["as_of"], &seven["behind"]), (&json!(0), &json!(0)));
    assert!(seven["seconds_since_batch"].as_f64().unwrap() >= 0.0);
    let eight = &workers[1];
    assert_eq!((&eight["trust"], &eight["link"]), (&json!("silent"), &json!("down")));
    assert_eq!((&eight["as_of"], &eight["seconds_since_batch"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_worker_whose_batches_wait_says_how_far_it_is_behind() {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let source = format!("7={endpoint}");
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], "", &[]);
    // As before vLLM 0.17, without extra keys: what the name means has to be found out first.
    let hidden = batch(&[with(stored(&[11], None, &[1, 2, 3, 4]), &[("extra_keys", Value::Null)])]);
    eventually("batches wait", || {
        zmq_support::publish(&socket, b"", 0, &hidden);
        zmq_support::publish(&socket, b"", 1, &hidden);
        let line = &daemon.get("/v1/status").json(200)["workers"][0];
        line["trust"] == "syncing" && line["behind"] == 2
    });
}

#[test]
fn one_frame_for_scripts_has_every_worker_and_rates_and_nothing_that_moves_a_cursor() {
    let (daemon, _socket) = site(&["8", SEQUENCE]);
    let output = top(&daemon, &["--once"]);
    assert!(output.status.success(), "{}", text(output.stderr));
    let frame = text(output.stdout);
    assert!(!frame.contains(|c: char| c.is_control() && c != '\n'), "{frame:?}");
    let row = |name: &str| frame.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(row("7 ").contains("exact"), "{frame}");
    assert!(row("8 ").contains("silent, link down"), "{frame}");
    assert!(row("evil").contains("]0;owned"), "{frame}");
    assert!(row("scores").contains("hit ratio 25 % of 16 tokens"), "{frame}");
    assert!(row("index").contains("gpu 2, cpu 1"), "{frame}");

    let output = top(&daemon, &["--once", "--json"]);
    let document: Value = serde_json::from_str(&text(output.stdout)).unwrap();
    assert_eq!(document["workers"].as_array().unwrap().len(), 3);
    assert_eq!(document["rates"]["events"], 0.0);
    assert!(document["rates"]["over_seconds"].as_f64().unwrap() >= 0.2);
}

#[test]
fn without_a_terminal_or_a_daemon_it_ends_and_says_what_would_be_right() {
    let (daemon, _socket) = site(&[]);
    let output = top(&daemon, &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(output.stderr);
    assert!(said.contains("--once") && said.lines().count() == 1, "{said}");
    let output = top(&daemon, &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    for (url, status, expected) in
        [("http://127.0.0.1:9", 1, "http://127.0.0.1:9: "), ("127.0.0.1:9", 2, "http://HOST:PORT")]
    {
        let output = kvscout().args(["top", "--once", "--url", url]).output().unwrap();
        let said = text(output.stderr);
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(expected) && said.lines().count() == 1, "{said}");
    }
    let output = kvscout().args(["top", "--once", "--every", "1h"]).output().unwrap();
    assert!(text(output.stderr).contains("500ms, 5s or 2m"));
}

#[test]
fn who_is_asked_is_asked_at_its_own_address_whatever_proxy_the_environment_names() {
    let (daemon, _socket) = site(&[]);
    // Nobody listens there.
    let proxy = "http://127.0.0.1:9";
    let url = format!("http://{}", daemon.address());
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let mut command = kvscout();
        command.args(["top", "--once", "--url", &url, "--every", "200ms"]).env(variable, proxy);
        let output = command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
        assert!(output.status.success(), "{variable}: {}", text(output.stderr));
    }
}

/// A program that tests need and that not every machine has.
fn needed(found: Option<Command>, what: &str) -> Option<Command> {
    let required = std::env::var_os("KVSCOUT_TEST_CLIENTS").is_some();
    assert!(found.is_some() || !required, "there is no {what}");
    if found.is_none() {
        eprintln!("skipped: there is no {what}");
    }
    found
}

fn runs(command: &str, flags: &[&str]) -> bool {
    let mut probe = Command::new(command);
    probe.args(flags).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

#[test]
fn in_a_real_terminal_it_follows_obeys_ends_and_gives_the_terminal_back() {
    let found = ["python3", "/usr/bin/python3"].into_iter();
    let python = found.into_iter().find(|python| runs(python, &["-c", "import pyte"]));
    let what = "Python with pyte (Debian: python3-pyte)";
    let Some(mut python) = needed(python.map(Command::new), what) else { return };
    let many: Vec<String> = (0..60).map(|n| format!("many-{n:02}")).collect();
    let others: Vec<&str> = many.iter().map(String::as_str).chain([SEQUENCE]).collect();
    let (daemon, _socket) = site(&others);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/top_terminal.py");
    python.env("PYTHONDONTWRITEBYTECODE", "1").arg(script);
    let run = python.args([env!("CARGO_BIN_EXE_kvscout"), daemon.address()]).output().unwrap();
    let said = text(run.stdout) + &text(run.stderr);
    assert!(run.status.success(), "{said}");
    assert_eq!(said.lines().count(), 4, "{said}");
}

fn browser() -> Option<Command> {
    let mut found = ["chromium", "chromium-browser", "google-chrome"].into_iter();
    let found = found.find(|browser| runs(browser, &["--version"]))?;
    // One that hangs is no reason to wait for ever.
    let mut command = Command::new("timeout");
    command.args(["180", found]);
    Some(command)
}

/// What a browser makes of the page after a while, and what it complained of.
fn browse(mut browser: Command, host: &str, flags: &[&str]) -> (String, String) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let profile = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "browser-{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    ));
    // Of a run that was cut off.
    let _ = fs::remove_dir_all(&profile);
    let run = browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1200,900"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(flags)
        .arg(format!("http://{host}/"))
        .output()
        .unwrap();
    let _ = fs::remove_dir_all(&profile);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{said}");
    (text(run.stdout), said)
}

/// The elements of a document that begin with this, up to the next ones' begin.
fn elements<'a>(document: &'a str, begin: &str) -> Vec<&'a str> {
    document.split(begin).skip(1).collect()
}

#[test]
fn in_a_real_browser_the_page_shows_the_workers_and_no_name_becomes_markup() {
    let Some(one) = needed(browser(), "browser (Debian: chromium)") else { return };
    let (daemon, _socket) = site(&["8", MARKUP]);
    let (document, said) = browse(one, daemon.address(), &["--dump-dom"]);
    // The policy let in what the page needs, or it would be in the log.
    assert!(!said.contains("Content Security Policy"), "{said}");
    assert!(document.contains("<title>kvscout</title>"), "somebody changed the title");
    assert!(!document.contains("<img"), "a name became an element");
    let rows = elements(&document, "<tr role=\"row\"><th");
    assert_eq!(rows.len(), 3, "{document}");
    let row = |name: &str| {
        let name = format!(">{name}</th>");
        *rows.iter().find(|row| row.contains(&name)).unwrap_or_else(|| panic!("no {name}"))
    };
    let seven = row("7");
    for cell in [
        "class=\"trust left exact\"",
        "<b>exact</b>",
        "data-label=\"GPU blocks\">2</td>",
        "data-label=\"CPU blocks\">1</td>",
        "data-label=\"Batches behind\">0</td>",
    ] {
        assert!(seven.contains(cell), "{cell}: {seven}");
    }
    assert!(row("8").contains("<b>silent</b>") && row("8").contains("link down"));
    assert!(row(&MARKUP.replace('<', "&lt;").replace('>', "&gt;")).contains("<b>silent</b>"));
    assert!(document.contains(">25&nbsp;%<small>of tokens</small>"), "the hit ratio");
    assert!(document.contains("id=\"trouble\" role=\"alert\" hidden"), "it has an answer");

    let picture = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("status-page.png");
    let _ = fs::remove_file(&picture);
    let flag = format!("--screenshot={}", picture.display());
    browse(browser().unwrap(), daemon.address(), &[&flag, "--hide-scrollbars"]);
    assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
}

/// What the page says in its place for trouble, and whether it shows the form for a token.
fn trouble(document: &str) -> (&str, bool) {
    let inside = |begin: &str| {
        let (_, rest) = document.split_once(begin).unwrap_or_else(|| panic!("{begin}: {document}"));
        rest.split('<').next().unwrap()
    };
    let (is_hidden, said) = inside("<p id=\"trouble\" role=\"alert\"").split_once('>').unwrap();
    assert_eq!(is_hidden, "", "there is trouble: {document}");
    (said, !inside("<form id=\"token\"").starts_with(" hidden"))
}

/// A file with a token, for a daemon and for its callers.
fn token_file(name: &str) -> PathBuf {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = file.join(format!("top-{name}-{}", std::process::id()));
    fs::write(&file, format!("{name}-0123456789abcdef0123456789abcdef")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

#[test]
fn a_page_under_a_name_says_why_it_is_refused_and_asks_for_a_token_where_one_would_help() {
    let Some(one) = needed(browser(), "browser (Debian: chromium)") else { return };
    let rules = "--host-resolver-rules=MAP kvscout.example 127.0.0.1";
    let (daemon, _socket) = site(&[]);
    let host = daemon.address().replace("127.0.0.1", "kvscout.example");
    let (document, _) = browse(one, &host, &["--dump-dom", rules]);
    let (said, asks) = trouble(&document);
    assert!(said.contains(&format!("status 403, host '{host}' is a name")), "{said}");
    assert!(said.contains("localhost or by its number") && !asks, "{said}");

    let config = format!("[auth]\ntoken_file = {:?}\n", token_file("page"));
    let daemon = Daemon::start(&[], &config, &[]);
    let (document, _) = browse(browser().unwrap(), daemon.address(), &["--dump-dom"]);
    let (said, asks) = trouble(&document);
    assert!(said.contains("status 401, a credential is required here") && asks, "{said}");
}

/// A name other than `localhost` by which this machine calls itself.
fn own_name() -> Option<String> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap().split_whitespace());
    let own = lines.filter(|words| words.clone().next() == Some("127.0.0.1"));
    let mut names = own.flat_map(|words| words.skip(1));
    names.find(|name| *name != "localhost").map(str::to_owned)
}

#[test]
fn in_a_terminal_a_refusal_is_told_as_it_is_said() {
    let said_to = |flags: &[&str]| {
        let output = kvscout().args(["top", "--once"]).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(output.stderr)
    };
    match own_name() {
        None => eprintln!("skipped in part: no name but localhost leads to 127.0.0.1 here"),
        Some(name) => {
            let (daemon, _socket) = site(&[]);
            let host = daemon.address().replace("127.0.0.1", &name);
            let said = said_to(&["--url", &format!("http://{host}")]);
            assert!(said.contains(&format!("status 403: host '{host}' is a name")), "{said}");
            assert!(!said.contains("--token-file"), "{said}");
        }
    }
    let config = format!(
        "[[caller]]\nname = \"scorer\"\ntoken_file = {:?}\nallows = [\"score\"]\n",
        token_file("scorer")
    );
    let daemon = Daemon::start(&[], &config, &[]);
    let url = format!("http://{}", daemon.address());
    let said = said_to(&["--url", &url]);
    assert!(said.contains("status 401: a credential is required here"), "{said}");
    assert!(said.contains("; see --token-file"), "{said}");
    let file = token_file("scorer");
    let said = said_to(&["--url", &url, "--token-file", file.to_str().unwrap()]);
    assert!(said.contains("status 403: this caller has no leave"), "{said}");
    assert!(said.contains("class 'read'; see --token-file"), "{said}");
}

#[test]
fn the_page_comes_with_a_policy_that_allows_nothing_but_itself() {
    let (daemon, _socket) = site(&[]);
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    let request = "GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
    };
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(header("content-type").unwrap(), "text/html; charset=utf-8");
    assert_eq!(header("x-content-type-options").unwrap(), "nosniff");
    let policy = header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(page.starts_with("<!doctype html>") && !page.contains("https://"), "self-contained");
}
