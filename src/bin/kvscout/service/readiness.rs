//! When the daemon says that it is ready.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kvscout::ingest::Trust;

use super::Service;
use crate::config::Ready;

/// How far a start has come. Once it is over it stays over: engines that restart later must not take
/// every replica out of service at once.
#[derive(Debug)]
pub(super) struct Readiness {
    policy: Ready,
    since: Instant,
    reached: AtomicBool,
}

impl Readiness {
    pub(super) fn new(policy: Ready) -> Readiness {
        Readiness { policy, since: Instant::now(), reached: AtomicBool::new(false) }
    }

    /// Whether enough of so many workers are exact, or nobody waits for that any more.
    fn is_reached(&self, exact: usize, all: usize) -> bool {
        // Half of a worker is one; what products of binary fractions have too much is none.
        let wanted = (self.policy.workers * all as f64 - 1e-6).ceil() as usize;
        let late = self.policy.deadline.is_some_and(|deadline| self.since.elapsed() >= deadline);
        late || exact >= wanted
    }
}

impl Service {
    /// Whether the daemon is ready: every configured source was added, and enough workers are exact
    /// or were at some time; or, of a reader, whether it has read the store lately.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if let Some(instead) = self.instead() {
            return instead.readiness();
        }
        let pending = self.pending();
        if !pending.is_empty() {
            let why: Vec<_> = pending.iter().map(|(name, why)| format!("{name}: {why}")).collect();
            return Err(why.join("; "));
        }
        let readiness = &self.readiness;
        if readiness.reached.load(Ordering::Relaxed) {
            return Ok(());
        }
        let workers = self.workers();
        let exact = workers.iter().filter(|view| view.status.trust == Trust::Exact).count();
        if !readiness.is_reached(exact, workers.len()) {
            return Err(format!(
                "{exact} of {} workers are exact; ready.workers asks for a share of {}",
                workers.len(),
                readiness.policy.workers
            ));
        }
        readiness.reached.store(true, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_share_of_the_workers_or_a_deadline_makes_ready() {
        let of = |workers, deadline| Readiness::new(Ready { workers, deadline });
        let half = of(0.5, None);
        assert!(half.is_reached(0, 0) && half.is_reached(2, 3) && half.is_reached(1, 2));
        assert!(!half.is_reached(1, 3) && !half.is_reached(0, 1));
        assert!(of(0.55, None).is_reached(55, 100), "0.55 times 100 is a little more than 55");
        assert!(of(0.0, None).is_reached(0, 9));
        assert!(!of(1.0, Some(Duration::MAX)).is_reached(8, 9));
        assert!(of(1.0, Some(Duration::ZERO)).is_reached(0, 9));
    }
}
