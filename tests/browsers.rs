//! A web page can make its browser ask any address that the browser reaches, and DNS rebinding lets it read the answers:
//! what changes or reveals something is refused to pages from elsewhere, while programs, and the page that kvscout itself
//! serves, go on.
#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use daemon_support::{Daemon, Response};
use serde_json::{Value, json};
use zmq_support::PATIENCE;

const TOKEN: &str = "router-0123456789abcdef0123456789abcdef";

/// A request to this host with these headers, as a browser sends it: a `no-cors` POST has no content type where the page
/// gives bytes, and its body is JSON nevertheless.
fn asked(
    daemon: &Daemon,
    host: &str,
    headers: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> Response {
    let body = if method == "GET" { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_owned(), body: body.to_owned() }
}

fn registration() -> Value {
    json!({ "model_name": "m", "instance_id": 7, "block_size": 16, "endpoint": "tcp://127.0.0.1:9" })
}

/// Requests that change or reveal something, with the status that a program gets.
fn requests() -> Vec<(&'static str, &'static str, Value, u16)> {
    let question = json!({ "token_ids": [1] });
    vec![
        ("POST", "/register", registration(), 201),
        ("POST", "/register_peer", json!({ "url": "http://10.0.0.9:1" }), 201),
        ("POST", "/v1/admin/clear", json!({ "worker": "7" }), 200),
        ("POST", "/v1/score", question.clone(), 200),
        ("POST", "/v1/explain", question, 200),
        ("GET", "/workers", Value::Null, 200),
        ("GET", "/v1/status", Value::Null, 200),
        ("GET", "/dump", Value::Null, 200),
        ("GET", "/metrics", Value::Null, 200),
        ("POST", "/unregister", json!({ "model_name": "m", "instance_id": 7 }), 200),
    ]
}

/// What tells nothing of anybody, and what a page of kvscout's own begins with.
const OPEN: [&str; 4] = ["/", "/health", "/ready", "/openapi.json"];

#[test]
fn a_page_from_elsewhere_changes_nothing_and_sees_nothing() {
    let daemon = Daemon::start(&[], "", &[]);
    let host = daemon.address().to_owned();
    for headers in [
        "origin: http://evil.example\r\n",
        "origin: null\r\n",
        // Another port of this machine is somebody else.
        "origin: http://127.0.0.1:3000\r\nsec-fetch-site: same-site\r\n",
        "sec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\n",
        "sec-fetch-site: same-site\r\n",
    ] {
        for (method, path, body, _) in requests() {
            let answer = asked(&daemon, &host, headers, method, path, &body);
            let said = answer.json(403);
            assert_eq!(said["reason"], "foreign_origin", "{headers} {path}");
            let header = headers.lines().next().unwrap();
            let named = said["error"].as_str().unwrap().contains(header);
            assert!(named || headers.contains("same-site"), "{said}");
        }
        for path in OPEN {
            assert_eq!(asked(&daemon, &host, headers, "GET", path, &Value::Null).status, 200);
        }
    }
    // The browser asks for leave first where a page sends what a form cannot; it gets none.
    let preflight = "origin: http://evil.example\r\naccess-control-request-method: POST\r\n";
    let answer = asked(&daemon, &host, preflight, "OPTIONS", "/register", &Value::Null);
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(daemon.get("/workers").json(200)["workers"], json!([]));
    let refused = daemon.metric("kvscout_http_requests_total{route=\"/register\",status=\"403\"}");
    assert_eq!(refused, Some(5.0));
}

#[test]
fn a_name_that_leads_to_this_machine_reads_nothing() {
    let daemon = Daemon::start(&[], "", &[]);
    let port = daemon.address().rsplit(':').next().unwrap().to_owned();
    for name in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "kvscout"] {
        let host = format!("{name}:{port}");
        // Of its own origin, as the browser sees it.
        let own = format!("origin: http://{host}\r\nsec-fetch-site: same-origin\r\n");
        for headers in ["", &own] {
            for (method, path, body, _) in requests() {
                let answer = asked(&daemon, &host, headers, method, path, &body);
                let said = answer.json(403);
                assert_eq!(said["reason"], "foreign_host", "{host} {path}");
                let error = said["error"].as_str().unwrap();
                assert!(error.contains(&host) && error.contains("configure callers"), "{said}");
            }
        }
        for path in OPEN {
            assert_eq!(asked(&daemon, &host, "", "GET", path, &Value::Null).status, 200);
        }
    }
    assert_eq!(daemon.get("/workers").json(200)["workers"], json!([]));
}

#[test]
fn programs_and_the_own_page_ask_as_before_by_localhost_and_by_number() {
    let daemon = Daemon::start(&[], "", &[]);
    let port = daemon.address().rsplit(':').next().unwrap().to_owned();
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")]
    {
        let page = format!("origin: http://{host}\r\nsec-fetch-site: same-origin\r\n");
        for headers in ["", "sec-fetch-site: none\r\n", "sec-fetch-site: same-origin\r\n", &page] {
            for (method, path, body, status) in requests() {
                let answer = asked(&daemon, &host, headers, method, path, &body);
                assert_eq!(answer.status, status, "{host} {headers} {path}: {}", answer.body);
            }
        }
    }
}

/// Where others than this machine are to reach it, it has names: of a service, a container, a machine.
#[test]
fn an_address_that_others_reach_is_asked_by_any_name_and_by_no_page_from_elsewhere() {
    let config = "[dial]\nallow = [\"loopback\"]\n";
    let daemon = Daemon::start(&["--listen", "0.0.0.0:0"], config, &[]);
    let name = "kvscout.default.svc.cluster.local:13333";
    for (method, path, body, status) in requests() {
        let answer = asked(&daemon, name, "", method, path, &body);
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        let evil = "origin: http://evil.example\r\n";
        let answer = asked(&daemon, name, evil, method, path, &body);
        assert_eq!(answer.json(403)["reason"], "foreign_origin", "{path}");
    }
}

/// Who says who it is may call this machine as it likes: a page has no token. What is open to everybody is not asked so.
#[test]
fn with_callers_a_name_is_no_matter_but_for_what_is_open() {
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = file.join(format!("browsers-{}", std::process::id()));
    fs::write(&file, TOKEN).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("[auth]\ntoken_file = {file:?}\nopen = [\"score\"]\n");
    let daemon = Daemon::start(&[], &config, &[]);
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    let at = |headers: &str, method: &str, path: &str, body: &Value| {
        asked(&daemon, "kvscout.example", headers, method, path, body)
    };
    assert_eq!(at(&token, "POST", "/register", &registration()).status, 201);
    assert_eq!(at(&token, "GET", "/workers", &Value::Null).status, 200);
    let question = json!({ "token_ids": [1] });
    let said = at("", "POST", "/v1/score", &question).json(403);
    assert_eq!(said["reason"], "foreign_host");
    // There are callers: what would help is that they say who they are for this, too.
    let error = said["error"].as_str().unwrap();
    assert!(error.contains("class 'score' out of auth.open"), "{error}");
    assert!(!error.contains("configure callers"), "{error}");
    assert_eq!(daemon.post("/v1/score", &question).status, 200);
    // A certificate is shown by a browser without being asked by its user, so that a page is refused with one, too.
    let page = format!("{token}sec-fetch-site: cross-site\r\n");
    let answer = at(&page, "POST", "/unregister", &json!({ "model_name": "m", "instance_id": 7 }));
    assert_eq!(answer.json(403)["reason"], "foreign_origin");
    let log = daemon.terminate();
    assert!(!log.contains(TOKEN), "{log}");
}
