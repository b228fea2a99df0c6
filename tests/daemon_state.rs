//! What the daemon keeps over a restart, and what a new replica begins with: real processes, real
//! sockets.
#![cfg(feature = "daemon")]

mod daemon_support;
mod scope_support;
mod zmq_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use daemon_support::{Batch, Daemon, Step, batches, config_file, kvscout, recording};
use scope_support::Raises;
use zmq_support::{PATIENCE, bound_publisher, dialling_publisher, eventually, publish};

/// A directory of this test alone, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let name = format!("state-{name}-{}", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        Directory(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn files(&self) -> Vec<String> {
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut all: Vec<_> =
            fs::read_dir(&self.0).unwrap().map(|entry| name(entry.unwrap())).collect();
        all.sort();
        all
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Snapshots follow each other closely.
const OFTEN: &str = "[state]\ninterval = \"20ms\"\n";

/// A daemon that keeps its state there and receives from pod 7.
fn with_pod_7(directory: &Directory, endpoint: &str, file: &str) -> Daemon {
    let source = format!("7={endpoint}");
    let flags = ["--source", &source, "--model", "m", "--state", directory.text()];
    let daemon = Daemon::start(&flags, file, &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    daemon
}

/// The first batches of the recording, all but one, and that one.
fn most() -> (Vec<Batch>, Batch) {
    let mut first = batches();
    first.truncate(60);
    let next = first.pop().unwrap();
    (first, next)
}

fn feed(daemon: &Daemon, socket: &zmq::Socket, batches: &[Batch]) {
    daemon.feed(socket, "", &batches[0], "7");
    for batch in &batches[1..] {
        publish(socket, b"", batch.seq, &batch.payload);
    }
    let last = batches.last().unwrap().seq;
    eventually("all batches are applied", || daemon.has_applied("7", 0, last));
}

/// What the daemon answers to every question of the recording, but for trust.
fn answers(daemon: &Daemon) -> Vec<Value> {
    let ask = |line: Value| {
        let question = json!({
            "model": "m", "token_ids": line["tokens"], "cache_salt": line["salt"],
            "lora": line["lora"],
        });
        let mut answer = daemon.post("/v1/score", &question).json(200);
        for row in answer["workers"].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("trust");
        }
        answer
    };
    let questions = recording().into_iter().filter_map(|step| match step {
        Step::Question { line, .. } => Some(ask(line)),
        Step::Batch(_) => None,
    });
    questions.collect()
}

/// Waits until a snapshot was begun and written after now.
fn kept(daemon: &Daemon) {
    let written = || daemon.metric("kvscout_snapshots_total").unwrap();
    let before = written();
    // The next one may have been under way.
    eventually("a snapshot is written", || written() >= before + 2.0);
}

fn trust(daemon: &Daemon, pod: &str) -> Value {
    daemon.worker(pod, 0)["trust"].clone()
}

fn publisher() -> (zmq::Socket, String) {
    bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*")
}

/// The body of `GET /snapshot`.
fn snapshot_of(daemon: &Daemon) -> Vec<u8> {
    let mut answer = ask_for_snapshot(daemon);
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.split_off(end + 4)
}

fn ask_for_snapshot(daemon: &Daemon) -> Vec<u8> {
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /snapshot HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_killed_daemon_goes_on_where_its_last_snapshot_was() {
    let directory = Directory::new("killed");
    let (socket, endpoint) = publisher();
    let (first, next) = most();
    let daemon = with_pod_7(&directory, &endpoint, OFTEN);
    feed(&daemon, &socket, &first);
    let before = answers(&daemon);
    assert!(before.iter().any(|answer| answer["workers"][0]["matched_blocks"] != 0));
    kept(&daemon);
    let entries = daemon.metric("kvscout_entries").unwrap();
    assert_eq!(daemon.metric("kvscout_restored_entries"), Some(0.0));
    daemon.kill();

    assert_eq!(mode(&directory.0), 0o700);
    for file in directory.files() {
        assert_eq!(mode(&directory.file(&file)), 0o600, "{file}");
    }
    let daemon = with_pod_7(&directory, &endpoint, OFTEN);
    assert_eq!(trust(&daemon, "7"), "syncing");
    assert_eq!(answers(&daemon), before);
    assert_eq!(daemon.metric("kvscout_restored_entries"), Some(entries));
    daemon.feed(&socket, "", &next, "7");
    assert_eq!(trust(&daemon, "7"), "exact");
    let worker = daemon.worker("7", 0);
    assert_eq!(worker["gaps"], 0, "{worker}");
    assert_eq!(worker["contract"]["algorithm"], "sha256_cbor");
}

#[test]
fn the_last_batch_before_a_signal_is_in_the_last_snapshot() {
    let directory = Directory::new("signalled");
    let (socket, endpoint) = publisher();
    let (first, _) = most();
    let daemon = with_pod_7(&directory, &endpoint, "");
    feed(&daemon, &socket, &first);
    let before = answers(&daemon);
    daemon.terminate();
    assert_eq!(directory.files(), ["key", "lock", "snapshot"]);

    let daemon = with_pod_7(&directory, &endpoint, "");
    assert_eq!(answers(&daemon), before);
    // That batch again: nothing was missed.
    let last = first.last().unwrap();
    eventually("the worker is exact", || {
        publish(&socket, b"", last.seq, &last.payload);
        trust(&daemon, "7") == "exact"
    });
    assert_eq!(daemon.worker("7", 0)["batches"], 0);
    let log = daemon.terminate();
    assert!(log.contains("restored"), "{log}");

    // Another engine under the same name and address.
    let daemon = with_pod_7(&directory, &endpoint, "");
    let other = Batch { seq: 0, payload: next_life() };
    daemon.feed(&socket, "", &other, "7");
    let worker = daemon.worker("7", 0);
    assert_eq!((&worker["restarts"], &worker["trust"]), (&json!(1), &json!("exact")));
    assert_eq!(daemon.metric("kvscout_entries"), Some(0.0), "it holds nothing");
}

/// An empty batch with a clock that no recording has reached.
fn next_life() -> Vec<u8> {
    let mut batch = vec![0x93, 0xcb];
    batch.extend_from_slice(&9e9_f64.to_be_bytes());
    batch.extend_from_slice(&[0x90, 0]);
    batch
}

#[test]
fn workers_that_registered_over_http_come_back_and_configured_ones_as_configured() {
    let directory = Directory::new("registered");
    let (socket, endpoint) = publisher();
    let (first, next) = most();
    let state = ["--state", directory.text()];
    let sources = ["--source", "gone=tcp://127.0.0.1:9", "--source", "moved=tcp://127.0.0.1:9"];
    let daemon = Daemon::start(&[&state[..], &sources].concat(), "", &[]);
    eventually("the sources are added", || daemon.get("/ready").status == 200);
    let body = json!({
        "endpoint": endpoint, "type": "vLLM", "modelname": "m", "instance_id": "7",
        "block_size": 16, "dp_rank": 0, "lora_name": "sql", "replay_endpoint": "tcp://127.0.0.1:9",
    });
    daemon.post("/register", &body).json(200);
    let left = json!({
        "endpoint": "tcp://127.0.0.1:9", "model_name": "m", "instance_id": 8, "block_size": 16,
    });
    daemon.post("/register", &left).json(201);
    feed(&daemon, &socket, &first);
    let before = answers(&daemon);
    daemon.terminate();

    let sources = ["--source", "moved=tcp://127.0.0.1:10", "--source", "8=tcp://127.0.0.1:11"];
    let daemon = Daemon::start(&[&state[..], &sources].concat(), "", &[]);
    eventually("the sources are added", || daemon.get("/ready").status == 200);
    assert_eq!(daemon.worker("gone", 0), Value::Null, "not configured any more");
    assert_eq!(daemon.worker("moved", 0)["endpoint"], "tcp://127.0.0.1:10");
    let eight = daemon.worker("8", 0);
    let facts = (&eight["endpoint"], &eight["block_size"]);
    assert_eq!(facts, (&json!("tcp://127.0.0.1:11"), &Value::Null), "the configuration wins");
    let seven = daemon.worker("7", 0);
    assert_eq!((&seven["endpoint"], &seven["trust"]), (&json!(endpoint), &json!("syncing")));
    assert_eq!(seven["replay_endpoint"], "tcp://127.0.0.1:9");
    let only_seven = |answers: Vec<Value>| -> Vec<Value> {
        let row = |answer: &Value| {
            let rows = answer["workers"].as_array().unwrap();
            rows.iter().find(|row| row["worker"] == "7").cloned().unwrap()
        };
        answers.iter().map(row).collect()
    };
    assert_eq!(only_seven(answers(&daemon)), only_seven(before));
    daemon.feed(&socket, "", &next, "7");
    // Its replay endpoint does not answer: nothing shows that nothing was missed.
    assert_eq!(daemon.worker("7", 0)["reason"], "gap");
    // The same registration again changes nothing; the adapter is known.
    daemon.post("/register", &body).json(200);
    let adapter = json!({ "model": "sql", "token_ids": [1], "candidates": ["7"] });
    assert_eq!(daemon.post("/v1/score", &adapter).json(200)["workers"][0]["worker"], "7");
    let gone = json!({ "instance_id": "7", "dp_rank": 0 });
    daemon.post("/unregister", &gone).json(200);
    daemon.terminate();
    let daemon = Daemon::start(&state, "", &[]);
    assert_eq!(daemon.get("/workers").json(200), json!({ "workers": [] }));
}

#[test]
fn workers_of_topics_come_back() {
    let directory = Directory::new("topics");
    let file = "trust_topics = true\ntopic_bind = \"tcp://127.0.0.1:*\"\n[log]\nformat = \"json\"";
    let start = || {
        let daemon = Daemon::start(&["--state", directory.text()], file, &[]);
        let mut endpoint = None;
        eventually("the endpoint is logged", || {
            let log = daemon.stderr();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let mut found =
                lines.filter_map(|line| line["fields"]["endpoint"].as_str().map(str::to_owned));
            endpoint = found.next();
            endpoint.is_some()
        });
        let socket = dialling_publisher(&zmq::Context::new(), &endpoint.unwrap());
        (daemon, socket)
    };
    let batches = batches();
    let (daemon, socket) = start();
    daemon.feed(&socket, "kv@a@m", &batches[0], "a");
    daemon.terminate();
    let (daemon, socket) = start();
    assert_eq!(
        (trust(&daemon, "a"), &daemon.worker("a", 0)["as_of"]),
        (json!("syncing"), &json!(0))
    );
    daemon.feed(&socket, "kv@a@m", &batches[1], "a");
    let worker = daemon.worker("a", 0);
    assert_eq!((&worker["trust"], &worker["link"]["state"]), (&json!("exact"), &json!("shared")));
    daemon.terminate();
    let daemon = Daemon::start(&["--state", directory.text()], "", &[]);
    assert_eq!(daemon.worker("a", 0), Value::Null, "topics are not trusted any more");
}

#[test]
fn a_snapshot_that_cannot_be_used_is_said_and_set_aside_for_a_cold_start() {
    let directory = Directory::new("refused");
    let (socket, endpoint) = publisher();
    let (first, _) = most();
    let daemon = with_pod_7(&directory, &endpoint, "");
    feed(&daemon, &socket, &first);
    daemon.terminate();
    let whole = fs::read(directory.file("snapshot")).unwrap();
    let key = fs::read(directory.file("key")).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut middle = whole.clone();
    middle[whole.len() / 2] ^= 1;
    let mut newer = whole.clone();
    newer[8] = 9;
    let cases: [(&[u8], &str); 6] = [
        (b"my notes", "no snapshot of kvscout"),
        (b"", "ends within"),
        (&whole[..whole.len() - 40], "ends within"),
        (&damaged, "checksum"),
        (&middle, "checksum"),
        (&newer, "a newer one wrote it"),
    ];
    for (n, (bytes, said)) in (1..).zip(cases) {
        fs::write(directory.file("snapshot"), bytes).unwrap();
        let daemon = with_pod_7(&directory, &endpoint, "");
        assert_eq!(daemon.worker("7", 0)["as_of"], Value::Null, "{said}");
        assert_eq!(daemon.metric("kvscout_entries"), Some(0.0));
        let log = daemon.terminate();
        assert!(log.contains(said) && log.contains("starting cold"), "{said}: {log}");
        let name =
            if n == 1 { "snapshot.refused".to_owned() } else { format!("snapshot.refused.{n}") };
        assert!(log.contains(&name), "{log}");
        assert_eq!(fs::read(directory.file(&name)).unwrap(), bytes);
        assert_ne!(fs::read(directory.file("snapshot")).unwrap(), bytes, "a new one");
    }

    // Another key: bringing the old one back is all it takes.
    fs::write(directory.file("snapshot"), &whole).unwrap();
    fs::write(directory.file("key"), "0".repeat(32)).unwrap();
    let log = with_pod_7(&directory, &endpoint, "").terminate();
    assert!(log.contains("made under digest key") && log.contains("starting cold"), "{log}");
    fs::rename(directory.file("snapshot.refused.7"), directory.file("snapshot")).unwrap();
    fs::write(directory.file("key"), key).unwrap();
    let daemon = with_pod_7(&directory, &endpoint, "");
    assert_eq!(daemon.worker("7", 0)["as_of"], first.last().unwrap().seq);
}

#[test]
fn a_directory_that_cannot_be_used_ends_the_daemon_with_one_line() {
    let directory = Directory::new("used");
    let daemon = Daemon::start(&["--state", directory.text()], "", &[]);
    let start = || {
        let run = kvscout()
            .args(["serve", "--listen", "127.0.0.1:0", "--log-level", "off", "--state"])
            .arg(&directory.0)
            .output()
            .unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && said.lines().count() == 1, "{said}");
        said
    };
    assert!(start().contains("in use by another kvscout"));
    daemon.terminate();
    fs::set_permissions(directory.file("key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(start().contains("0640"));
}

#[test]
fn a_new_replica_starts_from_a_running_one() {
    let (old, new, curled) =
        (Directory::new("old"), Directory::new("new"), Directory::new("curled"));
    let (socket, endpoint) = publisher();
    let (first, next) = most();
    let daemon = with_pod_7(&old, &endpoint, "[state]\nshare = true");
    feed(&daemon, &socket, &first);
    let before = answers(&daemon);
    for replica in [&new, &curled] {
        fs::create_dir(&replica.0).unwrap();
        fs::copy(old.file("key"), replica.file("key")).unwrap();
    }
    fs::write(curled.file("snapshot"), snapshot_of(&daemon)).unwrap();
    // Whoever does not answer is passed over.
    let from = format!("[state]\nfrom = [\"http://127.0.0.1:9\", \"http://{}\"]", daemon.address());
    let replicas = [with_pod_7(&new, &endpoint, &from), with_pod_7(&curled, &endpoint, "")];
    for replica in &replicas {
        assert_eq!(answers(replica), before);
        assert_eq!(trust(replica, "7"), "syncing");
    }
    for replica in &replicas {
        eventually("the replica is subscribed", || {
            publish(&socket, b"", next.seq, &next.payload);
            replica.has_applied("7", 0, next.seq)
        });
        assert_eq!(trust(replica, "7"), "exact");
    }
    eventually("the old one is as far", || daemon.has_applied("7", 0, next.seq));
    assert_eq!(answers(&replicas[0]), answers(&daemon));

    // Without the key there is nothing to be had, and a daemon of its own all the same.
    let stranger = Directory::new("stranger");
    let stranger = with_pod_7(&stranger, &endpoint, &from);
    assert_eq!(stranger.worker("7", 0)["as_of"], Value::Null);
    let log = stranger.terminate();
    assert!(log.contains("made under digest key") && log.contains("starting cold"), "{log}");

    // Where it has a snapshot of its own, nobody is asked.
    let [replica, _] = replicas;
    replica.terminate();
    daemon.terminate();
    let replica = with_pod_7(&new, &endpoint, &from);
    assert_eq!(replica.worker("7", 0)["as_of"], next.seq);
}

#[test]
fn a_snapshot_is_given_to_others_only_where_that_is_configured() {
    let directory = Directory::new("shared");
    let daemon = Daemon::start(&["--state", directory.text()], "", &[]);
    let refused = daemon.get("/snapshot").json(403);
    assert_eq!(refused["reason"], "not_shared");
    let other = Directory::new("asking");
    let from = format!("[state]\nfrom = \"http://{}\"", daemon.address());
    // A proxy of the environment, where nobody listens, is not asked.
    let proxy = [("HTTP_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", "")];
    let asking = Daemon::start(&["--state", other.text()], &from, &proxy);
    let log = asking.terminate();
    assert!(log.contains("403") && log.contains("state.share"), "{log}");
    let nobody = "[state]\nfrom = \"http://127.0.0.1:9\"";
    let asking = Daemon::start(&["--state", other.text()], nobody, &[]);
    assert_eq!(asking.get("/ready").status, 200);
}

#[test]
fn one_snapshot_is_sent_at_a_time_and_whoever_comes_meanwhile_is_told() {
    let directory = Directory::new("at-a-time");
    let daemon = Daemon::start(&["--state", directory.text()], "[state]\nshare = true", &[]);
    let over = AtomicBool::new(false);
    let mut told = String::new();
    thread::scope(|scope| {
        let _over = Raises(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                ask_for_snapshot(&daemon);
            }
        });
        eventually("two meet", || {
            told = String::from_utf8_lossy(&ask_for_snapshot(&daemon)).into_owned();
            !told.starts_with("HTTP/1.1 200 ")
        });
    });
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("another snapshot"), "{told}");
    assert!(told.contains("\r\nretry-after: 1\r\n"), "{told}");
    eventually("another is sent", || ask_for_snapshot(&daemon).starts_with(b"HTTP/1.1 200 "));
}

#[test]
fn a_snapshot_has_no_tokens_and_no_salts_and_no_key() {
    let directory = Directory::new("secrets");
    let (socket, endpoint) = publisher();
    let daemon = with_pod_7(&directory, &endpoint, "[state]\nshare = true");
    let batches = batches();
    feed(&daemon, &socket, &batches);
    let snapshot = snapshot_of(&daemon);
    let has = |part: &[u8]| snapshot.windows(part.len()).any(|window| window == part);
    assert!(has(b"kvscout") && has(endpoint.as_bytes()));
    for salt in ["tenant-a", "salt"] {
        assert!(!has(salt.as_bytes()), "{salt}");
    }
    let key = fs::read_to_string(directory.file("key")).unwrap();
    let key = u128::from_str_radix(key.trim(), 16).unwrap();
    assert!(!has(&key.to_be_bytes()) && !has(&key.to_le_bytes()));
    // Four token ids in a row of any prompt, in either order of bytes.
    for step in recording() {
        let Step::Question { line, .. } = step else { continue };
        let tokens: Vec<u32> = serde_json::from_value(line["tokens"].clone()).unwrap();
        for four in tokens.chunks_exact(4).filter(|four| four.iter().any(|token| *token > 9)) {
            let bytes =
                |of: fn(u32) -> [u8; 4]| four.iter().flat_map(|t| of(*t)).collect::<Vec<_>>();
            assert!(!has(&bytes(u32::to_le_bytes)) && !has(&bytes(u32::to_be_bytes)), "{four:?}");
        }
    }
}

#[test]
fn l14_readiness_waits_for_a_share_of_exact_workers_once() {
    let directory = Directory::new("ready");
    let (socket, endpoint) = publisher();
    let (first, next) = most();
    let daemon = with_pod_7(&directory, &endpoint, "");
    feed(&daemon, &socket, &first);
    daemon.terminate();
    let source = format!("7={endpoint}");
    let flags = ["--source", &source, "--model", "m", "--state", directory.text()];
    let start = |file: &str| {
        let daemon = Daemon::start(&flags, file, &[]);
        let shown = || daemon.worker("7", 0)["link"]["state"] == "up";
        eventually("the engine is connected", shown);
        daemon
    };
    let daemon = start("[ready]\nworkers = 1\ndeadline = \"\"");
    let answer = daemon.get("/ready").json(503);
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.contains("0 of 1 workers are exact"), "{reason}");
    daemon.feed(&socket, "", &next, "7");
    eventually("it is ready", || daemon.get("/ready").status == 200);
    publish(&socket, b"", next.seq + 5, &next.payload);
    eventually("a gap is seen", || trust(&daemon, "7") == "degraded");
    assert_eq!(daemon.get("/ready").status, 200, "a start is over once");
    daemon.kill();
    let daemon = start("[ready]\nworkers = 1\ndeadline = \"0s\"");
    assert_eq!(trust(&daemon, "7"), "syncing");
    assert_eq!(daemon.get("/ready").status, 200, "nobody waits longer than that");
}

#[test]
fn the_metrics_of_snapshots_are_documented() {
    let directory = Directory::new("metrics");
    let daemon = Daemon::start(&["--state", directory.text()], OFTEN, &[]);
    kept(&daemon);
    let document = include_str!("../docs/metrics.md");
    let metrics = daemon.get("/metrics").body;
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE kvscout_"));
    let mut names = Vec::new();
    for line in types.filter(|line| line.contains("snapshot") || line.contains("restored")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        assert!(document.contains(&format!("`kvscout_{name}`")), "{name}");
        names.push(name);
    }
    names.sort();
    let all = [
        "restored_entries",
        "snapshot_age_seconds",
        "snapshot_bytes",
        "snapshot_failures_total",
        "snapshot_hold_seconds",
        "snapshot_write_seconds",
        "snapshots_total",
    ];
    assert_eq!(names, all);
    let bytes = fs::metadata(directory.file("snapshot")).unwrap().len();
    assert_eq!(daemon.metric("kvscout_snapshot_bytes"), Some(bytes as f64));
    // What cannot be written is counted, and the last one stays.
    eventually("no snapshot is being written", || {
        fs::create_dir(directory.file("snapshot.unfinished")).is_ok()
    });
    eventually("a failure is counted", || {
        daemon.metric("kvscout_snapshot_failures_total").unwrap() > 0.0
    });
    fs::remove_dir(directory.file("snapshot.unfinished")).unwrap();
    kept(&daemon);
}

#[test]
fn state_is_configured_as_a_whole() {
    for (file, said) in [
        ("[state]\nshare = true", "state.dir"),
        ("[state]\ndir = \"d\"\nfrom = \"https://a\"", "http://host:port"),
        ("[ready]\nworkers = 2", "from 0 to 1"),
    ] {
        let run = kvscout().args(["serve", "--config"]).arg(config_file(file)).output().unwrap();
        let stderr = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}
