//! Every command of the README and of `docs/` is run here, or stands in a list with the reason why not.
//!
//! Run are those that need no more than kvscout, curl, an engine and a store; the engine is simulated, and the addresses,
//! ports and folders of a page are replaced by those in use. Every block of TOML is a configuration that loads.
#![cfg(feature = "daemon")]

mod docs_support;
mod engine_support;
mod redis_support;
mod tokenize_support;
mod zmq_support;

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use docs_support::{Command, Item, folder, items, links, pages, plain, read};
use engine_support::Engine;
use kvscout::Scout;
use kvscout::block::Prompt;
use kvscout::ingest::Trust;
use kvscout::scout::{Options, Registration, Request, Scratch};
use redis_support::Server;
use serde_json::{Value, json};
use zmq_support::eventually;

/// Pages of which another test makes the calls and starts the daemon, and how what it runs begins.
const ELSEWHERE: &[(&str, &str)] =
    &[("docs/dialects.md", "tests/dialects_docs.rs"), ("docs/http.md", "tests/dialects_docs.rs")];
const RUN_THERE: &[&str] = &["curl ", "printf ", "kvscout serve "];

/// Commands that are not run, whole, by the reason.
const NOT_RUN: &[(&str, &[&str])] = &[
    (
        "an engine, and a GPU; scripts/real-engine/run starts one",
        &[
            r#"vllm serve MODEL --enable-prompt-tokens-details --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}'"#,
        ],
    ),
    (
        "installs an engine: 7 GB",
        &[
            "scripts/real-engine/run",
            "ALGORITHM=sha256_cbor SEED=42 INT_HASHES=0 scripts/real-engine/run",
            "ALGORITHM=xxhash_cbor SEED=0 scripts/real-engine/run",
            "ALGORITHM=xxhash scripts/real-engine/run",
        ],
    ),
    (
        "a release build; what is tested is built with the same features",
        &[
            "cargo install --locked --path . --features daemon",
            "cargo build --locked --release --features daemon --bin kvscout",
        ],
    ),
    (
        "packages from the network, and what wants them",
        &[
            "pip install tokenizers==0.23.3 transformers==5.23.0 jinja2==3.1.6",
            "scripts/tokenize-vectors && git diff --exit-code tests/vectors/tokenize",
            "pip install grpcio-tools",
            "python3 -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/*.proto",
        ],
    ),
    (
        "wants the machine for itself, for minutes",
        &[
            "cd benches/peers",
            "cargo run --release --locked -- check --json results.json",
            "cargo run --release --locked -- row lookup-1024 wire-to-applied",
            "cargo run --release --locked -- exact",
            "cargo run --release --locked -- limits",
            "apt-get install wrk python3-zmq python3-msgpack",
            "cargo build --release --features daemon",
            "benches/load/run",
            "cargo bench --features conformance --bench hash --bench decode --bench apply --bench lookup --bench score --bench end_to_end --bench retire",
            "cargo bench --features redis --bench redis",
            "python3 benches/redis_server.py",
            "cargo bench --features redis --bench shared",
        ],
    ),
    (
        "goes on until it is stopped, with a tool of its own",
        &["cd fuzz", "RUSTC_BOOTSTRAP=1 cargo fuzz run -s none decode -- -max_total_time=600"],
    ),
    (
        "plants bugs for half an hour, with a tool of its own",
        &[
            "cargo mutants -f 'src/ingest/**' -e 'src/ingest/zmq/**' --sharding round-robin --shard 0/6 -- --lib --test stream_model --test failures_stream --test failures_identity --test failures_lifecycle --test scout --test scout_follow --test scout_state --test stream_repair --test audit_corners --test failures_audit --test failures_anchor",
        ],
    ),
    (
        "every interleaving, in a build of its own: minutes",
        &[
            r#"RUSTFLAGS="--cfg modelled" cargo test --release --lib scout::standing::model"#,
            r#"RUSTFLAGS="--cfg modelled" cargo test --release --lib ::model"#,
        ],
    ),
    (
        "a sanitizer, in a build of its own: minutes",
        &[
            "RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --features conformance --target x86_64-unknown-linux-gnu --lib --test index_stress --test index_long --test index_image -- --include-ignored",
        ],
    ),
    ("a service of the machine", &["systemctl daemon-reload && systemctl enable --now kvscout"]),
    (
        "ten minutes, and half an hour",
        &[
            "KVSCOUT_CHAOS_SEED=7 KVSCOUT_CHAOS_SECONDS=600 cargo test --features daemon --test chaos -- --nocapture",
            "KVSCOUT_SOAK_MINUTES=30 cargo test --release --features daemon --test soak -- --ignored --nocapture",
        ],
    ),
];

/// Commands that something else runs, whole: the file where it does, and what stands there.
const BY_OTHERS: &[(&str, &str, &str)] = &[
    ("./scripts/test", ".ci/run", "scripts/test"),
    ("cargo run --example route", "scripts/test", "--example route"),
    (
        "cargo test --features daemon --test chaos -- --nocapture",
        "scripts/test",
        "cargo test --locked --no-default-features --features \"$features\"",
    ),
    // Wants a terminal.
    ("kvscout top", "tests/top.rs", "\"top\""),
    (
        "install -m 755 target/release/kvscout /usr/local/bin/kvscout",
        "tests/deploy.rs",
        "docs/operations.md",
    ),
    (
        "install -D -m 644 deploy/kvscout.service /etc/systemd/system/kvscout.service",
        "tests/deploy.rs",
        "docs/operations.md",
    ),
    (
        "install -D -m 644 deploy/kvscout.toml /etc/kvscout/kvscout.toml",
        "tests/deploy.rs",
        "docs/operations.md",
    ),
];

/// What of a command is run in another way: the program that is built already, for less long, with the daemon that is there.
const INSTEAD: &[(&str, &str)] = &[
    ("cargo run --release --features daemon -- ", "kvscout "),
    (" --requests 20000", ""),
    ("kvscout demo", "kvscout demo --requests 40"),
    (" --for 5m", " --for 2s"),
    ("kvscout top --once", "kvscout top --url http://127.0.0.1:13333 --once"),
];

/// Files that a page speaks of and does not show.
const FILES: &[(&str, &str)] = &[
    (
        "kvscout.toml",
        "[[source]]\nname = \"engine-a\"\nendpoint = \"tcp://127.0.0.1:5557\"\nmodel = \"MODEL\"\n",
    ),
    (
        "conversation_trace.jsonl",
        "{\"timestamp\": 0, \"input_length\": 1100, \"output_length\": 20, \"hash_ids\": [1, 2, 3]}\n\
         {\"timestamp\": 900, \"input_length\": 1600, \"output_length\": 9, \"hash_ids\": [1, 2, 4, 5]}\n",
    ),
];

/// Where pages have a daemon on another machine, and the worker that is known there alone.
const OTHER: &str = "10.0.0.2:13333";
const OF_OTHER: &str = "of-the-other";

/// Pages whose answers are compared with what is answered here, all fields.
const COMPARED: &[&str] = &["README.md", "docs/getting-started.md"];

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
        let walks: Vec<_> =
            pages().into_iter().map(|page| scope.spawn(move || walk(&page))).collect();
        for walk in walks {
            let (ran, used) = walk.join().expect("what went wrong stands above");
            run += ran;
            reasons.extend(used);
        }
    });
    // Beside those that the tests of ELSEWHERE run.
    assert!(run >= 40, "{run}");
    let listed: BTreeSet<&str> = listed().collect();
    assert_eq!(reasons, listed, "a reason for a command that no page has any more");
}

#[test]
fn what_runs_elsewhere_is_there() {
    for (page, test) in ELSEWHERE {
        let name = page.rsplit('/').next().unwrap();
        assert!(read(test).contains(name), "{test} does not read {page}");
    }
    for (command, file, there) in BY_OTHERS {
        assert!(read(file).contains(there), "{file} has no {there:?}, which is to run {command:?}");
    }
}

#[test]
fn no_command_hides_in_a_block_of_another_kind() {
    let programs = [
        "$",
        "kvscout",
        "curl",
        "cargo",
        "vllm",
        "systemctl",
        "pip",
        "python3",
        "apt-get",
        "redis-cli",
    ];
    for page in pages() {
        for item in items(&read(&page)) {
            let Item::Other(language, body) = item else { continue };
            // Variables stand before a program.
            let first = body.split_whitespace().find(|word| !word.contains('='));
            let is_command = first.is_some_and(|first| {
                programs.contains(&first)
                    || first.starts_with("./")
                    || first.starts_with("scripts/")
            });
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

/// The lines of the README, with what they take for granted around them; who is best of what they find.
#[rustfmt::skip]
fn as_the_readme_says(seq: u64, payload: Vec<u8>, token_ids: Vec<u32>) -> Result<Best, kvscout::Error> {
    let mut scratch = Scratch::default();
    // Here they begin.
    let scout = Scout::new(Options::default())?;
    let engine = scout.register(Registration::new("engine-a", "my-model"))?;
    scout.apply(engine, seq, &payload)?;                                        // what came over the wire
    let ranked = scout.score(&Request::new("my-model", Prompt::new(&token_ids)), &mut scratch)?;
    // ranked.best(): .pod, .score.expected_cached_tokens, .trust, .as_of
    // Here they end.
    let best = ranked.best().expect("a model that is served has a worker");
    Ok((best.pod.to_owned(), best.score.expected_cached_tokens.ok(), best.trust, best.as_of))
}

type Best = (String, Option<u32>, Trust, Option<u64>);

#[test]
fn the_lines_of_the_readme_are_compiled_and_do_what_they_say() {
    let page = items(&read("README.md"));
    let shown: Vec<&String> = page
        .iter()
        .filter_map(|item| match item {
            Item::Other(language, body) if language.starts_with("rust") => Some(body),
            _ => None,
        })
        .collect();
    let compiled = include_str!("docs_commands.rs").split_once("// Here they begin.\n").unwrap().1;
    let compiled = compiled.split("    // Here they end.").next().unwrap();
    let compiled: Vec<&str> = compiled.lines().map(|line| &line[4..]).collect();
    assert_eq!(shown, [&compiled.join("\n")]);

    let event = json!({
        "type": "BlockStored", "block_hashes": [7], "parent_block_hash": null, "token_ids": [0, 1, 2, 3],
        "block_size": 4, "medium": "GPU", "extra_keys": [null],
    });
    let payload = rmp_serde::to_vec(&json!([1.0, [event], 0])).unwrap();
    let best = as_the_readme_says(0, payload, vec![0, 1, 2, 3, 4]).unwrap();
    assert_eq!(best, ("engine-a".to_owned(), Some(4), Trust::Exact, Some(0)));
}

#[test]
fn every_link_leads_to_a_file() {
    for page in pages() {
        for link in links(&page) {
            assert!(folder(&page).join(&link).exists(), "{page} links to {link}");
        }
    }
}

/// The commands that have a reason.
fn listed() -> impl Iterator<Item = &'static str> {
    let not_run = NOT_RUN.iter().flat_map(|(_, commands)| commands.iter().copied());
    not_run.chain(BY_OTHERS.iter().map(|(command, ..)| *command))
}

/// Runs what a page says, in its order; how much that was, and which reasons were needed for the rest.
fn walk(page: &str) -> (usize, BTreeSet<&'static str>) {
    let (mut place, mut run, mut reasons) = (None, 0, BTreeSet::new());
    let is_elsewhere = ELSEWHERE.iter().any(|(elsewhere, _)| *elsewhere == page);
    let items = items(&read(page));
    for (at, item) in items.iter().enumerate() {
        match item {
            Item::Command(command) => {
                if let Some(reason) = listed().find(|listed| *listed == plain(&command.text)) {
                    reasons.insert(reason);
                    continue;
                }
                if is_elsewhere {
                    let is_run = RUN_THERE.iter().any(|begins| command.text.starts_with(begins));
                    assert!(is_run, "{page}: {} is run nowhere", command.text);
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
                let place = place.get_or_insert_with(|| Place::new(page));
                if body.contains(OTHER) {
                    place.begin_beside_another();
                }
                place.write(name, body);
                if name.ends_with(".toml") {
                    place.loads(name);
                }
            }
            // What Cargo reads is no configuration of ours.
            Item::Other(language, body)
                if language == "toml" && !body.starts_with("[dependencies]") =>
            {
                let place = place.get_or_insert_with(|| Place::new(page));
                place.write("shown.toml", body);
                place.loads("shown.toml");
                place.shown = true;
            }
            Item::Other(..) => {}
        }
    }
    (run, reasons)
}

/// Whether a configuration has what a page shows of it, and maybe more.
fn has(whole: &toml::Value, part: &toml::Value) -> bool {
    match (whole, part) {
        (toml::Value::Table(whole), toml::Value::Table(part)) => {
            part.iter().all(|(key, part)| whole.get(key).is_some_and(|whole| has(whole, part)))
        }
        (toml::Value::Array(whole), toml::Value::Array(part)) => {
            whole.len() == part.len()
                && whole.iter().zip(part).all(|(whole, part)| has(whole, part))
        }
        _ => whole == part,
    }
}

/// Where a page's commands run: a folder, an engine, and the daemon that was started last.
struct Place {
    page: String,
    folder: PathBuf,
    engine: Engine,
    store: OnceCell<Server>,
    daemon: Option<Child>,
    address: Option<String>,
    /// The daemon on another machine, and its address.
    other: Option<(Child, String)>,
    /// The mask that the page has set for the files that follow.
    umask: String,
    /// Whether it has shown a configuration.
    shown: bool,
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
        let place = Place {
            page: page.to_owned(),
            folder,
            engine,
            store: OnceCell::new(),
            daemon: None,
            address: None,
            other: None,
            umask: String::new(),
            shown: false,
        };
        FILES.iter().for_each(|(name, text)| place.write(name, text));
        place
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), self.here(text) + "\n").unwrap();
    }

    /// A file is a configuration, and all of it is in effect.
    fn loads(&self, name: &str) {
        let command = format!("kvscout serve --config {name} --print-config");
        let printed = self.shell(&command).output().unwrap();
        let said = String::from_utf8_lossy(&printed.stderr).into_owned();
        let shown = fs::read_to_string(self.folder.join(name)).unwrap();
        assert!(printed.status.success(), "{}: {shown}: {said}", self.page);
        let printed = String::from_utf8(printed.stdout).unwrap();
        let [whole, part] =
            [&printed, &shown].map(|text| toml::Value::Table(text.parse().unwrap()));
        assert!(has(&whole, &part), "{}: {shown} is not in {printed}", self.page);
    }

    /// A text with this place's addresses for those of the page.
    fn here(&self, text: &str) -> String {
        let Engine { base, events, replay, .. } = &self.engine;
        let tokenizer = tokenize_support::folder("llama3").display().to_string();
        let state = self.folder.join("state").display().to_string();
        let folder = self.folder.display().to_string();
        let daemon = self.address.as_deref().unwrap_or("127.0.0.1:1");
        let other = self.other.as_ref().map_or("127.0.0.1:1", |(_, address)| address);
        let mut text = text.to_owned();
        if text.contains("redis://10.0.0.2:6379") {
            let store = self.store.get_or_init(Server::start);
            text = text.replace("redis://10.0.0.2:6379", &store.address());
        }
        for (there, here) in [
            ("http://127.0.0.1:8000", base.as_str()),
            ("http://127.0.0.1:18000", base),
            ("tcp://127.0.0.1:5557", events),
            ("tcp://127.0.0.1:15557", events),
            ("tcp://10.0.0.7:5557", events),
            ("tcp://10.0.0.7:5558", replay),
            ("tcp://127.0.0.1:5558", replay),
            ("tcp://127.0.0.1:15558", replay),
            ("tcp://10.0.0.8:5557", "tcp://127.0.0.1:9"),
            ("tcp://10.0.0.9:5557", "tcp://127.0.0.1:9"),
            (OTHER, other),
            ("localhost:13333", daemon),
            ("127.0.0.1:13333", daemon),
            ("/var/lib/kvscout", &state),
            ("/etc/kvscout", &folder),
            ("STATE", &state),
            ("TOKENIZER", &tokenizer),
        ] {
            text = text.replace(there, here);
        }
        text
    }

    fn run(&mut self, command: &Command, answer: Option<&str>) {
        let instead = INSTEAD.iter();
        let text =
            instead.fold(command.text.clone(), |text, (there, here)| text.replace(there, here));
        if text.starts_with("umask ") {
            self.umask = text + "; ";
            return;
        }
        if text.contains("kvscout serve") && !text.contains("--print-config") {
            return self.serve(&text);
        }
        if self.address.is_none() && text.contains("13333") {
            // The page takes one for granted.
            let config = if self.shown { " --config shown.toml" } else { "" };
            self.serve(&format!("kvscout serve --model MODEL --source engine-a=tcp://127.0.0.1:5557,replay=tcp://127.0.0.1:5558{config}"));
        }
        if text.contains(OTHER) {
            self.begin_beside_another();
        }
        if command.text.contains("/v1/score") {
            self.settle();
        }
        let Output { status, stdout, stderr } =
            self.shell(&(self.umask.clone() + &self.here(&text))).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let said = format!("{}: {}\n{stdout}{stderr}", self.page, command.text);
        assert!(status.success(), "{status}, {said}");
        if command.text.contains("kvscout hash") {
            assert_eq!(stdout, command.output, "{said}");
        }
        if let Some(answer) = answer.filter(|_| COMPARED.contains(&self.page.as_str())) {
            let [found, shown]: [Value; 2] =
                [&stdout, answer].map(|text| serde_json::from_str(text).expect(&said));
            assert_eq!(found, shown, "{said}");
        }
    }

    /// Starts a daemon as the page does, but for its address. One that is to begin with what another has, does.
    fn serve(&mut self, text: &str) {
        self.stop();
        let (daemon, address) = self.listening(text);
        (self.daemon, self.address) = (Some(daemon), Some(address));
        let ready = self.here("curl -s http://127.0.0.1:13333/ready");
        eventually("the daemon is ready", || self.shell(&ready).output().unwrap().status.success());
        if self.other.is_some() {
            let workers = self.here("curl -s http://127.0.0.1:13333/workers");
            let workers: Value =
                serde_json::from_slice(&self.shell(&workers).output().unwrap().stdout).unwrap();
            let workers = workers["workers"].as_array().unwrap();
            let is_of_other = |worker: &&Value| worker["worker"] == OF_OTHER;
            assert!(workers.iter().any(|worker| is_of_other(&worker)), "{text}: {workers:?}");
        }
    }

    /// Makes this a machine that has nothing but the key of a daemon on another one, which shares its snapshots.
    fn begin_beside_another(&mut self) {
        self.stop();
        if self.other.is_none() {
            let config = "[state]\ndir = \"other\"\nshare = true\n";
            fs::write(self.folder.join("other.toml"), config).unwrap();
            self.other = Some(self.listening("kvscout serve --config other.toml"));
            let worker = json!({
                "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": OF_OTHER,
                "block_size": 16, "dp_rank": 0,
            });
            let register = format!(
                "curl -s http://{OTHER}/register -H 'content-type: application/json' -d '{worker}'"
            );
            let registered = self.shell(&self.here(&register)).output().unwrap();
            assert!(registered.status.success(), "{registered:?}");
        }
        let state = self.folder.join("state");
        let _ = fs::remove_dir_all(&state);
        fs::DirBuilder::new().mode(0o700).create(&state).unwrap();
        fs::copy(self.folder.join("other/key"), state.join("key")).unwrap();
    }

    /// A daemon and its address.
    fn listening(&self, text: &str) -> (Child, String) {
        let text = self.here(text.split(" #").next().unwrap()) + " --listen 127.0.0.1:0";
        let log = self.folder.join("log");
        let mut shell = self.shell(&format!("exec {text}"));
        shell.stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
        let mut child = shell.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim().strip_prefix("listening on http://") else {
            end(child);
            panic!("{}: {text}: {}", self.page, fs::read_to_string(log).unwrap());
        };
        (child, address.to_owned())
    }

    fn stop(&mut self) {
        self.daemon.take().into_iter().for_each(end);
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
        self.other.take().into_iter().for_each(|(other, _)| end(other));
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn end(mut daemon: Child) {
    let _ = daemon.kill();
    let _ = daemon.wait();
}
