//! The masters of a cluster and which slots they have, kept up in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::address::Endpoint;
use super::batch::Entry;
use super::breaker::BreakerState;
use super::connect::{Profile, Target, ask, text};
use super::counters::Counting;
use super::fault::Fault;
use super::node::{Form, Limit, Node, chance};
use super::slot::SLOTS;

/// More servers than any cluster has; a server that names more is not followed.
const MOST_NODES: usize = 1024;
/// No server has the slot.
const NOBODY: u16 = u16::MAX;

/// A cluster. Dropping it ends its task and its nodes.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeper.abort();
        *self.shared.map.write() = Arc::new(Map::empty());
    }
}

#[derive(Debug)]
struct Shared {
    seeds: Vec<Endpoint>,
    profile: Arc<Profile>,
    counting: Arc<Counting>,
    handle: Handle,
    map: RwLock<Arc<Map>>,
    /// Why the map could not be drawn.
    fault: Mutex<Fault>,
    wake: Arc<Notify>,
    drawn: watch::Sender<bool>,
}

/// Who has which slot.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) nodes: Vec<(Endpoint, Arc<Node>)>,
    owners: Box<[u16]>,
}

impl Map {
    fn empty() -> Map {
        Map { nodes: Vec::new(), owners: vec![NOBODY; SLOTS].into() }
    }

    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        let owner = *self.owners.get(usize::from(slot))?;
        self.nodes.get(usize::from(owner)).map(|(_, node)| node)
    }

    fn node(&self, endpoint: &Endpoint) -> Option<usize> {
        self.nodes.iter().position(|(known, _)| known == endpoint)
    }
}

impl Cluster {
    /// Starts looking for the nodes in the background.
    pub(super) fn open(
        seeds: Vec<Endpoint>,
        profile: Arc<Profile>,
        counting: Arc<Counting>,
        handle: &Handle,
    ) -> Cluster {
        let shared = Arc::new(Shared {
            seeds,
            profile,
            counting,
            handle: handle.clone(),
            map: RwLock::new(Arc::new(Map::empty())),
            fault: Mutex::new(Fault::Down("not connected to the cluster yet".into())),
            wake: Arc::default(),
            drawn: watch::Sender::new(false),
        });
        let keeper = handle.spawn(Arc::clone(&shared).keep()).abort_handle();
        Cluster { shared, keeper }
    }

    pub(super) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.shared.map.read())
    }

    /// Why there is no map yet, or none of a slot.
    pub(super) fn fault(&self, slot: Option<u16>) -> Fault {
        match slot {
            Some(slot) if *self.shared.drawn.borrow() => Fault::Down(
                format!("no server of the cluster has slot {slot}: see CLUSTER INFO").into(),
            ),
            _ => self.shared.fault.lock().clone(),
        }
    }

    /// Has the map drawn anew soon.
    pub(super) fn refresh(&self) {
        self.shared.wake.notify_one();
    }

    /// Waits for the first map. The caller limits the time.
    pub(super) async fn drawn(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.drawn.subscribe().wait_for(|drawn| *drawn).await;
    }

    /// The node at an address that another one named; for `slot`, it is the owner from now on.
    pub(super) fn follow(&self, endpoint: &Endpoint, slot: Option<u16>) -> Option<Arc<Node>> {
        let mut current = self.shared.map.write();
        let at = current.node(endpoint);
        if at.is_none() && current.nodes.len() >= MOST_NODES {
            return None;
        }
        if at.is_none_or(|at| slot.is_some_and(|s| current.owners[usize::from(s)] != at as u16)) {
            let mut map = Map::clone(&current);
            let at = at.unwrap_or_else(|| {
                map.nodes.push((endpoint.clone(), self.shared.node(endpoint)));
                map.nodes.len() - 1
            });
            if let Some(slot) = slot {
                map.owners[usize::from(slot)] = at as u16;
            }
            *current = Arc::new(map);
        }
        let at = current.node(endpoint)?;
        Some(Arc::clone(&current.nodes[at].1))
    }
}

impl Shared {
    fn node(&self, endpoint: &Endpoint) -> Arc<Node> {
        Arc::new(Node::open(
            Target::Fixed(endpoint.clone()),
            Arc::clone(&self.profile),
            Arc::clone(&self.counting),
            &self.handle,
            Arc::clone(&self.wake),
        ))
    }

    /// The cluster's task: draws the map whenever somebody noticed that it may be wrong, and now and
    /// then.
    async fn keep(self: Arc<Self>) {
        let options = &self.profile.options;
        let mut pause = options.retry_min;
        loop {
            let whole = match self.draw().await {
                Ok(whole) => {
                    self.drawn.send_replace(true);
                    whole
                }
                Err(fault) => {
                    *self.fault.lock() = fault;
                    false
                }
            };
            if whole {
                pause = options.retry_min;
                let tick = tokio::time::timeout(options.health_interval, self.wake.notified());
                let _ = tick.await;
            } else {
                // Where a replica takes over, nobody but the others can say so.
                pause = (pause * 2).min(options.retry_max).min(options.health_interval);
            }
            tokio::time::sleep(pause / 2 + (pause / 2).mul_f64(share())).await;
        }
    }

    /// Asks one node after the other for the slots. Whether all are had by nodes that can be reached.
    async fn draw(&self) -> Result<bool, Fault> {
        let mut fault = Fault::Down("no node of the cluster is known".into());
        let known = self.map.read().nodes.clone();
        let turn = chance() as usize;
        for i in 0..known.len() {
            let (endpoint, node) = &known[turn.wrapping_add(i) % known.len()];
            if node.breaker() != BreakerState::Closed {
                continue;
            }
            let entry = Entry { slot: 0, cmd: slots(), script: None };
            let limit =
                Limit { start: Instant::now(), deadline: self.profile.options.write_deadline };
            match node.call(&[(&entry, Form::Plain)], limit).await {
                Ok((label, values)) => match values.into_iter().next() {
                    Some(Value::ServerError(e)) => fault = Fault::answered(&label, &e),
                    Some(value) => match self.redraw(&value, endpoint) {
                        Ok(whole) => return Ok(whole),
                        Err(error) => fault = error,
                    },
                    None => {}
                },
                Err(error) => fault = error,
            }
        }
        for i in 0..self.seeds.len() {
            let seed = &self.seeds[turn.wrapping_add(i) % self.seeds.len()];
            match self.ask_seed(seed).await.and_then(|value| self.redraw(&value, seed)) {
                Ok(whole) => return Ok(whole),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    async fn ask_seed(&self, seed: &Endpoint) -> Result<Value, Fault> {
        let label = seed.to_string();
        let (mut connection, _) = self.profile.connect(seed).await?;
        let deadline = self.profile.options.connect_deadline;
        let cmd = slots();
        let answer = ask(&mut connection, &label, &cmd);
        tokio::time::timeout(deadline, answer).await.map_err(|_| {
            Fault::Down(format!("no answer from {label} within {deadline:?}").into())
        })?
    }

    /// Takes over an answer to `CLUSTER SLOTS`; nodes that are known keep their connections.
    fn redraw(&self, answer: &Value, asked: &Endpoint) -> Result<bool, Fault> {
        let ranges = parse(answer, asked).filter(|ranges| !ranges.is_empty()).ok_or_else(|| {
            Fault::Down(format!("{asked} knows of no slots: the cluster is not set up").into())
        })?;
        let mut current = self.map.write();
        let mut map = Map::empty();
        for (first, last, endpoint) in ranges {
            let at = match map.node(&endpoint) {
                Some(at) => at,
                None if map.nodes.len() >= MOST_NODES => continue,
                None => {
                    let node = match current.node(&endpoint) {
                        Some(at) => Arc::clone(&current.nodes[at].1),
                        None => self.node(&endpoint),
                    };
                    map.nodes.push((endpoint, node));
                    map.nodes.len() - 1
                }
            };
            map.owners[usize::from(first)..=usize::from(last)].fill(at as u16);
        }
        let whole = map.owners.iter().all(|&owner| owner != NOBODY)
            && map.nodes.iter().all(|(_, node)| node.breaker() == BreakerState::Closed);
        *current = Arc::new(map);
        Ok(whole)
    }
}

fn slots() -> Cmd {
    let mut cmd = redis::cmd("CLUSTER");
    cmd.arg("SLOTS");
    cmd
}

/// First slot, last slot and master of each range.
fn parse(answer: &Value, asked: &Endpoint) -> Option<Vec<(u16, u16, Endpoint)>> {
    let Value::Array(ranges) = answer else { return None };
    let mut parsed = Vec::with_capacity(ranges.len());
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else {
            return None;
        };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        if first > last || usize::from(last) >= SLOTS {
            return None;
        }
        let Some(Value::Int(port)) = master.get(1) else { return None };
        let host = master.first().and_then(text).unwrap_or_default();
        // A node that does not know its own name cannot be reached by it.
        if host != "?" {
            parsed.push((first, last, named(host, u16::try_from(*port).ok()?, asked)?));
        }
    }
    Some(parsed)
}

/// An address as a node named it: without a host it means the host that was asked.
pub(super) fn named(host: &str, port: u16, asked: &Endpoint) -> Option<Endpoint> {
    match (host, asked) {
        ("", Endpoint::Tcp(host, _)) => Some(Endpoint::Tcp(host.clone(), port)),
        ("", Endpoint::Unix(_)) => None,
        _ => Some(Endpoint::Tcp(host.into(), port)),
    }
}

fn share() -> f64 {
    f64::from(chance()) / f64::from(u32::MAX)
}

/// How soon a waiter looks again.
pub(super) const LOOK: Duration = Duration::from_millis(5);
