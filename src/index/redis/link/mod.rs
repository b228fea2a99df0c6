//! The network between the index and its server: deadlines, breakers, reconnecting, clusters.
//!
//! A [`Link`] belongs to the tokio runtime in which it was opened: one task a server keeps its
//! connection, and one more a cluster its slots. No call makes a task, and dropping the link ends all
//! of them. Calls may come from any executor.

mod address;
mod batch;
mod breaker;
mod check;
mod cluster;
mod connect;
mod counters;
mod fault;
mod node;
mod options;
mod secret;
mod slot;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{ServerError, Value};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use address::StoreAddress;
pub(super) use batch::{Batch, Script};
pub use breaker::BreakerState;
pub use check::{StoreWarning, WarningKind};
pub use counters::StoreCounters;
#[cfg(test)]
use fault::Condition;
pub(super) use fault::Fault;
pub use options::StoreOptions;
pub use secret::Secret;

use crate::error::Error;
use address::{Endpoint, Place};
use batch::Entry;
use cluster::{Cluster, LOOK, named};
use connect::{Profile, Target};
use counters::{Counting, add};
use node::{Form, Limit, Node};

/// How often a command is sent at most: a slot may be found moved, then moving, and a script gone.
const MOST_ROUNDS: usize = 5;

/// The way to a store.
#[derive(Debug)]
pub(super) struct Link {
    servers: Servers,
    profile: Arc<Profile>,
    counting: Arc<Counting>,
    permits: Semaphore,
    handle: Handle,
}

#[derive(Debug)]
enum Servers {
    One(Arc<Node>),
    Cluster(Cluster),
}

/// One command on its way.
struct Errand {
    /// Which command of the batch.
    at: usize,
    form: Form,
    node: Arc<Node>,
}

/// The commands that go to one server together.
struct Group<'a> {
    node: Arc<Node>,
    /// Which commands of the batch.
    at: Vec<usize>,
    commands: Vec<(&'a Entry, Form)>,
}

fn group(entries: &[Entry], errands: impl Iterator<Item = Errand>) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for Errand { at, form, node } in errands {
        let known = groups.iter().position(|group| Arc::ptr_eq(&group.node, &node));
        let group = known.unwrap_or_else(|| {
            groups.push(Group { node, at: Vec::new(), commands: Vec::new() });
            groups.len() - 1
        });
        groups[group].at.push(at);
        groups[group].commands.push((&entries[at], form));
    }
    groups
}

impl Link {
    /// Starts connecting in the background, and returns at once: the server need not be there.
    ///
    /// # Errors
    ///
    /// An option is out of range, a file or variable that is named is missing, or no tokio runtime
    /// is around.
    pub(super) fn open(address: StoreAddress, options: StoreOptions) -> Result<Link, Error> {
        let handle = Handle::try_current().map_err(|_| {
            Error::invalid("a store is opened inside a tokio runtime, with its timer and I/O on")
        })?;
        let profile = Arc::new(Profile::new(&address, options)?);
        let counting = Arc::new(Counting::default());
        let node = |target| {
            let (profile, counting) = (Arc::clone(&profile), Arc::clone(&counting));
            Servers::One(Arc::new(Node::open(target, profile, counting, &handle, Arc::default())))
        };
        let servers = match address.place {
            Place::One(endpoint) => node(Target::Fixed(endpoint)),
            Place::Sentinel { sentinels, master } => {
                let profile = Arc::new(profile.for_sentinels());
                node(Target::Master { sentinels, master, profile })
            }
            Place::Cluster(seeds) => Servers::Cluster(Cluster::open(
                seeds,
                Arc::clone(&profile),
                Arc::clone(&counting),
                &handle,
            )),
        };
        let permits = Semaphore::new(profile.options.in_flight);
        Ok(Link { servers, profile, counting, permits, handle })
    }

    /// Waits until every server has a connection, at most `within`.
    ///
    /// # Errors
    ///
    /// Why there is none yet. The link goes on trying.
    pub(super) async fn ready(&self, within: Duration) -> Result<(), Fault> {
        let limit = Limit { start: Instant::now(), deadline: within };
        let cluster = match &self.servers {
            Servers::One(node) => return node.ready(limit).await,
            Servers::Cluster(cluster) => cluster,
        };
        let timeout = {
            let _context = self.handle.enter();
            tokio::time::timeout(within, cluster.drawn())
        };
        timeout.await.map_err(|_| cluster.fault(None))?;
        // A node may leave the map while it is waited for.
        loop {
            let nodes = cluster.map().nodes.clone();
            let mut fault = None;
            for (_, node) in nodes {
                let step = Limit { start: Instant::now(), deadline: LOOK };
                fault = node.ready(step).await.err().or(fault);
            }
            match fault {
                None => return Ok(()),
                Some(fault) if limit.start.elapsed() >= within => return Err(fault),
                Some(_) => {}
            }
        }
    }

    /// Sends a batch, and returns the replies in the order of its commands. It ends by the batch's
    /// deadline, whatever the servers do.
    ///
    /// # Errors
    ///
    /// The fault of all commands. In a cluster a server that fails is the fault of its commands only.
    pub(super) async fn send(&self, batch: Batch) -> Result<Vec<Result<Value, Fault>>, Fault> {
        add(&self.counting.calls, 1);
        if batch.entries.is_empty() {
            return Ok(Vec::new());
        }
        let options = &self.profile.options;
        let Ok(_permit) = self.permits.try_acquire() else {
            let fault = Fault::Busy(options.in_flight);
            self.counting.failed(&fault);
            return Err(fault);
        };
        let deadline = if batch.reads { options.read_deadline } else { options.write_deadline };
        let limit = Limit { start: Instant::now(), deadline };
        let result = self.exchange(&batch.entries, limit).await;
        match &result {
            Ok(replies) => {
                let mut whole = true;
                for fault in replies.iter().filter_map(|reply| reply.as_ref().err()) {
                    self.counting.failed(fault);
                    whole &= matches!(fault, Fault::Server(_) | Fault::Denied(_));
                }
                if whole {
                    self.counting.call_took(limit.start.elapsed());
                }
            }
            Err(fault) => self.counting.failed(fault),
        }
        result
    }

    async fn exchange(
        &self,
        entries: &[Entry],
        limit: Limit,
    ) -> Result<Vec<Result<Value, Fault>>, Fault> {
        let mut replies: Vec<Option<Result<Value, Fault>>> = entries.iter().map(|_| None).collect();
        let mut errands = self.errands(entries, &mut replies)?;
        for round in 0..MOST_ROUNDS {
            let groups = group(entries, errands.drain(..));
            let calls = groups.iter().map(|Group { node, commands, .. }| async move {
                // A server that another one named has perhaps no connection yet.
                if round > 0 {
                    node.ready(limit).await?;
                }
                node.call(commands, limit).await
            });
            let answers = join_all(calls).await;
            for (Group { node, at: indices, .. }, answer) in groups.iter().zip(answers) {
                match answer {
                    Ok((label, values)) => {
                        for (&at, value) in indices.iter().zip(values) {
                            replies[at] = Some(match value {
                                Value::ServerError(error) => {
                                    let again =
                                        self.recover(&entries[at], at, node, &label, &error);
                                    errands.extend(again);
                                    Err(Fault::answered(&label, &error))
                                }
                                value => Ok(value),
                            });
                        }
                    }
                    Err(fault) => {
                        match &self.servers {
                            Servers::One(_) if round == 0 => return Err(fault),
                            Servers::One(_) => {}
                            Servers::Cluster(cluster) => cluster.refresh(),
                        }
                        indices.iter().for_each(|&at| replies[at] = Some(Err(fault.clone())));
                    }
                }
            }
            if errands.is_empty() {
                break;
            }
            errands.sort_by_key(|errand| errand.at);
        }
        // Each was sent, or has the reason why not.
        let unsent = || Err(Fault::Down("not sent".into()));
        Ok(replies.into_iter().map(|reply| reply.unwrap_or_else(unsent)).collect())
    }

    /// Who each command goes to first.
    fn errands(
        &self,
        entries: &[Entry],
        replies: &mut [Option<Result<Value, Fault>>],
    ) -> Result<Vec<Errand>, Fault> {
        let plain = |at, node: &Arc<Node>| Errand { at, form: Form::Plain, node: Arc::clone(node) };
        let cluster = match &self.servers {
            Servers::One(node) => {
                return Ok((0..entries.len()).map(|at| plain(at, node)).collect());
            }
            Servers::Cluster(cluster) => cluster,
        };
        let map = cluster.map();
        if map.nodes.is_empty() {
            return Err(cluster.fault(None));
        }
        let mut errands = Vec::with_capacity(entries.len());
        for (at, entry) in entries.iter().enumerate() {
            match map.owner(entry.slot) {
                Some(node) => errands.push(plain(at, node)),
                None => {
                    cluster.refresh();
                    replies[at] = Some(Err(cluster.fault(Some(entry.slot))));
                }
            }
        }
        Ok(errands)
    }

    /// What to do after an answered error: perhaps the same command once more.
    fn recover(
        &self,
        entry: &Entry,
        at: usize,
        node: &Arc<Node>,
        label: &str,
        error: &ServerError,
    ) -> Option<Errand> {
        match (error.code(), &self.servers) {
            ("NOSCRIPT", _) if entry.script.is_some() => {
                add(&self.counting.scripts_reloaded, 1);
                Some(Errand { at, form: Form::Source, node: Arc::clone(node) })
            }
            ("MOVED" | "ASK", Servers::Cluster(cluster)) => {
                let moved = error.code() == "MOVED";
                if moved {
                    cluster.refresh();
                }
                let endpoint = redirect(error.details().unwrap_or_default(), label)?;
                let node = cluster.follow(&endpoint, moved.then_some(entry.slot))?;
                add(&self.counting.redirected, 1);
                Some(Errand { at, form: if moved { Form::Plain } else { Form::Asking }, node })
            }
            ("TRYAGAIN", Servers::Cluster(_)) => {
                Some(Errand { at, form: Form::Plain, node: Arc::clone(node) })
            }
            ("CLUSTERDOWN" | "MASTERDOWN" | "READONLY", Servers::Cluster(cluster)) => {
                cluster.refresh();
                None
            }
            ("READONLY", Servers::One(node)) => {
                node.renew();
                None
            }
            _ => None,
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster(_))
    }

    /// What happened so far.
    pub(super) fn counters(&self) -> StoreCounters {
        let mut counters = self.counting.read();
        let free = self.permits.available_permits();
        counters.in_flight = (self.profile.options.in_flight - free) as u64;
        let nodes = self.nodes();
        counters.servers = nodes.len() as u64;
        let states = nodes.iter().map(|node| node.breaker());
        counters.servers_ready =
            states.clone().filter(|&state| state == BreakerState::Closed).count() as u64;
        counters.breaker = states.max().unwrap_or(BreakerState::Open);
        counters
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.servers {
            Servers::One(node) => vec![Arc::clone(node)],
            Servers::Cluster(cluster) => {
                cluster.map().nodes.iter().map(|(_, node)| Arc::clone(node)).collect()
            }
        }
    }
}

/// The address in `3999 127.0.0.1:6381`, as answered by `asked`.
fn redirect(details: &str, asked: &str) -> Option<Endpoint> {
    let (host, port) = details.split_whitespace().nth(1)?.rsplit_once(':')?;
    let (asked, _) = asked.rsplit_once(':')?;
    let asked = Endpoint::Tcp(asked.trim_matches(['[', ']']).into(), 0);
    named(host, port.parse().ok()?, &asked)
}
