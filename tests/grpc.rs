//! The gRPC services, asked by a client that is not ours: grpcio with stubs made from `proto/`.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod scope_support;
mod tokenize_support;
mod zmq_support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use daemon_support::{Batch, Daemon, kvscout};
use failures_support::{batch, stored, with};
use kvscout::tokenize::{Options, Tokenize, Tokenizer};
use scope_support::Raises;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zmq_support::{PATIENCE, bound_publisher, eventually};

/// A Python that has `grpcio` and `protobuf`.
fn python() -> Option<Command> {
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import grpc, google.protobuf"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    let required = std::env::var_os("KVSCOUT_TEST_CLIENTS").is_some();
    assert!(found.is_some() || !required, "there is no Python with grpcio");
    if found.is_none() {
        eprintln!(
            "skipped: there is no Python with grpcio (Debian: python3-grpcio python3-protobuf)"
        );
    }
    let mut command = Command::new(found?);
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

fn tests(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file)
}

/// A daemon with pods of these roles, whose pod 7 announced these events; `config` goes before the sources.
fn daemon(pods: &[(&str, &str)], events: &[Value], config: &str) -> (Daemon, Vec<zmq::Socket>) {
    let mut file = config.to_owned();
    let mut sockets = Vec::new();
    for (pod, role) in pods {
        let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
        file += &format!(
            "[[source]]\nname = \"{pod}\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n\
             labels = [\"role={role}\"]\n"
        );
        sockets.push(socket);
    }
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &file, &[]);
    for (pod, _) in pods {
        eventually("the link is up", || daemon.worker(pod, 0)["trust"] == "exact");
    }
    daemon.feed(&sockets[0], "", &Batch { seq: 0, payload: batch(events) }, "7");
    (daemon, sockets)
}

#[test]
fn every_method_answers_a_client_written_with_pythons_grpcio() {
    let Some(mut python) = python() else { return };
    let tokens: Vec<u32> = (0..8).collect();
    let limit = "[limits]\nmax_body_bytes = 65536\n";
    let events = [stored(&[11, 12], None, &tokens)];
    let (daemon, _sockets) = daemon(&[("7", "prefill"), ("8", "decode")], &events, limit);
    let run = python.arg(tests("grpc_client.py")).args([daemon.grpc(), daemon.address()]).output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), "all answered", "{said}");
    let count = |method: &str, code: &str| {
        daemon
            .metric(&format!("kvscout_grpc_requests_total{{method=\"{method}\",code=\"{code}\"}}"))
    };
    assert_eq!(count("kvscout.v1.Scout/ScoreMany", "OK"), Some(2.0));
    // A stream's questions, each by how it ended: what was wrong with one ended itself only.
    let streamed = "kvscout.v1.Scout/ScoreMany/question";
    assert_eq!(count(streamed, "OK"), Some(2048.0));
    assert_eq!(count(streamed, "NOT_FOUND"), Some(1.0));
    assert_eq!(count(streamed, "INVALID_ARGUMENT"), Some(1.0));
    let timed = format!("kvscout_grpc_request_seconds_count{{method=\"{streamed}\"}}");
    assert_eq!(daemon.metric(&timed), Some(2050.0));
    assert_eq!(count("indexer.v1.IndexerService/GetPodScores", "FAILED_PRECONDITION"), Some(1.0));
    assert!(daemon.metric("kvscout_reported_blocks").unwrap() > 0.0);
    assert!(!daemon.terminate().contains("panicked"));
}

#[test]
fn health_follows_readiness_and_open_streams_do_not_hold_up_the_end() {
    let Some(mut python) = python() else { return };
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let file = format!(
        "[ready]\nworkers = 1.0\ndeadline = \"\"\n[limits]\ndrain = \"600s\"\n\
         [[source]]\nname = \"7\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n\
         [[source]]\nname = \"8\"\nendpoint = \"tcp://127.0.0.1:9\"\nmodel = \"m\"\n"
    );
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &file, &[]);
    let mut watch = python
        .arg(tests("grpc_watch.py"))
        .arg(daemon.grpc())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "NOT_SERVING");
    let tokens: Vec<u32> = (0..4).collect();
    let payload = batch(&[stored(&[11], None, &tokens)]);
    daemon.feed(&socket, "", &Batch { seq: 0, payload }, "7");
    daemon.post("/unregister", &json!({ "instance_id": "8", "dp_rank": 0 })).json(200);
    assert_eq!(next(), "SERVING");
    daemon.signal("TERM");
    assert_eq!(next(), "NOT_SERVING");
    assert_eq!(next(), "over []");
    // Sooner than in the ten minutes that requests in flight have.
    let (status, log) = daemon.end();
    assert!(status.success() && !log.contains("cut off"), "{log}");
    assert!(watch.wait().unwrap().success());
}

#[test]
fn beyond_what_may_be_under_way_a_call_is_refused_at_once() {
    let Some(mut python) = python() else { return };
    let limits = "[limits]\nconcurrency = 1\nqueue = 0\n";
    let (daemon, _sockets) =
        daemon(&[("7", "both")], &[stored(&[11], None, &[1, 2, 3, 4])], limits);
    let tokens: Vec<u32> = (0..400).collect();
    let long = json!({ "requests": vec![json!({ "model": "m", "token_ids": tokens }); 2000] });
    let over = AtomicBool::new(false);
    let said = thread::scope(|scope| {
        let _over = Raises(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                daemon.post("/v1/score/batch", &long);
            }
        });
        let run = python.arg(tests("grpc_overload.py")).arg(daemon.grpc()).output().unwrap();
        String::from_utf8(run.stdout).unwrap()
    });
    for call in [
        "Score",
        "Score, long",
        "ScoreMany",
        "GetPodScores",
        "MatchExternalKv",
        "MatchExternalKvPrefix",
        "GetExternalKvHitCounts",
        "ApplyExternalKvBatch",
        "ReplaceExternalKvSnapshot",
        "ConfigureExpectedWorkers",
    ] {
        let refused = format!("{call}: RESOURCE_EXHAUSTED more questions are waiting");
        let is_refused = |line: &str| line.starts_with(&refused) && line.ends_with(" (overloaded)");
        assert!(said.lines().any(is_refused), "{call}: {said}");
    }
    let streamed = "method=\"kvscout.v1.Scout/ScoreMany/question\",code=\"RESOURCE_EXHAUSTED\"";
    let counted = daemon.metric(&format!("kvscout_grpc_requests_total{{{streamed}}}"));
    assert!(counted.is_some_and(|counted| counted >= 1.0), "{counted:?}");
}

#[test]
fn a_call_whose_message_does_not_come_in_time_is_given_up() {
    let Some(mut python) = python() else { return };
    let daemon =
        Daemon::start(&["--grpc", "127.0.0.1:0"], "[limits]\nread_timeout = \"300ms\"\n", &[]);
    let run = python.arg(tests("grpc_slow.py")).arg(daemon.grpc()).output().unwrap();
    // As tonic says it; the client itself would have said DEADLINE_EXCEEDED a minute later.
    assert_eq!(String::from_utf8(run.stdout).unwrap(), "CANCELLED\n");
}

#[test]
fn without_an_address_nothing_listens() {
    let print = |flags: &[&str]| {
        let run = kvscout().arg("serve").args(flags).arg("--print-config").output().unwrap();
        (
            run.status.success(),
            String::from_utf8(run.stdout).unwrap() + &String::from_utf8(run.stderr).unwrap(),
        )
    };
    let (_, config) = print(&[]);
    assert!(config.contains("[grpc]\nlisten = \"\"\n"), "{config}");
    let (_, config) = print(&["--grpc", "127.0.0.1:13334"]);
    assert!(config.contains("[grpc]\nlisten = \"127.0.0.1:13334\"\n"), "{config}");
    let (is_right, error) = print(&["--grpc", "13334"]);
    assert!(!is_right && error.contains("--grpc \"13334\": expected ADDRESS:PORT"), "{error}");
    let daemon = Daemon::start(&[], "", &[]);
    assert!(!daemon.terminate().contains("gRPC"));
}

#[test]
fn a_connection_is_told_how_many_calls_it_may_have_under_way() {
    let config = "[grpc]\nmax_streams = 7\n";
    let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], config, &[]);
    let mut stream = TcpStream::connect(daemon.grpc()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The preface, and a frame of no settings.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    let [_, high, low, kind, ..] = head;
    assert_eq!(kind, 4, "the first frame has the settings: {head:?}");
    let mut settings = vec![0; usize::from(high) << 8 | usize::from(low)];
    stream.read_exact(&mut settings).unwrap();
    let most =
        settings.chunks(6).find(|setting| setting[..2] == [0, 3]).map(|setting| &setting[2..]);
    assert_eq!(most, Some(&[0, 0, 0, 7][..]), "{settings:?}");
}

#[test]
fn the_generated_code_is_that_of_proto() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sums = fs::read_to_string(root.join("src/bin/kvscout/grpc/generated/SHA256SUMS")).unwrap();
    let mut files = 0;
    for file in fs::read_dir(root.join("proto")).unwrap() {
        let file = file.unwrap();
        let sum = Sha256::digest(fs::read(file.path()).unwrap());
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("{hex}  {}", file.file_name().to_str().unwrap());
        assert!(sums.lines().any(|known| known == line), "{line}: run scripts/grpc-code/run");
        files += 1;
    }
    assert_eq!(files, sums.lines().count());
}

/// What stands between fences of these languages, in the order of the page.
fn blocks(page: &str) -> Vec<(&str, &str)> {
    let fenced = page.split("\n```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

#[test]
fn every_call_of_the_page_has_the_answer_that_stands_below_it() {
    let Some(mut python) = python() else { return };
    // As the page's beginning says.
    let tokens: Vec<u32> = (1..=16).collect();
    let source = tokenize_support::folder("llama3");
    let text = tokenize_support::load("llama3", Options::default());
    let text = text.text(tokenize_support::PAGES_TEXT, true).unwrap();
    let sixteen = |name, tokens| with(stored(&[name], None, tokens), &[("block_size", json!(16))]);
    let config =
        format!("dialects.dynamo_hashes = true\nmodels.m.tokenizer = \"{}\"\n", source.display());
    let events = [sixteen(11, &tokens), sixteen(21, &text[..16])];
    let (daemon, _sockets) = daemon(&[("7", "prefill")], &events, &config);
    let page = include_str!("../docs/dialects.md").split_once("\n## gRPC").unwrap().1;
    let blocks: Vec<_> = blocks(page).into_iter().filter(|(kind, _)| *kind != "sh").collect();
    let ((first, begin), calls) = blocks.split_first().unwrap();
    assert_eq!(*first, "python");
    let mut program = begin.replace("localhost:13334", daemon.grpc());
    program += "\nimport json\nfrom google.protobuf.json_format import MessageToDict\n\
                def told(answer):\n    print(json.dumps(MessageToDict(answer, preserving_proto_field_name=True)))\n";
    let mut expected = Vec::new();
    for pair in calls.chunks(2) {
        let [("python", call), ("json", answer)] = pair else {
            panic!("a call, then its answer: {pair:?}")
        };
        program += &format!("{call}\ntold(answer)\n");
        expected.push((call, serde_json::from_str::<Value>(answer).unwrap()));
    }
    let run =
        python.env("PYTHONPATH", tests("grpc_stubs")).args(["-c", &program]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    let found: Vec<Value> =
        run.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    for ((call, expected), found) in expected.iter().zip(&found) {
        assert_eq!(found, expected, "{call}");
    }
    assert!(run.status.success() && found.len() == expected.len(), "{said}");
    assert!(found.len() >= 9, "{}", found.len());
}

#[test]
fn llm_ds_call_scores_a_text_where_the_model_has_a_tokenizer() {
    let Some(mut python) = python() else { return };
    let folder = tokenize_support::folder("llama3");
    let source = folder.to_str().unwrap();
    let tokenizer = Tokenizer::load("m", source, Options::default()).unwrap();
    let text = "a text long enough to fill several blocks of four tokens";
    let tokens = tokenizer.text(text, true).unwrap();
    let blocks = tokens.len() / 4;
    assert!(blocks > 1);
    let names: Vec<u64> = (1..).take(blocks).collect();
    let config = format!("models.m.tokenizer = \"{source}\"\n");
    let pods = [("7", "prefill"), ("8", "decode")];
    let events = [stored(&names, None, &tokens[..4 * blocks])];
    let (daemon, _sockets) = daemon(&pods, &events, &config);
    let script = "import sys; stubs, address, prompt = sys.argv[1:]; sys.path.insert(0, stubs)\n\
                  import grpc, indexer_pb2, indexer_pb2_grpc\n\
                  llmd = indexer_pb2_grpc.IndexerServiceStub(grpc.insecure_channel(address))\n\
                  ask = indexer_pb2.GetPodScoresRequest(prompt=prompt, model_name='m')\n\
                  for pod in llmd.GetPodScores(ask, timeout=30).scores: print(pod.pod, pod.score)";
    let stubs = tests("grpc_stubs");
    let run = python.args(["-c", script]).arg(stubs).args([daemon.grpc(), text]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(String::from_utf8_lossy(&run.stdout), format!("7 {blocks}.0\n"), "{said}");
}
