//! Redis servers that a test starts on free ports and that end with it: alone, as a cluster, behind
//! sentinels, with users, with TLS; and a proxy that swallows bytes.
//!
//! `KVSCOUT_REDIS_SERVER` names the program, `redis-server` unless set; `valkey-server` takes the same
//! arguments.

#![allow(dead_code, unreachable_pub, unused_imports)]

mod hosted;
mod proxy;
mod server;
mod sets;
mod tls;

pub use proxy::Proxy;
pub use server::{Server, free_port};
pub use sets::{ClusterServers, SentinelServers, eventually};
pub use tls::Certificates;
