//! When to ask, what for, and for how long.
//!
//! A round asks for what is missing. Those that bring nothing wait ever longer and are bounded; then the rest
//! is given up. A rebuild asks for everything, seldom.

use std::time::Duration;

use super::{Flow, Reason, Sequencer, Step, Sync};

#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Whether it has repeated the last applied batch, or continues nothing.
    pub(super) proven: bool,
    /// Whether it has brought anything new.
    pub(super) progressed: bool,
}

/// What a round that brought nothing new showed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Nothing,
    Hole,
}

impl Sequencer {
    /// Begins to prove where the publisher stands, unless that is under way.
    pub(super) fn doubt(&mut self, now: Duration) {
        match self.sync {
            Sync::Waiting { .. } | Sync::Asked(_) => return,
            Sync::Rebuilding => self.plan_rebuild(now),
            Sync::Auditing => self.abandon_audit(),
            Sync::InStep => {}
        }
        self.reset_rounds();
        self.ask();
    }

    pub(super) fn reset_rounds(&mut self) {
        self.rounds = 0;
        self.fruitless = 0;
        self.head = None;
    }

    pub(super) fn ask(&mut self) {
        self.next_round(self.as_of().unwrap_or(0));
        // With nothing applied there is nothing to continue.
        self.sync = Sync::Asked(Round { proven: self.applied.is_none(), progressed: false });
    }

    pub(super) fn next_round(&mut self, from: u64) {
        self.round += 1;
        self.counters.rounds += 1;
        self.steps.push_back(Step::Ask { round: self.round, from });
    }

    /// The current round is over and did not close everything.
    pub(super) fn round_over(&mut self, now: Duration, head: Option<Head>) -> Flow {
        let Sync::Asked(round) = self.sync else { return Flow::Stop };
        let Some(options) = self.replay else { return Flow::Stop };
        self.rounds += 1;
        self.fruitless = if round.progressed { 0 } else { self.fruitless + 1 };
        self.head = match head {
            Some(head) if !round.progressed => Some((self.wanted(), head)),
            _ => self.head,
        };
        if self.fruitless >= options.max_fruitless || self.rounds >= options.max_rounds {
            self.give_up(now);
        } else if round.progressed {
            self.ask();
        } else {
            let doubled = options.backoff.saturating_mul(1 << (self.fruitless - 1).min(20));
            let at = now + self.spread(doubled.min(options.backoff_max));
            self.sync = Sync::Waiting { at };
        }
        Flow::Stop
    }

    pub(super) fn finish(&mut self, now: Duration) {
        self.sync = Sync::InStep;
        (self.unproven, self.flooded) = (false, false);
        self.counters.repaired += 1;
        self.reset_rounds();
        if self.audits.at.is_none() {
            self.plan_audit(now);
        }
        if self.may_rebuild() && self.rebuild_at.is_none() {
            // It was resumed as it was, with what it had missed before.
            self.plan_rebuild(now);
        }
    }

    pub(super) fn give_up(&mut self, now: Duration) {
        self.sync = Sync::InStep;
        (self.unproven, self.flooded) = (false, false);
        self.counters.given_up += 1;
        self.giving_up = true;
        // Even where no number is known to be missing, nothing shows that none is.
        let started = self.applied.is_some();
        self.degrade(if started { Reason::Gap } else { Reason::MissedStart });
        self.plan_rebuild(now);
    }

    /// Whether a round from batch 0 could mend what is wrong.
    pub(super) fn may_rebuild(&self) -> bool {
        let mended = [Reason::Gap, Reason::MissedStart, Reason::Overflow, Reason::Audit];
        self.unsound.is_some_and(|reason| mended.contains(&reason))
    }

    pub(super) fn is_rebuild_due(&self, now: Duration) -> bool {
        !self.down && self.may_rebuild() && self.rebuild_at.is_some_and(|at| at <= now)
    }

    /// Asks for batch 0, to build the worker anew from there.
    pub(super) fn rebuild(&mut self) {
        self.rebuild_at = None;
        self.next_round(0);
        self.sync = Sync::Rebuilding;
    }

    pub(super) fn plan_rebuild(&mut self, now: Duration) {
        let Some(options) = self.replay else { return };
        self.rebuild_at = Some(now + self.spread(self.rebuild_wait));
        self.rebuild_wait = self.rebuild_wait.saturating_mul(2).min(options.rebuild_max);
    }

    /// Between half of a wait and all of it: workers that were cut off together do not come back together.
    pub(super) fn spread(&mut self, wait: Duration) -> Duration {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let half = wait / 2;
        half + half.mul_f64((mixed >> 11) as f64 / (1_u64 << 53) as f64)
    }
}
