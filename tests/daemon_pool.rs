//! A KV cache pool's events (RFC 1527), from a publisher that is not ours: Python's msgpack and pyzmq.

#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use daemon_support::Daemon;
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
