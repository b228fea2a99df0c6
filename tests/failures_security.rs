//! Rows of the catalogue (`docs/failures.md`) about who may do what: tokens, certificates, tenants.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod zmq_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use daemon_support::{Daemon, Response, kvscout};
use failures_support::{batch, stored};
use serde_json::{Value, json};
use zmq_support::{bound_publisher, eventually, publish};

const ADMIN: &str = "admin-0123456789abcdef0123456789abcdef";
const SCORE: &str = "score-0123456789abcdef0123456789abcdef";
const READ: &str = "read-0123456789abcdef0123456789abcdef";
const TENANT: &str = "tenant-0123456789abcdef0123456789abcdef";

/// A file that only its owner may read.
fn secret(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = path.join(format!("secret-{}-{name}", std::process::id()));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A configuration with four callers; `name` tells the files of tests apart.
fn callers(name: &str) -> String {
    let caller = |who: &str, token: &str, allows: &str, more: &str| {
        let file = secret(&format!("{name}-{who}"), token);
        format!("[[caller]]\nname = {who:?}\ntoken_file = {file:?}\nallows = {allows}\n{more}\n")
    };
    let admin = secret(&format!("{name}-admin"), ADMIN);
    format!("[auth]\ntoken_file = {admin:?}\n")
        + &caller("router", SCORE, "[\"score\", \"pick\"]", "")
        + &caller("prometheus", READ, "[\"read\"]", "")
        + &caller("a", TENANT, "[\"score\", \"pick\", \"change\"]", "tenant = \"a\"")
}

fn header(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

fn ask(daemon: &Daemon, token: &str, method: &str, path: &str, body: &Value) -> Response {
    let headers = match token {
        "" => String::new(),
        token => header(token),
    };
    let (kind, body) = match method {
        "GET" => ("", String::new()),
        _ => ("content-type: application/json\r\n", body.to_string()),
    };
    daemon.send(method, path, &(headers + kind), &body)
}

/// A request that is right as to its form, for each route that is not open, and its class.
fn routes() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let question = json!({ "token_ids": [1] });
    let mooncake = json!({
        "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": "x",
        "block_size": 16, "dp_rank": 0,
    });
    let receipt = json!({ "worker": "x", "expected_cached_tokens": 1, "cached_tokens": 1 });
    vec![
        ("score", "POST", "/v1/score", question.clone()),
        ("score", "POST", "/v1/score/batch", json!({ "requests": [question] })),
        ("score", "POST", "/query", json!({ "model": "m", "token_ids": [1] })),
        ("score", "POST", "/query", json!({ "model_name": "m", "token_ids": [1] })),
        (
            "score",
            "POST",
            "/query_by_hash",
            json!({ "model": "m", "block_size": 16, "seq_hashes": [1] }),
        ),
        (
            "score",
            "POST",
            "/query_tiered_by_hash",
            json!({ "model_name": "m", "block_hashes": [1] }),
        ),
        ("pick", "POST", "/v1/picked", json!({ "token_ids": [1], "worker": "x" })),
        ("pick", "POST", "/v1/receipt", receipt),
        ("read", "POST", "/v1/explain", json!({ "token_ids": [1] })),
        ("read", "GET", "/workers", Value::Null),
        ("read", "GET", "/global_view", Value::Null),
        ("read", "GET", "/services", Value::Null),
        ("read", "GET", "/dump", Value::Null),
        ("read", "GET", "/v1/status", Value::Null),
        ("read", "GET", "/peers", Value::Null),
        ("read", "GET", "/metrics", Value::Null),
        ("change", "POST", "/register", mooncake),
        ("change", "POST", "/unregister", json!({ "instance_id": "x" })),
        ("change", "POST", "/register_peer", json!({ "url": "http://10.0.0.9:1" })),
        ("change", "POST", "/deregister_peer", json!({ "url": "http://10.0.0.9:1" })),
        ("admin", "POST", "/v1/admin/clear", json!({ "worker": "x" })),
        ("admin", "GET", "/snapshot", Value::Null),
    ]
}

/// What anybody may see: whether the daemon works, what it is, and a page that shows nothing by itself.
const OPEN: [&str; 4] = ["/", "/health", "/ready", "/openapi.json"];

#[test]
fn x6_whoever_has_no_leave_is_refused_by_every_route_and_learns_nothing() {
    let daemon = Daemon::start(&[], &callers("x6"), &[]);
    for open in OPEN {
        assert_eq!(daemon.get(open).status, 200, "{open}");
    }
    let document = daemon.get("/openapi.json").json(200);
    let described = document["paths"].as_object().unwrap();
    let closed: Vec<&str> = routes().iter().map(|(_, _, path, _)| *path).collect();
    for path in described.keys() {
        let is_open = OPEN.contains(&path.as_str());
        assert!(is_open || closed.contains(&path.as_str()), "{path} is not in this test");
    }
    for (class, method, path, body) in routes() {
        let none = ask(&daemon, "", method, path, &body);
        assert_eq!(none.json(401)["reason"], "unauthenticated", "{path}");
        assert_eq!(none.header("www-authenticate"), Some("Bearer realm=\"kvscout\""), "{path}");
        for unknown in ["x", &SCORE[1..], &format!("{ADMIN}0")] {
            let wrong = ask(&daemon, unknown, method, path, &body);
            assert_eq!(wrong.status, 401, "{path}");
            assert!(wrong.header("www-authenticate").unwrap().contains("invalid_token"), "{path}");
            assert!(!wrong.body.contains(unknown) || unknown == "x", "{}", wrong.body);
        }
        for (token, allows) in [(SCORE, &["score", "pick"][..]), (READ, &["read"])] {
            let answer = ask(&daemon, token, method, path, &body);
            match allows.contains(&class) {
                true => assert!(![401, 403].contains(&answer.status), "{path}: {}", answer.body),
                false => assert_eq!(answer.json(403)["reason"], "forbidden", "{path}"),
            }
        }
        let answer = ask(&daemon, ADMIN, method, path, &body);
        let refused = answer.status == 401 || answer.body.contains("forbidden");
        assert!(!refused, "{path}: {}", answer.body);
    }
    let log = daemon.terminate();
    for token in [ADMIN, SCORE, READ, TENANT] {
        assert!(!log.contains(token), "{log}");
    }
}

#[test]
fn x6_a_registration_dials_nothing_that_no_rule_allows() {
    let dialled = |daemon: &Daemon, fields: Value| {
        let mut body = json!({
            "model_name": "m", "instance_id": 7, "block_size": 16, "endpoint": "tcp://10.0.0.1:9",
        });
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        daemon.post("/register", &body)
    };
    // Reached by others than this machine: nothing on it, no credentials of a cloud, no public address.
    let daemon = Daemon::start(&["--listen", "0.0.0.0:0"], "", &[]);
    for endpoint in [
        "tcp://169.254.169.254:80",
        "tcp://127.0.0.1:6379",
        "tcp://localhost:6379",
        "tcp://[::1]:6379",
        "tcp://[::ffff:127.0.0.1]:6379",
        // Other ways to write 127.0.0.1.
        "tcp://2130706433:6379",
        "tcp://0x7f000001:6379",
        "tcp://127.1:6379",
        "tcp://8.8.8.8:53",
    ] {
        for field in ["endpoint", "replay_endpoint"] {
            let answer = dialled(&daemon, json!({ field: endpoint }));
            assert_eq!(answer.json(403)["reason"], "not_allowed", "{endpoint}");
            assert!(
                answer.body.contains(endpoint) && answer.body.contains("dial.allow"),
                "{}",
                answer.body
            );
        }
    }
    assert_eq!(dialled(&daemon, json!({ "endpoint": "ipc:///run/x.sock" })).status, 400);
    assert_eq!(dialled(&daemon, json!({ "endpoint": "tcp://no-such-name.invalid:1" })).status, 503);
    assert_eq!(daemon.get("/workers").json(200)["workers"], json!([]));
    assert_eq!(dialled(&daemon, json!({})).status, 201);

    // A name is shown as it was registered, and dialled as what it stands for.
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let port = endpoint.rsplit(':').next().unwrap();
    let named = format!("tcp://localhost:{port}");
    let state = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let state = state.join(format!("state-{}-named", std::process::id()));
    let rules = format!("[dial]\nallow = [\"127.0.0.0/8:{port}\"]\n[state]\ndir = {state:?}\n");
    let daemon = Daemon::start(&["--listen", "0.0.0.0:0"], &rules, &[]);
    assert_eq!(dialled(&daemon, json!({ "endpoint": "tcp://localhost:1" })).status, 403);
    let answer = dialled(&daemon, json!({ "endpoint": named }));
    assert_eq!(answer.status, 201, "{named}: {}", answer.body);
    assert_eq!(dialled(&daemon, json!({ "endpoint": named })).status, 201, "again is the same");
    eventually("its batches come", || {
        publish(&socket, b"", 0, &batch(&[]));
        daemon.worker("7", 0)["as_of"] == 0
    });
    assert_eq!(daemon.worker("7", 0)["endpoint"], *named);

    // After a restart it is looked up, and checked, again.
    daemon.terminate();
    let daemon = Daemon::start(&["--listen", "0.0.0.0:0"], &rules, &[]);
    eventually("it is dialled again", || daemon.worker("7", 0)["link"]["state"] == "up");
    daemon.terminate();
    let other = rules.replace("127.0.0.0/8", "10.0.0.0/8");
    let daemon = Daemon::start(&["--listen", "0.0.0.0:0"], &other, &[]);
    eventually("it is forgotten", || daemon.get("/workers").json(200)["workers"] == json!([]));
}

#[test]
fn x7_a_caller_that_is_bound_to_a_tenant_learns_nothing_of_another() {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let source = format!(
        "[[source]]\nname = \"victim\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\ntenant = \"b\"\n"
    );
    let daemon = Daemon::start(&[], &(callers("x7") + &source), &[]);
    let tokens: Vec<u32> = (0..9).collect();
    let held = json!({ "tenant": "b", "model": "m", "token_ids": tokens });
    eventually("the victim holds blocks", || {
        publish(&socket, b"", 0, &batch(&[stored(&[1, 2], None, &tokens[..8])]));
        // Before the first batch no worker serves the model: the answer is 404.
        let answer = ask(&daemon, ADMIN, "POST", "/v1/score", &held);
        answer.status == 200 && answer.json(200)["workers"][0]["matched_blocks"] == 2
    });
    // The same for what is held, what is not, and a tenant that does not exist: before anything is looked up.
    let mut said: Vec<String> = Vec::new();
    for tenant in ["b", "nobody", "default"] {
        for tokens in [&tokens[..], &[7; 9]] {
            let asked = json!({ "tenant": tenant, "model": "m", "token_ids": tokens });
            let answer = ask(&daemon, TENANT, "POST", "/v1/score", &asked);
            assert_eq!(answer.json(403)["reason"], "other_tenant");
            said.push(answer.body);
        }
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    // Every route that takes a tenant, in each dialect, also by not naming one.
    for (_, method, path, mut body) in routes() {
        for (name, tenant) in
            [("tenant", "b"), ("tenant_id", "b"), ("routing_group", "b"), ("", "")]
        {
            if !name.is_empty() {
                body[name] = tenant.into();
            }
            let answer = ask(&daemon, TENANT, method, path, &body);
            match (path, name) {
                // One that is wrong fails itself only.
                ("/v1/score/batch", "") => {
                    let answer = answer.json(200);
                    assert_eq!(answer["answers"][0]["reason"], "other_tenant", "{answer}");
                }
                (_, "") => assert_eq!(answer.status, 403, "{path}: {}", answer.body),
                // A field of another dialect may be refused as such.
                _ => assert!([400, 403].contains(&answer.status), "{path}: {}", answer.body),
            }
            if !name.is_empty() {
                body.as_object_mut().map(|body| body.remove(name));
            }
        }
    }
    let own = json!({ "tenant": "a", "token_ids": [1] });
    assert_eq!(
        ask(&daemon, TENANT, "POST", "/v1/score", &own).json(404)["reason"],
        "unknown_model"
    );
    let register = json!({
        "endpoint": "tcp://127.0.0.1:9", "model_name": "m", "instance_id": 1, "block_size": 16,
        "routing_group": "a",
    });
    assert_eq!(ask(&daemon, TENANT, "POST", "/register", &register).status, 201);
}

#[test]
fn a_token_is_changed_without_a_restart_and_score_may_be_open() {
    let file = secret("rotate", ADMIN);
    let config = format!("[auth]\ntoken_file = {file:?}\nopen = [\"score\"]\n");
    let daemon = Daemon::start(&[], &config, &[]);
    let question = json!({ "token_ids": [1] });
    assert_eq!(ask(&daemon, "", "POST", "/v1/score", &question).status, 404);
    assert_eq!(ask(&daemon, "", "GET", "/workers", &Value::Null).status, 401);
    assert_eq!(ask(&daemon, ADMIN, "GET", "/workers", &Value::Null).status, 200);
    fs::write(&file, READ).unwrap();
    eventually("the new token counts", || {
        ask(&daemon, READ, "GET", "/workers", &Value::Null).status == 200
    });
    assert_eq!(ask(&daemon, ADMIN, "GET", "/workers", &Value::Null).status, 401);
}

#[test]
fn a_daemon_does_not_start_with_a_token_that_others_may_read() {
    let file = secret("open", ADMIN);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut serve = kvscout();
    serve.args(["serve", "--listen", "127.0.0.1:0"]);
    let output = serve.env("KVSCOUT_AUTH_TOKEN_FILE", &file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("others may read or change it (mode 0644)"), "{said}");
}

#[test]
fn a_replica_begins_with_the_snapshot_of_one_that_asks_who_it_is() {
    let directory = |name: &str| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = path.join(format!("state-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    };
    let (first, second) = (directory("first"), directory("second"));
    let config = format!("[state]\ndir = {first:?}\nshare = true\n");
    let giving = Daemon::start(&[], &(callers("giving") + &config), &[]);
    fs::copy(first.join("key"), second.join("key")).unwrap();
    let begin = |token: &str| {
        let token = secret("replica", token);
        let from = giving.address();
        let config = format!(
            "[state]\ndir = {second:?}\nfrom = \"http://{from}\"\nfrom_token_file = {token:?}\n"
        );
        Daemon::start(&[], &config, &[]).terminate()
    };
    let refused = begin(SCORE);
    assert!(refused.contains("no snapshot from there") && refused.contains("403"), "{refused}");
    assert!(!refused.contains(SCORE), "{refused}");
    fs::remove_file(second.join("snapshot")).ok();
    for entry in fs::read_dir(&second).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("key") {
            fs::remove_file(path).unwrap();
        }
    }
    let begun = begin(ADMIN);
    assert!(begun.contains("restored"), "{begun}");
}

/// Runs a client of Python's grpcio: `channel`, and the stubs of every service; prints what it is asked to.
fn grpc(script: &str) -> Option<String> {
    let python = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import grpc, google.protobuf"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    let required = std::env::var_os("KVSCOUT_TEST_CLIENTS").is_some();
    assert!(python.is_some() || !required, "there is no Python with grpcio");
    let stubs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/grpc_stubs");
    let start = format!(
        "import sys; sys.path.insert(0, {stubs:?})
import grpc, health_pb2 as h, health_pb2_grpc as hs, indexer_pb2 as i, indexer_pb2_grpc as isv
import kv_indexer_pb2 as s, kv_indexer_pb2_grpc as ss, kvscout_pb2 as k, kvscout_pb2_grpc as ks
def says(call, request, token=None):
    metadata = [('authorization', 'Bearer ' + token)] if token else None
    try:
        answer = call(request, timeout=60, metadata=metadata)
        if not hasattr(answer, 'DESCRIPTOR'):
            list(answer)
        return 'OK'
    except grpc.RpcError as error:
        return error.code().name
"
    );
    let run = Command::new(python?).args(["-B", "-c", &(start + script)]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    Some(String::from_utf8(run.stdout).unwrap())
}

#[test]
fn x6_every_method_of_grpc_refuses_whoever_has_no_leave() {
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &callers("grpc"), &[]);
    let said = grpc(&format!(
        "channel = grpc.insecure_channel({:?})
scout, llmd, sglang = ks.ScoutStub(channel), isv.IndexerServiceStub(channel), ss.KVIndexerStub(channel)
question = k.ScoreRequest(model='m', tenant='a', token_ids=k.TokenIds(ids=[1]))
calls = [
    (scout.Score, question),
    (scout.ScoreMany, iter([])),
    (llmd.GetPodScores, i.GetPodScoresRequest(prompt='x', model_name='m')),
    (sglang.ApplyExternalKvBatch, s.ApplyExternalKvBatchRequest(worker_id='w')),
    (sglang.MatchExternalKv, s.MatchExternalKvRequest(hashes=[1])),
    (sglang.MatchExternalKvPrefix, s.MatchExternalKvPrefixRequest(hashes=[1])),
    (sglang.GetExternalKvHitCounts, s.GetExternalKvHitCountsRequest(hashes=[1])),
]
for call, request in calls:
    print(*[says(call, request, token) for token in (None, 'wrong', {READ:?}, {ADMIN:?})])
print('bound', *[says(call, request, {TENANT:?}) for call, request in calls])
question.tenant = 'b'
print('other', says(scout.Score, question, {TENANT:?}))
print('open', says(hs.HealthStub(channel).Check, h.HealthCheckRequest()))
",
        daemon.grpc()
    ));
    let Some(said) = said else { return };
    let lines: Vec<&str> = said.lines().collect();
    for line in &lines[..7] {
        let codes: Vec<&str> = line.split(' ').collect();
        assert_eq!(
            codes[..3],
            ["UNAUTHENTICATED", "UNAUTHENTICATED", "PERMISSION_DENIED"],
            "{said}"
        );
        assert!(!["UNAUTHENTICATED", "PERMISSION_DENIED"].contains(&codes[3]), "{said}");
    }
    // Its own tenant has no workers; what knows no tenants is not for it.
    let denied = "PERMISSION_DENIED ".repeat(5);
    assert_eq!(lines[7], format!("bound NOT_FOUND OK {}", denied.trim()), "{said}");
    assert_eq!(lines[8..], ["other PERMISSION_DENIED", "open OK"], "{said}");
    let log = daemon.terminate();
    assert!(![ADMIN, READ, TENANT].iter().any(|token| log.contains(token)), "{log}");
}

#[test]
fn a_page_from_elsewhere_is_refused_over_grpc_too() {
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], "", &[]);
    let said = grpc(&format!(
        "sglang = ss.KVIndexerStub(grpc.insecure_channel({:?}))
for page in [('origin', 'https://evil.example'), ('sec-fetch-site', 'cross-site'), ('sec-fetch-site', 'none')]:
    try:
        sglang.MatchExternalKv(s.MatchExternalKvRequest(hashes=[1]), timeout=60, metadata=[page])
        print('OK')
    except grpc.RpcError as error:
        print(error.code().name, dict(error.trailing_metadata())['kvscout-reason'])
",
        daemon.grpc()
    ));
    let Some(said) = said else { return };
    let refused = "PERMISSION_DENIED foreign_origin\n";
    assert_eq!(said, format!("{refused}{refused}OK\n"));
}

/// Files of an authority, of a server at 127.0.0.1 and of a client.
fn certificates(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{name}"));
    fs::create_dir_all(&directory).unwrap();
    let script = "set -e; umask 077
        new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        openssl req -x509 -days 2 -subj '/CN=authority' $new -keyout ca.key -out ca.crt
        for of in \"server:IP:127.0.0.1,DNS:localhost\" \"client:URI:spiffe://k/sa/router\"; do
            name=${of%%:*}
            echo \"subjectAltName=${of#*:}\" > $name.ext
            openssl req -subj /CN=$name $new -keyout $name.key -out $name.csr
            openssl x509 -req -days 2 -CAcreateserial -in $name.csr -CA ca.crt -CAkey ca.key \
                -extfile $name.ext -out $name.crt
        done";
    let made = Command::new("sh").args(["-c", script]).current_dir(&directory).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory
}

#[test]
fn over_tls_a_client_is_known_by_its_certificate_and_by_no_other() {
    let directory = certificates("known");
    let file = |name: &str| directory.join(name).display().to_string();
    let config = callers("tls")
        + &format!(
            "[[caller]]\nname = \"mesh\"\ncertificate = \"spiffe://k/sa/router\"\nallows = [\"read\"]\n\
             [tls]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
            file("server.crt"),
            file("server.key"),
            file("ca.crt")
        );
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &config, &[]);
    let curl = |path: &str, arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &file("ca.crt")]);
        let url = format!("https://{}{path}", daemon.address());
        let output = curl.args(arguments).arg(url).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (certificate, key) = (file("client.crt"), file("client.key"));
    let known = ["--cert", certificate.as_str(), "--key", key.as_str()];
    let ok = |status: &str| (true, status.to_owned());
    assert_eq!(curl("/health", &[]), ok("200"), "a probe shows nothing");
    assert_eq!(curl("/workers", &[]), ok("401"));
    assert_eq!(curl("/workers", &known), ok("200"));
    assert_eq!(curl("/snapshot", &known), ok("403"));
    assert_eq!(curl("/workers", &["-H", &format!("authorization: Bearer {READ}")]), ok("200"));
    // The same over gRPC.
    let said = grpc(&format!(
        "read = lambda name: open({:?} + '/' + name, 'rb').read()
def channel(*pair):
    return grpc.secure_channel({:?}, grpc.ssl_channel_credentials(read('ca.crt'), *pair))
nobody, known = channel(), channel(read('client.key'), read('client.crt'))
question = k.ScoreRequest(model='m', token_ids=k.TokenIds(ids=[1]))
print(says(hs.HealthStub(nobody).Check, h.HealthCheckRequest()))
print(says(ks.ScoutStub(nobody).Score, question), says(ks.ScoutStub(known).Score, question))
print(says(ks.ScoutStub(nobody).Score, question, {SCORE:?}))
",
        directory.display().to_string(),
        daemon.grpc()
    ));
    if let Some(said) = said {
        assert_eq!(said, "OK\nUNAUTHENTICATED PERMISSION_DENIED\nNOT_FOUND\n");
    }
    // A certificate of another authority ends the handshake.
    let other = certificates("other");
    let (certificate, key) = (other.join("client.crt"), other.join("client.key"));
    let stranger = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    assert!(!curl("/workers", &stranger).0);

    // A new certificate needs no restart: that of the other authority is trusted by its own clients alone.
    for name in ["server.key", "server.crt"] {
        fs::copy(other.join(name), directory.join(name)).unwrap();
    }
    let ca = other.join("ca.crt");
    eventually("the new certificate is shown", || {
        let url = format!("https://{}/health", daemon.address());
        let mut curl = Command::new("curl");
        let asked = curl.args(["-sS", "--cacert", ca.to_str().unwrap(), &url]).output().unwrap();
        asked.status.success()
    });
}
