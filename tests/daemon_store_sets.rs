//! `kvscout serve` in both modes with a store of several servers, one of which dies while questions are asked, and
//! with one that wants TLS, a user and a password.
#![cfg(feature = "daemon")]

mod daemon_store_support;
mod daemon_support;
mod redis_support;
mod zmq_support;

use serde_json::Value;

use daemon_store_support::*;
use daemon_support::{Batch, Daemon, batches};
use redis_support::{Certificates, ClusterServers, SentinelServers, Server, free_port};
use zmq_support::eventually;

/// A daemon that answers from the store says how it stands.
fn is_said(row: &Value) {
    let said = (row["trust"].as_str().unwrap(), row["reason"].as_str());
    let known = [("exact", None), ("syncing", None), ("degraded", Some("store"))];
    assert!(known.contains(&said), "{row}");
}

/// Whatever a reader says, where it says that it knows, it knows what memory knows.
fn is_true(reader: &Daemon, writer: &Daemon) {
    let said: Vec<Value> = answers(reader).into_iter().map(|a| a["workers"][0].clone()).collect();
    let truth = answers(writer);
    for (row, truth) in said.iter().zip(&truth) {
        let truth = &truth["workers"][0];
        // What it knows it knows as of a batch.
        if row["trust"] == "exact" && row["as_of"] == truth["as_of"] {
            assert_eq!(row, truth);
        }
    }
}

#[test]
fn r5_a_cluster_that_loses_any_one_master_while_both_kinds_serve_is_whole_again_afterwards() {
    let mut servers = ClusterServers::start(3);
    let all = batches();
    let parts: Vec<&[Batch]> = all.chunks(all.len().div_ceil(7)).collect();
    let (socket, writer, reader) = both(&servers.address(), parts[0]);
    assert_eq!(answers(&reader), answers(&writer));
    let asking = [Asking::begin(&writer, is_sure), Asking::begin(&reader, is_said)];
    for (lost, part) in parts[1..].chunks(2).enumerate() {
        servers.nodes[lost].kill();
        eventually("both know that a part is away", || {
            let ready = |daemon: &Daemon| daemon.metric("kvscout_store_servers_ready");
            ready(&writer) < Some(3.0) && ready(&reader) < Some(3.0)
        });
        is_true(&reader, &writer);
        publish_all(&socket, part[0]);
        let at = part[0].last().unwrap().seq;
        eventually("memory has it", || writer.has_applied("7", 0, at));
        is_true(&reader, &writer);
        // Without persistence it comes back empty; the others have what they had.
        servers.nodes[lost].restart();
        read_up_to(&reader, at);
        eventually("the store is whole again", || answers(&reader) == answers(&writer));
        // And goes on.
        publish_all(&socket, part[1]);
        read_up_to(&reader, part[1].last().unwrap().seq);
        assert_eq!(answers(&reader), answers(&writer));
    }
    asking.into_iter().for_each(Asking::end);
}

#[test]
fn r5_a_master_that_comes_back_empty_is_made_up_for_although_no_engine_says_anything() {
    let mut servers = ClusterServers::start(3);
    let (_socket, writer, reader) = both(&servers.address(), &batches());
    for lost in 0..3 {
        servers.nodes[lost].kill();
        servers.nodes[lost].restart();
        eventually("the store is whole again", || answers(&reader) == answers(&writer));
    }
}

#[test]
fn r3_a_failover_by_sentinels_while_both_kinds_serve_goes_on_with_the_new_master() {
    let mut servers = SentinelServers::start();
    let all = batches();
    let (before, after) = all.split_at(all.len() / 2);
    let (socket, writer, reader) = both(&servers.address(), before);
    let asking = [Asking::begin(&writer, is_sure), Asking::begin(&reader, is_said)];
    servers.master.kill();
    publish_all(&socket, after);
    let last = after.last().unwrap().seq;
    eventually("memory has all", || writer.has_applied("7", 0, last));
    is_true(&reader, &writer);
    read_up_to(&reader, last);
    assert_eq!(answers(&reader), answers(&writer));
    assert!(servers.replica.ask(&["INFO", "replication"]).contains("role:master"));
    asking.into_iter().for_each(Asking::end);
}

#[test]
fn tls_and_users_with_passwords_from_a_file_and_from_the_environment_serve_both_kinds() {
    let mut server = Server::prepare(&[]);
    let certificates = Certificates::make(server.directory());
    let port = free_port();
    let tls = certificates.arguments(port, false);
    let mut arguments: Vec<&str> = tls.iter().map(String::as_str).collect();
    // Who keeps the store may do what the namespace needs; who reads may change nothing.
    // As docs/store.md says, *Users*.
    let writes = "on >geheim-4711 ~kvscout:1:default:* +@all -@dangerous +info +config|get";
    let reads =
        "on >geheim-4712 ~kvscout:1:default:* +@read +@connection -@dangerous +info +config|get";
    for (user, may) in [("writer", writes), ("reader", reads)] {
        arguments.extend(["--user", user]);
        arguments.extend(may.split(' '));
    }
    server.run_as(&arguments);
    let file = server.directory().join("password");
    std::fs::write(&file, "geheim-4711\n").unwrap();
    let more = |password: String| {
        format!("{STORE}tls_ca = {:?}\n{password}\n[log]\nlevel = \"trace\"\n", certificates.ca())
    };
    let address = |user: &str| format!("rediss://{user}@127.0.0.1:{port}");
    let (socket, endpoint) = publisher();
    let all = batches();
    let writer = writer(&address("writer"), &endpoint, &more(format!("password_file = {file:?}")));
    feed(&writer, &socket, &all);
    let from_environment = more("password_env = \"STORE_PASSWORD\"".to_owned());
    let environment = [("STORE_PASSWORD", "geheim-4712")];
    let reader = reader_in(&address("reader"), &from_environment, &environment);
    read_up_to(&reader, all.last().unwrap().seq);
    assert_eq!(answers(&reader), answers(&writer));

    // Without the authority, or with another password, nothing is kept and nothing is said to be known.
    let with = |file: &str, password| {
        let flags = ["--store", &address("reader"), "--mode", "redis"];
        Daemon::start(&flags, file, &[("STORE_PASSWORD", password)])
    };
    let strange = from_environment.replace("tls_ca", "# tls_ca");
    for (file, password, why) in
        [(&strange, "geheim-4712", "certificate"), (&from_environment, "geheim-4713", "password")]
    {
        let refused = with(file, password);
        eventually("why it does not work is said", || refused.stderr().contains(why));
        assert_eq!(refused.get("/ready").status, 503);
        let log = refused.terminate();
        assert!(!log.contains("geheim"), "{log}");
    }
    for daemon in [writer, reader] {
        let log = daemon.terminate();
        assert!(log.contains("DEBUG") && !log.contains("geheim"), "{log}");
    }
}

#[test]
fn r4_a_start_warns_of_a_store_that_throws_keys_away_and_of_what_its_user_may_not_do() {
    let policy = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let user = ["--user", "poor", "on", ">geheim-4711", "~*", "+@all", "-del"];
    let server = Server::with(&[&policy[..], &user].concat());
    let (_socket, endpoint) = publisher();
    let address = format!("redis://poor@127.0.0.1:{}", server.port());
    let file = format!("{STORE}password_env = \"STORE_PASSWORD\"\n");
    let environment = [("STORE_PASSWORD", "geheim-4711")];
    let writer = writer_in(&address, &endpoint, &file, &environment);
    eventually("both are said", || {
        let log = writer.stderr();
        let warns = |word: &str| log.lines().any(|l| l.contains(" WARN ") && l.contains(word));
        warns("noeviction") && warns("DEL")
    });
}
