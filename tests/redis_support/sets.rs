//! Servers that work together.

use std::time::{Duration, Instant};

use super::server::Server;

/// Waits until a condition holds; two minutes: a sentinel whose clock
/// jumps, as on a machine under load, chooses no master for half a minute (TILT), and may need several elections.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}: not within 120 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Masters of a cluster without replicas, each with an equal share of the slots.
pub struct ClusterServers {
    pub nodes: Vec<Server>,
}

impl ClusterServers {
    /// A cluster whose other masters go on when one is lost.
    pub fn start(masters: usize) -> ClusterServers {
        ClusterServers::with(masters, &["--cluster-require-full-coverage", "no"])
    }

    pub fn with(masters: usize, arguments: &[&str]) -> ClusterServers {
        let mut words = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        words.extend(arguments);
        let nodes: Vec<Server> = (0..masters).map(|_| Server::with(&words)).collect();
        for (i, node) in nodes.iter().enumerate() {
            let (from, to) = (16_384 * i / masters, 16_384 * (i + 1) / masters - 1);
            let range = [from.to_string(), to.to_string()];
            assert_eq!(node.ask(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]), "OK");
            // Or all start at epoch 0, and sort out who is right for a while.
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            let port = nodes[0].port().to_string();
            node.ask(&["CLUSTER", "MEET", "127.0.0.1", &port]);
        }
        let whole = |node: &Server| {
            let info = node.ask(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
        };
        eventually("the cluster knows all its slots", || nodes.iter().all(whole));
        ClusterServers { nodes }
    }

    /// One more server, which follows a master.
    pub fn replica_of(&self, master: usize) -> Server {
        let replica = Server::with(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        replica.ask(&["CLUSTER", "MEET", "127.0.0.1", &self.nodes[0].port().to_string()]);
        let id = self.nodes[master].ask(&["CLUSTER", "MYID"]);
        eventually("the replica knows its master", || {
            replica.ask(&["CLUSTER", "REPLICATE", &id]) == "OK"
        });
        eventually("the replica follows, and all know", || {
            let counts = |node: &Server| node.ask(&["CLUSTER", "NODES"]).matches(" slave ").count();
            replica.ask(&["INFO", "replication"]).contains("master_link_status:up")
                && self.nodes.iter().all(|node| counts(node) == 1)
        });
        replica
    }

    pub fn address(&self) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// Which node has a slot at the start.
    pub fn owner(&self, slot: u16) -> usize {
        (0..self.nodes.len())
            .find(|i| usize::from(slot) < 16_384 * (i + 1) / self.nodes.len())
            .unwrap()
    }
}

/// A master, its replica, and three sentinels that watch them under the name `main`.
pub struct SentinelServers {
    pub master: Server,
    pub replica: Server,
    pub sentinels: Vec<Server>,
}

impl SentinelServers {
    pub fn start() -> SentinelServers {
        let master = Server::start();
        let port = master.port().to_string();
        let replica = Server::with(&["--replicaof", "127.0.0.1", &port]);
        eventually("the replica follows", || {
            replica.ask(&["INFO", "replication"]).contains("master_link_status:up")
        });
        let sentinels: Vec<Server> = (0..3).map(|_| sentinel(&port)).collect();
        eventually("the sentinels know each other and the replica", || {
            sentinels.iter().all(|sentinel| {
                let known = sentinel.ask(&["SENTINEL", "MASTER", "main"]);
                known.contains("num-slaves 1") && known.contains("num-other-sentinels 2")
            })
        });
        SentinelServers { master, replica, sentinels }
    }

    pub fn address(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+sentinel://{}/main", hosts.join(","))
    }
}

fn sentinel(master: &str) -> Server {
    let mut server = Server::prepare(&[]);
    let file = server.directory().join("sentinel.conf");
    let directory = server.directory().display();
    let text = format!(
        "dir {directory}\nsentinel monitor main 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    );
    std::fs::write(&file, text).unwrap();
    server.run_as(&[file.to_str().unwrap(), "--sentinel"]);
    server
}
