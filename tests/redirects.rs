//! Who is asked over HTTP may not send kvscout elsewhere: a redirect is not followed, so that prompts, tokens and keys
//! go to the address that was configured and to no other.
#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use daemon_support::{Daemon, kvscout};
use serde_json::json;
use zmq_support::eventually;

const TOKEN: &str = "shown-0123456789abcdef0123456789abcdef";
const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// Somebody who answers every request with a redirect to somebody else.
struct Sender {
    base: String,
    asked: Arc<AtomicUsize>,
    elsewhere: TcpListener,
}

impl Sender {
    fn start(status: u16) -> Sender {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let to = elsewhere.local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let path = read(&stream);
                let head = format!(
                    "HTTP/1.1 {status} x\r\nlocation: http://{to}{path}\r\ncontent-length: 0\r\n\
                     connection: close\r\n\r\n"
                );
                count.fetch_add(1, Ordering::Relaxed);
                (&stream).write_all(head.as_bytes()).unwrap();
            }
        });
        Sender { base, asked, elsewhere }
    }

    /// It was asked, and where it sends to nobody came. Who follows has done so before it says what came of it.
    #[track_caller]
    fn was_asked_alone(&self, what: &str, said: &str, status: u16) {
        assert!(self.asked.load(Ordering::Relaxed) > 0, "{what}: {said}");
        let came = self.elsewhere.accept().map(|(_, from)| from);
        assert_eq!(
            came.map_err(|error| error.kind()),
            Err(ErrorKind::WouldBlock),
            "{what}: {said}"
        );
        let words = format!("status {status}: it sends us elsewhere, where nothing is asked");
        assert!(said.contains(&words), "{what}: {said}");
        assert!(!said.contains(TOKEN), "{what}: {said}");
    }
}

/// Reads a request; its path.
fn read(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    head.split(' ').nth(1).unwrap().to_owned()
}

/// A place of this test's own, with a token that only its owner may read.
fn place(name: &str) -> (PathBuf, PathBuf) {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = path.join(format!("redirects-{}-{name}", std::process::id()));
    let token = path.with_extension("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    (path, token)
}

#[test]
fn an_engine_that_sends_elsewhere_is_not_followed_with_a_prompt() {
    for status in STATUSES {
        let engine = Sender::start(status);
        let base = &engine.base;
        let config = format!(
            "[models.m]\ntokenizer = \"engine\"\n\
             [[source]]\nname = \"7\"\nendpoint = \"tcp://127.0.0.1:9\"\nmodel = \"m\"\nhttp = \"{base}\"\n"
        );
        let daemon = Daemon::start(&[], &config, &[]);
        eventually("the source is added", || daemon.get("/ready").status == 200);
        let question = json!({ "model": "m", "prompt": "for that engine alone" });
        let answer = daemon.post("/v1/score", &question);
        assert_eq!(answer.json(503)["reason"], "unavailable", "{status}: {}", answer.body);
        engine.was_asked_alone("/tokenize", &answer.body, status);
    }
}

#[test]
fn an_engines_metrics_are_those_of_its_own_address() {
    let engine = Sender::start(302);
    let config = format!(
        "[log]\nlevel = \"debug\"\n[[source]]\nname = \"7\"\nendpoint = \"tcp://127.0.0.1:9\"\n\
         metrics = \"{}/metrics\"\n",
        engine.base
    );
    let daemon = Daemon::start(&[], &config, &[]);
    eventually("its metrics are asked for", || daemon.stderr().contains("no metrics"));
    engine.was_asked_alone("/metrics", &daemon.stderr(), 302);
}

#[test]
fn a_replica_that_sends_elsewhere_is_not_followed_with_a_token() {
    for status in STATUSES {
        let replica = Sender::start(status);
        let (state, token) = place(&format!("replica-{status}"));
        let config = format!(
            "[state]\ndir = {state:?}\nfrom = \"{}\"\nfrom_token_file = {token:?}\n",
            replica.base
        );
        let log = Daemon::start(&[], &config, &[]).terminate();
        assert!(log.contains("no snapshot from there"), "{log}");
        replica.was_asked_alone("/snapshot", &log, status);
    }
}

#[test]
fn top_and_doctor_ask_nobody_else_than_whom_they_are_told_to() {
    let daemon = Sender::start(302);
    let (_, token) = place("top");
    let mut top = kvscout();
    top.args(["top", "--once", "--url", &daemon.base, "--token-file"]).arg(&token);
    let output = top.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    daemon.was_asked_alone("top", &said, 302);

    let engine = Sender::start(302);
    let mut doctor = kvscout();
    doctor.args(["doctor", "--events", "tcp://127.0.0.1:9", "--seconds", "1"]);
    doctor.args(["--engine", &engine.base, "--key-file"]).arg(token);
    let output = doctor.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    engine.was_asked_alone("doctor", &String::from_utf8_lossy(&said), 302);
}
