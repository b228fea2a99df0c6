//! A cluster: slots, a lost master, slots that move.

use super::redis_support::{ClusterServers, Server, eventually};
use super::*;
use crate::index::redis::link::slot::slot;
use crate::index::redis::link::{BreakerState, WarningKind};

fn keys(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("k{i}")).collect()
}

async fn write_all(link: &Link, keys: &[String], value: &str) -> Vec<Result<Value, Fault>> {
    let mut batch = Batch::new();
    keys.iter().for_each(|key| set(&mut batch, key, value));
    link.send(batch).await.unwrap()
}

async fn read_all(link: &Link, keys: &[String]) -> Vec<Result<Value, Fault>> {
    let mut batch = Batch::reading();
    keys.iter().for_each(|key| get(&mut batch, key));
    link.send(batch).await.unwrap()
}

#[test]
fn a_batch_over_all_slots_is_answered_in_order() {
    let servers = ClusterServers::start(3);
    runtime().block_on(async {
        let link = ready(&servers.address(), options()).await;
        let keys = keys(300);
        let mut batch = Batch::new();
        for (i, key) in keys.iter().enumerate() {
            set(&mut batch, key, &i.to_string());
            batch.script(&DOUBLE, &[key.as_bytes()], &[b"1"]);
            get(&mut batch, key);
        }
        let replies = link.send(batch).await.unwrap();
        assert_eq!(replies.len(), 900);
        for (i, reply) in replies.chunks(3).enumerate() {
            assert_eq!(*reply[1].as_ref().unwrap(), Value::Int(i as i64 + 2), "k{i}");
            assert_eq!(*reply[2].as_ref().unwrap(), bytes(&(i + 2).to_string()), "k{i}");
        }
        let sizes: Vec<_> = servers.nodes.iter().map(|node| node.ask(&["DBSIZE"])).collect();
        assert!(sizes.iter().all(|size| size.parse::<u32>().unwrap() > 50), "{sizes:?}");
        let counters = link.counters();
        assert_eq!((counters.servers, counters.servers_ready), (3, 3));
        assert_eq!((counters.redirected, counters.scripts_reloaded, counters.server), (0, 0, 0));
    });
}

#[test]
fn a_lost_master_costs_its_own_slots_only_and_comes_back() {
    let mut servers = ClusterServers::start(3);
    runtime().block_on(async {
        let link = ready(&servers.address(), options()).await;
        let keys = keys(300);
        assert!(write_all(&link, &keys, "1").await.iter().all(Result::is_ok));
        servers.nodes[1].kill();
        eventually("the loss is noticed", || link.counters().servers_ready == 2);
        let owners: Vec<usize> =
            keys.iter().map(|key| servers.owner(slot(key.as_bytes()))).collect();
        // Before, while and after the others agree that it failed.
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_secs(6) {
            for (reply, owner) in read_all(&link, &keys).await.iter().zip(&owners) {
                match reply {
                    Ok(value) => assert!(*owner != 1 && *value == bytes("1")),
                    Err(Fault::Down(_)) => assert_eq!(*owner, 1),
                    Err(Fault::Server(_)) => assert_eq!(*owner, 1),
                    Err(fault) => panic!("{fault}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_ne!(link.counters().breaker, BreakerState::Closed, "the worst of them counts");
        servers.nodes[1].restart();
        until_ok("it is back", async || {
            let replies = write_all(&link, &keys, "2").await;
            replies.into_iter().collect::<Result<Vec<_>, _>>()
        })
        .await;
    });
}

#[test]
fn a_replica_that_takes_over_gets_the_slots_of_the_lost_master() {
    let mut servers = ClusterServers::start(3);
    let replica = servers.replica_of(1);
    runtime().block_on(async {
        let link = ready(&servers.address(), options()).await;
        let keys = keys(100);
        assert!(write_all(&link, &keys, "1").await.iter().all(Result::is_ok));
        servers.nodes[1].kill();
        until_ok("the replica took over", async || {
            let replies = write_all(&link, &keys, "2").await;
            replies.into_iter().collect::<Result<Vec<_>, _>>()
        })
        .await;
        assert!(replica.ask(&["ROLE"]).starts_with("master"));
        assert!(replica.ask(&["DBSIZE"]).parse::<u32>().unwrap() > 10);
        eventually("the lost one is forgotten", || {
            let counters = link.counters();
            (counters.servers, counters.servers_ready) == (3, 3)
        });
    });
}

#[test]
fn slots_that_moved_are_followed() {
    let servers = ClusterServers::start(3);
    runtime().block_on(async {
        // The map is not drawn anew in time to help.
        let rare = StoreOptions { health_interval: Duration::from_secs(600), ..options() };
        let link = ready(&servers.address(), rare).await;
        let key = "moving".to_owned();
        let at = slot(key.as_bytes());
        let from = servers.owner(at);
        let to = (from + 1) % 3;
        let ids: Vec<_> = servers.nodes.iter().map(|node| node.ask(&["CLUSTER", "MYID"])).collect();
        let text = at.to_string();

        // Half moved: what is not at the source any more is asked for at the target.
        assert_eq!(
            servers.nodes[to].ask(&["CLUSTER", "SETSLOT", &text, "IMPORTING", &ids[from]]),
            "OK"
        );
        assert_eq!(
            servers.nodes[from].ask(&["CLUSTER", "SETSLOT", &text, "MIGRATING", &ids[to]]),
            "OK"
        );
        let mut batch = Batch::new();
        set(&mut batch, &key, "1");
        batch.script(&DOUBLE, &[key.as_bytes()], &[b"1"]);
        get(&mut batch, &key);
        get(&mut batch, "elsewhere");
        let replies = link.send(batch).await.unwrap();
        assert_eq!(*replies[2].as_ref().unwrap(), bytes("3"), "{replies:?}");
        assert!(replies[3].is_ok());
        assert_eq!(link.counters().redirected, 3);
        assert_eq!(servers.nodes[to].ask(&["CLUSTER", "COUNTKEYSINSLOT", &text]), "1");

        // Moved for good.
        for node in [to, from] {
            let done = servers.nodes[node].ask(&["CLUSTER", "SETSLOT", &text, "NODE", &ids[to]]);
            assert_eq!(done, "OK");
        }
        assert_eq!(try_get(&link, &key).await.unwrap(), bytes("3"));
        // Not redirected if the map was just drawn anew.
        let redirected = link.counters().redirected;
        assert!((3..=4).contains(&redirected), "{redirected}");
        assert_eq!(try_get(&link, &key).await.unwrap(), bytes("3"));
        assert_eq!(link.counters().redirected, redirected, "it is remembered");
        assert_eq!(link.counters().server, 0, "no caller saw any of it");
    });
}

#[test]
fn a_cluster_that_stops_as_a_whole_is_warned_of_and_says_so() {
    let mut servers = ClusterServers::with(3, &["--cluster-require-full-coverage", "yes"]);
    runtime().block_on(async {
        let link = ready(&servers.address(), options()).await;
        let warnings = link.check(Batch::new()).await;
        assert_eq!(warnings.len(), 3);
        assert!(warnings.iter().all(|w| w.kind == WarningKind::Coverage), "{warnings:?}");
        servers.nodes[2].kill();
        let key =
            keys(50).into_iter().find(|key| servers.owner(slot(key.as_bytes())) == 0).unwrap();
        let fault = loop {
            match try_get(&link, &key).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(fault) => break fault,
            }
        };
        assert!(fault.to_string().contains("CLUSTERDOWN"), "{fault}");
        assert!(fault.to_string().contains("CLUSTER INFO"), "{fault}");
        servers.nodes[2].restart();
        until_ok("it is whole again", async || try_get(&link, &key).await).await;
    });
}

#[test]
fn a_cluster_is_found_later_and_through_any_of_its_nodes() {
    runtime().block_on(async {
        let nowhere = Server::prepare(&[]);
        let servers = ClusterServers::start(3);
        let last = servers.nodes[2].port();
        let address = format!("redis+cluster://127.0.0.1:{},127.0.0.1:{last}", nowhere.port());
        let link = ready(&address, options()).await;
        assert!(write_all(&link, &keys(50), "1").await.iter().all(Result::is_ok));
        let link = open(&format!("redis+cluster://127.0.0.1:{}", nowhere.port()), options());
        let fault = try_get(&link, "a").await.unwrap_err();
        assert!(matches!(fault, Fault::Down(_)), "{fault}");
    });
}

#[test]
fn an_address_of_one_server_that_is_in_a_cluster_is_warned_of_and_the_reverse_says_what_is_wrong() {
    let servers = ClusterServers::start(3);
    let alone = Server::start();
    runtime().block_on(async {
        let link = ready(&servers.nodes[0].address(), options()).await;
        let warnings = link.check(Batch::new()).await;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].kind, WarningKind::Cluster);
        let key =
            keys(50).into_iter().find(|key| servers.owner(slot(key.as_bytes())) == 1).unwrap();
        let fault = try_get(&link, &key).await.unwrap_err();
        assert!(fault.to_string().contains("redis+cluster"), "{fault}");

        let link = open(&format!("redis+cluster://127.0.0.1:{}", alone.port()), options());
        let fault = link.ready(Duration::from_secs(1)).await.unwrap_err();
        assert!(fault.to_string().contains("cluster support disabled"), "{fault}");
    });
}
