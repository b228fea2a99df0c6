//! From received messages to batches of workers: whose message is it?
//!
//! A source of its own belongs to one worker, whatever its messages say. Only under
//! `trust_topics`, on the one shared endpoint, the topic `kv@pod@model` decides, and the rank that
//! the batch claims; a worker that was registered is out of reach from there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvscout::block::WorkerId;
use kvscout::event::{Batch, Limits};
use kvscout::ingest::Verdict;
use kvscout::ingest::zmq::{Endpoint, Mode, Sink, SourceId};
use kvscout::scout::{Ingested, Registration};
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tracing::{info, trace, warn};

use crate::follow::Follower;
use crate::service::Origin;

/// How often one source may fill the log with what is wrong with it.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// Where the messages of a source go.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// To one worker.
    Worker {
        /// The worker.
        worker: WorkerId,
        /// Its pod and model, to notice topics that say something else.
        pod: Arc<str>,
        model: Option<Arc<str>>,
        /// Where its past batches are asked for.
        replay: Option<Arc<Endpoint>>,
    },
    /// To the worker that the topic names, of this tenant.
    Topics {
        /// The tenant of all of them.
        tenant: Arc<str>,
    },
}

/// How a worker is fed.
#[derive(Clone, Debug)]
pub(crate) enum Feed {
    /// By a source of its own.
    Source {
        /// The source.
        source: SourceId,
        /// Its endpoint.
        endpoint: Endpoint,
        /// The same as it is dialled: without a name, where a request named it.
        dialled: Endpoint,
        /// Who dials.
        mode: Mode,
        /// Where past batches are asked for.
        replay: Option<Endpoint>,
        /// Who wants it.
        origin: Origin,
    },
    /// By messages on the shared endpoint that name it.
    Topic,
}

/// What the receiver's thread and the service both know.
///
/// No lock is held while the other side is waited for: the receiver's thread takes them, too.
#[derive(Debug, Default)]
pub(crate) struct Switchboard {
    /// Where messages go; read for each one.
    pub(crate) routes: RwLock<HashMap<SourceId, Route>>,
    /// How workers are fed; held while one is registered.
    pub(crate) feeds: Mutex<BTreeMap<WorkerId, Feed>>,
    /// Sources whose link is down, since when; until their workers are called silent.
    pub(crate) down: Mutex<BTreeMap<SourceId, Instant>>,
    /// What came last of each worker.
    pub(crate) heard: Mutex<HashMap<WorkerId, Heard>>,
    /// How old live batches were when they were taken in.
    pub(crate) lag: Lag,
    /// Messages counted by what their topic is worth.
    pub(crate) topics: TopicCounters,
}

/// From the moment at which a batch says that it was made, by its publisher's clock, to that at which it was taken in
/// here, by ours.
#[derive(Clone, Debug)]
pub(crate) struct Lag(pub(crate) Histogram);

impl Default for Lag {
    fn default() -> Lag {
        // 1 ms to 65 s.
        Lag(Histogram::new(exponential_buckets(1e-3, 4.0, 9)))
    }
}

/// The newest batch that came live, applied or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// When the last one came, or its worker was registered.
    pub(crate) at: Instant,
    /// The highest number of this publisher; none while it has sent nothing since it was registered.
    pub(crate) sequence: Option<u64>,
    /// How old the last one was when it was taken in; none where it cannot be known.
    pub(crate) lag: Option<Duration>,
}

impl Heard {
    /// What is known of a worker that has sent nothing since now.
    pub(crate) fn nothing() -> Heard {
        Heard { at: Instant::now(), sequence: None, lag: None }
    }
}

/// What is wrong with topics.
#[derive(Debug, Default)]
pub(crate) struct TopicCounters {
    /// Messages of a worker's own source whose topic names another pod or model; applied.
    pub(crate) mismatched: AtomicU64,
    /// Messages on the shared endpoint whose topic is not `kv@pod@model`; dropped.
    pub(crate) unreadable: AtomicU64,
    /// Messages on the shared endpoint that name a registered worker, or a known one with another
    /// model; dropped.
    pub(crate) claimed: AtomicU64,
    /// Messages on the shared endpoint beyond the limit of workers; dropped.
    pub(crate) excess: AtomicU64,
}

/// The sink of the receiver.
#[derive(Debug)]
pub(crate) struct Intake {
    follower: Follower,
    limits: Limits,
    max_topic_workers: usize,
    /// Workers by topic and rank.
    by_topic: HashMap<Box<[u8]>, Vec<(u32, WorkerId)>>,
    complaints: HashMap<SourceId, Instant>,
}

impl Intake {
    /// A sink that feeds the follower's scout; topics register at most `max_topic_workers`.
    pub(crate) fn new(follower: Follower, limits: Limits, max_topic_workers: usize) -> Intake {
        Intake {
            follower,
            limits,
            max_topic_workers,
            by_topic: HashMap::new(),
            complaints: HashMap::new(),
        }
    }

    /// The worker that a message on the shared endpoint is about.
    fn worker_of(&mut self, tenant: &str, topic: &[u8], payload: &[u8]) -> Option<WorkerId> {
        let rank = Batch::parse(payload, &self.limits).ok().and_then(|batch| batch.rank());
        // A batch that cannot be read counts for rank 0: the worker must not look sound.
        let rank = rank.unwrap_or(0);
        let known = self.by_topic.get(topic).into_iter().flatten().find(|(of, _)| *of == rank);
        if let Some(&(_, worker)) = known {
            return Some(worker);
        }
        let counters = &self.follower.switchboard.topics;
        let Some((pod, model)) = pod_and_model(topic) else {
            counters.unreadable.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let mut feeds = self.follower.switchboard.feeds.lock();
        let worker = match self.follower.scout.find(tenant, pod, rank) {
            // A snapshot's, or one that this topic registered before.
            Some(worker) if self.is_of_topic(worker, model, &feeds) => worker,
            // Its topic changed to another model, or it has a source of its own.
            Some(_) => {
                counters.claimed.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            None => {
                let from_topics = feeds.values().filter(|feed| matches!(feed, Feed::Topic)).count();
                if from_topics >= self.max_topic_workers {
                    counters.excess.fetch_add(1, Ordering::Relaxed);
                    return None;
                }
                let registration = Registration {
                    rank,
                    tenant: tenant.to_owned(),
                    ..Registration::new(pod, model)
                };
                self.follower.scout.register(registration).ok()?
            }
        };
        if feeds.insert(worker, Feed::Topic).is_none() {
            info!(pod, model, rank, "registered by topic");
        }
        self.by_topic.entry(topic.into()).or_default().push((rank, worker));
        Some(worker)
    }

    /// Whether topics speak for this worker, and this model is its own.
    fn is_of_topic(&self, worker: WorkerId, model: &str, feeds: &BTreeMap<WorkerId, Feed>) -> bool {
        let status = self.follower.scout.worker(worker);
        matches!(feeds.get(&worker), Some(Feed::Topic))
            && status.is_some_and(|status| status.registration.model.as_deref() == Some(model))
    }

    /// Drops what is remembered of topics whose workers are gone.
    fn forget_gone(&mut self) {
        let feeds = self.follower.switchboard.feeds.lock();
        let alive: HashSet<WorkerId> = feeds.keys().copied().collect();
        drop(feeds);
        self.by_topic.retain(|_, workers| {
            workers.retain(|(_, worker)| alive.contains(worker));
            !workers.is_empty()
        });
    }

    /// Notes that a batch came.
    fn heard(&self, worker: WorkerId, sequence: u64, payload: &[u8], verdict: Verdict) {
        let lag = age(payload, &self.limits);
        if let Some(lag) = lag {
            self.follower.switchboard.lag.0.observe(lag.as_secs_f64());
        }
        let mut heard = self.follower.switchboard.heard.lock();
        let last = heard.entry(worker).or_insert_with(Heard::nothing);
        let before = last.sequence.filter(|_| verdict != Verdict::Restart);
        *last = Heard { at: Instant::now(), sequence: before.max(Some(sequence)), lag };
    }

    fn log(
        &mut self,
        source: SourceId,
        (worker, followed): (WorkerId, bool),
        sequence: u64,
        ingested: &Ingested,
    ) {
        trace!(%source, worker = worker.0, sequence, verdict = ?ingested.verdict, "batch");
        // What is asked for may still come.
        let missing = match (ingested.verdict, followed) {
            (Verdict::Gap { missing }, false) => missing,
            _ => 0,
        };
        let wrong = missing > 0 || ingested.rejected > 0;
        if ingested.verdict == Verdict::Restart {
            info!(%source, worker = worker.0, "the engine's publisher has started anew");
        }
        if !wrong {
            return;
        }
        let now = Instant::now();
        self.complaints.retain(|_, last| now.duration_since(*last) < COMPLAINT_INTERVAL);
        if self.complaints.contains_key(&source) {
            return;
        }
        self.complaints.insert(source, now);
        if missing > 0 {
            warn!(%source, worker = worker.0, sequence, missing, "batches are missing");
        }
        if ingested.rejected > 0 {
            let rejected = ingested.rejected;
            // Offset, field and types: a decoding error carries nothing of the content.
            let first = ingested.error.map(tracing::field::display);
            warn!(%source, worker = worker.0, sequence, rejected, first, "events could not be read");
        }
    }
}

impl Sink for Intake {
    fn batch(&mut self, source: SourceId, topic: &[u8], sequence: u64, payload: &[u8]) {
        let route = self.follower.switchboard.routes.read().get(&source).cloned();
        let (worker, replay) = match route {
            // The source is being removed.
            None => return,
            Some(Route::Worker { worker, pod, model, replay }) => {
                let differs = pod_and_model(topic).is_some_and(|(named, serves)| {
                    named != &*pod || model.is_some_and(|model| serves != &*model)
                });
                if differs {
                    self.follower.switchboard.topics.mismatched.fetch_add(1, Ordering::Relaxed);
                }
                (worker, replay)
            }
            Some(Route::Topics { tenant }) => match self.worker_of(&tenant, topic, payload) {
                Some(worker) => (worker, None),
                None => return,
            },
        };
        match self.follower.scout.apply(worker, sequence, payload) {
            Ok(ingested) => {
                self.heard(worker, sequence, payload, ingested.verdict);
                self.follower.ask(source, replay.as_deref(), ingested.ask);
                self.log(source, (worker, replay.is_some()), sequence, &ingested);
            }
            // Unregistered meanwhile; a topic's next message registers it again.
            Err(_) => self.forget_gone(),
        }
    }

    fn link(&mut self, source: SourceId, up: bool) {
        self.follower.link(source, up);
    }
}

/// How old a batch is, if it can be read and is stamped with a time: none is from the future, only its clock may be.
fn age(payload: &[u8], limits: &Limits) -> Option<Duration> {
    let stamp = Batch::parse(payload, limits).ok()?.timestamp();
    let made = Duration::try_from_secs_f64(stamp).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.saturating_sub(made))
}

/// Pod and model of a topic `kv@pod@model`; the model may contain further `@`.
fn pod_and_model(topic: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(topic).ok()?.strip_prefix("kv@")?;
    rest.split_once('@').filter(|(pod, model)| !pod.is_empty() && !model.is_empty())
}

#[cfg(test)]
mod tests {
    use kvscout::ingest::sequencer::{Ended, Flow};
    use kvscout::ingest::zmq::{ReplaySink, Replays};
    use kvscout::scout::{Options, Scout};

    use super::*;

    /// An empty batch of a rank.
    fn batch(rank: u8) -> Vec<u8> {
        vec![0x93, 1, 0x90, rank]
    }

    /// Nobody asks for replays here.
    struct Nobody;

    impl ReplaySink for Nobody {
        fn batch(&mut self, _: SourceId, _: u64, _: u64, _: &[u8]) -> Flow {
            Flow::Stop
        }

        fn ended(&mut self, _: SourceId, _: u64, _: Ended) {}
    }

    fn intake(max_topic_workers: usize) -> Intake {
        let scout = Arc::new(Scout::new(Options::default()).unwrap());
        let switchboard = Arc::new(Switchboard::default());
        let topics = Route::Topics { tenant: "default".into() };
        switchboard.routes.write().insert(SourceId(0), topics);
        let asker = Replays::start(Default::default(), |_| Nobody).unwrap().asker();
        let follower = Follower { scout, switchboard, asker, began: Instant::now() };
        Intake::new(follower, Limits::default(), max_topic_workers)
    }

    #[test]
    fn a_batch_is_as_old_as_its_stamp_says_and_never_younger_than_now() {
        let stamped = |stamp: f64| [&[0x92, 0xcb][..], &stamp.to_be_bytes(), &[0x90]].concat();
        let age = |stamp| age(&stamped(stamp), &Limits::default());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(age(now - 60.0).unwrap() >= Duration::from_secs(60));
        assert_eq!(age(now + 60.0), Some(Duration::ZERO));
        for wrong in [-1.0, f64::NAN, f64::INFINITY, f64::MAX] {
            assert_eq!(age(wrong), None, "{wrong}");
        }
        assert_eq!(super::age(b"no batch", &Limits::default()), None);
    }

    #[test]
    fn a_topic_splits_at_its_first_two_signs() {
        assert_eq!(pod_and_model(b"kv@10.0.0.1:8000@a/b@c"), Some(("10.0.0.1:8000", "a/b@c")));
        for wrong in [&b""[..], b"kv@", b"kv@pod", b"kv@@m", b"kv@pod@", b"x@pod@m", b"kv@\xff@m"] {
            assert_eq!(pod_and_model(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn topics_register_pods_and_ranks_up_to_the_limit() {
        let mut intake = intake(2);
        for (topic, rank) in [("kv@a@m", 0), ("kv@a@m", 1), ("kv@b@m", 0), ("kv@a@m", 1)] {
            intake.batch(SourceId(0), topic.as_bytes(), 0, &batch(rank));
        }
        assert_eq!(intake.follower.scout.ranks("default", "a").len(), 2);
        assert_eq!(intake.follower.scout.ranks("default", "b").len(), 0);
        assert_eq!(intake.follower.switchboard.topics.excess.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_topic_cannot_speak_for_a_registered_worker() {
        let mut intake = intake(9);
        let worker = intake.follower.scout.register(Registration::new("a", "m")).unwrap();
        intake.batch(SourceId(0), b"kv@a@m", 0, &batch(0));
        assert_eq!(intake.follower.scout.worker(worker).unwrap().as_of, None);
        assert_eq!(intake.follower.switchboard.topics.claimed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_topic_that_names_another_pod_changes_nothing_but_a_counter() {
        let mut intake = intake(9);
        let worker = intake.follower.scout.register(Registration::new("a", "m")).unwrap();
        let route =
            Route::Worker { worker, pod: "a".into(), model: Some("m".into()), replay: None };
        intake.follower.switchboard.routes.write().insert(SourceId(1), route);
        intake.batch(SourceId(1), b"kv@b@m", 0, &batch(0));
        assert_eq!(intake.follower.scout.worker(worker).unwrap().as_of, Some(0));
        assert_eq!(intake.follower.switchboard.topics.mismatched.load(Ordering::Relaxed), 1);
        assert_eq!(intake.follower.scout.workers().len(), 1);
    }

    #[test]
    fn a_worker_that_was_unregistered_comes_back_with_its_next_message() {
        let mut intake = intake(9);
        intake.batch(SourceId(0), b"kv@a@m", 0, &batch(0));
        let worker = intake.follower.scout.find("default", "a", 0).unwrap();
        intake.follower.scout.unregister(worker).unwrap();
        intake.follower.switchboard.feeds.lock().remove(&worker);
        intake.batch(SourceId(0), b"kv@a@m", 1, &batch(0));
        intake.batch(SourceId(0), b"kv@a@m", 2, &batch(0));
        assert!(intake.follower.scout.find("default", "a", 0).is_some());
    }
}
