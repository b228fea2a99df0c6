//! The link against real servers.

#[path = "../../../../../tests/redis_support/mod.rs"]
mod redis_support;

mod address;
mod cluster;
mod one;
mod secure;
mod sentinel;
mod silence;

use std::time::Duration;

use redis::Value;
use tokio::runtime::Runtime;

use super::{Batch, Fault, Link, Script, StoreOptions};

const PATIENCE: Duration = Duration::from_secs(120);

static DOUBLE: Script = Script::new("return redis.call('INCRBY', KEYS[1], 2 * ARGV[1])");

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Options for machines under load: a reply may take a second, and nothing waits for long.
fn options() -> StoreOptions {
    StoreOptions {
        read_deadline: Duration::from_secs(1),
        write_deadline: Duration::from_secs(2),
        retry_max: Duration::from_millis(400),
        health_interval: Duration::from_millis(300),
        ..StoreOptions::default()
    }
}

fn open(address: &str, options: StoreOptions) -> Link {
    Link::open(address.parse().unwrap(), options).unwrap()
}

async fn ready(address: &str, options: StoreOptions) -> Link {
    let link = open(address, options);
    link.ready(PATIENCE).await.unwrap();
    link
}

fn get(batch: &mut Batch, key: &str) {
    let mut cmd = redis::cmd("GET");
    cmd.arg(key);
    batch.push(key.as_bytes(), cmd);
}

fn set(batch: &mut Batch, key: &str, value: &str) {
    let mut cmd = redis::cmd("SET");
    cmd.arg(key).arg(value);
    batch.push(key.as_bytes(), cmd);
}

/// Sends one command to write a key, and says whether it worked.
async fn try_set(link: &Link, key: &str, value: &str) -> Result<(), Fault> {
    let mut batch = Batch::new();
    set(&mut batch, key, value);
    link.send(batch).await?.remove(0).map(drop)
}

async fn try_get(link: &Link, key: &str) -> Result<Value, Fault> {
    let mut batch = Batch::reading();
    get(&mut batch, key);
    link.send(batch).await?.remove(0)
}

fn bytes(text: &str) -> Value {
    Value::BulkString(text.as_bytes().to_vec())
}

/// Repeats a call until it works.
async fn until_ok<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, Fault>) -> T {
    let start = std::time::Instant::now();
    loop {
        match call().await {
            Ok(value) => return value,
            Err(fault) => assert!(start.elapsed() < PATIENCE, "{what}: still {fault}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
