//! Tokens, salts, payloads and credentials leave the daemon nowhere: not in a log of any level, a metric, a dump, an
//! explanation, an error, a snapshot or a store.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod redis_support;
mod zmq_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use daemon_support::Daemon;
use failures_support::{batch, removed, stored, with};
use redis_support::Server;
use serde_json::{Value, json};
use zmq_support::{PATIENCE, bound_publisher, eventually, publish};

/// What must never be seen again.
const SALT: &str = "marked-salt-of-a-tenant";
const TEXT: &str = "marked text of a prompt";
const BEARER: &str = "marked-credential-0123456789abcdef";
const PAYLOAD: &str = "marked-bytes-of-a-payload";
const TOKEN: u32 = 3_141_592_653;

/// The marks as they might be written, in text or in binary.
fn marks() -> Vec<Vec<u8>> {
    let texts = [SALT, TEXT, BEARER, PAYLOAD];
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    let mut marks: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    marks.extend(texts.iter().map(|text| hex(text).into_bytes()));
    // Debug output of bytes is a list of numbers.
    marks.extend(texts.iter().map(|text| {
        let list = format!("{:?}", text.as_bytes());
        list.trim_matches(['[', ']']).as_bytes().to_vec()
    }));
    marks.push(TOKEN.to_string().into_bytes());
    marks.push(format!("{TOKEN:x}").into_bytes());
    // In binary, either way round, of 32 bits or of 64: all tokens of a block are this one.
    let (small, large) = (TOKEN, u64::from(TOKEN));
    marks.extend([small.to_le_bytes(), small.to_be_bytes()].map(|token| token.repeat(2)));
    marks.extend([large.to_le_bytes(), large.to_be_bytes()].map(|token| token.repeat(2)));
    marks
}

/// What is looked at.
const SEEN: [&str; 8] = [
    "/metrics",
    "/dump",
    "/workers",
    "/global_view",
    "/services",
    "/peers",
    "/ready",
    "/v1/status",
];

#[track_caller]
fn says_nothing(of: &str, bytes: &[u8]) {
    for mark in marks() {
        let found = bytes.windows(mark.len()).position(|window| window == mark);
        if let Some(at) = found {
            let around = &bytes[at.saturating_sub(300)..(at + 300).min(bytes.len())];
            let mark = String::from_utf8_lossy(&mark);
            panic!("{of} has {mark:?}: {}", String::from_utf8_lossy(around));
        }
    }
}

fn secret(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = path.join(format!("secrets-{}-{name}", std::process::id()));
    fs::write(&path, BEARER).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn ask(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, String) {
    let headers = format!(
        "authorization: Bearer {BEARER}\r\n{}",
        if method == "POST" { "content-type: application/json\r\n" } else { "" }
    );
    let answer = daemon.send(method, path, &headers, body);
    (answer.status, answer.body)
}

/// Questions of every dialect that are right, and that are wrong in every place where a secret may be.
fn questions() -> Vec<(&'static str, Value)> {
    let tokens = [TOKEN; 9];
    let own = json!({ "model": "m", "token_ids": tokens, "cache_salt": SALT });
    let put = |name: &str, value: Value| {
        let mut question = own.clone();
        question[name] = value;
        question
    };
    let mut questions = vec![
        ("/v1/score", own.clone()),
        ("/v1/explain", own.clone()),
        ("/v1/score/batch", json!({ "requests": [own.clone(), put("mm", json!([SALT]))] })),
        ("/v1/picked", put("worker", json!("7"))),
        ("/v1/picked", put("worker", json!("nobody"))),
        ("/v1/score", put("token_ids", json!([TOKEN, SALT]))),
        ("/v1/score", put("token_ids", json!(SALT))),
        ("/v1/score", put("cache_salt", json!([SALT]))),
        ("/v1/score", put("cache_salt", json!({ SALT: TOKEN }))),
        ("/v1/score", put("mm", json!([{ "hash": SALT, "offset": TOKEN, "length": TOKEN }]))),
        ("/v1/score", put("model", json!("unknown"))),
        ("/v1/score", json!({ "model": "m", "prompt": TEXT })),
        ("/v1/score", json!({ "model": "m", "messages": [{ "role": "user", "content": TEXT }] })),
        ("/v1/score", json!({ "model": "m", "messages": TEXT })),
    ];
    for (model, hashes) in [("model", "seq_hashes"), ("model_name", "block_hashes")] {
        for salt in [json!(SALT), json!([SALT])] {
            let query = json!({ model: "m", "token_ids": tokens, "cache_salt": salt });
            questions.push(("/query", query));
        }
        questions.push(("/query", json!({ model: "m", "token_ids": [TOKEN, TEXT] })));
        let by_hash = json!({ model: "m", hashes: [SALT], "block_size": 4, "cache_salt": SALT });
        questions.push(("/query_by_hash", by_hash));
        let register = json!({
            model: "m", "modelname": "m", "instance_id": 9, "block_size": 4, "dp_rank": 0,
            "type": "vLLM", "endpoint": "tcp://127.0.0.1:9", "additionalsalt": SALT,
        });
        questions.push(("/register", register));
    }
    questions
}

/// Batches with marks in tokens, salts and bytes; some cannot be read.
fn publish_all(daemon: &Daemon, socket: &zmq::Socket) {
    let keys = json!([[SALT], []]);
    let salted = with(stored(&[11, 12], None, &[TOKEN; 8]), &[("extra_keys", keys)]);
    let plain = stored(&[21, 22], None, &[TOKEN; 8]);
    let wrong = with(stored(&[31], None, &[TOKEN; 4]), &[("block_size", json!(SALT))]);
    let odd = with(stored(&[41], None, &[TOKEN; 4]), &[("medium", json!(PAYLOAD))]);
    let mut cut =
        batch(&[with(stored(&[51], None, &[TOKEN; 4]), &[("session_id", json!(PAYLOAD))])]);
    cut.truncate(cut.len() - 3);
    let payloads = [
        batch(&[salted, plain]),
        batch(&[wrong, removed(&[31], "GPU")]),
        batch(&[odd]),
        cut,
        PAYLOAD.as_bytes().to_vec(),
        batch(&[]),
    ];
    let last = payloads.len() as u64 - 1;
    eventually("the batches came", || {
        for (seq, payload) in payloads.iter().enumerate() {
            publish(socket, b"topic", seq as u64, payload);
        }
        let (_, workers) = ask(daemon, "GET", "/workers", "");
        let workers: Value = serde_json::from_str(&workers).unwrap();
        workers["workers"][0]["as_of"] == last
    });
}

/// Every gRPC method that takes tokens, salts or texts, where there is a Python that speaks it.
fn call_all(daemon: &Daemon) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc_stubs");
    let script = format!(
        "import sys; sys.path.insert(0, {tests:?})
import grpc, kvscout_pb2 as k, kvscout_pb2_grpc as ks, indexer_pb2 as i, indexer_pb2_grpc as isv
channel = grpc.insecure_channel({:?})
scout, llmd = ks.ScoutStub(channel), isv.IndexerServiceStub(channel)
right = k.ScoreRequest(model='m', token_ids=k.TokenIds(ids=[{TOKEN}] * 9), cache_salt={SALT:?})
wrong = k.ScoreRequest(model='m', block_hashes=k.BlockHashes(hashes=[1], block_size=4), cache_salt={SALT:?})
medium = k.ScoreRequest(model='m', token_ids=k.TokenIds(ids=[{TOKEN}] * 9), cache_salt={SALT:?},
    mm=[k.Item(hash={SALT:?}, offset=0xfffffff0, length={TOKEN})])
text = i.GetPodScoresRequest(prompt={TEXT:?}, model_name='m')
answers, refused = 0, 0
for token in [{BEARER:?}, {BEARER:?} + '0', '']:
    for call, request in [(scout.Score, right), (scout.Score, wrong), (llmd.GetPodScores, text)]:
        try:
            call(request, timeout=60, metadata=[('authorization', 'Bearer ' + token)])
            answers += 1
        except grpc.RpcError as error:
            print(error.code(), error.details())
    try:
        metadata = [('authorization', 'Bearer ' + token)]
        for answer in scout.ScoreMany(iter([right, wrong, medium]), timeout=60, metadata=metadata):
            answers += not answer.HasField('error')
            refused += answer.HasField('error')
            print('of many:', answer)
    except grpc.RpcError as error:
        print('of many:', error.code(), error.details())
# One alone, and two of a stream in which one that is wrong fails itself only.
assert (answers, refused) == (3, 1), (answers, refused)
",
        daemon.grpc()
    );
    let python = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import grpc, google.protobuf"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    let required = std::env::var_os("KVSCOUT_TEST_CLIENTS").is_some();
    assert!(python.is_some() || !required, "there is no Python with grpcio");
    let Some(python) = python else { return };
    let run = Command::new(python).args(["-B", "-c", &script]).output().unwrap();
    let said = [run.stdout, run.stderr].concat();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&said));
    let said = String::from_utf8_lossy(&said).into_owned();
    for refused in ["StatusCode.UNAUTHENTICATED", "of many: StatusCode.UNAUTHENTICATED"] {
        assert!(said.contains(refused), "{said}");
    }
    says_nothing("a status", said.as_bytes());
}

#[test]
fn marked_tokens_salts_payloads_and_credentials_are_seen_nowhere_again() {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let state = state.join(format!("secrets-state-{}", std::process::id()));
    let config = format!(
        "[log]\nlevel = \"trace\"\n[auth]\ntoken_file = {:?}\n[state]\ndir = {state:?}\nshare = true\n\
         [dialects]\ndynamo_hashes = true\n\
         [[source]]\nname = \"7\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n",
        secret("state")
    );
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &config, &[]);
    publish_all(&daemon, &socket);
    let scored = json!({ "model": "m", "token_ids": vec![TOKEN; 9], "cache_salt": SALT });
    let (_, answer) = ask(&daemon, "POST", "/v1/score", &scored.to_string());
    assert!(answer.contains("\"matched_blocks\":2"), "the marked blocks are held: {answer}");
    for (path, question) in questions() {
        let (status, answer) = ask(&daemon, "POST", path, &question.to_string());
        assert!(status < 500, "{path}: {answer}");
        says_nothing(path, answer.as_bytes());
    }
    let broken = format!("{{\"model\": \"m\", \"cache_salt\": \"{SALT}\", \"token_ids\": [{TOKEN}");
    for (kind, body) in [("", broken), ("application/msgpack", format!("\u{1}{SALT}"))] {
        let headers = format!(
            "authorization: Bearer {BEARER}\r\ncontent-type: {}\r\n",
            if kind.is_empty() { "application/json" } else { kind }
        );
        let answer = daemon.send("POST", "/v1/score", &headers, &body);
        assert_eq!(answer.status, 400, "{}", answer.body);
        says_nothing("a refusal", answer.body.as_bytes());
    }
    for headers in [
        format!("authorization: Basic {BEARER}\r\n"),
        format!("authorization: Bearer {BEARER}0\r\n"),
    ] {
        let answer = daemon.send("GET", "/workers", &headers, "");
        assert_eq!(answer.status, 401);
        says_nothing("a challenge", format!("{}{}", answer.head, answer.body).as_bytes());
    }
    call_all(&daemon);
    for path in SEEN {
        let (status, answer) = ask(&daemon, "GET", path, "");
        assert_eq!(status, 200, "{path}: {answer}");
        says_nothing(path, answer.as_bytes());
    }
    let snapshot = snapshot_of(&daemon);
    // It is written as it is: what is in it can be found.
    let endpoint = endpoint.as_bytes();
    assert!(snapshot.windows(endpoint.len()).any(|window| window == endpoint));
    says_nothing("/snapshot", &snapshot);
    let log = daemon.terminate();
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "the log is at its most talkative");
    says_nothing("the log", log.as_bytes());
    let mut files = 0;
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        says_nothing(&path.display().to_string(), &bytes);
        files += usize::from(bytes.len() > 100);
    }
    assert!(files >= 1, "there is a snapshot");
}

#[test]
fn marked_tokens_salts_payloads_and_credentials_are_nowhere_in_a_store() {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    // Nothing hides in what is packed.
    let server = Server::with(&["--rdbcompression", "no"]);
    let common = format!(
        "[log]\nlevel = \"trace\"\n[auth]\ntoken_file = {:?}\n[state]\ninterval = \"50ms\"\n\
         [store]\naddress = {:?}\nrefresh = \"50ms\"\nread_deadline = \"10s\"\n\
         answer_deadline = \"20s\"\nwrite_deadline = \"10s\"\n",
        secret("store"),
        server.address()
    );
    let source = format!("[[source]]\nname = \"7\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n");
    let writer = Daemon::start(&["--grpc", "127.0.0.1:0"], &(common.clone() + &source), &[]);
    publish_all(&writer, &socket);
    let reader = Daemon::start(&["--mode", "redis"], &common, &[]);
    let scored = json!({ "model": "m", "token_ids": vec![TOKEN; 9], "cache_salt": SALT });
    eventually("the marked blocks are in the store", || {
        let (_, answer) = ask(&reader, "POST", "/v1/score", &scored.to_string());
        answer.contains("\"matched_blocks\":2")
    });
    for daemon in [&writer, &reader] {
        for (path, question) in questions() {
            let (status, answer) = ask(daemon, "POST", path, &question.to_string());
            assert!([200, 201, 400, 403, 404, 409, 501].contains(&status), "{path}: {answer}");
            says_nothing(path, answer.as_bytes());
        }
        for path in SEEN {
            let (status, answer) = ask(daemon, "GET", path, "");
            assert!([200, 501].contains(&status), "{path}: {answer}");
            says_nothing(path, answer.as_bytes());
        }
    }
    eventually("a snapshot is in the store", || {
        !server.ask(&["HGETALL", &key(&server, "k")]).is_empty()
    });
    let log = writer.terminate() + &reader.terminate();
    says_nothing("a log", log.as_bytes());
    let kept = everything_in(&server);
    // What is there can be found: names of workers, and blocks.
    assert!(
        kept.iter()
            .any(|(_, bytes)| bytes.windows(endpoint.len()).any(|w| w == endpoint.as_bytes()))
    );
    for kind in [":r:", ":n:", ":w:", ":k:"] {
        assert!(kept.iter().any(|(key, _)| key.contains(kind)), "no {kind} among {}", kept.len());
    }
    for (key, bytes) in kept {
        says_nothing(&key, key.as_bytes());
        says_nothing(&key, &bytes);
    }
}

/// The key with this end.
fn key(server: &Server, end: &str) -> String {
    let keys = server.ask(&["KEYS", &format!("*:{end}")]);
    keys.split(' ').next().unwrap_or_default().to_owned()
}

/// Every key with all that is in it: as its server writes it down, and as it gives it to a client, since numbers and
/// short lists are written down in a form of their own.
fn everything_in(server: &Server) -> Vec<(String, Vec<u8>)> {
    let mut kept = Vec::new();
    for key in server.ask(&["KEYS", "*"]).split(' ') {
        let whole: &[&str] = match server.ask(&["TYPE", key]).as_str() {
            "string" => &["GET", key],
            "hash" => &["HGETALL", key],
            "set" => &["SMEMBERS", key],
            "list" => &["LRANGE", key, "0", "-1"],
            "zset" => &["ZRANGE", key, "0", "-1", "WITHSCORES"],
            // It lived until a moment ago.
            "none" => continue,
            other => panic!("{key} is a {other}"),
        };
        for words in [&["DUMP", key][..], whole] {
            kept.push((key.to_owned(), reply_of(server, words)));
        }
    }
    kept
}

/// The bytes of a reply, as they come.
fn reply_of(server: &Server, words: &[&str]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all((request + "*1\r\n$4\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert!(!reply.starts_with(b"-") && reply.ends_with(b"+OK\r\n"), "{words:?}");
    reply
}

/// The body of `/snapshot`.
fn snapshot_of(daemon: &Daemon) -> Vec<u8> {
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "GET /snapshot HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         authorization: Bearer {BEARER}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    answer.split_off(end + 4)
}
