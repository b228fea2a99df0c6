//! What the daemon's tests share: the process, a small HTTP client, recorded engines.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use crate::zmq_support::{PATIENCE, eventually, publish};

/// A running `kvscout serve`, killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    address: String,
    grpc: Option<String>,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts `kvscout serve` on any port with these flags, a configuration file's text and
    /// variables of the environment.
    pub(crate) fn start(flags: &[&str], file: &str, environment: &[(&str, &str)]) -> Daemon {
        Daemon::start_as(kvscout(), flags, file, environment)
    }

    /// The same with what starts `kvscout`.
    pub(crate) fn start_as(
        mut command: Command,
        flags: &[&str],
        file: &str,
        environment: &[(&str, &str)],
    ) -> Daemon {
        command.arg("serve").args(flags);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.envs(environment.iter().copied());
        if !file.is_empty() {
            command.arg("--config").arg(config_file(file));
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&stderr));
        let reader = thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                kept.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let (mut first, mut second) = (String::new(), String::new());
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut first).unwrap();
        if flags.contains(&"--grpc") {
            stdout.read_line(&mut second).unwrap();
        }
        let said = first.trim().strip_prefix("listening on ");
        let address = said.and_then(|said| {
            said.strip_prefix("http")?.trim_start_matches('s').strip_prefix("://")
        });
        let address = address.unwrap_or_else(|| panic!("{first:?}, {}", stderr.lock().unwrap()));
        let grpc = second
            .trim()
            .strip_prefix("listening on grpc")
            .and_then(|said| said.trim_start_matches('s').strip_prefix("://").map(str::to_owned));
        Daemon { address: address.to_owned(), grpc, child, stderr, reader: Some(reader) }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where the gRPC services are, with `--grpc`.
    pub(crate) fn grpc(&self) -> &str {
        self.grpc.as_deref().unwrap()
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.send("GET", path, "", "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.send("POST", path, "content-type: application/json\r\n", &body.to_string())
    }

    /// One request on a connection of its own; each header ends with a line break.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        send_to(&self.address, method, path, headers, body)
    }

    /// A worker as `/workers` shows it; null when there is none.
    pub(crate) fn worker(&self, pod: &str, rank: u64) -> Value {
        let answer = self.get("/workers").json(200);
        let workers = answer["workers"].as_array().unwrap();
        let found = workers.iter().find(|w| w["worker"] == pod && w["rank"] == rank);
        found.cloned().unwrap_or_default()
    }

    /// Publishes a batch until it is applied: the first ones may go before the subscription.
    pub(crate) fn feed(&self, socket: &zmq::Socket, topic: &str, batch: &Batch, pod: &str) {
        eventually("a published batch is applied", || {
            publish(socket, topic.as_bytes(), batch.seq, &batch.payload);
            self.has_applied(pod, 0, batch.seq)
        });
    }

    pub(crate) fn has_applied(&self, pod: &str, rank: u64, seq: u64) -> bool {
        self.worker(pod, rank)["as_of"] == seq
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Kills the process where it stands.
    pub(crate) fn kill(self) {
        self.signal("KILL");
        self.end();
    }

    /// Lets the process end in order.
    #[track_caller]
    pub(crate) fn terminate(self) -> String {
        self.signal("TERM");
        let (status, log) = self.end();
        assert!(status.success(), "{log}");
        log
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let metrics = self.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.map(|value| value.parse().unwrap())
    }

    /// How the process ends by itself, and everything it said on stderr.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        eventually("the daemon ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.reader.take().unwrap().join().unwrap();
        (status.unwrap(), self.stderr())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A question to the daemon at an address, from a thread that does not have the daemon itself.
pub(crate) fn post_to(address: &str, path: &str, body: &Value) -> Response {
    send_to(address, "POST", path, "content-type: application/json\r\n", &body.to_string())
}

fn send_to(address: &str, method: &str, path: &str, headers: &str, body: &str) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{headers}\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_owned(), body: body.to_owned() }
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The JSON body of an answer with this status.
    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }
}

pub(crate) fn kvscout() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvscout"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KVSCOUT_") {
            command.env_remove(name);
        }
    }
    command
}

/// A configuration file with this text.
pub(crate) fn config_file(text: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("kvscout-{}-{n}.toml", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path
}

/// One recorded batch.
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) seq: u64,
    pub(crate) payload: Vec<u8>,
}

/// One recorded step: a batch, or a question with the engine's own answer.
pub(crate) enum Step {
    Batch(Batch),
    Question { line: Value, computed: u64 },
}

/// What vLLM 0.33.0 published and answered.
pub(crate) fn recording() -> Vec<Step> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/drive-0.33.0.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| match line["op"].as_str().unwrap() {
            "events" => Some(Step::Batch(Batch {
                seq: line["seq"].as_u64().unwrap(),
                payload: hex(line["payload"].as_str().unwrap()),
            })),
            "request" | "probe" => {
                let computed = line["computed_tokens"].as_u64().unwrap();
                Some(Step::Question { line, computed })
            }
            _ => None,
        })
        .collect()
}

/// The batches alone.
pub(crate) fn batches() -> Vec<Batch> {
    let batch = |step| match step {
        Step::Batch(batch) => Some(batch),
        Step::Question { .. } => None,
    };
    recording().into_iter().filter_map(batch).collect()
}

fn hex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}
