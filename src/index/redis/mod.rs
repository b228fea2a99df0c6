//! The index on a Redis or Valkey server, shared by several processes. See `docs/redis.md`.
//!
//! Everything lies in the store; a client keeps only facts that cannot change. Whatever one client
//! applied, the lookups of all see.
//!
//! Ids of spaces, vocabularies and workers are numbers of one process. Between processes their texts
//! count: [`RedisIndex::name_worker`] and its siblings say what an id is called. An id without a text
//! is called by its number.

mod assign;
mod bind;
mod called;
mod chain;
#[cfg(feature = "conformance")]
pub mod damage;
mod join;
mod key;
mod lay;
mod link;
mod local;
mod meaning;
mod names;
mod notes;
mod open;
mod place;
mod read;
mod recent;
mod remove;
mod replica;
mod reply;
mod run;
mod script;
mod store;
mod sweep;
mod table;
mod tally;
mod turn;
mod unplaced;

use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;

use self::key::Keys;
use self::link::{Batch, Link};
pub use self::link::{
    BreakerState, Secret, StoreAddress, StoreCounters, StoreOptions, StoreWarning, WarningKind,
};
use self::local::Local;
pub use self::notes::{Notes, Stowed};
pub use self::replica::{Anew, Joined, Mark, Progress};
pub use self::turn::{Once, Turn};
use super::{Applied, BlockSource, Change, Home, Index, Matches, Query, Stats};
use crate::block::{SpaceId, VocabularyId, WorkerId};
use crate::error::{Error, ErrorKind};

/// How a [`RedisIndex`] uses its store.
///
/// # Defaults
///
/// `namespace`: `default`. `secret`: made in the store. No `offer`; not `only_reads`. `ttl`: 24 hours. `unplaced_per_worker`: 65,536,
/// as in memory. `groups`: 8 in a cluster, elsewhere 1. No `owner`;
/// `owner_ttl`: 30 s; `lease`: 10 s.
#[derive(Clone)]
pub struct RedisOptions {
    /// Part of every key: stores of different namespaces share a server and nothing else. Letters,
    /// digits, `.`, `_` and `-`, at most 64.
    pub namespace: String,
    /// The secret of the cluster, if it shall not lie in the store. All clients must have the same.
    pub secret: Option<[u8; 32]>,
    /// The secret to make a store with that has none and shall keep its own; random if absent. So whoever made
    /// digests before the store was there can use it afterwards.
    pub offer: Option<[u8; 32]>,
    /// Whether this client never makes a store where none is: who only reads must not decide on the secret.
    pub only_reads: bool,
    /// After this time without a change or a refresh, what is in the store goes.
    pub ttl: Duration,
    /// How many unplaced blocks one worker may hold; further ones are refused and counted.
    pub unplaced_per_worker: usize,
    /// How many groups the names of a vocabulary are divided into, 1 to 256. Each lies in one slot of a cluster, and a
    /// batch is one script for each that it meets: more of them spread better, fewer cost less. Counts when the
    /// store is made, and is read from it afterwards.
    pub groups: Option<u32>,
    /// Who assigns and writes, unique among all processes. With an owner, the workers that it
    /// assigns count only while it calls [`RedisIndex::heartbeat`].
    pub owner: Option<String>,
    /// How long an owner lives after a heartbeat.
    pub owner_ttl: Duration,
    /// How long after an owner's last batch of a worker another may apply that worker's batches.
    pub lease: Duration,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        RedisOptions {
            namespace: "default".to_owned(),
            secret: None,
            offer: None,
            only_reads: false,
            ttl: Duration::from_secs(24 * 3600),
            unplaced_per_worker: 65_536,
            groups: None,
            owner: None,
            owner_ttl: Duration::from_secs(30),
            lease: Duration::from_secs(10),
        }
    }
}

/// Leaves the secret out.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("namespace", &self.namespace)
            .field("secret", &self.secret.is_some())
            .field("offer", &self.offer.is_some())
            .field("only_reads", &self.only_reads)
            .field("ttl", &self.ttl)
            .field("unplaced_per_worker", &self.unplaced_per_worker)
            .field("groups", &self.groups)
            .field("owner", &self.owner)
            .field("owner_ttl", &self.owner_ttl)
            .field("lease", &self.lease)
            .finish()
    }
}

/// How many groups the names of a vocabulary may be divided into, and into how many they are where nobody says so: in a
/// cluster, where each is a slot, and on one server.
const GROUPS: RangeInclusive<u32> = 1..=256;
const USUAL_GROUPS: [u32; 2] = [8, 1];

/// An [`Index`] in a store that other processes use, too.
///
/// Its futures need a `tokio` runtime around them.
#[derive(Debug)]
pub struct RedisIndex {
    link: Link,
    keys: Keys,
    options: RedisOptions,
    local: Mutex<Local>,
}

impl RedisIndex {
    /// Connects to the store at this URL, and waits until it is there, 5 s at most.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a URL or options out of range, [`ErrorKind::Unavailable`] without a
    /// server.
    pub async fn connect(url: &str, options: RedisOptions) -> Result<RedisIndex, Error> {
        let index = RedisIndex::open(url.parse()?, StoreOptions::default(), options)?;
        index.link.ready(Duration::from_secs(5)).await?;
        Ok(index)
    }

    /// An index that connects in the background: the store need not be there yet, and calls fail with
    /// [`ErrorKind::Unavailable`] as long as it is not.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for options out of range, or outside of a tokio runtime.
    pub fn open(
        address: StoreAddress,
        store: StoreOptions,
        options: RedisOptions,
    ) -> Result<RedisIndex, Error> {
        let fits = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let namespace = &options.namespace;
        if namespace.is_empty() || namespace.len() > 64 || !namespace.chars().all(fits) {
            return Err(Error::invalid(format!(
                "the namespace '{}' is not 1 to 64 letters, digits, '.', '_' or '-'",
                key::shown(namespace.as_bytes())
            )));
        }
        if let Some(groups) = options.groups.filter(|groups| !GROUPS.contains(groups)) {
            return Err(Error::invalid(format!("{groups} groups are not 1 to 256")));
        }
        if options.ttl < Duration::from_secs(60) {
            return Err(Error::invalid(format!(
                "a ttl of {:?} is less than a minute",
                options.ttl
            )));
        }
        if options.owner.as_ref().is_some_and(|owner| owner.is_empty() || owner.len() > 255) {
            return Err(Error::invalid("an owner's text is not 1 to 255 bytes"));
        }
        let keys = Keys::new(namespace);
        let link = Link::open(address, store)?;
        Ok(RedisIndex { link, keys, options, local: Mutex::default() })
    }

    /// How the way to the store is doing.
    pub fn counters(&self) -> StoreCounters {
        self.link.counters()
    }

    /// What about the store will bite later: eviction that breaks chains, commands that its user may
    /// not run, an old server, a cluster that was taken for one server. Tries commands on keys of its
    /// own, which are gone afterwards.
    pub async fn check(&self) -> Vec<StoreWarning> {
        let (hash, set) = (self.keys.trial("h"), self.keys.trial("s"));
        let mut trials = Batch::new();
        let mut attempt = |key: &[u8], name: &str, args: &[&[u8]]| {
            let mut all = vec![key];
            all.extend(args);
            trials.push(key, command(name, &all));
        };
        let one = b"1".as_slice();
        for (name, args) in [
            ("HSETNX", &[one, one][..]),
            ("HINCRBY", &[one, one]),
            ("HGET", &[one]),
            ("HMGET", &[one]),
            ("HGETALL", &[]),
            ("HSCAN", &[b"0"]),
            ("HDEL", &[one]),
            ("EXPIRE", &[one]),
            ("EXISTS", &[]),
            ("UNLINK", &[]),
        ] {
            attempt(&hash, name, args);
        }
        for (name, args) in [
            ("SADD", &[one][..]),
            ("SCARD", &[]),
            ("SMEMBERS", &[]),
            ("SISMEMBER", &[one]),
            ("SRANDMEMBER", &[]),
            ("SSCAN", &[b"0"]),
            ("SREM", &[one]),
            ("DEL", &[]),
        ] {
            attempt(&set, name, args);
        }
        attempt(&hash, "DEL", &[]);
        static SCRIPT: link::Script = link::Script::new("return 1");
        trials.script(&SCRIPT, &[&hash], &[]);
        self.link.check(trials).await
    }

    /// What a space is called in the store: its tenant and model. Before the space is used.
    pub fn name_space(&self, space: SpaceId, text: &str) {
        self.local.lock().texts.name_space(space, text);
    }

    /// What a vocabulary is called in the store. Before it is used.
    pub fn name_vocabulary(&self, vocabulary: VocabularyId, text: &str) {
        self.local.lock().texts.name_vocabulary(vocabulary, text);
    }

    /// What a worker is called in the store: its tenant, pod and rank. Before it is used.
    pub fn name_worker(&self, worker: WorkerId, text: &str) {
        let mut local = self.local.lock();
        if local.texts.name_worker(worker, text) {
            // Tables that were read before know the worker by another id.
            local.tables.clear();
        }
    }

    /// Whose calls these are, if anybody's.
    pub fn owner_text(&self) -> Option<&str> {
        self.options.owner.as_deref()
    }

    /// What a worker of an answer is called, if it was named here or another process registered it
    /// under a text.
    pub fn worker_name(&self, worker: WorkerId) -> Option<String> {
        self.local.lock().texts.known(worker).map(str::to_owned)
    }

    /// One round trip.
    async fn send(&self, batch: Batch) -> Result<Replies, Error> {
        if batch.len() == 0 {
            return Ok(Vec::new().into_iter());
        }
        Ok(self.link.send(batch).await?.into_iter())
    }

    /// One command.
    async fn ask(&self, key: &[u8], command: redis::Cmd) -> Result<Value, Error> {
        let mut batch = Batch::new();
        batch.push(key, command);
        reply::value(key, next(&mut self.send(batch).await?))
    }

    /// One step through a set or a hash: the cursor to go on from, `0` at the end, and what lies in between.
    async fn scan(&self, how: &str, key: &[u8], from: &[u8]) -> Result<(Vec<u8>, Value), Error> {
        let some = command(how, &[key, from, b"COUNT", b"256"]);
        let reply = reply::list(key, self.ask(key, some).await?)?;
        let [cursor, found]: [Value; 2] =
            reply.try_into().map_err(|_| reply::damaged(key, "answer"))?;
        Ok((reply::bytes(key, cursor)?, found))
    }

    fn ttl(&self) -> Vec<u8> {
        self.options.ttl.as_secs().to_string().into_bytes()
    }

    fn member(&self, worker: WorkerId) -> Result<local::Member, Error> {
        self.local.lock().members.get(&worker).copied().ok_or_else(|| {
            Error::new(ErrorKind::UnknownWorker, format!("worker {} has no home", worker.0))
        })
    }
}

type Replies = std::vec::IntoIter<Result<Value, link::Fault>>;

/// The next reply. The link answers every command.
fn next(replies: &mut Replies) -> Result<Value, link::Fault> {
    replies.next().unwrap_or(Ok(Value::Nil))
}

fn command(name: &str, args: &[&[u8]]) -> redis::Cmd {
    let size: usize = args.iter().map(|arg| arg.len()).sum();
    let mut command = redis::Cmd::with_capacity(args.len() + 1, name.len() + size);
    command.arg(name);
    for arg in args {
        command.arg(*arg);
    }
    command
}

impl Index for RedisIndex {
    fn assign(
        &self,
        worker: WorkerId,
        home: Home,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.settle_in(worker, home)
    }

    async fn apply(&self, worker: WorkerId, changes: &[Change<'_>]) -> Result<Applied, Error> {
        let member = self.member(worker)?;
        self.apply_stamped(&member, changes, None).await
    }

    async fn lookup(
        &self,
        query: &Query<'_>,
        blocks: &mut (impl BlockSource + Send),
        matches: &mut Matches,
    ) -> Result<(), Error> {
        self.lookup_present(query, blocks, matches).await.map(drop)
    }

    async fn remove(&self, worker: WorkerId) -> Result<(), Error> {
        self.forget(worker).await
    }

    async fn evicted(&self, _worker: WorkerId) -> Result<bool, Error> {
        Ok(false)
    }

    async fn stats(&self) -> Result<Stats, Error> {
        self.sizes().await
    }
}
