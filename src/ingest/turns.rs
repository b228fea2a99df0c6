//! Who may replay now.

use std::collections::{BTreeSet, VecDeque};

/// Permits for a bounded number of things at a time, in the order in which they were asked for.
///
/// After an outage of the network every worker wants a replay at once. vLLM serves one from the thread
/// that publishes, and all of them come through our one link.
#[derive(Clone, Debug)]
pub struct Turns<K> {
    at_a_time: usize,
    running: BTreeSet<K>,
    waiting: VecDeque<K>,
}

impl<K: Copy + Ord> Turns<K> {
    /// At least one at a time.
    pub fn new(at_a_time: usize) -> Turns<K> {
        Turns { at_a_time: at_a_time.max(1), running: BTreeSet::new(), waiting: VecDeque::new() }
    }

    /// Asks for a turn; whether it is there now. Otherwise [`end`](Turns::end) gives it later. Whoever
    /// waits already keeps its place.
    pub fn ask(&mut self, key: K) -> bool {
        if self.running.contains(&key) {
            return true;
        }
        if self.waiting.contains(&key) {
            return false;
        }
        if self.running.len() < self.at_a_time {
            return self.running.insert(key);
        }
        self.waiting.push_back(key);
        false
    }

    /// Ends a turn, or the wait for one. Returns whose turn it is instead.
    pub fn end(&mut self, key: K) -> Option<K> {
        self.waiting.retain(|waiting| *waiting != key);
        if !self.running.remove(&key) {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.running.insert(next);
        Some(next)
    }

    /// How many have a turn.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s10_a_storm_is_served_in_order_and_never_too_many_at_a_time() {
        let mut turns = Turns::new(4);
        let mut served: Vec<u32> = (0..500).filter(|key| turns.ask(*key)).collect();
        assert_eq!((turns.running(), turns.waiting()), (4, 496));
        let mut at = 0;
        while at < served.len() {
            served.extend(turns.end(served[at]));
            assert!(turns.running() <= 4);
            at += 1;
        }
        assert!(served.into_iter().eq(0..500));
    }

    #[test]
    fn whoever_leaves_the_queue_is_not_called() {
        let mut turns = Turns::new(1);
        assert_eq!([1, 2, 3, 2].map(|key| turns.ask(key)), [true, false, false, false]);
        assert_eq!(turns.end(2), None);
        assert_eq!(turns.end(1), Some(3));
        assert!(turns.ask(3), "it has its turn");
        assert_eq!(turns.end(3), None);
        assert_eq!((turns.running(), turns.waiting()), (0, 0));
    }
}
