//! What `/metrics` says: the names are those of the document, the series are bounded, and every expression of
//! the dashboard and of the alerts finds something in a Prometheus that scrapes a daemon with engines and a store behind
//! it, and an engine.
#![cfg(feature = "daemon")]

mod daemon_support;
mod discover_support;
mod metrics_support;
mod prometheus_support;
mod redis_support;
mod tokenize_support;
mod zmq_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use daemon_support::{Daemon, Step, batches, recording};
use discover_support::NameServer;
use metrics_support::{call, call_with, documented, exposed, has_curl};
use prometheus_support::{Prometheus, engine_figures, program, promtool};
use redis_support::Server;
use serde_json::{Value, json};
use zmq_support::{bound_publisher, eventually, publish};

fn state(name: &str) -> PathBuf {
    let directory = format!("metrics-{name}-{}", std::process::id());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    let _ = std::fs::remove_dir_all(&directory);
    directory
}

/// An engine that is not there, under a name that has to be escaped.
const AWAY: &str = "the \"third\" one";

/// A daemon with a recorded engine `a`; `b`, of which batches were lost; and one that is not there.
struct Site {
    daemon: Daemon,
    _sockets: Vec<zmq::Socket>,
    lost: (zmq::Socket, u64),
    questions: Vec<Value>,
}

impl Site {
    fn start(name: &str) -> Site {
        Site::around(name, "", "")
    }

    /// The same with more keys and tables in its configuration.
    fn around(name: &str, keys: &str, tables: &str) -> Site {
        let context = zmq::Context::new();
        let (a, at_a) = bound_publisher(&context, "tcp://127.0.0.1:*");
        let (b, at_b) = bound_publisher(&context, "tcp://127.0.0.1:*");
        let source = |name: &str, endpoint: &str| {
            format!("[[source]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n")
        };
        let file = format!(
            "state.dir = {:?}\nstate.interval = \"1s\"\nmodels.m.tokenizer = {:?}\n{keys}{}{}{}{tables}",
            state(name),
            tokenize_support::folder("llama3"),
            source("a", &at_a),
            source("b", &at_b),
            source(&AWAY.replace('"', "\\\""), "tcp://127.0.0.1:9"),
        );
        let daemon = Daemon::start(&["--grpc", "127.0.0.1:0"], &file, &[]);
        eventually("the sources are added", || daemon.get("/ready").status == 200);
        let all = batches();
        for batch in &all {
            daemon.feed(&a, "", batch, "a");
        }
        daemon.feed(&b, "", &all[0], "b");
        let asked = recording().into_iter().filter_map(|step| match step {
            Step::Question { line, .. } => Some(json!({
                "model": "m", "token_ids": line["tokens"], "cache_salt": line["salt"], "lora": line["lora"],
            })),
            Step::Batch(_) => None,
        });
        let asked: Vec<Value> = asked.collect();
        // What the engine held last is what it was asked for last.
        let questions = asked[asked.len() - 30..].to_vec();
        let site = Site { daemon, _sockets: vec![a], lost: (b, all[0].seq), questions };
        site.lose();
        site
    }

    /// Some batches of `b` do not arrive.
    fn lose(&self) {
        let (socket, seq) = &self.lost;
        eventually("a gap is seen", || {
            publish(socket, b"", seq + 5, &batches()[1].payload);
            self.daemon.worker("b", 0)["trust"] == "degraded"
        });
    }

    /// What routers do.
    fn ask(&self) {
        for question in &self.questions {
            let answer = self.daemon.post("/v1/score", question).json(200);
            let best = &answer["workers"][0];
            let expected = best["expected_cached_tokens"].as_u64().unwrap_or(0);
            self.daemon
                .post(
                    "/v1/receipt",
                    &json!({
                        "worker": best["worker"],
                        "expected_cached_tokens": expected,
                        "cached_tokens": expected / 2,
                    }),
                )
                .json(200);
        }
        let mut picked = self.questions[0].clone();
        picked["worker"] = json!("a");
        self.daemon.post("/v1/picked", &picked).json(200);
        // Not found, since nobody serves a model without a name.
        assert_eq!(call(&self.daemon, "kvscout.v1.Scout/Score"), "3");
        assert_eq!(call(&self.daemon, "grpc.health.v1.Health/Check"), "0");
        let text = json!({"model": "m", "prompt": "Which engine holds this?"});
        self.daemon.post("/v1/score", &text).json(200);
        assert_eq!(self.daemon.get("/nowhere").status, 404);
    }
}

#[test]
fn the_document_has_every_metric_and_no_other() {
    if !has_curl() {
        return;
    }
    let site = Site::start("document");
    site.ask();
    eventually("there is a snapshot", || {
        site.daemon.metric("kvscout_snapshots_total").is_some_and(|written| written > 0.0)
    });
    let (exposed, mut documented) = (exposed(&site.daemon), documented());
    assert!(exposed.len() > 90, "{}", exposed.len());
    // Compared where there is a store, and a name: `daemon_store`, `daemon_discover`.
    let elsewhere = ["kvscout_store_", "kvscout_discover_"];
    documented.retain(|name, _| !elsewhere.iter().any(|prefix| name.starts_with(prefix)));
    for (name, told) in &exposed {
        assert_eq!(documented.get(name), Some(told), "{name}");
    }
    let gone: Vec<_> = documented.keys().filter(|name| !exposed.contains_key(*name)).collect();
    assert!(gone.is_empty(), "documented and not exposed: {gone:?}");
}

#[test]
fn what_is_counted_is_what_happened() {
    if !has_curl() {
        return;
    }
    let site = Site::start("counted");
    site.ask();
    let daemon = &site.daemon;
    let value = |name: &str| daemon.metric(name).unwrap_or_else(|| panic!("no {name}"));
    let of = |metric: &str, pod: &str, label: &str| {
        let pod = pod.replace('"', "\\\"");
        value(&format!("kvscout_pod_{metric}{{tenant=\"default\",pod=\"{pod}\"{label}}}"))
    };
    let worker = daemon.worker("a", 0);
    assert_eq!(of("batches_total", "a", ""), worker["batches"].as_f64().unwrap());
    assert!(of("events_total", "a", ",type=\"stored\"") > 0.0);
    assert!(of("events_total", "a", ",type=\"removed\"") > 0.0);
    let held = of("blocks", "a", ",tier=\"gpu\"") + of("blocks", "b", ",tier=\"gpu\"");
    assert_eq!(held, value("kvscout_entries"));
    assert_eq!((of("sources_up", "a", ""), of("sources_up", AWAY, "")), (1.0, 0.0));
    assert!(of("quiet_seconds", "a", "") > 0.0);
    // The recording is old, and each of its batches counts once.
    assert!(of("lag_seconds", "a", "") > 86_400.0);
    assert_eq!(value("kvscout_batch_lag_seconds_bucket{le=\"1.024\"}"), 0.0);
    assert!(value("kvscout_batch_lag_seconds_count") >= of("batches_total", "a", ""));
    assert!(
        !daemon.get("/metrics").body.contains("pod_quiet_seconds{tenant=\"default\",pod=\"the ")
    );
    assert_eq!((of("workers", "b", ",trust=\"degraded\""), of("gaps_total", "b", "")), (1.0, 1.0));
    assert!(of("contract_checks_total", "a", ",result=\"equal\"") > 0.0);
    assert_eq!(of("contract_checks_total", "a", ",result=\"different\""), 0.0);
    // One in two tokens was delivered, and each lookup counts once under every name.
    let (expected, delivered) = (
        value("kvscout_receipt_expected_tokens_total"),
        value("kvscout_receipt_delivered_tokens_total"),
    );
    assert!(expected > 0.0, "nothing was found");
    assert_eq!(delivered, expected / 2.0);
    assert_eq!(value("kvscout_prediction_error_tokens_sum"), expected - delivered);
    let lookups = site.questions.len() as f64 + 1.0;
    assert_eq!(value("kvscout_lookups_total"), lookups);
    assert_eq!(value("kvscout_matched_blocks_count"), lookups);
    assert_eq!(outcomes(daemon).values().sum::<f64>(), lookups);
    assert_eq!(outcomes(daemon)["hit"], value("kvscout_lookup_hits_total"));
    assert_eq!(value("kvscout_tokenize_seconds_count{by=\"files\"}"), 1.0);
    assert_eq!(value("kvscout_http_request_seconds_count{route=\"/v1/score\"}"), lookups);
    assert_eq!((of("picks_total", "a", ""), of("picks_total", "b", "")), (1.0, 0.0));
    for (method, code) in
        [("kvscout.v1.Scout/Score", "INVALID_ARGUMENT"), ("grpc.health.v1.Health/Check", "OK")]
    {
        let counted = format!("kvscout_grpc_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        let timed = format!("kvscout_grpc_request_seconds_count{{method=\"{method}\"}}");
        assert_eq!((value(&counted), value(&timed)), (1.0, 1.0));
    }
    assert!(value("process_resident_memory_bytes") > 1e6);
    for (peer, own) in [
        ("admissions_total", "stored_total"),
        ("evictions_total", "removed_total"),
        ("lookup_requests_total", "lookups_total"),
        ("lookup_hits_total", "lookup_matched_blocks_total"),
        ("max_pod_hit_count_total", "lookup_matched_blocks_total"),
        ("lookup_latency_seconds_count", "score_seconds_count"),
        ("lookup_latency_seconds_sum", "score_seconds_sum"),
    ] {
        let peer = value(&format!("kvcache_index_{peer}"));
        assert!(peer > 0.0, "{own}");
        assert_eq!(peer, value(&format!("kvscout_{own}")), "{own}");
    }
}

/// Lookups by what they came to.
fn outcomes(daemon: &Daemon) -> BTreeMap<String, f64> {
    by(daemon, "kvscout_lookup_outcomes_total{outcome=")
}

/// The values of a metric by its only label, which is the end of what its lines begin with.
fn by(daemon: &Daemon, begin: &str) -> BTreeMap<String, f64> {
    let text = daemon.get("/metrics").body;
    let lines = text.lines().filter_map(|line| line.strip_prefix(begin)?.split_once("} "));
    lines.map(|(label, n)| (label.trim_matches('"').to_owned(), n.parse().unwrap())).collect()
}

#[test]
fn every_lookup_counts_once_under_what_it_came_to_whoever_asks() {
    if !has_curl() {
        return;
    }
    let site = Site::start("outcomes");
    let daemon = &site.daemon;
    let labels = ["hit", "miss", "no_worker", "shorter_than_block"];
    let mut expected: BTreeMap<String, f64> = labels.map(|label| (label.to_owned(), 0.0)).into();
    assert_eq!(outcomes(daemon), expected, "all are there from the start");
    let held = |question: &&Value| {
        let answer = daemon.post("/v1/score", question).json(200);
        *expected.get_mut("hit").unwrap() += f64::from(answer["workers"][0]["matched_blocks"] != 0);
        *expected.get_mut("miss").unwrap() +=
            f64::from(answer["workers"][0]["matched_blocks"] == 0);
        answer["workers"][0]["matched_blocks"] != 0
    };
    let held = site.questions.iter().find(held).unwrap().clone();
    let other: Vec<u32> = (900_000..900_064).collect();
    let nobody = json!(["nobody"]);
    let model = "m";
    for (outcome, question) in [
        ("hit", held.clone()),
        ("miss", json!({ "model": model, "token_ids": other })),
        ("miss", json!({ "model": model, "token_ids": other })),
        ("shorter_than_block", json!({ "model": model, "token_ids": [1, 2, 3] })),
        ("no_worker", json!({ "model": model, "token_ids": other, "candidates": nobody })),
    ] {
        daemon.post("/v1/score", &question).json(200);
        *expected.get_mut(outcome).unwrap() += 1.0;
        assert_eq!(outcomes(daemon), expected, "{question}");
    }
    // Over gRPC, and in other dialects.
    let score = "kvscout.v1.Scout/Score";
    assert_eq!(call_with(daemon, score, &by_tokens(model, &[1, 2, 3])), "0");
    *expected.get_mut("shorter_than_block").unwrap() += 1.0;
    assert_eq!(outcomes(daemon), expected);
    assert_eq!(call_with(daemon, score, &by_tokens(model, &other)), "0");
    *expected.get_mut("miss").unwrap() += 1.0;
    assert_eq!(outcomes(daemon), expected);
    let unpredicted = || by(daemon, "kvscout_lookups_unpredicted_total{why=");
    assert_eq!(unpredicted().values().sum::<f64>(), 0.0);
    let by_hash = json!({ "model": model, "seq_hashes": [1, 2], "block_size": 16 });
    daemon.post("/query_by_hash", &by_hash).json(200);
    *expected.get_mut("miss").unwrap() += 1.0;
    assert_eq!(outcomes(daemon), expected);
    assert_eq!(unpredicted()["prompt_length_unknown"], 1.0);
    // One that has no answer is no lookup.
    daemon.post("/v1/score", &json!({ "model": "nobody's", "token_ids": other })).json(404);
    daemon.post("/v1/explain", &held).json(200);
    assert_eq!(outcomes(daemon), expected);
    assert_eq!(daemon.metric("kvscout_lookups_total"), Some(expected.values().sum()));
}

/// A question of kvscout's own over gRPC.
fn by_tokens(model: &str, tokens: &[u32]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let length = bytes.len();
        // A length of up to two digits of seven bits.
        let length = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
        [&[number << 3 | 2][..], &length, bytes].concat()
    };
    let ids: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    [field(3, model.as_bytes()), field(4, &field(1, &ids))].concat()
}

#[test]
fn a_question_makes_no_series_and_pods_only_so_many() {
    let daemon = Daemon::start(&[], "metrics.most_pods = 3", &[]);
    let register = |n: usize| {
        let endpoint = format!("tcp://127.0.0.1:{}", 20_000 + n);
        let body = json!({"endpoint": endpoint, "type": "vLLM", "modelname": format!("m{n}"),
            "instance_id": format!("pod-{n}"), "block_size": 16, "dp_rank": 0, "tenant_id": "default"});
        assert_eq!(daemon.post("/register", &body).status, 200);
    };
    let series = || {
        let text = daemon.get("/metrics").body;
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    (0..3).for_each(register);
    daemon.get("/metrics");
    daemon.post("/v1/score", &json!({"token_ids": [1, 2]}));
    daemon.get("/nowhere");
    let before = series();
    (3..12).for_each(register);
    let pods = series();
    for n in 0..9 {
        daemon.post("/v1/score", &json!({"model": format!("other-{n}"), "token_ids": [1, 2]}));
        daemon.post(
            "/v1/score",
            &json!({"model": "m0", "tenant": format!("t{n}"), "token_ids": [n]}),
        );
        daemon.get(&format!("/nowhere/{n}"));
    }
    let text = daemon.get("/metrics").body;
    for wrong in ["pod-3", "m3", "other-", "t1\"", "nowhere/"] {
        assert!(!text.contains(wrong), "{wrong}: {text}");
    }
    // The others are one pod more, without a model of their own; a 404 is one series more.
    let each = text.lines().filter(|line| line.contains("pod=\"pod-0\"")).count();
    assert_eq!(pods, before + each - 1, "{text}");
    assert!(series() <= pods + 1, "{} after {pods}", series());
    let others = |metric: &str, label: &str| {
        let name = format!("kvscout_pod_{metric}{{tenant=\"\",pod=\"_others\"{label}}}");
        daemon.metric(&name).unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert_eq!(others("workers", ",trust=\"silent\""), 9.0);
}

/// The files under `deploy/`.
fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

#[test]
fn promtool_accepts_the_alerts_and_their_tests_pass() {
    if program("promtool").is_none() {
        return;
    }
    let directory = deployed("prometheus");
    let checked = promtool(&directory, &["check", "rules", "alerts.yml"]);
    assert!(checked.contains("15 rules found"), "{checked}");
    promtool(&directory, &["test", "rules", "alerts_test.yml"]);
    // Every alert has a test, and the document says what to do about it.
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let (rules, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<&str> = alerts.collect();
    assert_eq!(alerts.len(), 13);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
        let documented = include_str!("../docs/metrics.md").contains(&format!("| `{alert}` |"));
        assert!(documented, "{alert} is not in docs/metrics.md");
    }
}

/// Every expression of the dashboard with where it is, as Grafana would ask.
fn dashboard() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(deployed("grafana/kvscout.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{panel}");
            let place = format!("{} {}", panel["title"], target["refId"]);
            found.push((place, target["expr"].as_str().unwrap().to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            // `label_values(series, label)` asks for the series.
            let series = query.strip_prefix("label_values(").unwrap().rsplit_once(", ").unwrap().0;
            found.push((format!("variable {}", variable["name"]), series.to_owned()));
        }
    }
    let asked = |text: String| {
        let text = text.replace("$__rate_interval", "1m");
        ["$job", "$instance", "$pod"].iter().fold(text, |text, name| text.replace(name, ".*"))
    };
    found.into_iter().map(|(place, text)| (place, asked(text))).collect()
}

/// The series that an expression selects, as it selects them, from the daemon or an engine.
fn selectors(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(begin) = rest.find(is_name) {
        rest = &rest[begin..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let is_series = rest.starts_with("kvscout") || rest.starts_with("vllm:");
        let braces = match rest[end..].starts_with('{') {
            true => rest[end..].find('}').map_or(0, |at| at + 1),
            false => 0,
        };
        if is_series || &rest[..end] == "up" {
            found.insert(rest[..end + braces].to_owned());
        }
        rest = &rest[end + braces..];
    }
    found
}

#[test]
fn every_expression_finds_something_in_a_prometheus_that_scrapes_the_daemon() {
    if program("prometheus").is_none() || !has_curl() {
        return;
    }
    let store = Server::start();
    let names = NameServer::start(&["engines 0 A 127.0.0.2"]);
    let (_named, behind) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.2:*");
    let site = Site::around(
        "prometheus",
        // A body above 64 KiB finds no room.
        &format!("store.address = {:?}\nlimits.body_memory_bytes = 0\n", store.address()),
        &format!(
            "[[discover]]\nname = \"engines\"\ndns = \"engines.test:{}\"\nnameserver = {:?}\n\
             model = \"m\"\nevery = \"100ms\"\n",
            behind.rsplit(':').next().unwrap(),
            names.address()
        ),
    );
    let long = json!({ "model": "m", "token_ids": vec![100_000; 20_000] });
    assert_eq!(site.daemon.post("/v1/score", &long).json(503)["reason"], "overloaded");
    // More hashes than may be asked for: field 1, of 131,080 bytes.
    let many = [&[0x0a, 0x88, 0x80, 0x08][..], &[0; 8 * 16_385]].concat();
    let exhausted = "8";
    assert_eq!(
        call_with(&site.daemon, "kv_indexer.v1.KVIndexer/MatchExternalKv", &many),
        exhausted
    );
    let rules = deployed("prometheus/alerts.yml");
    let (daemon, engine) = (site.daemon.address(), engine_figures("m"));
    let targets = [("kvscout", daemon), ("vllm", engine.as_str())];
    let prometheus = Prometheus::start(&targets, &rules, &state("tsdb"));
    let mut expressions = dashboard();
    assert!(expressions.len() > 50, "{}", expressions.len());
    let document = include_str!("../docs/metrics.md");
    let questions = document.split("## Questions").nth(1).unwrap().split("## ").next().unwrap();
    let rows = questions.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    for row in rows {
        let expression = row.split(" | ").nth(1).unwrap().trim_matches(['`', ' ', '|']);
        // Nobody has been quiet for a minute yet.
        expressions.push((row.to_owned(), expression.replace("> 60", ">= 0")));
    }
    // What a rule records has a value, and so has what it selects, whether an alert fires or not.
    for rule in prometheus.rules() {
        let (name, query) = (rule["name"].as_str().unwrap(), rule["query"].as_str().unwrap());
        let mut selected = selectors(query);
        assert!(!selected.is_empty(), "{name} selects nothing: {query}");
        if rule["type"] == "recording" {
            selected.insert(name.to_owned());
        }
        expressions.extend(selected.into_iter().map(|series| (name.to_owned(), series)));
    }
    let (_, selected): (Vec<_>, BTreeSet<String>) = expressions.iter().cloned().unzip();
    for series in [
        "kvscout_store_servers_ready",
        "kvscout_discover_looks_total{outcome=\"failed\"}",
        "vllm:gpu_prefix_cache_queries_total",
        "up{job=\"kvscout\"}",
        "kvscout:engine_hit:ratio",
    ] {
        assert!(selected.contains(series), "{series} is selected: {selected:#?}");
    }
    prometheus_support::patiently("every expression has a value", || {
        site.ask();
        // Batches come, if only again.
        site.lose();
        expressions.retain(|(_, expression)| prometheus.numbers(expression).is_empty());
        match expressions.is_empty() {
            true => Ok(()),
            false => Err(format!("{expressions:#?}")),
        }
    });
    // Rules are evaluated without an error, and the worker that lost batches is found.
    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_eq!(rule["lastError"], Value::Null, "{rule}");
    }
    prometheus_support::patiently("the alert about b waits", || {
        let waiting = prometheus.alerts();
        let is_b = |alert: &Value| {
            alert["labels"]["alertname"] == "KvscoutWorkerUntrusted"
                && alert["labels"]["pod"] == "b"
        };
        waiting.iter().any(is_b).then_some(()).ok_or_else(|| format!("{waiting:#?}"))
    });
    for (expression, expected) in [
        ("up{job=\"kvscout\"}", 1.0),
        ("count(kvscout_pod_info)", 4.0),
        ("kvscout_store_servers_ready", 1.0),
        ("kvscout_discover_addresses{state=\"present\"}", 1.0),
        ("round(kvscout:engine_hit:ratio{model_name=\"m\"}, 0.01)", 0.75),
        (
            "sum(kvscout_warned_workers{warning=~\"contract_unknown|contract_contradicted|contract_differs\"})",
            0.0,
        ),
        ("round(kvscout:prediction_error:ratio{pod=\"a\"}, 0.1)", 0.5),
    ] {
        prometheus_support::patiently(expression, || {
            site.ask();
            let found = prometheus.numbers(expression);
            (found == [expected]).then_some(()).ok_or_else(|| format!("{found:?}"))
        });
    }
}
