//! Who may replay now.

use std::collections::{BTreeSet, VecDeque};

/// Permits for a bounded number of things at a time, in the order in which they were asked for.
///
/// After an outage of the network every worker wants a replay at once. vLLM serves one from the thread
/// that publishes, and all of them come through our one link.
///
/// Who asks [patiently](Turns::ask_patiently) comes after everyone else, and has to give its turn
/// [back](Turns::to_give_back) when somebody else waits for one.
#[derive(Clone, Debug)]
pub struct Turns<K> {
    at_a_time: usize,
    running: BTreeSet<K>,
    /// Those of `running` that asked patiently.
    patient: BTreeSet<K>,
    waiting: VecDeque<K>,
    waiting_patiently: VecDeque<K>,
}

impl<K: Copy + Ord> Turns<K> {
    /// At least one at a time.
    pub fn new(at_a_time: usize) -> Turns<K> {
        Turns {
            at_a_time: at_a_time.max(1),
            running: BTreeSet::new(),
            patient: BTreeSet::new(),
            waiting: VecDeque::new(),
            waiting_patiently: VecDeque::new(),
        }
    }

    /// Asks for a turn; whether it is there now. Otherwise [`end`](Turns::end) gives it later. Whoever
    /// waits already keeps its place.
    pub fn ask(&mut self, key: K) -> bool {
        if self.running.contains(&key) {
            self.patient.remove(&key);
            return true;
        }
        self.waiting_patiently.retain(|waiting| *waiting != key);
        if self.waiting.contains(&key) {
            return false;
        }
        if self.running.len() < self.at_a_time {
            return self.running.insert(key);
        }
        self.waiting.push_back(key);
        false
    }

    /// Asks for a turn that nobody else wants; whether it is there now. Whoever has or awaits a turn already
    /// keeps it as it is.
    pub fn ask_patiently(&mut self, key: K) -> bool {
        if self.running.contains(&key) {
            return true;
        }
        if self.waiting.contains(&key) || self.waiting_patiently.contains(&key) {
            return false;
        }
        if self.running.len() < self.at_a_time {
            self.patient.insert(key);
            return self.running.insert(key);
        }
        self.waiting_patiently.push_back(key);
        false
    }

    /// Whose turn is to be ended because somebody waits who does not have to be patient.
    pub fn to_give_back(&self) -> Option<K> {
        self.patient.first().copied().filter(|_| !self.waiting.is_empty())
    }

    /// Ends a turn, or the wait for one. Returns whose turn it is instead.
    pub fn end(&mut self, key: K) -> Option<K> {
        self.waiting.retain(|waiting| *waiting != key);
        self.waiting_patiently.retain(|waiting| *waiting != key);
        self.patient.remove(&key);
        if !self.running.remove(&key) {
            return None;
        }
        let next = match self.waiting.pop_front() {
            Some(next) => next,
            None => {
                let next = self.waiting_patiently.pop_front()?;
                self.patient.insert(next);
                next
            }
        };
        self.running.insert(next);
        Some(next)
    }

    /// How many have a turn.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.waiting_patiently.len()
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

    #[test]
    fn the_patient_come_last_and_make_room() {
        let mut turns = Turns::new(2);
        assert_eq!([1, 2, 3].map(|key| turns.ask_patiently(key)), [true, true, false]);
        assert_eq!(turns.to_give_back(), None, "nobody else waits");
        assert!(!turns.ask(4));
        let gives = turns.to_give_back();
        assert_eq!(gives, Some(1));
        assert_eq!(turns.end(1), Some(4), "before the third, which asked earlier");
        assert_eq!((turns.to_give_back(), turns.running(), turns.waiting()), (None, 2, 1));
        assert_eq!(turns.end(4), Some(3));
        assert!(turns.ask(3) && !turns.ask(5), "the third is in a hurry now");
        assert_eq!(turns.to_give_back(), Some(2));
        assert_eq!([turns.end(2), turns.end(3), turns.end(5)], [Some(5), None, None]);
        assert_eq!((turns.running(), turns.waiting()), (0, 0));
    }

    #[test]
    fn who_waited_patiently_and_is_in_a_hurry_waits_once() {
        let mut turns = Turns::new(1);
        assert!(
            turns.ask(1) && !turns.ask_patiently(2) && !turns.ask(2) && !turns.ask_patiently(2)
        );
        assert_eq!(
            (turns.waiting(), turns.to_give_back()),
            (1, None),
            "the first is in a hurry, too"
        );
        assert_eq!((turns.end(1), turns.end(2), turns.waiting()), (Some(2), None, 0));
    }

    #[test]
    fn who_is_in_a_hurry_gives_nothing_back_and_who_waited_patiently_does() {
        let mut turns = Turns::new(1);
        assert!(turns.ask_patiently(1) && turns.ask(1) && !turns.ask(2));
        assert_eq!(turns.to_give_back(), None, "the first is in a hurry by now");
        assert_eq!(turns.end(1), Some(2));
        assert!(!turns.ask_patiently(3));
        assert_eq!(turns.end(2), Some(3));
        assert!(!turns.ask(4));
        assert_eq!(turns.to_give_back(), Some(3));
    }
}
