//! A Prometheus that scrapes a daemon and an engine's figures, and promtool.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a scrape, and what it takes to find it, may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where a program of the package `prometheus` is; its absence is a failure where `scripts/test` runs.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|p| p.is_file());
    if found.is_none() {
        let required = std::env::var_os("KVSCOUT_TEST_CLIENTS").is_some();
        assert!(!required, "no {name}: apt-get install prometheus");
        eprintln!("skipped: no {name}");
    }
    found
}

/// What promtool says of files in a directory, all being well.
pub(crate) fn promtool(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("promtool").current_dir(directory).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

/// Tries again until it works; what it says when it does not is told when time is up.
#[track_caller]
pub(crate) fn patiently(what: &str, mut works: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(wrong) = works() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {wrong}");
        thread::sleep(Duration::from_millis(300));
    }
}

/// A running Prometheus, killed when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    /// One that scrapes these targets, each with its job before it, twice a second, has these rules, and keeps its data
    /// in a new directory.
    pub(crate) fn start(targets: &[(&str, &str)], rules: &Path, directory: &Path) -> Prometheus {
        std::fs::create_dir_all(directory).unwrap();
        let config = directory.join("prometheus.yml");
        let mut text = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs:\n"
        );
        for (job, target) in targets {
            text +=
                &format!("- {{job_name: {job}, static_configs: [{{targets: [{target:?}]}}]}}\n");
        }
        std::fs::write(&config, text).unwrap();
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut child = Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + PATIENCE;
            // Where another program took the port, it ends by itself.
            while child.try_wait().unwrap().is_none() {
                if get(&address, "/-/ready").is_some_and(|(status, _)| status == 200) {
                    return Prometheus { child, address };
                }
                assert!(Instant::now() < deadline, "prometheus is not ready within {PATIENCE:?}");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// The numbers that an expression has now. One that is wrong fails the test.
    pub(crate) fn numbers(&self, expression: &str) -> Vec<f64> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(expression)));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let result = answer["data"]["result"].as_array().unwrap();
        let number = |series: &Value| series["value"][1].as_str().unwrap().parse::<f64>().unwrap();
        // A ratio of nothing is not a number.
        result.iter().map(number).filter(|number| number.is_finite()).collect()
    }

    /// Every rule.
    pub(crate) fn rules(&self) -> Vec<Value> {
        let answer = self.ask("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().unwrap();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }

    /// Alerts that fire, or wait for their time.
    pub(crate) fn alerts(&self) -> Vec<Value> {
        self.ask("/api/v1/alerts")["data"]["alerts"].as_array().unwrap().clone()
    }

    fn ask(&self, path: &str) -> Value {
        let (_, body) = get(&self.address, path).expect("prometheus answers");
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the figures of an engine are, as vLLM's `/metrics` has them, until the test ends. At each look there are four
/// tokens more that were asked for, and three of them were cached.
pub(crate) fn engine_figures(model: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let labels = format!("{{engine=\"0\",model_name=\"{model}\"}}");
    thread::spawn(move || {
        let streams = listener.incoming().map_while(Result::ok);
        for (mut stream, look) in streams.zip(1_u64..) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
            let mut body = String::new();
            // Versions of 2025 have both names.
            for name in ["prefix_cache", "gpu_prefix_cache"] {
                for (what, n) in [("queries", 4 * look), ("hits", 3 * look)] {
                    let name = format!("vllm:{name}_{what}");
                    body += &format!("# TYPE {name}_total counter\n{name}_total{labels} {n}.0\n");
                }
            }
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n\
                 content-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            // Whoever asked may be gone.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// Status and body of an answer, if there is one.
fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    // 1.0, so that the answer comes in one piece.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A text as a value of an address.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
