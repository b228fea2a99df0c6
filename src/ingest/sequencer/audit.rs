//! Comparing what is held with what the publisher's buffer says.
//!
//! An audit asks for everything from batch 0 on and has it applied to a *shadow*, beside the live
//! residency, up to the batch that was applied last when it began, and then the live ones that came
//! meanwhile. So both are of one number when they are compared. It changes nothing that is applied, and
//! whatever else is to be asked for ends it.
//!
//! What the publisher lost before it numbered it is in no buffer either: no audit finds that.

use std::time::Duration;

use super::held::HeldBack;
use super::{Arrival, Ended, Flow, Held, Mark, Reason, Sequencer, Step, Sync};

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
    /// None can be had: no replay source, a buffer that does not reach batch 0 any more, or something is
    /// held, or not held, by more than the effect of batches.
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

/// What is remembered of a stream's audits.
#[derive(Clone, Debug, Default)]
pub(super) struct Audits {
    /// When the next one is due.
    pub(super) at: Option<Duration>,
    /// Not now, by the driver's word.
    forbidden: bool,
    /// The buffer begins after batch 0.
    outlived: bool,
    last: Option<Comparison>,
    /// The one under way.
    current: Option<Box<Current>>,
}

#[derive(Clone, Debug)]
struct Current {
    /// The number that the shadow wants next.
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
        (self.outlived, self.last) = (false, None);
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
            _ if self.audits.forbidden || self.audits.outlived => AuditState::Unavailable,
            (_, Some(Comparison::Equal)) => AuditState::Ok,
            (_, Some(Comparison::Different)) => AuditState::Differed,
            _ => AuditState::Pending,
        }
    }

    /// The shadow was compared as [`Step::Compare`] asked.
    pub fn compared(&mut self, now: Duration, comparison: Comparison) {
        if !matches!(self.sync, Sync::Auditing) {
            return;
        }
        self.sync = Sync::InStep;
        self.end_audit(now);
        match comparison {
            Comparison::Equal => self.counters.audits_ok += 1,
            Comparison::Undecided => {
                self.counters.audits_unfinished += 1;
                return;
            }
            Comparison::Different => {
                self.counters.audits_differed += 1;
                self.degrade(Reason::Audit);
                // The buffer reached batch 0 a moment ago.
                self.rebuild();
            }
        }
        self.audits.last = Some(comparison);
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
        let Audits { forbidden, outlived, .. } = self.audits;
        if forbidden || outlived || self.unproven || self.unsound.is_some() {
            return;
        }
        let since = HeldBack::default();
        let current = Current { next: 0, target, since, rounds: 0, progressed: false };
        self.audits.current = Some(Box::new(current));
        self.sync = Sync::Auditing;
        self.ask_for_audit(0);
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
            if current.next == 0 {
                // What came before is gone for as long as this publisher lives.
                self.audits.outlived = true;
                self.sync = Sync::InStep;
                self.end_audit(now);
                return Flow::Stop;
            }
            self.audit_round_over(now, Ended::Cut);
            return Flow::Stop;
        }
        if mark.seq == current.target.seq && mark.digest != current.target.digest {
            // Another publisher's. The round that follows shows what to make of it.
            self.doubt(now);
            return Flow::Stop;
        }
        self.steps.push_back(Step::Shadow { seq: mark.seq });
        current.progressed = true;
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
