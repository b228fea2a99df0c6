//! One worker's part of the store, as its writer sees it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Desk;
use crate::block::WorkerId;
use crate::error::{Error, ErrorKind};
use crate::index::redis::{Anew, Joined, Mark, Progress};
use crate::index::{Applied, Home, Index as _, Residencies};
use crate::ingest::snapshot::{KeptContract, Snapshot, Watermark, WorkerState};
use crate::ingest::{Reason, Trust};
use crate::scout::shared::outbox::Step;
use crate::scout::shared::vocabulary_text;
use crate::scout::{Changes, Moved};

/// Steps that are sent before others have their turn.
const AT_ONCE: usize = 64;

/// Blocks of a new beginning that are sent together.
const BLOCKS: usize = 2048;
/// Changes of it that are.
const CHANGES: usize = 64;

/// The shortest and the longest rest before a part is begun anew again.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// The rest before that where the store, or a part of it, is away.
const AWAY_REST: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(super) struct Part {
    worker: WorkerId,
    /// What it is called in the store.
    text: String,
    /// What its space is called there.
    space: String,
    place: Place,
    /// When to look at it next although nothing came.
    due: Instant,
    /// When its end in the store was put off last.
    refreshed: Instant,
    rest: Duration,
    /// Steps up to this one are in the snapshot that is taken for it.
    line: u64,
    /// The store holds less of it than memory.
    lacks: bool,
    /// The store may have lost some of it.
    is_doubtful: bool,
    /// The last step that another writer is known to have applied.
    done: Option<(Mark, Home, u64)>,
}

#[derive(Debug)]
enum Place {
    /// Nobody has asked the store yet.
    Unknown,
    /// Kept here, and whole.
    Following(Kept),
    /// To be begun anew; what was kept of it before.
    Behind(Option<Kept>),
    /// Another writer keeps it.
    Elsewhere,
    /// It was unregistered; whether another writer goes on with it will be seen.
    Leaving,
    Left,
}

/// A part that is kept.
#[derive(Clone, Debug)]
struct Kept {
    life: u64,
    at: Option<Mark>,
    home: Home,
    contract: KeptContract,
    /// Which life of its publisher it is, as the scout counts.
    incarnation: u64,
}

fn mark(of: Option<Watermark>) -> Option<Mark> {
    of.map(|of| Mark { seq: of.seq, digest: of.digest })
}

impl Part {
    pub(super) fn new(worker: WorkerId, text: String, space: String) -> Part {
        let now = Instant::now();
        Part {
            worker,
            text,
            space,
            place: Place::Unknown,
            due: now,
            refreshed: now,
            rest: REST,
            line: 0,
            lacks: false,
            is_doubtful: false,
            done: None,
        }
    }

    pub(super) fn worker(&self) -> WorkerId {
        self.worker
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_following(&self) -> bool {
        matches!(self.place, Place::Following(_))
    }

    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.place, Place::Elsewhere)
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.place, Place::Leaving)
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(self.place, Place::Left)
    }

    /// Whether its steps can be sent now.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.place, Place::Following(_)) || self.due <= Instant::now()
    }

    pub(super) fn is_to_be_rebuilt(&self) -> bool {
        matches!(self.place, Place::Behind(_)) && self.due <= Instant::now()
    }

    /// Life, last batch and contract of what is in the store by this writer's hand.
    pub(super) fn kept(&self) -> Option<(u64, Option<Mark>, &KeptContract)> {
        match &self.place {
            Place::Following(kept) | Place::Behind(Some(kept)) => {
                Some((kept.life, kept.at, &kept.contract))
            }
            _ => None,
        }
    }

    /// How far the store can be believed where memory can be believed so far.
    pub(super) fn judged(&self, trust: Trust) -> Trust {
        match trust {
            Trust::Exact if self.lacks => Trust::Degraded(Reason::Overflow),
            trust => trust,
        }
    }

    /// Whether there is something to do: steps that wait, or the time has come.
    pub(super) fn is_due(&self, desk: &Desk) -> bool {
        let waits = || desk.outbox.look(self.worker, |steps| !steps.is_empty()).unwrap_or(false);
        match self.place {
            Place::Left | Place::Behind(_) => false,
            Place::Following(_) => self.is_doubtful || self.due <= Instant::now() || waits(),
            Place::Unknown | Place::Elsewhere | Place::Leaving => self.due <= Instant::now(),
        }
    }

    /// The store may have less than it had. One server has all up to some step, or nothing, so the worker's record
    /// says whether this is so; the masters of a cluster lose each for itself, and nothing shows what.
    pub(super) fn doubt(&mut self, several: bool) {
        match (self.is_following(), several) {
            (true, true) => self.begin_in(Duration::ZERO),
            (is_following, _) => self.is_doubtful = is_following,
        }
    }

    /// Whether the store has what was sent, and perhaps more of what was sent last; otherwise the part is to be begun
    /// anew.
    async fn is_there(&mut self, desk: &Desk) -> Result<bool, Error> {
        let Place::Following(kept) = &self.place else { return Ok(false) };
        let seq = |at: Option<Mark>| at.map(|at| at.seq);
        let progress = desk.index.progress(self.worker).await?;
        let is_there =
            progress.is_some_and(|of| of.life == kept.life && seq(of.at) >= seq(kept.at));
        self.is_doubtful = false;
        if !is_there {
            self.fall_behind();
        }
        Ok(is_there)
    }

    /// Does what is to be done.
    pub(super) async fn go_on(&mut self, desk: &Desk) -> Result<(), Error> {
        let done = match self.place {
            Place::Following(_) if self.is_doubtful => match self.is_there(desk).await {
                Ok(true) => self.send(desk).await,
                other => other.map(drop),
            },
            Place::Following(_) => self.send(desk).await,
            Place::Unknown | Place::Elsewhere => self.look(desk).await,
            Place::Leaving => self.leave(desk).await,
            Place::Behind(_) | Place::Left => Ok(()),
        };
        match done {
            Err(error) if error.kind() == ErrorKind::UnknownWorker => {
                // The store was emptied, or another client has retired the worker's slots.
                self.fall_behind();
                Ok(())
            }
            Err(error) => {
                if error.kind() != ErrorKind::Unavailable {
                    // What the store has cannot be read, or may not be changed.
                    self.fall_behind();
                }
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// From now on the part is to be begun anew; after a rest, which grows with each time in a row.
    fn fall_behind(&mut self) {
        self.begin_in(if self.rest == REST { Duration::ZERO } else { self.rest });
        self.rest = (self.rest * 2).min(LONGEST_REST);
    }

    fn begin_in(&mut self, rest: Duration) {
        let kept = match std::mem::replace(&mut self.place, Place::Unknown) {
            Place::Following(kept) | Place::Behind(Some(kept)) => Some(kept),
            _ => None,
        };
        self.place = Place::Behind(kept);
        self.due = Instant::now() + rest;
    }

    /// Another writer has the lease: its word counts until that has ended.
    fn stand_back(&mut self, desk: &Desk) {
        self.place = Place::Elsewhere;
        self.due = Instant::now() + desk.options.lease / 4;
    }

    /// Looks who keeps the part, and takes it over if nobody does.
    async fn look(&mut self, desk: &Desk) -> Result<(), Error> {
        let is_gone = |steps: &VecDeque<Step>| steps.back().is_some_and(|s| s.moved.is_gone);
        if desk.outbox.look(self.worker, is_gone).unwrap_or(false) {
            return self.leave(desk).await;
        }
        let progress = desk.index.progress(self.worker).await?;
        let Some(progress) = progress else {
            self.fall_behind();
            return Ok(());
        };
        if progress.is_leased && Some(progress.owner.as_str()) != desk.index.owner_text() {
            self.forget_done(desk, &progress);
            self.stand_back(desk);
            return Ok(());
        }
        self.take_over(desk, &progress).await
    }

    /// Drops steps that another writer has applied; `true` if its last one is among them or comes before the first.
    fn forget_done(&mut self, desk: &Desk, progress: &Progress) -> bool {
        let is_last = |step: &Step| mark(step.moved.after) == progress.at;
        let mut done = None;
        let has_last =
            desk.outbox.look(self.worker, |steps| steps.iter().any(is_last)).unwrap_or(false);
        if has_last {
            let mut met = false;
            desk.outbox.trim(self.worker, |step| {
                let is_old = !met;
                if is_last(step) {
                    met = true;
                    let Moved { home, incarnation, .. } = step.moved;
                    done = progress.at.map(|at| (at, home, incarnation));
                }
                is_old
            });
            self.done = done;
            return true;
        }
        let goes_on = |step: &Step| mark(step.moved.before) == progress.at;
        match desk.outbox.look(self.worker, |steps| steps.front().map(goes_on)).flatten() {
            Some(goes_on) => goes_on,
            None => progress.at.is_some() && self.done.map(|(at, ..)| at) == progress.at,
        }
    }

    /// Goes on where another writer ended, if it is known exactly where that is.
    async fn take_over(&mut self, desk: &Desk, progress: &Progress) -> Result<(), Error> {
        let goes_on = self.forget_done(desk, progress);
        let next = desk.outbox.look(self.worker, |steps| {
            steps.front().map(|step| (step.moved.home, step.moved.incarnation, step.moved.is_whole))
        });
        let done = self.done.map(|(_, home, incarnation)| (home, incarnation, true));
        let Some((home, incarnation, true)) = next.flatten().or(done) else {
            self.fall_behind();
            return Ok(());
        };
        let contract = contract_of(&progress.vocabulary);
        let (Some(contract), true, false) = (contract, goes_on, progress.is_torn) else {
            self.fall_behind();
            return Ok(());
        };
        // Whether this scout's vocabulary is the store's is seen when the part is begun from a snapshot; here
        // only what was begun under a contract that everyone knows is gone on with.
        let is_private = matches!(contract, KeptContract::Private | KeptContract::Undecided);
        if is_private {
            self.fall_behind();
            return Ok(());
        }
        desk.index.name_space(home.space, &self.space);
        desk.index.name_vocabulary(home.vocabulary, &progress.vocabulary);
        desk.index.assign(self.worker, home).await?;
        let kept = Kept { life: progress.life, at: progress.at, home, contract, incarnation };
        self.place = Place::Following(kept);
        self.send(desk).await
    }

    /// Sends what waits.
    async fn send(&mut self, desk: &Desk) -> Result<(), Error> {
        for _ in 0..AT_ONCE {
            let Some(step) = desk.outbox.take(self.worker) else { break };
            if step.number <= self.line {
                continue;
            }
            let Place::Following(kept) = &mut self.place else { break };
            let Moved { home, incarnation, before, after, is_whole, is_gone, .. } = step.moved;
            if is_gone {
                let life = kept.life;
                self.place = Place::Leaving;
                self.due = Instant::now() + desk.options.lease * 2;
                return desk.index.hand_over(self.worker, life).await;
            }
            let is_old = incarnation == kept.incarnation
                && mark(after).zip(kept.at).is_some_and(|(after, at)| after.seq <= at.seq);
            let is_next = mark(before) == kept.at && mark(before) != mark(after);
            let same = (home, incarnation) == (kept.home, kept.incarnation);
            match (is_whole, mark(after)) {
                (true, Some(_)) if is_old && mark(before) != mark(after) => continue,
                (true, Some(after)) if is_next && same => {
                    if !self.append(desk, step, after).await? {
                        return Ok(());
                    }
                }
                _ => {
                    self.fall_behind();
                    return Ok(());
                }
            }
        }
        self.stay(desk).await
    }

    /// Sends one step; whether the next one may follow.
    async fn append(&mut self, desk: &Desk, step: Step, after: Mark) -> Result<bool, Error> {
        let Place::Following(kept) = &mut self.place else { return Ok(false) };
        let (life, before) = (kept.life, kept.at);
        let changes = step.moved.changes.list();
        let joined = desk.index.append(self.worker, life, before, after, &changes).await;
        drop(changes);
        match joined {
            Ok(Joined::Applied(applied)) => {
                kept.at = Some(after);
                self.due = Instant::now() + desk.options.lease / 3;
                desk.report.lock().applied += 1;
                self.compare(desk, &step.moved.applied, &applied);
                Ok(self.is_following())
            }
            Ok(Joined::Repeated) => {
                kept.at = Some(after);
                Ok(true)
            }
            Ok(Joined::Elsewhere(_)) => {
                desk.outbox.put_back(step);
                self.stand_back(desk);
                Ok(false)
            }
            Ok(Joined::Apart) => {
                desk.outbox.put_back(step);
                self.fall_behind();
                Ok(false)
            }
            Err(error) => {
                desk.outbox.put_back(step);
                Err(error)
            }
        }
    }

    /// A store that does something else with a step than memory does not hold what memory holds: somebody
    /// evicted, expired or deleted something, or lost it in a failover.
    fn compare(&mut self, desk: &Desk, here: &Applied, there: &Applied) {
        self.lacks |= there.refused > here.refused;
        let diverged = there.unknown_removals > here.unknown_removals
            || there.unknown_parents > here.unknown_parents;
        match diverged {
            true => {
                desk.report.lock().diverged += 1;
                self.fall_behind();
            }
            false => self.rest = REST,
        }
    }

    /// Keeps the lease, and what the store has.
    async fn stay(&mut self, desk: &Desk) -> Result<(), Error> {
        let Place::Following(kept) = &self.place else { return Ok(()) };
        if self.due > Instant::now() {
            return Ok(());
        }
        if !desk.index.keep(self.worker, kept.life).await? {
            self.place = Place::Unknown;
            self.due = Instant::now();
            return Ok(());
        }
        self.due = Instant::now() + desk.options.lease / 3;
        if self.refreshed.elapsed() >= desk.options.refresh {
            desk.index.refresh(self.worker).await?;
            self.refreshed = Instant::now();
        }
        Ok(())
    }

    /// Takes out of the store what nobody goes on with.
    async fn leave(&mut self, desk: &Desk) -> Result<(), Error> {
        let progress = desk.index.progress(self.worker).await?;
        let is_others = |progress: &Progress| {
            progress.is_leased && Some(progress.owner.as_str()) != desk.index.owner_text()
        };
        if !progress.as_ref().is_some_and(is_others) {
            desk.index.remove(self.worker).await?;
        }
        self.place = Place::Left;
        Ok(())
    }

    /// What came until now will be in the snapshot that is taken next.
    pub(super) fn draw_line(&mut self, desk: &Desk) {
        self.line = desk.outbox.came(self.worker);
    }

    /// Begins the part anew from a snapshot.
    pub(super) async fn begin_anew(
        &mut self,
        desk: &Desk,
        snapshot: &Snapshot,
        residencies: &Residencies<'_>,
    ) -> Result<(), Error> {
        let state = snapshot.registrations.workers.iter().find(|state| state.worker == self.worker);
        let Some(state) = state else {
            // It was unregistered meanwhile.
            self.place = Place::Leaving;
            self.due = Instant::now() + desk.options.lease * 2;
            return Ok(());
        };
        let begun = self.build(desk, state, residencies).await;
        match begun {
            Ok(true) => {
                desk.report.lock().rebuilt += 1;
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                match error.kind() {
                    // It is not this part that goes wrong again and again.
                    ErrorKind::Unavailable => self.begin_in(AWAY_REST),
                    _ => self.fall_behind(),
                }
                Err(error)
            }
        }
    }

    async fn build(
        &mut self,
        desk: &Desk,
        state: &WorkerState,
        residencies: &Residencies<'_>,
    ) -> Result<bool, Error> {
        let had = desk.index.progress(self.worker).await?;
        let is_others =
            |had: &Progress| had.is_leased && Some(had.owner.as_str()) != desk.index.owner_text();
        if had.as_ref().is_some_and(is_others) {
            self.stand_back(desk);
            return Ok(false);
        }
        let had = had.map(|had| had.life);
        let home = Home { space: state.space, vocabulary: state.vocabulary };
        let life = had.map_or(0, |life| life + 1);
        desk.index.name_space(home.space, &self.space);
        let vocabulary = vocabulary_text(&state.contract, &self.text, life);
        desk.index.name_vocabulary(home.vocabulary, &vocabulary);
        let anew = match desk.index.begin_anew(self.worker, home, had).await? {
            Ok(anew) => anew,
            Err(Joined::Elsewhere(_)) => {
                self.stand_back(desk);
                return Ok(false);
            }
            Err(_) => {
                self.fall_behind();
                return Ok(false);
            }
        };
        self.lacks = false;
        let at = mark(state.watermark);
        let left_out = self.fill(desk, &anew, residencies).await?;
        desk.report.lock().left_out += left_out;
        self.lacks |= left_out > 0;
        let life = anew.life();
        if !desk.index.ended(anew, at).await? {
            self.fall_behind();
            return Ok(false);
        }
        let (contract, incarnation) = (state.contract.clone(), state.incarnation);
        self.place = Place::Following(Kept { life, at, home, contract, incarnation });
        self.due = Instant::now() + desk.options.lease / 3;
        self.refreshed = Instant::now();
        Ok(true)
    }

    /// Stores what the worker holds; how much of it cannot be said.
    async fn fill(
        &mut self,
        desk: &Desk,
        anew: &Anew,
        residencies: &Residencies<'_>,
    ) -> Result<u64, Error> {
        let mut parts = vec![Changes::default()];
        let left_out = residencies.changes(self.worker, &mut |change| {
            if parts.last().is_some_and(|p| p.stored() >= BLOCKS || p.len() >= CHANGES) {
                parts.push(Changes::default());
            }
            parts.last_mut().into_iter().for_each(|part| part.push(&change));
        });
        let mut kept = Instant::now();
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let applied = desk.index.apply(self.worker, &part.list()).await?;
            self.lacks |= applied.refused > 0;
            if kept.elapsed() >= desk.options.lease / 4 {
                if !desk.index.keep(self.worker, anew.life()).await? {
                    return Err(Error::unavailable("another writer has taken the worker over"));
                }
                kept = Instant::now();
            }
        }
        Ok(left_out)
    }
}

/// The contract behind a vocabulary's text.
fn contract_of(text: &str) -> Option<KeptContract> {
    let words: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
    let word = |n: usize| words.get(n).and_then(serde_json::Value::as_str);
    match word(0)? {
        "sglang" => Some(KeptContract::Sglang),
        "private" => Some(KeptContract::Private),
        "vllm" => Some(KeptContract::Vllm {
            version: word(1)?.parse().ok()?,
            algorithm: word(2)?.parse().ok()?,
            root: word(3)?.to_owned(),
        }),
        _ => None,
    }
}
