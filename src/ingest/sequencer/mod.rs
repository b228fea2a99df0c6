//! The order of one worker's batches where missed ones can be asked for again.
//!
//! A [`Sequencer`] has no socket, no clock and no index. It is told what happened (a live batch, a
//! replayed one, the end of a replay, the link's ups and downs, the time) and answers with [`Step`]s.
//!
//! # How it works
//!
//! * **In step**: the next batch is applied at once. Any other new one is *held back*, and the replay
//!   source is asked.
//! * A **round** asks from the last applied batch on, not from the one after it: the publisher then
//!   repeats that batch, and equal bytes prove that it is still the publisher that was followed. Other
//!   bytes, or a buffer without it, mean a new incarnation, even if its numbers have overtaken.
//! * From a replay only **consecutive** batches are taken. At a hole the round is over, and the next one
//!   begins at what was applied last; rounds that bring nothing wait ever longer and are bounded.
//! * When the replay has reached a batch that is held back, or ended just below it, the held ones follow.
//! * What does not come in any round is **given up**: the worker is degraded, the held batches are
//!   applied, and it goes on. The same hole at the head of two rounds is the publisher's own (its buffer
//!   begins later, or a batch was never encoded) and is stepped over in the same way.
//! * A worker that missed something is **rebuilt** if the publisher's buffer turns out to reach back to
//!   batch 0: it starts over from there. That is tried seldom, and costs nothing when it does not.
//! * Now and then the worker is **audited**: what is held is compared with what the whole buffer amounts
//!   to, and rebuilt where they differ. Where the buffer does not reach batch 0, with what the batches
//!   behind an *anchor* make of that.
//! * After the **link** was lost nothing is believed until a round has shown where the publisher stands.

mod audit;
mod counters;
mod held;
mod options;
mod resume;
mod rounds;
mod stage;
mod step;

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use self::audit::Audits;
use self::held::HeldBack;
use self::rounds::{Head, Round};
use super::order::Order;
use super::{Reason, Trust, Verdict};

pub use self::audit::{Aftermath, AuditState, Comparison};
pub use self::counters::SequencerCounters;
pub use self::held::Held;
pub use self::options::ReplayOptions;
pub use self::stage::Stage;
pub use self::step::{Arrival, Ended, Flow, Step};

/// A batch as it is remembered.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mark {
    seq: u64,
    timestamp: Option<f64>,
    digest: u64,
}

impl Mark {
    fn of(arrival: &Arrival<'_>) -> Mark {
        let timestamp = arrival.timestamp.filter(|timestamp| timestamp.is_finite());
        Mark { seq: arrival.seq, timestamp, digest: xxh3_64(arrival.payload) }
    }

    /// Whether this clock runs before that one. Within one incarnation it never does, unless the
    /// system's clock was set back.
    fn is_before(&self, other: &Mark) -> bool {
        matches!((self.timestamp, other.timestamp), (Some(a), Some(b)) if a < b)
    }
}

/// What is under way with the replay source.
#[derive(Clone, Copy, Debug)]
enum Sync {
    /// Nothing: live batches are applied as they come.
    InStep,
    /// The next round begins then.
    Waiting { at: Duration },
    /// A round.
    Asked(Round),
    /// A round from 0 that may replace everything. Live batches are applied meanwhile.
    Rebuilding,
    /// A round for the shadow of an audit. Live batches are applied meanwhile.
    Auditing,
}

/// The sequence state of one worker's stream.
///
/// After each input, [`next_step`](Sequencer::next_step) is to be called until it gives `None`.
///
/// Without a replay source a gap degrades at once.
#[derive(Clone, Debug)]
pub struct Sequencer {
    /// `None` without a replay source.
    replay: Option<ReplayOptions>,
    /// What arrived live, held back or not, and what was replayed.
    order: Order,
    applied: Option<Mark>,
    held: HeldBack,
    /// Bytes that may be held back at present, by the driver's word.
    most_held: usize,
    sync: Sync,
    /// The link is known to be down.
    down: bool,
    /// What was applied last is from before [`resume`](Sequencer::resume), and nothing has shown yet that
    /// its publisher still lives.
    unproven: bool,
    /// The number of the last round that was asked for.
    round: u64,
    rounds: u32,
    fruitless: u32,
    /// What the last fruitless round from this number showed.
    head: Option<(Option<u64>, Head)>,
    /// More came than could be held back: batches were dropped, and have not come again yet.
    flooded: bool,
    /// What is held back is to be applied, gaps or not.
    giving_up: bool,
    rebuild_at: Option<Duration>,
    rebuild_wait: Duration,
    audits: Audits,
    random: u64,
    unsound: Option<Reason>,
    /// How often something was found to be wrong.
    wrongs: u64,
    steps: VecDeque<Step>,
    counters: SequencerCounters,
}

impl Sequencer {
    /// A stream without a replay source.
    pub fn without_replay() -> Sequencer {
        Sequencer::new(None, 0)
    }

    /// A stream with a replay source. The seed spreads the waits of many workers.
    pub fn with_replay(options: ReplayOptions, seed: u64) -> Sequencer {
        Sequencer::new(Some(options), seed)
    }

    fn new(replay: Option<ReplayOptions>, seed: u64) -> Sequencer {
        Sequencer {
            replay,
            order: Order::default(),
            applied: None,
            held: HeldBack::default(),
            most_held: usize::MAX,
            sync: Sync::InStep,
            down: false,
            unproven: false,
            round: 0,
            rounds: 0,
            fruitless: 0,
            head: None,
            flooded: false,
            giving_up: false,
            rebuild_at: None,
            rebuild_wait: replay.map_or(Duration::ZERO, |options| options.rebuild),
            audits: Audits::default(),
            random: seed,
            unsound: None,
            wrongs: 0,
            steps: VecDeque::new(),
            counters: SequencerCounters::default(),
        }
    }

    /// Gives a stream a replay source, whatever it has seen so far: the next gap is asked for.
    pub fn follow(&mut self, options: ReplayOptions, seed: u64) {
        self.replay = Some(options);
        self.rebuild_wait = options.rebuild;
        self.random = seed;
    }

    /// A batch came live. Returns what its number said, in the light of what arrived before; the steps
    /// say what follows from it. Batches that came while the link was said to be down are dropped as
    /// late: the round that follows brings them.
    pub fn live(&mut self, now: Duration, arrival: Arrival<'_>) -> Verdict {
        debug_assert!(self.steps.is_empty() && !self.giving_up, "steps were left");
        let mark = Mark::of(&arrival);
        if self.down {
            self.counters.late += 1;
            return Verdict::Late;
        }
        let verdict = match arrival.timestamp {
            // It has no clock, and garbage must not cost what is known: no proof of a restart.
            None if self.order.newest().is_some_and(|newest| mark.seq <= newest) => {
                self.counters.late += 1;
                return Verdict::Late;
            }
            None => self.order.judge(mark.seq, f64::NAN, mark.digest),
            Some(timestamp) => self.order.judge(mark.seq, timestamp, mark.digest),
        };
        match verdict {
            Verdict::Duplicate => {
                self.counters.duplicates += 1;
                self.recognise(now, mark);
            }
            Verdict::Late => {
                self.counters.late += 1;
                match self.replay {
                    None => self.degrade(Reason::OutOfOrder),
                    Some(_) => self.doubt(now),
                }
            }
            Verdict::Restart => {
                self.begin_incarnation();
                self.counters.restarts += 1;
                self.admit(now, mark, arrival.payload);
            }
            Verdict::Next | Verdict::Gap { .. } => self.admit(now, mark, arrival.payload),
        }
        verdict
    }

    /// Says how many bytes may be held back at most, below [`ReplayOptions::max_held_bytes`], because others hold back
    /// a lot, too.
    pub fn limit_held(&mut self, bytes: usize) {
        self.most_held = bytes;
    }

    /// A batch of a round came.
    pub fn replayed(&mut self, now: Duration, round: u64, arrival: Arrival<'_>) -> Flow {
        debug_assert!(self.steps.is_empty() && !self.giving_up, "steps were left");
        let current = match self.sync {
            Sync::Asked(current) if round == self.round => current,
            Sync::Rebuilding if round == self.round && arrival.seq == 0 => {
                // The same publisher: what arrived is still known to exist, and what cannot be mended
                // is not tried as eagerly again.
                let (order, wait) = (mem::take(&mut self.order), self.rebuild_wait);
                self.begin_incarnation();
                (self.order, self.rebuild_wait) = (order, wait);
                self.counters.rebuilt += 1;
                Round { proven: true, progressed: false }
            }
            Sync::Rebuilding if round == self.round => {
                // The buffer begins later: this incarnation can be rebuilt no more, but the next one.
                self.sync = Sync::InStep;
                self.plan_rebuild(now);
                return Flow::Stop;
            }
            Sync::Auditing if round == self.round => return self.audited(now, &arrival),
            _ => {
                self.counters.stale += 1;
                return Flow::Stop;
            }
        };
        self.sync = Sync::Asked(current);
        let mark = Mark::of(&arrival);
        if let Some(applied) = self.applied
            && mark.seq <= applied.seq
        {
            return self.repeated(now, current, applied, mark);
        }
        let known = self.order.digest_of(mark.seq);
        if known.is_some_and(|known| known != mark.digest) {
            // What came live under this number was another batch: one of them is of an incarnation
            // that is over. The next round is of the one that lives.
            self.distrust_arrivals();
            return self.round_over(now, None);
        }
        let wanted = self.wanted();
        if wanted != Some(mark.seq) || !current.proven {
            let confirmed = self.head == Some((wanted, Head::Hole));
            if current.progressed || !confirmed {
                return self.round_over(now, Some(Head::Hole));
            }
            self.step_over(now, mark.seq);
        }
        self.sync = Sync::Asked(Round { proven: true, progressed: true });
        if known.is_none() {
            let timestamp = mark.timestamp.unwrap_or(f64::NAN);
            self.order.record(mark.seq, timestamp, mark.digest);
        }
        self.steps.push_back(Step::Apply { seq: mark.seq });
        self.counters.replayed += 1;
        self.advance(mark);
        let met = self.held.front().is_some_and(|front| front.seq == mark.seq);
        self.held.drop_through(mark.seq);
        if met {
            self.release();
            if self.is_complete() {
                self.finish(now);
                return Flow::Stop;
            }
        }
        Flow::Continue
    }

    /// A round has ended.
    pub fn replay_ended(&mut self, now: Duration, round: u64, how: Ended) {
        if round != self.round {
            return;
        }
        let current = match self.sync {
            Sync::Asked(current) => current,
            Sync::Rebuilding => {
                self.sync = Sync::InStep;
                self.plan_rebuild(now);
                return;
            }
            Sync::Auditing => return self.audit_round_over(now, how),
            Sync::InStep | Sync::Waiting { .. } => return,
        };
        let head = match how {
            Ended::Cut => None,
            Ended::Marker if current.proven => {
                self.release();
                None
            }
            Ended::Marker => {
                if self.head == Some((self.wanted(), Head::Nothing)) {
                    // Its publisher does not know the batch that was applied last.
                    self.start_over(now);
                    return;
                }
                Some(Head::Nothing)
            }
        };
        if how == Ended::Marker && current.proven && self.is_complete() {
            self.finish(now);
        } else {
            self.round_over(now, head);
        }
    }

    /// The link to the publisher was lost or is up again. A batch that is handed in after `up` must have
    /// come over a connection that is no older.
    pub fn link(&mut self, now: Duration, up: bool) {
        if self.replay.is_none() {
            return;
        }
        self.down = !up;
        // A round that is under way may be another publisher's, and so may be what is held back.
        self.held.clear();
        if let Sync::Rebuilding = self.sync {
            self.plan_rebuild(now);
        }
        self.abandon_audit();
        self.sync = Sync::InStep;
        if self.audits.at.is_none() {
            self.plan_audit(now);
        }
        if up {
            self.doubt(now);
        }
    }

    /// Time has passed. To be said when [`wake_at`](Sequencer::wake_at) is reached.
    pub fn tick(&mut self, now: Duration) {
        match self.sync {
            Sync::Waiting { at } if at <= now => self.ask(),
            Sync::InStep if self.is_rebuild_due(now) => self.rebuild(),
            Sync::InStep if !self.down => match self.audits.at {
                None => self.plan_audit(now),
                Some(at) if at <= now => self.begin_audit(now),
                Some(_) => {}
            },
            _ => {}
        }
    }

    /// When [`tick`](Sequencer::tick) has something to do.
    pub fn wake_at(&self) -> Option<Duration> {
        match self.sync {
            Sync::Waiting { at } => Some(at),
            Sync::InStep if !self.down => {
                let rebuild = self.rebuild_at.filter(|_| self.may_rebuild());
                rebuild.into_iter().chain(self.audits.at).min()
            }
            _ => None,
        }
    }

    /// The next thing to do, or `None` when nothing is left.
    pub fn next_step(&mut self) -> Option<Step> {
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        if !self.giving_up {
            return None;
        }
        // One at a time: a batch that clears the worker heals what was missed before it, and only that.
        let Some((mark, payload)) = self.held.pop() else {
            self.giving_up = false;
            return None;
        };
        self.miss(mark.seq);
        self.advance(mark);
        Some(Step::Release(Held { seq: mark.seq, payload }))
    }

    /// Says that the residency no longer equals the effect of the batches. The first reason stays, unless only the
    /// new one says that the worker [may hold less](Reason::may_hold_less).
    pub fn degrade(&mut self, reason: Reason) {
        self.wrongs += 1;
        let is_worse = |known: Reason| reason.may_hold_less() && !known.may_hold_less();
        if self.unsound.is_none_or(is_worse) {
            self.unsound = Some(reason);
        }
    }

    /// Says that something of a batch was too much to be kept. With a replay source everything is asked for again, as
    /// after a loss: what has come since may have made room.
    pub fn overflowed(&mut self, now: Duration) {
        let is_new = self.unsound.is_none();
        self.degrade(Reason::Overflow);
        if is_new && self.replay.is_some() && !self.down {
            // The end of a round plans the rebuild.
            self.doubt(now);
        }
    }

    /// Says that everything the worker held is gone by its own word, and with it whatever was
    /// unclear about it.
    pub fn cleared(&mut self) {
        self.unsound = None;
        if let Sync::Rebuilding = self.sync {
            // Nothing is left to be mended.
            self.sync = Sync::InStep;
        }
    }

    /// How often the residency was said to be wrong so far: a clear that is applied later than its turn came heals
    /// only what was wrong by then.
    pub fn wrongs(&self) -> u64 {
        self.wrongs
    }

    /// Why the residency differs from the effect of all batches, if it may.
    pub fn unsound(&self) -> Option<Reason> {
        self.unsound
    }

    /// How far the order of batches goes: a reason that is known is said even while a replay is under way, and so is a
    /// [`Gap`](Reason::Gap) of batches that came and could not be held back, until they came again.
    pub fn trust(&self) -> Trust {
        match (self.unsound, self.sync) {
            (Some(reason), _) => Trust::Degraded(reason),
            (None, Sync::InStep | Sync::Auditing) if !self.down && !self.unproven => Trust::Exact,
            (None, _) if self.flooded => Trust::Degraded(Reason::Gap),
            (None, _) => Trust::Syncing,
        }
    }

    /// What is under way with the replay source; `None` without one.
    pub fn stage(&self) -> Option<Stage> {
        self.replay?;
        Some(match self.sync {
            _ if self.down => Stage::Down,
            Sync::InStep if self.unproven => Stage::Waiting,
            Sync::InStep => Stage::InStep,
            Sync::Waiting { .. } => Stage::Waiting,
            Sync::Asked(_) => Stage::Asked,
            Sync::Rebuilding => Stage::Rebuilding,
            Sync::Auditing => Stage::Auditing,
        })
    }

    /// The number of the last batch that was applied.
    pub fn as_of(&self) -> Option<u64> {
        self.applied.map(|applied| applied.seq)
    }

    /// Batches held back, and their bytes.
    pub fn held_back(&self) -> (usize, usize) {
        (self.held.len(), self.held.bytes())
    }

    /// What happened so far.
    pub fn counters(&self) -> SequencerCounters {
        self.counters
    }
}

impl Sequencer {
    /// The number after the last applied one; none after the largest.
    fn wanted(&self) -> Option<u64> {
        match self.applied {
            None => Some(0),
            Some(applied) => applied.seq.checked_add(1),
        }
    }

    /// Takes in a live batch that is new.
    fn admit(&mut self, now: Duration, mark: Mark, payload: &[u8]) {
        self.order.record(mark.seq, mark.timestamp.unwrap_or(f64::NAN), mark.digest);
        let in_step = matches!(self.sync, Sync::InStep | Sync::Rebuilding | Sync::Auditing);
        let is_next = self.wanted() == Some(mark.seq);
        if in_step && !is_next && self.applied.is_some() {
            self.counters.gaps += 1;
        }
        // A clock that runs backwards is no verdict, but a reason to ask: the batch may be one that an
        // earlier incarnation left behind.
        let is_plausible = !self.applied.is_some_and(|applied| mark.is_before(&applied));
        let Some(options) = self.replay else {
            if !is_next {
                self.miss(mark.seq);
            } else if self.unproven && !is_plausible {
                // The number fits, but by its clock it is of another life.
                self.degrade(Reason::Gap);
            }
            self.unproven = false;
            self.steps.push_back(Step::Apply { seq: mark.seq });
            self.advance(mark);
            return;
        };
        if in_step && is_next && is_plausible && !self.unproven {
            self.steps.push_back(Step::Apply { seq: mark.seq });
            self.advance(mark);
            self.keep_for_audit(mark, payload);
            return;
        }
        let max_bytes = options.max_held_bytes.min(self.most_held);
        let max_batches = options.max_held_batches;
        if !self.held.push(mark, payload, max_batches, max_bytes) {
            // `order` remembers that they exist, so the rounds go on until they came again.
            self.held.clear();
            self.flooded = true;
            self.counters.overflows += 1;
        }
        if in_step {
            self.doubt(now);
        }
    }

    /// Makes a batch the last applied one.
    fn advance(&mut self, mark: Mark) {
        if mark.seq == 0 && self.applied.is_none() && self.unsound == Some(Reason::MissedStart) {
            // Nothing was missed after all.
            self.unsound = None;
        }
        self.applied = Some(mark);
        self.counters.batches += 1;
    }

    /// Notes that batch `seq` is applied without those before it.
    fn miss(&mut self, seq: u64) {
        let wanted = self.wanted().unwrap_or(seq);
        if seq > wanted {
            self.counters.missing = self.counters.missing.saturating_add(seq - wanted);
            let started = self.applied.is_some();
            self.degrade(if started { Reason::Gap } else { Reason::MissedStart });
        }
    }

    /// Steps over batches that the publisher itself cannot give.
    fn step_over(&mut self, now: Duration, seq: u64) {
        let before = self.unsound;
        self.miss(seq);
        if self.wanted() == Some(seq) {
            // The numbers fit, but nothing shows that they are the same publisher's.
            self.degrade(Reason::Gap);
        }
        self.head = None;
        if before.is_none() {
            self.plan_rebuild(now);
        }
    }

    /// Everything that was known is another publisher's, or is to be built anew.
    fn begin_incarnation(&mut self) {
        self.abandon_audit();
        self.audits.forget();
        self.steps.push_back(Step::StartOver);
        self.order = Order::default();
        self.applied = None;
        self.held.clear();
        self.flooded = false;
        self.unsound = None;
        self.unproven = false;
        self.rebuild_at = None;
        self.rebuild_wait = self.replay.map_or(Duration::ZERO, |options| options.rebuild);
        self.sync = Sync::InStep;
        self.reset_rounds();
    }

    /// Follows a publisher that a round has shown to be a new one, from its beginning.
    fn start_over(&mut self, now: Duration) -> Flow {
        self.begin_incarnation();
        self.counters.restarts += 1;
        self.doubt(now);
        Flow::Stop
    }

    /// A round repeats what was applied.
    fn repeated(&mut self, now: Duration, current: Round, applied: Mark, mark: Mark) -> Flow {
        if mark.seq == applied.seq {
            if mark.digest != applied.digest {
                return self.start_over(now);
            }
            self.sync = Sync::Asked(Round { proven: true, ..current });
        }
        Flow::Continue
    }

    /// Applies what is held back as far as it follows, unless its clock says that it is a leftover.
    fn release(&mut self) {
        while let Some(front) = self.held.front() {
            if self.wanted() != Some(front.seq) {
                return;
            }
            if self.applied.is_some_and(|applied| front.is_before(&applied)) {
                self.distrust_arrivals();
                return;
            }
            let Some((mark, payload)) = self.held.pop() else { return };
            self.steps.push_back(Step::Release(Held { seq: mark.seq, payload }));
            self.advance(mark);
        }
    }

    /// Forgets all live batches that were not applied: the replay source knows better.
    fn distrust_arrivals(&mut self) {
        self.held.clear();
        self.order = Order::default();
        if let Some(applied) = self.applied {
            let timestamp = applied.timestamp.unwrap_or(f64::NAN);
            self.order.record(applied.seq, timestamp, applied.digest);
        }
    }

    /// Whether everything that is known to exist was applied.
    fn is_complete(&self) -> bool {
        self.held.len() == 0 && self.order.newest() <= self.as_of()
    }
}
