//! How many questions are answered at a time, and how many may be under way in all. Whoever comes beyond is told at
//! once: a router that knows goes on without an answer, one that waits does not.
//!
//! A burst may wait: it is over soon. A line that does not end makes every answer late and none of them sooner, so it is
//! kept short for as long as there are more questions than answers.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::service::Refusal;

/// Bodies are counted in pieces of this size, and up to one for free: connections are bounded themselves.
pub(crate) const PIECE: usize = 64 << 10;

/// Where no other number is configured, for each core, of questions that wait for another server.
const WAITING_FOR_EACH_CORE: usize = 16;

/// A body that takes longer is not waited for by our cores, but by its client's network.
const SLOW: Duration = Duration::from_millis(10);

/// A line that is long for half of such a time, or more, is no burst.
const BURST: Duration = Duration::from_millis(100);

/// For so long after the last refusal a line stays short: those who were refused come back.
const SHORT: Duration = Duration::from_secs(10);

/// Registrations and removals at a time. They take no turn of a question's, since a name server may let them wait.
const CHANGES: usize = 64;

/// The bounds.
#[derive(Debug)]
pub(crate) struct Admission {
    changes: Arc<Semaphore>,
    running: Arc<Semaphore>,
    line: Arc<Mutex<Line>>,
    bodies: Arc<Semaphore>,
}

/// Questions whose head was read and whose answer is not there, those that are answered right now among them.
#[derive(Debug)]
struct Line {
    questions: usize,
    /// How many there may be in a burst.
    most: usize,
    /// How many there may be where the line does not end. It is long where there are more.
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
        Line { questions: 0, most, few: few.min(most), since, long, counted, short_until: None }
    }

    fn count(&mut self, now: Instant) {
        if self.questions > self.few {
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

    /// Whoever is refused while the line is kept short keeps it so.
    fn enter(&mut self, now: Instant) -> Result<(), Overloaded> {
        self.count(now);
        let is_short = self.short_until.is_some_and(|until| now < until);
        if self.questions < if is_short { self.few } else { self.most } {
            self.questions += 1;
            return Ok(());
        }
        if is_short {
            self.short_until = Some(now + SHORT);
        }
        Err(Overloaded)
    }

    fn leave(&mut self, now: Instant) {
        self.count(now);
        self.questions -= 1;
    }
}

/// A question's place in the line, until it is dropped: once there is an answer, or nobody to read one.
#[derive(Debug)]
struct Place(Arc<Mutex<Line>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().leave(Instant::now());
    }
}

/// A question that has not got its turn yet.
#[derive(Debug)]
pub(crate) struct Question {
    running: Arc<Semaphore>,
    line: Arc<Mutex<Line>>,
    /// None while its body is waited for.
    place: Option<Place>,
}

/// Leave to compute an answer now.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overloaded;

impl Admission {
    /// The bounds as they are configured; whether answers come from another server.
    pub(crate) fn new(limits: &Limits, waits: bool) -> Admission {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let for_each_core = if waits { WAITING_FOR_EACH_CORE } else { 1 };
        let running = limits.concurrency.map_or_else(|| cores() * for_each_core, usize::from);
        let most = |count: usize| count.min(Semaphore::MAX_PERMITS);
        let (burst, few) = (running.saturating_add(limits.queue), running + running.div_ceil(4));
        Admission {
            changes: Arc::new(Semaphore::new(CHANGES)),
            running: Arc::new(Semaphore::new(most(running))),
            line: Arc::new(Mutex::new(Line::new(burst, few, Instant::now()))),
            bodies: Arc::new(Semaphore::new(most(limits.body_memory / PIECE))),
        }
    }

    /// One more question, from its head on.
    pub(crate) async fn question(&self) -> Result<Question, Overloaded> {
        let (running, line) = (Arc::clone(&self.running), Arc::clone(&self.line));
        let place = Some(place(&line)?);
        // Whoever came meanwhile is taken note of first: what is answered right here, without a pause, would
        // otherwise hide how many there are.
        tokio::task::yield_now().await;
        Ok(Question { running, line, place })
    }

    /// A turn for a question that is there as a whole.
    pub(crate) async fn turn(&self) -> Result<Turn, Overloaded> {
        self.question().await?.turn().await
    }

    /// Leave to register or to remove a worker now.
    pub(crate) fn change(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.changes).try_acquire_owned().map_err(|_| {
            Refusal::Busy(format!(
                "{CHANGES} registrations and removals are under way already; try again later"
            ))
        })
    }

    /// Room for a body.
    pub(crate) fn room(&self) -> Room {
        Room { bodies: Arc::clone(&self.bodies), bytes: PIECE, permit: None }
    }
}

fn place(line: &Arc<Mutex<Line>>) -> Result<Place, Overloaded> {
    line.lock().enter(Instant::now())?;
    Ok(Place(Arc::clone(line)))
}

impl Question {
    /// Waits for its body. One that comes slowly has no place in the line meanwhile: many of them would keep out those
    /// that could be answered.
    pub(crate) async fn body<T>(&mut self, body: impl Future<Output = T>) -> T {
        let mut body = pin!(body);
        if let Ok(read) = tokio::time::timeout(SLOW, body.as_mut()).await {
            return read;
        }
        self.place = None;
        body.await
    }

    /// A turn, after those of whoever came before.
    pub(crate) async fn turn(self) -> Result<Turn, Overloaded> {
        let _place = self.place.map_or_else(|| place(&self.line), Ok)?;
        let _permit = self.running.acquire_owned().await.map_err(|_| Overloaded)?;
        Ok(Turn { _permit, _place })
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
        Admission::new(
            &Limits { concurrency, queue, body_memory, ..Config::default().limits },
            false,
        )
    }

    #[tokio::test]
    async fn one_runs_one_waits_and_a_third_is_told_at_once() {
        let admission = admission(1, 1, 0);
        let first = admission.turn().await.unwrap();
        let second = admission.question().await.unwrap();
        assert_eq!(admission.question().await.unwrap_err(), Overloaded);
        let waiting = tokio::spawn(second.turn());
        assert_eq!(admission.turn().await.unwrap_err(), Overloaded);
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        let third = admission.question().await.unwrap();
        drop(second);
        drop(third.turn().await.unwrap());
    }

    #[tokio::test]
    async fn registrations_take_no_turn_of_a_question_s_and_have_a_bound_of_their_own() {
        let admission = admission(1, 0, 0);
        let question = admission.turn().await.unwrap();
        let mut held: Vec<_> = (0..CHANGES).map(|_| admission.change().unwrap()).collect();
        assert!(matches!(admission.change(), Err(Refusal::Busy(_))));
        held.pop();
        held.push(admission.change().unwrap());
        drop(question);
        drop(admission.turn().await.unwrap());
    }

    #[tokio::test]
    async fn a_question_has_no_place_while_its_body_comes_slowly_and_needs_one_afterwards() {
        let admission = admission(1, 0, 0);
        let mut quick = admission.question().await.unwrap();
        quick.body(tokio::task::yield_now()).await;
        assert_eq!(admission.question().await.unwrap_err(), Overloaded);
        drop(quick);
        for other_is_there in [false, true] {
            let mut slow = admission.question().await.unwrap();
            let mut other = None;
            // It comes when its place is free.
            let body = async {
                while other.is_none() {
                    tokio::time::sleep(SLOW / 10).await;
                    other = admission.turn().await.ok();
                }
            };
            slow.body(body).await;
            other = other.filter(|_| other_is_there);
            assert_eq!(slow.turn().await.is_err(), other_is_there);
            drop(other);
        }
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
