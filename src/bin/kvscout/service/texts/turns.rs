//! So many at a time, and so many that wait.

use parking_lot::{Condvar, Mutex};

use super::Refusal;

/// Hands out a bounded number of turns.
#[derive(Debug)]
pub(super) struct Turns {
    at_a_time: usize,
    most_waiting: usize,
    taken: Mutex<Taken>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    running: usize,
    waiting: usize,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Turns);

impl Turns {
    pub(super) fn new(at_a_time: usize, most_waiting: usize) -> Turns {
        Turns { at_a_time, most_waiting, taken: Mutex::default(), returned: Condvar::new() }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    ///
    /// Too many wait already.
    pub(super) fn take(&self) -> Result<Turn<'_>, Refusal> {
        let mut taken = self.taken.lock();
        if taken.running >= self.at_a_time {
            if taken.waiting >= self.most_waiting {
                return Err(Refusal::Overloaded);
            }
            taken.waiting += 1;
            self.returned.wait_while(&mut taken, |taken| taken.running >= self.at_a_time);
            taken.waiting -= 1;
        }
        taken.running += 1;
        Ok(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.lock().running -= 1;
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_finds_too_many_waiting_is_sent_away_and_a_turn_comes_back() {
        let turns = Turns::new(1, 0);
        let first = turns.take().unwrap();
        assert!(matches!(turns.take(), Err(Refusal::Overloaded)));
        drop(first);
        assert!(turns.take().is_ok());
    }

    #[test]
    fn no_more_run_at_a_time_than_may_and_all_that_wait_come_to_it() {
        let (turns, running) = (Turns::new(2, 8), Mutex::new((0, 0)));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take().unwrap();
                        let mut now = running.lock();
                        now.0 += 1;
                        now.1 = now.1.max(now.0);
                        drop(now);
                        thread::yield_now();
                        running.lock().0 -= 1;
                    }
                });
            }
        });
        let (left, most) = *running.lock();
        assert!(left == 0 && (1..=2).contains(&most), "{left} {most}");
        assert_eq!(turns.taken.lock().running, 0);
    }
}
