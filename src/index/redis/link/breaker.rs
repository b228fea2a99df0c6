//! When a connection is given up, and how long to wait before the next.

use std::time::Duration;

/// Whether calls reach a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakerState {
    /// Calls are sent.
    #[default]
    Closed,
    /// Calls fail at once; a connection is being tried in the background.
    HalfOpen,
    /// Calls fail at once until the next attempt to connect.
    Open,
}

/// The circuit breaker of one server. It knows no clock and no socket.
///
/// A lost connection opens it at once, since nothing can be sent; late replies do when there were
/// enough of them in a row. A new connection that answers closes it.
#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerState,
    late_limit: u32,
    /// Late replies since the last one in time.
    late: u32,
    /// Attempts to connect since a connection was good for something. Not since the last connection: a server
    /// that accepts and then breaks every connection is tried ever less often too.
    attempts: u32,
}

impl Breaker {
    pub(super) fn new(late_limit: u32) -> Breaker {
        Breaker { state: BreakerState::Open, late_limit, late: 0, attempts: 0 }
    }

    pub(super) fn state(&self) -> BreakerState {
        self.state
    }

    /// A reply came in time.
    pub(super) fn in_time(&mut self) {
        self.late = 0;
        self.attempts = 0;
    }

    /// The connection has lasted a while.
    pub(super) fn lasted(&mut self) {
        self.attempts = 0;
    }

    /// A reply did not come in time. Whether the breaker opened.
    pub(super) fn late(&mut self) -> bool {
        self.late = self.late.saturating_add(1);
        self.state == BreakerState::Closed && self.late >= self.late_limit && self.open()
    }

    /// The connection is lost or given up. Whether the breaker was not open before.
    pub(super) fn open(&mut self) -> bool {
        let was = std::mem::replace(&mut self.state, BreakerState::Open);
        was != BreakerState::Open
    }

    /// A connection is being tried.
    pub(super) fn probe(&mut self) {
        self.state = BreakerState::HalfOpen;
        self.attempts = self.attempts.saturating_add(1);
    }

    /// The new connection answered.
    pub(super) fn close(&mut self) {
        self.state = BreakerState::Closed;
        self.late = 0;
    }

    /// How long to wait before the next attempt: nothing before the first, then twice as long each
    /// time up to `max`; half of it by chance, so that clients of one server do not return together.
    pub(super) fn pause(&self, min: Duration, max: Duration, chance: u32) -> Duration {
        if self.attempts == 0 {
            return Duration::ZERO;
        }
        let full = min.saturating_mul(1 << (self.attempts - 1).min(20)).min(max);
        full / 2 + (full / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(50);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn late_replies_in_a_row_open_the_breaker_and_one_in_time_starts_the_count_anew() {
        let mut breaker = Breaker::new(3);
        breaker.probe();
        breaker.close();
        assert!(!breaker.late() && !breaker.late());
        breaker.in_time();
        assert!(!breaker.late() && !breaker.late());
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert!(breaker.late());
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.late(), "it opens once");
        breaker.probe();
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(!breaker.late(), "a straggler of the old connection does not end the probe");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.close();
        assert!(!breaker.late(), "the new connection starts at none");
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_half_by_chance() {
        let mut breaker = Breaker::new(3);
        assert_eq!(breaker.pause(MIN, MAX, u32::MAX), Duration::ZERO, "the first is at once");
        let mut pauses = Vec::new();
        for _ in 0..40 {
            breaker.probe();
            breaker.open();
            assert_eq!(breaker.pause(MIN, MAX, 0) * 2, breaker.pause(MIN, MAX, u32::MAX));
            pauses.push(breaker.pause(MIN, MAX, u32::MAX));
        }
        assert_eq!(pauses[..4], [MIN, MIN * 2, MIN * 4, MIN * 8]);
        assert_eq!(pauses[39], MAX);
    }

    #[test]
    fn connections_that_break_before_a_reply_do_not_shorten_the_pause() {
        let mut breaker = Breaker::new(3);
        for _ in 0..3 {
            breaker.probe();
            breaker.close();
            breaker.open();
        }
        assert_eq!(breaker.pause(MIN, MAX, u32::MAX), MIN * 4);
        breaker.probe();
        breaker.close();
        breaker.in_time();
        breaker.open();
        assert_eq!(breaker.pause(MIN, MAX, u32::MAX), Duration::ZERO);
    }
}
