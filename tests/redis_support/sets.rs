//! Servers that work together.

use std::time::{Duration, Instant};

use super::server::{Server, free_port};
use super::tls::Certificates;

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
    scheme: &'static str,
    /// The nodes' ports for clients of the scheme.
    ports: Vec<u16>,
}

impl ClusterServers {
    /// A cluster whose other masters go on when one is lost.
    pub fn start(masters: usize) -> ClusterServers {
        ClusterServers::with(masters, &["--cluster-require-full-coverage", "no"])
    }

    pub fn with(masters: usize, arguments: &[&str]) -> ClusterServers {
        let words = [&CLUSTERED[..], arguments].concat();
        let nodes: Vec<Server> = (0..masters).map(|_| Server::with(&words)).collect();
        let ports = nodes.iter().map(Server::port).collect();
        ClusterServers { nodes, scheme: "redis", ports }.joined()
    }

    /// A cluster whose nodes speak TLS with each other and with clients; its certificates end with it.
    pub fn with_tls(masters: usize) -> (ClusterServers, Certificates) {
        let (mut nodes, certificates) = prepared(masters);
        let ports: Vec<u16> = nodes.iter().map(|_| free_port()).collect();
        for (node, &port) in nodes.iter_mut().zip(&ports) {
            let tls = certificates.arguments(port, false);
            let tls = tls.iter().map(String::as_str).chain(["--tls-cluster", "yes"]);
            let full = ["--cluster-require-full-coverage", "no"];
            node.run_as(&CLUSTERED.into_iter().chain(full).chain(tls).collect::<Vec<_>>());
        }
        (ClusterServers { nodes, scheme: "rediss", ports }.joined(), certificates)
    }

    fn joined(self) -> ClusterServers {
        let masters = self.nodes.len();
        for (i, node) in self.nodes.iter().enumerate() {
            let (from, to) = (16_384 * i / masters, 16_384 * (i + 1) / masters - 1);
            let range = [from.to_string(), to.to_string()];
            assert_eq!(node.ask(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]), "OK");
            // Or all start at epoch 0, and sort out who is right for a while.
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            node.ask(&["CLUSTER", "MEET", "127.0.0.1", &self.ports[0].to_string()]);
        }
        let whole = |node: &Server| {
            let info = node.ask(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
        };
        eventually("the cluster knows all its slots", || self.nodes.iter().all(whole));
        self
    }

    /// One more server, which follows a master.
    pub fn replica_of(&self, master: usize) -> Server {
        let replica = Server::with(&CLUSTERED);
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
        let hosts: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("{}+cluster://{}", self.scheme, hosts.join(","))
    }

    /// Which node has a slot at the start.
    pub fn owner(&self, slot: u16) -> usize {
        (0..self.nodes.len())
            .find(|i| usize::from(slot) < 16_384 * (i + 1) / self.nodes.len())
            .unwrap()
    }
}

const CLUSTERED: [&str; 4] = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];

/// Servers that are not started yet, and certificates in the directory of the first.
fn prepared(servers: usize) -> (Vec<Server>, Certificates) {
    let servers: Vec<Server> = (0..servers).map(|_| Server::prepare(&[])).collect();
    let certificates = Certificates::make(servers[0].directory());
    (servers, certificates)
}

/// A master, its replica, and three sentinels that watch them under the name `main`.
pub struct SentinelServers {
    pub master: Server,
    pub replica: Server,
    pub sentinels: Vec<Server>,
    scheme: &'static str,
    /// The sentinels' ports for clients of the scheme.
    ports: Vec<u16>,
}

impl SentinelServers {
    pub fn start() -> SentinelServers {
        let master = Server::start();
        let port = master.port();
        let replica = Server::with(&["--replicaof", "127.0.0.1", &port.to_string()]);
        let sentinels: Vec<Server> = (0..3).map(|_| sentinel(port, "")).collect();
        let ports = sentinels.iter().map(Server::port).collect();
        SentinelServers { master, replica, sentinels, scheme: "redis", ports }.acquainted()
    }

    /// The same with TLS between all of them and for clients; the certificates end with the servers.
    pub fn with_tls() -> (SentinelServers, Certificates) {
        let (servers, certificates) = prepared(2);
        let [mut master, mut replica]: [Server; 2] = servers.try_into().ok().unwrap();
        let port = free_port();
        let arguments = |port, more: &[&str]| -> Vec<String> {
            let more =
                more.iter().chain(&["--tls-replication", "yes"]).map(|&word| word.to_owned());
            certificates.arguments(port, false).into_iter().chain(more).collect()
        };
        let run = |server: &mut Server, words: Vec<String>| {
            server.run_as(&words.iter().map(String::as_str).collect::<Vec<_>>());
        };
        run(&mut master, arguments(port, &[]));
        run(&mut replica, arguments(free_port(), &["--replicaof", "127.0.0.1", &port.to_string()]));
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let lines = |&own: &u16| {
            let words = arguments(own, &[]);
            let lines = words.chunks(2).map(|pair| format!("{} {}\n", &pair[0][2..], pair[1]));
            sentinel(port, &lines.collect::<String>())
        };
        let sentinels = ports.iter().map(lines).collect();
        let servers = SentinelServers { master, replica, sentinels, scheme: "rediss", ports };
        (servers.acquainted(), certificates)
    }

    fn acquainted(self) -> SentinelServers {
        eventually("the replica follows", || {
            self.replica.ask(&["INFO", "replication"]).contains("master_link_status:up")
        });
        eventually("the sentinels know each other and the replica", || {
            self.sentinels.iter().all(|sentinel| {
                let known = sentinel.ask(&["SENTINEL", "MASTER", "main"]);
                known.contains("num-slaves 1") && known.contains("num-other-sentinels 2")
            })
        });
        self
    }

    pub fn address(&self) -> String {
        let hosts: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("{}+sentinel://{}/main", self.scheme, hosts.join(","))
    }
}

fn sentinel(master: u16, more: &str) -> Server {
    let mut server = Server::prepare(&[]);
    let file = server.directory().join("sentinel.conf");
    let directory = server.directory().display();
    let text = format!(
        "dir {directory}\n{more}sentinel monitor main 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
    );
    std::fs::write(&file, text).unwrap();
    server.run_as(&[file.to_str().unwrap(), "--sentinel"]);
    server
}
