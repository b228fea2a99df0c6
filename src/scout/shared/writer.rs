//! Keeps in a store what a scout's workers hold, behind it.
//!
//! A worker's part of the store is begun from a snapshot and then kept up step by step, each on top of exactly
//! the one before, by whoever has its lease. Whatever does not fit (a step that was dropped, a publisher that
//! began anew, names that moved, a store that was emptied, another writer's half applied batch, a store that
//! did something else with a step than memory) leads to the same thing: a new beginning.

mod part;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, join_all, select};
use parking_lot::Mutex;

use self::part::Part;
use super::facts::{WorkerFacts, adapters_to_json};
use super::outbox::Outbox;
use super::reader::ADAPTERS;
use super::{space_text, vocabulary_text, worker_text};
use crate::block::WorkerId;
use crate::error::{Error, ErrorKind};
use crate::index::redis::RedisIndex;
use crate::ingest::Trust;
use crate::ingest::snapshot::Snapshot;
use crate::scout::{Scout, WorkerStatus};

/// Workers whose steps are sent at the same time.
const TOGETHER: usize = 16;

/// How often everything is said again: somebody may have emptied the store.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// How long to rest when the store did not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// How a [`Writer`] works.
///
/// # Defaults
///
/// `every`: 250 ms. `refresh`: 6 h, for a store whose entries end after 24 h. `lease`: 10 s, as in
/// [`RedisOptions`](crate::index::redis::RedisOptions).
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// How often it says where its workers stand, and looks whether those of others have lost their writer.
    pub every: Duration,
    /// How often the end of what the store holds is put off.
    pub refresh: Duration,
    /// How long a worker's lease lasts; the same as the index's.
    pub lease: Duration,
}

impl Default for WriterOptions {
    fn default() -> WriterOptions {
        WriterOptions {
            every: Duration::from_millis(250),
            refresh: Duration::from_secs(6 * 3600),
            lease: Duration::from_secs(10),
        }
    }
}

/// What became of workers' parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriterReport {
    /// Steps that this writer applied.
    pub applied: u64,
    /// Parts that it began anew.
    pub rebuilt: u64,
    /// Of these, because the store had done something else with a step than memory.
    pub diverged: u64,
    /// Copies and names that a new beginning could not say.
    pub left_out: u64,
    /// Workers whose part it keeps, and that is whole.
    pub following: u64,
    /// Workers whose part it is to begin anew.
    pub behind: u64,
    /// Workers whose part another writer keeps.
    pub elsewhere: u64,
    /// Steps of the worker that waits longest, in the order of batches.
    pub lag: u64,
    /// What went wrong last, until something went well.
    pub error: Option<String>,
}

/// Sees what a writer does.
#[derive(Clone, Debug, Default)]
pub struct WriterWatch(Arc<Mutex<WriterReport>>);

impl WriterWatch {
    /// What has become of it so far.
    pub fn report(&self) -> WriterReport {
        self.0.lock().clone()
    }
}

/// What routers tell workers apart by, asked for each worker when something is said of it.
#[derive(Clone)]
pub struct Labelling(Arc<dyn Fn(WorkerId) -> BTreeMap<String, String> + Send + Sync>);

impl Labelling {
    /// Labels as this says.
    pub fn new(
        of: impl Fn(WorkerId) -> BTreeMap<String, String> + Send + Sync + 'static,
    ) -> Labelling {
        Labelling(Arc::new(of))
    }
}

impl Default for Labelling {
    fn default() -> Labelling {
        Labelling::new(|_| BTreeMap::new())
    }
}

impl fmt::Debug for Labelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Labelling")
    }
}

/// What comes between two rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    None,
    /// Until something comes, or it is time to say where workers stand.
    Usual,
    /// The store did not answer.
    Pause,
}

/// What workers' parts need of a writer.
#[derive(Clone, Debug)]
struct Desk {
    index: Arc<RedisIndex>,
    outbox: Arc<Outbox>,
    options: WriterOptions,
    report: Arc<Mutex<WriterReport>>,
}

/// Keeps the workers of one scout in a store. The scout's [`Options::mirror`](crate::scout::Options::mirror) is the
/// outbox, and its [`digest_key`](crate::scout::Options::digest_key) that of the store.
#[derive(Debug)]
pub struct Writer {
    scout: Arc<Scout>,
    desk: Desk,
    labels: Labelling,
    parts: BTreeMap<WorkerId, Part>,
    /// What was said last of each worker, by its text.
    said: HashMap<String, Vec<u8>>,
    said_adapters: Vec<u8>,
    spoke: Option<Instant>,
    /// When everything was said last.
    told_all: Option<Instant>,
    /// Connections that had broken when parts were last looked at for what that may have cost.
    broken: u64,
    /// When that was.
    doubted: Option<Instant>,
}

impl Writer {
    /// A writer; [`run`](Writer::run) does the work.
    pub fn new(
        scout: Arc<Scout>,
        index: Arc<RedisIndex>,
        outbox: Arc<Outbox>,
        labels: Labelling,
        options: WriterOptions,
    ) -> Writer {
        let desk = Desk { index, outbox, options, report: Arc::default() };
        Writer {
            scout,
            desk,
            labels,
            parts: BTreeMap::new(),
            said: HashMap::new(),
            said_adapters: Vec::new(),
            spoke: None,
            told_all: None,
            broken: 0,
            doubted: None,
        }
    }

    /// To see what has become of it while it runs.
    pub fn watch(&self) -> WriterWatch {
        WriterWatch(Arc::clone(&self.desk.report))
    }

    /// Writes until `ends` does, whatever the store does; then sends what waits, for as long as a lease, and gives its
    /// leases back. Inside a tokio runtime with a timer.
    pub async fn run(mut self, ends: impl Future<Output = ()>) {
        let mut ends = pin!(ends);
        let mut rest = Rest::None;
        while self.rests(rest, &mut ends).await {
            rest = self.work().await;
        }
        let lease = self.desk.options.lease;
        let last = async {
            while self.work().await == Rest::None {}
            self.hand_over().await
        };
        // Where it fails, the leases end by themselves.
        let _ = tokio::time::timeout(lease, last).await;
    }

    /// Rests, unless it is the end.
    async fn rests(&self, rest: Rest, ends: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        matches!(select(ends, pin!(self.rest(rest))).await, Either::Right(_))
    }

    async fn rest(&self, rest: Rest) {
        match rest {
            Rest::None => tokio::task::yield_now().await,
            Rest::Pause => tokio::time::sleep(PAUSE).await,
            Rest::Usual => {
                let every = self.desk.options.every;
                // Either way there is something to look after.
                let _ = tokio::time::timeout(every, self.desk.outbox.wait()).await;
            }
        }
    }

    /// One round; how long to rest afterwards.
    async fn work(&mut self) -> Rest {
        let done = self.round().await;
        self.desk.report.lock().error = done.as_ref().err().map(Error::to_string);
        match done {
            Ok(true) => Rest::None,
            Ok(false) => Rest::Usual,
            Err(_) => Rest::Pause,
        }
    }

    /// Sends what waits, begins anew what has to, and says where workers stand; whether more waits.
    async fn round(&mut self) -> Result<bool, Error> {
        let is_time = self.spoke.is_none_or(|at| at.elapsed() >= self.desk.options.every);
        if is_time {
            self.meet();
            self.doubt();
        }
        let mut ready: Vec<&mut Part> =
            self.parts.values_mut().filter(|part| part.is_due(&self.desk)).collect();
        let mut failed = None;
        for some in ready.chunks_mut(TOGETHER) {
            let desk = &self.desk;
            let sent = join_all(some.iter_mut().map(|part| part.go_on(desk))).await;
            failed = sent.into_iter().find_map(Result::err).or(failed);
            if failed.as_ref().is_some_and(|error: &Error| error.kind() == ErrorKind::Unavailable) {
                break;
            }
        }
        if failed.is_none() {
            failed = self.rebuild().await.err();
        }
        self.count();
        if is_time {
            let said = self.speak().await;
            failed = failed.or(said.err());
        }
        match failed {
            Some(error) => Err(error),
            None => {
                let pending = self.desk.outbox.pending();
                let more = |worker: &WorkerId| self.parts.get(worker).is_none_or(Part::is_open);
                Ok(pending.iter().any(more))
            }
        }
    }

    /// Gets to know workers that were registered since.
    fn meet(&mut self) {
        for WorkerStatus { worker, registration, .. } in self.scout.workers() {
            let text = worker_text(&registration.tenant, &registration.pod, registration.rank);
            if let std::collections::btree_map::Entry::Vacant(new) = self.parts.entry(worker) {
                // One of the same name that was unregistered is this one now.
                self.desk.index.name_worker(worker, &text);
                let model = registration.model.as_deref();
                let space = space_text(&registration.tenant, model);
                new.insert(Part::new(worker, text, space));
            }
        }
        let texts: HashMap<&str, WorkerId> = self
            .parts
            .iter()
            .filter(|(_, p)| !p.is_leaving())
            .map(|(&w, p)| (p.text(), w))
            .collect();
        let replaced = |part: &Part| texts.get(part.text()).is_some_and(|&w| w != part.worker());
        let gone: Vec<WorkerId> = self
            .parts
            .values()
            .filter(|part| part.has_left() || part.is_leaving() && replaced(part))
            .map(Part::worker)
            .collect();
        for worker in gone {
            self.parts.remove(&worker);
            self.desk.outbox.forget(worker);
        }
    }

    /// A server whose connection broke may have been started anew with less, or another one may be in its place that
    /// had not heard all. Once all servers are there, parts are looked at.
    fn doubt(&mut self) {
        let link = self.desk.index.counters();
        let is_there = link.servers > 0 && link.servers_ready == link.servers;
        // A store that is late with everything would only get more to do.
        let is_early = self.doubted.is_some_and(|at| at.elapsed() < self.desk.options.lease);
        if link.opened == self.broken || !is_there || is_early {
            return;
        }
        (self.broken, self.doubted) = (link.opened, Some(Instant::now()));
        let several = link.servers > 1;
        self.parts.values_mut().for_each(|part| part.doubt(several));
    }

    /// Begins anew what has to be, all from one snapshot.
    async fn rebuild(&mut self) -> Result<(), Error> {
        let mut behind: Vec<&mut Part> =
            self.parts.values_mut().filter(|part| part.is_to_be_rebuilt()).collect();
        if behind.is_empty() {
            return Ok(());
        }
        // Steps that came until here are in the snapshot.
        behind.iter_mut().for_each(|part| part.draw_line(&self.desk));
        let scout = Arc::clone(&self.scout);
        let snapshot = tokio::task::spawn_blocking(move || scout.snapshot(0)).await;
        let snapshot: Snapshot = snapshot.map_err(|e| {
            Error::unavailable(format!("a snapshot for the store was not taken: {e}"))
        })?;
        let residencies = snapshot.image.residencies()?;
        let mut failed = None;
        for some in behind.chunks_mut(TOGETHER) {
            let (desk, snapshot, residencies) = (&self.desk, &snapshot, &residencies);
            let all = some.iter_mut().map(|part| part.begin_anew(desk, snapshot, residencies));
            failed = join_all(all).await.into_iter().find_map(Result::err).or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    fn count(&self) {
        let mut report = self.desk.report.lock();
        (report.following, report.behind, report.elsewhere) = (0, 0, 0);
        report.lag = 0;
        for part in self.parts.values() {
            let waits = self.desk.outbox.look(part.worker(), |steps| steps.len() as u64);
            match part {
                part if part.is_following() => {
                    report.following += 1;
                    report.lag = report.lag.max(waits.unwrap_or(0));
                }
                part if part.is_elsewhere() => report.elsewhere += 1,
                _ => report.behind += 1,
            }
        }
    }

    /// Says where the workers stand whose parts are kept here.
    async fn speak(&mut self) -> Result<(), Error> {
        let all = self.told_all.is_none_or(|at| at.elapsed() >= AGAIN);
        let (mut notes, mut said) = (Vec::new(), HashMap::new());
        for status in self.scout.workers() {
            let Some(part) = self.parts.get(&status.worker) else { continue };
            let Some(facts) = self.facts(&status, part) else { continue };
            let (text, note) = (part.text().to_owned(), facts.to_json());
            if all || self.said.get(&text) != Some(&note) {
                notes.push((text.clone(), note.clone()));
            }
            said.insert(text, note);
        }
        let withdrawn: Vec<String> =
            self.said.keys().filter(|text| !said.contains_key(*text)).cloned().collect();
        let (adapters, editions) = (self.scout.adapters(), self.scout.editions());
        let about_adapters = adapters_to_json(&adapters, &editions);
        if all || self.said_adapters != about_adapters {
            notes.push((ADAPTERS.to_owned(), about_adapters.clone()));
        }
        self.desk.index.announce(&notes, &withdrawn).await?;
        (self.said, self.said_adapters) = (said, about_adapters);
        self.spoke = Some(Instant::now());
        if all {
            self.told_all = self.spoke;
            let heard = self.desk.index.announced().await?;
            self.desk.index.forget_silent(&heard).await?;
        }
        Ok(())
    }

    /// Gives the leases back, so that another writer need not wait for their end.
    async fn hand_over(&self) -> Result<(), Error> {
        for part in self.parts.values().filter(|part| part.is_following()) {
            if let Some((life, ..)) = part.kept() {
                self.desk.index.hand_over(part.worker(), life).await?;
            }
        }
        Ok(())
    }

    /// What is to be said of a worker, if its part is kept here.
    fn facts(&self, status: &WorkerStatus, part: &Part) -> Option<WorkerFacts> {
        let (life, at, home) = part.kept()?;
        let trust = match (part.is_following(), status.trust) {
            (true, trust) => part.judged(trust),
            (false, _) => Trust::Syncing,
        };
        let registration = &status.registration;
        Some(WorkerFacts {
            tenant: registration.tenant.clone(),
            pod: registration.pod.clone(),
            rank: registration.rank,
            model: registration.model.clone(),
            labels: (self.labels.0)(status.worker),
            life,
            trust,
            as_of: at.map(|at| at.seq),
            groups: status.groups.clone(),
            contract: home.clone(),
            vocabulary: vocabulary_text(home, part.text(), life),
        })
    }
}
