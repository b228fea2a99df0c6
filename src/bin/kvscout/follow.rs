//! Past batches: what the scout wants is asked of engines, and what they answer is handed in. And
//! links that stay down.
//!
//! Two threads feed the scout, the receiver's and that of replays. Both may find out that something is
//! to be asked for; only the second one makes wake-ups, so it keeps them alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvscout::block::WorkerId;
use kvscout::ingest::sequencer::{Comparison, Ended, Flow};
use kvscout::ingest::zmq::{Asker, Endpoint, ReplaySink, SourceId};
use kvscout::ingest::{Reason, Trust};
use kvscout::scout::{Ask, Audited, Progress, Scout};
use tracing::{debug, info, warn};

use crate::intake::{Route, Switchboard};

/// How often links that are down are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What both threads that feed the scout have.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    /// The scout.
    pub(crate) scout: Arc<Scout>,
    /// Where messages go.
    pub(crate) switchboard: Arc<Switchboard>,
    /// What asks for replays.
    pub(crate) asker: Asker,
    /// What times are counted from.
    pub(crate) began: Instant,
}

impl Follower {
    /// Asks for what a worker wants.
    pub(crate) fn ask(&self, source: SourceId, replay: Option<&Endpoint>, ask: Option<Ask>) {
        if let (Some(Ask { round, from }), Some(replay)) = (ask, replay) {
            debug!(%source, round, from, "asking for past batches");
            self.asker.ask(source, replay, round, from);
        }
    }

    /// Asks for what an audit wants.
    fn ask_patiently(&self, source: SourceId, replay: Option<&Endpoint>, ask: Option<Ask>) {
        if let (Some(Ask { round, from }), Some(replay)) = (ask, replay) {
            debug!(%source, round, from, "asking for past batches to compare");
            self.asker.ask_patiently(source, replay, round, from);
        }
    }

    /// The link of a source was lost, or is up.
    pub(crate) fn link(&self, source: SourceId, up: bool) {
        debug!(%source, up, "link");
        match up {
            // Before the worker hears of it: whoever looks at links that are down must not call it
            // silent after that.
            true => self.switchboard.down.lock().remove(&source),
            false => self.switchboard.down.lock().insert(source, Instant::now()),
        };
        let Some((worker, replay)) = self.worker_of(source) else { return };
        if let Ok(progress) = self.scout.link(worker, self.now(), up) {
            self.ask(source, replay.as_deref(), progress.ask);
        }
    }

    /// The worker of a source of its own, and where its past batches are.
    fn worker_of(&self, source: SourceId) -> Option<(WorkerId, Option<Arc<Endpoint>>)> {
        match self.switchboard.routes.read().get(&source)? {
            Route::Worker { worker, replay, .. } => Some((*worker, replay.clone())),
            Route::Topics { .. } => None,
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }
}

/// The sink of replays.
#[derive(Debug)]
pub(crate) struct Replayer {
    follower: Follower,
    wakes: BTreeMap<SourceId, Duration>,
    silent_after_down: Duration,
    silent_after_quiet: Option<Duration>,
    looked: Instant,
}

impl Replayer {
    /// A sink that also calls workers silent whose link was down for so long, or of which nothing came for so long.
    pub(crate) fn new(
        follower: Follower,
        silent_after_down: Duration,
        silent_after_quiet: Option<Duration>,
    ) -> Replayer {
        let (wakes, looked) = (BTreeMap::new(), Instant::now());
        Replayer { follower, wakes, silent_after_down, silent_after_quiet, looked }
    }

    fn note(&mut self, source: SourceId, replay: Option<&Endpoint>, progress: Progress) {
        match progress.wake_at {
            Some(at) => self.wakes.insert(source, at),
            None => self.wakes.remove(&source),
        };
        if progress.rejected > 0 {
            warn!(%source, rejected = progress.rejected, "events of a replay could not be read");
        }
        if let Some(audited) = progress.audited {
            let Audited { comparison, missing, surplus, mended, .. } = audited;
            match comparison {
                Comparison::Different if mended => warn!(
                    %source, missing, surplus,
                    "the engine's past batches amount to something else; its worker holds that now"
                ),
                Comparison::Different => warn!(
                    %source, missing, surplus,
                    "the engine's past batches amount to something else; its worker is built anew"
                ),
                _ => debug!(%source, ?comparison, "an audit has ended"),
            }
        }
        self.follower.ask(source, replay, progress.ask);
        self.follower.ask_patiently(source, replay, progress.audit);
    }

    /// Says how a worker came out of its last round.
    fn tell(&self, source: SourceId, worker: WorkerId, progress: &Progress) {
        let status = self.follower.scout.worker(worker).filter(|_| progress.ask.is_none());
        let Some(status) = status else { return };
        match status.trust.reason() {
            Some(reason @ (Reason::Gap | Reason::MissedStart | Reason::Audit)) => {
                let reason = reason.as_str();
                warn!(%source, worker = worker.0, reason, "past batches could not be had");
            }
            _ => debug!(%source, worker = worker.0, as_of = status.as_of, "a replay has ended"),
        }
    }

    fn wake(&mut self, source: SourceId) {
        self.wakes.remove(&source);
        let Some((worker, replay)) = self.follower.worker_of(source) else { return };
        if let Ok(progress) = self.follower.scout.tick(worker, self.follower.now()) {
            self.note(source, replay.as_deref(), progress);
        }
    }

    fn look(&mut self) {
        self.looked = Instant::now();
        self.look_for_links();
        if let Some(quiet) = self.silent_after_quiet {
            self.look_for_quiet(quiet);
        }
    }

    /// Calls workers silent of which nothing came for too long, however good their links are.
    fn look_for_quiet(&self, quiet: Duration) {
        let heard = self.follower.switchboard.heard.lock();
        let quiet = heard.iter().filter(|(_, heard)| heard.at.elapsed() >= quiet);
        let quiet: Vec<WorkerId> = quiet.map(|(&worker, _)| worker).collect();
        drop(heard);
        for worker in quiet {
            let status = self.follower.scout.worker(worker);
            let is_new = status.is_some_and(|status| status.trust != Trust::Silent);
            if is_new && self.follower.scout.silence(worker).is_ok() {
                info!(worker = worker.0, "silent: nothing came from its engine for too long");
            }
        }
    }

    /// Calls workers silent whose link was down for too long.
    fn look_for_links(&self) {
        // Held throughout, so that a link that comes up meanwhile is heard of after this.
        let mut down = self.follower.switchboard.down.lock();
        down.retain(|&source, since| {
            if since.elapsed() < self.silent_after_down {
                return true;
            }
            if let Some((worker, _)) = self.follower.worker_of(source) {
                // It fails for a worker that was unregistered meanwhile.
                if self.follower.scout.silence(worker).is_ok() {
                    info!(%source, worker = worker.0, "silent: its link stays down");
                }
            }
            false
        });
    }
}

impl ReplaySink for Replayer {
    fn batch(&mut self, source: SourceId, round: u64, seq: u64, payload: &[u8]) -> Flow {
        // Where it is unregistered meanwhile, nothing more is of use.
        let Some((worker, replay)) = self.follower.worker_of(source) else { return Flow::Stop };
        let now = self.follower.now();
        match self.follower.scout.replayed(worker, now, round, seq, payload) {
            Ok((flow, progress)) => {
                self.note(source, replay.as_deref(), progress);
                if flow == Flow::Stop {
                    self.tell(source, worker, &progress);
                }
                flow
            }
            Err(_) => Flow::Stop,
        }
    }

    fn ended(&mut self, source: SourceId, round: u64, how: Ended) {
        let Some((worker, replay)) = self.follower.worker_of(source) else { return };
        let now = self.follower.now();
        if let Ok(progress) = self.follower.scout.replay_ended(worker, now, round, how) {
            self.note(source, replay.as_deref(), progress);
            self.tell(source, worker, &progress);
        }
    }

    fn tick(&mut self) -> Option<Duration> {
        let now = self.follower.now();
        let due = self.wakes.iter().filter(|(_, at)| **at <= now);
        let due: Vec<SourceId> = due.map(|(&source, _)| source).collect();
        due.into_iter().for_each(|source| self.wake(source));
        if self.looked.elapsed() >= LOOK {
            self.look();
        }
        let now = self.follower.now();
        let next = self.wakes.values().min().map(|at| at.saturating_sub(now));
        Some(next.map_or(LOOK, |next| next.min(LOOK)))
    }
}
