//! Every command of the README and of `docs/` is run here, or stands in a list with the reason why not.
//!
//! Run are those that need no more than kvscout, curl and an engine; the engine is simulated, and the addresses and ports
//! of a page are replaced by those in use.
#![cfg(feature = "daemon")]

mod docs_support;
mod engine_support;
mod tokenize_support;
mod zmq_support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use docs_support::{Command, Item, folder, items, links, pages, plain, read};
use engine_support::Engine;
use serde_json::Value;
use zmq_support::eventually;

/// Pages whose calls another test makes, all of them.
const ELSEWHERE: &[(&str, &str)] =
    &[("docs/dialects.md", "tests/dialects_docs.rs"), ("docs/http.md", "tests/dialects_docs.rs")];

/// Pages whose commands are not run, all of them.
const PAGES_NOT_RUN: &[(&str, &str)] = &[
    ("CONTRIBUTING.md", "plants bugs for half an hour, with a tool of its own"),
    ("docs/benchmarks.md", "wants the machine for itself, for minutes"),
    ("docs/fuzzing.md", "goes on until it is stopped, with a tool of its own"),
    ("docs/real-engine.md", "installs an engine: 7 GB"),
];

/// Commands that are not run, by how they begin.
const NOT_RUN: &[(&str, &str)] = &[
    ("vllm serve ", "an engine, and a GPU; scripts/real-engine/run starts one"),
    ("cargo build --locked --release ", "a release build"),
    ("systemctl ", "a service of the machine"),
    (
        "cargo install --locked --path . ",
        "a release build; what is tested is built with the same features",
    ),
    ("openssl rand -hex 32 > /etc/kvscout/", "a place that only an operator should write to"),
    ("pip install tokenizers==0.23.3 ", "packages from the network"),
    ("scripts/tokenize-vectors ", "wants those packages"),
    ("KVSCOUT_CHAOS_SEED=7 ", "ten minutes"),
    ("KVSCOUT_SOAK_MINUTES=30 ", "half an hour"),
    ("RUSTFLAGS=\"--cfg modelled\" ", "every interleaving, in a build of its own: minutes"),
];

/// Commands that something else runs, by how they begin: the file where it does, and what stands there.
const BY_OTHERS: &[(&str, &str, &str)] = &[
    ("./scripts/test", ".ci/run", "scripts/test"),
    ("cargo run --example route", "scripts/test", "--example route"),
    ("cargo run --release --features daemon -- demo", "tests/demo.rs", "arg(\"demo\")"),
    ("kvscout demo", "tests/demo.rs", "arg(\"demo\")"),
    ("cargo test --features daemon --test chaos ", "tests/chaos.rs", "#[test]"),
    ("kvscout top", "tests/top.rs", "\"top\""),
    ("install -", "tests/deploy.rs", "docs/operations.md"),
    ("(umask 077 && openssl ", "tests/deploy.rs", "docs/operations.md"),
    ("kvscout record ", "tests/cli_record.rs", "\"record\""),
    ("{ cat a.jsonl;", "tests/cli_record.rs", "\"replay\""),
    (
        "kvscout serve --model m --source 7=tcp://10.0.0.7:5557 --store ",
        "tests/daemon_store.rs",
        "\"--store\"",
    ),
    ("kvscout serve --store ", "tests/daemon_store.rs", "\"--mode\""),
    (
        "curl -s localhost:13333/workers -H \"authorization: ",
        "tests/failures_security.rs",
        "authorization",
    ),
    ("kvscout serve --config replica.toml", "tests/daemon_state.rs", "from = "),
    (
        "curl -sf http://10.0.0.2:13333/snapshot -o /var/lib/kvscout/snapshot",
        "tests/daemon_state.rs",
        "/snapshot",
    ),
];

/// Files that a page speaks of and does not show.
const FILES: &[(&str, &str)] = &[(
    "kvscout.toml",
    "[[source]]\nname = \"engine-a\"\nendpoint = \"tcp://127.0.0.1:5557\"\nmodel = \"MODEL\"\n",
)];

#[test]
fn every_command_is_run_or_has_a_reason() {
    let has_curl = std::process::Command::new("curl").arg("--version").output().is_ok();
    if !has_curl {
        assert!(std::env::var_os("KVSCOUT_TEST_CLIENTS").is_none(), "there is no curl");
        eprintln!("skipped: there is no curl");
        return;
    }
    let (mut run, mut reasons) = (0, BTreeSet::new());
    thread::scope(|scope| {
        let walks: Vec<_> = pages()
            .into_iter()
            .filter(|page| !is_listed(page))
            .map(|page| scope.spawn(move || walk(&page)))
            .collect();
        for walk in walks {
            let (ran, used) = walk.join().expect("what went wrong stands above");
            run += ran;
            reasons.extend(used);
        }
    });
    // Where pages are not run by the tests of ELSEWHERE.
    assert!(run >= 20, "{run}");
    let listed = NOT_RUN.iter().map(|(begins, _)| *begins);
    let listed: BTreeSet<&str> =
        listed.chain(BY_OTHERS.iter().map(|(begins, ..)| *begins)).collect();
    assert_eq!(reasons, listed, "a reason for a command that no page has any more");
}

#[test]
fn what_runs_elsewhere_is_there() {
    for (page, test) in ELSEWHERE {
        let name = page.rsplit('/').next().unwrap();
        assert!(read(test).contains(name), "{test} does not read {page}");
    }
    for (begins, file, there) in BY_OTHERS {
        assert!(read(file).contains(there), "{file} has no {there:?}, which is to run {begins:?}");
    }
}

#[test]
fn no_command_hides_in_a_block_of_another_kind() {
    for page in pages().iter().filter(|page| !is_listed(page)) {
        for item in items(&read(page)) {
            let Item::Other(language, body) = item else { continue };
            let first = body.split_whitespace().next().unwrap_or_default();
            let is_command =
                ["$", "kvscout", "curl", "cargo", "vllm", "systemctl"].contains(&first);
            assert!(!is_command, "{page}: ```{language}\n{body}\n``` should be a block of sh");
        }
    }
}

#[test]
fn the_router_in_the_text_is_the_example() {
    let page = items(&read("docs/embedding.md"));
    let shown = page.iter().find_map(|item| match item {
        Item::Other(language, body) if language == "rust" => Some(body),
        _ => None,
    });
    assert_eq!(shown.unwrap().trim(), read("examples/route.rs").trim());
}

#[test]
fn every_link_leads_to_a_file() {
    for page in pages() {
        for link in links(&page) {
            assert!(folder(&page).join(&link).exists(), "{page} links to {link}");
        }
    }
}

fn is_listed(page: &str) -> bool {
    ELSEWHERE.iter().chain(PAGES_NOT_RUN).any(|(listed, _)| *listed == page)
}

/// Runs what a page says, in its order; how much that was, and which reasons were needed for the rest.
fn walk(page: &str) -> (usize, BTreeSet<&'static str>) {
    let (mut place, mut run, mut reasons) = (None, 0, BTreeSet::new());
    let items = items(&read(page));
    for (at, item) in items.iter().enumerate() {
        match item {
            Item::Command(command) => {
                if let Some(begins) = reason(&command.text) {
                    reasons.insert(begins);
                    continue;
                }
                let answer = items.get(at + 1).and_then(|next| match next {
                    Item::Other(language, body) if language == "json" => Some(body.as_str()),
                    _ => None,
                });
                place.get_or_insert_with(|| Place::new(page)).run(command, answer);
                run += 1;
            }
            Item::File(name, body) => {
                place.get_or_insert_with(|| Place::new(page)).write(name, body)
            }
            Item::Other(..) => {}
        }
    }
    (run, reasons)
}

/// The beginning under which a command is listed.
fn reason(text: &str) -> Option<&'static str> {
    let text = plain(text) + " ";
    let begins = NOT_RUN.iter().map(|(begins, _)| *begins);
    begins
        .chain(BY_OTHERS.iter().map(|(begins, ..)| *begins))
        .find(|begins| text.starts_with(begins))
}

/// Where a page's commands run: a folder, an engine, and the daemon that was started last.
struct Place {
    page: String,
    folder: PathBuf,
    engine: Engine,
    daemon: Option<Child>,
    address: Option<String>,
}

impl Place {
    fn new(page: &str) -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kvscout-docs-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(folder.join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_kvscout"), folder.join("bin/kvscout")).unwrap();
        // An answer that is an error makes it fail.
        let curl = folder.join("bin/curl");
        fs::write(&curl, "#!/bin/sh\nPATH=${PATH#*:}\nexec curl -f \"$@\"\n").unwrap();
        fs::set_permissions(&curl, fs::Permissions::from_mode(0o755)).unwrap();
        let text = read(page);
        let model = ["MODEL", "tiny"].into_iter().find(|model| text.contains(model)).unwrap_or("m");
        let engine = Engine::start(&zmq::Context::new(), model, false);
        let place = Place { page: page.to_owned(), folder, engine, daemon: None, address: None };
        FILES.iter().for_each(|(name, text)| place.write(name, text));
        place
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), self.here(text) + "\n").unwrap();
    }

    /// A text with this place's addresses for those of the page.
    fn here(&self, text: &str) -> String {
        let Engine { base, events, replay, .. } = &self.engine;
        let tokenizer = tokenize_support::folder("llama3").display().to_string();
        let state = self.folder.join("state").display().to_string();
        let daemon = self.address.as_deref().unwrap_or("127.0.0.1:1");
        let mut text = text.to_owned();
        for (there, here) in [
            ("http://127.0.0.1:8000", base.as_str()),
            ("http://127.0.0.1:18000", base),
            ("tcp://127.0.0.1:5557", events),
            ("tcp://127.0.0.1:15557", events),
            ("tcp://10.0.0.7:5557", events),
            ("tcp://127.0.0.1:5558", replay),
            ("tcp://127.0.0.1:15558", replay),
            ("tcp://10.0.0.8:5557", "tcp://127.0.0.1:9"),
            ("tcp://10.0.0.9:5557", "tcp://127.0.0.1:9"),
            ("localhost:13333", daemon),
            ("127.0.0.1:13333", daemon),
            ("/var/lib/kvscout", &state),
            ("STATE", &state),
            ("TOKENIZER", &tokenizer),
        ] {
            text = text.replace(there, here);
        }
        text
    }

    fn run(&mut self, command: &Command, answer: Option<&str>) {
        let serves =
            |text: &str| text.contains("kvscout serve") && !text.contains("--print-config");
        if serves(&command.text) {
            return self.serve(&command.text);
        }
        if self.address.is_none() && command.text.contains("13333") {
            // The page takes one for granted.
            self.serve("kvscout serve --model MODEL --source engine-a=tcp://127.0.0.1:5557,replay=tcp://127.0.0.1:5558");
        }
        if command.text.contains("/v1/score") {
            self.settle();
        }
        let Output { status, stdout, stderr } =
            self.shell(&self.here(&command.text)).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let said = format!("{}: {}\n{stdout}{stderr}", self.page, command.text);
        assert!(status.success(), "{status}, {said}");
        if command.text.contains("kvscout hash") {
            assert_eq!(stdout, command.output, "{said}");
        }
        if let (Some(answer), "docs/getting-started.md") = (answer, self.page.as_str()) {
            let [found, shown]: [Value; 2] =
                [&stdout, answer].map(|text| serde_json::from_str(text).expect(&said));
            assert_eq!(found, shown, "{said}");
        }
    }

    /// Starts a daemon as the page does, but for its address.
    fn serve(&mut self, text: &str) {
        self.stop();
        let text = self.here(text.split(" #").next().unwrap()) + " --listen 127.0.0.1:0";
        let log = self.folder.join("log");
        let mut shell = self.shell(&format!("exec {text}"));
        shell.stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
        let mut child = shell.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.daemon = Some(child);
        let Some(address) = line.trim().strip_prefix("listening on http://") else {
            panic!("{}: {text}: {}", self.page, fs::read_to_string(log).unwrap());
        };
        self.address = Some(address.to_owned());
        let ready = self.here("curl -s http://127.0.0.1:13333/ready");
        eventually("the daemon is ready", || self.shell(&ready).output().unwrap().status.success());
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Waits until what the engine has said is known: a newcomer types more slowly than that.
    fn settle(&self) {
        let workers = self.here("curl -s http://127.0.0.1:13333/workers");
        eventually("the engine is followed", || {
            let workers = self.shell(&workers).output().unwrap();
            let workers: Value = serde_json::from_slice(&workers.stdout).unwrap_or_default();
            let worker = &workers["workers"][0];
            worker["trust"] == "exact" && worker["as_of"].as_u64() == self.engine.last()
        });
    }

    fn shell(&self, text: &str) -> std::process::Command {
        let mut command = std::process::Command::new("sh");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KVSCOUT_") {
                command.env_remove(name);
            }
        }
        let path =
            format!("{}:{}", self.folder.join("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).current_dir(&self.folder).args(["-c", text]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
