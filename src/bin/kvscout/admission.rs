//! How many questions are answered at a time, and how many may wait for that. Whoever comes beyond is told at once:
//! a router that knows goes on without an answer, one that waits does not.
//!
//! A burst may wait: it is over soon. A line that does not end makes every answer late and none of them sooner, so it is
//! kept short for as long as there are more questions than answers.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;

/// Bodies are counted in pieces of this size, and up to one for free: connections are bounded themselves.
pub(crate) const PIECE: usize = 64 << 10;

/// Where no other number is configured, for each core: one that is computed and one that is there when it is done.
const FOR_EACH_CORE: usize = 2;

/// A line that is long for half of such a time, or more, is no burst.
const BURST: Duration = Duration::from_millis(100);

/// For so long after the last refusal a line stays short: those who were refused come back.
const SHORT: Duration = Duration::from_secs(10);

/// The bounds.
#[derive(Debug)]
pub(crate) struct Admission {
    running: Arc<Semaphore>,
    line: Mutex<Line>,
    bodies: Arc<Semaphore>,
}

/// Those who wait for a turn.
#[derive(Debug)]
struct Line {
    waiting: usize,
    /// How many may wait in a burst.
    most: usize,
    /// How many may wait where the line does not end. It is long where more do.
    few: usize,
    /// Since when it is looked at, for how much of that it was long, and up to when that is counted.
    since: Instant,
    long: Duration,
    counted: Instant,
    short_until: Option<Instant>,
}

impl Line {
    fn new(most: usize, few: usize, now: Instant) -> Line {
        let (since, counted, long) = (now, now, Duration::ZERO);
        Line { waiting: 0, most, few: few.min(most), since, long, counted, short_until: None }
    }

    fn count(&mut self, now: Instant) {
        if self.waiting > self.few {
            self.long += now.saturating_duration_since(self.counted);
        }
        self.counted = now;
        let looked_at = now.saturating_duration_since(self.since);
        if looked_at < BURST {
            return;
        }
        if self.long >= looked_at / 2 {
            self.short_until = Some(now + SHORT);
        }
        (self.since, self.long) = (now, Duration::ZERO);
    }

    /// Whether whoever came now would be refused; if the line does not end, that keeps it short.
    fn refuses(&mut self, now: Instant) -> bool {
        self.count(now);
        let is_short = self.short_until.is_some_and(|until| now < until);
        let refused = self.waiting >= if is_short { self.few } else { self.most };
        if is_short && refused {
            self.short_until = Some(now + SHORT);
        }
        refused
    }

    fn enter(&mut self, now: Instant) -> Result<(), Overloaded> {
        if self.refuses(now) {
            return Err(Overloaded);
        }
        self.waiting += 1;
        Ok(())
    }

    fn leave(&mut self, now: Instant) {
        self.count(now);
        self.waiting -= 1;
    }
}

/// A place in the line, until it is dropped: by whoever has got a turn, or has given up.
#[derive(Debug)]
struct Place<'a>(&'a Mutex<Line>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().leave(Instant::now());
    }
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
            line: Mutex::new(Line::new(limits.queue, running.div_ceil(4), Instant::now())),
            bodies: Arc::new(Semaphore::new(most(limits.body_memory / PIECE))),
        }
    }

    /// Whether whoever came now would neither be answered nor wait.
    pub(crate) fn is_full(&self) -> bool {
        self.running.available_permits() == 0 && self.line.lock().refuses(Instant::now())
    }

    /// A turn, after those of whoever came before.
    pub(crate) async fn turn(&self) -> Result<Turn, Overloaded> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            // Whoever came meanwhile is taken note of first: what is answered right here, without a pause,
            // would otherwise hide how many there are.
            tokio::task::yield_now().await;
            return Ok(Turn { _permit: permit });
        }
        self.line.lock().enter(Instant::now())?;
        let _place = Place(&self.line);
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
    fn a_burst_may_wait_and_a_line_that_does_not_end_is_kept_short_while_somebody_is_refused() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut line = Line::new(5, 2, start);
        let come = |line: &mut Line, milliseconds| line.enter(at(milliseconds));
        // A burst, over after 40 of 100 ms.
        (0..5).for_each(|_| assert_eq!(come(&mut line, 0), Ok(())));
        assert_eq!(come(&mut line, 1), Err(Overloaded), "a burst has a bound, too");
        (0..5).for_each(|_| line.leave(at(40)));
        (0..5).for_each(|_| assert_eq!(come(&mut line, 100), Ok(())));
        // More than two for 60 of 100 ms, although it was empty in between.
        (0..5).for_each(|_| line.leave(at(130)));
        (0..5).for_each(|_| assert_eq!(come(&mut line, 150), Ok(())));
        (0..3).for_each(|_| line.leave(at(180)));
        assert_eq!(come(&mut line, 200), Err(Overloaded), "two wait");
        line.leave(at(200));
        assert_eq!(come(&mut line, 201), Ok(()));
        // So it stays while somebody is refused, and for a while after that.
        (0..2).for_each(|_| line.leave(at(202)));
        (0..2).for_each(|_| assert_eq!(come(&mut line, 9_000), Ok(())));
        assert_eq!(come(&mut line, 9_001), Err(Overloaded));
        (0..2).for_each(|_| line.leave(at(9_002)));
        (0..5).for_each(|_| assert_eq!(come(&mut line, 19_001), Ok(())));
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
