//! Engines behind a name, `[[discover]]`: a real name server, publishers at several addresses, the daemon.
#![cfg(feature = "daemon")]

mod daemon_support;
mod discover_support;
mod metrics_support;
mod zmq_support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use daemon_support::{Batch, Daemon, config_file, kvscout};
use discover_support::{NameServer, is_root};
use metrics_support::{documented_of, exposed_of};
use zmq_support::{bound_publisher, eventually};

/// Publishers at several addresses of this machine, all on the same port, as a service's engines are.
struct Engines {
    port: u16,
    publishers: Vec<(String, zmq::Socket)>,
}

impl Engines {
    fn at(addresses: &[&str]) -> Engines {
        let context = zmq::Context::new();
        // A port that is free at one address may be taken at another.
        for _ in 0..100 {
            let (first, endpoint) = bound_publisher(&context, &format!("tcp://{}:*", addresses[0]));
            let port: u16 = endpoint.rsplit(':').next().unwrap().parse().unwrap();
            let mut publishers = vec![(addresses[0].to_owned(), first)];
            for &address in &addresses[1..] {
                let socket = context.socket(zmq::PUB).unwrap();
                socket.set_linger(0).unwrap();
                if socket.bind(&format!("tcp://{address}:{port}")).is_ok() {
                    publishers.push((address.to_owned(), socket));
                }
            }
            if publishers.len() == addresses.len() {
                return Engines { port, publishers };
            }
        }
        panic!("no port is free at all of {addresses:?}");
    }

    /// Lets the engine at an address announce a block, as its first batch.
    fn store(&self, daemon: &Daemon, address: &str, first_token: u64) {
        let (_, socket) = self.publishers.iter().find(|(at, _)| at == address).unwrap();
        daemon.feed(socket, "", &Batch { seq: 0, payload: stored(first_token) }, address);
    }
}

/// A batch that stores one block.
fn stored(first_token: u64) -> Vec<u8> {
    let tokens: Vec<u64> = (first_token..first_token + 4).collect();
    let event = json!({
        "type": "BlockStored", "block_hashes": [first_token], "parent_block_hash": null,
        "token_ids": tokens, "block_size": 4, "lora_id": null, "medium": "GPU",
        "lora_name": null, "extra_keys": [Value::Null], "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    });
    rmp_serde::to_vec(&json!([0.5, [event], 0])).unwrap()
}

/// The pods that hold the block that begins with a token.
fn holders(daemon: &Daemon, first_token: u64) -> Vec<String> {
    let tokens: Vec<u64> = (first_token..first_token + 4).collect();
    let answer = daemon.post("/v1/score", &json!({ "model": "m", "token_ids": tokens })).json(200);
    let rows = answer["workers"].as_array().unwrap();
    let holds = rows.iter().filter(|row| row["matched_blocks"] == 1);
    holds.map(|row| row["worker"].as_str().unwrap().to_owned()).collect()
}

fn pods(daemon: &Daemon) -> Vec<String> {
    let answer = daemon.get("/workers").json(200);
    let workers = answer["workers"].as_array().unwrap();
    workers.iter().map(|worker| worker["worker"].as_str().unwrap().to_owned()).collect()
}

/// A configuration that looks at `engines.test` often.
fn configuration(names: &NameServer, port: u16, more: &str) -> String {
    format!(
        "[[discover]]\nname = \"engines\"\ndns = \"engines.test:{port}\"\nnameserver = \"{}\"\n\
         model = \"m\"\nevery = \"100ms\"\ngrace = \"1s\"\n{more}\n",
        names.address()
    )
}

fn start(names: &NameServer, port: u16, more: &str) -> Daemon {
    Daemon::start(&[], &configuration(names, port, more), &[])
}

fn looks(daemon: &Daemon, outcome: &str) -> f64 {
    let name =
        format!("kvscout_discover_looks_total{{discover=\"engines\",outcome=\"{outcome}\"}}");
    daemon.metric(&name).unwrap_or(0.0)
}

fn addresses(daemon: &Daemon, state: &str) -> f64 {
    let name = format!("kvscout_discover_addresses{{discover=\"engines\",state=\"{state}\"}}");
    daemon.metric(&name).unwrap_or(0.0)
}

/// Waits until two more looks have ended in this way.
#[track_caller]
fn two_more_looks(daemon: &Daemon, outcome: &str) {
    let before = looks(daemon, outcome);
    eventually("two more looks", || looks(daemon, outcome) >= before + 2.0);
}

#[test]
fn the_document_has_every_metric_of_a_name_and_no_other() {
    let engines = Engines::at(&["127.0.0.2"]);
    let names = NameServer::start(&["engines 0 A 127.0.0.2"]);
    let daemon = start(&names, engines.port, "");
    eventually("it was looked at", || looks(&daemon, "answered") >= 1.0);
    assert_eq!(exposed_of(&daemon, "kvscout_discover_"), documented_of("kvscout_discover_"));
}

#[test]
fn l13_engines_behind_a_name_are_registered_as_they_come_and_go() {
    let engines = Engines::at(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]);
    let mut names = NameServer::start(&["engines 0 A 127.0.0.2", "engines 0 A 127.0.0.3"]);
    let more = "replay = 6557\nlabels = [\"role=decode\"]";
    let daemon = start(&names, engines.port, more);
    eventually("both are there", || pods(&daemon) == ["127.0.0.2", "127.0.0.3"]);
    let worker = daemon.worker("127.0.0.2", 0);
    assert_eq!(worker["endpoint"], format!("tcp://127.0.0.2:{}", engines.port));
    assert_eq!(worker["replay_endpoint"], "tcp://127.0.0.2:6557");
    assert_eq!((&worker["labels"]["role"], &worker["model"]), (&json!("decode"), &json!("m")));
    engines.store(&daemon, "127.0.0.2", 100);
    engines.store(&daemon, "127.0.0.3", 200);
    assert_eq!(holders(&daemon, 100), ["127.0.0.2"]);
    assert_eq!(holders(&daemon, 200), ["127.0.0.3"]);

    names.change(&["engines 0 A 127.0.0.2", "engines 0 A 127.0.0.4"]);
    eventually("one went, one came", || pods(&daemon) == ["127.0.0.2", "127.0.0.4"]);
    engines.store(&daemon, "127.0.0.4", 300);
    assert_eq!(holders(&daemon, 300), ["127.0.0.4"]);
    assert_eq!(holders(&daemon, 100), ["127.0.0.2"], "who stayed has kept what it had");

    names.change(&["engines 0 A 127.0.0.2", "engines 0 A 127.0.0.3"]);
    eventually("it came back", || pods(&daemon) == ["127.0.0.2", "127.0.0.3"]);
    assert_eq!(holders(&daemon, 200), [""; 0], "who went is forgotten");
    engines.store(&daemon, "127.0.0.3", 200);
    assert_eq!(holders(&daemon, 200), ["127.0.0.3"], "as the same pod");
    daemon.terminate();
}

#[test]
fn l15_a_name_server_that_fails_takes_nothing_away() {
    let engines = Engines::at(&["127.0.0.2", "127.0.0.3"]);
    let both = ["engines 0 A 127.0.0.2", "engines 0 A 127.0.0.3"];
    let mut names = NameServer::start(&both);
    let daemon = start(&names, engines.port, "");
    eventually("both are there", || pods(&daemon).len() == 2);
    engines.store(&daemon, "127.0.0.2", 100);
    engines.store(&daemon, "127.0.0.3", 200);

    names.fail();
    let failing = Instant::now();
    two_more_looks(&daemon, "failed");
    eventually("the grace is over", || failing.elapsed() > Duration::from_secs(2));
    two_more_looks(&daemon, "failed");
    assert!(daemon.stderr().contains("erver Failure"), "{}", daemon.stderr());
    assert_eq!(
        (holders(&daemon, 100), holders(&daemon, 200)),
        (vec!["127.0.0.2".into()], vec!["127.0.0.3".into()])
    );
    assert_eq!(daemon.get("/ready").status, 200, "what was found before is no worse for it");

    names.restart(&["engines 0 A 127.0.0.2"]);
    eventually("an answer takes away", || pods(&daemon) == ["127.0.0.2"]);
    assert_eq!(holders(&daemon, 100), ["127.0.0.2"]);

    names.restart(&["other 0 A 127.0.0.2"]);
    eventually("as does one that there is no such name any more", || pods(&daemon).is_empty());
    daemon.terminate();
}

#[test]
fn l15_it_is_not_ready_before_a_name_has_been_answered_for() {
    let mut names = NameServer::start(&["other 0 A 127.0.0.2"]);
    let daemon = start(&names, 5557, "");
    eventually("the misspelt name is named", || {
        let answer = daemon.get("/ready");
        answer.status == 503 && answer.body.contains("there is no name \\\"engines.test\\\"")
    });
    names.fail();
    eventually("so is what failed", || daemon.get("/ready").body.contains("erver Failure"));
    names.restart(&["engines 0 TXT none"]);
    eventually("a name without addresses is an answer", || daemon.get("/ready").status == 200);
    assert!(daemon.stderr().contains("engines.test has no address"), "{}", daemon.stderr());
    daemon.terminate();
}

#[test]
fn l15_a_restart_begins_with_the_engines_it_knew_though_nobody_answers() {
    let engines = Engines::at(&["127.0.0.2", "127.0.0.3"]);
    let mut names = NameServer::start(&["engines 0 A 127.0.0.2", "engines 0 A 127.0.0.3"]);
    let state = config_file("").with_extension("state");
    let state = ["--state", state.to_str().unwrap()];
    let file = configuration(&names, engines.port, "");
    let daemon = Daemon::start(&state, &file, &[]);
    eventually("both are there", || pods(&daemon).len() == 2);
    engines.store(&daemon, "127.0.0.2", 100);
    engines.store(&daemon, "127.0.0.3", 200);
    daemon.terminate();

    names.stop();
    let daemon = Daemon::start(&state, &file, &[]);
    assert_eq!(
        (holders(&daemon, 100), holders(&daemon, 200)),
        (vec!["127.0.0.2".into()], vec!["127.0.0.3".into()])
    );
    names.restart(&["engines 0 A 127.0.0.3"]);
    eventually("who went meanwhile is found out", || pods(&daemon) == ["127.0.0.3"]);
    assert_eq!(holders(&daemon, 200), ["127.0.0.3"]);
    daemon.terminate();

    let daemon = Daemon::start(&state, "", &[]);
    assert_eq!(pods(&daemon), [""; 0], "nobody looks at the name any more");
    daemon.terminate();
}

#[test]
fn l16_a_registered_engine_whose_name_moves_to_another_address_is_followed_there() {
    if !is_root() {
        return;
    }
    let mut names = NameServer::of_systems(&["pod 0 A 127.0.0.2"]);
    let mut engines = Engines::at(&["127.0.0.2", "127.0.0.3"]);
    let daemon = Daemon::start_as(names.for_the_system_of(&kvscout()), &[], "", &[]);
    let named = format!("tcp://pod.test:{}", engines.port);
    let body = json!({ "model_name": "m", "instance_id": 7, "block_size": 4, "endpoint": named });
    daemon.post("/register", &body).json(201);
    let (_, before) = engines.publishers.remove(0);
    for (seq, token) in [(0, 100), (1, 200)] {
        daemon.feed(&before, "", &Batch { seq, payload: stored(token) }, "7");
    }
    assert_eq!(holders(&daemon, 100), ["7"]);

    names.change(&["pod 0 A 127.0.0.3"]);
    drop(before);
    eventually("the link is down", || daemon.worker("7", 0)["link"]["state"] == "down");
    let (_, after) = &engines.publishers[0];
    daemon.feed(after, "", &Batch { seq: 0, payload: stored(300) }, "7");
    assert_eq!(holders(&daemon, 300), ["7"]);
    assert_eq!(holders(&daemon, 100), [""; 0], "another engine has not what the former had");
    let worker = daemon.worker("7", 0);
    assert_eq!((&worker["endpoint"], &worker["link"]["state"]), (&json!(named), &json!("up")));
    assert_eq!(pods(&daemon), ["7"], "it is the same worker");
    let log = daemon.terminate();
    let moved = format!("now=tcp://127.0.0.3:{}", engines.port);
    assert!(log.contains("the name stands for another address") && log.contains(&moved), "{log}");
}

#[test]
fn an_engine_with_an_address_of_either_family_is_one_pod() {
    let mut names = NameServer::start(&["engines 0 A 127.0.0.2", "engines 0 AAAA ::1"]);
    let daemon = start(&names, 5557, "pod_port = 8000");
    eventually("IPv4 counts", || pods(&daemon) == ["127.0.0.2:8000"]);
    names.change(&["engines 0 AAAA ::1"]);
    eventually("IPv6 does where there is no other", || pods(&daemon) == ["[::1]:8000"]);
    assert_eq!(daemon.worker("[::1]:8000", 0)["endpoint"], "tcp://[::1]:5557");
    daemon.terminate();

    names.change(&["engines 0 A 127.0.0.2", "engines 0 AAAA ::1"]);
    let daemon = start(&names, 5557, "family = \"both\"");
    eventually("both do if asked for", || pods(&daemon) == ["127.0.0.2", "::1"]);
    daemon.terminate();
}

#[test]
fn no_more_engines_are_registered_than_may_be() {
    // Too many for a datagram, so that they have to be fetched over TCP.
    let records: Vec<String> = (1..=200).map(|n| format!("engines 0 A 127.0.1.{n}")).collect();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let names = NameServer::start(&records);
    let daemon = start(&names, 5557, "most = 3");
    eventually("all are seen", || addresses(&daemon, "present") == 200.0);
    assert_eq!(pods(&daemon), ["127.0.1.1", "127.0.1.2", "127.0.1.3"]);
    assert_eq!(addresses(&daemon, "surplus"), 197.0);
    assert!(daemon.stderr().contains("197 addresses are beyond the 3"), "{}", daemon.stderr());
    daemon.terminate();
}

#[test]
fn an_address_that_may_not_be_dialled_is_refused_whatever_name_stands_for_it() {
    let engines = Engines::at(&["127.0.0.2"]);
    // Where clouds keep the credentials of their machines.
    let names = NameServer::start(&["engines 0 A 127.0.0.2", "engines 0 A 169.254.169.254"]);
    let daemon = start(&names, engines.port, "");
    eventually("both are seen", || addresses(&daemon, "present") == 2.0);
    eventually("one is refused", || addresses(&daemon, "refused") == 1.0);
    two_more_looks(&daemon, "answered");
    assert_eq!(pods(&daemon), ["127.0.0.2"]);
    let log = daemon.stderr();
    assert!(log.contains("169.254.169.254"), "{log}");
}

#[test]
fn discovered_engines_tokenize_and_are_asked_whether_they_sleep() {
    let names = NameServer::start(&["engines 0 A 127.0.0.2"]);
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let body = match path.as_str() {
                "/tokenize" => "{\"tokens\": [100, 101, 102, 103], \"count\": 4}",
                _ => "vllm:prompt_tokens_total 1\n",
            };
            log.lock().unwrap().push(path);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let more = format!("http = {port}\n[models.m]\ntokenizer = \"engine\"");
    let interval = [("KVSCOUT_METRICS_INTERVAL", "100ms")];
    let daemon = Daemon::start(&[], &configuration(&names, 5557, &more), &interval);
    let question = json!({ "model": "m", "prompt": "a text" });
    eventually("the engine is known", || daemon.post("/v1/score", &question).status == 200);
    eventually("it is asked for both", || {
        let asked = asked.lock().unwrap();
        ["/tokenize", "/metrics"].iter().all(|path| asked.iter().any(|seen| seen == path))
    });
    daemon.terminate();
}

#[test]
fn a_pod_that_somebody_else_registered_is_not_the_name_s_to_take() {
    let mut names = NameServer::start(&["engines 0 A 127.0.0.2", "engines 0 A 127.0.0.3"]);
    let source = ["--model", "m", "--source", "127.0.0.2=tcp://127.0.0.2:7777"];
    let daemon = Daemon::start(&source, &configuration(&names, 5557, ""), &[]);
    eventually("the other one is registered", || addresses(&daemon, "refused") == 1.0);
    assert_eq!(pods(&daemon), ["127.0.0.2", "127.0.0.3"]);
    assert_eq!(daemon.worker("127.0.0.2", 0)["endpoint"], "tcp://127.0.0.2:7777");
    names.change(&["engines 0 A 127.0.0.4"]);
    eventually("those of the name went", || pods(&daemon) == ["127.0.0.2", "127.0.0.4"]);
    daemon.terminate();
}

#[test]
fn an_answer_is_good_for_its_time_to_live() {
    let begun = Instant::now();
    let names = NameServer::start(&["engines 2 A 127.0.0.2"]);
    let daemon = start(&names, 5557, "");
    eventually("three looks", || looks(&daemon, "answered") >= 3.0);
    assert!(begun.elapsed() >= Duration::from_secs(3), "two whole times lie between three looks");
    daemon.terminate();
}

#[test]
fn a_name_is_a_flag_too_and_wrong_ones_are_explained() {
    let print = |flag: &str| {
        kvscout().args(["serve", "--print-config", "--discover", flag]).output().unwrap()
    };
    let printed = print("vllm=vllm.default.svc:5557,replay=5558,every=2s");
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("[[discover]]") && text.contains("replay = 5558"), "{text}");
    for (wrong, right) in [
        ("vllm=10.0.0.7:5557", "an address is a source"),
        ("vllm=vllm.svc", "a name and a port"),
        ("vllm=vllm.svc:0", "a name and a port"),
        ("vllm=vllm.svc:5557,every=0s", "at least 100ms"),
        ("vllm=vllm.svc:65535,ranks=2", "ports end at 65535"),
        ("vllm=vllm.svc:5557,famly=ipv4", "nearest known one is \"family\""),
    ] {
        let refused = print(wrong);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{wrong}: {text}");
        assert!(text.contains(right) && text.lines().count() == 1, "{wrong}: {text}");
    }
}
