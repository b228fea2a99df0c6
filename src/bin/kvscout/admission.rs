//! How many questions are answered at a time, and how many may wait for that. Whoever comes beyond is told at once:
//! a router that knows goes on without an answer, one that waits does not.

use std::sync::Arc;
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Bodies are counted in pieces of this size, and up to one for free: connections are bounded themselves.
pub(crate) const PIECE: usize = 64 << 10;

/// Where no other number is configured, for each core: one that is computed and one that is there when it is done.
const FOR_EACH_CORE: usize = 2;

/// The bounds.
#[derive(Debug)]
pub(crate) struct Admission {
    running: Arc<Semaphore>,
    waiting: Semaphore,
    bodies: Arc<Semaphore>,
}

/// Leave to compute an answer now.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overloaded;

impl Admission {
    /// The bounds as they are configured.
    pub(crate) fn new(limits: &Limits) -> Admission {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let running = limits.concurrency.map_or_else(|| cores() * FOR_EACH_CORE, usize::from);
        let most = |count: usize| count.min(Semaphore::MAX_PERMITS);
        Admission {
            running: Arc::new(Semaphore::new(most(running))),
            waiting: Semaphore::new(most(limits.queue)),
            bodies: Arc::new(Semaphore::new(most(limits.body_memory / PIECE))),
        }
    }

    /// Whether whoever came now would neither be answered nor wait.
    pub(crate) fn is_full(&self) -> bool {
        self.running.available_permits() == 0 && self.waiting.available_permits() == 0
    }

    /// A turn, after those of whoever came before.
    pub(crate) async fn turn(&self) -> Result<Turn, Overloaded> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            // Whoever came meanwhile is taken note of first: what is answered right here, without a pause,
            // would otherwise hide how many there are.
            tokio::task::yield_now().await;
            return Ok(Turn { _permit: permit });
        }
        let _place = self.waiting.try_acquire().map_err(|_| Overloaded)?;
        let permit = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Overloaded)?;
        Ok(Turn { _permit: permit })
    }

    /// Room for a body.
    pub(crate) fn room(&self) -> Room {
        Room { bodies: Arc::clone(&self.bodies), bytes: PIECE, permit: None }
    }
}

/// Memory that a body may take; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    bodies: Arc<Semaphore>,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for so many bytes in all.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Overloaded> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let pieces = (bytes - self.bytes).div_ceil(PIECE);
        let wanted = u32::try_from(pieces).map_err(|_| Overloaded)?;
        let more = Arc::clone(&self.bodies).try_acquire_many_owned(wanted);
        let more = more.map_err(|_| Overloaded)?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        self.bytes += pieces * PIECE;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::config::Config;

    fn admission(concurrency: usize, queue: usize, body_memory: usize) -> Admission {
        let concurrency = NonZeroUsize::new(concurrency);
        Admission::new(&Limits { concurrency, queue, body_memory, ..Config::default().limits })
    }

    #[tokio::test]
    async fn one_runs_one_waits_and_a_third_is_told_at_once() {
        let admission = Arc::new(admission(1, 1, 0));
        let first = admission.turn().await.unwrap();
        assert!(!admission.is_full());
        let other = Arc::clone(&admission);
        let second = tokio::spawn(async move { other.turn().await.map(drop) });
        while !admission.is_full() {
            tokio::task::yield_now().await;
        }
        assert_eq!(admission.turn().await.unwrap_err(), Overloaded);
        drop(first);
        assert_eq!(second.await.unwrap(), Ok(()));
        assert!(admission.turn().await.is_ok());
    }

    #[test]
    fn bodies_share_their_memory_and_give_it_back() {
        let admission = admission(1, 0, 4 * PIECE);
        let (mut one, mut other) = (admission.room(), admission.room());
        assert_eq!(one.grow_to(4 * PIECE), Ok(()), "the first piece is free");
        assert_eq!(other.grow_to(2 * PIECE), Ok(()));
        assert_eq!(other.grow_to(2 * PIECE + 1), Err(Overloaded));
        assert_eq!(other.grow_to(2 * PIECE), Ok(()), "what it has it keeps");
        drop(one);
        assert_eq!(other.grow_to(5 * PIECE), Ok(()));
    }
}
