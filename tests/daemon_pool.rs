//! A KV cache pool's events (RFC 1527), from a publisher that is not ours: Python's msgpack and pyzmq.

#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use daemon_support::Daemon;
use kvscout::block::{BlockSize, Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use zmq_support::eventually;

struct Pool {
    child: Child,
    lines: Option<ChildStdin>,
    endpoint: String,
}

impl Pool {
    fn start(flags: &[&str]) -> Pool {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pool_support/publish.py");
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with msgpack and zmq is needed: scripts/test installs them");
        let mut endpoint = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        assert!(endpoint.starts_with("tcp://"), "python3-msgpack and python3-zmq are needed");
        let lines = child.stdin.take();
        Pool { child, lines, endpoint: endpoint.trim().to_owned() }
    }

    fn publish(&mut self, events: &Value) {
        writeln!(self.lines.as_mut().unwrap(), "{events}").unwrap();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = (self.lines.take(), self.child.kill(), self.child.wait());
    }
}

fn daemon(pool: &Pool, block_size: u32) -> Daemon {
    let file = format!(
        "[[source]]\nname = \"pool\"\nendpoint = \"{}\"\nmodel = \"m\"\nblock_size = {block_size}\n",
        pool.endpoint
    );
    Daemon::start(&[], &file, &[])
}

/// What the pool holds of three blocks by their names: tokens in memory or on disk.
fn held(daemon: &Daemon) -> Vec<u64> {
    let body = json!({"model": "m", "block_size": 16, "seq_hashes": [11, u64::MAX, 13]});
    let answer = daemon.post("/query_by_hash", &body).json(200);
    let pool = &answer["default"]["pool"];
    ["CPU", "DISK"].map(|tier| pool[tier].as_u64().unwrap_or(0)).to_vec()
}

fn events(daemon: &Daemon) -> Value {
    daemon.get("/workers").json(200)["workers"][0]["events"].clone()
}

#[test]
fn a_pools_blocks_are_found_by_their_names_and_go_when_it_says_so() {
    // Blocks of 16 by the operator's word, or by the pool's.
    for (flags, told, unit) in [(&["--compat"][..], 16, None), (&[], 32, Some(16))] {
        let mut pool = Pool::start(flags);
        let daemon = daemon(&pool, told);
        let stored = |name: u64, medium: &str| json!(["stored", {"seq_hashes": [name], "medium": medium, "block_size": unit}]);
        // Said twice, as a master does after an upsert; what is no hash names nothing.
        pool.publish(&json!([stored(11, "cpu"), stored(11, "cpu"), stored(u64::MAX, "cpu")]));
        pool.publish(&json!([stored(13, "disk"), ["stored", {"seq_hashes": [], "medium": "cpu"}]]));
        eventually("the pool's events are applied", || held(&daemon) == [32, 48]);

        let foreign = |fields: Value| {
            let mut event = json!(["removed", {"seq_hashes": [11], "medium": "cpu"}]);
            event[1].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            event
        };
        pool.publish(&json!([
            foreign(json!({"tenant_id": "other"})),
            foreign(json!({"model_name": "another"})),
            ["cleared", {"tenant_id": "other"}],
        ]));
        eventually("the pool's events are applied", || events(&daemon)["foreign"] == 3);
        assert_eq!(held(&daemon), [32, 48], "others' events take nothing away");

        pool.publish(
            &json!([["removed", {"seq_hashes": [u64::MAX], "medium": "cpu", "model_name": "m"}]]),
        );
        eventually("the pool's events are applied", || held(&daemon) == [16, 16]);
        pool.publish(&json!([["removed", {"seq_hashes": [11], "medium": "cpu"}]]));
        eventually("the pool's events are applied", || held(&daemon) == [0, 0]);

        pool.publish(&json!([stored(11, "cpu"), ["cleared", {}], stored(11, "disk")]));
        eventually("the pool's events are applied", || held(&daemon) == [0, 16]);
        let worker = &daemon.get("/workers").json(200)["workers"][0];
        assert_eq!((&worker["trust"], &worker["as_of"]), (&json!("exact"), &json!(5)));
        assert_eq!(worker["events"]["rejected"], 0);
    }
}

#[test]
fn a_pools_event_of_another_shape_is_refused_and_named() {
    let mut pool = Pool::start(&[]);
    let daemon = daemon(&pool, 16);
    pool.publish(&json!([
        ["stored", {"seq_hashes": "0x2a", "medium": "cpu"}],
        ["stored", {"seq_hashes": [11], "medium": "cpu"}],
    ]));
    eventually("the pool's events are applied", || held(&daemon) == [16, 16]);
    assert_eq!(events(&daemon)["rejected"], 1);
    eventually("the pool's events are applied", || {
        daemon.stderr().contains("found a string in seq_hashes, which is an array")
    });
}

/// What vLLM calls the blocks of a prompt.
fn names(algorithm: Algorithm, root: Root<'_>, tokens: &[u32]) -> Vec<u64> {
    let contract = Contract::new(Version::NEWEST, algorithm, root).unwrap();
    let shape = Shape::plain(BlockSize::new(16).unwrap());
    let mut chain = contract.chain(shape, &Prompt::new(tokens)).unwrap();
    chain.extend(tokens).map(|hash| hash.name().0).collect()
}

fn registration(pool: &Pool, profile: &Value) -> Value {
    json!({
        "endpoint": pool.endpoint, "type": "Mooncake", "modelname": "m", "instance_id": "pool",
        "block_size": 16, "dp_rank": 0, "hash_profile": profile,
    })
}

#[test]
fn a_pools_names_match_by_content_as_soon_as_it_is_registered_with_their_profile() {
    let tokens: Vec<u32> = (0..40).collect();
    let state = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("pool-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&state);
    let profile = |algorithm: &str, seed: Value| {
        json!({
            "strategy": "vllm_v1", "algorithm": algorithm, "python_hash_seed": seed,
            "index_projection": "low64_be",
        })
    };
    for (algorithm, seed, root) in [
        (Algorithm::Sha256Cbor, json!("7"), Root::Seed("7")),
        (Algorithm::Sha256, Value::Null, Root::Unset),
    ] {
        let mut pool = Pool::start(&[]);
        let profile = profile(algorithm.as_str(), seed);
        let daemon = Daemon::start(&["--state", state.to_str().unwrap()], "", &[]);
        daemon.post("/register", &registration(&pool, &profile)).json(200);
        let told = &daemon.worker("pool", 0)["contract"];
        assert_eq!(
            (&told["status"], &told["algorithm"]),
            (&json!("told"), &json!(algorithm.as_str()))
        );
        let names = names(algorithm, root, &tokens);
        pool.publish(&json!([["stored", {"seq_hashes": names, "medium": "cpu"}]]));
        let matched = |daemon: &Daemon, tokens: &[u32]| {
            let answer =
                daemon.post("/query", &json!({"model": "m", "token_ids": tokens})).json(200);
            answer["default"]["pool"]["CPU"].clone()
        };
        eventually("the pool's events are applied", || matched(&daemon, &tokens) == 32);
        assert_eq!(matched(&daemon, &[&tokens[..16], &[9; 20]].concat()), 16);
        assert_eq!(matched(&daemon, &[9; 40]), 0);
        let shown = daemon.get("/services").json(200)["services"][0]["hash_profile"].clone();
        let mut public = profile.clone();
        public.as_object_mut().unwrap().remove("python_hash_seed");
        assert_eq!(shown, public, "without the seed");

        // A restart keeps the profile: the same registration is the same again, another one a conflict.
        daemon.terminate();
        let daemon = Daemon::start(&["--state", state.to_str().unwrap()], "", &[]);
        daemon.post("/register", &registration(&pool, &profile)).json(200);
        assert_eq!(matched(&daemon, &tokens), 32);
        let mut other = profile.clone();
        other["python_hash_seed"] = json!("8");
        let error = daemon.post("/register", &registration(&pool, &other)).json(409);
        assert!(error["error"].as_str().unwrap().contains("hash profile"), "{error}");
        let gone = json!({"instance_id": "pool", "dp_rank": 0});
        daemon.post("/unregister", &gone).json(200);
        daemon.terminate();
    }
}

#[test]
fn a_pool_of_the_configuration_is_told_in_the_same_way() {
    let tokens: Vec<u32> = (0..40).collect();
    let mut pool = Pool::start(&["--compat"]);
    let file = format!(
        "[[source]]\nname = \"pool\"\nendpoint = \"{}\"\nmodel = \"m\"\nblock_size = 16\n\
         hash_algorithm = \"sha256\"\nhash_seed = \"7\"\n",
        pool.endpoint
    );
    let daemon = Daemon::start(&[], &file, &[]);
    let names = names(Algorithm::Sha256, Root::Seed("7"), &tokens);
    pool.publish(&json!([["stored", {"seq_hashes": names, "medium": "disk"}]]));
    eventually("the pool's blocks match", || {
        let answer =
            daemon.post("/v1/score", &json!({"model": "m", "token_ids": tokens})).json(200);
        answer["workers"][0]["matched_blocks"] == 2
    });
}

#[test]
fn a_profile_that_makes_no_sense_is_named_by_its_field() {
    let daemon = Daemon::start(&[], "", &[]);
    let good = json!({
        "strategy": "vllm_v1", "algorithm": "sha256_cbor", "python_hash_seed": "0",
        "index_projection": "low64_be",
    });
    let with = |name: &str, value: Value| {
        let mut profile = good.clone();
        profile[name] = value;
        profile
    };
    let sglang = json!({
        "strategy": "sglang", "algorithm": "sha256_raw", "index_projection": "first64_be",
    });
    let mut mixed = sglang.clone();
    mixed["index_projection"] = json!("low64_be");
    let mut no_strategy = good.clone();
    no_strategy.as_object_mut().unwrap().remove("strategy");
    let register = |profile: &Value| {
        let body = json!({
            "endpoint": "tcp://127.0.0.1:9", "type": "Mooncake", "modelname": "m",
            "instance_id": "pool", "block_size": 16, "dp_rank": 0, "hash_profile": profile,
        });
        daemon.post("/register", &body)
    };
    for (profile, field) in [
        (json!("vllm_v1"), "hash_profile"),
        (no_strategy, "hash_profile.strategy"),
        (with("strategy", json!("vllm_v2")), "hash_profile.strategy"),
        (with("strategy", json!("sglang_bigram")), "hash_profile.strategy"),
        (with("algorithm", json!("md5")), "hash_profile.algorithm"),
        (with("algorithm", json!("builtin")), "hash_profile.algorithm"),
        (with("algorithm", json!(5)), "hash_profile.algorithm"),
        (with("index_projection", json!("first64_be")), "hash_profile.index_projection"),
        (with("python_hash_seed", json!(0)), "hash_profile.python_hash_seed"),
        (with("python_hash_seed", json!("s3cr3t")), "hash_profile.python_hash_seed"),
        (with("python_hash_seed", json!("4294967296")), "hash_profile.python_hash_seed"),
        (with("root_digest", json!("00")), "hash_profile.root_digest"),
        (mixed, "hash_profile.index_projection"),
    ] {
        let error = register(&profile).json(400);
        assert_eq!(error["field"], field, "{error}");
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
    }
    // XXH3's default root is random.
    let mut unset = with("algorithm", json!("xxhash"));
    unset["python_hash_seed"] = Value::Null;
    assert_eq!(register(&unset).json(400)["field"], "hash_profile.python_hash_seed");
    register(&sglang).json(200);
    assert_eq!(daemon.worker("pool", 0)["contract"]["engine"], "sglang");
}
