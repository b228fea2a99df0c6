//! Comparing what is held with what the publisher's buffer says.
//!
//! An audit asks for everything from batch 0 on and has it applied to a *shadow*, beside the live
//! residency, up to the batch that was applied last when it began, and then the live ones that came
//! meanwhile. So both are of one number when they are compared. It changes nothing that is applied, and
//! whatever else is to be asked for ends it.
//!
//! Where the buffer begins later, the shadow begins at an *anchor*: what was held as of some batch, which the
//! driver has kept. The publisher repeats that batch, as proof that it is still the same. What the last audit
//! made of the batches before is an anchor, and rests on as much as that audit; so is what a snapshot
//! said, or what is held now, which rests on itself. If the buffer has left the anchor behind as well, the next
//! one is taken, and looked at again before the buffer has moved on as far.
//!
//! What the publisher lost before it numbered it is in no buffer either: no audit finds that.

use std::time::Duration;

use super::held::HeldBack;
use super::{Arrival, Ended, Flow, Held, Mark, Reason, Sequencer, Step, Sync};

/// What part of its period an audit of a fresh anchor waits at least, whatever the publisher's clock says.
const SOONEST: u32 = 16;

/// What came of comparing a shadow with what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Comparison {
    /// They hold the same copies.
    Equal,
    /// They do not.
    Different,
    /// One of the two was not whole, or not to be judged.
    Undecided,
}

/// What is known of a stream's audits, in this life of its publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuditState {
    /// None are asked for.
    Off,
    /// None can be had: no replay source, nothing to begin from where the buffer does not reach batch 0 any
    /// more, something is held, or not held, by more than the effect of batches, or there is too much of it.
    Unavailable,
    /// None has ended yet.
    Pending,
    /// The last one found what is held.
    Ok,
    /// The last one found something else.
    Differed,
}

impl AuditState {
    /// A stable label, as it appears in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            AuditState::Off => "off",
            AuditState::Unavailable => "unavailable",
            AuditState::Pending => "pending",
            AuditState::Ok => "ok",
            AuditState::Differed => "differed",
        }
    }

    /// Every one there is.
    pub const ALL: [AuditState; 5] = [
        AuditState::Off,
        AuditState::Unavailable,
        AuditState::Pending,
        AuditState::Ok,
        AuditState::Differed,
    ];
}

/// What the driver did behind a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    /// Nothing.
    None,
    /// It keeps the shadow as the next anchor.
    Anchored,
    /// It gave the worker what the shadow had.
    Mended,
    /// There was no shadow, or not all of it, for a reason that stays: it would take too much.
    TooLarge,
}

/// What audits may begin from, kept by the driver.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    /// The last batch whose effect is in it.
    mark: Mark,
    /// Where what it rests on begins: batch 0, or what was held as of a batch.
    since: Option<u64>,
}

/// What is remembered of a stream's audits.
#[derive(Clone, Debug, Default)]
pub(super) struct Audits {
    /// When the next one is due.
    pub(super) at: Option<Duration>,
    /// Not now, by the driver's word.
    forbidden: bool,
    /// The buffer begins after batch 0.
    outlived: bool,
    /// There can be no shadow, by the driver's word.
    too_large: bool,
    anchor: Option<Anchor>,
    last: Option<Comparison>,
    /// Where what the last one rests on begins.
    since: Option<u64>,
    /// The one under way.
    current: Option<Box<Current>>,
}

#[derive(Clone, Debug)]
struct Current {
    /// Where the shadow begins; `None` for batch 0.
    anchor: Option<Anchor>,
    /// Whether there is a shadow.
    begun: bool,
    /// The number that the shadow wants next, or, before it has begun, that of the anchor.
    next: u64,
    /// What was applied last when it began.
    target: Mark,
    /// What was applied since.
    since: HeldBack,
    rounds: u32,
    progressed: bool,
}

impl Audits {
    /// Those of another life say nothing about this one.
    pub(super) fn forget(&mut self) {
        let (at, forbidden) = (self.at, self.forbidden);
        *self = Audits { at, forbidden, ..Audits::default() };
    }
}

impl Sequencer {
    /// Says whether audits make no sense at present, because what is held is meant to differ from the effect
    /// of the batches, or because they would not be judged.
    pub fn forbid_audits(&mut self, forbidden: bool) {
        self.audits.forbidden = forbidden;
    }

    /// What is known of the stream's audits.
    pub fn audit_state(&self) -> AuditState {
        let period = self.replay.map(|options| options.audit);
        match (period, self.audits.last) {
            (Some(Duration::ZERO), _) => AuditState::Off,
            (None, _) => AuditState::Unavailable,
            _ if self.audits.forbidden || self.audits.too_large => AuditState::Unavailable,
            _ if self.audits.outlived && self.audits.anchor.is_none() => AuditState::Unavailable,
            (_, Some(Comparison::Equal)) => AuditState::Ok,
            (_, Some(Comparison::Different)) => AuditState::Differed,
            _ => AuditState::Pending,
        }
    }

    /// Where what the last audit rests on begins: `None` at batch 0, else at what was held as of a batch.
    pub fn audited_since(&self) -> Option<u64> {
        self.audits.since
    }

    /// Says that what is held as of the last applied batch was kept, for audits to begin from: as
    /// [`Step::Anchor`] asks, or because a snapshot says it.
    pub fn anchored(&mut self) {
        self.audits.anchor = self.applied.map(|mark| Anchor { mark, since: Some(mark.seq) });
    }

    /// The shadow was compared as [`Step::Compare`] asked.
    pub fn compared(&mut self, now: Duration, comparison: Comparison, aftermath: Aftermath) {
        if !matches!(self.sync, Sync::Auditing) {
            return;
        }
        self.sync = Sync::InStep;
        let anchor = self.audits.current.as_ref().and_then(|current| current.anchor);
        self.end_audit(now);
        if comparison == Comparison::Undecided {
            self.counters.audits_unfinished += 1;
            if aftermath == Aftermath::TooLarge {
                (self.audits.too_large, self.audits.anchor) = (true, None);
            }
            return;
        }
        self.audits.last = Some(comparison);
        self.audits.since = anchor.and_then(|anchor| anchor.since);
        self.counters.audits_anchored += u64::from(anchor.is_some());
        // The one before is another batch's.
        self.audits.anchor = None;
        if comparison == Comparison::Equal {
            self.counters.audits_ok += 1;
            if let (Aftermath::Anchored, Some(mark)) = (aftermath, self.applied) {
                self.audits.anchor = Some(Anchor { mark, since: self.audits.since });
            }
            return;
        }
        self.counters.audits_differed += 1;
        if aftermath == Aftermath::Mended {
            self.counters.mended += 1;
            self.audits.last = None;
            self.steps.push_back(Step::Anchor);
            return;
        }
        self.degrade(Reason::Audit);
        match anchor {
            // The buffer reached batch 0 a moment ago.
            None => self.rebuild(),
            Some(_) => self.plan_rebuild(now),
        }
    }

    /// Decides when the first audit, or the next one, is due.
    pub(super) fn plan_audit(&mut self, now: Duration) {
        let period = self.replay.map_or(Duration::ZERO, |options| options.audit);
        self.audits.at = match period.is_zero() {
            true => None,
            false => Some(now + self.spread(period)),
        };
    }

    /// Begins the audit that is due, if one can be had.
    pub(super) fn begin_audit(&mut self, now: Duration) {
        // Also for the case that nobody says how it ends.
        self.plan_audit(now);
        let Some(target) = self.applied else { return };
        let Audits { forbidden, outlived, too_large, anchor, .. } = self.audits;
        if forbidden || too_large || self.unproven || self.unsound.is_some() {
            return;
        }
        if outlived && anchor.is_none() {
            self.steps.push_back(Step::Anchor);
            return;
        }
        let anchor = anchor.filter(|_| outlived);
        let next = anchor.map_or(0, |anchor| anchor.mark.seq);
        let since = HeldBack::default();
        let (begun, rounds, progressed) = (false, 0, false);
        let current = Current { anchor, begun, next, target, since, rounds, progressed };
        self.audits.current = Some(Box::new(current));
        self.sync = Sync::Auditing;
        self.ask_for_audit(next);
    }

    fn ask_for_audit(&mut self, from: u64) {
        self.round += 1;
        self.counters.rounds += 1;
        self.steps.push_back(Step::Audit { round: self.round, from });
    }

    /// Ends whatever audit is under way, before something else is done.
    pub(super) fn abandon_audit(&mut self) {
        if self.audits.current.take().is_some() {
            self.counters.audits_unfinished += 1;
            self.steps.push_back(Step::Discard);
        }
        if matches!(self.sync, Sync::Auditing) {
            self.sync = Sync::InStep;
        }
    }

    fn end_audit(&mut self, now: Duration) {
        self.audits.current = None;
        self.steps.push_back(Step::Discard);
        self.plan_audit(now);
    }

    /// A batch of an audit's round came.
    pub(super) fn audited(&mut self, now: Duration, arrival: &Arrival<'_>) -> Flow {
        let mark = Mark::of(arrival);
        let Some(current) = &mut self.audits.current else { return Flow::Stop };
        if mark.seq < current.next {
            return Flow::Continue;
        }
        if mark.seq > current.next {
            match current.begun {
                false => self.begins_later(now, mark),
                true => self.audit_round_over(now, Ended::Cut),
            }
            return Flow::Stop;
        }
        let anchor = current.anchor.filter(|_| !current.begun);
        let is_other = |known: Mark| mark.seq == known.seq && mark.digest != known.digest;
        if is_other(current.target) || anchor.is_some_and(|anchor| is_other(anchor.mark)) {
            // Another publisher's. The round that follows shows what to make of it.
            self.doubt(now);
            return Flow::Stop;
        }
        self.steps.push_back(match anchor {
            None => Step::Shadow { seq: mark.seq },
            Some(_) => Step::ShadowAnchor,
        });
        (current.begun, current.progressed) = (true, true);
        if mark.seq < current.target.seq {
            current.next = mark.seq + 1;
            return Flow::Continue;
        }
        while let Some((mark, payload)) = current.since.pop() {
            self.steps.push_back(Step::ShadowHeld(Held { seq: mark.seq, payload }));
        }
        self.steps.push_back(Step::Compare);
        Flow::Stop
    }

    /// The buffer begins with this batch, behind where the audit would: what came before is gone for as long
    /// as this publisher lives.
    fn begins_later(&mut self, now: Duration, first: Mark) {
        let Some(current) = self.audits.current.take() else { return };
        self.steps.push_back(Step::Discard);
        self.sync = Sync::InStep;
        self.audits.outlived = true;
        self.audits.anchor = self.audits.anchor.filter(|anchor| anchor.mark.seq >= first.seq);
        if self.audits.anchor.is_some() {
            self.begin_audit(now);
            return;
        }
        self.steps.push_back(Step::Anchor);
        // Half of what the buffer spans by the publisher's clock, within reason.
        let period = self.replay.map_or(Duration::ZERO, |options| options.audit);
        let spans = match (first.timestamp, current.target.timestamp) {
            (Some(first), Some(last)) => Duration::try_from_secs_f64((last - first) / 2.0).ok(),
            _ => None,
        };
        let wait = spans.map_or(period, |half| half.clamp(period / SOONEST, period));
        self.audits.at = Some(now + self.spread(wait));
    }

    /// A round of an audit is over before it came to where it should.
    pub(super) fn audit_round_over(&mut self, now: Duration, how: Ended) {
        let Some(options) = self.replay else { return };
        let Some(current) = &mut self.audits.current else { return };
        current.rounds += 1;
        let progressed = std::mem::take(&mut current.progressed);
        let (next, rounds) = (current.next, current.rounds);
        if progressed && rounds < options.max_rounds {
            return self.ask_for_audit(next);
        }
        if !progressed && how == Ended::Marker {
            // It does not know what was applied: the round that follows shows what to make of it.
            return self.doubt(now);
        }
        self.abandon_audit();
        self.plan_audit(now);
    }

    /// Keeps a batch that was applied while an audit is under way.
    pub(super) fn keep_for_audit(&mut self, mark: Mark, payload: &[u8]) {
        let Some(options) = self.replay else { return };
        let Some(current) = &mut self.audits.current else { return };
        let (batches, bytes) = (options.max_held_batches, options.max_held_bytes);
        if !current.since.push(mark, payload, batches, bytes) {
            self.abandon_audit();
        }
    }
}
