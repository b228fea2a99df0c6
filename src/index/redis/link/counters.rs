//! What happened on the way to the store, as numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::breaker::BreakerState;
use super::fault::Fault;

/// What happened on the way to a store since it was opened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCounters {
    /// Calls, the refused ones too.
    pub calls: u64,
    /// Commands sent, the repeated ones too.
    pub commands: u64,
    /// Calls and commands that failed because no connection was there.
    pub down: u64,
    /// Calls and commands without a reply at the deadline.
    pub late: u64,
    /// Calls refused because too many were in flight.
    pub busy: u64,
    /// Calls and commands that failed for want of a right: password or permission.
    pub denied: u64,
    /// Commands that the server answered with another error.
    pub server: u64,
    /// Commands sent again to another server of a cluster.
    pub redirected: u64,
    /// Scripts sent again with their text, because the server had forgotten them.
    pub scripts_reloaded: u64,
    /// Connections made.
    pub connects: u64,
    /// Connections made after an earlier one to the same server.
    pub reconnects: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Times that a breaker opened, because a connection broke or replies were late.
    pub opened: u64,
    /// Calls waiting for replies now.
    pub in_flight: u64,
    /// Servers known: 1, or the masters of a cluster.
    pub servers: u64,
    /// Servers of these with a connection in use.
    pub servers_ready: u64,
    /// The breaker; of a cluster the worst.
    pub breaker: BreakerState,
    /// Calls that were answered.
    pub answered: u64,
    /// How long these took, together.
    pub answer_time: Duration,
    /// How long the last of them took.
    pub last_call: Duration,
    /// The round-trip time of the last ping.
    pub last_ping: Duration,
}

/// The counting side of [`StoreCounters`].
#[derive(Debug, Default)]
pub(super) struct Counting {
    pub(super) calls: AtomicU64,
    pub(super) commands: AtomicU64,
    down: AtomicU64,
    late: AtomicU64,
    busy: AtomicU64,
    denied: AtomicU64,
    server: AtomicU64,
    pub(super) redirected: AtomicU64,
    pub(super) scripts_reloaded: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    pub(super) opened: AtomicU64,
    answered: AtomicU64,
    answer_micros: AtomicU64,
    last_call: AtomicU64,
    last_ping: AtomicU64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl Counting {
    pub(super) fn failed(&self, fault: &Fault) {
        let counter = match fault {
            Fault::Down(_) => &self.down,
            Fault::Late(_) => &self.late,
            Fault::Busy(_) => &self.busy,
            Fault::Denied(_) => &self.denied,
            Fault::Server(_) => &self.server,
        };
        add(counter, 1);
    }

    pub(super) fn call_took(&self, time: Duration) {
        add(&self.answered, 1);
        add(&self.answer_micros, time.as_micros() as u64);
        self.last_call.store(time.as_micros() as u64, Relaxed);
    }

    pub(super) fn ping_took(&self, time: Duration) {
        self.last_ping.store(time.as_micros() as u64, Relaxed);
    }

    /// The numbers; those of servers and calls in flight are the caller's to fill in.
    pub(super) fn read(&self) -> StoreCounters {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        StoreCounters {
            calls: load(&self.calls),
            commands: load(&self.commands),
            down: load(&self.down),
            late: load(&self.late),
            busy: load(&self.busy),
            denied: load(&self.denied),
            server: load(&self.server),
            redirected: load(&self.redirected),
            scripts_reloaded: load(&self.scripts_reloaded),
            connects: load(&self.connects),
            reconnects: load(&self.reconnects),
            connect_failures: load(&self.connect_failures),
            opened: load(&self.opened),
            answered: load(&self.answered),
            answer_time: Duration::from_micros(load(&self.answer_micros)),
            last_call: Duration::from_micros(load(&self.last_call)),
            last_ping: Duration::from_micros(load(&self.last_ping)),
            ..StoreCounters::default()
        }
    }
}
