//! A bounded memory of what came lately.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

/// What was put in lately, in two generations of at most so many.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: HashMap<K, V, RandomState>,
    old: HashMap<K, V, RandomState>,
    most: usize,
}

impl<K: Eq + Hash, V: Copy> Recent<K, V> {
    pub(super) fn new(most: usize) -> Recent<K, V> {
        Recent { young: HashMap::default(), old: HashMap::default(), most }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= self.most {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        // Who fills a sixteenth fills the rest, and each doubling on the way would move all of it.
        if self.young.len() == self.young.capacity() && self.young.len() > self.most / 16 {
            self.young.reserve(self.most - self.young.len());
        }
        self.young.insert(key, value);
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_lately_is_known_and_never_more_than_two_generations() {
        let mut recent: Recent<(u32, u64), u64> = Recent::new(100);
        for n in 0..1000 {
            recent.put((1, n), n);
            let first = n.saturating_sub(99);
            assert!((first..=n).all(|n| recent.get(&(1, n)) == Some(n)));
            assert!(recent.young.len() <= 100 && recent.old.len() <= 100);
        }
        assert_eq!((recent.get(&(1, 0)), recent.get(&(2, 999))), (None, None));
        let gone = [850, 950].map(|n| {
            assert_eq!(recent.get(&(1, n)), Some(n));
            recent.forget(&(1, n));
            recent.get(&(1, n))
        });
        assert_eq!(gone, [None, None], "of either generation");
        recent.put((1, 860), 0);
        assert_eq!(recent.get(&(1, 860)), Some(0), "the later one counts");
    }
}
